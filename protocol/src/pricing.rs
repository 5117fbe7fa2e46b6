//! What a provider asks at which moment, and of whom.
//!
//! ```text
//! list prices × part of the moment ─▶ the offer's prices, announced anew when they change
//!             × part for the client ─▶ the quote's prices: never above the offer's
//!                                   ─▶ never below the floor
//! ```
//!
//! The configured prices are the list. A [`Pricing`] says which part of them is asked:
//! by the hour, by how much is in use, by client. What holds for everybody goes into the
//! offer, so that clients see it when they rank; what is for one client only into its
//! quote. The floor is what the work costs the operator, such as the power that it takes:
//! neither a moment's price nor a counter-offer goes below it.
//!
//! Absent: prices that rise after the offer. A quote that is dearer than its own signed
//! offer is refused by every client.

use std::fmt::Debug;

use crate::{
    ids::AccountId,
    offer::Prices,
    units::{Amount, Meter, Price, Wall},
    wire::List,
};

/// Thousandths of the list prices.
pub const WHOLE: u32 = 1000;
const HOUR_MS: u64 = 3_600_000;

/// When and under which load a price is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The time.
    pub now: Wall,
    /// Slots in use,
    pub used: u32,
    /// of so many.
    pub slots: u32,
}

/// Which part of the list prices is asked.
pub trait Pricing: Debug + Send + Sync {
    /// Of everybody at some moment, in thousandths.
    fn of_all(&self, moment: &Moment) -> u32;

    /// Of one client, in thousandths of what is asked of all; above 1000 counts as 1000.
    fn of_client(&self, account: AccountId, moment: &Moment) -> u32;

    /// What no price goes below.
    fn floor(&self) -> &[Price];
}

/// Prices that stay as they are listed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fixed;

impl Pricing for Fixed {
    fn of_all(&self, _: &Moment) -> u32 {
        WHOLE
    }

    fn of_client(&self, _: AccountId, _: &Moment) -> u32 {
        WHOLE
    }

    fn floor(&self) -> &[Price] {
        &[]
    }
}

/// List prices at some rate, and not below a floor.
pub fn priced(list: &[Price], rate: u32, floor: &[Price]) -> Prices {
    let prices = list.iter().map(|price| {
        let amount = u128::from(price.amount.as_micros()) * u128::from(rate);
        let amount = u64::try_from(amount / u128::from(WHOLE)).unwrap_or(u64::MAX);
        above(
            Price {
                amount: Amount::from_micros(amount),
                ..*price
            },
            floor,
        )
    });
    List::truncated(prices.collect())
}

fn above(price: Price, floor: &[Price]) -> Price {
    let least = floor.iter().find(|least| least.meter == price.meter);
    let least = least.map_or(0, |least| {
        // For the same quantity, rounded up.
        let amount = u128::from(least.amount.as_micros()) * u128::from(price.per);
        let amount = amount.div_ceil(u128::from(least.per.max(1)));
        u64::try_from(amount).unwrap_or(u64::MAX)
    });
    Price {
        amount: price.amount.max(Amount::from_micros(least)),
        ..price
    }
}

/// What the power costs that a device takes while it computes: the floor of its time.
/// `per_kwh` is in the network's unit.
pub fn power_floor(watts: u32, per_kwh: Amount) -> Price {
    Price {
        meter: Meter::GPU_MS,
        amount: power_of_an_hour(watts, per_kwh),
        per: HOUR_MS,
    }
}

/// The same of fuel, where all programs that run at once use so many units of it in a second;
/// none where that was not measured.
pub fn fuel_floor(watts: u32, per_kwh: Amount, per_second: u64) -> Option<Price> {
    (per_second > 0).then(|| Price {
        meter: Meter::WASM_FUEL,
        amount: power_of_an_hour(watts, per_kwh),
        per: per_second.saturating_mul(HOUR_MS / 1000),
    })
}

fn power_of_an_hour(watts: u32, per_kwh: Amount) -> Amount {
    // W · (amount per kWh) / 1000.
    let hour = u128::from(watts) * u128::from(per_kwh.as_micros());
    Amount::from_micros(u64::try_from(hour.div_ceil(1000)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    fn per_ms(micros: u64, per: u64) -> Price {
        Price {
            meter: Meter::GPU_MS,
            amount: Amount::from_micros(micros),
            per,
        }
    }

    #[test]
    fn no_price_goes_below_the_floor() {
        // 300 W at 0.1 a kilowatt-hour: 0.03 an hour.
        let floor = [power_floor(300, Amount::from_micros(100_000))];
        assert_eq!(floor[0].of(HOUR_MS), Some(Amount::from_micros(30_000)));
        let list = [per_ms(60_000, HOUR_MS)];
        let at = |rate| {
            priced(&list, rate, &floor)[0]
                .of(HOUR_MS)
                .unwrap()
                .as_micros()
        };
        assert_eq!((at(1000), at(600), at(100)), (60_000, 36_000, 30_000));
        // Of fuel, as much as is used in an hour costs as much.
        let fuel = fuel_floor(300, Amount::from_micros(100_000), 2_000_000_000).unwrap();
        assert_eq!(
            fuel.of(7_200_000_000_000),
            Some(Amount::from_micros(30_000))
        );
        assert_eq!(fuel_floor(300, Amount::from_micros(100_000), 0), None);
        // Whatever the price is per.
        let dear = priced(&[per_ms(1, 1_000_000)], 1000, &floor);
        assert!(dear[0].of(HOUR_MS).unwrap().as_micros() >= 30_000);
    }
}
