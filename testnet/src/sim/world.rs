//! The world: nodes, virtual time, and a queue of what happens next.
//!
//! One loop takes the earliest event, gives it to whom it concerns, and
//! carries out what comes of it. Everything that is drawn by chance is drawn
//! here or below, in the order of events, so that a seed has one history.
//!
//! ```text
//! queue ──(time, number)──▶ deliver ──▶ Peer::handle ──▶ poll_output ──▶ queue
//!                              │                │              │
//!                              └── trace hash   └── checkers ──┘
//! ```

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use suanli_protocol::{
    ids::{AgreementId, BlobId, JobId, NetworkId, PeerId},
    message::Verdict,
    peer::{
        ComparisonId, Event as PeerEvent, ExecutionId, FetchOrder, Input, JobEvent, Output,
        ResultId,
    },
    record::{JobEnd, JobOrder, Lsn, Record},
    units::Mono,
};

use super::{
    Figures, Setup,
    check::Checks,
    dice::Dice,
    node::{Ix, Node},
    patience::Watch,
    plant::Plant,
    reading::Reader,
    script::Script,
    trace::{Subject, Trace},
    trades::Trades,
};
use crate::scenario::{Nature, Scenario};

/// A market is over so long after its last job: time enough for all that is still said about
/// payments, which takes seconds.
const SETTLING: Duration = Duration::from_mins(30);

/// Something that happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// A node starts, anew or again.
    Start(Ix),
    /// Some node stops without warning, a few outputs from now.
    Crash,
    /// A connection comes up.
    Connect(Ix, Ix),
    /// A connection goes down.
    Disconnect(Ix, Ix),
    /// Some connection breaks.
    Break,
    /// Bytes arrive on a stream.
    Frame { from: Ix, to: Ix, bytes: Arc<[u8]> },
    /// Bytes arrive by gossip.
    Gossip { from: Ix, to: Ix, bytes: Arc<[u8]> },
    /// Records up to a position are on disk.
    Durable { node: Ix, boot: u64, upto: Lsn },
    /// A peer's timer.
    Tick { node: Ix, boot: u64 },
    /// An execution goes on.
    Run {
        node: Ix,
        boot: u64,
        id: ExecutionId,
        number: u64,
        part: Part,
    },
    /// Somebody asks for a blob.
    Serve {
        reader: Ix,
        boot: u64,
        server: Ix,
        /// For which agreement, and under which it is served.
        agreement: (AgreementId, AgreementId),
        blob: BlobId,
    },
    /// A blob came, or did not.
    Fetched {
        node: Ix,
        boot: u64,
        agreement: AgreementId,
        blob: BlobId,
        ok: bool,
    },
    /// A result is on disk.
    Stored {
        node: Ix,
        boot: u64,
        /// Who waits for it.
        agreement: Option<AgreementId>,
        blob: BlobId,
    },
    /// Two results are compared.
    Compared {
        node: Ix,
        boot: u64,
        id: ComparisonId,
        equal: Option<bool>,
    },
    /// A result's products are checked.
    ProductsChecked {
        node: Ix,
        boot: u64,
        found: (ResultId, Option<bool>),
    },
    /// A person hands a job in.
    Submit { node: Ix, order: Box<JobOrder> },
    /// A person stops a job.
    Cancel { node: Ix, job: JobId },
    /// An operator declares something paid, or announces anew.
    Operate(Ix),
    /// The network splits, and heals again.
    Partition,
    /// It heals.
    Heal(u64),
    /// A hostile node does something.
    Act(Ix),
    /// Nothing goes wrong any more.
    Quiet,
}

/// A part of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// So many thirds are done.
    Third(u64),
    /// A part of a lease.
    Interim,
    /// Over.
    End,
}

