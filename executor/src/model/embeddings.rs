//! Embeddings by one encoder, for many who ask at once.
//!
//! ```text
//!  ask ─▶ reading ── all texts are tokens ──▶ running ─▶ step: a text of each in turn,
//!            │                                              as many as go together
//!            └─ one is too long: Refused                        │
//!                                 Began, Embedded …, Ended ◀── engine
//! ```
//!
//! [`Embeddings::step`] makes tokens of some texts, and calls the engine once. Whoever
//! asks for a little does not wait for who asks for much: each gets a text into a batch
//! in turn. What a text becomes depends on the text alone, and nothing is kept of it.
//!
//! Absent: who asks, and time.

use std::collections::VecDeque;

use suanli_protocol::wire::{List, Utf8};

use super::{
    answers::{ReadError, quantisation},
    cpu::{
        EngineOptions,
        encoder::{EncoderEngine, EncoderWeights},
    },
    encoder::Encoder,
    gguf::Gguf,
    llama::ModelError,
    tokenizer::TokenizerError,
    wordpiece::WordPiece,
};
use crate::{
    ipc::model::{Embed, EmbedInput, Facts, Finish, Load, Word},
    limits::{EMBED_READ_BYTES, ENCODER_ROWS_MAX, ENCODER_TOKEN_BYTES_MAX},
};

/// Tokens of the shortest text: what begins it, a piece of a word, and what ends it.
const TOKENS_MIN: usize = 3;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
enum EmbedError {
    #[error("there is no input")]
    None,
    #[error("input {0} is empty")]
    Empty(usize),
    #[error("input {at}: the token {token} is not one of the model's {vocabulary}")]
    Token {
        at: usize,
        token: u32,
        vocabulary: usize,
    },
    #[error(
        "input {at} has {tokens} tokens, and this model reads {context} at most; shorten it, or cut it into several"
    )]
    TooLong {
        at: usize,
        tokens: usize,
        context: usize,
    },
    #[error(
        "input {at} has {bytes} bytes, and a text of this model's {context} tokens has {most} at most; shorten it, or cut it into several"
    )]
    TooManyBytes {
        at: usize,
        bytes: usize,
        context: usize,
        most: usize,
    },
    #[error("input {at}: {error}")]
    Tokens { at: usize, error: TokenizerError },
}

/// An encoder, and the questions that it is answering.
#[derive(Debug)]
pub struct Embeddings {
    engine: EncoderEngine,
    tokenizer: WordPiece,
    facts: Facts,
    /// Tokens that a text may have.
    context: usize,
    reading: VecDeque<Reading>,
    running: VecDeque<Running>,
}

/// A question whose texts become tokens.
#[derive(Debug)]
struct Reading {
    number: u64,
    inputs: std::vec::IntoIter<EmbedInput>,
    read: VecDeque<Vec<u32>>,
}

/// A question whose texts become vectors.
#[derive(Debug)]
struct Running {
    number: u64,
    texts: VecDeque<Vec<u32>>,
}

impl Embeddings {
    /// Reads an encoder. The bytes of its file are not needed after that.
    ///
    /// # Errors
    ///
    /// Why it can't be served.
    pub fn read(bytes: &[u8], load: &Load) -> Result<Self, ReadError> {
        let file = Gguf::parse(bytes)?;
        let model = Encoder::read(&file)?;
        let tokenizer = WordPiece::read(&file)?;
        let made_for = model.config.context;
        let context = match load.context_max {
            0 => made_for,
            most => usize::try_from(most).unwrap_or(usize::MAX).min(made_for),
        };
        if context < TOKENS_MIN {
            return Err(ReadError::Model(ModelError::Size {
                key: "bert.context_length".to_owned(),
                value: context.to_string(),
                why: "a text has a beginning, an end, and something in between",
            }));
        }
        if tokenizer.vocabulary() > model.config.vocabulary {
            let words = "it has more tokens than the embedding has rows";
            return Err(TokenizerError::Damaged(words.to_owned()).into());
        }
        let options = EngineOptions {
            threads: usize::try_from(load.threads).unwrap_or(usize::MAX),
            cache_bytes_max: 0,
        };
        let weights = EncoderWeights::new(&model).into();
        let engine = EncoderEngine::new(weights, options).map_err(ReadError::Threads)?;
        let number = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let facts = Facts {
            context: number(context),
            made_for: number(made_for),
            vocabulary: number(engine.config().vocabulary),
            quantisation: Utf8::cut(&quantisation(&file)),
            converses: false,
            embeds: Some(number(engine.config().width)),
            device: None,
        };
        Ok(Self {
            engine,
            tokenizer,
            facts,
            context,
            reading: VecDeque::new(),
            running: VecDeque::new(),
        })
    }

