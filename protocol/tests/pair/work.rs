//! From an agreement to judged receipts.

use std::time::Duration;

use suanli_protocol::{
    deal::{UnitRange, Work},
    ids::{AgreementId, JobId},
    message::Frame,
    peer::Command,
    receipt::Verdict,
    record::{JobEnd, JobOrder, Record},
    registry::{Reason, Runtime},
    units::{Millis, Wall},
    wire::List,
};

use crate::world::{DELAY, Fate, Run, World, blob, micros, order};

fn array(number: u8, count: u32) -> JobOrder {
    let mut order = order(number);
    order.work = Work::Array {
        units: List::truncated(vec![UnitRange { first: 0, count }]),
        inputs_each: 0,
    };
    order
}

fn lease(world: &World, number: u8, seconds: u64) -> JobOrder {
    let mut order = order(number);
    order.needs.runtime = Runtime::MODEL;
    let until = Wall::from_millis(world.now(0).wall.as_millis() + seconds * 1000);
    order.work = Work::Lease {
        until,
        interval: Millis::new(1000),
    };
    order
}

#[test]
fn each_acknowledgement_may_be_lost_once() {
    type Is = fn(&Frame) -> bool;
    let kinds: [(&str, Is); 9] = [
        ("ask", |f| matches!(f, Frame::Ask(_))),
        ("quote", |f| matches!(f, Frame::Quoted(_))),
        ("agree", |f| matches!(f, Frame::Agree(..))),
        ("agreed", |f| matches!(f, Frame::Agreed(_))),
        ("receipt", |f| matches!(f, Frame::Receipt(..))),
        ("acceptance", |f| matches!(f, Frame::Acceptance(_))),
        ("voucher", |f| matches!(f, Frame::Voucher(_))),
        ("ack", |f| matches!(f, Frame::VoucherAck(_))),
        ("heads", |f| matches!(f, Frame::Heads(_))),
    ];
    for (what, is) in kinds {
        for take in [false, true] {
            let mut world = World::new(1).start(&[]);
            let mut lost = false;
            world.link = Box::new(move |sent| {
                if is(&sent.frame) && !lost {
                    lost = true;
                    return Fate::Drop;
                }
                Fate::Deliver
            });
            let mut order = order(1);
            order.take = take;
            world.submit(order);
            world.run_until_settled();
            assert_eq!(world.job(1).end, Some(JobEnd::Done), "{what}");
            assert_eq!(world.executed.len(), 1, "{what} lost: run twice");
            assert_eq!(world.job(1).spent, micros(2000), "{what}");
            world.assert_conserved();
            world.pass(Duration::from_secs(200));
            let work = world.peer(1).work();
            assert!(work.iter().all(|work| work.stage == "closed"), "{what}");
        }
    }
}

#[test]
fn abuse_01_and_02_heavy_loss_with_repeats_is_survived() {
    for seed in 0..20u64 {
        let mut world = World::new(2).start(&[]);
        let mut state = seed;
        world.link = Box::new(move |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            match (state >> 33) % 10 {
                0..=2 => Fate::Drop,
                3 => Fate::Twice,
                n => Fate::Late(DELAY * u32::try_from(n * 10).unwrap()),
            }
        });
        world.submit(order(1));
        world.submit(array(2, 3));
        world.run_until_settled();
        for number in [1, 2] {
            assert!(world.job(number).end.is_some(), "seed {seed}");
        }
        world.assert_conserved();
    }
}

/// Cancels at every moment of a job's life.
#[test]
fn a_cancelled_job_ends_whatever_it_was_doing() {
    for after_ms in (0..200).step_by(3) {
        let mut world = World::new(1).start(&[]);
        world.submit(order(1));
        world.pass(Duration::from_millis(after_ms));
        world.command(0, Command::Cancel(JobId::from_bytes([1; 16])));
        world.run_until_settled();
        let end = world.job(1).end;
        assert!(
            matches!(end, Some(JobEnd::Cancelled | JobEnd::Done)),
            "after {after_ms} ms: {end:?}"
        );
        world.pass(Duration::from_secs(20));
        assert_eq!(world.peer(1).slots_used(), 0, "after {after_ms} ms");
        world.assert_conserved();
    }
}

