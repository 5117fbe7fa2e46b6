//! How near two results must be to count as equal, where they are floats.
//!
//! Devices of different makers round differently: what is the same to the last bit on
//! one need not be on another. A job may say which of its outputs are lists of 32-bit
//! floats, and how far they may be apart:
//!
//! ```text
//! |a − b| ≤ absolute + relative · max(|a|, |b|)
//! ```
//!
//! for every pair of numbers, in double precision. An infinity equals itself only, and
//! any NaN any other: which bits a NaN has is the device's choice. So the comparison is
//! symmetric, and every result equals itself; but it is not transitive. What follows
//! from that for more than two results stands where they are judged.
//!
//! Absent: reading outputs. Whoever has the bytes gives them piece by piece.

use bincode::{Decode, Encode};
use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use crate::{limits::OUTPUTS_MAX, offer::Name, wire::List};

/// Bytes of one number.
const NUMBER: usize = size_of::<f32>();

/// How far two numbers may be apart. It travels as the bits of both bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode)]
pub struct Tolerance {
    relative: u32,
    absolute: u32,
}

/// Why two numbers are no tolerance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ToleranceError {
    /// The relative bound is out of range.
    #[error("0 to less than 1 is allowed, a part of the larger number: 0.00001 is a good start")]
    Relative,
    /// The absolute bound is out of range.
    #[error("0 or more is allowed, in the outputs' own unit")]
    Absolute,
    /// Both are 0.
    #[error("with 0 all results are compared to the last bit: leave it out, or allow more")]
    Nothing,
}

impl Tolerance {
    /// From a part of the larger number, and a number.
    ///
    /// # Errors
    /// [`ToleranceError`], for the bound that is no such thing.
    pub fn new(relative: f32, absolute: f32) -> Result<Self, ToleranceError> {
        let is_bound = |bound: f32| bound.is_finite() && bound.is_sign_positive();
        if !is_bound(relative) || relative >= 1.0 {
            return Err(ToleranceError::Relative);
        }
        if !is_bound(absolute) {
            return Err(ToleranceError::Absolute);
        }
        if relative.to_bits() == 0 && absolute.to_bits() == 0 {
            return Err(ToleranceError::Nothing);
        }
        Ok(Self {
            relative: relative.to_bits(),
            absolute: absolute.to_bits(),
        })
    }

    /// The part of the larger number that two may be apart.
    pub const fn relative(self) -> f32 {
        f32::from_bits(self.relative)
    }

    /// What they may be apart beside that.
    pub const fn absolute(self) -> f32 {
        f32::from_bits(self.absolute)
    }

    /// Whether two numbers count as equal.
    pub fn allows(self, a: f32, b: f32) -> bool {
        if a.is_nan() || b.is_nan() {
            return a.is_nan() && b.is_nan();
        }
        if a.is_infinite() || b.is_infinite() {
            return a.to_bits() == b.to_bits();
        }
        let (a, b) = (f64::from(a), f64::from(b));
        let larger = a.abs().max(b.abs());
        (a - b).abs() <= f64::from(self.absolute()) + f64::from(self.relative()) * larger
    }

    /// Whether two pieces from the same place of two outputs count as equal. All but
    /// the last are whole numbers; bytes after the last whole number are compared as
    /// they are.
    pub fn allows_pieces(self, a: &[u8], b: &[u8]) -> bool {
        if a == b {
            return true;
        }
        let (numbers, other) = (a.chunks_exact(NUMBER), b.chunks_exact(NUMBER));
        a.len() == b.len()
            && numbers.remainder() == other.remainder()
            && numbers
                .zip(other)
                .all(|(a, b)| a == b || self.allows(number(a), number(b)))
    }
}

fn number(bytes: &[u8]) -> f32 {
    f32::from_le_bytes(bytes.try_into().unwrap_or_default())
}

impl<C> Decode<C> for Tolerance {
    fn decode<D: bincode::de::Decoder<Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let (relative, absolute) = (u32::decode(decoder)?, u32::decode(decoder)?);
        Self::new(f32::from_bits(relative), f32::from_bits(absolute))
            .map_err(|_| bincode::error::DecodeError::Other("bounds that are no tolerance"))
    }
}

impl<'de, C> bincode::de::BorrowDecode<'de, C> for Tolerance {
    fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        Self::decode(decoder)
    }
}

impl Serialize for Tolerance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Tolerance", 2)?;
        fields.serialize_field("relative", &self.relative())?;
        fields.serialize_field("absolute", &self.absolute())?;
        fields.end()
    }
}

/// Which outputs of a job may be apart, and how far.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Within {
    /// How far.
    pub tolerance: Tolerance,
    /// Outputs that are lists of 32-bit floats, little-endian. All others are compared
    /// to the last bit.
    pub floats: List<Name, OUTPUTS_MAX>,
}

