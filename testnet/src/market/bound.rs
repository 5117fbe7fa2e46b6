//! The least that a day's jobs can cost, by HiGHS: a solver that others keep.
//!
//! **Why it bounds every policy from below.** Take any history of the simulator, and the
//! jobs that were done in it. Each ran between its submission and its deadline, on a
//! provider that runs no more than its slots at once, and cost at least the provider's
//! price for its operations (receipts round up). So how much of which job ran in which
//! interval on which provider is a solution of the program in `bound.py`, and costs no more
//! than was paid. The program allows more than any history does: jobs may be cut into
//! pieces that run at once, travel in no time, and begin at the start of the interval in
//! which they are handed in. What it finds is therefore no more than what any policy could
//! pay for these jobs; and since a policy that leaves jobs out pays less, each is held
//! against the bound of the jobs that it did itself.
//!
//! Absent: the program's solution. Only its cost is used.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use suanli_protocol::{record::JobEnd, units::Mono};

use super::figures::float;
use crate::sim::{Outcome, Place, Trade};

/// An interval of the program.
const INTERVAL_MS: u64 = 15 * 60_000;
/// Operations that are one unit of work there, so that its numbers are neither huge nor
/// tiny.
const UNIT: f64 = 1e15;

#[derive(Debug, Serialize)]
struct Question {
    machines: Vec<Machine>,
    work: Vec<Kind>,
}

#[derive(Debug, Serialize)]
struct Machine {
    capacity: f64,
    price: f64,
}

/// Work that comes and must be done at the same time.
#[derive(Debug, Serialize)]
struct Kind {
    from: u64,
    until: u64,
    amount: f64,
}

#[derive(Debug, Deserialize)]
struct Answer {
    cost: f64,
    solver: String,
}

/// The least that the jobs that were done could have cost, in millionths, and who says so.
///
/// # Errors
/// If the solver can't be run, or finds nothing.
pub(super) fn least_cost(python: &Path, outcome: &Outcome) -> anyhow::Result<(f64, String)> {
    let question = serde_json::to_vec(&question(outcome))?;
    let mut process = Command::new(python)
        .args(["-c", include_str!("bound.py")])
        // HiGHS has one thread; those of the linear algebra would only spin beside it.
        .env("OPENBLAS_NUM_THREADS", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} can't be run", python.display()))?;
    // Nothing comes back before all of it is read, so neither side waits for the other.
    let sent = process
        .stdin
        .take()
        .context("its input")?
        .write_all(&question);
    let output = process.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{}",
            said.lines().last().unwrap_or("it ended without a word")
        );
    }
    sent?;
    let Answer { cost, solver } = serde_json::from_slice(&output.stdout)?;
    let fixed = outcome.places.iter().filter(|place| place.slots > 0);
    let fixed = fixed.map(|place| place.price_job.as_micros()).min();
    let jobs = float(done(outcome).count());
    Ok((cost + jobs * float(fixed.unwrap_or(0)), solver))
}

fn done(outcome: &Outcome) -> impl Iterator<Item = &Trade> {
    let is_done = |trade: &&Trade| matches!(trade.ended, Some((_, JobEnd::Done)));
    outcome.trades.iter().filter(is_done)
}

fn question(outcome: &Outcome) -> Question {
    let mut work = BTreeMap::<(u64, u64), f64>::new();
    for trade in done(outcome) {
        let kind = (interval(trade.submitted), interval(trade.due));
        *work.entry(kind).or_default() += float(trade.operations) / UNIT;
    }
    let kind = |((from, until), amount)| Kind {
        from,
        until,
        amount,
    };
    let sells = outcome.places.iter().filter(|place| place.slots > 0);
    Question {
        machines: sells.map(machine).collect(),
        work: work.into_iter().map(kind).collect(),
    }
}

fn interval(at: Mono) -> u64 {
    at.as_micros() / 1000 / INTERVAL_MS
}

fn machine(place: &Place) -> Machine {
    let of_interval = float(place.speed) * float(INTERVAL_MS) / 1000.0;
    Machine {
        capacity: of_interval * f64::from(place.slots) / UNIT,
        price: float(place.price_second.as_micros()) / float(place.speed.max(1)) * UNIT,
    }
}
