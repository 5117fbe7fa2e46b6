//! The executor's face to the node: start, run, cancel, events.
//!
//! One executor serves one adapter, or the processor alone. A node with several
//! devices has one for each ([`Executor::start_on`]); they may share a queue of events.
//!
//! Nothing here waits for a worker. [`Executor::run`] checks what can be
//! checked at once (the program, the inputs' sizes, the caps) and refuses at
//! once; all that happens later is an [`ExecutionEvent`]. Every execution that
//! was taken ends in just one `Finished` or `Failed`, whose place in the
//! bounded queue is reserved when it is taken.

use std::{
    borrow::Cow, collections::BTreeSet, fmt, fs::File, path::PathBuf, str::FromStr, sync::Arc,
    time::Duration,
};

use suanli_protocol::registry::Runtime;
use tokio::sync::{mpsc, oneshot};

use crate::{
    child::{CheckError, DEVICE_ADDRESS_SPACE, WorkerProgram},
    execution::Plan,
    ipc::{Adapter, AdapterKind, Confinement, Failure, Start},
    limits::{EVENTS_MAX, INPUTS_MAX, POOL_MAX, QUEUE_MAX},
    machine::Machine,
    pool::{Command, Pool, PoolConfig},
    program::Program,
    quantity::ByteSize,
    spec::SpecError,
    units::Template,
};

/// Address space that a software driver needs beside the job's buffers:
/// compiler, thread stacks, staging.
const SOFTWARE_ADDRESS_SPACE: u64 = 16 << 30;
/// What a driver, its compilers and staging take beside a job's buffers and
/// outputs; large kernels keep compilers above a gigabyte.
pub(crate) const DRIVER_MEMORY: u64 = 2 << 30;
/// What a driver may keep in memory files beside a job's buffers.
pub(crate) const DRIVER_FILE_BYTES: u64 = 1 << 30;

/// How an executor is set up.
#[derive(Debug, Clone)]
pub struct ExecutorConfig {
    /// The worker binary; beside the running program if not given.
    pub worker: Option<PathBuf>,
    /// Workers, warmed, busy and idle together. Each runs one execution.
    pub pool_size: usize,
    /// Which adapter serves: the first of those that this means.
    pub adapter: AdapterSelection,
    /// Bytes that one execution's buffers may take together.
    pub memory_max: u64,
    /// Bytes of the adapter's memory that no execution gets. What is left is shared by
    /// as many as may run at once.
    pub memory_reserve: u64,
    /// Bytes of one execution's outputs together.
    pub output_bytes_max: u64,
    /// A tenant's worker ends after resting this long.
    pub idle_max: Duration,
    /// After so long without an execution no worker is kept warm; never if not given.
    pub rest_after: Option<Duration>,
}

impl Default for ExecutorConfig {
    fn default() -> Self {
        Self {
            worker: None,
            pool_size: 2,
            adapter: AdapterSelection::Best,
            memory_max: 4 << 30,
            memory_reserve: 0,
            output_bytes_max: 1 << 30,
            idle_max: Duration::from_secs(30),
            rest_after: None,
        }
    }
}

/// Which of a machine's adapters serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterSelection {
    /// Every discrete one; where there is none the best, integrated before virtual
    /// before software; none where there is none.
    Best,
    /// None: programs for the processor only.
    None,
    /// All whose name contains this, whatever its case.
    Named(String),
    /// The one with this [`Adapter::index`].
    At(u32),
    /// A software adapter.
    Software,
}

