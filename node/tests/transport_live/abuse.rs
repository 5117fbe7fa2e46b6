//! Peers that break the rules of frames.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use suanli_node::transport::{Channel, Misbehaviour, PeerKey, TransportEvent};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
};

use crate::{
    Node, TCP, config, hostile::Hostile, is_connected, is_disconnected, resident_bytes, tcp_port,
};

async fn misbehaviour(node: &mut Node, who: PeerKey) -> Misbehaviour {
    node.wait(|event| match event {
        TransportEvent::Misbehaved { peer, what } if peer == who => Some(what),
        _ => None,
    })
    .await
}

/// Waits until the other side has reset or closed the stream.
async fn assert_cut(mut stream: libp2p::Stream) {
    let mut byte = [0];
    let ended = stream.read(&mut byte);
    let ended = tokio::time::timeout(crate::PATIENCE, ended).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_22_an_oversized_frame_ends_its_stream_before_it_is_read() {
    let mut victim = Node::start(1, TCP).await;
    let hostile = Hostile::attack(66, &mut victim).await;
    let mut stream = hostile.open(victim.key(), "negotiate").await;
    stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(
        misbehaviour(&mut victim, hostile.key).await,
        Misbehaviour::OversizeFrame {
            channel: Channel::Negotiate,
            bytes: u32::MAX
        }
    );
    assert_cut(stream).await;
    // The connection stands; a stream that keeps the rules is served.
    let mut stream = hostile.open(victim.key(), "negotiate").await;
    stream.write_all(&[2, 0, 0, 0, 7, 8]).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(victim.frame().await.2, [7, 8]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_06_a_frame_that_dribbles_is_cut_and_others_are_served() {
    let mut settings = config(1, TCP);
    settings.limits.partial_frame = Duration::from_millis(500);
    let mut victim = Node::start_with(settings).await;
    let hostile = Hostile::attack(66, &mut victim).await;
    let mut stream = hostile.open(victim.key(), "settle").await;
    let dribble = tokio::spawn(async move {
        let frame = [100, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        for byte in frame {
            if stream.write_all(&[byte]).await.is_err() || stream.flush().await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stream
    });
    let mut honest = Node::start(2, TCP).await;
    honest.connect(&mut victim).await;
    honest
        .send(victim.key(), Channel::Settle, b"honest".to_vec())
        .await;
    assert_eq!(victim.frame().await.2, b"honest");
    assert_eq!(
        misbehaviour(&mut victim, hostile.key).await,
        Misbehaviour::SlowFrame {
            channel: Channel::Settle
        }
    );
    assert_cut(dribble.await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_stream_between_frames_is_not_cut() {
    let mut settings = config(1, TCP);
    settings.limits.partial_frame = Duration::from_millis(50);
    let mut node = Node::start_with(settings).await;
    let peer = Hostile::attack(66, &mut node).await;
    let mut stream = peer.open(node.key(), "exec").await;
    for number in 0..3_u8 {
        stream.write_all(&[1, 0, 0, 0, number]).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(node.frame().await.2, [number]);
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_stays_over_its_budget_is_slowed_then_cut() {
    let mut settings = config(1, TCP);
    settings.limits.frames_per_s = 20;
    settings.limits.frames_burst = 20;
    settings.limits.flood_grace = Duration::from_secs(1);
    let mut victim = Node::start_with(settings).await;
    let hostile = Hostile::attack(66, &mut victim).await;
    let mut stream = hostile.open(victim.key(), "exec").await;
    let flood = tokio::spawn(async move {
        let frames = [1, 0, 0, 0, 9].repeat(1_000);
        while stream.write_all(&frames).await.is_ok() {}
    });
    let mut frames_before = 0;
    let cut = async {
        loop {
            match victim.events.recv().await.unwrap() {
                TransportEvent::Frame(_) => frames_before += 1,
                TransportEvent::Misbehaved { what, .. } => return what,
                _ => {}
            }
        }
    };
    let what = tokio::time::timeout(crate::PATIENCE, cut).await.unwrap();
    assert_eq!(what, Misbehaviour::Flood);
    // The burst, then the rate over the grace; the flood itself is a hundred thousand.
    assert!(frames_before < 500, "{frames_before} frames came through");
    victim.wait(is_disconnected(hostile.key)).await;
    flood.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_opens_stream_after_stream_is_cut() {
    let mut victim = Node::start(1, TCP).await;
    let hostile = Hostile::attack(66, &mut victim).await;
    let mut streams = Vec::new();
    // Two are within the limit and sixteen are overlooked.
    while let Ok(stream) = hostile.try_open(victim.key(), "book").await {
        streams.push(stream);
        assert!(streams.len() < 2_000, "all streams were taken");
    }
    assert_eq!(
        misbehaviour(&mut victim, hostile.key).await,
        Misbehaviour::TooManyStreams
    );
    victim.wait(is_disconnected(hostile.key)).await;
    drop(streams);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_18_random_bytes_on_every_protocol_do_no_harm() {
    let mut victim = Node::start(1, TCP).await;
    let hostile = Hostile::attack(66, &mut victim).await;
    for what in ["negotiate", "exec", "settle", "book", "blob"] {
        for round in 0..4_u8 {
            let mut noise = vec![0; 4_096];
            blake3::Hasher::new()
                .update(what.as_bytes())
                .update(&[round])
                .finalize_xof()
                .fill(&mut noise);
            let mut stream = hostile.open(victim.key(), what).await;
            let _ = stream.write_all(&noise).await;
            let _ = stream.close().await;
            if what == "blob" {
                victim.wait(refuse_blob).await;
            }
            assert_cut_or_refused(stream).await;
        }
    }
    let mut honest = Node::start(2, TCP).await;
    honest.connect(&mut victim).await;
    honest
        .send(victim.key(), Channel::Negotiate, b"alive".to_vec())
        .await;
    let key = honest.key();
    let alive = victim
        .wait(|event| match event {
            TransportEvent::Frame(frame) if frame.from == key => Some(frame.bytes),
            _ => None,
        })
        .await;
    assert_eq!(alive, b"alive");
}

fn refuse_blob(event: TransportEvent) -> Option<()> {
    match event {
        TransportEvent::BlobRequested { reply, .. } => reply.send(None).ok(),
        _ => None,
    }
}

/// A frame stream ends without a byte; a blob stream may end with the nine of a refusal.
async fn assert_cut_or_refused(mut stream: libp2p::Stream) {
    let mut said = Vec::new();
    let reading = stream.read_to_end(&mut said);
    let _ = tokio::time::timeout(crate::PATIENCE, reading)
        .await
        .unwrap();
    assert!(said.is_empty() || said == [0; 9], "{said:?}");
}

/// A wire that goes dead without a word: both ends stay open, and nothing passes any more.
struct Wire {
    address: libp2p::Multiaddr,
    cut: oneshot::Sender<()>,
}

impl Wire {
    async fn to(address: &libp2p::Multiaddr) -> Self {
        let there = ("127.0.0.1", tcp_port(address));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let here = listener.local_addr().unwrap().port();
        let (cut, is_cut) = oneshot::channel();
        tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(there).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                _ = is_cut => std::future::pending().await,
            }
        });
        Self {
            address: format!("/ip4/127.0.0.1/tcp/{here}").parse().unwrap(),
            cut,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_07_a_half_open_peer_is_noticed_by_both_sides() {
    let with_short_pings = |seed| {
        let mut settings = config(seed, TCP);
        settings.limits.ping_interval = Duration::from_millis(200);
        settings.limits.ping_timeout = Duration::from_millis(800);
        settings
    };
    let mut one = Node::start_with(with_short_pings(1)).await;
    let mut two = Node::start_with(with_short_pings(2)).await;
    let wire = Wire::to(&two.address).await;
    one.dial_at(two.key(), wire.address.clone()).await;
    one.wait(is_connected(two.key())).await;
    two.wait(is_connected(one.key())).await;
    wire.cut.send(()).unwrap();
    one.wait(is_disconnected(two.key())).await;
    two.wait(is_disconnected(one.key())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_06_a_peer_that_stalls_its_handshake_is_cut() {
    let mut settings = config(1, TCP);
    settings.limits.handshake = Duration::from_millis(400);
    let victim = Node::start_with(settings).await;
    let mut silent = TcpStream::connect(("127.0.0.1", tcp_port(&victim.address)))
        .await
        .unwrap();
    let mut said = Vec::new();
    let ended = tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut said);
    let _ = tokio::time::timeout(crate::PATIENCE, ended).await.unwrap();
}

/// Connections that come from an address of their own on loopback, and say nothing.
async fn flood(port: u16, connections: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let victim = (std::net::Ipv4Addr::LOCALHOST, port).into();
        streams.push(socket.connect(victim).await.unwrap());
    }
    streams
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_08_a_flood_of_connections_leaves_honest_peers_served() {
    const FLOOD: usize = 1_000;
    let mut settings = config(1, TCP);
    settings.lan = false;
    settings.limits.connections_per_ip = 4;
    // Nothing of the flood goes by itself while the test looks.
    settings.limits.handshake = Duration::from_secs(3_600);
    let mut victim = Node::start_with(settings).await;
    let mut friend = Node::start(2, TCP).await;
    friend.connect(&mut victim).await;
    let before = resident_bytes();
    let flood = flood(tcp_port(&victim.address), FLOOD).await;

    // Those over the limit are closed; four stay, and wait for a handshake.
    let mut byte = [0];
    let mut open: Vec<TcpStream> = flood;
    let all_but_four_closed = async {
        while open.len() > 4 {
            open.retain(|stream| match stream.try_read(&mut byte) {
                Ok(0) => false,
                Ok(_) => true,
                Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
            });
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::PATIENCE, all_but_four_closed)
        .await
        .unwrap();
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more are held");

    // Who was there is served, and who comes is let in.
    let mut late = Node::start(3, TCP).await;
    late.connect(&mut victim).await;
    for honest in [&friend, &late] {
        let bytes = honest.key().as_bytes().to_vec();
        honest
            .send(victim.key(), Channel::Book, bytes.clone())
            .await;
        assert_eq!(victim.frame().await.2, bytes);
    }
    assert_eq!(open.len(), 4);
}
