//! What an execution costs beside its work: starts, warm and cold, and the price
//! of sandbox and fuel.
//!
//! The executor runs in this process with one warmed worker. Beside it, in turns:
//! the same kernel and the same loop in a bare program (executor's example
//! `bare`), a challenge's product by a library for processors, and other sandboxes
//! around a program that does nothing, where they are installed. Absent: nodes,
//! agreements (see `overhead`).

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use suanli_executor::{
    ExecutionEvent, ExecutionId, ExecutionRequest, Executor, ExecutorConfig, InputSource, Program,
    Template, Tenant, Usage,
    command::{Command, SIEVE},
    file::InputFile,
    kernels::{self, Kernel},
    spec::{Buffer, Content, Graph, Output, Pass},
};
use suanli_protocol::{
    challenge::Challenge,
    wire::{List, Utf8},
};
use tokio::sync::mpsc;

use super::{
    device,
    figures::{Aim, Figure, Report},
    machine::{self, Watch},
};

const NOTHING_WGSL: &str = "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(1) fn main() { out[0] = 7u; }";

/// Under the 65,535 iterations after which software drivers stop.
const KERNEL: &str = "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) at: vec3u) {
    var x = at.x;
    for (var i = 0u; i < 60000u; i++) { x = x * 1664525u + 1013904223u; }
    if (x == 1u) { out[0] = x; }
}";
const KERNEL_GROUPS: u32 = 256;
const KERNEL_REPEAT: u32 = 8;

const NOTHING_WAT: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;

/// Of the sieve: about half a second.
const ROUNDS: &str = "1000";

/// So many products more, to know what one takes.
const PRODUCTS: u32 = 4;
/// Operations of a product that a processor takes seconds for.
const LONG_PRODUCT: u64 = 100_000_000_000;

/// A started execution may cost this much beyond its work.
const AIM_START_MS: f64 = 1.0;
/// A long execution may take so much longer than a bare one.
const AIM_OVERHEAD_PERCENT: f64 = 2.0;
const TENANT: Tenant = Tenant([1; 32]);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(super) struct Plan {
    /// Starts of each kind
    #[arg(long, default_value_t = 200)]
    starts: u32,
    /// Long executions, and bare ones in turns with them
    #[arg(long, default_value_t = 7)]
    turns: u32,
    /// The program without a sandbox; without it nothing is compared
    #[arg(long, value_name = "FILE")]
    bare: Option<PathBuf>,
}

/// Runs it, with files in `dir`.
pub(super) async fn run(plan: Plan, dir: &Path) -> anyhow::Result<Report> {
    let watch = Watch::begin();
    let config = ExecutorConfig {
        pool_size: 1,
        ..ExecutorConfig::default()
    };
    let (executor, events) = Executor::start(config).await?;
    let mut bench = Bench {
        executor,
        events,
        dir: dir.to_owned(),
        next: 0,
    };
    let mut figures = bench.warm(plan.starts).await?;
    figures.extend(bench.cold(plan.starts.min(50)).await?);
    match &plan.bare {
        Some(bare) => {
            figures.extend(bench.long(bare, plan.turns).await?);
            figures.extend(bench.product(bare, plan.turns).await?);
        }
        None => figures.push(Figure::skipped(
            "sandbox, long kernel",
            "%",
            "no bare program",
        )),
    }
    bench.executor.stop().await;
    Ok(Report {
        bench: "executor",
        figures,
        state: watch.end(),
    })
}

struct Bench {
    executor: Executor,
    events: mpsc::Receiver<ExecutionEvent>,
    dir: PathBuf,
    next: u64,
}

/// One execution, seen from outside.
struct Ran {
    /// Until a worker had it.
    taken: Duration,
    all: Duration,
    usage: Usage,
    worker: u32,
}

/// Something to run, and its module if it is one.
struct Job {
    program: Program,
    module: Option<PathBuf>,
}

