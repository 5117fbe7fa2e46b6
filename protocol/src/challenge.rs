//! What a provider must compute to show that its offer's speed is real.
//!
//! ```text
//! challenger                                provider
//!   Challenge { shape, seed }  ───────────▶   A, B from the seed; C = A·B on its device
//!   (clock stops)              ◀───────────   Committed { root over the rows of C }
//!   Open { seed }              ───────────▶   r and the rows to open, from that seed
//!   verify                     ◀───────────   Opening { y = C·r, those rows of C }
//! ```
//!
//! The product takes `2·rows·depth·columns` operations, the check about
//! `2·depth·(rows + columns)`: `r` has entries ±1, and `C·r` must be `A·(B·r)`
//! (Freivalds, "Probabilistic machines can use less running time", 1977). `y`
//! alone would prove nothing, for whoever knows `r` finds it without `C`; the rows
//! that are opened bind it to what was committed before `r` was known. Who computed
//! only a share `f` of the rows is found out but for `f` to the number of opened
//! rows.
//!
//! **Bound.** Entries of A and B are uniform in [−1, 1), multiples of 2⁻²³. An FP32
//! sum of `depth` such products in sequence is off by about `u·depth/7.3` (root of
//! the mean square, `u` = 2⁻²⁴), any other order by less, and a sum over a row by
//! the root of `columns` times that. [`Challenge::tolerance`] is 15 times it. Half
//! or TF32 precision is off by more, and fails.
//!
//! What it can't show: *where* the product was computed (a provider may send it on
//! to a faster machine), how much memory there is (entries can be made again when
//! they are needed), and what the provider does when it is not challenged.
//! Absent: when to challenge whom, and what a result is worth.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::{
    ids::Hash,
    limits::{
        CHALLENGE_ELEMENTS_MAX, CHALLENGE_OPENED_BYTES_MAX, CHALLENGE_OPENED_MAX,
        CHALLENGE_SIDE_MAX,
    },
    wire::{Bytes, List},
};

/// Shortest side. Kernels work in tiles of it.
pub const SIDE_MIN: u32 = 128;
/// What the depth is a multiple of.
pub const DEPTH_STEP: u32 = 64;
/// How long a product should take, by the offer: long beside a round trip, short
/// beside a job.
const TARGET_MS: u128 = 400;
const ROW_BYTES_MAX: usize = CHALLENGE_SIDE_MAX as usize * 4;
const SUM_BYTES_MAX: usize = CHALLENGE_SIDE_MAX as usize * 8;
const PATH_MAX: usize = CHALLENGE_SIDE_MAX.ilog2() as usize;
/// Half of an FP32 unit in the last place, of 1.
const ROUND_OFF: f64 = 1.0 / 16_777_216.0;

/// Sixteen bytes that everything else follows from.
pub type Seed = [u8; 16];

/// A random matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Challenge {
    /// Rows of A and C; a power of two.
    pub rows: u32,
    /// Columns of A, rows of B.
    pub depth: u32,
    /// Columns of B and C; a power of two.
    pub columns: u32,
    /// What A and B follow from.
    pub seed: Seed,
}

/// What opens a commitment.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Opening {
    /// C·r: an FP64 number in little endian for each row.
    pub sums: Bytes<SUM_BYTES_MAX>,
    /// The rows that were asked for, in that order.
    pub rows: List<OpenedRow, CHALLENGE_OPENED_MAX>,
}

/// A row of C, and how it leads to the root.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct OpenedRow {
    /// FP32 numbers in little endian.
    pub entries: Bytes<ROW_BYTES_MAX>,
    /// The other child's hash, from the leaf up.
    pub path: List<Hash, PATH_MAX>,
}

/// Why a result is not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Not as many rows or numbers as there must be.
    #[error("the opening has another shape than the product")]
    Shape,
    /// A row is not the one that was committed to.
    #[error("row {0} is not the one that was committed to")]
    Changed(u32),
    /// A row does not have the sum that was stated for it.
    #[error("row {0} does not have the sum that was stated")]
    Sum(u32),
    /// A row is not the product's.
    #[error("row {0} of the product is wrong")]
    Product(u32),
}

