//! The driver's hands: blobs on disk, and executions.
//!
//! Two threads, each with a bounded queue. The quick one keeps the order of
//! what it is given (an input is stored before the execution that reads it
//! begins) and never waits for a disk to sync; the slow one makes results
//! durable. What they find comes back to the driver as [`Input`]s.
//!
//! Results live in the store's blobs; inputs of others live in a cache that is
//! emptied at every start, for nothing is promised about them.

use std::{collections::BTreeSet, fs, io::Read as _, path::PathBuf, sync::Arc, time::Duration};

use suanli_executor::{
    ExecutionRequest, Failure, InputSource, JobSpec, OutputBlob, OutputContent, Resume, Template,
    Tenant,
};
use suanli_protocol::{
    deal::{BlobRef, Checkpoint},
    ids::{AgreementId, BlobId, Hash},
    limits::{INLINE_BLOBS_MAX, INLINE_BYTES_MAX},
    offer::Name,
    peer::{
        Comparison, ExecutionEvent, ExecutionId, ExecutionOrder, Fetched, Input, Kept,
        ProductsCheck, ProvidedOutput,
    },
    registry::Reason,
    units::{Meter, Millis, Usage, Wall},
};
use tokio::sync::mpsc;

use super::{comparing, proving};
use crate::{
    devices::Devices,
    store::blobs::{BlobError, Blobs, WallMs},
    wall::wall_ms,
};

/// How long a part of a checkpoint is kept that nobody needs.
const CHECKPOINT_MS: u64 = 120_000;
/// Retention is rounded up to a multiple of this.
const RETAIN_STEP_MS: u64 = 60_000;
/// Chores that may wait.
const QUEUE: usize = 256;

/// Something to do with blobs or the executor.
#[derive(Debug)]
pub(super) enum Chore {
    /// Keep bytes.
    Store {
        blob: BlobId,
        bytes: Vec<u8>,
        kept: Kept,
    },
    /// Make sure that bytes that are here survive a restart.
    Secure {
        agreement: AgreementId,
        blob: BlobId,
    },
    /// A fetch ended well: its file is verified.
    Fetched {
        agreement: AgreementId,
        blob: BlobId,
        file: PathBuf,
        what: Fetched,
    },
    /// Open inputs and start.
    Run {
        number: suanli_executor::ExecutionId,
        order: Box<ExecutionOrder>,
    },
    /// Keep outputs that travel with their receipt: if they are lost with the
    /// machine, the client has them already, or runs the job again elsewhere.
    Keep(Vec<Vec<u8>>),
    /// Keep outputs and report them.
    Finish {
        id: ExecutionId,
        outputs: Vec<OutputBlob>,
        usage: suanli_executor::Usage,
    },
    /// Keep a checkpoint for a while and tell of it.
    Checkpoint {
        id: ExecutionId,
        done: u64,
        state: Vec<OutputBlob>,
    },
    /// An execution has failed: nothing that it left is of use.
    Clear(suanli_executor::ExecutionId),
    /// Keep a blob until then.
    Retain { blob: BlobId, until: Wall },
    /// Remove what has expired and is not needed.
    Collect { now: Wall, needed: BTreeSet<BlobId> },
}

/// Hands chores to the threads.
#[derive(Debug, Clone)]
pub(super) struct Hands {
    quick: mpsc::Sender<Chore>,
    slow: mpsc::Sender<Chore>,
    own: Worker,
}

impl Hands {
    /// Starts the threads. `folder` is for executions' outputs and fetches
    /// under way; what is in it is removed.
    pub(super) fn start(
        kept: Blobs,
        cache: Blobs,
        folder: PathBuf,
        devices: Devices,
        inputs: mpsc::Sender<Input>,
    ) -> std::io::Result<Self> {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let (quick, quick_queue) = mpsc::channel(QUEUE);
        let (slow, slow_queue) = mpsc::channel(QUEUE);
        let worker = Worker {
            kept,
            cache,
            folder,
            devices,
            inputs,
            array: None,
        };
        let (own, other) = (worker.clone(), worker.clone());
        std::thread::Builder::new()
            .name("hands".into())
            .spawn(move || worker.work(quick_queue))?;
        std::thread::Builder::new()
            .name("hands-slow".into())
            .spawn(move || other.work(slow_queue))?;
        Ok(Self { quick, slow, own })
    }

    /// Starts an execution at once, if nothing has to be opened for it.
    pub(super) fn run_now(
        &self,
        number: suanli_executor::ExecutionId,
        order: &ExecutionOrder,
    ) -> bool {
        let spec = self.own.in_memory(order.spec.blob);
        let Some(spec) = spec.filter(|_| order.inputs.is_empty()) else {
            return false;
        };
        let spec = JobSpec::Encoded(spec.to_vec());
        self.own.run(number, order, spec).is_ok()
    }

