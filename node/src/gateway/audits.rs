//! Audits: whether an answer was written by the model that its provider names.
//!
//! ```text
//! an answer is whole ─ chance ─▶ another provider with the same weights scores it
//!                                   ├─ it would have written that ─▶ nothing
//!                                   └─ doubts ─▶ a third scores it, too
//!                                                  └─ doubts ─▶ the writer is left, for a day
//! ```
//!
//! Whoever has the same file finds by one reading which tokens it would have written itself,
//! with the same chance ([`crate::models::scores`]). One who doubts may lie, or have other
//! weights than it says: so nobody is left because of one other's word. Where there is no
//! third, a doubt is logged.
//!
//! Scores are asked for, and paid, by the node and not by who asked, so that nobody's budget is
//! spent on them, and a provider that scores does not see for whom.
//!
//! Absent: answers that name no tokens (servers'), that several providers have written, or
//! that came as one; and standing: what is found is known until the node ends.

use std::collections::BTreeSet;

use suanli_protocol::{
    call::{Begun, Part, Question},
    ids::{BlobId, PeerId},
    offer::Name,
    registry::Endpoint,
    wire::Text,
};
use tokio::time::timeout;

use super::{
    Asker, Gateway,
    answer::{Count, FIRST_WAIT, call, next},
};
use crate::{data_dir::random_secret, keys::GATEWAY, models::scores::Scores};

/// The mean by which an answer's tokens may be behind: honest ones, by whatever arithmetic,
/// were 0.015 at most, and those of fewer bits 0.1 and more.
const DOUBTFUL: f64 = 0.05;
/// Shorter answers show too little.
const TOKENS_MIN: usize = 16;
/// Bytes of scores, as they travel.
const SCORES_BYTES_MAX: usize = 4 << 10;

/// An answer that may be audited.
#[derive(Debug, Clone)]
pub(super) struct Audit {
    pub(super) model: Name,
    pub(super) writer: PeerId,
    pub(super) weights: BlobId,
    pub(super) question: Question,
    pub(super) begun: Begun,
}

/// Whether chance wants an answer to be audited: so many percent of all.
pub(super) fn is_wanted(percent: u8) -> bool {
    let chance = || Some(u16::from_le_bytes(*random_secret().ok()?.first_chunk()?));
    percent > 0 && chance().is_some_and(|chance| chance % 100 < u16::from(percent))
}

impl Audit {
    /// Asks others, and leaves the writer if two of them doubt that it has written that.
    pub(super) async fn run(self, gateway: Gateway) {
        if self.begun.tokens.len() < TOKENS_MIN {
            return;
        }
        let mut asked = BTreeSet::from([self.writer]);
        for opinion in 0..2 {
            let Some((by, scores)) = self.ask(&gateway, &asked).await else {
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
            asked.insert(by);
        }
        tracing::warn!(
            writer = %self.writer, model = %self.model,
            "two other providers with the same weights would not have written its answer: it is \
             not asked any more"
        );
        gateway.leases.avoid(self.writer).await;
    }

    /// The scores of a provider with the same weights, but for these; none if there is none.
    async fn ask(&self, gateway: &Gateway, but: &BTreeSet<PeerId>) -> Option<(PeerId, Scores)> {
        let others = gateway.others(&self.model, self.weights).await.ok()?;
        let avoid = others.union(but).copied().collect();
        let asker = Asker {
            principal: Text::lossy(GATEWAY),
            model: self.model.clone(),
            key: None,
        };
        let mut place = gateway.leases.take(&asker, &avoid).await.ok()?;
        let by = place.provider;
        if place.weights != Some(self.weights) || but.contains(&by) {
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
        let (mut reader, _writer) = call(gateway, &mut place, &question).await.ok()?;
        let mut body = Vec::new();
        let claimed = loop {
            match timeout(FIRST_WAIT, next(&mut reader)).await.ok()?? {
                Part::Event(piece) if body.len() + piece.len() <= SCORES_BYTES_MAX => {
                    count.add(&piece, None);
                    body.extend_from_slice(&piece);
                }
                Part::Done { read, written } => break (read, written),
                _ => return None,
            }
        };
        let tokens = count.believe(claimed);
        place.uses(tokens);
        let _ = gateway.handle.counted(place.agreement, tokens).await;
        let scores: Scores = serde_json::from_slice(&body).ok()?;
        let all = u64::try_from(self.begun.tokens.len()).unwrap_or(u64::MAX);
        (scores.tokens == all && scores.behind.is_finite()).then_some((by, scores))
    }
}
