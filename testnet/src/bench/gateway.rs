//! What a gateway adds to a model's answers, and how many it carries.
//!
//! First a stand-in for a model's server, which has every word at once, is asked directly
//! and through a gateway and a provider, in turns: time to the first word, time for each
//! further word, and memory of the gateway after many. Then a network of providers, each
//! with several small models in workers of its own, is asked by many keys at once; each
//! model writes something else, and what comes is held against what the same model writes
//! here. At the end what all keys have counted is held against what both sides' channels
//! say.
//!
//! All nodes share one machine: what is measured is the exchange, not the models.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use suanli_executor::{
    ipc::model::{Ask, Load, Prompt, Speaker, Turn, Word},
    model::{answers::Answers, testing::small_model},
};
use suanli_node::api::types::{ChannelInfo, KeyMade};
use suanli_protocol::{
    units::Amount,
    wire::{List, Utf8},
};

use super::{
    figures::{Aim, Figure, Report},
    machine::Watch,
};
use crate::live::{Api, Programs, Testnet, Topology, topology::NodeSpec, wait_for};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Plan {
    /// Words of an answer of the stand-in
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..))]
    words: u32,
    /// Answers of a turn, direct and through the gateway
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    answers: u32,
    /// Turns
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Words after which the gateway's memory is looked at, and ten times as many
    #[arg(long, default_value_t = 100_000)]
    remembered: u32,
    /// Providers of small models
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=50))]
    providers: u16,
    /// Small models, shared out among them
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    models: u16,
    /// Keys that ask
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..))]
    keys: u16,
    /// Streams at once
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=500))]
    streams: u16,
    /// Tokens of each stream
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=2000))]
    tokens: u32,
}

/// The most that a gateway should add: to the first word in milliseconds, to each further
/// one in microseconds.
const AIMS: (f64, f64) = (2.0, 50.0);
/// Prices for a million tokens, read and written: a token is so many millionths.
const PRICES: (u64, u64) = (1, 10);
/// What all providers say: who asks so much has a credit to match.
const PROVIDE: &str =
    "[provide]\nslots = 1\nstranger_credit = \"10000\"\nstrangers_budget = \"10000\"\n";
/// How long a network may take to offer all its models, and to settle.
const PATIENCE: Duration = Duration::from_secs(300);
const GATEWAY: &str = "gateway";
const STAND_IN: &str = "stand-in";

/// Runs it, with the nodes' folders in `dir`.
pub(super) fn run(plan: &Plan, dir: &Path) -> anyhow::Result<Report> {
    let watch = Watch::begin();
    let mut figures = overhead(plan, &dir.join("overhead"))?;
    figures.extend(many(plan, &dir.join("many"))?);
    Ok(Report {
        bench: "gateway",
        figures,
        state: watch.end(),
    })
}

fn node(name: &str, settings: &str) -> anyhow::Result<NodeSpec> {
    Ok(NodeSpec {
        name: name.into(),
        region: "CN-NX".into(),
        provide: None,
        settings: settings.parse()?,
    })
}

// ---- what a gateway adds ---------------------------------------------------------------

fn overhead(plan: &Plan, dir: &Path) -> anyhow::Result<Vec<Figure>> {
    let server = stand_in()?;
    let seller = format!(
        "{PROVIDE}[[provide.model]]\nname = \"{STAND_IN}\"\nprice_in = \"{}\"\n\
         price_out = \"{}\"\nupstream = \"http://{server}\"\ncontext = 1000000\n",
        PRICES.0, PRICES.1
    );
    let nodes = vec![node(GATEWAY, "")?, node("seller", &seller)?];
    let mut testnet = Testnet::start(&Topology { nodes }, dir, Programs::find()?)?;
    let api = testnet.node(GATEWAY)?.api()?;
    await_models(&api, 1)?;
    let token = fs::read_to_string(testnet.node(GATEWAY)?.data_dir().join("api.token"))?;
    let through = (api.address(), token.trim().to_owned());
    let direct = (server, String::new());
    let question = question(STAND_IN, plan.words, 0);
    // The lease, and connections.
    ask(&through, &question)?;
    let mut firsts = [Vec::new(), Vec::new()];
    let mut words = [Vec::new(), Vec::new()];
    for _ in 0..plan.turns {
        for (place, side) in [&direct, &through].into_iter().enumerate() {
            for _ in 0..plan.answers {
                let heard = ask(side, &question)?;
                firsts[place].push(millis(heard.first));
                let rest = heard.took.saturating_sub(heard.first);
                words[place].push(1000.0 * millis(rest) / f64::from(plan.words));
            }
        }
    }
    let pid = testnet
        .node(GATEWAY)?
        .process()
        .context("no gateway")?
        .pid();
    let memory = remembered(plan, &through, pid)?;
    testnet.down()?;
    let added = |[direct, through]: [Vec<f64>; 2]| {
        let base = middle(direct);
        through.into_iter().map(|each| each - base).collect()
    };
    let [direct_first, direct_word] = [&firsts[0], &words[0]].map(|all| middle(all.clone()));
    Ok(vec![
        Figure::of(
            "first word, added by gateway and provider",
            "ms",
            added(firsts),
        )
        .aim(Aim::Below(AIMS.0))
        .note(format!("{direct_first:.2} ms directly")),
        Figure::of("each further word, added", "µs", added(words))
            .aim(Aim::Below(AIMS.1))
            .note(format!("{direct_word:.1} µs directly")),
        memory,
    ])
}

