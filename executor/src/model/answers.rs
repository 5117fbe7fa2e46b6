//! Answers of one model to many who ask at once.
//!
//! ```text
//!  ask ─▶ forming ─▶ waiting ──room──▶ running ─▶ step: a token of each that is being
//!   │    (if it has   ▲ ▲                │           written, and some of the prompts'
//!   │      a form)    │ └──no room left──┘             │
//!   └─────────────────┘       grammar, sampler ◀── logits ── engine
//!                                    └─▶ words: Began, Wrote …, Ended
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

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use suanli_protocol::wire::{Finite, List, Utf8};

use super::{
    chat::{Called, Chat, ChatError, Message, Role, ToolCall},
    cpu::{self, EngineOptions, Weights},
    engine::{Engine, EngineError, SequenceId, Step},
    gguf::{Gguf, GgufError},
    grammar::{Grammar, GrammarError, Maker, Wanted},
    llama::{Llama, ModelError},
    sampler::{Sampler, SamplerError, SamplerOptions, Shifts, likelihoods},
    tokenizer::{Tokenizer, TokenizerError},
    writing::{self, Calls, Writing},
};
use crate::{
    ipc::model::{
        Ask, Call, Facts, Finish, Form, Likelihood, Likely, Load, Piece, PieceText, Pieces, Prompt,
        Sampling, Score, Speaker, Tools, Turn, Word,
    },
    limits::{
        ANSWERS_MAX, FORMS_MAX, GRAMMAR_BYTES_MAX, LIKELIEST_MAX, MODEL_STEPS_MAX, PIECE_BYTES_MAX,
        PROMPT_STEPS_BESIDE, SCORES_MAX,
    },
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
    #[error("the question's tools have {0} bytes, and at most {GRAMMAR_BYTES_MAX} are read")]
    Tools(usize),
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
    /// For answers that must have a form.
    grammars: Maker,
    /// Grammars whose turn has not come.
    wanted: VecDeque<Wanted>,
    facts: Facts,
    /// Positions that a question and its answer may take.
    context: usize,
    /// Bytes of a text that may have so few tokens.
    text_bytes_max: usize,
    sequences: u64,
    /// Answers whose grammars are being made.
    forming: Vec<Answer>,
    running: Vec<Answer>,
    waiting: VecDeque<Answer>,
}

/// An answer that is not over.
#[derive(Debug)]
struct Answer {
    number: u64,
    /// Tokens of the question.
    read: u32,
    sequence: SequenceId,
    /// The prompt's, and those that are written.
    tokens: Vec<u32>,
    /// Of how many the keys and values are there.
    computed: usize,
    /// It is as long as it may be with so many.
    length_max: usize,
    text: Writing,
    choice: Choice,
    /// If it is only scored: the position after which the next token is.
    scored: Option<usize>,
    /// Nobody wants it any more.
    is_left: Arc<AtomicBool>,
}

/// What chooses an answer's tokens.
#[derive(Debug)]
struct Choice {
    sampler: Sampler,
    shifts: Shifts,
    grammar: Option<Grammar>,
    /// Whether likelihoods are told, and of how many.
    likeliest: Option<usize>,
    /// Logits that were changed. Kept for its room.
    logits: Vec<f32>,
}

impl Choice {
    /// That of an answer that has no form.
    fn of(ask: &Ask) -> Result<Self, SamplerError> {
        let Sampling {
            temperature,
            top_p,
            min_p,
            ..
        } = ask.sampling;
        let options = SamplerOptions {
            temperature,
            top_p,
            min_p,
        };
        let sampling = &ask.sampling;
        Ok(Self {
            sampler: Sampler::resume(options, ask.seed, ask.draws)?,
            shifts: Shifts::new(
                sampling.presence_penalty,
                sampling.frequency_penalty,
                sampling.biases.to_vec(),
            )?,
            grammar: None,
            likeliest: ask.likeliest.map(usize::from),
            logits: Vec::new(),
        })
    }

    /// The next token.
    fn choose(&mut self, logits: &[f32]) -> Result<u32, GrammarError> {
        if self.shifts.is_none() && self.grammar.is_none() {
            return Ok(self.sampler.sample(logits));
        }
        self.change(logits)?;
        Ok(self.sampler.sample(&self.logits))
    }

    /// The next token, and how far another is behind it; none if no token fits.
    fn doubt(&mut self, logits: &[f32], token: u32) -> Option<(u32, f32)> {
        self.change(logits).ok()?;
        Some(self.sampler.doubt(&self.logits, token))
    }

