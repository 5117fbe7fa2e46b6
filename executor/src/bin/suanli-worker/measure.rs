//! FP32 speed of an adapter, by a kernel whose result proves that it ran.
//!
//! Every invocation runs [`CHAINS`] independent chains of `x = x * a + b` on
//! four-vectors. All starts are 0 and all `a` and `b` are 1, but they come
//! from a buffer, another place of it for each lane, chain and component, so
//! that no compiler can merge what happens to be equal. Every chain then ends
//! at the number of its steps, exactly. That catches drivers that stop long
//! loops in silence, which would look like speed. The work grows until a run
//! takes long enough for its clock.

use std::time::Duration;

use suanli_executor::ipc::{Failure, Measurement};
use wgpu::{BufferUsages, PollType};

use crate::{Fault, device::Gpu};

/// Steps of each chain. Far from the 65,535 loop iterations after which some
/// software drivers stop, and from 2^24, where FP32 stops counting.
const STEPS: u32 = 1024;
const CHAINS: u32 = 8;
const INVOCATIONS_PER_GROUP: u32 = 64;
/// 8 chains of four-vectors, two operations a step and component.
const OPERATIONS_PER_GROUP: u64 = 64 * 1024 * 8 * 4 * 2;
/// The counted run takes about this long.
const TARGET: Duration = Duration::from_millis(300);
/// A short run says little about a long one: the work grows in steps.
const GROWTH_MAX: u32 = 16;
const GROUPS_MAX: u32 = 65_535;
const GROUPS_FIRST: u32 = 16;
const REPEATS_MAX: u32 = 256;

const SOURCE: &str = "
struct Lane { a: vec4<f32>, b: vec4<f32>, starts: array<vec4<f32>, 8> }
@group(0) @binding(0) var<storage, read> lanes: array<Lane>;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
    let a = lanes[lane].a;
    let b = lanes[lane].b;
    var c0 = lanes[lane].starts[0]; var c1 = lanes[lane].starts[1];
    var c2 = lanes[lane].starts[2]; var c3 = lanes[lane].starts[3];
    var c4 = lanes[lane].starts[4]; var c5 = lanes[lane].starts[5];
    var c6 = lanes[lane].starts[6]; var c7 = lanes[lane].starts[7];
    for (var i = 0u; i < STEPSu; i++) {
        c0 = c0 * a + b; c1 = c1 * a + b; c2 = c2 * a + b; c3 = c3 * a + b;
        c4 = c4 * a + b; c5 = c5 * a + b; c6 = c6 * a + b; c7 = c7 * a + b;
    }
    let all = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7;
    sums[lane] = all.x + all.y + all.z + all.w;
}
";

/// Measures the device for about a third of a second.
pub(crate) fn measure(gpu: &Gpu) -> Result<Measurement, Fault> {
    let bench = Bench::new(gpu)?;
    let (mut groups, mut repeats) = (GROUPS_FIRST, 1);
    // The first run compiles.
    bench.run(groups, repeats)?;
    let mut took = bench.run(groups, repeats)?;
    while took < TARGET / 2 && repeats < REPEATS_MAX {
        let wanted = TARGET.as_micros() / took.as_micros().max(1);
        let factor = u32::try_from(wanted)
            .unwrap_or(u32::MAX)
            .clamp(2, GROWTH_MAX);
        (groups, repeats) = grown(groups, repeats, factor);
        took = bench.run(groups, repeats)?;
    }
    bench.prove()?;
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
    let operations = u128::from(OPERATIONS_PER_GROUP) * u128::from(groups) * u128::from(repeats);
    let fp32_flops = u64::try_from(operations * 1_000_000 / u128::from(took_us));
    Ok(Measurement {
        adapter: gpu.adapter().clone(),
        fp32_flops: fp32_flops.unwrap_or(u64::MAX),
        fuel_per_second: crate::wasm::fuel_per_second()?,
        took_us,
    })
}

/// Grows the width of a dispatch first, then the number of dispatches.
fn grown(groups: u32, repeats: u32, factor: u32) -> (u32, u32) {
    let wider = (GROUPS_MAX / groups).clamp(1, factor);
    let longer = factor.div_ceil(wider);
    (
        groups * wider,
        repeats.saturating_mul(longer).min(REPEATS_MAX),
    )
}

struct Bench<'a> {
    gpu: &'a Gpu,
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    sums: wgpu::Buffer,
    stage: wgpu::Buffer,
}

impl<'a> Bench<'a> {
    fn new(gpu: &'a Gpu) -> Result<Self, Fault> {
        let device = &gpu.device;
        gpu.scoped(Failure::Internal, || {
            let buffer = |size: u64, usage| {
                let (label, mapped_at_creation) = (None, false);
                device.create_buffer(&wgpu::BufferDescriptor {
                    label,
                    size,
                    usage,
                    mapped_at_creation,
                })
            };
            let sums_bytes = u64::from(INVOCATIONS_PER_GROUP) * 4;
            let lanes = lanes();
            let lanes_bytes = u64::try_from(lanes.len()).unwrap_or(0);
            let factors = buffer(lanes_bytes, BufferUsages::STORAGE | BufferUsages::COPY_DST);
            let sums = buffer(sums_bytes, BufferUsages::STORAGE | BufferUsages::COPY_SRC);
            let stage = buffer(sums_bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST);
            gpu.queue.write_buffer(&factors, 0, &lanes);
            let source = SOURCE.replace("STEPS", &STEPS.to_string());
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
            let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.get_bind_group_layout(0),
                entries: &[
                    wgpu::BindGroupEntry {
                        binding: 0,
                        resource: factors.as_entire_binding(),
                    },
                    wgpu::BindGroupEntry {
                        binding: 1,
                        resource: sums.as_entire_binding(),
                    },
                ],
            });
            Self {
                gpu,
                pipeline,
                group,
                sums,
                stage,
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

    /// Every sum must be the count of all steps.
    fn prove(&self) -> Result<(), Fault> {
        let lost = |reason: String| Fault::new(Failure::DeviceLost, reason);
        let descriptor = wgpu::CommandEncoderDescriptor::default();
        let mut encoder = self.gpu.device.create_command_encoder(&descriptor);
        encoder.copy_buffer_to_buffer(&self.sums, 0, &self.stage, 0, self.sums.size());
        self.gpu.run(encoder)?;
        let waited = self.gpu.scoped(Failure::Internal, || {
            self.stage.slice(..).map_async(wgpu::MapMode::Read, |_| {});
            self.gpu.device.poll(PollType::wait_indefinitely())
        })?;
        waited.map_err(|error| lost(error.to_string()))?;
        let view = self
            .stage
            .slice(..)
            .get_mapped_range()
            .map_err(|error| lost(error.to_string()))?;
        let expected = f64::from(STEPS) * f64::from(CHAINS) * 4.0;
        let (sums, _) = view.as_chunks::<4>();
        if sums
            .iter()
            .all(|sum| f64::from(f32::from_le_bytes(*sum)) == expected)
        {
            return Ok(());
        }
        Err(Fault::new(
            Failure::Internal,
            "the driver does not run the measuring kernel in full",
        ))
    }
}

/// Of each lane the factors and summands, which are ones, then the starts,
/// which are zeros.
fn lanes() -> Vec<u8> {
    let ones = [1_f32.to_le_bytes(); 8];
    let zeros = [0_f32.to_le_bytes(); 32];
    (0..INVOCATIONS_PER_GROUP)
        .flat_map(|_| [ones.concat(), zeros.concat()].concat())
        .collect()
}