    /// Queues a chore, waiting for room.
    pub(super) async fn give(&self, chore: Chore) {
        let queue = match &chore {
            Chore::Store {
                kept: Kept::Input, ..
            }
            | Chore::Fetched {
                what: Fetched::Input,
                ..
            }
            | Chore::Run { .. }
            | Chore::Keep(_)
            | Chore::Finish { .. }
            | Chore::Checkpoint { .. }
            | Chore::Clear(_)
            | Chore::Retain { .. } => &self.quick,
            Chore::Store {
                kept: Kept::Result | Kept::OnlyResult(_) | Kept::State(_),
                ..
            }
            | Chore::Secure { .. }
            | Chore::Fetched {
                what: Fetched::Result | Fetched::State,
                ..
            }
            | Chore::Collect { .. } => &self.slow,
        };
        // Fails only when the process ends.
        let _ = queue.send(chore).await;
    }

    /// Where a blob's bytes are, if they are here.
    pub(super) fn file_of(&self, blob: BlobId) -> Option<PathBuf> {
        self.own.file_of(blob)
    }

    /// Whether a blob's bytes are here.
    pub(super) fn has(&self, blob: BlobId) -> bool {
        self.own.in_memory(blob).is_some() || self.file_of(blob).is_some()
    }

    /// Compares outputs that are here, on a thread of its own: the core has few of these
    /// under way, and others' results need not wait for them.
    pub(super) fn compare(&self, comparison: Comparison) {
        let Worker { kept, inputs, .. } = &self.own;
        comparing::start(comparison, kept.clone(), inputs.clone());
    }

    /// Checks products that are here, in the same way.
    pub(super) fn check_products(&self, check: ProductsCheck) {
        let Worker { kept, inputs, .. } = &self.own;
        proving::start(check, kept.clone(), inputs.clone());
    }

    /// Where a fetch puts its bytes.
    pub(super) fn incoming(&self, agreement: AgreementId, blob: BlobId) -> PathBuf {
        self.own
            .folder
            .join(format!("{agreement:#}-{blob:#}.partial"))
    }
}

/// One thread's share.
#[derive(Debug, Clone)]
struct Worker {
    kept: Blobs,
    cache: Blobs,
    folder: PathBuf,
    devices: Devices,
    inputs: mpsc::Sender<Input>,
    /// The array of which a unit was started last: another may follow, and to read
    /// its lists for each would take longer than many a unit.
    array: Option<(BlobId, Arc<Template>)>,
}

impl Worker {
    fn work(mut self, mut queue: mpsc::Receiver<Chore>) {
        while let Some(chore) = queue.blocking_recv() {
            self.do_one(chore);
        }
    }

    fn say(&self, input: Input) {
        // Fails only when the driver has ended.
        let _ = self.inputs.blocking_send(input);
    }

    fn do_one(&mut self, chore: Chore) {
        match chore {
            Chore::Store { blob, bytes, kept } => self.store(blob, &bytes, kept),
            Chore::Secure { agreement, blob } => self.secure(agreement, blob),
            Chore::Fetched {
                agreement,
                blob,
                file,
                what,
            } => {
                let hash = hash_of(blob);
                let adopted = match what {
                    Fetched::Input => self.cache.adopt(&file, hash, false, None),
                    Fetched::Result => self.kept.adopt(&file, hash, true, None),
                    Fetched::State => self.kept.adopt(&file, hash, true, self.passing(&hash)),
                };
                if let Err(error) = &adopted {
                    tracing::warn!(%blob, error = %error, "a fetched blob could not be kept");
                }
                self.say(Input::Fetched {
                    agreement,
                    blob,
                    ok: adopted.is_ok(),
                });
            }
            Chore::Run { number, order } => self.start(number, &order),
            Chore::Keep(outputs) => {
                for bytes in outputs {
                    if let Err(error) = self.kept.put_volatile(&bytes) {
                        tracing::warn!(error = %error, "an output could not be kept");
                    }
                }
            }
            Chore::Finish { id, outputs, usage } => self.finish(id, &outputs, usage),
            Chore::Checkpoint { id, done, state } => self.checkpoint(id, done, &state),
            Chore::Clear(number) => {
                // There is none if nothing was written.
                let _ = fs::remove_dir_all(self.folder.join(number.to_string()));
            }
            Chore::Retain { blob, until } => {
                // A little longer, so that jobs with the same blobs seldom write.
                let until = until.as_millis().next_multiple_of(RETAIN_STEP_MS);
                let until = Some(WallMs(until));
                if self.kept.has(&hash_of(blob))
                    && let Err(error) = self.kept.keep_until(hash_of(blob), until)
                {
                    tracing::warn!(%blob, error = %error, "a blob's time could not be set");
                }
            }
            Chore::Collect { now, needed } => self.collect(now, &needed),
        }
    }

