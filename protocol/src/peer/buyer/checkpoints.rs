//! How far units have come, with all that it takes to go on from there.
//!
//! ```text
//! provider: Checkpoint ─▶ arriving ─all its blobs are here─▶ reached ─provider lost─▶ a request
//!                            │                                  │                     to another
//!                            └─one did not come: forgotten      └─unit decided: forgotten
//! ```
//!
//! One is on its way for an agreement at a time, and one is kept: the newest. So what a
//! provider can make us keep has a bound, and it can't make us fetch without pause.
//!
//! A checkpoint is nobody's signature. Who goes on from somebody's wrong one comes to a
//! wrong result by honest work, so a job whose results are compared begins anew, except
//! at the account that made the checkpoint. Where what went on fails by the job's fault,
//! the unit begins anew as well, once.

use super::{active::store_or_fetch, *};
use crate::{limits::CHECKPOINTS_MAX, wire};

/// Bytes that a request's inputs and checkpoints may take together: the rest of an
/// envelope is for all else.
const NAMED_BYTES_MAX: usize = 12 * 1024;

/// A checkpoint that is here.
#[derive(Debug)]
pub(super) struct Reached {
    /// Whose. None for one that is known from records.
    agreement: Option<AgreementId>,
    account: AccountId,
    kept: Checkpoint,
}

impl Reached {
    pub(super) const fn new(account: AccountId, kept: Checkpoint) -> Self {
        Self {
            agreement: None,
            account,
            kept,
        }
    }

    pub(super) const fn done(&self) -> u64 {
        self.kept.done
    }

    pub(super) fn blobs(&self) -> impl Iterator<Item = BlobRef> {
        self.kept.blobs()
    }

    pub(super) fn record(&self, job: JobId) -> Record {
        Record::Reached {
            job,
            account: self.account,
            kept: self.kept.clone(),
        }
    }
}

/// A checkpoint of which not all is here.
#[derive(Debug)]
pub(super) struct Arriving {
    kept: Checkpoint,
    missing: BTreeSet<BlobId>,
}

impl Arriving {
    pub(super) fn blobs(&self) -> impl Iterator<Item = BlobRef> {
        self.kept.blobs()
    }
}

impl Buyer {
    /// A provider says from where another could go on.
    pub(crate) fn on_checkpoint(
        &mut self,
        core: &mut Core,
        from: PeerId,
        agreement: AgreementId,
        kept: Checkpoint,
        inline: Vec<InlineBlob>,
    ) {
        let Some((id, active)) = self.heard(core, from, agreement) else {
            return;
        };
        let request = active.deal.request().body();
        let Some(every) = request.checkpoint_every else {
            return core.misbehaved(from, "a checkpoint that was not asked for");
        };
        if !kept.is_of(&request.work) {
            return core.misbehaved(from, "no checkpoint of this work");
        }
        let rested = active.reached_at.map(|at| core.now.mono.since(at));
        let is_early = rested.is_some_and(|rested| rested < every.duration() / 2);
        if is_early || active.arriving.is_some() || !active.left.contains(&kept.unit) {
            return;
        }
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let known = job.reached.get(&kept.unit);
        let is_old = known.is_some_and(|known| known.done() >= kept.done);
        if is_old || job.anew.contains(&kept.unit) {
            return;
        }
        self.take_in(core, id, agreement, kept, inline);
    }

    /// Stores what came with it and asks for the rest.
    fn take_in(
        &mut self,
        core: &mut Core,
        id: JobId,
        agreement: AgreementId,
        kept: Checkpoint,
        inline: Vec<InlineBlob>,
    ) {
        let job = self.jobs.get_mut(&id);
        let Some(active) = job.and_then(|job| job.live.get_mut(&agreement)) else {
            return;
        };
        let mut missing = BTreeSet::new();
        for blob in kept.blobs() {
            if !missing.insert(blob.blob) {
                continue;
            }
            let came = inline.iter().find(|inline| inline.blob == blob.blob);
            let what = (Kept::State(agreement), Fetched::State);
            core.output(store_or_fetch(&active.deal, blob, came, what));
        }
        active.arriving = Some(Arriving { kept, missing });
    }

