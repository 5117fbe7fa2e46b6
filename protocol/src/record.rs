//! What a node writes down.
//!
//! Everything that a node signed or accepted becomes a [`Record`] before
//! anybody else sees its consequence. Records hold the exact bytes that
//! travelled. Replaying them rebuilds a [`crate::peer::Peer`]; finding them by
//! the ids that a person asks for is the store's part, by [`Record::keys`].

mod part;

use bincode::{Decode, Encode};

pub use self::part::Part;
use self::part::StoredPart;
use crate::{
    bundle::Bundle,
    deal::{Agreement, BlobRef, Checkpoint, Needs, Quote, Request, Work},
    envelope::{EnvelopeError, Raw, Trust, Verified},
    expression::Expression,
    freivalds::{Freivalds, FreivaldsError, Matrix},
    ids::{AccountId, AgreementId, ChannelId, Hash, JobId, NetworkId, PeerId, QuoteId, ReceiptId},
    limits::{ENVELOPE_BYTES_MAX, OFFER_BYTES_MAX, ORDER_INPUTS_MAX, OUTPUTS_MAX},
    message::InlineBlobs,
    offer::{Name, Offer, Withdrawal},
    rank::Policy,
    receipt::{Acceptance, Receipt},
    registry::{Confidentiality, Reason, Verification},
    standing::{Failure, Outcome, Vouches},
    tolerance::Within,
    units::{Amount, Millis, Wall},
    voucher::{Settlement, Voucher, VoucherAck},
    wire::{self, List},
};

/// Bytes of one record, at most: an accepted agreement with its offer, request
/// and quote, or a job with its inline blobs and the names of its inputs.
pub const RECORD_BYTES_MAX: usize = 160 * 1024 + 40 * ORDER_INPUTS_MAX;

/// A position in a node's journal. Counts records from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// A job as its client's node keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct JobOrder {
    /// Its name among ids.
    pub job: JobId,
    /// Its name for people.
    pub name: Name,
    /// Whom it is for inside the account.
    pub principal: Name,
    /// Its shape.
    pub work: Work,
    /// The program.
    pub spec: BlobRef,
    /// What the program reads; for an array what all units read, then what each
    /// has for itself: see [`Work::inputs_of`].
    pub inputs: List<BlobRef, ORDER_INPUTS_MAX>,
    /// What it needs.
    pub needs: Needs,
    /// The most that it may cost in all.
    pub budget: Amount,
    /// Regions that it allows; empty for all.
    pub regions: List<Name, 16>,
    /// Providers that it allows; empty for all.
    pub providers: List<PeerId, 16>,
    /// What it wants of an offer and its device, beside what it needs.
    pub condition: Option<Expression>,
    /// What is best, before the policy: the highest number.
    pub rank: Option<Expression>,
    /// What matters.
    pub policy: Policy,
    /// Floating-point operations of one execution; 0 where unknown.
    pub flops: u64,
    /// Confidentiality asked for.
    pub confidentiality: Confidentiality,
    /// How long a provider may keep its data.
    pub retention: Millis,
    /// When all of it must be over, counted from submission.
    pub total: Millis,
    /// Of an array: the most agreements that stand at once.
    pub parallel: u16,
    /// Of an array: so many units may fail before the job does.
    pub max_failures: u32,
    /// Whether firm offers are taken in one round trip.
    pub take: bool,
    /// Propose so many percent less than the first quote; 0 for not.
    pub counter_percent: u8,
    /// How results are compared.
    pub verify: Verify,
    /// How long after a checkpoint of a unit the next is wanted; none for a program that
    /// has none.
    pub checkpoint_every: Option<Millis>,
    /// Outputs that stay where they are made, for other jobs to read.
    pub staying: List<Name, OUTPUTS_MAX>,
    /// Spec and inputs that are small enough to travel with the agreement.
    pub inline: InlineBlobs,
}

