//! What an operator sets: from a file, the environment and flags.
//!
//! ```text
//! defaults ◀─ config.toml ◀─ SUANLI_… ◀─ flags      the later wins; each value keeps its origin
//! ```
//!
//! Every key stands in one table ([`settings`]) with how it is read and shown,
//! so that the file, the environment (`SUANLI_PROVIDE_SLOTS` is
//! `provide.slots`), `--set KEY=VALUE` and `suanli config show` can't
//! disagree. An unknown key is refused with the nearest known one. [`load`]
//! does no IO besides reading the file that it is told.

mod hours;
mod provide;
pub mod settings;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use serde::{Deserialize, Deserializer, Serialize};
use suanli_executor::quantity::ByteSize;
use suanli_protocol::{
    limits::{BUDGET_DAYS_MAX, NAME_BYTES_MAX, OFFER_TTL_MAX},
    offer::Name,
    peer::{Budget, Timing},
    units::Amount,
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use self::settings::{Setting, Wrong, setting};
pub use self::{
    hours::{Hours, ParseHoursError, UtcOffset},
    provide::{Accept, DeviceSelection, IdleAfter, KnownAccount, PriceEntry, Provide, Yield},
};
use crate::{
    document::{Document, Mistake, Unreadable, allowed, nearest},
    models::shelf::{Shelf, ShelfError},
};

/// What an operator sets.
#[derive(Debug, Clone)]
pub struct Config {
    /// The network's name: nodes of another one are not heard.
    pub network: String,
    /// What the network counts in.
    pub unit: String,
    /// Where keys, journal, index and blobs are.
    pub data_dir: PathBuf,
    /// Where this node is.
    pub region: String,
    /// Where it listens for peers.
    pub listen: Vec<Multiaddr>,
    /// Whom it dials at first.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether private and loopback addresses are dialled; see [`Config::lan`].
    pub lan: Option<bool>,
    /// Where the HTTP API listens.
    pub api: SocketAddr,
    /// Whether the API may be reached from other machines.
    pub api_allow_remote: bool,
    /// Where the API's token is, if not in the data directory.
    pub api_token_file: Option<PathBuf>,
    /// What is logged: a level, or tracing's filter directives.
    pub log: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// The worker binary; beside this one if not given.
    pub worker: Option<PathBuf>,
    /// The most that a job may cost that says nothing itself.
    pub max_price: Amount,
    /// Of a hundred answers of models as many are scored by other providers.
    pub audit_percent: u8,
    /// What a gigabyte costs that leaves the region, as the network's operator bills it.
    pub traffic_price: Amount,
    /// What principals may spend.
    pub budget: Vec<BudgetEntry>,
    /// Bytes of blobs kept.
    pub store_quota: ByteSize,
    /// How long the story of jobs, receipts and channels is kept, at least.
    pub history: Duration,
    /// What it sells, if anything.
    pub provide: Option<Provide>,
    /// How patient it is.
    pub timing: Timing,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the file.
    File {
        /// Which file.
        file: PathBuf,
        /// Counted from one.
        line: usize,
    },
    /// A variable of the environment.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line } => write!(f, "{}:{line}", file.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// What [`load`] reads, the later the stronger.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A configuration file.
    pub file: Option<PathBuf>,
    /// The process's environment. Only `SUANLI_…` and `XDG_DATA_HOME`, `HOME`
    /// are looked at.
    pub environment: BTreeMap<String, String>,
    /// Flags.
    pub flags: Vec<FlagValue>,
}

/// A value given by a flag.
#[derive(Debug, Clone)]
pub struct FlagValue {
    /// As typed: `--region`.
    pub flag: String,
    /// The key that it sets: `region`.
    pub key: String,
    /// The value.
    pub value: String,
}

/// A configuration, and where each value came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{0}; name another with --config FILE")]
    Read(#[from] Unreadable),
    /// Something in the file is wrong.
    #[error(transparent)]
    File(#[from] Mistake),
    /// Something in the environment or a flag is wrong.
    #[error("{origin}: {message}")]
    Value {
        /// The variable or flag.
        origin: String,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// Values that don't go together.
    #[error("{origin}: {key}: {message}")]
    Check {
        /// Where the value came from.
        origin: Origin,
        /// Which.
        key: &'static str,
        /// What is wrong and what to do.
        message: String,
    },
    /// The models that were added can't be read.
    #[error(transparent)]
    Models(#[from] ShelfError),
    /// There is no place for data.
    #[error("no HOME and no data_dir: name a folder with --data-dir DIR or SUANLI_DATA_DIR")]
    NoDataDir,
}

/// The variables that configure a node begin so.
const PREFIX: &str = "SUANLI_";
/// A year, and five weeks in which to close its books.
const HISTORY: Duration = Duration::from_secs(400 * 86_400);
/// Variables of ours that are no key.
const OTHER_VARIABLES: [&str; 1] = ["SUANLI_CONFIG"];

/// Reads file, environment and flags, and checks the whole.
///
/// # Errors
/// [`ConfigError`]: the first thing that is wrong, and where it stands.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let loaded = read(sources)?;
    loaded.check()?;
    Ok(loaded)
}

/// The same, unless what is wrong is only that values don't go together: for commands that
/// mend it.
///
/// # Errors
/// [`ConfigError`].
pub fn read(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut loaded = Loaded {
        config: Config::with_data_dir(PathBuf::new()),
        origins: BTreeMap::new(),
    };
    if let Some(path) = &sources.file {
        loaded.apply_file(&Document::read(path)?)?;
    }
    loaded.apply_environment(&sources.environment)?;
    for flag in &sources.flags {
        loaded.apply_flag(flag)?;
    }
    if loaded.config.data_dir.as_os_str().is_empty() {
        loaded.config.data_dir = default_data_dir(sources)?;
    }
    loaded.add_models()?;
    Ok(loaded)
}

/// The variables of this process that are text.
pub fn process_environment() -> BTreeMap<String, String> {
    let variables = std::env::vars_os();
    variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// What a principal may spend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetEntry {
    /// Who; `*` for each that is not named.
    #[serde(deserialize_with = "principal")]
    pub principal: String,
    /// How much.
    pub amount: Amount,
    /// In how many days, today included.
    #[serde(default = "month", deserialize_with = "days")]
    pub days: u16,
}

const fn month() -> u16 {
    30
}

fn days<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let days = u16::deserialize(deserializer)?;
    if (1..=BUDGET_DAYS_MAX).contains(&days) {
        return Ok(days);
    }
    let message = format!("{days} days: 1 to {BUDGET_DAYS_MAX} are allowed");
    Err(serde::de::Error::custom(message))
}

fn principal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    match Name::new(name.as_str()) {
        Ok(_) if !name.is_empty() => Ok(name),
        Ok(_) | Err(_) => {
            let message = format!("a principal has 1 to {NAME_BYTES_MAX} bytes of visible text");
            Err(serde::de::Error::custom(message))
        }
    }
}

impl Config {
    /// What principals may spend, for the core. The last entry of a name counts.
    pub fn budgets(&self) -> BTreeMap<Name, Budget> {
        let budgets = self.budget.iter().map(|entry| {
            let BudgetEntry { amount, days, .. } = *entry;
            (Name::lossy(&entry.principal), Budget { amount, days })
        });
        budgets.collect()
    }

    /// The defaults, for a data directory.
    pub fn with_data_dir(data_dir: PathBuf) -> Self {
        let loopback = Multiaddr::from(Ipv4Addr::LOCALHOST);
        Self {
            network: "suanli".into(),
            unit: "credit".into(),
            data_dir,
            region: "local".into(),
            listen: vec![
                loopback
                    .clone()
                    .with(Protocol::Udp(0))
                    .with(Protocol::QuicV1),
                loopback.with(Protocol::Tcp(0)),
            ],
            bootstrap: Vec::new(),
            lan: None,
            api: SocketAddr::from((Ipv4Addr::LOCALHOST, 7420)),
            api_allow_remote: false,
            api_token_file: None,
            log: "info".into(),
            log_format: LogFormat::Text,
            worker: None,
            max_price: Amount::from_micros(10_000_000),
            audit_percent: 2,
            traffic_price: Amount::ZERO,
            budget: Vec::new(),
            store_quota: ByteSize(20 << 30),
            history: HISTORY,
            provide: None,
            timing: Timing::default(),
        }
    }

    /// Whether private and loopback addresses are dialled: as set, or when
    /// this node listens on loopback only.
    pub fn lan(&self) -> bool {
        self.lan
            .unwrap_or_else(|| self.listen.iter().all(is_loopback))
    }
}

impl Loaded {
    /// Every key with its value as TOML and its origin, in the table's order.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, Option<toml::Value>, Origin)> + '_ {
        settings::SETTINGS
            .iter()
            .filter(|setting| setting.is_in_force(&self.config))
            .map(|setting| {
                (
                    setting.key,
                    (setting.show)(&self.config),
                    self.origin(setting.key),
                )
            })
    }

    /// Where a value came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Who sells also serves the models that were added to the data directory.
    fn add_models(&mut self) -> Result<(), ConfigError> {
        if let Some(provide) = &mut self.config.provide {
            let added = Shelf::of(&self.config.data_dir).entries();
            provide.model.extend(added?);
        }
        Ok(())
    }

    fn apply_file(&mut self, document: &Document) -> Result<(), Mistake> {
        let table = DeTable::parse(document.text());
        let table = table.map_err(|error| document.parse_mistake(&error))?;
        self.apply_table("", table.into_inner(), document)
    }

    fn apply_table(
        &mut self,
        prefix: &str,
        table: DeTable<'_>,
        document: &Document,
    ) -> Result<(), Mistake> {
        for (name, value) in table {
            let (at, key) = (name.span(), format!("{prefix}{}", name.get_ref()));
            let Some(setting) = setting(&key) else {
                self.apply_section(&key, at, value, document)?;
                continue;
            };
            let wrong = |wrong: Wrong| {
                let message = format!("{key}: {}", wrong.message);
                document.mistake(wrong.at.or_else(|| Some(at.clone())), message)
            };
            (setting.set)(&mut self.config, value).map_err(wrong)?;
            let line = document.mistake(Some(at.clone()), "").line;
            let file = document.path().to_owned();
            self.origins
                .insert(setting.key, Origin::File { file, line });
        }
        Ok(())
    }

    fn apply_section(
        &mut self,
        key: &str,
        at: Range<usize>,
        value: Spanned<DeValue<'_>>,
        document: &Document,
    ) -> Result<(), Mistake> {
        if !settings::SECTIONS.contains(&key) {
            return Err(document.mistake(Some(at), unknown_key(key)));
        }
        let DeValue::Table(section) = value.into_inner() else {
            let message = format!("`{key}` is a section: write [{key}] and its keys below");
            return Err(document.mistake(Some(at), message));
        };
        // `[provide]` alone says that this node sells.
        if key == "provide" {
            self.config.provide.get_or_insert_default();
        }
        self.apply_table(&format!("{key}."), section, document)
    }

    fn apply_environment(
        &mut self,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), ConfigError> {
        let ours = environment
            .iter()
            .filter(|(name, _)| name.starts_with(PREFIX));
        for (name, value) in ours {
            let named = settings::SETTINGS
                .iter()
                .find(|setting| variable(setting.key) == *name);
            if let Some(setting) = named {
                self.apply_text(setting, value, Origin::Environment(name.clone()))?;
                continue;
            }
            // Other programs may have variables that begin alike; a slip has a
            // near neighbour.
            let known = settings::SETTINGS
                .iter()
                .map(|setting| variable(setting.key));
            let known = known.collect::<Vec<_>>();
            let near = nearest(name, known.iter().map(String::as_str));
            if let (Some(near), false) = (near, OTHER_VARIABLES.contains(&name.as_str())) {
                return Err(ConfigError::Value {
                    origin: name.clone(),
                    message: format!("no such setting; did you mean `{near}`?"),
                });
            }
        }
        Ok(())
    }

    fn apply_flag(&mut self, flag: &FlagValue) -> Result<(), ConfigError> {
        let Some(setting) = setting(&flag.key) else {
            return Err(ConfigError::Value {
                origin: flag.flag.clone(),
                message: unknown_key(&flag.key),
            });
        };
        self.apply_text(setting, &flag.value, Origin::Flag(flag.flag.clone()))
    }

    /// A value outside a file is text, or TOML where text is not enough.
    fn apply_text(
        &mut self,
        setting: &'static Setting,
        text: &str,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let as_text = Spanned::new(0..text.len(), DeValue::String(text.into()));
        let as_toml = DeValue::parse(text).ok();
        let set = |config: &mut Config, value| (setting.set)(config, value);
        let outcome = set(&mut self.config, as_text).or_else(|wrong| match as_toml {
            Some(value) => set(&mut self.config, value),
            None => Err(wrong),
        });
        outcome.map_err(|wrong| ConfigError::Value {
            origin: origin.to_string(),
            message: format!("{}: {}", setting.key, wrong.message),
        })?;
        self.origins.insert(setting.key, origin);
        Ok(())
    }

    /// What no single value can say.
    fn check(&self) -> Result<(), ConfigError> {
        let config = &self.config;
        if !config.api.ip().is_loopback() && !config.api_allow_remote {
            return Err(self.wrong(
                "api",
                "the API would be reachable from other machines, unencrypted; bind it to \
                 127.0.0.1, or set api_allow_remote = true if a proxy or tunnel protects it",
            ));
        }
        if config.audit_percent > 100 {
            return Err(self.wrong("audit_percent", "of a hundred answers, 100 at most"));
        }
        if config.timing.offer_ttl > OFFER_TTL_MAX {
            return Err(self.wrong("timing.offer_ttl", "15m at most: peers refuse longer ones"));
        }
        let Some(provide) = &config.provide else {
            return Ok(());
        };
        provide
            .check()
            .map_err(|(key, message)| self.wrong(key, message))
    }

    fn wrong(&self, key: &'static str, message: impl Into<String>) -> ConfigError {
        ConfigError::Check {
            origin: self.origin(key),
            key,
            message: message.into(),
        }
    }
}