impl Challenge {
    /// A product for a device that claims so many operations per second in one and
    /// so much memory: about 0.4 s of work, in at most half of the memory,
    /// and small enough to be checked.
    pub fn sized(flops_per_second: u64, memory_bytes: u64, seed: Seed) -> Self {
        let operations = u128::from(flops_per_second) * TARGET_MS / 1000;
        let side: u32 = match operations {
            0..0x2_0000_0000 => 512,
            0x2_0000_0000..0x10_0000_0000 => 1024,
            0x10_0000_0000..0x80_0000_0000 => 2048,
            _ => CHALLENGE_SIDE_MAX,
        };
        let by_time = operations / (2 * u128::from(side) * u128::from(side));
        let by_memory = u128::from(memory_bytes) / 2 / (8 * u128::from(side));
        let by_check = u128::from(CHALLENGE_ELEMENTS_MAX) / (2 * u128::from(side));
        let depth = by_time.min(by_memory).min(by_check);
        let depth = u32::try_from(depth).unwrap_or(u32::MAX) / DEPTH_STEP * DEPTH_STEP;
        Self {
            rows: side,
            depth: depth.max(4 * DEPTH_STEP),
            columns: side,
            seed,
        }
    }

    /// Whether it is one that a provider must be able to compute.
    pub fn is_valid(&self) -> bool {
        let side =
            |side: u32| side.is_power_of_two() && (SIDE_MIN..=CHALLENGE_SIDE_MAX).contains(&side);
        side(self.rows)
            && side(self.columns)
            && self.depth > 0
            && self.depth.is_multiple_of(DEPTH_STEP)
            && self.elements() <= CHALLENGE_ELEMENTS_MAX
    }

    /// Floating-point operations of the product; a multiplication and an addition
    /// are two.
    pub fn operations(&self) -> u64 {
        2 * u64::from(self.rows) * u64::from(self.depth) * u64::from(self.columns)
    }

    /// Numbers in A and B, which are what a check costs.
    fn elements(&self) -> u64 {
        (u64::from(self.rows) + u64::from(self.columns)) * u64::from(self.depth)
    }

    /// Bytes of C.
    pub fn product_bytes(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.columns) * 4
    }

    /// How far a row's sum may be off.
    pub fn tolerance(&self) -> f64 {
        2.0 * f64::from(self.columns).sqrt() * f64::from(self.depth) * ROUND_OFF
    }

    /// Whether two sums are the same but for rounding. What is no number never is.
    fn is_near(&self, one: f64, other: f64) -> bool {
        (one - other).abs() <= self.tolerance()
    }

    /// The words that entries of A (0 and 1) and of B (2 and 3) follow from.
    pub fn words(&self) -> [u32; 4] {
        words(self.seed)
    }

    fn opened(&self) -> usize {
        let row_bytes = position(self.columns) * 4;
        (CHALLENGE_OPENED_BYTES_MAX / row_bytes)
            .min(CHALLENGE_OPENED_MAX)
            .min(position(self.rows))
    }

    /// The signs of r, and the rows to open, which may repeat.
    fn questions(&self, open: Seed) -> (Vec<f64>, Vec<u32>) {
        let [a, b, c, d] = words(open);
        let sign = |n| if mixed(n, a, b) & 1 == 0 { 1.0 } else { -1.0 };
        let rows = 0..u32::try_from(self.opened()).unwrap_or(0);
        let rows = rows.map(|n| mixed(n, c, d) % self.rows.max(1));
        ((0..self.columns).map(sign).collect(), rows.collect())
    }

    /// Holds an opening against the commitment `root` and the seed that was sent
    /// after it came. Takes about a nanosecond for each number in A and B.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self, root: Hash, open: Seed, opening: &Opening) -> Result<(), Wrong> {
        let (r, asked) = self.questions(open);
        let (sums, rest) = opening.sums.as_chunks::<8>();
        if sums.len() != position(self.rows)
            || !rest.is_empty()
            || opening.rows.len() != asked.len()
        {
            return Err(Wrong::Shape);
        }
        let sums: Vec<f64> = sums.iter().map(|sum| f64::from_le_bytes(*sum)).collect();
        for (&index, row) in asked.iter().zip(opening.rows.iter()) {
            if row.entries.len() != r.len() * 4 || row.root(index, self.rows) != Some(root) {
                return Err(Wrong::Changed(index));
            }
            let stated = sums.get(position(index)).copied().unwrap_or(f64::NAN);
            if !self.is_near(row_sum(&row.entries, &r), stated) {
                return Err(Wrong::Sum(index));
            }
        }
        self.check_sums(&r, &sums)
    }

    /// Whether the sums are A·(B·r).
    fn check_sums(&self, r: &[f64], sums: &[f64]) -> Result<(), Wrong> {
        let [a0, a1, b0, b1] = self.words();
        let line = |first: u32, other: &[f64], x: u32, y: u32| -> f64 {
            (first..)
                .zip(other)
                .map(|(n, other)| f64::from(entry(n, x, y)) * other)
                .sum()
        };
        let b_r: Vec<f64> = (0..self.depth)
            .map(|k| line(k * self.columns, r, b0, b1))
            .collect();
        for (i, sum) in (0..self.rows).zip(sums) {
            let expected = line(i * self.depth, &b_r, a0, a1);
            if !self.is_near(expected, *sum) {
                return Err(Wrong::Product(i));
            }
        }
        Ok(())
    }
}

