//! The journal on a real disk: what is durable comes back, and what is damaged
//! is reported with its place.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test may end it just as the test may"
)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use suanli_node::store::{
    AppendError, Health, Lsn,
    disk::Folder,
    journal::{Config, Journal, JournalError, OnDamage, RECORD_BYTES_MAX, Recovery},
};
use tempfile::TempDir;

fn small() -> Config {
    Config {
        segment_bytes: 8192,
        on_damage: OnDamage::SetAside,
        ..Config::default()
    }
}

fn try_open(dir: &Path, config: &Config) -> Result<(Journal, Recovery), JournalError> {
    let disk = Arc::new(Folder::open(dir).unwrap());
    Journal::open(disk, config, Lsn::NONE, Box::new(|| {}))
}

fn open(dir: &Path) -> (Journal, Recovery) {
    try_open(dir, &small()).unwrap()
}

fn payload(number: u64) -> Vec<u8> {
    let fill = u8::try_from(number % 250).unwrap() + 1;
    vec![fill; usize::try_from(number * 37 % 300).unwrap()]
}

async fn append_to(journal: &Journal, from: u64, to: u64) {
    for number in from..=to {
        let appended = journal.append(Lsn::new(number), payload(number)).await;
        appended.unwrap();
    }
    journal.wait_durable(Lsn::new(to)).await.unwrap();
}

async fn close(journal: Journal) {
    journal.close().await;
    let mut seen = journal.durability();
    seen.wait_for(|d| d.health == Health::Closed).await.unwrap();
}

/// A journal of `records` in a folder of its own, closed.
fn written(records: u64) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (journal, _) = open(dir.path());
        append_to(&journal, 1, records).await;
        close(journal).await;
    });
    dir
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(work)
}

/// How many records there are from the first on; panics if one is not what was
/// appended.
fn assert_prefix(journal: &Journal) -> u64 {
    let mut number = 0;
    for record in journal.reader().records(Lsn::FIRST) {
        number += 1;
        let record = record.unwrap();
        assert_eq!(record.lsn.number(), number);
        assert_eq!(record.payload, payload(number));
        let again = journal.reader().read_at(record.lsn, record.offset);
        assert_eq!(again.unwrap(), record);
    }
    number
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().len() == "0000000000000001.segment".len())
        .filter(|path| path.extension().is_some_and(|e| e == "segment"))
        .collect();
    found.sort();
    found
}

/// Where the last record of a one-segment journal of `records` ends.
fn end_of(records: u64) -> usize {
    64 + (1..=records).map(|n| 52 + payload(n).len()).sum::<usize>()
}

#[test]
fn records_come_back_after_reopening() {
    let dir = written(200);
    assert!(segments(dir.path()).len() > 3);
    block_on(async {
        let (journal, recovery) = open(dir.path());
        assert_eq!((recovery.records, recovery.last), (200, Lsn::new(200)));
        assert_eq!((&recovery.torn, &recovery.damage), (&None, &None));
        assert_eq!(assert_prefix(&journal), 200);
        append_to(&journal, 201, 300).await;
        close(journal).await;
    });
    let (journal, recovery) = open(dir.path());
    assert_eq!(recovery.last, Lsn::new(300));
    assert_eq!(assert_prefix(&journal), 300);
    let record = journal.reader().read(Lsn::new(77)).unwrap();
    assert_eq!(record.payload, payload(77));
}

#[test]
fn files_are_private() {
    let dir = written(3);
    for path in segments(dir.path()) {
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn records_written_together_get_consecutive_numbers() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (journal, _) = open(dir.path());
        let mut taken = 0;
        while taken < 399 {
            let mut three = (1..=3).map(|n| payload(taken + n)).collect();
            match journal.try_append(Lsn::new(taken + 1), &mut three) {
                Ok(()) => taken += 3,
                Err(AppendError::Busy) => journal.wait_durable(Lsn::new(taken)).await.unwrap(),
                Err(error) => panic!("{error}"),
            }
        }
        journal.wait_durable(Lsn::new(399)).await.unwrap();
        assert_eq!(assert_prefix(&journal), 399);
    });
}

#[test]
fn record_too_long_is_refused_and_uses_no_number() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (journal, _) = try_open(dir.path(), &Config::default()).unwrap();
        let mut long = vec![vec![1], vec![1; RECORD_BYTES_MAX + 1]];
        let refused = journal.try_append(Lsn::FIRST, &mut long).unwrap_err();
        assert!(matches!(refused, AppendError::TooLong { .. }));
        assert_eq!(long.len(), 2);
        let longest = vec![1; RECORD_BYTES_MAX];
        let mut alone = vec![longest.clone()];
        journal.try_append(Lsn::FIRST, &mut alone).unwrap();
        assert!(alone.is_empty());
        journal.wait_durable(Lsn::FIRST).await.unwrap();
        let record = journal.reader().read(Lsn::FIRST).unwrap();
        assert_eq!(record.payload, longest);
    });
}