    /// What there is to know of the model.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether nothing is asked.
    pub fn is_idle(&self) -> bool {
        self.reading.is_empty() && self.running.is_empty()
    }

    /// Takes a question.
    pub fn embed(&mut self, number: u64, embed: Embed, mut say: impl FnMut(Word)) {
        if embed.inputs.is_empty() {
            return say(Word::refused(number, &EmbedError::None));
        }
        self.reading.push_back(Reading {
            number,
            inputs: embed.inputs.into_vec().into_iter(),
            read: VecDeque::new(),
        });
    }

    /// Nobody wants the rest of an answer.
    pub fn stop(&mut self, number: u64, mut say: impl FnMut(Word)) {
        let before = self.reading.len() + self.running.len();
        self.reading.retain(|ask| ask.number != number);
        self.running.retain(|ask| ask.number != number);
        if self.reading.len() + self.running.len() < before {
            say(ended(number, Finish::Stopped));
        }
    }

    /// Reads some texts, computes once, and says what came out. Does nothing if nothing is
    /// asked.
    pub fn step(&mut self, mut say: impl FnMut(Word)) {
        self.read_some(&mut say);
        let batch = self.batch();
        if batch.is_empty() {
            return;
        }
        let texts: Vec<&[u32]> = batch.iter().map(|(_, tokens)| &tokens[..]).collect();
        match self.engine.embed(&texts) {
            Ok(vectors) => {
                for ((number, tokens), vector) in batch.iter().zip(vectors) {
                    let is_good = vector.iter().all(|number| number.is_finite());
                    let asked = self.running.iter().position(|ask| ask.number == *number);
                    if let Some(at) = asked.filter(|_| !is_good) {
                        self.running.remove(at);
                        say(not_finite(*number));
                    } else if asked.is_some() {
                        say(embedded(*number, tokens.len(), vector));
                    }
                }
            }
            Err(error) => {
                // A mistake of ours: no answer may hang.
                tracing::error!(%error, "embeddings could not be computed");
                for ask in self.running.drain(..) {
                    say(Word::refused(ask.number, &error));
                }
            }
        }
        self.running.retain(|ask| {
            let is_over = ask.texts.is_empty();
            if is_over {
                say(ended(ask.number, Finish::Stop));
            }
            !is_over
        });
    }

    /// Makes tokens of a few texts, in the order of coming.
    fn read_some(&mut self, say: &mut impl FnMut(Word)) {
        let mut bytes = 0;
        while bytes < EMBED_READ_BYTES {
            let Some(mut ask) = self.reading.pop_front() else {
                return;
            };
            let at = ask.read.len();
            let Some(input) = ask.inputs.next() else {
                let read: usize = ask.read.iter().map(Vec::len).sum();
                say(Word::Began {
                    number: ask.number,
                    read: u32::try_from(read).unwrap_or(u32::MAX),
                });
                self.running.push_back(Running {
                    number: ask.number,
                    texts: ask.read,
                });
                continue;
            };
            bytes += match &input {
                EmbedInput::Text(text) => text.len() + 1,
                EmbedInput::Tokens(tokens) => tokens.len() + 1,
            };
            match self.tokens(at, input) {
                Ok(tokens) => {
                    ask.read.push_back(tokens);
                    self.reading.push_front(ask);
                }
                Err(error) => say(Word::refused(ask.number, &error)),
            }
        }
    }

