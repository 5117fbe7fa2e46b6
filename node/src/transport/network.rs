//! The swarm: which libp2p parts run, and how they are set.

use std::{collections::HashSet, time::Duration};

use libp2p::{
    Swarm, SwarmBuilder,
    gossipsub::{
        self, IdentTopic, MaxCountSubscriptionFilter, MessageAuthenticity, MessageId,
        PeerScoreParams, PeerScoreThresholds, TopicScoreParams, ValidationMode,
        WhitelistSubscriptionFilter,
    },
    identify,
    identity::Keypair,
    noise, ping, quic,
    swarm::NetworkBehaviour,
    tcp, yamux,
};

use super::{
    TransportConfig, TransportError, TransportLimits,
    gate::Gate,
    streams::{Protocols, Streams},
};

const QUIC_IDLE_MS: u32 = 15_000;
/// Streams that one connection may have open: ours are ten, the rest is gossip, identify, ping.
const STREAMS_PER_CONNECTION: usize = 32;
/// Two megabytes in flight move hundreds of MiB/s on a LAN, and bound what a sender can park in
/// our memory.
const QUIC_STREAM_WINDOW: u32 = 2 << 20;
const QUIC_CONNECTION_WINDOW: u32 = 4 << 20;

/// What gossipsub adds to a message around its bytes, and to spare.
const GOSSIP_ENVELOPE: usize = 256;
/// gossipsub measures what it has read, not the message, and reads so much at once: without room
/// for that, a burst of small messages counts as one that is too large, and ends the stream.
const GOSSIP_READ_AHEAD: usize = 8 << 10;

/// Message ids in one announcement of what was heard, or asked for of one peer between two
/// heartbeats. At 34 bytes each they fit where a message does; gossipsub's own 5,000 would be
/// refused by the peer, with the stream that they came on.
const GOSSIP_IDS_MAX: usize = 200;

type Filter = MaxCountSubscriptionFilter<WhitelistSubscriptionFilter>;
pub(super) type Gossip = gossipsub::Behaviour<gossipsub::IdentityTransform, Filter>;

/// The behaviours, asked in this order: the gate refuses before anything else allocates.
#[derive(NetworkBehaviour)]
pub(super) struct Network {
    pub(super) gate: Gate,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) gossip: Gossip,
    pub(super) streams: Streams,
}

/// What identify must say for a peer to be of this network.
pub(super) fn identity_of(network: &str) -> String {
    format!("suanli/{network}/1")
}

pub(super) fn topic_of(network: &str) -> IdentTopic {
    IdentTopic::new(format!("suanli/{network}/offers/1"))
}

pub(super) fn build(config: &TransportConfig) -> Result<Swarm<Network>, TransportError> {
    let protocols = Protocols::of(&config.network).ok_or(TransportError::NetworkName)?;
    let keypair = Keypair::ed25519_from_bytes(config.secret)
        .map_err(|error| TransportError::Setup(error.to_string()))?;
    let behaviour = Network {
        gate: Gate::new(config.limits.clone(), config.lan),
        identify: identify::Behaviour::new(
            identify::Config::new(identity_of(&config.network), keypair.public())
                .with_agent_version(config.agent.clone())
                .with_cache_size(0),
        ),
        ping: ping::Behaviour::new(
            ping::Config::new()
                .with_interval(config.limits.ping_interval)
                .with_timeout(config.limits.ping_timeout),
        ),
        gossip: gossip(config).map_err(TransportError::Setup)?,
        streams: Streams::new(protocols, config.limits.handshake),
    };
    let setup = |error: noise::Error| TransportError::Setup(error.to_string());
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            multiplexer,
        )
        .map_err(setup)?
        .with_quic_config(|quic| quic_limits(quic, &config.limits))
        .with_behaviour(|_| behaviour)
        .map_err(|error| TransportError::Setup(error.to_string()))?
        .with_swarm_config(|swarm| {
            swarm
                .with_max_negotiating_inbound_streams(STREAMS_PER_CONNECTION)
                .with_per_connection_event_buffer_size(16)
                .with_idle_connection_timeout(config.limits.handshake)
        })
        .with_connection_timeout(config.limits.handshake)
        .build();
    Ok(swarm)
}

fn multiplexer() -> yamux::Config {
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(STREAMS_PER_CONNECTION);
    yamux
}

fn quic_limits(mut quic: quic::Config, limits: &TransportLimits) -> quic::Config {
    quic.handshake_timeout = limits.handshake;
    quic.max_idle_timeout = QUIC_IDLE_MS;
    quic.keep_alive_interval = Duration::from_secs(5);
    quic.max_concurrent_stream_limit = u32::try_from(STREAMS_PER_CONNECTION).unwrap_or(u32::MAX);
    quic.max_stream_data = QUIC_STREAM_WINDOW;
    quic.max_connection_data = QUIC_CONNECTION_WINDOW;
    quic
}

/// Gossip that carries signed offers: anonymous at this level, named by content, validated by
/// the driver before it is forwarded, on one topic.
fn gossip(config: &TransportConfig) -> Result<Gossip, String> {
    let topic = topic_of(&config.network);
    let frame_bytes = config.limits.gossip_bytes + GOSSIP_ENVELOPE;
    let settings = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(format!("/suanli/{}/gossip", config.network))
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(|message| MessageId::new(blake3::hash(&message.data).as_bytes()))
        .max_transmit_size(frame_bytes + GOSSIP_READ_AHEAD)
        .max_transmit_size_for_topic(frame_bytes, topic.hash())
        .max_control_message_size(frame_bytes)
        .max_control_messages_sent(GOSSIP_IDS_MAX)
        .heartbeat_initial_delay(Duration::from_millis(100))
        .heartbeat_interval(Duration::from_secs(1))
        .connection_handler_queue_len(256)
        .max_ihave_messages_heartbeat(8)
        .build()
        .map_err(|error| error.to_string())?;
    let filter = MaxCountSubscriptionFilter {
        filter: WhitelistSubscriptionFilter(HashSet::from([topic.hash()])),
        max_subscribed_topics: 1,
        max_subscriptions_per_request: 4,
    };
    let mut gossip =
        Gossip::new_with_subscription_filter(MessageAuthenticity::Anonymous, settings, filter)?;
    gossip.with_peer_score(scores(&topic, config.lan), thresholds())?;
    gossip
        .subscribe(&topic)
        .map_err(|error| error.to_string())?;
    Ok(gossip)
}

/// What raises and lowers a neighbour's score. Offers are rare, so mesh delivery rates say
/// nothing and are off; three rejected messages within a minute put a peer under every
/// threshold, since the counter is squared.
fn scores(topic: &IdentTopic, lan: bool) -> PeerScoreParams {
    let offers = TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 300.0,
        first_message_deliveries_weight: 0.1,
        first_message_deliveries_decay: 0.99,
        first_message_deliveries_cap: 50.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -10.0,
        invalid_message_deliveries_decay: 0.99,
        ..TopicScoreParams::default()
    };
    PeerScoreParams {
        topics: [(topic.hash(), offers)].into(),
        topic_score_cap: 10.0,
        ip_colocation_factor_weight: if lan { 0.0 } else { -5.0 },
        ..PeerScoreParams::default()
    }
}

fn thresholds() -> PeerScoreThresholds {
    PeerScoreThresholds {
        gossip_threshold: -10.0,
        publish_threshold: -40.0,
        graylist_threshold: -80.0,
        accept_px_threshold: 1_000.0,
        opportunistic_graft_threshold: 1.0,
    }
}
