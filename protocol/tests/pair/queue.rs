//! Work that waits for a slot, and what is asked at which moment.

use std::{sync::Arc, time::Duration};

use suanli_protocol::{
    ids::AccountId,
    message::Frame,
    offer::Offer,
    peer::Command,
    pricing::{Moment, Pricing},
    record::{JobEnd, JobOrder, Record},
    registry::Reason,
    units::{Amount, Meter, Millis, Price},
};

use crate::world::{Fate, Run, World, account_signer, micros};

const MINUTE: Duration = Duration::from_secs(60);

/// One slot, and so many places in the queue; runs take so long.
fn world(queue: u32, ms: u64) -> World {
    let mut world = World::new(1);
    let config = world.config_of(1);
    config.queue = queue;
    config.offer.slots = 1;
    let mut device = config.offer.devices[0].clone();
    device.slots = 1;
    config.offer.devices = suanli_protocol::wire::List::truncated(vec![device]);
    let account = world.nodes[0].config.account;
    world
        .config_of(1)
        .known
        .insert(account, micros(100_000_000));
    world.nodes[1].run = Run::Done { ms };
    world
}

/// A job that may run for half a minute.
fn order(number: u8) -> JobOrder {
    let mut order = crate::world::order(number);
    order.needs.run_max = Millis::new(30_000);
    order.total = Millis::new(600_000);
    order.budget = micros(400_000);
    order
}

/// Runs until all jobs are over, and says how many executions ran at once at most.
fn run_all(world: &mut World, jobs: &[(usize, u8)]) -> usize {
    let mut most = 0;
    let over = world.run_until(10 * MINUTE, |world| {
        most = most.max(world.running(1));
        jobs.iter().all(|(node, number)| {
            let view = world.peer(*node).job(order(*number).job);
            view.is_some_and(|view| view.end.is_some())
        })
    });
    assert!(over, "jobs are left");
    most
}

fn ends(world: &World, jobs: &[(usize, u8)]) -> Vec<Option<JobEnd>> {
    let end = |(node, number): &(usize, u8)| world.peer(*node).job(order(*number).job)?.end;
    jobs.iter().map(end).collect()
}

/// Pieces of work that wait for a slot.
fn waiting(world: &World) -> usize {
    let work = world.peer(1).work();
    work.iter().filter(|work| work.stage == "waiting").count()
}

#[test]
fn what_finds_no_slot_waits_for_its_turn() {
    let mut world = world(4, 5000).start(&[]);
    let jobs: Vec<_> = (1..=4).map(|number| (0, number)).collect();
    for (_, number) in &jobs {
        world.submit(order(*number));
        world.pass(Duration::from_millis(200));
    }
    assert_eq!(run_all(&mut world, &jobs), 1);
    world.run_until_settled();
    assert!(
        ends(&world, &jobs)
            .iter()
            .all(|end| *end == Some(JobEnd::Done))
    );
    // In their order, each once, and nobody was sent away.
    let ran: Vec<_> = world.executed.iter().map(|(_, run)| run.id).collect();
    assert_eq!(ran.len(), 4);
    assert_eq!(
        world.count_sent(|frame| matches!(frame, Frame::Declined(..))),
        0
    );
    world.assert_conserved();
}

#[test]
fn a_quote_that_waits_says_so() {
    let mut world = world(4, 20_000).start(&[]);
    world.submit(order(1));
    assert!(world.run_until(MINUTE, |world| world.executed.len() == 1));
    world.submit(order(2));
    world.pass(Duration::from_secs(1));
    let quotes: Vec<_> = (world.records(0).into_iter())
        .filter_map(|record| match record {
            Record::Took { quote, .. } => Some(quote),
            _ => None,
        })
        .collect();
    let [first, second] = &quotes[..] else {
        panic!("{quotes:?}");
    };
    assert_eq!(first.body().wait_max.get(), 0);
    assert!(second.body().wait_max.get() >= 60_000);
    assert!(second.body().start_expected > second.issued());
    assert!(!second.body().held);
    let [work] = &world
        .peer(1)
        .work()
        .into_iter()
        .filter(|work| work.stage == "waiting")
        .collect::<Vec<_>>()[..]
    else {
        panic!("nothing waits");
    };
    assert_eq!(work.job, order(2).job);
    assert_eq!(world.peer(1).slots_used(), 1);
}

