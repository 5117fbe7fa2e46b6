//! Many seeds on a few threads. Each seed is a world of its own.

use std::{
    ops::Range,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use super::{Figures, Outcome, Setup, run};

/// What came of many seeds.
#[derive(Debug, Default)]
pub struct Summary {
    /// How many ran.
    pub seeds: u64,
    /// All their figures together.
    pub figures: Figures,
    /// Those that something does not hold for, in order.
    pub failing: Vec<(u64, Outcome)>,
}

/// Runs seeds, and says of each what came of it, in the order of ending.
pub fn run_many(
    setup: &Setup,
    seeds: Range<u64>,
    threads: usize,
    mut each: impl FnMut(u64, &Outcome),
) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let mut summary = Summary::default();
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(threads.max(1));
        for _ in 0..threads.max(1) {
            let (sender, next, end) = (sender.clone(), &next, seeds.end);
            scope.spawn(move || work_off(setup, next, end, &sender));
        }
        drop(sender);
        for (seed, outcome) in receiver {
            each(seed, &outcome);
            summary.take(seed, outcome);
        }
    });
    summary.failing.sort_by_key(|(seed, _)| *seed);
    summary
}

fn work_off(setup: &Setup, next: &AtomicU64, end: u64, sender: &SyncSender<(u64, Outcome)>) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return;
        }
        let mut setup = setup.clone();
        setup.seed = seed;
        if sender.send((seed, run(&setup))).is_err() {
            return;
        }
    }
}

impl Summary {
    fn take(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.figures.add(&outcome.figures);
        if !outcome.complaints.is_empty() {
            self.failing.push((seed, outcome));
        }
    }
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.frames += other.frames;
        self.dropped += other.dropped;
        self.gossip += other.gossip;
        self.crashes += other.crashes;
        self.from_checkpoints += other.from_checkpoints;
        self.resumed += other.resumed;
        self.comparisons += other.comparisons;
        self.jobs += other.jobs;
        self.refused += other.refused;
        self.done += other.done;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.declined += other.declined;
        self.expired += other.expired;
        self.agreements += other.agreements;
        self.receipts += other.receipts;
        self.vouchers += other.vouchers;
        self.blamed += other.blamed;
    }
}
