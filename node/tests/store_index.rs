//! The store as a whole: one process per directory, and an index that can be
//! lost, damaged or of another history without anybody noticing.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test may end it just as the test may"
)]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use suanli_node::store::{
    Config, LockError, Lsn, Opened, Store, StoreError,
    index::{Distrust, Hit, IndexStart, Key, Matching, Order, Query},
    journal::OnDamage,
};

const BY_NUMBER: u8 = 1;
const BY_PARITY: u8 = 2;

fn config() -> Config {
    let mut config = Config::default();
    config.journal.segment_bytes = 16 * 1024;
    config
}

/// Payloads are numbers as text; keys are that text and the parity.
fn keys(payload: &[u8]) -> Vec<Key> {
    let parity = payload.last().map_or(0, |digit| digit % 2);
    vec![
        Key::new(BY_NUMBER, payload).unwrap(),
        Key::new(BY_PARITY, [parity]).unwrap(),
    ]
}

fn open(dir: &Path) -> Opened {
    Store::open(dir, &config(), keys).unwrap()
}

async fn append_to(store: &Store, from: u64, to: u64) {
    for number in from..=to {
        let payload = number.to_string().into_bytes();
        store.append(Lsn::new(number), payload).await.unwrap();
    }
    let journal = store.journal();
    journal.wait_durable(Lsn::new(to)).await.unwrap();
}

fn query(space: u8, keys: Matching, order: Order) -> Query {
    Query {
        space,
        keys,
        order,
        after: None,
        limit: 1000,
    }
}

fn odd(order: Order) -> Query {
    query(BY_PARITY, Matching::Exact(vec![1]), order)
}

async fn lsns(store: &Store, query: Query) -> Vec<u64> {
    let hits = store.find(query).await.unwrap();
    hits.iter().map(|hit| hit.lsn.number()).collect()
}

/// All answers that the tests compare.
async fn answers(store: &Store) -> Vec<Vec<u8>> {
    let all = Matching::Prefix(Vec::new());
    let everything = query(BY_NUMBER, all, Order::OldestFirst);
    let mut records = store.fetch(everything).await.unwrap();
    let newest_first = odd(Order::NewestFirst);
    records.extend(store.fetch(newest_first).await.unwrap());
    records.into_iter().map(|record| record.payload).collect()
}

fn sled_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.join("index")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let list = if path.is_dir() { &mut dirs } else { &mut files };
            list.push(path);
        }
    }
    files
}

#[tokio::test]
async fn records_are_found_by_each_key_in_both_orders_and_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, .. } = open(dir.path());
    append_to(&store, 1, 120).await;
    let by_text = |keys| query(BY_NUMBER, keys, Order::OldestFirst);
    let exact = by_text(Matching::Exact(b"12".to_vec()));
    assert_eq!(lsns(&store, exact).await, [12]);
    let prefix = by_text(Matching::Prefix(b"12".to_vec()));
    assert_eq!(lsns(&store, prefix).await, [12, 120]);
    let oldest = lsns(&store, odd(Order::OldestFirst)).await;
    assert_eq!(oldest, (1..120).step_by(2).collect::<Vec<_>>());
    let mut newest = lsns(&store, odd(Order::NewestFirst)).await;
    newest.reverse();
    assert_eq!(oldest, newest);

    for order in [Order::OldestFirst, Order::NewestFirst] {
        let whole = store.find(odd(order)).await.unwrap();
        let mut paged: Vec<Hit> = Vec::new();
        loop {
            let mut page = odd(order);
            (page.limit, page.after) = (7, paged.last().cloned());
            let hits = store.find(page).await.unwrap();
            if hits.is_empty() {
                break;
            }
            paged.extend(hits);
        }
        assert_eq!(paged, whole);
    }
    store.close().await;
}

#[tokio::test]
async fn keys_with_zeros_and_common_beginnings_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let whole = |payload: &[u8]| vec![Key::new(7, payload).unwrap()];
    let Opened { store, .. } = Store::open(dir.path(), &config(), whole).unwrap();
    let all: [&[u8]; 6] = [b"", b"\0", b"\0\0", b"\0\x01", b"\0\xff", b"\0a"];
    for (lsn, key) in (1..).zip(all) {
        store.append(Lsn::new(lsn), key.to_vec()).await.unwrap();
    }
    store.journal().wait_durable(Lsn::new(6)).await.unwrap();
    for (lsn, key) in (1..).zip(all) {
        let exact = query(7, Matching::Exact(key.to_vec()), Order::NewestFirst);
        let hits = store.find(exact).await.unwrap();
        let expected = Hit {
            key: key.to_vec(),
            lsn: Lsn::new(lsn),
        };
        assert_eq!(hits, [expected]);
    }
    let prefix = query(7, Matching::Prefix(vec![0]), Order::OldestFirst);
    assert_eq!(lsns(&store, prefix).await, [2, 3, 4, 6, 5]);
    store.close().await;
}

