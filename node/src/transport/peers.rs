//! What the engine knows of one peer.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use libp2p::{Multiaddr, Stream, swarm::ConnectionId};
use tokio::sync::{Semaphore, mpsc};

use super::{
    Channel, PeerKey, PeerStatus, TransportLimits,
    budget::{Budget, room},
    frames::{Outgoing, drain},
    streams::Inbound,
};
use crate::rate::Rate;

/// Streams over its limit that a peer may open before it is disconnected.
const REFUSED_STREAMS_MAX: u32 = 16;
/// A sender has one stream per channel; while it moves to another connection, the former ones
/// bring the last of their frames.
const READERS_PER_CHANNEL: u8 = 3;
/// Longest description of itself that is kept of a peer.
const AGENT_CHARS: usize = 64;

/// A peer that is connected, or being dialled because something waits for it.
///
/// ```text
///  (new) ── first connection ──▶ connected ── identify: our network ──▶ announced
///    │                               │                                      │
///    └── dial failed ──▶ (gone) ◀────┴──────── last connection closed ──────┘
/// ```
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) key: PeerKey,
    /// Tells this connected time from the next one in reports that come late.
    pub(super) session: u64,
    /// The first is the one on which streams are opened.
    pub(super) connections: Vec<Connection>,
    pub(super) announced: bool,
    /// What the process behind the newest identified connection says of itself, and since when
    /// that connection is open.
    pub(super) process: Option<(String, Instant)>,
    pub(super) wrong_network: bool,
    pub(super) agent: String,
    pub(super) budget: Arc<Budget>,
    pub(super) queue_room: Arc<Semaphore>,
    pub(super) outboxes: [Option<Outbox>; Channel::COUNT],
    /// Streams that came before the peer was announced.
    pub(super) parked: Vec<(Inbound, Stream)>,
    pub(super) serves: usize,
    /// Places for calls that it makes.
    pub(super) calls: Arc<Semaphore>,
    since: SystemTime,
    readers: [u8; Channel::COUNT],
    refused_streams: u32,
    gossip: Rate,
    gossip_reported: Option<Instant>,
}

/// One connection with a peer.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) address: Multiaddr,
    pub(super) inbound: bool,
    pub(super) opened: Instant,
    /// When the last ping was answered.
    pub(super) heard: Instant,
    pub(super) rtt: Option<Duration>,
}

/// The way out for one channel.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) serial: u64,
    pub(super) queue: mpsc::Sender<Outgoing>,
    pub(super) state: OutboxState,
}

/// ```text
/// Waiting ── peer announced ──▶ Opening ── stream open ──▶ Writing
/// ```
#[derive(Debug)]
pub(super) enum OutboxState {
    /// No connection yet.
    Waiting(mpsc::Receiver<Outgoing>),
    /// The stream is being negotiated on a connection.
    Opening(mpsc::Receiver<Outgoing>, ConnectionId),
    /// A writer has the queue.
    Writing(ConnectionId),
}

impl Outbox {
    /// The connection that it depends on.
    pub(super) const fn connection(&self) -> Option<ConnectionId> {
        match &self.state {
            OutboxState::Waiting(_) => None,
            OutboxState::Opening(_, id) | OutboxState::Writing(id) => Some(*id),
        }
    }

    /// Ends it. Returns the frames lost that no writer will report.
    pub(super) fn give_up(self) -> usize {
        match self.state {
            OutboxState::Waiting(mut queue) | OutboxState::Opening(mut queue, _) => {
                drain(&mut queue)
            }
            OutboxState::Writing(_) => 0,
        }
    }
}

impl Peer {
    pub(super) fn new(key: PeerKey, session: u64, limits: &TransportLimits) -> Self {
        Self {
            key,
            session,
            connections: Vec::new(),
            calls: Arc::new(Semaphore::new(limits.calls_per_peer)),
            announced: false,
            process: None,
            wrong_network: false,
            agent: String::new(),
            budget: Arc::new(Budget::new(limits)),
            queue_room: room(limits.queue_bytes, limits),
            outboxes: std::array::from_fn(|_| None),
            parked: Vec::new(),
            serves: 0,
            since: SystemTime::now(),
            readers: [0; Channel::COUNT],
            refused_streams: 0,
            gossip: Rate::new(limits.gossip_per_s, limits.gossip_burst),
            gossip_reported: None,
        }
    }

