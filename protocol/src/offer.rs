//! What a provider says it has, and on which terms.
//!
//! One live offer per node: a higher sequence replaces a lower one. An offer
//! is public, gossiped and bounded in size; it promises nothing until a quote
//! does, unless it is *firm*: then anyone whom its terms allow may take it at
//! its prices, and the provider's countersignature completes that.

mod figures;

use bincode::{Decode, Encode};
use serde::Serialize;

pub use self::figures::{Figures, Speeds};
use crate::{
    deal::Needs,
    delegation::{RawDelegation, Role, check_delegation},
    envelope::{Body, EnvelopeError, Extensions, Header, Kind},
    expression::Expression,
    ids::{AccountId, BlobId},
    limits::{
        ADDRESSES_MAX, DEVICES_MAX, FEATURES_MAX, MODELS_MAX, NAME_BYTES_MAX, OFFER_BYTES_MAX,
        OFFER_TTL_MAX, PRICES_MAX, RUNTIMES_MAX, SPEEDS_MAX,
    },
    registry::{DeviceKind, Feature, Runtime, SandboxLevel, SpeedKind, kind},
    units::{Amount, Meter, Millis, Price, Usage, Wall},
    wire::{List, Text},
};

/// A short name.
pub type Name = Text<NAME_BYTES_MAX>;
/// A price list.
pub type Prices = List<Price, PRICES_MAX>;

/// A provider's statement of capacity, prices and terms.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Offer {
    /// Whom the provider's node acts for.
    pub account: AccountId,
    /// The account's word for it.
    pub delegation: RawDelegation,
    /// Higher replaces lower.
    pub sequence: u64,
    /// Where it is: an ISO 3166-2 code or a name of the network's own.
    pub region: Name,
    /// Where to dial it.
    pub addresses: List<Text<128>, ADDRESSES_MAX>,
    /// What computes.
    pub devices: List<Device, DEVICES_MAX>,
    /// Language models that it serves.
    pub models: List<ModelOffer, MODELS_MAX>,
    /// What it costs.
    pub prices: Prices,
    /// Executions that it runs at once, on all devices together.
    pub slots: u32,
    /// Of these, free when the offer was made. Stale by nature.
    pub slots_free: u32,
    /// Bytes of inputs and outputs that it keeps for one job.
    pub storage_bytes: u64,
    /// Measured bytes per second to it; 0 where unknown.
    pub bandwidth_in: u64,
    /// Measured bytes per second from it; 0 where unknown.
    pub bandwidth_out: u64,
    /// The longest execution that it runs.
    pub run_max: Millis,
    /// How well jobs are locked in.
    pub sandbox: SandboxLevel,
    /// What the power is like, if the operator says.
    pub energy: Option<Energy>,
    /// Who may buy, and what happens when things go wrong.
    pub terms: Terms,
    /// What it wants of jobs and their clients.
    pub accept: Option<Expression>,
    /// Whether it can be taken in one round trip at its prices.
    pub firm: bool,
    /// Later additions.
    pub extensions: Extensions,
}

impl Offer {
    /// A model of a name, with those weights if they matter.
    pub fn model(&self, wanted: &ModelRef) -> Option<&ModelOffer> {
        let is_it = |model: &&ModelOffer| {
            model.name == wanted.name && wanted.weights.is_none_or(|it| model.weights == it)
        };
        self.models.iter().find(is_it)
    }

    /// The price list for work that needs this: a model has one of its own.
    pub fn prices_for(&self, needs: &Needs) -> &Prices {
        let model = needs.model.as_ref().and_then(|model| self.model(model));
        model.map_or(&self.prices, |model| &model.prices)
    }

    /// What it asks for a meter; what has no price is free.
    pub fn price(&self, meter: Meter) -> Option<Price> {
        let mut prices = self.prices.iter();
        prices.find(|price| price.meter == meter).copied()
    }
}

impl Body for Offer {
    const KIND: Kind = kind::OFFER;
    const ENVELOPE_BYTES_MAX: usize = OFFER_BYTES_MAX;
    const RECURS: bool = true;

    fn check(&self, header: &Header) -> Result<(), EnvelopeError> {
        check_delegation(&self.delegation, self.account, header, Role::Provider)?;
        check_prices(&self.prices)?;
        if header.expires.since(header.issued) > OFFER_TTL_MAX {
            return Err(EnvelopeError::OutOfRange(
                "an offer lives longer than one may",
            ));
        }
        if self.slots == 0 || self.slots_free > self.slots {
            return Err(EnvelopeError::OutOfRange(
                "more free slots than slots, or none",
            ));
        }
        let has_room = |device: &Device| (1..=self.slots).contains(&device.slots);
        if !self.devices.iter().all(has_room) {
            return Err(EnvelopeError::OutOfRange(
                "a device with more slots than the offer, or none",
            ));
        }
        self.check_models()?;
        self.extensions.check()
    }
}

impl Offer {
    fn check_models(&self) -> Result<(), EnvelopeError> {
        for (n, model) in self.models.iter().enumerate() {
            check_prices(&model.prices)?;
            if self.models[..n]
                .iter()
                .any(|other| other.name == model.name)
            {
                return Err(EnvelopeError::OutOfRange("two models of one name"));
            }
            if self.devices.get(usize::from(model.device)).is_none() {
                return Err(EnvelopeError::OutOfRange(
                    "a model on a device that is not there",
                ));
            }
            if model.places == 0 || model.places_free > model.places {
                return Err(EnvelopeError::OutOfRange(
                    "a model with more free places than places, or none",
                ));
            }
        }
        Ok(())
    }
}