#[tokio::test]
async fn reopened_index_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, index, .. } = open(dir.path());
    assert_eq!(index, IndexStart::Rebuilt(Distrust::Missing));
    append_to(&store, 1, 50).await;
    let mut indexed = store.indexed();
    indexed.wait_for(|lsn| *lsn == Lsn::new(50)).await.unwrap();
    let before = answers(&store).await;
    store.close().await;
    let Opened { store, index, .. } = open(dir.path());
    assert_eq!(index, IndexStart::Current(Lsn::new(50)));
    assert_eq!(answers(&store).await, before);
    store.close().await;
}

#[tokio::test]
async fn abuse_54_deleted_or_damaged_index_is_rebuilt_identically() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, .. } = open(dir.path());
    append_to(&store, 1, 400).await;
    let before = answers(&store).await;
    assert_eq!(before.len(), 600);
    store.close().await;

    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let Opened { store, index, .. } = open(dir.path());
    assert_eq!(index, IndexStart::Rebuilt(Distrust::Missing));
    assert_eq!(answers(&store).await, before);
    store.close().await;

    for (flipped, first, step) in [(0x01_u8, 0, 97), (0xff, 3, 1009), (0x80, 40, 4001)] {
        for path in sled_files(dir.path()) {
            let mut bytes = fs::read(&path).unwrap();
            let hit = bytes.iter_mut().skip(first).step_by(step);
            hit.for_each(|byte| *byte ^= flipped);
            fs::write(&path, bytes).unwrap();
        }
        let opened = open(dir.path());
        assert_eq!(opened.recovery.damage, None);
        assert_eq!(answers(&opened.store).await, before, "step {step}");
        opened.store.close().await;
    }

    for path in sled_files(dir.path()) {
        fs::write(&path, b"").unwrap();
    }
    let Opened { store, .. } = open(dir.path());
    assert_eq!(answers(&store).await, before);
    store.close().await;
}

#[tokio::test]
async fn index_that_is_ahead_shows_that_the_journal_lost_something() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, .. } = open(dir.path());
    append_to(&store, 1, 5).await;
    store.close().await;
    let segment = dir.path().join("journal/0000000000000001.segment");
    let backup = fs::read(&segment).unwrap();
    let Opened { store, .. } = open(dir.path());
    append_to(&store, 6, 9).await;
    answers(&store).await;
    store.close().await;

    // An old backup of the journal alone: sound, but not the newest.
    fs::write(&segment, backup).unwrap();
    let refused = Store::open(dir.path(), &config(), keys).unwrap_err();
    assert!(matches!(refused, StoreError::Journal(_)), "{refused}");
    let mut lenient = config();
    lenient.journal.on_damage = OnDamage::SetAside;
    let opened = Store::open(dir.path(), &lenient, keys).unwrap();
    assert_eq!(opened.recovery.damage.unwrap().lsn, Lsn::new(6));
    assert_eq!(opened.index, IndexStart::Rebuilt(Distrust::Ahead));
    assert_eq!(answers(&opened.store).await.len(), 5 + 3);
    opened.store.close().await;
}

#[tokio::test]
async fn other_version_of_the_keys_makes_the_index_anew() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, .. } = open(dir.path());
    append_to(&store, 1, 9).await;
    answers(&store).await;
    store.close().await;
    let mut newer = config();
    newer.index_version = 2;
    let Opened { store, index, .. } = Store::open(dir.path(), &newer, keys).unwrap();
    assert_eq!(index, IndexStart::Rebuilt(Distrust::OtherFormat));
    assert_eq!(answers(&store).await.len(), 9 + 5);
    store.close().await;
}

/// Keeps every third number as history, and one record for the state.
async fn compact(store: &Store, at_ms: u64, forget_before_ms: u64) -> u64 {
    let mut compaction = store.compact(at_ms).unwrap();
    let number = |payload: &[u8]| -> u64 { std::str::from_utf8(payload).unwrap().parse().unwrap() };
    let sum: u64 = compaction
        .records()
        .map(|record| number(&record.unwrap().payload))
        .sum();
    compaction
        .write_history(|record| (number(&record.payload) % 3 == 0).then_some(record.payload))
        .unwrap();
    let kept = sum.to_string().into_bytes();
    compaction.write_checkpoint(std::iter::once(kept)).unwrap();
    compaction.finish(forget_before_ms).await.unwrap()
}

