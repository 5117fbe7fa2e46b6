//! The command: what a `wasm` execution does, as it travels.
//!
//! A [`Command`] is one WebAssembly module that speaks WASI preview 1, and the
//! whole world that it sees: arguments, variables, standard input, files below
//! `/in`, what a clock and a random source say. Everything that can differ
//! between two machines is in it, so equal commands give equal results and use
//! equal fuel everywhere.
//!
//! ```text
//! /in/…    the job's files, read only     /out/…   comes back, if it is an output
//! /tmp     anything                        stdout, stderr come back always
//! ```
//!
//! Absent: sockets, processes, the host's files, its clock.

use std::collections::BTreeSet;

use bincode::{Decode, Encode};
use suanli_protocol::wire::{self, List, Utf8};

use crate::{
    limits::{
        ARGUMENT_BYTES_MAX, ARGUMENTS_MAX, COMMAND_FILES_MAX, COMMAND_OUTPUTS_MAX, INPUTS_MAX,
        LINEAR_MEMORY_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, PATH_DEPTH_MAX, SPEC_BYTES_MAX,
        VARIABLES_MAX,
    },
    program::Planned,
    spec::{self, Name, SpecError, bad_name, is_output_name, rule},
};

/// Name of the output that holds standard output.
pub const STDOUT: &str = "stdout";
/// Name of the output that holds standard error.
pub const STDERR: &str = "stderr";

/// A module's text for measurements, in which `ROUNDS` is to be replaced.
pub const SIEVE: &str = include_str!("sieve.wat");

/// A `wasm` job.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Command {
    /// The input that is the module.
    pub module: u32,
    /// Arguments; the first is the program's name.
    pub arguments: List<Utf8<ARGUMENT_BYTES_MAX>, ARGUMENTS_MAX>,
    /// Environment variables, in this order.
    pub variables: List<Variable, VARIABLES_MAX>,
    /// The input that is standard input; empty if none.
    pub stdin: Option<u32>,
    /// Files below `/in`.
    pub files: List<InFile, COMMAND_FILES_MAX>,
    /// Files of `/out` that come back.
    pub outputs: List<OutFile, COMMAND_OUTPUTS_MAX>,
    /// Bytes of standard output, at most.
    pub stdout_max: u64,
    /// Bytes of standard error, at most.
    pub stderr_max: u64,
    /// Bytes of linear memory and of written files together, at most.
    pub memory_max: u64,
    /// Units of fuel, at most.
    pub fuel_max: u64,
    /// What clocks show at the start, in nanoseconds since 1970. They go on by
    /// one nanosecond per unit of fuel.
    pub clock_ns: u64,
    /// What random numbers are made from.
    pub seed: u64,
}

/// An environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Variable {
    /// Its name.
    pub name: Name,
    /// Its value.
    pub value: Utf8<ARGUMENT_BYTES_MAX>,
}

/// A file that the program can read.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct InFile {
    /// Where, below `/in`.
    pub path: Utf8<PATH_BYTES_MAX>,
    /// Which input.
    pub input: u32,
}

/// A file that the program may write and that comes back.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct OutFile {
    /// Its name in `/out`, and the output's.
    pub name: Name,
    /// Bytes, at most.
    pub bytes_max: u64,
}

impl Command {
    /// Decodes and checks a command.
    ///
    /// # Errors
    /// If the bytes are not one canonical, valid command.
    pub fn decode(bytes: &[u8]) -> Result<Self, SpecError> {
        let command: Self = wire::decode(bytes, SPEC_BYTES_MAX)?;
        command.validate()?;
        Ok(command)
    }

