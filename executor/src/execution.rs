//! One execution on one worker, seen from the parent.
//!
//! Small outputs come in the worker's last frame. Where they may be larger the
//! parent makes a sealed memory file for every output, as large as that may
//! become, so that a worker can write no byte more, and passes its descriptor.
//! When the worker says that it is done, the parent copies each into memory (a
//! small one) or a file that no worker ever held, and hashes what it copied. The deadline is the
//! parent's clock; a worker past it is killed, whatever it says.

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    pin::Pin,
    time::{Duration, Instant},
};

use rustix::fs::{MemfdFlags, SealFlags};
use suanli_protocol::{registry::Runtime, wire::List};
use tokio::{
    sync::{mpsc, oneshot},
    time::Sleep,
};

use crate::{
    checkpoint::{Checkpoints, Keeper},
    child::{Child, Ended},
    executor::{ExecutionEvent, ExecutionId, OutputBlob, OutputContent, Resume, Tenant, Usage},
    ipc::{Failure, IpcError, Reply, Request, Stage, Used, are_sent_in_frame},
    limits::{CANCEL_GRACE, COMPILE_TIME_MAX, LOG_BYTES_MAX, OUTPUT_MEMORY_MAX, SPEC_BYTES_MAX},
    program::Planned,
};

const COPY_BYTES: usize = 1 << 20;

/// An execution that was checked and waits for, or has, a worker.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) id: ExecutionId,
    pub(crate) tenant: Tenant,
    pub(crate) fresh: bool,
    pub(crate) runtime: Runtime,
    pub(crate) spec: List<u8, SPEC_BYTES_MAX>,
    pub(crate) inputs: Vec<File>,
    pub(crate) outputs: Vec<Planned>,
    pub(crate) outputs_dir: PathBuf,
    pub(crate) run_limit: Duration,
    pub(crate) memory_max: u64,
    pub(crate) fuel_max: u64,
    /// What to keep on the way, or to go on from.
    pub(crate) checkpoints: Option<Checkpoints>,
    pub(crate) checkpoint_every: Option<Duration>,
    pub(crate) resume: Option<Resume>,
    /// Room for the two events that may not be lost.
    pub(crate) started: Option<mpsc::OwnedPermit<ExecutionEvent>>,
    pub(crate) ended: mpsc::OwnedPermit<ExecutionEvent>,
}

/// A failure and its words.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) failure: Failure,
    pub(crate) detail: String,
    pub(crate) usage: Usage,
}

impl Fault {
    pub(crate) fn new(failure: Failure, detail: impl Into<String>) -> Self {
        Self {
            failure,
            detail: detail.into(),
            usage: Usage::default(),
        }
    }

    fn after(self, usage: Usage) -> Self {
        Self { usage, ..self }
    }
}

/// How an execution left its worker, and what is still to be told.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The worker, if it may serve its tenant again.
    pub(crate) worker: Option<Child>,
    /// The device was lost.
    pub(crate) device_lost: bool,
    /// The process can't be ended.
    pub(crate) stuck: bool,
    report: Report,
}

#[derive(Debug)]
struct Report {
    place: mpsc::OwnedPermit<ExecutionEvent>,
    event: ExecutionEvent,
}

impl Outcome {
    /// Tells how the execution ended. Whoever hears it may ask for the next
    /// at once, so the worker must be back in its place by then.
    pub(crate) fn tell(self) {
        self.report.place.send(self.report.event);
    }
}

impl Plan {
    /// Ends an execution that never got a worker.
    pub(crate) fn refuse(self, fault: Fault) {
        let Fault {
            failure,
            detail,
            usage,
        } = fault;
        self.ended.send(ExecutionEvent::Failed {
            id: self.id,
            failure,
            detail,
            usage,
        });
    }

