//! What a node thinks of others, and what their offers are worth to it.
//!
//! ```text
//! our word on its receipts ─┐ fading                         ┌▶ left out, until when
//! what it failed us in ─────┼────────▶ an account's results ─┼▶ how often it is audited
//! what it paid us ──────────┘                 │ trade        └▶ between equal offers: who first
//!                                             ▼
//! references: what accounts that we know accepted of it, each as far as we know *them*
//!
//! challenges, rates of real work ────────▶ how much of a node's claims are believed
//! ```
//!
//! Speeds belong to a node's key, all else to its account: a new key of the same account
//! begins where the account stands, and a key whose results were contradicted takes that
//! along to another account. A new account begins as a stranger, with no better standing
//! than any.
//!
//! Nothing is told to others, but for our own signatures: a client's acceptance, in the
//! hands of its provider, is a [reference](crate::reference) that may be shown around.
//!
//! **The bound.** Trade with an account is what its own results, equal to others', and
//! its settled payments to us weigh; none while results of its that were contradicted
//! are remembered. All that an account says of others, taken together, weighs at
//! most a [quarter](VOUCH_PART) of that, one reference to a provider at most one result.
//! So the accounts of a ring, whatever they sign for each other, gain together at most a
//! quarter of the trade that they did with us, and nothing if they did none. What an
//! account gains of all references counts up to [`REFERENCES_MAX_WEIGHT`], and halves its
//! audits at most, which our own experience brings down to a hundredth. References lift
//! nothing else: not what is believed of a speed, not who is left out, and nothing at all
//! of whom we have found wrong ourselves.

mod weight;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bincode::{Decode, Encode};
use serde::Serialize;

pub use self::weight::{HALF_LIFE, Tally, Weight};
use crate::{
    envelope::Verified,
    ids::{AccountId, PeerId, ReceiptId},
    limits::{LIARS_KEPT, REFERENCES_MAX, REFERRED_MAX, STANDINGS_MAX},
    offer::Name,
    receipt::{Acceptance, Verdict},
    registry::Reason,
    units::{Millis, Wall},
    wire::List,
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
/// Results that a provider must have shown in a row before it is trusted more.
pub const TRUSTED_AFTER: u32 = 10;
/// The least part of a trusted provider's results that is audited, in a thousand.
const ADAPTIVE_MIN: u32 = 10;
/// What an account says of all others weighs one of so many parts of its trade with us.
pub const VOUCH_PART: u64 = 4;
/// What all references to an account weigh at most: they halve its audits then.
pub const REFERENCES_MAX_WEIGHT: Weight = Weight::of(TRUSTED_AFTER);
/// What contradicts or disputes an account's results and weighs less is forgotten: one
/// such event after four half-lives.
const DOUBT_MIN: Weight = Weight::from_micros(62_500);
/// References that are older say nothing: they weigh a 64th, after six half-lives.
pub const REFERENCE_AGE_MAX: Millis = Millis::new(HALF_LIFE.get() * 6);
/// A reference to work that was compared with nothing, in thousandths of one.
const UNCOMPARED: u16 = 250;
/// How many results must be lost beside failures before these decide between equals.
const FAILING_BESIDE: u64 = 10_000_000;

/// What a challenge came to.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Outcome {
    /// Who was challenged,
    pub provider: PeerId,
    /// and for whom it offers.
    pub account: AccountId,
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

/// How a provider failed us, other than by a result that we have judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failing {
    /// It did not bring what was agreed: silent, late, or at fault.
    Lost,
    /// It refused an agreement over what it had held for us.
    Refused,
    /// Its quote was not what its offer says.
    Bait,
    /// Two others would not have written an answer of its, with the weights that it names.
    Forged,
}

/// A failure, as it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Failure {
    /// Whose.
    pub account: AccountId,
    /// Which node of it.
    pub provider: PeerId,
    /// How.
    pub how: Failing,
    /// When.
    pub at: Wall,
}

