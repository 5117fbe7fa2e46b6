//! The serving side of a transfer.

use std::{
    fs::File,
    io::{self, BufReader, Write},
    sync::Arc,
    time::Duration,
};

use bao_tree::{
    BaoTree, ChunkNum, ChunkRanges,
    io::sync::{encode_ranges, outboard},
};
use futures::AsyncWriteExt;
use libp2p::Stream;
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout},
};

use super::{
    CHUNK_BYTES, GROUP, Outboard, PIECE_BYTES, PIECES, REFUSAL, REQUEST_BYTES, Request, ServeBlob,
    fill, group_floor,
};
use crate::transport::{PeerKey, TransportEvent, engine::Report};

/// Refusals leave on this beat after the request, so that their time says little of their cause.
const REFUSAL_BEAT: Duration = Duration::from_millis(30);
/// The driver answers at once; when it is stuck, the peer need not wait for ever.
const DECISION: Duration = Duration::from_secs(10);
/// Less than this says nothing about how fast a way is.
const PACE_BYTES_MIN: u64 = 4 << 20;

/// Everything that serving needs besides the stream.
#[derive(Debug)]
pub(in crate::transport) struct ServeSetup {
    pub(in crate::transport) peer: PeerKey,
    pub(in crate::transport) handshake: Duration,
    pub(in crate::transport) stall: Duration,
    pub(in crate::transport) events: mpsc::Sender<TransportEvent>,
    pub(in crate::transport) reports: mpsc::Sender<Report>,
}

/// A blob that is open and whose tree is known.
struct Opened {
    file: File,
    tree: Arc<Outboard>,
}

/// Answers one request. Returns the blob's tree if it had to be made.
pub(in crate::transport) async fn serve(
    mut stream: Stream,
    setup: ServeSetup,
) -> Option<Arc<Outboard>> {
    let mut bytes = [0; REQUEST_BYTES];
    let got = fill(&mut stream, &mut bytes, setup.handshake).await.ok()?;
    if got < REQUEST_BYTES {
        return None;
    }
    let request = Request::from_bytes(&bytes);
    let asked = Instant::now();
    let cached = cached_tree(&setup, request.hash).await;
    let had_tree = cached.is_some();
    let Some(opened) = open_if_allowed(&setup, request, cached).await else {
        refuse(&mut stream, asked, setup.stall).await;
        return None;
    };
    let tree = Arc::clone(&opened.tree);
    let began = Instant::now();
    if send(&mut stream, opened, request.from, setup.stall).await {
        let bytes = tree.tree.size().saturating_sub(request.from);
        report_pace(&setup, bytes, began.elapsed()).await;
    }
    (!had_tree).then_some(tree)
}

/// Says how fast it went, where that was long enough to mean something: the first of it
/// only fills buffers.
async fn report_pace(setup: &ServeSetup, bytes: u64, took: Duration) {
    let millis = took.as_millis();
    if bytes < PACE_BYTES_MIN || millis == 0 {
        return;
    }
    let pace = u64::try_from(u128::from(bytes) * 1000 / millis).unwrap_or(u64::MAX);
    let event = TransportEvent::LinkMeasured {
        peer: setup.peer,
        rtt: None,
        bytes_per_second: Some(pace),
    };
    let _ = setup.events.send(event).await;
}

async fn cached_tree(setup: &ServeSetup, hash: [u8; 32]) -> Option<Arc<Outboard>> {
    let (reply, answer) = oneshot::channel();
    let ask = Report::TreeWanted { hash, reply };
    setup.reports.send(ask).await.ok()?;
    answer.await.ok()?
}

/// `None` for every reason alike: not allowed, not there, not what its name says.
async fn open_if_allowed(
    setup: &ServeSetup,
    request: Request,
    cached: Option<Arc<Outboard>>,
) -> Option<Opened> {
    let (reply, answer) = oneshot::channel();
    let ask = TransportEvent::BlobRequested {
        from: setup.peer,
        hash: request.hash,
        under: request.under,
        reply,
    };
    setup.events.send(ask).await.ok()?;
    let blob = timeout(DECISION, answer).await.ok()?.ok()??;
    let opened = spawn_blocking(move || open(&blob, request, cached)).await;
    match opened.ok()? {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(%error, "a blob that should be served cannot be read");
            None
        }
    }
}

fn open(
    blob: &ServeBlob,
    request: Request,
    cached: Option<Arc<Outboard>>,
) -> io::Result<Option<Opened>> {
    let file = File::open(&blob.path)?;
    let size = file.metadata()?.len();
    if size != blob.size || request.from > size {
        return Ok(None);
    }
    let tree = match cached.filter(|tree| tree.tree.size() == size) {
        Some(tree) => tree,
        None => Arc::new(hash_tree(&file, size)?),
    };
    if tree.root.as_bytes() != &request.hash {
        tracing::error!(path = %blob.path.display(), "a stored blob is damaged; it is not served");
        return Ok(None);
    }
    Ok(Some(Opened { file, tree }))
}

fn hash_tree(file: &File, size: u64) -> io::Result<Outboard> {
    let tree = BaoTree::new(size, GROUP);
    let bytes = usize::try_from(tree.outboard_size()).map_err(io::Error::other)?;
    let mut made = Outboard {
        root: blake3::Hash::from_bytes([0; 32]),
        tree,
        data: vec![0; bytes],
    };
    made.root = outboard(BufReader::with_capacity(PIECE_BYTES, file), tree, &mut made)?;
    Ok(made)
}

async fn refuse(stream: &mut Stream, asked: Instant, stall: Duration) {
    let mut beat = asked + REFUSAL_BEAT;
    while beat < Instant::now() {
        beat += REFUSAL_BEAT;
    }
    sleep_until(beat).await;
    let answer = async {
        stream.write_all(&REFUSAL).await?;
        stream.close().await
    };
    let _ = timeout(stall, answer).await;
}

/// Whether all of it was sent.
async fn send(stream: &mut Stream, opened: Opened, from: u64, stall: Duration) -> bool {
    let mut head = [1; 9];
    head[1..].copy_from_slice(&opened.tree.tree.size().to_le_bytes());
    let (pieces, mut queue) = mpsc::channel(PIECES);
    let encoder = spawn_blocking(move || encode(opened, from, pieces));
    let mut written = write(stream, &head, stall).await;
    while written {
        let Some(piece) = queue.recv().await else {
            break;
        };
        written = write(stream, &piece, stall).await;
    }
    // The encoder stops when its queue is gone.
    drop(queue);
    let encoded = matches!(encoder.await, Ok(Ok(())));
    encoded && matches!(timeout(stall, stream.close()).await, Ok(Ok(()))) && written
}

async fn write(stream: &mut Stream, bytes: &[u8], stall: Duration) -> bool {
    matches!(timeout(stall, stream.write_all(bytes)).await, Ok(Ok(())))
}

fn encode(opened: Opened, from: u64, pieces: mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    let first = ChunkNum(group_floor(from) / CHUNK_BYTES);
    let mut sink = PieceSink {
        pieces,
        piece: Vec::with_capacity(PIECE_BYTES),
    };
    if from < opened.tree.tree.size() {
        encode_ranges(
            &opened.file,
            opened.tree.as_ref(),
            &ChunkRanges::from(first..),
            &mut sink,
        )
        .map_err(io::Error::other)?;
    }
    sink.flush()
}

/// Gathers small writes into pieces for the stream's task.
struct PieceSink {
    pieces: mpsc::Sender<Vec<u8>>,
    piece: Vec<u8>,
}

impl Write for PieceSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        self.pieces
            .blocking_send(full)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
