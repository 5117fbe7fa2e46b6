//! placeholder

pub mod transport;
