//! API keys, as people see them.

use std::fmt;

use serde::{Deserialize, Serialize};
use suanli_protocol::units::Amount;

/// A key to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyOrder {
    /// What it is called, and so the principal of what is asked with it.
    pub name: String,
    /// What it may spend, if that is limited,
    #[serde(default)]
    pub budget: Option<Amount>,
    /// and in how many days, today included: 30 if not given.
    #[serde(default)]
    pub days: Option<u16>,
    /// How many questions a minute, if that is limited.
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
    /// How many tokens a minute, read and written.
    #[serde(default)]
    pub tokens_per_minute: Option<u32>,
    /// Which models; all if it names none.
    #[serde(default)]
    pub models: Vec<String>,
    /// For how many days it holds, if not until it is revoked.
    #[serde(default)]
    pub expires_days: Option<u32>,
}

/// A key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "fields are what they are called")]
pub struct KeyInfo {
    pub name: String,
    pub created_ms: u64,
    pub expires_ms: Option<u64>,
    /// `live`, `expired` or `revoked`.
    pub state: String,
    /// All if it names none.
    pub models: Vec<String>,
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u32>,
    /// What its principal may spend, by the key or by the configuration; none where it may
    /// spend anything.
    pub budget: Option<Amount>,
    /// In so many days, and what it has spent in them.
    pub days: u16,
    pub spent: Amount,
    /// What its open leases may still cost.
    pub reserved: Amount,
    /// What another one may cost.
    pub left: Option<Amount>,
    /// Tokens since the node began, or the key. What they cost stands in receipts.
    pub tokens_read: u64,
    pub tokens_written: u64,
}

/// A key that was made. Its secret is said this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyMade {
    /// The key.
    pub key: KeyInfo,
    /// What to show with each question.
    pub secret: ShownSecret,
    /// Where questions go: what clients call `OPENAI_BASE_URL`.
    pub base_url: String,
}

/// A secret on its way to whoever is to have it. It does not show itself in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShownSecret(String);

impl ShownSecret {
    /// With this text.
    pub fn new(secret: &str) -> Self {
        Self(secret.to_owned())
    }

    /// The secret itself.
    pub fn tell(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ShownSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShownSecret(…)")
    }
}
