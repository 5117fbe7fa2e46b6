//! Making archives of what is durable, so that segments can go.
//!
//! ```text
//! begin ─▶ records to condense ─▶ history(…) ─▶ checkpoint(…) ─▶ finish: the writer lets go
//! ```
//!
//! All of it happens beside the writer, on whatever thread the caller likes:
//! reading is of what is durable, and archives are files of their own. Only at
//! the end the writer takes them in and removes what they stand for. A crash
//! anywhere leaves either a complete archive or none; a history without its
//! checkpoint is used, and the next one goes on from it.
//!
//! Absent: what a record is worth, and when to do this.

use std::{io, sync::Arc};

use super::{
    Lease,
    archive::{Archive, ArchiveWriter, Use},
    journal::{Health, Journal, Lsn, ReadError, Reader, Record, Settled},
};

/// Why there is no new archive. Nothing is lost by it.
#[derive(Debug, thiserror::Error)]
pub enum CompactionError {
    /// The journal could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file could not be written, or an old one not be removed.
    #[error("an archive of the journal could not be written: {0}")]
    Io(#[from] io::Error),
    /// The store is being closed.
    #[error("the store is closed")]
    Stopped,
}

/// What speaks for a compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Records that a start would replay beyond the checkpoint's.
    pub records: u64,
    /// Bytes of segments in which nothing is written any more.
    pub sealed_bytes: u64,
    /// Bytes of the newest checkpoint.
    pub checkpoint_bytes: u64,
}

/// A compaction of everything that was durable when it began.
#[derive(Debug)]
pub struct Compaction {
    journal: Journal,
    /// Others must not open the directory while this writes there.
    _lease: Option<Arc<Lease>>,
    upto: Lsn,
    at_ms: u64,
    checkpoint: Option<Archive>,
    history: Option<Archive>,
}

impl Compaction {
    pub(super) fn begin(journal: Journal, lease: Option<Arc<Lease>>, at_ms: u64) -> Self {
        Self {
            upto: journal.reader().durability().lsn,
            journal,
            _lease: lease,
            at_ms,
            checkpoint: None,
            history: None,
        }
    }

    fn reader(&self) -> &Reader {
        self.journal.reader()
    }

    /// The last record that it is about.
    pub const fn upto(&self) -> Lsn {
        self.upto
    }

    /// Whether anything was appended since the newest checkpoint.
    pub fn has_news(&self) -> bool {
        let checkpoint = self.reader().checkpoint();
        checkpoint.map_or(Lsn::NONE, |c| c.upto()) < self.upto
    }

    /// What the checkpoint is to stand for: the records of the one before, and
    /// those that followed.
    pub fn records(&self) -> impl Iterator<Item = Result<Record, CompactionError>> {
        let upto = self.upto;
        self.reader()
            .replay()
            .map(|found| found.map_err(CompactionError::from))
            .take_while(move |found| found.as_ref().map_or(true, |record| record.lsn <= upto))
            .map(|found| self.go_on().and(found))
    }

    /// Writes the part of the journal that no history stands for yet as one:
    /// each record as `kept` makes it, or not at all.
    ///
    /// # Errors
    /// [`CompactionError`].
    pub fn write_history(
        &mut self,
        mut kept: impl FnMut(Record) -> Option<Vec<u8>>,
    ) -> Result<(), CompactionError> {
        let first = self.reader().past().upto().max(self.covered()).next();
        if first > self.upto {
            return Ok(());
        }
        let disk = self.reader().disk.clone();
        let mut writer = ArchiveWriter::begin(disk.as_ref(), Use::History)?;
        for record in self.reader().records(first) {
            let record = record?;
            let lsn = record.lsn;
            if lsn > self.upto {
                break;
            }
            self.go_on()?;
            if let Some(payload) = kept(record) {
                writer.add(lsn, &payload)?;
            }
        }
        let archive = self.archive(Use::History, first)?;
        self.history = Some(writer.finish(disk.as_ref(), archive)?);
        Ok(())
    }

    /// Writes a checkpoint, from which the state of this moment follows.
    ///
    /// # Errors
    /// [`CompactionError`].
    pub fn write_checkpoint(
        &mut self,
        kept: impl Iterator<Item = Vec<u8>>,
    ) -> Result<(), CompactionError> {
        let disk = self.reader().disk.clone();
        let mut writer = ArchiveWriter::begin(disk.as_ref(), Use::Checkpoint)?;
        for (number, payload) in (1..).zip(kept) {
            self.go_on()?;
            writer.add(Lsn::new(number), &payload)?;
        }
        let archive = self.archive(Use::Checkpoint, Lsn::FIRST)?;
        self.checkpoint = Some(writer.finish(disk.as_ref(), archive)?);
        Ok(())
    }

    /// Lets the journal go of what archives stand for, and of histories from
    /// before `forget_before_ms`. Returns how many bytes that freed.
    ///
    /// # Errors
    /// [`CompactionError`].
    pub async fn finish(self, forget_before_ms: u64) -> Result<u64, CompactionError> {
        let settled = Settled {
            checkpoint: self.checkpoint,
            history: self.history,
            forget_before_ms,
        };
        Ok(self.journal.settle(settled).await?)
    }

    fn covered(&self) -> Lsn {
        let checkpoint = self.reader().checkpoint();
        checkpoint.map_or(Lsn::NONE, |c| c.upto())
    }

    fn archive(&self, used: Use, first: Lsn) -> Result<Archive, CompactionError> {
        Ok(Archive {
            used,
            first,
            upto: self.upto,
            chain: self.reader().read(self.upto)?.chain,
            records: 0,
            bytes: 0,
            at_ms: self.at_ms,
        })
    }

    /// Nobody waits for archives when the store is closed.
    fn go_on(&self) -> Result<(), CompactionError> {
        match self.reader().durability.borrow().health {
            Health::Writing | Health::Low | Health::Full => Ok(()),
            Health::Failed(_) | Health::Closed => Err(CompactionError::Stopped),
        }
    }
}
