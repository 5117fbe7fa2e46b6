//! A day's trade, simulated: what our policies cost beside choosing by chance or staying
//! at home, and beside the least that the same work can cost.
//!
//! ```text
//! market.toml ──seed──▶ demand ──▶ one day of real peers for each choice ──▶ figures ──▶ table
//!                                             │ jobs that were done                        ▲
//!                                             └──────▶ linear program (HiGHS) ─────────────┘
//! ```
//!
//! Every match is made by the protocol itself: offers travel, clients rank them, ask for
//! quotes, and providers hold slots, quote or decline. The simulator adds what a job takes:
//! its operations by the device's speed, and its inputs by the bytes per second of the way.
//! All checkers watch; a day on which one complains has no row but an error.
//!
//! Absent: failures. The other scenarios have those; here the question is what a choice
//! is worth.

mod bound;
mod figures;
mod table;

use std::{io::Write, path::PathBuf};

use anyhow::Context as _;
use suanli_protocol::{rank::Policy, units::Amount};

pub use self::figures::Figures;
use crate::{
    cores::on_all_cores,
    scenario::{Choice, Market, Scenario},
    sim::{Outcome, Patience, Setup, run},
};

/// What is compared, the baselines last.
pub const CHOICES: [(&str, Choice); 7] = [
    ("cheapest", Choice::Policy(Policy::Cheapest)),
    ("fastest", Choice::Policy(Policy::Fastest)),
    ("balanced", Choice::Policy(Policy::Balanced)),
    ("nearest", Choice::Policy(Policy::Nearest)),
    ("green", Choice::Policy(Policy::Green)),
    ("random", Choice::Random),
    ("own region", Choice::OwnRegion),
];

/// What to simulate.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Decides everything that the scenario leaves open
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Work handed in, of all that the devices could do: one table for each
    #[arg(long, value_name = "SHARE", value_delimiter = ',')]
    load: Vec<f64>,
    /// A scenario file with a market [default: two hundred providers in ten regions]
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// What western prices are multiplied with: a control
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    west_price: f64,
    /// What every job reads, in gigabytes, instead of what the scenario says: a control
    #[arg(long, value_name = "GB")]
    input: Option<u64>,
    /// What clients pay for a gigabyte that they send to another region: a control
    #[arg(long, value_name = "AMOUNT")]
    traffic_price: Option<Amount>,
    /// Only these choices, by their names in the table
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    choices: Vec<String>,
    /// A Python with scipy, for the lower bound
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
}

/// One choice's day.
#[derive(Debug)]
pub struct Day {
    /// What the choice is called.
    pub choice: &'static str,
    /// What it came to.
    pub figures: Figures,
    /// What the simulator says.
    pub outcome: Outcome,
}

impl Args {
    /// Simulates, and prints a table for each load.
    ///
    /// # Errors
    /// A scenario that is none, a day on which something does not hold, or a table that
    /// can't be printed.
    pub fn run(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let scenario = match &self.scenario {
            Some(path) => Scenario::read(path)?,
            None => Scenario::market()?,
        };
        let market = scenario.market.as_ref();
        let usual = market
            .context("it has no [market]; see testnet/scenarios/market.toml")?
            .load;
        let loads = if self.load.is_empty() {
            vec![usual]
        } else {
            self.load.clone()
        };
        let choices = self.chosen()?;
        anyhow::ensure!(
            (0.01..=100.0).contains(&self.west_price),
            "--west-price {} is no factor: give one between 0.01 and 100",
            self.west_price
        );
        for load in loads {
            anyhow::ensure!(
                load > 0.0 && load <= 1000.0,
                "--load {load} is no share of all devices: give one above 0"
            );
            let scenario = self.varied(&scenario, load);
            let days = days(&scenario, self.seed, &choices)?;
            let bounds = self.bounds(&days);
            table::print(out, (self.seed, load), &days, &bounds)?;
            out.flush()?;
        }
        Ok(())
    }

