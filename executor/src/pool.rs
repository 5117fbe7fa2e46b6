//! The pool: one task that owns all workers.
//!
//! ```text
//!             ┌─────────── start fails (waits, tries again) ──────────┐
//!             ▼                                                       │
//!   (empty) ─▶ Starting ─▶ Ready ─▶ Busy ─▶ Idle(tenant) ─▶ Ending ─▶ (empty)
//!                                    │ ▲       │  ▲ idle too long, or another tenant waits
//!                                    │ └───────┘ same tenant
//!                                    └─ failed, or `fresh`: already ended ─▶ (empty)
//! ```
//!
//! An empty slot is filled at once, so a worker that was ended is replaced
//! before the next job asks. While the pool rests, by order or because nobody
//! used it for long, it has no workers but those that executions need: it ends
//! the others, and starts one for each execution that waits. Nothing here
//! waits: starting, running and ending are tasks that come back as values, and
//! the events that may not be lost have their places reserved. There is no lock.
//!
//! The pool has a thread of its own with a runtime of its own. The kernel
//! kills a worker when the *thread* that started it ends, and threads of a
//! shared runtime come and go.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use crate::{
    child::{Child, Ended, WorkerProgram},
    execution::{Fault, Outcome, Plan},
    executor::{ExecutionEvent, ExecutionId, Tenant},
    ipc::{Failure, Reply, Start},
    limits::{DEVICE_LOSSES_MAX, QUEUE_MAX, START_FAILURES_MAX, START_TIME_MAX},
};

/// Wait after a failed start, doubled each time.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
const TICK_MAX: Duration = Duration::from_secs(1);
const TICK_MIN: Duration = Duration::from_millis(10);

/// What the pool is told.
#[derive(Debug)]
pub(crate) enum Command {
    Run(Box<Plan>),
    Cancel(ExecutionId),
    /// Keep no worker but those that executions need.
    Rest,
    /// Keep workers warm again.
    Wake,
    /// An execution may come soon: warm, unless told to rest.
    Expect,
    /// End all workers, then say so.
    Stop(oneshot::Sender<()>),
}

/// What the pool is made of.
#[derive(Debug)]
pub(crate) struct PoolConfig {
    pub(crate) program: WorkerProgram,
    pub(crate) start: Start,
    pub(crate) size: usize,
    pub(crate) idle_max: Duration,
    pub(crate) rest_after: Option<Duration>,
}

pub(crate) struct Pool {
    config: PoolConfig,
    events: mpsc::Sender<ExecutionEvent>,
    slots: BTreeMap<SlotId, Slot>,
    slots_made: u64,
    queue: VecDeque<Plan>,
    tasks: JoinSet<TaskEnd>,
    slot_of_task: HashMap<tokio::task::Id, SlotId>,
    start_failures: u32,
    start_not_before: Option<Instant>,
    device_losses: u32,
    quarantined: bool,
    told_to_rest: bool,
    last_used: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct SlotId(u64);

enum Slot {
    Starting,
    Ready(Child),
    Busy {
        id: ExecutionId,
        cancel: Option<oneshot::Sender<()>>,
    },
    Idle {
        worker: Child,
        tenant: Tenant,
        since: Instant,
    },
    Ending,
}

enum TaskEnd {
    Started(Result<Child, String>),
    Ran { tenant: Tenant, outcome: Outcome },
    Ended(Ended),
}

impl Pool {
    pub(crate) fn new(config: PoolConfig, events: mpsc::Sender<ExecutionEvent>) -> Self {
        Self {
            config,
            events,
            slots: BTreeMap::new(),
            slots_made: 0,
            queue: VecDeque::new(),
            tasks: JoinSet::new(),
            slot_of_task: HashMap::new(),
            start_failures: 0,
            start_not_before: None,
            device_losses: 0,
            quarantined: false,
            told_to_rest: false,
            last_used: Instant::now(),
        }
    }

