//! A model of Llama's family, Qwen's in it: what it is made of, out of a [`Gguf`].
//!
//! ```text
//!   token ─▶ embedding ─▶ layer … layer ─▶ norm ─▶ output ─▶ logits
//!
//!   layer:  x += output(attention(rotate(q), rotate(k), v))   q, k, v of norm(x)
//!           x += down(silu(gate(norm(x))) · up(norm(x)))
//! ```
//!
//! Norms are by the root of the mean square, positions are rotations of pairs, several
//! query heads may share a head of keys and values, and the output may be the embedding
//! again. In this, [architectures](Architecture) differ:
//!
//! | | rotated pairs | q, k and v |
//! |---|---|---|
//! | `llama` | neighbours | as they are |
//! | `qwen2` | a head's halves | each plus a bias |
//! | `qwen3` | a head's halves | a norm of each head of q and k |
//!
//! [`Llama::read`] checks each tensor's shape and type against the configuration, so
//! that an engine may take them as they are. What a file has and is not used here (another
//! bias, experts, another scaling of positions) is refused in words: to leave it out
//! would give a model that speaks, and speaks nonsense.
//!
//! Absent: computing. Weights are slices of the file, for an engine to arrange as its
//! device wants them ([`super::cpu`]).

use half::{bf16, f16};

use super::gguf::{Gguf, GgufError, Tensor, TensorType};
use crate::limits::{
    MODEL_CONTEXT_MAX, MODEL_HEAD_WIDTH_MAX, MODEL_HEADS_MAX, MODEL_LAYERS_MAX,
    MODEL_VOCABULARY_MAX, MODEL_WIDTH_MAX,
};

const ROPE_BASE_DEFAULT: f64 = 10_000.0;
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// Tensors of each layer of each architecture.
const OF_A_LAYER: [&str; 9] = [
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
];

/// What a file says that its model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama's, which others share.
    Llama,
    /// That of Qwen2 and Qwen2.5.
    Qwen2,
    /// That of Qwen3, without experts.
    Qwen3,
}

impl Architecture {
    const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// What files call it; their metadata begin with it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Which numbers of a head positions rotate together.
    pub const fn rotation(self) -> Rotation {
        match self {
            Self::Llama => Rotation::Neighbours,
            Self::Qwen2 | Self::Qwen3 => Rotation::Halves,
        }
    }

    /// Tensors of a layer beside [`OF_A_LAYER`].
    const fn more_of_a_layer(self) -> &'static [&'static str] {
        match self {
            Self::Llama => &[],
            Self::Qwen2 => &["attn_q.bias", "attn_k.bias", "attn_v.bias"],
            Self::Qwen3 => &["attn_q_norm.weight", "attn_k_norm.weight"],
        }
    }
}

/// Which numbers of a head are a pair that a position rotates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// Two neighbours.
    Neighbours,
    /// One of the first half of those that are rotated, and its like of the second.
    Halves,
}

/// The sizes of a model. All are checked: none is 0, and they fit each other.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Positions that the model was made for.
    pub context: usize,
    /// Layers.
    pub layers: usize,
    /// Numbers that stand for a token between layers.
    pub width: usize,
    /// Numbers in the middle of a feed-forward part.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; [`heads`](Self::heads) is a multiple of it.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_width: usize,
    /// Numbers of a head that positions rotate, the first ones; even.
    pub rotated: usize,
    /// Which two of them are a pair.
    pub rotation: Rotation,
    /// The base of the rotations' speeds.
    pub rope_base: f64,
    /// What norms add to the mean square.
    pub epsilon: f32,
}

impl Config {
    /// Numbers of all query heads.
    pub const fn query_width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Numbers of all heads of keys, and as many of values.
    pub const fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }

    /// How a position turns each rotated pair: cosine and sine. The factors are
    /// [`Llama::rope_factors`].
    pub fn turns(&self, position: u32, factors: &[f32]) -> Vec<[f32; 2]> {
        let mut turns = Vec::with_capacity(factors.len());
        for (pair, factor) in factors.iter().enumerate() {
            #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
            let power = -2.0 * pair as f64 / self.rotated as f64;
            let angle = f64::from(position) * self.rope_base.powf(power) / f64::from(*factor);
            let (sine, cosine) = angle.sin_cos();
            // Systems differ in the last place of 64 bits, which is not seen in 32.
            #[allow(clippy::cast_possible_truncation, reason = "it is to be rounded")]
            turns.push([cosine as f32, sine as f32]);
        }
        turns
    }
}

