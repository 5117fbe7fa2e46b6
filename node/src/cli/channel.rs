//! `suanli channel`: running accounts with other nodes.

use std::{
    collections::btree_map::{
        BTreeMap,
        Entry::{Occupied, Vacant},
    },
    path::{Path, PathBuf},
};

use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use suanli_protocol::{
    ids::{AccountId, ChannelId, PeerId},
    units::Amount,
};

use super::{
    context::Context,
    exit::{Exit, Failure},
    screen::{Table, list, visible},
};
use crate::{
    api::types::{ChannelInfo, SettleOrder, StatementPart},
    client::{Client, ClientError},
    settlement::{self, SettlementWay, Transfers},
    statement::{Entry, Line, STATEMENT_BYTES_MAX, Statement, StatementError},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists running accounts
    List,
    /// Shows one running account
    Show {
        /// The channel; the first digits are enough
        id: String,
    },
    /// Writes the statement of a running account into a file
    ///
    /// JSON has all signed documents and checks itself: it is the invoice, and the proof
    /// of what is paid. CSV has one row for each receipt that a voucher pays.
    Export {
        /// The channel; the first digits are enough
        id: String,
        /// What for
        #[arg(long, value_enum, default_value_t = Format::Json)]
        format: Format,
        /// Where to write it [default: CHANNEL.json or CHANNEL.csv]
        #[arg(long, short, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Checks an exported statement; needs no daemon, no network and no trust
    #[command(after_help = "\
Ends with 0 if everything holds and 6 if anything does not. What is checked: the
signatures of both sides, that each voucher follows from the one before and adds up to
its receipts, and that all totals follow. That a receipt follows from its agreement is
what `suanli receipt verify` checks.")]
    Verify {
        /// A file that `suanli channel export` wrote, as JSON
        file: PathBuf,
    },
    /// Declares that a client has paid, after the work or in advance
    #[command(after_help = "\
Only who earns on a channel declares what was paid on it. The declaration is
signed, kept, and sent to the client's node, which shows it as well. What is paid
in advance the client may run beyond its credit. A client that has bought nothing
yet is named by its node and account: `suanli identity show` prints them there.

  suanli channel settle 3fa0 --amount 120 --reference \"invoice 2026-11\"
  suanli channel settle --from transfers.csv
  suanli channel settle --peer HEX --account HEX --amount 50 --reference \"order 8\"")]
    Settle {
        /// The channel; the first digits are enough
        #[arg(required_unless_present_any = ["peer", "from"], conflicts_with_all = ["peer", "account", "from"])]
        id: Option<String>,
        /// A table of payments: CSV with the columns channel, amount and reference. Those
        /// declared before are passed over, so it can be read again and again
        #[arg(long, value_name = "FILE", conflicts_with_all = ["peer", "account", "amount", "reference"])]
        from: Option<PathBuf>,
        /// The client's node, instead of a channel
        #[arg(long, value_name = "PEER", requires = "account")]
        peer: Option<PeerId>,
        /// The client's account
        #[arg(long, value_name = "ACCOUNT", requires = "peer")]
        account: Option<AccountId>,
        /// How much was paid, in the network's unit
        #[arg(long, required_unless_present = "from")]
        amount: Option<Amount>,
        /// How: an invoice number, a transfer. The same amount with the same
        /// reference as last time is taken for a repeated order
        #[arg(long, required_unless_present = "from")]
        reference: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Json,
    Csv,
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        if let Self::Verify { file } = &self {
            return verify(context, file);
        }
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
            Self::Export { id, format, out } => return export(context, &id, format, out).await,
            Self::Verify { .. } => {}
            Self::Settle {
                from: Some(from), ..
            } => return import(context, &client, &mut Transfers::new(&from)).await,
            Self::Settle {
                id,
                from: None,
                peer,
                account,
                amount,
                reference,
            } => {
                let order = SettleOrder {
                    channel: id,
                    peer,
                    account,
                    amount: amount.unwrap_or_default(),
                    reference: reference.unwrap_or_default(),
                };
                let channel: ChannelInfo = client.post_json("/v1/settlements", &order).await?;
                context.answer(&channel, |channel| format!("declared\n{}", show(channel)));
            }
        }
        Ok(())
    }
}

