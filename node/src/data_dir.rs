//! The folder that holds all that a node keeps, and its small files.
//!
//! ```text
//! node.key      the node's secret, hex, 0600
//! account.key   the account's secret, hex, 0600; may be kept elsewhere once there is a delegation
//! delegation    the account's word for the node key, signed
//! api.token     what the API's callers show, hex, 0600
//! gateway.keys  the API keys of those who may ask models, by hash, 0600
//! api.json      where the running daemon's API listens; gone when it stopped cleanly
//! pause.json    what the operator said last of selling, unless that was nothing special
//! ```
//!
//! Journal, index and blobs lie beside them and have modules of their own. A
//! secret that others can read is refused, never silently used.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use suanli_protocol::ids::hex;
use zeroize::{Zeroize as _, Zeroizing};

use crate::config::Config;

/// A data directory. The folder need not exist yet.
#[derive(Debug, Clone)]
pub struct DataDir {
    root: PathBuf,
    token: Option<PathBuf>,
}

/// Where a running daemon's API listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiAddress {
    /// The address.
    pub address: SocketAddr,
    /// The daemon's process.
    pub pid: u32,
}

/// 32 bytes that nobody else may know; wiped when dropped.
pub type Secret = Zeroizing<[u8; 32]>;

/// Why a file of the data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Reading or writing failed.
    #[error("{}: {source}; check the folder's owner, permissions and free space", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A secret that others can read.
    #[error(
        "{} can be read by others (mode {mode:03o}): run `chmod 600 {}`; \
         if somebody may have read it, move it away and let a new one be made",
        path.display(), path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file that doesn't hold what it should.
    #[error("{}: {message}; restore it from a backup, or move it away", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        message: String,
    },
    /// The system has no randomness to give.
    #[error("no random bytes from the system: {0}")]
    Random(std::io::Error),
}

/// Longest of the small files.
const SMALL_FILE_BYTES_MAX: u64 = 4096;

impl DataDir {
    /// The data directory at a path.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            token: None,
        }
    }

    /// The data directory of a configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            root: config.data_dir.clone(),
            token: config.api_token_file.clone(),
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The node's secret.
    pub fn node_key(&self) -> PathBuf {
        self.root.join("node.key")
    }

    /// The account's secret.
    pub fn account_key(&self) -> PathBuf {
        self.root.join("account.key")
    }

    /// The account's word for the node.
    pub fn delegation(&self) -> PathBuf {
        self.root.join("delegation")
    }

    /// The API's token.
    pub fn token(&self) -> PathBuf {
        let own = || self.root.join("api.token");
        self.token.clone().unwrap_or_else(own)
    }

    /// The API keys.
    pub fn gateway_keys(&self) -> PathBuf {
        self.root.join("gateway.keys")
    }

    fn api_address(&self) -> PathBuf {
        self.root.join("api.json")
    }

    /// Makes the folder, for its owner alone, if it is missing.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn create(&self) -> Result<(), DataDirError> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root);
        made.map_err(|source| failed(&self.root, source))
    }

    /// The token, if the file is there.
    ///
    /// # Errors
    /// [`DataDirError`]: unreadable, readable by others, or no token.
    pub fn read_token(&self) -> Result<Option<String>, DataDirError> {
        let secret = read_secret(&self.token())?;
        Ok(secret.map(|secret| hex(secret.as_slice())))
    }

    /// Says where the API listens, for the command line.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn write_api_address(&self, address: &ApiAddress) -> Result<(), DataDirError> {
        let path = self.api_address();
        let json = serde_json::to_vec(address)
            .map_err(|error| failed(&path, std::io::Error::other(error)))?;
        write_private(&path, &json)
    }

    /// Where the API listens, if a daemon said so.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn read_api_address(&self) -> Result<Option<ApiAddress>, DataDirError> {
        let path = self.api_address();
        let Some(bytes) = read_small(&path)? else {
            return Ok(None);
        };
        let address = serde_json::from_slice(&bytes).map_err(|error| DataDirError::Damaged {
            path,
            message: format!("this is no address of an API: {error}"),
        })?;
        Ok(Some(address))
    }

    /// Takes that back, on a clean stop. A missing file is fine.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn remove_api_address(&self) -> Result<(), DataDirError> {
        let path = self.api_address();
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(failed(&path, source)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn failed(path: &Path, source: std::io::Error) -> DataDirError {
    DataDirError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Random bytes from the system.
///
/// # Errors
/// [`DataDirError::Random`].
pub fn random_secret() -> Result<Secret, DataDirError> {
    let mut secret = Secret::default();
    let flags = rustix::rand::GetRandomFlags::empty();
    let random = |error: std::io::Error| DataDirError::Random(error);
    // The system gives up to 256 bytes at once, whole.
    let got = rustix::rand::getrandom(secret.as_mut_slice(), flags);
    match got.map_err(|errno| random(errno.into()))? {
        32 => Ok(secret),
        _ => Err(random(ErrorKind::UnexpectedEof.into())),
    }
}

/// A secret in a file, which is made if it is missing.
pub(crate) fn read_or_make_secret(path: &Path) -> Result<Secret, DataDirError> {
    if let Some(secret) = read_secret(path)? {
        return Ok(secret);
    }
    let secret = random_secret()?;
    let mut text = hex(secret.as_slice());
    text.push('\n');
    write_private(path, text.as_bytes())?;
    text.zeroize();
    Ok(secret)
}

/// A secret in a file that nobody else can read; none without the file.
pub(crate) fn read_secret(path: &Path) -> Result<Option<Secret>, DataDirError> {
    let Some(bytes) = read_small(path)? else {
        return Ok(None);
    };
    let bytes = Zeroizing::new(bytes);
    check_private(path)?;
    let damaged = || DataDirError::Damaged {
        path: path.to_owned(),
        message: "64 hex digits should be in it".to_owned(),
    };
    let text = str::from_utf8(&bytes).map_err(|_| damaged())?.trim();
    if text.len() != 64 || !text.is_ascii() {
        return Err(damaged());
    }
    let mut secret = Secret::default();
    for (byte, pair) in secret.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = str::from_utf8(pair).map_err(|_| damaged())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| damaged())?;
    }
    Ok(Some(secret))
}

