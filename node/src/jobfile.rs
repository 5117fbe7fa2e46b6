//! Job files: what people write to have something run.
//!
//! ```text
//! job.toml ──read──▶ PreparedJob ──check (in a worker)──▶ ──submission──▶ Submission
//!                    └ spec, inputs (files), outputs (what to do with them)
//! ```
//!
//! The general sections (`[limits]`, `[market]`) are read here; the program's
//! own section belongs to its runtime and is read by the executor's crate. The
//! whole file is checked before anything leaves the machine: a mistake is
//! refused with its line, what is wrong, and what is allowed. `docs/job-spec.md`
//! describes every key.

mod gpu;
mod products;
mod verify;

use std::{
    collections::BTreeMap,
    iter,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use suanli_executor::{
    CheckError, Program, Template, WorkerProgram,
    file::{
        InputFile, OutputFile, Prepared, WgslSection,
        array::{Array, ArraySection, Pattern},
        wasm::WasmSection,
    },
    quantity::{ByteSize, Span},
};
use suanli_protocol::{
    expression::{Expression, Scope},
    ids::{BlobId, Hash, JobId, PeerId},
    limits::{NAME_BYTES_MAX, RUN_MAX},
    offer::Name,
    rank::Policy,
    registry::{Runtime, SandboxLevel},
    units::Amount,
};
use toml::Spanned;

use self::verify::VerifyToml;
use crate::{
    api::types::{ArrayOrder, BlobInfo, Submission, VerifyOrder},
    document::{Document, Mistake, Unreadable, allowed},
    expression, pipeline,
};

/// A job file, checked and ready to be sent.
#[derive(Debug, Clone)]
pub struct PreparedJob {
    /// Its name for people.
    pub name: String,
    /// Whom it is for.
    pub principal: String,
    /// What runs it.
    pub runtime: Runtime,
    /// The file with the program's source.
    pub source: PathBuf,
    /// The program, as the runtime reads it, and how units differ.
    pub template: Template,
    /// Their bytes: they travel as a blob.
    pub spec: Vec<u8>,
    /// Ranges of files that travel as blobs: what all units read, then what each has
    /// for itself.
    pub inputs: Vec<InputFile>,
    /// How many each unit has for itself.
    pub inputs_each: u16,
    /// The units, if it is an array.
    pub array: Option<Array>,
    /// How its results are compared with those of others.
    pub verify: VerifyOrder,
    /// Outputs that stay where they are made, for other jobs to read.
    pub staying: Vec<String>,
    /// Files that only stand in for inputs: those stay where they were made.
    pub away: BTreeMap<PathBuf, BlobInfo>,
    /// What units have of their own, by name.
    pub differences: Vec<(String, Pattern)>,
    /// What to do with each output, in the program's order.
    pub outputs: Vec<OutputFile>,
    /// How long one execution may run.
    pub run: Duration,
    /// When all must be over.
    pub total: Duration,
    /// How long after a checkpoint the next one is wanted, if the program keeps any.
    pub checkpoint: Option<Duration>,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Bytes of all outputs.
    pub output_bytes_max: u64,
    /// What it wants of an offer, in words that were read.
    pub condition: Option<String>,
    /// What is best, in words that were read.
    pub rank: Option<String>,
    /// How offers are ranked.
    pub policy: Policy,
    /// The most that it may cost, if it says.
    pub max_price: Option<Amount>,
    /// By how many percent less than the best quote is proposed, once; 0 for not at all.
    pub counter_percent: u8,
    /// Regions that it allows; empty for all.
    pub regions: Vec<String>,
    /// Providers that it allows; empty for all.
    pub providers: Vec<PeerId>,
    /// A kind of device; none for any.
    pub device: Option<String>,
    /// The weakest sandbox that it allows; none for any.
    pub sandbox: Option<String>,
    /// Floating-point operations, where known; 0 otherwise.
    pub flops: u64,
    /// Units of fuel, for runtimes that count them; 0 otherwise.
    pub fuel_max: u64,
}

/// Why a job file is no job.
#[derive(Debug, thiserror::Error)]
pub enum JobFileError {
    /// The file can't be read.
    #[error("{0}; `suanli run FILE` takes a job file, see docs/job-spec.md")]
    Read(#[from] Unreadable),
    /// Something in it is wrong.
    #[error(transparent)]
    Mistake(#[from] Mistake),
    /// The program is not valid. Its compiler's message, with its line marked.
    #[error("{}: the program is not valid\n{detail}", source_file.display())]
    Program {
        /// Its source.
        source_file: PathBuf,
        /// For people.
        detail: String,
    },
    /// The program could not be checked.
    #[error("cannot check the program: {0}")]
    Check(CheckError),
}

/// Run limit where the file has none.
const RUN_DEFAULT: Duration = Duration::from_secs(60);
/// How long after a checkpoint the next one is wanted, where the file does not say.
const CHECKPOINT_DEFAULT: Duration = Duration::from_secs(30);
/// Three attempts, and time for inputs and outputs to travel.
const TOTAL_ATTEMPTS: u32 = 3;
const TOTAL_SLACK: Duration = Duration::from_secs(600);
/// Units of an array that one provider may have to run one after the other.
const TOTAL_UNITS: u32 = 64;

/// Memory of a `wasm` job where the file has no limit.
const WASM_MEMORY_DEFAULT: u64 = 128 << 20;
/// Fuel for each millisecond of the run limit, where the file has no limit: about
/// what a fast processor uses up in that time.
const FUEL_PER_MS: u64 = 2_000_000;

/// Reads a job file and looks at the files that it names.
///
/// # Errors
/// [`JobFileError`]: the first thing that is wrong, with its line.
pub fn read(path: &Path) -> Result<PreparedJob, JobFileError> {
    let document = Document::read(path)?;
    if pipeline::is_one(document.text()) {
        let message = "this file has several jobs: only `suanli run` takes it";
        return Err(JobFileError::Mistake(document.mistake(None, message)));
    }
    of(&document).map_err(JobFileError::Mistake)
}

/// The same of a file that was read.
///
/// # Errors
/// The first thing that is wrong, with its line.
pub fn of(document: &Document) -> Result<PreparedJob, Mistake> {
    prepare(document)
}

impl PreparedJob {
    /// Has a worker process compile the program, without a device.
    ///
    /// # Errors
    /// [`JobFileError::Program`] with the compiler's message.
    pub async fn check(&self, worker: &WorkerProgram) -> Result<(), JobFileError> {
        match worker.check(self.program(), &self.inputs).await {
            Ok(()) => Ok(()),
            Err(CheckError::Rejected { detail, .. }) => Err(JobFileError::Program {
                source_file: self.source.clone(),
                detail,
            }),
            Err(
                error @ (CheckError::NoProgram(_)
                | CheckError::Spawn { .. }
                | CheckError::NoAnswer(_)),
            ) => Err(JobFileError::Check(error)),
        }
    }

    /// The program of the first unit, or the only one. What it needs, all need.
    pub const fn program(&self) -> &Program {
        self.template.program()
    }

    /// How many units there are: 1 if it is no array.
    pub const fn units(&self) -> u32 {
        self.template.units()
    }

    /// What a unit of an array has of its own, by name.
    pub fn parameters(&self, unit: u32) -> Vec<(String, String)> {
        let Some(array) = &self.array else {
            return Vec::new();
        };
        let item = ("item".to_owned(), array.item(unit));
        let differences = self.differences.iter();
        let differences =
            differences.map(|(name, pattern)| (name.clone(), pattern.for_unit(array, unit)));
        iter::once(item).chain(differences).collect()
    }

    /// The name and size of the program's blob.
    pub fn spec_blob(&self) -> BlobInfo {
        BlobInfo {
            blob: BlobId(Hash::of(&self.spec)),
            bytes: u64::try_from(self.spec.len()).unwrap_or(u64::MAX),
        }
    }

    /// What is sent to the node, once the blobs have names.
    pub fn submission(&self, job: JobId, inputs: Vec<BlobInfo>) -> Submission {
        Submission {
            job,
            name: self.name.clone(),
            principal: self.principal.clone(),
            runtime: self.runtime.to_string(),
            spec: self.spec_blob(),
            inputs,
            features: self
                .program()
                .features()
                .iter()
                .map(ToString::to_string)
                .collect(),
            device: self.device.clone(),
            sandbox: self.sandbox.clone(),
            memory_bytes: self.memory_bytes,
            output_bytes_max: self.output_bytes_max,
            run_ms: millis(self.run),
            total_ms: millis(self.total),
            checkpoint_ms: self.checkpoint.map(millis),
            max_price: self.max_price,
            counter_percent: self.counter_percent,
            regions: self.regions.clone(),
            providers: self.providers.clone(),
            condition: self.condition.clone(),
            rank: self.rank.clone(),
            policy: self.policy,
            flops: self.flops,
            fuel_max: self.fuel_max,
            verify: self.verify.clone(),
            staying: self.staying.clone(),
            array: self.array.as_ref().map(|array| ArrayOrder {
                units: array.units(),
                inputs_each: self.inputs_each,
                parallel: array.parallel,
                max_failures: array.max_failures,
            }),
        }
    }
}

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobToml {
    name: Spanned<String>,
    runtime: Spanned<String>,
    principal: Option<Spanned<String>>,
    #[serde(default)]
    limits: LimitsToml,
    #[serde(default)]
    market: MarketToml,
    array: Option<ArraySection>,
    #[serde(default)]
    verify: VerifyToml,
    wgsl: Option<WgslSection>,
    wasm: Option<WasmSection>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsToml {
    run: Option<Spanned<Span>>,
    total: Option<Spanned<Span>>,
    memory: Option<Spanned<ByteSize>>,
    output: Option<Spanned<ByteSize>>,
    fuel: Option<Spanned<u64>>,
    checkpoint: Option<Spanned<Span>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MarketToml {
    #[serde(rename = "where")]
    condition: Option<Spanned<String>>,
    gpu: Option<Spanned<String>>,
    rank: Option<Spanned<String>>,
    policy: Option<Policy>,
    max_price: Option<Amount>,
    counter_percent: Option<Spanned<u8>>,
    #[serde(default)]
    region: Vec<Spanned<String>>,
    #[serde(default)]
    providers: Vec<Spanned<String>>,
    device: Option<Spanned<String>>,
    sandbox: Option<Spanned<String>>,
    #[serde(default)]
    flops: u64,
}

fn prepare(document: &Document) -> Result<PreparedJob, Mistake> {
    let toml: Spanned<JobToml> =
        toml::from_str(document.text()).map_err(|error| document.parse_mistake(&error))?;
    let toml = toml.into_inner();
    let limits = &toml.limits;
    let array = toml.array.as_ref();
    let array = array.map(|section| section.resolve(document.text(), document.path()));
    let array = array.transpose()?;
    let (runtime, source, prepared) = program(document, &toml, array.as_ref())?;
    let Prepared {
        template,
        inputs,
        inputs_each,
        differences,
        outputs,
    } = prepared;
    let program = template.program();
    let spec = template
        .encode()
        .map_err(|error| document.mistake(Some(source.span()), error.to_string()))?;
    let needs = (program.memory_bytes(), program.output_bytes_max());
    let (run, total) = limits.times(document, array.as_ref())?;
    let checkpoint = limits.checkpoint(document, program.has_checkpoints())?;
    let verify = (toml.verify).resolve(document, (runtime, program), &outputs)?;
    Ok(PreparedJob {
        name: name(document, &toml.name, "name")?,
        principal: match &toml.principal {
            Some(principal) => name(document, principal, "principal")?,
            None => String::new(),
        },
        runtime,
        source: beside(document.path(), source.get_ref()),
        spec,
        inputs,
        inputs_each,
        staying: Vec::new(),
        away: BTreeMap::new(),
        differences,
        outputs,
        memory_bytes: limit(
            document,
            limits.memory.as_ref(),
            "memory",
            what_needs_memory(runtime),
            needs.0,
        )?,
        output_bytes_max: limit(
            document,
            limits.output.as_ref(),
            "output",
            "outputs",
            needs.1,
        )?,
        fuel_max: program.fuel_max(),
        template,
        verify,
        array,
        run,
        total,
        checkpoint,
        condition: toml.market.condition(document)?,
        rank: toml.market.rank(document)?,
        policy: toml.market.policy.unwrap_or_default(),
        max_price: toml.market.max_price,
        counter_percent: toml.market.counter(document, toml.array.is_some())?,
        regions: toml.market.regions(document)?,
        providers: toml.market.providers(document)?,
        device: toml.market.device(document)?,
        sandbox: toml.market.sandbox(document)?,
        flops: toml.market.flops,
    })
}

/// An expression's text, once it was read.
fn expression(
    document: &Document,
    text: Option<&Spanned<String>>,
    key: &str,
    read: fn(&str, Scope) -> Result<Expression, String>,
) -> Result<Option<String>, Mistake> {
    let Some(text) = text else {
        return Ok(None);
    };
    match read(text.get_ref(), Scope::Offer) {
        Ok(_) => Ok(Some(text.get_ref().clone())),
        Err(why) => {
            let message = format!("`market.{key}`: {why}");
            Err(document.mistake(Some(text.span()), message))
        }
    }
}

/// The program's section, its file, and what is in it.
fn program<'a>(
    document: &Document,
    toml: &'a JobToml,
    array: Option<&Array>,
) -> Result<(Runtime, &'a Spanned<String>, Prepared), Mistake> {
    let (text, path) = (document.text(), document.path());
    let at = Some(toml.runtime.span());
    let limits = &toml.limits;
    match toml.runtime.get_ref().as_str() {
        "wgsl" => {
            let section = toml.wgsl.as_ref().ok_or_else(|| {
                let message = "runtime = \"wgsl\" needs a [wgsl] section with a `source`";
                document.mistake(at.clone(), message)
            })?;
            if let Some(fuel) = &limits.fuel {
                let message = "`limits.fuel` is for runtime = \"wasm\"; wgsl jobs are limited by `limits.run`";
                return Err(document.mistake(Some(fuel.span()), message));
            }
            let prepared = section.resolve(text, path, array)?;
            Ok((Runtime::WGSL, &section.source, prepared))
        }
        "wasm" => {
            let section = toml.wasm.as_ref().ok_or_else(|| {
                let message = "runtime = \"wasm\" needs a [wasm] section with a `module`";
                document.mistake(at.clone(), message)
            })?;
            if let Some(device) = toml
                .market
                .device
                .as_ref()
                .filter(|of| of.get_ref() == "gpu")
            {
                let message = "`market.device`: wasm jobs run on the processor; leave it out, or write the program for runtime = \"wgsl\"";
                return Err(document.mistake(Some(device.span()), message));
            }
            let memory = limits.memory.as_ref();
            let memory = memory.map_or(WASM_MEMORY_DEFAULT, |memory| memory.get_ref().0);
            let (run, _) = limits.times(document, array)?;
            let by_run = millis(run).saturating_mul(FUEL_PER_MS);
            let fuel = limits.fuel.as_ref().map_or(by_run, |fuel| *fuel.get_ref());
            if let Some(set) = limits.fuel.as_ref().filter(|_| fuel == 0) {
                let message = "`limits.fuel`: 1 or more is allowed";
                return Err(document.mistake(Some(set.span()), message));
            }
            let prepared = section.resolve(text, path, (memory, fuel), array)?;
            Ok((Runtime::WASM, &section.module, prepared))
        }
        other => {
            let hint = allowed(other, ["wgsl", "wasm"]);
            let message = format!("unknown runtime `{}`; {hint}", other.escape_debug());
            Err(document.mistake(at, message))
        }
    }
}

fn what_needs_memory(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::WGSL => "buffers",
        _ => "memory and files",
    }
}

fn name(document: &Document, text: &Spanned<String>, key: &str) -> Result<String, Mistake> {
    match Name::new(text.get_ref().as_str()) {
        Ok(_) if !text.get_ref().is_empty() => Ok(text.get_ref().clone()),
        Ok(_) | Err(_) => {
            let message =
                format!("`{key}`: 1 to {NAME_BYTES_MAX} bytes of visible text are allowed");
            Err(document.mistake(Some(text.span()), message))
        }
    }
}

/// A limit as set, which is enough for what the program states; that much
/// where none is set.
fn limit(
    document: &Document,
    set: Option<&Spanned<ByteSize>>,
    key: &str,
    what: &str,
    needed: u64,
) -> Result<u64, Mistake> {
    match set {
        Some(set) if set.get_ref().0 < needed => {
            let message = format!(
                "`limits.{key}` is {}, the job's {what} have {needed} bytes: \
                 raise it, or leave it out",
                set.get_ref()
            );
            Err(document.mistake(Some(set.span()), message))
        }
        Some(set) => Ok(set.get_ref().0),
        None => Ok(needed),
    }
}

impl LimitsToml {
    fn times(
        &self,
        document: &Document,
        array: Option<&Array>,
    ) -> Result<(Duration, Duration), Mistake> {
        let run = self.run.as_ref().map_or(RUN_DEFAULT, |run| run.get_ref().0);
        // Units one after the other: of few all, of many those that each agreement gets.
        let in_turn = array.map_or(1, |array| {
            let each = array.units().div_ceil(u32::from(array.parallel.max(1)));
            each.max(array.units().min(TOTAL_UNITS))
        });
        let default = run
            .saturating_mul(in_turn)
            .saturating_mul(TOTAL_ATTEMPTS)
            .saturating_add(TOTAL_SLACK);
        let total = self.total.as_ref();
        let total = total.map_or(default, |total| total.get_ref().0);
        let refused = |at: &Option<Spanned<Span>>, message: &str| {
            Err(document.mistake(at.as_ref().map(Spanned::span), message))
        };
        if run.is_zero() || run > RUN_MAX {
            return refused(&self.run, "`limits.run`: more than 0s, and 7d at most");
        }
        if total < run {
            return refused(
                &self.total,
                "`limits.total` is shorter than `limits.run`: no attempt could finish",
            );
        }
        Ok((run, total))
    }

    /// How long after a checkpoint the next one is wanted.
    fn checkpoint(&self, document: &Document, has_any: bool) -> Result<Option<Duration>, Mistake> {
        let Some(set) = &self.checkpoint else {
            return Ok(has_any.then_some(CHECKPOINT_DEFAULT));
        };
        let every = set.get_ref().0;
        let message = match (has_any, every) {
            (false, _) => "`limits.checkpoint` needs a [wgsl.checkpoint] that says what to keep",
            (true, Duration::ZERO) => {
                "`limits.checkpoint`: 1s at least; for none leave out [wgsl.checkpoint]"
            }
            (true, every) => return Ok(Some(every)),
        };
        Err(document.mistake(Some(set.span()), message))
    }
}

/// A word from a list whose first stands for "all the same".
fn one_of(
    document: &Document,
    key: &str,
    word: Option<&Spanned<String>>,
    words: &[&str],
) -> Result<Option<String>, Mistake> {
    let Some(word) = word else {
        return Ok(None);
    };
    let chosen = word.get_ref().as_str();
    match words.iter().position(|known| *known == chosen) {
        Some(0) => Ok(None),
        Some(_) => Ok(Some(chosen.to_owned())),
        None => {
            let message = format!(
                "unknown {key} `{}`; {}",
                chosen.escape_debug(),
                allowed(chosen, words.iter().copied())
            );
            Err(document.mistake(Some(word.span()), message))
        }
    }
}

impl MarketToml {
    fn condition(&self, document: &Document) -> Result<Option<String>, Mistake> {
        let text = self.condition.as_ref();
        let own = expression(document, text, "where", expression::condition)?;
        let Some(gpu) = &self.gpu else {
            return Ok(own);
        };
        let stands_for = gpu::condition(gpu.get_ref())
            .map_err(|message| document.mistake(Some(gpu.span()), message))?;
        let Some(own) = own else {
            return Ok(Some(stands_for));
        };
        let both = format!("{stands_for} && ({own})");
        expression::condition(&both, Scope::Offer).map_err(|why| {
            let message = format!("`market.gpu` and `market.where` together: {why}");
            document.mistake(Some(gpu.span()), message)
        })?;
        Ok(Some(both))
    }

    fn rank(&self, document: &Document) -> Result<Option<String>, Mistake> {
        expression(document, self.rank.as_ref(), "rank", expression::rank)
    }

    fn regions(&self, document: &Document) -> Result<Vec<String>, Mistake> {
        let regions = self.region.iter();
        regions
            .map(|region| name(document, region, "region"))
            .collect()
    }

    fn providers(&self, document: &Document) -> Result<Vec<PeerId>, Mistake> {
        let providers = self.providers.iter();
        providers
            .map(|provider| {
                provider.get_ref().parse().map_err(|_| {
                    let message = format!(
                        "`{}` is no peer: 64 hex digits are needed, as `suanli offer list --json` shows them",
                        provider.get_ref().escape_debug()
                    );
                    document.mistake(Some(provider.span()), message)
                })
            })
            .collect()
    }

    fn counter(&self, document: &Document, is_array: bool) -> Result<u8, Mistake> {
        let Some(percent) = &self.counter_percent else {
            return Ok(0);
        };
        let message = match percent.get_ref() {
            _ if is_array => {
                "`market.counter_percent` is for single jobs: units of an array are not haggled \
                 over; leave it out"
            }
            1..=99 => return Ok(*percent.get_ref()),
            _ => "`market.counter_percent` is 1 to 99; leave it out to take quotes as they are",
        };
        Err(document.mistake(Some(percent.span()), message))
    }

    fn device(&self, document: &Document) -> Result<Option<String>, Mistake> {
        one_of(
            document,
            "device",
            self.device.as_ref(),
            &["any", "gpu", "cpu"],
        )
    }

    fn sandbox(&self, document: &Document) -> Result<Option<String>, Mistake> {
        let names: Vec<&str> = iter::once("any").chain(SandboxLevel::names()).collect();
        one_of(document, "sandbox", self.sandbox.as_ref(), &names)
    }
}

/// A path that counts from the job file's folder.
fn beside(job_file: &Path, path: &str) -> PathBuf {
    let folder = job_file.parent().unwrap_or_else(|| Path::new(""));
    folder.join(path)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{FreivaldsOrder, NumberType, ProductOrder, WithinOrder};

    const GOOD: &str = r#"name = "noop"
runtime = "wgsl"
[limits]
run = "10s"
memory = "1MiB"
[market]
policy = "fastest"
max_price = "0.5"
region = ["CN-NX"]
device = "gpu"
sandbox = "confined"
[wgsl]
source = "noop.wgsl"
[[wgsl.buffer]]
name = "out"
size = 4
[[wgsl.pass]]
entry = "main"
bind = ["out"]
workgroups = [1, 1, 1]
[[wgsl.output]]
buffer = "out"
"#;

    fn prepare_text(text: &str) -> Result<PreparedJob, JobFileError> {
        let dir = tempfile::tempdir().unwrap();
        let source = "@compute @workgroup_size(1) fn main() {}";
        std::fs::write(dir.path().join("noop.wgsl"), source).unwrap();
        for (name, bytes) in [("a.f32", 24), ("b.f32", 48)] {
            std::fs::write(dir.path().join(name), vec![0; bytes]).unwrap();
        }
        let file = dir.path().join("job.toml");
        std::fs::write(&file, text).unwrap();
        read(&file)
    }

    #[test]
    fn a_good_file_becomes_a_submission() {
        let job = prepare_text(GOOD).unwrap();
        let submission = job.submission(JobId::from_bytes([7; 16]), Vec::new());
        assert_eq!(submission.runtime, "wgsl");
        assert_eq!((submission.run_ms, submission.total_ms), (10_000, 630_000));
        assert_eq!(submission.memory_bytes, 1 << 20);
        assert_eq!(
            submission.output_bytes_max, 4,
            "as much as the outputs have"
        );
        assert_eq!(submission.regions, ["CN-NX"]);
        assert_eq!(submission.policy, Policy::Fastest);
        assert_eq!(submission.device.as_deref(), Some("gpu"));
        assert_eq!(submission.sandbox.as_deref(), Some("confined"));
        assert_eq!(submission.spec.blob, BlobId(Hash::of(&job.spec)));
    }

    #[test]
    fn features_that_a_program_needs_are_asked_of_providers() {
        let source = "source = \"noop.wgsl\"";
        let features = format!("{source}\nfeatures = [\"timestamps\", \"f16\"]");
        let job = prepare_text(&GOOD.replacen(source, &features, 1)).unwrap();
        let submission = job.submission(JobId::from_bytes([7; 16]), Vec::new());
        assert_eq!(submission.features, ["f16", "timestamps"]);
    }

    #[test]
    fn every_example_is_a_job() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        for example in ["noop", "mandelbrot", "product"] {
            let job = read(&examples.join(example).join("job.toml")).unwrap();
            assert_eq!((job.name.as_str(), job.units()), (example, 1));
        }
        let film = read(&examples.join("mandelbrot/film.toml")).unwrap();
        assert_eq!(film.units(), 24);
        let healthcare = read(&examples.join("healthcare/job.toml")).unwrap();
        assert_eq!(healthcare.units(), 100);
    }

    const ARRAY: &str = r#"name = "noop"
runtime = "wgsl"
[array]
list = [1, 2]
[limits]
run = "10s"
[wgsl]
source = "noop.wgsl"
[[wgsl.buffer]]
name = "out"
size = 4
[[wgsl.buffer]]
name = "words"
u32 = ["{unit}", 7]
[[wgsl.pass]]
entry = "main"
bind = ["out", "words"]
workgroups = [1]
constants = { N = "{item}" }
[[wgsl.output]]
buffer = "out"
file = "{unit}.u32"
"#;

    #[test]
    fn an_array_becomes_a_submission_of_so_many_units() {
        let job = prepare_text(ARRAY).unwrap();
        let submission = job.submission(JobId::from_bytes([7; 16]), Vec::new());
        let array = submission.array.unwrap();
        assert_eq!((array.units, array.inputs_each), (2, 0));
        assert_eq!((array.parallel, array.max_failures), (64, 0));
        assert_eq!(submission.total_ms, 3 * 2 * 10_000 + 600_000);
        let files = job.outputs[0].files.iter();
        let files: Vec<_> = files.map(|file| file.to_str().unwrap()).collect();
        assert_eq!(files, ["0.u32", "1.u32"]);
        let parameters = job.parameters(1);
        let parameters = parameters.iter();
        let parameters: Vec<_> = parameters
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            parameters,
            [
                ("item", "2"),
                ("word 0 of words", "1"),
                ("constant N of main", "2"),
                ("writes", "1.u32"),
            ]
        );
        let many = ARRAY.replace("list = [1, 2]", "range = [0, 1000]\nparallel = 4");
        let total = prepare_text(&many).unwrap().total;
        assert_eq!(total, Duration::from_secs(3 * 250 * 10 + 600));
    }

    #[test]
    fn results_are_compared_as_the_file_says() {
        let with = |section: &str| {
            let job = prepare_text(&format!("{ARRAY}{section}"));
            job.map(|job| job.verify)
                .map_err(|refused| refused.to_string())
        };
        let none = VerifyOrder::default();
        assert_eq!(with("").unwrap(), none);
        let replicas = VerifyOrder {
            replicas: 3,
            ..none.clone()
        };
        assert_eq!(with("[verify]\nreplicas = 3\n").unwrap(), replicas);
        let audit = VerifyOrder {
            audit_per_mille: 125,
            ..none.clone()
        };
        assert_eq!(with("[verify]\naudit = 0.125\n").unwrap(), audit);
        let adaptive = VerifyOrder {
            adaptive: true,
            ..none
        };
        assert_eq!(with("[verify]\naudit = \"adaptive\"\n").unwrap(), adaptive);
        for (wrong, says) in [
            ("replicas = 0", "1 to 7 are allowed"),
            ("replicas = 9", "1 to 7 are allowed"),
            ("audit = 10", "between 0 and 1"),
            ("audit = \"often\"", "adaptive"),
            ("audit = 0.0001", "the least share"),
            ("replicas = 2\naudit = 0.1", "leave `audit` out"),
            ("replica = 2", "replicas"),
            (
                "replicas = 2\ntolerance = 1e-5",
                "the job's outputs are `out`",
            ),
            ("replicas = 2\nfloats = [\"out\"]", "need a `tolerance`"),
            ("replicas = 2\nabsolute = 1e-6", "need a `tolerance`"),
            ("tolerance = 1e-5\nfloats = [\"out\"]", "add `replicas = 2`"),
        ] {
            let refused = with(&format!("[verify]\n{wrong}\n")).unwrap_err();
            assert!(refused.contains(says), "{wrong}: {refused}");
        }
    }

    const FLOATS: &str = "tolerance = 1e-5\nabsolute = 1e-6\nfloats = [\"out\"]\n";

    #[test]
    fn floats_are_compared_within_a_tolerance() {
        for how in ["replicas = 2", "audit = 0.1", "audit = \"adaptive\""] {
            let job = prepare_text(&format!("{GOOD}[verify]\n{how}\n{FLOATS}")).unwrap();
            let within = WithinOrder {
                relative: 1e-5,
                absolute: 1e-6,
                floats: vec!["out".to_owned()],
            };
            assert_eq!(job.verify.within, Some(within));
        }
        let wasm = "name = \"m\"\nruntime = \"wasm\"\n[wasm]\nmodule = \"noop.wgsl\"\n\
            [verify]\nreplicas = 2\n";
        let refused = prepare_text(&format!("{wasm}{FLOATS}")).unwrap_err();
        assert!(refused.to_string().contains("the same bits"), "{refused}");
    }

    /// Each is the good file with a tolerance, in which one thing is replaced.
    const WRONG_TOLERANCES: [(&str, &str); 11] = [
        ("tolerance = 1e-5", "tolerance = 1"),
        ("tolerance = 1e-5", "tolerance = -1e-5"),
        ("tolerance = 1e-5", "tolerance = nan"),
        ("tolerance = 1e-5", "tolerance = \"1e-5\""),
        ("absolute = 1e-6", "absolute = inf"),
        ("1e-5\nabsolute = 1e-6", "0.0"),
        ("floats = [\"out\"]", "floats = [\"uot\"]"),
        ("floats = [\"out\"]", "floats = [\"out\", \"out\"]"),
        ("floats = [\"out\"]", "floats = []"),
        ("replicas = 2\n", ""),
        (
            "buffer = \"out\"",
            "buffer = \"out\"\nfile = \"o.png\"\npng = { width = 1, height = 1 }",
        ),
    ];

    #[test]
    fn wrong_tolerances_are_refused_in_words() {
        let good = format!("{GOOD}[verify]\nreplicas = 2\n{FLOATS}");
        insta::assert_snapshot!(refusals(&good, &WRONG_TOLERANCES));
    }

    const PRODUCT: &str = r#"name = "product"
runtime = "wgsl"
[verify]
freivalds = 20
[[verify.product]]
left = "a"
right = "b"
product = "c"
rows = 2
inner = 3
columns = 4
[wgsl]
source = "noop.wgsl"
[[wgsl.buffer]]
name = "c"
size = 32
[[wgsl.buffer]]
name = "b"
file = "b.f32"
[[wgsl.buffer]]
name = "a"
file = "a.f32"
[[wgsl.pass]]
entry = "main"
bind = ["a", "b", "c"]
workgroups = [1]
[[wgsl.output]]
buffer = "c"
"#;

    #[test]
    fn products_name_inputs_by_their_numbers() {
        let job = prepare_text(PRODUCT).unwrap();
        let mut product = ProductOrder {
            left: 1,
            right: 0,
            product: "c".to_owned(),
            rows: 2,
            inner: 3,
            columns: 4,
            numbers: NumberType::F32,
            tolerance: None,
        };
        let order = |product: &ProductOrder| FreivaldsOrder {
            rounds: 20,
            products: vec![product.clone()],
        };
        assert_eq!(job.verify.freivalds, Some(order(&product)));
        product.tolerance = Some(1e-6);
        let job = prepare_text(&PRODUCT.replace("rows", "tolerance = 1e-6\nrows")).unwrap();
        assert_eq!(job.verify.freivalds, Some(order(&product)));
        (product.tolerance, product.numbers) = (None, NumberType::I32);
        let job = prepare_text(&PRODUCT.replace("rows", "type = 'i32'\nrows")).unwrap();
        assert_eq!(job.verify.freivalds, Some(order(&product)));
        // Units' own files are numbered after those that all read.
        let array = PRODUCT.replace("[verify]", "[array]\nfiles = ['b.f32']\n[verify]");
        let job = prepare_text(&array.replace("file = \"b.f32\"", "file = '{item}'")).unwrap();
        let products = job.verify.freivalds.unwrap().products;
        assert_eq!((products[0].left, products[0].right), (0, 1));
        let wasm = "name = \"m\"\nruntime = \"wasm\"\n[wasm]\nmodule = \"noop.wgsl\"\n";
        let (_, section) = PRODUCT.split_once("\"wgsl\"\n").unwrap();
        let (section, _) = section.split_once("[wgsl]").unwrap();
        let refused = prepare_text(&format!("{wasm}{section}")).unwrap_err();
        assert!(refused.to_string().contains("wasm job"), "{refused}");
    }

    /// Each is the product above with one thing replaced.
    const WRONG_PRODUCTS: [(&str, &str); 24] = [
        ("freivalds = 20\n", ""),
        ("freivalds = 20", "freivalds = 0"),
        ("freivalds = 20", "freivalds = 65"),
        ("freivalds = 20", "freivalds = 'often'"),
        ("product = \"c\"\nrows = 2", "rows = 2"),
        ("left = \"a\"", "left = \"d\""),
        ("left = \"a\"", "left = \"c\""),
        ("right = \"b\"", "right = \"a\""),
        ("right = \"b\"", "rihgt = \"b\""),
        ("product = \"c\"", "product = \"a\""),
        ("rows = 2", "rows = 3"),
        ("rows = 2", "rows = 0"),
        ("rows = 2", "rows = -2"),
        ("inner = 3", "inner = 300_000"),
        ("columns = 4", "columns = 5"),
        ("rows = 2", "type = 'f16'\nrows = 2"),
        ("rows = 2", "tolerance = 1.0\nrows = 2"),
        ("rows = 2", "tolerance = 0\nrows = 2"),
        ("rows = 2", "type = 'u32'\ntolerance = 1e-6\nrows = 2"),
        ("file = \"a.f32\"", "file = \"a.f32\"\nsize = 32"),
        ("file = \"a.f32\"", "f32 = [1, 2, 3, 4, 5, 6]"),
        (
            "buffer = \"c\"",
            "buffer = \"c\"\nfile = 'c.png'\npng = { width = 2, height = 4 }",
        ),
        (
            "columns = 4\n",
            "columns = 4\n[[verify.product]]\nleft = 'a'\nright = 'b'\nproduct = 'c'\nrows = 2\ninner = 3\ncolumns = 4\n",
        ),
        (
            "[[verify.product]]\nleft = \"a\"\nright = \"b\"\nproduct = \"c\"\nrows = 2\ninner = 3\ncolumns = 4\n",
            "",
        ),
    ];

    #[test]
    fn wrong_products_are_refused_in_words() {
        insta::assert_snapshot!(refusals(PRODUCT, &WRONG_PRODUCTS));
    }

    /// Each is the array above with one thing replaced.
    const WRONG_ARRAYS: [(&str, &str); 22] = [
        ("[array]\nlist = [1, 2]\n", ""),
        ("list = [1, 2]\n", ""),
        ("list = [1, 2]", "lst = [1, 2]"),
        ("list = [1, 2]", "list = [1, [2]]"),
        ("list = [1, 2]", "list = [{ x = 1 }, { y = 2 }]"),
        ("list = [1, 2]", "list = [1, 2]\nrange = [0, 2]"),
        ("list = [1, 2]", "range = [2, 2]"),
        ("list = [1, 2]", "range = [0, 100000]"),
        ("list = [1, 2]", "files = \"*.png\""),
        ("list = [1, 2]", "list = [1, 2]\nparallel = 0"),
        ("list = [1, 2]", "list = [1, 2]\nmax_failures = 2"),
        ("list = [1, 2]", "list = [\"a\", 2]"),
        ("list = [1, 2]", "list = [{ rate = 1 }, { rate = 2 }]"),
        ("N = \"{item}\"", "N = \"{itm}\""),
        ("N = \"{item}\"", "N = \"{item.rate}\""),
        ("N = \"{item}\"", "N = \"{item\""),
        ("u32 = [\"{unit}\", 7]", "u32 = [\"-{item}\", 7]"),
        ("u32 = [\"{unit}\", 7]", "u32 = [\"{unit}\", 0.5]"),
        ("file = \"{unit}.u32\"", "file = \"out.u32\""),
        ("file = \"{unit}.u32\"", "file = \"../{unit}.u32\""),
        ("size = 4", "file = \"{item}\""),
        ("size = 4", "file = \"{unit}.u8\""),
    ];

    #[test]
    fn wrong_arrays_are_refused_in_words() {
        insta::assert_snapshot!(refusals(ARRAY, &WRONG_ARRAYS));
    }

    /// Each is the good file with one thing replaced.
    const WRONG: [(&str, &str); 22] = [
        ("name = \"noop\"\n", ""),
        ("name = \"noop\"", "name = \"\""),
        ("name = \"noop\"", "nmae = \"noop\""),
        ("runtime = \"wgsl\"", "runtime = \"wgls\""),
        ("runtime = \"wgsl\"", "runtime = 1"),
        ("run = \"10s\"", "run = \"10\""),
        ("run = \"10s\"", "run = \"8d\""),
        ("run = \"10s\"", "run = \"10s\"\ntotal = \"5s\""),
        ("memory = \"1MiB\"", "memroy = \"1MiB\""),
        ("memory = \"1MiB\"", "memory = 3"),
        ("policy = \"fastest\"", "policy = \"fast\""),
        ("max_price = \"0.5\"", "max_price = 0.5"),
        ("max_price = \"0.5\"", "max_price = \"0.5 CNY\""),
        ("max_price = \"0.5\"", "counter_percent = 100"),
        ("max_price = \"0.5\"", "counter_percent = \"10%\""),
        ("region = [\"CN-NX\"]", "region = \"CN-NX\""),
        ("device = \"gpu\"", "device = \"tpu\""),
        ("sandbox = \"confined\"", "sandbox = \"confind\""),
        ("device = \"gpu\"", "providers = [\"abc\"]"),
        ("source = \"noop.wgsl\"", "source = \"missing.wgsl\""),
        ("bind = [\"out\"]", "bind = [\"uot\"]"),
        ("[wgsl]", "[wgsl"),
    ];

    #[test]
    fn wrong_files_are_refused_in_words() {
        insta::assert_snapshot!(refusals(GOOD, &WRONG));
    }

    fn refusals(good: &str, wrong: &[(&str, &str)]) -> String {
        let messages = wrong.iter().map(|(right, wrong)| {
            assert!(good.contains(right), "{right}");
            let error = prepare_text(&good.replacen(right, wrong, 1)).unwrap_err();
            let message = error.to_string();
            // The folder of the test differs from run to run.
            let folder = message.split("job.toml").next().unwrap_or_default();
            format!("{wrong}\n  => {}", message.replace(folder, ""))
        });
        messages.collect::<Vec<_>>().join("\n\n")
    }

    #[test]
    fn a_module_asks_for_no_gpu() {
        let text = "name = \"m\"\nruntime = \"wasm\"\n[market]\ndevice = \"gpu\"\n\
            [wasm]\nmodule = \"missing.wasm\"\n";
        let error = prepare_text(text).unwrap_err().to_string();
        assert!(error.contains("job.toml:4: `market.device`"), "{error}");
        assert!(error.contains("run on the processor"), "{error}");
    }

    #[test]
    fn a_missing_file_is_said_so() {
        let missing = read(Path::new("no-such-job.toml")).unwrap_err();
        assert!(missing.to_string().contains("no-such-job.toml"));
    }
}
