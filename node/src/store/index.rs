//! The index: from the keys that people ask by to records of the journal.
//!
//! It lives in sled, which does not survive a power loss and answers damage
//! with silence or a panic. So it is a cache and nothing more: it carries a
//! mark (the last applied number and chain hash, and a tally over all its
//! entries), is compared with the journal when it is opened, and is made anew
//! from the journal when it is missing, damaged, ahead of the journal, or of
//! another history. What a query returns is read from the journal and checked.
//!
//! When archives take the place of segments, entries are moved to where their
//! records are now, in one pass over all of them.
//!
//! One thread owns it. It applies what became durable, off the commit path, by
//! reading the journal from where it stopped; so it may lag, and catches up by
//! itself, without a queue of records. Queries go to the same thread.
//!
//! ```text
//! 0x00 "mark"                          → format, lsn, chain, past, count, sum
//! 0x01 space key 0x00 0x01 lsn(be)     → offset in the history or segment
//! ```
//! A zero byte in a key is written as `00 ff`, so that keys keep their order
//! and none is mistaken for the beginning of another.

use std::{
    collections::BTreeMap,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    disk::create_private_dir,
    journal::{Chain, Health, Lsn, ReadError, Reader, Record, Records},
    reader::Past,
};

/// The most bytes of one key.
pub const KEY_BYTES_MAX: usize = 64;
/// The most hits of one query.
pub const HITS_MAX: usize = 1000;

/// Entries of this layout; another one is made anew.
const FORMAT: u32 = 2;
/// Records applied in one sled batch.
const BATCH: usize = 256;
/// sled's page cache: an idle node must stay small.
const CACHE_BYTES: u64 = 2 * 1024 * 1024;
/// sled writes by itself this often; losing the rest costs a short catch-up.
const FLUSH_MS: u64 = 1000;
/// How long records gather before they are applied. A query waits as long at
/// most, and applies what it needs itself.
const LINGER: Duration = Duration::from_millis(20);
/// What sled says of a lock that it did not get.
const SLED_LOCKED: &str = "could not acquire lock";
/// How long its own threads may keep one.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// How often to look.
const LOCK_LOOK: Duration = Duration::from_millis(5);
/// Queries that may wait.
const QUEUE: usize = 64;

/// A key under which a record can be found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    space: u8,
    bytes: Vec<u8>,
}

impl Key {
    /// A key in one of the caller's spaces (one per kind of question);
    /// `None` if it has more than [`KEY_BYTES_MAX`] bytes.
    pub fn new(space: u8, bytes: impl Into<Vec<u8>>) -> Option<Self> {
        let bytes = bytes.into();
        (bytes.len() <= KEY_BYTES_MAX).then_some(Self { space, bytes })
    }

    /// The space.
    pub const fn space(&self) -> u8 {
        self.space
    }

    /// The key's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Names the keys of a record. It sees payloads of entries and copies, runs on
/// the index's thread, and gives the same answer for the same bytes always.
pub trait Indexer: Fn(&[u8]) -> Vec<Key> + Send + 'static {}

impl<F: Fn(&[u8]) -> Vec<Key> + Send + 'static> Indexer for F {}

/// Which keys a query asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matching {
    /// Exactly this key: hits are in the journal's order.
    Exact(Vec<u8>),
    /// All keys that begin so: hits are ordered by key, then as in the journal.
    Prefix(Vec<u8>),
}

/// In which direction hits are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Ascending.
    OldestFirst,
    /// Descending.
    NewestFirst,
}

/// A question to the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The space of the keys.
    pub space: u8,
    /// Which keys.
    pub keys: Matching,
    /// The direction.
    pub order: Order,
    /// Go on after this hit of an earlier answer.
    pub after: Option<Hit>,
    /// The most hits wanted, up to [`HITS_MAX`].
    pub limit: usize,
}

/// A key and a record that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The key's bytes.
    pub key: Vec<u8>,
    /// The record's number.
    pub lsn: Lsn,
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// Too many queries wait.
    #[error("the index is busy; try again")]
    Busy,
    /// The index could not be made; the journal is not affected.
    #[error("the index is unavailable: {0}; free some space on the disk, then ask again")]
    Unavailable(String),
    /// A record that the index named could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store was closed.
    #[error("the store is closed")]
    Stopped,
}

/// What opening the index found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexStart {
    /// It agrees with the journal up to this record, and goes on from there.
    Current(Lsn),
    /// It is made anew.
    Rebuilt(Distrust),
}

