//! What well-behaved commands see and give.

use suanli_executor::{
    ExecutionEvent, ExecutionRequest, ExecutorConfig, Failure, OutputContent, Template,
    command::{Command, InFile, OutFile, Variable},
    file::InputFile,
};
use suanli_protocol::{
    registry::Runtime,
    wire::{List, Utf8},
};

use crate::support::{Bench, End, bench, file_with, program};

/// A command whose module is its input 0.
pub(crate) fn command() -> Command {
    Command {
        module: 0,
        arguments: vec![Utf8::cut("test"), Utf8::cut("one two")]
            .try_into()
            .unwrap(),
        variables: vec![Variable {
            name: Utf8::cut("LANG"),
            value: Utf8::cut("C"),
        }]
        .try_into()
        .unwrap(),
        stdin: None,
        files: List::default(),
        outputs: List::default(),
        stdout_max: 64 << 10,
        stderr_max: 64 << 10,
        memory_max: 16 << 20,
        fuel_max: 1_000_000_000,
        clock_ns: 1_000_000_000_000,
        seed: 7,
    }
}

/// WebAssembly from text, with the imports that most programs here need.
pub(crate) fn wat(body: &str) -> Vec<u8> {
    wat_with("", body)
}

/// The same, with more imports.
pub(crate) fn wat_with(imports: &str, body: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "path_open" (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
            (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "sock_shutdown" (func $shutdown (param i32 i32) (result i32)))
            {imports}
            (memory (export "memory") 1)
            ;; writes `length` bytes at `at` to a descriptor
            (func $say (param $fd i32) (param $at i32) (param $length i32)
                (i32.store (i32.const 0) (local.get $at))
                (i32.store (i32.const 4) (local.get $length))
                (if (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))
                    (then unreachable)))
            {body})"#
    );
    wat::parse_str(text).unwrap()
}

/// Fuel that such a module, with its one page of memory, uses before its first
/// instruction.
pub(crate) fn ready(module: &[u8]) -> u64 {
    let functions = wasmparser::Parser::new(0)
        .parse_all(module)
        .filter(|part| matches!(part, Ok(wasmparser::Payload::CodeSectionEntry(_))))
        .count();
    1000 * module.len() as u64 + 50_000 * functions as u64 + 8192
}

pub(crate) fn request(bench: &mut Bench, command: &Command, inputs: &[&[u8]]) -> ExecutionRequest {
    let any = crate::support::noop();
    let request = bench.request(1, &any);
    ExecutionRequest {
        runtime: Runtime::WASM,
        spec: Template::single(command.clone()).into(),
        inputs: inputs.iter().map(|bytes| file_with(bytes)).collect(),
        fuel_max: u64::MAX,
        ..request
    }
}

pub(crate) async fn run(bench: &mut Bench, command: &Command, inputs: &[&[u8]]) -> End {
    let request = request(bench, command, inputs);
    bench.run(request).await
}

/// An output's bytes, by its place.
pub(crate) fn output(end: &End, place: usize) -> Vec<u8> {
    let (outputs, _) = end.result.as_ref().unwrap();
    let bytes = outputs[place].content.read().unwrap().into_owned();
    assert_eq!(*blake3::hash(&bytes).as_bytes(), outputs[place].hash);
    assert_eq!(bytes.len() as u64, outputs[place].bytes);
    bytes
}

