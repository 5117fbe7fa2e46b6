//! `[provide]`: what a node sells, to whom, and on what credit.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};
use suanli_executor::{Adapter, AdapterSelection, ExecutorError, quantity::ByteSize};
use suanli_protocol::{
    expression::Expression,
    ids::AccountId,
    limits::{PRICES_MAX, RUN_MAX},
    offer::{Energy, check_prices},
    registry::{Runtime, SandboxLevel},
    units::{Amount, Meter, Price},
};

use super::{Hours, UtcOffset};
use crate::{
    document::allowed,
    models::entry::{self, ModelEntry},
    pricing::{self, PricingEntry},
};

/// What waits is kept in memory and in the journal.
const QUEUE_MAX: u32 = 1024;
/// Workers take a part of a second to warm.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// What a node sells. The section alone is enough to sell; prices have no
/// default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provide {
    /// Executions at once.
    pub slots: u32,
    /// Worker processes kept warm.
    pub workers: u32,
    /// Which adapter computes.
    pub device: DeviceSelection,
    /// Whether the offer can be taken at its prices in one round trip.
    pub firm: bool,
    /// Whether unknown accounts may buy.
    pub strangers: bool,
    /// The sandbox that strangers from other machines are served in, or a stronger one.
    pub sandbox_min: SandboxLevel,
    /// What it wants of jobs and their clients, beside all that.
    pub accept: Accept,
    /// How much one of them may owe.
    pub stranger_credit: Amount,
    /// How much all of them together may owe.
    pub strangers_budget: Amount,
    /// Accounts with a credit of their own.
    pub known: Vec<KnownAccount>,
    /// Accounts that are not served.
    pub blocked: Vec<AccountId>,
    /// The longest execution.
    pub run_max: Duration,
    /// Bytes of inputs and outputs kept for one job.
    pub storage: ByteSize,
    /// How far below the price a counter-offer may go.
    pub discount_percent_max: u8,
    /// Capacity challenges taken in an hour, from all peers together.
    pub challenges_per_hour: u32,
    /// How often in an hour others are shown who accepted its work.
    pub references_per_hour: u32,
    /// Pieces of work that may wait for a slot.
    pub queue: u32,
    /// What the power costs, for a kilowatt-hour: the floor of all prices.
    pub power_price: Option<Amount>,
    /// Watts that the devices take under load.
    pub watts: u32,
    /// Grams of carbon dioxide per kilowatt-hour of that power.
    pub carbon: u32,
    /// Prices by the clock, by load, and by client.
    pub pricing: Vec<PricingEntry>,
    /// Bytes of device memory for jobs; what the device has if not given.
    pub memory: Option<ByteSize>,
    /// Bytes of the device's memory that no job gets.
    pub memory_reserve: ByteSize,
    /// When workers that nobody used end.
    pub idle_after: IdleAfter,
    /// When it sells, by a clock in UTC.
    pub hours: Hours,
    /// What it does while another program uses the device.
    pub yields: Yield,
    /// How far the clock of `hours` is ahead of UTC.
    pub utc_offset: UtcOffset,
    /// The price list.
    pub price: Vec<PriceEntry>,
    /// Models of servers of its own.
    pub model: Vec<ModelEntry>,
}

/// A condition on jobs; none for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accept(pub Option<Expression>);

/// Which adapters a node sells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSelection(pub Vec<AdapterSelection>);

impl Default for DeviceSelection {
    fn default() -> Self {
        Self(vec![AdapterSelection::Best])
    }
}

impl DeviceSelection {
    /// Those that it means, each once, in its order.
    ///
    /// # Errors
    /// If it means one that is not there.
    pub fn pick(&self, adapters: &[Adapter]) -> Result<Vec<Adapter>, ExecutorError> {
        let mut picked: Vec<Adapter> = Vec::new();
        for selection in &self.0 {
            for adapter in selection.pick(adapters)? {
                if picked.iter().all(|known| known.index != adapter.index) {
                    picked.push(adapter);
                }
            }
        }
        Ok(picked)
    }
}

/// What a node does while another program uses the device that it sells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Yield {
    /// It begins nothing new, until the device was quiet for a minute.
    #[default]
    Pause,
    /// It goes on.
    Off,
}

/// How long workers stay warm that nobody uses; none for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IdleAfter(pub Option<Duration>);

/// An account that the operator knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownAccount {
    /// Who.
    pub account: AccountId,
    /// How much it may owe.
    pub credit: Amount,
}

/// A price, as in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceEntry {
    /// What is metered.
    #[serde(deserialize_with = "meter")]
    pub meter: Meter,
    /// What the quantity costs.
    pub amount: Amount,
    /// How much of the meter.
    #[serde(default = "one")]
    pub per: u64,
}