/// What the gateway's memory grows by from so many words to ten times as many.
fn remembered(plan: &Plan, through: &(SocketAddr, String), pid: u32) -> anyhow::Result<Figure> {
    let piece = 10_000.min(plan.remembered);
    let question = question(STAND_IN, piece, 0);
    let mut written = 0;
    let mut write_to = |most: u32| {
        while written < most {
            ask(through, &question)?;
            written += piece;
        }
        resident(pid)
    };
    let before = write_to(plan.remembered)?;
    let after = write_to(plan.remembered.saturating_mul(10))?;
    let growth = (after - before) / f64::from(1 << 20);
    Ok(Figure::one(
        "gateway's memory, grown by ten times the words",
        "MiB",
        growth,
    )
    .note(format!(
        "from {:.0} MiB after {} words",
        before / f64::from(1 << 20),
        plan.remembered
    )))
}

/// Bytes of memory that a process has.
fn resident(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    let kib: f64 = number.context("no VmRSS")?.parse()?;
    Ok(kib * 1024.0)
}

fn millis(time: Duration) -> f64 {
    1000.0 * time.as_secs_f64()
}

fn middle(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

/// A server that has every word at once.
fn stand_in() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || drop(answer(stream)));
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let (first, length) = head(&mut reader)?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if first.starts_with("GET") {
        let list = json!({ "data": [{ "id": STAND_IN }] }).to_string();
        let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n";
        return write!(stream, "{head}content-length: {}\r\n\r\n{list}", list.len());
    }
    let question: Value = serde_json::from_slice(&body)?;
    let words = question["max_tokens"].as_u64().unwrap_or(0);
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n";
    stream.write_all(head.as_bytes())?;
    let word = json!({ "choices": [{ "index": 0, "delta": { "content": "word " } }] });
    let word = format!("data: {word}\n\n");
    for _ in 0..words {
        stream.write_all(word.as_bytes())?;
    }
    let usage = json!({ "choices": [], "usage":
        { "prompt_tokens": 5, "completion_tokens": words, "total_tokens": 5 + words } });
    write!(stream, "data: {usage}\n\ndata: [DONE]\n\n")
}

/// The first line of a message, and the length of its body.
fn head(reader: &mut BufReader<TcpStream>) -> io::Result<(String, usize)> {
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            return Ok((first, length));
        }
        let line = line.to_ascii_lowercase();
        if let Some(said) = line.strip_prefix("content-length:") {
            length = said.trim().parse().unwrap_or(0);
        }
    }
}

// ---- asking ----------------------------------------------------------------------------

/// What was heard of an answer.
struct Heard {
    text: String,
    /// Tokens read and written, as its last event says.
    used: (u64, u64),
    first: Duration,
    took: Duration,
}

fn question(model: &str, tokens: u32, seed: u32) -> Value {
    json!({
        "model": model,
        "stream": true,
        "stream_options": { "include_usage": true },
        "max_tokens": tokens,
        "seed": seed,
        "messages": [{ "role": "user", "content": said(seed) }],
    })
}

fn said(seed: u32) -> String {
    format!("question {seed}")
}

