//! A model on a device: the engine that calls the plan.
//!
//! ```text
//! steps ─▶ tokens, places, turns, lists of pages ──▶ device: layers ─▶ picked rows ─▶ logits
//!             (written for each call)                       one submission          read back
//! ```
//!
//! Numbers have 32 bits throughout, but for keys and values, which have 16; weights are
//! widened where they are used. In which order numbers are added up depends on how many rows
//! a call has: the last bits of logits may differ with what is computed beside them, which
//! they never do on the processor.
//!
//! Absent: choosing tokens. A device that fails is not tried again: the worker ends.

use std::{collections::BTreeMap, time::Duration};

use suanli_executor::{
    ipc::Failure,
    model::{
        engine::{Engine, EngineError, Logits, PAGE, Pages, SequenceId, Step},
        llama::{Config, Llama},
    },
};
use wgpu::{MapMode, PollType};

use super::plan::{self, AT_ONCE, Batch, GROUPS_ENOUGH, PICKED, Piece, Plan, u32_of};
use crate::{Fault, device::Gpu};

/// A call that takes longer will not come back.
const CALL_TIME_MAX: Duration = Duration::from_secs(120);

/// A model on a device.
pub(crate) struct Device {
    gpu: Gpu,
    config: Config,
    rope_factors: Vec<f32>,
    plan: Plan,
    pages: Pages,
    logits: Vec<f32>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("adapter", self.gpu.adapter())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// Brings a model onto a device. Keys and values take so many bytes of it at most.
    pub(crate) fn new(gpu: Gpu, model: &Llama<'_>, cache_bytes: u64) -> Result<Self, Fault> {
        let plan = Plan::new(&gpu, model, cache_bytes)?;
        Ok(Self {
            config: model.config.clone(),
            rope_factors: model.rope_factors.clone(),
            pages: Pages::new(plan.pages),
            plan,
            logits: Vec::new(),
            gpu,
        })
    }

