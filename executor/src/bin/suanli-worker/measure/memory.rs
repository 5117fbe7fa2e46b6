//! Bytes per second: of device memory, and between it and the host.
//!
//! Memory: `c = a + 3 * b` over arrays that no cache holds, three of them moved in each
//! pass. `a` counts and `b` is one, so that `c` shows that both were read. Transfer: up
//! as inputs go, down as outputs come, in pieces of the same size.

use std::time::{Duration, Instant};

use suanli_executor::ipc::Failure;
use wgpu::{BufferUsages, PollType};

use super::{GROUPS_FIRST, GROUPS_MAX, Kernel, TARGET, buffer, not_in_full, per_second, read_back};
use crate::{Fault, device::Gpu};

const INVOCATIONS_PER_GROUP: u64 = 256;
/// Bytes of an array for each workgroup: each invocation has a four-vector.
const GROUP_BYTES: u64 = INVOCATIONS_PER_GROUP * 16;
/// Bytes of an array at most. Caches of processors are smaller, of devices much.
const ARRAY_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a piece on its way.
const PIECE_BYTES: u64 = 8 << 20;
/// Bytes of `c` that are looked at.
const LOOK_BYTES: u64 = 4096;

const FILL: &str = "
@group(0) @binding(0) var<storage, read_write> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> b: array<vec4<f32>>;
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = f32(id.x % 1024u);
    a[id.x] = vec4(n, n + 1.0, n + 2.0, n + 3.0);
    b[id.x] = vec4(1.0);
}
";

const TRIAD: &str = "
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> c: array<vec4<f32>>;
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    c[id.x] = a[id.x] + 3.0 * b[id.x];
}
";

/// Bytes of device memory per second.
pub(super) fn bandwidth(gpu: &Gpu) -> Result<u64, Fault> {
    let adapter = gpu.adapter();
    let most = ARRAY_BYTES_MAX
        .min(adapter.binding_bytes_max)
        .min(adapter.memory_bytes / 8)
        .min(u64::from(GROUPS_MAX) * GROUP_BYTES);
    let groups = u32::try_from(most / GROUP_BYTES).unwrap_or(GROUPS_MAX);
    let groups = groups.max(GROUPS_FIRST);
    let bytes = u64::from(groups) * GROUP_BYTES;
    let array = || buffer(gpu, bytes, BufferUsages::STORAGE | BufferUsages::COPY_SRC);
    let (a, b, c) = (array()?, array()?, array()?);
    Kernel::new(gpu, FILL, &[&a, &b])?.run(groups, 1)?;
    let triad = Kernel::new(gpu, TRIAD, &[&a, &b, &c])?;
    // All of the arrays, however short the run: a part of them may fit a cache.
    triad.run(groups, 1)?;
    let once = triad.run(groups, 1)?.max(Duration::from_micros(1));
    let repeats = (TARGET.as_micros() / once.as_micros()).clamp(1, 1024);
    let repeats = u32::try_from(repeats).unwrap_or(1);
    let took = triad.run(groups, repeats)?;
    look(gpu, &c, bytes)?;
    Ok(per_second(
        u128::from(bytes) * 3 * u128::from(repeats),
        took,
    ))
}

/// Both ends of the result must be what the factors make.
fn look(gpu: &Gpu, c: &wgpu::Buffer, bytes: u64) -> Result<(), Fault> {
    let stage = buffer(
        gpu,
        LOOK_BYTES,
        BufferUsages::MAP_READ | BufferUsages::COPY_DST,
    )?;
    for offset in [0, bytes - LOOK_BYTES] {
        let seen = read_back(gpu, c, offset, &stage)?;
        let (seen, _) = seen.as_chunks::<4>();
        let first = offset / 16;
        let is_right = (0_u64..).zip(seen).all(|(n, value)| {
            let place = (first + n / 4) % 1024 + n % 4 + 3;
            let expected = u16::try_from(place).map_or(f32::NAN, f32::from);
            f32::from_le_bytes(*value) == expected
        });
        if !is_right {
            return Err(not_in_full());
        }
    }
    Ok(())
}

/// Bytes per second, to the device and back.
pub(super) struct Transfer {
    pub(super) up: u64,
    pub(super) down: u64,
}

/// Moves pieces up and down until either took long enough.
pub(super) fn transfer(gpu: &Gpu) -> Result<Transfer, Fault> {
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
    let target = buffer(gpu, PIECE_BYTES, usage)?;
    let stage = buffer(
        gpu,
        PIECE_BYTES,
        BufferUsages::MAP_READ | BufferUsages::COPY_DST,
    )?;
    let piece: Vec<u8> = (0..PIECE_BYTES)
        .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
        .collect();
    let up = || {
        let waited = gpu.scoped(Failure::Internal, || {
            gpu.queue.write_buffer(&target, 0, &piece);
            let submission = gpu.queue.submit([]);
            gpu.device.poll(PollType::Wait {
                submission_index: Some(submission),
                timeout: None,
            })
        })?;
        waited.map_err(|error| Fault::new(Failure::DeviceLost, error.to_string()))?;
        Ok(())
    };
    let down = || {
        let came = read_back(gpu, &target, 0, &stage)?;
        if came == piece {
            Ok(())
        } else {
            Err(not_in_full())
        }
    };
    Ok(Transfer {
        up: moved(up)?,
        down: moved(down)?,
    })
}

/// Bytes per second of moving one piece again and again.
fn moved(mut one: impl FnMut() -> Result<(), Fault>) -> Result<u64, Fault> {
    // The first one makes what the others use again.
    one()?;
    let began = Instant::now();
    let mut pieces = 0_u128;
    while began.elapsed() < TARGET {
        one()?;
        pieces += 1;
    }
    Ok(per_second(
        pieces * u128::from(PIECE_BYTES),
        began.elapsed(),
    ))
}