impl JobOrder {
    /// The inputs of a part of the work, in the order of a request.
    pub fn inputs_for(&self, part: &Work) -> Vec<BlobRef> {
        let shared = self.work.shared_inputs(self.inputs.len());
        let mut inputs = self.inputs[..shared].to_vec();
        if matches!(self.work, Work::Array { inputs_each, .. } if inputs_each > 0) {
            for unit in part.units() {
                let of_unit = self.work.inputs_of(unit, &self.inputs);
                inputs.extend(of_unit.into_iter().skip(shared));
            }
        }
        inputs
    }
}

impl JobOrder {
    /// Whether its products can be checked: their factors are inputs of every unit.
    ///
    /// # Errors
    /// [`FreivaldsError`]
    pub fn check_products(&self) -> Result<(), FreivaldsError> {
        let Some(freivalds) = &self.verify.freivalds else {
            return Ok(());
        };
        freivalds.check()?;
        let fits = freivalds.products.iter().all(|product| {
            self.has_input(product.left, product.bytes(Matrix::Left))
                && self.has_input(product.right, product.bytes(Matrix::Right))
        });
        if fits {
            Ok(())
        } else {
            Err(FreivaldsError::Factors)
        }
    }

    /// Whether every unit has an input of that number, with so many bytes.
    fn has_input(&self, number: u16, bytes: u64) -> bool {
        let number = usize::from(number);
        let shared = self.work.shared_inputs(self.inputs.len());
        let (shared, own) = self.inputs.split_at(shared);
        let is_it = |blob: &BlobRef| blob.bytes == bytes;
        if let Some(blob) = shared.get(number) {
            return is_it(blob);
        }
        let Work::Array { inputs_each, .. } = self.work else {
            return false;
        };
        let (each, number) = (usize::from(inputs_each), number - shared.len());
        number < each && own.chunks(each).all(|of| of.get(number).is_some_and(is_it))
    }
}

/// How results are compared with those of others, and checked by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, serde::Serialize)]
pub struct Verify {
    /// So many equal results of different accounts decide a unit; one at least.
    pub replicas: u8,
    /// In so many of 1,000 units a second result is asked for all the same.
    pub audit: u16,
    /// Instead: as often as a provider's past results leave doubt.
    pub adaptive: bool,
    /// Which outputs need not be equal to the last bit.
    pub within: Option<Within>,
    /// Which outputs are products, and how often that is checked.
    pub freivalds: Option<Freivalds>,
}

impl Verify {
    /// One result is enough.
    pub const NONE: Self = Self {
        replicas: 1,
        audit: 0,
        adaptive: false,
        within: None,
        freivalds: None,
    };