/// A model: its sizes and its weights.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Llama<'a> {
    /// Its sizes.
    pub config: Config,
    /// A row for each token.
    pub embedding: Matrix<'a>,
    /// The layers, first to last.
    pub layers: Vec<Layer<'a>>,
    /// The norm after the last layer.
    pub norm: Vec<f32>,
    /// A row for each token, if it is not the embedding again.
    pub output: Option<Matrix<'a>>,
    /// What each rotated pair's speed is divided by: [`Config::rotated`] / 2 of them.
    pub rope_factors: Vec<f32>,
}

/// A layer's weights.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Layer<'a> {
    /// The norm before attention.
    pub attention_norm: Vec<f32>,
    /// Queries.
    pub query: Matrix<'a>,
    /// Keys.
    pub key: Matrix<'a>,
    /// Values.
    pub value: Matrix<'a>,
    /// What is added to the three, if anything is.
    pub biases: Option<Biases>,
    /// What each head's norm weighs its numbers with, if there are such norms. No layer
    /// has both.
    pub head_norms: Option<HeadNorms>,
    /// From the heads back to the width.
    pub attention_output: Matrix<'a>,
    /// The norm before the feed-forward part.
    pub feed_norm: Vec<f32>,
    /// What goes through the gate.
    pub gate: Matrix<'a>,
    /// What is multiplied with it.
    pub up: Matrix<'a>,
    /// Back to the width.
    pub down: Matrix<'a>,
}

/// What is added to queries, keys and values.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "as the matrices are called")]
pub struct Biases {
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
}

/// The weights of norms of each head of queries and keys, before positions rotate them.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "as the matrices are called")]
pub struct HeadNorms {
    pub query: Vec<f32>,
    pub key: Vec<f32>,
}

/// A matrix as it is in the file, row by row.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    kind: MatrixType,
    rows: usize,
    columns: usize,
    bytes: &'a [u8],
}

/// How a matrix that an engine can multiply with is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "these are their names")]
pub enum MatrixType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl MatrixType {
    /// What a file calls it.
    pub const fn tensor_type(self) -> TensorType {
        match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::Bf16 => TensorType::Bf16,
            Self::Q4_0 => TensorType::Q4_0,
            Self::Q4_1 => TensorType::Q4_1,
            Self::Q5_0 => TensorType::Q5_0,
            Self::Q5_1 => TensorType::Q5_1,
            Self::Q8_0 => TensorType::Q8_0,
            Self::Q4K => TensorType::Q4K,
            Self::Q5K => TensorType::Q5K,
            Self::Q6K => TensorType::Q6K,
        }
    }

    /// The numbers of a block, and its bytes.
    pub const fn block(self) -> (usize, usize) {
        self.tensor_type().block()
    }
}

/// Why a file is no model that can be run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The file itself is at fault.
    #[error(transparent)]
    File(#[from] GgufError),
    /// Another kind of model.
    #[error(
        "the model is of the architecture {0:?}, and \"llama\", \"qwen2\", \"qwen3\" and \"bert\" are what runs here; take another model"
    )]
    Architecture(String),
    /// A size that can't be.
    #[error("the model's {key} is {value}, which can't be: {why}")]
    Size {
        /// Which.
        key: String,
        /// What the file says.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Something that is not done here.
    #[error("the model needs {0}, which is not supported here; take another model")]
    Unsupported(String),
    /// A tensor is not there.
    #[error("the model has no tensor {0:?}; was it converted in full?")]
    NoTensor(String),
    /// A tensor that nothing here uses.
    #[error("the model has a tensor {0:?}, which is not supported here; take another model")]
    UnknownTensor(String),
    /// A tensor of another shape than the model's sizes ask for.
    #[error("the tensor {name:?} is {found:?}, and by the model's sizes it should be {wanted:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// What it should be.
        wanted: Vec<usize>,
    },
    /// A tensor of a type that is not computed with.
    #[error(
        "the tensor {name:?} is written as {kind:?}, and F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1 and Q4_0 are what runs here; convert the model to one of them"
    )]
    TensorType {
        /// Its name.
        name: String,
        /// Its type.
        kind: TensorType,
    },
    /// A number that is none.
    #[error("the tensor {0:?} has a number that is not finite; the file is damaged")]
    NotFinite(String),
}

