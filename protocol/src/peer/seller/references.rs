//! Our references: what clients have accepted of us. See [`crate::reference`].

use std::cmp::Reverse;

use super::*;
use crate::{
    limits::{REFERENCES_BYTES_MAX, REFERENCES_MAX},
    reference::Reference,
    wire,
};

impl Seller {
    /// The newest of each client account, of the work in memory, as many as fit a frame.
    pub(crate) fn references(&self, core: &Core) -> Vec<Reference> {
        let mut newest: BTreeMap<AccountId, (bool, Wall, &Committed, &Issued)> = BTreeMap::new();
        let own = |deal: &&Committed| deal.deal.quote().body().account == core.config.account;
        for deal in self.deals.values().filter(own) {
            for issued in deal.issued.values() {
                let Some(word) = issued.word.as_ref().filter(|_| issued.is_completed()) else {
                    continue;
                };
                // One that was compared says more.
                let compared = word.body().verification.is_agreement();
                let known = newest.get(&deal.account());
                if known.is_none_or(|(best, at, ..)| (compared, word.issued()) > (*best, *at)) {
                    let best = (compared, word.issued(), deal, issued);
                    newest.insert(deal.account(), best);
                }
            }
        }
        let mut newest: Vec<_> = newest.into_values().collect();
        newest.sort_by_key(|(_, at, ..)| Reverse(*at));
        let shown = newest.into_iter().filter_map(|(.., deal, issued)| {
            let word = issued.word.as_ref()?;
            Some(Reference {
                receipt: issued.receipt.raw(),
                provider: deal.deal.offer().body().delegation.clone(),
                acceptance: word.raw(),
                client: deal.deal.request().body().delegation.clone(),
            })
        });
        let mut bytes = 0;
        let fits = |reference: &Reference| {
            bytes += wire::encode(reference).len();
            bytes <= REFERENCES_BYTES_MAX
        };
        shown.take(REFERENCES_MAX).take_while(fits).collect()
    }
}

impl Issued {
    /// Whether its client accepted it as work that was done.
    fn is_completed(&self) -> bool {
        let word = self.word.as_ref().map(|word| word.body().verdict);
        word == Some(Verdict::Accepted) && self.receipt.body().outcome == Outcome::Completed
    }
}
