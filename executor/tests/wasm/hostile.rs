//! WebAssembly that means harm, each with what must be observed. Numbers are
//! those of the project's abuse list.

use std::time::Duration;

use suanli_executor::{ExecutorConfig, Failure};

use crate::{
    commands::{command, output, ready, request, run, wat},
    support::{Bench, bench, process_exists},
};

/// A module that says that it was here.
async fn next_is_served(bench: &mut Bench) {
    let module = wat(r#"
        (data (i32.const 100) "here")
        (func (export "_start") (call $say (i32.const 1) (i32.const 100) (i32.const 4)))
    "#);
    let end = run(bench, &command(), &[&module]).await;
    assert_eq!(output(&end, 0), b"here");
}

async fn ends_as(name: &str, body: &str, wanted: Failure, says: &str) {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let end = run(&mut bench, &command(), &[&wat(body)]).await;
    println!("{name}: {}: {}", end.failure(), end.detail());
    assert_eq!(end.failure(), &wanted, "{name}: {}", end.detail());
    assert!(end.detail().contains(says), "{name}: {}", end.detail());
    assert!(!process_exists(end.pid.unwrap()));
    next_is_served(&mut bench).await;
}

#[tokio::test]
async fn abuse_31_an_infinite_loop_is_ended_at_its_deadline() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let module = wat(r#"(func (export "_start") (loop $again (br $again)))"#);
    let mut command = command();
    command.fuel_max = u64::MAX / 2;
    let mut request = request(&mut bench, &command, &[&module]);
    request.run_limit = Duration::from_millis(300);
    let end = bench.run(request).await;
    assert_eq!(
        end.failure(),
        &Failure::DeadlineExceeded,
        "{}",
        end.detail()
    );
    assert!(!process_exists(end.pid.unwrap()));
    next_is_served(&mut bench).await;
}

#[tokio::test]
async fn abuse_31_an_infinite_loop_runs_out_of_fuel() {
    let body = r#"(func (export "_start") (loop $again (br $again)))"#;
    ends_as("loop", body, Failure::OutOfFuel, "1000000000 units").await;
}

#[tokio::test]
async fn abuse_32_growing_without_end_stops_at_the_cap() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // Grows by a page until it can't, touches each, and says how many it got.
    let module = wat(r#"
        (func (export "_start")
            (loop $again
                (if (i32.ne (memory.grow (i32.const 1)) (i32.const -1)) (then
                    (memory.fill
                        (i32.mul (i32.sub (memory.size) (i32.const 1)) (i32.const 65536))
                        (i32.const 1) (i32.const 65536))
                    (br $again))))
            (i32.store (i32.const 100) (memory.size))
            (call $say (i32.const 1) (i32.const 100) (i32.const 4)))
    "#);
    let end = run(&mut bench, &command(), &[&module]).await;
    assert_eq!(output(&end, 0), 256_u32.to_le_bytes(), "16 MiB in pages");
    let first = wat(r#"(func (export "_start"))"#);
    let mut small = command();
    small.memory_max = 1000;
    let end = run(&mut bench, &small, &[&first]).await;
    assert!(
        matches!(end.failure(), Failure::TooLarge { asked: 65536, .. }),
        "{}",
        end.detail()
    );
    next_is_served(&mut bench).await;
}

#[tokio::test]
async fn abuse_32_files_and_memory_share_one_cap() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // Fills /tmp until there is no space, then asks for a megabyte of memory.
    let module = wat(r#"
        (data (i32.const 100) "tmp/x")
        (func (export "_start")
            (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 5)
                (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 8)))
            (local.set 0 (i32.load (i32.const 8)))
            (i32.store (i32.const 0) (i32.const 0))
            (i32.store (i32.const 4) (i32.const 65536))
            (loop $again
                (local.set 1 (call $fd_write (local.get 0) (i32.const 0) (i32.const 1) (i32.const 8)))
                (i32.store (i32.const 0) (i32.const 0))
                (i32.store (i32.const 4) (i32.const 65536))
                (br_if $again (i32.eqz (local.get 1))))
            (i32.store (i32.const 200) (local.get 1))
            (i32.store (i32.const 204) (memory.grow (i32.const 16)))
            (call $say (i32.const 1) (i32.const 200) (i32.const 8)))
    "#.replacen("(func (export \"_start\")", "(func (export \"_start\") (local i32 i32)", 1).as_str());
    let end = run(&mut bench, &command(), &[&module]).await;
    let no_space = 51_u32.to_le_bytes();
    assert_eq!(output(&end, 0), [no_space, [0xff; 4]].concat());
}

