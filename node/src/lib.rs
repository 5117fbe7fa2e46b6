//! The Suanli daemon and its command line.

#![forbid(unsafe_code)]

pub mod api;
pub mod changes;
pub mod cli;
pub mod client;
pub mod compaction;
pub mod config;
pub mod daemon;
pub mod data_dir;
pub mod devices;
pub mod document;
pub mod driver;
pub mod expression;
pub mod gateway;
pub mod handle;
pub mod identity;
pub mod jobfile;
pub mod keys;
pub mod measured;
pub mod models;
pub mod neighbours;
pub mod pause;
pub mod pipeline;
pub mod pricing;
mod processor;
mod rate;
pub mod records;
pub mod settlement;
pub mod statement;
pub mod store;
pub mod transport;
mod wall;