/// Names an execution within its executor; the caller's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExecutionId(pub u64);

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// For whom a worker works: two different tenants never share one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tenant(pub [u8; 32]);

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Tenant({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// Where an input's bytes are. A worker gets a descriptor, never a path.
#[derive(Debug)]
pub enum InputSource {
    /// An open file.
    File(File),
    /// Opened, for reading, when the execution is taken.
    Path(PathBuf),
}

/// What travels as a job's spec.
#[derive(Debug, Clone)]
pub enum JobSpec {
    /// As it travels.
    Encoded(Vec<u8>),
    /// Decoded and checked before: an array's lists are long.
    Read(Arc<Template>),
}

impl From<Template> for JobSpec {
    fn from(template: Template) -> Self {
        Self::Read(Arc::new(template))
    }
}

/// One thing to run.
#[derive(Debug)]
pub struct ExecutionRequest {
    /// Unique among those that have not ended.
    pub id: ExecutionId,
    /// For whom.
    pub tenant: Tenant,
    /// What the spec is for.
    pub runtime: Runtime,
    /// What to run.
    pub spec: JobSpec,
    /// Which of its units; 0 if it is no array.
    pub unit: u32,
    /// The program's inputs, in its order.
    pub inputs: Vec<InputSource>,
    /// Time from assignment to the end of the last dispatch and readback.
    pub run_limit: Duration,
    /// Bytes of memory; the executor's own cap holds too.
    pub memory_max: u64,
    /// Units of fuel; the program's own cap holds too.
    pub fuel_max: u64,
    /// Bytes of outputs; the executor's own cap holds too.
    pub output_bytes_max: u64,
    /// A worker that no execution used before and none uses after.
    pub fresh: bool,
    /// Folder for outputs too large for memory; made when there is one.
    pub outputs_dir: PathBuf,
    /// How long after the start to tell a checkpoint, of a program that has them, and how
    /// long after each the next: a second at least. None if none are wanted.
    pub checkpoint_every: Option<Duration>,
    /// Where to go on from; none to begin.
    pub resume: Option<Resume>,
}

/// An execution's state on its way, as an [`ExecutionEvent::Checkpoint`] told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// Dispatches that are done.
    pub done: u64,
    /// The buffers of the checkpoint, in its order.
    pub state: Vec<OutputBlob>,
}

/// What happens to executions.
#[derive(Debug)]
pub enum ExecutionEvent {
    /// A worker has it.
    Started {
        /// Which.
        id: ExecutionId,
        /// Process id of the worker, for logs and tests.
        worker_pid: u32,
    },
    /// Dispatches done, or fuel used. Lost when nobody reads.
    Progress {
        /// Which.
        id: ExecutionId,
        /// So many,
        done: u64,
        /// of so many.
        total: u64,
    },
    /// Its state after so many dispatches, for a [`Resume`]. Told only if asked for,
    /// once a second at most, and lost when nobody reads. Large buffers are in files
    /// of `outputs_dir`, which are the reader's to remove.
    Checkpoint {
        /// Which.
        id: ExecutionId,
        /// So many.
        done: u64,
        /// The program's checkpoint, in its order.
        state: Vec<OutputBlob>,
    },
    /// A line of its log. Lost when nobody reads.
    Log {
        /// Which.
        id: ExecutionId,
        /// Without a line end.
        line: String,
    },
    /// Done.
    Finished {
        /// Which.
        id: ExecutionId,
        /// In the program's order.
        outputs: Vec<OutputBlob>,
        /// What it took.
        usage: Usage,
    },
    /// Over without a result.
    Failed {
        /// Which.
        id: ExecutionId,
        /// Kind.
        failure: Failure,
        /// For people.
        detail: String,
        /// What it took until then.
        usage: Usage,
    },
}

/// An output, copied and hashed by the parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputBlob {
    /// As the program names it.
    pub name: String,
    /// Its bytes, or where they are.
    pub content: OutputContent,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its bytes.
    pub hash: [u8; 32],
}

/// Where an output's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputContent {
    /// Here: at most [`OUTPUT_MEMORY_MAX`](crate::limits::OUTPUT_MEMORY_MAX).
    Memory(Vec<u8>),
    /// In a file of `outputs_dir`, which is the caller's to remove.
    File(PathBuf),
}

impl OutputContent {
    /// All of them.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn read(&self) -> std::io::Result<Cow<'_, [u8]>> {
        match self {
            Self::Memory(bytes) => Ok(Cow::Borrowed(bytes)),
            Self::File(path) => std::fs::read(path).map(Cow::Owned),
        }
    }
}

/// What an execution took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Microseconds in which the device was busy with its dispatches.
    pub gpu_us: u64,
    /// Microseconds of the worker's processor time, as the worker says.
    pub cpu_us: u64,
    /// Units of fuel.
    pub fuel: u64,
    /// Microseconds from the order to the worker's last word.
    pub wall_us: u64,
}

