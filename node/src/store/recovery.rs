//! Opening a journal: find the longest sound prefix, and say what follows it.
//!
//! Segments are read in order, each record checked by CRC, number and chain.
//! Where the next record is not what belongs there, one rule decides what it
//! is. It is a **torn tail** (an unfinished write that was never reported
//! durable) if all of this holds:
//!
//! 1. it is in the last segment, whose file has its full length: segments are
//!    written full of zeros and synced before they are used;
//! 2. no sound record further on in the segment was written after the missing
//!    one had been synced: each record tells how far its own batch reaches
//!    back, and what precedes a batch was durable before it was written;
//! 3. the caller knows of no later durable record (the index keeps a mark).
//!
//! Everything else is **damage**. What can't be told apart is damage inside the
//! very last batch, while the index knows nothing of it: it looks like a torn
//! write and is reported as one. Therefore both are reported with position,
//! and the bytes of both are kept in a file of their own before they are cut.
//!
//! Segments may begin after the first record only where a sound checkpoint
//! stands for those before, and only if its chain is the journal's.

use std::{fmt, io, sync::Arc};

use super::{
    archive::{self, Archive},
    disk::{Disk, DiskFile},
    journal::{Config, JournalError, OnDamage, create_segment},
    reader::{Cursor, Layout, Past, Segment, Step},
    record::{Chain, Fault, Head, Lsn, RECORD_HEADER, SEGMENT_HEADER, SegmentHead},
};

const SUFFIX: &str = ".segment";
const TORN: &str = "torn";
const DAMAGED: &str = "damaged";
/// The file in which a segment is made before it gets its name.
pub(super) const PREPARED: &str = "next.prepared";

/// What opening a journal found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The oldest record that is there.
    pub first: Lsn,
    /// The newest sound record; [`Lsn::NONE`] in a new journal.
    pub last: Lsn,
    /// The hash over everything up to `last`.
    pub chain: Chain,
    /// How many sound records were read.
    pub records: u64,
    /// The newest checkpoint.
    pub checkpoint: Option<Archive>,
    /// An unfinished write at the end, which was cut.
    pub torn: Option<Damage>,
    /// Damage to something durable; what followed was set aside.
    pub damage: Option<Damage>,
}

/// Where the journal stops being sound, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment's file name.
    pub file: String,
    /// The first byte in it that is not sound.
    pub offset: u64,
    /// The record that belongs there.
    pub lsn: Lsn,
    /// What is wrong with it.
    pub fault: Fault,
    /// How many bytes follow, at most, that are not in the journal any more.
    pub lost_bytes_estimate: u64,
    /// Files in the journal's folder that keep those bytes.
    pub kept_in: Vec<String>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at byte {}, record {}: {} ({} bytes from there on)",
            self.file, self.offset, self.lsn, self.fault, self.lost_bytes_estimate
        )
    }
}

/// The state in which the writer takes over.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) layout: Layout,
    pub(super) file: Box<dyn DiskFile>,
    pub(super) offset: u64,
    pub(super) recovery: Recovery,
}

/// Reads the journal, cuts what is torn, and sets damage aside if `config`
/// says so. `known` is the newest record that the caller knows to be durable.
pub(super) fn recover(
    disk: &Arc<dyn Disk>,
    config: &Config,
    known: Lsn,
) -> Result<Tail, JournalError> {
    let (checkpoints, histories) = archive::list(disk.as_ref())?;
    let mut scan = Scan::new(newest_sound(disk.as_ref(), &checkpoints)?);
    let names = segment_names(disk.as_ref())?;
    let found = scan.run(disk.as_ref(), &names, known)?;
    let (mut torn, mut damage) = (None, None);
    if let Some(found) = found {
        if found.is_torn {
            torn = Some(set_aside(disk.as_ref(), found, TORN)?);
        } else if config.on_damage == OnDamage::Refuse || scan.lacks_its_beginning() {
            return Err(JournalError::Damaged(Box::new(found.damage)));
        } else {
            damage = Some(set_aside(disk.as_ref(), found, DAMAGED)?);
        }
    }
    if scan.layout.segments.is_empty() {
        let segment = create_segment(disk.as_ref(), config, scan.next, scan.chain)?;
        scan.layout.segments.push(segment);
        scan.offset = SEGMENT_HEADER as u64;
    }
    let first = scan
        .layout
        .segments
        .first()
        .map_or(Lsn::FIRST, |s| s.head.first);
    scan.layout.past = Past::new(histories, first);
    scan.finish(disk.as_ref(), torn, damage)
}

