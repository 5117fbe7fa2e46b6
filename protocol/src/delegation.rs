//! An account's word that a node acts for it.
//!
//! The account's key signs a [`Delegation`] for a node key and can stay
//! offline afterwards. Offers and requests carry the delegation of their
//! signer, so that whoever reads them needs nothing else. A [`Revocation`]
//! ends a node's power from a point in time on.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::{
    envelope::{Body, EnvelopeError, Extensions, Header, Kind, Raw, Verified},
    ids::{AccountId, PeerId},
    limits::DELEGATION_BYTES_MAX,
    registry::kind,
    units::Wall,
};

/// A delegation's bytes inside another body.
pub type RawDelegation = Raw<DELEGATION_BYTES_MAX>;

/// Signed by an account: this node acts for me.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Delegation {
    /// The node.
    pub node: PeerId,
    /// Whether it may sell compute for the account.
    pub provides: bool,
    /// Whether it may buy compute and sign vouchers for the account.
    pub consumes: bool,
    /// Later additions.
    pub extensions: Extensions,
}

impl Body for Delegation {
    const KIND: Kind = kind::DELEGATION;
    const RECURS: bool = true;
    const ENVELOPE_BYTES_MAX: usize = DELEGATION_BYTES_MAX;

    fn check(&self, _: &Header) -> Result<(), EnvelopeError> {
        self.extensions.check()
    }
}

/// What a body's signer claims to act as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Selling.
    Provider,
    /// Buying.
    Client,
}

/// Checks that the delegation inside a body covers its signer: signed by the
/// account, for the signing node, in that role, at the time of signing.
///
/// # Errors
/// [`EnvelopeError`].
pub fn check_delegation(
    raw: &RawDelegation,
    account: AccountId,
    header: &Header,
    role: Role,
) -> Result<Verified<Delegation>, EnvelopeError> {
    let delegation = raw.verify::<Delegation>(header.network)?;
    if delegation.header().signer.account() != account
        || delegation.body().node != header.signer.peer()
    {
        return Err(EnvelopeError::WrongSigner);
    }
    let allowed = match role {
        Role::Provider => delegation.body().provides,
        Role::Client => delegation.body().consumes,
    };
    if !allowed {
        return Err(EnvelopeError::OutOfRange(
            "the delegation is for another role",
        ));
    }
    if header.issued < delegation.issued() || header.issued >= delegation.expires() {
        return Err(EnvelopeError::OutOfRange(
            "signed outside the delegation's time",
        ));
    }
    Ok(delegation)
}

/// Signed by an account: this node no longer acts for me.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Revocation {
    /// The node.
    pub node: PeerId,
    /// What it signed from then on doesn't count.
    pub since: Wall,
    /// Later additions.
    pub extensions: Extensions,
}

impl Body for Revocation {
    const KIND: Kind = kind::REVOCATION;
    const ENVELOPE_BYTES_MAX: usize = DELEGATION_BYTES_MAX;

    fn check(&self, _: &Header) -> Result<(), EnvelopeError> {
        self.extensions.check()
    }
}
