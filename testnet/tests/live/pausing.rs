//! The operator's own use comes first: pauses of a provider, as its operator orders
//! them.

use std::process::Stdio;

use suanli_node::api::types::{JobInfo, OfferInfo, Status};
use suanli_protocol::units::Amount;

use crate::{
    jobs::{SPIN, SPIN_JOB, only_charged},
    network::{CLIENT, Network, eventually, job, receipts, root, said},
};

const NO_PROVIDER: i32 = 4;

fn status(network: &Network, name: &str) -> Status {
    network.api(name).get("/v1/status").unwrap()
}

/// Waits until the client has so many offers in its book.
fn until_offers(network: &Network, count: usize) {
    eventually(&format!("{count} offers"), || {
        let offers: Vec<OfferInfo> = network.api(CLIENT).get("/v1/offers").unwrap();
        (offers.len() == count).then_some(())
    });
}

/// Worker processes of a node.
fn workers(network: &Network, name: &str) -> usize {
    let pid = network.node(name).process().unwrap().pid().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let stats =
        processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let of_node = stats.filter(|stat| {
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        stat.contains("(suanli-worker") && fields.split(' ').nth(1) == Some(&pid)
    });
    of_node.count()
}

#[test]
fn live_a_paused_provider_is_asked_for_nothing_until_it_resumes() {
    let mut network = Network::start(&["seller"]);
    let noop = root().join("examples/noop/job.toml");
    let noop = noop.to_str().unwrap();
    eventually("a warm worker", || {
        (workers(&network, "seller") > 0).then_some(())
    });

    let words = said(&network.suanli("seller", &["pause"]), 0);
    assert!(words.contains("paused by its operator"), "{words}");
    until_offers(&network, 0);
    said(&network.suanli(CLIENT, &["run", noop, "-y"]), NO_PROVIDER);
    eventually("no worker", || {
        (workers(&network, "seller") == 0).then_some(())
    });

    // It outlives the process.
    network.testnet.node_mut("seller").unwrap().stop().unwrap();
    network.testnet.restart("seller").unwrap();
    let paused = eventually("a node that answers", || {
        let api = network.node("seller").api().ok()?;
        api.get::<Status>("/v1/status").ok()?.paused
    });
    assert_eq!((&*paused.why, paused.until_ms), ("ordered", None));
    let words = network.suanli("seller", &["doctor"]);
    let words = String::from_utf8_lossy(&words.stdout).into_owned();
    assert!(words.contains("paused: paused by its operator"), "{words}");

    let words = said(&network.suanli("seller", &["resume"]), 0);
    assert!(words.contains("it sells"), "{words}");
    until_offers(&network, 1);
    let words = said(&network.suanli(CLIENT, &["run", noop, "-y"]), 0);
    assert!(words.contains("answer  42"), "{words}");

    let words = said(&network.suanli("seller", &["pause", "--for", "2s"]), 0);
    assert!(words.contains("ends in"), "{words}");
    eventually("the pause's end", || {
        status(&network, "seller").paused.is_none().then_some(())
    });
    until_offers(&network, 1);
    // A client has nothing to pause.
    let words = said(&network.suanli(CLIENT, &["pause"]), 2);
    assert!(words.contains("sells nothing"), "{words}");
}

#[test]
fn live_a_pause_now_costs_the_client_nothing_and_the_job_goes_elsewhere() {
    let network = Network::start(&["cheap", "dear"]);
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
    let mut names = ["cheap", "dear"].into_iter();
    let paused = names.find(|name| Some(status(&network, name).peer) == first.provider);
    let paused = paused.unwrap();
    said(&network.suanli(paused, &["pause", "--now"]), 0);
    eventually("no worker", || {
        (workers(&network, paused) == 0).then_some(())
    });

    let words = said(&running.wait_with_output().unwrap(), 0);
    let ended = job(&client, first.job).unwrap();
    assert_eq!(ended.state, "done", "{words}");
    assert_ne!(ended.provider, first.provider);
    let bought = receipts(&client).unwrap();
    assert_eq!(Some(only_charged(&bought).provider), ended.provider);
    let sold = receipts(&network.api(paused)).unwrap();
    let [sold] = &*sold else {
        panic!("not one receipt: {sold:?}");
    };
    assert_eq!(
        (&*sold.outcome, sold.amount),
        ("provider-fault", Amount::ZERO)
    );
}
