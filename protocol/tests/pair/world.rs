//! Peers on a virtual clock, over a link that does what a test tells it.
//!
//! Everything travels as bytes. A node's disk is slow: what it wrote counts
//! only when the write has ended, and a crash loses the rest. Three rules are
//! checked at every step, whatever a test is about: nothing signed leaves
//! before it is on disk, nobody signs two different answers to one question,
//! and [`Peer::check_invariants`] holds.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use suanli_protocol::{
    deal::{BlobRef, Checkpoint, Needs, Quote, Work},
    delegation::Delegation,
    envelope::{Body, Envelope, Extensions, Signer},
    ids::{AgreementId, BlobId, Hash, JobId, NetworkId, PeerId},
    limits::{COMPARISONS_MAX, INLINE_BYTES_MAX, JUDGED_BYTES_MAX},
    message::{Frame, Gossip, InlineBlob, Message},
    offer::{Charge, Device, Name, Offer, RuntimeOffer, Speed, Terms},
    peer::{
        Command, ComparedOutput, Comparison, Config, Event, ExecutionEvent, ExecutionId,
        ExecutionOrder, FetchOrder, Input, JobEvent, JobView, Kept, Output, Peer, ProductsCheck,
        ProvidedOutput, ProviderConfig, Timing,
    },
    rank::Policy,
    receipt::{Acceptance, OutputRef, Receipt, Verdict},
    record::{JobOrder, Lsn, Record, Verify},
    registry::{
        Confidentiality, DeviceKind, Reason, Runtime, SandboxLevel, SpeedKind, Verification, kind,
    },
    units::{Amount, Meter, Millis, Mono, Now, Price, Usage, Wall},
    voucher::{Voucher, VoucherAck},
    wire::{Bytes, List, Text},
};

#[path = "factors.rs"]
pub(crate) mod factors;
#[path = "products.rs"]
mod products;

use self::products::Products;
pub(crate) use self::products::Solver;

pub(crate) const NETWORK: &str = "pair";
pub(crate) const DELAY: Duration = Duration::from_millis(5);
const DISK: Duration = Duration::from_millis(2);
/// Blobs take longer than records: a node may stop in between.
const BLOB_DISK: Duration = Duration::from_millis(9);
/// When the worlds begin, in civil time.
const EPOCH_MS: u64 = 1_800_000_000_000;

pub(crate) fn network() -> NetworkId {
    NetworkId::of(NETWORK)
}

pub(crate) fn micros(amount: u64) -> Amount {
    Amount::from_micros(amount)
}

/// What the link does to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Deliver,
    Drop,
    Twice,
    Late(Duration),
}

/// A frame on the link.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) frame: Frame,
}

/// What a node's executor does with an execution.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Run {
    Done {
        ms: u64,
    },
    /// Wrong results, after a time.
    Lies {
        ms: u64,
    },
    /// So many floats, all alike, after a time.
    Floats {
        ms: u64,
        value: f32,
        count: usize,
    },
    /// The product of the first two inputs, as [`SIDES`] says, with one number off by so
    /// much.
    Product {
        ms: u64,
        off: f32,
    },
    /// One unit fails, all others are done.
    FailsUnit(u32),
    Fails(Reason),
    Hangs,
    /// [`STEPS`] steps, each so long, with a checkpoint after each if any is wanted; after
    /// so many it hangs.
    Steps {
        ms: u64,
        until: u64,
    },
}

/// The unit whose results are too large for any message.
pub(crate) const LARGE_UNIT: u32 = 4001;

/// Steps of an execution that has any.
pub(crate) const STEPS: u64 = 10;

#[derive(Debug)]
enum Happening {
    Frame {
        from: usize,
        to: usize,
        bytes: Vec<u8>,
    },
    Gossip {
        to: usize,
        bytes: Vec<u8>,
    },
    Synced {
        node: usize,
        lsn: Lsn,
        life: u64,
    },
    Execution {
        node: usize,
        id: ExecutionId,
        event: ExecutionEvent,
        life: u64,
        run: u64,
    },
    Fetched {
        node: usize,
        agreement: AgreementId,
        under: AgreementId,
        blob: BlobId,
        from: usize,
        life: u64,
    },
    Stored {
        node: usize,
        blob: BlobId,
        /// Who waits for it.
        agreement: Option<AgreementId>,
        life: u64,
    },
    Restart {
        node: usize,
    },
    /// Something that takes its time comes back.
    Input {
        node: usize,
        input: Box<Input>,
        life: u64,
    },
}

pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) signer: Signer,
    pub(crate) peer: Option<Peer>,
    pub(crate) disk: Vec<(Lsn, Vec<u8>)>,
    unsynced: VecDeque<(Lsn, Vec<u8>)>,
    /// Envelopes on disk.
    durable: BTreeSet<Hash>,
    pub(crate) blobs: BTreeSet<BlobId>,
    pub(crate) skew_ms: i64,
    pub(crate) run: Run,
    pub(crate) solver: Solver,
    running: BTreeMap<ExecutionId, u64>,
    /// How often it was started: what an earlier life began comes to nothing.
    life: u64,
    /// Outputs carried out in all lives.
    pub(crate) outputs: u64,
    pub(crate) crash_after: Option<u64>,
    pub(crate) keeps_unsynced: bool,
    pub(crate) restarts_after: Option<Duration>,
    /// Its checkpoints are gone when they are asked for.
    pub(crate) loses_states: bool,
    /// What a node without a peer is told.
    pub(crate) inbox: Vec<(usize, Message)>,
}

pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    now: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    count: u64,
    pub(crate) link: Box<dyn FnMut(&Sent) -> Fate>,
    pub(crate) sent: Vec<Sent>,
    pub(crate) events: Vec<(usize, Event)>,
    pub(crate) executed: Vec<(usize, ExecutionOrder)>,
    pub(crate) blamed: Vec<(PeerId, &'static str)>,
    /// All that was asked for, and by whom.
    pub(crate) fetched: Vec<(usize, BlobRef)>,
    /// Answers by question: two different ones are a contradiction.
    answers: BTreeMap<String, Hash>,
    pub(crate) same_time_steps: u32,
    pub(crate) products: Products,
    /// What executions gave.
    contents: BTreeMap<BlobId, Vec<u8>>,
    /// How long results are compared, and what was.
    pub(crate) comparing: Duration,
    pub(crate) compared: Vec<Comparison>,
    pub(crate) checked: Vec<ProductsCheck>,
    /// When each that is under way ends.
    comparisons_end: Vec<u64>,
    /// Disks on which results can't be read again.
    pub(crate) unreadable: bool,
}

/// Building.
impl World {
    /// A client, number 0, and providers that cost more the higher their number.
    pub(crate) fn new(providers: usize) -> Self {
        let mut world = Self::empty();
        world.add(None);
        for _ in 0..providers {
            let provider = world.provider(world.nodes.len());
            world.add(Some(provider));
        }
        world
    }

    pub(crate) fn empty() -> Self {
        Self {
            nodes: Vec::new(),
            now: 0,
            queue: BTreeMap::new(),
            count: 0,
            link: Box::new(|_| Fate::Deliver),
            sent: Vec::new(),
            events: Vec::new(),
            executed: Vec::new(),
            blamed: Vec::new(),
            fetched: Vec::new(),
            answers: BTreeMap::new(),
            same_time_steps: 0,
            products: Products::default(),
            contents: BTreeMap::new(),
            comparing: DELAY,
            compared: Vec::new(),
            checked: Vec::new(),
            comparisons_end: Vec::new(),
            unreadable: false,
        }
    }

    /// What a provider of this number sells, to the first client on credit.
    pub(crate) fn provider(&self, number: usize) -> ProviderConfig {
        let client = account_signer(0).public().account();
        ProviderConfig {
            offer: offer(number),
            known: [(client, micros(1_000_000))].into(),
            blocked: BTreeSet::new(),
            strangers_budget: micros(100_000),
            local_only: false,
            discount_percent_max: 10,
            challenges_per_hour: 12,
            references_per_hour: 120,
            queue: 0,
            pricing: std::sync::Arc::new(suanli_protocol::pricing::Fixed),
        }
    }

    /// Adds a node; it lives after [`World::start`].
    pub(crate) fn add(&mut self, provider: Option<ProviderConfig>) -> usize {
        let number = self.nodes.len();
        let signer = node_signer(number);
        let config = Config {
            account: account_signer(number).public().account(),
            delegation: delegate(number),
            region: Name::default(),
            traffic: Amount::ZERO,
            provider,
            budgets: BTreeMap::new(),
            timing: Timing::default(),
        };
        self.nodes.push(Node {
            config,
            signer,
            peer: None,
            disk: Vec::new(),
            unsynced: VecDeque::new(),
            durable: BTreeSet::new(),
            blobs: BTreeSet::new(),
            skew_ms: 0,
            run: Run::Done { ms: 100 },
            solver: Solver::Honest { ms: 100 },
            running: BTreeMap::new(),
            life: 0,
            outputs: 0,
            crash_after: None,
            keeps_unsynced: false,
            restarts_after: None,
            loses_states: false,
            inbox: Vec::new(),
        });
        number
    }

    pub(crate) fn offer_of(&mut self, node: usize) -> &mut Offer {
        &mut self.config_of(node).offer
    }

    pub(crate) fn config_of(&mut self, node: usize) -> &mut ProviderConfig {
        self.nodes[node].config.provider.as_mut().unwrap()
    }

    /// Starts all nodes but the puppets, and lets their books fill.
    pub(crate) fn start(mut self, puppets: &[usize]) -> Self {
        for node in 0..self.nodes.len() {
            if !puppets.contains(&node) {
                self.boot(node);
            }
        }
        self.pass(Duration::from_millis(100));
        self
    }
}

fn secret(kind: u8, number: usize) -> [u8; 32] {
    *Hash::derive("suanli pair test keys", &[&[kind], &number.to_le_bytes()]).as_bytes()
}

pub(crate) fn node_signer(number: usize) -> Signer {
    Signer::new(&secret(1, number), network())
}

pub(crate) fn account_signer(number: usize) -> Signer {
    Signer::new(&secret(2, number), network())
}

pub(crate) fn delegate(number: usize) -> suanli_protocol::delegation::RawDelegation {
    account_signer(number)
        .sign(
            Wall::from_millis(EPOCH_MS - 1000),
            Wall::from_millis(u64::MAX),
            Delegation {
                node: node_signer(number).public().peer(),
                provides: true,
                consumes: true,
                extensions: Extensions::default(),
            },
        )
        .raw()
}

pub(crate) fn name(text: &str) -> Name {
    Text::new(text).unwrap()
}

/// Provider `k` asks 1000·k for a job and 10·k for a millisecond.
pub(crate) fn offer(number: usize) -> Offer {
    let k = u64::try_from(number).unwrap();
    let price = |meter, amount, per| Price {
        meter,
        amount: micros(amount),
        per,
    };
    Offer {
        account: account_signer(number).public().account(),
        delegation: delegate(number),
        sequence: 0,
        region: name("CN-NX"),
        addresses: List::default(),
        devices: List::truncated(vec![Device {
            kind: DeviceKind::GPU,
            maker: name("maker"),
            model: name("model"),
            driver: name("driver"),
            memory_bytes: 1 << 30,
            slots: 4,
            runtimes: List::truncated(
                [Runtime::WGSL, Runtime::MODEL]
                    .map(|runtime| RuntimeOffer {
                        runtime,
                        version: 1,
                        features: List::default(),
                    })
                    .to_vec(),
            ),
            speeds: List::truncated(vec![Speed {
                kind: SpeedKind::FP32,
                per_second: 1_000_000_000,
                measured: Wall::from_millis(EPOCH_MS),
            }]),
        }]),
        models: List::default(),
        prices: List::truncated(vec![
            price(Meter::JOB, 1000 * k, 1),
            price(Meter::GPU_MS, 10 * k, 1),
            price(Meter::TOKEN_OUT, k, 1),
        ]),
        slots: 4,
        slots_free: 4,
        storage_bytes: 1 << 30,
        bandwidth_in: 0,
        bandwidth_out: 0,
        run_max: Millis::new(3_600_000),
        sandbox: SandboxLevel::PROCESS,
        energy: None,
        terms: Terms {
            strangers: true,
            stranger_credit: micros(20_000),
            on_cancel: Charge::Usage,
            on_job_fault: Charge::Usage,
            on_provider_fault: Charge::Nothing,
            retention: Millis::new(60_000),
        },
        accept: None,
        firm: true,
        extensions: Extensions::default(),
    }
}

