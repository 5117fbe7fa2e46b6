//! The one task that owns the core.
//!
//! ```text
//! transport ─▶ intake (signatures) ─┐                        ┌─▶ journal (append)
//! executor ─────────────────────────┤   ┌───────────────┐    ├─▶ transport (frames, gossip, fetches)
//! hands (blobs, executions) ────────┼──▶│ handle ▸ drain │────┼─▶ hands (blobs, executions)
//! journal (durable to n) ───────────┤   │     Peer      │    ├─▶ executor (stop)
//! API (asks) ───────────────────────┤   └───────────────┘    └─▶ lines of jobs, answers
//! timer ────────────────────────────┘
//! ```
//!
//! One `select!`, one `apply`: nothing else touches the [`Peer`], and after
//! each step its invariants are checked. The records of a step go to the
//! journal together; those that nobody waits for stay here for a moment and
//! share a sync with the next. When the disk is full, records wait here in
//! order; until they are written nothing that needs them leaves, and nothing
//! new is begun.
//!
//! Absent: what a frame, an offer or a job means.

mod awaited;
mod challenges;
mod comparing;
mod following;
mod hands;
mod intake;
mod pausing;
mod proving;
mod watch;

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use suanli_executor::{OutputBlob, Usage};
use suanli_protocol::{
    envelope::{Signer, Verified},
    ids::{AgreementId, BlobId, JobId, NetworkId, PeerId},
    message::{Gossip, Message, Verdict as CoreVerdict},
    offer::Offer,
    peer::{
        Command, Config, Declaration, Event, ExecutionEvent, ExecutionId, ExecutionOrder,
        FetchOrder, Fetched, Input, JobEvent, NotSettled, Output, Peer, ProviderConfig,
    },
    rank::Way,
    record::{JobOrder, Lsn as CoreLsn, Record},
    units::{Mono, Now},
    wire::{List, Text},
};
use tokio::sync::{mpsc, oneshot, watch as tokio_watch};

use self::{
    awaited::Awaited,
    challenges::Challenges,
    following::Following,
    hands::{Chore, Hands},
    intake::{Intake, channel_of, peer_of},
    pausing::Pausing,
    watch::Lines,
};
use crate::{
    devices::Devices,
    handle::{Ask, AskQueue, Challenged, Look, NotTaken, Shown, Snapshot},
    models::serving::{Said, Serving},
    pause::Pauses,
    store::{AppendError, Durability, Health, Lsn, Store, blobs::Blobs},
    transport::{
        BlobFailure, BlobSize, CallStream, FetchBlob, FetchId, GossipId, PeerKey, PublishFailure,
        ServeBlob, TransportCommand, TransportEvent, TransportHandle, Verdict,
    },
    wall::wall,
};

/// Bad frames after which a peer is blocked.
const STRIKES: u32 = 5;
/// How long it is blocked.
const BLOCK: Duration = Duration::from_secs(600);
/// Peers whose strikes are remembered.
const STRIKES_KEPT: usize = 4096;
/// How long records that nobody waits for may gather, to share a sync.
const GATHER: Duration = Duration::from_millis(5);
/// How many may.
const GATHER_MAX: usize = 64;
/// When records that the journal refused are offered to it again.
const WRITE_AGAIN: Duration = Duration::from_millis(200);
/// Answers that wait for the journal at once.
const PROMISED_MAX: usize = 4096;
/// Bytes of a blob whose time says something about the network.
const BANDWIDTH_BYTES_MIN: u64 = 4 << 20;
/// How often expired blobs are looked for.
const COLLECT_EVERY: Duration = Duration::from_secs(300);
/// How often an offer that nobody could hear is gossiped again.
const REPUBLISH: Duration = Duration::from_millis(200);
/// How often at most.
const REPUBLISH_MAX: u32 = 50;
/// After this much quiet, all addresses are taken to be known.
const LISTEN_QUIET: Duration = Duration::from_millis(100);

/// What a driver is made of.
#[derive(Debug)]
pub struct Parts {
    /// The core's configuration, without what it sells.
    pub config: Config,
    /// What it sells, if anything; its addresses are filled in.
    pub provider: Option<ProviderConfig>,
    /// The node's key.
    pub signer: Signer,
    /// Randomness for the core.
    pub seed: [u8; 32],
    /// The open store.
    pub store: Store,
    /// Blobs that need not outlive the process.
    pub cache: Blobs,
    /// A folder for executions and fetches under way.
    pub scratch: PathBuf,
    /// The running transport.
    pub transport: TransportHandle,
    /// What it says.
    pub events: mpsc::Receiver<TransportEvent>,
    /// What runs jobs for others,
    pub devices: Devices,
    /// and what that says.
    pub executions: Option<mpsc::Receiver<suanli_executor::ExecutionEvent>>,
    /// What serves models, and what that says.
    pub models: Option<(Serving, mpsc::Receiver<Said>)>,
    /// Questions and orders.
    pub asks: AskQueue,
    /// What may pause it, if it sells.
    pub pauses: Option<Pauses>,
}

/// Why a driver could not start.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The journal holds something that this version can't read.
    #[error(
        "record {lsn} of the journal can't be read: {why}; was it written by a later version, or for another network?"
    )]
    Record {
        /// Which.
        lsn: u64,
        /// Why.
        why: String,
    },
    /// The journal could not be read.
    #[error("the journal could not be read: {0}")]
    Journal(String),
    /// A folder or a thread could not be made.
    #[error(
        "the node's working folder can't be used: {0}; check the data directory's owner and free space"
    )]
    Io(#[from] std::io::Error),
}

