//! Leave to read results where they were made.
//!
//! ```text
//!                  ┌── Grant ──▶ holder: made them, and keeps them for a while
//! client ──────────┤               ▲ Grant, then the blobs
//!   agreed with    └── Grant ──▶ reader: has agreed to run what reads them
//! ```
//!
//! Whoever is paid for a result serves it to its client. By a grant the client lets
//! somebody else have it, so that data between two of its jobs need not travel by way of
//! the client. It is signed by the client of the agreement under which the blobs were
//! made, for a named reader, until the envelope expires. Whether a blob is there is never
//! told otherwise.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::{
    envelope::{Body, EnvelopeError, Extensions, Header, Kind},
    ids::{AgreementId, BlobId, PeerId},
    limits::{GRANT_TTL_MAX, INPUTS_MAX},
    registry::kind,
    wire::List,
};

/// Signed leave for one peer to read results of one agreement.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Grant {
    /// Who made and keeps them.
    pub holder: PeerId,
    /// Under which agreement with the signer.
    pub agreement: AgreementId,
    /// Who may read them.
    pub reader: PeerId,
    /// Which.
    pub blobs: List<BlobId, INPUTS_MAX>,
    /// Later additions.
    pub extensions: Extensions,
}

impl Body for Grant {
    const KIND: Kind = kind::GRANT;

    fn check(&self, header: &Header) -> Result<(), EnvelopeError> {
        if header.expires.since(header.issued) > GRANT_TTL_MAX {
            return Err(EnvelopeError::OutOfRange(
                "a grant lives longer than one may",
            ));
        }
        self.extensions.check()
    }
}
