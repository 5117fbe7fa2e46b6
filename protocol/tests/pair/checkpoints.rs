//! Executions that go on where others stopped.

use std::time::Duration;

use suanli_protocol::{
    deal::{Checkpoint, UnitRange, Work},
    limits::CHECKPOINT_BYTES_MAX,
    message::{Frame, InlineBlobs},
    peer::{Event, JobEvent},
    receipt::OutputRef,
    record::{JobEnd, JobOrder, Record, Verify},
    registry::Reason,
    units::Millis,
    wire::List,
};

use crate::{
    puppet::Provider,
    world::{Run, STEPS, World, account_signer, blob, micros, name, order},
};

const STEP: u64 = 200;

/// Ten steps of a fifth of a second, with a checkpoint wanted after each.
fn long(number: u8) -> JobOrder {
    let mut order = order(number);
    order.needs.run_max = Millis::new(10_000);
    order.checkpoint_every = Some(Millis::new(100));
    order
}

/// All providers run step by step; the first stops after so many.
fn stopping_after(steps: u64, providers: usize) -> World {
    let mut world = World::new(providers).start(&[]);
    for node in 1..=providers {
        let until = if node == 1 { steps } else { STEPS };
        world.nodes[node].run = Run::Steps { ms: STEP, until };
    }
    world
}

/// The steps that the client has checkpoints of.
fn reached(world: &World) -> Vec<u64> {
    let records = world.records(0).into_iter();
    let reached = records.filter_map(|record| match record {
        Record::Reached { kept, .. } => Some(kept.done),
        _ => None,
    });
    reached.collect()
}

/// Which node ran the units, and after which step each began.
fn began(world: &World) -> Vec<(usize, u64)> {
    let began = world.executed.iter().map(|(node, order)| {
        let resume = order.resume.as_ref();
        (*node, resume.map_or(0, |kept| kept.done))
    });
    began.collect()
}

fn run_until_reached(world: &mut World, done: u64) {
    let there = |world: &World| reached(world).contains(&done);
    assert!(
        world.run_until(Duration::from_secs(20), there),
        "{:?}",
        reached(world)
    );
}

#[test]
fn a_lost_execution_goes_on_elsewhere_and_only_the_rest_is_paid() {
    let mut world = stopping_after(4, 2);
    world.submit(long(1));
    run_until_reached(&mut world, 4);
    assert_eq!(reached(&world), [1, 2, 3, 4]);
    world.crash(1);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(began(&world), [(1, 0), (2, 4)]);
    // Six of ten steps: a device's time is what is paid.
    let [receipt] = &*world.job(1).receipts else {
        panic!("one receipt");
    };
    let judged = world
        .records(0)
        .into_iter()
        .find_map(|record| match record {
            Record::Judged { receipt, .. } => Some(receipt),
            _ => None,
        });
    let judged = judged.unwrap();
    assert_eq!(judged.hash(), receipt.0);
    assert_eq!(judged.body().usage[1].quantity, 6 * STEP);
    let resumed = world.events.iter().find_map(|(_, event)| match event {
        Event::Job {
            event: JobEvent::Agreed { resumed, .. },
            ..
        } if !resumed.is_empty() => Some(resumed.clone()),
        _ => None,
    });
    assert_eq!(resumed, Some(vec![(0, 4)]));
    assert!(world.has_all_results());
    world.assert_conserved();
}

#[test]
fn units_of_an_array_go_on_where_they_were() {
    let mut order = long(1);
    order.budget = micros(9_000_000);
    order.work = Work::Array {
        units: List::truncated(vec![UnitRange { first: 3, count: 4 }]),
        inputs_each: 0,
    };
    let mut world = stopping_after(3, 2);
    world.submit(order);
    let there = |world: &World| {
        let first = account_signer(1).public().account();
        let is_there = |record: &Record| {
            matches!(record, Record::Reached { account, kept, .. }
                if *account == first && kept.done == 3)
        };
        world.records(0).iter().any(is_there)
    };
    assert!(world.run_until(Duration::from_secs(20), there));
    world.crash(1);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    let resumed = world.executed.iter().filter_map(|(node, order)| {
        let kept = order.resume.as_ref()?;
        assert_eq!(kept.unit, order.id.unit);
        Some((*node, kept.done))
    });
    let resumed: Vec<_> = resumed.collect();
    assert!(!resumed.is_empty());
    assert!(
        resumed.iter().all(|resumed| *resumed == (2, 3)),
        "{:?}",
        began(&world)
    );
    world.assert_conserved();
}

#[test]
fn a_provider_that_starts_again_goes_on_from_what_its_client_has() {
    let mut world = stopping_after(5, 1);
    world.submit(long(1));
    run_until_reached(&mut world, 5);
    world.nodes[1].run = Run::Steps {
        ms: STEP,
        until: STEPS,
    };
    world.nodes[1].restarts_after = Some(Duration::from_millis(500));
    world.crash(1);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(began(&world), [(1, 0), (1, 5)]);
    assert_eq!(world.job(1).attempt, 1, "the agreement stands");
    world.assert_conserved();
}

#[test]
fn a_client_that_starts_again_knows_how_far_it_was() {
    let mut world = stopping_after(4, 2);
    world.submit(long(1));
    run_until_reached(&mut world, 4);
    world.crash(0);
    world.crash(1);
    world.boot(0);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(began(&world), [(1, 0), (2, 4)]);
}

