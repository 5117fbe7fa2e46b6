//! A worker that has been taken over: confined just as `suanli-worker` is, it
//! then tries what an attacker would ([`attempts`]), and says what came of it:
//! `NAME: done` or `NAME: ` and the error.
//!
//! To a probe it answers with all attempts that it should survive, a line each. Under
//! a file name that ends in a number it makes just the attempt of that number, and
//! under the role `serve` it waits for an execution, and makes the attempt whose
//! number its next argument is. Called `threads` it says how many it could start, and
//! called `forks` how many processes, which it is confined from in no way but by its
//! control group.
//!
//! For tests and demonstrations only; it does nothing that outlives it.

use std::process::ExitCode;

use suanli_executor::ipc::{Adapter, AdapterKind, Confinement, Failure, Reply, Request, WorkerEnd};
use suanli_protocol::wire::{List, Utf8};

use crate::attempts::{Attempt, ENOUGH, Layer, own_program};

#[allow(dead_code, reason = "layers are for those who watch")]
mod attempts;
#[path = "../../src/bin/suanli-worker/confine.rs"]
mod confine;
#[path = "../../src/bin/suanli-worker/root.rs"]
mod root;

fn main() -> ExitCode {
    let Ok(mut parent) = WorkerEnd::from_stdin() else {
        return ExitCode::from(2);
    };
    let Ok((Request::Start(start), _)) = parent.receive() else {
        return ExitCode::FAILURE;
    };
    if own_program().ends_with("forks") {
        return answer(&mut parent, &forks().to_string());
    }
    let Some(confinement) = confine::confine(&start) else {
        return ExitCode::FAILURE;
    };
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return serve(&mut parent, confinement);
    }
    if own_program().ends_with("threads") {
        return answer(&mut parent, &attempts::threads().to_string());
    }
    if let Some(attempt) = numbered(std::env::args().next()) {
        return answer(&mut parent, &made(attempt));
    }
    let mut said = format!("missing: {:?}\n", confinement.missing);
    said += &format!(
        "root: {}\n",
        rustix::process::getuid().is_root() || rustix::process::geteuid().is_root()
    );
    for attempt in attempts::all() {
        match attempt.layer {
            Layer::EmptyRoot | Layer::FilesLocked | Layer::CallsFiltered => {
                said += &made(attempt);
                said += "\n";
            }
            Layer::CallsEnd | Layer::Capped => {}
        }
    }
    // What it may still do.
    let thread = std::thread::spawn(|| 7).join();
    said += &format!(
        "a thread: {}\n",
        if thread.is_ok() { "done" } else { "failed" }
    );
    answer(&mut parent, &said)
}

fn made(attempt: &Attempt) -> String {
    let came_of_it = match (attempt.make)() {
        Ok(()) => "done".to_owned(),
        Err(error) => error.to_string(),
    };
    format!("{}: {came_of_it}", attempt.name)
}

/// The attempt whose number these words end in.
fn numbered(words: Option<String>) -> Option<&'static Attempt> {
    let number = words?.rsplit('-').next()?.parse().ok()?;
    attempts::all().nth(number)
}

fn serve(parent: &mut WorkerEnd, confinement: Confinement) -> ExitCode {
    let adapter = Adapter {
        index: 0,
        name: Utf8::cut("none"),
        bus: Utf8::default(),
        backend: Utf8::cut("vulkan"),
        driver: Utf8::cut("none"),
        kind: AdapterKind::Other,
        memory_bytes: 0,
        binding_bytes_max: 0,
        buffer_bytes_max: 0,
        features: List::default(),
        vendor: 0,
    };
    let ready = Reply::Ready {
        adapter: Some(adapter),
        confinement,
    };
    if parent.send(&ready).is_ok()
        && parent.receive().is_ok()
        && let Some(attempt) = numbered(std::env::args().nth(2))
    {
        return answer(parent, &made(attempt));
    }
    ExitCode::FAILURE
}

/// Starts processes that stay, until there are too many for somebody.
fn forks() -> usize {
    let fork = |_: &usize| {
        // SAFETY: this process has one thread, and the child calls but `pause`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                // SAFETY: takes nothing, and comes back only after a signal.
                unsafe { libc::pause() };
            }
        }
        child > 0
    };
    (0..ENOUGH).take_while(fork).count()
}

fn answer(parent: &mut WorkerEnd, said: &str) -> ExitCode {
    let reply = Reply::Failed {
        failure: Failure::Internal,
        detail: Utf8::cut(said),
        used: Default::default(),
    };
    match parent.send(&reply) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
