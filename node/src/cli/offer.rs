//! `suanli offer`: the offer book.

use clap::Subcommand;

use super::{
    context::{Context, path},
    exit::Failure,
    screen::{Table, age, bytes, list, rough, speed, until},
};
use crate::api::types::{DeviceInfo, OfferInfo, PriceInfo};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists the offers that this node knows
    List,
    /// Shows one offer
    Show {
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
        ("runtimes", offer.runtimes.join(", ")),
        ("features", offer.features.join(", ")),
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
        ("sandbox", offer.sandbox.clone()),
        ("firm", yes(offer.firm)),
        ("strangers", strangers),
        ("made", age(offer.issued_ms)),
        ("expires", until(offer.expires_ms)),
    ]);
    for device in &offer.devices {
        text.push_str(&list(&[(
            "device     ",
            format!(
                "{}, {}{}, {}{}",
                device_name(device),
                speed(device.fp32_per_second),
                fuel_speed(device.fuel_per_second),
                bytes(device.memory_bytes),
                driver(&device.driver)
            ),
        )]));
    }
    text
}

/// Fuel is counted in millions: a processor uses some thousand of them a second.
fn fuel_speed(per_second: u64) -> String {
    match per_second / 1_000_000 {
        0 => String::new(),
        millions => format!(", {millions} million fuel/s"),
    }
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
