//! The programs that a live network runs: `suanli` and `suanli-worker`.
//!
//! They are looked for beside this one, where cargo puts them all, and one
//! folder up, where a test program finds them.

use std::{
    env,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::TestnetError;

/// Where the programs are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// `suanli`.
    pub node: PathBuf,
    /// `suanli-worker`.
    pub worker: PathBuf,
}

impl Programs {
    /// The programs that were built with this one.
    ///
    /// # Errors
    /// [`TestnetError::NoProgram`].
    pub fn find() -> Result<Self, TestnetError> {
        let own = env::current_exe().map_err(|_| TestnetError::NoProgram("suanli".into()))?;
        let beside = own.parent().unwrap_or_else(|| Path::new("."));
        let folder = match beside.file_name() {
            Some(name) if name == "deps" => beside.parent().unwrap_or(beside),
            Some(_) | None => beside,
        };
        Self::in_folder(folder)
    }

    /// The programs in a folder.
    ///
    /// # Errors
    /// [`TestnetError::NoProgram`].
    pub fn in_folder(folder: &Path) -> Result<Self, TestnetError> {
        let program = |name: &str| {
            let path = folder.join(format!("{name}{}", env::consts::EXE_SUFFIX));
            match path.is_file() {
                true => Ok(path),
                false => Err(TestnetError::NoProgram(path)),
            }
        };
        Ok(Self {
            node: program("suanli")?,
            worker: program("suanli-worker")?,
        })
    }
}