    /// Runs on this worker until the end, and gives it back if it is fit to
    /// serve on.
    pub(crate) async fn run(
        mut self,
        mut worker: Child,
        cancel: oneshot::Receiver<()>,
        events: mpsc::Sender<ExecutionEvent>,
    ) -> Outcome {
        let id = self.id;
        let mut watch = Watch::new(&self, cancel, events);
        match self.finish(&mut worker, &mut watch).await {
            Ok((outputs, usage)) => {
                let event = ExecutionEvent::Finished { id, outputs, usage };
                let (worker, ended) = if self.fresh {
                    (None, Some(worker.end_now().await))
                } else {
                    (Some(worker), None)
                };
                self.outcome(event, worker, ended)
            }
            Err(Fault {
                failure,
                detail,
                usage,
            }) => {
                let (ended, failure, detail) = if failure == Failure::WorkerCrashed {
                    let ended = worker.end_after_close().await;
                    let failure = ended.by_kernel().unwrap_or(failure);
                    (ended, failure, format!("{detail} ({ended})"))
                } else {
                    (worker.end_now().await, failure, detail)
                };
                let device_lost = failure == Failure::DeviceLost;
                let event = ExecutionEvent::Failed {
                    id,
                    failure,
                    detail,
                    usage,
                };
                let outcome = self.outcome(event, None, Some(ended));
                Outcome {
                    device_lost,
                    ..outcome
                }
            }
        }
    }

    fn outcome(
        self,
        event: ExecutionEvent,
        worker: Option<Child>,
        ended: Option<Ended>,
    ) -> Outcome {
        Outcome {
            worker,
            device_lost: false,
            stuck: ended == Some(Ended::Stuck),
            report: Report {
                place: self.ended,
                event,
            },
        }
    }

    async fn finish(
        &mut self,
        worker: &mut Child,
        watch: &mut Watch,
    ) -> Result<(Vec<OutputBlob>, Usage), Fault> {
        let internal = |error: std::io::Error| Fault::new(Failure::Internal, error.to_string());
        let planned = std::mem::take(&mut self.outputs);
        let memory = if are_sent_in_frame(planned.iter().map(|output| output.bytes_max)) {
            Vec::new()
        } else {
            let files = planned.iter().map(|output| sealed_memory(output.bytes_max));
            files
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| internal(error.into()))?
        };
        let mut keeper = self.keeper(&watch.events).await?;
        let word = self.converse(worker, watch, &memory, keeper.as_mut()).await;
        if let Some(keeper) = keeper {
            keeper.finish().await;
        }
        let word = word?;
        let usage = word.usage;
        let sized = sized(planned, &word.lengths)?;
        if are_sent_in_frame(sized.iter().map(|output| output.bytes)) {
            return Ok((cut(sized, &word.bytes)?, usage));
        }
        let (dir, stem) = (self.outputs_dir.clone(), self.id.to_string());
        let memory = memory.into_iter().map(File::from).collect::<Vec<_>>();
        let copy = move || copy_all(&dir, &stem, sized, &memory);
        let copied = tokio::task::spawn_blocking(copy).await;
        let outputs = copied
            .map_err(|error| Fault::new(Failure::Internal, error.to_string()))?
            .map_err(|error| Fault::new(Failure::Internal, format!("storing outputs: {error}")))?;
        Ok((outputs, usage))
    }

    async fn keeper(
        &mut self,
        events: &mpsc::Sender<ExecutionEvent>,
    ) -> Result<Option<Keeper>, Fault> {
        let Some(checkpoints) = self.checkpoints.take() else {
            return Ok(None);
        };
        let keeper = Keeper::new(
            (self.id, self.outputs_dir.clone()),
            events.clone(),
            checkpoints,
            self.resume.take(),
            self.checkpoint_every,
        );
        keeper.await.map(Some)
    }

    async fn converse(
        &mut self,
        worker: &mut Child,
        watch: &mut Watch,
        memory: &[OwnedFd],
        mut keeper: Option<&mut Keeper>,
    ) -> Result<LastWord, Fault> {
        let state = keeper.as_ref().map_or(&[][..], |keeper| keeper.files());
        let count = |items: usize| u32::try_from(items).unwrap_or(u32::MAX);
        let request = Request::Execute {
            runtime: self.runtime,
            spec: self.spec.clone(),
            inputs: count(self.inputs.len()),
            outputs: count(memory.len()),
            state: count(state.len()),
            done: keeper.as_ref().map_or(0, |keeper| keeper.done()),
            checkpoints: keeper.as_ref().is_some_and(|keeper| keeper.are_wanted()),
            memory_max: self.memory_max,
            fuel_max: self.fuel_max,
        };
        let inputs = self.inputs.iter().map(AsFd::as_fd);
        let descriptors = inputs
            .chain(memory.iter().map(AsFd::as_fd))
            .chain(state.iter().map(AsFd::as_fd))
            .collect::<Vec<_>>();
        tokio::select! {
            biased;
            () = &mut watch.deadline => return Err(watch.out_of_time()),
            sent = worker.send(&request, &descriptors) => sent.map_err(|error| watch.crash(error))?,
        }
        if let Some(permit) = self.started.take() {
            let (id, worker_pid) = (self.id, worker.pid());
            permit.send(ExecutionEvent::Started { id, worker_pid });
        }
        loop {
            tokio::select! {
                biased;
                () = &mut watch.deadline => return Err(watch.out_of_time()),
                Ok(()) = &mut watch.cancel, if !watch.cancelling => {
                    watch.start_cancelling();
                    worker.send(&Request::Cancel, &[]).await.map_err(|error| watch.crash(error))?;
                }
                () = taken(keeper.as_deref_mut()) => {
                    worker.send(&Request::Room, &[]).await.map_err(|error| watch.crash(error))?;
                }
                reply = worker.receive() => {
                    let reply = match (reply.map_err(|error| watch.crash(error))?, &mut keeper) {
                        (Reply::Checkpoint { done, used }, Some(keeper)) => {
                            watch.used = used;
                            keeper.written(done)?;
                            continue;
                        }
                        (reply, _) => reply,
                    };
                    if let Some(word) = watch.hear(reply)? {
                        return Ok(word);
                    }
                }
            }
        }
    }
}

