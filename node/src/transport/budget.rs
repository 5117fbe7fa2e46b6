//! What one peer may send: bytes held at once, and rates.
//!
//! The readers of a peer's streams run in tasks of their own and share one [`Budget`].

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::TransportLimits;
use crate::rate::Rate;

/// One peer's budget for frames.
#[derive(Debug)]
pub(super) struct Budget {
    in_flight: Arc<Semaphore>,
    frames: Rate,
    bytes: Rate,
}

impl Budget {
    pub(super) fn new(limits: &TransportLimits) -> Self {
        Self {
            in_flight: room(limits.in_flight_bytes, limits),
            frames: Rate::new(limits.frames_per_s, limits.frames_burst),
            bytes: Rate::new(limits.bytes_per_s, limits.bytes_burst),
        }
    }

    /// Waits until the driver holds few enough of this peer's bytes. `None` once the peer is cut.
    pub(super) async fn hold(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.in_flight)
            .acquire_many_owned(bytes)
            .await
            .ok()
    }

    /// Charges one frame and returns the pause before the next may be read.
    pub(super) fn charge(&self, bytes: u32) -> Duration {
        self.frames.charge(1).max(self.bytes.charge(bytes))
    }

    /// Ends all of the peer's readers that wait for room.
    pub(super) fn cut(&self) {
        self.in_flight.close();
    }
}

/// A semaphore of bytes that any one frame fits into.
pub(super) fn room(bytes: u32, limits: &TransportLimits) -> Arc<Semaphore> {
    let bytes = bytes.max(limits.frame_bytes.max());
    let permits = usize::try_from(bytes).unwrap_or(Semaphore::MAX_PERMITS);
    Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)))
}
