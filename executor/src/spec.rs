//! The job graph: what a `wgsl` execution does, as it travels.
//!
//! A [`Graph`] is one WGSL source, named buffers, passes over them in order,
//! and the buffers that are read back. It is data, checked twice: when it is
//! built from a job file ([`crate::file`]) and when a provider's executor
//! decodes it ([`Graph::decode`]). What needs the compiler (does the source
//! parse, does the entry point exist) is asked of a worker process, never
//! here: the compiler is not trusted with strangers' text.
//!
//! Absent: paths, prices, and anything about who asked.

use std::collections::BTreeSet;

use bincode::{Decode, Encode};
use suanli_protocol::{
    registry::Feature,
    wire::{self, List, Utf8, Wire, WireError},
};

use crate::limits::{
    BINDINGS_MAX, BUFFER_BYTES_MAX, BUFFERS_MAX, CHECKPOINT_BUFFERS_MAX, CHECKPOINT_BYTES_MAX,
    CONSTANTS_MAX, DISPATCHES_MAX, FEATURES_MAX, INLINE_BYTES_MAX, INPUTS_MAX, NAME_BYTES_MAX,
    OUTPUT_MEMORY_MAX, OUTPUTS_MAX, PASSES_MAX, SOURCE_BYTES_MAX, SPEC_BYTES_MAX, WORKGROUPS_MAX,
};

/// A name inside a graph: letters, digits and `_`, not starting with a digit
/// (output names may also hold `-` and `.`).
pub type Name = Utf8<NAME_BYTES_MAX>;

/// What graphs can ask of a device, in the order in which they name it: 16-bit
/// floats and subgroup operations in the source, and that the device's own clock
/// meters the job, also where the executor's would do.
pub const FEATURES: [Feature; 3] = [Feature::F16, Feature::SUBGROUPS, Feature::TIMESTAMPS];

/// A `wgsl` job.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Graph {
    /// One WGSL module.
    pub source: Utf8<SOURCE_BYTES_MAX>,
    /// What it needs of a device, of [`FEATURES`] and in their order. A source may
    /// use no other.
    pub features: List<Feature, FEATURES_MAX>,
    /// The buffers that passes bind.
    pub buffers: List<Buffer, BUFFERS_MAX>,
    /// What runs, in order.
    pub passes: List<Pass, PASSES_MAX>,
    /// What is read back, in order.
    pub outputs: List<Output, OUTPUTS_MAX>,
    /// What to keep on the way, if it is to be gone on with.
    pub checkpoint: Option<Checkpoint>,
}

/// A storage (or uniform) buffer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Buffer {
    /// Unique in the graph; used in messages only.
    pub name: Name,
    /// What it holds at the start; the rest of it is zero.
    pub content: Content,
    /// Bytes, a multiple of four.
    pub size: u64,
}

/// What a buffer holds before the first pass.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Content {
    /// Bytes that travel in the graph.
    Inline(List<u8, INLINE_BYTES_MAX>),
    /// A range of an input blob.
    Input {
        /// Which of the execution's inputs.
        index: u32,
        /// First byte of the range.
        offset: u64,
        /// Bytes in the range.
        length: u64,
    },
    /// Nothing.
    Zeroed,
}

/// One compute pass: `repeat` dispatches of one entry point.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Pass {
    /// Name of a `@compute` function.
    pub entry: Name,
    /// Buffer `bindings[i]` is bound to `@group(0) @binding(i)`.
    pub bindings: List<u32, BINDINGS_MAX>,
    /// Workgroups in x, y and z.
    pub workgroups: [u32; 3],
    /// How often the dispatch runs, one after the other.
    pub repeat: u32,
    /// Values of pipeline-overridable constants.
    pub constants: List<Constant, CONSTANTS_MAX>,
}

/// The value of an `override`. Its bits travel, so that equal graphs have
/// equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Constant {
    /// Name of the `override`, or its `@id` in decimal.
    pub name: Name,
    /// [`f64::to_bits`] of the value.
    pub bits: u64,
}

