//! Frames: order, latency, and what becomes of those that can't be sent.

use std::time::{Duration, Instant};

use suanli_node::transport::{
    Channel, PeerKey, SendFailure, TransportCommand, TransportEvent, TransportLimits,
};

use crate::{Node, QUIC, TCP, config, is_disconnected, pair};

async fn frames_keep_their_order_both_ways(listen: &str) {
    const FRAMES: u32 = 500;
    let (mut one, mut two) = pair(listen).await;
    let (first, second) = (one.key(), two.key());
    for number in 0..FRAMES {
        // Frames wait in a small queue; the other side takes them as they come.
        one.send(second, Channel::Exec, number.to_le_bytes().to_vec())
            .await;
        two.send(first, Channel::Exec, number.to_le_bytes().to_vec())
            .await;
        for (node, from) in [(&mut two, first), (&mut one, second)] {
            let (sender, channel, bytes) = node.frame().await;
            assert_eq!((sender, channel), (from, Channel::Exec));
            assert_eq!(bytes, number.to_le_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_keep_their_order_both_ways_by_tcp() {
    frames_keep_their_order_both_ways(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_keep_their_order_both_ways_by_quic() {
    frames_keep_their_order_both_ways(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_in_the_queue_arrives_whole_and_in_order() {
    let (one, mut two) = pair(TCP).await;
    for number in 0..48_u8 {
        one.send(two.key(), Channel::Book, vec![number; 1_000])
            .await;
    }
    for number in 0..48_u8 {
        assert_eq!(two.frame().await.2, vec![number; 1_000]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_channel_carries_frames_up_to_its_limit() {
    let (mut one, mut two) = pair(QUIC).await;
    let limits = TransportLimits::default().frame_bytes;
    for (channel, limit) in [
        (Channel::Negotiate, limits.negotiate),
        (Channel::Exec, limits.exec),
        (Channel::Settle, limits.settle),
        (Channel::Book, limits.book),
    ] {
        let limit = usize::try_from(limit).unwrap();
        one.send(two.key(), channel, vec![1; limit + 1]).await;
        assert_eq!(send_failure(&mut one).await, SendFailure::TooLarge);
        one.send(two.key(), channel, vec![2; limit]).await;
        let (_, arrived_by, bytes) = two.frame().await;
        assert_eq!((arrived_by, bytes.len()), (channel, limit));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_before_a_clean_stop_arrives() {
    for listen in [TCP, QUIC] {
        let (one, mut two) = pair(listen).await;
        let key = one.key();
        one.send(two.key(), Channel::Settle, vec![0; 1_000]).await;
        assert_eq!(two.frame().await.2[0], 0);
        for number in 1..=30_u8 {
            one.send(two.key(), Channel::Settle, vec![number; 1_000])
                .await;
        }
        let Node { handle, events, .. } = one;
        drop(handle);
        for number in 1..=30_u8 {
            assert_eq!(two.frame().await.2[0], number);
        }
        two.wait(is_disconnected(key)).await;
        drop(events);
    }
}

async fn send_failure(node: &mut Node) -> SendFailure {
    node.wait(|event| match event {
        TransportEvent::SendFailed { why, .. } => Some(why),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_to_nobody_is_reported() {
    let mut one = Node::start(1, TCP).await;
    let stranger = PeerKey::of_secret(&[9; 32]);
    one.send(stranger, Channel::Settle, vec![1]).await;
    assert_eq!(send_failure(&mut one).await, SendFailure::NoAddress);

    let addresses = vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()];
    one.command(TransportCommand::AddAddresses {
        peer: stranger,
        addresses,
    })
    .await;
    one.send(stranger, Channel::Settle, vec![1]).await;
    assert_eq!(send_failure(&mut one).await, SendFailure::Unreachable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_to_a_known_address_dials_first() {
    let one = Node::start(1, TCP).await;
    let mut two = Node::start(2, TCP).await;
    one.command(TransportCommand::AddAddresses {
        peer: two.key(),
        addresses: vec![two.address.clone()],
    })
    .await;
    one.send(two.key(), Channel::Negotiate, b"request".to_vec())
        .await;
    assert_eq!(two.frame().await.2, b"request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_read_fills_its_own_queue_only() {
    let mut limits = TransportLimits::default();
    limits.queue_bytes = 200 << 10;
    let mut one = Node::start_with(suanli_node::transport::TransportConfig {
        limits,
        ..config(1, TCP)
    })
    .await;
    let mut deaf = Node::start(2, TCP).await;
    let mut good = Node::start(3, TCP).await;
    one.connect(&mut deaf).await;
    one.connect(&mut good).await;
    // `deaf` takes no event any more, so its readers stop and its windows fill.
    let full = async {
        loop {
            one.send(deaf.key(), Channel::Exec, vec![0; 100 << 10])
                .await;
            if let Ok(TransportEvent::SendFailed { to, why, .. }) = one.events.try_recv() {
                return (to, why);
            }
        }
    };
    let failed = tokio::time::timeout(crate::PATIENCE, full).await.unwrap();
    assert_eq!(failed, (deaf.key(), SendFailure::QueueFull));
    // The frames that were on their way to the full queue are reported one by one, and a driver
    // that doesn't listen to that stops its own node.
    let listening = async { while one.events.recv().await.is_some() {} };
    let sending = TransportCommand::Send {
        to: good.key(),
        channel: Channel::Exec,
        bytes: b"still served".to_vec(),
    };
    let served = async {
        one.handle.send(sending).await.unwrap();
        good.frame().await.2
    };
    tokio::select! {
        bytes = served => assert_eq!(bytes, b"still served"),
        () = listening => panic!("the transport has ended"),
    }
}

/// Prints, for a person or a benchmark to read; asserts no time.
async fn echo_latency(listen: &str) {
    const ROUNDS: usize = 2_000;
    let (mut one, mut two) = pair(listen).await;
    let (first, second) = (one.key(), two.key());
    let echo = tokio::spawn(async move {
        for _ in 0..ROUNDS {
            let (_, channel, bytes) = two.frame().await;
            two.send(first, channel, bytes).await;
        }
        two
    });
    let mut rounds: Vec<Duration> = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let sent = Instant::now();
        one.send(second, Channel::Negotiate, vec![7; 600]).await;
        assert_eq!(one.frame().await.2.len(), 600);
        rounds.push(sent.elapsed());
    }
    echo.await.unwrap();
    rounds.sort_unstable();
    let one_way = |part: usize| rounds[ROUNDS * part / 100] / 2;
    println!(
        "frame of 600 bytes, one way, {listen}: p50 {:?}, p99 {:?}",
        one_way(50),
        one_way(99)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_latency_by_tcp() {
    echo_latency(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_latency_by_quic() {
    echo_latency(QUIC).await;
}