fn newest_sound(disk: &dyn Disk, checkpoints: &[Archive]) -> io::Result<Option<Archive>> {
    for checkpoint in checkpoints.iter().rev() {
        if checkpoint.is_sound(disk)? {
            return Ok(Some(*checkpoint));
        }
    }
    Ok(None)
}

fn segment_names(disk: &dyn Disk) -> io::Result<Vec<String>> {
    let mut names = disk.list()?;
    if names.iter().any(|n| n == PREPARED) {
        disk.remove(PREPARED)?;
    }
    names.retain(|n| n.ends_with(SUFFIX) && n.len() == 16 + SUFFIX.len());
    names.sort_unstable();
    Ok(names)
}

/// Where the scan stopped.
#[derive(Debug)]
struct Found {
    damage: Damage,
    is_torn: bool,
    /// Segment files after the one with the fault.
    later: Vec<String>,
}

#[derive(Debug)]
struct Scan {
    layout: Layout,
    next: Lsn,
    chain: Chain,
    offset: u64,
    records: u64,
}

impl Scan {
    fn new(checkpoint: Option<Archive>) -> Self {
        Self {
            layout: Layout {
                checkpoint,
                ..Layout::default()
            },
            next: Lsn::FIRST,
            chain: Chain::genesis(),
            offset: 0,
            records: 0,
        }
    }

    /// Whether records are gone for which nothing stands.
    fn lacks_its_beginning(&self) -> bool {
        let covered = self.layout.covered();
        let covered = if covered < self.next {
            covered
        } else {
            Lsn::NONE
        };
        let first = self.layout.segments.first();
        first.is_some_and(|first| first.head.first > covered.next())
    }

    /// A checkpoint of another history stands for nothing here.
    fn compare_with_checkpoint(&mut self, upto: Lsn) {
        let chain = self.chain;
        let checkpoint = &mut self.layout.checkpoint;
        *checkpoint = checkpoint.filter(|c| c.upto != upto || c.chain == chain);
    }

    fn run(&mut self, disk: &dyn Disk, names: &[String], known: Lsn) -> io::Result<Option<Found>> {
        for (index, name) in names.iter().enumerate() {
            if let Some((file, offset, fault)) = self.segment(disk, name)? {
                // What precedes a segment is missing: the fault is its
                // predecessor's, and the segment itself is among the later.
                let later = &names[index + usize::from(file == *name)..];
                return self
                    .found(disk, file, offset, fault, known, later)
                    .map(Some);
            }
            let is_last = index + 1 == names.len();
            if is_last && has_residue(disk, name, self.offset)? {
                let (file, fault) = (name.clone(), Fault::Residue);
                return self
                    .found(disk, file, self.offset, fault, known, &[])
                    .map(Some);
            }
        }
        let known = known.max(self.layout.covered());
        if known >= self.next || self.lacks_its_beginning() {
            let file = names.last().cloned().unwrap_or_default();
            return self
                .found(disk, file, self.offset, Fault::Missing, known, &[])
                .map(Some);
        }
        Ok(None)
    }

