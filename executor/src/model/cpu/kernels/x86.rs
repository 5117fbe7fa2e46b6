//! The kernels for x86-64.
//!
//! Each takes a few rows of activations at once, so that weights are loaded and
//! unpacked once for all of them. In a register of 512 bits a lane is a row of the
//! panel; one of 256 bits has one half of them.
//!
//! A kernel is compiled for each form: `LINES` are those of a block, which are as many as
//! a number has bits, and `SCALING` is one of the constants below.

use std::arch::x86_64::*;

use super::{
    super::weights::{Bits, LOW_LINES, Line, PANEL, SHARING, Scaling, SmallPanel},
    Block, Isa,
};

const OWN: u8 = 0;
const WITH_MIN: u8 = 1;
const SHARED: u8 = 2;
const HALVES: u8 = 3;

/// Repeats a block for each number, so that a compiler knows it in each.
macro_rules! unrolled {
    ($number:ident in $($value:literal)* => $block:block) => {
        $({
            const $number: usize = $value;
            $block
        })*
    };
}

/// As the function of this name in the parent, which is the only one to call it.
pub(super) fn small_product(
    isa: Isa,
    panel: &SmallPanel<'_>,
    activations: &[Block],
    mut out: &mut [[f32; PANEL]],
) {
    let blocks = panel.blocks();
    let mut rest = activations;
    while !out.is_empty() {
        let most = if isa == Isa::Avx512 { 8 } else { 4 };
        let rows = match out.len().min(most) {
            8 => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let (now, later) = rest.split_at(rows * blocks);
        let (to, out_later) = out.split_at_mut(rows);
        match rows {
            8 => tile::<8>(isa, panel, now, to),
            4 => tile::<4>(isa, panel, now, to),
            2 => tile::<2>(isa, panel, now, to),
            _ => tile::<1>(isa, panel, now, to),
        }
        (rest, out) = (later, out_later);
    }
}

fn tile<const ROWS: usize>(
    isa: Isa,
    panel: &SmallPanel<'_>,
    activations: &[Block],
    out: &mut [[f32; PANEL]],
) {
    let blocks = panel.blocks();
    let rows: [&[Block]; ROWS] = std::array::from_fn(|row| &activations[row * blocks..][..blocks]);
    let sums = match (panel.form.bits, panel.form.scaling) {
        (Bits::Four, Scaling::Own | Scaling::Halves) => sums_of::<ROWS, 4, OWN>(isa, panel, &rows),
        (Bits::Four, Scaling::OwnWithMin) => sums_of::<ROWS, 4, WITH_MIN>(isa, panel, &rows),
        (Bits::Four, Scaling::Shared) => sums_of::<ROWS, 4, SHARED>(isa, panel, &rows),
        (Bits::Five, Scaling::Own | Scaling::Halves) => sums_of::<ROWS, 5, OWN>(isa, panel, &rows),
        (Bits::Five, Scaling::OwnWithMin) => sums_of::<ROWS, 5, WITH_MIN>(isa, panel, &rows),
        (Bits::Five, Scaling::Shared) => sums_of::<ROWS, 5, SHARED>(isa, panel, &rows),
        (Bits::Six, _) => sums_of::<ROWS, 6, HALVES>(isa, panel, &rows),
        (Bits::Eight, _) => sums_of::<ROWS, 8, OWN>(isa, panel, &rows),
    };
    out.copy_from_slice(&sums);
}

fn sums_of<const ROWS: usize, const LINES: usize, const SCALING: u8>(
    isa: Isa,
    panel: &SmallPanel<'_>,
    rows: &[&[Block]; ROWS],
) -> [[f32; PANEL]; ROWS] {
    // SAFETY: a value of `Isa` is only made where the processor has its features.
    unsafe {
        match isa {
            Isa::Avx512 => avx512::<ROWS, LINES, SCALING>(panel, rows),
            Isa::AvxVnni => avx_vnni::<ROWS, LINES, SCALING>(panel, rows),
            Isa::Avx2 | Isa::Plain => avx2::<ROWS, LINES, SCALING>(panel, rows),
        }
    }
}

/// What a block's minimum is multiplied with.
#[inline(always)]
fn weight_of<const SCALING: u8>(block: &Block) -> f32 {
    if SCALING == SHARED {
        block.wide_weight()
    } else {
        block.weight
    }
}

/// Which scale is a block's.
#[inline(always)]
const fn scale_of<const SCALING: u8>(index: usize) -> usize {
    if SCALING < SHARED {
        index
    } else {
        index / SHARING
    }
}

#[target_feature(enable = "avx2,f16c,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn avx512<const ROWS: usize, const LINES: usize, const SCALING: u8>(
    panel: &SmallPanel<'_>,
    rows: &[&[Block]; ROWS],
) -> [[f32; PANEL]; ROWS] {
    let mut sums = [_mm512_setzero_ps(); ROWS];
    for (index, lines) in panel.quants.as_chunks::<LINES>().0.iter().enumerate() {
        let blocks: [&Block; ROWS] = std::array::from_fn(|row| &rows[row][index]);
        let (dots, halves) = dots_512::<ROWS, LINES>(panel.form.zero, lines, blocks);
        let mut scales = halves_512(&panel.scales[scale_of::<SCALING>(index)]);
        let mut dots = dots.map(|dot| _mm512_cvtepi32_ps(dot));
        if SCALING == HALVES {
            let [one, other] = &panel.factors[index];
            let (one, other) = (signed_512(one), signed_512(other));
            for (dot, half) in dots.iter_mut().zip(halves) {
                let half = _mm512_mul_ps(_mm512_cvtepi32_ps(half), other);
                *dot = _mm512_add_ps(_mm512_mul_ps(*dot, one), half);
            }
        }
        if SCALING == SHARED {
            scales = _mm512_mul_ps(scales, unsigned_512(&panel.factors[index][0]));
        }
        for ((sum, dot), block) in sums.iter_mut().zip(dots).zip(blocks) {
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(block.scale));
            *sum = _mm512_add_ps(*sum, _mm512_mul_ps(scale, dot));
        }
        if SCALING == WITH_MIN || SCALING == SHARED {
            let mut mins = halves_512(&panel.mins[scale_of::<SCALING>(index)]);
            if SCALING == SHARED {
                mins = _mm512_mul_ps(mins, unsigned_512(&panel.factors[index][1]));
            }
            for (sum, block) in sums.iter_mut().zip(blocks) {
                let weight = _mm512_set1_ps(weight_of::<SCALING>(block));
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(mins, weight));
            }
        }
    }
    sums.map(|sum| {
        let mut out = [0.0; PANEL];
        // SAFETY: there is room for sixteen floats; any address will do.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
        out
    })
}

