//! Bytes in and out.
//!
//! An upload goes straight into the blob store: a blocking task writes and
//! hashes what the connection delivers, a few pieces apart, so that memory
//! stays bounded. It is named at its end, or leaves nothing. Whoever knows the
//! hash beforehand says so, and need not send what is here already.

use std::{collections::HashSet, io, time::Duration};

use axum::{
    Json,
    body::{Body, BodyDataStream, Bytes},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use serde::Deserialize;
use suanli_protocol::{
    ids::{BlobId, Hash},
    limits::{INLINE_BLOBS_MAX, INLINE_BYTES_MAX},
    message::{InlineBlob, InlineBlobs},
    wire,
};
use tokio::{
    io::AsyncReadExt,
    sync::{OwnedSemaphorePermit, mpsc},
    task::spawn_blocking,
    time::{Instant, timeout},
};

use super::{Api, Shared, input::Params, problem::Problem};
use crate::{
    api::types::{BlobInfo, Submission},
    store::blobs::{BlobError, Blobs, WallMs},
    wall::wall_ms,
};

/// Pieces of an upload that may wait for the disk.
const PIECES: usize = 4;
/// How far a body may fall behind its [`PACE`].
const BODY_WAIT: Duration = Duration::from_secs(10);
/// Bytes a second that a body must bring, so that no sender keeps a place by dribbling.
const PACE: u64 = 16 * 1024;
/// How long an uploaded blob is kept that no job refers to.
const KEPT_MS: u64 = 24 * 3600 * 1000;
/// What is read and thrown away of a body that nobody needs, so that its
/// sender sees the answer and not a broken connection.
const DRAINED_MAX: u64 = 1024 * 1024 * 1024;
const CHUNK_BYTES: usize = 128 * 1024;

/// What an uploader may say beforehand.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Announced {
    hash: Option<BlobId>,
}

pub(super) async fn upload(
    api: Shared,
    Params(announced): Params<Announced>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<BlobInfo>, Problem> {
    let blobs = api.handle.store().blobs().clone();
    let length = content_length(&headers);
    let mut body = Paced::new(body);
    if let Some(blob) = announced.hash {
        if let Some(bytes) = renewed(&blobs, blob).await? {
            if !headers.contains_key(header::EXPECT) {
                drain(&mut body).await;
            }
            return Ok(Json(BlobInfo { blob, bytes }));
        }
        if length == Some(0) && blob.0 != Hash::of(b"") {
            return Err(Problem::usage(
                StatusCode::NOT_FOUND,
                "the blob is not here; send its bytes",
            ));
        }
    }
    let stored = receive(blobs, length, announced.hash, &mut body).await;
    if matches!(stored, Err(Broken::Blob(_))) {
        drain(&mut body).await;
    }
    Ok(Json(stored?))
}

/// The bytes of a blob as a response that holds its `place` while it is sent.
pub(super) async fn download(
    api: &Api,
    blob: BlobInfo,
    place: OwnedSemaphorePermit,
) -> Result<Response, Problem> {
    let blobs = api.handle.store().blobs().clone();
    let hash = blake3_of(blob.blob);
    let opened = spawn_blocking(move || {
        let file = blobs.open_blob(&hash)?;
        let bytes = file.metadata().map_err(BlobError::from)?.len();
        Ok::<_, BlobError>((file, bytes))
    });
    let (file, bytes) = opened.await.map_err(|_| stopping())??;
    let file = tokio::fs::File::from_std(file);
    let chunks = stream::unfold((file, place), |(mut file, place)| async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        match file.read(&mut chunk).await {
            Ok(0) => None,
            Ok(read) => {
                chunk.truncate(read);
                Some((Ok(Bytes::from(chunk)), (file, place)))
            }
            Err(error) => Some((Err(error), (file, place))),
        }
    });
    Ok((headers(bytes), Body::from_stream(chunks)).into_response())
}

/// A few bytes as the same response.
pub(super) fn whole(bytes: Vec<u8>) -> Response {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    (headers(length), Body::from(bytes)).into_response()
}

fn headers(bytes: u64) -> [(HeaderName, String); 3] {
    [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_DISPOSITION, "attachment".to_owned()),
        (header::CONTENT_LENGTH, bytes.to_string()),
    ]
}

/// Whether a blob is here, complete.
pub(super) async fn is_here(api: &Api, blob: BlobId) -> Result<bool, Problem> {
    let blobs = api.handle.store().blobs().clone();
    let hash = blake3_of(blob);
    spawn_blocking(move || blobs.has(&hash))
        .await
        .map_err(|_| stopping())
}

