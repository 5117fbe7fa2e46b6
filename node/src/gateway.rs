//! The gateway: questions of this node's own people to models that others serve.
//!
//! ```text
//! HTTP (api) ─ question ─▶ Gateway ─ which lease? ─▶ leases ─ jobs ─▶ driver
//!                             │                        ▲ lines of these jobs
//!                             └─ call ─▶ provider ─ events ─▶ answer ─▶ HTTP
//!                                              tokens ─▶ driver (receipts are held against them)
//! ```
//!
//! A [`leases`] desk keeps leases of models, one job each, made when somebody asks and left
//! when nobody does. A question takes a place in one, is sent to its provider on a stream of
//! its own, and [`answer`] passes on what comes, counts it, and tells the driver. A provider
//! that fails before the first word is left for another; one that fails later as well, if
//! it has said which tokens it wrote and another has the same weights. One whose places are all
//! taken says how many questions come first, and is left for another with fewer. The person who
//! asked sees nothing of it. What goes on with a [conversation](conversations) is asked where
//! it was before. [`responses`] is a second form in which people may ask, and
//! [`audits`] has some answers scored by others.
//!
//! Absent: HTTP, and what a key may ask (the API's).

pub mod answer;
pub mod audits;
pub mod conversations;
pub mod leases;
pub mod responses;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use suanli_protocol::{
    call::{Begun, Question},
    ids::{AccountId, BlobId, PeerId},
    offer::{ModelOffer, Name},
    registry::{Endpoint, Reason},
    wire::{Bytes, Text},
};

use self::{
    answer::Answer,
    conversations::Conversation,
    leases::{Leases, NoLease, Place},
};
use crate::{
    data_dir::random_secret,
    handle::{Gone, NodeHandle},
    keys::Key,
    wall::{wall, wall_ms},
};

/// Providers that are tried for one question.
const TRIES: u32 = 4;
/// Providers whose line is left for another's.
const LINES_MAX: usize = 2;
/// How long a lease whose provider says that it does not know it is given to begin there.
const SETTLE: Duration = Duration::from_millis(100);

/// Asks models.
#[derive(Debug, Clone)]
pub struct Gateway {
    handle: NodeHandle,
    leases: Leases,
}

/// A question.
#[derive(Debug, Clone)]
pub struct Asked {
    /// For whom, and which model.
    pub asker: Asker,
    /// What is asked for.
    pub endpoint: Endpoint,
    /// Whether the answer is wanted event by event.
    pub streams: bool,
    /// The question, as JSON.
    pub body: Vec<u8>,
}

/// For whom leases are, and of which model.
#[derive(Debug, Clone)]
pub struct Asker {
    /// For whom.
    pub principal: Name,
    /// Which model.
    pub model: Name,
    /// The API key that it was asked with, if any: it counts the tokens.
    pub key: Option<Arc<Key>>,
    /// What the question goes on with.
    pub conversation: Option<Conversation>,
}

/// What was found of those who were asked before.
#[derive(Debug, Clone, Default)]
struct Before {
    /// Those who did not answer.
    failed: BTreeSet<PeerId>,
    /// Those whose places were all taken, and how many questions came first.
    lines: Vec<(u32, PeerId)>,
    /// Nobody is asked after this one.
    is_last: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// Nobody serves the model.
    #[error("nobody serves the model {0:?} now")]
    NoSuchModel(String),
    /// Nobody who does could answer.
    #[error("no provider could answer: {0}")]
    NoProvider(String),
    /// Whom it is for may not spend more.
    #[error("{0}")]
    OverBudget(String),
    /// The question is too long.
    #[error(
        "the question is longer than {} bytes",
        suanli_protocol::limits::CALL_QUESTION_BYTES_MAX
    )]
    TooLong,
    /// The model's server refuses the question: its status, and its words.
    #[error("the model's server refuses the question ({0})")]
    Refused(u16, Vec<u8>),
    /// The node is stopping.
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// A model that somebody serves.
#[derive(Debug, Clone)]
pub struct Served {
    /// By whom,
    pub provider: PeerId,
    /// and for which account.
    pub account: AccountId,
    /// Where that is.
    pub region: Name,
    /// What the offer says of it.
    pub model: ModelOffer,
}

impl Gateway {
    /// Starts the desk of leases on the current tokio runtime. It ends with the gateway.
    pub fn start(handle: NodeHandle) -> Self {
        let leases = Leases::start(handle.clone());
        Self { handle, leases }
    }

