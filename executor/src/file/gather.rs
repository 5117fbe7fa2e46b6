//! What the parts of a section gather beside the program itself: inputs, the places in
//! which units differ, and the files that outputs are written to.
//!
//! Where the job is no array, text is taken as it stands and nothing is gathered but
//! inputs. Inputs that units have for themselves come after all that they share, so
//! their numbers are known only at the end: until then they count from [`OWN`].

use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{self, IntoDeserializer, Visitor},
};
use suanli_protocol::{
    limits::ORDER_INPUTS_MAX,
    wire::{List, Utf8},
};
use toml::Spanned;

use super::{
    FileError, Here, InputFile,
    array::{Array, ArrayFile, Pattern},
};
use crate::{
    limits::{COLUMNS_MAX, INPUTS_MAX},
    units::{Column, Place, Values},
};

/// What stands for the number of a unit's first own input until it is known.
const OWN: u32 = 1 << 16;

/// Gathers while a section is read.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// What all units read.
    shared: Vec<InputFile>,
    /// What each reads of its own file.
    own: Vec<OwnRange>,
    columns: Vec<Column>,
    shown: Vec<(String, Pattern)>,
    /// What is written where, and by which unit.
    written: BTreeMap<PathBuf, u32>,
}

/// A part of each unit's own file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OwnRange {
    offset: u64,
    /// All that is left if not given.
    length: Option<u64>,
}

/// All that was gathered.
pub(super) struct Outcome {
    pub(super) inputs: Vec<InputFile>,
    pub(super) inputs_each: u16,
    pub(super) columns: Vec<Column>,
    pub(super) shown: Vec<(String, Pattern)>,
}

/// What a section's `file` is.
pub(super) enum FileOf<'a> {
    /// One for all units.
    Shared(PathBuf),
    /// Each unit's own.
    Own(&'a [ArrayFile]),
}

