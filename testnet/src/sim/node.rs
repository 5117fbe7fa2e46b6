//! A node as the simulator holds it: a peer, and the machine around it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use suanli_protocol::{
    envelope::{Signer, Verified},
    ids::{BlobId, Hash, PeerId},
    offer::Offer,
    peer::{Config, ExecutionId, ExecutionOrder, Peer},
    record::{Lsn, Record},
    registry::{Reason, SpeedKind},
    units::{Mono, Now, Wall},
};

use crate::scenario::Nature;

/// A node's number.
pub(crate) type Ix = usize;

/// When the simulation begins: some day.
const EPOCH_MS: u64 = 1_790_000_000_000;

/// The monotonic clock of a machine that just started.
const BOOT_MICROS: u64 = 1_000_000;

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) signer: Signer,
    pub(crate) config: Config,
    pub(crate) nature: Nature,
    /// How many results it invents, if it is a cheat.
    pub(crate) cheats: f64,
    pub(crate) region: String,
    pub(crate) skew_ms: i64,
    /// What the machine can run at once, whatever its peer was told.
    pub(crate) slots: usize,
    /// While it is up.
    pub(crate) peer: Option<Peer>,
    /// While it is up after a start from a checkpoint.
    pub(crate) twin: Option<Peer>,
    pub(crate) boot: u64,
    pub(crate) booted: Mono,
    pub(crate) tick: Option<Mono>,
    /// Outputs until it stops without warning.
    pub(crate) crash_in: Option<u64>,
    pub(crate) disk: Disk,
    pub(crate) runs: BTreeMap<ExecutionId, Run>,
    pub(crate) blobs: BTreeSet<BlobId>,
    pub(crate) neighbours: Vec<Ix>,
    pub(crate) gossip: Gossiper,
}

/// What a gossip layer remembers.
#[derive(Debug, Default)]
pub(crate) struct Gossiper {
    pub(crate) seen: BTreeSet<Hash>,
    pub(crate) tokens: BTreeMap<u64, (Ix, Arc<[u8]>)>,
    pub(crate) next: u64,
    /// What a hostile node gathers.
    pub(crate) offers: BTreeMap<PeerId, Verified<Offer>>,
}

/// One execution.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) number: u64,
    pub(crate) started: Mono,
    pub(crate) order: Box<ExecutionOrder>,
    pub(crate) fate: Fate,
    /// It was told to stop, and is on its way.
    pub(crate) stopping: bool,
}

/// How an execution goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Finishes,
    Fails(Reason),
    Hangs,
    /// Its outputs are not where it says.
    LosesOutputs,
}

impl Node {
    pub(crate) fn peer_id(&self) -> PeerId {
        self.signer.public().peer()
    }

    pub(crate) fn is_honest(&self) -> bool {
        self.nature == Nature::Honest
    }

    /// Both clocks, as this node sees them.
    pub(crate) fn clocks(&self, at: Mono) -> Now {
        let since_boot = at.as_micros().saturating_sub(self.booted.as_micros());
        Now {
            mono: Mono::from_micros(BOOT_MICROS + since_boot),
            wall: self.wall(at),
        }
    }

    pub(crate) fn wall(&self, at: Mono) -> Wall {
        let true_ms = EPOCH_MS + at.as_micros() / 1000;
        Wall::from_millis(true_ms.saturating_add_signed(self.skew_ms))
    }

    /// When the peer wants to be woken, on the world's clock.
    pub(crate) fn next_timeout(&self) -> Option<Mono> {
        let at = self.peer.as_ref()?.next_timeout()?;
        Some(Mono::from_micros(
            self.booted.as_micros() + at.as_micros().saturating_sub(BOOT_MICROS),
        ))
    }

    /// How long so many operations take on one of its devices.
    pub(crate) fn millis_for(&self, operations: u64, device: u16) -> u64 {
        let provider = self.config.provider.as_ref();
        let device = provider.and_then(|p| p.offer.devices.get(usize::from(device)));
        let speed = device.map_or(0, |device| device.speed(SpeedKind::FP32));
        let millis = u128::from(operations) * 1000;
        u64::try_from(millis.div_ceil(u128::from(speed.max(1)))).unwrap_or(u64::MAX)
    }

