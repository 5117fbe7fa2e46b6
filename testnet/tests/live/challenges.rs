//! A provider that claims more than its device does, seen by a client.

use serde_json::Value;
use suanli_node::{api::types::OfferInfo, measured::Measured};

use crate::network::{CLIENT, Network, said};

const PROVIDER: &str = "provider";
const NOT_VERIFIED: i32 = 6;

/// What is in the client's book: the provider's offer.
fn offers(network: &Network) -> Vec<OfferInfo> {
    network.api(CLIENT).get("/v1/offers").unwrap()
}

fn claims(offer: &OfferInfo) -> u64 {
    let speeds = offer.devices.iter().flat_map(|device| &device.speeds);
    let products = speeds.filter(|speed| speed.kind == "matmul");
    products.map(|speed| speed.per_second).max().unwrap_or(0)
}

#[test]
fn live_a_claim_of_ten_times_the_speed_is_found_out_and_remembered() {
    let mut network = Network::start(&[PROVIDER]);
    let measured = claims(&offers(&network)[0]);
    if measured == 0 {
        println!("skipped: no adapter was measured");
        return;
    }
    // What an operator who lies would do: the offer says what this file says.
    network.testnet.node_mut(PROVIDER).unwrap().stop().unwrap();
    let dir = network.node(PROVIDER).data_dir();
    let mut lie = Measured::read(&dir);
    for adapter in &mut lie.adapters {
        adapter.matmul = measured * 10;
        adapter.fp32 *= 10;
    }
    lie.write(&dir).unwrap();
    network.testnet.restart(PROVIDER).unwrap();
    network.testnet.wait_ready().unwrap();
    let lying = offers(&network).pop().unwrap();
    assert_eq!(claims(&lying), measured * 10);

    let peer = format!("{:#}", lying.peer);
    let words = said(
        &network.suanli(CLIENT, &["offer", "challenge", &peer]),
        NOT_VERIFIED,
    );
    assert!(words.contains("SLOW: at least"), "{words}");
    let shown = said(&network.suanli(CLIENT, &["offer", "show", &peer]), 0);
    assert!(shown.contains("SLOW: at least"), "{shown}");

    // It outlives the client's node, and counts when jobs are placed.
    network.testnet.node_mut(CLIENT).unwrap().kill().unwrap();
    network.testnet.restart(CLIENT).unwrap();
    network.testnet.wait_ready().unwrap();
    let shown = network.suanli(CLIENT, &["offer", "show", &peer, "--json"]);
    let shown: Value = serde_json::from_str(&said(&shown, 0)).unwrap();
    let believed = shown["standing"]["believed_percent"].as_u64().unwrap();
    assert!(believed < 50, "{shown}");
}
