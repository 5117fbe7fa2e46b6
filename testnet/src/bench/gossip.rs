//! How long a new offer takes into every book.
//!
//! All nodes are in this process, each with a store, a transport on loopback
//! and a driver of its own, and each joined by a few that came before it. In
//! each round another one announces its offer anew. The clock runs from the
//! order to announce, so the record that the provider makes durable first is in
//! it, and so are the signature checks of every node on the way.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use libp2p::Multiaddr;
use tokio::task::JoinSet;

use super::{
    figures::{Figure, Report},
    machine::{self, Watch},
    member::{Member, until},
};

/// Rounds before the clock counts: the mesh of the gossip forms meanwhile.
const WARM_UP: usize = 10;
/// A mesh is made at its heartbeats, of which there is one a second.
const MESH: Duration = Duration::from_secs(3);
/// An offer that is not there by then is counted as lost.
const ROUND_MAX: Duration = Duration::from_secs(5);

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Plan {
    /// Nodes in this process
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(2..=200))]
    nodes: u32,
    /// Nodes that each one joins by
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    joins: u32,
    /// Offers announced
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// End after this many seconds, with fewer rounds
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// How nodes are connected
    #[arg(long, value_enum, default_value_t = Wire::Quic)]
    over: Wire,
}

/// A transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Wire {
    /// As nodes prefer
    Quic,
    /// Where UDP is blocked
    Tcp,
}

impl Wire {
    fn listen(self) -> anyhow::Result<Multiaddr> {
        Ok(match self {
            Self::Quic => "/ip4/127.0.0.1/udp/0/quic-v1".parse()?,
            Self::Tcp => "/ip4/127.0.0.1/tcp/0".parse()?,
        })
    }
}

/// Runs it, with the nodes' folders in `dir`.
pub(super) async fn run(plan: Plan, dir: &Path) -> anyhow::Result<Report> {
    let watch = Watch::begin();
    let before = own_memory_mib();
    let members = join(plan, dir).await?;
    let after = own_memory_mib();
    let measured = measure(plan, &members).await;
    for member in members {
        member.stop().await?;
    }
    let mut figures = measured?.figures(plan);
    figures.push(
        Figure::one(
            format!("{} nodes, memory of one", plan.nodes),
            "MiB",
            (after - before) / f64::from(plan.nodes),
        )
        .note(format!("with {} offers in each book", plan.nodes)),
    );
    Ok(Report {
        bench: "gossip",
        figures,
        state: watch.end(),
    })
}

/// Starts the nodes, and waits until each has the offers of all.
async fn join(plan: Plan, dir: &Path) -> anyhow::Result<Vec<Member>> {
    let count = usize::try_from(plan.nodes)?;
    let joins = usize::try_from(plan.joins)?;
    let listen = plan.over.listen()?;
    let mut members: Vec<Member> = Vec::new();
    for n in 0..count {
        let addresses = earlier(n, joins).map(|m| members[m].address.clone());
        let bootstrap = addresses.collect();
        members.push(Member::start(&dir.join(n.to_string()), &listen, bootstrap).await?);
    }
    for member in &members {
        until("every book has every offer", async || {
            Ok(member.handle.offers().await?.len() == count)
        })
        .await?;
    }
    tokio::time::sleep(MESH).await;
    Ok(members)
}

/// Whom the `n`th node joins by: a few of those before it, spread out, so that
/// no node is everybody's neighbour and the way to the last one is short.
fn earlier(n: usize, joins: usize) -> impl Iterator<Item = usize> {
    let few = joins.min(n);
    (0..few).map(move |k| (n * 7 + k * n / few) % n)
}

/// What was seen, in milliseconds.
#[derive(Debug, Default)]
struct Measured {
    each: Vec<f64>,
    all: Vec<f64>,
    lost: usize,
}

async fn measure(plan: Plan, members: &[Member]) -> anyhow::Result<Measured> {
    let begin = Instant::now();
    let mut measured = Measured::default();
    let rounds = usize::try_from(plan.rounds)?;
    for round in 0..WARM_UP + rounds {
        let mut reached = announce(members, round % members.len()).await?;
        if round < WARM_UP {
            continue;
        }
        reached.sort_unstable();
        let ms = reached.iter().map(|time| time.as_secs_f64() * 1e3);
        measured.each.extend(ms);
        let lost = members.len() - 1 - reached.len();
        measured.lost += lost;
        if lost == 0 {
            measured.all.extend(measured.each.last());
        }
        if begin.elapsed().as_secs() >= plan.seconds {
            break;
        }
    }
    Ok(measured)
}

/// Has one node announce its offer, and says how long it took to each other one
/// that it reached.
async fn announce(members: &[Member], announcer: usize) -> anyhow::Result<Vec<Duration>> {
    let announcer = &members[announcer].handle;
    let provider = announcer.facts().peer;
    let old = announcer.sequence_of(provider).await?;
    let next = old.context("the announcer has no offer")? + 1;
    let mut waiting = JoinSet::new();
    for member in members {
        let handle = member.handle.clone();
        if handle.facts().peer == provider {
            continue;
        }
        waiting.spawn(async move {
            let reached = handle.sequence_reached(provider, next).await;
            reached.map(|()| Instant::now())
        });
    }
    // A driver answers in order: now all know who waits.
    tokio::task::yield_now().await;
    for member in members {
        member.handle.sequence_of(provider).await?;
    }
    let begin = Instant::now();
    announcer.announce().await?;
    let mut reached = Vec::new();
    let until = tokio::time::Instant::from_std(begin + ROUND_MAX);
    while let Ok(Some(arrived)) = tokio::time::timeout_at(until, waiting.join_next()).await {
        reached.push(arrived??.duration_since(begin));
    }
    Ok(reached)
}

impl Measured {
    fn figures(self, plan: Plan) -> Vec<Figure> {
        let nodes = plan.nodes;
        let over = match plan.over {
            Wire::Quic => "QUIC",
            Wire::Tcp => "TCP",
        };
        let lost = match self.lost {
            0 => "none was lost".to_owned(),
            lost => format!("{lost} did not arrive within {} s", ROUND_MAX.as_secs()),
        };
        vec![
            Figure::of(format!("{nodes} nodes, to one book"), "ms", self.each)
                .note(format!("over {over}; {lost}")),
            Figure::of(format!("{nodes} nodes, to all books"), "ms", self.all),
        ]
    }
}

fn own_memory_mib() -> f64 {
    machine::memory_mib(std::process::id()).map_or(0.0, |(_, shared_out)| shared_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_join_by_different_earlier_ones() {
        for n in 0..60 {
            let mut joined: Vec<_> = earlier(n, 4).collect();
            assert_eq!(joined.len(), n.min(4));
            assert!(joined.iter().all(|&earlier| earlier < n));
            joined.sort_unstable();
            joined.dedup();
            assert_eq!(joined.len(), n.min(4), "node {n}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_announcement_reaches_every_other_book() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan {
            nodes: 3,
            joins: 2,
            rounds: 2,
            seconds: 30,
            over: Wire::Tcp,
        };
        let report = run(plan, dir.path()).await.unwrap();
        let each = report.figures[0].spread.unwrap();
        assert_eq!(each.n, 4);
        assert_eq!(report.figures[1].spread.unwrap().n, 2);
    }
}
