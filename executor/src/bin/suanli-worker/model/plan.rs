//! What a device does for a step of a model: passes over buffers, made once.
//!
//! ```text
//!  tokens ─embed─▶ state ─norm─▶ normed ─products─▶ mixture ─rotate─▶ mixture, cache
//!                    ▲                              (heads normed)   ─attend─▶ parts ─merge─▶ mixed
//!                    ├──────────── product, added ◀─────────────────────────────────────┘
//!                    ├─norm─▶ normed ─products─▶ both ─gate─▶ gated
//!                    └──────────── product, added ◀────────────┘          for each layer
//!                  picked rows ─norm─▶ normed ─product─▶ logits
//! ```
//!
//! Each pass is a kernel, compiled with the sizes that it always has, and its buffers,
//! bound. Kernels go through the checks that tenants' kernels go through
//! ([`crate::run::build`]). A product has one kernel for each few rows, and one for many.
//!
//! Absent: sequences, and what is different from call to call but for the number of rows.

use std::collections::HashMap;

use suanli_executor::{
    ipc::Failure,
    limits::MODEL_STEPS_MAX,
    model::{
        engine::PAGE,
        llama::{Config, Layer, Llama, Matrix, Rotation},
    },
    spec::{Buffer, Constant, Content, Graph, Pass as GraphPass},
};
use suanli_protocol::wire::{List, Utf8};
use wgpu::BufferUsages;

use super::layout::{self, BLOCK, Layout};
use crate::{Fault, device::Gpu, run};

const MATRIX: &str = include_str!("matrix.wgsl");
const ROWS: &str = include_str!("rows.wgsl");

/// How many rows the kernels for a few are made for.
const FEW: [u32; 3] = [1, 4, 8];
/// Up to so many rows go in a few at a time: the kernel for many begins to pay above it.
const FEW_MAX: u32 = 16;
/// Rows of a matrix, and rows that go in, of a group: of a few, and of many.
const FEW_ROWS: u32 = 8;
const MANY_ROWS: u32 = 64;
const MANY_EACH: u32 = 32;
/// Groups of a few in one dimension; the kernel says the same.
const FEW_GROUPS: u32 = 32_768;
/// Lanes of a group that has no other reason for its size.
const LANES: u32 = 64;
/// Bytes of weights on their way to the device.
const CHUNK_BYTES: usize = 8 << 20;
/// Positions that a group of attention takes at once; the kernel says the same.
pub(super) const AT_ONCE: usize = 256;
/// So many groups of attention keep any device busy: of fewer, each gets a part of the
/// positions.
pub(super) const GROUPS_ENOUGH: usize = 4096;
/// Rows whose logits are made at once.
pub(super) const PICKED: usize = 32;

/// How large a call is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch {
    /// Rows.
    pub(super) rows: u32,
    /// Groups for each row and head.
    pub(super) chunks: u32,
}

/// A kernel and its buffers.
struct Work {
    pipeline: wgpu::ComputePipeline,
    bound: Option<wgpu::BindGroup>,
}

enum Pass {
    /// So many groups for each row.
    Each { work: Work, groups: u32 },
    /// So many for each row and chunk.
    Chunks { work: Work, groups: u32 },
    /// A matrix of so many rows.
    Product { few: Vec<Work>, many: Work, of: u32 },
}

/// Buffers that are written from outside, and read.
pub(super) struct Buffers {
    pub(super) batch: wgpu::Buffer,
    pub(super) picked_batch: wgpu::Buffer,
    pub(super) tokens: wgpu::Buffer,
    pub(super) places: wgpu::Buffer,
    pub(super) turns: wgpu::Buffer,
    pub(super) pages: wgpu::Buffer,
    pub(super) picked: wgpu::Buffer,
    pub(super) logits: wgpu::Buffer,
    pub(super) readable: wgpu::Buffer,
}

/// All passes of a model.
pub(super) struct Plan {
    /// The embedding, and then each layer.
    layers: Vec<Vec<Pass>>,
    head: Vec<Pass>,
    pub(super) buffers: Buffers,
    /// Pages that there is room for.
    pub(super) pages: usize,
}

