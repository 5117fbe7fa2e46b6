//! The form in which people ask and are answered: that of OpenAI's interface.
//!
//! ```text
//! JSON ─▶ read ─▶ Ask ─▶ (an own model) ─▶ words ─▶ Form ─▶ events, or one answer
//! ```
//!
//! What a question asks for and a model here can't do is refused, and not left out in
//! silence: whoever asks for a grammar and gets prose has been served wrongly. Fields that
//! say nothing of the answer (`user`, `metadata`, …) are passed over.
//!
//! Absent: tools, grammars, several answers to a question, and likelihoods of tokens.

use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use suanli_executor::ipc::model::{Ask, AskText, Finish, Prompt, Speaker, Turn};
use suanli_protocol::{call::Question, registry::Endpoint, wire::List};

use super::upstream::Tokens;

/// Tokens of a completion that does not say how many.
const COMPLETION_TOKENS: u32 = 16;
/// As warm as it gets; 2 is what most clients allow.
const TEMPERATURE_MAX: f32 = 100.0;
/// What tells chance of a seed from chance of an answer's name.
const SEEDED: u8 = 1;

/// What is wrong with a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    param: String,
    message: String,
}

impl Wrong {
    /// What is wrong, and where.
    pub fn new(param: &str, message: impl Into<String>) -> Self {
        Self {
            param: param.to_owned(),
            message: message.into(),
        }
    }

    /// As an answer's body.
    pub fn to_json(&self) -> Vec<u8> {
        let error = json!({ "error": {
            "message": self.message,
            "type": "invalid_request_error",
            "param": self.param,
            "code": null,
        } });
        error.to_string().into_bytes()
    }
}

/// What a question asks of a model.
///
/// # Errors
/// [`Wrong`].
pub fn read(question: &Question) -> Result<Ask, Wrong> {
    let value = serde_json::from_slice(&question.body);
    let Ok(Value::Object(fields)) = value else {
        return Err(Wrong::new("body", "the body is no JSON object"));
    };
    refuse_what_is_not_done(&fields)?;
    let (prompt, default_max) = match question.endpoint {
        Endpoint::CHAT_COMPLETIONS => (conversation(&fields)?, None),
        Endpoint::COMPLETIONS => (text(&fields)?, Some(COMPLETION_TOKENS)),
        _ => {
            let message = "this model writes text, and gives no embeddings; ask it at \
                           /v1/chat/completions, or take another model";
            return Err(Wrong::new("model", message));
        }
    };
    let tokens_max = match field(&fields, "max_completion_tokens")? {
        Some(most) => Some(most),
        None => field(&fields, "max_tokens")?,
    };
    if tokens_max == Some(0) {
        return Err(Wrong::new("max_tokens", "max_tokens is at least 1"));
    }
    let top_p = share(&fields, ("top_p", 1.0), 1.0)?;
    let ask = Ask {
        prompt,
        begun: List::truncated(question.begun.tokens.to_vec()),
        draws: question.begun.draws,
        seed: seed(&fields, question.answer)?,
        temperature: share(&fields, ("temperature", 1.0), TEMPERATURE_MAX)?,
        // 0 leaves the likeliest one.
        top_p: if top_p == 0.0 {
            f32::MIN_POSITIVE
        } else {
            top_p
        },
        min_p: share(&fields, ("min_p", 0.0), 1.0)?,
        tokens_max: tokens_max.or(default_max),
        stops: stops(&fields)?,
    };
    Ok(ask)
}

/// A field, if it is there and not null.
pub(super) fn field<T: DeserializeOwned>(
    fields: &Map<String, Value>,
    name: &str,
) -> Result<Option<T>, Wrong> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value)
            .map(Some)
            .map_err(|error| Wrong::new(name, format!("`{name}`: {error}"))),
    }
}

/// A number from 0 to so much.
fn share(
    fields: &Map<String, Value>,
    (name, default): (&str, f32),
    most: f32,
) -> Result<f32, Wrong> {
    let number = field(fields, name)?.unwrap_or(default);
    match (0.0..=most).contains(&number) {
        true => Ok(number),
        false => Err(Wrong::new(name, format!("`{name}` is from 0 to {most}"))),
    }
}

