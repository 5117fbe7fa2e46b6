//! A model's server: where it is, and how it is asked.
//!
//! ```text
//! Base ── one address, from the operator ──▶ Upstream ── question ──▶ Answer ── events ──▶
//! ```
//!
//! A client's words reach the body of a request and nothing else: the host, the port and the
//! path come from the operator and from a registered number. What the server says of going
//! elsewhere is not followed. Every answer is bounded, and a connection serves one question,
//! so that dropping it is how a question is given up: servers of this kind stop then.
//!
//! Absent: TLS (a server beside the node needs none; put a proxy before one that does), and
//! any meaning of the JSON but for the model's name and the count of tokens.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, Uri,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use suanli_protocol::{limits::CALL_EVENT_BYTES_MAX, registry::Endpoint};
use tokio::{net::TcpStream, task::AbortHandle, time::timeout};

/// How long a connection may take.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How long a server may think before it says anything: long prompts on slow machines.
const THINK_WAIT: Duration = Duration::from_secs(600);
/// How long it may be silent in the middle of an answer.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// How long a question for its models may take.
const PROBE_WAIT: Duration = Duration::from_secs(5);
/// Bytes of an answer that comes as one: a batch of embeddings.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    host: String,
    port: u16,
    /// Before `/v1`, without a slash at its end.
    path: String,
}

impl Base {
    /// From `http://HOST:PORT`, with or without `/v1`.
    ///
    /// # Errors
    /// What is wrong, and what to write.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const SHAPE: &str = "an address of the form http://127.0.0.1:8000 is needed";
        let uri: Uri = text.parse().map_err(|_| SHAPE)?;
        if uri.scheme_str() == Some("https") {
            return Err("https is not spoken here; put a proxy on this machine before it");
        }
        let authority = uri.authority().ok_or(SHAPE)?;
        if uri.scheme_str() != Some("http")
            || uri.query().is_some()
            || authority.as_str().contains('@')
        {
            return Err(SHAPE);
        }
        let path = uri.path().trim_end_matches('/');
        let path = path.strip_suffix("/v1").unwrap_or(path);
        Ok(Self {
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(80),
            path: path.to_owned(),
        })
    }

    /// As a connection wants it: an IPv6 address has no brackets there.
    fn address(&self) -> (&str, u16) {
        let host = self.host.strip_prefix('[').unwrap_or(&self.host);
        (host.strip_suffix(']').unwrap_or(host), self.port)
    }
}

/// A server, and a model of it.
#[derive(Debug, Clone)]
pub struct Upstream {
    base: Arc<Base>,
    /// What the server calls the model,
    alias: Arc<str>,
    /// what clients call it,
    name: Arc<str>,
    /// and the server's key.
    key: Option<Arc<str>>,
}

/// Why a server did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// It can't be reached.
    #[error("the model's server can't be reached: {0}")]
    Unreachable(String),
    /// It broke off, or was silent.
    #[error("the model's server broke off: {0}")]
    Broken(&'static str),
    /// It refuses: its status, and its words.
    #[error("the model's server answers {0}")]
    Refused(u16, Vec<u8>),
    /// It wants us to go elsewhere, or says more than it may.
    #[error("the model's server gives an answer that is not taken: {0}")]
    NotTaken(&'static str),
    /// The question is no JSON object.
    #[error("the question is no JSON object")]
    NoQuestion,
}

/// Tokens, as a server counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tokens {
    /// Read.
    pub read: u64,
    /// Written.
    pub written: u64,
}

impl Upstream {
    /// A model of a server.
    pub fn new(base: Base, (alias, name): (&str, &str), key: Option<&str>) -> Self {
        Self {
            base: Arc::new(base),
            alias: alias.into(),
            name: name.into(),
            key: key.map(Into::into),
        }
    }

    /// Whether the server has the model now.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn probe(&self) -> Result<(), UpstreamError> {
        let asking = async {
            let (answer, _line) = self.send(Method::GET, "models", Bytes::new()).await?;
            let body = whole(&mut answer.into_body()).await?;
            let list: Value =
                serde_json::from_slice(&body).map_err(|_| UpstreamError::NotTaken("no JSON"))?;
            let models = list["data"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            let is_it = |model: &Value| model["id"].as_str() == Some(&*self.alias);
            match models.iter().any(is_it) {
                true => Ok(()),
                false => Err(UpstreamError::NotTaken("the model is not in its list")),
            }
        };
        timeout(PROBE_WAIT, asking)
            .await
            .unwrap_or(Err(UpstreamError::Broken("it is silent")))
    }

