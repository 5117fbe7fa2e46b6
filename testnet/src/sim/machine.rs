//! What machines do by themselves: stop without warning, start again, and run
//! executions.

use std::time::Duration;

use suanli_protocol::{
    deal::BlobRef,
    ids::{BlobId, Hash},
    limits::JUDGED_BYTES_MAX,
    offer::{self, Name},
    peer::{ExecutionEvent, ExecutionId, ExecutionOrder, Input, ProvidedOutput},
    record::Record,
    registry::Reason,
    units::{Meter, Usage},
};

use super::{
    floats::OUTPUT,
    node::{Fate, Ix, Run},
    plant::{Plant, is_word},
    trace::Subject,
    world::{Event, Part, World},
};
use crate::scenario::Nature;

/// Stopping and starting.
impl World<'_> {
    pub(crate) fn plan_faults(&mut self) {
        let faults = &self.scenario.faults;
        let seconds = self.scenario.seconds;
        let of_run = |per_minute: u32| u64::from(per_minute) * seconds / 60;
        let (crashes, partitions) = (of_run(faults.crashes), of_run(faults.partitions));
        let breaks = of_run(faults.disconnects);
        let span = [1000, seconds.max(2) * 1000];
        for _ in 0..crashes {
            let at = self.dice.millis(span);
            self.later(at, Event::Crash);
        }
        for _ in 0..partitions {
            let at = self.dice.millis(span);
            self.later(at, Event::Partition);
        }
        for _ in 0..breaks {
            let at = self.dice.millis(span);
            self.later(at, Event::Break);
        }
    }

    pub(crate) fn arm_crash(&mut self) {
        let ix = self.dice.index(self.nodes.len());
        let left = self.dice.below(6);
        let node = &mut self.nodes[ix];
        if !self.quiet && node.peer.is_some() && node.crash_in.is_none() {
            node.crash_in = Some(left);
        }
    }

    pub(crate) fn crash(&mut self, ix: Ix) {
        self.figures.crashes += 1;
        self.compare_views(ix);
        let pending = self.nodes[ix].disk.pending();
        let survive = self.dice.index(pending + 1);
        let node = &mut self.nodes[ix];
        (node.peer, node.twin) = (None, None);
        node.crash_in = None;
        node.tick = None;
        node.runs.clear();
        node.gossip = Default::default();
        let saved = node.disk.crash(survive);
        let lost = pending - survive;
        let name = &node.name;
        self.trace.say(self.now, || {
            (
                format!("{name} stops; {lost} records are lost"),
                vec![Subject::Node(ix)],
            )
        });
        for record in &saved {
            self.checks.reported(ix, record);
            self.checks.durable(self.now, ix, &self.nodes[ix], record);
        }
        for other in self.links.forget(ix) {
            let peer = self.nodes[ix].peer_id();
            self.step(other, Input::Disconnected { peer });
        }
        let down = self.dice.millis(self.scenario.faults.down_ms);
        self.later(down, Event::Start(ix));
    }

    /// Planted: the machine stops, and its disk has lost what it reported.
    pub(crate) fn stop_by_plant(&mut self, ix: Ix) {
        if self.nodes[ix].peer.is_none() {
            return;
        }
        self.crash(ix);
        if self.plant == Some(Plant::DiskLosesWords) {
            self.nodes[ix].disk.lose(is_word);
        }
    }

    pub(crate) fn start(&mut self, ix: Ix) {
        let seed = self.dice.seed();
        let jump_max = self.scenario.faults.clock_jump_ms;
        let jump = self.dice.within([0, 2 * jump_max]);
        let node = &mut self.nodes[ix];
        if node.peer.is_some() {
            return;
        }
        node.boot += 1;
        node.booted = self.now;
        if node.boot > 1 {
            node.skew_ms += i64::try_from(jump).unwrap_or(0) - i64::try_from(jump_max).unwrap_or(0);
        }
        if node.nature != Nature::Forger {
            if let Some((_, record)) = node.disk.records().last() {
                check_codec(record, node.signer.network());
            }
            self.restore(ix, seed);
        }
        let name = &self.nodes[ix].name;
        self.trace.say(self.now, || {
            (format!("{name} starts"), vec![Subject::Node(ix)])
        });
        self.drain(ix);
        // Where only one side dials, the other has to be up by then.
        let span = match self.scenario.links.direct {
            true => [500, 1000],
            false => [5, 500],
        };
        for n in 0..self.nodes[ix].neighbours.len() {
            let other = self.nodes[ix].neighbours[n];
            let after = self.dice.millis(span);
            self.later(after, Event::Connect(ix, other));
        }
        if self.is_hostile(ix) {
            self.later(Duration::from_millis(500), Event::Act(ix));
        }
    }

    /// From now on nothing goes wrong.
    pub(crate) fn calm_down(&mut self) {
        self.quiet = true;
        for node in &mut self.nodes {
            node.crash_in = None;
        }
        self.trace
            .say(self.now, || ("nothing goes wrong any more".into(), vec![]));
        self.heal_all();
    }
}

