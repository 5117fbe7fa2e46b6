//! What client and provider sign before work begins.
//!
//! ```text
//! client ── Request (names an offer) ──▶ provider
//!        ◀── Quote (complete terms, a hold) ──
//!        ── Agreement (over the quote's hash) ──▶        an agreement stands
//!
//! client ── Request with a take ──▶ provider              firm offers only
//!        ◀── Quote at exactly the offer's prices ──      an agreement stands
//! ```
//!
//! A request may carry [`Checkpoint`]s: what an earlier execution of a unit had left
//! when its provider was lost. So it is signed where an execution begins, and a result
//! that goes back to another's work says so.
//!
//! Both ways an agreement has the quote's hash as its name, and each signed
//! thing names the hash of the one before: a receipt can be followed back to
//! the offer with nothing but the bytes.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::{
    delegation::{RawDelegation, Role, check_delegation},
    envelope::{Body, EnvelopeError, Extensions, Header, Kind, Verified},
    ids::{AccountId, AgreementId, BlobId, JobId, OfferId, PeerId, QuoteId, RequestId},
    limits::{
        CHECKPOINT_BUFFERS_MAX, CHECKPOINT_BYTES_MAX, CHECKPOINTS_MAX, DEVICES_MAX, FEATURES_MAX,
        HOLD_MAX, INPUTS_MAX, RUN_MAX, UNIT_RANGES_MAX, UNITS_MAX, WAIT_MAX,
    },
    offer::{ModelRef, Name, Offer, Prices, Terms, check_prices},
    rank,
    receipt::OutputRef,
    registry::{Confidentiality, DeviceKind, Feature, Runtime, SandboxLevel, Verification, kind},
    units::{Amount, Meter, Millis, Price, Wall},
    wire::List,
};

/// The most blobs that a request names: a program, inputs, checkpoints.
const BLOBS_MAX: usize = 1 + INPUTS_MAX + CHECKPOINTS_MAX * CHECKPOINT_BUFFERS_MAX;

/// A blob and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize)]
pub struct BlobRef {
    /// Its hash.
    pub blob: BlobId,
    /// Its size.
    pub bytes: u64,
}

/// What an execution has left on its way: another one of the same unit can go on from
/// there. Only the program knows what it means.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Checkpoint {
    /// Which unit.
    pub unit: u32,
    /// Steps done.
    pub done: u64,
    /// The buffers that the program keeps, in its order.
    pub state: List<OutputRef, CHECKPOINT_BUFFERS_MAX>,
}

impl Checkpoint {
    /// Whether it can be one of this work, and is not too large.
    pub(crate) fn is_of(&self, work: &Work) -> bool {
        let sizes = self.state.iter().map(|buffer| buffer.blob.bytes);
        let bytes = sizes.fold(0, u64::saturating_add);
        let is_lease = matches!(work, Work::Lease { .. });
        let is_kept = self.done > 0 && !self.state.is_empty() && bytes <= CHECKPOINT_BYTES_MAX;
        is_kept && !is_lease && work.has_unit(self.unit)
    }

    /// Its blobs.
    pub fn blobs(&self) -> impl Iterator<Item = BlobRef> {
        self.state.iter().map(|buffer| buffer.blob)
    }
}

/// Units `first .. first + count` of an array job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct UnitRange {
    /// The first unit.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl UnitRange {
    /// The units.
    pub fn units(self) -> std::ops::Range<u32> {
        self.first..self.first.saturating_add(self.count)
    }
}

/// Ranges of units.
pub type UnitRanges = List<UnitRange, UNIT_RANGES_MAX>;

/// The shape of the work: one piece, many, or a service for a time.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub enum Work {
    /// One execution. Its unit is 0.
    Job,
    /// One execution per unit.
    Array {
        /// Which units.
        units: UnitRanges,
        /// Inputs that each unit has for itself: they are the last of the
        /// request's inputs, unit by unit in the order of units.
        inputs_each: u16,
    },
    /// A service for a time, metered by interim receipts on unit 0.
    Lease {
        /// When it ends.
        until: Wall,
        /// How often usage is receipted: the client's exposure.
        interval: Millis,
    },
}