/// The task that owns the core.
#[derive(Debug)]
pub struct Driver {
    peer: Peer,
    started: Instant,
    store: Store,
    transport: TransportHandle,
    devices: Devices,
    serving: Option<Serving>,
    hands: Hands,
    provider: Option<ProviderConfig>,
    /// The fastest that a large blob has come here, in bytes per second.
    bandwidth_in: u64,
    listen: Vec<Multiaddr>,
    listen_changed: Option<Instant>,
    unwritten: Unwritten,
    /// Nothing else waits for this task: it may write and sync itself.
    quiet: bool,
    executions: BTreeMap<u64, Running>,
    next_number: u64,
    fetches: BTreeMap<u64, Fetch>,
    following: Following,
    gossip: BTreeMap<u64, (GossipId, PeerKey)>,
    strikes: BTreeMap<PeerId, u32>,
    republish: Option<Republish>,
    lines: Lines,
    challenges: Challenges,
    /// Challenges that somebody waits for.
    challenging: BTreeMap<PeerId, oneshot::Sender<Challenged>>,
    /// References that somebody waits for.
    referring: BTreeMap<PeerId, oneshot::Sender<Shown>>,
    submitted: BTreeMap<JobId, oneshot::Sender<Result<(), NotTaken>>>,
    awaited: Awaited,
    /// Answers that wait for the journal, in its order.
    promised: VecDeque<Promised>,
    stopping: Option<oneshot::Sender<()>>,
    collect_at: Instant,
    pausing: Pausing,
}

/// An execution that an executor has.
#[derive(Debug, Clone, Copy)]
struct Running {
    id: ExecutionId,
    /// By its place in the offer.
    device: u16,
}

#[derive(Debug)]
struct Fetch {
    agreement: AgreementId,
    from: PeerId,
    blob: BlobId,
    file: PathBuf,
    what: Fetched,
    began: Instant,
}

/// Records that the journal has not taken yet, in order.
#[derive(Debug, Default)]
struct Unwritten {
    /// The number of the first.
    first: CoreLsn,
    payloads: Vec<Vec<u8>>,
    /// When the first came.
    since: Option<Instant>,
    /// The journal has refused them: it is behind, or the disk is full.
    refused: bool,
}

/// An answer that is true once a record is on disk.
#[derive(Debug)]
struct Promised {
    after: CoreLsn,
    reply: oneshot::Sender<bool>,
    answer: bool,
}

/// An own message that found no listener yet.
#[derive(Debug)]
struct Republish {
    bytes: Vec<u8>,
    at: Option<Instant>,
    tries: u32,
}

impl Unwritten {
    fn push(&mut self, lsn: CoreLsn, payload: Vec<u8>) {
        if self.payloads.is_empty() {
            self.first = lsn;
            self.since = Some(Instant::now());
        }
        self.payloads.push(payload);
    }

    fn is_due(&self, now: Instant) -> bool {
        self.refused || self.since.is_some_and(|since| since + GATHER <= now)
    }
}

/// The channels that a driver listens to.
#[derive(Debug)]
struct Ears {
    intake: mpsc::Receiver<Intake>,
    executor: Option<mpsc::Receiver<suanli_executor::ExecutionEvent>>,
    models: Option<mpsc::Receiver<Said>>,
    hands: mpsc::Receiver<Input>,
    durability: tokio_watch::Receiver<Durability>,
    asks: mpsc::Receiver<Ask>,
}

impl Ears {
    /// Whether nothing waits in any of them.
    fn hear_nothing(&self) -> bool {
        self.intake.is_empty()
            && self.executor.as_ref().is_none_or(mpsc::Receiver::is_empty)
            && self.models.as_ref().is_none_or(mpsc::Receiver::is_empty)
            && self.hands.is_empty()
            && self.asks.is_empty()
    }
}

/// What woke the driver.
enum Wake {
    Intake(Option<Intake>),
    Executor(suanli_executor::ExecutionEvent),
    Models(Said),
    Hands(Input),
    Durable,
    Ask(Ask),
    Time,
}

/// Rebuilds the core from the journal and runs until told to stop.
///
/// # Errors
/// [`DriverError`], before anything is said to anybody.
pub async fn run(parts: Parts) -> Result<(), DriverError> {
    let network = parts.signer.network();
    let started = Instant::now();
    let records = read_records(&parts.store, network)?;
    tracing::info!(records = records.len(), "journal read");
    let now = Now {
        mono: Mono::from_micros(0),
        wall: wall(),
    };
    let peer = Peer::restore(
        now,
        parts.config,
        parts.signer,
        parts.seed,
        records.into_iter(),
    );
    let (inputs, hands_events) = mpsc::channel(256);
    let challenges = Challenges::new(&parts.scratch, &inputs, &parts.transport);
    let hands = Hands::start(
        parts.store.blobs().clone(),
        parts.cache,
        parts.scratch,
        parts.devices.clone(),
        inputs,
    )?;
    let (serving, models) = parts.models.unzip();
    let mut ears = Ears {
        intake: intake::start(parts.events, network),
        executor: parts.executions,
        models,
        hands: hands_events,
        durability: parts.store.durability(),
        asks: parts.asks.0,
    };
    let driver = Driver {
        peer,
        started,
        store: parts.store,
        transport: parts.transport,
        devices: parts.devices,
        serving,
        hands,
        provider: parts.provider,
        bandwidth_in: 0,
        listen: Vec::new(),
        listen_changed: None,
        unwritten: Unwritten::default(),
        quiet: false,
        executions: BTreeMap::new(),
        next_number: 0,
        fetches: BTreeMap::new(),
        following: Following::default(),
        gossip: BTreeMap::new(),
        strikes: BTreeMap::new(),
        republish: None,
        lines: Lines::default(),
        challenges,
        challenging: BTreeMap::new(),
        referring: BTreeMap::new(),
        submitted: BTreeMap::new(),
        awaited: Awaited::default(),
        promised: VecDeque::new(),
        stopping: None,
        collect_at: started + COLLECT_EVERY,
        pausing: Pausing::new(parts.pauses),
    };
    driver.drive(&mut ears).await;
    Ok(())
}

