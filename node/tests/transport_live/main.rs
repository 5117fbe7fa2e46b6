//! Transports on loopback, by QUIC and by TCP. Every test waits for events; the limit in
//! [`Node::wait`] only turns a hang into a failure.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do; the lint knows only functions marked as tests"
)]

mod abuse;
mod blobs;
mod frames;
mod gossip;
mod hostile;
mod peers;

use std::time::Duration;

use libp2p::{Multiaddr, multiaddr::Protocol};
use suanli_node::transport::{
    Channel, PeerKey, Transport, TransportCommand, TransportConfig, TransportEvent,
    TransportHandle, TransportLimits,
};
use tokio::{sync::mpsc, time::timeout};

const PATIENCE: Duration = Duration::from_secs(40);
const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const NETWORK: &str = "live-test";

/// One transport and the address that it got.
struct Node {
    handle: TransportHandle,
    events: mpsc::Receiver<TransportEvent>,
    address: Multiaddr,
}

fn config(seed: u8, listen: &str) -> TransportConfig {
    TransportConfig {
        secret: [seed; 32],
        network: NETWORK.to_owned(),
        agent: format!("node {seed}"),
        listen: vec![listen.parse().unwrap()],
        bootstrap: Vec::new(),
        lan: true,
        limits: TransportLimits::default(),
    }
}

impl Node {
    async fn start(seed: u8, listen: &str) -> Self {
        Self::start_with(config(seed, listen)).await
    }

    async fn start_with(config: TransportConfig) -> Self {
        let (handle, mut events) = Transport::start(config).unwrap();
        let first = timeout(PATIENCE, events.recv()).await.unwrap();
        let Some(TransportEvent::Listening { address }) = first else {
            panic!("expected to listen first, got {first:?}");
        };
        Self {
            handle,
            events,
            address,
        }
    }

    fn key(&self) -> PeerKey {
        self.handle.key()
    }

    async fn command(&self, command: TransportCommand) {
        self.handle.send(command).await.unwrap();
    }

    async fn send(&self, to: PeerKey, channel: Channel, bytes: Vec<u8>) {
        self.command(TransportCommand::Send { to, channel, bytes })
            .await;
    }

    async fn dial(&self, other: &Self) {
        self.dial_at(other.key(), other.address.clone()).await;
    }

    async fn dial_at(&self, peer: PeerKey, address: Multiaddr) {
        self.command(TransportCommand::Dial {
            peer: Some(peer),
            addresses: vec![address],
        })
        .await;
    }

    /// Dials and waits until both sides know of each other.
    async fn connect(&mut self, other: &mut Self) {
        self.dial(other).await;
        let (here, there) = (self.key(), other.key());
        self.wait(is_connected(there)).await;
        other.wait(is_connected(here)).await;
    }

    /// Waits for the first event that the filter wants; drops the others.
    async fn wait<T>(&mut self, want: impl Fn(TransportEvent) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let event = self.events.recv().await.expect("the transport has ended");
                if let Some(found) = want(event) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, waiting)
            .await
            .expect("the event did not come")
    }

    async fn frame(&mut self) -> (PeerKey, Channel, Vec<u8>) {
        self.wait(|event| match event {
            TransportEvent::Frame(frame) => Some((frame.from, frame.channel, frame.bytes)),
            _ => None,
        })
        .await
    }
}

fn is_connected(who: PeerKey) -> impl Fn(TransportEvent) -> Option<()> {
    move |event| {
        matches!(event, TransportEvent::Connected { peer, .. } if peer == who).then_some(())
    }
}

fn is_disconnected(who: PeerKey) -> impl Fn(TransportEvent) -> Option<()> {
    move |event| matches!(event, TransportEvent::Disconnected { peer } if peer == who).then_some(())
}

fn tcp_port(address: &Multiaddr) -> u16 {
    let port = address.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    port.unwrap()
}

/// What this process holds in memory. Only a flood that is kept shows in it.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

async fn pair(listen: &str) -> (Node, Node) {
    let mut one = Node::start(1, listen).await;
    let mut two = Node::start(2, listen).await;
    one.connect(&mut two).await;
    (one, two)
}