impl Work {
    /// How many executions it has.
    pub fn unit_count(&self) -> u32 {
        match self {
            Self::Job | Self::Lease { .. } => 1,
            Self::Array { units, .. } => units
                .iter()
                .fold(0, |sum: u32, range| sum.saturating_add(range.count)),
        }
    }

    /// Whether a unit is part of it.
    pub fn has_unit(&self, unit: u32) -> bool {
        match self {
            Self::Job | Self::Lease { .. } => unit == 0,
            Self::Array { units, .. } => units.iter().any(|range| range.units().contains(&unit)),
        }
    }

    /// Its units in order.
    pub fn units(&self) -> Vec<u32> {
        match self {
            Self::Job | Self::Lease { .. } => vec![0],
            Self::Array { units, .. } => units.iter().flat_map(|range| range.units()).collect(),
        }
    }

    /// Of all inputs those that one unit reads: the shared ones, then its own.
    /// Without the unit's own if it is no part of the work.
    pub fn inputs_of(&self, unit: u32, inputs: &[BlobRef]) -> Vec<BlobRef> {
        let Self::Array { inputs_each, .. } = self else {
            return inputs.to_vec();
        };
        let each = usize::from(*inputs_each);
        let (shared, own) = inputs.split_at(self.shared_inputs(inputs.len()));
        let own = (self.place_of(unit)).and_then(|place| own.chunks(each.max(1)).nth(place));
        let own = own.filter(|_| each > 0).unwrap_or_default();
        [shared, own].concat()
    }

    /// How many inputs are no unit's alone, of so many.
    pub fn shared_inputs(&self, inputs: usize) -> usize {
        inputs.saturating_sub(self.own_inputs())
    }

    /// How many inputs units have for themselves, all together.
    fn own_inputs(&self) -> usize {
        match self {
            Self::Job | Self::Lease { .. } => 0,
            Self::Array { inputs_each, .. } => {
                let units = usize::try_from(self.unit_count()).unwrap_or(usize::MAX);
                units.saturating_mul(usize::from(*inputs_each))
            }
        }
    }

    /// How many units come before this one.
    fn place_of(&self, unit: u32) -> Option<usize> {
        let Self::Array { units, .. } = self else {
            return (unit == 0).then_some(0);
        };
        let mut before = 0u32;
        for range in units.iter() {
            if range.units().contains(&unit) {
                let place = before.saturating_add(unit - range.first);
                return usize::try_from(place).ok();
            }
            before = before.saturating_add(range.count);
        }
        None
    }

    /// Whether its ranges are in order and not too far, and units' own inputs few
    /// enough for one execution.
    pub(crate) fn check(&self) -> Result<(), EnvelopeError> {
        let Self::Array { units, inputs_each } = self else {
            return Ok(());
        };
        if usize::from(*inputs_each) > INPUTS_MAX {
            return Err(EnvelopeError::OutOfRange(
                "a unit has more inputs than a request may name",
            ));
        }
        let mut next = 0u32;
        for range in units.iter() {
            let end = range.first.checked_add(range.count);
            let Some(end) = end.filter(|&end| end <= UNITS_MAX && range.count > 0) else {
                return Err(EnvelopeError::OutOfRange(
                    "a range of units is empty or too far",
                ));
            };
            if range.first < next {
                return Err(EnvelopeError::OutOfRange(
                    "ranges of units overlap or go back",
                ));
            }
            next = end;
        }
        if units.is_empty() {
            return Err(EnvelopeError::OutOfRange("an array without units"));
        }
        Ok(())
    }
}

/// What a job needs of whoever runs it. The same rules judge it on both
/// sides: see [`crate::rank::fit`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Needs {
    /// The runtime.
    pub runtime: Runtime,
    /// Features of it.
    pub features: List<Feature, FEATURES_MAX>,
    /// A kind of device, or any.
    pub device: Option<DeviceKind>,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// At least so well locked in.
    pub sandbox: SandboxLevel,
    /// How long one execution may run.
    pub run_max: Millis,
    /// Bytes of all outputs of one execution.
    pub output_bytes_max: u64,
    /// Units of fuel of one execution, where its runtime counts them; else 0.
    pub fuel_max: u64,
    /// A model that is served, for a lease of it.
    pub model: Option<ModelRef>,
}

