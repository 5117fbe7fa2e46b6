//! Matrices as the kernels in `matrix.wgsl` want them.
//!
//! A matrix is rows of blocks of 32 numbers; what is missing in a row's last block is 0. A
//! block is whole sixteens of bytes, so that a lane of the device reads it at once and its
//! neighbours the next ones; what its numbers are multiplied with lies elsewhere, in the
//! same order.
//!
//! | form | a block | its scale |
//! |---|---|---|
//! | F32, F16, BF16 | its numbers | none |
//! | Q8_0 | 32 numbers of 8 bits | a float of 16 bits |
//! | Q4_1 | 16 bytes as in the file: number i is in the lower half of byte i, number i + 16 in the upper | scale and least number, each a float of 16 bits |
//! | Q4_0 | as Q4_1 | the least number is -8 scales, which has no more bits |
//!
//! Absent: devices.

use half::f16;
use suanli_executor::model::llama::{Matrix, MatrixType};

/// Numbers of a block.
pub(super) const BLOCK: usize = 32;

/// Some rows of a matrix, or of several of one form and as many columns.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) quants: Vec<u8>,
    pub(super) scales: Vec<u8>,
}

/// What the kernels call a form.
pub(super) const fn number(kind: MatrixType) -> u32 {
    match kind {
        MatrixType::F32 => 0,
        MatrixType::F16 => 1,
        MatrixType::Bf16 => 2,
        MatrixType::Q8_0 => 3,
        MatrixType::Q4_0 | MatrixType::Q4_1 => 4,
    }
}

/// Bytes of a block, and of its scale.
pub(super) const fn sizes(kind: MatrixType) -> (usize, usize) {
    match kind {
        MatrixType::F32 => (4 * BLOCK, 0),
        MatrixType::F16 | MatrixType::Bf16 => (2 * BLOCK, 0),
        MatrixType::Q8_0 => (BLOCK, 2),
        MatrixType::Q4_0 | MatrixType::Q4_1 => (BLOCK / 2, 4),
    }
}

impl Layout {
    /// Adds rows of a matrix. False if a scale is too large for this form; only made-up
    /// files have such.
    #[must_use]
    pub(super) fn add(&mut self, matrix: &Matrix<'_>, rows: std::ops::Range<usize>) -> bool {
        let row_bytes = matrix.row_bytes();
        let bytes = &matrix.bytes()[rows.start * row_bytes..rows.end * row_bytes];
        let mut is_whole = true;
        match matrix.kind() {
            kind @ (MatrixType::F32 | MatrixType::F16 | MatrixType::Bf16) => {
                let padded = matrix.columns().div_ceil(BLOCK) * sizes(kind).0;
                for row in bytes.chunks_exact(row_bytes) {
                    let end = self.quants.len() + padded;
                    self.quants.extend_from_slice(row);
                    self.quants.resize(end, 0);
                }
            }
            MatrixType::Q8_0 => {
                for (scale, quants) in bytes.chunks_exact(34).map(|block| block.split_at(2)) {
                    self.scales.extend_from_slice(scale);
                    self.quants.extend_from_slice(quants);
                }
            }
            MatrixType::Q4_0 => {
                for (scale, quants) in bytes.chunks_exact(18).map(|block| block.split_at(2)) {
                    let number = f16::from_le_bytes([scale[0], scale[1]]);
                    let least = f16::from_f32(-8.0 * number.to_f32());
                    is_whole &= least.is_finite();
                    self.scales.extend_from_slice(scale);
                    self.scales.extend_from_slice(&least.to_le_bytes());
                    self.quants.extend_from_slice(quants);
                }
            }
            MatrixType::Q4_1 => {
                for (scales, quants) in bytes.chunks_exact(20).map(|block| block.split_at(4)) {
                    self.scales.extend_from_slice(scales);
                    self.quants.extend_from_slice(quants);
                }
            }
        }
        is_whole
    }
}
