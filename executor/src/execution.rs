//! One execution on one worker, seen from the parent.
//!
//! Small outputs come in the worker's last frame. For others the parent makes a
//! sealed memory file of just the right size for every output, so that a worker
//! can write no byte more, and passes its descriptor.
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
use suanli_protocol::wire::List;
use tokio::{
    sync::{mpsc, oneshot},
    time::Sleep,
};

use crate::{
    child::{Child, Ended},
    executor::{ExecutionEvent, ExecutionId, OutputBlob, OutputContent, Tenant, Usage},
    ipc::{Failure, IpcError, Reply, Request, Stage},
    limits::{CANCEL_GRACE, LOG_BYTES_MAX, OUTPUT_MEMORY_MAX, SPEC_BYTES_MAX},
};

const COPY_BYTES: usize = 1 << 20;

/// An execution that was checked and waits for, or has, a worker.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) id: ExecutionId,
    pub(crate) tenant: Tenant,
    pub(crate) fresh: bool,
    pub(crate) spec: List<u8, SPEC_BYTES_MAX>,
    pub(crate) inputs: Vec<File>,
    pub(crate) outputs: Vec<PlannedOutput>,
    /// They come in the worker's last frame.
    pub(crate) small_outputs: bool,
    pub(crate) outputs_dir: PathBuf,
    pub(crate) run_limit: Duration,
    pub(crate) memory_max: u64,
    /// Room for the two events that may not be lost.
    pub(crate) started: Option<mpsc::OwnedPermit<ExecutionEvent>>,
    pub(crate) ended: mpsc::OwnedPermit<ExecutionEvent>,
}

/// What the graph says of an output.
#[derive(Debug)]
pub(crate) struct PlannedOutput {
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

impl PlannedOutput {
    const fn fits_memory(&self) -> bool {
        self.bytes <= OUTPUT_MEMORY_MAX
    }
}

/// A failure and its words.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) failure: Failure,
    pub(crate) detail: String,
}

impl Fault {
    pub(crate) fn new(failure: Failure, detail: impl Into<String>) -> Self {
        Self {
            failure,
            detail: detail.into(),
        }
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
        let Fault { failure, detail } = fault;
        self.ended.send(ExecutionEvent::Failed {
            id: self.id,
            failure,
            detail,
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
            Err(Fault { failure, detail }) => {
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
        if self.small_outputs {
            let (bytes, usage) = self.converse(worker, watch, &[]).await?;
            let planned = std::mem::take(&mut self.outputs);
            return Ok((cut(planned, &bytes)?, usage));
        }
        let internal = |error: std::io::Error| Fault::new(Failure::Internal, error.to_string());
        let memory = self
            .outputs
            .iter()
            .map(|output| sealed_memory(output.bytes))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| internal(error.into()))?;
        let (_, usage) = self.converse(worker, watch, &memory).await?;
        let (dir, id) = (self.outputs_dir.clone(), self.id);
        let planned = std::mem::take(&mut self.outputs);
        let copied = tokio::task::spawn_blocking(move || copy_all(&dir, id, planned, memory)).await;
        let outputs = copied
            .map_err(|error| Fault::new(Failure::Internal, error.to_string()))?
            .map_err(|error| Fault::new(Failure::Internal, format!("storing outputs: {error}")))?;
        Ok((outputs, usage))
    }

    async fn converse(
        &mut self,
        worker: &mut Child,
        watch: &mut Watch,
        memory: &[OwnedFd],
    ) -> Result<LastWord, Fault> {
        let began = Instant::now();
        let count = |items: usize| u32::try_from(items).unwrap_or(u32::MAX);
        let request = Request::Execute {
            spec: self.spec.clone(),
            inputs: count(self.inputs.len()),
            outputs: count(memory.len()),
            memory_max: self.memory_max,
        };
        let inputs = self.inputs.iter().map(AsFd::as_fd);
        let descriptors = inputs
            .chain(memory.iter().map(AsFd::as_fd))
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
                reply = worker.receive() => {
                    let reply = reply.map_err(|error| watch.crash(error))?;
                    if let Some(word) = watch.hear(reply, began.elapsed())? {
                        return Ok(word);
                    }
                }
            }
        }
    }
}

/// Small outputs, one behind the other, and what it took.
type LastWord = (Vec<u8>, Usage);

/// What the parent keeps in mind while a worker runs.
struct Watch {
    id: ExecutionId,
    deadline: Pin<Box<Sleep>>,
    run_limit: Duration,
    cancel: oneshot::Receiver<()>,
    cancelling: bool,
    events: mpsc::Sender<ExecutionEvent>,
    stage: Stage,
    log_bytes: usize,
}

