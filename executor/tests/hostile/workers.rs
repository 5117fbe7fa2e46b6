//! Workers that lie, leak, hang or are killed, each with what must be observed.

use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use suanli_executor::{
    ExecutorConfig, ExecutorError, Failure,
    ipc::{Reply, Used},
    spec::{Checkpoint, Content, Graph},
};
use suanli_protocol::wire::{self, Utf8};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{
    Bench, LONG, bench, buffer, endless, file_with, graph, huge_dispatch, lying_worker,
    missing_layers, noop, own_groups, pass, process_exists, program, worker_path,
};

#[tokio::test]
async fn cancel_acts_while_queued_and_while_running() {
    let config = ExecutorConfig {
        pool_size: 1,
        ..Default::default()
    };
    let Some(mut bench) = bench(config).await else {
        return;
    };
    let running = bench.request(1, &endless());
    let queued = bench.request(2, &noop());
    let (running_id, queued_id) = (running.id, queued.id);
    bench.executor.run(running).unwrap();
    let pid = bench.started(running_id).await;
    bench.executor.run(queued).unwrap();
    bench.executor.cancel(queued_id).unwrap();
    assert_eq!(bench.end(queued_id).await.failure(), &Failure::Cancelled);
    bench.executor.cancel(running_id).unwrap();
    assert_eq!(bench.end(running_id).await.failure(), &Failure::Cancelled);
    assert!(!process_exists(pid));
    assert_eq!(bench.run_graph(1, &noop()).await.words(), [7]);
}

#[tokio::test]
async fn abuse_37_a_worker_has_no_environment_and_no_foreign_descriptor() {
    // An inheritable descriptor of ours, as a careless library leaves them.
    let leaked = tempfile::tempfile().unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let (_, confinement) = program().probe().await.unwrap();
    assert!(
        std::env::vars_os().count() > 3,
        "there is something to inherit"
    );
    let allowed = [
        "MESA_SHADER_CACHE_DISABLE",
        "__GL_SHADER_DISK_CACHE",
        "XDG_RUNTIME_DIR",
        "VK_DRIVER_FILES",
    ];
    for variable in &confinement.environment {
        assert!(allowed.contains(&&**variable), "{}", &**variable);
    }
    // Three standard streams and the worker's handle of its socket.
    assert_eq!(confinement.descriptors, 4);
    let missing = missing_layers(&confinement);
    assert!(missing.is_empty(), "{missing:?}");
    for layer in ["no new privileges", "not dumpable", "no core dumps"] {
        assert!(
            confinement.held.iter().any(|held| &**held == layer),
            "{layer}"
        );
    }
}

#[tokio::test]
async fn abuse_44_a_killed_worker_is_a_typed_failure_and_leaves_no_orphan() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let request = bench.request(1, &endless());
    let id = request.id;
    bench.executor.run(request).unwrap();
    let pid = bench.started(id).await;
    let raw = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    let end = bench.end(id).await;
    assert_eq!(end.failure(), &Failure::WorkerCrashed);
    assert!(end.detail().contains("signal: 9"), "{}", end.detail());
    assert!(!process_exists(pid));
    assert_eq!(bench.run_graph(1, &noop()).await.words(), [7]);
}

