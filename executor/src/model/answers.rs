//! Answers of one model to many who ask at once.
//!
//! ```text
//!  ask ─▶ waiting ──room──▶ running ─▶ step: a token of each that is being written,
//!             ▲                │             and some of the prompts' tokens
//!             └──no room left──┘                │
//!                                sampler ◀── logits ── engine
//!                                   └─▶ words: Began, Wrote …, Ended
//! ```
//!
//! [`Answers::step`] is one call of the engine. Whoever is being written gets a token in
//! each; what is left of a call goes to prompts, in the order of coming. Of keys and values
//! there is only so much room: when it ends, the answer that came last gives its own back
//! and waits, and is computed again when there is room. Its reader notices a pause, and the
//! same words.
//!
//! What an answer will be depends on its question alone, never on what is asked beside it
//! (on the processor to the last bit, on a device but for the last bits of logits).
//! Nothing of an answer is kept when it has ended: two who ask the same are computed twice,
//! because the time that the second takes would tell him what the first has asked.
//!
//! Absent: who asks, fairness between them, and time.

use std::collections::VecDeque;

use suanli_protocol::wire::Utf8;

use super::{
    chat::{Chat, ChatError, Message, Role},
    cpu::{self, EngineOptions, Weights},
    engine::{Engine, EngineError, SequenceId, Step},
    gguf::{Gguf, GgufError},
    llama::{Llama, ModelError},
    sampler::{Sampler, SamplerError, SamplerOptions},
    tokenizer::{TextStream, Tokenizer, TokenizerError},
};
use crate::{
    ipc::{
        Detail,
        model::{Ask, Facts, Finish, Load, Prompt, Speaker, Turn, Word},
    },
    limits::{ANSWERS_MAX, MODEL_STEPS_MAX, PROMPT_STEPS_BESIDE},
};

/// Why a file's model can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is no file of a model.
    #[error(transparent)]
    File(#[from] GgufError),
    /// Its weights can't be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its vocabulary can't be used.
    #[error(transparent)]
    Tokens(#[from] TokenizerError),
    /// Its template can't be used.
    #[error(transparent)]
    Chat(ChatError),
    /// There is not even room for a short conversation.
    #[error("{0} bytes for keys and values are too few for this model; give it more")]
    NoRoom(u64),
    /// No threads.
    #[error("the system gives no threads: {0}")]
    Threads(std::io::Error),
    /// The device can't compute it.
    #[error("{0}; the processor can compute it (`adapter = \"none\"`)")]
    Device(String),
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Chat(#[from] ChatError),
    #[error(transparent)]
    Tokens(#[from] TokenizerError),
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    #[error("the question is empty")]
    Empty,
    #[error("the token {0} is not one of the model's")]
    Token(u32),
    #[error(
        "the question has {bytes} bytes, and no text that long has the {context} tokens or fewer that question and answer together may have here; shorten it"
    )]
    TooManyBytes { bytes: usize, context: usize },
    #[error(
        "the question has {tokens} tokens, and question and answer together may have {context} here; shorten it"
    )]
    TooLong { tokens: usize, context: usize },
}

/// A model, and the answers that it is giving.
#[derive(Debug)]
pub struct Answers {
    engine: Box<dyn Engine>,
    tokenizer: Tokenizer,
    chat: Option<Chat>,
    facts: Facts,
    /// Positions that a question and its answer may take.
    context: usize,
    /// Bytes of a text that may have so few tokens.
    text_bytes_max: usize,
    sequences: u64,
    running: Vec<Answer>,
    waiting: VecDeque<Answer>,
}

/// An answer that is not over.
#[derive(Debug)]
struct Answer {
    number: u64,
    sequence: SequenceId,
    /// The prompt's, and those that are written.
    tokens: Vec<u32>,
    /// Of how many the keys and values are there.
    computed: usize,
    /// It is as long as it may be with so many.
    length_max: usize,
    sampler: Sampler,
    text: Writing,
}

