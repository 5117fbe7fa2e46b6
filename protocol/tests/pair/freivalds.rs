//! Results that must be products of their inputs.

use std::{collections::BTreeSet, time::Duration};

use suanli_protocol::{
    deal::{UnitRange, Work},
    freivalds::{Freivalds, Numbers, Product},
    ids::JobId,
    limits::COMPARISONS_MAX,
    peer::{Command, Event, JobEvent},
    receipt::Verdict,
    record::{JobEnd, JobOrder, Record, Verify},
    registry::{Reason, Verification},
    units::Millis,
    wire::List,
};

use crate::world::{Run, World, factors::SIDES, micros, name, order};

fn checked(replicas: u8) -> Verify {
    let [rows, inner, columns] = SIDES.map(|side| u32::try_from(side).unwrap());
    Verify {
        replicas,
        freivalds: Some(Freivalds {
            rounds: 20,
            products: List::truncated(vec![Product {
                left: 0,
                right: 1,
                output: name("out"),
                rows,
                inner,
                columns,
                numbers: Numbers::Floats { error: None },
            }]),
        }),
        ..Verify::NONE
    }
}

fn matrix(count: usize, first: u16) -> Vec<u8> {
    let count = u16::try_from(count).unwrap();
    let numbers = (first..first + count).map(|n| f32::from(n) / 7.0 - 1.0);
    numbers.flat_map(f32::to_le_bytes).collect()
}

/// A product of two files.
fn product(world: &mut World, verify: Verify) -> JobOrder {
    let [rows, inner, columns] = SIDES;
    let factors = [matrix(rows * inner, 1), matrix(inner * columns, 50)];
    let mut order = order(1);
    order.inputs = List::truncated(factors.iter().map(|factor| world.knows(factor)).collect());
    order.verify = verify;
    order
}

/// Products of one file, which all units read, with files of their own.
fn products(world: &mut World, count: u32, verify: Verify) -> JobOrder {
    let [rows, inner, columns] = SIDES;
    let mut order = product(world, verify);
    let own = (0..count).map(|unit| matrix(inner * columns, 100 + u16::try_from(unit).unwrap()));
    let all = std::iter::once(matrix(rows * inner, 1)).chain(own);
    order.inputs = List::truncated(all.map(|factor| world.knows(&factor)).collect());
    order.budget = micros(9_000_000);
    order.work = Work::Array {
        units: List::truncated(vec![UnitRange { first: 0, count }]),
        inputs_each: 1,
    };
    order
}

/// Providers whose products are off by so much, in one number.
fn world(off: &[f32]) -> World {
    let mut world = World::new(off.len()).start(&[]);
    for (node, &off) in off.iter().enumerate() {
        world.nodes[node + 1].run = Run::Product { ms: 100, off };
    }
    world
}

fn assert_unpaid(world: &World, node: usize) {
    let channels = world.peer(0).channels();
    let mut paid = channels
        .iter()
        .filter(|view| view.parties.payee == world.id(node));
    assert!(paid.all(|view| view.cumulative.as_micros() == 0));
    let standing = world.peer(0).standing(world.id(node)).unwrap();
    assert!(standing.left_out_until().is_some());
    assert_eq!(standing.results().accepted.count, 0);
}

#[test]
fn a_right_product_is_paid_after_one_execution() {
    let mut world = world(&[0.0; 3]);
    let order = product(&mut world, checked(1));
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!((world.executed.len(), world.checked.len()), (1, 1));
    assert_eq!(world.words(0), [Verification::FREIVALDS]);
    let standing = world.peer(0).standing(world.id(1)).unwrap();
    let results = standing.results();
    assert_eq!((results.accepted.count, results.agreed.count), (1, 0));
    world.assert_conserved();
}

#[test]
fn a_wrong_product_is_named_not_paid_and_made_elsewhere() {
    let mut world = world(&[1.0, 0.0, 0.0]);
    let order = product(&mut world, checked(1));
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!((world.executed.len(), world.checked.len()), (2, 2));
    assert_eq!(world.named(), world.peers(&[1]));
    assert_eq!(world.words(0), [Verification::FREIVALDS]);
    assert_unpaid(&world, 1);
    world.assert_conserved();
}

#[test]
fn each_unit_of_an_array_is_checked_with_its_own_files() {
    let mut world = world(&[0.0, 0.5, 0.0]);
    let order = products(&mut world, 12, checked(1));
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.named(), world.peers(&[2]));
    assert_eq!(world.words(0), vec![Verification::FREIVALDS; 12]);
    let units: BTreeSet<u32> = world.checked.iter().map(|check| check.id.unit).collect();
    assert_eq!(units, (0..12).collect());
    let lefts: BTreeSet<_> = world
        .checked
        .iter()
        .map(|of| of.products[0].left.blob)
        .collect();
    assert_eq!(lefts.len(), 1);
    assert_unpaid(&world, 2);
    world.assert_conserved();
}

