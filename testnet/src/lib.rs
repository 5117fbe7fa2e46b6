//! Suanli networks on one machine.

pub mod bench;
