//! The task that owns the swarm and everything that is known about peers.
//!
//! One `select!`: commands of the driver, reports of the stream tasks, events of the swarm, a
//! tick. What the driver is to hear goes through a backlog, so that the engine never waits for
//! the driver: while the backlog holds anything, the swarm is not polled, and peers feel that by
//! flow control.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Stream, Swarm,
    gossipsub::{self, MessageAcceptance, MessageId, PublishError},
    identify, ping,
    swarm::{
        ConnectionId, DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::AbortHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    BlobFailure, Channel, DialFailure, FetchBlob, FetchId, GossipId, Misbehaviour, PeerKey,
    PeerStatus, PublishFailure, SendFailure, TransportCommand, TransportConfig, TransportEvent,
    Verdict,
    addresses::{AddressBook, is_dialable, split_peer},
    blob::{
        Outboard,
        cache::OutboardCache,
        fetch::fetch,
        serve::{ServeSetup, serve},
    },
    bootstrap::Bootstrap,
    call::{CallId, CallStream, Calling},
    frames::{Outgoing, ReaderSetup, read_frames, write_frames},
    network::{Network, NetworkEvent, identity_of, topic_of},
    peers::{Connection, Outbox, OutboxState, Peer},
    streams::{Inbound, OpenError, Purpose, StreamEvent},
};

/// Events that commands may add while the driver does not listen; then commands wait as well.
const BACKLOG_MAX: usize = 512;
const REPORTS: usize = 64;
/// Commands taken in one turn, so that a busy driver does not starve the swarm.
const COMMANDS_AT_ONCE: usize = 32;
const TICK: Duration = Duration::from_millis(500);
/// Longest that a clean stop waits, once for queues and once for connections.
const WIND_DOWN: Duration = Duration::from_secs(1);
/// How long connections may take to close before a peer is let in again.
const RETURN_WAIT: Duration = Duration::from_secs(5);
/// How often a peer is cut to be met anew, at most.
const MEET_AGAIN: Duration = Duration::from_secs(60);
/// How long a peer may take to say what it listens to.
const DEAF_MAX: Duration = Duration::from_secs(15);
/// Gossip doesn't say when a message has left; the last ones get this long.
const GOSSIP_BEAT: Duration = Duration::from_millis(50);

/// What a stream's task tells the engine.
#[derive(Debug)]
pub(super) enum Report {
    /// A reader ended.
    ReaderEnded {
        peer: PeerId,
        session: u64,
        channel: Channel,
        why: Option<Misbehaviour>,
    },
    /// A writer ended and left this many frames behind.
    WriterEnded {
        peer: PeerId,
        session: u64,
        channel: Channel,
        serial: u64,
        lost: usize,
    },
    /// A server wants to know whether the tree is in memory.
    TreeWanted {
        hash: [u8; 32],
        reply: oneshot::Sender<Option<Arc<Outboard>>>,
    },
    /// A serve ended; its tree may be of use again.
    ServeEnded {
        peer: PeerId,
        session: u64,
        tree: Option<Arc<Outboard>>,
    },
    /// A fetch ended.
    FetchEnded {
        id: FetchId,
        result: Result<u64, BlobFailure>,
    },
}

/// Runs until all handles, or the driver's end of the events, are dropped. In the first case it
/// stops cleanly.
pub(super) async fn run(
    swarm: Swarm<Network>,
    own: PeerKey,
    config: TransportConfig,
    commands: mpsc::Receiver<TransportCommand>,
    events: mpsc::Sender<TransportEvent>,
) {
    Engine::new(swarm, own, config, commands, events)
        .run()
        .await;
}

struct Engine {
    own: PeerId,
    swarm: Swarm<Network>,
    config: TransportConfig,
    commands: mpsc::Receiver<TransportCommand>,
    events: mpsc::Sender<TransportEvent>,
    backlog: VecDeque<TransportEvent>,
    report_to: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
    peers: HashMap<PeerId, Peer>,
    /// Those who were cut to be met anew, since when, and whether they are still to be dialled:
    /// when the last connection with them is closed.
    returning: HashMap<PeerId, (Instant, bool)>,
    book: AddressBook,
    bootstrap: Bootstrap,
    fetches: HashMap<FetchId, Fetch>,
    calls: HashMap<CallId, Calling>,
    /// Places for calls that others make.
    called: Arc<Semaphore>,
    serves: usize,
    trees: OutboardCache,
    /// Numbers for sessions and outboxes.
    serial: u64,
}

struct Fetch {
    wanted: FetchBlob,
    state: FetchState,
}

enum FetchState {
    Waiting,
    Opening(ConnectionId),
    Running(AbortHandle),
}

// The loop.
impl Engine {
    fn new(
        swarm: Swarm<Network>,
        own: PeerKey,
        config: TransportConfig,
        commands: mpsc::Receiver<TransportCommand>,
        events: mpsc::Sender<TransportEvent>,
    ) -> Self {
        let (report_to, reports) = mpsc::channel(REPORTS);
        let limits = &config.limits;
        Self {
            own: own.peer_id(),
            swarm,
            commands,
            events,
            backlog: VecDeque::new(),
            report_to,
            reports,
            peers: HashMap::new(),
            returning: HashMap::new(),
            book: AddressBook::new(config.lan, limits.known_peers, limits.addresses_per_peer),
            bootstrap: Bootstrap::new(own, config.bootstrap.clone()),
            fetches: HashMap::new(),
            calls: HashMap::new(),
            called: Arc::new(Semaphore::new(limits.calls)),
            serves: 0,
            trees: OutboardCache::new(limits.outboard_cache_bytes),
            serial: 0,
            config,
        }
    }

