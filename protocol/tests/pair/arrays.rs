//! Many units on many providers, and results that are compared.

use std::{collections::BTreeSet, time::Duration};

use suanli_protocol::{
    deal::{UnitRange, Work},
    ids::{JobId, PeerId},
    peer::{Command, Event, JobEvent},
    record::{JobEnd, JobOrder, Record, Verify},
    registry::{Reason, Verification},
    units::{Millis, Wall},
    wire::{List, Text},
};

use crate::world::{Run, World, micros, name, order};

fn array(count: u32) -> JobOrder {
    let mut order = order(1);
    order.budget = micros(9_000_000);
    order.work = Work::Array {
        units: List::truncated(vec![UnitRange { first: 0, count }]),
        inputs_each: 0,
    };
    order
}

fn replicas(replicas: u8) -> Verify {
    Verify {
        replicas,
        ..Verify::NONE
    }
}

/// Who ran how many units.
fn shares(world: &World) -> Vec<usize> {
    let ran = |node| world.executed.iter().filter(|(by, _)| *by == node).count();
    (1..world.nodes.len()).map(ran).collect()
}

/// Providers whose results the client disputes for a reason.
fn disputed(world: &World, why: Reason) -> BTreeSet<PeerId> {
    let events = world.events.iter().filter_map(|(_, event)| match event {
        Event::Job {
            event: JobEvent::Disputed { peer, reason },
            ..
        } => Some((*peer, *reason)),
        _ => None,
    });
    let because = events.filter(|(_, reason)| *reason == why);
    because.map(|(peer, _)| peer).collect()
}

fn peers(world: &World, nodes: &[usize]) -> BTreeSet<PeerId> {
    nodes.iter().map(|&node| world.peer(node).id()).collect()
}

#[test]
fn an_array_is_shared_out_among_all_providers_at_once() {
    let mut world = World::new(3).start(&[]);
    let before = world.now(0).wall;
    world.submit(array(120));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.executed.len(), 120, "no unit ran twice");
    assert_eq!(world.job(1).receipts.len(), 120);
    let shares = shares(&world);
    assert!(shares.iter().all(|ran| *ran >= 20), "{shares:?}");
    // Twelve slots, a tenth of a second each: a second where nobody idles.
    let took = world.now(0).wall.since(before);
    assert!(took < Duration::from_secs(4), "{took:?}");
    world.assert_conserved();
}

#[test]
fn a_bound_on_agreements_holds() {
    let mut world = World::new(3).start(&[]);
    let mut order = array(30);
    order.parallel = 2;
    world.submit(order);
    let mut most = 0;
    let done = world.run_until(Duration::from_secs(60), |world| {
        most = most.max(world.job(1).live.len());
        world.job(1).end.is_some()
    });
    assert!(done);
    // One more may stand while somebody is late.
    assert!((2..=3).contains(&most), "{most}");
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
}

#[test]
fn units_of_providers_that_die_or_hang_are_run_by_others() {
    let mut world = World::new(4).start(&[]);
    world.nodes[2].run = Run::Hangs;
    world.submit(array(60));
    let some = world.run_until(Duration::from_secs(5), |world| {
        world.job(1).receipts.len() >= 8
    });
    assert!(some);
    world.crash(1);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.job(1).receipts.len(), 60);
    world.assert_conserved();
}

#[test]
fn nobody_waits_for_one_that_is_slow() {
    let mut world = World::new(3).start(&[]);
    world.nodes[1].run = Run::Done { ms: 50_000 };
    for node in 1..=3 {
        world.offer_of(node).run_max = Millis::new(100_000);
        world.command(node, Command::Announce);
    }
    world.pass(Duration::from_secs(1));
    let mut order = array(40);
    order.needs.run_max = Millis::new(60_000);
    order.budget = micros(2_000_000_000);
    for node in 1..=3 {
        let client = world.peer(0).account();
        let lent = &mut world.config_of(node).known;
        lent.insert(client, micros(2_000_000_000));
        let provider = Box::new(world.config_of(node).clone());
        world.command(node, Command::Provide(provider));
    }
    let before = world.now(0).wall;
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    let took = world.now(0).wall.since(before);
    assert!(took < Duration::from_secs(20), "{took:?}");
    // It was told to stop.
    world.pass(Duration::from_secs(60));
    assert_eq!(world.peer(1).slots_used(), 0);
    world.assert_conserved();
}

