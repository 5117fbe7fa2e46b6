//! Executions that are kept on their way, lose their worker, and go on elsewhere.

use std::time::Duration;

use suanli_executor::{
    ExecutionEvent, ExecutionId, ExecutorConfig, Failure, OutputContent, Resume, Usage,
    spec::{Checkpoint, Content, Graph},
};
use suanli_protocol::wire::List;

use crate::support::{Bench, bench, buffer, endless, graph, noop, pass, words};

const WORDS: u64 = 16 << 10;
/// In the middle of the second pass.
const EVERY: u64 = 650;

/// Dispatches that each go on from what the one before left, with floats whose last
/// bits tell any difference, in two passes.
/// The scratch buffer is written before it is read in each, and so no state.
fn chained() -> Graph {
    let mut first = pass("step", &[0, 1, 2, 3], 64);
    first.repeat = 600;
    let mut second = pass("turn", &[0, 1, 2, 3], 64);
    second.repeat = 401;
    let mut graph = graph(
        "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
         @group(0) @binding(1) var<storage, read_write> waves: array<f32>;
         @group(0) @binding(2) var<storage, read_write> scratch: array<f32>;
         @group(0) @binding(3) var<storage, read> table: array<u32>;
         fn mix_up(at: u32) {
             var x = out[at] ^ table[at % 4u];
             for (var i = 0u; i < 40u; i++) { x = x * 1664525u + 1013904223u; }
             out[at] = x;
         }
         @compute @workgroup_size(256) fn step(@builtin(global_invocation_id) id: vec3u) {
             mix_up(id.x);
             scratch[id.x] = f32(out[id.x] >> 8u) * 0.001;
             waves[id.x] = sqrt(waves[id.x] * 0.75 + scratch[id.x]);
         }
         @compute @workgroup_size(256) fn turn(@builtin(global_invocation_id) id: vec3u) {
             mix_up(id.x);
             scratch[id.x] = f32(out[id.x] & 0xffffu);
             waves[id.x] = waves[id.x] * 1.25 - scratch[id.x] * 0.5;
         }",
        vec![
            buffer("out", WORDS * 4, Content::Zeroed),
            buffer("waves", WORDS * 4, words(&[0x3f80_0000; 16])),
            buffer("scratch", WORDS * 4, Content::Zeroed),
            buffer("table", 16, words(&[1, 20, 300, 4000])),
        ],
        vec![first, second],
    );
    let output = |buffer, name: &str| suanli_executor::spec::Output {
        buffer,
        name: crate::support::name(name),
    };
    graph.outputs = List::truncated(vec![output(0, "out"), output(1, "waves")]);
    keeping(graph, &[0, 1], EVERY)
}

fn keeping(mut graph: Graph, buffers: &[u32], every: u64) -> Graph {
    graph.checkpoint = Some(Checkpoint {
        buffers: List::truncated(buffers.to_vec()),
        every,
    });
    graph
}

/// Waits for a checkpoint of this execution.
async fn kept(bench: &mut Bench, wanted: ExecutionId) -> Resume {
    loop {
        match bench.next().await {
            ExecutionEvent::Checkpoint { id, done, state } if id == wanted => {
                return Resume { done, state };
            }
            ExecutionEvent::Failed { detail, .. } => panic!("{detail}"),
            ExecutionEvent::Finished { .. } => panic!("it is done before anything is kept"),
            _ => {}
        }
    }
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

async fn whole(bench: &mut Bench, graph: &Graph) -> (Vec<[u8; 32]>, Usage) {
    let (outputs, usage) = bench.run_graph(1, graph).await.result.unwrap();
    (outputs.iter().map(|output| output.hash).collect(), usage)
}

#[tokio::test]
async fn an_execution_goes_on_from_its_checkpoint_to_the_same_bits() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let graph = chained();
    let (expected, undisturbed) = whole(&mut bench, &graph).await;
    let mut request = bench.request(1, &graph);
    request.checkpoint_every = Some(Duration::ZERO);
    let id = request.id;
    bench.executor.run(request).unwrap();
    let pid = bench.started(id).await;
    let resume = kept(&mut bench, id).await;
    kill(pid);
    match bench.end(id).await.result {
        Err((failure, detail)) => assert_eq!(failure, Failure::WorkerCrashed, "{detail}"),
        Ok(_) => println!("it was done before it was killed"),
    }
    assert!(resume.done.is_multiple_of(EVERY), "{}", resume.done);
    let names = resume.state.iter().map(|blob| &*blob.name);
    assert_eq!(names.collect::<Vec<_>>(), ["out", "waves"]);
    assert!(matches!(resume.state[0].content, OutputContent::File(_)));
    println!("goes on after {} of {}", resume.done, graph.dispatches());
    // Elsewhere: for another tenant, in a worker that has nothing of it.
    let mut request = bench.request(2, &graph);
    let done = resume.done;
    request.resume = Some(resume);
    let end = bench.run(request).await;
    let (outputs, usage) = end.result.unwrap();
    let hashes = outputs.iter().map(|output| output.hash);
    assert_eq!(hashes.collect::<Vec<_>>(), expected);
    assert!(
        end.progress
            .iter()
            .all(|(at, total)| *at > done && *total == 1001)
    );
    println!(
        "device time in whole {} µs, of the rest {} µs",
        undisturbed.gpu_us, usage.gpu_us
    );
}

