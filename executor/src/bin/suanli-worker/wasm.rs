//! One execution of a WebAssembly command.
//!
//! ```text
//! weigh ─▶ compile ─▶ link ─▶ instantiate ─▶ _start ─▶ read outputs
//!   │      (kept for the tenant)              │ after some fuel: cancel? progress
//!   └ sizes, imports, exports                 └ ends: exit, trap, no fuel, stop
//! ```
//!
//! Nothing that the program can observe comes from this machine: see
//! [`wasi`] and [`files`]. Fuel counts what it executes, and the same program
//! uses the same fuel everywhere. The engine's settings are part of that, and
//! so of the runtime's version in offers.
//!
//! A program stops to look up after a slice of fuel, not after a time: so what
//! it has used is known to the unit whenever it is stopped. A failure that is
//! this machine's is never an answer to the program, which would go on from it
//! elsewhere than on other machines: it ends the execution, as ours.
//!
//! Absent: deadlines (the parent's), components, threads.

mod files;
mod fuel;
mod wasi;
mod weigh;

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use suanli_executor::{
    command::{Command, SIEVE},
    ipc::{Detail, Failure, IpcError, Reply, Stage, Used, WorkerEnd, are_sent_in_frame},
    limits::{
        DETAIL_BYTES_MAX, LOG_BYTES_MAX, MODULE_BYTES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX,
        WASM_STACK_BYTES,
    },
};
use suanli_protocol::wire::{List, Utf8};
use wasmtime::{
    Config, Engine, InstancePre, Linker, Memory, Module, ResourceLimiter, Store, Trap,
    WasmBacktrace,
};

use self::{
    files::{Files, Input, Refused},
    weigh::Weight,
};
use crate::{Fault, cpu_time, is_cancelled, micros, position, recent::Recent};

/// A program looks up at the parent after this time, at the end of a slice or
/// in a call.
const LOOK_UP_INTERVAL: Duration = Duration::from_millis(10);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// What a line of the log counts beside its text.
const LOG_LINE_BYTES: usize = 64;
const PAGE_BYTES: u64 = 64 << 10;
/// Bytes of compiled code that are kept for the tenant.
const KEPT_BYTES_MAX: usize = 128 << 20;

/// Error numbers of WASI preview 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Errno {
    BadDescriptor = 8,
    Exists = 20,
    Fault = 21,
    FileTooLarge = 22,
    IllegalBytes = 25,
    Invalid = 28,
    Io = 29,
    IsFolder = 31,
    TooManyOpen = 33,
    NameTooLong = 37,
    NotFound = 44,
    NoSpace = 51,
    NotFolder = 54,
    NotEmpty = 55,
    NotSocket = 57,
    NotSupported = 58,
    Overflow = 61,
    ReadOnly = 69,
    NoSeek = 70,
    NotCapable = 76,
}

/// Why a program is ended that did not trap.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("exit code {0}")]
    Exit(u32),
    #[error("cancelled")]
    Cancelled,
    #[error("`{name}` is larger than the {bytes_max} bytes that the job allows")]
    OutputTooLarge { name: String, bytes_max: u64 },
    #[error("the module exports no memory named `memory`")]
    NoMemory,
    #[error("{0}")]
    Host(String),
}

/// Everything that one program sees, and the way to its parent.
struct World {
    files: Files,
    /// Found at the first call.
    memory: Option<Memory>,
    arguments: Arc<[String]>,
    /// `name=value`.
    variables: Arc<[String]>,
    /// What was left when the program began; clocks start there.
    fuel_at_start: u64,
    clock_ns: u64,
    slept_ns: u64,
    chance: Chance,
    memory_max: u64,
    /// Of memory, for which the program has paid or owes.
    pages: u64,
    /// Fuel that is taken at the next call, or at the end.
    owed: u64,
    /// Of all tables.
    elements: usize,
    watch: Watch,
    /// The line of standard error that has not ended yet.
    line: Vec<u8>,
    /// Bytes that went to the log.
    logged: usize,
}

