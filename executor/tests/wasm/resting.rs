//! Executors without an adapter, and pools that rest.

use std::{path::Path, time::Duration};

use suanli_executor::{AdapterSelection, ExecutorConfig, ExecutorError, Failure};

use crate::{
    commands::{command, request, run, wat},
    support::{Bench, LONG, bench, noop, process_exists, program, worker_path},
};

fn without_adapter() -> ExecutorConfig {
    ExecutorConfig {
        adapter: AdapterSelection::None,
        ..ExecutorConfig::default()
    }
}

/// Worker processes of this one.
fn workers() -> usize {
    let own = std::process::id().to_string();
    let is_worker = |path: &Path| {
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let mut fields = after_name.split(' ');
        stat.contains("(suanli-worker") && fields.next() != Some("Z") && fields.next() == Some(&own)
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| is_worker(&entry.path())).count()
}

async fn until_there_are(count: usize) {
    let reached = async {
        while workers() != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let there_are = tokio::time::timeout(LONG, reached).await;
    assert!(there_are.is_ok(), "{} workers, not {count}", workers());
}

fn nothing() -> Vec<u8> {
    wat(r#"(func (export "_start"))"#)
}

/// A command that runs until it is cancelled, once it has begun.
async fn start_endless(bench: &mut Bench) -> suanli_executor::ExecutionId {
    let module = wat(r#"(func (export "_start") (loop $again (br $again)))"#);
    let mut endless = command();
    endless.fuel_max = u64::MAX;
    let request = request(bench, &endless, &[&module]);
    let id = request.id;
    bench.executor.run(request).unwrap();
    bench.started(id).await;
    id
}

#[tokio::test]
async fn without_an_adapter_commands_run_and_graphs_are_refused() {
    let mut bench = bench(without_adapter()).await.unwrap();
    assert!(bench.executor.adapter().is_none());
    let end = run(&mut bench, &command(), &[&nothing()]).await;
    assert!(end.result.is_ok(), "{end:?}");
    let graph = bench.request(1, &noop());
    let refused = bench.executor.run(graph).unwrap_err();
    assert_eq!(refused.failure, Failure::Internal);
    assert!(refused.detail.contains("no adapter"), "{refused}");
    let fuel = program().measure_processor().await.unwrap();
    assert!(fuel > 1_000_000, "{fuel}");
}

#[tokio::test]
async fn a_named_adapter_that_is_not_there_is_an_error() {
    let config = ExecutorConfig {
        worker: Some(worker_path()),
        adapter: AdapterSelection::Named("no such device".into()),
        ..ExecutorConfig::default()
    };
    let error = suanli_executor::Executor::start(config).await.unwrap_err();
    assert!(matches!(error, ExecutorError::NoAdapter(_)), "{error}");
}

#[tokio::test]
async fn a_resting_pool_keeps_no_worker_and_runs_what_comes() {
    let mut bench = bench(without_adapter()).await.unwrap();
    until_there_are(2).await;
    let running = start_endless(&mut bench).await;
    bench.executor.rest().await;
    // What runs goes on; the warm one ends.
    until_there_are(1).await;
    bench.executor.expect();
    bench.executor.cancel(running).unwrap();
    assert_eq!(bench.end(running).await.failure(), &Failure::Cancelled);
    until_there_are(0).await;

    let end = run(&mut bench, &command(), &[&nothing()]).await;
    assert!(end.result.is_ok(), "{end:?}");
    until_there_are(0).await;
    // A moment later it is reaped as well.
    let pid = end.pid.unwrap();
    let reaped = async {
        while process_exists(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, reaped).await.is_ok());

    bench.executor.wake().await;
    until_there_are(2).await;
}

#[tokio::test]
async fn workers_that_nobody_used_for_long_end_until_work_is_expected() {
    let config = ExecutorConfig {
        rest_after: Some(Duration::from_secs(2)),
        ..without_adapter()
    };
    let mut bench = bench(config).await.unwrap();
    until_there_are(2).await;
    until_there_are(0).await;
    bench.executor.expect();
    until_there_are(2).await;
    until_there_are(0).await;
    // From cold, and all are warm again.
    let end = run(&mut bench, &command(), &[&nothing()]).await;
    assert!(end.result.is_ok(), "{end:?}");
    until_there_are(2).await;
}

#[tokio::test]
async fn a_reserve_is_kept_from_all_that_may_run_at_once() {
    let config = |memory_reserve| ExecutorConfig {
        worker: Some(worker_path()),
        pool_size: 2,
        memory_max: u64::MAX / 4,
        memory_reserve,
        ..ExecutorConfig::default()
    };
    let Some(bench) = bench(config(1 << 30)).await else {
        return;
    };
    let has = bench.adapter().memory_bytes;
    assert_eq!(bench.executor.memory_max(), (has - (1 << 30)) / 2);
    let error = suanli_executor::Executor::start(config(has)).await;
    let error = error.unwrap_err().to_string();
    assert!(error.ends_with("reserve less"), "{error}");
}