/// The world.
#[derive(Debug)]
pub(crate) struct World<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) plant: Option<Plant>,
    pub(crate) dice: Dice,
    /// Decides where checkpoints are, and which starts are from them.
    pub(crate) checkpoints: Dice,
    pub(crate) now: Mono,
    pub(crate) quiet: bool,
    pub(crate) nodes: Vec<Node>,
    pub(crate) by_peer: BTreeMap<PeerId, Ix>,
    pub(crate) links: super::links::Links,
    pub(crate) reader: Reader,
    pub(crate) checks: Checks,
    pub(crate) trace: Trace,
    pub(crate) figures: Figures,
    /// What jobs were declined for, by the reason's name.
    pub(crate) declines: BTreeMap<String, u64>,
    /// A fault that is to strike at one message.
    pub(crate) script: Option<Script>,
    pub(crate) runs: u64,
    /// Operations of the programs of which that is known.
    pub(crate) sizes: BTreeMap<BlobId, u64>,
    pub(crate) trades: Trades,
    /// Whether it is certain that too many jobs wait too long.
    pub(crate) out_of_patience: bool,
    pub(crate) watch: Option<Watch>,
    /// Jobs of a market that have not ended yet; none in other runs, which last as long as
    /// they last.
    unended: Option<u64>,
    queue: BTreeMap<(Mono, u64), Event>,
    number: u64,
    steps_left: u64,
}

impl<'a> World<'a> {
    pub(crate) fn new(setup: &'a Setup) -> Self {
        let network = NetworkId::of(&setup.scenario.name);
        let nodes = super::cast::nodes(setup, network);
        let by_peer = nodes
            .iter()
            .enumerate()
            .map(|(ix, node)| (node.peer_id(), ix))
            .collect();
        let mut world = Self {
            scenario: &setup.scenario,
            plant: setup.plant,
            dice: Dice::new(setup.seed, "world"),
            checkpoints: Dice::new(setup.seed, "checkpoints"),
            now: Mono::from_micros(0),
            quiet: false,
            by_peer,
            links: super::links::Links::default(),
            reader: Reader::new(network),
            checks: Checks::new(network, &nodes),
            trace: Trace::new(setup.record),
            figures: Figures::default(),
            declines: BTreeMap::new(),
            script: None,
            runs: 0,
            sizes: BTreeMap::new(),
            trades: Trades::default(),
            out_of_patience: false,
            watch: None,
            unended: None,
            nodes,
            queue: BTreeMap::new(),
            number: 0,
            steps_left: setup.steps.unwrap_or(u64::MAX),
        };
        world.begin(setup);
        world
    }

    /// Puts what happens by itself into the queue.
    fn begin(&mut self, setup: &Setup) {
        for ix in 0..self.nodes.len() {
            let at = self.dice.millis([0, 300]);
            self.later(at, Event::Start(ix));
        }
        let work_ends = Duration::from_secs(self.scenario.seconds);
        let plan = super::work::plan(self.scenario, &self.nodes, setup.seed);
        if self.scenario.market.is_some() {
            self.unended = u64::try_from(plan.len()).ok();
        }
        self.watch = setup.patience.map(|asked| Watch::new(asked, plan.len()));
        for (at, event) in plan {
            self.later(at, event);
        }
        self.plan_faults();
        self.later(work_ends, Event::Quiet);
    }

