//! An encoder of BERT's family: what it is made of, out of a [`Gguf`].
//!
//! ```text
//!   tokens ─▶ embedding + position + type ─▶ norm ─▶ layer … layer ─▶ one vector of all
//!
//!   layer:  x = norm(x + output(attention(q, k, v)))   q, k, v of x, each with a bias
//!           x = norm(x + down(gelu(up(x))))
//! ```
//!
//! Norms are by mean and variance, with a bias; each position looks at all of its text,
//! and positions are rows of a table. What stands for the text is the mean of its
//! positions, or the first one ([`Pooling`]).
//!
//! Keys and names are those that llama.cpp's converter writes. [`Encoder::read`] checks
//! each tensor as [`super::llama`] does, and refuses in words what is not used here.
//!
//! Absent: computing ([`super::cpu::encoder`]), and its vocabulary
//! ([`super::wordpiece`]).

use super::{
    gguf::{Gguf, GgufError},
    llama::{self, Matrix, MatrixType, ModelError, matrix, size, vector, wrong},
};
use crate::limits::{
    ENCODER_CONTEXT_MAX, ENCODER_WIDTH_MAX, MODEL_HEADS_MAX, MODEL_LAYERS_MAX, MODEL_WIDTH_MAX,
};

/// What files call the architecture.
pub const ARCHITECTURE: &str = "bert";
/// Texts are compared by their first type alone; models have two.
const TYPES_MAX: usize = 16;
/// Tensors of a layer, and those outside of layers.
const PER_LAYER: usize = 16;
const OUTSIDE: [&str; 5] = [
    "token_embd.weight",
    "position_embd.weight",
    "token_types.weight",
    "token_embd_norm.weight",
    "token_embd_norm.bias",
];
const PARTS: [&str; 8] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "attn_output_norm",
    "ffn_up",
    "ffn_down",
    "layer_output_norm",
];

/// The sizes of an encoder. All are checked: none is 0, and they fit each other.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Tokens that a text may have.
    pub context: usize,
    /// Layers.
    pub layers: usize,
    /// Numbers that stand for a token between layers, and for a text at the end.
    pub width: usize,
    /// Numbers in the middle of a feed-forward part.
    pub hidden: usize,
    /// Heads; [`width`](Self::width) is a multiple of it.
    pub heads: usize,
    /// What norms add to the variance.
    pub epsilon: f32,
    /// What stands for a text.
    pub pooling: Pooling,
}

impl Config {
    /// Numbers of a head.
    pub const fn head_width(&self) -> usize {
        self.width / self.heads
    }
}

/// What stands for a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of its positions.
    Mean,
    /// Its first position.
    First,
}

/// An encoder: its sizes and its weights.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Encoder<'a> {
    /// Its sizes.
    pub config: Config,
    /// A row for each token.
    pub embedding: Matrix<'a>,
    /// A row for each position.
    pub positions: Matrix<'a>,
    /// What is added to each token: the row of the first type.
    pub kind: Vec<f32>,
    /// The norm before the first layer.
    pub norm: Norm,
    /// The layers, first to last.
    pub layers: Vec<Layer<'a>>,
}

/// A norm's weights.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Norm {
    /// What numbers are multiplied with,
    pub weight: Vec<f32>,
    /// and what is added then.
    pub bias: Vec<f32>,
}

/// A matrix, and what is added to its products.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Linear<'a> {
    /// The matrix.
    pub weight: Matrix<'a>,
    /// A number for each of its rows.
    pub bias: Vec<f32>,
}

/// A layer's weights.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Layer<'a> {
    /// Queries.
    pub query: Linear<'a>,
    /// Keys.
    pub key: Linear<'a>,
    /// Values.
    pub value: Linear<'a>,
    /// From the heads back to the width.
    pub attention_output: Linear<'a>,
    /// The norm after attention.
    pub attention_norm: Norm,
    /// Into the middle of the feed-forward part.
    pub up: Linear<'a>,
    /// Back to the width.
    pub down: Linear<'a>,
    /// The norm after the feed-forward part.
    pub feed_norm: Norm,
}

