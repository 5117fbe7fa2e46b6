//! What Suanli's peers say, sign and decide.
//!
//! This crate is the exchange without the world around it: the shapes of all
//! that is signed, the rules by which offers are ranked and receipts checked,
//! and [`peer::Peer`], a state machine that negotiates, does work and keeps
//! accounts. Data flows one way:
//!
//! ```text
//! bytes ─wire─▶ frame ─signatures─▶ message ─▶ Peer ─▶ outputs: records, frames, executions
//! ```
//!
//! Start reading at [`deal`] (what binds whom), [`peer`] (what happens when),
//! [`bundle`] (what can be proved afterwards).
//!
//! **Architecture invariant:** nothing here does IO of any kind. No socket,
//! file, clock, thread or random source; time and randomness come in as
//! arguments. A test reads the dependency tree.
//!
//! **Architecture invariant:** untrusted bytes become values in [`wire`] and
//! nowhere else.

#![forbid(unsafe_code)]

pub mod book;
pub mod bundle;
pub mod call;
pub mod challenge;
pub mod deal;
pub mod delegation;
pub mod envelope;
pub mod expression;
pub mod freivalds;
pub mod grant;
pub mod ids;
pub mod limits;
pub mod message;
pub mod offer;
pub mod peer;
pub mod pricing;
pub mod rank;
pub mod receipt;
pub mod record;
pub mod reference;
pub mod registry;
pub mod standing;
pub mod tolerance;
pub mod units;
pub mod voucher;
pub mod wire;