fn refuse_what_is_not_done(fields: &Map<String, Value>) -> Result<(), Wrong> {
    let is_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::String(text) => text.is_empty() || text == "none" || text == "auto",
        Value::Bool(true) => false,
    };
    let is_one = |value: &Value| value.is_null() || value.as_u64() == Some(1);
    let is_text = |value: &Value| value.is_null() || value["type"] == "text";
    for (name, value) in fields {
        let is_fine = match name.as_str() {
            "n" | "best_of" => is_one(value),
            "response_format" => is_text(value),
            "tools" | "functions" | "function_call" | "tool_choice" | "logprobs"
            | "top_logprobs" | "logit_bias" | "presence_penalty" | "frequency_penalty"
            | "suffix" | "echo" | "audio" | "grammar" | "json_schema" => is_nothing(value),
            _ => true,
        };
        if !is_fine {
            let message = format!("this model can't do what `{name}` asks for; leave it out");
            return Err(Wrong::new(name, message));
        }
    }
    Ok(())
}

fn conversation(fields: &Map<String, Value>) -> Result<Prompt, Wrong> {
    let messages: Vec<Value> = field(fields, "messages")?.unwrap_or_default();
    let turns: Result<Vec<Turn>, Wrong> = (messages.iter().enumerate())
        .map(|(at, message)| turn(message, &format!("messages[{at}]")))
        .collect();
    let turns = turns?;
    if turns.is_empty() {
        return Err(Wrong::new("messages", "`messages` is missing or empty"));
    }
    let too_many = |error| Wrong::new("messages", format!("too many messages: {error}"));
    Ok(Prompt::Conversation(List::new(turns).map_err(too_many)?))
}

fn turn(message: &Value, place: &str) -> Result<Turn, Wrong> {
    let wrong = |what: &str| Err(Wrong::new(place, format!("{place}: {what}")));
    let speaker = match message["role"].as_str() {
        Some("system" | "developer") => Speaker::System,
        Some("user") => Speaker::User,
        Some("assistant") => Speaker::Assistant,
        Some(_) => return wrong("`role` is one of system, developer, user, assistant here"),
        None => return wrong("`role` is missing"),
    };
    let text = match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Array(parts) => {
            let texts = parts.iter().map(|part| match part["type"].as_str() {
                Some("text") => part["text"].as_str(),
                _ => None,
            });
            match texts.collect::<Option<String>>() {
                Some(text) => text,
                None => return wrong("this model reads text only"),
            }
        }
        _ => return wrong("`content` is a text, or a list of parts"),
    };
    match AskText::try_from(text) {
        Ok(text) => Ok(Turn { speaker, text }),
        Err(_) => wrong("it is too long"),
    }
}

fn text(fields: &Map<String, Value>) -> Result<Prompt, Wrong> {
    let wrong = |what: &str| Wrong::new("prompt", format!("`prompt` {what}"));
    let is_text = |value: &Value| value.is_string();
    let prompt = match fields.get("prompt") {
        Some(Value::Array(all)) if all.len() == 1 && all.iter().all(is_text) => &all[0],
        Some(Value::Array(all)) if all.iter().any(is_text) => {
            return Err(wrong("is one text here; ask for each by itself"));
        }
        Some(prompt @ Value::Array(_)) => {
            let tokens = Vec::<u32>::deserialize(prompt);
            let tokens = tokens.map_err(|_| wrong("is a text, or a list of tokens"))?;
            let tokens = List::new(tokens).map_err(|_| wrong("has too many tokens"))?;
            return Ok(Prompt::Tokens(tokens));
        }
        Some(prompt) => prompt,
        None => return Err(wrong("is missing")),
    };
    let text = prompt.as_str().ok_or_else(|| wrong("is a text"))?;
    let text = AskText::try_from(text.to_owned()).map_err(|_| wrong("is too long"))?;
    Ok(Prompt::Text(text))
}

fn seed(fields: &Map<String, Value>, answer: [u8; 16]) -> Result<[u8; 32], Wrong> {
    let mut seed = [0; 32];
    match field::<i64>(fields, "seed")? {
        Some(number) => {
            seed[..8].copy_from_slice(&number.to_le_bytes());
            seed[31] = SEEDED;
        }
        None => seed[..16].copy_from_slice(&answer),
    }
    Ok(seed)
}

