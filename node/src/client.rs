//! The command line's side of the HTTP API.
//!
//! A [`Client`] finds the daemon by its data directory (address and token are
//! files there) and opens one connection for each question: a person's
//! commands are few. Answers are bounded; bytes and event lines stream.
//! Absent: retries. A person sees what went wrong, and what to do.

use std::{
    convert::Infallible,
    io::{Read as _, Seek as _, SeekFrom},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use suanli_executor::file::InputFile;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::mpsc, time::timeout};

use crate::{
    api::types::{ApiError, BlobInfo},
    data_dir::{DataDir, DataDirError},
};

/// Asks a running daemon.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
    token: String,
    data_dir: PathBuf,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon runs on the data directory.
    #[error(
        "no daemon runs on {}: start one with `suanli node`, or name its folder with --data-dir DIR",
        .0.display()
    )]
    NoDaemon(PathBuf),
    /// There was one, and it doesn't answer.
    #[error(
        "the daemon of {} does not answer at {address} ({source}): start it with `suanli node`; \
         if it runs, look at its log",
        data_dir.display()
    )]
    Unreachable {
        /// The data directory.
        data_dir: PathBuf,
        /// Where it should be.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of the data directory can't be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The daemon says no.
    #[error("{}", .0.error)]
    Api(ApiError),
    /// It is there, and says nothing.
    #[error(
        "the daemon at {address} has not answered for {} s: it hangs, or is stopped; look at its log",
        ANSWER_WAIT.as_secs()
    )]
    Silent {
        /// Where it is.
        address: SocketAddr,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke: {0}; `suanli doctor` says whether it still runs")]
    Broken(String),
    /// An answer that this version can't read.
    #[error("the daemon's answer can't be read ({0}): are daemon and command of one version?")]
    Unreadable(String),
    /// A file of ours can't be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How long an answer may take to begin. It comes at once, but for what waits
/// for the disk.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// Bytes of an answer that is read as a whole.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Bytes of one line of events.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Bytes of a file that are read at once, and how many such pieces wait.
const PIECE_BYTES: usize = 256 << 10;
const PIECES_MAX: usize = 4;

impl Client {
    /// The daemon of a data directory.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`] if none left its address there.
    pub fn find(dir: &DataDir) -> Result<Self, ClientError> {
        let none = || ClientError::NoDaemon(dir.root().to_owned());
        let address = dir.read_api_address()?.ok_or_else(none)?.address;
        Ok(Self {
            address,
            token: dir.read_token()?.ok_or_else(none)?,
            data_dir: dir.root().to_owned(),
        })
    }

    /// `GET`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(Method::GET, path, empty()).await?;
        read_json(response).await
    }

    /// `POST` without a body.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(Method::POST, path, empty()).await?;
        read_json(response).await
    }

    /// `POST` of JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let response = self.send(Method::POST, path, json(body)?).await?;
        read_json(response).await
    }

    /// Gives the node bytes to keep.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn upload(&self, bytes: Vec<u8>) -> Result<BlobInfo, ClientError> {
        let body = Full::new(Bytes::from(bytes)).boxed_unsync();
        let response = self.send(Method::POST, "/v1/blobs", body).await?;
        read_json(response).await
    }

    /// Gives the node a range of a file, without reading it as a whole.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn upload_file(&self, input: &InputFile) -> Result<BlobInfo, ClientError> {
        let (pieces, reader) = pieces_of(input.clone());
        let body = futures::stream::unfold(pieces, |mut pieces| async {
            let piece: Bytes = pieces.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(piece)), pieces))
        });
        let body = StreamBody::new(body).boxed_unsync();
        let response = self.send(Method::POST, "/v1/blobs", body).await;
        // A file that could not be read cuts the body short: that is the reason to tell.
        let read = reader.await;
        read.map_err(|error| ClientError::Broken(error.to_string()))??;
        read_json(response?).await
    }

    /// Bytes as a whole.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn bytes(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        read_all(self.send(Method::GET, path, empty()).await?).await
    }

    /// Bytes into a file, which is replaced once all are there.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn download(&self, path: &str, file: &Path) -> Result<u64, ClientError> {
        let failed = |source| ClientError::File {
            path: file.to_owned(),
            source,
        };
        let mut body = self.send(Method::GET, path, empty()).await?.into_body();
        let mut beside = file.as_os_str().to_owned();
        beside.push(".part");
        let mut out = tokio::fs::File::create(&beside).await.map_err(failed)?;
        let mut written = 0;
        while let Some(piece) = next_piece(&mut body).await? {
            written += u64::try_from(piece.len()).unwrap_or(0);
            out.write_all(&piece).await.map_err(failed)?;
        }
        out.flush().await.map_err(failed)?;
        tokio::fs::rename(&beside, file).await.map_err(failed)?;
        Ok(written)
    }

    /// An answer of one JSON object a line, as it comes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        let response = self.send(Method::GET, path, empty()).await?;
        Ok(Lines {
            body: response.into_body(),
            waiting: Vec::new(),
        })
    }

    /// A response whose status is 2xx.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = TcpStream::connect(self.address).await;
        let stream = stream.map_err(|source| ClientError::Unreachable {
            data_dir: self.data_dir.clone(),
            address: self.address,
            source,
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Ends with the response's body; its error is seen there.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, content_type(path))
            .body(body)
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        let answer = sender.send_request(request);
        // Bytes that are handed in take their time; whatever else is asked does not.
        let response = if path == "/v1/blobs" {
            answer.await
        } else {
            let silent = ClientError::Silent {
                address: self.address,
            };
            timeout(ANSWER_WAIT, answer).await.map_err(|_| silent)?
        };
        let response = response.map_err(broken)?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response).await)
    }
}

