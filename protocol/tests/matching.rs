//! The book's index comes to the same as a look at each offer by itself.

#![expect(clippy::unwrap_used, reason = "what a harness can't do fails the test")]

use std::time::Duration;

use proptest::prelude::*;
use suanli_protocol::{
    book::Book,
    deal::{Needs, Work},
    envelope::{Signer, Verified},
    expression::{Comparison, Expression, Field, Number, Scope, Term, Type, Unit},
    ids::{Hash, PeerId},
    offer::{Device, Energy, Offer, RuntimeOffer, Speed},
    rank::{self, Policy, View, Want, Way},
    registry::{DeviceKind, Reason, Runtime, SandboxLevel, SpeedKind},
    units::{Amount, Meter, Millis, Price, Wall},
    wire::{List, Text},
};

#[expect(dead_code, reason = "only the samples of the harness are used here")]
#[path = "pair/world.rs"]
mod world;

use world::{account_signer, delegate, node_signer, offer};

const NOW: Wall = Wall::from_millis(1_800_000_000_000);
const REGIONS: [&str; 4] = ["CN-NX", "CN-BJ", "US-OR", "attic"];

/// What differs from offer to offer.
#[derive(Debug, Clone)]
struct Draw {
    region: usize,
    devices: Vec<(bool, u64, u64, bool)>,
    price: (u64, u64),
    slots_free: u32,
    sandbox: SandboxLevel,
    energy: Option<u32>,
    bandwidth: u64,
    picky: bool,
    expired: bool,
}

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    let device = (any::<bool>(), 0_u64..6, 0_u64..5, any::<bool>());
    let one = (
        (0..REGIONS.len(), prop::collection::vec(device, 0..4)),
        ((0_u64..4, 0_u64..5), 0_u32..3),
        (0_u8..3, prop::option::of(0_u32..3)),
        (
            0_u64..3,
            prop::bool::weighted(0.2),
            prop::bool::weighted(0.1),
        ),
    );
    let draw = one.prop_map(
        |(
            (region, devices),
            (price, slots_free),
            (sandbox, energy),
            (bandwidth, picky, expired),
        )| Draw {
            region,
            devices,
            price,
            slots_free,
            sandbox: [
                SandboxLevel::PROCESS,
                SandboxLevel::CONFINED,
                SandboxLevel::CAPPED,
            ][usize::from(sandbox)],
            energy,
            bandwidth: bandwidth * 1_000_000,
            picky,
            expired,
        },
    );
    prop::collection::vec(draw, 0..40)
}

fn signed(number: usize, draw: &Draw) -> Verified<Offer> {
    let signer: Signer = node_signer(number);
    let mut body = offer(2);
    body.account = account_signer(number).public().account();
    body.delegation = delegate(number);
    body.region = Text::lossy(REGIONS[draw.region]);
    body.slots_free = draw.slots_free;
    body.sandbox = draw.sandbox;
    body.bandwidth_in = draw.bandwidth;
    body.energy = draw.energy.map(|carbon| Energy {
        watts: 100,
        carbon_g_per_kwh: carbon * 100,
    });
    body.prices = List::truncated(vec![
        Price {
            meter: Meter::JOB,
            amount: Amount::from_micros(draw.price.0 * 500),
            per: 1,
        },
        Price {
            meter: Meter::GPU_MS,
            amount: Amount::from_micros(draw.price.1),
            per: 3,
        },
    ]);
    body.accept = draw.picky.then(|| {
        let terms = vec![
            Term::Field(Field::JOB_MEMORY),
            Term::Number(Number::whole(2 << 30), Unit::Bytes),
            Term::Compare(Comparison::Less),
        ];
        Expression::new(terms, Scope::Job, Type::Bool).unwrap()
    });
    let devices = draw
        .devices
        .iter()
        .map(|&(gpu, memory, speed, wasm)| Device {
            kind: if gpu {
                DeviceKind::GPU
            } else {
                DeviceKind::CPU
            },
            maker: Text::lossy(if gpu { "maker" } else { "other" }),
            model: Text::lossy(if speed % 2 == 0 { "even" } else { "odd" }),
            driver: Text::default(),
            memory_bytes: memory << 30,
            slots: 1,
            runtimes: List::truncated(vec![RuntimeOffer {
                runtime: if wasm { Runtime::WASM } else { Runtime::WGSL },
                version: 1,
                features: List::default(),
            }]),
            speeds: List::truncated(vec![Speed {
                kind: SpeedKind::FP32,
                per_second: speed * 1_000_000,
                measured: NOW,
            }]),
        });
    body.devices = List::truncated(devices.collect());
    let life = if draw.expired { 1 } else { 300 };
    signer.sign(NOW, NOW.after(Duration::from_secs(life)), body)
}

/// A condition out of parts that the index treats differently.
fn condition(parts: &[u8]) -> Option<Expression> {
    let text = |text: &str| Term::Text(Text::lossy(text));
    let mut terms = Vec::new();
    for (n, part) in parts.iter().enumerate() {
        terms.extend(match part % 5 {
            0 => vec![Term::Field(Field::REGION), text("CN-"), Term::StartsWith],
            1 => vec![
                Term::Field(Field::GPU_MEMORY),
                Term::Number(Number::whole(2 << 30), Unit::Bytes),
                Term::Compare(Comparison::GreaterOrEqual),
            ],
            2 => vec![
                Term::Field(Field::EXPECTED_PRICE),
                Term::Number(Number::millionths(20_000), Unit::Money),
                Term::Compare(Comparison::Less),
            ],
            3 => vec![
                Term::Field(Field::DEVICE_MODEL),
                text("odd"),
                Term::Compare(Comparison::Equal),
                Term::Field(Field::SLOTS_FREE),
                Term::Number(Number::whole(1), Unit::Plain),
                Term::Compare(Comparison::Greater),
                Term::Or,
            ],
            _ => vec![
                Term::Field(Field::PRICE_GPU_HOUR),
                Term::Number(Number::millionths(4_000_000), Unit::Money),
                Term::Compare(Comparison::LessOrEqual),
            ],
        });
        if n > 0 {
            terms.push(Term::And);
        }
    }
    (!terms.is_empty()).then(|| Expression::new(terms, Scope::Offer, Type::Bool).unwrap())
}

