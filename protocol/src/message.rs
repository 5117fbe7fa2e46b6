//! What peers say to each other, and how it gets from bytes to handlers.
//!
//! One stream protocol per purpose ([`Channel`]); each carries [`Frame`]s. A
//! frame may hold envelopes as raw bytes. [`Frame::verify`] checks signatures
//! and that the sender is the signer, and gives a [`Message`], which holds
//! nothing unverified. It is pure and needs no clock: a driver may run it
//! anywhere, and remember its results.
//!
//! Replies are matched by ids, never by order. Every exchange is safe to
//! repeat: the same question gets the same bytes.

use bincode::{Decode, Encode};

use crate::{
    challenge::{Challenge, Opening, Seed},
    deal::{Agreement, Checkpoint, Quote, Request, UnitRanges},
    delegation::Revocation,
    envelope::{Envelope, EnvelopeError, Raw, Verified},
    grant::Grant,
    ids::{AgreementId, BlobId, ChannelId, Hash, NetworkId, OfferId, PeerId, QuoteId, RequestId},
    limits::{
        CHECKPOINTS_MAX, ENVELOPE_BYTES_MAX, FRAME_BYTES_MAX, INLINE_BLOBS_MAX, INLINE_BYTES_MAX,
        LOG_LINE_BYTES_MAX, OFFER_BYTES_MAX, OFFERS_PER_PAGE, PULL_KNOWN_MAX, REFERENCES_MAX,
    },
    offer::{Offer, Withdrawal},
    receipt::{Acceptance, Receipt},
    reference::{NoReference, Reference, Referred},
    registry::{Reason, kind},
    units::Wall,
    voucher::{Settlement, Voucher, VoucherAck},
    wire::{self, Bytes, List, Text, WireError},
};

/// The stream protocols that carry frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Requests, quotes, agreements.
    Negotiate,
    /// Progress, logs, receipts, cancellation.
    Exec,
    /// Acceptances, vouchers, acknowledgements, heads.
    Settle,
    /// The offer book, and references.
    Book,
    /// Capacity challenges.
    Challenge,
}

type RawEnvelope = Raw<ENVELOPE_BYTES_MAX>;
type RawOffer = Raw<OFFER_BYTES_MAX>;

/// A blob small enough to travel inside a frame.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct InlineBlob {
    /// What it must hash to. Checked by [`Frame::verify`].
    pub blob: BlobId,
    /// Its bytes.
    pub bytes: Bytes<INLINE_BYTES_MAX>,
}

/// Blobs inside a frame.
pub type InlineBlobs = List<InlineBlob, INLINE_BLOBS_MAX>;

/// A no, with the two figures that explain it, where there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, serde::Serialize)]
pub struct Decline {
    /// Why.
    pub reason: Reason,
    /// What was needed.
    pub need: u64,
    /// What there is.
    pub have: u64,
}

impl From<Reason> for Decline {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            need: 0,
            have: 0,
        }
    }
}

/// An offer by its name and age, for comparing books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Known {
    /// The provider.
    pub peer: PeerId,
    /// Its offer's sequence.
    pub sequence: u64,
}

/// A question for a part of a book: what does somebody lack who has these?
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Pull {
    /// Providers from this one on,
    pub from: PeerId,
    /// and up to this one, without it; `None` for all that follow.
    pub to: Option<PeerId>,
    /// All that the asker has of them.
    pub known: List<Known, PULL_KNOWN_MAX>,
}