impl Bench {
    async fn run(&mut self, job: &Job) -> anyhow::Result<Ran> {
        self.next += 1;
        let id = ExecutionId(self.next);
        let inputs = job.module.iter().map(File::open);
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let began = Instant::now();
        self.executor.run(ExecutionRequest {
            id,
            tenant: TENANT,
            runtime: job.program.runtime(),
            spec: Template::single(job.program.clone()).into(),
            unit: 0,
            inputs: inputs.into_iter().map(InputSource::File).collect(),
            run_limit: Duration::from_secs(60),
            memory_max: 4 << 30,
            fuel_max: u64::MAX,
            output_bytes_max: 1 << 28,
            fresh: false,
            outputs_dir: self.dir.clone(),
            checkpoint_every: None,
            resume: None,
        })?;
        let (mut taken, mut worker) = (Duration::ZERO, 0);
        loop {
            match self.events.recv().await.context("the executor is gone")? {
                ExecutionEvent::Started { worker_pid, .. } => {
                    (taken, worker) = (began.elapsed(), worker_pid);
                }
                ExecutionEvent::Finished { usage, .. } => {
                    return Ok(Ran {
                        taken,
                        all: began.elapsed(),
                        usage,
                        worker,
                    });
                }
                ExecutionEvent::Failed { detail, .. } => bail!(detail),
                ExecutionEvent::Progress { .. }
                | ExecutionEvent::Checkpoint { .. }
                | ExecutionEvent::Log { .. } => {}
            }
        }
    }

    async fn warm(&mut self, starts: u32) -> anyhow::Result<Vec<Figure>> {
        let (wgsl, wasm) = (
            graph(NOTHING_WGSL, 1, 1),
            self.command("nothing", NOTHING_WAT)?,
        );
        let (mut kernel, mut module, mut taken, mut worker) = (vec![], vec![], vec![], 0);
        self.run(&wgsl).await?;
        self.run(&wasm).await?;
        for _ in 0..starts {
            let ran = self.run(&wgsl).await?;
            kernel.push(ms(ran.all) - micros_as_ms(ran.usage.gpu_us));
            taken.push(ms(ran.taken));
            module.push(ms(self.run(&wasm).await?.all));
            worker = ran.worker;
        }
        let memory = machine::parts_mib(worker);
        let split = memory.map_or_else(String::new, |parts| {
            format!(
                "{:.0} MiB written by it, {:.0} of drivers and libraries, {:.0} of its program; what is not written, workers share",
                parts.written, parts.libraries, parts.program
            )
        });
        Ok(vec![
            Figure::of("wgsl, warm start beyond its work", "ms", kernel)
                .aim(Aim::Below(AIM_START_MS)),
            Figure::of("wasm, warm start", "ms", module).aim(Aim::Below(AIM_START_MS)),
            Figure::of("until a warm worker has it", "ms", taken),
            Figure::of(
                "a warm worker's memory",
                "MiB",
                memory.iter().map(|parts| parts.all()).collect(),
            )
            .note(split),
            device::memory(),
            device::idle_watts(),
        ])
    }

    async fn cold(&mut self, starts: u32) -> anyhow::Result<Vec<Figure>> {
        let wasm = self.command("nothing", NOTHING_WAT)?;
        let input = input_file(&wasm)?;
        let program = self.executor.program().clone();
        let (mut compiles, mut opens) = (vec![], vec![]);
        let others: [(&str, &[&str]); 2] = [
            ("bwrap", &["--ro-bind", "/", "/", "--unshare-all", "true"]),
            ("runsc", &["--rootless", "--network=none", "do", "true"]),
        ];
        let mut beside = [Ok(vec![]), Ok(vec![])];
        for _ in 0..starts {
            let began = Instant::now();
            program
                .check(&wasm.program, std::slice::from_ref(&input))
                .await?;
            compiles.push(ms(began.elapsed()));
            let began = Instant::now();
            program.probe().await?;
            opens.push(ms(began.elapsed()));
            for ((name, arguments), samples) in others.iter().zip(&mut beside) {
                if let Ok(taken) = samples {
                    match timed(name, arguments) {
                        Ok(took) => taken.push(ms(took)),
                        Err(error) => *samples = Err(error),
                    }
                }
            }
        }
        let mut figures = vec![
            Figure::of("cold start, to a checked module and gone", "ms", compiles),
            Figure::of("cold start, to an open device and gone", "ms", opens),
        ];
        for ((name, _), samples) in others.iter().zip(beside) {
            let what = format!("{name} around `true`");
            figures.push(match samples {
                Ok(samples) => Figure::of(what, "ms", samples),
                Err(error) => Figure::skipped(what, "ms", &format!("{error:#}")),
            });
        }
        Ok(figures)
    }

