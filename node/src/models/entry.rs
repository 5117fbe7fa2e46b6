//! `[[provide.model]]`: what an operator says of a model.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use suanli_executor::{Adapter, AdapterSelection, limits::MODEL_THREADS_MAX, quantity::ByteSize};
use suanli_protocol::{
    ids::{BlobId, Hash},
    limits::{MODELS_MAX, NAME_BYTES_MAX},
    offer::{Device, ModelOffer, Name, Prices, RuntimeOffer},
    registry::{DeviceKind, Runtime},
    units::{Amount, Meter, Price},
    wire::{List, Text},
};

use super::{
    source::{CACHE_BYTES, SourceError},
    upstream::Base,
};
use crate::measured::Measured;

/// Tokens that prices are for.
pub const PER_TOKENS: u64 = 1_000_000;
/// Conversations at once, and leases, that one model may have.
const PLACES_MAX: u16 = 4096;

/// A model, as in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// What clients call it.
    pub name: String,
    /// Its server: `http://HOST:PORT`, below which its `/v1` is;
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// or its file, in the form GGUF, for a worker of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// What computes it: `auto`, which is a device if there is one and else the processor,
    /// `none` for the processor, or as in `provide.device`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// The device that computes it; none for the processor, and while that is not known.
    #[serde(skip)]
    pub on: Option<Adapter>,
    /// Threads of that worker: as many as the machine has cores, if it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Bytes of memory for what its conversations have said so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<ByteSize>,
    /// What the server calls it, if not the same.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// A file with the server's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// What a million tokens cost that it reads,
    pub price_in: Amount,
    /// and that it writes.
    pub price_out: Amount,
    /// Tokens of context; what a file's model was made for, if it does not say.
    #[serde(default, skip_serializing_if = "is_unsaid")]
    pub context: u32,
    /// Conversations at once.
    #[serde(default = "four")]
    pub places: u16,
    /// Leases at once.
    #[serde(default = "sixteen")]
    pub leases: u16,
    /// The hash of its weights, as 64 hex digits: providers that say the same can go on
    /// with each other's answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// How its weights are stored.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub quantisation: String,
    /// What its server computes with: a name,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// and a kind: `cpu`, `gpu` or `npu`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_unsaid(number: &u32) -> bool {
    *number == 0
}

const fn four() -> u16 {
    4
}

const fn sixteen() -> u16 {
    16
}

impl ModelEntry {
    /// One that has only prices.
    pub const fn with_prices(price_in: Amount, price_out: Amount) -> Self {
        Self {
            name: String::new(),
            upstream: None,
            file: None,
            adapter: None,
            on: None,
            threads: None,
            cache: None,
            alias: None,
            key_file: None,
            price_in,
            price_out,
            context: 0,
            places: four(),
            leases: sixteen(),
            weights: None,
            quantisation: String::new(),
            device: String::new(),
            kind: String::new(),
        }
    }

    /// The same, for so many at once where that is said.
    #[must_use]
    pub fn with_places(self, places: Option<u16>, leases: Option<u16>) -> Self {
        Self {
            places: places.unwrap_or(self.places),
            leases: leases.unwrap_or(self.leases),
            ..self
        }
    }

    /// What its server calls it.
    pub fn alias(&self) -> &str {
        self.alias.as_deref().unwrap_or(&self.name)
    }

    fn kind(&self) -> Option<DeviceKind> {
        match self.kind.as_str() {
            "" => Some(DeviceKind::GPU),
            name => DeviceKind::named(name),
        }
    }

    /// Whether another entry says the same, whatever was found out since.
    pub fn is_same(&self, other: &Self) -> bool {
        let said = |entry: &Self| Self {
            on: None,
            // Of a file it is found out.
            weights: entry.weights.clone().filter(|_| entry.file.is_none()),
            ..entry.clone()
        };
        said(self) == said(other)
    }

