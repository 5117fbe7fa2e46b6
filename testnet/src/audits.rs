//! Does auditing find liars as often as chance says?
//!
//! A provider that invents a part `q` of its results, audited with the chance `p`, is
//! found by its n-th result with the probability 1 − (1 − p·q)ⁿ, as long as whoever
//! makes the second result is right. [`run`] simulates networks in which a tenth of the
//! providers lies, at several rates, and sets what came out beside that. Every result of a liar
//! that is the first of its unit is one trial: how many of them are found to be wrong,
//! out of all, estimates p·q.
//!
//! Absent: liars that agree on their lies with each other. Two of them that check one
//! another are not found: then it is p·q·c, where c is the part of honest accounts.

use std::{io::Write, thread};

use crate::{
    scenario::{Nature, Scenario},
    sim::{Setup, run_many},
};

/// What to simulate.
#[derive(Debug, Clone, clap::Args)]
pub struct Audits {
    /// Chances of an audit
    #[arg(long, value_name = "P", value_delimiter = ',', default_values_t = [0.02, 0.05, 0.1, 0.3])]
    rates: Vec<f64>,
    /// How many of a liar's results are invented
    #[arg(long, value_name = "Q", default_value_t = 0.5)]
    lies: f64,
    /// Networks for each rate, from the first seed on
    #[arg(long, default_value_t = 30)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Results after which a liar's being found is shown.
const AFTER: [i32; 2] = [20, 100];
/// For an interval of 95%.
const Z: f64 = 1.96;

/// What came of one rate.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    liars: u64,
    named: u64,
    trials: u64,
    found: u64,
    /// Honest providers that were called liars.
    wronged: u64,
    /// Results judged, and how many units there were.
    judged: u64,
    units: u64,
}

impl Audits {
    /// Simulates, and prints a table.
    ///
    /// # Errors
    /// Rates that are none, seeds that fail, or a table that can't be printed.
    pub fn run(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        for rate in self.rates.iter().chain([&self.lies]) {
            anyhow::ensure!(
                (0.0..=1.0).contains(rate),
                "{rate} is no chance: they are between 0 and 1"
            );
        }
        writeln!(out, "{}", head())?;
        for &rate in &self.rates {
            let count = self.simulate(rate)?;
            writeln!(out, "{}", self.row(rate, &count))?;
            out.flush()?;
        }
        Ok(())
    }

    fn simulate(&self, rate: f64) -> anyhow::Result<Count> {
        let mut scenario = Scenario::liars()?;
        scenario.workload.audit_rate = rate;
        for group in &mut scenario.groups {
            group.cheats = self.lies;
        }
        let units = scenario
            .workload
            .units
            .map_or(0, |[least, _]| u64::from(least));
        let units = units * u64::from(scenario.workload.jobs);
        let setup = Setup::new(self.seed, scenario);
        let seeds = self.seed..self.seed.saturating_add(self.seeds);
        let threads = thread::available_parallelism().map_or(2, Into::into);
        let mut count = Count::default();
        let summary = run_many(&setup, seeds, threads, |_, outcome| {
            count.units += units;
            for trial in &outcome.trials {
                count.judged += trial.judged;
                if trial.nature == Nature::Cheat {
                    count.liars += 1;
                    count.trials += trial.results;
                    count.named += u64::from(trial.named);
                    count.found += trial.found;
                } else {
                    count.wronged += u64::from(trial.named);
                }
            }
        });
        if let Some((seed, outcome)) = summary.failing.first() {
            anyhow::bail!("seed {seed}: {}", outcome.complaints[0]);
        }
        Ok(count)
    }

    fn row(&self, rate: f64, count: &Count) -> String {
        let expected = (rate * 1000.0).round() / 1000.0 * self.lies;
        let (low, high) = interval(count.found, count.trials);
        let within = (low..=high).contains(&expected);
        let by = |chance: f64, n| 1.0 - (1.0 - chance).powi(n);
        let found: Vec<String> = AFTER
            .iter()
            .map(|&n| {
                format!(
                    "{:.3} ({:.3} to {:.3})",
                    by(expected, n),
                    by(low, n),
                    by(high, n)
                )
            })
            .collect();
        let more = share(count.judged, count.units) - 1.0;
        format!(
            "| {rate} | {} of {} | {} | {} | {expected:.4} | {low:.4} to {high:.4}{} | {} | {} | {:+.1}% |",
            count.named,
            count.liars,
            count.trials,
            count.found,
            if within { "" } else { ", outside" },
            found.join(" | "),
            count.wronged,
            more * 100.0,
        )
    }
}

fn head() -> String {
    let after = AFTER.map(|n| format!("found by result {n}, p·q (measured)"));
    let columns = format!(
        "| p | liars named | results on trial | found wrong | p·q | measured, 95% | {} | honest ones named | executions |",
        after.join(" | ")
    );
    let count = columns.matches('|').count() - 1;
    format!("{columns}\n|{}", "---|".repeat(count))
}

/// The interval of Wilson for a part of trials.
fn interval(found: u64, trials: u64) -> (f64, f64) {
    if trials == 0 {
        return (0.0, 1.0);
    }
    let (part, n) = (share(found, trials), float(trials));
    let around = part + Z * Z / (2.0 * n);
    let spread = Z * (part * (1.0 - part) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    ((around - spread) / scale, (around + spread) / scale)
}

fn share(part: u64, whole: u64) -> f64 {
    float(part) / float(whole.max(1))
}

/// Counts here are far below what a double can't hold.
fn float(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilsons_interval_is_as_in_tables() {
        let (low, high) = interval(10, 100);
        assert!((low - 0.0552).abs() < 1e-3 && (high - 0.1744).abs() < 1e-3);
        assert_eq!(interval(0, 0), (0.0, 1.0));
    }

    #[test]
    fn liars_are_found_and_honest_providers_are_not() {
        let audits = Audits {
            rates: vec![0.3],
            lies: 0.5,
            seeds: 1,
            seed: 1,
        };
        let count = audits.simulate(0.3).unwrap();
        assert_eq!((count.liars, count.wronged), (2, 0));
        assert!(count.found >= 1 && count.trials >= 2, "{count:?}");
    }
}
