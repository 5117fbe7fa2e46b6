//! Audits: whether an answer was written by the model that its provider names.
//!
//! ```text
//! an answer is whole ─ chance ─▶ another provider with the same weights scores it
//!                                   ├─ it would have written that ─▶ nothing
//!                                   └─ doubts ─▶ a third scores it, too
//!                                                  └─ doubts ─▶ the writer is left
//! ```
//!
//! Whoever has the same file finds by one reading which tokens it would have written itself,
//! with the same chance ([`crate::models::scores`]). One who doubts may lie, or have other
//! weights than it says: so nobody is left because of one other's word, and both are of other
//! accounts than the writer and each other. Chance chooses an account, whatever its prices and
//! however many its nodes, but for those far dearer than others: who would like to judge can't
//! see to it. Where there is no third, a doubt is logged.
//!
//! A writer that is left is not asked by this gateway for a day, and what was found counts in
//! this node's view of its account as a result that others contradict.
//!
//! Scores are asked for, and paid, by the node and not by who asked, so that nobody's budget is
//! spent on them, and a provider that scores does not see for whom.
//!
//! Absent: answers that name no tokens (servers'; several at once), and those that several
//! providers have written.

use std::collections::{BTreeMap, BTreeSet};

use suanli_protocol::{
    call::{Begun, Part, Question},
    ids::{AccountId, BlobId, PeerId},
    offer::{Name, tokens},
    registry::Endpoint,
    units::{Amount, cost},
    wire::Text,
};
use tokio::time::timeout;

use super::{
    Asker, Gateway, Served,
    answer::{Count, FIRST_WAIT, call, next},
};
use crate::{data_dir::random_secret, keys::GATEWAY, models::scores::Scores};

/// The mean by which an answer's tokens may be behind: honest ones, by whatever arithmetic,
/// were 0.015 at most, and those of fewer bits 0.1 and more.
const DOUBTFUL: f64 = 0.05;
/// Shorter answers show too little.
const TOKENS_MIN: usize = 16;
/// Providers that are tried for one opinion.
const TRIES: usize = 3;
/// Bytes of scores, as they travel.
const SCORES_BYTES_MAX: usize = 4 << 10;

/// How many times dearer than the middle one a provider that is asked may be.
const DEARER_MAX: u64 = 4;

/// An answer that may be audited.
#[derive(Debug, Clone)]
pub(super) struct Audit {
    pub(super) model: Name,
    pub(super) writer: PeerId,
    /// For whom the writer offers.
    pub(super) account: AccountId,
    pub(super) weights: BlobId,
    pub(super) question: Question,
    pub(super) begun: Begun,
}

/// Whether chance wants an answer to be audited: so many percent of all.
pub(super) fn is_wanted(percent: u8) -> bool {
    let chance = || Some(u16::from_le_bytes(*random_secret().ok()?.first_chunk()?));
    percent > 0 && chance().is_some_and(|chance| chance % 100 < u16::from(percent))
}

/// Those who were asked of an answer, its writer first.
#[derive(Debug)]
struct Asked {
    providers: BTreeSet<PeerId>,
    /// Of those who have said something.
    accounts: BTreeSet<AccountId>,
}

impl Audit {
    /// Asks others, and leaves the writer if two of them doubt that it has written that.
    pub(super) async fn run(self, gateway: Gateway) {
        if self.begun.tokens.len() < TOKENS_MIN {
            return;
        }
        let mut asked = Asked {
            providers: BTreeSet::from([self.writer]),
            accounts: BTreeSet::from([self.account]),
        };
        for opinion in 0..2 {
            let Some((by, scores)) = self.opinion(&gateway, &mut asked).await else {
                if opinion > 0 {
                    tracing::warn!(
                        writer = %self.writer, model = %self.model,
                        "an answer is doubted, and there is no third provider to ask"
                    );
                }
                return;
            };
            let is_doubted = scores.behind > DOUBTFUL;
            tracing::debug!(
                writer = %self.writer, %by, model = %self.model, tokens = scores.tokens,
                agreed = scores.agreed, behind = scores.behind, is_doubted, "an answer is scored"
            );
            if !is_doubted {
                return;
            }
        }
        tracing::warn!(
            writer = %self.writer, model = %self.model,
            "two other providers with the same weights would not have written its answer: it is \
             not asked any more"
        );
        let _ = gateway.handle.forged(self.writer, self.account).await;
        gateway.leases.avoid(self.writer).await;
    }

