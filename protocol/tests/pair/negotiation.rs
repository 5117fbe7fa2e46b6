//! From a request to an agreement, or to a no.

use std::{cell::Cell, collections::BTreeSet, rc::Rc, time::Duration};

use suanli_protocol::{
    delegation::Delegation,
    envelope::Extensions,
    expression::{Comparison, Expression, Field, Number, Scope, Term, Type, Unit, Word},
    ids::JobId,
    message::{Frame, Message},
    offer::Speed,
    peer::{Command, Event, ExecutionOrder, JobEvent},
    rank::{self, PLAN_MAX, Policy, View, Want},
    receipt::Verdict,
    record::{JobEnd, JobOrder, Record},
    registry::{DeviceKind, Feature, Reason, Runtime},
    units::{Meter, Millis, Price, Wall},
    wire::{List, Text},
};

use crate::{
    puppet::{Client, Provider},
    world::{Fate, Run, World, account_signer, micros, order, sell_fuel, wasm_order},
};

#[test]
fn a_job_is_done_and_paid_at_the_quoted_prices() {
    let mut world = World::new(1).start(&[]);
    world.submit(order(1));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    // A job and 100 ms: 1000 + 100 · 10.
    assert_eq!(world.job(1).spent, micros(2000));
    assert_eq!(world.executed.len(), 1);
    world.assert_conserved();
    assert!(world.blamed.is_empty(), "{:?}", world.blamed);
}

#[test]
fn the_cheapest_of_three_is_taken_and_the_other_holds_are_released() {
    let mut world = World::new(3).start(&[]);
    world.submit(order(1));
    world.run_until_settled();
    assert_eq!(world.job(1).provider, Some(world.id(1)));
    assert_eq!(world.peer(2).holds() + world.peer(3).holds(), 0);
}

#[test]
fn a_decline_ends_the_job_with_the_providers_reason() {
    let mut world = World::new(1);
    let client = world.nodes[0].config.account;
    world.config_of(1).blocked.insert(client);
    world.config_of(1).offer.terms.strangers = false;
    let mut world = world.start(&[]);
    world.submit(order(1));
    world.run_until_settled();
    let end = world.job(1).end;
    assert_eq!(end, Some(JobEnd::Declined(Reason::NOT_ALLOWED)));
    assert_eq!(world.job(1).declined[0].1.reason, Reason::NOT_ALLOWED);
}

/// The cheapest lacks what the job needs, and is not asked.
#[test]
fn only_who_offers_a_jobs_features_is_asked() {
    let mut world = World::new(2);
    let mut device = world.config_of(2).offer.devices[0].clone();
    let mut able = device.runtimes.to_vec();
    able[0].features = List::truncated(vec![Feature::F16, Feature::TIMESTAMPS]);
    device.runtimes = List::truncated(able);
    world.config_of(2).offer.devices = List::truncated(vec![device]);
    let mut world = world.start(&[]);
    let mut half = order(1);
    half.needs.features = List::truncated(vec![Feature::F16]);
    world.submit(half);
    world.run_until_settled();
    assert_eq!(world.job(1).provider, Some(world.id(2)));
    let mut more = order(2);
    more.needs.features = List::truncated(vec![Feature::F16, Feature::SUBGROUPS]);
    world.submit(more);
    world.run_until_settled();
    let end = world.job(2).end;
    assert_eq!(end, Some(JobEnd::Declined(Reason::NO_OFFER)));
}

/// The fast device, then the slow one, then none; what only one can do waits for it.
#[test]
fn each_device_runs_what_it_has_slots_for() {
    let mut world = World::new(1);
    let mut slow = world.offer_of(1).devices[0].clone();
    slow.slots = 1;
    let mut fast = slow.clone();
    fast.memory_bytes = 2 << 30;
    fast.speeds = List::truncated(vec![Speed {
        per_second: 2 * slow.speeds[0].per_second,
        ..slow.speeds[0]
    }]);
    world.offer_of(1).devices = List::truncated(vec![slow, fast]);
    world.offer_of(1).slots = 4;
    world.nodes[1].run = Run::Done { ms: 5000 };
    let mut world = world.start(&[]);
    let runs = |count| move |world: &World| world.executed.len() == count;
    let mut large = order(1);
    large.needs.memory_bytes = 2 << 30;
    world.submit(large.clone());
    assert!(world.run_until(Duration::from_secs(1), runs(1)));
    world.submit(order(2));
    assert!(world.run_until(Duration::from_secs(1), runs(2)));
    let devices: Vec<_> = world.executed.iter().map(|(_, run)| run.device).collect();
    assert_eq!(devices, [1, 0]);
    for number in 3..5 {
        let mut next = if number == 3 { large.clone() } else { order(4) };
        next.job = order(number).job;
        world.submit(next);
    }
    let busy = |sent: &Frame| matches!(sent, Frame::Declined(_, no) if no.reason == Reason::BUSY);
    assert!(world.run_until(Duration::from_secs(1), |world| world.count_sent(busy) >= 2));
    assert_eq!(world.executed.len(), 2);
    world.run_until_settled();
    for number in [1, 2] {
        assert_eq!(world.job(number).end, Some(JobEnd::Done));
    }
}

