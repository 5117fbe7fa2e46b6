//! What computes a model, whichever device it is on.
//!
//! An [`Engine`] has the sequences that are being written, each with the keys and values
//! of its positions, and [`Engine::forward`] takes some [`Step`]s: a token at a position of
//! a sequence. A prompt is many steps of one sequence, a batch is one step each of many,
//! and both may be mixed, because a matrix is read once for all steps of a call.
//!
//! [`Pages`] is the book that every engine keeps of its sequences: keys and values lie in
//! pages of [`PAGE`] positions, a sequence takes one when it reaches it and gives all back
//! when it ends.
//!
//! Absent: the numbers themselves, choosing tokens, queues, and time.

use std::{collections::BTreeMap, fmt::Debug};

use super::llama::Config;
use crate::limits::MODEL_STEPS_MAX;

/// Positions of a page.
pub const PAGE: usize = 32;

/// Names a sequence. The caller chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// A token to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Of which sequence. One that is not known begins here.
    pub sequence: SequenceId,
    /// Which token.
    pub token: u32,
    /// Where: what the sequence has so far, 0 at its beginning.
    pub position: u32,
    /// Whether the logits of what follows it are wanted.
    pub wants_logits: bool,
}

/// Why steps were not computed. None of them was then, and nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Too many at once, or none.
    #[error("{0} steps at once; give from 1 to {MODEL_STEPS_MAX}")]
    Steps(usize),
    /// A token that the model does not have.
    #[error("the token {token} is not one of the model's {vocabulary}")]
    Token {
        /// Which.
        token: u32,
        /// How many there are.
        vocabulary: usize,
    },
    /// A position that is not the sequence's next.
    #[error("the position {position} is not the next one of its sequence, which is {next}")]
    Position {
        /// Which.
        position: u32,
        /// What it should be.
        next: usize,
    },
    /// Longer than the model was made for.
    #[error("the model was made for {0} positions, and the sequence is longer; shorten the text")]
    Context(usize),
    /// No room for more keys and values.
    #[error(
        "there is no room for the sequences: {wanted} more pages are needed, and {left} are left; end one first"
    )]
    CacheFull {
        /// Pages that the steps need.
        wanted: usize,
        /// Pages that are left.
        left: usize,
    },
    /// The device does not compute any more. Whatever was written is lost.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Computes steps of sequences.
pub trait Engine: Debug {
    /// The model's sizes.
    fn config(&self) -> &Config;

    /// The device that computes, as its driver calls it; none for the processor.
    fn device(&self) -> Option<&str> {
        None
    }

    /// Computes steps, and makes their sequences longer by them.
    ///
    /// # Errors
    ///
    /// Why it was not done.
    fn forward(&mut self, steps: &[Step]) -> Result<Logits<'_>, EngineError>;

    /// The logits of the last steps that were computed.
    fn logits(&self) -> Logits<'_>;

    /// How long a sequence is; 0 for one that is not known.
    fn length(&self, sequence: SequenceId) -> usize;

    /// Positions that can still be taken by sequences, if all begin a new page.
    fn positions_left(&self) -> usize;

    /// Ends a sequence and frees what it took.
    fn end(&mut self, sequence: SequenceId);

    /// Takes back the last positions of a sequence, so that it is as long as that. It
    /// does nothing to one that is not longer.
    fn truncate(&mut self, sequence: SequenceId, length: usize);
}

/// The logits of the steps that wanted them, in their order.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a> {
    numbers: &'a [f32],
    vocabulary: usize,
}

impl<'a> Logits<'a> {
    /// Logits of some steps: a number for each token, one step behind the other.
    pub const fn new(numbers: &'a [f32], vocabulary: usize) -> Self {
        Self {
            numbers,
            vocabulary,
        }
    }

    /// Of how many steps.
    pub const fn len(&self) -> usize {
        self.numbers.len() / self.vocabulary
    }

