//! How much at once.
//!
//! A gate for each kind of request, so that a flood of one kind leaves the
//! others alive: whoever uploads or lists without end can still be stopped by
//! a `cancel` or a `shutdown`. Each bounds what goes on at once, and how often
//! it begins. A request that finds its gate full or comes too fast is refused
//! at once; nothing queues.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;
use crate::rate::Rate;

/// Requests a second through each gate: above what a person's scripts do, and below what would
/// keep the driver from its peers.
const PER_S: u32 = 1_000;
/// Orders that end something.
const STOPS: usize = 32;
/// Small questions and orders to the driver.
const CONTROLS: usize = 128;
/// Questions to the store, each of which reads and verifies records.
const LOOKUPS: usize = 32;
/// Uploads: each holds a thread and a file.
const UPLOADS: usize = 8;
/// Event streams and downloads.
const STREAMS: usize = 128;
/// Questions to models: a firm's developers, each of whom waits for one or two. Fewer than
/// connections, so that who runs the node always gets one.
const ASKS: usize = 384;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    Stop,
    Control,
    Lookup,
    Upload,
    Stream,
    Ask,
}

/// The gates of one server.
#[derive(Debug)]
pub(super) struct Gates {
    stops: Bound,
    controls: Bound,
    lookups: Bound,
    uploads: Bound,
    streams: Bound,
    asks: Bound,
}

#[derive(Debug)]
struct Bound {
    places: Arc<Semaphore>,
    rate: Rate,
}

impl Gates {
    pub(super) fn new() -> Self {
        Self::with_rate(PER_S)
    }

    /// So many requests a second through each, and as many at once before that counts.
    pub(super) fn with_rate(per_s: u32) -> Self {
        let bound = |places| Bound {
            places: Arc::new(Semaphore::new(places)),
            rate: Rate::new(per_s, per_s),
        };
        Self {
            stops: bound(STOPS),
            controls: bound(CONTROLS),
            lookups: bound(LOOKUPS),
            uploads: bound(UPLOADS),
            streams: bound(STREAMS),
            asks: bound(ASKS),
        }
    }

    /// A place until the permit is dropped.
    pub(super) fn enter(&self, gate: Gate) -> Result<OwnedSemaphorePermit, Problem> {
        let (bound, what) = match gate {
            Gate::Stop => (&self.stops, "orders"),
            Gate::Control => (&self.controls, "requests"),
            Gate::Lookup => (&self.lookups, "questions to the store"),
            Gate::Upload => (&self.uploads, "uploads"),
            Gate::Stream => (&self.streams, "streams"),
            Gate::Ask => (&self.asks, "questions"),
        };
        // Who waits is told a second, which is the longest that a burst takes to be paid off.
        bound.rate.admit(1).map_err(|_| Problem::too_many(what))?;
        Arc::clone(&bound.places)
            .try_acquire_owned()
            .map_err(|_| Problem::too_many(what))
    }
}
