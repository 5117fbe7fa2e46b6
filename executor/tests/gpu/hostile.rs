//! Jobs and workers that mean harm, each with what must be observed. Numbers
//! are those of the project's abuse list. Skipped, loudly, on a machine
//! without an adapter.

use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use suanli_executor::{
    ExecutorConfig, ExecutorError, Failure,
    ipc::Reply,
    spec::{Content, Graph},
};
use suanli_protocol::wire::{self, Utf8};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{
    Bench, LONG, bench, buffer, endless, graph, huge_dispatch, lying_worker, noop, pass,
    process_exists, program, words,
};

/// Short for a person, long for a machine that is busy with other tests.
const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn abuse_38_an_endless_shader_is_killed_and_the_next_job_served() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let mut request = bench.request(1, &endless());
    request.run_limit = SHORT;
    let end = bench.run(request).await;
    assert_eq!(
        end.failure(),
        &Failure::DeadlineExceeded,
        "{}",
        end.detail()
    );
    assert!(
        !process_exists(end.pid.unwrap()),
        "killed and reaped before it is reported"
    );
    let next = bench.run_graph(1, &noop()).await;
    assert_eq!(next.words(), [7]);
    assert_ne!(next.pid, end.pid);
}

#[tokio::test]
async fn abuse_38_a_huge_dispatch_is_killed_inside() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let mut request = bench.request(1, &huge_dispatch());
    request.run_limit = SHORT;
    let end = bench.run(request).await;
    assert_eq!(end.failure(), &Failure::DeadlineExceeded);
    assert!(end.detail().contains("while running"), "{}", end.detail());
    assert_eq!(bench.run_graph(2, &noop()).await.words(), [7]);
}

/// Refused in words, within the time that a check takes, by client and provider
/// alike, and the next execution is served.
async fn refused_at_once(bench: &mut Bench, bomb: &Graph, says: &str) {
    let began = Instant::now();
    let checked = program().check(bomb).await.unwrap_err();
    assert!(checked.to_string().contains(says), "{checked}");
    let end = bench.run_graph(1, bomb).await;
    assert_eq!(end.failure(), &Failure::InvalidShader, "{}", end.detail());
    assert_eq!(end.detail(), checked.to_string());
    println!("invalid-shader in {:?}: {}", began.elapsed(), end.detail());
    assert_eq!(bench.run_graph(1, &noop()).await.words(), [7]);
}

#[tokio::test]
async fn abuse_38_a_source_that_overflows_the_parser_is_refused_before_it() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let terms = "1u+".repeat(300_000);
    let mut bomb = noop();
    bomb.source = bomb
        .source
        .replace("7u", &format!("{terms}1u"))
        .try_into()
        .unwrap();
    refused_at_once(&mut bench, &bomb, "line 2: more than").await;
}

#[tokio::test]
async fn abuse_38_doubling_calls_are_refused_without_being_made() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let mut source = "@group(0) @binding(0) var<storage, read_write> out: array<u32>;\n\
        fn f0(x: u32) -> u32 { return x * 3u + out[x % 4u]; }\n"
        .to_owned();
    for level in 1..=18 {
        let below = level - 1;
        source +=
            &format!("fn f{level}(x: u32) -> u32 {{ return f{below}(x) ^ f{below}(x + 1u); }}\n");
    }
    source += "@compute @workgroup_size(1) fn main() { out[0] = f18(out[1]); }";
    let bomb = graph(
        &source,
        vec![buffer("out", 16, Content::Zeroed)],
        vec![pass("main", &[0], 1)],
    );
    refused_at_once(&mut bench, &bomb, "`f12` becomes 8191 functions").await;
}

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
async fn abuse_39_what_is_over_the_caps_is_refused_at_once() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let mut wide = noop();
    wide.passes = vec![pass("main", &[0], 70_000)].try_into().unwrap();
    let mut large = noop();
    large.buffers = vec![buffer("out", 2 << 30, Content::Zeroed)]
        .try_into()
        .unwrap();
    let mut many = noop();
    many.buffers = vec![buffer("out", 1 << 29, Content::Zeroed)]
        .try_into()
        .unwrap();
    for (graph, expected) in [
        (wide, Failure::InvalidSpec),
        (
            large,
            Failure::TooLarge {
                asked: 2 << 30,
                allowed: 1 << 30,
            },
        ),
        (
            many,
            Failure::TooLarge {
                asked: 1 << 29,
                allowed: 1 << 28,
            },
        ),
    ] {
        let request = bench.request(1, &graph);
        assert_eq!(bench.executor.run(request).unwrap_err().failure, expected);
    }
}

#[tokio::test]
async fn abuse_39_a_binding_over_the_adapters_limit_is_typed() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let allowed = bench.executor.adapter().binding_bytes_max;
    let mut graph = noop();
    let work = buffer("work", allowed + 4, Content::Zeroed);
    graph.buffers = vec![buffer("out", 4, Content::Zeroed), work]
        .try_into()
        .unwrap();
    graph.passes = vec![pass("main", &[0, 1], 1)].try_into().unwrap();
    let mut request = bench.request(1, &graph);
    request.memory_max = u64::MAX;
    match bench.executor.run(request) {
        // Adapters with huge bindings: the executor's own cap comes first.
        Err(refusal) => assert!(
            matches!(refusal.failure, Failure::TooLarge { .. }),
            "{refusal}"
        ),
        Ok(()) => {
            let end = bench.end(suanli_executor::ExecutionId(1)).await;
            assert_eq!(
                end.failure(),
                &Failure::TooLarge {
                    asked: allowed + 4,
                    allowed
                }
            );
        }
    }
}

