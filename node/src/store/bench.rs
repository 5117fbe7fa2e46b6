//! How many receipts a second become durable, beside what the disk can do.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    StoreError,
    disk::{Disk, DiskFile, Folder},
    io_at,
    journal::{Config, Health, Journal, Lsn},
    record::RECORD_HEADER,
    recovery::fill_with_zeros,
};

const ROUNDS: u32 = 31;
const RAW: &str = "raw.bench";

/// Medians over several rounds, in which the three take turns.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Report {
    /// Payload bytes of each record.
    pub record_bytes: usize,
    /// Records per batch.
    pub batch: usize,
    /// Positioned write and `fdatasync` into a prewritten file, per second.
    pub raw_per_s: f64,
    /// Records per second, each durable before the next is appended.
    pub single_per_s: f64,
    /// Records per second, `batch` of them appended before waiting.
    pub batched_per_s: f64,
    /// Single beside raw: the median over the turns, each with its neighbour.
    pub single_of_raw: f64,
    /// Batched beside raw, likewise.
    pub batched_of_raw: f64,
}

/// Measures in `dir`, which should be empty; each of the three writes `records`
/// in all, in turns short enough for a busy disk to treat them alike.
pub fn bench(
    dir: &Path,
    records: u32,
    record_bytes: usize,
    batch: usize,
) -> Result<Report, StoreError> {
    let config = Config {
        queue_records: batch.max(1),
        ..Config::default()
    };
    let folder = Folder::open(dir).map_err(io_at(dir))?;
    let disk: Arc<dyn Disk> = Arc::new(folder);
    let (journal, recovery) =
        Journal::open(Arc::clone(&disk), &config, Lsn::NONE, Box::new(|| {}))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(io_at(dir))?;
    let mut next = recovery.last.next();
    let each = (records / ROUNDS).max(1);
    let mut disk_itself = Raw::prewritten(disk.as_ref(), each, record_bytes).map_err(io_at(dir))?;
    let (mut raw, mut single, mut batched) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw.push(per_second(
            each,
            disk_itself.measure(each).map_err(io_at(dir))?,
        ));
        let mut run = |group: usize| {
            let appended = append_in_groups(&journal, &mut next, each, record_bytes, group);
            runtime
                .block_on(appended)
                .map_err(|health| io::Error::other(format!("{health:?}")))
                .map_err(io_at(dir))
        };
        single.push(per_second(each, run(1)?));
        batched.push(per_second(each, run(batch.max(1))?));
    }
    runtime.block_on(journal.close());
    disk.remove(RAW).map_err(io_at(dir))?;
    Ok(Report {
        record_bytes,
        batch,
        single_of_raw: median(beside(&single, &raw)),
        batched_of_raw: median(beside(&batched, &raw)),
        raw_per_s: median(raw),
        single_per_s: median(single),
        batched_per_s: median(batched),
    })
}

/// A prewritten file, written again in pieces of a record's size.
struct Raw {
    file: Box<dyn DiskFile>,
    piece: Vec<u8>,
    at: u64,
}

impl Raw {
    fn prewritten(disk: &dyn Disk, each: u32, record_bytes: usize) -> io::Result<Self> {
        let piece = vec![0x5a; record_bytes + RECORD_HEADER];
        let file = disk.create(RAW)?;
        let pieces = u64::from(each) * u64::from(ROUNDS);
        fill_with_zeros(file.as_ref(), 0, pieces * piece.len() as u64)?;
        file.sync_all()?;
        Ok(Self { file, piece, at: 0 })
    }

    fn measure(&mut self, pieces: u32) -> io::Result<Duration> {
        let begin = Instant::now();
        for _ in 0..pieces {
            self.file.write_at(&self.piece, self.at)?;
            self.file.sync_data()?;
            self.at += self.piece.len() as u64;
        }
        Ok(begin.elapsed())
    }
}

async fn append_in_groups(
    journal: &Journal,
    next: &mut Lsn,
    records: u32,
    record_bytes: usize,
    group: usize,
) -> Result<Duration, Health> {
    let stopped = |_| journal.reader().durability().health;
    let begin = Instant::now();
    let mut left = usize::try_from(records).unwrap_or(usize::MAX);
    while left > 0 {
        for _ in 0..group.min(left) {
            let mut payloads = vec![vec![0x5a; record_bytes]];
            // A record that comes alone is written as a driver that rests does it.
            if group > 1 || !journal.try_write(*next, &mut payloads) {
                for payload in payloads {
                    journal.append(*next, payload).await.map_err(stopped)?;
                }
            }
            *next = next.next();
        }
        left -= group.min(left);
        journal.wait_durable(next.minus(1)).await?;
    }
    Ok(begin.elapsed())
}

fn per_second(records: u32, taken: Duration) -> f64 {
    f64::from(records) / taken.as_secs_f64()
}

fn beside(rates: &[f64], raw: &[f64]) -> Vec<f64> {
    rates
        .iter()
        .zip(raw)
        .map(|(rate, raw)| rate / raw)
        .collect()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
