//! Reads GGUF, the file of a model: typed metadata, and tensors by name.
//!
//! The file's bytes are borrowed, and stay where they are: [`Gguf::parse`] goes once
//! through the head, checks all of it, and keeps where things are. Text is a slice of
//! the file, an array is the checked range that its elements are in, a tensor is a
//! range with a shape and a type. So what is allocated is a table row for each entry
//! that was really read, and never what a count in the file promises.
//!
//! Files come from strangers. Every count is checked against what is left of the file
//! before anything is done with it, every product and sum is checked arithmetic, names
//! may not repeat, tensors may not overlap, and arrays may not stand in one another, so
//! that nothing recurses.
//!
//! Source: the GGUF specification, versions 2 and 3 (they differ in nothing that is
//! read here). Absent: version 1, files in big-endian order, files in several parts,
//! and a meaning of the metadata, which is the business of who asks for it.

use std::{collections::BTreeMap, fmt, ops::Range, str};

use crate::limits::{
    GGUF_ALIGNMENT_MAX, GGUF_ARRAY_ELEMENTS_MAX, GGUF_ENTRIES_MAX, GGUF_KEY_BYTES_MAX,
    GGUF_TENSORS_MAX, GGUF_TEXT_BYTES_MAX,
};

const MAGIC: &[u8] = b"GGUF";
const VERSIONS: [u32; 2] = [2, 3];
const ALIGNMENT_KEY: &str = "general.alignment";
const ALIGNMENT_DEFAULT: u32 = 32;
const DIMENSIONS_MAX: usize = 4;
/// Bytes of an entry that is as short as can be: an empty key, its type, one byte.
const ENTRY_BYTES_MIN: u64 = 8 + 4 + 1;
/// Bytes of a tensor's description that is as short as can be: an empty name, no
/// dimension, type and offset.
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 4 + 8;

/// A model file, checked.
#[derive(Debug, Clone)]
pub struct Gguf<'a> {
    version: u32,
    alignment: u32,
    metadata: BTreeMap<&'a str, Value<'a>>,
    tensors: BTreeMap<&'a str, Tensor<'a>>,
}

/// A value of the metadata.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// A whole number without a sign, of any width.
    Unsigned(u64),
    /// A whole number with a sign, of any width.
    Signed(i64),
    /// A number with a fraction, of either width.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// Text.
    Text(&'a str),
    /// Many of one type.
    Array(Array<'a>),
}

/// Values of one type, where they are in the file. They were all checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Array<'a> {
    kind: Kind,
    count: usize,
    bytes: &'a [u8],
}

/// A tensor: its name, shape and type, and its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tensor<'a> {
    name: &'a str,
    dimensions: [usize; DIMENSIONS_MAX],
    rank: usize,
    kind: TensorType,
    offset: usize,
    bytes: &'a [u8],
}

