//! Measures the store's journal beside the disk under it: one JSON line.
//!
//! `bench_store DIR [RECORDS] [RECORD_BYTES] [BATCH]`; DIR must not exist yet
//! or be empty, on the disk that is to be measured.

use std::path::PathBuf;

use anyhow::Context;
use suanli_node::store::bench;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().context("name a folder to measure in")?;
    let mut number = |default: u32| {
        args.next().map_or(Ok(default), |text| {
            text.parse().with_context(|| text.clone())
        })
    };
    let (records, record_bytes, batch) = (number(31_000)?, number(600)?, number(256)?);
    let report = bench(
        &PathBuf::from(dir),
        records,
        usize::try_from(record_bytes)?,
        usize::try_from(batch)?,
    )?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
