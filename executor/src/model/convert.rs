//! Makes the file of an encoder out of what its makers publish.
//!
//! ```text
//!   config.json, modules.json, 1_Pooling/config.json ─▶ sizes ───────┐
//!   tokenizer.json ─▶ vocabulary ────────────────────────────────────┼─▶ GGUF
//!   model.safetensors ─▶ its head, checked ─▶ tensors, one at a time ┘
//! ```
//!
//! The layout is that of sentence-transformers, and what is written has the keys and
//! names of llama.cpp's converter, so that both can read it. The same parts give the same
//! bytes on every machine: their hash is what the model goes by. Matrices become F16, and
//! all else F32.
//!
//! The parts come from strangers. Everything is read with limits; every offset is checked
//! before it is gone to; and what a model says that is not computed here is refused, with
//! what could be done instead.
//!
//! Absent: files and archives (the caller opens them), other models than BERT's, other
//! forms of weights than safetensors.

mod parts;
mod safetensors;

use std::io::{Read, Seek, Write};

use half::f16;

use self::{
    parts::{Sizes, Vocabulary, sizes, vocabulary},
    safetensors::{Head, Numbers},
};
use super::gguf::TensorType;

/// Bytes of a JSON file beside the weights; the largest vocabularies have 20 million.
pub const JSON_BYTES_MAX: u64 = 64 << 20;
const ALIGNMENT: u64 = 32;
/// Most matrices are F16.
const FILE_TYPE: u32 = 1;

/// The JSON files of a package, as bytes.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// `config.json`.
    pub config: &'a [u8],
    /// `modules.json`.
    pub modules: &'a [u8],
    /// `1_Pooling/config.json`.
    pub pooling: &'a [u8],
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A JSON file is none, or not as it should be.
    #[error("{file} can't be read: {why}; was it copied in full?")]
    Json {
        /// Which.
        file: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Something that is not done here.
    #[error("{file} asks for {what}, which is not supported here; take another model")]
    Unsupported {
        /// Where it stands.
        file: &'static str,
        /// What it asks for.
        what: String,
    },
    /// The weights are damaged.
    #[error("model.safetensors is damaged: {0}; fetch it again")]
    Weights(String),
    /// A tensor is not there.
    #[error("model.safetensors has no tensor {0:?}; is it the encoder that config.json describes?")]
    NoTensor(String),
    /// A tensor that is not known.
    #[error(
        "model.safetensors has a tensor {0:?}, which is not supported here; take another model"
    )]
    UnknownTensor(String),
    /// A tensor of another shape.
    #[error("the tensor {name:?} is {found:?}, and by config.json it should be {wanted:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<u64>,
        /// What it should be.
        wanted: Vec<u64>,
    },
    /// A tensor of another type.
    #[error("the tensor {name:?} is of the type {kind:?}, and F32, F16 and BF16 are read here")]
    Type {
        /// Its name.
        name: String,
        /// Its type.
        kind: String,
    },
    /// A number that can't be written.
    #[error("the tensor {0:?} has a number that is not finite with 16 bits; take another model")]
    NotFinite(String),
}

/// A tensor as it will be.
struct Written {
    /// What it is called in the package,
    from: String,
    /// and in the file.
    to: String,
    /// As in the package: rows first.
    shape: Vec<u64>,
    kind: TensorType,
}

impl Written {
    fn bytes(&self) -> u64 {
        let width = if self.kind == TensorType::F16 { 2 } else { 4 };
        self.shape.iter().product::<u64>() * width
    }
}