/// A record must come back from its bytes as it was.
pub(crate) fn check_codec(record: &Record, network: suanli_protocol::ids::NetworkId) {
    let again = Record::decode(&record.encode(), network);
    assert_eq!(
        again.as_ref(),
        Ok(record),
        "a record does not survive its own encoding"
    );
}

/// Executions.
impl World<'_> {
    pub(crate) fn execute(&mut self, ix: Ix, order: Box<ExecutionOrder>) {
        if self.nodes[ix].nature == Nature::Idler {
            return;
        }
        let id = order.id;
        let fate = self.draw_fate();
        let drawn = match self.sizes.get(&order.spec.blob) {
            Some(operations) => self.nodes[ix].millis_for(*operations, order.device),
            None => self.dice.within(self.scenario.workload.run_ms),
        };
        self.trades.runs(ix, id.agreement, self.now);
        let node = &mut self.nodes[ix];
        let (lasts, fate) = match (&order.lease, fate) {
            (Some((until, _)), fate) => (until.since(node.wall(self.now)), fate),
            (None, Fate::Hangs) => (Duration::from_millis(drawn), fate),
            // The executor keeps the limit itself.
            (None, _) if drawn > order.run_max.get() => {
                (order.run_max.duration(), Fate::Fails(Reason::DEADLINE))
            }
            (None, fate) => (Duration::from_millis(drawn), fate),
        };
        self.runs += 1;
        let number = self.runs;
        let boot = node.boot;
        let interval = order.lease.map(|(_, interval)| interval.duration());
        let before = order.resume.as_ref().map_or(0, |kept| kept.done);
        if before > 0 {
            self.figures.resumed += 1;
            self.checks
                .resumes(self.now, node, &order, is_right(&order));
        }
        let run = Run {
            number,
            started: self.now,
            order,
            fate,
            stopping: false,
        };
        node.runs.insert(id, run);
        self.checks
            .executes(self.now, ix, &self.nodes[ix], id.agreement);
        let name = &self.nodes[ix].name;
        self.trace.say(self.now, || {
            (
                format!("{name} runs unit {} of {}: {fate:?}", id.unit, id.agreement),
                vec![Subject::Agreement(id.agreement)],
            )
        });
        let event = |part| Event::Run {
            node: ix,
            boot,
            id,
            number,
            part,
        };
        for third in before + 1..3 {
            let after = lasts * u32::try_from(third - before).unwrap_or(1) / 3;
            self.later(after, event(Part::Third(third)));
        }
        if let Some(interval) = interval {
            self.later(interval, event(Part::Interim));
        }
        if fate != Fate::Hangs {
            let left = u32::try_from(3 - before.min(3)).unwrap_or(3);
            let lasts = if interval.is_none() {
                lasts * left / 3
            } else {
                lasts
            };
            self.later(lasts, event(Part::End));
        }
    }

    fn draw_fate(&mut self) -> Fate {
        let faults = &self.scenario.faults;
        if self.quiet {
            Fate::Finishes
        } else if self.dice.chance(faults.fail) {
            let reasons = [Reason::WORKER_DIED, Reason::DEVICE_LOST];
            Fate::Fails(*self.dice.pick(&reasons).unwrap_or(&reasons[0]))
        } else if self.dice.chance(faults.job_fail) {
            Fate::Fails(Reason::INVALID_PROGRAM)
        } else if self.dice.chance(faults.hang) {
            Fate::Hangs
        } else if self.dice.chance(faults.wrong) {
            Fate::LosesOutputs
        } else {
            Fate::Finishes
        }
    }

    /// Whatever it does, it is killed, and says so a little later.
    pub(crate) fn stop(&mut self, ix: Ix, id: ExecutionId) {
        let after = self.dice.millis([1, 300]);
        let node = &mut self.nodes[ix];
        let boot = node.boot;
        let Some(run) = node.runs.get_mut(&id).filter(|run| !run.stopping) else {
            return;
        };
        run.stopping = true;
        run.fate = Fate::Fails(Reason::CANCELLED);
        let number = run.number;
        self.later(
            after,
            Event::Run {
                node: ix,
                boot,
                id,
                number,
                part: Part::End,
            },
        );
    }

    pub(crate) fn run_part(&mut self, ix: Ix, id: ExecutionId, number: u64, part: Part) {
        let now = self.now;
        let boot = self.nodes[ix].boot;
        let Some(run) = self.nodes[ix]
            .runs
            .get(&id)
            .filter(|run| run.number == number)
        else {
            return;
        };
        if run.fate == Fate::Hangs || (run.stopping && part != Part::End) {
            return;
        }
        let ran = u64::try_from(now.since(run.started).as_millis()).unwrap_or(u64::MAX);
        let lease = run.order.lease;
        let event = match part {
            Part::Third(done) => {
                self.keep_state(ix, id, done);
                ExecutionEvent::Progress { done, total: 3 }
            }
            Part::Interim => {
                let interval = lease.map_or(Duration::ZERO, |(_, interval)| interval.duration());
                let part = Part::Interim;
                self.later(
                    interval.max(Duration::from_millis(100)),
                    Event::Run {
                        node: ix,
                        boot,
                        id,
                        number,
                        part,
                    },
                );
                ExecutionEvent::Interim(self.tokens())
            }
            Part::End => {
                let usage = if lease.is_some() {
                    self.tokens()
                } else {
                    device_time(ran)
                };
                return self.end_run(ix, id, usage);
            }
        };
        self.step(ix, Input::Execution { id, event });
    }

    /// What is kept of an execution on its way is told, if any is wanted. A cheat's may be
    /// of nothing.
    fn keep_state(&mut self, ix: Ix, id: ExecutionId, done: u64) {
        let cheats = self.nodes[ix].nature == Nature::Cheat;
        let Some(run) = self.nodes[ix].runs.get(&id) else {
            return;
        };
        if run.order.checkpoint_every.is_none() || run.order.lease.is_some() {
            return;
        }
        let (number, goes_wrong) = (run.number, !is_right(&run.order));
        let mut bytes = state_of(&run.order, done);
        if goes_wrong || (cheats && number.is_multiple_of(2)) {
            bytes.extend_from_slice(b"wrong");
        }
        let blob = BlobRef {
            blob: BlobId(Hash::of(&bytes)),
            bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        };
        let node = &mut self.nodes[ix];
        node.blobs.insert(blob.blob);
        let state = vec![ProvidedOutput {
            name: Name::lossy("state"),
            blob,
            inline: number.is_multiple_of(3).then_some(bytes),
        }];
        let event = ExecutionEvent::Checkpoint { done, state };
        self.step(ix, Input::Execution { id, event });
    }

    fn tokens(&mut self) -> Vec<Usage> {
        let (read, written) = (self.dice.within([10, 4000]), self.dice.within([1, 1000]));
        offer::tokens(read, written).to_vec()
    }

    fn end_run(&mut self, ix: Ix, id: ExecutionId, usage: Vec<Usage>) {
        let inline = self.dice.chance(0.5);
        let Some(run) = self.nodes[ix].runs.remove(&id) else {
            return;
        };
        self.trades.ran(ix, run.started, self.now);
        let event = match run.fate {
            Fate::Fails(reason) => ExecutionEvent::Failed { reason, usage },
            Fate::Finishes | Fate::LosesOutputs | Fate::Hangs => {
                let output = self.output_of(ix, &run);
                let blob = BlobId(Hash::of(&output));
                let lost = run.fate == Fate::LosesOutputs;
                if !lost {
                    self.nodes[ix].blobs.insert(blob);
                }
                let bytes = u64::try_from(output.len()).unwrap_or(u64::MAX);
                let outputs = vec![ProvidedOutput {
                    name: Name::lossy(OUTPUT),
                    blob: BlobRef { blob, bytes },
                    inline: (inline && !lost).then_some(output),
                }];
                let outputs = if run.order.lease.is_some() {
                    Vec::new()
                } else {
                    outputs
                };
                ExecutionEvent::Finished { outputs, usage }
            }
        };
        self.step(ix, Input::Execution { id, event });
    }

    /// What comes out, from a cheat something else.
    fn output_of(&mut self, ix: Ix, run: &Run) -> Vec<u8> {
        let cheats = self.nodes[ix].nature == Nature::Cheat;
        let lies = cheats && self.dice.chance(self.nodes[ix].cheats);
        // Whoever goes on from what is wrong comes to what is wrong.
        let lies = lies || !is_right(&run.order);
        let longer = run.number.is_multiple_of(2);
        let floats = self.checks.floats.result(&run.order, ix, lies && !longer);
        let is_float = floats.is_some();
        let mut output = floats.unwrap_or_else(|| result_of(&run.order));
        if lies && !longer && self.checks.products.has_program(run.order.spec.blob) {
            // No two cheats make the same of it.
            output[0] ^= u8::try_from(1 + ix % 255).unwrap_or(1);
        } else if lies && (longer || !is_float) {
            output.extend_from_slice(&ix.to_le_bytes());
        } else if !lies {
            self.checks.products.is_right(BlobId(Hash::of(&output)));
        }
        if is_float {
            let blob = BlobId(Hash::of(&output));
            self.checks.floats.keep(blob, &output);
        }
        output
    }
}