/// Waits until a checkpoint is taken over; for ever where there are none.
async fn taken(keeper: Option<&mut Keeper>) {
    match keeper {
        Some(keeper) => keeper.has_room().await,
        None => std::future::pending().await,
    }
}

/// What a worker says in the end.
struct LastWord {
    /// Of each output.
    lengths: Vec<u64>,
    /// Small outputs, one behind the other.
    bytes: Vec<u8>,
    usage: Usage,
}

/// What the parent keeps in mind while a worker runs.
struct Watch {
    id: ExecutionId,
    deadline: Pin<Box<Sleep>>,
    run_limit: Duration,
    /// When the run limit is over.
    ends: tokio::time::Instant,
    cancel: oneshot::Receiver<()>,
    cancelling: bool,
    events: mpsc::Sender<ExecutionEvent>,
    stage: Stage,
    log_bytes: usize,
    runtime: Runtime,
    fuel_max: u64,
    began: Instant,
    /// What it took, as far as the worker has told.
    used: Used,
}

impl Watch {
    fn new(
        plan: &Plan,
        cancel: oneshot::Receiver<()>,
        events: mpsc::Sender<ExecutionEvent>,
    ) -> Self {
        let deadline = Box::pin(tokio::time::sleep(plan.run_limit));
        Self {
            id: plan.id,
            ends: deadline.deadline(),
            deadline,
            run_limit: plan.run_limit,
            cancel,
            cancelling: false,
            events,
            stage: Stage::Running,
            log_bytes: 0,
            runtime: plan.runtime,
            fuel_max: plan.fuel_max,
            began: Instant::now(),
            used: Used::default(),
        }
    }

    fn start_cancelling(&mut self) {
        self.cancelling = true;
        self.not_after(tokio::time::Instant::now() + CANCEL_GRACE);
    }