    async fn run(mut self) {
        let events = self.events.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let heard = self.backlog.is_empty();
            let roomy = self.backlog.len() < BACKLOG_MAX;
            tokio::select! {
                room = events.reserve(), if !heard => match (room, self.backlog.pop_front()) {
                    (Ok(room), Some(event)) => room.send(event),
                    (Ok(_), None) => {}
                    (Err(_), _) => return,
                },
                command = self.commands.recv(), if roomy => match command {
                    Some(command) => {
                        self.on_command(command);
                        self.take_waiting_commands();
                    }
                    None => return self.wind_down().await,
                },
                Some(report) = self.reports.recv(), if roomy => self.on_report(report),
                event = self.swarm.select_next_some(), if heard => self.on_swarm(event),
                _ = tick.tick() => {
                    if events.is_closed() {
                        return;
                    }
                    self.on_tick();
                }
            }
        }
    }

    /// What came together is done together: one turn of the swarm then serves a whole burst.
    fn take_waiting_commands(&mut self) {
        for _ in 0..COMMANDS_AT_ONCE {
            if self.backlog.len() >= BACKLOG_MAX {
                return;
            }
            let Ok(command) = self.commands.try_recv() else {
                return;
            };
            self.on_command(command);
        }
    }

    /// Lets what is queued leave, then says goodbye, so that peers need not wait for a timeout.
    async fn wind_down(mut self) {
        let mut writers = 0;
        for peer in self.peers.values_mut() {
            for outbox in peer.outboxes.iter_mut().filter_map(Option::take) {
                writers += usize::from(matches!(outbox.state, OutboxState::Writing(_)));
            }
        }
        let mut beat = std::pin::pin!(sleep(GOSSIP_BEAT));
        let mut beaten = false;
        let flushing = async {
            while writers > 0 || !beaten {
                tokio::select! {
                    Some(report) = self.reports.recv() => {
                        let ended = usize::from(matches!(report, Report::WriterEnded { .. }));
                        // One whose connection closed before is not among those counted.
                        writers = writers.saturating_sub(ended);
                    }
                    _ = self.swarm.select_next_some() => {}
                    () = &mut beat, if !beaten => beaten = true,
                }
            }
        };
        let _ = timeout(WIND_DOWN, flushing).await;
        for peer in self.peers.keys() {
            let _ = self.swarm.disconnect_peer_id(*peer);
        }
        let closing = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        let _ = timeout(WIND_DOWN, closing).await;
    }

    fn emit(&mut self, event: TransportEvent) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(event);
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            self.backlog.push_back(event);
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn on_tick(&mut self) {
        let behaviours = self.swarm.behaviour_mut();
        behaviours.gate.sweep();
        self.close_silent();
        self.meet_the_deaf();
        let have_over = self.peers.iter().filter(|(_, peer)| peer.has_over());
        for id in have_over.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.close_over(id);
        }
        self.dial_bootstrap();
    }

    /// Meets those anew who have not said for a while that they listen to gossip, which all do:
    /// it was said on a connection that broke. And forgets who was met anew long ago.
    fn meet_the_deaf(&mut self) {
        let now = Instant::now();
        for (since, waits) in self.returning.values_mut() {
            // A connection may take minutes to close that nobody is at the end of.
            *waits &= now - *since < RETURN_WAIT;
        }
        let is_recent = |since: &Instant| now - *since < MEET_AGAIN;
        self.returning.retain(|_, (since, _)| is_recent(since));
        let gossip = &self.swarm.behaviour().gossip;
        let silent = gossip.all_peers().filter(|(_, topics)| topics.is_empty());
        let is_deaf = |id: &PeerId| {
            let peer = self.peers.get(id).filter(|peer| peer.announced);
            peer.is_some_and(|peer| peer.is_idle_since(now - DEAF_MAX))
                && !self.returning.contains_key(id)
        };
        let deaf: Vec<PeerId> = silent.map(|(id, _)| *id).filter(is_deaf).collect();
        for id in deaf {
            tracing::debug!(peer = %id, "it listens to nothing: met anew");
            self.meet_anew(id);
        }
    }

    /// Closes connections on which no ping was answered, and those of peers that do not identify
    /// themselves. libp2p's ping swallows its first failure and takes twice our time to report
    /// the second, so the engine goes by the successes.
    fn close_silent(&mut self) {
        let now = Instant::now();
        // While the driver does not listen, answers wait unread: that is not the peers' silence.
        let deaf = !self.backlog.is_empty();
        let limits = &self.config.limits;
        let silence_max = limits.ping_interval + limits.ping_timeout;
        for (id, peer) in &mut self.peers {
            for connection in &mut peer.connections {
                if deaf {
                    connection.heard = now;
                    continue;
                }
                let silent = now - connection.heard > silence_max;
                let unnamed = !peer.announced && now - connection.opened > limits.handshake;
                if silent || unnamed {
                    tracing::debug!(peer = %id, silent, unnamed, "closing a connection");
                    self.swarm.close_connection(connection.id);
                }
            }
        }
    }

    fn dial_bootstrap(&mut self) {
        let peers = &self.peers;
        let is_connected = |peer: &PeerId| peers.contains_key(peer);
        for (at, address, peer) in self.bootstrap.due(Instant::now(), is_connected) {
            let dial = dial_at(peer, address);
            let id = dial.connection_id();
            self.bootstrap.dialing(at, id);
            match self.swarm.dial(dial) {
                Ok(()) => {}
                // The swarm strikes out this node's own listen addresses.
                Err(DialError::NoAddresses) => self.bootstrap.is_self(id),
                Err(error) => {
                    tracing::debug!(%error, "a bootstrap peer cannot be dialled");
                    self.bootstrap.failed(id);
                }
            }
        }
    }
}

