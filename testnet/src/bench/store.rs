//! Durable records a second, beside what the disk itself does in the same run;
//! and how long a start from many of them takes.

use std::path::Path;

use suanli_node::store;
use tokio::runtime::Runtime;

use super::{
    figures::{Aim, Figure, Report},
    machine::Watch,
    starting,
};

/// Share of the disk's own rate that single records should reach.
const SINGLE_AIM: f64 = 0.9;
/// How many times the disk's rate batched ones should.
const BATCHED_AIM: f64 = 10.0;

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Plan {
    /// Records written, of each kind
    #[arg(long, default_value_t = 6_200)]
    records: u32,
    /// Bytes of a record: a receipt has about so many
    #[arg(long, default_value_t = 600)]
    bytes: usize,
    /// Records in a batch
    #[arg(long, default_value_t = 256)]
    batch: usize,
    /// Receipts of the history that a node starts from
    #[arg(long, default_value_t = 25_000)]
    receipts: u32,
}

/// Runs it in `dir`, on the disk that is to be measured.
pub(super) fn run(plan: Plan, dir: &Path, runtime: &Runtime) -> anyhow::Result<Report> {
    let watch = Watch::begin();
    let seen = store::bench(&dir.join("rates"), plan.records, plan.bytes, plan.batch)?;
    let history = dir.join("history");
    let starts = runtime.block_on(starting::measure(plan.receipts, &history))?;
    let rate = |what: String, rate| Figure::one(what, "1/s", rate);
    Ok(Report {
        bench: "store",
        figures: [
            rate("the disk itself".into(), seen.raw_per_s)
                .note(format!("{} bytes into a prewritten file", plan.bytes)),
            rate("single records".into(), seen.single_per_s),
            rate(format!("batches of {}", plan.batch), seen.batched_per_s),
            Figure::one("single beside the disk", "ratio", seen.single_of_raw)
                .aim(Aim::AtLeast(SINGLE_AIM)),
            Figure::one("batched beside the disk", "ratio", seen.batched_of_raw)
                .aim(Aim::AtLeast(BATCHED_AIM)),
        ]
        .into_iter()
        .chain(starts)
        .collect(),
        state: watch.end(),
    })
}
