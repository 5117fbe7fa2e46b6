//! The Suanli daemon and its command line.

#![forbid(unsafe_code)]

pub mod api;
pub mod handle;
pub mod records;
pub mod store;
pub mod transport;
