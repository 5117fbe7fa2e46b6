//! The form in which people ask and are answered: that of OpenAI's interface.
//!
//! ```text
//! JSON ─▶ read ─▶ Asked ─▶ (an own model) ─▶ words ─▶ Telling ─▶ events, or one answer
//! ```
//!
//! What a question asks for and a model here can't do is refused, and not left out in
//! silence: whoever asks for a grammar and gets prose has been served wrongly. Fields that
//! say nothing of the answer (`user`, `metadata`, …) are passed over.
//!
//! Absent: how answers are told ([`telling`]), images and sounds, and fields that were given
//! up for others (`functions`).

pub mod telling;

use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use suanli_executor::{
    ipc::model::{Ask, AskText, Call, CallName, Form, Prompt, Sampling, Speaker, Tools, Turn, Use},
    limits::GRAMMAR_BYTES_MAX,
};
use suanli_protocol::{call::Question, registry::Endpoint, wire::List};

use super::upstream::UpstreamError;

/// Tokens of a completion that does not say how many.
const COMPLETION_TOKENS: u32 = 16;
/// As warm as it gets; 2 is what most clients allow.
const TEMPERATURE_MAX: f32 = 100.0;
/// What tells chance of a seed from chance of an answer's name.
const SEEDED: u8 = 1;
/// Answers to one question. Each is computed by itself, and the question paid for once.
const CHOICES_MAX: u8 = 8;
/// Likeliest tokens beside each: of a conversation's answer, and of a text's.
const LIKELIEST_MAX: (u8, u8) = (20, 5);

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

impl From<Wrong> for UpstreamError {
    fn from(wrong: Wrong) -> Self {
        Self::Refused(400, wrong.to_json())
    }
}

/// What a question asks of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The question.
    pub ask: Ask,
    /// How many answers to it.
    pub choices: u8,
}

impl Asked {
    /// The question of one of the answers: each has chance of its own.
    pub fn choice(&self, index: u8) -> Ask {
        let mut ask = self.ask.clone();
        ask.seed[24] = index;
        ask
    }
}

