//! The kernels for x86-64.
//!
//! Each takes a few rows of activations at once, so that weights are loaded and
//! unpacked once for all of them. In a register of 512 bits a lane is a row of the
//! panel; one of 256 bits has one half of them.

use std::arch::x86_64::*;

use super::{
    super::weights::{Line, PANEL, SmallPanel},
    Block, Isa,
};

/// As the function of this name in the parent, which is the only one to call it.
pub(super) fn small_product(
    isa: Isa,
    panel: &SmallPanel<'_>,
    activations: &[Block],
    mut out: &mut [[f32; PANEL]],
) {
    let blocks = panel.scales.len();
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
    let blocks = panel.scales.len();
    let rows: [&[Block]; ROWS] = std::array::from_fn(|row| &activations[row * blocks..][..blocks]);
    let is_four = panel.form.is_four_bits;
    // SAFETY: a value of `Isa` is only made where the processor has its features.
    let sums: [[f32; PANEL]; ROWS] = unsafe {
        match (isa, is_four) {
            (Isa::Avx512, true) => avx512::<ROWS, true>(panel, &rows),
            (Isa::Avx512, false) => avx512::<ROWS, false>(panel, &rows),
            (Isa::AvxVnni, true) => avx_vnni::<ROWS, true>(panel, &rows),
            (Isa::AvxVnni, false) => avx_vnni::<ROWS, false>(panel, &rows),
            (Isa::Avx2 | Isa::Plain, true) => avx2::<ROWS, true>(panel, &rows),
            (Isa::Avx2 | Isa::Plain, false) => avx2::<ROWS, false>(panel, &rows),
        }
    };
    out.copy_from_slice(&sums);
}

#[target_feature(enable = "avx2,f16c,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn avx512<const ROWS: usize, const FOUR: bool>(
    panel: &SmallPanel<'_>,
    rows: &[&[Block]; ROWS],
) -> [[f32; PANEL]; ROWS] {
    let low = _mm512_set1_epi8(0x0f);
    let mut sums = [_mm512_setzero_ps(); ROWS];
    let lines = panel.quants.chunks_exact(panel.form.lines());
    for (index, (lines, scales)) in lines.zip(panel.scales).enumerate() {
        let blocks: [&Block; ROWS] = std::array::from_fn(|row| &rows[row][index]);
        let mut dots = blocks.map(|block| _mm512_set1_epi32(-panel.form.zero * block.sum));
        for (quad, line) in lines.iter().enumerate() {
            let line = line_512(line);
            let first = if FOUR {
                _mm512_and_si512(line, low)
            } else {
                line
            };
            for (dot, block) in dots.iter_mut().zip(blocks) {
                *dot = _mm512_dpbusd_epi32(*dot, first, _mm512_set1_epi32(block.quads[quad]));
            }
            if FOUR {
                let second = _mm512_and_si512(_mm512_srli_epi16::<4>(line), low);
                for (dot, block) in dots.iter_mut().zip(blocks) {
                    let quad = _mm512_set1_epi32(block.quads[quad + 4]);
                    *dot = _mm512_dpbusd_epi32(*dot, second, quad);
                }
            }
        }
        let scales = halves_512(scales);
        for ((sum, dot), block) in sums.iter_mut().zip(dots).zip(blocks) {
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(block.scale));
            *sum = _mm512_add_ps(*sum, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(dot)));
        }
        if let Some(mins) = panel.mins.get(index) {
            let mins = halves_512(mins);
            for (sum, block) in sums.iter_mut().zip(blocks) {
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(mins, _mm512_set1_ps(block.weight)));
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
    ($name:ident, $features:literal, $signed:literal, $dot:ident) => {
        #[target_feature(enable = $features)]
        fn $name<const ROWS: usize, const FOUR: bool>(
            panel: &SmallPanel<'_>,
            rows: &[&[Block]; ROWS],
        ) -> [[f32; PANEL]; ROWS] {
            let low = _mm256_set1_epi8(0x0f);
            let zero = if $signed && !FOUR { 0 } else { panel.form.zero };
            let mut out = [[0.0; PANEL]; ROWS];
            for half in 0..2 {
                let mut sums = [_mm256_setzero_ps(); ROWS];
                let lines = panel.quants.chunks_exact(panel.form.lines());
                for (index, (lines, scales)) in lines.zip(panel.scales).enumerate() {
                    let blocks: [&Block; ROWS] = std::array::from_fn(|row| &rows[row][index]);
                    let mut dots = blocks.map(|block| _mm256_set1_epi32(-zero * block.sum));
                    for (quad, line) in lines.iter().enumerate() {
                        let line = line_256(line, half);
                        let first = if FOUR {
                            _mm256_and_si256(line, low)
                        } else {
                            line
                        };
                        for (dot, block) in dots.iter_mut().zip(blocks) {
                            *dot = $dot::<FOUR>(*dot, first, block.quads[quad]);
                        }
                        if FOUR {
                            let second = _mm256_and_si256(_mm256_srli_epi16::<4>(line), low);
                            for (dot, block) in dots.iter_mut().zip(blocks) {
                                *dot = $dot::<FOUR>(*dot, second, block.quads[quad + 4]);
                            }
                        }
                    }
                    let scales = halves_256(scales, half);
                    for ((sum, dot), block) in sums.iter_mut().zip(dots).zip(blocks) {
                        let scale = _mm256_mul_ps(scales, _mm256_set1_ps(block.scale));
                        let scaled = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(dot));
                        *sum = _mm256_add_ps(*sum, scaled);
                    }
                    if let Some(mins) = panel.mins.get(index) {
                        let mins = halves_256(mins, half);
                        for (sum, block) in sums.iter_mut().zip(blocks) {
                            let min = _mm256_mul_ps(mins, _mm256_set1_ps(block.weight));
                            *sum = _mm256_add_ps(*sum, min);
                        }
                    }
                }
                for (sum, out) in sums.iter().zip(&mut out) {
                    // SAFETY: there is room for eight floats in each half.
                    unsafe { _mm256_storeu_ps(out[8 * half..][..8].as_mut_ptr(), *sum) };
                }
            }
            out
        }
    };
}

kernel_256!(avx2, "avx2,f16c,fma", true, dot_avx2);
kernel_256!(avx_vnni, "avx2,f16c,fma,avxvnni", false, dot_avx_vnni);

#[target_feature(enable = "avx2,f16c,fma,avxvnni")]
fn dot_avx_vnni<const FOUR: bool>(sum: __m256i, weights: __m256i, quad: i32) -> __m256i {
    _mm256_dpbusd_avx_epi32(sum, weights, _mm256_set1_epi32(quad))
}

#[target_feature(enable = "avx2,f16c,fma")]
fn dot_avx2<const FOUR: bool>(sum: __m256i, weights: __m256i, quad: i32) -> __m256i {
    let quad = _mm256_set1_epi32(quad);
    let pairs = if FOUR {
        // At most 2 · 15 · 127: far from where 16 bits saturate.
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
