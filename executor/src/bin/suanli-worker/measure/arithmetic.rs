//! FP32 and FP16 operations per second.
//!
//! Every invocation runs [`CHAINS`] independent chains of `x = x * a + b` on
//! four-vectors. All starts are 0 and all `a` and `b` are 1, but they come
//! from a buffer, another place of it for each lane, chain and component, so
//! that no compiler can merge what happens to be equal. Every chain then ends
//! at the number of its steps, exactly. That catches drivers that stop long
//! loops in silence, which would look like speed.

use wgpu::BufferUsages;

use super::{GROUPS_MAX, Kernel, buffer, not_in_full, per_second, read_back};
use crate::{Fault, device::Gpu};

/// Steps of each chain. Far from the 65,535 loop iterations after which some
/// software drivers stop, and no further than FP16 counts.
const STEPS: u32 = 1024;
const CHAINS: u32 = 8;
const INVOCATIONS_PER_GROUP: u32 = 64;
/// 8 chains of four-vectors, two operations a step and component.
const OPERATIONS_PER_GROUP: u128 = 64 * 1024 * 8 * 4 * 2;

const SOURCE: &str = "
struct Lane { a: vec4<f32>, b: vec4<f32>, starts: array<vec4<f32>, 8> }
@group(0) @binding(0) var<storage, read> lanes: array<Lane>;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
    let a = WIDE(lanes[lane].a);
    let b = WIDE(lanes[lane].b);
    var c0 = WIDE(lanes[lane].starts[0]); var c1 = WIDE(lanes[lane].starts[1]);
    var c2 = WIDE(lanes[lane].starts[2]); var c3 = WIDE(lanes[lane].starts[3]);
    var c4 = WIDE(lanes[lane].starts[4]); var c5 = WIDE(lanes[lane].starts[5]);
    var c6 = WIDE(lanes[lane].starts[6]); var c7 = WIDE(lanes[lane].starts[7]);
    for (var i = 0u; i < STEPSu; i++) {
        c0 = c0 * a + b; c1 = c1 * a + b; c2 = c2 * a + b; c3 = c3 * a + b;
        c4 = c4 * a + b; c5 = c5 * a + b; c6 = c6 * a + b; c7 = c7 * a + b;
    }
    let all = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7;
    sums[lane] = f32(all.x + all.y + all.z + all.w);
}
";

/// Of the numbers computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Single,
    Half,
}

/// Operations per second.
pub(super) fn measure(gpu: &Gpu, width: Width) -> Result<u64, Fault> {
    let sums_bytes = u64::from(INVOCATIONS_PER_GROUP) * 4;
    let content = lanes();
    let lanes_bytes = u64::try_from(content.len()).unwrap_or(0);
    let lanes = buffer(
        gpu,
        lanes_bytes,
        BufferUsages::STORAGE | BufferUsages::COPY_DST,
    )?;
    let sums = buffer(
        gpu,
        sums_bytes,
        BufferUsages::STORAGE | BufferUsages::COPY_SRC,
    )?;
    let stage = buffer(
        gpu,
        sums_bytes,
        BufferUsages::MAP_READ | BufferUsages::COPY_DST,
    )?;
    gpu.queue.write_buffer(&lanes, 0, &content);
    let (wide, enable) = match width {
        Width::Single => ("vec4<f32>", ""),
        Width::Half => ("vec4<f16>", "enable f16;\n"),
    };
    let source = SOURCE
        .replace("STEPS", &STEPS.to_string())
        .replace("WIDE", wide);
    let kernel = Kernel::new(gpu, &format!("{enable}{source}"), &[&lanes, &sums])?;
    let run = kernel.timed(GROUPS_MAX)?;
    // Every sum must be the count of all steps.
    let expected = f64::from(STEPS) * f64::from(CHAINS) * 4.0;
    let counted = read_back(gpu, &sums, 0, &stage)?;
    let (counted, _) = counted.as_chunks::<4>();
    let is_full = |sum: &[u8; 4]| f64::from(f32::from_le_bytes(*sum)) == expected;
    if !counted.iter().all(is_full) {
        return Err(not_in_full());
    }
    Ok(per_second(OPERATIONS_PER_GROUP * run.total(), run.took))
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