/// A channel's statement; none while nothing is signed on it.
async fn statement(
    client: &Client,
    id: &str,
) -> Result<Result<Statement, StatementError>, Failure> {
    let path = format!("{}/statement", super::context::path("channels", id)?);
    let mut part: StatementPart = client.get(&path).await?;
    let mut documents = std::mem::take(&mut part.documents);
    while let Some(after) = part.next {
        part = client.get(&format!("{path}?after={after}")).await?;
        documents.append(&mut part.documents);
    }
    Ok(Statement::of(&part.network, &part.unit, documents))
}

/// What became of a payment.
#[derive(Debug, Serialize)]
struct Declared {
    channel: ChannelId,
    amount: Amount,
    reference: String,
    /// `declared`, `was declared before`, or why it could not be.
    state: String,
}

/// Declares what came by a way and is not declared yet. All of it is looked at before
/// anything is declared.
async fn import(
    context: &Context,
    client: &Client,
    way: &mut dyn SettlementWay,
) -> Result<(), Failure> {
    let payments = way
        .payments()
        .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    let mut known: BTreeMap<ChannelId, Option<Statement>> = BTreeMap::new();
    // One payment however its channel is written.
    let mut wanted = BTreeMap::new();
    for payment in payments {
        let of =
            |failure: Failure| failure.of_part(&format!("{}, {}", way.name(), payment.reference));
        let path = super::context::path("channels", &payment.channel).map_err(of)?;
        let found = client.get::<ChannelInfo>(&path).await;
        let found = found.map_err(|error| of(error.into()))?;
        let statement = match known.entry(found.channel) {
            Occupied(known) => known.into_mut(),
            Vacant(new) => new.insert(declared_before(client, &found).await.map_err(of)?),
        };
        let statement = statement.as_ref();
        let before = statement.is_some_and(|known| settlement::is_declared(known, &payment));
        wanted.insert((found.channel, payment.reference, payment.amount), before);
    }
    let mut declared = Vec::new();
    let mut failed = None;
    for ((channel, reference, amount), before) in wanted {
        let order = SettleOrder {
            channel: Some(format!("{channel:#}")),
            peer: None,
            account: None,
            amount,
            reference: reference.clone(),
        };
        let state = if before {
            BEFORE.to_owned()
        } else {
            match client
                .post_json::<ChannelInfo>("/v1/settlements", &order)
                .await
            {
                Ok(_) => NOW.to_owned(),
                Err(error) => {
                    let failure = Failure::from(error);
                    let words = failure.message.clone();
                    failed = failed.or(Some(failure));
                    words
                }
            }
        };
        declared.push(Declared {
            channel,
            amount,
            reference,
            state,
        });
    }
    let Some(failure) = failed else {
        context.answer(&declared, |declared| imported(declared));
        return Ok(());
    };
    let words = format!(
        "not all payments could be declared; run it again\n{}",
        imported(&declared)
    );
    Err(Failure::new(failure.exit, words).with("payments", serde_json::json!(declared)))
}

const NOW: &str = "declared";
const BEFORE: &str = "was declared before";

/// The statement by which is told what was declared before: complete, or there is none.
async fn declared_before(
    client: &Client,
    found: &ChannelInfo,
) -> Result<Option<Statement>, Failure> {
    let refused = |why: &str| {
        let message = format!("channel {}: {why}; nothing was declared", found.channel);
        Err(Failure::new(Exit::Usage, message))
    };
    if found.paying {
        return refused("it is this node that pays there");
    }
    let settlements = match statement(client, &format!("{:#}", found.channel)).await? {
        Ok(statement) => {
            let of = |line: &&Line| matches!(line.entry, Entry::Settlement { .. });
            let count = statement.lines.iter().filter(of).count();
            Some((u64::try_from(count).unwrap_or(u64::MAX), statement))
        }
        Err(StatementError::Empty) => None,
        Err(why) => return refused(&format!("its statement does not hold: {why}")),
    };
    let count = settlements.as_ref().map_or(0, |(count, _)| *count);
    if count != found.settlements {
        return refused(
            "its statement lacks earlier settlements, so that nobody can tell what was declared before: declare by hand",
        );
    }
    Ok(settlements.map(|(_, statement)| statement))
}