impl Plan {
    /// Brings a model onto a device. Keys and values take so many bytes at most.
    pub(super) fn new(gpu: &Gpu, model: &Llama<'_>, cache_bytes: u64) -> Result<Self, Fault> {
        let config = &model.config;
        if !config.head_width.is_multiple_of(2) {
            return Err(unable("heads of an odd width are not computed on a device"));
        }
        let page_bytes = u64_of(4 * config.kv_width() * PAGE);
        let of_a_layer = cache_bytes / u64_of(config.layers) / page_bytes;
        let limit = binding_bytes_max(gpu);
        let pages = usize_of(of_a_layer.min(limit / page_bytes));
        let mut builder = Builder {
            gpu,
            kernels: HashMap::new(),
            none: new_buffer(gpu, 16)?,
        };
        let rooms = Rooms::new(gpu, config, pages)?;
        let embedding = builder.weights(&[&model.embedding])?;
        let mut layers = vec![builder.embed(&embedding, &rooms)?];
        for layer in &model.layers {
            let cache = new_buffer(gpu, u64_of(pages.max(1)) * page_bytes)?;
            let mut passes = builder.attention(model, layer, &rooms, &cache)?;
            passes.extend(builder.feed(config, layer, &rooms)?);
            layers.push(passes);
        }
        let output = match &model.output {
            Some(output) => builder.weights(&[output])?,
            None => embedding,
        };
        let buffers = &rooms.outside;
        let picked = (Some(&buffers.picked), &buffers.picked_batch);
        let mut head = vec![builder.norm(config, &model.norm, picked, &rooms)?];
        let (normed, logits) = (&rooms.normed, &buffers.logits);
        let to = (logits, config.vocabulary, false);
        head.extend(builder.product(&output, &buffers.picked_batch, normed, to)?);
        Ok(Self {
            layers,
            head,
            buffers: rooms.outside,
            pages,
        })
    }

    /// All layers, for the rows of a batch, in pieces that are handed in one by one: a device
    /// that also draws a screen ends what keeps it for seconds.
    pub(super) fn layers(&self, batch: Batch) -> impl Iterator<Item = Piece<'_>> {
        let at_once = match batch.rows {
            0..=FEW_MAX => self.layers.len(),
            _ => 1,
        };
        self.layers.chunks(at_once.max(1)).map(Piece)
    }

    /// The logits of some rows.
    pub(super) fn head(&self, compute: &mut wgpu::ComputePass<'_>, rows: u32) {
        let batch = Batch { rows, chunks: 1 };
        self.head
            .iter()
            .for_each(|pass| pass.dispatch(compute, batch));
    }
}

/// Some of a plan's passes.
pub(super) struct Piece<'a>(&'a [Vec<Pass>]);

impl Piece<'_> {
    pub(super) fn dispatch(&self, compute: &mut wgpu::ComputePass<'_>, batch: Batch) {
        for pass in self.0.iter().flatten() {
            pass.dispatch(compute, batch);
        }
    }
}

impl Pass {
    fn dispatch(&self, compute: &mut wgpu::ComputePass<'_>, batch: Batch) {
        let (work, groups) = match self {
            Self::Each { work, groups } => (work, [*groups, batch.rows, 1]),
            Self::Chunks { work, groups } => (work, [*groups, batch.rows, batch.chunks]),
            Self::Product { few, many, of } => {
                let fits = FEW.iter().zip(few).find(|(few, _)| **few >= batch.rows);
                let fits = fits.or_else(|| FEW.iter().zip(few).next_back());
                match fits.filter(|_| batch.rows <= FEW_MAX) {
                    Some((few, work)) => {
                        let groups = of.div_ceil(FEW_ROWS);
                        let (x, y) = (groups.min(FEW_GROUPS), groups.div_ceil(FEW_GROUPS));
                        (work, [x, y, batch.rows.div_ceil(*few)])
                    }
                    None => {
                        let (x, y) = (of.div_ceil(MANY_ROWS), batch.rows.div_ceil(MANY_EACH));
                        (many, [x, y, 1])
                    }
                }
            }
        };
        compute.set_pipeline(&work.pipeline);
        compute.set_bind_group(0, work.bound.as_ref(), &[]);
        compute.dispatch_workgroups(groups[0], groups[1], groups[2]);
    }
}

/// Room for the numbers of a batch.
struct Rooms {
    outside: Buffers,
    state: wgpu::Buffer,
    normed: wgpu::Buffer,
    mixture: wgpu::Buffer,
    parts: wgpu::Buffer,
    mixed: wgpu::Buffer,
    both: wgpu::Buffer,
    gated: wgpu::Buffer,
}