    /// Runs to the end of the quiet time.
    pub(crate) fn run(&mut self) {
        let all = Duration::from_secs(self.scenario.seconds + self.scenario.quiet_seconds);
        let mut end = Mono::from_micros(0).after(all);
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > end {
                break;
            }
            if let Some(watch) = &mut self.watch
                && watch.is_over(at, &self.trades)
            {
                self.out_of_patience = true;
                return;
            }
            self.now = at;
            self.deliver(event);
            self.watch_totals();
            if self.unended == Some(0) {
                self.unended = None;
                end = end.min(at.after(SETTLING));
            }
            self.steps_left = self.steps_left.saturating_sub(1);
            if self.steps_left == 0 && !self.quiet {
                self.deliver(Event::Quiet);
                end = self
                    .now
                    .after(Duration::from_secs(self.scenario.quiet_seconds));
            }
        }
        self.now = end;
        self.checks.end(end, &self.nodes);
    }

    /// Runs to a time since the beginning.
    pub(crate) fn run_until(&mut self, until: Duration) {
        let end = Mono::from_micros(0).after(until);
        while let Some(next) = self.queue.first_entry().filter(|next| next.key().0 <= end) {
            self.now = next.key().0;
            let event = next.remove();
            self.deliver(event);
        }
        self.now = end;
    }

    /// What is on its way to or from a node is lost.
    pub(crate) fn lose_frames(&mut self, ix: Ix) {
        self.queue.retain(
            |_, event| !matches!(event, Event::Frame { from, to, .. } if *from == ix || *to == ix),
        );
    }

    /// Something happens some time from now.
    pub(crate) fn later(&mut self, after: Duration, event: Event) {
        self.number += 1;
        self.queue
            .insert((self.now.after(after), self.number), event);
    }

    fn deliver(&mut self, event: Event) {
        if let Event::Tick { node, boot } = event {
            return self.on_tick(node, boot);
        }
        self.note(&event);
        match event {
            Event::Start(ix) => self.start(ix),
            Event::Crash => self.arm_crash(),
            Event::Connect(a, b) => self.connect(a, b),
            Event::Disconnect(a, b) => self.disconnect(a, b),
            Event::Break => self.break_some(),
            Event::Frame { from, to, bytes } => self.on_frame(from, to, &bytes),
            Event::Gossip { from, to, bytes } => self.on_gossip(from, to, bytes),
            Event::Durable { node, boot, upto } => self.on_durable(node, boot, upto),
            Event::Tick { .. } => {}
            Event::Run {
                node,
                boot,
                id,
                number,
                part,
            } => {
                if self.is_up(node, boot) {
                    self.run_part(node, id, number, part);
                }
            }
            Event::Serve {
                reader,
                boot,
                server,
                agreement,
                blob,
            } => self.serve(reader, boot, server, agreement, blob),
            Event::Fetched {
                node,
                boot,
                agreement,
                blob,
                ok,
            } => {
                if self.is_up(node, boot) {
                    self.fetched(node, agreement, blob, ok);
                }
            }
            Event::Stored {
                node,
                boot,
                agreement,
                blob,
            } => {
                if self.is_up(node, boot) {
                    self.stored(node, agreement, blob);
                }
            }
            Event::Compared {
                node,
                boot,
                id,
                equal,
            } => self.compared((node, boot), id, equal),
            Event::ProductsChecked { node, boot, found } => {
                self.products_checked((node, boot), found);
            }
            Event::Submit { node, order } => self.submit(node, order),
            Event::Cancel { node, job } => self.cancel(node, job),
            Event::Operate(node) => self.operate(node),
            Event::Partition => self.partition(),
            Event::Heal(number) => self.heal(number),
            Event::Act(node) => self.act(node),
            Event::Quiet => self.calm_down(),
        }
    }

    /// Into the trace hash.
    fn note(&mut self, event: &Event) {
        let none: &[u8] = &[];
        let (tag, nodes, payload): (u8, [Ix; 2], &[u8]) = match event {
            Event::Start(ix) => (1, [*ix, 0], none),
            Event::Crash => (2, [0, 0], none),
            Event::Connect(a, b) => (3, [*a, *b], none),
            Event::Disconnect(a, b) => (4, [*a, *b], none),
            Event::Break => (5, [0, 0], none),
            Event::Frame { from, to, bytes } => (6, [*from, *to], bytes),
            Event::Gossip { from, to, bytes } => (7, [*from, *to], bytes),
            Event::Durable { node, upto, .. } => (8, [*node, 0], &upto.0.to_le_bytes()),
            Event::Tick { node, .. } => (9, [*node, 0], none),
            Event::Run { node, id, .. } => (10, [*node, 0], id.agreement.0.as_bytes()),
            Event::Serve {
                reader,
                server,
                blob,
                ..
            } => (11, [*reader, *server], blob.0.as_bytes()),
            Event::Fetched { node, blob, ok, .. } => {
                (12, [*node, usize::from(*ok)], blob.0.as_bytes())
            }
            Event::Stored { node, blob, .. } => (20, [*node, 0], blob.0.as_bytes()),
            Event::Compared {
                node, id, equal, ..
            } => (
                21,
                [*node, usize::from(*equal == Some(true))],
                id.job.as_bytes(),
            ),
            Event::ProductsChecked {
                node,
                found: (id, right),
                ..
            } => (
                22,
                [*node, usize::from(*right == Some(true))],
                id.job.as_bytes(),
            ),
            Event::Submit { node, order } => (13, [*node, 0], order.job.as_bytes()),
            Event::Cancel { node, job } => (14, [*node, 0], job.as_bytes()),
            Event::Operate(node) => (15, [*node, 0], none),
            Event::Partition => (16, [0, 0], none),
            Event::Heal(_) => (17, [0, 0], none),
            Event::Act(node) => (18, [*node, 0], none),
            Event::Quiet => (19, [0, 0], none),
        };
        self.trace.event(self.now, tag, nodes, payload);
    }

    pub(crate) fn is_up(&self, ix: Ix, boot: u64) -> bool {
        self.nodes[ix].boot == boot && self.nodes[ix].peer.is_some()
    }

    fn on_tick(&mut self, ix: Ix, boot: u64) {
        let node = &mut self.nodes[ix];
        // A timer that was moved since: not delivered, so not traced.
        if node.boot != boot || node.tick != Some(self.now) {
            return;
        }
        node.tick = None;
        self.note(&Event::Tick { node: ix, boot });
        self.step(ix, Input::Tick);
    }
}

