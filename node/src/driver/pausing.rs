//! What follows from a pause: the offer goes, and so do workers that nobody uses.

use suanli_protocol::units::Wall;

use super::*;
use crate::{handle::NotPaused, pause::Pause};

/// The wall clock may jump, and machines sleep: a change is not waited for longer.
const REVIEW_MAX: Duration = Duration::from_secs(30);

/// Why the driver begins nothing new, if so, and when it looks again.
#[derive(Debug)]
pub(super) struct Pausing {
    pauses: Option<Pauses>,
    /// The pause that is carried out.
    pub(super) now: Option<Pause>,
    pub(super) review_at: Option<Instant>,
}

impl Pausing {
    pub(super) const fn new(pauses: Option<Pauses>) -> Self {
        Self {
            pauses,
            now: None,
            review_at: None,
        }
    }

    fn pauses(&mut self) -> Result<&mut Pauses, NotPaused> {
        self.pauses.as_mut().ok_or(NotPaused::SellsNothing)
    }
}

impl Driver {
    /// Withdraws the offer, or announces it, if that has to change by now.
    pub(super) async fn review(&mut self) {
        let Some(pauses) = &self.pausing.pauses else {
            return;
        };
        let now = wall();
        self.pausing.review_at = pauses
            .next_change(now)
            .map(|at| Instant::now() + at.since(now).min(REVIEW_MAX));
        let pause = pauses.at(now);
        let before = std::mem::replace(&mut self.pausing.now, pause);
        match (before, &self.pausing.now) {
            (None, Some(pause)) => {
                let until_ms = pause.until.map(Wall::as_millis);
                tracing::info!(why = pause.why.sentence(), until_ms, "paused");
                self.step(Input::Command(Command::Withdraw)).await;
                self.devices.rest().await;
            }
            (Some(_), None) => {
                tracing::info!("selling again");
                self.devices.wake().await;
                self.provide().await;
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    /// Begins nothing new, until then or until a resume; with `now`, ends what runs.
    pub(super) async fn pause(&mut self, until: Option<Wall>, now: bool) -> Result<(), NotPaused> {
        let kept = self.pausing.pauses()?.pause(until);
        self.review().await;
        if now {
            self.step(Input::Command(Command::Abandon)).await;
        }
        kept.map_err(|error| NotPaused::NotKept(error.to_string()))
    }

    pub(super) async fn resume(&mut self) -> Result<(), NotPaused> {
        let kept = self.pausing.pauses()?.resume(wall());
        self.review().await;
        kept.map_err(|error| NotPaused::NotKept(error.to_string()))
    }

    pub(super) async fn saw_neighbour(&mut self, name: String) {
        if let Some(pauses) = &mut self.pausing.pauses {
            pauses.saw(name, wall());
            self.review().await;
        }
    }
}
