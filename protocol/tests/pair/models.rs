//! Leases of models: their own prices, and tokens that both sides count.

use std::time::Duration;

use suanli_protocol::{
    deal::Work,
    ids::{AgreementId, BlobId, Hash},
    message::Frame,
    offer::{ModelOffer, ModelRef, Prices},
    peer::Input,
    receipt::Verdict,
    record::{JobEnd, JobOrder, Record},
    registry::{Reason, Runtime},
    units::{Meter, Millis, Price, Wall},
    wire::{List, Text},
};

use crate::world::{World, micros, name, order};

const MINUTE: Duration = Duration::from_secs(60);

fn weights(of: &str) -> BlobId {
    BlobId(Hash::of(of.as_bytes()))
}

fn served(model: &str, price: u64) -> ModelOffer {
    let token = |meter, amount| Price {
        meter,
        amount: micros(amount),
        per: 1,
    };
    let prices = vec![
        token(Meter::TOKEN_IN, price),
        token(Meter::TOKEN_OUT, 2 * price),
    ];
    ModelOffer {
        name: name(model),
        weights: weights(model),
        quantisation: Text::default(),
        context: 2048,
        device: 0,
        prices: Prices::truncated(prices),
        prefill_per_second: 1000,
        decode_per_second: 50,
        places: 4,
        places_free: 4,
    }
}

fn world(models: &[&[(&str, u64)]]) -> World {
    let mut world = World::new(models.len());
    for (node, models) in (1..).zip(models) {
        let models = models.iter().map(|(model, price)| served(model, *price));
        world.offer_of(node).models = List::truncated(models.collect());
    }
    world
}

fn lease(world: &World, model: &str, seconds: u64) -> JobOrder {
    let mut order = order(1);
    order.needs.runtime = Runtime::MODEL;
    order.needs.model = Some(ModelRef {
        name: name(model),
        weights: None,
    });
    order.work = Work::Lease {
        until: Wall::from_millis(world.now(0).wall.as_millis() + seconds * 1000),
        interval: Millis::new(1000),
    };
    order
}

fn agreement(world: &mut World) -> AgreementId {
    let leased = |world: &World| world.executed.len() == 1;
    assert!(world.run_until(MINUTE, leased), "no lease");
    world.job(1).agreement.expect("agreed")
}

fn count(world: &mut World, agreement: AgreementId, written: u64) {
    let counted = Input::Counted {
        agreement,
        read: 0,
        written,
    };
    world.feed(0, counted);
}

#[test]
fn a_model_is_leased_from_who_serves_it_at_its_own_price() {
    let mut world = world(&[
        &[("other", 1)],
        &[("small", 5), ("other", 9)],
        &[("small", 7)],
    ]);
    world = world.start(&[]);
    let order = lease(&world, "small", 3);
    world.submit(order);
    world.run_until_settled();
    let job = world.job(1);
    assert_eq!(job.end, Some(JobEnd::Done));
    assert_eq!(world.executed[0].0, 2);
    // A hundred tokens in each second.
    assert_eq!(job.spent, micros(3 * 100 * 10));
    world.assert_conserved();
}

#[test]
fn a_model_that_nobody_serves_is_said_to_be_missing() {
    let mut world = world(&[&[("other", 1)]]).start(&[]);
    let mut wanted = lease(&world, "small", 3);
    let plan = world.peer(0).plan(&wanted, world.now(0).wall);
    assert_eq!(plan.misfits[0].decline.reason, Reason::NO_MODEL);
    wanted.needs.model = Some(ModelRef {
        name: name("other"),
        weights: Some(weights("other, at lower quantisation")),
    });
    let plan = world.peer(0).plan(&wanted, world.now(0).wall);
    assert_eq!(plan.misfits[0].decline.reason, Reason::NO_MODEL);
    world.submit(wanted);
    world.run_until_settled();
    assert!(matches!(world.job(1).end, Some(JobEnd::Declined(_))));
}

#[test]
fn tokens_are_paid_once_they_are_counted() {
    let mut world = world(&[&[("small", 5)]]).start(&[]);
    let order = lease(&world, "small", 4);
    world.submit(order);
    let agreement = agreement(&mut world);
    count(&mut world, agreement, 0);
    world.pass(Duration::from_millis(1500));
    let issued = |world: &World| world.count_sent(|frame| matches!(frame, Frame::Receipt(..)));
    assert!(issued(&world) > 0);
    assert_eq!(world.job(1).spent, micros(0));
    count(&mut world, agreement, 250);
    assert_eq!(world.job(1).spent, micros(100 * 10));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.job(1).spent, micros(200 * 10));
    // Half a receipt is none.
    world.pass(Duration::from_secs(1));
    assert_eq!(world.job(1).spent, micros(200 * 10));
    count(&mut world, agreement, 150);
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    assert_eq!(world.job(1).spent, micros(400 * 10));
    world.assert_conserved();
}

#[test]
fn tokens_that_nobody_counted_are_disputed_and_end_the_lease() {
    let mut world = world(&[&[("small", 5)], &[("small", 6)]]).start(&[]);
    let mut order = lease(&world, "small", 100);
    if let Work::Lease { interval, .. } = &mut order.work {
        *interval = Millis::new(10_000);
    }
    world.submit(order);
    let agreement = agreement(&mut world);
    count(&mut world, agreement, 0);
    let disputed = |world: &World| {
        world.records(0).iter().any(|record| {
            matches!(record, Record::Judged { acceptance, .. }
                if acceptance.body().verdict == Verdict::Disputed(Reason::WRONG_AMOUNT))
        })
    };
    assert!(world.run_until(MINUTE, disputed));
    // The lease goes on elsewhere.
    assert!(world.run_until(MINUTE, |world| world.executed.len() == 2));
    assert_eq!(world.executed[1].0, 2);
    let accepted = world.records(0).into_iter().any(|record| {
        matches!(record, Record::Judged { acceptance, .. }
            if acceptance.body().key.agreement == agreement
                && acceptance.body().verdict == Verdict::Accepted)
    });
    assert!(!accepted);
}