impl Needs {
    /// What one execution uses at most of its runtime's own meter: milliseconds
    /// of a device, or units of fuel. Tokens are bounded by what they cost.
    pub fn quantity_max(&self) -> u64 {
        match Meter::of(self.runtime) {
            Meter::WASM_FUEL => self.fuel_max,
            Meter::TOKEN_OUT => u64::MAX,
            _ => self.run_max.get(),
        }
    }
}

impl Request {
    /// What the client pays for each execution, if all cost the same.
    pub fn unit_budget(&self) -> Amount {
        let units = u64::from(self.work.unit_count().max(1));
        Amount::from_micros(self.budget.as_micros() / units)
    }

    /// All that a provider has to have before it begins, in the order by which a quote
    /// names what is missing: the program, its inputs, what checkpoints are made of.
    pub fn blobs(&self) -> impl Iterator<Item = BlobRef> {
        let checkpoints = self.resume.iter().flat_map(Checkpoint::blobs);
        self.read().chain(checkpoints)
    }

    /// Of those the program and its inputs.
    pub(crate) fn read(&self) -> impl Iterator<Item = BlobRef> {
        std::iter::once(self.spec).chain(self.inputs.iter().copied())
    }

    /// Those with these numbers.
    pub(crate) fn numbered(&self, numbers: impl Iterator<Item = u16>) -> Vec<BlobRef> {
        let all: Vec<BlobRef> = self.blobs().collect();
        let numbered = numbers.filter_map(|n| all.get(usize::from(n)).copied());
        numbered.collect()
    }

    /// Where a unit goes on, if it does.
    pub fn checkpoint(&self, unit: u32) -> Option<&Checkpoint> {
        self.resume.iter().find(|kept| kept.unit == unit)
    }
}

/// A client's ask to one provider.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Request {
    /// Whom the client's node acts for.
    pub account: AccountId,
    /// The account's word for it.
    pub delegation: RawDelegation,
    /// Whom the job is for inside the account.
    pub principal: Name,
    /// The provider asked.
    pub provider: PeerId,
    /// The offer that it answers.
    pub offer: OfferId,
    /// The job. The client makes this name.
    pub job: JobId,
    /// Counts up when the client goes elsewhere; fences earlier runs.
    pub attempt: u32,
    /// What is to be done.
    pub work: Work,
    /// The program: a spec for the runtime.
    pub spec: BlobRef,
    /// What the program reads.
    pub inputs: List<BlobRef, INPUTS_MAX>,
    /// Units that go on where an earlier execution stopped, in ascending order.
    pub resume: List<Checkpoint, CHECKPOINTS_MAX>,
    /// How long after a checkpoint the client wants the next one; none if it wants none.
    pub checkpoint_every: Option<Millis>,
    /// What it needs.
    pub needs: Needs,
    /// Devices of the offer that will do, by position, the best first; empty for all
    /// that it fits on.
    pub devices: List<u16, DEVICES_MAX>,
    /// The most that the client pays for it all.
    pub budget: Amount,
    /// How long after the agreement the work may wait for its turn; none for as long as the
    /// provider likes.
    pub wait_max: Option<Millis>,
    /// Verification that the provider must bear with.
    pub verification: Verification,
    /// What must keep the inputs from the provider's eyes.
    pub confidentiality: Confidentiality,
    /// How long the provider may keep inputs and outputs after the end.
    pub retention: Millis,
    /// Takes a firm offer: signed acceptance of the offer's prices and terms
    /// until this request expires.
    pub take: bool,
    /// A counter-offer to an earlier quote: `budget` is the price proposed.
    pub counter: Option<QuoteId>,
    /// Later additions.
    pub extensions: Extensions,
}

impl Body for Request {
    const KIND: Kind = kind::REQUEST;

    fn check(&self, header: &Header) -> Result<(), EnvelopeError> {
        check_delegation(&self.delegation, self.account, header, Role::Client)?;
        self.work.check()?;
        if self.work.own_inputs() > self.inputs.len() {
            return Err(EnvelopeError::OutOfRange(
                "fewer inputs than the units of the array have",
            ));
        }
        let in_order = self.resume.is_sorted_by(|a, b| a.unit < b.unit);
        if !in_order || !self.resume.iter().all(|kept| kept.is_of(&self.work)) {
            return Err(EnvelopeError::OutOfRange(
                "a checkpoint is too large, out of order, or of no unit of the work",
            ));
        }
        if self.needs.run_max.duration() > RUN_MAX {
            return Err(EnvelopeError::OutOfRange("longer than any run may be"));
        }
        if header.expires.since(header.issued) > HOLD_MAX {
            return Err(EnvelopeError::OutOfRange(
                "a request lives longer than a hold may",
            ));
        }
        self.extensions.check()
    }
}