pub(crate) fn blob(bytes: &[u8]) -> BlobRef {
    BlobRef {
        blob: BlobId(Hash::of(bytes)),
        bytes: u64::try_from(bytes.len()).unwrap(),
    }
}

/// A job with a spec that travels inline and an input that is fetched.
pub(crate) fn order(number: u8) -> JobOrder {
    let (spec, input) = (&b"spec"[..], &b"input"[..]);
    JobOrder {
        job: JobId::from_bytes([number; 16]),
        name: name("job"),
        principal: name("me"),
        work: Work::Job,
        spec: blob(spec),
        inputs: List::truncated(vec![blob(input)]),
        needs: Needs {
            runtime: Runtime::WGSL,
            features: List::default(),
            device: None,
            memory_bytes: 1 << 20,
            sandbox: SandboxLevel::PROCESS,
            run_max: Millis::new(1000),
            output_bytes_max: 1 << 20,
            fuel_max: 0,
            model: None,
        },
        budget: micros(100_000),
        regions: List::default(),
        providers: List::default(),
        condition: None,
        rank: None,
        policy: Policy::Cheapest,
        flops: 0,
        confidentiality: Confidentiality::NONE,
        retention: Millis::new(60_000),
        total: Millis::new(120_000),
        take: false,
        parallel: 64,
        max_failures: 0,
        verify: Verify::NONE,
        counter_percent: 0,
        checkpoint_every: None,
        staying: List::default(),
        inline: List::truncated(vec![InlineBlob {
            blob: blob(spec).blob,
            bytes: Bytes::new(spec.to_vec()).unwrap(),
        }]),
    }
}

/// The same for the processor, with so much fuel.
pub(crate) fn wasm_order(number: u8, fuel_max: u64) -> JobOrder {
    let mut order = order(number);
    order.needs.runtime = Runtime::WASM;
    order.needs.fuel_max = fuel_max;
    order
}

/// Sells fuel at so much a unit, beside what it sells.
pub(crate) fn sell_fuel(offer: &mut Offer, price: u64) {
    let mut devices = offer.devices.to_vec();
    for device in &mut devices {
        let mut runtimes = device.runtimes.to_vec();
        runtimes.push(RuntimeOffer {
            runtime: Runtime::WASM,
            version: 1,
            features: List::default(),
        });
        device.runtimes = List::truncated(runtimes);
    }
    offer.devices = List::truncated(devices);
    let mut prices = offer.prices.to_vec();
    prices.push(Price {
        meter: Meter::WASM_FUEL,
        amount: micros(price),
        per: 1,
    });
    offer.prices = List::truncated(prices);
}

/// Asking.
impl World {
    pub(crate) fn now(&self, node: usize) -> Now {
        let wall = i64::try_from(EPOCH_MS + self.now / 1000).unwrap() + self.nodes[node].skew_ms;
        Now {
            mono: Mono::from_micros(self.now),
            wall: Wall::from_millis(u64::try_from(wall).unwrap()),
        }
    }

    pub(crate) fn id(&self, node: usize) -> PeerId {
        self.nodes[node].signer.public().peer()
    }

    fn number(&self, peer: PeerId) -> usize {
        (0..self.nodes.len())
            .find(|&node| self.id(node) == peer)
            .unwrap()
    }

    pub(crate) fn peer(&self, node: usize) -> &Peer {
        self.nodes[node].peer.as_ref().unwrap()
    }

    /// Executions that a node's executor has now.
    pub(crate) fn running(&self, node: usize) -> usize {
        self.nodes[node].running.len()
    }

    pub(crate) fn job(&self, number: u8) -> JobView {
        let job = JobId::from_bytes([number; 16]);
        let views = self.peer(0).jobs();
        views.into_iter().find(|view| view.job == job).unwrap()
    }

    pub(crate) fn records(&self, node: usize) -> Vec<Record> {
        self.nodes[node]
            .disk
            .iter()
            .map(|(_, bytes)| Record::decode(bytes, network()).unwrap())
            .collect()
    }

    pub(crate) fn count_sent(&self, is: impl Fn(&Frame) -> bool) -> usize {
        self.sent.iter().filter(|sent| is(&sent.frame)).count()
    }

    /// What verification was done, for each receipt that a client's disk has accepted.
    pub(crate) fn words(&self, node: usize) -> Vec<Verification> {
        let words = self.records(node).into_iter();
        let words = words.filter_map(|record| match record {
            Record::Judged { acceptance, .. } => Some(acceptance),
            _ => None,
        });
        let accepted = words.filter(|word| word.body().verdict == Verdict::Accepted);
        accepted.map(|word| word.body().verification).collect()
    }

    /// Providers whose results the client calls wrong.
    pub(crate) fn named(&self) -> BTreeSet<PeerId> {
        let events = self.events.iter().filter_map(|(_, event)| match event {
            Event::Job {
                event: JobEvent::Disputed { peer, reason },
                ..
            } => Some((*peer, *reason)),
            _ => None,
        });
        let wrong = events.filter(|(_, reason)| *reason == Reason::WRONG_RESULT);
        wrong.map(|(peer, _)| peer).collect()
    }