impl Gathered {
    /// The number of an input that all units share; two readers of one share it.
    pub(super) fn shared(
        &mut self,
        here: &Here<'_>,
        at: &Spanned<String>,
        input: InputFile,
    ) -> Result<u32, FileError> {
        let known = self.shared.iter().position(|known| *known == input);
        let index = known.unwrap_or(self.shared.len());
        if known.is_none() {
            self.has_room(here, at)?;
            self.shared.push(input);
        }
        Ok(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// The number, for now, of a part of each unit's own file.
    pub(super) fn own(
        &mut self,
        here: &Here<'_>,
        at: &Spanned<String>,
        offset: u64,
        length: Option<u64>,
    ) -> Result<u32, FileError> {
        let range = OwnRange { offset, length };
        let known = self.own.iter().position(|known| *known == range);
        let index = known.unwrap_or(self.own.len());
        if known.is_none() {
            self.has_room(here, at)?;
            self.own.push(range);
        }
        Ok(u32::try_from(index).map_or(u32::MAX, |index| OWN + index))
    }

    fn has_room(&self, here: &Here<'_>, at: &Spanned<String>) -> Result<(), FileError> {
        if self.shared.len() + self.own.len() < INPUTS_MAX {
            return Ok(());
        }
        Err(here.error(at, format!("more than {INPUTS_MAX} input files")))
    }

    /// A whole file as an input.
    pub(super) fn whole(
        &mut self,
        here: &Here<'_>,
        file: &Spanned<String>,
    ) -> Result<u32, FileError> {
        match here.file(file)? {
            FileOf::Own(_) => self.own(here, file, 0, None),
            FileOf::Shared(path) => {
                let input = InputFile {
                    length: here.file_bytes(file, &path)?,
                    path,
                    offset: 0,
                    made: None,
                };
                self.shared(here, file, input)
            }
        }
    }

    /// The number of an input, now that all are known.
    pub(super) fn number(&self, index: u32) -> u32 {
        let shared = u32::try_from(self.shared.len()).unwrap_or(u32::MAX);
        match index.checked_sub(OWN) {
            Some(own) => shared.saturating_add(own),
            None => index,
        }
    }

    /// Text that goes into a place of a program; the first unit's.
    pub(super) fn text<const MAX: usize>(
        &mut self,
        here: &Here<'_>,
        at: &Spanned<String>,
        (place, name): (Place, &str),
    ) -> Result<Utf8<MAX>, FileError> {
        let bounded = |text: String| {
            Utf8::try_from(text).map_err(|error| here.error(at, format!("{name}: {error}")))
        };
        let Some((array, pattern)) = here.pattern(at)? else {
            return bounded(at.get_ref().clone());
        };
        let first = bounded(pattern.for_unit(array, 0))?;
        self.has_place(here, at)?;
        if pattern.is_unit() {
            self.differ(place, Values::Unit, name, pattern);
        } else if !pattern.is_plain() {
            let texts = (0..array.units()).map(|unit| {
                let text = Utf8::try_from(pattern.for_unit(array, unit));
                text.map_err(|error| here.error(at, format!("{name} of unit {unit}: {error}")))
            });
            let texts = texts.collect::<Result<Vec<_>, _>>()?;
            let texts = List::truncated(texts);
            self.differ(place, Values::Texts(texts), name, pattern);
        }
        Ok(first)
    }

    /// The constant that text stands for; the first unit's.
    pub(super) fn constant(
        &mut self,
        here: &Here<'_>,
        (at, text): (&Spanned<ConstantValue>, &str),
        (place, name): (Place, &str),
    ) -> Result<f64, FileError> {
        let numbers = self.numbers(here, at, text, name, |text| {
            constant_of(text).filter(|number| number.is_finite())
        })?;
        let first = numbers.list.first().copied().unwrap_or_default();
        let bits = numbers.list.iter().map(|number| number.to_bits());
        let values = if numbers.pattern.is_unit() {
            Values::Unit
        } else {
            Values::Constants(List::truncated(bits.collect()))
        };
        self.differ(place, values, name, numbers.pattern);
        Ok(first)
    }

    /// The bytes of inline words; text among them is the first unit's.
    pub(super) fn words<T: WordType>(
        &mut self,
        here: &Here<'_>,
        (buffer, name): (u16, &str),
        words: &[Spanned<Word<T>>],
    ) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        for (index, word) in words.iter().enumerate() {
            let bits = match word.get_ref() {
                Word::Value(value) => value.bits(),
                Word::Text(text) => {
                    let index = u32::try_from(index).unwrap_or(u32::MAX);
                    let name = format!("word {index} of {name}");
                    let numbers = self.numbers(here, word, text, &name, T::parse)?;
                    let all = numbers.list.iter().map(|value| value.bits());
                    let values = if numbers.pattern.is_unit() && T::COUNTS {
                        Values::Unit
                    } else {
                        Values::Words(List::truncated(all.collect()))
                    };
                    let place = Place::Word {
                        buffer,
                        word: index,
                    };
                    self.differ(place, values, &name, numbers.pattern);
                    numbers.list.first().map_or(0, |value| value.bits())
                }
            };
            bytes.extend(bits.to_le_bytes());
        }
        Ok(bytes)
    }

    /// What text stands for, in each unit.
    fn numbers<A, T>(
        &self,
        here: &Here<'_>,
        at: &Spanned<A>,
        text: &str,
        name: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Numbers<T>, FileError> {
        let Some(array) = here.array else {
            let message = if text.contains('{') {
                format!(
                    "`{}` in {name}: only units of an array differ; add [array] with a `range`, `list` or `files`",
                    text.escape_debug()
                )
            } else {
                format!("{name} is text: a number is needed, without quotes")
            };
            return Err(here.error(at, message));
        };
        self.has_place(here, at)?;
        let pattern = Pattern::parse(text, array);
        let pattern = pattern.map_err(|message| here.error(at, format!("{name}: {message}")))?;
        let list = (0..array.units()).map(|unit| {
            let text = pattern.for_unit(array, unit);
            parse(text.trim()).ok_or_else(|| {
                let message = format!(
                    "{name} is `{}` in unit {unit}: a number of its type is needed",
                    text.escape_debug()
                );
                here.error(at, message)
            })
        });
        Ok(Numbers {
            list: list.collect::<Result<Vec<_>, _>>()?,
            pattern,
        })
    }

    /// Whether units may differ in one place more.
    fn has_place<A>(&self, here: &Here<'_>, at: &Spanned<A>) -> Result<(), FileError> {
        if self.columns.len() < COLUMNS_MAX {
            return Ok(());
        }
        let message =
            format!("units differ in more than {COLUMNS_MAX} places: give them files of their own");
        Err(here.error(at, message))
    }

    fn differ(&mut self, place: Place, values: Values, name: &str, pattern: Pattern) {
        self.columns.push(Column { place, values });
        self.shown.push((name.to_owned(), pattern));
    }

    /// Where an output is written, unit by unit; once for a job that is no array.
    pub(super) fn output(
        &mut self,
        here: &Here<'_>,
        file: &Spanned<String>,
    ) -> Result<Vec<PathBuf>, FileError> {
        let Some((array, pattern)) = here.pattern(file)? else {
            return Ok(vec![here.inside(file, file.get_ref())?]);
        };
        let mut files = Vec::new();
        for unit in 0..array.units() {
            let path = here.inside(file, &pattern.for_unit(array, unit))?;
            if let Some(other) = self.written.insert(path.clone(), unit) {
                return Err(here.error(file, overwritten(&path, other, unit)));
            }
            files.push(path);
        }
        if !pattern.is_plain() {
            self.shown.push(("writes".to_owned(), pattern));
        }
        Ok(files)
    }

    /// All of it, and the files of all units in their order.
    pub(super) fn finish(
        self,
        here: &Here<'_>,
        at: &Spanned<String>,
    ) -> Result<Outcome, FileError> {
        let files = here.array.and_then(Array::files).unwrap_or_default();
        let mut inputs = self.shared;
        let own = self.own.len();
        let all = own.saturating_mul(files.len()).saturating_add(inputs.len());
        if all > ORDER_INPUTS_MAX {
            let message = format!(
                "{own} inputs of each of {} files, and {} for all: a job names {ORDER_INPUTS_MAX} at most",
                files.len(),
                inputs.len()
            );
            return Err(here.error(at, message));
        }
        for file in files {
            inputs.extend(self.own.iter().map(|range| InputFile {
                path: file.path.clone(),
                offset: range.offset,
                length: (range.length).unwrap_or_else(|| file.bytes.saturating_sub(range.offset)),
                made: None,
            }));
        }
        Ok(Outcome {
            inputs,
            inputs_each: u16::try_from(own).unwrap_or(u16::MAX),
            columns: self.columns,
            shown: self.shown,
        })
    }
}

/// What text stands for in each unit.
struct Numbers<T> {
    list: Vec<T>,
    pattern: Pattern,
}

fn overwritten(path: &Path, first: u32, second: u32) -> String {
    let path = path.display();
    if first == second {
        format!("two outputs of unit {first} are written to `{path}`: give each its own name")
    } else {
        format!(
            "units {first} and {second} would overwrite each other's file `{path}`: put {{unit}} in its name"
        )
    }
}

impl Here<'_> {
    /// Text that units may fill in; nothing where the job is no array.
    pub(super) fn pattern(
        &self,
        text: &Spanned<String>,
    ) -> Result<Option<(&Array, Pattern)>, FileError> {
        let Some(array) = self.array else {
            return Ok(None);
        };
        let pattern = Pattern::parse(text.get_ref(), array);
        let pattern = pattern.map_err(|message| self.error(text, message))?;
        Ok(Some((array, pattern)))
    }

    /// One file, or each unit's own.
    pub(super) fn file(&self, file: &Spanned<String>) -> Result<FileOf<'_>, FileError> {
        let Some((array, pattern)) = self.pattern(file)? else {
            return Ok(FileOf::Shared(self.path(file.get_ref())));
        };
        if pattern.is_plain() {
            return Ok(FileOf::Shared(self.path(&pattern.for_unit(array, 0))));
        }
        let message = match array.files() {
            Some(files) if pattern.is_item() => return Ok(FileOf::Own(files)),
            Some(_) => "a unit's own file is `{item}` and nothing else; which files, [array] says",
            None => {
                "units have files of their own only in an array over files: write `files = \"*.dat\"` in [array], and `{item}` here"
            }
        };
        Err(self.error(file, message.to_owned()))
    }
}

