//! What people want of the network: jobs, arrays, leases, cancellations, and
//! what operators do now and then.

use std::time::Duration;

use suanli_protocol::{
    deal::{BlobRef, Needs, UnitRange, Work},
    ids::{BlobId, Hash, JobId},
    message::{InlineBlob, InlineBlobs},
    offer::Name,
    peer::{Command, Declaration, Input, NotSettled, SettleOn},
    rank::Policy,
    record::{JobOrder, Verify},
    registry::{Confidentiality, Runtime, SandboxLevel},
    units::{Amount, Millis},
    wire::{Bytes, List, Text},
};

use super::{
    dice::Dice,
    floats::within,
    node::{Ix, Node},
    products::{FACTOR, freivalds, is_small},
    world::{Event, World},
};
use crate::scenario::{Nature, Scenario, Workload};

/// Inputs that jobs share.
const SHARED_INPUTS: u64 = 6;

/// Everything that people do, with its time.
pub(crate) fn plan(scenario: &Scenario, nodes: &[Node], seed: u64) -> Vec<(Duration, Event)> {
    if let Some(market) = &scenario.market {
        return super::demand::plan(scenario, market, nodes, seed);
    }
    let mut dice = Dice::new(seed, "work");
    let work = &scenario.workload;
    let buyers = buyers(scenario, nodes);
    let mut plan = Vec::new();
    let span = [500, scenario.seconds * 1000];
    for number in 0..work.jobs {
        let Some(&node) = dice.pick(&buyers) else {
            break;
        };
        let at = dice.millis(span);
        let order = order(scenario, number, &mut dice);
        let job = order.job;
        if dice.chance(work.cancels) {
            let later = dice.millis([0, 5000]);
            plan.push((at + later, Event::Cancel { node, job }));
        }
        if dice.chance(work.twice) {
            let (later, order) = (dice.millis([1, 3000]), Box::new(order.clone()));
            plan.push((at + later, Event::Submit { node, order }));
        }
        let order = Box::new(order);
        plan.push((at, Event::Submit { node, order }));
    }
    for (ix, node) in nodes.iter().enumerate() {
        if node.config.provider.is_some() {
            plan.push((dice.millis(span), Event::Operate(ix)));
        }
    }
    plan
}

/// Honest nodes that buy: those of groups that do.
fn buyers(scenario: &Scenario, nodes: &[Node]) -> Vec<Ix> {
    let buys = scenario
        .groups
        .iter()
        .flat_map(|group| std::iter::repeat_n(group.role.buys(), group.count));
    buys.enumerate()
        .filter(|(ix, buys)| *buys && nodes[*ix].nature == Nature::Honest)
        .map(|(ix, _)| ix)
        .collect()
}

pub(crate) fn order(scenario: &Scenario, number: u32, dice: &mut Dice) -> JobOrder {
    let work = &scenario.workload;
    let mut job = [0; 16];
    job.copy_from_slice(&dice.bytes(16));
    let drawn = dice.below(1000);
    let floats = drawn < u64::from(per_thousand(work.floats));
    let program = format!("program {drawn}");
    let spec = blob(program.as_bytes());
    let run_max = work.run_ms[1] + 500;
    let shape = shape(scenario, dice);
    let units = u64::from(shape.unit_count());
    let mut inputs: Vec<BlobRef> = (0..dice.below(3))
        .map(|_| blob(input(dice.below(SHARED_INPUTS)).as_bytes()))
        .collect();
    let inline = if dice.chance(0.6) {
        inline(program.as_bytes())
    } else {
        InlineBlobs::default()
    };
    let per_unit = dice.within([300_000, 3_000_000]);
    let regions = if dice.chance(work.misfits) {
        vec![Name::lossy("XX-NONE")]
    } else {
        vec![]
    };
    let mut verify = verify(work, &shape, dice);
    if floats && !matches!(shape, Work::Lease { .. }) {
        verify.within = within();
    }
    let products = u32::from(job[1]) * 1000 < u32::from(per_thousand(work.products)) * 256;
    if products && !floats && is_small(spec.blob) && !matches!(shape, Work::Lease { .. }) {
        inputs.insert(0, blob(FACTOR));
        verify.freivalds = Some(freivalds());
    }
    let take = dice.chance(work.takes) && !matches!(shape, Work::Lease { .. });
    JobOrder {
        job: JobId::from_bytes(job),
        name: Name::lossy(&format!("job {number}")),
        principal: Name::lossy("someone"),
        work: shape,
        spec,
        inputs: List::truncated(inputs),
        needs: needs(run_max),
        budget: Amount::from_micros(per_unit * units),
        regions: List::truncated(regions),
        providers: List::default(),
        condition: None,
        rank: None,
        policy: *dice.pick(&Policy::ALL).unwrap_or(&Policy::Cheapest),
        flops: 0,
        confidentiality: Confidentiality::NONE,
        retention: Millis::new(20_000),
        total: Millis::new(dice.within(work.total_ms)),
        take,
        parallel: match work.units {
            Some(_) => 64,
            None => u16::try_from(dice.within([1, 6])).unwrap_or(1),
        },
        max_failures: u32::try_from(dice.below(3)).unwrap_or(0),
        verify,
        counter_percent: if dice.chance(work.counters) {
            u8::try_from(dice.within([1, 25])).unwrap_or(1)
        } else {
            0
        },
        checkpoint_every: (u32::from(job[0]) * 1000
            < u32::from(per_thousand(work.checkpoints)) * 256)
            .then_some(CHECKPOINT_EVERY),
        staying: List::default(),
        inline,
    }
}