impl Answer {
    fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    fn ended(self, finish: Finish) -> Word {
        Word::Ended {
            number: self.number,
            finish,
            text: Utf8::cut(&self.text.finish()),
        }
    }
}

impl Answers {
    /// Reads a model, for the processor. The bytes of its file are not needed after that.
    ///
    /// # Errors
    ///
    /// Why it can't be served.
    pub fn read(bytes: &[u8], load: &Load) -> Result<Self, ReadError> {
        Self::read_for(bytes, load, |model| {
            let options = EngineOptions {
                threads: usize::try_from(load.threads).unwrap_or(usize::MAX),
                cache_bytes_max: usize::try_from(load.cache_bytes_max).unwrap_or(usize::MAX),
            };
            let engine = cpu::Engine::new(Weights::new(model).into(), options);
            Ok(Box::new(engine.map_err(ReadError::Threads)?))
        })
    }

    /// Reads a model, for the engine that is made of it.
    ///
    /// # Errors
    ///
    /// Why it can't be served.
    pub fn read_for(
        bytes: &[u8],
        load: &Load,
        engine: impl FnOnce(&Llama<'_>) -> Result<Box<dyn Engine>, ReadError>,
    ) -> Result<Self, ReadError> {
        let file = Gguf::parse(bytes)?;
        let model = Llama::read(&file)?;
        let tokenizer = Tokenizer::read(&file)?;
        let chat = match Chat::read(&file, &tokenizer) {
            Ok(chat) => Some(chat),
            Err(ChatError::None) => None,
            Err(error) => return Err(ReadError::Chat(error)),
        };
        let engine = engine(&model)?;
        let made_for = engine.config().context;
        let wanted = match load.context_max {
            0 => made_for,
            most => usize::try_from(most).unwrap_or(usize::MAX).min(made_for),
        };
        let context = wanted.min(engine.positions_left());
        if context < 2 {
            return Err(ReadError::NoRoom(load.cache_bytes_max));
        }
        let number = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let facts = Facts {
            context: number(context),
            made_for: number(made_for),
            vocabulary: number(engine.config().vocabulary),
            quantisation: Utf8::cut(&quantisation(&file)),
            converses: chat.is_some(),
            device: engine.device().map(Utf8::cut),
            embeds: None,
        };
        Ok(Self {
            engine,
            text_bytes_max: context.saturating_mul(tokenizer.longest()),
            tokenizer,
            chat,
            facts,
            context,
            sequences: 0,
            running: Vec::new(),
            waiting: VecDeque::new(),
        })
    }

    /// What there is to know of the model.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether no answer is being given.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Takes a question.
    pub fn ask(&mut self, number: u64, ask: &Ask, mut say: impl FnMut(Word)) {
        let (answer, read) = match self.answer(number, ask) {
            Ok(answer) => answer,
            Err(error) => {
                let why = Utf8::cut(&error.to_string());
                return say(Word::Refused { number, why });
            }
        };
        say(Word::Began { number, read });
        if answer.text.is_over {
            say(answer.ended(Finish::Stop));
        } else if answer.tokens.len() >= answer.length_max {
            say(answer.ended(Finish::Length));
        } else {
            self.waiting.push_back(answer);
        }
    }

    fn answer(&mut self, number: u64, ask: &Ask) -> Result<(Answer, u32), AskError> {
        let mut tokens = self.prompt(&ask.prompt)?;
        if tokens.is_empty() {
            return Err(AskError::Empty);
        }
        let asked = tokens.len();
        tokens.extend_from_slice(&ask.begun);
        let vocabulary = self.facts.vocabulary;
        if let Some(token) = tokens.iter().find(|token| **token >= vocabulary) {
            return Err(AskError::Token(*token));
        }
        if tokens.len() >= self.context {
            return Err(AskError::TooLong {
                tokens: tokens.len(),
                context: self.context,
            });
        }
        let options = SamplerOptions {
            temperature: ask.temperature,
            top_p: ask.top_p,
            min_p: ask.min_p,
        };
        let sampler = Sampler::resume(options, ask.seed, ask.draws)?;
        let mut text = Writing::new(ask.stops.iter().map(|stop| String::from(&**stop)));
        for token in &ask.begun {
            // Whoever wrote them has given that text out.
            let _ = text.push(&self.tokenizer, *token);
        }
        let most = ask.tokens_max.map_or(usize::MAX, |most| {
            usize::try_from(most).unwrap_or(usize::MAX)
        });
        self.sequences += 1;
        let answer = Answer {
            number,
            sequence: SequenceId(self.sequences),
            tokens,
            computed: 0,
            length_max: asked.saturating_add(most).min(self.context),
            sampler,
            text,
        };
        Ok((answer, u32::try_from(asked).unwrap_or(u32::MAX)))
    }

    fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, AskError> {
        // Making tokens of a text takes time that all others wait.
        let bytes = match prompt {
            Prompt::Conversation(turns) => turns.iter().map(|turn| turn.text.len()).sum(),
            Prompt::Text(text) => text.len(),
            Prompt::Tokens(_) => 0,
        };
        if bytes > self.text_bytes_max {
            let context = self.context;
            return Err(AskError::TooManyBytes { bytes, context });
        }
        let text = match prompt {
            Prompt::Conversation(turns) => {
                let chat = self.chat.as_ref().ok_or(ChatError::None)?;
                let messages: Vec<Message> = turns.iter().map(message).collect();
                return Ok(chat.prompt(&self.tokenizer, &messages, true)?);
            }
            Prompt::Tokens(tokens) => return Ok(tokens.to_vec()),
            Prompt::Text(text) => text,
        };
        let bos = self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos());
        let tokens = self.tokenizer.encode(text)?;
        Ok(bos.into_iter().chain(tokens).collect())
    }

