//! Calls: streams of one question and its answer, for leases.
//!
//! ```text
//! caller  ──Call──▶ engine ──opens a stream──▶ CallStream
//! callee            engine ──Called──▶ driver: CallStream
//! ```
//!
//! A call has whole frames in both directions, each with its length before it, and either
//! side may end its half. What is in them is not the transport's business. Waiting for an
//! answer has no limit here: a model may think for minutes, and who waits decides how long.
//!
//! Absent: retrying, and more than one question on a stream.

use std::{io, sync::Arc, time::Duration};

use futures::{
    AsyncReadExt as _, AsyncWriteExt as _,
    io::{ReadHalf, WriteHalf},
};
use libp2p::{PeerId, Stream, swarm::ConnectionId};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::timeout,
};

use super::{PeerKey, SendFailure};

/// Bytes of a frame's length.
const LENGTH_BYTES: usize = 4;
/// Bytes that are read at once.
const PIECE_BYTES: usize = 4096;

/// The engine's number for a call that it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct CallId(pub(super) u64);

/// One for each half of a call that runs on a connection: it is not closed while there are any.
pub(super) type OnConnection = Arc<()>;

/// A call that waits for its stream.
#[derive(Debug)]
pub(super) struct Calling {
    pub(super) to: PeerKey,
    /// The connection on which its stream is being opened.
    pub(super) on: Option<ConnectionId>,
    pub(super) reply: oneshot::Sender<Result<CallStream, SendFailure>>,
}

impl Calling {
    /// Whether it can come to nothing more once this connection with the peer is gone.
    pub(super) fn is_lost(&self, peer: PeerId, connection: ConnectionId, is_last: bool) -> bool {
        match self.on {
            Some(on) => on == connection,
            None => is_last && self.to.peer_id() == peer,
        }
    }
}

/// An open call. It ends when it is dropped.
pub struct CallStream {
    reader: CallReader,
    writer: CallWriter,
}

/// What comes.
pub struct CallReader {
    stream: ReadHalf<Stream>,
    /// Of the frame that is coming: its length, and what follows.
    came: Vec<u8>,
    _on: OnConnection,
}

/// What goes.
pub struct CallWriter {
    stream: WriteHalf<Stream>,
    /// Time in which a frame must have left.
    stall: Duration,
    /// Its places among the calls that the peer, and all peers, may have.
    _place: Option<[OwnedSemaphorePermit; 2]>,
    _on: OnConnection,
}

impl std::fmt::Debug for CallStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallStream").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for CallReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallReader").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for CallWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallWriter").finish_non_exhaustive()
    }
}

impl CallStream {
    pub(super) fn new(
        stream: Stream,
        on: OnConnection,
        stall: Duration,
        place: Option<[OwnedSemaphorePermit; 2]>,
    ) -> Self {
        let (reader, writer) = stream.split();
        Self {
            reader: CallReader {
                stream: reader,
                came: Vec::new(),
                _on: Arc::clone(&on),
            },
            writer: CallWriter {
                stream: writer,
                stall,
                _place: place,
                _on: on,
            },
        }
    }

    /// Its two directions.
    #[must_use]
    pub fn split(self) -> (CallReader, CallWriter) {
        (self.reader, self.writer)
    }
}

impl CallReader {
    /// The next frame, or `None` where the peer has ended its half. Nothing is lost where
    /// this is dropped before it is ready.
    ///
    /// # Errors
    /// The connection broke, or the frame is longer than `bytes_max`.
    pub async fn receive(&mut self, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        loop {
            let wanted = match self.came.first_chunk::<LENGTH_BYTES>() {
                None => LENGTH_BYTES,
                Some(length) => {
                    let length = u32::from_le_bytes(*length);
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    if length > bytes_max {
                        let what = "a frame that is longer than it may be";
                        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                    }
                    LENGTH_BYTES + length
                }
            };
            if self.came.len() == wanted && self.came.len() >= LENGTH_BYTES {
                let frame = self.came.split_off(LENGTH_BYTES);
                self.came.clear();
                return Ok(Some(frame));
            }
            // Only as much as has come is held: a length alone costs nothing.
            let mut piece = [0; PIECE_BYTES];
            let room = (wanted - self.came.len()).min(PIECE_BYTES);
            match self.stream.read(&mut piece[..room]).await? {
                0 if self.came.is_empty() => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => self.came.extend_from_slice(&piece[..more]),
            }
        }
    }
}

impl CallWriter {
    /// Sends a frame.
    ///
    /// # Errors
    /// The connection broke, or the peer takes nothing.
    pub async fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        let sending = async {
            self.stream.write_all(&length.to_le_bytes()).await?;
            self.stream.write_all(frame).await?;
            self.stream.flush().await
        };
        timeout(self.stall, sending)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Ends this half.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn close(&mut self) -> io::Result<()> {
        timeout(self.stall, self.stream.close())
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}