/// What a running program is watched by, from inside its calls and between its
/// slices.
#[derive(Clone)]
struct Watch {
    parent: Arc<WorkerEnd>,
    fuel_max: u64,
    fuel_used: Arc<AtomicU64>,
    began: Instant,
    cpu_before: Duration,
    looked_us: Arc<AtomicU64>,
    told_us: Arc<AtomicU64>,
}

/// Random numbers that follow from a seed.
struct Chance(blake3::OutputReader);

impl Chance {
    fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("suanli 2026 wasm random numbers");
        hasher.update(&seed.to_le_bytes());
        Self(hasher.finalize_xof())
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }
}

impl World {
    /// Whole lines of standard error go to the job's log as they come.
    fn tell(&mut self, number: u32, bytes: &[u8]) {
        if !self.files.is_stderr(number) {
            return;
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for part in piece.chunks(DETAIL_BYTES_MAX) {
                if self.logged >= LOG_BYTES_MAX {
                    return;
                }
                self.line.extend_from_slice(part);
                if part.ends_with(b"\n") || self.line.len() >= DETAIL_BYTES_MAX {
                    self.end_line();
                }
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line: Detail = Utf8::cut(String::from_utf8_lossy(&line).trim_end());
        // An empty line costs as much as another.
        self.logged += line.len() + LOG_LINE_BYTES;
        if !line.is_empty() {
            // A parent that is gone is found out at the next look.
            let _ = self.watch.parent.send(&Reply::Log { line });
        }
    }
}

impl Watch {
    fn new(fuel_max: u64, parent: &WorkerEnd, cpu_before: Duration) -> Result<Self, Fault> {
        let parent = parent.try_clone();
        let parent = parent.map_err(|error| Fault::new(Failure::Internal, error.to_string()))?;
        Ok(Self {
            parent: Arc::new(parent),
            fuel_max,
            fuel_used: Arc::default(),
            began: Instant::now(),
            cpu_before,
            looked_us: Arc::default(),
            told_us: Arc::default(),
        })
    }

    /// So much fuel is used by now.
    fn note(&self, fuel_used: u64) -> Result<(), Stop> {
        self.fuel_used.store(fuel_used, Ordering::Relaxed);
        let since = micros(self.began.elapsed()) - self.looked_us.load(Ordering::Relaxed);
        if since < micros(LOOK_UP_INTERVAL) {
            return Ok(());
        }
        self.look_up()
    }

    /// Whether to go on.
    fn look_up(&self) -> Result<(), Stop> {
        let now_us = micros(self.began.elapsed());
        self.looked_us.store(now_us, Ordering::Relaxed);
        if is_cancelled(&self.parent).map_err(|fault| Stop::Host(fault.detail))? {
            return Err(Stop::Cancelled);
        }
        if now_us - self.told_us.load(Ordering::Relaxed) >= micros(PROGRESS_INTERVAL) {
            self.told_us.store(now_us, Ordering::Relaxed);
            let done = self.fuel_used.load(Ordering::Relaxed);
            let progress = Reply::Progress {
                done,
                total: self.fuel_max,
                used: self.used(done),
            };
            let gone = |error: IpcError| Stop::Host(error.to_string());
            self.parent.send(&progress).map_err(gone)?;
        }
        Ok(())
    }

    fn used(&self, fuel: u64) -> Used {
        Used {
            gpu_us: 0,
            cpu_us: micros(cpu_time().saturating_sub(self.cpu_before)),
            fuel,
        }
    }
}

impl ResourceLimiter for World {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // Asked before the module's own limit: what fails there must not count.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let desired = u64::try_from(desired).unwrap_or(u64::MAX);
        let left = self.memory_max.checked_sub(desired);
        let Some(left) = left.filter(|left| *left >= self.files.bytes()) else {
            return Ok(false);
        };
        self.files.set_bytes_max(left);
        let more = (desired / PAGE_BYTES).saturating_sub(self.pages);
        self.pages += more;
        self.owed += fuel::of_growth(more);
        Ok(true)
    }

    /// Nothing but the host can fail what was allowed.
    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(wasmtime::Error::new(Stop::Host(format!("{error:#}"))))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let all = (self.elements - current).saturating_add(desired);
        if all > TABLE_ELEMENTS_MAX {
            return Ok(false);
        }
        self.elements = all;
        Ok(true)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(wasmtime::Error::new(Stop::Host(format!("{error:#}"))))
    }

