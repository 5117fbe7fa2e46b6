//! The program's section of a job file, as people write it: `[wgsl]` here,
//! `[wasm]` in [`wasm`].
//!
//! ```toml
//! [wgsl]
//! source = "noop.wgsl"              # beside the job file
//! features = ["f16"]                # optional: what the device must have
//!
//! [[wgsl.buffer]]
//! name = "train"
//! file = "data/train.u8"            # optional: offset = 16, length = 47040000
//!
//! [[wgsl.buffer]]
//! name = "out"
//! size = "4KiB"                     # zeroed; or inline: u32 = [1, 2], i32 = […], f32 = […]
//!
//! [[wgsl.pass]]
//! entry = "main"
//! bind = ["train", "out"]           # @group(0) @binding(0), @binding(1)
//! workgroups = [10, 1, 1]
//! repeat = 1                        # optional
//! constants = { N = 3 }             # optional
//!
//! [[wgsl.output]]
//! buffer = "out"
//! file = "labels.u32"               # optional; as a picture: png = { width = 32, height = 32 }
//! show = { label = "hits", type = "u32", of = 1000 }   # optional
//!
//! [wgsl.checkpoint]                 # optional: what to keep on the way
//! buffers = ["out"]
//! every = 100                       # dispatches
//! ```
//!
//! [`WgslSection::resolve`] turns it into a [`Graph`] and the files that go
//! with it, or into a [`FileError`] that names file and line, what is wrong,
//! and what is allowed. The source is read but not compiled here; see
//! [`crate::WorkerProgram::check`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use suanli_protocol::{registry::Feature, wire::Utf8};
use toml::Spanned;

use crate::{
    limits::{
        BUFFER_BYTES_MAX, INLINE_BYTES_MAX, NAME_BYTES_MAX, SOURCE_BYTES_MAX, WORKGROUPS_MAX,
    },
    program::Program,
    quantity::ByteSize,
    spec::{
        Buffer, Checkpoint, Constant, Content, FEATURES, Graph, Name, Output, Pass, feature_names,
        is_identifier,
    },
    units::{Place, Template},
};

pub mod array;
mod gather;
pub mod wasm;

pub use self::gather::{ConstantValue, Word, WordType};
use self::{
    array::{Array, ArrayFile, Pattern},
    gather::{FileOf, Gathered, Outcome},
};

/// The `[wgsl]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WgslSection {
    /// The WGSL file, relative to the job file.
    pub source: Spanned<String>,
    /// Names of [`FEATURES`], in any order.
    #[serde(default)]
    pub features: Vec<Spanned<String>>,
    /// `[[wgsl.buffer]]`.
    #[serde(default)]
    pub buffer: Vec<BufferEntry>,
    /// `[[wgsl.pass]]`.
    #[serde(default)]
    pub pass: Vec<PassEntry>,
    /// `[[wgsl.output]]`.
    #[serde(default)]
    pub output: Vec<OutputEntry>,
    /// `[wgsl.checkpoint]`.
    pub checkpoint: Option<CheckpointEntry>,
}

/// `[wgsl.checkpoint]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointEntry {
    /// Names of buffers that passes change and read again later, in any order.
    pub buffers: Spanned<Vec<Spanned<String>>>,
    /// After how many dispatches they may be kept, and after each multiple.
    pub every: Spanned<u64>,
}

/// `[[wgsl.buffer]]`: a name and one of `file`, `u32`, `i32`, `f32`; with
/// `size` alone it is zeroed, with `size` beside content it is padded.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BufferEntry {
    /// Unique in the job.
    pub name: Spanned<String>,
    /// A file with its bytes.
    pub file: Option<Spanned<String>>,
    /// First byte of the file that is used.
    pub offset: Option<Spanned<u64>>,
    /// Bytes of the file that are used; all if not given.
    pub length: Option<Spanned<u64>>,
    /// Inline words.
    pub u32: Option<Spanned<Vec<Spanned<Word<u32>>>>>,
    /// Inline signed words.
    pub i32: Option<Spanned<Vec<Spanned<Word<i32>>>>>,
    /// Inline floats.
    pub f32: Option<Spanned<Vec<Spanned<Word<f32>>>>>,
    /// Bytes of the buffer.
    pub size: Option<Spanned<ByteSize>>,
}

/// `[[wgsl.pass]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassEntry {
    /// A `@compute` function of the source.
    pub entry: Spanned<String>,
    /// Names of buffers, in the order of their bindings.
    pub bind: Vec<Spanned<String>>,
    /// Workgroups in x, y and z.
    pub workgroups: Spanned<Vec<u32>>,
    /// How often it runs.
    pub repeat: Option<Spanned<u32>>,
    /// Values of `override`s.
    #[serde(default)]
    pub constants: BTreeMap<String, Spanned<ConstantValue>>,
}

/// `[[wgsl.output]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputEntry {
    /// Name of the buffer that is read back.
    pub buffer: Spanned<String>,
    /// Where the client writes it, relative to its output folder.
    pub file: Option<Spanned<String>>,
    /// The file is a picture of RGBA8 pixels.
    pub png: Option<Spanned<PngSize>>,
    /// The client prints its first value.
    pub show: Option<Show>,
}

