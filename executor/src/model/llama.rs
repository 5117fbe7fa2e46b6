//! A model of Llama's family: what it is made of, out of a [`Gguf`].
//!
//! ```text
//!   token ─▶ embedding ─▶ layer … layer ─▶ norm ─▶ output ─▶ logits
//!
//!   layer:  x += output(attention(rotate(q), rotate(k), v))   q, k, v of norm(x)
//!           x += down(silu(gate(norm(x))) · up(norm(x)))
//! ```
//!
//! Norms are by the root of the mean square, positions are rotations of neighbouring
//! pairs, several query heads may share a head of keys and values, and the output may
//! be the embedding again.
//!
//! [`Llama::read`] checks each tensor's shape and type against the configuration, so
//! that an engine may take them as they are. What a file has and is not used here (a
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

const ARCHITECTURE: &str = "llama";
const ROPE_BASE_DEFAULT: f64 = 10_000.0;
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// Tensors of a layer.
const PER_LAYER: usize = 9;

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
    /// Numbers of a head that positions rotate; even.
    pub rotated: usize,
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
        "the model is of the architecture {0:?}, and \"llama\" and \"bert\" are what runs here"
    )]
    Architecture(String),
    /// A size that can't be.
    #[error("the model's {key} is {value}, which can't be: {why}")]
    Size {
        /// Which.
        key: &'static str,
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
        let config = config(file)?;
        let (width, rows) = (config.width, config.vocabulary);
        let embedding = matrix(file, "token_embd.weight", rows, width)?;
        let layers = (0..config.layers)
            .map(|index| layer(file, &config, index))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = vector(file, "output_norm.weight", width)?;
        let output = file
            .tensor("output.weight")
            .map(|_| matrix(file, "output.weight", rows, width))
            .transpose()?;
        let rope_factors = rope_factors(file, &config)?;
        only_used(file, &config)?;
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

fn config(file: &Gguf<'_>) -> Result<Config, ModelError> {
    const NAME: &str = "general.architecture";
    let architecture = file
        .text(NAME)?
        .ok_or_else(|| GgufError::Missing(NAME.to_owned()))?;
    if architecture != ARCHITECTURE {
        return Err(ModelError::Architecture(architecture.to_owned()));
    }
    refuse_variants(file)?;
    let layers = size(file, "llama.block_count", None, MODEL_LAYERS_MAX)?;
    let width = size(file, "llama.embedding_length", None, MODEL_WIDTH_MAX)?;
    let hidden = size(file, "llama.feed_forward_length", None, MODEL_WIDTH_MAX)?;
    let heads = size(file, "llama.attention.head_count", None, MODEL_HEADS_MAX)?;
    let kv_heads = size(file, "llama.attention.head_count_kv", Some(heads), heads)?;
    let key = "llama.attention.key_length";
    let head_width = size(file, key, Some(width / heads), MODEL_HEAD_WIDTH_MAX)?;
    let key = "llama.rope.dimension_count";
    let rotated = size(file, key, Some(head_width), head_width)?;
    let value_key = "llama.attention.value_length";
    let value_width = size(file, value_key, Some(head_width), MODEL_HEAD_WIDTH_MAX)?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(wrong(
            "llama.attention.head_count_kv",
            kv_heads,
            "the number of heads is no multiple of it",
        ));
    }
    if value_width != head_width {
        return Err(wrong(value_key, value_width, "keys are of another length"));
    }
    if !rotated.is_multiple_of(2) {
        return Err(wrong(key, rotated, "pairs are rotated, and it is odd"));
    }
    Ok(Config {
        vocabulary: vocabulary(file, "llama.vocab_size")?,
        context: size(file, "llama.context_length", None, MODEL_CONTEXT_MAX)?,
        layers,
        width,
        hidden,
        heads,
        kv_heads,
        head_width,
        rotated,
        rope_base: rope_base(file)?,
        epsilon: epsilon(file)?,
    })
}