/// A provider's binding answer, until it expires.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Quote {
    /// What it answers.
    pub request: RequestId,
    /// The offer that it goes back to.
    pub offer: OfferId,
    /// Whom the provider's node acts for.
    pub account: AccountId,
    /// The client's node.
    pub client: PeerId,
    /// The client's account.
    pub client_account: AccountId,
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// What is to be done, as asked.
    pub work: Work,
    /// What it costs.
    pub prices: Prices,
    /// The most that one unit costs; for a lease, the most in all.
    pub unit_cap: Amount,
    /// The most that it costs in all.
    pub cap: Amount,
    /// How long one execution may run.
    pub run_max: Millis,
    /// Units of fuel that one execution may use, where its runtime counts them.
    pub fuel_max: u64,
    /// How long inputs may take to arrive.
    pub transfer_max: Millis,
    /// How long outputs are kept for collection.
    pub collect_max: Millis,
    /// When it expects to start.
    pub start_expected: Wall,
    /// How long after the agreement it begins at the latest, where it waits for its turn
    /// in the provider's queue; 0 where it has a slot, or needs none.
    pub wait_max: Millis,
    /// How long it expects one execution to take.
    pub duration_expected: Millis,
    /// Which of the request's blobs the provider lacks: see [`Request::blobs`].
    pub missing: List<u16, BLOBS_MAX>,
    /// Which device of the offer runs it.
    pub device: u16,
    /// Whether a slot is held for it. Where none is, only the terms are bound:
    /// the provider keeps its slots for accounts that it knows, and refuses the
    /// agreement if one of them has come first.
    pub held: bool,
    /// What holds when things go wrong.
    pub terms: Terms,
    /// Later additions.
    pub extensions: Extensions,
}

impl Quote {
    /// What one execution may use of its runtime's own meter: see
    /// [`Needs::quantity_max`].
    pub fn quantity_max(&self, runtime: Runtime) -> u64 {
        match Meter::of(runtime) {
            Meter::WASM_FUEL => self.fuel_max,
            Meter::TOKEN_OUT => u64::MAX,
            _ => self.run_max.get(),
        }
    }
}

/// Whether work waits for its turn only as long as its client wants it to: by itself the
/// provider would have let it wait longer.
pub(crate) fn is_wait_bounded(request: &Request, quote: &Quote) -> bool {
    (request.wait_max).is_some_and(|most| quote.wait_max >= most)
}

impl Body for Quote {
    const KIND: Kind = kind::QUOTE;

    fn check(&self, header: &Header) -> Result<(), EnvelopeError> {
        check_prices(&self.prices)?;
        self.work.check()?;
        if self.unit_cap > self.cap {
            return Err(EnvelopeError::OutOfRange(
                "a unit costs more than the whole",
            ));
        }
        if header.expires.since(header.issued) > HOLD_MAX {
            return Err(EnvelopeError::OutOfRange(
                "a quote lives longer than a hold may",
            ));
        }
        if self.wait_max.duration() > WAIT_MAX {
            return Err(EnvelopeError::OutOfRange(
                "work waits longer for its turn than any may",
            ));
        }
        self.extensions.check()
    }
}

/// The client's signature that completes a quote.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Agreement {
    /// The quote.
    pub quote: QuoteId,
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// Later additions.
    pub extensions: Extensions,
}

impl Body for Agreement {
    const KIND: Kind = kind::AGREEMENT;

    fn check(&self, _: &Header) -> Result<(), EnvelopeError> {
        self.extensions.check()
    }
}