    /// Takes over logits as what is wanted of the answer changes them.
    fn change(&mut self, logits: &[f32]) -> Result<(), GrammarError> {
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.shifts.apply(&mut self.logits);
        if let Some(grammar) = &mut self.grammar {
            grammar.allowed()?.apply(&mut self.logits);
        }
        Ok(())
    }

    /// An answer has one token more.
    fn took(&mut self, token: u32) -> Result<(), GrammarError> {
        self.shifts.took(token);
        match &mut self.grammar {
            Some(grammar) => grammar.take(token),
            None => Ok(()),
        }
    }

    fn is_over(&self) -> bool {
        self.grammar.as_ref().is_some_and(Grammar::is_over)
    }

    /// How likely a token was, if that is told.
    fn likelihood(
        &self,
        tokenizer: &Tokenizer,
        logits: &[f32],
        token: u32,
    ) -> Option<Box<Likelihood>> {
        let count = self.likeliest?.min(LIKELIEST_MAX);
        let (own, likeliest) = likelihoods(logits, token, count);
        let likely = |(token, logarithm)| Likely {
            token,
            logarithm: Finite::nearest(logarithm),
            bytes: List::truncated(tokenizer.bytes(token).to_vec()),
        };
        Some(Box::new(Likelihood {
            of: likely((token, own)),
            likeliest: List::truncated(likeliest.into_iter().map(likely).collect()),
        }))
    }
}

impl Answer {
    /// Steps until it has what it is computed for: the next token, or the last score.
    fn pending(&self) -> usize {
        let all = self.tokens.len() - usize::from(self.scored.is_some());
        all - self.computed
    }

    /// Whether what follows a position is wanted.
    fn wants(&self, position: usize) -> bool {
        match self.scored {
            Some(next) => position >= next,
            None => position + 1 == self.tokens.len(),
        }
    }