    fn instances(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        1
    }
}

/// What a worker keeps ready.
pub(crate) struct Wasm {
    engine: Engine,
    linker: Linker<World>,
    modules: Recent<Ready>,
}

/// A module that only needs to be instantiated, and what that takes.
#[derive(Clone)]
struct Ready {
    module: InstancePre<World>,
    weight: Weight,
}

/// What the parent asked for.
pub(crate) struct Order<'a> {
    pub(crate) command: &'a Command,
    pub(crate) fuel_max: u64,
    pub(crate) inputs: Vec<File>,
    pub(crate) outputs: Vec<OwnedFd>,
}

impl Wasm {
    /// An engine with all functions of WASI.
    pub(crate) fn new() -> Result<Self, Fault> {
        let failed = |error: wasmtime::Error| Fault::new(Failure::Internal, error.to_string());
        let engine = engine().map_err(failed)?;
        let mut linker = Linker::new(&engine);
        wasi::offer(&mut linker).map_err(failed)?;
        Ok(Self {
            engine,
            linker,
            modules: Recent::new(KEPT_BYTES_MAX),
        })
    }

    /// Runs one command and says how it ended.
    pub(crate) fn execute(
        &mut self,
        order: Order<'_>,
        parent: &mut WorkerEnd,
    ) -> Result<Reply, Fault> {
        let watch = Watch::new(order.fuel_max, parent, cpu_time())?;
        let mut left = order.fuel_max;
        let end = self.start(&order, &watch, &mut left, parent);
        let used = watch.used(order.fuel_max - left);
        let end = end.and_then(|world| {
            let outputs = collect(order.command, &world)?;
            finish(&outputs, &order.outputs, used)
        });
        end.map_err(|fault| fault.after(used))
    }

    /// Runs a command to its good end. Says also what fuel is left.
    fn start(
        &mut self,
        order: &Order<'_>,
        watch: &Watch,
        left: &mut u64,
        parent: &mut WorkerEnd,
    ) -> Result<World, Fault> {
        let code = order.inputs.get(position(order.command.module));
        let code = code.ok_or_else(|| Fault::new(Failure::InvalidSpec, "no module came"))?;
        let code = read_module(code)?;
        pay(left, fuel::of_code(length(&code)), watch)?;
        let key = blake3::hash(&code);
        let known = self.modules.get(&key);
        let weight = match &known {
            Some(known) => known.weight,
            None => weigh(&code)?,
        };
        admit(weight, order.command.memory_max)?;
        pay(left, fuel::of_module(weight), watch)?;
        let module = match known {
            Some(known) => known.module,
            None => {
                parent.send(&Reply::Stage(Stage::Compiling))?;
                let module = self.compile(key, &code, weight)?;
                parent.send(&Reply::Stage(Stage::Running))?;
                module
            }
        };
        drop(code);
        let world = World::new(order, watch.clone(), *left, weight)?;
        let mut store = Store::new(&self.engine, world);
        store.limiter(|world| world);
        let internal = |error: wasmtime::Error| Fault::new(Failure::Internal, error.to_string());
        store.set_fuel(*left).map_err(internal)?;
        let sliced = store.fuel_async_yield_interval(Some(fuel::SLICE));
        sliced.map_err(internal)?;
        let ended = watched(run(&module, &mut store), watch);
        *left = store.get_fuel().map_err(internal)?;
        store.data_mut().end_line();
        let paid = pay(left, store.data().owed, watch);
        ended.map_err(|error| judge(&error, order.fuel_max))?;
        paid.map(|()| store.into_data())
    }