/// What became of an account's results, and of agreements with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Results {
    /// Accepted.
    pub accepted: Tally,
    /// Equal to others' of the same unit,
    pub agreed: Tally,
    /// and those of them since the last that was not.
    pub in_a_row: Tally,
    /// Contradicted by others'.
    pub contradicted: Tally,
    /// How often it was left out for that: many results at once are one time.
    pub times: u32,
    /// When it was last left out, by our clock.
    pub last: Option<Wall>,
    /// Its nodes whose results were contradicted.
    pub liars: List<PeerId, LIARS_KEPT>,
    /// Disputed for another reason: a wrong amount, outputs that never came.
    pub disputed: Tally,
    /// Agreements that it did not keep.
    pub lost: Tally,
    /// Agreements that it refused.
    pub refused: Tally,
    /// Quotes that were not what it offered.
    pub baits: Tally,
    /// Receipts of ours that it paid by vouchers.
    pub paid: Tally,
}

impl Results {
    /// Others contradict a result of one of its nodes.
    fn contradicted(&mut self, node: PeerId, at: Wall) {
        let until = self.left_out_until();
        self.contradicted.add(at);
        self.in_a_row = Tally::default();
        // What it did before it was left out comes to light bit by bit.
        if until.is_none_or(|until| until <= at) {
            self.times = self.times.saturating_add(1);
            self.last = Some(at);
        }
        if !self.liars.contains(&node) {
            let mut liars = self.liars.to_vec();
            liars.push(node);
            self.liars = List::truncated(liars);
        }
    }

    /// Until when it is left out, because its results were wrong.
    pub fn left_out_until(&self) -> Option<Wall> {
        let times = self.times.checked_sub(1)?;
        let pause = LEFT_OUT.duration().saturating_mul(1 << times.min(10));
        self.last.map(|last| last.after(pause))
    }

    /// Whether we have found it wrong, and remember it.
    pub fn is_doubted(&self, now: Wall) -> bool {
        let wrong = self.contradicted.weight(now);
        wrong.plus(self.disputed.weight(now)) >= DOUBT_MIN
    }

    /// What it failed in, in a thousand of what it was to do; a few failures of somebody
    /// new say little.
    pub fn failing(&self, now: Wall) -> u16 {
        let weight = |tally: &Tally| u128::from(tally.weight(now).as_micros());
        let failed = [
            &self.lost,
            &self.refused,
            &self.baits,
            &self.disputed,
            &self.contradicted,
        ];
        let failed: u128 = failed.into_iter().map(weight).sum();
        let all = failed + weight(&self.accepted) + u128::from(FAILING_BESIDE);
        u16::try_from(failed * 1000 / all).unwrap_or(1000)
    }
}

/// What an account's trade with us weighs: as far as it may vouch for others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Trade {
    /// Its results that were equal to others'.
    pub agreed: Weight,
    /// Receipts of ours that it paid by vouchers,
    pub paid: Weight,
    /// and how much of those vouchers is settled, in thousandths.
    pub settled: u16,
    /// Whether results of its that were contradicted are remembered.
    pub doubted: bool,
}

impl Trade {
    /// All of it.
    pub fn weight(&self) -> Weight {
        if self.doubted {
            return Weight::ZERO;
        }
        self.agreed.plus(self.paid.part(self.settled))
    }

    /// What the account may say of all others together.
    pub fn vouches(&self) -> Weight {
        self.weight().over(VOUCH_PART)
    }
}

/// A reference that was checked, by an account that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Vouch {
    /// Who accepted.
    pub client: AccountId,
    /// Which receipt.
    pub receipt: ReceiptId,
    /// When, by its clock.
    pub at: Wall,
    /// Whether it says that the result was equal to others'.
    pub compared: bool,
}

impl Vouch {
    /// What it weighs where its client is trusted for that much.
    fn weight(&self, now: Wall) -> Weight {
        let fresh = if self.compared {
            Weight::ONE
        } else {
            Weight::ONE.part(UNCOMPARED)
        };
        fresh.faded(self.at, now)
    }
}

