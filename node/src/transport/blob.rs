//! Blobs: one stream per transfer, verified group by group against the BLAKE3 hash that names it.
//!
//! The stream carries bao's interleaved tree (<https://github.com/oconnor663/bao>, by the
//! `bao-tree` crate) with groups of 16 KiB: hash pairs in pre-order, each checked against its
//! parent, then the data under them. So a wrong group is noticed at that group, nothing
//! unverified is ever written to the file, and the file's length says where to go on later.
//!
//! ```text
//! client → server   hash (32)  under (32)  from offset (u64)
//! server → client   1 size (u64), then the tree from that offset   or nine zeros: refused
//! ```
//! Integers are little-endian. A refusal is the same nine bytes, sent at the same beat of the
//! clock, whether the blob is missing or may not be read. A server at its limit closes the stream
//! without an answer, before it looks at the hash.
//!
//! File reads, writes and hashing run on blocking threads; a pair of small queues joins them to
//! the stream's task. A chunk of [`PIECE_BYTES`] must move within the stall limit, so that a
//! peer that dawdles does not keep a place.

use std::{io, path::PathBuf, time::Duration};

use bao_tree::{BlockSize, io::outboard::PreOrderMemOutboard};
use futures::AsyncReadExt;
use libp2p::Stream;
use tokio::time::timeout;

pub(super) mod cache;
pub(super) mod fetch;
pub(super) mod serve;

/// 2⁴ chunks of 1 KiB.
const GROUP: BlockSize = BlockSize::from_chunk_log(4);
const GROUP_BYTES: u64 = 16 << 10;
const CHUNK_BYTES: u64 = 1 << 10;
/// What moves between a file's thread and the stream's task at once.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces between the two: one being filled, one being emptied.
const PIECES: usize = 2;
const REQUEST_BYTES: usize = 72;
const ANSWER_BYTES: usize = 9;
const REFUSAL: [u8; ANSWER_BYTES] = [0; ANSWER_BYTES];

/// A blob's hash tree, without the data.
pub(super) type Outboard = PreOrderMemOutboard;

/// A blob that the driver lets a peer read.
#[derive(Debug, Clone)]
pub struct ServeBlob {
    /// The file with exactly the blob's bytes.
    pub path: PathBuf,
    /// Its size.
    pub size: u64,
}

/// What is known of a blob's size before it is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobSize {
    /// As stated under a signature.
    Exactly(u64),
    /// No more than this.
    AtMost(u64),
}

impl BlobSize {
    const fn allows(self, bytes: u64) -> bool {
        match self {
            Self::Exactly(size) => bytes == size,
            Self::AtMost(max) => bytes <= max,
        }
    }
}

/// Why a fetch ended without the blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobFailure {
    /// The peer does not have it, or we may not read it: it doesn't say which.
    #[error("the peer refuses the blob")]
    Refused,
    /// The peer closed the stream without an answer: it is at its limit. Try later.
    #[error("the peer serves too many blobs at the moment")]
    Busy,
    /// The peer can't be reached.
    #[error("the peer cannot be reached: {0}")]
    Unreachable(super::SendFailure),
    /// The peer's blob has another size than agreed, or a larger one than allowed.
    #[error("the blob has {bytes} bytes, which is not what was agreed")]
    WrongSize {
        /// The size that the peer stated.
        bytes: u64,
    },
    /// A group did not match its hash; what is before it is kept.
    #[error("wrong data at byte {offset}")]
    Corrupt {
        /// Where the group, or the part of the tree, begins.
        offset: u64,
    },
    /// The file that was to be continued was not a beginning of this blob; it is emptied.
    #[error("the partial file was damaged; fetch it again from the beginning")]
    StalePartial,
    /// Nothing came for too long.
    #[error("the transfer stalled")]
    Stalled,
    /// The connection broke; what came so far is kept.
    #[error("the connection was lost")]
    Lost,
    /// The file could not be written.
    #[error("cannot write the blob: {0}; free space or check the folder's permissions")]
    Disk(String),
    /// This node fetches as many blobs as it may.
    #[error("too many fetches at once")]
    TooMany,
    /// The driver ended it.
    #[error("cancelled")]
    Cancelled,
}

impl BlobFailure {
    fn disk(error: &io::Error) -> Self {
        Self::Disk(error.to_string())
    }
}

/// What the client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    hash: [u8; 32],
    under: [u8; 32],
    from: u64,
}

impl Request {
    fn to_bytes(self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..32].copy_from_slice(&self.hash);
        bytes[32..64].copy_from_slice(&self.under);
        bytes[64..].copy_from_slice(&self.from.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; REQUEST_BYTES]) -> Self {
        let (mut hash, mut under, mut from) = ([0; 32], [0; 32], [0; 8]);
        hash.copy_from_slice(&bytes[..32]);
        under.copy_from_slice(&bytes[32..64]);
        from.copy_from_slice(&bytes[64..]);
        Self {
            hash,
            under,
            from: u64::from_le_bytes(from),
        }
    }
}

/// The whole groups before a position, as a position.
const fn group_floor(bytes: u64) -> u64 {
    bytes - bytes % GROUP_BYTES
}

/// Fills the buffer, up to the stream's end, within the limit. Returns how much there is.
async fn fill(stream: &mut Stream, buffer: &mut [u8], limit: Duration) -> io::Result<usize> {
    let filling = async {
        let mut filled = 0;
        while filled < buffer.len() {
            match stream.read(&mut buffer[filled..]).await? {
                0 => break,
                more => filled += more,
            }
        }
        Ok(filled)
    };
    timeout(limit, filling)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        let request = Request {
            hash: [1; 32],
            under: [2; 32],
            from: u64::MAX - 1,
        };
        assert_eq!(Request::from_bytes(&request.to_bytes()), request);
    }

    #[test]
    fn a_size_is_exact_or_a_cap() {
        assert!(BlobSize::Exactly(5).allows(5) && !BlobSize::Exactly(5).allows(4));
        assert!(BlobSize::AtMost(5).allows(4) && !BlobSize::AtMost(5).allows(6));
    }
}
