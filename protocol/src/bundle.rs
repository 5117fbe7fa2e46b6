//! Proof of one execution that needs nothing but itself.
//!
//! A bundle holds the exact signed bytes from offer to voucher. [`Bundle::verify`]
//! checks each signature and delegation, that every part names the hash of the
//! one before, that the amount follows from usage and prices and stays under
//! the cap, and that the voucher pays this receipt. It needs no node, no
//! network, no clock and no trust in who hands it over; every bit of it is
//! covered by some check.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::{
    deal::{Agreement, Deal, Mismatch, Quote, Request},
    envelope::{EnvelopeError, Raw, Verified},
    ids::{AccountId, AgreementId, JobId, NetworkId, PeerId, ReceiptId},
    limits::{ENVELOPE_BYTES_MAX, OFFER_BYTES_MAX},
    offer::{Name, Offer},
    receipt::{Acceptance, Outcome, OutputRef, Receipt, ReceiptFault, Verdict},
    units::{Amount, Usage, Wall},
    voucher::{Voucher, VoucherAck},
    wire::{self, Text, WireError},
};

/// Bytes of a bundle, at most.
pub const BUNDLE_BYTES_MAX: usize = 128 * 1024;

const MAGIC: [u8; 8] = *b"suanlib\x01";

type RawEnvelope = Raw<ENVELOPE_BYTES_MAX>;

/// The signed trail of one receipt.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Bundle {
    magic: [u8; 8],
    network: Text<64>,
    offer: Raw<OFFER_BYTES_MAX>,
    request: RawEnvelope,
    quote: RawEnvelope,
    agreement: Option<RawEnvelope>,
    receipt: RawEnvelope,
    acceptance: Option<RawEnvelope>,
    voucher: Option<RawEnvelope>,
    ack: Option<RawEnvelope>,
}

/// What a valid bundle proves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// The network in which it was signed.
    pub network: String,
    /// The job.
    pub job: JobId,
    /// The agreement.
    pub agreement: AgreementId,
    /// The receipt.
    pub receipt: ReceiptId,
    /// The client's node and account.
    pub client: (PeerId, AccountId),
    /// Whom it was for inside the client's account.
    pub principal: Name,
    /// The provider's node and account.
    pub provider: (PeerId, AccountId),
    /// Where the provider is.
    pub region: Name,
    /// The device that ran it, by its place in the offer, and its name there.
    pub device: (u16, Name),
    /// How it went.
    pub outcome: Outcome,
    /// What came out.
    pub outputs: Vec<OutputRef>,
    /// What was used.
    pub usage: Vec<Usage>,
    /// What is due for it.
    pub amount: Amount,
    /// The most that was agreed for a unit.
    pub cap: Amount,
    /// When it started and ended, by the provider's clock.
    pub ran: (Wall, Wall),
    /// Whether it was a firm take.
    pub take: bool,
    /// The client's word on it.
    pub verdict: Option<Verdict>,
    /// Whether a voucher pays it.
    pub paid: bool,
    /// Whether the provider acknowledged that voucher.
    pub acknowledged: bool,
}

/// Why a bundle proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The bytes are no bundle.
    #[error("this is no receipt bundle: {0}")]
    NoBundle(WireError),
    /// A part is not properly signed.
    #[error("the {part} is not valid: {source}")]
    Part {
        /// Which.
        part: &'static str,
        /// Why.
        source: EnvelopeError,
    },
    /// The parts don't belong together.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The receipt doesn't follow from the agreement.
    #[error(transparent)]
    Receipt(#[from] ReceiptFault),
    /// Somebody else than the provider signed the receipt.
    #[error("the receipt is not signed by the agreement's provider")]
    OtherProvider,
    /// The client's word is on another receipt.
    #[error("the acceptance is for another receipt, or not the client's")]
    OtherAcceptance,
    /// The voucher doesn't pay this receipt.
    #[error("the voucher does not pay this receipt, or is between others")]
    OtherVoucher,
    /// The acknowledgement is for another voucher.
    #[error("the acknowledgement is for another voucher")]
    OtherAck,
}