/// Refuses price lists that can't be computed with, or that name a meter twice.
///
/// # Errors
/// [`EnvelopeError::OutOfRange`].
pub fn check_prices(prices: &[Price]) -> Result<(), EnvelopeError> {
    for (n, price) in prices.iter().enumerate() {
        if price.per == 0 {
            return Err(EnvelopeError::OutOfRange("a price per nothing"));
        }
        if prices[..n]
            .iter()
            .any(|earlier| earlier.meter == price.meter)
        {
            return Err(EnvelopeError::OutOfRange("two prices for one meter"));
        }
    }
    Ok(())
}

/// Tokens that a model reads for each one that it writes, where nobody knows better:
/// instructions and a conversation are longer than an answer.
pub const TOKENS_IN_PER_OUT: u64 = 4;

/// The usage of one execution that takes so much of its runtime's own meter.
pub fn usage_of(runtime: Runtime, quantity: u64) -> [Usage; 2] {
    if runtime == Runtime::MODEL {
        return tokens(quantity.saturating_mul(TOKENS_IN_PER_OUT), quantity);
    }
    [
        Usage {
            meter: Meter::JOB,
            quantity: 1,
        },
        Usage {
            meter: Meter::of(runtime),
            quantity,
        },
    ]
}

/// The usage of a model that has read and written so many tokens.
pub const fn tokens(read: u64, written: u64) -> [Usage; 2] {
    [
        Usage {
            meter: Meter::TOKEN_IN,
            quantity: read,
        },
        Usage {
            meter: Meter::TOKEN_OUT,
            quantity: written,
        },
    ]
}

/// Something that computes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Device {
    /// What kind of thing. A software adapter is a processor.
    pub kind: DeviceKind,
    /// Who made it.
    pub maker: Name,
    /// What it is called.
    pub model: Name,
    /// The driver and its version.
    pub driver: Name,
    /// Bytes of memory that jobs can use.
    pub memory_bytes: u64,
    /// Executions that it runs at once; the offer's own number bounds all devices.
    pub slots: u32,
    /// What it can run.
    pub runtimes: List<RuntimeOffer, RUNTIMES_MAX>,
    /// Measured speeds.
    pub speeds: List<Speed, SPEEDS_MAX>,
}

impl Device {
    /// A measured speed, or 0 where it was not measured.
    pub fn speed(&self, kind: SpeedKind) -> u64 {
        self.speeds
            .iter()
            .find(|speed| speed.kind == kind)
            .map_or(0, |speed| speed.per_second)
    }

    /// What it says of a runtime, if it has it.
    pub fn runtime(&self, runtime: Runtime) -> Option<&RuntimeOffer> {
        self.runtimes
            .iter()
            .find(|offered| offered.runtime == runtime)
    }
}

/// A measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Speed {
    /// Of what.
    pub kind: SpeedKind,
    /// How much of it in a second.
    pub per_second: u64,
    /// When it was measured.
    pub measured: Wall,
}

/// A runtime that a device has.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct RuntimeOffer {
    /// Which.
    pub runtime: Runtime,
    /// Its version.
    pub version: u16,
    /// What it can do beyond the minimum.
    pub features: List<Feature, FEATURES_MAX>,
}

/// A language model that the provider serves.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct ModelOffer {
    /// What clients call it.
    pub name: Name,
    /// The hash of its weights.
    pub weights: BlobId,
    /// How its weights are stored; empty where the operator doesn't say.
    pub quantisation: Text<16>,
    /// Tokens of context.
    pub context: u32,
    /// What serves it, by position in the offer.
    pub device: u16,
    /// What tokens cost that it reads, and that it writes.
    pub prices: Prices,
    /// Measured tokens read per second, of one conversation; 0 where not measured.
    pub prefill_per_second: u32,
    /// Measured tokens written per second, in one conversation; 0 where not measured.
    pub decode_per_second: u32,
    /// Conversations that it serves at once.
    pub places: u16,
    /// Of these, free when the offer was made. Stale by nature.
    pub places_free: u16,
}

/// A language model that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize)]
pub struct ModelRef {
    /// What clients call it.
    pub name: Name,
    /// The hash of its weights, if it has to be just these.
    pub weights: Option<BlobId>,
}

/// What the power is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Energy {
    /// Watts under load.
    pub watts: u32,
    /// Grams of carbon dioxide per kilowatt-hour.
    pub carbon_g_per_kwh: u32,
}

/// Who may buy, and what happens when things go wrong.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Terms {
    /// Whether accounts that the operator doesn't know may buy.
    pub strangers: bool,
    /// How much such an account may owe.
    pub stranger_credit: Amount,
    /// What is paid when the client cancels.
    pub on_cancel: Charge,
    /// What is paid when the job runs into its run limit, or is at fault itself.
    pub on_job_fault: Charge,
    /// What is paid when the provider fails.
    pub on_provider_fault: Charge,
    /// How long inputs and outputs are kept after the end.
    pub retention: Millis,
}

/// What part of the price is due for an execution that did not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub enum Charge {
    /// Nothing.
    Nothing,
    /// What was used until then.
    Usage,
}

/// Signed by a provider: my offers up to a sequence no longer stand.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Withdrawal {
    /// The last sequence that is withdrawn.
    pub sequence: u64,
    /// Later additions.
    pub extensions: Extensions,
}

impl Body for Withdrawal {
    const KIND: Kind = kind::WITHDRAWAL;
    const ENVELOPE_BYTES_MAX: usize = OFFER_BYTES_MAX;

    fn check(&self, header: &Header) -> Result<(), EnvelopeError> {
        if header.expires.since(header.issued) > OFFER_TTL_MAX {
            return Err(EnvelopeError::OutOfRange(
                "a withdrawal lives longer than an offer may",
            ));
        }
        self.extensions.check()
    }
}
