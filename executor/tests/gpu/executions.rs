//! Executions on a real adapter: right results, progress, usage, typed ends.
//! Each test is skipped, loudly, on a machine without an adapter.

use std::time::Duration;

use suanli_executor::{
    ExecutorConfig, Failure,
    limits::PASSES_MAX,
    spec::{Content, Graph},
};
use suanli_protocol::{registry::Feature, wire::List};

use crate::support::{
    Bench, bench, buffer, constant, file_with, graph, name, noop, pass, process_exists, program,
    words,
};

#[tokio::test]
async fn a_graph_over_inputs_matches_the_processor() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let values = (0..5000_u32)
        .map(|i| i.wrapping_mul(2_654_435_761))
        .collect::<Vec<_>>();
    let bytes = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect::<Vec<_>>();
    let graph = graph(
        "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
         @group(0) @binding(1) var<storage, read> data: array<u32>;
         @group(0) @binding(2) var<storage, read> table: array<u32, 4>;
         @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) at: vec3u) {
             if (at.x < arrayLength(&data)) {
                 out[at.x] = (data[at.x] ^ table[at.x % 4u]) % 1000u;
             }
         }",
        vec![
            buffer("out", 19_996, Content::Zeroed),
            buffer(
                "data",
                19_996,
                Content::Input {
                    index: 0,
                    offset: 4,
                    length: 19_996,
                },
            ),
            buffer("table", 16, words(&[1, 20, 300, 4000])),
        ],
        vec![pass("main", &[0, 1, 2], 79)],
    );
    let mut request = bench.request(1, &graph);
    request.inputs = vec![file_with(&bytes)];
    let end = bench.run(request).await;
    let table = [1, 20, 300, 4000];
    let expected = values[1..]
        .iter()
        .enumerate()
        .map(|(i, value)| (value ^ table[i % 4]) % 1000);
    assert_eq!(end.words(), expected.collect::<Vec<_>>());
    let (_, usage) = end.result.unwrap();
    assert!(usage.gpu_us > 0 && usage.gpu_us <= usage.wall_us && usage.gpu_ms() > 0);
}

#[tokio::test]
async fn passes_run_in_order_with_repeats_and_constants() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let mut add = pass("add", &[0], 1);
    add.repeat = 300;
    add.constants = vec![constant("STEP", 3.0)].try_into().unwrap();
    let double = pass("double", &[0], 1);
    let graph = graph(
        "override STEP: u32 = 1u;
         @group(0) @binding(0) var<storage, read_write> out: array<u32, 1>;
         @compute @workgroup_size(1) fn add() { out[0] += STEP; }
         @compute @workgroup_size(1) fn double() { out[0] *= 2u; }",
        vec![buffer("out", 4, Content::Zeroed)],
        vec![add, double],
    );
    let end = bench.run_graph(1, &graph).await;
    assert_eq!(end.words(), [1800]);
    assert_eq!(
        end.progress.last(),
        Some(&(300, 301)),
        "each pass but the last"
    );
}

#[tokio::test]
async fn an_invalid_shader_is_shown_with_its_line() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let mut broken = noop();
    broken.source = "@compute @workgroup_size(1)\nfn main() {\n  let x = 1u + 1f;\n}"
        .to_owned()
        .try_into()
        .unwrap();
    let end = bench.run_graph(1, &broken).await;
    assert_eq!(end.failure(), &Failure::InvalidShader);
    assert!(
        end.detail().contains("wgsl:3") && end.detail().contains("1u + 1f"),
        "{}",
        end.detail()
    );
    let checked = program()
        .check(&broken.into(), &[])
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        checked,
        end.detail(),
        "the client sees what the provider would say"
    );
}

