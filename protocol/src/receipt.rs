//! What was done, what it used, and what the client says to it.
//!
//! A provider signs a [`Receipt`] for each execution, and during long work for
//! parts of it. Receipts of one agreement are unordered: each is keyed by
//! [`ReceiptKey`] and stands alone. The amount is not a claim but a
//! consequence: [`amount_due`] computes it from usage, prices, terms
//! and cap, and a receipt with any other amount is disputed. The client signs
//! an [`Acceptance`] either way.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::{
    deal::{BlobRef, Deal, Quote, Work},
    envelope::{Body, EnvelopeError, Extensions, Header, Kind},
    ids::{AgreementId, BlobId, Hash, ReceiptId},
    limits::{OUTPUTS_MAX, PRICES_MAX},
    offer::{Charge, Name},
    registry::{Reason, Verification, kind},
    units::{Amount, Usage, Wall, cost},
    wire::List,
};

/// Which part of which execution a receipt is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize)]
pub struct ReceiptKey {
    /// The agreement.
    pub agreement: AgreementId,
    /// The unit; 0 for jobs and leases.
    pub unit: u32,
    /// The client's attempt at the job.
    pub attempt: u32,
    /// Counts the parts of one execution, from 0.
    pub index: u32,
    /// Whether it is the last of its execution.
    pub last: bool,
}

/// How an execution, or a part of it, went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub enum Outcome {
    /// As agreed.
    Completed,
    /// Not, through the job's own fault.
    JobFault(Reason),
    /// Not, through the provider's fault.
    ProviderFault(Reason),
    /// The client cancelled it.
    Cancelled,
}

impl Outcome {
    /// The outcome of an execution that failed for a reason.
    pub fn failed(reason: Reason) -> Self {
        if reason == Reason::CANCELLED {
            Self::Cancelled
        } else if reason.is_jobs_fault() {
            Self::JobFault(reason)
        } else {
            Self::ProviderFault(reason)
        }
    }

    /// In one word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::JobFault(_) => "job-fault",
            Self::ProviderFault(_) => "provider-fault",
            Self::Cancelled => "cancelled",
        }
    }

    /// Why it failed, if it did.
    pub const fn reason(self) -> Option<Reason> {
        match self {
            Self::JobFault(reason) | Self::ProviderFault(reason) => Some(reason),
            Self::Completed | Self::Cancelled => None,
        }
    }
}

/// A result, by name and hash.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct OutputRef {
    /// What the spec calls it.
    pub name: Name,
    /// Its bytes.
    pub blob: BlobRef,
}

/// A provider's statement of an execution, or of a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Receipt {
    /// What it is for.
    pub key: ReceiptKey,
    /// How it went.
    pub outcome: Outcome,
    /// The program that ran.
    pub program: BlobId,
    /// All inputs, hashed in order: see [`inputs_hash`].
    pub inputs: Hash,
    /// What came out.
    pub outputs: List<OutputRef, OUTPUTS_MAX>,
    /// When it started, by the provider's clock.
    pub started: Wall,
    /// When it ended.
    pub ended: Wall,
    /// What was used, in this part only.
    pub usage: List<Usage, PRICES_MAX>,
    /// What is due for this part.
    pub amount: Amount,
    /// What verification was done.
    pub verification: Verification,
    /// Later additions.
    pub extensions: Extensions,
}

impl Body for Receipt {
    const KIND: Kind = kind::RECEIPT;

    fn check(&self, _: &Header) -> Result<(), EnvelopeError> {
        for (n, line) in self.usage.iter().enumerate() {
            if self.usage[..n]
                .iter()
                .any(|earlier| earlier.meter == line.meter)
            {
                return Err(EnvelopeError::OutOfRange("two lines for one meter"));
            }
        }
        self.extensions.check()
    }
}

/// The hash of all inputs in order, under a purpose of its own.
pub fn inputs_hash(inputs: &[BlobRef]) -> Hash {
    let parts: Vec<&[u8]> = inputs
        .iter()
        .map(|input| &input.blob.0.as_bytes()[..])
        .collect();
    Hash::derive("suanli 2026 inputs", &parts)
}

