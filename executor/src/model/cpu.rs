//! Computes a model on the processor.
//!
//! [`Weights`] are a model's matrices as the kernels want them; several engines may
//! share them. An [`Engine`] computes with them what [`super::engine`] says.
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
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError},
};

pub(super) use self::vector::exponential;
use self::{
    attention::{Part, Scratch, Tile},
    cache::Cache,
    kernels::{Activations, Block, Isa},
    pool::Pool,
    weights::{BLOCK, PANEL, Packed},
};
use super::{
    engine::{EngineError, Logits, PAGE, SequenceId, Step},
    llama::{Biases, Config, HeadNorms, Layer, Llama, Rotation},
};
use crate::limits::MODEL_THREADS_MAX;

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
    biases: Option<Biases>,
    head_norms: Option<HeadNorms>,
    attention_output: Packed,
    feed_norm: Vec<f32>,
    gate: Packed,
    up: Packed,
    down: Packed,
}

/// How an engine works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads that compute, the caller's included: as many as there are cores for it.
    pub threads: usize,
    /// Bytes that keys and values of all sequences take at most.
    pub cache_bytes_max: usize,
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
            biases: layer.biases.clone(),
            head_norms: layer.head_norms.clone(),
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
}

impl super::engine::Engine for Engine {
    fn config(&self) -> &Config {
        &self.weights.config
    }

    fn forward(&mut self, steps: &[Step]) -> Result<Logits<'_>, EngineError> {
        self.cache.pages().check(&self.weights.config, steps)?;
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

    fn logits(&self) -> Logits<'_> {
        Logits::new(&self.logits, self.weights.config.vocabulary)
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.cache.pages().length(sequence)
    }

    fn positions_left(&self) -> usize {
        self.cache.pages().left() * PAGE
    }

    fn end(&mut self, sequence: SequenceId) {
        self.cache.end(sequence);
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) {
        self.cache.truncate(sequence, length);
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
        let turns = |step: &Step| config.turns(step.position, &weights.rope_factors);
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
        self.remember(index, layer);
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

    /// Brings queries and keys to their place, and writes keys and values into the cache.
    fn remember(&mut self, index: usize, layer: &PackedLayer) {
        let config = &self.weights.config;
        let (query, kv, isa) = (config.query_width(), config.kv_width(), self.compute.isa);
        let rows = &mut *self.rows;
        let queries = rows.queries.chunks_exact_mut(query);
        let keys = rows.keys.chunks_exact_mut(kv);
        let values = rows.values.chunks_exact_mut(kv);
        let steps = self.steps.iter().zip(&self.turns);
        for (((step, turns), queries), (keys, values)) in steps.zip(queries).zip(keys.zip(values)) {
            if let Some(biases) = &layer.biases {
                vector::add(isa, queries, &biases.query);
                vector::add(isa, keys, &biases.key);
                vector::add(isa, values, &biases.value);
            }
            if let Some(norms) = &layer.head_norms {
                vector::normalise_heads(isa, queries, &norms.query, config.epsilon);
                vector::normalise_heads(isa, keys, &norms.key, config.epsilon);
            }
            let rotate = match config.rotation {
                Rotation::Neighbours => vector::rotate,
                Rotation::Halves => vector::rotate_halves,
            };
            rotate(isa, queries, config.head_width, turns);
            rotate(isa, keys, config.head_width, turns);
            let position = usize::try_from(step.position).unwrap_or(usize::MAX);
            self.cache
                .write(step.sequence, position, index, keys, values);
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