impl<'a> Encoder<'a> {
    /// Whether a file says that it is one.
    pub fn is_in(file: &Gguf<'_>) -> bool {
        file.text("general.architecture") == Ok(Some(ARCHITECTURE))
    }

    /// Reads the encoder that a file has.
    ///
    /// # Errors
    ///
    /// Why it is none that can be run here.
    pub fn read(file: &Gguf<'a>) -> Result<Self, ModelError> {
        let config = config(file)?;
        let width = config.width;
        let embedding = numbers(file, "token_embd.weight", config.vocabulary, width)?;
        let positions = numbers(file, "position_embd.weight", config.context, width)?;
        let layers = (0..config.layers)
            .map(|index| layer(file, &config, index))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = norm(file, "token_embd_norm", width)?;
        let kind = kind(file, width)?;
        only_used(file, &config)?;
        Ok(Self {
            config,
            embedding,
            positions,
            kind,
            norm,
            layers,
        })
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
    if file.flag("bert.attention.causal")? != Some(false) {
        return Err(ModelError::Unsupported(
            "attention to what comes before only".to_owned(),
        ));
    }
    let layers = size(file, "bert.block_count", None, MODEL_LAYERS_MAX)?;
    let width = size(file, "bert.embedding_length", None, ENCODER_WIDTH_MAX)?;
    let hidden = size(file, "bert.feed_forward_length", None, MODEL_WIDTH_MAX)?;
    let key = "bert.attention.head_count";
    let heads = size(file, key, None, MODEL_HEADS_MAX)?;
    if !width.is_multiple_of(heads) {
        return Err(wrong(
            key,
            heads,
            "the embedding's length is no multiple of it",
        ));
    }
    let key = "bert.attention.head_count_kv";
    if size(file, key, Some(heads), MODEL_HEADS_MAX)? != heads {
        return Err(ModelError::Unsupported(
            "heads of keys that queries share".to_owned(),
        ));
    }
    Ok(Config {
        vocabulary: llama::vocabulary(file, "bert.vocab_size")?,
        context: size(file, "bert.context_length", None, ENCODER_CONTEXT_MAX)?,
        layers,
        width,
        hidden,
        heads,
        epsilon: epsilon(file)?,
        pooling: pooling(file)?,
    })
}

fn epsilon(file: &Gguf<'_>) -> Result<f32, ModelError> {
    let key = "bert.attention.layer_norm_epsilon";
    let epsilon = file
        .float(key)?
        .ok_or_else(|| GgufError::Missing(key.to_owned()))?;
    // The usual 1e-12 is a little less with 32 bits.
    if !(1e-13..=1e-2).contains(&epsilon) {
        return Err(wrong(key, epsilon, "it must be from 1e-13 to 0.01"));
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the file has it with 32 bits, and its range was checked"
    )]
    Ok(epsilon as f32)
}

fn pooling(file: &Gguf<'_>) -> Result<Pooling, ModelError> {
    let key = "bert.pooling_type";
    match file.number(key)? {
        Some(1) => Ok(Pooling::Mean),
        Some(2) => Ok(Pooling::First),
        None => Err(GgufError::Missing(key.to_owned()).into()),
        Some(other) => Err(ModelError::Unsupported(format!(
            "the pooling {other} (it is the mean, 1, or the first token, 2, here)"
        ))),
    }
}

fn kind(file: &Gguf<'_>, width: usize) -> Result<Vec<f32>, ModelError> {
    let name = "token_types.weight";
    let tensor = file
        .tensor(name)
        .ok_or_else(|| ModelError::NoTensor(name.to_owned()))?;
    // A table with one row may be written as a vector.
    let types = tensor.dimensions().get(1).copied().unwrap_or(1);
    if !(1..=TYPES_MAX).contains(&types) {
        return Err(ModelError::Unsupported(format!("{types} types of tokens")));
    }
    let mut all = llama::table(file, name, types, width)?;
    all.truncate(width);
    Ok(all)
}