    fn compile(
        &mut self,
        key: blake3::Hash,
        code: &[u8],
        weight: Weight,
    ) -> Result<InstancePre<World>, Fault> {
        let module = Module::new(&self.engine, code);
        let module = module.map_err(|error| blame(&self.engine, code, &error))?;
        let linked = self.linker.instantiate_pre(&module);
        let linked = linked.map_err(|error| invalid(&error))?;
        let image = module.image_range();
        let bytes = image.end.addr() - image.start.addr();
        let module = linked.clone();
        self.modules.put(key, Ready { module, weight }, bytes);
        Ok(linked)
    }
}

/// Whether it is the module's fault or ours that it was not compiled.
fn blame(engine: &Engine, code: &[u8], error: &wasmtime::Error) -> Fault {
    match Module::validate(engine, code) {
        Err(error) => invalid(&error),
        Ok(()) => Fault::new(Failure::Internal, format!("compiling: {error:#}")),
    }
}

/// Takes fuel for what comes before the program's first instruction, or is owed
/// after its last.
fn pay(left: &mut u64, price: u64, watch: &Watch) -> Result<(), Fault> {
    let Some(rest) = left.checked_sub(price) else {
        *left = 0;
        return Err(no_fuel(watch.fuel_max));
    };
    *left = rest;
    watch
        .fuel_used
        .store(watch.fuel_max - rest, Ordering::Relaxed);
    Ok(())
}

fn weigh(code: &[u8]) -> Result<Weight, Fault> {
    let offered = weigh::Offered {
        module: wasi::MODULE,
        functions: wasi::NAMES,
    };
    weigh::weigh(code, offered).map_err(|detail| Fault::new(Failure::InvalidModule, detail))
}

/// Refuses what begins with more memory than the job allows.
fn admit(weight: Weight, allowed: u64) -> Result<(), Fault> {
    let asked = weight.memory_pages.saturating_mul(PAGE_BYTES);
    if asked <= allowed {
        return Ok(());
    }
    let detail = format!("the module starts with {asked} bytes of memory, {allowed} are allowed");
    Err(Fault::new(Failure::TooLarge { asked, allowed }, detail))
}

/// Validates a module without compiling it.
pub(crate) fn check(module: &File) -> Result<(), Fault> {
    let code = read_module(module)?;
    weigh(&code)?;
    let engine = engine().map_err(|error| Fault::new(Failure::Internal, error.to_string()))?;
    Module::validate(&engine, &code).map_err(|error| invalid(&error))
}

/// The shortest run that is believed.
const MEASURE_TIME: Duration = Duration::from_millis(100);

/// Units of fuel per second that a program uses here.
pub(crate) fn fuel_per_second() -> Result<u64, Fault> {
    let failed = |error: wasmtime::Error| Fault::new(Failure::Internal, error.to_string());
    let sieve = endless_sieve().map_err(failed)?;
    let mut fuel = 10_000_000;
    loop {
        let took = burn(&sieve, fuel).map_err(failed)?;
        if took >= MEASURE_TIME || fuel >= 1 << 40 {
            let took_us = u128::from(micros(took).max(1));
            let speed = u128::from(fuel) * 1_000_000 / took_us;
            return Ok(u64::try_from(speed).unwrap_or(u64::MAX));
        }
        fuel *= 4;
    }
}

/// More rounds than any fuel here is enough for.
fn endless_sieve() -> wasmtime::Result<Module> {
    let text = SIEVE.replace("ROUNDS", "1000000");
    let code = wat::parse_str(text).map_err(wasmtime::Error::new)?;
    Module::new(&engine()?, code)
}

/// How long the sieve takes to use so much fuel.
fn burn(sieve: &Module, fuel: u64) -> wasmtime::Result<Duration> {
    let mut store = Store::new(sieve.engine(), ());
    store.set_fuel(fuel)?;
    let instance = wasmtime::Instance::new(&mut store, sieve, &[])?;
    let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
    let began = Instant::now();
    match start.call(&mut store, ()) {
        Err(error) if matches!(error.downcast_ref(), Some(Trap::OutOfFuel)) => Ok(began.elapsed()),
        Err(error) => Err(error),
        Ok(()) => Err(wasmtime::Error::msg("the sieve ended before its fuel did")),
    }
}