/// Spec and inputs of a submission, checked to be here or to stay where they were made,
/// as what travels with the agreement: all that is here if it is small, else nothing.
pub(super) async fn inline(api: &Api, submission: &Submission) -> Result<InlineBlobs, Problem> {
    let mut named = vec![submission.spec];
    let mut known = HashSet::from([submission.spec.blob]);
    let inputs = submission.inputs.iter();
    named.extend(inputs.filter(|input| known.insert(input.blob)));
    match here(api, named.clone()).await {
        Err(Absent::Blob(_)) => {}
        Err(Absent::Problem(problem)) => return Err(problem),
        Ok(inline) => return Ok(inline),
    }
    let inputs = named.iter().skip(1).map(|input| input.blob);
    let away = api.handle.staying(inputs.collect()).await?;
    named.retain(|input| !away.contains(&input.blob));
    here(api, named).await.map_err(|absent| match absent {
        Absent::Blob(blob) => crate::handle::NotTaken::BlobMissing(blob).into(),
        Absent::Problem(problem) => problem,
    })
}

/// Why blobs can't be handed out.
enum Absent {
    /// One is not here.
    Blob(BlobId),
    Problem(Problem),
}

impl From<BlobError> for Absent {
    fn from(error: BlobError) -> Self {
        Self::Problem(error.into())
    }
}

async fn here(api: &Api, named: Vec<BlobInfo>) -> Result<InlineBlobs, Absent> {
    let blobs = api.handle.store().blobs().clone();
    let sum = (named.iter()).fold(0u64, |sum, blob| sum.saturating_add(blob.bytes));
    if named.len() <= INLINE_BLOBS_MAX && sum <= INLINE_BYTES_MAX as u64 {
        // A few pages that were written a moment ago: to hand them to another
        // thread takes longer than to read them.
        return read_inline(&blobs, &named);
    }
    spawn_blocking(move || read_inline(&blobs, &named))
        .await
        .map_err(|_| Absent::Problem(stopping()))?
}

