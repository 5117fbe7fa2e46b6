//! Jobs and workers that mean harm. Numbers are those of the project's abuse list.
//! Programs that end by themselves are listed in `fixtures/cases.toml`, with what they
//! try, what stops them and how; others whose outputs tell are files beside it. Each
//! test says which failure it saw. On a machine without an adapter they say so and
//! pass.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do; clippy knows only functions marked as tests"
)]

mod cases;
mod listed;
mod shaders;
#[path = "../gpu/support.rs"]
#[allow(dead_code, reason = "shared with the tests of what jobs are for")]
mod support;
mod tenants;
mod workers;
