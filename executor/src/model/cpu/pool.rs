//! A few threads that work on one thing at a time.
//!
//! Work is cut into chunks, and whoever is free takes the next one: the threads, and
//! the caller as well. So a thread that the machine gives no time to is waited for
//! only if it has begun a chunk, and a machine with busy cores gets slower and does
//! not stall. Between two pieces of work in the middle of a forward pass a thread looks
//! out for the next for some microseconds, because waking it would take longer than
//! the work; then, and whenever nothing is computed, it sleeps.
//!
//! Absent: queues, nesting, and results. A chunk writes where nobody else does.

use std::{
    hint, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

/// How often a thread looks before it sleeps: ten to fifty microseconds.
const LOOKS: u32 = 400;

type Work<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// The threads. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is work, or the end.
    begin: Condvar,
    /// Nobody works any more.
    done: Condvar,
    /// Counts pieces of work.
    epoch: AtomicU64,
    /// The next chunk that nobody has.
    next: AtomicUsize,
    /// Threads that work; changed under the lock.
    active: AtomicUsize,
    /// More work comes soon.
    attentive: AtomicBool,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    asleep: usize,
    is_awaited: bool,
    has_failed: bool,
    is_over: bool,
}

#[derive(Clone, Copy)]
struct Job {
    work: &'static Work<'static>,
    chunks: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl Pool {
    /// With so many workers, of which the caller is one.
    ///
    /// # Errors
    ///
    /// If the system gives no thread.
    pub(super) fn new(workers: usize) -> std::io::Result<Self> {
        let mut pool = Self {
            shared: Arc::default(),
            threads: Vec::new(),
        };
        for worker in 1..workers {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new()
                .name(format!("model-{worker}"))
                .spawn(move || serve(&shared, worker))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// The caller included.
    pub(super) fn workers(&self) -> usize {
        self.threads.len() + 1
    }

    /// Until this is dropped, threads look out for work before they sleep.
    pub(super) fn attentive(&self) -> Attentive<'_> {
        self.shared.attentive.store(true, Ordering::Relaxed);
        Attentive(&self.shared)
    }

    /// Calls `work` with the number of a worker and of a chunk, once for each chunk.
    /// Two calls at the same time have different workers.
    pub(super) fn run(&self, chunks: usize, work: &Work<'_>) {
        if self.threads.is_empty() || chunks <= 1 {
            return (0..chunks).for_each(|chunk| work(0, chunk));
        }
        // SAFETY: only the lifetime changes. Threads use the reference while they are
        // counted as active, they become so only while the job is set, and `Ended`
        // unsets it and waits for the last of them before this function ends, also
        // when it unwinds.
        let lasting = unsafe { mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
        let ended = Ended(&self.shared);
        {
            let mut state = self.shared.lock();
            state.job = Some(Job {
                work: lasting,
                chunks,
            });
            self.shared.next.store(0, Ordering::Relaxed);
            self.shared.epoch.fetch_add(1, Ordering::Release);
            if state.asleep > 0 {
                self.shared.begin.notify_all();
            }
        }
        self.shared.take_chunks(0, chunks, work);
        drop(ended);
        let failed = mem::take(&mut self.shared.lock().has_failed);
        assert!(!failed, "a chunk of work panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.shared.begin.notify_all();
        for thread in self.threads.drain(..) {
            // It catches what panics; there is nothing to hear from it.
            let _ = thread.join();
        }
    }
}

/// See [`Pool::attentive`].
#[derive(Debug)]
pub(super) struct Attentive<'a>(&'a Shared);

impl Drop for Attentive<'_> {
    fn drop(&mut self) {
        self.0.attentive.store(false, Ordering::Relaxed);
    }
}

/// Whoever drops it waits until no thread works.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.lock().job = None;
        for _ in 0..LOOKS {
            if self.0.active.load(Ordering::Acquire) == 0 {
                return;
            }
            hint::spin_loop();
        }
        let mut state = self.0.lock();
        while self.0.active.load(Ordering::Acquire) > 0 {
            state.is_awaited = true;
            state = self
                .0
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.is_awaited = false;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_chunks(&self, worker: usize, chunks: usize, work: &Work<'_>) {
        loop {
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks {
                return;
            }
            work(worker, chunk);
        }
    }

    /// Waits for the piece of work after `seen`. False at the end.
    fn wait(&self, seen: &mut u64) -> bool {
        let mut looks = 0;
        while looks < LOOKS && self.attentive.load(Ordering::Relaxed) {
            if self.epoch.load(Ordering::Acquire) != *seen {
                break;
            }
            hint::spin_loop();
            looks += 1;
        }
        let mut state = self.lock();
        while self.epoch.load(Ordering::Acquire) == *seen && !state.is_over {
            state.asleep += 1;
            state = self
                .begin
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.asleep -= 1;
        }
        *seen = self.epoch.load(Ordering::Acquire);
        !state.is_over
    }
}

fn serve(shared: &Shared, worker: usize) {
    let mut seen = 0;
    while shared.wait(&mut seen) {
        let job = {
            let state = shared.lock();
            if state.job.is_some() {
                shared.active.fetch_add(1, Ordering::Relaxed);
            }
            state.job
        };
        let Some(job) = job else { continue };
        let taking = AssertUnwindSafe(|| shared.take_chunks(worker, job.chunks, job.work));
        let has_failed = catch_unwind(taking).is_err();
        let mut state = shared.lock();
        state.has_failed |= has_failed;
        if shared.active.fetch_sub(1, Ordering::Release) == 1 && state.is_awaited {
            shared.done.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn each_chunk_is_worked_on_once_whoever_is_awake() {
        let pool = Pool::new(4).unwrap();
        for round in 0..2000 {
            let attentive = (round % 3 == 0).then(|| pool.attentive());
            let counts: Vec<AtomicU32> = (0..round % 37).map(|_| AtomicU32::new(0)).collect();
            pool.run(counts.len(), &|worker, chunk| {
                assert!(worker < 4);
                counts[chunk].fetch_add(1, Ordering::Relaxed);
            });
            assert!(
                counts
                    .iter()
                    .all(|count| count.load(Ordering::Relaxed) == 1)
            );
            drop(attentive);
        }
    }

    #[test]
    fn a_chunk_that_panics_is_heard_of_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..20 {
            let failing = AssertUnwindSafe(|| {
                pool.run(50, &|_, chunk| assert_ne!(chunk, 25));
            });
            assert!(catch_unwind(failing).is_err());
            pool.run(50, &|_, _| ());
        }
    }
}
