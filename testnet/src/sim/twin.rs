//! Checkpoints: a node that starts again may do so from one, and then lives
//! beside a twin that was restored from all records.
//!
//! ```text
//! records ────────────────────────────────▶ twin ─┐ same inputs, same clocks
//!    └─ some first part ──condense──┐              ├─▶ the same outputs, always
//!       the rest ───────────────────┴───▶ node ───┘
//! ```
//!
//! Each checkpoint is made from the one before it and what followed, as a
//! store would. What differs is complained of once; from then on the twin is
//! the node. Chance for this comes from a stream of its own, so that a seed
//! has one history, with checkpoints and without.

use suanli_protocol::peer::{Input, Output, Peer};

use super::{check::Checker, node::Ix, trace::Subject, world::World};

/// How often a start is from a checkpoint.
const FROM_CHECKPOINT: f64 = 0.6;
/// How often such a checkpoint is a new one.
const ANEW: f64 = 0.7;

impl World<'_> {
    /// A node's peer, and its twin, from what is on its disk.
    pub(crate) fn restore(&mut self, ix: Ix, seed: [u8; 32]) {
        let from_checkpoint = self.nodes[ix].boot > 1 && self.checkpoints.chance(FROM_CHECKPOINT);
        if from_checkpoint && self.checkpoints.chance(ANEW) {
            self.write_checkpoint(ix);
        }
        let node = &mut self.nodes[ix];
        let clocks = node.clocks(self.now);
        let from = |records: Vec<_>| {
            Peer::restore(
                clocks,
                node.config.clone(),
                node.signer.clone(),
                seed,
                records.into_iter(),
            )
        };
        let (records, checkpoint) = (node.disk.records().to_vec(), node.disk.restorable());
        let (peer, twin) = match checkpoint.filter(|_| from_checkpoint) {
            Some(fewer) => {
                self.figures.from_checkpoints += 1;
                (from(fewer), Some(from(records)))
            }
            None => (from(records), None),
        };
        (node.peer, node.twin) = (Some(peer), twin);
        self.compare_views(ix);
    }

    /// Somewhere in what was written since the last one.
    fn write_checkpoint(&mut self, ix: Ix) {
        let node = &mut self.nodes[ix];
        let Some(new) = node.disk.since_checkpoint().checked_sub(1) else {
            return;
        };
        let (upto, records) = node.disk.first_of(1 + self.checkpoints.index(new + 1));
        let wall = node.clocks(self.now).wall;
        let records = records.into_iter();
        let mut kept = Peer::condense(wall, &node.config, &node.signer, records);
        if let Some(plant) = self.plant {
            kept.retain(|record| !plant.forgets(record));
        }
        for record in &kept {
            super::machine::check_codec(record, node.signer.network());
        }
        node.disk.write_checkpoint(upto, kept);
    }

    /// One input for a node and its twin; whether it is up.
    pub(crate) fn tell(&mut self, ix: Ix, input: Input) -> bool {
        let node = &mut self.nodes[ix];
        let clocks = node.clocks(self.now);
        let Some(peer) = &mut node.peer else {
            return false;
        };
        if let Some(twin) = &mut node.twin {
            twin.handle(clocks, input.clone());
        }
        peer.handle(clocks, input);
        true
    }

    /// A node's next output, which must be its twin's.
    pub(crate) fn poll(&mut self, ix: Ix) -> Option<Output> {
        let node = &mut self.nodes[ix];
        let output = node.peer.as_mut()?.poll_output();
        let Some(twin) = &mut node.twin else {
            return output;
        };
        let expected = twin.poll_output();
        if expected == output {
            return output;
        }
        let name = expected.as_ref().map_or("nothing", kind);
        let seen = output.as_ref().map_or("nothing", kind);
        self.diverged(ix, &format!("it gives {seen} instead of {name}"));
        expected
    }

    /// At the beginning and at the end, what people see of both is the same.
    pub(crate) fn compare_views(&mut self, ix: Ix) {
        let node = &self.nodes[ix];
        let (Some(peer), Some(twin)) = (&node.peer, &node.twin) else {
            return;
        };
        let differs = [
            ("its jobs", peer.jobs() != twin.jobs()),
            ("its work", peer.work() != twin.work()),
            ("its channels", peer.channels() != twin.channels()),
            ("its slots", peer.slots_used() != twin.slots_used()),
            ("its holds", peer.holds() != twin.holds()),
            ("its blobs", peer.needed_blobs() != twin.needed_blobs()),
            ("its total", peer.accepted_total() != twin.accepted_total()),
            ("its position", peer.last_lsn() != twin.last_lsn()),
            ("its timers", peer.next_timeout() != twin.next_timeout()),
        ];
        if let Some((what, _)) = differs.into_iter().find(|(_, differs)| *differs) {
            let (mut jobs, mut others) = (peer.jobs(), twin.jobs());
            let same: Vec<_> = jobs
                .iter()
                .filter(|job| others.contains(job))
                .cloned()
                .collect();
            jobs.retain(|job| !same.contains(job));
            others.retain(|job| !same.contains(job));
            let differing = match (jobs.first(), others.first()) {
                (None, None) => String::new(),
                (job, other) => format!(": {job:?} where there was {other:?}"),
            };
            self.diverged(ix, &format!("{what} are others{differing}"));
        }
    }

    fn diverged(&mut self, ix: Ix, how: &str) {
        let node = &mut self.nodes[ix];
        node.peer = node.twin.take();
        let sentence = format!("{} from a checkpoint is not itself: {how}", node.name);
        self.checks.complain(
            Checker::Checkpoint,
            self.now,
            sentence,
            vec![Subject::Node(ix)],
        );
    }
}

const fn kind(output: &Output) -> &'static str {
    match output {
        Output::Persist { .. } => "a record",
        Output::Send { .. } => "a frame",
        Output::Publish { .. } => "gossip",
        Output::Verdict { .. } => "a verdict",
        Output::Execute(_) => "an execution",
        Output::Stop(_) => "a stop",
        Output::Fetch(_) => "a fetch",
        Output::Store { .. } => "a blob",
        Output::Retain { .. } => "a retention",
        Output::Compute { .. } | Output::OpenProduct { .. } | Output::ForgetProduct(_) => {
            "a challenge's product"
        }
        Output::Verify { .. } => "a check",
        Output::Compare(_) => "a comparison",
        Output::CheckProducts(_) => "a check of products",
        Output::Misbehaved { .. } => "blame",
        Output::Event(_) => "an event",
    }
}
