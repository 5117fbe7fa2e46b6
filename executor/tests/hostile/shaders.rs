//! Shaders and graphs that mean harm, each with what must be observed.

use std::time::{Duration, Instant};

use suanli_executor::{
    ExecutorConfig, Failure, JobSpec, Template,
    spec::{Content, Graph},
};
use suanli_protocol::registry::Runtime;

use crate::{
    listed::text,
    support::{
        Bench, bench, buffer, endless, graph, huge_dispatch, noop, pass, process_exists, program,
        words,
    },
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
    let checked = program()
        .check(&bomb.clone().into(), &[])
        .await
        .unwrap_err();
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
async fn abuse_38_what_doubles_with_each_line_is_refused_before_it_is_made() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let mut source = "struct S0 { a: u32, }\nconst c0 = S0(1u);\n".to_owned();
    for level in 1..=28 {
        let below = level - 1;
        source += &format!("struct S{level} {{ a: S{below}, b: S{below}, }}\n");
        source += &format!("const c{level} = S{level}(c{below}, c{below});\n");
    }
    let mut bomb = noop();
    bomb.source = format!("{source}{}", &*bomb.source).try_into().unwrap();
    refused_at_once(&mut bench, &bomb, "put in place of their names").await;
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
    let allowed = bench.adapter().binding_bytes_max;
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
async fn abuse_40_arrays_in_every_kind_of_memory_are_guarded() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let beyond = graph(
        &text("out-of-bounds.wgsl"),
        vec![buffer("out", 20, Content::Zeroed)],
        vec![pass("main", &[0], 1)],
    );
    let end = bench.run_graph(1, &beyond).await;
    // Changed in local, private and workgroup memory; and whether a sentinel was read.
    assert_eq!(end.words(), [0; 5]);
}

#[tokio::test]
async fn abuse_41_sixty_four_gigabytes_are_refused_at_once() {
    let config = ExecutorConfig {
        memory_max: 8 << 30,
        ..Default::default()
    };
    let Some(mut bench) = bench(config).await else {
        return;
    };
    let mut vast = noop();
    let four = |n: u32| buffer(&format!("b{n}"), 4 << 30, Content::Zeroed);
    let mut buffers = vec![buffer("out", 4, Content::Zeroed)];
    buffers.extend((0..16).map(four));
    vast.buffers = buffers.try_into().unwrap();
    let mut request = bench.request(1, &vast);
    request.memory_max = u64::MAX;
    let refusal = bench.executor.run(request).unwrap_err();
    let asked = (64 << 30) + 4;
    let allowed = 8 << 30;
    assert_eq!(refusal.failure, Failure::TooLarge { asked, allowed });
    // One that is large alone, and one whose sum no integer holds.
    for size in [64 << 30, u64::MAX - 3] {
        let mut vast = noop();
        vast.buffers = vec![buffer("out", size, Content::Zeroed)]
            .try_into()
            .unwrap();
        let request = bench.request(1, &vast);
        let refusal = bench.executor.run(request).unwrap_err();
        assert_eq!(refusal.failure, Failure::InvalidSpec, "{refusal}");
    }
    assert_eq!(bench.run_graph(1, &noop()).await.words(), [7]);
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
async fn bytes_that_are_no_graph_are_refused() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let good = Template::single(noop()).encode().unwrap();
    let mut request = bench.request(1, &noop());
    request.spec = JobSpec::Encoded(good[..good.len() - 1].to_vec());
    assert_eq!(
        bench.executor.run(request).unwrap_err().failure,
        Failure::InvalidSpec
    );
    let longer = [good, vec![0]].concat();
    assert!(Template::decode(Runtime::WGSL, &longer).is_err());
}
