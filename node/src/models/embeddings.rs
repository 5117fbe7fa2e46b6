//! Embeddings by a worker of this node's own, in the form of OpenAI's interface.
//!
//! ```text
//! JSON ─▶ read ─▶ Embed ─▶ (an own encoder) ─▶ words ─▶ Answer ─▶ one answer, whole
//! ```
//!
//! What is asked for and not done is refused by the field's name, as [`super::openai`]
//! does it. An answer is as long as an answer may be, or refused before it is computed.
//!
//! Absent: vectors of another length than the model's, and of other inputs than text.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize as _, Serialize};
use serde_json::{Map, Value};
use suanli_executor::{
    ModelAnswer,
    ipc::model::{AskText, Embed, EmbedInput, Facts, Word},
    limits::{EMBED_INPUTS_MAX, ENCODER_CONTEXT_MAX},
};
use suanli_protocol::{call::Question, wire::List};

use super::{
    openai::{Wrong, field},
    own::BROKE_OFF,
    upstream::{ANSWER_BYTES_MAX, Tokens, UpstreamError},
};

/// Characters of a number in JSON, at most: `-1.2345678e-10,`.
const NUMBER_CHARS: usize = 16;
/// Characters of an answer beside its vectors, and beside each vector.
const CHARS_BESIDE: usize = 512;

/// How numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As a list of numbers.
    Float,
    /// As the base64 of little-endian floats of 32 bits.
    Base64,
}

/// What a question asks of an encoder.
///
/// # Errors
/// [`Wrong`].
pub fn read(question: &Question, facts: &Facts) -> Result<(Embed, Encoding), Wrong> {
    let value = serde_json::from_slice(&question.body);
    let Ok(Value::Object(fields)) = value else {
        return Err(Wrong::new("body", "the body is no JSON object"));
    };
    let width = facts.embeds.unwrap_or_default();
    if let Some(wanted) = field::<u32>(&fields, "dimensions")?
        && wanted != width
    {
        let message = format!(
            "`dimensions` is {wanted}, and this model's embeddings have {width} numbers; leave it out"
        );
        return Err(Wrong::new("dimensions", message));
    }
    let encoding = match fields.get("encoding_format") {
        None | Some(Value::Null) => Encoding::Float,
        Some(Value::String(name)) if name == "float" => Encoding::Float,
        Some(Value::String(name)) if name == "base64" => Encoding::Base64,
        Some(_) => {
            let message = "`encoding_format` is \"float\" or \"base64\"";
            return Err(Wrong::new("encoding_format", message));
        }
    };
    let inputs = inputs(&fields, facts.context)?;
    let width = usize::try_from(width).unwrap_or(usize::MAX);
    let chars = match encoding {
        Encoding::Float => width.saturating_mul(NUMBER_CHARS),
        Encoding::Base64 => width.saturating_mul(4).div_ceil(3).saturating_mul(4),
    };
    let most = (ANSWER_BYTES_MAX - CHARS_BESIDE) / chars.saturating_add(CHARS_BESIDE);
    if inputs.len() > most {
        let message = format!(
            "`input` has {} texts, and an answer has room for {most} vectors of this model; ask for fewer at once{}",
            inputs.len(),
            if encoding == Encoding::Float {
                ", or for base64"
            } else {
                ""
            },
        );
        return Err(Wrong::new("input", message));
    }
    Ok((Embed { inputs }, encoding))
}