/// The settings that decide what a program does and what fuel it uses: another
/// set of them is another version of the runtime.
fn engine() -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config
        .consume_fuel(true)
        .operator_cost(fuel::operators())
        .max_wasm_stack(WASM_STACK_BYTES)
        // Else a NaN's bits would tell one processor from another.
        .cranelift_nan_canonicalization(true)
        // Its results differ between processors.
        .wasm_relaxed_simd(false)
        .wasm_simd(true)
        .wasm_bulk_memory(true)
        .wasm_multi_value(true)
        .wasm_tail_call(true)
        .wasm_extended_const(true)
        .wasm_multi_memory(false)
        .wasm_memory64(false);
    Engine::new(&config)
}

fn read_module(file: &File) -> Result<Vec<u8>, Fault> {
    let failed = |error: std::io::Error| {
        Fault::new(Failure::InvalidSpec, format!("reading the module: {error}"))
    };
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > MODULE_BYTES_MAX {
        let detail = format!("the module has {bytes} bytes, {MODULE_BYTES_MAX} are allowed");
        return Err(Fault::new(Failure::InvalidModule, detail));
    }
    let mut code = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut code, 0).map_err(failed)?;
    Ok(code)
}

impl World {
    fn new(
        order: &Order<'_>,
        watch: Watch,
        fuel_at_start: u64,
        weight: Weight,
    ) -> Result<Self, Fault> {
        let command = order.command;
        let failed = |error: std::io::Error| Fault::new(Failure::Internal, error.to_string());
        let input = |file: &File| {
            Ok(Input {
                bytes: file.metadata()?.len(),
                file: Arc::new(file.try_clone()?),
            })
        };
        let inputs = order.inputs.iter().map(input);
        let inputs = inputs.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let files = Files::new(command, &inputs).map_err(|refused| match refused {
            Refused::Errno(errno) => Fault::new(
                Failure::Internal,
                format!("making the job's files: {errno:?}"),
            ),
            Refused::Stop(stop) => Fault::new(Failure::Internal, stop.to_string()),
            Refused::NoFuel => no_fuel(watch.fuel_max),
        })?;
        let variable = |variable: &suanli_executor::command::Variable| {
            format!("{}={}", &*variable.name, &*variable.value)
        };
        Ok(Self {
            files,
            memory: None,
            fuel_at_start,
            pages: weight.memory_pages,
            owed: 0,
            elements: 0,
            arguments: command
                .arguments
                .iter()
                .map(|text| text.to_string())
                .collect(),
            variables: command.variables.iter().map(variable).collect(),
            clock_ns: command.clock_ns,
            slept_ns: 0,
            chance: Chance::new(command.seed),
            memory_max: command.memory_max,
            watch,
            line: Vec::new(),
            logged: 0,
        })
    }
}

/// Polls a program to its end: it gives way after each slice of fuel.
fn watched(
    program: impl Future<Output = wasmtime::Result<()>>,
    watch: &Watch,
) -> wasmtime::Result<()> {
    let mut program = pin!(program);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match program.as_mut().poll(&mut context) {
            Poll::Ready(end) => return end,
            Poll::Pending => {
                let before = watch.fuel_used.load(Ordering::Relaxed);
                let noted = watch.note(before.saturating_add(fuel::SLICE));
                noted.map_err(wasmtime::Error::new)?;
            }
        }
    }
}

/// The module's start function, if it has one, and then `_start`. Either may end
/// the program.
async fn run(module: &InstancePre<World>, store: &mut Store<World>) -> wasmtime::Result<()> {
    let ended = async {
        let instance = module.instantiate_async(&mut *store).await?;
        let start = instance.get_typed_func::<(), ()>(&mut *store, "_start")?;
        start.call_async(&mut *store, ()).await
    };
    match ended.await {
        Err(error) if matches!(error.downcast_ref(), Some(Stop::Exit(0))) => Ok(()),
        end => end,
    }
}

