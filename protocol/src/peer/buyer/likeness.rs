//! Results that are not the same, and may be equal all the same.
//!
//! ```text
//! result held ─▶ other bytes in the same shape as another's? ──no──▶ apart
//!                     │ yes
//!                     ▼
//!                waiting ──a few at once──▶ Output::Compare ─▶ Input::Compared ─▶ equal, or apart
//! ```
//!
//! Two results have one shape if they ended alike, their outputs have the same names in
//! the same order, those that the job does not call floats are the same blobs, and the
//! others have as many bytes. Only then are bytes compared, by the driver, which has
//! them; a unit is decided when all of its pairs are known, so that the verdict depends
//! on the results and not on which comparison was quick.
//!
//! Equality within a tolerance is not transitive, so results have no classes. What
//! counts is how many are equal to one of them, the **representative**: it is the result
//! with the most others that are equal to it, the first that came where several have as
//! many. It and these **agree**. A result is contradicted only if it is equal to none of
//! those: where honest results are equal to each other, no honest one is contradicted
//! unless all that agree are lies. What is equal to some and not to the representative
//! lies between: nothing clear speaks against it, and nothing for it.
//!
//! Nothing of this is written down: after a restart the providers say their results
//! again, and these are compared again.
//!
//! Absent: what becomes of those that are equal, and of the others ([`super::verdict`]).

use super::*;

/// What is known of two results of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Likeness {
    /// Their bytes must be compared.
    Unknown,
    /// That is under way.
    Asked,
    /// They are equal.
    Equal,
    /// They are not.
    Apart,
    /// This node could not read them: nothing follows from that for anybody.
    Unreadable,
}

impl Likeness {
    /// Whether it may still turn out either way.
    const fn is_open(self) -> bool {
        matches!(self, Self::Unknown | Self::Asked)
    }
}

/// Where a result is, seen from a representative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Equal to it.
    Agrees,
    /// Not equal to it, but to one that is, or it could not be compared with that.
    Between,
    /// Equal to none of those.
    Contradicted,
}

/// Comparisons and checks of all jobs.
#[derive(Debug, Default)]
pub(super) struct Comparisons {
    under_way: BTreeSet<ComparisonId>,
    /// Results whose products are checked.
    pub(super) checks: BTreeSet<ResultId>,
    /// Units with results that may have to be compared, in the order in which those came:
    /// no more than results are held.
    waiting: VecDeque<(JobId, u32)>,
}

impl Buyer {
    /// Another result of a unit is here: has it checked, and compared with the others,
    /// where it must be.
    pub(super) fn compare(&mut self, core: &mut Core, id: JobId, unit: u32) {
        let verify = self.jobs.get(&id).map(|job| &job.order.verify);
        if verify.is_some_and(|verify| verify.within.is_some() || verify.freivalds.is_some()) {
            self.comparisons.waiting.push_back((id, unit));
            self.compare_on(core);
        }
    }

    /// Begins as many comparisons and checks as there may be.
    pub(super) fn compare_on(&mut self, core: &mut Core) {
        while self.comparisons.has_room() {
            let Some(&(id, unit)) = self.comparisons.waiting.front() else {
                return;
            };
            let mut job = self.jobs.get_mut(&id);
            if let Some(next) = job.as_mut().and_then(|job| job.next_check(unit)) {
                self.comparisons.checks.insert(next.id);
                core.output(Output::CheckProducts(Box::new(next)));
            } else if let Some(next) = job.and_then(|job| job.next_comparison(unit)) {
                self.comparisons.under_way.insert(next.id);
                core.output(Output::Compare(Box::new(next)));
            } else {
                self.comparisons.waiting.pop_front();
            }
        }
    }

    /// Two results were compared. The unit may be over by now, or its job.
    pub(crate) fn on_compared(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: ComparisonId,
        equal: Option<bool>,
    ) {
        if !self.comparisons.under_way.remove(&id) {
            return;
        }
        let ComparisonId { job, unit, results } = id;
        let pairs = self.jobs.get_mut(&job);
        let pairs = pairs.and_then(|job| job.compared.get_mut(&unit));
        if let Some(known) = pairs.and_then(|pairs| pairs.get_mut(&results)) {
            *known = match equal {
                Some(true) => Likeness::Equal,
                Some(false) => Likeness::Apart,
                None => Likeness::Unreadable,
            };
            self.decide(core, ledger, job, unit);
        }
        self.compare_on(core);
    }
}

impl Comparisons {
    fn has_room(&self) -> bool {
        self.under_way.len() + self.checks.len() < COMPARISONS_MAX
    }
}