#[test]
fn a_unit_that_fails_leaves_the_others_alone() {
    for (max, end) in [(0, JobEnd::Failed(Reason::TRAPPED)), (1, JobEnd::Done)] {
        let mut world = World::new(2).start(&[]);
        for node in [1, 2] {
            world.nodes[node].run = Run::FailsUnit(7);
        }
        let mut order = array(20);
        order.max_failures = max;
        world.submit(order);
        world.run_until_settled();
        let job = world.job(1);
        assert_eq!(job.end, Some(end));
        assert_eq!(job.failed, [(7, Reason::TRAPPED)]);
        if max == 1 {
            assert_eq!(world.executed.len(), 20);
        }
        world.assert_conserved();
    }
}

#[test]
fn results_that_agree_are_all_paid() {
    let mut world = World::new(4).start(&[]);
    let mut order = order(1);
    order.verify = replicas(3);
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(shares(&world).iter().sum::<usize>(), 3);
    assert!(
        shares(&world).iter().all(|ran| *ran <= 1),
        "different accounts"
    );
    assert_eq!(world.job(1).receipts.len(), 3);
    assert_eq!(
        world.words(0),
        vec![Verification::REPLICAS; 3],
        "the client's word says what was done"
    );
    world.assert_conserved_with(3);
}

/// Providers in these regions, under these addresses.
fn spread_over(sites: &[(&str, &[&str])]) -> World {
    let mut world = World::new(sites.len());
    for (number, (region, addresses)) in (1..).zip(sites) {
        let offer = world.offer_of(number);
        offer.region = name(region);
        let addresses = addresses.iter().map(|address| Text::lossy(address));
        offer.addresses = List::truncated(addresses.collect());
    }
    world.start(&[])
}

/// Who ran a job whose results are compared, of the cheapest first.
fn compared_at(sites: &[(&str, &[&str])], verify: Verify) -> Vec<usize> {
    let mut world = spread_over(sites);
    let mut order = order(1);
    order.verify = verify;
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    let ran = world.executed.iter().map(|(node, _)| *node);
    ran.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Replicas are begun at once, an audit after the first result.
#[test]
fn results_are_compared_with_those_of_providers_that_are_near_nobody() {
    let audit = Verify {
        audit: 1000,
        ..Verify::NONE
    };
    let relayed = |relay: &str| format!("/ip4/9.9.9.9/tcp/1/p2p/{relay}/p2p-circuit");
    let [one, other] = [relayed("one"), relayed("other")];
    for verify in [replicas(2), audit] {
        // Of two neighbours only the cheaper one.
        let neighbours: [(&str, &[&str]); 3] = [
            ("CN-NX", &["/ip4/8.8.4.4/udp/1/quic-v1"]),
            ("CN-NX", &["/ip4/8.8.4.5/udp/1/quic-v1"]),
            ("CN-NX", &["/ip4/8.8.5.4/udp/1/quic-v1"]),
        ];
        assert_eq!(compared_at(&neighbours, verify.clone()), [1, 3]);
        // Their word for where they are counts less than that.
        let mut elsewhere = neighbours;
        elsewhere[1].0 = "CN-GD";
        assert_eq!(compared_at(&elsewhere, verify.clone()), [1, 3]);
        // Who has nobody else makes do with them.
        assert_eq!(compared_at(&neighbours[..2], verify.clone()), [1, 2]);
        // One that is reached through the same relay only.
        let behind: [(&str, &[&str]); 3] = [
            ("CN-NX", &[&one, "/ip4/10.0.0.1/tcp/1"]),
            ("CN-NX", &[&one, "/ip4/10.0.0.2/tcp/1"]),
            ("CN-NX", &[&other]),
        ];
        assert_eq!(compared_at(&behind, verify.clone()), [1, 3]);
        // On one machine all are neighbours, and none is.
        let local: [(&str, &[&str]); 3] = [("CN-NX", &["/ip4/127.0.0.1/udp/1/quic-v1"]); 3];
        assert_eq!(compared_at(&local, verify.clone()), [1, 2]);
        let mut far = local;
        far[2].0 = "CN-GD";
        assert_eq!(compared_at(&far, verify.clone()), [1, 3], "another region");
    }
}

/// Where a unit's second run is to be had from a stranger, neighbours run others.
#[test]
fn units_of_an_array_are_compared_across_networks() {
    let mut world = spread_over(&[
        ("CN-NX", &["/ip4/8.8.4.4/tcp/1"]),
        ("CN-NX", &["/ip4/8.8.4.5/tcp/1"]),
        ("CN-NX", &["/ip4/8.8.5.4/tcp/1"]),
        ("CN-NX", &["/ip4/8.8.5.5/tcp/1"]),
    ]);
    let mut order = array(8);
    order.verify = replicas(2);
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.executed.len(), 16);
    for unit in 0..8 {
        let ran = world.executed.iter().filter(|(_, run)| run.id.unit == unit);
        let networks: BTreeSet<_> = ran.map(|(node, _)| *node > 2).collect();
        assert_eq!(
            networks.len(),
            2,
            "unit {unit} was compared with a neighbour's"
        );
    }
}

