//! How often a provider that lies is found: what chance there was, and what came of it.
//!
//! A client judges all results of a unit together, the first that it got first. Each such
//! first result is a trial: it is compared with another only if the unit is audited.
//! Those that follow were asked for to compare them, which is no matter of chance: they
//! are no trials, though a liar may be named for them.

use std::collections::{BTreeMap, BTreeSet};

use suanli_protocol::{
    envelope::Verified,
    ids::{JobId, PeerId},
    receipt::{Acceptance, Outcome, Receipt, Verdict},
    registry::Reason,
};

use super::node::Node;
use crate::scenario::Nature;

/// What became of one provider's first results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    /// What the provider is really like.
    pub nature: Nature,
    /// Results that were the first of their unit,
    pub results: u64,
    /// and those of them that were found to be wrong.
    pub found: u64,
    /// Whether any of its results was.
    pub named: bool,
    /// All results that were judged, those for comparison, too.
    pub judged: u64,
}

/// One provider's so far.
#[derive(Debug, Default)]
struct Count {
    results: u64,
    judged: u64,
    found: u64,
    named: bool,
}

/// All that were seen.
#[derive(Debug, Default)]
pub(crate) struct Trials {
    counts: BTreeMap<PeerId, Count>,
    units: BTreeSet<(JobId, u32)>,
}

impl Trials {
    pub(crate) fn judged(&mut self, job: JobId, receipt: &Verified<Receipt>, word: &Acceptance) {
        let body = receipt.body();
        let wrong = word.verdict == Verdict::Disputed(Reason::WRONG_RESULT);
        let counts = wrong || word.verdict == Verdict::Accepted;
        if !counts || !body.key.last || body.outcome != Outcome::Completed {
            return;
        }
        let count = self.counts.entry(receipt.signer()).or_default();
        count.judged += 1;
        count.named |= wrong;
        if self.units.insert((job, body.key.unit)) {
            count.results += 1;
            count.found += u64::from(wrong);
        }
    }

    pub(crate) fn results(&self, nodes: &[Node]) -> Vec<Trial> {
        let of = |node: &Node| {
            let count = self.counts.get(&node.peer_id())?;
            Some(Trial {
                nature: node.nature,
                results: count.results,
                found: count.found,
                named: count.named,
                judged: count.judged,
            })
        };
        nodes.iter().filter_map(of).collect()
    }
}