/// Lines of an answer that goes on.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    waiting: Vec<u8>,
}

impl Lines {
    /// The next one; none at the end.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.waiting.iter().position(|byte| *byte == b'\n') {
                let line = self.waiting.drain(..=end).collect::<Vec<_>>();
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line).map(Some).map_err(unreadable);
            }
            if self.waiting.len() > LINE_BYTES_MAX {
                return Err(ClientError::Unreadable("a line without end".into()));
            }
            match next_piece(&mut self.body).await? {
                Some(piece) => self.waiting.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}

fn empty() -> Body {
    Full::new(Bytes::new()).boxed_unsync()
}

fn json<T: Serialize>(value: &T) -> Result<Body, ClientError> {
    let bytes = serde_json::to_vec(value).map_err(unreadable)?;
    Ok(Full::new(Bytes::from(bytes)).boxed_unsync())
}

fn content_type(path: &str) -> &'static str {
    if path == "/v1/blobs" {
        "application/octet-stream"
    } else {
        "application/json"
    }
}

/// A folder for what comes, made if it is missing.
pub(crate) fn make_folder(path: &Path) -> Result<(), ClientError> {
    std::fs::create_dir_all(path).map_err(|source| ClientError::File {
        path: path.to_owned(),
        source,
    })
}

/// Reads a file on a thread of its own; the queue is bounded, so that memory is.
fn pieces_of(
    input: InputFile,
) -> (
    mpsc::Receiver<Bytes>,
    tokio::task::JoinHandle<Result<(), ClientError>>,
) {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let reader = tokio::task::spawn_blocking(move || {
        let send = |piece: Vec<u8>| sender.blocking_send(Bytes::from(piece)).is_ok();
        read_pieces(&input, send).map_err(|source| ClientError::File {
            path: input.path.clone(),
            source,
        })
    });
    (receiver, reader)
}

/// Feeds a range of a file, until all is read or nobody listens any more.
pub(crate) fn read_pieces(
    input: &InputFile,
    mut feed: impl FnMut(Vec<u8>) -> bool,
) -> std::io::Result<()> {
    if let Some(made) = &input.made {
        let mut pieces = made.chunks(PIECE_BYTES);
        // Nobody who stops listening is owed the rest.
        let _ = pieces.all(|piece| feed(piece.to_vec()));
        return Ok(());
    }
    let mut file = std::fs::File::open(&input.path)?;
    file.seek(SeekFrom::Start(input.offset))?;
    let mut left = input.length;
    while left > 0 {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let mut piece = vec![0; size];
        file.read_exact(&mut piece)?;
        left -= u64::try_from(size).unwrap_or(left);
        if !feed(piece) {
            break;
        }
    }
    Ok(())
}

async fn next_piece(body: &mut Incoming) -> Result<Option<Bytes>, ClientError> {
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame.map_err(broken)?.into_data() {
            return Ok(Some(piece));
        }
    }
    Ok(None)
}

async fn read_all(response: Response<Incoming>) -> Result<Vec<u8>, ClientError> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(piece) = next_piece(&mut body).await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(ClientError::Unreadable("too long".into()));
        }
    }
    Ok(bytes)
}

async fn read_json<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ClientError> {
    serde_json::from_slice(&read_all(response).await?).map_err(unreadable)
}

async fn refusal(response: Response<Incoming>) -> ClientError {
    let status = response.status();
    let bytes = match read_all(response).await {
        Ok(bytes) => bytes,
        Err(error) => return error,
    };
    match serde_json::from_slice(&bytes) {
        Ok(error) => ClientError::Api(error),
        Err(_) if status == StatusCode::UNAUTHORIZED => ClientError::Api(ApiError {
            error: "the daemon does not accept the token; restart it, or use its own --data-dir"
                .to_owned(),
            exit_code: 3,
        }),
        Err(_) => ClientError::Unreadable(format!("status {status}")),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: hyper::Error) -> ClientError {
    ClientError::Broken(error.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unreadable(error: serde_json::Error) -> ClientError {
    ClientError::Unreadable(error.to_string())
}
