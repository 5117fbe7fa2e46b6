//! Which offers fit a job, and in which order to ask.
//!
//! ```text
//! offer ─▶ regions ─▶ fit (runtime, device, memory, …) ─▶ the offer's `accept` ─▶ opinion
//!                                                  │
//!                      the job's `where`, on each device that is left ─▶ rank, policy
//! ```
//!
//! [`fit`] is one rule for both sides: the client judges offers by it before
//! it asks, the provider judges requests by it before it answers, so that what
//! the client's plan promises is not refused for a reason that the client
//! could have known. [`rank`] adds what only the client cares for (region,
//! bad experience) and sorts by the job's policy. Both are pure functions over
//! a snapshot.

mod given;

use std::cmp::Reverse;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

pub use self::given::{JobFields, OfferFields};
use crate::{
    deal::{Needs, Work},
    envelope::Verified,
    expression::{Answer, Expression, Number, Value},
    ids::{AccountId, OfferId, PeerId},
    limits::DEVICES_MAX,
    message::Decline,
    offer::{Device, Name, Offer},
    registry::{DeviceKind, Reason, Runtime, SpeedKind},
    units::{Amount, Meter, Millis, Price, cost},
    wire::List,
};

/// What matters to the client, where several offers fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The lowest expected price, tied to measured speed.
    #[default]
    Cheapest,
    /// The shortest expected time.
    Fastest,
    /// The lowest product of price and time.
    Balanced,
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
    /// and bytes of all that the job reads.
    pub inputs_bytes: u64,
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
    /// How long one execution is expected to take: exact where the client
    /// says how much work it is, else relative to the slowest that fits, which
    /// is taken to need the whole run limit.
    pub expected: Millis,
    /// What it is expected to cost in all.
    pub price: Amount,
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

/// Whether an offer can serve such work within a budget.
///
/// # Errors
/// The first reason why not.
pub fn fit(offer: &Offer, needs: &Needs, work: &Work, budget: Amount) -> Result<(), Decline> {
    fitting_devices(offer, needs, work, budget).map(drop)
}

/// The devices of an offer that can serve such work within a budget, the fastest first.
fn fitting_devices<'a>(
    offer: &'a Offer,
    needs: &Needs,
    work: &Work,
    budget: Amount,
) -> Result<Vec<(u16, &'a Device)>, Decline> {
    // Allowed nothing it could only fail.
    if needs.quantity_max() == 0 {
        return Err(Reason::NO_SUCH_WORK.into());
    }
    let devices = able_devices(offer, needs)?;
    if offer.sandbox < needs.sandbox {
        return Err(Decline {
            reason: Reason::SANDBOX_TOO_WEAK,
            need: needs.sandbox.0.into(),
            have: offer.sandbox.0.into(),
        });
    }
    if needs.run_max > offer.run_max {
        return Err(Decline {
            reason: Reason::TOO_LONG,
            need: needs.run_max.get(),
            have: offer.run_max.get(),
        });
    }
    if needs.output_bytes_max > offer.storage_bytes {
        return Err(Decline {
            reason: Reason::TOO_LARGE,
            need: needs.output_bytes_max,
            have: offer.storage_bytes,
        });
    }
    let least = expected_price(&offer.prices, needs.runtime, 0, work.unit_count());
    if least > budget {
        return Err(Decline {
            reason: Reason::OVER_BUDGET,
            need: least.as_micros(),
            have: budget.as_micros(),
        });
    }
    Ok(devices)
}

/// How much of its runtime's meter a budget pays for one execution, up to what
/// is needed, and what that costs at most. What a provider quotes, and the least
/// that its client takes.
///
/// # Errors
/// If it pays for nothing at all.
pub fn affordable(
    prices: &[Price],
    needs: &Needs,
    budget: Amount,
) -> Result<(u64, Amount), Decline> {
    let meter = Meter::of(needs.runtime);
    let most = needs.quantity_max();
    let cap_of = |quantity| cost(&crate::offer::usage_of(needs.runtime, quantity), prices);
    if let Some(cap) = cap_of(most).filter(|cap| *cap <= budget) {
        return Ok((most, cap));
    }
    let fixed = cap_of(0).unwrap_or(Amount::MAX);
    let over = Decline {
        reason: Reason::OVER_BUDGET,
        need: fixed.as_micros(),
        have: budget.as_micros(),
    };
    let price = prices
        .iter()
        .find(|price| price.meter == meter)
        .ok_or(over)?;
    let left = u128::from(budget.saturating_sub(fixed).as_micros()) * u128::from(price.per);
    let quantity = left
        .checked_div(u128::from(price.amount.as_micros()))
        .unwrap_or(0);
    let quantity = u64::try_from(quantity).unwrap_or(u64::MAX).min(most);
    match cap_of(quantity).filter(|cap| *cap <= budget && quantity > 0) {
        Some(cap) => Ok((quantity, cap)),
        None => Err(over),
    }
}