    /// Asks. The answer comes event by event if the question streams.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn ask(
        &self,
        endpoint: Endpoint,
        streams: bool,
        question: &[u8],
    ) -> Result<Answer, UpstreamError> {
        let question: Value =
            serde_json::from_slice(question).map_err(|_| UpstreamError::NoQuestion)?;
        let Value::Object(mut question) = question else {
            return Err(UpstreamError::NoQuestion);
        };
        question.insert("model".to_owned(), Value::from(&*self.alias));
        question.insert("stream".to_owned(), Value::from(streams));
        if streams {
            let options = serde_json::json!({ "include_usage": true });
            question.insert("stream_options".to_owned(), options);
        } else {
            question.remove("stream_options");
        }
        let path = match endpoint {
            Endpoint::CHAT_COMPLETIONS => "chat/completions",
            Endpoint::COMPLETIONS => "completions",
            Endpoint::EMBEDDINGS => "embeddings",
            _ => return Err(UpstreamError::NotTaken("no such endpoint")),
        };
        let body = Bytes::from(Value::Object(question).to_string());
        let (answer, line) = self.send(Method::POST, path, body).await?;
        Ok(Answer {
            body: answer.into_body(),
            _line: line,
            buffer: Vec::new(),
            searched: 0,
            over: false,
            tokens: Tokens::default(),
            renames: (self.alias != self.name).then(|| Arc::clone(&self.name)),
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, Line), UpstreamError> {
        let (mut sender, line) = self.connect().await?;
        let uri = format!("{}/v1/{path}", self.base.path);
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(
                header::HOST,
                format!("{}:{}", self.base.host, self.base.port),
            )
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request
            .body(Full::new(body))
            .map_err(|_| UpstreamError::NotTaken("no such path"))?;
        let answer = timeout(THINK_WAIT, sender.send_request(request))
            .await
            .map_err(|_| UpstreamError::Broken("it is silent"))?
            .map_err(|_| UpstreamError::Broken("the connection ended"))?;
        let status = answer.status();
        if status.is_redirection() {
            return Err(UpstreamError::NotTaken("it wants to be asked elsewhere"));
        }
        if !status.is_success() {
            let mut words = whole(&mut answer.into_body()).await.unwrap_or_default();
            words.truncate(CALL_EVENT_BYTES_MAX);
            return Err(UpstreamError::Refused(status.as_u16(), words));
        }
        Ok((answer, line))
    }

    async fn connect(&self) -> Result<(SendRequest<Full<Bytes>>, Line), UpstreamError> {
        let unreachable =
            |error: &dyn std::fmt::Display| UpstreamError::Unreachable(error.to_string());
        let stream = timeout(CONNECT_WAIT, TcpStream::connect(self.base.address()))
            .await
            .map_err(|late| unreachable(&late))?
            .map_err(|error| unreachable(&error))?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(&error))?;
        let task = tokio::spawn(async move { drop(connection.await) });
        Ok((sender, Line(task.abort_handle())))
    }
}

/// A connection, which ends with this.
#[derive(Debug)]
struct Line(AbortHandle);

