//! A standing, and what would change it.

use suanli_protocol::{
    peer::Report,
    standing::{Counted, Speeds, TRUSTED_AFTER, Tally, Trade, Weight},
    units::Wall,
};

use super::outcome_info;
use crate::api::types::{AccountStanding, EvidenceInfo, NodeStanding, ReferenceInfo, TradeInfo};

/// What a node thinks of an account.
pub fn account_standing(report: &Report, now: Wall) -> AccountStanding {
    let nodes = report.nodes.iter();
    let nodes = nodes.map(|(peer, speeds, offers)| NodeStanding {
        peer: *peer,
        offers: *offers,
        believed_percent: speeds.believed(),
        challenge: (speeds.challenge()).map(|outcome| outcome_info(outcome, None)),
        work_percent: speeds.work().map(|(percent, _)| percent),
        work_count: speeds.work().map_or(0, |(_, count)| count),
    });
    AccountStanding {
        account: report.account,
        own: report.own,
        nodes: nodes.collect(),
        evidence: evidence(report, now),
        trade: trade(&report.trade),
        references: report.references.iter().map(reference).collect(),
        referred_ms: report.referred_at.map(Wall::as_millis),
        referred: decimal(report.referred),
        doubted: report.doubted,
        audited_per_mille: report.audited,
        failing_per_mille: report.failing,
        left_out_until_ms: report.left_out_until.map(Wall::as_millis),
        left_out_times: report.results.times,
        next: next(report, now),
    }
}

fn evidence(report: &Report, now: Wall) -> Vec<EvidenceInfo> {
    let results = &report.results;
    let kinds: [(&str, &Tally); 9] = [
        ("accepted", &results.accepted),
        ("agreed", &results.agreed),
        ("agreed-in-a-row", &results.in_a_row),
        ("contradicted", &results.contradicted),
        ("disputed", &results.disputed),
        ("lost", &results.lost),
        ("refused", &results.refused),
        ("bait", &results.baits),
        ("paid", &results.paid),
    ];
    let seen = kinds.into_iter().filter(|(_, tally)| tally.count > 0);
    seen.map(|(kind, tally)| EvidenceInfo {
        kind: kind.to_owned(),
        count: tally.count,
        weight: decimal(tally.weight(now)),
        last_ms: tally.last.as_millis(),
    })
    .collect()
}

fn trade(trade: &Trade) -> TradeInfo {
    TradeInfo {
        agreed: decimal(trade.agreed),
        paid: decimal(trade.paid),
        settled_per_mille: trade.settled,
        weight: decimal(trade.weight()),
        vouches: decimal(trade.vouches()),
    }
}

fn reference(counted: &Counted) -> ReferenceInfo {
    ReferenceInfo {
        client: counted.vouch.client,
        receipt: counted.vouch.receipt,
        at_ms: counted.vouch.at.as_millis(),
        compared: counted.vouch.compared,
        client_trade: decimal(counted.trade.weight()),
        vouches_for: counted.vouches_for,
        weight: decimal(counted.weight),
    }
}

/// With three places, and none that say nothing.
fn decimal(weight: Weight) -> String {
    let thousandths = weight.as_micros() / 1000;
    let text = format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What would change what follows, the most pressing first.
fn next(report: &Report, now: Wall) -> Vec<String> {
    if report.own {
        return vec!["this node's own account: it buys nothing of itself".to_owned()];
    }
    let mut next = Vec::new();
    if report.left_out_until.is_some() {
        next.push(
            "it is asked again when its time is over; the next contradicted result leaves it out for twice as long"
                .to_owned(),
        );
    }
    if !report.wrong.is_empty() {
        next.push(
            "a node of it failed its last challenge; a right answer clears that: `suanli offer challenge`"
                .to_owned(),
        );
    }
    let shown = report.results.in_a_row.weight(now).rounded();
    if let Some(lacking) = TRUSTED_AFTER
        .checked_sub(shown)
        .filter(|lacking| *lacking > 0)
    {
        next.push(format!(
            "{lacking} more results that agree with others', and audits become fewer"
        ));
    } else {
        next.push(
            "each further result that agrees makes audits fewer; one that does not begins anew"
                .to_owned(),
        );
    }
    if report.doubted {
        next.push(
            "references count nothing until what was found wrong here has faded: four months after one result"
                .to_owned(),
        );
    } else if report.references.is_empty() && !report.nodes.is_empty() {
        next.push(
            "references by accounts that this node has traded with; `--fetch` asks for them"
                .to_owned(),
        );
    }
    if report.trade.paid > Weight::ZERO && report.trade.settled < 1000 {
        next.push(
            "what it owes counts as its trade once it is settled: `suanli channel settle`"
                .to_owned(),
        );
    }
    let slow = |(_, speeds, _): &(_, Speeds, bool)| speeds.believed().is_some_and(|it| it < 100);
    if report.nodes.iter().any(slow) {
        next.push(
            "speeds are believed again after a faster challenge, or faster real work".to_owned(),
        );
    }
    next
}
