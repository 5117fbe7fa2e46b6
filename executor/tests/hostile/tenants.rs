//! What one tenant can see, reuse or spoil of another's: nothing. Each tenant has a
//! worker of its own while it works, so what these tests look at is what could stay
//! when a worker ends, and which worker serves whom.

use std::collections::BTreeMap;

use suanli_executor::{
    ExecutionEvent, ExecutionRequest, ExecutorConfig, Failure, OutputContent, Template,
    command::Command,
    spec::{Content, Graph},
};
use suanli_protocol::{
    registry::Runtime,
    wire::{List, Utf8},
};

use crate::{
    listed::{fixture, text},
    support::{
        Bench, End, bench, buffer, constant, endless, file_with, graph, noop, pass, process_exists,
        words,
    },
};

const PATTERN: u32 = 0xa5a5_a5a5;
const WASTE_BYTES: u64 = 4 << 20;

/// Fills all kinds of a device's memory with the pattern.
fn pattern() -> Graph {
    graph(
        &text("pattern.wgsl"),
        vec![
            buffer("out", 4, Content::Zeroed),
            buffer("waste", WASTE_BYTES, Content::Zeroed),
        ],
        vec![pass("main", &[0, 1], 64)],
    )
}

/// Every bit that it finds where nothing was written: in workgroup memory, in a
/// buffer, in private and in local variables.
fn reader() -> Graph {
    graph(
        &text("reader.wgsl"),
        vec![
            buffer("out", 16, Content::Zeroed),
            buffer("fresh", WASTE_BYTES, Content::Zeroed),
        ],
        vec![pass("main", &[0, 1], 64)],
    )
}

/// A command that says 16 KiB of its memory and then fills it with the pattern.
fn memory_of_a_module(bench: &mut Bench, tenant: u8) -> ExecutionRequest {
    let command = Command {
        module: 0,
        arguments: List::default(),
        variables: List::default(),
        stdin: None,
        files: List::default(),
        outputs: List::default(),
        stdout_max: 32 << 10,
        stderr_max: 1024,
        memory_max: 16 << 20,
        fuel_max: 100_000_000,
        clock_ns: 0,
        seed: 0,
    };
    ExecutionRequest {
        runtime: Runtime::WASM,
        spec: Template::single(command).into(),
        inputs: vec![file_with(
            &wat::parse_bytes(&fixture("memory.wat")).unwrap(),
        )],
        fuel_max: u64::MAX,
        ..bench.request(tenant, &noop())
    }
}

#[tokio::test]
async fn abuse_43_every_kind_of_memory_reads_as_zero_for_the_same_tenant() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let dirty = bench.run_graph(1, &pattern()).await;
    assert_eq!(dirty.words(), [PATTERN]);
    let clean = bench.run_graph(1, &reader()).await;
    assert_eq!((clean.words(), clean.pid), (vec![0; 4], dirty.pid));
}

#[tokio::test]
async fn abuse_43_what_a_buffers_content_does_not_cover_is_zero() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    bench.run_graph(1, &pattern()).await.result.unwrap();
    let mut tails = graph(
        "@group(0) @binding(0) var<storage, read_write> given: array<u32>;
         @group(0) @binding(1) var<storage, read_write> file: array<u32>;
         @compute @workgroup_size(1) fn main() { given[0] += file[0]; }",
        vec![
            buffer("inline", 1 << 20, words(&[PATTERN])),
            buffer(
                "file",
                1 << 20,
                Content::Input {
                    index: 0,
                    offset: 0,
                    length: 5,
                },
            ),
        ],
        vec![pass("main", &[0, 1], 1)],
    );
    let output = |buffer, name: &str| suanli_executor::spec::Output {
        buffer,
        name: Utf8::cut(name),
    };
    tails.outputs = vec![output(0, "inline"), output(1, "file")]
        .try_into()
        .unwrap();
    let mut request = bench.request(1, &tails);
    request.inputs = vec![file_with(&[1, 0, 0, 0, 9])];
    let (outputs, _) = bench.run(request).await.result.unwrap();
    for (output, head) in outputs
        .iter()
        .zip([&[0xa6_u8, 0xa5, 0xa5, 0xa5, 0], &[1, 0, 0, 0, 9]])
    {
        let bytes = output.content.read().unwrap();
        assert_eq!(&bytes[..5], head, "{}", output.name);
        assert!(bytes[5..].iter().all(|byte| *byte == 0), "{}", output.name);
    }
}

