//! What a day's outcome comes to.

use std::collections::BTreeMap;

use suanli_protocol::{record::JobEnd, units::Mono};

use crate::{
    scenario::{Market, Scenario},
    sim::{Outcome, Place, Span, Trade},
};

/// One choice's day.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Jobs with all their results,
    pub done: usize,
    /// those that nobody took or that failed,
    pub declined: usize,
    /// and those whose time was over.
    pub late: usize,
    /// What clients paid, in the unit of account.
    pub cost: f64,
    /// What clients paid to send inputs to other regions.
    pub traffic: f64,
    /// What those who are done paid for 10¹⁸ operations: comparable where some are not.
    pub cost_per_work: f64,
    /// Seconds from submission to start: the middle,
    pub wait_p50: f64,
    /// of 95 in 100,
    pub wait_p95: f64,
    /// and the longest.
    pub wait_max: f64,
    /// The longest wait as a part of the time that this job had.
    pub wait_of_time: f64,
    /// Slots taken in the day, of all, by region.
    pub used: BTreeMap<String, f64>,
    /// The same in the east,
    pub used_east: f64,
    /// and in the west.
    pub used_west: f64,
    /// Jobs of eastern clients that ran in the west.
    pub moved: f64,
    /// Kilograms of carbon dioxide.
    pub carbon_kg: f64,
    /// Jobs that were done, of the client with the least,
    pub worst_done: f64,
    /// and what 95 in 100 waited for at the client that waited longest, in seconds.
    pub worst_wait_p95: f64,
}

/// Reads a day.
pub(super) fn figures(scenario: &Scenario, market: &Market, outcome: &Outcome) -> Figures {
    let is_east = |region: &str| market.east.iter().any(|east| east == region);
    let places = &outcome.places;
    let mut of = Figures::default();
    let mut operations = 0.0;
    let mut spent = 0.0;
    for trade in &outcome.trades {
        of.cost += float(trade.paid.as_micros()) / 1e6;
        of.traffic += traffic(trade, places, market);
        match trade.ended {
            Some((_, JobEnd::Done)) => {
                of.done += 1;
                operations += float(trade.operations);
                spent += float(trade.paid.as_micros()) / 1e6;
            }
            Some((_, JobEnd::Expired)) | None => of.late += 1,
            Some((_, JobEnd::Declined(_) | JobEnd::Failed(_) | JobEnd::Cancelled)) => {
                of.declined += 1;
            }
        }
    }
    of.cost_per_work = spent / (operations / 1e18).max(f64::MIN_POSITIVE);
    waiting(&mut of, outcome);
    use_of_slots(&mut of, scenario, &is_east, outcome);
    let from_east = |trade: &&Trade| is_east(&places[trade.client].region);
    let eastern: Vec<_> = outcome.trades.iter().filter(from_east).collect();
    let ran_west = |trade: &&&Trade| {
        let provider = trade.provider.and_then(|ix| places.get(ix));
        provider.is_some_and(|place| !is_east(&place.region))
    };
    of.moved = share(eastern.iter().filter(ran_west).count(), eastern.len());
    of.carbon_kg = outcome.ran.iter().map(|span| carbon_kg(span, places)).sum();
    of
}

/// What it cost to send a job's inputs to where it ran.
fn traffic(trade: &Trade, places: &[Place], market: &Market) -> f64 {
    let region = |ix: usize| places.get(ix).map(|place| place.region.as_str());
    match trade.provider.and_then(region) {
        Some(there) if region(trade.client) != Some(there) => {
            float(trade.input_bytes) / 1e9 * float(market.traffic_price) / 1e6
        }
        Some(_) | None => 0.0,
    }
}

fn wait(trade: &Trade) -> Option<f64> {
    Some(seconds(trade.submitted, trade.started?))
}

