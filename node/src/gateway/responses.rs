//! OpenAI's newer interface, `responses`, by its older one.
//!
//! ```text
//! request ─▶ Wanted ─ body ─▶ a question to a chat
//!               └─▶ Responding ◀─ chunks of its answer ─▶ events
//!                        └─────── or the answer as one ─▶ a response
//! ```
//!
//! What models answer is the older interface, whoever serves them, so that this one is there
//! for each of them. Nothing is kept between two requests: a conversation is sent whole, as
//! `input`, and `previous_response_id` is refused.
//!
//! Absent: HTTP, tools that a server runs itself (search, files, computers), reasoning as
//! items of its own, and images.

use serde_json::{Map, Value, json};

/// What is wrong with a request: the field, and the words for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// The field.
    pub param: String,
    /// What is wrong with it.
    pub message: String,
}

impl Unfit {
    fn new(param: &str, message: impl Into<String>) -> Self {
        Self {
            param: param.to_owned(),
            message: message.into(),
        }
    }
}

/// A request, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The question to a chat.
    pub body: Value,
    /// What every form of the response repeats of the request.
    told: Map<String, Value>,
}

/// An event of a response: its kind, and its data.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The kind.
    pub kind: &'static str,
    /// The data, which name the kind too.
    pub data: Value,
}

impl Wanted {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn read(fields: &Map<String, Value>) -> Result<Self, Unfit> {
        refuse_what_is_not_done(fields)?;
        let mut body = Map::new();
        for (name, as_name) in [
            ("model", "model"),
            ("stream", "stream"),
            ("max_output_tokens", "max_tokens"),
            ("temperature", "temperature"),
            ("top_p", "top_p"),
            ("parallel_tool_calls", "parallel_tool_calls"),
            ("seed", "seed"),
            ("user", "user"),
        ] {
            if let Some(value) = fields.get(name).filter(|value| !value.is_null()) {
                body.insert(as_name.to_owned(), value.clone());
            }
        }
        body.insert("messages".to_owned(), messages(fields)?.into());
        let tools = tools(fields)?;
        if !tools.is_empty() {
            body.insert("tools".to_owned(), tools.into());
        }
        if let Some(choice) = tool_choice(fields.get("tool_choice"))? {
            body.insert("tool_choice".to_owned(), choice);
        }
        let format = fields
            .get("text")
            .map_or(&Value::Null, |text| &text["format"]);
        if let Some(format) = response_format(format) {
            body.insert("response_format".to_owned(), format);
        }
        Ok(Self {
            body: body.into(),
            told: told(fields),
        })
    }
}

fn refuse_what_is_not_done(fields: &Map<String, Value>) -> Result<(), Unfit> {
    let refused = [
        (
            "previous_response_id",
            "responses are not kept here; send the whole conversation as `input`",
        ),
        (
            "conversation",
            "conversations are not kept here; send all of it as `input`",
        ),
        (
            "prompt",
            "prompts are not kept here; send `instructions` and `input`",
        ),
        (
            "background",
            "responses are not kept here; leave `background` out, or ask for a stream",
        ),
        (
            "top_logprobs",
            "likelihoods are told at /v1/chat/completions; leave it out here",
        ),
    ];
    let is_asked = |name: &str| match fields.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Number(number)) => number.as_u64() != Some(0),
        Some(_) => true,
    };
    let included = fields.get("include").and_then(Value::as_array);
    if let Some(other) = included.and_then(|all| all.first()) {
        let message = format!("{other} can't be included here; leave `include` out");
        return Err(Unfit::new("include", message));
    }
    match refused.into_iter().find(|(name, _)| is_asked(name)) {
        Some((name, why)) => Err(Unfit::new(name, why)),
        None => Ok(()),
    }
}

