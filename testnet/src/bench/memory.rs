//! What memory a node needs that does nothing but know 200 offers.
//!
//! One `suanli node` process, which only buys and so has no workers, and a
//! stand-in for the network in this process: a bare transport that answers
//! every pull of the offer book with offers of nodes that don't exist.

use std::{
    collections::BTreeSet,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use libp2p::Multiaddr;
use suanli_node::{
    api::types::Status,
    data_dir::random_secret,
    transport::{
        Channel, Transport, TransportCommand, TransportConfig, TransportEvent, TransportHandle,
        TransportLimits,
    },
};
use suanli_protocol::{
    envelope::Verified,
    ids::NetworkId,
    limits::OFFERS_PER_PAGE,
    message::{Frame, Pull},
    offer::Offer,
    units::Wall,
    wire::List,
};
use tokio::sync::mpsc;

use super::{
    figures::{Aim, Figure, Report},
    machine::{self, Watch},
    offers,
};
use crate::live::{Api, Programs, Testnet, Topology, topology::NodeSpec, wait_for};

/// HyperQueue needs 28 MiB, HTCondor 33.
const AIM_MIB: f64 = 40.0;
/// Longer than the benchmark.
const OFFER_LIFE: Duration = Duration::from_secs(600);
/// Two hundred offers are seventeen pages.
const PULLED_WITHIN: Duration = Duration::from_secs(30);

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Plan {
    /// Offers that the node knows
    #[arg(long, default_value_t = 200)]
    offers: u8,
    /// Seconds in which it comes to rest
    #[arg(long, default_value_t = 10)]
    rest: u64,
}

/// Runs it, with the node's folder in `dir`.
pub(super) fn run(
    plan: Plan,
    dir: &Path,
    runtime: &tokio::runtime::Runtime,
) -> anyhow::Result<Report> {
    let watch = Watch::begin();
    let topology = Topology {
        nodes: vec![NodeSpec {
            name: "client".into(),
            region: "CN-BJ".into(),
            provide: None,
            settings: toml::Table::new(),
        }],
    };
    let mut testnet = Testnet::start(&topology, dir, Programs::find()?)?;
    let network = testnet.network().to_owned();
    let node = testnet.node("client")?;
    let api = node.api()?;
    let pid = node.process().context("the node's process")?.pid();
    let rest = Duration::from_secs(plan.rest);
    let alone = at_rest(pid, rest)?;
    let addresses = listen(&api)?;
    let stand_in = runtime.block_on(async { StandIn::start(&network, &addresses, plan.offers) })?;
    let known = || {
        api.get::<Status>("/v1/status")
            .ok()
            .map(|status| status.offers)
    };
    let all = u32::from(plan.offers);
    wait_for(PULLED_WITHIN, || (known() == Some(all)).then_some(()))
        .with_context(|| format!("the node knows {:?} of {all} offers", known()))?;
    let full = at_rest(pid, rest)?;
    drop(stand_in);
    testnet.down()?;
    Ok(Report {
        bench: "memory",
        figures: figures(plan, alone, full),
        state: watch.end(),
    })
}

fn figures(plan: Plan, alone: Memory, full: Memory) -> Vec<Figure> {
    let offers = plan.offers;
    vec![
        Figure::one("a node alone, resident", "MiB", alone.resident),
        Figure::one(
            format!("with {offers} offers, resident"),
            "MiB",
            full.resident,
        )
        .aim(Aim::Below(AIM_MIB)),
        Figure::one(
            format!("with {offers} offers, its share"),
            "MiB",
            full.share,
        )
        .note("pages that it shares with others counted in part"),
    ]
}

/// Memory of a process in MiB.
#[derive(Debug, Clone, Copy)]
struct Memory {
    resident: f64,
    share: f64,
}

fn at_rest(pid: u32, rest: Duration) -> anyhow::Result<Memory> {
    thread::sleep(rest);
    let (resident, share) =
        machine::memory_mib(pid).context("/proc does not say how much memory the node has")?;
    Ok(Memory { resident, share })
}

fn listen(api: &Api) -> anyhow::Result<Vec<Multiaddr>> {
    let status: Status = api.get("/v1/status")?;
    let addresses = status.listen.iter().map(|at| at.parse());
    Ok(addresses.collect::<Result<_, _>>()?)
}

/// Says what a whole network would say. It ends when it is dropped.
struct StandIn {
    _handle: TransportHandle,
}

impl StandIn {
    fn start(network: &str, node: &[Multiaddr], count: u8) -> anyhow::Result<Self> {
        let id = NetworkId::of(network);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let now = Wall::default().after(since);
        let mut offers: Vec<_> = (0..count)
            .map(|number| offers::stranger(id, number, now, now.after(OFFER_LIFE)))
            .collect();
        offers.sort_by_key(Verified::signer);
        let (handle, events) = Transport::start(TransportConfig {
            secret: *random_secret()?,
            network: network.to_owned(),
            agent: "suanli-bench".to_owned(),
            listen: Vec::new(),
            bootstrap: node.to_vec(),
            lan: true,
            limits: TransportLimits::default(),
        })?;
        tokio::spawn(answer_pulls(handle.clone(), events, offers));
        Ok(Self { _handle: handle })
    }
}

async fn answer_pulls(
    transport: TransportHandle,
    mut events: mpsc::Receiver<TransportEvent>,
    offers: Vec<Verified<Offer>>,
) {
    while let Some(event) = events.recv().await {
        let TransportEvent::Frame(frame) = event else {
            continue;
        };
        let Ok(Frame::Pull(pull)) = Frame::decode(&frame.bytes) else {
            continue;
        };
        let answer = TransportCommand::Send {
            to: frame.from,
            channel: Channel::Book,
            bytes: page(&offers, &pull).encode(),
        };
        if transport.send(answer).await.is_err() {
            return;
        }
    }
}

/// The next page of what is not known, of offers in the order of providers.
fn page(offers: &[Verified<Offer>], pull: &Pull) -> Frame {
    let known: BTreeSet<_> = pull.known.iter().map(|known| known.peer).collect();
    let mut lacking = offers
        .iter()
        .filter(|offer| offer.signer() >= pull.from)
        .filter(|offer| pull.to.is_none_or(|to| offer.signer() < to))
        .filter(|offer| !known.contains(&offer.signer()));
    let page = lacking.by_ref().take(OFFERS_PER_PAGE).map(Verified::raw);
    let page = List::truncated(page.collect());
    let next = lacking.next().map(Verified::signer).or(pull.to);
    Frame::Offers(page, next)
}