    /// The worker does something else now. A compiler has a limit of its own.
    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        if self.cancelling {
            return;
        }
        self.deadline.as_mut().reset(self.ends);
        if stage == Stage::Compiling {
            self.not_after(tokio::time::Instant::now() + COMPILE_TIME_MAX);
        }
    }

    fn not_after(&mut self, instant: tokio::time::Instant) {
        let sooner = instant.min(self.deadline.deadline());
        self.deadline.as_mut().reset(sooner);
    }

    /// The worker is late, and is about to be killed. Its device was held for
    /// all that time.
    fn out_of_time(&self) -> Fault {
        let held = match self.runtime {
            Runtime::WGSL => self.wall_us(),
            _ => self.used.gpu_us,
        };
        let usage = Usage {
            gpu_us: held,
            ..self.usage(self.used)
        };
        let fault = if self.cancelling {
            Fault::new(Failure::Cancelled, "cancelled; its worker was ended")
        } else if tokio::time::Instant::now() < self.ends {
            self.compiles_too_long()
        } else {
            let (seconds, place) = (self.run_limit.as_secs_f64(), self.place());
            let detail =
                format!("killed after {seconds} s{place}; ask for more time or split the work");
            Fault::new(Failure::DeadlineExceeded, detail)
        };
        fault.after(usage)
    }

    fn compiles_too_long(&self) -> Fault {
        let failure = match self.runtime {
            Runtime::WASM => Failure::InvalidModule,
            _ => Failure::InvalidShader,
        };
        let seconds = COMPILE_TIME_MAX.as_secs();
        let detail = format!("it takes more than {seconds} s to compile; make it smaller");
        Fault::new(failure, detail)
    }

    fn crash(&self, error: IpcError) -> Fault {
        let detail = format!("the worker ended{}: {error}", self.place());
        Fault::new(Failure::WorkerCrashed, detail).after(self.usage(self.used))
    }

    fn wall_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// What a worker says it took, as far as that is possible.
    fn usage(&self, used: Used) -> Usage {
        let wall_us = self.wall_us();
        Usage {
            // It can't have used a device longer than we waited, and what is metered by
            // fuel has used none.
            gpu_us: match self.fuel_max {
                0 => used.gpu_us.min(wall_us),
                _ => 0,
            },
            cpu_us: used.cpu_us,
            fuel: used.fuel.min(self.fuel_max),
            wall_us,
        }
    }

    fn place(&self) -> &'static str {
        match self.stage {
            Stage::Compiling => " while compiling the program",
            Stage::Loading => " while reading inputs",
            Stage::Running => " while running",
            Stage::Collecting => " while reading outputs back",
        }
    }

    /// Takes in one frame; the usage if it was the last.
    fn hear(&mut self, reply: Reply) -> Result<Option<LastWord>, Fault> {
        match reply {
            Reply::Stage(stage) => self.enter(stage),
            Reply::Progress { done, total, used } => {
                self.used = used;
                // Progress is lost when nobody reads: the next one says more.
                let event = ExecutionEvent::Progress {
                    id: self.id,
                    done: done.min(total),
                    total,
                };
                drop(self.events.try_send(event));
            }
            Reply::Log { line } => {
                self.log_bytes = self.log_bytes.saturating_add(line.len());
                if self.log_bytes <= LOG_BYTES_MAX {
                    let event = ExecutionEvent::Log {
                        id: self.id,
                        line: line.to_string(),
                    };
                    drop(self.events.try_send(event));
                }
            }
            Reply::Finished {
                lengths,
                outputs,
                used,
            } => {
                return Ok(Some(LastWord {
                    lengths: lengths.into_vec(),
                    bytes: outputs.into_vec(),
                    usage: self.usage(used),
                }));
            }
            Reply::Failed {
                failure,
                detail,
                used,
            } => {
                let fault = Fault::new(failure, detail.to_string());
                return Err(fault.after(self.usage(used)));
            }
            other @ (Reply::Ready { .. }
            | Reply::Processor { .. }
            | Reply::Adapters { .. }
            | Reply::Measured(_)
            | Reply::Checkpoint { .. }
            | Reply::Checked
            | Reply::Model(_)) => {
                return Err(Fault::new(
                    Failure::WorkerCrashed,
                    format!("the worker said something out of place: {other:?}"),
                ));
            }
        }
        Ok(None)
    }
}

