//! `[[provide.pricing]]`: prices by the clock, by load, and by client.
//!
//! Each rule has a part of the list prices, in percent, and says when it holds; those
//! that hold are multiplied. `provide.power_price` is the floor: what the power costs that
//! the devices take while they compute, of time on a GPU and of fuel. Absent: a floor of a
//! model's tokens.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use suanli_protocol::{
    ids::AccountId,
    offer::Offer,
    pricing::{Moment, Pricing, WHOLE, fuel_floor, power_floor},
    registry::SpeedKind,
    units::{Amount, Price},
};

use crate::config::{Hours, Provide};

/// The most that rules make of the list prices together, in thousandths.
const RATE_MAX: u32 = 10 * WHOLE;
/// The most that one rule does, in percent.
const PERCENT_MAX: u32 = 1000;
/// Rules of one node.
const RULES_MAX: usize = 64;

/// A rule, as in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PricingEntry {
    /// What is asked of the list prices, in percent.
    pub percent: u32,
    /// When it holds, as in `provide.hours`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<String>,
    /// While at least so many percent of the slots are in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<u8>,
    /// For this client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<AccountId>,
}

impl PricingEntry {
    fn check(&self) -> Result<(), String> {
        if !(1..=PERCENT_MAX).contains(&self.percent) {
            return Err(format!(
                "percent = {}: 1 to {PERCENT_MAX} are allowed; provide.price gives work away",
                self.percent
            ));
        }
        if self.client.is_some() && self.percent > 100 {
            return Err(
                "a client can't be asked more than the offer says: give the others less, \
                 or put it into provide.blocked"
                    .to_owned(),
            );
        }
        if self.load.is_some_and(|load| load > 100) {
            return Err("load is a part of the slots: 0 to 100 percent".to_owned());
        }
        if self.hours.is_none() && self.load.is_none() && self.client.is_none() {
            return Err(
                "a rule says when it holds: hours = \"22:00-06:00\", load = 80, or client = \"…\""
                    .to_owned(),
            );
        }
        self.open_hours().map(drop)
    }

    fn open_hours(&self) -> Result<Option<Hours>, String> {
        let hours = self.hours.as_deref().map(str::parse::<Hours>);
        hours.transpose().map_err(|error| error.to_string())
    }
}

/// What is wrong with some rules, and what to do.
///
/// # Errors
/// A sentence.
pub fn check(entries: &[PricingEntry]) -> Result<(), String> {
    if entries.len() > RULES_MAX {
        return Err(format!("{} rules: {RULES_MAX} are allowed", entries.len()));
    }
    entries.iter().try_for_each(PricingEntry::check)
}

#[derive(Debug)]
struct Rule {
    rate: u32,
    hours: Option<Hours>,
    load: Option<u8>,
    client: Option<AccountId>,
}

#[derive(Debug)]
struct Rules {
    rules: Vec<Rule>,
    floor: Vec<Price>,
}

/// The pricing of a configuration, for what it offers.
pub fn of(provide: &Provide, offer: &Offer) -> Arc<dyn Pricing> {
    let rules = provide.pricing.iter().map(|entry| Rule {
        rate: entry.percent.saturating_mul(WHOLE / 100),
        // Checked when it was read.
        hours: entry
            .open_hours()
            .ok()
            .flatten()
            .map(|hours| hours.by(provide.utc_offset)),
        load: entry.load,
        client: entry.client,
    });
    let power = provide.power_price.filter(|price| *price > Amount::ZERO);
    let watts = offer.energy.map(|energy| energy.watts);
    let fuel = offer.devices.iter();
    let fuel = fuel.map(|device| {
        device
            .speed(SpeedKind::FUEL)
            .saturating_mul(device.slots.max(1).into())
    });
    let fuel = fuel.max().unwrap_or(0);
    let floor = power.zip(watts).map(|(price, watts)| {
        let time = power_floor(watts, price);
        [Some(time), fuel_floor(watts, price, fuel)]
    });
    Arc::new(Rules {
        rules: rules.collect(),
        floor: floor.into_iter().flatten().flatten().collect(),
    })
}

