//! A matrix product that the client's node checks itself: whoever invents one is found
//! without anybody else's result.

use std::{fs, path::Path};

use suanli_node::api::types::{OfferInfo, Status};
use suanli_protocol::units::{Amount, Total};
use suanli_testnet::live::topology::{NodeSpec, ProvideSpec};

use crate::network::{CLIENT, Network, channels, receipts, root, said, stand_in};

fn node(name: &str, rank: Option<u64>) -> NodeSpec {
    NodeSpec {
        name: name.into(),
        region: "CN-NX".into(),
        provide: rank.map(|rank| ProvideSpec {
            price_per_second: Amount::from_micros(500 * rank),
            slots: 1,
            firm: false,
        }),
        settings: toml::Table::new(),
    }
}

fn floats(path: &Path) -> Vec<f64> {
    let bytes = fs::read(path).unwrap();
    let (numbers, _) = bytes.as_chunks::<4>();
    let numbers = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes));
    numbers.map(f64::from).collect()
}

/// Computed anew, in double precision.
fn assert_is_product(example: &Path, file: &Path) {
    let (a, b) = (
        floats(&example.join("a.f32")),
        floats(&example.join("b.f32")),
    );
    let c = floats(file);
    assert_eq!(c.len(), 200 * 170);
    for (n, number) in c.into_iter().enumerate() {
        let (row, column) = (n / 170, n % 170);
        let terms = (0..150).map(|k| a[row * 150 + k] * b[k * 170 + column]);
        assert!((number - terms.sum::<f64>()).abs() < 1e-4, "{n}");
    }
}

#[test]
fn live_an_invented_product_is_found_by_its_client_and_made_elsewhere() {
    let mut liar = node("liar", Some(1));
    let worker = stand_in("liar").to_str().unwrap().to_owned();
    liar.settings.insert("worker".into(), worker.into());
    let network = Network::of(vec![node(CLIENT, None), liar, node("honest", Some(4))]);
    let example = root().join("examples/product");
    let file = example.join("job.toml");
    let out = network.dir.path().join("out");
    let arguments = [
        "run",
        file.to_str().unwrap(),
        "-y",
        "--out",
        out.to_str().unwrap(),
    ];
    let words = said(&network.suanli(CLIENT, &arguments), 0);
    println!("{words}");

    assert_is_product(&example, &out.join("c.f32"));
    let peer = |name: &str| network.api(name).get::<Status>("/v1/status").unwrap().peer;
    let (liar, honest) = (peer("liar"), peer("honest"));
    let named = format!(
        "disputed the receipt of {liar}: others' results agree with each other and not with its own, or it is not the product that the job says"
    );
    assert!(words.contains(&named), "{words}");
    let client = network.api(CLIENT);
    let offer: OfferInfo = client.get(&format!("/v1/offers/{liar:#}")).unwrap();
    let standing = offer.standing.unwrap();
    assert_eq!((standing.contradicted, standing.accepted), (1, 0));
    assert!(standing.left_out_until_ms.is_some());
    let given = receipts(&client).unwrap();
    let words: Vec<_> = given
        .iter()
        .map(|receipt| {
            (
                receipt.provider,
                receipt.verdict.as_deref(),
                receipt.verification.as_deref(),
            )
        })
        .collect();
    assert!(
        words.contains(&(honest, Some("accepted"), Some("freivalds"))),
        "{words:?}"
    );
    assert_eq!(words.len(), 2, "one execution each: {words:?}");
    let paid = channels(&client).unwrap();
    let paid = paid
        .iter()
        .filter(|channel| channel.cumulative != Total::ZERO.to_string());
    assert!(paid.map(|channel| channel.peer).all(|peer| peer == honest));
    let receipt = given
        .iter()
        .find(|receipt| receipt.provider == honest)
        .unwrap();
    let shown = network.suanli(
        CLIENT,
        &["receipt", "show", &format!("{:#}", receipt.receipt)],
    );
    let shown = said(&shown, 0);
    assert!(
        shown.contains("its products are right (Freivalds' check)"),
        "{shown}"
    );
}