fn layer<'a>(file: &Gguf<'a>, config: &Config, index: usize) -> Result<Layer<'a>, ModelError> {
    let (width, hidden) = (config.width, config.hidden);
    let linear = |part: &str, rows, columns| {
        let name = format!("blk.{index}.{part}");
        Ok::<_, ModelError>(Linear {
            weight: numbers(file, &format!("{name}.weight"), rows, columns)?,
            bias: vector(file, &format!("{name}.bias"), rows)?,
        })
    };
    let norm = |part: &str| norm(file, &format!("blk.{index}.{part}"), width);
    Ok(Layer {
        query: linear("attn_q", width, width)?,
        key: linear("attn_k", width, width)?,
        value: linear("attn_v", width, width)?,
        attention_output: linear("attn_output", width, width)?,
        attention_norm: norm("attn_output_norm")?,
        up: linear("ffn_up", hidden, width)?,
        down: linear("ffn_down", width, hidden)?,
        feed_norm: norm("layer_output_norm")?,
    })
}

fn norm(file: &Gguf<'_>, name: &str, width: usize) -> Result<Norm, ModelError> {
    Ok(Norm {
        weight: vector(file, &format!("{name}.weight"), width)?,
        bias: vector(file, &format!("{name}.bias"), width)?,
    })
}

/// A matrix, whose numbers are all finite where they are floats.
fn numbers<'a>(
    file: &Gguf<'a>,
    name: &str,
    rows: usize,
    columns: usize,
) -> Result<Matrix<'a>, ModelError> {
    let matrix = matrix(file, name, rows, columns)?;
    let pairs = || matrix.bytes().as_chunks::<2>().0.iter();
    // Floats are not finite when all bits of their exponent are set.
    let is_finite = match matrix.kind() {
        MatrixType::F32 => {
            let quads = matrix.bytes().as_chunks::<4>().0.iter();
            quads.map(|b| f32::from_le_bytes(*b)).all(f32::is_finite)
        }
        MatrixType::F16 => pairs().all(|b| u16::from_le_bytes(*b) & 0x7c00 != 0x7c00),
        MatrixType::Bf16 => pairs().all(|b| u16::from_le_bytes(*b) & 0x7f80 != 0x7f80),
        MatrixType::Q4_0
        | MatrixType::Q4_1
        | MatrixType::Q5_0
        | MatrixType::Q5_1
        | MatrixType::Q8_0
        | MatrixType::Q4K
        | MatrixType::Q5K
        | MatrixType::Q6K => true,
    };
    match is_finite {
        true => Ok(matrix),
        false => Err(ModelError::NotFinite(name.to_owned())),
    }
}