fn inputs(
    fields: &Map<String, Value>,
    context: u32,
) -> Result<List<EmbedInput, EMBED_INPUTS_MAX>, Wrong> {
    let wrong = |what: &str| Wrong::new("input", format!("`input` {what}"));
    let inputs: Vec<EmbedInput> = match fields.get("input") {
        Some(Value::String(text)) => vec![input_of_text("`input`", text)?],
        Some(Value::Array(all)) if all.is_empty() => return Err(wrong("is empty")),
        Some(all @ Value::Array(numbers)) if numbers[0].is_number() => {
            vec![input_of_tokens("`input`", all, context)?]
        }
        Some(Value::Array(all)) => {
            if all.len() > EMBED_INPUTS_MAX {
                let message = format!(
                    "has {} texts; {EMBED_INPUTS_MAX} at most go at once",
                    all.len()
                );
                return Err(wrong(&message));
            }
            let input = |(at, value): (usize, &Value)| {
                let place = format!("`input[{at}]`");
                match value {
                    Value::String(text) => input_of_text(&place, text),
                    Value::Array(_) => input_of_tokens(&place, value, context),
                    _ => Err(wrong("is a text, tokens, or a list of one of these")),
                }
            };
            let inputs: Result<_, _> = all.iter().enumerate().map(input).collect();
            inputs?
        }
        None => return Err(wrong("is missing")),
        Some(_) => return Err(wrong("is a text, tokens, or a list of one of these")),
    };
    List::new(inputs).map_err(|error| wrong(&error.to_string()))
}

fn input_of_text(place: &str, text: &str) -> Result<EmbedInput, Wrong> {
    if text.is_empty() {
        return Err(Wrong::new("input", format!("{place} is an empty text")));
    }
    let text = AskText::try_from(text.to_owned());
    let text = text.map_err(|_| Wrong::new("input", format!("{place} is too long")))?;
    Ok(EmbedInput::Text(text))
}

fn input_of_tokens(place: &str, value: &Value, context: u32) -> Result<EmbedInput, Wrong> {
    let wrong = |what: &str| Wrong::new("input", format!("{place} {what}"));
    let tokens = Vec::<u32>::deserialize(value);
    let tokens = tokens.map_err(|_| wrong("is a text, or a list of tokens"))?;
    if tokens.is_empty() {
        return Err(wrong("has no tokens"));
    }
    let context = usize::try_from(context).map_or(ENCODER_CONTEXT_MAX, |context| context);
    if tokens.len() > context.min(ENCODER_CONTEXT_MAX) {
        let message = format!(
            "has {} tokens, and this model reads {context} at most; shorten it",
            tokens.len()
        );
        return Err(wrong(&message));
    }
    Ok(EmbedInput::Tokens(List::truncated(tokens)))
}

/// An answer on its way. Dropping it gives the question up.
#[derive(Debug)]
pub struct Answer {
    words: ModelAnswer,
    model: String,
    encoding: Encoding,
    /// Tokens of the texts that were computed.
    read: u64,
    vectors: Vec<Vector>,
}

/// A vector, as it is written.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Whole<'a> {
    object: &'static str,
    data: Vec<Datum<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Datum<'a> {
    object: &'static str,
    index: usize,
    embedding: &'a Vector,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

impl Answer {
    /// One that no word has come of but that it began.
    pub(super) const fn new(words: ModelAnswer, model: String, encoding: Encoding) -> Self {
        Self {
            words,
            model,
            encoding,
            read: 0,
            vectors: Vec::new(),
        }
    }