#[test]
fn a_liar_is_outvoted_named_and_not_paid() {
    for verify in [replicas(2), replicas(3)] {
        let copies = usize::from(verify.replicas);
        let mut world = World::new(5).start(&[]);
        world.nodes[1].run = Run::Lies { ms: 50 };
        let mut order = array(12);
        order.verify = verify;
        world.submit(order);
        world.run_until_settled();
        assert_eq!(world.job(1).end, Some(JobEnd::Done));
        let liar = peers(&world, &[1]);
        assert_eq!(disputed(&world, Reason::WRONG_RESULT), liar);
        let paid = world.peer(0).channels();
        let paid = paid
            .iter()
            .filter(|channel| liar.contains(&channel.parties.payee));
        assert!(
            paid.into_iter()
                .all(|channel| channel.cumulative.as_micros() == 0)
        );
        world.assert_conserved_with(copies);
        // It is left out of the next job, too, and that survives a restart.
        world.crash(0);
        world.boot(0);
        world.pass(Duration::from_secs(1));
        let plan = world
            .peer(0)
            .plan(&crate::world::order(2), world.now(0).wall);
        let misfit = plan
            .misfits
            .iter()
            .find(|misfit| liar.contains(&misfit.peer));
        assert_eq!(misfit.unwrap().decline.reason, Reason::WRONG_RESULT);
        let later = Wall::from_millis(world.now(0).wall.as_millis() + 250_000);
        let standing = world.peer(0).standing(world.peer(1).id()).unwrap();
        assert!(standing.left_out_until().unwrap() > later);
    }
}

#[test]
fn where_no_two_results_agree_the_job_is_at_fault_and_all_are_paid() {
    let mut world = World::new(9).start(&[]);
    for node in 1..=9 {
        world.nodes[node].run = Run::Lies { ms: 20 };
    }
    let mut order = order(1);
    order.budget = micros(9_000_000);
    order.verify = replicas(2);
    world.submit(order);
    world.run_until_settled();
    assert_eq!(
        world.job(1).end,
        Some(JobEnd::Failed(Reason::RESULTS_DIFFER))
    );
    assert_eq!(world.executed.len(), 7, "twice as many and three");
    assert_eq!(world.job(1).receipts.len(), 7);
    assert!(disputed(&world, Reason::WRONG_RESULT).is_empty());
}

#[test]
fn with_too_few_accounts_a_job_waits_for_more_and_ends_at_its_deadline() {
    let mut world = World::new(1).start(&[]);
    let mut order = order(1);
    order.verify = replicas(2);
    order.total = Millis::new(5000);
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Expired));
    // What was done as agreed is paid.
    assert_eq!(world.job(1).receipts.len(), 1);
    world.assert_conserved();
}

