//! Does pooling pay? Firms with bursts of work, each with a machine of its own; and the
//! same firms with the same work, and a pool that all of them can buy from.
//!
//! ```text
//! duty ──▶ every firm alone with its machine ──▶ how long 95 in 100 jobs wait
//!      └─▶ pools of fewer and fewer machines, until they wait longer ──▶ machines needed
//! ```
//!
//! Both are days of the market's simulator ([`crate::market`]) with real peers: a firm that
//! owns is a client whose jobs name its own region, in which its machine is the only
//! provider; a firm that pools takes the cheapest. While a firm has work, it has as much as
//! keeps four fifths of one machine busy; the duty is the part of the day in which it has.
//!
//! Absent: what a machine costs. The command says what it took for granted, and
//! `docs/ownership.md` where that is from.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use serde::Serialize;
use suanli_protocol::rank::Policy;

use crate::{
    cores::on_all_cores,
    market::{Figures, days},
    scenario::{Choice, Group, Role, Scenario},
};

/// What to simulate.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Parts of the day in which a firm has work
    #[arg(long, value_name = "SHARE", value_delimiter = ',', default_values_t = [0.1, 0.25, 0.5, 0.75, 0.9])]
    duty: Vec<f64>,
    /// How many firms
    #[arg(long, default_value_t = 30)]
    firms: usize,
    /// Decides everything that the scenario leaves open
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What a machine of one's own costs in an hour, used or not
    #[arg(long, default_value_t = 1.18)]
    own_hour: f64,
    /// Draw the curve into an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// A Python with matplotlib, for that
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
}

/// While a firm has work, so much of its machine is busy.
const BUSY: f64 = 0.8;

/// One duty, both ways.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    /// The part of the day in which a firm has work.
    pub duty: f64,
    /// Jobs in all.
    pub jobs: usize,
    /// Each firm with its own.
    pub owned: Way,
    /// All with a pool.
    pub pooled: Way,
}

/// What it took.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Way {
    /// Machines.
    pub machines: usize,
    /// How much of their time they worked.
    pub used: f64,
    /// What 95 in 100 jobs waited at most, in seconds.
    pub wait_p95: f64,
    /// What a job cost: of machines of one's own their hours, of the pool's its prices.
    pub cost_per_job: f64,
    /// What the machines cost for each job, whoever has them.
    pub machines_per_job: f64,
}

impl Args {
    /// Simulates, prints a table, and draws the curve.
    ///
    /// # Errors
    /// Duties that are none, days on which something does not hold, or output that can't be
    /// written.
    pub fn run(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        anyhow::ensure!(self.firms > 0, "--firms must be at least 1");
        for duty in &self.duty {
            anyhow::ensure!(
                *duty > 0.0 && *duty <= 1.0,
                "--duty {duty} is no part of a day: give parts above 0 and up to 1"
            );
        }
        let base = Scenario::ownership()?;
        let points = on_all_cores(&self.duty, |duty| self.point(&base, *duty));
        let points = points.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let (firms, seed) = (self.firms, self.seed);
        writeln!(
            out,
            "{firms} firms, seed {seed}, {} an hour of one's own machine.\n",
            self.own_hour
        )?;
        writeln!(
            out,
            "| duty | jobs | machines owned | pooled | owned for each pooled | used, owned | pooled | \
             wait p95, owned | pooled | cost of a job, owned | bought | the pool's machines for a job |"
        )?;
        writeln!(out, "|---:|{}", "---:|".repeat(11))?;
        for point in &points {
            writeln!(out, "{}", row(point))?;
        }
        match &self.plot {
            Some(file) => draw(&self.python, file, &points),
            None => Ok(()),
        }
    }

    fn point(&self, base: &Scenario, duty: f64) -> anyhow::Result<Point> {
        let (owned, jobs) = self.way(&owning(base, self.firms, duty), Choice::OwnRegion)?;
        let pool = |machines| {
            let scenario = pooling(base, self.firms, machines, duty);
            Ok::<_, anyhow::Error>(self.way(&scenario, Choice::Policy(Policy::Cheapest))?.0)
        };
        // The fewest machines with which nobody waits longer, by halving; as many as the
        // firms would own are enough.
        let (mut few, mut enough) = (0, pool(self.firms)?);
        while enough.machines - few > 1 {
            let machines = usize::midpoint(few, enough.machines);
            let tried = pool(machines)?;
            if tried.wait_p95.is_finite() && tried.wait_p95 <= owned.wait_p95 {
                enough = tried;
            } else {
                few = machines;
            }
        }
        Ok(Point {
            duty,
            jobs,
            owned: Way {
                cost_per_job: owned.machines_per_job,
                ..owned
            },
            pooled: enough,
        })
    }