// Commands.
impl Engine {
    fn on_command(&mut self, command: TransportCommand) {
        match command {
            TransportCommand::Send { to, channel, bytes } => {
                if let Err(why) = self.send(to, channel, bytes) {
                    self.emit(TransportEvent::SendFailed { to, channel, why });
                }
            }
            TransportCommand::Publish { bytes } => self.publish(bytes),
            TransportCommand::GossipVerdict { id, from, verdict } => {
                self.judge(&MessageId::new(&id.0), &from.peer_id(), verdict);
            }
            TransportCommand::Dial { peer, addresses } => self.dial(peer, addresses),
            TransportCommand::AddAddresses { peer, addresses } => {
                self.book.learn(peer.peer_id(), addresses);
            }
            TransportCommand::Disconnect { peer } => {
                let _ = self.swarm.disconnect_peer_id(peer.peer_id());
            }
            TransportCommand::Block { peer, until } => {
                let id = peer.peer_id();
                self.swarm.behaviour_mut().gate.block(id, until);
                self.cut(&id);
            }
            TransportCommand::Unblock { peer } => {
                let id = peer.peer_id();
                self.swarm.behaviour_mut().gate.unblock(&id);
            }
            TransportCommand::FetchBlob(wanted) => self.start_fetch(wanted),
            TransportCommand::CancelFetch { id } => self.cancel_fetch(id),
            TransportCommand::Call { to, reply } => self.call(to, reply),
            TransportCommand::Peers { reply } => {
                let _ = reply.send(self.peer_list());
            }
        }
    }

    fn peer_list(&self) -> Vec<PeerStatus> {
        let gossip = &self.swarm.behaviour().gossip;
        self.peers
            .iter()
            .filter_map(|(id, peer)| peer.status(gossip.peer_score(id)))
            .collect()
    }

    fn send(&mut self, to: PeerKey, channel: Channel, bytes: Vec<u8>) -> Result<(), SendFailure> {
        let length = u32::try_from(bytes.len()).map_err(|_| SendFailure::TooLarge)?;
        if length > self.config.limits.frame_bytes.of(channel) {
            return Err(SendFailure::TooLarge);
        }
        let id = to.peer_id();
        self.reach(to, id)?;
        let serial = self.next_serial();
        let queue_frames = self.config.limits.queue_frames;
        let peer = self.peers.get_mut(&id).ok_or(SendFailure::Unreachable)?;
        let room = Arc::clone(&peer.queue_room)
            .try_acquire_many_owned(length)
            .map_err(|_| SendFailure::QueueFull)?;
        let slot = &mut peer.outboxes[channel.index()];
        let is_new = slot.is_none();
        let outbox = slot.get_or_insert_with(|| {
            let (queue, frames) = mpsc::channel(queue_frames);
            Outbox {
                serial,
                queue,
                state: OutboxState::Waiting(frames),
            }
        });
        let frame = Outgoing { bytes, _room: room };
        let queued = outbox.queue.try_send(frame);
        if is_new {
            self.open_outbox(&id, channel);
        }
        queued.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SendFailure::QueueFull,
            // The writer's end is on its way as a report.
            mpsc::error::TrySendError::Closed(_) => SendFailure::Lost,
        })
    }

    /// Makes sure that the peer is connected or being dialled.
    fn reach(&mut self, key: PeerKey, id: PeerId) -> Result<(), SendFailure> {
        if self.peers.contains_key(&id) {
            return Ok(());
        }
        let addresses = self.book.of(&id);
        if addresses.is_empty() {
            return Err(SendFailure::NoAddress);
        }
        match self.swarm.dial(dial_to(id, addresses)) {
            // Somebody else's dial of the same peer serves as well.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(_) => return Err(SendFailure::Unreachable),
        }
        let session = self.next_serial();
        let peer = Peer::new(key, session, &self.config.limits);
        self.peers.insert(id, peer);
        Ok(())
    }

    fn publish(&mut self, bytes: Vec<u8>) {
        let id = GossipId(*blake3::hash(&bytes).as_bytes());
        let result = if bytes.len() > self.config.limits.gossip_bytes {
            Err(PublishError::MessageTooLarge)
        } else {
            let topic = topic_of(&self.config.network);
            self.swarm.behaviour_mut().gossip.publish(topic, bytes)
        };
        let why = match result {
            Ok(_) => return,
            Err(PublishError::Duplicate) => PublishFailure::Duplicate,
            Err(PublishError::NoPeersSubscribedToTopic) => PublishFailure::NoPeers,
            Err(PublishError::AllQueuesFull(_)) => PublishFailure::QueuesFull,
            // The other two come from signing and compression, which are off.
            Err(
                PublishError::MessageTooLarge
                | PublishError::SigningError(_)
                | PublishError::TransformFailed(_),
            ) => PublishFailure::TooLarge,
        };
        self.emit(TransportEvent::PublishFailed { id, why });
    }

    fn judge(&mut self, id: &MessageId, from: &PeerId, verdict: Verdict) {
        let acceptance = match verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Reject => MessageAcceptance::Reject,
            Verdict::Ignore => MessageAcceptance::Ignore,
        };
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        gossip.report_message_validation_result(id, from, acceptance);
    }

    fn dial(&mut self, peer: Option<PeerKey>, addresses: Vec<Multiaddr>) {
        let lan = self.config.lan;
        let mut dials = Vec::new();
        match peer {
            Some(key) => {
                let id = key.peer_id();
                self.book.learn(id, addresses);
                let known = self.book.of(&id);
                if !known.is_empty() {
                    dials.push(dial_to(id, known));
                }
            }
            None => {
                for (address, peer) in addresses.into_iter().map(split_peer) {
                    if is_dialable(&address, lan) {
                        dials.push(dial_at(peer, address));
                    }
                }
            }
        }
        if dials.is_empty() {
            let why = DialFailure::NoAddress;
            self.emit(TransportEvent::DialFailed { peer, why });
        }
        for dial in dials {
            match self.swarm.dial(dial) {
                Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
                Err(error) => {
                    let why = dial_failure(&error);
                    self.emit(TransportEvent::DialFailed { peer, why });
                }
            }
        }
    }

    /// Ends everything with a peer at once.
    fn cut(&mut self, id: &PeerId) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.budget.cut();
            peer.parked.clear();
        }
        let _ = self.swarm.disconnect_peer_id(*id);
    }
}

