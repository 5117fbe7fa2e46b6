//! The ranked plan, as a table.

use serde_json::json;
use suanli_protocol::units::Amount;

use crate::{
    api::types::{CandidateInfo, PlanInfo},
    cli::{
        exit::{Exit, Failure},
        screen::{Table, rough, visible},
    },
};

/// Who could run it, best first, and why others can't.
pub(in crate::cli) fn text(plan: &PlanInfo) -> String {
    let mut text = String::new();
    if !plan.candidates.is_empty() {
        let mut table = Table::new(&[
            ">#",
            "peer",
            "region",
            "device",
            ">expected",
            ">price",
            ">at most",
        ]);
        for (rank, candidate) in plan.candidates.iter().enumerate() {
            table.row([
                (rank + 1).to_string(),
                candidate.peer.to_string(),
                candidate.region.clone(),
                candidate.device.clone(),
                rough(candidate.expected_ms),
                candidate.price.to_string(),
                candidate.cap.to_string(),
            ]);
        }
        text.push_str(&table.render(0));
        text.push_str(&more(plan.fitting, plan.candidates.len(), "could run it"));
        let sends = |candidate: &&CandidateInfo| candidate.traffic > Amount::ZERO;
        if let Some(candidate) = plan.candidates.iter().find(sends) {
            text.push_str(&format!(
                "sending the inputs to another region costs {} beside, by traffic_price\n",
                candidate.traffic
            ));
        }
        text.push_str(&format!(
            "prices in {}; you pay {} at most\n",
            visible(&plan.unit),
            plan.budget
        ));
    }
    for nowhere in &plan.nowhere {
        text.push_str(&format!("{}\n", visible(nowhere)));
    }
    text.push_str(&misfits(plan));
    text
}

/// Without a candidate there is nothing to run; `named` says whether the job
/// names its providers.
pub(in crate::cli) fn require_candidate(plan: &PlanInfo, named: bool) -> Result<(), Failure> {
    if !plan.candidates.is_empty() {
        return Ok(());
    }
    let message = if plan.misfits.is_empty() && named {
        "none of the providers that market.providers names has an offer here: \
         `suanli offer list --json` shows those that have"
            .to_owned()
    } else if plan.misfits.is_empty() {
        "no offer is known: `suanli peer list` shows whether there is anybody to hear".to_owned()
    } else if !plan.nowhere.is_empty() {
        visible(&plan.nowhere.join("; "))
    } else {
        "no provider fits: the plan says for each one why, which is what to change".to_owned()
    };
    Err(Failure::new(Exit::NoProvider, message).with("plan", json!(plan)))
}

fn misfits(plan: &PlanInfo) -> String {
    if plan.misfits.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["can't", "region", "because"]);
    for misfit in &plan.misfits {
        table.row([
            misfit.peer.to_string(),
            misfit.region.clone(),
            misfit.sentence.clone(),
        ]);
    }
    table.render(0) + &more(plan.unfit, plan.misfits.len(), "can't")
}

/// A line for those that a table does not name.
fn more(all: usize, named: usize, what: &str) -> String {
    match all.saturating_sub(named) {
        0 => String::new(),
        left => format!("and {left} more that {what}\n"),
    }
}