#[test]
fn what_has_another_shape_is_wrong_without_a_look_at_its_bytes() {
    for run in [Run::Done { ms: 100 }, Run::Lies { ms: 100 }] {
        let mut world = world(&[0.0, 0.0]);
        world.nodes[1].run = run;
        let order = product(&mut world, checked(1));
        world.submit(order);
        world.run_until_settled();
        assert_eq!(world.job(1).end, Some(JobEnd::Done));
        assert_eq!(world.named(), world.peers(&[1]));
        assert_eq!(world.checked.len(), 1);
        assert_unpaid(&world, 1);
    }
}

/// Two that agree on a lie outvote one; a check they can't.
#[test]
fn liars_that_agree_are_all_found() {
    let mut world = world(&[1.0, 1.0, 0.0, 0.0]);
    let order = products(&mut world, 4, checked(2));
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.named(), world.peers(&[1, 2]));
    assert_eq!(world.words(0), vec![Verification::REPLICAS; 8]);
    world.assert_conserved_with(2);
}

#[test]
fn audited_units_are_checked_as_well() {
    let mut world = world(&[1.0, 0.0, 0.0]);
    let mut order = products(&mut world, 6, checked(1));
    order.verify.audit = 1000;
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.named(), world.peers(&[1]));
    assert_eq!(world.words(0), vec![Verification::AUDIT; 12]);
    world.assert_conserved_with(2);
}

#[test]
fn a_disk_that_cannot_be_read_is_nobodys_fault() {
    let mut world = world(&[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    world.unreadable = true;
    let order = product(&mut world, checked(1));
    world.submit(order);
    world.run_until_settled();
    assert!(world.named().is_empty());
    assert_eq!(world.words(0), [Verification::UNDECIDED; 5]);
    let failed = Some(JobEnd::Failed(Reason::RESULTS_DIFFER));
    assert_eq!(world.job(1).end, failed);
    let asked: BTreeSet<usize> = world.executed.iter().map(|(node, _)| *node).collect();
    assert_eq!(asked.len(), 5, "each provider once");
}

/// What could not be read is paid and does not count; the next one can be.
#[test]
fn another_provider_is_asked_for_what_could_not_be_read() {
    let mut world = world(&[0.0; 3]);
    world.unreadable = true;
    let order = product(&mut world, checked(1));
    world.submit(order);
    let begun = |world: &World| !world.checked.is_empty();
    assert!(world.run_until(Duration::from_secs(5), begun));
    world.unreadable = false;
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert!(world.named().is_empty());
    assert_eq!(
        world.words(0),
        [Verification::HASHES, Verification::FREIVALDS]
    );
    assert_eq!(world.job(1).receipts.len(), 2);
}

/// Where one is late another is asked; both may be right, and differ as floats do.
#[test]
fn of_two_right_ones_the_first_is_paid_and_nobody_is_named() {
    let mut world = World::new(3);
    world.offer_of(1).slots = 1;
    world.offer_of(1).slots_free = 1;
    let mut world = world.start(&[]);
    world.comparing = Duration::from_secs(15);
    for (node, ms, off) in [(1, 5000, 0.0), (2, 100, 1e-6), (3, 100, 1e-6)] {
        world.nodes[node].run = Run::Product { ms, off };
    }
    let mut order = products(&mut world, 2, checked(1));
    order.needs.run_max = Millis::new(10_000);
    world.submit(order);
    world.run_until_settled();
    assert_eq!((world.executed.len(), world.checked.len()), (3, 3));
    let late = world.events.iter().filter(|(_, event)| {
        let superseded = Reason::SUPERSEDED;
        matches!(event, Event::Job { event: JobEvent::Disputed { reason, .. }, .. }
            if *reason == superseded)
    });
    assert_eq!(late.count(), 1);
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert!(world.named().is_empty());
    assert_eq!(world.words(0), [Verification::FREIVALDS; 2]);
    world.assert_conserved();
}

#[test]
fn checks_and_comparisons_share_their_bound() {
    let mut world = world(&[0.0, 0.0, 0.0]);
    world.comparing = Duration::from_millis(700);
    let order = products(&mut world, 24, checked(1));
    world.submit(order);
    let mut at_once = 0;
    let done = world.run_until(Duration::from_secs(60), |world| {
        at_once = at_once.max(world.comparing_now());
        world.job(1).end.is_some()
    });
    assert!(done);
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(at_once, COMPARISONS_MAX);
    assert_eq!((world.executed.len(), world.checked.len()), (24, 24));
    world.run_until_settled();
    world.assert_conserved();
}

/// The job ends before its product is checked: what was done as agreed is paid, and the
/// answer comes to nothing.
#[test]
fn an_answer_that_comes_late_changes_nothing() {
    for cancelled in [true, false] {
        let mut world = world(&[1.0]);
        world.comparing = Duration::from_secs(20);
        let mut order = product(&mut world, checked(1));
        order.total = Millis::new(10_000);
        world.submit(order);
        let checking = |world: &World| world.comparing_now() > 0;
        assert!(world.run_until(Duration::from_secs(5), checking));
        if cancelled {
            world.command(0, Command::Cancel(JobId::from_bytes([1; 16])));
        }
        world.pass(Duration::from_secs(30));
        let end = [JobEnd::Expired, JobEnd::Cancelled][usize::from(cancelled)];
        assert_eq!(world.job(1).end, Some(end));
        assert!(!checking(&world), "the answer is here");
        assert!(world.named().is_empty());
        assert_eq!(world.words(0), [Verification::HASHES]);
        world.run_until_settled();
        world.assert_conserved();
    }
}

/// The client stops and starts again at many moments, also while it checks.
#[test]
fn checks_begin_anew_after_the_clients_restart() {
    let mut interrupted = 0;
    for after_ms in (100..1400).step_by(97) {
        let mut world = world(&[1.0, 0.0, 0.0]);
        world.comparing = Duration::from_millis(400);
        world.nodes[0].restarts_after = Some(Duration::from_millis(300));
        let order = products(&mut world, 6, checked(1));
        world.submit(order);
        world.pass(Duration::from_millis(after_ms));
        interrupted += usize::from(world.comparing_now() > 0);
        world.crash(0);
        world.pass(Duration::from_millis(400));
        world.run_until_settled();
        assert_eq!(world.job(1).end, Some(JobEnd::Done), "{after_ms} ms");
        assert_eq!(world.named(), world.peers(&[1]), "{after_ms} ms");
        assert_eq!(world.words(0), vec![Verification::FREIVALDS; 6]);
        assert_unpaid(&world, 1);
        world.assert_conserved();
    }
    assert!(interrupted >= 5, "{interrupted}");
}

/// A provider that was called a liar owes nothing more: nobody waits for it again.
#[test]
fn after_a_restart_nobody_waits_for_the_liar() {
    let mut world = world(&[1.0, 0.0]);
    let order = product(&mut world, checked(1));
    world.submit(order);
    let disputed = |world: &World| {
        world.records(0).iter().any(|record| {
            matches!(record, Record::Judged { acceptance, .. }
                if acceptance.body().verdict == Verdict::Disputed(Reason::WRONG_RESULT))
        })
    };
    assert!(world.run_until(Duration::from_secs(5), disputed));
    world.nodes[0].restarts_after = Some(Duration::from_millis(10));
    world.crash(0);
    let done = |world: &World| {
        let alive = world.nodes[0].peer.is_some();
        alive && world.job(1).end == Some(JobEnd::Done)
    };
    assert!(world.run_until(Duration::from_secs(3), done));
    world.run_until_settled();
    assert_unpaid(&world, 1);
    world.assert_conserved();
}

/// Its word on that is taken, as ever.
#[test]
fn that_a_job_failed_is_not_checked() {
    let mut world = world(&[0.0, 0.0]);
    world.nodes[1].run = Run::Fails(Reason::TRAPPED);
    let order = product(&mut world, checked(1));
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Failed(Reason::TRAPPED)));
    assert_eq!(world.words(0), [Verification::HASHES]);
    assert!(world.checked.is_empty());
}

