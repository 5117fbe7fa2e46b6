//! Networks of real nodes on loopback: what a simulation can't show, because
//! it takes processes, disks, sockets and a device.
//!
//! The nodes run `suanli` and `suanli-worker` as they lie beside the tests;
//! where they are missing, they are built once. After a change to the node,
//! `cargo build --workspace --bins` (or a run of all tests) brings them up to
//! date. All tests are named `live_…`, so that the test runner takes them one
//! at a time.

#![expect(clippy::unwrap_used, reason = "a test that can't go on panics")]

mod accuracy;
mod arrays;
mod asking;
mod bench;
mod challenges;
mod checkpoints;
mod devices;
mod disk;
mod hostile;
mod jobs;
mod keys;
mod kills;
mod market;
mod models;
mod network;
mod own_models;
mod pausing;
mod products;
mod queueing;
mod standing;
mod starting;
