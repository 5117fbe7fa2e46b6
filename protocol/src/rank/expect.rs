//! What a client expects of an offer: when the result would be there, and for how much.
//!
//! ```text
//! submitted ─┬─ wait for a slot ─┬─▶ run ──▶ finished
//!            └─ inputs travel ───┘
//! ```
//!
//! Speeds are the measured ones, as far as they are believed; the way to a provider is
//! as it was measured, else guessed from the regions; the wait is what a quote says, else
//! guessed from the free slots that the offer had. All are integers, so that two nodes
//! that know the same expect the same.

use std::cmp::Reverse;

use serde::Serialize;

use super::{OfferFields, Policy, View, Want};
use crate::{
    deal::Needs,
    expression::{Answer, Expression, Number, Value},
    offer::{Energy, Figures, ModelOffer, TOKENS_IN_PER_OUT},
    registry::{Runtime, SpeedKind},
    units::{Amount, Meter, Millis, Price, cost},
};

/// The way to a provider, known or guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    rtt_us: u32,
    bytes_per_second: u64,
}

impl Link {
    const SAME_REGION: Self = Self {
        rtt_us: 5_000,
        bytes_per_second: 50_000_000,
    };
    const SAME_COUNTRY: Self = Self {
        rtt_us: 40_000,
        bytes_per_second: 12_500_000,
    };
    const ELSEWHERE: Self = Self {
        rtt_us: 200_000,
        bytes_per_second: 5_000_000,
    };

    /// What is taken for granted of a way that was not measured: ISO 3166-2 codes that
    /// share their country are nearer than those that don't.
    pub(super) fn assumed(home: &str, region: &str) -> Self {
        let country = |code: &str| code.split_once('-').map(|(country, _)| country.len());
        if home == region {
            return Self::SAME_REGION;
        }
        let shared = country(home).filter(|length| home.get(..*length) == region.get(..*length));
        match shared {
            Some(length) if country(region) == Some(length) => Self::SAME_COUNTRY,
            _ => Self::ELSEWHERE,
        }
    }

    /// How long so many bytes take to get there.
    fn time_for(self, bytes: u64) -> Millis {
        let trip = u64::from(self.rtt_us).div_ceil(1000);
        if bytes == 0 {
            return Millis::new(trip);
        }
        let millis = u128::from(bytes) * 1000 / u128::from(self.bytes_per_second.max(1));
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        Millis::new(millis.saturating_add(trip))
    }
}

/// What of the way to a provider was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Way {
    /// There and back, in microseconds.
    pub rtt_us: Option<u32>,
    /// Bytes in a second, from the client.
    pub bytes_per_second: Option<u64>,
}

impl Way {
    /// With something newer: one odd measurement does not count for all.
    #[must_use]
    pub fn and(self, newer: Self) -> Self {
        let blend = |old: Option<u64>, new: Option<u64>| match (old, new) {
            (Some(old), Some(new)) => Some(old - old / 4 + new / 4),
            (old, new) => new.or(old),
        };
        let rtt = blend(self.rtt_us.map(u64::from), newer.rtt_us.map(u64::from));
        Self {
            rtt_us: rtt.map(|us| u32::try_from(us).unwrap_or(u32::MAX)),
            bytes_per_second: blend(self.bytes_per_second, newer.bytes_per_second),
        }
    }
}

/// What is expected of an offer, on one of its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// Until it begins,
    pub wait: Millis,
    /// until what it reads is there,
    pub transfer: Millis,
    /// and how long one execution takes.
    pub run: Millis,
    /// Until all executions are done.
    pub finish: Millis,
    /// What all cost,
    pub price: Amount,
    /// and what it costs the client beside to send what they read.
    pub traffic: Amount,
    /// Milligrams of carbon dioxide of all, if the operator says what the power is like.
    pub carbon_mg: Option<u64>,
    /// There and back, in microseconds: as measured, or as guessed.
    pub rtt_us: u32,
}

impl Expected {
    /// Before anything was reckoned.
    pub(super) const NONE: Self = Self {
        wait: Millis::new(0),
        transfer: Millis::new(0),
        run: Millis::new(0),
        finish: Millis::new(0),
        price: Amount::ZERO,
        traffic: Amount::ZERO,
        carbon_mg: None,
        rtt_us: 0,
    };

    /// What the client spends in all.
    pub fn cost(&self) -> Amount {
        self.price.saturating_add(self.traffic)
    }

