//! The fetching side of a transfer.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bao_tree::{
    BaoTree, ChunkNum, ChunkRanges,
    io::{BaoContentItem, DecodeError, sync::DecodeResponseIter},
};
use futures::AsyncWriteExt;
use libp2p::Stream;
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, timeout},
};

use super::{
    ANSWER_BYTES, BlobFailure, BlobSize, CHUNK_BYTES, GROUP, PIECE_BYTES, PIECES, REFUSAL, Request,
    fill, group_floor,
};
use crate::transport::{FetchBlob, TransportEvent};

const PROGRESS_PAUSE: Duration = Duration::from_millis(200);

/// Fetches one blob over an open stream. Returns its size.
pub(in crate::transport) async fn fetch(
    mut stream: Stream,
    wanted: FetchBlob,
    stall: Duration,
    events: mpsc::Sender<TransportEvent>,
) -> Result<u64, BlobFailure> {
    let partial = prepare(&wanted).await?;
    if let Some(size) = partial.complete {
        return Ok(size);
    }
    let from = partial.verified;
    let size = ask(&mut stream, &wanted, from, stall).await?;
    let transfer = Transfer {
        file: partial.file,
        hash: wanted.hash,
        size,
        from,
        verified: Arc::new(AtomicU64::new(from)),
    };
    let verified = Arc::clone(&transfer.verified);
    let (pieces, queue) = mpsc::channel(PIECES);
    let decoder = spawn_blocking(move || decode(&transfer, queue));
    let progress = |bytes| TransportEvent::BlobProgress {
        id: wanted.id,
        bytes,
    };
    let received = receive(&mut stream, stall, pieces, || {
        // A driver that is behind misses a figure, not the blob.
        let _ = events.try_send(progress(verified.load(Ordering::Relaxed)));
    });
    let end = received.await;
    let decoded = joined(decoder).await;
    match (decoded, end) {
        (Err(BlobFailure::Lost), Err(stalled)) => Err(stalled),
        (decoded, _) => decoded.map(|()| size),
    }
}

/// A file that is to be continued.
struct Partial {
    file: File,
    verified: u64,
    /// The size, if the file already holds the whole blob.
    complete: Option<u64>,
}

async fn prepare(wanted: &FetchBlob) -> Result<Partial, BlobFailure> {
    let wanted = wanted.clone();
    joined(spawn_blocking(move || {
        open_partial(&wanted.into, wanted.hash, wanted.size).map_err(|e| BlobFailure::disk(&e))
    }))
    .await
}

fn open_partial(path: &Path, hash: [u8; 32], size: BlobSize) -> io::Result<Partial> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let length = file.metadata()?.len();
    let may_be_whole = match size {
        BlobSize::Exactly(size) => length >= size,
        BlobSize::AtMost(_) => false,
    };
    if may_be_whole {
        if hash_of(&file)? == hash {
            return Ok(Partial {
                file,
                verified: length,
                complete: Some(length),
            });
        }
        file.set_len(0)?;
    }
    let verified = if may_be_whole { 0 } else { group_floor(length) };
    file.set_len(verified)?;
    Ok(Partial {
        file,
        verified,
        complete: None,
    })
}

fn hash_of(file: &File) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(*hasher.finalize().as_bytes()),
            got => {
                hasher.update(&buffer[..got]);
                at += u64::try_from(got).map_err(io::Error::other)?;
            }
        }
    }
}

/// Sends the request and reads the answer's head: the blob's size.
async fn ask(
    stream: &mut Stream,
    wanted: &FetchBlob,
    from: u64,
    stall: Duration,
) -> Result<u64, BlobFailure> {
    let request = Request {
        hash: wanted.hash,
        under: wanted.under,
        from,
    };
    let asking = async {
        stream.write_all(&request.to_bytes()).await?;
        stream.flush().await
    };
    match timeout(stall, asking).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(BlobFailure::Busy),
        Err(_) => return Err(BlobFailure::Stalled),
    }
    let mut answer = [0; ANSWER_BYTES];
    match fill(stream, &mut answer, stall).await {
        Ok(ANSWER_BYTES) => {}
        Ok(_) => return Err(BlobFailure::Busy),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(BlobFailure::Stalled),
        Err(_) => return Err(BlobFailure::Busy),
    }
    if answer == REFUSAL {
        return Err(BlobFailure::Refused);
    }
    let mut size = [0; 8];
    size.copy_from_slice(&answer[1..]);
    let bytes = u64::from_le_bytes(size);
    // Checked before anything is read or written: an oversized blob ends here.
    if answer[0] != 1 || !wanted.size.allows(bytes) || from > bytes {
        return Err(BlobFailure::WrongSize { bytes });
    }
    Ok(bytes)
}