fn read_records(store: &Store, network: NetworkId) -> Result<Vec<(CoreLsn, Record)>, DriverError> {
    let mut records = Vec::new();
    for found in store.reader().replay() {
        let found = found.map_err(|error| DriverError::Journal(error.to_string()))?;
        let lsn = found.lsn.number();
        let record =
            Record::decode(&found.payload, network).map_err(|error| DriverError::Record {
                lsn,
                why: error.to_string(),
            })?;
        records.push((CoreLsn(lsn), record));
    }
    Ok(records)
}

/// The loop.
impl Driver {
    async fn drive(mut self, ears: &mut Ears) {
        self.step(Input::Tick).await;
        self.review().await;
        loop {
            let wake = self.wait(ears).await;
            self.quiet = ears.hear_nothing();
            match wake {
                Wake::Intake(None) => break,
                Wake::Intake(Some(intake)) => self.on_intake(intake).await,
                Wake::Executor(event) => self.on_executor(event).await,
                Wake::Models(said) => self.on_models(said).await,
                Wake::Hands(input) => self.on_hands(input).await,
                Wake::Durable => self.on_durable(ears).await,
                Wake::Ask(ask) => self.on_ask(ask).await,
                Wake::Time => self.on_time().await,
            }
            self.write_here(ears).await;
            if self.stopping.is_some() {
                break;
            }
        }
        self.wind_down(ears).await;
    }

    async fn wait(&self, ears: &mut Ears) -> Wake {
        let stuck = self.unwritten.refused || self.peer.is_overloaded();
        let at = tokio::time::Instant::from_std(self.wake_at());
        tokio::select! {
            changed = ears.durability.changed() => match changed {
                Ok(()) => Wake::Durable,
                Err(_) => Wake::Time,
            },
            Some(input) = ears.hands.recv() => Wake::Hands(input),
            Some(event) = next(&mut ears.executor) => Wake::Executor(event),
            Some(said) = next(&mut ears.models) => Wake::Models(said),
            // What would begin something new waits while nothing can be written.
            intake = ears.intake.recv(), if !stuck => Wake::Intake(intake),
            Some(ask) = ears.asks.recv() => Wake::Ask(ask),
            () = tokio::time::sleep_until(at) => Wake::Time,
        }
    }

    fn now(&self) -> Now {
        let since = self.started.elapsed();
        Now {
            mono: Mono::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX)),
            wall: wall(),
        }
    }

    fn wake_at(&self) -> Instant {
        let core = self
            .peer
            .next_timeout()
            .map(|at| self.started + Duration::from_micros(at.as_micros()));
        let republish = self.republish.as_ref().and_then(|own| own.at);
        let listen = self.listen_changed.map(|at| at + LISTEN_QUIET);
        let write = self.unwritten.since.map(|since| {
            if self.unwritten.refused {
                Instant::now() + WRITE_AGAIN
            } else {
                since + GATHER
            }
        });
        [core, republish, listen, write, self.pausing.review_at]
            .into_iter()
            .flatten()
            .fold(self.collect_at, Instant::min)
    }

    /// One input to the core, and everything that follows from it.
    async fn step(&mut self, input: Input) {
        let now = self.now();
        self.peer.handle(now, input);
        if let Err(broken) = self.peer.check_invariants() {
            tracing::error!(broken, "an invariant does not hold; please report this");
            debug_assert!(false, "{broken}");
        }
        // The disk is slowest and begins first. Of the tasks that are woken here
        // the last runs next: what peers wait for goes before what people see.
        let outputs = std::iter::from_fn(|| self.peer.poll_output());
        let (records, mut rest): (Vec<_>, Vec<_>) =
            outputs.partition(|output| matches!(output, Output::Persist { .. }));
        for record in records {
            self.carry_out(record).await;
        }
        if !self.quiet {
            self.write_awaited();
        }
        rest.sort_by_key(|output| match output {
            Output::Event(Event::Job { .. } | Event::Settled { .. }) => 0,
            Output::Event(_) => 2, // only logged
            _ => 1,
        });
        for output in rest {
            self.carry_out(output).await;
        }
        self.awaited.answer(self.peer.book());
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        if self.unwritten.is_due(now) {
            self.write_all();
        }
        if self
            .listen_changed
            .is_some_and(|at| at + LISTEN_QUIET <= now)
        {
            self.listen_changed = None;
            self.provide().await;
        }
        if let Some(own) = &mut self.republish
            && own.at.is_some_and(|at| at <= now)
        {
            own.at = None;
            let bytes = own.bytes.clone();
            self.say(TransportCommand::Publish { bytes }).await;
        }
        if self.pausing.review_at.is_some_and(|at| at <= now) {
            self.review().await;
        }
        if self.collect_at <= now {
            self.collect_at = now + COLLECT_EVERY;
            let needed = self.peer.needed_blobs();
            self.hands
                .give(Chore::Collect {
                    now: wall(),
                    needed,
                })
                .await;
        }
        self.step(Input::Tick).await;
    }

    /// Announces the offer with the addresses that are bound, unless it is paused.
    async fn provide(&mut self) {
        let sold = self
            .provider
            .as_ref()
            .filter(|_| self.pausing.now.is_none());
        let Some(mut provider) = sold.cloned() else {
            return;
        };
        let addresses = self
            .listen
            .iter()
            .filter_map(|at| Text::new(at.to_string()).ok())
            .collect();
        provider.offer.addresses = List::truncated(addresses);
        provider.offer.bandwidth_in = self.bandwidth_in;
        self.step(Input::Command(Command::Provide(Box::new(provider))))
            .await;
    }

    fn called(&self, from: &PeerKey, call: CallStream) {
        if let Some(serving) = &self.serving {
            serving.called(peer_of(from), call);
        }
    }

    async fn counted(&mut self, agreement: AgreementId, (read, written): (u64, u64)) {
        let counted = Input::Counted {
            agreement,
            read,
            written,
        };
        self.step(counted).await;
    }

    /// Models are told of in the offer while they answer.
    async fn on_models(&mut self, said: Said) {
        match said {
            Said::Input(input) => self.step(*input).await,
            Said::Models(devices, models) => {
                // Whoever sold models alone, and has none left, sells nothing.
                let is_empty = devices.is_empty();
                if let Some(provider) = &mut self.provider {
                    let slots = devices.iter().map(|device| device.slots).sum();
                    (provider.offer.slots, provider.offer.slots_free) = (slots, slots);
                    provider.offer.devices = List::truncated(devices);
                    provider.offer.models = List::truncated(models);
                }
                if self.stopping.is_none() && self.listen_changed.is_none() {
                    match is_empty {
                        true => self.step(Input::Command(Command::Withdraw)).await,
                        false => self.provide().await,
                    }
                }
            }
        }
    }

    /// A blob came: one that is large enough says how fast bytes come here, at least.
    /// The offer says it anew when it has grown by half.
    async fn learn_bandwidth(&mut self, bytes: u64, took: Duration) {
        if bytes < BANDWIDTH_BYTES_MIN {
            return;
        }
        let rate = u128::from(bytes) * 1_000_000 / took.as_micros().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        let offered = self.bandwidth_in;
        self.bandwidth_in = rate.max(offered);
        if rate > offered.saturating_add(offered / 2) && self.stopping.is_none() {
            Box::pin(self.provide()).await;
        }
    }

    /// Withdraws the offer, waits for what is written to be on disk, and ends.
    async fn wind_down(mut self, ears: &mut Ears) {
        self.quiet = false;
        self.step(Input::Command(Command::Withdraw)).await;
        let last = self.store.durability().borrow().lsn;
        tracing::debug!(last = last.number(), "stopping");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
        self.write_all();
        while !self.all_durable(ears) {
            tokio::select! {
                changed = ears.durability.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.on_durable(ears).await;
                }
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        // Lets the withdrawal leave.
        tokio::time::sleep(Duration::from_millis(50)).await;
        std::mem::take(&mut self.devices).stop().await;
        self.store.close().await;
        if let Some(done) = self.stopping.take() {
            let _ = done.send(());
        }
    }

    fn all_durable(&self, ears: &Ears) -> bool {
        let state = ears.durability.borrow();
        state.lsn.number() >= self.peer.last_lsn().0 || !matches!(state.health, Health::Writing)
    }
}

