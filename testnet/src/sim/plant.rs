//! Bugs planted on purpose, one for each checker, to show that it looks.
//!
//! All are at the simulator's level: a disk, a clock or a driver that does not
//! do what the protocol relies on. The protocol itself is never changed.

use std::str::FromStr;

use suanli_protocol::{
    receipt::Verdict,
    record::{JobEnd, Part, Record},
};

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// Disks of providers lose agreements, and say that they are written.
    DiskLosesAgreements,
    /// After its first acknowledged voucher a client is stopped, and its disk
    /// has lost its agreements, what it accepted and which jobs were done.
    DiskLosesWords,
    /// Providers are told that they have more slots than there are.
    SlotsOversold,
    /// Disks of providers lose vouchers, and say that they are written.
    DiskLosesVouchers,
    /// Timers of clients never fire.
    NoTimers,
    /// A driver takes good gossip for bad, and blames who forwarded it.
    RejectsGoodGossip,
    /// Drivers say that a record is on disk before it is.
    IgnoresGating,
    /// Drivers say that a result is on disk before it is.
    BlobsSaidEarly,
    /// A provider is stopped after its first quote has left, and its disk has
    /// lost the quote.
    DiskLosesQuotes,
    /// Checkpoints say nothing of who owes whom.
    CheckpointForgetsAccounts,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::DiskLosesAgreements,
        Self::DiskLosesWords,
        Self::SlotsOversold,
        Self::DiskLosesVouchers,
        Self::NoTimers,
        Self::RejectsGoodGossip,
        Self::IgnoresGating,
        Self::BlobsSaidEarly,
        Self::DiskLosesQuotes,
        Self::CheckpointForgetsAccounts,
    ];

    /// What it is called on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DiskLosesAgreements => "disk-loses-agreements",
            Self::DiskLosesWords => "disk-loses-words",
            Self::SlotsOversold => "slots-oversold",
            Self::DiskLosesVouchers => "disk-loses-vouchers",
            Self::NoTimers => "no-timers",
            Self::RejectsGoodGossip => "rejects-good-gossip",
            Self::IgnoresGating => "ignores-gating",
            Self::BlobsSaidEarly => "blobs-said-early",
            Self::DiskLosesQuotes => "disk-loses-quotes",
            Self::CheckpointForgetsAccounts => "checkpoint-forgets-accounts",
        }
    }

    /// Whether the disk loses this record without a word.
    pub(crate) fn loses(self, record: &Record) -> bool {
        match self {
            Self::DiskLosesAgreements => matches!(record, Record::AgreedTo(_)),
            Self::DiskLosesVouchers => matches!(record, Record::Earned { .. }),
            Self::DiskLosesQuotes => matches!(record, Record::Quoted { .. }),
            Self::DiskLosesWords
            | Self::SlotsOversold
            | Self::NoTimers
            | Self::RejectsGoodGossip
            | Self::IgnoresGating
            | Self::BlobsSaidEarly
            | Self::CheckpointForgetsAccounts => false,
        }
    }

    /// Whether a checkpoint leaves this record out.
    pub(crate) const fn forgets(self, record: &Record) -> bool {
        match self {
            Self::CheckpointForgetsAccounts => is_account(record),
            Self::DiskLosesAgreements
            | Self::DiskLosesWords
            | Self::SlotsOversold
            | Self::DiskLosesVouchers
            | Self::NoTimers
            | Self::RejectsGoodGossip
            | Self::IgnoresGating
            | Self::BlobsSaidEarly
            | Self::DiskLosesQuotes => false,
        }
    }

    /// Whether a node with this bug is stopped after such a record.
    pub(crate) fn stops_after(self, record: &Record) -> bool {
        match self {
            Self::DiskLosesWords => matches!(record, Record::PaidAcked(_)),
            Self::DiskLosesQuotes => matches!(record, Record::Quoted { .. }),
            Self::DiskLosesAgreements
            | Self::SlotsOversold
            | Self::DiskLosesVouchers
            | Self::NoTimers
            | Self::RejectsGoodGossip
            | Self::IgnoresGating
            | Self::BlobsSaidEarly
            | Self::CheckpointForgetsAccounts => false,
        }
    }
}

/// A name that no planted bug has.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no planted bug is called {0:?}; there are {names}", names = names())]
pub struct UnknownPlant(String);

fn names() -> String {
    Plant::ALL.map(Plant::name).join(", ")
}

impl FromStr for Plant {
    type Err = UnknownPlant;
    fn from_str(text: &str) -> Result<Self, UnknownPlant> {
        Self::ALL
            .into_iter()
            .find(|plant| plant.name() == text)
            .ok_or_else(|| UnknownPlant(text.into()))
    }
}

/// What [`Plant::DiskLosesWords`] loses.
pub(crate) fn is_word(record: &Record) -> bool {
    let done = matches!(
        record,
        Record::Ended {
            end: JobEnd::Done,
            ..
        }
    );
    done || is_charged(record) || matches!(record, Record::Took { .. })
}

/// What [`Plant::CheckpointForgetsAccounts`] leaves out.
const fn is_account(record: &Record) -> bool {
    matches!(
        record,
        Record::Part(Part::Channel { .. } | Part::Owed { .. })
    )
}

/// Whether a record accepts a receipt that costs something.
fn is_charged(record: &Record) -> bool {
    match record {
        Record::Judged {
            receipt,
            acceptance,
            ..
        } => {
            acceptance.body().verdict == Verdict::Accepted
                && receipt.body().key.last
                && receipt.body().amount.as_micros() > 0
        }
        _ => false,
    }
}
