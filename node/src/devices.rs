//! The devices that a node sells, and what runs on each.
//!
//! ```text
//! `provide.device` ─▶ adapters ─▶ an executor each ─▶ a device of the offer each
//!                     processor ─▶ an executor      ─▶ a device, if wasm is sold
//! ```
//!
//! The order is the offer's: a quote names a device by its place, and what was agreed on
//! runs in the executor of that place. A software adapter is the processor, and serves
//! both runtimes from one pool. All executors share one queue of events; the caller gives
//! executions numbers that are unique among all of them.
//!
//! Absent: which device an execution gets (the core's seller says it when it quotes).

use std::path::Path;

use suanli_executor::{
    Adapter, AdapterSelection, ExecutionEvent, ExecutionId, ExecutionRequest, Executor,
    ExecutorConfig, ExecutorError, Failure, Refusal,
    limits::EVENTS_MAX,
    machine::Machine,
    program::{WASM_VERSION, WGSL_VERSION},
};
use suanli_protocol::{
    limits::{DEVICES_MAX, RUNTIMES_MAX},
    offer::{Device, RuntimeOffer},
    registry::{Runtime, SandboxLevel},
    units::Meter,
    wire::List,
};
use tokio::sync::mpsc;

use crate::{config::Provide, measured::Measured};

/// Why nothing can be sold.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// The machine can't be looked at, or a worker can't be started.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// What is sold needs an adapter.
    #[error(
        "`gpu.ms` has a price, and there is no adapter that could run wgsl jobs: install a Vulkan driver (Debian: mesa-vulkan-drivers; NVIDIA: its own; `suanli doctor` lists adapters), or remove that price to sell wasm only"
    )]
    NoAdapter,
    /// More than an offer can say.
    #[error("{0} devices: an offer names {DEVICES_MAX} at most; choose some with provide.device")]
    TooMany(usize),
}

/// Executors, in the order of the offer's devices. None where nothing is sold.
#[derive(Debug, Clone, Default)]
pub struct Devices(Vec<Sold>);

/// A device, and what runs there.
#[derive(Debug, Clone)]
struct Sold {
    executor: Executor,
    runtimes: List<RuntimeOffer, RUNTIMES_MAX>,
    slots: u32,
}

impl Devices {
    /// Starts an executor for each device that the operator chose.
    ///
    /// # Errors
    /// [`DevicesError`], with what to do.
    pub fn start(
        machine: &Machine,
        provide: &Provide,
    ) -> Result<(Self, mpsc::Receiver<ExecutionEvent>), DevicesError> {
        for missing in machine.confinement().missing.iter() {
            tracing::warn!(layer = &**missing, "a layer of the sandbox is missing here");
        }
        let mut adapters = Vec::new();
        if sells(provide, Runtime::WGSL) {
            adapters = provide.device.pick(machine.adapters())?;
            if adapters.is_empty() {
                return Err(DevicesError::NoAdapter);
            }
        }
        // Each with the runtimes that it gets; where no adapter is the processor, that
        // is a device of its own.
        let mut places: Vec<(Option<Adapter>, Vec<Runtime>)> = adapters
            .into_iter()
            .map(|adapter| (Some(adapter), vec![Runtime::WGSL]))
            .collect();
        if sells(provide, Runtime::WASM) {
            let is_processor = |(adapter, _): &&mut (Option<Adapter>, _)| {
                adapter.as_ref().is_some_and(Adapter::is_software)
            };
            match places.iter_mut().find(is_processor) {
                Some((_, runtimes)) => runtimes.push(Runtime::WASM),
                None => places.push((None, vec![Runtime::WASM])),
            }
        }
        if places.len() > DEVICES_MAX {
            return Err(DevicesError::TooMany(places.len()));
        }
        let (events, events_out) = mpsc::channel(EVENTS_MAX);
        let mut sold = Vec::new();
        for (adapter, runtimes) in places {
            let own = executor_config(provide, adapter.as_ref());
            let executor = Executor::start_on(machine, &own, events.clone())?;
            sold.push(Sold {
                executor,
                runtimes: offered(&runtimes, adapter.as_ref()),
                slots: provide.slots,
            });
        }
        Ok((Self(sold), events_out))
    }

    /// How well jobs are locked in; nothing where nothing is sold.
    pub fn sandbox(&self) -> Option<SandboxLevel> {
        let first = self.0.first()?;
        Some(first.executor.confinement().level())
    }

    /// Executions at once, on all of them.
    pub fn slots(&self) -> u32 {
        self.0.iter().map(|sold| sold.slots).sum()
    }

    /// Their adapters; the processor has none.
    pub fn adapters(&self) -> impl Iterator<Item = &Adapter> {
        self.0.iter().filter_map(|sold| sold.executor.adapter())
    }

