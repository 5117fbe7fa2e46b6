//! A running node.

use crate::config::Config;

/// Runs a node until it is told to stop.
///
/// # Errors
/// Whatever keeps it from starting.
#[expect(clippy::unused_async, reason = "the daemon waits for its tasks")]
pub async fn run(config: Config) -> anyhow::Result<()> {
    anyhow::bail!(
        "this build has no daemon for {}: install a later one",
        config.data_dir.display()
    )
}