    /// The scenario under some load, with what is to be different.
    fn varied(&self, scenario: &Scenario, load: f64) -> Scenario {
        let mut scenario = scenario.clone();
        let Some(market) = &mut scenario.market else {
            return scenario;
        };
        market.load = load;
        if let Some(gigabytes) = self.input {
            market.input_bytes = [gigabytes.saturating_mul(1_000_000_000); 2];
        }
        if let Some(price) = self.traffic_price {
            market.traffic_price = price.as_micros();
        }
        let is_west = |region: &String| !market.east.contains(region);
        let west = scenario.groups.iter_mut();
        for group in west.filter(|group| is_west(&group.region)) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "prices and factors are small and above zero"
            )]
            let price = (group.price as f64 * self.west_price).round() as u64;
            group.price = price;
        }
        scenario
    }

    fn chosen(&self) -> anyhow::Result<Vec<(&'static str, Choice)>> {
        let named = self.choices.iter().map(|wanted| {
            let known = CHOICES.iter().find(|(name, _)| name == wanted).copied();
            let names = || CHOICES.map(|(name, _)| name).join(", ");
            known.with_context(|| format!("no choice is called `{wanted}`; there are {}", names()))
        });
        let named = named.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(if named.is_empty() {
            CHOICES.to_vec()
        } else {
            named
        })
    }

    /// Lower bounds of the days; none if there is no solver.
    fn bounds(&self, days: &[Day]) -> Vec<Option<f64>> {
        let mut bounds = Vec::new();
        for day in days {
            match bound::least_cost(&self.python, &day.outcome) {
                Ok((micros, _)) => bounds.push(Some(micros / 1e6)),
                Err(why) => {
                    eprintln!(
                        "suanli-testnet: no lower bound: {why:#}; `scripts/market` installs scipy, \
                         or name a Python that has it by --python"
                    );
                    return vec![None; days.len()];
                }
            }
        }
        bounds
    }
}

/// Simulates a day for each choice, on as many threads as there are processors.
///
/// # Errors
/// A scenario without a market, or a day on which something does not hold.
pub fn days(
    scenario: &Scenario,
    seed: u64,
    choices: &[(&'static str, Choice)],
) -> anyhow::Result<Vec<Day>> {
    let market = scenario
        .market
        .as_ref()
        .context("the scenario has no [market]; add one")?;
    let outcomes = on_all_cores(choices, |(_, choice)| {
        simulated(scenario, (seed, *choice), None)
    });
    let days = choices.iter().zip(outcomes);
    let days = days.map(|((name, _), outcome)| Day::of(name, scenario, market, seed, outcome));
    days.collect()
}

/// Simulates a day, and ends it early if too few of its jobs begin soon enough. Nothing then.
///
/// # Errors
/// As [`days`].
pub fn patient_day(
    scenario: &Scenario,
    seed: u64,
    choice: Choice,
    patience: Patience,
) -> anyhow::Result<Option<Day>> {
    let market = scenario
        .market
        .as_ref()
        .context("the scenario has no [market]; add one")?;
    let outcome = simulated(scenario, (seed, choice), Some(patience));
    let is_over = outcome.out_of_patience;
    let day = Day::of("day", scenario, market, seed, outcome)?;
    Ok((!is_over).then_some(day))
}

impl Day {
    fn of(
        choice: &'static str,
        scenario: &Scenario,
        market: &Market,
        seed: u64,
        outcome: Outcome,
    ) -> anyhow::Result<Self> {
        if let Some(complaint) = outcome.complaints.first() {
            anyhow::bail!("{choice}, seed {seed}: {complaint}");
        }
        Ok(Self {
            choice,
            figures: figures::figures(scenario, market, &outcome),
            outcome,
        })
    }
}

fn simulated(
    scenario: &Scenario,
    (seed, choice): (u64, Choice),
    patience: Option<Patience>,
) -> Outcome {
    let mut scenario = scenario.clone();
    if let Some(market) = &mut scenario.market {
        market.choice = choice;
    }
    let mut setup = Setup::new(seed, scenario);
    setup.patience = patience;
    run(&setup)
}
