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
        self.charge_at(units, Instant::now())
    }

    /// Charges the units if they are within the rate, and else says how long to wait. What is
    /// refused costs nothing: whoever tries too often is served at the rate all the same.
    pub(crate) fn admit(&self, units: u32) -> Result<(), Duration> {
        self.admit_at(units, Instant::now())
    }

    fn charge_at(&self, units: u32, now: Instant) -> Duration {
        let now = self.since_epoch(now);
        let cost = self.cost_of(units);
        let after = |paid_at: u64| paid_at.max(now).saturating_add(cost);
        let before = self
            .paid_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| Some(after(at)))
            .unwrap_or_else(|unchanged| unchanged);
        let ahead = after(before) - now;
        Duration::from_nanos(ahead.saturating_sub(self.burst_ns))
    }

    fn admit_at(&self, units: u32, now: Instant) -> Result<(), Duration> {
        let now = self.since_epoch(now);
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

    /// How long it takes until all that was charged is paid off.
    fn ahead_at(&self, now: Instant) -> Duration {
        let now = self.since_epoch(now);
        let paid_at = self.paid_at.load(Ordering::Relaxed);
        Duration::from_nanos(paid_at.saturating_sub(now))
    }

    fn since_epoch(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }

    /// Whether everything charged is paid off, so that forgetting this bucket changes nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.ahead_at(Instant::now()) == Duration::ZERO
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

/// So many units a minute, and a minute's worth at once. Its clock is the caller's.
#[derive(Debug)]
pub(crate) struct PerMinute {
    limit: u32,
    rate: Rate,
}

/// How a rate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// Units a minute.
    pub(crate) limit: u32,
    /// Units that may come at once now.
    pub(crate) remaining: u32,
    /// When that will be a whole minute's again.
    pub(crate) full_in: Duration,
}

impl PerMinute {
    pub(crate) fn new(limit: u32, now: Instant) -> Self {
        let limit = limit.max(1);
        let rate = Rate {
            epoch: now,
            paid_at: AtomicU64::new(0),
            cost_ns: 6e10 / f64::from(limit),
            burst_ns: nanos(MINUTE),
        };
        Self { limit, rate }
    }

    /// Charges a unit if there is one, and else says when there will be.
    pub(crate) fn admit(&self, now: Instant) -> Result<(), Duration> {
        self.rate.admit_at(1, now)
    }

    /// When there will be a unit; zero if there is one.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        let one = Duration::from_nanos(self.rate.cost_of(1));
        (self.rate.ahead_at(now) + one).saturating_sub(MINUTE)
    }

    /// Charges units whether they are there or not: the next who ask wait for them.
    pub(crate) fn charge(&self, units: u64, now: Instant) {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let _ = self.rate.charge_at(units, now);
    }

    pub(crate) fn left(&self, now: Instant) -> Left {
        let full_in = self.rate.ahead_at(now);
        let free = MINUTE.saturating_sub(full_in).as_nanos();
        let remaining = free * u128::from(self.limit) / MINUTE.as_nanos();
        Left {
            limit: self.limit,
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            full_in,
        }
    }
}

const MINUTE: Duration = Duration::from_secs(60);

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

    #[test]
    fn a_minutes_worth_comes_at_once_and_then_at_its_pace() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let rate = PerMinute::new(2, start);
        assert_eq!((rate.admit(at(0)), rate.admit(at(0))), (Ok(()), Ok(())));
        assert_eq!(rate.admit(at(0)), Err(Duration::from_secs(30)));
        assert_eq!(rate.admit(at(20)), Err(Duration::from_secs(10)));
        assert_eq!(rate.left(at(20)).remaining, 0);
        assert_eq!(rate.left(at(20)).full_in, Duration::from_secs(40));
        assert_eq!(rate.admit(at(30)), Ok(()));
        // Who was away for long has no more than a minute's.
        let left = rate.left(at(3600));
        assert_eq!((left.limit, left.remaining), (2, 2));
        assert_eq!(left.full_in, Duration::ZERO);
    }

    #[test]
    fn what_was_used_beyond_a_rate_is_waited_for() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let rate = PerMinute::new(60, start);
        assert_eq!(rate.wait(at(0)), Duration::ZERO);
        rate.charge(59, at(0));
        assert_eq!(
            (rate.wait(at(0)), rate.left(at(0)).remaining),
            (Duration::ZERO, 1)
        );
        rate.charge(121, at(0));
        assert_eq!(rate.wait(at(0)), Duration::from_secs(121));
        assert_eq!(rate.wait(at(121)), Duration::ZERO);
        rate.charge(u64::MAX, at(121));
        assert!(rate.wait(at(121)) > Duration::from_secs(1 << 31));
    }
}