/// Who goes on from somebody's wrong state is wrong by honest work.
#[test]
fn compared_results_do_not_go_back_to_another_accounts_work() {
    let audited = Verify {
        audit: 1000,
        ..Verify::NONE
    };
    let copied = Verify {
        replicas: 2,
        ..Verify::NONE
    };
    for verify in [audited, copied] {
        let mut order = long(1);
        order.verify = verify;
        let mut world = stopping_after(4, 3);
        world.submit(order);
        run_until_reached(&mut world, 4);
        world.crash(1);
        world.run_until_settled();
        assert_eq!(world.job(1).end, Some(JobEnd::Done));
        assert!(
            began(&world).iter().all(|(_, done)| *done == 0),
            "{:?}",
            began(&world)
        );
    }
}

#[test]
fn what_goes_on_and_blames_the_job_is_paid_and_begins_anew() {
    let mut world = stopping_after(4, 3);
    world.nodes[2].run = Run::Fails(Reason::INVALID_PROGRAM);
    let mut order = long(1);
    order.budget = micros(1_000_000);
    world.submit(order);
    run_until_reached(&mut world, 4);
    world.crash(1);
    world.run_until(Duration::from_secs(60), |world| {
        world.job(1).receipts.len() == 1
    });
    // It is known after a start as well.
    world.crash(0);
    world.boot(0);
    world.nodes[2].run = Run::Steps {
        ms: STEP,
        until: STEPS,
    };
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    let began = began(&world);
    assert_eq!(began[..2], [(1, 0), (2, 4)]);
    assert!(began[2..].iter().all(|(_, done)| *done == 0), "{began:?}");
    assert_eq!(world.job(1).receipts.len(), 2);
    world.assert_conserved();
}

#[test]
fn a_checkpoint_that_does_not_come_is_forgotten_and_the_next_one_counts() {
    let mut world = stopping_after(6, 2);
    world.submit(long(1));
    run_until_reached(&mut world, 2);
    // Its disk has lost them: those of the third step are not to be had.
    let lost: Vec<_> = world.nodes[1].blobs.iter().copied().collect();
    world.nodes[1].loses_states = true;
    world.pass(Duration::from_millis(STEP));
    world.nodes[1].loses_states = false;
    assert!(!lost.is_empty());
    run_until_reached(&mut world, 6);
    assert!(!reached(&world).contains(&3), "{:?}", reached(&world));
    assert!(world.blamed.is_empty(), "{:?}", world.blamed);
    world.crash(1);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
}

fn told(unit: u32, done: u64, bytes: u64) -> Checkpoint {
    let mut large = blob(format!("state of {unit} after {done}").as_bytes());
    large.bytes = bytes;
    Checkpoint {
        unit,
        done,
        state: List::truncated(vec![OutputRef {
            name: name("state"),
            blob: large,
        }]),
    }
}

/// What a provider says of checkpoints costs its client no more than one fetch at a time,
/// and one at rest.
#[test]
fn abuse_61_checkpoints_of_a_liar_are_refused_or_bounded() {
    let mut world = World::new(0);
    let liar = world.add(None);
    let mut world = world.start(&[liar]);
    let mut offer = world.provider(liar).offer;
    offer.terms.stranger_credit = micros(90_000_000);
    let mut provider = Provider::offering(&mut world, liar, offer);
    let mut order = long(1);
    order.work = Work::Array {
        units: List::truncated(vec![UnitRange {
            first: 0,
            count: 1000,
        }]),
        inputs_each: 0,
    };
    order.budget = micros(90_000_000);
    world.submit(order);
    provider.take_on(&mut world);
    let agreement = provider.agreement();
    let asked = |world: &World| world.fetched.len();
    let before = asked(&world);
    let units = provider.units();
    assert!(units.len() > 1, "{units:?}");
    for done in 1..100 {
        for &unit in &units {
            let checkpoint = told(unit, done, 1000);
            let frame = Frame::Checkpoint(agreement, checkpoint, InlineBlobs::default());
            provider.say(&mut world, frame);
        }
    }
    world.pass(Duration::from_millis(8));
    assert!(asked(&world) <= before + 1, "one at a time");
    assert!(world.blamed.is_empty(), "{:?}", world.blamed);
    // Those of units that it was not given, of none, too large, and of nothing.
    let wrong = [
        told(1000, 1, 1000),
        told(0, 0, 1000),
        told(0, u64::MAX, CHECKPOINT_BYTES_MAX + 1),
        Checkpoint {
            state: List::default(),
            ..told(0, 1, 0)
        },
    ];
    for (n, checkpoint) in wrong.into_iter().enumerate() {
        provider.say(
            &mut world,
            Frame::Checkpoint(agreement, checkpoint, InlineBlobs::default()),
        );
        world.pass(Duration::from_millis(50));
        assert_eq!(world.blamed.len(), n + 1, "{:?}", world.blamed);
    }
    // Of a job that has none.
    let mut world = World::new(0);
    let liar = world.add(None);
    let mut world = world.start(&[liar]);
    let mut provider = Provider::new(&mut world, liar);
    world.submit(JobOrder {
        checkpoint_every: None,
        ..long(1)
    });
    provider.take_on(&mut world);
    let frame = Frame::Checkpoint(
        provider.agreement(),
        told(0, 1, 1000),
        InlineBlobs::default(),
    );
    provider.say(&mut world, frame);
    world.pass(Duration::from_millis(50));
    assert_eq!(world.blamed.len(), 1);
}
