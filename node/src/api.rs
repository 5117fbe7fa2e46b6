//! The HTTP API of a node, on loopback and behind a token.

pub mod server;
pub mod token;
pub mod types;
pub mod views;