impl Rule {
    fn holds(&self, moment: &Moment) -> bool {
        let used = u64::from(moment.used) * 100;
        let slots = u64::from(moment.slots.max(1));
        let is_full = |load: u8| used >= u64::from(load) * slots;
        self.load.is_none_or(is_full)
            && (self.hours.as_ref()).is_none_or(|hours| hours.is_open(moment.now))
    }
}

fn product<'a>(rules: impl Iterator<Item = &'a Rule>) -> u32 {
    let rate = rules.fold(u64::from(WHOLE), |rate, rule| {
        (rate * u64::from(rule.rate) / u64::from(WHOLE)).min(u64::from(RATE_MAX))
    });
    u32::try_from(rate).unwrap_or(RATE_MAX)
}

impl Pricing for Rules {
    fn of_all(&self, moment: &Moment) -> u32 {
        let rules = self.rules.iter().filter(|rule| rule.client.is_none());
        product(rules.filter(|rule| rule.holds(moment)))
    }

    fn of_client(&self, account: AccountId, moment: &Moment) -> u32 {
        let rules = self.rules.iter();
        let rules = rules.filter(|rule| rule.client == Some(account));
        product(rules.filter(|rule| rule.holds(moment)))
    }

    fn floor(&self) -> &[Price] {
        &self.floor
    }
}

#[cfg(test)]
mod tests {
    use suanli_protocol::units::Wall;

    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    /// A midnight.
    const DAY: u64 = 20_000 * 24 * HOUR_MS;

    fn at(hour: u64, used: u32) -> Moment {
        Moment {
            now: Wall::from_millis(DAY + hour * HOUR_MS),
            used,
            slots: 4,
        }
    }

    fn entry(text: &str) -> PricingEntry {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn rules_that_hold_are_multiplied() {
        let friend = AccountId::from_bytes([7; 32]);
        let mut provide = Provide {
            pricing: vec![
                entry("percent = 50\nhours = \"22:00-06:00\""),
                entry("percent = 150\nload = 75"),
                PricingEntry {
                    client: Some(friend),
                    ..entry("percent = 80\nload = 0")
                },
            ],
            ..Provide::default()
        };
        let offer = crate::records::dealt::provider().offer;
        let rules = of(&provide, &offer);
        assert_eq!(rules.of_all(&at(12, 0)), 1000);
        assert_eq!(rules.of_all(&at(23, 0)), 500);
        assert_eq!(rules.of_all(&at(5, 3)), 750);
        assert_eq!(rules.of_all(&at(6, 2)), 1000);
        assert_eq!(rules.of_client(friend, &at(23, 4)), 800);
        let other = AccountId::from_bytes([8; 32]);
        assert_eq!(rules.of_client(other, &at(23, 4)), 1000);
        // The clock of the place.
        provide.utc_offset = "+08:00".parse().unwrap();
        assert_eq!(of(&provide, &offer).of_all(&at(14, 0)), 500);
    }

    #[test]
    fn a_rule_that_means_nothing_is_refused() {
        for (text, says) in [
            ("percent = 0\nload = 50", "1 to 1000"),
            ("percent = 50", "when it holds"),
            ("percent = 50\nload = 101", "0 to 100"),
            ("percent = 50\nhours = \"noon\"", "mon-fri 19:00-07:00"),
        ] {
            let refused = check(&[entry(text)]).unwrap_err();
            assert!(refused.contains(says), "{text}: {refused}");
        }
        let dear = PricingEntry {
            client: Some(AccountId::from_bytes([7; 32])),
            ..entry("percent = 120\nload = 0")
        };
        assert!(check(&[dear]).unwrap_err().contains("blocked"));
    }
}