#[test]
fn garbage_from_every_byte_of_the_tail_on_keeps_the_prefix() {
    let dir = written(12);
    let path = segments(dir.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    let end = end_of(12);
    for cut in end_of(9)..end {
        let mut bytes = whole.clone();
        bytes[cut..end].fill(0xa5);
        fs::write(&path, &bytes).unwrap();
        let (journal, recovery) = open(dir.path());
        let kept = (9..=12).filter(|n| end_of(*n) <= cut).max().unwrap();
        assert_eq!(recovery.last.number(), kept, "cut at {cut}");
        let torn = recovery.torn.or(recovery.damage).unwrap();
        assert_eq!(torn.offset, end_of(kept) as u64);
        assert_eq!(torn.lsn.number(), kept + 1);
        assert_eq!(assert_prefix(&journal), kept);
        block_on(close(journal));
    }
}

#[test]
fn abuse_53_tail_cut_off_is_reported_and_the_prefix_kept() {
    let dir = written(12);
    let path = segments(dir.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    for cut in end_of(10)..=end_of(12) {
        fs::write(&path, &whole[..cut]).unwrap();
        let refused = try_open(dir.path(), &Config::default()).unwrap_err();
        assert!(matches!(refused, JournalError::Damaged(_)));
        let untouched = fs::read(&path).unwrap();
        assert_eq!(untouched, whole[..cut], "refusing changes nothing");
        let (journal, recovery) = open(dir.path());
        let kept = (10..=12).filter(|n| end_of(*n) <= cut).max().unwrap();
        assert_eq!(recovery.damage.unwrap().offset, end_of(kept) as u64);
        assert_eq!(assert_prefix(&journal), kept);
        block_on(close(journal));
    }
}

#[test]
fn damage_before_a_later_batch_is_not_taken_for_a_torn_write() {
    let dir = written(5);
    block_on(async {
        let (journal, _) = open(dir.path());
        append_to(&journal, 6, 6).await;
        close(journal).await;
    });
    let path = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[end_of(2) + 60] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let (_, recovery) = open(dir.path());
    let damage = recovery.damage.unwrap();
    assert_eq!(damage.lsn, Lsn::new(3));
    assert_eq!(damage.offset, end_of(2) as u64);
    let kept = fs::read(dir.path().join(&damage.kept_in[0])).unwrap();
    assert_eq!(kept, bytes[end_of(2)..end_of(6)]);
}

#[test]
fn missing_segment_is_reported() {
    let dir = written(200);
    let found = segments(dir.path());
    fs::remove_file(&found[1]).unwrap();
    let (journal, recovery) = open(dir.path());
    let damage = recovery.damage.unwrap();
    assert_eq!(damage.kept_in.len(), found.len() - 2);
    assert_eq!(assert_prefix(&journal), recovery.last.number());
    assert!(recovery.last.number() > 10);
}

#[test]
fn abuse_53_flipped_bit_is_reported_with_its_position_and_prefix_kept() {
    let original = written(100);
    let count = segments(original.path()).len();
    let config = ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    // In the first segment, a middle one, or the last.
    proptest!(config, |(which in 0..3_usize, at in 0..8192_usize, bit in 0..8_u32)| {
        let dir = tempfile::tempdir().unwrap();
        for path in segments(original.path()) {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        let flipped = which * (count - 1) / 2;
        let path = segments(dir.path()).remove(flipped);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).unwrap();

        let (journal, recovery) = open(dir.path());
        let kept = assert_prefix(&journal);
        prop_assert_eq!(recovery.last.number(), kept);
        match recovery.torn.or(recovery.damage) {
            Some(damage) => {
                prop_assert_eq!(&damage.file, path.file_name().unwrap().to_str().unwrap());
                prop_assert!(damage.offset <= at as u64);
                prop_assert_eq!(damage.lsn.number(), kept + 1);
            }
            // Only the zeros after the last record of a sealed segment say
            // nothing: no record is there, nor will be.
            None => prop_assert!(kept == 100 && flipped < count - 1),
        }
        block_on(close(journal));
    });
}

#[test]
fn abuse_55_full_disk_keeps_what_was_durable_and_goes_on_with_room() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| {
        let done = Command::new("mount").args(args).arg(dir.path()).status();
        done.is_ok_and(|status| status.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=64k", "tmpfs"]) {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    }
    let outcome = std::panic::catch_unwind(|| fill_and_make_room(dir.path(), &mount));
    let unmounted = Command::new("umount").arg(dir.path()).status();
    assert!(unmounted.unwrap().success());
    outcome.unwrap();
}

fn fill_and_make_room(dir: &Path, mount: &dyn Fn(&[&str]) -> bool) {
    let config = Config {
        queue_records: 4,
        retry_after: Duration::from_millis(5),
        ..small()
    };
    let last = block_on(async {
        let (journal, _) = try_open(dir, &config).unwrap();
        let mut next = 1;
        let refused = loop {
            match journal.try_append(Lsn::new(next), &mut vec![payload(next)]) {
                Ok(()) => next += 1,
                Err(AppendError::Busy) => tokio::task::yield_now().await,
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, AppendError::Full);
        assert!(journal.reader().durability().lsn.number() < next - 1);
        assert!(mount(&["-o", "remount,size=1m"]));
        journal.wait_durable(Lsn::new(next - 1)).await.unwrap();
        close(journal).await;
        next - 1
    });
    let (journal, recovery) = try_open(dir, &config).unwrap();
    assert_eq!(recovery.last.number(), last);
    assert_eq!(assert_prefix(&journal), last);
    block_on(close(journal));
}