/// Others that run out of time don't speak against one that shows what it has made.
#[test]
fn what_is_proven_is_not_called_wrong_by_those_who_fail() {
    let mut world = world(&[0.0; 3]);
    world.nodes[2].run = Run::Fails(Reason::TRAPPED);
    world.nodes[3].run = Run::Fails(Reason::TRAPPED);
    let order = product(&mut world, checked(2));
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Failed(Reason::TRAPPED)));
    assert!(world.named().is_empty());
    let mut words = world.words(0);
    words.sort();
    let replicas = Verification::REPLICAS;
    assert_eq!(words, [replicas, replicas, Verification::FREIVALDS]);
}

#[test]
fn products_of_what_a_unit_does_not_read_are_refused() {
    let wrong: [fn(&mut JobOrder); 4] = [
        |order| order.inputs = List::truncated(order.inputs[..1].to_vec()),
        |order| order.inputs = List::truncated(vec![order.inputs[0]; 2]),
        |order| order.verify.freivalds.as_mut().unwrap().rounds = 0,
        |order| order.verify.freivalds.as_mut().unwrap().products = List::default(),
    ];
    for wrong in wrong {
        let mut world = world(&[0.0]);
        let mut order = product(&mut world, checked(1));
        wrong(&mut order);
        world.submit(order);
        let refused = world.events.iter().any(|(_, event)| {
            matches!(
                event,
                Event::Job {
                    event: JobEvent::Refused(_),
                    ..
                }
            )
        });
        assert!(refused);
    }
    let mut world = world(&[0.0]);
    let mut order = products(&mut world, 3, checked(1));
    let short = world.knows(b"short");
    let mut inputs = order.inputs.to_vec();
    inputs[3] = short;
    order.inputs = List::truncated(inputs);
    assert!(order.check_products().is_err(), "of the last unit");
}
