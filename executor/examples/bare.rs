//! The same kernels and loops as in a worker, with nothing around them: what
//! benchmarks hold the executor's figures against.
//!
//! ```text
//! bare wasm MODULE                 plain wasmtime, as it comes
//! bare wasm-fuel MODULE            with fuel and canonical NaNs, as here
//! bare wgsl SOURCE GROUPS REPEAT   plain wgpu: buffer 0 of 4 bytes, entry `main`
//! bare wgsl-unchecked …            without bounds checks and loop bounds
//! bare product ROWS DEPTH COLUMNS THREADS
//!                                  a challenge's product on the processor, by the crate
//!                                  `matrixmultiply`; each thread makes as many rows
//! ```
//!
//! Prints the microseconds of the second run; the first warms everything.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that fails has nothing to say"
)]

use std::time::{Duration, Instant};

use suanli_protocol::challenge::{Challenge, Commitment, entry};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let took = match arguments[..] {
        ["wasm", module] => wasm(module, false),
        ["wasm-fuel", module] => wasm(module, true),
        ["wgsl", source, groups, repeat] => wgsl(source, groups, repeat, true),
        ["wgsl-unchecked", source, groups, repeat] => wgsl(source, groups, repeat, false),
        ["product", ref sides @ ..] => product(sides),
        _ => panic!("see the source for what can be asked"),
    };
    println!("{}", took.as_micros());
}

fn wasm(module: &str, fuel: bool) -> Duration {
    let mut config = wasmtime::Config::new();
    config
        .consume_fuel(fuel)
        .cranelift_nan_canonicalization(fuel);
    let engine = wasmtime::Engine::new(&config).unwrap();
    let module = wasmtime::Module::new(&engine, std::fs::read(module).unwrap()).unwrap();
    let run = || {
        let began = Instant::now();
        let mut store = wasmtime::Store::new(&engine, ());
        if fuel {
            store.set_fuel(u64::MAX / 2).unwrap();
        }
        let instance = wasmtime::Instance::new(&mut store, &module, &[]).unwrap();
        let start = instance
            .get_typed_func::<(), ()>(&mut store, "_start")
            .unwrap();
        start.call(&mut store, ()).unwrap();
        began.elapsed()
    };
    run();
    run()
}

fn wgsl(source: &str, groups: &str, repeat: &str, checked: bool) -> Duration {
    let source = std::fs::read_to_string(source).unwrap();
    let (groups, repeat): (u32, u32) = (groups.parse().unwrap(), repeat.parse().unwrap());
    let (device, queue) = device();
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(source.into()),
    };
    let module = if checked {
        device.create_shader_module(descriptor)
    } else {
        // SAFETY: the kernel is the benchmark's own; it stays within its buffer.
        unsafe {
            device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        }
    };
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 4,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[wgpu::BindGroupEntry {
            binding: 0,
            resource: buffer.as_entire_binding(),
        }],
    });
    let run = || {
        let began = Instant::now();
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        for _ in 0..repeat {
            pass.dispatch_workgroups(groups, 1, 1);
        }
        drop(pass);
        queue.submit([encoder.finish()]);
        device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        began.elapsed()
    };
    run();
    run()
}

/// Held against the check that clients make, so that it is the same work.
fn product(sides: &[&str]) -> Duration {
    let sides: Vec<u32> = sides.iter().map(|side| side.parse().unwrap()).collect();
    let [rows, depth, columns, threads] = sides[..] else {
        panic!("see the source for what can be asked");
    };
    let challenge = Challenge {
        rows,
        depth,
        columns,
        seed: *b"the bare product",
    };
    let [a0, a1, b0, b1] = challenge.words();
    let a: Vec<f32> = (0..rows * depth).map(|n| entry(n, a0, a1)).collect();
    let b: Vec<f32> = (0..depth * columns).map(|n| entry(n, b0, b1)).collect();
    let [depth, columns] = [depth, columns].map(|side| usize::try_from(side).unwrap());
    let mut c = vec![0_f32; usize::try_from(rows).unwrap() * columns];
    let band = usize::try_from(rows.div_ceil(threads)).unwrap();
    let mut run = || {
        let began = Instant::now();
        std::thread::scope(|scope| {
            for (a, c) in a.chunks(band * depth).zip(c.chunks_mut(band * columns)) {
                let b = &b;
                scope.spawn(move || multiply(a, b, c, [depth, columns]));
            }
        });
        began.elapsed()
    };
    run();
    let took = run();
    let bytes = c.iter().flat_map(|n| n.to_le_bytes()).collect();
    let commitment = Commitment::new(challenge, bytes).unwrap();
    let open = *b"what to open now";
    let opening = commitment.open(open);
    challenge.verify(commitment.root(), open, &opening).unwrap();
    took
}

/// C = A·B, by rows.
fn multiply(a: &[f32], b: &[f32], c: &mut [f32], [depth, columns]: [usize; 2]) {
    let rows = a.len() / depth;
    assert_eq!((b.len(), c.len()), (depth * columns, rows * columns));
    let step = |columns: usize| isize::try_from(columns).unwrap();
    // SAFETY: with these steps between rows it stays within the three slices, whose
    // lengths were looked at, and writes only the one that is ours alone.
    unsafe {
        matrixmultiply::sgemm(
            rows,
            depth,
            columns,
            1.0,
            a.as_ptr(),
            step(depth),
            1,
            b.as_ptr(),
            step(columns),
            1,
            0.0,
            c.as_mut_ptr(),
            step(columns),
            1,
        );
    }
}

fn device() -> (wgpu::Device, wgpu::Queue) {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let options = wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..Default::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let adapter = instance.request_adapter(&options).await.unwrap();
        let descriptor = wgpu::DeviceDescriptor::default();
        adapter.request_device(&descriptor).await.unwrap()
    })
}
