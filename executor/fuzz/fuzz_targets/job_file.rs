//! Bytes are a job file. What it is refused for is said with its line; what it becomes
//! survives its own encoding, and fits the files that it names.

#![no_main]

use std::path::Path;

use libfuzzer_sys::{Corpus, fuzz_target};
use serde::Deserialize;
use suanli_executor::{
    Template,
    file::{
        FileError, Prepared, WgslSection,
        array::{Array, ArraySection},
        wasm::WasmSection,
    },
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
    array: Option<ArraySection>,
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
    let array = match job.array.map(|section| section.resolve(text, path)) {
        None => None,
        Some(Ok(array)) => Some(array),
        Some(Err(error)) => {
            says_where(&error, text);
            return Corpus::Keep;
        }
    };
    if let Some(section) = job.wgsl {
        hold(
            section.resolve(text, path, array.as_ref()),
            array.as_ref(),
            text,
        );
    }
    if let Some(section) = job.wasm {
        let resolved = section.resolve(text, path, (MEMORY_MAX, FUEL_MAX), array.as_ref());
        hold(resolved, array.as_ref(), text);
    }
    Corpus::Keep
});

fn says_where(error: &FileError, text: &str) {
    assert!(
        (1..=text.lines().count().max(1)).contains(&error.line),
        "{error}"
    );
    assert!(!error.message.is_empty());
}

fn hold(resolved: Result<Prepared, FileError>, array: Option<&Array>, text: &str) {
    show(|| format!("{resolved:#?}"));
    let prepared = match resolved {
        Ok(prepared) => prepared,
        Err(error) => {
            says_where(&error, text);
            return;
        }
    };
    let (template, program) = (&prepared.template, prepared.program());
    let bytes = template.encode().expect("what was made fits");
    assert_eq!(
        Template::decode(program.runtime(), &bytes).as_ref(),
        Ok(template)
    );
    let units = template.units();
    assert_eq!(units, array.map_or(1, Array::units));
    for unit in [0, units - 1] {
        let of_unit = template.for_unit(unit).expect("it is one of them");
        assert_eq!(of_unit.validate(), Ok(()));
    }
    let each = usize::from(prepared.inputs_each);
    let least = program.input_bytes_min();
    assert_eq!(
        least.len() + each * (units as usize - 1),
        prepared.inputs.len()
    );
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
        assert!(output.files.iter().all(|file| file.is_relative()));
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
