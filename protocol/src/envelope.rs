//! Signed bytes: how everything that binds somebody travels.
//!
//! An envelope is a header, readable without knowing the body; a body; and an
//! ed25519 signature of both. What is signed is the exact bytes that travel,
//! under a domain made of network, kind and version, so a signature means
//! nothing anywhere else. Nothing is ever re-serialised to be verified.
//!
//! ```text
//! bytes ──Envelope::parse──▶ Envelope ──verify──▶ Verified<T>     (typed, for handlers)
//!                                     └─verify_unread──▶ ()       (unknown kind: may be forwarded)
//! ```
//!
//! Handlers take only [`Verified`]. Expiry is not judged here: there is no
//! clock in verification, so that its result can be remembered.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use bincode::{Decode, Encode};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::Serialize;

use crate::{
    ids::{AccountId, Hash, NetworkId, PeerId},
    limits::{ENVELOPE_BYTES_MAX, EXTENSION_BYTES_MAX, EXTENSIONS_MAX},
    units::Wall,
    wire::{self, Bytes, List, Wire, WireError},
};

/// What an envelope's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize)]
pub struct Kind(pub u16);

/// What an envelope says of itself. 76 bytes on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Header {
    #[serde(skip)]
    magic: [u8; 4],
    /// What the body is.
    pub kind: Kind,
    /// The body's version.
    pub version: u16,
    /// The network in which it is meant.
    pub network: NetworkId,
    /// Whose key signed: a node's, or for delegations an account's.
    pub signer: PublicKey,
    /// When it was signed, by the signer's clock.
    pub issued: Wall,
    /// When it stops being meant.
    pub expires: Wall,
    body_bytes: u32,
}

const MAGIC: [u8; 4] = *b"sua\x01";
const HEADER_BYTES: usize = 4 + 2 + 2 + 16 + 32 + 8 + 8 + 4;
const SIGNATURE_BYTES: usize = 64;

/// An ed25519 verifying key as bytes, of a node or of an account.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize)]
#[serde(transparent)]
pub struct PublicKey(Hash);

impl PublicKey {
    /// From its bytes, unchecked: verification refuses bad keys.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Hash::from_bytes(bytes))
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// As a node's identity.
    pub const fn peer(self) -> PeerId {
        PeerId::from_bytes(*self.as_bytes())
    }

    /// As an account's identity.
    pub const fn account(self) -> AccountId {
        AccountId::from_bytes(*self.as_bytes())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.0)
    }
}

/// A private key that signs envelopes of one network.
#[derive(Clone)]
pub struct Signer {
    key: SigningKey,
    network: NetworkId,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({:?})", self.public())
    }
}

impl Signer {
    /// From a 32-byte secret.
    pub fn new(secret: &[u8; 32], network: NetworkId) -> Self {
        Self {
            key: SigningKey::from_bytes(secret),
            network,
        }
    }

    /// The key that verifies.
    pub fn public(&self) -> PublicKey {
        PublicKey::from_bytes(self.key.verifying_key().to_bytes())
    }

    /// The network of its signatures.
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// Signs a body. The caller makes it durable before it leaves.
    pub fn sign<T: Body>(&self, issued: Wall, expires: Wall, body: T) -> Verified<T> {
        let encoded = wire::encode(&body);
        let header = Header {
            magic: MAGIC,
            kind: T::KIND,
            version: T::VERSION,
            network: self.network,
            signer: self.public(),
            issued,
            expires,
            body_bytes: u32::try_from(encoded.len()).unwrap_or(u32::MAX),
        };
        let mut bytes = wire::encode(&header);
        bytes.extend_from_slice(&encoded);
        let signature = self.key.sign(&signed_bytes(&header, &bytes));
        bytes.extend_from_slice(&signature.to_bytes());
        let envelope = Envelope {
            hash: Hash::of(&bytes),
            bytes: bytes.into(),
            header,
        };
        Verified { envelope, body }
    }
}

/// What a signature is over: the domain, then header and body as they travel.
fn signed_bytes(header: &Header, header_and_body: &[u8]) -> Vec<u8> {
    let domain = Hash::derive(
        "suanli 2026 envelope domain",
        &[
            header.network.as_bytes(),
            &header.kind.0.to_le_bytes(),
            &header.version.to_le_bytes(),
        ],
    );
    let mut bytes = Vec::with_capacity(32 + header_and_body.len());
    bytes.extend_from_slice(domain.as_bytes());
    bytes.extend_from_slice(header_and_body);
    bytes
}

/// A thing that is signed.
pub trait Body: Wire + Clone + fmt::Debug {
    /// Its registered kind.
    const KIND: Kind;
    /// Its version.
    const VERSION: u16 = 1;
    /// Bytes of its envelope, at most.
    const ENVELOPE_BYTES_MAX: usize = ENVELOPE_BYTES_MAX;
    /// Whether the very same envelope comes inside many others, or from many
    /// peers: that its signature holds is remembered.
    const RECURS: bool = false;