/// The sums of a block; of six bits the second half's apart.
#[target_feature(enable = "avx2,f16c,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
fn dots_512<const ROWS: usize, const LINES: usize>(
    zero: i32,
    lines: &[Line; LINES],
    blocks: [&Block; ROWS],
) -> ([__m512i; ROWS], [__m512i; ROWS]) {
    let begin = |sum: i32| _mm512_set1_epi32(-zero * sum);
    let (mut dots, mut halves) = (blocks.map(|block| begin(block.sum())), [begin(0); ROWS]);
    if LINES == 6 {
        dots = blocks.map(|block| begin(block.halves()[0]));
        halves = blocks.map(|block| begin(block.halves()[1]));
    }
    if LINES == 8 {
        for (quad, line) in lines.iter().enumerate() {
            let line = line_512(line);
            for (dot, block) in dots.iter_mut().zip(blocks) {
                *dot = _mm512_dpbusd_epi32(*dot, line, _mm512_set1_epi32(block.quads[quad]));
            }
        }
        return (dots, halves);
    }
    let low = _mm512_set1_epi8(0x0f);
    let upper = _mm512_set1_epi8(if LINES == 5 { 0x10 } else { 0x30 });
    let mut more = _mm512_setzero_si512();
    unrolled!(QUAD in 0 1 2 3 => {
        let line = line_512(&lines[QUAD]);
        let mut first = _mm512_and_si512(line, low);
        let mut second = _mm512_and_si512(_mm512_srli_epi16::<4>(line), low);
        if LINES > LOW_LINES {
            more = match (LINES, QUAD) {
                (5, 0) => line_512(&lines[LOW_LINES]),
                (5, _) => _mm512_srli_epi16::<1>(more),
                (_, 0 | 2) => line_512(&lines[LOW_LINES + QUAD / 2]),
                (_, _) => _mm512_srli_epi16::<2>(more),
            };
            first = _mm512_or_si512(first, _mm512_and_si512(more, upper));
            let high = _mm512_slli_epi16::<4>(more);
            second = _mm512_or_si512(second, _mm512_and_si512(high, upper));
        }
        for (dot, block) in dots.iter_mut().zip(blocks) {
            *dot = _mm512_dpbusd_epi32(*dot, first, _mm512_set1_epi32(block.quads[QUAD]));
        }
        let seconds = if LINES == 6 { &mut halves } else { &mut dots };
        for (dot, block) in seconds.iter_mut().zip(blocks) {
            let numbers = _mm512_set1_epi32(block.quads[QUAD + LOW_LINES]);
            *dot = _mm512_dpbusd_epi32(*dot, second, numbers);
        }
    });
    (dots, halves)
}

