//! How an answer is told: as events, or as one.
//!
//! ```text
//! words ─▶ Said (what is new) ─▶ Telling ─▶ a chunk with a delta
//!            └─ added up ─▶ Whole ─────────▶ all choices
//! ```
//!
//! Names are made of the answer's own, so that a part of it that another provider tells
//! goes on under the same ones.

use serde_json::{Map, Value, json};
use suanli_executor::ipc::model::{Finish, Likelihood, Likely, Piece};
use suanli_protocol::{call::Question, registry::Endpoint};

use super::super::upstream::Tokens;

/// The least logarithm that is told, as OpenAI has it.
const UNLIKELY: f32 = -9999.0;

/// How an answer is told.
#[derive(Debug, Clone)]
pub struct Telling {
    id: String,
    created: u64,
    model: String,
    is_chat: bool,
    /// Whether tokens come with their likelihoods.
    likelihoods: bool,
}

/// What is new of one of an answer's choices.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// What became certain.
    pub pieces: Vec<Piece>,
    /// Likelihoods of the tokens that it came with.
    pub likelihoods: Vec<Likelihood>,
}

/// One of an answer's choices, told as one.
#[derive(Debug, Clone, Default)]
pub struct Whole {
    text: String,
    calls: Vec<(String, String)>,
    likelihoods: Vec<Likelihood>,
}

impl Whole {
    /// What is new of it.
    pub fn add(&mut self, said: Said) {
        for piece in said.pieces {
            match piece {
                Piece::Text(text) => self.text.push_str(&text),
                Piece::Call { name, .. } => {
                    self.calls.push((String::from(&*name), String::new()));
                }
                Piece::Arguments { text, .. } => {
                    if let Some((_, arguments)) = self.calls.last_mut() {
                        arguments.push_str(&text);
                    }
                }
            }
        }
        self.likelihoods.extend(said.likelihoods);
    }
}

