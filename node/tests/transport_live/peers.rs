//! Connections: who finds whom, who is refused, and what is said about it.

use std::time::{Duration, Instant};

use libp2p::{Multiaddr, multiaddr::Protocol};
use suanli_node::transport::{
    CallReader, CallWriter, Channel, DialFailure, PeerKey, Transport, TransportCommand,
    TransportConfig, TransportError, TransportEvent,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::timeout,
};

use crate::{Node, QUIC, TCP, config, is_connected, is_disconnected, tcp_port};

async fn dial_failure(node: &mut Node) -> DialFailure {
    node.wait(|event| match event {
        TransportEvent::DialFailed { why, .. } => Some(why),
        TransportEvent::Connected { .. } => panic!("a connection came about"),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_with_different_names_do_not_talk() {
    for listen in [TCP, QUIC] {
        let mut here = Node::start(1, listen).await;
        let there = Node::start_with(TransportConfig {
            network: "another".to_owned(),
            ..config(2, listen)
        })
        .await;
        here.dial(&there).await;
        assert!(matches!(
            dial_failure(&mut here).await,
            DialFailure::WrongNetwork | DialFailure::Closed
        ));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_else_at_the_address_is_not_taken_for_the_peer() {
    let mut one = Node::start(1, QUIC).await;
    let two = Node::start(2, QUIC).await;
    let expected = PeerKey::of_secret(&[3; 32]);
    one.dial_at(expected, two.address.clone()).await;
    assert_eq!(dial_failure(&mut one).await, DialFailure::WrongPeer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_over_the_limit_are_refused_and_the_others_stay() {
    let mut crowded = config(1, TCP);
    crowded.limits.connections_in = 2;
    let mut crowded = Node::start_with(crowded).await;
    let mut friends = Vec::new();
    for seed in [2, 3] {
        let mut friend = Node::start(seed, TCP).await;
        friend.connect(&mut crowded).await;
        friends.push(friend);
    }
    for seed in 4..12 {
        let mut late = Node::start(seed, TCP).await;
        late.dial(&crowded).await;
        assert!(matches!(
            dial_failure(&mut late).await,
            DialFailure::Closed | DialFailure::Unreachable(_)
        ));
    }
    for friend in &friends {
        friend
            .send(crowded.key(), Channel::Book, b"still here".to_vec())
            .await;
        assert_eq!(crowded.frame().await.2, b"still here");
    }
    // Its own dials have places of their own.
    let mut chosen = Node::start(20, TCP).await;
    crowded.connect(&mut chosen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_port_is_named() {
    for listen in [TCP, QUIC] {
        let first = Node::start(1, listen).await;
        let second = Transport::start(TransportConfig {
            listen: vec![first.address.clone()],
            ..config(2, TCP)
        });
        let busy = TransportError::PortBusy {
            address: first.address.clone(),
        };
        assert_eq!(second.err(), Some(busy));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_network_name_is_refused() {
    for name in ["", "two words", "up/down", "北京"] {
        let network = name.to_owned();
        let started = Transport::start(TransportConfig {
            network,
            ..config(1, TCP)
        });
        assert_eq!(started.err(), Some(TransportError::NetworkName));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_peer_is_cut_and_refused_until_it_is_unblocked() {
    let (mut one, mut two) = crate::pair(TCP).await;
    one.command(TransportCommand::Block {
        peer: two.key(),
        until: Instant::now() + Duration::from_secs(3_600),
    })
    .await;
    two.wait(is_disconnected(one.key())).await;
    one.wait(is_disconnected(two.key())).await;

    two.dial(&one).await;
    assert!(matches!(
        dial_failure(&mut two).await,
        DialFailure::Closed | DialFailure::Unreachable(_)
    ));
    one.command(TransportCommand::Unblock { peer: two.key() })
        .await;
    two.connect(&mut one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_peer_that_comes_back_is_found_again() {
    for listen in [TCP, QUIC] {
        let mut hub = Node::start(1, listen).await;
        let address = hub.address.clone();
        let named = address.clone().with(Protocol::P2p(peer_id(hub.key())));
        let mut node = Node::start_with(TransportConfig {
            bootstrap: vec![named],
            ..config(2, listen)
        })
        .await;
        hub.wait(is_connected(node.key())).await;
        node.wait(is_connected(hub.key())).await;
        let key = hub.key();
        drop(hub);
        node.wait(is_disconnected(key)).await;
        let mut hub = restart(TransportConfig {
            listen: vec![address],
            ..config(1, listen)
        })
        .await;
        hub.wait(is_connected(node.key())).await;
    }
}

/// The old listener goes when its engine ends, which nobody announces.
async fn restart(config: TransportConfig) -> Node {
    let address = config.listen[0].clone();
    let free = async {
        loop {
            match Transport::start(config.clone()) {
                Ok((handle, events)) => {
                    return Node {
                        handle,
                        events,
                        address,
                    };
                }
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    timeout(crate::PATIENCE, free).await.unwrap()
}

fn peer_id(key: PeerKey) -> libp2p::PeerId {
    let mut id = vec![0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
    id.extend_from_slice(key.as_bytes());
    libp2p::PeerId::from_bytes(&id).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_in_its_own_bootstrap_list_finds_the_others() {
    let former = Node::start(1, TCP).await;
    let own = former.address.clone();
    drop(former);
    let mut hub = Node::start(2, TCP).await;
    let mut node = restart(TransportConfig {
        listen: vec![own.clone()],
        bootstrap: vec![own, hub.address.clone()],
        ..config(1, TCP)
    })
    .await;
    node.wait(is_connected(hub.key())).await;
    hub.wait(is_connected(node.key())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_are_listed_with_what_a_person_wants_to_know() {
    let (one, two) = crate::pair(QUIC).await;
    let (reply, list) = oneshot::channel();
    one.command(TransportCommand::Peers { reply }).await;
    let list = list.await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].peer, two.key());
    assert_eq!(list[0].address, two.address);
    assert!(list[0].agent.starts_with("node 2 "));
    assert!(!list[0].inbound);
    assert_eq!(list[0].connections, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abuse_10_a_node_outside_lan_mode_dials_no_private_address() {
    let two = Node::start(2, TCP).await;
    let mut one = Node::start_with(TransportConfig {
        lan: false,
        ..config(1, TCP)
    })
    .await;
    one.dial(&two).await;
    assert_eq!(dial_failure(&mut one).await, DialFailure::NoAddress);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_dial_each_other_at_once_are_announced_once_and_talk() {
    for listen in [TCP, QUIC] {
        let mut one = Node::start(1, listen).await;
        let mut two = Node::start(2, listen).await;
        one.dial(&two).await;
        two.dial(&one).await;
        one.wait(is_connected(two.key())).await;
        two.wait(is_connected(one.key())).await;
        talk(&mut one, &mut two).await;
    }
}

/// A wire on which the caller is answered only once it is let through.
async fn held_wire(node: &Node) -> (Multiaddr, oneshot::Sender<()>) {
    let there = ("127.0.0.1", tcp_port(&node.address));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let here = listener.local_addr().unwrap().port();
    let (let_through, may_pass) = oneshot::channel();
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        may_pass.await.unwrap();
        let mut far = TcpStream::connect(there).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    });
    let address = format!("/ip4/127.0.0.1/tcp/{here}");
    (address.parse().unwrap(), let_through)
}

/// One frame each way; nothing that went before may have failed.
async fn talk(one: &mut Node, two: &mut Node) {
    one.send(two.key(), Channel::Exec, b"one".to_vec()).await;
    two.send(one.key(), Channel::Exec, b"two".to_vec()).await;
    for (node, expected) in [(one, b"two"), (two, b"one")] {
        let bytes = node
            .wait(|event| match event {
                TransportEvent::Frame(frame) => Some(frame.bytes),
                TransportEvent::SendFailed { .. }
                | TransportEvent::Connected { .. }
                | TransportEvent::Disconnected { .. } => panic!("{event:?}"),
                _ => None,
            })
            .await;
        assert_eq!(bytes, expected);
    }
}

async fn connections(node: &Node) -> usize {
    let (reply, list) = oneshot::channel();
    node.command(TransportCommand::Peers { reply }).await;
    list.await
        .unwrap()
        .iter()
        .map(|peer| peer.connections)
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_crosses_late_leaves_the_first_connection_alone() {
    let mut one = Node::start(1, TCP).await;
    let mut two = Node::start(2, TCP).await;
    let (wire, let_through) = held_wire(&two).await;
    one.dial_at(two.key(), wire).await;
    two.connect(&mut one).await;
    let since = Instant::now();
    // Long enough that no clock would call these two dials simultaneous.
    while since.elapsed() < Duration::from_secs(1) {
        talk(&mut one, &mut two).await;
    }
    let_through.send(()).unwrap();
    let both_stand = async {
        while connections(&one).await < 2 || connections(&two).await < 2 {
            talk(&mut one, &mut two).await;
        }
    };
    timeout(crate::PATIENCE, both_stand).await.unwrap();
    talk(&mut one, &mut two).await;
}

/// A side of a call.
type Side = (CallReader, CallWriter);

/// One frame each way on a call.
async fn talk_on((hears, asks): &mut Side, (hears_too, answers): &mut Side) {
    asks.send(b"one").await.unwrap();
    assert_eq!(hears_too.receive(10).await.unwrap().unwrap(), b"one");
    answers.send(b"two").await.unwrap();
    assert_eq!(hears.receive(10).await.unwrap().unwrap(), b"two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_goes_on_while_its_connection_is_one_too_many() {
    let settings = |seed| {
        let mut settings = config(seed, TCP);
        settings.limits.connections_kept = 1;
        settings.limits.surplus_lingers = Duration::ZERO;
        settings
    };
    let mut one = Node::start_with(settings(1)).await;
    let mut two = Node::start_with(settings(2)).await;
    let (wire, let_through) = held_wire(&two).await;
    one.dial_at(two.key(), wire).await;
    two.connect(&mut one).await;
    let (to, (reply, call)) = (two.key(), oneshot::channel());
    one.command(TransportCommand::Call { to, reply }).await;
    let mut call = call.await.unwrap().unwrap().split();
    let called = |event| match event {
        TransportEvent::Called { call, .. } => Some(call.split()),
        _ => None,
    };
    let mut called = two.wait(called).await;
    talk_on(&mut call, &mut called).await;

    let_through.send(()).unwrap();
    let counts = async |count: usize| {
        while connections(&one).await != count || connections(&two).await != count {
            tokio::task::yield_now().await;
        }
    };
    timeout(crate::PATIENCE, counts(2)).await.unwrap();
    // Long enough that whoever closes has looked a few times.
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        talk_on(&mut call, &mut called).await;
    }
    drop((call, called));
    timeout(crate::PATIENCE, counts(1)).await.unwrap();
}
