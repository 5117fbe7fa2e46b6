//! Client and provider over a simulated link, one test for each behaviour.

#![expect(clippy::unwrap_used, reason = "what a harness can't do fails the test")]

mod accounts;
mod arrays;
mod budgets;
mod challenges;
mod checkpoints;
mod crashes;
mod freivalds;
mod models;
mod negotiation;
mod puppet;
mod queue;
mod references;
mod staying;
mod tolerance;
mod work;
mod world;
