//! How long a book takes to say who could run a job, best first.
//!
//! Only the rules: no node, no disk, one thread. The offers differ in region, device,
//! memory, speed and price; each is judged anew for every job, as a node does it. What a
//! job wants rises from nothing to a condition with a rank of its own. The time for the
//! whole book is what counts, as much of it as this thread had a core for: what other
//! programs took meanwhile is only in the note, which is by the clock on the wall. A look at
//! each offer without a rule is beside it, for that is the least that any rule could cost
//! without the book's index.

use std::{
    hint::black_box,
    time::{Duration, Instant, SystemTime},
};

use rustix::time::{ClockId, clock_gettime};
use suanli_node::expression;
use suanli_protocol::{
    book::Book,
    deal::{Needs, Work},
    delegation::Delegation,
    envelope::{Extensions, Signer, Verified},
    expression::{Expression, Scope},
    ids::{Hash, NetworkId},
    offer::{Offer, Speed},
    rank::{self, Policy, View, Want},
    registry::{Runtime, SandboxLevel},
    units::{Amount, Millis, Price, Wall},
    wire::{List, Text},
};

use super::{
    figures::{Aim, Figure, Report},
    machine::Watch,
    offers,
};

/// Longer than the benchmark.
const LIFE: Duration = Duration::from_secs(200);
/// Nodes of one account, as many as a book takes.
const PER_ACCOUNT: u32 = 250;
const AIM_MS: f64 = 10.0;
const THREE_PARTS: &str =
    "gpu.memory >= bytes(\"16GiB\") && region.startsWith(\"CN-N\") && price.gpu_hour < 3.5";

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Plan {
    /// Offers in the book
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    offers: u32,
    /// Jobs, one after the other
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// Runs it.
pub(super) fn run(plan: Plan) -> anyhow::Result<Report> {
    let (book, now) = book(plan.offers);
    let watch = Watch::begin();
    let read = |text: &str| {
        expression::condition(text, Scope::Offer).map_err(|why| anyhow::anyhow!("{text}: {why}"))
    };
    let three = read(THREE_PARTS)?;
    let rank = expression::rank("gpu.fp32 / price.gpu_hour", Scope::Offer);
    let rank = rank.map_err(|why| anyhow::anyhow!("{why}"))?;
    let rows = [
        ("every offer fits", None, None),
        ("a condition of three parts", Some(&three), None),
        ("the same, and a rank of its own", Some(&three), Some(&rank)),
    ];
    let mut figures = vec![looked_at(&book, plan.rounds)];
    for (what, condition, rank) in rows {
        figures.push(matched((&book, now), plan.rounds, (what, condition, rank)));
    }
    Ok(Report {
        bench: "match",
        figures,
        state: watch.end(),
    })
}

/// Reads what a rule reads of every offer, and does nothing with it.
fn looked_at(book: &Book, rounds: u32) -> Figure {
    let samples = (0..rounds).map(|_| {
        let began = core_time();
        let sum = book.iter().fold(0_u64, |sum, offer| {
            let body = offer.body();
            let device = body.devices.iter().map(|device| device.memory_bytes).max();
            sum.wrapping_add(device.unwrap_or(0))
        });
        black_box(sum);
        millis(core_time().saturating_sub(began))
    });
    Figure::of(
        format!("{} offers, only looked at", book.len()),
        "ms",
        samples.collect(),
    )
}

fn matched(
    (book, now): (&Book, Wall),
    rounds: u32,
    (what, condition, rank): (&str, Option<&Expression>, Option<&Expression>),
) -> Figure {
    let needs = Needs {
        runtime: Runtime::WGSL,
        features: List::default(),
        device: None,
        memory_bytes: 1 << 30,
        sandbox: SandboxLevel::PROCESS,
        run_max: Millis::new(60_000),
        output_bytes_max: 1 << 20,
        fuel_max: 0,
        model: None,
    };
    let want = Want {
        needs: &needs,
        work: &Work::Job,
        budget: Amount::from_micros(10_000_000),
        regions: &[],
        flops: Some(1_000_000_000_000),
        policy: Policy::Cheapest,
        condition,
        rank,
        account: Signer::new(&[1; 32], NetworkId::of("bench"))
            .public()
            .account(),
        home: "CN-BJ",
        inputs_bytes: 0,
        traffic: Amount::ZERO,
        within: None,
        is_begun: false,
    };
    let (mut fit, mut wall) = (0, Vec::new());
    let samples = (0..rounds).map(|_| {
        let (began, clock) = (core_time(), Instant::now());
        let plan = rank::rank_book(book, now, &want, |_| false, |_| Ok(View::UNKNOWN));
        let plan = black_box(plan);
        let took = millis(core_time().saturating_sub(began));
        wall.push(millis(clock.elapsed()));
        fit = plan.fitting;
        took
    });
    let samples: Vec<f64> = samples.collect();
    wall.sort_by(f64::total_cmp);
    let middle = wall.get(wall.len() / 2).copied().unwrap_or(0.0);
    Figure::of(what, "ms", samples)
        .aim(Aim::Below(AIM_MS))
        .note(format!(
            "{fit} of {} fit; {middle:.1} ms on the wall",
            book.len()
        ))
}

/// How long this thread has had a core.
fn core_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let (seconds, nanos) = (time.tv_sec.try_into(), time.tv_nsec.try_into());
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

/// A book of offers that differ in region, device, memory, speed and price.
fn book(count: u32) -> (Book, Wall) {
    let network = NetworkId::of("bench");
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let issued = Wall::from_millis(u64::try_from(since.as_millis()).unwrap_or(0));
    let room = usize::try_from(count).unwrap_or(usize::MAX);
    let mut book = Book::with_room(room);
    for number in 0..count {
        book.insert(issued, offer(network, number, issued));
    }
    (book, issued)
}

const REGIONS: [&str; 8] = [
    "CN-NX", "CN-GZ", "CN-NM", "CN-GS", "CN-BJ", "CN-SH", "CN-GD", "CN-SC",
];

/// The offer of one node.
fn offer(network: NetworkId, number: u32, issued: Wall) -> Verified<Offer> {
    let key = |kind: &'static str, number: u32| {
        let secret = Hash::derive(
            "suanli bench keys",
            &[kind.as_bytes(), &number.to_le_bytes()],
        );
        Signer::new(secret.as_bytes(), network)
    };
    let (node, account) = (key("node", number), key("account", number / PER_ACCOUNT));
    let expires = issued.after(LIFE);
    let delegation = Delegation {
        node: node.public().peer(),
        provides: true,
        consumes: false,
        extensions: Extensions::default(),
    };
    let delegation = account.sign(issued, expires, delegation);
    let mut offer = offers::offer(
        account.public().account(),
        delegation.raw(),
        issued.as_millis(),
    );
    let number = u64::from(number);
    let region = REGIONS
        .iter()
        .cycle()
        .nth(usize::try_from(number % 8).unwrap_or(0));
    offer.region = Text::lossy(region.unwrap_or(&"CN-NX"));
    let mut devices = offer.devices.to_vec();
    for device in &mut devices {
        device.memory_bytes = (4 + number % 13 * 4) << 30;
        let speeds = device.speeds.iter().map(|speed| Speed {
            per_second: speed.per_second / 20 * (1 + number % 19),
            ..*speed
        });
        device.speeds = List::truncated(speeds.collect());
    }
    offer.devices = List::truncated(devices);
    let prices = offer.prices.iter().map(|price| Price {
        amount: Amount::from_micros(price.amount.as_micros() + number % 997),
        ..*price
    });
    offer.prices = List::truncated(prices.collect());
    node.sign(issued, expires, offer)
}
