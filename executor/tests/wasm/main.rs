//! Tests that run WebAssembly commands in real worker processes. What a command
//! does and what fuel it uses is the same on every machine, so both are
//! asserted to the last unit.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do; clippy knows only functions marked as tests"
)]

#[allow(
    dead_code,
    unused_imports,
    reason = "other test targets use the rest of it"
)]
#[path = "../gpu/support.rs"]
mod support;

mod commands;
mod files;
mod fuel;
mod hostile;
mod prices;
mod resting;