async fn next<T>(receiver: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match receiver {
        Some(receiver) => receiver.recv().await,
        None => std::future::pending().await,
    }
}

/// What the core wants.
impl Driver {
    async fn carry_out(&mut self, output: Output) {
        match output {
            Output::Persist { lsn, record } => {
                if let Record::Quoted { quote, .. } = &*record {
                    self.devices.expect(quote.body().device);
                }
                self.unwritten.push(lsn, record.encode());
            }
            Output::Send { to, frame, .. } => {
                let channel = channel_of(&frame);
                let bytes = frame.encode();
                self.say(TransportCommand::Send {
                    to: key_of(to),
                    channel,
                    bytes,
                })
                .await;
            }
            Output::Publish { bytes } => {
                let bytes = bytes.to_vec();
                self.republish = Some(Republish {
                    bytes: bytes.clone(),
                    at: None,
                    tries: 0,
                });
                self.say(TransportCommand::Publish { bytes }).await;
            }
            Output::Verdict { token, verdict } => {
                if let Some((id, from)) = self.gossip.remove(&token) {
                    let verdict = match verdict {
                        CoreVerdict::Accept => Verdict::Accept,
                        CoreVerdict::Ignore => Verdict::Ignore,
                        CoreVerdict::Reject => Verdict::Reject,
                    };
                    self.say(TransportCommand::GossipVerdict { id, from, verdict })
                        .await;
                }
            }
            Output::Execute(order) => self.execute(order).await,
            Output::Stop(id) => self.stop_execution(id),
            Output::Fetch(wanted) => self.fetch(wanted).await,
            Output::Store { blob, bytes, kept } => {
                self.hands.give(Chore::Store { blob, bytes, kept }).await;
            }
            Output::Retain { blob, until } => self.hands.give(Chore::Retain { blob, until }).await,
            output @ (Output::Compute { .. }
            | Output::OpenProduct { .. }
            | Output::ForgetProduct(_)
            | Output::Verify { .. }) => self.on_challenge(output).await,
            Output::Compare(comparison) => self.hands.compare(*comparison),
            Output::CheckProducts(check) => self.hands.check_products(*check),
            Output::Misbehaved { peer, what } => self.strike(peer, what).await,
            Output::Event(event) => self.on_event(event),
        }
    }

    async fn execute(&mut self, order: Box<ExecutionOrder>) {
        if order.model.is_some()
            && let Some(serving) = &self.serving
        {
            return serving.open(order);
        }
        self.next_number += 1;
        let (id, device) = (order.id, order.device);
        self.executions
            .insert(self.next_number, Running { id, device });
        let number = suanli_executor::ExecutionId(self.next_number);
        if !self.hands.run_now(number, &order) {
            self.hands.give(Chore::Run { number, order }).await;
        }
    }

    /// Hands over what somebody waits for, with all that came before it.
    fn write_awaited(&mut self) {
        if self.is_awaited() {
            self.write_all();
        }
    }

    fn is_awaited(&self) -> bool {
        let promised = self.promised.back().map(|promised| promised.after);
        let awaited = promised.max(Some(self.peer.awaited_lsn()));
        !self.unwritten.payloads.is_empty()
            && (awaited >= Some(self.unwritten.first)
                || self.unwritten.payloads.len() >= GATHER_MAX)
    }

