//! What a job asks of a device beyond what all have: given where it is named, and
//! nowhere else.

use std::os::unix::fs::PermissionsExt as _;

use suanli_executor::{
    ExecutorConfig, Failure, Program,
    ipc::Reply,
    spec::{Content, Graph},
};
use suanli_protocol::{
    registry::Feature,
    wire::{self, List},
};

use crate::support::{Bench, bench, buffer, graph, noop, pass, program, worker_path};

fn naming(mut graph: Graph, features: &[Feature]) -> Graph {
    graph.features = List::truncated(features.to_vec());
    graph
}

/// Counts in 16-bit floats to where they stop: 2048 and one is 2048.
fn halves() -> Graph {
    graph(
        "enable f16;
         @group(0) @binding(0) var<storage, read_write> out: array<u32>;
         @compute @workgroup_size(1) fn main() {
             var sum = f16(0);
             for (var i = 0; i < 3000; i++) { sum += f16(1); }
             out[0] = u32(sum);
         }",
        vec![buffer("out", 4, Content::Zeroed)],
        vec![pass("main", &[0], 1)],
    )
}

/// Each subgroup adds up its lanes; so all together are the number of lanes.
fn subgroups() -> Graph {
    graph(
        "@group(0) @binding(0) var<storage, read_write> out: array<atomic<u32>>;
         @compute @workgroup_size(64) fn main(@builtin(subgroup_invocation_id) lane: u32) {
             let sum = subgroupAdd(1u);
             if lane == 0u { atomicAdd(&out[0], sum); }
         }",
        vec![buffer("out", 4, Content::Zeroed)],
        vec![pass("main", &[0], 1)],
    )
}

/// A started executor whose adapter has a feature; says so if it has not.
async fn bench_with(feature: Feature) -> Option<Bench> {
    let bench = bench(ExecutorConfig::default()).await?;
    let adapter = bench.adapter();
    if adapter.offers(&[feature]).is_err() {
        println!("skipped: {} has no `{feature}`", &*adapter.name);
        return None;
    }
    Some(bench)
}

#[tokio::test]
async fn a_source_uses_the_features_that_its_job_names() {
    for (feature, graph, expected) in [
        (Feature::F16, halves(), 2048),
        (Feature::SUBGROUPS, subgroups(), 64),
    ] {
        let Some(mut bench) = bench_with(feature).await else {
            continue;
        };
        let end = bench.run_graph(1, &naming(graph, &[feature])).await;
        assert_eq!(end.words(), [expected], "{feature}");
    }
}

#[tokio::test]
async fn what_is_used_but_not_named_is_refused_everywhere_alike() {
    for (feature, graph) in [(Feature::F16, halves()), (Feature::SUBGROUPS, subgroups())] {
        // By a client that has no device.
        let check = |graph: &Graph| {
            let asked = Program::from(graph.clone());
            async move { program().check(&asked, &[]).await }
        };
        let said = check(&graph).await.unwrap_err().to_string();
        assert!(
            said.contains(&format!("uses `{feature}`")) && said.contains("`features`"),
            "{said}"
        );
        let named = naming(graph.clone(), &[feature]);
        check(&named).await.unwrap();
        // And by a provider, also where the same source has just run.
        let Some(mut bench) = bench_with(feature).await else {
            continue;
        };
        bench.run_graph(1, &named).await.result.unwrap();
        let end = bench.run_graph(1, &graph).await;
        assert_eq!(end.failure(), &Failure::InvalidShader);
        assert_eq!(end.detail(), said);
    }
}

/// A worker that says that its adapters have no features, and is none.
async fn featureless(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let (adapters, confinement) = program().probe().await.unwrap();
    let adapters = adapters.into_iter().map(|mut adapter| {
        adapter.features = List::default();
        adapter
    });
    let frame = wire::encode(&Reply::Adapters {
        adapters: List::truncated(adapters.collect()),
        confinement,
    });
    let mut bytes = u32::try_from(frame.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(&frame);
    let (words, liar) = (dir.path().join("words"), dir.path().join("liar"));
    std::fs::write(&words, bytes).unwrap();
    let script = format!(
        "#!/bin/sh\ncase $1 in probe) /bin/cat {} >&0; while :; do read -r line <&0 || exit 0; done;; *) exec {} \"$@\";; esac\n",
        words.display(),
        worker_path().display()
    );
    std::fs::write(&liar, script).unwrap();
    std::fs::set_permissions(&liar, std::fs::Permissions::from_mode(0o700)).unwrap();
    liar
}

#[tokio::test]
async fn a_job_that_names_what_the_adapter_lacks_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = ExecutorConfig {
        worker: Some(featureless(&dir).await),
        ..Default::default()
    };
    let Some(mut bench) = bench(config).await else {
        return;
    };
    for feature in suanli_executor::spec::FEATURES {
        let request = bench.request(1, &naming(noop(), &[feature]));
        let refusal = bench.executor.run(request).unwrap_err();
        assert_eq!(refusal.failure, Failure::MissingFeature);
        assert!(
            refusal.detail.contains(&format!("no `{feature}`")),
            "{refusal}"
        );
    }
    assert_eq!(bench.run_graph(1, &noop()).await.words(), [7]);
}

/// The same work by the device's clock and by the executor's: both can't be far
/// apart, and neither is more than passed.
#[tokio::test]
async fn the_devices_clock_meters_what_asks_for_it() {
    let Some(mut bench) = bench_with(Feature::TIMESTAMPS).await else {
        return;
    };
    let mut work = graph(
        "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
         @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) at: vec3u) {
             var x = at.x;
             for (var i = 0u; i < 2000u; i++) { x = x * 1664525u + 1013904223u; }
             if x == 1u { out[0] = x; }
         }",
        vec![buffer("out", 4, Content::Zeroed)],
        vec![pass("main", &[0], 256)],
    );
    let mut repeated = work.passes[0].clone();
    repeated.repeat = 5;
    work.passes = vec![repeated].try_into().unwrap();
    let timed = naming(work.clone(), &[Feature::TIMESTAMPS]);
    let mut busy = Vec::new();
    for graph in [&work, &timed] {
        // The first run compiles, and is not compared.
        bench.run_graph(1, graph).await.result.unwrap();
        let (_, usage) = bench.run_graph(1, graph).await.result.unwrap();
        assert!(
            usage.gpu_us > 0 && usage.gpu_us <= usage.wall_us,
            "{usage:?}"
        );
        busy.push(usage.gpu_us);
    }
    println!(
        "device time {} µs waited, {} µs by its clock",
        busy[0], busy[1]
    );
    // A clock in wrong units is wrong by a thousand; another test may take the
    // processors meanwhile.
    assert!(busy[1] > busy[0] / 50 && busy[1] < busy[0] * 50, "{busy:?}");
}
