//! `suanli-testnet`: networks on one machine.
//!
//! `sim` runs a scenario from a seed; the other commands run real nodes on
//! loopback.

mod report;

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use suanli_testnet::{
    audits, bench, live, market, ownership,
    scenario::Scenario,
    settlement,
    sim::{Plant, Setup},
};

/// Brings up Suanli networks on one machine, to use them and to break them.
#[derive(Debug, Parser)]
#[command(name = "suanli-testnet", version, max_term_width = 100)]
struct Cli {
    /// Folder of the live network [default: .testnet]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Simulate a network from a seed, on virtual time.
    ///
    /// The last line printed is the hash of everything that happened: the same
    /// seed gives the same hash. Exits with 1 when something does not hold, and
    /// then prints what, the command that shows it again, and what led to it.
    Sim(SimArgs),
    /// Simulate liars at several rates of audits, and compare how often they are found
    /// with what chance says
    Audits(audits::Audits),
    /// Simulate a day's trade: our policies beside chance and staying at home, and beside
    /// the least that the same work can cost
    Market(market::Args),
    /// Put every fault at every step from the receipt to the settlement, and let fresh
    /// accounts run what they never pay
    ///
    /// Exits with 1 if the accounts of both sides differ, or strangers owe more than
    /// their budget.
    Settlement(settlement::Settlement),
    /// Simulate firms with bursts of work that own a machine each, and the same firms with
    /// a pool: how many machines it takes for the same waiting
    Ownership(ownership::Args),
    #[command(flatten)]
    Live(live::cli::Command),
    Bench(bench::cli::Bench),
}

/// What to simulate.
#[derive(Debug, clap::Args)]
struct SimArgs {
    /// Decides everything that the scenario leaves open.
    #[arg(long)]
    seed: u64,
    /// How many nodes, shared out to the groups of the scenario.
    #[arg(long)]
    nodes: Option<usize>,
    /// Let nothing go wrong after so many events.
    #[arg(long)]
    steps: Option<u64>,
    /// A scenario file. Left out: fifty nodes and everything that goes wrong.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Run so many seeds, from --seed on.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    seeds: u64,
    /// Plant a bug, to see what is said when something does not hold.
    #[arg(long, value_name = "NAME")]
    plant: Option<Plant>,
    /// Write a line about everything that happens, for a single seed.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Sim(args) => sim(&args),
        Command::Audits(audits) => audits.run(&mut io::stdout()).map(|()| ExitCode::SUCCESS),
        Command::Market(market) => market.run(&mut io::stdout()).map(|()| ExitCode::SUCCESS),
        Command::Settlement(settlement) => settlement.run(&mut io::stdout()).map(|failures| {
            if failures == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }),
        Command::Ownership(args) => args.run(&mut io::stdout()).map(|()| ExitCode::SUCCESS),
        Command::Live(command) => command
            .run(cli.dir.as_deref(), &mut io::stdout())
            .map(|()| ExitCode::SUCCESS),
        Command::Bench(bench) => bench.run(&mut io::stdout()).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("suanli-testnet: {error:#}");
        ExitCode::FAILURE
    })
}

fn sim(args: &SimArgs) -> anyhow::Result<ExitCode> {
    let mut scenario = match &args.scenario {
        Some(path) => Scenario::read(path)?,
        None => Scenario::faults()?,
    };
    if let Some(nodes) = args.nodes {
        anyhow::ensure!(
            nodes > scenario.groups.len(),
            "--nodes {nodes} is too few for {} groups; ask for more, or name a smaller scenario",
            scenario.groups.len()
        );
        scenario.scale(nodes);
    }
    let mut setup = Setup::new(args.seed, scenario);
    setup.steps = args.steps;
    setup.plant = args.plant;
    if args.seeds > 1 {
        return Ok(report::many(&setup, args.seeds, &args.replay()));
    }
    setup.record = args.trace.is_some();
    report::one(&setup, args.trace.as_deref(), &args.replay())
}

impl SimArgs {
    /// The command that shows a seed again, but for the seed.
    fn replay(&self) -> String {
        let mut command = String::from("suanli-testnet sim");
        if let Some(nodes) = self.nodes {
            command += &format!(" --nodes {nodes}");
        }
        if let Some(steps) = self.steps {
            command += &format!(" --steps {steps}");
        }
        if let Some(plant) = self.plant {
            command += &format!(" --plant {}", plant.name());
        }
        if let Some(scenario) = &self.scenario {
            command += &format!(" --scenario {}", scenario.display());
        }
        command
    }
}
