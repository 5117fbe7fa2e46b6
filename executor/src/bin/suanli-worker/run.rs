//! One execution: a graph over an open device.
//!
//! Check → compile → fill buffers → dispatch in slices → read back. Between
//! slices the worker looks for a cancel and tells its progress; inside one
//! only the parent's deadline helps. Buffers are destroyed at the end however
//! it ends; compiled programs stay for the same tenant's next execution. At a
//! graph's checkpoints, those that the parent has room for, its state is read back
//! between two slices, and an execution that goes on begins with such a state.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use suanli_executor::{
    ipc::{Failure, OUTPUT_BYTES_INLINE, Reply, Stage, Used, WorkerEnd},
    limits::OUTPUTS_MAX,
    spec::{Content, Graph, Pass},
};
use suanli_protocol::wire::List;
use wgpu::{BufferUsages, PollType};

use crate::{
    Fault, Word, clock::Clock, cpu_time, device::Gpu, invalid_shader, micros, position, shader,
    word,
};

/// Bytes that are staged at once between host and device.
const CHUNK_BYTES: u64 = 8 << 20;
/// Chunks in flight before the worker waits for the device.
const CHUNKS_MAX: u64 = 4;
/// A slice of dispatches aims at this: short beside the time in which a
/// person expects a cancel to act, long beside the cost of a submission.
const SLICE_TARGET: Duration = Duration::from_millis(20);
const SLICE_MAX: u32 = 4096;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// What the parent asked for.
pub(crate) struct Order<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) inputs: Vec<File>,
    pub(crate) outputs: Vec<File>,
    /// For the buffers of its checkpoint; none if it keeps nothing and begins.
    pub(crate) state: Vec<File>,
    /// Dispatches that are done, with what they left in the state.
    pub(crate) done: u64,
    pub(crate) checkpoints: bool,
    pub(crate) memory_max: u64,
}

/// A compiled pipeline per pass.
#[derive(Clone)]
pub(crate) struct Program(pub(crate) Vec<Step>);

/// A pass's program, and which of its bindings that uses.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) pipeline: wgpu::ComputePipeline,
    used: Vec<u32>,
}

impl Step {
    /// Binds buffers, each in the place that its pass gives it.
    pub(crate) fn bind<'a>(
        &self,
        gpu: &Gpu,
        buffer: impl Fn(usize) -> &'a wgpu::Buffer,
    ) -> Result<Option<wgpu::BindGroup>, Fault> {
        if self.used.is_empty() {
            return Ok(None);
        }
        let entry = |binding: &u32| wgpu::BindGroupEntry {
            binding: *binding,
            resource: buffer(position(*binding)).as_entire_binding(),
        };
        let entries = self.used.iter().map(entry).collect::<Vec<_>>();
        let group = gpu.scoped(Failure::InvalidShader, || {
            gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &self.pipeline.get_bind_group_layout(0),
                entries: &entries,
            })
        })?;
        Ok(Some(group))
    }
}

/// The buffers of one execution; gone when this is.
struct Buffers(Vec<wgpu::Buffer>);

impl Drop for Buffers {
    fn drop(&mut self) {
        for buffer in &self.0 {
            buffer.destroy();
        }
    }
}

/// Runs one graph and says how it ended.
pub(crate) fn execute(
    gpu: &mut Gpu,
    order: &Order<'_>,
    parent: &mut WorkerEnd,
) -> Result<Reply, Fault> {
    let mut used = Used::default();
    let cpu_before = cpu_time();
    let end = execute_until(gpu, order, &mut used, parent);
    used.cpu_us = micros(cpu_time().saturating_sub(cpu_before));
    let (lengths, outputs) = end.map_err(|fault| fault.after(used))?;
    Ok(Reply::Finished {
        lengths,
        outputs,
        used,
    })
}

/// Of each output its size, then small outputs, one behind the other.
type Outputs = (List<u64, OUTPUTS_MAX>, List<u8, OUTPUT_BYTES_INLINE>);