fn stops<const BYTES: usize, const MAX: usize>(
    fields: &Map<String, Value>,
) -> Result<List<suanli_protocol::wire::Utf8<BYTES>, MAX>, Wrong> {
    let texts: Vec<String> = match fields.get("stop") {
        Some(Value::String(one)) => vec![one.clone()],
        _ => field(fields, "stop")?.unwrap_or_default(),
    };
    let wrong = |_| {
        Wrong::new(
            "stop",
            format!("`stop`: {MAX} texts of {BYTES} bytes at most"),
        )
    };
    let texts: Result<Vec<_>, _> = texts.into_iter().map(TryFrom::try_from).collect();
    List::new(texts.map_err(wrong)?).map_err(wrong)
}

/// How an answer is told.
#[derive(Debug, Clone)]
pub struct Form {
    id: String,
    created: u64,
    model: String,
    is_chat: bool,
}

impl Form {
    /// Of the answer to a question to a model.
    pub fn of(question: &Question, model: &str) -> Self {
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

    fn delta(&self, delta: &Value, finish: Option<Finish>) -> Vec<u8> {
        let mut choice = json!({
            "index": 0,
            "logprobs": null,
            "finish_reason": finish.map(finish_reason),
        });
        if self.is_chat {
            choice["delta"] = delta.clone();
        } else {
            choice["text"] = delta.get("content").cloned().unwrap_or_else(|| "".into());
        }
        self.chunk(&json!([choice])).to_string().into_bytes()
    }

    /// The event before all text, where there is one.
    pub fn begins(&self) -> Option<Vec<u8>> {
        let delta = json!({ "role": "assistant", "content": "", "refusal": null });
        self.is_chat.then(|| self.delta(&delta, None))
    }

    /// A piece of text.
    pub fn piece(&self, text: &str) -> Vec<u8> {
        self.delta(&json!({ "content": text }), None)
    }

    /// The event after all text.
    pub fn ends(&self, finish: Finish) -> Vec<u8> {
        self.delta(&json!({}), Some(finish))
    }

    /// The event that says what was used.
    pub fn usage(&self, tokens: Tokens) -> Vec<u8> {
        let mut chunk = self.chunk(&json!([]));
        chunk["usage"] = usage(tokens);
        chunk.to_string().into_bytes()
    }

    /// The answer as one.
    pub fn whole(&self, text: &str, finish: Finish, tokens: Tokens) -> Vec<u8> {
        let mut choice = json!({
            "index": 0,
            "logprobs": null,
            "finish_reason": finish_reason(finish),
        });
        let object = if self.is_chat {
            choice["message"] = json!({ "role": "assistant", "content": text, "refusal": null });
            "chat.completion"
        } else {
            choice["text"] = text.into();
            "text_completion"
        };
        let mut body = self.body(object, &json!([choice]));
        body["usage"] = usage(tokens);
        body.to_string().into_bytes()
    }
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
        Finish::Length => "length",
    }
}

#[cfg(test)]
mod tests {
    use suanli_protocol::{
        call::Begun,
        ids::{AgreementId, Hash},
        wire::Bytes,
    };

    use super::*;

    fn question(endpoint: Endpoint, body: &Value) -> Question {
        Question {
            agreement: AgreementId(Hash::of(b"lease")),
            endpoint,
            streams: true,
            answer: [0xab; 16],
            asked_s: 5,
            begun: Begun::default(),
            body: Bytes::new(body.to_string().into_bytes()).unwrap(),
        }
    }