/// Why an index is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distrust {
    /// There was none.
    Missing,
    /// sled reports damage, panics, or the tally does not add up.
    Damaged,
    /// It was made by another version of the keys or of this layout.
    OtherFormat,
    /// It has applied records that the journal does not hold.
    Ahead,
    /// Its chain hash is not the journal's.
    OtherHistory,
}

/// The handle to the index's thread.
#[derive(Debug, Clone)]
pub(super) struct Index {
    requests: mpsc::Sender<Request>,
    applied: watch::Receiver<Lsn>,
}

#[derive(Debug)]
pub(super) enum Request {
    /// Something changed in the journal.
    Wake,
    Find(Query, oneshot::Sender<Result<Vec<Hit>, FindError>>),
    Fetch(Query, oneshot::Sender<Result<Vec<Record>, FindError>>),
}

/// Wakes the index after the journal has moved or ended.
#[derive(Debug)]
pub(super) struct Waker(mpsc::Sender<Request>);

impl Waker {
    pub(super) fn wake(&self) {
        // Where something waits, or the queue is full, the index is about to
        // look anyway.
        if self.0.capacity() == QUEUE {
            let _ = self.0.try_send(Request::Wake);
        }
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        self.wake();
    }
}

/// The index's place before its thread runs.
#[derive(Debug)]
pub(super) struct Opened {
    dir: PathBuf,
    version: u32,
    db: Result<Db, Distrust>,
    requests: mpsc::Sender<Request>,
    queue: mpsc::Receiver<Request>,
}

impl Opened {
    /// Opens what is in `dir`; `version` is the caller's, of its keys.
    pub(super) fn open(dir: &Path, version: u32) -> io::Result<Self> {
        create_private_dir(dir)?;
        let (requests, queue) = mpsc::channel(QUEUE);
        Ok(Self {
            dir: dir.to_path_buf(),
            version,
            db: open_newest(dir, version),
            requests,
            queue,
        })
    }

    /// The newest record that it has applied, which was durable by then.
    pub(super) fn known(&self) -> Lsn {
        self.db.as_ref().map_or(Lsn::NONE, |db| db.mark.lsn)
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(self.requests.clone())
    }

    /// Compares with the journal and starts the thread, which holds `lease`
    /// until it ends: soon after the journal's writer does.
    pub(super) fn start<L: Send + 'static>(
        self,
        reader: Reader,
        indexer: Box<dyn Indexer>,
        lease: L,
    ) -> io::Result<(Index, IndexStart)> {
        let checked = self.db.and_then(|db| db.compare(&reader));
        let start = match &checked {
            Ok(db) => IndexStart::Current(db.mark.lsn),
            Err(why) => IndexStart::Rebuilt(*why),
        };
        let (applied, applied_seen) = watch::channel(Lsn::NONE);
        let owner = Owner {
            dir: self.dir,
            version: self.version,
            db: checked.ok(),
            past: Past::default(),
            records: None,
            reader,
            indexer,
            applied,
        };
        let index = Index {
            requests: self.requests,
            applied: applied_seen,
        };
        let queue = self.queue;
        thread::Builder::new()
            .name("index".to_owned())
            .spawn(move || {
                owner.run(queue);
                drop(lease);
            })?;
        Ok((index, start))
    }
}

impl Index {
    pub(super) async fn find(&self, query: Query) -> Result<Vec<Hit>, FindError> {
        self.ask(|reply| Request::Find(query, reply)).await
    }

    pub(super) async fn fetch(&self, query: Query) -> Result<Vec<Record>, FindError> {
        self.ask(|reply| Request::Fetch(query, reply)).await
    }

    pub(super) fn applied(&self) -> watch::Receiver<Lsn> {
        self.applied.clone()
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, FindError>>) -> Request,
    ) -> Result<T, FindError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .try_send(request(reply))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => FindError::Busy,
                mpsc::error::TrySendError::Closed(_) => FindError::Stopped,
            })?;
        answer.await.map_err(|_| FindError::Stopped)?
    }
}

/// The thread's state.
struct Owner {
    dir: PathBuf,
    version: u32,
    db: Option<Db>,
    /// Where the records of `db` are, as far as it has followed.
    past: Past,
    records: Option<Records>,
    reader: Reader,
    indexer: Box<dyn Indexer>,
    applied: watch::Sender<Lsn>,
}

