//! Computes a model on the processor.
//!
//! [`Weights`] are a model's matrices as the kernels want them; several engines may
//! share them. An [`Engine`] has the sequences that are being written, each with the
//! keys and values of its positions, and [`Engine::forward`] takes some [`Step`]s: a
//! token at a position of a sequence. A prompt is many steps of one sequence, a batch is
//! one step each of many, and both may be mixed, because a matrix is read once for all
//! steps of a call.
//!
//! ```text
//!   steps ─▶ embedding ─▶ per layer: products (weights) ─ attention (cache) ─ products ─▶ logits
//!               │                       │                     │
//!            vector                  kernels             cache, attention     in chunks, by pool
//! ```
//!
//! A step's result depends on its sequence only: every number is added up in an order
//! that neither the batch, nor the threads, nor the instruction set change.
//!
//! Absent: choosing tokens, knowing when a text is over, queues, and time.

mod attention;
mod cache;
pub mod encoder;
mod kernels;
mod pool;
mod vector;
mod weights;

use std::{
    collections::BTreeMap,
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError},
};

pub(super) use self::vector::exponential;
use self::{
    attention::{Part, Scratch, Tile},
    cache::{Cache, PAGE},
    kernels::{Activations, Block, Isa},
    pool::Pool,
    weights::{BLOCK, PANEL, Packed},
};
use super::llama::{Config, Layer, Llama};
use crate::limits::{MODEL_STEPS_MAX, MODEL_THREADS_MAX};

/// Rows of activations that are multiplied before the next panel is: they and a panel
/// stay in the nearest cache.
const ROWS: usize = 32;
/// Chunks for each worker: so many that a slow one matters little.
const CHUNKS: usize = 6;
/// Rows from which on what is done row by row is shared out as well.
const SHARED_ROWS: usize = 8;

/// A model's weights, ready to compute with.
#[derive(Debug)]
pub struct Weights {
    config: Config,
    embedding: Packed,
    layers: Vec<PackedLayer>,
    norm: Vec<f32>,
    output: Option<Packed>,
    rope_factors: Vec<f32>,
}

#[derive(Debug)]
struct PackedLayer {
    attention_norm: Vec<f32>,
    query: Packed,
    key: Packed,
    value: Packed,
    attention_output: Packed,
    feed_norm: Vec<f32>,
    gate: Packed,
    up: Packed,
    down: Packed,
}

/// Names a sequence. The caller chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// A token to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Of which sequence. One that is not known begins here.
    pub sequence: SequenceId,
    /// Which token.
    pub token: u32,
    /// Where: what the sequence has so far, 0 at its beginning.
    pub position: u32,
    /// Whether the logits of what follows it are wanted.
    pub wants_logits: bool,
}

/// How an engine works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads that compute, the caller's included: as many as there are cores for it.
    pub threads: usize,
    /// Bytes that keys and values of all sequences take at most.
    pub cache_bytes_max: usize,
}

/// Why steps were not computed. None of them was then, and nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Too many at once, or none.
    #[error("{0} steps at once; give from 1 to {MODEL_STEPS_MAX}")]
    Steps(usize),
    /// A token that the model does not have.
    #[error("the token {token} is not one of the model's {vocabulary}")]
    Token {
        /// Which.
        token: u32,
        /// How many there are.
        vocabulary: usize,
    },
    /// A position that is not the sequence's next.
    #[error("the position {position} is not the next one of its sequence, which is {next}")]
    Position {
        /// Which.
        position: u32,
        /// What it should be.
        next: usize,
    },
    /// Longer than the model was made for.
    #[error("the model was made for {0} positions, and the sequence is longer; shorten the text")]
    Context(usize),
    /// No room for more keys and values.
    #[error(
        "there is no room for the sequences: {wanted} more pages are needed, and {left} are left; end one first"
    )]
    CacheFull {
        /// Pages that the steps need.
        wanted: usize,
        /// Pages that are left.
        left: usize,
    },
}

/// Computes steps of sequences.
#[derive(Debug)]
pub struct Engine {
    weights: Arc<Weights>,
    isa: Isa,
    pool: Pool,
    scratch: Vec<Mutex<Scratch>>,
    cache: Cache,
    rows: Rows,
    logits: Vec<f32>,
}

/// The logits of the steps that wanted them, in their order.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a> {
    numbers: &'a [f32],
    vocabulary: usize,
}