/// The offer's devices that could run it, by position: the fastest first.
///
/// # Errors
/// Why none can.
pub fn devices_for(offer: &Offer, needs: &Needs) -> Result<Vec<u16>, Decline> {
    let able = able_devices(offer, needs)?.into_iter();
    Ok(able.map(|(n, _)| n).collect())
}

fn able_devices<'a>(offer: &'a Offer, needs: &Needs) -> Result<Vec<(u16, &'a Device)>, Decline> {
    let mut able: Vec<(u16, &Device)> = (0..).zip(offer.devices.iter()).collect();
    able.retain(|(_, device)| device.runtime(needs.runtime).is_some());
    if able.is_empty() {
        return Err(Reason::NO_RUNTIME.into());
    }
    if let Some(kind) = needs.device {
        let is_software = able
            .iter()
            .all(|(_, device)| device.kind == DeviceKind::CPU);
        able.retain(|(_, device)| device.kind == kind);
        if able.is_empty() && is_software {
            return Err(Reason::SOFTWARE_ONLY.into());
        }
        if able.is_empty() {
            return Err(Reason::NO_DEVICE.into());
        }
    }
    for feature in needs.features.iter() {
        able.retain(|(_, device)| {
            let runtime = device.runtime(needs.runtime);
            runtime.is_some_and(|runtime| runtime.features.contains(feature))
        });
        if able.is_empty() {
            return Err(Decline {
                reason: Reason::NO_FEATURE,
                need: feature.0.into(),
                have: 0,
            });
        }
    }
    let largest = able.iter().map(|(_, device)| device.memory_bytes).max();
    able.retain(|(_, device)| device.memory_bytes >= needs.memory_bytes);
    if able.is_empty() {
        return Err(Decline {
            reason: Reason::TOO_LITTLE_MEMORY,
            need: needs.memory_bytes,
            have: largest.unwrap_or(0),
        });
    }
    let kind = speed_of(needs.runtime);
    able.sort_by_key(|(n, device)| (Reverse(device.speed(kind)), *n));
    Ok(able)
}

/// An amount, so many times; saturating.
pub fn times(amount: Amount, count: u32) -> Amount {
    Amount::from_micros(amount.as_micros().saturating_mul(u64::from(count)))
}

/// Sorts a book's offers for a job. `opinion` tells how much of a provider's speeds
/// the client believes, in percent, or why it does not ask it.
pub fn rank<'a>(
    offers: impl Iterator<Item = &'a Verified<Offer>>,
    want: &Want<'_>,
    opinion: impl Fn(PeerId) -> Result<u8, Reason>,
) -> Plan {
    let mut fitting = Vec::new();
    let mut misfits = Misfits::default();
    for offer in offers {
        match judge(offer, want, &opinion) {
            Ok(able) => fitting.push((offer, able)),
            Err(decline) => misfits.add(offer, decline, || {
                let accept = offer.body().accept.as_ref();
                let accept = accept.filter(|_| decline.reason == Reason::NOT_ACCEPTED);
                accept?.why_not(&asker(want))
            }),
        }
    }
    let runtime = want.needs.runtime;
    let fastest = |(_, able): &(_, Able<'a>)| {
        let (_, device) = able.devices.first()?;
        Some(speed(device, runtime, able.believed))
    };
    let slowest = fitting.iter().filter_map(fastest).min().unwrap_or(1);
    let mut ranked = Vec::new();
    for (n, (offer, able)) in fitting.iter().enumerate() {
        let best = meeting(offer.body(), able, want, slowest).map(|found| found.score);
        match best.min() {
            Some(score) => ranked.push((score, offer.signer(), n)),
            None => misfits.add(offer, Reason::CONDITION.into(), || {
                missed(offer.body(), able, want, slowest)
            }),
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
    fn add(
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
    believed: u8,
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
    opinion: impl Fn(PeerId) -> Result<u8, Reason>,
) -> Result<Able<'a>, Decline> {
    let body = offer.body();
    if !want.regions.is_empty() && !want.regions.contains(&body.region) {
        return Err(Reason::OTHER_REGION.into());
    }
    let devices = fitting_devices(body, want.needs, want.work, want.budget)?;
    if let Some(accept) = &body.accept
        // What we can't know is the provider's to judge.
        && accept.evaluate(&asker(want)) == Answer::Known(Value::Bool(false))
    {
        return Err(Reason::NOT_ACCEPTED.into());
    }
    let believed = opinion(offer.signer())?;
    Ok(Able { devices, believed })
}

/// A device of an offer that meets the job's condition.
#[derive(Debug, Clone, Copy)]
struct Met<'a> {
    score: Score,
    place: u16,
    device: &'a Device,
    expected: Millis,
    price: Amount,
}

/// What a job's condition and rank read of an offer, on one device.
fn fields<'a>(
    offer: &'a Offer,
    (device, believed): (&'a Device, u8),
    want: &Want<'_>,
    slowest: u64,
) -> OfferFields<'a> {
    let (expected, price) = expectation(offer, (device, believed), want, slowest);
    OfferFields {
        offer,
        device,
        believed,
        expected,
        price,
    }
}