/// What travels on a message stream.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Frame {
    /// Client: may I have a quote?
    Ask(RawEnvelope),
    /// Provider: this.
    Quoted(RawEnvelope),
    /// Provider: no.
    Declined(RequestId, Decline),
    /// Client: I take it; here is what is small of what you lack.
    Agree(RawEnvelope, InlineBlobs),
    /// Provider: I have stored the agreement.
    Agreed(AgreementId),
    /// Provider: no longer.
    AgreeRefused(AgreementId, Decline),
    /// Client: I won't take this quote.
    Release(QuoteId),
    /// Client: this is yours to read, or let somebody read what you made for me. Whoever is
    /// let read shows it to who made it.
    Grant(RawEnvelope),

    /// Provider: so far.
    Progress(Progress),
    /// Provider: a line of the job's log.
    Log(LogLine),
    /// Client: stop.
    Cancel(AgreementId),
    /// Client: are you still on it? I have these receipts, the newest, and the last
    /// receipts of these units; and of others these checkpoints.
    Resume(
        AgreementId,
        List<RawEnvelope, 4>,
        UnitRanges,
        List<Checkpoint, CHECKPOINTS_MAX>,
    ),
    /// Provider: I don't know that agreement.
    Lost(AgreementId),
    /// Provider: done, or a part of it; with outputs that are small.
    Receipt(RawEnvelope, InlineBlobs),
    /// Provider: from here it could go on; with buffers that are small. Nobody's
    /// signature: a checkpoint is worth what its provider's next receipt is.
    Checkpoint(AgreementId, Checkpoint, InlineBlobs),

    /// Client: my word on a receipt.
    Acceptance(RawEnvelope),
    /// Client: I owe you this.
    Voucher(RawEnvelope),
    /// Provider: stored.
    VoucherAck(RawEnvelope),
    /// Either: where our channel stands for me. Asks for the same in return
    /// when `reply` is set.
    Heads(Heads),
    /// Provider: so much is paid. Answered by the client's heads.
    Settlement(RawEnvelope),

    /// What offers do you have that I lack?
    Pull(Pull),
    /// These, and all that you lack up to the provider named: ask from there
    /// on. `None` at the end of the book.
    Offers(List<RawOffer, OFFERS_PER_PAGE>, Option<PeerId>),

    /// Anybody: compute this on that device of your offer.
    Challenge(u16, Challenge),
    /// Provider: no, or no longer.
    ChallengeDeclined(Seed, Decline),
    /// Provider: I have the product, and its rows lead to this root.
    Committed(Seed, Hash),
    /// Challenger: open it for this seed.
    OpenCommitment(Seed, Seed),
    /// Provider: here.
    Opened(Seed, Box<Opening>),

    /// Anybody: who was content with your work?
    AskReferences,
    /// Provider: these accounts, the newest of each; or why it doesn't say.
    References(List<Reference, REFERENCES_MAX>, Option<Decline>),
}

/// How far an execution is. Numbered: an older one never overwrites a newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Progress {
    /// The agreement.
    pub agreement: AgreementId,
    /// The unit.
    pub unit: u32,
    /// Counts frames of this agreement.
    pub number: u64,
    /// Steps done.
    pub done: u64,
    /// Steps in all; 0 while inputs travel.
    pub total: u64,
}

/// A line of a job's log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LogLine {
    /// The agreement.
    pub agreement: AgreementId,
    /// The unit.
    pub unit: u32,
    /// Counts frames of this agreement.
    pub number: u64,
    /// When, by the provider's clock.
    pub at: Wall,
    /// The line.
    pub line: Text<LOG_LINE_BYTES_MAX>,
}

/// One side's view of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Heads {
    /// The channel.
    pub channel: ChannelId,
    /// The newest voucher that this side has.
    pub voucher: Option<RawEnvelope>,
    /// The newest acknowledgement that this side has.
    pub ack: Option<RawEnvelope>,
    /// The newest settlement that this side has.
    pub settlement: Option<RawEnvelope>,
    /// Whether the other side should answer with its own.
    pub reply: bool,
}

