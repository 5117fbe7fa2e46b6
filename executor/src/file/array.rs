//! The `[array]` section of a job file: one job of many units.
//!
//! ```toml
//! [array]
//! range = [0, 100]                  # or list = ["a", "b"], list = [{ x = 1, y = 2 }, …],
//!                                   # or files = "data/*.png", files = ["a.u8", "b.u8"]
//! parallel = 64                     # optional: the most agreements at once
//! max_failures = 0                  # optional: so many units may fail before the job does
//! ```
//!
//! Text elsewhere in the file may then say `{unit}` (0, 1, 2, …), `{item}` (what the
//! array has for that unit) and `{item.x}` (of a table). A [`Pattern`] is such text. In
//! an array over files, `file = "{item}"` is the file itself; in other text `{item}` is
//! its name without its folder.
//!
//! Absent: what becomes of the text. Sections that hold it say where units differ.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use toml::Spanned;

use super::{FileError, Here, distance};
use crate::limits::{ARRAY_FILES_MAX, PARALLEL_MAX, UNITS_MAX};

/// Agreements at once where the file does not say.
const PARALLEL_DEFAULT: u16 = 64;

/// The `[array]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArraySection {
    /// First number and the end, which is not in it, and the step if it is not 1.
    pub range: Option<Spanned<Vec<i64>>>,
    /// One element for each unit.
    pub list: Option<Spanned<Vec<Spanned<Element>>>>,
    /// One file for each unit.
    pub files: Option<Spanned<FilesEntry>>,
    /// The most agreements at once.
    pub parallel: Option<Spanned<u64>>,
    /// So many units may fail before the job does.
    pub max_failures: Option<Spanned<u64>>,
}

/// What a list has for one unit, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Element {
    /// A string, a number or a truth value.
    Text(String),
    /// Several of these, by name.
    Table(BTreeMap<String, String>),
}

/// Files: a pattern with `*` and `?`, or their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesEntry {
    /// All that match, sorted.
    Glob(String),
    /// These, in this order.
    Named(Vec<String>),
}

/// An `[array]` section that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    items: Items,
    /// The most agreements at once.
    pub parallel: u16,
    /// So many units may fail before the job does.
    pub max_failures: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Items {
    Range { first: i64, step: i64, count: usize },
    Texts(Vec<String>),
    Tables(Vec<BTreeMap<String, String>>),
    Files(Vec<ArrayFile>),
}

/// A file of an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrayFile {
    /// Relative paths were taken from the job file's folder.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Text with places for what a unit has of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Unit,
    Item,
    Key(String),
}

impl ArraySection {
    /// Reads the section, and looks for the files that it names.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn resolve(&self, toml_text: &str, job_file: &Path) -> Result<Array, FileError> {
        let here = Here {
            toml_text,
            job_file,
            array: None,
        };
        let items = self.items(&here)?;
        let units = items.len();
        if !(1..=UNITS_MAX).contains(&units) {
            let message = format!("an array of {units} units: 1 to {UNITS_MAX} are allowed");
            return Err(here.error_at(self.at(), message));
        }
        let parallel = match &self.parallel {
            None => PARALLEL_DEFAULT,
            Some(given) => {
                let bounded = u16::try_from(*given.get_ref()).ok();
                let bounded = bounded.filter(|count| (1..=PARALLEL_MAX).contains(count));
                bounded.ok_or_else(|| {
                    let message = format!(
                        "`parallel` is {}: 1 to {PARALLEL_MAX} agreements at once are allowed",
                        given.get_ref()
                    );
                    here.error(given, message)
                })?
            }
        };
        let max_failures = self.max_failures.as_ref().map_or(0, |max| *max.get_ref());
        let fewer = u32::try_from(max_failures).ok();
        let fewer = fewer.filter(|_| max_failures == 0 || max_failures < units as u64);
        let max_failures = fewer.ok_or_else(|| {
            let at = self.max_failures.as_ref().map(Spanned::span);
            let message = format!(
                "`max_failures` is {max_failures} of {units} units: fewer than all may fail"
            );
            here.error_at(at.unwrap_or_default(), message)
        })?;
        Ok(Array {
            items,
            parallel,
            max_failures,
        })
    }

    /// Where its units are named.
    pub(super) fn at(&self) -> std::ops::Range<usize> {
        let range = self.range.as_ref().map(Spanned::span);
        let list = || self.list.as_ref().map(Spanned::span);
        let files = || self.files.as_ref().map(Spanned::span);
        range.or_else(list).or_else(files).unwrap_or_default()
    }

    fn items(&self, here: &Here<'_>) -> Result<Items, FileError> {
        match (&self.range, &self.list, &self.files) {
            (Some(range), None, None) => items_of_range(here, range),
            (None, Some(list), None) => items_of_list(here, list),
            (None, None, Some(files)) => items_of_files(here, files),
            (None, None, None) => {
                let at = here.toml_text.find("[array]").unwrap_or(0);
                let message = "[array] says nothing of its units: give `range = [first, end]`, `list = […]` or `files = \"*.png\"`";
                Err(here.error_at(at..at, message.to_owned()))
            }
            _ => {
                let message = "[array] has one of `range`, `list` and `files`, not two";
                let second = self.files.as_ref().map(Spanned::span);
                let second = second.or_else(|| self.list.as_ref().map(Spanned::span));
                Err(here.error_at(second.unwrap_or_default(), message.to_owned()))
            }
        }
    }
}

