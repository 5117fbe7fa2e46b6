//! The same kernels and loops as in a worker, with nothing around them: what
//! benchmarks hold the executor's figures against.
//!
//! ```text
//! bare wasm MODULE                 plain wasmtime, as it comes
//! bare wasm-fuel MODULE            with fuel and canonical NaNs, as here
//! bare wgsl SOURCE GROUPS REPEAT   plain wgpu: buffer 0 of 4 bytes, entry `main`
//! bare wgsl-unchecked …            without bounds checks and loop bounds
//! ```
//!
//! Prints the microseconds of the second run; the first warms everything.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that fails has nothing to say"
)]

use std::time::{Duration, Instant};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let took = match arguments[..] {
        ["wasm", module] => wasm(module, false),
        ["wasm-fuel", module] => wasm(module, true),
        ["wgsl", source, groups, repeat] => wgsl(source, groups, repeat, true),
        ["wgsl-unchecked", source, groups, repeat] => wgsl(source, groups, repeat, false),
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