/// What a response repeats of its request.
fn told(fields: &Map<String, Value>) -> Map<String, Value> {
    let defaults = [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("metadata", json!({})),
        ("model", Value::Null),
        ("parallel_tool_calls", true.into()),
        ("previous_response_id", Value::Null),
        ("temperature", 1.0.into()),
        ("text", json!({ "format": { "type": "text" } })),
        ("tool_choice", "auto".into()),
        ("tools", json!([])),
        ("top_p", 1.0.into()),
    ];
    let of = |(name, default): (&str, Value)| {
        let value = fields.get(name).filter(|value| !value.is_null());
        (name.to_owned(), value.cloned().unwrap_or(default))
    };
    let mut told: Map<String, Value> = defaults.into_iter().map(of).collect();
    told.insert("store".to_owned(), false.into());
    told.insert("truncation".to_owned(), "disabled".into());
    told
}

/// The conversation.
fn messages(fields: &Map<String, Value>) -> Result<Vec<Value>, Unfit> {
    let mut messages = Vec::new();
    match fields.get("instructions") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => messages.push(json!({ "role": "system", "content": text })),
        Some(_) => return Err(Unfit::new("instructions", "`instructions` is a text")),
    }
    match fields.get("input") {
        Some(Value::String(text)) => messages.push(json!({ "role": "user", "content": text })),
        Some(Value::Array(items)) => {
            for (at, item) in items.iter().enumerate() {
                add_item(&mut messages, item, &format!("input[{at}]"))?;
            }
        }
        Some(_) => return Err(Unfit::new("input", "`input` is a text, or a list of items")),
        None => return Err(Unfit::new("input", "`input` is missing")),
    }
    Ok(messages)
}

fn add_item(messages: &mut Vec<Value>, item: &Value, place: &str) -> Result<(), Unfit> {
    let wrong = |what: &str| Unfit::new(place, format!("{place}: {what}"));
    let text = |name: &str| {
        let text = item[name].as_str();
        text.ok_or_else(|| wrong(&format!("`{name}` is missing")))
    };
    match item["type"].as_str() {
        None | Some("message") => {
            let content = content(&item["content"]).ok_or_else(|| {
                wrong("`content` is a text, or a list of parts of text: others are not read here")
            })?;
            messages.push(json!({ "role": text("role")?, "content": content }));
        }
        Some("function_call") => {
            let call = json!({
                "id": text("call_id")?,
                "type": "function",
                "function": { "name": text("name")?, "arguments": text("arguments")? },
            });
            // What the model said at once is one message.
            match messages
                .last_mut()
                .filter(|last| last["role"] == "assistant")
            {
                Some(last) => match last["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(call),
                    None => last["tool_calls"] = json!([call]),
                },
                None => messages.push(json!({
                    "role": "assistant", "content": null, "tool_calls": [call],
                })),
            }
        }
        Some("function_call_output") => {
            let output = content(&item["output"])
                .ok_or_else(|| wrong("`output` is a text, or a list of parts of text"))?;
            messages.push(json!({
                "role": "tool", "tool_call_id": text("call_id")?, "content": output,
            }));
        }
        // What a model thought is nothing that it said.
        Some("reasoning") => {}
        Some(other) => {
            return Err(wrong(&format!(
                "items of the type {other:?} are not read here"
            )));
        }
    }
    Ok(())
}

/// The text of a content; none if there is anything else in it.
fn content(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| match part["type"].as_str() {
                Some("input_text" | "output_text" | "text") => part["text"].as_str(),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

fn tools(fields: &Map<String, Value>) -> Result<Vec<Value>, Unfit> {
    let tools = match fields.get("tools") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(tools)) => tools,
        Some(_) => return Err(Unfit::new("tools", "`tools` is a list of functions")),
    };
    let tool = |tool: &Value| match tool["type"].as_str() {
        Some("function") => {
            let mut function = tool.as_object().cloned().unwrap_or_default();
            function.remove("type");
            Ok(json!({ "type": "function", "function": function }))
        }
        other => {
            let message = format!("`tools` are functions here, and one is {other:?}");
            Err(Unfit::new("tools", message))
        }
    };
    tools.iter().map(tool).collect()
}