/// Some milliseconds of everything that an execution does: an input, a program to
/// compile, passes that tell their progress, outputs large enough for files.
fn busy() -> Graph {
    let mut busy = graph(
        "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
         @group(0) @binding(1) var<storage, read> data: array<u32>;
         @compute @workgroup_size(64) fn first(@builtin(global_invocation_id) at: vec3u) {
             out[at.x] += data[at.x];
         }
         @compute @workgroup_size(64) fn last(@builtin(global_invocation_id) at: vec3u) {
             var x = out[at.x];
             for (var i = 0u; i < 50u; i++) { x = x * 1664525u + 1013904223u; }
             out[at.x] = x;
         }",
        vec![
            buffer("out", 64 << 10, Content::Zeroed),
            buffer(
                "data",
                64 << 10,
                Content::Input {
                    index: 0,
                    offset: 0,
                    length: 64 << 10,
                },
            ),
        ],
        vec![pass("first", &[0, 1], 256), pass("last", &[0, 1], 256)],
    );
    let mut passes = busy.passes.to_vec();
    passes.iter_mut().for_each(|pass| pass.repeat = 5);
    passes.extend(passes.clone());
    busy.passes = passes.try_into().unwrap();
    busy
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Which moments follows from this number: change it to try others.
const MOMENTS: u64 = 44;

#[tokio::test]
async fn abuse_44_a_worker_killed_at_a_hundred_random_moments_leaves_nothing() {
    let open_before = open_descriptors();
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let ask = |bench: &mut Bench| {
        let mut request = bench.request(1, &busy());
        request.inputs = vec![file_with(&[3; 64 << 10])];
        request.fresh = true;
        request
    };
    let request = ask(&mut bench);
    let undisturbed = bench.run(request).await;
    let whole = Duration::from_micros(undisturbed.usage.wall_us);
    let expected = undisturbed.words();
    let (mut crashed, mut chance) = (0, MOMENTS);
    for moment in 0..100 {
        let request = ask(&mut bench);
        let id = request.id;
        bench.executor.run(request).unwrap();
        let pid = bench.started(id).await;
        let process = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let process = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty());
        // A linear generator: its upper bits are as random as this needs.
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let part = u32::try_from(chance >> 48).unwrap();
        tokio::time::sleep(whole * part / 60_000).await;
        if let Ok(process) = process {
            let kill = rustix::process::Signal::KILL;
            let _ = rustix::process::pidfd_send_signal(process, kill);
        }
        let end = bench.end(id).await;
        let usage = end.usage;
        assert!(usage.gpu_us <= usage.wall_us, "moment {moment}: {usage:?}");
        match &end.result {
            Ok(_) => assert_eq!(end.words(), expected, "moment {moment}"),
            Err((failure, detail)) => {
                assert_eq!(
                    failure,
                    &Failure::WorkerCrashed,
                    "moment {moment}: {detail}"
                );
                crashed += 1;
                // It pays for what it was told of, and nothing else.
                let was_told = !end.progress.is_empty();
                assert!(was_told || usage.gpu_us == 0, "moment {moment}: {usage:?}");
            }
        }
        assert!(!process_exists(pid), "moment {moment}");
    }
    println!("{crashed} of 100 killed before they were done, a whole one takes {whole:?}");
    assert!(crashed >= 20, "{crashed}");
    assert_eq!(bench.run_graph(1, &noop()).await.words(), [7]);
    bench.executor.clone().stop().await;
    assert!(own_groups().is_empty(), "{:?}", own_groups());
    drop(bench);
    // The pool's own thread closes what is left of it.
    while open_descriptors() != open_before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn abuse_44_stopping_the_executor_leaves_no_process() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let idle = bench.run_graph(1, &noop()).await.pid.unwrap();
    let request = bench.request(2, &endless());
    let id = request.id;
    bench.executor.run(request).unwrap();
    let busy = bench.started(id).await;
    bench.executor.clone().stop().await;
    assert!(!process_exists(idle) && !process_exists(busy));
    assert_eq!(bench.end(id).await.failure(), &Failure::Cancelled);
}

#[tokio::test]
async fn abuse_22_a_lying_worker_is_refused_by_its_first_frame() {
    let dir = tempfile::tempdir().unwrap();
    let huge_length = r"printf '\377\377\377\377' >&0";
    let garbage = r"printf '\004\000\000\000zzzz' >&0";
    let endless_noise = r"while :; do printf 'noise noise noise noise noise' >&0 || exit 1; done";
    for says in [huge_length, garbage, endless_noise] {
        let config = ExecutorConfig {
            worker: Some(lying_worker(&dir, says)),
            ..Default::default()
        };
        let Some(mut bench) = bench(config).await else {
            return;
        };
        let request = bench.request(1, &noop());
        let began = Instant::now();
        let end = bench.run(request).await;
        assert_eq!(
            end.failure(),
            &Failure::Internal,
            "{says}: {}",
            end.detail()
        );
        assert!(end.pid.is_none() && began.elapsed() < LONG);
    }
}