    /// Whether no step wanted them.
    pub const fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Of each step, a number for each token.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        self.numbers.chunks_exact(self.vocabulary)
    }

    /// Of one step. `None` if there are not so many.
    pub fn row(&self, index: usize) -> Option<&'a [f32]> {
        self.rows().nth(index)
    }
}

/// Which pages are taken, and whose they are.
#[derive(Debug)]
pub struct Pages {
    most: usize,
    /// Pages that were ever taken: these are the numbers below it.
    known: usize,
    free: Vec<usize>,
    sequences: BTreeMap<SequenceId, Sequence>,
}

/// What is kept of a sequence.
#[derive(Debug, Default)]
pub struct Sequence {
    /// Its pages, in order.
    pub pages: Vec<usize>,
    /// Its positions.
    pub length: usize,
}

impl Pages {
    /// So many pages at most, none taken.
    pub const fn new(most: usize) -> Self {
        Self {
            most,
            known: 0,
            free: Vec::new(),
            sequences: BTreeMap::new(),
        }
    }

    /// Holds steps against a model's sizes, the sequences, and the room that is left.
    ///
    /// # Errors
    ///
    /// The first thing that does not fit.
    pub fn check(&self, config: &Config, steps: &[Step]) -> Result<(), EngineError> {
        if !(1..=MODEL_STEPS_MAX).contains(&steps.len()) {
            return Err(EngineError::Steps(steps.len()));
        }
        let (vocabulary, context) = (config.vocabulary, config.context);
        let mut lengths: BTreeMap<SequenceId, usize> = BTreeMap::new();
        let mut wanted = 0;
        for step in steps {
            let token = step.token;
            if usize::try_from(token).is_ok_and(|token| token >= vocabulary) {
                return Err(EngineError::Token { token, vocabulary });
            }
            let next = lengths
                .entry(step.sequence)
                .or_insert_with(|| self.length(step.sequence));
            if usize::try_from(step.position) != Ok(*next) {
                return Err(EngineError::Position {
                    position: step.position,
                    next: *next,
                });
            }
            if *next >= context {
                return Err(EngineError::Context(context));
            }
            wanted += usize::from(next.is_multiple_of(PAGE));
            *next += 1;
        }
        let left = self.left();
        if wanted > left {
            return Err(EngineError::CacheFull { wanted, left });
        }
        Ok(())
    }

    /// Pages that can still be taken.
    pub fn left(&self) -> usize {
        self.free.len() + self.most.saturating_sub(self.known)
    }

    /// What is kept of a sequence.
    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// How long a sequence is; 0 for one that is not known.
    pub fn length(&self, id: SequenceId) -> usize {
        self.sequence(id).map_or(0, |sequence| sequence.length)
    }

    /// Where the keys and values of a position are: the page, and the place in it.
    pub fn place(&self, id: SequenceId, position: usize) -> Option<(usize, usize)> {
        let page = self.sequence(id)?.pages.get(position / PAGE)?;
        Some((*page, position % PAGE))
    }

    /// Makes a sequence longer by a position. The page that it took for that, if it took
    /// one. The caller saw that there is room ([`Self::check`]).
    pub fn extend(&mut self, id: SequenceId) -> Option<usize> {
        let page = self.length(id).is_multiple_of(PAGE).then(|| self.take());
        let sequence = self.sequences.entry(id).or_default();
        sequence.pages.extend(page);
        sequence.length += 1;
        page
    }

    fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.known += 1;
            self.known - 1
        })
    }

    /// Ends a sequence.
    pub fn end(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.free.extend(sequence.pages);
        }
    }

    /// Makes a sequence shorter.
    pub fn truncate(&mut self, id: SequenceId, length: usize) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        if length < sequence.length {
            sequence.length = length;
            self.free
                .extend(sequence.pages.drain(length.div_ceil(PAGE)..));
        }
        if length == 0 {
            self.sequences.remove(&id);
        }
    }
}
