//! `suanli-worker`: the process in which strangers' jobs run.
//!
//! Started by the executor with a socket as standard input and one word that
//! says what for. It reads its [`Start`] frame, confines itself while it has
//! one thread ([`confine`]), and only then lets a compiler or a driver near
//! anything:
//!
//! - `serve` opens its device, says [`Reply::Ready`], and runs graphs of one
//!   tenant until its parent ends it;
//! - `check` parses and validates one graph's source, with no device;
//! - `probe` lists adapters; `measure` measures one.
//!
//! It may crash or hang in a compiler or a driver: its parent expects that.
//! Absent: file names, the network, other tenants.

use std::process::ExitCode;

use suanli_executor::{
    ipc::{Confinement, Failure, IpcError, Reply, Request, Start, WorkerEnd},
    spec::Graph,
};
use suanli_protocol::wire::Utf8;

mod confine;
mod device;
mod measure;
mod run;
mod shader;

/// The compiler recurses into nested expressions; with this much stack any
/// that people write go through also in unoptimised builds.
const STACK_BYTES: usize = 64 << 20;

/// Why an execution, a check or a start failed.
#[derive(Debug)]
pub(crate) struct Fault {
    failure: Failure,
    detail: String,
}

impl Fault {
    pub(crate) fn new(failure: Failure, detail: impl Into<String>) -> Self {
        Self {
            failure,
            detail: detail.into(),
        }
    }

    fn into_reply(self) -> Reply {
        Reply::Failed {
            failure: self.failure,
            detail: Utf8::cut(&self.detail),
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
    Check,
    Probe,
    Measure,
}

fn main() -> ExitCode {
    let role = match std::env::args().nth(1).as_deref() {
        Some("serve") => Role::Serve,
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
        .stack_size(STACK_BYTES)
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
        Role::Check => {
            let (request, _) = parent.receive()?;
            parent.send(&check(&request).unwrap_or_else(Fault::into_reply))
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
        Role::Measure => {
            let measured = device::Gpu::open(start.adapter).and_then(|gpu| measure::measure(&gpu));
            parent.send(&measured.map_or_else(Fault::into_reply, Reply::Measured))
        }
    }
}

/// A panic is a fault of ours or of a library's: the parent gets its text,
/// and then the process ends.
fn report_panics(parent: &WorkerEnd) -> Result<(), IpcError> {
    let last_word = std::sync::Mutex::new(parent.try_clone()?);
    std::panic::set_hook(Box::new(move |panic| {
        let fault = Fault::new(Failure::WorkerCrashed, panic.to_string());
        if let Ok(mut parent) = last_word.try_lock() {
            drop(parent.send(&fault.into_reply()));
        }
        std::process::abort();
    }));
    Ok(())
}

fn serve(start: &Start, confinement: Confinement, parent: &mut WorkerEnd) -> Result<(), IpcError> {
    let mut gpu = match device::Gpu::open(start.adapter) {
        Ok(gpu) => gpu,
        Err(fault) => return parent.send(&fault.into_reply()),
    };
    parent.send(&Reply::Ready {
        adapter: gpu.adapter().clone(),
        confinement,
    })?;
    loop {
        let (request, descriptors) = parent.receive()?;
        match request {
            Request::Execute {
                spec,
                inputs,
                outputs,
                memory_max,
            } => {
                let order = run::Order {
                    spec: &spec,
                    inputs,
                    outputs,
                    memory_max,
                    descriptors,
                };
                let end = run::execute(&mut gpu, order, parent);
                parent.send(&end.unwrap_or_else(Fault::into_reply))?;
            }
            // Came after the end of what it was to cancel.
            Request::Cancel => {}
            check @ Request::Check { .. } => {
                parent.send(&self::check(&check).unwrap_or_else(Fault::into_reply))?;
            }
            Request::Start(_) => return Ok(()),
        }
    }
}

fn check(request: &Request) -> Result<Reply, Fault> {
    let Request::Check { spec } = request else {
        return Err(Fault::new(Failure::Internal, "a check was expected"));
    };
    let graph =
        Graph::decode(spec).map_err(|error| Fault::new(Failure::InvalidSpec, error.to_string()))?;
    shader::check(&graph).map_err(invalid_shader)?;
    Ok(Reply::Checked)
}

pub(crate) fn invalid_shader(message: String) -> Fault {
    Fault::new(Failure::InvalidShader, message.trim_end())
}