/// What a person was told is cancelled does not run again, whoever dies.
#[test]
fn a_cancel_on_disk_survives_both_sides() {
    for dead in [&[0][..], &[1], &[0, 1]] {
        for after_ms in (0..140).step_by(3) {
            let mut world = World::new(2).start(&[]);
            world.nodes[1].run = Run::Done { ms: 60 };
            world.submit(order(1));
            world.pass(Duration::from_millis(after_ms));
            world.command(0, Command::Cancel(JobId::from_bytes([1; 16])));
            let written = world.peer(0).last_lsn();
            let on_disk = |world: &World| {
                (world.nodes[0].disk.last()).is_some_and(|(lsn, _)| *lsn >= written)
            };
            assert!(world.run_until(Duration::from_secs(1), on_disk));
            for &node in dead {
                world.nodes[node].restarts_after = Some(Duration::from_millis(300));
                world.crash(node);
            }
            let context = format!("{dead:?} after {after_ms} ms");
            world.pass(Duration::from_millis(400));
            world.run_until_settled();
            let end = world.job(1).end;
            let done = end == Some(JobEnd::Done) && after_ms > 60;
            assert!(done || end == Some(JobEnd::Cancelled), "{context}: {end:?}");
            assert!(world.executed.len() <= 1, "{context}: it ran again");
            world.pass(Duration::from_secs(20));
            assert_eq!(world.peer(1).slots_used(), 0, "{context}");
            world.assert_conserved();
        }
    }
}

#[test]
fn a_lost_agreement_is_cancelled_at_once() {
    let mut world = World::new(1).start(&[]);
    world.link = Box::new(|sent| match sent.frame {
        Frame::Agree(..) => Fate::Drop,
        _ => Fate::Deliver,
    });
    world.submit(order(1));
    let agreed = world.run_until(Duration::from_secs(1), |world| {
        world.job(1).agreement.is_some()
    });
    assert!(agreed);
    world.command(0, Command::Cancel(JobId::from_bytes([1; 16])));
    let ended = |world: &World| world.job(1).end == Some(JobEnd::Cancelled);
    assert!(world.run_until(Duration::from_millis(500), ended));
    world.pass(Duration::from_millis(500));
    assert_eq!(world.peer(1).slots_used(), 0);
}

#[test]
fn a_cancelled_take_ends_whatever_it_was_doing() {
    for after_ms in (0..160).step_by(3) {
        let mut world = World::new(1).start(&[]);
        let mut take = order(1);
        take.take = true;
        world.submit(take);
        world.pass(Duration::from_millis(after_ms));
        world.command(0, Command::Cancel(JobId::from_bytes([1; 16])));
        world.run_until_settled();
        world.pass(Duration::from_secs(20));
        assert_eq!(world.peer(1).slots_used(), 0, "after {after_ms} ms");
        let work = world.peer(1).work();
        assert!(
            work.iter().all(|work| work.stage == "closed"),
            "after {after_ms} ms: {work:?}"
        );
        world.assert_conserved();
    }
}

#[test]
fn a_cancel_that_overtakes_the_agreement_ends_the_job() {
    let mut world = World::new(1).start(&[]);
    world.link = Box::new(|sent| match sent.frame {
        Frame::Agree(..) => Fate::Late(Duration::from_millis(40)),
        _ => Fate::Deliver,
    });
    world.submit(order(1));
    let agreed = world.run_until(Duration::from_secs(1), |world| {
        world.job(1).agreement.is_some()
    });
    assert!(agreed);
    world.command(0, Command::Cancel(JobId::from_bytes([1; 16])));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Cancelled));
    assert!(world.executed.is_empty());
}

#[test]
fn the_jobs_own_fault_ends_it_and_is_paid_as_agreed() {
    let mut world = World::new(2).start(&[]);
    world.nodes[1].run = Run::Fails(Reason::INVALID_PROGRAM);
    world.submit(order(1));
    world.run_until_settled();
    let failed = Some(JobEnd::Failed(Reason::INVALID_PROGRAM));
    assert_eq!(world.job(1).end, failed);
    assert_eq!(world.job(1).spent, micros(1100));
    assert_eq!(world.executed.len(), 1);
    world.assert_conserved();
}

#[test]
fn the_providers_fault_costs_nothing_and_the_next_best_does_it() {
    let mut world = World::new(2).start(&[]);
    world.nodes[1].run = Run::Fails(Reason::DEVICE_LOST);
    world.submit(order(1));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.job(1).provider, Some(world.id(2)));
    assert_eq!(world.job(1).spent, micros(4000));
    world.assert_conserved();
}