/// Size of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PngSize {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// What a client prints of an output: its first value, or that out of `of`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Show {
    /// What the value is.
    pub label: String,
    /// How its bytes are read.
    #[serde(rename = "type")]
    pub kind: ShowType,
    /// The value is a count out of so many, and shown as a part of them.
    pub of: Option<u64>,
}

/// How a shown value's four bytes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShowType {
    /// Unsigned.
    U32,
    /// Signed.
    I32,
    /// IEEE 754 single precision.
    F32,
}

/// A job file's program section, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// What travels as the job spec.
    pub template: Template,
    /// What travels as blobs: what all units read, then what each has for itself, in
    /// the order of units. The program of a unit counts the shared ones and its own.
    pub inputs: Vec<InputFile>,
    /// How many each unit has for itself.
    pub inputs_each: u16,
    /// What units have of their own, by the names that a person gave.
    pub differences: Vec<(String, Pattern)>,
    /// What the client does with each of the program's outputs, in their order.
    pub outputs: Vec<OutputFile>,
}

/// A range of a file that is sent as one input blob. Two buffers that read
/// the same file share one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    /// Relative paths were taken from the job file's folder.
    pub path: PathBuf,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What was made from the file and is sent in its place.
    pub made: Option<Arc<[u8]>>,
}

/// What the client does with an output.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputFile {
    /// The output's name in the program.
    pub name: String,
    /// Bytes, or the most that there may be.
    pub bytes: u64,
    /// It is a standard stream: the client prints what is no error's.
    pub is_stream: bool,
    /// Where to write it, unit by unit: relative and without `..`. None if it is not
    /// written; one if the job is no array.
    pub files: Vec<PathBuf>,
    /// Write it as a picture.
    pub png: Option<PngSize>,
    /// Print its first value.
    pub show: Option<Show>,
}

impl OutputFile {
    /// Where a unit's is written, if it is.
    #[must_use]
    pub fn file(&self, unit: u32) -> Option<&Path> {
        let file = self.files.get(usize::try_from(unit).ok()?)?;
        Some(file)
    }
}

impl Prepared {
    /// The program of the first unit, or the only one.
    #[must_use]
    pub const fn program(&self) -> &Program {
        self.template.program()
    }
}

/// What is wrong in a job file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {message}", file.display())]
pub struct FileError {
    /// The job file.
    pub file: PathBuf,
    /// Counted from one.
    pub line: usize,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl WgslSection {
    /// Reads the source, looks at the input files, and builds the graph.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn resolve(
        &self,
        toml_text: &str,
        job_file: &Path,
        array: Option<&Array>,
    ) -> Result<Prepared, FileError> {
        let here = Here {
            toml_text,
            job_file,
            array,
        };
        let mut gathered = Gathered::default();
        let source = self.read_source(&here)?;
        let buffers = self.buffers(&here, &mut gathered)?;
        self.check_names(&here)?;
        let names = self
            .buffer
            .iter()
            .map(|entry| entry.name.get_ref().as_str());
        let names = names.collect::<Vec<_>>();
        let passes = self.pass.iter().zip(0..);
        let passes =
            passes.map(|(entry, pass)| entry.resolve(&here, (pass, &names), &mut gathered));
        let passes = passes.collect::<Result<Vec<_>, _>>()?;
        let outputs = self
            .output
            .iter()
            .map(|entry| entry.resolve(&here, (&names, &buffers), &mut gathered));
        let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
        let (outputs, files): (Vec<_>, Vec<_>) = outputs.into_iter().unzip();
        self.check_presence(&here)?;
        let graph = Graph {
            source,
            features: here.bounded(&self.source, "features", self.features(&here)?)?,
            buffers: here.bounded(&self.source, "[[wgsl.buffer]]", buffers)?,
            passes: here.bounded(&self.source, "[[wgsl.pass]]", passes)?,
            outputs: here.bounded(&self.source, "[[wgsl.output]]", outputs)?,
            checkpoint: self
                .checkpoint
                .as_ref()
                .map(|entry| entry.resolve(&here, &names))
                .transpose()?,
        };
        here.prepared(
            &self.source,
            graph,
            gathered.finish(&here, &self.source)?,
            files,
        )
    }

    /// With the inputs that they read, by their numbers.
    fn buffers(&self, here: &Here<'_>, gathered: &mut Gathered) -> Result<Vec<Buffer>, FileError> {
        let buffers = self.buffer.iter().zip(0..);
        let buffers = buffers.map(|(entry, index)| entry.resolve(here, index, gathered));
        let mut buffers = buffers.collect::<Result<Vec<_>, _>>()?;
        for buffer in &mut buffers {
            if let Content::Input { index, .. } = &mut buffer.content {
                *index = gathered.number(*index);
            }
        }
        Ok(buffers)
    }

