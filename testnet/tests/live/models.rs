//! Models of others' servers, asked through a gateway.
//!
//! A stand-in speaks as such a server does, and its answers say which one it was and what
//! it was asked.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use serde_json::{Value, json};
use suanli_protocol::units::Amount;

use crate::{
    asking::{self, ask, events, models, open, request, total, wait_for_providers},
    network::{CLIENT, Network, eventually},
};

/// Words of an answer that has no end of its own.
const ENDLESS: u64 = 100_000;
/// Tokens of each question, as the stand-in counts.
const READ: u64 = 7;

/// A model's server.
pub(crate) struct Server {
    address: SocketAddr,
    /// Answers to no question but that for its models.
    silent: Arc<AtomicBool>,
    /// Its list is empty.
    empty: Arc<AtomicBool>,
    /// Words that were written to somebody who was there.
    written: Arc<AtomicU64>,
    /// Answers that nobody heard to their end.
    dropped: Arc<AtomicU64>,
}

impl Server {
    pub(crate) fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            silent: Arc::default(),
            empty: Arc::default(),
            written: Arc::default(),
            dropped: Arc::default(),
        };
        let shared = server.shared();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || shared.answer(name, stream));
            }
        });
        server
    }

    fn shared(&self) -> Shared {
        Shared {
            silent: Arc::clone(&self.silent),
            empty: Arc::clone(&self.empty),
            written: Arc::clone(&self.written),
            dropped: Arc::clone(&self.dropped),
        }
    }
}

#[derive(Clone)]
struct Shared {
    silent: Arc<AtomicBool>,
    empty: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    dropped: Arc<AtomicU64>,
}

impl Shared {
    fn answer(&self, name: &str, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut first = String::new();
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) <= 2 {
                break;
            }
            let line = line.to_ascii_lowercase();
            if let Some(said) = line.strip_prefix("content-length:") {
                length = said.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        if first.starts_with("GET /v1/models ") {
            let ids = if self.empty.load(SeqCst) {
                &[][..]
            } else {
                &["inside"]
            };
            let data: Vec<Value> = ids.iter().map(|id| json!({ "id": id })).collect();
            return whole(stream, 200, &json!({ "data": data }));
        }
        let question: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(question["model"], "inside", "the alias is not used");
        if self.silent.load(SeqCst) {
            return;
        }
        let said = question["messages"][0]["content"].as_str().unwrap_or("");
        if said == "wrong" {
            let error = json!({ "error": { "message": "no such sampler", "type": "bad" } });
            return whole(stream, 400, &error);
        }
        let words = question["max_tokens"].as_u64().unwrap_or(ENDLESS);
        if question["stream"] == true {
            self.stream(stream, (name, said), words);
        } else {
            self.written.fetch_add(words, SeqCst);
            let text = (0..words)
                .map(|n| format!("{name}{n} "))
                .collect::<String>();
            whole(stream, 200, &answer("message", &text, Some(words)));
        }
    }

    fn stream(&self, mut stream: TcpStream, (name, said): (&str, &str), words: u64) {
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        if stream.write_all(head.as_bytes()).is_err() {
            return;
        }
        let mut send = |value: Option<&Value>| {
            let text = value.map_or_else(|| "[DONE]".to_owned(), Value::to_string);
            stream.write_all(format!("data: {text}\n\n").as_bytes())
        };
        for n in 0..words {
            let word = format!("{name}{n}:{said} ");
            if send(Some(&answer("delta", &word, None))).is_err() {
                self.dropped.fetch_add(1, SeqCst);
                return;
            }
            self.written.fetch_add(1, SeqCst);
            std::thread::sleep(Duration::from_millis(5));
        }
        let usage = json!({ "choices": [], "usage": used(words), "model": "inside" });
        let _ = send(Some(&usage));
        let _ = send(None);
    }
}

fn used(words: u64) -> Value {
    json!({ "prompt_tokens": READ, "completion_tokens": words, "total_tokens": READ + words })
}

fn answer(part: &str, text: &str, words: Option<u64>) -> Value {
    let mut answer = json!({
        "model": "inside",
        "choices": [{ "index": 0, part: { "role": "assistant", "content": text } }],
    });
    if let Some(words) = words {
        answer["usage"] = used(words);
    }
    answer
}

