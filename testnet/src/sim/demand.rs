//! A day's demand: jobs of known size, from clients with a share each, at the hours at
//! which people work.
//!
//! ```text
//! seed ──▶ who, when, how many operations, how many bytes, how much time   the same for every choice
//! choice ─▶ policy, `rank` or `regions` of the order                      all that differs
//! ```
//!
//! The baselines are orders that any client could write. **Own region** names its region
//! in `regions`. **Random** ranks by a number that is made of the provider's account, in
//! another way for each job: which of thirteen pairs of digits, drawn by the seed, occur in
//! it. So the first that it asks is any of those that fit, the second any of the others.
//!
//! Jobs are drawn until their work is the load's part of what all devices could do in that
//! time, so that a lower load's jobs are the first of a higher one's.

use std::{collections::BTreeMap, time::Duration};

use suanli_protocol::{
    deal::{BlobRef, Work},
    expression::{Expression, Field, Number, Scope, Term, Type, Unit, Word},
    ids::{BlobId, Hash, JobId},
    offer::Name,
    rank::Policy,
    record::{JobOrder, Verify},
    registry::{Confidentiality, SpeedKind},
    units::{Amount, Millis},
    wire::List,
};

use super::{
    dice::Dice,
    node::{Ix, Node},
    work::{blob, inline, needs},
    world::Event,
};
use crate::scenario::{Choice, Market, Scenario};

/// Pairs of digits that a random rank looks for: as many as an expression has room for.
const PAIRS: u32 = 13;
/// Far more than any job costs.
const BUDGET: Amount = Amount::from_micros(1_000_000_000_000);

/// What all orders have in common.
struct Day<'a> {
    market: &'a Market,
    /// The slowest device of all, in operations a second.
    slowest: u64,
    /// Bytes per second on the longest way.
    narrowest: u64,
}

/// All jobs, with their times.
pub(crate) fn plan(
    scenario: &Scenario,
    market: &Market,
    nodes: &[Node],
    seed: u64,
) -> Vec<(Duration, Event)> {
    let (mut dice, mut chance) = (Dice::new(seed, "demand"), Dice::new(seed, "random rank"));
    let firms = firms(scenario);
    let times = Times::new(scenario, market, &firms, &mut dice);
    let (supply, slowest) = supply(nodes);
    let day = Day {
        market,
        slowest,
        narrowest: (scenario.links.far_bytes_per_second).unwrap_or(scenario.links.bytes_per_second),
    };
    let supply = u128::from(supply) * u128::from(scenario.seconds);
    let mut wanted = supply * u128::from(thousandths(market.load)) / 1000;
    let mut plan = Vec::new();
    let mut number = 0;
    while wanted > 0 && !firms.is_empty() {
        let Some((firm, at)) = times.draw(number, &firms, &mut dice) else {
            break;
        };
        let node = firm.client;
        let mut order = day.order(number, &mut dice);
        order.principal = Name::lossy(&format!("firm {}", firm.number));
        prefer(&mut order, market.choice, &nodes[node].region, &mut chance);
        wanted = wanted.saturating_sub(u128::from(order.flops));
        number += 1;
        let order = Box::new(order);
        plan.push((at, Event::Submit { node, order }));
    }
    plan
}

/// Whose jobs are.
#[derive(Debug, Clone, Copy)]
struct Firm {
    /// Among all.
    number: usize,
    /// Whose node hands its jobs in.
    client: Ix,
}

/// Each firm as often as its weight says.
fn firms(scenario: &Scenario) -> Vec<Firm> {
    let groups = scenario.groups.iter();
    let nodes = groups.flat_map(|group| std::iter::repeat_n(group, group.count));
    let buyers = nodes.enumerate().filter(|(_, group)| group.role.buys());
    let firms = buyers.flat_map(|of| std::iter::repeat_n(of, of.1.firms));
    let weighted = firms.enumerate().flat_map(|(number, (client, group))| {
        let times = usize::try_from(group.weight).unwrap_or(0);
        std::iter::repeat_n(Firm { number, client }, times)
    });
    weighted.collect()
}

/// When firms have work.
struct Times {
    /// Each hour as often as its share says.
    hours: Vec<u64>,
    /// How long one lasts.
    hour_ms: u64,
    /// The hours of each firm, where each has its own.
    own: BTreeMap<usize, Vec<u64>>,
}

impl Times {
    fn new(scenario: &Scenario, market: &Market, firms: &[Firm], dice: &mut Dice) -> Self {
        let shares = (0u64..).zip(&market.hours);
        let of = |(hour, share): (u64, &u32)| {
            std::iter::repeat_n(hour, usize::try_from(*share).unwrap_or(0))
        };
        let count = u64::try_from(market.hours.len()).unwrap_or(1).max(1);
        let mut own = BTreeMap::<usize, Vec<u64>>::new();
        for firm in firms.iter().filter(|_| market.bursts > 0) {
            let mut left: Vec<u64> = (0..count).collect();
            let drawn = (0..market.bursts.min(left.len()))
                .map(|_| left.swap_remove(dice.index(left.len())))
                .collect();
            own.insert(firm.number, drawn);
        }
        Self {
            hours: shares.flat_map(of).collect(),
            hour_ms: scenario.seconds * 1000 / count,
            own,
        }
    }

