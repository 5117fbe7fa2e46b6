//! `suanli peer`: whom this node is connected with.

use clap::Subcommand;

use super::{
    context::Context,
    exit::Failure,
    screen::{Table, rough},
};
use crate::api::types::PeerInfo;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists connected peers
    List,
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::List => {
                let peers: Vec<PeerInfo> = context.client()?.get("/v1/peers").await?;
                context.answer(&peers, |peers| table(peers));
                Ok(())
            }
        }
    }
}

fn table(peers: &[PeerInfo]) -> String {
    if peers.is_empty() {
        return "no peers: set `bootstrap` to the address of one (`suanli config show`)\n".into();
    }
    let mut table = Table::new(&[
        "peer",
        "region",
        "offers",
        ">rtt",
        "connected",
        "address",
        "agent",
    ]);
    for peer in peers {
        let rtt = peer
            .rtt_us
            .map(|us| format!("{}.{:02} ms", us / 1000, us % 1000 / 10));
        table.row([
            peer.peer.to_string(),
            peer.region.clone().unwrap_or_else(|| "-".into()),
            if peer.offers { "yes" } else { "no" }.into(),
            rtt.unwrap_or_else(|| "-".into()),
            rough(peer.connected_ms),
            peer.address.clone(),
            peer.agent.clone(),
        ]);
    }
    table.render(0)
}
