//! Do both sides of an account agree, whatever goes wrong between them?
//!
//! [`Settlement::run`] puts every fault of [`Fault`] at every step of [`Step`], on two
//! simulated nodes, for many seeds. All the time the totals of both sides must agree
//! within the unacknowledged vouchers, and in the end they must be equal. Then it lets
//! many fresh accounts run work that they never pay, and shows that they cost their
//! provider at most the budget that it has for strangers.

use std::io::Write;

use crate::{
    cores::on_all_cores,
    sim::{Fault, Fresh, Step, run_fresh, run_script},
};

/// What to simulate.
#[derive(Debug, Clone, clap::Args)]
pub struct Settlement {
    /// Runs of each fault at each step
    #[arg(long, default_value_t = 25)]
    pub seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Fresh accounts that never pay; 0 for none
    #[arg(long, default_value_t = 1000)]
    pub clients: usize,
}

/// Failures that are shown, at most.
const SHOWN_MAX: usize = 10;

/// What came of a cell of the table.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    struck: u64,
    failed: u64,
    owed: u128,
}

impl Settlement {
    /// Simulates, and prints a table. Gives the number of failures.
    ///
    /// # Errors
    /// A table that can't be printed.
    pub fn run(&self, out: &mut dyn Write) -> anyhow::Result<u64> {
        let (cells, wrong) = self.cells()?;
        let heads: Vec<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
        writeln!(out, "| after the | {} |", heads.join(" | "))?;
        writeln!(out, "|---|{}", "---|".repeat(heads.len()))?;
        let mut failures = 0;
        let mut struck = 0;
        for (step, row) in Step::ALL.iter().zip(cells.chunks(Fault::ALL.len())) {
            let row: Vec<String> = row
                .iter()
                .map(|cell| {
                    failures += cell.failed;
                    struck += cell.struck;
                    format!(
                        "{} of {}",
                        cell.struck - cell.failed.min(cell.struck),
                        cell.struck
                    )
                })
                .collect();
            writeln!(out, "| {} | {} |", step.name(), row.join(" | "))?;
        }
        let owed: u128 = cells.iter().map(|cell| cell.owed).sum();
        writeln!(
            out,
            "{struck} faults struck; both sides agree on {} in vouchers; {failures} failures",
            suanli_protocol::units::Total::from_micros(owed)
        )?;
        for wrong in wrong.iter().take(SHOWN_MAX) {
            writeln!(out, "{wrong}")?;
        }
        if self.clients > 0 {
            let fresh = run_fresh(self.seed, self.clients)?;
            failures += u64::from(fresh.wrong().is_some());
            self.say(&fresh, out)?;
        }
        Ok(failures)
    }

    fn cells(&self) -> anyhow::Result<(Vec<Cell>, Vec<String>)> {
        let of = |step| Fault::ALL.map(|fault| (step, fault));
        let kinds: Vec<(Step, Fault)> = Step::ALL.into_iter().flat_map(of).collect();
        let cells = on_all_cores(&kinds, |(step, fault)| self.cell(*step, *fault));
        let cells = cells.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let (cells, wrong): (Vec<_>, Vec<_>) = cells.into_iter().unzip();
        Ok((cells, wrong.concat()))
    }

    fn cell(&self, step: Step, fault: Fault) -> anyhow::Result<(Cell, Vec<String>)> {
        let mut cell = Cell::default();
        let mut said = Vec::new();
        for seed in self.seed..self.seed.saturating_add(self.seeds) {
            let scripted = run_script(seed, step, fault)?;
            let wrong = match (scripted.wrong, scripted.struck) {
                (None, false) => Some("the fault never struck: it shows nothing".to_owned()),
                (wrong, _) => wrong,
            };
            cell.struck += u64::from(scripted.struck);
            cell.owed += scripted.totals.0;
            if let Some(wrong) = wrong {
                cell.failed += 1;
                said.push(format!(
                    "{}, {}, seed {seed}: {wrong}",
                    step.name(),
                    fault.name()
                ));
            }
        }
        Ok((cell, said))
    }

    fn say(&self, fresh: &Fresh, out: &mut dyn Write) -> anyhow::Result<()> {
        let decimal = suanli_protocol::units::Total::from_micros;
        writeln!(
            out,
            "{} fresh clients: {} receipts; they owed {} at most, of a budget of {}; {} declines for it; \
             a known client {}; after {} were paid, strangers {}: {}",
            self.clients,
            fresh.served,
            decimal(fresh.owed_max),
            decimal(fresh.budget),
            fresh.declined,
            if fresh.known_served {
                "was served"
            } else {
                "was not served"
            },
            decimal(fresh.paid),
            if fresh.served_again {
                "were served again"
            } else {
                "were not served"
            },
            fresh.wrong().unwrap_or("all holds"),
        )?;
        Ok(())
    }
}
