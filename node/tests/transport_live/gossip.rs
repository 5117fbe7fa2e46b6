//! Gossip: what the middle one of three nodes accepts goes on, what it rejects or ignores stays.

use std::time::Duration;

use futures::AsyncWriteExt;
use libp2p::StreamProtocol;
use suanli_node::transport::{
    GossipId, PeerKey, PublishFailure, TransportCommand, TransportConfig, TransportEvent, Verdict,
};
use tokio::time::timeout;

use crate::{
    NETWORK, Node, PATIENCE, QUIC, TCP, hostile::Hostile, is_connected, is_disconnected,
    resident_bytes,
};

async fn gossip(node: &mut Node) -> (GossipId, PeerKey, Vec<u8>) {
    node.wait(|event| match event {
        TransportEvent::Gossip { id, from, bytes } => Some((id, from, bytes)),
        _ => None,
    })
    .await
}

async fn judge(node: &Node, id: GossipId, from: PeerKey, verdict: Verdict) {
    node.command(TransportCommand::GossipVerdict { id, from, verdict })
        .await;
}

/// How long gossip is waited for before it is published again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How long until the next try, where nobody may hear yet.
const BEAT: Duration = Duration::from_millis(200);

/// Publishes until a neighbour has subscribed; the message is then on its way.
async fn publish(node: &mut Node, bytes: &[u8]) {
    loop {
        node.command(TransportCommand::Publish {
            bytes: bytes.to_vec(),
        })
        .await;
        // Commands are taken in order, so an answer to this one comes after any failure.
        let (reply, peers) = tokio::sync::oneshot::channel();
        node.command(TransportCommand::Peers { reply }).await;
        peers.await.unwrap();
        let mut heard = node.events.try_recv();
        while let Ok(TransportEvent::LinkMeasured { .. }) = heard {
            heard = node.events.try_recv();
        }
        match heard {
            Ok(TransportEvent::PublishFailed {
                why: PublishFailure::NoPeers,
                ..
            }) => tokio::task::yield_now().await,
            Ok(other) => panic!("unexpected {other:?}"),
            Err(_) => return,
        }
    }
}

/// A neighbour hears what is forwarded once it is in the mesh, which nobody announces: so
/// messages are sent until one arrives.
async fn warm_up(author: &mut Node, middle: &mut Node, far: &mut Node) {
    let warming = async {
        for number in 0_u32.. {
            let message = [b"warm".as_slice(), &number.to_le_bytes()].concat();
            publish(author, &message).await;
            let (id, from, _) = gossip(middle).await;
            judge(middle, id, from, Verdict::Accept).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            if let Ok(TransportEvent::Gossip { .. }) = far.events.try_recv() {
                return;
            }
        }
    };
    timeout(PATIENCE, warming).await.unwrap();
}

