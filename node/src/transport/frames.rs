//! Frames on a substream: a little-endian `u32` length, then that many bytes.
//!
//! Each stream has one task: a writer, fed by a small queue, on the side that opened it, or a
//! reader on the side that accepted it. The reader is where a peer's appetite is bounded: it
//! claims room from the peer's [`Budget`] before it allocates, hands the frame to the driver, and
//! pauses as long as the peer is over its rate, so that the transport's own flow control holds
//! the peer back. A frame that is too large, too slow, or one too many over too long a time ends
//! the stream, and the engine hears why.

use std::{io, sync::Arc, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::Stream;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep, timeout},
};

use super::{Channel, Frame, Misbehaviour, PeerKey, TransportEvent, budget::Budget};

/// Frames waiting at once are written together up to this size.
const WRITE_BATCH_BYTES: usize = 64 << 10;

/// A frame on its way out, with its share of the peer's queue.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) bytes: Vec<u8>,
    pub(super) _room: OwnedSemaphorePermit,
}

/// Writes frames until the queue is dropped or the stream fails. Returns how many frames were
/// taken or waiting and did not leave.
pub(super) async fn write_frames(
    mut stream: Stream,
    mut queue: mpsc::Receiver<Outgoing>,
    stall: Duration,
) -> usize {
    let mut batch = Vec::new();
    while let Some(first) = queue.recv().await {
        let frames = fill(&mut batch, first, &mut queue);
        match timeout(stall, write_batch(&mut stream, &batch)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return frames + drain(&mut queue),
        }
        batch.clear();
        batch.shrink_to(WRITE_BATCH_BYTES);
    }
    let _ = timeout(stall, stream.close()).await;
    0
}

async fn write_batch(stream: &mut Stream, batch: &[u8]) -> io::Result<()> {
    stream.write_all(batch).await?;
    stream.flush().await
}

fn fill(batch: &mut Vec<u8>, first: Outgoing, queue: &mut mpsc::Receiver<Outgoing>) -> usize {
    let mut frames = 1;
    push_frame(batch, &first.bytes);
    while batch.len() < WRITE_BATCH_BYTES {
        let Ok(next) = queue.try_recv() else { break };
        push_frame(batch, &next.bytes);
        frames += 1;
    }
    frames
}

fn push_frame(batch: &mut Vec<u8>, bytes: &[u8]) {
    // The engine has checked the length against the channel's limit, which is a u32.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    batch.extend_from_slice(&length.to_le_bytes());
    batch.extend_from_slice(bytes);
}

/// Closes the queue and counts what was still in it.
pub(super) fn drain(queue: &mut mpsc::Receiver<Outgoing>) -> usize {
    queue.close();
    std::iter::from_fn(|| queue.try_recv().ok()).count()
}

/// Everything that a reader needs besides its stream.
#[derive(Debug)]
pub(super) struct ReaderSetup {
    pub(super) peer: PeerKey,
    pub(super) channel: Channel,
    pub(super) frame_bytes_max: u32,
    pub(super) partial_frame: Duration,
    pub(super) flood_grace: Duration,
    pub(super) budget: Arc<Budget>,
    pub(super) events: mpsc::Sender<TransportEvent>,
}

/// Reads frames until the peer ends the stream, misbehaves, or is cut.
pub(super) async fn read_frames(mut stream: Stream, setup: ReaderSetup) -> Option<Misbehaviour> {
    let mut over_since: Option<Instant> = None;
    loop {
        let (bytes, held) = match read_frame(&mut stream, &setup).await {
            Ok(frame) => frame,
            Err(ReadEnd::Closed) => return None,
            Err(ReadEnd::Misbehaved(what)) => return Some(what),
        };
        let pause = setup
            .budget
            .charge(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        let frame = Frame {
            from: setup.peer,
            channel: setup.channel,
            bytes,
            _held: held,
        };
        if setup
            .events
            .send(TransportEvent::Frame(frame))
            .await
            .is_err()
        {
            return None;
        }
        if pause.is_zero() {
            over_since = None;
            continue;
        }
        let since = *over_since.get_or_insert_with(Instant::now);
        if since.elapsed() > setup.flood_grace {
            return Some(Misbehaviour::Flood);
        }
        sleep(pause.min(setup.flood_grace)).await;
    }
}

enum ReadEnd {
    Closed,
    Misbehaved(Misbehaviour),
}

impl From<io::Error> for ReadEnd {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// One frame. Between frames a stream may be silent; within one, the clock runs, but not while
/// the reader itself waits for room.
async fn read_frame(
    stream: &mut Stream,
    setup: &ReaderSetup,
) -> Result<(Vec<u8>, OwnedSemaphorePermit), ReadEnd> {
    let too_slow = |_| {
        ReadEnd::Misbehaved(Misbehaviour::SlowFrame {
            channel: setup.channel,
        })
    };
    let mut head = [0; 4];
    let got = stream.read(&mut head).await?;
    if got == 0 {
        return Err(ReadEnd::Closed);
    }
    let started = Instant::now();
    timeout(setup.partial_frame, stream.read_exact(&mut head[got..]))
        .await
        .map_err(too_slow)??;
    let length = u32::from_le_bytes(head);
    if length > setup.frame_bytes_max {
        return Err(ReadEnd::Misbehaved(Misbehaviour::OversizeFrame {
            channel: setup.channel,
            bytes: length,
        }));
    }
    let left = setup.partial_frame.saturating_sub(started.elapsed());
    let held = setup.budget.hold(length).await.ok_or(ReadEnd::Closed)?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    timeout(left, stream.read_exact(&mut bytes))
        .await
        .map_err(too_slow)??;
    Ok((bytes, held))
}
