//! The Suanli daemon and its command line.

#![forbid(unsafe_code)]

pub mod api;
