//! A running node: puts the parts together, and takes them apart again.
//!
//! Order of starting, so that nothing is promised before it can be kept: data
//! directory and its lock, identity, journal (read back into the core),
//! executor (its device measured, or the last measurement read), transport,
//! driver, API. The offer goes out last, once the addresses are bound. On
//! SIGTERM, SIGINT or `suanli stop` the offer is withdrawn, records are
//! finished, workers ended and the directory freed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use suanli_executor::{ExecutorError, machine::Machine};
use suanli_protocol::{
    envelope::{Extensions, Raw},
    ids::NetworkId,
    offer::{Charge, Device, Offer, Terms},
    peer::{Config as CoreConfig, ProviderConfig},
    registry::SandboxLevel,
    units::{Amount, Millis},
    wire::{List, Text},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

use crate::{
    api::{self, server::Behind, token::Token},
    compaction::Keeper,
    config::{Config, Provide, Yield},
    data_dir::{ApiAddress, DataDir, DataDirError, random_secret},
    devices::{Devices, DevicesError},
    driver::{self, DriverError, Parts},
    handle::{self, NodeFacts, NodeHandle},
    identity::{Identity, IdentityError},
    keys::KeyFile,
    models::{
        serving::{Said, Serving},
        shelf::Shelf,
        stock::{Stock, StockError},
    },
    neighbours::{self, Neighbours, Source},
    pause::Pauses,
    pricing, records,
    store::{self, Store, StoreError, blobs::Blobs},
    transport::{Transport, TransportConfig, TransportError, TransportLimits},
    wall::wall_ms,
};

/// Share of the store's quota that the cache of others' inputs may take.
const CACHE_SHARE: u64 = 2;

/// Why a node did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A file of the data directory can't be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The keys can't be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The journal, its index or the blobs can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Jobs can't be run.
    #[error(transparent)]
    Devices(#[from] DevicesError),
    /// The network can't be reached.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The core can't be rebuilt.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The API's address can't be bound.
    #[error(
        "the API can't listen on {address}: {source}; stop what listens there, or set another `api` address (port 0 takes a free one)"
    )]
    ApiBusy {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
    /// A region or another name is not usable.
    #[error("{key} {value:?} is not usable: {why}")]
    Name {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        why: String,
    },
    /// A model can't be served.
    #[error(transparent)]
    Models(#[from] StockError),
    /// Something else of the machine.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// [`DaemonError`], with what to do.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let dir = DataDir::of(&config);
    let network = NetworkId::of(&config.network);
    let identity = Identity::open_or_create(&dir, network)?;
    let (store, cache) = open_store(&config, &dir, network)?;
    let keys = KeyFile::open(&dir)?;
    let Selling {
        provider,
        stock,
        models,
        devices,
        executions,
    } = match &config.provide {
        Some(provide) => start_selling(&config, provide, dir.root()).await?,
        None => Selling::default(),
    };
    let (transport, events) = Transport::start(transport_of(&config, &identity))?;
    let facts = facts(&config, &identity, provider.as_ref());
    let (handle, asks) = handle::open(facts, store.clone(), transport.clone());
    let neighbours = neighbours_of(&config, &devices);
    let (listener, address) = bind(config.api).await?;
    let keeper = keeper_of(&config, &identity, store.clone());
    let parts = Parts {
        config: keeper.config.clone(),
        provider,
        models,
        signer: identity.node.clone(),
        seed: *random_secret()?,
        store,
        cache,
        scratch: dir.root().join("scratch"),
        transport,
        events,
        devices,
        executions,
        asks,
        pauses: pauses_of(&config, &dir),
    };
    let (stop_server, server_stopped) = oneshot::channel::<()>();
    let stop = async move { drop(server_stopped.await) };
    let behind = Behind {
        token: Token::new(identity.token.clone()),
        keys,
        stock,
    };
    let server = tokio::spawn(api::server::serve(handle.clone(), listener, behind, stop));
    stop_on_signal(handle.clone());
    if let Some(neighbours) = neighbours {
        tokio::spawn(neighbours::watch(handle.clone(), neighbours));
    }
    dir.write_api_address(&ApiAddress {
        address,
        pid: std::process::id(),
    })?;
    tracing::info!(peer = %identity.peer(), %address, "the node runs");
    // Ends with the store. It waits for the driver's first answer: by then the
    // journal has been replayed, and what it stands on may go.
    tokio::spawn(async move {
        if handle.written().await.is_ok() {
            drop(handle);
            keeper.run().await;
        }
    });
    // On a worker thread, like all that it talks with.
    let ended = tokio::spawn(driver::run(parts)).await;
    // Whoever asked for the stop still gets the answer.
    drop(stop_server);
    if let Ok(Err(error)) = server.await {
        tracing::warn!(%error, "the API's server failed");
    }
    dir.remove_api_address()?;
    tracing::info!("stopped");
    Ok(ended.map_err(|died| DaemonError::Io("the driver", died.into()))??)
}

/// Takes the API's address.
async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), DaemonError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| DaemonError::ApiBusy { address, source })?;
    let bound = listener
        .local_addr()
        .map_err(|error| DaemonError::Io("the API's address", error))?;
    Ok((listener, bound))
}