/// How a tensor's numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "these are their names")]
pub enum TensorType {
    F32,
    F16,
    Bf16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// Another kind of file.
    #[error("this is no GGUF file: it does not begin with the letters GGUF")]
    Magic,
    /// A version that is not read here.
    #[error(
        "the file is GGUF of version {0}, and 2 and 3 are read here; convert the model again with a current converter"
    )]
    Version(u32),
    /// Written by a machine of the other byte order.
    #[error(
        "the file is GGUF in big-endian order, which is not read here; take the usual, little-endian one"
    )]
    BigEndian,
    /// The end came too early.
    #[error("the file ends within {what}, at byte {at}; was it copied in full?")]
    Ends {
        /// What was being read.
        what: &'static str,
        /// Where it should go on.
        at: usize,
    },
    /// A count that the file has no room for, or that is too large.
    #[error(
        "the file says that it has {count} {what}, and at most {max} are possible; it is damaged"
    )]
    Count {
        /// Of what.
        what: &'static str,
        /// What the file says.
        count: u64,
        /// What can be.
        max: u64,
    },
    /// Text that is no text.
    #[error("{what} at byte {at} of the file is not UTF-8; it is damaged")]
    Utf8 {
        /// Which text.
        what: &'static str,
        /// Where it begins.
        at: usize,
    },
    /// A type of value that does not exist.
    #[error("the metadata {key:?} has a value of the unknown type {kind}")]
    ValueType {
        /// Its name.
        key: String,
        /// The type's number.
        kind: u32,
    },
    /// An array of arrays.
    #[error("the metadata {0:?} is an array of arrays, which no model needs")]
    Nested(String),
    /// A truth value that is neither.
    #[error("the metadata {0:?} has a truth value that is neither 0 nor 1")]
    Bool(String),
    /// A name that was there before.
    #[error("the file has two {what} with the name {name:?}")]
    Duplicate {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// An alignment that is none.
    #[error(
        "the file's alignment ({ALIGNMENT_KEY}) must be a power of two from 8 to {GGUF_ALIGNMENT_MAX}"
    )]
    Alignment,
    /// A type of tensor that is not known.
    #[error("the tensor {name:?} has the type {kind}, which is not known here")]
    TensorType {
        /// Its name.
        name: String,
        /// The type's number.
        kind: u32,
    },
    /// A shape that can't be.
    #[error("the tensor {name:?} has an impossible shape: {why}")]
    Shape {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Data where there is none.
    #[error(
        "the tensor {name:?} has {bytes} bytes from {offset} on, and the file has {room} bytes of data; was it copied in full?"
    )]
    Outside {
        /// Its name.
        name: String,
        /// Where its data should begin, counted from the first byte of all data.
        offset: u64,
        /// How many there should be.
        bytes: u64,
        /// How many bytes of data there are.
        room: u64,
    },
    /// Data that does not begin where it may.
    #[error("the tensor {0:?} does not begin at a multiple of the file's alignment")]
    Unaligned(String),
    /// Two tensors that share bytes.
    #[error("the tensors {0:?} and {1:?} overlap")]
    Overlap(String, String),
    /// Something that who asked needs is not there.
    #[error("the file has no {0:?} in its metadata")]
    Missing(String),
    /// Something is there, and is of another type or size than asked for.
    #[error("the file's {key:?} is not {wanted}")]
    Unfit {
        /// Its name.
        key: String,
        /// What it should be.
        wanted: &'static str,
    },
}

impl<'a> Gguf<'a> {
    /// Reads and checks a whole file.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(file: &'a [u8]) -> Result<Self, GgufError> {
        let mut reader = Reader { file, at: 0 };
        if reader
            .take(MAGIC.len(), "its first word")
            .map_err(|_| GgufError::Magic)?
            != MAGIC
        {
            return Err(GgufError::Magic);
        }
        let version = reader.u32("its version")?;
        if VERSIONS.contains(&version.swap_bytes()) {
            return Err(GgufError::BigEndian);
        }
        if !VERSIONS.contains(&version) {
            return Err(GgufError::Version(version));
        }
        let tensors = reader.u64("the number of tensors")?;
        let entries = reader.u64("the number of entries")?;
        let left = reader.left();
        within(
            "entries of metadata",
            entries,
            GGUF_ENTRIES_MAX,
            left / ENTRY_BYTES_MIN,
        )?;
        within(
            "tensors",
            tensors,
            GGUF_TENSORS_MAX,
            left / TENSOR_BYTES_MIN,
        )?;
        let metadata = metadata(&mut reader, entries)?;
        let alignment = alignment(&metadata)?;
        let headings = headings(&mut reader, tensors)?;
        let begin = usize::try_from(alignment)
            .ok()
            .and_then(|alignment| reader.at.checked_next_multiple_of(alignment))
            .unwrap_or(usize::MAX);
        let tensors = placed(file, begin, alignment, headings)?;
        Ok(Self {
            version,
            alignment,
            metadata,
            tensors,
        })
    }

    /// The version of the format.
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// What tensors' offsets are multiples of.
    pub const fn alignment(&self) -> u32 {
        self.alignment
    }

    /// All metadata, in the order of their names.
    pub fn metadata(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.metadata.iter().map(|(key, value)| (*key, *value))
    }

    /// All tensors, in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'a>> {
        self.tensors.values().copied()
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'a>> {
        self.tensors.get(name).copied()
    }

    /// A value.
    pub fn value(&self, key: &str) -> Option<Value<'a>> {
        self.metadata.get(key).copied()
    }

    /// A whole number that fits 32 bits, if it is there.
    ///
    /// # Errors
    ///
    /// [`GgufError::Unfit`] if it is something else.
    pub fn number(&self, key: &str) -> Result<Option<u32>, GgufError> {
        let number = match self.value(key) {
            None => return Ok(None),
            Some(Value::Unsigned(number)) => u32::try_from(number).ok(),
            Some(Value::Signed(number)) => u32::try_from(number).ok(),
            Some(Value::Float(_) | Value::Bool(_) | Value::Text(_) | Value::Array(_)) => None,
        };
        number
            .map(Some)
            .ok_or_else(|| unfit(key, "a whole number of 32 bits"))
    }

    /// A finite number with a fraction, if it is there.
    ///
    /// # Errors
    ///
    /// [`GgufError::Unfit`] if it is something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() => Ok(Some(number)),
            Some(_) => Err(unfit(key, "a finite number with a fraction")),
        }
    }

    /// A truth value, if it is there.
    ///
    /// # Errors
    ///
    /// [`GgufError::Unfit`] if it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(unfit(key, "a truth value")),
        }
    }

    /// Text, if it is there.
    ///
    /// # Errors
    ///
    /// [`GgufError::Unfit`] if it is something else.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(unfit(key, "text")),
        }
    }

    /// An array, if it is there.
    ///
    /// # Errors
    ///
    /// [`GgufError::Unfit`] if it is something else.
    pub fn array(&self, key: &str) -> Result<Option<Array<'a>>, GgufError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(_) => Err(unfit(key, "an array")),
        }
    }
}

