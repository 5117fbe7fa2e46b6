//! The secret that a caller of the HTTP API shows.
//!
//! Thirty-two random bytes in hex, in a file of the data directory that only
//! its owner reads. It is compared by hash in constant time and is never
//! shown: not in logs, errors or `Debug`.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use suanli_protocol::ids::hex;

const TOKEN_BYTES: usize = 32;

/// The token of a node's HTTP API.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file can't be read or written.
    #[error("the API token in {path} could not be used; check the file's owner and mode")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        source: io::Error,
    },
    /// Others can read it.
    #[error(
        "{0} can be read by others; run `chmod 600 {0}`, and remove it first if somebody may have seen it"
    )]
    Exposed(PathBuf),
    /// It holds something else.
    #[error("{0} holds no API token; remove it, and the node makes a new one at its next start")]
    Malformed(PathBuf),
}

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; TOKEN_BYTES];
        let mut filled = 0;
        while filled < TOKEN_BYTES {
            let flags = rustix::rand::GetRandomFlags::empty();
            filled += rustix::rand::getrandom(&mut bytes[filled..], flags)?;
        }
        Ok(Self(hex(&bytes)))
    }

    /// Reads the token that a node has written.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn load(path: &Path) -> Result<Self, TokenError> {
        let at = |source| TokenError::Io {
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(at)?;
        if file.metadata().map_err(at)?.permissions().mode() & 0o077 != 0 {
            return Err(TokenError::Exposed(path.to_path_buf()));
        }
        let mut text = String::new();
        // One byte more than a token and its line's end shows what is longer.
        let mut limited = file.take(2 * TOKEN_BYTES as u64 + 3);
        limited.read_to_string(&mut text).map_err(at)?;
        Self::parsed(&text).ok_or_else(|| TokenError::Malformed(path.to_path_buf()))
    }

    /// Reads the token, or makes one where there is none.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn load_or_create(path: &Path) -> Result<Self, TokenError> {
        match Self::load(path) {
            Err(TokenError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            loaded => return loaded,
        }
        let at = |source| TokenError::Io {
            path: path.to_path_buf(),
            source,
        };
        let token = Self::generate().map_err(at)?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(path).map_err(at)?;
        writeln!(file, "{}", token.0).map_err(at)?;
        file.sync_all().map_err(at)?;
        Ok(token)
    }

    /// For the `Authorization` header of a request, after `Bearer `.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether a caller showed this token. Hashes are compared, in constant
    /// time, so that an answer's time says nothing about how much was right.
    pub(crate) fn is(&self, shown: &[u8]) -> bool {
        blake3::hash(self.0.as_bytes()) == blake3::hash(shown)
    }

    fn parsed(text: &str) -> Option<Self> {
        let text = text.trim_end_matches('\n');
        let is_token = text.len() == 2 * TOKEN_BYTES
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        is_token.then(|| Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_read_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.token");
        let made = Token::load_or_create(&path).unwrap();
        assert_eq!(Token::load_or_create(&path).unwrap(), made);
        assert_eq!(Token::load(&path).unwrap(), made);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Token::load(&path), Err(TokenError::Exposed(_))));
    }

    #[test]
    fn a_file_with_anything_else_is_no_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.token");
        for wrong in ["", "abc\n", &"A".repeat(64), &"0".repeat(65)] {
            fs::write(&path, wrong).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(
                matches!(Token::load(&path), Err(TokenError::Malformed(_))),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn abuse_71_a_token_shows_itself_nowhere() {
        let token = Token::generate().unwrap();
        let shown = format!("{token:?} {token:#?}");
        assert!(!shown.contains(token.reveal()));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.token");
        fs::write(&path, format!("{}x", token.reveal())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = Token::load(&path).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(token.reveal()));
    }
}
