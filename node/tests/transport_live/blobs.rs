//! Blobs: whole, continued, refused, too large, wrong, and stalled.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bao_tree::{
    BlockSize, ChunkRanges,
    io::{outboard::PreOrderMemOutboard, sync::encode_ranges},
};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use suanli_node::transport::{
    BlobFailure, BlobSize, FetchBlob, FetchId, PeerKey, ServeBlob, TransportCommand, TransportEvent,
};
use tempfile::TempDir;

use crate::{Node, QUIC, TCP, config, hostile::Hostile, pair};

const MIB: usize = 1 << 20;
const TICKET: [u8; 32] = [5; 32];

/// A file of bytes that don't repeat, and its hash.
struct Blob {
    path: PathBuf,
    bytes: Vec<u8>,
    hash: [u8; 32],
}

impl Blob {
    fn write(folder: &TempDir, size: usize) -> Self {
        let mut bytes = vec![0; size];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let path = folder.path().join("blob");
        fs::write(&path, &bytes).unwrap();
        let hash = *blake3::hash(&bytes).as_bytes();
        Self { path, bytes, hash }
    }

    fn size(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap()
    }

    fn serve(&self) -> Option<ServeBlob> {
        Some(ServeBlob {
            path: self.path.clone(),
            size: self.size(),
        })
    }
}

async fn fetch(node: &Node, from: PeerKey, hash: [u8; 32], size: BlobSize, into: &Path) {
    node.command(TransportCommand::FetchBlob(FetchBlob {
        id: FetchId(1),
        from,
        hash,
        size,
        under: TICKET,
        into: into.to_owned(),
    }))
    .await;
}

async fn answer(node: &mut Node, with: Option<ServeBlob>) {
    let (under, reply) = node
        .wait(|event| match event {
            TransportEvent::BlobRequested { under, reply, .. } => Some((under, reply)),
            _ => None,
        })
        .await;
    assert_eq!(under, TICKET);
    reply.send(with).unwrap();
}

async fn result(node: &mut Node) -> Result<u64, BlobFailure> {
    node.wait(|event| match event {
        TransportEvent::BlobDone { bytes, .. } => Some(Ok(bytes)),
        TransportEvent::BlobFailed { why, .. } => Some(Err(why)),
        _ => None,
    })
    .await
}