    fn tokens(&self, at: usize, input: EmbedInput) -> Result<Vec<u32>, EmbedError> {
        let context = self.context;
        let tokens = match input {
            EmbedInput::Text(text) => {
                let (bytes, most) = (text.len(), context.saturating_mul(ENCODER_TOKEN_BYTES_MAX));
                if bytes == 0 {
                    return Err(EmbedError::Empty(at));
                }
                if bytes > most {
                    return Err(EmbedError::TooManyBytes {
                        at,
                        bytes,
                        context,
                        most,
                    });
                }
                let tokens = self.tokenizer.encode(&text);
                tokens.map_err(|error| EmbedError::Tokens { at, error })?
            }
            EmbedInput::Tokens(tokens) => {
                let vocabulary = self.engine.config().vocabulary;
                let is_known = |token: u32| usize::try_from(token).is_ok_and(|it| it < vocabulary);
                if let Some(token) = tokens.iter().find(|token| !is_known(**token)) {
                    return Err(EmbedError::Token {
                        at,
                        token: *token,
                        vocabulary,
                    });
                }
                tokens.into_vec()
            }
        };
        match tokens.len() {
            0 => Err(EmbedError::Empty(at)),
            tokens if tokens > context => Err(EmbedError::TooLong {
                at,
                tokens,
                context,
            }),
            _ => Ok(tokens),
        }
    }

    /// Texts to compute together, of each question in turn, with its number.
    fn batch(&mut self) -> Vec<(u64, Vec<u32>)> {
        let (mut batch, mut rows) = (Vec::new(), 0);
        loop {
            let before = batch.len();
            for at in 0..self.running.len() {
                let ask = &mut self.running[at];
                let Some(next) = ask.texts.front() else {
                    continue;
                };
                if !batch.is_empty() && rows + next.len() > ENCODER_ROWS_MAX {
                    // Its turn comes first in the next.
                    self.running.rotate_left(at);
                    return batch;
                }
                rows += next.len();
                batch.extend(ask.texts.pop_front().map(|text| (ask.number, text)));
            }
            if batch.len() == before {
                return batch;
            }
        }
    }
}

fn embedded(number: u64, tokens: usize, vector: &[f32]) -> Word {
    let bytes = vector.iter().flat_map(|number| number.to_le_bytes());
    Word::Embedded {
        number,
        read: u32::try_from(tokens).unwrap_or(u32::MAX),
        vector: List::truncated(bytes.collect()),
    }
}

fn ended(number: u64, finish: Finish) -> Word {
    Word::Ended {
        number,
        finish,
        pieces: List::default(),
    }
}