/// Whom a job's last agreement is with.
fn provider_of(world: &World, number: u8) -> usize {
    let view = world.peer(0).job(order(number).job).unwrap();
    let provider = view.provider.unwrap();
    let mut nodes = 1..world.nodes.len();
    nodes.find(|node| world.id(*node) == provider).unwrap()
}

/// The cheaper of two has one slot, which is in use for twenty seconds, and a queue.
fn cheap_but_busy() -> World {
    let mut world = world(4, 20_000);
    let dearer = world.provider(2);
    let dearer = world.add(Some(dearer));
    world.nodes[dearer].run = Run::Done { ms: 1000 };
    let mut world = world.start(&[]);
    world.submit(order(1));
    assert!(world.run_until(MINUTE, |world| world.executed.len() == 1));
    assert_eq!(provider_of(&world, 1), 1);
    world
}

#[test]
fn a_turn_that_may_come_too_late_is_left_to_those_who_have_time() {
    let mut world = cheap_but_busy();
    let mut hurried = order(2);
    hurried.total = Millis::new(60_000);
    // Enough for all of it at the dearer one.
    hurried.budget = micros(800_000);
    world.submit(hurried);
    let patient = order(3);
    world.submit(patient);
    let agreed = |number: u8| {
        move |world: &World| {
            let view = world.peer(0).job(order(number).job);
            view.is_some_and(|view| view.agreement.is_some())
        }
    };
    for number in [2, 3] {
        assert!(world.run_until(MINUTE, agreed(number)), "{number}");
    }
    assert_eq!(provider_of(&world, 2), 2);
    assert_eq!(provider_of(&world, 3), 1);
    world.run_until_settled();
    let jobs = [(0, 1), (0, 2), (0, 3)];
    assert_eq!(ends(&world, &jobs), [Some(JobEnd::Done); 3]);
    world.assert_conserved();
}

#[test]
fn a_turn_that_may_come_too_late_is_better_than_none() {
    let mut world = cheap_but_busy();
    world.crash(2);
    let mut hurried = order(2);
    hurried.total = Millis::new(60_000);
    world.submit(hurried);
    world.run_until_settled();
    let jobs = [(0, 1), (0, 2)];
    assert_eq!(ends(&world, &jobs), [Some(JobEnd::Done); 2]);
    assert_eq!(provider_of(&world, 2), 1);
}

#[test]
fn turns_are_fair_between_accounts() {
    let mut world = world(16, 1000);
    let other = world.add(None);
    let account = account_signer(other).public().account();
    world
        .config_of(1)
        .known
        .insert(account, micros(100_000_000));
    let mut world = world.start(&[]);
    let mut jobs: Vec<(usize, u8)> = (1..=7).map(|number| (0, number)).collect();
    for (_, number) in &jobs {
        world.submit(order(*number));
        world.pass(Duration::from_millis(50));
    }
    world.submit_at(other, order(20));
    jobs.push((other, 20));
    assert_eq!(run_all(&mut world, &jobs), 1);
    assert!(
        ends(&world, &jobs)
            .iter()
            .all(|end| *end == Some(JobEnd::Done))
    );
    let tenants: Vec<_> = world.executed.iter().map(|(_, run)| run.tenant).collect();
    let turn = tenants
        .iter()
        .position(|tenant| *tenant == account)
        .unwrap();
    assert!(turn <= 2, "six came before it, and {turn} ran before it");
}

#[test]
fn a_full_queue_sends_away_in_words() {
    let mut world = world(1, 30_000).start(&[]);
    for number in 1..=3 {
        world.submit(order(number));
        world.pass(Duration::from_millis(500));
    }
    let busy = |sent: &Frame| matches!(sent, Frame::Declined(_, no) if no.reason == Reason::BUSY);
    assert!(world.count_sent(busy) > 0);
    let jobs = [(0, 1), (0, 2), (0, 3)];
    assert_eq!(run_all(&mut world, &jobs), 1);
}

/// The same, with a friend and a stranger beside the client.
fn with_others() -> (World, usize, usize) {
    let mut world = world(4, 20_000);
    let (friend, stranger) = (world.add(None), world.add(None));
    let account = account_signer(friend).public().account();
    let config = world.config_of(1);
    config.known.insert(account, micros(100_000_000));
    config.strangers_budget = micros(100_000_000);
    config.offer.terms.stranger_credit = micros(100_000_000);
    (world.start(&[]), friend, stranger)
}

