//! Blobs: named by their hash, within the quota, gone when nobody needs them.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test may end it just as the test may"
)]

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use suanli_node::store::blobs::{BlobError, Blobs, Config, WallMs};

fn open(dir: &Path, quota_bytes: u64) -> Blobs {
    let retention = Duration::from_secs(3600);
    let config = Config {
        quota_bytes,
        retention,
    };
    Blobs::open(dir, config).unwrap()
}

fn read(blobs: &Blobs, hash: &blake3::Hash) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = blobs.open_blob(hash).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn bytes_come_back_by_their_hash_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 1000);
    let empty = blobs.put_bytes(b"", None).unwrap();
    let hash = blobs.put_bytes(b"some bytes", None).unwrap();
    assert_eq!(blobs.put_bytes(b"some bytes", None).unwrap(), hash);
    assert_eq!(blobs.used_bytes(), 10);
    let blobs = open(dir.path(), 1000);
    assert_eq!(blobs.used_bytes(), 10);
    assert_eq!(read(&blobs, &hash), b"some bytes");
    assert_eq!(blobs.size(&empty).unwrap(), 0);
    assert!(read(&blobs, &empty).is_empty());
}

#[test]
fn small_blobs_stay_in_memory_until_they_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 1 << 20);
    let small = blobs.put_bytes(b"a spec", None).unwrap();
    assert!(blobs.in_memory(&small).is_none());
    assert_eq!(&*blobs.read_small(&small).unwrap().unwrap(), b"a spec");
    assert_eq!(&*blobs.in_memory(&small).unwrap(), b"a spec");

    let large = blobs.put_bytes(&[7; 16 * 1024 + 1], None).unwrap();
    assert!(blobs.read_small(&large).unwrap().is_none());
    assert!(blobs.in_memory(&large).is_none());

    // The oldest give way to others, and what is gone is gone.
    for number in 0..63u8 {
        let other = blobs.put_bytes(&[number], None).unwrap();
        blobs.read_small(&other).unwrap();
    }
    assert!(blobs.in_memory(&small).is_some());
    let last = blobs.put_bytes(b"last", None).unwrap();
    blobs.read_small(&last).unwrap();
    assert!(blobs.in_memory(&small).is_none());
    blobs.remove(&last).unwrap();
    assert!(blobs.in_memory(&last).is_none());
    assert!(matches!(blobs.read_small(&last), Err(BlobError::Unknown)));
}

#[test]
fn imported_file_is_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(&dir.path().join("blobs"), 1 << 20);
    let source = dir.path().join("source");
    let bytes = vec![0x42; 300_000];
    fs::write(&source, &bytes).unwrap();
    let (hash, size) = blobs.import_file(&source, None).unwrap();
    assert_eq!((hash, size), (blake3::hash(&bytes), 300_000));
    fs::write(&source, b"changed").unwrap();
    assert_eq!(read(&blobs, &hash), bytes);
    fs::write(&source, &bytes).unwrap();
    blobs.import_file(&source, None).unwrap();
    assert_eq!(blobs.used_bytes(), 300_000, "the second adds nothing");
}

#[test]
fn quota_is_kept_also_by_what_is_still_coming() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 100);
    let coming = blobs.begin(blake3::hash(b"x"), 60).unwrap();
    let refused = blobs.put_bytes(&[0; 41], None).unwrap_err();
    let BlobError::QuotaExceeded {
        wanted,
        used,
        quota,
    } = refused
    else {
        panic!("{refused}");
    };
    assert_eq!((wanted, used, quota), (41, 60, 100));
    blobs.put_bytes(&[0; 40], None).unwrap();
    drop(coming);
    assert_eq!(blobs.used_bytes(), 40);
    let refused = blobs.begin(blake3::hash(b"y"), u64::MAX).unwrap_err();
    assert!(matches!(refused, BlobError::QuotaExceeded { .. }));
}

