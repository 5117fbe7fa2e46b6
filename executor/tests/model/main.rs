//! A model in a real worker: asked, stopped, killed, and given files that are none.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test says by panicking what is wrong"
)]

use std::{fs, path::Path, time::Duration};

use suanli_executor::{
    ModelAnswer, ModelConfig, ModelServer, ModelState, WorkerProgram,
    ipc::model::{Ask, Embed, EmbedInput, Facts, Finish, Prompt, Speaker, Turn, Word},
    model::testing::{small_encoder, small_model},
};
use suanli_protocol::wire::{List, Utf8};
use tempfile::TempDir;
use tokio::time::timeout;

const WAIT: Duration = Duration::from_secs(120);

fn server(file: &Path) -> ModelServer {
    ModelServer::start(ModelConfig {
        program: WorkerProgram::find(None).unwrap(),
        file: file.to_owned(),
        adapter: None,
        threads: 1,
        cache_bytes_max: 16 << 20,
        context_max: 0,
    })
    .unwrap()
}

fn model(folder: &TempDir, seed: u64) -> ModelServer {
    let file = folder.path().join(format!("{seed}.gguf"));
    fs::write(&file, small_model(seed)).unwrap();
    server(&file)
}

async fn serves(server: &ModelServer) -> Facts {
    let mut state = server.state();
    let serves = state.wait_for(|state| matches!(state, ModelState::Serves(_)));
    match &*timeout(WAIT, serves).await.unwrap().unwrap() {
        ModelState::Serves(facts) => facts.clone(),
        other => panic!("{other:?}"),
    }
}

fn ask(text: &str, tokens_max: u32) -> Ask {
    let turn = Turn::new(Speaker::User, Utf8::cut(text));
    Ask {
        seed: [1; 32],
        tokens_max: Some(tokens_max),
        ..Ask::new(Prompt::conversation(List::truncated(vec![turn])))
    }
}

/// All words of an answer; none after them.
async fn words(mut answer: ModelAnswer) -> Vec<Word> {
    let mut words = Vec::new();
    while let Some(word) = timeout(WAIT, answer.next()).await.unwrap() {
        words.push(word);
    }
    words
}