    /// Who these nodes are.
    pub(crate) fn peers(&self, nodes: &[usize]) -> BTreeSet<PeerId> {
        nodes.iter().map(|&node| self.id(node)).collect()
    }

    /// Accounts that two nodes have in common, seen from both: equal when all
    /// is said.
    pub(crate) fn assert_conserved(&self) {
        self.assert_conserved_with(1);
    }

    /// The same, where so many equal results of a unit may be paid.
    pub(crate) fn assert_conserved_with(&self, copies: usize) {
        for (n, node) in self.nodes.iter().enumerate() {
            let Some(peer) = &node.peer else { continue };
            let views = peer.channels();
            let mut cumulative = 0;
            for view in views.iter().filter(|view| view.paying) {
                cumulative += view.cumulative.as_micros() + view.pending.as_micros();
                let other = self.number(view.parties.payee);
                let Some(other) = &self.nodes[other].peer else {
                    continue;
                };
                let theirs = other
                    .channels()
                    .into_iter()
                    .find(|theirs| theirs.channel == view.channel && !theirs.paying);
                let theirs =
                    theirs.map_or((0, 0), |view| (view.sequence, view.cumulative.as_micros()));
                assert_eq!(
                    theirs,
                    (view.sequence, view.cumulative.as_micros()),
                    "the channel's two sides differ"
                );
            }
            assert_eq!(cumulative, peer.accepted_total().as_micros(), "node {n}");
        }
        self.assert_no_unit_paid_more_often(copies);
    }

    fn assert_no_unit_paid_more_often(&self, copies: usize) {
        use suanli_protocol::receipt::Outcome;
        let mut paid: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut jobs = BTreeMap::new();
        for record in self.records(0) {
            match record {
                Record::Took { quote, .. } => {
                    jobs.insert(AgreementId(quote.hash()), quote.body().job);
                }
                Record::Judged {
                    receipt,
                    acceptance,
                    ..
                } => {
                    let body = receipt.body();
                    let is_last = body.key.last && body.outcome == Outcome::Completed;
                    if is_last && acceptance.body().verdict == Verdict::Accepted {
                        let unit = (jobs[&body.key.agreement], body.key.unit);
                        let paid = paid.entry(unit).or_default();
                        paid.push(body.outputs.clone());
                        assert!(paid.len() <= copies, "unit {unit:?} was accepted too often");
                        assert!(
                            paid.iter().all(|outputs| self.are_equal(outputs, body)),
                            "unit {unit:?} has two accepted results"
                        );
                    }
                }
                _ => {}
            }
        }
    }

    /// Results of one unit that were both paid: the same, or compared before.
    fn are_equal(&self, one: &[OutputRef], other: &Receipt) -> bool {
        let pair = |(a, b): (&OutputRef, &OutputRef)| {
            a.blob == b.blob
                || self.compared.iter().flat_map(|of| &of.pairs).any(|pair| {
                    let blobs = [pair[0].blob, pair[1].blob];
                    blobs.contains(&a.blob) && blobs.contains(&b.blob)
                })
        };
        one.len() == other.outputs.len() && one.iter().zip(other.outputs.iter()).all(pair)
    }

    /// Whether all jobs of the client ended and all that it owes to those who
    /// live is acknowledged.
    pub(crate) fn is_settled(&self) -> bool {
        let Some(peer) = &self.nodes[0].peer else {
            return false;
        };
        peer.jobs().iter().all(|job| job.end.is_some())
            && peer.channels().iter().all(|view| {
                let is_dead = self.nodes[self.number(view.parties.payee)].peer.is_none();
                is_dead || view.acknowledged == view.sequence && view.pending.as_micros() == 0
            })
    }
}

/// Doing.
impl World {
    pub(crate) fn command(&mut self, node: usize, command: Command) {
        self.feed(node, Input::Command(command));
    }

    pub(crate) fn submit(&mut self, order: JobOrder) {
        self.submit_at(0, order);
    }

    pub(crate) fn submit_at(&mut self, node: usize, order: JobOrder) {
        for blob in std::iter::once(&order.spec).chain(order.inputs.iter()) {
            self.nodes[node].blobs.insert(blob.blob);
        }
        self.command(node, Command::Submit(Box::new(order)));
    }

    /// A puppet says something.
    pub(crate) fn say(&mut self, from: usize, to: usize, frame: Frame) {
        self.schedule(
            DELAY,
            Happening::Frame {
                from,
                to,
                bytes: frame.encode(),
            },
        );
    }

    pub(crate) fn gossip(&mut self, to: usize, bytes: &[u8]) {
        let bytes = bytes.to_vec();
        self.schedule(DELAY, Happening::Gossip { to, bytes });
    }