impl Weights {
    /// Arranges a model's weights. The file is not needed after that.
    pub fn new(model: &Llama<'_>) -> Self {
        Self {
            config: model.config.clone(),
            embedding: Packed::new(&model.embedding),
            layers: model.layers.iter().map(PackedLayer::new).collect(),
            norm: model.norm.clone(),
            output: model.output.as_ref().map(Packed::new),
            rope_factors: model.rope_factors.clone(),
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
            attention_norm: layer.attention_norm.clone(),
            query: Packed::new(&layer.query),
            key: Packed::new(&layer.key),
            value: Packed::new(&layer.value),
            attention_output: Packed::new(&layer.attention_output),
            feed_norm: layer.feed_norm.clone(),
            gate: Packed::new(&layer.gate),
            up: Packed::new(&layer.up),
            down: Packed::new(&layer.down),
        }
    }
}

impl Engine {
    /// An engine without sequences. More threads than [`MODEL_THREADS_MAX`] are not
    /// started.
    ///
    /// # Errors
    ///
    /// If the system gives no thread.
    pub fn new(weights: Arc<Weights>, options: EngineOptions) -> std::io::Result<Self> {
        Self::with_isa(weights, options, Isa::detect())
    }

    /// As [`Self::new`], with no instructions beyond AVX2: to compare with programs that
    /// use no others. The results are the same.
    ///
    /// # Errors
    ///
    /// If the system gives no thread.
    pub fn with_avx2_at_most(
        weights: Arc<Weights>,
        options: EngineOptions,
    ) -> std::io::Result<Self> {
        let isa = match Isa::detect() {
            Isa::Plain => Isa::Plain,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 => Isa::Avx2,
        };
        Self::with_isa(weights, options, isa)
    }

    fn with_isa(weights: Arc<Weights>, options: EngineOptions, isa: Isa) -> std::io::Result<Self> {
        let pool = Pool::new(options.threads.clamp(1, MODEL_THREADS_MAX))?;
        Ok(Self {
            isa,
            scratch: (0..pool.workers()).map(|_| Mutex::default()).collect(),
            pool,
            cache: Cache::new(weights.config(), options.cache_bytes_max),
            rows: Rows::default(),
            logits: Vec::new(),
            weights,
        })
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.weights.config
    }

    /// Computes steps, and makes their sequences longer by them.
    ///
    /// # Errors
    ///
    /// Why it was not done.
    pub fn forward(&mut self, steps: &[Step]) -> Result<Logits<'_>, EngineError> {
        self.check(steps)?;
        for step in steps {
            self.cache.extend(step.sequence);
        }
        let weights = Arc::clone(&self.weights);
        let mut pass = Pass::new(self, &weights, steps);
        pass.embed();
        for (index, layer) in weights.layers.iter().enumerate() {
            pass.attend(index, layer);
            pass.feed(layer);
        }
        pass.finish();
        drop(pass);
        Ok(self.logits())
    }

    /// The logits of the last steps that were computed.
    pub fn logits(&self) -> Logits<'_> {
        Logits {
            numbers: &self.logits,
            vocabulary: self.weights.config.vocabulary,
        }
    }

    /// How long a sequence is; 0 for one that is not known.
    pub fn length(&self, sequence: SequenceId) -> usize {
        self.cache
            .sequence(sequence)
            .map_or(0, |sequence| sequence.length)
    }

    /// Positions that can still be taken by sequences, if all begin a new page.
    pub fn positions_left(&self) -> usize {
        self.cache.left() * PAGE
    }

    /// Ends a sequence and frees what it took.
    pub fn end(&mut self, sequence: SequenceId) {
        self.cache.end(sequence);
    }

    /// Takes back the last positions of a sequence, so that it is as long as that. It
    /// does nothing to one that is not longer.
    pub fn truncate(&mut self, sequence: SequenceId, length: usize) {
        self.cache.truncate(sequence, length);
    }

    fn check(&self, steps: &[Step]) -> Result<(), EngineError> {
        if !(1..=MODEL_STEPS_MAX).contains(&steps.len()) {
            return Err(EngineError::Steps(steps.len()));
        }
        let Config {
            vocabulary,
            context,
            ..
        } = self.weights.config;
        let mut lengths: BTreeMap<SequenceId, usize> = BTreeMap::new();
        let mut wanted = 0;
        for step in steps {
            let token = step.token;
            if usize::try_from(token).is_ok_and(|token| token >= vocabulary) {
                return Err(EngineError::Token { token, vocabulary });
            }
            let next = lengths
                .entry(step.sequence)
                .or_insert_with(|| self.length(step.sequence));
            if usize::try_from(step.position) != Ok(*next) {
                return Err(EngineError::Position {
                    position: step.position,
                    next: *next,
                });
            }
            if *next >= context {
                return Err(EngineError::Context(context));
            }
            wanted += usize::from(next.is_multiple_of(PAGE));
            *next += 1;
        }
        let left = self.cache.left();
        if wanted > left {
            return Err(EngineError::CacheFull { wanted, left });
        }
        Ok(())
    }
}