fn replayed(store: &Store) -> Vec<String> {
    let records = store.reader().replay();
    let texts = records.map(|record| String::from_utf8(record.unwrap().payload).unwrap());
    texts.collect()
}

fn files(dir: &Path, ending: &str) -> usize {
    let names = fs::read_dir(dir.join("journal")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(ending)).count()
}

#[tokio::test]
async fn history_is_found_where_archives_took_the_place_of_segments() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, .. } = open(dir.path());
    append_to(&store, 1, 900).await;
    assert_eq!(lsns(&store, odd(Order::OldestFirst)).await.len(), 450);
    assert!(compact(&store, 1, 0).await > 0);
    append_to(&store, 901, 905).await;
    let sum = (900 * 901 / 2).to_string();
    assert_eq!(replayed(&store), [&*sum, "901", "902", "903", "904", "905"]);
    let found = lsns(&store, odd(Order::OldestFirst)).await;
    let kept: Vec<u64> = (3..=900).step_by(6).chain([901, 903, 905]).collect();
    assert_eq!(found, kept);
    let before = answers(&store).await;
    store.close().await;

    let Opened { store, index, .. } = open(dir.path());
    assert_eq!(index, IndexStart::Current(Lsn::new(905)));
    assert_eq!(answers(&store).await, before);
    store.close().await;
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let Opened { store, index, .. } = open(dir.path());
    assert_eq!(index, IndexStart::Rebuilt(Distrust::Missing));
    assert_eq!(answers(&store).await, before);
    assert_eq!(replayed(&store).len(), 6);
    store.close().await;
}

#[tokio::test]
async fn histories_are_forgotten_when_they_are_old_and_checkpoints_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, .. } = open(dir.path());
    for round in 0..4 {
        append_to(&store, round * 300 + 1, round * 300 + 300).await;
        compact(&store, 1000 + round, 0).await;
        assert_eq!(files(dir.path(), ".checkpoint"), 1);
        assert!(files(dir.path(), ".segment") <= 2, "sealed ones are gone");
    }
    assert_eq!(files(dir.path(), ".history"), 4);
    assert_eq!(lsns(&store, odd(Order::OldestFirst)).await[0], 3);
    append_to(&store, 1201, 1203).await;
    store.compact(2000).unwrap().finish(1002).await.unwrap();
    assert_eq!(files(dir.path(), ".history"), 2);
    assert_eq!(lsns(&store, odd(Order::OldestFirst)).await[0], 603);
    // The newest stays, however old it is.
    store.compact(2000).unwrap().finish(2000).await.unwrap();
    assert_eq!(files(dir.path(), ".history"), 1);
    let found = lsns(&store, odd(Order::OldestFirst)).await;
    assert_eq!(found[0], 903, "{found:?} {:?}", store.reader().backlog());
    assert_eq!(replayed(&store).len(), 1 + 3);
    store.close().await;
}

#[tokio::test]
async fn damage_in_a_checkpoint_that_stands_for_the_past_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let Opened { store, .. } = open(dir.path());
    append_to(&store, 1, 900).await;
    compact(&store, 1, 0).await;
    store.close().await;
    let path = dir.path().join("journal/0000000000000384.checkpoint");
    let whole = fs::read(&path).unwrap();
    for at in [20, 70, 100, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        fs::write(&path, &bytes).unwrap();
        let refused = Store::open(dir.path(), &config(), keys).unwrap_err();
        assert!(matches!(refused, StoreError::Journal(_)), "byte {at}");
    }
    fs::write(&path, &whole).unwrap();
    open(dir.path()).store.close().await;
}

#[tokio::test]
async fn abuse_58_second_process_on_one_directory_is_refused() {
    if let Some(shared) = std::env::var_os("STORE_TEST_HOLD") {
        // This is the first process: it holds the directory until stdin ends.
        let Opened { store, .. } = open(Path::new(&shared));
        println!("\nholding");
        std::io::stdin().lines().for_each(drop);
        return store.close().await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("abuse_58_second_process_on_one_directory_is_refused")
        .env("STORE_TEST_HOLD", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap() == "holding"));

    let refused = Store::open(dir.path(), &config(), keys).unwrap_err();
    assert!(matches!(refused, StoreError::Lock(LockError::Held { .. })));
    let words = refused.to_string();
    assert!(
        words.contains(&format!("process {}", child.id())),
        "{words}"
    );

    drop(child.stdin.take());
    said.for_each(drop);
    assert!(child.wait().unwrap().success());
    open(dir.path()).store.close().await;
}