    fn features(&self, here: &Here<'_>) -> Result<Vec<Feature>, FileError> {
        let known = |name: &Spanned<String>| {
            let named = Feature::named(name.get_ref());
            named
                .filter(|feature| FEATURES.contains(feature))
                .ok_or_else(|| {
                    let message = format!(
                        "unknown feature `{}`; there are: {}",
                        name.get_ref().escape_debug(),
                        feature_names()
                    );
                    here.error(name, message)
                })
        };
        let features = self.features.iter().map(known);
        let features = features.collect::<Result<BTreeSet<_>, _>>()?;
        Ok(features.into_iter().collect())
    }

    fn read_source(&self, here: &Here<'_>) -> Result<Utf8<SOURCE_BYTES_MAX>, FileError> {
        let path = here.path(self.source.get_ref());
        let bytes = here.file_bytes(&self.source, &path)?;
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes > SOURCE_BYTES_MAX {
            let message = format!(
                "{} has {bytes} bytes, at most {SOURCE_BYTES_MAX} are allowed",
                path.display()
            );
            return Err(here.error(&self.source, message));
        }
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|error| here.unreadable(self.source.span(), &path, &error))?;
        Utf8::try_from(text).map_err(|error| here.error(&self.source, error.to_string()))
    }

    fn check_names(&self, here: &Here<'_>) -> Result<(), FileError> {
        let mut seen = BTreeMap::new();
        for entry in &self.buffer {
            if let Some(first) = seen.insert(entry.name.get_ref(), &entry.name) {
                let message = format!(
                    "a second buffer is named `{}` (the first is on line {}); give each its own name",
                    entry.name.get_ref(),
                    here.line(first)
                );
                return Err(here.error(&entry.name, message));
            }
        }
        Ok(())
    }

    fn check_presence(&self, here: &Here<'_>) -> Result<(), FileError> {
        let missing = if self.pass.is_empty() {
            "no [[wgsl.pass]]: add one with `entry`, `bind` and `workgroups`"
        } else if self.output.is_empty() {
            "no [[wgsl.output]]: add one that names the `buffer` to bring back"
        } else {
            return Ok(());
        };
        Err(here.error(&self.source, missing.to_owned()))
    }
}

/// Bytes, and where the file has them.
type Inline = (Vec<u8>, std::ops::Range<usize>);

impl BufferEntry {
    fn resolve(
        &self,
        here: &Here<'_>,
        index: u16,
        gathered: &mut Gathered,
    ) -> Result<Buffer, FileError> {
        let name = here.name(&self.name, "buffer")?;
        self.check_kinds(here)?;
        let content = if let Some(file) = &self.file {
            self.input(here, file, gathered)?
        } else if let Some((words, at)) = self.inline(here, index, gathered)? {
            if words.is_empty() {
                return Err(here.error_at(at, format!("buffer `{}` has no values", &*name)));
            }
            let too_long = |error: suanli_protocol::wire::WireError| {
                here.error_at(
                    at.clone(),
                    format!("{error} (bytes, {INLINE_BYTES_MAX}): put larger data into a file"),
                )
            };
            Content::Inline(words.try_into().map_err(too_long)?)
        } else {
            Content::Zeroed
        };
        let size = self.bytes(here, &content)?;
        Ok(Buffer {
            name,
            content,
            size,
        })
    }

    fn check_kinds(&self, here: &Here<'_>) -> Result<(), FileError> {
        let kinds = [
            self.file.as_ref().map(|_| "file"),
            self.u32.as_ref().map(|_| "u32"),
            self.i32.as_ref().map(|_| "i32"),
            self.f32.as_ref().map(|_| "f32"),
        ];
        let kinds = kinds.into_iter().flatten().collect::<Vec<_>>();
        let name = self.name.get_ref();
        let message = match kinds.as_slice() {
            [first, second, ..] => format!(
                "buffer `{name}` has both `{first}` and `{second}`: one of file, u32, i32, f32 is allowed"
            ),
            [] if self.size.is_none() => format!(
                "buffer `{name}` has no content: give `file`, `u32`, `i32`, `f32`, or `size` for a zeroed one"
            ),
            _ => return self.check_range_belongs(here),
        };
        Err(here.error(&self.name, message))
    }