    async fn long(&mut self, bare: &Path, turns: u32) -> anyhow::Result<Vec<Figure>> {
        let kernel = graph(KERNEL, KERNEL_GROUPS, KERNEL_REPEAT);
        let source = self.dir.join("kernel.wgsl");
        std::fs::write(&source, KERNEL)?;
        let module = self.command("loop", &SIEVE.replace("ROUNDS", ROUNDS))?;
        let path = module.module.clone().context("the loop's module")?;
        let (groups, repeat) = (KERNEL_GROUPS.to_string(), KERNEL_REPEAT.to_string());
        let kernel_of = |how: &str| {
            let arguments = [
                how.as_ref(),
                source.as_os_str(),
                groups.as_ref(),
                repeat.as_ref(),
            ];
            ask(bare, &arguments)
        };
        let loop_of = |how: &str| ask(bare, &[how.as_ref(), path.as_os_str()]);
        let mut samples: [Vec<f64>; 5] = Default::default();
        self.run(&kernel).await?;
        self.run(&module).await?;
        for _ in 0..turns {
            let sandboxed = ms(self.run(&kernel).await?.all);
            let plain = kernel_of("wgsl")?;
            let unchecked = kernel_of("wgsl-unchecked")?;
            samples[0].push(percent(sandboxed, plain));
            samples[1].push(percent(plain, unchecked));
            let sandboxed = ms(self.run(&module).await?.all);
            let (plain, fuelled) = (loop_of("wasm")?, loop_of("wasm-fuel")?);
            samples[2].push(percent(sandboxed, plain));
            samples[3].push(percent(sandboxed, fuelled));
            samples[4].push(sandboxed);
        }
        let [sandbox, checks, wasm, wasm_sandbox, took] = samples;
        Ok(vec![
            Figure::of("long kernel, over bare wgpu", "%", sandbox)
                .aim(Aim::Below(AIM_OVERHEAD_PERCENT)),
            Figure::of("long kernel, checked over unchecked", "%", checks)
                .note("bounds checks and loop bounds, in the bare program"),
            Figure::of("long loop, over plain wasmtime", "%", wasm)
                .aim(Aim::Below(AIM_OVERHEAD_PERCENT)),
            Figure::of("long loop, over wasmtime with fuel", "%", wasm_sandbox)
                .note("what the sandbox itself costs"),
            Figure::of("long loop", "ms", took),
        ])
    }

