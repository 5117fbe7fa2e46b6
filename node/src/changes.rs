//! Which single change of a job would let more providers run it.
//!
//! ```text
//! order, its plan ─▶ the order with one demand less, or lower, each ─▶ a plan each
//!                                                         ─▶ how many more could run it
//! ```
//!
//! A change is tried, not guessed: what counts is how many offers fit the changed order
//! that did not fit before. Demands that a job can't do without (its runtime, features of
//! its program) are not among them.

use std::time::Duration;

use suanli_executor::quantity::{ByteSize, Span};
use suanli_protocol::{
    expression::{Bound, Expression, Field, Number, written},
    rank::{Misfit, Plan},
    record::JobOrder,
    registry::{Reason, SandboxLevel},
    units::{Amount, Millis},
    wire::List,
};

/// Changes that are shown.
const SHOWN: usize = 8;
/// Bounds of what operators accept that are tried: each is a plan of its own.
const BOUNDS_TRIED: usize = 16;

/// A changed job.
#[derive(Debug, Clone)]
pub struct Change {
    /// What to write in the job file, for people.
    pub text: String,
    /// The job, so changed.
    pub order: JobOrder,
}

/// All single changes that are worth a try, given who could not run it and why, and what those
/// accept who accept no such jobs.
pub fn changes(order: &JobOrder, plan: &Plan, accepted: &[Expression]) -> Vec<Change> {
    let mut all = Vec::new();
    let mut push = |text: String, change: &dyn Fn(&mut JobOrder)| {
        let mut order = order.clone();
        change(&mut order);
        all.push(Change { text, order });
    };
    if !order.regions.is_empty() {
        push("leave out market.region".to_owned(), &|order| {
            order.regions = List::default();
        });
    }
    if !order.providers.is_empty() {
        push("leave out market.providers".to_owned(), &|order| {
            order.providers = List::default();
        });
    }
    if order.needs.device.is_some() {
        push("market.device = \"any\"".to_owned(), &|order| {
            order.needs.device = None;
        });
    }
    if order.needs.sandbox > SandboxLevel::PROCESS {
        push("market.sandbox = \"any\"".to_owned(), &|order| {
            order.needs.sandbox = SandboxLevel::PROCESS;
        });
    }
    if let Some(condition) = &order.condition {
        for (n, part) in condition.parts().iter().enumerate() {
            let text = format!("market.where without `{}`", written(part));
            push(text, &|order| order.condition = condition.without(n));
        }
    }
    let of = |reason| {
        plan.misfits
            .iter()
            .filter(move |misfit| misfit.decline.reason == reason)
    };
    let least = |reason| of(reason).map(|misfit: &Misfit| misfit.decline.have).min();
    if let Some(memory) = least(Reason::TOO_LITTLE_MEMORY) {
        let text = format!(
            "limits.memory = \"{}\", if it can do with that",
            ByteSize(memory)
        );
        push(text, &|order| order.needs.memory_bytes = memory);
    }
    if let Some(run) = least(Reason::TOO_LONG) {
        let text = format!(
            "limits.run = \"{}\", if that is enough",
            Span(Duration::from_millis(run))
        );
        push(text, &|order| order.needs.run_max = Millis::new(run));
    }
    if let Some(bytes) = least(Reason::TOO_LARGE) {
        let text = format!("limits.output = \"{}\", if that is enough", ByteSize(bytes));
        push(text, &|order| order.needs.output_bytes_max = bytes);
    }
    let dearest = of(Reason::OVER_BUDGET)
        .map(|misfit| misfit.decline.need)
        .max();
    if let Some(dearest) = dearest.map(Amount::from_micros) {
        let text = format!("market.max_price = \"{dearest}\" or more");
        push(text, &|order| order.budget = dearest);
    }
    all.extend(to_be_accepted(order, accepted));
    all
}

/// The job within single bounds of what operators accept.
fn to_be_accepted(order: &JobOrder, accepted: &[Expression]) -> Vec<Change> {
    let bounds = accepted.iter().flat_map(Expression::bounds);
    let mut all: Vec<Change> = Vec::new();
    for bound in bounds {
        let changed = within(order, &bound);
        let changed = changed.filter(|new| all.iter().all(|old| old.text != new.text));
        all.extend(changed);
        if all.len() >= BOUNDS_TRIED {
            break;
        }
    }
    all
}

/// The job, changed so far that it keeps to a bound.
fn within(order: &JobOrder, bound: &Bound) -> Option<Change> {
    let (millionth, whole) = (Number::millionths(1), Number::whole(1));
    let mut order = order.clone();
    let text = match bound.field {
        Field::JOB_RUN_MAX => {
            let run = bound.nearest(Number::millionths(1000))?;
            order.needs.run_max = Millis::new(run);
            let run = Span(Duration::from_millis(run));
            format!("limits.run = \"{run}\", if that is enough")
        }
        Field::JOB_MEMORY => {
            order.needs.memory_bytes = bound.nearest(whole)?;
            let memory = ByteSize(order.needs.memory_bytes);
            format!("limits.memory = \"{memory}\", if it can do with that")
        }
        Field::JOB_OUTPUTS => {
            order.needs.output_bytes_max = bound.nearest(whole)?;
            let bytes = ByteSize(order.needs.output_bytes_max);
            format!("limits.output = \"{bytes}\", if that is enough")
        }
        Field::JOB_FUEL => {
            order.needs.fuel_max = bound.nearest(whole)?;
            let fuel = order.needs.fuel_max;
            format!("limits.fuel = {fuel}, if that is enough")
        }
        Field::JOB_BUDGET => {
            order.budget = Amount::from_micros(bound.nearest(millionth)?);
            format!("market.max_price = \"{}\"", order.budget)
        }
        _ => return None,
    };
    Some(Change { text, order })
}

/// How many more a plan has than another: one demand less takes nobody away.
pub const fn admitted(before: &Plan, after: &Plan) -> usize {
    after.fitting.saturating_sub(before.fitting)
}

/// Those that admit anybody, the most first, and only as many as are read.
pub fn best(mut tried: Vec<(String, usize)>) -> Vec<(String, usize)> {
    tried.retain(|(_, admits)| *admits > 0);
    tried.sort_by_key(|(_, admits)| std::cmp::Reverse(*admits));
    tried.truncate(SHOWN);
    tried
}
