//! How many machines a pool would need if nobody had to be asked and nothing had to travel:
//! where the search begins, and nothing more.
//!
//! The jobs of the day on which each firm had its own machine, in the order in which they were
//! handed in; each takes the machine that is free first, for as long as it ran on that day.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::sim::{Outcome, Patience};

/// A job, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Job {
    submitted: u64,
    runs: u64,
}

/// The fewest of up to so many machines on which jobs would wait no longer than that.
pub(super) fn fewest(day: &Outcome, all: usize, patience: Patience) -> usize {
    let jobs = jobs(day);
    let (mut few, mut most) = (0, all.max(1));
    while most - few > 1 {
        let machines = usize::midpoint(few, most);
        match is_enough(&jobs, machines, patience) {
            true => most = machines,
            false => few = machines,
        }
    }
    most
}

fn jobs(day: &Outcome) -> Vec<Job> {
    let done = day.trades.iter().filter_map(|trade| {
        let place = day.places.get(trade.provider?)?;
        let micros = u128::from(trade.operations) * 1_000_000;
        let runs = micros.div_ceil(u128::from(place.speed.max(1)));
        Some(Job {
            submitted: trade.submitted.as_micros(),
            runs: u64::try_from(runs).ok()?,
        })
    });
    let mut jobs: Vec<Job> = done.collect();
    jobs.sort_unstable();
    jobs
}

fn is_enough(jobs: &[Job], machines: usize, patience: Patience) -> bool {
    let mut free: BinaryHeap<Reverse<u64>> = (0..machines).map(|_| Reverse(0)).collect();
    let may_wait = u64::try_from(patience.wait.as_micros()).unwrap_or(u64::MAX);
    let mut in_time = 0;
    for job in jobs {
        let Some(mut first) = free.peek_mut() else {
            return false;
        };
        let begins = first.0.max(job.submitted);
        *first = Reverse(begins.saturating_add(job.runs));
        in_time += usize::from(begins - job.submitted <= may_wait);
    }
    in_time >= (jobs.len() * patience.of_hundred).div_ceil(100)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn jobs_take_the_machine_that_is_free_first() {
        let job = |submitted, runs| Job { submitted, runs };
        let jobs = [job(0, 100), job(10, 100), job(20, 100), job(120, 10)];
        let within = |micros| Patience {
            of_hundred: 95,
            wait: Duration::from_micros(micros),
        };
        assert!(is_enough(&jobs, 3, within(0)));
        // The third waits for the first, the fourth for nobody.
        assert!(is_enough(&jobs, 2, within(80)) && !is_enough(&jobs, 2, within(79)));
        assert!(!is_enough(&jobs, 1, within(179)) && !is_enough(&jobs, 0, within(1000)));
    }
}