/// What a question asks of a model.
///
/// # Errors
/// [`Wrong`].
pub fn read(question: &Question) -> Result<Asked, Wrong> {
    let value = serde_json::from_slice(&question.body);
    let Ok(Value::Object(fields)) = value else {
        return Err(Wrong::new("body", "the body is no JSON object"));
    };
    refuse_what_is_not_done(&fields)?;
    let scores = question.endpoint == Endpoint::SCORES;
    let endpoint = match (scores, fields.contains_key("messages")) {
        (false, _) => question.endpoint,
        (true, true) => Endpoint::CHAT_COMPLETIONS,
        (true, false) => Endpoint::COMPLETIONS,
    };
    let is_chat = endpoint == Endpoint::CHAT_COMPLETIONS;
    let (prompt, default_max) = match endpoint {
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
    let choices = field(&fields, "n")?.unwrap_or(1);
    if !(1..=CHOICES_MAX).contains(&choices) {
        let message = format!("`n` is from 1 to {CHOICES_MAX} here; ask again for more");
        return Err(Wrong::new("n", message));
    }
    if choices > 1 && !question.begun.tokens.is_empty() {
        return Err(Wrong::new("n", "several answers can't be gone on with"));
    }
    let ask = Ask {
        begun: List::truncated(question.begun.tokens.to_vec()),
        draws: question.begun.draws,
        seed: seed(&fields, question.answer)?,
        sampling: sampling(&fields)?,
        tokens_max: tokens_max.or(default_max),
        stops: stops(&fields)?,
        form: form(&fields)?,
        likeliest: likeliest(&fields, is_chat)?,
        scores,
        ..Ask::new(prompt)
    };
    Ok(Asked { ask, choices })
}

fn sampling(fields: &Map<String, Value>) -> Result<Sampling, Wrong> {
    let top_p = share(fields, ("top_p", 1.0), 1.0)?;
    let biases: Map<String, Value> = field(fields, "logit_bias")?.unwrap_or_default();
    let bias = |(token, bias): (&String, &Value)| -> Option<(u32, f32)> {
        #[allow(clippy::cast_possible_truncation, reason = "from -100 to 100")]
        let bias = bias.as_f64()? as f32;
        (-100.0..=100.0)
            .contains(&bias)
            .then_some((token.parse().ok()?, bias))
    };
    let biases: Option<Vec<(u32, f32)>> = biases.iter().map(bias).collect();
    let biases = biases.and_then(|biases| List::new(biases).ok());
    let penalty = |name: &str| {
        let number: f32 = field(fields, name)?.unwrap_or(0.0);
        match (-2.0..=2.0).contains(&number) {
            true => Ok(number),
            false => Err(Wrong::new(name, format!("`{name}` is from -2 to 2"))),
        }
    };
    Ok(Sampling {
        temperature: share(fields, ("temperature", 1.0), TEMPERATURE_MAX)?,
        // 0 leaves the likeliest one.
        top_p: if top_p == 0.0 {
            f32::MIN_POSITIVE
        } else {
            top_p
        },
        min_p: share(fields, ("min_p", 0.0), 1.0)?,
        presence_penalty: penalty("presence_penalty")?,
        frequency_penalty: penalty("frequency_penalty")?,
        biases: biases.ok_or_else(|| {
            let message = "`logit_bias` has up to 300 tokens by number, each with a bias from \
                           -100 to 100";
            Wrong::new("logit_bias", message)
        })?,
    })
}

fn form(fields: &Map<String, Value>) -> Result<Form, Wrong> {
    let format = fields.get("response_format").unwrap_or(&Value::Null);
    let wrong = |what: &str| {
        Err(Wrong::new(
            "response_format",
            format!("`response_format` {what}"),
        ))
    };
    match (format, format["type"].as_str()) {
        (Value::Null, _) | (_, Some("text")) => Ok(Form::Any),
        (_, Some("json_object")) => Ok(Form::Json),
        (_, Some("json_schema")) => {
            let described = &format["json_schema"];
            let schema = &described["schema"];
            if !schema.is_object() {
                return wrong("has its schema as `json_schema.schema`");
            }
            Ok(Form::Schema {
                schema: short("response_format", schema)?,
                is_strict: described["strict"].as_bool().unwrap_or(false),
            })
        }
        _ => wrong("has the `type` text, json_object or json_schema"),
    }
}

fn likeliest(fields: &Map<String, Value>, is_chat: bool) -> Result<Option<u8>, Wrong> {
    let (name, most, wanted) = if is_chat {
        let wanted: bool = field(fields, "logprobs")?.unwrap_or(false);
        let count: Option<u8> = field(fields, "top_logprobs")?;
        if count.is_some_and(|count| count > 0) && !wanted {
            let message = "`top_logprobs` needs `logprobs` to be true";
            return Err(Wrong::new("top_logprobs", message));
        }
        let wanted = wanted.then(|| count.unwrap_or(0));
        ("top_logprobs", LIKELIEST_MAX.0, wanted)
    } else {
        let wanted = match fields.get("logprobs") {
            Some(Value::Bool(false)) => None,
            _ => field(fields, "logprobs")?,
        };
        ("logprobs", LIKELIEST_MAX.1, wanted)
    };
    match wanted {
        Some(count) if count > most => Err(Wrong::new(name, format!("`{name}` is at most {most}"))),
        wanted => Ok(wanted),
    }
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
    for (name, value) in fields {
        let is_fine = match name.as_str() {
            "best_of" => is_one(value),
            "functions" | "function_call" | "suffix" | "echo" | "audio" | "grammar"
            | "json_schema" => is_nothing(value),
            _ => true,
        };
        if !is_fine {
            let instead = match name.as_str() {
                "functions" | "function_call" => "say it by `tools` and `tool_choice`",
                "json_schema" => "say it by `response_format`",
                _ => "leave it out",
            };
            let message = format!("this model can't do what `{name}` asks for; {instead}");
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
    Ok(Prompt::Conversation {
        turns: List::new(turns).map_err(too_many)?,
        tools: tools(fields)?,
    })
}

fn tools(fields: &Map<String, Value>) -> Result<Option<Tools>, Wrong> {
    let all: Vec<Value> = field(fields, "tools")?.unwrap_or_default();
    let choice = fields.get("tool_choice").unwrap_or(&Value::Null);
    let wrong = |what: &str| Wrong::new("tool_choice", format!("`tool_choice` {what}"));
    let named = choice["function"]["name"].as_str();
    let usage = match (choice, choice.as_str(), named) {
        (Value::Null, ..) | (_, Some("auto"), _) => Use::May,
        (_, Some("none"), _) => return Ok(None),
        (_, Some("required"), _) => Use::Must,
        (_, _, Some(name)) => Use::This(call_name("tool_choice", name)?),
        _ => {
            return Err(wrong(
                "is none, auto, required, or the name of a function as `function.name`",
            ));
        }
    };
    if all.is_empty() {
        return match usage {
            Use::May => Ok(None),
            Use::Must | Use::This(_) => Err(wrong("wants one of `tools`, and there are none")),
        };
    }
    if let Some(other) = all.iter().find(|tool| tool["type"] != "function") {
        let message = format!("`tools` are functions here, and one is {}", other["type"]);
        return Err(Wrong::new("tools", message));
    }
    let functions = short("tools", &Value::from(all))?;
    let together: bool = field(fields, "parallel_tool_calls")?.unwrap_or(true);
    let only_one = !together || matches!(usage, Use::This(_));
    Ok(Some(Tools {
        functions,
        usage,
        only_one,
    }))
}

/// A schema, or tools, as text: no longer than what is read of it.
fn short(name: &str, value: &Value) -> Result<AskText, Wrong> {
    let text = value.to_string();
    let length = text.len();
    let text = AskText::try_from(text).ok();
    text.filter(|_| length <= GRAMMAR_BYTES_MAX).ok_or_else(|| {
        let message = format!(
            "`{name}` has {length} bytes as JSON, and at most {GRAMMAR_BYTES_MAX} are read here"
        );
        Wrong::new(name, message)
    })
}

/// How many answers a question asks for, if it can be read.
pub fn choices(question: &Question) -> u8 {
    #[derive(serde::Deserialize)]
    struct Several {
        n: Option<u8>,
    }
    let several = serde_json::from_slice(&question.body);
    let count = several.map_or(1, |several: Several| several.n.unwrap_or(1));
    count.clamp(1, CHOICES_MAX)
}

fn call_name(place: &str, name: &str) -> Result<CallName, Wrong> {
    CallName::try_from(name.to_owned())
        .map_err(|_| Wrong::new(place, format!("{place}: a name is too long")))
}

fn turn(message: &Value, place: &str) -> Result<Turn, Wrong> {
    let wrong = |what: &str| Err(Wrong::new(place, format!("{place}: {what}")));
    let speaker = match message["role"].as_str() {
        Some("system" | "developer") => Speaker::System,
        Some("user") => Speaker::User,
        Some("assistant") => Speaker::Assistant,
        Some("tool") => Speaker::Tool,
        Some(_) => {
            return wrong("`role` is one of system, developer, user, assistant, tool here");
        }
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
    let Ok(text) = AskText::try_from(text) else {
        return wrong("it is too long");
    };
    let answers = match (speaker, message["tool_call_id"].as_str()) {
        (Speaker::Tool, Some(id)) => Some(call_name(place, id)?),
        (Speaker::Tool, None) => return wrong("`tool_call_id` is missing"),
        _ => None,
    };
    let calls: Vec<Value> = match &message["tool_calls"] {
        Value::Array(calls) if speaker == Speaker::Assistant => calls.clone(),
        _ => Vec::new(),
    };
    let calls: Result<Vec<Call>, Wrong> = calls.iter().map(|said| call(said, place)).collect();
    let Ok(calls) = List::new(calls?) else {
        return wrong("it has too many `tool_calls`");
    };
    Ok(Turn {
        calls,
        answers,
        ..Turn::new(speaker, text)
    })
}

/// A call that the model made.
fn call(call: &Value, place: &str) -> Result<Call, Wrong> {
    let wrong = |what: &str| Wrong::new(place, format!("{place}: {what}"));
    let function = &call["function"];
    let texts = (
        call["id"].as_str(),
        function["name"].as_str(),
        function["arguments"].as_str(),
    );
    let (Some(id), Some(name), Some(arguments)) = texts else {
        return Err(wrong(
            "a call has an `id`, and a `function` with `name` and `arguments`, which are texts",
        ));
    };
    let arguments = AskText::try_from(arguments.to_owned());
    Ok(Call {
        id: call_name(place, id)?,
        name: call_name(place, name)?,
        arguments: arguments.map_err(|_| wrong("`arguments` is too long"))?,
    })
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

#[cfg(test)]
mod tests {
    use suanli_protocol::{
        call::Begun,
        ids::{AgreementId, Hash},
        wire::Bytes,
    };

    use super::*;

    pub(super) fn question(endpoint: Endpoint, body: &Value) -> Question {
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
        read(&question(Endpoint::CHAT_COMPLETIONS, &body)).map(|asked| asked.ask)
    }

    #[test]
    fn a_conversation_and_its_options_are_read() {
        let ask = chat(&json!({
            "max_completion_tokens": 7, "max_tokens": 3, "temperature": 0, "top_p": 0,
            "stop": "\n", "seed": -1, "user": "x", "tools": [], "n": 1, "logprobs": false,
            "response_format": { "type": "text" }, "presence_penalty": 0.0,
        }))
        .unwrap();
        let Prompt::Conversation { turns, tools: None } = &ask.prompt else {
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
            (ask.tokens_max, ask.sampling.temperature, &*ask.stops[0]),
            (Some(7), 0.0, "\n")
        );
        assert!(ask.sampling.top_p > 0.0);
        assert_eq!((ask.seed[0], ask.seed[31]), (255, 1));
        let unsaid = chat(&json!({})).unwrap();
        assert_eq!(
            (unsaid.tokens_max, unsaid.sampling.temperature),
            (None, 1.0)
        );
        assert_eq!(unsaid.seed[..16], [0xab; 16]);
    }

    #[test]
    fn tools_and_what_they_said_are_read() {
        let function = json!({ "type": "function", "function": { "name": "f" } });
        let tools = |with: Value| {
            let mut all = json!({ "tools": [function] });
            for (name, value) in with.as_object().unwrap() {
                all[name] = value.clone();
            }
            match chat(&all).unwrap().prompt {
                Prompt::Conversation { tools, .. } => tools,
                other => panic!("{other:?}"),
            }
        };
        let usage = |with: Value| tools(with).map(|tools| (tools.usage, tools.only_one));
        assert_eq!(usage(json!({})), Some((Use::May, false)));
        let one = json!({ "tool_choice": "required", "parallel_tool_calls": false });
        assert_eq!(usage(one), Some((Use::Must, true)));
        let this = json!({ "tool_choice": { "type": "function", "function": { "name": "f" } } });
        assert_eq!(usage(this), Some((Use::This(CallName::cut("f")), true)));
        assert_eq!(usage(json!({ "tool_choice": "none" })), None);
        assert_eq!(
            &*tools(json!({})).unwrap().functions,
            &*json!([function]).to_string()
        );

        let said = json!({ "messages": [
            { "role": "user", "content": "?" },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{}" } },
            ] },
            { "role": "tool", "tool_call_id": "c1", "content": "42" },
        ] });
        let Prompt::Conversation { turns, .. } = chat(&said).unwrap().prompt else {
            panic!("no conversation");
        };
        assert_eq!(
            (&*turns[1].calls[0].name, &*turns[1].calls[0].arguments),
            ("f", "{}")
        );
        assert_eq!((turns[2].speaker, &*turns[2].text), (Speaker::Tool, "42"));
        assert_eq!(turns[2].answers, Some(CallName::cut("c1")));
    }

    #[test]
    fn forms_likelihoods_and_choices_are_read() {
        let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } } });
        let ask = chat(&json!({
            "response_format": { "type": "json_schema",
                                 "json_schema": { "name": "x", "schema": schema, "strict": true } },
            "logprobs": true, "top_logprobs": 3, "logit_bias": { "5": -100 },
            "presence_penalty": 0.5,
        }))
        .unwrap();
        let schema = AskText::cut(&schema.to_string());
        let is_strict = true;
        assert_eq!(ask.form, Form::Schema { schema, is_strict });
        assert_eq!(ask.likeliest, Some(3));
        assert_eq!(&*ask.sampling.biases, [(5, -100.0)]);
        let json = chat(&json!({ "response_format": { "type": "json_object" } }));
        assert_eq!(json.unwrap().form, Form::Json);
        let body = json!({ "prompt": "x", "logprobs": 2, "n": 3 });
        let asked = read(&question(Endpoint::COMPLETIONS, &body)).unwrap();
        assert_eq!((asked.ask.likeliest, asked.choices), (Some(2), 3));
        assert_eq!(asked.choice(0), asked.ask);
        assert_ne!(asked.choice(2).seed, asked.ask.seed);
    }

    #[test]
    fn what_a_model_here_can_not_do_is_refused_by_its_name() {
        for (name, value) in [
            ("n", json!(0)),
            ("n", json!(9)),
            (
                "tools",
                json!([{ "type": "function", "function": { "name": "f".repeat(70_000) } }]),
            ),
            ("best_of", json!(2)),
            ("tools", json!([{ "type": "retrieval" }])),
            ("tools", json!("f")),
            ("tool_choice", json!("required")),
            ("tool_choice", json!({ "type": "function" })),
            ("functions", json!([{ "name": "f" }])),
            ("logprobs", json!("yes")),
            ("top_logprobs", json!(3)),
            ("response_format", json!({ "type": "xml" })),
            (
                "response_format",
                json!({ "type": "json_schema", "json_schema": {} }),
            ),
            ("frequency_penalty", json!(2.5)),
            ("presence_penalty", json!("much")),
            ("logit_bias", json!({ "5": 101 })),
            ("logit_bias", json!({ "five": 1 })),
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
        let many = json!({ "logprobs": true, "top_logprobs": 21 });
        assert_eq!(chat(&many).unwrap_err().param, "top_logprobs");
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
            .map(|asked| (asked.ask.prompt, asked.ask.tokens_max))
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
}