    /// The kernel that answers challenges, and a library for processors, at one size:
    /// what a challenge to this adapter would have.
    async fn product(&mut self, bare: &Path, turns: u32) -> anyhow::Result<Vec<Figure>> {
        let measured = kernels::measure(&self.executor, &mut self.events, &self.dir).await;
        let whole = measured.map_err(|error| anyhow!(error))?;
        let adapter = self.executor.adapter();
        let adapter = adapter.context("the product needs an adapter")?;
        let (software, memory) = (adapter.is_software(), adapter.memory_bytes);
        let challenge = Challenge::sized(whole, memory, *b"the shipped one.");
        let Challenge {
            rows,
            depth,
            columns,
            ..
        } = challenge;
        let once = kernels::product(&challenge, Kernel::of(software))?;
        let mut passes = once.passes.to_vec();
        if let Some(multiply) = passes.last_mut() {
            multiply.repeat += PRODUCTS;
        }
        let often = Graph {
            passes: List::truncated(passes),
            ..once.clone()
        };
        let [once, often] = [once, often].map(|graph| Job {
            program: graph.into(),
            module: None,
        });
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let sides = [rows, depth, columns].map(|side| side.to_string());
        let by_library = |threads: usize| {
            let threads = threads.to_string();
            let [rows, depth, columns] = &sides;
            let arguments = ["product", rows, depth, columns, &threads];
            ask(bare, &arguments.map(OsStr::new))
        };
        // Minutes on a processor for what takes a device a second.
        let turns = if challenge.operations() > LONG_PRODUCT {
            1
        } else {
            turns
        };
        let rate = |ms: f64| giga(challenge.operations()) / ms * 1000.0;
        let mut samples: [Vec<f64>; 3] = Default::default();
        for _ in 0..turns {
            let short = self.run(&once).await?.usage.gpu_us;
            let long = self.run(&often).await?.usage.gpu_us;
            let each = micros_as_ms(long.saturating_sub(short)) / f64::from(PRODUCTS);
            samples[0].push(rate(each));
            samples[1].push(rate(by_library(1)?));
            samples[2].push(rate(by_library(cores)?));
        }
        let [kernel, one, all] = samples;
        let size = format!("{rows} × {depth} × {columns}, FP32");
        Ok(vec![
            Figure::of("product, the shipped kernel alone", "GFLOP/s", kernel)
                .note(format!("{size}; the device's time for one product more")),
            Figure::one("product, end to end", "GFLOP/s", giga(whole)).note(
                "as a challenge sees it: order, factors, product, readback, commitment; the middle of three",
            ),
            Figure::of("product, crate matrixmultiply, one thread", "GFLOP/s", one)
                .note("on the processor, factors ready"),
            Figure::of(
                format!("product, crate matrixmultiply, {cores} threads"),
                "GFLOP/s",
                all,
            )
            .note("a band of rows for each thread"),
        ])
    }

    fn command(&self, name: &str, text: &str) -> anyhow::Result<Job> {
        let path = self.dir.join(format!("{name}.wasm"));
        std::fs::write(&path, wat::parse_str(text)?)?;
        let command = Command {
            module: 0,
            arguments: List::default(),
            variables: List::default(),
            stdin: None,
            files: List::default(),
            outputs: List::default(),
            stdout_max: 1024,
            stderr_max: 1024,
            memory_max: 16 << 20,
            fuel_max: u64::MAX / 2,
            clock_ns: 0,
            seed: 0,
        };
        Ok(Job {
            program: command.into(),
            module: Some(path),
        })
    }
}

fn graph(source: &str, groups: u32, repeat: u32) -> Job {
    let graph = Graph {
        source: Utf8::cut(source),
        features: List::default(),
        buffers: List::truncated(vec![Buffer {
            name: Utf8::cut("out"),
            content: Content::Zeroed,
            size: 4,
        }]),
        passes: List::truncated(vec![Pass {
            entry: Utf8::cut("main"),
            bindings: List::truncated(vec![0]),
            workgroups: [groups, 1, 1],
            repeat,
            constants: List::default(),
        }]),
        outputs: List::truncated(vec![Output {
            buffer: 0,
            name: Utf8::cut("out"),
        }]),
        checkpoint: None,
    };
    Job {
        program: graph.into(),
        module: None,
    }
}

fn input_file(job: &Job) -> anyhow::Result<InputFile> {
    let path = job.module.clone().context("the module")?;
    Ok(InputFile {
        length: path.metadata()?.len(),
        path,
        offset: 0,
        made: None,
    })
}

/// How long another program takes from its start to its end.
fn timed(name: &str, arguments: &[&str]) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut process = Process::new(name);
    process.args(arguments).stdin(Stdio::null());
    let output = process.output().context("not installed")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it fails here: {}", said.trim());
    Ok(began.elapsed())
}

/// The milliseconds that a bare program says.
fn ask(bare: &Path, arguments: &[&OsStr]) -> anyhow::Result<f64> {
    let output = Process::new(bare).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let micros: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    Ok(micros_as_ms(micros))
}

/// Thousands of millions.
fn giga(operations: u64) -> f64 {
    // Seconds hold as many nanoseconds.
    Duration::from_nanos(operations).as_secs_f64()
}

fn percent(one: f64, other: f64) -> f64 {
    (one / other - 1.0) * 100.0
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn micros_as_ms(micros: u64) -> f64 {
    ms(Duration::from_micros(micros))
}