/// What is wanted.
#[derive(Debug, Clone)]
struct Wish {
    parts: Vec<u8>,
    policy: usize,
    ranked: bool,
    memory: u64,
    gpu: bool,
    here: bool,
    flops: Option<u64>,
    budget: u64,
    within: Option<u64>,
    units: bool,
    inputs: u64,
    traffic: u64,
}

fn wishes() -> impl Strategy<Value = Wish> {
    let about = (
        prop::collection::vec(any::<u8>(), 0..3),
        0..Policy::ALL.len(),
        any::<bool>(),
        0_u64..3,
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.3),
    );
    let bounds = (
        prop::option::of(1_u64..100_000_000),
        prop_oneof![Just(700_u64), 700_u64..40_000, Just(10_000_000)],
        prop::option::of(1_u64..60_000),
        any::<bool>(),
        (
            0_u64..100_000_000,
            prop_oneof![Just(0_u64), 0_u64..50_000_000],
        ),
    );
    (about, bounds).prop_map(
        |(
            (parts, policy, ranked, memory, gpu, here),
            (flops, budget, within, units, (inputs, traffic)),
        )| {
            Wish {
                parts,
                policy,
                ranked,
                memory,
                gpu,
                here,
                flops,
                budget,
                within,
                units,
                inputs,
                traffic,
            }
        },
    )
}

fn view(peer: PeerId) -> Result<View, Reason> {
    let [first, second, third, ..] = *Hash::of(peer.as_bytes()).as_bytes();
    match first % 8 {
        0 => Err(Reason::EXCLUDED),
        1 => Ok(View {
            believed: second % 101,
            failing: u16::from(third),
            link: Way {
                rtt_us: Some(second.into()),
                bytes_per_second: Some(u64::from(second) * 1000),
            },
            holds: u64::from(third) * 1000,
        }),
        _ => Ok(View {
            failing: u16::from(third) % 3,
            ..View::UNKNOWN
        }),
    }
}

proptest! {
    #[test]
    fn a_book_is_ranked_as_its_offers_are(draws in draws(), wish in wishes(), gone in any::<u64>()) {
        let mut book = Book::default();
        for (number, draw) in draws.iter().enumerate() {
            book.insert(NOW, signed(number, draw));
        }
        // Some go, and some come again with something else.
        for (number, draw) in draws.iter().enumerate() {
            if gone >> (number % 64) & 1 == 1 && number + 1 < draws.len() {
                let mut offer = signed(number, &draws[number + 1]).body().clone();
                offer.sequence += 1;
                let until = NOW.after(Duration::from_secs(if draw.expired { 200 } else { 2 }));
                book.insert(NOW, node_signer(number).sign(NOW, until, offer));
            }
        }
        let condition = condition(&wish.parts);
        let rank = wish.ranked.then(|| {
            let field = vec![Term::Field(Field::DEVICE_MEMORY)];
            Expression::new(field, Scope::Offer, Type::Number(Unit::Plain)).unwrap()
        });
        let needs = Needs {
            runtime: Runtime::WGSL,
            features: List::default(),
            device: wish.gpu.then_some(DeviceKind::GPU),
            memory_bytes: wish.memory << 30,
            sandbox: SandboxLevel::PROCESS,
            run_max: Millis::new(20_000),
            output_bytes_max: 1 << 10,
            fuel_max: 0,
            model: None,
        };
        let regions = if wish.here { vec![Text::lossy("CN-NX"), Text::lossy("attic")] } else { vec![] };
        let work = if wish.units {
            Work::Array {
                units: List::truncated(vec![suanli_protocol::deal::UnitRange { first: 0, count: 5 }]),
                inputs_each: 0,
            }
        } else {
            Work::Job
        };
        let want = Want {
            needs: &needs,
            work: &work,
            budget: Amount::from_micros(wish.budget),
            regions: &regions,
            flops: wish.flops,
            policy: Policy::ALL[wish.policy],
            condition: condition.as_ref(),
            rank: rank.as_ref(),
            account: account_signer(99).public().account(),
            home: "CN-BJ",
            inputs_bytes: wish.inputs,
            traffic: Amount::from_micros(wish.traffic),
            within: wish.within.map(Millis::new),
            is_begun: false,
        };
        let later = NOW.after(Duration::from_secs(10));
        let offers = book.iter().filter(|offer| offer.expires() > later);
        let one_by_one = rank::rank(offers, &want, view);
        let by_index = rank::rank_book(&book, later, &want, |_| false, view);
        prop_assert_eq!(&one_by_one.candidates, &by_index.candidates);
        prop_assert_eq!(one_by_one.fitting, by_index.fitting);
        prop_assert_eq!(one_by_one.unfit, by_index.unfit);
        let sorted = |plan: &rank::Plan| {
            let mut misfits = plan.misfits.clone();
            misfits.sort_by_key(|misfit| misfit.peer);
            misfits
        };
        prop_assert_eq!(sorted(&one_by_one), sorted(&by_index));
    }
}
