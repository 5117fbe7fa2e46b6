//! What others say of a provider: co-signed receipts.
//!
//! A [`Reference`] is a receipt and its client's acceptance, with the delegations that
//! say for which accounts the two nodes signed. So it proves, with nothing but its own
//! bytes, that one account's node accepted what another account's node had done. It
//! proves no more: two accounts of one person can sign as many as they like. What one
//! weighs, to whom, is [`crate::standing`]'s business.
//!
//! Absent on purpose: offer, request and quote. They would prove nothing that the two
//! signatures don't, and would show others what the client asked for, for whom.

use bincode::{Decode, Encode};

use crate::{
    delegation::{RawDelegation, Role, check_delegation},
    envelope::{Envelope, EnvelopeError, Header, Raw, Verified},
    ids::{AccountId, NetworkId, PeerId, ReceiptId},
    limits::ENVELOPE_BYTES_MAX,
    receipt::{Acceptance, Outcome, Receipt, Verdict},
    units::Wall,
};

/// A co-signed receipt, and for whom its two sides signed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Reference {
    /// The provider's receipt.
    pub receipt: Raw<ENVELOPE_BYTES_MAX>,
    /// Its account's word for it.
    pub provider: RawDelegation,
    /// The client's word on the receipt.
    pub acceptance: Raw<ENVELOPE_BYTES_MAX>,
    /// Its account's word for it.
    pub client: RawDelegation,
}

/// What a valid reference says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Referred {
    /// Whose node did the work.
    pub provider: AccountId,
    /// That node.
    pub node: PeerId,
    /// Whose node accepted it.
    pub client: AccountId,
    /// The receipt.
    pub receipt: ReceiptId,
    /// When it was accepted, by the client's clock.
    pub at: Wall,
    /// Whether the client says that the result was equal to others'.
    pub compared: bool,
}

/// Why a reference says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoReference {
    /// A part is not properly signed, or for nobody.
    #[error("a part of the reference is not valid: {0}")]
    Part(#[from] EnvelopeError),
    /// The word is on another receipt.
    #[error("the acceptance is for another receipt")]
    OtherReceipt,
    /// The client accepted nothing, or nothing that was completed.
    #[error("the receipt was not accepted as completed work")]
    NotAccepted,
}

impl Reference {
    /// Checks all of it.
    ///
    /// # Errors
    /// [`NoReference`] names the first thing that doesn't hold.
    pub fn verify(&self, network: NetworkId) -> Result<Referred, NoReference> {
        let receipt: Verified<Receipt> = self.receipt.verify(network)?;
        let acceptance: Verified<Acceptance> = self.acceptance.verify(network)?;
        let word = acceptance.body();
        let id = ReceiptId(receipt.hash());
        if word.receipt != id || word.key != receipt.body().key {
            return Err(NoReference::OtherReceipt);
        }
        if word.verdict != Verdict::Accepted || receipt.body().outcome != Outcome::Completed {
            return Err(NoReference::NotAccepted);
        }
        Ok(Referred {
            provider: signed_for(&self.provider, receipt.header(), Role::Provider)?,
            node: receipt.signer(),
            client: signed_for(&self.client, acceptance.header(), Role::Client)?,
            receipt: id,
            at: acceptance.issued(),
            compared: word.verification.is_agreement(),
        })
    }
}

/// The account for which something was signed.
fn signed_for(
    raw: &RawDelegation,
    header: &Header,
    role: Role,
) -> Result<AccountId, EnvelopeError> {
    let account = Envelope::parse(&raw.0)?.header().signer.account();
    check_delegation(raw, account, header, role)?;
    Ok(account)
}