    /// Nobody wants the rest of an answer.
    pub fn stop(&mut self, number: u64, mut say: impl FnMut(Word)) {
        let waits = self.waiting.iter().position(|one| one.number == number);
        let answer = match waits {
            Some(place) => self.waiting.remove(place),
            None => {
                let runs = self.running.iter().position(|one| one.number == number);
                runs.map(|place| self.running.remove(place))
            }
        };
        if let Some(answer) = answer {
            self.engine.end(answer.sequence);
            say(answer.ended(Finish::Stopped));
        }
    }

    /// Computes once, and says what was written. Does nothing if nothing is asked.
    ///
    /// # Errors
    ///
    /// [`EngineError::Device`]: nothing more will be computed.
    pub fn step(&mut self, mut say: impl FnMut(Word)) -> Result<(), EngineError> {
        self.admit();
        let steps = loop {
            let steps = self.steps();
            if steps.is_empty() {
                return Ok(());
            }
            match self.engine.forward(&steps) {
                Ok(_) => break steps,
                Err(EngineError::CacheFull { .. }) if self.running.len() > 1 => self.put_back(),
                Err(error @ EngineError::Device(_)) => return Err(error),
                Err(error) => {
                    // Not even one has room, or a mistake of ours: no answer may hang.
                    tracing::error!(%error, "an answer could not be computed");
                    for answer in self.running.drain(..) {
                        self.engine.end(answer.sequence);
                        say(answer.ended(Finish::Length));
                    }
                    return Ok(());
                }
            }
        };
        self.take(&steps, say);
        Ok(())
    }