impl Owner {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut is_up = self.bring_up_to_date().is_ok();
        while let Some(request) = queue.blocking_recv() {
            if matches!(request, Request::Wake) {
                // Records come in bursts, some for each step of a job; taken
                // together they cost a fraction of the machine's time.
                thread::sleep(LINGER);
            }
            // One that failed is tried again when somebody asks, not each time
            // that the journal moves.
            let ready = if is_up || !matches!(request, Request::Wake) {
                self.bring_up_to_date()
            } else {
                Ok(())
            };
            is_up = self.db.is_some() && ready.is_ok();
            match request {
                Request::Wake => {}
                // Nobody waits for an answer any more: nothing to do.
                Request::Find(query, reply) => drop(reply.send(ready.and_then(|()| {
                    self.find(&query)
                        .map(|found| found.into_iter().map(|(hit, _)| hit).collect())
                }))),
                Request::Fetch(query, reply) => {
                    drop(reply.send(ready.and_then(|()| self.fetch(&query))));
                }
            }
            let health = self.reader.durability().health;
            if matches!(health, Health::Closed | Health::Failed(_)) {
                break;
            }
        }
        // What became durable last is found by the next start if not here.
        let _ = self.bring_up_to_date();
        if let Some(db) = self.db.take() {
            let _ = guarded(|| db.tree.flush().map(drop));
            discard(db);
        }
    }

    /// Applies what is durable; makes the index anew where it fails.
    fn bring_up_to_date(&mut self) -> Result<(), FindError> {
        loop {
            let past = self.reader.past();
            let done = match self.follow(&past).and_then(|()| self.catch_up()) {
                Err(FindError::Busy | FindError::Unavailable(_) | FindError::Stopped) => {
                    self.make_anew(&past)
                }
                // Done, or the journal's trouble: another index would meet it too.
                done @ (Ok(()) | Err(FindError::Read(_))) => done,
            };
            // What could not be read may have gone into an archive meanwhile.
            if done.is_ok() || self.reader.past() == past {
                return done;
            }
        }
    }

    /// Moves entries to where archives hold their records now.
    fn follow(&mut self, past: &Past) -> Result<(), FindError> {
        let unavailable = |why: &str| FindError::Unavailable(why.to_owned());
        let db = self
            .db
            .as_mut()
            .ok_or_else(|| unavailable("it is not open"))?;
        if !db.mark.is_of(past) {
            if db.mark.lsn < past.upto() {
                return Err(unavailable("it is behind the archives"));
            }
            let moved = moved(&self.reader, db.mark.past.1, past)?;
            guarded(|| db.relocate(past, &moved)).map_err(FindError::Unavailable)?;
        }
        self.past = past.clone();
        Ok(())
    }

    fn make_anew(&mut self, past: &Past) -> Result<(), FindError> {
        if let Some(db) = self.db.take() {
            discard(db);
        }
        self.records = None;
        let generation = generations(&self.dir)?.last().map_or(0, |last| last + 1);
        for old in generations(&self.dir)? {
            // A cache that can't be removed now is tried again next time.
            let _ = fs::remove_dir_all(self.dir.join(generation_name(old)));
        }
        let tree = open_sled(&self.dir.join(generation_name(generation)))
            .map_err(FindError::Unavailable)?;
        let mut db = Db {
            tree,
            mark: Mark::fresh(self.version, past),
        };
        let mut archived = self.reader.archived_in(past);
        while db.apply(&mut archived, &self.indexer)? == BATCH {}
        db.mark.lsn = past.goes_on.minus(1);
        if let Some(newest) = past.archives.last() {
            db.mark.chain = newest.chain;
        }
        self.db = Some(db);
        self.past = past.clone();
        self.catch_up()
    }

    fn catch_up(&mut self) -> Result<(), FindError> {
        // After an error the records taken are not applied: begin again.
        self.apply().inspect_err(|_| self.records = None)
    }

    fn apply(&mut self) -> Result<(), FindError> {
        let Some(db) = self.db.as_mut() else {
            return Err(FindError::Unavailable("it is not open".to_owned()));
        };
        let from = db.mark.lsn.next();
        let records = self
            .records
            .get_or_insert_with(|| self.reader.records(from));
        while db.apply(records, &self.indexer)? == BATCH {}
        self.applied.send_if_modified(|seen| {
            let moved = *seen != db.mark.lsn;
            *seen = db.mark.lsn;
            moved
        });
        Ok(())
    }

    /// Hits with their offsets; a failing sled is made anew once.
    fn find(&mut self, query: &Query) -> Result<Vec<(Hit, u32)>, FindError> {
        if let Some(Ok(found)) = self.db.as_ref().map(|db| guarded(|| db.find(query))) {
            return Ok(found);
        }
        self.db = None;
        self.bring_up_to_date()?;
        let db = self.db.as_ref();
        let db = db.ok_or_else(|| FindError::Unavailable("it is not open".to_owned()))?;
        guarded(|| db.find(query)).map_err(FindError::Unavailable)
    }

    fn fetch(&mut self, query: &Query) -> Result<Vec<Record>, FindError> {
        match self.find_and_read(query) {
            // The files may have changed since: then it looks where they are
            // now. Else a wrong offset is the index's fault, a bad record the
            // journal's, and the second reading tells.
            Err(FindError::Read(error)) => {
                let has_moved = self.past != self.reader.past();
                match error {
                    ReadError::Damaged { .. } | ReadError::Unknown(_) if !has_moved => {
                        self.db = None;
                    }
                    ReadError::Io(_) if !has_moved => return Err(error.into()),
                    ReadError::Damaged { .. } | ReadError::Unknown(_) | ReadError::Io(_) => {}
                }
                self.bring_up_to_date()?;
                self.find_and_read(query)
            }
            found => found,
        }
    }

    fn find_and_read(&mut self, query: &Query) -> Result<Vec<Record>, FindError> {
        let hits = self.find(query)?;
        let read = |(hit, offset): &(Hit, u32)| self.reader.read_with(&self.past, hit.lsn, *offset);
        Ok(hits.iter().map(read).collect::<Result<_, _>>()?)
    }
}