    /// All models that others serve, by name; of each the providers.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn served(&self) -> Result<Vec<Served>, Gone> {
        served(&self.handle).await
    }

    /// Asks, until somebody begins to answer.
    ///
    /// # Errors
    /// [`GatewayError`].
    pub async fn ask(&self, asked: Asked) -> Result<Answer, GatewayError> {
        let asker = asked.asker;
        let body = Bytes::new(asked.body).map_err(|_| GatewayError::TooLong)?;
        let answer = answer_name().ok_or(Gone)?;
        let asked_s = wall_ms() / 1000;
        let mut before = Before::default();
        let mut last = String::new();
        for tries in 1..=TRIES {
            before.is_last = tries == TRIES;
            let place = match self.place(&asker, &before).await {
                Ok(place) => place,
                Err(NoLease::NoSuchModel) if before.asked().is_empty() => {
                    return Err(GatewayError::NoSuchModel(asker.model.to_string()));
                }
                Err(NoLease::NoSuchModel) => break,
                Err(NoLease::OverBudget(words)) => return Err(GatewayError::OverBudget(words)),
                Err(NoLease::Failed(words)) => return Err(GatewayError::NoProvider(words)),
                Err(NoLease::Gone) => return Err(Gone.into()),
            };
            let question = Question {
                agreement: place.agreement,
                endpoint: asked.endpoint,
                streams: asked.streams,
                answer,
                asked_s,
                begun: Begun::default(),
                body: body.clone(),
            };
            let provider = place.provider;
            match Answer::begin(self, &asker, (place, question), &before).await {
                Ok(answer) => return Ok(answer),
                Err(answer::NoAnswer::Queued(ahead)) => {
                    last = Reason::BUSY.sentence().to_owned();
                    before.lines.push((ahead, provider));
                }
                Err(answer::NoAnswer::Refused(status, words)) => {
                    return Err(GatewayError::Refused(status, words));
                }
                // The lease has not begun there, or has just ended.
                Err(answer::NoAnswer::Declined(Reason::QUOTE_UNKNOWN)) => {
                    last = Reason::QUOTE_UNKNOWN.sentence().to_owned();
                    tokio::time::sleep(SETTLE).await;
                }
                Err(answer::NoAnswer::Declined(reason)) => {
                    last = reason.sentence().to_owned();
                    before.fails(provider);
                }
                Err(answer::NoAnswer::Lost(words)) => {
                    last = words;
                    before.fails(provider);
                }
                Err(answer::NoAnswer::Gone) => return Err(Gone.into()),
            }
        }
        // It may have left the list while leases of it still stood.
        let served = self.served().await?;
        if served.iter().any(|served| served.model.name == asker.model) {
            Err(GatewayError::NoProvider(last))
        } else {
            Err(GatewayError::NoSuchModel(asker.model.to_string()))
        }
    }
}

impl Before {
    fn fails(&mut self, provider: PeerId) {
        self.failed.insert(provider);
        self.lines.retain(|(_, other)| *other != provider);
    }

    fn asked(&self) -> BTreeSet<PeerId> {
        let lines = self.lines.iter().map(|(_, provider)| *provider);
        self.failed.iter().copied().chain(lines).collect()
    }

    /// Whose line was the shortest.
    fn shortest(&self) -> Option<(u32, PeerId)> {
        self.lines.iter().min().copied()
    }
}

impl Gateway {
    /// A place with somebody who was not asked yet, or else with whose line is the shortest.
    async fn place(&self, asker: &Asker, before: &Before) -> Result<Place, NoLease> {
        let Some((_, shortest)) = before.shortest() else {
            return self.leases.take(asker, &before.failed).await;
        };
        if before.lines.len() < LINES_MAX {
            match self.leases.take_second(asker, &before.asked()).await {
                Err(NoLease::NoSuchModel | NoLease::Failed(_) | NoLease::OverBudget(_)) => {}
                taken => return taken,
            }
        }
        let served = self.served().await.map_err(|_| NoLease::Gone)?;
        let others = served.iter().map(|served| served.provider);
        let others = others.filter(|provider| *provider != shortest);
        self.leases.take(asker, &others.collect()).await
    }

    /// Whether a question is taken elsewhere that would have to wait for so many others: to
    /// somebody who was not asked yet, or whose line is shorter. It is asked where it waits
    /// only once again.
    async fn leaves(&self, model: &Name, before: &Before, (at, ahead): (PeerId, u32)) -> bool {
        let was_left = before.lines.iter().any(|(_, provider)| *provider == at);
        if was_left || before.is_last {
            return false;
        }
        let is_shorter = before.shortest().is_some_and(|(other, _)| other < ahead);
        if is_shorter || before.lines.len() >= LINES_MAX {
            return is_shorter;
        }
        let asked = before.asked();
        let Ok(served) = self.served().await else {
            return false;
        };
        served.iter().any(|served| {
            served.model.name == *model
                && served.provider != at
                && !asked.contains(&served.provider)
        })
    }

    /// Those who serve a model with other weights.
    async fn others(&self, model: &Name, weights: BlobId) -> Result<BTreeSet<PeerId>, Gone> {
        let served = self.served().await?;
        let others = served
            .iter()
            .filter(|served| served.model.name == *model && served.model.weights != weights);
        Ok(others.map(|served| served.provider).collect())
    }
}

/// What an answer is called.
fn answer_name() -> Option<[u8; 16]> {
    random_secret().ok()?.first_chunk().copied()
}

/// All models in the book, of others.
async fn served(handle: &NodeHandle) -> Result<Vec<Served>, Gone> {
    let now = wall();
    let me = handle.facts().peer;
    let offers = handle.offers().await?;
    let live = offers
        .iter()
        .filter(|offer| offer.expires() > now && offer.signer() != me);
    let mut served: Vec<Served> = live
        .flat_map(|offer| {
            let of = |model: &ModelOffer| Served {
                provider: offer.signer(),
                account: offer.body().account,
                region: offer.body().region.clone(),
                model: model.clone(),
            };
            offer.body().models.iter().map(of)
        })
        .collect();
    served.sort_by(|a, b| (&a.model.name, a.provider).cmp(&(&b.model.name, b.provider)));
    Ok(served)
}

/// A model's name, if it can be one.
pub fn model_name(text: &str) -> Option<Name> {
    (!text.is_empty()).then(|| Text::new(text).ok()).flatten()
}
