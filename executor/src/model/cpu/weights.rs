//! Matrices as the kernels want them.
//!
//! Sixteen rows are a **panel**. Where a row of the file has its blocks of 32 numbers one
//! after the other, a panel has block 0 of all its rows, then block 1, and so on; and
//! within a block four neighbouring numbers of each row at a time. So a vector
//! register takes the same four columns of sixteen rows, one row in each lane, and a
//! row's sum stays in its lane from the first block to the last: the order in which a
//! row is added up is the same for all widths of registers, and without any.
//!
//! ```text
//!   line k of a block:  row 0: numbers 4k..4k+4 | row 1: … | … | row 15
//! ```
//!
//! Numbers of 4 bits stay such: a byte has the number 4k+i in its low half and the one
//! 16 places on in its high half, as in the file. Numbers of 8 bits are moved by 128,
//! so that all are without sign. What floats there are become 32 bits wide.

use half::{bf16, f16};

use crate::model::llama::{Matrix, MatrixType};

/// Rows of a panel.
pub(super) const PANEL: usize = 16;
/// Numbers of a block.
pub(super) const BLOCK: usize = 32;
const LINES_OF_4_BITS: usize = 4;
const LINES_OF_8_BITS: usize = 8;

/// A vector register's worth of small numbers.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// A matrix, in panels. What is missing in the last one is 0.
#[derive(Debug)]
pub(super) struct Packed {
    rows: usize,
    columns: usize,
    numbers: Numbers,
}

#[derive(Debug)]
enum Numbers {
    Small(Small),
    /// For each panel, and in it for each column, the rows' numbers.
    Float(Vec<[f32; PANEL]>),
}

#[derive(Debug)]
struct Small {
    form: Form,
    quants: Vec<Line>,
    /// As bits of 16-bit floats, for each panel and in it for each block.
    scales: Vec<[u16; PANEL]>,
    /// The same; none where the form has none.
    mins: Vec<[u16; PANEL]>,
}

/// What small numbers mean: `scale · (number - zero) + min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) is_four_bits: bool,
    pub(super) zero: i32,
    pub(super) has_mins: bool,
}

impl Form {
    pub(super) const fn lines(self) -> usize {
        if self.is_four_bits {
            LINES_OF_4_BITS
        } else {
            LINES_OF_8_BITS
        }
    }
}

/// Sixteen rows.
#[derive(Debug, Clone, Copy)]
pub(super) enum Panel<'a> {
    Small(SmallPanel<'a>),
    Float(&'a [[f32; PANEL]]),
}

/// Sixteen rows of small numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct SmallPanel<'a> {
    pub(super) form: Form,
    pub(super) quants: &'a [Line],
    pub(super) scales: &'a [[u16; PANEL]],
    pub(super) mins: &'a [[u16; PANEL]],
}

impl Packed {
    pub(super) fn new(matrix: &Matrix<'_>) -> Self {
        let numbers = match matrix.kind() {
            MatrixType::F32 => Numbers::Float(floats(matrix, f32::from_le_bytes)),
            MatrixType::F16 => {
                Numbers::Float(floats(matrix, |bytes| f16::from_le_bytes(bytes).to_f32()))
            }
            MatrixType::Bf16 => {
                Numbers::Float(floats(matrix, |bytes| bf16::from_le_bytes(bytes).to_f32()))
            }
            MatrixType::Q4_0 => small(matrix, true, 8, false),
            MatrixType::Q4_1 => small(matrix, true, 0, true),
            MatrixType::Q8_0 => small(matrix, false, 128, false),
        };
        Self {
            rows: matrix.rows(),
            columns: matrix.columns(),
            numbers,
        }
    }

    pub(super) const fn rows(&self) -> usize {
        self.rows
    }

    pub(super) const fn columns(&self) -> usize {
        self.columns
    }

    pub(super) const fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Whether what it is multiplied with must be of 8 bits.
    pub(super) const fn is_small(&self) -> bool {
        matches!(self.numbers, Numbers::Small(_))
    }

