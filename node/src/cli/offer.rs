//! `suanli offer`: the offer book.

use clap::Subcommand;

use super::{
    context::{Context, path},
    exit::{Exit, Failure},
    screen::{Table, age, bytes, list, rough, speed, until},
};
use crate::api::types::{DeviceInfo, OfferInfo, OutcomeInfo, PriceInfo, SpeedInfo, StandingInfo};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists the offers that this node knows
    List,
    /// Shows one offer
    Show {
        /// The offer or its peer; the first digits are enough
        id: String,
    },
    /// Has a provider show that it is as fast as its offer says
    ///
    /// It multiplies two random matrices, commits to the product before it knows what
    /// will be looked at, and opens what this node asks for. A wrong product, or a slow
    /// one, lowers what this node believes of its offers. It costs nothing; providers
    /// take a few an hour.
    Challenge {
        /// The offer or its peer; the first digits are enough
        id: String,
    },
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::List => {
                let offers: Vec<OfferInfo> = client.get("/v1/offers").await?;
                context.answer(&offers, |offers| table(offers));
            }
            Self::Show { id } => {
                let offer: OfferInfo = client.get(&path("offers", &id)?).await?;
                context.answer(&offer, show);
            }
            Self::Challenge { id } => {
                let path = format!("{}/challenge", path("offers", &id)?);
                let outcome: OutcomeInfo = client.post(&path).await?;
                context.answer(&outcome, |outcome| format!("{}\n", challenged(outcome)));
                if !outcome.kept {
                    return Err(Failure::new(
                        Exit::NotVerified,
                        "the offer's word did not hold; jobs go by what was shown from now on",
                    ));
                }
            }
        }
        Ok(())
    }
}

fn table(offers: &[OfferInfo]) -> String {
    if offers.is_empty() {
        return "no offers known: `suanli peer list` shows whether there is anybody to hear\n"
            .into();
    }
    let mut table = Table::new(&[
        "offer", "peer", "region", "device", ">speed", ">free", "prices",
    ]);
    for offer in offers {
        let best = offer
            .devices
            .iter()
            .max_by_key(|device| device.fp32_per_second);
        let peer = if offer.own {
            format!("{} (this node)", offer.peer)
        } else {
            offer.peer.to_string()
        };
        table.row([
            offer.offer.to_string(),
            peer,
            offer.region.clone(),
            best.map_or_else(|| "-".into(), device_name),
            best.map_or_else(|| "-".into(), |device| speed(device.fp32_per_second)),
            format!("{}/{}", offer.slots_free, offer.slots),
            prices(&offer.prices),
        ]);
    }
    table.render(0)
}

fn show(offer: &OfferInfo) -> String {
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let strangers = if offer.strangers {
        format!("served, on credit up to {}", offer.stranger_credit)
    } else {
        "not served".to_owned()
    };
    let mut text = list(&[
        ("offer", format!("{:#}", offer.offer)),
        ("peer", format!("{:#}", offer.peer)),
        ("account", format!("{:#}", offer.account)),
        ("this node's", yes(offer.own)),
        ("sequence", offer.sequence.to_string()),
        ("region", offer.region.clone()),
        ("addresses", offer.addresses.join(" ")),
        ("prices", prices(&offer.prices)),
        (
            "slots",
            format!(
                "{} of {} free when it was made",
                offer.slots_free, offer.slots
            ),
        ),
        ("longest run", rough(offer.run_max_ms)),
        (
            "storage",
            format!("{} for a job", bytes(offer.storage_bytes)),
        ),
        (
            "network",
            match offer.bandwidth_in {
                0 => "not measured yet: no large blob has come to it".to_owned(),
                rate => format!("{}/s to it, the fastest seen", bytes(rate)),
            },
        ),
        ("sandbox", offer.sandbox.clone()),
        ("firm", yes(offer.firm)),
        ("strangers", strangers),
        (
            "accepts",
            offer
                .accept
                .clone()
                .unwrap_or_else(|| "all jobs".to_owned()),
        ),
        ("made", age(offer.issued_ms)),
        ("expires", until(offer.expires_ms)),
    ]);
    for device in &offer.devices {
        text.push_str(&list(&[(
            "device     ",
            format!(
                "{}, {}{}",
                device_name(device),
                bytes(device.memory_bytes),
                driver(&device.driver)
            ),
        )]));
        text.push_str(&list(&[("           ", runs(device))]));
        text.extend(device.speeds.iter().map(measured));
    }
    if !offer.own {
        text.push_str(&seen(offer.standing.as_ref()));
    }
    text
}

