//! The sandbox attacked from inside: what a worker that an attacker has taken
//! over can still do.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use suanli_executor::{CheckError, ExecutorConfig, Failure, WorkerProgram};
use suanli_protocol::registry::SandboxLevel;

use crate::support::{bench, lying_worker, noop, program, worker_path};

/// Where the example of that name is, built as it stands.
fn attacker() -> PathBuf {
    let path = worker_path().parent().unwrap().join("examples/attacker");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = std::process::Command::new(cargo)
        .args(["build", "--locked", "--example", "attacker"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    path
}

/// What the attacker says under a name.
async fn said_by(path: &Path) -> Result<String, String> {
    let attacker = WorkerProgram::find(Some(path)).unwrap();
    match attacker.probe().await {
        Err(CheckError::Rejected { detail, .. }) => Ok(detail),
        Err(CheckError::NoAnswer(why)) => Err(why),
        other => panic!("{other:?}"),
    }
}

/// Whether this kernel gives both locks; says so if not.
async fn is_confined() -> bool {
    let (_, confinement) = program().probe().await.unwrap();
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
    // As in a data directory, though with less of a secret.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("node.key"), b"secret").unwrap();
    let program = dir.path().join("attacker");
    symlink(attacker(), &program).unwrap();
    let detail = said_by(&program).await.unwrap();
    println!("{detail}");
    let mut lines = detail.lines();
    assert_eq!(lines.next(), Some("missing: []"));
    assert_eq!(lines.next(), Some("root: false"));
    assert!(lines.clone().count() > 40, "{detail}");
    for line in lines {
        let (name, came_of_it) = line.split_once(": ").unwrap();
        let expected = name == "a thread";
        assert_eq!(came_of_it == "done", expected, "{line}");
        // Refused or out of sight, not failed for want of an argument.
        let refused = [
            "Permission denied",
            "Function not implemented",
            "No such file or directory",
        ];
        let is_refusal = refused.iter().any(|words| came_of_it.contains(words));
        assert!(expected || is_refusal, "{line}");
        if name.starts_with("see ") || name.starts_with("read ") {
            assert!(came_of_it.contains("No such file"), "{line}");
        }
    }
}

#[tokio::test]
async fn abuse_35_a_worker_that_attacks_is_ended_by_the_kernel() {
    if !is_confined().await {
        return;
    }
    let attacker = attacker();
    let dir = tempfile::tempdir().unwrap();
    let name_of = |number: usize| {
        let path = dir.path().join(format!("attack-{number}"));
        symlink(&attacker, &path).unwrap();
        path
    };
    let count: usize = said_by(&name_of(usize::MAX))
        .await
        .unwrap()
        .parse()
        .unwrap();
    assert!(count > 10);
    for number in 0..count {
        let end = said_by(&name_of(number)).await.unwrap_err();
        assert!(
            end.contains("signal: 31 (SIGSYS)"),
            "attack {number}: {end}"
        );
    }
}

#[tokio::test]
async fn abuse_35_an_execution_that_attacks_is_typed_as_that() {
    if !is_confined().await {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let serves = format!("exec {} serve", attacker().display());
    let config = ExecutorConfig {
        worker: Some(lying_worker(&dir, &serves)),
        ..Default::default()
    };
    let Some(mut bench) = bench(config).await else {
        return;
    };
    let end = bench.run_graph(1, &noop()).await;
    assert_eq!(end.failure(), &Failure::ForbiddenCall, "{}", end.detail());
    assert!(end.detail().contains("SIGSYS"), "{}", end.detail());
}

#[tokio::test]
async fn adapters_are_found_from_inside_the_sandbox() {
    let (adapters, confinement) = program().probe().await.unwrap();
    assert!(confinement.missing.is_empty(), "{:?}", confinement.missing);
    if adapters.is_empty() {
        println!("skipped: no Vulkan adapter");
    }
}
