//! How often something may happen: a rate with a burst.
//!
//! The generic cell rate algorithm (ITU-T I.371): one atomic says when the bucket is empty again,
//! so there is no lock and no refill timer. A payer that is to be slowed is charged and waits; one
//! that is to be refused is admitted or not.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// A token bucket in one atomic.
#[derive(Debug)]
pub(crate) struct Rate {
    epoch: Instant,
    /// When, in nanoseconds after `epoch`, all that was charged so far is paid off.
    paid_at: AtomicU64,
    cost_ns: f64,
    burst_ns: u64,
}

impl Rate {
    /// `per_s` units a second, after `burst` units at once.
    pub(crate) fn new(per_s: u32, burst: u32) -> Self {
        let cost_ns = 1e9 / f64::from(per_s.max(1));
        Self {
            epoch: Instant::now(),
            paid_at: AtomicU64::new(0),
            cost_ns,
            burst_ns: nanos(Duration::from_secs_f64(cost_ns * f64::from(burst) / 1e9)),
        }
    }

    /// Charges the units and says how long the payer must now wait; zero within its rate.
    pub(crate) fn charge(&self, units: u32) -> Duration {
        let now = nanos(self.epoch.elapsed());
        let cost = self.cost_of(units);
        let after = |paid_at: u64| paid_at.max(now).saturating_add(cost);
        let before = self
            .paid_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| Some(after(at)))
            .unwrap_or_else(|unchanged| unchanged);
        let ahead = after(before) - now;
        Duration::from_nanos(ahead.saturating_sub(self.burst_ns))
    }

    /// Charges the units if they are within the rate, and else says how long to wait. What is
    /// refused costs nothing: whoever tries too often is served at the rate all the same.
    pub(crate) fn admit(&self, units: u32) -> Result<(), Duration> {
        let now = nanos(self.epoch.elapsed());
        let cost = self.cost_of(units);
        let wait = |paid_at: u64| {
            let ahead = paid_at.max(now).saturating_add(cost) - now;
            ahead.saturating_sub(self.burst_ns)
        };
        self.paid_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| {
                (wait(at) == 0).then(|| at.max(now).saturating_add(cost))
            })
            .map(|_| ())
            .map_err(|at| Duration::from_nanos(wait(at)))
    }

    /// Whether everything charged is paid off, so that forgetting this bucket changes nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.paid_at.load(Ordering::Relaxed) <= nanos(self.epoch.elapsed())
    }

    fn cost_of(&self, units: u32) -> u64 {
        nanos(Duration::from_secs_f64(
            self.cost_ns * f64::from(units) / 1e9,
        ))
    }
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

    #[test]
    fn what_is_refused_costs_nothing() {
        let rate = Rate::new(1, 2);
        assert_eq!((rate.admit(1), rate.admit(1)), (Ok(()), Ok(())));
        for _ in 0..1_000 {
            assert!(
                rate.admit(1)
                    .is_err_and(|wait| wait <= Duration::from_secs(1))
            );
        }
        assert!(rate.charge(1) <= Duration::from_secs(1));
    }
}