/// Who waits for much leaves room for who waits for nothing; strangers leave half.
#[test]
fn nobody_fills_a_queue_alone() {
    let (mut world, _, stranger) = with_others();
    for number in 1..=5 {
        world.submit(order(number));
        world.pass(Duration::from_millis(100));
    }
    assert_eq!(waiting(&world), 3);
    world.submit_at(stranger, order(10));
    world.pass(Duration::from_millis(300));
    assert_eq!(waiting(&world), 4);

    let (mut world, friend, stranger) = with_others();
    world.submit(order(1));
    world.pass(Duration::from_millis(300));
    for number in 10..14 {
        world.submit_at(stranger, order(number));
        world.pass(Duration::from_millis(300));
    }
    assert_eq!(waiting(&world), 2);
    world.submit_at(friend, order(20));
    world.pass(Duration::from_millis(300));
    assert_eq!(waiting(&world), 3);
}

#[test]
fn a_turn_that_does_not_come_in_time_costs_nothing() {
    let mut world = world(4, 0);
    // The first never ends by itself.
    world.nodes[1].run = Run::Hangs;
    world.nodes[1].config.timing.queue_max = Duration::from_secs(20);
    let mut world = world.start(&[]);
    let mut long = order(1);
    long.needs.run_max = Millis::new(39_000);
    world.submit(long);
    assert!(world.run_until(MINUTE, |world| world.executed.len() == 1));
    world.submit(order(2));
    let late = |world: &World| {
        world.records(0).iter().any(|record| match record {
            Record::Judged { receipt, .. } => {
                receipt.body().outcome
                    == suanli_protocol::receipt::Outcome::ProviderFault(Reason::WAITED_TOO_LONG)
                    && receipt.body().amount == Amount::ZERO
            }
            _ => false,
        })
    };
    assert!(world.run_until(2 * MINUTE, late));
}

#[test]
fn a_turn_that_is_of_no_use_any_more_is_left_without_blame() {
    let mut world = world(4, 0);
    // The first never ends by itself.
    world.nodes[1].run = Run::Hangs;
    let mut world = world.start(&[]);
    let mut long = order(1);
    long.needs.run_max = Millis::new(39_000);
    world.submit(long);
    assert!(world.run_until(MINUTE, |world| world.executed.len() == 1));
    // Its own run may take half a minute.
    let mut hurried = order(2);
    hurried.total = Millis::new(65_000);
    world.submit(hurried);
    assert!(world.run_until(MINUTE, |world| waiting(world) == 1));
    let taken = (world.records(0).into_iter().rev()).find_map(|record| match record {
        Record::Took { quote, request, .. } => Some((quote, request)),
        _ => None,
    });
    let (quote, request) = taken.unwrap();
    // By itself the provider would have let it wait for longer.
    assert_eq!(Some(quote.body().wait_max), request.body().wait_max);
    assert!(quote.body().wait_max < Millis::new(30_000));
    let left = |world: &World| {
        world.records(0).iter().any(|record| {
            matches!(
                record,
                Record::GaveUp {
                    reason: Reason::WAITED_TOO_LONG,
                    ..
                }
            )
        })
    };
    assert!(world.run_until(MINUTE, left));
    let standing = world.peer(0).standing(world.id(1));
    assert_eq!(standing.map_or(0, |seen| seen.results().lost.count), 0);
    assert_eq!(waiting(&world), 0);
}

#[test]
fn a_job_is_cancelled_while_it_waits() {
    let mut world = world(4, 20_000).start(&[]);
    world.submit(order(1));
    assert!(world.run_until(MINUTE, |world| world.executed.len() == 1));
    world.submit(order(2));
    assert!(world.run_until(MINUTE, |world| waiting(world) > 0));
    world.command(0, Command::Cancel(order(2).job));
    let jobs = [(0, 1), (0, 2)];
    run_all(&mut world, &jobs);
    assert_eq!(
        ends(&world, &jobs),
        [Some(JobEnd::Done), Some(JobEnd::Cancelled)]
    );
    world.run_until_settled();
    assert_eq!(world.executed.len(), 1);
    world.assert_conserved();
}