fn tool_choice(choice: Option<&Value>) -> Result<Option<Value>, Unfit> {
    match choice {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(word)) => Ok(Some(word.clone().into())),
        Some(named) if named["type"] == "function" => {
            let function = json!({ "type": "function", "function": { "name": named["name"] } });
            Ok(Some(function))
        }
        Some(_) => Err(Unfit::new(
            "tool_choice",
            "`tool_choice` is none, auto, required, or a function by its name",
        )),
    }
}

fn response_format(format: &Value) -> Option<Value> {
    match format["type"].as_str()? {
        "json_schema" => {
            let mut schema = format.as_object().cloned().unwrap_or_default();
            schema.remove("type");
            Some(json!({ "type": "json_schema", "json_schema": schema }))
        }
        _ => Some(format.clone()),
    }
}

/// Makes a response of a chat's answer.
#[derive(Debug)]
pub struct Responding {
    told: Map<String, Value>,
    name: String,
    created: u64,
    /// Items that are whole.
    output: Vec<Value>,
    /// The one that is being written.
    open: Option<Open>,
    events: u64,
    usage: Value,
    finish: Option<String>,
}

/// An item that is being written.
#[derive(Debug)]
enum Open {
    Message { text: String },
    Call { index: u64, call: Call },
}

#[derive(Debug, Default)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

impl Responding {
    /// To a request; what it is called is of the caller's making.
    pub fn new(wanted: Wanted, name: String, created: u64) -> Self {
        Self {
            told: wanted.told,
            name,
            created,
            output: Vec::new(),
            open: None,
            events: 0,
            usage: Value::Null,
            finish: None,
        }
    }