/// The references of one account, as it last showed them: one of each client at most.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Vouches {
    /// Of whom they are.
    pub provider: AccountId,
    /// When it showed them.
    pub at: Wall,
    /// By accounts that we know.
    pub by: List<Vouch, REFERENCES_MAX>,
}

/// A reference, and what it weighs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// The reference.
    pub vouch: Vouch,
    /// Its client's trade with us.
    pub trade: Trade,
    /// How many accounts we have references of that client to.
    pub vouches_for: u32,
    /// What it weighs.
    pub weight: Weight,
}

/// What we have seen of a node's speed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Speeds {
    challenge: Option<Outcome>,
    /// Rates of real work against what was claimed, in percent; newest last.
    rates: VecDeque<u8>,
}

impl Speeds {
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

/// What we have seen of one provider: its node, and the account for which it offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    speeds: Speeds,
    results: Results,
}

impl Standing {
    /// What became of its account's results.
    pub const fn results(&self) -> &Results {
        &self.results
    }

    /// Until when its account is left out.
    pub fn left_out_until(&self) -> Option<Wall> {
        self.results.left_out_until()
    }

    /// The last challenge of its node.
    pub const fn challenge(&self) -> Option<&Outcome> {
        self.speeds.challenge()
    }

    /// See [`Speeds::work`].
    pub fn work(&self) -> Option<(u8, usize)> {
        self.speeds.work()
    }

    /// See [`Speeds::believed`].
    pub fn believed(&self) -> Option<u8> {
        self.speeds.believed()
    }
}

/// What we have seen of all.
#[derive(Debug, Clone, Default)]
pub struct Standings {
    accounts: BTreeMap<AccountId, Results>,
    nodes: BTreeMap<PeerId, Speeds>,
    /// Nodes whose results were contradicted, and the accounts for which they worked.
    liars: BTreeMap<PeerId, BTreeSet<AccountId>>,
    /// Nodes whose last challenge was wrong, by account, and when it was.
    wrong: BTreeMap<AccountId, BTreeMap<PeerId, Wall>>,
    vouches: BTreeMap<AccountId, Vouches>,
    /// To how many accounts a client's references are remembered.
    vouching: BTreeMap<AccountId, u32>,
}

/// What follows from it.
impl Standings {
    /// Of a provider, if there is anything.
    pub fn of(&self, provider: PeerId, account: AccountId) -> Option<Standing> {
        let speeds = self.nodes.get(&provider);
        let results = self.accounts.get(&account);
        (speeds.is_some() || results.is_some()).then(|| Standing {
            speeds: speeds.cloned().unwrap_or_default(),
            results: results.cloned().unwrap_or_default(),
        })
    }

    /// Of an account's results, if there are any.
    pub fn of_account(&self, account: AccountId) -> Option<&Results> {
        self.accounts.get(&account)
    }

    /// Of a node's speed, if there is anything.
    pub fn of_node(&self, node: PeerId) -> Option<&Speeds> {
        self.nodes.get(&node)
    }

    /// Accounts of which anything is known.
    pub fn accounts(&self) -> BTreeSet<AccountId> {
        let seen = self.accounts.keys().chain(self.vouches.keys());
        let challenged = self.nodes.values().filter_map(Speeds::challenge);
        let challenged = challenged.map(|outcome| &outcome.account);
        seen.chain(challenged).copied().collect()
    }

    /// Nodes that were challenged, or whose results were contradicted, with the account
    /// for which they worked then.
    pub fn nodes(&self) -> impl Iterator<Item = (AccountId, PeerId)> {
        let challenged = self.nodes.values().filter_map(Speeds::challenge);
        let challenged = challenged.map(|outcome| (outcome.account, outcome.provider));
        let liars = self.liars.iter();
        let liars = liars.flat_map(|(node, of)| of.iter().map(|account| (*account, *node)));
        challenged.chain(liars)
    }