impl<'a> Array<'a> {
    /// How many values there are.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The values, one after the other.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let kind = self.kind;
        let mut reader = Reader {
            file: self.bytes,
            at: 0,
        };
        // Every element was read before, so none is an error now.
        (0..self.count).map_while(move |_| reader.scalar(kind, "").ok())
    }

    /// The texts, if this is an array of text.
    pub fn texts(&self) -> Option<impl Iterator<Item = &'a str> + use<'a>> {
        (self.kind == Kind::Text).then(|| {
            self.values().filter_map(|value| match value {
                Value::Text(text) => Some(text),
                Value::Unsigned(_)
                | Value::Signed(_)
                | Value::Float(_)
                | Value::Bool(_)
                | Value::Array(_) => None,
            })
        })
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.count, self.kind)
    }
}

impl<'a> Tensor<'a> {
    /// Its name.
    pub const fn name(&self) -> &'a str {
        self.name
    }

    /// Its dimensions, the one whose elements are neighbours first.
    pub fn dimensions(&self) -> &[usize] {
        &self.dimensions[..self.rank]
    }

    /// How its numbers are written.
    pub const fn kind(&self) -> TensorType {
        self.kind
    }

    /// Its bytes: as many as shape and type ask for.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Where in the file its bytes are.
    pub const fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.bytes.len()
    }
}

impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor")
            .field("name", &self.name)
            .field("dimensions", &self.dimensions())
            .field("kind", &self.kind)
            .field("range", &self.range())
            .finish()
    }
}

impl TensorType {
    /// The elements of a block, and its bytes.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 | Self::I32 => (1, 4),
            Self::F16 | Self::Bf16 | Self::I16 => (1, 2),
            Self::F64 | Self::I64 => (1, 8),
            Self::I8 => (1, 1),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// The number that stands for it in a file.
    pub const fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::I8 => 24,
            Self::I16 => 25,
            Self::I32 => 26,
            Self::I64 => 27,
            Self::F64 => 28,
            Self::Bf16 => 30,
        }
    }

    fn numbered(number: u32) -> Option<Self> {
        TYPES.into_iter().find(|kind| kind.number() == number)
    }
}

const TYPES: [TensorType; 18] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::Bf16,
    TensorType::F64,
    TensorType::I8,
    TensorType::I16,
    TensorType::I32,
    TensorType::I64,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q2K,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
];

/// A type of the metadata, without arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    U64,
    I64,
    F64,
}

const ARRAY_NUMBER: u32 = 9;