/// One step of a peer, and what comes of it.
impl World<'_> {
    pub(crate) fn step(&mut self, ix: Ix, input: Input) {
        if self.tell(ix, input) {
            self.drain(ix);
        }
    }

    pub(crate) fn drain(&mut self, ix: Ix) {
        while let Some(output) = self.poll(ix) {
            if let Some(left) = &mut self.nodes[ix].crash_in {
                if *left == 0 {
                    return self.crash(ix);
                }
                *left -= 1;
            }
            self.carry_out(ix, output);
        }
        let node = &mut self.nodes[ix];
        let Some(peer) = &node.peer else {
            return;
        };
        let wrong = peer.check_invariants().err().filter(|_| node.is_honest());
        let stopped = self.plant == Some(Plant::NoTimers) && node.config.provider.is_none();
        let timeout = node.next_timeout().filter(|_| !stopped);
        if let Some(at) = timeout
            && node.tick != Some(at.max(self.now))
        {
            let at = at.max(self.now);
            node.tick = Some(at);
            let boot = node.boot;
            self.later(at.since(self.now), Event::Tick { node: ix, boot });
        }
        if let Some(wrong) = wrong {
            self.checks.invariant(self.now, ix, &self.nodes[ix], &wrong);
        }
    }

    fn carry_out(&mut self, ix: Ix, output: Output) {
        match output {
            Output::Persist { lsn, record } => self.persist(ix, lsn, *record),
            Output::Send { to, frame, after } => self.send(ix, to, *frame, after),
            Output::Publish { bytes } => self.publish(ix, bytes),
            Output::Verdict { token, verdict } => self.on_verdict(ix, token, verdict),
            Output::Execute(order) => self.execute(ix, order),
            Output::Stop(id) => self.stop(ix, id),
            Output::Fetch(FetchOrder {
                agreement,
                from,
                under,
                blob,
                ..
            }) => self.fetch(ix, (agreement, under), from, blob),
            Output::Store { blob, kept, .. } => self.store(ix, blob, kept),
            Output::Retain { .. } => {}
            // No workload gives challenges: what one node computes in a second would
            // take a simulation longer than all else.
            Output::Compute { .. }
            | Output::OpenProduct { .. }
            | Output::ForgetProduct(_)
            | Output::Verify { .. } => {}
            Output::CheckProducts(check) => self.check_products(ix, *check),
            Output::Compare(comparison) => self.compare(ix, *comparison),
            Output::Misbehaved { peer, what } => {
                if let Some(&whom) = self.by_peer.get(&peer) {
                    self.blame(ix, whom, what);
                }
            }
            Output::Event(event) => self.on_event(ix, event),
        }
    }

    pub(crate) fn blame(&mut self, by: Ix, whom: Ix, why: &str) {
        self.figures.blamed += 1;
        let (by, whom) = (&self.nodes[by], &self.nodes[whom]);
        self.checks.blames(self.now, by, whom, why);
        self.trace.say(self.now, || {
            (format!("{} blames {}: {why}", by.name, whom.name), vec![])
        });
    }

    fn persist(&mut self, ix: Ix, lsn: Lsn, record: Record) {
        let node = &mut self.nodes[ix];
        node.disk.write(lsn, record);
        if !node.disk.syncing {
            self.sync_later(ix);
        }
        if self.plant == Some(Plant::IgnoresGating) {
            self.lie_about_disk(ix, lsn);
        }
    }

    /// Planted: the driver says that it is done before it is. Other outputs of
    /// this step follow in the same drain.
    fn lie_about_disk(&mut self, ix: Ix, lsn: Lsn) {
        self.tell(ix, Input::Persisted(lsn));
    }

    /// Everything written until the disk is free goes in one sync.
    fn sync_later(&mut self, ix: Ix) {
        let faults = &self.scenario.faults;
        let stalls = !self.quiet && self.dice.chance(faults.disk_stall);
        let span = if stalls {
            faults.disk_stall_ms
        } else {
            faults.disk_ms
        };
        let takes = self.dice.millis(span);
        let node = &mut self.nodes[ix];
        node.disk.syncing = true;
        let (boot, upto) = (node.boot, node.disk.written());
        self.later(
            takes,
            Event::Durable {
                node: ix,
                boot,
                upto,
            },
        );
    }

    fn on_durable(&mut self, ix: Ix, boot: u64, upto: Lsn) {
        if !self.is_up(ix, boot) {
            return;
        }
        let plant = self.plant;
        let loses = |record: &Record| plant.is_some_and(|plant| plant.loses(record));
        let node = &mut self.nodes[ix];
        node.disk.syncing = false;
        let stops = node.boot == 1
            && plant.is_some_and(|plant| node.disk.due(upto).any(|r| plant.stops_after(r)));
        for record in node.disk.due(upto) {
            self.checks.reported(ix, record);
        }
        let new = node.disk.sync(upto, loses);
        let pending = node.disk.pending() > 0;
        for record in &new {
            self.checks.durable(self.now, ix, &self.nodes[ix], record);
        }
        if pending {
            self.sync_later(ix);
        }
        self.step(ix, Input::Persisted(upto));
        if stops {
            self.stop_by_plant(ix);
        }
    }

    fn on_event(&mut self, ix: Ix, event: PeerEvent) {
        self.trades.heard(ix, &event, self.now);
        let name = &self.nodes[ix].name;
        match event {
            PeerEvent::Job { job, event } => {
                if let JobEvent::Ended(end) = &event {
                    self.figures.ended(*end);
                    self.unended = self.unended.map(|jobs| jobs.saturating_sub(1));
                }
                if let JobEvent::Declined { decline, .. } = &event {
                    let reason = decline.reason.to_string();
                    *self.declines.entry(reason).or_default() += 1;
                }
                if let JobEvent::Refused(_) = &event {
                    self.figures.refused += 1;
                    self.unended = self.unended.map(|jobs| jobs.saturating_sub(1));
                }
                if !matches!(event, JobEvent::Progress(_) | JobEvent::Log(_)) {
                    self.trace.say(self.now, || {
                        (
                            format!("{name}: job {job} {event:?}"),
                            vec![Subject::Job(job)],
                        )
                    });
                }
            }
            PeerEvent::Work { .. } => self.figures.agreements += 1,
            PeerEvent::Receipted { .. } => self.figures.receipts += 1,
            PeerEvent::Earned { .. } => self.figures.vouchers += 1,
            PeerEvent::Challenged { .. } | PeerEvent::Referred { .. } => {}
            PeerEvent::Frozen { channel } => self.trace.say(self.now, || {
                (format!("{name}: frozen"), vec![Subject::Channel(channel)])
            }),
            PeerEvent::Judged { .. } | PeerEvent::Settled { .. } | PeerEvent::Credited { .. } => {}
        }
    }

    fn on_verdict(&mut self, ix: Ix, token: u64, verdict: Verdict) {
        let Some((from, bytes)) = self.nodes[ix].gossip.tokens.remove(&token) else {
            return;
        };
        let planted = self.plant == Some(Plant::RejectsGoodGossip) && ix == 0;
        match verdict {
            Verdict::Accept if planted => self.blame(ix, from, "gossip"),
            Verdict::Accept if !self.scenario.links.direct => {
                self.flood(ix, Some(from), &bytes);
            }
            Verdict::Accept | Verdict::Ignore => {}
            Verdict::Reject => self.blame(ix, from, "gossip"),
        }
    }

    pub(crate) fn is_hostile(&self, ix: Ix) -> bool {
        self.nodes[ix].nature != Nature::Honest
    }
}

impl Figures {
    fn ended(&mut self, end: JobEnd) {
        match end {
            JobEnd::Done => self.done += 1,
            JobEnd::Failed(_) => self.failed += 1,
            JobEnd::Cancelled => self.cancelled += 1,
            JobEnd::Declined(_) => self.declined += 1,
            JobEnd::Expired => self.expired += 1,
        }
    }
}