/// How a quote and a request can fail to belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The quote answers another request, or for other parties.
    #[error("the quote does not answer this request")]
    OtherRequest,
    /// The request names another offer.
    #[error("the request does not name this offer")]
    OtherOffer,
    /// The quote changes what was asked.
    #[error("the quote is for other work than was asked for")]
    OtherWork,
    /// The quote allows less than the client's budget buys at its prices: a job
    /// that is cut short is paid as the job's fault.
    #[error("the quote allows less than the budget pays for")]
    TooLittle,
    /// A price of the quote is higher than the offer says.
    #[error("the quote is dearer than the offer that it goes back to")]
    Dearer,
    /// The quote is over what the client pays.
    #[error("the quote's cap is over the client's budget")]
    OverBudget,
    /// A firm take answered at other prices or terms than the offer's.
    #[error("a firm take was not answered at the offer's prices and terms")]
    NotAsOffered,
    /// The agreement completes another quote, or somebody else signed it.
    #[error("the agreement does not complete this quote")]
    OtherQuote,
    /// Completed after the quote or the take expired.
    #[error("completed after it expired")]
    Late,
    /// Neither a take nor an agreement completes the quote.
    #[error("nothing completes the quote")]
    Incomplete,
}

/// A complete agreement with all that it stands on, each part checked against
/// the others. The only way to get one is [`Deal::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deal {
    offer: Verified<Offer>,
    request: Verified<Request>,
    quote: Verified<Quote>,
    agreement: Option<Verified<Agreement>>,
}

impl Deal {
    /// Puts an agreement together.
    ///
    /// # Errors
    /// [`Mismatch`] names the first part that doesn't belong.
    pub fn new(
        offer: Verified<Offer>,
        request: Verified<Request>,
        quote: Verified<Quote>,
        agreement: Option<Verified<Agreement>>,
    ) -> Result<Self, Mismatch> {
        check_request(&offer, &request)?;
        check_quote(&offer, &request, &quote)?;
        match &agreement {
            Some(agreement) => {
                let body = agreement.body();
                if body.quote.0 != quote.hash()
                    || agreement.signer() != request.signer()
                    || body.job != quote.body().job
                    || body.attempt != quote.body().attempt
                {
                    return Err(Mismatch::OtherQuote);
                }
                if agreement.issued() > quote.expires() {
                    return Err(Mismatch::Late);
                }
            }
            None if !request.body().take => return Err(Mismatch::Incomplete),
            None if quote.issued() > request.expires() => return Err(Mismatch::Late),
            None => {}
        }
        Ok(Self {
            offer,
            request,
            quote,
            agreement,
        })
    }

    /// The agreement's name.
    pub const fn id(&self) -> AgreementId {
        AgreementId(self.quote.hash())
    }

    /// The offer that it goes back to.
    pub const fn offer(&self) -> &Verified<Offer> {
        &self.offer
    }

    /// What was asked.
    pub const fn request(&self) -> &Verified<Request> {
        &self.request
    }

    /// What was quoted.
    pub const fn quote(&self) -> &Verified<Quote> {
        &self.quote
    }

    /// The client's signature over the quote; a firm take has none.
    pub const fn agreement(&self) -> Option<&Verified<Agreement>> {
        self.agreement.as_ref()
    }

    /// The client's node.
    pub const fn client(&self) -> PeerId {
        self.request.signer()
    }

    /// The provider's node.
    pub const fn provider(&self) -> PeerId {
        self.quote.signer()
    }

    /// The device that runs it, by its place in the offer, and its name there.
    pub fn device(&self) -> (u16, Name) {
        let place = self.quote.body().device;
        let device = self.offer.body().devices.get(usize::from(place));
        let name = device.map(|device| device.model.clone());
        (place, name.unwrap_or_default())
    }
}

/// Whether a request answers an offer.
///
/// # Errors
/// [`Mismatch::OtherOffer`].
pub fn check_request(offer: &Verified<Offer>, request: &Verified<Request>) -> Result<(), Mismatch> {
    let body = request.body();
    if body.offer.0 != offer.hash() || body.provider != offer.signer() {
        return Err(Mismatch::OtherOffer);
    }
    Ok(())
}