#[tokio::test]
async fn abuse_32_tables_and_stacks_are_bounded() {
    let grows = r#"
        (table $t 1 funcref)
        (func (export "_start")
            (if (i32.eq (table.grow $t (ref.null func) (i32.const 100000000)) (i32.const -1))
                (then (call $exit (i32.const 3)))))
    "#;
    ends_as("table", grows, Failure::Exited { code: 3 }, "exit code 3").await;
    let together = r#"
        (table $a 1 funcref)
        (table $b 1 funcref)
        (func (export "_start")
            (if (i32.eq (table.grow $a (ref.null func) (i32.const 600000)) (i32.const -1))
                (then unreachable))
            (if (i32.eq (table.grow $b (ref.null func) (i32.const 600000)) (i32.const -1))
                (then (call $exit (i32.const 4)))))
    "#;
    ends_as(
        "tables",
        together,
        Failure::Exited { code: 4 },
        "exit code 4",
    )
    .await;
    let deep = r#"
        (func $f (param i64) (result i64) (i64.add (i64.const 1) (call $f (local.get 0))))
        (func (export "_start") (drop (call $f (i64.const 0))))
    "#;
    ends_as("stack", deep, Failure::Trapped, "stack exhausted").await;
}

#[tokio::test]
async fn abuse_33_a_compile_bomb_is_refused_or_ended_and_others_are_served() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // One function of over a megabyte.
    let large = format!(
        r#"(func (export "_start") (local i64) {})"#,
        "(local.set 0 (i64.add (local.get 0) (i64.const 77777777777)))".repeat(100_000)
    );
    let mut rich = command();
    rich.fuel_max = 100_000_000_000;
    let end = run(&mut bench, &rich, &[&wat(&large)]).await;
    assert_eq!(end.failure(), &Failure::InvalidModule);
    assert!(
        end.detail().contains("bytes in one function"),
        "{}",
        end.detail()
    );
    let many = "(func)".repeat(100_001);
    let end = run(&mut bench, &rich, &[&wat(&many)]).await;
    assert!(end.detail().contains("functions"), "{}", end.detail());
    // Allowed sizes that still compile for long: another tenant is served meanwhile.
    let body = "(local.set 0 (i64.mul (i64.add (local.get 0) (local.get 1)) (i64.load (i32.wrap_i64 (local.get 1)))))".repeat(30_000);
    let slow = wat(&format!(
        r#"{} (func (export "_start"))"#,
        format!("(func (local i64 i64) {body})").repeat(20)
    ));
    rich.fuel_max = ready(&slow) + 1000;
    let mut request = request(&mut bench, &rich, &[&slow]);
    request.run_limit = Duration::from_millis(200);
    let id = request.id;
    bench.executor.run(request).unwrap();
    let other = crate::support::noop();
    let served = bench.run_graph(9, &other).await;
    assert_eq!(served.words(), [7]);
    let _ = id;
}

#[tokio::test]
async fn abuse_34_imports_of_what_is_not_offered_are_refused() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    for (module, name) in [
        ("env", "system"),
        ("wasi_snapshot_preview1", "sock_connect"),
        ("wasi_snapshot_preview1", "path_exec"),
        ("wasi:http/outgoing-handler", "handle"),
        ("wasi_unstable", "fd_write"),
    ] {
        let code = wat::parse_str(format!(
            r#"(module (import "{module}" "{name}" (func)) (memory (export "memory") 1) (func (export "_start")))"#
        ));
        let end = run(&mut bench, &command(), &[&code.unwrap()]).await;
        assert_eq!(end.failure(), &Failure::InvalidModule);
        let said = format!("{module}.{name}");
        assert!(end.detail().contains(&said), "{}", end.detail());
    }
    next_is_served(&mut bench).await;
}

