//! Conditions on both sides, as people see them.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::network::{self, CLIENT, Network, eventually, root, said};

const NO_PROVIDER: i32 = 4;
const USAGE: i32 = 2;

/// Sets a key of what a node provides, and starts it again.
fn provides(network: &mut Network, name: &str, key: &str, value: impl Into<toml::Value>) {
    let node = network.testnet.node_mut(name).unwrap();
    node.stop().unwrap();
    let file = node.config_file();
    let mut config: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    let provide = config["provide"].as_table_mut().unwrap();
    provide.insert(key.into(), value.into());
    fs::write(&file, config.to_string()).unwrap();
    network.testnet.restart(name).unwrap();
    network.testnet.wait_ready().unwrap();
}

/// The example that counts primes, to be changed.
fn sieve(network: &Network) -> PathBuf {
    let (from, to) = (root().join("examples/sieve"), network.dir.path());
    for file in ["sieve.wat", "job.toml"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    to.join("job.toml")
}

/// A provider that may give a tenth gives it to who asks for that much, and to who asks for
/// more nothing.
#[test]
fn live_a_price_is_haggled_over_within_bounds() {
    let mut network = Network::start(&["seller"]);
    provides(&mut network, "seller", "discount_percent_max", 10);
    let job = sieve(&network);
    let text = fs::read_to_string(&job).unwrap();
    // The same fuel each time.
    let spent = |market: &str| {
        fs::write(&job, format!("{text}\n[market]\n{market}\n")).unwrap();
        let run = ["run", job.to_str().unwrap(), "-y", "-d", "--json"];
        let words: Value = serde_json::from_str(&said(&network.suanli(CLIENT, &run), 0)).unwrap();
        let id = words["job"].as_str().unwrap().parse().unwrap();
        let ended = eventually("the job ends", || {
            let job = network::job(&network.api(CLIENT), id).unwrap();
            (job.state == "done").then_some(job)
        });
        ended.spent.as_micros()
    };
    let whole = spent("");
    let less = spent("counter_percent = 10");
    assert!(less.abs_diff(whole * 9 / 10) <= 1, "{less} of {whole}");
    assert_eq!(spent("counter_percent = 50"), whole);
}

#[test]
fn live_conditions_choose_and_are_explained() {
    let mut network = Network::start(&["short", "dear"]);
    let accept = "job.run_max < duration(\"5s\")";
    provides(&mut network, "short", "accept", accept);
    let job = sieve(&network);
    let job = job.to_str().unwrap();
    let text = fs::read_to_string(job).unwrap();
    let with = |market: &str| fs::write(job, format!("{text}\n[market]\n{market}\n")).unwrap();

    // Ten seconds are too long for the one that is cheaper.
    with("");
    let words = said(&network.suanli(CLIENT, &["explain", job]), 0);
    let why = "accepts no such jobs: job.run_max < duration(\"5s\"): job.run_max is 10s";
    assert!(words.contains(why), "{words}");
    let change = "+1 with limits.run = \"4s999ms\", if that is enough";
    assert!(words.contains(change), "{words}");
    let out = network.dir.path().join("out");
    let out = out.to_str().unwrap();
    let words = said(
        &network.suanli(CLIENT, &["run", job, "-y", "--out", out]),
        0,
    );
    assert!(words.contains("78498"), "{words}");

    with(r#"where = 'region == "CN-BJ" && slots >= 1'"#);
    let words = said(&network.suanli(CLIENT, &["explain", job]), NO_PROVIDER);
    let why = "rules it out: region == \"CN-BJ\": region is \"CN-NX\"";
    assert!(words.contains(why), "{words}");
    let change = "+1 with market.where without `region == \"CN-BJ\"`";
    assert!(words.contains(change), "{words}");

    with("region = [\"CN-NQ\"]");
    let words = said(
        &network.suanli(CLIENT, &["run", job, "--dry-run"]),
        NO_PROVIDER,
    );
    let meant = "no offer is in CN-NQ; did you mean `CN-NX`?";
    assert!(words.contains(meant), "{words}");

    with("where = 'gpu.memroy >= 8'");
    let words = said(&network.suanli(CLIENT, &["run", job, "--dry-run"]), USAGE);
    assert!(words.contains("did you mean `gpu.memory`?"), "{words}");
}