#[test]
fn incoming_blob_is_checked_before_it_gets_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 100);
    let hash = blake3::hash(b"hello");
    let mut wrong = blobs.begin(hash, 5).unwrap();
    let twice = blobs.begin(hash, 5).unwrap_err();
    assert!(matches!(twice, BlobError::Incoming));
    wrong.file_mut().write_all(b"hullo").unwrap();
    let refused = wrong.commit(None).unwrap_err();
    assert!(matches!(refused, BlobError::Mismatch));
    assert!(!blobs.has(&hash));

    let mut long = blobs.begin(hash, 5).unwrap();
    long.file_mut().write_all(b"hello!").unwrap();
    let refused = long.commit_verified(None).unwrap_err();
    assert!(matches!(refused, BlobError::Mismatch));
    assert_eq!(blobs.used_bytes(), 0);

    let mut right = blobs.begin(hash, 5).unwrap();
    right.file_mut().write_all(b"hello").unwrap();
    right.commit(None).unwrap();
    assert_eq!(read(&blobs, &hash), b"hello");
    let present = blobs.begin(hash, 5).unwrap_err();
    assert!(matches!(present, BlobError::Present));
    assert_eq!(blobs.remove(&hash).unwrap(), 5);
    let gone = blobs.open_blob(&hash).unwrap_err();
    assert!(matches!(gone, BlobError::Unknown));
    assert_eq!(blobs.used_bytes(), 0);
}

#[test]
fn partials_are_removed_at_open() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 100);
    let hash = blake3::hash(b"never complete");
    // What a crash leaves: nobody dropped it.
    std::mem::forget(blobs.begin(hash, 50).unwrap());
    let blobs = open(dir.path(), 100);
    assert_eq!(blobs.used_bytes(), 0);
    blobs.begin(hash, 50).unwrap();
}

#[test]
fn collection_takes_what_has_expired_and_nothing_refers_to() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 100);
    let put = |bytes: &[u8], until| blobs.put_bytes(bytes, until).unwrap();
    let early = put(b"early", Some(WallMs(1_000)));
    let needed = put(b"needed", Some(WallMs(1_000)));
    let late = put(b"late", Some(WallMs(3_000)));
    let unsaid = put(b"unsaid", None);
    blobs.keep_until(late, Some(WallMs(2_000))).unwrap();

    let blobs = open(dir.path(), 100);
    let is_needed = |hash: &blake3::Hash| *hash == needed;
    let taken = blobs.collect(WallMs(2_500), is_needed).unwrap();
    assert_eq!((taken.blobs, taken.bytes), (1, 5));
    assert!(!blobs.has(&early) && blobs.has(&needed) && blobs.has(&late));
    let taken = blobs.collect(WallMs(3_000), |_| false).unwrap();
    assert_eq!(taken.blobs, 2);
    assert!(blobs.has(&unsaid), "the default retention counts from now");
    let taken = blobs.collect(WallMs(u64::MAX), |_| false).unwrap();
    assert_eq!((taken.blobs, blobs.used_bytes()), (1, 0));
}

#[test]
fn lost_retention_note_falls_back_to_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 100);
    let hash = blobs.put_bytes(b"bytes", Some(WallMs(1))).unwrap();
    let hex = hash.to_hex();
    let blob = dir.path().join(&hex[..2]).join(&hex[2..]);
    let note = blob.with_extension("until");
    fs::write(&note, b"gar\xffbage").unwrap();
    let taken = blobs.collect(WallMs(1_000), |_| false).unwrap();
    assert_eq!(taken.blobs, 0);
    fs::remove_file(&note).unwrap();
    let taken = blobs.collect(WallMs(1_000), |_| false).unwrap();
    assert_eq!(taken.blobs, 0);
}

#[test]
fn the_same_bytes_may_come_in_many_ways_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 1 << 20);
    let (same, others) = (blake3::hash(b"the same"), blake3::hash(b"others"));
    // One that comes in piece by piece stands in nobody's way.
    let incoming = blobs.begin(same, 8).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                blobs.put_bytes(b"the same", None).unwrap();
                blobs.put_volatile(b"others").unwrap();
            });
        }
    });
    drop(incoming);
    assert!(blobs.has(&same) && blobs.has(&others));
    assert_eq!(blobs.used_bytes(), 14);
}

#[test]
fn a_later_promise_takes_the_place_of_an_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 1000);
    let hash = blobs.put_bytes(b"kept", Some(WallMs(1000))).unwrap();
    blobs
        .put_bytes(b"kept", Some(WallMs(u64::MAX / 2)))
        .unwrap();
    blobs.put_bytes(b"kept", Some(WallMs(2000))).unwrap();
    blobs.collect(WallMs(1_000_000), |_| false).unwrap();
    assert!(blobs.has(&hash));
}