    /// Runs until a condition holds; says whether it came to hold in time.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> bool {
        let end = self.now + u64::try_from(limit.as_micros()).unwrap();
        while !holds(self) {
            if !self.step(end) {
                return false;
            }
        }
        true
    }

    pub(crate) fn run_until_settled(&mut self) {
        let settled = self.run_until(Duration::from_secs(300), Self::is_settled);
        assert!(
            settled,
            "not settled: {:#?} {:#?}",
            self.nodes[0].peer.as_ref().map(Peer::jobs),
            self.nodes[0].peer.as_ref().map(Peer::channels)
        );
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// The next thing that happens, unless it is after `end`.
    fn step(&mut self, end: u64) -> bool {
        let happening = self.queue.first_key_value().map(|((at, _), _)| *at);
        let timer = (0..self.nodes.len())
            .filter_map(|node| {
                let at = self.nodes[node].peer.as_ref()?.next_timeout()?;
                Some((at.as_micros(), node))
            })
            .min();
        let next = happening
            .unwrap_or(u64::MAX)
            .min(timer.map_or(u64::MAX, |(at, _)| at))
            .max(self.now);
        if next > end {
            self.now = end;
            return false;
        }
        self.same_time_steps = if next > self.now {
            0
        } else {
            self.same_time_steps + 1
        };
        assert!(
            self.same_time_steps < 20_000,
            "it spins without time passing"
        );
        self.now = next;
        match timer {
            Some((at, node)) if at <= next => self.feed(node, Input::Tick),
            _ => {
                let (_, happening) = self.queue.pop_first().unwrap();
                self.happen(happening);
            }
        }
        true
    }

    fn schedule(&mut self, after: Duration, happening: Happening) {
        self.count += 1;
        let at = self.now + u64::try_from(after.as_micros()).unwrap();
        self.queue.insert((at, self.count), happening);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Frame { from, to, bytes } => self.arrive(from, to, &bytes),
            Happening::Gossip { to, bytes } => {
                if let Ok(gossip) = Gossip::verify(&bytes, network()) {
                    let gossip = Box::new(gossip);
                    self.feed(to, Input::Gossip { token: 0, gossip });
                }
            }
            Happening::Synced { node, lsn, life } => {
                if self.nodes[node].life == life {
                    self.nodes[node].sync(Some(lsn));
                    self.feed(node, Input::Persisted(lsn));
                }
            }
            Happening::Execution {
                node,
                id,
                event,
                life,
                run,
            } => {
                let known = &self.nodes[node];
                if known.life == life && known.running.get(&id) == Some(&run) {
                    self.says(node, id, event);
                }
            }
            Happening::Fetched {
                node,
                agreement,
                under,
                blob,
                from,
                life,
            } => {
                let reader = self.id(node);
                let now = self.now(from).wall;
                let holder = &self.nodes[from];
                let ok = holder.blobs.contains(&blob)
                    && (holder.peer.as_ref())
                        .is_some_and(|peer| peer.may_read(now, reader, under, blob));
                if self.nodes[node].life == life {
                    if ok {
                        self.nodes[node].blobs.insert(blob);
                    }
                    let input = Input::Fetched {
                        agreement,
                        blob,
                        ok,
                    };
                    self.feed(node, input);
                }
            }
            Happening::Stored {
                node,
                blob,
                agreement,
                life,
            } => {
                if self.nodes[node].life == life {
                    self.stored(node, blob, agreement);
                }
            }
            Happening::Restart { node } => self.boot(node),
            Happening::Input { node, input, life } => {
                if self.nodes[node].life == life {
                    self.feed(node, *input);
                }
            }
        }
    }

    /// An executor says something; what it kept is on its disk.
    fn says(&mut self, node: usize, id: ExecutionId, event: ExecutionEvent) {
        let known = &mut self.nodes[node];
        match &event {
            ExecutionEvent::Finished { .. } | ExecutionEvent::Failed { .. } => {
                known.running.remove(&id);
            }
            ExecutionEvent::Checkpoint { state, .. } if !known.loses_states => {
                known
                    .blobs
                    .extend(state.iter().map(|state| state.blob.blob));
            }
            _ => {}
        }
        self.feed(node, Input::Execution { id, event });
    }

    fn arrive(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let peer = self.id(from);
        let Ok(message) = Frame::decode(bytes).unwrap().verify(peer, network()) else {
            self.blamed.push((peer, "a frame that does not verify"));
            return;
        };
        if self.nodes[to].peer.is_none() {
            self.nodes[to].inbox.push((from, message));
            return;
        }
        let message = Box::new(message);
        self.feed(
            to,
            Input::Message {
                from: peer,
                message,
            },
        );
    }

    pub(crate) fn feed(&mut self, node: usize, input: Input) {
        let now = self.now(node);
        let Some(peer) = &mut self.nodes[node].peer else {
            return;
        };
        peer.handle(now, input);
        self.drain(node);
    }

    fn drain(&mut self, node: usize) {
        loop {
            let this = &mut self.nodes[node];
            let Some(peer) = &mut this.peer else { return };
            if this.crash_after == Some(this.outputs) {
                return self.crash(node);
            }
            let Some(output) = peer.poll_output() else {
                peer.check_invariants().unwrap();
                return;
            };
            this.outputs += 1;
            self.carry_out(node, output);
        }
    }

    fn carry_out(&mut self, node: usize, output: Output) {
        let life = self.nodes[node].life;
        match output {
            Output::Persist { lsn, record } => {
                let bytes = record.encode();
                self.nodes[node].unsynced.push_back((lsn, bytes));
                self.schedule(DISK, Happening::Synced { node, lsn, life });
            }
            Output::Send { to, frame, .. } => self.transmit(node, to, *frame),
            Output::Publish { bytes } => {
                self.assert_durable(node, &bytes);
                for to in (0..self.nodes.len()).filter(|&to| to != node) {
                    self.gossip(to, &bytes);
                }
            }
            Output::Execute(order) => self.execute(node, *order),
            Output::Stop(id) => {
                if self.nodes[node].running.contains_key(&id) {
                    let event = ExecutionEvent::Failed {
                        reason: Reason::CANCELLED,
                        usage: if self.serves_lease(id) {
                            Vec::new()
                        } else {
                            usage(5)
                        },
                    };
                    self.execution(node, id, Duration::from_millis(1), event);
                }
            }
            Output::Fetch(FetchOrder {
                agreement,
                from,
                under,
                blob,
                ..
            }) => {
                self.fetched.push((node, blob));
                let from = self.number(from);
                self.schedule(
                    DELAY * 2,
                    Happening::Fetched {
                        node,
                        agreement,
                        under,
                        blob: blob.blob,
                        from,
                        life,
                    },
                );
            }
            Output::Store { blob, kept, .. } => self.store(node, blob, kept),
            Output::Misbehaved { peer, what } => self.blamed.push((peer, what)),
            Output::Event(event) => self.events.push((node, event)),
            Output::Compare(comparison) => self.compare(node, *comparison),
            Output::CheckProducts(check) => self.check_products(node, *check),
            Output::Retain { .. } | Output::Verdict { .. } => {}
            output @ (Output::Compute { .. }
            | Output::OpenProduct { .. }
            | Output::ForgetProduct(_)
            | Output::Verify { .. }) => self.challenge_output(node, output),
        }
    }

    /// A node hears something later, unless it has died until then.
    pub(crate) fn feed_later(&mut self, node: usize, after: Duration, input: Input) {
        let (input, life) = (Box::new(input), self.nodes[node].life);
        self.schedule(after, Happening::Input { node, input, life });
    }

    /// Comparisons that are under way.
    pub(crate) fn comparing_now(&self) -> usize {
        let ends = self.comparisons_end.iter();
        ends.filter(|end| **end > self.now).count()
    }

    fn compare(&mut self, node: usize, comparison: Comparison) {
        let blobs = &self.nodes[node].blobs;
        let mut outputs = comparison.pairs.iter().flatten();
        let here = outputs.all(|output| match &output.inline {
            Some(inline) => Some(inline) == self.contents.get(&output.blob.blob),
            None => blobs.contains(&output.blob.blob),
        });
        assert!(here, "{comparison:?} is of what node {node} does not have");
        let bytes = |output: &ComparedOutput| self.contents[&output.blob.blob].clone();
        let near =
            |[a, b]: &[ComparedOutput; 2]| comparison.tolerance.allows_pieces(&bytes(a), &bytes(b));
        let equal = (!self.unreadable).then(|| comparison.pairs.iter().all(near));
        let id = comparison.id;
        self.compared.push(comparison);
        self.say_compared(node, Input::Compared { id, equal });
    }

    /// It takes as long as comparisons do, and there are few at once.
    fn say_compared(&mut self, node: usize, input: Input) {
        let now = self.now;
        self.comparisons_end.retain(|end| *end > now);
        let takes = u64::try_from(self.comparing.as_micros()).unwrap();
        self.comparisons_end.push(now + takes);
        assert!(self.comparing_now() <= COMPARISONS_MAX);
        self.feed_later(node, self.comparing, input);
    }

    /// What blobs hold.
    pub(crate) fn knows(&mut self, bytes: &[u8]) -> BlobRef {
        self.contents.insert(blob(bytes).blob, bytes.to_vec());
        blob(bytes)
    }

    fn store(&mut self, node: usize, blob: BlobId, kept: Kept) {
        let agreement = match kept {
            Kept::Input => {
                self.nodes[node].blobs.insert(blob);
                return;
            }
            Kept::Result => None,
            Kept::OnlyResult(agreement) | Kept::State(agreement) => Some(agreement),
        };
        let life = self.nodes[node].life;
        self.schedule(
            BLOB_DISK,
            Happening::Stored {
                node,
                blob,
                agreement,
                life,
            },
        );
    }

    fn stored(&mut self, node: usize, blob: BlobId, agreement: Option<AgreementId>) {
        self.nodes[node].blobs.insert(blob);
        if let Some(agreement) = agreement {
            let ok = true;
            let input = Input::Fetched {
                agreement,
                blob,
                ok,
            };
            self.feed(node, input);
        }
    }

    pub(crate) fn transmit(&mut self, from: usize, to: PeerId, frame: Frame) {
        for bytes in own_envelopes(&frame) {
            self.assert_durable(from, bytes);
            self.assert_consistent(from, bytes);
        }
        if let Frame::Acceptance(raw) = &frame {
            self.assert_results_kept(from, raw.verify(network()).unwrap().body());
        }
        let to = self.number(to);
        let bytes = frame.encode();
        let sent = Sent { from, to, frame };
        let fate = (self.link)(&sent);
        self.sent.push(sent);
        let copies = match fate {
            Fate::Deliver => vec![DELAY],
            Fate::Drop => vec![],
            Fate::Twice => vec![DELAY, DELAY * 3],
            Fate::Late(after) => vec![after],
        };
        for after in copies {
            let bytes = bytes.clone();
            self.schedule(after, Happening::Frame { from, to, bytes });
        }
    }

    /// A signature that leaves without a durable record is the worst bug.
    fn assert_durable(&self, node: usize, bytes: &[u8]) {
        let envelope = Envelope::parse(bytes).unwrap();
        let mine = envelope.header().signer.peer() == self.id(node);
        assert!(
            !mine || self.nodes[node].durable.contains(&envelope.hash()),
            "node {node} shows {:?} before it is on disk",
            envelope.header()
        );
    }

    /// What is accepted can't be lost any more: it is a blob, or in a record.
    fn assert_results_kept(&self, node: usize, word: &Acceptance) {
        if word.verdict != Verdict::Accepted || self.nodes[node].peer.is_none() {
            return;
        }
        for record in self.records(node) {
            if let Record::Judged {
                receipt, outputs, ..
            } = record
                && receipt.hash() == word.receipt.0
            {
                for output in receipt.body().outputs.iter() {
                    let blob = output.blob.blob;
                    if self.peer(node).is_staying(blob) {
                        continue;
                    }
                    let is_blob = self.nodes[node].blobs.contains(&blob);
                    let is_written = outputs.iter().any(|output| output.blob == blob);
                    assert!(is_blob || is_written, "{blob} was accepted and can be lost");
                }
            }
        }
    }

    /// Whether all that the client accepted is among its blobs.
    pub(crate) fn has_all_results(&self) -> bool {
        let accepted = |record: Record| match record {
            Record::Judged {
                receipt,
                acceptance,
                ..
            } if acceptance.body().verdict == Verdict::Accepted => Some(receipt),
            _ => None,
        };
        let blobs = &self.nodes[0].blobs;
        (self.records(0).into_iter().filter_map(accepted))
            .all(|receipt| (receipt.body().outputs.iter()).all(|o| blobs.contains(&o.blob.blob)))
    }

    /// One question, one answer.
    fn assert_consistent(&mut self, node: usize, bytes: &[u8]) {
        let envelope = Envelope::parse(bytes).unwrap();
        if envelope.header().signer.peer() != self.id(node) {
            return;
        }
        let Some((question, answer)) = answer(&envelope) else {
            return;
        };
        let known = *self.answers.entry(question).or_insert(answer);
        assert_eq!(known, answer, "{envelope:?} contradicts another");
    }

    fn execute(&mut self, node: usize, order: ExecutionOrder) {
        let id = order.id;
        self.count += 1;
        self.nodes[node].running.insert(id, self.count);
        let run = self.nodes[node].run;
        self.executed.push((node, order.clone()));
        if let Some((until, interval)) = order.lease {
            return self.serve_lease(node, id, until, interval.duration());
        }
        let progress = ExecutionEvent::Progress { done: 1, total: 2 };
        self.execution(node, id, Duration::from_millis(1), progress);
        match run {
            Run::FailsUnit(unit) if unit == id.unit => {
                let (reason, usage) = (Reason::TRAPPED, usage(10));
                let event = ExecutionEvent::Failed { reason, usage };
                self.execution(node, id, Duration::from_millis(10), event);
            }
            Run::Done { ms }
            | Run::Lies { ms }
            | Run::Floats { ms, .. }
            | Run::Product { ms, .. } => self.finishes(node, id, ms, run),
            Run::FailsUnit(_) => self.finishes(node, id, 10, run),
            Run::Fails(reason) => {
                let usage = usage(10);
                let event = ExecutionEvent::Failed { reason, usage };
                self.execution(node, id, Duration::from_millis(10), event);
            }
            Run::Hangs => {}
            Run::Steps { ms, until } => self.steps(node, &order, ms, until),
        }
    }

    fn steps(&mut self, node: usize, order: &ExecutionOrder, ms: u64, until: u64) {
        let first = match &order.resume {
            None => 0,
            Some(kept) => {
                assert_eq!(*kept, checkpoint(kept.unit, kept.done), "not what was told");
                assert_eq!(kept.unit, order.id.unit);
                let blobs = &self.nodes[node].blobs;
                assert!(
                    kept.blobs().all(|blob| blobs.contains(&blob.blob)),
                    "not here"
                );
                kept.done
            }
        };
        for done in first + 1..STEPS.min(until + 1) {
            let after = Duration::from_millis((done - first) * ms);
            let progress = ExecutionEvent::Progress { done, total: STEPS };
            self.execution(node, order.id, after, progress);
            if order.checkpoint_every.is_some() {
                let state = states(order.id.unit, done);
                let event = ExecutionEvent::Checkpoint { done, state };
                self.execution(node, order.id, after, event);
            }
        }
        if until >= STEPS {
            let ms = (STEPS - first) * ms;
            self.finishes(node, order.id, ms, Run::Done { ms });
        }
    }

    fn finishes(&mut self, node: usize, id: ExecutionId, ms: u64, run: Run) {
        let word = match run {
            Run::Lies { .. } => format!("invented by {node}: "),
            _ => String::new(),
        };
        let mut output = match run {
            Run::Floats { value, count, .. } => [value.to_le_bytes()].repeat(count).concat(),
            Run::Product { off, .. } => self.product(node, id, off),
            _ => format!("{word}result of {}", id.unit).into_bytes(),
        };
        if id.unit % 4 == 2 && !matches!(run, Run::Floats { .. } | Run::Product { .. }) {
            output.resize(JUDGED_BYTES_MAX + 1, 0);
        }
        // Too large for any message.
        if id.unit == LARGE_UNIT && !matches!(run, Run::Floats { .. }) {
            output.resize(INLINE_BYTES_MAX + 1, 0);
        }
        self.contents.insert(blob(&output).blob, output.clone());
        let outputs = vec![ProvidedOutput {
            name: name("out"),
            blob: blob(&output),
            // Even units' travel inside, some too large for a record;
            // odd units' are fetched.
            inline: id.unit.is_multiple_of(2).then_some(output.clone()),
        }];
        self.nodes[node].blobs.insert(blob(&output).blob);
        let usage = usage(ms);
        let event = ExecutionEvent::Finished { outputs, usage };
        self.execution(node, id, Duration::from_millis(ms), event);
    }

    fn serves_lease(&self, id: ExecutionId) -> bool {
        let leases = |(_, order): &(usize, ExecutionOrder)| order.id == id && order.lease.is_some();
        self.executed.iter().any(leases)
    }

    /// A hundred tokens in each interval, until the end.
    fn serve_lease(&mut self, node: usize, id: ExecutionId, until: Wall, interval: Duration) {
        let usage = vec![Usage {
            meter: Meter::TOKEN_OUT,
            quantity: 100,
        }];
        let left = until.since(self.now(node).wall);
        let mut after = interval;
        while after < left {
            let event = ExecutionEvent::Interim(usage.clone());
            self.execution(node, id, after, event);
            after += interval;
        }
        let event = ExecutionEvent::Finished {
            outputs: Vec::new(),
            usage,
        };
        self.execution(node, id, left, event);
    }

    fn execution(&mut self, node: usize, id: ExecutionId, after: Duration, event: ExecutionEvent) {
        let life = self.nodes[node].life;
        let run = self.nodes[node].running[&id];
        self.schedule(
            after,
            Happening::Execution {
                node,
                id,
                event,
                life,
                run,
            },
        );
    }
}