/// The same program, unit and step leave the same state everywhere.
fn state_of(order: &ExecutionOrder, done: u64) -> Vec<u8> {
    let mut bytes = b"state".to_vec();
    bytes.extend_from_slice(order.spec.blob.0.as_bytes());
    bytes.extend_from_slice(&order.id.unit.to_le_bytes());
    bytes.extend_from_slice(&done.to_le_bytes());
    bytes
}

/// Whether an execution begins, or goes on from the state that there is after that step.
fn is_right(order: &ExecutionOrder) -> bool {
    order.resume.as_ref().is_none_or(|kept| {
        let right = BlobId(Hash::of(&state_of(order, kept.done)));
        kept.blobs().map(|state| state.blob).eq([right])
    })
}

fn device_time(millis: u64) -> Vec<Usage> {
    vec![
        Usage {
            meter: Meter::JOB,
            quantity: 1,
        },
        Usage {
            meter: Meter::GPU_MS,
            quantity: millis,
        },
    ]
}

/// The same program and unit give the same bytes everywhere. Every fourth
/// program's are more than is written down with the word on a receipt.
fn result_of(order: &ExecutionOrder) -> Vec<u8> {
    let mut bytes = order.spec.blob.0.as_bytes().to_vec();
    bytes.extend_from_slice(&order.id.unit.to_le_bytes());
    if bytes[0].is_multiple_of(4) {
        bytes.resize(JUDGED_BYTES_MAX + 1, 0);
    }
    bytes
}