impl Drop for Line {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// All of a body, if it is not too long.
async fn whole(body: &mut Incoming) -> Result<Vec<u8>, UpstreamError> {
    let mut bytes = Vec::new();
    while let Some(piece) = next_piece(body).await? {
        if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(UpstreamError::NotTaken("it is too long"));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

async fn next_piece(body: &mut Incoming) -> Result<Option<Bytes>, UpstreamError> {
    loop {
        let frame = timeout(SILENCE_MAX, body.frame())
            .await
            .map_err(|_| UpstreamError::Broken("it is silent"))?;
        match frame {
            None => return Ok(None),
            Some(Err(_)) => return Err(UpstreamError::Broken("the connection ended")),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// An answer on its way. Dropping it gives the question up.
#[derive(Debug)]
pub struct Answer {
    body: Incoming,
    _line: Line,
    /// What has come of events that are not whole.
    buffer: Vec<u8>,
    /// Up to where the buffer has no end of an event.
    searched: usize,
    over: bool,
    tokens: Tokens,
    renames: Option<Arc<str>>,
}

impl Answer {
    /// Tokens so far: as the server says, and until then one for each event.
    pub const fn tokens(&self) -> Tokens {
        self.tokens
    }

    /// The next event of an answer that streams; none at its end.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn next_event(&mut self) -> Result<Option<Vec<u8>>, UpstreamError> {
        loop {
            if self.over {
                return Ok(None);
            }
            while let Some(event) = self.take_event() {
                let data = data_of(&event);
                if data.is_empty() {
                    continue;
                }
                if data == b"[DONE]" {
                    self.over = true;
                    return Ok(None);
                }
                return Ok(Some(self.note(data)));
            }
            match next_piece(&mut self.body).await? {
                // Who stops without a last word has broken off.
                None => return Err(UpstreamError::Broken("the answer has no end")),
                Some(piece) => self.buffer.extend_from_slice(&piece),
            }
            if self.buffer.len() > CALL_EVENT_BYTES_MAX {
                return Err(UpstreamError::NotTaken("an event is too long"));
            }
        }
    }

    /// All of an answer that comes as one.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn whole(&mut self) -> Result<(Vec<u8>, Tokens), UpstreamError> {
        let bytes = whole(&mut self.body).await?;
        let bytes = self.note(bytes);
        Ok((bytes, self.tokens))
    }

    /// The bytes up to the next empty line.
    fn take_event(&mut self) -> Option<Vec<u8>> {
        let (end, next) = end_of_event(&self.buffer, self.searched).or_else(|| {
            // An end may begin in what is there.
            self.searched = self.buffer.len().saturating_sub(3);
            None
        })?;
        let rest = self.buffer.split_off(next);
        let mut event = std::mem::replace(&mut self.buffer, rest);
        event.truncate(end);
        self.searched = 0;
        Some(event)
    }

    /// Counts, and gives the model the name that clients know.
    fn note(&mut self, data: Vec<u8>) -> Vec<u8> {
        let Ok(mut value) = serde_json::from_slice::<Value>(&data) else {
            return data;
        };
        let usage = &value["usage"];
        let count = |key: &str| usage[key].as_u64();
        match count("prompt_tokens") {
            Some(read) => {
                self.tokens = Tokens {
                    read,
                    written: count("completion_tokens").unwrap_or(0),
                };
            }
            None => self.tokens.written += u64::from(has_text(&value)),
        }
        match &self.renames {
            Some(name) if value.get("model").is_some() => {
                value["model"] = Value::from(&**name);
                value.to_string().into_bytes()
            }
            Some(_) | None => data,
        }
    }
}

/// Whether an event brings a piece of the answer.
fn has_text(event: &Value) -> bool {
    let choice = &event["choices"][0];
    let pieces = [
        &choice["delta"]["content"],
        &choice["delta"]["reasoning_content"],
        &choice["text"],
    ];
    let has = |piece: &&Value| piece.as_str().is_some_and(|text| !text.is_empty());
    pieces.iter().any(has) || choice["delta"]["tool_calls"].is_array()
}

/// Where the first event ends, and where the next begins.
fn end_of_event(bytes: &[u8], from: usize) -> Option<(usize, usize)> {
    for at in from..bytes.len() {
        let rest = &bytes[at..];
        for end in [&b"\n\n"[..], b"\r\n\r\n", b"\r\r"] {
            if rest.starts_with(end) {
                return Some((at, at + end.len()));
            }
        }
    }
    None
}

/// What an event's `data` lines say.
fn data_of(event: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    for line in event.split(|byte| matches!(byte, b'\n' | b'\r')) {
        let Some(rest) = line.strip_prefix(b"data:") else {
            continue;
        };
        if !data.is_empty() {
            data.push(b'\n');
        }
        data.extend_from_slice(rest.strip_prefix(b" ").unwrap_or(rest));
    }
    data
}

/// The address of a server, for messages.
impl std::fmt::Display for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address() {
            (host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            (host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl From<SocketAddr> for Base {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
            path: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port_and_nothing_else() {
        let base = Base::parse("http://127.0.0.1:8000/v1/").unwrap();
        assert_eq!(base.address(), ("127.0.0.1", 8000));
        assert_eq!(base.path, "");
        let base = Base::parse("http://[::1]:1/vllm").unwrap();
        assert_eq!(base.address(), ("::1", 1));
        assert_eq!(base.path, "/vllm");
        for wrong in [
            "127.0.0.1:8000",
            "https://127.0.0.1",
            "http://user@127.0.0.1",
            "http://127.0.0.1/?x",
            "ftp://127.0.0.1",
            "/v1",
            "",
        ] {
            assert!(Base::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn events_are_cut_at_empty_lines_of_any_kind() {
        for (text, expected) in [
            (&b"data: a\n\nrest"[..], Some((7, 9))),
            (b"data: a\r\n\r\nrest", Some((7, 11))),
            (b"data: a\r\rrest", Some((7, 9))),
            (b"data: a\n", None),
        ] {
            assert_eq!(end_of_event(text, 0), expected);
        }
        assert_eq!(data_of(b": note\nevent: x\ndata: a\ndata:b"), b"a\nb");
        assert_eq!(data_of(b": note"), b"");
    }
}
