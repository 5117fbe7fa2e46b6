//! Reading the journal: by position, by number, or in order from a number on.
//!
//! A [`Reader`] sees what is durable and nothing else. It takes a snapshot of
//! the segment list at each call and opens files as it needs them, so that it
//! shares no lock with the writer and a long archive holds no descriptors.

use std::{io, sync::Arc};

use tokio::sync::watch;

use super::{
    disk::{Disk, DiskFile},
    journal::Durability,
    record::{Chain, Fault, Head, Kind, Lsn, RECORD_HEADER, Record, SEGMENT_HEADER, SegmentHead},
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

/// A complete checkpoint, by the numbers of its begin and end markers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The begin marker.
    pub begin: Lsn,
    /// The end marker.
    pub end: Lsn,
}

impl Checkpoint {
    fn holds(&self, lsn: Lsn) -> bool {
        self.begin < lsn && lsn < self.end
    }
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

/// Which segments and complete checkpoints there are, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    pub(super) segments: Vec<Segment>,
    pub(super) checkpoints: Vec<Checkpoint>,
}

impl Layout {
    pub(super) fn segment_of(&self, lsn: Lsn) -> Option<Segment> {
        let after = self.segments.partition_point(|s| s.head.first <= lsn);
        self.segments.get(after.checked_sub(1)?).copied()
    }

    /// The checkpoint that stands for everything before it, because that was
    /// pruned; `None` while the journal still begins with its first record.
    pub(super) fn base(&self) -> Option<Checkpoint> {
        let first = self.segments.first()?.head.first;
        if first == Lsn::FIRST {
            return None;
        }
        self.checkpoints.first().copied()
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

    /// The newest checkpoint that is complete and durable.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        let durable = self.durability.borrow().lsn;
        let layout = self.layout.borrow();
        let mut newest_first = layout.checkpoints.iter().rev();
        newest_first.find(|c| c.end <= durable).copied()
    }

    /// The checkpoint that replaced a pruned past: see [`Reader::is_current`].
    pub(super) fn base(&self) -> Option<Checkpoint> {
        self.layout.borrow().base()
    }

    /// Whether a record counts towards the present: an entry, unless a prune
    /// replaced it by its copy in the oldest checkpoint. Each thing that was
    /// appended counts exactly once, before and after a prune.
    pub(super) fn is_current(base: Option<Checkpoint>, record: &Record) -> bool {
        match record.kind {
            Kind::Entry => base.is_none_or(|b| record.lsn > b.begin),
            Kind::Copy => base.is_some_and(|b| b.holds(record.lsn)),
            Kind::CheckpointBegin | Kind::CheckpointEnd => false,
        }
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
        let file = self.disk.open(&segment.name())?;
        let damaged = |fault| ReadError::Damaged {
            file: segment.name(),
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

    /// What the present state follows from: the copies in the newest complete
    /// checkpoint and the entries after it began; all entries when there is no
    /// checkpoint. Blocks on the disk.
    pub fn replay_from_checkpoint(&self) -> impl Iterator<Item = Result<Record, ReadError>> {
        let base = self.checkpoint();
        let from = base.map_or_else(|| self.first(), |b| b.begin);
        self.records(from).filter(move |found| {
            found
                .as_ref()
                .map_or(true, |record| Self::is_current(base, record))
        })
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
                Some(cursor) if cursor.segment == segment => cursor,
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

/// Walks one segment with a bounded buffer.
#[derive(Debug)]
pub(super) struct Cursor {
    segment: Segment,
    file: Box<dyn DiskFile>,
    /// Bytes of the file from `base` on.
    buffer: Vec<u8>,
    base: u64,
    /// The next record's place in the buffer.
    at: usize,
    lsn: Lsn,
    chain: Chain,
}

impl Cursor {
    pub(super) fn open(disk: &dyn Disk, segment: Segment) -> io::Result<Self> {
        Ok(Self {
            file: disk.open(&segment.name())?,
            buffer: Vec::new(),
            base: SEGMENT_HEADER as u64,
            at: 0,
            lsn: segment.head.first,
            chain: segment.head.before,
            segment,
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
        if offset + bytes as u64 > self.segment.head.bytes {
            return Ok(Step::Bad(Fault::Shape));
        }
        let (lsn, chain) = (self.lsn, self.chain);
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