    /// How much of a node's claims we believe; see [`Speeds::believed`].
    pub fn believed(&self, node: PeerId) -> Option<u8> {
        self.nodes.get(&node).map_or(Some(100), Speeds::believed)
    }

    /// Until when a provider is not asked, if it is not: for its account's sake, or
    /// for what its node did for another.
    pub fn left_out_until(&self, provider: PeerId, account: AccountId, now: Wall) -> Option<Wall> {
        let before = self.liars.get(&provider).into_iter().flatten();
        let of = std::iter::once(&account).chain(before);
        of.filter_map(|account| self.accounts.get(account)?.left_out_until())
            .filter(|until| *until > now)
            .max()
    }

    /// Another node of the account whose last challenge was wrong: a new key is no way
    /// around that, for as long as evidence takes to lose half of its weight.
    pub fn wrong_beside(&self, provider: PeerId, account: AccountId, now: Wall) -> Option<PeerId> {
        let mut wrong = self.wrong.get(&account)?.iter();
        let lately = |at: Wall| at.after(HALF_LIFE.duration()) > now;
        let other = wrong.find(|(node, at)| **node != provider && lately(**at));
        other.map(|(node, _)| *node)
    }

    /// How much of a provider's claims we believe, in percent, or why we don't ask it.
    ///
    /// # Errors
    /// Why not.
    pub fn opinion(&self, provider: PeerId, account: AccountId, now: Wall) -> Result<u8, Reason> {
        if self.left_out_until(provider, account, now).is_some() {
            return Err(Reason::WRONG_RESULT);
        }
        if self.wrong_beside(provider, account, now).is_some() {
            return Err(Reason::FAILED_CHALLENGE);
        }
        self.believed(provider).ok_or(Reason::FAILED_CHALLENGE)
    }

    /// See [`Results::failing`].
    pub fn failing(&self, account: AccountId, now: Wall) -> u16 {
        let results = self.accounts.get(&account);
        results.map_or(0, |results| results.failing(now))
    }

    /// An account's trade with us. `settled` says how much of its vouchers to us is
    /// settled, in thousandths.
    pub fn trade(
        &self,
        account: AccountId,
        now: Wall,
        settled: impl Fn(AccountId) -> u16,
    ) -> Trade {
        let Some(results) = self.accounts.get(&account) else {
            return Trade::default();
        };
        let paid = results.paid.weight(now);
        Trade {
            agreed: results.agreed.weight(now),
            paid,
            settled: if paid > Weight::ZERO {
                settled(account)
            } else {
                0
            },
            doubted: results.contradicted.weight(now) >= DOUBT_MIN,
        }
    }

    /// Whether there is an account, other than one, whose word would count.
    pub fn knows_others(&self, than: AccountId, now: Wall) -> bool {
        let mut others = self
            .accounts
            .iter()
            .filter(|(account, _)| **account != than);
        others.any(|(_, results)| {
            let trade = results.agreed.weight(now).plus(results.paid.weight(now));
            trade > Weight::ZERO
        })
    }

    /// References to an account, and what each weighs.
    pub fn counted(
        &self,
        account: AccountId,
        now: Wall,
        settled: impl Fn(AccountId) -> u16,
    ) -> Vec<Counted> {
        let vouches = self.vouches.get(&account);
        let by = vouches.map_or(&[][..], |vouches| &vouches.by);
        let counted = |vouch: &Vouch| {
            let trade = self.trade(vouch.client, now, &settled);
            let vouches_for = self.vouching.get(&vouch.client).copied().unwrap_or(1);
            let share = trade.vouches().over(u64::from(vouches_for));
            Counted {
                vouch: *vouch,
                trade,
                vouches_for,
                weight: vouch.weight(now).min(share),
            }
        };
        by.iter().map(counted).collect()
    }

