//! Computes an encoder on the processor: texts to vectors.
//!
//! ```text
//!   texts ─▶ rows of all tokens ─▶ per layer: products ─ attention ─ norm ─ products ─ norm
//!                                      │          │  each text by itself       │
//!                                   together                        a vector of each text
//! ```
//!
//! A call takes some texts. Their tokens are the rows of one batch, without any filling,
//! so that a matrix is read once for all; attention is cut by texts and heads. A text's
//! vector depends on the text only: every number is added up in an order that neither
//! the texts beside it, nor the threads, nor the instruction set change.
//!
//! Absent: making tokens of texts, and queues.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    Compute, EngineOptions, Shared,
    attention::{mix, scale, score},
    kernels::{Activations, Block, Isa},
    pool::{self, Pool},
    vector,
    weights::Packed,
};
use crate::{
    limits::{ENCODER_ROWS_MAX, MODEL_THREADS_MAX},
    model::{
        encoder::{Config, Encoder, Layer, Linear, Norm, Pooling},
        engine::PAGE,
    },
};

/// An encoder's weights, ready to compute with.
#[derive(Debug)]
pub struct EncoderWeights {
    config: Config,
    embedding: Packed,
    positions: Packed,
    kind: Vec<f32>,
    norm: Norm,
    layers: Vec<PackedLayer>,
}

#[derive(Debug)]
struct PackedLayer {
    query: PackedLinear,
    key: PackedLinear,
    value: PackedLinear,
    attention_output: PackedLinear,
    attention_norm: Norm,
    up: PackedLinear,
    down: PackedLinear,
    feed_norm: Norm,
}

#[derive(Debug)]
struct PackedLinear {
    weight: Packed,
    bias: Vec<f32>,
}

/// Why texts were not computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncoderError {
    /// A text without a token, or no text.
    #[error("there is nothing to compute")]
    Empty,
    /// More than is computed at once.
    #[error("{0} tokens at once; give one text, or texts of {ENCODER_ROWS_MAX} together")]
    Rows(usize),
    /// Longer than the model was made for.
    #[error("the model was made for texts of {context} tokens, and one has {tokens}; shorten it")]
    Context {
        /// Its tokens.
        tokens: usize,
        /// How many may be.
        context: usize,
    },
    /// A token that the model does not have.
    #[error("the token {token} is not one of the model's {vocabulary}")]
    Token {
        /// Which.
        token: u32,
        /// How many there are.
        vocabulary: usize,
    },
}

/// Computes texts.
#[derive(Debug)]
pub struct EncoderEngine {
    weights: Arc<EncoderWeights>,
    isa: Isa,
    pool: Pool,
    scratch: Vec<Mutex<Scratch>>,
    rows: Rows,
    vectors: Vec<f32>,
}

/// What a batch is while it goes through the layers. Kept from call to call.
#[derive(Debug, Default)]
struct Rows {
    state: Vec<f32>,
    next: Vec<f32>,
    blocks: Vec<Block>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    mixed: Vec<f32>,
    back: Vec<f32>,
    middle: Vec<f32>,
}

/// What a worker needs room for: a head of a text.
#[derive(Debug, Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
}

impl EncoderWeights {
    /// Arranges an encoder's weights. The file is not needed after that.
    pub fn new(model: &Encoder<'_>) -> Self {
        Self {
            config: model.config.clone(),
            embedding: Packed::new(&model.embedding),
            positions: Packed::new(&model.positions),
            kind: model.kind.clone(),
            norm: model.norm.clone(),
            layers: model.layers.iter().map(PackedLayer::new).collect(),
        }
    }

    /// The model's sizes.
    pub const fn config(&self) -> &Config {
        &self.config
    }
}

impl PackedLayer {
    fn new(layer: &Layer<'_>) -> Self {
        Self {
            query: PackedLinear::new(&layer.query),
            key: PackedLinear::new(&layer.key),
            value: PackedLinear::new(&layer.value),
            attention_output: PackedLinear::new(&layer.attention_output),
            attention_norm: layer.attention_norm.clone(),
            up: PackedLinear::new(&layer.up),
            down: PackedLinear::new(&layer.down),
            feed_norm: layer.feed_norm.clone(),
        }
    }
}

