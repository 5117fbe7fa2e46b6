//! One process per data directory.
//!
//! The lock is an advisory one on the file `LOCK`, which the kernel lets go
//! when the process ends, however it ends. The file's content, the holder's
//! process id, only serves the message that the second process prints.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use super::disk::private_file;

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process (or this one, a second time) holds it.
    #[error(
        "{dir} is in use by {holder}; stop that node, or give this one a data directory of its own"
    )]
    Held {
        /// The data directory.
        dir: PathBuf,
        /// "process N", as far as known.
        holder: String,
    },
    /// The lock file could not be made or locked.
    #[error("the lock file could not be used; check the owner and mode of the data directory")]
    Io(#[from] io::Error),
}

/// Holds a data directory as long as it lives.
#[derive(Debug)]
pub(super) struct Lock {
    /// Closing it releases the lock.
    _file: File,
}

impl Lock {
    pub(super) fn take(dir: &Path) -> Result<Self, LockError> {
        let mut file = private_file()
            .create(true)
            .truncate(false)
            .open(dir.join("LOCK"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LockError::Held {
                    dir: dir.to_path_buf(),
                    holder: holder(&mut file),
                });
            }
            Err(error) => return Err(LockError::Io(error.into())),
        }
        file.set_len(0)?;
        // A disk with no room for six bytes must not keep the node from
        // starting: the lock holds without them.
        let _ = write!(file, "{}", std::process::id());
        Ok(Self { _file: file })
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    // An id of more than ten digits is none.
    let read = file.take(10).read_to_string(&mut text);
    match text.trim().parse::<u32>() {
        Ok(pid) if read.is_ok() => format!("process {pid}"),
        _ => "another process".to_owned(),
    }
}
