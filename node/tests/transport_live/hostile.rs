//! A peer that speaks libp2p but keeps no rule of ours: streams can be opened and fed by hand.

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, SwarmBuilder, identify,
    identity::Keypair,
    noise, ping,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use libp2p_stream::{Control, IncomingStreams, OpenStreamError};
use suanli_node::transport::PeerKey;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{NETWORK, Node, TCP, is_connected};

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    streams: libp2p_stream::Behaviour,
}

/// The peer; its swarm runs in a task until this is dropped.
pub(crate) struct Hostile {
    pub(crate) key: PeerKey,
    pub(crate) address: Multiaddr,
    control: Control,
    task: JoinHandle<()>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn protocol(what: &str) -> StreamProtocol {
    StreamProtocol::try_from_owned(format!("/suanli/{NETWORK}/{what}/1")).unwrap()
}

impl Hostile {
    /// Starts, dials the victim and waits until the victim has announced it.
    pub(crate) async fn attack(seed: u8, victim: &mut Node) -> Self {
        let hostile = Self::start(seed, Some(victim.address.clone())).await;
        victim.wait(is_connected(hostile.key)).await;
        hostile
    }

    pub(crate) async fn start(seed: u8, dial: Option<Multiaddr>) -> Self {
        let keypair = Keypair::ed25519_from_bytes([seed; 32]).unwrap();
        let identity = format!("suanli/{NETWORK}/1");
        let identify = identify::Behaviour::new(identify::Config::new(identity, keypair.public()));
        let streams = libp2p_stream::Behaviour::new();
        let control = streams.new_control();
        let mut swarm = SwarmBuilder::with_existing_identity(keypair)
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                noise::Config::new,
                yamux::Config::default,
            )
            .unwrap()
            .with_behaviour(|_| Behaviour {
                identify,
                ping: ping::Behaviour::default(),
                streams,
            })
            .unwrap()
            .build();
        swarm.listen_on(TCP.parse().unwrap()).unwrap();
        if let Some(victim) = dial {
            swarm.dial(victim).unwrap();
        }
        let (listening, address) = oneshot::channel();
        let mut listening = Some(listening);
        let task = tokio::spawn(async move {
            loop {
                if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                    listening.take().map(|listening| listening.send(address));
                }
            }
        });
        Self {
            key: PeerKey::of_secret(&[seed; 32]),
            address: address.await.unwrap(),
            control,
            task,
        }
    }

    pub(crate) async fn open(&self, victim: PeerKey, what: &str) -> Stream {
        self.try_open(victim, what).await.unwrap()
    }

    pub(crate) async fn try_open(
        &self,
        victim: PeerKey,
        what: &str,
    ) -> Result<Stream, OpenStreamError> {
        self.open_by(victim, protocol(what)).await
    }

    /// Opens a stream of a protocol that need not be one of ours.
    pub(crate) async fn open_by(
        &self,
        victim: PeerKey,
        protocol: StreamProtocol,
    ) -> Result<Stream, OpenStreamError> {
        let mut id = vec![0x00, 0x24, 0x08, 0x01, 0x12, 0x20];
        id.extend_from_slice(victim.as_bytes());
        let id = PeerId::from_bytes(&id).unwrap();
        let mut control = self.control.clone();
        control.open_stream(id, protocol).await
    }

    pub(crate) fn accept(&self, what: &str) -> IncomingStreams {
        self.accept_by(protocol(what))
    }

    pub(crate) fn accept_by(&self, protocol: StreamProtocol) -> IncomingStreams {
        self.control.clone().accept(protocol).unwrap()
    }
}
