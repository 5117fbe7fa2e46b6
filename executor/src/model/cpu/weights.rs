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
//! 16 places on in its high half, as in the file. Of 5 and 6 bits the upper ones have lines
//! of their own, after those: line 4 has one bit of each number, lines 4 and 5 have two.
//! Their bytes are filled so that a kernel shifts a whole register by the same from one
//! line of low halves to the next:
//!
//! ```text
//!   line 4, 5 bits:  bit 4+k of numbers 4k+i | bit k of those 16 places on
//!   line 4, 6 bits:  bits 4, 5 of line 0 | 0, 1 of its high halves | 6, 7 and 2, 3 of line 1
//!   line 5, 6 bits:  the same of lines 2 and 3
//! ```
//!
//! Numbers of 8 bits are moved by 128, so that all are without sign. What floats there are
//! become 32 bits wide.

use half::{bf16, f16};

use crate::model::{
    blocks::{Piece, QUADS, blocks},
    llama::{Matrix, MatrixType},
};

/// Rows of a panel.
pub(super) const PANEL: usize = 16;
/// Numbers of a block.
pub(super) const BLOCK: usize = 32;
/// Lines of low halves.
pub(super) const LOW_LINES: usize = 4;
/// Blocks that share a scale, where they do.
pub(super) const SHARING: usize = 8;

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
    /// As bits of 16-bit floats, for each panel and in it for each block, or for
    /// [`SHARING`] of them.
    scales: Vec<[u16; PANEL]>,
    /// The same; none where the form has none.
    mins: Vec<[u16; PANEL]>,
    /// For each panel and in it for each block; none where the form has none.
    factors: Vec<Factors>,
}

/// What a block's scale and min are multiplied with, or the scale for each half of it.
pub(super) type Factors = [[u8; PANEL]; 2];

/// What small numbers mean: `scale · (number - zero) + min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) bits: Bits,
    pub(super) zero: i32,
    pub(super) scaling: Scaling,
}

/// How many bits a number has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bits {
    Four,
    Five,
    Six,
    Eight,
}

/// Where scales and mins come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scaling {
    /// A block has a scale.
    Own,
    /// A block has both.
    OwnWithMin,
    /// [`SHARING`] blocks have both, and each block a factor for each.
    Shared,
    /// [`SHARING`] blocks have a scale, and each half of a block a factor, with a sign.
    Halves,
}

impl Form {
    const fn of(kind: MatrixType) -> Option<Self> {
        let (bits, zero, scaling) = match kind {
            MatrixType::F32 | MatrixType::F16 | MatrixType::Bf16 => return None,
            MatrixType::Q4_0 => (Bits::Four, 8, Scaling::Own),
            MatrixType::Q4_1 => (Bits::Four, 0, Scaling::OwnWithMin),
            MatrixType::Q5_0 => (Bits::Five, 16, Scaling::Own),
            MatrixType::Q5_1 => (Bits::Five, 0, Scaling::OwnWithMin),
            MatrixType::Q8_0 => (Bits::Eight, 128, Scaling::Own),
            MatrixType::Q4K => (Bits::Four, 0, Scaling::Shared),
            MatrixType::Q5K => (Bits::Five, 0, Scaling::Shared),
            MatrixType::Q6K => (Bits::Six, 32, Scaling::Halves),
        };
        Some(Self {
            bits,
            zero,
            scaling,
        })
    }

    pub(super) const fn lines(self) -> usize {
        match self.bits {
            Bits::Four => LOW_LINES,
            Bits::Five => LOW_LINES + 1,
            Bits::Six => LOW_LINES + 2,
            Bits::Eight => QUADS,
        }
    }

    /// Blocks that share a scale.
    pub(super) const fn sharing(self) -> usize {
        match self.scaling {
            Scaling::Own | Scaling::OwnWithMin => 1,
            Scaling::Shared | Scaling::Halves => SHARING,
        }
    }

    const fn has_mins(self) -> bool {
        matches!(self.scaling, Scaling::OwnWithMin | Scaling::Shared)
    }

