//! Records of a checkpoint: what stands for a past that is gone.
//!
//! Where the state still holds a record's very bytes, a checkpoint carries
//! that record as it was. The kinds here are for the rest: an agreement without
//! the steps that led to it, a running total without its summands. They are
//! written into checkpoints only, are nobody's signature, and are found by no
//! key. [`crate::peer::Peer::condense`] makes them, replaying takes them.

use bincode::{Decode, Encode};

use super::{JobEnd, JobOrder, RawEnvelope, RawOffer};
use crate::{
    deal::{Agreement, Quote, Request},
    envelope::{EnvelopeError, Trust, Verified},
    ids::{AccountId, AgreementId, JobId, PeerId, ReceiptId},
    limits::KEPT_LIST_MAX,
    message::InlineBlob,
    offer::{Name, Offer},
    receipt::Acceptance,
    registry::Reason,
    standing::Results,
    units::{Amount, Total, Wall},
    voucher::{Parties, Voucher, VoucherAck},
    wire::List,
};

/// A record of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "fields are what they are called; each variant is described"
)]
pub enum Part {
    /// Accounts that have worked for us. A checkpoint begins with them.
    Partners(List<AccountId, KEPT_LIST_MAX>),
    /// An agreement of a job that is forgotten otherwise, with one of our
    /// words on its receipts.
    Past {
        agreement: AgreementId,
        provider: PeerId,
        word: Option<Verified<Acceptance>>,
    },
    /// A job of ours. Its agreements and what was judged follow.
    Job {
        order: Box<JobOrder>,
        at: Wall,
        attempt: u32,
        end: Option<JobEnd>,
    },
    /// After what was judged of an open job: how often it was given up since the last
    /// result, and why last.
    Tries {
        job: JobId,
        losses: u32,
        last_reason: Reason,
    },
    /// An agreement for a job of ours: live, given up, or left behind.
    Deal {
        offer: Verified<Offer>,
        request: Verified<Request>,
        quote: Verified<Quote>,
        agreement: Option<Verified<Agreement>>,
        fate: Option<Reason>,
        live: bool,
    },
    /// What we answered a request with, whatever became of it.
    Answer(Verified<Quote>),
    /// An agreement that we serve or have served. Its receipts follow.
    Work {
        offer: Verified<Offer>,
        request: Verified<Request>,
        quote: Verified<Quote>,
        agreement: Option<Verified<Agreement>>,
    },
    /// A channel begins anew, without what records before this one say of it.
    Channel {
        parties: Parties,
        paying: bool,
        disputed: Total,
    },
    /// Receipts that no voucher on a channel pays yet.
    Owed {
        parties: Parties,
        paying: bool,
        receipts: List<(ReceiptId, Amount), KEPT_LIST_MAX>,
    },
    /// A voucher that we took, and our word on it; the last is the newest.
    Voucher {
        voucher: Verified<Voucher>,
        ack: Verified<VoucherAck>,
    },
    /// What was accepted of a principal's jobs on a day, in all.
    Spent {
        principal: Name,
        day: u64,
        amount: Amount,
    },
    /// An output that came with a receipt and may not be a blob yet.
    Output(InlineBlob),
    /// What became of an account's results.
    Results(AccountId, Box<Results>),
}

/// The same shape with raw envelopes.
#[derive(Debug, Encode, Decode)]
pub(super) enum StoredPart {
    Partners(List<AccountId, KEPT_LIST_MAX>),
    Past(AgreementId, PeerId, Option<RawEnvelope>),
    Job(Box<JobOrder>, Wall, u32, Option<JobEnd>),
    Tries(JobId, u32, Reason),
    Deal(StoredDeal, Option<Reason>, bool),
    Answer(RawEnvelope),
    Work(StoredDeal),
    Channel(Parties, bool, Total),
    Owed(Parties, bool, List<(ReceiptId, Amount), KEPT_LIST_MAX>),
    Voucher(RawEnvelope, RawEnvelope),
    Spent(Name, u64, Amount),
    Output(InlineBlob),
    Results(AccountId, Box<Results>),
}

/// Offer, request, quote and agreement.
#[derive(Debug, Encode, Decode)]
pub(super) struct StoredDeal(RawOffer, RawEnvelope, RawEnvelope, Option<RawEnvelope>);

