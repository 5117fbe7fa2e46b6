//! What a past comes down to: the records of a checkpoint.
//!
//! ```text
//! records ──replay──▶ state ──condense──▶ fewer records ──replay──▶ the same state
//! ```
//!
//! The state is rebuilt beside the running peer and never acts: what is stated
//! here is what a restart would know, and nothing that only the running peer
//! knows. So a checkpoint can be made at any time, of any first part of a
//! journal, by whoever can read it. The simulator restores crashed nodes from
//! checkpoints, and from all records beside that, and lets both live on.
//!
//! Absent: which history people may still ask for (see [`Record::worth`]), and
//! how checkpoints are stored.

use super::*;
use crate::{limits::KEPT_LIST_MAX, record::Part};

impl Peer {
    /// Fewer records that restore the same peer. They stand for all of
    /// `records`, which begin with the journal's first or with the records of
    /// an earlier checkpoint; records after them are replayed as ever.
    pub fn condense(
        now: Wall,
        config: &Config,
        signer: &Signer,
        records: impl Iterator<Item = Record>,
    ) -> Vec<Record> {
        // An offer that has just run out has not for a restart whose clock was
        // put back since.
        let earlier = now
            .as_millis()
            .saturating_sub(Millis::from(OFFER_TTL_MAX).get());
        let now = Now {
            mono: Mono::from_micros(0),
            wall: Wall::from_millis(earlier),
        };
        let records = records.map(|record| (Lsn(0), record));
        let peer = Self::replayed(now, config.clone(), signer.clone(), [0; 32], records);
        let mut kept = Vec::new();
        peer.book.condense(&mut kept);
        peer.buyer.condense(&mut kept);
        peer.seller.condense(&mut kept);
        // After the words on results, whose sums they are.
        let standings = &peer.core.standings;
        let results = standings.results();
        let results = results.map(|(of, results)| Part::Results(of, Box::new(results.clone())));
        kept.extend(results.map(Record::Part));
        kept.extend(standings.challenges().cloned().map(Record::Challenged));
        kept.extend(standings.vouches().cloned().map(Record::Vouched));
        // The parts of one account follow what they are the sums of.
        peer.ledger.condense(&mut kept);
        kept
    }
}

impl Book {
    /// Never empty, so that no checkpoint is.
    fn condense(&self, into: &mut Vec<Record>) {
        let partners: Vec<AccountId> = self.partners().collect();
        let none = partners.is_empty().then_some(&[][..]);
        into.extend(none.into_iter().chain(partners.chunks(KEPT_LIST_MAX)).map(
            |accounts: &[AccountId]| {
                Record::Part(Part::Partners(List::truncated(accounts.to_vec())))
            },
        ));
    }
}
