//! Which offers fit a job, and in which order to ask.
//!
//! ```text
//! offer ─▶ regions ─▶ fit (runtime, device, memory, …) ─▶ the offer's `accept` ─▶ opinion
//!                                                  │
//!                      the job's `where` and budget, on each device that is left ─▶ rank, policy
//! ```
//!
//! [`fit`] is one rule for both sides: the client judges offers by it before
//! it asks, the provider judges requests by it before it answers, so that what
//! the client's plan promises is not refused for a reason that the client
//! could have known. [`rank`] adds what only the client cares for (region,
//! bad experience) and sorts by the job's policy. Both are pure functions over
//! a snapshot. [`rank_book`] comes to the same for a whole book, by its index.

mod expect;
mod fit;
mod given;
mod matching;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

pub(crate) use self::expect::speed_of;
pub use self::{
    expect::{Expected, Score, Way, expected_price, expected_quantity, score},
    fit::{affordable, devices_for, fit},
    given::{JobFields, OfferFields},
    matching::{Named, rank_book, rank_some},
};
use self::{
    expect::{believed_speed, expectation, expected_of_model},
    fit::fitting_devices,
};
use crate::{
    deal::{Needs, Work},
    envelope::Verified,
    expression::{Answer, Expression, Value},
    ids::{AccountId, OfferId, PeerId},
    limits::DEVICES_MAX,
    message::Decline,
    offer::{Device, Figures, Name, Offer},
    registry::{Reason, Runtime},
    units::{Amount, Millis},
    wire::List,
};

/// What matters to the client, where several offers fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The lowest expected price, tied to measured speed.
    #[default]
    Cheapest,
    /// The result there soonest: what waiting, the inputs' way and the run take.
    Fastest,
    /// The lowest product of price and that time.
    Balanced,
    /// The shortest way there and back.
    Nearest,
    /// The least carbon dioxide, of those who say what their power is like.
    Green,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Cheapest,
        Self::Fastest,
        Self::Balanced,
        Self::Nearest,
        Self::Green,
    ];
}

/// What a client wants of offers.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// What the job needs.
    pub needs: &'a Needs,
    /// Its shape.
    pub work: &'a Work,
    /// The most that the client pays for it all.
    pub budget: Amount,
    /// Regions that it allows; empty for all.
    pub regions: &'a [Name],
    /// Floating-point operations of one execution, where the client knows.
    pub flops: Option<u64>,
    /// What matters.
    pub policy: Policy,
    /// What it wants of an offer and its device, beside what it needs.
    pub condition: Option<&'a Expression>,
    /// What is best, before the policy: the highest number.
    pub rank: Option<&'a Expression>,
    /// The client's account,
    pub account: AccountId,
    /// its region, if it says one,
    pub home: &'a str,
    /// bytes of all that the job reads,
    pub inputs_bytes: u64,
    /// and what it costs the client to send what it has of them to another region.
    pub traffic: Amount,
    /// How much time is left for it all. What is expected to take longer comes last.
    pub within: Option<Millis>,
    /// Whether there are agreements for it already: what is left of the budget is used up
    /// then, even where more is expected to be needed.
    pub is_begun: bool,
}

impl Want<'_> {
    /// Whether it says how much work an execution is. Where it does not, a budget is what
    /// ends it, and so it does with a lease. Fuel is what it may use at most, and mostly far
    /// more than it does.
    pub(crate) const fn says_work(&self) -> bool {
        let is_lease = matches!(self.work, Work::Lease { .. });
        let is_limit = matches!(self.needs.runtime, Runtime::WASM);
        !is_lease && !is_limit && !self.is_begun && self.flops.is_some()
    }

    /// Whether it pays what is expected.
    pub(crate) fn pays(&self, expected: &Expected) -> bool {
        expected.price <= self.budget
    }
}

/// What a client's node knows of a provider beside its offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// How much of the speeds that it claims are believed, in percent.
    pub believed: u8,
    /// In how much of a thousand it failed us; between equals that decides.
    pub failing: u16,
    /// What of the way to it was measured.
    pub link: Way,
    /// Bytes of what the job reads that it made itself, and has.
    pub holds: u64,
}

impl View {
    /// Nothing is known that speaks against it.
    pub const UNKNOWN: Self = Self {
        believed: 100,
        failing: 0,
        link: Way {
            rtt_us: None,
            bytes_per_second: None,
        },
        holds: 0,
    };
}

