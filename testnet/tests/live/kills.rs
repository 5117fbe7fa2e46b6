//! Nodes that are killed at random points of a stream of jobs lose nothing
//! that anybody relies on, and charge nothing twice.
//!
//! `SUANLI_KILL_POINTS` says how often (default 6), `SUANLI_KILL_SEED` where
//! the points lie; a failure names both.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    time::{Duration, Instant},
};

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};
use rand_core::Rng as _;
use suanli_node::api::types::{ChannelInfo, ReceiptInfo};
use suanli_protocol::{
    ids::{JobId, ReceiptId},
    units::{Amount, Total},
};
use suanli_testnet::live::{Api, ApiFailure};

use crate::network::{CLIENT, Network, Submitter, channels, eventually, job, receipt, receipts};

const PROVIDER: &str = "provider";
const NODES: [&str; 2] = [CLIENT, PROVIDER];
/// A noop job takes some tens of milliseconds: a kill falls into any phase of
/// one of the first jobs after a start.
const STREAM_MS_MAX: u64 = 400;
/// Jobs under way at once.
const AT_ONCE: usize = 3;

#[test]
fn live_abuse_51_kill_points_lose_nothing_and_charge_nothing_twice() {
    let points: usize = number("SUANLI_KILL_POINTS", 6);
    let seed: u64 = number("SUANLI_KILL_SEED", 1);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut network = Network::start(&[PROVIDER]);
    let mut stream = Stream::new();
    for point in 0..points {
        let victim = NODES[usize::from(rng.next_u32() % 2 == 0)];
        let length = Duration::from_micros(rng.next_u64() % (STREAM_MS_MAX * 1000));
        let place = format!("point {point} of {points}, seed {seed}, {victim} killed");
        stream.run(&network, length);
        network.testnet.node_mut(victim).unwrap().kill().unwrap();
        stream.look(&network);
        network.testnet.restart(victim).unwrap();
        if let Err(error) = network.testnet.wait_ready() {
            panic!("{place}: {error}");
        }
        stream.check(&network, &place);
    }
    stream.finish(&network);
    let settled = stream.settled(&network);
    println!(
        "{points} kills: {} jobs handed in, {settled} charged, once each",
        stream.taken.len()
    );
    assert!(settled > 0);
}

/// A stream of jobs, and what nodes have said about them.
struct Stream {
    submitter: Submitter,
    /// All that were handed in; of the last before a kill the node may know nothing.
    tried: BTreeSet<JobId>,
    /// Those that the client's node said to have.
    taken: BTreeSet<JobId>,
    over: BTreeSet<JobId>,
    /// By node: what it said to hold.
    seen: BTreeMap<&'static str, Holdings>,
}

/// What a node says to hold. All of it came from its journal, so that it must
/// never get less.
struct Holdings {
    api: Api,
    /// The newest; older ones are asked for one by one.
    receipts: BTreeMap<ReceiptId, ReceiptInfo>,
    channels: Vec<ChannelInfo>,
}

impl Stream {
    fn new() -> Self {
        Self {
            submitter: Submitter::noop(),
            tried: BTreeSet::new(),
            taken: BTreeSet::new(),
            over: BTreeSet::new(),
            seen: BTreeMap::new(),
        }
    }

    /// Keeps jobs under way for so long.
    fn run(&mut self, network: &Network, length: Duration) {
        let api = network.api(CLIENT);
        let start = Instant::now();
        while start.elapsed() < length {
            let open: Vec<JobId> = self.taken.difference(&self.over).copied().collect();
            for id in &open {
                let found = job(&api, *id).unwrap_or_else(|| panic!("job {id} is lost"));
                if found.is_over() {
                    self.over.insert(*id);
                }
            }
            if open.len() < AT_ONCE {
                let (id, answer) = self.submitter.submit(&api);
                self.tried.insert(id);
                if answer.is_ok() {
                    self.taken.insert(id);
                }
            }
        }
        self.look(network);
    }

    /// Notes what the nodes say to hold; one that is down says nothing.
    fn look(&mut self, network: &Network) {
        for name in NODES {
            let asked = network.node(name).api().and_then(|api| Holdings::of(&api));
            if let Ok(holdings) = asked {
                self.seen.insert(name, holdings);
            }
        }
    }

    /// What was said before still holds, and nobody lacks what the other has.
    fn check(&mut self, network: &Network, place: &str) {
        // Jobs go on meanwhile: each side is asked before whoever must have as much.
        let [before, provider, client] =
            [CLIENT, PROVIDER, CLIENT].map(|name| Holdings::of(&network.api(name)).unwrap());
        for (name, now) in [(CLIENT, &client), (PROVIDER, &provider)] {
            if let Some(before) = self.seen.get(name) {
                now.holds_all_of(before, &format!("{place}: {name}"));
            }
        }
        client.agrees_with(&before, &provider, place);
        self.seen.insert(CLIENT, client);
        self.seen.insert(PROVIDER, provider);
    }