fn execute_until(
    gpu: &mut Gpu,
    order: &Order<'_>,
    used: &mut Used,
    parent: &mut WorkerEnd,
) -> Result<Outputs, Fault> {
    let Order {
        graph,
        inputs,
        outputs,
        ..
    } = order;
    if !graph.has_small_outputs() && outputs.len() != graph.outputs.len() {
        let detail = format!("{} output files came", outputs.len());
        return Err(Fault::new(Failure::InvalidSpec, detail));
    }
    admit_state(order)?;
    admit(graph, gpu, order.memory_max)?;
    let (program, known) = compile(gpu, graph, parent)?;
    if !inputs.is_empty() {
        parent.send(&Reply::Stage(Stage::Loading))?;
    }
    let buffers = allocate(gpu, graph)?;
    fill(gpu, graph, &buffers, inputs)?;
    if order.done > 0 {
        restore(gpu, order, &buffers)?;
    }
    if !known || !inputs.is_empty() {
        parent.send(&Reply::Stage(Stage::Running))?;
    }
    let stage = stage(gpu)?;
    let small = graph.output_bytes() <= CHUNK_BYTES;
    let work = Work {
        gpu,
        order,
        program: &program,
        buffers: &buffers,
        stage: &stage,
        stages_outputs: small,
    };
    work.dispatch(used, parent)?;
    let mut inline = Vec::new();
    if graph.has_small_outputs() {
        read_stage(
            gpu,
            &stage,
            graph.output_bytes(),
            || (),
            |bytes| {
                inline.extend_from_slice(bytes);
                Ok(())
            },
        )?;
    } else if small {
        collect_staged(gpu, graph, &stage, outputs)?;
    } else {
        parent.send(&Reply::Stage(Stage::Collecting))?;
        for (output, file) in graph.outputs.iter().zip(outputs) {
            collect(gpu, &buffers.0[position(output.buffer)], &stage, file)?;
        }
    }
    // Kept for the tenant's next outputs: making one costs more than using it.
    gpu.stage = Some(stage);
    let lengths = graph.outputs.iter().map(|output| graph.output_size(output));
    Ok((List::truncated(lengths.collect()), List::truncated(inline)))
}

/// Holds the state against the graph that it is of.
fn admit_state(order: &Order<'_>) -> Result<(), Fault> {
    let buffers = order.graph.state().count();
    let has_state = order.checkpoints || order.done > 0;
    let is_whole = order.state.len() == buffers && buffers > 0;
    if order.done < order.graph.dispatches() && (is_whole || !has_state) {
        return Ok(());
    }
    let detail = format!(
        "{} files came for a state of {buffers} buffers after {} dispatches",
        order.state.len(),
        order.done
    );
    Err(Fault::new(Failure::InvalidSpec, detail))
}

/// Holds the graph against this device before anything touches it.
fn admit(graph: &Graph, gpu: &Gpu, memory_max: u64) -> Result<(), Fault> {
    let offers = gpu.adapter().offers(&graph.features);
    offers.map_err(|detail| Fault::new(Failure::MissingFeature, detail))?;
    let limits = &gpu.limits;
    fits(
        graph.buffer_bytes(),
        memory_max,
        "bytes of all buffers".to_owned(),
    )?;
    for buffer in &graph.buffers {
        let what = || format!("bytes of buffer `{}` on this adapter", &*buffer.name);
        fits(buffer.size, limits.max_buffer_size, what())?;
    }
    for pass in &graph.passes {
        for binding in &pass.bindings {
            let Some(buffer) = graph.buffer(*binding) else {
                continue;
            };
            let what = || format!("bytes of buffer `{}` in one binding", &*buffer.name);
            fits(buffer.size, limits.max_storage_buffer_binding_size, what())?;
        }
        for count in pass.workgroups {
            let allowed = u64::from(limits.max_compute_workgroups_per_dimension);
            fits(
                u64::from(count),
                allowed,
                "workgroups in a dimension".to_owned(),
            )?;
        }
    }
    Ok(())
}

