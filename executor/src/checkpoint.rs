//! Checkpoints of one execution, seen from the parent.
//!
//! ```text
//! begins ──▶ Resting ── after the interval: `Room` ──▶ Awaited ── the worker: written ─┐
//!               ▲                                                                      │
//!               └───────────────────── told ── Copying ◀───────────────────────────────┘
//! ```
//!
//! The state lies in sealed memory files of just its size, which the parent makes
//! and fills where an execution goes on. A worker writes them when it was told that there
//! is room, once, and says so; there is room again after they were copied. So no copy is torn, and no
//! worker can keep its parent copying: points that pass meanwhile are left out, and
//! the next one after it counts.
//!
//! Absent: what a checkpoint means. Only its program knows.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::{
    execution::{Fault, Sized, copy_all, sealed_memory},
    executor::{ExecutionEvent, ExecutionId, OutputBlob, OutputContent, Resume},
    ipc::Failure,
    limits::CHECKPOINT_INTERVAL,
    program::Planned,
};

/// What a program keeps on its way.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoints {
    /// The buffers.
    pub(crate) state: Vec<Planned>,
    /// After each multiple of so many dispatches.
    pub(crate) every: u64,
    /// Dispatches of the whole program.
    pub(crate) total: u64,
}

impl Checkpoints {
    /// Whether that is a state of this program.
    pub(crate) fn admit(&self, resume: &Resume) -> Result<(), &'static str> {
        let alike = |(planned, kept): (&Planned, &OutputBlob)| {
            planned.name == kept.name && planned.bytes_max == kept.bytes
        };
        if !self.is_point(resume.done) {
            return Err("the program has no checkpoint after so many dispatches");
        }
        if self.state.len() != resume.state.len()
            || !self.state.iter().zip(&resume.state).all(alike)
        {
            return Err("the state has other buffers than the program's checkpoint");
        }
        Ok(())
    }

    fn is_point(&self, done: u64) -> bool {
        (1..self.total).contains(&done) && done.is_multiple_of(self.every)
    }
}

/// The checkpoints of an execution that has them.
#[derive(Debug)]
pub(crate) struct Keeper {
    id: ExecutionId,
    dir: PathBuf,
    events: mpsc::Sender<ExecutionEvent>,
    checkpoints: Checkpoints,
    files: Arc<Vec<File>>,
    /// Dispatches up to the last one.
    done: u64,
    /// From one that was written to the next.
    every: Duration,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// None is wanted.
    Off,
    /// The worker may write.
    Awaited,
    Copying {
        copy: JoinHandle<io::Result<Vec<OutputBlob>>>,
        written: Instant,
    },
    Resting {
        until: Instant,
    },
}

impl Keeper {
    /// Makes the files, and fills them where it goes on.
    pub(crate) async fn new(
        (id, dir): (ExecutionId, PathBuf),
        events: mpsc::Sender<ExecutionEvent>,
        checkpoints: Checkpoints,
        resume: Option<Resume>,
        every: Option<Duration>,
    ) -> Result<Self, Fault> {
        let sizes = checkpoints.state.iter().map(|planned| planned.bytes_max);
        let files = sizes.map(|bytes| sealed_memory(bytes).map(File::from));
        let files = files.collect::<Result<Vec<_>, _>>();
        let files = Arc::new(files.map_err(|error| internal(&error))?);
        let done = resume.as_ref().map_or(0, |resume| resume.done);
        if let Some(resume) = resume {
            let files = Arc::clone(&files);
            let filling = tokio::task::spawn_blocking(move || fill(&files, &resume.state));
            filling.await.map_err(|error| internal(&error))??;
        }
        Ok(Self {
            id,
            dir,
            events,
            checkpoints,
            files,
            done,
            stage: every.map_or(Stage::Off, |every| Stage::Resting {
                until: Instant::now() + every,
            }),
            every: every.unwrap_or_default().max(CHECKPOINT_INTERVAL),
        })
    }

