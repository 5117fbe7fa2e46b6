//! Nodes that die between any two outputs, and rise from what was on disk.

use std::time::Duration;

use suanli_protocol::{
    deal::{UnitRange, Work},
    record::{JobEnd, JobOrder},
    wire::List,
};

use crate::world::{World, micros, order};

fn orders() -> [(&'static str, JobOrder); 3] {
    let mut take = order(1);
    take.take = true;
    let mut array = order(1);
    array.work = Work::Array {
        units: List::truncated(vec![UnitRange { first: 0, count: 3 }]),
        inputs_each: 0,
    };
    [("job", order(1)), ("take", take), ("array", array)]
}

/// Outputs that a node carries out in an undisturbed run.
fn outputs_of(node: usize, order: &JobOrder) -> (u64, u64) {
    let mut world = World::new(2).start(&[]);
    let before = world.nodes[node].outputs;
    world.submit(order.clone());
    world.run_until_settled();
    (before, world.nodes[node].outputs)
}

fn dies_after_each_output(node: usize) {
    for (what, order) in orders() {
        let (first, last) = outputs_of(node, &order);
        for n in first..=last {
            for keeps_unsynced in [false, true] {
                let mut world = World::new(2).start(&[]);
                world.nodes[node].crash_after = Some(n);
                world.nodes[node].keeps_unsynced = keeps_unsynced;
                world.nodes[node].restarts_after = Some(Duration::from_millis(500));
                world.submit(order.clone());
                // What was not yet written when its client died was never taken.
                world.pass(Duration::from_millis(600));
                let context = format!("{what}: node {node} dies after {n}, {keeps_unsynced}");
                // Both alive: one that is down says nothing of what it holds.
                let settled = world.run_until(Duration::from_secs(300), |world| {
                    world.nodes[node].peer.is_some() && world.is_settled()
                });
                assert!(settled, "{context}: not settled");
                for job in world.peer(0).jobs() {
                    assert_eq!(job.end, Some(JobEnd::Done), "{context}");
                }
                let spent = world.peer(0).accepted_total().as_micros();
                assert!(spent <= 3 * 4000, "{context}: {spent}");
                world.pass(Duration::from_millis(20));
                assert!(world.has_all_results(), "{context}: a result is lost");
                world.assert_conserved();
            }
        }
    }
}

#[test]
fn a_client_that_dies_after_any_output_loses_and_repeats_nothing() {
    dies_after_each_output(0);
}

#[test]
fn a_provider_that_dies_after_any_output_loses_and_repeats_nothing() {
    dies_after_each_output(1);
}

#[test]
fn a_provider_that_restarts_quickly_finishes_what_it_began() {
    let mut world = World::new(1).start(&[]);
    world.submit(order(1));
    world.run_until(Duration::from_secs(1), |world| !world.executed.is_empty());
    world.nodes[1].restarts_after = Some(Duration::from_secs(1));
    world.crash(1);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.job(1).attempt, 1);
    assert_eq!(world.job(1).spent, micros(2000));
    world.assert_conserved();
}

#[test]
fn a_client_that_restarts_waits_for_its_book_before_it_despairs() {
    let mut world = World::new(1).start(&[]);
    world.link = Box::new(|sent| match sent.frame {
        suanli_protocol::message::Frame::Ask(_) => crate::world::Fate::Drop,
        _ => crate::world::Fate::Deliver,
    });
    world.submit(order(1));
    world.pass(Duration::from_millis(3500));
    world.nodes[0].restarts_after = Some(Duration::from_secs(5));
    world.crash(0);
    world.link = Box::new(|_| crate::world::Fate::Deliver);
    world.pass(Duration::from_secs(6));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
}
