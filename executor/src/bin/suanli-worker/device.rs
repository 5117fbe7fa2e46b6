//! Adapters and the open device of a worker.
//!
//! Every call that can fail on the device runs inside [`Gpu::scoped`]: an
//! error that no scope catches would end the process. Only checked ways are
//! used: shader modules with bounds checks and loop bounding, zeroed buffers
//! and workgroup memory, no pipeline cache.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use suanli_executor::{
    ipc::{Adapter, AdapterKind, Failure},
    machine,
    spec::Graph,
};
use suanli_protocol::{
    registry::Feature,
    wire::{List, Utf8},
};
use wgpu::{
    Backends, DeviceDescriptor, DeviceType, Error, ErrorFilter, Features, Instance,
    InstanceDescriptor, InstanceFlags, Limits, PollType,
};

use crate::{Fault, clock::Clock, recent::Recent, run::Program};

/// Bytes of source whose pipelines are kept for the tenant.
const KEPT_SOURCE_BYTES_MAX: usize = 4 << 20;

/// The interfaces whose shaders wgpu checks for bounds. Not GL.
const BACKENDS: Backends = Backends::VULKAN
    .union(Backends::METAL)
    .union(Backends::DX12);

/// What graphs can ask for, as wgpu names it. A device is opened with all of these
/// that it has; which of them a source may use, its graph says.
const FEATURES: [(Feature, Features); 3] = [
    (Feature::F16, Features::SHADER_F16),
    (Feature::SUBGROUPS, Features::SUBGROUP),
    (Feature::TIMESTAMPS, Features::TIMESTAMP_QUERY),
];

/// An open device.
pub(crate) struct Gpu {
    adapter: Adapter,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) limits: Limits,
    pub(crate) programs: Recent<Program>,
    /// Through which outputs are read back.
    pub(crate) stage: Option<wgpu::Buffer>,
    clock: Option<Clock>,
    lost: Arc<AtomicBool>,
    uncaught: Arc<AtomicBool>,
}

/// All adapters that may serve, in the driver's order.
pub(crate) fn adapters() -> Vec<(Adapter, wgpu::Adapter)> {
    let instance = Instance::new(InstanceDescriptor {
        backends: BACKENDS,
        flags: InstanceFlags::empty(),
        ..InstanceDescriptor::new_without_display_handle()
    });
    let found = at_once(instance.enumerate_adapters(BACKENDS)).unwrap_or_default();
    let computing = found.into_iter().filter(|adapter| {
        let able = adapter.get_downlevel_capabilities();
        able.flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
    });
    (0..)
        .zip(computing)
        .map(|(index, adapter)| (describe(index, &adapter), adapter))
        .collect()
}

impl Gpu {
    /// Opens the adapter with this index.
    pub(crate) fn open(index: u32) -> Result<Self, Fault> {
        let found = adapters()
            .into_iter()
            .find(|(adapter, _)| adapter.index == index);
        let (description, adapter) = found
            .ok_or_else(|| Fault::new(Failure::DeviceLost, format!("adapter {index} is gone")))?;
        let limits = adapter.limits();
        let opened = at_once(adapter.request_device(&DeviceDescriptor {
            label: None,
            required_features:
                offered(&adapter).fold(Features::empty(), |all, (_, feature)| all | feature),
            required_limits: limits.clone(),
            ..DeviceDescriptor::default()
        }));
        let (device, queue) = opened
            .ok_or_else(|| Fault::new(Failure::Internal, "the device was not opened at once"))?
            .map_err(|error| Fault::new(Failure::DeviceLost, error.to_string()))?;
        let lost = Arc::new(AtomicBool::new(false));
        let uncaught = Arc::new(AtomicBool::new(false));
        let (mark_lost, mark_uncaught) = (Arc::clone(&lost), Arc::clone(&uncaught));
        device.set_device_lost_callback(move |_, _| mark_lost.store(true, Ordering::Relaxed));
        device.on_uncaptured_error(Arc::new(move |_| {
            mark_uncaught.store(true, Ordering::Relaxed)
        }));
        let has_clock = description.features.contains(&Feature::TIMESTAMPS);
        Ok(Self {
            adapter: description,
            clock: has_clock.then(|| Clock::new(&device, &queue)),
            device,
            queue,
            limits,
            programs: Recent::new(KEPT_SOURCE_BYTES_MAX),
            stage: None,
            lost,
            uncaught,
        })
    }

    pub(crate) const fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The clock that meters a graph. What a software adapter does takes as long as
    /// waiting for it, which costs less to know, so its clock is for graphs that ask
    /// for it.
    pub(crate) fn clock_of(&self, graph: &Graph) -> Option<&Clock> {
        let is_asked_for = graph.features.contains(&Feature::TIMESTAMPS);
        let clock = self.clock.as_ref();
        clock.filter(|_| is_asked_for || !self.adapter.is_software())
    }

