//! How records and segments look on disk.
//!
//! A segment begins with a 64-byte header: magic, format version, CRC32C, the
//! segment's full size, the lsn of its first record, and the chain hash before
//! that record. Records follow without gaps; zeros follow the last one. All
//! integers are little-endian.
//!
//! A record is a 52-byte header and a payload:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | payload length |
//! | 4 | CRC32C of everything else in the record |
//! | 8 | lsn |
//! | 2 | zero |
//! | 2 | place in its batch (0 for the first record of one write-and-sync) |
//! | 32 | chain: BLAKE3 of the previous chain, lsn, a zero and payload |
//!
//! The CRC finds damage, the chain finds records that were replaced or left
//! over, and the place in the batch tells what was already synced when the
//! record was written: everything before its batch. That is what lets recovery
//! tell an unfinished write from damage to something durable.

use std::fmt;

/// The most bytes that one payload may have: the largest thing that we write
/// down is an array of sixteen thousand files, about 800 KiB.
pub const RECORD_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of a segment's header.
pub(super) const SEGMENT_HEADER: usize = 64;
/// Bytes of a record's header.
pub(super) const RECORD_HEADER: usize = 52;

const MAGIC: [u8; 8] = *b"SUANLIJ\n";
const VERSION: u32 = 1;

/// The number of a record in the journal: 1 for the first, one more for each.
/// [`Lsn::NONE`] stands for "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// Before the first record.
    pub const NONE: Self = Self(0);
    /// The first record.
    pub const FIRST: Self = Self(1);

    /// The record of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number itself.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The record after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        self.plus(1)
    }

    /// The record that many later.
    #[must_use]
    pub const fn plus(self, records: u64) -> Self {
        Self(self.0.saturating_add(records))
    }

    /// The record that many earlier, or [`Lsn::NONE`].
    #[must_use]
    pub const fn minus(self, records: u64) -> Self {
        Self(self.0.saturating_sub(records))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The hash that a record carries over itself and all records before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chain([u8; 32]);

impl Chain {
    /// The chain before the first record of any journal.
    pub(super) fn genesis() -> Self {
        Self(*blake3::hash(b"suanli journal, version 1").as_bytes())
    }

    pub(super) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn extend(self, lsn: Lsn, payload: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hasher.update(&lsn.0.to_le_bytes());
        hasher.update(&[0]);
        hasher.update(payload);
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({self})")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A record as it was read back, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub lsn: Lsn,
    /// Where it begins in its segment's file.
    pub offset: u32,
    /// The chain hash up to and with this record.
    pub chain: Chain,
    /// What the caller appended.
    pub payload: Vec<u8>,
}

/// Why bytes are not the record that belongs in their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The segment's header is unreadable.
    #[error("unreadable segment header")]
    Header,
    /// A length that does not fit the segment, or impossible header fields.
    #[error("impossible record header")]
    Shape,
    /// The bytes were changed after they were written.
    #[error("checksum mismatch")]
    Checksum,
    /// A sound record of another number.
    #[error("record {0} stands in this place")]
    Order(Lsn),
    /// A sound record that does not continue the records before it.
    #[error("record does not continue the hash chain")]
    Chain,
    /// The file is shorter than it was made.
    #[error("file is cut short")]
    Short,
    /// Records or whole segments that once were here are gone.
    #[error("records are missing")]
    Missing,
    /// Bytes that are not zero after the last record.
    #[error("unfinished write after the last record")]
    Residue,
}

/// A record's header, decoded but not yet trusted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) lsn: Lsn,
    pub(super) in_batch: u16,
    chain: Chain,
    crc: u32,
}

impl Head {
    /// Decodes the first [`RECORD_HEADER`] bytes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; RECORD_HEADER] = bytes.first_chunk()?;
        let length = usize::try_from(u32::from_le_bytes(field(head, 0))).ok()?;
        if length > RECORD_BYTES_MAX || head[16..18] != [0, 0] {
            return None;
        }
        Some(Self {
            length,
            lsn: Lsn(u64::from_le_bytes(field(head, 8))),
            in_batch: u16::from_le_bytes(field(head, 18)),
            chain: Chain(field(head, 20)),
            crc: u32::from_le_bytes(field(head, 4)),
        })
    }

    /// Bytes of the whole record.
    pub(super) const fn record_bytes(&self) -> usize {
        RECORD_HEADER + self.length
    }

    /// Whether `record` (header and payload) carries the checksum it claims.
    pub(super) fn is_sound(&self, record: &[u8]) -> bool {
        record.len() == self.record_bytes() && checksum(record) == self.crc
    }

    /// The last record that was surely synced when this one was written.
    pub(super) fn durable_before(&self) -> Lsn {
        self.lsn.minus(u64::from(self.in_batch) + 1)
    }

    /// The record itself, if it is sound and has the expected number and, where
    /// the chain before it is known, continues it.
    pub(super) fn check(
        &self,
        record: &[u8],
        expected: Lsn,
        before: Option<Chain>,
        offset: u32,
    ) -> Result<Record, Fault> {
        if !self.is_sound(record) {
            return Err(Fault::Checksum);
        }
        if self.lsn != expected {
            return Err(Fault::Order(self.lsn));
        }
        let payload = &record[RECORD_HEADER..];
        if before.is_some_and(|b| b.extend(self.lsn, payload) != self.chain) {
            return Err(Fault::Chain);
        }
        Ok(Record {
            lsn: self.lsn,
            offset,
            chain: self.chain,
            payload: payload.to_vec(),
        })
    }
}

/// Appends one encoded record to `buffer` and returns the chain after it.
/// The caller has checked `payload` against [`RECORD_BYTES_MAX`].
pub(super) fn encode(
    buffer: &mut Vec<u8>,
    lsn: Lsn,
    in_batch: u16,
    before: Chain,
    payload: &[u8],
) -> Chain {
    let chain = before.extend(lsn, payload);
    let start = buffer.len();
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&lsn.0.to_le_bytes());
    buffer.extend_from_slice(&[0; 2]);
    buffer.extend_from_slice(&in_batch.to_le_bytes());
    buffer.extend_from_slice(&chain.0);
    buffer.extend_from_slice(payload);
    let crc = checksum(&buffer[start..]);
    buffer[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    chain
}

/// What stands at the beginning of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHead {
    pub(super) bytes: u64,
    pub(super) first: Lsn,
    pub(super) before: Chain,
}

impl SegmentHead {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.bytes.to_le_bytes());
        out[24..32].copy_from_slice(&self.first.0.to_le_bytes());
        out[32..].copy_from_slice(&self.before.0);
        let crc = segment_checksum(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` for anything but a sound header of this format's version.
    pub(super) fn decode(bytes: &[u8; SEGMENT_HEADER]) -> Option<Self> {
        let crc = u32::from_le_bytes(field(bytes, 12));
        let version = u32::from_le_bytes(field(bytes, 8));
        if bytes[..8] != MAGIC || segment_checksum(bytes) != crc || version != VERSION {
            return None;
        }
        Some(Self {
            bytes: u64::from_le_bytes(field(bytes, 16)),
            first: Lsn(u64::from_le_bytes(field(bytes, 24))),
            before: Chain(field(bytes, 32)),
        })
    }
}

fn checksum(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..4]), &record[8..])
}

fn segment_checksum(header: &[u8; SEGMENT_HEADER]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..])
}

/// The fixed-size field at `at`; callers stay inside the array by construction.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
