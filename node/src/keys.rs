//! API keys: who may ask models through this node, which ones, how often, and for how much.
//!
//! ```text
//! create, revoke ─▶ Keys ─ orders ─▶ desk ─▶ file, on disk ─▶ budgets (driver) ─▶ register
//! a question shows a secret ─▶ Keys::find ─ by its hash ─▶ register ─▶ Key, or none
//! ```
//!
//! A desk, one task, owns the [`Register`] of keys. A change makes another register, which is
//! on disk, and whose budgets the driver knows, before those who ask see it, and before a
//! secret is told. With a revocation it is the other way round: it holds at once, and is
//! told once it is on disk.
//!
//! A key's name is the **principal** of all that is asked with it, so that receipts, budgets
//! and `suanli budget` know it. What it spent stands with the core; the tokens that a key
//! counts here are those since the node began.
//!
//! Only the BLAKE3 hash of a secret is kept. A slow hash would gain nothing: it is for words
//! that people think up, and these are 256 bits from the system, which nobody tries out.
//! Finding a key by the hash of what was shown tells nothing by its time either: who can't
//! make a hash can't come closer to one.
//!
//! Absent: HTTP, and people's names and passwords.

mod register;

use std::{
    collections::BTreeSet,
    fmt,
    num::NonZeroU32,
    path::PathBuf,
    str,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use suanli_protocol::{
    ids::{Hash, hex},
    limits::NAME_BYTES_MAX,
    offer::Name,
    peer::Budget,
    units::Wall,
};
use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

pub use self::register::Register;
use crate::{
    data_dir::{DataDir, DataDirError, check_private, random_secret, read_first, write_private},
    handle::{Gone, NodeHandle},
    rate::{Left, PerMinute},
    wall::wall,
};

/// Keys of one node, revoked ones included.
pub const KEYS_MAX: usize = 10_000;
/// Models that one key names.
pub const MODELS_MAX: usize = 64;
/// What every secret begins with, so that people and scanners know one when they see it.
pub const SECRET_BEGINS: &str = "sk-suanli-";
/// The principal of questions that show the node's own token.
pub const GATEWAY: &str = "gateway";

/// A whole file: as many keys as there may be, each with all that it may have.
const FILE_BYTES_MAX: u64 = 128 << 20;
/// Names that are principals of something else.
const TAKEN: [&str; 2] = [GATEWAY, "default"];
/// Requests or tokens a minute, at most.
const RATE_MAX: u32 = 1_000_000_000;
/// Orders that may wait for the desk.
const ORDERS: usize = 64;

/// What a key is called, and so the principal of what is asked with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyName(Name);

impl KeyName {
    /// Takes a name.
    ///
    /// # Errors
    /// [`KeysError::Name`].
    pub fn new(text: &str) -> Result<Self, KeysError> {
        let wrong = || KeysError::Name(text.chars().take(NAME_BYTES_MAX).collect());
        let is_named = text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-@".contains(c));
        if !is_named || TAKEN.contains(&text) {
            return Err(wrong());
        }
        Name::new(text).map(Self).map_err(|_| wrong())
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a key allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// Which models; all if it names none.
    pub models: Vec<Name>,
    /// How many questions a minute, if that is limited.
    pub requests_per_minute: Option<NonZeroU32>,
    /// How many tokens a minute, read and written.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// What it may spend, if that is limited.
    pub budget: Option<Budget>,
    /// Until when it holds, if not until it is revoked.
    pub expires: Option<Wall>,
}

/// A key.
#[derive(Debug, Clone)]
pub struct Key {
    name: KeyName,
    hash: Hash,
    terms: Terms,
    created: Wall,
    revoked: Option<Wall>,
    meters: Arc<Meters>,
}

/// What is counted of a key.
#[derive(Debug)]
struct Meters {
    requests: Option<PerMinute>,
    tokens: Option<PerMinute>,
    read: AtomicU64,
    written: AtomicU64,
}

/// How a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It opens what its terms allow.
    Live,
    /// Its time is over.
    Expired,
    /// It was taken back.
    Revoked,
}

impl State {
    /// As people read it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// A key's rate is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFast {
    /// Of what: `requests` or `tokens`.
    pub of: &'static str,
    /// How many a minute there may be.
    pub limit: u32,
    /// When there will be another one.
    pub wait: Duration,
}

impl Key {
    fn new((name, hash): (KeyName, Hash), terms: Terms, (created, now): (Wall, Instant)) -> Self {
        let rate = |limit: Option<NonZeroU32>| limit.map(|it| PerMinute::new(it.get(), now));
        let meters = Meters {
            requests: rate(terms.requests_per_minute),
            tokens: rate(terms.tokens_per_minute),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        };
        Self {
            name,
            hash,
            terms,
            created,
            revoked: None,
            meters: Arc::new(meters),
        }
    }

    /// For whom it asks.
    pub const fn principal(&self) -> &Name {
        &self.name.0
    }

    /// What it allows.
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// When it was made.
    pub const fn created(&self) -> Wall {
        self.created
    }

    /// How it is now.
    pub fn state(&self, now: Wall) -> State {
        match (self.revoked, self.terms.expires) {
            (Some(_), _) => State::Revoked,
            (None, Some(at)) if at <= now => State::Expired,
            (None, _) => State::Live,
        }
    }

    /// Whether it may be used for a model.
    pub fn may_use(&self, model: &str) -> bool {
        let models = &self.terms.models;
        models.is_empty() || models.iter().any(|allowed| **allowed == *model)
    }

    /// Takes one question from its rate.
    ///
    /// # Errors
    /// [`TooFast`]; nothing was taken.
    pub fn admit(&self, now: Instant) -> Result<(), TooFast> {
        let too_fast = |of, limit: Option<NonZeroU32>, wait| TooFast {
            of,
            limit: limit.map_or(0, NonZeroU32::get),
            wait,
        };
        if let Some(tokens) = &self.meters.tokens {
            let wait = tokens.wait(now);
            if wait > Duration::ZERO {
                return Err(too_fast("tokens", self.terms.tokens_per_minute, wait));
            }
        }
        let Some(requests) = &self.meters.requests else {
            return Ok(());
        };
        let admitted = requests.admit(now);
        admitted.map_err(|wait| too_fast("requests", self.terms.requests_per_minute, wait))
    }

    /// So many tokens were read and written for it.
    pub fn uses(&self, (read, written): (u64, u64), now: Instant) {
        // Sums wrap after more tokens than there will be.
        self.meters.read.fetch_add(read, Ordering::Relaxed);
        self.meters.written.fetch_add(written, Ordering::Relaxed);
        if let Some(tokens) = &self.meters.tokens {
            tokens.charge(read.saturating_add(written), now);
        }
    }

    /// Tokens read and written since the node began, or the key.
    pub fn used(&self) -> (u64, u64) {
        let of = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        (of(&self.meters.read), of(&self.meters.written))
    }

    /// How its rates stand, of requests and of tokens.
    pub(crate) fn rates(&self, now: Instant) -> (Option<Left>, Option<Left>) {
        let of = |rate: &Option<PerMinute>| rate.as_ref().map(|rate| rate.left(now));
        (of(&self.meters.requests), of(&self.meters.tokens))
    }
}

/// A key's secret. It is shown once, to whoever made the key, and never in logs.
pub struct Secret(Zeroizing<String>);

impl Secret {
    fn new() -> Result<Self, DataDirError> {
        let digits = Zeroizing::new(hex(random_secret()?.as_slice()));
        Ok(Self(Zeroizing::new(format!("{SECRET_BEGINS}{}", *digits))))
    }

    /// The secret itself.
    pub fn tell(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why something of a key was not done.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It can't be called that.
    #[error(
        "{0:?} is no name for a key: it has 1 to {NAME_BYTES_MAX} letters, digits and `.` `_` `-` `@`, \
         begins with a letter or a digit, and is not `gateway` or `default`"
    )]
    Name(String),
    /// A model can't be called that, or there are too many.
    #[error("{0}")]
    Models(String),
    /// A rate that is none.
    #[error("{0} a minute: 1 to {RATE_MAX} are allowed; leave it out for no limit")]
    Rate(u32),
    /// There is one of that name.
    #[error("there is a key {0} already: `suanli key revoke {0}` first, or choose another name")]
    Exists(KeyName),
    /// There is none of that name.
    #[error("there is no key {0:?}; `suanli key list` shows those that there are")]
    Unknown(String),
    /// No more are kept.
    #[error("there are {0} keys, which is as many as there may be: revoke some")]
    TooMany(usize),
    /// It can't be kept; the sentence says what holds.
    #[error("{0}: {1}")]
    NotKept(&'static str, DataDirError),
    /// There is no randomness.
    #[error(transparent)]
    Random(DataDirError),
    /// The node is stopping.
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// Models that a key names.
///
/// # Errors
/// [`KeysError::Models`].
pub fn model_names(texts: &[String]) -> Result<Vec<Name>, KeysError> {
    if texts.len() > MODELS_MAX {
        let message = format!("a key names at most {MODELS_MAX} models; name none for all");
        return Err(KeysError::Models(message));
    }
    let names: Result<BTreeSet<Name>, KeysError> = texts
        .iter()
        .map(|text| {
            crate::gateway::model_name(text).ok_or_else(|| {
                let shown: String = text.chars().take(NAME_BYTES_MAX).collect();
                KeysError::Models(format!(
                    "{shown:?} is no model's name: 1 to {NAME_BYTES_MAX} bytes of visible text"
                ))
            })
        })
        .collect();
    Ok(names?.into_iter().collect())
}

/// A rate by the minute.
///
/// # Errors
/// [`KeysError::Rate`].
pub fn rate_of(limit: Option<u32>) -> Result<Option<NonZeroU32>, KeysError> {
    let Some(limit) = limit else {
        return Ok(None);
    };
    let allowed = NonZeroU32::new(limit).filter(|limit| limit.get() <= RATE_MAX);
    allowed.map(Some).ok_or(KeysError::Rate(limit))
}

/// The keys of a data directory, before the node runs.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    register: Register,
}

impl KeyFile {
    /// Reads them; none without the file.
    ///
    /// # Errors
    /// [`DataDirError`]: readable by others, or damaged. The file stays as it is.
    pub fn open(dir: &DataDir) -> Result<Self, DataDirError> {
        let path = dir.gateway_keys();
        let Some(bytes) = read_first(&path, FILE_BYTES_MAX)? else {
            let register = Register::default();
            return Ok(Self { path, register });
        };
        check_private(&path)?;
        let text = str::from_utf8(&bytes).map_err(|_| "it is no text".to_owned());
        let register = text.and_then(|text| Register::from_text(text, Instant::now()));
        match register {
            Ok(register) => Ok(Self { path, register }),
            Err(message) => Err(DataDirError::Damaged { path, message }),
        }
    }

    /// Tells the driver what keys may spend, and starts the desk on the current tokio
    /// runtime. It ends with the last [`Keys`].
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn start(self, handle: NodeHandle) -> Result<Keys, Gone> {
        handle.grant(self.register.budgets()).await?;
        let (orders, queue) = mpsc::channel(ORDERS);
        let (register, seen) = watch::channel(Arc::new(self.register));
        let desk = Desk {
            path: self.path,
            handle,
            register,
        };
        tokio::spawn(desk.run(queue));
        Ok(Keys { seen, orders })
    }
}

/// Finds keys, and has them made and revoked.
#[derive(Debug, Clone)]
pub struct Keys {
    seen: watch::Receiver<Arc<Register>>,
    orders: mpsc::Sender<Order>,
}

type Made = Result<(Arc<Key>, Secret), KeysError>;

#[derive(Debug)]
enum Order {
    Create(KeyName, Terms, oneshot::Sender<Made>),
    Revoke(KeyName, oneshot::Sender<Result<Arc<Key>, KeysError>>),
}

impl Keys {
    /// The key that a caller shows the secret of, unless it is revoked or has expired.
    pub fn find(&self, shown: &[u8], now: Wall) -> Option<Arc<Key>> {
        let hash = Hash::of(shown);
        self.seen.borrow().find(hash, now).cloned()
    }

    /// All keys, as they are now.
    pub fn all(&self) -> Arc<Register> {
        Arc::clone(&self.seen.borrow())
    }

    /// Makes a key. It is on disk when its secret is told.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn create(&self, name: KeyName, terms: Terms) -> Made {
        let (reply, answer) = oneshot::channel();
        let create = Order::Create(name, terms, reply);
        self.orders.send(create).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)?
    }

    /// Revokes a key: it opens nothing from now on. That is on disk when this returns. One
    /// that is revoked stays so.
    ///
    /// # Errors
    /// [`KeysError`]; with [`KeysError::NotKept`] it holds until the node ends.
    pub async fn revoke(&self, name: KeyName) -> Result<Arc<Key>, KeysError> {
        let (reply, answer) = oneshot::channel();
        let revoke = Order::Revoke(name, reply);
        self.orders.send(revoke).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)?
    }
}