    /// A part of a checkpoint is here, or is not to be had: the next one may be.
    pub(super) fn on_state_fetched(
        &mut self,
        core: &mut Core,
        id: JobId,
        (agreement, blob): (AgreementId, BlobId),
        ok: bool,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(active) = job.live.get_mut(&agreement) else {
            return;
        };
        let Some(arriving) = &mut active.arriving else {
            return;
        };
        if !arriving.missing.remove(&blob) {
            return;
        }
        if ok && !arriving.missing.is_empty() {
            return;
        }
        let Some(Arriving { kept, .. }) = active.arriving.take() else {
            return;
        };
        if !ok || !active.left.contains(&kept.unit) {
            return;
        }
        active.reached_at = Some(core.now.mono);
        let account = active.deal.quote().body().account;
        core.persist(Record::Reached {
            job: id,
            account,
            kept: kept.clone(),
        });
        // What it had reached of another unit it has done since, or has given up.
        job.reached
            .retain(|_, reached| reached.agreement != Some(agreement));
        let reached = Reached {
            agreement: Some(agreement),
            account,
            kept,
        };
        job.reached.insert(reached.kept.unit, reached);
    }

    /// What went on from a checkpoint says that the job is at fault. It may be the
    /// checkpoint: the unit begins anew. The work was done as agreed, and is paid.
    pub(super) fn begin_anew(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: JobId,
        collecting: Collecting,
    ) {
        let key = collecting.receipt.body().key;
        let word = (Verification::HASHES, List::truncated(collecting.small));
        self.pay(core, ledger, id, &collecting.receipt, word);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.begins_anew(key);
        }
        self.retire_if_done(core, id, key.agreement);
        core.wake(Timer::Job(id), Duration::ZERO);
    }
}

impl Job {
    /// Where units of a request to an account go on.
    pub(super) fn resumed(&self, units: &[u32], account: AccountId) -> Vec<Checkpoint> {
        let is_compared = self.order.verify.told() != Verification::HASHES;
        let reached = units.iter().filter_map(|unit| self.reached.get(unit));
        let may = |reached: &&Reached| !is_compared || reached.account == account;
        let kept = reached.filter(may).map(|reached| reached.kept.clone());
        kept.take(CHECKPOINTS_MAX).collect()
    }

    /// Those of an agreement's own units, for a provider that may have lost them.
    pub(super) fn resumed_at(&self, active: &Active) -> Vec<Checkpoint> {
        let units: Vec<u32> = active.left.iter().copied().collect();
        self.resumed(&units, active.deal.quote().body().account)
    }

    /// A unit of an agreement is over and yet not decided: no checkpoint of it counts
    /// from now on.
    pub(super) fn begins_anew(&mut self, key: ReceiptKey) {
        self.losses += 1;
        self.anew.insert(key.unit);
        self.reached.remove(&key.unit);
        self.no_longer_runs(key.unit, key.agreement);
        if let Some(active) = self.live.get_mut(&key.agreement) {
            active.left.remove(&key.unit);
        }
    }

    /// Whether a receipt blames the job for what may be a checkpoint's fault.
    pub(super) fn is_in_doubt(&self, receipt: &Receipt) -> bool {
        let deal = self.deal(receipt.key.agreement);
        let resumed = deal.and_then(|deal| deal.request().body().checkpoint(receipt.key.unit));
        resumed.is_some() && matches!(receipt.outcome, Outcome::JobFault(_))
    }
}

/// As many checkpoints as a request has room for beside so many inputs.
pub(super) fn named(mut kept: Vec<Checkpoint>, inputs: usize) -> List<Checkpoint, CHECKPOINTS_MAX> {
    let room = NAMED_BYTES_MAX.saturating_sub(inputs * size_of::<BlobRef>());
    while wire::encode(&kept).len() > room {
        kept.pop();
    }
    List::truncated(kept)
}
