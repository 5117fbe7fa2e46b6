//! Does pooling pay? Firms with bursts of work, each with a machine of its own; and the
//! same firms with the same work, and a pool that all of them can buy from.
//!
//! ```text
//! duty ──▶ every firm alone with its machine ──▶ how long 95 in 100 jobs wait
//!                                          └──▶ [guess] how many machines need not be tried
//!      └─▶ pools of more or fewer machines, until they wait longer ──▶ machines needed
//! ```
//!
//! Both are days of the market's simulator ([`crate::market`]) with real peers: a firm that
//! owns is a client whose jobs name its own region, in which its machine is the only
//! provider; a firm that pools takes the cheapest, and twenty such firms share a node, each a
//! principal of its account. While a firm has work, it has as much as keeps four fifths of one
//! machine busy; the duty is the part of the day in which it has.
//!
//! Absent: what a machine costs. The command says what it took for granted, and
//! `docs/ownership.md` where that is from.

mod guess;
mod kept;

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use suanli_protocol::rank::Policy;

use self::kept::Kept;
use crate::{
    cores::on_all_cores,
    market::{Day, Figures, days, patient_day},
    scenario::{Choice, Group, Role, Scenario},
    sim::Patience,
};

/// What to simulate.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Parts of the day in which a firm has work
    #[arg(long, value_name = "SHARE", value_delimiter = ',', default_values_t = [0.1, 0.25, 0.5, 0.75, 0.9])]
    duty: Vec<f64>,
    /// How many firms
    #[arg(long, default_value_t = 1000)]
    firms: usize,
    /// Firms that share a node, where they pool
    #[arg(long, value_name = "FIRMS", default_value_t = 20)]
    share: usize,
    /// Decides everything that the scenario leaves open
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What a machine of one's own costs in an hour, used or not
    #[arg(long, default_value_t = 1.18)]
    own_hour: f64,
    /// What an hour of a machine of the pool is sold for; else as the scenario says
    #[arg(long)]
    pool_hour: Option<f64>,
    /// A scenario file of firms and machines: like testnet/scenarios/ownership.toml, which is
    /// taken if none is named
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Keep what was found in this file, and take from it what it has: a run that was
    /// interrupted goes on. Other firms, prices or seeds want another file
    #[arg(long, value_name = "FILE")]
    points: Option<PathBuf>,
    /// Draw the curve into an SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// A Python with matplotlib, for that
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
}

/// While a firm has work, so much of its machine is busy.
const BUSY: f64 = 0.8;
/// The search for the fewest machines steps by, and ends within, one in so many.
const NEAR: usize = 64;
/// So many jobs of a hundred are to wait no longer in a pool.
const OF_HUNDRED: usize = 95;