/// The first failure is forgiven by what was done well since, so that the next one counts
/// like a first.
#[test]
fn a_provider_that_did_well_again_is_not_left_out_longer_than_at_first() {
    let mut world = World::new(1).start(&[]);
    let failing = Run::Fails(Reason::DEVICE_LOST);
    let well = Run::Done { ms: 100 };
    for (number, run) in [(1, failing), (2, well), (3, failing)] {
        world.nodes[1].run = run;
        world.submit(order(number));
        let tried = usize::from(number);
        assert!(
            world.run_until(Duration::from_secs(1), |world| world.executed.len()
                == tried)
        );
        world.pass(Duration::from_secs(1));
        world.command(0, Command::Cancel(JobId::from_bytes([number; 16])));
        world.pass(Duration::from_secs(15));
    }
    world.nodes[1].run = well;
    world.submit(order(4));
    let again = world.run_until(Duration::from_secs(1), |world| world.executed.len() == 4);
    assert!(again, "it is left out for as long as for a second failure");
}

#[test]
fn a_hung_executor_is_its_providers_fault_and_the_job_goes_on_elsewhere() {
    let mut world = World::new(2).start(&[]);
    world.nodes[1].run = Run::Hangs;
    world.submit(order(1));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.job(1).spent, micros(4000));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.peer(1).slots_used(), 0);
}

/// Must show 4.
#[test]
fn a_provider_that_vanishes_is_replaced_and_only_one_attempt_is_paid() {
    for at_ms in (0..150).step_by(5) {
        let mut world = World::new(2).start(&[]);
        world.submit(order(1));
        world.pass(Duration::from_millis(at_ms));
        world.crash(1);
        world.run_until_settled();
        assert_eq!(world.job(1).end, Some(JobEnd::Done), "at {at_ms} ms");
        let spent = world.job(1).spent;
        assert!(spent == micros(2000) || spent == micros(4000));
        world.assert_conserved();
    }
}

#[test]
fn the_late_receipt_of_a_fenced_attempt_is_disputed_and_never_paid() {
    let mut world = World::new(2).start(&[]);
    world.nodes[1].run = Run::Done { ms: 900 };
    world.submit(order(1));
    let started = world.run_until(Duration::from_secs(1), |world| !world.executed.is_empty());
    assert!(started);
    // The first provider is cut off for a while, and works on.
    world.link = Box::new(|sent| match (sent.from, sent.to) {
        (1, _) | (_, 1) => Fate::Drop,
        _ => Fate::Deliver,
    });
    let done = world.run_until(Duration::from_secs(60), |world| world.job(1).end.is_some());
    assert!(done);
    world.link = Box::new(|_| Fate::Deliver);
    world.connect(0, 1);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.executed.len(), 2);
    assert_eq!(world.job(1).spent, micros(4000));
    let heard: Vec<Verdict> = world
        .records(1)
        .iter()
        .filter_map(|record| match record {
            Record::HeardOf(acceptance) => Some(acceptance.body().verdict),
            _ => None,
        })
        .collect();
    assert_eq!(heard, [Verdict::Disputed(Reason::SUPERSEDED)]);
    assert_eq!(world.peer(1).channels()[0].cumulative.as_micros(), 0);
    world.assert_conserved();
}

/// A provider was cut off until its client had forgotten the job: it still gets
/// a word on its receipt, and the same one whenever it asks, also after a restart.
#[test]
fn the_late_receipt_of_a_forgotten_job_is_disputed_all_the_same() {
    let mut world = World::new(2).start(&[]);
    world.nodes[1].run = Run::Done { ms: 900 };
    world.submit(order(1));
    assert!(world.run_until(Duration::from_secs(1), |world| !world.executed.is_empty()));
    world.link = Box::new(|sent| match (sent.from, sent.to) {
        (1, _) | (_, 1) => Fate::Drop,
        _ => Fate::Deliver,
    });
    assert!(world.run_until(Duration::from_secs(60), |world| world.job(1).end.is_some()));
    for number in 0..300u32 {
        let mut late = order(2);
        let mut id = [7; 16];
        id[..4].copy_from_slice(&number.to_le_bytes());
        late.job = JobId::from_bytes(id);
        // Nobody offers so little: it ends at once.
        late.budget = micros(0);
        world.submit(late);
        world.pass(Duration::from_millis(100));
    }
    world.pass(Duration::from_secs(30));
    assert!(world.peer(0).job(JobId::from_bytes([1; 16])).is_none());
    world.link = Box::new(|_| Fate::Deliver);
    world.connect(0, 1);
    world.pass(Duration::from_secs(120));
    let heard = world.records(1).iter().any(|record| {
        matches!(record, Record::HeardOf(acceptance)
            if acceptance.body().verdict == Verdict::Disputed(Reason::SUPERSEDED))
    });
    assert!(heard);
    assert_eq!(world.peer(1).channels()[0].cumulative.as_micros(), 0);
}

