//! Results that stay where they were made, and what of them our other jobs read.
//!
//! ```text
//! result with outputs that stay ──accepted──▶ known: who has them, by blob
//! another job reads one ──agreed──▶ a grant to its provider, and to who has it
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
    grant::Grant,
    limits::{GRANT_TTL_MAX, HOLDERS_PER_REQUEST, STAYING_MAX},
    receipt::OutputRef,
};

/// Providers of which it is remembered that they have one result.
const HOLDERS_MAX: usize = 3;
/// Results that are fetched from one provider at once: as many as it serves to one peer.
const AT_ONCE: usize = 4;
/// How often one is tried, a pause apart, before its maker is said to have lost it.
const TRIES: u32 = 16;

/// Where results are.
#[derive(Debug, Default)]
pub(super) struct Staying {
    of: BTreeMap<BlobId, VecDeque<Holder>>,
    order: VecDeque<BlobId>,
    /// Brought home, for jobs of ours.
    coming: BTreeMap<BlobId, Coming>,
}

/// Who has a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    peer: PeerId,
    account: AccountId,
    /// Under which it was made.
    agreement: AgreementId,
    /// Until when it is kept.
    until: Wall,
}

#[derive(Debug)]
struct Coming {
    blob: BlobRef,
    jobs: BTreeSet<JobId>,
    /// From whom it is being fetched.
    from: Option<Holder>,
    tries: u32,
}

impl Staying {
    /// An accepted result has outputs that stay.
    fn add(&mut self, blob: BlobId, holder: Holder) {
        let known = self.of.entry(blob).or_insert_with(|| {
            self.order.push_back(blob);
            VecDeque::new()
        });
        known.retain(|known| known.peer != holder.peer);
        known.push_front(holder);
        known.truncate(HOLDERS_MAX);
        while self.order.len() > STAYING_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.of.remove(&oldest);
            }
        }
    }

    /// It is here now, or nowhere.
    fn is_over(&mut self, blob: BlobId) -> Option<Coming> {
        if self.of.remove(&blob).is_some() {
            self.order.retain(|known| *known != blob);
        }
        self.coming.remove(&blob)
    }

    /// Those who keep it still, the last that made it first.
    fn holders(&self, now: Wall, blob: BlobId) -> impl Iterator<Item = &Holder> {
        let holders = self.of.get(&blob).into_iter().flatten();
        holders.filter(move |holder| holder.until > now)
    }

    pub(super) fn has(&self, now: Wall, blob: BlobId) -> bool {
        self.holders(now, blob).next().is_some()
    }

    /// How many bytes of what a job reads each provider has, and how many are not here.
    pub(super) fn bytes_of(&self, now: Wall, inputs: &[BlobRef]) -> (BTreeMap<PeerId, u64>, u64) {
        let (mut by_peer, mut away) = (BTreeMap::<PeerId, u64>::new(), 0u64);
        if self.of.is_empty() {
            return (by_peer, away);
        }
        for input in inputs {
            let mut is_away = false;
            for holder in self.holders(now, input.blob) {
                is_away = true;
                let sum = by_peer.entry(holder.peer).or_default();
                *sum = sum.saturating_add(input.bytes);
            }
            away = away.saturating_add(if is_away { input.bytes } else { 0 });
        }
        (by_peer, away)
    }

    /// Lets a provider that has agreed read what others have: tells it, and them.
    pub(super) fn grant(&self, core: &mut Core, lsn: Lsn, request: &Request) {
        if self.of.is_empty() {
            return;
        }
        let (now, reader) = (core.now.wall, request.provider);
        let mut by_holder = BTreeMap::<(PeerId, AgreementId), BTreeSet<BlobId>>::new();
        for input in request.read() {
            if self
                .holders(now, input.blob)
                .any(|holder| holder.peer == reader)
            {
                continue;
            }
            if let Some(holder) = self.holders(now, input.blob).next() {
                let blobs = by_holder.entry((holder.peer, holder.agreement));
                blobs.or_default().insert(input.blob);
            }
        }
        let timing = &core.config.timing;
        let lives = (timing.hold + timing.transfer_max).min(GRANT_TTL_MAX);
        let expires = now.after(lives);
        for ((holder, agreement), blobs) in by_holder.into_iter().take(HOLDERS_PER_REQUEST) {
            let grant = Grant {
                holder,
                agreement,
                reader,
                blobs: List::truncated(blobs.into_iter().collect()),
                extensions: Extensions::default(),
            };
            let grant = core.sign_until(expires, grant).raw();
            for peer in [holder, reader] {
                core.send_after(lsn, peer, Frame::Grant(grant.clone()));
            }
        }
    }
}