    /// What all references to an account weigh.
    pub fn referred(
        &self,
        account: AccountId,
        now: Wall,
        settled: impl Fn(AccountId) -> u16,
    ) -> Weight {
        let results = self.accounts.get(&account);
        if results.is_some_and(|results| results.is_doubted(now)) {
            return Weight::ZERO;
        }
        let counted = self.counted(account, now, settled);
        let all = counted.iter().map(|counted| counted.weight);
        all.fold(Weight::ZERO, Weight::plus)
            .min(REFERENCES_MAX_WEIGHT)
    }

    /// In how many of 1,000 units an account's result is compared with another's, where
    /// a job wants that to follow from its standing.
    pub fn audited(
        &self,
        account: AccountId,
        now: Wall,
        settled: impl Fn(AccountId) -> u16,
    ) -> u32 {
        let results = self.accounts.get(&account);
        let shown = results.map_or(0, |results| results.in_a_row.weight(now).rounded());
        let audited = if shown < TRUSTED_AFTER {
            1000
        } else {
            1000 / shown
        };
        let referred = self.referred(account, now, settled).as_micros();
        let most = REFERENCES_MAX_WEIGHT.as_micros();
        let left = u64::from(audited) * (2 * most - referred.min(most)) / (2 * most);
        u32::try_from(left).unwrap_or(1000).max(ADAPTIVE_MIN)
    }

    /// When an account last showed references that are remembered.
    pub fn referred_at(&self, account: AccountId) -> Option<Wall> {
        self.vouches.get(&account).map(|vouches| vouches.at)
    }
}

/// What comes in.
impl Standings {
    /// Remembers our word on a provider's receipt.
    pub fn judged(&mut self, provider: PeerId, account: AccountId, word: &Verified<Acceptance>) {
        let (body, at) = (word.body(), word.issued());
        // Somebody else was faster: that is nobody's fault.
        if body.verdict == Verdict::Disputed(Reason::SUPERSEDED) {
            return;
        }
        let Some(results) = self.entry(account) else {
            return;
        };
        match body.verdict {
            Verdict::Accepted => {
                results.accepted.add(at);
                if body.verification.is_agreement() {
                    results.agreed.add(at);
                    results.in_a_row.add(at);
                }
            }
            Verdict::Disputed(Reason::WRONG_RESULT) => {
                results.contradicted(provider, at);
                self.lied(provider, account);
            }
            Verdict::Disputed(_) => {
                results.disputed.add(at);
                results.in_a_row = Tally::default();
            }
        }
    }

    fn lied(&mut self, node: PeerId, account: AccountId) {
        if self.liars.len() < STANDINGS_MAX || self.liars.contains_key(&node) {
            let accounts = self.liars.entry(node).or_default();
            if accounts.len() < LIARS_KEPT {
                accounts.insert(account);
            }
        }
    }

    /// Remembers how an account failed us.
    pub fn failed(&mut self, failure: Failure) {
        let Some(results) = self.entry(failure.account) else {
            return;
        };
        match failure.how {
            Failing::Lost => results.lost.add(failure.at),
            Failing::Refused => results.refused.add(failure.at),
            Failing::Bait => results.baits.add(failure.at),
            Failing::Forged => {
                results.contradicted(failure.provider, failure.at);
                self.lied(failure.provider, failure.account);
            }
        }
    }

    /// Remembers that a voucher of an account pays receipts of ours.
    pub fn paid(&mut self, account: AccountId, receipts: usize, at: Wall) {
        let receipts = u32::try_from(receipts).unwrap_or(u32::MAX);
        if receipts > 0
            && let Some(results) = self.entry(account)
        {
            results.paid.add_some(receipts, at);
        }
    }

    /// Remembers an account's references, instead of those that it showed before.
    pub fn vouch(&mut self, vouches: Vouches) {
        self.forget_vouches(vouches.provider);
        if vouches.by.is_empty() {
            return;
        }
        if self.vouches.len() >= REFERRED_MAX {
            let oldest = self.vouches.values().min_by_key(|vouches| vouches.at);
            if let Some(oldest) = oldest.map(|vouches| vouches.provider) {
                self.forget_vouches(oldest);
            }
        }
        for vouch in vouches.by.iter() {
            *self.vouching.entry(vouch.client).or_default() += 1;
        }
        self.vouches.insert(vouches.provider, vouches);
    }

