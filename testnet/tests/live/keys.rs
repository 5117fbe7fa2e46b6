//! API keys in front of models that others serve.

use serde_json::Value;
use suanli_node::api::types::{BudgetInfo, JobInfo, KeyInfo, KeyMade};
use suanli_protocol::units::Amount;

use crate::{
    asking::{open_by, said, wait_for_providers},
    models::{Server, network, question},
    network::{CLIENT, Network},
};

/// A question of the tests: 7 tokens read at 1 for a million, 5 written at 10.
const COST: u64 = 57;
/// What a key may spend: far less than a whole lease costs.
const BUDGET: u64 = 1000;

fn ask(network: &Network, secret: &str, body: Option<&Value>, path: &str) -> (u16, Value) {
    let method = body.map_or("GET", |_| "POST");
    let (status, body) = said(open_by(secret, network.node(CLIENT), (method, path), body));
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

fn chat(network: &Network, secret: &str) -> (u16, Value) {
    let question = question("hello", Some(5), false);
    ask(network, secret, Some(&question), "/v1/chat/completions")
}

fn listed(network: &Network) -> KeyInfo {
    let keys = network.suanli(CLIENT, &["key", "list", "--json"]);
    let keys: Vec<KeyInfo> = serde_json::from_slice(&keys.stdout).unwrap();
    keys.into_iter().next().unwrap()
}

#[test]
fn live_a_key_spends_its_budget_to_the_end_and_no_more() {
    let server = Server::start("a");
    let mut network = network(&[("seller", &server)]);
    wait_for_providers(&network, 1);
    let create = ["key", "create", "alice", "--budget", "0.001", "--json"];
    let made = network.suanli(CLIENT, &create);
    let made: KeyMade = serde_json::from_slice(&made.stdout).unwrap();
    let secret = made.secret.tell();
    assert_eq!(ask(&network, secret, None, "/v1/models").0, 200);
    assert_eq!(ask(&network, secret, None, "/v1/status").0, 403);

    let mut answers = 0;
    let refused = loop {
        match chat(&network, secret) {
            (200, _) => answers += 1,
            refused => break refused,
        }
        assert!(answers <= 40, "nothing holds it");
    };
    assert_eq!(refused.0, 429, "{}", refused.1);
    assert_eq!(refused.1["error"]["code"], "insufficient_quota");
    // An answer may begin with less left than it comes to, in each lease.
    assert!(answers >= BUDGET / COST - 1, "{answers}");
    let spent = |network: &Network| {
        let budgets: Vec<BudgetInfo> = network.api(CLIENT).get("/v1/budgets").unwrap();
        let alice = budgets.into_iter().find(|of| of.principal == "alice");
        alice.unwrap().spent.as_micros()
    };
    assert!((BUDGET - COST..=BUDGET).contains(&spent(&network)));
    let leases: Vec<JobInfo> = network.api(CLIENT).get("/v1/jobs").unwrap();
    assert!(leases.iter().all(|lease| lease.principal == "alice"));
    let key = listed(&network);
    assert_eq!(key.spent.as_micros(), spent(&network));
    assert_eq!(
        (key.tokens_read, key.tokens_written),
        (7 * answers, 5 * answers)
    );

    // The node's own people are another principal, and a start changes nothing.
    let token = std::fs::read_to_string(network.node(CLIENT).data_dir().join("api.token"));
    assert_eq!(chat(&network, token.unwrap().trim()).0, 200);
    network.testnet.restart(CLIENT).unwrap();
    network.testnet.wait_ready().unwrap();
    wait_for_providers(&network, 1);
    assert_eq!(
        chat(&network, secret).1["error"]["code"],
        "insufficient_quota"
    );
    let key = listed(&network);
    assert_eq!(
        (key.budget, key.days),
        (Some(Amount::from_micros(BUDGET)), 30)
    );

    let revoked = network.suanli(CLIENT, &["key", "revoke", "alice"]);
    assert!(revoked.status.success());
    let (status, refused) = chat(&network, secret);
    assert_eq!(
        (status, &refused["error"]["code"]),
        (401, &"invalid_api_key".into())
    );
    assert_eq!(listed(&network).state, "revoked");
    let log = std::fs::read_to_string(network.node(CLIENT).log_file()).unwrap();
    assert!(!log.contains("sk-suanli-"), "a secret is in the log");
}