/// What a device runs, and how much at once.
fn runs(device: &DeviceInfo) -> String {
    let each = device.runtimes.iter().map(|offered| {
        if offered.features.is_empty() {
            offered.runtime.clone()
        } else {
            format!("{} ({})", offered.runtime, offered.features.join(", "))
        }
    });
    let each = each.collect::<Vec<_>>().join(", ");
    format!("runs {each}; {} at once", device.slots)
}

/// A line for a measured speed, in the unit that people know it by.
fn measured(of: &SpeedInfo) -> String {
    let amount = match &*of.kind {
        "fuel" => format!("{} million fuel/s", of.per_second / 1_000_000),
        "memory" | "transfer" | "disk" => format!("{}/s", bytes(of.per_second)),
        _ => speed(of.per_second),
    };
    format!(
        "{:13}{:<9} {amount:<20} measured {}\n",
        "",
        of.kind,
        age(of.measured_ms)
    )
}

/// What this node has seen of the provider.
fn seen(standing: Option<&StandingInfo>) -> String {
    let Some(standing) = standing else {
        let never = "nothing yet; `suanli offer challenge` has it show its speed".to_owned();
        return list(&[("seen       ", never)]);
    };
    let mut rows = Vec::new();
    if let Some(outcome) = &standing.challenge {
        rows.push((
            "challenge  ",
            format!("{}, {}", challenged(outcome), age(outcome.at_ms)),
        ));
    }
    if let Some(percent) = standing.work_percent {
        let of = standing.work_count;
        rows.push((
            "real work  ",
            format!("{percent}% of the speed claimed, the middle of {of}"),
        ));
    }
    if standing.accepted + standing.contradicted + standing.disputed > 0 {
        rows.push(("results    ", results(standing)));
    }
    let asked_again = standing.left_out_until_ms.map(until);
    if let Some(again) = asked_again.filter(|again| again != "past") {
        let why = "its results were wrong";
        rows.push(("left out   ", format!("{why}; it is asked again {again}")));
    }
    let believed = match standing.believed_percent {
        Some(percent) => format!("{percent}% of its speeds count when jobs are placed"),
        None => "it is not asked until it answers a challenge rightly".to_owned(),
    };
    rows.push(("believed   ", believed));
    list(&rows)
}

/// What became of its results, in one line.
fn results(standing: &StandingInfo) -> String {
    let mut parts = vec![format!("{} accepted", standing.accepted)];
    if standing.agreed > 0 {
        let (agreed, row) = (standing.agreed, standing.agreed_in_a_row);
        parts.push(format!(
            "{agreed} equal to others', the last {row} in a row"
        ));
    }
    if standing.contradicted > 0 {
        parts.push(format!("{} CONTRADICTED by others'", standing.contradicted));
    }
    if standing.disputed > 0 {
        parts.push(format!("{} disputed", standing.disputed));
    }
    parts.join("; ")
}

/// A challenge in one line.
pub(super) fn challenged(outcome: &OutcomeInfo) -> String {
    if !outcome.right {
        let wrong = outcome.wrong.as_deref().unwrap_or("the product was wrong");
        return format!("WRONG: {wrong} ({})", outcome.device);
    }
    if outcome.shown_per_second == 0 {
        return format!(
            "FAILED: it began and had no product after {} ms ({})",
            outcome.took_ms, outcome.device
        );
    }
    let percent =
        u128::from(outcome.shown_per_second) * 100 / u128::from(outcome.claimed_per_second.max(1));
    let word = if outcome.kept { "kept" } else { "SLOW" };
    format!(
        "{word}: at least {} of {} claimed ({percent}%), in {} ms on {}",
        speed(outcome.shown_per_second),
        speed(outcome.claimed_per_second),
        outcome.took_ms,
        outcome.device
    )
}

fn driver(driver: &str) -> String {
    if driver.is_empty() {
        String::new()
    } else {
        format!(", driver {driver}")
    }
}

fn device_name(device: &DeviceInfo) -> String {
    format!("{} ({})", device.model, device.kind)
}

fn prices(prices: &[PriceInfo]) -> String {
    let prices = prices.iter().map(|price| match price.per {
        1 => format!("{} a {}", price.amount, price.meter),
        per => format!("{} per {per} {}", price.amount, price.meter),
    });
    prices.collect::<Vec<_>>().join(", ")
}
