//! Peers that break the rules of frames.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use suanli_node::transport::{Channel, Misbehaviour, PeerKey, TransportEvent};

use crate::{Node, TCP, config, hostile::Hostile, is_disconnected};

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
        assert!(streams.len() < 40, "all streams were taken");
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

/// A frame stream ends without a byte; a blob stream may end with the nine of a refusal.
async fn assert_cut_or_refused(mut stream: libp2p::Stream) {
    let mut said = Vec::new();
    let reading = stream.read_to_end(&mut said);
    let _ = tokio::time::timeout(crate::PATIENCE, reading)
        .await
        .unwrap();
    assert!(said.is_empty() || said == [0; 9], "{said:?}");
}
