//! Products of a panel of sixteen rows with some rows of activations.
//!
//! What is multiplied with small numbers is itself made small, block by block
//! ([`quantise`]): 8 bits and a scale. The sum of a block is then whole numbers, and
//! exact; it is scaled and added to the row's sum as a float, in the order of the
//! blocks. That is all: no other order anywhere, and no fused operation, so that all
//! kernels here give the same bits. [`Isa::detect`] takes the fastest one that the
//! processor has.
//!
//! Where blocks share a scale, each has a small factor beside it: their product has no more
//! digits than a float has, so that it is exact too.
//!
//! Source for the rounding of scales: llama.cpp keeps them, and the sums that a block's
//! minimum is multiplied with, as 16-bit floats. The same is done here, so that both
//! speak alike. Absent: processors other than x86-64, which take the plain kernel.

#[cfg(target_arch = "x86_64")]
mod x86;

/// Compiles functions once for each set of instructions, and calls the one that their
/// first argument, an [`Isa`], names. This changes their speed and not their results:
/// nothing is fused or put in another order.
macro_rules! for_each_isa {
    ($(
        $(#[$about:meta])*
        $visible:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block
    )*) => {$(
        $(#[$about])*
        $visible fn $name(isa: $crate::model::cpu::kernels::Isa, $($argument: $kind),*) {
            #[inline(always)]
            fn plain($($argument: $kind),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,f16c,fma")]
            fn avx2($($argument: $kind),*) {
                plain($($argument),*);
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,f16c,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
            fn avx512($($argument: $kind),*) {
                plain($($argument),*);
            }

            match isa {
                $crate::model::cpu::kernels::Isa::Plain => plain($($argument),*),
                #[cfg(target_arch = "x86_64")]
                $crate::model::cpu::kernels::Isa::Avx2
                | $crate::model::cpu::kernels::Isa::AvxVnni => {
                    // SAFETY: such a value is only made where the processor has the features.
                    unsafe { avx2($($argument),*) }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::model::cpu::kernels::Isa::Avx512 => {
                    // SAFETY: as above.
                    unsafe { avx512($($argument),*) }
                }
            }
        }
    )*};
}

pub(super) use for_each_isa;
use half::f16;

use super::weights::{BLOCK, PANEL, Panel, Scaling, SmallPanel};

/// A set of instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isa {
    /// What every processor has.
    Plain,
    /// 256 bits.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 256 bits, with dot products of bytes.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// 512 bits, with dot products of bytes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// A block of activations, of 8 bits.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Block {
    /// Four numbers each, the first in the lowest byte.
    pub(super) quads: [i32; BLOCK / 4],
    /// What a number is multiplied with.
    pub(super) scale: f32,
    /// All numbers: 32 times 127 at most.
    sum: i16,
    /// Those of the first half.
    first: i16,
    /// All numbers, scaled, as a float of 16 bits: what a block's own minimum counts.
    weight: f32,
}

impl Block {
    /// All numbers.
    #[inline(always)]
    fn sum(&self) -> i32 {
        self.sum.into()
    }

    /// Those of each half.
    #[inline(always)]
    fn halves(&self) -> [i32; 2] {
        [self.first.into(), (self.sum - self.first).into()]
    }

    /// All numbers, scaled: what a minimum counts that blocks share.
    #[inline(always)]
    fn wide_weight(&self) -> f32 {
        self.scale * f32::from(self.sum)
    }
}

impl Isa {
    /// The best that this processor has.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Plain)
    }

    /// The best that this processor has.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const fn detect() -> Self {
        Self::Plain
    }

    /// All that this processor has, the best last.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn available() -> Vec<Self> {
        let has_avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma");
        let mut all = vec![Self::Plain];
        if has_avx2 {
            all.push(Self::Avx2);
        }
        if has_avx2 && is_x86_feature_detected!("avxvnni") {
            all.push(Self::AvxVnni);
        }
        if has_avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
        {
            all.push(Self::Avx512);
        }
        all
    }
}

for_each_isa! {
/// Makes numbers small. Both slices have as many blocks.
pub(super) fn quantise(numbers: &[f32], blocks: &mut [Block]) {
    for (numbers, block) in numbers.as_chunks::<BLOCK>().0.iter().zip(blocks) {
        *block = quantised(numbers);
    }
}
}

#[inline(always)]
fn quantised(numbers: &[f32; BLOCK]) -> Block {
    const LARGEST: f32 = 127.0;
    /// Added to a number, leaves it rounded to whole (ties to even) in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let mut largest: f32 = 0.0;
    for number in numbers {
        largest = largest.max(number.abs());
    }
    let inverse = if largest > 0.0 {
        LARGEST / largest
    } else {
        0.0
    };
    let scale = largest / LARGEST;
    let (mut quads, mut sums) = ([0; BLOCK / 4], [0; BLOCK / 4]);
    let places = quads.iter_mut().zip(&mut sums);
    for ((quad, sum), numbers) in places.zip(numbers.as_chunks::<4>().0) {
        let bytes = numbers.map(|number| {
            let bits = (number * inverse + ROUND).to_bits();
            bits.to_le_bytes()[0].cast_signed()
        });
        *sum = bytes.iter().map(|byte| i16::from(*byte)).sum::<i16>();
        *quad = i32::from_le_bytes(bytes.map(i8::cast_unsigned));
    }
    let (first, second) = sums.split_at(BLOCK / 8);
    let first = first.iter().sum::<i16>();
    let sum = first + second.iter().sum::<i16>();
    Block {
        quads,
        scale: f16::from_f32(scale).to_f32(),
        sum,
        first,
        weight: f16::from_f32(scale * f32::from(sum)).to_f32(),
    }
}

/// The products of a panel with rows of small activations, each `columns / 32` blocks:
/// sixteen numbers for each row.
pub(super) fn small_product(
    isa: Isa,
    panel: &SmallPanel<'_>,
    activations: &[Block],
    out: &mut [[f32; PANEL]],
) {
    match isa {
        Isa::Plain => plain(panel, activations, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 => x86::small_product(isa, panel, activations, out),
    }
}

fn plain(panel: &SmallPanel<'_>, activations: &[Block], out: &mut [[f32; PANEL]]) {
    let rows = activations.chunks_exact(panel.blocks().max(1));
    for (row, out) in rows.zip(out) {
        *out = [0.0; PANEL];
        for (index, block) in row.iter().enumerate() {
            for (lane, out) in out.iter_mut().enumerate() {
                let dot = plain_dot(panel, index, lane, block);
                *out += (panel.scale(index, lane) * block.scale) * dot;
                if let Some(min) = panel.min(index, lane) {
                    *out += min
                        * match panel.form.scaling {
                            Scaling::Shared => block.wide_weight(),
                            Scaling::Own | Scaling::OwnWithMin | Scaling::Halves => block.weight,
                        };
                }
            }
        }
    }
}

/// The sum of a block, in which halves that have factors are multiplied with them: always
/// a whole number below 2^24, and so exact, in whatever order it is made.
#[allow(clippy::cast_precision_loss, reason = "below 2^24")]
fn plain_dot(panel: &SmallPanel<'_>, index: usize, lane: usize, block: &Block) -> f32 {
    let zero = panel.form.zero;
    let mut dots = block.halves().map(|sum| -zero * sum);
    for (quad, numbers) in block.quads.iter().enumerate() {
        for (place, byte) in numbers.to_le_bytes().into_iter().enumerate() {
            let weight = i32::from(panel.quant(index, lane, 4 * quad + place));
            dots[quad / 4] += weight * i32::from(byte.cast_signed());
        }
    }
    match panel.halves(index, lane) {
        Some([one, other]) => one * dots[0] as f32 + other * dots[1] as f32,
        None => (dots[0] + dots[1]) as f32,
    }
}

for_each_isa! {
/// The products of a panel of floats with rows of activations.
fn float_product(panel: &[[f32; PANEL]], activations: &[f32], out: &mut [[f32; PANEL]]) {
    let (fours, rest) = out.as_chunks_mut::<4>();
    let split = fours.len() * 4 * panel.len();
    let (together, alone) = activations.split_at(split);
    // Four rows at a time keep the processor busy: each has its own sums.
    for (rows, out) in together.chunks_exact(4 * panel.len()).zip(fours) {
        // By name, not in an array: each stays in registers then.
        let (mut one, mut two) = ([0.0; PANEL], [0.0; PANEL]);
        let (mut three, mut four) = ([0.0; PANEL], [0.0; PANEL]);
        let (begin, end) = rows.split_at(2 * panel.len());
        let (first, second) = begin.split_at(panel.len());
        let (third, fourth) = end.split_at(panel.len());
        let numbers = first.iter().zip(second).zip(third.iter().zip(fourth));
        for (line, ((a, b), (c, d))) in panel.iter().zip(numbers) {
            add_scaled(&mut one, line, *a);
            add_scaled(&mut two, line, *b);
            add_scaled(&mut three, line, *c);
            add_scaled(&mut four, line, *d);
        }
        *out = [one, two, three, four];
    }
    for (row, out) in alone.chunks_exact(panel.len()).zip(rest) {
        let mut sums = [0.0; PANEL];
        for (line, number) in panel.iter().zip(row) {
            add_scaled(&mut sums, line, *number);
        }
        *out = sums;
    }
}
}

#[inline(always)]
fn add_scaled(sums: &mut [f32; PANEL], line: &[f32; PANEL], number: f32) {
    for (sum, weight) in sums.iter_mut().zip(line) {
        *sum += weight * number;
    }
}

/// Rows of activations, in the forms that matrices want.
#[derive(Debug, Clone, Copy)]
pub(super) struct Activations<'a> {
    pub(super) columns: usize,
    pub(super) numbers: &'a [f32],
    /// Empty if no matrix of small numbers is to be multiplied.
    pub(super) blocks: &'a [Block],
}

/// The products of a panel with the activations from row `first` on, as many as `out`
/// has room for.
pub(super) fn product(
    isa: Isa,
    panel: &Panel<'_>,
    activations: &Activations<'_>,
    first: usize,
    out: &mut [[f32; PANEL]],
) {
    let (columns, rows) = (activations.columns, out.len());
    match panel {
        Panel::Small(panel) => {
            let blocks = columns / BLOCK;
            let activations = &activations.blocks[first * blocks..][..rows * blocks];
            small_product(isa, panel, activations, out);
        }
        Panel::Float(panel) => {
            let activations = &activations.numbers[first * columns..][..rows * columns];
            float_product(isa, panel, activations, out);
        }
    }
}