    /// What a provider is told of it.
    pub const fn told(&self) -> Verification {
        match self {
            Self { replicas: 2.., .. } => Verification::REPLICAS,
            Self { adaptive: true, .. } | Self { audit: 1.., .. } => Verification::AUDIT,
            Self {
                freivalds: Some(_), ..
            } => Verification::FREIVALDS,
            _ => Verification::HASHES,
        }
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobEnd {
    /// All its results are here and accepted.
    Done,
    /// It can't be done, for this reason.
    Failed(Reason),
    /// Its client cancelled it.
    Cancelled,
    /// Nobody would take it, last for this reason.
    Declined(Reason),
    /// Its time was over.
    Expired,
}

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "fields are what they are called; each variant is described"
)]
pub enum Record {
    /// We announced an offer.
    Offered(Verified<Offer>),
    /// We withdrew our offers.
    Withdrew(Verified<Withdrawal>),
    /// Our user gave us a job.
    Submitted { order: Box<JobOrder>, at: Wall },
    /// We asked a provider.
    Asked(Verified<Request>),
    /// We completed a quote, by agreement or, for a take, by its arrival.
    Took {
        offer: Verified<Offer>,
        request: Verified<Request>,
        quote: Verified<Quote>,
        agreement: Option<Verified<Agreement>>,
    },
    /// We gave up an agreement: its provider is lost or at fault.
    GaveUp {
        job: JobId,
        agreement: AgreementId,
        reason: Reason,
    },
    /// We gave our word on a provider's receipt. Outputs that were small enough
    /// to come with it are here until they are blobs.
    Judged {
        receipt: Verified<Receipt>,
        acceptance: Verified<Acceptance>,
        outputs: InlineBlobs,
    },
    /// Our job ended.
    Ended { job: JobId, end: JobEnd, at: Wall },
    /// We quoted.
    Quoted {
        offer: Verified<Offer>,
        request: Verified<Request>,
        quote: Verified<Quote>,
    },
    /// A client completed our quote.
    AgreedTo(Verified<Agreement>),
    /// We stated an execution.
    Receipted(Verified<Receipt>),
    /// A client gave its word on our receipt.
    HeardOf(Verified<Acceptance>),
    /// We will do no more for an agreement, or hold no more for a quote.
    Closed {
        agreement: AgreementId,
        reason: Reason,
    },
    /// We signed a voucher, or found one of our own at the payee.
    Paid(Verified<Voucher>),
    /// The payee acknowledged.
    PaidAcked(Verified<VoucherAck>),
    /// We took a voucher and acknowledged it.
    Earned {
        voucher: Verified<Voucher>,
        ack: Verified<VoucherAck>,
    },
    /// The payer contradicted itself: both vouchers are here.
    Frozen {
        first: Verified<Voucher>,
        second: Verified<Voucher>,
    },
    /// We, or the payee, declared a part of a debt paid.
    Settled(Verified<Settlement>),
    /// Quoted and taken at once: a firm offer's countersignature.
    QuotedFirm {
        offer: Verified<Offer>,
        request: Verified<Request>,
        quote: Verified<Quote>,
    },
    /// Our user wants a job stopped on which a provider may be at work.
    Cancelling { job: JobId },
    /// What a capacity challenge of ours came to.
    Challenged(Outcome),
    /// A provider failed us.
    Failed(Failure),
    /// A provider showed references that we checked.
    Vouched(Vouches),
    /// A part of a checkpoint.
    Part(Part),
    /// A unit of our job has come so far at a provider of this account, and what it takes
    /// to go on from there is here.
    Reached {
        job: JobId,
        account: AccountId,
        kept: Checkpoint,
    },
}

/// A record as bytes: the same shape with raw envelopes.
#[derive(Debug, Encode, Decode)]
enum Stored {
    Offered(RawOffer),
    Withdrew(RawOffer),
    Submitted(Box<JobOrder>, Wall),
    Asked(RawEnvelope),
    Took(RawOffer, RawEnvelope, RawEnvelope, Option<RawEnvelope>),
    GaveUp(JobId, AgreementId, Reason),
    Judged(RawEnvelope, RawEnvelope, InlineBlobs),
    Ended(JobId, JobEnd, Wall),
    Quoted(RawOffer, RawEnvelope, RawEnvelope),
    AgreedTo(RawEnvelope),
    Receipted(RawEnvelope),
    HeardOf(RawEnvelope),
    Closed(AgreementId, Reason),
    Paid(RawEnvelope),
    PaidAcked(RawEnvelope),
    Earned(RawEnvelope, RawEnvelope),
    Frozen(RawEnvelope, RawEnvelope),
    Settled(RawEnvelope),
    QuotedFirm(RawOffer, RawEnvelope, RawEnvelope),
    Cancelling(JobId),
    Part(StoredPart),
    Challenged(Outcome),
    Reached(JobId, AccountId, Checkpoint),
    Failed(Failure),
    Vouched(Vouches),
}

type RawEnvelope = Raw<ENVELOPE_BYTES_MAX>;
type RawOffer = Raw<OFFER_BYTES_MAX>;

/// What a record can be found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    /// A job, on its client's side or its provider's.
    Job(JobId),
    /// An agreement.
    Agreement(AgreementId),
    /// A receipt, or the word on it.
    Receipt(ReceiptId),
    /// Our word on a receipt of this unit.
    Unit(AgreementId, u32),
    /// Every receipt, in order.
    AnyReceipt,
    /// Every job of our own, in order.
    AnyJob,
    /// A channel.
    Channel(ChannelId),
    /// The other party's node.
    Peer(PeerId),
    /// The other party's account.
    Account(AccountId),
    /// An envelope that the record holds.
    Envelope(Hash),
}

