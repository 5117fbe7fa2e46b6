//! `suanli job cost`: what a job is expected to cost and how long it takes, before it
//! runs, and what the same work costs on machines that are owned or rented.
//!
//! The network's side is the plan: units are shared out among the providers that fit as
//! the node would, in proportion to the speed that is expected of each. The other side
//! is a table that the user keeps ([`Prices`]), in the network's unit. Absent: any price
//! of ours; nobody else's prices are right for long.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use suanli_protocol::units::Amount;
use toml::Spanned;

use super::{
    context::Context,
    exit::{Exit, Failure},
    run::{MarketArgs, plan, planned},
    screen::{Table, rough, visible},
};
use crate::{
    api::types::CandidateInfo,
    document::{Document, Mistake},
    jobfile::PreparedJob,
    wall::wall_ms,
};

/// Says what a job would cost and how long it would take, here and on your own machines
///
/// Nothing is sent to anybody. Prices of machines that you own or rent come from a file:
/// examples/prices.toml is one to copy.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The job file
    #[arg(value_name = "JOB.toml")]
    file: PathBuf,

    /// What owning and renting cost
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,

    #[command(flatten)]
    market: MarketArgs,
}

/// The user's table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prices {
    #[serde(default)]
    own: Vec<Owned>,
    #[serde(default)]
    rent: Vec<Rented>,
}

/// A machine that is bought.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Owned {
    name: String,
    /// What it cost.
    price: Amount,
    /// For how long it is used.
    years: Spanned<u32>,
    /// The part of that time in which it works.
    busy_percent: Spanned<u32>,
    /// What it takes while it works.
    #[serde(default)]
    watts: u32,
    /// What a kilowatt-hour costs.
    #[serde(default)]
    kwh: Amount,
    /// Floating-point operations per second; as fast as the best provider if not given.
    fp32: Option<Spanned<u64>>,
}

/// A machine that is rented.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rented {
    name: String,
    /// What an hour costs.
    hour: Amount,
    fp32: Option<Spanned<u64>>,
}

const HOURS_OF_A_YEAR: u128 = 8760;
const HOUR_MS: u128 = 3_600_000;
/// Watts and thousandths of a unit in a kilowatt.
const KILO: u128 = 1000;

/// What a job costs, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Cost {
    unit: String,
    units: u32,
    /// Whether the job says how much work it is; if not, times are taken from its limit.
    is_measured: bool,
    network: Here,
    elsewhere: Vec<Elsewhere>,
}

/// On the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Here {
    price: Amount,
    at_most: Amount,
    /// What sending the inputs there costs beside.
    traffic: Amount,
    took_ms: u64,
    /// How long it waits for a slot and for its inputs before that, where that takes longest.
    waits_ms: u64,
    /// When it would be over if it were handed in now.
    done_at_ms: u64,
    providers: usize,
    first: CandidateInfo,
}

/// On a machine of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Elsewhere {
    how: &'static str,
    name: String,
    price: Amount,
    took_ms: u64,
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let prices = match &self.prices {
            Some(path) => read(path)?,
            None => Prices::default(),
        };
        let job = self.market.read(context, &self.file).await?;
        let client = context.client()?;
        let (submission, found) = planned(&client, &job).await?;
        plan::require_candidate(&found, !job.providers.is_empty())?;
        let at_once = submission.array.map_or(1, |array| array.parallel);
        let Some(network) = here(&found.candidates, job.units(), at_once) else {
            return Ok(());
        };
        let cost = Cost {
            unit: found.unit.clone(),
            units: job.units(),
            is_measured: job.flops > 0 || job.fuel_max > 0,
            elsewhere: prices.of(&job, &network.first),
            network,
        };
        context.answer(&cost, |cost| text(cost, self.prices.is_none()));
        Ok(())
    }
}

fn read(path: &Path) -> Result<Prices, Failure> {
    let document =
        Document::read(path).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    parse(&document).map_err(|error| Failure::new(Exit::Usage, error.to_string()))
}

fn parse(document: &Document) -> Result<Prices, Mistake> {
    let prices: Prices =
        toml::from_str(document.text()).map_err(|error| document.parse_mistake(&error))?;
    for owned in &prices.own {
        if !(1..=100).contains(owned.busy_percent.get_ref()) {
            let message = "`busy_percent`: 1 to 100 are allowed, the part of its time in which the machine works";
            return Err(document.mistake(Some(owned.busy_percent.span()), message.to_owned()));
        }
        if *owned.years.get_ref() == 0 {
            let message = "`years`: 1 at least, the time until the machine is worth nothing";
            return Err(document.mistake(Some(owned.years.span()), message.to_owned()));
        }
    }
    let speeds = prices.own.iter().map(|own| &own.fp32);
    let speeds = speeds.chain(prices.rent.iter().map(|rent| &rent.fp32));
    if let Some(zero) = speeds.flatten().find(|speed| *speed.get_ref() == 0) {
        let message = "`fp32`: operations per second; leave it out if you don't know them";
        return Err(document.mistake(Some(zero.span()), message.to_owned()));
    }
    Ok(prices)
}