impl<'a> Llama<'a> {
    /// Reads the model that a file has.
    ///
    /// # Errors
    ///
    /// Why it is none that can be run here.
    pub fn read(file: &Gguf<'a>) -> Result<Self, ModelError> {
        let keys = Keys::read(file)?;
        let config = config(&keys)?;
        let (width, rows) = (config.width, config.vocabulary);
        let embedding = matrix(file, "token_embd.weight", rows, width)?;
        let layers = (0..config.layers)
            .map(|index| layer(&keys, &config, index))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = vector(file, "output_norm.weight", width)?;
        let output = file
            .tensor("output.weight")
            .map(|_| matrix(file, "output.weight", rows, width))
            .transpose()?;
        let rope_factors = rope_factors(file, &config)?;
        only_used(&keys, &config)?;
        Ok(Self {
            config,
            embedding,
            layers,
            norm,
            output,
            rope_factors,
        })
    }
}

impl<'a> Matrix<'a> {
    /// How it is written.
    pub const fn kind(&self) -> MatrixType {
        self.kind
    }

    /// Rows: the numbers that come out.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the numbers that go in. Whole blocks of its type.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// Its bytes, row by row, [`row_bytes`](Self::row_bytes) for each.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of a row.
    pub const fn row_bytes(&self) -> usize {
        self.bytes.len() / self.rows
    }
}

/// A file, and the architecture that its metadata are of.
struct Keys<'a, 'b> {
    file: &'b Gguf<'a>,
    architecture: Architecture,
}

impl<'a, 'b> Keys<'a, 'b> {
    fn read(file: &'b Gguf<'a>) -> Result<Self, ModelError> {
        const NAME: &str = "general.architecture";
        let name = file
            .text(NAME)?
            .ok_or_else(|| GgufError::Missing(NAME.to_owned()))?;
        let known = Architecture::ALL.into_iter();
        let architecture = known
            .clone()
            .find(|known| known.name() == name)
            .ok_or_else(|| ModelError::Architecture(name.to_owned()))?;
        Ok(Self { file, architecture })
    }

    /// The whole name of a value.
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    fn size(&self, name: &str, default: Option<usize>, max: usize) -> Result<usize, ModelError> {
        size(self.file, &self.key(name), default, max)
    }

    fn wrong(&self, name: &str, value: impl ToString, why: &'static str) -> ModelError {
        wrong(&self.key(name), value, why)
    }
}

fn config(keys: &Keys<'_, '_>) -> Result<Config, ModelError> {
    refuse_variants(keys)?;
    let layers = keys.size("block_count", None, MODEL_LAYERS_MAX)?;
    let width = keys.size("embedding_length", None, MODEL_WIDTH_MAX)?;
    let hidden = keys.size("feed_forward_length", None, MODEL_WIDTH_MAX)?;
    let heads = keys.size("attention.head_count", None, MODEL_HEADS_MAX)?;
    let kv_heads = keys.size("attention.head_count_kv", Some(heads), heads)?;
    let key = "attention.key_length";
    let head_width = keys.size(key, Some(width / heads), MODEL_HEAD_WIDTH_MAX)?;
    let key = "rope.dimension_count";
    let rotated = keys.size(key, Some(head_width), head_width)?;
    let value_key = "attention.value_length";
    let value_width = keys.size(value_key, Some(head_width), MODEL_HEAD_WIDTH_MAX)?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(keys.wrong(
            "attention.head_count_kv",
            kv_heads,
            "the number of heads is no multiple of it",
        ));
    }
    if value_width != head_width {
        return Err(keys.wrong(value_key, value_width, "keys are of another length"));
    }
    if !rotated.is_multiple_of(2) {
        return Err(keys.wrong(key, rotated, "pairs are rotated, and it is odd"));
    }
    Ok(Config {
        vocabulary: vocabulary(keys.file, &keys.key("vocab_size"))?,
        context: keys.size("context_length", None, MODEL_CONTEXT_MAX)?,
        layers,
        width,
        hidden,
        heads,
        kv_heads,
        head_width,
        rotated,
        rotation: keys.architecture.rotation(),
        rope_base: rope_base(keys)?,
        epsilon: epsilon(keys)?,
    })
}