/// The task that owns the keys.
struct Desk {
    path: PathBuf,
    handle: NodeHandle,
    register: watch::Sender<Arc<Register>>,
}

impl Desk {
    async fn run(self, mut queue: mpsc::Receiver<Order>) {
        while let Some(order) = queue.recv().await {
            // Who asked may have gone away.
            match order {
                Order::Create(name, terms, reply) => {
                    let _ = reply.send(self.create(name, terms).await);
                }
                Order::Revoke(name, reply) => {
                    let _ = reply.send(self.revoke(&name).await);
                }
            }
        }
    }

    async fn create(&self, name: KeyName, terms: Terms) -> Made {
        let secret = Secret::new().map_err(KeysError::Random)?;
        let hash = Hash::of(secret.tell().as_bytes());
        let key = Key::new((name.clone(), hash), terms, (wall(), Instant::now()));
        let next = Arc::new(self.now().with(key, KEYS_MAX)?);
        let kept = self.keep(&next).await;
        kept.map_err(|error| KeysError::NotKept("the key was not made", error))?;
        self.handle.grant(next.budgets()).await?;
        self.register.send_replace(Arc::clone(&next));
        tracing::info!(key = %name, "an API key was made");
        let key = next.get(&name).cloned();
        let key = key.ok_or_else(|| KeysError::Unknown(name.to_string()))?;
        Ok((key, secret))
    }

    async fn revoke(&self, name: &KeyName) -> Result<Arc<Key>, KeysError> {
        let next = Arc::new(self.now().without(name, wall())?);
        self.register.send_replace(Arc::clone(&next));
        tracing::info!(key = %name, "an API key was revoked");
        let kept = self.keep(&next).await;
        kept.map_err(|error| {
            KeysError::NotKept("the key is revoked, but only until the node ends", error)
        })?;
        let key = next.get(name).cloned();
        key.ok_or_else(|| KeysError::Unknown(name.to_string()))
    }

    fn now(&self) -> Arc<Register> {
        Arc::clone(&self.register.borrow())
    }

    /// Puts a register on disk.
    async fn keep(&self, register: &Arc<Register>) -> Result<(), DataDirError> {
        let (path, register) = (self.path.clone(), Arc::clone(register));
        let writing = move || write_private(&path, register.to_text().as_bytes());
        let written = tokio::task::spawn_blocking(writing).await;
        written.unwrap_or_else(|error| {
            let path = self.path.clone();
            let source = error.into();
            Err(DataDirError::Io { path, source })
        })
    }
}

#[cfg(test)]
mod tests;