/// Dying and rising.
impl World {
    /// Starts a node from its disk, and connects it with all that live.
    pub(crate) fn boot(&mut self, node: usize) {
        let now = self.now(node);
        let this = &mut self.nodes[node];
        this.life += 1;
        let records: Vec<(Lsn, Record)> = this
            .disk
            .iter()
            .map(|(lsn, bytes)| (*lsn, Record::decode(bytes, network()).unwrap()))
            .collect();
        let mut seed = secret(3, node);
        seed[0] ^= u8::try_from(this.life % 256).unwrap();
        this.peer = Some(Peer::restore(
            now,
            this.config.clone(),
            this.signer.clone(),
            seed,
            records.into_iter(),
        ));
        self.drain(node);
        for other in (0..self.nodes.len()).filter(|&other| other != node) {
            self.connect(node, other);
        }
    }

    pub(crate) fn connect(&mut self, a: usize, b: usize) {
        if self.nodes[a].peer.is_none() || self.nodes[b].peer.is_none() {
            return;
        }
        let (peer_a, peer_b) = (self.id(a), self.id(b));
        let connected = |peer| Input::Connected { peer, local: true };
        self.feed(a, connected(peer_b));
        self.feed(b, connected(peer_a));
    }

    /// Stops a node at once. What it had not synced is lost.
    pub(crate) fn crash(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        this.peer = None;
        this.life += 1;
        this.crash_after = None;
        this.running.clear();
        self.comparisons_end.clear();
        let this = &mut self.nodes[node];
        if this.keeps_unsynced {
            this.sync(None);
        }
        this.unsynced.clear();
        if let Some(after) = this.restarts_after {
            self.schedule(after, Happening::Restart { node });
        }
        let peer = self.id(node);
        for other in (0..self.nodes.len()).filter(|&other| other != node) {
            self.feed(other, Input::Disconnected { peer });
        }
    }

