//! Bytes are a WebAssembly module, or choose one that is valid; then the worker's look
//! at it. What it passes and a validator accepts keeps to the limits, and it calls
//! nothing malformed that a validator accepts.

#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use suanli_executor_fuzz::modules;
use wasm_smith::{Config, Module};

/// A module with this in front is given as it is.
const MAGIC: &[u8] = b"\0asm";

fuzz_target!(|bytes: &[u8]| {
    if bytes.starts_with(MAGIC) {
        return modules::check(bytes);
    }
    let mut choices = Unstructured::new(bytes);
    if let Ok(module) = Module::new(config(), &mut choices) {
        modules::check(&module.to_bytes());
    }
});

/// Of the engine's features; one export has the name that commands need.
fn config() -> Config {
    Config {
        available_imports: None,
        bulk_memory_enabled: true,
        exceptions_enabled: false,
        gc_enabled: false,
        max_memories: 1,
        memory64_enabled: false,
        multi_value_enabled: true,
        reference_types_enabled: true,
        relaxed_simd_enabled: false,
        simd_enabled: true,
        tail_call_enabled: true,
        threads_enabled: false,
        ..Config::default()
    }
}