impl Within {
    /// Whether an output is one of those.
    pub fn has(&self, output: &Name) -> bool {
        self.floats.contains(output)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire;

    fn tolerance(relative: f32, absolute: f32) -> Tolerance {
        Tolerance::new(relative, absolute).unwrap()
    }

    #[test]
    fn numbers_are_equal_within_the_sum_of_both_bounds() {
        let relative = tolerance(0.25, 0.0);
        assert!(relative.allows(4.0, 3.0), "a quarter of the larger");
        assert!(relative.allows(-3.0, -4.0));
        assert!(!relative.allows(4.0, 2.99));
        assert!(
            !relative.allows(0.0, f32::MIN_POSITIVE),
            "nothing is near 0"
        );
        let both = tolerance(0.25, 1.0);
        assert!(both.allows(4.0, 2.0));
        assert!(!both.allows(4.0, 1.99));
        assert!(both.allows(-0.5, 0.5), "near 0 the absolute bound counts");
    }

    #[test]
    fn special_numbers_equal_themselves_only() {
        let wide = tolerance(0.99, f32::MAX);
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let other_nan = f32::from_bits(0xffc0_1234);
        for (a, b, equal) in [
            (nan, nan, true),
            (nan, other_nan, true),
            (nan, 0.0, false),
            (nan, inf, false),
            (inf, inf, true),
            (-inf, -inf, true),
            (inf, -inf, false),
            (inf, f32::MAX, false),
            (f32::MAX, -inf, false),
        ] {
            assert_eq!(wide.allows(a, b), equal, "{a} and {b}");
            assert_eq!(wide.allows(b, a), equal, "{b} and {a}");
        }
    }

    #[test]
    fn zeros_and_the_smallest_numbers_are_numbers() {
        let least = f32::from_bits(1);
        let relative = tolerance(0.5, 0.0);
        assert!(relative.allows(0.0, -0.0));
        assert!(relative.allows(least, f32::from_bits(2)), "half of it");
        assert!(!relative.allows(least, f32::from_bits(3)));
        assert!(!relative.allows(least, -least));
        assert!(!relative.allows(least, 0.0));
        let absolute = tolerance(0.0, least);
        assert!(absolute.allows(least, 0.0));
        assert!(absolute.allows(f32::from_bits(7), f32::from_bits(8)));
        assert!(!absolute.allows(least, -least));
        // What overflows single precision does not here.
        assert!(!tolerance(0.5, 0.0).allows(f32::MAX, -f32::MAX));
        assert!(tolerance(0.0, f32::MAX).allows(f32::MAX, 0.0));
    }

    #[test]
    fn pieces_are_equal_if_all_numbers_and_the_rest_are() {
        let bytes =
            |numbers: &[f32]| -> Vec<u8> { numbers.iter().flat_map(|n| n.to_le_bytes()).collect() };
        let near = tolerance(1e-5, 0.0);
        let (a, b) = (bytes(&[1.0, 2.0]), bytes(&[1.000_001, 2.0]));
        assert!(near.allows_pieces(&a, &b));
        assert!(!near.allows_pieces(&a, &bytes(&[1.000_001, 2.1])));
        assert!(!near.allows_pieces(&a, &b[..4]), "lengths differ");
        assert!(near.allows_pieces(&[], &[]));
        let with = |bytes: &[u8], rest: &[u8]| [bytes, rest].concat();
        assert!(near.allows_pieces(&with(&a, b"xy"), &with(&b, b"xy")));
        assert!(!near.allows_pieces(&with(&a, b"xy"), &with(&b, b"xz")));
    }

    #[test]
    fn bounds_are_checked_wherever_they_come_from() {
        for (relative, absolute, why) in [
            (1.0, 0.0, ToleranceError::Relative),
            (-0.1, 0.0, ToleranceError::Relative),
            (-0.0, 1.0, ToleranceError::Relative),
            (f32::NAN, 0.0, ToleranceError::Relative),
            (0.1, f32::INFINITY, ToleranceError::Absolute),
            (0.1, -1.0, ToleranceError::Absolute),
            (0.0, 0.0, ToleranceError::Nothing),
        ] {
            assert_eq!(Tolerance::new(relative, absolute), Err(why));
            let bits = wire::encode(&(relative.to_bits(), absolute.to_bits()));
            assert!(wire::decode::<Tolerance>(&bits, 8).is_err());
        }
        let fine = tolerance(1e-5, 1e-6);
        let again = wire::decode::<Tolerance>(&wire::encode(&fine), 8);
        assert_eq!(again, Ok(fine));
        assert_eq!((fine.relative(), fine.absolute()), (1e-5, 1e-6));
    }

    proptest! {
        #[test]
        fn it_is_symmetric_and_everything_equals_itself(
            (a, b) in (any::<u32>(), any::<u32>()),
            relative in 0.0_f32..1.0,
            absolute in 1e-30_f32..1e30,
        ) {
            let tolerance = tolerance(relative, absolute);
            let (a, b) = (f32::from_bits(a), f32::from_bits(b));
            prop_assert_eq!(tolerance.allows(a, b), tolerance.allows(b, a));
            prop_assert!(tolerance.allows(a, a) && tolerance.allows(b, b));
        }

        #[test]
        fn neighbours_are_equal_within_a_few_parts_of_a_million(
            bits in 0x0080_0000_u32..0x7f00_0000,
            steps in 0_u32..8,
            negative: bool,
        ) {
            let signed = |bits: u32| f32::from_bits(bits | u32::from(negative) << 31);
            let (a, b) = (signed(bits), signed(bits + steps));
            prop_assert!(tolerance(1e-6, 0.0).allows(a, b));
            prop_assert!(!tolerance(1e-6, 0.0).allows(a, signed(bits + 40)));
        }

        #[test]
        fn pieces_are_symmetric(
            a in prop::collection::vec(any::<u8>(), 0..40),
            b in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let wide = tolerance(0.9, 1e30);
            prop_assert_eq!(wide.allows_pieces(&a, &b), wide.allows_pieces(&b, &a));
            prop_assert!(wide.allows_pieces(&a, &a.clone()));
        }
    }
}