#[tokio::test]
async fn usage_is_counted_from_where_it_goes_on() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // Nearly all of the work is before the last dispatch.
    let mut long = endless();
    let mut only = long.passes[0].clone();
    (only.repeat, only.workgroups) = (60, [2, 1, 1]);
    long.passes = List::truncated(vec![only]);
    let long = keeping(long, &[0], 59);
    let mut request = bench.request(1, &long);
    request.checkpoint_every = Some(Duration::ZERO);
    let id = request.id;
    bench.executor.run(request).unwrap();
    let resume = kept(&mut bench, id).await;
    assert_eq!(resume.done, 59);
    let whole = bench.end(id).await.usage;
    let mut request = bench.request(1, &long);
    request.resume = Some(resume);
    let rest = bench.run(request).await.usage;
    println!(
        "in whole {} µs, the last of 60 {} µs",
        whole.gpu_us, rest.gpu_us
    );
    assert!(
        rest.gpu_us > 0 && rest.gpu_us < whole.gpu_us / 5,
        "{rest:?} {whole:?}"
    );
}

#[tokio::test]
async fn checkpoints_come_once_a_second_and_only_if_asked_for() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let mut short = endless();
    let mut only = short.passes[0].clone();
    only.workgroups = [4, 1, 1];
    short.passes = List::truncated(vec![only]);
    let graph = keeping(short, &[0], 1);
    for wanted in [true, false] {
        let mut request = bench.request(1, &graph);
        request.checkpoint_every = wanted.then_some(Duration::ZERO);
        request.run_limit = Duration::from_millis(1500);
        bench.executor.run(request).unwrap();
        let mut told = Vec::new();
        loop {
            match bench.next().await {
                ExecutionEvent::Checkpoint { done, .. } => told.push(done),
                ExecutionEvent::Failed { failure, .. } => {
                    assert_eq!(failure, Failure::DeadlineExceeded);
                    break;
                }
                _ => {}
            }
        }
        println!("checkpoints after {told:?} in a second and a half");
        assert_eq!(!told.is_empty(), wanted);
        assert!(told.len() <= 2 && told.is_sorted(), "{told:?}");
    }
}

#[tokio::test]
async fn what_is_no_state_of_the_program_is_refused() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let graph = chained();
    let mut request = bench.request(1, &graph);
    request.checkpoint_every = Some(Duration::ZERO);
    let id = request.id;
    bench.executor.run(request).unwrap();
    let good = kept(&mut bench, id).await;
    bench.end(id).await.result.unwrap();
    let with = |change: &dyn Fn(&mut Resume)| {
        let mut changed = good.clone();
        change(&mut changed);
        Some(changed)
    };
    for (resume, says) in [
        (with(&|resume| resume.done = 0), "no checkpoint after"),
        (with(&|resume| resume.done += 1), "no checkpoint after"),
        (with(&|resume| resume.done = 1001), "no checkpoint after"),
        (with(&|resume| drop(resume.state.pop())), "other buffers"),
        (with(&|resume| resume.state.swap(0, 1)), "other buffers"),
        (with(&|resume| resume.state[0].bytes -= 4), "other buffers"),
    ] {
        let mut request = bench.request(1, &graph);
        request.resume = resume;
        let refusal = bench.executor.run(request).unwrap_err();
        assert_eq!(refusal.failure, Failure::InvalidSpec);
        assert!(refusal.detail.contains(says), "{refusal}");
    }
    let mut request = bench.request(1, &noop());
    request.resume = with(&|_| ());
    let refusal = bench.executor.run(request).unwrap_err();
    assert!(refusal.detail.contains("has no checkpoints"), "{refusal}");
    // One bit of the content, which only its hash tells.
    let mut request = bench.request(1, &graph);
    request.resume = with(&|resume| {
        let mut bytes = resume.state[1].content.read().unwrap().into_owned();
        bytes[77] ^= 1;
        resume.state[1].content = OutputContent::Memory(bytes);
    });
    let end = bench.run(request).await;
    assert_eq!(end.failure(), &Failure::InvalidSpec);
    assert!(
        end.detail().contains("`waves` is damaged"),
        "{}",
        end.detail()
    );
    assert_eq!(bench.run_graph(1, &noop()).await.words(), [7]);
}
