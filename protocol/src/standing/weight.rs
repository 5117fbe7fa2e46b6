//! What fades: weights with a half-life, in whole numbers.
//!
//! A weight is known for a moment, and asked for at a later one. Time counts in whole
//! hours of the wall clock, as records carry it, so that fading an hour and then
//! another is fading two, and a replay comes to the same figure to the last digit.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::units::{Millis, Wall};

/// In this time evidence loses half of its weight.
pub const HALF_LIFE: Millis = Millis::new(TICKS * TICK_MS);
/// Fading is counted in these.
const TICK_MS: u64 = 3_600_000;
/// How many there are in a half-life: thirty days.
const TICKS: u64 = 720;
/// What is left after 1, 2, 4, … of them, in parts of 2³².
const LEFT: [u64; 10] = [
    4_290_834_502,
    4_286_705_684,
    4_278_459_964,
    4_262_016_076,
    4_229_317_660,
    4_164_671_494,
    4_038_328_458,
    3_797_024_659,
    3_356_811_651,
    2_623_578_641,
];

/// How much evidence weighs, in millionths of one fresh event.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize,
)]
pub struct Weight(u64);

impl Weight {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One fresh event.
    pub const ONE: Self = Self(1_000_000);

    /// From millionths.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// In millionths.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// So many fresh events.
    pub const fn of(count: u32) -> Self {
        // Fits: a u32 of millionths.
        Self(count as u64 * Self::ONE.0)
    }

    /// The nearest number of fresh events.
    pub fn rounded(self) -> u32 {
        let rounded = self.0.saturating_add(Self::ONE.0 / 2) / Self::ONE.0;
        u32::try_from(rounded).unwrap_or(u32::MAX)
    }

    /// Both together.
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// A part of it, in thousandths.
    pub fn part(self, thousandths: u16) -> Self {
        let part = u128::from(self.0) * u128::from(thousandths.min(1000)) / 1000;
        Self(u64::try_from(part).unwrap_or(u64::MAX))
    }

    /// One of so many equal parts.
    pub fn over(self, parts: u64) -> Self {
        Self(self.0 / parts.max(1))
    }

    /// What is left of it at a later moment.
    pub fn faded(self, from: Wall, to: Wall) -> Self {
        let tick = |at: Wall| at.as_millis() / TICK_MS;
        let ticks = tick(to).saturating_sub(tick(from));
        let mut left = u128::from(self.0);
        for (bit, part) in LEFT.into_iter().enumerate() {
            if (ticks % TICKS) >> bit & 1 == 1 {
                left = (left * u128::from(part)) >> 32;
            }
        }
        let halvings = u32::try_from(ticks / TICKS).unwrap_or(u32::MAX);
        let left = left.checked_shr(halvings).unwrap_or(0);
        Self(u64::try_from(left).unwrap_or(u64::MAX))
    }
}

impl std::fmt::Display for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tenths = self.0.saturating_add(50_000) / 100_000;
        write!(f, "{}.{}", tenths / 10, tenths % 10)
    }
}

/// Events of one kind: how many there ever were, what they weigh, and the newest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Tally {
    /// How many.
    pub count: u32,
    /// What they weighed when the newest came.
    weight: Weight,
    /// When that was.
    pub last: Wall,
}

impl Tally {
    /// One more.
    pub fn add(&mut self, at: Wall) {
        self.add_some(1, at);
    }

    /// Some more, all at once.
    pub fn add_some(&mut self, count: u32, at: Wall) {
        // One that is older than the newest has faded already.
        let newest = if self.count == 0 {
            at
        } else {
            self.last.max(at)
        };
        let more = Weight::of(count).faded(at, newest);
        self.weight = self.weight(newest).plus(more);
        self.count = self.count.saturating_add(count);
        self.last = newest;
    }

    /// What they weigh now.
    pub fn weight(&self, now: Wall) -> Weight {
        self.weight.faded(self.last, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * TICK_MS;

    fn at(day: u64) -> Wall {
        Wall::from_millis(20_000 * DAY + day * DAY)
    }

    #[test]
    #[expect(
        clippy::cast_precision_loss,
        reason = "hours are few, and a test may use floats"
    )]
    fn evidence_halves_in_thirty_days_and_fades_alike_in_one_step_or_many() {
        let full = Weight::of(1000);
        for hours in [0, 1, 5, 24, 719, 720, 721, 2000, 9999_u64] {
            let to = Wall::from_millis(at(0).as_millis() + hours * TICK_MS);
            let left = full.faded(at(0), to).as_micros() as f64;
            let exact = 1e9 * 0.5_f64.powf(hours as f64 / 720.0);
            assert!((left - exact).abs() < 5.0, "{hours}: {left} {exact}");
        }
        assert_eq!(full.faded(at(0), at(30)), Weight::of(500));
        assert_eq!(full.faded(at(0), at(60)), Weight::of(250));
        assert_eq!(full.faded(at(0), at(30 * 80)), Weight::ZERO);
        let mut step = full;
        for hour in 0..720 {
            let from = Wall::from_millis(at(0).as_millis() + hour * TICK_MS);
            let to = Wall::from_millis(from.as_millis() + TICK_MS);
            step = step.faded(from, to);
        }
        let off = Weight::of(500).as_micros() - step.as_micros();
        assert!(off < 1000, "{off} millionths");
        // A clock that goes back adds nothing.
        assert_eq!(full.faded(at(9), at(1)), full);
    }

    #[test]
    fn order_does_not_matter_to_a_tally() {
        let (mut one, mut other) = (Tally::default(), Tally::default());
        for day in [0, 7, 30] {
            one.add(at(day));
        }
        for day in [30, 0, 7] {
            other.add(at(day));
        }
        let (one, other) = (one.weight(at(31)), other.weight(at(31)));
        assert!(one.as_micros().abs_diff(other.as_micros()) < 10);
        assert_eq!(one.rounded(), 2);
        // 0.49, 0.57 and 0.98.
        assert_eq!(one.to_string(), "2.0");
    }
}
