//! The only place where untrusted bytes become values.
//!
//! Everything that travels or is stored is encoded here, by bincode with
//! fixed-width little-endian integers. [`decode`] accepts exactly one encoding
//! of a value: it refuses input over a limit before it reads it, trailing
//! bytes, and bytes that would not come out again when the value is encoded.
//! [`List`], [`Text`] and [`Bytes`] carry their bound in the type, so that a
//! forged length costs the reader nothing.
//!
//! Absent on purpose: maps, floats but [`Finite`] ones, `usize`, recursive types and zero-sized
//! elements. None of them has one portable encoding with a known cost.

use std::{fmt, ops::Deref};

use bincode::{
    BorrowDecode, Decode, Encode,
    config::{Configuration, Fixint, Limit, LittleEndian},
    de::{BorrowDecoder, Decoder, read::Reader},
    enc::{Encoder, write::Writer},
    error::{DecodeError, EncodeError},
};
use serde::{Serialize, Serializer};

/// Memory that decoding one value may claim, in bytes. Larger than any message
/// ([`crate::limits::FRAME_BYTES_MAX`]), because elements can be wider in
/// memory than on the wire. Job specs, which travel as blobs, are the largest values decoded here.
const CLAIM_BYTES_MAX: usize = 16 * 1024 * 1024;

type Config = Configuration<LittleEndian, Fixint, Limit<CLAIM_BYTES_MAX>>;

const fn config() -> Config {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<CLAIM_BYTES_MAX>()
}

/// A value with one canonical encoding. Blanket-implemented: deriving
/// `bincode::Encode` and `bincode::Decode` is enough.
pub trait Wire: Encode + Decode<()> {}
impl<T: Encode + Decode<()>> Wire for T {}

/// Why bytes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// More bytes than the reader allows for this type.
    #[error("{bytes} bytes where at most {bytes_max} are allowed")]
    TooLong {
        /// Bytes offered.
        bytes: usize,
        /// Bytes allowed.
        bytes_max: usize,
    },
    /// The bytes are no encoding of the type.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Bytes are left after the value.
    #[error("{0} bytes after the end of the value")]
    Trailing(usize),
    /// The bytes decode, but are not the encoding of what they decode to.
    #[error("not the canonical encoding")]
    NotCanonical,
}

/// Encodes a value. Values are built through checked constructors, so this
/// cannot fail for values below the claim limit.
///
/// # Panics
/// Never for types of this crate: their bounds are below the encoder's.
pub fn encode<T: Wire>(value: &T) -> Vec<u8> {
    match bincode::encode_to_vec(value, config()) {
        Ok(bytes) => bytes,
        Err(error) => unreachable!("a bounded value always encodes: {error}"),
    }
}

/// Decodes a value from exactly `bytes`, of which there may be at most
/// `bytes_max`.
///
/// # Errors
/// See [`WireError`]; nothing is allocated beyond the limit.
pub fn decode<T: Wire>(bytes: &[u8], bytes_max: usize) -> Result<T, WireError> {
    if bytes.len() > bytes_max {
        return Err(WireError::TooLong {
            bytes: bytes.len(),
            bytes_max,
        });
    }
    let (value, used) = bincode::decode_from_slice::<T, _>(bytes, config())
        .map_err(|error| WireError::Malformed(describe(&error)))?;
    if used != bytes.len() {
        return Err(WireError::Trailing(bytes.len() - used));
    }
    if encode(&value) != bytes {
        return Err(WireError::NotCanonical);
    }
    Ok(value)
}

/// A short, bounded description: the decoder's own text may quote input.
fn describe(error: &DecodeError) -> String {
    match error {
        DecodeError::UnexpectedEnd { .. } => "ends too early".into(),
        DecodeError::LimitExceeded => "a length is over the limit".into(),
        DecodeError::UnexpectedVariant {
            type_name, found, ..
        } => format!("unknown variant {found} of {type_name}"),
        DecodeError::Utf8 { .. } => "text is not UTF-8".into(),
        DecodeError::InvalidBooleanValue(value) => format!("{value} is no boolean"),
        DecodeError::Other(what) => (*what).into(),
        _ => "no encoding of this type".into(),
    }
}

/// A sequence of at most `MAX` elements.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct List<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> List<T, MAX> {
    /// Takes the elements, if they are few enough.
    ///
    /// # Errors
    /// [`WireError::TooLong`] for more than `MAX` elements.
    pub fn new(elements: Vec<T>) -> Result<Self, WireError> {
        if elements.len() > MAX {
            return Err(WireError::TooLong {
                bytes: elements.len(),
                bytes_max: MAX,
            });
        }
        Ok(Self(elements))
    }

    /// The elements, cut at `MAX`.
    pub fn truncated(mut elements: Vec<T>) -> Self {
        elements.truncate(MAX);
        Self(elements)
    }

    /// The elements.
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T, const MAX: usize> TryFrom<Vec<T>> for List<T, MAX> {
    type Error = WireError;

    fn try_from(elements: Vec<T>) -> Result<Self, WireError> {
        Self::new(elements)
    }
}