    /// With what a provider says: when it can begin, and how many of the inputs' bytes
    /// it lacks.
    pub(crate) fn told(&mut self, wait: Millis, (lacking, all): (u64, u64)) {
        let before = self.wait.max(self.transfer).get();
        let busy = self.finish.get().saturating_sub(before);
        let part = |whole: u64| {
            let part = u128::from(whole) * u128::from(lacking);
            let part = part.checked_div(all.into()).unwrap_or(0);
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        self.wait = wait;
        self.transfer = Millis::new(part(self.transfer.get()));
        self.traffic = Amount::from_micros(part(self.traffic.as_micros()));
        let before = self.wait.max(self.transfer).get();
        self.finish = Millis::new(before.saturating_add(busy));
    }
}

/// What of an offer and its device an expectation is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stated {
    /// The speed that decides, as claimed.
    pub(super) speed: u64,
    /// What an execution costs by itself,
    pub(super) fixed: Option<Price>,
    /// and by its runtime's own meter.
    pub(super) metered: Option<Price>,
    pub(super) slots: u32,
    pub(super) slots_free: u32,
    pub(super) bandwidth_in: u64,
    pub(super) energy: Option<Energy>,
    /// What is taken for granted of the way there.
    pub(super) link: Link,
    /// Whether it is where the client is, so that sending costs nothing.
    pub(super) near: bool,
}

impl Stated {
    fn of(figures: &Figures<'_>, want: &Want<'_>) -> Self {
        let runtime = want.needs.runtime;
        Self {
            speed: figures.speeds.get(speed_of(runtime)),
            fixed: figures.fixed,
            metered: figures.price(Meter::of(runtime)),
            slots: figures.slots,
            slots_free: figures.slots_free,
            bandwidth_in: figures.bandwidth_in,
            energy: figures.energy,
            link: Link::assumed(want.home, figures.region),
            near: want.home == figures.region,
        }
    }

    /// What so many executions cost, if each takes so much of its runtime's own meter.
    fn price(&self, runtime: Runtime, quantity: u64, units: u32) -> Amount {
        // What has no price is free.
        let price = |said: Option<Price>, meter| {
            said.unwrap_or(Price {
                meter,
                amount: Amount::ZERO,
                per: 1,
            })
        };
        let prices = [
            price(self.fixed, Meter::JOB),
            price(self.metered, Meter::of(runtime)),
        ];
        expected_price(&prices, runtime, quantity, units)
    }

    /// The way to the provider: as measured, else as guessed, and not wider than it says.
    fn way(&self, view: View) -> Link {
        let mut link = self.link;
        if self.bandwidth_in > 0 {
            link.bytes_per_second = link.bytes_per_second.min(self.bandwidth_in);
        }
        let measured = view.link;
        Link {
            rtt_us: measured.rtt_us.unwrap_or(link.rtt_us),
            bytes_per_second: measured.bytes_per_second.unwrap_or(link.bytes_per_second),
        }
    }
}

/// What a client expects of an offer on one of its devices; see [`expected_of`].
pub(super) fn expectation(
    figures: &Figures<'_>,
    view: View,
    want: &Want<'_>,
    slowest: u64,
) -> Expected {
    expected_of(&Stated::of(figures, want), view, want, slowest)
}

/// How much work one execution is, where the client says so.
pub(super) const fn operations(want: &Want<'_>) -> Option<u64> {
    match want.needs.runtime {
        Runtime::WASM => Some(want.needs.fuel_max),
        _ => want.flops,
    }
}

/// What a client expects. `slowest` is what the slowest device that fits is believed to
/// do: it is taken to need the whole run limit, where nobody says how much work it is.
pub(super) fn expected_of(said: &Stated, view: View, want: &Want<'_>, slowest: u64) -> Expected {
    let (runtime, run_max) = (want.needs.runtime, want.needs.run_max.get());
    let speed = believed_speed(said.speed, view.believed);
    let run = match operations(want) {
        Some(operations) => {
            let millis = (u128::from(operations) * 1000).div_ceil(u128::from(speed));
            u64::try_from(millis).unwrap_or(run_max).min(run_max)
        }
        None => {
            let scaled = u128::from(run_max) * u128::from(slowest) / u128::from(speed);
            u64::try_from(scaled).unwrap_or(run_max).min(run_max)
        }
    };
    let units = want.work.unit_count().max(1);
    let quantity = expected_quantity(want.needs, Millis::new(run));
    let price = said.price(runtime, quantity, units);
    let price = match want.says_work() && said.speed > 0 {
        true => price,
        // It may end sooner, and does when the budget is used up.
        false => price.min(want.budget).max(said.price(runtime, 0, units)),
    };
    let link = said.way(view);
    let wait = match said.slots_free {
        // Somebody else's work, like ours, about to be done on one of them.
        0 => run / u64::from(said.slots.max(1)),
        _ => 0,
    };
    // All at once, as many as there are slots.
    let turns = u64::from(units.div_ceil(said.slots.max(1)));
    let busy = run.saturating_mul(turns);
    let transfer = link.time_for(want.inputs_bytes.saturating_sub(view.holds));
    Expected {
        wait: Millis::new(wait),
        transfer,
        run: Millis::new(run),
        finish: Millis::new(wait.max(transfer.get()).saturating_add(busy)),
        price,
        traffic: match said.near {
            true => Amount::ZERO,
            false => want.traffic,
        },
        carbon_mg: said.energy.map(|energy| carbon(energy, run, units)),
        rtt_us: link.rtt_us,
    }
}