fn waiting(of: &mut Figures, outcome: &Outcome) {
    let mut waits: Vec<f64> = outcome.trades.iter().filter_map(wait).collect();
    waits.sort_by(f64::total_cmp);
    (of.wait_p50, of.wait_p95) = (at(&waits, 50), at(&waits, 95));
    of.wait_max = at(&waits, 100);
    let part = |trade: &Trade| Some(wait(trade)? / seconds(trade.submitted, trade.due));
    of.wait_of_time = outcome.trades.iter().filter_map(part).fold(0.0, f64::max);
    let mut clients = BTreeMap::<usize, Vec<&Trade>>::new();
    for trade in &outcome.trades {
        clients.entry(trade.client).or_default().push(trade);
    }
    of.worst_done = 1.0;
    for trades in clients.values() {
        let is_done = |trade: &&&Trade| matches!(trade.ended, Some((_, JobEnd::Done)));
        let done = trades.iter().filter(is_done).count();
        of.worst_done = of.worst_done.min(share(done, trades.len()));
        let mut waits: Vec<f64> = trades.iter().filter_map(|trade| wait(trade)).collect();
        waits.sort_by(f64::total_cmp);
        of.worst_wait_p95 = of.worst_wait_p95.max(at(&waits, 95));
    }
}

/// Slots taken while the day lasts, of all there are.
fn use_of_slots(
    of: &mut Figures,
    scenario: &Scenario,
    is_east: &impl Fn(&str) -> bool,
    outcome: &Outcome,
) {
    let places = &outcome.places;
    let mut regions = BTreeMap::<&str, (f64, f64)>::new();
    for place in places.iter().filter(|place| place.slots > 0) {
        let of_region = regions.entry(&place.region).or_default();
        of_region.1 += f64::from(place.slots) * float(scenario.seconds);
    }
    let night = Mono::from_micros(scenario.seconds * 1_000_000);
    for span in &outcome.taken {
        let (from, until) = (span.from.min(night), span.until.min(night));
        if let Some(of_region) = regions.get_mut(places[span.provider].region.as_str()) {
            of_region.0 += seconds(from, until);
        }
    }
    let part = |east: bool| {
        let of_side = regions.iter().filter(|(region, _)| is_east(region) == east);
        let (taken, all) = of_side.fold((0.0, 0.0), |sum, (_, used)| {
            (sum.0 + used.0, sum.1 + used.1)
        });
        taken / f64::max(all, 1.0)
    };
    (of.used_east, of.used_west) = (part(true), part(false));
    let used = regions
        .iter()
        .map(|(region, (taken, all))| ((*region).to_owned(), taken / all));
    of.used = used.collect();
}

fn carbon_kg(span: &Span, places: &[Place]) -> f64 {
    let energy = places.get(span.provider).and_then(|place| place.energy);
    energy.map_or(0.0, |energy| {
        let kwh = f64::from(energy.watts) * seconds(span.from, span.until) / 3.6e6;
        kwh * f64::from(energy.carbon_g_per_kwh) / 1000.0
    })
}

pub(super) fn seconds(from: Mono, until: Mono) -> f64 {
    until.since(from).as_secs_f64()
}

/// So many of a hundred are no larger; 0 if there are none.
pub(super) fn at(sorted: &[f64], of_hundred: usize) -> f64 {
    let n = (sorted.len() * of_hundred).div_ceil(100).saturating_sub(1);
    sorted.get(n).copied().unwrap_or(0.0)
}

pub(super) fn share(part: usize, whole: usize) -> f64 {
    float(part) / float(whole.max(1))
}

/// Counts and sums here are far below what a double can't hold, or are printed with fewer
/// digits than it has.
pub(super) fn float(count: impl TryInto<u64>) -> f64 {
    let count: u64 = count.try_into().unwrap_or(u64::MAX);
    let (high, low) = (count >> 32, count & u64::from(u32::MAX));
    let of = |half: u64| f64::from(u32::try_from(half).unwrap_or(u32::MAX));
    of(high) * 4_294_967_296.0 + of(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let sorted: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(
            [at(&sorted, 50), at(&sorted, 95), at(&sorted, 100)],
            [10.0, 19.0, 20.0]
        );
        assert_eq!(at(&[], 95), 0.0);
    }

    #[test]
    fn large_counts_keep_their_size() {
        assert_eq!(float(3_000_000_000_000u64), 3e12);
        assert_eq!(float(7usize), 7.0);
    }
}