fn condition(terms: Vec<Term>, scope: Scope) -> Option<Expression> {
    Some(Expression::new(terms, scope, Type::Bool).unwrap())
}

fn text(text: &str) -> Term {
    Term::Text(Word::lossy(text))
}

/// The slower of two devices is all that the condition allows, and all that is asked for.
#[test]
fn a_jobs_condition_chooses_provider_and_device() {
    let mut world = World::new(2);
    let slow = world.offer_of(2).devices[0].clone();
    let mut fast = slow.clone();
    fast.model = Text::lossy("fast");
    fast.speeds = List::truncated(vec![Speed {
        per_second: 2 * slow.speeds[0].per_second,
        ..slow.speeds[0]
    }]);
    world.offer_of(2).devices = List::truncated(vec![fast, slow]);
    world.offer_of(2).region = Text::lossy("CN-GZ");
    let mut world = world.start(&[]);
    let mut picky = order(1);
    let equal = || Term::Compare(Comparison::Equal);
    let (region, model) = (Term::Field(Field::REGION), Term::Field(Field::DEVICE_MODEL));
    let wanted = vec![
        region,
        text("CN-GZ"),
        equal(),
        model,
        text("model"),
        equal(),
        Term::And,
    ];
    picky.condition = condition(wanted, Scope::Offer);
    let plan = world.peer(0).plan(&picky, world.now(0).wall);
    assert_eq!(*plan.candidates[0].devices, [1]);
    let [misfit] = &*plan.misfits else {
        panic!("{plan:?}");
    };
    assert_eq!(misfit.decline.reason, Reason::CONDITION);
    let why = misfit.why.as_deref().unwrap();
    assert_eq!(why, "region == \"CN-GZ\": region is \"CN-NX\"");
    world.submit(picky.clone());
    world.run_until_settled();
    assert_eq!(world.job(1).provider, Some(world.id(2)));
    assert_eq!(world.executed[0].1.device, 1);

    // The best by the job's own rank, though it costs more.
    let mut ranked = order(2);
    ranked.rank = Some(
        Expression::new(
            vec![Term::Field(Field::DEVICE_FP32)],
            Scope::Offer,
            Type::Number(Unit::Plain),
        )
        .unwrap(),
    );
    world.submit(ranked);
    world.run_until_settled();
    assert_eq!(world.job(2).provider, Some(world.id(2)));
    assert_eq!(world.executed[1].1.device, 0);

    picky.job = order(3).job;
    picky.condition = condition(vec![Term::Field(Field::FIRM), Term::Not], Scope::Offer);
    world.submit(picky);
    world.run_until_settled();
    assert_eq!(world.job(3).end, Some(JobEnd::Declined(Reason::NO_OFFER)));
}

/// A plan names the best and the first, and counts the rest.
#[test]
fn a_plan_of_many_offers_is_bounded() {
    let world = World::new(1).start(&[]);
    let mine = order(1);
    let unmet = condition(vec![Term::Field(Field::FIRM), Term::Not], Scope::Offer);
    let offer = world.peer(0).book().of(world.id(1)).unwrap();
    let planned = |condition: Option<&Expression>| {
        let want = Want {
            needs: &mine.needs,
            work: &mine.work,
            budget: mine.budget,
            regions: &[],
            flops: None,
            policy: Policy::Cheapest,
            condition,
            rank: None,
            account: account_signer(0).public().account(),
            home: "",
            within: None,
            is_begun: false,
            inputs_bytes: 0,
            traffic: micros(0),
        };
        rank::rank(std::iter::repeat_n(offer, 250), &want, |_| {
            Ok(View::UNKNOWN)
        })
    };
    let plan = planned(None);
    assert_eq!((plan.candidates.len(), plan.fitting), (PLAN_MAX, 250));
    assert_eq!((plan.misfits.len(), plan.unfit), (0, 0));
    let plan = planned(unmet.as_ref());
    assert_eq!((plan.misfits.len(), plan.unfit), (PLAN_MAX, 250));
    assert_eq!((plan.candidates.len(), plan.fitting), (0, 0));
    assert!(plan.misfits.iter().all(|misfit| misfit.why.is_some()));
}