    /// With nothing else to do, writes what somebody waits for on this thread:
    /// to wake another takes as long as a good disk's sync.
    async fn write_here(&mut self, ears: &mut Ears) {
        while self.quiet && self.is_awaited() && !self.unwritten.refused {
            let first = Lsn::new(self.unwritten.first.0);
            let (store, payloads) = (&self.store, &mut self.unwritten.payloads);
            if !store.try_write(first, payloads) {
                return self.write_all();
            }
            self.unwritten = Unwritten::default();
            self.on_durable(ears).await;
        }
    }

    /// Hands all records to the journal, in order.
    fn write_all(&mut self) {
        if self.unwritten.payloads.is_empty() {
            return;
        }
        let first = Lsn::new(self.unwritten.first.0);
        match self.store.try_append(first, &mut self.unwritten.payloads) {
            Ok(()) => self.unwritten = Unwritten::default(),
            Err(AppendError::Busy | AppendError::Full) => self.unwritten.refused = true,
            Err(error @ (AppendError::TooLong { .. } | AppendError::Stopped)) => {
                tracing::error!(error = %error, "a record could not be written");
                self.unwritten.refused = true;
            }
        }
    }

    async fn on_durable(&mut self, ears: &mut Ears) {
        let state = ears.durability.borrow_and_update().clone();
        match &state.health {
            Health::Writing | Health::Closed => {}
            Health::Low => tracing::warn!("the disk is nearly full; free some space"),
            Health::Full => {
                tracing::warn!("the disk is full: nothing new is begun until there is room")
            }
            Health::Failed(failure) => tracing::error!(%failure, "the journal has failed"),
        }
        if self.unwritten.refused {
            self.write_all();
        }
        self.keep_promises();
        self.step(Input::Persisted(CoreLsn(state.lsn.number())))
            .await;
        if let Some(trouble) = self.store_trouble() {
            self.refuse_unwritten(&trouble).await;
        }
    }

    /// Whoever handed a job in that can't be written down now is told so, and need not wait. With
    /// room there would be a job that nobody counts on any more: it is cancelled.
    async fn refuse_unwritten(&mut self, trouble: &str) {
        for (job, reply) in std::mem::take(&mut self.submitted) {
            let _ = reply.send(Err(NotTaken::Store(trouble.to_owned())));
            self.step(Input::Command(Command::Cancel(job))).await;
        }
    }

    async fn say(&self, command: TransportCommand) {
        // The engine keeps taking commands while it waits for us to take its
        // events, so waiting here can't lock the two up.
        if self.transport.send(command).await.is_err() {
            tracing::debug!("the transport has stopped");
        }
    }

    fn stop_execution(&self, id: ExecutionId) {
        let found = self.executions.iter().find(|(_, known)| known.id == id);
        if found.is_none()
            && let Some(serving) = &self.serving
        {
            return serving.close(id);
        }
        if let Some((number, running)) = found
            && let Err(refusal) =
                (self.devices).cancel(running.device, suanli_executor::ExecutionId(*number))
        {
            tracing::warn!(%refusal, "an execution could not be stopped; its deadline will");
        }
    }

    async fn fetch(&mut self, wanted: FetchOrder) {
        let FetchOrder {
            agreement,
            from,
            under,
            blob,
            what,
        } = wanted;
        // Here already, for whatever reason: the same bytes by name.
        if what != Fetched::Input && self.hands.has(blob.blob) {
            let blob = blob.blob;
            return self.hands.give(Chore::Secure { agreement, blob }).await;
        }
        if self.hands.has(blob.blob) {
            return Box::pin(self.step(Input::Fetched {
                agreement,
                blob: blob.blob,
                ok: true,
            }))
            .await;
        }
        if self.following.follows(wanted) {
            return;
        }
        self.next_number += 1;
        let file = self.hands.incoming(agreement, blob.blob);
        self.fetches.insert(
            self.next_number,
            Fetch {
                agreement,
                from,
                blob: blob.blob,
                file: file.clone(),
                what,
                began: Instant::now(),
            },
        );
        self.say(TransportCommand::FetchBlob(FetchBlob {
            id: FetchId(self.next_number),
            from: key_of(from),
            hash: *blob.blob.0.as_bytes(),
            size: BlobSize::Exactly(blob.bytes),
            under: *under.0.as_bytes(),
            into: file,
        }))
        .await;
    }

    async fn on_hands(&mut self, input: Input) {
        let others = match &input {
            Input::Fetched {
                agreement, blob, ..
            } => self.following.kept(*agreement, *blob),
            _ => Vec::new(),
        };
        self.step(input).await;
        for wanted in others {
            // Here now; or one of them tries, and the others follow that one.
            self.fetch(wanted).await;
        }
    }

    /// A peer did what no honest one does. Some of it may be a bug: a few times.
    async fn strike(&mut self, peer: PeerId, what: &str) {
        tracing::warn!(%peer, what, "a peer misbehaved");
        if self.strikes.len() >= STRIKES_KEPT {
            self.strikes.clear();
        }
        let count = self.strikes.entry(peer).or_default();
        *count += 1;
        if *count >= STRIKES {
            self.strikes.remove(&peer);
            let until = Instant::now() + BLOCK;
            self.say(TransportCommand::Block {
                peer: key_of(peer),
                until,
            })
            .await;
        }
    }