/// Units shared out among the best places, as many at once as the job allows, by speed.
fn here(candidates: &[CandidateInfo], units: u32, at_once: u16) -> Option<Here> {
    let first = candidates.first()?.clone();
    let mut places = usize::from(at_once).min(usize::try_from(units).unwrap_or(usize::MAX));
    let mut used: Vec<(&CandidateInfo, u128)> = Vec::new();
    for candidate in candidates {
        let slots = usize::try_from(candidate.slots).unwrap_or(usize::MAX);
        let taken = slots.max(1).min(places);
        if taken == 0 {
            break;
        }
        places -= taken;
        used.push((candidate, u128::try_from(taken).unwrap_or(1)));
    }
    // Units in a thousand hours, so that slow ones count as well.
    let rate = |(candidate, slots): &(&CandidateInfo, u128)| {
        slots * KILO * HOUR_MS / u128::from(candidate.expected_ms.max(1))
    };
    let all = used.iter().map(rate).sum::<u128>().max(1);
    let units = u128::from(units.max(1));
    let price = used.iter().map(|used| {
        // The plan's price is for all units there.
        u128::from(used.0.price.as_micros()) * rate(used) / all
    });
    let longest = used
        .iter()
        .map(|(candidate, _)| candidate.expected_ms)
        .max();
    let together = u64::try_from(units * KILO * HOUR_MS / all).unwrap_or(u64::MAX);
    let took_ms = together.max(
        longest
            .filter(|_| used.len() > 1 || units == 1)
            .unwrap_or(0),
    );
    let waits = used
        .iter()
        .map(|(candidate, _)| candidate.wait_ms.max(candidate.transfer_ms));
    let waits_ms = waits.max().unwrap_or(0);
    // As the plan has it: for what all units read, as if one place ran them.
    let traffic = used.iter().map(|used| used.0.traffic).max();
    Some(Here {
        price: amount(price.sum()),
        traffic: traffic.unwrap_or_default(),
        at_most: used
            .iter()
            .map(|used| used.0.cap)
            .max()
            .unwrap_or(first.cap),
        took_ms,
        waits_ms,
        done_at_ms: wall_ms().saturating_add(waits_ms).saturating_add(took_ms),
        providers: used.len(),
        first,
    })
}