/// What may pause it, if it sells.
fn pauses_of(config: &Config, dir: &DataDir) -> Option<Pauses> {
    let provide = config.provide.as_ref()?;
    Some(Pauses::open(dir.root(), provide.open_hours()))
}

fn keeper_of(config: &Config, identity: &Identity, store: Store) -> Keeper {
    Keeper {
        store,
        config: CoreConfig {
            account: identity.account,
            delegation: identity.delegation.clone(),
            region: Text::lossy(&config.region),
            traffic: config.traffic_price,
            provider: None,
            budgets: config.budgets(),
            timing: config.timing.clone(),
        },
        signer: identity.node.clone(),
        history: config.history,
    }
}

fn transport_of(config: &Config, identity: &Identity) -> TransportConfig {
    TransportConfig {
        secret: *identity.node_secret,
        network: config.network.clone(),
        agent: concat!("suanli/", env!("CARGO_PKG_VERSION")).to_owned(),
        listen: config.listen.clone(),
        bootstrap: config.bootstrap.clone(),
        lan: config.lan(),
        limits: TransportLimits::default(),
    }
}

fn open_store(
    config: &Config,
    dir: &DataDir,
    network: NetworkId,
) -> Result<(Store, Blobs), DaemonError> {
    let quota = config.store_quota.0;
    let store_config = store::Config {
        blobs: store::blobs::Config {
            quota_bytes: quota,
            ..store::blobs::Config::default()
        },
        index_version: records::INDEX_VERSION,
        ..store::Config::default()
    };
    let opened = Store::open(dir.root(), &store_config, records::indexer(network))?;
    if let Some(torn) = &opened.recovery.torn {
        tracing::warn!(%torn, "an unfinished write at the journal's end was cut");
    }
    if let Some(damage) = &opened.recovery.damage {
        tracing::error!(%damage, "the journal was damaged; what is sound was kept");
    }
    let cache_config = store::blobs::Config {
        quota_bytes: quota / CACHE_SHARE,
        ..store::blobs::Config::default()
    };
    let cache = Blobs::open(&dir.root().join("cache"), cache_config)
        .map_err(|error| DaemonError::Io("the cache of inputs can't be used", error))?;
    // Nothing is promised about it beyond the process.
    if let Err(error) = cache.clear() {
        tracing::warn!(%error, "the cache of inputs could not be emptied");
    }
    Ok((opened.store, cache))
}

/// What is sold, and what serves it. Nothing, by default.
#[derive(Default)]
struct Selling {
    provider: Option<ProviderConfig>,
    /// Its models, what serves them, and what that says.
    stock: Option<Stock>,
    models: Option<(Serving, mpsc::Receiver<Said>)>,
    devices: Devices,
    executions: Option<mpsc::Receiver<suanli_executor::ExecutionEvent>>,
}

/// Starts what runs jobs and serves models, and says what can be sold with it.
async fn start_selling(
    config: &Config,
    provide: &Provide,
    dir: &Path,
) -> Result<Selling, DaemonError> {
    let machine = Machine::look(config.worker.as_deref()).await;
    let machine = machine.map_err(|error| DevicesError::from(ExecutorError::from(error)))?;
    let (devices, mut events) = Devices::start(&machine, provide)?;
    let wasm = devices.slots() > 0;
    if wasm && devices.adapters().next().is_none() {
        tracing::info!("no adapter serves: wasm is sold, on the processor");
    }
    let measured = devices.measure(&mut events, dir).await;
    let sold = devices.offered(&measured);
    let stock = Stock::open(
        &provide.model,
        Shelf::of(&config.data_dir),
        config.worker.clone(),
        (machine.adapters().to_vec(), sold.clone()),
    );
    let (stock, said, sold) = stock.await?;
    let offer = offer_of(config, provide, sold, devices.sandbox())?;
    Ok(Selling {
        provider: Some(provider_of(provide, offer)),
        models: Some((stock.serving().clone(), said)),
        stock: Some(stock),
        devices,
        executions: Some(events),
    })
}