#[target_feature(enable = "avx512f")]
fn unsigned_512(factors: &[u8; PANEL]) -> __m512 {
    // SAFETY: there are 16 bytes; any address will do.
    let factors = unsafe { _mm_loadu_si128(factors.as_ptr().cast()) };
    _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(factors))
}

#[target_feature(enable = "avx512f")]
fn signed_512(factors: &[u8; PANEL]) -> __m512 {
    // SAFETY: as above.
    let factors = unsafe { _mm_loadu_si128(factors.as_ptr().cast()) };
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(factors))
}

#[target_feature(enable = "avx512f")]
fn line_512(line: &Line) -> __m512i {
    // SAFETY: a line has 64 bytes, and lies at a multiple of as many.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
fn halves_512(halves: &[u16; PANEL]) -> __m512 {
    // SAFETY: there are 32 bytes; any address will do.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(halves.as_ptr().cast()) })
}

/// A kernel of 256 bits: `$dot` multiplies bytes without sign by bytes with one, and
/// adds four products each to whole numbers. `$signed` says that numbers of 8 bits are
/// given to it with their sign, so that nothing is to be taken off.
macro_rules! kernel_256 {
    ($name:ident, $dots:ident, $features:literal, $signed:literal, $dot:ident) => {
        #[target_feature(enable = $features)]
        fn $name<const ROWS: usize, const LINES: usize, const SCALING: u8>(
            panel: &SmallPanel<'_>,
            rows: &[&[Block]; ROWS],
        ) -> [[f32; PANEL]; ROWS] {
            let zero = if $signed && LINES == 8 {
                0
            } else {
                panel.form.zero
            };
            let mut out = [[0.0; PANEL]; ROWS];
            for half in 0..2 {
                let mut sums = [_mm256_setzero_ps(); ROWS];
                for (index, lines) in panel.quants.as_chunks::<LINES>().0.iter().enumerate() {
                    let blocks: [&Block; ROWS] = std::array::from_fn(|row| &rows[row][index]);
                    let (dots, others) = $dots::<ROWS, LINES>(zero, lines, half, blocks);
                    add_256::<ROWS, SCALING>(panel, index, half, &mut sums, dots, others, blocks);
                }
                for (sum, out) in sums.iter().zip(&mut out) {
                    // SAFETY: there is room for eight floats in each half.
                    unsafe { _mm256_storeu_ps(out[8 * half..][..8].as_mut_ptr(), *sum) };
                }
            }
            out
        }

        /// As [`dots_512`], of one half of the panel's rows.
        #[target_feature(enable = $features)]
        #[inline]
        fn $dots<const ROWS: usize, const LINES: usize>(
            zero: i32,
            lines: &[Line; LINES],
            half: usize,
            blocks: [&Block; ROWS],
        ) -> ([__m256i; ROWS], [__m256i; ROWS]) {
            let begin = |sum: i32| _mm256_set1_epi32(-zero * sum);
            let (mut dots, mut others) = (blocks.map(|block| begin(block.sum())), [begin(0); ROWS]);
            if LINES == 6 {
                dots = blocks.map(|block| begin(block.halves()[0]));
                others = blocks.map(|block| begin(block.halves()[1]));
            }
            if LINES == 8 {
                for (quad, line) in lines.iter().enumerate() {
                    let line = line_256(line, half);
                    for (dot, block) in dots.iter_mut().zip(blocks) {
                        *dot = $dot::<LINES>(*dot, line, block.quads[quad]);
                    }
                }
                return (dots, others);
            }
            let low = _mm256_set1_epi8(0x0f);
            let upper = _mm256_set1_epi8(if LINES == 5 { 0x10 } else { 0x30 });
            let mut more = _mm256_setzero_si256();
            unrolled!(QUAD in 0 1 2 3 => {
                let line = line_256(&lines[QUAD], half);
                let mut first = _mm256_and_si256(line, low);
                let mut second = _mm256_and_si256(_mm256_srli_epi16::<4>(line), low);
                if LINES > LOW_LINES {
                    more = match (LINES, QUAD) {
                        (5, 0) => line_256(&lines[LOW_LINES], half),
                        (5, _) => _mm256_srli_epi16::<1>(more),
                        (_, 0 | 2) => line_256(&lines[LOW_LINES + QUAD / 2], half),
                        (_, _) => _mm256_srli_epi16::<2>(more),
                    };
                    first = _mm256_or_si256(first, _mm256_and_si256(more, upper));
                    let high = _mm256_slli_epi16::<4>(more);
                    second = _mm256_or_si256(second, _mm256_and_si256(high, upper));
                }
                for (dot, block) in dots.iter_mut().zip(blocks) {
                    *dot = $dot::<LINES>(*dot, first, block.quads[QUAD]);
                }
                let seconds = if LINES == 6 { &mut others } else { &mut dots };
                for (dot, block) in seconds.iter_mut().zip(blocks) {
                    *dot = $dot::<LINES>(*dot, second, block.quads[QUAD + LOW_LINES]);
                }
            });
            (dots, others)
        }
    };
}

kernel_256!(avx2, dots_avx2, "avx2,f16c,fma", true, dot_avx2);
kernel_256!(
    avx_vnni,
    dots_avx_vnni,
    "avx2,f16c,fma,avxvnni",
    false,
    dot_avx_vnni
);

/// Adds the sums of a block, scaled; of six bits those of both halves, each times its
/// factor.
#[target_feature(enable = "avx2,f16c,fma")]
#[inline]
fn add_256<const ROWS: usize, const SCALING: u8>(
    panel: &SmallPanel<'_>,
    index: usize,
    half: usize,
    sums: &mut [__m256; ROWS],
    dots: [__m256i; ROWS],
    others: [__m256i; ROWS],
    blocks: [&Block; ROWS],
) {
    let mut scales = halves_256(&panel.scales[scale_of::<SCALING>(index)], half);
    let mut dots = dots.map(|dot| _mm256_cvtepi32_ps(dot));
    if SCALING == HALVES {
        let [one, other] = &panel.factors[index];
        let (one, other) = (signed_256(one, half), signed_256(other, half));
        for (dot, second) in dots.iter_mut().zip(others) {
            let second = _mm256_mul_ps(_mm256_cvtepi32_ps(second), other);
            *dot = _mm256_add_ps(_mm256_mul_ps(*dot, one), second);
        }
    }
    if SCALING == SHARED {
        scales = _mm256_mul_ps(scales, unsigned_256(&panel.factors[index][0], half));
    }
    for ((sum, dot), block) in sums.iter_mut().zip(dots).zip(blocks) {
        let scale = _mm256_mul_ps(scales, _mm256_set1_ps(block.scale));
        *sum = _mm256_add_ps(*sum, _mm256_mul_ps(scale, dot));
    }
    if SCALING == WITH_MIN || SCALING == SHARED {
        let mut mins = halves_256(&panel.mins[scale_of::<SCALING>(index)], half);
        if SCALING == SHARED {
            mins = _mm256_mul_ps(mins, unsigned_256(&panel.factors[index][1], half));
        }
        for (sum, block) in sums.iter_mut().zip(blocks) {
            let weight = _mm256_set1_ps(weight_of::<SCALING>(block));
            *sum = _mm256_add_ps(*sum, _mm256_mul_ps(mins, weight));
        }
    }
}

#[target_feature(enable = "avx2")]
fn signed_256(factors: &[u8; PANEL], half: usize) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(factors, half)))
}