impl Buyer {
    /// Whether a result is known to stay with a provider.
    pub(crate) fn is_staying(&self, now: Wall, blob: BlobId) -> bool {
        self.staying.has(now, blob)
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
        let quote = deal.quote().body();
        let holder = Holder {
            peer: receipt.signer(),
            account: quote.account,
            agreement,
            until: receipt.body().ended.after(quote.collect_max.duration() * 2),
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
        let now = core.now.wall;
        let Some(job) = self.jobs.get_mut(&id) else {
            return false;
        };
        let Some(deal) = job.deal(agreement) else {
            return false;
        };
        let reads: BTreeSet<BlobRef> = deal.request().body().read().collect();
        for blob in reads {
            if !self.staying.has(now, blob.blob) {
                continue;
            }
            job.coming.insert(blob.blob);
            let coming = self.staying.coming.entry(blob.blob);
            let coming = coming.or_insert_with(|| Coming {
                blob,
                jobs: BTreeSet::new(),
                from: None,
                tries: 0,
            });
            coming.jobs.insert(id);
        }
        let comes = !job.coming.is_empty();
        self.fetch_home(core, id);
        comes
    }

    /// Fetches what a job waits for, a few at once from each provider. Whether all of it
    /// can still come: nobody keeps a result for ever.
    pub(super) fn fetch_home(&mut self, core: &mut Core, id: JobId) -> bool {
        let Some(job) = self.jobs.get(&id) else {
            return true;
        };
        let mut lost = Vec::new();
        let mut busy = BTreeMap::<PeerId, usize>::new();
        for from in self
            .staying
            .coming
            .values()
            .filter_map(|coming| coming.from)
        {
            *busy.entry(from.peer).or_default() += 1;
        }
        for &blob in &job.coming {
            let holder = self.staying.holders(core.now.wall, blob).next().copied();
            let coming = self.staying.coming.get_mut(&blob);
            if coming.as_ref().is_some_and(|coming| coming.from.is_some()) {
                continue;
            }
            let (Some(coming), Some(holder)) = (coming, holder) else {
                lost.push(blob);
                continue;
            };
            let busy = busy.entry(holder.peer).or_default();
            if *busy < AT_ONCE {
                *busy += 1;
                coming.from = Some(holder);
                core.output(holder.fetch(coming.blob));
            }
        }
        for &blob in &lost {
            self.staying.is_over(blob);
        }
        lost.is_empty()
    }

    /// What was to come home is here, or did not come. Whether it was.
    pub(super) fn came_home(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        (agreement, blob): (AgreementId, BlobId),
        ok: bool,
    ) -> bool {
        let Some(coming) = self.staying.coming.get_mut(&blob) else {
            return false;
        };
        let Some(from) = coming.from.filter(|from| from.agreement == agreement) else {
            return false;
        };
        coming.from = None;
        coming.tries += 1;
        if ok {
            for other in self.staying.coming.values_mut() {
                other.tries = 0;
            }
        } else if coming.tries >= TRIES {
            coming.tries = 0;
            core.failed(from.peer, from.account, Failing::Lost);
            if let Some(holders) = self.staying.of.get_mut(&blob) {
                holders.retain(|holder| holder.peer != from.peer);
            }
        }
        if !ok && self.staying.has(core.now.wall, blob) {
            // Those who wait for it try again in a moment.
            return true;
        }
        let coming = self.staying.is_over(blob);
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
            } else {
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
