//! Bugs planted on purpose, one for each checker, to show that it looks.
//!
//! All are at the simulator's level: a disk, a clock or a driver that does not
//! do what the protocol relies on. The protocol itself is never changed.

use suanli_protocol::{
    receipt::Verdict,
    record::{JobEnd, Record},
};

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// Disks of providers lose agreements, and say that they are written.
    DiskLosesAgreements,
    /// After its first acknowledged voucher a client is stopped, and its disk has
    /// lost what it accepted and which jobs were done.
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
    /// A provider is stopped after its first quote has left, and its disk has
    /// lost the quote.
    DiskLosesQuotes,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::DiskLosesAgreements,
        Self::DiskLosesWords,
        Self::SlotsOversold,
        Self::DiskLosesVouchers,
        Self::NoTimers,
        Self::RejectsGoodGossip,
        Self::IgnoresGating,
        Self::DiskLosesQuotes,
    ];

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
            | Self::IgnoresGating => false,
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
            | Self::IgnoresGating => false,
        }
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
    done || is_charged(record)
}

/// Whether a record accepts a receipt that costs something.
fn is_charged(record: &Record) -> bool {
    match record {
        Record::Judged {
            receipt,
            acceptance,
        } => {
            acceptance.body().verdict == Verdict::Accepted
                && receipt.body().key.last
                && receipt.body().amount.as_micros() > 0
        }
        _ => false,
    }
}