fn items_of_range(here: &Here<'_>, range: &Spanned<Vec<i64>>) -> Result<Items, FileError> {
    let (first, end, step) = match *range.get_ref().as_slice() {
        [first, end] => (first, end, 1),
        [first, end, step] => (first, end, step),
        _ => {
            let message = format!(
                "`range` has {} numbers: two are needed, the first and the end, which is not in it, and a step if it is not 1",
                range.get_ref().len()
            );
            return Err(here.error(range, message));
        }
    };
    if step < 1 {
        let message = format!("`range` has the step {step}: 1 is the least");
        return Err(here.error(range, message));
    }
    let last = end.checked_sub(1).and_then(|last| last.checked_sub(first));
    let count = last.filter(|last| *last >= 0).map(|last| last / step + 1);
    let count = count.and_then(|count| usize::try_from(count).ok());
    let Some(count) = count else {
        let message = format!(
            "`range` from {first} to {end} is empty: the end, which is not in it, comes after the first"
        );
        return Err(here.error(range, message));
    };
    Ok(Items::Range { first, step, count })
}

fn items_of_list(
    here: &Here<'_>,
    list: &Spanned<Vec<Spanned<Element>>>,
) -> Result<Items, FileError> {
    let elements = list.get_ref();
    let Some(first) = elements.first() else {
        let message = "`list` is empty: a unit needs an element";
        return Err(here.error(list, message.to_owned()));
    };
    let (mut texts, mut tables) = (Vec::new(), Vec::new());
    for element in elements {
        match (element.get_ref(), first.get_ref()) {
            (Element::Text(text), Element::Text(_)) => texts.push(text.clone()),
            (Element::Table(table), Element::Table(like)) if table.keys().eq(like.keys()) => {
                tables.push(table.clone());
            }
            (Element::Table(_), Element::Table(like)) => {
                let message = format!(
                    "the first element of `list` has the keys {}, this one has not: all have the same",
                    keys(like)
                );
                return Err(here.error(element, message));
            }
            (Element::Text(_), Element::Table(_)) | (Element::Table(_), Element::Text(_)) => {
                let message = "a `list` has tables or plain values, not both";
                return Err(here.error(element, message.to_owned()));
            }
        }
    }
    Ok(match first.get_ref() {
        Element::Text(_) => Items::Texts(texts),
        Element::Table(_) => Items::Tables(tables),
    })
}

fn items_of_files(here: &Here<'_>, entry: &Spanned<FilesEntry>) -> Result<Items, FileError> {
    let folder = here.job_file.parent().unwrap_or_else(|| Path::new(""));
    let paths = match entry.get_ref() {
        FilesEntry::Named(names) => names.iter().map(|name| folder.join(name)).collect(),
        FilesEntry::Glob(pattern) => matching(here, entry, folder, pattern)?,
    };
    if paths.len() > ARRAY_FILES_MAX {
        let message = format!(
            "{} files: at most {ARRAY_FILES_MAX} units may have one each",
            paths.len()
        );
        return Err(here.error(entry, message));
    }
    let files = paths.into_iter().map(|path| {
        let bytes = here.bytes_of(entry.span(), &path)?;
        if path.file_name().and_then(|name| name.to_str()).is_none() {
            let message = format!("the name of {} is no plain text", path.display());
            return Err(here.error(entry, message));
        }
        Ok(ArrayFile { path, bytes })
    });
    let files = files.collect::<Result<Vec<_>, _>>()?;
    if files.is_empty() {
        let message = "`files` names no file; paths count from the job file's folder";
        return Err(here.error(entry, message.to_owned()));
    }
    Ok(Items::Files(files))
}