impl<'a> Logits<'a> {
    /// Of how many steps.
    pub const fn len(&self) -> usize {
        self.numbers.len() / self.vocabulary
    }

    /// Whether no step wanted them.
    pub const fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Of each step, a number for each token.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        self.numbers.chunks_exact(self.vocabulary)
    }

    /// Of one step. `None` if there are not so many.
    pub fn row(&self, index: usize) -> Option<&'a [f32]> {
        self.rows().nth(index)
    }
}

/// What a batch is while it goes through the layers, and room for what is made of it.
/// Kept from call to call.
#[derive(Debug, Default)]
struct Rows {
    state: Vec<f32>,
    normed: Vec<f32>,
    blocks: Vec<Block>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    mixed: Vec<f32>,
    back: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// A call of [`Engine::forward`].
struct Pass<'a> {
    steps: &'a [Step],
    tiles: Vec<Tile>,
    turns: Vec<Vec<[f32; 2]>>,
    weights: &'a Weights,
    compute: Compute<'a>,
    cache: &'a mut Cache,
    rows: &'a mut Rows,
    logits: &'a mut Vec<f32>,
    /// Threads look out for work as long as this is here.
    _attentive: pool::Attentive<'a>,
}

impl<'a> Pass<'a> {
    fn new(engine: &'a mut Engine, weights: &'a Weights, steps: &'a [Step]) -> Self {
        let config = &weights.config;
        let place = |step: &Step| usize::try_from(step.position).unwrap_or(usize::MAX);
        let (base, factors) = (config.rope_base, &weights.rope_factors);
        let turns = |step: &Step| vector::turns(step.position, base, config.rotated, factors);
        let rows = &mut engine.rows;
        let count = steps.len();
        for (room, width) in [
            (&mut rows.state, config.width),
            (&mut rows.queries, config.query_width()),
            (&mut rows.keys, config.kv_width()),
            (&mut rows.values, config.kv_width()),
            (&mut rows.mixed, config.query_width()),
            (&mut rows.back, config.width),
            (&mut rows.gate, config.hidden),
            (&mut rows.up, config.hidden),
        ] {
            room.resize(count * width, 0.0);
        }
        Self {
            steps,
            tiles: attention::tiles(steps.iter().map(|step| (step.sequence, place(step)))),
            turns: steps.iter().map(turns).collect(),
            weights,
            compute: Compute {
                isa: engine.isa,
                pool: &engine.pool,
                scratch: &engine.scratch,
            },
            cache: &mut engine.cache,
            rows,
            logits: &mut engine.logits,
            _attentive: engine.pool.attentive(),
        }
    }

    fn embed(&mut self) {
        let rows = self.rows.state.chunks_exact_mut(self.weights.config.width);
        for (step, row) in self.steps.iter().zip(rows) {
            let token = usize::try_from(step.token).unwrap_or(usize::MAX);
            self.weights.embedding.row(token, row);
        }
    }

    fn attend(&mut self, index: usize, layer: &PackedLayer) {
        let config = &self.weights.config;
        let rows = &mut *self.rows;
        self.compute
            .normalise(rows, &layer.attention_norm, config.epsilon);
        let of = Activations {
            columns: config.width,
            numbers: &rows.normed,
            blocks: &rows.blocks,
        };
        self.compute.multiply(
            &of,
            &mut [
                (&layer.query, &mut rows.queries),
                (&layer.key, &mut rows.keys),
                (&layer.value, &mut rows.values),
            ],
        );
        self.remember(index);
        let rows = &mut *self.rows;
        let mixed = Shared::new(&mut rows.mixed);
        let group = config.query_width() / config.kv_heads;
        let parts = self.tiles.len() * config.kv_heads;
        let (compute, cache, tiles) = (&self.compute, &*self.cache, &self.tiles);
        compute.pool.run(parts, &|worker, chunk| {
            let mut scratch = compute.scratch[worker]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let head = chunk % config.kv_heads;
            let part = Part {
                config,
                cache,
                layer: index,
                head,
                tile: tiles[chunk / config.kv_heads],
                queries: &rows.queries,
            };
            part.compute(compute.isa, &mut scratch, |row, numbers| {
                // SAFETY: each chunk is called once, and is the only one with these rows
                // and this head.
                unsafe { mixed.write(row * config.query_width() + head * group, numbers) };
            });
        });
        self.compute.narrow(&rows.mixed, &mut rows.blocks);
        let of = Activations {
            columns: config.query_width(),
            numbers: &rows.mixed,
            blocks: &rows.blocks,
        };
        self.compute
            .multiply(&of, &mut [(&layer.attention_output, &mut rows.back)]);
        vector::add(self.compute.isa, &mut rows.state, &rows.back);
    }

