//! The kernels for x86-64.
//!
//! Each takes a few rows of activations at once, so that weights are loaded and
//! unpacked once for all of them. In a register of 512 bits a lane is a row of the
//! panel; one of 256 bits has one half of them.

use std::arch::x86_64::*;

use super::{
    super::weights::{Bits, Factors, LOW_LINES, Line, PANEL, SHARING, Scaling, SmallPanel},
    Block, Isa,
};

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
    let sums = match panel.form.bits {
        Bits::Four => sums_of::<ROWS, 4>(isa, panel, &rows),
        Bits::Five => sums_of::<ROWS, 5>(isa, panel, &rows),
        Bits::Six => sums_of::<ROWS, 6>(isa, panel, &rows),
        Bits::Eight => sums_of::<ROWS, 8>(isa, panel, &rows),
    };
    out.copy_from_slice(&sums);
}

fn sums_of<const ROWS: usize, const BITS: u32>(
    isa: Isa,
    panel: &SmallPanel<'_>,
    rows: &[&[Block]; ROWS],
) -> [[f32; PANEL]; ROWS] {
    // SAFETY: a value of `Isa` is only made where the processor has its features.
    unsafe {
        match isa {
            Isa::Avx512 => avx512::<ROWS, BITS>(panel, rows),
            Isa::AvxVnni => avx_vnni::<ROWS, BITS>(panel, rows),
            Isa::Avx2 | Isa::Plain => avx2::<ROWS, BITS>(panel, rows),
        }
    }
}