/// Holds what the passes share in a workgroup against this device.
fn admit_workgroups(graph: &Graph, gpu: &Gpu, used: &[shader::Used]) -> Result<(), Fault> {
    let allowed = u64::from(gpu.limits.max_compute_workgroup_storage_size);
    for (pass, used) in graph.passes.iter().zip(used) {
        let what = || {
            format!(
                "bytes of workgroup variables of `{}` on this adapter",
                &*pass.entry
            )
        };
        fits(used.workgroup_bytes, allowed, what())?;
    }
    Ok(())
}

fn fits(asked: u64, allowed: u64, what: String) -> Result<(), Fault> {
    if asked <= allowed {
        return Ok(());
    }
    let detail = format!("{what}: {asked} asked, {allowed} allowed");
    Err(Fault::new(Failure::TooLarge { asked, allowed }, detail))
}

/// The graph's program, and whether it was compiled before.
fn compile(gpu: &mut Gpu, graph: &Graph, parent: &mut WorkerEnd) -> Result<(Program, bool), Fault> {
    let mut hasher = blake3::Hasher::new();
    // Encoded lists say how long they are, so no two graphs give equal bytes.
    hasher.update(&suanli_protocol::wire::encode(&graph.features));
    hasher.update(&suanli_protocol::wire::encode(&graph.passes));
    hasher.update(graph.source.as_bytes());
    let key = hasher.finalize();
    if let Some(known) = gpu.programs.get(&key) {
        return Ok((known, true));
    }
    parent.send(&Reply::Stage(Stage::Compiling))?;
    // A cached program passed this check with buffers of other sizes; the
    // device checks those again when they are bound.
    let program = build(gpu, graph, Whose::Tenants)?;
    gpu.programs.put(key, program.clone(), graph.source.len());
    Ok((program, false))
}

/// Who wrote a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// A stranger: its loops end, and what it did not write reads as zero.
    Tenants,
    /// We: neither is needed, and each costs time in every group. Bounds are checked.
    Ours,
}

/// Checks a graph's source against its passes, and compiles it.
pub(crate) fn build(gpu: &Gpu, graph: &Graph, whose: Whose) -> Result<Program, Fault> {
    let checked = shader::check(graph).map_err(invalid_shader)?;
    admit_workgroups(graph, gpu, &checked.used)?;
    let source = wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(checked.module)),
    };
    let module = gpu.scoped(Failure::InvalidShader, || match whose {
        Whose::Tenants => gpu.device.create_shader_module(source),
        Whose::Ours => {
            let checks = wgpu::ShaderRuntimeChecks {
                force_loop_bounding: false,
                ..wgpu::ShaderRuntimeChecks::checked()
            };
            // SAFETY: all that is left out is that loops which never end are ended, and ours
            // end: each counts up to, or down from, a number that it does not change.
            unsafe { gpu.device.create_shader_module_trusted(source, checks) }
        }
    })?;
    let mut steps = Vec::<Step>::with_capacity(graph.passes.len());
    for (pass, used) in graph.passes.iter().zip(checked.used) {
        let pipeline = match steps.get(used.same_as) {
            Some(same) => same.pipeline.clone(),
            None => pipeline(gpu, &module, pass, whose)?,
        };
        steps.push(Step {
            pipeline,
            used: used.bindings,
        });
    }
    Ok(Program(steps))
}

fn pipeline(
    gpu: &Gpu,
    module: &wgpu::ShaderModule,
    pass: &Pass,
    whose: Whose,
) -> Result<wgpu::ComputePipeline, Fault> {
    let constants = pass.constants.iter();
    let constants = constants
        .map(|constant| (&*constant.name, f64::from_bits(constant.bits)))
        .collect::<Vec<_>>();
    gpu.scoped(Failure::InvalidShader, || {
        gpu.device
            .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: None,
                module,
                entry_point: Some(&pass.entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &constants,
                    zero_initialize_workgroup_memory: whose == Whose::Tenants,
                },
                cache: None,
            })
    })
}

