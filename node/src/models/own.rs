//! A model in a worker of this node's own.
//!
//! ```text
//! question ─▶ openai ─▶ ModelServer ─▶ words ─▶ events, each with the tokens that it
//!                                               stands for: another could go on after it
//! ```
//!
//! Absent: the worker (the executor's), places and leases ([`super::serving`]).

use std::{collections::VecDeque, sync::Arc};

use suanli_executor::{
    ModelAnswer, ModelServer, ModelState,
    ipc::model::{Facts, Finish, Word},
};
use suanli_protocol::{call::Question, limits::CALL_EVENT_TOKENS_MAX, registry::Endpoint};

use super::{
    embeddings,
    openai::{self, Form, Wrong},
    upstream::{Tokens, UpstreamError},
};

/// A model of this node's own.
#[derive(Debug, Clone)]
pub struct Own {
    server: ModelServer,
    /// What clients call it.
    name: Arc<str>,
}

/// An event, and what it takes to go on after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The event.
    pub bytes: Vec<u8>,
    /// Tokens since the last one.
    pub tokens: Vec<u32>,
    /// How often chance was asked until then.
    pub draws: u64,
    /// Whether the answer's text is whole with it.
    pub is_whole: bool,
}

impl Own {
    /// A model, and what clients call it.
    pub fn new(server: ModelServer, name: &str) -> Self {
        Self {
            server,
            name: name.into(),
        }
    }

    /// What it is, if it can be asked.
    pub fn facts(&self) -> Option<Facts> {
        match &*self.server.state().borrow() {
            ModelState::Serves(facts) => Some(facts.clone()),
            ModelState::Loading | ModelState::Down(_) => None,
        }
    }

    /// Whether it can be asked; waits while it is being read.
    ///
    /// # Errors
    /// [`UpstreamError::Unreachable`], with the reason.
    pub async fn probe(&self) -> Result<(), UpstreamError> {
        let mut state = self.server.state();
        let is_known = |state: &ModelState| *state != ModelState::Loading;
        let known = state.wait_for(is_known).await;
        match known.as_deref() {
            Ok(ModelState::Serves(_)) => Ok(()),
            Ok(ModelState::Down(why)) => Err(UpstreamError::Unreachable(why.clone())),
            Ok(ModelState::Loading) | Err(_) => {
                Err(UpstreamError::Unreachable("it is being read".to_owned()))
            }
        }
    }

    /// Asks, and waits until the question is understood.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn ask(&self, question: &Question) -> Result<Answer, UpstreamError> {
        let wrong = |wrong: Wrong| UpstreamError::Refused(400, wrong.to_json());
        if self.facts().is_some_and(|facts| facts.embeds.is_some()) {
            let message = "this model gives embeddings, and writes no text; ask it at \
                           /v1/embeddings, or take another model";
            return Err(wrong(Wrong::new("model", message)));
        }
        let param = match question.endpoint {
            Endpoint::COMPLETIONS => "prompt",
            _ => "messages",
        };
        let ask = openai::read(question).map_err(wrong)?;
        let begun = ask.begun.len();
        let mut words = self.server.ask(ask).await;
        let read = match words.next().await {
            Some(Word::Began { read, .. }) => read.into(),
            Some(Word::Refused { why, .. }) => return Err(wrong(Wrong::new(param, &*why))),
            Some(_) | None => return Err(BROKE_OFF),
        };
        let form = Form::of(question, &self.name);
        let begun = u64::try_from(begun).unwrap_or(u64::MAX);
        let first = form.begins().filter(|_| begun == 0);
        let mut answer = Answer {
            words,
            form,
            read,
            begun,
            written: 0,
            tokens: Vec::new(),
            draws: question.begun.draws,
            ready: VecDeque::new(),
            is_over: false,
        };
        if let Some(bytes) = first {
            let event = answer.event(bytes);
            answer.ready.push_back(event);
        }
        Ok(answer)
    }

    /// Asks for embeddings, and waits until the texts are read.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn embed(&self, question: &Question) -> Result<embeddings::Answer, UpstreamError> {
        let wrong = |wrong: Wrong| UpstreamError::Refused(400, wrong.to_json());
        let facts = self.facts().ok_or(BROKE_OFF)?;
        if facts.embeds.is_none() {
            // In the words for all that such a model does not do.
            return Err(openai::read(question).map_or_else(wrong, |_| BROKE_OFF));
        }
        let (embed, encoding) = embeddings::read(question, &facts).map_err(wrong)?;
        let mut words = self.server.embed(embed).await;
        match words.next().await {
            Some(Word::Began { .. }) => {
                let name = String::from(&*self.name);
                Ok(embeddings::Answer::new(words, name, encoding))
            }
            Some(Word::Refused { why, .. }) => Err(wrong(Wrong::new("input", &*why))),
            Some(_) | None => Err(BROKE_OFF),
        }
    }
}