// Blobs.
impl Engine {
    fn start_fetch(&mut self, wanted: FetchBlob) {
        let (id, from) = (wanted.id, wanted.from);
        if self.fetches.contains_key(&id) {
            tracing::warn!(?id, "a fetch under this number is under way");
            return;
        }
        if self.fetches.len() >= self.config.limits.fetches {
            let why = BlobFailure::TooMany;
            self.emit(TransportEvent::BlobFailed { id, why });
            return;
        }
        let peer = from.peer_id();
        if let Err(why) = self.reach(from, peer) {
            let why = BlobFailure::Unreachable(why);
            self.emit(TransportEvent::BlobFailed { id, why });
            return;
        }
        let state = FetchState::Waiting;
        self.fetches.insert(id, Fetch { wanted, state });
        self.open_fetches(&peer);
    }

    /// Asks for the streams of all fetches that wait for this peer, if it is announced.
    fn open_fetches(&mut self, id: &PeerId) {
        let Some(peer) = self.peers.get(id).filter(|peer| peer.announced) else {
            return;
        };
        let Some(connection) = peer.used().map(|used| used.id) else {
            return;
        };
        for (fetch_id, fetch) in &mut self.fetches {
            if fetch.wanted.from == peer.key && matches!(fetch.state, FetchState::Waiting) {
                fetch.state = FetchState::Opening(connection);
                let purpose = Purpose::Fetch(*fetch_id);
                let streams = &mut self.swarm.behaviour_mut().streams;
                streams.open(*id, connection, purpose);
            }
        }
    }

    fn run_fetch(&mut self, id: FetchId, stream: Stream) {
        let Some(running) = self.fetches.get_mut(&id) else {
            return;
        };
        let work = fetch(
            stream,
            running.wanted.clone(),
            self.config.limits.blob_stall,
            self.events.clone(),
        );
        let report_to = self.report_to.clone();
        let task = tokio::spawn(async move {
            let result = work.await;
            let _ = report_to.send(Report::FetchEnded { id, result }).await;
        });
        running.state = FetchState::Running(task.abort_handle());
    }

    fn end_fetch(&mut self, id: FetchId, result: Result<u64, BlobFailure>) {
        if self.fetches.remove(&id).is_none() {
            return;
        }
        self.emit(match result {
            Ok(bytes) => TransportEvent::BlobDone { id, bytes },
            Err(why) => TransportEvent::BlobFailed { id, why },
        });
    }

    fn cancel_fetch(&mut self, id: FetchId) {
        if let Some(Fetch {
            state: FetchState::Running(task),
            ..
        }) = self.fetches.get(&id)
        {
            task.abort();
        }
        self.end_fetch(id, Err(BlobFailure::Cancelled));
    }

    /// Fails the fetches that the filter names among those that have no task yet.
    fn fail_fetches(&mut self, why: &BlobFailure, which: impl Fn(&Fetch) -> bool) {
        let failed: Vec<FetchId> = self
            .fetches
            .iter()
            .filter(|(_, fetch)| !matches!(fetch.state, FetchState::Running(_)) && which(fetch))
            .map(|(id, _)| *id)
            .collect();
        for id in failed {
            self.end_fetch(id, Err(why.clone()));
        }
    }

    fn start_serve(&mut self, id: PeerId, stream: Stream) {
        let limits = &self.config.limits;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        // Dropping the stream unread is the answer "busy".
        if peer.serves >= limits.serves_per_peer || self.serves >= limits.serves {
            return;
        }
        peer.serves += 1;
        self.serves += 1;
        let session = peer.session;
        let setup = ServeSetup {
            peer: peer.key,
            handshake: limits.handshake,
            stall: limits.blob_stall,
            events: self.events.clone(),
            reports: self.report_to.clone(),
        };
        let report_to = self.report_to.clone();
        tokio::spawn(async move {
            let tree = serve(stream, setup).await;
            let report = Report::ServeEnded {
                peer: id,
                session,
                tree,
            };
            let _ = report_to.send(report).await;
        });
    }
}

// Calls.
impl Engine {
    fn call(&mut self, to: PeerKey, reply: oneshot::Sender<Result<CallStream, SendFailure>>) {
        let peer = to.peer_id();
        if self.calls.len() >= self.config.limits.calls_opening {
            let _ = reply.send(Err(SendFailure::QueueFull));
            return;
        }
        if let Err(why) = self.reach(to, peer) {
            let _ = reply.send(Err(why));
            return;
        }
        let id = CallId(self.next_serial());
        let on = None;
        self.calls.insert(id, Calling { to, on, reply });
        self.open_calls(&peer);
    }

    /// Asks for the streams of all calls that wait for this peer, if it is announced.
    fn open_calls(&mut self, id: &PeerId) {
        let Some(peer) = self.peers.get(id).filter(|peer| peer.announced) else {
            return;
        };
        let Some(connection) = peer.newest().map(|newest| newest.id) else {
            return;
        };
        for (call, calling) in &mut self.calls {
            if calling.to == peer.key && calling.on.is_none() {
                calling.on = Some(connection);
                let streams = &mut self.swarm.behaviour_mut().streams;
                streams.open(*id, connection, Purpose::Call(*call));
            }
        }
    }

