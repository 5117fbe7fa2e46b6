//! What a unit of fuel costs the host, call by call, at each call's worst
//! arguments: a table for people, who compare it with plain instructions.
//!
//! ```text
//! cargo test --release -p suanli-executor --test wasm prices_of -- --ignored --nocapture
//! ```
//!
//! Nothing is asserted of times.

use suanli_executor::{
    ExecutorConfig,
    command::{Command, InFile, Variable},
};
use suanli_protocol::wire::Utf8;

use crate::{
    commands::{command, request, wat_with},
    support::bench,
};

/// What is done once, and what is done again and again.
struct Case {
    name: &'static str,
    before: &'static str,
    body: &'static str,
}

const fn case(name: &'static str, before: &'static str, body: &'static str) -> Case {
    Case { name, before, body }
}

/// 1024 buffers of so many bytes at 20000.
const EMPTY: &str = "(call $vectors (i32.const 0))";
const SINGLE: &str = "(call $vectors (i32.const 1))";
/// Opens a file for writing, as $fd.
const FILE: &str =
    "(global.set $fd (call $open (i32.const 100) (i32.const 5) (i32.const 1) (i64.const 64)))";

const CASES: &[Case] = &[
    case("add", "", "(global.set $n (i64.add (global.get $n) (i64.const 3)))"),
    case(
        "divide",
        "",
        "(global.set $n (i64.add (i64.const 1) (i64.div_u (i64.const -1) (i64.add (global.get $n) (i64.const 3)))))",
    ),
    case(
        "load, far apart",
        "(drop (memory.grow (i32.const 4096)))
         (loop $touch
            (i32.store8 (local.get $at) (i32.const 1))
            (local.set $at (i32.add (local.get $at) (i32.const 4096)))
            (br_if $touch (i32.lt_u (local.get $at) (i32.const 0x10000000))))",
        "(global.set $n (i64.add (i64.mul (global.get $n) (i64.const 6364136223846793005)) (i64.load
            (i32.and (i32.wrap_i64 (i64.shr_u (global.get $n) (i64.const 30))) (i32.const 0xffffff8)))))
         (global.set $n (i64.add (global.get $n) (i64.const 1442695040888963407)))",
    ),
    case(
        "memory.grow and touch",
        "",
        "(if (i32.eq (local.tee $at (memory.grow (i32.const 1))) (i32.const -1)) (then (return)))
         (local.set $at (i32.shl (local.get $at) (i32.const 16)))
         (loop $touch
            (i32.store8 (local.get $at) (i32.const 1))
            (local.set $at (i32.add (local.get $at) (i32.const 4096)))
            (br_if $touch (i32.and (local.get $at) (i32.const 0xffff))))",
    ),
    case(
        "memory.grow, refused",
        "(drop (memory.grow (i32.const 16383)))",
        "(drop (memory.grow (i32.const 1)))",
    ),
    case(
        "table.grow, refused",
        "(drop (table.grow (ref.null func) (i32.const 1048575)))",
        "(drop (table.grow (ref.null func) (i32.const 1)))",
    ),
    case("sched_yield", "", "(drop (call $sched_yield))"),
    case("clock_time_get", "", "(drop (call $clock (i32.const 0) (i64.const 0) (i32.const 8)))"),
    case("args_get", "", "(drop (call $args (i32.const 1000) (i32.const 4000)))"),
    case("environ_get", "", "(drop (call $environ_get (i32.const 1000) (i32.const 4000)))"),
    case("args_sizes_get", "", "(drop (call $args_sizes_get (i32.const 1000) (i32.const 4000)))"),
    case("random_get, a byte", "", "(drop (call $random (i32.const 1000) (i32.const 1)))"),
    case("random_get, 32 KiB", "", "(drop (call $random (i32.const 1000) (i32.const 32768)))"),
    case("fd_read, no buffer", "", "(drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 8)))"),
    case("fd_read, empty", EMPTY, "(drop (call $fd_read (i32.const 0) (i32.const 20000) (i32.const 1024) (i32.const 8)))"),
    case(
        "fd_pread, an input, single bytes",
        SINGLE,
        "(drop (call $fd_pread (i32.const 0) (i32.const 20000) (i32.const 1024) (i64.const 0) (i32.const 8)))",
    ),
    case(
        "fd_write, single bytes",
        "(global.set $fd (call $open (i32.const 100) (i32.const 5) (i32.const 1) (i64.const 64)))
         (call $vectors (i32.const 1))",
        "(drop (call $fd_pwrite (global.get $fd) (i32.const 20000) (i32.const 1024) (i64.const 0) (i32.const 8)))",
    ),
    case(
        "grow and cut a file",
        FILE,
        "(drop (call $fd_filestat_set_size (global.get $fd) (i64.const 1000000)))
         (drop (call $fd_filestat_set_size (global.get $fd) (i64.const 0)))",
    ),
    case("fd_write, lines of errors", "(call $vectors (i32.const 0))
        (i32.store16 (i32.const 1000) (i32.const 0x0a78))
        (i32.store (i32.const 20000) (i32.const 1000)) (i32.store (i32.const 20004) (i32.const 2))",
        "(drop (call $fd_write (i32.const 2) (i32.const 20000) (i32.const 1) (i32.const 8)))"),
    case("poll_oneoff", "", "(drop (call $poll (i32.const 1000) (i32.const 1000) (i32.const 1024) (i32.const 8)))"),
    case("fd_seek", "", "(drop (call $fd_seek (i32.const 0) (i64.const 1) (i32.const 0) (i32.const 8)))"),
    case("fd_renumber", "", "(drop (call $fd_renumber (i32.const 0) (i32.const 0)))"),
    case(
        "path_filestat_get, long",
        "",
        "(drop (call $path_filestat_get (i32.const 3) (i32.const 0) (i32.const 2000) (i32.const 512) (i32.const 1000)))",
    ),
    case(
        "open, among 4000 files",
        "(call $fill (i32.const 4000))",
        "(drop (call $fd_close (call $open (i32.const 100) (i32.const 9) (i32.const 0) (i64.const 0))))",
    ),
    case(
        "open, the 250th",
        "(local.set $at (i32.const 240))
         (loop $more (drop (call $open (i32.const 100) (i32.const 3) (i32.const 0) (i64.const 0)))
            (br_if $more (local.tee $at (i32.sub (local.get $at) (i32.const 1)))))",
        "(drop (call $fd_close (call $open (i32.const 100) (i32.const 3) (i32.const 0) (i64.const 0))))",
    ),
    case(
        "make and unlink a file",
        "(call $fill (i32.const 4000))",
        "(drop (call $fd_close (call $open (i32.const 100) (i32.const 5) (i32.const 1) (i64.const 64))))
         (drop (call $path_unlink_file (i32.const 3) (i32.const 100) (i32.const 5)))",
    ),
    case(
        "path_rename, a deep folder",
        "(call $deep (i32.const 4000))",
        "(drop (call $path_rename (i32.const 3) (i32.const 100) (i32.const 5) (global.get $fd) (i32.const 105) (i32.const 1)))",
    ),
    case(
        "fd_readdir, 4000 entries",
        "(call $fill (i32.const 4000))
         (global.set $fd (call $open (i32.const 100) (i32.const 3) (i32.const 0) (i64.const 0)))",
        "(drop (call $fd_readdir (global.get $fd) (i32.const 1000) (i32.const 60000) (i64.const 0) (i32.const 8)))",
    ),
    case(
        "fd_readdir, one at the end",
        "(call $fill (i32.const 4000))
         (global.set $fd (call $open (i32.const 100) (i32.const 3) (i32.const 0) (i64.const 0)))",
        "(drop (call $fd_readdir (global.get $fd) (i32.const 1000) (i32.const 1) (i64.const 4000) (i32.const 8)))",
    ),
];

