//! Archives: files beside the segments that are written once, as a whole.
//!
//! Two kinds stand in for segments that are gone. A **checkpoint** holds the
//! few records from which the state of a moment follows. A **history** holds
//! those of a range of the journal that people may still ask for, under their
//! own numbers, with gaps.
//!
//! ```text
//! header (96 bytes), synced with the rest, before the file gets its name
//! records, as in a segment: each with CRC and the chain of this file
//! ```
//!
//! A file with its name is complete, whatever happened: that is all that there
//! is to crash safety here. Nothing is appended, nothing is preallocated. What
//! records mean, and which ones go into which file, is the caller's part.

use std::io;

use super::{
    disk::{Disk, DiskFile},
    reader::{Cursor, Step},
    record::{Chain, Fault, Lsn, RECORD_HEADER, Record, encode},
};

/// Bytes of an archive's header.
pub(super) const ARCHIVE_HEADER: usize = 96;

const MAGIC: [u8; 8] = *b"SUANLIA\n";
const VERSION: u32 = 1;
const CHECKPOINT: &str = ".checkpoint";
const HISTORY: &str = ".history";
/// What a file is called while it is written.
const WRITING: &str = ".writing";
/// How much is gathered before it is written.
const WRITE_BYTES: usize = 256 * 1024;

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Checkpoint,
    History,
}

/// A complete archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Archive {
    pub(super) used: Use,
    /// The first and the last record of the journal that it stands for.
    pub(super) first: Lsn,
    pub(super) upto: Lsn,
    /// The journal's chain up to and with the last.
    pub(super) chain: Chain,
    pub(super) records: u64,
    /// Length of the file.
    pub(super) bytes: u64,
    /// When it was written, in milliseconds of civil time.
    pub(super) at_ms: u64,
}

impl Archive {
    /// The last record that it stands for.
    pub const fn upto(&self) -> Lsn {
        self.upto
    }

    /// How many records it has.
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// Length of the file.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn holds(&self, lsn: Lsn) -> bool {
        self.first <= lsn && lsn <= self.upto
    }

    pub(super) fn name(&self) -> String {
        let (first, upto) = (self.first.number(), self.upto.number());
        match self.used {
            Use::Checkpoint => format!("{upto:016x}{CHECKPOINT}"),
            Use::History => format!("{first:016x}-{upto:016x}{HISTORY}"),
        }
    }

    fn head(&self) -> [u8; ARCHIVE_HEADER] {
        let mut out = [0; ARCHIVE_HEADER];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16] = match self.used {
            Use::Checkpoint => 0,
            Use::History => 1,
        };
        let numbers = [
            self.first.number(),
            self.upto.number(),
            self.records,
            self.bytes,
            self.at_ms,
        ];
        for (place, number) in out[24..64].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        out[64..].copy_from_slice(self.chain.as_bytes());
        let crc = checksum(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(head: &[u8; ARCHIVE_HEADER]) -> Option<Self> {
        let crc = u32::from_le_bytes(*head[12..].first_chunk()?);
        let version = u32::from_le_bytes(*head[8..].first_chunk()?);
        if head[..8] != MAGIC || version != VERSION || checksum(head) != crc {
            return None;
        }
        let (numbers, []) = head[24..64].as_chunks::<8>() else {
            return None;
        };
        let mut numbers = numbers.iter().map(|number| u64::from_le_bytes(*number));
        let mut next = || numbers.next();
        Some(Self {
            used: match head[16] {
                0 => Use::Checkpoint,
                1 => Use::History,
                _ => return None,
            },
            first: Lsn::new(next()?),
            upto: Lsn::new(next()?),
            records: next()?,
            bytes: next()?,
            at_ms: next()?,
            chain: Chain::from_bytes(*head[64..].first_chunk()?),
        })
    }

    /// Its records, in order.
    pub(super) fn read(&self, disk: &dyn Disk) -> io::Result<ArchiveRecords> {
        Ok(ArchiveRecords {
            cursor: Cursor::of_archive(disk.open(&self.name())?, self.bytes),
            left: self.records,
        })
    }

    /// Whether all its records are there and sound.
    pub(super) fn is_sound(&self, disk: &dyn Disk) -> io::Result<bool> {
        for record in self.read(disk)? {
            match record {
                Ok(_) => {}
                Err(Unsound::Fault(_)) => return Ok(false),
                Err(Unsound::Io(error)) => return Err(error),
            }
        }
        Ok(true)
    }
}

