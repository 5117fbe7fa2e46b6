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
//! Whoever doubts an answer has it scored ([`Ask::scores`]): the worker says Scored, for each
//! of its tokens, where it would else say Wrote. An encoder is asked with Embed instead, and
//! says Embedded, once for each text.
//!
//! Absent: names of models, prices, who asks, and the form in which people ask.

use std::fmt::Display;

use bincode::{Decode, Encode};
use suanli_protocol::wire::{Finite, List, Utf8};

use super::Detail;
use crate::limits::{
    ASK_TEXT_BYTES_MAX, BEGUN_TOKENS_MAX, BIASES_MAX, CALL_NAME_BYTES_MAX, EMBED_INPUTS_MAX,
    ENCODER_CONTEXT_MAX, ENCODER_WIDTH_MAX, LIKELIEST_MAX, PIECE_BYTES_MAX, PIECES_MAX, SCORES_MAX,
    STOP_BYTES_MAX, STOPS_MAX, TOKEN_BYTES_MAX, TURN_CALLS_MAX, TURNS_MAX,
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
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that are written at most, those that were written already included; as many
    /// as fit if it does not say.
    pub tokens_max: Option<u32>,
    /// Texts before which the answer ends.
    pub stops: List<Utf8<STOP_BYTES_MAX>, STOPS_MAX>,
    /// What the answer must be.
    pub form: Form,
    /// Whether each token comes with its likelihood, and with how many of the likeliest.
    pub likeliest: Option<u8>,
    /// Nothing is to be written: what was written already is held against what would have
    /// been.
    pub scores: bool,
}

impl Ask {
    /// A question that says nothing but what the answer goes on from.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            begun: List::default(),
            draws: 0,
            seed: [0; 32],
            sampling: Sampling::default(),
            tokens_max: None,
            stops: List::default(),
            form: Form::Any,
            likeliest: None,
            scores: false,
        }
    }

    /// The tools that may be called.
    pub const fn tools(&self) -> Option<&Tools> {
        match &self.prompt {
            Prompt::Conversation { tools, .. } => tools.as_ref(),
            Prompt::Text(_) | Prompt::Tokens(_) => None,
        }
    }
}

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Sampling {
    /// 0 takes the likeliest token always.
    pub temperature: f32,
    /// The likeliest tokens that make up this share are drawn from.
    pub top_p: f32,
    /// Tokens below this share of the likeliest one's likelihood are left out.
    pub min_p: f32,
    /// Taken from the logit of each token that the answer has already,
    pub presence_penalty: f32,
    /// and this as often as it has it.
    pub frequency_penalty: f32,
    /// What is added to the logits of some tokens.
    pub biases: List<(u32, f32), BIASES_MAX>,
}

impl Sampling {
    /// The likeliest token always.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }
}

impl Default for Sampling {
    /// As likely as the model says.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            biases: List::default(),
        }
    }
}

/// What an answer must be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub enum Form {
    /// Any text.
    #[default]
    Any,
    /// A JSON object.
    Json,
    /// JSON by a schema.
    Schema {
        /// The schema, as JSON.
        schema: AskText,
        /// Whether what the schema says and can't be done is an error; else it is passed
        /// over.
        is_strict: bool,
    },
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
    Conversation {
        /// What was said.
        turns: List<Turn, TURNS_MAX>,
        /// What the model may call.
        tools: Option<Tools>,
    },
    /// A text.
    Text(AskText),
    /// Tokens.
    Tokens(List<u32, BEGUN_TOKENS_MAX>),
}

impl Prompt {
    /// A conversation without tools.
    pub const fn conversation(turns: List<Turn, TURNS_MAX>) -> Self {
        Self::Conversation { turns, tools: None }
    }
}

/// Something that was said.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Turn {
    /// By whom.
    pub speaker: Speaker,
    /// What.
    pub text: AskText,
    /// Tools that it called with it.
    pub calls: List<Call, TURN_CALLS_MAX>,
    /// Which call it answers, if a tool says it.
    pub answers: Option<CallName>,
}

impl Turn {
    /// Something that was said, and nothing beside.
    pub fn new(speaker: Speaker, text: AskText) -> Self {
        Self {
            speaker,
            text,
            calls: List::default(),
            answers: None,
        }
    }
}

