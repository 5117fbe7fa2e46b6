//! The HTTP API of a node, on loopback and behind a token.

pub mod types;