/// Whether a record is history that people may ask for, once the state no
/// longer needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    /// It is a part of the story of a job, a receipt or a channel.
    Always,
    /// It is if the quote of this name was taken.
    IfTaken(QuoteId),
    /// Steps that led nowhere, and what has run out.
    Never,
}

impl Record {
    /// Whether it is history that people may ask for: all that a receipt's
    /// bundle, a job's story and a channel's statement are made of.
    pub fn worth(&self) -> Worth {
        match self {
            Self::Submitted { .. }
            | Self::Took { .. }
            | Self::GaveUp { .. }
            | Self::Judged { .. }
            | Self::Ended { .. }
            | Self::QuotedFirm { .. }
            | Self::AgreedTo(_)
            | Self::Receipted(_)
            | Self::HeardOf(_)
            | Self::Paid(_)
            | Self::PaidAcked(_)
            | Self::Earned { .. }
            | Self::Frozen { .. }
            | Self::Settled(_) => Worth::Always,
            Self::Quoted { quote, .. } => Worth::IfTaken(QuoteId(quote.hash())),
            Self::Offered(_)
            | Self::Withdrew(_)
            | Self::Asked(_)
            | Self::Closed { .. }
            | Self::Cancelling { .. }
            | Self::Challenged(_)
            | Self::Reached { .. }
            | Self::Failed(_)
            | Self::Vouched(_)
            | Self::Part(_) => Worth::Never,
        }
    }