/// An offer that fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// The provider.
    pub peer: PeerId,
    /// Its offer.
    pub offer: OfferId,
    /// Where it is.
    pub region: Name,
    /// The device that would run it.
    pub device: Name,
    /// Executions that it runs at once.
    pub slots: u32,
    /// The offer's devices that will do, by position, the best first.
    pub devices: List<u16, DEVICES_MAX>,
    /// How much of the offer's speed we believe, in percent: less than 100 where a
    /// challenge or real work showed less.
    pub believed: u8,
    /// When and for how much: exact where the client says how much work it is, else
    /// relative to the slowest that fits, which is taken to need the whole run limit.
    pub expected: Expected,
    /// What it can cost at most.
    pub cap: Amount,
}

/// Why an offer does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Misfit {
    /// The provider.
    pub peer: PeerId,
    /// Where it is.
    pub region: Name,
    /// The first reason.
    pub decline: Decline,
    /// The part of a condition that it misses, and what its fields are.
    pub why: Option<String>,
}

/// A plan: who could run a job, best first, and who could not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Best first, [`PLAN_MAX`] at most.
    pub candidates: Vec<Candidate>,
    /// How many could run it.
    pub fitting: usize,
    /// In the book's order, [`PLAN_MAX`] at most.
    pub misfits: Vec<Misfit>,
    /// How many could not.
    pub unfit: usize,
}

/// Candidates that a plan names, and misfits; of the others it says how many they are.
pub const PLAN_MAX: usize = 100;

/// An amount, so many times; saturating.
pub fn times(amount: Amount, count: u32) -> Amount {
    Amount::from_micros(amount.as_micros().saturating_mul(u64::from(count)))
}

/// Sorts offers for a job. `view` tells what the client knows of a provider, or why it
/// does not ask it. [`rank_book`] does the same for a whole book.
pub fn rank<'a>(
    offers: impl Iterator<Item = &'a Verified<Offer>>,
    want: &Want<'_>,
    view: impl Fn(PeerId) -> Result<View, Reason>,
) -> Plan {
    let mut fitting = Vec::new();
    let mut misfits = Misfits::default();
    for offer in offers {
        match judge(offer, want, &view) {
            Ok(able) => fitting.push((offer, able)),
            Err(decline) => misfits.add(offer, decline, want),
        }
    }
    let runtime = want.needs.runtime;
    let fastest = |(_, able): &(_, Able<'a>)| {
        let (_, device) = able.devices.first()?;
        Some(believed_speed(
            device.speed(speed_of(runtime)),
            able.view.believed,
        ))
    };
    let slowest = fitting.iter().filter_map(fastest).min().unwrap_or(1);
    let mut ranked = Vec::new();
    for (n, (offer, able)) in fitting.iter().enumerate() {
        let met = meeting(offer.body(), able, want, slowest);
        let best = met.filter(|found| want.pays(&found.expected));
        match best.map(|found| found.score).min() {
            Some(score) => ranked.push(((score, able.view.failing), offer.signer(), n)),
            None => misfits.miss(offer, able, want, slowest),
        }
    }
    let count = ranked.len();
    if count > PLAN_MAX {
        // Only the best are named, and put in order.
        ranked.select_nth_unstable(PLAN_MAX);
        ranked.truncate(PLAN_MAX);
    }
    ranked.sort_unstable();
    let named = ranked.into_iter().filter_map(|(_, _, n)| fitting.get(n));
    Plan {
        candidates: named
            .filter_map(|(offer, able)| candidate(offer, able, want, slowest))
            .collect(),
        fitting: count,
        misfits: misfits.named,
        unfit: misfits.count,
    }
}

/// Offers that don't fit: the first by name, the others by number.
#[derive(Default)]
struct Misfits {
    named: Vec<Misfit>,
    count: usize,
}

impl Misfits {
    fn add(&mut self, offer: &Verified<Offer>, decline: Decline, want: &Want<'_>) {
        self.name(offer, decline, || {
            let accept = offer.body().accept.as_ref();
            let accept = accept.filter(|_| decline.reason == Reason::NOT_ACCEPTED);
            accept?.why_not(&asker(want))
        });
    }

    /// One that could run it, and is too dear or does not meet the job's own condition.
    fn miss(&mut self, offer: &Verified<Offer>, able: &Able<'_>, want: &Want<'_>, slowest: u64) {
        let met = meeting(offer.body(), able, want, slowest);
        let Some(least) = met.map(|found| found.expected.price).min() else {
            return self.name(offer, Reason::CONDITION.into(), || {
                missed(offer.body(), able, want, slowest)
            });
        };
        let decline = Decline {
            reason: Reason::OVER_BUDGET,
            need: least.as_micros(),
            have: want.budget.as_micros(),
        };
        self.name(offer, decline, || None);
    }