    /// Which adapter computes a file, out of those that there are: of several the one to which
    /// the fewest bytes of models are assigned. By `auto` it is one in whose memory there is
    /// room, or else the processor.
    ///
    /// # Errors
    /// If the one that is named is not there.
    pub fn place_on(
        &mut self,
        adapters: &[Adapter],
        assigned: &mut BTreeMap<u32, u64>,
    ) -> Result<(), SourceError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let said = self.adapter.as_deref().unwrap_or("auto");
        let selection = said.parse().unwrap_or(AdapterSelection::Best);
        let mut picked = selection
            .pick(adapters)
            .map_err(|source| SourceError::Adapter {
                model: self.name.clone(),
                source,
            })?;
        let bytes = self.device_bytes(file);
        let taken = |adapter: &Adapter| assigned.get(&adapter.index).copied().unwrap_or(0);
        if selection == AdapterSelection::Best {
            // What computes in software is the processor, which computes faster by itself.
            picked.retain(|adapter| {
                let room = adapter.memory_bytes / 10 * 9;
                !adapter.is_software() && taken(adapter).saturating_add(bytes) <= room
            });
        }
        self.on = picked.into_iter().min_by_key(taken);
        if let Some(adapter) = &self.on {
            let taken = assigned.entry(adapter.index).or_default();
            *taken = taken.saturating_add(bytes);
        }
        Ok(())
    }

    /// Bytes of a device that it takes: its weights, and what conversations have said.
    fn device_bytes(&self, file: &Path) -> u64 {
        let weights = std::fs::metadata(file).map_or(0, |file| file.len());
        let cache = self.cache.map_or(CACHE_BYTES, |cache| cache.0);
        weights.saturating_add(weights / 8).saturating_add(cache)
    }

    /// The hash that it goes by. Who does not say has weights that are nobody else's.
    pub fn weights(&self) -> BlobId {
        let said = self.weights.as_deref().and_then(|hex| hex.parse().ok());
        said.unwrap_or_else(|| {
            let place = self.upstream.as_deref().unwrap_or_default();
            let own = format!("{} at {place}", self.alias());
            BlobId(Hash::of(own.as_bytes()))
        })
    }

    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        let says = |what: &str| Err(format!("model {name:?}: {what}"));
        if name.is_empty() || Name::new(name.as_str()).is_err() {
            return says(&format!(
                "a name has 1 to {NAME_BYTES_MAX} bytes of visible text"
            ));
        }
        self.check_source()?;
        let allowed = 1..=PLACES_MAX;
        if !allowed.contains(&self.places) || !allowed.contains(&self.leases) {
            return says(&format!("places and leases are 1 to {PLACES_MAX}"));
        }
        let is_hash = |hex: &String| hex.parse::<BlobId>().is_ok();
        if !self.weights.as_ref().is_none_or(is_hash) {
            return says("weights is a BLAKE3 hash: 64 hex digits, as `b3sum FILE` prints them");
        }
        if Text::<16>::new(self.quantisation.as_str()).is_err() {
            return says("quantisation has at most 16 bytes, such as \"Q4_K_M\"");
        }
        if Name::new(self.device.as_str()).is_err() {
            return says(&format!(
                "device has at most {NAME_BYTES_MAX} bytes of visible text"
            ));
        }
        if self.kind().is_none() {
            let known: Vec<_> = DeviceKind::names().collect();
            return says(&format!(
                "kind = {:?}: one of {}",
                self.kind,
                known.join(", ")
            ));
        }
        Ok(())
    }

    fn check_source(&self) -> Result<(), String> {
        let says = |what: &str| Err(format!("model {:?}: {what}", self.name));
        match (&self.upstream, &self.file) {
            (Some(_), Some(_)) | (None, None) => {
                return says("give either `upstream`, the address of its server, or `file`");
            }
            (Some(upstream), None) => {
                if let Err(why) = Base::parse(upstream) {
                    return says(&format!("upstream = {upstream:?}: {why}"));
                }
                if self.context == 0 {
                    return says("context is the number of tokens that it can hold, above 0");
                }
                if self.adapter.is_some() || self.threads.is_some() || self.cache.is_some() {
                    return says("`adapter`, `threads` and `cache` are of a model with a `file`");
                }
            }
            (None, Some(_)) => {
                if self.alias.is_some() || self.key_file.is_some() || self.weights.is_some() {
                    return says(
                        "`as`, `key_file` and `weights` are of a model with an `upstream`",
                    );
                }
                if !self.device.is_empty() || !self.kind.is_empty() {
                    return says(
                        "`device` and `kind` say what computes behind an `upstream`; what computes a `file` is chosen with `adapter`",
                    );
                }
                let adapter = self.adapter.as_deref().map(str::parse::<AdapterSelection>);
                if let Some(Err(why)) = adapter {
                    return says(&format!("adapter: {why}"));
                }
                let allowed = 1..=MODEL_THREADS_MAX;
                let threads = self
                    .threads
                    .and_then(|threads| usize::try_from(threads).ok());
                if !threads.is_none_or(|threads| allowed.contains(&threads)) {
                    return says(&format!("threads are 1 to {MODEL_THREADS_MAX}"));
                }
            }
        }
        Ok(())
    }

    fn device(&self) -> Device {
        let runtime = RuntimeOffer {
            runtime: Runtime::MODEL,
            version: 1,
            features: List::default(),
        };
        let runtimes = List::truncated(vec![runtime]);
        let none = Measured::default();
        match (&self.file, &self.on) {
            (Some(_), Some(adapter)) => Device {
                slots: 0,
                runtimes,
                ..none.device(Some(adapter), false, u64::MAX)
            },
            (file, _) => {
                let (kind, name) = match (file, self.device.as_str()) {
                    (Some(_), _) => (DeviceKind::CPU, "processor"),
                    (None, "") => (self.kind().unwrap_or_default(), "model server"),
                    (None, name) => (self.kind().unwrap_or_default(), name),
                };
                Device {
                    kind,
                    maker: Name::default(),
                    model: Text::lossy(name),
                    driver: Name::default(),
                    memory_bytes: 0,
                    slots: 0,
                    runtimes,
                    speeds: List::default(),
                }
            }
        }
    }

    fn offer(&self, device: u16) -> ModelOffer {
        let price = |meter, amount| Price {
            meter,
            amount,
            per: PER_TOKENS,
        };
        ModelOffer {
            name: Text::lossy(&self.name),
            weights: self.weights(),
            quantisation: Text::lossy(&self.quantisation),
            context: self.context,
            device,
            prices: Prices::truncated(vec![
                price(Meter::TOKEN_IN, self.price_in),
                price(Meter::TOKEN_OUT, self.price_out),
            ]),
            prefill_per_second: 0,
            decode_per_second: 0,
            places: self.places,
            places_free: self.places,
        }
    }
}