    /// Checks what the type alone can't say: inner signatures, ranges,
    /// extensions. Called once, on verification.
    ///
    /// # Errors
    /// [`EnvelopeError`] with what is wrong.
    fn check(&self, header: &Header) -> Result<(), EnvelopeError>;
}

/// Why signed bytes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The bytes are no envelope, or the body is not of its kind.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Another kind than the one expected here.
    #[error("kind {found} where kind {expected} is expected")]
    WrongKind {
        /// The kind in the header.
        found: u16,
        /// The kind that belongs here.
        expected: u16,
    },
    /// A version that this node can't read.
    #[error("version {0} is not known here")]
    UnknownVersion(u16),
    /// Signed for another network.
    #[error("signed for network {0}")]
    OtherNetwork(NetworkId),
    /// The key is no point, or of small order.
    #[error("the signer's key is weak or no key")]
    WeakKey,
    /// The signature doesn't verify.
    #[error("the signature doesn't verify")]
    BadSignature,
    /// Signed by somebody else than who must sign it.
    #[error("signed by another key than the one that must sign")]
    WrongSigner,
    /// A value out of its range.
    #[error("{0}")]
    OutOfRange(&'static str),
    /// An extension that must be understood is not known here.
    #[error("critical extension {0} is not known here")]
    CriticalExtension(u16),
}

/// An envelope whose structure holds; nobody has looked at the signature yet.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    bytes: Arc<[u8]>,
    header: Header,
    hash: Hash,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envelope({}, kind {})", self.hash, self.header.kind.0)
    }
}

impl Envelope {
    /// Reads the header and checks lengths.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not exactly one envelope.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(WireError::TooLong {
                bytes: bytes.len(),
                bytes_max: ENVELOPE_BYTES_MAX,
            });
        }
        let Some(head) = bytes.get(..HEADER_BYTES) else {
            return Err(WireError::Malformed("shorter than a header".into()));
        };
        let header: Header = wire::decode(head, HEADER_BYTES)?;
        if header.magic != MAGIC {
            return Err(WireError::Malformed("no envelope".into()));
        }
        let expected = usize::try_from(header.body_bytes)
            .ok()
            .and_then(|body| body.checked_add(HEADER_BYTES + SIGNATURE_BYTES));
        if expected != Some(bytes.len()) {
            return Err(WireError::Malformed(
                "the length in the header is wrong".into(),
            ));
        }
        Ok(Self {
            hash: Hash::of(bytes),
            bytes: bytes.into(),
            header,
        })
    }

    /// What it says of itself, unverified.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Its name.
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// The exact bytes that travel.
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// Verifies the signature without reading the body: enough to forward what
    /// this version can't read.
    ///
    /// # Errors
    /// [`EnvelopeError`]: other network, weak key, bad signature.
    pub fn verify_unread(&self, network: NetworkId) -> Result<(), EnvelopeError> {
        if self.header.network != network {
            return Err(EnvelopeError::OtherNetwork(self.header.network));
        }
        let key = VerifyingKey::from_bytes(self.header.signer.as_bytes())
            .map_err(|_| EnvelopeError::WeakKey)?;
        if key.is_weak() {
            return Err(EnvelopeError::WeakKey);
        }
        let (covered, signature) = self.bytes.split_at(self.bytes.len() - SIGNATURE_BYTES);
        let signature =
            Signature::from_slice(signature).map_err(|_| EnvelopeError::BadSignature)?;
        key.verify_strict(&signed_bytes(&self.header, covered), &signature)
            .map_err(|_| EnvelopeError::BadSignature)
    }

    /// Verifies the signature, reads the body and checks it.
    ///
    /// # Errors
    /// [`EnvelopeError`]; the cheap checks come first.
    pub fn verify<T: Body>(&self, network: NetworkId) -> Result<Verified<T>, EnvelopeError> {
        if self.header.kind != T::KIND {
            return Err(EnvelopeError::WrongKind {
                found: self.header.kind.0,
                expected: T::KIND.0,
            });
        }
        if self.bytes.len() > T::ENVELOPE_BYTES_MAX {
            return Err(EnvelopeError::Wire(WireError::TooLong {
                bytes: self.bytes.len(),
                bytes_max: T::ENVELOPE_BYTES_MAX,
            }));
        }
        if !(T::RECURS && self.header.network == network && KNOWN_GOOD.has(self.hash)) {
            self.verify_unread(network)?;
            if T::RECURS {
                KNOWN_GOOD.add(self.hash);
            }
        }
        if self.header.version != T::VERSION {
            return Err(EnvelopeError::UnknownVersion(self.header.version));
        }
        if self.header.expires < self.header.issued {
            return Err(EnvelopeError::OutOfRange("expires before it was issued"));
        }
        let body = &self.bytes[HEADER_BYTES..self.bytes.len() - SIGNATURE_BYTES];
        let body: T = wire::decode(body, T::ENVELOPE_BYTES_MAX)?;
        body.check(&self.header)?;
        Ok(Verified {
            envelope: self.clone(),
            body,
        })
    }
}