    fn store(&self, blob: BlobId, bytes: &[u8], kept: Kept) {
        let stored = match kept {
            Kept::Input => self.cache.put_volatile(bytes),
            Kept::Result | Kept::OnlyResult(_) => self.kept.put_bytes(bytes, None),
            Kept::State(_) => {
                let until = self.passing(&hash_of(blob));
                self.kept.put_bytes(bytes, until)
            }
        };
        if let Err(error) = &stored {
            tracing::warn!(%blob, %error, "a blob could not be stored");
        }
        match kept {
            Kept::OnlyResult(agreement) | Kept::State(agreement) if stored.is_ok() => {
                self.secure(agreement, blob);
            }
            Kept::OnlyResult(agreement) | Kept::State(agreement) => self.say(Input::Fetched {
                agreement,
                blob,
                ok: false,
            }),
            Kept::Input | Kept::Result => {}
        }
    }

    /// A result that came here another way may be in the cache, or not synced.
    fn secure(&self, agreement: AgreementId, blob: BlobId) {
        let hash = hash_of(blob);
        let secured = match self.cache.file_of(&hash) {
            Some(file) if !self.kept.has(&hash) => self.kept.import_file(&file, None).map(|_| ()),
            Some(_) | None => self.kept.sync(&hash),
        };
        if let Err(error) = &secured {
            tracing::warn!(%blob, %error, "a blob could not be made durable");
        }
        self.say(Input::Fetched {
            agreement,
            blob,
            ok: secured.is_ok(),
        });
    }

    fn start(&mut self, number: suanli_executor::ExecutionId, order: &ExecutionOrder) {
        let started = self
            .template(order)
            .and_then(|spec| self.run(number, order, spec));
        if let Err((reason, detail)) = started {
            tracing::info!(agreement = %order.id.agreement, %reason, detail, "execution refused");
            self.say(Input::Execution {
                id: order.id,
                event: ExecutionEvent::Log(detail),
            });
            let event = ExecutionEvent::Failed {
                reason,
                usage: Vec::new(),
            };
            self.say(Input::Execution {
                id: order.id,
                event,
            });
        }
    }