impl Bundle {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Checks bytes completely.
    ///
    /// # Errors
    /// [`BundleError`] names the first thing that doesn't hold.
    pub fn verify(bytes: &[u8]) -> Result<Proof, BundleError> {
        let bundle: Self = wire::decode(bytes, BUNDLE_BYTES_MAX).map_err(BundleError::NoBundle)?;
        if bundle.magic != MAGIC {
            return Err(BundleError::NoBundle(WireError::Malformed(
                "it does not begin as one, or is of another version".into(),
            )));
        }
        bundle.check()
    }

    fn check(self) -> Result<Proof, BundleError> {
        let network = NetworkId::of(&self.network);
        let part = |part| move |source| BundleError::Part { part, source };
        let offer: Verified<Offer> = self.offer.verify(network).map_err(part("offer"))?;
        let request: Verified<Request> = self.request.verify(network).map_err(part("request"))?;
        let quote: Verified<Quote> = self.quote.verify(network).map_err(part("quote"))?;
        let agreement: Option<Verified<Agreement>> = self
            .agreement
            .map(|raw| raw.verify(network))
            .transpose()
            .map_err(part("agreement"))?;
        let deal = Deal::new(offer, request, quote, agreement)?;
        let receipt: Verified<Receipt> = self.receipt.verify(network).map_err(part("receipt"))?;
        if receipt.signer() != deal.provider() {
            return Err(BundleError::OtherProvider);
        }
        receipt.body().follows_from(&deal)?;

        let acceptance: Option<Verified<Acceptance>> = self
            .acceptance
            .map(|raw| raw.verify(network))
            .transpose()
            .map_err(part("acceptance"))?;
        if let Some(acceptance) = &acceptance {
            check_acceptance(acceptance, &receipt, &deal)?;
        }
        let voucher: Option<Verified<Voucher>> = self
            .voucher
            .map(|raw| raw.verify(network))
            .transpose()
            .map_err(part("voucher"))?;
        if let Some(voucher) = &voucher {
            check_voucher(voucher, &receipt, &deal)?;
        }
        let ack: Option<Verified<VoucherAck>> = self
            .ack
            .map(|raw| raw.verify(network))
            .transpose()
            .map_err(part("acknowledgement"))?;
        if let Some(ack) = &ack {
            check_ack(ack, voucher.as_ref())?;
        }
        Ok(proof(
            &self.network,
            &deal,
            &receipt,
            acceptance,
            voucher.is_some(),
            ack.is_some(),
        ))
    }
}

fn check_acceptance(
    acceptance: &Verified<Acceptance>,
    receipt: &Verified<Receipt>,
    deal: &Deal,
) -> Result<(), BundleError> {
    let body = acceptance.body();
    if acceptance.signer() == deal.client()
        && body.receipt.0 == receipt.hash()
        && body.key == receipt.body().key
    {
        Ok(())
    } else {
        Err(BundleError::OtherAcceptance)
    }
}

fn check_voucher(
    voucher: &Verified<Voucher>,
    receipt: &Verified<Receipt>,
    deal: &Deal,
) -> Result<(), BundleError> {
    let (body, quote) = (voucher.body(), deal.quote().body());
    let parties = body.parties;
    let pays = body.receipts.contains(&ReceiptId(receipt.hash()))
        && voucher.signer() == deal.client()
        && parties.payee == deal.provider()
        && parties.payer_account == quote.client_account
        && parties.payee_account == quote.account
        && body.cumulative.as_micros() >= u128::from(receipt.body().amount.as_micros());
    if pays {
        Ok(())
    } else {
        Err(BundleError::OtherVoucher)
    }
}

