//! Jobs from the command line to the settled receipt, with and without a
//! provider that is lost on the way.

use std::{collections::BTreeSet, process::Stdio};

use suanli_node::api::types::{JobInfo, ReceiptInfo, Status};
use suanli_protocol::units::Amount;

use crate::network::{CLIENT, Network, channels, eventually, is_over, job, receipts, root, said};

/// Some seconds on two slow cores, in dispatches of some milliseconds, so that
/// progress is seen and nothing stalls the device. `STEPS` stays below the
/// loop iterations that Mesa's software driver allows.
const SPIN: &str = "
@group(0) @binding(0) var<storage, read_write> out: array<u32>;
override STEPS: u32 = 20000u;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    var x = out[id.x] ^ id.x;
    for (var i = 0u; i < STEPS; i++) {
        x = x * 1664525u + 1013904223u;
    }
    out[id.x] = x;
}
";

const SPIN_JOB: &str = r#"
name = "spin"
runtime = "wgsl"

[limits]
run = "120s"
memory = "1MiB"
output = "16KiB"

[market]
policy = "cheapest"
max_price = "10"

[wgsl]
source = "job.wgsl"

[[wgsl.buffer]]
name = "out"
size = 16384

[[wgsl.pass]]
entry = "main"
bind = ["out"]
workgroups = [64, 1, 1]
repeat = 300

[[wgsl.output]]
buffer = "out"
file = "out.u32"
"#;

#[test]
fn live_job_runs_end_to_end() {
    let network = Network::start(&["provider"]);
    let noop = root().join("examples/noop/job.toml");
    let noop = noop.to_str().unwrap();
    let words = said(&network.suanli(CLIENT, &["run", noop, "-y"]), 0);
    assert!(words.contains("answer  42"), "{words}");

    let (client, provider) = (network.api(CLIENT), network.api("provider"));
    let bought = eventually("a settled receipt", || {
        let receipts = receipts(&client).unwrap();
        receipts.into_iter().find(|receipt| receipt.acknowledged)
    });
    let sold = receipts(&provider).unwrap();
    assert_eq!(sold.len(), 1);
    assert_eq!(sold[0].receipt, bought.receipt);
    assert!(bought.bought && !sold[0].bought);

    let bundle = format!("/v1/receipts/{:#}/bundle", bought.receipt);
    let bytes = client.bytes(&bundle).unwrap();
    assert_eq!(bytes, provider.bytes(&bundle).unwrap());
    let file = network.dir.path().join("receipt.bundle");
    std::fs::write(&file, &bytes).unwrap();
    drop(network.testnet);
    let mut verify = std::process::Command::new(crate::network::programs().node);
    verify.args(["receipt", "verify"]).arg(&file);
    assert!(said(&verify.output().unwrap(), 0).contains("verified"));
}

#[test]
fn live_killed_provider_is_replaced_by_the_next_best() {
    let mut network = Network::start(&["cheap", "dear"]);
    let file = network.job(SPIN_JOB, SPIN);
    let mut command = network.node(CLIENT).command();
    command.arg("run").arg(&file).arg("-y");
    command.arg("--out").arg(network.dir.path());
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = command.spawn().unwrap();

    let client = network.api(CLIENT);
    let first = eventually("a job that makes progress", || {
        let jobs: Vec<JobInfo> = client.get("/v1/jobs").unwrap();
        let found = jobs.into_iter().next()?;
        assert!(!is_over(&found), "it ended too soon: {found:?}");
        (found.done > 0).then_some(found)
    });
    let killed = ["cheap", "dear"]
        .into_iter()
        .find(|name| {
            let status: Status = network.api(name).get("/v1/status").unwrap();
            Some(status.peer) == first.provider
        })
        .unwrap();
    network.testnet.node_mut(killed).unwrap().kill().unwrap();

    let words = said(&running.wait_with_output().unwrap(), 0);
    let ended = job(&client, first.job).unwrap();
    assert_eq!(ended.state, "done", "{words}");
    assert_ne!(ended.provider, first.provider);
    assert!(ended.attempt > first.attempt, "{ended:?}");
    let bought = receipts(&client).unwrap();
    let receipt = only_charged(&bought);
    assert_eq!(Some(receipt.provider), ended.provider);
    assert_eq!(ended.spent, receipt.amount);

    // What both sides of all channels count is this one receipt.
    eventually("a settled channel", || {
        let all = channels(&client).unwrap();
        let owed: BTreeSet<_> = all
            .iter()
            .filter(|channel| channel.cumulative != Amount::ZERO.to_string())
            .map(|channel| (channel.peer, channel.cumulative.clone()))
            .collect();
        let due = BTreeSet::from([(receipt.provider, receipt.amount.to_string())]);
        (owed == due).then_some(())
    });
}

fn only_charged(receipts: &[ReceiptInfo]) -> &ReceiptInfo {
    let mut charged = receipts
        .iter()
        .filter(|receipt| receipt.amount > Amount::ZERO);
    let (Some(receipt), None) = (charged.next(), charged.next()) else {
        panic!("not one receipt: {receipts:?}");
    };
    receipt
}
