//! A model on this machine, without the exchange around it: on the processor, in this
//! process, or on a device, in a worker.
//!
//! ```text
//! generate MODEL --prompt TEXT            goes on with a text
//! generate MODEL --chat TEXT              answers a message
//! generate MODEL --ids 1,2,3              goes on with tokens, and prints tokens
//! generate MODEL --encode FILE            prints the tokens of each line, a JSON string
//! generate MODEL --perplexity FILE        how well it foresees a text
//! generate MODEL --score FILE             logarithms of probabilities: of each token of
//!                                         each line of tokens, after those before it
//! generate MODEL --bench                  tokens per second, as JSON
//!
//!   --tokens N        how many are made at most (128); --bench: after the prompt (64)
//!   --threads N       threads (2)
//!   --temperature X   0 takes the best token always (0)
//!   --top-p X         of which share (1)
//!   --seed N          of chance (0)
//!   --length N        --bench: tokens of a prompt (128)
//!   --batch N         --bench: sequences at a time (1)
//!   --runs N          --bench: how often (5)
//!   --alternatives N  --ids: also the N best logits of each step; --score: the N best
//!   --avx2            no instructions beyond AVX2, to compare with what has no others
//!   --adapter N       the device with this number, as `suanli doctor` lists them, in a
//!                     worker: only for --ids and --bench
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "an example that fails has nothing to say, and rates are rounded"
)]

