//! Jobs and workers that mean harm. Numbers are those of the project's abuse
//! list; a shader that is not generated is a file beside this one. Each test says
//! which failure it saw. On a machine without an adapter they say so and pass.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do; clippy knows only functions marked as tests"
)]

mod cases;
mod shaders;
#[path = "../gpu/support.rs"]
#[allow(dead_code, reason = "shared with the tests of what jobs are for")]
mod support;
mod tenants;
mod workers;
