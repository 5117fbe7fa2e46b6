//! The secret that a caller of the HTTP API shows.
//!
//! It is compared by hash in constant time and is never shown: not in logs,
//! errors or `Debug`. Making it and keeping it in a file is the work of
//! [`crate::identity`].

use std::fmt;

/// The token of a node's HTTP API.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether a caller showed this token. Hashes are compared, in constant
    /// time, so that an answer's time says nothing about how much was right.
    /// An empty token is nobody's.
    pub(crate) fn is(&self, shown: &[u8]) -> bool {
        !self.0.is_empty() && blake3::hash(self.0.as_bytes()) == blake3::hash(shown)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abuse_65_only_the_whole_token_is_the_token() {
        let token = Token::new("c0ffee");
        assert!(token.is(b"c0ffee"));
        for wrong in ["", "c0ffe", "c0ffee0", "C0FFEE", " c0ffee"] {
            assert!(!token.is(wrong.as_bytes()), "{wrong:?}");
        }
        assert!(!Token::new("").is(b""));
    }

    #[test]
    fn abuse_71_a_token_does_not_show_itself() {
        let shown = format!("{0:?} {0:#?}", Token::new("c0ffee"));
        assert!(!shown.contains("c0ffee"));
    }
}