/// What the embedding has rows for; shapes are checked against it, and where the
/// metadata says it as well, that too.
pub(super) fn vocabulary(file: &Gguf<'_>, key: &'static str) -> Result<usize, ModelError> {
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

fn rope_base(file: &Gguf<'_>) -> Result<f64, ModelError> {
    let key = "llama.rope.freq_base";
    let base = file.float(key)?.unwrap_or(ROPE_BASE_DEFAULT);
    if !(1.0..=1e12).contains(&base) {
        return Err(wrong(key, base, "it must be from 1 to 1e12"));
    }
    Ok(base)
}

fn epsilon(file: &Gguf<'_>) -> Result<f32, ModelError> {
    let key = "llama.attention.layer_norm_rms_epsilon";
    let epsilon = file
        .float(key)?
        .ok_or_else(|| GgufError::Missing(key.to_owned()))?;
    if !(1e-12..=1e-2).contains(&epsilon) {
        return Err(wrong(key, epsilon, "it must be from 1e-12 to 0.01"));
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the file has it with 32 bits, and its range was checked"
    )]
    Ok(epsilon as f32)
}

/// Refuses what changes the computation in a way that is not done here.
fn refuse_variants(file: &Gguf<'_>) -> Result<(), ModelError> {
    let no = |what: String| Err(ModelError::Unsupported(what));
    for key in ["llama.expert_count", "llama.expert_used_count"] {
        if file.number(key)?.is_some_and(|count| count > 0) {
            return no("experts".to_owned());
        }
    }
    if let Some(kind) = file.text("llama.rope.scaling.type")?
        && kind != "none"
    {
        return no(format!("positions scaled by {kind:?}"));
    }
    let scale = file.float("llama.rope.scale_linear")?;
    if scale.is_some_and(|scale| scale != 1.0 && scale != 0.0) {
        return no("positions scaled by a factor".to_owned());
    }
    for key in [
        "llama.attention.sliding_window",
        "llama.attention.clamp_kqv",
    ] {
        if file.value(key).is_some() {
            return no(format!("what it says as {key:?}"));
        }
    }
    if file.flag("llama.attention.causal")? == Some(false) {
        return no("attention to what comes later".to_owned());
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

fn layer<'a>(file: &Gguf<'a>, config: &Config, index: usize) -> Result<Layer<'a>, ModelError> {
    let (width, hidden) = (config.width, config.hidden);
    let (query, kv) = (config.query_width(), config.kv_width());
    let name = |part: &str| format!("blk.{index}.{part}.weight");
    let matrix = |part, rows, columns| matrix(file, &name(part), rows, columns);
    Ok(Layer {
        attention_norm: vector(file, &name("attn_norm"), width)?,
        query: matrix("attn_q", query, width)?,
        key: matrix("attn_k", kv, width)?,
        value: matrix("attn_v", kv, width)?,
        attention_output: matrix("attn_output", width, query)?,
        feed_norm: vector(file, &name("ffn_norm"), width)?,
        gate: matrix("ffn_gate", hidden, width)?,
        up: matrix("ffn_up", hidden, width)?,
        down: matrix("ffn_down", width, hidden)?,
    })
}

/// All tensors that were asked for are there; are there others?
fn only_used(file: &Gguf<'_>, config: &Config) -> Result<(), ModelError> {
    let outside = [
        "token_embd.weight",
        "output_norm.weight",
        "output.weight",
        ROPE_FACTORS,
    ];
    let used = outside
        .into_iter()
        .filter(|name| file.tensor(name).is_some());
    if file.tensors().count() == used.count() + PER_LAYER * config.layers {
        return Ok(());
    }
    let parts = [
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ];
    let of_a_layer = |name: &str| {
        let rest = name
            .strip_prefix("blk.")
            .and_then(|rest| rest.strip_suffix(".weight"));
        rest.and_then(|rest| rest.split_once('.'))
            .is_some_and(|(index, part)| {
                parts.contains(&part)
                    && index.parse().is_ok_and(|number: usize| {
                        number < config.layers && number.to_string() == index
                    })
            })
    };
    let unknown = file
        .tensors()
        .find(|tensor| !outside.contains(&tensor.name()) && !of_a_layer(tensor.name()));
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
    key: &'static str,
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

pub(super) fn wrong(key: &'static str, value: impl ToString, why: &'static str) -> ModelError {
    ModelError::Size {
        key,
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
    use crate::model::testing::{WIDTH, Writer, tiny};

    fn refused(change: impl FnOnce(&mut Writer)) -> String {
        let mut file = tiny(TensorType::Q4_1, false);
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
}
