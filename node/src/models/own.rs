//! A model in a worker of this node's own.
//!
//! ```text
//! question ─▶ openai ─▶ ModelServer ─▶ words ─▶ events, each with the tokens that it
//!                                               stands for: another could go on after it
//! ```
//!
//! Of several answers to one question each event stands for itself: nobody goes on with them.
//!
//! Absent: the worker (the executor's), places and leases ([`super::serving`]).

use std::{collections::VecDeque, future::poll_fn, sync::Arc, task::Poll};

use suanli_executor::{
    ModelAnswer, ModelServer, ModelState,
    ipc::model::{Facts, Finish, Word},
};
use suanli_protocol::{call::Question, limits::CALL_EVENT_TOKENS_MAX, registry::Endpoint};

use super::{
    embeddings,
    openai::{
        self, Wrong,
        telling::{Said, Telling, Whole},
    },
    scores,
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
        if self.facts().is_some_and(|facts| facts.embeds.is_some()) {
            let message = "this model gives embeddings, and writes no text; ask it at \
                           /v1/embeddings, or take another model";
            return Err(Wrong::new("model", message).into());
        }
        let param = match question.endpoint {
            Endpoint::COMPLETIONS => "prompt",
            _ => "messages",
        };
        let asked = openai::read(question)?;
        let mut read = 0;
        let mut choices = Vec::new();
        for index in 0..asked.choices {
            let mut words = self.server.ask(asked.choice(index)).await;
            read = match words.next().await {
                Some(Word::Began { read, .. }) => read.into(),
                Some(Word::Refused { why, .. }) => return Err(Wrong::new(param, &*why).into()),
                Some(_) | None => return Err(BROKE_OFF),
            };
            choices.push(Choice::new(index, words, question.begun.draws));
        }
        let likelihoods = asked.ask.likeliest.is_some();
        let begun = u64::try_from(asked.ask.begun.len()).unwrap_or(u64::MAX);
        let mut answer = Answer {
            choices,
            telling: Telling::of(question, &self.name, likelihoods),
            read,
            begun,
            written: 0,
            ready: VecDeque::new(),
            next: 0,
        };
        if begun == 0 {
            answer.begin();
        }
        Ok(answer)
    }

    /// Asks what is thought of an answer, and waits until it is understood.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn score(&self, question: &Question) -> Result<scores::Answer, UpstreamError> {
        let asked = openai::read(question)?;
        let mut words = self.server.ask(asked.ask).await;
        match words.next().await {
            Some(Word::Began { read, .. }) => Ok(scores::Answer::new(words, read.into(), question)),
            Some(Word::Refused { why, .. }) => Err(Wrong::new("messages", &*why).into()),
            Some(_) | None => Err(BROKE_OFF),
        }
    }

    /// Asks for embeddings, and waits until the texts are read.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn embed(&self, question: &Question) -> Result<embeddings::Answer, UpstreamError> {
        let facts = self.facts().ok_or(BROKE_OFF)?;
        if facts.embeds.is_none() {
            // In the words for all that such a model does not do.
            return Err(openai::read(question).map_or_else(Into::into, |_| BROKE_OFF));
        }
        let (embed, encoding) = embeddings::read(question, &facts)?;
        let mut words = self.server.embed(embed).await;
        match words.next().await {
            Some(Word::Began { .. }) => {
                let name = String::from(&*self.name);
                Ok(embeddings::Answer::new(words, name, encoding))
            }
            Some(Word::Refused { why, .. }) => Err(Wrong::new("input", &*why).into()),
            Some(_) | None => Err(BROKE_OFF),
        }
    }
}

pub(super) const BROKE_OFF: UpstreamError = UpstreamError::Broken("its worker ended");

/// Tokens with likelihoods that wait for text: more would be too long an event.
const LIKELIHOODS_MAX: usize = 16;

/// An answer on its way. Dropping it gives the question up.
#[derive(Debug)]
pub struct Answer {
    choices: Vec<Choice>,
    telling: Telling,
    /// Tokens of the question,
    read: u64,
    /// that another has written,
    begun: u64,
    /// and that were written here and told of.
    written: u64,
    /// Events that are to be given out.
    ready: VecDeque<Event>,
    /// Which choice is heard first.
    next: usize,
}

/// One of the answers to a question.
#[derive(Debug)]
struct Choice {
    index: u8,
    words: ModelAnswer,
    /// Since the last event.
    tokens: Vec<u32>,
    said: Said,
    draws: u64,
    finish: Option<Finish>,
}

impl Choice {
    fn new(index: u8, words: ModelAnswer, draws: u64) -> Self {
        Self {
            index,
            words,
            tokens: Vec::new(),
            said: Said::default(),
            draws,
            finish: None,
        }
    }