/// The environment's name of a key.
fn variable(key: &str) -> String {
    let name = key.replace('.', "_").to_uppercase();
    format!("{PREFIX}{name}")
}

/// What to say of a key that is not in the table, among those of its section.
fn unknown_key(key: &str) -> String {
    let section = |key: &str| key.rsplit_once('.').map(|(section, _)| section.to_owned());
    let known = settings::SETTINGS.iter().map(|setting| setting.key);
    let known = known
        .chain(settings::SECTIONS)
        .filter(|known| section(known) == section(key))
        .collect::<Vec<_>>();
    let hint = allowed(key, known);
    format!("unknown key `{}`; {hint}", key.escape_debug())
}

fn default_data_dir(sources: &Sources) -> Result<PathBuf, ConfigError> {
    let set = |name: &str| {
        let value = sources.environment.get(name);
        value.filter(|value| !value.is_empty()).map(Path::new)
    };
    let share = set("XDG_DATA_HOME").map(Path::to_owned);
    let share = share.or_else(|| set("HOME").map(|home| home.join(".local/share")));
    share
        .map(|share| share.join("suanli"))
        .ok_or(ConfigError::NoDataDir)
}

fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(Protocol::Ip6(ip)) => IpAddr::V6(ip).is_loopback(),
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests;
