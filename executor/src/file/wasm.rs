//! The `[wasm]` section of a job file, as people write it.
//!
//! ```toml
//! [wasm]
//! module = "primes.wasm"            # beside the job file; or text, `.wat`
//! args = ["1000000"]                # optional, as all below
//! env = { LANG = "C" }
//! stdin = "numbers.txt"
//! clock = 1767225600                # what clocks show at the start, in seconds
//! seed = 7                          # what random numbers are made from
//! stdout = { max = "1MiB", file = "primes.txt" }
//!
//! [[wasm.file]]
//! file = "data/train.u8"
//! path = "train.u8"                 # the program reads /in/train.u8
//!
//! [[wasm.output]]
//! name = "model.bin"                # the program writes /out/model.bin
//! max = "16MiB"
//! file = "model.bin"
//! ```

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use suanli_protocol::wire::{List, Utf8};
use toml::Spanned;

use super::{
    FileError, Here, InputFile, OutputFile, Prepared, Show,
    array::Array,
    gather::{FileOf, Gathered},
};
use crate::{
    command::{Command, InFile, OutFile, STDERR, STDOUT, Variable, is_path},
    limits::{MODULE_BYTES_MAX, PATH_DEPTH_MAX},
    quantity::ByteSize,
    spec::{Name, is_output_name},
    units::Place,
};

/// Bytes of a stream where the file does not say.
const STREAM_BYTES: u64 = 64 << 10;

/// The `[wasm]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WasmSection {
    /// The module, relative to the job file.
    pub module: Spanned<String>,
    /// Arguments, without the program's name.
    #[serde(default)]
    pub args: Vec<Spanned<String>>,
    /// Environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, Spanned<String>>,
    /// A file that is standard input.
    pub stdin: Option<Spanned<String>>,
    /// Seconds since 1970.
    #[serde(default)]
    pub clock: u64,
    /// What random numbers are made from.
    #[serde(default)]
    pub seed: u64,
    /// Standard output.
    #[serde(default)]
    pub stdout: Stream,
    /// Standard error.
    #[serde(default)]
    pub stderr: Stream,
    /// `[[wasm.file]]`.
    #[serde(default)]
    pub file: Vec<FileEntry>,
    /// `[[wasm.output]]`.
    #[serde(default)]
    pub output: Vec<WasmOutputEntry>,
}

/// What becomes of a standard stream.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Bytes, at most.
    pub max: Option<ByteSize>,
    /// Where the client writes it.
    pub file: Option<Spanned<String>>,
}

/// `[[wasm.file]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// A file of the client.
    pub file: Spanned<String>,
    /// Where the program finds it, below `/in`; under its own name if not given.
    pub path: Option<Spanned<String>>,
}

/// `[[wasm.output]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WasmOutputEntry {
    /// Name of the file in `/out`.
    pub name: Spanned<String>,
    /// Bytes, at most.
    pub max: ByteSize,
    /// Where the client writes it, relative to its output folder.
    pub file: Option<Spanned<String>>,
    /// The client prints its first value.
    pub show: Option<Show>,
}