    /// The scores of one who was not asked yet; none if nobody gives any.
    async fn opinion(&self, gateway: &Gateway, asked: &mut Asked) -> Option<(PeerId, Scores)> {
        for _ in 0..TRIES {
            let all = gateway.served().await.ok()?;
            let all: Vec<Served> = (all.into_iter())
                .filter(|served| served.model.name == self.model)
                .collect();
            let able: Vec<&Served> = all.iter().filter(|one| self.may_ask(one, asked)).collect();
            let writer = all.iter().find(|one| one.provider == self.writer);
            let chosen = one_of(&able, writer, self.begun.tokens.len())?;
            let others = all.iter().map(|served| served.provider);
            let others = others.chain(asked.providers.iter().copied());
            let others = others.filter(|provider| *provider != chosen.provider);
            let others = others.collect();
            asked.providers.insert(chosen.provider);
            if let Some(scores) = self.ask(gateway, chosen.provider, &others).await {
                asked.accounts.insert(chosen.account);
                return Some((chosen.provider, scores));
            }
        }
        None
    }

    /// Whether one has the same weights, and nothing to do with those who were asked.
    fn may_ask(&self, one: &Served, asked: &Asked) -> bool {
        one.model.weights == self.weights
            && !asked.providers.contains(&one.provider)
            && !asked.accounts.contains(&one.account)
    }

    /// The scores of this one, which is the only one without those; none if it gives none.
    async fn ask(&self, gateway: &Gateway, by: PeerId, but: &BTreeSet<PeerId>) -> Option<Scores> {
        let asker = Asker {
            principal: Text::lossy(GATEWAY),
            model: self.model.clone(),
            key: None,
            conversation: None,
        };
        let mut place = gateway.leases.take(&asker, but).await.ok()?;
        if place.weights != Some(self.weights) || place.provider != by {
            return None;
        }
        let question = Question {
            agreement: place.agreement,
            endpoint: Endpoint::SCORES,
            streams: false,
            begun: Begun {
                tokens: self.begun.tokens.clone(),
                draws: 0,
            },
            ..self.question.clone()
        };
        let mut count = Count::of(&question, place.agreement);
        let said = async {
            let (mut reader, _writer) = call(gateway, &mut place, &question).await.ok()?;
            let (mut body, mut is_queued) = (Vec::new(), false);
            loop {
                match next(&mut reader).await? {
                    Part::Queued { .. } if !is_queued && body.is_empty() => is_queued = true,
                    Part::Event(piece)
                        if !piece.is_empty() && body.len() + piece.len() <= SCORES_BYTES_MAX =>
                    {
                        count.add(&piece, None);
                        body.extend_from_slice(&piece);
                    }
                    Part::Done { read, written } => return Some((body, (read, written))),
                    _ => return None,
                }
            }
        };
        let Some((body, claimed)) = timeout(FIRST_WAIT, said).await.ok().flatten() else {
            place.fails();
            return None;
        };
        let tokens = count.believe(claimed);
        place.uses(tokens);
        let _ = gateway.handle.counted(place.agreement, tokens).await;
        let scores: Scores = serde_json::from_slice(&body).ok()?;
        let all = u64::try_from(self.begun.tokens.len()).unwrap_or(u64::MAX);
        (scores.tokens == all && scores.behind.is_finite()).then_some(scores)
    }
}

