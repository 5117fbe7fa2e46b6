//! Results that are compared within a tolerance.

use std::time::Duration;

use suanli_protocol::{
    deal::{UnitRange, Work},
    ids::JobId,
    peer::Command,
    record::{JobEnd, JobOrder, Verify},
    registry::{Reason, Verification},
    tolerance::{Tolerance, Within},
    units::Millis,
    wire::List,
};

use crate::world::{Run, World, micros, name, order};

const RELATIVE: f32 = 1e-3;

fn tolerant(replicas: u8) -> Verify {
    Verify {
        replicas,
        within: Some(Within {
            tolerance: Tolerance::new(RELATIVE, 0.0).unwrap(),
            floats: List::truncated(vec![name("out")]),
        }),
        ..Verify::NONE
    }
}

fn array(count: u32, verify: Verify) -> JobOrder {
    let mut order = order(1);
    order.budget = micros(9_000_000);
    order.work = Work::Array {
        units: List::truncated(vec![UnitRange { first: 0, count }]),
        inputs_each: 0,
    };
    order.verify = verify;
    order
}

/// Providers that compute these values, one each.
fn world(values: &[f32]) -> World {
    let mut world = World::new(values.len()).start(&[]);
    for (node, &value) in values.iter().enumerate() {
        let (ms, count) = (100, 20);
        world.nodes[node + 1].run = Run::Floats { ms, value, count };
    }
    world
}

#[test]
fn floats_that_are_near_are_equal_and_all_are_paid() {
    let mut world = world(&[1.0, 1.0001, 1.0002, 1.0003]);
    world.submit(array(8, tolerant(2)));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.words(0), vec![Verification::REPLICAS_WITHIN; 16]);
    assert_eq!(world.compared.len(), 8);
    assert!(world.named().is_empty());
    world.assert_conserved_with(2);
}

/// They come inside receipts and are too large for a record, or are fetched.
#[test]
fn large_results_are_compared_where_they_are_stored() {
    let mut world = World::new(3).start(&[]);
    for (node, value) in [(1, 1.0), (2, 1.0001), (3, 0.9)] {
        let (ms, count) = (100, 3000);
        world.nodes[node].run = Run::Floats { ms, value, count };
    }
    world.submit(array(6, tolerant(2)));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    let mut outputs = world.compared.iter().flat_map(|of| of.pairs.as_flattened());
    assert!(outputs.all(|output| output.inline.is_none()));
    assert_eq!(world.named(), world.peers(&[3]));
    world.assert_conserved_with(2);
}

#[test]
fn results_that_are_the_same_to_the_last_bit_are_not_read_again() {
    let mut world = world(&[1.0; 3]);
    world.submit(array(6, tolerant(3)));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert!(world.compared.is_empty());
    assert_eq!(world.words(0), vec![Verification::REPLICAS; 18]);
    world.assert_conserved_with(3);
}

#[test]
fn one_that_is_too_far_off_is_outvoted_named_and_not_paid() {
    for replicas in [2, 3] {
        let mut world = world(&[1.01, 1.0, 1.0001, 1.0002, 0.9999]);
        world.submit(array(12, tolerant(replicas)));
        world.run_until_settled();
        assert_eq!(world.job(1).end, Some(JobEnd::Done));
        assert_eq!(world.named(), world.peers(&[1]));
        let channels = world.peer(0).channels();
        let mut paid = channels
            .iter()
            .filter(|view| view.parties.payee == world.id(1));
        assert!(paid.all(|view| view.cumulative.as_micros() == 0));
        assert!(
            world
                .peer(0)
                .standing(world.id(1))
                .unwrap()
                .left_out_until()
                .is_some()
        );
        world.assert_conserved_with(usize::from(replicas) + 1);
    }
}

#[test]
fn another_length_is_wrong_without_a_look_at_the_bytes() {
    let mut world = world(&[1.0, 1.0, 1.0]);
    let (ms, value, count) = (50, 1.0, 21);
    world.nodes[1].run = Run::Floats { ms, value, count };
    world.submit(array(6, tolerant(2)));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.named(), world.peers(&[1]));
    assert!(world.compared.is_empty());
}

#[test]
fn outputs_that_are_no_floats_are_compared_to_the_last_bit() {
    let mut world = world(&[1.0, 1.0001, 1.0, 1.0]);
    let mut verify = tolerant(2);
    verify.within.as_mut().unwrap().floats = List::truncated(vec![name("another")]);
    world.submit(array(6, verify));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.named(), world.peers(&[2]));
    assert!(world.compared.is_empty());
}

/// The first and the last are not equal to each other, but both to the one between.
#[test]
fn the_one_to_which_most_are_equal_stands_for_all() {
    let mut world = world(&[1.0, 1.0008, 1.0016]);
    world.submit(array(1, tolerant(3)));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.words(0), vec![Verification::REPLICAS_WITHIN; 3]);
    assert!(world.named().is_empty());
}

/// One that is equal to some of those that agree, and not to the one that stands for
/// them, is paid and not counted. One that is equal to none of them is wrong.
#[test]
fn what_lies_between_is_neither_counted_nor_named() {
    let mut world = world(&[0.9992, 1.0, 1.0008, 1.0016, 1.0008]);
    world.submit(array(1, tolerant(4)));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert!(world.named().is_empty());
    let mut words = world.words(0);
    words.sort();
    let within = Verification::REPLICAS_WITHIN;
    assert_eq!(
        words,
        [Verification::HASHES, within, within, within, within]
    );
    let mut world = self::world(&[0.998, 1.0, 1.0008, 1.0016, 1.0008]);
    world.submit(array(1, tolerant(4)));
    world.run_until_settled();
    assert_eq!(world.named(), world.peers(&[1]));
}