impl Kind {
    const fn numbered(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Text,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of one in the file, at least.
    const fn bytes_min(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

/// A tensor before it is known where its data is.
struct Heading<'a> {
    name: &'a str,
    dimensions: [usize; DIMENSIONS_MAX],
    rank: usize,
    kind: TensorType,
    bytes: u64,
    offset: u64,
}

fn metadata<'a>(
    reader: &mut Reader<'a>,
    entries: u64,
) -> Result<BTreeMap<&'a str, Value<'a>>, GgufError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = reader.text("a name in the metadata", GGUF_KEY_BYTES_MAX)?;
        let value = reader.value(key)?;
        if metadata.insert(key, value).is_some() {
            return Err(GgufError::Duplicate {
                what: "entries of metadata",
                name: key.to_owned(),
            });
        }
    }
    Ok(metadata)
}

fn alignment(metadata: &BTreeMap<&str, Value<'_>>) -> Result<u32, GgufError> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT_DEFAULT),
        Some(Value::Unsigned(bytes)) => u32::try_from(*bytes)
            .ok()
            .filter(|bytes| bytes.is_power_of_two())
            .filter(|bytes| (8..=GGUF_ALIGNMENT_MAX).contains(bytes))
            .ok_or(GgufError::Alignment),
        Some(_) => Err(GgufError::Alignment),
    }
}

fn headings<'a>(reader: &mut Reader<'a>, count: u64) -> Result<Vec<Heading<'a>>, GgufError> {
    // Grows with what is read; the count alone reserves nothing.
    let mut headings = Vec::new();
    for _ in 0..count {
        headings.push(heading(reader)?);
    }
    Ok(headings)
}

fn heading<'a>(reader: &mut Reader<'a>) -> Result<Heading<'a>, GgufError> {
    let name = reader.text("a tensor's name", GGUF_KEY_BYTES_MAX)?;
    let wrong = |why| GgufError::Shape {
        name: name.to_owned(),
        why,
    };
    let rank = usize::try_from(reader.u32("a tensor's shape")?).unwrap_or(usize::MAX);
    if !(1..=DIMENSIONS_MAX).contains(&rank) {
        return Err(wrong("it must have one to four dimensions"));
    }
    let mut dimensions = [1; DIMENSIONS_MAX];
    for dimension in &mut dimensions[..rank] {
        let elements = reader.u64("a tensor's shape")?;
        *dimension = usize::try_from(elements).map_err(|_| wrong("it is too large"))?;
        if *dimension == 0 {
            return Err(wrong("a dimension is 0"));
        }
    }
    let number = reader.u32("a tensor's type")?;
    let kind = TensorType::numbered(number).ok_or_else(|| GgufError::TensorType {
        name: name.to_owned(),
        kind: number,
    })?;
    let offset = reader.u64("a tensor's offset")?;
    let (elements, block_bytes) = kind.block();
    if !dimensions[0].is_multiple_of(elements) {
        return Err(wrong("its rows are no whole blocks of its type"));
    }
    let blocks = dimensions[1..]
        .iter()
        .try_fold(dimensions[0] / elements, |all, more| all.checked_mul(*more));
    let bytes = blocks
        .and_then(|blocks| blocks.checked_mul(block_bytes))
        .and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or_else(|| wrong("it is too large"))?;
    Ok(Heading {
        name,
        dimensions,
        rank,
        kind,
        bytes,
        offset,
    })
}

/// The tensors with their bytes, `begin` being where all data begins.
fn placed<'a>(
    file: &'a [u8],
    begin: usize,
    alignment: u32,
    mut headings: Vec<Heading<'a>>,
) -> Result<BTreeMap<&'a str, Tensor<'a>>, GgufError> {
    let data = file.get(begin..).unwrap_or_default();
    headings.sort_by_key(|heading| heading.offset);
    let mut tensors = BTreeMap::new();
    let mut before: Option<(&str, u64)> = None;
    for heading in headings {
        if !heading.offset.is_multiple_of(u64::from(alignment)) {
            return Err(GgufError::Unaligned(heading.name.to_owned()));
        }
        let end = heading.offset.checked_add(heading.bytes);
        let range = end.and_then(|end| {
            Some(usize::try_from(heading.offset).ok()?..usize::try_from(end).ok()?)
        });
        let bytes = range.clone().and_then(|range| data.get(range));
        let (Some(end), Some(range), Some(bytes)) = (end, range, bytes) else {
            return Err(GgufError::Outside {
                name: heading.name.to_owned(),
                offset: heading.offset,
                bytes: heading.bytes,
                room: u64::try_from(data.len()).unwrap_or(u64::MAX),
            });
        };
        if let Some((name, end_before)) = before
            && heading.offset < end_before
        {
            return Err(GgufError::Overlap(name.to_owned(), heading.name.to_owned()));
        }
        before = Some((heading.name, end));
        let tensor = Tensor {
            name: heading.name,
            dimensions: heading.dimensions,
            rank: heading.rank,
            kind: heading.kind,
            offset: begin + range.start,
            bytes,
        };
        if tensors.insert(heading.name, tensor).is_some() {
            return Err(GgufError::Duplicate {
                what: "tensors",
                name: heading.name.to_owned(),
            });
        }
    }
    Ok(tensors)
}

