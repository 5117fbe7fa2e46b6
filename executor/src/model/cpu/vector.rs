//! What is done with rows of floats, in a fixed order.
//!
//! Sums are made in sixteen parts, number by number in turn, which are then added in
//! pairs; the exponential is a polynomial. So a compiler can use registers of any width,
//! and the bits are the same with each, and on each system: its own functions differ.

use half::f16;

use super::kernels::for_each_isa;

/// Parts of a sum.
const PARTS: usize = 16;

/// The sum of what `of` makes of each number.
#[inline(always)]
fn sum(numbers: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut parts = [0.0; PARTS];
    let (wholes, rest) = numbers.as_chunks::<PARTS>();
    for numbers in wholes {
        for (part, number) in parts.iter_mut().zip(numbers) {
            *part += of(*number);
        }
    }
    for (part, number) in parts.iter_mut().zip(rest) {
        *part += of(*number);
    }
    let mut width = PARTS / 2;
    while width > 0 {
        for index in 0..width {
            parts[index] += parts[index + width];
        }
        width /= 2;
    }
    parts[0]
}

/// What brings a row's mean square to 1.
#[inline(always)]
fn inverse_root_of_mean(row: &[f32], epsilon: f32) -> f32 {
    #[allow(clippy::cast_precision_loss, reason = "widths are far below 2^24")]
    let mean = sum(row, |number| number * number) / row.len() as f32;
    1.0 / (mean + epsilon).sqrt()
}

for_each_isa! {
/// Scales a row so that its mean square is 1, and each number by its weight.
pub(super) fn normalise(row: &[f32], weights: &[f32], epsilon: f32, out: &mut [f32]) {
    let scale = inverse_root_of_mean(row, epsilon);
    for ((out, number), weight) in out.iter_mut().zip(row).zip(weights) {
        *out = number * scale * weight;
    }
}

/// The same with each head of a row, all with the same weights.
pub(super) fn normalise_heads(row: &mut [f32], weights: &[f32], epsilon: f32) {
    for head in row.chunks_exact_mut(weights.len()) {
        let scale = inverse_root_of_mean(head, epsilon);
        for (number, weight) in head.iter_mut().zip(weights) {
            *number = *number * scale * weight;
        }
    }
}

/// Moves and scales a row so that its mean is 0 and its variance 1; then each number is
/// multiplied by its weight, and its bias added.
pub(super) fn centre(
    row: &[f32],
    weights: &[f32],
    bias: &[f32],
    epsilon: f32,
    out: &mut [f32],
) {
    #[allow(clippy::cast_precision_loss, reason = "widths are far below 2^24")]
    let count = row.len() as f32;
    let mean = sum(row, |number| number) / count;
    let variance = sum(row, |number| (number - mean) * (number - mean)) / count;
    let scale = 1.0 / (variance + epsilon).sqrt();
    let row = row.iter().zip(weights).zip(bias);
    for (out, ((number, weight), bias)) in out.iter_mut().zip(row) {
        *out = (number - mean) * scale * weight + bias;
    }
}

/// The share of each number that is below it in a normal distribution, times the number.
pub(super) fn gelu(row: &mut [f32]) {
    for number in row.iter_mut() {
        *number = 0.5 * *number * (1.0 + error_function(*number * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// Scales a row so that its length is 1. If all of it is 0, it stays so.
pub(super) fn to_length_one(row: &mut [f32]) {
    let mut largest: f32 = 0.0;
    for number in row.iter() {
        largest = largest.max(number.abs());
    }
    let length = sum(row, |number| (number / largest) * (number / largest)).sqrt() * largest;
    for number in row.iter_mut() {
        *number = if largest > 0.0 { *number / length } else { *number };
    }
}

/// Adds one row to another.
pub(super) fn add(to: &mut [f32], row: &[f32]) {
    for (to, number) in to.iter_mut().zip(row) {
        *to += number;
    }
}

/// `silu(gate) · up`, into `gate`.
pub(super) fn gated(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exponential(-*gate)) * up;
    }
}

/// Makes scores into shares of 1.
pub(super) fn softmax(scores: &mut [f32]) {
    let mut largest = f32::NEG_INFINITY;
    for score in scores.iter() {
        largest = if *score > largest { *score } else { largest };
    }
    for score in scores.iter_mut() {
        *score = exponential(*score - largest);
    }
    let inverse = 1.0 / sum(scores, |score| score);
    for score in scores.iter_mut() {
        *score *= inverse;
    }
}

    /// Turns the pairs of each head of a row by the angles of a position. Neighbours are a
    /// pair.
    pub(super) fn rotate(row: &mut [f32], width: usize, turns: &[[f32; 2]]) {
        for head in row.chunks_exact_mut(width) {
            for ([x, y], [cosine, sine]) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                (*x, *y) = (*x * cosine - *y * sine, *x * sine + *y * cosine);
            }
        }
    }

    /// The same, where a pair is a number of the first half and its like of the second.
    pub(super) fn rotate_halves(row: &mut [f32], width: usize, turns: &[[f32; 2]]) {
        for head in row.chunks_exact_mut(width) {
            let (first, rest) = head.split_at_mut(turns.len());
            for ((x, y), [cosine, sine]) in first.iter_mut().zip(rest).zip(turns) {
                (*x, *y) = (*x * cosine - *y * sine, *x * sine + *y * cosine);
            }
        }
    }

    /// Makes finite numbers of 16 bits wide. What is not finite becomes a large number.
    pub(super) fn widen(halves: &[f16], out: &mut [f32]) {
        /// 2^112: what exponents of the two widths differ by.
        const SCALE: f32 = f32::from_bits((112 + 127) << 23);
        for (out, half) in out.iter_mut().zip(halves) {
            let bits = u32::from(half.to_bits());
            let size = f32::from_bits((bits & 0x7fff) << 13) * SCALE;
            *out = f32::from_bits(size.to_bits() | (bits & 0x8000) << 16);
        }
    }
}

/// e to the power of a number, with an error of two in the last place; no more than
/// about 2^127, no less than about 2^-126.
#[inline(always)]
pub(in crate::model) fn exponential(number: f32) -> f32 {
    /// Added to a number, leaves it rounded to whole in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// The natural logarithm of 2 in two parts, the first of which is short, so that its
    /// products are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let number = number.clamp(-87.0, 88.0);
    let shifted = number * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = number - whole * LN_2_HIGH - whole * LN_2_LOW;
    // The series of the exponential: what is left out is below 1e-7 for |rest| < 0.35.
    let mut power = 1.0 / 720.0;
    for factor in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        power = power * rest + factor;
    }
    // The exponent of a float with 8 bits, 127 being 2^0.
    let two = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    power * two
}