/// One duty, both ways.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
        anyhow::ensure!(self.share > 0, "--share must be at least 1");
        for duty in &self.duty {
            anyhow::ensure!(
                *duty > 0.0 && *duty <= 1.0,
                "--duty {duty} is no part of a day: give parts above 0 and up to 1"
            );
        }
        let points = self.points(&self.base()?)?;
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

    /// The scenario, with the pool's price.
    fn base(&self) -> anyhow::Result<Scenario> {
        let mut base = match &self.scenario {
            Some(file) => Scenario::read(file)?,
            None => Scenario::ownership()?,
        };
        if let Some(hour) = self.pool_hour {
            anyhow::ensure!(
                (0.0..=1e9).contains(&hour),
                "--pool-hour {hour} is no price: give 0 or more"
            );
            // The scenario has millionths for a second.
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "bounded"
            )]
            let price = (hour * 1e6 / 3600.0).round() as u64;
            let machines = base.groups.iter_mut();
            for group in machines.filter(|group| group.role == Role::Provider) {
                group.price = price;
            }
        }
        Ok(base)
    }

    /// Each duty, both ways.
    ///
    /// # Errors
    /// A day on which something does not hold.
    pub fn points(&self, base: &Scenario) -> anyhow::Result<Vec<Point>> {
        // The longest first, so that no core waits for it at the end.
        let mut duties = self.duty.clone();
        duties.sort_by(|one, other| other.total_cmp(one));
        let kept = Kept::open(self.points.as_deref(), self.question())?;
        let points = on_all_cores(&duties, |duty| {
            if let Some(known) = kept.point(*duty) {
                return Ok(known);
            }
            let point = self.point(base, *duty)?;
            kept.keep(&point)?;
            Ok(point)
        });
        let mut points = points.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        points.reverse();
        Ok(points)
    }

    /// What points depend on beside their duty.
    fn question(&self) -> String {
        let pool = self
            .pool_hour
            .map_or_else(|| "as it says".to_owned(), |hour| hour.to_string());
        let scenario = self.scenario.as_deref().map(Path::display);
        format!(
            "{} firms, {} to a node, seed {}, own {}, pool {pool}, scenario {}",
            self.firms,
            self.share,
            self.seed,
            self.own_hour,
            scenario.map_or_else(|| "ownership".to_owned(), |path| path.to_string()),
        )
    }

    fn point(&self, base: &Scenario, duty: f64) -> anyhow::Result<Point> {
        let began = Instant::now();
        let alone = owning(base, self.firms, duty);
        let days = days(&alone, self.seed, &[("day", Choice::OwnRegion)])?;
        let day = days.first().context("no day was simulated")?;
        let owned = self.way(&alone, day)?;
        say(duty, &owned, began);
        let wait = Duration::try_from_secs_f64(owned.wait_p95)
            .context("with machines of their own, some jobs are not done")?;
        let patience = Patience {
            of_hundred: OF_HUNDRED,
            wait,
        };
        let pool = |machines| {
            let began = Instant::now();
            let scenario = pooling(base, (self.firms, self.share), machines, duty);
            let cheapest = Choice::Policy(Policy::Cheapest);
            let day = patient_day(&scenario, self.seed, cheapest, patience)?;
            let Some(day) = day else {
                let took = began.elapsed().as_secs();
                eprintln!("duty {duty}: {machines} machines are too few; took {took} s");
                return Ok(None);
            };
            let pooled = self.way(&scenario, &day)?;
            say(duty, &pooled, began);
            Ok((pooled.wait_p95 <= owned.wait_p95).then_some(pooled))
        };
        let guess = guess::fewest(&day.outcome, self.firms, patience);
        let pooled = fewest(guess, self.firms, pool)?;
        let pooled = pooled.with_context(|| {
            format!("duty {duty}: with as many machines as firms, a pool's jobs wait longer")
        })?;
        Ok(Point {
            duty,
            jobs: day.outcome.trades.len(),
            owned: Way {
                cost_per_job: owned.machines_per_job,
                ..owned
            },
            pooled,
        })
    }

    fn way(&self, scenario: &Scenario, day: &Day) -> anyhow::Result<Way> {
        let of = &day.figures;
        let machines = scenario.groups.iter().filter(|group| group.role.sells());
        let machines: usize = machines.map(|group| group.count).sum();
        let hours = count(machines) * f64::from(u32::try_from(scenario.seconds)?) / 3600.0;
        let jobs = count(day.outcome.trades.len()).max(1.0);
        Ok(Way {
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
        })
    }
}

/// Tells whoever waits how far it is.
fn say(duty: f64, way: &Way, began: Instant) {
    let (machines, wait) = (way.machines, way.wait_p95 / 60.0);
    let took = began.elapsed().as_secs();
    eprintln!("duty {duty}: {machines} machines, p95 {wait:.1} min; took {took} s");
}

