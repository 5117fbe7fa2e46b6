//! Calls: one use of a lease, on a stream of its own.
//!
//! ```text
//! client   Question ─────────────────▶ │ ── closes its half: stop ─▶
//! provider          ◀─ Event … Event ─ │ ◀─ Done (tokens read and written)
//!                   ◀─ Declined, or the server's own Refusal
//! ```
//!
//! A lease is agreed once and serves many calls, so that each costs one round trip and
//! nobody signs anything for it. Each call ends by the provider's word on its tokens, as
//! long as the stream stands; both sides add them up, and the receipts of the lease must
//! come to no more.
//!
//! What is asked and answered is the text that people's own clients speak, and no business
//! of the exchange: it travels as it is.
//!
//! Absent: signatures (the connection names the peer, the lease what it may), and anything
//! that is kept.

use bincode::{Decode, Encode};

use crate::{
    ids::AgreementId,
    limits::{
        CALL_BEGUN_TOKENS_MAX, CALL_EVENT_BYTES_MAX, CALL_EVENT_TOKENS_MAX, CALL_QUESTION_BYTES_MAX,
    },
    message::Decline,
    registry::Endpoint,
    wire::{self, Bytes, List, WireError},
};

/// What the client says, once.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Question {
    /// The lease that it is for.
    pub agreement: AgreementId,
    /// What is asked for.
    pub endpoint: Endpoint,
    /// Whether the answer comes event by event; else as one.
    pub streams: bool,
    /// What the answer is called, wherever it is written: no two are the same. Where the
    /// question has no seed of its own, chance is drawn from it.
    pub answer: [u8; 16],
    /// When it was asked: seconds since 1970.
    pub asked_s: u64,
    /// What is written of it already.
    pub begun: Begun,
    /// The question itself, as JSON.
    pub body: Bytes<CALL_QUESTION_BYTES_MAX>,
}

/// What was written of an answer: all that another needs who has the same weights.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct Begun {
    /// Its tokens.
    pub tokens: List<u32, CALL_BEGUN_TOKENS_MAX>,
    /// How often chance was asked for them.
    pub draws: u64,
}

/// What the provider says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Part {
    /// A piece of the answer: the next event, or the next bytes of an answer that comes as
    /// one.
    Event(Bytes<CALL_EVENT_BYTES_MAX>),
    /// The next event of an answer that another could go on with after it.
    Wrote {
        /// The event.
        event: Bytes<CALL_EVENT_BYTES_MAX>,
        /// The tokens since the last such event.
        tokens: List<u32, CALL_EVENT_TOKENS_MAX>,
        /// How often chance was asked for the answer so far.
        draws: u64,
        /// Whether the answer's text is whole with it: nobody need go on after that.
        is_whole: bool,
    },
    /// The answer is whole, or was stopped: so many tokens were read and written.
    Done {
        /// Read,
        read: u64,
        /// and written.
        written: u64,
    },
    /// The model's server refuses the question: its status, and its own words.
    Refused {
        /// An HTTP status of 400 to 599.
        status: u16,
        /// JSON, as it came.
        body: Bytes<CALL_EVENT_BYTES_MAX>,
    },
    /// The provider can't answer.
    Declined(Decline),
    /// First, where all places are taken: the question waits for its turn, and may be taken
    /// elsewhere for nothing until then.
    Queued {
        /// Questions whose turns come first, as it stands.
        ahead: u32,
    },
}

impl Question {
    /// As it travels.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// From a client.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode(bytes, QUESTION_FRAME_BYTES_MAX)
    }
}

impl Part {
    /// As it travels.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// From a provider.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode(bytes, PART_FRAME_BYTES_MAX)
    }
}

/// Whether a refusal with this HTTP status says something of the question, whoever is asked:
/// it is wrong, too long, or of a kind that such servers do not answer. All else is the
/// provider's own trouble.
pub const fn is_of_the_question(status: u16) -> bool {
    matches!(status, 400 | 413 | 422 | 501)
}

/// Bytes beside texts and tokens.
const BESIDE: usize = 256;
/// Bytes of a token, at most.
const TOKEN_BYTES: usize = 5;
/// Bytes of a [`Question`] as it travels.
pub const QUESTION_FRAME_BYTES_MAX: usize =
    CALL_QUESTION_BYTES_MAX + TOKEN_BYTES * CALL_BEGUN_TOKENS_MAX + BESIDE;
/// Bytes of a [`Part`] as it travels.
pub const PART_FRAME_BYTES_MAX: usize =
    CALL_EVENT_BYTES_MAX + TOKEN_BYTES * CALL_EVENT_TOKENS_MAX + BESIDE;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::Hash, registry::Reason};

    #[test]
    fn the_largest_of_each_travels() {
        let question = Question {
            agreement: AgreementId(Hash::of(b"lease")),
            endpoint: Endpoint::CHAT_COMPLETIONS,
            streams: true,
            answer: [0xff; 16],
            asked_s: u64::MAX,
            begun: Begun {
                tokens: List::new(vec![u32::MAX; CALL_BEGUN_TOKENS_MAX]).unwrap(),
                draws: u64::MAX,
            },
            body: Bytes::new(vec![b' '; CALL_QUESTION_BYTES_MAX]).unwrap(),
        };
        assert_eq!(Question::decode(&question.encode()), Ok(question));
        let text = Bytes::new(vec![b'x'; CALL_EVENT_BYTES_MAX]).unwrap();
        for part in [
            Part::Event(text.clone()),
            Part::Wrote {
                event: text.clone(),
                tokens: List::new(vec![u32::MAX; CALL_EVENT_TOKENS_MAX]).unwrap(),
                draws: u64::MAX,
                is_whole: true,
            },
            Part::Refused {
                status: 400,
                body: text,
            },
            Part::Done {
                read: u64::MAX,
                written: 0,
            },
            Part::Declined(Reason::BUSY.into()),
            Part::Queued { ahead: 7 },
        ] {
            assert_eq!(Part::decode(&part.encode()), Ok(part));
        }
    }

    #[test]
    fn what_is_longer_is_refused_unread() {
        let bytes = vec![0; PART_FRAME_BYTES_MAX + 1];
        assert!(matches!(
            Part::decode(&bytes),
            Err(WireError::TooLong { .. })
        ));
    }
}