/// Where records after `followed` are in the histories that stand for them.
fn moved(reader: &Reader, followed: Lsn, past: &Past) -> Result<BTreeMap<Lsn, u32>, FindError> {
    let mut moved = BTreeMap::new();
    for record in reader.archived_in(past) {
        let record = record?;
        if record.lsn > followed {
            moved.insert(record.lsn, record.offset);
        }
    }
    Ok(moved)
}

/// Adds a record's entries to the batch and to the mark's tally.
fn add(
    batch: &mut sled::Batch,
    mark: &mut Mark,
    record: &Record,
    indexer: &dyn Indexer,
) -> Result<(), FindError> {
    let mut keys = guarded(|| Ok(indexer(&record.payload))).map_err(FindError::Unavailable)?;
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let mut entry = escaped(key.space, &key.bytes);
        entry.extend_from_slice(&END);
        entry.extend_from_slice(&record.lsn.number().to_be_bytes());
        let offset = record.offset.to_be_bytes();
        mark.tally(&entry, &offset);
        batch.insert(entry, &offset);
    }
    Ok(())
}

/// An open sled with the mark that it carries.
#[derive(Debug)]
struct Db {
    tree: sled::Db,
    mark: Mark,
}

impl Db {
    /// Applies some records; gives how many that were.
    fn apply(
        &mut self,
        records: &mut dyn Iterator<Item = Result<Record, ReadError>>,
        indexer: &dyn Indexer,
    ) -> Result<usize, FindError> {
        let mut batch = sled::Batch::default();
        let mut mark = self.mark;
        let mut taken = 0;
        for record in records.take(BATCH) {
            let record = record?;
            add(&mut batch, &mut mark, &record, indexer)?;
            (mark.lsn, mark.chain) = (record.lsn, record.chain);
            taken += 1;
        }
        if taken > 0 {
            batch.insert(MARK_KEY, mark.encode());
            guarded(|| self.tree.apply_batch(batch)).map_err(FindError::Unavailable)?;
            self.mark = mark;
        }
        Ok(taken)
    }

    /// Gives the entries of archived records their new places, and removes
    /// those of records that are in no archive. If it is interrupted, the tally
    /// does not add up, and the index is made anew.
    fn relocate(&mut self, past: &Past, moved: &BTreeMap<Lsn, u32>) -> sled::Result<()> {
        let mut mark = Mark {
            past: span(past),
            count: 0,
            sum: 0,
            ..self.mark
        };
        let followed = self.mark.past.1;
        for entry in self.tree.scan_prefix([ENTRIES]) {
            let (key, value) = entry?;
            let lsn = key.split_last_chunk::<8>();
            let lsn = lsn.map_or(Lsn::NONE, |(_, lsn)| Lsn::new(u64::from_be_bytes(*lsn)));
            if lsn < past.first() || lsn > followed && lsn <= past.upto() {
                let Some(offset) = moved.get(&lsn).map(|offset| offset.to_be_bytes()) else {
                    self.tree.remove(key)?;
                    continue;
                };
                mark.tally(&key, &offset);
                self.tree.insert(key, &offset)?;
            } else {
                mark.tally(&key, &value);
            }
        }
        self.tree.insert(MARK_KEY, mark.encode())?;
        self.mark = mark;
        Ok(())
    }