/// The words of a worker that opens its device and then says this.
async fn said_after_ready(dir: &tempfile::TempDir, then: &[Reply]) -> Option<PathBuf> {
    let (adapters, confinement) = program().probe().await.unwrap();
    let Some(adapter) = adapters.into_iter().next() else {
        println!("skipped: no Vulkan adapter");
        return None;
    };
    let ready = Reply::Ready {
        adapter: Some(adapter),
        confinement,
    };
    let mut bytes = Vec::new();
    for reply in std::iter::once(&ready).chain(then) {
        let frame = wire::encode(reply);
        bytes.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(&frame);
    }
    let words = dir.path().join("words");
    std::fs::write(&words, bytes).unwrap();
    Some(lying_worker(
        dir,
        &format!("/bin/cat {} >&0", words.display()),
    ))
}

/// An executor whose workers say these words, whatever they are asked.
async fn bench_of_a_liar(dir: &tempfile::TempDir, words: &[Reply]) -> Option<Bench> {
    let config = ExecutorConfig {
        worker: Some(said_after_ready(dir, words).await?),
        ..Default::default()
    };
    bench(config).await
}

#[tokio::test]
async fn abuse_42_the_third_lost_device_quarantines_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let lost = Reply::Failed {
        failure: Failure::DeviceLost,
        detail: Utf8::cut("gone"),
        used: Used::default(),
    };
    let Some(mut bench) = bench_of_a_liar(&dir, &[lost]).await else {
        return;
    };
    for _ in 0..3 {
        assert_eq!(
            bench.run_graph(1, &noop()).await.failure(),
            &Failure::DeviceLost
        );
    }
    let end = bench.run_graph(1, &noop()).await;
    assert_eq!(end.failure(), &Failure::AdapterQuarantined);
    assert!(end.detail().contains("restart"), "{}", end.detail());
}

#[tokio::test]
async fn abuse_42_after_a_lost_device_another_worker_serves() {
    let dir = tempfile::tempdir().unwrap();
    let lost = Reply::Failed {
        failure: Failure::DeviceLost,
        detail: Utf8::cut("gone"),
        used: Used::default(),
    };
    let Some(liar) = said_after_ready(&dir, &[lost]).await else {
        return;
    };
    // The first worker lies, those after it are real.
    let both = tempfile::tempdir().unwrap();
    let serves = format!(
        "mkdir {} 2>/dev/null && exec {} serve; exec {} serve",
        both.path().join("once").display(),
        liar.display(),
        worker_path().display()
    );
    let config = ExecutorConfig {
        worker: Some(lying_worker(&both, &serves)),
        pool_size: 1,
        ..Default::default()
    };
    let Some(mut bench) = bench(config).await else {
        return;
    };
    let end = bench.run_graph(1, &noop()).await;
    assert_eq!(end.failure(), &Failure::DeviceLost);
    let next = bench.run_graph(1, &noop()).await;
    assert_eq!(next.words(), [7]);
    assert_ne!(next.pid, end.pid);
}

/// Address space that a process has now.
fn address_space(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kilobytes = line.unwrap().trim().trim_end_matches("kB").trim();
    kilobytes.parse::<u64>().unwrap() << 10
}