    fn call_opened(
        &mut self,
        call: CallId,
        (id, connection): (PeerId, ConnectionId),
        stream: Stream,
    ) {
        let Some(calling) = self.calls.remove(&call) else {
            return;
        };
        let peer = self.peers.get(&id);
        let opened = match peer.and_then(|peer| peer.calls_on(connection)) {
            Some(on) => {
                let stall = self.config.limits.write_stall;
                Ok(CallStream::new(stream, on, stall, None))
            }
            None => Err(SendFailure::Lost),
        };
        let _ = calling.reply.send(opened);
    }

    fn fail_calls(&mut self, why: SendFailure, which: impl Fn(CallId, &Calling) -> bool) {
        let failed = self.calls.extract_if(|id, calling| which(*id, calling));
        for (_, calling) in failed {
            let _ = calling.reply.send(Err(why));
        }
    }

    /// A peer has opened a call. Dropping the stream unread says that there is no place.
    fn called(&mut self, id: PeerId, connection: ConnectionId, stream: Stream) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let Some(on) = peer.calls_on(connection) else {
            return;
        };
        let places = [&peer.calls, &self.called].map(Arc::clone);
        let [Ok(place), Ok(of_all)] = places.map(Semaphore::try_acquire_owned) else {
            return;
        };
        let from = peer.key;
        let stall = self.config.limits.write_stall;
        let call = CallStream::new(stream, on, stall, Some([place, of_all]));
        self.emit(TransportEvent::Called { from, call });
    }
}

// Reports of the stream tasks.
impl Engine {
    fn on_report(&mut self, report: Report) {
        match report {
            Report::ReaderEnded {
                peer,
                session,
                channel,
                why,
            } => self.reader_ended(peer, session, channel, why),
            Report::WriterEnded {
                peer,
                session,
                channel,
                serial,
                lost,
            } => self.writer_ended(peer, session, channel, serial, lost),
            Report::TreeWanted { hash, reply } => {
                let _ = reply.send(self.trees.of(&hash));
            }
            Report::ServeEnded {
                peer,
                session,
                tree,
            } => {
                self.serves = self.serves.saturating_sub(1);
                if let Some(peer) = self.peer_of_session(peer, session) {
                    peer.serves = peer.serves.saturating_sub(1);
                }
                if let Some(tree) = tree {
                    self.trees.keep(tree);
                }
            }
            Report::FetchEnded { id, result } => self.end_fetch(id, result),
        }
    }

    fn peer_of_session(&mut self, id: PeerId, session: u64) -> Option<&mut Peer> {
        self.peers
            .get_mut(&id)
            .filter(|peer| peer.session == session)
    }

    fn reader_ended(
        &mut self,
        id: PeerId,
        session: u64,
        channel: Channel,
        why: Option<Misbehaviour>,
    ) {
        if let Some(peer) = self.peer_of_session(id, session) {
            peer.reader_ends(channel);
        }
        let Some(what) = why else { return };
        if what == Misbehaviour::Flood {
            self.cut(&id);
        }
        self.misbehaved(&id, what);
    }

    fn misbehaved(&mut self, id: &PeerId, what: Misbehaviour) {
        if let Ok(peer) = PeerKey::of_peer_id(id) {
            tracing::debug!(%peer, ?what, "a peer misbehaved");
            self.emit(TransportEvent::Misbehaved { peer, what });
        }
    }

    fn writer_ended(
        &mut self,
        id: PeerId,
        session: u64,
        channel: Channel,
        serial: u64,
        lost: usize,
    ) {
        if let Some(peer) = self.peer_of_session(id, session) {
            let slot = &mut peer.outboxes[channel.index()];
            slot.take_if(|outbox| outbox.serial == serial);
        }
        if let Ok(to) = PeerKey::of_peer_id(&id) {
            self.sends_failed(to, channel, lost, SendFailure::Lost);
        }
    }

    fn sends_failed(&mut self, to: PeerKey, channel: Channel, frames: usize, why: SendFailure) {
        for _ in 0..frames {
            self.emit(TransportEvent::SendFailed { to, channel, why });
        }
    }
}