    fn on_event(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Job { job, event } => {
                if let Some(reply) = self.submitted.remove(&job) {
                    let taken = match &event {
                        JobEvent::Refused(decline) => Err(NotTaken::of(*decline)),
                        _ => Ok(()),
                    };
                    let _ = reply.send(taken);
                }
                tracing::debug!(%job, ?event, "job");
                let book = self.peer.book();
                let region = |peer| book.of(peer).map(|offer| offer.body().region.to_string());
                let event = watch::words(event, region);
                self.lines.add(job, now, event);
            }
            Event::Settled { receipts } => self.lines.settle(now, &receipts),
            Event::Work { agreement, client } => tracing::info!(%agreement, %client, "work agreed"),
            Event::Receipted {
                agreement,
                receipt,
                amount,
            } => {
                tracing::info!(%agreement, %receipt, %amount, "receipt issued");
            }
            Event::Judged {
                receipt, verdict, ..
            } => tracing::info!(%receipt, ?verdict, "receipt judged"),
            Event::Earned { receipts } => {
                tracing::info!(receipts = receipts.len(), "voucher taken")
            }
            Event::Credited { channel, settled } => {
                tracing::info!(%channel, %settled, "a provider has been paid");
            }
            Event::Challenged { provider, event } => {
                tracing::info!(%provider, ?event, "challenge");
                if let Some(reply) = self.challenging.remove(&provider) {
                    let _ = reply.send(event);
                }
            }
            Event::Referred { provider, event } => {
                tracing::info!(%provider, ?event, "references");
                if let Some(reply) = self.referring.remove(&provider) {
                    let _ = reply.send(event);
                }
            }
            Event::Frozen { channel } => {
                tracing::error!(%channel, "the channel is frozen: two vouchers with one number");
            }
        }
    }
}

/// A core's peer as the transport names it.
const fn key_of(peer: PeerId) -> PeerKey {
    PeerKey::new(*peer.as_bytes())
}

/// What comes from outside.
impl Driver {
    async fn on_intake(&mut self, intake: Intake) {
        match intake {
            Intake::Message {
                from,
                message,
                _held,
            } => {
                if let Message::Offers { offers, .. } = &*message {
                    self.learn_addresses(offers).await;
                }
                self.step(Input::Message { from, message }).await;
            }
            Intake::Gossip { id, from, gossip } => {
                if let Gossip::Offer(offer) = &*gossip {
                    self.learn_addresses(std::slice::from_ref(offer)).await;
                }
                self.next_number += 1;
                self.gossip.insert(self.next_number, (id, from));
                self.step(Input::Gossip {
                    token: self.next_number,
                    gossip,
                })
                .await;
            }
            Intake::BadGossip { id, from, why } => {
                tracing::debug!(?from, why, "gossip rejected");
                self.say(TransportCommand::GossipVerdict {
                    id,
                    from,
                    verdict: Verdict::Reject,
                })
                .await;
            }
            Intake::Bad { from, why } => self.strike(from, &why).await,
            Intake::Other(event) => self.on_transport(event).await,
        }
    }

    async fn learn_addresses(&self, offers: &[Verified<Offer>]) {
        for offer in offers {
            let addresses: Vec<Multiaddr> = offer
                .body()
                .addresses
                .iter()
                .filter_map(|at| at.parse().ok())
                .collect();
            if !addresses.is_empty() && offer.signer() != self.peer.id() {
                let peer = key_of(offer.signer());
                self.say(TransportCommand::AddAddresses { peer, addresses })
                    .await;
            }
        }
    }

