//! The only source of chance: ChaCha8 from the seed.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use suanli_protocol::ids::Hash;

/// Chance for one purpose. Purposes draw from streams of their own, so that
/// more faults don't mean other work.
#[derive(Debug)]
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new(seed: u64, purpose: &str) -> Self {
        Self(ChaCha8Rng::from_seed(secret(seed, purpose, 0)))
    }

    /// True so often.
    pub(crate) fn chance(&mut self, share: f64) -> bool {
        f64::from(self.0.next_u32()) < share * 4_294_967_296.0
    }

    /// Less than `bound`; 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64().checked_rem(bound).unwrap_or(0)
    }

    /// Less than `bound`; 0 for a bound of 0.
    pub(crate) fn index(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        usize::try_from(self.below(bound)).unwrap_or(0)
    }

    /// Between the two, both included.
    pub(crate) fn within(&mut self, [least, most]: [u64; 2]) -> u64 {
        least + self.below(most.saturating_sub(least).saturating_add(1))
    }

    /// Between so many milliseconds, to the microsecond.
    pub(crate) fn millis(&mut self, [least, most]: [u64; 2]) -> Duration {
        Duration::from_micros(self.within([least * 1000, most * 1000]))
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.index(from.len()))
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    pub(crate) fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.0.fill_bytes(&mut seed);
        seed
    }
}

/// A secret of the simulation, from its seed.
pub(crate) fn secret(seed: u64, purpose: &str, number: usize) -> [u8; 32] {
    let number = u64::try_from(number).unwrap_or(u64::MAX);
    *Hash::derive(
        "suanli 2026 simulation secret",
        &[
            &seed.to_le_bytes(),
            purpose.as_bytes(),
            &number.to_le_bytes(),
        ],
    )
    .as_bytes()
}