type Parts = (
    Verified<Offer>,
    Verified<Request>,
    Verified<Quote>,
    Option<Verified<Agreement>>,
);

impl StoredDeal {
    fn of(
        offer: &Verified<Offer>,
        request: &Verified<Request>,
        quote: &Verified<Quote>,
        agreement: Option<&Verified<Agreement>>,
    ) -> Self {
        Self(
            offer.raw(),
            request.raw(),
            quote.raw(),
            agreement.map(Verified::raw),
        )
    }

    fn open(self, trust: Trust) -> Result<Parts, EnvelopeError> {
        Ok((
            self.0.open(trust)?,
            self.1.open(trust)?,
            self.2.open(trust)?,
            self.3.map(|raw| raw.open(trust)).transpose()?,
        ))
    }
}

impl Part {
    pub(super) fn stored(&self) -> StoredPart {
        match self {
            Self::Partners(accounts) => StoredPart::Partners(accounts.clone()),
            Self::Past {
                agreement,
                provider,
                word,
            } => StoredPart::Past(*agreement, *provider, word.as_ref().map(Verified::raw)),
            Self::Job {
                order,
                at,
                attempt,
                end,
            } => StoredPart::Job(order.clone(), *at, *attempt, *end),
            Self::Tries {
                job,
                losses,
                last_reason,
            } => StoredPart::Tries(*job, *losses, *last_reason),
            Self::Deal {
                offer,
                request,
                quote,
                agreement,
                fate,
                live,
            } => {
                let deal = StoredDeal::of(offer, request, quote, agreement.as_ref());
                StoredPart::Deal(deal, *fate, *live)
            }
            Self::Answer(quote) => StoredPart::Answer(quote.raw()),
            Self::Work {
                offer,
                request,
                quote,
                agreement,
            } => StoredPart::Work(StoredDeal::of(offer, request, quote, agreement.as_ref())),
            Self::Channel {
                parties,
                paying,
                disputed,
            } => StoredPart::Channel(*parties, *paying, *disputed),
            Self::Owed {
                parties,
                paying,
                receipts,
            } => StoredPart::Owed(*parties, *paying, receipts.clone()),
            Self::Voucher { voucher, ack } => StoredPart::Voucher(voucher.raw(), ack.raw()),
            Self::Spent {
                principal,
                day,
                amount,
            } => StoredPart::Spent(principal.clone(), *day, *amount),
            Self::Output(output) => StoredPart::Output(output.clone()),
            Self::Results(provider, results) => StoredPart::Results(*provider, results.clone()),
        }
    }
}

impl StoredPart {
    pub(super) fn open(self, trust: Trust) -> Result<Part, EnvelopeError> {
        Ok(match self {
            Self::Partners(accounts) => Part::Partners(accounts),
            Self::Past(agreement, provider, word) => Part::Past {
                agreement,
                provider,
                word: word.map(|raw| raw.open(trust)).transpose()?,
            },
            Self::Job(order, at, attempt, end) => Part::Job {
                order,
                at,
                attempt,
                end,
            },
            Self::Tries(job, losses, last_reason) => Part::Tries {
                job,
                losses,
                last_reason,
            },
            Self::Deal(deal, fate, live) => {
                let (offer, request, quote, agreement) = deal.open(trust)?;
                Part::Deal {
                    offer,
                    request,
                    quote,
                    agreement,
                    fate,
                    live,
                }
            }
            Self::Answer(raw) => Part::Answer(raw.open(trust)?),
            Self::Work(deal) => {
                let (offer, request, quote, agreement) = deal.open(trust)?;
                Part::Work {
                    offer,
                    request,
                    quote,
                    agreement,
                }
            }
            Self::Channel(parties, paying, disputed) => Part::Channel {
                parties,
                paying,
                disputed,
            },
            Self::Owed(parties, paying, receipts) => Part::Owed {
                parties,
                paying,
                receipts,
            },
            Self::Voucher(voucher, ack) => Part::Voucher {
                voucher: voucher.open(trust)?,
                ack: ack.open(trust)?,
            },
            Self::Spent(principal, day, amount) => Part::Spent {
                principal,
                day,
                amount,
            },
            Self::Output(output) => Part::Output(output),
            Self::Results(provider, results) => Part::Results(provider, results),
        })
    }
}