    /// Reads one segment; a fault comes with its file and offset.
    fn segment(&mut self, disk: &dyn Disk, name: &str) -> io::Result<Option<(String, u64, Fault)>> {
        let file = disk.open(name)?;
        let mut bytes = [0; SEGMENT_HEADER];
        let read = file.read_at(&mut bytes, 0)?;
        let head = SegmentHead::decode(&bytes)
            .filter(|h| read == SEGMENT_HEADER && Segment { head: *h }.name() == name);
        let Some(head) = head else {
            return Ok(Some((name.to_owned(), 0, Fault::Header)));
        };
        match self.layout.segments.last() {
            None => {
                (self.next, self.chain) = (head.first, head.before);
                self.compare_with_checkpoint(head.first.minus(1));
            }
            Some(previous) if head.first > self.next => {
                return Ok(Some((previous.name(), self.offset, Fault::Missing)));
            }
            Some(_) if head.first < self.next || head.before != self.chain => {
                return Ok(Some((name.to_owned(), 0, Fault::Chain)));
            }
            Some(_) => {}
        }
        let segment = Segment { head };
        self.layout.segments.push(segment);
        let fault = self.walk(Cursor::open(disk, segment)?)?;
        let is_short = file.size()? < head.bytes;
        let fault = if is_short { Some(Fault::Short) } else { fault };
        Ok(fault.map(|fault| (name.to_owned(), self.offset, fault)))
    }

    fn walk(&mut self, mut cursor: Cursor) -> io::Result<Option<Fault>> {
        loop {
            let step = cursor.step()?;
            self.offset = cursor.offset();
            match step {
                Step::Record(record) => {
                    self.records += 1;
                    (self.next, self.chain) = (cursor.expected(), cursor.chain());
                    self.compare_with_checkpoint(record.lsn);
                }
                Step::End => return Ok(None),
                Step::Bad(fault) => return Ok(Some(fault)),
            }
        }
    }

    fn found(
        &self,
        disk: &dyn Disk,
        file: String,
        offset: u64,
        fault: Fault,
        known: Lsn,
        later: &[String],
    ) -> io::Result<Found> {
        let rest = if file.is_empty() {
            Vec::new()
        } else {
            rest_of(disk, &file, offset)?
        };
        let extent = rest
            .iter()
            .rposition(|b| *b != 0)
            .map_or(0, |last| last + 1);
        let mut lost = extent as u64;
        for name in later {
            lost += disk.open(name)?.size()?;
        }
        let could_be_torn = match fault {
            Fault::Header | Fault::Short | Fault::Missing => false,
            Fault::Shape | Fault::Checksum | Fault::Order(_) | Fault::Chain | Fault::Residue => {
                later.is_empty() && known < self.next
            }
        };
        Ok(Found {
            is_torn: could_be_torn && !proves_durable(&rest, self.next),
            damage: Damage {
                file,
                offset,
                lsn: self.next,
                fault,
                lost_bytes_estimate: lost,
                kept_in: Vec::new(),
            },
            later: later.to_vec(),
        })
    }

    fn finish(
        mut self,
        disk: &dyn Disk,
        torn: Option<Damage>,
        damage: Option<Damage>,
    ) -> Result<Tail, JournalError> {
        let (Some(oldest), Some(newest)) = (
            self.layout.segments.first().copied(),
            self.layout.segments.last().copied(),
        ) else {
            return Err(JournalError::Io(io::Error::other("no segment")));
        };
        // What was set aside may be what the checkpoint stood for the end of.
        let next = self.next;
        let checkpoint = self.layout.checkpoint.filter(|c| c.upto < next);
        self.layout.checkpoint = checkpoint;
        let recovery = Recovery {
            first: oldest.head.first,
            last: self.next.minus(1),
            chain: self.chain,
            records: self.records,
            checkpoint,
            torn,
            damage,
        };
        Ok(Tail {
            file: disk.open(&newest.name())?,
            offset: self.offset,
            recovery,
            layout: self.layout,
        })
    }
}

