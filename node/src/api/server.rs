//! The HTTP server: every row of [`super::types`].
//!
//! ```text
//! connection ─▶ guard (host, origin, who) ─▶ gate (how much at once) ─▶ handler
//!                                                                          │
//!                  driver (NodeHandle)  ◀── live state, orders ────────────┤
//!                  store (Archive)      ◀── what is written down ──────────┤
//!                  blobs                ◀── bytes, streamed ───────────────┘
//! ```
//!
//! Handlers hold no state: they ask, translate by [`super::views`] and answer.
//! Memory is bounded: a JSON body has at most [`JSON_BYTES_MAX`], blobs are
//! streamed, lists have a limit, and each kind of request has its gate.
//! Absent: pages for browsers, TLS (it is for loopback), and any rule of the
//! exchange.

mod accounts;
mod blobs;
mod connections;
mod find;
mod gates;
mod guard;
mod input;
mod jobs;
mod keys;
mod models;
mod problem;
mod standings;
#[cfg(test)]
mod tests;

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use suanli_protocol::limits::CALL_QUESTION_BYTES_MAX;
use tokio::{net::TcpListener, sync::watch, time::timeout};

use self::{
    gates::{Gate, Gates},
    guard::{Guard, NotServed},
    problem::Problem,
};
use super::token::Token;
use crate::{
    gateway::Gateway,
    handle::{Gone, NodeHandle},
    keys::{KeyFile, Keys},
    models::stock::Stock,
    records::Archive,
};

/// Bytes of a JSON body, at most: an array of sixteen thousand files names each.
pub const JSON_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Serves the API until `stop` is done, and then ends what is open.
///
/// # Errors
/// The listener has no address, or the node is stopping before it begins. Failing
/// connections end by themselves.
pub async fn serve(
    handle: NodeHandle,
    listener: TcpListener,
    behind: Behind,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    serve_through(Gates::new(), handle, listener, behind, stop).await
}

/// What lies behind the API, beside the driver.
#[derive(Debug)]
pub struct Behind {
    /// Opens all of it.
    pub token: Token,
    /// Open a part of it.
    pub keys: KeyFile,
    /// The models that the node serves, if it sells.
    pub stock: Option<Stock>,
}

async fn serve_through(
    gates: Gates,
    handle: NodeHandle,
    listener: TcpListener,
    behind: Behind,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let bound = listener.local_addr()?;
    let Behind { token, keys, stock } = behind;
    let keys = keys.start(handle.clone()).await.map_err(io::Error::other)?;
    let (stopping, stopped) = watch::channel(false);
    let api = Arc::new(Api {
        archive: Archive::new(handle.store().clone(), &handle.facts().network),
        gateway: Gateway::start(handle.clone()),
        handle,
        gates,
        guard: Guard::new(bound, token),
        keys,
        stock: stock.map(Arc::new),
        stopped: stopped.clone(),
    });
    let serving = connections::serve(listener, router(api), stopped);
    let stop = async move {
        stop.await;
        stopping.send_replace(true);
        // The server ends, not this.
        std::future::pending().await
    };
    tokio::select! {
        () = serving => Ok(()),
        never = stop => match never {},
    }
}

/// What all handlers see.
#[derive(Debug)]
struct Api {
    handle: NodeHandle,
    gateway: Gateway,
    archive: Archive,
    gates: Gates,
    guard: Guard,
    keys: Keys,
    stock: Option<Arc<Stock>>,
    stopped: watch::Receiver<bool>,
}

/// How long an answer from the store waits for what has just happened to be on
/// disk: then it tells what is.
const WRITTEN_WAIT: Duration = Duration::from_secs(1);

impl Api {
    /// The store, when all that has happened so far is in it.
    async fn archive(&self) -> Result<&Archive, Gone> {
        if let Ok(written) = timeout(WRITTEN_WAIT, self.handle.written()).await {
            written?;
        }
        Ok(&self.archive)
    }
}

type Shared = State<Arc<Api>>;