/// What an error of the engine says of the program. What the program said
/// itself is in the log already.
fn judge(error: &wasmtime::Error, fuel_max: u64) -> Fault {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        let failure = match stop {
            Stop::Exit(code) => Failure::Exited { code: *code },
            Stop::Cancelled => Failure::Cancelled,
            Stop::OutputTooLarge { .. } => Failure::OutputTooLarge,
            Stop::NoMemory => Failure::InvalidModule,
            Stop::Host(_) => Failure::Internal,
        };
        return Fault::new(failure, stop.to_string());
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => no_fuel(fuel_max),
        Some(trap) => {
            let place = error.downcast_ref::<WasmBacktrace>().and_then(|trace| {
                let frame = trace.frames().first()?;
                Some(match frame.func_name() {
                    Some(name) => format!(" in `{name}`"),
                    None => format!(" in function {}", frame.func_index()),
                })
            });
            let detail = format!("{trap}{}", place.unwrap_or_default());
            Fault::new(Failure::Trapped, detail)
        }
        // All that a module can do wrong was looked at before it ran.
        None => Fault::new(Failure::Internal, format!("{error:#}")),
    }
}

fn no_fuel(fuel_max: u64) -> Fault {
    let detail = format!("all {fuel_max} units of fuel are used");
    Fault::new(Failure::OutOfFuel, detail)
}

/// What comes back, in the command's order.
fn collect<'a>(command: &Command, world: &'a World) -> Result<Vec<&'a [u8]>, Fault> {
    let mut outputs = vec![world.files.stream(1), world.files.stream(2)];
    for output in command.outputs.iter() {
        let (name, bytes_max) = (&*output.name, output.bytes_max);
        let bytes = world.files.output(name).ok_or_else(|| {
            let detail = format!("the program ended well, but made no file /out/{name}");
            Fault::new(Failure::OutputMissing, detail)
        })?;
        if length(bytes) > bytes_max {
            let name = name.to_owned();
            let stop = Stop::OutputTooLarge { name, bytes_max };
            return Err(Fault::new(Failure::OutputTooLarge, stop.to_string()));
        }
        outputs.push(bytes);
    }
    Ok(outputs)
}

fn finish(outputs: &[&[u8]], files: &[OwnedFd], used: Used) -> Result<Reply, Fault> {
    let lengths: Vec<u64> = outputs.iter().map(|bytes| length(bytes)).collect();
    let small = are_sent_in_frame(lengths.iter().copied());
    if !small {
        for (bytes, file) in outputs.iter().zip(files) {
            let written = File::from(file.try_clone().map_err(internal)?).write_all_at(bytes, 0);
            written.map_err(internal)?;
        }
    }
    Ok(Reply::Finished {
        lengths: List::truncated(lengths),
        outputs: List::truncated(if small { outputs.concat() } else { Vec::new() }),
        used,
    })
}

fn internal(error: std::io::Error) -> Fault {
    Fault::new(Failure::Internal, format!("writing an output: {error}"))
}

fn invalid(error: &wasmtime::Error) -> Fault {
    Fault::new(Failure::InvalidModule, format!("{error:#}"))
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_here_is_no_fault_of_the_program() {
        let host = Stop::Host("mmap: no memory".to_owned());
        let unknown = wasmtime::Error::msg("something else");
        for error in [wasmtime::Error::new(host), unknown] {
            assert_eq!(judge(&error, 1).failure, Failure::Internal);
        }
        let trap = wasmtime::Error::from(Trap::StackOverflow);
        assert_eq!(judge(&trap, 1).failure, Failure::Trapped);
        let trap = wasmtime::Error::from(Trap::OutOfFuel);
        assert_eq!(judge(&trap, 1).failure, Failure::OutOfFuel);
    }
}
