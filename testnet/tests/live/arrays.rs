//! Jobs of many units, from the job file to the files that they write.

use std::{fs, path::PathBuf};

use serde_json::Value;
use suanli_node::api::types::{JobInfo, UnitInfo};

use crate::network::{CLIENT, Network, said};

/// Says its first argument and, if that begins with an `x`, fails.
const SAY: &str = r#"
(module
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $args (i32.const 256) (i32.const 1024)))
    (i32.store (i32.const 0) (i32.load (i32.const 260)))
    (i32.store (i32.const 4)
      (i32.sub (i32.sub (i32.load (i32.const 264)) (i32.load (i32.const 260))) (i32.const 1)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 128)))
    (if (i32.eq (i32.load8_u (i32.load (i32.const 260))) (i32.const 120))
      (then (call $exit (i32.const 1))))))
"#;

/// Says its standard input.
const ECHO: &str = r#"
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const 4096))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 4)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 128)))))
"#;

/// What a wasm job has before its array.
fn wasm_job(network: &Network, wat: &str, rest: &str) -> PathBuf {
    fs::write(network.dir.path().join("job.wat"), wat).unwrap();
    let head = "name = \"array\"\nruntime = \"wasm\"\n[limits]\nrun = \"10s\"\nmemory = \"1MiB\"\n\
                fuel = 10_000_000\n[market]\nmax_price = \"10\"\n";
    let file = network.dir.path().join("job.toml");
    fs::write(&file, format!("{head}{rest}")).unwrap();
    file
}

fn run(network: &Network, file: &std::path::Path, exit: i32) -> String {
    let out = network.dir.path().join("out");
    let arguments = ["run", file.to_str().unwrap(), "-y", "--out"];
    let arguments = [&arguments[..], &[out.to_str().unwrap()]].concat();
    said(&network.suanli(CLIENT, &arguments), exit)
}

