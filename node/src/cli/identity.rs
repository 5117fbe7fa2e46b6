//! `suanli identity`: this node's keys.

use clap::Subcommand;
use serde::Serialize;
use suanli_protocol::{
    delegation::Delegation,
    ids::{AccountId, NetworkId, PeerId},
};

use super::{
    context::Context,
    exit::{Exit, Failure},
    screen::{list, until},
};
use crate::{data_dir::DataDir, identity::Identity};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Shows peer and account; needs no daemon
    Show,
}

#[derive(Debug, Serialize)]
struct Shown {
    peer: PeerId,
    account: AccountId,
    network: String,
    data_dir: String,
    /// Whether the account's key is here, or kept elsewhere.
    account_key_here: bool,
    delegation_expires_ms: u64,
}

impl Command {
    pub(super) fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Show => show(context),
        }
    }
}

fn show(context: &Context) -> Result<(), Failure> {
    let config = context.load(Vec::new())?.config;
    let (dir, network) = (DataDir::of(&config), NetworkId::of(&config.network));
    let identity = Identity::open(&dir, network)?;
    let delegation = identity.delegation.verify::<Delegation>(network);
    let delegation = delegation.map_err(|error| Failure::new(Exit::Unusable, error.to_string()))?;
    let shown = Shown {
        peer: identity.peer(),
        account: identity.account,
        network: config.network,
        data_dir: dir.root().display().to_string(),
        account_key_here: dir.account_key().exists(),
        delegation_expires_ms: delegation.expires().as_millis(),
    };
    context.answer(&shown, |shown| {
        let key = if shown.account_key_here {
            "in the data directory; copy it to a safe place: who has it, owes and is owed"
        } else {
            "kept elsewhere"
        };
        list(&[
            ("peer", format!("{:#}", shown.peer)),
            ("account", format!("{:#}", shown.account)),
            ("network", shown.network.clone()),
            ("data directory", shown.data_dir.clone()),
            ("account key", key.into()),
            (
                "delegation",
                format!("expires {}", until(shown.delegation_expires_ms)),
            ),
        ])
    });
    Ok(())
}