    /// Rotates queries and keys, and writes keys and values into the cache.
    fn remember(&mut self, layer: usize) {
        let config = &self.weights.config;
        let (query, kv, width) = (config.query_width(), config.kv_width(), config.head_width);
        let rows = &mut *self.rows;
        let queries = rows.queries.chunks_exact_mut(query);
        let keys = rows.keys.chunks_exact_mut(kv);
        let values = rows.values.chunks_exact(kv);
        let steps = self.steps.iter().zip(&self.turns);
        for (((step, turns), queries), (keys, values)) in steps.zip(queries).zip(keys.zip(values)) {
            vector::rotate(self.compute.isa, queries, width, turns);
            vector::rotate(self.compute.isa, keys, width, turns);
            let position = usize::try_from(step.position).unwrap_or(usize::MAX);
            self.cache
                .write(step.sequence, position, layer, keys, values);
        }
    }

    fn feed(&mut self, layer: &PackedLayer) {
        let config = &self.weights.config;
        let rows = &mut *self.rows;
        self.compute
            .normalise(rows, &layer.feed_norm, config.epsilon);
        let of = Activations {
            columns: config.width,
            numbers: &rows.normed,
            blocks: &rows.blocks,
        };
        self.compute.multiply(
            &of,
            &mut [(&layer.gate, &mut rows.gate), (&layer.up, &mut rows.up)],
        );
        self.compute.gate(&mut rows.gate, &rows.up, config.hidden);
        self.compute.narrow(&rows.gate, &mut rows.blocks);
        let of = Activations {
            columns: config.hidden,
            numbers: &rows.gate,
            blocks: &rows.blocks,
        };
        self.compute
            .multiply(&of, &mut [(&layer.down, &mut rows.back)]);
        vector::add(self.compute.isa, &mut rows.state, &rows.back);
    }

    /// The logits of those rows that want them.
    fn finish(&mut self) {
        let config = &self.weights.config;
        let rows = &mut *self.rows;
        let mut wanted = 0;
        for (row, step) in self.steps.iter().enumerate() {
            if step.wants_logits {
                let from = row * config.width;
                rows.state
                    .copy_within(from..from + config.width, wanted * config.width);
                wanted += 1;
            }
        }
        rows.state.truncate(wanted * config.width);
        self.logits.resize(wanted * config.vocabulary, 0.0);
        if wanted == 0 {
            return;
        }
        self.compute
            .normalise(rows, &self.weights.norm, config.epsilon);
        let of = Activations {
            columns: config.width,
            numbers: &rows.normed,
            blocks: &rows.blocks,
        };
        let output = self
            .weights
            .output
            .as_ref()
            .unwrap_or(&self.weights.embedding);
        self.compute.multiply(&of, &mut [(output, self.logits)]);
    }
}

/// Who computes, and how.
#[derive(Debug, Clone, Copy)]
struct Compute<'a> {
    isa: Isa,
    pool: &'a Pool,
    scratch: &'a [Mutex<Scratch>],
}

