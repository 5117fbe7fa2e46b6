//! What Suanli's peers say, sign and decide.
#![forbid(unsafe_code)]
pub mod book;
pub mod bundle;
pub mod deal;
pub mod delegation;
pub mod envelope;
pub mod grant;
pub mod ids;
pub mod limits;
pub mod message;
pub mod offer;
pub mod rank;
pub mod receipt;
pub mod record;
pub mod registry;
pub mod units;
pub mod voucher;
pub mod wire;