/// The error function, with an error below 5e-7.
///
/// Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
#[inline(always)]
fn error_function(number: f32) -> f32 {
    const P: f32 = 0.327_591_1;
    const FACTORS: [f32; 5] = [
        1.061_405_4,
        -1.453_152,
        1.421_413_8,
        -0.284_496_74,
        0.254_829_6,
    ];
    let size = number.abs();
    let near = 1.0 / (1.0 + P * size);
    let mut series = 0.0;
    for factor in FACTORS {
        series = (series + factor) * near;
    }
    (1.0 - series * exponential(-size * size)).copysign(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cpu::kernels::Isa;

    #[test]
    fn halves_become_the_same_numbers() {
        let halves: Vec<f16> = (0..=u16::MAX)
            .map(f16::from_bits)
            .filter(|half| half.is_finite())
            .collect();
        let mut wide = vec![0.0; halves.len()];
        widen(Isa::detect(), &halves, &mut wide);
        for (half, wide) in halves.iter().zip(wide) {
            assert_eq!(half.to_f32().to_bits(), wide.to_bits());
        }
    }

    #[test]
    fn the_exponential_is_near_the_true_one() {
        for step in -8_700..8_800_i16 {
            let number = f32::from(step) / 100.0;
            let truth = f64::from(number).exp();
            let error = (f64::from(exponential(number)) - truth).abs() / truth;
            assert!(error < 3e-7, "{number}: {error}");
        }
        assert!(exponential(-1e9) < 1e-37);
        assert!(exponential(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn the_error_function_is_near_the_true_one() {
        // Its series, which is exact enough for small numbers in 64 bits.
        let truth = |number: f64| {
            let (mut sum, mut term) = (0.0, number);
            for n in 0..200_u32 {
                sum += term / f64::from(2 * n + 1);
                term *= -number * number / f64::from(n + 1);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        };
        for step in -400..=400_i16 {
            let number = f32::from(step) / 100.0;
            let error = (f64::from(error_function(number)) - truth(f64::from(number))).abs();
            assert!(error < 5e-7, "{number}: {error}");
        }
        for (number, expected) in [(30.0, 30.0), (-30.0, 0.0), (0.0, 0.0)] {
            let mut row = [number];
            gelu(Isa::Plain, &mut row);
            assert!((row[0] - expected).abs() < 1e-5, "{row:?}");
        }
    }

    #[test]
    fn rows_are_brought_to_length_one() {
        for scale in [1e-30, 1.0, 1e30] {
            let mut row = [3.0 * scale, 0.0, -4.0 * scale];
            to_length_one(Isa::Plain, &mut row);
            assert!((row[0] - 0.6).abs() < 1e-6 && (row[2] + 0.8).abs() < 1e-6);
        }
        let mut none = [0.0; 3];
        to_length_one(Isa::Plain, &mut none);
        assert!(none.iter().all(|number| *number == 0.0));
    }

    #[test]
    fn shares_add_up_to_one_whatever_the_scores() {
        for length in 1..70_u8 {
            let mut scores: Vec<f32> = (0..length).map(|n| f32::from(n % 7) * 90.0).collect();
            softmax(Isa::Plain, &mut scores);
            assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}
