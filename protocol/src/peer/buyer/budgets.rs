//! What principals may spend, and have spent.
//!
//! A principal is a name inside the account: a person, a team, a project. A budget is an
//! amount for so many days, counted back from today (in UTC): what was accepted in that
//! time, and what its open jobs may still cost, never come to more. A job that may cost
//! more than is left is refused when it is handed in, so that no job stops half way for
//! lack of money.
//!
//! Budgets come from the configuration, and from the node while it runs (its API keys).
//! Where both name a principal, both hold. What came from the node is not written down here:
//! who gave it says it again after a start, before the first job.
//!
//! What was spent is a tally by day. It follows from the acceptances that a node has
//! signed, and goes into checkpoints where those are gone.
//!
//! Absent: who may call itself what. That is for whoever hands in jobs.

use super::*;
use crate::limits::{BUDGET_DAYS_MAX, PRINCIPALS_MAX};

/// Days of which a tally is kept: as many as a budget may have.
const DAYS_KEPT: usize = BUDGET_DAYS_MAX as usize;
/// Of those that have no budget what was spent in so many days is shown.
const DAYS_SHOWN: u16 = 30;
/// The principal whose budget each has that has none of its own.
const ANYBODY: &str = "*";

/// What principals have spent, by day.
#[derive(Debug, Default)]
pub(super) struct Spending(BTreeMap<Name, BTreeMap<u64, Amount>>);

impl Spending {
    pub(super) fn add(&mut self, principal: &Name, at: Wall, amount: Amount) {
        if amount == Amount::ZERO {
            return;
        }
        if !self.0.contains_key(principal) && self.0.len() >= PRINCIPALS_MAX {
            let last = |days: &BTreeMap<u64, Amount>| days.last_key_value().map(|(day, _)| *day);
            let oldest = self.0.iter().min_by_key(|(_, days)| last(days));
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.0.remove(&name);
            }
        }
        let days = self.0.entry(principal.clone()).or_default();
        let of_day = days.entry(at.day()).or_default();
        *of_day = of_day.saturating_add(amount);
        while days.len() > DAYS_KEPT {
            days.pop_first();
        }
    }

    /// In the last days, today included.
    fn spent(&self, principal: &Name, now: Wall, days: u16) -> Amount {
        let first = (now.day() + 1).saturating_sub(u64::from(days));
        let tally = self.0.get(principal);
        let spent = tally.into_iter().flat_map(|tally| tally.range(first..));
        spent.fold(Amount::ZERO, |sum, (_, amount)| sum.saturating_add(*amount))
    }

    /// Takes back what a checkpoint kept.
    pub(super) fn recall(&mut self, principal: &Name, day: u64, amount: Amount) {
        let days = self.0.entry(principal.clone()).or_default();
        days.insert(day, amount);
    }

    /// What replaces all that was tallied before it.
    pub(super) fn condense(&self, into: &mut Vec<Record>) {
        for (principal, days) in &self.0 {
            into.extend(days.iter().map(|(day, amount)| {
                Record::Part(Part::Spent {
                    principal: principal.clone(),
                    day: *day,
                    amount: *amount,
                })
            }));
        }
    }
}

/// What a principal may spend and has spent, as people see it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BudgetView {
    /// Who.
    pub principal: String,
    /// What it may spend, if that is limited.
    pub budget: Option<Budget>,
    /// Accepted in so many days: those of its budget.
    pub spent: Amount,
    /// How many.
    pub days: u16,
    /// What its open jobs may still cost.
    pub reserved: Amount,
}

impl BudgetView {
    /// What another job may cost.
    pub fn left(&self) -> Option<Amount> {
        let budget = self.budget?;
        let used = self.spent.saturating_add(self.reserved);
        Some(budget.amount.saturating_sub(used))
    }
}

impl Buyer {
    /// From now on these may spend that much, beside what the configuration says. All that
    /// were granted something before, and are not among these, no longer have it.
    pub(crate) fn grant(&mut self, budgets: BTreeMap<Name, Budget>) {
        self.granted = budgets;
    }

    /// Whether the principal of a job has enough left for it.
    pub(super) fn check_budget(&self, core: &Core, order: &JobOrder) -> Result<(), Decline> {
        if core.config.budgets.is_empty() && self.granted.is_empty() {
            return Ok(());
        }
        let view = self.budget(core, &order.principal);
        match view.left() {
            Some(left) if order.budget > left => Err(Decline {
                reason: Reason::PRINCIPAL_BUDGET,
                need: order.budget.as_micros(),
                have: left.as_micros(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// What a principal may spend, and has spent.
    pub(crate) fn budget(&self, core: &Core, principal: &Name) -> BudgetView {
        let open = self.open_orders();
        let of_it = open.filter(|(order, _)| order.principal == *principal);
        let reserved = of_it.fold(Amount::ZERO, |sum, (_, left)| sum.saturating_add(left));
        self.budget_view(core, principal, reserved)
    }

    /// Of all that have a budget, have spent, or have open jobs.
    pub(crate) fn budgets(&self, core: &Core) -> Vec<BudgetView> {
        let mut reserved: BTreeMap<&Name, Amount> = BTreeMap::new();
        for (order, left) in self.open_orders() {
            let sum = reserved.entry(&order.principal).or_default();
            *sum = sum.saturating_add(left);
        }
        let named = core.config.budgets.keys().chain(self.granted.keys());
        let named = named.filter(|name| &***name != ANYBODY);
        for principal in named.chain(self.spending.0.keys()) {
            reserved.entry(principal).or_default();
        }
        let all = reserved.into_iter();
        all.map(|(principal, reserved)| self.budget_view(core, principal, reserved))
            .collect()
    }

    /// Jobs that have not ended, and what each may still cost.
    fn open_orders(&self) -> impl Iterator<Item = (&JobOrder, Amount)> {
        let open = self.jobs.values().filter(|job| job.end.is_none());
        open.map(|job| (&*job.order, job.order.budget.saturating_sub(job.spent)))
    }

    fn budget_view(&self, core: &Core, principal: &Name, reserved: Amount) -> BudgetView {
        let of = |budget: Option<Budget>| {
            let days = budget.map_or(DAYS_SHOWN, |budget| budget.days);
            BudgetView {
                principal: principal.to_string(),
                budget,
                spent: self.spending.spent(principal, core.now.wall, days),
                days,
                reserved,
            }
        };
        let configured = core.config.budgets.get(principal);
        let granted = self.granted.get(principal);
        match (configured, granted) {
            (Some(configured), Some(granted)) => {
                let (one, other) = (of(Some(*configured)), of(Some(*granted)));
                if other.left() <= one.left() {
                    other
                } else {
                    one
                }
            }
            (Some(budget), None) | (None, Some(budget)) => of(Some(*budget)),
            (None, None) => {
                let mut all = core.config.budgets.iter();
                let anybody = all.find(|(name, _)| &***name == ANYBODY);
                of(anybody.map(|(_, budget)| *budget))
            }
        }
    }
}