    /// Executions that were not told to stop.
    pub(crate) fn running(&self) -> usize {
        self.runs.values().filter(|run| !run.stopping).count()
    }
}

/// A disk on which records become durable some time after they are written,
/// in order.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    durable: Vec<(Lsn, Record)>,
    pending: VecDeque<(Lsn, Record)>,
    upto: Lsn,
    /// The newest checkpoint: how many records it stands for, and its own.
    checkpoint: Option<(usize, Vec<Record>)>,
    pub(crate) syncing: bool,
}

impl Disk {
    /// A disk with an old copy of what was on it.
    pub(crate) fn holding(durable: Vec<(Lsn, Record)>) -> Self {
        let upto = durable.last().map_or(Lsn(0), |(lsn, _)| *lsn);
        Self {
            durable,
            upto,
            ..Self::default()
        }
    }

    pub(crate) fn write(&mut self, lsn: Lsn, record: Record) {
        self.pending.push_back((lsn, record));
    }

    /// The last position that is on disk, or is said to be.
    pub(crate) const fn upto(&self) -> Lsn {
        self.upto
    }

    /// The last position written.
    pub(crate) fn written(&self) -> Lsn {
        self.pending.back().map_or(self.upto, |(lsn, _)| *lsn)
    }

    /// Records that are written and not on disk yet, oldest first.
    pub(crate) fn unsynced(&self) -> impl Iterator<Item = &Record> {
        self.pending.iter().map(|(_, record)| record)
    }

    /// Records up to a position reach the disk, but for those that it loses.
    /// Gives what is new on it.
    pub(crate) fn sync(&mut self, upto: Lsn, loses: impl Fn(&Record) -> bool) -> Vec<Record> {
        let mut new = Vec::new();
        while let Some((lsn, record)) = self.pending.pop_front_if(|(lsn, _)| *lsn <= upto) {
            self.upto = lsn;
            if !loses(&record) {
                new.push(record.clone());
                self.durable.push((lsn, record));
            }
        }
        new
    }

    /// The power fails: of what was not synced, the first few may have made it.
    pub(crate) fn crash(&mut self, survive: usize) -> Vec<Record> {
        self.pending.truncate(survive);
        self.syncing = false;
        self.sync(Lsn(u64::MAX), |_| false)
    }

    /// What the next sync up to a position writes.
    pub(crate) fn due(&self, upto: Lsn) -> impl Iterator<Item = &Record> {
        self.pending
            .iter()
            .filter(move |(lsn, _)| *lsn <= upto)
            .map(|(_, record)| record)
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Loses records that it had.
    pub(crate) fn lose(&mut self, which: impl Fn(&Record) -> bool) {
        self.checkpoint = None;
        self.durable.retain(|(_, record)| !which(record));
    }

    pub(crate) fn records(&self) -> &[(Lsn, Record)] {
        &self.durable
    }

    fn condensed(&self) -> usize {
        self.checkpoint.as_ref().map_or(0, |(upto, _)| *upto)
    }

    /// How many records there are since the newest checkpoint.
    pub(crate) fn since_checkpoint(&self) -> usize {
        self.durable.len() - self.condensed()
    }

    /// The newest checkpoint with so many of the records that followed, and how
    /// many records these stand for.
    pub(crate) fn first_of(&self, more: usize) -> (usize, Vec<Record>) {
        let from = self.condensed();
        let kept = self.checkpoint.iter().flat_map(|(_, kept)| kept);
        let followed = self.durable[from..from + more].iter().map(|(_, r)| r);
        (from + more, kept.chain(followed).cloned().collect())
    }

    pub(crate) fn write_checkpoint(&mut self, upto: usize, kept: Vec<Record>) {
        self.checkpoint = Some((upto, kept));
    }

    /// The newest checkpoint and all that followed, if there is one.
    pub(crate) fn restorable(&self) -> Option<Vec<(Lsn, Record)>> {
        let (upto, kept) = self.checkpoint.as_ref()?;
        let (last, _) = self.durable.get(upto.checked_sub(1)?)?;
        let kept = kept.iter().map(|record| (*last, record.clone()));
        Some(kept.chain(self.durable[*upto..].iter().cloned()).collect())
    }
}