impl Telling {
    /// Of the answer to a question to a model.
    pub fn of(question: &Question, model: &str, likelihoods: bool) -> Self {
        let is_chat = question.endpoint == Endpoint::CHAT_COMPLETIONS;
        let kind = if is_chat { "chatcmpl" } else { "cmpl" };
        let digits: String = (question.answer.iter())
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            id: format!("{kind}-{digits}"),
            created: question.asked_s,
            model: model.to_owned(),
            is_chat,
            likelihoods,
        }
    }

    fn body(&self, object: &str, choices: &Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    fn chunk(&self, choices: &Value) -> Value {
        let object = if self.is_chat {
            "chat.completion.chunk"
        } else {
            "text_completion"
        };
        self.body(object, choices)
    }

    fn choice(
        &self,
        index: u8,
        content: (&str, Value),
        likelihoods: &[Likelihood],
        finish: Option<Finish>,
    ) -> Value {
        let (name, content) = content;
        json!({
            "index": index,
            name: content,
            "logprobs": self.logprobs(likelihoods),
            "finish_reason": finish.map(finish_reason),
        })
    }

    fn event(&self, choice: &Value) -> Vec<u8> {
        self.chunk(&json!([choice])).to_string().into_bytes()
    }

    /// The event before all text of a choice, where there is one.
    pub fn begins(&self, index: u8) -> Option<Vec<u8>> {
        let delta = json!({ "role": "assistant", "content": "", "refusal": null });
        let choice = || self.choice(index, ("delta", delta), &[], None);
        self.is_chat.then(|| self.event(&choice()))
    }

    /// What is new of a choice.
    pub fn piece(&self, index: u8, said: &Said) -> Vec<u8> {
        let text: String = said.pieces.iter().filter_map(text_of).collect();
        let content = if self.is_chat {
            let calls = self.called(index, &said.pieces);
            let mut delta = Map::new();
            if !text.is_empty() || calls.is_empty() {
                delta.insert("content".to_owned(), text.into());
            }
            if !calls.is_empty() {
                delta.insert("tool_calls".to_owned(), calls.into());
            }
            ("delta", delta.into())
        } else {
            ("text", text.into())
        };
        self.event(&self.choice(index, content, &said.likelihoods, None))
    }

    /// The event after all text of a choice.
    pub fn ends(&self, index: u8, finish: Finish) -> Vec<u8> {
        let content = if self.is_chat {
            ("delta", json!({}))
        } else {
            ("text", "".into())
        };
        self.event(&self.choice(index, content, &[], Some(finish)))
    }

    /// The event that says what was used.
    pub fn usage(&self, tokens: Tokens) -> Vec<u8> {
        let mut chunk = self.chunk(&json!([]));
        chunk["usage"] = usage(tokens);
        chunk.to_string().into_bytes()
    }

    /// The answer as one.
    pub fn whole(&self, choices: &[(Whole, Finish)], tokens: Tokens) -> Vec<u8> {
        let choices: Vec<Value> = (0..)
            .zip(choices)
            .map(|(index, (whole, finish))| {
                let content = if self.is_chat {
                    ("message", self.message(index, whole))
                } else {
                    ("text", whole.text.clone().into())
                };
                self.choice(index, content, &whole.likelihoods, Some(*finish))
            })
            .collect();
        let object = if self.is_chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        let mut body = self.body(object, &choices.into());
        body["usage"] = usage(tokens);
        body.to_string().into_bytes()
    }

    fn message(&self, index: u8, whole: &Whole) -> Value {
        let is_only_calls = whole.text.is_empty() && !whole.calls.is_empty();
        let content = (!is_only_calls).then_some(&whole.text);
        let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
        if !whole.calls.is_empty() {
            let calls = (0..).zip(&whole.calls);
            let calls = calls.map(|(number, (name, arguments))| {
                json!({
                    "id": self.call_id(index, number),
                    "type": "function",
                    "function": { "name": name, "arguments": arguments },
                })
            });
            message["tool_calls"] = calls.collect();
        }
        message
    }

    /// Calls that begin, and what is new of their arguments.
    fn called(&self, choice: u8, pieces: &[Piece]) -> Vec<Value> {
        let mut calls: Vec<Value> = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(_) => {}
                Piece::Call { index, name } => calls.push(json!({
                    "index": index,
                    "id": self.call_id(choice, *index),
                    "type": "function",
                    "function": { "name": &**name, "arguments": "" },
                })),
                Piece::Arguments { call, text } => match calls.last_mut() {
                    Some(last) if last["index"] == *call => {
                        let before = last["function"]["arguments"].as_str().unwrap_or_default();
                        let both = [before, text].concat();
                        last["function"]["arguments"] = both.into();
                    }
                    _ => calls.push(json!({
                        "index": call,
                        "function": { "arguments": &**text },
                    })),
                },
            }
        }
        calls
    }

    fn call_id(&self, choice: u8, number: u32) -> String {
        let answer = self.id.rsplit('-').next().unwrap_or_default();
        format!("call_{answer}{choice}_{number}")
    }

    fn logprobs(&self, likelihoods: &[Likelihood]) -> Value {
        if !self.likelihoods || likelihoods.is_empty() {
            return Value::Null;
        }
        if self.is_chat {
            let token = |one: &Likelihood| {
                let mut token = described(&one.of);
                token["top_logprobs"] = one.likeliest.iter().map(described).collect();
                token
            };
            let content: Vec<Value> = likelihoods.iter().map(token).collect();
            return json!({ "content": content, "refusal": null });
        }
        let all = likelihoods.iter();
        let top = |one: &Likelihood| -> Value {
            let likeliest = one.likeliest.iter();
            let named = likeliest.map(|likely| (shown(likely), logarithm(likely).into()));
            Value::Object(named.collect())
        };
        json!({
            "tokens": all.clone().map(|one| shown(&one.of)).collect::<Vec<_>>(),
            "token_logprobs": all.clone().map(|one| logarithm(&one.of)).collect::<Vec<_>>(),
            "top_logprobs": all.map(top).collect::<Vec<_>>(),
        })
    }
}

fn text_of(piece: &Piece) -> Option<&str> {
    match piece {
        Piece::Text(text) => Some(text),
        Piece::Call { .. } | Piece::Arguments { .. } => None,
    }
}

/// A token, as chats have it.
fn described(likely: &Likely) -> Value {
    json!({
        "token": shown(likely),
        "logprob": logarithm(likely),
        "bytes": likely.bytes.to_vec(),
    })
}

fn shown(likely: &Likely) -> String {
    String::from_utf8_lossy(&likely.bytes).into_owned()
}

const fn logarithm(likely: &Likely) -> f32 {
    likely.logarithm.get().max(UNLIKELY)
}

fn usage(tokens: Tokens) -> Value {
    json!({
        "prompt_tokens": tokens.read,
        "completion_tokens": tokens.written,
        "total_tokens": tokens.read.saturating_add(tokens.written),
    })
}

const fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::Stopped => "stop",
        Finish::Calls => "tool_calls",
        // What can't go on in its form is as little whole as what is too long.
        Finish::Length | Finish::Stuck => "length",
    }
}

#[cfg(test)]
mod tests {
    use suanli_executor::ipc::model::{CallName, PieceText};
    use suanli_protocol::wire::{Finite, List};

    use super::{super::tests::question, *};

    fn telling(endpoint: Endpoint) -> Telling {
        let question = question(endpoint, &json!({}));
        Telling::of(&question, "m", true)
    }

    fn text(text: &str) -> Piece {
        Piece::Text(PieceText::cut(text))
    }

