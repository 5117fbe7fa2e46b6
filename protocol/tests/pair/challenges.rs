//! Challenges between peers: who may give them, what they show, what a lie costs.

use std::time::Duration;

use suanli_protocol::{
    challenge::{Challenge, Wrong},
    limits::CHALLENGES_PER_PEER,
    message::Frame,
    offer::Speed,
    peer::{Command, Event, Unanswered},
    record::Record,
    registry::{Reason, SpeedKind},
    standing::Outcome,
    units::{Millis, Wall},
    wire::List,
};

use crate::world::{Fate, Run, Solver, World, order};

impl World {
    /// Has the client challenge provider 1; what that came to.
    fn challenged(&mut self) -> Result<(Outcome, Option<Wrong>), Unanswered> {
        let before = self.ends().len();
        let provider = self.id(1);
        self.command(0, Command::Challenge(provider));
        assert!(self.run_until(Duration::from_secs(60), |world| world.ends().len() > before));
        self.ends().pop().unwrap()
    }

    fn ends(&self) -> Vec<Result<(Outcome, Option<Wrong>), Unanswered>> {
        let ends = self.events.iter().filter_map(|(_, event)| match event {
            Event::Challenged { event, .. } => Some(event.clone()),
            _ => None,
        });
        ends.collect()
    }
}

/// A client and a provider that claims so much in products.
fn world(claimed: u64) -> World {
    let mut world = World::new(1);
    let device = &mut world.offer_of(1).devices.to_vec()[0].clone();
    let mut speeds = device.speeds.to_vec();
    speeds.push(Speed {
        kind: SpeedKind::MATMUL,
        per_second: claimed,
        measured: Wall::from_millis(0),
    });
    device.speeds = List::truncated(speeds);
    world.offer_of(1).devices = List::truncated(vec![device.clone()]);
    world.start(&[])
}

/// Operations per second; its challenge takes 400 ms.
const CLAIMED: u64 = 1_000_000_000;

#[test]
fn an_honest_provider_keeps_its_word_and_it_is_remembered() {
    let mut world = world(CLAIMED);
    world.nodes[1].solver = Solver::Honest { ms: 400 };
    let (outcome, wrong) = world.challenged().unwrap();
    assert_eq!((outcome.right, wrong), (true, None));
    assert!(outcome.is_kept(), "{outcome:?}");
    assert!(
        (90..=100).contains(&outcome.percent()),
        "the way counts: {outcome:?}"
    );
    let provider = world.id(1);
    let record = Record::Challenged(outcome.clone());
    assert!(world.records(0).contains(&record));
    world.crash(0);
    world.boot(0);
    let standing = world.peer(0).standing(provider).unwrap();
    assert_eq!(standing.challenge(), Some(&outcome));
    assert_eq!(standing.believed(), Some(100));
}

#[test]
fn what_is_lost_once_is_asked_for_again() {
    type Is = fn(&Frame) -> bool;
    let kinds: [Is; 4] = [
        |f| matches!(f, Frame::Challenge(..)),
        |f| matches!(f, Frame::Committed(..)),
        |f| matches!(f, Frame::OpenCommitment(..)),
        |f| matches!(f, Frame::Opened(..)),
    ];
    for is in kinds {
        let mut world = world(1);
        world.nodes[1].solver = Solver::Zeros;
        let mut lost = false;
        world.link = Box::new(move |sent| {
            let drop = is(&sent.frame) && !lost;
            lost |= drop;
            if drop { Fate::Drop } else { Fate::Twice }
        });
        let (outcome, wrong) = world.challenged().unwrap();
        assert!(!outcome.right && wrong.is_some());
        let computed = world.count_sent(|frame| matches!(frame, Frame::Challenge(..)));
        assert!(computed >= 1);
    }
}

#[test]
fn a_lie_is_found_out_and_costs_the_provider_its_work() {
    let mut world = world(1_000_000_000);
    let provider = world.id(1);
    assert_eq!(
        world
            .peer(0)
            .plan(&order(1), world.now(0).wall)
            .candidates
            .len(),
        1
    );
    world.nodes[1].solver = Solver::Zeros;
    let (outcome, wrong) = world.challenged().unwrap();
    assert!(
        matches!(wrong, Some(Wrong::Sum(_) | Wrong::Product(_))),
        "{wrong:?}"
    );
    assert_eq!((outcome.right, outcome.shown), (false, 0));
    let plan = world.peer(0).plan(&order(1), world.now(0).wall);
    assert_eq!(plan.misfits[0].peer, provider);
    assert_eq!(plan.misfits[0].decline.reason, Reason::FAILED_CHALLENGE);
    // A right answer clears it.
    world.nodes[1].solver = Solver::Honest { ms: 1 };
    assert!(world.challenged().unwrap().0.right);
    assert_eq!(
        world
            .peer(0)
            .plan(&order(1), world.now(0).wall)
            .candidates
            .len(),
        1
    );
}