/// Moves pieces from the stream to the decoder until either has enough.
async fn receive(
    stream: &mut Stream,
    stall: Duration,
    pieces: mpsc::Sender<Vec<u8>>,
    report: impl Fn(),
) -> Result<(), BlobFailure> {
    let mut reported = Instant::now();
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let got = match fill(stream, &mut piece, stall).await {
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(BlobFailure::Stalled);
            }
            Err(_) => return Err(BlobFailure::Lost),
        };
        piece.truncate(got);
        if got == 0 || pieces.send(piece).await.is_err() {
            return Ok(());
        }
        if reported.elapsed() >= PROGRESS_PAUSE {
            reported = Instant::now();
            report();
        }
    }
}

/// What the decoder's thread works on.
struct Transfer {
    file: File,
    hash: [u8; 32],
    size: u64,
    from: u64,
    verified: Arc<AtomicU64>,
}

fn decode(transfer: &Transfer, queue: mpsc::Receiver<Vec<u8>>) -> Result<(), BlobFailure> {
    if transfer.from < transfer.size || transfer.size == 0 {
        decode_tail(transfer, queue)?;
    }
    // What an earlier attempt wrote may have been lost in a crash, so a continued file is
    // checked as a whole.
    if transfer.from > 0 {
        let hash = hash_of(&transfer.file).map_err(|e| BlobFailure::disk(&e))?;
        if hash != transfer.hash {
            transfer
                .file
                .set_len(0)
                .map_err(|e| BlobFailure::disk(&e))?;
            return Err(BlobFailure::StalePartial);
        }
    }
    Ok(())
}

fn decode_tail(transfer: &Transfer, queue: mpsc::Receiver<Vec<u8>>) -> Result<(), BlobFailure> {
    let ranges = ChunkRanges::from(ChunkNum(transfer.from / CHUNK_BYTES)..);
    let source = PieceSource {
        queue,
        piece: Vec::new(),
        at: 0,
    };
    let tree = BaoTree::new(transfer.size, GROUP);
    let root = blake3::Hash::from_bytes(transfer.hash);
    let mut sink = GroupSink {
        transfer,
        at: transfer.from,
        buffer: Vec::with_capacity(PIECE_BYTES),
    };
    for item in DecodeResponseIter::new(root, tree, source, &ranges) {
        match item {
            Ok(BaoContentItem::Parent(_)) => {}
            Ok(BaoContentItem::Leaf(leaf)) => sink.push(&leaf.data)?,
            Err(error) => {
                sink.flush()?;
                return Err(failure_of(&error));
            }
        }
    }
    sink.flush()
}

fn failure_of(error: &DecodeError) -> BlobFailure {
    match error {
        DecodeError::ParentHashMismatch(node) => BlobFailure::Corrupt {
            offset: node.chunk_range().start.to_bytes(),
        },
        DecodeError::LeafHashMismatch(chunk) => BlobFailure::Corrupt {
            offset: chunk.to_bytes(),
        },
        DecodeError::ParentNotFound(_) | DecodeError::LeafNotFound(_) | DecodeError::Io(_) => {
            BlobFailure::Lost
        }
    }
}

/// Gathers verified groups, which come in order, into large writes.
struct GroupSink<'a> {
    transfer: &'a Transfer,
    at: u64,
    buffer: Vec<u8>,
}

impl GroupSink<'_> {
    fn push(&mut self, group: &[u8]) -> Result<(), BlobFailure> {
        self.buffer.extend_from_slice(group);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), BlobFailure> {
        self.transfer
            .file
            .write_all_at(&self.buffer, self.at)
            .map_err(|e| BlobFailure::disk(&e))?;
        self.at += u64::try_from(self.buffer.len()).unwrap_or(0);
        self.buffer.clear();
        self.transfer.verified.store(self.at, Ordering::Relaxed);
        Ok(())
    }
}

/// Reads the pieces as one sequence of bytes, on the decoder's thread.
struct PieceSource {
    queue: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for PieceSource {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            let Some(next) = self.queue.blocking_recv() else {
                return Ok(0);
            };
            self.piece = next;
            self.at = 0;
        }
        let left = &self.piece[self.at..];
        let took = left.len().min(into.len());
        into[..took].copy_from_slice(&left[..took]);
        self.at += took;
        Ok(took)
    }
}

async fn joined<T>(task: JoinHandle<Result<T, BlobFailure>>) -> Result<T, BlobFailure> {
    task.await
        .unwrap_or_else(|error| Err(BlobFailure::Disk(error.to_string())))
}