/// Refuses a secret that group or others can read.
pub(crate) fn check_private(path: &Path) -> Result<(), DataDirError> {
    let metadata = std::fs::metadata(path).map_err(|source| failed(path, source))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(DataDirError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// A file's bytes, if it is there; it is small or damaged.
pub(crate) fn read_small(path: &Path) -> Result<Option<Vec<u8>>, DataDirError> {
    read_first(path, SMALL_FILE_BYTES_MAX)
}

/// The first bytes of a file, if it is there.
pub(crate) fn read_first(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, DataDirError> {
    let failed = |source| failed(path, source);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(Some(bytes))
}

/// Replaces a file as a whole, on disk before this returns, readable by its
/// owner alone.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), DataDirError> {
    let failed = |source| failed(path, source);
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .map_err(failed)?;
    file.set_permissions(Permissions::from_mode(0o600))
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(failed)?;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let made = read_or_make_secret(&path).unwrap();
        assert_eq!(*read_or_make_secret(&path).unwrap(), *made);
        assert_ne!(*made, [0; 32]);
        assert!(check_private(&path).is_ok());
    }

    #[test]
    fn abuse_64_a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        read_or_make_secret(&path).unwrap();
        for mode in [0o644, 0o640, 0o604] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let refused = read_secret(&path).unwrap_err().to_string();
            let mend = format!("chmod 600 {}", path.display());
            assert!(refused.contains(&mend), "{refused}");
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert!(read_secret(&path).is_ok());
    }

    #[test]
    fn a_damaged_secret_is_refused_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        for wrong in ["", "00", &"zz".repeat(32), &"00".repeat(33)] {
            write_private(&path, wrong.as_bytes()).unwrap();
            assert!(matches!(
                read_or_make_secret(&path),
                Err(DataDirError::Damaged { .. })
            ));
        }
    }

    #[test]
    fn the_apis_address_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::new(dir.path());
        assert_eq!(data.read_api_address().unwrap(), None);
        let address = ApiAddress {
            address: "127.0.0.1:7420".parse().unwrap(),
            pid: 7,
        };
        data.write_api_address(&address).unwrap();
        assert_eq!(data.read_api_address().unwrap(), Some(address));
        data.remove_api_address().unwrap();
        data.remove_api_address().unwrap();
        assert_eq!(data.read_api_address().unwrap(), None);
    }
}