/// All files that match, sorted by path.
fn matching(
    here: &Here<'_>,
    entry: &Spanned<FilesEntry>,
    folder: &Path,
    pattern: &str,
) -> Result<Vec<PathBuf>, FileError> {
    let whole = if Path::new(pattern).is_absolute() || folder.as_os_str().is_empty() {
        pattern.to_owned()
    } else {
        let folder = glob::Pattern::escape(&folder.to_string_lossy());
        format!("{folder}/{pattern}")
    };
    let found = glob::glob(&whole).map_err(|error| {
        let message = format!("`files`: {error}; `*` and `?` stand for parts of a name");
        here.error(entry, message)
    })?;
    let mut paths = Vec::new();
    for path in found {
        let path = path.map_err(|error| here.error(entry, error.to_string()))?;
        if path.is_file() {
            paths.push(path);
        }
        if paths.len() > ARRAY_FILES_MAX {
            let message = format!(
                "`{pattern}` matches more than {ARRAY_FILES_MAX} files: at most so many units may have one each"
            );
            return Err(here.error(entry, message));
        }
    }
    if paths.is_empty() {
        let message =
            format!("no file matches `{pattern}`; paths count from the job file's folder");
        return Err(here.error(entry, message));
    }
    paths.sort();
    Ok(paths)
}

impl Items {
    fn len(&self) -> usize {
        match self {
            Self::Range { count, .. } => *count,
            Self::Texts(texts) => texts.len(),
            Self::Tables(tables) => tables.len(),
            Self::Files(files) => files.len(),
        }
    }
}

impl Array {
    /// How many units there are.
    #[must_use]
    pub fn units(&self) -> u32 {
        u32::try_from(self.items.len()).unwrap_or(u32::MAX)
    }

    /// The files, if it is over files.
    #[must_use]
    pub fn files(&self) -> Option<&[ArrayFile]> {
        match &self.items {
            Items::Files(files) => Some(files),
            Items::Range { .. } | Items::Texts(_) | Items::Tables(_) => None,
        }
    }

    /// What the array has for a unit, for a person.
    #[must_use]
    pub fn item(&self, unit: u32) -> String {
        let index = usize::try_from(unit).unwrap_or(usize::MAX);
        match &self.items {
            Items::Tables(tables) => {
                let pairs = tables.get(index).into_iter().flatten();
                let pairs = pairs.map(|(key, value)| format!("{key} = {value}"));
                pairs.collect::<Vec<_>>().join(", ")
            }
            Items::Range { .. } | Items::Texts(_) | Items::Files(_) => self.text(index),
        }
    }

    /// `{item}`; nothing for what has none.
    fn text(&self, index: usize) -> String {
        match &self.items {
            Items::Range { first, step, .. } => {
                let index = i64::try_from(index).unwrap_or(i64::MAX);
                first
                    .saturating_add(index.saturating_mul(*step))
                    .to_string()
            }
            Items::Texts(texts) => texts.get(index).cloned().unwrap_or_default(),
            Items::Files(files) => {
                let name = files.get(index).and_then(|file| file.path.file_name());
                name.unwrap_or_default().to_string_lossy().into_owned()
            }
            Items::Tables(_) => String::new(),
        }
    }

    /// `{item.key}`; nothing for what has none.
    fn value(&self, index: usize, key: &str) -> &str {
        match &self.items {
            Items::Tables(tables) => {
                let value = tables.get(index).and_then(|table| table.get(key));
                value.map_or("", String::as_str)
            }
            Items::Range { .. } | Items::Texts(_) | Items::Files(_) => "",
        }
    }
}

impl Pattern {
    /// Reads text that may name what a unit has.
    ///
    /// # Errors
    /// A sentence on what is wrong with it, and what is allowed.
    pub fn parse(text: &str, array: &Array) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            if let Some(after) = from.strip_prefix("{{") {
                plain.push('{');
                rest = after;
            } else if let Some(after) = from.strip_prefix("}}") {
                plain.push('}');
                rest = after;
            } else if let Some((name, after)) =
                from.strip_prefix('{').and_then(|from| from.split_once('}'))
            {
                if !plain.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                }
                pieces.push(Piece::named(name.trim(), array)?);
                rest = after;
            } else {
                return Err(format!(
                    "`{}`: a brace stands alone; write `{{{{` or `}}}}` for a brace itself",
                    text.escape_debug()
                ));
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// The text for a unit.
    #[must_use]
    pub fn for_unit(&self, array: &Array, unit: u32) -> String {
        let index = usize::try_from(unit).unwrap_or(usize::MAX);
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(plain) => text.push_str(plain),
                Piece::Unit => text.push_str(&unit.to_string()),
                Piece::Item => text.push_str(&array.text(index)),
                Piece::Key(key) => text.push_str(array.value(index, key)),
            }
        }
        text
    }

    /// Whether it is the same for all units.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.0.iter().all(|piece| matches!(piece, Piece::Text(_)))
    }

    /// Whether it is the unit's number and nothing else.
    #[must_use]
    pub fn is_unit(&self) -> bool {
        self.0 == [Piece::Unit]
    }

    /// Whether it is the item and nothing else.
    #[must_use]
    pub fn is_item(&self) -> bool {
        self.0 == [Piece::Item]
    }
}

