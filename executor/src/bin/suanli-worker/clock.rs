//! The device's own clock: how long it was busy with a compute pass.
//!
//! Two timestamps stand around the pass, and the submission that holds it copies
//! them to where they can be read when it is done, so that nothing is waited for
//! twice. A clock may be wrong, or stand still: what it says counts only if it is
//! possible, and else the time that the worker waited.
//!
//! Absent: clocks of several submissions at once. The worker waits for each.

use std::time::Duration;

use suanli_executor::ipc::Failure;
use wgpu::{
    Buffer, BufferDescriptor, BufferUsages, CommandEncoder, ComputePassTimestampWrites, Device,
    QuerySet, QuerySetDescriptor, QueryType, Queue,
};

use crate::Fault;

const BEGIN: u32 = 0;
const END: u32 = 1;
/// Two timestamps of eight bytes.
const BYTES: u64 = 16;

/// What two timestamps need.
pub(crate) struct Clock {
    queries: QuerySet,
    resolved: Buffer,
    readable: Buffer,
    ns_per_tick: f32,
}

impl Clock {
    /// Of a device that was opened with timestamps.
    pub(crate) fn new(device: &Device, queue: &Queue) -> Self {
        let buffer = |usage| {
            device.create_buffer(&BufferDescriptor {
                label: None,
                size: BYTES,
                usage,
                mapped_at_creation: false,
            })
        };
        Self {
            queries: device.create_query_set(&QuerySetDescriptor {
                label: None,
                ty: QueryType::Timestamp,
                count: 2,
            }),
            resolved: buffer(BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC),
            readable: buffer(BufferUsages::MAP_READ | BufferUsages::COPY_DST),
            ns_per_tick: queue.get_timestamp_period(),
        }
    }

    /// What a pass is begun with to be timed.
    pub(crate) const fn around(&self) -> ComputePassTimestampWrites<'_> {
        ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(BEGIN),
            end_of_pass_write_index: Some(END),
        }
    }

    /// Makes both timestamps readable, after the pass.
    pub(crate) fn note(&self, encoder: &mut CommandEncoder) {
        encoder.resolve_query_set(&self.queries, BEGIN..END + 1, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.readable, 0, BYTES);
    }

    /// Asks for both timestamps of a submission, which are there when it is done.
    pub(crate) fn ask(&self) {
        let all = self.readable.slice(..);
        all.map_async(wgpu::MapMode::Read, |_| {});
    }

    /// How long the device was busy with a pass that is done, whose timestamps were
    /// asked for, and for which the worker waited that long.
    pub(crate) fn busy(&self, waited: Duration) -> Result<Duration, Fault> {
        let view = self.readable.slice(..).get_mapped_range();
        let view = view.map_err(|error| {
            let detail = format!("the device's timestamps can't be read: {error}");
            Fault::new(Failure::Internal, detail)
        })?;
        let mut ticks = [0; 2];
        for (tick, bytes) in ticks.iter_mut().zip(view.as_chunks::<8>().0) {
            *tick = u64::from_le_bytes(*bytes);
        }
        drop(view);
        self.readable.unmap();
        Ok(between(ticks, self.ns_per_tick, waited))
    }
}

/// The time between two timestamps, if there can be so much in what was waited.
fn between([begin, end]: [u64; 2], ns_per_tick: f32, waited: Duration) -> Duration {
    let Some(ticks) = end.checked_sub(begin).filter(|ticks| *ticks > 0) else {
        return waited;
    };
    // Exact up to 2^53 ticks, which are months.
    #[allow(
        clippy::cast_precision_loss,
        reason = "a time that long is not believed"
    )]
    let seconds = ticks as f64 * f64::from(ns_per_tick) * 1e-9;
    match Duration::try_from_secs_f64(seconds) {
        Ok(busy) if begin > 0 && !busy.is_zero() => busy.min(waited),
        Ok(_) | Err(_) => waited,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_clock_says_counts_only_if_it_is_possible() {
        let waited = Duration::from_millis(10);
        let said = |begin, end, period| between([begin, end], period, waited);
        assert_eq!(said(1_000, 3_001_000, 1.0), Duration::from_millis(3));
        assert_eq!(said(5, 1_000_005, 2.5), Duration::from_micros(2500));
        for (begin, end, period, what) in [
            (0, 0, 1.0, "nothing written"),
            (0, 500, 1.0, "half written"),
            (7, 7, 1.0, "standing still"),
            (9, 8, 1.0, "backwards"),
            (u64::MAX, 3, 1.0, "wrapped"),
            (1, 10_000_002, 1.0, "more than was waited"),
            (1, u64::MAX, 1.0, "centuries"),
            (1, u64::MAX, f32::MAX, "more than a duration holds"),
            (1, 1_000, 0.0, "no period"),
            (1, 1_000, -1.0, "negative period"),
            (1, 1_000, f32::NAN, "no number"),
        ] {
            assert_eq!(said(begin, end, period), waited, "{what}");
        }
    }
}
