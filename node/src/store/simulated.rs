//! A disk in memory that forgets what was not synced, for tests.
//!
//! Each operation that changes something is counted, and the power can fail at
//! any of them. After that, every sector of every unsynced write may or may not
//! have reached the platter, and of the changed names some first part did.
//! The state is behind a lock because a test and the journal's threads look at
//! it at once; nothing outside tests does this.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use super::{
    compaction::Compaction,
    disk::{Disk, DiskFile},
    journal::{AppendError, Config, Failure, Health, Journal, JournalError, Lsn, Recovery},
};

const SECTOR: usize = 512;

#[derive(Debug, Clone, Default)]
struct Simulated(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    /// Changes of names since they were synced.
    renames: Vec<NameChange>,
    files: Vec<Bytes>,
    operations: u64,
    fails_at: Option<u64>,
    capacity: Option<usize>,
    syncs_fail: bool,
    /// Each sync takes longer than a caller waits.
    slow: bool,
}

#[derive(Debug, Clone)]
enum NameChange {
    Add(String, usize),
    Move(String, String),
    Remove(String),
}

#[derive(Debug, Default)]
struct Bytes {
    synced: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug)]
struct Handle {
    disk: Simulated,
    file: usize,
}

impl Simulated {
    fn failing_at(operation: u64) -> Self {
        let disk = Self::default();
        disk.state().fails_at = Some(operation);
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.operations += 1;
        state.powered()?;
        Ok(state)
    }

    /// What the disk holds after the power failed now.
    fn after_power_loss(&self, seed: u64) -> Self {
        let state = self.state();
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut names = state.synced_names.clone();
        let kept = dice.below(state.renames.len() + 1);
        for change in &state.renames[..kept] {
            change.apply(&mut names);
        }
        let files = state
            .files
            .iter()
            .map(|file| {
                let bytes = file.after_power_loss(&mut dice);
                Bytes {
                    synced: bytes.clone(),
                    now: bytes,
                    unsynced: Vec::new(),
                }
            })
            .collect();
        let survived = State {
            synced_names: names.clone(),
            names,
            files,
            ..State::default()
        };
        Self(Arc::new(Mutex::new(survived)))
    }
}

impl State {
    fn powered(&self) -> io::Result<()> {
        if self.fails_at.is_some_and(|at| self.operations >= at) {
            return Err(io::Error::other("the power is gone"));
        }
        Ok(())
    }

    fn rename(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.renames.push(change);
    }

    /// Bytes that are left, if there is a bound.
    fn room(&self) -> Option<usize> {
        let used: usize = self
            .names
            .values()
            .map(|id| self.files[*id].now.len())
            .sum();
        Some(self.capacity?.saturating_sub(used))
    }

    fn has_room(&self, more: usize) -> bool {
        // What takes no more room fits, also on a disk that was filled meanwhile.
        more == 0 || self.room().is_none_or(|room| more <= room)
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Add(name, file) => {
                names.insert(name.clone(), *file);
            }
            Self::Move(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

impl Bytes {
    fn after_power_loss(&self, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        for (offset, written) in &self.unsynced {
            // Sectors are aligned in the file, not in the write.
            let mut at = 0;
            while at < written.len() {
                let end = written.len().min(at + SECTOR - (offset + at) % SECTOR);
                if dice.below(2) == 0 {
                    place(&mut bytes, &written[at..end], offset + at);
                }
                at = end;
            }
        }
        bytes
    }
}

fn place(bytes: &mut Vec<u8>, written: &[u8], offset: usize) {
    let end = offset + written.len();
    bytes.resize(bytes.len().max(end), 0);
    bytes[offset..end].copy_from_slice(written);
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 16) % bound as u64).unwrap()
    }
}

