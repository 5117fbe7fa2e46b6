//! Bytes choose a shader by a grammar, and the passes over it; then the worker's check.

#![no_main]

use libfuzzer_sys::fuzz_target;
use suanli_executor_fuzz::{room, shaders, wgsl};

fuzz_target!(|bytes: &[u8]| room::with_worker_stack(target, bytes));

fn target(bytes: &[u8]) {
    shaders::check(&wgsl::graph(bytes));
}