    /// Puts an old copy of a node's disk back.
    pub(crate) fn restore_backup(&mut self, node: usize, disk: Vec<(Lsn, Vec<u8>)>) {
        self.crash(node);
        let this = &mut self.nodes[node];
        this.disk = disk;
        this.durable = this
            .disk
            .iter()
            .flat_map(|(_, bytes)| envelopes_in(bytes))
            .collect();
        self.boot(node);
    }
}

impl Node {
    fn sync(&mut self, upto: Option<Lsn>) {
        while self
            .unsynced
            .front()
            .is_some_and(|(lsn, _)| upto.is_none_or(|upto| *lsn <= upto))
        {
            let (lsn, bytes) = self.unsynced.pop_front().unwrap();
            self.durable.extend(envelopes_in(&bytes));
            self.disk.push((lsn, bytes));
        }
    }
}

/// What [`Run::Steps`] keeps after a step: one buffer that travels inside, one that is
/// fetched.
fn states(unit: u32, done: u64) -> Vec<ProvidedOutput> {
    let state = |of: &str, is_inline: bool| {
        let bytes = format!("{of} state of {unit} after {done}").into_bytes();
        ProvidedOutput {
            name: name(of),
            blob: blob(&bytes),
            inline: is_inline.then_some(bytes),
        }
    };
    vec![state("small", true), state("large", false)]
}

