//! What one peer may send: bytes held at once, and rates.
//!
//! The readers of a peer's streams run in tasks of their own and share one [`Budget`]. Rates use
//! the generic cell rate algorithm (ITU-T I.371): one atomic says when the bucket is empty
//! again, so there is no lock and no refill timer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::TransportLimits;

/// A token bucket in one atomic.
#[derive(Debug)]
pub(super) struct Rate {
    epoch: Instant,
    /// When, in nanoseconds after `epoch`, all that was charged so far is paid off.
    paid_at: AtomicU64,
    cost_ns: f64,
    burst_ns: u64,
}

impl Rate {
    /// `per_s` units a second, after `burst` units at once.
    pub(super) fn new(per_s: u32, burst: u32) -> Self {
        let cost_ns = 1e9 / f64::from(per_s.max(1));
        Self {
            epoch: Instant::now(),
            paid_at: AtomicU64::new(0),
            cost_ns,
            burst_ns: nanos(Duration::from_secs_f64(cost_ns * f64::from(burst) / 1e9)),
        }
    }

    /// Charges the units and says how long the payer must now wait; zero within its rate.
    pub(super) fn charge(&self, units: u32) -> Duration {
        let now = nanos(self.epoch.elapsed());
        let cost = nanos(Duration::from_secs_f64(
            self.cost_ns * f64::from(units) / 1e9,
        ));
        let after = |paid_at: u64| paid_at.max(now).saturating_add(cost);
        let before = self
            .paid_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| Some(after(at)))
            .unwrap_or_else(|unchanged| unchanged);
        let ahead = after(before) - now;
        Duration::from_nanos(ahead.saturating_sub(self.burst_ns))
    }

    /// Whether everything charged is paid off, so that forgetting this bucket changes nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.paid_at.load(Ordering::Relaxed) <= nanos(self.epoch.elapsed())
    }
}

/// One peer's budget for frames.
#[derive(Debug)]
pub(super) struct Budget {
    in_flight: Arc<Semaphore>,
    frames: Rate,
    bytes: Rate,
}

impl Budget {
    pub(super) fn new(limits: &TransportLimits) -> Self {
        Self {
            in_flight: room(limits.in_flight_bytes, limits),
            frames: Rate::new(limits.frames_per_s, limits.frames_burst),
            bytes: Rate::new(limits.bytes_per_s, limits.bytes_burst),
        }
    }

    /// Waits until the driver holds few enough of this peer's bytes. `None` once the peer is cut.
    pub(super) async fn hold(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.in_flight)
            .acquire_many_owned(bytes)
            .await
            .ok()
    }

    /// Charges one frame and returns the pause before the next may be read.
    pub(super) fn charge(&self, bytes: u32) -> Duration {
        self.frames.charge(1).max(self.bytes.charge(bytes))
    }

    /// Ends all of the peer's readers that wait for room.
    pub(super) fn cut(&self) {
        self.in_flight.close();
    }
}

/// A semaphore of bytes that any one frame fits into.
pub(super) fn room(bytes: u32, limits: &TransportLimits) -> Arc<Semaphore> {
    let bytes = bytes.max(limits.frame_bytes.max());
    let permits = usize::try_from(bytes).unwrap_or(Semaphore::MAX_PERMITS);
    Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_is_free_and_the_rest_waits() {
        let rate = Rate::new(1, 10);
        assert_eq!(rate.charge(10), Duration::ZERO);
        let wait = rate.charge(5);
        assert!(wait > Duration::from_secs(4) && wait <= Duration::from_secs(5));
    }

    #[test]
    fn a_charge_at_the_edge_of_the_type_waits_long_and_does_not_wrap() {
        let rate = Rate::new(1, 1);
        for _ in 0..8 {
            assert!(rate.charge(u32::MAX) > Duration::from_secs(1 << 31));
        }
    }
}