impl Rooms {
    fn new(gpu: &Gpu, config: &Config, pages: usize) -> Result<Self, Fault> {
        let numbers = |count: usize| new_buffer(gpu, u64_of(4 * count));
        let rows = |width: usize| numbers(MODEL_STEPS_MAX * width);
        let parts = (MODEL_STEPS_MAX * config.heads).max(GROUPS_ENOUGH);
        let logits = PICKED * config.vocabulary;
        let outside = Buffers {
            batch: numbers(4)?,
            picked_batch: numbers(4)?,
            tokens: rows(1)?,
            places: rows(4)?,
            turns: rows(config.rotated)?,
            pages: numbers(pages.max(1))?,
            picked: numbers(PICKED)?,
            logits: numbers(logits)?,
            readable: readable(gpu, u64_of(4 * logits))?,
        };
        Ok(Self {
            outside,
            state: rows(whole(config.width))?,
            normed: rows(whole(config.width))?,
            mixture: rows(mixture(config))?,
            parts: numbers(parts * (config.head_width + 2))?,
            mixed: rows(whole(config.query_width()))?,
            both: rows(2 * config.hidden)?,
            gated: rows(whole(config.hidden))?,
        })
    }
}

/// Some rows of weights on the device.
struct Part {
    quants: wgpu::Buffer,
    scales: wgpu::Buffer,
    kind: u32,
    rows: usize,
    columns: usize,
    /// Which row of all is the first.
    first: usize,
}

/// Makes passes.
struct Builder<'a> {
    gpu: &'a Gpu,
    kernels: HashMap<Vec<u8>, run::Step>,
    /// In the place of what a kernel does not use.
    none: wgpu::Buffer,
}