fn allocate(gpu: &Gpu, graph: &Graph) -> Result<Buffers, Fault> {
    let mut buffers = Buffers(Vec::with_capacity(graph.buffers.len()));
    for buffer in &graph.buffers {
        buffers.0.push(gpu.scoped(Failure::OutOfMemory, || {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: buffer.size,
                usage: BufferUsages::STORAGE
                    | BufferUsages::UNIFORM
                    | BufferUsages::COPY_SRC
                    | BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })?);
    }
    Ok(buffers)
}

fn fill(gpu: &Gpu, graph: &Graph, buffers: &Buffers, inputs: &[File]) -> Result<(), Fault> {
    for (buffer, target) in graph.buffers.iter().zip(&buffers.0) {
        match &buffer.content {
            Content::Inline(bytes) => {
                let mut padded = bytes.to_vec();
                padded.resize(bytes.len().next_multiple_of(4), 0);
                gpu.scoped(Failure::Internal, || {
                    gpu.queue.write_buffer(target, 0, &padded)
                })?;
            }
            Content::Input {
                index,
                offset,
                length,
            } => {
                fill_from(gpu, target, &inputs[position(*index)], *offset, *length)?;
            }
            Content::Zeroed => {}
        }
    }
    Ok(())
}

fn fill_from(
    gpu: &Gpu,
    target: &wgpu::Buffer,
    input: &File,
    offset: u64,
    length: u64,
) -> Result<(), Fault> {
    let mut chunk = vec![0; position64(CHUNK_BYTES.min(length.next_multiple_of(4)))];
    let mut done = 0;
    while done < length {
        let bytes = CHUNK_BYTES.min(length - done);
        let (used, padded) = (position64(bytes), position64(bytes.next_multiple_of(4)));
        chunk[used..padded].fill(0);
        input
            .read_exact_at(&mut chunk[..used], offset + done)
            .map_err(|error| {
                Fault::new(Failure::InvalidSpec, format!("reading an input: {error}"))
            })?;
        gpu.scoped(Failure::Internal, || {
            gpu.queue.write_buffer(target, done, &chunk[..padded])
        })?;
        done += bytes;
        if (done / CHUNK_BYTES).is_multiple_of(CHUNKS_MAX) {
            // Staging memory is freed only when its copy has run.
            gpu.run(
                gpu.device
                    .create_command_encoder(&wgpu::CommandEncoderDescriptor::default()),
            )?;
        }
    }
    Ok(())
}

/// Fills the buffers of the checkpoint with what earlier dispatches left in them.
fn restore(gpu: &Gpu, order: &Order<'_>, buffers: &Buffers) -> Result<(), Fault> {
    let indices = order.graph.checkpoint.iter();
    let indices = indices.flat_map(|checkpoint| checkpoint.buffers.iter());
    for (index, file) in indices.zip(&order.state) {
        let buffer = &buffers.0[position(*index)];
        fill_from(gpu, buffer, file, 0, buffer.size())?;
    }
    Ok(())
}

/// A graph whose buffers are filled.
struct Work<'a> {
    gpu: &'a Gpu,
    order: &'a Order<'a>,
    program: &'a Program,
    buffers: &'a Buffers,
    /// Through which all is read back.
    stage: &'a wgpu::Buffer,
    /// Whether the last submission copies the outputs into the stage: another one
    /// would cost as much as all that a small job does.
    stages_outputs: bool,
}

/// When a checkpoint is due: at multiples of a number of dispatches, if the parent
/// has taken over the one before.
struct Due {
    every: u64,
    has_room: bool,
}

impl Due {
    fn at(&self, done: u64) -> bool {
        self.has_room && done.is_multiple_of(self.every)
    }

    /// Dispatches until the next.
    fn after(&self, done: u64) -> u32 {
        if !self.has_room {
            return u32::MAX;
        }
        u32::try_from(self.every - done % self.every).unwrap_or(u32::MAX)
    }
}

