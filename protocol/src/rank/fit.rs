//! Whether an offer fits a job: one rule for both sides.
//!
//! The client judges offers by it before it asks, the provider judges requests by it
//! before it answers. Absent: what only one of them cares for.

use std::cmp::Reverse;

use super::expect::{expected_price, speed_of};
use crate::{
    deal::{Needs, Work},
    message::Decline,
    offer::{Device, Offer},
    registry::{DeviceKind, Reason},
    units::{Amount, Meter, Price, cost},
};

/// Whether an offer can serve such work within a budget.
///
/// # Errors
/// The first reason why not.
pub fn fit(offer: &Offer, needs: &Needs, work: &Work, budget: Amount) -> Result<(), Decline> {
    fitting_devices(offer, needs, work, budget).map(drop)
}

/// The devices of an offer that can serve such work within a budget, the fastest first.
pub(super) fn fitting_devices<'a>(
    offer: &'a Offer,
    needs: &Needs,
    work: &Work,
    budget: Amount,
) -> Result<Vec<(u16, &'a Device)>, Decline> {
    // Allowed nothing it could only fail.
    if needs.quantity_max() == 0 {
        return Err(Reason::NO_SUCH_WORK.into());
    }
    let devices = able_devices(offer, needs)?;
    if offer.sandbox < needs.sandbox {
        return Err(Decline {
            reason: Reason::SANDBOX_TOO_WEAK,
            need: needs.sandbox.0.into(),
            have: offer.sandbox.0.into(),
        });
    }
    if needs.run_max > offer.run_max {
        return Err(Decline {
            reason: Reason::TOO_LONG,
            need: needs.run_max.get(),
            have: offer.run_max.get(),
        });
    }
    if needs.output_bytes_max > offer.storage_bytes {
        return Err(Decline {
            reason: Reason::TOO_LARGE,
            need: needs.output_bytes_max,
            have: offer.storage_bytes,
        });
    }
    let prices = offer.prices_for(needs);
    let least = expected_price(prices, needs.runtime, 0, work.unit_count());
    if least > budget {
        return Err(Decline {
            reason: Reason::OVER_BUDGET,
            need: least.as_micros(),
            have: budget.as_micros(),
        });
    }
    Ok(devices)
}

/// How much of its runtime's meter a budget pays for one execution, up to what
/// is needed, and what that costs at most. What a provider quotes, and the least
/// that its client takes.
///
/// # Errors
/// If it pays for nothing at all.
pub fn affordable(
    prices: &[Price],
    needs: &Needs,
    budget: Amount,
) -> Result<(u64, Amount), Decline> {
    let meter = Meter::of(needs.runtime);
    let most = needs.quantity_max();
    let cap_of = |quantity| cost(&crate::offer::usage_of(needs.runtime, quantity), prices);
    if let Some(cap) = cap_of(most).filter(|cap| *cap <= budget) {
        return Ok((most, cap));
    }
    let fixed = cap_of(0).unwrap_or(Amount::MAX);
    let over = Decline {
        reason: Reason::OVER_BUDGET,
        need: fixed.as_micros(),
        have: budget.as_micros(),
    };
    let price = prices
        .iter()
        .find(|price| price.meter == meter)
        .ok_or(over)?;
    let left = u128::from(budget.saturating_sub(fixed).as_micros()) * u128::from(price.per);
    let quantity = left
        .checked_div(u128::from(price.amount.as_micros()))
        .unwrap_or(0);
    let quantity = u64::try_from(quantity).unwrap_or(u64::MAX).min(most);
    match cap_of(quantity).filter(|cap| *cap <= budget && quantity > 0) {
        Some(cap) => Ok((quantity, cap)),
        None => Err(over),
    }
}

/// The offer's devices that could run it, by position: the fastest first.
///
/// # Errors
/// Why none can.
pub fn devices_for(offer: &Offer, needs: &Needs) -> Result<Vec<u16>, Decline> {
    let able = able_devices(offer, needs)?.into_iter();
    Ok(able.map(|(n, _)| n).collect())
}

fn able_devices<'a>(offer: &'a Offer, needs: &Needs) -> Result<Vec<(u16, &'a Device)>, Decline> {
    let mut able: Vec<(u16, &Device)> = (0..).zip(offer.devices.iter()).collect();
    if let Some(wanted) = &needs.model {
        let model = offer.model(wanted).ok_or(Reason::NO_MODEL)?;
        able.retain(|(n, _)| *n == model.device);
    }
    able.retain(|(_, device)| device.runtime(needs.runtime).is_some());
    if able.is_empty() {
        return Err(Reason::NO_RUNTIME.into());
    }
    if let Some(kind) = needs.device {
        let is_software = able
            .iter()
            .all(|(_, device)| device.kind == DeviceKind::CPU);
        able.retain(|(_, device)| device.kind == kind);
        if able.is_empty() && is_software {
            return Err(Reason::SOFTWARE_ONLY.into());
        }
        if able.is_empty() {
            return Err(Reason::NO_DEVICE.into());
        }
    }
    for feature in needs.features.iter() {
        able.retain(|(_, device)| {
            let runtime = device.runtime(needs.runtime);
            runtime.is_some_and(|runtime| runtime.features.contains(feature))
        });
        if able.is_empty() {
            return Err(Decline {
                reason: Reason::NO_FEATURE,
                need: feature.0.into(),
                have: 0,
            });
        }
    }
    let largest = able.iter().map(|(_, device)| device.memory_bytes).max();
    able.retain(|(_, device)| device.memory_bytes >= needs.memory_bytes);
    if able.is_empty() {
        return Err(Decline {
            reason: Reason::TOO_LITTLE_MEMORY,
            need: needs.memory_bytes,
            have: largest.unwrap_or(0),
        });
    }
    let kind = speed_of(needs.runtime);
    able.sort_by_key(|(n, device)| (Reverse(device.speed(kind)), *n));
    Ok(able)
}