fn read_inline(blobs: &Blobs, named: &[BlobInfo]) -> Result<InlineBlobs, Absent> {
    let mut sum = 0u64;
    for info in named {
        let hash = blake3_of(info.blob);
        let known = blobs.in_memory(&hash).map(|bytes| bytes.len() as u64);
        match known.map_or_else(|| blobs.size(&hash), Ok) {
            Ok(bytes) if bytes == info.bytes => sum = sum.saturating_add(bytes),
            Ok(bytes) => {
                return Err(Absent::Problem(Problem::usage(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    format!(
                        "blob {:#} has {bytes} bytes, and the submission says {}; give its size as it is",
                        info.blob, info.bytes
                    ),
                )));
            }
            Err(BlobError::Unknown) => {
                return Err(Absent::Blob(info.blob));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if named.len() > INLINE_BLOBS_MAX || sum > INLINE_BYTES_MAX as u64 {
        return Ok(InlineBlobs::default());
    }
    let read = |info: &BlobInfo| -> Result<InlineBlob, BlobError> {
        let hash = blake3_of(info.blob);
        let bytes = match blobs.read_small(&hash)? {
            Some(bytes) => bytes.to_vec(),
            None => {
                let mut bytes = Vec::new();
                io::Read::read_to_end(&mut blobs.open_blob(&hash)?, &mut bytes)?;
                bytes
            }
        };
        let bytes = wire::Bytes::new(bytes).map_err(|_| BlobError::Mismatch)?;
        Ok(InlineBlob {
            blob: info.blob,
            bytes,
        })
    };
    let inline: Vec<InlineBlob> = named.iter().map(read).collect::<Result<_, _>>()?;
    Ok(InlineBlobs::truncated(inline))
}

/// A body that must keep up a pace. Only the time counts in which its reader waits for it.
struct Paced {
    body: BodyDataStream,
    left: Duration,
}

/// The sender went away, or lost too much time.
struct TooSlowOrBroken;

impl Paced {
    fn new(body: Body) -> Self {
        Self {
            body: body.into_data_stream(),
            left: BODY_WAIT,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, TooSlowOrBroken> {
        let since = Instant::now();
        let next = timeout(self.left, self.body.next()).await;
        self.left = self.left.saturating_sub(since.elapsed());
        match next {
            Ok(Some(Ok(bytes))) => {
                let earned = Duration::from_millis(bytes.len() as u64 * 1_000 / PACE);
                self.left = (self.left + earned).min(BODY_WAIT);
                Ok(Some(bytes))
            }
            Ok(None) => Ok(None),
            Ok(Some(Err(_))) | Err(_) => Err(TooSlowOrBroken),
        }
    }
}

/// Why an upload did not arrive.
enum Broken {
    /// The store did not take it.
    Blob(BlobError),
    /// The sender went away or is too slow.
    Sender,
    /// The node is stopping.
    Stopping,
}

impl From<Broken> for Problem {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Blob(error) => error.into(),
            Broken::Sender => Self::usage(
                StatusCode::REQUEST_TIMEOUT,
                "the upload broke off; send it again",
            ),
            Broken::Stopping => stopping(),
        }
    }
}

/// What a writing task is handed.
enum Piece {
    Bytes(Bytes),
    /// Nothing is missing: without this, what came is thrown away.
    End,
}

async fn receive(
    blobs: Blobs,
    length: Option<u64>,
    expected: Option<BlobId>,
    body: &mut Paced,
) -> Result<BlobInfo, Broken> {
    let (pieces, queue) = mpsc::channel(PIECES);
    let writing = spawn_blocking(move || write(&blobs, length, expected, queue));
    let arrived = pump(body, pieces).await;
    let written = writing.await.map_err(|_| Broken::Stopping)?;
    match (written, arrived) {
        (Ok(Some(info)), _) => Ok(info),
        (Ok(None), _) => Err(Broken::Sender),
        (Err(error), _) => Err(Broken::Blob(error)),
    }
}

/// Hands a body's pieces over, and says when nothing is missing.
async fn pump(body: &mut Paced, pieces: mpsc::Sender<Piece>) {
    loop {
        let piece = match body.next().await {
            Ok(Some(bytes)) => Piece::Bytes(bytes),
            Ok(None) => Piece::End,
            Err(TooSlowOrBroken) => return,
        };
        let is_last = matches!(piece, Piece::End);
        if pieces.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

/// Writes pieces until their end; `None` if there was none.
fn write(
    blobs: &Blobs,
    length: Option<u64>,
    expected: Option<BlobId>,
    mut queue: mpsc::Receiver<Piece>,
) -> Result<Option<BlobInfo>, BlobError> {
    let mut receiving = blobs.receive(length.unwrap_or(0))?;
    while let Some(piece) = queue.blocking_recv() {
        match piece {
            Piece::Bytes(bytes) => receiving.write(&bytes)?,
            Piece::End => {
                let is_other = expected.is_some_and(|blob| blake3_of(blob) != receiving.hash());
                if is_other {
                    return Err(BlobError::Mismatch);
                }
                let (hash, bytes) = receiving.commit(Some(kept_until()))?;
                let blob = BlobId(Hash::from_bytes(*hash.as_bytes()));
                return Ok(Some(BlobInfo { blob, bytes }));
            }
        }
    }
    Ok(None)
}

/// The size of a blob that is here, which is now kept for a while again.
async fn renewed(blobs: &Blobs, blob: BlobId) -> Result<Option<u64>, Problem> {
    let blobs = blobs.clone();
    let renewed = spawn_blocking(move || {
        let hash = blake3_of(blob);
        match blobs.size(&hash) {
            Ok(bytes) => {
                blobs.keep_until(hash, Some(kept_until()))?;
                Ok(Some(bytes))
            }
            Err(BlobError::Unknown) => Ok(None),
            Err(error) => Err(error),
        }
    });
    Ok(renewed.await.map_err(|_| stopping())??)
}

async fn drain(body: &mut Paced) {
    let mut left = DRAINED_MAX;
    while let Ok(Some(bytes)) = body.next().await {
        match left.checked_sub(bytes.len() as u64) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(header::CONTENT_LENGTH)?;
    value.to_str().ok()?.parse().ok()
}

fn kept_until() -> WallMs {
    WallMs(wall_ms().saturating_add(KEPT_MS))
}

const fn blake3_of(blob: BlobId) -> blake3::Hash {
    blake3::Hash::from_bytes(*blob.0.as_bytes())
}

fn stopping() -> Problem {
    crate::handle::Gone.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte every so often, for ever.
    fn dribble(pause: Duration) -> Body {
        Body::from_stream(stream::unfold((), move |()| async move {
            tokio::time::sleep(pause).await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b"x")), ()))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn abuse_06_a_body_that_dribbles_is_cut_within_ten_seconds() {
        let since = Instant::now();
        let mut body = Paced::new(dribble(Duration::from_secs(1)));
        while let Ok(Some(_)) = body.next().await {}
        assert!(since.elapsed() <= Duration::from_secs(11));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_at_its_pace_may_take_as_long_as_it_needs() {
        let piece = Bytes::from(vec![0; 32 * 1024]);
        let pieces = stream::unfold(piece, |piece| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, io::Error>(piece.clone()), piece))
        });
        let mut body = Paced::new(Body::from_stream(pieces.take(60)));
        while let Ok(Some(_)) = body.next().await {
            // Time that the reader takes for itself is not the sender's.
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        assert!(body.left > Duration::ZERO);
    }
}