impl Usage {
    /// The device time in milliseconds, rounded up once.
    #[must_use]
    pub const fn gpu_ms(&self) -> u64 {
        self.gpu_us.div_ceil(1000)
    }
}

/// Why an execution was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{failure}: {detail}")]
pub struct Refusal {
    /// Kind.
    pub failure: Failure,
    /// For people.
    pub detail: String,
}

/// Why an executor did not start.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The worker binary is missing or does not answer.
    #[error(transparent)]
    Worker(#[from] CheckError),
    /// Nothing to run on.
    #[error(
        "no adapter {0}: install a Vulkan driver (Mesa's software driver is `mesa-vulkan-drivers` on Debian), or choose another adapter; `suanli doctor` lists them"
    )]
    NoAdapter(String),
    /// The operator keeps all of an adapter's memory.
    #[error("a reserve of {reserve} leaves nothing of the {has} that {adapter} has; reserve less")]
    Reserve {
        /// Bytes kept.
        reserve: ByteSize,
        /// Bytes that there are.
        has: ByteSize,
        /// Its name.
        adapter: String,
    },
    /// A pool without workers, or with too many.
    #[error("a pool of {0} workers: 1 to {POOL_MAX} are allowed")]
    PoolSize(usize),
    /// The machine has no thread left.
    #[error("starting the pool's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Runs executions in a pool of workers. Dropping the last clone ends them.
#[derive(Debug, Clone)]
pub struct Executor {
    commands: mpsc::Sender<Command>,
    events: mpsc::Sender<ExecutionEvent>,
    program: WorkerProgram,
    adapter: Option<Adapter>,
    confinement: Confinement,
    memory_max: u64,
    output_bytes_max: u64,
}

impl Executor {
    /// Looks for an adapter and starts warming workers.
    ///
    /// # Errors
    /// If there is no worker binary, or not the adapter that is asked for.
    pub async fn start(
        config: ExecutorConfig,
    ) -> Result<(Self, mpsc::Receiver<ExecutionEvent>), ExecutorError> {
        let machine = Machine::look(config.worker.as_deref()).await?;
        let (events, events_out) = mpsc::channel(EVENTS_MAX);
        Ok((Self::start_on(&machine, &config, events)?, events_out))
    }

    /// Starts warming workers on a machine that was looked at, with that machine's
    /// worker binary. Executions need ids that are unique among all who share `events`.
    ///
    /// # Errors
    /// If the machine has not the adapter that is asked for.
    pub fn start_on(
        machine: &Machine,
        config: &ExecutorConfig,
        events: mpsc::Sender<ExecutionEvent>,
    ) -> Result<Self, ExecutorError> {
        if !(1..=POOL_MAX).contains(&config.pool_size) {
            return Err(ExecutorError::PoolSize(config.pool_size));
        }
        let adapter = config.adapter.pick(machine.adapters())?.into_iter().next();
        let memory_max = memory_for_each(config, adapter.as_ref())?;
        let pool = PoolConfig {
            program: machine.program().clone(),
            start: worker_limits(adapter.as_ref(), memory_max, config.output_bytes_max),
            size: config.pool_size,
            idle_max: config.idle_max,
            rest_after: config.rest_after,
        };
        let (commands, commands_in) = mpsc::channel(QUEUE_MAX);
        serve_on_own_thread(Pool::new(pool, events.clone()), commands_in)?;
        Ok(Self {
            commands,
            events,
            program: machine.program().clone(),
            adapter,
            confinement: machine.confinement().clone(),
            memory_max,
            output_bytes_max: config.output_bytes_max,
        })
    }

    /// What passes of graphs run on; none where only the processor serves.
    #[must_use]
    pub const fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Bytes that one execution may take.
    #[must_use]
    pub const fn memory_max(&self) -> u64 {
        self.memory_max
    }

    /// How far workers are confined on this machine.
    #[must_use]
    pub const fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    /// The worker binary, for probing, measuring and checking.
    #[must_use]
    pub const fn program(&self) -> &WorkerProgram {
        &self.program
    }