/// All tensors that were asked for are there; are there others?
fn only_used(file: &Gguf<'_>, config: &Config) -> Result<(), ModelError> {
    if file.tensors().count() == OUTSIDE.len() + PER_LAYER * config.layers {
        return Ok(());
    }
    let of_a_layer = |name: &str| {
        let rest = name.strip_prefix("blk.");
        let rest = rest.and_then(|rest| {
            let weight = rest.strip_suffix(".weight");
            weight.or_else(|| rest.strip_suffix(".bias"))
        });
        rest.and_then(|rest| rest.split_once('.'))
            .is_some_and(|(index, part)| {
                PARTS.contains(&part)
                    && index.parse().is_ok_and(|number: usize| {
                        number < config.layers && number.to_string() == index
                    })
            })
    };
    let unknown = file
        .tensors()
        .find(|tensor| !OUTSIDE.contains(&tensor.name()) && !of_a_layer(tensor.name()));
    unknown.map_or(Ok(()), |tensor| {
        Err(ModelError::UnknownTensor(tensor.name().to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        gguf::TensorType,
        testing::{Writer, small_encoder_file},
    };

    fn refused(change: impl FnOnce(&mut Writer)) -> String {
        let mut file = small_encoder_file(TensorType::F32, 1);
        change(&mut file);
        let bytes = file.file();
        Encoder::read(&Gguf::parse(&bytes).unwrap())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn sizes_come_from_the_file() {
        for kind in [
            TensorType::F32,
            TensorType::F16,
            TensorType::Bf16,
            TensorType::Q8_0,
        ] {
            let bytes = small_encoder_file(kind, 1).file();
            let model = Encoder::read(&Gguf::parse(&bytes).unwrap()).unwrap();
            let config = &model.config;
            assert_eq!(
                (config.layers, config.heads, config.head_width()),
                (2, 4, 24)
            );
            assert_eq!((config.context, config.pooling), (40, Pooling::Mean));
            assert_eq!(model.layers[1].down.bias.len(), config.width);
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let number = |key: &'static str, number| {
            refused(move |file| {
                file.number(key, number);
            })
        };
        assert!(number("bert.block_count", 0).contains("one at least"));
        assert!(number("bert.block_count", u32::MAX).contains("larger than models are"));
        assert!(number("bert.block_count", 3).contains("no tensor \"blk.2."));
        assert!(number("bert.block_count", 1).contains("not supported here"));
        assert!(number("bert.embedding_length", 0).contains("one at least"));
        assert!(number("bert.embedding_length", 1 << 20).contains("larger"));
        assert!(number("bert.feed_forward_length", 64).contains("should be [96, 64]"));
        assert!(number("bert.attention.head_count", 5).contains("no multiple"));
        assert!(number("bert.attention.head_count", 0).contains("one at least"));
        assert!(number("bert.attention.head_count_kv", 2).contains("share"));
        assert!(number("bert.context_length", 41).contains("should be [96, 41]"));
        assert!(number("bert.context_length", u32::MAX).contains("larger"));
        assert!(number("bert.vocab_size", 7).contains("another number of rows"));
        assert!(number("bert.pooling_type", 0).contains("pooling 0"));
    }

    #[test]
    fn what_is_not_computed_here_is_refused() {
        let words = refused(|file| {
            file.text("general.architecture", "nomic-bert");
        });
        assert!(words.contains("\"nomic-bert\""));
        let words = refused(|file| {
            file.flag("bert.attention.causal", true);
        });
        assert!(words.contains("before"));
        for epsilon in [0.0, 1.0, f32::NAN] {
            let words = refused(|file| {
                file.float("bert.attention.layer_norm_epsilon", epsilon);
            });
            assert!(words.contains("epsilon"), "{words}");
        }
        let words = refused(|file| {
            file.tensor("cls.weight", &[96], 0, vec![0; 4 * 96]);
        });
        assert!(words.contains("cls.weight"));
        let words = refused(|file| {
            file.without_tensor("blk.1.attn_k.bias");
        });
        assert!(words.contains("no tensor \"blk.1.attn_k.bias\""));
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        for (name, shape) in [
            ("position_embd.weight", &[96, 40][..]),
            ("token_types.weight", &[96, 2]),
            ("blk.0.attn_q.weight", &[96, 96]),
            ("blk.0.attn_q.bias", &[96]),
        ] {
            for (kind, nan) in [
                (0, &[0, 0, 0xc0, 0x7f][..]),
                (1, &[0, 0x7e]),
                (30, &[0xc0, 0x7f]),
            ] {
                let count: u64 = shape.iter().product();
                let words = refused(|file| {
                    let mut bytes = vec![0; nan.len() * usize::try_from(count).unwrap()];
                    bytes[..nan.len()].copy_from_slice(nan);
                    file.tensor(name, shape, kind, bytes);
                });
                assert!(words.contains("not finite"), "{name}: {words}");
            }
        }
    }
}