impl Work<'_> {
    /// Runs all passes from where they are, and counts how long the device was busy.
    fn dispatch(&self, used: &mut Used, parent: &mut WorkerEnd) -> Result<(), Fault> {
        let (gpu, order) = (self.gpu, self.order);
        let total = order.graph.dispatches();
        let checkpoint = order.graph.checkpoint.as_ref();
        let mut due = Due {
            every: checkpoint.map_or(u64::MAX, |checkpoint| checkpoint.every),
            has_room: false,
        };
        let (mut done, mut busy, mut told) = (0, Duration::ZERO, Instant::now());
        for (pass, step) in order.graph.passes.iter().zip(&self.program.0) {
            let before = order.done.saturating_sub(done).min(pass.repeat.into());
            done += before;
            let (mut left, mut slice) = (pass.repeat - u32::try_from(before).unwrap_or(0), 1);
            if left == 0 {
                continue;
            }
            let buffer = |slot: usize| &self.buffers.0[position(pass.bindings[slot])];
            let bound = step.bind(gpu, buffer)?;
            while left > 0 {
                match word(parent)? {
                    Some(Word::Cancel) => {
                        let detail = "stopped between two dispatches";
                        return Err(Fault::new(Failure::Cancelled, detail));
                    }
                    Some(Word::Room) => due.has_room = order.checkpoints,
                    None => {}
                }
                let count = slice.min(left).min(due.after(done));
                left -= count;
                done += u64::from(count);
                let took = self.slice(pass, step, bound.as_ref(), count, done == total)?;
                busy += took;
                used.gpu_us = micros(busy);
                // A slice that was cut short says nothing of longer ones.
                if count == slice || took > SLICE_TARGET {
                    slice = next_slice(count, took);
                }
                if done < total && due.at(done) {
                    self.keep(done, *used, parent)?;
                    due.has_room = false;
                }
                // The end is told by the last word itself.
                let is_step = left == 0 || told.elapsed() >= PROGRESS_INTERVAL;
                if is_step && done < total {
                    let used = *used;
                    parent.send(&Reply::Progress { done, total, used })?;
                    told = Instant::now();
                }
            }
        }
        Ok(())
    }

    /// Runs so many dispatches; how long the device was busy.
    fn slice(
        &self,
        pass: &Pass,
        step: &Step,
        bound: Option<&wgpu::BindGroup>,
        count: u32,
        is_last: bool,
    ) -> Result<Duration, Fault> {
        let (gpu, graph) = (self.gpu, self.order.graph);
        let clock = gpu.clock_of(graph);
        let encoder = slice_of(gpu, pass, step, bound, count, clock)?;
        let encoder = if is_last && self.stages_outputs {
            copy_outputs(gpu, graph, self.buffers, self.stage, encoder)?
        } else {
            encoder
        };
        match clock {
            Some(clock) => clock.busy(gpu.run_and(encoder, || clock.ask())?),
            None => gpu.run(encoder),
        }
    }

    /// Writes the state to where the parent reads it.
    fn keep(&self, done: u64, used: Used, parent: &mut WorkerEnd) -> Result<(), Fault> {
        let indices = self.order.graph.checkpoint.iter();
        let indices = indices.flat_map(|checkpoint| checkpoint.buffers.iter());
        for (index, file) in indices.zip(&self.order.state) {
            let buffer = &self.buffers.0[position(*index)];
            collect(self.gpu, buffer, self.stage, file)?;
        }
        parent.send(&Reply::Checkpoint { done, used })?;
        Ok(())
    }
}

fn slice_of(
    gpu: &Gpu,
    pass: &Pass,
    step: &Step,
    bound: Option<&wgpu::BindGroup>,
    count: u32,
    clock: Option<&Clock>,
) -> Result<wgpu::CommandEncoder, Fault> {
    gpu.scoped(Failure::InvalidShader, || {
        let mut encoder = gpu
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut compute = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: None,
            timestamp_writes: clock.map(Clock::around),
        });
        compute.set_pipeline(&step.pipeline);
        if let Some(group) = bound {
            compute.set_bind_group(0, group, &[]);
        }
        let [x, y, z] = pass.workgroups;
        for _ in 0..count {
            compute.dispatch_workgroups(x, y, z);
        }
        drop(compute);
        if let Some(clock) = clock {
            clock.note(&mut encoder);
        }
        encoder
    })
}