pub(super) const BROKE_OFF: UpstreamError = UpstreamError::Broken("its worker ended");

/// An answer on its way. Dropping it gives the question up.
#[derive(Debug)]
pub struct Answer {
    words: ModelAnswer,
    form: Form,
    /// Tokens of the question,
    read: u64,
    /// that another has written,
    begun: u64,
    /// and that were written here and told of.
    written: u64,
    /// Since the last event.
    tokens: Vec<u32>,
    draws: u64,
    /// Events that are to be given out.
    ready: VecDeque<Event>,
    is_over: bool,
}

impl Answer {
    /// What it has cost so far. What another has written is read here.
    pub const fn tokens(&self) -> Tokens {
        Tokens {
            read: self.read.saturating_add(self.begun),
            written: self.written,
        }
    }

    /// What who asked is told of it.
    const fn told(&self) -> Tokens {
        Tokens {
            read: self.read,
            written: self.begun.saturating_add(self.written),
        }
    }

    fn event(&mut self, bytes: Vec<u8>) -> Event {
        let tokens = std::mem::take(&mut self.tokens);
        self.written += u64::try_from(tokens.len()).unwrap_or(u64::MAX);
        Event {
            bytes,
            tokens,
            draws: self.draws,
            is_whole: self.is_over,
        }
    }

    /// The next event of an answer that streams; none at its end.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn next_event(&mut self) -> Result<Option<Event>, UpstreamError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if self.is_over {
                return Ok(None);
            }
            let text = self.next_text().await?;
            let (text, finish) = match &text {
                Text::Piece(text) => (text, None),
                Text::Last(text, finish) => (text, Some(*finish)),
            };
            if !text.is_empty() || self.tokens.len() >= CALL_EVENT_TOKENS_MAX {
                let bytes = self.form.piece(text);
                let event = self.event(bytes);
                self.ready.push_back(event);
            }
            if let Some(finish) = finish {
                let event = self.event(self.form.ends(finish));
                self.ready.push_back(event);
                let event = self.event(self.form.usage(self.told()));
                self.ready.push_back(event);
            }
        }
    }

    /// All of an answer that comes as one.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn whole(&mut self) -> Result<(Vec<u8>, Tokens), UpstreamError> {
        let mut all = String::new();
        loop {
            match self.next_text().await? {
                Text::Piece(text) => all.push_str(&text),
                Text::Last(text, finish) => {
                    all.push_str(&text);
                    self.event(Vec::new());
                    let bytes = self.form.whole(&all, finish, self.told());
                    return Ok((bytes, self.tokens()));
                }
            }
        }
    }

    async fn next_text(&mut self) -> Result<Text, UpstreamError> {
        match self.words.next().await {
            Some(Word::Wrote {
                token, draws, text, ..
            }) => {
                self.tokens.push(token);
                self.draws = draws;
                Ok(Text::Piece(String::from(&*text)))
            }
            Some(Word::Ended { finish, text, .. }) => {
                self.is_over = true;
                Ok(Text::Last(String::from(&*text), finish))
            }
            Some(_) | None => Err(BROKE_OFF),
        }
    }
}

/// What comes next of an answer.
enum Text {
    Piece(String),
    Last(String, Finish),
}
