//! `suanli standing`: what this node thinks of others, and why.

use clap::Args;

use super::{
    context::{Context, path},
    exit::Failure,
    offer::challenged,
    screen::{Table, age, list, until},
};
use crate::api::types::{
    AccountStanding, EvidenceInfo, NodeStanding, ReferenceInfo, ShownReferences,
};

/// What this node thinks of other accounts, and why
///
/// Without ID: all accounts that this node has dealt with. With one: each line of
/// evidence with its weight and age, what follows from it, and what would change that.
/// Weights are in results; each loses half of its weight in thirty days.
///
/// It is this node's own view, from its own dealings. A provider can be asked for
/// receipts that others accepted of it (--fetch); those count a little, as far as this
/// node has traded with whoever signed them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  suanli standing                  who is known, and what follows
  suanli standing 3fa2             why that account stands as it does
  suanli standing 3fa2 --fetch     first asks its node for references")]
pub(super) struct Command {
    /// The account, or a peer of it; the first digits are enough
    id: Option<String>,
    /// Asks the provider for receipts that others accepted, and counts them
    #[arg(long, requires = "id")]
    fetch: bool,
}

impl Command {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let Some(id) = self.id else {
            let all: Vec<AccountStanding> = client.get("/v1/standings").await?;
            context.answer(&all, |all| table(all));
            return Ok(());
        };
        let path = path("standings", &id)?;
        if !self.fetch {
            let standing: AccountStanding = client.get(&path).await?;
            context.answer(&standing, show);
            return Ok(());
        }
        let shown: ShownReferences = client.post(&format!("{path}/references")).await?;
        context.answer(&shown, |shown| {
            format!("{}\n\n{}", fetched(shown), show(&shown.standing))
        });
        Ok(())
    }
}

/// What a provider showed, in one line.
fn fetched(shown: &ShownReferences) -> String {
    match (shown.shown, shown.known) {
        (0, _) => format!("{} has no references to show", shown.peer),
        (all, 0) => format!(
            "{} showed {all}, none by an account that this node has traded with: they weigh nothing",
            shown.peer
        ),
        (all, known) => format!(
            "{} showed {all}, {known} by accounts that this node has traded with",
            shown.peer
        ),
    }
}