    async fn link_measured(
        &mut self,
        peer: &PeerKey,
        rtt: Option<Duration>,
        bytes_per_second: Option<u64>,
    ) {
        let rtt_us = rtt.map(|rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX));
        let link = Way {
            rtt_us,
            bytes_per_second,
        };
        let peer = peer_of(peer);
        self.step(Input::Link { peer, link }).await;
    }

    async fn on_transport(&mut self, event: TransportEvent) {
        match event {
            TransportEvent::Listening { address } => {
                tracing::info!(%address, "listening");
                self.listen.push(address);
                self.listen_changed = Some(Instant::now());
            }
            TransportEvent::Connected { peer, address } => {
                let (peer, local) = (peer_of(&peer), is_loopback(&address));
                tracing::info!(%peer, %address, "connected");
                self.step(Input::Connected { peer, local }).await;
            }
            TransportEvent::Disconnected { peer } => {
                let peer = peer_of(&peer);
                tracing::info!(%peer, "disconnected");
                self.step(Input::Disconnected { peer }).await;
            }
            TransportEvent::LinkMeasured {
                peer,
                rtt,
                bytes_per_second,
            } => self.link_measured(&peer, rtt, bytes_per_second).await,
            TransportEvent::PublishFailed { why, .. } => self.publish_later(why),
            TransportEvent::Misbehaved { peer, what } => {
                self.strike(peer_of(&peer), &format!("{what:?}")).await;
            }
            TransportEvent::BlobRequested {
                from,
                hash,
                under,
                reply,
            } => {
                let _ = reply.send(self.serve(&from, hash, under));
            }
            TransportEvent::BlobDone { id, bytes } => {
                if let Some(fetch) = self.fetches.remove(&id.0) {
                    self.learn_bandwidth(bytes, fetch.began.elapsed()).await;
                    let Fetch {
                        agreement,
                        from: _,
                        blob,
                        file,
                        what,
                        began: _,
                    } = fetch;
                    self.hands
                        .give(Chore::Fetched {
                            agreement,
                            blob,
                            file,
                            what,
                        })
                        .await;
                }
            }
            TransportEvent::BlobFailed { id, why } => self.fetch_failed(id, &why).await,
            TransportEvent::Called { from, call } => self.called(&from, call),
            TransportEvent::DialFailed { peer, why } => {
                tracing::debug!(?peer, %why, "dial failed");
            }
            TransportEvent::SendFailed { to, why, .. } => {
                tracing::debug!(peer = ?to, %why, "a frame was not sent");
            }
            TransportEvent::BlobProgress { .. }
            | TransportEvent::Frame(_)
            | TransportEvent::Gossip { .. } => {}
        }
    }

    async fn fetch_failed(&mut self, id: FetchId, why: &BlobFailure) {
        if let Some(Fetch {
            agreement,
            from,
            blob,
            ..
        }) = self.fetches.remove(&id.0)
        {
            tracing::info!(%blob, %why, "a blob could not be fetched");
            let others = self.following.failed(from, blob);
            let others = others.into_iter().map(|wanted| wanted.agreement);
            for agreement in std::iter::once(agreement).chain(others) {
                let ok = false;
                self.step(Input::Fetched {
                    agreement,
                    blob,
                    ok,
                })
                .await;
            }
        }
    }

    /// Nobody listened: the offer is gossiped again in a moment.
    fn publish_later(&mut self, why: PublishFailure) {
        let hopeless = matches!(why, PublishFailure::Duplicate | PublishFailure::TooLarge);
        if let Some(own) = &mut self.republish
            && !hopeless
            && own.tries < REPUBLISH_MAX
        {
            own.tries += 1;
            own.at = Some(Instant::now() + REPUBLISH);
        }
    }

    fn serve(&self, from: &PeerKey, hash: [u8; 32], under: [u8; 32]) -> Option<ServeBlob> {
        use suanli_protocol::ids::Hash;
        let blob = BlobId(Hash::from_bytes(hash));
        let agreement = AgreementId(Hash::from_bytes(under));
        if !self.peer.may_read(wall(), peer_of(from), agreement, blob) {
            return None;
        }
        let path = self.hands.file_of(blob)?;
        let size = std::fs::metadata(&path).ok()?.len();
        Some(ServeBlob { path, size })
    }

    async fn on_executor(&mut self, event: suanli_executor::ExecutionEvent) {
        use suanli_executor::ExecutionEvent as Theirs;
        match event {
            Theirs::Started { id, worker_pid } => {
                tracing::debug!(execution = %id, worker_pid, "execution started");
            }
            Theirs::Progress { id, done, total } => {
                self.execution(id, ExecutionEvent::Progress { done, total })
                    .await;
            }
            Theirs::Checkpoint { id, done, state } => {
                if let Some(&Running { id, .. }) = self.executions.get(&id.0) {
                    self.hands.give(Chore::Checkpoint { id, done, state }).await;
                }
            }
            Theirs::Log { id, line } => self.execution(id, ExecutionEvent::Log(line)).await,
            Theirs::Finished { id, outputs, .. } if self.challenges.has(id) => {
                if let Some(challenge) = self.challenges.take(id) {
                    self.challenges.commit(challenge, outputs);
                }
            }
            Theirs::Failed {
                id,
                failure,
                detail,
                ..
            } if self.challenges.has(id) => {
                tracing::warn!(%failure, detail, "a challenge could not be computed");
                if let Some(challenge) = self.challenges.take(id) {
                    let seed = challenge.seed;
                    self.step(Input::Computed { seed, root: None }).await;
                }
            }
            Theirs::Finished { id, outputs, usage } => {
                if let Some(running) = self.executions.remove(&id.0) {
                    self.finished(running.id, outputs, usage).await;
                }
            }
            Theirs::Failed {
                id,
                failure,
                detail,
                usage,
            } => {
                let reason = hands::reason_of(&failure);
                tracing::info!(execution = %id, %failure, detail, "execution failed");
                for line in detail.lines().take(100) {
                    self.execution(id, ExecutionEvent::Log(line.to_owned()))
                        .await;
                }
                let usage = hands::usage_lines(&usage);
                self.execution(id, ExecutionEvent::Failed { reason, usage })
                    .await;
                self.executions.remove(&id.0);
                self.hands.give(Chore::Clear(id)).await;
            }
        }
    }

    /// Outputs that are in memory go out with the receipt at once, and to the
    /// disk meanwhile; others go to the disk first.
    async fn finished(&mut self, id: ExecutionId, outputs: Vec<OutputBlob>, usage: Usage) {
        let outputs = match hands::in_memory(outputs) {
            Ok(outputs) => outputs,
            Err(outputs) => return self.hands.give(Chore::Finish { id, outputs, usage }).await,
        };
        let bytes = outputs.iter().filter_map(|output| output.inline.clone());
        self.hands.give(Chore::Keep(bytes.collect())).await;
        let usage = hands::usage_lines(&usage);
        let event = ExecutionEvent::Finished { outputs, usage };
        self.step(Input::Execution { id, event }).await;
    }

    async fn execution(&mut self, number: suanli_executor::ExecutionId, event: ExecutionEvent) {
        if let Some(&Running { id, .. }) = self.executions.get(&number.0) {
            self.step(Input::Execution { id, event }).await;
        }
    }
}

fn is_loopback(address: &Multiaddr) -> bool {
    address.iter().next().is_some_and(|first| match first {
        Protocol::Ip4(ip) => ip.is_loopback(),
        Protocol::Ip6(ip) => ip.is_loopback(),
        _ => false,
    })
}

