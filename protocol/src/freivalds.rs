//! Whether an output is the product of two inputs, found without computing it.
//!
//! ```text
//! r drawn, when C is here ─▶ B·r ─▶ A·(B·r) ─┐
//!                              C ─▶ C·r ─────┴▶ the same in every row?
//! ```
//!
//! A product of `rows × inner` and `inner × columns` numbers takes
//! `2·rows·inner·columns` operations, a round of this reads each of the three matrices
//! once (Freivalds, "Probabilistic machines can use less running time", 1977). One that
//! is wrong passes a round with a chance of at most ½, whatever is wrong, if nobody knows
//! `r` while it is made. Rounds are independent.
//!
//! **Integers** are 32 bits and wrap. Entries of `r` are any 32 bits. A number that is
//! wrong by `d` is found unless `d·r` takes one certain value, and that has a chance of
//! ½ for `d` = 2³¹ and less for all others.
//!
//! **Floats.** Entries of `r` are ±1. Let `D = C − A·B`, of which neither is rounded. In
//! any order of summation, with `fma` or without, an FP32 product is off by at most
//!
//! ```text
//! |D| ≤ γ·|A|·|B|     γ = inner·u / (1 − inner·u)     u = 2⁻²⁴, rounding to nearest
//! ```
//!
//! (Higham, "Accuracy and Stability of Numerical Algorithms", 3.5). So in a row, with
//! `b` for the rows of B,
//!
//! ```text
//! |D·r|ᵢ ≤ γ·Σⱼ |aᵢⱼ|·‖bⱼ‖₁                           always,
//! |D·r|ᵢ ≤ γ·Σⱼ |aᵢⱼ|·‖bⱼ‖₂·DEVIATIONS                but for a chance of 2·exp(−DEVIATIONS²/2)
//! ```
//!
//! the second by Hoeffding's inequality, because the signs were drawn after the errors
//! were made. The smaller one is the row's bound: no honest product is called wrong, and
//! one number that is off by more than the bound is found in a round with a chance of ½
//! at least, for its two signs give results that are more than two bounds apart. Where
//! the job says how far off numbers are, that stands in place of γ.
//!
//! Added to it are this check's own rounding, in double precision, and what devices that
//! take the smallest numbers for 0 may lose. Where inputs are infinite or no numbers, the
//! product is what the device makes of them: their rows and columns are not looked at. A
//! number of C that is infinite, or none, is wrong anywhere else, unless its sum could
//! have overflowed.
//!
//! What is held is a row of each matrix, and a few numbers for each row and column of B.
//! Absent: reading matrices, drawing the seed, and what follows.

use bincode::{Decode, Encode};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use serde::Serialize;

use crate::{
    limits::{FREIVALDS_ROUNDS_MAX, MATRIX_BYTES_MAX, MATRIX_SIDE_MAX, PRODUCTS_MAX},
    offer::Name,
    tolerance::Tolerance,
    wire::List,
};

/// Rounds that share one way through the matrices.
const LANES: usize = 8;
/// Bytes of a number.
const NUMBER: u64 = 4;
/// Half of an FP32 unit in the last place, of 1.
const ROUND_OFF: f64 = 1.0 / 16_777_216.0;
/// Devices may take what is smaller for 0.
const TINY: f64 = f32::MIN_POSITIVE as f64;
/// So many times the root of the sum of squares: a row of an honest product is beyond it
/// with a chance of 3·10⁻¹⁴, if all of its numbers are off as far as they can be.
const DEVIATIONS: f64 = 8.0;
/// A sum of FP32 numbers whose sizes add up to less can't overflow on its way.
const NO_OVERFLOW: f64 = f32::MAX as f64 * 0.9;

/// Random numbers follow from it.
pub type Seed = [u8; 32];

/// What of a job's results is checked so.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Freivalds {
    /// How often; each lets something wrong pass with a chance of at most ½.
    pub rounds: u8,
    /// What.
    pub products: List<Product, PRODUCTS_MAX>,
}