    /// Takes an execution. What follows are events under its id.
    ///
    /// # Errors
    /// What is wrong with the request itself, at once; no event follows.
    pub fn run(&self, request: ExecutionRequest) -> Result<(), Refusal> {
        let plan = self.plan(request)?;
        self.commands
            .try_send(Command::Run(Box::new(plan)))
            .map_err(|_| queue_full())
    }

    /// Asks for the end of an execution, which `Failed` with
    /// [`Failure::Cancelled`] then reports, unless it ended before.
    ///
    /// # Errors
    /// If more is asked of the pool than its queue holds; ask again.
    pub fn cancel(&self, id: ExecutionId) -> Result<(), Refusal> {
        self.commands
            .try_send(Command::Cancel(id))
            .map_err(|_| queue_full())
    }

    /// Ends the workers that no execution uses, and keeps none warm until
    /// [`Executor::wake`]. What runs goes on, and what still comes is run, from cold.
    pub async fn rest(&self) {
        // Fails only when the pool has ended, and its workers with it.
        let _ = self.commands.send(Command::Rest).await;
    }

    /// Keeps workers warm again.
    pub async fn wake(&self) {
        // As above.
        let _ = self.commands.send(Command::Wake).await;
    }

    /// An execution may come soon: workers that ended because nobody used them are
    /// warmed again. A pool that was told to rest goes on resting.
    pub fn expect(&self) {
        // A queue that is full has executions in it, which do the same.
        let _ = self.commands.try_send(Command::Expect);
    }

    /// Cancels everything and returns when every worker is gone.
    pub async fn stop(self) {
        let (stopped, wait) = oneshot::channel();
        if self.commands.send(Command::Stop(stopped)).await.is_ok() {
            drop(wait.await);
        }
    }

    fn plan(&self, request: ExecutionRequest) -> Result<Plan, Refusal> {
        let invalid = |error: SpecError| refusal(Failure::InvalidSpec, error.to_string());
        let template = match request.spec {
            JobSpec::Encoded(bytes) => {
                Arc::new(Template::decode(request.runtime, &bytes).map_err(invalid)?)
            }
            JobSpec::Read(template) => template,
        };
        let program = template.for_unit(request.unit).map_err(invalid)?;
        if matches!(&*program, Program::Wgsl(_)) {
            let adapter = self.adapter.as_ref().ok_or_else(no_adapter)?;
            adapter
                .offers(program.features())
                .map_err(|detail| refusal(Failure::MissingFeature, detail))?;
        }
        let memory_max = request.memory_max.min(self.memory_max);
        fits(program.memory_bytes(), memory_max, "bytes of memory")?;
        let output_bytes_max = request.output_bytes_max.min(self.output_bytes_max);
        fits(
            program.output_bytes_max(),
            output_bytes_max,
            "bytes of outputs",
        )?;
        let inputs = open_inputs(request.inputs, &program)?;
        let checkpoints = program.checkpoints();
        if let Some(resume) = &request.resume {
            let checkpoints = checkpoints.as_ref();
            let checkpoints = checkpoints.ok_or("the program has no checkpoints");
            let held = checkpoints.and_then(|kept| kept.admit(resume));
            held.map_err(|why| refusal(Failure::InvalidSpec, format!("{why}; begin anew")))?;
        }
        let is_kept = request.checkpoint_every.is_some() || request.resume.is_some();
        let reserve = || {
            self.events
                .clone()
                .try_reserve_owned()
                .map_err(|_| queue_full())
        };
        Ok(Plan {
            id: request.id,
            tenant: request.tenant,
            fresh: request.fresh,
            outputs: program.outputs(),
            fuel_max: request.fuel_max.min(program.fuel_max()),
            runtime: program.runtime(),
            spec: program
                .encode()
                .map_err(invalid)?
                .try_into()
                .unwrap_or_default(),
            inputs,
            outputs_dir: request.outputs_dir,
            run_limit: request.run_limit,
            memory_max,
            checkpoints: checkpoints.filter(|_| is_kept),
            checkpoint_every: request.checkpoint_every,
            resume: request.resume,
            started: Some(reserve()?),
            ended: reserve()?,
        })
    }
}