fn table(all: &[AccountStanding]) -> String {
    if all.is_empty() {
        return "nothing is known of anybody yet: it comes with jobs, payments and challenges; `suanli offer list` shows who there is\n".into();
    }
    let mut table = Table::new(&[
        "account",
        "peers",
        ">agreed",
        ">wrong",
        ">failed",
        ">paid",
        ">references",
        ">audited",
        "left out",
    ]);
    for standing in all {
        let weight = |kinds: &[&str]| of_kinds(standing, kinds);
        let peers: Vec<String> = (standing.nodes.iter())
            .map(|node| node.peer.to_string())
            .collect();
        table.row([
            if standing.own {
                format!("{} (this node's)", standing.account)
            } else {
                standing.account.to_string()
            },
            if peers.is_empty() {
                "-".to_owned()
            } else {
                peers.join(" ")
            },
            weight(&["agreed-in-a-row"]),
            weight(&["contradicted", "disputed"]),
            weight(&["lost", "refused", "bait"]),
            weight(&["paid"]),
            standing.referred.clone(),
            percent(standing.audited_per_mille),
            left_out(standing).unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.render(0)
}

/// The evidence of some kinds: the weight where there is one kind, else the count.
fn of_kinds(standing: &AccountStanding, kinds: &[&str]) -> String {
    let seen = || {
        let evidence = standing.evidence.iter();
        evidence.filter(|line| kinds.contains(&&*line.kind))
    };
    match (kinds.len(), seen().next()) {
        (_, None) => "-".to_owned(),
        (1, Some(line)) => line.weight.clone(),
        _ => seen().map(|line| line.count).sum::<u32>().to_string(),
    }
}

fn percent(per_mille: u32) -> String {
    match per_mille % 10 {
        0 => format!("{}%", per_mille / 10),
        tenth => format!("{}.{tenth}%", per_mille / 10),
    }
}

fn left_out(standing: &AccountStanding) -> Option<String> {
    let again = standing.left_out_until_ms.map(until);
    again.filter(|again| again != "past")
}

fn show(standing: &AccountStanding) -> String {
    let whose = if standing.own { " (this node's)" } else { "" };
    let mut text = list(&[("account", format!("{:#}{whose}", standing.account))]);
    text.push_str("\nSeen here\n");
    text.push_str(&seen(&standing.evidence));
    text.push_str(&of_nodes(&standing.nodes));
    text.push_str("\nSaid by others\n");
    text.push_str(&said(standing));
    text.push_str("\nWhat follows\n");
    text.push_str(&list(&follows(standing)));
    text.push_str("\nWhat would change it\n");
    for next in &standing.next {
        text.push_str(&list(&[(" ", next.clone())]));
    }
    text
}

fn seen(evidence: &[EvidenceInfo]) -> String {
    if evidence.is_empty() {
        return list(&[(" ", "nothing: a stranger".to_owned())]);
    }
    let mut table = Table::new(&["what", ">count", ">weight", "newest"]);
    for line in evidence {
        table.row([
            what(&line.kind).to_owned(),
            line.count.to_string(),
            line.weight.clone(),
            age(line.last_ms),
        ]);
    }
    table.render(2)
}

/// A kind of evidence, for people.
fn what(kind: &str) -> &str {
    match kind {
        "accepted" => "results accepted",
        "agreed" => "of them equal to others'",
        "agreed-in-a-row" => "of those since the last that was wrong",
        "contradicted" => "results CONTRADICTED by others'",
        "disputed" => "receipts disputed",
        "lost" => "agreements not kept",
        "refused" => "agreements refused",
        "bait" => "quotes not as offered",
        "paid" => "receipts of this node's paid by voucher",
        other => other,
    }
}

fn of_nodes(nodes: &[NodeStanding]) -> String {
    let mut rows = Vec::new();
    for node in nodes {
        let offers = if node.offers { "" } else { ", no offer now" };
        let believed = match node.believed_percent {
            Some(percent) => format!("{percent}% of its speeds believed"),
            None => "not asked until it answers a challenge rightly".to_owned(),
        };
        rows.push(("  peer", format!("{}: {believed}{offers}", node.peer)));
        if let Some(outcome) = &node.challenge {
            let line = format!("{}, {}", challenged(outcome), age(outcome.at_ms));
            rows.push(("    challenge", line));
        }
        if let Some(percent) = node.work_percent {
            let count = node.work_count;
            let line = format!("{percent}% of the speed claimed, the middle of {count}");
            rows.push(("    real work", line));
        }
    }
    list(&rows)
}

fn said(standing: &AccountStanding) -> String {
    if standing.references.is_empty() {
        let none = match standing.referred_ms {
            Some(at) => format!("nothing that counts, as of {}", age(at)),
            None => "nothing that counts; with `--fetch` its node is asked".to_owned(),
        };
        return list(&[(" ", none)]);
    }
    let mut table = Table::new(&[
        "receipt",
        "accepted by",
        "when",
        "of trade",
        "why",
        ">weight",
    ]);
    for reference in &standing.references {
        table.row([
            reference.receipt.to_string(),
            reference.client.to_string(),
            age(reference.at_ms),
            reference.client_trade.clone(),
            why(reference),
            reference.weight.clone(),
        ]);
    }
    table.render(2)
}

fn why(reference: &ReferenceInfo) -> String {
    let how = if reference.compared {
        "equal to others'"
    } else {
        "not compared"
    };
    match reference.vouches_for {
        0 | 1 => how.to_owned(),
        many => format!("{how}; one of {many} it vouches for"),
    }
}

fn follows(standing: &AccountStanding) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(again) = left_out(standing) {
        let times = standing.left_out_times;
        rows.push((
            "  left out",
            format!("its results were wrong ({times} times); asked again {again}"),
        ));
    }
    let references = match &*standing.referred {
        _ if standing.doubted => "; references count nothing, it was found wrong here".to_owned(),
        "0" => String::new(),
        referred => format!("; references weigh {referred} of at most 10, which would halve that"),
    };
    let audited = percent(standing.audited_per_mille);
    rows.push((
        "  audited",
        format!("{audited} of its units, where audits are adaptive{references}"),
    ));
    if standing.failing_per_mille > 0 {
        let failing = percent(standing.failing_per_mille.into());
        rows.push((
            "  failing",
            format!("{failing}: of equal offers, those that failed less come first"),
        ));
    }
    let (trade, vouches) = (&standing.trade.weight, &standing.trade.vouches);
    let paid = if standing.trade.paid == "0" {
        String::new()
    } else {
        let settled = percent(standing.trade.settled_per_mille.into());
        format!(" ({settled} of its vouchers are settled)")
    };
    rows.push((
        "  vouches",
        format!(
            "its trade weighs {trade}{paid}; what it says of all others counts up to {vouches}"
        ),
    ));
    rows
}