// Events of the swarm: connections.
impl Engine {
    fn on_swarm(&mut self, event: SwarmEvent<NetworkEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_network(event),
            SwarmEvent::NewListenAddr { address, .. } => {
                self.emit(TransportEvent::Listening { address });
            }
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                let (address, _) = split_peer(endpoint.get_remote_address().clone());
                self.connected(peer_id, connection_id, address, endpoint.is_listener());
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                num_established,
                ..
            } => {
                self.disconnected(peer_id, connection_id);
                if num_established == 0 {
                    self.gone(peer_id);
                }
            }
            SwarmEvent::OutgoingConnectionError {
                peer_id,
                connection_id,
                error,
            } => self.dial_failed(peer_id, connection_id, &error),
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                ..
            } => {
                tracing::debug!(address = %send_back_addr, ?error, "inbound connection refused");
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "a listener has a problem");
            }
            SwarmEvent::ListenerClosed {
                addresses, reason, ..
            } => {
                tracing::error!(?addresses, ?reason, "a listener has ended");
            }
            // SwarmEvent is non-exhaustive; the rest is progress that nobody waits for.
            _ => {}
        }
    }

    fn connected(
        &mut self,
        id: PeerId,
        connection: ConnectionId,
        address: Multiaddr,
        inbound: bool,
    ) {
        let Ok(key) = PeerKey::of_peer_id(&id) else {
            let _ = self.swarm.disconnect_peer_id(id);
            return;
        };
        if self.returning.get(&id).is_some_and(|(_, waits)| *waits) {
            self.swarm.close_connection(connection);
            return;
        }
        if !inbound {
            self.bootstrap.connected(connection, id);
            self.book.learn(id, [address.clone()]);
        }
        let session = self.next_serial();
        let limits = &self.config.limits;
        let kept = limits.connections_kept.max(1);
        let peer = self
            .peers
            .entry(id)
            .or_insert_with(|| Peer::new(key, session, limits));
        peer.opened_one(Connection::new(connection, address, inbound));
        peer.note_over(kept, Instant::now());
        for channel in peer.move_outboxes() {
            self.open_outbox(&id, channel);
        }
        self.close_over(id);
    }

    /// Closes connections with a peer of which there are enough newer ones.
    ///
    /// Each side sees them open in another order, so that two that close what they have too
    /// many of at the same time may close all. The one with the higher name does; the other
    /// waits for that, three times as long, and does it if it must.
    fn close_over(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let limits = &self.config.limits;
        let patience = if self.own > id { 1 } else { 3 };
        // The gate always has a place for a peer's next dial.
        let most = limits.connections_per_peer.saturating_sub(1);
        let bounds = (most.max(1), limits.surplus_lingers * patience);
        let calls = &self.calls;
        let is_opening = |on| calls.values().any(|calling| calling.on == Some(on));
        for connection in peer.to_close(bounds, Instant::now(), is_opening) {
            tracing::debug!(peer = %id, "closing a connection: there are newer ones");
            self.disconnected(id, connection);
            self.swarm.close_connection(connection);
        }
    }

    /// Another process answers under a key that we were connected to: what is older than its
    /// connection is dead, and the driver hears that the peer was away.
    fn reborn(&mut self, id: PeerId, newest: ConnectionId) {
        if !self.returning.contains_key(&id) {
            return self.meet_anew(id);
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let (key, announced) = (peer.key, std::mem::take(&mut peer.announced));
        let stale: Vec<ConnectionId> = peer.older_than(newest);
        for connection in stale {
            self.disconnected(id, connection);
            self.swarm.close_connection(connection);
        }
        if announced {
            self.emit(TransportEvent::Disconnected { peer: key });
        }
    }

    /// Cuts a peer, and dials it when all connections with it are closed.
    ///
    /// Gossip says on the first of several connections what it listens to, and on no other:
    /// a new process, in the eyes of whom the first is still open, was told nothing, and would
    /// find nobody to publish to. So its own connection is closed as well. Who asks for that
    /// again and again is met anew once in a while only.
    fn meet_anew(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let connections: Vec<ConnectionId> = peer.connections.iter().map(|open| open.id).collect();
        for connection in connections {
            self.disconnected(id, connection);
        }
        self.returning.insert(id, (Instant::now(), true));
        let _ = self.swarm.disconnect_peer_id(id);
    }

    /// Dials whoever was waited for to be gone.
    fn gone(&mut self, id: PeerId) {
        let waiting = self.returning.get_mut(&id);
        if !waiting.is_some_and(|(_, waits)| std::mem::take(waits)) {
            return;
        }
        let addresses = self.book.of(&id);
        if addresses.is_empty() {
            return;
        }
        if let Err(error) = self.swarm.dial(dial_to(id, addresses)) {
            tracing::debug!(peer = %id, %error, "it is not dialled anew");
        }
    }

    fn disconnected(&mut self, id: PeerId, connection: ConnectionId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let dialled = peer
            .connections
            .iter()
            .any(|open| open.id == connection && !open.inbound);
        peer.connections.retain(|open| open.id != connection);
        let kept = self.config.limits.connections_kept.max(1);
        peer.note_over(kept, Instant::now());
        let is_last = peer.connections.is_empty();
        let lost: Vec<(Channel, usize)> = Channel::ALL
            .into_iter()
            .filter_map(|channel| {
                let slot = &mut peer.outboxes[channel.index()];
                let outbox =
                    slot.take_if(|outbox| is_last || outbox.connection() == Some(connection))?;
                Some((channel, outbox.give_up()))
            })
            .collect();
        let (key, announced) = (peer.key, peer.announced);
        for (channel, frames) in lost {
            self.sends_failed(key, channel, frames, SendFailure::Lost);
        }
        self.fail_fetches(&BlobFailure::Lost, |fetch| match fetch.state {
            FetchState::Opening(on) => on == connection,
            FetchState::Waiting => is_last && fetch.wanted.from == key,
            FetchState::Running(_) => false,
        });
        self.fail_calls(SendFailure::Lost, |_, calling| {
            calling.is_lost(id, connection, is_last)
        });
        if !is_last {
            return;
        }
        let wrong_network = self
            .peers
            .remove(&id)
            .is_some_and(|peer| peer.wrong_network);
        if announced {
            self.emit(TransportEvent::Disconnected { peer: key });
        } else if dialled {
            let why = if wrong_network {
                DialFailure::WrongNetwork
            } else {
                DialFailure::Closed
            };
            let peer = Some(key);
            self.emit(TransportEvent::DialFailed { peer, why });
        }
    }

    fn dial_failed(&mut self, id: Option<PeerId>, connection: ConnectionId, error: &DialError) {
        match error {
            DialError::LocalPeerId { .. } => self.bootstrap.is_self(connection),
            DialError::WrongPeerId { .. }
            | DialError::NoAddresses
            | DialError::DialPeerConditionFalse(_)
            | DialError::Aborted
            | DialError::Denied { .. }
            | DialError::Transport(_) => self.bootstrap.failed(connection),
        }
        if let Some(id) = id {
            self.give_up_on(&id);
        }
        let peer = id.and_then(|id| PeerKey::of_peer_id(&id).ok());
        let why = dial_failure(error);
        self.emit(TransportEvent::DialFailed { peer, why });
    }

    /// Fails what waits for a peer that is not connected.
    fn give_up_on(&mut self, id: &PeerId) {
        if self
            .peers
            .get(id)
            .is_none_or(|peer| !peer.connections.is_empty())
        {
            return;
        }
        let Some(mut peer) = self.peers.remove(id) else {
            return;
        };
        for channel in Channel::ALL {
            if let Some(outbox) = peer.outboxes[channel.index()].take() {
                let frames = outbox.give_up();
                self.sends_failed(peer.key, channel, frames, SendFailure::Unreachable);
            }
        }
        let why = BlobFailure::Unreachable(SendFailure::Unreachable);
        self.fail_fetches(&why, |fetch| fetch.wanted.from == peer.key);
        self.fail_calls(SendFailure::Unreachable, |_, calling| {
            calling.to == peer.key
        });
    }
}

