//! Ends a day before its time: once nobody can want more of it.
//!
//! ```text
//! handed in ──▶ open ──wait is over, and not begun──▶ too late ──more than may be──▶ out of patience
//!                └──begun in time──▶ nothing more
//! ```
//!
//! Who looks for the fewest machines that are enough wants to know of too few only that they
//! are. That is certain as soon as so many jobs have waited too long that the others are less
//! than what was asked for, whatever becomes of them: exact, and long before the day's end.
//!
//! Absent: any guess of how it would go on.

use std::{collections::VecDeque, time::Duration};

use suanli_protocol::{ids::JobId, units::Mono};

use super::trades::Trades;

/// What is asked of a day: of a hundred jobs so many begin after a wait no longer than this.
/// A run that can't come to that any more ends.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// So many of a hundred, by the nearest rank.
    pub of_hundred: usize,
    /// How long they may wait.
    pub wait: Duration,
}

/// Watches the jobs of a run.
#[derive(Debug)]
pub(crate) struct Watch {
    wait: Duration,
    /// Jobs that may wait longer.
    left: usize,
    /// Jobs handed in, in their order, and when each is too late.
    open: VecDeque<(Mono, JobId)>,
}

impl Watch {
    /// Of so many jobs in all.
    pub(crate) fn new(asked: Patience, jobs: usize) -> Self {
        let in_time = (jobs * asked.of_hundred).div_ceil(100);
        Self {
            wait: asked.wait,
            left: jobs.saturating_sub(in_time),
            open: VecDeque::new(),
        }
    }

    pub(crate) fn submitted(&mut self, job: JobId, now: Mono) {
        self.open.push_back((now.after(self.wait), job));
    }

    /// Whether too many have waited too long by now.
    pub(crate) fn is_over(&mut self, now: Mono, trades: &Trades) -> bool {
        while let Some((_, job)) = self.open.pop_front_if(|(due, _)| *due < now) {
            let started = trades
                .jobs
                .get(&job)
                .is_some_and(|job| job.started.is_some());
            if started {
                continue;
            }
            match self.left.checked_sub(1) {
                Some(left) => self.left = left,
                None => return true,
            }
        }
        false
    }
}