    /// As an offer names them.
    pub fn offered(&self, measured: &Measured) -> Vec<Device> {
        let mut is_first = true;
        let each = self.0.iter().map(|sold| {
            let adapter = sold.executor.adapter();
            // The speeds of the machine itself belong to the first that is it.
            let is_processor = adapter.is_none_or(Adapter::is_software);
            let is_machine = is_processor && std::mem::take(&mut is_first);
            let memory_max = sold.executor.memory_max();
            let device = measured.device(adapter, is_machine, memory_max);
            Device {
                slots: sold.slots,
                runtimes: sold.runtimes.clone(),
                ..device
            }
        });
        each.collect()
    }

    /// Reads what was measured before, and measures what is missing. `events` must be
    /// what [`Devices::start`] gave, and nothing may run yet.
    pub async fn measure(
        &self,
        events: &mut mpsc::Receiver<ExecutionEvent>,
        dir: &Path,
    ) -> Measured {
        let mut measured = Measured::read(dir);
        let before = measured.clone();
        for Sold { executor, .. } in &self.0 {
            let Some(adapter) = executor.adapter() else {
                continue;
            };
            if measured.of(adapter).is_none() {
                tracing::info!(adapter = &*adapter.name, "measuring");
                let scratch = dir.join("scratch");
                measured
                    .measure_adapter(adapter, executor, events, &scratch)
                    .await;
                if let Some(trouble) = measured.of(adapter).and_then(|of| of.trouble.as_ref()) {
                    tracing::warn!(%trouble, "not all could be measured; the offer does not say it");
                }
            }
        }
        if let Some(Sold { executor, .. }) = self.0.first()
            && measured.processor.is_none()
            && let Err(error) = measured.measure_processor(executor.program()).await
        {
            tracing::warn!(%error, "the processor could not be measured; the offer does not say it");
        }
        if measured.disk.is_none()
            && let Err(error) = measured.measure_disk(dir)
        {
            tracing::warn!(%error, "the disk could not be measured; the offer does not say it");
        }
        if measured != before
            && let Err(error) = measured.write(dir)
        {
            tracing::warn!(%error, "the measurement could not be kept; the next start measures again");
        }
        measured
    }

    /// What runs on a device of the offer.
    pub fn at(&self, device: u16) -> Option<&Executor> {
        let sold = self.0.get(usize::from(device));
        sold.map(|sold| &sold.executor)
    }

    /// Takes an execution for a device.
    ///
    /// # Errors
    /// As [`Executor::run`]; and if there is no such device.
    pub fn run(&self, device: u16, request: ExecutionRequest) -> Result<(), Refusal> {
        let executor = self.at(device).ok_or_else(|| Refusal {
            failure: Failure::Internal,
            detail: format!("there is no device {device} here"),
        })?;
        executor.run(request)
    }

    /// Asks for the end of an execution, as [`Executor::cancel`].
    ///
    /// # Errors
    /// As there.
    pub fn cancel(&self, device: u16, id: ExecutionId) -> Result<(), Refusal> {
        self.at(device)
            .map_or(Ok(()), |executor| executor.cancel(id))
    }

    /// No worker is kept warm until [`Devices::wake`].
    pub async fn rest(&self) {
        for Sold { executor, .. } in &self.0 {
            executor.rest().await;
        }
    }

    /// Workers are kept warm again.
    pub async fn wake(&self) {
        for Sold { executor, .. } in &self.0 {
            executor.wake().await;
        }
    }

    /// An execution may come soon, on this device.
    pub fn expect(&self, device: u16) {
        if let Some(executor) = self.at(device) {
            executor.expect();
        }
    }

    /// Cancels everything and returns when every worker is gone.
    pub async fn stop(self) {
        for Sold { executor, .. } in self.0 {
            executor.stop().await;
        }
    }
}

/// Whether it has a price for a runtime.
fn sells(provide: &Provide, runtime: Runtime) -> bool {
    let meter = Meter::of(runtime);
    provide.price.iter().any(|price| price.meter == meter)
}

fn executor_config(provide: &Provide, adapter: Option<&Adapter>) -> ExecutorConfig {
    let count = usize::try_from(provide.workers.max(provide.slots)).unwrap_or(1);
    let mut config = ExecutorConfig {
        pool_size: count,
        adapter: adapter.map_or(AdapterSelection::None, |adapter| {
            AdapterSelection::At(adapter.index)
        }),
        output_bytes_max: provide.storage.0,
        memory_reserve: provide.memory_reserve.0,
        rest_after: provide.idle_after.0,
        ..ExecutorConfig::default()
    };
    if let Some(memory) = provide.memory {
        config.memory_max = memory.0;
    }
    config
}

/// What a device is offered for. Features are the adapter's.
fn offered(runtimes: &[Runtime], adapter: Option<&Adapter>) -> List<RuntimeOffer, RUNTIMES_MAX> {
    let each = runtimes.iter().map(|&runtime| match runtime {
        Runtime::WGSL => RuntimeOffer {
            runtime,
            version: WGSL_VERSION,
            features: List::truncated(
                adapter.map_or_else(Vec::new, |adapter| adapter.features.to_vec()),
            ),
        },
        _ => RuntimeOffer {
            runtime,
            version: WASM_VERSION,
            features: List::default(),
        },
    });
    List::truncated(each.collect())
}