    fn forget_vouches(&mut self, provider: AccountId) {
        let Some(gone) = self.vouches.remove(&provider) else {
            return;
        };
        for vouch in gone.by.iter() {
            if let Some(count) = self.vouching.get_mut(&vouch.client) {
                *count -= 1;
                if *count == 0 {
                    self.vouching.remove(&vouch.client);
                }
            }
        }
    }

    /// Remembers what a challenge came to.
    pub fn challenged(&mut self, outcome: Outcome) {
        let (node, account) = (outcome.provider, outcome.account);
        if outcome.right {
            if let Some(wrong) = self.wrong.get_mut(&account) {
                wrong.remove(&node);
                if wrong.is_empty() {
                    self.wrong.remove(&account);
                }
            }
        } else if self.wrong.len() < STANDINGS_MAX {
            let wrong = self.wrong.entry(account).or_default();
            if wrong.len() < LIARS_KEPT {
                wrong.insert(node, outcome.at);
            }
        }
        if let Some(speeds) = self.speeds(node) {
            speeds.challenge = Some(outcome);
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
        if let Some(speeds) = self.speeds(provider) {
            speeds.rates.push_back(rate);
            if speeds.rates.len() > RATES_KEPT {
                speeds.rates.pop_front();
            }
        }
    }

    /// A place for an account. Where all are taken, that of the one of whom least is
    /// known goes: what speaks against somebody stays longest.
    fn entry(&mut self, account: AccountId) -> Option<&mut Results> {
        if !self.accounts.contains_key(&account) && self.accounts.len() >= STANDINGS_MAX {
            let harmless = self.accounts.iter().filter(|(_, results)| {
                results.contradicted.count == 0 && results.disputed.count == 0
            });
            let least = harmless.min_by_key(|(_, results)| {
                (
                    results.agreed.count.saturating_add(results.paid.count),
                    results.accepted.count,
                )
            });
            let least = least.map(|(account, _)| *account)?;
            self.accounts.remove(&least);
        }
        Some(self.accounts.entry(account).or_default())
    }

    /// The same for a node.
    fn speeds(&mut self, node: PeerId) -> Option<&mut Speeds> {
        if !self.nodes.contains_key(&node) && self.nodes.len() >= STANDINGS_MAX {
            let harmless = |speeds: &Speeds| speeds.believed() == Some(100);
            let gone = self.nodes.iter().find(|(_, speeds)| harmless(speeds));
            let gone = gone.map(|(node, _)| *node)?;
            self.nodes.remove(&gone);
        }
        Some(self.nodes.entry(node).or_default())
    }
}

/// What a checkpoint keeps, and what it brings back.
impl Standings {
    /// What became of each account's results.
    pub fn results(&self) -> impl Iterator<Item = (AccountId, &Results)> {
        let accounts = self.accounts.iter();
        accounts.map(|(account, results)| (*account, results))
    }

    /// All last challenges.
    pub fn challenges(&self) -> impl Iterator<Item = &Outcome> {
        self.nodes.values().filter_map(Speeds::challenge)
    }

    /// All references.
    pub fn vouches(&self) -> impl Iterator<Item = &Vouches> {
        self.vouches.values()
    }

    /// Takes back what a checkpoint kept of an account.
    pub fn recall(&mut self, account: AccountId, results: Results) {
        for &liar in results.liars.iter() {
            self.lied(liar, account);
        }
        if let Some(entry) = self.entry(account) {
            *entry = results;
        }
    }
}

fn percent(part: u64, whole: u64) -> u8 {
    let percent = u128::from(part) * 100 / u128::from(whole.max(1));
    u8::try_from(percent.min(100)).unwrap_or(100)
}