impl Compute<'_> {
    /// The norm of each row of the state, wide and narrow.
    fn normalise(&self, rows: &mut Rows, weights: &[f32], epsilon: f32) {
        let width = weights.len();
        rows.normed.resize(rows.state.len(), 0.0);
        let normed = Shared::new(&mut rows.normed);
        let state = &rows.state;
        self.each_row(state.len() / width, &|row| {
            // SAFETY: each row is given once.
            let out = unsafe { normed.part(row * width, width) };
            let row = &state[row * width..][..width];
            vector::normalise(self.isa, row, weights, epsilon, out);
        });
        self.narrow(&rows.normed, &mut rows.blocks);
    }

    /// Makes numbers small. Those of a width that is not in whole blocks meet no matrix
    /// of small numbers; what comes out for them is not used.
    fn narrow(&self, numbers: &[f32], blocks: &mut Vec<Block>) {
        const AT_ONCE: usize = SHARED_ROWS * BLOCK;
        blocks.resize(numbers.len() / BLOCK, Block::default());
        let count = blocks.len();
        let blocks = Shared::new(blocks);
        let chunks = count.div_ceil(AT_ONCE);
        let narrow = |_: usize, chunk: usize| {
            let first = chunk * AT_ONCE;
            let length = AT_ONCE.min(count - first);
            // SAFETY: each chunk is called once.
            let out = unsafe { blocks.part(first, length) };
            let numbers = &numbers[first * BLOCK..][..length * BLOCK];
            kernels::quantise(self.isa, numbers, out);
        };
        self.pool.run(chunks, &narrow);
    }

    fn gate(&self, gate: &mut [f32], up: &[f32], width: usize) {
        let rows = gate.len() / width;
        let gate = Shared::new(gate);
        self.each_row(rows, &|row| {
            // SAFETY: each row is given once.
            let gate = unsafe { gate.part(row * width, width) };
            let up = &up[row * width..][..width];
            vector::gated(self.isa, gate, up);
        });
    }

    fn each_row(&self, rows: usize, work: &(dyn Fn(usize) + Sync)) {
        if rows < SHARED_ROWS {
            return (0..rows).for_each(work);
        }
        self.pool.run(rows, &|_, row| work(row));
    }

    /// Multiplies the same rows by some matrices.
    fn multiply(&self, of: &Activations<'_>, products: &mut [(&Packed, &mut Vec<f32>)]) {
        let rows = of.numbers.len() / of.columns;
        let panels: usize = products.iter().map(|(matrix, _)| matrix.panels()).sum();
        let chunk_panels = panels.div_ceil(CHUNKS * self.pool.workers()).clamp(1, 64);
        let mut chunks = Vec::with_capacity(panels / chunk_panels + products.len());
        for (matrix, out) in products {
            debug_assert!(matrix.columns() == of.columns && out.len() == rows * matrix.rows());
            debug_assert!(!matrix.is_small() || of.columns.is_multiple_of(BLOCK));
            let (matrix, out) = (*matrix, Shared::new(out));
            for first in (0..matrix.panels()).step_by(chunk_panels) {
                let last = matrix.panels().min(first + chunk_panels);
                chunks.push((matrix, out, first..last));
            }
        }
        self.pool.run(chunks.len(), &|_, chunk| {
            let (matrix, out, panels) = &chunks[chunk];
            for first in (0..rows).step_by(ROWS) {
                for panel in panels.clone() {
                    let mut sums = [[0.0; PANEL]; ROWS];
                    let sums = &mut sums[..ROWS.min(rows - first)];
                    kernels::product(self.isa, &matrix.panel(panel), of, first, sums);
                    let lanes = PANEL.min(matrix.rows() - panel * PANEL);
                    for (row, sums) in sums.iter().enumerate() {
                        let at = (first + row) * matrix.rows() + panel * PANEL;
                        // SAFETY: each chunk is called once, and is the only one with
                        // these panels of this matrix.
                        unsafe { out.write(at, &sums[..lanes]) };
                    }
                }
            }
        });
    }
}

/// A slice that chunks of work write parts of, each its own.
#[derive(Debug, Clone, Copy)]
struct Shared<'a, T> {
    begin: *mut T,
    length: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a slice of `T` that is borrowed for `'a`, and its functions ask that no
// two threads take the same part.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    fn new(slice: &'a mut [T]) -> Self {
        Self {
            begin: slice.as_mut_ptr(),
            length: slice.len(),
            slice: PhantomData,
        }
    }

    /// A part of the slice.
    ///
    /// # Safety
    ///
    /// No two parts that are in use at the same time may overlap.
    unsafe fn part(&self, at: usize, length: usize) -> &'a mut [T] {
        assert!(
            at <= self.length && length <= self.length - at,
            "outside of the slice"
        );
        // SAFETY: it is inside, and the caller sees to it that nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.begin.add(at), length) }
    }

    /// Writes a part of the slice.
    ///
    /// # Safety
    ///
    /// As [`part`](Self::part).
    unsafe fn write(&self, at: usize, numbers: &[T])
    where
        T: Copy,
    {
        // SAFETY: the caller sees to it.
        unsafe { self.part(at, numbers.len()) }.copy_from_slice(numbers);
    }
}

#[cfg(test)]
mod tests;
