//! Kernels that ship with Suanli: the matrix product of capacity challenges.
//!
//! A challenge ([`suanli_protocol::challenge`]) becomes an ordinary job graph, which
//! ordinary workers run: two passes make the factors on the device, from the seed, so
//! that nothing has to travel there; a third multiplies them. On a device the product
//! is made in tiles of 128 × 128, staged in workgroup memory, 8 × 8 numbers to an
//! invocation. A software adapter does without (barriers cost it more than they save).
//!
//! [`measure`] takes the speed that an offer claims the way a challenge would take it:
//! through a worker, from the order to the committed product.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use suanli_protocol::{
    challenge::{Challenge, Commitment},
    registry::Runtime,
    wire::{List, Utf8},
};
use tokio::sync::mpsc;

use crate::{
    executor::{ExecutionEvent, ExecutionId, ExecutionRequest, Executor, Refusal, Tenant},
    ipc::{Adapter, Failure},
    spec::{Buffer, Constant, Content, Graph, Output, Pass, SpecError},
    units::Template,
};

const FACTORS: &str = include_str!("kernels/factors.wgsl");
const BLOCKED: &str = include_str!("kernels/product_blocked.wgsl");
const TILED: &str = include_str!("kernels/product_tiled.wgsl");
/// Rows and columns of a tile.
const TILE: u32 = 128;
/// Invocations of a workgroup that fills a factor.
const FILL: u64 = 64;
/// Workgroups in x; the rest is in y.
const WIDE: u64 = 16_384;
/// A measurement starts from here: operations per second of a slow processor.
const SLOW: u64 = 1_000_000_000;
/// Runs that are measured once the size is right. The middle one counts.
const RUNS: usize = 3;
/// Sizes that are tried until the time is about right.
const SIZES_MAX: usize = 4;

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Tiles in workgroup memory, for devices.
    Tiled,
    /// Straight from the buffers, for software adapters.
    Blocked,
}

impl Kernel {
    /// The one that is faster there.
    #[must_use]
    pub const fn of(software: bool) -> Self {
        if software { Self::Blocked } else { Self::Tiled }
    }
}

/// The job that answers a challenge. Its one output is the product, FP32 by rows.
///
/// # Errors
/// [`SpecError`] if the challenge is not valid.
pub fn product(challenge: &Challenge, kernel: Kernel) -> Result<Graph, SpecError> {
    let Challenge {
        rows,
        depth,
        columns,
        ..
    } = *challenge;
    if !challenge.is_valid() {
        return Err(SpecError::Rule(
            "a challenge that nobody may give".to_owned(),
        ));
    }
    let (a, b) = (bytes(rows, depth), bytes(depth, columns));
    let [a0, a1, b0, b1] = challenge.words();
    let constants = |words: [(&str, u32); 4]| {
        List::truncated(words.map(|(name, word)| constant(name, word)).to_vec())
    };
    let fill = |buffer, bytes: u64, [first, second]: [u32; 2]| Pass {
        entry: Utf8::cut("fill"),
        bindings: List::truncated(vec![buffer]),
        workgroups: wide((bytes / 16).div_ceil(FILL)),
        repeat: 1,
        constants: constants([
            ("DEPTH", depth),
            ("COLUMNS", columns),
            ("FIRST", first),
            ("SECOND", second),
        ]),
    };
    let (source, tile) = match kernel {
        Kernel::Tiled => (tiled(), [TILE, TILE]),
        Kernel::Blocked => (BLOCKED.to_owned(), [32, 32]),
    };
    let multiply = Pass {
        entry: Utf8::cut("multiply"),
        bindings: List::truncated(vec![0, 1, 2]),
        workgroups: [columns / tile[0], rows / tile[1], 1],
        repeat: 1,
        constants: constants([
            ("DEPTH", depth),
            ("COLUMNS", columns),
            ("FIRST", 0),
            ("SECOND", 0),
        ]),
    };
    let buffer = |name, size| Buffer {
        name: Utf8::cut(name),
        content: Content::Zeroed,
        size,
    };
    let graph = Graph {
        source: Utf8::cut(&format!("{FACTORS}{source}")),
        features: List::default(),
        buffers: List::truncated(vec![
            buffer("a", a),
            buffer("b", b),
            buffer("c", bytes(rows, columns)),
        ]),
        passes: List::truncated(vec![fill(0, a, [a0, a1]), fill(1, b, [b0, b1]), multiply]),
        outputs: List::truncated(vec![Output {
            buffer: 2,
            name: Utf8::cut("product"),
        }]),
        checkpoint: None,
    };
    graph.validate()?;
    Ok(graph)
}