fn amount(micros: u128) -> Amount {
    Amount::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

impl Prices {
    /// The same work, one unit after the other, on each machine.
    fn of(&self, job: &PreparedJob, first: &CandidateInfo) -> Vec<Elsewhere> {
        let took = |fp32: Option<&Spanned<u64>>| {
            let one = match fp32 {
                Some(fp32) if job.flops > 0 => {
                    u128::from(job.flops) * KILO / u128::from(*fp32.get_ref())
                }
                _ => u128::from(first.expected_ms),
            };
            one.max(1) * u128::from(job.units())
        };
        let line = |how, name: &str, hour: u128, fp32: Option<&Spanned<u64>>| {
            let took = took(fp32);
            Elsewhere {
                how,
                name: name.to_owned(),
                price: amount((hour * took).div_ceil(HOUR_MS)),
                took_ms: u64::try_from(took).unwrap_or(u64::MAX),
            }
        };
        let own = self
            .own
            .iter()
            .map(|own| line("owned", &own.name, own.hour(), own.fp32.as_ref()));
        let rent = self.rent.iter().map(|rent| {
            let hour = u128::from(rent.hour.as_micros());
            line("rented", &rent.name, hour, rent.fp32.as_ref())
        });
        own.chain(rent).collect()
    }
}

impl Owned {
    /// What an hour of work costs, in millionths.
    fn hour(&self) -> u128 {
        let years = u128::from(*self.years.get_ref());
        let busy = u128::from(*self.busy_percent.get_ref());
        let worked = (years * HOURS_OF_A_YEAR * busy).max(1);
        let bought = u128::from(self.price.as_micros()) * 100 / worked;
        bought + u128::from(self.watts) * u128::from(self.kwh.as_micros()) / KILO
    }
}

fn text(cost: &Cost, needs_table: bool) -> String {
    let mut table = Table::new(&["where", ">price", ">against here", ">takes"]);
    let here = &cost.network;
    let (first, unit) = (&here.first, visible(&cost.unit));
    table.row([
        "on the network".to_owned(),
        here.price.to_string(),
        String::new(),
        rough(here.took_ms),
    ]);
    for other in &cost.elsewhere {
        table.row([
            format!("{}: {}", other.how, visible(&other.name)),
            other.price.to_string(),
            times(other.price, here.price),
            rough(other.took_ms),
        ]);
    }
    let mut text = table.render(0);
    let region = visible(&first.region);
    let (at_most, device) = (here.at_most, visible(&first.device));
    text += &match (cost.units, here.providers) {
        (1, _) => format!("on {device} of {} in {region}", first.peer),
        (units, 1) => format!("{units} units at {} in {region}", first.peer),
        (units, providers) => format!(
            "{units} units on {providers} providers, first {} in {region}",
            first.peer
        ),
    };
    text += &format!("; prices in {unit}, {at_most} at most\n");
    let all = rough(here.waits_ms.saturating_add(here.took_ms));
    text += &match here.waits_ms {
        0 => format!("done in about {all}\n"),
        waits => format!(
            "done in about {all}, of which {} go by before it begins\n",
            rough(waits)
        ),
    };
    if here.traffic > Amount::ZERO {
        text += &format!(
            "beside that {} for sending the inputs, by traffic_price\n",
            here.traffic
        );
    }
    if !cost.is_measured {
        text += "times are guessed from limits.run: set market.flops for better ones\n";
    }
    if needs_table {
        text += "to compare with owning and renting: --prices FILE, see examples/prices.toml\n";
    }
    text
}

/// How many times one amount is another, with two digits.
fn times(this: Amount, that: Amount) -> String {
    let hundredths = u128::from(this.as_micros()) * 100 / u128::from(that.as_micros().max(1));
    format!("{}.{:02} times", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use suanli_protocol::ids::{Hash, OfferId, PeerId};

    use super::*;

    fn candidate(expected_ms: u64, price: u64, slots: u32) -> CandidateInfo {
        CandidateInfo {
            peer: PeerId::from_bytes([1; 32]),
            offer: OfferId(Hash::of(b"")),
            region: "CN-NX".into(),
            device: "device".into(),
            slots,
            expected_ms,
            finish_ms: expected_ms,
            wait_ms: 0,
            transfer_ms: 0,
            carbon_mg: None,
            traffic: Amount::ZERO,
            price: Amount::from_micros(price),
            cap: Amount::from_micros(price * 2),
        }
    }

    #[test]
    fn units_are_shared_out_by_speed_and_price() {
        let one = here(&[candidate(2000, 500, 4), candidate(1000, 900, 1)], 1, 1).unwrap();
        assert_eq!(
            (one.price.as_micros(), one.took_ms, one.providers),
            (500, 2000, 1)
        );
        // Two slots of two seconds and one of one second are two units a second.
        let all = [candidate(2000, 1000, 2), candidate(1000, 2000, 1)];
        let mut later = all.clone();
        later[1].transfer_ms = 7000;
        let waits = |all: &[CandidateInfo]| here(all, 100, 64).unwrap().waits_ms;
        assert_eq!((waits(&all), waits(&later)), (0, 7000));
        let many = here(&all, 100, 64).unwrap();
        assert_eq!((many.price.as_micros(), many.providers), (1500, 2));
        assert!(
            (49_900..=50_100).contains(&many.took_ms),
            "{}",
            many.took_ms
        );
        // One at a time is one provider's.
        let alone = here(&all, 100, 1).unwrap();
        assert_eq!((alone.price.as_micros(), alone.took_ms), (1000, 200_000));
        assert!(here(&[], 1, 1).is_none());
    }

    #[test]
    fn an_owned_machine_costs_what_it_cost_over_its_working_hours() {
        let text = "[[own]]\nname = 'box'\nprice = '8760'\nyears = 1\nbusy_percent = 50\nwatts = 500\nkwh = '0.60'\n";
        let prices = parse(&Document::new(Path::new("prices.toml"), text)).unwrap();
        // Two for each hour in which it works, and 0.30 for power.
        assert_eq!(prices.own[0].hour(), 2_300_000);
    }

    #[test]
    fn wrong_tables_are_refused_with_their_line() {
        let own = "[[own]]\nname = 'box'\nprice = '1'\nyears = 1\nbusy_percent = 50\n";
        for (from, to, line, says) in [
            ("busy_percent = 50", "busy_percent = 0", 5, "1 to 100"),
            ("years = 1", "years = 0", 4, "1 at least"),
            ("years = 1", "year = 1", 4, "years"),
            (
                "busy_percent = 50",
                "busy_percent = 50\nfp32 = 0",
                6,
                "leave it out",
            ),
        ] {
            let text = own.replace(from, to);
            let mistake = parse(&Document::new(Path::new("prices.toml"), text)).unwrap_err();
            assert_eq!(mistake.line, line, "{mistake}");
            assert!(mistake.message.contains(says), "{mistake}");
        }
    }
}