/// Asks, and hears the answer to its end.
fn ask((address, key): &(SocketAddr, String), question: &Value) -> anyhow::Result<Heard> {
    let body = question.to_string();
    let began = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut reader = BufReader::new(stream);
    let (status, _) = head(&mut reader)?;
    let mut heard = Heard {
        text: String::new(),
        used: (0, 0),
        first: Duration::ZERO,
        took: Duration::ZERO,
    };
    let mut line = String::new();
    let mut rest = String::new();
    while reader.read_line(&mut line)? > 0 {
        let Some(data) = line.strip_prefix("data: ") else {
            rest.push_str(&line);
            line.clear();
            continue;
        };
        if data.trim_end() == "[DONE]" {
            heard.took = began.elapsed();
            return Ok(heard);
        }
        let event: Value = serde_json::from_str(data)?;
        if let Some(piece) = event["choices"][0]["delta"]["content"].as_str() {
            if heard.text.is_empty() && !piece.is_empty() {
                heard.first = began.elapsed();
            }
            heard.text.push_str(piece);
        }
        if let Some(read) = event["usage"]["prompt_tokens"].as_u64() {
            heard.used = (
                read,
                event["usage"]["completion_tokens"].as_u64().unwrap_or(0),
            );
        }
        ensure!(event["error"].is_null(), "an answer broke off: {event}");
        line.clear();
    }
    bail!("an answer has no end: {status}{rest}")
}

/// Waits until so many models are in a gateway's list.
fn await_models(api: &Api, count: usize) -> anyhow::Result<()> {
    let are_there = || {
        let list: Value = api.get("/v1/models").ok()?;
        (list["data"].as_array()?.len() == count).then_some(())
    };
    wait_for(PATIENCE, are_there).context("not all models are offered")
}

// ---- many at once ----------------------------------------------------------------------

fn many(plan: &Plan, dir: &Path) -> anyhow::Result<Vec<Figure>> {
    fs::create_dir_all(dir)?;
    let mut nodes = vec![node(GATEWAY, "")?];
    for provider in 0..plan.providers {
        nodes.push(node(
            &format!("seller-{provider}"),
            &settings(plan, dir, provider)?,
        )?);
    }
    let began = Instant::now();
    let mut testnet = Testnet::start(&Topology { nodes }, &dir.join("net"), Programs::find()?)?;
    let api = testnet.node(GATEWAY)?.api()?;
    await_models(&api, usize::from(plan.models))?;
    let started = began.elapsed();
    let keys = make_keys(&api, plan.keys)?;
    let written = written_here(plan)?;
    let began = Instant::now();
    let heard = ask_all(plan, api.address(), &keys, &written)?;
    let took = began.elapsed();
    let (read, wrote) = heard.iter().fold((0, 0), |sum, one: &Heard| {
        (sum.0 + one.used.0, sum.1 + one.used.1)
    });
    let due = Amount::from_micros(read * PRICES.0 + wrote * PRICES.1);
    settled(&testnet, plan, due)?;
    testnet.down()?;
    let firsts = heard.iter().map(|one| millis(one.first)).collect();
    let streams = plan.streams;
    Ok(vec![
        Figure::one(
            "answers, each whole and from its model",
            "",
            count(heard.len()),
        )
        .note(format!(
            "of {} models at {} providers, for {} keys; started in {:.0} s",
            plan.models,
            plan.providers,
            plan.keys,
            started.as_secs_f64()
        )),
        Figure::of("- first word, the lease included", "ms", firsts)
            .note(format!("{streams} at once")),
        Figure::one(
            "tokens, by all",
            "/s",
            count(usize::try_from(wrote)?) / took.as_secs_f64(),
        )
        .note(format!("both sides' channels say {due}")),
    ])
}

#[expect(clippy::cast_precision_loss, reason = "counts are small here")]
const fn count(number: usize) -> f64 {
    number as f64
}

fn model(number: u16) -> String {
    format!("model-{number}")
}

/// A provider's share of the models.
fn settings(plan: &Plan, dir: &Path, provider: u16) -> anyhow::Result<String> {
    let mut settings = PROVIDE.to_owned();
    for number in (provider..plan.models).step_by(plan.providers.into()) {
        let file = dir.join(format!("{number}.gguf"));
        fs::write(&file, small_model(number.into()))?;
        settings += &format!(
            "[[provide.model]]\nname = \"{}\"\nfile = \"{}\"\nprice_in = \"{}\"\n\
             price_out = \"{}\"\nthreads = 1\ncache = \"16MiB\"\nleases = 256\n",
            model(number),
            file.canonicalize()?.display(),
            PRICES.0,
            PRICES.1
        );
    }
    Ok(settings)
}

