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
use suanli_protocol::{call::Question, registry::Endpoint};

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
    /// That only its own source can go on after.
    Plain(Vec<u8>),
    /// That another could go on after.
    Resumable(own::Event),
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
                    true => Event::Resumable(event),
                    false => Event::Plain(event.bytes),
                }))
            }
            // They come as one, and nobody asks for events.
            Self::Embeddings(_) | Self::Scores(_) => Ok(None),
        }
    }

    /// All of an answer that comes as one.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub async fn whole(&mut self) -> Result<(Vec<u8>, Tokens), UpstreamError> {
        match self {
            Self::Upstream(answer) => answer.whole().await,
            Self::Own(answer) => answer.whole().await,
            Self::Embeddings(answer) => answer.whole().await,
            Self::Scores(answer) => answer.whole().await,
        }
    }
}