impl FromStr for AdapterSelection {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("\"auto\", \"software\", \"none\", or a part of a device's name is allowed"),
            "auto" => Ok(Self::Best),
            "none" => Ok(Self::None),
            "software" => Ok(Self::Software),
            text if text.starts_with('#') => match text.trim_start_matches('#').parse() {
                Ok(index) => Ok(Self::At(index)),
                Err(_) => Err("after # the number of an adapter is allowed, as in \"#1\""),
            },
            name => Ok(Self::Named(name.to_owned())),
        }
    }
}

impl fmt::Display for AdapterSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Software => f.write_str("software"),
            Self::At(index) => write!(f, "#{index}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl AdapterSelection {
    /// Those that it means, the best first; each device once, also where two drivers
    /// have it.
    ///
    /// # Errors
    /// If it means one that is not there.
    pub fn pick(&self, adapters: &[Adapter]) -> Result<Vec<Adapter>, ExecutorError> {
        let mut picked = adapters.to_vec();
        picked.sort_by_key(|adapter| (adapter.kind, adapter.index));
        let mut seen = BTreeSet::new();
        let mut is_first = |adapter: &Adapter| {
            adapter.bus.is_empty() || seen.insert((adapter.bus.to_string(), adapter.kind))
        };
        let nothing = |wanted: String| Err(ExecutorError::NoAdapter(wanted));
        match self {
            Self::Best => {
                let best = picked.first().map(|adapter| adapter.kind);
                picked.retain(|adapter| Some(adapter.kind) == best && is_first(adapter));
                if best != Some(AdapterKind::Discrete) {
                    picked.truncate(1);
                }
            }
            Self::None => picked.clear(),
            Self::Named(name) => {
                let name = name.to_lowercase();
                picked.retain(|adapter| {
                    adapter.name.to_lowercase().contains(&name) && is_first(adapter)
                });
                if picked.is_empty() {
                    return nothing(format!("with `{name}` in its name"));
                }
            }
            Self::At(index) => {
                picked.retain(|adapter| adapter.index == *index);
                if picked.is_empty() {
                    return nothing(format!("with number {index}"));
                }
            }
            Self::Software => {
                picked.retain(Adapter::is_software);
                picked.truncate(1);
                if picked.is_empty() {
                    return nothing("in software".to_owned());
                }
            }
        }
        Ok(picked)
    }
}

/// Bytes that one execution may take, when as many run as there are workers.
fn memory_for_each(
    config: &ExecutorConfig,
    adapter: Option<&Adapter>,
) -> Result<u64, ExecutorError> {
    let (reserve, Some(adapter)) = (config.memory_reserve, adapter) else {
        return Ok(config.memory_max);
    };
    if reserve == 0 {
        return Ok(config.memory_max);
    }
    let workers = u64::try_from(config.pool_size).unwrap_or(u64::MAX).max(1);
    match adapter.memory_bytes.saturating_sub(reserve) / workers {
        0 => Err(ExecutorError::Reserve {
            reserve: ByteSize(reserve),
            has: ByteSize(adapter.memory_bytes),
            adapter: adapter.name.to_string(),
        }),
        share => Ok(config.memory_max.min(share)),
    }
}

fn worker_limits(adapter: Option<&Adapter>, memory_max: u64, output_bytes_max: u64) -> Start {
    let address_space_max = if adapter.is_none_or(Adapter::is_software) {
        // Buffers, their staging copies, and the driver itself.
        memory_max
            .saturating_mul(2)
            .saturating_add(SOFTWARE_ADDRESS_SPACE)
    } else {
        DEVICE_ADDRESS_SPACE
    };
    Start {
        parent: std::process::id(),
        address_space_max,
        memory_max: memory_max
            .saturating_add(output_bytes_max)
            .saturating_add(DRIVER_MEMORY),
        file_bytes_max: memory_max.saturating_add(DRIVER_FILE_BYTES),
        cpu_s_max: None,
        adapter: adapter.map(|adapter| adapter.index),
    }
}

fn serve_on_own_thread(pool: Pool, commands: mpsc::Receiver<Command>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("suanli-pool".to_owned())
        .spawn(move || runtime.block_on(pool.serve(commands)))?;
    Ok(())
}