    /// Believes the mark only as far as the journal says the same.
    fn compare(self, reader: &Reader) -> Result<Self, Distrust> {
        let lsn = self.mark.lsn;
        if lsn == Lsn::NONE {
            return Ok(self);
        }
        if lsn > reader.durability().lsn {
            return Err(Distrust::Ahead);
        }
        match reader.read(lsn) {
            Ok(record) if record.chain == self.mark.chain => Ok(self),
            Ok(_) | Err(_) => Err(Distrust::OtherHistory),
        }
    }

    fn find(&self, query: &Query) -> sled::Result<Vec<(Hit, u32)>> {
        let mut from = match &query.keys {
            Matching::Exact(bytes) | Matching::Prefix(bytes) => escaped(query.space, bytes),
        };
        if let Matching::Exact(_) = query.keys {
            from.extend_from_slice(&END);
        }
        let mut to = from.clone();
        to.resize(ENTRY_BYTES_MAX, 0xff);
        if let Some(after) = &query.after {
            let mut cursor = escaped(query.space, &after.key);
            cursor.extend_from_slice(&END);
            let lsn = match query.order {
                Order::OldestFirst => after.lsn.next(),
                Order::NewestFirst => after.lsn.minus(1),
            };
            cursor.extend_from_slice(&lsn.number().to_be_bytes());
            match query.order {
                Order::OldestFirst => from = from.max(cursor),
                Order::NewestFirst => to = to.min(cursor),
            }
        }
        if from > to {
            return Ok(Vec::new());
        }
        let range = self.tree.range(from..=to);
        let limit = query.limit.min(HITS_MAX);
        match query.order {
            Order::OldestFirst => range.take(limit).map(parsed).collect(),
            Order::NewestFirst => range.rev().take(limit).map(parsed).collect(),
        }
    }
}

const MARK_KEY: &[u8] = b"\0mark";
const MARK_BYTES: usize = 92;
const ENTRIES: u8 = 1;
/// Ends a key: sorts before every byte that could continue it.
const END: [u8; 2] = [0x00, 0x01];
/// Longer than any entry's key.
const ENTRY_BYTES_MAX: usize = 2 + 2 * KEY_BYTES_MAX + 2 + 8 + 1;

/// Tag, space and key, with zeros escaped and without the end.
fn escaped(space: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![ENTRIES, space];
    for byte in bytes {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
    out
}

fn parsed(entry: sled::Result<(sled::IVec, sled::IVec)>) -> sled::Result<(Hit, u32)> {
    let (key, value) = entry?;
    let unreadable = || sled::Error::ReportableBug("unreadable index entry".to_owned());
    let offset = value.as_ref().try_into().map_err(|_| unreadable())?;
    let (body, lsn) = key.split_last_chunk::<8>().ok_or_else(unreadable)?;
    let body = body.strip_suffix(&END).ok_or_else(unreadable)?;
    let mut bytes = Vec::with_capacity(body.len());
    let mut rest = body.get(2..).ok_or_else(unreadable)?.iter();
    while let Some(byte) = rest.next() {
        bytes.push(*byte);
        if *byte == 0 {
            rest.next();
        }
    }
    let hit = Hit {
        key: bytes,
        lsn: Lsn::new(u64::from_be_bytes(*lsn)),
    };
    Ok((hit, u32::from_be_bytes(offset)))
}

/// What the index says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    format: u32,
    version: u32,
    lsn: Lsn,
    chain: Chain,
    /// The first and the last record that histories stand for.
    past: (Lsn, Lsn),
    /// How many entries there are, and a sum over hashes of them: sled can
    /// lose some without noticing.
    count: u64,
    sum: u64,
}

impl Mark {
    fn fresh(version: u32, past: &Past) -> Self {
        Self {
            format: FORMAT,
            version,
            lsn: Lsn::NONE,
            chain: Chain::from_bytes([0; 32]),
            past: span(past),
            count: 0,
            sum: 0,
        }
    }

