//! `suanli channel`: running accounts with other nodes.

use clap::Subcommand;

use super::{
    context::Context,
    exit::Failure,
    screen::{Table, list},
};
use crate::api::types::ChannelInfo;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists running accounts
    List,
    /// Shows one running account
    Show {
        /// The channel; the first digits are enough
        id: String,
    },
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::List => {
                let channels: Vec<ChannelInfo> = client.get("/v1/channels").await?;
                context.answer(&channels, |channels| table(channels));
            }
            Self::Show { id } => {
                let channel: ChannelInfo =
                    client.get(&super::context::path("channels", &id)?).await?;
                context.answer(&channel, show);
            }
        }
        Ok(())
    }
}

fn table(channels: &[ChannelInfo]) -> String {
    if channels.is_empty() {
        return "no channels yet: one opens with the first receipt between two nodes\n".into();
    }
    let mut table = Table::new(&[
        "channel",
        "peer",
        "direction",
        ">total",
        ">pending",
        ">disputed",
        ">settled",
        "state",
    ]);
    for channel in channels {
        table.row([
            channel.channel.to_string(),
            channel.peer.to_string(),
            direction(channel).into(),
            channel.cumulative.clone(),
            channel.pending.clone(),
            channel.disputed.clone(),
            channel.settled.clone(),
            state(channel).into(),
        ]);
    }
    table.render(0)
}

fn show(channel: &ChannelInfo) -> String {
    list(&[
        ("channel", format!("{:#}", channel.channel)),
        ("peer", format!("{:#}", channel.peer)),
        ("account", format!("{:#}", channel.account)),
        ("direction", direction(channel).into()),
        (
            "vouchers",
            format!(
                "{} ({} acknowledged)",
                channel.sequence, channel.acknowledged
            ),
        ),
        ("total", channel.cumulative.clone()),
        (
            "pending",
            format!("{}, accepted and not yet in a voucher", channel.pending),
        ),
        ("disputed", channel.disputed.clone()),
        (
            "settled",
            format!("{}, declared paid outside", channel.settled),
        ),
        ("state", state(channel).into()),
    ])
}

const fn direction(channel: &ChannelInfo) -> &'static str {
    if channel.paying { "we pay" } else { "we earn" }
}

const fn state(channel: &ChannelInfo) -> &'static str {
    if channel.frozen {
        "frozen: two vouchers with one number; ask the other side"
    } else if channel.synced {
        "in step"
    } else {
        "not yet compared since the start"
    }
}