/// An output that is a product of two inputs, all row by row, little-endian.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Product {
    /// The left factor's number among a unit's inputs.
    pub left: u16,
    /// The right factor's.
    pub right: u16,
    /// The output.
    pub output: Name,
    /// Rows of the left factor and the product.
    pub rows: u32,
    /// Columns of the left factor, rows of the right one.
    pub inner: u32,
    /// Columns of the right factor and the product.
    pub columns: u32,
    /// What the numbers are.
    pub numbers: Numbers,
}

/// What the numbers of a product are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub enum Numbers {
    /// 32-bit floats.
    Floats {
        /// How far a number may be off, as a part of the sum of the sizes of what it is the
        /// sum of. None for as far as rounding can bring it.
        error: Option<Tolerance>,
    },
    /// 32-bit integers, signed or not: sums and products wrap.
    Integers,
}

/// One of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matrix {
    /// The left factor.
    Left,
    /// The right factor.
    Right,
    /// What is said to be their product.
    Product,
}

/// Where their bytes come from.
pub trait Matrices {
    /// Why there are none.
    type Error;

    /// Goes to the beginning of one.
    ///
    /// # Errors
    /// If it can't be read.
    fn rewind(&mut self, matrix: Matrix) -> Result<(), Self::Error>;

    /// Reads its next row.
    ///
    /// # Errors
    /// If it can't be read, or has no more rows.
    fn read(&mut self, matrix: Matrix, row: &mut [u8]) -> Result<(), Self::Error>;
}

/// Why something can't be checked so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FreivaldsError {
    /// No rounds, or too many.
    #[error(
        "1 to {FREIVALDS_ROUNDS_MAX} rounds are allowed; 20 let one wrong product in a million pass"
    )]
    Rounds,
    /// Nothing to check.
    #[error("1 to {PRODUCTS_MAX} products are allowed")]
    Products,
    /// A matrix is empty, or too large.
    #[error(
        "a side is 0, `inner` or `columns` more than {MATRIX_SIDE_MAX}, or a matrix larger than 4 GiB"
    )]
    Sides,
    /// An input is not there, or has another size.
    #[error(
        "`left` and `right` are no inputs of `rows` × `inner` and `inner` × `columns` numbers of four bytes, in every unit"
    )]
    Factors,
}

impl Freivalds {
    /// Whether it can be done.
    ///
    /// # Errors
    /// [`FreivaldsError`]
    pub fn check(&self) -> Result<(), FreivaldsError> {
        if !(1..=FREIVALDS_ROUNDS_MAX).contains(&self.rounds) {
            return Err(FreivaldsError::Rounds);
        }
        if self.products.is_empty() {
            return Err(FreivaldsError::Products);
        }
        self.products.iter().try_for_each(Product::check)
    }
}

impl Product {
    /// Whether its sides are within bounds.
    ///
    /// # Errors
    /// [`FreivaldsError::Sides`]
    pub fn check(&self) -> Result<(), FreivaldsError> {
        let side = |side: u32| (1..=MATRIX_SIDE_MAX).contains(&side);
        let all = [Matrix::Left, Matrix::Right, Matrix::Product];
        let fits = |matrix: &Matrix| self.bytes(*matrix) <= MATRIX_BYTES_MAX;
        if side(self.inner) && side(self.columns) && self.rows > 0 && all.iter().all(fits) {
            Ok(())
        } else {
            Err(FreivaldsError::Sides)
        }
    }

    /// Bytes of a matrix.
    pub fn bytes(&self, matrix: Matrix) -> u64 {
        let rows = match matrix {
            Matrix::Left | Matrix::Product => self.rows,
            Matrix::Right => self.inner,
        };
        self.row_bytes(matrix).saturating_mul(u64::from(rows))
    }

    fn row_bytes(&self, matrix: Matrix) -> u64 {
        let columns = match matrix {
            Matrix::Left => self.inner,
            Matrix::Right | Matrix::Product => self.columns,
        };
        u64::from(columns) * NUMBER
    }

    fn row(&self, matrix: Matrix) -> Vec<u8> {
        vec![0; usize::try_from(self.row_bytes(matrix)).unwrap_or(0)]
    }