    fn compute(&mut self, steps: &[Step]) -> Result<(), Fault> {
        let batch = self.prepare(steps)?;
        let wanted = steps
            .iter()
            .enumerate()
            .filter(|(_, step)| step.wants_logits);
        let picked: Vec<u32> = wanted.map(|(row, _)| u32_of(row)).collect();
        let mut pieces = self.plan.layers(batch).collect::<Vec<_>>();
        // With few rows all is one submission: each costs as much as some layers.
        let last = pieces.pop();
        for piece in pieces {
            self.gpu.scoped(Failure::Internal, || {
                let mut encoder = self.encoder();
                let mut compute =
                    encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                piece.dispatch(&mut compute, batch);
                drop(compute);
                self.gpu.queue.submit([encoder.finish()])
            })?;
        }
        let mut begins = last.map(|piece| (piece, batch));
        let mut rest = &picked[..];
        let mut logits = std::mem::take(&mut self.logits);
        logits.clear();
        while begins.is_some() || !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(PICKED));
            self.submit(begins.take(), now, &mut logits)?;
            rest = later;
        }
        self.logits = logits;
        Ok(())
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        let descriptor = wgpu::CommandEncoderDescriptor::default();
        self.gpu.device.create_command_encoder(&descriptor)
    }

    /// Writes what the layers need to know of the steps.
    fn prepare(&self, steps: &[Step]) -> Result<Batch, Fault> {
        let mut lists: BTreeMap<SequenceId, u32> = BTreeMap::new();
        let (mut tokens, mut places, mut turns) = (Vec::new(), Vec::new(), Vec::new());
        let (mut pages, mut longest) = (Vec::new(), 1);
        for step in steps {
            let position = usize::try_from(step.position).unwrap_or(usize::MAX);
            let begin = *lists.entry(step.sequence).or_insert_with(|| {
                let begin = u32_of(pages.len());
                let own = self.pages.sequence(step.sequence);
                pages.extend(own.iter().flat_map(|own| &own.pages).copied().map(u32_of));
                begin
            });
            let (page, slot) = self
                .pages
                .place(step.sequence, position)
                .unwrap_or_default();
            tokens.push(step.token);
            places.extend([step.position + 1, begin, u32_of(page), u32_of(slot)]);
            let turned = self.config.turns(step.position, &self.rope_factors);
            turns.extend(turned.as_flattened().iter().map(|number| number.to_bits()));
            longest = longest.max(position + 1);
        }
        let blocks = longest.div_ceil(AT_ONCE);
        let enough = GROUPS_ENOUGH / (steps.len() * self.config.heads);
        let span = blocks.div_ceil(enough.clamp(1, blocks)) * AT_ONCE;
        let batch = Batch {
            rows: u32_of(steps.len()),
            chunks: u32_of(longest.div_ceil(span)),
        };
        let buffers = &self.plan.buffers;
        let sizes = [batch.rows, u32_of(span), batch.chunks, 0];
        for (buffer, words) in [
            (&buffers.batch, &sizes[..]),
            (&buffers.tokens, &tokens),
            (&buffers.places, &places),
            (&buffers.turns, &turns),
            (&buffers.pages, &pages),
        ] {
            self.write(buffer, words)?;
        }
        Ok(batch)
    }

    /// Has the last layers of a batch computed, if they are not yet, and then logits.
    fn submit(
        &self,
        layers: Option<(Piece<'_>, Batch)>,
        picked: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), Fault> {
        let buffers = &self.plan.buffers;
        let rows = u32_of(picked.len());
        self.write(&buffers.picked_batch, &[rows, 0, 0, 0])?;
        self.write(&buffers.picked, picked)?;
        let bytes = 4 * u64::from(rows) * u64::from(u32_of(self.config.vocabulary));
        let submission = self.gpu.scoped(Failure::Internal, || {
            let mut encoder = self.encoder();
            let mut compute = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            if let Some((piece, batch)) = layers {
                piece.dispatch(&mut compute, batch);
            }
            if rows > 0 {
                self.plan.head(&mut compute, rows);
            }
            drop(compute);
            if rows > 0 {
                let (from, to) = (&buffers.logits, &buffers.readable);
                encoder.copy_buffer_to_buffer(from, 0, to, 0, bytes);
            }
            let submission = self.gpu.queue.submit([encoder.finish()]);
            if rows > 0 {
                let mapped = buffers.readable.slice(..bytes);
                mapped.map_async(MapMode::Read, |_| {});
            }
            submission
        })?;
        let waited = self.gpu.scoped(Failure::Internal, || {
            self.gpu.device.poll(PollType::Wait {
                submission_index: Some(submission),
                timeout: Some(CALL_TIME_MAX),
            })
        })?;
        waited.map_err(|error| lost(&error))?;
        if rows > 0 {
            let mapped = buffers.readable.slice(..bytes).get_mapped_range();
            let mapped = mapped.map_err(|error| lost(&error))?;
            let words = mapped.as_chunks().0.iter();
            logits.extend(words.map(|word| f32::from_le_bytes(*word)));
            drop(mapped);
            buffers.readable.unmap();
        }
        Ok(())
    }

    fn write(&self, to: &wgpu::Buffer, words: &[u32]) -> Result<(), Fault> {
        if words.is_empty() {
            return Ok(());
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        plan::write(&self.gpu, to, 0, &bytes)
    }
}

impl Engine for Device {
    fn config(&self) -> &Config {
        &self.config
    }

    fn device(&self) -> Option<&str> {
        Some(&self.gpu.adapter().name)
    }

    fn forward(&mut self, steps: &[Step]) -> Result<Logits<'_>, EngineError> {
        self.pages.check(&self.config, steps)?;
        for step in steps {
            self.pages.extend(step.sequence);
        }
        let computed = self.compute(steps);
        computed.map_err(|fault| EngineError::Device(fault.into_detail()))?;
        Ok(self.logits())
    }

    fn logits(&self) -> Logits<'_> {
        Logits::new(&self.logits, self.config.vocabulary)
    }

    fn length(&self, sequence: SequenceId) -> usize {
        self.pages.length(sequence)
    }

    fn positions_left(&self) -> usize {
        self.pages.left() * PAGE
    }

    fn end(&mut self, sequence: SequenceId) {
        self.pages.end(sequence);
    }

    fn truncate(&mut self, sequence: SequenceId, length: usize) {
        self.pages.truncate(sequence, length);
    }
}

fn lost(error: &dyn std::error::Error) -> Fault {
    Fault::new(Failure::DeviceLost, error.to_string())
}