/// The kernel for devices, with its unrolled lines.
fn tiled() -> String {
    const ROWS: [(&str, &str); 8] = [
        ("lo", "x"),
        ("lo", "y"),
        ("lo", "z"),
        ("lo", "w"),
        ("hi", "x"),
        ("hi", "y"),
        ("hi", "z"),
        ("hi", "w"),
    ];
    let each = |line: &dyn Fn(usize) -> String| -> String { (0..8).map(line).collect() };
    let sums = each(&|row| format!("var l{row} = vec4<f32>(); var r{row} = vec4<f32>();\n"));
    let products = each(&|k| {
        let at = k * 32;
        let rows = ROWS.iter().enumerate().map(|(row, (of, part))| {
            format!(
                "l{row} = fma(vec4({of}.{part}), l, l{row}); r{row} = fma(vec4({of}.{part}), r, r{row});\n"
            )
        });
        let rows: String = rows.collect();
        format!(
            "{{ let lo = tile_a[{at}u + local.y * 2u]; let hi = tile_a[{at}u + local.y * 2u + 1u];\n\
             let l = tile_b[{at}u + local.x]; let r = tile_b[{at}u + local.x + 16u];\n{rows}}}\n"
        )
    });
    let stores = each(&|row| {
        format!("c[out + {row}u * columns] = l{row}; c[out + {row}u * columns + 16u] = r{row};\n")
    });
    TILED
        .replace("UNROLLED_SUMS", &sums)
        .replace("UNROLLED_PRODUCTS", &products)
        .replace("UNROLLED_STORES", &stores)
}

/// What a challenge's answer takes of a provider.
#[must_use]
pub fn memory_bytes(challenge: &Challenge) -> u64 {
    let Challenge {
        rows,
        depth,
        columns,
        ..
    } = *challenge;
    bytes(rows, depth) + bytes(depth, columns) + bytes(rows, columns)
}

/// The request for a product, under the name that events will have.
///
/// # Errors
/// [`Refusal`] if the challenge is not valid.
pub fn request(
    id: ExecutionId,
    challenge: &Challenge,
    software: bool,
    run_limit: Duration,
    outputs_dir: &Path,
) -> Result<ExecutionRequest, Refusal> {
    let refused = |error: SpecError| Refusal {
        failure: Failure::InvalidSpec,
        detail: error.to_string(),
    };
    let graph = product(challenge, Kernel::of(software)).map_err(refused)?;
    // Everybody's challenges have one tenant: there is nothing of anybody's in them.
    Ok(ExecutionRequest {
        id,
        tenant: Tenant(*b"suanli capacity challenge tenant"),
        runtime: Runtime::WGSL,
        spec: Template::single(graph).into(),
        unit: 0,
        inputs: Vec::new(),
        run_limit,
        memory_max: memory_bytes(challenge),
        fuel_max: 0,
        output_bytes_max: challenge.product_bytes(),
        fresh: false,
        outputs_dir: outputs_dir.to_owned(),
        checkpoint_every: None,
        resume: None,
    })
}

/// The product that an execution of [`request`] left, bound to its root.
///
/// # Errors
/// If it can't be read, or is none.
pub fn commit(challenge: &Challenge, outputs: &[crate::OutputBlob]) -> std::io::Result<Commitment> {
    let no_product = || std::io::Error::other("the worker left no product");
    let output = outputs.first().ok_or_else(no_product)?;
    let product = output.content.read()?.into_owned();
    Commitment::new(*challenge, product).ok_or_else(no_product)
}