    /// Its bytes in the journal.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(&self.stored())
    }

    fn stored(&self) -> Stored {
        match self {
            Self::Offered(offer) => Stored::Offered(offer.raw()),
            Self::Withdrew(withdrawal) => Stored::Withdrew(withdrawal.raw()),
            Self::Submitted { order, at } => Stored::Submitted(order.clone(), *at),
            Self::Asked(request) => Stored::Asked(request.raw()),
            Self::Took {
                offer,
                request,
                quote,
                agreement,
            } => Stored::Took(
                offer.raw(),
                request.raw(),
                quote.raw(),
                agreement.as_ref().map(Verified::raw),
            ),
            Self::GaveUp {
                job,
                agreement,
                reason,
            } => Stored::GaveUp(*job, *agreement, *reason),
            Self::Judged {
                receipt,
                acceptance,
                outputs,
            } => Stored::Judged(receipt.raw(), acceptance.raw(), outputs.clone()),
            Self::Ended { job, end, at } => Stored::Ended(*job, *end, *at),
            Self::Quoted {
                offer,
                request,
                quote,
            } => Stored::Quoted(offer.raw(), request.raw(), quote.raw()),
            Self::QuotedFirm {
                offer,
                request,
                quote,
            } => Stored::QuotedFirm(offer.raw(), request.raw(), quote.raw()),
            Self::AgreedTo(agreement) => Stored::AgreedTo(agreement.raw()),
            Self::Receipted(receipt) => Stored::Receipted(receipt.raw()),
            Self::HeardOf(acceptance) => Stored::HeardOf(acceptance.raw()),
            Self::Closed { agreement, reason } => Stored::Closed(*agreement, *reason),
            Self::Paid(voucher) => Stored::Paid(voucher.raw()),
            Self::PaidAcked(ack) => Stored::PaidAcked(ack.raw()),
            Self::Earned { voucher, ack } => Stored::Earned(voucher.raw(), ack.raw()),
            Self::Frozen { first, second } => Stored::Frozen(first.raw(), second.raw()),
            Self::Settled(settlement) => Stored::Settled(settlement.raw()),
            Self::Cancelling { job } => Stored::Cancelling(*job),
            Self::Challenged(outcome) => Stored::Challenged(outcome.clone()),
            Self::Reached { job, account, kept } => Stored::Reached(*job, *account, kept.clone()),
            Self::Failed(failure) => Stored::Failed(*failure),
            Self::Vouched(vouches) => Stored::Vouched(vouches.clone()),
            Self::Part(part) => Stored::Part(part.stored()),
        }
    }

    /// From its bytes in the journal.
    ///
    /// # Errors
    /// [`EnvelopeError`]: the bytes are no record of this network's.
    pub fn decode(bytes: &[u8], network: NetworkId) -> Result<Self, EnvelopeError> {
        Self::open(bytes, Trust::Nobody(network))
    }

    /// From its bytes, for finding it: signatures are not verified again. Only
    /// for what this node's journal has acknowledged.
    ///
    /// # Errors
    /// [`EnvelopeError`]: the bytes are no record.
    pub fn read_back(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        Self::open(bytes, Trust::OwnJournal)
    }

    fn open(bytes: &[u8], trust: Trust) -> Result<Self, EnvelopeError> {
        Ok(match wire::decode::<Stored>(bytes, RECORD_BYTES_MAX)? {
            Stored::Offered(raw) => Self::Offered(raw.open(trust)?),
            Stored::Withdrew(raw) => Self::Withdrew(raw.open(trust)?),
            Stored::Submitted(order, at) => Self::Submitted { order, at },
            Stored::Asked(raw) => Self::Asked(raw.open(trust)?),
            Stored::Took(offer, request, quote, agreement) => Self::Took {
                offer: offer.open(trust)?,
                request: request.open(trust)?,
                quote: quote.open(trust)?,
                agreement: agreement.map(|raw| raw.open(trust)).transpose()?,
            },
            Stored::GaveUp(job, agreement, reason) => Self::GaveUp {
                job,
                agreement,
                reason,
            },
            Stored::Judged(receipt, acceptance, outputs) => Self::Judged {
                receipt: receipt.open(trust)?,
                acceptance: acceptance.open(trust)?,
                outputs,
            },
            Stored::Ended(job, end, at) => Self::Ended { job, end, at },
            Stored::Quoted(offer, request, quote) => Self::Quoted {
                offer: offer.open(trust)?,
                request: request.open(trust)?,
                quote: quote.open(trust)?,
            },
            Stored::QuotedFirm(offer, request, quote) => Self::QuotedFirm {
                offer: offer.open(trust)?,
                request: request.open(trust)?,
                quote: quote.open(trust)?,
            },
            Stored::AgreedTo(raw) => Self::AgreedTo(raw.open(trust)?),
            Stored::Receipted(raw) => Self::Receipted(raw.open(trust)?),
            Stored::HeardOf(raw) => Self::HeardOf(raw.open(trust)?),
            Stored::Closed(agreement, reason) => Self::Closed { agreement, reason },
            Stored::Paid(raw) => Self::Paid(raw.open(trust)?),
            Stored::PaidAcked(raw) => Self::PaidAcked(raw.open(trust)?),
            Stored::Earned(voucher, ack) => Self::Earned {
                voucher: voucher.open(trust)?,
                ack: ack.open(trust)?,
            },
            Stored::Frozen(first, second) => Self::Frozen {
                first: first.open(trust)?,
                second: second.open(trust)?,
            },
            Stored::Settled(raw) => Self::Settled(raw.open(trust)?),
            Stored::Cancelling(job) => Self::Cancelling { job },
            Stored::Challenged(outcome) => Self::Challenged(outcome),
            Stored::Reached(job, account, kept) => Self::Reached { job, account, kept },
            Stored::Failed(failure) => Self::Failed(failure),
            Stored::Vouched(vouches) => Self::Vouched(vouches),
            Stored::Part(part) => Self::Part(part.open(trust)?),
        })
    }

    /// What it can be found by.
    pub fn keys(&self, network: NetworkId) -> Vec<RecordKey> {
        use RecordKey as Key;
        match self {
            Self::Offered(_) | Self::Withdrew(_) | Self::Part(_) | Self::Reached { .. } => vec![],
            Self::Challenged(outcome) => vec![Key::Peer(outcome.provider)],
            Self::Failed(failure) => {
                vec![Key::Peer(failure.provider), Key::Account(failure.account)]
            }
            Self::Vouched(vouches) => vec![Key::Account(vouches.provider)],
            Self::Submitted { order, .. } => vec![Key::Job(order.job), Key::AnyJob],
            Self::Asked(request) => {
                vec![Key::Job(request.body().job), Key::Envelope(request.hash())]
            }
            Self::Took { quote, .. } => vec![
                Key::Job(quote.body().job),
                Key::Agreement(AgreementId(quote.hash())),
                Key::Peer(quote.signer()),
                Key::Account(quote.body().account),
            ],
            Self::Quoted { request, quote, .. } | Self::QuotedFirm { request, quote, .. } => vec![
                Key::Job(quote.body().job),
                Key::Agreement(AgreementId(quote.hash())),
                Key::Peer(request.signer()),
                Key::Account(request.body().account),
            ],
            Self::GaveUp { job, agreement, .. } => vec![Key::Job(*job), Key::Agreement(*agreement)],
            Self::Ended { job, .. } | Self::Cancelling { job } => vec![Key::Job(*job)],
            Self::Judged { receipt, .. } => vec![
                Key::Agreement(receipt.body().key.agreement),
                Key::Unit(receipt.body().key.agreement, receipt.body().key.unit),
                Key::Receipt(ReceiptId(receipt.hash())),
                Key::AnyReceipt,
            ],
            Self::AgreedTo(agreement) => vec![
                Key::Job(agreement.body().job),
                Key::Agreement(agreement.body().quote.into()),
            ],
            Self::Receipted(receipt) => vec![
                Key::Agreement(receipt.body().key.agreement),
                Key::Receipt(ReceiptId(receipt.hash())),
                Key::AnyReceipt,
            ],
            Self::HeardOf(acceptance) => vec![
                Key::Agreement(acceptance.body().key.agreement),
                Key::Receipt(acceptance.body().receipt),
            ],
            Self::Closed { agreement, .. } => vec![Key::Agreement(*agreement)],
            Self::Paid(voucher) | Self::Earned { voucher, .. } => {
                let mut keys = vec![
                    Key::Channel(voucher.body().parties.channel(network)),
                    Key::Envelope(voucher.hash()),
                ];
                keys.extend(
                    voucher
                        .body()
                        .receipts
                        .iter()
                        .map(|&receipt| Key::Receipt(receipt)),
                );
                keys
            }
            Self::PaidAcked(ack) => vec![
                Key::Channel(ack.body().parties.channel(network)),
                Key::Envelope(ack.body().voucher.0),
            ],
            Self::Frozen { first, .. } => vec![Key::Channel(first.body().parties.channel(network))],
            Self::Settled(settlement) => {
                vec![Key::Channel(settlement.body().parties.channel(network))]
            }
        }
    }

    /// Puts the bundle of a receipt together from the records of its
    /// agreement and of itself. `None` while something is missing.
    pub fn bundle<'a>(
        network: &str,
        receipt: ReceiptId,
        records: impl Iterator<Item = &'a Self>,
    ) -> Option<Bundle> {
        let mut builder = crate::bundle::Builder::default();
        for record in records {
            match record {
                Self::Took {
                    offer,
                    request,
                    quote,
                    agreement,
                } => {
                    builder.deal(offer, request, quote);
                    builder.agreement(agreement.as_ref());
                }
                Self::Quoted {
                    offer,
                    request,
                    quote,
                }
                | Self::QuotedFirm {
                    offer,
                    request,
                    quote,
                } => builder.deal(offer, request, quote),
                Self::AgreedTo(agreement) => builder.agreement(Some(agreement)),
                Self::Receipted(signed) if signed.hash() == receipt.0 => builder.receipt(signed),
                Self::Judged {
                    receipt: signed,
                    acceptance,
                    ..
                } if signed.hash() == receipt.0 => {
                    builder.receipt(signed);
                    builder.acceptance(acceptance);
                }
                Self::HeardOf(acceptance) if acceptance.body().receipt == receipt => {
                    builder.acceptance(acceptance);
                }
                Self::Earned { voucher, ack } if voucher.body().receipts.contains(&receipt) => {
                    builder.voucher(voucher);
                    builder.ack(ack);
                }
                Self::Paid(voucher) if voucher.body().receipts.contains(&receipt) => {
                    builder.voucher(voucher);
                }
                Self::PaidAcked(ack) => builder.ack(ack),
                _ => {}
            }
        }
        builder.build(network)
    }
}