/// The name of a tool, or what a call of one is called.
pub type CallName = Utf8<CALL_NAME_BYTES_MAX>;

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Call {
    /// What it is called.
    pub id: CallName,
    /// The tool.
    pub name: CallName,
    /// Its arguments, as JSON.
    pub arguments: AskText,
}

/// What a model may call.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Tools {
    /// The tools, as OpenAI's clients describe them: a list, as JSON.
    pub functions: AskText,
    /// Whether it must.
    pub usage: Use,
    /// Whether it may call no more than one.
    pub only_one: bool,
}

/// Whether a tool must be called.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Use {
    /// As the model thinks fit.
    May,
    /// One or more.
    Must,
    /// This one.
    This(CallName),
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
    /// A tool that the model called.
    Tool,
}

/// Something of an answer that is certain.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Piece {
    /// Text.
    Text(PieceText),
    /// A call of a tool begins.
    Call {
        /// How many were before it.
        index: u32,
        /// The tool.
        name: CallName,
    },
    /// JSON of the arguments of a call.
    Arguments {
        /// How many calls were before it.
        call: u32,
        /// The JSON.
        text: PieceText,
    },
}

/// Text of a [`Piece`].
pub type PieceText = Utf8<PIECE_BYTES_MAX>;
/// What is certain with a token.
pub type Pieces = List<Piece, PIECES_MAX>;

/// How likely a token was.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Likelihood {
    /// The token's.
    pub of: Likely,
    /// The likeliest tokens, the likeliest first: as many as were asked for.
    pub likeliest: List<Likely, LIKELIEST_MAX>,
}

/// What is thought of a token that somebody has written.
#[derive(Debug, Clone, Copy, PartialEq, Encode, Decode)]
pub struct Score {
    /// The logarithm of its likelihood, by the model alone.
    pub logarithm: Finite,
    /// The token that would have been written here, after the same ones and with the same
    /// chance; none if none could.
    pub instead: Option<u32>,
    /// How far it is behind that one: in units of logits, over the temperature, chance
    /// included. 0 if it is the same; the largest number if it could not be.
    pub behind: Finite,
}

/// A token, and its likelihood.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Likely {
    /// Which.
    pub token: u32,
    /// The logarithm of its likelihood: by the model alone, before all that a question says
    /// of chance and form.
    pub logarithm: Finite,
    /// The bytes that it stands for.
    pub bytes: List<u8, TOKEN_BYTES_MAX>,
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
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
        /// What is certain with it: it may be less or more than the token's own text.
        pieces: Pieces,
        /// How likely it was, if that was asked.
        likelihood: Option<Box<Likelihood>>,
    },
    /// What is thought of the next tokens of an answer that is scored.
    Scored {
        /// Of which answer.
        number: u64,
        /// Of each token.
        scores: List<Score, SCORES_MAX>,
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
    /// The answer is over.
    Ended {
        /// Which answer.
        number: u64,
        /// Why.
        finish: Finish,
        /// What was held back until now.
        pieces: Pieces,
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
            | Self::Scored { number, .. }
            | Self::Embedded { number, .. }
            | Self::Ended { number, .. }
            | Self::Refused { number, .. } => Some(*number),
        }
    }

    /// There is no answer, for this reason.
    pub fn refused(number: u64, error: &impl Display) -> Self {
        let why = Detail::cut(&error.to_string());
        Self::Refused { number, why }
    }

    /// What is certain with it.
    pub fn pieces(&self) -> &[Piece] {
        match self {
            Self::Wrote { pieces, .. } | Self::Ended { pieces, .. } => pieces,
            Self::Loaded(_)
            | Self::Began { .. }
            | Self::Scored { .. }
            | Self::Embedded { .. }
            | Self::Refused { .. } => &[],
        }
    }

    /// The text of that, without calls of tools.
    pub fn text(&self) -> String {
        let text = |piece: &Piece| match piece {
            Piece::Text(text) => Some(String::from(&**text)),
            Piece::Call { .. } | Piece::Arguments { .. } => None,
        };
        self.pieces().iter().filter_map(text).collect()
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
    /// The model waits for what the tools say that it called.
    Calls,
    /// It is as long as it may be.
    Length,
    /// It can't be held to its form any longer.
    Stuck,
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