    /// What it has cost so far: what was computed.
    pub const fn tokens(&self) -> Tokens {
        Tokens {
            read: self.read,
            written: 0,
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn whole(&mut self) -> Result<(Vec<u8>, Tokens), UpstreamError> {
        loop {
            match self.words.next().await {
                Some(Word::Embedded { read, vector, .. }) => {
                    self.read = self.read.saturating_add(read.into());
                    self.vectors.push(Vector::new(&vector, self.encoding));
                }
                Some(Word::Ended { .. }) => return Ok((self.to_json(), self.tokens())),
                Some(Word::Refused { why, .. }) => {
                    return Err(Wrong::new("input", &*why).into());
                }
                Some(_) | None => return Err(BROKE_OFF),
            }
        }
    }

    fn to_json(&self) -> Vec<u8> {
        let datum = |(index, embedding)| Datum {
            object: "embedding",
            index,
            embedding,
        };
        let whole = Whole {
            object: "list",
            data: self.vectors.iter().enumerate().map(datum).collect(),
            model: &self.model,
            usage: Usage {
                prompt_tokens: self.read,
                total_tokens: self.read,
            },
        };
        serde_json::to_vec(&whole).unwrap_or_default()
    }
}

impl Vector {
    fn new(bytes: &[u8], encoding: Encoding) -> Self {
        match encoding {
            Encoding::Float => {
                let floats = bytes.as_chunks().0.iter();
                Self::Float(floats.map(|four| f32::from_le_bytes(*four)).collect())
            }
            Encoding::Base64 => Self::Base64(BASE64_STANDARD.encode(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use suanli_protocol::{
        call::Begun,
        ids::{AgreementId, Hash},
        registry::Endpoint,
        wire::{Bytes, Utf8},
    };

    use super::*;

    fn asked(body: &Value) -> Result<(Embed, Encoding), Wrong> {
        let question = Question {
            agreement: AgreementId(Hash::of(b"lease")),
            endpoint: Endpoint::EMBEDDINGS,
            streams: false,
            answer: [0; 16],
            asked_s: 0,
            begun: Begun::default(),
            body: Bytes::new(body.to_string().into_bytes()).unwrap(),
        };
        let facts = Facts {
            context: 8,
            made_for: 8,
            vocabulary: 100,
            quantisation: Utf8::cut("F16"),
            converses: false,
            embeds: Some(1024),
            device: None,
        };
        read(&question, &facts)
    }

    #[test]
    fn an_input_is_a_text_or_tokens_or_several() {
        let text = |text: &str| EmbedInput::Text(Utf8::cut(text));
        let tokens = |tokens: &[u32]| EmbedInput::Tokens(List::truncated(tokens.to_vec()));
        for (input, expected) in [
            (json!("a\u{0}b"), vec![text("a\u{0}b")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![tokens(&[1, 2])]),
            (json!([[1], [2, 3]]), vec![tokens(&[1]), tokens(&[2, 3])]),
        ] {
            let (embed, encoding) = asked(&json!({ "input": input })).unwrap();
            assert_eq!((&*embed.inputs, encoding), (&expected[..], Encoding::Float));
        }
        let named = json!({ "input": "a", "encoding_format": "base64", "dimensions": 1024 });
        assert_eq!(asked(&named).unwrap().1, Encoding::Base64);
    }

    #[test]
    fn what_is_wrong_is_said_by_its_field() {
        for (field, value, said) in [
            ("input", json!([]), "empty"),
            ("input", json!(null), "a text"),
            ("input", json!(5), "a text"),
            ("input", json!({}), "a text"),
            ("input", json!(""), "empty"),
            ("input", json!(["a", ""]), "input[1]"),
            ("input", json!(["a", 5]), "a text"),
            ("input", json!([[1], []]), "input[1]"),
            ("input", json!([1, "a"]), "tokens"),
            ("input", json!([1, -1]), "tokens"),
            ("input", json!([1.5]), "tokens"),
            ("input", json!(vec![1; 9]), "9 tokens"),
            ("input", json!(vec!["a"; 2049]), "2049 texts; 2048"),
            ("input", json!(vec!["a"; 1100]), "base64"),
            ("dimensions", json!(256), "1024"),
            ("dimensions", json!("x"), "dimensions"),
            ("encoding_format", json!("hex"), "base64"),
        ] {
            let mut body = json!({ "input": "a" });
            body[field] = value;
            let wrong = asked(&body).unwrap_err();
            let json: Value = serde_json::from_slice(&wrong.to_json()).unwrap();
            assert_eq!(json["error"]["param"], field);
            let message = json["error"]["message"].as_str().unwrap();
            assert!(message.contains(said), "{message}");
        }
    }

    #[test]
    fn numbers_come_back_as_they_were() {
        let numbers = [0.1_f32, -1.5e-9, 1.0, f32::MIN_POSITIVE, -0.012_345_678];
        let bytes: Vec<u8> = numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        let text = serde_json::to_string(&Vector::new(&bytes, Encoding::Float)).unwrap();
        assert!(text.len() <= numbers.len() * NUMBER_CHARS, "{text}");
        let back: Vec<f32> = serde_json::from_str(&text).unwrap();
        assert_eq!(back, numbers);
        let text = serde_json::to_string(&Vector::new(&bytes[..5], Encoding::Base64)).unwrap();
        assert_eq!(text, "\"zczMPY8=\"");
    }
}