    /// Where the state is.
    pub(crate) fn files(&self) -> &[File] {
        &self.files
    }

    /// Dispatches that were done before.
    pub(crate) const fn done(&self) -> u64 {
        self.done
    }

    /// Whether the worker is to write any.
    pub(crate) const fn are_wanted(&self) -> bool {
        !matches!(self.stage, Stage::Off)
    }

    /// The worker says that it has written one.
    pub(crate) fn written(&mut self, done: u64) -> Result<(), Fault> {
        let is_awaited = matches!(self.stage, Stage::Awaited);
        if !is_awaited || done <= self.done || !self.checkpoints.is_point(done) {
            let detail = format!("the worker made a checkpoint out of place, after {done}");
            return Err(Fault::new(Failure::WorkerCrashed, detail));
        }
        self.done = done;
        let (dir, files) = (self.dir.clone(), Arc::clone(&self.files));
        let sized = self.checkpoints.state.iter().map(|planned| Sized {
            name: planned.name.clone(),
            bytes: planned.bytes_max,
        });
        let sized = sized.collect::<Vec<_>>();
        let stem = format!("{}-after-{done}", self.id);
        self.stage = Stage::Copying {
            copy: tokio::task::spawn_blocking(move || copy_all(&dir, &stem, sized, &files)),
            written: Instant::now(),
        };
        Ok(())
    }

    /// Waits until the worker is to be told that it may write. Safe to drop and call
    /// again.
    pub(crate) async fn has_room(&mut self) {
        loop {
            match &mut self.stage {
                Stage::Off | Stage::Awaited => std::future::pending().await,
                Stage::Copying { copy, written } => {
                    let (copied, until) = (copy.await, *written + self.every);
                    self.stage = Stage::Resting { until };
                    self.tell(copied.unwrap_or_else(|error| Err(io::Error::other(error))));
                }
                Stage::Resting { until } => {
                    sleep_until(*until).await;
                    self.stage = Stage::Awaited;
                    return;
                }
            }
        }
    }

    /// The worker writes no more: tells what it wrote last.
    pub(crate) async fn finish(mut self) {
        if let Stage::Copying { copy, .. } = &mut self.stage {
            let copied = copy.await;
            self.tell(copied.unwrap_or_else(|error| Err(io::Error::other(error))));
        }
    }

    fn tell(&self, copied: io::Result<Vec<OutputBlob>>) {
        let (id, done) = (self.id, self.done);
        let state = match copied {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(execution = %id, %error, "a checkpoint could not be kept");
                return;
            }
        };
        let event = ExecutionEvent::Checkpoint { id, done, state };
        let lost = match self.events.try_send(event) {
            Ok(()) => return,
            Err(TrySendError::Full(lost) | TrySendError::Closed(lost)) => lost,
        };
        if let ExecutionEvent::Checkpoint { state, .. } = lost {
            state.iter().for_each(remove);
        }
    }
}

/// What nobody will read.
fn remove(blob: &OutputBlob) {
    if let OutputContent::File(path) = &blob.content {
        let _ = std::fs::remove_file(path);
    }
}

fn fill(files: &[File], state: &[OutputBlob]) -> Result<(), Fault> {
    for (file, kept) in files.iter().zip(state) {
        let bytes = kept.content.read().map_err(|error| internal(&error))?;
        let is_whole = u64::try_from(bytes.len()) == Ok(kept.bytes);
        if !is_whole || *blake3::hash(&bytes).as_bytes() != kept.hash {
            let name = &kept.name;
            let detail = format!("the state of `{name}` is damaged; begin anew");
            return Err(Fault::new(Failure::InvalidSpec, detail));
        }
        file.write_all_at(&bytes, 0)
            .map_err(|error| internal(&error))?;
    }
    Ok(())
}

fn internal(error: &dyn std::fmt::Display) -> Fault {
    Fault::new(Failure::Internal, format!("keeping state: {error}"))
}