fn not_finite(number: u64) -> Word {
    let words = "the model makes numbers of it that are not finite; its file is damaged";
    Word::refused(number, &words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits::EMBED_INPUTS_MAX,
        model::{gguf::TensorType, testing::small_encoder_file},
    };

    fn loaded(bytes: &[u8], context_max: u32) -> Result<Embeddings, ReadError> {
        let load = Load {
            threads: 2,
            cache_bytes_max: 0,
            context_max,
        };
        Embeddings::read(bytes, &load)
    }

    fn encoder() -> Embeddings {
        loaded(&small_encoder_file(TensorType::Q8_0, 1).file(), 0).unwrap()
    }

    fn question(texts: &[&str]) -> Embed {
        let input = |text: &&str| EmbedInput::Text(Utf8::cut(text));
        Embed {
            inputs: List::new(texts.iter().map(input).collect()).unwrap(),
        }
    }

    /// All words until nothing is asked.
    fn run(model: &mut Embeddings, questions: Vec<(u64, Embed)>) -> Vec<Word> {
        let mut words = Vec::new();
        for (number, embed) in questions {
            model.embed(number, embed, |word| words.push(word));
        }
        while !model.is_idle() {
            model.step(|word| words.push(word));
        }
        words
    }

    fn vectors(words: &[Word], number: u64) -> Vec<Vec<u8>> {
        let of = words.iter().filter(|word| word.number() == Some(number));
        let vector = |word: &Word| match word {
            Word::Embedded { vector, .. } => Some(vector.to_vec()),
            _ => None,
        };
        of.filter_map(vector).collect()
    }

    fn why(words: &[Word]) -> String {
        match words {
            [Word::Refused { why, .. }] => why.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn texts_are_the_same_alone_and_together() {
        let mut model = encoder();
        assert_eq!(model.facts().embeds, Some(96));
        let texts = ["a cafe", "the unfort", "!", "a b c d e f g h i j k l", " "];
        let together = run(
            &mut model,
            vec![
                (7, question(&texts)),
                (8, question(&["x"])),
                (9, question(&texts)),
            ],
        );
        let mut read = 0;
        for (at, text) in texts.iter().enumerate() {
            let alone = run(&mut model, vec![(1, question(&[text]))]);
            assert!(matches!(alone[0], Word::Began { number: 1, .. }));
            assert!(alone.last().unwrap().is_last());
            assert_eq!(vectors(&together, 7)[at], vectors(&alone, 1)[0]);
            assert_eq!(vectors(&together, 9)[at], vectors(&alone, 1)[0]);
            if let Word::Embedded { read: one, .. } = &alone[1] {
                read += one;
            }
        }
        assert!(together.contains(&Word::Began { number: 7, read }));
        assert_eq!(vectors(&together, 8).len(), 1);
    }

    #[test]
    fn as_many_as_may_be_are_answered_and_others_are_heard_meanwhile() {
        let mut model = encoder();
        let many = vec!["the the the the"; EMBED_INPUTS_MAX];
        let words = run(
            &mut model,
            vec![(1, question(&many)), (2, question(&["a"]))],
        );
        assert_eq!(vectors(&words, 1).len(), EMBED_INPUTS_MAX);
        let ended = words
            .iter()
            .position(|word| word.number() == Some(2) && word.is_last());
        assert!(ended.unwrap() < words.len() / 2);
    }

    #[test]
    fn wrong_questions_are_refused_in_words() {
        let mut model = encoder();
        let mut said = |embed| why(&run(&mut model, vec![(3, embed)]));
        assert!(said(Embed::default()).contains("no input"));
        assert!(said(question(&["a", ""])).contains("input 1 is empty"));
        let long = said(question(&["a a ".repeat(20).as_str()]));
        assert!(
            long.contains("42 tokens") && long.contains("40 at most"),
            "{long}"
        );
        let long = said(question(&["x".repeat(5121).as_str()]));
        assert!(
            long.contains("5121 bytes") && long.contains("5120"),
            "{long}"
        );
        let tokens = |tokens: Vec<u32>| Embed {
            inputs: List::truncated(vec![EmbedInput::Tokens(List::truncated(tokens))]),
        };
        assert!(said(tokens(vec![])).contains("empty"));
        assert!(said(tokens(vec![2, 5000, 3])).contains("5000"));
        assert!(said(tokens(vec![2; 41])).contains("41 tokens"));
        let words = run(&mut model, vec![(3, tokens(vec![2, 8, 3]))]);
        assert_eq!(vectors(&words, 3).len(), 1);
    }

    #[test]
    fn who_stops_is_forgotten() {
        let mut model = encoder();
        let mut words = Vec::new();
        for number in 1..=3 {
            model.embed(number, question(&["the the"; 500]), |word| words.push(word));
        }
        model.step(|word| words.push(word));
        for number in [3, 1, 2, 9] {
            model.stop(number, |word| words.push(word));
        }
        assert!(model.is_idle());
        let stopped = words.iter().filter(|word| word.is_last());
        assert_eq!(stopped.count(), 3);
    }

    #[test]
    fn numbers_without_bound_are_refused_and_not_given_out() {
        let mut file = small_encoder_file(TensorType::F32, 1);
        let huge: Vec<u8> = (0..96).flat_map(|_| f32::MAX.to_le_bytes()).collect();
        file.tensor("blk.1.layer_output_norm.weight", &[96], 0, huge.clone());
        file.tensor("blk.1.layer_output_norm.bias", &[96], 0, huge);
        let mut model = loaded(&file.file(), 0).unwrap();
        let words = run(&mut model, vec![(1, question(&["a", "b"]))]);
        assert!(matches!(words[0], Word::Began { .. }));
        assert!(why(&words[1..]).contains("not finite"));
    }

    #[test]
    fn what_does_not_fit_together_is_not_served() {
        let file = small_encoder_file(TensorType::F32, 1);
        let said = |context| loaded(&file.file(), context).unwrap_err().to_string();
        assert!(said(2).contains("beginning"));
        assert_eq!(loaded(&file.file(), 10).unwrap().facts().context, 10);
        let mut more = small_encoder_file(TensorType::F32, 1);
        let tokens: Vec<String> = (0..500).map(|n| format!("\u{2581}{n}")).collect();
        more.texts("tokenizer.ggml.tokens", &tokens)
            .without("tokenizer.ggml.token_type");
        let words = loaded(&more.file(), 0).unwrap_err().to_string();
        assert!(words.contains("more tokens than"), "{words}");
    }
}