type Constants<'a> = &'a [(&'static str, f64)];

impl Builder<'_> {
    fn embed(&mut self, parts: &[Part], rooms: &Rooms) -> Result<Vec<Pass>, Fault> {
        let buffers = &rooms.outside;
        let pass = |part: &Part| {
            let width = part.columns.div_ceil(BLOCK) * BLOCK;
            let constants = [of_part(part), vec![("OUT", float(width))]].concat();
            let none = &self.none.clone();
            let bound = [
                none,
                &part.quants,
                &part.scales,
                none,
                &rooms.state,
                &buffers.tokens,
            ];
            let work = self.work(MATRIX, "embed", &constants, &bound)?;
            let groups = u32_of(width / 4).div_ceil(LANES);
            Ok(Pass::Each { work, groups })
        };
        parts.iter().map(pass).collect()
    }

    /// The norm of the state's rows, or of those that are picked.
    fn norm(
        &mut self,
        config: &Config,
        weights: &[f32],
        (picked, batch): (Option<&wgpu::Buffer>, &wgpu::Buffer),
        rooms: &Rooms,
    ) -> Result<Pass, Fault> {
        let weights = self.floats(&[weights])?;
        let none = self.none.clone();
        let constants = [
            ("WIDTH", float(config.width)),
            ("IN", float(whole(config.width))),
            ("OUT", float(whole(config.width))),
            ("EPSILON", f64::from(config.epsilon)),
            ("PICKS", f64::from(u8::from(picked.is_some()))),
        ];
        let list = picked.unwrap_or(&none);
        let bound = [
            batch,
            &rooms.state,
            &weights,
            list,
            &none,
            &none,
            &none,
            &none,
            &rooms.normed,
        ];
        let work = self.work(ROWS, "norm", &constants, &bound)?;
        Ok(Pass::Each { work, groups: 1 })
    }

    fn attention(
        &mut self,
        model: &Llama<'_>,
        layer: &Layer<'_>,
        rooms: &Rooms,
        cache: &wgpu::Buffer,
    ) -> Result<Vec<Pass>, Fault> {
        let config = &model.config;
        let buffers = &rooms.outside;
        let batch = &buffers.batch;
        let mut passes = vec![self.norm(config, &layer.attention_norm, (None, batch), rooms)?];
        let parts = self.weights(&[&layer.query, &layer.key, &layer.value])?;
        let to = (&rooms.mixture, mixture(config), false);
        passes.extend(self.product(&parts, batch, &rooms.normed, to)?);
        let heads = heads(config);
        passes.extend(self.head_norms(config, layer, rooms)?);
        passes.push(self.rotate(config, layer, rooms, cache)?);
        let (places, none) = (&buffers.places, &self.none.clone());
        let groups = u32_of(config.heads);
        let scale = 1.0 / float(config.head_width).sqrt();
        let attends = [("IN", float(mixture(config))), ("SCALE", scale)];
        let bound = [
            batch,
            &rooms.mixture,
            none,
            &buffers.pages,
            places,
            none,
            cache,
            none,
            &rooms.parts,
        ];
        let work = self.work(ROWS, "attend", &[&heads[..], &attends].concat(), &bound)?;
        passes.push(Pass::Chunks { work, groups });
        let merges = [("OUT", float(whole(config.query_width())))];
        let bound = [
            batch,
            &rooms.parts,
            none,
            none,
            none,
            none,
            none,
            none,
            &rooms.mixed,
        ];
        let work = self.work(ROWS, "merge", &[&heads[..], &merges].concat(), &bound)?;
        passes.push(Pass::Each { work, groups });
        let parts = self.weights(&[&layer.attention_output])?;
        let to = (&rooms.state, whole(config.width), true);
        passes.extend(self.product(&parts, batch, &rooms.mixed, to)?);
        Ok(passes)
    }

    /// The norms of heads of queries and keys, where there are such.
    fn head_norms(
        &mut self,
        config: &Config,
        layer: &Layer<'_>,
        rooms: &Rooms,
    ) -> Result<Option<Pass>, Fault> {
        let Some(norms) = &layer.head_norms else {
            return Ok(None);
        };
        let weights = self.floats(&[&norms.query, &norms.key])?;
        let none = &self.none.clone();
        let constants = [
            ("OUT", float(mixture(config))),
            ("EPSILON", f64::from(config.epsilon)),
        ];
        let constants = [&heads(config)[..], &constants].concat();
        let bound = [
            &rooms.outside.batch,
            none,
            &weights,
            none,
            none,
            none,
            none,
            none,
            &rooms.mixture,
        ];
        let work = self.work(ROWS, "norm_heads", &constants, &bound)?;
        let groups = u32_of(config.heads + config.kv_heads);
        Ok(Some(Pass::Each { work, groups }))
    }

    fn rotate(
        &mut self,
        config: &Config,
        layer: &Layer<'_>,
        rooms: &Rooms,
        cache: &wgpu::Buffer,
    ) -> Result<Pass, Fault> {
        let buffers = &rooms.outside;
        let none = &self.none.clone();
        let biases = match &layer.biases {
            Some(biases) => self.floats(&[&biases.query, &biases.key, &biases.value])?,
            None => none.clone(),
        };
        let constants = [
            ("OUT", float(mixture(config))),
            ("BIASED", f64::from(u8::from(layer.biases.is_some()))),
        ];
        let bound = [
            &buffers.batch,
            none,
            &biases,
            none,
            &buffers.places,
            &buffers.turns,
            none,
            cache,
            &rooms.mixture,
        ];
        let constants = [&heads(config)[..], &constants].concat();
        let work = self.work(ROWS, "rotate", &constants, &bound)?;
        let groups = u32_of(mixture(config) / 2).div_ceil(LANES);
        Ok(Pass::Each { work, groups })
    }

    /// Numbers on the device, these after each other.
    fn floats(&self, numbers: &[&[f32]]) -> Result<wgpu::Buffer, Fault> {
        let bytes: Vec<u8> = (numbers.iter().copied().flatten())
            .flat_map(|number| number.to_le_bytes())
            .collect();
        let buffer = new_buffer(self.gpu, u64_of(bytes.len()))?;
        write(self.gpu, &buffer, 0, &bytes)?;
        Ok(buffer)
    }

    fn feed(
        &mut self,
        config: &Config,
        layer: &Layer<'_>,
        rooms: &Rooms,
    ) -> Result<Vec<Pass>, Fault> {
        let batch = &rooms.outside.batch;
        let none = &self.none.clone();
        let mut passes = vec![self.norm(config, &layer.feed_norm, (None, batch), rooms)?];
        let parts = self.weights(&[&layer.gate, &layer.up])?;
        let to = (&rooms.both, 2 * config.hidden, false);
        passes.extend(self.product(&parts, batch, &rooms.normed, to)?);
        let constants = [
            ("WIDTH", float(config.hidden)),
            ("IN", float(2 * config.hidden)),
            ("OUT", float(whole(config.hidden))),
        ];
        let bound = [
            batch,
            &rooms.both,
            none,
            none,
            none,
            none,
            none,
            none,
            &rooms.gated,
        ];
        let work = self.work(ROWS, "gate", &constants, &bound)?;
        let groups = u32_of(config.hidden).div_ceil(LANES);
        passes.push(Pass::Each { work, groups });
        let parts = self.weights(&[&layer.down])?;
        let to = (&rooms.state, whole(config.width), true);
        passes.extend(self.product(&parts, batch, &rooms.gated, to)?);
        Ok(passes)
    }

    /// Products of rows with weights, into rows of so many numbers, in which those of each
    /// part follow each other; added to what is there, if so.
    fn product(
        &mut self,
        parts: &[Part],
        batch: &wgpu::Buffer,
        numbers: &wgpu::Buffer,
        (out, width, adds): (&wgpu::Buffer, usize, bool),
    ) -> Result<Vec<Pass>, Fault> {
        let mut pass = |part: &Part| {
            let mut constants = of_part(part);
            constants.retain(|(name, _)| *name != "FIRST");
            constants.extend([
                ("OUT", float(width)),
                ("AT", float(part.first)),
                ("ADDS", f64::from(u8::from(adds))),
            ]);
            let bound = [batch, &part.quants, &part.scales, numbers, out];
            let few = FEW.iter().map(|few| {
                let few = [("FEW", f64::from(*few))];
                self.work(MATRIX, "few", &[&constants[..], &few].concat(), &bound)
            });
            let few = few.collect::<Result<_, _>>()?;
            let many = self.work(MATRIX, "many", &constants, &bound)?;
            let of = u32_of(part.rows);
            Ok(Pass::Product { few, many, of })
        };
        parts.iter().map(&mut pass).collect()
    }

    /// Brings matrices of equally many columns onto the device, as if they were one, in as
    /// many parts as it takes.
    fn weights(&self, matrices: &[&Matrix<'_>]) -> Result<Vec<Part>, Fault> {
        let mut parts: Vec<Part> = Vec::new();
        let mut first = 0;
        for same in matrices
            .chunk_by(|one, other| layout::number(one.kind()) == layout::number(other.kind()))
        {
            let rows = same.iter().flat_map(|matrix| {
                let rows = 0..matrix.rows();
                rows.map(move |row| (*matrix, row))
            });
            let rows: Vec<_> = rows.collect();
            let Some(matrix) = same.first() else { continue };
            let blocks = matrix.columns().div_ceil(BLOCK);
            let row_bytes = u64_of(blocks * layout::block_bytes(matrix.kind()));
            let most = usize_of(binding_bytes_max(self.gpu) / row_bytes).max(1);
            for rows in rows.chunks(most) {
                parts.push(self.part(rows, first)?);
                first += rows.len();
            }
        }
        Ok(parts)
    }

    fn part(&self, rows: &[(&Matrix<'_>, usize)], first: usize) -> Result<Part, Fault> {
        let Some((matrix, _)) = rows.first() else {
            return Err(unable("a matrix without rows"));
        };
        let (kind, columns) = (matrix.kind(), matrix.columns());
        let blocks = rows.len() * columns.div_ceil(BLOCK);
        let scales = layout::scale_bytes(kind, blocks).next_multiple_of(4);
        let part = Part {
            quants: new_buffer(self.gpu, u64_of(blocks * layout::block_bytes(kind)))?,
            scales: new_buffer(self.gpu, u64_of(scales.max(4)))?,
            kind: layout::number(kind),
            rows: rows.len(),
            columns,
            first,
        };
        let (mut layout, mut quants, mut scales) = (Layout::default(), 0, 0);
        for (number, (matrix, row)) in rows.iter().enumerate() {
            if !layout.add(matrix, *row..row + 1) {
                return Err(unable("a scale of the form Q4_0 or Q5_0 is too large"));
            }
            let is_last = number + 1 == rows.len();
            if !is_last && layout.quants.len() < CHUNK_BYTES {
                continue;
            }
            if is_last {
                let whole = layout.scales.len().next_multiple_of(4);
                layout.scales.resize(whole, 0);
            }
            let rest = layout.scales.split_off(layout.scales.len() / 4 * 4);
            write(self.gpu, &part.quants, quants, &layout.quants)?;
            write(self.gpu, &part.scales, scales, &layout.scales)?;
            quants += u64_of(layout.quants.len());
            scales += u64_of(layout.scales.len());
            layout.quants.clear();
            layout.scales = rest;
            // Memory on the way is freed only when what it was for has run.
            let encoder = wgpu::CommandEncoderDescriptor::default();
            self.gpu
                .run(self.gpu.device.create_command_encoder(&encoder))?;
        }
        Ok(part)
    }

    fn work(
        &mut self,
        source: &str,
        entry: &str,
        constants: Constants<'_>,
        buffers: &[&wgpu::Buffer],
    ) -> Result<Work, Fault> {
        let graph = graph(source, entry, constants, buffers.len());
        let key = suanli_protocol::wire::encode(&graph);
        let step = match self.kernels.get(&key) {
            Some(step) => step.clone(),
            None => {
                let program = run::build(self.gpu, &graph, run::Whose::Ours)?;
                let step = program.0.into_iter().next();
                let step = step.ok_or_else(|| unable("a kernel without a pass"))?;
                self.kernels.insert(key, step.clone());
                step
            }
        };
        Ok(Work {
            bound: step.bind(self.gpu, |slot| buffers[slot])?,
            pipeline: step.pipeline,
        })
    }
}

/// A kernel as tenants would have it run: its buffers' sizes are the device's business.
fn graph(source: &str, entry: &str, constants: Constants<'_>, buffers: usize) -> Graph {
    let constants = constants.iter().map(|(name, value)| Constant {
        name: Utf8::cut(name),
        bits: value.to_bits(),
    });
    let any = Buffer {
        name: Utf8::cut("any"),
        content: Content::Zeroed,
        size: 1 << 30,
    };
    let pass = GraphPass {
        entry: Utf8::cut(entry),
        bindings: List::truncated(vec![0; buffers]),
        workgroups: [1; 3],
        repeat: 1,
        constants: List::truncated(constants.collect()),
    };
    Graph {
        source: Utf8::cut(source),
        features: List::default(),
        buffers: List::truncated(vec![any]),
        passes: List::truncated(vec![pass]),
        outputs: List::default(),
        checkpoint: None,
    }
}

fn of_part(part: &Part) -> Vec<(&'static str, f64)> {
    vec![
        ("KIND", f64::from(part.kind)),
        ("ROWS", float(part.rows)),
        ("BLOCKS", float(part.columns.div_ceil(BLOCK))),
        ("FIRST", float(part.first)),
    ]
}

/// What kernels know of heads.
fn heads(config: &Config) -> [(&'static str, f64); 5] {
    let halves = config.rotation == Rotation::Halves;
    [
        ("HEADS", float(config.heads)),
        ("KV_HEADS", float(config.kv_heads)),
        ("PAIRS", float(config.head_width / 2)),
        ("ROTATED", float(config.rotated / 2)),
        ("HALVES", f64::from(u8::from(halves))),
    ]
}

/// Numbers of a row of queries, keys and values.
const fn mixture(config: &Config) -> usize {
    config.query_width() + 2 * config.kv_width()
}

/// So many numbers, in whole blocks.
const fn whole(numbers: usize) -> usize {
    numbers.div_ceil(BLOCK) * BLOCK
}

fn binding_bytes_max(gpu: &Gpu) -> u64 {
    let limits = &gpu.limits;
    (limits.max_storage_buffer_binding_size).min(limits.max_buffer_size)
}

fn new_buffer(gpu: &Gpu, bytes: u64) -> Result<wgpu::Buffer, Fault> {
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
    buffer(gpu, bytes, usage, binding_bytes_max(gpu))
}

fn readable(gpu: &Gpu, bytes: u64) -> Result<wgpu::Buffer, Fault> {
    let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
    buffer(gpu, bytes, usage, gpu.limits.max_buffer_size)
}

fn buffer(gpu: &Gpu, size: u64, usage: BufferUsages, most: u64) -> Result<wgpu::Buffer, Fault> {
    if size > most {
        let detail = format!("the model needs a buffer of {size} bytes, this device has {most}");
        return Err(Fault::new(Failure::OutOfMemory, detail));
    }
    gpu.scoped(Failure::OutOfMemory, || {
        gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        })
    })
}

/// Writes whole words.
pub(super) fn write(gpu: &Gpu, to: &wgpu::Buffer, at: u64, bytes: &[u8]) -> Result<(), Fault> {
    gpu.scoped(Failure::Internal, || gpu.queue.write_buffer(to, at, bytes))
}

fn unable(why: &str) -> Fault {
    Fault::new(Failure::InvalidSpec, why)
}

fn u64_of(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn usize_of(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Sizes were bounded when the model was read.
pub(super) fn u32_of(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn float(count: usize) -> f64 {
    f64::from(u32_of(count))
}