    /// Lets those run that there is room for.
    fn admit(&mut self) {
        // Each that runs may want a page more before it ends.
        while let Some(next) = self.waiting.front() {
            let runs = self.running.len();
            let reserve = runs.saturating_mul(ROOM);
            let wanted = next.tokens.len().saturating_add(ROOM + reserve);
            let has_room = runs == 0 || self.engine.positions_left() >= wanted;
            if runs >= ANSWERS_MAX || !has_room {
                return;
            }
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// The one that came last waits again.
    fn put_back(&mut self) {
        if let Some(mut last) = self.running.pop() {
            self.engine.end(last.sequence);
            last.computed = 0;
            self.waiting.push_front(last);
        }
    }

    /// A step of each answer that is being written, then as many of prompts as is good.
    fn steps(&self) -> Vec<Step> {
        let written = self.running.iter().filter(|answer| answer.pending() == 1);
        let mut steps: Vec<Step> = written.flat_map(|answer| next_steps(answer, 1)).collect();
        let beside = if steps.is_empty() {
            MODEL_STEPS_MAX
        } else {
            PROMPT_STEPS_BESIDE
        };
        let most = (steps.len() + beside).min(MODEL_STEPS_MAX);
        for answer in self.running.iter().filter(|answer| answer.pending() > 1) {
            let room = most - steps.len();
            if room == 0 {
                break;
            }
            steps.extend(next_steps(answer, room));
        }
        steps
    }

    /// Takes over what was computed: whose last token it was gets the next one.
    fn take(&mut self, steps: &[Step], mut say: impl FnMut(Word)) {
        let wanted = steps.iter().filter(|step| step.wants_logits);
        let rows: Vec<_> = wanted.zip(self.engine.logits().rows()).collect();
        let mut running = std::mem::take(&mut self.running);
        for answer in &mut running {
            let is_its = |step: &&Step| step.sequence == answer.sequence;
            answer.computed += steps.iter().filter(is_its).count();
            if let Some((_, row)) = rows.iter().find(|(step, _)| is_its(step)) {
                let token = answer.sampler.sample(row);
                write(&self.tokenizer, answer, token, &mut say);
            }
        }
        for answer in running {
            let finish = if answer.text.is_over {
                Finish::Stop
            } else if answer.tokens.len() >= answer.length_max {
                Finish::Length
            } else {
                self.running.push(answer);
                continue;
            };
            self.engine.end(answer.sequence);
            say(answer.ended(finish));
        }
    }
}

/// Positions that are kept free for each answer that runs.
const ROOM: usize = 32;

fn next_steps(answer: &Answer, most: usize) -> impl Iterator<Item = Step> {
    let last = answer.tokens.len() - 1;
    let pending = answer.tokens.iter().enumerate().skip(answer.computed);
    pending.take(most).map(move |(position, token)| Step {
        sequence: answer.sequence,
        token: *token,
        position: u32::try_from(position).unwrap_or(u32::MAX),
        wants_logits: position == last,
    })
}

/// Writes a token, unless it says that the answer is over.
fn write(tokenizer: &Tokenizer, answer: &mut Answer, token: u32, say: &mut impl FnMut(Word)) {
    if tokenizer.is_end(token) {
        answer.text.is_over = true;
        return;
    }
    answer.tokens.push(token);
    let text = answer.text.push(tokenizer, token);
    say(Word::Wrote {
        number: answer.number,
        token,
        draws: answer.sampler.draws(),
        text: Detail::cut(&text),
    });
}

fn message(turn: &Turn) -> Message {
    let role = match turn.speaker {
        Speaker::System => Role::System,
        Speaker::User => Role::User,
        Speaker::Assistant => Role::Assistant,
    };
    Message {
        role,
        content: String::from(&*turn.text),
    }
}

/// What most of a file's weights are stored as.
pub(super) fn quantisation(file: &Gguf<'_>) -> String {
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for tensor in file.tensors() {
        let name = format!("{:?}", tensor.kind()).to_uppercase();
        let size: usize = tensor.dimensions().iter().product();
        match kinds.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += size,
            None => kinds.push((name, size)),
        }
    }
    let most = kinds.into_iter().max_by_key(|(_, size)| *size);
    most.map(|(name, _)| name).unwrap_or_default()
}

/// Text as it becomes certain: whole characters, and nothing that may yet turn out to be
/// the beginning of a text before which the answer ends.
#[derive(Debug)]
struct Writing {
    stream: TextStream,
    held: String,
    stops: Vec<String>,
    is_over: bool,
}

impl Writing {
    fn new(stops: impl Iterator<Item = String>) -> Self {
        Self {
            stream: TextStream::new(),
            held: String::new(),
            stops: stops.filter(|stop| !stop.is_empty()).collect(),
            is_over: false,
        }
    }