/// A buffer that is read back whole.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Output {
    /// Which buffer.
    pub buffer: u32,
    /// Name of the output, unique in the graph.
    pub name: Name,
}

/// What an execution keeps on its way, so that another can go on from there.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Checkpoint {
    /// What passes change and read again later, in ascending order. All other
    /// buffers begin anew, as the graph says.
    pub buffers: List<u32, CHECKPOINT_BUFFERS_MAX>,
    /// It may be kept after so many dispatches in all, and after each multiple.
    pub every: u64,
}

/// What is wrong with a graph, or a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The bytes are no program of their runtime.
    #[error("the job's program is not well encoded: {0}")]
    Codec(#[from] WireError),
    /// A part breaks a rule; the text names part and rule.
    #[error("{0}")]
    Rule(String),
}

impl Graph {
    /// Decodes and checks a graph.
    ///
    /// # Errors
    /// If the bytes are not one canonical, valid graph.
    pub fn decode(bytes: &[u8]) -> Result<Self, SpecError> {
        let graph: Self = wire::decode(bytes, SPEC_BYTES_MAX)?;
        graph.validate()?;
        Ok(graph)
    }

    /// The bytes that travel.
    ///
    /// # Errors
    /// If they would be more than [`SPEC_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, SpecError> {
        encode(self)
    }

    /// Checks all that needs neither compiler nor adapter.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn validate(&self) -> Result<(), SpecError> {
        rule(!self.source.trim().is_empty(), || {
            "the WGSL source is empty".to_owned()
        })?;
        rule(!self.passes.is_empty(), || {
            "the graph has no pass".to_owned()
        })?;
        rule(!self.outputs.is_empty(), || {
            "the graph has no output".to_owned()
        })?;
        self.validate_features()?;
        self.validate_buffers()?;
        for (index, pass) in self.passes.iter().enumerate() {
            self.validate_pass(index, pass)?;
        }
        rule(self.dispatches() <= DISPATCHES_MAX, || {
            format!(
                "{} dispatches with all repeats, at most {DISPATCHES_MAX} are allowed",
                self.dispatches()
            )
        })?;
        self.validate_outputs()?;
        match &self.checkpoint {
            Some(checkpoint) => self.validate_checkpoint(checkpoint),
            None => Ok(()),
        }
    }

    /// Dispatches of the whole graph, repeats included.
    #[must_use]
    pub fn dispatches(&self) -> u64 {
        self.passes.iter().map(|pass| u64::from(pass.repeat)).sum()
    }

    /// Bytes of all buffers.
    #[must_use]
    pub fn buffer_bytes(&self) -> u64 {
        self.buffers
            .iter()
            .fold(0, |sum, buffer| sum.saturating_add(buffer.size))
    }

    /// Bytes of all outputs.
    #[must_use]
    pub fn output_bytes(&self) -> u64 {
        self.outputs.iter().fold(0, |sum, output| {
            sum.saturating_add(self.output_size(output))
        })
    }

    /// Whether the outputs come back in the worker's last frame instead of files.
    #[must_use]
    pub fn has_small_outputs(&self) -> bool {
        self.output_bytes() <= OUTPUT_MEMORY_MAX
    }

    /// Bytes of one output; 0 if it names no buffer.
    #[must_use]
    pub fn output_size(&self, output: &Output) -> u64 {
        self.buffer(output.buffer).map_or(0, |buffer| buffer.size)
    }

    /// The buffers of its checkpoints, in their order; none if it has no such.
    pub fn state(&self) -> impl Iterator<Item = &Buffer> {
        let checkpoint = self.checkpoint.iter();
        let indices = checkpoint.flat_map(|checkpoint| checkpoint.buffers.iter());
        indices.filter_map(|index| self.buffer(*index))
    }

    /// The buffer with this index.
    #[must_use]
    pub fn buffer(&self, index: u32) -> Option<&Buffer> {
        self.buffers.get(usize::try_from(index).ok()?)
    }

    /// Bytes that each input must have at least, by input index.
    #[must_use]
    pub fn input_bytes_min(&self) -> Vec<u64> {
        let mut least = Vec::new();
        for buffer in &self.buffers {
            let Content::Input {
                index,
                offset,
                length,
            } = buffer.content
            else {
                continue;
            };
            let Ok(index) = usize::try_from(index) else {
                continue;
            };
            if least.len() <= index {
                least.resize(index + 1, 0);
            }
            least[index] = least[index].max(offset.saturating_add(length));
        }
        least
    }

    fn validate_features(&self) -> Result<(), SpecError> {
        for feature in &self.features {
            rule(FEATURES.contains(feature), || {
                format!(
                    "the graph names the feature `{feature}`; there are: {}",
                    feature_names()
                )
            })?;
        }
        rule(self.features.is_sorted_by(|a, b| a < b), || {
            format!(
                "the graph names its features twice, or not in this order: {}",
                feature_names()
            )
        })
    }

    fn validate_buffers(&self) -> Result<(), SpecError> {
        let mut names = BTreeSet::new();
        for buffer in &self.buffers {
            let name = &*buffer.name;
            rule(is_identifier(name), || bad_name("buffer", name))?;
            rule(names.insert(name), || {
                format!("two buffers are named `{name}`")
            })?;
            rule(buffer.size > 0 && buffer.size.is_multiple_of(4), || {
                format!(
                    "buffer `{name}` has {} bytes; a positive multiple of 4 is needed",
                    buffer.size
                )
            })?;
            rule(buffer.size <= BUFFER_BYTES_MAX, || {
                format!(
                    "buffer `{name}` has {} bytes, at most {BUFFER_BYTES_MAX} are allowed",
                    buffer.size
                )
            })?;
            let content_bytes = match &buffer.content {
                Content::Inline(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
                Content::Input {
                    index,
                    offset,
                    length,
                } => {
                    rule(
                        usize::try_from(*index).is_ok_and(|index| index < INPUTS_MAX),
                        || {
                            format!(
                                "buffer `{name}` reads input {index}, at most {INPUTS_MAX} are allowed"
                            )
                        },
                    )?;
                    rule(offset.checked_add(*length).is_some() && *length > 0, || {
                        format!("buffer `{name}` reads an empty or impossible range of its input")
                    })?;
                    *length
                }
                Content::Zeroed => 0,
            };
            rule(content_bytes <= buffer.size, || {
                format!(
                    "buffer `{name}` has {} bytes, its content {content_bytes}",
                    buffer.size
                )
            })?;
        }
        Ok(())
    }

    fn validate_pass(&self, index: usize, pass: &Pass) -> Result<(), SpecError> {
        let entry = &*pass.entry;
        rule(is_identifier(entry), || bad_name("entry point", entry))?;
        for binding in &pass.bindings {
            rule(self.buffer(*binding).is_some(), || {
                format!("pass {index} (`{entry}`) binds buffer {binding}, which does not exist")
            })?;
        }
        for count in pass.workgroups {
            rule((1..=WORKGROUPS_MAX).contains(&count), || {
                format!(
                    "pass {index} (`{entry}`) asks for {count} workgroups in a dimension; 1 to {WORKGROUPS_MAX} are allowed"
                )
            })?;
        }
        rule(pass.repeat > 0, || {
            format!("pass {index} (`{entry}`) repeats 0 times")
        })?;
        let mut names = BTreeSet::new();
        for constant in &pass.constants {
            let name = &*constant.name;
            rule(is_word(name), || bad_name("constant", name))?;
            rule(names.insert(name), || {
                format!("pass {index} sets the constant `{name}` twice")
            })?;
            rule(f64::from_bits(constant.bits).is_finite(), || {
                format!("pass {index} sets the constant `{name}` to a value that is not finite")
            })?;
        }
        Ok(())
    }

    fn validate_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), SpecError> {
        rule(
            checkpoint.every > 0 && !checkpoint.buffers.is_empty(),
            || "a checkpoint after 0 dispatches, or of no buffer".to_owned(),
        )?;
        rule(checkpoint.buffers.is_sorted_by(|a, b| a < b), || {
            "the checkpoint names a buffer twice, or not in ascending order".to_owned()
        })?;
        for index in &checkpoint.buffers {
            rule(self.buffer(*index).is_some(), || {
                format!("the checkpoint keeps buffer {index}, which does not exist")
            })?;
        }
        let bytes = self
            .state()
            .fold(0_u64, |sum, buffer| sum.saturating_add(buffer.size));
        rule(bytes <= CHECKPOINT_BYTES_MAX, || {
            format!("the checkpoint has {bytes} bytes, at most {CHECKPOINT_BYTES_MAX} are allowed")
        })
    }

    fn validate_outputs(&self) -> Result<(), SpecError> {
        let mut names = BTreeSet::new();
        for output in &self.outputs {
            let name = &*output.name;
            rule(is_output_name(name), || bad_name("output", name))?;
            rule(names.insert(name), || {
                format!("two outputs are named `{name}`")
            })?;
            rule(self.buffer(output.buffer).is_some(), || {
                format!(
                    "output `{name}` reads buffer {}, which does not exist",
                    output.buffer
                )
            })?;
        }
        Ok(())
    }
}

