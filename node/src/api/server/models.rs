//! Models, as clients of OpenAI's interface ask for them.
//!
//! ```text
//! POST /v1/chat/completions, /v1/completions, /v1/embeddings ─▶ gateway ─▶ a provider
//! POST /v1/responses ─▶ as a chat's question ────────────────────┘
//! GET  /v1/models, /v1/models/{id} ─▶ the offer book
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
    borrow::Cow,
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
use serde_json::{Map, Value, json};
use suanli_protocol::{offer::Name, registry::Endpoint, units::Meter, wire::Text};
use tokio::sync::OwnedSemaphorePermit;

use super::{Api, Gate, Problem, Shared, guard::Caller};
use crate::{
    api::types::{NotServedInfo, StockInfo},
    gateway::{
        Asked, Asker, GatewayError, Served,
        answer::{Answer, Piece},
        conversations::Conversation,
        model_name,
        responses::{self, Responding, Wanted},
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
    param: Option<Cow<'static, str>>,
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

    fn question(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
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
            param: Some("model".into()),
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

pub(super) async fn respond(api: Shared, caller: Extension<Caller>, body: Bytes) -> Response {
    let (State(api), Extension(caller)) = (api, caller);
    let answered = respond_to(&api, &caller, &body).await;
    with_rates(&caller, answered)
}

pub(super) async fn embed(api: Shared, caller: Extension<Caller>, body: Bytes) -> Response {
    answer(api, caller, Endpoint::EMBEDDINGS, &body).await
}

/// What of a question the gateway itself reads.
struct Question {
    endpoint: Endpoint,
    model: Name,
    streams: bool,
    /// Whether the stream's last event is its usage.
    usage: bool,
    /// What it goes on with.
    conversation: Option<Conversation>,
}

/// Answers a question.
async fn answer(
    State(api): Shared,
    Extension(caller): Extension<Caller>,
    endpoint: Endpoint,
    body: &[u8],
) -> Response {
    let answered = answer_to(&api, &caller, endpoint, body).await;
    with_rates(&caller, answered)
}

/// The answer, and how the caller's rates stand after it.
fn with_rates(caller: &Caller, answered: Result<Response, Wrong>) -> Response {
    let mut response = answered.unwrap_or_else(IntoResponse::into_response);
    if let Caller::Key(key) = caller {
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

async fn answer_to(
    api: &Api,
    caller: &Caller,
    endpoint: Endpoint,
    body: &[u8],
) -> Result<Response, Wrong> {
    let place = enter(api, caller)?;
    let question = read(endpoint, &fields(body)?)?;
    let (streams, usage) = (question.streams, question.usage);
    let answer = ask(api, caller, question, body.to_vec()).await?;
    if streams {
        Ok(streamed(answer, Told::Chat { usage }, place))
    } else {
        let body = whole(answer).await?;
        Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
    }
}

/// The same in the form of responses: a chat is asked.
async fn respond_to(api: &Api, caller: &Caller, body: &[u8]) -> Result<Response, Wrong> {
    let place = enter(api, caller)?;
    let wanted = Wanted::read(&fields(body)?);
    let wanted = wanted.map_err(|unfit| Wrong::question(unfit.param, unfit.message))?;
    let Value::Object(chat) = &wanted.body else {
        return Err(Wrong::question("body", "the body is no JSON object"));
    };
    let question = read(Endpoint::CHAT_COMPLETIONS, chat)?;
    let streams = question.streams;
    let body = wanted.body.to_string().into_bytes();
    let answer = ask(api, caller, question, body).await?;
    if streams {
        let told = Told::Wanted(Box::new(wanted));
        return Ok(streamed(answer, told, place));
    }
    let answer: Value = serde_json::from_slice(&whole(answer).await?).unwrap_or_default();
    Ok(Json(responding(wanted, &answer).whole(&answer)).into_response())
}

/// A response under the name of the answer that it is made of.
fn responding(wanted: Wanted, answer: &Value) -> Responding {
    let name = answer["id"].as_str().unwrap_or_default();
    let name = name.trim_start_matches("chatcmpl-").to_owned();
    Responding::new(wanted, name, answer["created"].as_u64().unwrap_or(0))
}

fn enter(api: &Api, caller: &Caller) -> Result<OwnedSemaphorePermit, Wrong> {
    let place = api.gates.enter(Gate::Ask)?;
    // A wrong question counts: it has to be read, too.
    caller.admit().map_err(Wrong::too_fast)?;
    Ok(place)
}

fn fields(body: &[u8]) -> Result<Map<String, Value>, Wrong> {
    let value = serde_json::from_slice(body)
        .map_err(|error| Wrong::question("body", format!("the body is no JSON: {error}")))?;
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(Wrong::question("body", "the body is no JSON object")),
    }
}

async fn ask(
    api: &Api,
    caller: &Caller,
    question: Question,
    body: Vec<u8>,
) -> Result<Answer, Wrong> {
    if !caller.may_use(&question.model) {
        return Err(Wrong::no_model(&question.model));
    }
    let (principal, key) = caller.principal();
    let asked = Asked {
        asker: Asker {
            principal,
            model: question.model,
            key,
            conversation: question.conversation,
        },
        endpoint: question.endpoint,
        streams: question.streams,
        body,
    };
    Ok(api.gateway.ask(asked).await?)
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

fn read(endpoint: Endpoint, fields: &Map<String, Value>) -> Result<Question, Wrong> {
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
        endpoint,
        model: model_name(model).ok_or_else(|| Wrong::no_model(model))?,
        streams,
        usage: is_set(options.and_then(|options| options.get("include_usage"))),
        conversation: Conversation::of(fields),
    })
}

async fn whole(mut answer: Answer) -> Result<Vec<u8>, Wrong> {
    let mut body = Vec::new();
    loop {
        match answer.next().await {
            Some(Piece::Event(piece)) if body.len() + piece.len() <= ANSWER_BYTES_MAX => {
                body.extend_from_slice(&piece);
            }
            Some(Piece::Done) => return Ok(body),
            Some(Piece::Event(_) | Piece::Broken) | None => {
                return Err(Wrong::unavailable("the provider broke off; ask again", 1));
            }
        }
    }
}

/// An answer as a stream of events.
struct Events {
    answer: Answer,
    told: Told,
    over: bool,
    _place: OwnedSemaphorePermit,
}

/// How a stream is told.
enum Told {
    /// As it comes.
    Chat {
        /// Whether its last event is its usage.
        usage: bool,
    },
    /// As a response: the request, until the first event says the answer's name.
    Wanted(Box<Wanted>),
    /// As a response.
    Response(Box<Responding>),
}

fn streamed(answer: Answer, told: Told, place: OwnedSemaphorePermit) -> Response {
    let events = Events {
        answer,
        told,
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

const LOST: &str = "the provider was lost in the middle of the answer, and nobody can go on with \
                    it; ask again";

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        while !self.over {
            let told = match self.answer.next().await {
                Some(Piece::Event(event)) => self.told.event(&event),
                Some(Piece::Done) => {
                    self.over = true;
                    self.told.done()
                }
                Some(Piece::Broken) | None => {
                    self.over = true;
                    self.told.broken()
                }
            };
            if !told.is_empty() {
                return Some(told);
            }
        }
        None
    }
}

impl Told {
    /// What is told of an event; nothing of some.
    fn event(&mut self, event: &[u8]) -> Bytes {
        let chunk = |event| serde_json::from_slice(event).unwrap_or(Value::Null);
        match self {
            Self::Chat { usage } if *usage || !is_usage(event) => framed(event),
            Self::Chat { .. } => Bytes::new(),
            Self::Wanted(wanted) => {
                let chunk = chunk(event);
                let mut responding = responding(Wanted::clone(wanted), &chunk);
                let mut events = responding.begins();
                events.extend(responding.chunk(&chunk));
                *self = Self::Response(Box::new(responding));
                all_framed(&events)
            }
            Self::Response(responding) => all_framed(&responding.chunk(&chunk(event))),
        }
    }

    fn done(&mut self) -> Bytes {
        match self {
            Self::Chat { .. } => framed(b"[DONE]"),
            Self::Wanted(_) => self.broken(),
            Self::Response(responding) => all_framed(&responding.ends()),
        }
    }

    fn broken(&mut self) -> Bytes {
        let code = "provider_lost";
        if let Self::Response(responding) = self {
            return all_framed(&responding.breaks(code, LOST));
        }
        let wrong = Wrong {
            code: Some(code),
            ..Wrong::new(StatusCode::BAD_GATEWAY, "server_error", LOST)
        };
        framed(wrong.to_json().to_string().as_bytes())
    }
}

fn all_framed(events: &[responses::Event]) -> Bytes {
    let lines = events.iter().map(|event| {
        let responses::Event { kind, data } = event;
        format!("event: {kind}\ndata: {data}\n\n")
    });
    lines.collect::<String>().into()
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