/// The file, and how far it has been read.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> u64 {
        u64::try_from(self.file.len().saturating_sub(self.at)).unwrap_or(u64::MAX)
    }

    fn take(&mut self, bytes: usize, what: &'static str) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(bytes);
        let taken = end.and_then(|end| self.file.get(self.at..end));
        let taken = taken.ok_or(GgufError::Ends { what, at: self.at })?;
        self.at += bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let at = self.at;
        let taken = self.take(N, what)?;
        taken.try_into().map_err(|_| GgufError::Ends { what, at })
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn text(&mut self, what: &'static str, bytes_max: u64) -> Result<&'a str, GgufError> {
        let length = self.u64(what)?;
        within("bytes of text", length, bytes_max, self.left())?;
        let at = self.at;
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX), what)?;
        str::from_utf8(bytes).map_err(|_| GgufError::Utf8 { what, at })
    }

    fn value(&mut self, key: &str) -> Result<Value<'a>, GgufError> {
        let number = self.u32("a type in the metadata")?;
        if number != ARRAY_NUMBER {
            let kind = kind(key, number)?;
            return self.scalar(kind, key);
        }
        let number = self.u32("a type in the metadata")?;
        if number == ARRAY_NUMBER {
            return Err(GgufError::Nested(key.to_owned()));
        }
        let kind = kind(key, number)?;
        let count = self.u64("the length of an array")?;
        let room = self.left() / kind.bytes_min();
        within("elements of an array", count, GGUF_ARRAY_ELEMENTS_MAX, room)?;
        let begin = self.at;
        for _ in 0..count {
            self.scalar(kind, key)?;
        }
        Ok(Value::Array(Array {
            kind,
            count: usize::try_from(count).unwrap_or(usize::MAX),
            bytes: &self.file[begin..self.at],
        }))
    }

    fn scalar(&mut self, kind: Kind, key: &str) -> Result<Value<'a>, GgufError> {
        const WHAT: &str = "a value of the metadata";
        Ok(match kind {
            Kind::U8 => Value::Unsigned(u8::from_le_bytes(self.array(WHAT)?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(self.array(WHAT)?).into()),
            Kind::U32 => Value::Unsigned(u32::from_le_bytes(self.array(WHAT)?).into()),
            Kind::U64 => Value::Unsigned(u64::from_le_bytes(self.array(WHAT)?)),
            Kind::I8 => Value::Signed(i8::from_le_bytes(self.array(WHAT)?).into()),
            Kind::I16 => Value::Signed(i16::from_le_bytes(self.array(WHAT)?).into()),
            Kind::I32 => Value::Signed(i32::from_le_bytes(self.array(WHAT)?).into()),
            Kind::I64 => Value::Signed(i64::from_le_bytes(self.array(WHAT)?)),
            Kind::F32 => Value::Float(f32::from_le_bytes(self.array(WHAT)?).into()),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.array(WHAT)?)),
            Kind::Bool => match self.array::<1>(WHAT)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [_] => return Err(GgufError::Bool(key.to_owned())),
            },
            Kind::Text => Value::Text(self.text(WHAT, GGUF_TEXT_BYTES_MAX)?),
        })
    }
}

fn kind(key: &str, number: u32) -> Result<Kind, GgufError> {
    Kind::numbered(number).ok_or_else(|| GgufError::ValueType {
        key: key.to_owned(),
        kind: number,
    })
}