/// What a client can know is judged before it asks; the rest by the provider.
#[test]
fn a_providers_condition_is_judged_on_both_sides() {
    let mut world = World::new(1);
    let small = vec![
        Term::Field(Field::JOB_MEMORY),
        Term::Number(Number::whole(1 << 20), Unit::Bytes),
        Term::Compare(Comparison::LessOrEqual),
    ];
    let known = [small, vec![Term::Field(Field::CLIENT_KNOWN), Term::And]].concat();
    world.offer_of(1).accept = condition(known, Scope::Job);
    let stranger = world.add(None);
    let mut world = world.start(&[]);
    let asked = |world: &World| world.count_sent(|sent| matches!(sent, Frame::Ask(_)));
    world.submit(order(1));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    let before = asked(&world);
    let mut large = order(2);
    large.needs.memory_bytes = 2 << 20;
    let plan = world.peer(0).plan(&large, world.now(0).wall);
    assert_eq!(plan.misfits[0].decline.reason, Reason::NOT_ACCEPTED);
    world.submit(large);
    world.run_until_settled();
    assert_eq!(world.job(2).end, Some(JobEnd::Declined(Reason::NO_OFFER)));
    assert_eq!(asked(&world), before);
    // That it is not known only the provider can say.
    world.submit_at(stranger, order(3));
    world.pass(Duration::from_secs(1));
    assert!(asked(&world) > before);
    let no =
        |sent: &Frame| matches!(sent, Frame::Declined(_, no) if no.reason == Reason::NOT_ACCEPTED);
    assert!(world.count_sent(no) > 0);
    assert_eq!(world.executed.len(), 1);
}

/// As in docs/configuration.md: at night only.
#[test]
fn a_provider_that_accepts_by_the_hour_declines_at_noon_and_quotes_at_night() {
    let at = |how, hour| {
        vec![
            Term::Field(Field::HOUR),
            Term::Number(Number::whole(hour), Unit::Plain),
            Term::Compare(how),
        ]
    };
    let late = at(Comparison::GreaterOrEqual, 20);
    let night = [late, at(Comparison::Less, 8), vec![Term::Or]].concat();
    // The worlds begin at eight.
    for (hours_later, hour, quotes) in [
        (0, 8, false),
        (4, 12, false),
        (11, 19, false),
        (12, 20, true),
        (16, 0, true),
        (23, 7, true),
    ] {
        let mut world = World::new(1);
        world.offer_of(1).accept = condition(night.clone(), Scope::Job);
        let client = world.add(None);
        for node in &mut world.nodes {
            node.skew_ms = hours_later * 3_600_000;
        }
        let mut world = world.start(&[client]);
        assert_eq!(world.now(1).wall.as_millis() / 3_600_000 % 24, hour);
        // What hour it is there the provider says: its client does not leave it out.
        let plan = world.peer(0).plan(&order(1), world.now(0).wall);
        assert_eq!((plan.fitting, plan.unfit), (1, 0));
        let said = Client::new(client, 1).ask_for(&mut world, order(1));
        let said = said.map(|_| ());
        let wanted = if quotes {
            Ok(())
        } else {
            Err(Reason::NOT_ACCEPTED)
        };
        assert_eq!(said, wanted, "at {hour}");
    }
}

/// As in docs/configuration.md: only these clients, up to this price.
#[test]
fn a_provider_that_accepts_named_clients_declines_others_and_what_is_too_large() {
    let mut world = World::new(1);
    let friend = world.add(None);
    let stranger = world.add(None);
    let account = account_signer(friend).public().account();
    let named = vec![
        Term::Field(Field::CLIENT),
        Term::Text(Word::new(format!("{account:#}")).unwrap()),
        Term::Compare(Comparison::Equal),
        Term::Field(Field::JOB_BUDGET),
        Term::Number(Number::millionths(50_000), Unit::Money),
        Term::Compare(Comparison::LessOrEqual),
        Term::And,
    ];
    world.offer_of(1).accept = condition(named, Scope::Job);
    let mut world = world.start(&[friend, stranger]);
    let mut small = order(1);
    small.budget = micros(50_000);
    let mut ask = |client, order| {
        let said = Client::new(client, 1).ask_for(&mut world, order);
        said.map(|_| ())
    };
    assert_eq!(ask(friend, small.clone()), Ok(()));
    assert_eq!(ask(friend, order(2)), Err(Reason::NOT_ACCEPTED));
    assert_eq!(ask(stranger, small), Err(Reason::NOT_ACCEPTED));
    // Whose account it is its node knows, and does not ask.
    let plan = world.peer(0).plan(&order(3), world.now(0).wall);
    assert_eq!(plan.misfits[0].decline.reason, Reason::NOT_ACCEPTED);
}

/// A module needs no device that shaders are for, however much memory that has.
#[test]
fn a_device_without_the_jobs_runtime_does_not_run_it() {
    let mut world = World::new(1);
    let shaders = world.offer_of(1).devices[0].clone();
    sell_fuel(world.offer_of(1), 1);
    let mut modules = world.offer_of(1).devices[0].clone();
    modules.runtimes = List::truncated(modules.runtimes.to_vec().split_off(2));
    modules.kind = DeviceKind::CPU;
    world.offer_of(1).devices = List::truncated(vec![shaders, modules]);
    let mut world = world.start(&[]);
    world.submit(wasm_order(1, 100));
    world.submit(order(2));
    world.run_until_settled();
    let of = |number| {
        let is_it = |(_, run): &&(usize, ExecutionOrder)| run.runtime == number;
        world.executed.iter().find(is_it).unwrap().1.device
    };
    assert_eq!((of(Runtime::WASM), of(Runtime::WGSL)), (1, 0));
    let mut on_shaders = wasm_order(3, 100);
    on_shaders.needs.device = Some(DeviceKind::GPU);
    world.submit(on_shaders);
    world.run_until_settled();
    assert_eq!(world.job(3).end, Some(JobEnd::Declined(Reason::NO_OFFER)));
}