    /// The text that is certain with this token.
    fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> String {
        if self.is_over {
            return String::new();
        }
        self.held.push_str(&self.stream.push(tokenizer, token));
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop));
        if let Some(at) = found.min() {
            self.is_over = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let kept = self.stops.iter().map(|stop| begun(&self.held, stop));
        let certain = self.held.len() - kept.max().unwrap_or(0);
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// What is left when no more tokens come.
    fn finish(mut self) -> String {
        if !self.is_over {
            self.held.push_str(&self.stream.finish());
        }
        self.held
    }
}

/// How many bytes at the end of a text are a beginning of another.
fn begun(text: &str, whole: &str) -> usize {
    let lengths = (1..whole.len().min(text.len() + 1)).rev();
    let is_begun = |length: &usize| text.as_bytes().ends_with(&whole.as_bytes()[..*length]);
    // What begins a text at a character's border ends one there too.
    lengths.into_iter().find(is_begun).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use suanli_protocol::wire::List;

    use super::*;
    use crate::model::{gguf::TensorType, testing::tiny};

    const CONTEXT: u32 = 100;

    fn answers(cache_bytes_max: u64) -> Answers {
        let load = Load {
            threads: 2,
            cache_bytes_max,
            context_max: 0,
        };
        Answers::read(&tiny(TensorType::Q8_0, true).file(), &load).unwrap()
    }

    fn ask(text: &str, tokens_max: u32) -> Ask {
        Ask {
            prompt: Prompt::Text(Utf8::cut(text)),
            begun: List::default(),
            draws: 0,
            seed: [7; 32],
            temperature: 0.9,
            top_p: 0.95,
            min_p: 0.0,
            tokens_max: Some(tokens_max),
            stops: List::default(),
        }
    }

    /// What was written until nobody asked any more.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    struct Heard {
        tokens: Vec<u32>,
        draws: u64,
        text: String,
        finish: Option<Finish>,
    }