/// Writes the file.
///
/// # Errors
///
/// [`ConvertError`]; what was written until then is of no use.
pub fn convert(
    parts: &Parts<'_>,
    weights: &mut (impl Read + Seek),
    out: &mut impl Write,
) -> Result<(), ConvertError> {
    let sizes = sizes(parts)?;
    let vocabulary = vocabulary(parts.tokenizer, sizes.vocabulary)?;
    let head = Head::read(weights)?;
    let tensors = tensors(&sizes, &head)?;
    let begin = gguf_head(&sizes, &vocabulary, &tensors);
    out.write_all(&begin)?;
    for tensor in &tensors {
        let numbers = head.numbers(weights, &tensor.from)?;
        let bytes = bytes_of(&numbers, tensor)?;
        out.write_all(&bytes)?;
        let filling = u64::try_from(bytes.len())
            .unwrap_or(0)
            .next_multiple_of(ALIGNMENT)
            - u64::try_from(bytes.len()).unwrap_or(0);
        let zeros = [0; 32];
        out.write_all(&zeros[..usize::try_from(filling).unwrap_or(0)])?;
    }
    Ok(())
}

/// All tensors, in the order in which they are written; and there are no others.
fn tensors(sizes: &Sizes, head: &Head) -> Result<Vec<Written>, ConvertError> {
    let prefix = match head.has("bert.embeddings.word_embeddings.weight") {
        true => "bert.",
        false => "",
    };
    let (width, hidden) = (sizes.width, sizes.hidden);
    let mut all = Vec::new();
    let mut add = |from: String, to: String, shape: &[u64], kind| {
        let (from, shape) = (format!("{prefix}{from}"), shape.to_vec());
        all.push(Written {
            from,
            to,
            shape,
            kind,
        });
    };
    let (small, wide) = (TensorType::F16, TensorType::F32);
    for (from, to, rows, kind) in [
        ("word_embeddings", "token_embd", sizes.vocabulary, small),
        ("position_embeddings", "position_embd", sizes.context, wide),
        ("token_type_embeddings", "token_types", sizes.types, wide),
    ] {
        let from = format!("embeddings.{from}.weight");
        add(from, format!("{to}.weight"), &[rows, width], kind);
    }
    for end in ["weight", "bias"] {
        let from = format!("embeddings.LayerNorm.{end}");
        add(from, format!("token_embd_norm.{end}"), &[width], wide);
    }
    for layer in 0..sizes.layers {
        for (from, to, rows, columns) in [
            ("attention.self.query", "attn_q", width, width),
            ("attention.self.key", "attn_k", width, width),
            ("attention.self.value", "attn_v", width, width),
            ("attention.output.dense", "attn_output", width, width),
            ("intermediate.dense", "ffn_up", hidden, width),
            ("output.dense", "ffn_down", width, hidden),
        ] {
            let (from, to) = (
                format!("encoder.layer.{layer}.{from}"),
                format!("blk.{layer}.{to}"),
            );
            add(
                format!("{from}.weight"),
                format!("{to}.weight"),
                &[rows, columns],
                small,
            );
            add(format!("{from}.bias"), format!("{to}.bias"), &[rows], wide);
        }
        for (from, to) in [
            ("attention.output.LayerNorm", "attn_output_norm"),
            ("output.LayerNorm", "layer_output_norm"),
        ] {
            for end in ["weight", "bias"] {
                let from = format!("encoder.layer.{layer}.{from}.{end}");
                add(from, format!("blk.{layer}.{to}.{end}"), &[width], wide);
            }
        }
    }
    check(&all, prefix, head)?;
    Ok(all)
}

/// Whether a package has these tensors, and no others that matter.
fn check(all: &[Written], prefix: &str, head: &Head) -> Result<(), ConvertError> {
    for tensor in all {
        head.check(&tensor.from, &tensor.shape)?;
    }
    // What a sentence's vector is not made of.
    let unused = [
        "embeddings.position_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
    ];
    let is_known = |name: &str| {
        let bare = name.strip_prefix(prefix).unwrap_or(name);
        unused.contains(&bare) || all.iter().any(|tensor| tensor.from == name)
    };
    match head.names().find(|name| !is_known(name)) {
        Some(unknown) => Err(ConvertError::UnknownTensor(unknown.to_owned())),
        None => Ok(()),
    }
}

