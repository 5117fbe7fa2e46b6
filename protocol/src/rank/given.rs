//! What expressions read: the values of an offer's fields, and of a job's.

use std::borrow::Cow;

use super::Expected;
use crate::{
    deal::{Needs, Request, Work},
    expression::{Field, Fields, Number, Value},
    ids::AccountId,
    offer::Figures,
    registry::{DeviceKind, SpeedKind},
    units::{Amount, Millis, Price, Wall},
};

/// Milliseconds of a device in an hour.
const HOUR_MS: u64 = 3_600_000;
/// Units of fuel that `price.fuel` is for.
const FUEL: u64 = 1_000_000_000;

/// An offer on one of its devices, and what a client expects of it.
#[derive(Debug, Clone, Copy)]
pub struct OfferFields<'a> {
    /// What the offer says of the device.
    pub figures: Figures<'a>,
    /// How much of its speed the client believes, in percent.
    pub believed: u8,
    /// When and for how much.
    pub expected: Expected,
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

fn micros(micros: u32) -> Value<'static> {
    Value::Number(Number::millionths(i128::from(micros)))
}

fn grams(milligrams: u64) -> Value<'static> {
    Value::Number(Number::millionths(i128::from(milligrams) * 1000))
}

/// Speeds that were not measured are not known.
fn measured(per_second: u64) -> Option<Value<'static>> {
    (per_second > 0).then(|| number(per_second))
}

impl Fields for OfferFields<'_> {
    fn get(&self, field: Field) -> Option<Value<'_>> {
        let said = &self.figures;
        let is_gpu = said.kind == DeviceKind::GPU;
        let speed = |kind| measured(said.speeds.get(kind));
        // What so much of a meter costs, where it has a price.
        let price = |price: Option<Price>, quantity| price?.of(quantity).map(money);
        match field {
            Field::REGION => Some(text(said.region)),
            Field::PROVIDER => Some(shown(format_args!("{:#}", said.account))),
            Field::SANDBOX => Some(shown(said.sandbox)),
            Field::FIRM => Some(Value::Bool(said.firm)),
            Field::SLOTS => Some(number(said.slots)),
            Field::SLOTS_FREE => Some(number(said.slots_free)),
            Field::STORAGE => Some(number(said.storage_bytes)),
            Field::RUN_MAX => Some(seconds(said.run_max)),
            Field::BANDWIDTH => measured(said.bandwidth_in),
            Field::WATTS => said.energy.map(|energy| number(energy.watts)),
            Field::CARBON => said.energy.map(|energy| number(energy.carbon_g_per_kwh)),
            Field::TRUST => Some(number(self.believed)),
            Field::DEVICE_KIND => Some(shown(said.kind)),
            Field::DEVICE_MAKER => Some(text(said.maker)),
            Field::DEVICE_MODEL => Some(text(said.model)),
            Field::DEVICE_DRIVER => Some(text(said.driver)),
            Field::DEVICE_MEMORY => Some(number(said.memory_bytes)),
            Field::DEVICE_FP32 => speed(SpeedKind::FP32),
            Field::DEVICE_FP16 => speed(SpeedKind::FP16),
            Field::DEVICE_MATMUL => speed(SpeedKind::MATMUL),
            Field::DEVICE_BANDWIDTH => speed(SpeedKind::MEMORY),
            Field::DEVICE_FUEL => speed(SpeedKind::FUEL),
            Field::GPU_MAKER => is_gpu.then(|| text(said.maker)),
            Field::GPU_MODEL => is_gpu.then(|| text(said.model)),
            Field::GPU_MEMORY => is_gpu.then(|| number(said.memory_bytes)),
            Field::GPU_FP32 => speed(SpeedKind::FP32).filter(|_| is_gpu),
            Field::PRICE_JOB => {
                let of_job = price(said.fixed, 1);
                Some(of_job.unwrap_or_else(|| money(Amount::ZERO)))
            }
            Field::PRICE_GPU_HOUR => price(said.gpu_ms, HOUR_MS),
            Field::PRICE_FUEL => price(said.fuel, FUEL),
            Field::EXPECTED_PRICE => Some(money(self.expected.price)),
            Field::EXPECTED_TRAFFIC => Some(money(self.expected.traffic)),
            Field::EXPECTED_TIME => Some(seconds(self.expected.run)),
            Field::EXPECTED_FINISH => Some(seconds(self.expected.finish)),
            Field::EXPECTED_CARBON => self.expected.carbon_mg.map(grams),
            Field::LINK_RTT => Some(micros(self.expected.rtt_us)),
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