impl Disk for Simulated {
    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.powered()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let state = self.state();
        state.powered()?;
        let file = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let disk = self.clone();
        Ok(Box::new(Handle { disk, file }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.change()?;
        let file = state.files.len();
        state.files.push(Bytes::default());
        state.rename(NameChange::Add(name.to_owned(), file));
        let disk = self.clone();
        Ok(Box::new(Handle { disk, file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.change()?;
        state.rename(NameChange::Move(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.change()?;
        state.rename(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn room(&self) -> io::Result<u64> {
        let state = self.state();
        state.powered()?;
        Ok(state.room().map_or(u64::MAX, |room| room as u64))
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.change()?;
        state.synced_names = state.names.clone();
        state.renames.clear();
        Ok(())
    }
}

impl DiskFile for Handle {
    fn size(&self) -> io::Result<u64> {
        let state = self.disk.state();
        state.powered()?;
        Ok(state.files[self.file].now.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.state();
        state.powered()?;
        let bytes = &state.files[self.file].now;
        let from = bytes.len().min(usize::try_from(offset).unwrap());
        let read = buffer.len().min(bytes.len() - from);
        buffer[..read].copy_from_slice(&bytes[from..from + read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let mut state = self.disk.state();
        let grows = (offset + bytes.len()).saturating_sub(state.files[self.file].now.len());
        if !state.has_room(grows) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // A write that the power loss interrupts may have left a part.
        let file = &mut state.files[self.file];
        place(&mut file.now, bytes, offset);
        file.unsynced.push((offset, bytes.to_vec()));
        drop(state);
        self.disk.change().map(drop)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.change()?;
        if state.slow {
            thread::sleep(Duration::from_millis(3));
        }
        if state.syncs_fail {
            return Err(io::Error::other("input/output error"));
        }
        let file = &mut state.files[self.file];
        file.synced = file.now.clone();
        file.unsynced.clear();
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }
}

fn small() -> Config {
    Config {
        segment_bytes: 4096,
        queue_records: 16,
        batch_bytes: 1500,
        retry_after: Duration::from_millis(1),
        ..Config::default()
    }
}

fn open(disk: &Simulated) -> Result<(Journal, Recovery), JournalError> {
    Journal::open(Arc::new(disk.clone()), &small(), Lsn::NONE, Box::new(|| {}))
}

/// Different lengths, and no zeros that could pass for nothing.
fn payload(lsn: Lsn) -> Vec<u8> {
    let number = usize::try_from(lsn.number()).unwrap();
    let text = format!("<{number}>");
    text.repeat(1 + number * 7 % 90).into_bytes()
}

/// Waits until the writer has ended, and says what it reported durable.
async fn ended(journal: &Journal) -> Lsn {
    journal.close().await;
    let mut seen = journal.durability();
    let last = seen
        .wait_for(|d| matches!(d.health, Health::Closed | Health::Failed(_)))
        .await;
    last.map(|d| d.lsn).unwrap()
}

/// Records at which the journal is compacted.
const COMPACTED: [u64; 2] = [30, 45];

/// A state that follows from records: a sum, and what was added last.
fn state(records: impl Iterator<Item = Vec<u8>>) -> (usize, Vec<u8>) {
    records.fold((0, Vec::new()), |(sum, _), payload| {
        let kept = payload.strip_prefix(b"sum ").map(<[u8]>::len);
        (sum + kept.unwrap_or(payload.len()), payload)
    })
}

fn replayed(journal: &Journal) -> (usize, Vec<u8>) {
    state(
        journal
            .reader()
            .replay()
            .map(|found| found.unwrap().payload),
    )
}

/// Every second record is history; the state is one record as long as the sum.
async fn compact(journal: &Journal) -> io::Result<()> {
    let mut compaction = Compaction::begin(journal.clone(), None, 0);
    let records: Result<Vec<_>, _> = compaction.records().collect();
    let records = records.map_err(io::Error::other)?;
    let (sum, last) = state(records.into_iter().map(|record| record.payload));
    let odd = |lsn: Lsn| !lsn.number().is_multiple_of(2);
    compaction
        .write_history(|record| odd(record.lsn).then_some(record.payload))
        .map_err(io::Error::other)?;
    let mut kept = b"sum ".to_vec();
    kept.resize(4 + sum - last.len(), b'+');
    compaction
        .write_checkpoint([kept, last].into_iter())
        .map_err(io::Error::other)?;
    compaction.finish(0).await.map_err(io::Error::other)?;
    Ok(())
}

/// Appends up to `until`, with two compactions on the way; returns what was
/// reported durable. The power may fail anywhere.
async fn work(journal: &Journal, from: Lsn, until: Lsn) -> Lsn {
    let mut lsn = from;
    while lsn <= until {
        // Some are written on this thread, if the writer rests.
        let here = lsn.number().is_multiple_of(3)
            && journal.wait_durable(lsn.minus(1)).await.is_ok()
            && journal.try_write(lsn, &mut vec![payload(lsn)]);
        if !here && journal.append(lsn, payload(lsn)).await.is_err() {
            break;
        }
        if COMPACTED.contains(&lsn.number()) {
            let is_down = journal.wait_durable(lsn).await.is_err();
            if is_down || compact(journal).await.is_err() {
                break;
            }
        }
        lsn = lsn.next();
    }
    ended(journal).await
}

fn assert_holds(disk: &Simulated, journal: &Journal, recovery: &Recovery, acknowledged: Lsn) {
    assert!(
        recovery.last >= acknowledged,
        "{acknowledged} was durable: {recovery:?}"
    );
    assert_eq!(recovery.damage, None);
    let mut lsn = recovery.first;
    for record in journal.reader().records(recovery.first) {
        let record = record.unwrap();
        assert_eq!(record.lsn, lsn);
        assert_eq!(record.payload, payload(lsn), "{disk:?}");
        lsn = lsn.next();
    }
    assert_eq!(lsn, recovery.last.next());
    // Whatever archives there are, nothing of the state is lost, and nothing
    // counts twice.
    let all = (1..lsn.number()).map(|number| payload(Lsn::new(number)));
    assert_eq!(replayed(journal), state(all));
    assert_history_holds(journal, recovery);
}

/// Each second record is found up to where there are histories, and from there
/// on the journal has them all.
fn assert_history_holds(journal: &Journal, recovery: &Recovery) {
    let past = journal.reader().past();
    assert!(recovery.first <= past.upto().next());
    let found = journal
        .reader()
        .archived_in(&past)
        .map(|found| found.unwrap());
    let found: Vec<_> = found.map(|record| (record.lsn, record.payload)).collect();
    let expected = (1..=past.upto().number()).step_by(2).map(Lsn::new);
    let expected: Vec<_> = expected.map(|lsn| (lsn, payload(lsn))).collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn abuse_52_unsynced_writes_lost_at_every_journal_operation() {
    let until = Lsn::new(60);
    let mut cuts = 0;
    for operation in 1.. {
        let disk = Simulated::failing_at(operation);
        let acknowledged = match open(&disk) {
            Ok((journal, _)) => work(&journal, Lsn::FIRST, until).await,
            Err(_) => Lsn::NONE,
        };
        for seed in 0..4 {
            let survived = disk.after_power_loss(operation * 4 + seed);
            let (journal, recovery) = open(&survived).unwrap();
            cuts += u32::from(recovery.torn.is_some());
            assert_holds(&survived, &journal, &recovery, acknowledged);
            // What follows must not meet leftovers of what was lost.
            let next = recovery.last.next();
            let more = next.plus(3);
            if more < Lsn::new(30) {
                assert_eq!(work(&journal, next, more).await, more);
            } else {
                compact(&journal).await.unwrap();
            }
            ended(&journal).await;
            let (journal, again) = open(&survived).unwrap();
            assert_eq!(again.torn, None);
            assert_holds(&survived, &journal, &again, recovery.last);
            ended(&journal).await;
        }
        if acknowledged == until {
            assert!(
                operation > 50 && cuts > 10,
                "{operation} operations, {cuts} cuts"
            );
            return;
        }
    }
}

#[tokio::test]
async fn abuse_55_full_disk_holds_records_until_there_is_room() {
    let disk = Simulated::default();
    let (journal, _) = open(&disk).unwrap();
    disk.state().capacity = Some(3 * 4096);
    let mut lsn = Lsn::FIRST;
    let refused = loop {
        match journal.try_append(lsn, &mut vec![vec![7; 900]]) {
            Ok(()) => lsn = lsn.next(),
            Err(AppendError::Busy) => tokio::task::yield_now().await,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, AppendError::Full);
    let before = journal.reader().durability();
    assert_eq!(before.health, Health::Full);
    assert!(before.lsn < lsn.minus(1), "something waits");
    assert_eq!(
        journal.reader().records(Lsn::FIRST).count() as u64,
        before.lsn.number()
    );

    disk.state().capacity = None;
    journal.wait_durable(lsn.minus(1)).await.unwrap();
    ended(&journal).await;
    let (_, recovery) = open(&disk).unwrap();
    assert_eq!(recovery.last, lsn.minus(1));
}

#[tokio::test]
async fn failed_sync_ends_the_journal_and_reports_nothing_durable() {
    let disk = Simulated::default();
    let (journal, _) = open(&disk).unwrap();
    journal
        .append(Lsn::FIRST, payload(Lsn::FIRST))
        .await
        .unwrap();
    journal.wait_durable(Lsn::FIRST).await.unwrap();
    disk.state().syncs_fail = true;
    let second = Lsn::new(2);
    journal.append(second, payload(second)).await.unwrap();
    let health = journal.wait_durable(second).await.unwrap_err();
    assert!(
        matches!(health, Health::Failed(Failure::Io { .. })),
        "{health:?}"
    );
    disk.state().syncs_fail = false;
    let third = journal.append(second.next(), payload(second.next())).await;
    assert_eq!(third, Err(AppendError::Stopped));
    assert_eq!(journal.reader().durability().lsn, Lsn::FIRST);
}

#[tokio::test]
async fn caller_writes_itself_while_the_writer_rests_and_the_disk_is_quick() {
    let disk = Simulated::default();
    let (journal, _) = open(&disk).unwrap();
    let mut lsn = Lsn::FIRST;
    let mut here = || {
        let mut payloads = vec![payload(lsn), payload(lsn.next())];
        let written = journal.try_write(lsn, &mut payloads);
        assert_eq!(payloads.is_empty(), written, "taken if written");
        if written {
            lsn = lsn.plus(2);
            assert_eq!(journal.reader().durability().lsn, lsn.minus(1));
        }
        written
    };
    assert!(here());
    assert!(!journal.try_write(Lsn::new(7), &mut vec![vec![1]]), "a gap");

    // Only the writer begins segments, and waits for a slow disk.
    while here() {}
    for slow in [true, false] {
        disk.state().slow = slow;
        // On a busy machine a quick disk seems slow now and then.
        let mut tries = if slow { 1..=1 } else { 1..=50 };
        let written = loop {
            let appended = journal.append(lsn, payload(lsn)).await;
            appended.unwrap();
            journal.wait_durable(lsn).await.unwrap();
            lsn = lsn.next();
            // The writer may not be quite at rest yet.
            let mut payloads = vec![payload(lsn)];
            let written = (0..1000).any(|_| {
                thread::yield_now();
                journal.try_write(lsn, &mut payloads)
            });
            tries.next();
            if written || tries.is_empty() {
                break written;
            }
        };
        assert_eq!(written, !slow);
    }
    ended(&journal).await;
    let (journal, recovery) = open(&disk).unwrap();
    assert_holds(&disk, &journal, &recovery, lsn);
}

#[tokio::test]
async fn failed_sync_on_the_callers_thread_ends_the_journal_too() {
    let disk = Simulated::default();
    let (journal, _) = open(&disk).unwrap();
    disk.state().syncs_fail = true;
    assert!(journal.try_write(Lsn::FIRST, &mut vec![payload(Lsn::FIRST)]));
    let health = journal.wait_durable(Lsn::FIRST).await.unwrap_err();
    assert!(
        matches!(health, Health::Failed(Failure::Io { .. })),
        "{health:?}"
    );
    assert!(!journal.try_write(Lsn::FIRST, &mut vec![payload(Lsn::FIRST)]));
    assert_eq!(journal.reader().durability().lsn, Lsn::NONE);
}

#[tokio::test]
async fn record_out_of_turn_ends_the_journal_and_keeps_what_came_before() {
    let disk = Simulated::default();
    let (journal, _) = open(&disk).unwrap();
    journal
        .append(Lsn::FIRST, payload(Lsn::FIRST))
        .await
        .unwrap();
    journal
        .append(Lsn::new(3), payload(Lsn::new(3)))
        .await
        .unwrap();
    let health = journal.wait_durable(Lsn::new(3)).await.unwrap_err();
    let (expected, got) = (Lsn::new(2), Lsn::new(3));
    assert_eq!(
        health,
        Health::Failed(Failure::OutOfOrder { expected, got })
    );
    assert_eq!(journal.reader().durability().lsn, Lsn::FIRST);
}

#[tokio::test]
async fn writer_that_waits_for_room_ends_when_nobody_is_left() {
    let disk = Simulated::default();
    let (journal, _) = open(&disk).unwrap();
    disk.state().capacity = Some(4096);
    for lsn in (1..=10).map(Lsn::new) {
        journal.try_append(lsn, &mut vec![vec![7; 900]]).unwrap();
    }
    let mut seen = journal.durability();
    seen.wait_for(|d| d.health == Health::Full).await.unwrap();
    drop(journal);
    seen.wait_for(|d| d.health == Health::Closed).await.unwrap();
}
