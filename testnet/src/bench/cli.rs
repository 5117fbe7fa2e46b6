//! `suanli-testnet bench …`

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{
    executor, figures::Report, gateway, gossip, market, matching, memory, overhead, store,
};

/// Measure what things cost.
#[derive(Debug, clap::Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
    /// Append a JSON object a line for each figure
    #[arg(long, global = true, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Folder on the disk that is to be measured; what is made there is removed
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "target/bench"
    )]
    work: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// A job that does nothing, from submit to settled, and its phases
    Overhead(overhead::Plan),
    /// How long a new offer takes into every book
    Gossip(gossip::Plan),
    /// Durable records a second, beside the disk's own rate; and starts from them
    Store(store::Plan),
    /// Starts of executions, and what the sandbox costs beside bare programs
    Executor(executor::Plan),
    /// Agreements and units in a second, many in flight
    Market(market::Plan),
    /// What a gateway adds to a model's answers, and how many it carries at once
    Gateway(gateway::Plan),
    /// How long a large book takes to say who could run a job
    Match(matching::Plan),
    /// Memory of a node that knows 200 offers
    Memory(memory::Plan),
}

impl Bench {
    /// Measures, and prints a table.
    ///
    /// # Errors
    /// What could not be started, or written.
    pub fn run(self, out: &mut dyn Write) -> anyhow::Result<()> {
        fs::create_dir_all(&self.work)
            .with_context(|| format!("{} can't be made", self.work.display()))?;
        let dir = tempfile::tempdir_in(&self.work)?;
        let report = self.what.measure(dir.path())?;
        report.show(out, self.results.as_deref())?;
        Ok(())
    }
}

impl What {
    fn measure(self, dir: &Path) -> anyhow::Result<Report> {
        match self {
            Self::Overhead(plan) => overhead::run(&plan, dir),
            Self::Gossip(plan) => runtime()?.block_on(gossip::run(plan, dir)),
            Self::Store(plan) => store::run(plan, dir, &runtime()?),
            Self::Executor(plan) => runtime()?.block_on(executor::run(plan, dir)),
            Self::Market(plan) => market::run(&plan, dir),
            Self::Gateway(plan) => gateway::run(&plan, dir),
            Self::Match(plan) => matching::run(plan),
            Self::Memory(plan) => memory::run(plan, dir, &runtime()?),
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.context("no threads to be had")
}
