//! `suanli channel`: running accounts with other nodes.

use clap::Subcommand;
use suanli_protocol::{
    ids::{AccountId, PeerId},
    units::Amount,
};

use super::{
    context::Context,
    exit::Failure,
    screen::{Table, list},
};
use crate::api::types::{ChannelInfo, SettleOrder};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists running accounts
    List,
    /// Shows one running account
    Show {
        /// The channel; the first digits are enough
        id: String,
    },
    /// Declares that a client has paid, after the work or in advance
    #[command(after_help = "\
Only who earns on a channel declares what was paid on it. The declaration is
signed, kept, and sent to the client's node, which shows it as well. What is paid
in advance the client may run beyond its credit. A client that has bought nothing
yet is named by its node and account: `suanli identity show` prints them there.

  suanli channel settle 3fa0 --amount 120 --reference \"invoice 2026-11\"
  suanli channel settle --peer HEX --account HEX --amount 50 --reference \"order 8\"")]
    Settle {
        /// The channel; the first digits are enough
        #[arg(required_unless_present = "peer", conflicts_with_all = ["peer", "account"])]
        id: Option<String>,
        /// The client's node, instead of a channel
        #[arg(long, value_name = "PEER", requires = "account")]
        peer: Option<PeerId>,
        /// The client's account
        #[arg(long, value_name = "ACCOUNT", requires = "peer")]
        account: Option<AccountId>,
        /// How much was paid, in the network's unit
        #[arg(long)]
        amount: Amount,
        /// How: an invoice number, a transfer. The same amount with the same
        /// reference as last time is taken for a repeated order
        #[arg(long)]
        reference: String,
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
            Self::Settle {
                id,
                peer,
                account,
                amount,
                reference,
            } => {
                let order = SettleOrder {
                    channel: id,
                    peer,
                    account,
                    amount,
                    reference,
                };
                let channel: ChannelInfo = client.post_json("/v1/settlements", &order).await?;
                context.answer(&channel, |channel| format!("declared\n{}", show(channel)));
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
        ">outstanding",
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
            channel.outstanding.clone(),
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
            format!(
                "{}, declared paid in {} settlements",
                channel.settled, channel.settlements
            ),
        ),
        ("outstanding", channel.outstanding.clone()),
        ("prepaid", channel.prepaid.clone()),
        (
            "credit left",
            match &channel.credit_left {
                Some(left) => format!("{left}, for the client's account"),
                None => "the provider knows".into(),
            },
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
