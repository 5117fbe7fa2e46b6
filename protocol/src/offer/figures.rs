//! What an offer says of one of its devices, flat: all that expressions read and
//! expectations are made of. Taken from the offer itself, or kept by the book's index.

use super::{Device, Energy, Offer};
use crate::{
    ids::AccountId,
    registry::{DeviceKind, SandboxLevel, SpeedKind},
    units::{Meter, Millis, Price},
};

/// An offer on one of its devices.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "as in the offer and the device")]
pub struct Figures<'a> {
    pub account: AccountId,
    pub region: &'a str,
    pub sandbox: SandboxLevel,
    pub firm: bool,
    pub slots: u32,
    pub slots_free: u32,
    pub storage_bytes: u64,
    pub run_max: Millis,
    pub bandwidth_in: u64,
    pub energy: Option<Energy>,
    /// What an execution costs by itself,
    pub fixed: Option<Price>,
    /// a millisecond on the device,
    pub gpu_ms: Option<Price>,
    /// and fuel.
    pub fuel: Option<Price>,
    pub kind: DeviceKind,
    pub maker: &'a str,
    pub model: &'a str,
    pub driver: &'a str,
    pub memory_bytes: u64,
    /// Measured speeds; 0 where it was not measured.
    pub speeds: Speeds,
}

/// The speeds that are read of a device, each 0 where it was not measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Speeds {
    fp32: u64,
    fp16: u64,
    matmul: u64,
    memory: u64,
    fuel: u64,
}

impl Speeds {
    /// Of a device.
    pub fn of(device: &Device) -> Self {
        Self {
            fp32: device.speed(SpeedKind::FP32),
            fp16: device.speed(SpeedKind::FP16),
            matmul: device.speed(SpeedKind::MATMUL),
            memory: device.speed(SpeedKind::MEMORY),
            fuel: device.speed(SpeedKind::FUEL),
        }
    }

    /// One of them; 0 of kinds that nothing reads.
    pub const fn get(&self, kind: SpeedKind) -> u64 {
        match kind {
            SpeedKind::FP32 => self.fp32,
            SpeedKind::FP16 => self.fp16,
            SpeedKind::MATMUL => self.matmul,
            SpeedKind::MEMORY => self.memory,
            SpeedKind::FUEL => self.fuel,
            _ => 0,
        }
    }
}

impl<'a> Figures<'a> {
    /// As an offer says it.
    pub fn of(offer: &'a Offer, device: &'a Device) -> Self {
        Self {
            account: offer.account,
            region: &offer.region,
            sandbox: offer.sandbox,
            firm: offer.firm,
            slots: offer.slots,
            slots_free: offer.slots_free,
            storage_bytes: offer.storage_bytes,
            run_max: offer.run_max,
            bandwidth_in: offer.bandwidth_in,
            energy: offer.energy,
            fixed: offer.price(Meter::JOB),
            gpu_ms: offer.price(Meter::GPU_MS),
            fuel: offer.price(Meter::WASM_FUEL),
            kind: device.kind,
            maker: &device.maker,
            model: &device.model,
            driver: &device.driver,
            memory_bytes: device.memory_bytes,
            speeds: Speeds::of(device),
        }
    }

    /// The price of what executions are metered by.
    pub const fn price(&self, meter: Meter) -> Option<Price> {
        match meter {
            Meter::JOB => self.fixed,
            Meter::GPU_MS => self.gpu_ms,
            Meter::WASM_FUEL => self.fuel,
            _ => None,
        }
    }
}