#[test]
fn a_job_ends_at_its_deadline_whatever_happens() {
    let mut world = World::new(2).start(&[]);
    for node in [1, 2] {
        world.nodes[node].run = Run::Hangs;
    }
    let mut order = order(1);
    order.total = Millis::new(700);
    world.submit(order);
    let before = world.now(0).wall;
    let ended = world.run_until(Duration::from_secs(2), |world| world.job(1).end.is_some());
    assert!(ended);
    assert_eq!(world.job(1).end, Some(JobEnd::Expired));
    assert!(world.now(0).wall.since(before) <= Duration::from_millis(750));
    world.pass(Duration::from_secs(60));
    assert_eq!(world.peer(1).slots_used() + world.peer(2).slots_used(), 0);
}

#[test]
fn an_array_is_done_unit_by_unit() {
    let mut world = World::new(1).start(&[]);
    let mut units = array(1, 10);
    units.budget = micros(900_000);
    world.submit(units);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.job(1).spent, micros(20_000));
    assert_eq!(world.job(1).receipts.len(), 10);
    world.assert_conserved();
}

#[test]
fn an_array_goes_on_elsewhere_with_the_units_that_are_left() {
    let mut world = World::new(2).start(&[]);
    let mut units = array(1, 10);
    units.budget = micros(900_000);
    units.parallel = 1;
    world.submit(units);
    let half = world.run_until(Duration::from_secs(5), |world| {
        world.job(1).receipts.len() == 5
    });
    assert!(half);
    world.crash(1);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    let at_second = world.executed.iter().filter(|(node, _)| *node == 2).count();
    assert_eq!(at_second, 5);
    assert_eq!(world.job(1).spent, micros(5 * 2000 + 5 * 4000));
    world.assert_conserved();
}

#[test]
fn a_lease_is_paid_by_interim_receipts() {
    let mut world = World::new(1).start(&[]);
    let order = lease(&world, 1, 10);
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.job(1).receipts.len(), 10);
    assert_eq!(world.job(1).spent, micros(10 * 100));
    world.assert_conserved();
}

#[test]
fn a_lease_ends_when_its_budget_is_used_up() {
    let mut world = World::new(1).start(&[]);
    let mut order = lease(&world, 1, 60);
    // Each second costs 100, and something must be left for the quote to fit.
    order.budget = micros(1550);
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.job(1).spent, micros(1550));
    assert!(world.job(1).declined.is_empty());
    assert!(world.peer(0).jobs()[0].attempt == 1);
    let disputed = world
        .records(0)
        .iter()
        .any(|record| matches!(record, Record::Judged { acceptance, .. } if acceptance.body().verdict != Verdict::Accepted));
    assert!(
        !disputed,
        "an honest provider's last receipts were disputed"
    );
    world.assert_conserved();
}

#[test]
fn abuse_48_a_client_that_vanishes_gets_no_more_on_credit() {
    let mut world = World::new(1).start(&[]);
    let order = lease(&world, 1, 100);
    world.submit(order);
    world.pass(Duration::from_millis(4500));
    world.crash(0);
    world.pass(Duration::from_secs(20));
    let view = &world.peer(1).channels()[0];
    assert!(view.pending.as_micros() <= 400, "{view:?}");
    assert_eq!(world.peer(1).slots_used(), 0);
}