use std::{
    collections::HashMap,
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use suanli_executor::{
    ModelConfig, ModelServer, ModelState, WorkerProgram,
    ipc::model::{Ask, Prompt, Sampling, Word},
    model::{
        chat::{Chat, Message, Role},
        cpu::{Engine, EngineOptions, Weights},
        engine::{Engine as _, SequenceId, Step},
        gguf::Gguf,
        llama::Llama,
        sampler::{Sampler, SamplerOptions},
        tokenizer::{TextStream, Tokenizer},
    },
};
use suanli_protocol::wire::List;

const CACHE_BYTES: usize = 2 << 30;
/// Steps of a call.
const STEPS: usize = 512;
/// Tokens whose perplexity is computed together.
const WINDOW: usize = 512;

fn main() {
    let arguments = Arguments::read();
    if arguments.has("adapter") {
        return on_a_device(&arguments);
    }
    let bytes = std::fs::read(&arguments.model).unwrap();
    let file = Gguf::parse(&bytes).unwrap_or_else(|error| panic!("{error}"));
    let model = Llama::read(&file).unwrap_or_else(|error| panic!("{error}"));
    let began = Instant::now();
    let weights = Arc::new(Weights::new(&model));
    eprintln!("weights arranged in {:?}", began.elapsed());
    let options = EngineOptions {
        threads: arguments.number("threads", 2),
        cache_bytes_max: CACHE_BYTES,
    };
    let mut engine = if arguments.has("avx2") {
        Engine::with_avx2_at_most(weights, options).unwrap()
    } else {
        Engine::new(weights, options).unwrap()
    };
    if arguments.has("bench") {
        return bench(&mut engine, &arguments);
    }
    if let Some(file) = arguments.text("score") {
        return score(&mut engine, &arguments, file);
    }
    let tokenizer = Tokenizer::read(&file).unwrap_or_else(|error| panic!("{error}"));
    if let Some(file) = arguments.text("encode") {
        return encode(&tokenizer, file);
    }
    if let Some(file) = arguments.text("perplexity") {
        return perplexity(&mut engine, &tokenizer, file);
    }
    if let Some(ids) = arguments.text("ids") {
        return tokens(&mut engine, &arguments, &numbers(ids));
    }
    let prompt = if let Some(text) = arguments.text("chat") {
        let chat = Chat::read(&file, &tokenizer).unwrap_or_else(|error| panic!("{error}"));
        let message = Message::new(Role::User, text.to_owned());
        chat.prompt(&tokenizer, &[message], &[], true).unwrap()
    } else {
        let text = arguments.text("prompt").expect("give --prompt or --chat");
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        bos.into_iter()
            .chain(tokenizer.encode(text).unwrap())
            .collect()
    };
    generate(&mut engine, &tokenizer, &arguments, &prompt);
}

#[tokio::main(flavor = "current_thread")]
async fn on_a_device(arguments: &Arguments) {
    let server = ModelServer::start(ModelConfig {
        program: WorkerProgram::find(None).unwrap_or_else(|error| panic!("{error}")),
        file: arguments.model.clone().into(),
        adapter: Some(u32::try_from(arguments.number("adapter", 0)).unwrap()),
        threads: u32::try_from(arguments.number("threads", 2)).unwrap(),
        cache_bytes_max: CACHE_BYTES as u64,
        context_max: 0,
    });
    let server = server.unwrap();
    let mut state = server.state();
    let known = state.wait_for(|state| *state != ModelState::Loading).await;
    let facts = match &*known.unwrap() {
        ModelState::Serves(facts) => facts.clone(),
        other => panic!("{other:?}"),
    };
    eprintln!("computed by {:?}", facts.device.as_deref());
    if let Some(ids) = arguments.text("ids") {
        let count = arguments.number("tokens", 128);
        let (_, written) = written(&server, vec![numbers(ids)], count).await;
        return written.iter().for_each(|token| println!("{token}"));
    }
    assert!(
        arguments.has("bench"),
        "give --ids or --bench with --adapter"
    );
    let (length, batch) = (
        arguments.number("length", 128),
        arguments.number("batch", 1),
    );
    let vocabulary = usize::try_from(facts.vocabulary).unwrap();
    let prompts = prompts(batch, length, vocabulary);
    let count = arguments.number("tokens", 64);
    let (mut prefills, mut decodes, mut firsts) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..=arguments.number("runs", 5) {
        let began = Instant::now();
        let (times, written) = written(&server, prompts.clone(), count).await;
        let (first, last) = (times[batch - 1] - began, *times.last().unwrap() - began);
        if run > 0 {
            firsts.push(first.as_secs_f64() * 1e3);
            prefills.push(rate(batch * length, first));
            decodes.push(rate(written.len() - batch, last - first));
        }
    }
    println!(
        "{{\"batch\":{batch},\"length\":{length},\"tokens\":{count},\"prefill_tokens_s\":{},\"decode_tokens_s\":{},\"first_tokens_ms\":{}}}",
        spread(prefills),
        spread(decodes),
        spread(firsts),
    );
}

/// What a worker writes after these prompts, the likeliest always: when each token came, and
/// which, in the order of coming.
async fn written(
    server: &ModelServer,
    prompts: Vec<Vec<u32>>,
    count: usize,
) -> (Vec<Instant>, Vec<u32>) {
    let mut answers = tokio::task::JoinSet::new();
    for prompt in prompts {
        let answer = server.ask(Ask {
            sampling: Sampling::greedy(),
            tokens_max: Some(u32::try_from(count).unwrap()),
            ..Ask::new(Prompt::Tokens(List::truncated(prompt)))
        });
        let mut answer = answer.await;
        answers.spawn(async move {
            let mut tokens = Vec::new();
            while let Some(word) = answer.next().await {
                if let Word::Wrote { token, .. } = word {
                    tokens.push((Instant::now(), token));
                }
            }
            tokens
        });
    }
    let mut all: Vec<(Instant, u32)> = answers.join_all().await.concat();
    all.sort_by_key(|(time, _)| *time);
    all.into_iter().unzip()
}

/// Tokens that mean nothing, others for each sequence.
fn prompts(batch: usize, length: usize, vocabulary: usize) -> Vec<Vec<u32>> {
    let token = |at| u32::try_from(at * 7919 % vocabulary).unwrap();
    let prompt = |sequence| {
        let all = sequence * length..(sequence + 1) * length;
        all.map(token).collect()
    };
    (0..batch).map(prompt).collect()
}

fn generate(engine: &mut Engine, tokenizer: &Tokenizer, arguments: &Arguments, prompt: &[u32]) {
    let mut sampler = arguments.sampler();
    let mut text = TextStream::new();
    let mut token = sampler.sample(&prefill(engine, prompt));
    for position in prompt.len()..prompt.len() + arguments.number("tokens", 128) {
        if tokenizer.is_end(token) {
            break;
        }
        print!("{}", text.push(tokenizer, token));
        std::io::stdout().flush().unwrap();
        token = sampler.sample(&next(engine, token, position));
    }
    println!("{}", text.finish());
}

fn tokens(engine: &mut Engine, arguments: &Arguments, prompt: &[u32]) {
    let mut sampler = arguments.sampler();
    let mut logits = prefill(engine, prompt);
    for position in prompt.len()..prompt.len() + arguments.number("tokens", 128) {
        let token = sampler.sample(&logits);
        print!("{token}");
        for other in largest(&logits, arguments.number("alternatives", 0)) {
            print!(" {other} {}", logits[other]);
        }
        println!();
        logits = next(engine, token, position);
    }
}

fn encode(tokenizer: &Tokenizer, file: &str) {
    for line in std::fs::read_to_string(file).unwrap().lines() {
        // Strings of JSON as Rust's debug writes them would need a parser; hex does not.
        let bytes: Vec<u8> = (0..line.len() / 2)
            .map(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let text = String::from_utf8(bytes).unwrap();
        let show = |tokens: Vec<u32>| {
            let tokens: Vec<String> = tokens.iter().map(u32::to_string).collect();
            tokens.join(",")
        };
        let plain = tokenizer.encode(&text).unwrap();
        let mut stream = TextStream::new();
        let mut back: String = plain
            .iter()
            .map(|token| stream.push(tokenizer, *token))
            .collect();
        back.push_str(&stream.finish());
        assert_eq!(back, text);
        println!(
            "{} {}",
            show(plain),
            show(tokenizer.encode_prompt(&text).unwrap())
        );
    }
}

/// Each line has nothing before it; its first token is given.
fn score(engine: &mut Engine, arguments: &Arguments, file: &str) {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::fs::read_to_string(file).unwrap().lines() {
        let tokens = numbers(line);
        let steps = steps(&tokens, 0, SequenceId(0), |_| true);
        let logits = engine.forward(&steps[..tokens.len() - 1]).unwrap();
        for (row, token) in logits.rows().zip(&tokens[1..]) {
            let chances = chances(row);
            write!(out, "{:.6}", chances[usize::try_from(*token).unwrap()]).unwrap();
            for other in largest(row, arguments.number("alternatives", 0)) {
                write!(out, " {other} {:.6}", chances[other]).unwrap();
            }
            writeln!(out).unwrap();
        }
        engine.end(SequenceId(0));
    }
}

/// By windows, each with nothing before it; the first token of each is given.
fn perplexity(engine: &mut Engine, tokenizer: &Tokenizer, file: &str) {
    let tokens = tokenizer
        .encode(&std::fs::read_to_string(file).unwrap())
        .unwrap();
    let (mut sum, mut count) = (0.0, 0_usize);
    for window in tokens.chunks(WINDOW).filter(|window| window.len() > 1) {
        let sequence = SequenceId(0);
        let steps: Vec<Step> = steps(window, 0, sequence, |_| true);
        let logits = engine.forward(&steps[..window.len() - 1]).unwrap();
        for (row, token) in logits.rows().zip(&window[1..]) {
            sum += chances(row)[usize::try_from(*token).unwrap()];
            count += 1;
        }
        engine.end(sequence);
    }
    let perplexity = (-sum / count as f64).exp();
    println!("{{\"tokens\":{count},\"perplexity\":{perplexity:.5}}}");
}

/// Logarithms of the probabilities of all tokens.
fn chances(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let above = |logit: &f32| f64::from(logit - largest);
    let all: f64 = logits.iter().map(|logit| above(logit).exp()).sum();
    logits.iter().map(|logit| above(logit) - all.ln()).collect()
}

/// Which are the largest, the largest first.
fn largest(logits: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    order.truncate(count);
    order
}

fn numbers(list: &str) -> Vec<u32> {
    list.split(',')
        .map(|number| number.parse().unwrap())
        .collect()
}

fn bench(engine: &mut Engine, arguments: &Arguments) {
    let (length, batch) = (
        arguments.number("length", 128),
        arguments.number("batch", 1),
    );
    let (count, vocabulary) = (arguments.number("tokens", 64), engine.config().vocabulary);
    let (mut prefills, mut decodes, mut firsts) = (Vec::new(), Vec::new(), Vec::new());
    // One more, which does not count: it takes memory that the others find.
    for run in 0..=arguments.number("runs", 5) {
        let began = Instant::now();
        let all: Vec<Step> = (0..)
            .zip(prompts(batch, length, vocabulary))
            .flat_map(|(id, prompt)| steps(&prompt, 0, SequenceId(id), |at| at + 1 == length))
            .collect();
        let mut next: Vec<u32> = Vec::new();
        for steps in all.chunks(STEPS) {
            next.extend(engine.forward(steps).unwrap().rows().map(best));
        }
        let prefill = began.elapsed();
        let began = Instant::now();
        for position in length..length + count {
            let steps: Vec<Step> = (0..)
                .zip(&next)
                .map(|(sequence, token)| Step {
                    sequence: SequenceId(sequence),
                    token: *token,
                    position: u32::try_from(position).unwrap(),
                    wants_logits: true,
                })
                .collect();
            next = engine.forward(&steps).unwrap().rows().map(best).collect();
        }
        let decode = began.elapsed();
        if run > 0 {
            firsts.push(prefill.as_secs_f64() * 1e3);
            prefills.push(rate(batch * length, prefill));
            decodes.push(rate(batch * count, decode));
        }
        (0..)
            .take(batch)
            .for_each(|sequence| engine.end(SequenceId(sequence)));
    }
    let threads = arguments.number("threads", 2);
    println!(
        "{{\"threads\":{threads},\"batch\":{batch},\"length\":{length},\"tokens\":{count},\"prefill_tokens_s\":{},\"decode_tokens_s\":{},\"first_tokens_ms\":{}}}",
        spread(prefills),
        spread(decodes),
        spread(firsts),
    );
}

fn spread(mut rates: Vec<f64>) -> String {
    rates.sort_by(f64::total_cmp);
    let (first, middle, last) = (rates[0], rates[rates.len() / 2], rates[rates.len() - 1]);
    format!("{{\"median\":{middle:.1},\"least\":{first:.1},\"most\":{last:.1}}}")
}

fn rate(tokens: usize, time: Duration) -> f64 {
    tokens as f64 / time.as_secs_f64()
}

fn best(logits: &[f32]) -> u32 {
    let best = (0..).zip(logits).max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.map_or(0, |(token, _)| token)
}

/// The logits after a prompt.
fn prefill(engine: &mut Engine, prompt: &[u32]) -> Vec<f32> {
    let mut last = Vec::new();
    for (number, tokens) in prompt.chunks(STEPS).enumerate() {
        let first = number * STEPS;
        let steps = steps(tokens, first, SequenceId(0), |at| {
            first + at + 1 == prompt.len()
        });
        let logits = engine.forward(&steps).unwrap();
        last = logits.row(0).unwrap_or_default().to_vec();
    }
    last
}

fn next(engine: &mut Engine, token: u32, position: usize) -> Vec<f32> {
    let steps = steps(&[token], position, SequenceId(0), |_| true);
    engine.forward(&steps).unwrap().row(0).unwrap().to_vec()
}

fn steps(
    tokens: &[u32],
    first: usize,
    sequence: SequenceId,
    wants_logits: impl Fn(usize) -> bool,
) -> Vec<Step> {
    let step = |(at, token): (usize, &u32)| Step {
        sequence,
        token: *token,
        position: u32::try_from(first + at).unwrap(),
        wants_logits: wants_logits(at),
    };
    tokens.iter().enumerate().map(step).collect()
}

struct Arguments {
    model: String,
    options: HashMap<String, String>,
}

impl Arguments {
    fn read() -> Self {
        let mut arguments = std::env::args().skip(1).peekable();
        let model = arguments.next().expect("give the file of a model");
        let mut options = HashMap::new();
        while let Some(argument) = arguments.next() {
            let name = argument.strip_prefix("--").expect("options begin with --");
            let value = match name {
                "bench" | "avx2" => String::new(),
                _ => arguments.next().expect("an option has a value"),
            };
            options.insert(name.to_owned(), value);
        }
        Self { model, options }
    }

    fn has(&self, name: &str) -> bool {
        self.options.contains_key(name)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    fn number(&self, name: &str, default: usize) -> usize {
        self.text(name)
            .map_or(default, |text| text.parse().unwrap())
    }

    fn share(&self, name: &str, default: f32) -> f32 {
        self.text(name)
            .map_or(default, |text| text.parse().unwrap())
    }

    fn sampler(&self) -> Sampler {
        let options = SamplerOptions {
            temperature: self.share("temperature", 0.0),
            top_p: self.share("top-p", 1.0),
            min_p: 0.0,
        };
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.number("seed", 0).to_le_bytes());
        Sampler::new(options, seed).unwrap_or_else(|error| panic!("{error}"))
    }
}