    /// The answer as one.
    pub fn whole(mut self, answer: &Value) -> Value {
        let choice = &answer["choices"][0];
        let message = &choice["message"];
        if let Some(text) = message["content"].as_str().filter(|text| !text.is_empty()) {
            let text = text.to_owned();
            self.output
                .push(self.item(&Open::Message { text }, "completed"));
        }
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let call = Call {
                id: text(&call["id"]),
                name: text(&call["function"]["name"]),
                arguments: text(&call["function"]["arguments"]),
            };
            self.output
                .push(self.item(&Open::Call { index: 0, call }, "completed"));
        }
        self.usage = answer["usage"].clone();
        self.finish = choice["finish_reason"].as_str().map(str::to_owned);
        let status = self.status();
        if let Some(last) = self.output.last_mut() {
            last["status"] = status.into();
        }
        self.response(self.status())
    }

    /// What comes before everything.
    pub fn begins(&mut self) -> Vec<Event> {
        let response = self.response("in_progress");
        ["response.created", "response.in_progress"]
            .map(|kind| self.event(kind, json!({ "response": response })))
            .into()
    }

    /// What a chunk of the answer brings.
    pub fn chunk(&mut self, chunk: &Value) -> Vec<Event> {
        let mut events = Vec::new();
        if chunk["usage"].is_object() {
            self.usage = chunk["usage"].clone();
        }
        let choice = &chunk["choices"][0];
        if let Some(text) = choice["delta"]["content"]
            .as_str()
            .filter(|text| !text.is_empty())
        {
            self.text(text, &mut events);
        }
        for call in choice["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            self.call(call, &mut events);
        }
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.to_owned());
        }
        events
    }

    /// What comes after everything.
    pub fn ends(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let status = self.status();
        self.close(status, &mut events);
        let kind = match status {
            "completed" => "response.completed",
            _ => "response.incomplete",
        };
        let response = self.response(status);
        events.push(self.event(kind, json!({ "response": response })));
        events
    }

    /// What comes after a part, if the rest is lost.
    pub fn breaks(&mut self, code: &str, message: &str) -> Vec<Event> {
        let mut response = self.response("failed");
        response["error"] = json!({ "code": code, "message": message });
        vec![self.event("response.failed", json!({ "response": response }))]
    }

    fn event(&mut self, kind: &'static str, mut data: Value) -> Event {
        data["type"] = kind.into();
        data["sequence_number"] = self.events.into();
        self.events += 1;
        Event { kind, data }
    }

    fn status(&self) -> &'static str {
        match self.finish.as_deref() {
            Some("length" | "content_filter") => "incomplete",
            _ => "completed",
        }
    }

    fn response(&self, status: &str) -> Value {
        let mut response = json!({
            "id": format!("resp_{}", self.name),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": null,
            "output": self.output,
            "usage": usage(&self.usage),
        });
        if status == "incomplete" {
            let reason = match self.finish.as_deref() {
                Some("content_filter") => "content_filter",
                _ => "max_output_tokens",
            };
            response["incomplete_details"] = json!({ "reason": reason });
        }
        for (name, value) in &self.told {
            response[name] = value.clone();
        }
        response
    }

    /// What the item that is written now is called.
    fn item_id(&self, item: &Open) -> String {
        let kind = match item {
            Open::Message { .. } => "msg",
            Open::Call { .. } => "fc",
        };
        format!("{kind}_{}_{}", self.name, self.output.len())
    }

    fn item(&self, item: &Open, status: &str) -> Value {
        let id = self.item_id(item);
        match item {
            Open::Message { text } => {
                // Of one that is begun there is no part yet.
                let is_begun = status == "in_progress";
                let parts: Vec<Value> = (!is_begun).then(|| part(text)).into_iter().collect();
                json!({
                    "id": id, "type": "message", "status": status, "role": "assistant",
                    "content": parts,
                })
            }
            Open::Call { call, .. } => json!({
                "id": id, "type": "function_call", "status": status, "call_id": call.id,
                "name": call.name, "arguments": call.arguments,
            }),
        }
    }

    /// Begins an item, after the one before it has ended.
    fn open(&mut self, item: Open, events: &mut Vec<Event>) {
        self.close("completed", events);
        let (id, at) = (self.item_id(&item), self.output.len());
        let begun = self.item(&item, "in_progress");
        let data = json!({ "output_index": at, "item": begun });
        events.push(self.event("response.output_item.added", data));
        if matches!(item, Open::Message { .. }) {
            let data = json!({
                "item_id": id, "output_index": at, "content_index": 0, "part": part(""),
            });
            events.push(self.event("response.content_part.added", data));
        }
        self.open = Some(item);
    }

    fn text(&mut self, delta: &str, events: &mut Vec<Event>) {
        if !matches!(self.open, Some(Open::Message { .. })) {
            let text = String::new();
            self.open(Open::Message { text }, events);
        }
        if let Some(Open::Message { text }) = &mut self.open {
            text.push_str(delta);
        }
        let data = json!({ "content_index": 0, "delta": delta, "logprobs": [] });
        self.tell("response.output_text.delta", data, events);
    }

    fn call(&mut self, said: &Value, events: &mut Vec<Event>) {
        let number = said["index"].as_u64().unwrap_or(0);
        let is_open = matches!(self.open, Some(Open::Call { index, .. }) if index == number);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if !is_open {
            let call = Call {
                id: text(&said["id"]),
                name: text(&said["function"]["name"]),
                arguments: String::new(),
            };
            let index = number;
            self.open(Open::Call { index, call }, events);
        }
        let delta = text(&said["function"]["arguments"]);
        if delta.is_empty() {
            return;
        }
        if let Some(Open::Call { call, .. }) = &mut self.open {
            call.arguments.push_str(&delta);
        }
        let data = json!({ "delta": delta });
        self.tell("response.function_call_arguments.delta", data, events);
    }

    /// Tells something of the item that is open.
    fn tell(&mut self, kind: &'static str, mut data: Value, events: &mut Vec<Event>) {
        if let Some(open) = &self.open {
            data["item_id"] = self.item_id(open).into();
            data["output_index"] = self.output.len().into();
            events.push(self.event(kind, data));
        }
    }

    /// Ends the item that is open, whole or not.
    fn close(&mut self, status: &str, events: &mut Vec<Event>) {
        match &self.open {
            None => return,
            Some(Open::Message { text }) => {
                let text = text.clone();
                let done = json!({ "content_index": 0, "text": text, "logprobs": [] });
                self.tell("response.output_text.done", done, events);
                let done = json!({ "content_index": 0, "part": part(&text) });
                self.tell("response.content_part.done", done, events);
            }
            Some(Open::Call { call, .. }) => {
                let done = json!({ "name": call.name, "arguments": call.arguments });
                self.tell("response.function_call_arguments.done", done, events);
            }
        }
        if let Some(item) = self.open.take() {
            let whole = self.item(&item, status);
            let data = json!({ "output_index": self.output.len(), "item": whole });
            events.push(self.event("response.output_item.done", data));
            self.output.push(whole);
        }
    }
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

