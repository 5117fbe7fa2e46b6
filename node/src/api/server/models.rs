//! Models, as clients of OpenAI's interface ask for them.
//!
//! ```text
//! POST /v1/chat/completions, /v1/completions, /v1/embeddings ─▶ gateway ─▶ a provider
//! GET  /v1/models, /v1/models/{id}                            ─▶ the offer book
//! ```
//!
//! Errors have that interface's shape, and so have streams: one event for each piece, usage
//! only where it was asked for, `[DONE]` at the end. An answer that breaks off in the middle
//! ends with an event that says so, and without `[DONE]`.
//!
//! Who asks by an API key sees and uses the models that the key names, at the key's rate. What
//! it may spend is the core's to say, when a lease is made.
//!
//! Absent: what models can do. A question is passed on as it is, and the model's server
//! says what is wrong with it.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use serde_json::{Value, json};
use suanli_protocol::{offer::Name, registry::Endpoint, units::Meter, wire::Text};
use tokio::sync::OwnedSemaphorePermit;

use super::{Api, Gate, Problem, Shared, guard::Caller};
use crate::{
    api::types::{NotServedInfo, StockInfo},
    gateway::{
        Asked, Asker, GatewayError, Served,
        answer::{Answer, Piece},
        model_name,
    },
    handle::Gone,
    keys::{GATEWAY, Key, TooFast},
    rate::Left,
};

/// `POST /v1/stock`: serves what is on the shelf now.
pub(super) async fn renew(State(api): Shared) -> Result<Json<StockInfo>, Problem> {
    let Some(stock) = &api.stock else {
        return Err(Problem::usage(
            StatusCode::CONFLICT,
            "this node sells nothing: write [provide] into its configuration, and start it again",
        ));
    };
    // Whoever asks may hang up: it is done all the same.
    let stock = Arc::clone(stock);
    let renewing = tokio::spawn(async move { stock.renew().await });
    let conflict = |why: String| Problem::usage(StatusCode::CONFLICT, why);
    let renewed = renewing
        .await
        .map_err(|error| conflict(error.to_string()))?;
    let renewed = renewed.map_err(|error| conflict(error.to_string()))?;
    let failed = renewed.failed.into_iter();
    Ok(Json(StockInfo {
        added: renewed.added,
        removed: renewed.removed,
        failed: failed
            .map(|(name, why)| NotServedInfo { name, why })
            .collect(),
    }))
}

/// Bytes of an answer that comes as one.
const ANSWER_BYTES_MAX: usize = crate::models::upstream::ANSWER_BYTES_MAX;

/// What goes wrong, in the shape that clients of this interface expect.
#[derive(Debug)]
pub(super) struct Wrong {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<&'static str>,
    message: String,
    /// The model's server's own words instead.
    body: Option<Vec<u8>>,
    retry_after_s: Option<u32>,
}

