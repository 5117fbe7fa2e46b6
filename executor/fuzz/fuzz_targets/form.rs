//! Bytes are a form that an answer must have, and choices of its tokens. The form is
//! understood or refused, within its time and memory; what it allows can be written, an
//! answer that was begun goes on elsewhere as it would have here, and one that is over is
//! JSON.

#![no_main]

use std::{
    panic,
    sync::atomic::{AtomicBool, Ordering},
};

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use suanli_executor::{
    ipc::model::{Form, Tools, Use},
    limits::GRAMMAR_STACK_BYTES,
    model::{
        gguf::{Gguf, TensorType},
        grammar::{Grammar, Grammars},
        testing,
        tokenizer::{TextStream, Tokenizer},
    },
};
use suanli_executor_fuzz::{cursor::Cursor, memory::most_held, room, show};
use suanli_protocol::wire::Utf8;

/// What a form, and what an answer's way through it, may take.
const MEMORY_MAX: usize = 512 << 20;
const TOKENS_MAX: usize = 200;

/// The crate that understands schemas is left to panic: whoever asked is refused then.
static MAY_PANIC: AtomicBool = AtomicBool::new(false);

fuzz_target!(init: pass_over_panics(), |bytes: &[u8]| {
    room::with_stack(GRAMMAR_STACK_BYTES, target, bytes);
});

fn pass_over_panics() {
    let ends = panic::take_hook();
    panic::set_hook(Box::new(move |why| {
        show(|| why.to_string());
        if !MAY_PANIC.load(Ordering::Relaxed) {
            ends(why);
        }
    }));
}

fn passing_over_panics<T>(work: impl FnOnce() -> T) -> T {
    MAY_PANIC.store(true, Ordering::Relaxed);
    let done = work();
    MAY_PANIC.store(false, Ordering::Relaxed);
    done
}

/// A vocabulary, and what understands forms for it.
struct Parts {
    tokenizer: Tokenizer,
    grammars: Grammars,
}

thread_local! {
    static PARTS: Parts = {
        let [file, _] = testing::model_and_its_floats("llama", TensorType::Q8_0, 16);
        let file = Gguf::parse(&file).expect("it is a model");
        let tokenizer = Tokenizer::read(&file).expect("it has a vocabulary");
        let grammars = Grammars::new(&tokenizer).expect("it can be arranged");
        Parts { tokenizer, grammars }
    };
}

fn target(bytes: &[u8]) {
    let mut cursor = Cursor::new(bytes);
    let kind = cursor.byte();
    // No JSON has a zero.
    let rest = cursor.rest();
    let end = rest.iter().position(|byte| *byte == 0);
    let (text, choices) = rest.split_at(end.unwrap_or(rest.len()));
    let Ok(text) = str::from_utf8(text) else {
        return;
    };
    let (form, tools) = asked(kind, text);
    PARTS.with(|parts| {
        let make = |begun: &[u32]| {
            passing_over_panics(|| parts.grammars.make(&form, tools.as_ref(), begun))
        };
        let (made, held) = most_held(|| make(&[]));
        assert!(held <= MEMORY_MAX, "{held} bytes for a form");
        match made {
            Err(error) => show(|| error.to_string()),
            Ok(grammar) => {
                let is_json = tools.is_none() && form != Form::Any;
                write(parts, grammar, &mut Cursor::new(choices), is_json, make);
            }
        }
    });
}

/// The form and the tools of a question.
fn asked(kind: u8, text: &str) -> (Form, Option<Tools>) {
    let schema = |is_strict| Form::Schema {
        schema: Utf8::cut(text),
        is_strict,
    };
    let usage = match kind % 8 {
        0 => return (schema(true), None),
        1 => return (schema(false), None),
        2 => return (Form::Json, None),
        3 => Use::Must,
        4 => Use::This(Utf8::cut("f")),
        _ => Use::May,
    };
    let functions = match kind % 16 {
        // The text is a list of functions, or the parameters of one.
        6 => text.to_owned(),
        _ => format!(
            r#"[{{"type":"function","function":{{"name":"f","parameters":{text},"strict":{}}}}}]"#,
            kind >= 128
        ),
    };
    let form = match kind % 16 {
        7 => schema(true),
        15 => Form::Json,
        _ => Form::Any,
    };
    let tools = Tools {
        functions: Utf8::cut(&functions),
        usage,
        only_one: kind & 64 > 0,
    };
    (form, Some(tools))
}

/// Writes an answer of the tokens that are chosen, and goes on with it once more from the
/// start.
fn write<E>(
    parts: &Parts,
    mut grammar: Grammar,
    choices: &mut Cursor<'_>,
    is_json: bool,
    make: impl Fn(&[u32]) -> Result<Grammar, E>,
) {
    let mut written = Vec::new();
    while written.len() < TOKENS_MAX && !grammar.is_over() {
        let (next, held) = most_held(|| allowed(parts, &mut grammar));
        assert!(held <= MEMORY_MAX, "{held} bytes for a token");
        let Some(next) = next else {
            break;
        };
        let is_end = |token: &&u32| parts.tokenizer.is_end(**token);
        let token = match next.iter().find(is_end) {
            Some(end) if choices.is_done() => *end,
            _ => choices.pick(&next),
        };
        if parts.tokenizer.is_end(token) {
            is_whole(parts, &written, is_json);
            break;
        }
        let taken = passing_over_panics(|| grammar.take(token));
        assert!(taken.is_ok(), "token {token} was allowed: {taken:?}");
        written.push(token);
    }
    if grammar.is_over() {
        is_whole(parts, &written, is_json);
    }
    show(|| text(parts, &written));
    // Limits are looked at less often where all is given in at once: it may come further.
    if let Ok(mut elsewhere) = make(&written) {
        assert_eq!(elsewhere.is_over(), grammar.is_over(), "{written:?}");
        if !grammar.is_over()
            && let Some(here) = allowed(parts, &mut grammar)
        {
            assert_eq!(allowed(parts, &mut elsewhere), Some(here), "{written:?}");
        }
    }
}

/// The tokens that may come next; none if the answer can't go on.
fn allowed(parts: &Parts, grammar: &mut Grammar) -> Option<Vec<u32>> {
    let mut logits = vec![0.0; parts.tokenizer.vocabulary()];
    let allowed = passing_over_panics(|| grammar.allowed());
    allowed.ok()?.apply(&mut logits);
    let next = (0..).zip(&logits).filter(|(_, logit)| **logit == 0.0);
    let next: Vec<u32> = next.map(|(token, _)| token).collect();
    assert!(!next.is_empty(), "nothing may come, and nobody says so");
    Some(next)
}

fn is_whole(parts: &Parts, written: &[u32], is_json: bool) {
    if is_json {
        let text = text(parts, written);
        let parsed = serde_json::from_str::<IgnoredAny>(&text);
        assert!(parsed.is_ok(), "{text:?} is no JSON: {parsed:?}");
    }
}

fn text(parts: &Parts, tokens: &[u32]) -> String {
    let mut stream = TextStream::new();
    let mut text: String = (tokens.iter())
        .map(|token| stream.push(&parts.tokenizer, *token))
        .collect();
    text.push_str(&stream.finish());
    text
}