/// Operations per second of the executor's adapter in a product, as a challenge sees
/// them: the middle one of three, each about as long as a challenge. `events` must be
/// the executor's, and nothing else may run. Files go to `dir`.
///
/// # Errors
/// In words, if a product fails or is wrong.
pub async fn measure(
    executor: &Executor,
    events: &mut mpsc::Receiver<ExecutionEvent>,
    dir: &Path,
) -> Result<u64, String> {
    let adapter = executor.adapter();
    let adapter = adapter.ok_or_else(|| "there is no adapter".to_owned())?;
    let mut rate = SLOW;
    for _ in 0..SIZES_MAX {
        let before = rate;
        rate = one_product(executor, events, dir, rate, adapter).await?;
        // The first one compiled as well.
        if rate < before.saturating_mul(2) && before != SLOW {
            break;
        }
    }
    let mut rates = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        rates.push(one_product(executor, events, dir, rate, adapter).await?);
    }
    rates.sort_unstable();
    rates
        .get(RUNS / 2)
        .copied()
        .ok_or_else(|| "nothing was measured".to_owned())
}

async fn one_product(
    executor: &Executor,
    events: &mut mpsc::Receiver<ExecutionEvent>,
    dir: &Path,
    rate: u64,
    adapter: &Adapter,
) -> Result<u64, String> {
    const SEED: [u8; 16] = *b"suanli measures!";
    const NAME: ExecutionId = ExecutionId(u64::MAX);
    let memory = adapter.memory_bytes.min(executor.memory_max());
    let challenge = Challenge::sized(rate, memory, SEED);
    let began = Instant::now();
    let wanted = request(
        NAME,
        &challenge,
        adapter.is_software(),
        Duration::from_secs(30),
        dir,
    );
    wanted
        .and_then(|request| executor.run(request))
        .map_err(|refusal| refusal.to_string())?;
    let outputs = loop {
        match events.recv().await {
            Some(ExecutionEvent::Finished {
                id: NAME, outputs, ..
            }) => break outputs,
            Some(ExecutionEvent::Failed {
                id: NAME,
                failure,
                detail,
                ..
            }) => {
                return Err(format!("{failure}: {detail}"));
            }
            Some(_) => {}
            None => return Err("the executor ended".to_owned()),
        }
    };
    let committed = tokio::task::spawn_blocking(move || {
        let commitment = commit(&challenge, &outputs);
        (commitment, challenge, outputs)
    });
    let (commitment, challenge, outputs) = committed.await.map_err(|error| error.to_string())?;
    let took = began.elapsed();
    let commitment = commitment.map_err(|error| error.to_string())?;
    let checked = tokio::task::spawn_blocking(move || {
        challenge.verify(commitment.root(), SEED, &commitment.open(SEED))
    });
    for output in &outputs {
        if let crate::OutputContent::File(path) = &output.content {
            drop(std::fs::remove_file(path));
        }
    }
    checked
        .await
        .map_err(|error| error.to_string())?
        .map_err(|wrong| format!("this adapter computes a wrong product: {wrong}"))?;
    let micros = took.as_micros().max(1);
    Ok(u64::try_from(u128::from(challenge.operations()) * 1_000_000 / micros).unwrap_or(u64::MAX))
}

fn wide(groups: u64) -> [u32; 3] {
    let count = |groups: u64| u32::try_from(groups).unwrap_or(u32::MAX);
    [count(groups.min(WIDE)), count(groups.div_ceil(WIDE)), 1]
}

fn bytes(rows: u32, columns: u32) -> u64 {
    u64::from(rows) * u64::from(columns) * 4
}

fn constant(name: &str, word: u32) -> Constant {
    Constant {
        name: Utf8::cut(name),
        bits: f64::from(word).to_bits(),
    }
}
