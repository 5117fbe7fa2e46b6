//! Conditions on both sides, as people see them.

use std::fs;

use crate::network::{CLIENT, Network, root, said};

const NO_PROVIDER: i32 = 4;
const USAGE: i32 = 2;

#[test]
fn live_conditions_choose_and_are_explained() {
    let mut network = Network::start(&["short", "dear"]);
    let seller = network.testnet.node_mut("short").unwrap();
    seller.stop().unwrap();
    let file = seller.config_file();
    let mut config: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    let provide = config["provide"].as_table_mut().unwrap();
    let accept = "job.run_max < duration(\"5s\")";
    provide.insert("accept".into(), accept.into());
    fs::write(&file, config.to_string()).unwrap();
    network.testnet.restart("short").unwrap();
    network.testnet.wait_ready().unwrap();

    let sieve = root().join("examples/sieve");
    fs::copy(
        sieve.join("sieve.wat"),
        network.dir.path().join("sieve.wat"),
    )
    .unwrap();
    let text = fs::read_to_string(sieve.join("job.toml")).unwrap();
    let job = network.dir.path().join("job.toml");
    let job = job.to_str().unwrap();
    let with = |market: &str| fs::write(job, format!("{text}\n[market]\n{market}\n")).unwrap();

    // Ten seconds are too long for the one that is cheaper.
    with("");
    let words = said(&network.suanli(CLIENT, &["explain", job]), 0);
    let why = "accepts no such jobs: job.run_max < duration(\"5s\"): job.run_max is 10s";
    assert!(words.contains(why), "{words}");
    assert!(words.contains("no single change"), "{words}");
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

    with("where = 'gpu.memroy >= 8'");
    let words = said(&network.suanli(CLIENT, &["run", job, "--dry-run"]), USAGE);
    assert!(words.contains("did you mean `gpu.memory`?"), "{words}");
}