    /// Whose job this is, and when it is handed in.
    fn draw(&self, number: u32, firms: &[Firm], dice: &mut Dice) -> Option<(Firm, Duration)> {
        let turn = usize::try_from(number).unwrap_or(0) % firms.len().max(1);
        let firm = match self.own.is_empty() {
            true => *dice.pick(firms)?,
            false => *firms.get(turn)?,
        };
        let hours = self.own.get(&firm.number).unwrap_or(&self.hours);
        let hour = *dice.pick(hours)?;
        let millis = hour * self.hour_ms + dice.below(self.hour_ms);
        Some((firm, Duration::from_millis(millis)))
    }
}

/// Operations that all devices do in a second, and the slowest alone.
fn supply(nodes: &[Node]) -> (u64, u64) {
    let sellers = nodes
        .iter()
        .filter_map(|node| node.config.provider.as_ref());
    let devices = sellers.flat_map(|sells| sells.offer.devices.iter());
    let speeds = devices.map(|device| (device.speed(SpeedKind::FP32), u64::from(device.slots)));
    speeds.fold((0, u64::MAX), |(all, slowest), (speed, slots)| {
        (all + speed * slots, slowest.min(speed.max(1)))
    })
}

impl Day<'_> {
    fn order(&self, number: u32, dice: &mut Dice) -> JobOrder {
        let mut job = [0; 16];
        job.copy_from_slice(&dice.bytes(16));
        let operations = doubling(self.market.operations, dice);
        let bytes = doubling(self.market.input_bytes, dice);
        let slack = dice.within(self.market.slack_ms);
        let run_ms = ceil_div(u128::from(operations) * 1000, self.slowest);
        let travel_ms = ceil_div(u128::from(bytes) * 1000, self.narrowest);
        let program = format!("program {number}");
        let input = BlobRef {
            blob: BlobId(Hash::of(format!("input {number}").as_bytes())),
            bytes,
        };
        JobOrder {
            job: JobId::from_bytes(job),
            name: Name::lossy(&format!("job {number}")),
            principal: Name::lossy("someone"),
            work: Work::Job,
            spec: blob(program.as_bytes()),
            inputs: List::truncated(if bytes > 0 { vec![input] } else { vec![] }),
            // A tenth more than on the slowest device.
            needs: needs(run_ms + run_ms / 10 + 1000),
            budget: BUDGET,
            regions: List::default(),
            providers: List::default(),
            condition: None,
            rank: None,
            policy: Policy::Cheapest,
            flops: operations,
            confidentiality: Confidentiality::NONE,
            retention: Millis::new(60_000),
            total: Millis::new(run_ms + travel_ms + slack),
            take: false,
            parallel: 1,
            max_failures: 0,
            verify: Verify::NONE,
            counter_percent: 0,
            checkpoint_every: None,
            staying: List::default(),
            inline: inline(program.as_bytes()),
        }
    }
}

/// What a client does to have it its way.
fn prefer(order: &mut JobOrder, choice: Choice, home: &str, chance: &mut Dice) {
    match choice {
        Choice::Policy(policy) => order.policy = policy,
        Choice::OwnRegion => order.regions = List::truncated(vec![Name::lossy(home)]),
        Choice::Random => order.rank = random_rank(chance),
    }
}

/// A number for each provider that has nothing to do with what it offers.
fn random_rank(chance: &mut Dice) -> Option<Expression> {
    let mut terms = Vec::new();
    for n in 0..PAIRS {
        let pair = format!("{:02x}", chance.below(256));
        terms.extend([
            Term::Field(Field::PROVIDER),
            Term::Text(Word::lossy(&pair)),
            Term::Contains,
            Term::Number(Number::whole(1 << n), Unit::Plain),
            Term::Number(Number::whole(0), Unit::Plain),
            Term::If,
        ]);
        if n > 0 {
            terms.push(Term::Add);
        }
    }
    Expression::new(terms, Scope::Offer, Type::Number(Unit::Plain)).ok()
}

/// Between the two, and as likely in each doubling of the least.
fn doubling([least, most]: [u64; 2], dice: &mut Dice) -> u64 {
    if least == 0 {
        return dice.within([least, most]);
    }
    let doublings = (most / least).max(1).ilog2();
    if doublings == 0 {
        return dice.within([least, most]);
    }
    let from = least << dice.below(u64::from(doublings));
    dice.within([from, (from * 2 - 1).min(most)])
}

/// So that no float multiplies a supply.
fn thousandths(load: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a scenario's load is between 0 and 1,000"
    )]
    let thousandths = (load * 1000.0).round() as u32;
    thousandths
}

fn ceil_div(whole: u128, by: u64) -> u64 {
    u64::try_from(whole.div_ceil(u128::from(by.max(1)))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_rank_is_an_expression() {
        assert!(random_rank(&mut Dice::new(1, "test")).is_some());
    }

    #[test]
    fn each_doubling_is_as_likely() {
        let mut dice = Dice::new(1, "test");
        let drawn: Vec<u64> = (0..4000).map(|_| doubling([10, 160], &mut dice)).collect();
        assert!(drawn.iter().all(|size| (10..160).contains(size)));
        let small = drawn.iter().filter(|size| **size < 20).count();
        assert!((900..1100).contains(&small), "{small}");
    }
}