    fn hear(words: &[Word], number: u64) -> Heard {
        let mut heard = Heard::default();
        for word in words.iter().filter(|word| word.number() == Some(number)) {
            assert_eq!(heard.finish, None, "a word after the last");
            match word {
                Word::Wrote {
                    token, draws, text, ..
                } => {
                    heard.tokens.push(*token);
                    heard.draws = *draws;
                    heard.text.push_str(text);
                }
                Word::Ended { finish, text, .. } => {
                    heard.text.push_str(text);
                    heard.finish = Some(*finish);
                }
                Word::Began { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        heard
    }

    fn finish(answers: &mut Answers, words: &mut Vec<Word>) {
        while !answers.is_idle() {
            answers.step(|word| words.push(word)).unwrap();
        }
    }

    fn alone(ask: &Ask) -> Heard {
        let mut answers = answers(1 << 20);
        let mut words = Vec::new();
        answers.ask(1, ask, |word| words.push(word));
        finish(&mut answers, &mut words);
        hear(&words, 1)
    }

    #[test]
    fn answers_beside_each_other_are_what_they_are_alone() {
        let asks: Vec<Ask> = (0..9)
            .map(|n| {
                ask(
                    &"he said ".repeat(n % 4 + 1),
                    30 + u32::try_from(n).unwrap(),
                )
            })
            .collect();
        let expected: Vec<Heard> = asks.iter().map(alone).collect();
        // Pages of 32 positions: room for some of them only, so that some are put back.
        let page = 2 * 2 * 2 * 32 * 32;
        for pages in [4, 7, 100] {
            let mut answers = answers(pages * page);
            let mut words = Vec::new();
            for (number, ask) in (0..).zip(&asks) {
                answers.ask(number, ask, |word| words.push(word));
                answers.step(|word| words.push(word)).unwrap();
            }
            finish(&mut answers, &mut words);
            for (number, expected) in (0..).zip(&expected) {
                assert_eq!(hear(&words, number), *expected, "{pages} pages, {number}");
            }
        }
    }

    #[test]
    fn an_answer_goes_on_elsewhere_as_if_nothing_had_been() {
        for stop in [None, Some("a")] {
            let mut whole = ask("where is he", 40);
            whole.stops = List::truncated(stop.into_iter().map(Utf8::cut).collect());
            let expected = alone(&whole);
            assert!(!expected.tokens.is_empty());
            for cut in 1..=expected.tokens.len() {
                let mut answers = answers(1 << 20);
                let mut words = Vec::new();
                answers.ask(1, &whole, |word| words.push(word));
                while hear(&words, 1).tokens.len() < cut {
                    answers.step(|word| words.push(word)).unwrap();
                }
                let first = hear(&words, 1);
                let mut rest = whole.clone();
                rest.begun = List::truncated(first.tokens[..cut].to_vec());
                rest.draws = first.draws;
                let mut text: String = String::new();
                let mut said = 0;
                for word in &words {
                    if let Word::Wrote { text: piece, .. } = word
                        && said < cut
                    {
                        text.push_str(piece);
                        said += 1;
                    }
                }
                let second = alone(&rest);
                assert_eq!(text + &second.text, expected.text, "cut after {cut}");
                let tokens = [&first.tokens[..cut], &second.tokens].concat();
                assert_eq!(
                    (tokens, second.finish),
                    (expected.tokens.clone(), expected.finish)
                );
            }
        }
    }

    #[test]
    fn what_is_too_long_or_no_question_is_refused() {
        let mut answers = answers(1 << 20);
        let mut refused = |ask: Ask| {
            let mut words = Vec::new();
            answers.ask(3, &ask, |word| words.push(word));
            assert!(answers.is_idle());
            match &words[..] {
                [Word::Refused { number: 3, why }] => String::from(&**why),
                other => panic!("{other:?}"),
            }
        };
        let mut long = ask("", 1);
        long.prompt = Prompt::Tokens(List::truncated(vec![5; 100]));
        assert!(refused(long).contains("100 tokens"));
        let mut unknown = ask("", 1);
        unknown.prompt = Prompt::Tokens(List::truncated(vec![100_000]));
        assert!(refused(unknown).contains("100000"));
        let mut wrong = ask("x", 1);
        wrong.temperature = f32::NAN;
        assert!(refused(wrong).contains("temperature"));
        assert!(refused(ask("", 5)).contains("empty"));
    }

    #[test]
    fn a_long_answer_ends_with_the_context() {
        let heard = alone(&ask("x", u32::MAX));
        if heard.finish == Some(Finish::Length) {
            assert_eq!(heard.tokens.len(), usize::try_from(CONTEXT).unwrap() - 1);
        }
        let none = alone(&ask("x", 0));
        assert_eq!((none.tokens.len(), none.finish), (0, Some(Finish::Length)));
    }

    #[test]
    fn who_stops_frees_what_it_took() {
        let mut answers = answers(1 << 20);
        let free = answers.engine.positions_left();
        let mut words = Vec::new();
        for number in 0..3 {
            answers.ask(number, &ask("he", 50), |word| words.push(word));
        }
        answers.step(|word| words.push(word)).unwrap();
        for number in 0..4 {
            answers.stop(number, |word| words.push(word));
        }
        assert!(answers.is_idle());
        assert_eq!(answers.engine.positions_left(), free);
        assert_eq!(hear(&words, 0).finish, Some(Finish::Stopped));
    }

    #[test]
    fn text_is_held_back_while_it_may_be_a_stop() {
        assert_eq!(begun("some <|", "<|end|>"), 2);
        assert_eq!(begun("aab", "aabaabaac"), 3);
        assert_eq!(begun("abc", "x"), 0);
        assert_eq!(begun("é", "éa"), 2);
    }
}