/// What any job needs.
pub(crate) fn needs(run_max_ms: u64) -> Needs {
    Needs {
        runtime: Runtime::WGSL,
        features: List::default(),
        device: None,
        memory_bytes: 1 << 20,
        sandbox: SandboxLevel::PROCESS,
        run_max: Millis::new(run_max_ms),
        output_bytes_max: 1 << 20,
        fuel_max: 0,
        model: None,
    }
}

/// A share between 0 and 1, in thousandths.
/// How long after a checkpoint clients want the next one.
const CHECKPOINT_EVERY: Millis = Millis::new(100);

pub(crate) fn per_thousand(share: f64) -> u16 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 1,000"
    )]
    let thousandths = (share.clamp(0.0, 1.0) * 1000.0).round() as u16;
    thousandths
}

fn verify(work: &Workload, shape: &Work, dice: &mut Dice) -> Verify {
    let verify = Verify {
        replicas: 1 + u8::from(dice.chance(work.replicas)),
        audit: if dice.chance(work.audits) {
            per_thousand(work.audit_rate)
        } else {
            0
        },
        adaptive: false,
        within: None,
        freivalds: None,
    };
    match shape {
        Work::Lease { .. } => Verify::NONE,
        Work::Job | Work::Array { .. } => verify,
    }
}

/// A lease's end is filled in when it is handed in, by that node's clock.
fn shape(scenario: &Scenario, dice: &mut Dice) -> Work {
    let work = &scenario.workload;
    if dice.chance(work.leases) {
        return Work::Lease {
            until: suanli_protocol::units::Wall::from_millis(dice.within([3000, 12_000])),
            interval: Millis::new(dice.within([400, 2000])),
        };
    }
    if !dice.chance(work.arrays) {
        return Work::Job;
    }
    if let Some([least, most]) = work.units {
        let count = dice.within([u64::from(least), u64::from(most)]);
        let count = u32::try_from(count).unwrap_or(1);
        return Work::Array {
            units: List::truncated(vec![UnitRange { first: 0, count }]),
            inputs_each: 0,
        };
    }
    let mut ranges = Vec::new();
    let mut next = 0;
    for _ in 0..=dice.below(2) {
        let first = next + u32::try_from(dice.below(2)).unwrap_or(0);
        let count = 1 + u32::try_from(dice.below(3)).unwrap_or(0);
        ranges.push(UnitRange { first, count });
        next = first + count + 1;
    }
    Work::Array {
        units: List::truncated(ranges),
        inputs_each: 0,
    }
}

fn input(number: u64) -> String {
    format!("input {number} ").repeat(100)
}

pub(crate) fn blob(bytes: &[u8]) -> BlobRef {
    BlobRef {
        blob: BlobId(Hash::of(bytes)),
        bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
    }
}

pub(crate) fn inline(bytes: &[u8]) -> InlineBlobs {
    let blob = BlobId(Hash::of(bytes));
    let inline = Bytes::new(bytes.to_vec()).map(|bytes| InlineBlob { blob, bytes });
    List::truncated(inline.into_iter().collect())
}

/// What people do.
impl World<'_> {
    pub(crate) fn submit(&mut self, ix: Ix, mut order: Box<JobOrder>) {
        let node = &mut self.nodes[ix];
        if node.peer.is_none() {
            // They try again when the node is back.
            return self.later(Duration::from_secs(1), Event::Submit { node: ix, order });
        }
        if let Work::Lease { until, .. } = &mut order.work {
            let lasts = Duration::from_millis(until.as_millis().min(60_000));
            *until = node.wall(self.now).after(lasts);
        }
        node.blobs.insert(order.spec.blob);
        node.blobs
            .extend(order.inputs.iter().map(|input| input.blob));
        if order.flops > 0 {
            self.sizes.insert(order.spec.blob, order.flops);
        }
        self.trades.submitted(ix, &order, self.now);
        if let Some(watch) = &mut self.watch {
            watch.submitted(order.job, self.now);
        }
        if order.verify.within.is_some() {
            self.checks.floats.is_program(order.spec.blob);
        }
        if order.verify.freivalds.is_some() {
            self.checks.products.is_program(order.spec.blob);
        }
        self.figures.jobs += 1;
        self.step(ix, Input::Command(Command::Submit(order)));
    }

    pub(crate) fn cancel(&mut self, ix: Ix, job: JobId) {
        self.step(ix, Input::Command(Command::Cancel(job)));
    }

    /// An operator declares a tenth of a debt paid, and announces anew.
    pub(crate) fn operate(&mut self, ix: Ix) {
        let channels = self.nodes[ix]
            .peer
            .as_ref()
            .map(suanli_protocol::peer::Peer::channels)
            .unwrap_or_default();
        if let Some(channel) = channels.iter().find(|channel| !channel.paying) {
            let tenth = channel.cumulative.as_micros() / 10;
            let declaration = Declaration {
                on: SettleOn::Channel(channel.channel),
                amount: Amount::from_micros(u64::try_from(tenth).unwrap_or(0)),
                reference: Text::lossy(&format!("invoice {}", channel.settlements + 1)),
            };
            let may = self.nodes[ix]
                .peer
                .as_ref()
                .map(|peer| peer.may_settle(&declaration));
            self.step(ix, Input::Command(Command::Settle(Box::new(declaration))));
            if may == Some(Err(NotSettled::NotInStep)) && !self.quiet {
                // The payer is being asked.
                return self.later(Duration::from_secs(1), Event::Operate(ix));
            }
        }
        self.step(ix, Input::Command(Command::Announce));
    }
}