impl PackedLinear {
    fn new(linear: &Linear<'_>) -> Self {
        Self {
            weight: Packed::new(&linear.weight),
            bias: linear.bias.clone(),
        }
    }
}

impl EncoderEngine {
    /// An engine. More threads than [`MODEL_THREADS_MAX`] are not started; it needs no
    /// cache.
    ///
    /// # Errors
    ///
    /// If the system gives no thread.
    pub fn new(weights: Arc<EncoderWeights>, options: EngineOptions) -> std::io::Result<Self> {
        Self::with_isa(weights, options, Isa::detect())
    }

    fn with_isa(
        weights: Arc<EncoderWeights>,
        options: EngineOptions,
        isa: Isa,
    ) -> std::io::Result<Self> {
        let pool = Pool::new(options.threads.clamp(1, MODEL_THREADS_MAX))?;
        Ok(Self {
            weights,
            isa,
            scratch: (0..pool.workers()).map(|_| Mutex::default()).collect(),
            pool,
            rows: Rows::default(),
            vectors: Vec::new(),
        })
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.weights.config
    }

    /// The vectors of some texts, each of length 1, in their order. If a model's numbers
    /// grow without bound, they may not be finite.
    ///
    /// # Errors
    ///
    /// Why it was not done.
    pub fn embed(
        &mut self,
        texts: &[&[u32]],
    ) -> Result<impl ExactSizeIterator<Item = &[f32]>, EncoderError> {
        self.check(texts)?;
        let weights = Arc::clone(&self.weights);
        let mut pass = Pass::new(self, &weights, texts);
        pass.embed();
        for layer in &weights.layers {
            pass.attend(layer);
            pass.feed(layer);
        }
        pass.gather();
        drop(pass);
        Ok(self.vectors.chunks_exact(weights.config.width))
    }

    fn check(&self, texts: &[&[u32]]) -> Result<(), EncoderError> {
        let Config {
            vocabulary,
            context,
            ..
        } = self.weights.config;
        if texts.is_empty() || texts.iter().any(|text| text.is_empty()) {
            return Err(EncoderError::Empty);
        }
        for text in texts {
            let tokens = text.len();
            if tokens > context {
                return Err(EncoderError::Context { tokens, context });
            }
            let is_unknown =
                |token: &&u32| usize::try_from(**token).is_ok_and(|token| token >= vocabulary);
            if let Some(token) = text.iter().find(is_unknown) {
                let token = *token;
                return Err(EncoderError::Token { token, vocabulary });
            }
        }
        let rows = texts.iter().map(|text| text.len()).sum();
        if texts.len() > 1 && rows > ENCODER_ROWS_MAX {
            return Err(EncoderError::Rows(rows));
        }
        Ok(())
    }
}

/// A call of [`EncoderEngine::embed`].
struct Pass<'a> {
    texts: &'a [&'a [u32]],
    weights: &'a EncoderWeights,
    compute: Compute<'a>,
    scratch: &'a [Mutex<Scratch>],
    rows: &'a mut Rows,
    vectors: &'a mut Vec<f32>,
    /// Threads look out for work as long as this is here.
    _attentive: pool::Attentive<'a>,
}

