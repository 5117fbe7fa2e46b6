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
    offer::{Charge, Device, Name, Offer, RuntimeOffer, Terms},
    peer::{Config, ProviderConfig, Timing},
    registry::{DeviceKind, Runtime, SandboxLevel},
    units::{Amount, Meter, Millis, Mono, Price, Wall},
    wire::List,
};

use super::{
    Setup,
    dice::{Dice, secret},
    node::{Disk, Gossiper, Ix, Node},
    plant::Plant,
};
use crate::scenario::{Group, Scenario};

/// What a known account may owe.
const WINDOW: Amount = Amount::from_micros(60_000_000);
/// What a stranger may owe, and all of them together.
const STRANGER_CREDIT: Amount = Amount::from_micros(4_000_000);
pub(crate) const STRANGERS_BUDGET: Amount = Amount::from_micros(8_000_000);

/// Every so many nodes of a group share their account with the one before.
const SHARED_ACCOUNT: usize = 5;

/// All nodes of a scenario.
pub(crate) fn nodes(setup: &Setup, network: NetworkId) -> Vec<Node> {
    let mut dice = Dice::new(setup.seed, "cast");
    let scenario = &setup.scenario;
    let mut nodes: Vec<Node> = Vec::new();
    let mut known = BTreeMap::new();
    for group in &scenario.groups {
        for number in 0..group.count {
            let ix = nodes.len();
            let owner = if number % SHARED_ACCOUNT == SHARED_ACCOUNT - 1 {
                ix - 1
            } else {
                ix
            };
            let account = Signer::new(&secret(setup.seed, "account", owner), network);
            if group.known {
                known.insert(account.public().account(), WINDOW);
            }
            nodes.push(node(setup, network, group, number, ix, &account, &mut dice));
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
    let sells = group.role.sells();
    let skew = i64::try_from(dice.within([0, 2 * group.skew_ms])).unwrap_or(0)
        - i64::try_from(group.skew_ms).unwrap_or(0);
    Node {
        name: format!("{}{number}", group.name),
        config: Config {
            account: owner,
            provider: sells.then(|| provider(group, owner, &delegation, told)),
            delegation,
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
    }
}

/// A ring, so that all are connected, and chords across it.
fn link(nodes: &mut [Node], scenario: &Scenario, dice: &mut Dice) {
    let count = nodes.len();
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