/// What the embedding has rows for; shapes are checked against it, and where the
/// metadata says it as well, that too.
pub(super) fn vocabulary(file: &Gguf<'_>, key: &str) -> Result<usize, ModelError> {
    let name = "token_embd.weight";
    let tensor = file
        .tensor(name)
        .ok_or_else(|| ModelError::NoTensor(name.to_owned()))?;
    let rows = tensor.dimensions().get(1).copied().unwrap_or(1);
    let said = size(file, key, Some(rows), MODEL_VOCABULARY_MAX)?;
    if said != rows {
        return Err(wrong(key, said, "the embedding has another number of rows"));
    }
    Ok(rows)
}

fn rope_base(keys: &Keys<'_, '_>) -> Result<f64, ModelError> {
    let key = keys.key("rope.freq_base");
    let base = keys.file.float(&key)?.unwrap_or(ROPE_BASE_DEFAULT);
    if !(1.0..=1e12).contains(&base) {
        return Err(wrong(&key, base, "it must be from 1 to 1e12"));
    }
    Ok(base)
}

fn epsilon(keys: &Keys<'_, '_>) -> Result<f32, ModelError> {
    let key = keys.key("attention.layer_norm_rms_epsilon");
    let found = keys.file.float(&key)?;
    let epsilon = found.ok_or_else(|| GgufError::Missing(key.clone()))?;
    if !(1e-12..=1e-2).contains(&epsilon) {
        return Err(wrong(&key, epsilon, "it must be from 1e-12 to 0.01"));
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the file has it with 32 bits, and its range was checked"
    )]
    Ok(epsilon as f32)
}

/// Refuses what changes the computation in a way that is not done here.
fn refuse_variants(keys: &Keys<'_, '_>) -> Result<(), ModelError> {
    let file = keys.file;
    let no = |what: String| Err(ModelError::Unsupported(what));
    for name in ["expert_count", "expert_used_count"] {
        if file.number(&keys.key(name))?.is_some_and(|count| count > 0) {
            return no("experts".to_owned());
        }
    }
    if let Some(kind) = file.text(&keys.key("rope.scaling.type"))?
        && kind != "none"
    {
        return no(format!("positions scaled by {kind:?}"));
    }
    let scale = file.float(&keys.key("rope.scale_linear"))?;
    if scale.is_some_and(|scale| scale != 1.0 && scale != 0.0) {
        return no("positions scaled by a factor".to_owned());
    }
    for name in ["attention.sliding_window", "attention.clamp_kqv"] {
        let key = keys.key(name);
        if file.value(&key).is_some() {
            return no(format!("what it says as {key:?}"));
        }
    }
    if file.flag(&keys.key("attention.causal"))? == Some(false) {
        return no("attention to what comes later".to_owned());
    }
    if file
        .number(&keys.key("pooling_type"))?
        .is_some_and(|kind| kind > 0)
    {
        return no("to make vectors of texts instead of going on with them".to_owned());
    }
    Ok(())
}

fn rope_factors(file: &Gguf<'_>, config: &Config) -> Result<Vec<f32>, ModelError> {
    let count = config.rotated / 2;
    if file.tensor(ROPE_FACTORS).is_none() {
        return Ok(vec![1.0; count]);
    }
    let factors = vector(file, ROPE_FACTORS, count)?;
    if factors.iter().any(|factor| !(1e-3..=1e3).contains(factor)) {
        return Err(ModelError::Unsupported(
            "factors of rotations outside of 0.001 to 1000".to_owned(),
        ));
    }
    Ok(factors)
}

