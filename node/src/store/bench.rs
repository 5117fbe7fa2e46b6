//! How many receipts a second become durable, beside what the disk can do.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    StoreError,
    disk::{Disk, Folder},
    io_at,
    journal::{Config, Health, Journal, Lsn},
    record::RECORD_HEADER,
    recovery::fill_with_zeros,
};

const ROUNDS: u32 = 7;

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
}

/// Measures in `dir`, which should be empty; each round writes `records`.
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
    let (mut raw, mut single, mut batched) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw.push(per_second(
            records,
            measure_raw(&disk, records, record_bytes).map_err(io_at(dir))?,
        ));
        let mut run = |group: usize| {
            runtime
                .block_on(append_in_groups(
                    &journal,
                    &mut next,
                    records,
                    record_bytes,
                    group,
                ))
                .map_err(|health| io::Error::other(format!("{health:?}")))
                .map_err(io_at(dir))
        };
        single.push(per_second(records, run(1)?));
        batched.push(per_second(records, run(batch.max(1))?));
    }
    runtime.block_on(journal.close());
    Ok(Report {
        record_bytes,
        batch,
        raw_per_s: median(raw),
        single_per_s: median(single),
        batched_per_s: median(batched),
    })
}

fn measure_raw(disk: &Arc<dyn Disk>, records: u32, record_bytes: usize) -> io::Result<Duration> {
    let bytes = vec![0x5a; record_bytes + RECORD_HEADER];
    let file = disk.create("raw.bench")?;
    let size = bytes.len() as u64 * u64::from(records);
    fill_with_zeros(file.as_ref(), 0, size)?;
    file.sync_all()?;
    let begin = Instant::now();
    for index in 0..u64::from(records) {
        file.write_at(&bytes, index * bytes.len() as u64)?;
        file.sync_data()?;
    }
    let taken = begin.elapsed();
    disk.remove("raw.bench")?;
    Ok(taken)
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
            let payload = vec![0x5a; record_bytes];
            journal.append(*next, payload).await.map_err(stopped)?;
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

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
