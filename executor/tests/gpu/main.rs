//! Tests that run jobs on an adapter, in real worker processes. On a machine
//! without one they say so and pass; on one without a GPU, Mesa's software
//! driver serves.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do; clippy knows only functions marked as tests"
)]

#[path = "../../examples/attacker/attempts.rs"]
#[allow(dead_code, reason = "the list is read here; the attacker makes them")]
mod attempts;
mod checkpoints;
mod executions;
mod features;
mod kernels;
mod sandbox;
#[allow(dead_code, reason = "shared with the tests of what jobs must not do")]
mod support;
