//! What a node has seen of providers itself, and what their offers are worth to it.
//!
//! An offer's speeds are its provider's word. Here is what became of it: the last
//! capacity challenge, and the rates of real work. Real work counts more, for a
//! provider may know a challenge when it sees one. Nothing here is told to others:
//! a node believes what it has measured, and nobody's word about a third.
//!
//! A standing belongs to a node key. A new key begins as a stranger, with no better
//! standing than any: its offer is believed until something speaks against it, and
//! credit is what it gets of its own account.

use std::collections::{BTreeMap, VecDeque};

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::{
    envelope::Verified,
    ids::PeerId,
    limits::STANDINGS_MAX,
    offer::Name,
    receipt::{Acceptance, Receipt, Verdict},
    registry::Reason,
    units::{Millis, Wall},
};

/// A provider is as fast as it says if a challenge shows so many percent: a round
/// trip and a busy moment are nobody's lie.
pub const KEPT_PERCENT: u8 = 50;
/// Rates of real work that are remembered of a provider.
const RATES_KEPT: usize = 16;
/// How many of them count more than a challenge.
const RATES_ENOUGH: usize = 3;
/// How long a provider is left out whose result others' contradict; twice as long for
/// each further one.
const LEFT_OUT: Millis = Millis::new(3_600_000);
/// Executions shorter than this say more about the network than about a device.
pub const WORK_MIN: Millis = Millis::new(250);

/// What a challenge came to.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Outcome {
    /// Who was challenged.
    pub provider: PeerId,
    /// When.
    pub at: Wall,
    /// The device, as the offer named it.
    pub device: Name,
    /// Operations per second that the offer claimed.
    pub claimed: u64,
    /// Operations per second that the result shows at least; 0 if it was wrong.
    pub shown: u64,
    /// How long it took from the question to the commitment.
    pub took: Millis,
    /// Whether the result was right.
    pub right: bool,
}

impl Outcome {
    /// What it shows of what was claimed, in percent, at most 100.
    pub fn percent(&self) -> u8 {
        percent(self.shown, self.claimed)
    }

    /// Whether the offer's word held.
    pub fn is_kept(&self) -> bool {
        self.right && self.percent() >= KEPT_PERCENT
    }
}

/// What became of a provider's results.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Results {
    /// Accepted.
    pub accepted: u32,
    /// Equal to others' of the same unit,
    pub agreed: u32,
    /// and so many of them since the last that was not.
    pub in_a_row: u32,
    /// Contradicted by others'.
    pub contradicted: u32,
    /// How often it was left out for that: many results at once are one time.
    pub times: u32,
    /// When it was last left out, by our clock.
    pub last: Option<Wall>,
    /// Disputed for another reason: a wrong amount, outputs that never came.
    pub disputed: u32,
}

/// What we have seen of one provider.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    results: Results,
    challenge: Option<Outcome>,
    /// Rates of real work against what was claimed, in percent; newest last.
    rates: VecDeque<u8>,
}

impl Standing {
    /// What became of its results.
    pub const fn results(&self) -> &Results {
        &self.results
    }

    /// Until when it is left out, because others' results contradict its own.
    pub fn left_out_until(&self) -> Option<Wall> {
        let times = self.results.times.checked_sub(1)?;
        let pause = LEFT_OUT.duration().saturating_mul(1 << times.min(10));
        self.results.last.map(|last| last.after(pause))
    }

    /// The last challenge.
    pub const fn challenge(&self) -> Option<&Outcome> {
        self.challenge.as_ref()
    }

    /// The middle one of the rates of real work, in percent of what was claimed, and
    /// how many there are.
    pub fn work(&self) -> Option<(u8, usize)> {
        let mut rates: Vec<u8> = self.rates.iter().copied().collect();
        rates.sort_unstable();
        let middle = rates.get(rates.len() / 2).copied()?;
        Some((middle, rates.len()))
    }

    /// How much of its claims we believe, in percent; `None` where its last answer
    /// was wrong.
    pub fn believed(&self) -> Option<u8> {
        let challenged = match &self.challenge {
            Some(outcome) if !outcome.right => return None,
            Some(outcome) if outcome.is_kept() => 100,
            Some(outcome) => outcome.percent(),
            None => 100,
        };
        let believed = match self.work() {
            Some((worked, RATES_ENOUGH..)) if worked < KEPT_PERCENT => worked,
            Some((_, RATES_ENOUGH..)) => 100,
            Some(_) | None => challenged,
        };
        // Nobody is so slow that all others' prices are better.
        Some(believed.max(1))
    }
}

/// What we have seen of all.
#[derive(Debug, Clone, Default)]
pub struct Standings {
    of: BTreeMap<PeerId, Standing>,
}