impl<'a> Pass<'a> {
    fn new(
        engine: &'a mut EncoderEngine,
        weights: &'a EncoderWeights,
        texts: &'a [&'a [u32]],
    ) -> Self {
        let config = &weights.config;
        let rows = &mut engine.rows;
        let count: usize = texts.iter().map(|text| text.len()).sum();
        for room in [
            &mut rows.state,
            &mut rows.next,
            &mut rows.queries,
            &mut rows.keys,
            &mut rows.values,
            &mut rows.mixed,
            &mut rows.back,
        ] {
            room.resize(count * config.width, 0.0);
        }
        rows.middle.resize(count * config.hidden, 0.0);
        Self {
            texts,
            weights,
            compute: Compute {
                isa: engine.isa,
                pool: &engine.pool,
                scratch: &[],
            },
            scratch: &engine.scratch,
            rows,
            vectors: &mut engine.vectors,
            _attentive: engine.pool.attentive(),
        }
    }

    /// What each token is at first: itself, its place, and its type, normed.
    fn embed(&mut self) {
        let weights = self.weights;
        let width = weights.config.width;
        let steps = self.texts.iter().flat_map(|text| text.iter().enumerate());
        let rows = self.rows.next.chunks_exact_mut(width);
        let mut place = vec![0.0; width];
        for ((position, token), row) in steps.zip(rows) {
            let token = usize::try_from(*token).unwrap_or(usize::MAX);
            weights.embedding.row(token, row);
            weights.positions.row(position, &mut place);
            vector::add(self.compute.isa, row, &place);
            vector::add(self.compute.isa, row, &weights.kind);
        }
        let rows = &mut *self.rows;
        self.compute.centre(
            &rows.next,
            &weights.norm,
            weights.config.epsilon,
            &mut rows.state,
        );
    }

    fn attend(&mut self, layer: &PackedLayer) {
        let config = &self.weights.config;
        let rows = &mut *self.rows;
        let linears = [&layer.query, &layer.key, &layer.value];
        let outs = [&mut rows.queries, &mut rows.keys, &mut rows.values];
        self.compute
            .linear((config.width, &rows.state), &mut rows.blocks, linears, outs);
        self.mix();
        let rows = &mut *self.rows;
        self.compute.linear(
            (config.width, &rows.mixed),
            &mut rows.blocks,
            [&layer.attention_output],
            [&mut rows.back],
        );
        self.add_and_norm(&layer.attention_norm);
    }

    /// Attention, text by text and head by head.
    fn mix(&mut self) {
        let config = &self.weights.config;
        let (width, heads, head_width) = (config.width, config.heads, config.head_width());
        let begins = self.texts.iter().scan(0, |next, text| {
            let begin = *next;
            *next += text.len();
            Some((begin, text.len()))
        });
        let texts: Vec<(usize, usize)> = begins.collect();
        let rows = &mut *self.rows;
        let mixed = Shared::new(&mut rows.mixed);
        let (queries, keys, values) = (&rows.queries, &rows.keys, &rows.values);
        let (isa, scratch) = (self.compute.isa, self.scratch);
        self.compute
            .pool
            .run(texts.len() * heads, &|worker, chunk| {
                let (first, count) = texts[chunk / heads];
                let head = chunk % heads;
                let at = |row: usize| (first + row) * width + head * head_width;
                let part = Part {
                    head_width,
                    count,
                    query: &|row| &queries[at(row)..][..head_width],
                    key: &|row| &keys[at(row)..][..head_width],
                    value: &|row| &values[at(row)..][..head_width],
                };
                let mut scratch = scratch[worker]
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                part.compute(isa, &mut scratch, |row, numbers| {
                    // SAFETY: each chunk is called once, and is the only one with these rows
                    // and this head.
                    unsafe { mixed.write(at(row), numbers) };
                });
            });
    }

    fn feed(&mut self, layer: &PackedLayer) {
        let config = &self.weights.config;
        let rows = &mut *self.rows;
        self.compute.linear(
            (config.width, &rows.state),
            &mut rows.blocks,
            [&layer.up],
            [&mut rows.middle],
        );
        let (isa, hidden) = (self.compute.isa, config.hidden);
        let count = rows.middle.len() / hidden;
        let middle = Shared::new(&mut rows.middle);
        self.compute.each_row(count, &|row| {
            // SAFETY: each row is given once.
            vector::gelu(isa, unsafe { middle.part(row * hidden, hidden) });
        });
        self.compute.linear(
            (hidden, &rows.middle),
            &mut rows.blocks,
            [&layer.down],
            [&mut rows.back],
        );
        self.add_and_norm(&layer.feed_norm);
    }

    /// The norm of the state and what came back to it is the new state.
    fn add_and_norm(&mut self, norm: &Norm) {
        let rows = &mut *self.rows;
        vector::add(self.compute.isa, &mut rows.back, &rows.state);
        let epsilon = self.weights.config.epsilon;
        self.compute
            .centre(&rows.back, norm, epsilon, &mut rows.state);
    }

    /// One vector for each text.
    fn gather(&mut self) {
        let config = &self.weights.config;
        let width = config.width;
        self.vectors.clear();
        self.vectors.resize(self.texts.len() * width, 0.0);
        let mut state = self.rows.state.chunks_exact(width);
        let vectors = self.vectors.chunks_exact_mut(width);
        for (text, vector) in self.texts.iter().zip(vectors) {
            for (position, row) in state.by_ref().take(text.len()).enumerate() {
                match config.pooling {
                    Pooling::Mean => vector::add(self.compute.isa, vector, row),
                    Pooling::First if position == 0 => vector.copy_from_slice(row),
                    Pooling::First => (),
                }
            }
            // A mean's length is of no matter: it becomes 1.
            vector::to_length_one(self.compute.isa, vector);
        }
    }
}

