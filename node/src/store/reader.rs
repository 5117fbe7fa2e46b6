//! Reading the journal: by position, by number, or in order from a number on.
//!
//! A [`Reader`] sees what is durable and nothing else. It takes a snapshot of
//! the segment list at each call and opens files as it needs them, so that it
//! shares no lock with the writer and a long archive holds no descriptors.

use std::{io, sync::Arc};

use tokio::sync::watch;

use super::{
    archive::{ARCHIVE_HEADER, Archive, Unsound},
    compaction::Backlog,
    disk::{Disk, DiskFile},
    journal::Durability,
    record::{Chain, Fault, Head, Lsn, RECORD_HEADER, Record, SEGMENT_HEADER, SegmentHead},
};

/// How much a cursor asks of the disk at once.
const READ_AHEAD: usize = 64 * 1024;

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The journal holds no such record (any more, or not yet).
    #[error("the journal holds no record {0}")]
    Unknown(Lsn),
    /// The disk holds something else in the record's place.
    #[error("record {lsn} in {file} at byte {offset}: {fault}; run `suanli doctor`")]
    Damaged {
        /// The segment's file name.
        file: String,
        /// Where in the file the record begins.
        offset: u64,
        /// The record that was looked for.
        lsn: Lsn,
        /// What is wrong.
        fault: Fault,
    },
    /// The disk did not answer.
    #[error("the journal could not be read")]
    Io(#[from] io::Error),
}

/// A segment that is part of the journal now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) head: SegmentHead,
}

impl Segment {
    pub(super) fn name(&self) -> String {
        format!("{:016x}.segment", self.head.first.number())
    }
}

/// Which segments and archives there are, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    pub(super) segments: Vec<Segment>,
    pub(super) checkpoint: Option<Archive>,
    pub(super) past: Past,
}

impl Layout {
    pub(super) fn segment_of(&self, lsn: Lsn) -> Option<Segment> {
        let after = self.segments.partition_point(|s| s.head.first <= lsn);
        self.segments.get(after.checked_sub(1)?).copied()
    }

    /// The last record that the checkpoint stands for.
    pub(super) fn covered(&self) -> Lsn {
        self.checkpoint.map_or(Lsn::NONE, |c| c.upto)
    }

    /// Bytes of the segments in which nothing is written any more.
    pub(super) fn sealed_bytes(&self) -> u64 {
        let sealed = self.segments.len().saturating_sub(1);
        self.segments[..sealed].iter().map(|s| s.head.bytes).sum()
    }
}

/// The histories that stand for a part of the journal, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) archives: Arc<[Archive]>,
    /// From where on the journal itself is asked.
    pub(super) goes_on: Lsn,
}

impl Past {
    /// With the first record that is in a segment, in case that histories were
    /// taken away.
    pub(super) fn new(archives: Vec<Archive>, first: Lsn) -> Self {
        let upto = archives.last().map_or(Lsn::NONE, |last| last.upto);
        Self {
            archives: archives.into(),
            goes_on: upto.next().max(first),
        }
    }

    /// The last record that one of them stands for.
    pub(super) fn upto(&self) -> Lsn {
        self.archives.last().map_or(Lsn::NONE, |last| last.upto)
    }

    /// The oldest record that one of them stands for: those before are gone.
    pub(super) fn first(&self) -> Lsn {
        self.archives.first().map_or(Lsn::NONE, |first| first.first)
    }

    fn of(&self, lsn: Lsn) -> Option<&Archive> {
        let after = self
            .archives
            .partition_point(|archive| archive.first <= lsn);
        let found = self.archives.get(after.checked_sub(1)?)?;
        found.holds(lsn).then_some(found)
    }
}

/// Reads durable records of one journal. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) layout: watch::Receiver<Arc<Layout>>,
    pub(super) durability: watch::Receiver<Durability>,
}

impl Reader {
    /// What is durable at this moment.
    pub fn durability(&self) -> Durability {
        self.durability.borrow().clone()
    }

    /// The oldest record that is still there.
    pub fn first(&self) -> Lsn {
        let layout = self.layout.borrow();
        layout.segments.first().map_or(Lsn::FIRST, |s| s.head.first)
    }

    /// The newest checkpoint.
    pub fn checkpoint(&self) -> Option<Archive> {
        self.layout.borrow().checkpoint
    }

    /// What a compaction would be for.
    pub fn backlog(&self) -> Backlog {
        let layout = self.layout.borrow();
        let durable = self.durability.borrow().lsn.number();
        Backlog {
            records: durable.saturating_sub(layout.covered().number()),
            sealed_bytes: layout.sealed_bytes(),
            checkpoint_bytes: layout.checkpoint.map_or(0, |c| c.bytes),
        }
    }

    /// Waits until a segment is begun or archives are taken in; `false` when
    /// the journal has ended.
    pub async fn layout_changed(&mut self) -> bool {
        self.layout.changed().await.is_ok()
    }

