//! What a model of this node's own thinks of an answer that another has written.
//!
//! ```text
//! the same question, with the tokens of its answer ─▶ worker ─▶ Scored … ─▶ Scores
//! ```
//!
//! Absent: who asks that, and what follows from it (the gateway's
//! [`audits`](crate::gateway::audits)).

use serde::{Deserialize, Serialize};
use suanli_executor::{
    ModelAnswer,
    ipc::model::{Score, Word},
};
use suanli_protocol::call::Question;

use super::{
    openai::Wrong,
    own::BROKE_OFF,
    upstream::{Tokens, UpstreamError},
};

/// The most that a token counts that is behind what would have been written.
const BEHIND_MAX: f32 = 3.0;

/// What is thought of an answer, as it travels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Tokens that were scored.
    pub tokens: u64,
    /// Those of them that would have been written, too.
    pub agreed: u64,
    /// How far they are behind what would have been written: the mean, each 3 at most.
    pub behind: f64,
}

impl Scores {
    /// Of all tokens of an answer.
    fn of(all: &[(u32, Score)]) -> Self {
        let agreed = all
            .iter()
            .filter(|(token, score)| score.instead == Some(*token));
        let behind = all.iter().map(|(_, score)| match score.instead {
            Some(_) => f64::from(score.behind.get().clamp(0.0, BEHIND_MAX)),
            None => f64::from(BEHIND_MAX),
        });
        let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
        Self {
            tokens: count.into(),
            agreed: u64::try_from(agreed.count()).unwrap_or(u64::MAX),
            behind: behind.sum::<f64>() / f64::from(count.max(1)),
        }
    }
}

/// Scores on their way. Dropping it gives the question up.
#[derive(Debug)]
pub struct Answer {
    words: ModelAnswer,
    /// Tokens of the question,
    read: u64,
    /// and those that are scored.
    tokens: Vec<u32>,
    scores: Vec<Score>,
}

impl Answer {
    /// One that has begun: so many tokens were read beside those of the question.
    pub(super) fn new(words: ModelAnswer, read: u64, question: &Question) -> Self {
        Self {
            words,
            read,
            tokens: question.begun.tokens.to_vec(),
            scores: Vec::new(),
        }
    }

    /// What it costs: all is read, and nothing written.
    pub fn tokens(&self) -> Tokens {
        let begun = u64::try_from(self.tokens.len()).unwrap_or(u64::MAX);
        Tokens {
            read: self.read.saturating_add(begun),
            written: 0,
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn whole(&mut self) -> Result<(Vec<u8>, Tokens), UpstreamError> {
        loop {
            match self.words.next().await {
                Some(Word::Scored { scores, .. }) => self.scores.extend(scores.into_vec()),
                Some(Word::Ended { .. }) => break,
                Some(Word::Refused { why, .. }) => {
                    return Err(Wrong::new("messages", &*why).into());
                }
                Some(_) | None => return Err(BROKE_OFF),
            }
        }
        let tokens = self.tokens.iter().copied();
        let all: Vec<(u32, Score)> = tokens.zip(self.scores.iter().copied()).collect();
        let json = serde_json::to_vec(&Scores::of(&all)).unwrap_or_default();
        Ok((json, self.tokens()))
    }
}

#[cfg(test)]
mod tests {
    use suanli_protocol::wire::Finite;

    use super::*;

    #[test]
    fn a_score_is_a_mean_in_which_no_token_counts_too_much() {
        let score = |instead, behind| Score {
            logarithm: Finite::nearest(-1.0),
            instead,
            behind: Finite::nearest(behind),
        };
        let all = [
            (5, score(Some(5), 0.0)),
            (6, score(Some(5), 0.5)),
            (7, score(Some(5), f32::MAX)),
            (8, score(None, 0.0)),
        ];
        let scores = Scores::of(&all);
        assert_eq!((scores.tokens, scores.agreed), (4, 1));
        assert!((scores.behind - 6.5 / 4.0).abs() < 1e-9);
        assert_eq!(Scores::of(&[]).tokens, 0);
    }
}