fn open_inputs(sources: Vec<InputSource>, program: &Program) -> Result<Vec<File>, Refusal> {
    let least = program.input_bytes_min();
    if sources.len() != least.len() || sources.len() > INPUTS_MAX {
        return Err(refusal(
            Failure::InvalidSpec,
            format!(
                "{} inputs given, the program reads {}",
                sources.len(),
                least.len()
            ),
        ));
    }
    let opened = sources
        .into_iter()
        .zip(least)
        .enumerate()
        .map(|(index, (source, least))| {
            let failed = |error: std::io::Error| {
                refusal(Failure::Internal, format!("opening input {index}: {error}"))
            };
            let file = match source {
                InputSource::File(file) => file,
                InputSource::Path(path) => File::open(path).map_err(failed)?,
            };
            let bytes = file.metadata().map_err(failed)?.len();
            if bytes < least {
                return Err(refusal(
                    Failure::InvalidSpec,
                    format!("input {index} has {bytes} bytes, the program reads {least}"),
                ));
            }
            Ok(file)
        });
    opened.collect()
}

fn fits(asked: u64, allowed: u64, what: &str) -> Result<(), Refusal> {
    if asked <= allowed {
        return Ok(());
    }
    let detail = format!("{what}: {asked} asked, {allowed} allowed");
    Err(refusal(Failure::TooLarge { asked, allowed }, detail))
}

fn no_adapter() -> Refusal {
    refusal(
        Failure::Internal,
        "no adapter serves here: only programs for the processor run",
    )
}

fn queue_full() -> Refusal {
    refusal(
        Failure::QueueFull,
        "the executor's queue is full; try again later",
    )
}

fn refusal(failure: Failure, detail: impl Into<String>) -> Refusal {
    Refusal {
        failure,
        detail: detail.into(),
    }
}

#[cfg(test)]
mod tests {
    use suanli_protocol::wire::{List, Utf8};

    use super::*;

    fn adapter(index: u32, name: &str, kind: AdapterKind, bus: &str) -> Adapter {
        Adapter {
            index,
            name: Utf8::cut(name),
            driver: Utf8::default(),
            vendor: 0,
            bus: Utf8::cut(bus),
            backend: Utf8::cut("vulkan"),
            kind,
            memory_bytes: 1 << 30,
            binding_bytes_max: 1 << 27,
            buffer_bytes_max: 1 << 28,
            features: List::default(),
        }
    }

    fn picked(selection: &AdapterSelection, adapters: &[Adapter]) -> Option<Vec<u32>> {
        let picked = selection.pick(adapters).ok()?;
        Some(picked.iter().map(|adapter| adapter.index).collect())
    }

    #[test]
    fn every_discrete_adapter_is_picked_once_and_of_others_the_best() {
        let machine = [
            adapter(0, "llvmpipe", AdapterKind::Software, ""),
            adapter(1, "Iris", AdapterKind::Integrated, "0000:00:02.0"),
            adapter(2, "RTX 4090", AdapterKind::Discrete, "0000:01:00.0"),
            adapter(3, "RTX 4090", AdapterKind::Discrete, "0000:02:00.0"),
            // The same device by another driver.
            adapter(
                4,
                "NVK AD102 (RTX 4090)",
                AdapterKind::Discrete,
                "0000:01:00.0",
            ),
        ];
        let best = AdapterSelection::Best;
        assert_eq!(picked(&best, &machine), Some(vec![2, 3]));
        assert_eq!(picked(&best, &machine[..2]), Some(vec![1]));
        assert_eq!(picked(&best, &machine[..1]), Some(vec![0]));
        assert_eq!(picked(&best, &[]), Some(vec![]));
        let named = |name: &str| AdapterSelection::Named(name.to_owned());
        assert_eq!(picked(&named("rtx"), &machine), Some(vec![2, 3]));
        assert_eq!(picked(&named("nvk"), &machine), Some(vec![4]));
        assert_eq!(picked(&named("radeon"), &machine), None);
        assert_eq!(picked(&AdapterSelection::At(4), &machine), Some(vec![4]));
        assert_eq!(picked(&AdapterSelection::At(5), &machine), None);
        assert_eq!(picked(&AdapterSelection::Software, &machine), Some(vec![0]));
        assert_eq!(picked(&AdapterSelection::None, &machine), Some(vec![]));
    }
}