/// A device with little memory is made by a worker that may map little more than one
/// that rests has mapped.
#[tokio::test]
async fn abuse_41_memory_that_is_not_there_is_typed_and_what_was_taken_is_given_back() {
    let Some(mut resting) = bench(ExecutorConfig::default()).await else {
        return;
    };
    if !resting.adapter().is_software() {
        println!("skipped: the memory of a device can't be taken from it");
        return;
    }
    let pid = resting.run_graph(1, &noop()).await.pid.unwrap();
    let kilobytes = (address_space(pid) >> 10) + (160 << 10);
    resting.executor.stop().await;
    let dir = tempfile::tempdir().unwrap();
    let serves = format!(
        "mkdir {} 2>/dev/null && ulimit -v {kilobytes}; exec {} serve",
        dir.path().join("once").display(),
        worker_path().display()
    );
    let config = ExecutorConfig {
        worker: Some(lying_worker(&dir, &serves)),
        pool_size: 1,
        ..Default::default()
    };
    let Some(mut bench) = bench(config).await else {
        return;
    };
    let pid = bench.run_graph(1, &noop()).await.pid.unwrap();
    let mut greedy = noop();
    let large = |n: u32| buffer(&format!("b{n}"), 64 << 20, Content::Zeroed);
    let mut buffers = vec![buffer("out", 4, Content::Zeroed)];
    buffers.extend((0..8).map(large));
    greedy.buffers = buffers.try_into().unwrap();
    let end = bench.run_graph(1, &greedy).await;
    println!("{}: {}", end.failure(), end.detail());
    assert_eq!(
        (end.pid, end.failure()),
        (Some(pid), &Failure::OutOfMemory),
        "{}",
        end.detail()
    );
    assert!(!process_exists(pid), "with the worker went what it had");
    // As much again is there for the next.
    let next = bench.run_graph(1, &greedy).await;
    assert_eq!(next.words(), [7]);
    assert_ne!(next.pid, Some(pid));
    bench.executor.stop().await;
    assert!(own_groups().is_empty(), "{:?}", own_groups());
}

#[tokio::test]
async fn a_worker_cannot_make_an_output_longer_or_shorter() {
    for bytes in [vec![], vec![1, 2, 3], vec![0; 5], vec![0; 32 << 10]] {
        let dir = tempfile::tempdir().unwrap();
        let claim = Reply::Finished {
            lengths: vec![bytes.len() as u64].try_into().unwrap(),
            outputs: bytes.try_into().unwrap(),
            used: Used::default(),
        };
        let Some(mut bench) = bench_of_a_liar(&dir, &[claim]).await else {
            return;
        };
        let end = bench.run_graph(1, &noop()).await;
        assert_eq!(end.failure(), &Failure::WorkerCrashed);
    }
}

#[tokio::test]
async fn abuse_49_a_worker_cannot_claim_more_time_than_passed() {
    let dir = tempfile::tempdir().unwrap();
    let claims = [
        Reply::Progress {
            used: Used::default(),
            done: u64::MAX,
            total: 1,
        },
        Reply::Finished {
            lengths: vec![4].try_into().unwrap(),
            outputs: vec![9, 0, 0, 0].try_into().unwrap(),
            used: Used {
                gpu_us: u64::MAX,
                ..Used::default()
            },
        },
    ];
    let Some(mut bench) = bench_of_a_liar(&dir, &claims).await else {
        return;
    };
    let end = bench.run_graph(1, &noop()).await;
    assert_eq!(end.progress, [(1, 1)]);
    assert_eq!(end.words(), [9]);
    let (_, usage) = end.result.unwrap();
    assert!(usage.gpu_us <= usage.wall_us);
}

