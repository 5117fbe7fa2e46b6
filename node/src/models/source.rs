//! What gives a model's answers: a server beside the node, or a worker of its own.
//!
//! ```text
//! entry ─▶ identify (a file's hash) ─▶ offer
//!              └─▶ open ─▶ Source ─▶ Answer ─▶ events
//! ```

use std::{fs::File, io, path::Path};

use suanli_executor::{
    CheckError, ExecutorError, ModelConfig, ModelServer, WorkerProgram, ipc::model::Facts,
    machine::cores,
};
use suanli_protocol::{
    call::Question,
    limits::{CALL_EVENT_BYTES_MAX, CALL_EVENT_TOKENS_MAX},
    registry::Endpoint,
};

use super::{
    embeddings,
    entry::ModelEntry,
    openai,
    own::{self, Own},
    scores,
    upstream::{self, Base, Tokens, Upstream, UpstreamError},
};

/// Memory for what a model's conversations have said, if its entry does not say.
pub const CACHE_BYTES: u64 = 1 << 30;

/// Why models can't be served.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file of one can't be read.
    #[error("model {model:?}: {path} can't be read: {source}")]
    File {
        /// Of which model.
        model: String,
        /// Where it should be.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The adapter that is to compute it is not there.
    #[error("model {model:?}: {source}")]
    Adapter {
        /// Of which model.
        model: String,
        /// Which is not there.
        source: ExecutorError,
    },
    /// Its server's address is none.
    #[error("model {model:?}: {why}")]
    Address {
        /// Of which model.
        model: String,
        /// What is wrong.
        why: &'static str,
    },
    /// There is no worker for it.
    #[error(transparent)]
    Worker(#[from] CheckError),
    /// Its worker has no thread.
    #[error("model {model:?}: its worker can't be started: {source}")]
    Start {
        /// Of which model.
        model: String,
        /// The system's words.
        source: io::Error,
    },
}

/// The same entry; if it has a file, it knows its hash as its weights.
///
/// # Errors
/// [`SourceError::File`].
pub async fn identify(mut entry: ModelEntry) -> Result<ModelEntry, SourceError> {
    let (Some(path), None) = (entry.file.clone(), &entry.weights) else {
        return Ok(entry);
    };
    let reading = tokio::task::spawn_blocking({
        let path = path.clone();
        move || {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(File::open(path)?)?;
            io::Result::Ok(hasher.finalize().to_hex().to_string())
        }
    });
    let read = reading
        .await
        .map_err(io::Error::other)
        .and_then(|read| read);
    entry.weights = Some(read.map_err(|source| file_error(&entry, &path, source))?);
    Ok(entry)
}

fn file_error(entry: &ModelEntry, path: &Path, source: io::Error) -> SourceError {
    SourceError::File {
        model: entry.name.clone(),
        path: path.display().to_string(),
        source,
    }
}

impl Source {
    /// What an entry means. A worker is started for a file.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn open(entry: &ModelEntry, worker: Option<&Path>) -> Result<Self, SourceError> {
        match &entry.file {
            Some(file) => {
                let server = ModelServer::start(ModelConfig {
                    program: WorkerProgram::find(worker)?,
                    file: file.clone(),
                    adapter: entry.on.as_ref().map(|adapter| adapter.index),
                    threads: entry.threads.unwrap_or_else(cores),
                    cache_bytes_max: entry.cache.map_or(CACHE_BYTES, |size| size.0),
                    context_max: entry.context,
                });
                let server = server.map_err(|source| SourceError::Start {
                    model: entry.name.clone(),
                    source,
                })?;
                Ok(Self::Own(Own::new(server, &entry.name)))
            }
            None => open_upstream(entry).map(Self::Upstream),
        }
    }
}

fn open_upstream(entry: &ModelEntry) -> Result<Upstream, SourceError> {
    let place = entry.upstream.as_deref().unwrap_or_default();
    let base = Base::parse(place).map_err(|why| SourceError::Address {
        model: entry.name.clone(),
        why,
    })?;
    let key = match &entry.key_file {
        None => None,
        Some(path) => {
            let key = std::fs::read_to_string(path);
            Some(key.map_err(|source| file_error(entry, path, source))?)
        }
    };
    let names = (entry.alias(), entry.name.as_str());
    Ok(Upstream::new(base, names, key.as_deref().map(str::trim)))
}

/// Gives a model's answers.
#[derive(Debug, Clone)]
pub enum Source {
    /// A server beside the node.
    Upstream(Upstream),
    /// A worker of this node.
    Own(Own),
}

/// An answer on its way. Dropping it gives the question up.
#[derive(Debug)]
pub enum Answer {
    /// Of a server.
    Upstream(upstream::Answer),
    /// Of a worker.
    Own(own::Answer),
    /// Of a worker, as vectors.
    Embeddings(embeddings::Answer),
    /// Of a worker, on an answer.
    Scores(scores::Answer),
}

/// An event of an answer.
#[derive(Debug)]
pub enum Event {
    /// That says nothing of tokens.
    Plain(Vec<u8>),
    /// That names the tokens that it stands for. If the answer streams, another could go on
    /// after it.
    Named(own::Event),
}