impl Frame {
    /// The stream that carries it.
    pub const fn channel(&self) -> Channel {
        match self {
            Self::Ask(_)
            | Self::Quoted(_)
            | Self::Declined(..)
            | Self::Agree(..)
            | Self::Agreed(_)
            | Self::AgreeRefused(..)
            | Self::Release(_)
            | Self::Grant(_) => Channel::Negotiate,
            Self::Progress(_)
            | Self::Log(_)
            | Self::Cancel(_)
            | Self::Resume(..)
            | Self::Lost(_)
            | Self::Receipt(..)
            | Self::Checkpoint(..) => Channel::Exec,
            Self::Acceptance(_)
            | Self::Voucher(_)
            | Self::VoucherAck(_)
            | Self::Heads(_)
            | Self::Settlement(_) => Channel::Settle,
            Self::Pull(_) | Self::Offers(..) | Self::AskReferences | Self::References(..) => {
                Channel::Book
            }
            Self::Challenge(..)
            | Self::ChallengeDeclined(..)
            | Self::Committed(..)
            | Self::OpenCommitment(..)
            | Self::Opened(..) => Channel::Challenge,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode(bytes, FRAME_BYTES_MAX)
    }

    /// Verifies all that it holds, as said by `from`.
    ///
    /// # Errors
    /// [`EnvelopeError`]: the sender is at fault, for these frames are never
    /// forwarded for others. Offers in a book page are the exception: the bad
    /// ones are left out, and the first fault is reported beside the good ones
    /// in [`Message::Offers`].
    pub fn verify(self, from: PeerId, network: NetworkId) -> Result<Message, EnvelopeError> {
        /// Refuses what somebody else signed.
        fn own<T>(verified: Verified<T>, from: PeerId) -> Result<Verified<T>, EnvelopeError> {
            if verified.signer() == from {
                Ok(verified)
            } else {
                Err(EnvelopeError::WrongSigner)
            }
        }
        Ok(match self {
            Self::Ask(raw) => Message::Ask(own(raw.verify(network)?, from)?),
            Self::Quoted(raw) => Message::Quoted(own(raw.verify(network)?, from)?),
            Self::Declined(request, decline) => Message::Declined(request, decline),
            Self::Agree(raw, blobs) => {
                Message::Agree(own(raw.verify(network)?, from)?, check_inline(blobs)?)
            }
            Self::Agreed(agreement) => Message::Agreed(agreement),
            Self::AgreeRefused(agreement, decline) => Message::AgreeRefused(agreement, decline),
            Self::Release(quote) => Message::Release(quote),
            Self::Grant(raw) => Message::Grant(raw.verify(network)?),
            Self::Progress(progress) => Message::Progress(progress),
            Self::Log(line) => Message::Log(line),
            Self::Cancel(agreement) => Message::Cancel(agreement),
            Self::Resume(agreement, receipts, done, kept) => Message::Resume(
                agreement,
                receipts
                    .iter()
                    .map(|raw| raw.verify(network))
                    .collect::<Result<_, _>>()?,
                done,
                kept.into_vec(),
            ),
            Self::Lost(agreement) => Message::Lost(agreement),
            Self::Receipt(raw, blobs) => {
                Message::Receipt(own(raw.verify(network)?, from)?, check_inline(blobs)?)
            }
            Self::Checkpoint(agreement, kept, blobs) => {
                Message::Checkpoint(agreement, kept, check_inline(blobs)?)
            }
            Self::Acceptance(raw) => Message::Acceptance(own(raw.verify(network)?, from)?),
            Self::Voucher(raw) => Message::Voucher(own(raw.verify(network)?, from)?),
            Self::VoucherAck(raw) => Message::VoucherAck(own(raw.verify(network)?, from)?),
            Self::Heads(heads) => Message::Heads(heads.verify(network)?),
            Self::Settlement(raw) => Message::Settlement(own(raw.verify(network)?, from)?),
            Self::Pull(pull) => Message::Pull(pull),
            Self::Offers(raw, next) => verify_page(&raw, next, network),
            Self::Challenge(device, challenge) => Message::Challenge(device, challenge),
            Self::ChallengeDeclined(seed, decline) => Message::ChallengeDeclined(seed, decline),
            Self::Committed(seed, root) => Message::Committed(seed, root),
            Self::OpenCommitment(seed, open) => Message::OpenCommitment(seed, open),
            Self::Opened(seed, opening) => Message::Opened(seed, opening),
            Self::AskReferences => Message::AskReferences,
            Self::References(shown, decline) => verify_references(&shown, decline, network),
        })
    }
}

impl Heads {
    fn verify(self, network: NetworkId) -> Result<VerifiedHeads, EnvelopeError> {
        Ok(VerifiedHeads {
            channel: self.channel,
            voucher: self.voucher.map(|raw| raw.verify(network)).transpose()?,
            ack: self.ack.map(|raw| raw.verify(network)).transpose()?,
            settlement: self.settlement.map(|raw| raw.verify(network)).transpose()?,
            reply: self.reply,
        })
    }
}

fn check_inline(blobs: InlineBlobs) -> Result<Vec<InlineBlob>, EnvelopeError> {
    let bytes: usize = blobs.iter().map(|blob| blob.bytes.len()).sum();
    if bytes > INLINE_BYTES_MAX {
        return Err(EnvelopeError::OutOfRange("more inline bytes than allowed"));
    }
    if blobs
        .iter()
        .any(|blob| Hash::of(&blob.bytes) != blob.blob.0)
    {
        return Err(EnvelopeError::OutOfRange(
            "an inline blob does not match its hash",
        ));
    }
    Ok(blobs.into_vec())
}

fn verify_page(raw: &[RawOffer], next: Option<PeerId>, network: NetworkId) -> Message {
    let mut offers = Vec::new();
    let mut fault = None;
    for result in raw.iter().map(|raw| raw.verify(network)) {
        match result {
            Ok(offer) => offers.push(offer),
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    Message::Offers {
        offers,
        next,
        fault,
    }
}

/// As with offers, a bad one does not spoil the others.
fn verify_references(shown: &[Reference], decline: Option<Decline>, network: NetworkId) -> Message {
    let mut references = Vec::new();
    let mut fault = None;
    for result in shown.iter().map(|reference| reference.verify(network)) {
        match result {
            Ok(referred) => references.push(referred),
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    Message::References {
        references,
        decline,
        fault,
    }
}

/// A verified frame.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the frame of the same name, verified")]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, boxed by whoever keeps it"
)]
pub enum Message {
    Ask(Verified<Request>),
    Quoted(Verified<Quote>),
    Declined(RequestId, Decline),
    Agree(Verified<Agreement>, Vec<InlineBlob>),
    Agreed(AgreementId),
    AgreeRefused(AgreementId, Decline),
    Release(QuoteId),
    Grant(Verified<Grant>),
    Progress(Progress),
    Log(LogLine),
    Cancel(AgreementId),
    Resume(
        AgreementId,
        Vec<Verified<Receipt>>,
        UnitRanges,
        Vec<Checkpoint>,
    ),
    Lost(AgreementId),
    Receipt(Verified<Receipt>, Vec<InlineBlob>),
    Checkpoint(AgreementId, Checkpoint, Vec<InlineBlob>),
    Acceptance(Verified<Acceptance>),
    Voucher(Verified<Voucher>),
    VoucherAck(Verified<VoucherAck>),
    Heads(VerifiedHeads),
    Settlement(Verified<Settlement>),
    Pull(Pull),
    Offers {
        offers: Vec<Verified<Offer>>,
        next: Option<PeerId>,
        fault: Option<EnvelopeError>,
    },
    Challenge(u16, Challenge),
    ChallengeDeclined(Seed, Decline),
    Committed(Seed, Hash),
    OpenCommitment(Seed, Seed),
    Opened(Seed, Box<Opening>),
    AskReferences,
    References {
        references: Vec<Referred>,
        decline: Option<Decline>,
        fault: Option<NoReference>,
    },
}

/// One side's view of a channel, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedHeads {
    /// The channel.
    pub channel: ChannelId,
    /// The newest voucher that the sender has.
    pub voucher: Option<Verified<Voucher>>,
    /// The newest acknowledgement that the sender has.
    pub ack: Option<Verified<VoucherAck>>,
    /// The newest settlement that the sender has.
    pub settlement: Option<Verified<Settlement>>,
    /// Whether an answer is wanted.
    pub reply: bool,
}

/// What travels by gossip: envelopes as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, boxed by whoever keeps it"
)]
pub enum Gossip {
    /// An offer.
    Offer(Verified<Offer>),
    /// A withdrawal.
    Withdrawal(Verified<Withdrawal>),
    /// The end of a node's power.
    Revocation(Verified<Revocation>),
    /// Well signed, and of a kind or version that this node can't read.
    Unread(OfferId),
}