/// Envelopes whose signatures were found to hold. Whether one holds depends on
/// its bytes alone, and the hash covers all of them.
static KNOWN_GOOD: KnownGood = KnownGood(Mutex::new([None; KNOWN_GOOD_MAX]));
/// A book's offers and their delegations, with room: half a megabyte.
const KNOWN_GOOD_MAX: usize = 16 * 1024;

/// Each hash has one place, which the next that belongs there takes over.
struct KnownGood(Mutex<[Option<Hash>; KNOWN_GOOD_MAX]>);

impl KnownGood {
    fn place(hash: Hash) -> usize {
        let [low, high, ..] = *hash.as_bytes();
        usize::from(u16::from_le_bytes([low, high])) % KNOWN_GOOD_MAX
    }

    fn has(&self, hash: Hash) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known[Self::place(hash)] == Some(hash)
    }

    fn add(&self, hash: Hash) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[Self::place(hash)] = Some(hash);
    }
}

impl Envelope {
    /// Reads a body whose signature was verified, or made, before it was
    /// written down.
    fn read_back<T: Body>(&self) -> Result<Verified<T>, EnvelopeError> {
        if self.header.kind != T::KIND {
            return Err(EnvelopeError::WrongKind {
                found: self.header.kind.0,
                expected: T::KIND.0,
            });
        }
        let body = &self.bytes[HEADER_BYTES..self.bytes.len() - SIGNATURE_BYTES];
        Ok(Verified {
            body: wire::decode(body, T::ENVELOPE_BYTES_MAX)?,
            envelope: self.clone(),
        })
    }
}

/// A body whose signature, and everything that can be checked without a clock,
/// holds. Made by verifying or by signing; and, within this crate, by reading
/// back what was verified before it was written.
#[derive(Clone, PartialEq, Eq)]
pub struct Verified<T> {
    envelope: Envelope,
    body: T,
}

impl<T> Verified<T> {
    /// What was signed.
    pub const fn body(&self) -> &T {
        &self.body
    }

    /// The envelope's header.
    pub const fn header(&self) -> &Header {
        &self.envelope.header
    }

    /// The exact bytes that travel.
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.envelope.bytes
    }

    /// The envelope's hash.
    pub const fn hash(&self) -> Hash {
        self.envelope.hash
    }

    /// The signing node.
    pub const fn signer(&self) -> PeerId {
        self.envelope.header.signer.peer()
    }

    /// When it was signed.
    pub const fn issued(&self) -> Wall {
        self.envelope.header.issued
    }

    /// When it stops being meant.
    pub const fn expires(&self) -> Wall {
        self.envelope.header.expires
    }

    /// The bytes as a wire field.
    pub fn raw<const MAX: usize>(&self) -> Raw<MAX> {
        Raw(Bytes::new(self.envelope.bytes.to_vec()).unwrap_or_default())
    }
}

impl<T: fmt::Debug> fmt::Debug for Verified<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.envelope.hash, self.body)
    }
}

/// An envelope's bytes as a field of something else.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode, Serialize)]
#[serde(transparent)]
pub struct Raw<const MAX: usize>(pub Bytes<MAX>);

impl<const MAX: usize> Raw<MAX> {
    /// Parses and verifies what the field holds.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn verify<T: Body>(&self, network: NetworkId) -> Result<Verified<T>, EnvelopeError> {
        Envelope::parse(&self.0)?.verify(network)
    }
}

impl<const MAX: usize> Raw<MAX> {
    /// Opens what a record holds: verifying it, or trusting the journal that it
    /// was just written to.
    pub(crate) fn open<T: Body>(&self, trust: Trust) -> Result<Verified<T>, EnvelopeError> {
        match trust {
            Trust::Nobody(network) => self.verify(network),
            Trust::OwnJournal => Envelope::parse(&self.0)?.read_back(),
        }
    }
}

/// Whose word for a signature is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trust {
    /// Everything is verified, as signed in this network.
    Nobody(NetworkId),
    /// This process has verified and written it a moment ago.
    OwnJournal,
}

/// A tagged addition at the end of a body, for later versions.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Extension {
    /// Registered id.
    pub id: u16,
    /// Whether a reader that doesn't know it must refuse the whole.
    pub critical: bool,
    /// Its content.
    pub bytes: Bytes<EXTENSION_BYTES_MAX>,
}

/// The extensions at the end of a body.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode, Serialize)]
#[serde(transparent)]
pub struct Extensions(pub List<Extension, EXTENSIONS_MAX>);

impl Extensions {
    /// Refuses what must be understood and is not. This version knows none.
    ///
    /// # Errors
    /// [`EnvelopeError::CriticalExtension`].
    pub fn check(&self) -> Result<(), EnvelopeError> {
        match self.0.iter().find(|extension| extension.critical) {
            Some(extension) => Err(EnvelopeError::CriticalExtension(extension.id)),
            None => Ok(()),
        }
    }
}