fn usage(usage: &Value) -> Value {
    if !usage.is_object() {
        return Value::Null;
    }
    json!({
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": { "cached_tokens": 0 },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": usage["total_tokens"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(request: &Value) -> Result<Wanted, Unfit> {
        Wanted::read(request.as_object().unwrap())
    }

    #[test]
    fn a_request_becomes_a_question_to_a_chat() {
        let schema = json!({ "type": "object" });
        let body = wanted(&json!({
            "model": "m", "instructions": "be brief", "max_output_tokens": 9, "stream": true,
            "input": [
                { "role": "user", "content": [{ "type": "input_text", "text": "hot?" }] },
                { "type": "reasoning", "summary": [] },
                { "type": "function_call", "call_id": "a", "name": "f", "arguments": "{}" },
                { "type": "function_call", "call_id": "b", "name": "f", "arguments": "{}" },
                { "type": "function_call_output", "call_id": "a", "output": "yes" },
            ],
            "tools": [{ "type": "function", "name": "f", "parameters": schema }],
            "tool_choice": { "type": "function", "name": "f" },
            "text": { "format": { "type": "json_schema", "name": "x", "schema": schema } },
        }));
        let call = |id: &str| json!({ "id": id, "type": "function", "function": { "name": "f", "arguments": "{}" } });
        assert_eq!(
            body.unwrap().body,
            json!({
                "model": "m", "stream": true, "max_tokens": 9,
                "messages": [
                    { "role": "system", "content": "be brief" },
                    { "role": "user", "content": "hot?" },
                    { "role": "assistant", "content": null, "tool_calls": [call("a"), call("b")] },
                    { "role": "tool", "tool_call_id": "a", "content": "yes" },
                ],
                "tools": [{ "type": "function", "function": { "name": "f", "parameters": schema } }],
                "tool_choice": { "type": "function", "function": { "name": "f" } },
                "response_format": { "type": "json_schema",
                                     "json_schema": { "name": "x", "schema": schema } },
            })
        );
    }

    #[test]
    fn what_is_not_done_is_refused_by_its_name() {
        for (name, value) in [
            ("previous_response_id", json!("resp_1")),
            ("background", json!(true)),
            ("top_logprobs", json!(2)),
            ("include", json!(["message.output_text.logprobs"])),
            ("tools", json!("f")),
            ("conversation", json!("c")),
            ("input", json!(5)),
            ("instructions", json!(5)),
            ("tools", json!([{ "type": "web_search" }])),
            ("tool_choice", json!({ "type": "web_search" })),
        ] {
            let mut request = json!({ "model": "m", "input": "x" });
            request[name] = value;
            assert_eq!(wanted(&request).unwrap_err().param, name);
        }
        for item in [
            json!({ "role": "user", "content": [{ "type": "input_image" }] }),
            json!({ "type": "function_call", "name": "f" }),
            json!({ "type": "item_reference", "id": "x" }),
            json!({ "content": "x" }),
        ] {
            let wrong = wanted(&json!({ "model": "m", "input": [item] })).unwrap_err();
            assert_eq!(wrong.param, "input[0]");
        }
    }

    fn delta(delta: &Value) -> Value {
        json!({ "choices": [{ "index": 0, "delta": delta, "finish_reason": null }] })
    }

    #[test]
    fn a_stream_is_told_item_by_item_and_comes_to_what_the_whole_is() {
        let request = json!({ "model": "m", "input": "x" });
        let mut responding = Responding::new(wanted(&request).unwrap(), "ab".to_owned(), 5);
        let mut events = responding.begins();
        for chunk in [
            delta(&json!({ "role": "assistant", "content": "" })),
            delta(&json!({ "content": "Let me " })),
            delta(&json!({ "content": "see." })),
            delta(
                &json!({ "tool_calls": [{ "index": 0, "id": "c0", "type": "function",
                           "function": { "name": "f", "arguments": "" } }] }),
            ),
            delta(
                &json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "{}" } },
                { "index": 1, "id": "c1", "function": { "name": "g", "arguments": "[" } }] }),
            ),
            delta(&json!({ "tool_calls": [{ "index": 1, "function": { "arguments": "]" } }] })),
            json!({ "choices": [{ "delta": {}, "finish_reason": "tool_calls" }] }),
            json!({ "choices": [], "usage": { "prompt_tokens": 3, "completion_tokens": 4,
                                              "total_tokens": 7 } }),
        ] {
            events.extend(responding.chunk(&chunk));
        }
        events.extend(responding.ends());
        let kinds: Vec<&str> = events.iter().map(|event| event.kind).collect();
        let call = [
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
        ];
        let mut expected = vec![
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
        ];
        expected.extend(call);
        expected.extend([call[0], call[1], call[1], call[2], call[3]]);
        expected.push("response.completed");
        assert_eq!(kinds, expected);
        for (number, event) in events.iter().enumerate() {
            assert_eq!(event.data["sequence_number"], number);
            assert_eq!(event.data["type"], event.kind);
        }
        let streamed = &events.last().unwrap().data["response"];
        let message = json!({
            "role": "assistant", "content": "Let me see.",
            "tool_calls": [
                { "id": "c0", "function": { "name": "f", "arguments": "{}" } },
                { "id": "c1", "function": { "name": "g", "arguments": "[]" } },
            ],
        });
        let answer = json!({
            "choices": [{ "message": message, "finish_reason": "tool_calls" }],
            "usage": { "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7 },
        });
        let whole = Responding::new(wanted(&request).unwrap(), "ab".to_owned(), 5).whole(&answer);
        assert_eq!(*streamed, whole);
        assert_eq!(whole["output"][0]["content"][0]["text"], "Let me see.");
        assert_eq!(whole["output"][2]["call_id"], "c1");
        assert_eq!(whole["usage"]["input_tokens"], 3);
    }

    #[test]
    fn what_is_cut_off_says_so() {
        let request = json!({ "model": "m", "input": "x", "max_output_tokens": 2 });
        let mut responding = Responding::new(wanted(&request).unwrap(), "ab".to_owned(), 5);
        responding.chunk(&delta(&json!({ "content": "a" })));
        responding.chunk(&json!({ "choices": [{ "delta": {}, "finish_reason": "length" }] }));
        let last = responding.ends().pop().unwrap();
        assert_eq!(last.kind, "response.incomplete");
        let response = &last.data["response"];
        assert_eq!(
            response["incomplete_details"]["reason"],
            "max_output_tokens"
        );
        assert_eq!(response["max_output_tokens"], 2);
        assert_eq!(response["output"][0]["status"], "incomplete");
        let broken = responding.breaks("provider_lost", "gone").pop().unwrap();
        assert_eq!(broken.data["response"]["error"]["code"], "provider_lost");
    }
}