#[test]
fn a_counter_offer_within_bounds_is_taken() {
    let mut world = World::new(1).start(&[]);
    let mut cheaper = order(1);
    cheaper.counter_percent = 10;
    world.submit(cheaper);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.job(1).spent, micros(1800));
    assert_eq!(world.peer(1).holds(), 0);
    world.assert_conserved();
}

#[test]
fn a_refused_counter_offer_leaves_the_first_quote_standing() {
    let mut world = World::new(1).start(&[]);
    let mut too_cheap = order(1);
    too_cheap.counter_percent = 50;
    world.submit(too_cheap);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.job(1).spent, micros(2000));
    assert_eq!(world.job(1).attempt, 1);
}

#[test]
fn abuse_75_a_firm_offer_taken_by_many_is_sold_once() {
    let mut world = World::new(1);
    world.offer_of(1).slots = 1;
    for _ in 0..3 {
        world.add(None);
    }
    world.nodes[1].run = Run::Done { ms: 900 };
    let mut world = world.start(&[]);
    for (client, number) in [(0, 1), (2, 2), (3, 3), (4, 4)] {
        let mut take = order(number);
        take.take = true;
        take.total = Millis::new(900);
        world.submit_at(client, take);
    }
    world.pass(Duration::from_millis(500));
    assert_eq!(world.executed.len(), 1);
    assert_eq!(world.peer(1).work().len(), 1);
    let busy = |sent: &Frame| matches!(sent, Frame::Declined(_, no) if no.reason == Reason::BUSY);
    assert!(world.count_sent(busy) >= 3);
}

#[test]
fn a_firm_offer_is_one_round_trip() {
    let mut world = World::new(1).start(&[]);
    let mut take = order(1);
    take.take = true;
    world.submit(take);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(
        world.count_sent(|frame| matches!(frame, Frame::Agree(..))),
        0
    );
    world.assert_conserved();
}

#[test]
fn a_receipt_that_overtakes_its_countersignature_is_kept() {
    let mut world = World::new(1).start(&[]);
    let mut take = order(1);
    take.take = true;
    let again = JobOrder {
        job: order(2).job,
        ..take.clone()
    };
    // The first fetches what both need, though it asks too early at first.
    world.link = Box::new(|sent| match sent.frame {
        Frame::Quoted(_) => Fate::Late(Duration::from_millis(700)),
        _ => Fate::Deliver,
    });
    for (number, order) in [(1, take), (2, again)] {
        world.submit(order);
        world.run_until_settled();
        assert_eq!(world.job(number).end, Some(JobEnd::Done));
        assert_eq!(world.job(number).attempt, 1);
    }
    // Nobody had to say it again.
    let receipts = world.count_sent(|frame| matches!(frame, Frame::Receipt(..)));
    assert_eq!(receipts, 2);
    world.assert_conserved();
}

#[test]
fn a_late_countersignature_is_fenced_and_never_paid() {
    let mut world = World::new(2).start(&[]);
    world.link = Box::new(|sent| match sent.frame {
        Frame::Quoted(_) if sent.from == 1 => Fate::Late(Duration::from_secs(9)),
        _ => Fate::Deliver,
    });
    world.nodes[1].run = Run::Hangs;
    let mut take = order(1);
    take.take = true;
    world.submit(take);
    world.run_until_settled();
    world.pass(Duration::from_secs(60));
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.job(1).provider, Some(world.id(2)));
    world.assert_conserved();
    // Whatever the first one ran was stopped, and its receipt answered.
    assert!(
        world
            .peer(1)
            .work()
            .iter()
            .all(|work| work.stage == "closed")
    );
}

#[test]
fn an_expired_hold_frees_its_slot_and_the_job_asks_again() {
    let mut world = World::new(1).start(&[]);
    let lost = Rc::new(Cell::new(0));
    let counter = lost.clone();
    world.link = Box::new(move |sent| match sent.frame {
        Frame::Agree(..) if counter.get() < 20 => {
            counter.set(counter.get() + 1);
            Fate::Drop
        }
        _ => Fate::Deliver,
    });
    world.submit(order(1));
    let freed = world.run_until(Duration::from_secs(8), |world| {
        world.peer(0).jobs()[0].agreement.is_some() && world.peer(1).holds() == 0
    });
    assert!(freed, "the hold is kept for ever");
    world.run_until_settled();
    assert!(matches!(
        world.job(1).end,
        Some(JobEnd::Done | JobEnd::Expired)
    ));
    world.assert_conserved();
}

