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
    call::OnConnection,
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
    /// The first that is not over is the one on which streams are opened.
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
    pub(super) parked: Vec<(Inbound, ConnectionId, Stream)>,
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
///
/// ```text
/// kept ── newer ones came ──▶ over ── no call on it, and its time is up ──▶ closed
///   ▲                          │
///   └───── newer ones broke ───┘
/// ```
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) address: Multiaddr,
    pub(super) inbound: bool,
    pub(super) opened: Instant,
    /// When the last ping was answered.
    pub(super) heard: Instant,
    pub(super) rtt: Option<Duration>,
    /// Since when there are enough newer ones.
    pub(super) over: Option<Instant>,
    /// Calls that run on it have clones of this.
    pub(super) calls: OnConnection,
}

impl Connection {
    pub(super) fn new(id: ConnectionId, address: Multiaddr, inbound: bool) -> Self {
        let now = Instant::now();
        Self {
            id,
            address,
            inbound,
            opened: now,
            heard: now,
            rtt: None,
            over: None,
            calls: OnConnection::default(),
        }
    }

    fn has_calls(&self) -> bool {
        Arc::strong_count(&self.calls) > 1
    }
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

    /// The one on which streams are opened.
    pub(super) fn used(&self) -> Option<&Connection> {
        let mut all = self.connections.iter();
        all.find(|open| open.over.is_none())
            .or_else(|| self.connections.first())
    }

    /// The one on which calls are opened: it stays the longest, on both sides.
    pub(super) fn newest(&self) -> Option<&Connection> {
        self.connections.iter().max_by_key(|open| open.opened)
    }

    /// What runs on a connection holds on to it by this.
    pub(super) fn calls_on(&self, connection: ConnectionId) -> Option<OnConnection> {
        let mut all = self.connections.iter();
        let on = all.find(|open| open.id == connection)?;
        Some(Arc::clone(&on.calls))
    }

    /// Notes which connections are over: those that are longest open, above so many.
    pub(super) fn note_over(&mut self, kept: usize, now: Instant) {
        let over = self.connections.len().saturating_sub(kept);
        let mut by_age: Vec<&mut Connection> = self.connections.iter_mut().collect();
        by_age.sort_by_key(|open| open.opened);
        for (nth, open) in by_age.into_iter().enumerate() {
            open.over = (nth < over).then(|| open.over.unwrap_or(now));
        }
    }

    pub(super) fn has_over(&self) -> bool {
        self.connections.iter().any(|open| open.over.is_some())
    }

    /// Those to be closed now. Of those that are over, the ones that have been for so long and
    /// have no calls on them; and as many as there are above `most` in all, with calls or
    /// without, so that a place is free for the peer's next dial.
    pub(super) fn to_close(
        &self,
        (most, lingers): (usize, Duration),
        now: Instant,
        is_opening: impl Fn(ConnectionId) -> bool,
    ) -> Vec<ConnectionId> {
        let is_busy = |open: &Connection| open.has_calls() || is_opening(open.id);
        let over = self.connections.iter();
        let mut over: Vec<&Connection> = over.filter(|open| open.over.is_some()).collect();
        over.sort_by_key(|open| (is_busy(open), open.opened));
        let at_once = self.connections.len().saturating_sub(most);
        let is_due = |open: &Connection| {
            let since = open.over.map(|since| now.saturating_duration_since(since));
            since.is_some_and(|since| since >= lingers) && !is_busy(open)
        };
        let all = over.into_iter().enumerate();
        all.filter(|(nth, open)| *nth < at_once || is_due(open))
            .map(|(_, open)| open.id)
            .collect()
    }

    /// Lets outboxes go that depend on another than the used connection: what a writer has, it
    /// brings to an end there. Returns the channels whose frames wait for a stream again.
    pub(super) fn move_outboxes(&mut self) -> Vec<Channel> {
        let Some(used) = self.used().map(|used| used.id) else {
            return Vec::new();
        };
        let mut waiting = Vec::new();
        for channel in Channel::ALL {
            let slot = &mut self.outboxes[channel.index()];
            let Some(outbox) = slot.take_if(|outbox| outbox.connection() != Some(used)) else {
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
            // The same connection's word for itself may change, and its process does not.
            Some((_, since)) if *since >= opened => false,
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

    /// Whether all connections are that old, and no calls are on them.
    pub(super) fn is_idle_since(&self, then: Instant) -> bool {
        let mut all = self.connections.iter();
        all.all(|open| open.opened <= then && !open.has_calls())
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
        let used = self.used().filter(|_| self.announced)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    const LINGERS: Duration = Duration::from_secs(5);

    fn id(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    /// A peer with so many connections, opened a second after each other.
    fn peer(count: usize, start: Instant) -> Peer {
        let mut peer = Peer::new(PeerKey::new([1; 32]), 0, &TransportLimits::default());
        for number in 0..count {
            let mut open = Connection::new(id(number), Multiaddr::empty(), number % 2 == 0);
            open.opened = start + Duration::from_secs(u64::try_from(number).unwrap());
            peer.opened_one(open);
        }
        peer
    }

    fn closed(peer: &Peer, now: Instant) -> Vec<ConnectionId> {
        peer.to_close((4, LINGERS), now, |_| false)
    }

    #[test]
    fn the_oldest_connections_linger_and_are_closed() {
        let start = Instant::now();
        let mut peer = peer(4, start);
        peer.note_over(2, start);
        assert!(closed(&peer, start).is_empty());
        // Noted again, they are over since they were.
        peer.note_over(2, start + LINGERS);
        assert_eq!(closed(&peer, start + LINGERS), [id(0), id(1)]);
        assert_eq!(peer.used().map(|used| used.id), Some(id(2)));
        assert_eq!(peer.newest().map(|newest| newest.id), Some(id(3)));
        // Where the newer ones broke, the older ones stay.
        peer.connections.retain(|open| open.id < id(2));
        peer.note_over(2, start + LINGERS);
        assert!(closed(&peer, start + 2 * LINGERS).is_empty());
    }

    #[test]
    fn a_connection_stays_until_the_last_call_on_it_has_ended() {
        let start = Instant::now();
        let mut peer = peer(4, start);
        peer.note_over(2, start);
        let late = start + 100 * LINGERS;
        let call = peer.calls_on(id(0)).unwrap();
        let other = peer.calls_on(id(0)).unwrap();
        assert_eq!(closed(&peer, late), [id(1)]);
        let opening = peer.to_close((4, LINGERS), late, |on| on == id(1));
        assert!(opening.is_empty(), "one is being opened there");
        drop(call);
        assert_eq!(closed(&peer, late), [id(1)]);
        drop(other);
        assert_eq!(closed(&peer, late), [id(0), id(1)]);
        assert!(peer.calls_on(id(9)).is_none());
    }

    #[test]
    fn abuse_08_calls_hold_no_more_connections_than_a_peer_may_have() {
        let start = Instant::now();
        let mut peer = peer(5, start);
        peer.note_over(2, start);
        let calls: Vec<_> = [0, 2].map(|on| peer.calls_on(id(on))).into();
        assert_eq!(
            closed(&peer, start),
            [id(1)],
            "one without calls goes first"
        );
        let more = peer.calls_on(id(1));
        assert_eq!(closed(&peer, start), [id(0)], "and else the oldest");
        drop((calls, more));
    }
}