impl Default for Provide {
    fn default() -> Self {
        Self {
            slots: 1,
            workers: 1,
            device: DeviceSelection::default(),
            firm: true,
            strangers: true,
            sandbox_min: SandboxLevel::CONFINED,
            accept: Accept::default(),
            stranger_credit: Amount::from_micros(5_000_000),
            strangers_budget: Amount::from_micros(50_000_000),
            known: Vec::new(),
            blocked: Vec::new(),
            run_max: Duration::from_secs(3600),
            storage: ByteSize(4 << 30),
            discount_percent_max: 0,
            challenges_per_hour: 12,
            references_per_hour: 120,
            queue: 16,
            power_price: None,
            watts: 0,
            carbon: 0,
            pricing: Vec::new(),
            memory: None,
            memory_reserve: ByteSize(0),
            idle_after: IdleAfter(None),
            hours: Hours::default(),
            utc_offset: UtcOffset::default(),
            yields: Yield::default(),
            price: Vec::new(),
            model: Vec::new(),
        }
    }
}

impl From<PriceEntry> for Price {
    fn from(entry: PriceEntry) -> Self {
        Self {
            meter: entry.meter,
            amount: entry.amount,
            per: entry.per,
        }
    }
}

impl Provide {
    /// When it sells.
    pub fn open_hours(&self) -> Hours {
        self.hours.clone().by(self.utc_offset)
    }

    /// The price list, as offers carry it.
    pub fn prices(&self) -> Vec<Price> {
        self.price.iter().copied().map(Price::from).collect()
    }

    /// What is wrong beyond single values: the key, and what to do.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let pool_max = u32::try_from(suanli_executor::limits::POOL_MAX).unwrap_or(u32::MAX);
        for (key, count) in [
            ("provide.slots", self.slots),
            ("provide.workers", self.workers),
        ] {
            if !(1..=pool_max).contains(&count) {
                return Err((key, format!("{count}: 1 to {pool_max} are allowed")));
            }
        }
        if self.discount_percent_max > 100 {
            let message = "a discount is 100 percent at most".to_owned();
            return Err(("provide.discount_percent_max", message));
        }
        if self.idle_after.0.is_some_and(|after| after < IDLE_MIN) {
            let message = "1s at least, or \"never\"".to_owned();
            return Err(("provide.idle_after", message));
        }
        if self.run_max.is_zero() || self.run_max > RUN_MAX {
            return Err(("provide.run_max", "more than 0s, and 7d at most".to_owned()));
        }
        if self.queue > QUEUE_MAX {
            let message = format!("{}: 0 to {QUEUE_MAX} are allowed", self.queue);
            return Err(("provide.queue", message));
        }
        if self.power_price.is_some() && self.watts == 0 {
            let message = "what the power costs means nothing without provide.watts, what the \
                           devices take under load";
            return Err(("provide.power_price", message.to_owned()));
        }
        entry::check(&self.model).map_err(|message| ("provide.model", message))?;
        pricing::check(&self.pricing).map_err(|message| ("provide.pricing", message))?;
        self.check_prices()
    }

    /// What the power is like, if the operator says.
    pub fn energy(&self) -> Option<Energy> {
        (self.watts > 0).then_some(Energy {
            watts: self.watts,
            carbon_g_per_kwh: self.carbon,
        })
    }

    fn check_prices(&self) -> Result<(), (&'static str, String)> {
        let prices = self.prices();
        let sold = [Runtime::WGSL, Runtime::WASM].map(Meter::of);
        if prices.is_empty() && !self.model.is_empty() {
            return Ok(());
        }
        let message = if prices.is_empty() {
            "a provider needs a price: add [[provide.price]] with meter = \"gpu.ms\", \
             amount = \"0.50\", per = 3600000 (an hour); amount = \"0\" gives it away; or a \
             model, by [[provide.model]] or `suanli model add`"
                .to_owned()
        } else if !sold
            .iter()
            .any(|meter| prices.iter().any(|price| price.meter == *meter))
        {
            "nothing is sold: give `gpu.ms` a price to run wgsl jobs, `wasm.fuel` to run wasm jobs"
                .to_owned()
        } else if prices.len() > PRICES_MAX {
            format!("{} prices, at most {PRICES_MAX} are allowed", prices.len())
        } else if let Err(error) = check_prices(&prices) {
            format!("{error}; name each meter once, with `per` 1 or more")
        } else {
            return Ok(());
        };
        Err(("provide.price", message))
    }
}

fn meter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Meter, D::Error> {
    let name = String::deserialize(deserializer)?;
    Meter::named(&name).ok_or_else(|| {
        let known = Meter::names().collect::<Vec<_>>();
        let hint = allowed(&name, known);
        de::Error::custom(format!("unknown meter `{}`; {hint}", name.escape_debug()))
    })
}

const fn one() -> u64 {
    1
}