    pub(super) fn panel(&self, index: usize) -> Panel<'_> {
        match &self.numbers {
            Numbers::Float(lines) => Panel::Float(part(lines, index, self.columns)),
            Numbers::Small(small) => {
                let blocks = self.columns / BLOCK;
                let has_mins = usize::from(small.form.has_mins);
                Panel::Small(SmallPanel {
                    form: small.form,
                    quants: part(&small.quants, index, blocks * small.form.lines()),
                    scales: part(&small.scales, index, blocks),
                    mins: part(&small.mins, index, blocks * has_mins),
                })
            }
        }
    }

    /// Writes the numbers of a row.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let lane = row % PANEL;
        match self.panel(row / PANEL) {
            Panel::Float(lines) => {
                for (out, line) in out.iter_mut().zip(lines) {
                    *out = line[lane];
                }
            }
            Panel::Small(panel) => {
                for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                    panel.block(block, lane, out);
                }
            }
        }
    }
}

impl SmallPanel<'_> {
    /// The small number of a lane in a block.
    pub(super) fn quant(&self, block: usize, lane: usize, index: usize) -> u8 {
        let line =
            |line: usize| self.quants[block * self.form.lines() + line].0[4 * lane + index % 4];
        match (self.form.is_four_bits, index / 4) {
            (false, quad) => line(quad),
            (true, quad @ 0..LINES_OF_4_BITS) => line(quad) & 0x0f,
            (true, quad) => line(quad - LINES_OF_4_BITS) >> 4,
        }
    }

    fn block(&self, block: usize, lane: usize, out: &mut [f32]) {
        let scale = f16::from_bits(self.scales[block][lane]).to_f32();
        let min = self
            .mins
            .get(block)
            .map_or(0.0, |min| f16::from_bits(min[lane]).to_f32());
        let zero = f32::from(u8::try_from(self.form.zero).unwrap_or(0));
        for (index, out) in out.iter_mut().enumerate() {
            *out = scale * (f32::from(self.quant(block, lane, index)) - zero) + min;
        }
    }
}

fn part<T>(all: &[T], index: usize, length: usize) -> &[T] {
    &all[index * length..(index + 1) * length]
}

fn floats<const N: usize>(matrix: &Matrix<'_>, read: impl Fn([u8; N]) -> f32) -> Vec<[f32; PANEL]> {
    let columns = matrix.columns();
    let mut lines = vec![[0.0; PANEL]; matrix.rows().div_ceil(PANEL) * columns];
    for (row, bytes) in matrix.bytes().chunks_exact(matrix.row_bytes()).enumerate() {
        let lines = &mut lines[row / PANEL * columns..][..columns];
        for (line, bytes) in lines.iter_mut().zip(bytes.as_chunks().0) {
            line[row % PANEL] = read(*bytes);
        }
    }
    lines
}

fn small(matrix: &Matrix<'_>, is_four_bits: bool, zero: i32, has_mins: bool) -> Numbers {
    let form = Form {
        is_four_bits,
        zero,
        has_mins,
    };
    let (lines, blocks) = (form.lines(), matrix.columns() / BLOCK);
    let all = matrix.rows().div_ceil(PANEL) * blocks;
    let mut small = Small {
        form,
        quants: vec![Line([0; 64]); all * lines],
        scales: vec![[0; PANEL]; all],
        mins: vec![[0; PANEL]; if has_mins { all } else { 0 }],
    };
    let head = if has_mins { 4 } else { 2 };
    // Of 8 bits are signed in the file: moving them by 128 turns the highest bit.
    let turn = if is_four_bits { 0 } else { 0x80 };
    for (row, bytes) in matrix.bytes().chunks_exact(matrix.row_bytes()).enumerate() {
        let (first, lane) = (row / PANEL * blocks, row % PANEL);
        for (block, bytes) in bytes.chunks_exact(head + 4 * lines).enumerate() {
            small.scales[first + block][lane] = u16::from_le_bytes([bytes[0], bytes[1]]);
            if has_mins {
                small.mins[first + block][lane] = u16::from_le_bytes([bytes[2], bytes[3]]);
            }
            let to = &mut small.quants[(first + block) * lines..][..lines];
            for (line, quad) in to.iter_mut().zip(bytes[head..].as_chunks::<4>().0) {
                line.0[4 * lane..][..4].copy_from_slice(&quad.map(|byte| byte ^ turn));
            }
        }
    }
    Numbers::Small(small)
}