fn make_keys(api: &Api, count: u16) -> anyhow::Result<Vec<String>> {
    let mut session = api.session()?;
    let mut keys = Vec::new();
    for number in 0..count {
        let made: KeyMade = session.post("/v1/keys", &json!({ "name": format!("k{number}") }))?;
        keys.push(made.secret.tell().to_owned());
    }
    Ok(keys)
}

/// What each question is answered here, by the same models.
fn written_here(plan: &Plan) -> anyhow::Result<Vec<String>> {
    let mut models = BTreeMap::new();
    let mut texts = Vec::new();
    for number in 0..plan.keys {
        let model = number % plan.models;
        if let std::collections::btree_map::Entry::Vacant(place) = models.entry(model) {
            let load = Load {
                threads: 1,
                cache_bytes_max: 16 << 20,
                context_max: 0,
            };
            place.insert(Answers::read(&small_model(model.into()), &load)?);
        }
        let answers = models.get_mut(&model).context("it was made")?;
        texts.push(written(answers, plan.tokens, u32::from(number))?);
    }
    Ok(texts)
}

fn written(answers: &mut Answers, tokens: u32, seed: u32) -> anyhow::Result<String> {
    let turn = Turn::new(Speaker::User, Utf8::cut(&said(seed)));
    let mut chance = [0; 32];
    chance[..8].copy_from_slice(&u64::from(seed).to_le_bytes());
    chance[31] = 1;
    let ask = Ask {
        seed: chance,
        tokens_max: Some(tokens),
        ..Ask::new(Prompt::conversation(List::truncated(vec![turn])))
    };
    let mut text = String::new();
    let mut hear = |word: Word| text.push_str(&word.text());
    answers.ask(0, &ask, &mut hear);
    while !answers.is_idle() {
        answers.step(&mut hear)?;
    }
    Ok(text)
}

/// One question of each key, so many at once; each answer must be what was written here.
fn ask_all(
    plan: &Plan,
    address: SocketAddr,
    keys: &[String],
    written: &[String],
) -> anyhow::Result<Vec<Heard>> {
    let next = AtomicUsize::new(0);
    let all = Arc::new(Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let (Some(key), Some(expected)) = (keys.get(number), written.get(number)) else {
                    return Ok(());
                };
                let seed = u32::try_from(number)?;
                let name = model(u16::try_from(number)? % plan.models);
                let side = (address, key.clone());
                let heard = ask(&side, &question(&name, plan.tokens, seed))
                    .with_context(|| format!("question {number} to {name}"))?;
                ensure!(
                    heard.text == *expected,
                    "question {number} to {name}: {:?} was said, {expected:?} expected",
                    heard.text
                );
                all.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(heard);
            }
        };
        let threads: Vec<_> = (0..plan.streams).map(|_| scope.spawn(work)).collect();
        let ends = threads.into_iter().map(|thread| thread.join());
        let ends: Result<Vec<anyhow::Result<()>>, _> = ends.collect();
        ends.map_err(|_| anyhow::anyhow!("a thread died"))?
            .into_iter()
            .collect::<anyhow::Result<()>>()
    })?;
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *all))
}

/// Waits until both sides of all channels say what all answers come to.
fn settled(testnet: &Testnet, plan: &Plan, due: Amount) -> anyhow::Result<()> {
    let total = |name: &str| {
        let channels: Vec<ChannelInfo> = testnet
            .node(name)
            .ok()?
            .api()
            .ok()?
            .get("/v1/channels")
            .ok()?;
        let totals = channels.iter().map(|one| one.cumulative.parse::<Amount>());
        let sum = totals.map(Result::unwrap_or_default);
        Some(sum.fold(Amount::ZERO, Amount::saturating_add))
    };
    let mut said = (Amount::ZERO, Amount::ZERO);
    let are_equal = || {
        let sellers = (0..plan.providers).map(|provider| total(&format!("seller-{provider}")));
        let sellers: Option<Vec<Amount>> = sellers.collect();
        let sold = sellers?
            .into_iter()
            .fold(Amount::ZERO, Amount::saturating_add);
        said = (total(GATEWAY)?, sold);
        (said == (due, due)).then_some(())
    };
    wait_for(PATIENCE, are_equal).with_context(|| {
        format!(
            "{due} are due, and the channels say {} and {}",
            said.0, said.1
        )
    })
}
