//! The wall clock: the only place of the node that reads it.
//!
//! What must not jump (timers, durations) goes by `Instant`; this is for what others see, and for
//! what outlives the process.

use std::time::{SystemTime, UNIX_EPOCH};

use suanli_protocol::units::Wall;

/// Civil time. A clock before 1970 reads as 1970.
pub(crate) fn wall() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Wall::default().after(since.unwrap_or_default())
}

/// Milliseconds since 1970 UTC.
pub(crate) fn wall_ms() -> u64 {
    wall().as_millis()
}
