//! Strict decoding: bincode with fixed-width integers, a byte limit, no
//! trailing bytes, and only the one encoding that encoding gives.
//!
//! Job graphs travel between peers in this encoding; frames between the
//! parent and its workers use it too. Floats and maps are absent on purpose:
//! both have more than one encoding of one value.

use std::ops::Deref;

use bincode::{
    BorrowDecode, Decode, Encode,
    config::{Configuration, Fixint, Limit, LittleEndian},
    de::{BorrowDecoder, Decoder},
    enc::Encoder,
    error::{DecodeError, EncodeError},
};

/// Allocation limit of one decode, above every message of this crate.
const LIMIT: usize = 16 << 20;
const CONFIG: Configuration<LittleEndian, Fixint, Limit<LIMIT>> = bincode::config::standard()
    .with_fixed_int_encoding()
    .with_limit::<LIMIT>();

/// Why bytes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More bytes than this kind of message may have.
    #[error("{bytes} bytes where at most {max} are allowed")]
    TooLong {
        /// What came.
        bytes: usize,
        /// What may come.
        max: usize,
    },
    /// Not an encoding of the type, or a bound inside it broken.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Bytes after the end of the value.
    #[error("{0} bytes after the end")]
    Trailing(usize),
    /// A second encoding of the same value.
    #[error("not the canonical encoding")]
    NotCanonical,
}

/// The one encoding of a value.
///
/// # Errors
/// If the value is larger than any message may be.
pub fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::encode_to_vec(value, CONFIG).map_err(|error| CodecError::Malformed(error.to_string()))
}

/// Decodes a whole message of at most `bytes_max` bytes.
///
/// # Errors
/// See [`CodecError`].
pub fn decode<T: Decode<()> + Encode>(bytes: &[u8], bytes_max: usize) -> Result<T, CodecError> {
    if bytes.len() > bytes_max {
        return Err(CodecError::TooLong {
            bytes: bytes.len(),
            max: bytes_max,
        });
    }
    let (value, used) = bincode::decode_from_slice::<T, _>(bytes, CONFIG)
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    if used != bytes.len() {
        return Err(CodecError::Trailing(bytes.len() - used));
    }
    if encode(&value)? != bytes {
        return Err(CodecError::NotCanonical);
    }
    Ok(value)
}

/// A value with more elements than its type holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{found} where at most {max} are allowed")]
pub struct TooMany {
    /// Elements or bytes given.
    pub found: usize,
    /// Elements or bytes allowed.
    pub max: usize,
}

/// At most `N` elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T, const N: usize>(Vec<T>);

impl<T, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const N: usize> TryFrom<Vec<T>> for List<T, N> {
    type Error = TooMany;

    fn try_from(items: Vec<T>) -> Result<Self, TooMany> {
        if items.len() > N {
            return Err(TooMany {
                found: items.len(),
                max: N,
            });
        }
        Ok(Self(items))
    }
}

impl<T, const N: usize> Deref for List<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'a, T, const N: usize> IntoIterator for &'a List<T, N> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<T: Encode + 'static, const N: usize> Encode for List<T, N> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<C, T: Decode<C> + 'static, const N: usize> Decode<C> for List<T, N> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::try_from(Vec::<T>::decode(decoder)?)
            .map_err(|error| DecodeError::OtherString(error.to_string()))
    }
}

impl<'de, C, T: Decode<C> + 'static, const N: usize> BorrowDecode<'de, C> for List<T, N> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

/// UTF-8 of at most `N` bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Text<const N: usize>(String);

impl<const N: usize> Text<N> {
    /// The longest prefix that fits, for messages that are shown to people.
    #[must_use]
    pub fn cut(text: &str) -> Self {
        let mut end = text.len().min(N);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text.get(..end).unwrap_or_default().to_owned())
    }
}

impl<const N: usize> TryFrom<String> for Text<N> {
    type Error = TooMany;

    fn try_from(text: String) -> Result<Self, TooMany> {
        if text.len() > N {
            return Err(TooMany {
                found: text.len(),
                max: N,
            });
        }
        Ok(Self(text))
    }
}

impl<const N: usize> Deref for Text<N> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const N: usize> Encode for Text<N> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<C, const N: usize> Decode<C> for Text<N> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Self::try_from(String::decode(decoder)?)
            .map_err(|error| DecodeError::OtherString(error.to_string()))
    }
}

impl<'de, C, const N: usize> BorrowDecode<'de, C> for Text<N> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Names = List<Text<4>, 2>;

    fn names(words: &[&str]) -> Names {
        Names::try_from(words.iter().map(|word| Text::cut(word)).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn values_come_back() {
        let bytes = encode(&names(&["ab", "cdé"])).unwrap();
        assert_eq!(decode::<Names>(&bytes, 64), Ok(names(&["ab", "cdé"])));
    }

    #[test]
    fn trailing_bytes_and_excess_are_refused() {
        let mut bytes = encode(&names(&["ab"])).unwrap();
        assert_eq!(
            decode::<Names>(&bytes, 3),
            Err(CodecError::TooLong {
                bytes: bytes.len(),
                max: 3
            })
        );
        bytes.push(0);
        assert_eq!(decode::<Names>(&bytes, 64), Err(CodecError::Trailing(1)));
    }

    #[test]
    fn a_huge_length_prefix_allocates_nothing() {
        let bytes = (1_u64 << 63).to_le_bytes();
        assert!(matches!(
            decode::<List<u8, 16>>(&bytes, 64),
            Err(CodecError::Malformed(_))
        ));
    }

    #[test]
    fn bounds_hold_inside_a_value() {
        let long = encode(&Text::<16>::cut("0123456789")).unwrap();
        assert!(matches!(
            decode::<Text<4>>(&long, 64),
            Err(CodecError::Malformed(_))
        ));
        assert_eq!(&*Text::<4>::cut("abcé"), "abc");
    }
}