impl<'a, T, const MAX: usize> IntoIterator for &'a List<T, MAX> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MAX: usize> Deref for List<T, MAX> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: fmt::Debug, const MAX: usize> fmt::Debug for List<T, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Serialize, const MAX: usize> Serialize for List<T, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<T: Encode, const MAX: usize> Encode for List<T, MAX> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        encode_len(self.0.len(), encoder)?;
        self.0
            .iter()
            .try_for_each(|element| element.encode(encoder))
    }
}

impl<C, T: Decode<C>, const MAX: usize> Decode<C> for List<T, MAX> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        const {
            assert!(
                size_of::<T>() > 0,
                "a zero-sized element costs no bytes to repeat"
            )
        };
        let len = decode_len(decoder, MAX)?;
        decoder.claim_container_read::<T>(len)?;
        // Grows as elements arrive: a forged length alone reserves nothing.
        let mut elements = Vec::new();
        for _ in 0..len {
            decoder.unclaim_bytes_read(size_of::<T>());
            elements.push(T::decode(decoder)?);
        }
        Ok(Self(elements))
    }
}

/// At most `MAX` bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes<const MAX: usize>(Vec<u8>);

impl<const MAX: usize> Bytes<MAX> {
    /// Takes the bytes, if they are few enough.
    ///
    /// # Errors
    /// [`WireError::TooLong`] for more than `MAX` bytes.
    pub fn new(bytes: Vec<u8>) -> Result<Self, WireError> {
        if bytes.len() > MAX {
            return Err(WireError::TooLong {
                bytes: bytes.len(),
                bytes_max: MAX,
            });
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl<const MAX: usize> Deref for Bytes<MAX> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Bytes<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<const MAX: usize> Serialize for Bytes<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&crate::ids::hex(&self.0))
    }
}

impl<const MAX: usize> Encode for Bytes<MAX> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        encode_len(self.0.len(), encoder)?;
        encoder.writer().write(&self.0)
    }
}

impl<C, const MAX: usize> Decode<C> for Bytes<MAX> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let len = decode_len(decoder, MAX)?;
        decoder.claim_bytes_read(len)?;
        // In steps, so that memory follows what has really arrived.
        const STEP: usize = 64 * 1024;
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let from = bytes.len();
            bytes.resize(len.min(from + STEP), 0);
            decoder.reader().read(&mut bytes[from..])?;
        }
        Ok(Self(bytes))
    }
}

/// At most `MAX` bytes of UTF-8 that are safe to show: no control characters,
/// and none of the marks that reorder or hide text on a screen.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// Takes the text, if it is short enough and safe to show.
    ///
    /// # Errors
    /// [`WireError::TooLong`] or [`WireError::Malformed`].
    pub fn new(text: impl Into<String>) -> Result<Self, WireError> {
        let text = text.into();
        if text.len() > MAX {
            return Err(WireError::TooLong {
                bytes: text.len(),
                bytes_max: MAX,
            });
        }
        match text.chars().find(|&c| !is_shown_as_itself(c)) {
            Some(c) => Err(WireError::Malformed(format!(
                "text holds the character U+{:04X}",
                u32::from(c)
            ))),
            None => Ok(Self(text)),
        }
    }

    /// What of the text is safe to show, cut at `MAX` bytes.
    pub fn lossy(text: &str) -> Self {
        let mut kept = String::new();
        for c in text.chars().filter(|&c| is_shown_as_itself(c)) {
            if kept.len() + c.len_utf8() > MAX {
                break;
            }
            kept.push(c);
        }
        Self(kept)
    }
}

/// Control characters, and Unicode's bidirectional and invisible marks, can
/// make one name look like another or drive a terminal.
fn is_shown_as_itself(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{061C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}'
            | '\u{E0000}'..='\u{E007F}')
}

impl<const MAX: usize> Deref for Text<MAX> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const MAX: usize> Serialize for Text<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<const MAX: usize> Encode for Text<MAX> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        encode_len(self.0.len(), encoder)?;
        encoder.writer().write(self.0.as_bytes())
    }
}

impl<C, const MAX: usize> Decode<C> for Text<MAX> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let bytes = Bytes::<MAX>::decode(decoder)?.into_vec();
        let text = String::from_utf8(bytes).map_err(|_| DecodeError::Other("text is not UTF-8"))?;
        Self::new(text)
            .map_err(|_| DecodeError::Other("text holds a character that is not shown as itself"))
    }
}

impl<'de, C, T: Decode<C>, const MAX: usize> BorrowDecode<'de, C> for List<T, MAX> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

impl<'de, C, const MAX: usize> BorrowDecode<'de, C> for Bytes<MAX> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

impl<'de, C, const MAX: usize> BorrowDecode<'de, C> for Text<MAX> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

/// At most `MAX` bytes of UTF-8, with line breaks and whatever else: programs,
/// compiler messages. To be escaped before it is shown; see [`Text`] for names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Utf8<const MAX: usize>(String);