fn router(api: Arc<Api>) -> Router {
    let gated = |routes: Router<Arc<Api>>, gate: Gate| {
        routes.route_layer(from_fn_with_state((Arc::clone(&api), gate), pass_gate))
    };
    let controls = Router::new()
        .route("/v1/status", get(accounts::status))
        .route("/v1/peers", get(accounts::peers))
        .route("/v1/offers", get(accounts::offers))
        .route("/v1/offers/{id}", get(accounts::offer))
        .route("/v1/channels", get(accounts::channels))
        .route("/v1/channels/{id}", get(accounts::channel))
        .route("/v1/settlements", post(accounts::settle))
        .route("/v1/work", get(accounts::work))
        .route("/v1/budgets", get(accounts::budgets))
        .route("/v1/keys", get(keys::list).post(keys::create))
        .route("/v1/plan", post(jobs::plan))
        .route("/v1/explain", post(jobs::explain))
        .route("/v1/jobs", post(jobs::submit));
    let stops = Router::new()
        .route("/v1/shutdown", post(accounts::shutdown))
        .route("/v1/pause", post(accounts::pause))
        .route("/v1/resume", post(accounts::resume))
        .route("/v1/stock", post(models::renew))
        .route("/v1/keys/{name}/revoke", post(keys::revoke))
        .route("/v1/jobs/{id}/cancel", post(jobs::cancel));
    let lookups = Router::new()
        .route("/v1/jobs", get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::show))
        .route("/v1/jobs/{id}/units", get(jobs::units))
        .route("/v1/offers/{id}/challenge", post(accounts::challenge))
        .route("/v1/standings", get(standings::list))
        .route("/v1/standings/{id}", get(standings::show))
        .route("/v1/standings/{id}/references", post(standings::fetch))
        .route("/v1/receipts", get(accounts::receipts))
        .route("/v1/receipts/{id}", get(accounts::receipt))
        .route("/v1/receipts/{id}/bundle", get(accounts::bundle))
        .route("/v1/channels/{id}/statement", get(accounts::statement));
    let uploads = Router::new().route("/v1/blobs", post(blobs::upload));
    // These enter their gate themselves, and keep their place while they send.
    let streams = Router::new()
        .route("/v1/jobs/{id}/events", get(jobs::events))
        .route("/v1/jobs/{id}/outputs/{name}", get(jobs::output))
        .route(
            "/v1/receipts/{id}/outputs/{name}",
            get(jobs::receipt_output),
        );
    let models = Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::show));
    // They enter their gate themselves as well.
    let questions = Router::new()
        .route("/v1/chat/completions", post(models::chat))
        .route("/v1/completions", post(models::complete))
        .route("/v1/embeddings", post(models::embed))
        .route("/v1/responses", post(models::respond))
        .layer(DefaultBodyLimit::max(CALL_QUESTION_BYTES_MAX));
    gated(stops, Gate::Stop)
        .merge(gated(controls, Gate::Control))
        .merge(gated(lookups, Gate::Lookup))
        .merge(gated(uploads, Gate::Upload))
        .merge(gated(models, Gate::Control))
        .merge(questions)
        .merge(streams)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(Arc::clone(&api), pass_guard))
        .with_state(api)
}

async fn pass_guard(State(api): Shared, mut request: Request, next: Next) -> Response {
    let checked = api.guard.check(request.uri(), request.headers(), &api.keys);
    let mut response = match checked {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(NotServed::Here(problem)) => problem.into_response(),
        Err(NotServed::NoKey) => models::Wrong::no_key().into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn pass_gate(
    State((api, gate)): State<(Arc<Api>, Gate)>,
    request: Request,
    next: Next,
) -> Response {
    match api.gates.enter(gate) {
        Ok(_place) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn no_such_path() -> Problem {
    Problem::usage(
        StatusCode::NOT_FOUND,
        "there is no such path; all paths begin with /v1/",
    )
}

async fn no_such_method() -> Problem {
    Problem::usage(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path takes another method; reading is GET, ordering is POST",
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