impl WasmSection {
    /// Looks at the module and the input files, and builds the command.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn resolve(
        &self,
        toml_text: &str,
        job_file: &Path,
        (memory_max, fuel_max): (u64, u64),
        array: Option<&Array>,
    ) -> Result<Prepared, FileError> {
        let here = Here {
            toml_text,
            job_file,
            array,
        };
        let mut gathered = Gathered::default();
        gathered.shared(&here, &self.module, self.module(&here)?)?;
        let stdin = match &self.stdin {
            Some(file) => Some(gathered.whole(&here, file)?),
            None => None,
        };
        let files = self
            .file
            .iter()
            .map(|entry| entry.resolve(&here, &mut gathered));
        let mut files = files.collect::<Result<Vec<_>, _>>()?;
        for file in &mut files {
            file.input = gathered.number(file.input);
        }
        let (outputs, to_files) = self.outputs(&here, &mut gathered)?;
        let command = Command {
            module: 0,
            arguments: self.arguments(&here, &mut gathered)?,
            variables: self.variables(&here, &mut gathered)?,
            stdin: stdin.map(|index| gathered.number(index)),
            files: here.bounded(&self.module, "[[wasm.file]]", files)?,
            outputs: here.bounded(&self.module, "[[wasm.output]]", outputs)?,
            stdout_max: self.stdout.bytes_max(),
            stderr_max: self.stderr.bytes_max(),
            memory_max,
            fuel_max,
            clock_ns: self.clock.saturating_mul(1_000_000_000),
            seed: self.seed,
        };
        let outcome = gathered.finish(&here, &self.module)?;
        here.prepared(&self.module, command, outcome, to_files)
    }

    /// The module's bytes: text is assembled here, so that a spec never holds any.
    fn module(&self, here: &Here<'_>) -> Result<InputFile, FileError> {
        let at = &self.module;
        let path = here.path(at.get_ref());
        let length = here.file_bytes(at, &path)?;
        if length > MODULE_BYTES_MAX {
            let message = format!(
                "{} has {length} bytes, at most {MODULE_BYTES_MAX} are allowed",
                path.display()
            );
            return Err(here.error(at, message));
        }
        if path.extension().is_none_or(|extension| extension != "wat") {
            return Ok(InputFile {
                path,
                offset: 0,
                length,
                made: None,
            });
        }
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|error| here.unreadable(at.span(), &path, &error))?;
        let made = wat::parse_str(&text).map_err(|mut error| {
            error.set_path(&path);
            here.error(at, error.to_string())
        })?;
        Ok(InputFile {
            path,
            offset: 0,
            length: u64::try_from(made.len()).unwrap_or(u64::MAX),
            made: Some(made.into()),
        })
    }

    /// The program's name first, as programs expect it.
    fn arguments<const B: usize, const N: usize>(
        &self,
        here: &Here<'_>,
        gathered: &mut Gathered,
    ) -> Result<List<Utf8<B>, N>, FileError> {
        let path = Path::new(self.module.get_ref());
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut arguments = vec![Utf8::cut(&name)];
        for (argument, place) in self.args.iter().zip(1..) {
            let place = (Place::Argument(place), &*format!("argument {place}"));
            arguments.push(gathered.text(here, argument, place)?);
        }
        here.bounded(&self.module, "args", arguments)
    }

    fn variables<const N: usize>(
        &self,
        here: &Here<'_>,
        gathered: &mut Gathered,
    ) -> Result<List<Variable, N>, FileError> {
        let variables = self.env.iter().zip(0..).map(|((name, value), place)| {
            let failed = |error: suanli_protocol::wire::WireError| {
                here.error(value, format!("the variable `{name}`: {error} bytes"))
            };
            let place = (Place::Variable(place), &*format!("variable {name}"));
            Ok(Variable {
                name: Name::try_from(name.clone()).map_err(failed)?,
                value: gathered.text(here, value, place)?,
            })
        });
        let variables = variables.collect::<Result<Vec<_>, _>>()?;
        here.bounded(&self.module, "env", variables)
    }

    /// What comes back, and what the client does with it, in one order.
    fn outputs(
        &self,
        here: &Here<'_>,
        gathered: &mut Gathered,
    ) -> Result<(Vec<OutFile>, Vec<OutputFile>), FileError> {
        let mut to_files = Vec::new();
        for (name, stream) in [(STDOUT, &self.stdout), (STDERR, &self.stderr)] {
            let files = stream.file.as_ref();
            let files = files.map(|file| gathered.output(here, file)).transpose()?;
            to_files.push(OutputFile {
                name: name.to_owned(),
                bytes: stream.bytes_max(),
                is_stream: true,
                files: files.unwrap_or_default(),
                png: None,
                show: None,
            });
        }
        let mut outputs = Vec::new();
        for entry in &self.output {
            let name = entry.name.get_ref();
            let known = to_files.iter().any(|known| known.name == *name);
            let bounded = Name::try_from(name.clone()).ok();
            let bounded = bounded.filter(|_| is_output_name(name) && !known);
            let bounded = bounded.ok_or_else(|| {
                let message = format!(
                    "`{}` is no output name, or is there twice: letters, digits, `_`, `-` and `.` are allowed",
                    name.escape_debug()
                );
                here.error(&entry.name, message)
            })?;
            let files = entry.file.as_ref();
            let files = files.map(|file| gathered.output(here, file)).transpose()?;
            to_files.push(OutputFile {
                name: name.clone(),
                bytes: entry.max.0,
                is_stream: false,
                files: files.unwrap_or_default(),
                png: None,
                show: entry.show.clone(),
            });
            outputs.push(OutFile {
                name: bounded,
                bytes_max: entry.max.0,
            });
        }
        Ok((outputs, to_files))
    }
}