/// A file in memory whose size nobody can change.
pub(crate) fn sealed_memory(bytes: u64) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("output", flags)?;
    rustix::fs::ftruncate(&memory, bytes)?;
    rustix::fs::fcntl_add_seals(
        &memory,
        SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(memory)
}

/// An output and the bytes that it has.
pub(crate) struct Sized {
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

/// Holds the sizes that a worker tells against those that were planned.
fn sized(planned: Vec<Planned>, lengths: &[u64]) -> Result<Vec<Sized>, Fault> {
    let fits = |output: &Planned, bytes: u64| {
        bytes == output.bytes_max || (!output.is_exact && bytes < output.bytes_max)
    };
    let zipped = || planned.iter().zip(lengths);
    if planned.len() != lengths.len() || !zipped().all(|(output, bytes)| fits(output, *bytes)) {
        return Err(wrong_sizes());
    }
    let sized = planned.iter().zip(lengths).map(|(output, bytes)| Sized {
        name: output.name.clone(),
        bytes: *bytes,
    });
    Ok(sized.collect())
}

fn wrong_sizes() -> Fault {
    Fault::new(
        Failure::WorkerCrashed,
        "the worker's outputs have another size than its job says",
    )
}

/// Small outputs, from one behind the other.
fn cut(sized: Vec<Sized>, mut bytes: &[u8]) -> Result<Vec<OutputBlob>, Fault> {
    let mut outputs = Vec::with_capacity(sized.len());
    for Sized { name, bytes: size } in sized {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let (own, rest) = bytes.split_at_checked(size).ok_or_else(wrong_sizes)?;
        bytes = rest;
        outputs.push(OutputBlob {
            name,
            bytes: own.len() as u64,
            hash: *blake3::hash(own).as_bytes(),
            content: OutputContent::Memory(own.to_vec()),
        });
    }
    bytes.is_empty().then_some(outputs).ok_or_else(wrong_sizes)
}

/// Copies each into memory, or into a file of the folder whose name begins so.
pub(crate) fn copy_all(
    dir: &Path,
    stem: &str,
    sized: Vec<Sized>,
    memory: &[File],
) -> std::io::Result<Vec<OutputBlob>> {
    let numbered = sized.into_iter().zip(memory).enumerate();
    let copies = numbered.map(|(index, (output, memory))| {
        let (content, hash) = if output.bytes <= OUTPUT_MEMORY_MAX {
            let mut bytes = vec![0; usize::try_from(output.bytes).unwrap_or_default()];
            memory.read_exact_at(&mut bytes, 0)?;
            let hash = *blake3::hash(&bytes).as_bytes();
            (OutputContent::Memory(bytes), hash)
        } else {
            std::fs::create_dir_all(dir)?;
            let path = dir.join(format!("{stem}-{index}.out"));
            let hash = copy(memory, output.bytes, &path)?;
            (OutputContent::File(path), hash)
        };
        Ok(OutputBlob {
            name: output.name,
            content,
            bytes: output.bytes,
            hash,
        })
    });
    copies.collect()
}

/// Copies `bytes` bytes to a new file; the hash of what was written.
fn copy(from: &File, bytes: u64, path: &Path) -> std::io::Result<[u8; 32]> {
    let mut to = File::create(path)?;
    let mut hasher = blake3::Hasher::new();
    let size = usize::try_from(bytes).unwrap_or(usize::MAX).min(COPY_BYTES);
    let mut chunk = vec![0; size];
    let mut done = 0;
    while done < bytes {
        let now = usize::try_from(bytes - done)
            .unwrap_or(usize::MAX)
            .min(size);
        from.read_exact_at(&mut chunk[..now], done)?;
        hasher.update(&chunk[..now]);
        to.write_all(&chunk[..now])?;
        done += u64::try_from(now).unwrap_or(u64::MAX);
    }
    Ok(*hasher.finalize().as_bytes())
}