    fn ended(self, finish: Finish) -> Word {
        let called = self.text.calls() > 0 && finish == Finish::Stop;
        Word::Ended {
            number: self.number,
            finish: if called { Finish::Calls } else { finish },
            pieces: pieces(self.text.finish()),
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
            grammars: Maker::new(tokenizer.clone()),
            wanted: VecDeque::new(),
            tokenizer,
            chat,
            facts,
            context,
            sequences: 0,
            forming: Vec::new(),
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
        self.running.is_empty() && self.waiting.is_empty() && self.forming.is_empty()
    }

    /// Takes a question.
    pub fn ask(&mut self, number: u64, ask: &Ask, mut say: impl FnMut(Word)) {
        match self.answer(number, ask) {
            Ok(answer) if ask.form == Form::Any && ask.tools().is_none() => {
                self.begin(answer, say);
            }
            Ok(answer) => {
                self.wanted.push_back(wanted(&answer, ask));
                self.forming.push(answer);
            }
            Err(error) => say(Word::refused(number, &error)),
        }
    }

    /// Orders grammars, and takes those that are made. Waits for one if there is nothing else
    /// to do.
    fn form(&mut self, mut say: impl FnMut(Word)) {
        let all = self.running.iter().chain(&self.waiting);
        let of_form = all.filter(|one| one.choice.grammar.is_some()).count();
        // Those that are being made have left the line, and are of a form soon.
        let made = self.forming.len().saturating_sub(self.wanted.len());
        let places = FORMS_MAX.saturating_sub(of_form + made);
        for wanted in self.wanted.drain(..places.min(self.wanted.len())) {
            let number = wanted.number;
            if let Err(error) = self.grammars.order(wanted) {
                self.forming.retain(|one| one.number != number);
                say(Word::refused(number, &error));
            }
        }
        let works = !self.running.is_empty() || !self.waiting.is_empty();
        let patience = match works || self.forming.is_empty() {
            true => Duration::ZERO,
            false => HEARS_AGAIN,
        };
        for made in self.grammars.made(patience) {
            let place = self
                .forming
                .iter()
                .position(|one| one.number == made.number);
            // Whoever gave it up meanwhile needs none.
            let Some(mut answer) = place.map(|place| self.forming.remove(place)) else {
                continue;
            };
            match made.grammar {
                Ok(grammar) => {
                    answer.choice.grammar = Some(grammar);
                    self.begin(answer, &mut say);
                }
                Err(error) => say(Word::refused(made.number, &error)),
            }
        }
    }

    /// Lets an answer begin.
    fn begin(&mut self, mut answer: Answer, mut say: impl FnMut(Word)) {
        say(Word::Began {
            number: answer.number,
            read: answer.read,
        });
        if answer.scored.is_some() {
            return match answer.pending() {
                0 => say(answer.ended(Finish::Stop)),
                _ => self.waiting.push_back(answer),
            };
        }
        if answer.choice.is_over() {
            answer.text.end();
        }
        if answer.text.is_over() {
            say(answer.ended(Finish::Stop));
        } else if answer.tokens.len() >= answer.length_max {
            say(answer.ended(Finish::Length));
        } else {
            self.waiting.push_back(answer);
        }
    }

    fn answer(&mut self, number: u64, ask: &Ask) -> Result<Answer, AskError> {
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
        let mut choice = Choice::of(ask)?;
        let stops = ask.stops.iter().map(|stop| String::from(&**stop));
        let calls = match (ask.tools(), &ask.form) {
            (None, _) => Calls::None,
            (Some(_), Form::Any) => Calls::Anywhere,
            // JSON may have in a text what would be a call.
            (Some(_), Form::Json | Form::Schema { .. }) => Calls::First,
        };
        let mut text = Writing::new(stops, calls);
        for token in &ask.begun {
            // Whoever wrote them has given that text out.
            let _ = text.push(&self.tokenizer, *token);
            if !ask.scores {
                choice.shifts.took(*token);
            }
        }
        let most = ask.tokens_max.map_or(usize::MAX, |most| {
            usize::try_from(most).unwrap_or(usize::MAX)
        });
        self.sequences += 1;
        Ok(Answer {
            number,
            read: u32::try_from(asked).unwrap_or(u32::MAX),
            sequence: SequenceId(self.sequences),
            tokens,
            computed: 0,
            length_max: asked.saturating_add(most).min(self.context),
            text,
            choice,
            scored: ask.scores.then(|| asked - 1),
            is_left: Arc::default(),
        })
    }

    fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, AskError> {
        // Making tokens of a text takes time that all others wait.
        let bytes = match prompt {
            Prompt::Conversation { turns, tools } => {
                let tools = tools.as_ref().map_or(0, |tools| tools.functions.len());
                if tools > GRAMMAR_BYTES_MAX {
                    return Err(AskError::Tools(tools));
                }
                turns.iter().map(bytes).sum::<usize>() + tools
            }
            Prompt::Text(text) => text.len(),
            Prompt::Tokens(_) => 0,
        };
        if bytes > self.text_bytes_max {
            let context = self.context;
            return Err(AskError::TooManyBytes { bytes, context });
        }
        let text = match prompt {
            Prompt::Conversation { turns, tools } => {
                let chat = self.chat.as_ref().ok_or(ChatError::None)?;
                let messages: Vec<Message> = turns.iter().map(message).collect();
                let tools = described(tools.as_ref());
                return Ok(chat.prompt(&self.tokenizer, &messages, &tools, true)?);
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
        let is_it = |one: &Answer| one.number == number;
        let waits = self.waiting.iter().position(is_it);
        let answer = match waits {
            Some(place) => self.waiting.remove(place),
            None => {
                let all = [&mut self.running, &mut self.forming];
                all.into_iter().find_map(|all| {
                    let place = all.iter().position(is_it)?;
                    Some(all.remove(place))
                })
            }
        };
        if let Some(answer) = answer {
            self.wanted.retain(|one| one.number != number);
            answer.is_left.store(true, Ordering::Relaxed);
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
        self.form(&mut say);
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
        let mut stuck = Vec::new();
        for answer in &mut running {
            let is_its = |step: &&Step| step.sequence == answer.sequence;
            answer.computed += steps.iter().filter(is_its).count();
            if let Some(next) = answer.scored {
                let its = rows.iter().filter(|(step, _)| is_its(step));
                let its: Vec<&[f32]> = its.map(|(_, row)| *row).collect();
                if !its.is_empty() {
                    say(score(answer, next, &its));
                }
            } else if let Some((_, row)) = rows.iter().find(|(step, _)| is_its(step))
                && let Err(error) = write(&self.tokenizer, answer, row, &mut say)
            {
                tracing::debug!(%error, "an answer can't be held to its form");
                stuck.push(answer.number);
            }
        }
        for answer in running {
            let finish = if stuck.contains(&answer.number) {
                Finish::Stuck
            } else if answer.scored.is_some() {
                if answer.pending() > 0 {
                    self.running.push(answer);
                    continue;
                }
                Finish::Stop
            } else if answer.text.is_over() {
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
/// While only a grammar is waited for, orders are heard again after this long.
const HEARS_AGAIN: Duration = Duration::from_millis(5);

/// What an answer's grammar is made of.
fn wanted(answer: &Answer, ask: &Ask) -> Wanted {
    let begun = match ask.scores {
        true => Vec::new(),
        false => ask.begun.to_vec(),
    };
    Wanted {
        number: answer.number,
        form: ask.form.clone(),
        tools: ask.tools().cloned(),
        begun,
        is_left: Arc::clone(&answer.is_left),
    }
}

fn next_steps(answer: &Answer, most: usize) -> impl Iterator<Item = Step> {
    let most = match answer.scored {
        Some(_) => most.min(SCORES_MAX),
        None => most,
    };
    let steps = most.min(answer.pending());
    let tokens = answer.tokens.iter().enumerate().skip(answer.computed);
    tokens.take(steps).map(|(position, token)| Step {
        sequence: answer.sequence,
        token: *token,
        position: u32::try_from(position).unwrap_or(u32::MAX),
        wants_logits: answer.wants(position),
    })
}

/// Scores the tokens that follow some steps.
fn score(answer: &mut Answer, mut next: usize, rows: &[&[f32]]) -> Word {
    let mut scores = Vec::with_capacity(rows.len());
    for logits in rows {
        next += 1;
        let Some(token) = answer.tokens.get(next).copied() else {
            break;
        };
        let doubt = answer.choice.doubt(logits, token);
        // One that its form does not allow is seen by what would have come instead.
        let _ = answer.choice.took(token);
        scores.push(Score {
            logarithm: Finite::nearest(likelihoods(logits, token, 0).0),
            instead: doubt.map(|(instead, _)| instead),
            behind: Finite::nearest(doubt.map_or(f32::MAX, |(_, behind)| behind)),
        });
    }
    answer.scored = Some(next);
    Word::Scored {
        number: answer.number,
        scores: List::truncated(scores),
    }
}

/// Writes a token, unless it says that the answer is over.
fn write(
    tokenizer: &Tokenizer,
    answer: &mut Answer,
    logits: &[f32],
    say: &mut impl FnMut(Word),
) -> Result<(), GrammarError> {
    let token = answer.choice.choose(logits)?;
    if tokenizer.is_end(token) {
        answer.text.end();
        return Ok(());
    }
    answer.choice.took(token)?;
    answer.tokens.push(token);
    let written = answer.text.push(tokenizer, token);
    say(Word::Wrote {
        number: answer.number,
        token,
        draws: answer.choice.sampler.draws(),
        pieces: pieces(written),
        likelihood: answer.choice.likelihood(tokenizer, logits, token),
    });
    if answer.choice.is_over() {
        answer.text.end();
    }
    Ok(())
}

/// Pieces as they travel: long ones in several.
fn pieces(written: Vec<writing::Piece>) -> Pieces {
    let mut pieces = Vec::new();
    for piece in written {
        match piece {
            writing::Piece::Text(text) => pieces.extend(cut(&text).map(Piece::Text)),
            writing::Piece::Arguments { call, text } => {
                pieces.extend(cut(&text).map(|text| Piece::Arguments { call, text }));
            }
            writing::Piece::Call { index, name } => pieces.push(Piece::Call {
                index,
                name: Utf8::cut(&name),
            }),
        }
    }
    List::truncated(pieces)
}

fn cut(text: &str) -> impl Iterator<Item = PieceText> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, later) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES_MAX));
        rest = later;
        (!piece.is_empty()).then(|| Utf8::cut(piece))
    })
}

/// Bytes that a turn puts into the prompt, about.
fn bytes(turn: &Turn) -> usize {
    let calls = turn.calls.iter();
    turn.text.len() + calls.map(|call| call.arguments.len()).sum::<usize>()
}

/// What is said of tools to the template. That it is a list, the grammar has seen.
fn described(tools: Option<&Tools>) -> Vec<Value> {
    let tools = tools.and_then(|tools| serde_json::from_str(&tools.functions).ok());
    tools.unwrap_or_default()
}

fn message(turn: &Turn) -> Message {
    let role = match turn.speaker {
        Speaker::System => Role::System,
        Speaker::User => Role::User,
        Speaker::Assistant => Role::Assistant,
        Speaker::Tool => Role::Tool,
    };
    let call = |call: &Call| {
        let text = &*call.arguments;
        ToolCall {
            id: String::from(&*call.id),
            kind: "function".to_owned(),
            function: Called {
                name: String::from(&*call.name),
                // What is no JSON was not written here: it is a text for the template.
                arguments: serde_json::from_str(text).unwrap_or_else(|_| text.into()),
            },
        }
    };
    Message {
        role,
        content: String::from(&*turn.text),
        tool_calls: turn.calls.iter().map(call).collect(),
        tool_call_id: turn.answers.as_ref().map(|id| String::from(&**id)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ipc::model::Use,
        model::{gguf::TensorType, testing::tiny},
    };

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
            seed: [7; 32],
            sampling: Sampling {
                temperature: 0.9,
                top_p: 0.95,
                ..Sampling::default()
            },
            tokens_max: Some(tokens_max),
            ..Ask::new(Prompt::Text(Utf8::cut(text)))
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
            heard.text.push_str(&word.text());
            match word {
                Word::Wrote { token, draws, .. } => {
                    heard.tokens.push(*token);
                    heard.draws = *draws;
                }
                Word::Ended { finish, .. } => heard.finish = Some(*finish),
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
                    if matches!(word, Word::Wrote { .. }) && said < cut {
                        text.push_str(&word.text());
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
        wrong.sampling.temperature = f32::NAN;
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

    const SCHEMA: &str = r#"{
        "type": "object",
        "properties": {
            "city": { "enum": ["Yinchuan", "Guiyang"] },
            "hot": { "type": "boolean" }
        },
        "required": ["city", "hot"],
        "additionalProperties": false
    }"#;

    fn of_form(seed: u8) -> Ask {
        let schema = Utf8::cut(SCHEMA);
        let is_strict = true;
        Ask {
            seed: [seed; 32],
            form: Form::Schema { schema, is_strict },
            ..ask("where", 90)
        }
    }

    #[test]
    fn an_answer_has_the_form_that_was_asked_for() {
        let mut cities = std::collections::BTreeSet::new();
        for seed in 0..8 {
            let heard = alone(&of_form(seed));
            assert_eq!(heard.finish, Some(Finish::Stop));
            let value: Value = serde_json::from_str(&heard.text).unwrap();
            assert!(value["hot"].is_boolean(), "{value}");
            assert_eq!(value.as_object().unwrap().len(), 2);
            cities.insert(value["city"].as_str().unwrap().to_owned());
        }
        assert!(
            cities
                .iter()
                .all(|city| ["Guiyang", "Yinchuan"].contains(&city.as_str()))
        );
        let any = Ask {
            form: Form::Json,
            ..ask("x", 90)
        };
        assert!(alone(&any).text.starts_with('{'));
    }

    /// A conversation in which a tool may be called.
    fn with_tools(usage: Use, seed: u8) -> Ask {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let functions = serde_json::json!([
            { "type": "function", "function": { "name": "now" } },
            { "type": "function", "function": { "name": "weather", "parameters": schema } },
        ]);
        let turns = vec![Turn::new(Speaker::User, Utf8::cut("hot?"))];
        let tools = Some(Tools {
            functions: Utf8::cut(&functions.to_string()),
            usage,
            only_one: true,
        });
        Ask {
            seed: [seed; 32],
            ..Ask::new(Prompt::Conversation {
                turns: List::truncated(turns),
                tools,
            })
        }
    }

    fn long() -> Answers {
        let load = Load {
            threads: 2,
            cache_bytes_max: 1 << 24,
            context_max: 0,
        };
        let mut tiny = tiny(TensorType::Q8_0, true);
        tiny.number("llama.context_length", 2000);
        Answers::read(&tiny.file(), &load).unwrap()
    }

    /// Calls, with their arguments, and the text beside them.
    fn called(words: &[Word]) -> (Vec<(String, String)>, String) {
        let mut calls: Vec<(String, String)> = Vec::new();
        let mut text = String::new();
        for piece in words.iter().flat_map(Word::pieces) {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Call { index, name } => {
                    assert_eq!(usize::try_from(*index), Ok(calls.len()));
                    calls.push((String::from(&**name), String::new()));
                }
                Piece::Arguments { call, text } => {
                    assert_eq!(usize::try_from(*call + 1), Ok(calls.len()));
                    calls.last_mut().unwrap().1.push_str(text);
                }
            }
        }
        (calls, text)
    }

    fn all_words(answers: &mut Answers, ask: &Ask) -> Vec<Word> {
        let mut words = Vec::new();
        answers.ask(1, ask, |word| words.push(word));
        finish(answers, &mut words);
        words
    }

    #[test]
    fn a_tool_is_called_as_its_schema_says() {
        let mut answers = long();
        let this = Use::This(Utf8::cut("weather"));
        for seed in 0..3 {
            let ask = with_tools(this.clone(), seed);
            let words = all_words(&mut answers, &ask);
            let (calls, text) = called(&words);
            assert_eq!(text, "");
            assert_eq!(hear(&words, 1).finish, Some(Finish::Calls));
            let [(name, arguments)] = &calls[..] else {
                panic!("{words:?}");
            };
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            assert_eq!(
                (name.as_str(), arguments["hot"].is_boolean()),
                ("weather", true)
            );
            // Whoever goes on with it says the rest, and nothing twice.
            let tokens = hear(&words, 1).tokens;
            for cut in [1, tokens.len() / 2, tokens.len() - 1] {
                let mut rest = ask.clone();
                rest.begun = List::truncated(tokens[..cut].to_vec());
                let told = words
                    .iter()
                    .filter(|word| matches!(word, Word::Wrote { .. }));
                let draws = told.clone().nth(cut - 1).map(|word| match word {
                    Word::Wrote { draws, .. } => *draws,
                    _ => 0,
                });
                rest.draws = draws.unwrap();
                let mut both: Vec<Word> = told.take(cut).cloned().collect();
                both.extend(all_words(&mut answers, &rest));
                assert_eq!(called(&both).0, calls, "cut after {cut}");
            }
        }
    }

    #[test]
    fn forms_and_tools_that_cannot_be_are_refused() {
        let mut answers = long();
        let mut refused = |ask: &Ask| match &all_words(&mut answers, ask)[..] {
            [Word::Refused { why, .. }] => String::from(&**why),
            other => panic!("{other:?}"),
        };
        let with = |schema: &str| Ask {
            form: Form::Schema {
                schema: Utf8::cut(schema),
                is_strict: true,
            },
            ..ask("x", 9)
        };
        assert!(refused(&with("{")).contains("no JSON"));
        assert!(refused(&with("[]")).contains("an object"));
        assert!(refused(&with(r#"{ "type": "thing" }"#)).contains("schema"));
        assert!(refused(&with(r#"{ "type": "string", "pattern": "(" }"#)).contains("schema"));
        assert!(refused(&with(r##"{ "$ref": "#/x" }"##)).contains("schema"));
        let large = format!("{{ \"enum\": [\"{}\"] }}", "x".repeat(GRAMMAR_BYTES_MAX));
        assert!(refused(&with(&large)).contains("at most"));
        let unknown = with_tools(Use::This(Utf8::cut("time")), 0);
        assert!(refused(&unknown).contains("no tool \"time\""));
    }

    /// Schemas that take much: each is refused, or answered, and neither takes long.
    #[test]
    fn costly_schemas_take_no_more_than_they_may() {
        let nested = (0..60).fold("true".to_owned(), |inner, _| {
            format!(
                r#"{{ "type": "array", "items": {{ "anyOf": [{inner}, {inner_too}] }} }}"#,
                inner_too = r#"{ "type": "integer" }"#
            )
        });
        let pattern = r#"{ "type": "string", "pattern": "^(a?){200}(a|b|ab)*a{200}$" }"#;
        let many: Vec<String> = (0..3000)
            .map(|n| format!(r#""p{n}": {{ "type": "string", "maxLength": {n} }}"#))
            .collect();
        let many = format!(
            r#"{{ "type": "object", "properties": {{ {} }} }}"#,
            many.join(",")
        );
        let times = r#"{ "type": "array", "minItems": 100000, "items": { "type": "integer" } }"#;
        let recursive = r##"{ "$defs": { "a": { "anyOf": [{ "$ref": "#/$defs/a" }, { "type":
            "array", "items": { "$ref": "#/$defs/a" } }] } }, "$ref": "#/$defs/a" }"##;
        // Each refers to the next one.
        let chain: Vec<String> = (0..1500)
            .map(|n| {
                let next = n + 1;
                format!(r##""a{n}": {{ "allOf": [{{ "$ref": "#/$defs/a{next}" }}] }}"##)
            })
            .collect();
        let chain = format!(
            r##"{{ "$defs": {{ {}, "a1500": true }}, "$ref": "#/$defs/a0" }}"##,
            chain.join(",")
        );
        let mut answers = long();
        for schema in [&nested, pattern, &many, times, recursive, &chain] {
            let words = all_words(
                &mut answers,
                &Ask {
                    form: Form::Schema {
                        schema: Utf8::cut(schema),
                        is_strict: true,
                    },
                    ..ask("x", 40)
                },
            );
            assert!(words.last().is_some_and(Word::is_last));
        }
    }

    #[test]
    fn who_doubts_an_answer_finds_the_same_tokens_or_others() {
        for (form, temperature) in [(false, 0.9), (false, 0.0), (true, 0.9)] {
            let mut asked = if form { of_form(3) } else { ask("he said", 60) };
            asked.sampling.temperature = temperature;
            asked.sampling.frequency_penalty = 0.1;
            let tokens = alone(&asked).tokens;
            let mut doubted = asked.clone();
            doubted.scores = true;
            doubted.begun = List::truncated(tokens.clone());
            let page = 2 * 2 * 2 * 32 * 32;
            // Also where another takes its room in the middle.
            for pages in [100, 5] {
                let mut answers = answers(pages * page);
                let mut words = Vec::new();
                answers.ask(2, &ask("what else", 60), |word| words.push(word));
                answers.step(|word| words.push(word)).unwrap();
                answers.ask(1, &doubted, |word| words.push(word));
                finish(&mut answers, &mut words);
                let scores = scores(&words);
                let instead: Vec<u32> = scores.iter().filter_map(|score| score.instead).collect();
                assert_eq!(instead, tokens);
                assert!(scores.iter().all(|score| score.logarithm.get() <= 0.0));
            }
            // One token that another model would have written is seen, and only that one.
            let middle = tokens.len() / 2;
            let mut other = tokens.clone();
            other[middle] = (other[middle] + 1) % 256 + 3;
            doubted.begun = List::truncated(other.clone());
            let words = all_words(&mut answers(1 << 20), &doubted);
            let scores = scores(&words);
            assert_eq!(scores.len(), other.len());
            assert_ne!(scores[middle].instead, Some(other[middle]));
            let before = scores[..middle].iter().map(|score| score.instead);
            assert!(before.eq(other[..middle].iter().copied().map(Some)));
        }
    }

    fn scores(words: &[Word]) -> Vec<Score> {
        let scores = words.iter().filter_map(|word| match word {
            Word::Scored { number: 1, scores } => Some(scores.to_vec()),
            _ => None,
        });
        scores.flatten().collect()
    }

    #[test]
    fn who_gives_up_while_a_form_is_made_is_forgotten() {
        let mut answers = answers(1 << 20);
        let mut words = Vec::new();
        for number in 0..40 {
            let seed = u8::try_from(number).unwrap();
            answers.ask(number, &of_form(seed), |word| words.push(word));
        }
        assert!(words.is_empty());
        for number in (0..40).filter(|number| number % 2 == 0) {
            answers.stop(number, |word| words.push(word));
        }
        assert_eq!(words.len(), 20);
        finish(&mut answers, &mut words);
        for number in 0..40 {
            let wanted = match number % 2 {
                0 => Finish::Stopped,
                _ => Finish::Stop,
            };
            assert_eq!(hear(&words, number).finish, Some(wanted));
        }
    }

    #[test]
    fn likelihoods_come_with_their_tokens() {
        let mut ask = ask("he", 12);
        ask.sampling = Sampling::greedy();
        ask.likeliest = Some(3);
        let words = all_words(&mut answers(1 << 20), &ask);
        let told: Vec<&Likelihood> = (words.iter())
            .filter_map(|word| match word {
                Word::Wrote { likelihood, .. } => likelihood.as_deref(),
                _ => None,
            })
            .collect();
        assert_eq!(told.len(), hear(&words, 1).tokens.len());
        for one in told {
            // The likeliest was taken.
            assert_eq!(one.of, one.likeliest[0]);
            assert_eq!(one.likeliest.len(), 3);
            assert!((f32::MIN..0.0).contains(&one.of.logarithm.get()));
        }
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
}