    /// What stands for the part of the journal that people may still ask about.
    pub(super) fn past(&self) -> Past {
        self.layout.borrow().past.clone()
    }

    /// The record `lsn`, found by walking its segment. Prefer
    /// [`Reader::read_at`] where the offset is known. Blocks on the disk.
    pub fn read(&self, lsn: Lsn) -> Result<Record, ReadError> {
        match self.records(lsn).next() {
            Some(found) => found,
            None => Err(ReadError::Unknown(lsn)),
        }
    }

    /// The record `lsn`, which is said to begin at `offset` of its segment.
    /// Blocks on the disk.
    pub fn read_at(&self, lsn: Lsn, offset: u32) -> Result<Record, ReadError> {
        let segment = self.segment_of(lsn)?;
        self.read_in(segment.name(), lsn, offset)
    }

    /// The record `lsn`, which is said to begin at `offset` of the history that
    /// stands for it, if one does, else of its segment.
    pub(super) fn read_with(
        &self,
        past: &Past,
        lsn: Lsn,
        offset: u32,
    ) -> Result<Record, ReadError> {
        match past.of(lsn) {
            Some(archive) => self.read_in(archive.name(), lsn, offset),
            None => self.read_at(lsn, offset),
        }
    }

    fn read_in(&self, name: String, lsn: Lsn, offset: u32) -> Result<Record, ReadError> {
        let file = self.disk.open(&name)?;
        let damaged = |fault| ReadError::Damaged {
            file: name.clone(),
            offset: offset.into(),
            lsn,
            fault,
        };
        let mut bytes = vec![0; RECORD_HEADER];
        let read = file.read_at(&mut bytes, offset.into())?;
        let head = Head::decode(&bytes[..read]).ok_or_else(|| damaged(Fault::Shape))?;
        bytes.resize(head.record_bytes(), 0);
        let read = file.read_at(&mut bytes, offset.into())?;
        head.check(&bytes[..read], lsn, None, offset)
            .map_err(damaged)
    }

    /// All records from `from` on, in order, checked against CRC and chain.
    /// Ends where the durable part ends, and goes on from there if asked again.
    pub fn records(&self, from: Lsn) -> Records {
        Records {
            reader: self.clone(),
            next: from.max(Lsn::FIRST),
            cursor: None,
        }
    }

    /// What the present state follows from: the records of the newest
    /// checkpoint, each with the number of the last that it stands for, and
    /// all that was appended since. Blocks on the disk.
    pub fn replay(&self) -> impl Iterator<Item = Result<Record, ReadError>> + use<> {
        let checkpoint = self.checkpoint();
        let covered = checkpoint.map_or(Lsn::NONE, |c| c.upto);
        let kept = checkpoint.map(|archive| self.archived(archive));
        let kept = kept.into_iter().flatten().map(move |found| {
            found.map(|record| Record {
                lsn: covered,
                ..record
            })
        });
        kept.chain(self.records(covered.next()))
    }

    /// The records that histories hold, in order.
    pub(super) fn archived_in(
        &self,
        past: &Past,
    ) -> impl Iterator<Item = Result<Record, ReadError>> + use<> {
        let (reader, past) = (self.clone(), past.clone());
        (0..past.archives.len()).flat_map(move |n| reader.archived(past.archives[n]))
    }

    /// The records of an archive, under the numbers that they have there.
    pub(super) fn archived(
        &self,
        archive: Archive,
    ) -> Box<dyn Iterator<Item = Result<Record, ReadError>> + Send> {
        match archive.read(self.disk.as_ref()) {
            Ok(records) => Box::new(records.map(move |found| {
                found.map_err(|unsound| match unsound {
                    Unsound::Io(error) => ReadError::Io(error),
                    Unsound::Fault(fault) => ReadError::Damaged {
                        file: archive.name(),
                        offset: 0,
                        lsn: archive.first,
                        fault,
                    },
                })
            })),
            Err(error) => Box::new(std::iter::once(Err(ReadError::Io(error)))),
        }
    }

    fn segment_of(&self, lsn: Lsn) -> Result<Segment, ReadError> {
        let known = lsn >= Lsn::FIRST && lsn <= self.durability.borrow().lsn;
        let segment = self.layout.borrow().segment_of(lsn);
        segment.filter(|_| known).ok_or(ReadError::Unknown(lsn))
    }
}

/// Records in order; see [`Reader::records`].
#[derive(Debug)]
pub struct Records {
    reader: Reader,
    next: Lsn,
    cursor: Option<Cursor>,
}

impl Iterator for Records {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next > self.reader.durability.borrow().lsn {
            return None;
        }
        let read = self.read_next();
        if read.is_err() {
            self.cursor = None;
        }
        Some(read)
    }
}