fn tokens(words: &[Word]) -> Vec<u32> {
    let token = |word: &Word| match word {
        Word::Wrote { token, .. } => Some(*token),
        _ => None,
    };
    words.iter().filter_map(token).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ask_at_once_and_get_what_they_would_get_alone() {
    let folder = TempDir::new().unwrap();
    let server = model(&folder, 1);
    let facts = serves(&server).await;
    assert_eq!((facts.context, &*facts.quantisation), (4096, "Q8_0"));
    assert!(facts.converses);
    let text = |n: u32| format!("question {n}");
    let mut asked = Vec::new();
    for n in 0..12 {
        asked.push(tokio::spawn(words(server.ask(ask(&text(n), 40)).await)));
    }
    let mut written = 0;
    for (n, together) in (0..).zip(asked) {
        let together = tokens(&together.await.unwrap());
        let alone = tokens(&words(server.ask(ask(&text(n), 40)).await).await);
        assert_eq!(together, alone);
        written += together.len();
    }
    assert!(written > 100, "{written}");
    // Another model says something else.
    let other = model(&folder, 2);
    serves(&other).await;
    let said = |words: Vec<Word>| tokens(&words);
    assert_ne!(
        said(words(server.ask(ask("who are you", 40)).await).await),
        said(words(other.ask(ask("who are you", 40)).await).await),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_hears_is_stopped() {
    let folder = TempDir::new().unwrap();
    let server = model(&folder, 1);
    serves(&server).await;
    // More of them than are computed at once would have to end before the last is heard.
    for n in 0..100 {
        let mut answer = server.ask(ask(&format!("{n}"), 4000)).await;
        let first = timeout(WAIT, answer.next()).await.unwrap();
        assert!(matches!(first, Some(Word::Began { .. })), "{first:?}");
    }
    let last = words(server.ask(ask("x", 5)).await).await;
    assert!(matches!(
        last.last(),
        Some(Word::Ended {
            finish: Finish::Length | Finish::Stop,
            ..
        })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_breaks_its_answers_off_and_comes_back() {
    let folder = TempDir::new().unwrap();
    let server = model(&folder, 1);
    serves(&server).await;
    let mut answer = server.ask(ask("x", 4000)).await;
    timeout(WAIT, answer.next()).await.unwrap().unwrap();
    let worker = children().into_iter().find(|child| is_model(*child));
    let pid = i32::try_from(worker.unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let rest = words(answer).await;
    assert!(rest.iter().all(|word| !word.is_last()));
    let mut state = server.state();
    let is_down = |state: &ModelState| !matches!(state, ModelState::Serves(_));
    timeout(WAIT, state.wait_for(is_down))
        .await
        .unwrap()
        .unwrap();
    serves(&server).await;
    let words = words(server.ask(ask("x", 5)).await).await;
    assert!(words.last().is_some_and(Word::is_last));
}

fn texts(count: usize) -> Embed {
    let text = |n| EmbedInput::Text(Utf8::cut(&format!("the cafe {n}")));
    Embed {
        inputs: List::new((0..count).map(text).collect()).unwrap(),
    }
}

fn vectors(words: &[Word]) -> Vec<&[u8]> {
    let vectors = words.iter().filter_map(|word| match word {
        Word::Embedded { vector, .. } => Some(&vector[..]),
        _ => None,
    });
    vectors.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoder_gives_vectors_to_many_at_once() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("encoder.gguf");
    fs::write(&file, small_encoder(1)).unwrap();
    let server = server(&file);
    let facts = serves(&server).await;
    assert_eq!((facts.embeds, facts.converses), (Some(96), false));
    assert_eq!(&*facts.quantisation, "F16");
    let most = words(server.embed(texts(2048)).await).await;
    let few = words(server.embed(texts(3)).await).await;
    assert_eq!(vectors(&most).len(), 2048);
    assert_eq!(vectors(&most)[..3], vectors(&few)[..]);
    // Who hangs up is forgotten, whatever was asked.
    for _ in 0..3 {
        drop(server.embed(texts(2048)).await);
        let mut left = server.embed(texts(2048)).await;
        timeout(WAIT, left.next()).await.unwrap().unwrap();
    }
    let again = words(server.embed(texts(1)).await).await;
    assert_eq!(vectors(&again)[0], vectors(&few)[0]);
    // It writes nothing.
    let written = words(server.ask(ask("x", 5)).await).await;
    assert!(matches!(&written[..], [Word::Refused { why, .. }] if why.contains("embeddings")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_model_is_down_and_says_why() {
    let folder = TempDir::new().unwrap();
    let none = server(&folder.path().join("none.gguf"));
    let text = folder.path().join("text.gguf");
    fs::write(&text, "no model at all").unwrap();
    let cut = folder.path().join("cut.gguf");
    let whole = small_model(1);
    fs::write(&cut, &whole[..whole.len() - 1000]).unwrap();
    for (server, expected) in [
        (none, "No such file"),
        (server(&text), "GGUF"),
        (server(&cut), "copied in full"),
    ] {
        let mut state = server.state();
        let is_down = |state: &ModelState| matches!(state, ModelState::Down(_));
        let down = timeout(WAIT, state.wait_for(is_down)).await.unwrap();
        match &*down.unwrap() {
            ModelState::Down(why) => assert!(why.contains(expected), "{why}"),
            other => panic!("{other:?}"),
        }
        assert!(words(server.ask(ask("x", 5)).await).await.is_empty());
    }
}

/// Processes that this one has started.
fn children() -> Vec<u32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let of = |task: std::io::Result<fs::DirEntry>| {
        fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default()
    };
    let all: Vec<String> = tasks.map(of).collect();
    all.iter()
        .flat_map(|all| all.split_whitespace().filter_map(|pid| pid.parse().ok()))
        .collect()
}

fn is_model(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"model")
}