    /// Serves until it is stopped or every handle is gone. Workers die with it.
    pub(crate) async fn serve(mut self, mut commands: mpsc::Receiver<Command>) {
        let period = self.config.rest_after.unwrap_or(TICK_MAX);
        let period = (period.min(self.config.idle_max) / 4).clamp(TICK_MIN, TICK_MAX);
        let mut tick = tokio::time::interval(period);
        loop {
            self.schedule();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Run(plan)) => self.take(*plan),
                    Some(Command::Cancel(id)) => self.cancel(id),
                    Some(Command::Rest) => self.told_to_rest = true,
                    Some(Command::Wake) => {
                        self.told_to_rest = false;
                        self.last_used = Instant::now();
                    }
                    Some(Command::Expect) => self.last_used = Instant::now(),
                    Some(Command::Stop(stopped)) => {
                        self.end_all().await;
                        let _ = stopped.send(());
                        return;
                    }
                    None => return self.end_all().await,
                },
                Some(end) = self.tasks.join_next_with_id() => self.task_ended(end),
                _ = tick.tick() => self.end_idle(),
            }
        }
    }

    fn take(&mut self, plan: Plan) {
        self.last_used = Instant::now();
        if self.quarantined {
            plan.refuse(quarantine());
        } else if self.queue.len() >= QUEUE_MAX {
            plan.refuse(Fault::new(
                Failure::QueueFull,
                format!("{QUEUE_MAX} executions wait already"),
            ));
        } else {
            self.queue.push_back(plan);
        }
    }

    fn cancel(&mut self, id: ExecutionId) {
        if let Some(place) = self.queue.iter().position(|plan| plan.id == id) {
            if let Some(plan) = self.queue.remove(place) {
                plan.refuse(Fault::new(
                    Failure::Cancelled,
                    "cancelled before it started",
                ));
            }
            return;
        }
        for slot in self.slots.values_mut() {
            if let Slot::Busy {
                id: running,
                cancel,
            } = slot
                && *running == id
                && let Some(cancel) = cancel.take()
            {
                let _ = cancel.send(());
            }
        }
    }

    /// Whether no worker is kept but those that executions need.
    fn rests(&self) -> bool {
        let is_over = |after| self.last_used.elapsed() >= after;
        self.told_to_rest || self.config.rest_after.is_some_and(is_over)
    }

    /// Gives waiting executions to workers, makes room for those that still
    /// wait, fills empty slots, and ends what a resting pool does not need.
    fn schedule(&mut self) {
        let mut waiting = std::mem::take(&mut self.queue);
        while let Some(plan) = waiting.pop_front() {
            match self.take_worker(&plan) {
                Some((slot, worker)) => self.assign(slot, worker, plan),
                None => self.queue.push_back(plan),
            }
        }
        self.make_room();
        let rests = self.rests();
        self.fill(rests);
        if rests {
            self.end_unused();
        }
    }

    /// A worker for this tenant: its own idle one, else a warmed one that no
    /// tenant has used.
    fn take_worker(&mut self, plan: &Plan) -> Option<(SlotId, Child)> {
        self.drop_dead();
        let own = |slot: &Slot| matches!(slot, Slot::Idle { tenant, .. } if *tenant == plan.tenant);
        let find = |fits: &dyn Fn(&Slot) -> bool| {
            self.slots
                .iter()
                .find(|(_, slot)| fits(slot))
                .map(|(id, _)| *id)
        };
        let reused = if plan.fresh { None } else { find(&own) };
        let id = reused.or_else(|| find(&|slot| matches!(slot, Slot::Ready(_))))?;
        match self.slots.insert(id, Slot::Ending)? {
            Slot::Ready(worker) | Slot::Idle { worker, .. } => Some((id, worker)),
            Slot::Starting | Slot::Busy { .. } | Slot::Ending => None,
        }
    }

    fn assign(&mut self, slot: SlotId, worker: Child, plan: Plan) {
        let (id, tenant) = (plan.id, plan.tenant);
        let (cancel, cancelled) = oneshot::channel();
        let events = self.events.clone();
        self.slots.insert(
            slot,
            Slot::Busy {
                id,
                cancel: Some(cancel),
            },
        );
        self.spawn(slot, async move {
            TaskEnd::Ran {
                tenant,
                outcome: plan.run(worker, cancelled, events).await,
            }
        });
    }

    /// Ends idle workers of other tenants, longest unused first, while more
    /// executions wait than workers are on their way.
    fn make_room(&mut self) {
        let on_their_way = self.slots.values();
        let on_their_way = on_their_way
            .filter(|slot| matches!(slot, Slot::Starting | Slot::Ending))
            .count();
        let empty = self.config.size.saturating_sub(self.slots.len());
        for _ in on_their_way + empty..self.queue.len() {
            let idle = self.slots.iter().filter_map(|(id, slot)| match slot {
                Slot::Idle { since, .. } => Some((*since, *id)),
                Slot::Starting | Slot::Ready(_) | Slot::Busy { .. } | Slot::Ending => None,
            });
            let Some((_, longest_unused)) = idle.min() else {
                return;
            };
            self.end_slot(longest_unused);
        }
    }

    fn fill(&mut self, rests: bool) {
        let waits = self.start_not_before.is_some_and(|at| at > Instant::now());
        if self.quarantined || waits {
            return;
        }
        let mut wanted = self.config.size.saturating_sub(self.slots.len());
        if rests {
            let starting = self.slots.values();
            let starting = starting.filter(|slot| matches!(slot, Slot::Starting));
            wanted = wanted.min(self.queue.len().saturating_sub(starting.count()));
        }
        for _ in 0..wanted {
            let id = SlotId(self.slots_made);
            self.slots_made += 1;
            self.slots.insert(id, Slot::Starting);
            let (program, start) = (self.config.program.clone(), self.config.start.clone());
            self.spawn(
                id,
                async move { TaskEnd::Started(warm(&program, start).await) },
            );
        }
    }

    fn spawn(&mut self, slot: SlotId, task: impl Future<Output = TaskEnd> + Send + 'static) {
        let handle = self.tasks.spawn(task);
        self.slot_of_task.insert(handle.id(), slot);
    }

    fn task_ended(&mut self, end: Result<(tokio::task::Id, TaskEnd), tokio::task::JoinError>) {
        let task = match &end {
            Ok((task, _)) => *task,
            Err(error) => error.id(),
        };
        let Some(slot) = self.slot_of_task.remove(&task) else {
            return;
        };
        self.slots.remove(&slot);
        match end {
            Ok((_, TaskEnd::Started(Ok(worker)))) => {
                self.start_failures = 0;
                self.start_not_before = None;
                self.slots.insert(slot, Slot::Ready(worker));
            }
            Ok((_, TaskEnd::Started(Err(reason)))) => self.start_failed(&reason),
            Ok((_, TaskEnd::Ran { tenant, outcome })) => self.ran(slot, tenant, outcome),
            Ok((_, TaskEnd::Ended(Ended::Reaped(_) | Ended::OutOfMemory { .. }))) => {}
            Ok((_, TaskEnd::Ended(Ended::Stuck))) => self.quarantine("a worker cannot be ended"),
            Err(error) => tracing::error!(%error, "a task of the worker pool failed"),
        }
    }

    fn ran(&mut self, slot: SlotId, tenant: Tenant, mut outcome: Outcome) {
        self.last_used = Instant::now();
        if let Some(worker) = outcome.worker.take() {
            self.slots.insert(
                slot,
                Slot::Idle {
                    worker,
                    tenant,
                    since: Instant::now(),
                },
            );
        }
        if outcome.device_lost {
            self.device_losses += 1;
        }
        if outcome.stuck {
            self.quarantine("a worker cannot be ended");
        } else if self.device_losses >= DEVICE_LOSSES_MAX {
            self.quarantine("the device was lost too often");
        }
        outcome.tell();
    }

    fn start_failed(&mut self, reason: &str) {
        self.start_failures += 1;
        let doublings = self.start_failures.min(8) - 1;
        let wait = (BACKOFF_FIRST * (1 << doublings)).min(BACKOFF_MAX);
        self.start_not_before = Some(Instant::now() + wait);
        tracing::warn!(
            reason,
            failures = self.start_failures,
            "a worker did not start"
        );
        if self.start_failures >= START_FAILURES_MAX {
            for plan in self.queue.drain(..) {
                plan.refuse(Fault::new(
                    Failure::Internal,
                    format!("no worker starts here: {reason}"),
                ));
            }
        }
    }

    fn quarantine(&mut self, reason: &str) {
        tracing::error!(
            reason,
            "adapter quarantined; restart the node when it is mended"
        );
        self.quarantined = true;
        for plan in self.queue.drain(..) {
            plan.refuse(quarantine());
        }
    }

    fn end_idle(&mut self) {
        let expired = self.slots.iter().filter_map(|(id, slot)| match slot {
            Slot::Idle { since, .. } if since.elapsed() >= self.config.idle_max => Some(*id),
            Slot::Idle { .. }
            | Slot::Starting
            | Slot::Ready(_)
            | Slot::Busy { .. }
            | Slot::Ending => None,
        });
        for id in expired.collect::<Vec<_>>() {
            self.end_slot(id);
        }
        self.drop_dead();
    }

    fn end_unused(&mut self) {
        for id in self.unused() {
            self.end_slot(id);
        }
    }

    fn unused(&self) -> Vec<SlotId> {
        let unused = self.slots.iter().filter_map(|(id, slot)| match slot {
            Slot::Ready(_) | Slot::Idle { .. } => Some(*id),
            Slot::Starting | Slot::Busy { .. } | Slot::Ending => None,
        });
        unused.collect()
    }

    /// Workers that died while they waited make room for new ones.
    fn drop_dead(&mut self) {
        self.slots.retain(|_, slot| match slot {
            Slot::Ready(worker) | Slot::Idle { worker, .. } => worker.is_alive(),
            Slot::Starting | Slot::Busy { .. } | Slot::Ending => true,
        });
    }

    fn end_slot(&mut self, id: SlotId) {
        let Some(Slot::Ready(worker) | Slot::Idle { worker, .. }) =
            self.slots.insert(id, Slot::Ending)
        else {
            return;
        };
        self.spawn(id, async move { TaskEnd::Ended(worker.end_now().await) });
    }

    async fn end_all(mut self) {
        for plan in self.queue.drain(..) {
            plan.refuse(Fault::new(Failure::Cancelled, "the executor stops"));
        }
        for slot in self.slots.values_mut() {
            if let Slot::Busy { cancel, .. } = slot
                && let Some(cancel) = cancel.take()
            {
                let _ = cancel.send(());
            }
        }
        self.end_unused();
        while let Some(end) = self.tasks.join_next().await {
            match end {
                Ok(TaskEnd::Started(Ok(worker))) => {
                    worker.end_now().await;
                }
                Ok(TaskEnd::Ran { mut outcome, .. }) => {
                    if let Some(worker) = outcome.worker.take() {
                        worker.end_now().await;
                    }
                    outcome.tell();
                }
                Ok(TaskEnd::Started(Err(_)) | TaskEnd::Ended(_)) | Err(_) => {}
            }
        }
    }
}

/// Starts a worker and waits until its device is open.
async fn warm(program: &WorkerProgram, start: Start) -> Result<Child, String> {
    let mut worker = program
        .spawn("serve", start)
        .map_err(|error| error.to_string())?;
    match timeout(START_TIME_MAX, worker.receive()).await {
        Ok(Ok(Reply::Ready { .. })) => Ok(worker),
        Ok(Ok(Reply::Failed { detail, .. })) => {
            worker.end_now().await;
            Err(detail.to_string())
        }
        Ok(Ok(_)) => {
            worker.end_now().await;
            Err("it answered something else".to_owned())
        }
        Ok(Err(error)) => Err(format!("{error} ({})", worker.end_now().await)),
        Err(_) => {
            worker.end_now().await;
            Err(format!(
                "its device did not open within {} s",
                START_TIME_MAX.as_secs()
            ))
        }
    }
}

fn quarantine() -> Fault {
    Fault::new(
        Failure::AdapterQuarantined,
        "the adapter is out of service: its operator must mend it and restart the node",
    )
}