#[test]
fn where_none_is_near_another_the_job_is_at_fault_and_all_are_paid() {
    let mut world = world(&[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]);
    world.submit(array(1, tolerant(2)));
    world.run_until_settled();
    let failed = Some(JobEnd::Failed(Reason::RESULTS_DIFFER));
    assert_eq!(world.job(1).end, failed);
    assert_eq!(world.words(0), vec![Verification::UNDECIDED; 7]);
    assert!(world.named().is_empty());
    assert_eq!(world.compared.len(), 21, "each pair once");
}

#[test]
fn a_disk_that_cannot_be_read_is_nobodys_fault() {
    let mut world = world(&[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]);
    world.unreadable = true;
    world.submit(array(1, tolerant(2)));
    world.run_until_settled();
    assert!(world.named().is_empty());
    assert_eq!(world.words(0), vec![Verification::UNDECIDED; 7]);
    // Two are the same; the third can't be compared with them.
    let mut world = self::world(&[1.0, 1.1, 1.1]);
    world.unreadable = true;
    world.submit(array(1, tolerant(2)));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert!(world.named().is_empty());
    assert_eq!(world.job(1).receipts.len(), 3);
}

#[test]
fn audits_compare_within_the_tolerance() {
    let mut world = world(&[1.01, 1.0, 1.0001, 1.0002]);
    let mut order = array(40, tolerant(1));
    order.verify.audit = 1000;
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.named(), world.peers(&[1]));
    assert!(world.words(0).contains(&Verification::AUDIT_WITHIN));
    world.assert_conserved_with(3);
}

#[test]
fn trust_is_earned_by_results_that_are_near() {
    let mut world = world(&[1.0, 1.0001, 1.0002]);
    let mut order = array(120, tolerant(1));
    order.verify.adaptive = true;
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    let audits = world.executed.len() - 120;
    assert!((12..90).contains(&audits), "{audits}");
    for node in 1..=3 {
        let standing = world.peer(0).standing(world.id(node)).unwrap();
        assert!(standing.results().in_a_row.count >= 10);
    }
}

/// While results are compared nobody else is asked, and others' units go on.
#[test]
fn slow_comparisons_hold_nothing_else_up() {
    let mut world = world(&[1.0, 1.0001, 1.0002]);
    world.comparing = Duration::from_millis(700);
    world.submit(array(24, tolerant(2)));
    let mut at_once = 0;
    let done = world.run_until(Duration::from_secs(60), |world| {
        at_once = at_once.max(world.comparing_now());
        world.job(1).end.is_some()
    });
    assert!(done);
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(at_once, suanli_protocol::limits::COMPARISONS_MAX);
    assert_eq!(world.executed.len(), 48, "two runs of each");
    assert_eq!(world.compared.len(), 24);
    world.run_until_settled();
    world.assert_conserved_with(2);
}

/// The job ends before its results are compared: what was done as agreed is paid, and
/// the answer comes to nothing.
#[test]
fn an_answer_that_comes_late_changes_nothing() {
    for cancelled in [true, false] {
        let mut world = world(&[1.0, 1.01]);
        world.comparing = Duration::from_secs(20);
        let mut order = array(1, tolerant(2));
        order.total = Millis::new(10_000);
        world.submit(order);
        let comparing = |world: &World| world.comparing_now() > 0;
        assert!(world.run_until(Duration::from_secs(5), comparing));
        if cancelled {
            world.command(0, Command::Cancel(JobId::from_bytes([1; 16])));
        }
        world.pass(Duration::from_secs(30));
        let end = [JobEnd::Expired, JobEnd::Cancelled][usize::from(cancelled)];
        assert_eq!(world.job(1).end, Some(end));
        assert!(!comparing(&world), "the answer is here");
        assert!(world.named().is_empty());
        assert_eq!(world.words(0), vec![Verification::HASHES; 2]);
        world.run_until_settled();
        world.assert_conserved_with(2);
    }
}

/// The client stops and starts again at many moments, also while it compares.
#[test]
fn comparisons_begin_anew_after_the_clients_restart() {
    let mut interrupted = 0;
    for after_ms in (100..1400).step_by(97) {
        let mut world = world(&[1.01, 1.0, 1.0001, 1.0002]);
        world.comparing = Duration::from_millis(400);
        world.nodes[0].restarts_after = Some(Duration::from_millis(300));
        world.submit(array(12, tolerant(2)));
        world.pass(Duration::from_millis(after_ms));
        interrupted += usize::from(world.comparing_now() > 0);
        world.crash(0);
        world.pass(Duration::from_millis(400));
        world.run_until_settled();
        assert_eq!(world.job(1).end, Some(JobEnd::Done), "{after_ms} ms");
        let wrong = world.named();
        assert!(
            wrong.is_subset(&world.peers(&[1])),
            "{after_ms} ms: {wrong:?}"
        );
        world.assert_conserved_with(3);
    }
    assert!(interrupted >= 5, "{interrupted}");
}
