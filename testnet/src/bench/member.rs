//! A whole node in this process, but for its executor and its API: identity,
//! store, transport and driver, as the daemon puts them together.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use libp2p::Multiaddr;
use suanli_node::{
    data_dir::{DataDir, random_secret},
    devices::Devices,
    driver::{self, DriverError, Parts},
    handle::{self, NodeFacts, NodeHandle},
    identity::Identity,
    records,
    store::{self, Store, blobs::Blobs},
    transport::{Transport, TransportConfig, TransportLimits},
};
use suanli_protocol::{
    ids::NetworkId,
    offer::Name,
    peer::{Config, ProviderConfig, Timing},
    units::Amount,
};
use tokio::task::JoinHandle;

use super::offers;

/// The network of all benchmarks.
pub(super) const NETWORK: &str = "bench";
/// Fifty of the usual segments would have the disk write zeros for minutes.
const SEGMENT_BYTES: u64 = 256 * 1024;
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Nothing that these nodes do takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running node.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) handle: NodeHandle,
    /// Where it listens.
    pub(super) address: Multiaddr,
    driver: JoinHandle<Result<(), DriverError>>,
}

impl Member {
    /// Starts a node that offers something, and waits until it listens.
    pub(super) async fn start(
        dir: &Path,
        listen: &Multiaddr,
        bootstrap: Vec<Multiaddr>,
    ) -> anyhow::Result<Self> {
        let network = NetworkId::of(NETWORK);
        let identity = Identity::open_or_create(&DataDir::new(dir), network)?;
        let mut store_config = store::Config::default();
        store_config.journal.segment_bytes = SEGMENT_BYTES;
        let store = Store::open(dir, &store_config, records::indexer(network))?.store;
        let (transport, events) = Transport::start(TransportConfig {
            secret: *identity.node_secret,
            network: NETWORK.to_owned(),
            agent: "suanli-bench".to_owned(),
            listen: vec![listen.clone()],
            bootstrap,
            lan: true,
            limits: TransportLimits::default(),
        })?;
        let (handle, asks) = handle::open(facts(&identity), store.clone(), transport.clone());
        let parts = Parts {
            config: Config {
                account: identity.account,
                delegation: identity.delegation.clone(),
                region: Name::default(),
                traffic: Amount::ZERO,
                provider: None,
                budgets: Default::default(),
                timing: Timing::default(),
            },
            provider: Some(provider(&identity)),
            signer: identity.node.clone(),
            seed: *random_secret()?,
            store,
            cache: Blobs::open(&dir.join("cache"), store::blobs::Config::default())?,
            scratch: dir.join("scratch"),
            transport,
            events,
            devices: Devices::default(),
            executions: None,
            models: None,
            asks,
            pauses: None,
        };
        let driver = tokio::spawn(driver::run(parts));
        let address = listening(&handle).await?;
        Ok(Self {
            handle,
            address,
            driver,
        })
    }

    /// Stops it cleanly.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.handle.stop().await?;
        Ok(self.driver.await??)
    }
}

/// Looks at something until it is so.
pub(super) async fn until(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !look().await? {
        if begin.elapsed() > PATIENCE {
            bail!("after {} s still not so: {what}", PATIENCE.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

async fn listening(handle: &NodeHandle) -> anyhow::Result<Multiaddr> {
    let mut address = None;
    until("the node listens", async || {
        address = handle.snapshot().await?.listen.into_iter().next();
        Ok(address.is_some())
    })
    .await?;
    Ok(address.context("an address")?.parse()?)
}

fn facts(identity: &Identity) -> NodeFacts {
    NodeFacts {
        network: NETWORK.to_owned(),
        unit: "credit".to_owned(),
        region: "local".to_owned(),
        peer: identity.peer(),
        account: identity.account,
        started_ms: 0,
        providing: true,
        local_only: true,
        sandbox: "none".to_owned(),
        max_price: Amount::ZERO,
        audit_percent: 0,
    }
}

fn provider(identity: &Identity) -> ProviderConfig {
    ProviderConfig {
        offer: offers::offer(identity.account, identity.delegation.clone(), 0),
        known: [].into(),
        blocked: [].into(),
        strangers_budget: Amount::ZERO,
        local_only: true,
        discount_percent_max: 0,
        challenges_per_hour: 12,
        references_per_hour: 120,
        queue: 0,
        pricing: std::sync::Arc::new(suanli_protocol::pricing::Fixed),
    }
}