impl Piece {
    fn named(name: &str, array: &Array) -> Result<Self, String> {
        let table = match &array.items {
            Items::Tables(tables) => tables.first(),
            Items::Range { .. } | Items::Texts(_) | Items::Files(_) => None,
        };
        match (name, name.strip_prefix("item."), table) {
            ("unit", _, _) => Ok(Self::Unit),
            ("item", _, None) => Ok(Self::Item),
            ("item", _, Some(table)) => Err(format!(
                "`{{item}}` is a table here: name one of its keys, as in `{{item.{}}}`; there are: {}",
                table.keys().next().map_or("key", String::as_str),
                keys(table)
            )),
            (_, Some(key), Some(table)) if table.contains_key(key) => Ok(Self::Key(key.to_owned())),
            (_, Some(key), Some(table)) => Err(format!(
                "the array's tables have no key `{}`; there are: {}",
                key.escape_debug(),
                keys(table)
            )),
            (_, Some(_), None) => Err(format!(
                "`{{{}}}`: the array's items are no tables; write `{{item}}`",
                name.escape_debug()
            )),
            (_, None, _) => {
                let near = ["unit", "item"].map(|known| (distance(name, known), known));
                let near = near.into_iter().min().filter(|(edits, _)| *edits <= 2);
                let hint = match near {
                    Some((_, known)) => format!("did you mean `{{{known}}}`?"),
                    None => "there are `{unit}`, `{item}` and, of tables, `{item.key}`; write `{{` for a brace itself".to_owned(),
                };
                Err(format!("unknown `{{{}}}`; {hint}", name.escape_debug()))
            }
        }
    }
}

fn keys(table: &BTreeMap<String, String>) -> String {
    let keys = table.keys().map(String::as_str);
    keys.collect::<Vec<_>>().join(", ")
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number, a truth value, or a table of these")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Element, A::Error> {
        let mut table = BTreeMap::new();
        while let Some((key, Plain(value))) = map.next_entry::<String, Plain>()? {
            table.insert(key, value);
        }
        Ok(Element::Table(table))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
        PlainVisitor
            .visit_str(text)
            .map(|Plain(text)| Element::Text(text))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Element, E> {
        PlainVisitor
            .visit_bool(value)
            .map(|Plain(text)| Element::Text(text))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Element, E> {
        PlainVisitor
            .visit_i64(value)
            .map(|Plain(text)| Element::Text(text))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Element, E> {
        PlainVisitor
            .visit_f64(value)
            .map(|Plain(text)| Element::Text(text))
    }
}

/// A value that is no table, as text.
struct Plain(String);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor)
    }
}

struct PlainVisitor;