    /// The bytes that travel.
    ///
    /// # Errors
    /// If they would be more than [`SPEC_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, SpecError> {
        spec::encode(self)
    }

    /// Checks all that needs no compiler.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn validate(&self) -> Result<(), SpecError> {
        let texts = self.arguments.iter();
        let texts = texts.chain(self.variables.iter().map(|variable| &variable.value));
        for text in texts {
            rule(!text.contains('\0'), || {
                "an argument or a variable holds a zero byte".to_owned()
            })?;
        }
        for variable in self.variables.iter() {
            let name = &*variable.name;
            let plain = !name.is_empty() && !name.contains(['=', '\0']);
            rule(plain, || bad_name("variable", name))?;
        }
        let inputs = self.files.iter().map(|file| file.input);
        for input in inputs.chain(self.stdin).chain([self.module]) {
            rule(
                usize::try_from(input).is_ok_and(|input| input < INPUTS_MAX),
                || format!("input {input}: at most {INPUTS_MAX} inputs are allowed"),
            )?;
        }
        rule((1..=LINEAR_MEMORY_MAX).contains(&self.memory_max), || {
            format!(
                "{} bytes of memory: 1 to {LINEAR_MEMORY_MAX} are allowed",
                self.memory_max
            )
        })?;
        rule(self.fuel_max > 0, || "no fuel at all".to_owned())?;
        self.validate_files()?;
        self.validate_outputs()
    }

    /// How many inputs it reads.
    #[must_use]
    pub fn input_count(&self) -> usize {
        let files = self.files.iter().map(|file| file.input);
        let all = files.chain(self.stdin).chain([self.module]);
        all.max().map_or(0, |last| {
            usize::try_from(last)
                .unwrap_or(usize::MAX)
                .saturating_add(1)
        })
    }

    /// Standard output, standard error, then the files.
    #[must_use]
    pub fn planned_outputs(&self) -> Vec<Planned> {
        let streams = [(STDOUT, self.stdout_max), (STDERR, self.stderr_max)];
        let files = self.outputs.iter();
        let files = files.map(|file| (&*file.name, file.bytes_max));
        let planned = streams.into_iter().chain(files);
        let planned = planned.map(|(name, bytes_max)| Planned {
            name: name.to_owned(),
            bytes_max,
            is_exact: false,
        });
        planned.collect()
    }

    /// Bytes of all outputs together, at most.
    #[must_use]
    pub fn output_bytes_max(&self) -> u64 {
        let files = self.outputs.iter().map(|file| file.bytes_max);
        let all = files.chain([self.stdout_max, self.stderr_max]);
        all.fold(0, u64::saturating_add)
    }

    fn validate_files(&self) -> Result<(), SpecError> {
        let paths: BTreeSet<&str> = self.files.iter().map(|file| &*file.path).collect();
        for file in self.files.iter() {
            let path = &*file.path;
            rule(is_path(path), || {
                format!(
                    "`{}` is no path below /in: names without `.`, `..` or zero bytes, joined by `/`, {PATH_DEPTH_MAX} at most",
                    path.escape_default()
                )
            })?;
            let mut above = path;
            while let Some((folder, _)) = above.rsplit_once('/') {
                rule(!paths.contains(folder), || {
                    format!("`{folder}` is a file and a folder of `{path}`")
                })?;
                above = folder;
            }
        }
        rule(paths.len() == self.files.len(), || {
            "two files have one path".to_owned()
        })
    }

    fn validate_outputs(&self) -> Result<(), SpecError> {
        let mut names = BTreeSet::from([STDOUT, STDERR]);
        for output in self.outputs.iter() {
            let name = &*output.name;
            rule(is_output_name(name), || bad_name("output", name))?;
            rule(names.insert(name), || {
                format!("two outputs are named `{name}` (stdout and stderr are outputs, too)")
            })?;
        }
        Ok(())
    }
}

/// Whether this leads to a file below a folder, and nowhere else.
#[must_use]
pub fn is_path(path: &str) -> bool {
    let names = || path.split('/');
    names().count() <= PATH_DEPTH_MAX
        && names().all(|name| {
            !name.is_empty()
                && name != "."
                && name != ".."
                && name.len() <= NAME_BYTES_MAX
                && !name.contains('\0')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        Command {
            module: 0,
            arguments: vec![Utf8::cut("hello")].try_into().unwrap(),
            variables: List::default(),
            stdin: None,
            files: List::default(),
            outputs: List::default(),
            stdout_max: 10,
            stderr_max: 10,
            memory_max: 1 << 20,
            fuel_max: 1,
            clock_ns: 0,
            seed: 0,
        }
    }

    fn refused(change: impl FnOnce(&mut Command)) -> String {
        let mut command = command();
        change(&mut command);
        let bytes = wire::encode(&command);
        Command::decode(&bytes).unwrap_err().to_string()
    }

    fn file(path: &str, input: u32) -> InFile {
        InFile {
            path: Utf8::cut(path),
            input,
        }
    }

    #[test]
    fn a_command_comes_back_from_its_bytes() {
        let mut command = command();
        command.files = vec![file("a/b", 1), file("c", 2)].try_into().unwrap();
        command.stdin = Some(3);
        let bytes = command.encode().unwrap();
        assert_eq!(Command::decode(&bytes), Ok(command.clone()));
        assert_eq!(command.input_count(), 4);
        for end in 0..bytes.len() {
            assert!(Command::decode(&bytes[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn abuse_30_paths_stay_in_their_folder() {
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            "a\0",
        ] {
            let files = vec![file(bad, 0)];
            let said = refused(|c| c.files = files.try_into().unwrap());
            assert!(said.contains("no path"), "{bad}: {said}");
        }
        let twice = vec![file("a", 0), file("a/b", 0)];
        assert!(refused(|c| c.files = twice.try_into().unwrap()).contains("a folder"));
    }

    #[test]
    fn names_and_bounds_are_checked() {
        let output = |name: &str| OutFile {
            name: Utf8::cut(name),
            bytes_max: 1,
        };
        for bad in ["stdout", "../x", ".hidden"] {
            let outputs = vec![output(bad)];
            assert!(refused(|c| c.outputs = outputs.try_into().unwrap()).contains("output"));
        }
        assert!(refused(|c| c.fuel_max = 0).contains("fuel"));
        assert!(refused(|c| c.memory_max = u64::MAX).contains("memory"));
        assert!(refused(|c| c.module = 64).contains("inputs"));
        let zero = vec![Utf8::cut("a\0b")];
        assert!(refused(|c| c.arguments = zero.try_into().unwrap()).contains("zero byte"));
    }
}