impl Job {
    /// What is known of two results of a unit.
    pub(super) fn likeness(&self, unit: u32, a: &Held, b: &Held) -> Likeness {
        if a.digest == b.digest {
            return Likeness::Equal;
        }
        if a.shape != b.shape {
            return Likeness::Apart;
        }
        let known = self.compared.get(&unit);
        let known = known.and_then(|pairs| pairs.get(&in_order(a, b)));
        known.copied().unwrap_or(Likeness::Unknown)
    }

    /// Whether some results of a unit are still to be compared.
    pub(super) fn is_comparing(&self, unit: u32) -> bool {
        let mut pairs = self.pairs(unit);
        pairs.any(|(a, b)| self.likeness(unit, a, b).is_open())
    }

    /// The result to which the most are equal, and how many these are with itself; those
    /// that are still compared count as equal. One whose products could not be checked
    /// does not count.
    pub(super) fn representative(&self, unit: u32) -> Option<(&Held, usize)> {
        let held = self.held.get(&unit)?;
        let mut best: Option<(&Held, usize)> = None;
        let counts = |result: &Held| self.proof(unit, result) != Proof::Unreadable;
        for result in held {
            let equal = held.iter().filter(|other| {
                let likeness = self.likeness(unit, result, other);
                counts(other) && (likeness == Likeness::Equal || likeness.is_open())
            });
            let count = if counts(result) { equal.count() } else { 0 };
            if best.is_none_or(|(_, most)| count > most) {
                best = Some((result, count));
            }
        }
        best
    }

    /// Where each result of a unit is, when all are compared.
    pub(super) fn places_of(&self, unit: u32, representative: &Held) -> Vec<Place> {
        let held = self.held.get(&unit).map_or(&[][..], Vec::as_slice);
        let likeness = |a: &Held, b: &Held| self.likeness(unit, a, b);
        let agrees = |result: &&Held| likeness(result, representative) == Likeness::Equal;
        let place = |result: &Held| {
            let mut agreeing = held.iter().filter(agrees);
            if agrees(&result) {
                Place::Agrees
            } else if agreeing.all(|other| likeness(result, other) == Likeness::Apart) {
                Place::Contradicted
            } else {
                Place::Between
            }
        };
        held.iter().map(place).collect()
    }

    fn pairs(&self, unit: u32) -> impl Iterator<Item = (&Held, &Held)> {
        let held = self.held.get(&unit).map_or(&[][..], Vec::as_slice);
        let each = held.iter().enumerate();
        each.flat_map(|(n, b)| held[..n].iter().map(move |a| (a, b)))
    }

    /// The next comparison that a unit needs, which begins with that.
    fn next_comparison(&mut self, unit: u32) -> Option<Comparison> {
        let tolerance = self.order.verify.within.as_ref()?.tolerance;
        let unknown = |(a, b): &(&Held, &Held)| self.likeness(unit, a, b) == Likeness::Unknown;
        let (a, b) = self.pairs(unit).find(unknown)?;
        let results = in_order(a, b);
        let outputs = |held: &Held| held.receipt.body().outputs.clone();
        let outputs = std::iter::zip(outputs(a).into_vec(), outputs(b).into_vec());
        let pairs = outputs
            .filter(|(one, other)| one.blob != other.blob)
            .map(|(one, other)| [a.compared(one.blob), b.compared(other.blob)])
            .collect();
        let job = self.order.job;
        let known = self.compared.entry(unit).or_default();
        known.insert(results, Likeness::Asked);
        Some(Comparison {
            id: ComparisonId { job, unit, results },
            tolerance,
            pairs,
        })
    }
}

impl Held {
    pub(super) fn compared(&self, blob: BlobRef) -> ComparedOutput {
        let mut small = self.small.iter();
        let inline = small.find(|small| small.blob == blob.blob);
        ComparedOutput {
            blob,
            inline: inline.map(|small| small.bytes.to_vec()),
        }
    }
}

fn in_order(a: &Held, b: &Held) -> [Hash; 2] {
    [a.digest.min(b.digest), a.digest.max(b.digest)]
}

/// What two results must have in common to be equal, within the tolerance or, where
/// there is none, to the last bit.
pub(super) fn shape(receipt: &Receipt, within: Option<&Within>) -> Hash {
    let (how, reason) = match receipt.outcome {
        Outcome::Completed => (0u8, 0),
        Outcome::JobFault(reason) => (1, reason.0),
        Outcome::ProviderFault(reason) => (2, reason.0),
        Outcome::Cancelled => (3, 0),
    };
    let mut parts = vec![vec![how], reason.to_le_bytes().to_vec()];
    for output in receipt.outputs.iter() {
        let is_near = within.is_some_and(|within| within.has(&output.name));
        parts.push(output.name.as_bytes().to_vec());
        parts.push(match is_near {
            true => output.blob.bytes.to_le_bytes().to_vec(),
            false => output.blob.blob.0.as_bytes().to_vec(),
        });
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    Hash::derive("suanli 2026 result", &parts)
}