    fn arguments(call: u32, text: &str) -> Piece {
        let text = PieceText::cut(text);
        Piece::Arguments { call, text }
    }

    fn call(index: u32, name: &str) -> Piece {
        let name = CallName::cut(name);
        Piece::Call { index, name }
    }

    fn likely(token: u32, logarithm: f32, text: &str) -> Likely {
        Likely {
            token,
            logarithm: Finite::nearest(logarithm),
            bytes: List::truncated(text.as_bytes().to_vec()),
        }
    }

    fn said(pieces: &[Piece]) -> Said {
        Said {
            pieces: pieces.to_vec(),
            likelihoods: Vec::new(),
        }
    }

    fn read(event: &[u8]) -> Value {
        serde_json::from_slice(event).unwrap()
    }

    const TOKENS: Tokens = Tokens {
        read: 3,
        written: 2,
    };

    #[test]
    fn an_answer_has_one_name_in_all_its_events() {
        let chat = telling(Endpoint::CHAT_COMPLETIONS);
        let mut whole = Whole::default();
        whole.add(said(&[text("x")]));
        for event in [
            chat.begins(0).unwrap(),
            chat.piece(0, &said(&[text("x")])),
            chat.ends(0, Finish::Length),
            chat.usage(TOKENS),
            chat.whole(&[(whole, Finish::Stop)], TOKENS),
        ] {
            let value = read(&event);
            assert_eq!(value["id"], format!("chatcmpl-{}", "ab".repeat(16)));
            assert_eq!(
                (&value["created"], &value["model"]),
                (&json!(5), &json!("m"))
            );
        }
        let plain = telling(Endpoint::COMPLETIONS);
        assert_eq!(plain.begins(0), None);
        let piece = read(&plain.piece(2, &said(&[text("x")])));
        assert_eq!(piece["choices"][0]["text"], "x");
        assert_eq!(piece["choices"][0]["index"], 2);
    }

    #[test]
    fn calls_are_told_in_parts_or_as_one() {
        let chat = telling(Endpoint::CHAT_COMPLETIONS);
        let parts = [
            said(&[text("Well.")]),
            said(&[call(0, "weather"), arguments(0, "{\"ci")]),
            said(&[
                arguments(0, "ty\": 1}"),
                call(1, "time"),
                arguments(1, "{}"),
            ]),
        ];
        let deltas = parts.iter().map(|part| {
            let event = read(&chat.piece(0, part));
            event["choices"][0]["delta"].clone()
        });
        let id = |number| format!("call_{}0_{number}", "ab".repeat(16));
        let begun = |index: u32, name: &str, arguments: &str| {
            json!({ "index": index, "id": id(index), "type": "function",
                    "function": { "name": name, "arguments": arguments } })
        };
        let wanted = [
            json!({ "content": "Well." }),
            json!({ "tool_calls": [begun(0, "weather", "{\"ci")] }),
            json!({ "tool_calls": [
                { "index": 0, "function": { "arguments": "ty\": 1}" } },
                begun(1, "time", "{}"),
            ] }),
        ];
        assert_eq!(deltas.collect::<Vec<_>>(), wanted);
        let mut whole = Whole::default();
        for part in parts {
            whole.add(part);
        }
        let told = read(&chat.whole(&[(whole, Finish::Calls)], TOKENS));
        let choice = &told["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls");
        assert_eq!(choice["message"]["content"], "Well.");
        let first = &choice["message"]["tool_calls"][0];
        assert_eq!(first["id"], id(0));
        assert_eq!(first["function"]["arguments"], "{\"city\": 1}");
        assert_eq!(
            choice["message"]["tool_calls"][1]["function"]["name"],
            "time"
        );
    }

    #[test]
    fn likelihoods_are_told_as_each_endpoint_has_them() {
        let part = Said {
            pieces: vec![text("é")],
            likelihoods: vec![Likelihood {
                of: likely(5, -0.5, "é"),
                likeliest: List::truncated(vec![likely(6, -0.25, "a"), likely(7, f32::MIN, "b")]),
            }],
        };
        let chat = read(&telling(Endpoint::CHAT_COMPLETIONS).piece(0, &part));
        let token = &chat["choices"][0]["logprobs"]["content"][0];
        assert_eq!(
            token,
            &json!({ "token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [
                { "token": "a", "logprob": -0.25, "bytes": [97] },
                { "token": "b", "logprob": -9999.0, "bytes": [98] },
            ] })
        );
        let plain = read(&telling(Endpoint::COMPLETIONS).piece(0, &part));
        let logprobs = &plain["choices"][0]["logprobs"];
        assert_eq!(logprobs["tokens"], json!(["é"]));
        assert_eq!(logprobs["top_logprobs"][0]["a"], -0.25);
    }
}
