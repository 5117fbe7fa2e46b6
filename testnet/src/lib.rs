//! Suanli networks on one machine.
//!
//! One kind of file describes a network, its faults and its work
//! ([`scenario`]). [`sim`] runs it as thousands of peers in one thread, on
//! virtual time and from a seed. [`live`] runs its nodes as processes on the
//! loopback interface. The same checkers judge every simulated run. [`audits`]
//! holds simulations against what chance says, [`settlement`] puts faults at every step
//! of an account, [`market`] holds choices against the least that they could cost,
//! [`ownership`] machines of one's own against a pool, and [`bench`] measures.
//!
//! Absent: any decision of the protocol. This crate moves bytes, loses them,
//! stops nodes, and watches.

pub mod audits;
pub mod bench;
mod cores;
pub mod live;
pub mod market;
pub mod ownership;
pub mod scenario;
pub mod settlement;
pub mod sim;