#[tokio::test]
async fn a_check_holds_passes_against_the_source() {
    let check = async |change: &dyn Fn(&mut Graph)| {
        let mut graph = noop();
        change(&mut graph);
        program()
            .check(&graph.into(), &[])
            .await
            .unwrap_err()
            .to_string()
    };
    program().check(&noop().into(), &[]).await.unwrap();
    let with = |change: &dyn Fn(&mut suanli_executor::spec::Pass)| {
        let mut changed = noop().passes[0].clone();
        change(&mut changed);
        List::<_, PASSES_MAX>::try_from(vec![changed]).unwrap()
    };
    let missing = with(&|pass| pass.entry = name("mian"));
    assert!(
        check(&|graph| graph.passes = missing.clone())
            .await
            .contains("`main`")
    );
    let unbound = with(&|pass| pass.bindings = List::default());
    assert!(
        check(&|graph| graph.passes = unbound.clone())
            .await
            .contains("@binding(0)")
    );
    let unknown = with(&|pass| pass.constants = vec![constant("N", 1.0)].try_into().unwrap());
    assert!(
        check(&|graph| graph.passes = unknown.clone())
            .await
            .contains("`N`")
    );
    let large = noop().source.replace("array<u32>", "array<u32, 100>");
    let large = check(&|graph| graph.source = large.clone().try_into().unwrap()).await;
    assert!(large.contains("400 bytes"), "{large}");
}

#[tokio::test]
async fn a_worker_serves_one_tenant_and_is_reused_by_it() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let first = bench.run_graph(1, &noop()).await;
    let again = bench.run_graph(1, &noop()).await;
    let other = bench.run_graph(2, &noop()).await;
    assert_eq!(first.words(), [7]);
    assert_eq!(first.pid, again.pid);
    assert_ne!(first.pid, other.pid);
    // Both workers are taken: a third tenant gets a new one, in place of the
    // one longest unused.
    let third = bench.run_graph(3, &noop()).await;
    assert!(![first.pid, other.pid].contains(&third.pid));
    assert_eq!(bench.run_graph(2, &noop()).await.pid, other.pid);
}

#[tokio::test]
async fn a_fresh_execution_shares_its_worker_with_nothing() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let before = bench.run_graph(1, &noop()).await;
    let mut request = bench.request(1, &noop());
    request.fresh = true;
    let fresh = bench.run(request).await;
    assert_ne!(before.pid, fresh.pid);
    let after = [
        bench.run_graph(1, &noop()).await.pid,
        bench.run_graph(2, &noop()).await.pid,
    ];
    assert_eq!(after[0], before.pid, "the tenant's own worker stayed");
    assert!(!after.contains(&fresh.pid));
    assert!(!process_exists(fresh.pid.unwrap()));
}

#[tokio::test]
async fn an_idle_worker_ends_after_its_time() {
    let config = ExecutorConfig {
        idle_max: Duration::from_millis(40),
        ..Default::default()
    };
    let Some(mut bench) = bench(config).await else {
        return;
    };
    let pid = bench.run_graph(1, &noop()).await.pid.unwrap();
    while process_exists(pid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_ne!(bench.run_graph(1, &noop()).await.pid, Some(pid));
}

#[tokio::test]
async fn more_executions_than_workers_wait_their_turn() {
    let config = ExecutorConfig {
        pool_size: 1,
        ..Default::default()
    };
    let Some(mut bench) = bench(config).await else {
        return;
    };
    let requests = (0..6)
        .map(|tenant| bench.request(tenant, &noop()))
        .collect::<Vec<_>>();
    let ids = requests
        .iter()
        .map(|request| request.id)
        .collect::<Vec<_>>();
    for request in requests {
        bench.executor.run(request).unwrap();
    }
    let mut pids = std::collections::BTreeSet::new();
    for id in ids {
        pids.insert(bench.end(id).await.pid.unwrap());
    }
    assert_eq!(
        pids.len(),
        6,
        "six tenants, six workers, one after the other"
    );
}

#[tokio::test]
async fn outputs_of_several_buffers_come_in_order() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let mut graph = graph(
        "@group(0) @binding(0) var<storage, read_write> a: array<u32>;
         @group(0) @binding(1) var<storage, read_write> b: array<u32>;
         @compute @workgroup_size(1) fn main() { a[0] = 1u; b[5] = 2u; }",
        vec![
            buffer("a", 4, Content::Zeroed),
            buffer("b", 24, Content::Zeroed),
        ],
        vec![pass("main", &[0, 1], 1)],
    );
    let output = |buffer, text| suanli_executor::spec::Output {
        buffer,
        name: name(text),
    };
    graph.outputs = vec![output(1, "second"), output(0, "first")]
        .try_into()
        .unwrap();
    let (outputs, _) = bench.run_graph(1, &graph).await.result.unwrap();
    let seen = outputs
        .iter()
        .map(|output| (&*output.name, output.bytes))
        .collect::<Vec<_>>();
    assert_eq!(seen, [("second", 24), ("first", 4)]);
    assert_eq!(
        outputs[0].content.read().unwrap()[20..],
        2_u32.to_le_bytes()
    );
}