fn meeting<'a>(
    offer: &'a Offer,
    able: &'a Able<'a>,
    want: &'a Want<'_>,
    slowest: u64,
) -> impl Iterator<Item = Met<'a>> {
    able.devices.iter().filter_map(move |&(place, device)| {
        let fields = fields(offer, (device, able.believed), want, slowest);
        let meets = |condition: &Expression| {
            condition.evaluate(&fields) == Answer::Known(Value::Bool(true))
        };
        want.condition.is_none_or(meets).then(|| Met {
            score: score(want.policy, want.rank, &fields),
            place,
            device,
            expected: fields.expected,
            price: fields.price,
        })
    })
}

/// The part of the job's condition that the fastest device misses.
fn missed(offer: &Offer, able: &Able<'_>, want: &Want<'_>, slowest: u64) -> Option<String> {
    let (_, device) = able.devices.first()?;
    let fields = fields(offer, (device, able.believed), want, slowest);
    want.condition?.why_not(&fields)
}

/// The offer on the best of its devices that meet the condition.
fn candidate(
    offer: &Verified<Offer>,
    able: &Able<'_>,
    want: &Want<'_>,
    slowest: u64,
) -> Option<Candidate> {
    let mut met: Vec<_> = meeting(offer.body(), able, want, slowest).collect();
    met.sort_by_key(|found| (found.score, found.place));
    let best = met.first()?;
    let (runtime, units) = (want.needs.runtime, want.work.unit_count());
    let most = want.needs.quantity_max();
    let cap = expected_price(&offer.body().prices, runtime, most, units);
    Some(Candidate {
        peer: offer.signer(),
        offer: OfferId(offer.hash()),
        region: offer.body().region.clone(),
        device: best.device.model.clone(),
        slots: offer.body().slots,
        devices: List::truncated(met.iter().map(|found| found.place).collect()),
        believed: able.believed,
        expected: best.expected,
        price: best.price,
        cap: cap.min(want.budget),
    })
}

/// How long one execution is expected to take on a device, and what all cost.
fn expectation(
    offer: &Offer,
    (device, believed): (&Device, u8),
    want: &Want<'_>,
    slowest: u64,
) -> (Millis, Amount) {
    let (runtime, run_max) = (want.needs.runtime, want.needs.run_max.get());
    let speed = speed(device, runtime, believed);
    let operations = match runtime {
        Runtime::WASM => Some(want.needs.fuel_max),
        _ => want.flops,
    };
    let expected = match operations {
        Some(operations) => operations.saturating_mul(1000).div_ceil(speed).min(run_max),
        None => {
            let scaled = u128::from(run_max) * u128::from(slowest) / u128::from(speed);
            u64::try_from(scaled).unwrap_or(run_max).min(run_max)
        }
    };
    let expected = Millis::new(expected);
    let quantity = expected_quantity(want.needs, expected);
    let price = expected_price(&offer.prices, runtime, quantity, want.work.unit_count());
    (expected, price.min(want.budget))
}

/// What an offer is worth to a job: lower is better.
pub type Score = (Reverse<Option<Number>>, (u128, u128));

/// What an expected price and time are worth: the job's own rank first, if it has one,
/// then its policy. The plan and the choice among quotes go by the same.
pub fn score(policy: Policy, rank: Option<&Expression>, fields: &OfferFields<'_>) -> Score {
    let price = u128::from(fields.price.as_micros());
    let time = u128::from(fields.expected.get());
    let by_policy = match policy {
        Policy::Cheapest => (price, time),
        Policy::Fastest => (time, price),
        Policy::Balanced => ((price + 1).saturating_mul(time + 1), price),
    };
    // What has no rank comes last.
    let rank = rank.and_then(|rank| match rank.evaluate(fields) {
        Answer::Known(Value::Number(number)) => Some(number),
        Answer::Known(_) | Answer::Unknown(_) => None,
    });
    (Reverse(rank), by_policy)
}

/// What so many executions cost under a price list, if each takes so much of its
/// runtime's own meter.
pub fn expected_price(prices: &[Price], runtime: Runtime, quantity: u64, units: u32) -> Amount {
    let usage = crate::offer::usage_of(runtime, quantity);
    cost(&usage, prices).map_or(Amount::MAX, |once| times(once, units))
}

/// What one execution is expected to take of its runtime's own meter. Time
/// differs from device to device; fuel does not.
pub fn expected_quantity(needs: &Needs, expected: Millis) -> u64 {
    match Meter::of(needs.runtime) {
        Meter::WASM_FUEL => needs.fuel_max,
        _ => expected.get(),
    }
}

/// The speed that decides how long a runtime's executions take.
pub(crate) fn speed_of(runtime: Runtime) -> SpeedKind {
    match runtime {
        Runtime::WASM => SpeedKind::FUEL,
        _ => SpeedKind::FP32,
    }
}

/// What we expect of a device.
fn speed(device: &Device, runtime: Runtime, believed: u8) -> u64 {
    let claimed = u128::from(device.speed(speed_of(runtime)));
    let believed = claimed * u128::from(believed) / 100;
    u64::try_from(believed).unwrap_or(u64::MAX).max(1)
}
