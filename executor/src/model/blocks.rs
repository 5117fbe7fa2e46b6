//! Blocks of small numbers, as files have them.
//!
//! A block has some bytes for each 32 of its numbers, a **piece**, and says what these
//! mean. Each engine puts them where its kernels want them; where they lie in a file is
//! read here, and nowhere else.
//!
//! | type | pieces | a number is |
//! |---|---|---|
//! | Q8_0, Q5_0, Q4_0 | 1 | scale · (bits - zero) |
//! | Q5_1, Q4_1 | 1 | scale · bits + min |
//! | Q5_K, Q4_K | 8 | scale · factor · bits + min · other factor |
//! | Q6_K | 8 | scale · factor · (bits - zero), a factor for each half of a piece |
//!
//! Four neighbours are a **quad**: a word whose lowest byte is the first of them, so that
//! four numbers are moved at once.
//!
//! Source: the layouts of llama.cpp. Absent: floats, and computing.

use super::llama::MatrixType;

/// Numbers of a piece.
pub const PIECE: usize = 32;
/// Quads of a piece.
pub const QUADS: usize = PIECE / 4;

const LOW_HALF: u32 = 0x0f0f_0f0f;
/// The sign of a float of 16 bits.
const SIGN: u16 = 0x8000;

/// A block of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct SmallBlock<'a> {
    kind: MatrixType,
    bytes: &'a [u8],
}

/// Thirty-two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Their bits, without sign: of Q8_0 they are moved by 128.
    pub quads: [u32; QUADS],
    /// What the block's scale and min are multiplied with: of Q5_K and Q4_K. Of Q6_K both
    /// are the scale's, one for each half, and have a sign.
    pub factors: [u8; 2],
}

/// The blocks of a row or more; of a type of floats there are none.
pub fn blocks(kind: MatrixType, bytes: &[u8]) -> impl Iterator<Item = SmallBlock<'_>> {
    let (numbers, length) = kind.block();
    let bytes = if numbers < PIECE { &[] } else { bytes };
    let blocks = bytes.chunks_exact(length);
    blocks.map(move |bytes| SmallBlock { kind, bytes })
}

impl SmallBlock<'_> {
    /// The scale, as the bits of a float of 16 bits.
    pub fn scale(&self) -> u16 {
        match self.kind {
            MatrixType::Q6K => self.half_word(208),
            MatrixType::F32
            | MatrixType::F16
            | MatrixType::Bf16
            | MatrixType::Q4_0
            | MatrixType::Q4_1
            | MatrixType::Q5_0
            | MatrixType::Q5_1
            | MatrixType::Q8_0
            | MatrixType::Q4K
            | MatrixType::Q5K => self.half_word(0),
        }
    }

    /// What is added, as such bits: 0 where there is none.
    pub fn min(&self) -> u16 {
        match self.kind {
            MatrixType::Q4_1 | MatrixType::Q5_1 => self.half_word(2),
            // There it is taken off.
            MatrixType::Q4K | MatrixType::Q5K => self.half_word(2) ^ SIGN,
            MatrixType::F32
            | MatrixType::F16
            | MatrixType::Bf16
            | MatrixType::Q4_0
            | MatrixType::Q5_0
            | MatrixType::Q8_0
            | MatrixType::Q6K => 0,
        }
    }

    /// Its pieces, one after the other.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + use<'_> {
        (0..self.kind.block().0 / PIECE).map(|index| self.piece(index))
    }

    fn piece(&self, index: usize) -> Piece {
        let (quads, factors) = match self.kind {
            MatrixType::Q4_0 => (self.nibbles(2), [0; 2]),
            MatrixType::Q4_1 => (self.nibbles(4), [0; 2]),
            MatrixType::Q5_0 => (self.with_fifth(2), [0; 2]),
            MatrixType::Q5_1 => (self.with_fifth(4), [0; 2]),
            MatrixType::Q4K => (self.quads_of_4(16, index), self.factors(index)),
            MatrixType::Q5K => {
                let low = self.quads_of_4(48, index);
                let high = |quad: usize| self.word(16 + 4 * quad) >> index & 0x0101_0101;
                let quads = std::array::from_fn(|quad| low[quad] | high(quad) << 4);
                (quads, self.factors(index))
            }
            MatrixType::Q6K => self.piece_of_6(index),
            // Moving by 128 turns the highest bit.
            MatrixType::Q8_0 | MatrixType::F32 | MatrixType::F16 | MatrixType::Bf16 => {
                let quad = |quad: usize| self.word(2 + 4 * quad) ^ 0x8080_8080;
                (std::array::from_fn(quad), [0; 2])
            }
        };
        Piece { quads, factors }
    }

    /// Sixteen bytes: the lower halves are the first numbers, the upper ones the others.
    fn nibbles(&self, from: usize) -> [u32; QUADS] {
        std::array::from_fn(|quad| {
            let word = self.word(from + 4 * (quad % 4));
            word >> (quad / 4 * 4) & LOW_HALF
        })
    }

    /// The same, with a fifth bit for each number in a word before.
    fn with_fifth(&self, from: usize) -> [u32; QUADS] {
        let (fifths, low) = (self.word(from), self.nibbles(from + 4));
        std::array::from_fn(|quad| {
            let bits = fifths >> (4 * quad) & 15;
            // One bit for each byte.
            let spread = (bits | bits << 7 | bits << 14 | bits << 21) & 0x0101_0101;
            low[quad] | spread << 4
        })
    }

    /// A piece of the larger blocks: two share 32 bytes, one has their lower halves.
    fn quads_of_4(&self, from: usize, index: usize) -> [u32; QUADS] {
        std::array::from_fn(|quad| {
            let word = self.word(from + index / 2 * 32 + 4 * quad);
            word >> (index % 2 * 4) & LOW_HALF
        })
    }

    /// Eight of six bits for scales, and as many for mins, in twelve bytes: the upper two
    /// bits of the last four of each are in the upper ones of the first four.
    fn factors(&self, index: usize) -> [u8; 2] {
        let byte = |at: usize| self.bytes[4 + at];
        if index < 4 {
            return [byte(index) & 63, byte(index + 4) & 63];
        }
        let both = byte(index + 4);
        [
            both & 15 | byte(index - 4) >> 6 << 4,
            both >> 4 | byte(index) >> 6 << 4,
        ]
    }

    /// Lower halves as four pieces share 64 bytes, the upper two bits in 32 bytes.
    fn piece_of_6(&self, index: usize) -> ([u32; QUADS], [u8; 2]) {
        let (half, place) = (index / 4, index % 4);
        let quads = std::array::from_fn(|quad| {
            let low = self.word(64 * half + 32 * (place % 2) + 4 * quad) >> (place / 2 * 4);
            let high = self.word(128 + 32 * half + 4 * quad) >> (2 * place);
            low & LOW_HALF | (high & 0x0303_0303) << 4
        });
        let at = 192 + 2 * index;
        (quads, [self.bytes[at], self.bytes[at + 1]])
    }

    fn word(&self, at: usize) -> u32 {
        let bytes = &self.bytes[at..at + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn half_word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }
}