/// Whether a quote answers a request to an offer, within what was asked.
///
/// # Errors
/// [`Mismatch`].
pub fn check_quote(
    offer: &Verified<Offer>,
    request: &Verified<Request>,
    quote: &Verified<Quote>,
) -> Result<(), Mismatch> {
    let (asked, quoted) = (request.body(), quote.body());
    let blobs = asked.blobs().count();
    if quoted.request.0 != request.hash()
        || quote.signer() != asked.provider
        || quoted.client != request.signer()
        || quoted.client_account != asked.account
        || quoted.account != offer.body().account
        || quoted.offer != asked.offer
    {
        return Err(Mismatch::OtherRequest);
    }
    if quoted.job != asked.job
        || quoted.attempt != asked.attempt
        || quoted.work != asked.work
        || quoted.run_max > asked.needs.run_max
        || quoted.fuel_max > asked.needs.fuel_max
        || asked.wait_max.is_some_and(|most| quoted.wait_max > most)
        || !can_run(offer.body(), asked, quoted.device)
        || quoted.missing.iter().any(|&n| usize::from(n) >= blobs)
    {
        return Err(Mismatch::OtherWork);
    }
    if quoted.cap > asked.budget {
        return Err(Mismatch::OverBudget);
    }
    let prices = offer.body().prices_for(&asked.needs);
    if is_dearer(&quoted.prices, prices) {
        return Err(Mismatch::Dearer);
    }
    if quoted.quantity_max(asked.needs.runtime) < least_quantity(asked, quoted) {
        return Err(Mismatch::TooLittle);
    }
    if asked.take && (quoted.prices != *prices || quoted.terms != offer.body().terms) {
        return Err(Mismatch::NotAsOffered);
    }
    Ok(())
}

/// Whether a price list has a price that is not on the offer's, or a higher one. An
/// offer that nobody is held to is bait.
fn is_dearer(quoted: &[Price], offered: &[Price]) -> bool {
    let product = |amount: Amount, per: u64| u128::from(amount.as_micros()) * u128::from(per);
    !quoted.iter().all(|price| {
        let offered = offered.iter().find(|offered| offered.meter == price.meter);
        price.amount == Amount::ZERO
            || offered.is_some_and(|offered| {
                product(price.amount, offered.per) <= product(offered.amount, price.per)
            })
    })
}

/// Whether a device of the offer is one that could run what is asked, and may.
fn can_run(offer: &Offer, asked: &Request, device: u16) -> bool {
    let may = asked.devices.is_empty() || asked.devices.contains(&device);
    may && rank::devices_for(offer, &asked.needs).is_ok_and(|able| able.contains(&device))
}

/// What a quote has to allow one execution.
fn least_quantity(asked: &Request, quoted: &Quote) -> u64 {
    match &asked.work {
        Work::Lease { .. } => asked.needs.quantity_max(),
        Work::Job | Work::Array { .. } => {
            let bought = rank::affordable(&quoted.prices, &asked.needs, asked.unit_budget());
            // A cap below its own prices is the provider's gift.
            bought.map_or(0, |(quantity, _)| quantity)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Hash;

    fn input(number: u8) -> BlobRef {
        BlobRef {
            blob: BlobId(Hash::from_bytes([number; 32])),
            bytes: u64::from(number),
        }
    }

    fn array(ranges: &[(u32, u32)], inputs_each: u16) -> Work {
        let ranges = ranges.iter();
        let ranges = ranges.map(|&(first, count)| UnitRange { first, count });
        Work::Array {
            units: List::truncated(ranges.collect()),
            inputs_each,
        }
    }

    #[test]
    fn a_unit_reads_what_is_shared_and_what_is_its_own() {
        let inputs: Vec<BlobRef> = (0..8).map(input).collect();
        let numbers = |work: &Work, unit| -> Vec<u64> {
            let read = work.inputs_of(unit, &inputs);
            read.iter().map(|blob| blob.bytes).collect()
        };
        let work = array(&[(4, 2), (9, 1)], 2);
        assert_eq!(work.check(), Ok(()));
        assert_eq!(numbers(&work, 4), [0, 1, 2, 3]);
        assert_eq!(numbers(&work, 5), [0, 1, 4, 5]);
        assert_eq!(numbers(&work, 9), [0, 1, 6, 7]);
        assert_eq!(numbers(&work, 6), [0, 1], "no unit of it");
        assert_eq!(numbers(&array(&[(0, 9)], 0), 3), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(numbers(&Work::Job, 0), [0, 1, 2, 3, 4, 5, 6, 7]);
        // Too few for all: no unit gets another's.
        assert_eq!(numbers(&array(&[(0, 9)], 1), 8), [0_u64; 0]);
    }

    #[test]
    fn more_inputs_than_a_request_names_are_no_units_own() {
        assert!(array(&[(0, 1)], 256).check().is_ok());
        assert!(array(&[(0, 1)], 257).check().is_err());
    }
}