fn layer<'a>(keys: &Keys<'a, '_>, config: &Config, index: usize) -> Result<Layer<'a>, ModelError> {
    let file = keys.file;
    let (width, hidden) = (config.width, config.hidden);
    let (query, kv) = (config.query_width(), config.kv_width());
    let name = |part: &str| format!("blk.{index}.{part}.weight");
    let matrix = |part, rows, columns| matrix(file, &name(part), rows, columns);
    let bias = |part: &str, length| vector(file, &format!("blk.{index}.{part}.bias"), length);
    let (mut biases, mut head_norms) = (None, None);
    match keys.architecture {
        Architecture::Llama => (),
        Architecture::Qwen2 => {
            biases = Some(Biases {
                query: bias("attn_q", query)?,
                key: bias("attn_k", kv)?,
                value: bias("attn_v", kv)?,
            });
        }
        Architecture::Qwen3 => {
            head_norms = Some(HeadNorms {
                query: vector(file, &name("attn_q_norm"), config.head_width)?,
                key: vector(file, &name("attn_k_norm"), config.head_width)?,
            });
        }
    }
    Ok(Layer {
        attention_norm: vector(file, &name("attn_norm"), width)?,
        query: matrix("attn_q", query, width)?,
        key: matrix("attn_k", kv, width)?,
        value: matrix("attn_v", kv, width)?,
        biases,
        head_norms,
        attention_output: matrix("attn_output", width, query)?,
        feed_norm: vector(file, &name("ffn_norm"), width)?,
        gate: matrix("ffn_gate", hidden, width)?,
        up: matrix("ffn_up", hidden, width)?,
        down: matrix("ffn_down", width, hidden)?,
    })
}

/// All tensors that were asked for are there; are there others?
fn only_used(keys: &Keys<'_, '_>, config: &Config) -> Result<(), ModelError> {
    let file = keys.file;
    let outside = [
        "token_embd.weight",
        "output_norm.weight",
        "output.weight",
        ROPE_FACTORS,
    ];
    let used = outside
        .into_iter()
        .filter(|name| file.tensor(name).is_some());
    let more = keys.architecture.more_of_a_layer();
    let of_a_layer = OF_A_LAYER.len() + more.len();
    if file.tensors().count() == used.count() + of_a_layer * config.layers {
        return Ok(());
    }
    let is_of_a_layer = |name: &str| {
        let rest = name.strip_prefix("blk.");
        rest.and_then(|rest| rest.split_once('.'))
            .is_some_and(|(index, part)| {
                (OF_A_LAYER.contains(&part) || more.contains(&part))
                    && index.parse().is_ok_and(|number: usize| {
                        number < config.layers && number.to_string() == index
                    })
            })
    };
    let unknown = file
        .tensors()
        .find(|tensor| !outside.contains(&tensor.name()) && !is_of_a_layer(tensor.name()));
    unknown.map_or(Ok(()), |tensor| {
        Err(ModelError::UnknownTensor(tensor.name().to_owned()))
    })
}

fn tensor<'a>(file: &Gguf<'a>, name: &str, wanted: &[usize]) -> Result<Tensor<'a>, ModelError> {
    let tensor = file
        .tensor(name)
        .ok_or_else(|| ModelError::NoTensor(name.to_owned()))?;
    if tensor.dimensions() != wanted {
        return Err(ModelError::Shape {
            name: name.to_owned(),
            found: tensor.dimensions().to_vec(),
            wanted: wanted.to_vec(),
        });
    }
    Ok(tensor)
}

