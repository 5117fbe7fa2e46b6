//! Programs that compute floats: what nodes make of them, and how that is compared.
//!
//! No two machines give the same numbers, and all honest ones differ by less than a job
//! tolerates. A cheat's differ by far more, or are not as many. As the simulator keeps
//! of other blobs only their names, what such programs computed is kept here.

use std::collections::{BTreeMap, BTreeSet};

use suanli_protocol::{
    deal::BlobRef,
    ids::BlobId,
    limits::JUDGED_BYTES_MAX,
    offer::Name,
    peer::{ComparedOutput, Comparison, ComparisonId, ExecutionOrder, Input},
    tolerance::{Tolerance, Within},
    wire::List,
};

use super::{
    node::Ix,
    world::{Event, World},
};

/// The output of every program.
pub(crate) const OUTPUT: &str = "result";
/// Numbers in a small result.
const NUMBERS: usize = 16;
/// What a job tolerates,
const RELATIVE: f32 = 1e-5;
/// what machines differ by, with up to seven steps of it,
const STEP: f32 = 4e-7;
const STEPS: usize = 7;
/// and what cheats differ by at least.
const LIE: f32 = 1e-3;

/// What programs computed.
#[derive(Debug, Default)]
pub(crate) struct Floats {
    programs: BTreeSet<BlobId>,
    contents: BTreeMap<BlobId, Vec<u8>>,
}

/// What a job with such a program tolerates.
pub(crate) fn within() -> Option<Within> {
    Some(Within {
        tolerance: Tolerance::new(RELATIVE, 0.0).ok()?,
        floats: List::truncated(vec![Name::lossy(OUTPUT)]),
    })
}

impl Floats {
    /// A job is handed in whose program computes floats.
    pub(crate) fn is_program(&mut self, spec: BlobId) {
        self.programs.insert(spec);
    }

    /// What a machine makes of an execution, if its program computes floats.
    pub(crate) fn result(&self, order: &ExecutionOrder, ix: Ix, lies: bool) -> Option<Vec<u8>> {
        let seed = order.spec.blob.0.as_bytes();
        self.programs.contains(&order.spec.blob).then_some(())?;
        let count = match seed[0].is_multiple_of(4) {
            true => JUDGED_BYTES_MAX / 4 + 1,
            false => NUMBERS,
        };
        let part = |times: usize, of: f32| {
            let times = u16::try_from(times).unwrap_or(u16::MAX);
            1.0 + f32::from(times) * of
        };
        let machine = part(ix % STEPS, STEP);
        let lie = if lies { part(1 + ix, LIE) } else { 1.0 };
        let unit = part(usize::try_from(order.id.unit).unwrap_or(0), 1.0);
        let numbers = (0..count).map(|n| {
            let value = (1.0 + f32::from(seed[n % seed.len()])) * unit * machine;
            if n == 3 { value * lie } else { value }
        });
        Some(numbers.flat_map(f32::to_le_bytes).collect())
    }

    pub(crate) fn keep(&mut self, blob: BlobId, bytes: &[u8]) {
        self.contents.insert(blob, bytes.to_vec());
    }

    /// Whether two outputs are floats that a job takes for equal.
    pub(crate) fn are_near(&self, one: BlobRef, other: BlobRef) -> bool {
        let contents = |blob: BlobRef| self.contents.get(&blob.blob);
        let both = contents(one).zip(contents(other)).zip(within());
        both.is_some_and(|((a, b), within)| within.tolerance.allows_pieces(a, b))
    }
}

/// What drivers do.
impl World<'_> {
    /// A node compares what it has on its disk, or was given.
    pub(crate) fn compare(&mut self, ix: Ix, comparison: Comparison) {
        self.figures.comparisons += 1;
        let takes = self.dice.millis(self.scenario.faults.disk_ms);
        // Some disks are as bad as some links.
        let fails = self.dice.chance(self.scenario.faults.fetch_fail);
        let node = &self.nodes[ix];
        let is_here = |output: &ComparedOutput| {
            output.inline.is_some() || node.blobs.contains(&output.blob.blob)
        };
        let missing = comparison
            .pairs
            .iter()
            .flatten()
            .find(|output| !is_here(output));
        if let Some(missing) = missing {
            let (blob, name) = (missing.blob.blob, &node.name);
            self.checks.compares_unstored(self.now, ix, name, blob);
        }
        let floats = &self.checks.floats;
        let mut pairs = comparison.pairs.iter();
        let equal = pairs.all(|[a, b]| floats.are_near(a.blob, b.blob));
        let event = Event::Compared {
            node: ix,
            boot: node.boot,
            id: comparison.id,
            equal: (!fails && missing.is_none()).then_some(equal),
        };
        self.later(takes * 3, event);
    }

    pub(crate) fn compared(
        &mut self,
        (ix, boot): (Ix, u64),
        id: ComparisonId,
        equal: Option<bool>,
    ) {
        if self.is_up(ix, boot) {
            self.step(ix, Input::Compared { id, equal });
        }
    }
}