impl Source {
    /// Whether the model can be asked now.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn probe(&self) -> Result<(), UpstreamError> {
        match self {
            Self::Upstream(upstream) => upstream.probe().await,
            Self::Own(own) => own.probe().await,
        }
    }

    /// What the model is, where that is known.
    pub fn facts(&self) -> Option<Facts> {
        match self {
            Self::Upstream(_) => None,
            Self::Own(own) => own.facts(),
        }
    }

    /// Places that a question takes: one for each answer that is computed by itself.
    pub fn places_for(&self, question: &Question) -> u32 {
        match self {
            Self::Upstream(_) => 1,
            Self::Own(_) => openai::choices(question).into(),
        }
    }

    /// Whether it can go on with an answer that another has begun.
    pub const fn resumes(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// Asks. The answer comes event by event if the question streams.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn ask(&self, question: &Question, streams: bool) -> Result<Answer, UpstreamError> {
        match self {
            Self::Upstream(upstream) => {
                let answer = upstream.ask(question.endpoint, streams, &question.body);
                answer.await.map(Answer::Upstream)
            }
            Self::Own(own) if question.endpoint == Endpoint::EMBEDDINGS => {
                own.embed(question).await.map(Answer::Embeddings)
            }
            Self::Own(own) if question.endpoint == Endpoint::SCORES => {
                own.score(question).await.map(Answer::Scores)
            }
            Self::Own(own) => own.ask(question).await.map(Answer::Own),
        }
    }
}

impl Answer {
    /// Tokens so far.
    pub fn tokens(&self) -> Tokens {
        match self {
            Self::Upstream(answer) => answer.tokens(),
            Self::Own(answer) => answer.tokens(),
            Self::Embeddings(answer) => answer.tokens(),
            Self::Scores(answer) => answer.tokens(),
        }
    }

    /// The next event of an answer that streams; none at its end.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn next_event(&mut self) -> Result<Option<Event>, UpstreamError> {
        match self {
            Self::Upstream(answer) => Ok(answer.next_event().await?.map(Event::Plain)),
            Self::Own(answer) => {
                let event = answer.next_event().await?;
                let resumes = answer.resumes();
                Ok(event.map(|event| match resumes {
                    true => Event::Named(event),
                    false => Event::Plain(event.bytes),
                }))
            }
            // They come as one, and nobody asks for events.
            Self::Embeddings(_) | Self::Scores(_) => Ok(None),
        }
    }

    /// All of an answer that comes as one, in events that are short enough to travel.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn whole(&mut self) -> Result<(Vec<Event>, Tokens), UpstreamError> {
        let (bytes, tokens) = match self {
            Self::Upstream(answer) => answer.whole().await?,
            Self::Own(answer) => {
                let (whole, tokens) = answer.whole().await?;
                if answer.resumes() {
                    return Ok((named(whole), tokens));
                }
                (whole.bytes, tokens)
            }
            Self::Embeddings(answer) => answer.whole().await?,
            Self::Scores(answer) => answer.whole().await?,
        };
        let pieces = bytes.chunks(CALL_EVENT_BYTES_MAX);
        let events = pieces.map(|piece| Event::Plain(piece.to_vec()));
        Ok((events.collect(), tokens))
    }
}

/// An answer that comes as one, in as many events as its bytes and its tokens take.
fn named(whole: own::Event) -> Vec<Event> {
    let (bytes, tokens) = (whole.bytes.len(), whole.tokens.len());
    let count = bytes
        .div_ceil(CALL_EVENT_BYTES_MAX)
        .max(tokens.div_ceil(CALL_EVENT_TOKENS_MAX));
    let mut tokens = whole.tokens.chunks(CALL_EVENT_TOKENS_MAX);
    let pieces = whole.bytes.chunks(bytes.div_ceil(count.max(1)).max(1));
    let named = pieces.map(|piece| own::Event {
        bytes: piece.to_vec(),
        tokens: tokens.next().unwrap_or_default().to_vec(),
        draws: whole.draws,
        // Nobody could do with less than all of them.
        is_whole: false,
    });
    named.map(Event::Named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_comes_as_one_names_all_its_tokens() {
        for (bytes, tokens) in [
            (300, 0),
            (300, 1),
            (300, CALL_EVENT_TOKENS_MAX),
            (300, CALL_EVENT_TOKENS_MAX + 1),
            (5 * CALL_EVENT_TOKENS_MAX, 5 * CALL_EVENT_TOKENS_MAX),
            (2 * CALL_EVENT_BYTES_MAX + 1, 3),
        ] {
            let whole = own::Event {
                bytes: (0..=u8::MAX).cycle().take(bytes).collect(),
                tokens: (0..).take(tokens).collect(),
                draws: 7,
                is_whole: true,
            };
            let (mut all_bytes, mut all_tokens) = (Vec::new(), Vec::new());
            for event in named(whole.clone()) {
                let Event::Named(event) = event else {
                    panic!("{event:?} names no tokens")
                };
                assert!(event.bytes.len() <= CALL_EVENT_BYTES_MAX && !event.bytes.is_empty());
                assert!(event.tokens.len() <= CALL_EVENT_TOKENS_MAX);
                all_bytes.extend(event.bytes);
                all_tokens.extend(event.tokens);
            }
            assert!((all_bytes, all_tokens) == (whole.bytes, whole.tokens));
        }
    }
}
