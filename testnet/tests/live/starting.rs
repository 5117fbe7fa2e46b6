//! What a node says when it can't start, and a command without a node.

use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
};

use suanli_node::api::types::OfferInfo;

use crate::network::{CLIENT, Network, root, said};

const NO_DAEMON: i32 = 3;
const NO_PROVIDER: i32 = 4;
const UNUSABLE: i32 = 7;

#[test]
fn live_abuse_58_second_daemon_on_one_directory_exits_with_a_word() {
    let network = Network::start(&[]);
    let words = said(&network.suanli(CLIENT, &["node"]), UNUSABLE);
    assert!(words.contains("is in use by process"), "{words}");
    assert!(words.contains("a data directory of its own"), "{words}");
    // The first one goes on.
    said(&network.suanli(CLIENT, &["offer", "list"]), 0);
}

#[test]
fn live_abuse_64_world_readable_key_is_refused_with_the_mend() {
    let mut network = Network::start(&[]);
    network.testnet.node_mut(CLIENT).unwrap().stop().unwrap();
    let key = network.node(CLIENT).data_dir().join("node.key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let words = said(&network.suanli(CLIENT, &["node"]), UNUSABLE);
    assert!(
        words.contains(&format!("chmod 600 {}", key.display())),
        "{words}"
    );

    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    network.testnet.restart(CLIENT).unwrap();
    network.testnet.wait_ready().unwrap();
}

#[test]
fn live_busy_api_port_is_named() {
    let mut network = Network::start(&[]);
    network.testnet.node_mut(CLIENT).unwrap().stop().unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let set = format!("api={address}");
    let words = said(&network.suanli(CLIENT, &["node", "--set", &set]), UNUSABLE);
    assert!(words.contains(&address), "{words}");
    assert!(words.contains("stop what listens there"), "{words}");
}

#[test]
fn live_missing_daemon_is_said_with_its_exit_code() {
    let mut network = Network::start(&[]);
    network.testnet.node_mut(CLIENT).unwrap().kill().unwrap();
    // Killed, it left its address behind; stopped, it did not.
    let words = said(&network.suanli(CLIENT, &["offer", "list"]), NO_DAEMON);
    assert!(words.contains("suanli node"), "{words}");
    network.testnet.restart(CLIENT).unwrap();
    network.testnet.wait_ready().unwrap();
    network.testnet.node_mut(CLIENT).unwrap().stop().unwrap();
    let words = said(&network.suanli(CLIENT, &["offer", "list"]), NO_DAEMON);
    assert!(words.contains("suanli node"), "{words}");
}

#[test]
fn live_own_offer_is_not_bought() {
    let network = Network::start(&["seller"]);
    let job = root().join("examples/noop/job.toml");
    let job = job.to_str().unwrap();
    let words = said(
        &network.suanli("seller", &["run", job, "--dry-run"]),
        NO_PROVIDER,
    );
    assert!(words.contains("your own offer"), "{words}");
    // For programs it is one answer, with the plan in it.
    let output = network.suanli("seller", &["run", job, "--dry-run", "--json"]);
    assert_eq!(output.status.code(), Some(NO_PROVIDER));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(answer["plan"]["misfits"].is_array(), "{answer}");
    let output = network.suanli("seller", &["run", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(answer["error"].is_string(), "{answer}");
}

#[test]
fn live_a_provider_without_an_adapter_sells_wasm_only() {
    let mut network = Network::start(&["seller"]);
    network.testnet.node_mut("seller").unwrap().stop().unwrap();
    let arguments = ["node", "--set", "provide.device=none"];
    let words = said(&network.suanli("seller", &arguments), UNUSABLE);
    assert!(words.contains("`gpu.ms` has a price"), "{words}");
    assert!(words.contains("remove that price"), "{words}");

    let file = network.node("seller").config_file();
    let mut config: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    let provide = config["provide"].as_table_mut().unwrap();
    provide.insert("device".into(), "none".into());
    let prices = provide["price"].as_array_mut().unwrap();
    prices.retain(|price| price["meter"].as_str() == Some("wasm.fuel"));
    fs::write(&file, config.to_string()).unwrap();
    network.testnet.restart("seller").unwrap();
    network.testnet.wait_ready().unwrap();
    let offers: Vec<OfferInfo> = network.api(CLIENT).get("/v1/offers").unwrap();
    let [offer] = &*offers else {
        panic!("not one offer: {offers:?}");
    };
    let [device] = &*offer.devices else {
        panic!("not one device: {offer:?}");
    };
    let runtimes = device.runtimes.iter().map(|offered| &*offered.runtime);
    assert!(runtimes.eq(["wasm"]), "{device:?}");
    assert_eq!(device.kind, "cpu");
    assert!(device.fuel_per_second > 0, "{device:?}");

    let job = root().join("examples/sieve/job.toml");
    let job = job.to_str().unwrap();
    let out = network.dir.path().join("out");
    let out = out.to_str().unwrap();
    said(
        &network.suanli(CLIENT, &["run", job, "-y", "--out", out]),
        0,
    );
}
