//! All API keys of a node, as a value, and the file that they are kept in.
//!
//! ```text
//! suanli keys 1 HASH-OF-THE-REST
//! {"name":"alice","hash":"…","created_ms":…,…}      a line for each key
//! ```
//!
//! The first line says what the rest hashes to: a file that somebody changed, or a disk
//! lost a part of, is refused as a whole and left as it is. A register never changes; a
//! change makes another one.
//!
//! Absent: writing the file, and clocks.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::Arc,
    time::Instant,
};

use serde::{Deserialize, Serialize};
use suanli_protocol::{
    ids::Hash,
    limits::BUDGET_DAYS_MAX,
    offer::Name,
    peer::Budget,
    units::{Amount, Wall},
};

use super::{Key, KeyName, KeysError, Terms, model_names, rate_of};

const HEAD: &str = "suanli keys 1 ";

/// Keys by name, and those that open something by the hash of their secret.
#[derive(Debug, Default)]
pub struct Register {
    by_name: BTreeMap<KeyName, Arc<Key>>,
    by_hash: HashMap<Hash, Arc<Key>>,
}

/// A key, as in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    hash: Hash,
    created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    models: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests_per_minute: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens_per_minute: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    budget: Option<Amount>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    days: Option<u16>,
}

impl Register {
    /// All keys, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.by_name.values()
    }

    /// The key of a name.
    pub fn get(&self, name: &KeyName) -> Option<&Arc<Key>> {
        self.by_name.get(name)
    }

    /// The key of a secret, unless it is revoked or has expired.
    pub(super) fn find(&self, hash: Hash, now: Wall) -> Option<&Arc<Key>> {
        let found = self.by_hash.get(&hash);
        found.filter(|key| key.terms.expires.is_none_or(|at| now < at))
    }

    /// With one more key, in the place of a revoked one of its name.
    pub(super) fn with(&self, key: Key, keys_max: usize) -> Result<Self, KeysError> {
        let before = self.get(&key.name);
        if before.is_some_and(|before| before.revoked.is_none()) {
            return Err(KeysError::Exists(key.name));
        }
        let mut all = self.by_name.clone();
        all.insert(key.name.clone(), Arc::new(key));
        if all.len() > keys_max {
            // Of those that open nothing any more the oldest is forgotten.
            let revoked = all.values().filter(|key| key.revoked.is_some());
            let oldest = revoked.min_by_key(|key| key.revoked);
            let oldest = oldest.map(|key| key.name.clone());
            all.remove(&oldest.ok_or(KeysError::TooMany(keys_max))?);
        }
        Ok(Self::of(all))
    }

    /// With that key revoked; one that is stays as it is.
    pub(super) fn without(&self, name: &KeyName, now: Wall) -> Result<Self, KeysError> {
        let unknown = || KeysError::Unknown(name.to_string());
        let key = self.get(name).ok_or_else(unknown)?;
        let mut all = self.by_name.clone();
        let revoked = Some(key.revoked.unwrap_or(now));
        let key = Key {
            revoked,
            ..Key::clone(key)
        };
        all.insert(name.clone(), Arc::new(key));
        Ok(Self::of(all))
    }

    fn of(by_name: BTreeMap<KeyName, Arc<Key>>) -> Self {
        let live = by_name.values().filter(|key| key.revoked.is_none());
        let by_hash = live.map(|key| (key.hash, Arc::clone(key))).collect();
        Self { by_name, by_hash }
    }

    /// What keys may spend, for the core. That of a revoked one goes on to hold for its name,
    /// until it is made again.
    pub(super) fn budgets(&self) -> BTreeMap<Name, Budget> {
        let budgets = self.iter().filter_map(|key| {
            let budget = key.terms.budget?;
            Some((key.principal().clone(), budget))
        });
        budgets.collect()
    }

    /// As the file has it.
    pub(super) fn to_text(&self) -> String {
        let mut lines = String::new();
        for key in self.iter() {
            // Text and numbers have no reason to fail, nor has writing to a string.
            let line = serde_json::to_string(&Line::of(key)).unwrap_or_default();
            let _ = writeln!(lines, "{line}");
        }
        format!("{HEAD}{:#}\n{lines}", Hash::of(lines.as_bytes()))
    }

    /// From the file.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn from_text(text: &str, now: Instant) -> Result<Self, String> {
        let (head, lines) = text.split_once('\n').unwrap_or((text, ""));
        let hash = head
            .strip_prefix(HEAD)
            .ok_or("it does not begin as a file of API keys does")?;
        if hash.parse() != Ok(Hash::of(lines.as_bytes())) {
            return Err("its keys are not those that were written".to_owned());
        }
        let mut all = BTreeMap::new();
        for (number, line) in (2..).zip(lines.lines()) {
            let key = serde_json::from_str::<Line>(line).map_err(|error| error.to_string());
            let key = key.and_then(|line| line.into_key(now));
            let key = key.map_err(|why| format!("line {number}: {why}"))?;
            if let Some(twice) = all.insert(key.name.clone(), Arc::new(key)) {
                return Err(format!("line {number}: {} is there twice", twice.name));
            }
        }
        Ok(Self::of(all))
    }
}

impl Line {
    fn of(key: &Key) -> Self {
        let terms = &key.terms;
        Self {
            name: key.name.to_string(),
            hash: key.hash,
            created_ms: key.created.as_millis(),
            expires_ms: terms.expires.map(Wall::as_millis),
            revoked_ms: key.revoked.map(Wall::as_millis),
            models: terms.models.iter().map(ToString::to_string).collect(),
            requests_per_minute: terms.requests_per_minute.map(Into::into),
            tokens_per_minute: terms.tokens_per_minute.map(Into::into),
            budget: terms.budget.map(|budget| budget.amount),
            days: terms.budget.map(|budget| budget.days),
        }
    }

    fn into_key(self, now: Instant) -> Result<Key, String> {
        let budget = match (self.budget, self.days) {
            (None, None) => None,
            (Some(amount), Some(days)) if (1..=BUDGET_DAYS_MAX).contains(&days) => {
                Some(Budget { amount, days })
            }
            _ => return Err("a budget has an amount and its days".to_owned()),
        };
        let words = |error: KeysError| error.to_string();
        let terms = Terms {
            models: model_names(&self.models).map_err(words)?,
            requests_per_minute: rate_of(self.requests_per_minute).map_err(words)?,
            tokens_per_minute: rate_of(self.tokens_per_minute).map_err(words)?,
            budget,
            expires: self.expires_ms.map(Wall::from_millis),
        };
        let name = KeyName::new(&self.name).map_err(words)?;
        let created = Wall::from_millis(self.created_ms);
        let key = Key::new((name, self.hash), terms, (created, now));
        Ok(Key {
            revoked: self.revoked_ms.map(Wall::from_millis),
            ..key
        })
    }
}