    fn check_range_belongs(&self, here: &Here<'_>) -> Result<(), FileError> {
        match self.offset.as_ref().or(self.length.as_ref()) {
            Some(range) if self.file.is_none() => {
                Err(here.error(range, "`offset` and `length` need a `file`".to_owned()))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn inline(
        &self,
        here: &Here<'_>,
        index: u16,
        gathered: &mut Gathered,
    ) -> Result<Option<Inline>, FileError> {
        let buffer = (index, self.name.get_ref().as_str());
        Ok(if let Some(words) = &self.u32 {
            let bytes = gathered.words(here, buffer, words.get_ref())?;
            Some((bytes, words.span()))
        } else if let Some(words) = &self.i32 {
            let bytes = gathered.words(here, buffer, words.get_ref())?;
            Some((bytes, words.span()))
        } else if let Some(words) = &self.f32 {
            let bytes = gathered.words(here, buffer, words.get_ref())?;
            Some((bytes, words.span()))
        } else {
            None
        })
    }

    fn input(
        &self,
        here: &Here<'_>,
        file: &Spanned<String>,
        gathered: &mut Gathered,
    ) -> Result<Content, FileError> {
        let (index, length) = match here.file(file)? {
            FileOf::Shared(path) => {
                let (offset, length) = self.range(here, file, &path)?;
                let input = InputFile {
                    path,
                    offset,
                    length,
                    made: None,
                };
                (gathered.shared(here, file, input)?, length)
            }
            FileOf::Own(files) => {
                let (offset, length) = self.range_of_all(here, file, files)?;
                (gathered.own(here, file, offset, Some(length))?, length)
            }
        };
        // The blob is the range itself, so the graph reads it from its start.
        Ok(Content::Input {
            index,
            offset: 0,
            length,
        })
    }

    /// Offset and length of what is read of a file.
    fn range(
        &self,
        here: &Here<'_>,
        file: &Spanned<String>,
        path: &Path,
    ) -> Result<(u64, u64), FileError> {
        let bytes = here.file_bytes(file, path)?;
        let offset = self.offset.as_ref().map_or(0, |offset| *offset.get_ref());
        let rest = bytes.saturating_sub(offset);
        let length = self
            .length
            .as_ref()
            .map_or(rest, |length| *length.get_ref());
        if length == 0 || length > rest {
            let at = self
                .length
                .as_ref()
                .or(self.offset.as_ref())
                .map_or_else(|| file.span(), Spanned::span);
            let message = format!(
                "{} has {bytes} bytes: {length} from {offset} on are not in it, or are none",
                path.display()
            );
            return Err(here.error_at(at, message));
        }
        Ok((offset, length))
    }

    /// The same of each unit's own file: a buffer has one size in all units.
    fn range_of_all(
        &self,
        here: &Here<'_>,
        file: &Spanned<String>,
        files: &[ArrayFile],
    ) -> Result<(u64, u64), FileError> {
        let mut range = (0, 0);
        for (unit, own) in files.iter().enumerate() {
            let of_own = self.range(here, file, &own.path)?;
            if unit > 0 && of_own != range {
                let message = format!(
                    "{} has {} bytes, and {} has {}: buffer `{}` has one size in all units, so all files need one; or give a `length` that is in all of them",
                    own.path.display(),
                    own.bytes,
                    files[0].path.display(),
                    files[0].bytes,
                    self.name.get_ref()
                );
                return Err(here.error(file, message));
            }
            range = of_own;
        }
        Ok(range)
    }

    fn bytes(&self, here: &Here<'_>, content: &Content) -> Result<u64, FileError> {
        let content_bytes = match content {
            Content::Inline(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Content::Input { length, .. } => *length,
            Content::Zeroed => 0,
        };
        let size = self.size.as_ref().map_or_else(
            || content_bytes.next_multiple_of(4),
            |size| size.get_ref().0,
        );
        let at = self
            .size
            .as_ref()
            .map_or_else(|| self.name.span(), Spanned::span);
        let name = self.name.get_ref();
        let message = if size == 0 || !size.is_multiple_of(4) {
            format!("buffer `{name}` has {size} bytes: a positive multiple of 4 is needed")
        } else if size > BUFFER_BYTES_MAX {
            format!(
                "buffer `{name}` has {size} bytes: at most {BUFFER_BYTES_MAX} (4GiB) are allowed"
            )
        } else if size < content_bytes {
            format!(
                "buffer `{name}` has {size} bytes, its content {content_bytes}: leave `size` out or raise it"
            )
        } else {
            return Ok(size);
        };
        Err(here.error_at(at, message))
    }
}

impl PassEntry {
    fn resolve(
        &self,
        here: &Here<'_>,
        (pass, names): (u16, &[&str]),
        gathered: &mut Gathered,
    ) -> Result<Pass, FileError> {
        let entry = here.name(&self.entry, "entry point")?;
        let bindings = self.bind.iter().map(|name| here.buffer_index(name, names));
        let bindings = bindings.collect::<Result<Vec<_>, _>>()?;
        let repeat = self.repeat.as_ref().map_or(1, |repeat| *repeat.get_ref());
        if let Some(at) = self.repeat.as_ref().filter(|_| repeat == 0) {
            return Err(here.error(at, "`repeat` is 0: 1 or more is allowed".to_owned()));
        }
        let constants = self.constants.iter().zip(0..);
        let constants = constants.map(|((name, value), constant)| {
            let number = match value.get_ref() {
                ConstantValue::Number(number) => *number,
                ConstantValue::Text(text) => {
                    let place = Place::Constant { pass, constant };
                    let name = format!("constant {name} of {}", &*entry);
                    gathered.constant(here, (value, text), (place, &name))?
                }
            };
            if !number.is_finite() {
                return Err(here.error(value, format!("`{name}` is not finite")));
            }
            let named = Name::try_from(name.clone());
            let named = named.map_err(|error| {
                here.error(value, format!("the constant's name: {error} bytes"))
            })?;
            Ok(Constant {
                name: named,
                bits: number.to_bits(),
            })
        });
        let constants = constants.collect::<Result<Vec<_>, _>>()?;
        Ok(Pass {
            entry,
            bindings: here.bounded(&self.entry, "bindings", bindings)?,
            workgroups: self.workgroups(here)?,
            repeat,
            constants: here.bounded(&self.entry, "constants", constants)?,
        })
    }

    /// One to three numbers; missing dimensions are 1.
    fn workgroups(&self, here: &Here<'_>) -> Result<[u32; 3], FileError> {
        let given = self.workgroups.get_ref();
        let fits = given
            .iter()
            .all(|count| (1..=WORKGROUPS_MAX).contains(count));
        if given.is_empty() || given.len() > 3 || !fits {
            let message = format!(
                "`workgroups` is {given:?}: one to three numbers from 1 to {WORKGROUPS_MAX} are allowed"
            );
            return Err(here.error(&self.workgroups, message));
        }
        let mut counts = [1; 3];
        for (count, given) in counts.iter_mut().zip(given) {
            *count = *given;
        }
        Ok(counts)
    }
}

impl CheckpointEntry {
    fn resolve(&self, here: &Here<'_>, names: &[&str]) -> Result<Checkpoint, FileError> {
        let every = *self.every.get_ref();
        if every == 0 {
            return Err(here.error(&self.every, "`every` is 0: 1 or more is allowed".to_owned()));
        }
        let buffers = self.buffers.get_ref().iter();
        let buffers = buffers.map(|name| here.buffer_index(name, names));
        let buffers = buffers.collect::<Result<BTreeSet<_>, _>>()?;
        if buffers.is_empty() {
            let message = "`buffers` is empty: name what passes change and read again";
            return Err(here.error(&self.buffers, message.to_owned()));
        }
        let buffers = buffers.into_iter().collect();
        Ok(Checkpoint {
            buffers: here.bounded(&self.buffers, "buffers of a checkpoint", buffers)?,
            every,
        })
    }
}

impl OutputEntry {
    fn resolve(
        &self,
        here: &Here<'_>,
        (names, buffers): (&[&str], &[Buffer]),
        gathered: &mut Gathered,
    ) -> Result<(Output, OutputFile), FileError> {
        let buffer = here.buffer_index(&self.buffer, names)?;
        let name = here.name(&self.buffer, "buffer")?;
        let bytes = usize::try_from(buffer)
            .ok()
            .and_then(|index| buffers.get(index));
        let bytes = bytes.map_or(0, |buffer| buffer.size);
        let files = self.file.as_ref().map(|file| gathered.output(here, file));
        let files = files.transpose()?.unwrap_or_default();
        if let Some(png) = &self.png {
            self.check_png(here, png, bytes)?;
        }
        let outcome = OutputFile {
            name: name.to_string(),
            bytes,
            is_stream: false,
            files,
            png: self.png.as_ref().map(|png| *png.get_ref()),
            show: self.show.clone(),
        };
        Ok((Output { buffer, name }, outcome))
    }

    fn check_png(
        &self,
        here: &Here<'_>,
        png: &Spanned<PngSize>,
        bytes: u64,
    ) -> Result<(), FileError> {
        let PngSize { width, height } = *png.get_ref();
        let needed = u64::from(width)
            .saturating_mul(u64::from(height))
            .saturating_mul(4);
        let message = if self.file.is_none() {
            "`png` needs a `file` to write to".to_owned()
        } else if needed != bytes || needed == 0 {
            format!(
                "a picture of {width}×{height} RGBA8 pixels has {needed} bytes, buffer `{}` has {bytes}",
                self.buffer.get_ref()
            )
        } else {
            return Ok(());
        };
        Err(here.error(png, message))
    }
}

/// The file that is being read, for errors and relative paths.
struct Here<'a> {
    toml_text: &'a str,
    job_file: &'a Path,
    /// How units differ, if the job is an array.
    array: Option<&'a Array>,
}

impl Here<'_> {
    fn error<T>(&self, at: &Spanned<T>, message: String) -> FileError {
        self.error_at(at.span(), message)
    }

    fn error_at(&self, at: std::ops::Range<usize>, message: String) -> FileError {
        FileError {
            file: self.job_file.to_owned(),
            line: self.line_at(at.start),
            message,
        }
    }

    fn line<T>(&self, at: &Spanned<T>) -> usize {
        self.line_at(at.span().start)
    }

    fn line_at(&self, start: usize) -> usize {
        let before = self.toml_text.as_bytes().iter().take(start);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    fn path(&self, file: &str) -> PathBuf {
        self.job_file
            .parent()
            .unwrap_or_else(|| Path::new(""))
            .join(file)
    }

    fn file_bytes(&self, at: &Spanned<String>, path: &Path) -> Result<u64, FileError> {
        self.bytes_of(at.span(), path)
    }

    fn bytes_of(&self, at: std::ops::Range<usize>, path: &Path) -> Result<u64, FileError> {
        let metadata = std::fs::metadata(path);
        let metadata = metadata.map_err(|error| self.unreadable(at.clone(), path, &error))?;
        if !metadata.is_file() {
            let message = format!(
                "{} is no file; paths count from the job file's folder",
                path.display()
            );
            return Err(self.error_at(at, message));
        }
        Ok(metadata.len())
    }

    fn unreadable(
        &self,
        at: std::ops::Range<usize>,
        path: &Path,
        error: &std::io::Error,
    ) -> FileError {
        let message = format!(
            "cannot read {}: {error}; paths count from the job file's folder",
            path.display()
        );
        self.error_at(at, message)
    }

    fn name(&self, name: &Spanned<String>, what: &str) -> Result<Name, FileError> {
        let text = name.get_ref();
        let bounded = Name::try_from(text.clone())
            .ok()
            .filter(|_| is_identifier(text));
        bounded.ok_or_else(|| {
            let message = format!(
                "`{}` is no {what} name: up to {NAME_BYTES_MAX} letters, digits and `_` are allowed, no digit first",
                text.escape_debug()
            );
            self.error(name, message)
        })
    }

    fn buffer_index(&self, name: &Spanned<String>, names: &[&str]) -> Result<u32, FileError> {
        let wanted = name.get_ref();
        let found = names.iter().position(|known| known == wanted);
        found
            .and_then(|index| u32::try_from(index).ok())
            .ok_or_else(|| {
                let message = format!(
                    "no buffer is named `{}`{}",
                    wanted.escape_debug(),
                    suggestion(wanted, names)
                );
                self.error(name, message)
            })
    }

    /// A path that stays below the folder that it is joined to.
    fn inside(&self, at: &Spanned<String>, file: &str) -> Result<PathBuf, FileError> {
        let path = Path::new(file);
        let stays = path
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if stays && path.components().next().is_some() {
            return Ok(path.to_owned());
        }
        let message = format!(
            "output file `{}`: a relative path without `..` is allowed",
            file.escape_debug()
        );
        Err(self.error(at, message))
    }

    /// All of a section, held against the rules that no single line breaks.
    fn prepared<T>(
        &self,
        at: &Spanned<T>,
        program: impl Into<Program>,
        gathered: Outcome,
        outputs: Vec<OutputFile>,
    ) -> Result<Prepared, FileError> {
        let whole = |error: crate::spec::SpecError| self.error(at, error.to_string());
        let units = self.array.map_or(1, Array::units);
        let template = Template::new(program.into(), units, gathered.columns).map_err(whole)?;
        template.program().encode().map_err(whole)?;
        template.encode().map_err(whole)?;
        Ok(Prepared {
            template,
            inputs: gathered.inputs,
            inputs_each: gathered.inputs_each,
            differences: gathered.shown,
            outputs,
        })
    }

    fn bounded<A, T, const N: usize>(
        &self,
        at: &Spanned<A>,
        what: &str,
        items: Vec<T>,
    ) -> Result<suanli_protocol::wire::List<T, N>, FileError> {
        items
            .try_into()
            .map_err(|error: suanli_protocol::wire::WireError| {
                self.error(at, format!("{what}: {error}"))
            })
    }
}

/// What may have been meant, or what there is.
fn suggestion(wanted: &str, names: &[&str]) -> String {
    let nearest = names
        .iter()
        .map(|name| (distance(wanted, name), *name))
        .min();
    match nearest {
        Some((edits, name)) if edits <= 1 + wanted.chars().count() / 3 => {
            format!("; did you mean `{name}`?")
        }
        Some(_) => format!("; there are: {}", names.join(", ")),
        None => "; there is no [[wgsl.buffer]]".to_owned(),
    }
}

/// Levenshtein's distance, for naming what was probably meant.
#[must_use]
pub fn distance(a: &str, b: &str) -> usize {
    let b = b.chars().collect::<Vec<_>>();
    let mut row = (0..=b.len()).collect::<Vec<_>>();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Job {
        wgsl: WgslSection,
    }

    const GOOD: &str = r#"[wgsl]
source = "a.wgsl"
[[wgsl.buffer]]
name = "train"
file = "train.u8"
[[wgsl.buffer]]
name = "tail"
file = "train.u8"
offset = 2
length = 5
[[wgsl.buffer]]
name = "again"
file = "train.u8"
[[wgsl.buffer]]
name = "table"
i32 = [-1, 2]
[[wgsl.buffer]]
name = "out"
size = "1KiB"
[[wgsl.pass]]
entry = "main"
bind = ["train", "tail", "table", "out"]
workgroups = [10, 1, 1]
repeat = 2
constants = { N = 3, EXACT = true, SCALE = 0.5 }
[[wgsl.output]]
buffer = "out"
file = "picture.png"
png = { width = 16, height = 16 }
show = { label = "hits", type = "u32", of = 1000 }
"#;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("a.wgsl"),
            "@compute @workgroup_size(1) fn main() {}",
        )
        .unwrap();
        std::fs::write(dir.path().join("train.u8"), [9; 10]).unwrap();
        dir
    }

    fn resolve(text: &str) -> Result<Prepared, FileError> {
        let dir = folder();
        let job: Job = toml::from_str(text).unwrap();
        job.wgsl.resolve(text, &dir.path().join("job.toml"), None)
    }

    /// Replaces one line of the good file; line and message of the error.
    fn refused(line: usize, with: &str) -> (usize, String) {
        let lines = GOOD.lines().enumerate();
        let lines = lines.map(|(i, old)| if i + 1 == line { with } else { old });
        let text = lines.collect::<Vec<_>>().join("\n");
        let error = resolve(&text).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("job.toml:{}: ", error.line))
        );
        (error.line, error.message)
    }

    #[test]
    fn a_good_file_becomes_a_graph() {
        let prepared = resolve(GOOD).unwrap();
        let Program::Wgsl(graph) = prepared.program() else {
            panic!("it is of another runtime")
        };
        let sizes = graph
            .buffers
            .iter()
            .map(|buffer| buffer.size)
            .collect::<Vec<_>>();
        assert_eq!(sizes, [12, 8, 12, 8, 1024]);
        let ranges = prepared
            .inputs
            .iter()
            .map(|input| (input.offset, input.length));
        assert_eq!(
            ranges.collect::<Vec<_>>(),
            [(0, 10), (2, 5)],
            "one input for two readers"
        );
        assert_eq!(
            graph.buffers[2].content,
            Content::Input {
                index: 0,
                offset: 0,
                length: 10
            }
        );
        assert_eq!(&*graph.passes[0].bindings, [0, 1, 3, 4]);
        assert_eq!(
            (graph.passes[0].repeat, graph.passes[0].constants.len()),
            (2, 3)
        );
        assert_eq!(prepared.outputs[0].file(0), Some(Path::new("picture.png")));
        assert_eq!(Graph::decode(&graph.encode().unwrap()).as_ref(), Ok(graph));
    }

    #[test]
    fn wrong_lines_are_named_with_what_is_allowed() {
        let cases: &[(usize, &str, usize, &str)] = &[
            (2, "source = \"b.wgsl\"", 2, "b.wgsl"),
            (4, "name = \"1train\"", 4, "no digit first"),
            (5, "file = \"trein.u8\"", 5, "trein.u8"),
            (5, "", 4, "no content"),
            (10, "length = 50", 10, "has 10 bytes"),
            (
                13,
                "file = \"train.u8\"\nu32 = [1]",
                12,
                "both `file` and `u32`",
            ),
            (18, "name = \"train\"", 18, "line 4"),
            (19, "size = 1022", 19, "multiple of 4"),
            (19, "size = \"8GiB\"", 19, "4GiB"),
            (19, "size = 1024\noffset = 4", 20, "need a `file`"),
            (
                22,
                "bind = [\"train\", \"tial\"]",
                22,
                "did you mean `tail`?",
            ),
            (23, "workgroups = [70000]", 23, "65535"),
            (24, "repeat = 0", 24, "1 or more"),
            (
                27,
                "buffer = \"nothing_like_it\"",
                27,
                "there are: train, tail",
            ),
            (28, "file = \"../x\"", 28, "without `..`"),
            (29, "png = { width = 16, height = 17 }", 29, "1088 bytes"),
        ];
        for (line, with, expected, part) in cases {
            let (at, message) = refused(*line, with);
            assert!(
                at == *expected && message.contains(part),
                "{with}: {at}: {message}"
            );
        }
    }

    #[test]
    fn features_are_named_in_any_order_and_an_unknown_one_with_those_there_are() {
        let with = |features: &str| {
            let source = "source = \"a.wgsl\"";
            resolve(&GOOD.replace(source, &format!("{source}\nfeatures = {features}")))
        };
        let prepared = with("[\"timestamps\", \"f16\", \"f16\"]").unwrap();
        assert_eq!(
            prepared.program().features(),
            [Feature::F16, Feature::TIMESTAMPS]
        );
        let error = with("[\"f16\",\n\"f64\"]").unwrap_err();
        assert_eq!(error.line, 4);
        assert!(
            error
                .message
                .contains("`f64`; there are: f16, subgroups, timestamps"),
            "{error}"
        );
    }

    #[test]
    fn a_checkpoint_names_buffers_and_a_number() {
        let with = |entry: &str| resolve(&format!("{GOOD}[wgsl.checkpoint]\n{entry}"));
        let prepared = with("buffers = [\"out\", \"table\"]\nevery = 10").unwrap();
        let Program::Wgsl(graph) = prepared.program() else {
            panic!("it is of another runtime")
        };
        let checkpoint = graph.checkpoint.as_ref().unwrap();
        assert_eq!((&*checkpoint.buffers, checkpoint.every), (&[3, 4][..], 10));
        for (entry, says) in [
            ("buffers = [\"uot\"]\nevery = 1", "did you mean `out`?"),
            ("buffers = [\"out\"]\nevery = 0", "1 or more"),
            ("buffers = []\nevery = 1", "is empty"),
        ] {
            let error = with(entry).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
    }

    #[test]
    fn text_where_only_units_of_an_array_differ_is_refused() {
        for (old, new, line, says) in [
            (
                "N = 3",
                "N = \"3\"",
                25,
                "N of main is text: a number is needed, without quotes",
            ),
            ("N = 3", "N = \"{unit}\"", 25, "add [array] with a `range`"),
            (
                "[-1, 2]",
                "[-1,\n\"{item}\"]",
                17,
                "word 1 of table: only units",
            ),
        ] {
            let error = resolve(&GOOD.replace(old, new)).unwrap_err();
            let said = format!("{}: {}", error.line, error.message);
            assert!(error.line == line && error.message.contains(says), "{said}");
        }
    }

    /// As [`GOOD`], with the buffer `train` from a file of each unit's own.
    fn of_files(change: impl Fn(&str) -> String, array: &str) -> Result<Prepared, FileError> {
        #[derive(Deserialize)]
        struct Whole {
            array: array::ArraySection,
            wgsl: WgslSection,
        }
        let dir = folder();
        for (name, bytes) in [("a.dat", 8), ("b.dat", 8), ("long.txt", 12)] {
            std::fs::write(dir.path().join(name), vec![1; bytes]).unwrap();
        }
        let own = GOOD.replacen("\"train.u8\"", "\"{item}\"", 1);
        let own = own.replace("picture.png", "picture-{unit}.png");
        let text = format!("{}\n[array]\n{array}", change(&own));
        let job: Whole = toml::from_str(&text).unwrap();
        let path = dir.path().join("job.toml");
        let array = job.array.resolve(&text, &path)?;
        job.wgsl.resolve(&text, &path, Some(&array))
    }

    #[test]
    fn each_unit_of_an_array_over_files_reads_its_own() {
        let prepared = of_files(str::to_owned, "files = \"*.dat\"").unwrap();
        let inputs = prepared.inputs.iter().map(|input| {
            let name = input.path.file_name().unwrap().to_str().unwrap();
            (name, input.offset, input.length)
        });
        let wanted = [
            ("train.u8", 2, 5),
            ("train.u8", 0, 10),
            ("a.dat", 0, 8),
            ("b.dat", 0, 8),
        ];
        assert_eq!(inputs.collect::<Vec<_>>(), wanted);
        assert_eq!((prepared.inputs_each, prepared.template.units()), (1, 2));
        assert!(prepared.template.columns().is_empty());
        let Program::Wgsl(graph) = prepared.program() else {
            panic!("it is of another runtime")
        };
        let own = Content::Input {
            index: 2,
            offset: 0,
            length: 8,
        };
        assert_eq!(graph.buffers[0].content, own);
        assert_eq!(
            prepared.outputs[0].file(1),
            Some(Path::new("picture-1.png"))
        );
    }

    #[test]
    fn files_of_units_have_one_size_or_what_is_read_of_them_has() {
        let all = "files = [\"a.dat\", \"b.dat\", \"long.txt\"]";
        let error = of_files(str::to_owned, all).unwrap_err();
        assert_eq!(error.line, 5);
        let says = error.message.contains("long.txt has 12 bytes")
            && error
                .message
                .contains("a.dat has 8: buffer `train` has one size");
        assert!(says, "{error}");
        let part = |own: &str| own.replacen("\"{item}\"", "\"{item}\"\nlength = 8", 1);
        let prepared = of_files(part, all).unwrap();
        assert_eq!(prepared.inputs[4].length, 8);
        let long = |own: &str| own.replacen("\"{item}\"", "\"{item}\"\nlength = 9", 1);
        let error = of_files(long, all).unwrap_err();
        assert!(
            error.message.contains("a.dat has 8 bytes: 9 from 0"),
            "{error}"
        );
    }

    #[test]
    fn missing_parts_are_asked_for() {
        let buffers_only = GOOD.split("[[wgsl.pass]]").next().unwrap();
        assert!(
            resolve(buffers_only)
                .unwrap_err()
                .message
                .contains("[[wgsl.pass]]")
        );
        let no_output = GOOD.split("[[wgsl.output]]").next().unwrap();
        assert!(
            resolve(no_output)
                .unwrap_err()
                .message
                .contains("[[wgsl.output]]")
        );
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused_by_the_parser() {
        for (old, new, part) in [
            ("repeat = 2", "repeats = 2", "repeats"),
            ("size = \"1KiB\"", "size = \"1kb\"", "KiB, MiB, GiB"),
            (
                "constants = { N = 3",
                "constants = { N = [3]",
                "a number or a truth value",
            ),
            ("i32 = [-1, 2]", "i32 = [-1, 0.5]", "expected i32"),
        ] {
            let error = toml::from_str::<Job>(&GOOD.replace(old, new))
                .unwrap_err()
                .to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