#[tokio::test]
async fn a_command_reads_its_world_and_writes_its_outputs() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // Copies stdin and /in/a/b to /out/both, and its arguments to stdout.
    let module = wat(r#"
        (data (i32.const 100) "in/a/bout/both")
        (func $copy (param $from i32) (param $to i32)
            (local $count i32)
            (loop $again
                (i32.store (i32.const 0) (i32.const 1024))
                (i32.store (i32.const 4) (i32.const 4))
                (if (call $fd_read (local.get $from) (i32.const 0) (i32.const 1) (i32.const 8))
                    (then unreachable))
                (local.set $count (i32.load (i32.const 8)))
                (if (local.get $count) (then
                    (call $say (local.get $to) (i32.const 1024) (local.get $count))
                    (br $again)))))
        (func $open (param $at i32) (param $length i32) (param $how i32) (param $rights i64) (result i32)
            (if (call $path_open (i32.const 3) (i32.const 0) (local.get $at) (local.get $length)
                    (local.get $how) (local.get $rights) (i64.const 0) (i32.const 0) (i32.const 8))
                (then unreachable))
            (i32.load (i32.const 8)))
        (func (export "_start")
            (local $out i32)
            (local.set $out (call $open (i32.const 106) (i32.const 8) (i32.const 1) (i64.const 64)))
            (call $copy (i32.const 0) (local.get $out))
            (call $copy (call $open (i32.const 100) (i32.const 6) (i32.const 0) (i64.const 2)) (local.get $out))
            (drop (call $args (i32.const 2000) (i32.const 2100)))
            (call $say (i32.const 1) (i32.const 2100) (i32.const 13)))
    "#);
    let mut command = command();
    command.stdin = Some(1);
    command.files = vec![InFile {
        path: Utf8::cut("a/b"),
        input: 2,
    }]
    .try_into()
    .unwrap();
    command.outputs = vec![OutFile {
        name: Utf8::cut("both"),
        bytes_max: 100,
    }]
    .try_into()
    .unwrap();
    let end = run(&mut bench, &command, &[&module, b"0123456789", b"abcdefg"]).await;
    assert_eq!(output(&end, 0), b"test\0one two\0");
    assert_eq!(output(&end, 1), b"");
    assert_eq!(output(&end, 2), b"0123456789abcdefg");
}

#[tokio::test]
async fn large_outputs_come_in_files() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let module = wat(r#"
        (func (export "_start")
            (drop (memory.grow (i32.const 2)))
            (memory.fill (i32.const 65536) (i32.const 0x61) (i32.const 60000))
            (call $say (i32.const 1) (i32.const 65536) (i32.const 60000))
            (call $say (i32.const 2) (i32.const 65536) (i32.const 10)))
    "#);
    let end = run(&mut bench, &command(), &[&module]).await;
    assert_eq!(output(&end, 0), [0x61; 60_000]);
    assert_eq!(output(&end, 1), [0x61; 10]);
    let (outputs, _) = end.result.as_ref().unwrap();
    assert!(matches!(outputs[0].content, OutputContent::File(_)));
    assert!(matches!(outputs[1].content, OutputContent::Memory(_)));
}

#[tokio::test]
async fn clocks_and_chance_follow_from_the_job_and_sleeping_takes_no_time() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // Wall clock, 8 random bytes, an hour's sleep, wall clock again.
    let module = wat(r#"
        (func (export "_start")
            (drop (call $clock (i32.const 0) (i64.const 0) (i32.const 1000)))
            (drop (call $random (i32.const 1008) (i32.const 8)))
            (i64.store (i32.const 2024) (i64.const 3600000000000))
            (drop (call $poll (i32.const 2000) (i32.const 3000) (i32.const 1) (i32.const 8)))
            (drop (call $clock (i32.const 0) (i64.const 0) (i32.const 1016)))
            (call $say (i32.const 1) (i32.const 1000) (i32.const 24)))
    "#);
    let mut seen = Vec::new();
    for seed in [7, 7, 8] {
        let mut command = command();
        command.seed = seed;
        let end = run(&mut bench, &command, &[&module]).await;
        let (_, usage) = end.result.as_ref().unwrap();
        seen.push((output(&end, 0), usage.fuel));
    }
    assert_eq!(seen[0], seen[1]);
    assert_ne!(seen[0].0[8..16], seen[2].0[8..16]);
    let word = |n: usize| {
        let bytes = seen[0].0[n * 8..].first_chunk().copied().unwrap();
        u64::from_le_bytes(bytes)
    };
    let (before, after) = (word(0), word(2));
    assert!(
        (1_000_000_000_000..1_000_000_001_000).contains(&before),
        "{before}"
    );
    assert!((after - before - 3_600_000_000_000) < 1000, "{after}");
}