#[tokio::test]
async fn a_worker_that_keeps_its_parent_copying_is_ended() {
    let mut kept = noop();
    let mut only = kept.passes[0].clone();
    only.repeat = 1000;
    kept.passes = vec![only].try_into().unwrap();
    kept.checkpoint = Some(Checkpoint {
        buffers: vec![0].try_into().unwrap(),
        every: 10,
    });
    let says = |done| Reply::Checkpoint {
        done,
        used: Used::default(),
    };
    // Without being told to go on, backwards, between two points, and of the end.
    for words in [vec![10, 20], vec![7], vec![0], vec![1000], vec![u64::MAX]] {
        let dir = tempfile::tempdir().unwrap();
        let words = words.into_iter().map(says).collect::<Vec<_>>();
        let Some(mut bench) = bench_of_a_liar(&dir, &words).await else {
            return;
        };
        let mut request = bench.request(1, &kept);
        request.checkpoint_every = Some(Duration::ZERO);
        let end = bench.run(request).await;
        assert_eq!(end.failure(), &Failure::WorkerCrashed);
        assert!(end.detail().contains("out of place"), "{}", end.detail());
        assert!(!process_exists(end.pid.unwrap()));
    }
    // Nobody asked for any.
    let dir = tempfile::tempdir().unwrap();
    if let Some(mut bench) = bench_of_a_liar(&dir, &[says(10)]).await {
        let end = bench.run_graph(1, &kept).await;
        assert_eq!(end.failure(), &Failure::WorkerCrashed);
    }
}

#[tokio::test]
async fn a_word_out_of_place_ends_the_worker() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut bench) = bench_of_a_liar(&dir, &[Reply::Checked]).await else {
        return;
    };
    let end = bench.run_graph(1, &noop()).await;
    assert_eq!(end.failure(), &Failure::WorkerCrashed);
    assert!(!process_exists(end.pid.unwrap()));
}

#[tokio::test]
async fn a_missing_worker_is_named_with_the_next_step() {
    let config = ExecutorConfig {
        worker: Some(PathBuf::from("/nowhere")),
        ..Default::default()
    };
    let Err(ExecutorError::Worker(error)) = suanli_executor::Executor::start(config).await else {
        panic!("it started");
    };
    assert!(
        error.to_string().contains("install `suanli-worker`"),
        "{error}"
    );
}

/// The parent is this test again, as a process of its own that holds a busy
/// worker and is killed.
#[tokio::test]
async fn abuse_44_workers_die_with_a_killed_parent() {
    const ROLE: &str = "SUANLI_TEST_PARENT";
    if std::env::var_os(ROLE).is_some() {
        return hold_a_worker().await;
    }
    let mut parent = tokio::process::Command::new(std::env::current_exe().unwrap());
    parent
        .args([
            "--exact",
            "workers::abuse_44_workers_die_with_a_killed_parent",
            "--nocapture",
        ])
        .env(ROLE, "1")
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut parent = parent.spawn().unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let worker = loop {
        let Some(line) = lines.next_line().await.unwrap() else {
            println!("skipped: no Vulkan adapter");
            return;
        };
        if let Some(pid) = line.strip_prefix("worker ") {
            break pid.parse::<u32>().unwrap();
        }
    };
    // So much processor time is spent in the long dispatch only.
    while stat_field(worker, USER_TIME)
        .and_then(|ticks| ticks.parse::<u64>().ok())
        .unwrap()
        < 50
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    parent.kill().await.unwrap();
    // Orphans are reaped by whoever adopts them, in its own time.
    while is_running(worker) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn hold_a_worker() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // In one dispatch the worker hears nothing, so only the kernel can end it.
    let request = bench.request(1, &huge_dispatch());
    let id = request.id;
    bench.executor.run(request).unwrap();
    let worker = bench.started(id).await;
    bench.progressed(id).await;
    println!("\nworker {worker}");
    bench.end(id).await;
}

/// Whether a process runs; one that only waits to be reaped does not.
fn is_running(pid: u32) -> bool {
    !matches!(stat_field(pid, STATE).as_deref(), None | Some("Z" | "X"))
}

/// Fields of `/proc/PID/stat`, counted after the name, which may hold spaces.
const STATE: usize = 0;

const USER_TIME: usize = 11;

fn stat_field(pid: u32, field: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit(')').next()?;
    after_name
        .split_whitespace()
        .nth(field)
        .map(ToOwned::to_owned)
}