impl Visitor<'_> for PlainVisitor {
    type Value = Plain;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number or a truth value")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Plain, E> {
        Ok(Plain(text.to_owned()))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Plain, E> {
        Ok(Plain(value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Plain, E> {
        Ok(Plain(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Plain, E> {
        // With a point, as it was written: 1.0 is no integer.
        Ok(Plain(format!("{value:?}")))
    }
}

impl<'de> Deserialize<'de> for FilesEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FilesVisitor)
    }
}

struct FilesVisitor;

impl<'de> Visitor<'de> for FilesVisitor {
    type Value = FilesEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a pattern like \"data/*.png\", or a list of paths")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<FilesEntry, E> {
        Ok(FilesEntry::Glob(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<FilesEntry, A::Error> {
        let mut all = Vec::new();
        while let Some(name) = names.next_element()? {
            all.push(name);
        }
        Ok(FilesEntry::Named(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Job {
        array: ArraySection,
    }

    fn resolve(text: &str) -> Result<Array, FileError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [("b.u8", 2), ("a.u8", 1), ("c.txt", 3)] {
            std::fs::write(dir.path().join(name), vec![0; bytes]).unwrap();
        }
        let text = format!("[array]\n{text}");
        let job: Job = toml::from_str(&text).unwrap();
        job.array.resolve(&text, &dir.path().join("job.toml"))
    }

    fn texts(array: &Array, pattern: &str) -> Vec<String> {
        let pattern = Pattern::parse(pattern, array).unwrap();
        let units = 0..array.units();
        units.map(|unit| pattern.for_unit(array, unit)).collect()
    }

    #[test]
    fn patterns_are_filled_in_unit_by_unit() {
        let range = resolve("range = [-1, 2]\nparallel = 3").unwrap();
        assert_eq!(texts(&range, "{unit}:{item}"), ["0:-1", "1:0", "2:1"]);
        assert_eq!((range.parallel, range.max_failures), (3, 0));
        let steps = resolve("range = [0, 11, 5]").unwrap();
        assert_eq!(texts(&steps, "{unit}:{item}"), ["0:0", "1:5", "2:10"]);
        let steps = resolve("range = [0, 10, 5]").unwrap();
        assert_eq!(texts(&steps, "{item}"), ["0", "5"]);
        let list = resolve("list = [\"x y\", 2, 0.5, 1.0, true]\nmax_failures = 2").unwrap();
        assert_eq!(texts(&list, "{ item }"), ["x y", "2", "0.5", "1.0", "true"]);
        assert_eq!((list.parallel, list.max_failures), (64, 2));
        let tables = resolve("list = [{ x = 1, y = \"a\" }, { y = \"b\", x = 2 }]").unwrap();
        assert_eq!(texts(&tables, "{item.y}{{{item.x}}}"), ["a{1}", "b{2}"]);
        assert_eq!(tables.item(1), "x = 2, y = b");
        let files = resolve("files = \"*.u8\"").unwrap();
        assert_eq!(texts(&files, "{item}"), ["a.u8", "b.u8"]);
        let sizes = files.files().unwrap().iter().map(|file| file.bytes);
        assert_eq!(sizes.collect::<Vec<_>>(), [1, 2]);
        let named = resolve("files = [\"c.txt\", \"a.u8\"]").unwrap();
        assert_eq!(texts(&named, "{item}"), ["c.txt", "a.u8"]);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, line, says) in [
            ("", 1, "says nothing of its units"),
            ("range = [0, 1]\nlist = [1]", 3, "not two"),
            ("range = [0]", 2, "two are needed"),
            ("range = [3, 3]", 2, "is empty"),
            ("range = [0, 9, 0]", 2, "1 is the least"),
            ("range = [0, 1, 2, 3]", 2, "4 numbers"),
            ("range = [0, 65537]", 2, "65537 units: 1 to 65536"),
            (
                "range = [-9223372036854775808, 9223372036854775807]",
                2,
                "is empty",
            ),
            ("list = []", 2, "`list` is empty"),
            ("list = [1,\n{ x = 1 }]", 3, "not both"),
            ("list = [{ x = 1, y = 2 },\n{ x = 1 }]", 3, "the keys x, y"),
            ("files = \"*.png\"", 2, "no file matches `*.png`"),
            ("files = \"[\"", 2, "`*` and `?` stand for"),
            ("files = []", 2, "names no file"),
            ("files = [\"a.u8\", \"d.u8\"]", 2, "d.u8"),
            ("range = [0, 2]\nparallel = 0", 3, "1 to 256 agreements"),
            ("range = [0, 2]\nparallel = 300", 3, "1 to 256 agreements"),
            ("range = [0, 2]\nmax_failures = 2", 3, "2 of 2 units"),
        ] {
            let error = resolve(text).unwrap_err();
            assert!(
                error.line == line && error.message.contains(says),
                "{text}: {error}"
            );
        }
        let wrong = toml::from_str::<Job>("[array]\nlist = [[1]]").unwrap_err();
        assert!(wrong.to_string().contains("or a table of these"), "{wrong}");
        let deep = toml::from_str::<Job>("[array]\nlist = [{ x = [1] }]").unwrap_err();
        assert!(
            deep.to_string().contains("a number or a truth value"),
            "{deep}"
        );
    }

    #[test]
    fn unknown_names_in_braces_are_refused_with_what_was_meant() {
        let list = resolve("list = [1]").unwrap();
        let tables = resolve("list = [{ rate = 1 }]").unwrap();
        for (array, text, says) in [
            (&list, "{unti}", "did you mean `{unit}`?"),
            (&list, "{number_of_it}", "there are `{unit}`, `{item}`"),
            (&list, "{item.rate}", "are no tables; write `{item}`"),
            (&list, "a{unit", "a brace stands alone"),
            (&list, "a}", "a brace stands alone"),
            (&tables, "{item}", "as in `{item.rate}`"),
            (&tables, "{item.rat}", "no key `rat`; there are: rate"),
        ] {
            let said = Pattern::parse(text, array).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