// Events of the swarm: protocols.
impl Engine {
    fn on_network(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::Identify(identify::Event::Received {
                connection_id,
                peer_id,
                info,
            }) => {
                self.identified(peer_id, connection_id, info);
            }
            NetworkEvent::Identify(_) => {}
            NetworkEvent::Ping(event) => self.pinged(&event),
            NetworkEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            }) => self.gossiped(propagation_source, &message_id, message.data),
            NetworkEvent::Gossip(
                gossipsub::Event::Subscribed { .. }
                | gossipsub::Event::Unsubscribed { .. }
                | gossipsub::Event::GossipsubNotSupported { .. }
                | gossipsub::Event::SlowPeer { .. },
            ) => {}
            NetworkEvent::Streams((peer, connection, event)) => {
                self.on_stream(peer, connection, event);
            }
        }
    }

    fn identified(&mut self, id: PeerId, connection: ConnectionId, info: identify::Info) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if info.protocol_version != identity_of(&self.config.network) {
            peer.wrong_network = true;
            let _ = self.swarm.disconnect_peer_id(id);
            return;
        }
        peer.set_agent(&info.agent_version);
        // First: a new process may listen elsewhere, and is dialled there.
        self.book.learn(id, info.listen_addrs);
        if peer.is_reborn(connection, &info.agent_version) {
            self.reborn(id, connection);
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let (key, first) = (peer.key, !peer.announced);
        let address = peer.used().map(|used| used.address.clone());
        let Some(address) = address.filter(|_| first) else {
            return;
        };
        peer.announced = true;
        let parked = std::mem::take(&mut peer.parked);
        self.bootstrap.announced(&id);
        self.emit(TransportEvent::Connected { peer: key, address });
        for (purpose, connection, stream) in parked {
            self.accept(id, (purpose, connection), stream);
        }
        for channel in Channel::ALL {
            self.open_outbox(&id, channel);
        }
        self.open_fetches(&id);
        self.open_calls(&id);
    }

    fn pinged(&mut self, event: &ping::Event) {
        // A failure needs no answer: what counts is how long there was no success.
        let Ok(rtt) = event.result else { return };
        let Some(peer) = self.peers.get_mut(&event.peer) else {
            return;
        };
        let (key, announced) = (peer.key, peer.announced);
        let mut connections = peer.connections.iter_mut();
        let connection = connections.find(|open| open.id == event.connection);
        if let Some(connection) = connection {
            connection.rtt = Some(rtt);
            connection.heard = Instant::now();
            if announced {
                self.emit(TransportEvent::LinkMeasured {
                    peer: key,
                    rtt: Some(rtt),
                    bytes_per_second: None,
                });
            }
        }
    }

    fn gossiped(&mut self, from: PeerId, message_id: &MessageId, bytes: Vec<u8>) {
        let id: Option<[u8; 32]> = message_id.0.as_slice().try_into().ok();
        let in_rate = self
            .peers
            .get(&from)
            .is_some_and(|peer| peer.announced && peer.gossip_in_rate());
        if let (Some(id), true, Ok(from)) = (id, in_rate, PeerKey::of_peer_id(&from)) {
            let id = GossipId(id);
            self.emit(TransportEvent::Gossip { id, from, bytes });
            return;
        }
        self.judge(message_id, &from, Verdict::Ignore);
        let flooding = self.peers.get_mut(&from).filter(|peer| peer.announced);
        if flooding.is_some_and(Peer::reports_gossip_flood) {
            self.misbehaved(&from, Misbehaviour::GossipFlood);
        }
    }

    fn on_stream(&mut self, id: PeerId, connection: ConnectionId, event: StreamEvent) {
        match event {
            StreamEvent::Accepted { purpose, stream } => {
                self.accept(id, (purpose, connection), stream);
            }
            StreamEvent::Opened {
                purpose: Purpose::Frames(channel),
                stream,
            } => self.run_writer(id, connection, channel, stream),
            StreamEvent::Opened {
                purpose: Purpose::Fetch(fetch),
                stream,
            } => self.run_fetch(fetch, stream),
            StreamEvent::Opened {
                purpose: Purpose::Call(call),
                stream,
            } => self.call_opened(call, (id, connection), stream),
            StreamEvent::Failed {
                purpose: Purpose::Call(call),
                why,
            } => {
                let why = match why {
                    OpenError::Unsupported => SendFailure::Unsupported,
                    OpenError::Timeout | OpenError::Lost => SendFailure::Lost,
                };
                self.fail_calls(why, |id, _| id == call);
            }
            StreamEvent::Failed {
                purpose: Purpose::Frames(channel),
                why,
            } => self.outbox_failed(id, connection, channel, why),
            StreamEvent::Failed {
                purpose: Purpose::Fetch(fetch),
                why,
            } => {
                let why = match why {
                    OpenError::Unsupported => BlobFailure::Unreachable(SendFailure::Unsupported),
                    OpenError::Timeout => BlobFailure::Stalled,
                    OpenError::Lost => BlobFailure::Lost,
                };
                self.end_fetch(fetch, Err(why));
            }
        }
    }

    fn accept(
        &mut self,
        id: PeerId,
        (purpose, connection): (Inbound, ConnectionId),
        stream: Stream,
    ) {
        let limits = &self.config.limits;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if !peer.announced {
            if peer.parked.len() < Channel::ALL.len() + limits.serves_per_peer {
                peer.parked.push((purpose, connection, stream));
            }
            return;
        }
        let channel = match purpose {
            Inbound::Frames(channel) => channel,
            Inbound::Blob => return self.start_serve(id, stream),
            Inbound::Call => return self.called(id, connection, stream),
        };
        if !peer.reader_begins(channel) {
            if peer.refuses_stream() {
                self.cut(&id);
                self.misbehaved(&id, Misbehaviour::TooManyStreams);
            }
            return;
        }
        let session = peer.session;
        let setup = ReaderSetup {
            peer: peer.key,
            channel,
            frame_bytes_max: limits.frame_bytes.of(channel),
            partial_frame: limits.partial_frame,
            flood_grace: limits.flood_grace,
            budget: Arc::clone(&peer.budget),
            events: self.events.clone(),
        };
        let report_to = self.report_to.clone();
        tokio::spawn(async move {
            let why = read_frames(stream, setup).await;
            let report = Report::ReaderEnded {
                peer: id,
                session,
                channel,
                why,
            };
            let _ = report_to.send(report).await;
        });
    }

    /// Asks for an outbox's stream, if it waits for one and the peer is announced.
    fn open_outbox(&mut self, id: &PeerId, channel: Channel) {
        let Some(peer) = self.peers.get_mut(id).filter(|peer| peer.announced) else {
            return;
        };
        let Some(connection) = peer.used().map(|used| used.id) else {
            return;
        };
        let slot = &mut peer.outboxes[channel.index()];
        let Some(outbox) = slot.take() else { return };
        let state = match outbox.state {
            OutboxState::Waiting(frames) => {
                let streams = &mut self.swarm.behaviour_mut().streams;
                streams.open(*id, connection, Purpose::Frames(channel));
                OutboxState::Opening(frames, connection)
            }
            state @ (OutboxState::Opening(..) | OutboxState::Writing(_)) => state,
        };
        *slot = Some(Outbox { state, ..outbox });
    }

    fn run_writer(
        &mut self,
        id: PeerId,
        connection: ConnectionId,
        channel: Channel,
        stream: Stream,
    ) {
        let stall = self.config.limits.write_stall;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let slot = &mut peer.outboxes[channel.index()];
        let Some(outbox) = slot.take_if(
            |outbox| matches!(&outbox.state, OutboxState::Opening(_, on) if *on == connection),
        ) else {
            return;
        };
        let OutboxState::Opening(frames, _) = outbox.state else {
            return;
        };
        let (session, serial) = (peer.session, outbox.serial);
        *slot = Some(Outbox {
            state: OutboxState::Writing(connection),
            ..outbox
        });
        let report_to = self.report_to.clone();
        tokio::spawn(async move {
            let lost = write_frames(stream, frames, stall).await;
            let report = Report::WriterEnded {
                peer: id,
                session,
                channel,
                serial,
                lost,
            };
            let _ = report_to.send(report).await;
        });
    }

    fn outbox_failed(
        &mut self,
        id: PeerId,
        connection: ConnectionId,
        channel: Channel,
        why: OpenError,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let slot = &mut peer.outboxes[channel.index()];
        let Some(outbox) = slot.take_if(
            |outbox| matches!(&outbox.state, OutboxState::Opening(_, on) if *on == connection),
        ) else {
            return;
        };
        let (key, frames) = (peer.key, outbox.give_up());
        let why = match why {
            OpenError::Unsupported => SendFailure::Unsupported,
            OpenError::Timeout | OpenError::Lost => SendFailure::Lost,
        };
        self.sends_failed(key, channel, frames, why);
    }
}

