//! Inputs that others have, and results that others may read.
//!
//! ```text
//! as the reader:  Ask with grants ──quoted──▶ kept with the hold, then the agreement
//!                                   missing inputs are fetched from who has them
//! as the holder:  Grant by the agreement's client, from it or from the reader
//!                                   ──▶ kept with the agreement, as long as it lives
//! ```
//!
//! A grant is kept with what it belongs to, so that nobody can fill a provider with grants
//! who has no quote of it or no result. Results that a grant names are kept as long as it
//! lives, but no longer than twice the time in which they may be collected: however many
//! grants a client signs, nobody stores for it without end.
//!
//! Absent: grants after a restart. The reader then fails for want of inputs, and its client
//! brings them home.

use super::*;
use crate::limits::GRANTS_KEPT;

/// Who else may read an agreement's results: of each grant what counts, so that it takes no
/// more than the names of these results.
#[derive(Debug, Default)]
pub(super) struct Granted(VecDeque<Leave>);

#[derive(Debug, PartialEq, Eq)]
struct Leave {
    reader: PeerId,
    until: Wall,
    blobs: BTreeSet<BlobId>,
}

impl Granted {
    fn add(&mut self, now: Wall, leave: Leave) {
        self.0.retain(|known| known.until > now && *known != leave);
        self.0.push_back(leave);
        if self.0.len() > GRANTS_KEPT {
            self.0.pop_front();
        }
    }

    pub(super) fn has(&self, now: Wall, reader: PeerId, blob: BlobId) -> bool {
        self.0
            .iter()
            .any(|leave| leave.reader == reader && leave.until > now && leave.blobs.contains(&blob))
    }
}

/// Grants of a request that lead anywhere.
pub(super) fn readable(
    core: &Core,
    request: &Verified<Request>,
    grants: Vec<Verified<Grant>>,
) -> Vec<Verified<Grant>> {
    let me = core.me();
    let leads = |grant: &Verified<Grant>| {
        let body = grant.body();
        let named = |blob: &BlobId| request.body().read().any(|read| read.blob == *blob);
        body.reader == me
            && body.holder != me
            && grant.signer() == request.signer()
            && body.blobs.iter().all(named)
    };
    grants.into_iter().filter(leads).collect()
}

/// Who has an input, and under which agreement it was made.
pub(super) fn holder_of(
    grants: &[Verified<Grant>],
    blob: BlobId,
    now: Wall,
) -> Option<(PeerId, AgreementId)> {
    let mut grants = grants.iter();
    let grant = grants.find(|grant| grant.expires() > now && grant.body().blobs.contains(&blob))?;
    Some((grant.body().holder, grant.body().agreement))
}

impl Seller {
    /// Results of ours may be read by somebody else. What does not fit together is not
    /// answered: nobody learns so what we have.
    pub(crate) fn on_grant(&mut self, core: &mut Core, from: PeerId, grant: Verified<Grant>) {
        let body = grant.body();
        let deal = self.deals.get_mut(&body.agreement);
        let Some(deal) = deal.filter(|deal| deal.deal.client() == grant.signer()) else {
            return;
        };
        let is_said_by_either = from == grant.signer() || from == body.reader;
        let now = core.now.wall;
        if body.holder != core.me() || !is_said_by_either || grant.expires() <= now {
            return;
        }
        let made: BTreeSet<BlobId> = deal.outputs().map(|output| output.blob).collect();
        if !body.blobs.iter().all(|blob| made.contains(blob)) {
            return;
        }
        let ended = deal
            .issued
            .values()
            .map(|issued| issued.receipt.body().ended);
        let collect_max = deal.deal.quote().body().collect_max.duration();
        let most = ended.max().unwrap_or(now).after(collect_max * 2);
        let until = grant.expires().min(most);
        let blobs: BTreeSet<BlobId> = body.blobs.iter().copied().collect();
        for &blob in &blobs {
            core.output(Output::Retain { blob, until });
        }
        let reader = body.reader;
        deal.granted.add(
            now,
            Leave {
                reader,
                until,
                blobs,
            },
        );
    }
}

impl Committed {
    /// All that its executions have written.
    pub(super) fn outputs(&self) -> impl Iterator<Item = BlobRef> {
        let receipts = self.issued.values().map(|issued| issued.receipt.body());
        let outputs = receipts.flat_map(|receipt| receipt.outputs.iter());
        outputs.map(|output| output.blob)
    }
}
