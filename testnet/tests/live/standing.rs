//! What one node thinks of another, and what a third one's word adds.

use std::{fs, path::PathBuf};

use suanli_node::api::types::{AccountStanding, ShownReferences};

use crate::network::{CLIENT, Network, said};

const EMPTY: &str = r#"(module (func (export "_start")) (memory (export "memory") 1))"#;

/// A job of so many units, each done by so many providers.
fn job(network: &Network, units: u32, replicas: u32) -> PathBuf {
    fs::write(network.dir.path().join("job.wat"), EMPTY).unwrap();
    let text = format!(
        "name = \"standing\"\nruntime = \"wasm\"\n[limits]\nrun = \"10s\"\nmemory = \"1MiB\"\n\
         fuel = 10_000_000\n[market]\nmax_price = \"10\"\n[verify]\nreplicas = {replicas}\n\
         [array]\nrange = [0, {units}]\n[wasm]\nmodule = \"job.wat\"\n"
    );
    let file = network.dir.path().join("job.toml");
    fs::write(&file, text).unwrap();
    file
}

fn run(network: &Network, by: &str, units: u32, replicas: u32) {
    let file = job(network, units, replicas);
    let out = network.dir.path().join(by);
    let arguments = ["run", file.to_str().unwrap(), "-y", "--out"];
    let arguments = [&arguments[..], &[out.to_str().unwrap()]].concat();
    said(&network.suanli(by, &arguments), 0);
}

fn account(network: &Network, of: &str) -> String {
    let shown = said(&network.suanli(of, &["identity", "show", "--json"]), 0);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown["account"].as_str().unwrap().to_owned()
}

#[test]
fn live_a_standing_says_why_and_an_acquaintance_vouches() {
    let network = Network::start(&["first", "second"]);
    let nobody = said(&network.suanli(CLIENT, &["standing"]), 0);
    assert!(
        nobody.contains("nothing is known of anybody yet"),
        "{nobody}"
    );
    let unknown = network.suanli(CLIENT, &["standing", "0000"]);
    let unknown = said(&unknown, 2);
    assert!(unknown.contains("`suanli offer list`"), "{unknown}");

    run(&network, CLIENT, 12, 2);
    let (first, second) = (account(&network, "first"), account(&network, "second"));
    let table = said(&network.suanli(CLIENT, &["standing"]), 0);
    assert!(
        table.contains(&first[..8]) && table.contains(&second[..8]),
        "{table}"
    );
    let shown = said(&network.suanli(CLIENT, &["standing", &second]), 0);
    for line in [
        "of them equal to others'",
        "8.3% of its units",
        "What would change it",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }

    // The first buys of the second, and its word counts for a quarter of its trade.
    run(&network, "first", 1, 1);
    let fetched = network.suanli(CLIENT, &["standing", &second, "--fetch", "--json"]);
    let fetched: ShownReferences = serde_json::from_str(&said(&fetched, 0)).unwrap();
    assert_eq!((fetched.shown, fetched.known), (2, 1));
    let reference = &fetched.standing.references[0];
    assert_eq!(
        reference.client.to_string(),
        first[..reference.client.to_string().len()]
    );
    assert_eq!(
        (&*reference.client_trade, &*reference.weight),
        ("12", "0.25")
    );
    let own = format!("{:#}", fetched.peer);
    let by_peer = network.suanli(CLIENT, &["standing", &own, "--json"]);
    let by_peer: AccountStanding = serde_json::from_str(&said(&by_peer, 0)).unwrap();
    assert_eq!(by_peer.referred, "0.25");
    let shown = said(&network.suanli(CLIENT, &["standing", &second]), 0);
    assert!(shown.contains("not compared"), "{shown}");
}