    /// Runs device calls and turns what they raise into a fault; what the
    /// device finds invalid becomes `if_invalid`.
    pub(crate) fn scoped<T>(
        &self,
        if_invalid: Failure,
        work: impl FnOnce() -> T,
    ) -> Result<T, Fault> {
        let memory = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(ErrorFilter::Internal);
        let validation = self.device.push_error_scope(ErrorFilter::Validation);
        let value = work();
        let raised = [
            at_once(validation.pop()).flatten(),
            at_once(internal.pop()).flatten(),
            at_once(memory.pop()).flatten(),
        ];
        let error = raised.into_iter().flatten().next();
        if self.lost.load(Ordering::Relaxed) {
            return Err(Fault::new(
                Failure::DeviceLost,
                "the driver reports a lost device",
            ));
        }
        match error {
            None if self.uncaught.swap(false, Ordering::Relaxed) => Err(Fault::new(
                Failure::Internal,
                "the device raised an error outside any call",
            )),
            None => Ok(value),
            Some(Error::OutOfMemory { .. }) => Err(Fault::new(
                Failure::OutOfMemory,
                "the device has no memory left",
            )),
            Some(Error::Validation { description, .. }) => Err(Fault::new(if_invalid, description)),
            Some(Error::Internal { description, .. }) => {
                Err(Fault::new(Failure::Internal, description))
            }
        }
    }

    /// Submits and waits; how long that took.
    pub(crate) fn run(&self, commands: wgpu::CommandEncoder) -> Result<Duration, Fault> {
        self.run_and(commands, || ())
    }

    /// Submits, asks for something that is there when all is done, and waits.
    pub(crate) fn run_and(
        &self,
        commands: wgpu::CommandEncoder,
        ask: impl FnOnce(),
    ) -> Result<Duration, Fault> {
        let began = Instant::now();
        let waited = self.scoped(Failure::InvalidShader, || {
            let submission = self.queue.submit([commands.finish()]);
            ask();
            self.device.poll(PollType::Wait {
                submission_index: Some(submission),
                timeout: None,
            })
        })?;
        waited.map_err(|error| Fault::new(Failure::DeviceLost, error.to_string()))?;
        Ok(began.elapsed())
    }
}

fn offered(adapter: &wgpu::Adapter) -> impl Iterator<Item = (Feature, Features)> {
    let has = adapter.features();
    let known = FEATURES.into_iter();
    known.filter(move |(_, feature)| has.contains(*feature))
}

fn describe(index: u32, adapter: &wgpu::Adapter) -> Adapter {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => AdapterKind::Discrete,
        DeviceType::IntegratedGpu => AdapterKind::Integrated,
        DeviceType::VirtualGpu => AdapterKind::Virtual,
        DeviceType::Cpu => AdapterKind::Software,
        DeviceType::Other => AdapterKind::Other,
    };
    let memory_bytes = match kind {
        AdapterKind::Software => machine::memory_bytes(),
        AdapterKind::Discrete
        | AdapterKind::Integrated
        | AdapterKind::Virtual
        | AdapterKind::Other => device_local_bytes(adapter).unwrap_or(limits.max_buffer_size),
    };
    Adapter {
        index,
        name: Utf8::cut(&info.name),
        driver: Utf8::cut(format!("{} {}", info.driver, info.driver_info).trim()),
        vendor: info.vendor,
        bus: Utf8::cut(&info.device_pci_bus_id),
        backend: Utf8::cut(info.backend.to_str()),
        kind,
        memory_bytes,
        binding_bytes_max: limits.max_storage_buffer_binding_size,
        buffer_bytes_max: limits.max_buffer_size,
        features: List::truncated(offered(adapter).map(|(feature, _)| feature).collect()),
    }
}

/// wgpu does not tell an adapter's memory; Vulkan does.
fn device_local_bytes(adapter: &wgpu::Adapter) -> Option<u64> {
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the guard is used for reading properties only, and is dropped here.
    let vulkan = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = vulkan.shared_instance().raw_instance();
    // SAFETY: the handle belongs to this instance, and the guard keeps both alive.
    let memory =
        unsafe { instance.get_physical_device_memory_properties(vulkan.raw_physical_device()) };
    let count = usize::try_from(memory.memory_heap_count).ok()?;
    let heaps = memory.memory_heaps.iter().take(count);
    let local = heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0);
    local.map(|heap| heap.size).max()
}

/// The value of a future that is ready: on native platforms all of wgpu's are.
pub(crate) fn at_once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