pub(super) fn matrix<'a>(
    file: &Gguf<'a>,
    name: &str,
    rows: usize,
    columns: usize,
) -> Result<Matrix<'a>, ModelError> {
    let tensor = tensor(file, name, &[columns, rows])?;
    let kind = match tensor.kind() {
        TensorType::F32 => MatrixType::F32,
        TensorType::F16 => MatrixType::F16,
        TensorType::Bf16 => MatrixType::Bf16,
        TensorType::Q4_0 => MatrixType::Q4_0,
        TensorType::Q4_1 => MatrixType::Q4_1,
        TensorType::Q5_0 => MatrixType::Q5_0,
        TensorType::Q5_1 => MatrixType::Q5_1,
        TensorType::Q8_0 => MatrixType::Q8_0,
        TensorType::Q4K => MatrixType::Q4K,
        TensorType::Q5K => MatrixType::Q5K,
        TensorType::Q6K => MatrixType::Q6K,
        kind @ (TensorType::F64
        | TensorType::I8
        | TensorType::I16
        | TensorType::I32
        | TensorType::I64
        | TensorType::Q2K
        | TensorType::Q3K) => {
            return Err(ModelError::TensorType {
                name: name.to_owned(),
                kind,
            });
        }
    };
    Ok(Matrix {
        kind,
        rows,
        columns,
        bytes: tensor.bytes(),
    })
}

/// A small tensor, as numbers: norms, and factors of rotations.
pub(super) fn vector(file: &Gguf<'_>, name: &str, length: usize) -> Result<Vec<f32>, ModelError> {
    numbers(tensor(file, name, &[length])?)
}

/// A small table, as numbers, row by row. One row may be there as a vector.
pub(super) fn table(
    file: &Gguf<'_>,
    name: &str,
    rows: usize,
    columns: usize,
) -> Result<Vec<f32>, ModelError> {
    match rows {
        1 if tensor(file, name, &[columns]).is_ok() => vector(file, name, columns),
        _ => numbers(tensor(file, name, &[columns, rows])?),
    }
}

fn numbers(tensor: Tensor<'_>) -> Result<Vec<f32>, ModelError> {
    let name = tensor.name();
    let numbers = floats(tensor.kind(), tensor.bytes()).ok_or_else(|| ModelError::TensorType {
        name: name.to_owned(),
        kind: tensor.kind(),
    })?;
    if numbers.iter().any(|number| !number.is_finite()) {
        return Err(ModelError::NotFinite(name.to_owned()));
    }
    Ok(numbers)
}

