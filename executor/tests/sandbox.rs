//! The sandbox attacked from inside: what a worker that an attacker has taken
//! over can still do.

#![expect(clippy::unwrap_used, reason = "a test that can't go on panics")]

use std::path::PathBuf;

use suanli_executor::{CheckError, WorkerProgram};
use suanli_protocol::registry::SandboxLevel;

fn worker() -> WorkerProgram {
    WorkerProgram::find(Some(&PathBuf::from(env!("CARGO_BIN_EXE_suanli-worker")))).unwrap()
}

/// The example of that name, built if it is not there.
fn attacker() -> WorkerProgram {
    let folder = PathBuf::from(env!("CARGO_BIN_EXE_suanli-worker"));
    let path = folder.parent().unwrap().join("examples/attacker");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = std::process::Command::new(cargo)
        .args(["build", "--locked", "--example", "attacker"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    WorkerProgram::find(Some(&path)).unwrap()
}

/// Whether this kernel gives both locks; says so if not.
async fn is_confined() -> bool {
    let (_, confinement) = worker().probe().await.unwrap();
    let level = confinement.level();
    if level < SandboxLevel::CONFINED {
        println!("skipped: {:?}", confinement.missing);
    }
    level >= SandboxLevel::CONFINED
}

#[tokio::test]
async fn abuse_37_a_worker_taken_over_reaches_nothing() {
    if !is_confined().await {
        return;
    }
    let Err(CheckError::Rejected { detail, .. }) = attacker().probe().await else {
        panic!("the attacker gave no report");
    };
    println!("{detail}");
    let mut lines = detail.lines();
    assert_eq!(lines.next(), Some("missing: []"));
    assert_eq!(lines.next(), Some("root: false"));
    assert!(lines.clone().count() > 40, "{detail}");
    for line in lines {
        let (name, came_of_it) = line.split_once(": ").unwrap();
        let expected = name == "a thread";
        assert_eq!(came_of_it == "done", expected, "{line}");
        // Refused, not failed for want of a file or of an argument.
        let refused = ["Permission denied", "Function not implemented"];
        let is_refusal = refused.iter().any(|words| came_of_it.contains(words));
        assert!(expected || is_refusal, "{line}");
    }
}

#[tokio::test]
async fn adapters_are_found_from_inside_the_sandbox() {
    let (adapters, confinement) = worker().probe().await.unwrap();
    assert!(confinement.missing.is_empty(), "{:?}", confinement.missing);
    if adapters.is_empty() {
        println!("skipped: no Vulkan adapter");
    }
}