async fn blob_arrives_whole(listen: &str) {
    let folder = TempDir::new().unwrap();
    let blob = Blob::write(&folder, 20 * MIB + 777);
    let (mut client, mut server) = pair(listen).await;
    let into = folder.path().join("fetched.partial");
    // The second time the server has the tree in memory.
    for round in ["first", "second"] {
        let _ = fs::remove_file(&into);
        let started = Instant::now();
        let size = BlobSize::Exactly(blob.size());
        fetch(&client, server.key(), blob.hash, size, &into).await;
        answer(&mut server, blob.serve()).await;
        assert_eq!(result(&mut client).await, Ok(blob.size()));
        let took = started.elapsed();
        assert!(fs::read(&into).unwrap() == blob.bytes);
        println!(
            "blob of 20 MiB, {round} time, {listen}: {:.0} MiB/s",
            20.0 / took.as_secs_f64()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_arrives_whole_by_tcp() {
    blob_arrives_whole(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_arrives_whole_by_quic() {
    blob_arrives_whole(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_of_every_awkward_size_arrive() {
    let (mut client, mut server) = pair(TCP).await;
    for size in [
        0,
        1,
        1_024,
        1_025,
        16 << 10,
        (16 << 10) + 1,
        48 << 10,
        300 << 10,
    ] {
        let folder = TempDir::new().unwrap();
        let blob = Blob::write(&folder, size);
        let into = folder.path().join("fetched.partial");
        let cap = BlobSize::AtMost(1 << 20);
        fetch(&client, server.key(), blob.hash, cap, &into).await;
        answer(&mut server, blob.serve()).await;
        assert_eq!(result(&mut client).await, Ok(blob.size()), "size {size}");
        assert!(fs::read(&into).unwrap() == blob.bytes, "size {size}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_transfer_goes_on_where_it_was() {
    let folder = TempDir::new().unwrap();
    let blob = Blob::write(&folder, 3 * MIB);
    let into = folder.path().join("fetched.partial");
    let (mut client, mut server) = pair(QUIC).await;

    // A server that dies after two thirds.
    let dying = Hostile::start(66, None).await;
    client.dial_at(dying.key, dying.address.clone()).await;
    client.wait(crate::is_connected(dying.key)).await;
    let mut requests = dying.accept("blob");
    let size = BlobSize::Exactly(blob.size());
    fetch(&client, dying.key, blob.hash, size, &into).await;
    let (_, mut stream) = requests.next().await.unwrap();
    let mut request = [0; 72];
    stream.read_exact(&mut request).await.unwrap();
    assert_eq!(request[64..], [0; 8]);
    let mut reply = vec![1];
    reply.extend_from_slice(&blob.size().to_le_bytes());
    let tree = PreOrderMemOutboard::create(&blob.bytes, BlockSize::from_chunk_log(4));
    encode_ranges(
        blob.bytes.as_slice(),
        &tree,
        &ChunkRanges::all(),
        &mut reply,
    )
    .unwrap();
    stream.write_all(&reply[..2 * MIB]).await.unwrap();
    stream.close().await.unwrap();
    assert_eq!(result(&mut client).await, Err(BlobFailure::Lost));
    let kept = fs::read(&into).unwrap();
    assert!(kept.len() > MIB && blob.bytes.starts_with(&kept));

    fetch(&client, server.key(), blob.hash, size, &into).await;
    answer(&mut server, blob.serve()).await;
    assert_eq!(result(&mut client).await, Ok(blob.size()));
    assert!(fs::read(&into).unwrap() == blob.bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_beginning_is_noticed_and_thrown_away() {
    let folder = TempDir::new().unwrap();
    let blob = Blob::write(&folder, MIB);
    let into = folder.path().join("fetched.partial");
    fs::write(&into, vec![0; MIB / 2]).unwrap();
    let (mut client, mut server) = pair(TCP).await;
    let size = BlobSize::Exactly(blob.size());
    for expected in [Err(BlobFailure::StalePartial), Ok(blob.size())] {
        fetch(&client, server.key(), blob.hash, size, &into).await;
        answer(&mut server, blob.serve()).await;
        assert_eq!(result(&mut client).await, expected);
    }
    assert!(fs::read(&into).unwrap() == blob.bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_28_a_wrong_chunk_is_rejected_at_that_chunk_and_what_is_before_it_kept() {
    const WRONG_AT: u64 = 7 * 1024 * 1024 + 4_321;
    let folder = TempDir::new().unwrap();
    let blob = Blob::write(&folder, 20 * MIB);
    let into = folder.path().join("fetched.partial");
    let (mut client, mut server) = pair(TCP).await;
    let size = BlobSize::Exactly(blob.size());
    // One good fetch puts the tree into the server's memory; then its file goes bad.
    fetch(
        &client,
        server.key(),
        blob.hash,
        size,
        &folder.path().join("good"),
    )
    .await;
    answer(&mut server, blob.serve()).await;
    assert_eq!(result(&mut client).await, Ok(blob.size()));
    let file = fs::OpenOptions::new().write(true).open(&blob.path).unwrap();
    let good = blob.bytes[usize::try_from(WRONG_AT).unwrap()];
    file.write_all_at(&[good ^ 1], WRONG_AT).unwrap();

    fetch(&client, server.key(), blob.hash, size, &into).await;
    answer(&mut server, blob.serve()).await;
    let group = WRONG_AT - WRONG_AT % (16 << 10);
    let corrupt = BlobFailure::Corrupt { offset: group };
    assert_eq!(result(&mut client).await, Err(corrupt));
    let kept = fs::read(&into).unwrap();
    assert_eq!(kept.len(), usize::try_from(group).unwrap());
    assert!(blob.bytes.starts_with(&kept));

    file.write_all_at(&[good], WRONG_AT).unwrap();
    fetch(&client, server.key(), blob.hash, size, &into).await;
    answer(&mut server, blob.serve()).await;
    assert_eq!(result(&mut client).await, Ok(blob.size()));
    assert!(fs::read(&into).unwrap() == blob.bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_27_an_oversized_blob_is_cut_before_anything_is_written() {
    let folder = TempDir::new().unwrap();
    let blob = Blob::write(&folder, MIB);
    let into = folder.path().join("fetched.partial");
    let (mut client, mut server) = pair(QUIC).await;
    for size in [
        BlobSize::AtMost(blob.size() - 1),
        BlobSize::Exactly(blob.size() - 1),
    ] {
        fetch(&client, server.key(), blob.hash, size, &into).await;
        answer(&mut server, blob.serve()).await;
        let wrong = BlobFailure::WrongSize { bytes: blob.size() };
        assert_eq!(result(&mut client).await, Err(wrong));
        assert_eq!(fs::metadata(&into).unwrap().len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_78_every_refusal_is_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let blob = Blob::write(&folder, 100_000);
    let missing = ServeBlob {
        path: folder.path().join("missing"),
        size: 100_000,
    };
    let other_size = ServeBlob {
        path: blob.path.clone(),
        size: 99_999,
    };
    let mut server = Node::start(1, TCP).await;
    let stranger = Hostile::attack(66, &mut server).await;
    let mut said = Vec::new();
    for (hash, with) in [
        (blob.hash, None),
        ([1; 32], None),
        (blob.hash, Some(missing)),
        (blob.hash, Some(other_size)),
        ([1; 32], blob.serve()),
    ] {
        let mut stream = stranger.open(server.key(), "blob").await;
        let request = [hash.as_slice(), &TICKET, &[0; 8]].concat();
        stream.write_all(&request).await.unwrap();
        stream.flush().await.unwrap();
        answer(&mut server, with).await;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        said.push(answer);
    }
    assert_eq!(said, vec![vec![0; 9]; 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_fetch_says_so() {
    let folder = TempDir::new().unwrap();
    let (mut client, mut server) = pair(TCP).await;
    let size = BlobSize::Exactly(1_000);
    fetch(
        &client,
        server.key(),
        [1; 32],
        size,
        &folder.path().join("x"),
    )
    .await;
    answer(&mut server, None).await;
    assert_eq!(result(&mut client).await, Err(BlobFailure::Refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_nothing_is_given_up() {
    let folder = TempDir::new().unwrap();
    let mut settings = config(1, TCP);
    settings.limits.blob_stall = Duration::from_millis(300);
    let mut client = Node::start_with(settings).await;
    let silent = Hostile::start(66, None).await;
    client.dial_at(silent.key, silent.address.clone()).await;
    client.wait(crate::is_connected(silent.key)).await;
    let mut requests = silent.accept("blob");
    let size = BlobSize::Exactly(1_000);
    fetch(&client, silent.key, [1; 32], size, &folder.path().join("x")).await;
    let (_, _stream) = requests.next().await.unwrap();
    assert_eq!(result(&mut client).await, Err(BlobFailure::Stalled));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_at_its_limit_says_busy() {
    let folder = TempDir::new().unwrap();
    let mut settings = config(1, TCP);
    settings.limits.serves_per_peer = 1;
    let mut server = Node::start_with(settings).await;
    let mut client = Node::start(2, TCP).await;
    client.connect(&mut server).await;
    let from = server.key();
    let fetch_as = |id: u64| {
        TransportCommand::FetchBlob(FetchBlob {
            id: FetchId(id),
            from,
            hash: [1; 32],
            size: BlobSize::AtMost(1_000),
            under: TICKET,
            into: folder.path().join(id.to_string()),
        })
    };
    client.command(fetch_as(1)).await;
    // The first is under way when the server asks its driver, who takes its time.
    let reply = server
        .wait(|event| match event {
            TransportEvent::BlobRequested { reply, .. } => Some(reply),
            _ => None,
        })
        .await;
    client.command(fetch_as(2)).await;
    assert_eq!(result(&mut client).await, Err(BlobFailure::Busy));
    reply.send(None).unwrap();
    assert_eq!(result(&mut client).await, Err(BlobFailure::Refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_fetch_ends_at_once() {
    let folder = TempDir::new().unwrap();
    let (mut client, mut server) = pair(TCP).await;
    let size = BlobSize::Exactly(1_000);
    fetch(
        &client,
        server.key(),
        [1; 32],
        size,
        &folder.path().join("x"),
    )
    .await;
    let _undecided = server
        .wait(|event| match event {
            TransportEvent::BlobRequested { reply, .. } => Some(reply),
            _ => None,
        })
        .await;
    client
        .command(TransportCommand::CancelFetch { id: FetchId(1) })
        .await;
    assert_eq!(result(&mut client).await, Err(BlobFailure::Cancelled));
}
