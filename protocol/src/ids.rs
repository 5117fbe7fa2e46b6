//! Names of things, each its own type.
//!
//! Keys and hashes are 32 bytes, shown as hex: whole with `{:#}` and in JSON,
//! the first eight digits otherwise. A peer is its node's ed25519 key, an
//! account its owner's; everything signed is named by the BLAKE3 hash of its
//! envelope, so that a name can't be made before the thing and never moves to
//! another.

use std::{fmt, str::FromStr};

use bincode::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| {
            [
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]
        })
        .map(char::from)
        .collect()
}

/// Text that is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected} hex digits")]
pub struct ParseIdError {
    text: String,
    expected: usize,
}

fn unhex<const N: usize>(text: &str) -> Result<[u8; N], ParseIdError> {
    let error = || ParseIdError {
        text: text.chars().take(80).collect(),
        expected: 2 * N,
    };
    if text.len() != 2 * N || !text.is_ascii() {
        return Err(error());
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = str::from_utf8(pair).map_err(|_| error())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| error())?;
    }
    Ok(bytes)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        pub struct $name([u8; $len]);

        impl $name {
            /// From its bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let digits = hex(&self.0);
                f.pad(if f.alternate() { &digits } else { &digits[..8] })
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                unhex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&hex(&self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// A node's identity: its ed25519 verifying key.
    PeerId, 32
);
id!(
    /// Who owes and is owed: the ed25519 verifying key that signs delegations.
    AccountId, 32
);
id!(
    /// A BLAKE3 hash.
    Hash, 32
);
id!(
    /// A network, from its name: the first half of the name's hash.
    NetworkId, 16
);
id!(
    /// A job, named by the client that made it.
    JobId, 16
);

impl PeerId {
    /// The one after it in their order; none after the last.
    pub(crate) fn next(mut self) -> Option<Self> {
        for byte in self.0.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return Some(self);
            }
        }
        None
    }
}

impl Hash {
    /// The hash of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The hash of some parts under a purpose: hashes for different purposes
    /// never meet.
    pub fn derive(purpose: &'static str, parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        for part in parts {
            hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            hasher.update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }
}

impl NetworkId {
    /// The id of a network's name.
    pub fn of(name: &str) -> Self {
        let hash = Hash::derive("suanli 2026 network name", &[name.as_bytes()]);
        let mut id = [0; 16];
        id.copy_from_slice(&hash.0[..16]);
        Self(id)
    }
}

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Hash);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.parse().map($name)
            }
        }
    };
}

hash_id!(
    /// Bytes, named by their hash.
    BlobId
);
hash_id!(
    /// An offer, named by its envelope.
    OfferId
);
hash_id!(
    /// A request, named by its envelope.
    RequestId
);
hash_id!(
    /// A quote, named by its envelope.
    QuoteId
);
hash_id!(
    /// An agreement. It has the name of the quote that it completes: a quote
    /// is completed at most once, by a signature over it or by a firm take.
    AgreementId
);
hash_id!(
    /// A receipt, named by its envelope.
    ReceiptId
);
hash_id!(
    /// A voucher, named by its envelope.
    VoucherId
);
hash_id!(
    /// A running account between two nodes' accounts, from its parties.
    ChannelId
);

impl From<QuoteId> for AgreementId {
    fn from(quote: QuoteId) -> Self {
        Self(quote.0)
    }
}

impl From<AgreementId> for QuoteId {
    fn from(agreement: AgreementId) -> Self {
        Self(agreement.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_show_short_and_parse_whole() {
        let hash = Hash::of(b"x");
        assert_eq!(format!("{hash:#}").parse::<Hash>(), Ok(hash));
        assert_eq!(hash.to_string().len(), 8);
        assert!("zz".parse::<Hash>().is_err());
        assert!("é".repeat(32).parse::<Hash>().is_err());
    }

    #[test]
    fn purposes_and_part_borders_separate_hashes() {
        assert_ne!(Hash::derive("a", &[b"xy"]), Hash::derive("b", &[b"xy"]));
        assert_ne!(
            Hash::derive("a", &[b"x", b"y"]),
            Hash::derive("a", &[b"xy"])
        );
    }
}
