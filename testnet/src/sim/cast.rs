//! Who takes part: nodes from the groups of a scenario, with keys, clocks,
//! accounts, offers and neighbours drawn from the seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use suanli_protocol::{
    delegation::{Delegation, RawDelegation},
    envelope::{Extensions, Signer},
    ids::{AccountId, NetworkId},
    limits::{OFFER_TTL_MAX, RUN_MAX},
    offer::{Charge, Device, Energy, Name, Offer, RuntimeOffer, Speed, Terms},
    peer::{Config, ProviderConfig, Timing},
    registry::{DeviceKind, Runtime, SandboxLevel, SpeedKind},
    units::{Amount, Meter, Millis, Mono, Price, Wall},
    wire::{List, Text},
};

use super::{
    Setup,
    dice::{Dice, secret},
    node::{Disk, Gossiper, Ix, Node},
    plant::Plant,
    work::per_thousand,
};
use crate::scenario::{Group, Market, Scenario};

/// What a known account may owe.
const WINDOW: Amount = Amount::from_micros(60_000_000);
/// In a market nobody settles outside during the day.
const MARKET_WINDOW: Amount = Amount::from_micros(1_000_000_000_000_000);
/// What a stranger may owe, and all of them together.
const STRANGER_CREDIT: Amount = Amount::from_micros(4_000_000);
pub(crate) const STRANGERS_BUDGET: Amount = Amount::from_micros(8_000_000);

/// Every so many nodes of a group share their account with the one before.
const SHARED_ACCOUNT: usize = 5;

/// All nodes of a scenario.
pub(crate) fn nodes(setup: &Setup, network: NetworkId) -> Vec<Node> {
    let mut dice = Dice::new(setup.seed, "cast");
    let mut market_dice = Dice::new(setup.seed, "market cast");
    let scenario = &setup.scenario;
    let mut nodes: Vec<Node> = Vec::new();
    let mut known = BTreeMap::new();
    for group in &scenario.groups {
        for number in 0..group.count {
            let ix = nodes.len();
            let shares = scenario.market.is_none();
            let owner = if shares && number % SHARED_ACCOUNT == SHARED_ACCOUNT - 1 {
                ix - 1
            } else {
                ix
            };
            let account = Signer::new(&secret(setup.seed, "account", owner), network);
            let mut node = node(setup, network, group, number, ix, &account, &mut dice);
            if let Some(market) = &scenario.market {
                suit_market(&mut node, group, market, &mut market_dice);
            }
            // In a market nobody sells to those who only sell.
            if group.known && (shares || group.role.buys()) {
                let window = scenario.market.as_ref().map_or(WINDOW, |_| MARKET_WINDOW);
                known.insert(account.public().account(), window);
            }
            nodes.push(node);
        }
    }
    for node in &mut nodes {
        if let Some(provider) = &mut node.config.provider {
            provider.known = known.clone();
        }
    }
    link(&mut nodes, scenario, &mut dice);
    nodes
}

fn node(
    setup: &Setup,
    network: NetworkId,
    group: &Group,
    number: usize,
    ix: Ix,
    account: &Signer,
    dice: &mut Dice,
) -> Node {
    let signer = Signer::new(&secret(setup.seed, "node", ix), network);
    let delegation = account.sign(
        Wall::from_millis(0),
        Wall::from_millis(u64::MAX),
        Delegation {
            node: signer.public().peer(),
            provides: true,
            consumes: true,
            extensions: Extensions::default(),
        },
    );
    let owner = account.public().account();
    let delegation: RawDelegation = delegation.raw();
    let told = if setup.plant == Some(Plant::SlotsOversold) {
        group.slots + 2
    } else {
        group.slots
    };
    let market = setup.scenario.market.as_ref();
    let traffic_price = market.map_or(0, |market| market.traffic_price);
    let sells = group.role.sells();
    let skew = i64::try_from(dice.within([0, 2 * group.skew_ms])).unwrap_or(0)
        - i64::try_from(group.skew_ms).unwrap_or(0);
    Node {
        name: format!("{}{number}", group.name),
        config: Config {
            account: owner,
            region: Text::lossy(&group.region),
            traffic: Amount::from_micros(traffic_price),
            provider: sells.then(|| provider(group, owner, &delegation, told)),
            delegation,
            budgets: BTreeMap::new(),
            timing: timing(),
        },
        signer,
        nature: group.nature,
        cheats: group.cheats,
        region: group.region.clone(),
        skew_ms: skew,
        slots: usize::try_from(group.slots).unwrap_or(usize::MAX),
        peer: None,
        twin: None,
        boot: 0,
        booted: Mono::from_micros(0),
        tick: None,
        crash_in: None,
        disk: Disk::default(),
        runs: BTreeMap::new(),
        blobs: BTreeSet::new(),
        neighbours: Vec::new(),
        gossip: Gossiper::default(),
    }
}

/// As patient as a real node, but for what would outlast the simulation.
fn timing() -> Timing {
    Timing {
        transfer_max: Duration::from_secs(20),
        collect_max: Duration::from_secs(60),
        interrupted_max: Duration::from_secs(30),
        executor_grace: Duration::from_secs(4),
        offer_ttl: Duration::from_secs(120),
        pull: Duration::from_secs(20),
        ..Timing::default()
    }
}