/// Names of all features, for messages.
pub(crate) fn feature_names() -> String {
    FEATURES.map(|feature| feature.to_string()).join(", ")
}

/// A spec's bytes, if they are not too many.
pub(crate) fn encode<T: Wire>(spec: &T) -> Result<Vec<u8>, SpecError> {
    let bytes = wire::encode(spec);
    if bytes.len() > SPEC_BYTES_MAX {
        return Err(WireError::TooLong {
            bytes: bytes.len(),
            bytes_max: SPEC_BYTES_MAX,
        }
        .into());
    }
    Ok(bytes)
}

/// Whether this can name a buffer or an entry point.
#[must_use]
pub fn is_identifier(name: &str) -> bool {
    is_word(name) && !name.starts_with(|first: char| first.is_ascii_digit())
}

fn is_word(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

pub(crate) fn is_output_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

pub(crate) fn bad_name(what: &str, name: &str) -> String {
    format!(
        "`{}` is no {what} name: letters, digits and `_` are allowed",
        name.escape_default()
    )
}

pub(crate) fn rule(holds: bool, message: impl FnOnce() -> String) -> Result<(), SpecError> {
    if holds {
        Ok(())
    } else {
        Err(SpecError::Rule(message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::cut(text)
    }

    fn graph() -> Graph {
        Graph {
            source: Utf8::cut("@compute @workgroup_size(1) fn main() {}"),
            features: List::default(),
            buffers: vec![Buffer {
                name: name("out"),
                content: Content::Zeroed,
                size: 4,
            }]
            .try_into()
            .unwrap(),
            passes: vec![Pass {
                entry: name("main"),
                bindings: vec![0].try_into().unwrap(),
                workgroups: [1, 1, 1],
                repeat: 1,
                constants: List::default(),
            }]
            .try_into()
            .unwrap(),
            outputs: vec![Output {
                buffer: 0,
                name: name("out"),
            }]
            .try_into()
            .unwrap(),
            checkpoint: None,
        }
    }

    fn refused(change: impl FnOnce(&mut Graph)) -> String {
        let mut graph = graph();
        change(&mut graph);
        let bytes = wire::encode(&graph);
        Graph::decode(&bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_graph_comes_back_from_its_bytes() {
        let bytes = graph().encode().unwrap();
        assert_eq!(Graph::decode(&bytes), Ok(graph()));
    }

    #[test]
    fn every_cut_of_the_bytes_is_refused() {
        let bytes = graph().encode().unwrap();
        for end in 0..bytes.len() {
            assert!(Graph::decode(&bytes[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn abuse_39_dispatches_over_the_limits_are_refused() {
        let pass = graph().passes[0].clone();
        let wide = Pass {
            workgroups: [1, 65_536, 1],
            ..pass.clone()
        };
        let long = Pass {
            repeat: u32::MAX,
            ..pass
        };
        assert!(refused(|g| g.passes = vec![wide].try_into().unwrap()).contains("65535"));
        assert!(refused(|g| g.passes = vec![long].try_into().unwrap()).contains("1000000"));
    }

    #[test]
    fn features_are_known_and_named_once_in_order() {
        let named =
            |features: &[Feature]| refused(|g| g.features = List::truncated(features.to_vec()));
        assert!(
            named(&[Feature(77)]).contains("`feature-77`; there are: f16, subgroups, timestamps")
        );
        assert!(named(&[Feature::F16, Feature::F16]).contains("twice"));
        assert!(named(&[Feature::SUBGROUPS, Feature::F16]).contains("not in this order"));
        let mut all = graph();
        all.features = List::truncated(FEATURES.to_vec());
        assert_eq!(Graph::decode(&all.encode().unwrap()), Ok(all));
    }

    #[test]
    fn checkpoints_keep_buffers_that_exist_once_and_not_too_many_bytes() {
        let keeps = |buffers: &[u32], every| {
            Some(Checkpoint {
                buffers: List::truncated(buffers.to_vec()),
                every,
            })
        };
        for (buffers, every, says) in [
            (&[0_u32][..], 0, "after 0 dispatches"),
            (&[], 1, "of no buffer"),
            (&[0, 0], 1, "twice"),
            (&[0, 1], 1, "buffer 1, which does not exist"),
        ] {
            assert!(refused(|g| g.checkpoint = keeps(buffers, every)).contains(says));
        }
        let large = Buffer {
            name: name("out"),
            content: Content::Zeroed,
            size: CHECKPOINT_BYTES_MAX + 4,
        };
        let too_large = refused(|g| {
            g.buffers = vec![large].try_into().unwrap();
            g.checkpoint = keeps(&[0], 1);
        });
        assert!(too_large.contains("at most 268435456"), "{too_large}");
        let mut good = graph();
        good.checkpoint = keeps(&[0], 7);
        assert_eq!(Graph::decode(&good.encode().unwrap()), Ok(good));
    }

    #[test]
    fn sizes_and_references_are_checked() {
        let sized = |size| {
            vec![Buffer {
                name: name("out"),
                content: Content::Zeroed,
                size,
            }]
        };
        assert!(refused(|g| g.buffers = sized(6).try_into().unwrap()).contains("multiple of 4"));
        assert!(refused(|g| g.buffers = sized(8 << 30).try_into().unwrap()).contains("at most"));
        assert!(refused(|g| g.buffers = List::default()).contains("does not exist"));
        assert!(refused(|g| g.outputs = List::default()).contains("no output"));
    }

    #[test]
    fn abuse_30_output_names_stay_in_their_folder() {
        for bad in ["../x", "/etc/passwd", ".hidden", "a/b", "", "a\u{202e}b"] {
            let output = Output {
                buffer: 0,
                name: name(bad),
            };
            assert!(refused(|g| g.outputs = vec![output].try_into().unwrap()).contains("output"));
        }
    }

    #[test]
    fn input_sizes_follow_from_the_ranges() {
        let mut graph = graph();
        let reads = |text: &str, index, offset| Buffer {
            name: name(text),
            content: Content::Input {
                index,
                offset,
                length: 8,
            },
            size: 8,
        };
        graph.buffers = vec![reads("a", 1, 16), reads("b", 1, 4)]
            .try_into()
            .unwrap();
        assert_eq!(graph.input_bytes_min(), [0, 24]);
    }
}