impl Records {
    fn read_next(&mut self) -> Result<Record, ReadError> {
        loop {
            let segment = self.reader.segment_of(self.next)?;
            let mut cursor = match self.cursor.take() {
                Some(cursor) if cursor.walked == Walked::Segment(segment) => cursor,
                _ => Cursor::open(self.reader.disk.as_ref(), segment)?,
            };
            let step = cursor.step()?;
            let (offset, lsn) = (cursor.offset(), cursor.expected());
            let fault = match step {
                Step::Record(record) => {
                    self.cursor = Some(cursor);
                    if record.lsn < self.next {
                        continue;
                    }
                    self.next = record.lsn.next();
                    return Ok(record);
                }
                Step::End => Fault::Missing,
                Step::Bad(fault) => fault,
            };
            return Err(ReadError::Damaged {
                file: segment.name(),
                offset,
                lsn,
                fault,
            });
        }
    }
}

/// What a cursor found in the place of the next record.
#[derive(Debug)]
pub(super) enum Step {
    Record(Record),
    /// Zeros, or the file's end: no record was written here.
    End,
    Bad(Fault),
}

/// Walks one file with a bounded buffer.
#[derive(Debug)]
pub(super) struct Cursor {
    walked: Walked,
    file: Box<dyn DiskFile>,
    /// Bytes of the file from `base` on.
    buffer: Vec<u8>,
    base: u64,
    /// The next record's place in the buffer.
    at: usize,
    lsn: Lsn,
    chain: Chain,
}

/// What a cursor walks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walked {
    /// Every number has its record.
    Segment(Segment),
    /// There are gaps; the file has this length.
    Archive(u64),
}

impl Walked {
    const fn bytes(&self) -> u64 {
        match self {
            Self::Segment(segment) => segment.head.bytes,
            Self::Archive(bytes) => *bytes,
        }
    }
}

impl Cursor {
    pub(super) fn of_archive(file: Box<dyn DiskFile>, bytes: u64) -> Self {
        Self {
            walked: Walked::Archive(bytes),
            file,
            buffer: Vec::new(),
            base: ARCHIVE_HEADER as u64,
            at: 0,
            lsn: Lsn::FIRST,
            chain: Chain::genesis(),
        }
    }

    pub(super) fn open(disk: &dyn Disk, segment: Segment) -> io::Result<Self> {
        Ok(Self {
            file: disk.open(&segment.name())?,
            buffer: Vec::new(),
            base: SEGMENT_HEADER as u64,
            at: 0,
            lsn: segment.head.first,
            chain: segment.head.before,
            walked: Walked::Segment(segment),
        })
    }

    /// Where the next record begins.
    pub(super) fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// The number that the next record must have.
    pub(super) fn expected(&self) -> Lsn {
        self.lsn
    }

    /// The chain up to here.
    pub(super) fn chain(&self) -> Chain {
        self.chain
    }

    /// Reads the next record, or stays where it is.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        let buffered = self.at < self.buffer.len();
        let step = self.parse()?;
        if !buffered || matches!(step, Step::Record(_)) {
            return Ok(step);
        }
        // The buffer may hold what stood here before a write that came since.
        self.forget();
        self.parse()
    }

    fn parse(&mut self) -> io::Result<Step> {
        let head = self.window(RECORD_HEADER)?;
        if head.iter().all(|b| *b == 0) {
            return Ok(Step::End);
        }
        let Some(head) = Head::decode(head) else {
            let fault = if head.len() < RECORD_HEADER {
                Fault::Short
            } else {
                Fault::Shape
            };
            return Ok(Step::Bad(fault));
        };
        let offset = self.offset();
        let bytes = head.record_bytes();
        if offset + bytes as u64 > self.walked.bytes() {
            return Ok(Step::Bad(Fault::Shape));
        }
        let lsn = match self.walked {
            Walked::Segment(_) => self.lsn,
            Walked::Archive(_) => self.lsn.max(head.lsn),
        };
        let chain = self.chain;
        let place = u32::try_from(offset).map_err(io::Error::other)?;
        let record = self.window(bytes)?;
        if record.len() < bytes {
            return Ok(Step::Bad(Fault::Short));
        }
        match head.check(record, lsn, Some(chain), place) {
            Ok(record) => {
                self.at += bytes;
                self.lsn = lsn.next();
                self.chain = record.chain;
                Ok(Step::Record(record))
            }
            Err(fault) => Ok(Step::Bad(fault)),
        }
    }

    fn forget(&mut self) {
        self.base = self.offset();
        self.at = 0;
        self.buffer.clear();
    }

    /// The next `bytes` bytes; fewer only at the end of the file.
    fn window(&mut self, bytes: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.at < bytes {
            self.forget();
            self.buffer.resize(bytes.max(READ_AHEAD), 0);
            let read = self.file.read_at(&mut self.buffer, self.base);
            self.buffer.truncate(*read.as_ref().unwrap_or(&0));
            read?;
        }
        let end = self.buffer.len().min(self.at + bytes);
        Ok(&self.buffer[self.at..end])
    }
}