fn bytes_of(numbers: &Numbers, tensor: &Written) -> Result<Vec<u8>, ConvertError> {
    let not_finite = || ConvertError::NotFinite(tensor.from.clone());
    let mut bytes = Vec::with_capacity(usize::try_from(tensor.bytes()).unwrap_or(0));
    for number in numbers.floats() {
        if tensor.kind == TensorType::F16 {
            let half = f16::from_f32(number);
            if !half.is_finite() {
                return Err(not_finite());
            }
            bytes.extend(half.to_le_bytes());
        } else {
            if !number.is_finite() {
                return Err(not_finite());
            }
            bytes.extend(number.to_le_bytes());
        }
    }
    Ok(bytes)
}

/// All that comes before the first tensor's numbers.
fn gguf_head(sizes: &Sizes, vocabulary: &Vocabulary, tensors: &[Written]) -> Vec<u8> {
    let mut entries = Entries::default();
    entries.text("general.architecture", super::encoder::ARCHITECTURE);
    entries.number("general.file_type", FILE_TYPE);
    for (key, size) in [
        ("block_count", sizes.layers),
        ("context_length", sizes.context),
        ("embedding_length", sizes.width),
        ("feed_forward_length", sizes.hidden),
        ("attention.head_count", sizes.heads),
        ("pooling_type", sizes.pooling),
    ] {
        entries.number(
            &format!("bert.{key}"),
            u32::try_from(size).unwrap_or(u32::MAX),
        );
    }
    entries.entry(
        "bert.attention.layer_norm_epsilon",
        6,
        &sizes.epsilon.to_le_bytes(),
    );
    entries.entry("bert.attention.causal", 7, &[0]);
    entries.text("tokenizer.ggml.model", super::wordpiece::KIND);
    let types = u32::try_from(sizes.types).unwrap_or(u32::MAX);
    entries.number("tokenizer.ggml.token_type_count", types);
    let tokens: Vec<u8> = vocabulary
        .tokens
        .iter()
        .flat_map(|token| text(token))
        .collect();
    entries.array("tokenizer.ggml.tokens", 8, vocabulary.tokens.len(), &tokens);
    let kinds: Vec<u8> = vocabulary
        .kinds
        .iter()
        .flat_map(|kind| kind.to_le_bytes())
        .collect();
    entries.array(
        "tokenizer.ggml.token_type",
        5,
        vocabulary.kinds.len(),
        &kinds,
    );
    for (key, token) in &vocabulary.special {
        entries.number(&format!("tokenizer.ggml.{key}_token_id"), *token);
    }
    let mut head = b"GGUF\x03\0\0\0".to_vec();
    let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX).to_le_bytes();
    head.extend(count(tensors.len()));
    head.extend(entries.count.to_le_bytes());
    head.extend(entries.bytes);
    let mut offset: u64 = 0;
    for tensor in tensors {
        head.extend(text(&tensor.to));
        head.extend(u32::try_from(tensor.shape.len()).unwrap_or(0).to_le_bytes());
        // There the dimension whose numbers are neighbours comes first.
        tensor
            .shape
            .iter()
            .rev()
            .for_each(|size| head.extend(size.to_le_bytes()));
        head.extend(tensor.kind.number().to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(32), 0);
    head
}

/// Metadata.
#[derive(Default)]
struct Entries {
    count: u64,
    bytes: Vec<u8>,
}

impl Entries {
    fn entry(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.count += 1;
        self.bytes.extend(text(key));
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
    }

    fn number(&mut self, key: &str, number: u32) {
        self.entry(key, 4, &number.to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.entry(key, 8, &text(value));
    }

    fn array(&mut self, key: &str, kind: u32, count: usize, values: &[u8]) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let head = [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
        self.entry(key, 9, &[&head, values].concat());
    }
}

fn text(text: &str) -> Vec<u8> {
    let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
    [&length.to_le_bytes()[..], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests;
