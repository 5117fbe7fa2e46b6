//! How well an answer shows which model has written it.
//!
//! ```sh
//! cargo run --release --example audit -- CLAIMED.gguf OTHER.gguf… [--answers N] [--tokens N]
//! ```
//!
//! Each model writes answers to the same questions, half of them the likeliest token always,
//! half drawn. The first model then scores all of them, its own included: which tokens would
//! it have written itself, after the same ones and with the same chance? A line of JSON for
//! each answer says how many it would have, and the mean of the logarithms of its tokens'
//! likelihoods; and the mean of how far each was behind the one that it would have written,
//! of which each counts no more than a few. `testnet/src/bench/audit.py` makes the files, and
//! the curve.

use std::{fs, path::Path};

use suanli_executor::{
    ipc::model::{Ask, Load, Prompt, Sampling, Score, Speaker, Turn, Word},
    model::answers::Answers,
};
use suanli_protocol::wire::{List, Utf8};

/// The most that a token counts: one that is far behind is no worse than one that is farther.
const BEHIND_MAX: f32 = 3.0;
/// What people ask.
const QUESTIONS: [&str; 16] = [
    "What is the capital of France?",
    "Write two sentences about the sea.",
    "How do I boil an egg?",
    "Name three kinds of trees.",
    "Why is the sky blue?",
    "Tell me a short story about a fox.",
    "What is a prime number?",
    "Give me a recipe for pancakes.",
    "Explain what an atom is.",
    "What should I pack for a week in the mountains?",
    "Write a polite letter that declines an invitation.",
    "How does a bicycle stay upright?",
    "What is the difference between a lake and a river?",
    "List the planets.",
    "What makes bread rise?",
    "Describe an autumn morning.",
];

fn main() {
    let (mut files, mut answers, mut tokens) = (Vec::new(), 32, 64_u32);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> u32 {
            let number = arguments.next().and_then(|number| number.parse().ok());
            number.expect("a number follows the option")
        };
        match argument.as_str() {
            "--answers" => answers = number(),
            "--tokens" => tokens = number(),
            _ => files.push(argument),
        }
    }
    let mut claimed = model(files.first().expect("give the file of a model"));
    for file in &files {
        let mut writer = model(file);
        for number in 0..answers {
            let ask = ask(number, tokens);
            let written = written(&mut writer, &ask);
            let scores = scores(&mut claimed, &ask, &written);
            let agreed = (scores.iter().zip(&written))
                .filter(|(score, token)| score.instead == Some(**token))
                .count();
            let sum: f64 = scores
                .iter()
                .map(|score| f64::from(score.logarithm.get()))
                .sum();
            #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
            let mean = sum / scores.len().max(1) as f64;
            let capped = |score: &Score| f64::from(score.behind.get().min(BEHIND_MAX));
            let behind: f64 = scores.iter().map(capped).sum();
            #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
            let behind = behind / scores.len().max(1) as f64;
            println!(
                "{{\"writer\":{file:?},\"greedy\":{},\"tokens\":{},\"agreed\":{agreed},\
                 \"mean\":{mean:.4},\"behind\":{behind:.5}}}",
                ask.sampling.temperature == 0.0,
                scores.len(),
            );
        }
    }
}

fn model(file: impl AsRef<Path>) -> Answers {
    let bytes = fs::read(&file).unwrap_or_else(|error| panic!("{error}"));
    let load = Load {
        threads: 2,
        cache_bytes_max: 256 << 20,
        context_max: 1024,
    };
    Answers::read(&bytes, &load).unwrap_or_else(|error| panic!("{error}"))
}

/// A question, and chance of its own.
fn ask(number: u32, tokens: u32) -> Ask {
    const COUNT: u32 = 16;
    let place = usize::try_from(number % COUNT).unwrap_or(0);
    let question = QUESTIONS[place];
    let turns = vec![Turn::new(Speaker::User, Utf8::cut(question))];
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&number.to_le_bytes());
    // Each question once with chance, and once without.
    let is_greedy = number / COUNT % 2 == 1;
    let sampling = match is_greedy {
        true => Sampling::greedy(),
        false => Sampling::default(),
    };
    Ask {
        seed,
        sampling,
        tokens_max: Some(tokens),
        ..Ask::new(Prompt::conversation(List::truncated(turns)))
    }
}

fn heard(answers: &mut Answers, ask: &Ask) -> Vec<Word> {
    let mut words = Vec::new();
    answers.ask(1, ask, |word| words.push(word));
    while !answers.is_idle() {
        let step = answers.step(|word| words.push(word));
        step.unwrap_or_else(|error| panic!("{error}"));
    }
    words
}

fn written(answers: &mut Answers, ask: &Ask) -> Vec<u32> {
    let token = |word: &Word| match word {
        Word::Wrote { token, .. } => Some(*token),
        _ => None,
    };
    heard(answers, ask).iter().filter_map(token).collect()
}

fn scores(answers: &mut Answers, ask: &Ask, written: &[u32]) -> Vec<Score> {
    let mut doubted = ask.clone();
    doubted.scores = true;
    doubted.begun = List::truncated(written.to_vec());
    let scores = heard(answers, &doubted).into_iter().map(|word| match word {
        Word::Scored { scores, .. } => scores.into_vec(),
        _ => Vec::new(),
    });
    scores.flatten().collect()
}