impl Gossip {
    /// From gossiped bytes.
    ///
    /// # Errors
    /// [`EnvelopeError`]: to be rejected, for an honest forwarder has checked
    /// the same. What it could not know (age, a later version) is no error.
    pub fn verify(bytes: &[u8], network: NetworkId) -> Result<Self, EnvelopeError> {
        if bytes.len() > OFFER_BYTES_MAX {
            return Err(EnvelopeError::Wire(WireError::TooLong {
                bytes: bytes.len(),
                bytes_max: OFFER_BYTES_MAX,
            }));
        }
        let envelope = Envelope::parse(bytes)?;
        let known = match envelope.header().kind {
            kind::OFFER => envelope.verify(network).map(Self::Offer),
            kind::WITHDRAWAL => envelope.verify(network).map(Self::Withdrawal),
            kind::REVOCATION => envelope.verify(network).map(Self::Revocation),
            _ => Err(EnvelopeError::UnknownVersion(envelope.header().version)),
        };
        match known {
            Err(EnvelopeError::UnknownVersion(_) | EnvelopeError::CriticalExtension(_)) => {
                envelope.verify_unread(network)?;
                Ok(Self::Unread(OfferId(envelope.hash())))
            }
            other => other,
        }
    }
}

/// What a validator tells the gossip layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// New and good: forward it.
    Accept,
    /// Old, early or unknown: drop it, and blame nobody.
    Ignore,
    /// Malformed or forged: drop it, and blame who sent it.
    Reject,
}
