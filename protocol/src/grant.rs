//! Leave to read one blob.
//!
//! A blob is served under an agreement that names it, or under a grant: signed
//! by the peer that keeps the blob or by the agreement's client, for a named
//! reader, until the envelope expires. Whether a blob is there is never told
//! otherwise.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::{
    deal::BlobRef,
    envelope::{Body, EnvelopeError, Extensions, Header, Kind},
    ids::PeerId,
    registry::kind,
};

/// Signed leave for one peer to read one blob.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Grant {
    /// Who keeps it.
    pub holder: PeerId,
    /// Who may read it.
    pub reader: PeerId,
    /// Which.
    pub blob: BlobRef,
    /// Later additions.
    pub extensions: Extensions,
}

impl Body for Grant {
    const KIND: Kind = kind::GRANT;

    fn check(&self, _: &Header) -> Result<(), EnvelopeError> {
        self.extensions.check()
    }
}