/// A product that its provider is bound to.
#[derive(Debug)]
pub struct Commitment {
    challenge: Challenge,
    product: Vec<u8>,
    /// Hashes by level, leaves first.
    levels: Vec<Vec<Hash>>,
}

impl Commitment {
    /// Binds a product (FP32 in little endian, by rows); `None` if it has another size than was asked for.
    pub fn new(challenge: Challenge, product: Vec<u8>) -> Option<Self> {
        if !challenge.is_valid() || u64::try_from(product.len()) != Ok(challenge.product_bytes()) {
            return None;
        }
        let rows = product.chunks_exact(position(challenge.columns) * 4);
        let leaves = (0..).zip(rows).map(|(n, row)| leaf(n, row)).collect();
        let mut levels: Vec<Vec<Hash>> = vec![leaves];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            let (pairs, _) = level.as_chunks::<2>();
            let above = pairs
                .iter()
                .map(|[left, right]| node(*left, *right))
                .collect();
            levels.push(above);
        }
        Some(Self {
            challenge,
            product,
            levels,
        })
    }

    /// What the provider says before it knows what will be opened.
    pub fn root(&self) -> Hash {
        let top = self.levels.last().and_then(|level| level.first());
        top.copied().unwrap_or(Hash::from_bytes([0; 32]))
    }

    /// Answers the seed.
    pub fn open(&self, open: Seed) -> Opening {
        let (r, asked) = self.challenge.questions(open);
        let width = position(self.challenge.columns) * 4;
        let rows = self.product.chunks_exact(width);
        let sums = rows
            .flat_map(|row| row_sum(row, &r).to_le_bytes())
            .collect();
        let rows = asked.into_iter().map(|index| {
            let index = position(index);
            let entries = self.product[index * width..(index + 1) * width].to_vec();
            let below = self.levels.len().saturating_sub(1);
            let path = self.levels[..below].iter().enumerate();
            let path = path.filter_map(|(height, level)| level.get((index >> height) ^ 1));
            OpenedRow {
                entries: Bytes::new(entries).unwrap_or_default(),
                path: List::truncated(path.copied().collect()),
            }
        });
        Opening {
            sums: Bytes::new(sums).unwrap_or_default(),
            rows: List::truncated(rows.collect()),
        }
    }
}

impl OpenedRow {
    /// The root that it leads to, if its path is as long as it must be.
    fn root(&self, index: u32, rows: u32) -> Option<Hash> {
        if u32::try_from(self.path.len()) != Ok(rows.ilog2()) {
            return None;
        }
        let mut hash = leaf(index, &self.entries);
        for (height, other) in self.path.iter().enumerate() {
            hash = if (index >> height) & 1 == 0 {
                node(hash, *other)
            } else {
                node(*other, hash)
            };
        }
        Some(hash)
    }
}

fn leaf(index: u32, row: &[u8]) -> Hash {
    Hash::derive("suanli challenge row", &[&index.to_le_bytes(), row])
}

fn node(left: Hash, right: Hash) -> Hash {
    let children: [&[u8]; 2] = [left.as_bytes(), right.as_bytes()];
    Hash::derive("suanli challenge node", &children)
}

/// A row times r.
fn row_sum(row: &[u8], r: &[f64]) -> f64 {
    let (entries, _) = row.as_chunks::<4>();
    let entries = entries
        .iter()
        .map(|entry| f64::from(f32::from_le_bytes(*entry)));
    entries.zip(r).map(|(entry, r)| entry * r).sum()
}

/// The entry with this number of the matrix that two words name, in [−1, 1).
/// Devices make the same, exactly: each step has a result that FP32 can hold.
pub fn entry(n: u32, first: u32, second: u32) -> f32 {
    // 24 bits, so that nothing is rounded.
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit")]
    let bits = (mixed(n, first, second) >> 8) as f32;
    bits * (1.0 / 8_388_608.0) - 1.0
}

/// A number from two words and a counter, in which every bit depends on all bits.
fn mixed(n: u32, first: u32, second: u32) -> u32 {
    mix(mix(n ^ first).wrapping_add(second))
}

/// The finaliser of MurmurHash3.
const fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

fn words(seed: Seed) -> [u32; 4] {
    let (words, _) = seed.as_chunks::<4>();
    let mut all = [0; 4];
    for (word, bytes) in all.iter_mut().zip(words) {
        *word = u32::from_le_bytes(*bytes);
    }
    all
}

fn position(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