impl Wrong {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            body: None,
            retry_after_s: None,
        }
    }

    fn question(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param),
            ..Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
        }
    }

    fn no_model(model: &str) -> Self {
        let shown: String = model.chars().take(80).collect();
        let message = format!(
            "nobody serves the model `{shown}` now; GET /v1/models lists those that are served"
        );
        Self {
            code: Some("model_not_found"),
            param: Some("model"),
            ..Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
        }
    }

    /// No API key, or none that opens anything.
    pub(super) fn no_key() -> Self {
        let message = "the API key is missing, wrong, revoked or expired; whoever runs this node \
                       makes one with `suanli key create`";
        Self {
            code: Some("invalid_api_key"),
            ..Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message)
        }
    }

    /// A key's rate is used up.
    fn too_fast(too_fast: TooFast) -> Self {
        let seconds = whole_seconds(too_fast.wait).max(1);
        let TooFast { of, limit, .. } = too_fast;
        let message =
            format!("this key may use {limit} {of} a minute; try again in {seconds} seconds");
        Self {
            code: Some("rate_limit_exceeded"),
            retry_after_s: Some(u32::try_from(seconds).unwrap_or(u32::MAX)),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, of, message)
        }
    }

    fn unavailable(message: impl Into<String>, retry_after_s: u32) -> Self {
        Self {
            code: Some("no_provider"),
            retry_after_s: Some(retry_after_s),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
        }
    }

    fn to_json(&self) -> Value {
        json!({ "error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        } })
    }
}

impl IntoResponse for Wrong {
    fn into_response(self) -> Response {
        let words = self.body.clone().filter(|body| !body.is_empty());
        let mut response = match words {
            Some(body) => {
                let kind = [(header::CONTENT_TYPE, "application/json")];
                (self.status, kind, body).into_response()
            }
            None => (self.status, Json(self.to_json())).into_response(),
        };
        if let Some(seconds) = self.retry_after_s {
            let seconds = HeaderValue::from(seconds);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

impl From<Gone> for Wrong {
    fn from(gone: Gone) -> Self {
        Self::unavailable(gone.to_string(), 5)
    }
}

impl From<Problem> for Wrong {
    /// From a gate: too much at once.
    fn from(problem: Problem) -> Self {
        Self {
            code: Some("rate_limit_exceeded"),
            retry_after_s: Some(1),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "requests",
                problem.sentence(),
            )
        }
    }
}

impl From<GatewayError> for Wrong {
    fn from(error: GatewayError) -> Self {
        match error {
            GatewayError::NoSuchModel(model) => Self::no_model(&model),
            GatewayError::NoProvider(_) => Self::unavailable(error.to_string(), 2),
            GatewayError::OverBudget(words) => Self {
                code: Some("insufficient_quota"),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", words)
            },
            GatewayError::TooLong => Self::question("messages", error.to_string()),
            GatewayError::Refused(status, ref words) => {
                let words = words.clone();
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
                Self {
                    body: serde_json::from_slice::<Value>(&words)
                        .is_ok()
                        .then_some(words),
                    ..Self::new(status, "invalid_request_error", error.to_string())
                }
            }
            GatewayError::Gone(gone) => gone.into(),
        }
    }
}

/// `GET /v1/models`.
pub(super) async fn list(
    State(api): Shared,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Value>, Wrong> {
    let mut served = api.gateway.served().await?;
    served.retain(|one| caller.may_use(&one.model.name));
    let mut by_name: BTreeMap<Name, Vec<Served>> = BTreeMap::new();
    for one in served {
        by_name.entry(one.model.name.clone()).or_default().push(one);
    }
    let data: Vec<Value> = by_name.values().map(|all| described(all)).collect();
    Ok(Json(json!({ "object": "list", "data": data })))
}

/// `GET /v1/models/{id}`.
pub(super) async fn show(
    State(api): Shared,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Wrong> {
    let mut served = api.gateway.served().await?;
    served.retain(|one| *one.model.name == *id && caller.may_use(&id));
    if served.is_empty() {
        return Err(Wrong::no_model(&id));
    }
    Ok(Json(described(&served)))
}

/// A model, by all who serve it.
fn described(all: &[Served]) -> Value {
    let name = all.first().map_or("", |one| &*one.model.name);
    let providers: Vec<Value> = all
        .iter()
        .map(|one| {
            let model = &one.model;
            let price = |meter: Meter| {
                let mut prices = model.prices.iter();
                let price = prices.find(|price| price.meter == meter);
                price.map(|price| json!({ "amount": price.amount, "per": price.per }))
            };
            json!({
                "provider": one.provider,
                "region": one.region,
                "weights": model.weights,
                "quantisation": model.quantisation,
                "context": model.context,
                "price_in": price(Meter::TOKEN_IN),
                "price_out": price(Meter::TOKEN_OUT),
                "prefill_per_second": model.prefill_per_second,
                "decode_per_second": model.decode_per_second,
                "places": model.places,
            })
        })
        .collect();
    json!({
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "suanli",
        "providers": providers,
    })
}

pub(super) async fn chat(api: Shared, caller: Extension<Caller>, body: Bytes) -> Response {
    answer(api, caller, Endpoint::CHAT_COMPLETIONS, &body).await
}

pub(super) async fn complete(api: Shared, caller: Extension<Caller>, body: Bytes) -> Response {
    answer(api, caller, Endpoint::COMPLETIONS, &body).await
}

pub(super) async fn embed(api: Shared, caller: Extension<Caller>, body: Bytes) -> Response {
    answer(api, caller, Endpoint::EMBEDDINGS, &body).await
}

/// What of a question the gateway itself reads.
struct Question {
    model: Name,
    streams: bool,
    /// Whether the stream's last event is its usage.
    usage: bool,
}

/// Answers a question, and says how the caller's rates stand.
async fn answer(
    State(api): Shared,
    Extension(caller): Extension<Caller>,
    endpoint: Endpoint,
    body: &[u8],
) -> Response {
    let answered = ask(&api, &caller, endpoint, body).await;
    let mut response = answered.unwrap_or_else(IntoResponse::into_response);
    if let Caller::Key(key) = &caller {
        let (requests, tokens) = key.rates(Instant::now());
        let headers = response.headers_mut();
        for (names, left) in [(REQUEST_RATE, requests), (TOKEN_RATE, tokens)] {
            if let Some(left) = left {
                say_rate(headers, names, left);
            }
        }
    }
    response
}

async fn ask(
    api: &Api,
    caller: &Caller,
    endpoint: Endpoint,
    body: &[u8],
) -> Result<Response, Wrong> {
    let place = api.gates.enter(Gate::Ask)?;
    // A wrong question counts: it has to be read, too.
    caller.admit().map_err(Wrong::too_fast)?;
    let question = read(endpoint, body)?;
    if !caller.may_use(&question.model) {
        return Err(Wrong::no_model(&question.model));
    }
    let (principal, key) = caller.principal();
    let asked = Asked {
        asker: Asker {
            principal,
            model: question.model,
            key,
        },
        endpoint,
        streams: question.streams,
        body: body.to_vec(),
    };
    let answer = api.gateway.ask(asked).await?;
    if question.streams {
        Ok(streamed(answer, question.usage, place))
    } else {
        whole(answer).await
    }
}

impl Caller {
    /// For whom it asks, and the key that counts it.
    fn principal(&self) -> (Name, Option<Arc<Key>>) {
        match self {
            Self::Node => (Text::lossy(GATEWAY), None),
            Self::Key(key) => (key.principal().clone(), Some(Arc::clone(key))),
        }
    }

    /// Whether a model is there for it.
    fn may_use(&self, model: &str) -> bool {
        match self {
            Self::Node => true,
            Self::Key(key) => key.may_use(model),
        }
    }

    fn admit(&self) -> Result<(), TooFast> {
        match self {
            Self::Node => Ok(()),
            Self::Key(key) => key.admit(Instant::now()),
        }
    }
}

/// What clients read of a rate: a minute's, what is left, and when that is a minute's again.
type RateHeaders = [HeaderName; 3];

const REQUEST_RATE: RateHeaders = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKEN_RATE: RateHeaders = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

fn say_rate(headers: &mut HeaderMap, [limit, remaining, reset]: RateHeaders, left: Left) {
    headers.insert(limit, left.limit.into());
    headers.insert(remaining, left.remaining.into());
    let reset_in = format!("{}s", whole_seconds(left.full_in));
    if let Ok(reset_in) = HeaderValue::try_from(reset_in) {
        headers.insert(reset, reset_in);
    }
}

/// So many seconds, or a little less.
const fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + if time.subsec_nanos() > 0 { 1 } else { 0 }
}

fn read(endpoint: Endpoint, body: &[u8]) -> Result<Question, Wrong> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Wrong::question("body", format!("the body is no JSON: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(Wrong::question("body", "the body is no JSON object"));
    };
    let model = fields.get("model").and_then(Value::as_str);
    let Some(model) = model.filter(|model| !model.is_empty()) else {
        let message = "`model` is missing; GET /v1/models lists those that are served";
        return Err(Wrong::question("model", message));
    };
    let asks_for = match endpoint {
        Endpoint::CHAT_COMPLETIONS => "messages",
        Endpoint::COMPLETIONS => "prompt",
        _ => "input",
    };
    let is_there = match fields.get(asks_for) {
        Some(Value::Array(all)) => !all.is_empty(),
        Some(Value::String(_)) => asks_for != "messages",
        _ => false,
    };
    if !is_there {
        return Err(Wrong::question(
            asks_for,
            format!("`{asks_for}` is missing or empty"),
        ));
    }
    let is_set = |value: Option<&Value>| value.and_then(Value::as_bool).unwrap_or(false);
    let streams = is_set(fields.get("stream")) && endpoint != Endpoint::EMBEDDINGS;
    let options = fields.get("stream_options");
    Ok(Question {
        model: model_name(model).ok_or_else(|| Wrong::no_model(model))?,
        streams,
        usage: is_set(options.and_then(|options| options.get("include_usage"))),
    })
}

async fn whole(mut answer: Answer) -> Result<Response, Wrong> {
    let mut body = Vec::new();
    loop {
        match answer.next().await {
            Some(Piece::Event(piece)) if body.len() + piece.len() <= ANSWER_BYTES_MAX => {
                body.extend_from_slice(&piece);
            }
            Some(Piece::Done) => break,
            Some(Piece::Event(_) | Piece::Broken) | None => {
                return Err(Wrong::unavailable("the provider broke off; ask again", 1));
            }
        }
    }
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// An answer as a stream of events.
struct Events {
    answer: Answer,
    usage: bool,
    over: bool,
    _place: OwnedSemaphorePermit,
}

fn streamed(answer: Answer, usage: bool, place: OwnedSemaphorePermit) -> Response {
    let events = Events {
        answer,
        usage,
        over: false,
        _place: place,
    };
    let events = stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((Ok::<_, Infallible>(event), events))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Body::from_stream(events)).into_response()
}

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        while !self.over {
            match self.answer.next().await {
                Some(Piece::Event(event)) => {
                    if self.usage || !is_usage(&event) {
                        return Some(framed(&event));
                    }
                }
                Some(Piece::Done) => {
                    self.over = true;
                    return Some(framed(b"[DONE]"));
                }
                Some(Piece::Broken) | None => {
                    self.over = true;
                    let message = "the provider was lost in the middle of the answer, and nobody \
                                   can go on with it; ask again";
                    let wrong = Wrong {
                        code: Some("provider_lost"),
                        ..Wrong::new(StatusCode::BAD_GATEWAY, "server_error", message)
                    };
                    return Some(framed(wrong.to_json().to_string().as_bytes()));
                }
            }
        }
        None
    }
}

/// An event that says nothing but what was used.
fn is_usage(event: &[u8]) -> bool {
    // Most are not, and need not be read.
    let mentions = event.windows(7).any(|part| part == b"\"usage\"");
    mentions
        && serde_json::from_slice::<Value>(event).is_ok_and(|value| {
            value["usage"].is_object() && value["choices"].as_array().is_some_and(Vec::is_empty)
        })
}

fn framed(event: &[u8]) -> Bytes {
    [b"data: ", event, b"\n\n"].concat().into()
}