impl Compute<'_> {
    /// The norm of each row.
    fn centre(&self, rows: &[f32], norm: &Norm, epsilon: f32, out: &mut [f32]) {
        let width = norm.weight.len();
        let out = Shared::new(out);
        self.each_row(rows.len() / width, &|row| {
            // SAFETY: each row is given once.
            let out = unsafe { out.part(row * width, width) };
            let row = &rows[row * width..][..width];
            vector::centre(self.isa, row, &norm.weight, &norm.bias, epsilon, out);
        });
    }

    /// Products of the same rows with some matrices, and their biases.
    fn linear<const N: usize>(
        &self,
        (columns, numbers): (usize, &[f32]),
        blocks: &mut Vec<Block>,
        linears: [&PackedLinear; N],
        outs: [&mut Vec<f32>; N],
    ) {
        if linears.iter().any(|linear| linear.weight.is_small()) {
            self.narrow(numbers, blocks);
        }
        let of = Activations {
            columns,
            numbers,
            blocks,
        };
        let mut products: Vec<_> = linears
            .iter()
            .map(|linear| &linear.weight)
            .zip(outs)
            .collect();
        self.multiply(&of, &mut products);
        for (linear, (_, out)) in linears.into_iter().zip(products) {
            let width = linear.bias.len();
            let rows = out.len() / width;
            let out = Shared::new(out);
            self.each_row(rows, &|row| {
                // SAFETY: each row is given once.
                let out = unsafe { out.part(row * width, width) };
                vector::add(self.isa, out, &linear.bias);
            });
        }
    }
}

type RowOf<'a> = &'a dyn Fn(usize) -> &'a [f32];

/// A head of a text.
struct Part<'a> {
    head_width: usize,
    /// Positions.
    count: usize,
    query: RowOf<'a>,
    key: RowOf<'a>,
    value: RowOf<'a>,
}

impl Part<'_> {
    /// Gives the result of each position.
    fn compute(&self, isa: Isa, scratch: &mut Scratch, mut put: impl FnMut(usize, &[f32])) {
        let width = self.head_width;
        let pages = self.count.div_ceil(PAGE);
        scratch.keys.clear();
        scratch.keys.resize(pages * PAGE * width, 0.0);
        scratch.values.clear();
        for row in 0..self.count {
            // A page has one number of all its positions, then the next.
            let page = &mut scratch.keys[row / PAGE * PAGE * width..][..PAGE * width];
            for (line, number) in page.chunks_exact_mut(PAGE).zip((self.key)(row)) {
                line[row % PAGE] = *number;
            }
            scratch.values.extend((self.value)(row));
        }
        scratch.scores.resize(pages * PAGE, 0.0);
        scratch.sums.resize(width, 0.0);
        for row in 0..self.count {
            let pages = scratch.keys.chunks_exact(PAGE * width);
            for (page, to) in pages.zip(scratch.scores.chunks_exact_mut(PAGE)) {
                score(isa, (self.query)(row), page, to);
            }
            let shares = &mut scratch.scores[..self.count];
            scale(isa, shares, width);
            vector::softmax(isa, shares);
            scratch.sums.fill(0.0);
            mix(isa, shares, &scratch.values, &mut scratch.sums);
            put(row, &scratch.sums);
        }
    }
}

#[cfg(test)]
mod tests;