fn offer_of(
    config: &Config,
    provide: &Provide,
    devices: Vec<Device>,
    sandbox: Option<SandboxLevel>,
) -> Result<Offer, DaemonError> {
    let region = Text::new(&*config.region).map_err(|error| DaemonError::Name {
        key: "region",
        value: config.region.clone(),
        why: error.to_string(),
    })?;
    let slots = devices.iter().map(|device| device.slots).sum();
    Ok(Offer {
        account: suanli_protocol::ids::AccountId::from_bytes([0; 32]),
        delegation: Raw::default(),
        sequence: 0,
        region,
        addresses: List::default(),
        devices: List::truncated(devices),
        // Those that answer come when they do.
        models: List::default(),
        prices: List::truncated(provide.prices()),
        slots,
        slots_free: slots,
        storage_bytes: provide.storage.0,
        bandwidth_in: 0,
        bandwidth_out: 0,
        run_max: Millis::from(provide.run_max),
        sandbox: sandbox.unwrap_or_default(),
        energy: provide.energy(),
        terms: Terms {
            strangers: provide.strangers,
            stranger_credit: provide.stranger_credit,
            on_cancel: Charge::Usage,
            on_job_fault: Charge::Usage,
            on_provider_fault: Charge::Nothing,
            retention: Millis::from(Duration::from_secs(3600)),
        },
        accept: provide.accept.0.clone(),
        firm: provide.firm,
        extensions: Extensions::default(),
    })
}

fn provider_of(provide: &Provide, offer: Offer) -> ProviderConfig {
    let local_only = offer.sandbox < provide.sandbox_min;
    if local_only && provide.strangers {
        tracing::warn!(
            sandbox = %offer.sandbox,
            sandbox_min = %provide.sandbox_min,
            "accounts that are not known are served only from this machine; `suanli doctor` says what its sandbox lacks"
        );
    }
    let known: BTreeMap<_, Amount> = provide
        .known
        .iter()
        .map(|known| (known.account, known.credit))
        .collect();
    let blocked: BTreeSet<_> = provide.blocked.iter().copied().collect();
    ProviderConfig {
        pricing: pricing::of(provide, &offer),
        offer,
        known,
        blocked,
        strangers_budget: provide.strangers_budget,
        local_only,
        discount_percent_max: provide.discount_percent_max,
        challenges_per_hour: provide.challenges_per_hour,
        references_per_hour: provide.references_per_hour,
        queue: provide.queue,
    }
}

fn facts(config: &Config, identity: &Identity, provider: Option<&ProviderConfig>) -> NodeFacts {
    let sandbox = provider.map(|provider| provider.offer.sandbox);
    NodeFacts {
        network: config.network.clone(),
        unit: config.unit.clone(),
        region: config.region.clone(),
        peer: identity.peer(),
        account: identity.account,
        started_ms: wall_ms(),
        providing: config.provide.is_some(),
        local_only: provider.is_some_and(|provider| provider.local_only),
        sandbox: sandbox.map_or_else(|| "none".to_owned(), |level| level.to_string()),
        max_price: config.max_price,
        audit_percent: config.audit_percent,
    }
}

/// Those that a node has to yield to, where anything says that there are some.
/// Of the first device that has any: the sources look at all devices of a maker.
fn neighbours_of(config: &Config, devices: &Devices) -> Option<Neighbours> {
    if config.provide.as_ref()?.yields == Yield::Off {
        return None;
    }
    let adapter = devices.adapters().find(|adapter| !adapter.is_software())?;
    let neighbours = Neighbours::find(Path::new("/"), adapter);
    if let Source::None(advice) = neighbours.source() {
        tracing::warn!(
            advice,
            "nothing says here whether other programs use the device"
        );
        return None;
    }
    Some(neighbours)
}

fn stop_on_signal(handle: NodeHandle) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::warn!("signals can't be caught; use `suanli stop`");
        return;
    };
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        // Gone means that it is stopping already.
        let _ = handle.stop().await;
    });
}
