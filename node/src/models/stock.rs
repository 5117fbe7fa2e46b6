//! Which models are served, as it changes while the node runs.
//!
//! ```text
//! configuration ─┬─▶ renew ─▶ what is new: hash, device, worker ─▶ serving ─▶ offer
//! shelf ─────────┘       └──▶ what is gone: its worker ends
//! ```
//!
//! The configuration is read once, at the node's start; the shelf each time ([`Shelf`]), for
//! `suanli model add` and `remove` change it.
//!
//! Absent: what a model costs or may hold once it is served: who changes that removes it, and
//! adds it again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use suanli_executor::Adapter;
use suanli_protocol::{limits::DEVICES_MAX, offer::Device};
use tokio::sync::{Mutex, mpsc};

use super::{
    entry::{self, ModelEntry},
    serving::{Said, Serving, Stocked},
    shelf::{Shelf, ShelfError},
    source::{Source, SourceError, identify},
};

/// Why the models stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum StockError {
    /// The shelf can't be read.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// Together they can't be served.
    #[error("{0}")]
    Entries(String),
    /// One of the configuration can't be served.
    #[error("{0}")]
    Source(String),
    /// The node stops.
    #[error("the node is stopping")]
    Stopping,
    /// More than an offer can say.
    #[error(
        "with them the node has {0} devices, and an offer names {DEVICES_MAX} at most; choose an `adapter` for the models that other models have, too"
    )]
    Devices(usize),
}

/// What changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Models that are served from now on.
    pub added: Vec<String>,
    /// Models that are not served any more.
    pub removed: Vec<String>,
    /// Models that can't be served, and why.
    pub failed: Vec<(String, String)>,
}

/// The models that a node serves.
#[derive(Debug)]
pub struct Stock {
    /// Those of the configuration, which stay.
    fixed: Vec<ModelEntry>,
    shelf: Shelf,
    worker: Option<PathBuf>,
    adapters: Vec<Adapter>,
    /// What is offered beside models.
    devices: Vec<Device>,
    serving: Serving,
    served: Mutex<Vec<ModelEntry>>,
}

impl Stock {
    /// Serves the models of the configuration, which has those of the shelf as well. What is
    /// offered beside them are these devices; models compute on these adapters. Also what is
    /// said of them, and all devices, those of models included.
    ///
    /// # Errors
    /// [`StockError`]: then none is served.
    pub async fn open(
        entries: &[ModelEntry],
        shelf: Shelf,
        worker: Option<PathBuf>,
        (adapters, devices): (Vec<Adapter>, Vec<Device>),
    ) -> Result<(Self, mpsc::Receiver<Said>, Vec<Device>), StockError> {
        let (serving, said) = Serving::start();
        let fixed = entries.iter().filter(|entry| !shelf.has(entry));
        let stock = Self {
            fixed: fixed.cloned().collect(),
            shelf,
            worker,
            adapters,
            devices,
            serving,
            served: Mutex::default(),
        };
        let (renewed, devices) = stock.renewed().await?;
        let mut failed = renewed.failed.into_iter();
        let is_fixed = |name: &str| stock.fixed.iter().any(|entry| entry.name == name);
        match failed.find(|(name, _)| is_fixed(name)) {
            // What is written into a configuration is meant to be so.
            Some((_, why)) => Err(StockError::Source(why)),
            None => Ok((stock, said, devices)),
        }
    }

    /// What serves them.
    pub const fn serving(&self) -> &Serving {
        &self.serving
    }

    /// Looks what is on the shelf now.
    ///
    /// # Errors
    /// [`StockError`]: then nothing has changed.
    pub async fn renew(&self) -> Result<Renewed, StockError> {
        self.renewed().await.map(|(renewed, _)| renewed)
    }

    async fn renewed(&self) -> Result<(Renewed, Vec<Device>), StockError> {
        let mut served = self.served.lock().await;
        let mut said = self.fixed.clone();
        said.extend(self.shelf.entries()?);
        entry::check(&said).map_err(StockError::Entries)?;
        let mut renewed = Renewed::default();
        let (mut entries, mut sources) = (Vec::new(), Vec::new());
        let mut assigned = entry::assigned(&served);
        for entry in said {
            if let Some(known) = served.iter().find(|known| known.is_same(&entry)) {
                entries.push(known.clone());
                sources.push(None);
                continue;
            }
            let name = entry.name.clone();
            match self.start(entry, &mut assigned).await {
                Ok((entry, source)) => {
                    renewed.added.push(name);
                    entries.push(entry);
                    sources.push(Some(source));
                }
                Err(error) => {
                    tracing::error!(model = name, %error, "a model is not served");
                    renewed.failed.push((name, error.to_string()));
                }
            }
        }
        let (added, offers) = entry::offered(&entries, self.devices.len());
        let devices = [&self.devices[..], &added].concat();
        if devices.len() > DEVICES_MAX {
            return Err(StockError::Devices(devices.len()));
        }
        let is_gone = |known: &&ModelEntry| !entries.iter().any(|entry| entry.is_same(known));
        let gone = served.iter().filter(is_gone);
        renewed.removed = gone.map(|entry| entry.name.clone()).collect();
        let stocked = Stocked {
            devices: devices.clone(),
            models: offers.into_iter().zip(sources).collect(),
        };
        if !self.serving.stock(stocked).await {
            return Err(StockError::Stopping);
        }
        *served = entries;
        Ok((renewed, devices))
    }

    /// What an entry needs to be served: what computes it, the hash of its file, a worker.
    async fn start(
        &self,
        mut entry: ModelEntry,
        assigned: &mut BTreeMap<u32, u64>,
    ) -> Result<(ModelEntry, Source), SourceError> {
        entry.place_on(&self.adapters, assigned)?;
        if self.shelf.has(&entry) {
            // It is called by it.
            let file = entry.file.as_deref().and_then(Path::file_stem);
            entry.weights = file.map(|hash| hash.to_string_lossy().into_owned());
        }
        let entry = identify(entry).await?;
        let source = Source::open(&entry, self.worker.as_deref())?;
        Ok((entry, source))
    }
}