fn checkpoint(unit: u32, done: u64) -> Checkpoint {
    let state = states(unit, done).into_iter().map(|state| OutputRef {
        name: state.name,
        blob: state.blob,
    });
    Checkpoint {
        unit,
        done,
        state: List::truncated(state.collect()),
    }
}

pub(crate) fn usage(ms: u64) -> Vec<Usage> {
    vec![
        Usage {
            meter: Meter::JOB,
            quantity: 1,
        },
        Usage {
            meter: Meter::GPU_MS,
            quantity: ms,
        },
    ]
}

/// All envelopes inside a record, by their magic number.
fn envelopes_in(bytes: &[u8]) -> Vec<Hash> {
    let length_at = |at: usize| {
        let field = bytes.get(at + 72..at + 76)?;
        let body = u32::from_le_bytes(field.try_into().unwrap());
        Some(76 + usize::try_from(body).unwrap() + 64)
    };
    (0..bytes.len())
        .filter(|&at| bytes[at..].starts_with(b"sua\x01"))
        .filter_map(|at| bytes.get(at..at + length_at(at)?).map(Hash::of))
        .collect()
}

fn own_envelopes(frame: &Frame) -> Vec<&[u8]> {
    match frame {
        Frame::Ask(raw)
        | Frame::Quoted(raw)
        | Frame::Agree(raw, _)
        | Frame::Receipt(raw, _)
        | Frame::Acceptance(raw)
        | Frame::Voucher(raw)
        | Frame::VoucherAck(raw)
        | Frame::Settlement(raw) => vec![&raw.0],
        Frame::Heads(heads) => {
            let parts = [&heads.voucher, &heads.ack, &heads.settlement];
            parts.into_iter().flatten().map(|raw| &*raw.0).collect()
        }
        _ => vec![],
    }
}

/// What an envelope answers, for kinds of which there may be only one, and
/// with what.
fn answer(envelope: &Envelope) -> Option<(String, Hash)> {
    fn body<T: Body>(envelope: &Envelope) -> T {
        envelope.verify::<T>(network()).unwrap().body().clone()
    }
    let whole = envelope.hash();
    Some(match envelope.header().kind {
        kind::QUOTE => (
            format!("quote {:#}", body::<Quote>(envelope).request),
            whole,
        ),
        kind::RECEIPT => {
            let key = body::<Receipt>(envelope).key;
            let question = format!("receipt {:#} {} {}", key.agreement, key.unit, key.index);
            (question, whole)
        }
        // A restored backup may say the same at another time.
        kind::ACCEPTANCE => {
            let body = body::<Acceptance>(envelope);
            let verdict = format!("{:?}", body.verdict);
            (
                format!("acceptance {:#}", body.receipt),
                Hash::of(verdict.as_bytes()),
            )
        }
        kind::VOUCHER => {
            let body = body::<Voucher>(envelope);
            let channel = body.parties.channel(network());
            (format!("voucher {channel:#} {}", body.sequence), whole)
        }
        kind::VOUCHER_ACK => {
            let body = body::<VoucherAck>(envelope);
            let total = Hash::of(body.cumulative.to_string().as_bytes());
            (format!("ack {:#}", body.voucher), total)
        }
        _ => return None,
    })
}
