//! Starting, asking and ending worker processes.
//!
//! [`WorkerProgram`] is the binary and the little environment that it gets.
//! Its three questions (`probe`, `measure`, `check`) each start a child, wait
//! a bounded time for one bounded answer, and kill it. The pool uses the same
//! [`Child`] for workers that stay.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    fs::MemfdFlags,
    process::{Pid, Signal},
};
use suanli_protocol::{registry::Runtime, wire::List};
use tokio::{task::JoinHandle, time::timeout};

use crate::{
    cgroup::{Group, Groups},
    command::Command,
    file::InputFile,
    ipc::{
        Adapter, Confinement, Failure, IpcError, Measurement, ParentEnd, Reply, Request, Speaker,
        Start,
    },
    limits::{CHECK_TIME_MAX, MEASURE_TIME_MAX, REAP_TIME_MAX, START_TIME_MAX},
    program::Program,
};

const PROGRAM: &str = "suanli-worker";
/// Address space of a worker that only compiles.
const CHECK_ADDRESS_SPACE: u64 = 4 << 30;
/// Drivers of real GPUs map far more than they use.
pub(crate) const DEVICE_ADDRESS_SPACE: u64 = 1 << 40;
/// Memory of a worker that only compiles, or opens drivers: generous for both.
const QUESTION_MEMORY: u64 = 2 << 30;
/// What a driver may write into memory files while it is only opened.
const PROBE_FILE_BYTES: u64 = 4 << 30;

/// The worker binary, what its environment holds, and where its processes are
/// capped.
#[derive(Debug, Clone)]
pub struct WorkerProgram {
    path: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    groups: Result<Groups, String>,
}

/// Why a question to a worker got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The binary is not where it should be.
    #[error(
        "no worker binary at {}: install `suanli-worker` beside `suanli`, or name its path in the configuration",
        .0.display()
    )]
    NoProgram(PathBuf),
    /// The process did not start.
    #[error("starting {}: {source}", path.display())]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was asked about is at fault; `detail` says why, for people.
    #[error("{detail}")]
    Rejected {
        /// Kind.
        failure: Failure,
        /// For people.
        detail: String,
    },
    /// The child gave no answer: it crashed, hung, or talked nonsense.
    #[error("{0}")]
    NoAnswer(String),
}