/// An account by chance, and the cheapest of its nodes: whoever has many nodes is asked no more
/// often for it. None that is far dearer than others, and than the writer: nobody is asked more
/// often by being cheap, and nobody earns much by being dear.
fn one_of<'a>(able: &[&'a Served], writer: Option<&Served>, read: usize) -> Option<&'a Served> {
    let read = u64::try_from(read).unwrap_or(u64::MAX);
    let price = |one: &Served| cost(&tokens(read, 0), &one.model.prices);
    let mut accounts: BTreeMap<AccountId, (Amount, &Served)> = BTreeMap::new();
    for one in able {
        let Some(price) = price(one) else {
            continue;
        };
        let known = accounts.entry(one.account).or_insert((price, *one));
        if price < known.0 {
            *known = (price, *one);
        }
    }
    let mut prices: Vec<Amount> = accounts.values().map(|(price, _)| *price).collect();
    prices.sort_unstable();
    let middle = *prices.get(prices.len().saturating_sub(1) / 2)?;
    let usual = middle.max(writer.and_then(price).unwrap_or_default());
    let most = usual.as_micros().saturating_mul(DEARER_MAX);
    let fair = accounts.into_values();
    let fair = fair.filter(|(price, _)| price.as_micros() <= most);
    let fair: Vec<&Served> = fair.map(|(_, one)| one).collect();
    let chance = random_secret().ok()?;
    let chance = usize::from(u16::from_le_bytes(*chance.first_chunk()?));
    // As good as even, for as many as there can be.
    fair.get(chance % fair.len().max(1)).copied()
}

#[cfg(test)]
mod tests {
    use suanli_protocol::{
        ids::Hash,
        offer::ModelOffer,
        units::{Meter, Price},
        wire::List,
    };

    use super::*;

    fn served(number: u8, micros: u64) -> Served {
        let price = Price {
            meter: Meter::TOKEN_IN,
            amount: Amount::from_micros(micros),
            per: 1,
        };
        Served {
            provider: PeerId::from_bytes([number; 32]),
            account: AccountId::from_bytes([number; 32]),
            region: Text::lossy("CN-NX"),
            model: ModelOffer {
                name: Text::lossy("small"),
                weights: BlobId(Hash::of(b"weights")),
                quantisation: Text::lossy("Q8_0"),
                context: 4096,
                device: 0,
                prices: List::truncated(vec![price]),
                prefill_per_second: 0,
                decode_per_second: 0,
                places: 1,
                places_free: 1,
            },
        }
    }

    #[test]
    fn all_are_asked_by_chance_but_those_far_dearer_than_others() {
        let [free, one, dear, too_dear] = [0, 10, 40, 41].map(|micros| {
            // Its number is its price.
            served(u8::try_from(micros).unwrap(), micros)
        });
        let asked = |able: &[&Served]| {
            let chosen = || Some(one_of(able, Some(&free), 20)?.provider.as_bytes()[0]);
            (0..200).filter_map(|_| chosen()).collect::<BTreeSet<u8>>()
        };
        // The middle one costs 10. That one of three is never asked of 200 is as good as
        // impossible.
        assert_eq!(asked(&[&free, &one, &dear]), BTreeSet::from([0, 10, 40]));
        assert_eq!(asked(&[&free, &one, &too_dear]), BTreeSet::from([0, 10]));
        assert_eq!(asked(&[]), BTreeSet::new());
        // Who is no dearer than the writer is asked, however cheap the others are.
        let by_writer = |writer: &Served| {
            let chosen = || Some(one_of(&[&free, &dear], Some(writer), 20)?.provider);
            (0..200)
                .filter_map(|_| chosen())
                .collect::<BTreeSet<PeerId>>()
                .len()
        };
        assert_eq!((by_writer(&free), by_writer(&one)), (1, 2));
        // A second node of an account is no second chance.
        let mut second = dear.clone();
        second.account = one.account;
        assert_eq!(asked(&[&one, &second]), BTreeSet::from([10]));
    }
}