fn within(what: &'static str, count: u64, most: u64, room: u64) -> Result<(), GgufError> {
    let max = most.min(room);
    if count > max {
        return Err(GgufError::Count { what, count, max });
    }
    Ok(())
}

fn unfit(key: &str, wanted: &'static str) -> GgufError {
    GgufError::Unfit {
        key: key.to_owned(),
        wanted,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::testing::{Writer, tiny_of};

    fn parse(file: &[u8]) -> GgufError {
        Gguf::parse(file).unwrap_err()
    }

    /// With a change at a place that is found by what stands there.
    fn changed(file: &[u8], find: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
        let at = file
            .windows(find.len())
            .position(|window| window == find)
            .unwrap();
        let mut file = file.to_vec();
        file[at + offset..][..bytes.len()].copy_from_slice(bytes);
        file
    }

    fn small() -> Writer {
        let mut file = Writer::default();
        file.number("a.number", 7)
            .float("a.float", 0.5)
            .flag("a.flag", true)
            .text("a.text", "words")
            .texts("texts", &["one".to_owned(), "two".to_owned()])
            .numbers("numbers", &[-1, 2])
            .tensor("first", &[32, 2], 3, vec![1; 40])
            .tensor("second", &[5], 0, vec![2; 20]);
        file
    }

    #[test]
    fn what_was_written_is_read() {
        let file = small().file();
        let gguf = Gguf::parse(&file).unwrap();
        assert_eq!((gguf.version(), gguf.alignment()), (3, 32));
        assert_eq!(gguf.number("a.number"), Ok(Some(7)));
        assert_eq!(gguf.float("a.float"), Ok(Some(0.5)));
        assert_eq!(gguf.flag("a.flag"), Ok(Some(true)));
        assert_eq!(gguf.text("a.text"), Ok(Some("words")));
        assert_eq!(gguf.text("b"), Ok(None));
        assert!(matches!(gguf.text("a.flag"), Err(GgufError::Unfit { .. })));
        let texts = gguf.array("texts").unwrap().unwrap();
        assert_eq!(texts.texts().unwrap().collect::<Vec<_>>(), ["one", "two"]);
        let numbers = gguf.array("numbers").unwrap().unwrap();
        let values: Vec<Value<'_>> = numbers.values().collect();
        assert_eq!(values, [Value::Signed(-1), Value::Signed(2)]);
        assert!(numbers.texts().is_none());
        let second = gguf.tensor("second").unwrap();
        assert_eq!(
            (second.dimensions(), second.kind()),
            (&[5][..], TensorType::F32)
        );
        assert_eq!(
            (second.bytes(), &file[second.range()]),
            (&[2; 20][..], &[2; 20][..])
        );
        assert_eq!(gguf.tensor("first").unwrap().bytes(), [1; 40]);
    }

    #[test]
    fn every_lie_in_a_head_is_refused_in_words() {
        let file = small().file();
        let shape = |bytes: &[u8]| changed(&file, b"first", 5, bytes);
        let dimensions = |a: u64, b: u64| {
            shape(&[&2_u32.to_le_bytes()[..], &a.to_le_bytes(), &b.to_le_bytes()].concat())
        };
        let count = |at: usize, count: u64| changed(&file, b"GGUF", at, &count.to_le_bytes());
        let offset = |offset: u64| changed(&file, b"second", 6 + 4 + 8 + 4, &offset.to_le_bytes());
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (b"GGU".to_vec(), "does not begin with the letters GGUF"),
            (
                b"ggml\x03\0\0\0".to_vec(),
                "does not begin with the letters GGUF",
            ),
            (changed(&file, b"GGUF", 4, &[1]), "GGUF of version 1"),
            (changed(&file, b"GGUF", 4, &[0, 0, 0, 3]), "big-endian"),
            (count(8, u64::MAX), "18446744073709551615 tensors"),
            (count(16, 1 << 40), "1099511627776 entries of metadata"),
            (
                changed(&file, b"a.text", 10, &[255; 8]),
                "18446744073709551615 bytes of text",
            ),
            (
                changed(&file, b"a.text", 10, &(1_u64 << 62).to_le_bytes()),
                "bytes of text",
            ),
            (changed(&file, b"words", 0, &[0xff]), "not UTF-8"),
            (changed(&file, b"a.flag", 6, &[13]), "unknown type 13"),
            (changed(&file, b"a.flag", 10, &[2]), "neither 0 nor 1"),
            (changed(&file, b"texts", 9, &[9]), "an array of arrays"),
            (
                changed(&file, b"numbers", 15, &[255; 8]),
                "elements of an array",
            ),
            (changed(&file, b"a.number", 0, b"\x61.float"), "type"),
            (shape(&[0]), "one to four dimensions"),
            (shape(&[5]), "one to four dimensions"),
            (dimensions(0, 2), "a dimension is 0"),
            (dimensions(31, 2), "no whole blocks"),
            (dimensions(1 << 40, 1 << 40), "it is too large"),
            (dimensions(u64::MAX - 31, 2), "it is too large"),
            (dimensions(32, 1 << 50), "was it copied in full?"),
            (changed(&file, b"first", 5 + 4 + 16, &[99]), "the type 99"),
            (offset(u64::MAX - 31), "was it copied in full?"),
            (offset(65), "multiple of the file's alignment"),
            (offset(32), "overlap"),
            (changed(&file, b"second", 0, b"first\0"), "overlap"),
        ];
        for (file, words) in cases {
            match Gguf::parse(&file) {
                Err(error) => {
                    let said = error.to_string();
                    assert!(said.contains(words) || words == "type", "{said} / {words}");
                }
                Ok(_) => assert!(words == "overlap" || words == "type", "{words}"),
            }
        }
        assert!(matches!(parse(&offset(32)), GgufError::Overlap(..)));
    }

    #[test]
    fn names_are_there_once() {
        let mut file = small();
        file.text("b.text", "more")
            .tensor("third", &[1], 0, vec![0; 4]);
        let file = file.file();
        let twice = |error| matches!(error, GgufError::Duplicate { .. });
        assert!(twice(parse(&changed(&file, b"b.text", 0, b"a.text"))));
        assert!(twice(parse(&changed(&file, b"third", 0, b"first"))));
    }

    #[test]
    fn alignment_is_a_power_of_two() {
        for (alignment, is_good) in [
            (0, false),
            (1, false),
            (8, true),
            (48, false),
            (1 << 17, false),
        ] {
            let mut file = Writer::default();
            file.number(ALIGNMENT_KEY, alignment);
            assert_eq!(Gguf::parse(&file.file()).is_ok(), is_good, "{alignment}");
        }
    }

    #[test]
    fn a_file_that_ends_early_is_refused_wherever_it_ends() {
        let file = small().file();
        for length in 0..file.len() {
            parse(&file[..length]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn changed_bytes_never_panic(
            changes in prop::collection::vec((0..1_usize << 14, any::<u8>()), 1..12),
        ) {
            let mut file = small().file();
            for (at, byte) in &changes {
                let at = at % file.len();
                file[at] = *byte;
            }
            if let Ok(gguf) = Gguf::parse(&file) {
                for (_, value) in gguf.metadata() {
                    if let Value::Array(array) = value {
                        prop_assert_eq!(array.values().count(), array.len());
                    }
                }
                for tensor in gguf.tensors() {
                    prop_assert_eq!(&file[tensor.range()], tensor.bytes());
                }
            }
        }
    }

    proptest! {
        // Each reads a vocabulary.
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn changed_models_are_refused_or_can_be_arranged(
            changes in prop::collection::vec((0..1_usize << 14, any::<u8>()), 1..6),
        ) {
            use crate::model::{chat::Chat, cpu::Weights, llama::Llama, tokenizer::Tokenizer};
            for (architecture, kind) in [
                ("llama", TensorType::Q4_0),
                ("qwen2", TensorType::Q5_0),
                ("qwen3", TensorType::Q6K),
            ] {
                let mut file = tiny_of(architecture, kind, false).file();
                for (at, byte) in &changes {
                    file[*at] = *byte;
                }
                let Ok(gguf) = Gguf::parse(&file) else { continue };
                if let Ok(model) = Llama::read(&gguf) {
                    Weights::new(&model);
                }
                if let Ok(tokenizer) = Tokenizer::read(&gguf) {
                    let _ = tokenizer.encode_prompt("he <|im_end|> [whole]");
                    let _ = Chat::read(&gguf, &tokenizer);
                }
            }
        }
    }
}
