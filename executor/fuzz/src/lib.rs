//! What the fuzz targets have in common.
//!
//! Each file in `fuzz_targets/` is one target: it turns bytes into what the code
//! under test takes, calls it, and asserts what must hold of the answer. What they
//! need besides is here: the checks of the worker, built from the worker's own
//! files ([`shaders`], [`modules`]), a generator of WGSL ([`wgsl`]), a thread with a
//! worker's stack ([`room`]), and an account of memory ([`memory`]).
//!
//! Absent: sanitizers. Nothing of ours that is fuzzed here has unsafe code, and with
//! one a stack would hold less than a worker's does. Arithmetic is checked instead.

// The worker's files name naga by way of wgpu; here naga is all of wgpu that there is.
extern crate self as wgpu;
pub use naga;

pub mod cursor;
pub mod memory;
pub mod modules;
pub mod room;
pub mod shaders;
pub mod wgsl;

/// Says what a target made of its bytes, when somebody replays a finding.
pub fn show(what: impl FnOnce() -> String) {
    if std::env::var_os("SUANLI_FUZZ_SHOW").is_some() {
        eprintln!("{}", what());
    }
}
