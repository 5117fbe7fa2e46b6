//! Waiting for a condition, within a bound that only a broken node reaches.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Between two looks: short beside anything that is waited for.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until the condition holds; false if it never did within the limit.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    wait_for(limit, || condition().then_some(())).is_some()
}

/// Looks until there is something; `None` if there never was within the limit.
pub fn wait_for<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if started.elapsed() > limit {
            return None;
        }
        thread::sleep(PAUSE);
    }
}