async fn only_accepted_messages_travel_on(listen: &str) {
    let mut author = Node::start(1, listen).await;
    let mut judge_node = Node::start(2, listen).await;
    let mut far = Node::start(3, listen).await;
    author.connect(&mut judge_node).await;
    far.connect(&mut judge_node).await;
    warm_up(&mut author, &mut judge_node, &mut far).await;

    for (message, verdict) in [
        (b"good one", Verdict::Accept),
        (b"rejected", Verdict::Reject),
        (b"old news", Verdict::Ignore),
        (b"good two", Verdict::Accept),
    ] {
        publish(&mut author, message).await;
        let (id, from, bytes) = gossip(&mut judge_node).await;
        assert_eq!((from, bytes.as_slice()), (author.key(), message.as_slice()));
        assert_eq!(id, GossipId(*blake3::hash(message).as_bytes()));
        judge(&judge_node, id, from, verdict).await;
    }
    let mut arrived = Vec::new();
    while arrived.len() < 2 {
        let (_, from, bytes) = gossip(&mut far).await;
        assert_eq!(from, judge_node.key());
        if !bytes.starts_with(b"warm") {
            arrived.push(bytes);
        }
    }
    // What comes by the mesh at once and what comes later by its digest may change places.
    arrived.sort();
    assert_eq!(arrived, [b"good one", b"good two"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_accepted_messages_travel_on_by_tcp() {
    only_accepted_messages_travel_on(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_accepted_messages_travel_on_by_quic() {
    only_accepted_messages_travel_on(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversized_message_is_not_published() {
    let mut one = Node::start(1, TCP).await;
    let mut two = Node::start(2, TCP).await;
    two.dial(&one).await;
    one.wait(is_connected(two.key())).await;
    one.command(TransportCommand::Publish {
        bytes: vec![0; (8 << 10) + 1],
    })
    .await;
    let why = one
        .wait(|event| match event {
            TransportEvent::PublishFailed { why, .. } => Some(why),
            _ => None,
        })
        .await;
    assert_eq!(why, PublishFailure::TooLarge);
    // What is published before the other side is ready to hear it is lost, as gossip may be.
    for fill in 0.. {
        publish(&mut one, &[fill; 8 << 10]).await;
        if let Ok(heard) = timeout(AGAIN_AFTER, gossip(&mut two)).await {
            assert_eq!(heard.2.len(), 8 << 10);
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_starts_anew_is_heard_by_those_who_had_not_noticed() {
    let mut one = Node::start(1, QUIC).await;
    let first_life = tokio::runtime::Runtime::new().unwrap();
    let address = one.address.clone();
    let key = one.key();
    let mut two = first_life
        .spawn(async move {
            let two = Node::start(2, QUIC).await;
            two.dial_at(key, address).await;
            two
        })
        .await
        .unwrap();
    one.wait(is_connected(two.key())).await;
    two.wait(is_connected(key)).await;
    // Gone without a word: `one` goes on with a connection that nobody is at the end of.
    first_life.shutdown_background();
    let mut again = Node::start_with(TransportConfig {
        agent: "node 2 in its next life".to_owned(),
        ..crate::config(2, QUIC)
    })
    .await;
    again.dial(&one).await;
    one.wait(is_disconnected(again.key())).await;
    let heard = async {
        for number in 0_u64.. {
            let bytes = number.to_le_bytes().to_vec();
            again.command(TransportCommand::Publish { bytes }).await;
            while again.events.try_recv().is_ok() {}
            if timeout(BEAT, gossip(&mut one)).await.is_ok() {
                return;
            }
        }
    };
    timeout(PATIENCE, heard).await.expect("it is not heard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_offers_arrives_whole() {
    const BURST: u8 = 200;
    let (mut one, mut two) = crate::pair(TCP).await;
    publish(&mut one, b"first").await;
    assert_eq!(gossip(&mut two).await.2, b"first");
    for number in 0..BURST {
        let bytes = vec![number; 700];
        one.command(TransportCommand::Publish { bytes }).await;
    }
    let mut missing: std::collections::BTreeSet<u8> = (0..BURST).collect();
    while !missing.is_empty() {
        missing.remove(&gossip(&mut two).await.2[0]);
    }
}

/// Polls the node's list until the neighbour's score is as wanted.
async fn wait_for_score(node: &Node, is_as_wanted: impl Fn(f64) -> bool) {
    let waiting = async {
        loop {
            let (reply, list) = tokio::sync::oneshot::channel();
            node.command(TransportCommand::Peers { reply }).await;
            let score = list.await.unwrap()[0].gossip_score;
            if score.is_some_and(&is_as_wanted) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_13_rejects_cost_the_forwarder_its_score_and_ignores_do_not() {
    let (mut forwarder, mut judge_node) = crate::pair(TCP).await;
    for (verdict, is_as_wanted) in [
        (Verdict::Ignore, (|score| score >= 0.0) as fn(f64) -> bool),
        (Verdict::Reject, |score| score < -80.0),
    ] {
        for number in 0..3_u8 {
            let message = [number, u8::from(verdict == Verdict::Reject)];
            publish(&mut forwarder, &message).await;
            let (id, from, _) = gossip(&mut judge_node).await;
            judge(&judge_node, id, from, verdict).await;
        }
        wait_for_score(&judge_node, is_as_wanted).await;
    }
}

/// One gossip message in protobuf that subscribes to a few topics nobody has heard of.
fn subscriptions(round: u32) -> Vec<u8> {
    const NAME_BYTES: usize = 2_000;
    let varint = |number: usize| {
        [
            0x80 | number.to_le_bytes()[0],
            (number >> 7).to_le_bytes()[0],
        ]
    };
    let mut rpc = Vec::new();
    for topic in 0..4_u32 {
        let mut name = format!("{round}/{topic}/").into_bytes();
        name.resize(NAME_BYTES, b'x');
        let mut options = vec![0x08, 1, 0x12];
        options.extend(varint(name.len()));
        options.extend(name);
        rpc.push(0x0a);
        rpc.extend(varint(options.len()));
        rpc.extend(options);
    }
    [varint(rpc.len()).as_slice(), &rpc].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_16_a_flood_of_subscriptions_is_not_kept() {
    let mut victim = Node::start(1, TCP).await;
    let hostile = Hostile::start(66, None).await;
    let protocol = format!("/suanli/{NETWORK}/gossip/1.1.0");
    let protocol = StreamProtocol::try_from_owned(protocol).unwrap();
    // To one that does not speak gossip, the victim would not listen.
    let _spoken = hostile.accept_by(protocol.clone());
    victim.dial_at(hostile.key, hostile.address.clone()).await;
    victim.wait(is_connected(hostile.key)).await;
    let mut stream = hostile.open_by(victim.key(), protocol).await.unwrap();
    let before = resident_bytes();
    for round in 0..6_000 {
        stream.write_all(&subscriptions(round)).await.unwrap();
    }
    stream.flush().await.unwrap();
    // It was all read; kept, it would be 48 MB.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more are held");

    let mut honest = Node::start(2, TCP).await;
    honest.connect(&mut victim).await;
    publish(&mut honest, b"offer").await;
    assert_eq!(gossip(&mut victim).await.2, b"offer");
}
