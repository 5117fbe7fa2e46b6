//! What a model's worker is asked, and what it says.
//!
//! ```text
//! parent  Load (file) ──▶                     Ask ──▶        Stop ──▶
//! worker            ◀── Loaded     Began, Wrote … ◀──┘  Ended ◀──┘
//!                                  Refused ◀─────────┘
//! ```
//!
//! One worker serves one model to many who ask at once; each ask has a number. Nothing is
//! kept of an ask that has ended.
//!
//! An answer can be gone on with elsewhere: what was written so far ([`Ask::begun`]) and
//! how often chance was asked ([`Ask::draws`]) are all that another worker with the same
//! file needs, and each [`Word::Wrote`] says both.
//!
//! An encoder is asked with Embed instead, and says Embedded, once for each text, where
//! another model says Wrote.
//!
//! Absent: names of models, prices, who asks, and the form in which people ask.

use bincode::{Decode, Encode};
use suanli_protocol::wire::{List, Utf8};

use super::Detail;
use crate::limits::{
    ASK_TEXT_BYTES_MAX, BEGUN_TOKENS_MAX, EMBED_INPUTS_MAX, ENCODER_CONTEXT_MAX, ENCODER_WIDTH_MAX,
    STOP_BYTES_MAX, STOPS_MAX, TURNS_MAX,
};

/// What a parent says.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Order {
    /// First: read the model. Its file is the one descriptor that comes with this.
    Load(Load),
    /// Answer.
    Ask {
        /// How the answer is called; not used before.
        number: u64,
        /// What.
        ask: Box<Ask>,
    },
    /// Nobody wants the rest of this answer.
    Stop(u64),
    /// Make vectors of texts.
    Embed {
        /// How the answer is called; not used before.
        number: u64,
        /// Of which texts.
        embed: Box<Embed>,
    },
}

/// How a model is to be served.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Load {
    /// Threads that compute.
    pub threads: u32,
    /// Bytes that keys and values take at most.
    pub cache_bytes_max: u64,
    /// Tokens of a question and its answer together; 0 for what the model was made for.
    pub context_max: u32,
}

/// Text of a question.
pub type AskText = Utf8<ASK_TEXT_BYTES_MAX>;

/// A question.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Ask {
    /// What the answer goes on from.
    pub prompt: Prompt,
    /// Tokens that were already written, here or elsewhere.
    pub begun: List<u32, BEGUN_TOKENS_MAX>,
    /// How often chance was asked for them.
    pub draws: u64,
    /// Chance.
    pub seed: [u8; 32],
    /// 0 takes the likeliest token always.
    pub temperature: f32,
    /// The likeliest tokens that make up this share are drawn from.
    pub top_p: f32,
    /// Tokens below this share of the likeliest one's likelihood are left out.
    pub min_p: f32,
    /// Tokens that are written at most, those that were written already included; as many
    /// as fit if it does not say.
    pub tokens_max: Option<u32>,
    /// Texts before which the answer ends.
    pub stops: List<Utf8<STOP_BYTES_MAX>, STOPS_MAX>,
}

/// Texts of which vectors are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Embed {
    /// The texts, one at least.
    pub inputs: List<EmbedInput, EMBED_INPUTS_MAX>,
}

/// A text of which a vector is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum EmbedInput {
    /// As text.
    Text(AskText),
    /// As tokens, with those that begin and end a text.
    Tokens(List<u32, ENCODER_CONTEXT_MAX>),
}

/// Bytes of the largest vector.
pub const VECTOR_BYTES_MAX: usize = ENCODER_WIDTH_MAX * size_of::<f32>();

/// What an answer goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Prompt {
    /// A conversation, in the model's own form of it.
    Conversation(List<Turn, TURNS_MAX>),
    /// A text.
    Text(AskText),
    /// Tokens.
    Tokens(List<u32, BEGUN_TOKENS_MAX>),
}

/// Something that was said.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Turn {
    /// By whom.
    pub speaker: Speaker,
    /// What.
    pub text: AskText,
}

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Speaker {
    /// Whoever made the service: how answers should be.
    System,
    /// Whoever asks.
    User,
    /// The model.
    Assistant,
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Word {
    /// The model can be asked.
    Loaded(Facts),
    /// The question is understood.
    Began {
        /// Of which answer.
        number: u64,
        /// Tokens of the question, without those that were written already.
        read: u32,
    },
    /// A token.
    Wrote {
        /// Of which answer.
        number: u64,
        /// Which token.
        token: u32,
        /// How often chance was asked for the answer so far.
        draws: u64,
        /// The text that is certain with it: it may be less or more than the token's own.
        text: Detail,
    },
    /// A vector: of the next text, in the order of the question.
    Embedded {
        /// Of which answer.
        number: u64,
        /// Tokens of the text.
        read: u32,
        /// Its floats, little-endian.
        vector: List<u8, VECTOR_BYTES_MAX>,
    },
    /// The answer is over, with this last text.
    Ended {
        /// Which answer.
        number: u64,
        /// Why.
        finish: Finish,
        /// Text that was held back until now.
        text: Detail,
    },
    /// There is no answer.
    Refused {
        /// Which.
        number: u64,
        /// For people.
        why: Detail,
    },
}

impl Word {
    /// Of which answer it is; none for the model itself.
    pub const fn number(&self) -> Option<u64> {
        match self {
            Self::Loaded(_) => None,
            Self::Began { number, .. }
            | Self::Wrote { number, .. }
            | Self::Embedded { number, .. }
            | Self::Ended { number, .. }
            | Self::Refused { number, .. } => Some(*number),
        }
    }

    /// Whether nothing comes after it.
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Ended { .. } | Self::Refused { .. })
    }
}

/// Why an answer is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Finish {
    /// The model says that it is, or a text came before which it ends.
    Stop,
    /// It is as long as it may be.
    Length,
    /// Nobody wanted the rest.
    Stopped,
}

/// What a worker finds in a model's file.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Facts {
    /// Tokens of a question and its answer together.
    pub context: u32,
    /// The same, as the model was made.
    pub made_for: u32,
    /// Tokens that there are.
    pub vocabulary: u32,
    /// How most of its weights are stored, such as `Q4_1`.
    pub quantisation: Utf8<16>,
    /// Whether it takes conversations; else only texts.
    pub converses: bool,
    /// The device that computes it, as its driver calls it; none for the processor.
    pub device: Option<Utf8<128>>,
    /// Numbers of a vector, if it makes these of texts, and writes none.
    pub embeds: Option<u32>,
}