/// Bytes of each adapter that models take, by its number.
pub fn assigned(models: &[ModelEntry]) -> BTreeMap<u32, u64> {
    let mut assigned = BTreeMap::new();
    for model in models {
        if let (Some(adapter), Some(file)) = (&model.on, &model.file) {
            let taken: &mut u64 = assigned.entry(adapter.index).or_default();
            *taken = taken.saturating_add(model.device_bytes(file));
        }
    }
    assigned
}

/// What is wrong with a list of models.
pub fn check(models: &[ModelEntry]) -> Result<(), String> {
    if models.len() > MODELS_MAX {
        return Err(format!(
            "{} models, at most {MODELS_MAX} are allowed",
            models.len()
        ));
    }
    let mut names = BTreeSet::new();
    for model in models {
        model.check()?;
        if !names.insert(&model.name) {
            return Err(format!("model {:?} is there twice", model.name));
        }
    }
    Ok(())
}

/// The models as an offer has them, with the devices that it has beside so many: models
/// that say the same of theirs share one.
pub fn offered(models: &[ModelEntry], devices: usize) -> (Vec<Device>, Vec<ModelOffer>) {
    let mut added: Vec<Device> = Vec::new();
    let offers = models.iter().map(|model| {
        let device = model.device();
        let is_it = |known: &Device| known.kind == device.kind && known.model == device.model;
        let place = added.iter().position(is_it).unwrap_or_else(|| {
            added.push(device);
            added.len() - 1
        });
        if let Some(device) = added.get_mut(place) {
            device.slots = device.slots.saturating_add(model.leases.into());
        }
        model.offer(u16::try_from(devices + place).unwrap_or(u16::MAX))
    });
    let offers = offers.collect();
    (added, offers)
}
