//! Results that stay where they were made, and what of them our other jobs read.
//!
//! ```text
//! result with outputs that stay ──accepted──▶ known: who has them, by blob
//! another job reads one ──▶ asked: a grant beside the request, and one to who has it
//!                              └─ inputs missing ──▶ brought home ──here──▶ asked again
//!                                                        └─ not to be had: the job fails
//! ```
//!
//! So data between two jobs travels from provider to provider, and by way of this node
//! only where that does not work. What came with its receipt is here and stays nowhere.
//! Several providers may have made the same: the next one is tried when the first does not
//! give it.
//!
//! Absent: keeping results beyond the time that the quote gives for collecting them. And
//! paying only for what was read: a result that stays is paid for by its hash, and whoever
//! does not give it then is left out like one that was lost.

use super::*;
use crate::{
    grant::{Grant, RawGrants},
    limits::{GRANT_TTL_MAX, STAYING_MAX},
    receipt::OutputRef,
};

/// Providers of which it is remembered that they have one result.
const HOLDERS_MAX: usize = 3;

/// Where results are.
#[derive(Debug, Default)]
pub(super) struct Staying {
    of: BTreeMap<BlobId, VecDeque<Holder>>,
    order: VecDeque<BlobId>,
    /// Brought home, for these jobs.
    coming: BTreeMap<BlobId, Coming>,
}

/// Who has a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    peer: PeerId,
    account: AccountId,
    /// Under which it was made.
    agreement: AgreementId,
}

#[derive(Debug)]
struct Coming {
    blob: BlobRef,
    jobs: BTreeSet<JobId>,
    tries: u32,
}

/// A request's grants: beside it, and for those who have what it reads.
#[derive(Debug, Clone, Default)]
pub(super) struct Grants(Vec<Verified<Grant>>);

impl Grants {
    pub(super) fn raw(&self) -> RawGrants {
        List::truncated(self.0.iter().map(Verified::raw).collect())
    }

    /// Tells those who have the results, once a record is written.
    pub(super) fn tell(&self, core: &mut Core, lsn: Lsn) {
        for grant in &self.0 {
            core.send_after(lsn, grant.body().holder, Frame::Grant(grant.raw()));
        }
    }
}

impl Staying {
    /// An accepted result has outputs that stay.
    fn add(&mut self, blob: BlobId, holder: Holder) {
        let known = self.of.entry(blob).or_insert_with(|| {
            self.order.push_back(blob);
            VecDeque::new()
        });
        if !known.contains(&holder) {
            known.push_front(holder);
            known.truncate(HOLDERS_MAX);
        }
        while self.order.len() > STAYING_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.of.remove(&oldest);
            }
        }
    }

    /// It is here now.
    fn is_home(&mut self, blob: BlobId) {
        if self.of.remove(&blob).is_some() {
            self.order.retain(|known| *known != blob);
        }
    }

    fn holder(&self, blob: BlobId) -> Option<Holder> {
        self.of.get(&blob)?.front().copied()
    }

    pub(super) fn has(&self, blob: BlobId) -> bool {
        self.of.contains_key(&blob)
    }

    /// How many bytes of what a job reads each provider has, and how many are not here.
    pub(super) fn bytes_of(&self, inputs: &[BlobRef]) -> (BTreeMap<PeerId, u64>, u64) {
        let (mut by_peer, mut away) = (BTreeMap::<PeerId, u64>::new(), 0u64);
        if self.of.is_empty() {
            return (by_peer, away);
        }
        for input in inputs {
            let Some(holders) = self.of.get(&input.blob) else {
                continue;
            };
            away = away.saturating_add(input.bytes);
            for holder in holders {
                let sum = by_peer.entry(holder.peer).or_default();
                *sum = sum.saturating_add(input.bytes);
            }
        }
        (by_peer, away)
    }

    /// Leave for a provider to read what others have.
    pub(super) fn grants(&self, core: &Core, request: &Request) -> Grants {
        if self.of.is_empty() {
            return Grants::default();
        }
        let mut by_holder = BTreeMap::<(PeerId, AgreementId), BTreeSet<BlobId>>::new();
        for input in request.read() {
            let holders = self.of.get(&input.blob);
            let is_there = |holder: &Holder| holder.peer == request.provider;
            let holders = holders.filter(|holders| !holders.iter().any(is_there));
            if let Some(holder) = holders.and_then(VecDeque::front) {
                let blobs = by_holder.entry((holder.peer, holder.agreement));
                blobs.or_default().insert(input.blob);
            }
        }
        let timing = &core.config.timing;
        let lives = (timing.hold + timing.hold_grace + timing.transfer_max).min(GRANT_TTL_MAX);
        let expires = core.now.wall.after(lives);
        let grants = by_holder.into_iter().map(|((holder, agreement), blobs)| {
            let grant = Grant {
                holder,
                agreement,
                reader: request.provider,
                blobs: List::truncated(blobs.into_iter().collect()),
                extensions: Extensions::default(),
            };
            core.sign_until(expires, grant)
        });
        Grants(grants.collect())
    }
}

