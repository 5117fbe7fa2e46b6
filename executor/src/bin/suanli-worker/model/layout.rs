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
//! | Q5_1 | as Q4_1, of the lower four bits | as Q4_1, and a word: bit i of byte p is the fifth of number 4i + p |
//! | Q5_0 | as Q5_1 | the least number is -16 scales |
//! | Q4_K | as Q4_1 | for eight blocks together scale and least number; for each two bytes, which these are multiplied with |
//! | Q5_K | as Q4_1, of the lower four bits | as Q4_K; then for each of the eight a word as of Q5_1 |
//! | Q6_K | as Q4_1, of the lower four bits | for eight blocks a word whose lower half is the scale; for each two bytes with a sign, which it is multiplied with for the first and the second sixteen numbers; then for each two words: bits 2i and 2i + 1 of byte p of the first are the upper ones of number 4i + p, of the second of that 16 places on |
//!
//! Absent: devices.

use half::f16;
use suanli_executor::model::{
    blocks::{Piece, QUADS, SmallBlock, blocks},
    llama::{Matrix, MatrixType},
};

/// Numbers of a block.
pub(super) const BLOCK: usize = 32;
/// Blocks that share a scale, where they do.
const SHARING: usize = 8;

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
        MatrixType::Q5_0 | MatrixType::Q5_1 => 5,
        MatrixType::Q4K => 6,
        MatrixType::Q5K => 7,
        MatrixType::Q6K => 8,
    }
}

/// Bytes of a block.
pub(super) const fn block_bytes(kind: MatrixType) -> usize {
    match kind {
        MatrixType::F32 => 4 * BLOCK,
        MatrixType::F16 | MatrixType::Bf16 => 2 * BLOCK,
        MatrixType::Q8_0 => BLOCK,
        MatrixType::Q4_0
        | MatrixType::Q4_1
        | MatrixType::Q5_0
        | MatrixType::Q5_1
        | MatrixType::Q4K
        | MatrixType::Q5K
        | MatrixType::Q6K => BLOCK / 2,
    }
}

/// Bytes of the scales of so many blocks, which are whole rows.
pub(super) const fn scale_bytes(kind: MatrixType, blocks: usize) -> usize {
    /// For eight blocks: what they share, and two bytes for each.
    const SHARED: usize = 4 + 2 * SHARING;
    match kind {
        MatrixType::F32 | MatrixType::F16 | MatrixType::Bf16 => 0,
        MatrixType::Q8_0 => 2 * blocks,
        MatrixType::Q4_0 | MatrixType::Q4_1 => 4 * blocks,
        MatrixType::Q5_0 | MatrixType::Q5_1 => 8 * blocks,
        MatrixType::Q4K => blocks / SHARING * SHARED,
        MatrixType::Q5K => blocks / SHARING * (SHARED + 4 * SHARING),
        MatrixType::Q6K => blocks / SHARING * (SHARED + 8 * SHARING),
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
                let padded = matrix.columns().div_ceil(BLOCK) * block_bytes(kind);
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
            kind @ (MatrixType::Q5_0 | MatrixType::Q5_1) => {
                for block in blocks(kind, bytes) {
                    let scale = f16::from_bits(block.scale());
                    let min = match kind {
                        MatrixType::Q5_0 => f16::from_f32(-16.0 * scale.to_f32()),
                        _ => f16::from_bits(block.min()),
                    };
                    is_whole &= kind == MatrixType::Q5_1 || min.is_finite();
                    self.scales.extend_from_slice(&scale.to_le_bytes());
                    self.scales.extend_from_slice(&min.to_le_bytes());
                    self.add_pieces(&block, |piece| vec![fifths(piece)]);
                }
            }
            kind @ MatrixType::Q4K => {
                for block in blocks(kind, bytes) {
                    self.add_shared(&block);
                    self.add_pieces(&block, |_| Vec::new());
                }
            }
            kind @ MatrixType::Q5K => {
                for block in blocks(kind, bytes) {
                    self.add_shared(&block);
                    self.add_pieces(&block, |piece| vec![fifths(piece)]);
                }
            }
            kind @ MatrixType::Q6K => {
                for block in blocks(kind, bytes) {
                    self.add_shared(&block);
                    self.add_pieces(&block, |piece| sixths(piece).to_vec());
                }
            }
        }
        is_whole
    }

    /// What blocks share, and the factors of each.
    fn add_shared(&mut self, block: &SmallBlock<'_>) {
        self.scales.extend_from_slice(&block.scale().to_le_bytes());
        self.scales.extend_from_slice(&block.min().to_le_bytes());
        let factors = block.pieces().flat_map(|piece| piece.factors);
        self.scales.extend(factors);
    }

    /// The lower four bits of numbers, and the words beside the scales with the others.
    fn add_pieces(&mut self, block: &SmallBlock<'_>, upper: impl Fn(&Piece) -> Vec<u32>) {
        for piece in block.pieces() {
            for (first, second) in lower_and_higher(&piece.quads) {
                let word = first & 0x0f0f_0f0f | (second & 0x0f0f_0f0f) << 4;
                self.quants.extend_from_slice(&word.to_le_bytes());
            }
            let words = upper(&piece).into_iter();
            self.scales.extend(words.flat_map(u32::to_le_bytes));
        }
    }
}

/// The first four quads, each with the one 16 numbers on.
fn lower_and_higher(quads: &[u32; QUADS]) -> impl Iterator<Item = (u32, u32)> {
    let (first, second) = quads.split_at(QUADS / 2);
    first.iter().copied().zip(second.iter().copied())
}

fn fifths(piece: &Piece) -> u32 {
    let bits = piece.quads.map(|quad| quad >> 4 & 0x0101_0101);
    (0..)
        .zip(bits)
        .fold(0, |word, (at, bits)| word | bits << at)
}

fn sixths(piece: &Piece) -> [u32; 2] {
    let words = [&piece.quads[..QUADS / 2], &piece.quads[QUADS / 2..]];
    words.map(|quads| {
        let bits = quads.iter().map(|quad| quad >> 4 & 0x0303_0303);
        (0..)
            .zip(bits)
            .fold(0, |word, (at, bits)| word | bits << (2 * at))
    })
}
