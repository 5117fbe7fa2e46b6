//! Questions to models, as a program of a node's own people asks them.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use serde_json::Value;
use suanli_node::api::types::ChannelInfo;
use suanli_protocol::units::Amount;
use suanli_testnet::live::{Node, topology::NodeSpec};

use crate::network::{CLIENT, Network, PATIENCE, eventually};

/// A client, and providers with these settings.
pub(crate) fn network(providers: Vec<(&str, String)>) -> Network {
    let mut nodes = vec![node(CLIENT, "CN-BJ", "")];
    let providers = providers.iter();
    nodes.extend(providers.map(|(name, settings)| node(name, "CN-NX", settings)));
    Network::of(nodes)
}

pub(crate) fn node(name: &str, region: &str, settings: &str) -> NodeSpec {
    NodeSpec {
        name: name.into(),
        region: region.into(),
        provide: None,
        settings: settings.parse().unwrap(),
    }
}

/// An answer to a request of a node's own people: its status, and its body.
pub(crate) fn request(
    node: &Node,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> (u16, String) {
    said(open(node, method, path, body))
}

/// The whole answer on a connection: its status, and its body.
pub(crate) fn said(mut stream: TcpStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let chunked = head.to_ascii_lowercase().contains("chunked");
    (
        status,
        if chunked {
            unchunked(body)
        } else {
            body.to_owned()
        },
    )
}

pub(crate) fn open(node: &Node, method: &str, path: &str, body: Option<&Value>) -> TcpStream {
    let token = std::fs::read_to_string(node.data_dir().join("api.token")).unwrap();
    open_by(token.trim(), node, (method, path), body)
}

/// Asks as whoever shows that token or key.
pub(crate) fn open_by(
    token: &str,
    node: &Node,
    (method, path): (&str, &str),
    body: Option<&Value>,
) -> TcpStream {
    let address = node.api().unwrap().address();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = body.map(Value::to_string).unwrap_or_default();
    let text = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

pub(crate) fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap();
        if length == 0 {
            break;
        }
        text.push_str(&rest[..length]);
        body = rest[length..].trim_start_matches("\r\n");
    }
    text
}

pub(crate) fn ask(network: &Network, question: &Value) -> (u16, String) {
    request(
        network.node(CLIENT),
        "POST",
        "/v1/chat/completions",
        Some(question),
    )
}

/// The events of a stream.
pub(crate) fn events(text: &str) -> Vec<Value> {
    let data = text
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| data.into()))
        .collect()
}

pub(crate) fn models(network: &Network) -> Vec<Value> {
    let (status, body) = request(network.node(CLIENT), "GET", "/v1/models", None);
    assert_eq!(status, 200, "{body}");
    let list: Value = serde_json::from_str(&body).unwrap();
    list["data"].as_array().unwrap().clone()
}

pub(crate) fn wait_for_providers(network: &Network, count: usize) {
    eventually("the model is in the list", || {
        let models = models(network);
        let providers = models
            .first()
            .and_then(|model| model["providers"].as_array());
        (providers.map_or(0, Vec::len) == count).then_some(())
    });
}

/// What a node pays, or is paid, in all.
pub(crate) fn total(network: &Network, node: &str) -> Amount {
    let channels: Vec<ChannelInfo> = network.api(node).get("/v1/channels").unwrap();
    let paid = channels
        .iter()
        .map(|channel| channel.cumulative.parse().unwrap());
    paid.fold(Amount::ZERO, Amount::saturating_add)
}
