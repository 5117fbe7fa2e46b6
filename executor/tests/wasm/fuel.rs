//! What programs pay, to the last unit: the schedule of `docs/job-spec.md`.

use suanli_executor::{ExecutorConfig, Failure};

use crate::{
    commands::{command, output, ready, request, run, wat, wat_with},
    support::{Bench, End, bench},
};

/// Fuel that a trap may leave uncounted.
const SLICE: u64 = 100_000;

/// Runs a module with so much fuel.
async fn run_with(bench: &mut Bench, module: &[u8], fuel_max: u64) -> End {
    let mut command = command();
    command.fuel_max = fuel_max;
    run(bench, &command, &[module]).await
}

#[tokio::test]
async fn a_module_is_paid_by_the_byte_before_it_is_compiled() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let module = wat(r#"(func (export "_start"))"#);
    // One for the call; none may be left over where the engine looks.
    let all = ready(&module) + 1;
    for fuel_max in [all + 1, 1, all - 2, all, all + 1] {
        let end = run_with(&mut bench, &module, fuel_max).await;
        assert_eq!(end.usage.fuel, all.min(fuel_max), "{:?}", end.result);
        if fuel_max > all {
            assert!(end.result.is_ok());
        } else {
            assert_eq!(end.failure(), &Failure::OutOfFuel);
        }
    }
    let invalid = wat(r#"(func (export "_stop"))"#);
    let end = run_with(&mut bench, &invalid, 1 << 30).await;
    assert_eq!(end.failure(), &Failure::InvalidModule);
    assert_eq!(end.usage.fuel, 1000 * invalid.len() as u64);
}

/// The job file of the example says it to people.
#[tokio::test]
async fn the_example_uses_what_it_says() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/sieve");
    let module = wat::parse_file(folder.join("sieve.wat")).unwrap();
    let end = run(&mut bench, &command(), &[&module]).await;
    assert!(end.result.is_ok(), "{:?}", end.result);
    let job = std::fs::read_to_string(folder.join("job.toml")).unwrap();
    let (_, said) = job.split_once("it uses ").unwrap();
    let (said, _) = said.split_once(';').unwrap();
    assert_eq!(said.replace(',', ""), end.usage.fuel.to_string());
}

#[tokio::test]
async fn what_an_instance_begins_with_is_paid() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let module = wat::parse_str(
        r#"(module
            (memory (export "memory") 3)
            (table 1000 funcref)
            (elem (i32.const 0) $start $start)
            (func $start (export "_start")))"#,
    )
    .unwrap();
    let end = run(&mut bench, &command(), &[&module]).await;
    let begins = 1000 * module.len() as u64 + 50_000 + 3 * 8192 + 1000 + 3;
    // The call, and what the engine counts for the segment.
    let own = end.usage.fuel - begins;
    assert!((1..10).contains(&own), "{own}");
}

#[tokio::test]
async fn memory_is_paid_by_the_page() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let mut used = Vec::new();
    for pages in [1, 3] {
        let module = wat(&format!(
            r#"(func (export "_start") (drop (memory.grow (i32.const {pages}))))"#
        ));
        let end = run(&mut bench, &command(), &[&module]).await;
        assert!(end.result.is_ok());
        used.push(end.usage.fuel - ready(&module));
        // What is owed at the end is asked for, too.
        let short = run_with(&mut bench, &module, end.usage.fuel - 1).await;
        assert_eq!(short.failure(), &Failure::OutOfFuel);
        assert_eq!(short.usage.fuel, end.usage.fuel - 1);
    }
    // The call, the constant, the instruction, and each page.
    assert_eq!(used, [2 + 255 + 8192, 2 + 255 + 3 * 8192]);
}