#[tokio::test]
async fn the_same_command_uses_the_same_fuel_everywhere() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let module = wat(r#"
        (func (export "_start")
            (local $n i32)
            (loop $again
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $n) (i32.const 1000)))))
    "#);
    for fresh in [false, true, false] {
        let mut request = request(&mut bench, &command(), &[&module]);
        request.fresh = fresh;
        let end = bench.run(request).await;
        let (_, usage) = end.result.unwrap();
        // Eight operations a round, and one for the call, whether the module was
        // compiled before or not. Another figure is another version of the
        // runtime, in offers and in docs/job-spec.md.
        assert_eq!(usage.fuel, ready(&module) + 8001);
        assert_eq!(usage.gpu_us, 0);
    }
}

#[tokio::test]
async fn one_instance_sees_nothing_of_the_one_before() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // Says what memory, a global and /tmp hold, and then changes all three.
    let module = wat(r#"
        (global $g (mut i32) (i32.const 0))
        (data (i32.const 100) "tmp/x")
        (func (export "_start")
            (i32.store (i32.const 1000) (i32.load (i32.const 5000)))
            (i32.store (i32.const 1004) (global.get $g))
            (i32.store (i32.const 1008)
                (call $path_open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 5)
                    (i32.const 5) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 8)))
            (call $say (i32.const 1) (i32.const 1000) (i32.const 12))
            (i32.store (i32.const 5000) (i32.const 1))
            (global.set $g (i32.const 1)))
    "#);
    let first = run(&mut bench, &command(), &[&module]).await;
    let second = run(&mut bench, &command(), &[&module]).await;
    assert_eq!(output(&first, 0), [0; 12]);
    assert_eq!((output(&second, 0), second.pid), (vec![0; 12], first.pid));
}

#[tokio::test]
async fn standard_error_goes_to_the_log_line_by_line() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let module = wat(r#"
        (data (i32.const 100) "first\nsecond\nno end")
        (func (export "_start")
            (call $say (i32.const 2) (i32.const 100) (i32.const 3))
            (call $say (i32.const 2) (i32.const 103) (i32.const 16)))
    "#);
    let request = request(&mut bench, &command(), &[&module]);
    bench.executor.run(request).unwrap();
    let mut lines = Vec::new();
    loop {
        match bench.next().await {
            ExecutionEvent::Log { line, .. } => lines.push(line),
            ExecutionEvent::Finished { .. } => break,
            ExecutionEvent::Failed { detail, .. } => panic!("{detail}"),
            ExecutionEvent::Started { .. }
            | ExecutionEvent::Progress { .. }
            | ExecutionEvent::Checkpoint { .. } => {}
        }
    }
    assert_eq!(lines, ["first", "second", "no end"]);
}

#[tokio::test]
async fn a_running_command_can_be_cancelled_and_says_how_far_it_is() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let module = wat(r#"(func (export "_start") (loop $again (br $again)))"#);
    let mut command = command();
    command.fuel_max = u64::MAX / 2;
    let request = request(&mut bench, &command, &[&module]);
    let id = request.id;
    bench.executor.run(request).unwrap();
    bench.progressed(id).await;
    bench.executor.cancel(id).unwrap();
    let end = loop {
        if let ExecutionEvent::Failed { failure, usage, .. } = bench.next().await {
            break (failure, usage);
        }
    };
    assert_eq!(end.0, Failure::Cancelled);
    assert!(end.1.fuel > 0);
}

#[tokio::test]
async fn a_client_checks_a_module_without_running_it() {
    let good = wat(r#"(func (export "_start"))"#);
    let library = wat(r#"(func (export "not_start"))"#);
    let check = async |module: &[u8]| {
        let input = InputFile {
            path: "module".into(),
            offset: 0,
            length: module.len() as u64,
            made: Some(module.into()),
        };
        program().check(&command().into(), &[input]).await
    };
    check(&good).await.unwrap();
    let said = check(&library).await.unwrap_err().to_string();
    assert!(said.contains("_start"), "{said}");
    let said = check(b"int main() { return 0; }")
        .await
        .unwrap_err()
        .to_string();
    assert!(said.contains("no WebAssembly module"), "{said}");
    let said = check(&good[..good.len() - 3])
        .await
        .unwrap_err()
        .to_string();
    assert!(said.contains("malformed"), "{said}");
}