impl Buyer {
    /// Whether a result is known to stay with a provider.
    pub(crate) fn is_staying(&self, blob: BlobId) -> bool {
        self.staying.has(blob)
    }

    /// A receipt was accepted: what of its outputs stays is remembered.
    pub(super) fn remember_staying(
        &mut self,
        id: JobId,
        receipt: &Verified<Receipt>,
        here: &[BlobId],
    ) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let agreement = receipt.body().key.agreement;
        let Some(deal) = job.deal(agreement) else {
            return;
        };
        let holder = Holder {
            peer: receipt.signer(),
            account: deal.quote().body().account,
            agreement,
        };
        for output in receipt.body().outputs.iter() {
            if job.stays(output) && !here.contains(&output.blob.blob) {
                self.staying.add(output.blob.blob, holder);
            }
        }
    }

    /// A provider could not have what others of ours should have given it: that comes here
    /// first. Whether there is anything.
    pub(super) fn bring_home(
        &mut self,
        core: &mut Core,
        id: JobId,
        agreement: AgreementId,
    ) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else {
            return false;
        };
        let Some(deal) = job.deal(agreement) else {
            return false;
        };
        let reads: BTreeSet<BlobRef> = deal.request().body().read().collect();
        for blob in reads {
            let Some(holder) = self.staying.holder(blob.blob) else {
                continue;
            };
            job.coming.insert(blob.blob);
            let coming = self.staying.coming.entry(blob.blob);
            let mut is_new = false;
            let coming = coming.or_insert_with(|| {
                is_new = true;
                Coming {
                    blob,
                    jobs: BTreeSet::new(),
                    tries: 0,
                }
            });
            coming.jobs.insert(id);
            if is_new {
                core.output(holder.fetch(blob));
            }
        }
        !job.coming.is_empty()
    }

    /// What was to come home is here, or did not come. Whether it was.
    pub(super) fn came_home(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        (agreement, blob): (AgreementId, BlobId),
        ok: bool,
    ) -> bool {
        let holder = self.staying.holder(blob);
        let Some(coming) = self.staying.coming.get_mut(&blob) else {
            return false;
        };
        if holder.is_some_and(|holder| holder.agreement != agreement) {
            return false;
        }
        let wanted = coming.blob;
        if ok {
            self.staying.is_home(blob);
        } else {
            coming.tries += 1;
            if let Some(holder) = holder
                && coming.tries > core.config.timing.fetch_tries
            {
                coming.tries = 0;
                core.failed(holder.peer, holder.account, Failing::Lost);
                if let Some(holders) = self.staying.of.get_mut(&blob) {
                    holders.pop_front();
                }
            }
            if let Some(next) = self.staying.holder(blob) {
                core.output(next.fetch(wanted));
                return true;
            }
            self.staying.is_home(blob);
        }
        let coming = self.staying.coming.remove(&blob);
        for id in coming.map(|coming| coming.jobs).unwrap_or_default() {
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            job.coming.remove(&blob);
            if job.end.is_some() {
                continue;
            }
            if !ok {
                self.end(core, ledger, id, JobEnd::Failed(Reason::INPUTS_MISSING));
            } else if job.coming.is_empty() {
                core.wake(Timer::Job(id), Duration::ZERO);
            }
        }
        true
    }
}

impl Holder {
    const fn fetch(self, blob: BlobRef) -> Output {
        Output::Fetch(FetchOrder {
            agreement: self.agreement,
            from: self.peer,
            under: self.agreement,
            blob,
            what: Fetched::Input,
        })
    }
}

impl Job {
    /// Whether an output stays where it was made.
    pub(super) fn stays(&self, output: &OutputRef) -> bool {
        self.order.staying.contains(&output.name)
    }
}
