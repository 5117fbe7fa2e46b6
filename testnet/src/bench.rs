//! What things cost: the figures that `scripts/bench` prints.
//!
//! ```text
//! cli ─▶ overhead  two `suanli node` processes, a job that does nothing, HyperQueue beside it
//!    ├─▶ gossip    nodes in this process, a new offer, every book
//!    ├─▶ store     durable records, the disk beside them; starts from many of them
//!    ├─▶ executor  executions in this process, bare programs and other sandboxes beside them
//!    ├─▶ market    jobs and units in a second through two such processes, many in flight
//!    ├─▶ match     a book of 100,000 offers, the rules that rank it, one thread
//!    └─▶ memory    one `suanli node` process that knows 200 offers
//!            └─▶ figures: a table for people, a JSON object a line for programs
//! ```
//!
//! The same command takes 2 to 20 times longer on a busy machine, so every
//! report says how busy it was, and what is compared is measured in turns in
//! the same run. Absent: any pass or fail. Latencies are reported, not asserted.

pub mod cli;

mod device;
mod executor;
mod figures;
mod gateway;
mod gossip;
mod hyperqueue;
mod machine;
mod market;
mod matching;
mod member;
mod memory;
mod offers;
mod overhead;
mod starting;
mod store;