/// A trap counts up to the last call, return or full slice: the same whatever
/// fuel is left, and however the worker came to run it.
#[tokio::test]
async fn a_trap_costs_the_same_everywhere() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let program = |rounds: u64, end: &str| {
        wat(&format!(
            r#"(func (export "_start")
                (local $n i32)
                (loop $again
                    (local.set $n (i32.add (local.get $n) (i32.const 1)))
                    (br_if $again (i32.lt_u (local.get $n) (i32.const {rounds}))))
                {end})"#
        ))
    };
    let outside = "(drop (i32.load (i32.const 65533)))";
    let divides = "(drop (i32.div_u (i32.const 1) (i32.sub (local.get $n) (local.get $n))))";
    let clock = "(drop (call $clock (i32.const 0) (i64.const 0) (i32.const 8)))";
    let full = |rounds: u64| 1 + 8 * rounds;
    for (rounds, end, counted) in [
        // To the unit.
        (1000, "unreachable".to_owned(), full(1000)),
        (100_000, "unreachable".to_owned(), full(100_000)),
        (1000, format!("{clock} unreachable"), full(1000) + 112),
        // Up to the call.
        (1000, format!("{clock} {divides}"), full(1000) + 112),
        (100_000, format!("{clock} {divides}"), full(100_000) + 112),
        // Up to the slice.
        (1000, outside.to_owned(), 0),
        (100_000, divides.to_owned(), 700_001),
    ] {
        let module = program(rounds, &end);
        let begins = ready(&module);
        for (fuel_max, fresh) in [
            (1_000_000_000, false),
            (1_000_000_000, true),
            (begins + full(rounds) + 1000, false),
            (begins + full(rounds) + SLICE, true),
        ] {
            let mut command = command();
            command.fuel_max = fuel_max;
            let mut request = request(&mut bench, &command, &[&module]);
            request.fresh = fresh;
            let ended = bench.run(request).await;
            assert_eq!(ended.failure(), &Failure::Trapped, "{}", ended.detail());
            assert_eq!(ended.usage.fuel - begins, counted, "{rounds} {end}");
            assert!(full(rounds) <= counted + SLICE, "{rounds} {end}");
        }
    }
}

#[tokio::test]
async fn an_exit_from_the_start_function_ends_the_program() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let program = |code: u32| {
        wat(&format!(
            r#"
            (data (i32.const 100) "startmain")
            (func $first
                (call $say (i32.const 1) (i32.const 100) (i32.const 5))
                (call $exit (i32.const {code})))
            (start $first)
            (func (export "_start") (call $say (i32.const 1) (i32.const 105) (i32.const 4)))"#
        ))
    };
    let end = run(&mut bench, &command(), &[&program(0)]).await;
    assert_eq!(output(&end, 0), b"start", "and `_start` is not called");
    let end = run(&mut bench, &command(), &[&program(3)]).await;
    assert_eq!(end.failure(), &Failure::Exited { code: 3 });
}

/// A call that can't be paid does nothing, however much it asks for.
#[tokio::test]
async fn calls_are_paid_before_they_work() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let module = wat_with(
        r#"(import "wasi_snapshot_preview1" "fd_filestat_set_size" (func $set_size (param i32 i64) (result i32)))"#,
        r#"
        (data (i32.const 100) "tmp/x")
        (func (export "_start")
            (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 5)
                (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 8)))
            (if (call $set_size (i32.load (i32.const 8)) (i64.const 8000000)) (then unreachable))
            (call $say (i32.const 2) (i32.const 100) (i32.const 3)))"#,
    );
    let end = run_with(&mut bench, &module, 1 << 30).await;
    let all = end.usage.fuel;
    assert!(all - ready(&module) > 8_000_000, "{all}");
    let end = run_with(&mut bench, &module, all - 500).await;
    assert_eq!(end.failure(), &Failure::OutOfFuel);
    assert_eq!(end.usage.fuel, all - 500);
    let cut = ready(&module) + 1_000_000;
    let end = run_with(&mut bench, &module, cut).await;
    assert_eq!((end.failure(), end.usage.fuel), (&Failure::OutOfFuel, cut));
}
