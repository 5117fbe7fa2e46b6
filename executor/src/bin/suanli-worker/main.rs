//! `suanli-worker`: the process in which strangers' jobs run.
//!
//! Started by the executor with a socket as standard input and one word that
//! says what for. It reads its [`Start`] frame, confines itself while it has
//! one thread ([`confine`]), and only then lets a compiler or a driver near
//! anything:
//!
//! - `serve` opens its device, if it is to have one, says [`Reply::Ready`], and runs programs of one
//!   tenant until its parent ends it;
//! - `model` serves a language model to many who ask, until its parent ends it;
//! - `check` parses and validates one program, with no device;
//! - `probe` lists adapters; `measure` measures one, or the processor.
//!
//! It may crash or hang in a compiler or a driver: its parent expects that.
//! Absent: file names, the network, other tenants.

use std::{fs::File, os::fd::OwnedFd, process::ExitCode, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use suanli_executor::{
    Program,
    ipc::{Confinement, Failure, IpcError, Reply, Request, Start, Used, WorkerEnd},
    limits::WORKER_STACK_BYTES,
};
use suanli_protocol::wire::Utf8;

mod clock;
mod confine;
mod device;
mod measure;
#[cfg(feature = "model")]
mod model;
mod recent;
mod root;
mod run;
mod shader;
mod wasm;

/// Why an execution, a check or a start failed.
#[derive(Debug)]
pub(crate) struct Fault {
    failure: Failure,
    detail: String,
    used: Used,
}

impl Fault {
    pub(crate) fn new(failure: Failure, detail: impl Into<String>) -> Self {
        Self {
            failure,
            detail: detail.into(),
            used: Used::default(),
        }
    }

    /// The same, with what was used until then.
    pub(crate) fn after(self, used: Used) -> Self {
        Self { used, ..self }
    }

    /// For people.
    #[cfg(feature = "model")]
    pub(crate) fn into_detail(self) -> String {
        self.detail
    }

    fn into_reply(self) -> Reply {
        Reply::Failed {
            failure: self.failure,
            detail: Utf8::cut(&self.detail),
            used: self.used,
        }
    }
}

impl From<IpcError> for Fault {
    fn from(error: IpcError) -> Self {
        Self::new(Failure::Internal, error.to_string())
    }
}

#[derive(Debug, Clone, Copy)]
enum Role {
    Serve,
    #[cfg(feature = "model")]
    Model,
    Check,
    Probe,
    Measure,
}

fn main() -> ExitCode {
    let role = match std::env::args().nth(1).as_deref() {
        Some("serve") => Role::Serve,
        #[cfg(feature = "model")]
        Some("model") => Role::Model,
        Some("check") => Role::Check,
        Some("probe") => Role::Probe,
        Some("measure") => Role::Measure,
        _ => return not_for_hands(),
    };
    let Ok(mut parent) = WorkerEnd::from_stdin() else {
        return not_for_hands();
    };
    let Ok((Request::Start(start), _)) = parent.receive() else {
        return ExitCode::FAILURE;
    };
    let Some(confinement) = confine::confine(&start) else {
        return ExitCode::FAILURE;
    };
    let worker = std::thread::Builder::new()
        .stack_size(WORKER_STACK_BYTES)
        .spawn(move || work(role, &start, confinement, &mut parent));
    match worker.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn not_for_hands() -> ExitCode {
    eprintln!("suanli-worker is started by the suanli daemon; run `suanli doctor` to test it");
    ExitCode::from(2)
}

fn work(
    role: Role,
    start: &Start,
    confinement: Confinement,
    parent: &mut WorkerEnd,
) -> Result<(), IpcError> {
    report_panics(parent)?;
    match role {
        Role::Serve => serve(start, confinement, parent),
        #[cfg(feature = "model")]
        Role::Model => model::serve(start, confinement, parent),
        Role::Check => {
            let (request, descriptors) = parent.receive()?;
            parent.send(&check(&request, descriptors).unwrap_or_else(Fault::into_reply))
        }
        Role::Probe => {
            let adapters = device::adapters().into_iter().map(|(adapter, _)| adapter);
            let adapters = adapters
                .take(suanli_executor::limits::ADAPTERS_MAX)
                .collect::<Vec<_>>();
            let adapters = adapters.try_into().unwrap_or_default();
            parent.send(&Reply::Adapters {
                adapters,
                confinement,
            })
        }
        Role::Measure => parent.send(&measure(start).unwrap_or_else(Fault::into_reply)),
    }
}

fn measure(start: &Start) -> Result<Reply, Fault> {
    match start.adapter {
        Some(adapter) => {
            let gpu = device::Gpu::open(adapter)?;
            measure::measure(&gpu).map(Reply::Measured)
        }
        None => {
            let fuel_per_second = wasm::fuel_per_second()?;
            Ok(Reply::Processor { fuel_per_second })
        }
    }
}

/// A panic is a fault of ours or of a library's: the parent gets its text,
/// and then the process ends.
fn report_panics(parent: &WorkerEnd) -> Result<(), IpcError> {
    let last_word = std::sync::Mutex::new(parent.try_clone()?);
    std::panic::set_hook(Box::new(move |panic| {
        let fault = Fault::new(Failure::WorkerCrashed, panic.to_string());
        if let Ok(parent) = last_word.try_lock() {
            drop(parent.send(&fault.into_reply()));
        }
        std::process::abort();
    }));
    Ok(())
}

fn serve(start: &Start, confinement: Confinement, parent: &mut WorkerEnd) -> Result<(), IpcError> {
    let mut tools = match Tools::open(start.adapter) {
        Ok(tools) => tools,
        Err(fault) => return parent.send(&fault.into_reply()),
    };
    parent.send(&Reply::Ready {
        adapter: tools.gpu.as_ref().map(|gpu| gpu.adapter().clone()),
        confinement,
    })?;
    loop {
        let (request, descriptors) = parent.receive()?;
        match request {
            Request::Execute {
                runtime,
                spec,
                inputs,
                outputs,
                state,
                done,
                checkpoints,
                memory_max,
                fuel_max,
            } => {
                let order = Order {
                    inputs,
                    outputs,
                    state,
                    done,
                    checkpoints,
                    memory_max,
                    fuel_max,
                    descriptors,
                };
                let end = Program::decode(runtime, &spec)
                    .map_err(|error| Fault::new(Failure::InvalidSpec, error.to_string()))
                    .and_then(|program| tools.execute(&program, order, parent));
                parent.send(&end.unwrap_or_else(Fault::into_reply))?;
            }
            // Came after the end of what they are about.
            Request::Cancel | Request::Room => {}
            check @ Request::Check { .. } => {
                let checked = self::check(&check, descriptors);
                parent.send(&checked.unwrap_or_else(Fault::into_reply))?;
            }
            Request::Start(_) | Request::Model(_) => return Ok(()),
        }
    }
}

/// What a worker has ready before its tenant comes.
struct Tools {
    /// None where it runs on the processor alone.
    gpu: Option<device::Gpu>,
    wasm: wasm::Wasm,
}

/// An order to execute, besides its program.
struct Order {
    inputs: u32,
    outputs: u32,
    state: u32,
    done: u64,
    checkpoints: bool,
    memory_max: u64,
    fuel_max: u64,
    descriptors: Vec<OwnedFd>,
}

impl Tools {
    fn open(adapter: Option<u32>) -> Result<Self, Fault> {
        Ok(Self {
            gpu: adapter.map(device::Gpu::open).transpose()?,
            wasm: wasm::Wasm::new()?,
        })
    }

    fn execute(
        &mut self,
        program: &Program,
        order: Order,
        parent: &mut WorkerEnd,
    ) -> Result<Reply, Fault> {
        let needed = program.input_bytes_min().len();
        let (inputs, outputs) = (position(order.inputs), position(order.outputs));
        let passed = order.descriptors.len();
        let announced = inputs.checked_add(outputs);
        let announced = announced.and_then(|sum| sum.checked_add(position(order.state)));
        if inputs < needed || Some(passed) != announced {
            let detail = format!("{inputs} inputs came, the program reads {needed}");
            return Err(Fault::new(Failure::InvalidSpec, detail));
        }
        let mut descriptors = order.descriptors;
        let state = descriptors.split_off(inputs + outputs);
        let outputs = descriptors.split_off(inputs);
        let inputs = descriptors.into_iter().map(File::from).collect();
        match program {
            Program::Wgsl(graph) => {
                let outputs = outputs.into_iter().map(File::from).collect();
                let order = run::Order {
                    graph,
                    inputs,
                    outputs,
                    state: state.into_iter().map(File::from).collect(),
                    done: order.done,
                    checkpoints: order.checkpoints,
                    memory_max: order.memory_max,
                };
                let no_device = || Fault::new(Failure::Internal, "this worker has no device");
                let gpu = self.gpu.as_mut().ok_or_else(no_device)?;
                run::execute(gpu, &order, parent)
            }
            Program::Wasm(command) => {
                let order = wasm::Order {
                    command,
                    fuel_max: order.fuel_max,
                    inputs,
                    outputs,
                };
                self.wasm.execute(order, parent)
            }
        }
    }
}

fn check(request: &Request, descriptors: Vec<OwnedFd>) -> Result<Reply, Fault> {
    let Request::Check { runtime, spec } = request else {
        return Err(Fault::new(Failure::Internal, "a check was expected"));
    };
    let program = Program::decode(*runtime, spec)
        .map_err(|error| Fault::new(Failure::InvalidSpec, error.to_string()))?;
    match program {
        Program::Wgsl(graph) => shader::check(&graph).map(|_| ()).map_err(invalid_shader)?,
        Program::Wasm(_) => {
            let module = descriptors.into_iter().next().map(File::from);
            let module =
                module.ok_or_else(|| Fault::new(Failure::InvalidSpec, "no module came"))?;
            wasm::check(&module)?;
        }
    }
    Ok(Reply::Checked)
}

/// What a parent says to a running execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// Stop.
    Cancel,
    /// The last checkpoint is taken over.
    Room,
}

/// Whether the parent wants the running execution to stop.
pub(crate) fn is_cancelled(parent: &WorkerEnd) -> Result<bool, Fault> {
    Ok(word(parent)? == Some(Word::Cancel))
}

/// What the parent says now, if anything.
pub(crate) fn word(parent: &WorkerEnd) -> Result<Option<Word>, Fault> {
    if !parent.has_word()? {
        return Ok(None);
    }
    match parent.receive()?.0 {
        Request::Cancel => Ok(Some(Word::Cancel)),
        Request::Room => Ok(Some(Word::Room)),
        Request::Start(_) | Request::Execute { .. } | Request::Check { .. } | Request::Model(_) => {
            Err(Fault::new(
                Failure::Internal,
                "an order came in the middle of an execution",
            ))
        }
    }
}

/// Processor time of this process until now.
pub(crate) fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Indices were checked against lengths in memory.
pub(crate) fn position(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

pub(crate) fn invalid_shader(message: String) -> Fault {
    Fault::new(Failure::InvalidShader, message.trim_end())
}