#[test]
fn a_slow_provider_is_believed_what_it_showed() {
    let mut world = world(CLAIMED);
    world.nodes[1].solver = Solver::Honest { ms: 3_990 };
    let (outcome, _) = world.challenged().unwrap();
    assert!(outcome.right && !outcome.is_kept());
    assert!((9..=10).contains(&outcome.percent()), "{outcome:?}");
    let plan = world.peer(0).plan(&order(1), world.now(0).wall);
    assert_eq!(plan.candidates[0].believed, outcome.percent());
}

#[test]
fn silence_and_refusal_are_no_lies() {
    let mut world = world(1);
    let provider = world.id(1);
    world.nodes[1].solver = Solver::Broken;
    let refused = world.challenged().unwrap_err();
    assert!(matches!(refused, Unanswered::Declined(no) if no.reason == Reason::PROVIDER_FAULT));
    world.link = Box::new(|sent| match sent.frame {
        Frame::Challenge(..) => Fate::Drop,
        _ => Fate::Deliver,
    });
    assert_eq!(world.challenged().unwrap_err(), Unanswered::Silent);
    assert!(world.peer(0).standing(provider).is_none());
    let me = world.id(0);
    world.command(0, Command::Challenge(me));
    assert_eq!(world.ends().pop().unwrap().unwrap_err(), Unanswered::Own);
}

#[test]
fn challenges_are_bounded_and_take_a_slot() {
    let mut world = world(1);
    world.nodes[1].solver = Solver::Zeros;
    for _ in 0..CHALLENGES_PER_PEER {
        world.challenged().unwrap();
    }
    let refused = world.challenged().unwrap_err();
    assert!(matches!(refused, Unanswered::Declined(no) if no.reason == Reason::CHALLENGED_ENOUGH));
    world.pass(Duration::from_secs(3601));
    world.nodes[1].solver = Solver::Honest { ms: 500 };
    let provider = world.id(1);
    world.command(0, Command::Challenge(provider));
    let computing = |world: &World| world.peer(1).slots_used() == 1;
    assert!(world.run_until(Duration::from_secs(1), computing));
    assert!(
        world.run_until(Duration::from_secs(10), |world| world.peer(1).slots_used()
            == 0)
    );
}

#[test]
fn what_a_provider_never_claimed_is_not_computed() {
    let mut world = world(1);
    let oversized = Challenge {
        rows: 4096,
        depth: 64,
        columns: 4096,
        seed: [9; 16],
    };
    let none = Challenge {
        rows: 0,
        ..oversized
    };
    for (device, challenge, reason) in [
        (0, oversized, Reason::TOO_LARGE),
        (0, none, Reason::TOO_LARGE),
        (7, oversized, Reason::NO_DEVICE),
    ] {
        world.say(0, 1, Frame::Challenge(device, challenge));
        world.pass(Duration::from_millis(50));
        let declined = world.sent.iter().rev().find_map(|sent| match &sent.frame {
            Frame::ChallengeDeclined(_, decline) => Some(decline.reason),
            _ => None,
        });
        assert_eq!(declined, Some(reason));
    }
}

#[test]
fn abuse_82_who_is_quick_only_when_challenged_is_found_out_by_real_work() {
    let mut world = world(CLAIMED);
    world.nodes[1].solver = Solver::Honest { ms: 400 };
    assert!(world.challenged().unwrap().0.is_kept());
    // A tenth of the operations per second that its offer claims for jobs.
    world.nodes[1].run = Run::Done { ms: 990 };
    for number in 1..=3 {
        let mut order = order(number);
        order.flops = 100_000_000;
        order.needs.run_max = Millis::new(5000);
        world.submit(order);
        world.run_until_settled();
    }
    let provider = world.id(1);
    let standing = world.peer(0).standing(provider).unwrap();
    let (rate, count) = standing.work().unwrap();
    assert_eq!(count, 3);
    assert!((8..=10).contains(&rate), "{rate}%");
    assert_eq!(standing.believed(), Some(rate), "real work counts more");
    let plan = world.peer(0).plan(&order(4), world.now(0).wall);
    assert_eq!(plan.candidates[0].believed, rate);
}