/// A dial to a peer that is neither connected nor being dialled, always from a fresh port: from
/// the listen ports, two that dial each other at once would meet in one TCP connection that both
/// believe to have opened (simultaneous open), and neither would answer.
fn dial_to(peer: PeerId, addresses: Vec<Multiaddr>) -> DialOpts {
    DialOpts::peer_id(peer)
        .condition(PeerCondition::DisconnectedAndNotDialing)
        .allocate_new_port()
        .addresses(addresses)
        .build()
}

fn dial_at(peer: Option<PeerId>, address: Multiaddr) -> DialOpts {
    match peer {
        Some(peer) => dial_to(peer, vec![address]),
        None => DialOpts::unknown_peer_id()
            .address(address)
            .allocate_new_port()
            .build(),
    }
}

fn dial_failure(error: &DialError) -> DialFailure {
    match error {
        DialError::LocalPeerId { .. } => DialFailure::Itself,
        DialError::NoAddresses => DialFailure::NoAddress,
        DialError::WrongPeerId { .. } => DialFailure::WrongPeer,
        DialError::Denied { cause } => DialFailure::Refused(
            std::error::Error::source(cause).map_or_else(|| cause.to_string(), ToString::to_string),
        ),
        DialError::Transport(tried) => DialFailure::Unreachable(
            tried
                .iter()
                .map(|(address, error)| format!("{address}: {error}"))
                .collect::<Vec<_>>()
                .join("; "),
        ),
        DialError::Aborted | DialError::DialPeerConditionFalse(_) => {
            DialFailure::Unreachable(error.to_string())
        }
    }
}