/// An inline word: a number, or text that is one once a unit has filled it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word<T> {
    /// The same in all units.
    Value(T),
    /// As written.
    Text(String),
}

/// Numbers of four bytes.
pub trait WordType: Copy {
    /// Whether its bits for a count are the count.
    const COUNTS: bool;

    /// Its bits, least significant first.
    fn bits(self) -> u32;

    /// From text.
    fn parse(text: &str) -> Option<Self>;
}

impl WordType for u32 {
    const COUNTS: bool = true;

    fn bits(self) -> u32 {
        self
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl WordType for i32 {
    const COUNTS: bool = true;

    fn bits(self) -> u32 {
        self.cast_unsigned()
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl WordType for f32 {
    const COUNTS: bool = false;

    fn bits(self) -> u32 {
        self.to_bits()
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordVisitor(PhantomData))
    }
}

struct WordVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for WordVisitor<T> {
    type Value = Word<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, or text like \"{unit}\" in an array")
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Word<T>, E> {
        T::deserialize(value.into_deserializer()).map(Word::Value)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Word<T>, E> {
        T::deserialize(value.into_deserializer()).map(Word::Value)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Word<T>, E> {
        Ok(Word::Text(text.to_owned()))
    }
}

/// The value of an `override`: a number, a truth value, or text that is one once a unit
/// has filled it in.
#[derive(Debug, Clone, PartialEq)]
pub enum ConstantValue {
    /// The same in all units.
    Number(f64),
    /// As written.
    Text(String),
}

/// What a constant's text stands for: what it would without its quotes.
fn constant_of(text: &str) -> Option<f64> {
    match text {
        "true" => Some(1.0),
        "false" => Some(0.0),
        _ => match text.parse::<i64>() {
            Ok(integer) => narrow(integer),
            Err(_) => text.parse().ok(),
        },
    }
}

/// An override has 32 bits: a larger integer is wrong in any type.
fn narrow(value: i64) -> Option<f64> {
    let signed = i32::try_from(value).map(f64::from);
    signed.or_else(|_| u32::try_from(value).map(f64::from)).ok()
}

impl<'de> Deserialize<'de> for ConstantValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ConstantVisitor)
    }
}

struct ConstantVisitor;

impl Visitor<'_> for ConstantVisitor {
    type Value = ConstantValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a truth value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<ConstantValue, E> {
        Ok(ConstantValue::Number(f64::from(u8::from(value))))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<ConstantValue, E> {
        narrow(value).map(ConstantValue::Number).ok_or_else(|| {
            E::invalid_value(de::Unexpected::Signed(value), &"an integer of 32 bits")
        })
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<ConstantValue, E> {
        Ok(ConstantValue::Number(value))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ConstantValue, E> {
        Ok(ConstantValue::Text(text.to_owned()))
    }
}