    fn name(
        &mut self,
        offer: &Verified<Offer>,
        decline: Decline,
        why: impl FnOnce() -> Option<String>,
    ) {
        self.count += 1;
        if self.named.len() < PLAN_MAX {
            self.named.push(Misfit {
                peer: offer.signer(),
                region: offer.body().region.clone(),
                decline,
                why: why(),
            });
        }
    }
}

/// Devices of an offer that could run the work, the fastest first.
struct Able<'a> {
    devices: Vec<(u16, &'a Device)>,
    view: View,
}

/// The job, as far as a provider's condition on it can be judged by its client.
const fn asker<'a>(want: &Want<'a>) -> JobFields<'a> {
    JobFields {
        account: want.account,
        known: None,
        hour: None,
        needs: want.needs,
        work: want.work,
        inputs_bytes: want.inputs_bytes,
        budget: want.budget,
    }
}

fn judge<'a>(
    offer: &'a Verified<Offer>,
    want: &Want<'_>,
    view: impl Fn(PeerId) -> Result<View, Reason>,
) -> Result<Able<'a>, Decline> {
    let body = offer.body();
    if !want.regions.is_empty() && !want.regions.contains(&body.region) {
        return Err(Reason::OTHER_REGION.into());
    }
    // What it is expected to cost is more, and asked later.
    let budget = if want.says_work() {
        Amount::MAX
    } else {
        want.budget
    };
    let devices = fitting_devices(body, want.needs, want.work, budget)?;
    if let Some(accept) = &body.accept
        // What we can't know is the provider's to judge.
        && accept.evaluate(&asker(want)) == Answer::Known(Value::Bool(false))
    {
        return Err(Reason::NOT_ACCEPTED.into());
    }
    let view = view(offer.signer())?;
    Ok(Able { devices, view })
}

/// A device of an offer that meets the job's condition.
#[derive(Debug, Clone, Copy)]
struct Met<'a> {
    score: Score,
    place: u16,
    device: &'a Device,
    expected: Expected,
}

/// What a job's condition and rank read of an offer, on one device.
fn fields<'a>(
    offer: &'a Offer,
    (device, view): (&'a Device, View),
    want: &Want<'_>,
    slowest: u64,
) -> OfferFields<'a> {
    let figures = Figures::of(offer, device);
    let model = want.needs.model.as_ref();
    OfferFields {
        figures,
        believed: view.believed,
        expected: match model.and_then(|model| offer.model(model)) {
            Some(model) => expected_of_model((&figures, model), view, want),
            None => expectation(&figures, view, want, slowest),
        },
    }
}

fn meeting<'a>(
    offer: &'a Offer,
    able: &'a Able<'a>,
    want: &'a Want<'_>,
    slowest: u64,
) -> impl Iterator<Item = Met<'a>> {
    able.devices.iter().filter_map(move |&(place, device)| {
        let fields = fields(offer, (device, able.view), want, slowest);
        let meets = |condition: &Expression| {
            condition.evaluate(&fields) == Answer::Known(Value::Bool(true))
        };
        want.condition.is_none_or(meets).then(|| Met {
            score: score(want.policy, want.rank, want.within, &fields),
            place,
            device,
            expected: fields.expected,
        })
    })
}

/// The part of the job's condition that the fastest device misses.
fn missed(offer: &Offer, able: &Able<'_>, want: &Want<'_>, slowest: u64) -> Option<String> {
    let (_, device) = able.devices.first()?;
    let fields = fields(offer, (device, able.view), want, slowest);
    want.condition?.why_not(&fields)
}

/// The offer on the best of its devices that meet the condition.
fn candidate(
    offer: &Verified<Offer>,
    able: &Able<'_>,
    want: &Want<'_>,
    slowest: u64,
) -> Option<Candidate> {
    let met = meeting(offer.body(), able, want, slowest);
    let mut met: Vec<_> = met.filter(|found| want.pays(&found.expected)).collect();
    met.sort_by_key(|found| (found.score, found.place));
    let best = met.first()?;
    let (runtime, units) = (want.needs.runtime, want.work.unit_count());
    let most = want.needs.quantity_max();
    let prices = offer.body().prices_for(want.needs);
    let cap = expected_price(prices, runtime, most, units);
    Some(Candidate {
        peer: offer.signer(),
        offer: OfferId(offer.hash()),
        region: offer.body().region.clone(),
        device: best.device.model.clone(),
        slots: offer.body().slots,
        devices: List::truncated(met.iter().map(|found| found.place).collect()),
        believed: able.view.believed,
        expected: best.expected,
        cap: cap.min(want.budget),
    })
}