/// Whether a sound record in `rest` was written when `missing` had already been
/// synced. Looks at every byte, because damage hides where records begin.
fn proves_durable(rest: &[u8], missing: Lsn) -> bool {
    (0..rest.len().saturating_sub(RECORD_HEADER)).any(|at| {
        let bytes = &rest[at..];
        Head::decode(bytes).is_some_and(|head| {
            head.durable_before() >= missing
                && bytes
                    .get(..head.record_bytes())
                    .is_some_and(|record| head.is_sound(record))
        })
    })
}

/// Keeps what does not belong to the journal in files of its own, and then
/// takes it out of the journal.
fn set_aside(disk: &dyn Disk, found: Found, label: &str) -> io::Result<Damage> {
    let mut damage = found.damage;
    let taken = disk.list()?;
    let mut renamed = found.later;
    let is_whole = damage.offset == 0 && !damage.file.is_empty();
    if is_whole {
        renamed.insert(0, damage.file.clone());
    }
    for name in &renamed {
        let aside = aside_name(&taken, label, damage.lsn, name);
        disk.rename(name, &aside)?;
        damage.kept_in.push(aside);
    }
    if is_whole || damage.file.is_empty() {
        disk.sync_names()?;
        return Ok(damage);
    }
    let mut rest = rest_of(disk, &damage.file, damage.offset)?;
    rest.truncate(
        rest.iter()
            .rposition(|b| *b != 0)
            .map_or(0, |last| last + 1),
    );
    if !rest.is_empty() {
        let aside = aside_name(&taken, label, damage.lsn, &damage.file);
        let copy = disk.create(&aside)?;
        copy.write_at(&rest, 0)?;
        copy.sync_all()?;
        damage.kept_in.push(aside);
    }
    disk.sync_names()?;
    clear(disk, &damage.file, damage.offset)?;
    Ok(damage)
}

fn aside_name(taken: &[String], label: &str, lsn: Lsn, name: &str) -> String {
    let plain = format!("{label}-{:016x}-{name}", lsn.number());
    // Torn writes at one place replace each other; damage is never replaced.
    let mut chosen = plain.clone();
    let mut copy = 1;
    while label == DAMAGED && taken.contains(&chosen) {
        chosen = format!("{plain}.{copy}");
        copy += 1;
    }
    chosen
}

/// Writes zeros from `offset` to the segment's full size.
fn clear(disk: &dyn Disk, name: &str, offset: u64) -> io::Result<()> {
    let file = disk.open(name)?;
    let mut header = [0; SEGMENT_HEADER];
    file.read_at(&mut header, 0)?;
    let bytes = SegmentHead::decode(&header).map_or(0, |h| h.bytes);
    fill_with_zeros(file.as_ref(), offset, bytes)?;
    file.sync_all()
}

/// Writes zeros from `from` up to `to`.
pub(super) fn fill_with_zeros(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    const ZEROS: &[u8] = &[0; 128 * 1024];
    let mut at = from;
    while at < to {
        let left = usize::try_from(to - at).unwrap_or(ZEROS.len());
        let piece = &ZEROS[..left.min(ZEROS.len())];
        file.write_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Whether anything but zeros follows `offset`.
fn has_residue(disk: &dyn Disk, name: &str, offset: u64) -> io::Result<bool> {
    let file = disk.open(name)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut at = offset;
    loop {
        let read = file.read_at(&mut buffer, at)?;
        if buffer[..read].iter().any(|b| *b != 0) {
            return Ok(true);
        }
        if read < buffer.len() {
            return Ok(false);
        }
        at += read as u64;
    }
}

/// All bytes from `offset` on; a segment's at most.
fn rest_of(disk: &dyn Disk, name: &str, offset: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let bytes = usize::try_from(file.size()?.saturating_sub(offset)).map_err(io::Error::other)?;
    let mut rest = vec![0; bytes];
    let read = file.read_at(&mut rest, offset)?;
    rest.truncate(read);
    Ok(rest)
}
