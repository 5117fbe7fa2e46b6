//! The sandbox attacked from inside: what a worker that an attacker has taken
//! over can still do.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use suanli_executor::{CheckError, ExecutorConfig, Failure, WorkerProgram, ipc, limits};
use suanli_protocol::registry::SandboxLevel;

use crate::{
    attempts::{self, Layer},
    support::{
        bench, endless, lying_worker, missing_layers, noop, own_groups, process_exists, program,
        worker_path,
    },
};

/// Where the example of that name is. Whoever runs tests has built it, unless only some
/// were asked for.
fn attacker() -> PathBuf {
    let path = worker_path().parent().unwrap().join("examples/attacker");
    if path.is_file() {
        return path;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = std::process::Command::new(cargo)
        .args(["build", "--locked", "--workspace", "--example", "attacker"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    path
}

/// How a worker is started that makes this attempt when an execution comes.
fn serves_attempt(name: &str) -> String {
    let mut all = attempts::all();
    let number = all.position(|attempt| attempt.name == name).unwrap();
    format!("exec {} serve {number}", attacker().display())
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

/// Whether workers have control groups here; says so if not.
async fn is_capped() -> bool {
    let (_, confinement) = program().probe().await.unwrap();
    let mut held = confinement.held.iter();
    let is_capped = held.any(|layer| layer.starts_with(ipc::CAPPED));
    if !is_capped {
        println!("skipped: {:?}", confinement.missing);
    }
    // Never without the locks, and never less with them.
    assert!(!is_capped || confinement.level() != SandboxLevel::CONFINED);
    is_capped
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
    let survived = attempts::all().filter(|attempt| match attempt.layer {
        Layer::EmptyRoot | Layer::FilesLocked | Layer::CallsFiltered => true,
        Layer::CallsEnd | Layer::Capped => false,
    });
    for attempt in survived {
        let line = lines.next().unwrap();
        let came_of_it = line.strip_prefix(attempt.name).unwrap();
        assert!(attempt.layer.has_said(came_of_it), "{line}");
    }
    assert_eq!(lines.collect::<Vec<_>>(), ["a thread: done"]);
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
    for (number, attempt) in attempts::all().enumerate() {
        if attempt.layer == Layer::CallsEnd {
            let end = said_by(&name_of(number)).await.unwrap_err();
            assert!(attempt.layer.has_said(&end), "{}: {end}", attempt.name);
        }
    }
}

#[tokio::test]
async fn abuse_35_an_execution_that_attacks_is_typed_as_that() {
    if !is_confined().await {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let serves = serves_attempt("trace the daemon");
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
    let missing = missing_layers(&confinement);
    assert!(missing.is_empty(), "{missing:?}");
    if adapters.is_empty() {
        println!("skipped: no Vulkan adapter");
    }
}

#[tokio::test]
async fn abuse_36_threads_without_end_stop_at_the_cap() {
    if !is_capped().await {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bomb = dir.path().join("threads");
    symlink(attacker(), &bomb).unwrap();
    let started: u32 = said_by(&bomb).await.unwrap().parse().unwrap();
    let most = limits::WORKER_THREADS_MAX;
    assert!((most / 2..most).contains(&started), "{started}");
    assert!(own_groups().is_empty(), "{:?}", own_groups());
}

/// Inside the sandbox nothing can fork (`abuse_35`, `abuse_37`). Were that layer not
/// there, the group still holds.
#[tokio::test]
async fn abuse_36_forks_without_end_stop_at_the_cap_and_end_with_their_worker() {
    if !is_capped().await {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bomb = dir.path().join("forks");
    symlink(attacker(), &bomb).unwrap();
    let started: u32 = said_by(&bomb).await.unwrap().parse().unwrap();
    let most = limits::WORKER_THREADS_MAX;
    println!("{started} processes until one was refused");
    assert!((most / 2..most).contains(&started), "{started}");
    // A group can't go while somebody is in it.
    assert!(own_groups().is_empty(), "{:?}", own_groups());
}

#[tokio::test]
async fn abuse_38_memory_without_end_is_typed_and_the_next_job_served() {
    if !is_capped().await {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let once = dir.path().join("once");
    let serves = format!(
        "mkdir {} 2>/dev/null || exec {} serve; {}",
        once.display(),
        worker_path().display(),
        serves_attempt("take memory without end"),
    );
    let config = ExecutorConfig {
        worker: Some(lying_worker(&dir, &serves)),
        pool_size: 1,
        memory_max: 64 << 20,
        output_bytes_max: 1 << 20,
        ..Default::default()
    };
    let Some(mut bench) = bench(config).await else {
        return;
    };
    let end = bench.run_graph(1, &noop()).await;
    assert_eq!(end.failure(), &Failure::OutOfMemory, "{}", end.detail());
    assert!(end.detail().contains("2113 MiB"), "{}", end.detail());
    assert!(!process_exists(end.pid.unwrap()));
    assert_eq!(bench.run_graph(1, &noop()).await.words(), [7]);
    bench.executor.stop().await;
    assert!(own_groups().is_empty(), "{:?}", own_groups());
}

#[tokio::test]
async fn a_worker_has_a_group_that_goes_with_it_and_left_ones_are_removed() {
    if !is_capped().await {
        return;
    }
    let config = ExecutorConfig {
        pool_size: 1,
        ..Default::default()
    };
    let Some(mut bench) = bench(config).await else {
        return;
    };
    let request = bench.request(1, &endless());
    let id = request.id;
    bench.executor.run(request).unwrap();
    let pid = bench.started(id).await;
    let groups = own_groups();
    assert!(!groups.is_empty());
    for group in groups {
        let inside = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(inside.trim(), pid.to_string());
        // As if a daemon had crashed: Linux has no process ids this large.
        let left = group.with_file_name("suanli-4294967295-0");
        std::fs::create_dir(&left).unwrap();
        drop(program());
        assert!(!left.exists(), "{}", left.display());
        assert!(group.exists());
    }
    bench.executor.stop().await;
    assert!(own_groups().is_empty(), "{:?}", own_groups());
}