/// The fewest of up to so many that are enough, or nearly: upwards or downwards from a guess,
/// by steps that double, and then by halving. Nothing, if all are too few.
fn fewest<T>(
    guess: usize,
    all: usize,
    try_with: impl Fn(usize) -> anyhow::Result<Option<T>>,
) -> anyhow::Result<Option<T>> {
    let (mut few, mut enough) = (0, None);
    let mut next = guess.clamp(1, all.max(1));
    let mut step = (next / NEAR).max(1);
    let mut most = all + 1;
    while most - few > (most / NEAR).max(1) {
        match try_with(next)? {
            Some(found) => (most, enough) = (next, Some(found)),
            None => few = next,
        }
        next = if most > all {
            (few + step).min(all)
        } else if few == 0 {
            most.saturating_sub(step).max(1)
        } else {
            usize::midpoint(few, most)
        };
        step *= 2;
        if few >= all || most <= 1 {
            break;
        }
    }
    Ok(enough)
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
    // Nobody buys elsewhere, so nobody has to hear of the others.
    scenario.links.local = true;
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

/// All firms, so many to a node, and a pool.
fn pooling(
    base: &Scenario,
    (firms, share): (usize, usize),
    machines: usize,
    duty: f64,
) -> Scenario {
    let mut scenario = with_duty(base, duty, duty * BUSY * count(firms) / count(machines));
    let groups = base.groups.iter().flat_map(|group| {
        let nodes = match group.role.sells() {
            true => vec![(machines, 1)],
            // The last node has what is left.
            false => vec![(firms / share, share), (1, firms % share)],
        };
        let nodes = nodes.into_iter().filter(|(count, firms)| count * firms > 0);
        nodes.map(|(count, firms)| Group {
            count,
            firms,
            ..group.clone()
        })
    });
    scenario.groups = groups.collect();
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

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet};

    use super::*;

    /// Half a day, and what is simulated of it.
    fn half_a_day(duty: &[f64], firms: usize) -> (Scenario, Args) {
        let mut base = Scenario::ownership().unwrap();
        base.seconds /= 2;
        if let Some(market) = &mut base.market {
            market.hours.truncate(12);
        }
        let args = Args {
            duty: duty.to_vec(),
            firms,
            share: 3,
            seed: 1,
            own_hour: 1.18,
            points: None,
            pool_hour: None,
            scenario: None,
            plot: None,
            python: "python3".into(),
        };
        (base, args)
    }

    #[test]
    fn pooling_saves_machines_where_work_is_rare_and_few_where_it_is_not() {
        let (base, args) = half_a_day(&[0.1, 0.9], 8);
        let points = args.points(&base).unwrap();
        let [rare, often] = &points[..] else {
            panic!("{points:?}");
        };
        let fewer = |point: &Point| count(point.owned.machines) / count(point.pooled.machines);
        assert!(fewer(rare) >= 2.0 * fewer(often), "{points:?}");
        assert!(fewer(often) < 1.7, "{points:?}");
        for point in &points {
            assert!(point.pooled.wait_p95 <= point.owned.wait_p95, "{point:?}");
            assert!(point.pooled.used > point.owned.used, "{point:?}");
        }
        // What an hour is sold for is what is paid for it.
        let dear = Args {
            pool_hour: Some(4.0),
            ..half_a_day(&[], 8).1
        };
        let price = |base: &Scenario| base.groups.last().map(|group| group.price);
        assert_eq!(price(&dear.base().unwrap()), Some(1111));
        assert_eq!(price(&args.base().unwrap()), Some(556));
        // A machine of one's own that stands idle costs more than buying, a busy one less.
        assert!(rare.pooled.cost_per_job < rare.owned.cost_per_job / 2.0);
        assert!(often.pooled.cost_per_job > often.owned.cost_per_job);
    }

    /// When jobs come, and what they are.
    fn demand(scenario: &Scenario) -> BTreeSet<(u64, u64)> {
        let choice = ("day", Choice::Policy(Policy::Cheapest));
        let days = days(scenario, 1, &[choice]).unwrap();
        let trades = days[0].outcome.trades.iter();
        let of = trades.map(|trade| (trade.submitted.as_micros(), trade.operations));
        of.collect()
    }

    #[test]
    fn the_same_jobs_come_at_the_same_times_both_ways() {
        let (base, _) = half_a_day(&[], 5);
        let owned = demand(&owning(&base, 5, 0.1));
        let pooled = demand(&pooling(&base, (5, 3), 5, 0.1));
        assert!(owned.len() > 8, "{owned:?}");
        assert_eq!(owned, pooled);
        let elsewhen = demand(&owning(&base, 4, 0.1));
        assert_ne!(owned, elsewhen);
    }

    #[test]
    fn the_fewest_that_are_enough_are_found_from_above_and_below() {
        for (guess, all, least) in [(4, 12, 4), (4, 12, 12), (9, 12, 2), (1, 1, 1)] {
            let tried = RefCell::new(Vec::new());
            let found = fewest(guess, all, |machines| {
                tried.borrow_mut().push(machines);
                Ok((machines >= least).then_some(machines))
            });
            assert_eq!(found.unwrap(), Some(least), "{tried:?}");
            assert!(tried.borrow().len() <= 7, "{tried:?}");
        }
        // Of a thousand it is near enough.
        let near = fewest(500, 1000, |machines| {
            Ok((machines >= 531).then_some(machines))
        });
        let near = near.unwrap().unwrap();
        assert!((531..=539).contains(&near), "{near}");
        let none = fewest(3, 12, |_| Ok(None::<usize>));
        assert_eq!(none.unwrap(), None);
    }
}