    const fn has_factors(self) -> bool {
        self.sharing() > 1
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
    pub(super) factors: &'a [Factors],
}

impl Packed {
    pub(super) fn new(matrix: &Matrix<'_>) -> Self {
        let numbers = match (matrix.kind(), Form::of(matrix.kind())) {
            (_, Some(form)) => Numbers::Small(small(matrix, form)),
            (MatrixType::F16, None) => {
                Numbers::Float(floats(matrix, |bytes| f16::from_le_bytes(bytes).to_f32()))
            }
            (MatrixType::Bf16, None) => {
                Numbers::Float(floats(matrix, |bytes| bf16::from_le_bytes(bytes).to_f32()))
            }
            (_, None) => Numbers::Float(floats(matrix, f32::from_le_bytes)),
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
                let (form, blocks) = (small.form, self.columns / BLOCK);
                let scales = blocks / form.sharing();
                Panel::Small(SmallPanel {
                    form,
                    quants: part(&small.quants, index, blocks * form.lines()),
                    scales: part(&small.scales, index, scales),
                    mins: part(&small.mins, index, scales * usize::from(form.has_mins())),
                    factors: part(
                        &small.factors,
                        index,
                        blocks * usize::from(form.has_factors()),
                    ),
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
    /// How many blocks a row has.
    pub(super) const fn blocks(&self) -> usize {
        self.quants.len() / self.form.lines()
    }

    /// The small number of a lane in a block.
    pub(super) fn quant(&self, block: usize, lane: usize, index: usize) -> u8 {
        let line =
            |line: usize| self.quants[block * self.form.lines() + line].0[4 * lane + index % 4];
        let (quad, is_high) = (index / 4 % LOW_LINES, index >= BLOCK / 2);
        let low = || match is_high {
            false => line(quad) & 0x0f,
            true => line(quad) >> 4,
        };
        let upper = |line: u8| if is_high { line } else { line >> 4 };
        match self.form.bits {
            Bits::Eight => line(index / 4),
            Bits::Four => low(),
            Bits::Five => low() | (upper(line(LOW_LINES)) >> quad & 1) << 4,
            Bits::Six => {
                let line = upper(line(LOW_LINES + quad / 2));
                low() | (line >> (quad % 2 * 2) & 3) << 4
            }
        }
    }

    /// The scale of a lane's block, without a factor for its halves.
    pub(super) fn scale(&self, block: usize, lane: usize) -> f32 {
        let scale = f16::from_bits(self.scales[block / self.form.sharing()][lane]).to_f32();
        match self.form.scaling {
            Scaling::Own | Scaling::OwnWithMin | Scaling::Halves => scale,
            Scaling::Shared => scale * f32::from(self.factors[block][0][lane]),
        }
    }

    /// What each half of a lane's block is multiplied with, beside the scale.
    pub(super) fn halves(&self, block: usize, lane: usize) -> Option<[f32; 2]> {
        let factors = self.factors.get(block)?;
        let halves = || factors.map(|factors| f32::from(factors[lane].cast_signed()));
        (self.form.scaling == Scaling::Halves).then(halves)
    }

    /// What is added to each number of a lane's block.
    pub(super) fn min(&self, block: usize, lane: usize) -> Option<f32> {
        let mins = self.mins.get(block / self.form.sharing())?;
        let min = f16::from_bits(mins[lane]).to_f32();
        Some(match self.form.scaling {
            Scaling::Own | Scaling::OwnWithMin | Scaling::Halves => min,
            Scaling::Shared => min * f32::from(self.factors[block][1][lane]),
        })
    }

    fn block(&self, block: usize, lane: usize, out: &mut [f32]) {
        let (scale, min) = (self.scale(block, lane), self.min(block, lane));
        let halves = self.halves(block, lane).unwrap_or([1.0; 2]);
        let zero = f32::from(u8::try_from(self.form.zero).unwrap_or(0));
        for (index, out) in out.iter_mut().enumerate() {
            let scale = scale * halves[index / (BLOCK / 2)];
            let number = f32::from(self.quant(block, lane, index)) - zero;
            *out = scale * number + min.unwrap_or(0.0);
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

fn small(matrix: &Matrix<'_>, form: Form) -> Small {
    let (lines, in_row) = (form.lines(), matrix.columns() / BLOCK);
    let all = matrix.rows().div_ceil(PANEL) * in_row;
    let scales = all / form.sharing();
    let mut small = Small {
        form,
        quants: vec![Line([0; 64]); all * lines],
        scales: vec![[0; PANEL]; scales],
        mins: vec![[0; PANEL]; if form.has_mins() { scales } else { 0 }],
        factors: vec![[[0; PANEL]; 2]; if form.has_factors() { all } else { 0 }],
    };
    for (row, bytes) in matrix.bytes().chunks_exact(matrix.row_bytes()).enumerate() {
        let (first, lane) = (row / PANEL * in_row, row % PANEL);
        for (number, block) in blocks(matrix.kind(), bytes).enumerate() {
            let at = first / form.sharing() + number;
            small.scales[at][lane] = block.scale();
            if form.has_mins() {
                small.mins[at][lane] = block.min();
            }
            for (piece, at) in block.pieces().zip(first + number * form.sharing()..) {
                put(form, &piece, lane, &mut small.quants[at * lines..][..lines]);
                if let Some(factors) = small.factors.get_mut(at) {
                    factors[0][lane] = piece.factors[0];
                    factors[1][lane] = piece.factors[1];
                }
            }
        }
    }
    small
}

/// Writes a block of a lane.
fn put(form: Form, piece: &Piece, lane: usize, lines: &mut [Line]) {
    let mut write = |line: usize, quad: u32| {
        lines[line].0[4 * lane..][..4].copy_from_slice(&quad.to_le_bytes());
    };
    let quads = &piece.quads;
    if form.bits == Bits::Eight {
        return (0..QUADS).for_each(|quad| write(quad, quads[quad]));
    }
    for quad in 0..LOW_LINES {
        let low = |quad: usize| quads[quad] & 0x0f0f_0f0f;
        write(quad, low(quad) | low(quad + LOW_LINES) << 4);
    }
    let both = |quad: usize, shift: usize| {
        let upper = |quad: usize| quads[quad] >> 4 & 0x0303_0303;
        upper(quad) << (4 + shift) | upper(quad + LOW_LINES) << shift
    };
    match form.bits {
        Bits::Four | Bits::Eight => (),
        Bits::Five => write(LOW_LINES, both(0, 0) | both(1, 1) | both(2, 2) | both(3, 3)),
        Bits::Six => {
            write(LOW_LINES, both(0, 0) | both(1, 2));
            write(LOW_LINES + 1, both(2, 0) | both(3, 2));
        }
    }
}