#[tokio::test]
async fn the_adapter_is_measured_by_a_kernel_that_proves_itself() {
    let Some(bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let measured = program().measure(bench.adapter()).await.unwrap();
    assert_eq!(&measured.adapter, bench.adapter());
    assert!(measured.fp32_flops > 1_000_000, "{measured:?}");
    println!(
        "{} GFLOP/s in {} ms",
        measured.fp32_flops / 1_000_000_000,
        measured.took_us / 1000
    );
}

/// Reported, not asserted: what an execution costs beyond its device time.
#[tokio::test]
async fn warm_overhead_is_reported() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let mut timed = noop();
    timed.features = List::truncated(vec![Feature::TIMESTAMPS]);
    for (what, graph) in [("no-op", noop()), ("no-op by the device's clock", timed)] {
        if bench.adapter().offers(&graph.features).is_ok() {
            report_overhead(&mut bench, what, &graph).await;
        }
    }
}

async fn report_overhead(bench: &mut Bench, what: &str, graph: &Graph) {
    let mut beyond = Vec::new();
    let (mut gpu, mut worker) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let request = bench.request(1, graph);
        let began = std::time::Instant::now();
        let end = bench.run(request).await;
        let took = began.elapsed();
        let (_, usage) = end.result.unwrap();
        beyond.push(took.saturating_sub(Duration::from_micros(usage.gpu_us)));
        gpu.push(usage.gpu_us);
        worker.push(usage.wall_us);
    }
    beyond.sort();
    gpu.sort_unstable();
    worker.sort_unstable();
    println!(
        "warm {what}: p50 {:?}, p99 {:?} beyond the device; device p50 {} µs, order to last word p50 {} µs",
        beyond[100], beyond[198], gpu[100], worker[100]
    );
}

#[tokio::test]
async fn large_inputs_and_outputs_go_in_pieces() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // More than two of the worker's chunks, and no whole number of words.
    let bytes = (0..20_971_523_u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]);
    let bytes = bytes.collect::<Vec<_>>();
    let length = u64::try_from(bytes.len()).unwrap();
    let size = length.next_multiple_of(4);
    let data = Content::Input {
        index: 0,
        offset: 0,
        length,
    };
    let graph = graph(
        "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
         @group(0) @binding(1) var<storage, read> data: array<u32>;
         @group(0) @binding(2) var<uniform> mask: vec4u;
         @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) at: vec3u) {
             for (var i = at.x; i < arrayLength(&data); i += 64u * 1024u) { out[i] = data[i] ^ mask.y; }
         }",
        vec![
            buffer("out", size, Content::Zeroed),
            buffer("data", size, data),
            buffer("mask", 16, words(&[0, u32::MAX, 0, 0])),
        ],
        vec![pass("main", &[0, 1, 2], 1024)],
    );
    let mut request = bench.request(1, &graph);
    request.inputs = vec![file_with(&bytes)];
    let (outputs, _) = bench.run(request).await.result.unwrap();
    let read = outputs[0].content.read().unwrap();
    assert!(
        read[..bytes.len()]
            .iter()
            .zip(&bytes)
            .all(|(out, data)| *out == !data)
    );
    assert_eq!(&read[bytes.len()..], [0xff], "the padding was zero");
}
