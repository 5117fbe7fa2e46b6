//! Inputs that others have, and results that others may read.
//!
//! ```text
//! as the reader:  Grant by a client ──▶ kept with its hold, then with its agreement
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
//! Absent: grants after a restart, until the client gives them again.

use super::*;
use crate::limits::{GRANTS_KEPT, HOLDERS_PER_REQUEST};

/// Who else may read an agreement's results: of each grant what counts, so that it takes no
/// more than the names of these results.
#[derive(Debug, Default)]
pub(super) struct Granted(VecDeque<Leave>);

#[derive(Debug, PartialEq, Eq)]
struct Leave {
    reader: PeerId,
    /// As long as results are kept at most,
    until: Wall,
    /// and as long as the grant lives.
    asked: Wall,
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

    /// Whether a reader may read all of it for as long.
    fn has_all(&self, now: Wall, reader: PeerId, until: Wall, blobs: &BTreeSet<BlobId>) -> bool {
        let is_it = |leave: &Leave| {
            leave.reader == reader
                && leave.until > now
                && (leave.until >= until || leave.asked >= until)
                && leave.blobs.is_superset(blobs)
        };
        self.0.iter().any(is_it)
    }

    pub(super) fn has(&self, now: Wall, reader: PeerId, blob: BlobId) -> bool {
        self.0
            .iter()
            .any(|leave| leave.reader == reader && leave.until > now && leave.blobs.contains(&blob))
    }
}

/// Inputs that others have: by whom, and until when they may be read there.
#[derive(Debug, Clone, Default)]
pub(super) struct Elsewhere(Vec<Verified<Grant>>);

impl Elsewhere {
    /// Keeps a grant in place of an earlier one for the same holder.
    fn add(&mut self, grant: &Verified<Grant>) {
        let of = |grant: &Verified<Grant>| (grant.body().holder, grant.body().agreement);
        self.0.retain(|known| of(known) != of(grant));
        if self.0.len() < HOLDERS_PER_REQUEST {
            self.0.push(grant.clone());
        }
    }

    /// Who has an input, and under which agreement it was made.
    pub(super) fn holder_of(&self, blob: BlobId, now: Wall) -> Option<(PeerId, AgreementId)> {
        let mut grants = self.0.iter().map(|grant| (grant.expires(), grant.body()));
        let found = grants.find(|(expires, body)| *expires > now && body.blobs.contains(&blob));
        found.map(|(_, body)| (body.holder, body.agreement))
    }

    /// Tells those who have inputs that they may give them to us. Their client does, too;
    /// it may not reach them.
    pub(super) fn show(&self, core: &mut Core, lsn: Lsn) {
        for grant in &self.0 {
            core.send_after(lsn, grant.body().holder, Frame::Grant(grant.raw()));
        }
    }
}

/// Whether a request reads all that a grant names.
fn reads_all(request: &Request, grant: &Grant) -> bool {
    let read: BTreeSet<BlobId> = request.read().map(|read| read.blob).collect();
    !grant.blobs.is_empty() && grant.blobs.iter().all(|blob| read.contains(blob))
}

impl Seller {
    /// Results of ours may be read by somebody else. What does not fit together is not
    /// answered: nobody learns so what we have.
    pub(crate) fn on_grant(&mut self, core: &mut Core, from: PeerId, grant: &Verified<Grant>) {
        if grant.body().holder == core.me() {
            self.let_read(core, from, grant);
        } else if grant.body().reader == core.me() && grant.signer() == from {
            self.may_fetch(from, grant);
        }
    }

    /// What a client's work reads, somebody else has.
    fn may_fetch(&mut self, client: PeerId, grant: &Verified<Grant>) {
        let body = grant.body();
        for hold in self.holds.values_mut() {
            let request = hold.request.body();
            if hold.request.signer() == client && reads_all(request, body) {
                hold.elsewhere.add(grant);
            }
        }
        for id in &self.open {
            let Some(deal) = self.deals.get_mut(id) else {
                continue;
            };
            let is_its = deal.deal.client() == client
                && matches!(deal.stage, Stage::Fetching | Stage::Interrupted)
                && reads_all(deal.deal.request().body(), body);
            // What is being fetched from the client fails there, and is fetched again.
            if is_its {
                deal.elsewhere.add(grant);
            }
        }
    }

    fn let_read(&mut self, core: &mut Core, from: PeerId, grant: &Verified<Grant>) {
        let body = grant.body();
        let deal = self.deals.get_mut(&body.agreement);
        let Some(deal) = deal.filter(|deal| deal.deal.client() == grant.signer()) else {
            return;
        };
        let is_said_by_either = from == grant.signer() || from == body.reader;
        let now = core.now.wall;
        if body.blobs.is_empty() || !is_said_by_either || grant.expires() <= now {
            return;
        }
        let blobs: BTreeSet<BlobId> = body.blobs.iter().copied().collect();
        if deal
            .granted
            .has_all(now, body.reader, grant.expires(), &blobs)
        {
            return;
        }
        let made = deal.outputs().filter(|output| blobs.contains(&output.blob));
        let made: BTreeSet<BlobId> = made.map(|output| output.blob).collect();
        if made != blobs {
            return;
        }
        let ended = deal
            .issued
            .values()
            .map(|issued| issued.receipt.body().ended);
        let collect_max = deal.deal.quote().body().collect_max.duration();
        let most = ended.max().unwrap_or(now).after(collect_max * 2);
        let until = grant.expires().min(most);
        for &blob in &blobs {
            core.output(Output::Retain { blob, until });
        }
        let reader = body.reader;
        deal.granted.add(
            now,
            Leave {
                reader,
                until,
                asked: grant.expires(),
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