#[tokio::test]
async fn abuse_40_writes_out_of_bounds_leave_sentinels_intact() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let sentinel = 0xdead_beef_u32;
    let mut graph = graph(
        "@group(0) @binding(0) var<storage, read_write> left: array<u32>;
         @group(0) @binding(1) var<storage, read_write> data: array<u32>;
         @group(0) @binding(2) var<storage, read_write> right: array<u32>;
         @group(0) @binding(3) var<storage, read_write> far: array<u32>;
         @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) at: vec3u) {
             // Everything beyond the last word lands, if anywhere, in `data`.
             data[64u + at.x * 97u] = 1u;
             data[0u - 1u - at.x] = data[0x40000000u + at.x] | 1u;
             if (at.x == 4000000000u) { left[0] = 1u; right[0] = 1u; far[0] = data[70]; }
         }",
        vec![
            buffer("left", 4096, words(&[sentinel; 1024])),
            buffer("data", 256, Content::Zeroed),
            buffer("right", 4096, words(&[sentinel; 1024])),
            buffer("far", 1 << 20, Content::Zeroed),
        ],
        vec![pass("main", &[0, 1, 2, 3], 64)],
    );
    let output = |buffer, name: &str| suanli_executor::spec::Output {
        buffer,
        name: crate::support::name(name),
    };
    graph.outputs = vec![output(0, "left"), output(2, "right"), output(3, "far")]
        .try_into()
        .unwrap();
    let (outputs, _) = bench.run_graph(1, &graph).await.result.unwrap();
    for side in &outputs[..2] {
        let bytes = side.content.read().unwrap();
        assert!(
            bytes
                .as_chunks::<4>()
                .0
                .iter()
                .all(|word| *word == sentinel.to_le_bytes())
        );
    }
    assert!(
        outputs[2]
            .content
            .read()
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[tokio::test]
async fn abuse_43_what_was_never_written_reads_as_zero() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // First fill the device's and the workgroups' memory, as the same tenant,
    // so that the same worker and its freed memory serve the reader.
    let dirt = graph(
        "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
         @group(0) @binding(1) var<storage, read_write> waste: array<u32>;
         var<workgroup> shared_words: array<u32, 2048>;
         @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) at: vec3u) {
             for (var i = 0u; i < 32u; i++) { shared_words[i * 64u + at.x % 64u] = 0xffffffffu; }
             workgroupBarrier();
             for (var i = at.x; i < arrayLength(&waste); i += 4096u) { waste[i] = shared_words[i % 2048u]; }
             if (at.x == 0u) { out[0] = waste[5]; }
         }",
        vec![buffer("out", 4, Content::Zeroed), buffer("waste", 4 << 20, Content::Zeroed)],
        vec![pass("main", &[0, 1], 64)],
    );
    let reader = graph(
        "@group(0) @binding(0) var<storage, read_write> out: array<atomic<u32>, 2>;
         @group(0) @binding(1) var<storage, read_write> fresh: array<u32>;
         var<workgroup> shared_words: array<u32, 2048>;
         @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) at: vec3u) {
             for (var i = 0u; i < 32u; i++) { atomicOr(&out[0], shared_words[i * 64u + at.x % 64u]); }
             for (var i = at.x; i < arrayLength(&fresh); i += 4096u) { atomicOr(&out[1], fresh[i]); }
         }",
        vec![buffer("out", 8, Content::Zeroed), buffer("fresh", 4 << 20, Content::Zeroed)],
        vec![pass("main", &[0, 1], 64)],
    );
    let dirty = bench.run_graph(1, &dirt).await;
    assert_eq!(dirty.words(), [u32::MAX]);
    let clean = bench.run_graph(1, &reader).await;
    assert_eq!((clean.words(), clean.pid), (vec![0, 0], dirty.pid));
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
    assert!(confinement.missing.is_empty(), "{:?}", confinement.missing);
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
        adapter,
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
async fn a_worker_cannot_make_an_output_longer_or_shorter() {
    for bytes in [vec![], vec![1, 2, 3], vec![0; 5], vec![0; 32 << 10]] {
        let dir = tempfile::tempdir().unwrap();
        let claim = Reply::Finished {
            outputs: bytes.try_into().unwrap(),
            gpu_us: 1,
            cpu_us: 0,
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
            done: u64::MAX,
            total: 1,
        },
        Reply::Finished {
            outputs: vec![9, 0, 0, 0].try_into().unwrap(),
            gpu_us: u64::MAX,
            cpu_us: 0,
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

#[tokio::test]
async fn bytes_that_are_no_graph_are_refused() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let good = noop().encode().unwrap();
    let mut request = bench.request(1, &noop());
    request.spec = good[..good.len() - 1].to_vec();
    assert_eq!(
        bench.executor.run(request).unwrap_err().failure,
        Failure::InvalidSpec
    );
    assert!(Graph::decode(&[good, vec![0]].concat()).is_err());
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
            "hostile::abuse_44_workers_die_with_a_killed_parent",
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
