//! A small market: the simulator's day with fewer providers, and what must be true of it.

use std::collections::BTreeMap;

use suanli_protocol::{rank::Policy, record::JobEnd, registry::Reason};
use suanli_testnet::{
    market::{Day, days},
    scenario::{Choice, Scenario},
};

const SEED: u64 = 3;

/// Three providers in each region, and a few hours that begin when people come to work.
fn small(load: f64) -> Scenario {
    let mut scenario = Scenario::market().expect("it is a scenario");
    scenario.seconds = 4 * 3600;
    for group in &mut scenario.groups {
        group.count = if group.role.sells() { 3 } else { 1 };
        // As a node has by default: by its turns providers are fair.
        group.queue = 16;
    }
    let market = scenario.market.as_mut().expect("it has a market");
    market.load = load;
    market.hours = market.hours[8..12].to_vec();
    scenario
}

fn cheapest() -> (&'static str, Choice) {
    ("cheapest", Choice::Policy(Policy::Cheapest))
}

/// All that was printed would be the same.
fn figures(days: &[Day]) -> String {
    let all = days.iter().map(|day| (&day.figures, day.outcome.trace));
    format!("{:?}", all.collect::<Vec<_>>())
}

#[test]
fn the_cheapest_costs_less_than_chance_and_less_than_at_home() {
    let choices = [
        cheapest(),
        ("random", Choice::Random),
        ("own region", Choice::OwnRegion),
    ];
    // A day on which a slot is sold twice, or a unit charged twice, is an error.
    let days = days(&small(0.3), SEED, &choices).unwrap();
    let [cheapest, random, home] = [&days[0], &days[1], &days[2]].map(|day| &day.figures);
    assert_eq!((cheapest.declined, cheapest.late), (0, 0), "{cheapest:?}");
    assert_eq!(cheapest.done, days[0].outcome.trades.len());
    assert!(cheapest.done > 20, "{cheapest:?}");
    assert!(cheapest.cost * 1.2 < random.cost, "{cheapest:?} {random:?}");
    assert!(
        cheapest.cost_per_work * 1.2 < home.cost_per_work,
        "{home:?}"
    );
    assert!(
        cheapest.used_west > 2.0 * cheapest.used_east,
        "{cheapest:?}"
    );
    assert_eq!(home.moved, 0.0);
}

#[test]
fn the_same_seed_has_the_same_table() {
    let table = |seed| figures(&days(&small(0.15), seed, &[cheapest()]).unwrap());
    assert_eq!(table(SEED), table(SEED));
    assert_ne!(table(SEED), table(SEED + 1));
}

#[test]
fn overload_ends_in_words_and_starves_no_client() {
    let days = days(&small(4.0), SEED, &[cheapest()]).unwrap();
    let (of, trades) = (&days[0].figures, &days[0].outcome.trades);
    let has_end = trades.iter().all(|trade| trade.ended.is_some());
    assert!(has_end && of.declined > 0, "{of:?}");
    let at_end =
        |trade: &suanli_testnet::sim::Trade| matches!(trade.ended, Some((_, JobEnd::Done)));
    let done = trades.iter().filter(|trade| at_end(trade)).count();
    assert_eq!(done, of.done);
    // Each client gets a part of what there is.
    let all = f64::from(u32::try_from(of.done).unwrap())
        / f64::from(u32::try_from(trades.len()).unwrap());
    assert!(of.worst_done > all / 4.0, "{of:?}");
}

/// A market of three hours, with one provider in each region.
fn tiny(load: f64) -> Scenario {
    let mut scenario = small(load);
    scenario.seconds = 3 * 3600;
    for group in &mut scenario.groups {
        group.count = 1;
    }
    let market = scenario.market.as_mut().expect("it has a market");
    market.hours = vec![1];
    // No client wants more than another, so that their shares can be compared.
    for group in &mut scenario.groups {
        group.weight = 1;
    }
    scenario
}

/// Work of so many times what there is: each job is done or ends in words, and no slot is
/// sold twice. What each client got, of how many.
fn overload(scenario: &Scenario) -> BTreeMap<usize, (u32, u32)> {
    let days = days(scenario, SEED, &[cheapest()]).expect("the scenario is valid");
    let (of, outcome) = (&days[0].figures, &days[0].outcome);
    let mut done = BTreeMap::<usize, (u32, u32)>::new();
    // Those that found a turn which came too late are the fewest.
    assert!(of.declined > of.late, "{of:?}");
    for trade in &outcome.trades {
        let (_, end) = trade.ended.expect("each job ends");
        let (of_client, all) = done.entry(trade.client).or_default();
        *all += 1;
        match end {
            JobEnd::Done => *of_client += 1,
            JobEnd::Expired | JobEnd::Declined(Reason::BUSY | Reason::TOO_MANY_HOLDS) => {}
            end => panic!("a job ended as {end:?}"),
        }
    }
    // A slot that was sold twice is an error of the day.
    let finished = done.values().map(|(of_client, _)| of_client).sum::<u32>();
    assert_eq!(
        u64::from(finished),
        u64::try_from(of.done).unwrap_or(u64::MAX)
    );
    assert!(finished < done.values().map(|(_, all)| all).sum(), "{of:?}");
    done
}

/// Each client has at least a quarter of what each would have if all had the same.
fn is_shared(done: &BTreeMap<usize, (u32, u32)>) -> bool {
    let clients = u32::try_from(done.len()).expect("there are few");
    let all = done.values().map(|(done, _)| done).sum::<u32>();
    (done.values()).all(|(done, _)| *done > 0 && done * clients * 4 >= all)
}

#[test]
fn ten_times_too_much_starves_no_client() {
    let done = overload(&small(10.0));
    assert!(is_shared(&done), "{done:?}");
}

#[test]
fn a_hundred_times_too_much_starves_no_client() {
    let done = overload(&tiny(100.0));
    assert!(is_shared(&done), "{done:?}");
}