impl WorkerProgram {
    /// The binary at `path`, or beside the running program. Where this process
    /// has a control group for itself, it may step into one below it, to have
    /// others for workers beside it.
    ///
    /// # Errors
    /// If no file is there.
    pub fn find(path: Option<&Path>) -> Result<Self, CheckError> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => beside_this_program(),
        };
        if !path.is_file() {
            return Err(CheckError::NoProgram(path));
        }
        let mut environment = vec![
            ("MESA_SHADER_CACHE_DISABLE", OsString::from("true")),
            ("__GL_SHADER_DISK_CACHE", OsString::from("0")),
            ("XDG_RUNTIME_DIR", OsString::from("/tmp")),
        ];
        // Which drivers to load is the operator's choice, made in the usual way.
        if let Some(drivers) = std::env::var_os("VK_DRIVER_FILES") {
            environment.push(("VK_DRIVER_FILES", drivers));
        }
        Ok(Self {
            path,
            environment,
            groups: Groups::find(),
        })
    }

    /// The adapters of this machine that may serve, and how far a worker is
    /// confined here.
    ///
    /// # Errors
    /// If the child gives no answer in time.
    pub async fn probe(&self) -> Result<(Vec<Adapter>, Confinement), CheckError> {
        let start = self.start(None, DEVICE_ADDRESS_SPACE, None);
        match self.ask("probe", start, None, START_TIME_MAX).await? {
            Reply::Adapters {
                adapters,
                confinement,
            } => {
                let groups = self.groups.as_ref();
                let version = groups.map(Groups::version).map_err(String::as_str);
                Ok((adapters.to_vec(), confinement.with_group(version)))
            }
            other => Err(unexpected(other)),
        }
    }

    /// Measures an adapter, in about two seconds.
    ///
    /// # Errors
    /// If the adapter fails, or the child gives no answer in time.
    pub async fn measure(&self, adapter: &Adapter) -> Result<Measurement, CheckError> {
        let start = self.start(Some(adapter.index), DEVICE_ADDRESS_SPACE, None);
        match self.ask("measure", start, None, MEASURE_TIME_MAX).await? {
            Reply::Measured(measurement) => Ok(measurement),
            other => Err(unexpected(other)),
        }
    }

    /// Units of WebAssembly fuel per second of the processor, in one program. No
    /// device is touched.
    ///
    /// # Errors
    /// If the child gives no answer in time.
    pub async fn measure_processor(&self) -> Result<u64, CheckError> {
        let start = self.start(None, DEVICE_ADDRESS_SPACE, None);
        match self.ask("measure", start, None, MEASURE_TIME_MAX).await? {
            Reply::Processor { fuel_per_second } => Ok(fuel_per_second),
            other => Err(unexpected(other)),
        }
    }

    /// Parses and validates a program in a child: a graph's source, which its
    /// passes are held against, or a module, which is among `inputs`. No device is
    /// touched, so this works on a client without one.
    ///
    /// # Errors
    /// [`CheckError::Rejected`] with the compiler's message, its line marked.
    pub async fn check(&self, program: &Program, inputs: &[InputFile]) -> Result<(), CheckError> {
        let rejected = |error: crate::spec::SpecError| CheckError::Rejected {
            failure: Failure::InvalidSpec,
            detail: error.to_string(),
        };
        program.validate().map_err(rejected)?;
        let spec = List::try_from(program.encode().map_err(rejected)?).unwrap_or_default();
        let start = self.start(None, CHECK_ADDRESS_SPACE, Some(CHECK_TIME_MAX.as_secs()));
        let runtime = program.runtime();
        let question = Request::Check { runtime, spec };
        let module = match program {
            Program::Wgsl(_) => None,
            Program::Wasm(command) => Some(module_of(command, inputs)?),
        };
        let descriptors = module.iter().map(AsFd::as_fd).collect::<Vec<_>>();
        let answer = self
            .ask(
                "check",
                start,
                Some((question, &descriptors)),
                CHECK_TIME_MAX,
            )
            .await;
        match answer.map_err(|error| compiler_died(runtime, error))? {
            Reply::Checked => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    pub(crate) fn spawn(&self, role: &str, start: Start) -> Result<Child, CheckError> {
        let failed = |source| CheckError::Spawn {
            path: self.path.clone(),
            source,
        };
        let group = match &self.groups {
            Ok(groups) => Some(groups.make(start.memory_max).map_err(failed)?),
            Err(_) => None,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = tokio::process::Command::new(&self.path);
        command
            .arg(role)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let process = command.spawn().map_err(failed)?;
        let end = ParentEnd::new(ours).map_err(failed)?;
        let joining = group.as_ref().zip(process.id()).map(|(group, id)| {
            let folders = group.folders();
            tokio::task::spawn_blocking(move || Group::take(&folders, id))
        });
        Ok(Child {
            process,
            end,
            start: Some(start),
            joining,
            group,
        })
    }

    fn start(&self, adapter: Option<u32>, address_space_max: u64, cpu_s_max: Option<u64>) -> Start {
        Start {
            parent: std::process::id(),
            address_space_max,
            memory_max: QUESTION_MEMORY,
            file_bytes_max: PROBE_FILE_BYTES,
            cpu_s_max,
            adapter,
        }
    }

    async fn ask(
        &self,
        role: &str,
        start: Start,
        question: Option<(Request, &[BorrowedFd<'_>])>,
        time_max: Duration,
    ) -> Result<Reply, CheckError> {
        let mut child = self.spawn(role, start)?;
        let conversation = async {
            if let Some((question, descriptors)) = question {
                child.send(&question, descriptors).await?;
            }
            child.receive().await
        };
        let answer = timeout(time_max, conversation).await;
        let ended = child.end_now().await;
        match answer {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(CheckError::NoAnswer(format!(
                "the worker gave no answer: {error} ({ended})"
            ))),
            Err(_) => Err(CheckError::NoAnswer(format!(
                "the worker gave no answer within {} s",
                time_max.as_secs()
            ))),
        }
    }
}

/// A worker process and the way to talk with it. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Child {
    process: tokio::process::Child,
    end: ParentEnd,
    start: Option<Start>,
    /// It is put into its group while its program is loaded.
    joining: Option<JoinHandle<io::Result<()>>>,
    group: Option<Group>,
}

/// How a process ended after it was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It is gone.
    Reaped(ExitStatus),
    /// The kernel ended it because it took more memory than its group may.
    OutOfMemory {
        /// Bytes that it may.
        max: u64,
    },
    /// It hangs in the kernel and cannot be reaped.
    Stuck,
}

impl Ended {
    /// Why the kernel ended it, if the kernel did: for a system call that its
    /// filter takes for an attack, or for want of memory.
    pub(crate) fn by_kernel(self) -> Option<Failure> {
        match self {
            Self::Reaped(status) if status.signal() == Some(Signal::SYS.as_raw()) => {
                Some(Failure::ForbiddenCall)
            }
            Self::OutOfMemory { .. } => Some(Failure::OutOfMemory),
            Self::Reaped(_) | Self::Stuck => None,
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reaped(status) => write!(f, "{status}"),
            Self::OutOfMemory { max } => write!(
                f,
                "the kernel ended it: it needed more than the {} MiB of memory that it is capped to",
                max >> 20
            ),
            Self::Stuck => f.write_str("the process cannot be ended"),
        }
    }
}

impl Child {
    /// The process id; 0 when it has been reaped.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id().unwrap_or(0)
    }

    /// Whether the process still runs; reaps it if not.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Sends a frame, after the [`Start`] frame if that has not gone yet.
    pub(crate) async fn send(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), IpcError> {
        self.introduce().await?;
        self.end.send(request, descriptors).await
    }

    /// What to speak through while something else listens, once it is introduced.
    pub(crate) const fn speaker(&self) -> &Speaker {
        self.end.speaker()
    }

    /// The next frame.
    pub(crate) async fn receive(&mut self) -> Result<Reply, IpcError> {
        self.introduce().await?;
        self.end.receive().await
    }

    /// Kills the process with all that it started, and reaps it.
    pub(crate) async fn end_now(mut self) -> Ended {
        // Until then its number is not given to another.
        let _ = self.joined().await;
        // It may have ended by itself a moment ago; then its own status counts.
        if let Ok(Some(status)) = self.process.try_wait() {
            return self.reaped(status).await;
        }
        let pid = self
            .process
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Not reaped yet, so the number is still its own.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        match timeout(REAP_TIME_MAX, self.process.wait()).await {
            Ok(Ok(status)) => self.reaped(status).await,
            Ok(Err(_)) | Err(_) => Ended::Stuck,
        }
    }

    /// Waits for a process that closed its socket to end; kills it if it doesn't.
    pub(crate) async fn end_after_close(mut self) -> Ended {
        match timeout(Duration::from_millis(100), self.process.wait()).await {
            Ok(Ok(status)) => self.reaped(status).await,
            Ok(Err(_)) | Err(_) => self.end_now().await,
        }
    }

    /// Leaves nobody in its group, and no group.
    async fn reaped(mut self, status: ExitStatus) -> Ended {
        let Some(group) = self.group.take() else {
            return Ended::Reaped(status);
        };
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        let ended = if killed && group.ran_out() {
            let max = group.memory_max();
            Ended::OutOfMemory { max }
        } else {
            Ended::Reaped(status)
        };
        group.kill();
        group.remove().await;
        ended
    }

    /// Waits until it is in its group.
    async fn joined(&mut self) -> io::Result<()> {
        match self.joining.take() {
            Some(joining) => joining.await.map_err(io::Error::other)?,
            None => Ok(()),
        }
    }

    async fn introduce(&mut self) -> Result<(), IpcError> {
        self.joined().await.map_err(IpcError::Group)?;
        if let Some(start) = self.start.take() {
            self.end.send(&Request::Start(start), &[]).await?;
        }
        Ok(())
    }
}

/// The module's bytes, as a worker gets them.
fn module_of(command: &Command, inputs: &[InputFile]) -> Result<File, CheckError> {
    let index = usize::try_from(command.module).unwrap_or(usize::MAX);
    let opened = match inputs.get(index) {
        None => Err(io::Error::other("it is not among the inputs")),
        Some(InputFile {
            made: Some(made), ..
        }) => rustix::fs::memfd_create("module", MemfdFlags::CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|memory| {
                let mut file = File::from(memory);
                file.write_all(made).map(|()| file)
            }),
        Some(input) => File::open(&input.path),
    };
    opened.map_err(|error| CheckError::Rejected {
        failure: Failure::InvalidSpec,
        detail: format!("the module can't be read: {error}"),
    })
}

fn beside_this_program() -> PathBuf {
    let here = std::env::current_exe().unwrap_or_default();
    let folder = here.parent().unwrap_or_else(|| Path::new("/"));
    // Test programs lie one folder below the binaries that they test.
    let folder = match folder.parent() {
        Some(above) if folder.ends_with("deps") => above,
        Some(_) | None => folder,
    };
    folder.join(PROGRAM)
}

fn unexpected(reply: Reply) -> CheckError {
    match reply {
        Reply::Failed {
            failure, detail, ..
        } => CheckError::Rejected {
            failure,
            detail: detail.to_string(),
        },
        other => CheckError::NoAnswer(format!("the worker answered something else: {other:?}")),
    }
}

/// A compiler that crashes or hangs says something about the source.
fn compiler_died(runtime: Runtime, error: CheckError) -> CheckError {
    let CheckError::NoAnswer(how) = error else {
        return error;
    };
    let (failure, advice) = match runtime {
        Runtime::WASM => (Failure::InvalidModule, "make it smaller"),
        _ => (
            Failure::InvalidShader,
            "shorten or flatten its longest expressions",
        ),
    };
    CheckError::Rejected {
        failure,
        detail: format!("the compiler did not survive this program: {how}; {advice}"),
    }
}