#[target_feature(enable = "avx2,f16c,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn avx512<const ROWS: usize, const BITS: u32>(
    panel: &SmallPanel<'_>,
    rows: &[&[Block]; ROWS],
) -> [[f32; PANEL]; ROWS] {
    let mut sums = [_mm512_setzero_ps(); ROWS];
    for (index, lines) in panel.quants.chunks_exact(panel.form.lines()).enumerate() {
        let blocks: [&Block; ROWS] = std::array::from_fn(|row| &rows[row][index]);
        let (dots, halves) = dots_512::<ROWS, BITS>(panel.form.zero, lines, blocks);
        let mut scales = halves_512(&panel.scales[index / panel.form.sharing()]);
        let mut dots = dots.map(|dot| _mm512_cvtepi32_ps(dot));
        if BITS == 6 {
            let [one, other] = &panel.factors[index];
            let (one, other) = (signed_512(one), signed_512(other));
            for (dot, half) in dots.iter_mut().zip(halves) {
                let half = _mm512_mul_ps(_mm512_cvtepi32_ps(half), other);
                *dot = _mm512_add_ps(_mm512_mul_ps(*dot, one), half);
            }
        } else if panel.form.scaling == Scaling::Shared {
            scales = _mm512_mul_ps(scales, unsigned_512(&panel.factors[index][0]));
        }
        for ((sum, dot), block) in sums.iter_mut().zip(dots).zip(blocks) {
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(block.scale));
            *sum = _mm512_add_ps(*sum, _mm512_mul_ps(scale, dot));
        }
        if let Some(mins) = mins_512(panel, index) {
            for (sum, block) in sums.iter_mut().zip(blocks) {
                let weight = _mm512_set1_ps(panel.weight(block));
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
fn dots_512<const ROWS: usize, const BITS: u32>(
    zero: i32,
    lines: &[Line],
    blocks: [&Block; ROWS],
) -> ([__m512i; ROWS], [__m512i; ROWS]) {
    let begin = |sum: i32| _mm512_set1_epi32(-zero * sum);
    if BITS == 8 {
        let mut dots = blocks.map(|block| begin(block.sum));
        for (quad, line) in lines.iter().enumerate() {
            let line = line_512(line);
            for (dot, block) in dots.iter_mut().zip(blocks) {
                *dot = _mm512_dpbusd_epi32(*dot, line, _mm512_set1_epi32(block.quads[quad]));
            }
        }
        return (dots, [_mm512_setzero_si512(); ROWS]);
    }
    let low = _mm512_set1_epi8(0x0f);
    let upper = _mm512_set1_epi8(if BITS == 5 { 0x10 } else { 0x30 });
    let (mut dots, mut halves) = match BITS {
        6 => (
            blocks.map(|block| begin(block.first)),
            blocks.map(|block| begin(block.sum - block.first)),
        ),
        _ => (
            blocks.map(|block| begin(block.sum)),
            [_mm512_setzero_si512(); ROWS],
        ),
    };
    let mut more = _mm512_setzero_si512();
    for (quad, line) in lines[..LOW_LINES].iter().enumerate() {
        let line = line_512(line);
        let mut first = _mm512_and_si512(line, low);
        let mut second = _mm512_and_si512(_mm512_srli_epi16::<4>(line), low);
        if BITS > 4 {
            more = match (BITS, quad) {
                (5, 0) | (6, 0) => line_512(&lines[LOW_LINES]),
                (6, 2) => line_512(&lines[LOW_LINES + 1]),
                (5, _) => _mm512_srli_epi16::<1>(more),
                _ => _mm512_srli_epi16::<2>(more),
            };
            first = _mm512_or_si512(first, _mm512_and_si512(more, upper));
            let high = _mm512_slli_epi16::<4>(more);
            second = _mm512_or_si512(second, _mm512_and_si512(high, upper));
        }
        for (dot, block) in dots.iter_mut().zip(blocks) {
            *dot = _mm512_dpbusd_epi32(*dot, first, _mm512_set1_epi32(block.quads[quad]));
        }
        let seconds = if BITS == 6 { &mut halves } else { &mut dots };
        for (dot, block) in seconds.iter_mut().zip(blocks) {
            let numbers = _mm512_set1_epi32(block.quads[quad + LOW_LINES]);
            *dot = _mm512_dpbusd_epi32(*dot, second, numbers);
        }
    }
    (dots, halves)
}

#[target_feature(enable = "avx2,f16c,fma,avx512f")]
#[inline]
fn mins_512(panel: &SmallPanel<'_>, index: usize) -> Option<__m512> {
    match panel.form.scaling {
        Scaling::Own | Scaling::Halves => None,
        Scaling::OwnWithMin => Some(halves_512(&panel.mins[index])),
        Scaling::Shared => {
            let mins = halves_512(&panel.mins[index / SHARING]);
            Some(_mm512_mul_ps(mins, unsigned_512(&panel.factors[index][1])))
        }
    }
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
        fn $name<const ROWS: usize, const BITS: u32>(
            panel: &SmallPanel<'_>,
            rows: &[&[Block]; ROWS],
        ) -> [[f32; PANEL]; ROWS] {
            let zero = if $signed && BITS == 8 {
                0
            } else {
                panel.form.zero
            };
            let mut out = [[0.0; PANEL]; ROWS];
            for half in 0..2 {
                let mut sums = [_mm256_setzero_ps(); ROWS];
                for (index, lines) in panel.quants.chunks_exact(panel.form.lines()).enumerate() {
                    let blocks: [&Block; ROWS] = std::array::from_fn(|row| &rows[row][index]);
                    let (dots, others) = $dots::<ROWS, BITS>(zero, lines, half, blocks);
                    let dots = scaled_256::<ROWS, BITS>(&panel.factors, index, half, dots, others);
                    let scales = scales_256(panel, index, half);
                    for ((sum, dot), block) in sums.iter_mut().zip(dots).zip(blocks) {
                        let scale = _mm256_mul_ps(scales, _mm256_set1_ps(block.scale));
                        *sum = _mm256_add_ps(*sum, _mm256_mul_ps(scale, dot));
                    }
                    if let Some(mins) = mins_256(panel, index, half) {
                        for (sum, block) in sums.iter_mut().zip(blocks) {
                            let weight = _mm256_set1_ps(panel.weight(block));
                            *sum = _mm256_add_ps(*sum, _mm256_mul_ps(mins, weight));
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

        /// As [`dots_512`], of one half of the panel's rows.
        #[target_feature(enable = $features)]
        #[inline]
        fn $dots<const ROWS: usize, const BITS: u32>(
            zero: i32,
            lines: &[Line],
            half: usize,
            blocks: [&Block; ROWS],
        ) -> ([__m256i; ROWS], [__m256i; ROWS]) {
            let begin = |sum: i32| _mm256_set1_epi32(-zero * sum);
            if BITS == 8 {
                let mut dots = blocks.map(|block| begin(block.sum));
                for (quad, line) in lines.iter().enumerate() {
                    let line = line_256(line, half);
                    for (dot, block) in dots.iter_mut().zip(blocks) {
                        *dot = $dot::<BITS>(*dot, line, block.quads[quad]);
                    }
                }
                return (dots, [_mm256_setzero_si256(); ROWS]);
            }
            let low = _mm256_set1_epi8(0x0f);
            let upper = _mm256_set1_epi8(if BITS == 5 { 0x10 } else { 0x30 });
            let (mut dots, mut others) = match BITS {
                6 => (
                    blocks.map(|block| begin(block.first)),
                    blocks.map(|block| begin(block.sum - block.first)),
                ),
                _ => (
                    blocks.map(|block| begin(block.sum)),
                    [_mm256_setzero_si256(); ROWS],
                ),
            };
            let mut more = _mm256_setzero_si256();
            for (quad, line) in lines[..LOW_LINES].iter().enumerate() {
                let line = line_256(line, half);
                let mut first = _mm256_and_si256(line, low);
                let mut second = _mm256_and_si256(_mm256_srli_epi16::<4>(line), low);
                if BITS > 4 {
                    more = match (BITS, quad) {
                        (5, 0) | (6, 0) => line_256(&lines[LOW_LINES], half),
                        (6, 2) => line_256(&lines[LOW_LINES + 1], half),
                        (5, _) => _mm256_srli_epi16::<1>(more),
                        _ => _mm256_srli_epi16::<2>(more),
                    };
                    first = _mm256_or_si256(first, _mm256_and_si256(more, upper));
                    let high = _mm256_slli_epi16::<4>(more);
                    second = _mm256_or_si256(second, _mm256_and_si256(high, upper));
                }
                for (dot, block) in dots.iter_mut().zip(blocks) {
                    *dot = $dot::<BITS>(*dot, first, block.quads[quad]);
                }
                let seconds = if BITS == 6 { &mut others } else { &mut dots };
                for (dot, block) in seconds.iter_mut().zip(blocks) {
                    *dot = $dot::<BITS>(*dot, second, block.quads[quad + LOW_LINES]);
                }
            }
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

/// Sums as floats; of six bits those of both halves, each times its factor.
#[target_feature(enable = "avx2,f16c,fma")]
#[inline]
fn scaled_256<const ROWS: usize, const BITS: u32>(
    factors: &[Factors],
    index: usize,
    half: usize,
    dots: [__m256i; ROWS],
    others: [__m256i; ROWS],
) -> [__m256; ROWS] {
    let mut dots = dots.map(|dot| _mm256_cvtepi32_ps(dot));
    if BITS == 6 {
        let factors = &factors[index];
        let signed = |which: usize| {
            let bytes = eight(&factors[which], half);
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
        };
        let (one, second) = (signed(0), signed(1));
        for (dot, other) in dots.iter_mut().zip(others) {
            let other = _mm256_mul_ps(_mm256_cvtepi32_ps(other), second);
            *dot = _mm256_add_ps(_mm256_mul_ps(*dot, one), other);
        }
    }
    dots
}

#[target_feature(enable = "avx2,f16c,fma")]
#[inline]
fn scales_256(panel: &SmallPanel<'_>, index: usize, half: usize) -> __m256 {
    let scales = halves_256(&panel.scales[index / panel.form.sharing()], half);
    match panel.form.scaling {
        Scaling::Own | Scaling::OwnWithMin | Scaling::Halves => scales,
        Scaling::Shared => _mm256_mul_ps(scales, unsigned_256(&panel.factors[index][0], half)),
    }
}

#[target_feature(enable = "avx2,f16c,fma")]
#[inline]
fn mins_256(panel: &SmallPanel<'_>, index: usize, half: usize) -> Option<__m256> {
    match panel.form.scaling {
        Scaling::Own | Scaling::Halves => None,
        Scaling::OwnWithMin => Some(halves_256(&panel.mins[index], half)),
        Scaling::Shared => {
            let mins = halves_256(&panel.mins[index / SHARING], half);
            let factors = unsigned_256(&panel.factors[index][1], half);
            Some(_mm256_mul_ps(mins, factors))
        }
    }
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
fn dot_avx_vnni<const BITS: u32>(sum: __m256i, weights: __m256i, quad: i32) -> __m256i {
    _mm256_dpbusd_avx_epi32(sum, weights, _mm256_set1_epi32(quad))
}

#[target_feature(enable = "avx2,f16c,fma")]
fn dot_avx2<const BITS: u32>(sum: __m256i, weights: __m256i, quad: i32) -> __m256i {
    let quad = _mm256_set1_epi32(quad);
    let pairs = if BITS < 8 {
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