impl Standings {
    /// Of one, if there is anything.
    pub fn of(&self, provider: PeerId) -> Option<&Standing> {
        self.of.get(&provider)
    }

    /// How much of a provider's claims we believe; see [`Standing::believed`].
    pub fn believed(&self, provider: PeerId) -> Option<u8> {
        self.of(provider).map_or(Some(100), Standing::believed)
    }

    /// How much of a provider's claims we believe, in percent, or why we don't ask it.
    ///
    /// # Errors
    /// Why not.
    pub fn opinion(&self, provider: PeerId, now: Wall) -> Result<u8, Reason> {
        let until = self.of(provider).and_then(Standing::left_out_until);
        if until.is_some_and(|until| until > now) {
            return Err(Reason::WRONG_RESULT);
        }
        self.believed(provider).ok_or(Reason::FAILED_CHALLENGE)
    }

    /// How many of its results agreed with others' since the last that did not.
    pub fn agreed_in_a_row(&self, provider: PeerId) -> u32 {
        self.of(provider)
            .map_or(0, |standing| standing.results.in_a_row)
    }

    /// Remembers our word on a receipt.
    pub fn judged(&mut self, receipt: &Verified<Receipt>, word: &Verified<Acceptance>) {
        let body = word.body();
        let Some(standing) = self.entry(receipt.signer()) else {
            return;
        };
        let until = standing.left_out_until();
        let results = &mut standing.results;
        match body.verdict {
            Verdict::Accepted => {
                results.accepted = results.accepted.saturating_add(1);
                if body.verification.is_agreement() {
                    results.agreed = results.agreed.saturating_add(1);
                    results.in_a_row = results.in_a_row.saturating_add(1);
                }
            }
            Verdict::Disputed(Reason::WRONG_RESULT) => {
                results.contradicted = results.contradicted.saturating_add(1);
                results.in_a_row = 0;
                // What it did before it was left out comes to light bit by bit.
                if until.is_none_or(|until| until <= word.issued()) {
                    results.times = results.times.saturating_add(1);
                    results.last = Some(word.issued());
                }
            }
            // Somebody else was faster: that is nobody's fault.
            Verdict::Disputed(Reason::SUPERSEDED) => {}
            Verdict::Disputed(_) => {
                results.disputed = results.disputed.saturating_add(1);
                results.in_a_row = 0;
            }
        }
    }

    /// What a checkpoint keeps of results.
    pub fn results(&self) -> impl Iterator<Item = (PeerId, &Results)> {
        let any = |(_, standing): &(_, &Standing)| standing.results != Results::default();
        self.of
            .iter()
            .filter(any)
            .map(|(peer, standing)| (*peer, &standing.results))
    }

    /// Takes back what a checkpoint kept.
    pub fn recall(&mut self, provider: PeerId, results: Results) {
        if let Some(standing) = self.entry(provider) {
            standing.results = results;
        }
    }

    /// All last challenges.
    pub fn challenges(&self) -> impl Iterator<Item = &Outcome> {
        self.of.values().filter_map(Standing::challenge)
    }

    /// Remembers what a challenge came to.
    pub fn challenged(&mut self, outcome: Outcome) {
        if let Some(standing) = self.entry(outcome.provider) {
            standing.challenge = Some(outcome);
        }
    }

    /// Remembers how fast real work was: `operations` in a time, against a claim per
    /// second.
    pub fn worked(&mut self, provider: PeerId, operations: u64, took: Millis, claimed: u64) {
        if took < WORK_MIN || claimed == 0 {
            return;
        }
        let rate = u128::from(operations) * 1000 / u128::from(took.get().max(1));
        let rate = percent(u64::try_from(rate).unwrap_or(u64::MAX), claimed);
        if let Some(standing) = self.entry(provider) {
            standing.rates.push_back(rate);
            if standing.rates.len() > RATES_KEPT {
                standing.rates.pop_front();
            }
        }
    }

    /// A place for a provider. Where all are taken, that of the one of whom least is
    /// known goes: what speaks against somebody stays longest.
    fn entry(&mut self, provider: PeerId) -> Option<&mut Standing> {
        if !self.of.contains_key(&provider) && self.of.len() >= STANDINGS_MAX {
            let harmless = |standing: &Standing| {
                standing.believed() == Some(100) && standing.results.contradicted == 0
            };
            let gone = self.of.iter().find(|(_, standing)| harmless(standing));
            let gone = gone.map(|(peer, _)| *peer)?;
            self.of.remove(&gone);
        }
        Some(self.of.entry(provider).or_default())
    }
}

fn percent(part: u64, whole: u64) -> u8 {
    let percent = u128::from(part) * 100 / u128::from(whole.max(1));
    u8::try_from(percent.min(100)).unwrap_or(100)
}