#[test]
fn abuse_73_hold_flooding_leaves_room_for_a_known_client() {
    let mut world = World::new(1);
    for _ in 0..20 {
        world.add(None);
    }
    let mut world = world.start(&[]);
    // The flooders never take what they asked for.
    world.link = Box::new(|sent| match sent.frame {
        Frame::Quoted(_) if sent.to > 1 => Fate::Drop,
        _ => Fate::Deliver,
    });
    for flooder in 2..22 {
        for number in 0..5 {
            let number = u8::try_from(flooder * 5 + number).unwrap();
            world.submit_at(flooder, order(number));
        }
    }
    world.pass(Duration::from_millis(50));
    assert!(world.peer(1).holds() <= 2, "{}", world.peer(1).holds());
    world.submit(order(1));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
}

/// One slot, which a stranger asks for and never takes, again and again.
#[test]
fn abuse_73_a_strangers_quote_keeps_no_known_client_out() {
    let mut world = World::new(1);
    world.offer_of(1).slots = 1;
    let number = world.add(None);
    let mut world = world.start(&[number]);
    let mut stranger = Client::new(number, 1);
    let quote = stranger.ask(&mut world, 1).unwrap();
    assert!(!quote.body().held, "it says that it holds no slot");
    assert_eq!((world.peer(1).holds(), world.peer(1).slots_used()), (1, 0));
    world.submit(order(1));
    let runs = |world: &World| !world.executed.is_empty();
    assert!(world.run_until(Duration::from_millis(100), runs));
    // The slot is gone: the stranger is told so, and asks again later.
    stranger.agree(&mut world, &quote, 1);
    let refused = stranger.await_message(&mut world, |message| match message {
        Message::AgreeRefused(_, no) => Some(no.reason),
        _ => None,
    });
    assert_eq!(refused, Reason::BUSY);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.job(1).attempt, 1);
    assert!(stranger.buy(&mut world, 2).is_ok());
}

/// With nobody to keep slots for, a stranger's quote holds one.
#[test]
fn a_provider_that_knows_nobody_holds_for_strangers() {
    let mut world = World::new(1);
    world.offer_of(1).slots = 1;
    world.config_of(1).known.clear();
    let (first, second) = (world.add(None), world.add(None));
    let mut world = world.start(&[first, second]);
    let (mut first, mut second) = (Client::new(first, 1), Client::new(second, 1));
    let quote = first.ask(&mut world, 1).unwrap();
    assert!(quote.body().held);
    assert_eq!(world.peer(1).slots_used(), 1);
    assert_eq!(second.ask(&mut world, 1).unwrap_err(), Reason::BUSY);
    first.agree(&mut world, &quote, 1);
    world.pass(Duration::from_millis(50));
    assert_eq!(world.executed.len(), 1);
}

#[test]
fn abuse_73_one_client_gets_few_holds() {
    let mut world = World::new(1);
    world.offer_of(1).slots = 32;
    let mut device = world.offer_of(1).devices[0].clone();
    device.slots = 32;
    world.offer_of(1).devices = List::truncated(vec![device]);
    let mut world = world.start(&[]);
    world.link = Box::new(|sent| match sent.frame {
        Frame::Quoted(_) => Fate::Drop,
        _ => Fate::Deliver,
    });
    for number in 0..20 {
        world.submit(order(number));
    }
    world.pass(Duration::from_millis(100));
    assert_eq!(
        world.peer(1).holds(),
        suanli_protocol::limits::HOLDS_PER_CLIENT
    );
}

#[test]
fn a_duplicate_request_gets_the_same_bytes() {
    let mut world = World::new(1).start(&[]);
    world.link = Box::new(|_| Fate::Twice);
    world.submit(order(1));
    world.run_until_settled();
    let quotes: Vec<&Frame> = world
        .sent
        .iter()
        .map(|sent| &sent.frame)
        .filter(|frame| matches!(frame, Frame::Quoted(_)))
        .collect();
    assert!(quotes.len() >= 2);
    assert!(quotes.iter().all(|quote| *quote == quotes[0]));
    assert_eq!(world.executed.len(), 1);
    world.assert_conserved();
}

#[test]
fn a_withdrawn_offer_is_not_asked_and_not_sold() {
    let mut world = World::new(2).start(&[]);
    world.command(1, Command::Withdraw);
    world.pass(Duration::from_millis(50));
    world.submit(order(1));
    world.run_until_settled();
    assert_eq!(world.job(1).provider, Some(world.id(2)));
    let asked = |event: &(usize, Event)| match &event.1 {
        Event::Job {
            event: JobEvent::Asked { peers, .. },
            ..
        } => peers.clone(),
        _ => vec![],
    };
    let first = world.id(1);
    assert!(
        world
            .events
            .iter()
            .all(|event| !asked(event).contains(&first))
    );
}

