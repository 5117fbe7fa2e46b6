//! Asks a live node over its HTTP API, blocking.
//!
//! An [`Api`] opens a connection for each question; a [`Session`] is one that
//! stays open. The types are the node's own (`suanli_node::api::types`).

use std::{fs, io, net::SocketAddr, path::Path, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use suanli_node::api::types::ApiError;
use tokio::{net::TcpStream, runtime::Runtime, time::timeout};

/// A node that says nothing for so long hangs, or is paused.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Outputs of a job are the largest answers.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Where a node's API is, and the word that opens it.
#[derive(Clone)]
pub struct Api {
    address: SocketAddr,
    token: String,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Api({})", self.address)
    }
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiFailure {
    /// The node does not say where its API is; it has not got that far, or is no more.
    #[error("the node says no API address ({0})")]
    NoAddress(String),
    /// It can't be reached, or went away.
    #[error("the API does not answer: {0}")]
    Unreachable(#[from] io::Error),
    /// It refused; the sentence is its own.
    #[error("{}", .0.error)]
    Refused(ApiError),
    /// It said something else than expected.
    #[error("the API's answer is not understood: {0}")]
    Unexpected(String),
}

impl Api {
    /// The API of the process `pid`, by what it wrote into its data directory.
    /// A file that an earlier process left is not taken for its word.
    pub(super) fn of(data_dir: &Path, pid: u32) -> Result<Self, ApiFailure> {
        #[derive(serde::Deserialize)]
        struct Address {
            address: SocketAddr,
            pid: u32,
        }
        let missing = |error: &dyn std::fmt::Display| ApiFailure::NoAddress(error.to_string());
        let text = fs::read(data_dir.join("api.json")).map_err(|error| missing(&error))?;
        let said: Address = serde_json::from_slice(&text).map_err(|error| missing(&error))?;
        if said.pid != pid {
            return Err(missing(&"api.json is of an earlier process"));
        }
        let token =
            fs::read_to_string(data_dir.join("api.token")).map_err(|error| missing(&error))?;
        Ok(Self {
            address: said.address,
            token: token.trim().to_owned(),
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// A connection for many questions.
    ///
    /// # Errors
    /// [`ApiFailure::Unreachable`].
    pub fn session(&self) -> Result<Session, ApiFailure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let connected = runtime.block_on(async {
            let stream = timeout(SILENCE_MAX, TcpStream::connect(self.address)).await??;
            stream.set_nodelay(true)?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
            // How it ends shows in the answers.
            tokio::spawn(async move { drop(connection.await) });
            Ok::<_, io::Error>(sender)
        });
        Ok(Session {
            sender: connected?,
            runtime,
            api: self.clone(),
        })
    }

    /// Reads something: `get::<Status>("/v1/status")`.
    ///
    /// # Errors
    /// [`ApiFailure`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiFailure> {
        parse(&self.session()?.ask("GET", path, Vec::new())?)
    }

    /// Reads bytes: a bundle, an output.
    ///
    /// # Errors
    /// [`ApiFailure`].
    pub fn bytes(&self, path: &str) -> Result<Vec<u8>, ApiFailure> {
        self.session()?.bytes(path)
    }

    /// Sends a JSON body and reads the answer.
    ///
    /// # Errors
    /// [`ApiFailure`].
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiFailure> {
        self.session()?.post(path, body)
    }

    /// Sends bytes, such as a blob, and reads the answer.
    ///
    /// # Errors
    /// [`ApiFailure`].
    pub fn upload<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T, ApiFailure> {
        parse(&self.session()?.ask("POST", path, bytes.to_vec())?)
    }
}

/// A connection that stays open between questions.
#[derive(Debug)]
pub struct Session {
    sender: SendRequest<Full<Bytes>>,
    runtime: Runtime,
    api: Api,
}

impl Session {
    /// Reads bytes: a bundle, an output, the events of a job to their end.
    ///
    /// # Errors
    /// [`ApiFailure`].
    pub fn bytes(&mut self, path: &str) -> Result<Vec<u8>, ApiFailure> {
        self.ask("GET", path, Vec::new())
    }

    /// Sends a JSON body and reads the answer.
    ///
    /// # Errors
    /// [`ApiFailure`].
    pub fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiFailure> {
        let body =
            serde_json::to_vec(body).map_err(|error| ApiFailure::Unexpected(error.to_string()))?;
        parse(&self.ask("POST", path, body)?)
    }

    fn ask(&mut self, method: &str, path: &str, body: Vec<u8>) -> Result<Vec<u8>, ApiFailure> {
        let kind = match body.first() {
            Some(b'{') => "application/json",
            Some(_) | None => "application/octet-stream",
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.api.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.api.token))
            .header(header::CONTENT_TYPE, kind)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ApiFailure::Unexpected(error.to_string()))?;
        let sender = &mut self.sender;
        let answer = self.runtime.block_on(async {
            let answered = async {
                sender.ready().await?;
                sender.send_request(request).await
            };
            let answer = timeout(SILENCE_MAX, answered)
                .await?
                .map_err(io::Error::other)?;
            let status = answer.status();
            let mut pieces = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
            let mut body = Vec::new();
            while let Some(piece) = timeout(SILENCE_MAX, pieces.frame()).await? {
                let piece = piece.map_err(io::Error::other)?;
                body.extend_from_slice(piece.data_ref().map_or(&[], |data| data));
            }
            Ok::<_, io::Error>((status, body))
        });
        let (status, body) = answer?;
        read_answer(status, body)
    }
}

/// The body of a success, or the words of a refusal.
fn read_answer(status: StatusCode, body: Vec<u8>) -> Result<Vec<u8>, ApiFailure> {
    if status.is_success() {
        return Ok(body);
    }
    Err(match serde_json::from_slice(&body) {
        Ok(refusal) => ApiFailure::Refused(refusal),
        Err(_) => ApiFailure::Unexpected(format!("status {status}")),
    })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiFailure> {
    serde_json::from_slice(body).map_err(|error| {
        let body: String = String::from_utf8_lossy(body).chars().take(200).collect();
        ApiFailure::Unexpected(format!("{error} in {body}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_the_nodes_sentence() {
        let refusal = b"{\"error\":\"no job\",\"exit_code\":2}";
        let refused = read_answer(StatusCode::NOT_FOUND, refusal.to_vec()).unwrap_err();
        assert_eq!(refused.to_string(), "no job");
    }
}