/// What people ask.
impl Driver {
    async fn on_ask(&mut self, ask: Ask) {
        // An asker that has gone away needs no answer.
        match ask {
            Ask::Snapshot(reply) => {
                let _ = reply.send(self.snapshot());
            }
            Ask::Job(job, reply) => {
                let _ = reply.send(self.peer.job(job));
            }
            Ask::Offers(reply) => {
                let _ = reply.send(self.peer.book().iter().cloned().collect());
            }
            Ask::Plan(order, reply) => {
                let _ = reply.send(self.peer.plan(&order, wall()));
            }
            Ask::Submit(order, reply) => self.submit(order, reply).await,
            Ask::Cancel(job, reply) => {
                let open = self.is_open(job);
                if open {
                    self.step(Input::Command(Command::Cancel(job))).await;
                }
                self.when_durable(reply, open);
            }
            Ask::Challenge(provider, reply) => self.challenge(provider, reply).await,
            Ask::References(provider, reply) => self.ask_references(provider, reply).await,
            Ask::Look(look) => self.on_look(look),
            Ask::Watch(job, reply) => {
                let open = self.is_open(job);
                let _ = reply.send(self.lines.watch(job, open));
            }
            Ask::Settle(declaration, reply) => {
                let _ = reply.send(self.settle(declaration).await);
            }
            Ask::Counted(agreement, tokens) => self.counted(agreement, tokens).await,
            Ask::Forged(provider, account) => self.step(Input::Forged(provider, account)).await,
            Ask::Grant(budgets, reply) => {
                self.step(Input::Command(Command::Grant(budgets))).await;
                let _ = reply.send(());
            }
            Ask::Announce(reply) => {
                if self.pausing.now.is_none() {
                    self.step(Input::Command(Command::Announce)).await;
                }
                let _ = reply.send(());
            }
            Ask::Sequence(provider, reply) => {
                let offer = self.peer.book().of(provider);
                let _ = reply.send(offer.map(|offer| offer.body().sequence));
            }
            Ask::Reached(provider, sequence, reply) => {
                self.awaited.add(provider, sequence, reply);
                self.awaited.answer(self.peer.book());
            }
            Ask::Written(reply) if self.unwritten.refused => {
                let _ = reply.send(false);
            }
            Ask::Written(reply) => self.when_durable(reply, true),
            Ask::Pause { until, now, reply } => {
                let _ = reply.send(self.pause(until, now).await);
            }
            Ask::Resume(reply) => {
                let _ = reply.send(self.resume().await);
            }
            Ask::Neighbour(name) => self.saw_neighbour(name).await,
            Ask::Stop(reply) => self.stopping = Some(reply),
        }
    }

    /// What changes nothing.
    fn on_look(&self, look: Look) {
        match look {
            Look::Report(account, reply) => {
                let _ = reply.send(self.peer.report(account, wall()));
            }
            Look::Reports(reply) => {
                let _ = reply.send(self.peer.reports(wall()));
            }
            Look::Staying(mut blobs, reply) => {
                blobs.retain(|blob| self.peer.is_staying(*blob));
                let _ = reply.send(blobs);
            }
            Look::Standing(provider, reply) => {
                let _ = reply.send(self.peer.standing(provider));
            }
            Look::Budgets(reply) => {
                let _ = reply.send(self.peer.budgets());
            }
            Look::Budget(principal, reply) => {
                let _ = reply.send(self.peer.budget(&principal));
            }
        }
    }

    /// Declares a payment, or asks the payer first. The answer comes when it is
    /// on disk.
    async fn settle(
        &mut self,
        declaration: Box<Declaration>,
    ) -> Result<oneshot::Receiver<bool>, NotSettled> {
        let may = self.peer.may_settle(&declaration);
        if matches!(may, Ok(()) | Err(NotSettled::NotInStep)) {
            self.step(Input::Command(Command::Settle(declaration)))
                .await;
        }
        may?;
        let (reply, written) = oneshot::channel();
        self.when_durable(reply, true);
        Ok(written)
    }

    /// Answers once all that is written so far is on disk: what was said to
    /// be done stays done.
    fn when_durable(&mut self, reply: oneshot::Sender<bool>, answer: bool) {
        self.promised.push_back(Promised {
            after: self.peer.last_lsn(),
            reply,
            answer,
        });
        while self.promised.len() > PROMISED_MAX {
            // Its asker learns that there is no answer.
            self.promised.pop_front();
        }
        self.write_awaited();
        self.keep_promises();
    }

    fn keep_promises(&mut self) {
        let (durable, never) = {
            let state = self.store.durability();
            let state = state.borrow();
            let never = matches!(state.health, Health::Failed(_) | Health::Closed);
            (state.lsn.number(), never)
        };
        while let Some(promised) = self.promised.pop_front_if(|next| next.after.0 <= durable) {
            // An asker that has gone away needs no answer.
            let _ = promised.reply.send(promised.answer);
        }
        if never {
            self.promised.clear();
        }
    }

    fn is_open(&self, job: JobId) -> bool {
        self.peer.job(job).is_some_and(|known| known.end.is_none())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            jobs: self.peer.jobs(),
            work: self.peer.work(),
            channels: self.peer.channels(),
            slots_used: self.peer.slots_used(),
            listen: self.listen.iter().map(ToString::to_string).collect(),
            store_failed: self.store_trouble(),
            paused: self.pausing.now.clone(),
        }
    }

    fn store_trouble(&self) -> Option<String> {
        match &self.store.durability().borrow().health {
            Health::Writing | Health::Low => None,
            Health::Full => Some("the disk is full; free some space and the node goes on".into()),
            Health::Failed(failure) => Some(failure.to_string()),
            Health::Closed => Some("the store is closed".into()),
        }
    }

    async fn submit(&mut self, order: Box<JobOrder>, reply: oneshot::Sender<Result<(), NotTaken>>) {
        let job = order.job;
        if let Some(trouble) = self.store_trouble() {
            let _ = reply.send(Err(NotTaken::Store(trouble)));
            return;
        }
        if self.peer.job(job).is_some() {
            let _ = reply.send(Ok(()));
            return;
        }
        let missing = std::iter::once(&order.spec)
            .chain(order.inputs.iter())
            .find(|blob| !self.hands.has(blob.blob) && !self.peer.is_staying(blob.blob));
        if let Some(missing) = missing {
            let _ = reply.send(Err(NotTaken::BlobMissing(missing.blob)));
            return;
        }
        self.submitted.insert(job, reply);
        self.step(Input::Command(Command::Submit(order))).await;
    }
}
