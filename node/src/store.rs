//! The store: everything that must outlive the process.
//!
//! ```text
//!            append(lsn, payload)                find(query)
//!                   │                                 │
//!        bounded queue                     bounded queue
//!                   ▼          durable lsn            ▼
//!        journal's thread ──────────────────▶ index's thread (sled)
//!                   │                                 │ reads, checked
//!                   ▼                                 ▼
//!              journal/*.segment ◀────────────────────┘     blobs/ab/cdef…
//! ```
//!
//! The [`journal`] is the source of truth, kept short by [`compaction`]; the [`index`] finds records in it by
//! key and can be thrown away at any time; [`blobs`] are files named by hash.
//! [`Store`] opens the three under one lock. Handles are cheap to clone and
//! share no lock: they hold the sending ends of bounded channels, and watch
//! what the threads publish.
//!
//! Absent: what payloads and keys mean. The caller numbers the records, and
//! names their keys by a function that it gives at open.

pub mod blobs;
pub mod compaction;
pub mod disk;
pub mod index;
pub mod journal;

mod archive;
mod bench;
mod lock;
mod reader;
mod record;
mod recovery;
#[cfg(test)]
mod simulated;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use tokio::sync::watch;

#[doc(hidden)]
pub use self::bench::{Report, bench};
pub use self::{
    archive::Archive,
    journal::{AppendError, Durability, Health, Lsn, Record},
    lock::LockError,
};
use self::{
    blobs::Blobs,
    compaction::{Compaction, CompactionError},
    disk::{Folder, create_private_dir},
    index::{FindError, Hit, Index, IndexStart, Indexer, Query},
    journal::{Journal, JournalError, Reader, Recovery},
    lock::Lock,
};

/// How a store is kept.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The journal's part.
    pub journal: journal::Config,
    /// The blobs' part.
    pub blobs: blobs::Config,
    /// Version of the keys that the indexer names: another one makes the index
    /// anew.
    pub index_version: u32,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the data directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The journal could not be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A folder could not be made or read.
    #[error("{path} could not be used; check its owner, mode and free space")]
    Io {
        /// Which one.
        path: PathBuf,
        /// The operating system's words.
        source: io::Error,
    },
}

/// A store that was opened, and in what state it was.
#[derive(Debug)]
pub struct Opened {
    /// The handle.
    pub store: Store,
    /// What recovery found in the journal.
    pub recovery: Recovery,
    /// Whether the index could be used as it was.
    pub index: IndexStart,
}

/// The handle to an open store. Its threads end, and the data directory is
/// free again, after the last clone is gone or after [`Store::close`].
#[derive(Debug, Clone)]
pub struct Store {
    journal: Journal,
    index: Index,
    blobs: Blobs,
    lease: Weak<Lease>,
    ended: watch::Receiver<()>,
}

/// Held by both threads, and by a compaction: the lock goes when the last of
/// them ends.
#[derive(Debug)]
struct Lease {
    _lock: Lock,
    /// After the lock: whoever sees this end finds the directory free.
    _alive: watch::Sender<()>,
}

impl Store {
    /// Opens the store in `dir`, making it where it is missing. Blocks on the
    /// disk: all that the journal holds is read once and checked.
    pub fn open(dir: &Path, config: &Config, indexer: impl Indexer) -> Result<Opened, StoreError> {
        let at = |name: &str| dir.join(name);
        create_private_dir(dir).map_err(io_at(dir))?;
        let (alive, ended) = watch::channel(());
        let lease = Arc::new(Lease {
            _lock: Lock::take(dir)?,
            _alive: alive,
        });
        let blobs = Blobs::open(&at("blobs"), config.blobs.clone()).map_err(io_at(&at("blobs")))?;
        let index =
            index::Opened::open(&at("index"), config.index_version).map_err(io_at(&at("index")))?;
        let disk = Folder::open(&at("journal")).map_err(io_at(&at("journal")))?;
        let (waker, writers_lease) = (index.waker(), Arc::clone(&lease));
        let notify = move || {
            let _held = &writers_lease;
            waker.wake();
        };
        let (journal, recovery) = Journal::open(
            Arc::new(disk),
            &config.journal,
            index.known(),
            Box::new(notify),
        )?;
        let weak = Arc::downgrade(&lease);
        let (index, start) = index
            .start(journal.reader().clone(), Box::new(indexer), lease)
            .map_err(io_at(dir))?;
        Ok(Opened {
            store: Self {
                journal,
                index,
                blobs,
                lease: weak,
                ended,
            },
            recovery,
            index: start,
        })
    }

    /// The journal: append, wait for durability.
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Reads durable records.
    pub const fn reader(&self) -> &Reader {
        self.journal.reader()
    }

    /// The blobs.
    pub const fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Hands over records, numbered from `first` on, without waiting: all of
    /// them or none. Those that were taken are no longer in `payloads`.
    pub fn try_append(&self, first: Lsn, payloads: &mut Vec<Vec<u8>>) -> Result<(), AppendError> {
        self.journal.try_append(first, payloads)
    }

    /// Writes records on this thread if that is quick; see [`Journal::try_write`].
    pub fn try_write(&self, first: Lsn, payloads: &mut Vec<Vec<u8>>) -> bool {
        self.journal.try_write(first, payloads)
    }

    /// Hands over the record `lsn`, waiting for room in the queue.
    pub async fn append(&self, lsn: Lsn, payload: Vec<u8>) -> Result<(), AppendError> {
        self.journal.append(lsn, payload).await
    }

    /// How far the journal is on disk, and how it fares.
    pub fn durability(&self) -> watch::Receiver<Durability> {
        self.journal.durability()
    }

    /// How far the index has applied what is durable.
    pub fn indexed(&self) -> watch::Receiver<Lsn> {
        self.index.applied()
    }

    /// Records by key: at least all that were durable when the query came.
    pub async fn find(&self, query: Query) -> Result<Vec<Hit>, FindError> {
        self.index.find(query).await
    }

    /// The records that [`Store::find`] would name, read and checked.
    pub async fn fetch(&self, query: Query) -> Result<Vec<Record>, FindError> {
        self.index.fetch(query).await
    }

    /// Begins a compaction of the journal; `at_ms` is civil time.
    ///
    /// # Errors
    /// [`CompactionError::Stopped`].
    pub fn compact(&self, at_ms: u64) -> Result<Compaction, CompactionError> {
        let lease = self.lease.upgrade().ok_or(CompactionError::Stopped)?;
        Ok(Compaction::begin(self.journal.clone(), Some(lease), at_ms))
    }

    /// Finishes what is queued and frees the data directory.
    pub async fn close(self) {
        self.journal.close().await;
        let Self { mut ended, .. } = self;
        // Ends with an error when the threads have let go of their end.
        while ended.changed().await.is_ok() {}
    }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io { path, source }
}