    fn hear(&mut self, word: Option<Word>) -> Result<(), UpstreamError> {
        match word {
            Some(Word::Wrote {
                token,
                draws,
                pieces,
                likelihood,
                ..
            }) => {
                self.tokens.push(token);
                self.draws = draws;
                self.said.pieces.extend(pieces.into_vec());
                self.said.likelihoods.extend(likelihood.map(|one| *one));
                Ok(())
            }
            Some(Word::Ended { finish, pieces, .. }) => {
                self.finish = Some(finish);
                self.said.pieces.extend(pieces.into_vec());
                Ok(())
            }
            Some(_) | None => Err(BROKE_OFF),
        }
    }

    /// Whether there is something to tell.
    fn has_news(&self) -> bool {
        let likelihoods = self.said.likelihoods.len();
        let most = match self.finish {
            Some(_) => 1,
            None => LIKELIHOODS_MAX,
        };
        !self.said.pieces.is_empty()
            || self.tokens.len() >= CALL_EVENT_TOKENS_MAX
            || likelihoods >= most
    }
}

impl Answer {
    /// What it has cost so far. What another has written is read here.
    pub const fn tokens(&self) -> Tokens {
        Tokens {
            read: self.read.saturating_add(self.begun),
            written: self.written,
        }
    }

    /// Whether another could go on with it.
    pub const fn resumes(&self) -> bool {
        self.choices.len() == 1
    }

    /// What who asked is told of it.
    const fn told(&self) -> Tokens {
        Tokens {
            read: self.read,
            written: self.begun.saturating_add(self.written),
        }
    }

    fn is_over(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    /// Tells what comes before all text.
    fn begin(&mut self) {
        for at in 0..self.choices.len() {
            if let Some(bytes) = self.telling.begins(self.choices[at].index) {
                self.tell(at, bytes);
            }
        }
    }

    fn tell(&mut self, at: usize, bytes: Vec<u8>) {
        let is_whole = self.is_over();
        let choice = &mut self.choices[at];
        let tokens = std::mem::take(&mut choice.tokens);
        self.written += u64::try_from(tokens.len()).unwrap_or(u64::MAX);
        self.ready.push_back(Event {
            bytes,
            tokens,
            draws: choice.draws,
            is_whole,
        });
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
            let Some(at) = self.hear().await? else {
                return Ok(None);
            };
            let choice = &mut self.choices[at];
            let (index, finish) = (choice.index, choice.finish);
            if choice.has_news() {
                let said = std::mem::take(&mut choice.said);
                let bytes = self.telling.piece(index, &said);
                self.tell(at, bytes);
            }
            if let Some(finish) = finish {
                let bytes = self.telling.ends(index, finish);
                self.tell(at, bytes);
                if self.is_over() {
                    let bytes = self.telling.usage(self.told());
                    self.tell(at, bytes);
                }
            }
        }
    }

    /// All of an answer that comes as one, with the tokens of all choices.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn whole(&mut self) -> Result<(Event, Tokens), UpstreamError> {
        let mut all_tokens = Vec::new();
        let mut wholes = vec![Whole::default(); self.choices.len()];
        while let Some(at) = self.hear().await? {
            let choice = &mut self.choices[at];
            wholes[at].add(std::mem::take(&mut choice.said));
            let tokens = std::mem::take(&mut choice.tokens);
            self.written += u64::try_from(tokens.len()).unwrap_or(u64::MAX);
            all_tokens.extend(tokens);
        }
        let draws = self.choices.iter().map(|choice| choice.draws).sum();
        let finished = self.choices.iter().map(|choice| choice.finish);
        let finished = finished.map(|finish| finish.unwrap_or(Finish::Stopped));
        let wholes: Vec<(Whole, Finish)> = wholes.into_iter().zip(finished).collect();
        let event = Event {
            bytes: self.telling.whole(&wholes, self.told()),
            tokens: all_tokens,
            draws,
            is_whole: true,
        };
        Ok((event, self.tokens()))
    }

    /// Waits until one of the choices has news, and says which; none if all are over.
    async fn hear(&mut self) -> Result<Option<usize>, UpstreamError> {
        if self.is_over() {
            return Ok(None);
        }
        let (count, first) = (self.choices.len(), self.next);
        let (at, word) = poll_fn(|context| {
            // Who was heard last comes last: none is kept waiting by the others.
            for at in (first..first + count).map(|at| at % count) {
                let choice = &mut self.choices[at];
                if choice.finish.is_none()
                    && let Poll::Ready(word) = choice.words.poll_next(context)
                {
                    return Poll::Ready((at, word));
                }
            }
            Poll::Pending
        })
        .await;
        self.next = at + 1;
        self.choices[at].hear(word)?;
        Ok(Some(at))
    }
}