fn imported(declared: &[Declared]) -> String {
    let mut table = Table::new(&["channel", ">amount", "reference", ""]);
    for payment in declared {
        table.row([
            payment.channel.to_string(),
            payment.amount.to_string(),
            visible(&payment.reference),
            visible(&payment.state),
        ]);
    }
    let new = declared.iter().filter(|payment| payment.state == NOW);
    let sum = new.clone().fold(Amount::ZERO, |sum, payment| {
        sum.saturating_add(payment.amount)
    });
    let new = new.count();
    table.render(0)
        + &format!(
            "{new} of {} payments declared, {sum} in all\n",
            declared.len()
        )
}

async fn export(
    context: &Context,
    id: &str,
    format: Format,
    out: Option<PathBuf>,
) -> Result<(), Failure> {
    let client = context.client()?;
    let statement = statement(&client, id)
        .await?
        .map_err(|why| Failure::new(Exit::Usage, format!("no statement: {why}")))?;
    let (text, ending) = match format {
        Format::Csv => (statement.csv(), "csv"),
        Format::Json => {
            let text = serde_json::to_string_pretty(&statement).unwrap_or_default();
            (text + "\n", "json")
        }
    };
    let file = out.unwrap_or_else(|| PathBuf::from(format!("{}.{ending}", statement.channel)));
    std::fs::write(&file, &text).map_err(|source| ClientError::File {
        path: file.clone(),
        source,
    })?;
    let written =
        serde_json::json!({ "channel": statement.channel, "file": file, "bytes": text.len() });
    context.answer(&written, |_| {
        let mut words = format!("wrote {} bytes to {}\n", text.len(), file.display());
        if matches!(format, Format::Json) {
            words += &format!(
                "check them anywhere with `suanli channel verify {}`\n",
                file.display()
            );
        }
        words
    });
    Ok(())
}

fn verify(context: &Context, file: &Path) -> Result<(), Failure> {
    let unreadable = |error: std::io::Error| {
        let message = format!("cannot read {}: {error}", file.display());
        Failure::new(Exit::Usage, message)
    };
    let not_verified = |why: String| {
        let message = format!(
            "{}: not verified: {why}; keep the file and don't settle on it",
            file.display()
        );
        Failure::new(Exit::NotVerified, message)
    };
    if std::fs::metadata(file).map_err(unreadable)?.len() > STATEMENT_BYTES_MAX {
        return Err(not_verified("it is longer than any statement".into()));
    }
    let bytes = std::fs::read(file).map_err(unreadable)?;
    let statement: Statement = serde_json::from_slice(&bytes)
        .map_err(|error| not_verified(format!("this is no statement: {error}")))?;
    statement
        .verify()
        .map_err(|why| not_verified(why.to_string()))?;
    context.answer(&statement, totals);
    Ok(())
}

fn totals(statement: &Statement) -> String {
    let unit = &statement.unit;
    let mut text = format!("verified: channel {:#}\n", statement.channel);
    text.push_str(&list(&[
        ("  network", statement.network.clone()),
        ("  client", format!("account {:#}", statement.payer_account)),
        (
            "  provider",
            format!("account {:#}", statement.payee_account),
        ),
        ("  documents", statement.lines.len().to_string()),
        ("  opening", format!("{} {unit}", statement.opening)),
        (
            "  owed",
            format!(
                "{} {unit}, of which {} are acknowledged",
                statement.owed, statement.acknowledged
            ),
        ),
        ("  settled", format!("{} {unit}", statement.settled)),
        ("  outstanding", format!("{} {unit}", statement.outstanding)),
        ("  prepaid", format!("{} {unit}", statement.prepaid)),
    ]));
    if statement.frozen {
        text.push_str("  the client contradicted itself: two vouchers with one number\n");
    }
    text
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
        "frozen: two vouchers with one number; `suanli channel export` has both"
    } else if channel.synced {
        "in step"
    } else {
        "not yet compared since the start"
    }
}