/// Tokens that a typical request to a model asks for, by which models are compared.
const TYPICAL_TOKENS_OUT: u64 = 250;

/// What a client expects of a model that an offer has: how long a typical request takes,
/// and what it costs.
pub(super) fn expected_of_model(
    (figures, model): (&Figures<'_>, &ModelOffer),
    view: View,
    want: &Want<'_>,
) -> Expected {
    let link = Stated::of(figures, want).way(view);
    let (written, read) = (TYPICAL_TOKENS_OUT, TYPICAL_TOKENS_OUT * TOKENS_IN_PER_OUT);
    let millis = |tokens: u64, per_second: u32| match per_second {
        // Nobody knows: slower than most.
        0 => tokens.saturating_mul(200),
        _ => (tokens * 1000).div_ceil(per_second.into()),
    };
    let prefill = millis(read, model.prefill_per_second);
    let run = prefill.saturating_add(millis(written, model.decode_per_second));
    let wait = match model.places_free {
        0 => run / u64::from(model.places.max(1)),
        _ => 0,
    };
    let transfer = link.time_for(0).get();
    let price = expected_price(&model.prices, want.needs.runtime, written, 1);
    Expected {
        wait: Millis::new(wait),
        transfer: Millis::new(transfer),
        run: Millis::new(run),
        finish: Millis::new(wait.max(transfer).saturating_add(run)),
        price: price.min(want.budget),
        traffic: Amount::ZERO,
        carbon_mg: figures.energy.map(|energy| carbon(energy, run, 1)),
        rtt_us: link.rtt_us,
    }
}

/// Milligrams of carbon dioxide of so many executions.
fn carbon(energy: Energy, run_ms: u64, units: u32) -> u64 {
    // W · ms · g/kWh = mg / 3,600,000.
    let product = u128::from(energy.watts) * u128::from(energy.carbon_g_per_kwh);
    let product = product.saturating_mul(u128::from(run_ms) * u128::from(units));
    u64::try_from(product / 3_600_000).unwrap_or(u64::MAX)
}

/// What an offer is worth to a job: lower is better.
pub type Score = (bool, Reverse<Option<Number>>, (u128, u128));

/// What an expectation is worth: in time before all else, where the job has a deadline;
/// then by the job's own rank, if it has one; then by its policy. The plan and the choice
/// among quotes go by the same.
pub fn score(
    policy: Policy,
    rank: Option<&Expression>,
    within: Option<Millis>,
    fields: &OfferFields<'_>,
) -> Score {
    // What has no rank comes last.
    let rank = rank.and_then(|rank| match rank.evaluate(fields) {
        Answer::Known(Value::Number(number)) => Some(number),
        Answer::Known(_) | Answer::Unknown(_) => None,
    });
    by_policy(policy, rank, within, &fields.expected)
}

/// The same, where the job's own rank is known.
pub(super) fn by_policy(
    policy: Policy,
    rank: Option<Number>,
    within: Option<Millis>,
    expected: &Expected,
) -> Score {
    let price = u128::from(expected.cost().as_micros());
    let time = u128::from(expected.finish.get());
    let by_policy = match policy {
        Policy::Cheapest => (price, time),
        Policy::Fastest => (time, price),
        Policy::Balanced => ((price + 1).saturating_mul(time + 1), price),
        Policy::Nearest => (expected.rtt_us.into(), price),
        Policy::Green => (expected.carbon_mg.map_or(u128::MAX, u128::from), price),
    };
    let late = within.is_some_and(|within| expected.finish > within);
    (late, Reverse(rank), by_policy)
}

/// What so many executions cost under a price list, if each takes so much of its
/// runtime's own meter.
pub fn expected_price(prices: &[Price], runtime: Runtime, quantity: u64, units: u32) -> Amount {
    let usage = crate::offer::usage_of(runtime, quantity);
    cost(&usage, prices).map_or(Amount::MAX, |once| super::times(once, units))
}

/// What one execution is expected to take of its runtime's own meter. Time
/// differs from device to device; fuel does not.
pub fn expected_quantity(needs: &Needs, expected: Millis) -> u64 {
    match Meter::of(needs.runtime) {
        Meter::WASM_FUEL => needs.fuel_max,
        Meter::TOKEN_OUT => TYPICAL_TOKENS_OUT,
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

/// What we expect of a device that claims so much.
pub(super) fn believed_speed(claimed: u64, believed: u8) -> u64 {
    let believed = u128::from(claimed) * u128::from(believed) / 100;
    u64::try_from(believed).unwrap_or(u64::MAX).max(1)
}