    fn way(&self, scenario: &Scenario, choice: Choice) -> anyhow::Result<(Way, usize)> {
        let days = days(scenario, self.seed, &[("day", choice)])?;
        let day = days.first().context("no day was simulated")?;
        let of = &day.figures;
        let machines = scenario.groups.iter().filter(|group| group.role.sells());
        let machines: usize = machines.map(|group| group.count).sum();
        let hours = count(machines) * f64::from(u32::try_from(scenario.seconds)?) / 3600.0;
        let jobs = count(day.outcome.trades.len()).max(1.0);
        let way = Way {
            machines,
            used: used(of, scenario),
            // Whoever is not served waits for ever.
            wait_p95: if of.late + of.declined > 0 {
                f64::INFINITY
            } else {
                of.wait_p95
            },
            cost_per_job: of.cost / jobs,
            machines_per_job: hours * self.own_hour / jobs,
        };
        Ok((way, day.outcome.trades.len()))
    }
}

/// Slots taken while the day lasts, over all regions.
fn used(of: &Figures, scenario: &Scenario) -> f64 {
    let sells = scenario.groups.iter().filter(|group| group.role.sells());
    let (mut taken, mut all) = (0.0, 0.0);
    for group in sells {
        taken += count(group.count) * of.used.get(&group.region).copied().unwrap_or(0.0);
        all += count(group.count);
    }
    taken / f64::max(all, 1.0)
}

/// Every firm in a region of its own, with one machine there.
fn owning(base: &Scenario, firms: usize, duty: f64) -> Scenario {
    let mut scenario = with_duty(base, duty, duty * BUSY);
    let groups = |role: fn(Role) -> bool, name: &str| {
        let like = base.groups.iter().find(|group| role(group.role)).cloned();
        let name = name.to_owned();
        (0..firms).filter_map(move |n| {
            Some(Group {
                name: format!("{name}{n}-"),
                count: 1,
                region: format!("firm {n}"),
                ..like.clone()?
            })
        })
    };
    // Clients first, so that the seed draws the same for both ways.
    scenario.groups = groups(Role::buys, "firm")
        .chain(groups(Role::sells, "own"))
        .collect();
    scenario
}

/// All firms, and a pool.
fn pooling(base: &Scenario, firms: usize, machines: usize, duty: f64) -> Scenario {
    let mut scenario = with_duty(base, duty, duty * BUSY * count(firms) / count(machines));
    for group in &mut scenario.groups {
        group.count = if group.role.sells() { machines } else { firms };
    }
    scenario
}

/// So much of the day with work, and so much work in all.
fn with_duty(base: &Scenario, duty: f64, load: f64) -> Scenario {
    let mut scenario = base.clone();
    if let Some(market) = &mut scenario.market {
        let parts = market.hours.len();
        let fits = |bursts: &usize| count(*bursts) <= duty * count(parts) + 0.5;
        market.bursts = (1..=parts).take_while(fits).last().unwrap_or(1);
        market.load = load;
    }
    scenario
}

fn count(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn row(point: &Point) -> String {
    let (owned, pooled) = (&point.owned, &point.pooled);
    let minutes = |seconds: f64| format!("{:.1} min", seconds / 60.0);
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    format!(
        "| {} | {} | {} | {} | {:.2} | {} | {} | {} | {} | {:.3} | {:.3} | {:.3} |",
        percent(point.duty),
        point.jobs,
        owned.machines,
        pooled.machines,
        count(owned.machines) / count(pooled.machines),
        percent(owned.used),
        percent(pooled.used),
        minutes(owned.wait_p95),
        minutes(pooled.wait_p95),
        owned.cost_per_job,
        pooled.cost_per_job,
        pooled.machines_per_job,
    )
}

fn draw(python: &Path, file: &Path, points: &[Point]) -> anyhow::Result<()> {
    let picture =
        File::create(file).with_context(|| format!("{} can't be written", file.display()))?;
    let mut process = Command::new(python)
        .args(["-c", include_str!("ownership/plot.py")])
        .stdin(Stdio::piped())
        .stdout(picture)
        .spawn()
        .with_context(|| {
            format!(
                "{} can't be run; name a Python by --python",
                python.display()
            )
        })?;
    let mut orders = process.stdin.take().context("its input")?;
    serde_json::to_writer(&mut orders, points)?;
    drop(orders);
    anyhow::ensure!(
        process.wait()?.success(),
        "the curve is not drawn; install matplotlib for {}",
        python.display()
    );
    Ok(())
}
