//! Bytes are a job file. What it is refused for is said with its line; what it becomes
//! survives its own encoding, and fits the files that it names.

#![no_main]

use std::path::Path;

use libfuzzer_sys::{Corpus, fuzz_target};
use serde::Deserialize;
use suanli_executor::{
    Program,
    file::{FileError, Prepared, WgslSection, wasm::WasmSection},
    quantity::{ByteSize, Span},
};
use suanli_executor_fuzz::show;

/// Beside the files that seeds name; never written.
const JOB_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/job_files/job.toml");
const QUANTITY_BYTES_MAX: usize = 64;
const MEMORY_MAX: u64 = 1 << 30;
const FUEL_MAX: u64 = 1 << 40;

/// The sections that are read here; the node reads the rest of the file.
#[derive(Deserialize)]
struct Job {
    wgsl: Option<WgslSection>,
    wasm: Option<WasmSection>,
}

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Corpus::Reject;
    };
    // Whoever writes a job file may name any file of theirs; a fuzzer should not.
    if ["/proc", "/sys", "/dev"]
        .iter()
        .any(|folder| text.contains(folder))
    {
        return Corpus::Reject;
    }
    if text.len() <= QUANTITY_BYTES_MAX {
        quantities(text);
    }
    let Ok(job) = toml::from_str::<Job>(text) else {
        return Corpus::Keep;
    };
    let path = Path::new(JOB_FILE);
    if let Some(section) = job.wgsl {
        hold(section.resolve(text, path), text);
    }
    if let Some(section) = job.wasm {
        hold(section.resolve(text, path, MEMORY_MAX, FUEL_MAX), text);
    }
    Corpus::Keep
});

fn hold(resolved: Result<Prepared, FileError>, text: &str) {
    show(|| format!("{resolved:#?}"));
    let prepared = match resolved {
        Ok(prepared) => prepared,
        Err(error) => {
            assert!(
                (1..=text.lines().count().max(1)).contains(&error.line),
                "{error}"
            );
            assert!(!error.message.is_empty());
            return;
        }
    };
    let program = &prepared.program;
    assert_eq!(program.validate(), Ok(()));
    let bytes = program.encode().expect("what was made fits");
    assert_eq!(
        Program::decode(program.runtime(), &bytes).as_ref(),
        Ok(program)
    );
    let least = program.input_bytes_min();
    assert_eq!(least.len(), prepared.inputs.len());
    for (least, input) in least.iter().zip(&prepared.inputs) {
        assert!(*least <= input.length, "{} of {}", least, input.length);
    }
    let planned = program.outputs();
    assert_eq!(planned.len(), prepared.outputs.len());
    for (planned, output) in planned.iter().zip(&prepared.outputs) {
        assert_eq!(
            (&planned.name, planned.bytes_max),
            (&output.name, output.bytes)
        );
        assert!(output.file.as_ref().is_none_or(|file| file.is_relative()));
    }
}

/// What can be read is read the same when it is shown.
fn quantities(text: &str) {
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    if let Ok(span) = text.parse::<Span>() {
        assert_eq!(span.to_string().parse(), Ok(span));
    }
}