/// What is due for a usage that ended so, under a quote.
///
/// `None` when the price of the usage leaves the type.
pub fn amount_due(quote: &Quote, outcome: Outcome, usage: &[Usage]) -> Option<Amount> {
    let charge = match outcome {
        Outcome::Completed => Charge::Usage,
        Outcome::JobFault(_) => quote.terms.on_job_fault,
        Outcome::ProviderFault(_) => quote.terms.on_provider_fault,
        Outcome::Cancelled => quote.terms.on_cancel,
    };
    match charge {
        Charge::Nothing => Some(Amount::ZERO),
        Charge::Usage => Some(cost(usage, &quote.prices)?.min(quote.unit_cap)),
    }
}

/// Why a receipt doesn't follow from its agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptFault {
    /// For another agreement, unit or attempt, or signed by somebody else.
    #[error("the receipt is not for this agreement")]
    OtherAgreement,
    /// For another program or other inputs.
    #[error("the receipt names another program or other inputs")]
    OtherWork,
    /// The amount doesn't follow from usage, prices, terms and cap.
    #[error("the amount is {claimed} where usage and prices give {due}")]
    WrongAmount {
        /// What the receipt says.
        claimed: Amount,
        /// What follows.
        due: Amount,
    },
    /// More than the agreement allows, or on a meter that the work has no part in.
    #[error("more is metered than the agreement allows")]
    ImpossibleUsage,
    /// Outputs over the agreed size.
    #[error("the outputs are larger than agreed")]
    TooMuchOutput,
}

impl ReceiptFault {
    /// The reason given in the dispute.
    pub const fn reason(self) -> Reason {
        match self {
            Self::OtherAgreement | Self::OtherWork => Reason::CONTRADICTS_AGREEMENT,
            Self::WrongAmount { .. } | Self::ImpossibleUsage => Reason::WRONG_AMOUNT,
            Self::TooMuchOutput => Reason::OUTPUT_TOO_LARGE,
        }
    }
}

impl Receipt {
    /// Whether this receipt, signed by the deal's provider, follows from it.
    ///
    /// # Errors
    /// [`ReceiptFault`].
    pub fn follows_from(&self, deal: &Deal) -> Result<(), ReceiptFault> {
        use crate::units::Meter;
        let (quote, request) = (deal.quote().body(), deal.request().body());
        if self.key.agreement != deal.id()
            || self.key.attempt != quote.attempt
            || !quote.work.has_unit(self.key.unit)
        {
            return Err(ReceiptFault::OtherAgreement);
        }
        if self.program != request.spec.blob || self.inputs != inputs_hash(&request.inputs) {
            return Err(ReceiptFault::OtherWork);
        }
        // Each runtime has its own meter, and nothing on another's.
        let runtime = request.needs.runtime;
        let over = |line: &Usage| match line.meter {
            Meter::JOB => line.quantity > 1,
            Meter::GPU_MS | Meter::WASM_FUEL => {
                line.meter != Meter::of(runtime) || line.quantity > quote.quantity_max(runtime)
            }
            _ => false,
        };
        if self.usage.iter().any(over) {
            return Err(ReceiptFault::ImpossibleUsage);
        }
        let due = amount_due(quote, self.outcome, &self.usage).unwrap_or(quote.unit_cap);
        // The last parts of a lease that uses its cap up cost less than their usage.
        let is_lease = matches!(quote.work, Work::Lease { .. });
        if self.amount > due || self.amount < due && !is_lease {
            return Err(ReceiptFault::WrongAmount {
                claimed: self.amount,
                due,
            });
        }
        let bytes = self
            .outputs
            .iter()
            .fold(0u64, |sum, output| sum.saturating_add(output.blob.bytes));
        if bytes > request.needs.output_bytes_max {
            return Err(ReceiptFault::TooMuchOutput);
        }
        Ok(())
    }
}

/// The client's word on a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Acceptance {
    /// The receipt.
    pub receipt: ReceiptId,
    /// What the receipt is for.
    pub key: ReceiptKey,
    /// What is said to it.
    pub verdict: Verdict,
    /// What the client verified.
    pub verification: Verification,
    /// Later additions.
    pub extensions: Extensions,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub enum Verdict {
    /// It will be paid by voucher.
    Accepted,
    /// It won't.
    Disputed(Reason),
}

impl Body for Acceptance {
    const KIND: Kind = kind::ACCEPTANCE;

    fn check(&self, _: &Header) -> Result<(), EnvelopeError> {
        self.extensions.check()
    }
}
