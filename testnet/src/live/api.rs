//! Asks a live node over its HTTP API, blocking, one connection a question.
//!
//! The wire format is HTTP/1.0, in which an answer ends when the connection
//! does; no client library is as small as the forty lines that this takes. The
//! types are the node's own (`suanli_node::api::types`).

use std::{
    fs, io,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use suanli_node::api::types::ApiError;

/// A node that says nothing for so long hangs, or is paused.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Outputs of a job are the largest answers.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

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

    /// Reads something: `get::<Status>("/v1/status")`.
    ///
    /// # Errors
    /// [`ApiFailure`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiFailure> {
        parse(&self.exchange("GET", path, &[])?)
    }

    /// Reads bytes: a bundle, an output.
    ///
    /// # Errors
    /// [`ApiFailure`].
    pub fn bytes(&self, path: &str) -> Result<Vec<u8>, ApiFailure> {
        self.exchange("GET", path, &[])
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
        let body =
            serde_json::to_vec(body).map_err(|error| ApiFailure::Unexpected(error.to_string()))?;
        parse(&self.exchange("POST", path, &body)?)
    }

    /// Sends bytes, such as a blob, and reads the answer.
    ///
    /// # Errors
    /// [`ApiFailure`].
    pub fn upload<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T, ApiFailure> {
        parse(&self.exchange("POST", path, bytes)?)
    }

    fn exchange(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, ApiFailure> {
        let mut stream = TcpStream::connect_timeout(&self.address, SILENCE_MAX)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        let kind = match body.first() {
            Some(b'{') => "application/json",
            Some(_) | None => "application/octet-stream",
        };
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            self.token,
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        read_answer(&answer)
    }
}

/// The body of a success, or the words of a refusal.
fn read_answer(answer: &[u8]) -> Result<Vec<u8>, ApiFailure> {
    let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "the answer is cut short");
    let blank = b"\r\n\r\n";
    let end = answer
        .windows(blank.len())
        .position(|window| window == blank)
        .ok_or_else(cut)?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let body = &answer[end + blank.len()..];
    let said = header(&head, "content-length").and_then(|text| text.parse::<usize>().ok());
    if said.is_some_and(|said| said != body.len()) {
        return Err(cut().into());
    }
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status.starts_with('2') {
        return Ok(body.to_vec());
    }
    Err(match serde_json::from_slice(body) {
        Ok(refusal) => ApiFailure::Refused(refusal),
        Err(_) => ApiFailure::Unexpected(format!("status {status}")),
    })
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
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
    fn answers_are_read_to_their_stated_length() {
        let whole = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(read_answer(whole).unwrap(), b"hi");
        let cut = b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nhi";
        assert!(matches!(read_answer(cut), Err(ApiFailure::Unreachable(_))));
        let headless = b"HTTP/1.0 200 OK\r\n";
        assert!(matches!(
            read_answer(headless),
            Err(ApiFailure::Unreachable(_))
        ));
    }

    #[test]
    fn a_refusal_keeps_the_nodes_sentence() {
        let refusal = b"HTTP/1.0 404 Not Found\r\n\r\n{\"error\":\"no job\",\"exit_code\":2}";
        assert_eq!(read_answer(refusal).unwrap_err().to_string(), "no job");
    }
}