#[tokio::test]
async fn abuse_79_the_next_tenant_finds_zeros_where_one_left_a_pattern() {
    let config = ExecutorConfig {
        pool_size: 1,
        ..Default::default()
    };
    let Some(mut bench) = bench(config).await else {
        return;
    };
    for round in 0..3 {
        let dirty = bench.run_graph(1, &pattern()).await;
        assert_eq!(dirty.words(), [PATTERN]);
        let request = memory_of_a_module(&mut bench, 1);
        bench.run(request).await.result.unwrap();
        let clean = bench.run_graph(2, &reader()).await;
        assert_eq!(clean.words(), [0; 4], "round {round}");
        assert_ne!(clean.pid, dirty.pid);
        let request = memory_of_a_module(&mut bench, 2);
        assert_eq!(bench.run(request).await.words(), [0; 4096]);
        // One place: the worker of the first had to end for the second's.
        assert!(!process_exists(dirty.pid.unwrap()));
    }
}

fn files_in(bench: &Bench) -> usize {
    std::fs::read_dir(bench.dir.path()).unwrap().count()
}

#[tokio::test]
async fn abuse_79_no_file_stays_but_the_outputs_that_were_handed_over() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let mut large = pattern();
    large.outputs[..]
        .iter()
        .for_each(|output| assert_eq!(output.buffer, 0));
    large.outputs = vec![suanli_executor::spec::Output {
        buffer: 1,
        name: Utf8::cut("waste"),
    }]
    .try_into()
    .unwrap();
    let (outputs, _) = bench.run_graph(1, &large).await.result.unwrap();
    let [output] = &outputs[..] else {
        panic!("{outputs:?}");
    };
    let OutputContent::File(path) = &output.content else {
        panic!("{output:?}");
    };
    assert_eq!(
        (path.metadata().unwrap().len(), files_in(&bench)),
        (WASTE_BYTES, 1)
    );
    std::fs::remove_file(path).unwrap();
    // Nor of executions that fail, however they do.
    let mut late = endless();
    late.buffers = vec![buffer("out", WASTE_BYTES, Content::Zeroed)]
        .try_into()
        .unwrap();
    let mut request = bench.request(1, &late);
    request.run_limit = std::time::Duration::from_millis(200);
    assert_eq!(
        bench.run(request).await.failure(),
        &Failure::DeadlineExceeded
    );
    bench.executor.clone().stop().await;
    assert_eq!(files_in(&bench), 0);
}

/// Programs that differ in one thing each, and what each of them gives.
fn nearly_the_same() -> Vec<(Graph, u32)> {
    let source = "override STEP: u32 = 1u;
         @group(0) @binding(0) var<storage, read_write> out: array<u32>;
         @group(0) @binding(1) var<storage, read_write> other: array<u32>;
         @compute @workgroup_size(1) fn main() { out[0] += STEP; other[0] += 50u; }
         @compute @workgroup_size(1) fn niam() { out[0] += 7u; other[0] += 50u; }";
    let with = |source: &str, entry: &str, bindings: &[u32], step: f64, groups: u32| {
        let mut only = pass(entry, bindings, groups);
        only.constants = vec![constant("STEP", step)].try_into().unwrap();
        let buffers = vec![
            buffer("out", 4, Content::Zeroed),
            buffer("other", 4, Content::Zeroed),
        ];
        graph(source, buffers, vec![only])
    };
    let twice = {
        let mut twice = with(source, "main", &[0, 1], 2.0, 1);
        let only = twice.passes[0].clone();
        twice.passes = vec![only.clone(), only].try_into().unwrap();
        twice
    };
    vec![
        (with(source, "main", &[0, 1], 2.0, 1), 2),
        (with(source, "main", &[0, 1], 3.0, 1), 3),
        (with(source, "niam", &[0, 1], 2.0, 1), 7),
        (with(source, "main", &[1, 0], 2.0, 1), 50),
        (
            with(
                &source.replace("+= STEP", "-= STEP"),
                "main",
                &[0, 1],
                2.0,
                1,
            ),
            0_u32.wrapping_sub(2),
        ),
        (twice, 4),
    ]
}