fn check_ack(
    ack: &Verified<VoucherAck>,
    voucher: Option<&Verified<Voucher>>,
) -> Result<(), BundleError> {
    let matches = voucher.is_some_and(|voucher| {
        ack.body().voucher.0 == voucher.hash()
            && ack.body().parties == voucher.body().parties
            && ack.body().sequence == voucher.body().sequence
            && ack.body().cumulative == voucher.body().cumulative
    });
    if matches {
        Ok(())
    } else {
        Err(BundleError::OtherAck)
    }
}

fn proof(
    network: &str,
    deal: &Deal,
    receipt: &Verified<Receipt>,
    acceptance: Option<Verified<Acceptance>>,
    paid: bool,
    acknowledged: bool,
) -> Proof {
    let (request, quote) = (deal.request().body(), deal.quote().body());
    let body = receipt.body();
    Proof {
        network: network.into(),
        job: quote.job,
        agreement: deal.id(),
        receipt: ReceiptId(receipt.hash()),
        client: (deal.client(), request.account),
        principal: request.principal.clone(),
        provider: (deal.provider(), quote.account),
        region: deal.offer().body().region.clone(),
        device: deal.device(),
        outcome: body.outcome,
        outputs: body.outputs.to_vec(),
        usage: body.usage.to_vec(),
        amount: body.amount,
        cap: quote.unit_cap,
        ran: (body.started, body.ended),
        take: deal.agreement().is_none(),
        verdict: acceptance.map(|acceptance| acceptance.body().verdict),
        paid,
        acknowledged,
    }
}

/// Collects the parts of a bundle in any order.
#[derive(Debug, Default)]
pub struct Builder {
    deal: Option<(Raw<OFFER_BYTES_MAX>, RawEnvelope, RawEnvelope)>,
    agreement: Option<RawEnvelope>,
    receipt: Option<RawEnvelope>,
    acceptance: Option<RawEnvelope>,
    voucher: Option<Verified<Voucher>>,
    acks: Vec<Verified<VoucherAck>>,
}

impl Builder {
    /// What the agreement stands on.
    pub fn deal(
        &mut self,
        offer: &Verified<Offer>,
        request: &Verified<Request>,
        quote: &Verified<Quote>,
    ) {
        self.deal = Some((offer.raw(), request.raw(), quote.raw()));
    }

    /// The client's signature over the quote.
    pub fn agreement(&mut self, agreement: Option<&Verified<Agreement>>) {
        if let Some(agreement) = agreement {
            self.agreement = Some(agreement.raw());
        }
    }

    /// The receipt.
    pub fn receipt(&mut self, receipt: &Verified<Receipt>) {
        self.receipt = Some(receipt.raw());
    }

    /// The client's word on it.
    pub fn acceptance(&mut self, acceptance: &Verified<Acceptance>) {
        self.acceptance = Some(acceptance.raw());
    }

    /// The voucher that pays it.
    pub fn voucher(&mut self, voucher: &Verified<Voucher>) {
        self.voucher = Some(voucher.clone());
    }

    /// An acknowledgement, perhaps of that voucher.
    pub fn ack(&mut self, ack: &Verified<VoucherAck>) {
        self.acks.push(ack.clone());
    }

    /// The bundle, once offer, request, quote and receipt are there.
    pub fn build(self, network: &str) -> Option<Bundle> {
        let (offer, request, quote) = self.deal?;
        let voucher = self.voucher;
        let ack = voucher.as_ref().and_then(|voucher| {
            self.acks
                .iter()
                .find(|ack| ack.body().voucher.0 == voucher.hash())
        });
        Some(Bundle {
            magic: MAGIC,
            network: Text::new(network).ok()?,
            offer,
            request,
            quote,
            agreement: self.agreement,
            receipt: self.receipt?,
            acceptance: self.acceptance,
            ack: ack.map(Verified::raw),
            voucher: voucher.as_ref().map(Verified::raw),
        })
    }
}