/// What the cases call.
const HELPERS: &str = r#"
    (table 1 funcref)
    (data (i32.const 100) "tmp/x")
    (global $fd (mut i32) (i32.const 0))
    (global $n (mut i64) (i64.const 1))
    (func $open (param $at i32) (param $length i32) (param $how i32) (param $rights i64) (result i32)
        (if (call $path_open (i32.const 3) (i32.const 0) (local.get $at) (local.get $length)
                (local.get $how) (local.get $rights) (i64.const 0) (i32.const 0) (i32.const 8))
            (then unreachable))
        (i32.load (i32.const 8)))
    (func $vectors (param $length i32) (local $n i32)
        (loop $again
            (i32.store (i32.add (i32.const 20000) (local.get $n)) (i32.const 1000))
            (i32.store (i32.add (i32.const 20004) (local.get $n)) (local.get $length))
            (local.set $n (i32.add (local.get $n) (i32.const 8)))
            (br_if $again (i32.lt_u (local.get $n) (i32.const 8192)))))
    ;; so many files in tmp, the last of which is at 100
    (func $fill (param $count i32)
        (i32.store8 (i32.const 104) (i32.const 0x66))
        (loop $again
            (i32.store8 (i32.const 105) (i32.add (i32.const 0x61) (i32.and (local.get $count) (i32.const 15))))
            (i32.store8 (i32.const 106) (i32.add (i32.const 0x61) (i32.and (i32.shr_u (local.get $count) (i32.const 4)) (i32.const 15))))
            (i32.store8 (i32.const 107) (i32.add (i32.const 0x61) (i32.and (i32.shr_u (local.get $count) (i32.const 8)) (i32.const 15))))
            (i32.store8 (i32.const 108) (i32.const 0x7a))
            (drop (call $fd_close (call $open (i32.const 100) (i32.const 9) (i32.const 1) (i64.const 64))))
            (br_if $again (local.tee $count (i32.sub (local.get $count) (i32.const 1))))))
    ;; folders in one another, below tmp/x; the innermost is $fd
    (func $deep (param $count i32) (local $at i32)
        (i32.store8 (i32.const 105) (i32.const 0x78))
        (drop (call $path_create_directory (i32.const 3) (i32.const 100) (i32.const 5)))
        (global.set $fd (call $open (i32.const 100) (i32.const 5) (i32.const 0) (i64.const 0)))
        (loop $again
            (drop (call $path_create_directory (global.get $fd) (i32.const 105) (i32.const 1)))
            (if (call $path_open (global.get $fd) (i32.const 0) (i32.const 105) (i32.const 1)
                    (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 8))
                (then unreachable))
            (drop (call $fd_close (global.get $fd)))
            (global.set $fd (i32.load (i32.const 8)))
            (br_if $again (local.tee $count (i32.sub (local.get $count) (i32.const 1))))))