impl Watch {
    fn new(
        plan: &Plan,
        cancel: oneshot::Receiver<()>,
        events: mpsc::Sender<ExecutionEvent>,
    ) -> Self {
        Self {
            id: plan.id,
            deadline: Box::pin(tokio::time::sleep(plan.run_limit)),
            run_limit: plan.run_limit,
            cancel,
            cancelling: false,
            events,
            stage: Stage::Running,
            log_bytes: 0,
        }
    }

    fn start_cancelling(&mut self) {
        self.cancelling = true;
        let grace = tokio::time::Instant::now() + CANCEL_GRACE;
        let sooner = grace.min(self.deadline.deadline());
        self.deadline.as_mut().reset(sooner);
    }

    fn out_of_time(&self) -> Fault {
        if self.cancelling {
            return Fault::new(
                Failure::Cancelled,
                "cancelled; its dispatch was ended with its worker",
            );
        }
        let seconds = self.run_limit.as_secs_f64();
        Fault::new(
            Failure::DeadlineExceeded,
            format!(
                "killed after {seconds} s{}; ask for more time or split the work",
                self.place()
            ),
        )
    }

    fn crash(&self, error: IpcError) -> Fault {
        Fault::new(
            Failure::WorkerCrashed,
            format!("the worker ended{}: {error}", self.place()),
        )
    }

    fn place(&self) -> &'static str {
        match self.stage {
            Stage::Compiling => " while compiling the shader",
            Stage::Loading => " while filling buffers",
            Stage::Running => " while running",
            Stage::Collecting => " while reading outputs back",
        }
    }

    /// Takes in one frame; the usage if it was the last.
    fn hear(&mut self, reply: Reply, wall: Duration) -> Result<Option<LastWord>, Fault> {
        match reply {
            Reply::Stage(stage) => self.stage = stage,
            Reply::Progress { done, total } => {
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
                outputs,
                gpu_us,
                cpu_us,
            } => {
                let wall_us = u64::try_from(wall.as_micros()).unwrap_or(u64::MAX);
                // A worker can't have used a device longer than we waited.
                let usage = Usage {
                    gpu_us: gpu_us.min(wall_us),
                    cpu_us,
                    wall_us,
                };
                return Ok(Some((outputs.into_vec(), usage)));
            }
            Reply::Failed { failure, detail } => {
                return Err(Fault::new(failure, detail.to_string()));
            }
            other @ (Reply::Ready { .. }
            | Reply::Adapters { .. }
            | Reply::Measured(_)
            | Reply::Checked) => {
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
fn sealed_memory(bytes: u64) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("output", flags)?;
    rustix::fs::ftruncate(&memory, bytes)?;
    rustix::fs::fcntl_add_seals(
        &memory,
        SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(memory)
}

/// Small outputs, from one behind the other.
fn cut(planned: Vec<PlannedOutput>, mut bytes: &[u8]) -> Result<Vec<OutputBlob>, Fault> {
    let wrong = || {
        Fault::new(
            Failure::WorkerCrashed,
            "the worker's outputs have another size than its job says",
        )
    };
    let mut outputs = Vec::with_capacity(planned.len());
    for PlannedOutput { name, bytes: size } in planned {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let (own, rest) = bytes.split_at_checked(size).ok_or_else(wrong)?;
        bytes = rest;
        outputs.push(OutputBlob {
            name,
            bytes: own.len() as u64,
            hash: *blake3::hash(own).as_bytes(),
            content: OutputContent::Memory(own.to_vec()),
        });
    }
    bytes.is_empty().then_some(outputs).ok_or_else(wrong)
}

fn copy_all(
    dir: &Path,
    id: ExecutionId,
    planned: Vec<PlannedOutput>,
    memory: Vec<OwnedFd>,
) -> std::io::Result<Vec<OutputBlob>> {
    let numbered = planned.into_iter().zip(memory).enumerate();
    let copies = numbered.map(|(index, (output, memory))| {
        let memory = File::from(memory);
        let (content, hash) = if output.fits_memory() {
            let mut bytes = vec![0; usize::try_from(output.bytes).unwrap_or_default()];
            memory.read_exact_at(&mut bytes, 0)?;
            let hash = *blake3::hash(&bytes).as_bytes();
            (OutputContent::Memory(bytes), hash)
        } else {
            std::fs::create_dir_all(dir)?;
            let path = dir.join(format!("{id}-{index}.out"));
            let hash = copy(&memory, output.bytes, &path)?;
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