#[target_feature(enable = "avx2")]
fn unsigned_256(factors: &[u8; PANEL], half: usize) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight(factors, half)))
}

#[target_feature(enable = "avx2")]
fn eight(factors: &[u8; PANEL], half: usize) -> __m128i {
    let factors = &factors[8 * half..][..8];
    // SAFETY: there are 8 bytes; any address will do.
    unsafe { _mm_loadl_epi64(factors.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,f16c,fma,avxvnni")]
fn dot_avx_vnni<const LINES: usize>(sum: __m256i, weights: __m256i, quad: i32) -> __m256i {
    _mm256_dpbusd_avx_epi32(sum, weights, _mm256_set1_epi32(quad))
}

#[target_feature(enable = "avx2,f16c,fma")]
fn dot_avx2<const LINES: usize>(sum: __m256i, weights: __m256i, quad: i32) -> __m256i {
    let quad = _mm256_set1_epi32(quad);
    let pairs = if LINES < 8 {
        // At most 2 · 63 · 127: below where 16 bits saturate.
        _mm256_maddubs_epi16(weights, quad)
    } else {
        // With 255 they would. So the sign goes to the other side: 2 · 128 · 127 fits.
        let weights = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
        _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(quad, weights))
    };
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

#[target_feature(enable = "avx2")]
fn line_256(line: &Line, half: usize) -> __m256i {
    let bytes = &line.0[32 * half..][..32];
    // SAFETY: there are 32 bytes, at a multiple of as many.
    unsafe { _mm256_load_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,f16c")]
fn halves_256(halves: &[u16; PANEL], half: usize) -> __m256 {
    let halves = &halves[8 * half..][..8];
    // SAFETY: there are 16 bytes; any address will do.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(halves.as_ptr().cast()) })
}
