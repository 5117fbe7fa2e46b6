//! Blobs that several agreements want at once from the same peer: one of them fetches, and the
//! others wait for it.
//!
//! ```text
//! fetch ─┬─ the first ──▶ transport ──▶ hands ──▶ fetched ─┐
//!        └─ others ──────── wait ◀─────────────────────────┴──▶ found here, or tried again
//! ```
//!
//! Sixty-four jobs with one program are else sixty-four transfers of the same bytes, of which
//! the client serves a few at once and refuses the rest.
//!
//! Absent: other peers. What one is slow to send, another's agreement does not wait for.

use std::collections::BTreeMap;

use suanli_protocol::{
    ids::{AgreementId, BlobId, PeerId},
    peer::FetchOrder,
};

/// Who fetches, and who waits for it: as many as there are agreements at most.
#[derive(Debug, Default)]
pub(super) struct Following {
    of: BTreeMap<(BlobId, PeerId), (AgreementId, Vec<FetchOrder>)>,
}

impl Following {
    /// Whether somebody else fetches it. If not, this one does.
    pub(super) fn follows(&mut self, wanted: FetchOrder) -> bool {
        let of = self.of.entry((wanted.blob.blob, wanted.from));
        let (first, others) = of.or_insert_with(|| (wanted.agreement, Vec::new()));
        if *first == wanted.agreement {
            return false;
        }
        // One that asks again waits already.
        others.retain(|other| other.agreement != wanted.agreement);
        others.push(wanted);
        true
    }

    /// The first has it, or could not keep it: those who waited.
    pub(super) fn kept(&mut self, agreement: AgreementId, blob: BlobId) -> Vec<FetchOrder> {
        let least = (blob, PeerId::from_bytes([0; 32]));
        let of_blob = self
            .of
            .range(least..)
            .take_while(|((of, _), _)| *of == blob);
        let mut led = of_blob.filter(|(_, (first, _))| *first == agreement);
        let key = led.next().map(|(key, _)| *key);
        key.map_or_else(Vec::new, |(blob, from)| self.failed(from, blob))
    }

    /// It did not come: those who waited.
    pub(super) fn failed(&mut self, from: PeerId, blob: BlobId) -> Vec<FetchOrder> {
        let of = self.of.remove(&(blob, from));
        of.map_or_else(Vec::new, |(_, others)| others)
    }
}

#[cfg(test)]
mod tests {
    use suanli_protocol::{deal::BlobRef, ids::Hash, peer::Fetched};

    use super::*;

    fn wanted(agreement: u8, from: u8) -> FetchOrder {
        FetchOrder {
            agreement: AgreementId(Hash::of(&[agreement])),
            from: PeerId::from_bytes([from; 32]),
            under: AgreementId(Hash::of(&[agreement])),
            blob: BlobRef {
                blob: BlobId(Hash::of(b"program")),
                bytes: 7,
            },
            what: Fetched::Input,
        }
    }

    fn who(of: &[FetchOrder]) -> Vec<AgreementId> {
        of.iter().map(|wanted| wanted.agreement).collect()
    }

    #[test]
    fn one_fetches_and_others_follow_it() {
        let mut following = Following::default();
        let [first, second, third] = [1, 2, 3].map(|agreement| wanted(agreement, 1));
        let elsewhere = wanted(4, 2);
        let follow = [first, second, second, third, elsewhere, first];
        let follow = follow.map(|wanted| following.follows(wanted));
        assert_eq!(follow, [false, true, true, true, false, false]);
        let others = following.kept(first.agreement, first.blob.blob);
        assert_eq!(who(&others), [second.agreement, third.agreement]);
        // Over: the next one fetches by itself, and what was elsewhere still does.
        assert!(!following.follows(second));
        assert!(following.follows(wanted(5, 2)));
        assert!(following.kept(third.agreement, third.blob.blob).is_empty());
        let others = following.failed(elsewhere.from, elsewhere.blob.blob);
        assert_eq!(who(&others), [wanted(5, 2).agreement]);
    }
}
