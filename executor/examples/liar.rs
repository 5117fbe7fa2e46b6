//! A worker that lies: to every program it has an answer at once, of the right shape,
//! and computes nothing.
//!
//! It stands in for `suanli-worker` at a provider: name it as `worker` in the
//! configuration, or put it in that program's place. What its node asks besides
//! (adapters, speeds, whether a program is valid) the true worker answers, in whose
//! place it runs then: `suanli-worker.true` beside it, or `suanli-worker` one folder up,
//! where cargo puts it. So its offer is as honest as any.
//!
//! No two of its lies are alike. For tests and demonstrations only; it is not confined,
//! and needs not be, for it runs no program.

use std::{
    fs::File,
    os::{
        fd::OwnedFd,
        unix::{fs::FileExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::SystemTime,
};

use suanli_executor::{
    Program,
    command::STDERR,
    ipc::{Confinement, Failure, IpcError, Reply, Request, Used, WorkerEnd, are_sent_in_frame},
};
use suanli_protocol::wire::{List, Utf8};

/// Digits of an output that may be shorter.
const DIGITS: u64 = 8;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() != Some("serve") {
        return be_true();
    }
    let Ok(parent) = WorkerEnd::from_stdin() else {
        eprintln!("liar stands in for suanli-worker; it is started by the suanli daemon");
        return ExitCode::from(2);
    };
    match serve(&parent) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Becomes the true worker, with all that this process was given.
fn be_true() -> ExitCode {
    let Some(program) = std::env::current_exe().ok().as_deref().and_then(true_one) else {
        eprintln!(
            "liar finds no true worker: put it beside itself as suanli-worker.true, \
             or run `cargo build --workspace --bins`"
        );
        return ExitCode::from(2);
    };
    let error = Command::new(&program)
        .args(std::env::args_os().skip(1))
        .exec();
    eprintln!("{}: {error}", program.display());
    ExitCode::FAILURE
}

fn true_one(liar: &Path) -> Option<PathBuf> {
    let folder = liar.parent()?;
    let beside = folder.join("suanli-worker.true");
    let above = folder.parent().map(|above| above.join("suanli-worker"));
    [Some(beside), above]
        .into_iter()
        .flatten()
        .find(|path| path.is_file())
}

fn serve(parent: &WorkerEnd) -> Result<(), IpcError> {
    parent.receive()?;
    parent.send(&Reply::Ready {
        adapter: None,
        confinement: Confinement {
            held: List::default(),
            missing: List::default(),
            environment: List::default(),
            descriptors: 0,
        },
    })?;
    loop {
        let (request, mut descriptors) = parent.receive()?;
        // All else is about an execution that has ended already.
        if let Request::Execute {
            runtime,
            spec,
            inputs,
            fuel_max,
            ..
        } = request
        {
            let outputs = descriptors.split_off(position(inputs).min(descriptors.len()));
            let invented = Program::decode(runtime, &spec)
                .map_err(|error| error.to_string())
                .and_then(|program| {
                    invented(&program, &outputs, fuel_max).map_err(|error| error.to_string())
                });
            parent.send(&invented.unwrap_or_else(failed))?;
        }
    }
}

/// Outputs of the names and sizes that the program says, and what they are to have cost.
fn invented(program: &Program, files: &[OwnedFd], fuel_max: u64) -> std::io::Result<Reply> {
    let mut lie = lie();
    let mut outputs = Vec::new();
    for planned in program.outputs() {
        let length = match planned.is_exact {
            true => planned.bytes_max,
            // Programs that fare well are silent there.
            false if planned.name == STDERR => 0,
            false => planned.bytes_max.min(DIGITS),
        };
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        lie.fill(&mut bytes);
        if !planned.is_exact {
            bytes.iter_mut().for_each(|byte| *byte = b'0' + *byte % 10);
        }
        outputs.push(bytes);
    }
    let lengths = outputs.iter().map(|bytes| bytes.len() as u64);
    let lengths: Vec<u64> = lengths.collect();
    let small = are_sent_in_frame(lengths.iter().copied());
    if !small {
        for (bytes, file) in outputs.iter().zip(files) {
            File::from(file.try_clone()?).write_all_at(bytes, 0)?;
        }
    }
    Ok(Reply::Finished {
        lengths: List::truncated(lengths),
        outputs: List::truncated(if small { outputs.concat() } else { Vec::new() }),
        used: used(program, fuel_max),
    })
}

/// What a program may well have used. Whoever claims another runtime's meter is refused for
/// that, before anybody compares results.
fn used(program: &Program, fuel_max: u64) -> Used {
    let used = Used {
        cpu_us: 100_000,
        ..Used::default()
    };
    match program {
        Program::Wgsl(_) => Used {
            gpu_us: 100_000,
            ..used
        },
        Program::Wasm(_) => Used {
            fuel: fuel_max / 2,
            ..used
        },
    }
}

/// Bytes that never come twice.
fn lie() -> blake3::OutputReader {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&std::process::id().to_le_bytes());
    hasher.update(&now.unwrap_or_default().as_nanos().to_le_bytes());
    hasher.finalize_xof()
}

fn failed(detail: String) -> Reply {
    Reply::Failed {
        failure: Failure::Internal,
        detail: Utf8::cut(&detail),
        used: Used::default(),
    }
}

fn position(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}