/// Adds copies of all outputs, one behind the other.
fn copy_outputs(
    gpu: &Gpu,
    graph: &Graph,
    buffers: &Buffers,
    stage: &wgpu::Buffer,
    mut encoder: wgpu::CommandEncoder,
) -> Result<wgpu::CommandEncoder, Fault> {
    gpu.scoped(Failure::Internal, || {
        let mut offset = 0;
        for output in graph.outputs.iter() {
            let buffer = &buffers.0[position(output.buffer)];
            encoder.copy_buffer_to_buffer(buffer, 0, stage, offset, buffer.size());
            offset += buffer.size();
        }
        encoder
    })
}

fn next_slice(slice: u32, took: Duration) -> u32 {
    if took > SLICE_TARGET {
        (slice / 2).max(1)
    } else if took < SLICE_TARGET / 2 {
        (slice * 2).min(SLICE_MAX)
    } else {
        slice
    }
}

/// The buffer through which outputs are read back.
fn stage(gpu: &mut Gpu) -> Result<wgpu::Buffer, Fault> {
    match gpu.stage.take() {
        Some(stage) => Ok(stage),
        None => gpu.scoped(Failure::OutOfMemory, || {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: CHUNK_BYTES,
                usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        }),
    }
}

/// Writes outputs that lie in the stage, one behind the other, into their files.
fn collect_staged(
    gpu: &Gpu,
    graph: &Graph,
    stage: &wgpu::Buffer,
    files: &[File],
) -> Result<(), Fault> {
    read_stage(
        gpu,
        stage,
        graph.output_bytes(),
        || (),
        |bytes| {
            let mut rest = bytes;
            for (output, file) in graph.outputs.iter().zip(files) {
                let size = position64(graph.output_size(output)).min(rest.len());
                let (own, others) = rest.split_at(size);
                file.write_all_at(own, 0)?;
                rest = others;
            }
            Ok(())
        },
    )
}

/// Copies a buffer into a file of just its size, piece by piece.
fn collect(
    gpu: &Gpu,
    buffer: &wgpu::Buffer,
    stage: &wgpu::Buffer,
    file: &File,
) -> Result<(), Fault> {
    let mut done = 0;
    while done < buffer.size() {
        let bytes = CHUNK_BYTES.min(buffer.size() - done);
        let copy = || {
            let mut encoder = gpu
                .device
                .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(buffer, done, stage, 0, bytes);
            gpu.queue.submit([encoder.finish()]);
        };
        read_stage(gpu, stage, bytes, copy, |piece| {
            file.write_all_at(piece, done)
        })?;
        done += bytes;
    }
    Ok(())
}

/// Waits for what `begin` submits, and hands the first bytes of the stage over.
fn read_stage(
    gpu: &Gpu,
    stage: &wgpu::Buffer,
    bytes: u64,
    begin: impl FnOnce(),
    write: impl FnOnce(&[u8]) -> std::io::Result<()>,
) -> Result<(), Fault> {
    let lost = |reason: String| Fault::new(Failure::DeviceLost, reason);
    let mapped = gpu.scoped(Failure::Internal, || {
        begin();
        stage.slice(..bytes).map_async(wgpu::MapMode::Read, |_| {});
        gpu.device.poll(PollType::wait_indefinitely())
    })?;
    mapped.map_err(|error| lost(error.to_string()))?;
    let view = stage
        .slice(..bytes)
        .get_mapped_range()
        .map_err(|error| lost(error.to_string()))?;
    let written = write(&view);
    drop(view);
    stage.unmap();
    written.map_err(|error| Fault::new(Failure::Internal, format!("writing an output: {error}")))
}

fn position64(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