fn whole(mut stream: TcpStream, status: u16, body: &Value) {
    let body = body.to_string();
    let text = format!(
        "HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(text.as_bytes());
}

/// A client, and providers of rising prices, each with a server behind it.
pub(crate) fn network(servers: &[(&str, &Server)]) -> Network {
    let ranked = (1..).zip(servers);
    let providers = ranked.map(|(rank, (name, server))| {
        let settings = format!(
            "[provide]\nslots = 1\n[[provide.model]]\nname = \"small\"\nas = \"inside\"\n\
             upstream = \"http://{}\"\nprice_in = \"{rank}\"\nprice_out = \"{}\"\n\
             context = 2048\nkind = \"cpu\"\n",
            server.address,
            rank * 10
        );
        (*name, settings)
    });
    asking::network(providers.collect())
}

pub(crate) fn question(said: &str, words: Option<u64>, streams: bool) -> Value {
    let mut question = json!({
        "model": "small",
        "stream": streams,
        "messages": [{ "role": "user", "content": said }],
    });
    if let Some(words) = words {
        question["max_tokens"] = words.into();
    }
    question
}

#[test]
fn live_a_model_answers_through_the_gateway_and_is_paid_by_tokens() {
    let server = Server::start("a");
    let network = network(&[("seller", &server)]);
    wait_for_providers(&network, 1);

    let (status, body) = ask(&network, &question("hello", Some(5), false));
    assert_eq!(status, 200, "{body}");
    let whole: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(whole["model"], "small", "{whole}");
    assert_eq!(whole["usage"], used(5));
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(text, "a0 a1 a2 a3 a4 ");

    let mut streamed = question("hello", Some(20), true);
    let (status, body) = ask(&network, &streamed);
    assert_eq!(status, 200);
    let plain = events(&body);
    assert_eq!(plain.len(), 21, "{body}");
    assert_eq!(plain[3]["choices"][0]["delta"]["content"], "a3:hello ");
    assert_eq!(plain[20], "[DONE]");
    streamed["stream_options"] = json!({ "include_usage": true });
    let (_, body) = ask(&network, &streamed);
    let with_usage = events(&body);
    assert_eq!(with_usage.len(), 22, "{body}");
    assert_eq!(with_usage[20]["usage"], used(20));

    // What was refused is the server's own word, and costs nothing.
    let (status, body) = ask(&network, &question("wrong", Some(5), true));
    assert_eq!(status, 400);
    assert!(body.contains("no such sampler"), "{body}");
    let (status, body) = request(
        network.node(CLIENT),
        "POST",
        "/v1/chat/completions",
        Some(&json!({ "model": "none", "messages": [{}] })),
    );
    assert_eq!(status, 404);
    assert!(body.contains("model_not_found"), "{body}");

    // 1 and 10 for a million tokens each: 21 read, 45 written.
    let due = Amount::from_micros(3 * READ + 10 * 45);
    eventually("all is paid, on both sides", || {
        let totals = [CLIENT, "seller"].map(|node| total(&network, node));
        (totals == [due, due]).then_some(())
    });
}

#[test]
fn live_who_hangs_up_stops_the_server_and_pays_what_was_written() {
    let server = Server::start("a");
    let network = network(&[("seller", &server)]);
    wait_for_providers(&network, 1);
    let endless = question("go on", None, true);
    let mut stream = open(
        network.node(CLIENT),
        "POST",
        "/v1/chat/completions",
        Some(&endless),
    );
    let mut some = [0; 2000];
    stream.read_exact(&mut some).unwrap();
    drop(stream);
    eventually("the server is told", || {
        (server.dropped.load(SeqCst) == 1).then_some(())
    });
    let written = server.written.load(SeqCst);
    let paid = eventually("it is paid", || {
        let paid = total(&network, CLIENT);
        (paid > Amount::ZERO).then(|| paid.as_micros())
    });
    assert!(
        paid >= 10 * 10 && paid <= 10 * (written + 32),
        "{paid} for {written}"
    );
    eventually("both say the same", || {
        (total(&network, "seller").as_micros() == paid).then_some(())
    });
}

#[test]
fn live_a_model_whose_server_is_gone_leaves_the_list_and_others_answer() {
    let (first, second) = (Server::start("a"), Server::start("b"));
    let network = network(&[("first", &first), ("second", &second)]);
    wait_for_providers(&network, 2);
    let (_, body) = ask(&network, &question("hello", Some(2), false));
    assert!(body.contains("a0 a1"), "{body}");
    // It says that it has the model, and answers nothing.
    first.silent.store(true, SeqCst);
    let (status, body) = ask(&network, &question("hello", Some(2), false));
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("b0 b1"), "{body}");
    first.empty.store(true, SeqCst);
    wait_for_providers(&network, 1);
    second.empty.store(true, SeqCst);
    eventually("no model is left", || {
        models(&network).is_empty().then_some(())
    });
    let (status, _) = ask(&network, &question("hello", Some(2), false));
    assert_eq!(status, 404);
}