fn floats(kind: TensorType, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = bytes.as_chunks().0.iter();
    match kind {
        TensorType::F32 => Some(
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
        ),
        TensorType::F16 => Some(pairs.map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        TensorType::Bf16 => Some(pairs.map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        TensorType::F64
        | TensorType::I8
        | TensorType::I16
        | TensorType::I32
        | TensorType::I64
        | TensorType::Q4_0
        | TensorType::Q4_1
        | TensorType::Q5_0
        | TensorType::Q5_1
        | TensorType::Q8_0
        | TensorType::Q2K
        | TensorType::Q3K
        | TensorType::Q4K
        | TensorType::Q5K
        | TensorType::Q6K => None,
    }
}

pub(super) fn size(
    file: &Gguf<'_>,
    key: &str,
    default: Option<usize>,
    max: usize,
) -> Result<usize, ModelError> {
    let said = file
        .number(key)?
        .and_then(|said| usize::try_from(said).ok());
    let value = said
        .or(default)
        .ok_or_else(|| GgufError::Missing(key.to_owned()))?;
    if value == 0 {
        return Err(wrong(key, value, "it must be one at least"));
    }
    if value > max {
        return Err(wrong(key, value, "it is larger than models are"));
    }
    Ok(value)
}

pub(super) fn wrong(key: &str, value: impl ToString, why: &'static str) -> ModelError {
    ModelError::Size {
        key: key.to_owned(),
        value: value.to_string(),
        why,
    }
}

/// Any tensor as a matrix.
#[cfg(test)]
pub(super) fn matrix_for_tests<'a>(file: &Gguf<'a>, rows: usize, columns: usize) -> Matrix<'a> {
    matrix(file, "token_embd.weight", rows, columns).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::{WIDTH, Writer, model_and_its_floats, tiny, tiny_of};

    fn refused(change: impl FnOnce(&mut Writer)) -> String {
        refused_of("llama", change)
    }

    fn refused_of(architecture: &str, change: impl FnOnce(&mut Writer)) -> String {
        let mut file = tiny_of(architecture, TensorType::Q4_1, false);
        change(&mut file);
        let bytes = file.file();
        let file = Gguf::parse(&bytes).unwrap();
        Llama::read(&file).unwrap_err().to_string()
    }

    #[test]
    fn sizes_come_from_the_file() {
        let bytes = tiny(TensorType::Q8_0, true).file();
        let model = Llama::read(&Gguf::parse(&bytes).unwrap()).unwrap();
        let config = &model.config;
        assert_eq!((config.layers, config.heads, config.kv_heads), (2, 6, 2));
        assert_eq!(
            (config.head_width, config.rotated, config.kv_width()),
            (16, 16, 32)
        );
        assert_eq!((config.vocabulary, config.context), (262, 100));
        assert_eq!(model.output.unwrap().row_bytes(), 3 * 34);
        assert_eq!(model.layers[1].down.kind(), MatrixType::Q8_0);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let number = |key: &'static str, number| {
            refused(move |file| {
                file.number(key, number);
            })
        };
        assert!(number("llama.block_count", 0).contains("one at least"));
        assert!(number("llama.block_count", u32::MAX).contains("larger than models are"));
        assert!(number("llama.block_count", 3).contains("no tensor \"blk.2."));
        assert!(number("llama.block_count", 1).contains("not supported here"));
        assert!(number("llama.feed_forward_length", 64).contains("should be [96, 64]"));
        assert!(number("llama.attention.head_count", 5).contains("no multiple"));
        assert!(number("llama.attention.head_count_kv", 7).contains("larger"));
        assert!(number("llama.attention.key_length", 0).contains("one at least"));
        assert!(number("llama.attention.value_length", 8).contains("another length"));
        assert!(number("llama.rope.dimension_count", 7).contains("odd"));
        assert!(number("llama.rope.dimension_count", 18).contains("larger"));
        assert!(number("llama.vocab_size", 261).contains("another number of rows"));
        assert!(number("llama.expert_count", 8).contains("experts"));
    }

    #[test]
    fn what_is_not_computed_here_is_refused() {
        let words = refused(|file| {
            file.text("general.architecture", "mamba");
        });
        assert!(words.contains("\"mamba\""));
        let words = refused(|file| {
            file.text("llama.rope.scaling.type", "yarn");
        });
        assert!(words.contains("yarn"));
        let words = refused(|file| {
            file.tensor("blk.0.attn_q.bias", &[WIDTH], 0, vec![0; 4 * 96]);
        });
        assert!(words.contains("attn_q.bias"));
        let words = refused(|file| {
            file.without_tensor("blk.1.ffn_up.weight");
        });
        assert!(words.contains("no tensor \"blk.1.ffn_up.weight\""));
        let words = refused(|file| {
            file.tensor("output_norm.weight", &[WIDTH], 0, vec![0xff; 4 * 96]);
        });
        assert!(words.contains("not finite"));
        let words = refused(|file| {
            file.tensor("blk.0.attn_q.weight", &[WIDTH, WIDTH], 24, vec![0; 96 * 96]);
        });
        assert!(words.contains("I8, and F32"));
        let words = refused(|file| {
            file.float("llama.rope.freq_base", f32::INFINITY);
        });
        assert!(words.contains("finite"));
    }

    #[test]
    fn architectures_differ_in_what_a_layer_has() {
        for (name, rotation, has_biases, has_norms) in [
            ("llama", Rotation::Neighbours, false, false),
            ("qwen2", Rotation::Halves, true, false),
            ("qwen3", Rotation::Halves, false, true),
        ] {
            let bytes = tiny_of(name, TensorType::Q8_0, false).file();
            let model = Llama::read(&Gguf::parse(&bytes).unwrap()).unwrap();
            assert_eq!(model.config.rotation, rotation);
            assert!(model.output.is_none());
            for layer in &model.layers {
                assert_eq!(layer.biases.is_some(), has_biases, "{name}");
                assert_eq!(layer.head_norms.is_some(), has_norms, "{name}");
            }
        }
    }

    #[test]
    fn heads_may_be_wider_than_the_width_has_room_for() {
        let bytes = model_and_its_floats("qwen3", TensorType::Q8_0, 128);
        let model = Gguf::parse(&bytes[0]).unwrap();
        let config = Llama::read(&model).unwrap().config;
        assert_eq!((config.width, config.head_width), (96, 128));
        assert_eq!((config.query_width(), config.kv_width()), (768, 256));
    }

    #[test]
    fn what_an_architecture_needs_must_be_there_and_fit() {
        let without = |architecture, name| {
            refused_of(architecture, |file| {
                file.without_tensor(name);
            })
        };
        assert!(without("qwen2", "blk.1.attn_v.bias").contains("no tensor \"blk.1.attn_v.bias\""));
        assert!(without("qwen3", "blk.0.attn_k_norm.weight").contains("no tensor"));
        let with = |architecture, name: &str, length: u64, byte| {
            refused_of(architecture, |file| {
                let bytes = vec![byte; 4 * usize::try_from(length).unwrap()];
                file.tensor(name, &[length], 0, bytes);
            })
        };
        assert!(with("qwen2", "blk.0.attn_q.bias", 95, 0).contains("should be [96]"));
        assert!(with("qwen2", "blk.0.attn_k.bias", 32, 0xff).contains("not finite"));
        assert!(with("qwen2", "blk.0.attn_output.bias", 96, 0).contains("attn_output.bias"));
        assert!(with("qwen2", "blk.0.attn_q_norm.weight", 16, 0).contains("attn_q_norm"));
        assert!(with("qwen3", "blk.1.attn_q_norm.weight", 8, 0).contains("should be [16]"));
        assert!(with("qwen3", "blk.0.attn_q.bias", 96, 0).contains("attn_q.bias"));
        assert!(with("llama", "blk.0.attn_q_norm.weight", 16, 0).contains("attn_q_norm"));
    }

    #[test]
    fn metadata_are_those_of_the_architecture() {
        // Of another one they are not there.
        let words = refused(|file| {
            file.text("general.architecture", "qwen2");
        });
        assert!(words.contains("no \"qwen2.block_count\""), "{words}");
        for name in ["qwen2", "qwen3"] {
            let number = |key: &str, number| {
                refused_of(name, |file| {
                    file.number(&format!("{name}.{key}"), number);
                })
            };
            let key = format!("{name}.attention.key_length");
            let words = number("attention.key_length", 0);
            assert!(words.contains(&key) && words.contains("one at least"));
            assert!(number("attention.key_length", u32::MAX).contains("larger than models are"));
            assert!(number("attention.key_length", 32).contains("keys are of another length"));
            assert!(number("attention.head_count", 0).contains("one at least"));
            assert!(number("attention.head_count_kv", 4).contains("no multiple"));
            assert!(number("rope.dimension_count", 18).contains("larger"));
            assert!(number("block_count", u32::MAX).contains("larger than models are"));
            assert!(number("expert_count", 60).contains("experts"));
            assert!(number("attention.sliding_window", 4096).contains("sliding_window"));
            assert!(number("pooling_type", 3).contains("vectors of texts"));
            assert!(number("attention.layer_norm_rms_epsilon", 1).contains("a fraction"));
            let words = refused_of(name, |file| {
                file.text(&key, "128");
            });
            assert!(words.contains("not a whole number"));
            let words = refused_of(name, |file| {
                file.float(&format!("{name}.rope.freq_base"), 0.5);
            });
            assert!(words.contains("from 1 to 1e12"));
            let words = refused_of(name, |file| {
                file.text(&format!("{name}.rope.scaling.type"), "yarn");
            });
            assert!(words.contains("yarn"));
            for key in ["embedding_length", "feed_forward_length", "context_length"] {
                let words = refused_of(name, |file| {
                    file.without(&format!("{name}.{key}"));
                });
                assert!(words.contains(key) && words.contains("has no"), "{words}");
            }
        }
        let words = refused(|file| {
            file.text("general.architecture", "qwen2moe");
        });
        assert!(words.contains("\"qwen2moe\"") && words.contains("\"qwen3\""));
    }
}
