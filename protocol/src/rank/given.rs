//! What expressions read: the values of an offer's fields, and of a job's.

use std::borrow::Cow;

use crate::{
    deal::{Needs, Request, Work},
    expression::{Field, Fields, Number, Value},
    ids::AccountId,
    offer::{Device, Offer},
    registry::{DeviceKind, SpeedKind},
    units::{Amount, Meter, Millis, Wall},
};

/// Milliseconds of a device in an hour.
const HOUR_MS: u64 = 3_600_000;
/// Units of fuel that `price.fuel` is for.
const FUEL: u64 = 1_000_000_000;

/// An offer on one of its devices, and what a client expects of it.
#[derive(Debug, Clone, Copy)]
pub struct OfferFields<'a> {
    /// The offer.
    pub offer: &'a Offer,
    /// The device.
    pub device: &'a Device,
    /// How much of its speed the client believes, in percent.
    pub believed: u8,
    /// How long one execution is expected to take.
    pub expected: Millis,
    /// What all are expected to cost.
    pub price: Amount,
}

/// A job and its client.
#[derive(Debug, Clone, Copy)]
pub struct JobFields<'a> {
    /// The client's account.
    pub account: AccountId,
    /// Whether the operator knows it; only the operator's node can say.
    pub known: Option<bool>,
    /// The hour of the day in UTC, at the provider.
    pub hour: Option<u64>,
    /// What it needs.
    pub needs: &'a Needs,
    /// Its shape.
    pub work: &'a Work,
    /// Bytes of all that it reads.
    pub inputs_bytes: u64,
    /// The most that the client pays for all.
    pub budget: Amount,
}

impl<'a> JobFields<'a> {
    /// Of a request, at the provider.
    pub fn of_request(request: &'a Request, known: bool, now: Wall) -> Self {
        let sizes = request.inputs.iter().map(|input| input.bytes);
        Self {
            account: request.account,
            known: Some(known),
            hour: Some(now.as_millis() / HOUR_MS % 24),
            needs: &request.needs,
            work: &request.work,
            inputs_bytes: sizes.fold(0, u64::saturating_add),
            budget: request.budget,
        }
    }
}

fn text(text: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(text))
}

fn shown(value: impl ToString) -> Value<'static> {
    Value::Text(Cow::Owned(value.to_string()))
}

fn number(number: impl Into<u64>) -> Value<'static> {
    Value::Number(Number::whole(number.into()))
}

fn money(amount: Amount) -> Value<'static> {
    Value::Number(Number::millionths(amount.as_micros().into()))
}

fn seconds(millis: Millis) -> Value<'static> {
    Value::Number(Number::millionths(i128::from(millis.get()) * 1000))
}

/// Speeds that were not measured are not known.
fn measured(per_second: u64) -> Option<Value<'static>> {
    (per_second > 0).then(|| number(per_second))
}

impl OfferFields<'_> {
    /// What so much of a meter costs, where it has a price.
    fn price_of(&self, meter: Meter, quantity: u64) -> Option<Value<'static>> {
        let price = self.offer.prices.iter().find(|price| price.meter == meter);
        price?.of(quantity).map(money)
    }
}

impl Fields for OfferFields<'_> {
    fn get(&self, field: Field) -> Option<Value<'_>> {
        let (offer, device) = (self.offer, self.device);
        let gpu = (device.kind == DeviceKind::GPU).then_some(device);
        let speed = |kind| measured(device.speed(kind));
        match field {
            Field::REGION => Some(text(&offer.region)),
            Field::PROVIDER => Some(shown(format_args!("{:#}", offer.account))),
            Field::SANDBOX => Some(shown(offer.sandbox)),
            Field::FIRM => Some(Value::Bool(offer.firm)),
            Field::SLOTS => Some(number(offer.slots)),
            Field::SLOTS_FREE => Some(number(offer.slots_free)),
            Field::STORAGE => Some(number(offer.storage_bytes)),
            Field::RUN_MAX => Some(seconds(offer.run_max)),
            Field::BANDWIDTH => measured(offer.bandwidth_in),
            Field::WATTS => offer.energy.map(|energy| number(energy.watts)),
            Field::CARBON => offer.energy.map(|energy| number(energy.carbon_g_per_kwh)),
            Field::TRUST => Some(number(self.believed)),
            Field::DEVICE_KIND => Some(shown(device.kind)),
            Field::DEVICE_MAKER => Some(text(&device.maker)),
            Field::DEVICE_MODEL => Some(text(&device.model)),
            Field::DEVICE_DRIVER => Some(text(&device.driver)),
            Field::DEVICE_MEMORY => Some(number(device.memory_bytes)),
            Field::DEVICE_FP32 => speed(SpeedKind::FP32),
            Field::DEVICE_FP16 => speed(SpeedKind::FP16),
            Field::DEVICE_MATMUL => speed(SpeedKind::MATMUL),
            Field::DEVICE_BANDWIDTH => speed(SpeedKind::MEMORY),
            Field::DEVICE_FUEL => speed(SpeedKind::FUEL),
            Field::GPU_MAKER => gpu.map(|gpu| text(&gpu.maker)),
            Field::GPU_MODEL => gpu.map(|gpu| text(&gpu.model)),
            Field::GPU_MEMORY => gpu.map(|gpu| number(gpu.memory_bytes)),
            Field::GPU_FP32 => gpu.and_then(|gpu| measured(gpu.speed(SpeedKind::FP32))),
            Field::PRICE_JOB => {
                let of_job = self.price_of(Meter::JOB, 1);
                Some(of_job.unwrap_or_else(|| money(Amount::ZERO)))
            }
            Field::PRICE_GPU_HOUR => self.price_of(Meter::GPU_MS, HOUR_MS),
            Field::PRICE_FUEL => self.price_of(Meter::WASM_FUEL, FUEL),
            Field::EXPECTED_PRICE => Some(money(self.price)),
            Field::EXPECTED_TIME => Some(seconds(self.expected)),
            _ => None,
        }
    }
}

impl Fields for JobFields<'_> {
    fn get(&self, field: Field) -> Option<Value<'_>> {
        let needs = self.needs;
        match field {
            Field::CLIENT => Some(shown(format_args!("{:#}", self.account))),
            Field::CLIENT_KNOWN => self.known.map(Value::Bool),
            Field::JOB_RUNTIME => Some(shown(needs.runtime)),
            Field::JOB_RUN_MAX => Some(seconds(needs.run_max)),
            Field::JOB_MEMORY => Some(number(needs.memory_bytes)),
            Field::JOB_INPUTS => Some(number(self.inputs_bytes)),
            Field::JOB_OUTPUTS => Some(number(needs.output_bytes_max)),
            Field::JOB_UNITS => Some(number(self.work.unit_count())),
            Field::JOB_BUDGET => Some(money(self.budget)),
            Field::JOB_FUEL => Some(number(needs.fuel_max)),
            Field::HOUR => self.hour.map(number),
            _ => None,
        }
    }
}