    /// Waits until all jobs are over and both sides have said all.
    fn finish(&self, network: &Network) {
        let [client, provider] = NODES.map(|name| network.api(name));
        for id in &self.taken {
            eventually("a job that ends", || {
                let found = job(&client, *id).unwrap_or_else(|| panic!("job {id} is lost"));
                found.is_over().then_some(())
            });
        }
        let mut shown = String::new();
        eventually("both sides agreeing", || {
            let (paid, earned) = (channels(&client).unwrap(), channels(&provider).unwrap());
            let ([paid], [earned]) = (&paid[..], &earned[..]) else {
                panic!("one channel on each side: {paid:?} {earned:?}");
            };
            // Says in the log of a failure what they did not agree about.
            let now = format!("{paid:?} {earned:?}");
            if now != shown {
                println!("{now}");
                shown = now;
            }
            let nothing = Total::ZERO.to_string();
            // A channel on which nothing waits is not asked about after a restart,
            // so it need not be in step yet.
            let agreed = paid.pending == nothing
                && paid.sequence == paid.acknowledged
                && earned.pending == nothing
                && (paid.sequence, &paid.cumulative) == (earned.sequence, &earned.cumulative);
            agreed.then_some(())
        });
    }

    /// How many jobs were charged, none of them twice, all of it on both sides.
    fn settled(&self, network: &Network) -> usize {
        let apis = NODES.map(|name| network.api(name));
        let (mut charged, mut total) = (0, Total::ZERO);
        for found in self.tried.iter().filter_map(|id| job(&apis[0], *id)) {
            let due: Vec<_> = found
                .receipts
                .iter()
                .map(|id| apis.each_ref().map(|api| receipt(api, *id).unwrap()))
                .filter(|[bought, _]| bought.amount > Amount::ZERO)
                .collect();
            assert!(due.len() <= 1, "charged twice: {due:?}");
            for sides in due {
                for side in &sides {
                    assert!(
                        is_accepted(side) && side.paid && side.acknowledged,
                        "{side:?}"
                    );
                }
                charged += 1;
                total = total.checked_add(sides[0].amount).unwrap();
            }
        }
        for (name, api) in NODES.iter().zip(&apis) {
            // Anything charged beyond these jobs would be in here.
            let channels = channels(api).unwrap();
            assert_eq!(channels[0].cumulative, total.to_string(), "{name}");
        }
        charged
    }
}

impl Holdings {
    fn of(api: &Api) -> Result<Self, ApiFailure> {
        let receipts = receipts(api)?.into_iter();
        Ok(Self {
            api: api.clone(),
            receipts: receipts.map(|receipt| (receipt.receipt, receipt)).collect(),
            channels: channels(api)?,
        })
    }

    fn receipt(&self, id: ReceiptId) -> Option<ReceiptInfo> {
        let listed = self.receipts.get(&id).cloned();
        listed.or_else(|| receipt(&self.api, id))
    }

    fn holds_all_of(&self, before: &Self, place: &str) {
        for (id, old) in &before.receipts {
            let new = self
                .receipt(*id)
                .unwrap_or_else(|| panic!("{place} lost a receipt: {old:?}"));
            let kept = (old.verdict.is_none() || old.verdict == new.verdict)
                && old.paid <= new.paid
                && old.acknowledged <= new.acknowledged;
            assert!(kept, "{place} forgot: {old:?}, now {new:?}");
        }
        for old in &before.channels {
            let new = self.channels.iter().find(|new| new.channel == old.channel);
            let new = new.unwrap_or_else(|| panic!("{place} lost a channel: {old:?}"));
            let kept = new.sequence >= old.sequence && new.acknowledged >= old.acknowledged;
            assert!(
                kept && !new.frozen,
                "{place} went back: {old:?}, now {new:?}"
            );
        }
    }

    /// As the client: whatever one side got from the other, the other still has.
    /// `earlier` is what it held before the provider was asked.
    fn agrees_with(&self, earlier: &Self, provider: &Self, place: &str) {
        for (id, bought) in &earlier.receipts {
            assert!(
                provider.receipt(*id).is_some(),
                "{place}: the provider lacks {bought:?}"
            );
        }
        for (id, sold) in &provider.receipts {
            if sold.verdict.is_some() {
                let bought = self.receipt(*id).map(|bought| bought.verdict);
                assert_eq!(bought.as_ref(), Some(&sold.verdict), "{place}: {sold:?}");
            }
        }
        for earned in &provider.channels {
            let of = |side: &Self| {
                let mut all = side.channels.iter();
                all.find(|paid| paid.channel == earned.channel).cloned()
            };
            let paid = of(self).unwrap_or_else(|| panic!("{place}: the client lacks {earned:?}"));
            let acknowledged = of(earlier).map_or(0, |paid| paid.acknowledged);
            let in_step = paid.sequence >= earned.sequence && earned.sequence >= acknowledged;
            assert!(in_step, "{place}: {paid:?} {earned:?} {acknowledged}");
        }
    }
}

fn is_accepted(receipt: &ReceiptInfo) -> bool {
    receipt.verdict.as_deref() == Some("accepted")
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}