#[test]
fn a_withdrawn_offer_comes_back_when_it_is_announced_again() {
    for provide in [false, true] {
        let mut world = World::new(1).start(&[]);
        let provider = world.id(1);
        let sequence = |world: &World| {
            let offer = world.peer(0).book().of(provider);
            offer.map(|offer| offer.body().sequence)
        };
        let before = sequence(&world);
        world.command(1, Command::Withdraw);
        world.pass(Duration::from_millis(50));
        // Its timers don't bring it back.
        world.pass(Duration::from_secs(400));
        assert_eq!(sequence(&world), None);
        world.command(
            1,
            match provide {
                true => Command::Provide(Box::new(world.provider(1))),
                false => Command::Announce,
            },
        );
        world.pass(Duration::from_millis(50));
        assert!(sequence(&world) > before);
        world.submit(order(1));
        world.run_until_settled();
        assert_eq!(world.job(1).end, Some(JobEnd::Done));
    }
}

#[test]
fn a_withdrawal_that_got_lost_is_answered_with_a_no() {
    let mut world = World::new(1).start(&[]);
    world.command(1, Command::Withdraw);
    world.submit(order(1));
    world.run_until_settled();
    assert!(matches!(world.job(1).end, Some(JobEnd::Declined(_))));
    assert!(world.executed.is_empty());
}

#[test]
fn a_job_without_any_offer_ends_after_its_patience() {
    let mut world = World::new(0).start(&[]);
    world.submit(order(1));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Declined(Reason::NO_OFFER)));
}

#[test]
fn a_job_that_can_not_be_asked_for_is_refused_at_once() {
    let mut world = World::new(1);
    world.offer_of(1).run_max = Millis::new(u64::MAX);
    let mut world = world.start(&[]);
    let mut long = order(1);
    long.needs.run_max = Millis::new(8 * 24 * 3_600_000);
    world.submit(long);
    world.pass(Duration::from_secs(5));
    let refused = world.events.iter().any(|(_, event)| {
        matches!(event, Event::Job { event: JobEvent::Refused(no), .. } if no.reason == Reason::TOO_LONG)
    });
    assert!(refused);
    // What was written can be read again.
    world.records(0);
}

#[test]
fn many_busy_rounds_do_not_use_up_the_attempts() {
    let mut world = World::new(2);
    for node in [1, 2] {
        world.offer_of(node).slots = 1;
    }
    let mut world = world.start(&[]);
    world.nodes[1].run = Run::Done { ms: 900 };
    world.nodes[2].run = Run::Done { ms: 900 };
    for number in 0..60 {
        world.submit(order(number));
    }
    world.pass(Duration::from_secs(20));
    world.crash(1);
    let last = JobId::from_bytes([59; 16]);
    world.run_until_settled();
    for job in world.peer(0).jobs() {
        assert_eq!(job.end, Some(JobEnd::Done), "{job:?} {last}");
    }
    world.assert_conserved();
}

#[test]
fn a_provider_without_a_free_slot_is_passed_over() {
    let mut world = World::new(6);
    for node in 1..=6 {
        world.offer_of(node).slots = 1;
        world.offer_of(node).terms.stranger_credit = micros(100_000);
    }
    let mut world = world.start(&[]);
    for node in 1..=6 {
        world.nodes[node].run = Run::Done { ms: 900 };
    }
    for number in 0..6 {
        world.submit(order(number));
    }
    let all_run = |world: &World| world.executed.len() == 6;
    assert!(world.run_until(Duration::from_millis(800), all_run));
}

/// A clock that is wrong by an hour finds no partners, and ends its jobs.
#[test]
fn abuse_56_jobs_end_with_clocks_an_hour_apart() {
    for (client, provider) in [
        (3_600_000, 0),
        (-3_600_000, 0),
        (0, 3_600_000),
        (0, -3_600_000),
    ] {
        for take in [false, true] {
            let mut world = World::new(1);
            world.nodes[0].skew_ms = client;
            world.nodes[1].skew_ms = provider;
            let mut world = world.start(&[]);
            let mut order = order(1);
            order.take = take;
            world.submit(order);
            world.run_until_settled();
            world.assert_conserved();
            world.records(0);
            world.records(1);
        }
    }
}

#[test]
fn abuse_56_a_clock_that_goes_back_breaks_nothing() {
    let mut world = World::new(1).start(&[]);
    for (number, skew) in [(1, 0), (2, -3_600_000), (3, -1000), (4, 3_600_000), (5, 0)] {
        world.nodes[0].skew_ms = skew;
        world.nodes[1].skew_ms = skew;
        world.command(1, Command::Announce);
        world.pass(Duration::from_secs(1));
        world.submit(order(number));
        let ended = world.run_until(Duration::from_secs(130), |world| {
            world.job(number).end.is_some()
        });
        assert!(ended, "job {number}: {:?}", world.job(number));
    }
    world.run_until_settled();
    assert_eq!(world.job(5).end, Some(JobEnd::Done));
    world.assert_conserved();
    // The journal of a clock that went back can be read.
    world.crash(0);
    world.boot(0);
}