    fn collect(&self, now: Wall, needed: &BTreeSet<BlobId>) {
        let is_needed =
            |hash: &blake3::Hash| needed.contains(&BlobId(Hash::from_bytes(*hash.as_bytes())));
        for blobs in [&self.kept, &self.cache] {
            match blobs.collect(WallMs(now.as_millis()), is_needed) {
                Ok(gone) if gone.blobs > 0 => {
                    tracing::info!(
                        blobs = gone.blobs,
                        bytes = gone.bytes,
                        "expired blobs removed"
                    );
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(error = %error, "blobs could not be collected"),
            }
        }
    }

    fn open(&self, blob: BlobRef) -> Result<fs::File, (Reason, String)> {
        let hash = hash_of(blob.blob);
        self.cache
            .open_blob(&hash)
            .or_else(|_| self.kept.open_blob(&hash))
            .map_err(|error| {
                (
                    Reason::INPUTS_MISSING,
                    format!("blob {}: {error}", blob.blob),
                )
            })
    }

    fn file_of(&self, blob: BlobId) -> Option<PathBuf> {
        let hash = hash_of(blob);
        (self.kept.file_of(&hash)).or_else(|| self.cache.file_of(&hash))
    }

    fn in_memory(&self, blob: BlobId) -> Option<Arc<[u8]>> {
        let hash = hash_of(blob);
        self.cache
            .in_memory(&hash)
            .or_else(|| self.kept.in_memory(&hash))
    }

    fn template(&mut self, order: &ExecutionOrder) -> Result<JobSpec, (Reason, String)> {
        let known = self.array.as_ref().filter(|(blob, template)| {
            *blob == order.spec.blob && template.program().runtime() == order.runtime
        });
        if let Some((_, template)) = known {
            return Ok(JobSpec::Read(Arc::clone(template)));
        }
        let spec = self.spec(order.spec)?;
        let template = Template::decode(order.runtime, &spec);
        let template = template.map_err(|error| (Reason::INVALID_PROGRAM, error.to_string()))?;
        let template = Arc::new(template);
        if template.units() > 1 {
            self.array = Some((order.spec.blob, Arc::clone(&template)));
        }
        Ok(JobSpec::Read(template))
    }

    fn spec(&self, blob: BlobRef) -> Result<Vec<u8>, (Reason, String)> {
        let hash = hash_of(blob.blob);
        for blobs in [&self.cache, &self.kept] {
            if let Ok(Some(small)) = blobs.read_small(&hash) {
                return Ok(small.to_vec());
            }
        }
        let mut spec = Vec::new();
        let limit = u64::try_from(suanli_executor::limits::TEMPLATE_BYTES_MAX).unwrap_or(u64::MAX);
        self.open(blob)?
            .take(limit + 1)
            .read_to_end(&mut spec)
            .map_err(|error| (Reason::PROVIDER_FAULT, error.to_string()))?;
        Ok(spec)
    }

    fn run(
        &self,
        number: suanli_executor::ExecutionId,
        order: &ExecutionOrder,
        spec: JobSpec,
    ) -> Result<(), (Reason, String)> {
        if order.lease.is_some() {
            return Err((
                Reason::NO_SUCH_WORK,
                "leases are not served here".to_owned(),
            ));
        }
        let inputs = order
            .inputs
            .iter()
            .map(|input| self.open(*input).map(InputSource::File))
            .collect::<Result<_, _>>()?;
        let request = ExecutionRequest {
            id: number,
            tenant: Tenant(*order.tenant.as_bytes()),
            runtime: order.runtime,
            spec,
            unit: order.id.unit,
            inputs,
            run_limit: order.run_max.duration().max(Duration::from_millis(1)),
            memory_max: order.memory_bytes,
            fuel_max: order.fuel_max,
            output_bytes_max: order.output_bytes_max,
            fresh: false,
            outputs_dir: self.folder.join(number.to_string()),
            checkpoint_every: order.checkpoint_every.map(Millis::duration),
            resume: self.resume(order.resume.as_ref())?,
        };
        self.devices
            .run(order.device, request)
            .map_err(|refusal| (reason_of(&refusal.failure), refusal.detail))
    }

    /// Where an execution goes on, with the files that it goes on from.
    fn resume(&self, kept: Option<&Checkpoint>) -> Result<Option<Resume>, (Reason, String)> {
        let Some(kept) = kept else {
            return Ok(None);
        };
        let state = kept.state.iter().map(|buffer| {
            let (blob, hash) = (buffer.blob, hash_of(buffer.blob.blob));
            let file = self.file_of(blob.blob);
            let lacks = || {
                (
                    Reason::INPUTS_MISSING,
                    format!("blob {} is gone", blob.blob),
                )
            };
            Ok(OutputBlob {
                name: buffer.name.to_string(),
                content: OutputContent::File(file.ok_or_else(lacks)?),
                bytes: blob.bytes,
                hash: *hash.as_bytes(),
            })
        });
        Ok(Some(Resume {
            done: kept.done,
            state: state.collect::<Result<_, _>>()?,
        }))
    }

    /// Until when a part of a checkpoint is kept that nobody asks for again. What is here
    /// for another reason is kept as long as it was.
    fn passing(&self, hash: &blake3::Hash) -> Option<WallMs> {
        let until = wall_ms().saturating_add(CHECKPOINT_MS);
        (!self.kept.has(hash)).then_some(WallMs(until))
    }

    /// Keeps a checkpoint. Without it the execution goes on all the same.
    fn checkpoint(&self, id: ExecutionId, done: u64, state: &[OutputBlob]) {
        let kept = state.iter().map(|buffer| {
            let hash = blake3::Hash::from_bytes(buffer.hash);
            let until = self.passing(&hash);
            let inline = match &buffer.content {
                OutputContent::Memory(bytes) => {
                    self.kept.put_volatile(bytes)?;
                    self.kept.keep_until(hash, until)?;
                    Some(bytes.clone())
                }
                OutputContent::File(path) => {
                    self.kept.adopt(path, hash, false, until)?;
                    None
                }
            };
            Ok::<_, BlobError>(provided(buffer, inline))
        });
        match kept.collect() {
            Ok(state) => {
                let event = ExecutionEvent::Checkpoint { done, state };
                self.say(Input::Execution { id, event });
            }
            Err(error) => tracing::warn!(%error, "a checkpoint could not be kept"),
        }
    }

    /// Takes outputs over, and removes their folder.
    fn finish(&self, id: ExecutionId, outputs: &[OutputBlob], usage: suanli_executor::Usage) {
        let usage = usage_lines(&usage);
        let kept: Result<Vec<ProvidedOutput>, BlobError> = outputs
            .iter()
            .map(|output| self.keep_output(output))
            .collect();
        let folder = outputs.iter().find_map(|output| match &output.content {
            OutputContent::File(path) => path.parent(),
            OutputContent::Memory(_) => None,
        });
        if let Some(folder) = folder {
            let _ = fs::remove_dir_all(folder);
        }
        let event = match kept {
            Ok(outputs) => ExecutionEvent::Finished { outputs, usage },
            Err(error) => {
                tracing::warn!(error = %error, "outputs could not be kept");
                ExecutionEvent::Failed {
                    reason: Reason::PROVIDER_FAULT,
                    usage,
                }
            }
        };
        self.say(Input::Execution { id, event });
    }

    fn keep_output(&self, output: &OutputBlob) -> Result<ProvidedOutput, BlobError> {
        let inline = match &output.content {
            OutputContent::Memory(bytes) => {
                self.kept.put_volatile(bytes)?;
                Some(bytes.clone())
            }
            OutputContent::File(path) => {
                let hash = blake3::Hash::from_bytes(output.hash);
                self.kept.adopt(path, hash, true, None)?;
                None
            }
        };
        Ok(provided(output, inline))
    }
}

/// Outputs as they travel with their receipt, if all are in memory and few
/// enough bytes to travel; else the outputs again.
pub(super) fn in_memory(outputs: Vec<OutputBlob>) -> Result<Vec<ProvidedOutput>, Vec<OutputBlob>> {
    let bytes = outputs.iter().map(|output| output.bytes).sum::<u64>();
    let all = outputs.iter().map(|output| match &output.content {
        OutputContent::Memory(bytes) => Some(provided(output, Some(bytes.clone()))),
        OutputContent::File(_) => None,
    });
    let all = all.collect::<Option<Vec<_>>>();
    let travel = bytes <= INLINE_BYTES_MAX as u64 && outputs.len() <= INLINE_BLOBS_MAX;
    all.filter(|_| travel).ok_or(outputs)
}

fn provided(output: &OutputBlob, inline: Option<Vec<u8>>) -> ProvidedOutput {
    ProvidedOutput {
        name: Name::lossy(&output.name),
        blob: BlobRef {
            blob: BlobId(Hash::from_bytes(output.hash)),
            bytes: output.bytes,
        },
        inline,
    }
}

/// A blob's name as the store writes it.
pub(super) fn hash_of(blob: BlobId) -> blake3::Hash {
    blake3::Hash::from_bytes(*blob.0.as_bytes())
}

/// What is metered of an execution: nothing if no worker had it, else itself
/// and what it took of the meter of its runtime.
pub(super) fn usage_lines(usage: &suanli_executor::Usage) -> Vec<Usage> {
    if usage.wall_us == 0 {
        return Vec::new();
    }
    let lines = [
        (Meter::JOB, 1),
        (Meter::GPU_MS, usage.gpu_ms()),
        (Meter::WASM_FUEL, usage.fuel),
    ];
    let used = lines.into_iter().filter(|(_, quantity)| *quantity > 0);
    used.map(|(meter, quantity)| Usage { meter, quantity })
        .collect()
}

/// An executor's failure as the exchange names it.
pub(super) const fn reason_of(failure: &Failure) -> Reason {
    match failure {
        Failure::InvalidSpec | Failure::InvalidShader | Failure::InvalidModule => {
            Reason::INVALID_PROGRAM
        }
        Failure::Trapped => Reason::TRAPPED,
        Failure::OutOfFuel => Reason::OUT_OF_FUEL,
        Failure::Exited { .. } => Reason::EXIT_CODE,
        Failure::OutputTooLarge => Reason::OUTPUT_TOO_LARGE,
        Failure::OutputMissing => Reason::OUTPUT_MISSING,
        Failure::MissingFeature => Reason::NO_FEATURE,
        Failure::TooLarge { .. } => Reason::OUT_OF_MEMORY,
        Failure::DeadlineExceeded => Reason::DEADLINE,
        Failure::Cancelled => Reason::CANCELLED,
        Failure::OutOfMemory => Reason::OUT_OF_MEMORY,
        Failure::DeviceLost => Reason::DEVICE_LOST,
        Failure::WorkerCrashed => Reason::WORKER_DIED,
        Failure::ForbiddenCall => Reason::FORBIDDEN_CALL,
        Failure::AdapterQuarantined | Failure::QueueFull | Failure::Internal => {
            Reason::PROVIDER_FAULT
        }
    }
}