fn checksum(head: &[u8; ARCHIVE_HEADER]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&head[..12]), &head[16..])
}

/// Why an archive can't be read on.
#[derive(Debug)]
pub(super) enum Unsound {
    Fault(Fault),
    Io(io::Error),
}

/// The records of an archive; ends early with what is wrong.
#[derive(Debug)]
pub(super) struct ArchiveRecords {
    cursor: Cursor,
    left: u64,
}

impl Iterator for ArchiveRecords {
    type Item = Result<Record, Unsound>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let read = match self.cursor.step() {
            Ok(Step::Record(record)) => return Some(Ok(record)),
            Ok(Step::End) => Unsound::Fault(Fault::Missing),
            Ok(Step::Bad(fault)) => Unsound::Fault(fault),
            Err(error) => Unsound::Io(error),
        };
        self.left = 0;
        Some(Err(read))
    }
}

/// An archive that is being written.
#[derive(Debug)]
pub(super) struct ArchiveWriter {
    file: Box<dyn DiskFile>,
    name: String,
    chain: Chain,
    buffer: Vec<u8>,
    offset: u64,
    records: u64,
}

impl ArchiveWriter {
    pub(super) fn begin(disk: &dyn Disk, used: Use) -> io::Result<Self> {
        let kind = match used {
            Use::Checkpoint => CHECKPOINT,
            Use::History => HISTORY,
        };
        let name = format!("next{kind}{WRITING}");
        Ok(Self {
            file: disk.create(&name)?,
            name,
            chain: Chain::genesis(),
            buffer: Vec::new(),
            offset: ARCHIVE_HEADER as u64,
            records: 0,
        })
    }

    /// Adds a record; numbers only grow.
    pub(super) fn add(&mut self, lsn: Lsn, payload: &[u8]) -> io::Result<()> {
        self.chain = encode(&mut self.buffer, lsn, 0, self.chain, payload);
        self.records += 1;
        if self.buffer.len() >= WRITE_BYTES {
            self.write()?;
        }
        // Places in files are 32 bits wide, as in segments.
        if self.offset + (self.buffer.len() + RECORD_HEADER) as u64 > u64::from(u32::MAX) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_at(&self.buffer, self.offset)?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes it durable under its name. `archive` says what it is; how long it
    /// has become is filled in.
    pub(super) fn finish(mut self, disk: &dyn Disk, mut archive: Archive) -> io::Result<Archive> {
        self.write()?;
        archive.records = self.records;
        archive.bytes = self.offset;
        self.file.write_at(&archive.head(), 0)?;
        self.file.sync_all()?;
        disk.rename(&self.name, &archive.name())?;
        disk.sync_names()?;
        Ok(archive)
    }
}

/// The archives of a folder: complete checkpoints and histories, oldest first.
/// What was not finished is removed.
pub(super) fn list(disk: &dyn Disk) -> io::Result<(Vec<Archive>, Vec<Archive>)> {
    let (mut checkpoints, mut histories) = (Vec::new(), Vec::new());
    let mut names = disk.list()?;
    names.sort_unstable();
    for name in names {
        if name.ends_with(WRITING) {
            disk.remove(&name)?;
        } else if name.ends_with(CHECKPOINT) || name.ends_with(HISTORY) {
            // One that can't be read is left to be looked at.
            match open(disk, &name)? {
                Some(archive) if archive.used == Use::Checkpoint => checkpoints.push(archive),
                Some(archive) => histories.push(archive),
                None => {}
            }
        }
    }
    Ok((checkpoints, histories))
}

fn open(disk: &dyn Disk, name: &str) -> io::Result<Option<Archive>> {
    let file = disk.open(name)?;
    let mut head = [0; ARCHIVE_HEADER];
    let read = file.read_at(&mut head, 0)?;
    let size = file.size()?;
    Ok(Archive::decode(&head).filter(|archive| {
        read == ARCHIVE_HEADER && archive.bytes == size && archive.name() == name
    }))
}