/// A node as a day's trade wants it: prices and speeds of its own, and patience for jobs
/// that run for an hour and read gigabytes.
fn suit_market(node: &mut Node, group: &Group, market: &Market, dice: &mut Dice) {
    node.config.timing = market_timing(market);
    let Some(provider) = &mut node.config.provider else {
        return;
    };
    let offer = &mut provider.offer;
    let price = varied(group.price, group.varies, dice);
    let speed = varied(group.speed, group.varies, dice);
    let mut prices = offer.prices.to_vec();
    for line in prices.iter_mut().filter(|line| line.meter == Meter::GPU_MS) {
        line.amount = Amount::from_micros(price);
    }
    offer.prices = List::truncated(prices);
    let mut devices = offer.devices.to_vec();
    for device in &mut devices {
        device.speeds = List::truncated(vec![Speed {
            kind: SpeedKind::FP32,
            per_second: speed,
            measured: Wall::from_millis(0),
        }]);
    }
    offer.devices = List::truncated(devices);
    offer.energy = (group.watts > 0).then_some(Energy {
        watts: group.watts,
        carbon_g_per_kwh: group.carbon,
    });
    offer.storage_bytes = 1 << 40;
    offer.run_max = Millis::from(RUN_MAX);
}

/// A number of a group, as one node of it has it.
fn varied(number: u64, varies: f64, dice: &mut Dice) -> u64 {
    let thousandths = u64::from(per_thousand(varies));
    let drawn = dice.within([1000 - thousandths, 1000 + thousandths]);
    let varied = u128::from(number) * u128::from(drawn) / 1000;
    u64::try_from(varied).unwrap_or(u64::MAX)
}

/// Inputs may take as long as the most patient job waits.
fn market_timing(market: &Market) -> Timing {
    Timing {
        transfer_max: Duration::from_hours(12),
        collect_max: Duration::from_hours(2),
        executor_grace: Duration::from_mins(1),
        offer_ttl: OFFER_TTL_MAX,
        // Nothing is lost on the way, so nothing has to be compared.
        pull: Duration::from_millis(market.slack_ms[1]) + Duration::from_hours(48),
        heartbeat: Duration::from_mins(2),
        lost_after: Duration::from_mins(20),
        retry: Duration::from_mins(1),
        ..Timing::default()
    }
}

fn provider(
    group: &Group,
    account: AccountId,
    delegation: &RawDelegation,
    slots: u32,
) -> ProviderConfig {
    let price = |meter, amount, per| Price {
        meter,
        amount: Amount::from_micros(amount),
        per,
    };
    ProviderConfig {
        offer: Offer {
            account,
            delegation: delegation.clone(),
            sequence: 0,
            region: Name::lossy(&group.region),
            addresses: List::default(),
            devices: List::truncated(vec![Device {
                kind: DeviceKind::GPU,
                maker: Name::lossy("simulated"),
                model: Name::lossy("simulated"),
                driver: Name::lossy("simulated"),
                memory_bytes: 8 << 30,
                slots,
                runtimes: List::truncated(vec![RuntimeOffer {
                    runtime: Runtime::WGSL,
                    version: 1,
                    features: List::default(),
                }]),
                speeds: List::default(),
            }]),
            models: List::default(),
            prices: List::truncated(vec![
                price(Meter::JOB, 1000, 1),
                price(Meter::GPU_MS, group.price, 1000),
                price(Meter::TOKEN_IN, 150_000, 1_000_000),
                price(Meter::TOKEN_OUT, 600_000, 1_000_000),
            ]),
            slots,
            slots_free: slots,
            storage_bytes: 1 << 30,
            bandwidth_in: 0,
            bandwidth_out: 0,
            run_max: Millis::new(600_000),
            sandbox: SandboxLevel::CONFINED,
            energy: None,
            terms: Terms {
                strangers: true,
                stranger_credit: STRANGER_CREDIT,
                on_cancel: Charge::Usage,
                on_job_fault: Charge::Usage,
                on_provider_fault: Charge::Nothing,
                retention: Millis::new(30_000),
            },
            accept: None,
            firm: group.firm,
            extensions: Extensions::default(),
        },
        known: BTreeMap::new(),
        blocked: BTreeSet::new(),
        strangers_budget: STRANGERS_BUDGET,
        local_only: false,
        discount_percent_max: 15,
        challenges_per_hour: 12,
        references_per_hour: 120,
        queue: group.queue,
        pricing: std::sync::Arc::new(suanli_protocol::pricing::Fixed),
    }
}

/// A ring, so that all are connected, and chords across it; or each seller to each buyer.
fn link(nodes: &mut [Node], scenario: &Scenario, dice: &mut Dice) {
    let count = nodes.len();
    if scenario.links.direct {
        let sells = |ix: &Ix| nodes[*ix].config.provider.is_some();
        let (sellers, buyers): (Vec<Ix>, Vec<Ix>) = (0..count).partition(sells);
        for (n, &seller) in sellers.iter().enumerate() {
            let is_near = |buyer: &&Ix| nodes[**buyer].region == nodes[seller].region;
            let near = buyers
                .iter()
                .filter(|buyer| !scenario.links.local || is_near(buyer));
            nodes[seller].neighbours = near.copied().collect();
            // Who knows nobody asks around every other second.
            let next = sellers[(n + 1) % sellers.len()];
            nodes[seller].neighbours.push(next);
        }
        return;
    }
    let mut pairs: BTreeSet<(Ix, Ix)> = (0..count).map(|ix| (ix, (ix + 1) % count)).collect();
    for _ in 0..count * scenario.links.degree.saturating_sub(2) / 2 {
        pairs.insert((dice.index(count), dice.index(count)));
    }
    for (a, b) in pairs {
        if a != b && !nodes[a].neighbours.contains(&b) {
            nodes[a].neighbours.push(b);
            nodes[b].neighbours.push(a);
        }
    }
}