/// Whenever the provider stops: what waits runs in the end, and never more at once than
/// there are slots.
#[test]
fn a_queue_outlives_its_provider() {
    for seconds in [1, 3, 6, 9] {
        let mut world = world(4, 5000).start(&[]);
        let jobs = [(0, 1), (0, 2), (0, 3)];
        for (_, number) in &jobs {
            world.submit(order(*number));
            world.pass(Duration::from_millis(100));
        }
        world.pass(Duration::from_secs(seconds));
        world.crash(1);
        world.boot(1);
        world.connect(0, 1);
        assert_eq!(run_all(&mut world, &jobs), 1, "stopped after {seconds} s");
        let done = ends(&world, &jobs);
        assert!(
            done.iter().all(|end| *end == Some(JobEnd::Done)),
            "{seconds} s: {done:?}"
        );
        world.run_until_settled();
        world.assert_conserved_with(2);
    }
}

/// Inputs travel while a job waits.
#[test]
fn what_waits_has_its_inputs_when_its_turn_comes() {
    let mut world = world(4, 10_000).start(&[]);
    world.submit(order(1));
    assert!(world.run_until(MINUTE, |world| world.executed.len() == 1));
    world.submit(order(2));
    assert!(world.run_until(Duration::from_secs(5), |world| waiting(world) > 0));
    // From here on nothing more can be fetched.
    world.link = Box::new(|sent| match sent.frame {
        Frame::Progress(_) => Fate::Drop,
        _ => Fate::Deliver,
    });
    assert_eq!(run_all(&mut world, &[(0, 1), (0, 2)]), 1);
}

/// Twice the price while a slot is in use, and less for a friend; never below 8 a
/// millisecond.
#[derive(Debug)]
struct Moods {
    friend: AccountId,
    floor: Vec<Price>,
}

impl Pricing for Moods {
    fn of_all(&self, moment: &Moment) -> u32 {
        if moment.used > 0 { 2000 } else { 1000 }
    }

    fn of_client(&self, account: AccountId, _: &Moment) -> u32 {
        if account == self.friend { 500 } else { 1000 }
    }

    fn floor(&self) -> &[Price] {
        &self.floor
    }
}

fn moods(world: &mut World, friend: usize) {
    let floor = Price {
        meter: Meter::GPU_MS,
        amount: micros(8),
        per: 1,
    };
    world.config_of(1).pricing = Arc::new(Moods {
        friend: account_signer(friend).public().account(),
        floor: vec![floor],
    });
}

fn per_ms(offer: &Offer) -> u64 {
    let price = offer.price(Meter::GPU_MS).unwrap();
    price.of(1000).unwrap().as_micros()
}

#[test]
fn the_offer_follows_the_prices_of_the_moment() {
    let mut world = world(4, 200_000);
    moods(&mut world, 9);
    let mut world = world.start(&[]);
    let provider = world.id(1);
    let seen = move |world: &World| {
        let offer = world.peer(0).book().of(provider);
        offer.map_or(0, |offer| per_ms(offer.body()))
    };
    assert_eq!(seen(&world), 10_000);
    let mut long = order(1);
    long.needs.run_max = Millis::new(250_000);
    long.budget = micros(900_000_000);
    let account = world.nodes[0].config.account;
    world
        .config_of(1)
        .known
        .insert(account, micros(900_000_000));
    let config = world.nodes[1].config.provider.clone().unwrap();
    world.command(1, Command::Provide(Box::new(config)));
    world.submit(long);
    assert!(world.run_until(MINUTE, |world| world.executed.len() == 1));
    assert!(world.run_until(4 * MINUTE, |world| seen(world) == 20_000));
}

#[test]
fn a_friend_is_quoted_less_and_nobody_below_the_floor() {
    let mut world = world(4, 100);
    moods(&mut world, 0);
    let mut world = world.start(&[]);
    world.submit(order(1));
    world.run_until_settled();
    assert_eq!(world.job(1).end, Some(JobEnd::Done));
    let quoted = world
        .records(0)
        .into_iter()
        .find_map(|record| match record {
            Record::Took { quote, .. } => Some(quote),
            _ => None,
        });
    let quoted = quoted.unwrap();
    let price = |meter| {
        let mut prices = quoted.body().prices.iter();
        prices.find(|price| price.meter == meter).copied()
    };
    // Half of 1000 for the job; time would be 5, and is 8.
    assert_eq!(price(Meter::JOB).unwrap().amount, micros(500));
    assert_eq!(price(Meter::GPU_MS).unwrap().of(1000), Some(micros(8000)));
    // What it costs follows: 500 + 100 · 8.
    assert_eq!(world.job(1).spent, micros(1300));
    world.assert_conserved();
}
