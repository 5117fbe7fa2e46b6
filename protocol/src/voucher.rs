//! The running account between a client and a provider.
//!
//! A channel has one payer node and one payee node, each acting for an
//! account: one writer on each side, so that two nodes of one account never
//! race for a sequence number. It advances by [`Voucher`]s, signed by the
//! payer; each names the one before, the new running total, and the accepted
//! receipts that it pays. The payee acknowledges each with a [`VoucherAck`].
//! Two different vouchers with one sequence number are a proof against the
//! payer that anyone can check: [`Equivocation`].
//!
//! A voucher is a debt, not money. A [`Settlement`] is the payee's word that
//! a part of it was paid, outside or in advance. Each states the whole of what
//! was ever paid, so that the newest is enough.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::{
    envelope::{Body, EnvelopeError, Extensions, Header, Kind, Verified},
    ids::{AccountId, ChannelId, Hash, NetworkId, PeerId, ReceiptId, VoucherId},
    limits::VOUCHER_RECEIPTS_MAX,
    registry::kind,
    units::{Amount, Total},
    wire::{List, Text},
};

/// Who pays whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize)]
pub struct Parties {
    /// The node that signs vouchers.
    pub payer: PeerId,
    /// The account that owes.
    pub payer_account: AccountId,
    /// The node that acknowledges.
    pub payee: PeerId,
    /// The account that is owed.
    pub payee_account: AccountId,
}

impl Parties {
    /// The channel between them in a network.
    pub fn channel(&self, network: NetworkId) -> ChannelId {
        ChannelId(Hash::derive(
            "suanli 2026 channel",
            &[
                network.as_bytes(),
                self.payer.as_bytes(),
                self.payer_account.as_bytes(),
                self.payee.as_bytes(),
                self.payee_account.as_bytes(),
            ],
        ))
    }
}

/// Signed by the payer: I owe you this in all.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Voucher {
    /// Who pays whom.
    pub parties: Parties,
    /// Counts from 1.
    pub sequence: u64,
    /// The voucher before; zero for the first.
    pub previous: VoucherId,
    /// All that is owed since the channel began.
    pub cumulative: Total,
    /// The receipts that this voucher adds.
    pub receipts: List<ReceiptId, VOUCHER_RECEIPTS_MAX>,
    /// All receipts ever paid on the channel, as a hash chain: see [`next_root`].
    pub root: Hash,
    /// Later additions.
    pub extensions: Extensions,
}

impl Body for Voucher {
    const KIND: Kind = kind::VOUCHER;

    fn check(&self, header: &Header) -> Result<(), EnvelopeError> {
        if self.parties.payer != header.signer.peer() {
            return Err(EnvelopeError::WrongSigner);
        }
        if self.sequence == 0 {
            return Err(EnvelopeError::OutOfRange("vouchers count from 1"));
        }
        self.extensions.check()
    }
}

/// The root after some more receipts.
pub fn next_root(root: Hash, receipts: &[ReceiptId]) -> Hash {
    let mut parts: Vec<&[u8]> = vec![root.as_bytes()];
    parts.extend(receipts.iter().map(|receipt| &receipt.0.as_bytes()[..]));
    Hash::derive("suanli 2026 voucher root", &parts)
}

/// The voucher id that stands before the first.
pub const NO_VOUCHER: VoucherId = VoucherId(Hash::from_bytes([0; 32]));

/// The root before the first voucher.
pub const NO_ROOT: Hash = Hash::from_bytes([0; 32]);

/// Signed by the payee: I have stored this voucher.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct VoucherAck {
    /// Who pays whom.
    pub parties: Parties,
    /// Its sequence.
    pub sequence: u64,
    /// The voucher.
    pub voucher: VoucherId,
    /// The total that it states.
    pub cumulative: Total,
    /// Later additions.
    pub extensions: Extensions,
}

impl Body for VoucherAck {
    const KIND: Kind = kind::VOUCHER_ACK;

    fn check(&self, header: &Header) -> Result<(), EnvelopeError> {
        if self.parties.payee != header.signer.peer() {
            return Err(EnvelopeError::WrongSigner);
        }
        self.extensions.check()
    }
}

/// Signed by the payee: so much of the debt is paid.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Settlement {
    /// Who pays whom.
    pub parties: Parties,
    /// Counts from 1.
    pub sequence: u64,
    /// All that was ever paid, in advance or after.
    pub settled: Total,
    /// What of it came last.
    pub paid: Amount,
    /// How: an invoice number, a transfer.
    pub reference: Text<128>,
    /// Later additions.
    pub extensions: Extensions,
}

impl Body for Settlement {
    const KIND: Kind = kind::SETTLEMENT;

    fn check(&self, header: &Header) -> Result<(), EnvelopeError> {
        if self.parties.payee != header.signer.peer() {
            return Err(EnvelopeError::WrongSigner);
        }
        if self.sequence == 0 {
            return Err(EnvelopeError::OutOfRange("settlements count from 1"));
        }
        self.extensions.check()
    }
}

/// Two vouchers that can't both be meant: portable proof of a payer's lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Equivocation {
    first: Verified<Voucher>,
    second: Verified<Voucher>,
}

impl Equivocation {
    /// The proof, if the two contradict each other.
    pub fn new(first: Verified<Voucher>, second: Verified<Voucher>) -> Option<Self> {
        let (a, b) = (first.body(), second.body());
        (a.parties == b.parties && a.sequence == b.sequence && first.hash() != second.hash())
            .then_some(Self { first, second })
    }

    /// The two vouchers.
    pub const fn vouchers(&self) -> (&Verified<Voucher>, &Verified<Voucher>) {
        (&self.first, &self.second)
    }
}