    /// Takes a connection in.
    ///
    /// A node dials only whom it is not connected to. If a peer calls while we hold an older
    /// connection, then either both called at once and all connections are good, or the older
    /// one broke on the peer's side and nobody told us. No clock can tell these two apart, and a
    /// good connection that is closed loses what was said on it, on both sides if both close the
    /// other's. The peer's own call is good in either case, so we go on with that one, and pings
    /// find out about the others.
    pub(super) fn opened_one(&mut self, connection: Connection) {
        let at = if connection.inbound {
            0
        } else {
            self.connections.len()
        };
        self.connections.insert(at, connection);
    }

    /// The connections that are one too many, longest open first.
    pub(super) fn oldest_above(&self, kept: usize) -> Vec<ConnectionId> {
        let mut by_age: Vec<&Connection> = self.connections.iter().collect();
        by_age.sort_by_key(|open| open.opened);
        let surplus = by_age.len().saturating_sub(kept);
        by_age[..surplus].iter().map(|open| open.id).collect()
    }

    /// Lets outboxes go that depend on another than the first connection: what a writer has, it
    /// brings to an end there. Returns the channels whose frames wait for a stream again.
    pub(super) fn move_outboxes(&mut self) -> Vec<Channel> {
        let Some(first) = self.connections.first().map(|first| first.id) else {
            return Vec::new();
        };
        let mut waiting = Vec::new();
        for channel in Channel::ALL {
            let slot = &mut self.outboxes[channel.index()];
            let Some(outbox) = slot.take_if(|outbox| outbox.connection() != Some(first)) else {
                continue;
            };
            match outbox.state {
                OutboxState::Writing(_) => {}
                OutboxState::Waiting(frames) | OutboxState::Opening(frames, _) => {
                    let state = OutboxState::Waiting(frames);
                    *slot = Some(Outbox { state, ..outbox });
                    waiting.push(channel);
                }
            }
        }
        waiting
    }

    /// Whether the process behind a connection is another one than the last that we heard of,
    /// and its connection the newer.
    pub(super) fn is_reborn(&mut self, connection: ConnectionId, process: &str) -> bool {
        let Some(opened) = self.opened(connection) else {
            return false;
        };
        match &self.process {
            Some((_, since)) if *since > opened => false,
            Some((known, _)) if known == process => false,
            known => {
                let reborn = known.is_some();
                self.process = Some((process.to_owned(), opened));
                reborn
            }
        }
    }

    /// Connections that opened before this one.
    pub(super) fn older_than(&self, connection: ConnectionId) -> Vec<ConnectionId> {
        let Some(opened) = self.opened(connection) else {
            return Vec::new();
        };
        let older = |open: &&Connection| open.id != connection && open.opened <= opened;
        self.connections
            .iter()
            .filter(older)
            .map(|open| open.id)
            .collect()
    }

    fn opened(&self, connection: ConnectionId) -> Option<Instant> {
        self.connections
            .iter()
            .find(|open| open.id == connection)
            .map(|open| open.opened)
    }

    pub(super) fn set_agent(&mut self, claimed: &str) {
        let printable = |c: &char| c.is_ascii_graphic() || *c == ' ';
        self.agent = claimed
            .chars()
            .filter(printable)
            .take(AGENT_CHARS)
            .collect();
    }

    /// Takes a place for a reader, if there is one.
    pub(super) fn reader_begins(&mut self, channel: Channel) -> bool {
        let readers = &mut self.readers[channel.index()];
        let room = *readers < READERS_PER_CHANNEL;
        *readers += u8::from(room);
        room
    }

    pub(super) fn reader_ends(&mut self, channel: Channel) {
        let readers = &mut self.readers[channel.index()];
        *readers = readers.saturating_sub(1);
    }

    /// Counts a stream over the limit and says whether it was one too many.
    pub(super) fn refuses_stream(&mut self) -> bool {
        self.refused_streams += 1;
        self.refused_streams > REFUSED_STREAMS_MAX
    }

    /// Whether a gossip message is within the peer's rate.
    pub(super) fn gossip_in_rate(&self) -> bool {
        self.gossip.charge(1).is_zero()
    }

    /// Whether it is time to tell of gossip over the rate again.
    pub(super) fn reports_gossip_flood(&mut self) -> bool {
        let now = Instant::now();
        let due = self
            .gossip_reported
            .is_none_or(|last| now - last > Duration::from_secs(60));
        if due {
            self.gossip_reported = Some(now);
        }
        due
    }

    pub(super) fn status(&self, gossip_score: Option<f64>) -> Option<PeerStatus> {
        let used = self.connections.first().filter(|_| self.announced)?;
        Some(PeerStatus {
            peer: self.key,
            address: used.address.clone(),
            inbound: used.inbound,
            connections: self.connections.len(),
            since: self.since,
            rtt: self.connections.iter().filter_map(|c| c.rtt).min(),
            gossip_score,
            agent: self.agent.clone(),
        })
    }
}