#[tokio::test]
async fn abuse_80_a_kept_program_is_found_by_all_that_it_was_made_from() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let programs = nearly_the_same();
    let mut pids = Vec::new();
    // Each comes after each other, from the second round on out of what was kept.
    for round in 0..3 {
        for at in 0..programs.len() {
            let (graph, expected) = &programs[(at * (round + 1)) % programs.len()];
            let end = bench.run_graph(1, graph).await;
            assert_eq!(end.words(), [*expected], "round {round}: {graph:?}");
            pids.push(end.pid);
        }
    }
    assert!(
        pids.iter().all(|pid| *pid == pids[0]),
        "one worker, one cache"
    );
}

#[tokio::test]
async fn abuse_80_what_one_tenant_compiled_is_compiled_again_for_another() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // A source that takes its time: where it is known, it takes none.
    let slow = graph(
        &text("statements.wgsl").replace("BODY", &"out[1] = out[2] + out[3];".repeat(2000)),
        vec![buffer("out", 16, Content::Zeroed)],
        vec![pass("main", &[0], 1)],
    );
    let mut times = Vec::new();
    for tenant in [1, 1, 2, 2] {
        let usage = bench.run_graph(tenant, &slow).await.usage;
        times.push(usage.cpu_us);
    }
    println!("processor time for tenants 1, 1, 2, 2: {times:?} µs");
    assert!(
        times[1] < times[0] / 2,
        "it is kept for its tenant: {times:?}"
    );
    assert!(times[2] > times[1] * 2, "and not for another: {times:?}");
}

/// Which tenant each worker served, of executions that ended well.
async fn served(bench: &mut Bench, asked: &BTreeMap<u64, u8>) -> BTreeMap<u32, Vec<u8>> {
    let (mut served, mut ended) = (BTreeMap::<u32, Vec<u8>>::new(), 0);
    while ended < asked.len() {
        match bench.next().await {
            ExecutionEvent::Started { id, worker_pid } => {
                served.entry(worker_pid).or_default().push(asked[&id.0]);
            }
            ExecutionEvent::Finished { .. } => ended += 1,
            ExecutionEvent::Failed { detail, .. } => panic!("{detail}"),
            _ => {}
        }
    }
    served
}

#[tokio::test]
async fn abuse_81_tenants_at_once_never_share_a_worker() {
    let config = ExecutorConfig {
        pool_size: 3,
        ..Default::default()
    };
    let Some(mut bench) = bench(config).await else {
        return;
    };
    // Four tenants in changing order on three places.
    let tenants = [1, 2, 1, 3, 1, 4, 2, 2, 3, 3, 4, 1, 2, 4, 3, 1, 4, 2, 1, 3];
    let mut asked = BTreeMap::new();
    for tenant in tenants {
        let mut request = bench.request(tenant, &noop());
        // Some ask for a worker that nobody else has, their own other jobs included.
        request.fresh = asked.len() % 7 == 6;
        asked.insert(request.id.0, tenant);
        bench.executor.run(request).unwrap();
    }
    let served = served(&mut bench, &asked).await;
    println!("{served:?}");
    assert_eq!(served.values().map(Vec::len).sum::<usize>(), tenants.len());
    for tenants in served.values() {
        assert!(
            tenants.iter().all(|tenant| *tenant == tenants[0]),
            "{served:?}"
        );
    }
    assert!(served.len() >= 4, "{served:?}");
}

#[tokio::test]
async fn abuse_81_one_tenants_endless_job_does_not_hold_up_another() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let request = bench.request(1, &endless());
    let id = request.id;
    bench.executor.run(request).unwrap();
    let busy = bench.started(id).await;
    // Of all that comes meanwhile, nothing goes to that worker.
    for tenant in [2, 3, 2, 4] {
        let end: End = bench.run_graph(tenant, &noop()).await;
        assert_eq!(end.words(), [7]);
        assert_ne!(end.pid, Some(busy));
    }
    bench.executor.cancel(id).unwrap();
    assert_eq!(bench.end(id).await.failure(), &Failure::Cancelled);
}