#[test]
fn audits_find_liars_as_often_as_they_look() {
    let mut world = World::new(4).start(&[]);
    world.nodes[1].run = Run::Lies { ms: 50 };
    let mut order = array(40);
    order.verify.audit = 1000;
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(disputed(&world, Reason::WRONG_RESULT), peers(&world, &[1]));
    world.assert_conserved_with(2);
    assert!(world.words(0).contains(&Verification::AUDIT));

    let mut world = World::new(4).start(&[]);
    let mut order = array(100);
    order.verify.audit = 100;
    world.submit(order);
    world.run_until_settled();
    let more = world.executed.len() - 100;
    assert!(
        (1..=30).contains(&more),
        "{more} of 100 were audited at 10%"
    );
    world.assert_conserved_with(2);
}

#[test]
fn trust_is_earned_by_results_that_agree() {
    let mut world = World::new(3).start(&[]);
    let mut order = array(120);
    order.verify.adaptive = true;
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    let audits = world.executed.len() - 120;
    // All of the first, few of the last.
    assert!((12..90).contains(&audits), "{audits}");
    let trusted = |node| {
        world
            .peer(0)
            .standing(world.peer(node).id())
            .unwrap()
            .results()
            .in_a_row
            .count
    };
    assert!((1..=3).all(|node| trusted(node) >= 10));
    world.assert_conserved_with(2);
}

#[test]
fn an_array_is_cancelled_everywhere() {
    for after_ms in (0..600).step_by(61) {
        let mut world = World::new(3).start(&[]);
        world.submit(array(60));
        world.pass(Duration::from_millis(after_ms));
        world.command(0, Command::Cancel(JobId::from_bytes([1; 16])));
        world.run_until_settled();
        assert_eq!(world.job(1).end, Some(JobEnd::Cancelled), "{after_ms} ms");
        world.pass(Duration::from_secs(20));
        for node in 1..=3 {
            assert_eq!(world.peer(node).slots_used(), 0, "{after_ms} ms");
        }
        world.assert_conserved();
    }
}

/// The client stops and starts again at many moments of an array with replicas.
#[test]
fn an_array_survives_its_clients_restarts() {
    for after_ms in (10..900).step_by(149) {
        let mut world = World::new(4).start(&[]);
        world.nodes[2].run = Run::Lies { ms: 60 };
        world.nodes[0].restarts_after = Some(Duration::from_millis(300));
        let mut order = array(24);
        order.verify = replicas(2);
        world.submit(order);
        world.pass(Duration::from_millis(after_ms));
        world.crash(0);
        world.pass(Duration::from_millis(400));
        world.run_until_settled();
        assert_eq!(world.job(1).end, Some(JobEnd::Done), "{after_ms} ms");
        world.assert_conserved_with(2);
    }
}

/// A provider that comes back from a backup of the beginning does not run, and does not
/// receipt, what its client has receipts of.
#[test]
fn a_backup_of_a_provider_runs_no_unit_again() {
    for at in [8, 16, 24] {
        let mut world = World::new(1).start(&[]);
        let mut order = array(40);
        order.parallel = 1;
        world.submit(order);
        let first = world.run_until(Duration::from_secs(30), |world| {
            !world.job(1).receipts.is_empty()
        });
        assert!(first);
        let backup = world.nodes[1].disk.clone();
        let some = world.run_until(Duration::from_secs(30), |world| {
            world.job(1).receipts.len() >= at
        });
        assert!(some);
        let ran = |world: &World| -> BTreeSet<u32> {
            let accepted = world
                .records(0)
                .into_iter()
                .filter_map(|record| match record {
                    Record::Judged { receipt, .. } => Some(receipt.body().key.unit),
                    _ => None,
                });
            accepted.collect()
        };
        let done = ran(&world);
        let before = world.executed.len();
        world.restore_backup(1, backup);
        world.run_until_settled();
        assert_eq!(world.job(1).end, Some(JobEnd::Done));
        let again: Vec<u32> = world.executed[before..]
            .iter()
            .map(|(_, order)| order.id.unit)
            .filter(|unit| done.contains(unit))
            .collect();
        assert_eq!(again, [0_u32; 0], "{at} done: run again");
        assert_eq!(world.job(1).receipts.len(), 40);
    }
}
