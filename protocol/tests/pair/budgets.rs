//! What principals may spend.

use std::time::Duration;

use suanli_protocol::{
    message::Decline,
    peer::{Budget, BudgetView, Command, Event, JobEvent, Peer},
    record::{JobEnd, JobOrder, Record},
    registry::Reason,
    units::{Amount, Now},
};

use crate::world::{Run, World, micros, name, network, order};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn of(principal: &str, number: u8, most: u64) -> JobOrder {
    let mut order = order(number);
    order.principal = name(principal);
    order.budget = micros(most);
    order
}

/// A client whose principals have budgets, and a provider.
fn world(budgets: &[(&str, u64, u16)]) -> World {
    let mut world = World::new(1);
    let budgets = budgets.iter().map(|(principal, amount, days)| {
        let amount = micros(*amount);
        (
            name(principal),
            Budget {
                amount,
                days: *days,
            },
        )
    });
    world.nodes[0].config.budgets = budgets.collect();
    world.start(&[])
}

fn budget(world: &World, principal: &str) -> BudgetView {
    world.peer(0).budget(&name(principal))
}

/// Why a job is not taken.
fn refused(world: &mut World, order: JobOrder) -> Option<Decline> {
    let before = world.events.len();
    world.submit(order);
    let events = world.events[before..].iter();
    let mut refused = events.filter_map(|(_, event)| match event {
        Event::Job {
            event: JobEvent::Refused(decline),
            ..
        } => Some(*decline),
        _ => None,
    });
    refused.next()
}

#[test]
fn a_job_that_may_cost_more_than_is_left_is_refused() {
    let mut world = world(&[("team", 100_000, 30)]);
    let decline = refused(&mut world, of("team", 1, 100_001)).unwrap();
    let figures = (decline.reason, decline.need, decline.have);
    assert_eq!(figures, (Reason::PRINCIPAL_BUDGET, 100_001, 100_000));
    assert!(
        world
            .records(0)
            .iter()
            .all(|record| !matches!(record, Record::Submitted { .. }))
    );
    // Others may spend anything.
    assert_eq!(refused(&mut world, of("others", 2, 10_000_000)), None);
    assert_eq!(refused(&mut world, of("team", 3, 100_000)), None);
    world.run_until_settled();
    assert_eq!(world.job(3).end, Some(JobEnd::Done));
    let view = budget(&world, "team");
    assert_eq!(view.spent, world.job(3).spent);
    assert!(view.spent > Amount::ZERO);
    assert_eq!(view.reserved, Amount::ZERO);
    let left = view.left().unwrap();
    assert_eq!(left, micros(100_000).saturating_sub(view.spent));
    let decline = refused(&mut world, of("team", 4, 100_000)).unwrap();
    assert_eq!(decline.have, left.as_micros());
    assert_eq!(refused(&mut world, of("team", 5, left.as_micros())), None);
}

/// Two jobs at once can't both count on the same money.
#[test]
fn what_open_jobs_may_cost_is_taken() {
    let mut world = world(&[("team", 100_000, 30)]);
    world.nodes[1].run = Run::Hangs;
    assert_eq!(refused(&mut world, of("team", 1, 60_000)), None);
    world.pass(Duration::from_millis(200));
    assert_eq!(budget(&world, "team").reserved, micros(60_000));
    let decline = refused(&mut world, of("team", 2, 60_000)).unwrap();
    assert_eq!(decline.have, 40_000);
    world.command(0, Command::Cancel(order(1).job));
    world.run_until_settled();
    // What it had used by then is paid.
    let left = budget(&world, "team").left().unwrap();
    assert!(left > micros(40_000));
    assert_eq!(refused(&mut world, of("team", 3, left.as_micros())), None);
}

#[test]
fn whoever_is_not_named_has_the_budget_of_anybody_alone() {
    let mut world = world(&[("*", 50_000, 1), ("team", 90_000, 1)]);
    assert!(refused(&mut world, of("ada", 1, 50_001)).is_some());
    assert_eq!(refused(&mut world, of("ada", 2, 50_000)), None);
    assert_eq!(refused(&mut world, of("bob", 3, 50_000)), None);
    assert_eq!(refused(&mut world, of("team", 4, 90_000)), None);
    world.run_until_settled();
    let named: Vec<_> = world.peer(0).budgets();
    let named: Vec<_> = named.iter().map(|view| &*view.principal).collect();
    assert_eq!(named, ["ada", "bob", "team"]);
}

/// Days pass; what was spent before them counts no more, also not after a start from
/// all records or from a checkpoint.
#[test]
fn a_budget_is_for_days_and_outlives_starts() {
    let mut world = world(&[("team", 100_000, 2)]);
    world.submit(of("team", 1, 100_000));
    world.run_until_settled();
    let spent = budget(&world, "team").spent;
    assert!(spent > Amount::ZERO);
    let condensed = |world: &World, at: Now| {
        let node = &world.nodes[0];
        let records = world.records(0).into_iter();
        let kept = Peer::condense(at.wall, &node.config, &node.signer, records);
        let kept = kept.into_iter().map(|record| {
            let bytes = record.encode();
            (
                suanli_protocol::record::Lsn(0),
                Record::decode(&bytes, network()).unwrap(),
            )
        });
        let (config, signer) = (node.config.clone(), node.signer.clone());
        Peer::restore(at, config, signer, [7; 32], kept).budget(&name("team"))
    };
    let mut now = world.now(0);
    assert_eq!(condensed(&world, now).spent, spent);
    world.crash(0);
    world.boot(0);
    assert_eq!(budget(&world, "team").spent, spent);
    now.wall = now.wall.after(DAY);
    assert_eq!(condensed(&world, now).spent, spent, "yesterday counts");
    now.wall = now.wall.after(DAY);
    assert_eq!(condensed(&world, now).spent, Amount::ZERO);
}

fn grant(world: &mut World, budgets: &[(&str, u64)]) {
    let budgets = budgets.iter().map(|(principal, amount)| {
        let amount = micros(*amount);
        (name(principal), Budget { amount, days: 30 })
    });
    world.command(0, Command::Grant(budgets.collect()));
}

/// A key's budget comes and goes while the node runs, and never loosens the configuration's.
#[test]
fn what_the_node_grants_holds_beside_the_configuration() {
    let mut world = world(&[("team", 100_000, 30)]);
    assert_eq!(budget(&world, "ada").left(), None);
    grant(&mut world, &[("ada", 50_000), ("team", 900_000)]);
    let decline = refused(&mut world, of("ada", 1, 50_001)).unwrap();
    let figures = (decline.reason, decline.have);
    assert_eq!(figures, (Reason::PRINCIPAL_BUDGET, 50_000));
    assert!(refused(&mut world, of("team", 2, 100_001)).is_some());
    let named: Vec<_> = world.peer(0).budgets();
    let named: Vec<_> = named.iter().map(|view| &*view.principal).collect();
    assert_eq!(named, ["ada", "team"]);

    grant(&mut world, &[("team", 10_000)]);
    assert_eq!(budget(&world, "team").left(), Some(micros(10_000)));
    assert!(refused(&mut world, of("team", 3, 10_001)).is_some());
    assert_eq!(refused(&mut world, of("ada", 4, 5_000_000)), None);
}