    /// Whether the product is right, with a chance of at most 2 to the −`rounds` to say so
    /// of one that is not. The seed must have been drawn after the product was made.
    ///
    /// # Errors
    /// The first of `from`.
    pub fn holds<M: Matrices>(
        &self,
        rounds: u8,
        seed: Seed,
        from: &mut M,
    ) -> Result<bool, M::Error> {
        let mut random = ChaCha20Rng::from_seed(seed);
        let mut left = usize::from(rounds);
        while left > 0 {
            let lanes = left.min(LANES);
            left -= lanes;
            let holds = match self.numbers {
                Numbers::Floats { error } => {
                    let mut lanes = Floats::draw(self, error, lanes, &mut random);
                    self.go_through(&mut lanes, from)?
                }
                Numbers::Integers => {
                    let mut lanes = Integers::draw(self, lanes, &mut random);
                    self.go_through(&mut lanes, from)?
                }
            };
            if !holds {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// As many rounds as there are lanes.
    fn go_through<L: Lanes, M: Matrices>(
        &self,
        lanes: &mut L,
        from: &mut M,
    ) -> Result<bool, M::Error> {
        let mut right = self.row(Matrix::Right);
        loop {
            from.rewind(Matrix::Right)?;
            for _ in 0..self.inner {
                from.read(Matrix::Right, &mut right)?;
                lanes.take(&right);
            }
            if lanes.is_ready() {
                break;
            }
        }
        let (mut left, mut product) = (self.row(Matrix::Left), self.row(Matrix::Product));
        from.rewind(Matrix::Left)?;
        from.rewind(Matrix::Product)?;
        for _ in 0..self.rows {
            from.read(Matrix::Left, &mut left)?;
            from.read(Matrix::Product, &mut product)?;
            if !lanes.holds(&left, &product) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Some rounds at once.
trait Lanes {
    /// Takes the next row of B.
    fn take(&mut self, right: &[u8]);

    /// Whether B needs not come again.
    fn is_ready(&mut self) -> bool;

    /// Whether a row of C is right.
    fn holds(&self, left: &[u8], product: &[u8]) -> bool;
}

fn entries(row: &[u8]) -> impl Iterator<Item = u32> {
    let (entries, _) = row.as_chunks::<4>();
    entries.iter().map(|entry| u32::from_le_bytes(*entry))
}

#[derive(Debug)]
struct Integers {
    r: Vec<[u32; LANES]>,
    /// B·r.
    right: Vec<[u32; LANES]>,
}

impl Integers {
    fn draw(product: &Product, lanes: usize, random: &mut ChaCha20Rng) -> Self {
        let mut word = |lane| if lane < lanes { random.next_u32() } else { 0 };
        let r = (0..product.columns).map(|_| std::array::from_fn(&mut word));
        Self {
            r: r.collect(),
            right: Vec::new(),
        }
    }

    fn times(row: &[u8], by: &[[u32; LANES]]) -> [u32; LANES] {
        let mut sums = [0u32; LANES];
        for (entry, by) in entries(row).zip(by) {
            for (sum, by) in sums.iter_mut().zip(by) {
                *sum = sum.wrapping_add(entry.wrapping_mul(*by));
            }
        }
        sums
    }
}

impl Lanes for Integers {
    fn take(&mut self, right: &[u8]) {
        self.right.push(Self::times(right, &self.r));
    }

    fn is_ready(&mut self) -> bool {
        true
    }

    fn holds(&self, left: &[u8], product: &[u8]) -> bool {
        Self::times(left, &self.right) == Self::times(product, &self.r)
    }
}

#[derive(Debug)]
struct Floats {
    /// By column of B: ±1, or 0 for all where the column is not looked at.
    r: Vec<[f64; LANES]>,
    right: Vec<RightRow>,
    /// Sizes of all numbers of B.
    size: f64,
    /// A column of B turned out to be none that can be looked at.
    again: bool,
    bound: Bound,
}

/// What is kept of a row of B.
#[derive(Debug)]
struct RightRow {
    /// The row times r.
    sums: [f64; LANES],
    /// The sum of the sizes of its numbers,
    size: f64,
    /// the root of the sum of their squares,
    norm: f64,
    /// and the size of the largest.
    largest: f64,
}

/// How far a row may be off, by what it is made of.
#[derive(Debug)]
struct Bound {
    /// Of a number, as a part of the sizes that it is the sum of, and beside.
    relative: f64,
    absolute: f64,
    inner: f64,
    columns: f64,
}

impl Bound {
    fn new(product: &Product, error: Option<Tolerance>) -> Self {
        let inner = f64::from(product.inner);
        let rounding = inner * ROUND_OFF / (1.0 - inner * ROUND_OFF);
        Self {
            relative: error.map_or(rounding, |error| error.relative().into()),
            absolute: error.map_or(0.0, |error| error.absolute().into()),
            inner,
            columns: f64::from(product.columns),
        }
    }
}

impl Floats {
    fn draw(
        product: &Product,
        error: Option<Tolerance>,
        lanes: usize,
        random: &mut ChaCha20Rng,
    ) -> Self {
        let signs = (0..product.columns).map(|_| {
            let bits = random.next_u32();
            std::array::from_fn(|lane| match (lane < lanes, bits >> lane & 1) {
                (false, _) => 0.0,
                (true, 0) => 1.0,
                (true, _) => -1.0,
            })
        });
        Self {
            r: signs.collect(),
            right: Vec::new(),
            size: 0.0,
            again: false,
            bound: Bound::new(product, error),
        }
    }
}

/// Whether a column is looked at: the first lane always has a sign then.
fn is_looked_at(r: &[f64; LANES]) -> bool {
    r[0] != 0.0
}

impl Lanes for Floats {
    fn take(&mut self, right: &[u8]) {
        let mut sums = [0.0; LANES];
        let (mut size, mut squares, mut largest) = (0.0, 0.0, 0.0_f64);
        for (entry, r) in entries(right).zip(&mut self.r) {
            let entry = f64::from(f32::from_bits(entry));
            if !entry.is_finite() {
                self.again |= is_looked_at(r);
                *r = [0.0; LANES];
            } else if is_looked_at(r) {
                for (sum, r) in sums.iter_mut().zip(r) {
                    *sum += entry * *r;
                }
                size += entry.abs();
                squares += entry * entry;
                largest = largest.max(entry.abs());
            }
        }
        self.size += size;
        self.right.push(RightRow {
            sums,
            size,
            norm: squares.sqrt(),
            largest,
        });
    }

    fn is_ready(&mut self) -> bool {
        let again = std::mem::take(&mut self.again);
        if again {
            self.right.clear();
            self.size = 0.0;
        }
        !again
    }

    fn holds(&self, left: &[u8], product: &[u8]) -> bool {
        let mut expected = [0.0; LANES];
        let (mut own, mut size, mut norm, mut largest) = (0.0, 0.0, 0.0, 0.0);
        for (entry, right) in entries(left).zip(&self.right) {
            let entry = f64::from(f32::from_bits(entry));
            if !entry.is_finite() {
                return true;
            }
            for (sum, right) in expected.iter_mut().zip(&right.sums) {
                *sum += entry * right;
            }
            let entry = entry.abs();
            own += entry;
            size += entry * right.size;
            norm += entry * right.norm;
            largest += entry * right.largest;
        }
        let mut sums = [0.0; LANES];
        for (entry, r) in entries(product).zip(&self.r) {
            let entry = f64::from(f32::from_bits(entry));
            if !is_looked_at(r) {
                continue;
            }
            if !entry.is_finite() {
                return largest >= NO_OVERFLOW;
            }
            for (sum, r) in sums.iter_mut().zip(r) {
                *sum += entry * r;
            }
        }
        let bound = self.bound.of_row(own, size, norm, self.size);
        let mut pairs = sums.iter().zip(&expected);
        pairs.all(|(sum, expected)| (sum - expected).abs() <= bound)
    }
}

impl Bound {
    /// Of a row whose numbers have the sizes `own` together, `size` times those of the rows
    /// of B, and `norm` times their roots; `all` are the sizes of all of B.
    fn of_row(&self, own: f64, size: f64, norm: f64, all: f64) -> f64 {
        let Self { inner, columns, .. } = *self;
        let rounding = self.relative * size.min(norm * DEVIATIONS)
            + self.absolute * columns.min(columns.sqrt() * DEVIATIONS);
        let here = (inner + columns) * 2.0 * f64::EPSILON * size;
        let lost = TINY * (all + columns * own + 2.0 * columns * inner);
        rounding + here + lost
    }
}

#[cfg(test)]
mod tests;