"#;

fn module(case: &Case) -> Vec<u8> {
    let imports = [
        ("sched_yield", ""),
        ("environ_get", "i32 i32"),
        ("args_sizes_get", "i32 i32"),
        ("fd_pread", "i32 i32 i32 i64 i32"),
        ("fd_pwrite", "i32 i32 i32 i64 i32"),
        ("fd_filestat_set_size", "i32 i64"),
        ("fd_seek", "i32 i64 i32 i32"),
        ("fd_renumber", "i32 i32"),
        ("fd_close", "i32"),
        ("fd_readdir", "i32 i32 i32 i64 i32"),
        ("path_filestat_get", "i32 i32 i32 i32 i32"),
        ("path_create_directory", "i32 i32 i32"),
        ("path_unlink_file", "i32 i32 i32"),
        ("path_rename", "i32 i32 i32 i32 i32 i32"),
    ]
    .map(|(name, takes)| {
        format!(
            r#"(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {takes}) (result i32)))"#
        )
    });
    wat_with(
        &imports.concat(),
        &format!(
            r#"
            {HELPERS}
            (data (i32.const 2000) "{}.")
            (func (export "_start") (local $at i32)
                {}
                (loop $again {} (br $again)))"#,
            "tmp/../".repeat(73),
            case.before,
            case.body
        ),
    )
}

fn measured() -> Command {
    let mut command = command();
    command.arguments = vec![Utf8::cut(""); 256].try_into().unwrap();
    command.variables = vec![
        Variable {
            name: Utf8::cut("n"),
            value: Utf8::cut(""),
        };
        64
    ]
    .try_into()
    .unwrap();
    command.stdin = Some(1);
    command.files = vec![InFile {
        path: Utf8::cut("a"),
        input: 1,
    }]
    .try_into()
    .unwrap();
    command.memory_max = 1 << 30;
    command.stderr_max = 1 << 20;
    command.fuel_max = 120_000_000;
    command
}

#[tokio::test]
#[ignore = "prints a table, and takes a minute"]
async fn prices_of_calls() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let input = vec![7; 4096];
    println!("{:36} {:>12} {:>10} {:>8}", "", "fuel", "ms", "ns/unit");
    for case in CASES {
        let module = module(case);
        let mut taken = Vec::new();
        // What it takes less what a twelfth of it takes: without the start.
        for parts in [12, 1] {
            let mut command = measured();
            command.fuel_max /= parts;
            let mut request = request(&mut bench, &command, &[&module, &input]);
            request.memory_max = 4 << 30;
            let end = bench.run(request).await;
            if let Err((failure, detail)) = &end.result
                && *failure != suanli_executor::Failure::OutOfFuel
            {
                panic!("{}: {failure}: {detail}", case.name);
            }
            taken.push((end.usage.fuel, end.usage.cpu_us));
        }
        let (fuel, cpu_us) = match taken[..] {
            [short, long] if long.0 > 2 * short.0 => {
                (long.0 - short.0, long.1.saturating_sub(short.1))
            }
            _ => taken[1],
        };
        show(case.name, fuel, cpu_us);
    }
}

fn show(name: &str, fuel: u64, cpu_us: u64) {
    let per_unit = cpu_us as f64 * 1000.0 / fuel as f64;
    let ms = cpu_us as f64 / 1000.0;
    println!("{name:36} {fuel:>12} {ms:>10.1} {per_unit:>8.2}");
}

/// What a compiler does for long: much arithmetic over memory in few functions, or
/// very many of them.
#[tokio::test]
#[ignore = "prints a table"]
async fn prices_of_modules() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let step = "(local.set 0 (i64.mul (i64.add (local.get 0) (local.get 1)) (i64.load (i32.wrap_i64 (local.get 1)))))";
    let branch = format!("(if (i64.eqz (local.get 0)) (then {step}))");
    for (name, functions, body) in [
        ("module, one large function", 1, step.repeat(16_000)),
        ("module, functions", 500, step.repeat(30)),
        ("module, branches", 100, branch.repeat(100)),
        ("module, empty functions", 1000, String::new()),
    ] {
        let functions = format!("(func (local i64 i64) {body})").repeat(functions);
        let module = wat_with("", &format!(r#"{functions} (func (export "_start"))"#));
        let mut command = measured();
        command.fuel_max = 1 << 40;
        let request = request(&mut bench, &command, &[&module, &[]]);
        let end = bench.run(request).await;
        assert!(end.result.is_ok(), "{name}: {:?}", end.result);
        show(name, end.usage.fuel, end.usage.cpu_us);
    }
}