impl Stream {
    fn bytes_max(&self) -> u64 {
        self.max.map_or(STREAM_BYTES, |max| max.0)
    }
}

impl FileEntry {
    fn resolve(&self, here: &Here<'_>, gathered: &mut Gathered) -> Result<InFile, FileError> {
        if self.path.is_none() && matches!(here.file(&self.file)?, FileOf::Own(_)) {
            let message = "units' files have different names: give a `path`, under which the program finds each";
            return Err(here.error(&self.file, message.to_owned()));
        }
        let own_name = Path::new(self.file.get_ref()).file_name();
        let path = match (&self.path, own_name) {
            (Some(path), _) => path.get_ref().clone(),
            (None, Some(name)) => name.to_string_lossy().into_owned(),
            (None, None) => String::new(),
        };
        let at = self.path.as_ref().unwrap_or(&self.file);
        let bounded = Utf8::try_from(path.clone()).ok().filter(|_| is_path(&path));
        let bounded = bounded.ok_or_else(|| {
            let message = format!(
                "`{}` is no path below /in: names without `.` and `..`, joined by `/`, {PATH_DEPTH_MAX} at most",
                path.escape_debug()
            );
            here.error(at, message)
        })?;
        Ok(InFile {
            path: bounded,
            input: gathered.whole(here, &self.file)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Program, file::array::ArraySection};

    const GOOD: &str = r#"
module = "program.wat"
args = ["one", "two words"]
env = { LANG = "C" }
stdin = "numbers.txt"
clock = 10
seed = 7
stdout = { max = "1KiB", file = "said.txt" }
[[file]]
file = "numbers.txt"
path = "a/b"
[[output]]
name = "model.bin"
max = "2MiB"
file = "out/model.bin"
"#;

    fn resolve(text: &str) -> Result<Prepared, FileError> {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("program.wat", "(module (func (export \"_start\")))");
        write("broken.wat", "(module\n  (func $f (call $nowhere)))");
        write("numbers.txt", "1 2 3");
        let section: WasmSection = toml::from_str(text).unwrap();
        section.resolve(text, &dir.path().join("job.toml"), (1 << 20, 99), None)
    }

    #[test]
    fn a_good_file_becomes_a_command() {
        let prepared = resolve(GOOD).unwrap();
        let Program::Wasm(command) = prepared.program() else {
            panic!("it is of another runtime")
        };
        let arguments: Vec<&str> = command.arguments.iter().map(|text| &**text).collect();
        assert_eq!(arguments, ["program", "one", "two words"]);
        assert_eq!((command.module, command.stdin), (0, Some(1)));
        assert_eq!(
            (&*command.files[0].path, command.files[0].input),
            ("a/b", 1)
        );
        assert_eq!((command.clock_ns, command.fuel_max), (10_000_000_000, 99));
        assert_eq!(prepared.inputs.len(), 2, "two entries share one file");
        let module = prepared.inputs[0].made.as_ref().unwrap();
        assert!(module.starts_with(b"\0asm"));
        let outputs = prepared.outputs.iter();
        let outputs: Vec<_> = outputs
            .map(|output| (output.name.as_str(), output.bytes, output.is_stream))
            .collect();
        let wanted = [
            ("stdout", 1 << 10, true),
            ("stderr", 64 << 10, true),
            ("model.bin", 2 << 20, false),
        ];
        assert_eq!(outputs, wanted);
    }

    /// As [`GOOD`], with what units have of their own; two units with a file each.
    fn of_files(change: (&str, &str)) -> Result<Prepared, FileError> {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("program.wat", "(module (func (export \"_start\")))");
        write("numbers.txt", "1 2 3");
        write("a.dat", "a");
        write("b.dat", "bb");
        let job = dir.path().join("job.toml");
        let section: ArraySection = toml::from_str("files = \"*.dat\"").unwrap();
        let array = section.resolve("", &job).unwrap();
        let text = GOOD
            .replace("stdin = \"numbers.txt\"", "stdin = \"{item}\"")
            .replace(
                "\"one\", \"two words\"",
                "\"{{{unit}\", \"of {item}\", \"{unit}\"",
            )
            .replace("\"C\"", "\"C-{unit}\"")
            .replace("said.txt", "said-{item}")
            .replace("out/model.bin", "{unit}/model.bin")
            .replacen(change.0, change.1, 1);
        let section: WasmSection = toml::from_str(&text).unwrap();
        section.resolve(&text, &job, (1 << 20, 99), Some(&array))
    }

    #[test]
    fn units_of_an_array_have_arguments_variables_and_files_of_their_own() {
        let prepared = of_files(("", "")).unwrap();
        let lengths = prepared.inputs.iter().skip(1).map(|input| input.length);
        assert_eq!(
            lengths.collect::<Vec<_>>(),
            [5, 1, 2],
            "shared ones come first"
        );
        let program = prepared.template.for_unit(1).unwrap();
        let Program::Wasm(command) = &*program else {
            panic!("it is of another runtime")
        };
        let arguments: Vec<&str> = command.arguments.iter().map(|text| &**text).collect();
        assert_eq!(arguments, ["program", "{1", "of b.dat", "1"]);
        assert_eq!(&*command.variables[0].value, "C-1");
        assert_eq!((command.files[0].input, command.stdin), (1, Some(2)));
        assert_eq!(prepared.outputs[0].file(0), Some(Path::new("said-a.dat")));
        assert_eq!(prepared.outputs[2].file(1), Some(Path::new("1/model.bin")));
    }

    #[test]
    fn mistakes_of_an_array_are_named_with_their_line() {
        let file = "file = \"numbers.txt\"";
        for (from, to, line, says) in [
            (
                "{unit}/model.bin",
                "said-{item}",
                15,
                "two outputs of unit 0",
            ),
            (
                "{unit}/model.bin",
                "model.bin",
                15,
                "units 0 and 1 would overwrite",
            ),
            (
                "file = \"numbers.txt\"\npath = \"a/b\"",
                "file = \"{item}\"",
                10,
                "give a `path`",
            ),
            (file, "file = \"x-{item}\"", 10, "`{item}` and nothing else"),
            ("C-{unit}", "{unti}", 4, "did you mean `{unit}`?"),
        ] {
            let error = of_files((from, to)).unwrap_err();
            assert!(
                error.line == line && error.message.contains(says),
                "{error}"
            );
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (from, to, line, says) in [
            ("program.wat", "missing.wasm", 2, "cannot read"),
            ("program.wat", "broken.wat", 2, "broken.wat:2:"),
            ("path = \"a/b\"", "path = \"../b\"", 11, "no path below /in"),
            (
                "name = \"model.bin\"",
                "name = \"stdout\"",
                13,
                "no output name",
            ),
            ("out/model.bin", "../model.bin", 15, "without `..`"),
            ("\"C\" }", "\"\\u0000\" }", 2, "zero byte"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD);
            let error = resolve(&text).unwrap_err();
            assert_eq!(error.line, line, "{error}");
            assert!(error.message.contains(says), "{error}");
        }
    }
}
