//! Capacity challenges: products on disk, commitments, checks.
//!
//! A product waits as a file of the scratch folder until it is opened or forgotten; at
//! a start nothing is left of it. All that takes long (hashing, checking) runs on the
//! runtime's blocking threads, as many as the core has challenges at once.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use suanli_executor::{ExecutionId, Executor, OutputBlob, OutputContent, kernels};
use suanli_protocol::{
    challenge::{Challenge, Commitment, Opening, Seed},
    ids::{Hash, PeerId, hex},
    message::Frame,
    peer::{Command, Input, Output, Unanswered, Unreferred},
    units::Millis,
};
use tokio::sync::{mpsc, oneshot};

use super::{Driver, intake::channel_of, key_of};
use crate::{
    handle::{Challenged, Shown},
    transport::{TransportCommand, TransportHandle},
};

/// What the driver keeps of challenges.
#[derive(Debug)]
pub(super) struct Challenges {
    folder: PathBuf,
    inputs: mpsc::Sender<Input>,
    transport: TransportHandle,
    /// Products under way, by their execution's number.
    computing: BTreeMap<u64, Challenge>,
}

impl Challenges {
    pub(super) fn new(
        folder: &Path,
        inputs: &mpsc::Sender<Input>,
        transport: &TransportHandle,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            inputs: inputs.clone(),
            transport: transport.clone(),
            computing: BTreeMap::new(),
        }
    }

    /// Whether an execution is a challenge's.
    pub(super) fn has(&self, number: ExecutionId) -> bool {
        self.computing.contains_key(&number.0)
    }

    /// The challenge of an execution that ended.
    pub(super) fn take(&mut self, number: ExecutionId) -> Option<Challenge> {
        self.computing.remove(&number.0)
    }

    /// The product is there: binds it, and keeps it until it is opened.
    pub(super) fn commit(&self, challenge: Challenge, outputs: Vec<OutputBlob>) {
        let kept = self.file(challenge.seed);
        self.later(move || {
            let committed = kernels::commit(&challenge, &outputs)
                .and_then(|commitment| keep(&outputs, &kept).map(|()| commitment.root()));
            if let Err(error) = &committed {
                tracing::warn!(%error, "a challenge's product could not be kept");
            }
            Input::Computed {
                seed: challenge.seed,
                root: committed.ok(),
            }
        });
    }

    /// Opens a product, and says that to its challenger.
    pub(super) fn open(&self, challenge: Challenge, open: Seed, to: PeerId) {
        let (file, transport) = (self.file(challenge.seed), self.transport.clone());
        tokio::spawn(async move {
            let opened = tokio::task::spawn_blocking(move || {
                let product = fs::read(file).ok()?;
                Some(Commitment::new(challenge, product)?.open(open))
            });
            // What is gone was forgotten; the challenger's own clock tells it.
            let Ok(Some(opening)) = opened.await else {
                return;
            };
            let frame = Frame::Opened(challenge.seed, Box::new(opening));
            let _ = transport
                .send(TransportCommand::Send {
                    to: key_of(to),
                    channel: channel_of(&frame),
                    bytes: frame.encode(),
                })
                .await;
        });
    }

    pub(super) fn forget(&self, seed: Seed) {
        let _ = fs::remove_file(self.file(seed));
    }

    /// Checks what a provider opened.
    pub(super) fn verify(
        &self,
        provider: PeerId,
        challenge: Challenge,
        root: Hash,
        (seed, opening): (Seed, Box<Opening>),
    ) {
        self.later(move || Input::Verified {
            provider,
            result: challenge.verify(root, seed, &opening),
        });
    }

    fn file(&self, seed: Seed) -> PathBuf {
        self.folder.join(format!("challenge-{}", hex(&seed)))
    }

    /// Does something that takes long, and tells the core what came of it.
    fn later(&self, work: impl FnOnce() -> Input + Send + 'static) {
        let inputs = self.inputs.clone();
        // Fails only when the driver has ended.
        tokio::task::spawn_blocking(move || drop(inputs.blocking_send(work())));
    }
}

impl Driver {
    /// What the core wants of a challenge.
    pub(super) async fn on_challenge(&mut self, output: Output) {
        match output {
            Output::Compute {
                challenge,
                device,
                run_max,
            } => self.compute(challenge, device, run_max).await,
            Output::OpenProduct {
                challenge,
                open,
                to,
            } => self.challenges.open(challenge, open, to),
            Output::ForgetProduct(seed) => self.challenges.forget(seed),
            Output::Verify {
                provider,
                challenge,
                root,
                seed,
                opening,
            } => self
                .challenges
                .verify(provider, challenge, root, (seed, opening)),
            // Of something else: its own handler has it.
            _ => {}
        }
    }

    /// Somebody wants a provider challenged, and waits for what that comes to.
    pub(super) async fn challenge(&mut self, provider: PeerId, reply: oneshot::Sender<Challenged>) {
        // An asker that has gone away makes room for the next.
        self.challenging.retain(|_, reply| !reply.is_closed());
        match self.challenging.entry(provider) {
            Entry::Occupied(_) => drop(reply.send(Err(Unanswered::TooMany))),
            Entry::Vacant(free) => {
                free.insert(reply);
                let command = Command::Challenge(provider);
                self.step(Input::Command(command)).await;
            }
        }
    }

    /// Somebody wants a provider's references, and waits for them. If it is asked
    /// already, that answer will do.
    pub(super) async fn ask_references(&mut self, provider: PeerId, reply: oneshot::Sender<Shown>) {
        self.referring.retain(|_, reply| !reply.is_closed());
        match self.referring.entry(provider) {
            Entry::Occupied(_) => drop(reply.send(Err(Unreferred::TooMany))),
            Entry::Vacant(free) => {
                free.insert(reply);
                let command = Command::AskReferences(provider);
                self.step(Input::Command(command)).await;
            }
        }
    }

    /// Starts the execution of a challenge's product.
    async fn compute(&mut self, challenge: Challenge, device: u16, run_max: Millis) {
        self.next_number += 1;
        let number = ExecutionId(self.next_number);
        let folder = self.challenges.folder.join(number.to_string());
        let asked = self.devices.at(device);
        let asked = asked.ok_or_else(|| format!("there is no device {device} here"));
        let started = asked
            .and_then(|executor| run(executor, number, &challenge, run_max.duration(), &folder));
        match started {
            Ok(()) => drop(self.challenges.computing.insert(number.0, challenge)),
            Err(why) => {
                tracing::warn!(why, "a challenge could not be computed");
                let seed = challenge.seed;
                Box::pin(self.step(Input::Computed { seed, root: None })).await;
            }
        }
    }
}

fn run(
    executor: &Executor,
    number: ExecutionId,
    challenge: &Challenge,
    run_limit: Duration,
    folder: &Path,
) -> Result<(), String> {
    let adapter = executor.adapter();
    let adapter = adapter.ok_or_else(|| "no adapter serves here".to_owned())?;
    let software = adapter.is_software();
    kernels::request(number, challenge, software, run_limit, folder)
        .and_then(|request| executor.run(request))
        .map_err(|refusal| refusal.to_string())
}

/// Puts the product where it waits, and removes what held it.
fn keep(outputs: &[OutputBlob], kept: &Path) -> std::io::Result<()> {
    match outputs.first().map(|output| &output.content) {
        Some(OutputContent::File(path)) => {
            fs::rename(path, kept)?;
            if let Some(folder) = path.parent() {
                let _ = fs::remove_dir(folder);
            }
            Ok(())
        }
        Some(OutputContent::Memory(bytes)) => fs::write(kept, bytes),
        None => Ok(()),
    }
}
