//! What is remembered of a live network between two commands.
//!
//! One file in its folder, replaced as a whole. It says which processes there
//! were, so that only those are ever signalled. Two commands at once on one
//! folder are not kept apart.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::{Programs, TestnetError, node::NodeRecord};

const FILE: &str = "testnet.json";

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub(super) network: String,
    pub(super) programs: Programs,
    pub(super) nodes: Vec<NodeRecord>,
}

impl State {
    /// What the folder says, if it says anything.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, TestnetError> {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(TestnetError::io(&path))?,
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| TestnetError::io(&path)(io::Error::other(error)))
    }

    /// Replaces the file.
    pub(super) fn write(&self, dir: &Path) -> Result<(), TestnetError> {
        let path = dir.join(FILE);
        let new = dir.join(format!("{FILE}.new"));
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| TestnetError::io(&path)(io::Error::other(error)))?;
        fs::write(&new, text).map_err(TestnetError::io(&new))?;
        fs::rename(&new, &path).map_err(TestnetError::io(&path))
    }
}