    fn is_of(&self, past: &Past) -> bool {
        self.past == span(past)
    }

    fn tally(&mut self, key: &[u8], value: &[u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(key);
        hasher.update(value);
        let hash = hasher.finalize();
        let head = hash.as_bytes().first_chunk().copied().unwrap_or_default();
        self.count += 1;
        self.sum = self.sum.wrapping_add(u64::from_le_bytes(head));
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MARK_BYTES);
        out.extend_from_slice(&self.format.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(self.chain.as_bytes());
        let numbers = [
            self.lsn.number(),
            self.past.0.number(),
            self.past.1.number(),
            self.count,
            self.sum,
        ];
        for number in numbers {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (format, rest) = body.split_first_chunk::<4>()?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (chain, rest) = rest.split_first_chunk::<32>()?;
        let (numbers, []) = rest.as_chunks::<8>() else {
            return None;
        };
        let [lsn, begin, end, count, sum] = numbers else {
            return None;
        };
        Some(Self {
            format: u32::from_le_bytes(*format),
            version: u32::from_le_bytes(*version),
            lsn: Lsn::new(u64::from_le_bytes(*lsn)),
            chain: Chain::from_bytes(*chain),
            past: (
                Lsn::new(u64::from_le_bytes(*begin)),
                Lsn::new(u64::from_le_bytes(*end)),
            ),
            count: u64::from_le_bytes(*count),
            sum: u64::from_le_bytes(*sum),
        })
    }
}

fn span(past: &Past) -> (Lsn, Lsn) {
    (past.first(), past.upto())
}

fn open_newest(dir: &Path, version: u32) -> Result<Db, Distrust> {
    let newest = generations(dir).map_err(|_| Distrust::Damaged)?;
    let newest = newest.last().ok_or(Distrust::Missing)?;
    let tree = open_sled(&dir.join(generation_name(*newest))).map_err(|_| Distrust::Damaged)?;
    let checked = guarded(|| believed(&tree, version));
    match checked {
        Ok(Ok(mark)) => Ok(Db { tree, mark }),
        Ok(Err(why)) => Err(why),
        Err(_) => Err(Distrust::Damaged),
    }
}

/// The mark, if the tally over all entries agrees with it.
fn believed(tree: &sled::Db, version: u32) -> sled::Result<Result<Mark, Distrust>> {
    let Some(bytes) = tree.get(MARK_KEY)? else {
        return Ok(Err(Distrust::Damaged));
    };
    let Some(mark) = Mark::decode(&bytes) else {
        return Ok(Err(Distrust::Damaged));
    };
    if (mark.format, mark.version) != (FORMAT, version) {
        return Ok(Err(Distrust::OtherFormat));
    }
    let mut seen = Mark {
        count: 0,
        sum: 0,
        ..mark
    };
    for entry in tree.scan_prefix([ENTRIES]) {
        let (key, value) = entry?;
        seen.tally(&key, &value);
    }
    Ok(if seen == mark {
        Ok(mark)
    } else {
        Err(Distrust::Damaged)
    })
}

fn open_sled(dir: &Path) -> Result<sled::Db, String> {
    create_private_dir(dir).map_err(|error| error.to_string())?;
    let open = || {
        guarded(|| {
            sled::Config::new()
                .path(dir)
                .mode(sled::Mode::LowSpace)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(Some(FLUSH_MS))
                .open()
        })
    };
    // We hold the data directory, so a lock in it is our own of a moment ago:
    // sled's threads let go of it a little after the last handle is dropped.
    let begin = Instant::now();
    loop {
        match open() {
            Err(error) if error.contains(SLED_LOCKED) && begin.elapsed() < LOCK_WAIT => {
                thread::sleep(LOCK_LOOK);
            }
            opened => return opened,
        }
    }
}

/// Runs what may panic instead of returning an error, as sled does on damage.
fn guarded<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("it panicked".to_owned()),
    }
}

/// Lets go of a sled that may panic even then.
fn discard(db: Db) {
    let _ = guarded(|| {
        drop(db);
        Ok(())
    });
}

fn generation_name(generation: u64) -> String {
    format!("{generation:08}")
}

/// The generations in `dir`, oldest first.
fn generations(dir: &Path) -> Result<Vec<u64>, FindError> {
    let unavailable = |error: io::Error| FindError::Unavailable(error.to_string());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(unavailable)? {
        let name = entry.map_err(unavailable)?.file_name();
        found.extend(name.to_str().and_then(|n| n.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}
