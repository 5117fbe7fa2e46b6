//! What a job runs, whichever runtime it is for.
//!
//! The one place where a program's bytes are decoded by their runtime, and where
//! what all programs have in common (memory, inputs, outputs) is asked. What
//! only one of them has is the business of [`crate::spec`] and
//! [`crate::command`]. What travels between nodes is a [`crate::Template`], which
//! holds a program; a worker is given the program of one unit.

use suanli_protocol::registry::{Feature, Runtime};

use crate::{
    checkpoint::Checkpoints,
    command::Command,
    spec::{Graph, SpecError},
};

/// Version of the `wgsl` runtime.
pub const WGSL_VERSION: u16 = 1;
/// Version of the `wasm` runtime: of its functions, and of what its fuel counts.
/// An agreement names the offer that says it.
pub const WASM_VERSION: u16 = 1;

/// A decoded and checked program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Compute passes on a device.
    Wgsl(Graph),
    /// A WebAssembly command on the processor.
    Wasm(Command),
}

/// An output as the spec states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// The most bytes that it may have; just so many, if [`Self::is_exact`].
    pub bytes_max: u64,
    /// Whether its size is known before it runs.
    pub is_exact: bool,
}

impl Program {
    /// Decodes and checks a program.
    ///
    /// # Errors
    /// If the bytes are no valid program of the runtime, or no runtime of ours.
    pub fn decode(runtime: Runtime, bytes: &[u8]) -> Result<Self, SpecError> {
        match runtime {
            Runtime::WGSL => Graph::decode(bytes).map(Self::Wgsl),
            Runtime::WASM => Command::decode(bytes).map(Self::Wasm),
            other => Err(SpecError::Rule(format!("{other} is not run here"))),
        }
    }

    /// The bytes that a worker gets.
    ///
    /// # Errors
    /// If they would be too many.
    pub fn encode(&self) -> Result<Vec<u8>, SpecError> {
        match self {
            Self::Wgsl(graph) => graph.encode(),
            Self::Wasm(command) => command.encode(),
        }
    }

    /// Checks all that needs neither compiler nor adapter.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn validate(&self) -> Result<(), SpecError> {
        match self {
            Self::Wgsl(graph) => graph.validate(),
            Self::Wasm(command) => command.validate(),
        }
    }

    /// What runs it.
    #[must_use]
    pub const fn runtime(&self) -> Runtime {
        match self {
            Self::Wgsl(_) => Runtime::WGSL,
            Self::Wasm(_) => Runtime::WASM,
        }
    }

    /// What it needs of a device, beyond what every device has.
    #[must_use]
    pub fn features(&self) -> &[Feature] {
        match self {
            Self::Wgsl(graph) => &graph.features,
            Self::Wasm(_) => &[],
        }
    }

    /// Bytes of memory that it asks for.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        match self {
            Self::Wgsl(graph) => graph.buffer_bytes(),
            Self::Wasm(command) => command.memory_max,
        }
    }

    /// Fuel that it asks for; 0 for what is not metered so.
    #[must_use]
    pub const fn fuel_max(&self) -> u64 {
        match self {
            Self::Wgsl(_) => 0,
            Self::Wasm(command) => command.fuel_max,
        }
    }

    /// Bytes that each input must have at least, by input index.
    #[must_use]
    pub fn input_bytes_min(&self) -> Vec<u64> {
        match self {
            Self::Wgsl(graph) => graph.input_bytes_min(),
            Self::Wasm(command) => vec![0; command.input_count()],
        }
    }

    /// Its outputs, in order.
    #[must_use]
    pub fn outputs(&self) -> Vec<Planned> {
        match self {
            Self::Wgsl(graph) => {
                let planned = |output: &crate::spec::Output| Planned {
                    name: output.name.to_string(),
                    bytes_max: graph.output_size(output),
                    is_exact: true,
                };
                graph.outputs.iter().map(planned).collect()
            }
            Self::Wasm(command) => command.planned_outputs(),
        }
    }

    /// Whether it says what to keep on its way.
    #[must_use]
    pub fn has_checkpoints(&self) -> bool {
        matches!(self, Self::Wgsl(graph) if graph.checkpoint.is_some())
    }

    /// What its checkpoints keep, if it has any.
    pub(crate) fn checkpoints(&self) -> Option<Checkpoints> {
        let Self::Wgsl(graph) = self else {
            return None;
        };
        let state = graph.state().map(|buffer| Planned {
            name: buffer.name.to_string(),
            bytes_max: buffer.size,
            is_exact: true,
        });
        graph.checkpoint.as_ref().map(|checkpoint| Checkpoints {
            state: state.collect(),
            every: checkpoint.every,
            total: graph.dispatches(),
        })
    }

    /// Bytes of all outputs together, at most.
    #[must_use]
    pub fn output_bytes_max(&self) -> u64 {
        match self {
            Self::Wgsl(graph) => graph.output_bytes(),
            Self::Wasm(command) => command.output_bytes_max(),
        }
    }
}

impl From<Graph> for Program {
    fn from(graph: Graph) -> Self {
        Self::Wgsl(graph)
    }
}

impl From<Command> for Program {
    fn from(command: Command) -> Self {
        Self::Wasm(command)
    }
}
