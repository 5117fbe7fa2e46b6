//! A peer's name on the wire: its ed25519 public key.
//!
//! libp2p calls peers by `PeerId`, a multihash of an encoded public key of any kind. Suanli knows
//! ed25519 alone, whose 32 bytes stand verbatim in the identity multihash, so the two convert
//! without a lookup. Keys of another kind have no `PeerKey`; keys of small order have one only
//! until [`PeerKey::checked`] refuses them, which the gate does on every connection.

use std::fmt;

use ed25519_dalek::VerifyingKey;
use libp2p::PeerId;

/// Multihash code 0 (identity), length 36, then the protobuf head of an ed25519 key:
/// field 1 (type) = 1, field 2 (data) of 32 bytes.
const PEER_ID_HEAD: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// A peer's ed25519 public key, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey([u8; 32]);

/// Why bytes or a libp2p identity are not accepted as a peer's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefused {
    /// An RSA, ECDSA or secp256k1 identity.
    #[error("the peer's key is not ed25519")]
    Kind,
    /// The bytes are no point on the curve.
    #[error("the peer's key is not a point on the curve")]
    NotAPoint,
    /// A small-order point, under which one signature fits many messages.
    #[error("the peer's key is weak (of small order)")]
    Weak,
}

impl PeerKey {
    /// The bytes as they are, unchecked: good for naming a peer, not for trusting it.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key that belongs to a 32-byte secret seed.
    #[must_use]
    pub fn of_secret(secret: &[u8; 32]) -> Self {
        Self(
            ed25519_dalek::SigningKey::from_bytes(secret)
                .verifying_key()
                .to_bytes(),
        )
    }

    /// The same key, if it is a point on the curve and not of small order.
    ///
    /// # Errors
    /// [`KeyRefused::NotAPoint`] or [`KeyRefused::Weak`].
    pub fn checked(self) -> Result<Self, KeyRefused> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| KeyRefused::NotAPoint)?;
        if key.is_weak() {
            return Err(KeyRefused::Weak);
        }
        Ok(self)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn of_peer_id(id: &PeerId) -> Result<Self, KeyRefused> {
        let bytes = id.to_bytes();
        let key = bytes.strip_prefix(&PEER_ID_HEAD).ok_or(KeyRefused::Kind)?;
        Ok(Self(key.try_into().map_err(|_| KeyRefused::Kind)?))
    }

    pub(super) fn peer_id(&self) -> PeerId {
        let bytes = [PEER_ID_HEAD.as_slice(), &self.0].concat();
        PeerId::from_bytes(&bytes).unwrap_or_else(|_| unreachable!("a fixed head and 32 bytes"))
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;

    use super::*;

    #[test]
    fn converts_to_a_peer_id_and_back() {
        let seed = [7; 32];
        let libp2p_id = Keypair::ed25519_from_bytes(seed)
            .unwrap()
            .public()
            .to_peer_id();
        let key = PeerKey::of_secret(&seed);
        assert_eq!(key.peer_id(), libp2p_id);
        assert_eq!(PeerKey::of_peer_id(&libp2p_id), Ok(key));
        assert_eq!(key.checked(), Ok(key));
    }

    #[test]
    fn abuse_24_small_order_keys_and_other_kinds_are_refused() {
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        assert_eq!(
            PeerKey::new(identity_point).checked(),
            Err(KeyRefused::Weak)
        );
        assert_eq!(PeerKey::new([0; 32]).checked(), Err(KeyRefused::Weak));
        let hashed = PeerId::random();
        let hashed = PeerId::from_bytes(&[&[0x12, 0x20], &hashed.to_bytes()[2..34]].concat());
        assert_eq!(
            PeerKey::of_peer_id(&hashed.unwrap()),
            Err(KeyRefused::Kind),
            "RSA identities are SHA-256 multihashes"
        );
    }
}