/// What a node can't read again, it does not write.
#[test]
fn an_expired_delegation_ends_the_job_and_leaves_the_journal_readable() {
    let mut world = World::new(1);
    let node = world.id(0);
    world.nodes[0].config.delegation = account_signer(0)
        .sign(
            Wall::from_millis(0),
            Wall::from_millis(1000),
            Delegation {
                node,
                provides: true,
                consumes: true,
                extensions: Extensions::default(),
            },
        )
        .raw();
    let mut world = world.start(&[]);
    world.submit(order(1));
    world.run_until_settled();
    let end = world.job(1).end;
    assert_eq!(end, Some(JobEnd::Declined(Reason::NOT_ALLOWED)));
    world.records(0);
}

#[test]
fn an_offer_that_nobody_would_accept_is_not_announced() {
    let mut world = World::new(2);
    let prices = &mut world.offer_of(1).prices;
    let twice = [&prices[..1], &prices[..1]].concat();
    *prices = List::truncated(twice);
    let mut world = world.start(&[]);
    assert!(world.records(1).is_empty());
    world.submit(order(1));
    world.run_until_settled();
    assert_eq!(world.job(1).provider, Some(world.id(2)));
}

#[test]
fn a_quote_for_less_fuel_than_the_budget_buys_is_refused() {
    let agreed = |world: &World| world.count_sent(|frame| matches!(frame, Frame::Agree(..)));
    for (fuel_max, agreements) in [(u64::MAX, 1), (999, 0), (1, 0), (0, 0)] {
        let mut world = World::new(0);
        let liar = world.add(None);
        let mut world = world.start(&[liar]);
        let mut offer = world.provider(liar).offer;
        sell_fuel(&mut offer, 1);
        let mut provider = Provider::offering(&mut world, liar, offer);
        provider.fuel_max = fuel_max;
        world.submit(wasm_order(1, 1000));
        provider.answer(&mut world);
        world.pass(Duration::from_secs(2));
        assert_eq!(agreed(&world).min(1), agreements, "{fuel_max}");
        assert_eq!(world.blamed.is_empty(), agreements == 1, "{fuel_max}");
    }
}

/// An offer that nobody is held to is bait.
#[test]
fn a_quote_dearer_than_its_own_offer_is_refused_and_named() {
    for (dearer, taken) in [(0, true), (100, false), (9_900, false)] {
        let mut world = World::new(1);
        let liar = world.add(None);
        let mut world = world.start(&[liar]);
        let mut offer = world.provider(liar).offer;
        // A tenth of what the honest provider asks.
        offer.prices = List::truncated(
            (world.provider(1).offer.prices.iter())
                .map(|price| Price {
                    amount: micros(price.amount.as_micros() / 10),
                    ..*price
                })
                .collect(),
        );
        let mut provider = Provider::offering(&mut world, liar, offer);
        provider.dearer = dearer;
        world.submit(order(1));
        provider.answer(&mut world);
        let id = world.nodes[liar].signer.public().peer();
        if taken {
            world.pass(Duration::from_secs(1));
            assert_eq!(world.job(1).provider, Some(id));
            continue;
        }
        world.run_until_settled();
        let job = world.job(1);
        assert_eq!(job.provider, Some(world.id(1)), "the honest one has it");
        let said = job.declined.iter().find(|(peer, _)| *peer == id);
        assert_eq!(said.unwrap().1.reason, Reason::NOT_AS_OFFERED);
        assert!(world.blamed.iter().any(|(peer, _)| *peer == id));
    }
}

#[test]
fn a_cap_that_pays_for_half_a_job_is_no_bargain() {
    let mut world = World::new(2);
    // The first sells all that is asked for 1000 + 1000 · 10, the second a single
    // millisecond for 2000 + 6000, and that within the budget.
    let mut prices = world.offer_of(2).prices.to_vec();
    for price in prices.iter_mut().filter(|of| of.meter == Meter::GPU_MS) {
        price.amount = micros(6000);
    }
    world.offer_of(2).prices = List::truncated(prices);
    let mut world = world.start(&[]);
    let mut order = order(1);
    order.budget = micros(12_000);
    world.submit(order);
    let agreed = |frame: &Frame| matches!(frame, Frame::Agree(..));
    assert!(world.run_until(Duration::from_secs(5), |world| world.count_sent(agreed) > 0));
    let quoted = |frame: &Frame| matches!(frame, Frame::Quoted(_));
    assert_eq!(world.count_sent(quoted), 2, "both had a say");
    assert_eq!(world.job(1).provider, Some(world.id(1)));
}

/// Who fits, at which price, and who is too dear: what it would cost.
fn dear(world: &World, order: &JobOrder) -> (Vec<u64>, Vec<(Reason, u64, u64)>) {
    let plan = world.peer(0).plan(order, world.now(0).wall);
    let candidates = plan.candidates.iter();
    let misfits = plan.misfits.iter().map(|misfit| misfit.decline);
    (
        candidates.map(|of| of.expected.price.as_micros()).collect(),
        misfits.map(|no| (no.reason, no.need, no.have)).collect(),
    )
}