#[tokio::test]
async fn abuse_34_files_of_the_host_and_sockets_are_denied() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // Opens paths from every descriptor it could have, and says what it got.
    let module = wat(r#"
        (data (i32.const 100) "/etc/passwd")
        (data (i32.const 200) "../../../etc/passwd")
        (data (i32.const 300) "etc/passwd")
        (func $try (param $at i32) (param $length i32) (param $to i32)
            (i32.store (local.get $to)
                (call $path_open (i32.const 3) (i32.const 0) (local.get $at) (local.get $length)
                    (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8))))
        (func (export "_start")
            (call $try (i32.const 100) (i32.const 11) (i32.const 1000))
            (call $try (i32.const 200) (i32.const 19) (i32.const 1004))
            (call $try (i32.const 300) (i32.const 10) (i32.const 1008))
            (i32.store (i32.const 1012) (call $shutdown (i32.const 3) (i32.const 1)))
            (call $say (i32.const 1) (i32.const 1000) (i32.const 16)))
    "#);
    let end = run(&mut bench, &command(), &[&module]).await;
    let errors: Vec<u32> = output(&end, 0)
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| u32::from_le_bytes(*word))
        .collect();
    let (not_capable, not_found, not_socket) = (76, 44, 57);
    assert_eq!(errors, [not_capable, not_capable, not_found, not_socket]);
}

#[tokio::test]
async fn pointers_that_lead_out_of_memory_are_answered_not_followed() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let module = wat(r#"
        (func (export "_start")
            (i32.store (i32.const 100) (call $fd_write (i32.const 1) (i32.const -1) (i32.const 1) (i32.const 8)))
            (i32.store (i32.const 104) (call $random (i32.const 65530) (i32.const 100)))
            (i32.store (i32.const 108) (call $args (i32.const -4) (i32.const -4)))
            (i32.store (i32.const 0) (i32.const 65535))
            (i32.store (i32.const 4) (i32.const 2))
            (i32.store (i32.const 112) (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
            (i32.store (i32.const 116) (call $fd_write (i32.const 1) (i32.const 0) (i32.const -1) (i32.const 8)))
            (call $say (i32.const 1) (i32.const 100) (i32.const 20)))
    "#);
    let end = run(&mut bench, &command(), &[&module]).await;
    let fault = 21_u32.to_le_bytes();
    let wanted = [fault, fault, fault, fault, 28_u32.to_le_bytes()].concat();
    assert_eq!(output(&end, 0), wanted);
}

#[tokio::test]
async fn traps_and_exits_are_typed_as_what_they_are() {
    let unreachable = r#"(func $deep unreachable) (func (export "_start") (call $deep))"#;
    ends_as("unreachable", unreachable, Failure::Trapped, "in `deep`").await;
    let outside = r#"(func (export "_start") (drop (i32.load (i32.const 65536))))"#;
    ends_as("bounds", outside, Failure::Trapped, "out of bounds").await;
    let zero = r#"(func (export "_start") (drop (i32.div_u (i32.const 1) (i32.const 0))))"#;
    ends_as("division", zero, Failure::Trapped, "divide by zero").await;
    let speaks = r#"
        (data (i32.const 100) "no such sample")
        (func (export "_start")
            (call $say (i32.const 2) (i32.const 100) (i32.const 14))
            (call $exit (i32.const 42)))
    "#;
    ends_as("exit", speaks, Failure::Exited { code: 42 }, "exit code 42").await;
    let quiet = r#"(func (export "_start") (call $exit (i32.const 0)))"#;
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let end = run(&mut bench, &command(), &[&wat(quiet)]).await;
    assert_eq!(output(&end, 0), b"");
}

#[tokio::test]
async fn gigabytes_to_standard_output_end_the_program() {
    let floods = r#"
        (func (export "_start")
            (loop $again
                (call $say (i32.const 1) (i32.const 1024) (i32.const 4096))
                (br $again)))
    "#;
    ends_as(
        "stdout",
        floods,
        Failure::OutputTooLarge,
        "`stdout` is larger",
    )
    .await;
    let floods = floods.replace("$say (i32.const 1)", "$say (i32.const 2)");
    ends_as(
        "stderr",
        &floods,
        Failure::OutputTooLarge,
        "`stderr` is larger",
    )
    .await;
}
