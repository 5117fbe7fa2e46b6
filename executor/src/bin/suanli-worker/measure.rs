//! Speeds of an adapter, by kernels whose results prove that they ran.
//!
//! Each is measured for about a third of a second: work grows until a run takes long
//! enough for its clock, and the last run counts. What an adapter can't do is 0.
//! - [`arithmetic`]: FP32 and, where there is any, FP16;
//! - [`memory`]: device memory, and the way between it and the host.
//!
//! Absent: the matrix product of challenges, which takes an executor
//! ([`suanli_executor::kernels::measure`]), and the processor
//! ([`crate::wasm::fuel_per_second`]).

mod arithmetic;
mod memory;

use std::time::{Duration, Instant};

use suanli_executor::ipc::{Failure, Measurement};
use wgpu::{BufferUsages, PollType};

use self::arithmetic::Width;
use crate::{Fault, device::Gpu};

/// The counted run takes about this long.
const TARGET: Duration = Duration::from_millis(300);
/// A short run says little about a long one: the work grows in steps.
const GROWTH_MAX: u32 = 16;
const GROUPS_MAX: u32 = 65_535;
const GROUPS_FIRST: u32 = 16;
const REPEATS_MAX: u32 = 256;

/// Measures the device.
pub(crate) fn measure(gpu: &Gpu) -> Result<Measurement, Fault> {
    let began = Instant::now();
    let halves = gpu.device.features().contains(wgpu::Features::SHADER_F16);
    let transfer = memory::transfer(gpu)?;
    Ok(Measurement {
        adapter: gpu.adapter().clone(),
        fp32_flops: arithmetic::measure(gpu, Width::Single)?,
        fp16_flops: if halves {
            arithmetic::measure(gpu, Width::Half)?
        } else {
            0
        },
        memory_bytes_per_second: memory::bandwidth(gpu)?,
        upload_bytes_per_second: transfer.up,
        download_bytes_per_second: transfer.down,
        took_us: micros(began.elapsed()),
    })
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1)
}

/// So much, in that time, in a second.
fn per_second(amount: u128, took: Duration) -> u64 {
    u64::try_from(amount * 1_000_000 / u128::from(micros(took))).unwrap_or(u64::MAX)
}

/// A kernel and what it is bound to.
struct Kernel<'a> {
    gpu: &'a Gpu,
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
}

/// How much of a kernel ran, and how long that took.
struct Run {
    groups: u32,
    repeats: u32,
    took: Duration,
}

impl Run {
    /// Workgroups in all.
    fn total(&self) -> u128 {
        u128::from(self.groups) * u128::from(self.repeats)
    }
}

impl<'a> Kernel<'a> {
    fn new(gpu: &'a Gpu, source: &str, buffers: &[&wgpu::Buffer]) -> Result<Self, Fault> {
        let device = &gpu.device;
        gpu.scoped(Failure::Internal, || {
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: None,
                source: wgpu::ShaderSource::Wgsl(source.into()),
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: None,
                module: &module,
                entry_point: None,
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            });
            let entries = (0..)
                .zip(buffers)
                .map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding,
                    resource: buffer.as_entire_binding(),
                });
            let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.get_bind_group_layout(0),
                entries: &entries.collect::<Vec<_>>(),
            });
            Self {
                gpu,
                pipeline,
                group,
            }
        })
    }

    fn run(&self, groups: u32, repeats: u32) -> Result<Duration, Fault> {
        let descriptor = wgpu::CommandEncoderDescriptor::default();
        let mut encoder = self.gpu.device.create_command_encoder(&descriptor);
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        for _ in 0..repeats {
            pass.dispatch_workgroups(groups, 1, 1);
        }
        drop(pass);
        self.gpu.run(encoder)
    }

    /// Runs more and more of it, up to `groups_max` in one dispatch, until a run takes
    /// about long enough.
    fn timed(&self, groups_max: u32) -> Result<Run, Fault> {
        let (mut groups, mut repeats) = (GROUPS_FIRST.min(groups_max), 1);
        // The first run compiles.
        self.run(groups, repeats)?;
        let mut took = self.run(groups, repeats)?;
        while took < TARGET / 2 && repeats < REPEATS_MAX {
            let wanted = TARGET.as_micros() / took.as_micros().max(1);
            let factor = u32::try_from(wanted).unwrap_or(u32::MAX);
            let factor = factor.clamp(2, GROWTH_MAX);
            let wider = (groups_max / groups).clamp(1, factor);
            let longer = factor.div_ceil(wider);
            groups *= wider;
            repeats = repeats.saturating_mul(longer).min(REPEATS_MAX);
            took = self.run(groups, repeats)?;
        }
        Ok(Run {
            groups,
            repeats,
            took,
        })
    }
}

fn buffer(gpu: &Gpu, size: u64, usage: BufferUsages) -> Result<wgpu::Buffer, Fault> {
    gpu.scoped(Failure::OutOfMemory, || {
        gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    })
}

/// The bytes of `source` from `offset` on, as many as `stage` has, through it.
fn read_back(
    gpu: &Gpu,
    source: &wgpu::Buffer,
    offset: u64,
    stage: &wgpu::Buffer,
) -> Result<Vec<u8>, Fault> {
    let lost = |reason: String| Fault::new(Failure::DeviceLost, reason);
    let descriptor = wgpu::CommandEncoderDescriptor::default();
    let mut encoder = gpu.device.create_command_encoder(&descriptor);
    encoder.copy_buffer_to_buffer(source, offset, stage, 0, stage.size());
    let waited = gpu.scoped(Failure::Internal, || {
        gpu.queue.submit([encoder.finish()]);
        stage.slice(..).map_async(wgpu::MapMode::Read, |_| {});
        gpu.device.poll(PollType::wait_indefinitely())
    })?;
    waited.map_err(|error| lost(error.to_string()))?;
    let view = stage.slice(..).get_mapped_range();
    let bytes = view.map_err(|error| lost(error.to_string()))?.to_vec();
    stage.unmap();
    Ok(bytes)
}

/// The kernel did not do what its time was counted for.
fn not_in_full() -> Fault {
    Fault::new(
        Failure::Internal,
        "the driver does not run the measuring kernel in full",
    )
}