impl<const MAX: usize> Utf8<MAX> {
    /// The longest beginning that fits.
    pub fn cut(text: &str) -> Self {
        let mut end = text.len().min(MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text[..end].to_owned())
    }
}

impl<const MAX: usize> TryFrom<String> for Utf8<MAX> {
    type Error = WireError;

    fn try_from(text: String) -> Result<Self, WireError> {
        if text.len() > MAX {
            return Err(WireError::TooLong {
                bytes: text.len(),
                bytes_max: MAX,
            });
        }
        Ok(Self(text))
    }
}

impl<const MAX: usize> Deref for Utf8<MAX> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Utf8<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const MAX: usize> Encode for Utf8<MAX> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        encode_len(self.0.len(), encoder)?;
        encoder.writer().write(self.0.as_bytes())
    }
}

impl<C, const MAX: usize> Decode<C> for Utf8<MAX> {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let bytes = Bytes::<MAX>::decode(decoder)?.into_vec();
        String::from_utf8(bytes)
            .map(Self)
            .map_err(|_| DecodeError::Other("text is not UTF-8"))
    }
}

impl<'de, C, const MAX: usize> BorrowDecode<'de, C> for Utf8<MAX> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        Self::decode(decoder)
    }
}

fn encode_len<E: Encoder>(len: usize, encoder: &mut E) -> Result<(), EncodeError> {
    u32::try_from(len)
        .map_err(|_| EncodeError::Other("longer than a length can say"))?
        .encode(encoder)
}

fn decode_len<D: Decoder>(decoder: &mut D, max: usize) -> Result<usize, DecodeError> {
    let len = u32::decode(decoder)?;
    usize::try_from(len)
        .ok()
        .filter(|&len| len <= max)
        .ok_or(DecodeError::LimitExceeded)
}

/// A number that is neither infinite nor NaN, whoever says it.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Encode)]
pub struct Finite(f32);

impl Finite {
    /// The nearest there is; for what is no number, the least.
    pub fn nearest(number: f32) -> Self {
        if number.is_nan() {
            return Self(f32::MIN);
        }
        Self(number.clamp(f32::MIN, f32::MAX))
    }

    /// It.
    pub const fn get(self) -> f32 {
        self.0
    }
}

impl<C> Decode<C> for Finite {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let number = f32::decode(decoder)?;
        if !number.is_finite() {
            return Err(DecodeError::Other("a number that is not finite"));
        }
        Ok(Self(number))
    }
}

bincode::impl_borrow_decode!(Finite);

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Encode, Decode)]
    struct Sample {
        flag: bool,
        words: List<u16, 4>,
        name: Text<8>,
        raw: Option<Bytes<4>>,
    }

    fn sample() -> Sample {
        Sample {
            flag: true,
            words: List::new(vec![1, 2]).unwrap(),
            name: Text::new("算力").unwrap(),
            raw: Some(Bytes::new(vec![9]).unwrap()),
        }
    }

    #[test]
    fn what_is_encoded_comes_back() {
        let bytes = encode(&sample());
        assert_eq!(decode::<Sample>(&bytes, 64), Ok(sample()));
    }

    #[test]
    fn abuse_19_non_canonical_bytes_are_rejected() {
        let mut bytes = encode(&sample());
        bytes[0] = 2; // a boolean that is neither 0 nor 1
        assert!(matches!(
            decode::<Sample>(&bytes, 64),
            Err(WireError::Malformed(_))
        ));
    }

    #[test]
    fn abuse_20_trailing_bytes_are_rejected() {
        let mut bytes = encode(&sample());
        bytes.push(0);
        assert_eq!(decode::<Sample>(&bytes, 64), Err(WireError::Trailing(1)));
    }

    #[test]
    fn abuse_22_a_forged_length_is_refused_without_allocation() {
        let mut forged = vec![1];
        forged.extend(u32::MAX.to_le_bytes());
        assert!(decode::<Sample>(&forged, 64).is_err());
        assert!(decode::<List<u64, { usize::MAX }>>(&[0xff; 12], 64).is_err());
        assert!(decode::<Bytes<{ usize::MAX }>>(&[0xff; 12], 64).is_err());
    }

    #[test]
    fn input_over_its_limit_is_refused_unread() {
        let bytes = encode(&sample());
        assert!(matches!(
            decode::<Sample>(&bytes, 8),
            Err(WireError::TooLong { .. })
        ));
    }

    #[test]
    fn abuse_70_text_that_drives_a_terminal_is_refused() {
        for text in ["\u{1b}[2J", "a\nb", "\u{202E}txt", "\u{200B}"] {
            assert!(Text::<64>::new(text).is_err(), "{text:?}");
        }
        assert_eq!(&*Text::<64>::lossy("a\u{1b}[31mb"), "a[31mb");
    }

    #[test]
    fn a_number_that_is_none_is_not_understood() {
        let read = |number: f32| decode::<Finite>(&encode(&number), 8);
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(read(number).is_err(), "{number}");
            assert!(read(Finite::nearest(number).get()).is_ok(), "{number}");
        }
        assert_eq!(read(-1.5), Ok(Finite::nearest(-1.5)));
    }
}