fn written(network: &Network, name: &str) -> String {
    let file = network.dir.path().join("out").join(name);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

#[test]
fn live_units_of_an_array_have_arguments_of_their_own() {
    let network = Network::start(&["provider"]);
    let file = wasm_job(
        &network,
        SAY,
        r#"
[array]
list = [{ word = "red", n = 7 }, { word = "green", n = 8 }, { word = "blue", n = 9 }]
[wasm]
module = "job.wat"
args = ["{item.word} {unit} {{{item.n}}}", "end"]
stdout = { file = "said/{item.word}.txt" }
"#,
    );
    let dry = network.suanli(CLIENT, &["run", file.to_str().unwrap(), "--dry-run"]);
    let dry = said(&dry, 0);
    assert!(dry.contains("3 units, in 64 agreements"), "{dry}");
    assert!(dry.contains("unit 2: item = n = 9, word = blue"), "{dry}");
    assert!(dry.contains("argument 1 = red 0 {7}"), "{dry}");

    let words = run(&network, &file, 0);
    assert!(words.contains("3 of 3 units"), "{words}");
    assert_eq!(written(&network, "said/red.txt"), "red 0 {7}");
    assert_eq!(written(&network, "said/green.txt"), "green 1 {8}");
    assert_eq!(written(&network, "said/blue.txt"), "blue 2 {9}");

    let client = network.api(CLIENT);
    let jobs: Vec<JobInfo> = client.get("/v1/jobs").unwrap();
    let units = jobs[0].units.unwrap();
    assert_eq!((units.total, units.done, units.failed), (3, 3, 0));
    let page = format!("/v1/jobs/{:#}/units?from=1&limit=1", jobs[0].job);
    let page: Vec<UnitInfo> = client.get(&page).unwrap();
    assert_eq!((page.len(), page[0].unit, &*page[0].state), (1, 1, "done"));
    let id = format!("{:#}", jobs[0].job);
    let fetched = network.dir.path().join("fetched");
    let arguments = ["job", "fetch", &id, "--out", fetched.to_str().unwrap()];
    let words = said(&network.suanli(CLIENT, &arguments), 0);
    assert!(words.contains("of 3 of 3 units"), "{words}");
    let green = fs::read_to_string(fetched.join("1/stdout")).unwrap();
    assert_eq!(green, "green 1 {8}");
}

#[test]
fn live_units_of_an_array_have_constants_and_words_of_their_own() {
    let network = Network::start(&["provider"]);
    let job = r#"
name = "array"
runtime = "wgsl"
[limits]
run = "60s"
[market]
max_price = "10"
[array]
list = [0.5, 1.5, 2.5, 10]
[wgsl]
source = "job.wgsl"
[[wgsl.buffer]]
name = "words"
f32 = ["{unit}", "{item}"]
[[wgsl.buffer]]
name = "numbers"
u32 = [3, "{unit}"]
[[wgsl.buffer]]
name = "out"
size = 16
[[wgsl.pass]]
entry = "main"
bind = ["words", "numbers", "out"]
workgroups = [1]
constants = { FIRST = "{unit}", SCALE = "{item}" }
[[wgsl.output]]
buffer = "out"
file = "{unit}.u32"
show = { label = "ones", type = "u32", of = 3 }
"#;
    let source = "
override FIRST: u32;
override SCALE: f32;
@group(0) @binding(0) var<storage, read> words: array<f32>;
@group(0) @binding(1) var<storage, read> numbers: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(1)
fn main() {
    out[0] = FIRST;
    out[1] = u32(words[0]) * 100u + u32(words[1] * 2.0);
    out[2] = numbers[0] * 100u + numbers[1];
    out[3] = u32(SCALE * 2.0);
}
";
    let words = run(&network, &network.job(job, source), 0);
    assert!(words.contains("ones  0.5000 (6 of 12)"), "{words}");
    for (unit, twice) in [(0, 1), (1, 3), (2, 5), (3, 20)] {
        let bytes = fs::read(network.dir.path().join(format!("out/{unit}.u32"))).unwrap();
        let (values, _) = bytes.as_chunks::<4>();
        let values: Vec<u32> = values
            .iter()
            .map(|value| u32::from_le_bytes(*value))
            .collect();
        assert_eq!(values, [unit, unit * 100 + twice, 300 + unit, twice]);
    }
}

#[test]
fn live_units_of_an_array_have_files_of_their_own() {
    let network = Network::start(&["provider"]);
    fs::create_dir(network.dir.path().join("data")).unwrap();
    for name in ["b", "a", "c"] {
        let text = format!("text of {name}").repeat(if name == "c" { 3 } else { 1 });
        fs::write(network.dir.path().join(format!("data/{name}.txt")), text).unwrap();
    }
    let file = wasm_job(
        &network,
        ECHO,
        r#"
[array]
files = "data/*.txt"
[wasm]
module = "job.wat"
stdin = "{item}"
stdout = { file = "copy-of-{item}" }
"#,
    );
    let words = run(&network, &file, 0);
    assert!(words.contains("3 of 3 units"), "{words}");
    assert_eq!(written(&network, "copy-of-a.txt"), "text of a");
    assert_eq!(
        written(&network, "copy-of-c.txt"),
        "text of ctext of ctext of c"
    );
}

#[test]
fn live_results_of_an_array_that_fails_are_kept_and_the_missing_named() {
    let network = Network::start(&["provider"]);
    let file = wasm_job(
        &network,
        SAY,
        r#"
[array]
list = ["a", "b", "x", "d"]
[wasm]
module = "job.wat"
args = ["{item}", "end"]
stdout = { file = "{unit}.txt" }
"#,
    );
    let words = run(&network, &file, 1);
    assert!(
        words.contains("units that failed: 2 (exit-code)"),
        "{words}"
    );
    assert_eq!(written(&network, "0.txt"), "a");
    assert_eq!(written(&network, "1.txt"), "b");
    let arguments = ["--json", "run", file.to_str().unwrap(), "-y", "--out"];
    let out = network.dir.path().join("out");
    let arguments = [&arguments[..], &[out.to_str().unwrap()]].concat();
    let output = network.suanli(CLIENT, &arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["job"]["failed"]["2"], "exit-code", "{text}");
}