    fn chat(with: &Value) -> Result<Ask, Wrong> {
        let mut body = json!({ "model": "m", "messages": [
            { "role": "developer", "content": "be brief" },
            { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
            { "role": "assistant", "content": null },
        ] });
        for (name, value) in with.as_object().unwrap() {
            body[name] = value.clone();
        }
        read(&question(Endpoint::CHAT_COMPLETIONS, &body))
    }

    #[test]
    fn a_conversation_and_its_options_are_read() {
        let ask = chat(&json!({
            "max_completion_tokens": 7, "max_tokens": 3, "temperature": 0, "top_p": 0,
            "stop": "\n", "seed": -1, "user": "x", "tools": [], "n": 1, "logprobs": false,
            "response_format": { "type": "text" }, "presence_penalty": 0.0,
        }))
        .unwrap();
        let Prompt::Conversation(turns) = &ask.prompt else {
            panic!("{ask:?}");
        };
        let said: Vec<(Speaker, &str)> = turns.iter().map(|t| (t.speaker, &*t.text)).collect();
        assert_eq!(
            said,
            [
                (Speaker::System, "be brief"),
                (Speaker::User, "ab"),
                (Speaker::Assistant, "")
            ]
        );
        assert_eq!(
            (ask.tokens_max, ask.temperature, &*ask.stops[0]),
            (Some(7), 0.0, "\n")
        );
        assert!(ask.top_p > 0.0);
        assert_eq!((ask.seed[0], ask.seed[31]), (255, 1));
        let unsaid = chat(&json!({})).unwrap();
        assert_eq!((unsaid.tokens_max, unsaid.temperature), (None, 1.0));
        assert_eq!(unsaid.seed[..16], [0xab; 16]);
    }

    #[test]
    fn what_a_model_here_can_not_do_is_refused_by_its_name() {
        for (name, value) in [
            ("n", json!(2)),
            ("tools", json!([{}])),
            ("logprobs", json!(true)),
            ("response_format", json!({ "type": "json_object" })),
            ("frequency_penalty", json!(0.5)),
            ("logit_bias", json!({ "5": 1 })),
            ("max_tokens", json!(0)),
            ("max_tokens", json!(-1)),
            ("temperature", json!("warm")),
            ("temperature", json!(-1)),
            ("top_p", json!(1.5)),
            ("seed", json!(1.5)),
            ("stop", json!([1])),
            ("messages", json!([])),
        ] {
            let wrong = chat(&json!({ name: value })).unwrap_err();
            assert_eq!(wrong.param, name, "{wrong:?}");
        }
        let tool = chat(&json!({ "messages": [{ "role": "tool", "content": "x" }] })).unwrap_err();
        assert_eq!(tool.param, "messages[0]");
        let image =
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] });
        assert!(chat(&image).unwrap_err().message.contains("text only"));
    }

    #[test]
    fn a_prompt_is_a_text_or_tokens() {
        let prompt = |prompt: Value| {
            read(&question(
                Endpoint::COMPLETIONS,
                &json!({ "prompt": prompt }),
            ))
            .map(|ask| (ask.prompt, ask.tokens_max))
        };
        let text = |text: &str| Prompt::Text(AskText::cut(text));
        assert_eq!(prompt(json!("a")), Ok((text("a"), Some(16))));
        assert_eq!(prompt(json!(["a"])), Ok((text("a"), Some(16))));
        let tokens = Prompt::Tokens(List::truncated(vec![1, 2]));
        assert_eq!(prompt(json!([1, 2])), Ok((tokens, Some(16))));
        for wrong in [
            json!(["a", "b"]),
            json!(5),
            json!([[1]]),
            json!(null),
            json!([-1]),
        ] {
            assert_eq!(prompt(wrong).unwrap_err().param, "prompt");
        }
    }

    #[test]
    fn an_answer_has_one_name_in_all_its_events() {
        let form = Form::of(&question(Endpoint::CHAT_COMPLETIONS, &json!({})), "m");
        let tokens = Tokens {
            read: 3,
            written: 2,
        };
        for event in [
            form.begins().unwrap(),
            form.piece("x"),
            form.ends(Finish::Length),
            form.usage(tokens),
            form.whole("x", Finish::Stop, tokens),
        ] {
            let value: Value = serde_json::from_slice(&event).unwrap();
            assert_eq!(value["id"], format!("chatcmpl-{}", "ab".repeat(16)));
            assert_eq!(
                (&value["created"], &value["model"]),
                (&json!(5), &json!("m"))
            );
        }
        let text = Form::of(&question(Endpoint::COMPLETIONS, &json!({})), "m");
        assert_eq!(text.begins(), None);
        let piece: Value = serde_json::from_slice(&text.piece("x")).unwrap();
        assert_eq!(piece["choices"][0]["text"], "x");
    }
}
