//! Jobs from the command line to the settled receipt, with and without a
//! provider that is lost on the way.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    sync::mpsc,
};

use suanli_node::api::types::{JobInfo, ReceiptInfo, Status};
use suanli_protocol::units::Amount;
use suanli_testnet::live::{
    Node,
    topology::{NodeSpec, ProvideSpec},
};

use crate::network::{CLIENT, Network, Submitter, channels, eventually, job, receipts, root, said};

/// Some seconds on two slow cores, in dispatches of some milliseconds, so that
/// progress is seen and nothing stalls the device. `STEPS` stays below the
/// loop iterations that Mesa's software driver allows.
pub(crate) const SPIN: &str = "
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

pub(crate) const SPIN_JOB: &str = r#"
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

    // The provider declares more paid than is owed, twice by mistake.
    let channel = channels(&provider).unwrap().remove(0);
    assert_eq!(channel.outstanding, bought.amount.to_string());
    let id = format!("{:#}", channel.channel);
    let order = ["channel", "settle", &id, "--amount", "3"];
    let order = [&order[..], &["--reference", "invoice 1"]].concat();
    for _ in 0..2 {
        let words = said(&network.suanli("provider", &order), 0);
        assert!(words.contains("in 1 settlements"), "{words}");
    }
    eventually("a client that knows what it paid", || {
        let known = channels(&client).unwrap().remove(0);
        (known.settled == "3.00" && known.outstanding == "0.00").then_some(())
    });
    let words = said(&network.suanli(CLIENT, &order), 2);
    assert!(words.contains("does not earn"), "{words}");
    // What a table says again is not declared again.
    let table = network.dir.path().join("transfers.csv");
    let text = format!("date,channel,amount,reference\n1,{id},3,invoice 1\n2,{id},0.5,TX 7\n");
    std::fs::write(&table, text).unwrap();
    let import = ["channel", "settle", "--from", table.to_str().unwrap()];
    for says in ["1 of 2 payments declared, 0.50 in all", "0 of 2"] {
        let words = said(&network.suanli("provider", &import), 0);
        assert!(words.contains(says), "{words}");
    }
    eventually("a client that knows what it paid", || {
        let known = channels(&client).unwrap().remove(0);
        (known.settled == "3.50").then_some(())
    });
    for node in [CLIENT, "provider"] {
        let file = network.dir.path().join("statement.json");
        let file = file.to_str().unwrap();
        said(
            &network.suanli(node, &["channel", "export", &id, "--out", file]),
            0,
        );
        let words = said(&network.suanli(node, &["channel", "verify", file]), 0);
        assert!(words.contains("3.50"), "{words}");
        let altered = std::fs::read_to_string(file)
            .unwrap()
            .replace("3.50", "2.00");
        std::fs::write(file, altered).unwrap();
        said(&network.suanli(node, &["channel", "verify", file]), 6);
    }

    let bundle = format!("/v1/receipts/{:#}/bundle", bought.receipt);
    let bytes = client.bytes(&bundle).unwrap();
    assert_eq!(bytes, provider.bytes(&bundle).unwrap());
    let file = network.dir.path().join("receipt.bundle");
    std::fs::write(&file, &bytes).unwrap();
    drop(network.testnet);
    let mut verify = Command::new(crate::network::programs().node);
    verify.args(["receipt", "verify"]).arg(&file);
    assert!(said(&verify.output().unwrap(), 0).contains("verified"));
}

/// More at once than a client serves to one peer: the rest would be refused, and try again.
#[test]
fn live_jobs_of_one_program_fetch_it_once() {
    const JOBS: usize = 12;
    let sells = ProvideSpec {
        price_per_second: Amount::from_micros(500),
        slots: u32::try_from(JOBS).unwrap(),
        firm: true,
    };
    let node = |name: &str, provide| NodeSpec {
        name: name.into(),
        region: "CN-NX".into(),
        provide,
        settings: toml::Table::new(),
    };
    let network = Network::of(vec![node(CLIENT, None), node("provider", Some(sells))]);
    let (submitter, api) = (Submitter::noop(), network.api(CLIENT));
    let (_, first) = submitter.submit(&api);
    first.unwrap();
    std::thread::scope(|scope| {
        for _ in 1..JOBS {
            scope.spawn(|| submitter.submit_again(&network.api(CLIENT)).1.unwrap());
        }
    });
    let provider = network.api("provider");
    eventually("a receipt for each", || {
        (receipts(&provider).unwrap().len() == JOBS).then_some(())
    });
    let log = std::fs::read_to_string(network.node("provider").log_file()).unwrap();
    // A firm offer's provider may ask before its client has the countersignature, which
    // travels on another stream: that is refused in other words.
    assert!(!log.contains("serves too many blobs"), "{log}");
}

/// A command on a terminal of its own.
struct Typed {
    script: std::process::Child,
    keys: std::process::ChildStdin,
    shown: mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Typed {
    /// `None` where there is no program that makes a terminal.
    fn start(node: &Node, command: &str) -> Option<Self> {
        let mut script = Command::new("script");
        script.args(["-qec", command, "/dev/null"]);
        script.envs(node.environment());
        script.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = script.spawn().ok()?;
        let mut screen = script.stdout.take().unwrap();
        let (show, shown) = mpsc::sync_channel(64);
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = screen.read(&mut piece) {
                if show.send(piece[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Some(Self {
            keys: script.stdin.take().unwrap(),
            script,
            shown,
            text: String::new(),
        })
    }

    /// Waits until the screen shows this, after all that was waited for before.
    fn see(&mut self, words: &str) {
        eventually(&format!("{words:?} on the screen"), || {
            for piece in self.shown.try_iter() {
                self.text.push_str(&String::from_utf8_lossy(&piece));
            }
            let at = self.text.find(words)?;
            self.text.drain(..at + words.len());
            Some(())
        });
    }

    fn press_ctrl_c(&mut self) {
        self.keys.write_all(b"\x03").unwrap();
    }
}

#[test]
fn live_ctrl_c_once_says_what_becomes_of_the_job_and_twice_leaves() {
    let network = Network::start(&["provider"]);
    let file = network.job(SPIN_JOB, SPIN);
    let suanli = crate::network::programs().node;
    let command = format!("{} run {} -y", suanli.display(), file.display());
    let Some(mut run) = Typed::start(network.node(CLIENT), &command) else {
        println!("skipped: there is no `script` to make a terminal with");
        return;
    };
    run.see("running");
    run.press_ctrl_c();
    run.see("goes on");
    run.see("suanli job cancel");
    run.see("press Ctrl-C again");
    // It is still shown.
    run.see("running: ");
    run.press_ctrl_c();
    run.see("goes on");
    assert_eq!(run.script.wait().unwrap().code(), Some(130));

    let client = network.api(CLIENT);
    let jobs: Vec<JobInfo> = client.get("/v1/jobs").unwrap();
    assert!(!jobs[0].is_over(), "{jobs:?}");
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
        assert!(!found.is_over(), "it ended too soon: {found:?}");
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

pub(crate) fn only_charged(receipts: &[ReceiptInfo]) -> &ReceiptInfo {
    let mut charged = receipts
        .iter()
        .filter(|receipt| receipt.amount > Amount::ZERO);
    let (Some(receipt), None) = (charged.next(), charged.next()) else {
        panic!("not one receipt: {receipts:?}");
    };
    receipt
}