#[test]
fn a_client_that_disputes_every_part_gets_no_more() {
    let mut world = World::new(2).start(&[]);
    let order = lease(&world, 1, 100);
    world.submit(order);
    world.pass(Duration::from_millis(2500));
    world.command(0, Command::Cancel(JobId::from_bytes([1; 16])));
    world.run_until_settled();
    world.pass(Duration::from_secs(10));
    assert_eq!(world.peer(1).slots_used(), 0);
    world.assert_conserved();
}

/// Whether the blob is there makes no difference to the answer.
#[test]
fn abuse_78_a_stranger_may_read_nothing() {
    let mut world = World::new(1);
    let stranger = world.add(None);
    let mut world = world.start(&[]);
    world.submit(order(1));
    let running = world.run_until(Duration::from_secs(1), |world| !world.executed.is_empty());
    assert!(running);
    let agreement = world.job(1).agreement.unwrap();
    let (client, provider, stranger) = (world.id(0), world.id(1), world.id(stranger));
    let now = world.now(0).wall;
    let (input, unknown) = (blob(b"input").blob, blob(b"never").blob);
    assert!(world.peer(0).may_read(now, provider, agreement, input));
    for reader in [stranger, client, provider] {
        assert!(!world.peer(0).may_read(now, reader, agreement, unknown));
        let other = AgreementId(unknown.0);
        assert!(!world.peer(0).may_read(now, reader, other, input));
    }
    assert!(!world.peer(0).may_read(now, stranger, agreement, input));
    world.run_until_settled();
    let result = blob(b"result of 0").blob;
    assert!(world.peer(1).may_read(now, client, agreement, result));
    assert!(!world.peer(1).may_read(now, stranger, agreement, result));
    assert!(!world.peer(1).may_read(now, client, agreement, input));
    // Once the job is over, its provider reads no more.
    assert!(!world.peer(0).may_read(now, provider, agreement, input));
}

#[test]
fn slots_that_are_taken_away_break_no_agreement() {
    let mut world = World::new(1).start(&[]);
    for number in 1..=3 {
        world.submit(order(number));
    }
    let running = world.run_until(Duration::from_secs(1), |world| world.executed.len() == 3);
    assert!(running);
    let mut fewer = world.provider(1);
    fewer.offer.slots = 1;
    world.nodes[1].config.provider = Some(fewer.clone());
    world.command(1, Command::Provide(Box::new(fewer)));
    world.nodes[1].restarts_after = Some(Duration::from_secs(1));
    world.crash(1);
    world.submit(order(4));
    world.run_until_settled();
    for number in 1..=4 {
        assert_eq!(world.job(number).end, Some(JobEnd::Done));
    }
    world.assert_conserved();
}

#[test]
fn a_lease_goes_on_after_either_side_restarts() {
    for node in [0, 1] {
        let mut world = World::new(1).start(&[]);
        let order = lease(&world, 1, 20);
        world.submit(order);
        world.pass(Duration::from_millis(4500));
        world.nodes[node].restarts_after = Some(Duration::from_millis(300));
        world.crash(node);
        world.run_until(Duration::from_secs(1), |world| {
            world.nodes[node].peer.is_some()
        });
        world.run_until_settled();
        assert_eq!(world.job(1).end, Some(JobEnd::Done), "node {node}");
        let parts = world.job(1).receipts.len();
        assert!((18..=20).contains(&parts), "node {node}: {parts} parts");
        world.assert_conserved();
    }
}

#[test]
fn abandoned_work_costs_nothing_and_is_done_elsewhere() {
    let mut world = World::new(2).start(&[]);
    for provider in [1, 2] {
        world.nodes[provider].run = Run::Hangs;
    }
    world.submit(order(1));
    assert!(world.run_until(Duration::from_secs(5), |world| !world.executed.is_empty()));
    let first = world.executed[0].0;
    world.nodes[3 - first].run = Run::Done { ms: 10 };
    world.command(first, Command::Withdraw);
    world.command(first, Command::Abandon);
    assert_eq!(world.peer(first).slots_used(), 0);
    world.run_until_settled();
    let job = world.job(1);
    assert_eq!(job.end, Some(JobEnd::Done));
    assert_eq!(job.provider, Some(world.id(3 - first)));
    let of_first = world.records(first).into_iter();
    let amounts = of_first.filter_map(|record| match record {
        Record::Receipted(receipt) => Some(receipt.body().amount),
        _ => None,
    });
    assert_eq!(amounts.collect::<Vec<_>>(), [micros(0)]);
    world.assert_conserved();
}