#[test]
fn whose_expected_price_is_over_the_budget_does_not_fit() {
    let world = World::new(2).start(&[]);
    // Half a second on either: 1000 + 500 · 10, and twice as much.
    let mut order = order(1);
    order.flops = 500_000_000;
    let over = |need, have| (Reason::OVER_BUDGET, need, have);
    order.budget = micros(12_000);
    assert_eq!(dear(&world, &order), (vec![6000, 12_000], vec![]));
    order.budget = micros(11_999);
    let second = (vec![6000], vec![over(12_000, 11_999)]);
    assert_eq!(dear(&world, &order), second);
    // Not even what an execution costs by itself: the whole price is told.
    order.budget = micros(999);
    let (none, misfits) = dear(&world, &order);
    assert_eq!(none, Vec::<u64>::new());
    let needs: BTreeSet<_> = misfits.into_iter().collect();
    assert_eq!(needs, [over(6000, 999), over(12_000, 999)].into());
}

/// Fuel is a limit, which few programs reach.
#[test]
fn what_a_program_may_use_at_most_is_no_reason_to_leave_it_out() {
    let mut world = World::new(2);
    sell_fuel(world.offer_of(1), 10);
    sell_fuel(world.offer_of(2), 20);
    let world = world.start(&[]);
    let mut order = wasm_order(1, 500);
    order.budget = micros(11_999);
    assert_eq!(dear(&world, &order), (vec![6000, 11_999], vec![]));
}

#[test]
fn a_run_of_unknown_length_may_be_cut_short_by_its_budget() {
    let mut world = World::new(2);
    let mut devices = world.offer_of(2).devices.to_vec();
    for device in &mut devices {
        device.speeds = List::default();
    }
    world.offer_of(2).devices = List::truncated(devices);
    let world = world.start(&[]);
    let mut order = order(1);
    order.budget = micros(3000);
    assert_eq!(dear(&world, &order), (vec![1000, 3000], vec![]));
    // What the second does in a second nobody knows.
    order.flops = 500_000_000;
    let first = vec![(Reason::OVER_BUDGET, 6000, 3000)];
    assert_eq!(dear(&world, &order), (vec![3000], first));
    order.budget = micros(1999);
    let (none, misfits) = dear(&world, &order);
    assert_eq!((none.len(), misfits.len()), (0, 2));
}

#[test]
fn nobody_is_asked_who_is_expected_to_be_too_dear() {
    let mut world = World::new(1).start(&[]);
    let mut order = order(1);
    (order.flops, order.budget) = (500_000_000, micros(5999));
    world.submit(order);
    world.run_until_settled();
    assert_eq!(world.count_sent(|frame| matches!(frame, Frame::Ask(_))), 0);
    assert!(matches!(world.job(1).end, Some(JobEnd::Declined(_))));
}

#[test]
fn work_that_may_use_nothing_is_declined() {
    let mut world = World::new(1);
    let client = world.add(None);
    sell_fuel(world.offer_of(1), 1);
    let mut world = world.start(&[client]);
    let mut client = Client::new(client, 1);
    let refused = client.ask_for(&mut world, wasm_order(1, 0)).map(|_| ());
    assert_eq!(refused, Err(Reason::NO_SUCH_WORK));
    let mut order = order(2);
    order.needs.run_max = Millis::new(0);
    let refused = client.ask_for(&mut world, order).map(|_| ());
    assert_eq!(refused, Err(Reason::NO_SUCH_WORK));
    let quote = client.ask_for(&mut world, wasm_order(3, 1)).unwrap();
    assert_eq!(quote.body().fuel_max, 1);
}

#[test]
fn a_wasm_receipt_that_charges_for_a_device_is_disputed() {
    let mut world = World::new(1);
    sell_fuel(world.offer_of(1), 1);
    let mut world = world.start(&[]);
    // The executor here reports device time, whatever it runs.
    world.submit(wasm_order(1, 1000));
    let disputes = |world: &World| {
        let disputed = |record: &Record| {
            matches!(record, Record::HeardOf(acceptance)
                if acceptance.body().verdict == Verdict::Disputed(Reason::WRONG_AMOUNT))
        };
        world
            .records(1)
            .iter()
            .filter(|record| disputed(record))
            .count()
    };
    assert!(world.run_until(Duration::from_secs(60), |world| disputes(world) > 0));
    assert_eq!(world.job(1).spent, micros(0));
}

#[test]
fn a_job_that_nobody_has_room_for_in_its_time_is_declined_for_that() {
    let mut world = World::new(1);
    world.offer_of(1).slots = 1;
    world.add(None);
    world.nodes[1].run = Run::Done { ms: 900 };
    let mut world = world.start(&[]);
    world.submit_at(0, order(1));
    world.pass(Duration::from_millis(300));
    let mut short = order(2);
    short.total = Millis::new(500);
    world.submit_at(2, short);
    world.run_until_settled();
    let ends = world.peer(2).jobs();
    assert_eq!(ends[0].end, Some(JobEnd::Declined(Reason::BUSY)));
    // One that was taken, and is not done in time, ran out of time.
    let mut late = order(3);
    late.total = Millis::new(500);
    world.submit_at(0, late);
    world.run_until_settled();
    assert_eq!(world.job(3).end, Some(JobEnd::Expired));
}
