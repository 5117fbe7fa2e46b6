//! One execution: a graph over an open device.
//!
//! Check → compile → fill buffers → dispatch in slices → read back. Between
//! slices the worker looks for a cancel and tells its progress; inside one
//! only the parent's deadline helps. Buffers are destroyed at the end however
//! it ends; compiled programs stay for the same tenant's next execution.

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

use crate::{Fault, cpu_time, device::Gpu, invalid_shader, is_cancelled, micros, position, shader};

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
    pub(crate) memory_max: u64,
}

/// A compiled pipeline per pass.
#[derive(Clone)]
pub(crate) struct Program(Vec<Step>);

#[derive(Clone)]
struct Step {
    pipeline: wgpu::ComputePipeline,
    used: Vec<u32>,
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
    admit(graph, gpu, order.memory_max)?;
    let (program, known) = compile(gpu, graph, parent)?;
    if !inputs.is_empty() {
        parent.send(&Reply::Stage(Stage::Loading))?;
    }
    let buffers = allocate(gpu, graph)?;
    fill(gpu, graph, &buffers, inputs)?;
    if !known || !inputs.is_empty() {
        parent.send(&Reply::Stage(Stage::Running))?;
    }
    let stage = stage(gpu)?;
    let small = graph.output_bytes() <= CHUNK_BYTES;
    dispatch(
        gpu,
        graph,
        &program,
        &buffers,
        small.then_some(&stage),
        used,
        parent,
    )?;
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

/// Holds the graph against this device before anything touches it.
fn admit(graph: &Graph, gpu: &Gpu, memory_max: u64) -> Result<(), Fault> {
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
    hasher.update(&suanli_protocol::wire::encode(&graph.passes));
    hasher.update(graph.source.as_bytes());
    let key = hasher.finalize();
    if let Some(known) = gpu.programs.get(&key) {
        return Ok((known, true));
    }
    parent.send(&Reply::Stage(Stage::Compiling))?;
    // A cached program passed this check with buffers of other sizes; the
    // device checks those again when they are bound.
    let checked = shader::check(graph).map_err(invalid_shader)?;
    admit_workgroups(graph, gpu, &checked.used)?;
    let module = gpu.scoped(Failure::InvalidShader, || {
        gpu.device
            .create_shader_module(wgpu::ShaderModuleDescriptor {
                label: None,
                source: wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(checked.module)),
            })
    })?;
    let mut steps = Vec::<Step>::with_capacity(graph.passes.len());
    for (pass, used) in graph.passes.iter().zip(checked.used) {
        let pipeline = match steps.get(used.same_as) {
            Some(same) => same.pipeline.clone(),
            None => pipeline(gpu, &module, pass)?,
        };
        steps.push(Step {
            pipeline,
            used: used.bindings,
        });
    }
    let program = Program(steps);
    gpu.programs.put(key, program.clone(), graph.source.len());
    Ok((program, false))
}

fn pipeline(
    gpu: &Gpu,
    module: &wgpu::ShaderModule,
    pass: &Pass,
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
                    zero_initialize_workgroup_memory: true,
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

/// Runs all passes, and counts how long the device was busy. The last submission copies
/// the outputs into `stage`, if they fit: another one would cost as much as all
/// that a small job does.
fn dispatch(
    gpu: &Gpu,
    graph: &Graph,
    program: &Program,
    buffers: &Buffers,
    stage: Option<&wgpu::Buffer>,
    used: &mut Used,
    parent: &mut WorkerEnd,
) -> Result<(), Fault> {
    let total = graph.dispatches();
    let (mut done, mut busy, mut told) = (0, Duration::ZERO, Instant::now());
    for (pass, step) in graph.passes.iter().zip(&program.0) {
        let bound = bind(gpu, pass, step, buffers)?;
        let (mut left, mut slice) = (pass.repeat, 1);
        while left > 0 {
            if is_cancelled(parent)? {
                let detail = "stopped between two dispatches";
                return Err(Fault::new(Failure::Cancelled, detail));
            }
            let count = slice.min(left);
            left -= count;
            done += u64::from(count);
            let encoder = slice_of(gpu, pass, step, bound.as_ref(), count)?;
            let encoder = match stage {
                Some(stage) if done == total => copy_outputs(gpu, graph, buffers, stage, encoder)?,
                Some(_) | None => encoder,
            };
            let took = gpu.run(encoder)?;
            busy += took;
            used.gpu_us = micros(busy);
            slice = next_slice(slice, took);
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

fn bind(
    gpu: &Gpu,
    pass: &Pass,
    step: &Step,
    buffers: &Buffers,
) -> Result<Option<wgpu::BindGroup>, Fault> {
    if step.used.is_empty() {
        return Ok(None);
    }
    let entry = |binding: &u32| wgpu::BindGroupEntry {
        binding: *binding,
        resource: buffers.0[position(pass.bindings[position(*binding)])].as_entire_binding(),
    };
    let entries = step.used.iter().map(entry).collect::<Vec<_>>();
    let group = gpu.scoped(Failure::InvalidShader, || {
        gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &step.pipeline.get_bind_group_layout(0),
            entries: &entries,
        })
    })?;
    Ok(Some(group))
}

fn slice_of(
    gpu: &Gpu,
    pass: &Pass,
    step: &Step,
    bound: Option<&wgpu::BindGroup>,
    count: u32,
) -> Result<wgpu::CommandEncoder, Fault> {
    gpu.scoped(Failure::InvalidShader, || {
        let mut encoder = gpu
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut compute = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        compute.set_pipeline(&step.pipeline);
        if let Some(group) = bound {
            compute.set_bind_group(0, group, &[]);
        }
        let [x, y, z] = pass.workgroups;
        for _ in 0..count {
            compute.dispatch_workgroups(x, y, z);
        }
        drop(compute);
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
