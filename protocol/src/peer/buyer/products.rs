//! Results that must be products of what their units read.
//!
//! ```text
//! result held ─▶ has the outputs, in their sizes? ──no──▶ wrong
//!                     │ yes
//!                     ▼
//!                waiting ──a few at once──▶ Output::CheckProducts ─▶ Input::ProductsChecked
//!                                                   ─▶ right, wrong, or this node can't read it
//! ```
//!
//! A wrong one is disputed as if others contradicted it, whatever these say. One that is
//! right goes on to where results are compared; if one result is enough, that decides its
//! unit. One that this node can't check is paid and does not count: another provider is
//! asked if one is still needed. Checks take their turns with comparisons
//! ([`super::likeness`]), and like these they are not written down: after a restart the
//! providers say their results again, and these are checked again.
//!
//! Only results of completed executions are products. That a job failed, as its provider
//! says, can't be checked so.
//!
//! Absent: the check itself ([`crate::freivalds`]), and what becomes of those that are
//! right ([`super::verdict`]).

use super::*;
use crate::freivalds::{Matrix, Product};

/// What is known of a result's products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// It need not have any.
    None,
    /// They must be checked.
    Unknown,
    /// That is under way.
    Asked,
    /// They are what the job says.
    Right,
    /// They are not.
    Wrong,
    /// This node could not read them, or the inputs: nothing follows from that for anybody.
    Unreadable,
}

impl Buyer {
    /// The products of a result were checked. Its unit may be over by now, or its job.
    pub(crate) fn on_products_checked(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: ResultId,
        right: Option<bool>,
    ) {
        if !self.comparisons.checks.remove(&id) {
            return;
        }
        let job = self.jobs.get_mut(&id.job);
        if job.is_some_and(|job| job.learns(id, right)) {
            self.decide(core, ledger, id.job, id.unit);
        }
        self.compare_on(core);
    }

    /// Disputes the results of a unit whose products are wrong.
    pub(super) fn refute_unproven(&mut self, core: &mut Core, id: JobId, unit: u32) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(held) = job.held.remove(&unit) else {
            return;
        };
        let is_wrong = |result: &Held| job.proof(unit, result) == Proof::Wrong;
        let (wrong, held): (Vec<_>, Vec<_>) = held.into_iter().partition(is_wrong);
        if !held.is_empty() {
            job.held.insert(unit, held);
        }
        for result in &wrong {
            self.refute(core, id, result);
            core.wake(Timer::Job(id), Duration::ZERO);
        }
    }
}

impl Job {
    /// Takes in what a check found; says whether that still matters. Another result with
    /// the same bytes is checked again where these could not be read.
    fn learns(&mut self, id: ResultId, right: Option<bool>) -> bool {
        let Some(known) = self.proven.get_mut(&id.unit) else {
            return false;
        };
        match right {
            Some(true) => known.insert(id.result, Proof::Right),
            Some(false) => known.insert(id.result, Proof::Wrong),
            None => known.remove(&id.result),
        };
        if right.is_none() {
            let held = self.held.get_mut(&id.unit).into_iter().flatten();
            held.filter(|held| held.digest == id.result)
                .for_each(|held| held.unread = true);
        }
        true
    }

    /// What is known of the products of a unit's result.
    pub(super) fn proof(&self, unit: u32, held: &Held) -> Proof {
        let body = held.receipt.body();
        let Some(freivalds) = &self.order.verify.freivalds else {
            return Proof::None;
        };
        if body.outcome != Outcome::Completed {
            return Proof::None;
        }
        if !(freivalds.products.iter()).all(|product| output(body, product).is_some()) {
            return Proof::Wrong;
        }
        let known = self.proven.get(&unit);
        match known.and_then(|known| known.get(&held.digest)) {
            Some(Proof::Wrong) => Proof::Wrong,
            _ if held.unread => Proof::Unreadable,
            known => known.copied().unwrap_or(Proof::Unknown),
        }
    }

    /// Whether products of a unit's results are still to be checked.
    pub(super) fn is_proving(&self, unit: u32) -> bool {
        let mut held = self.held.get(&unit).into_iter().flatten();
        held.any(|result| matches!(self.proof(unit, result), Proof::Unknown | Proof::Asked))
    }

    /// The next check that a unit needs, which begins with that.
    pub(super) fn next_check(&mut self, unit: u32) -> Option<ProductsCheck> {
        let freivalds = self.order.verify.freivalds.as_ref()?;
        let mut held = self.held.get(&unit)?.iter();
        let held = held.find(|result| self.proof(unit, result) == Proof::Unknown)?;
        let inputs = self.order.work.inputs_of(unit, &self.order.inputs);
        let factor = |index: u16, bytes: u64| {
            let blob = inputs.get(usize::from(index)).copied();
            blob.filter(|blob| blob.bytes == bytes)
        };
        let products = freivalds.products.iter().map(|product| {
            Some(ProductCheck {
                left: factor(product.left, product.bytes(Matrix::Left))?,
                right: factor(product.right, product.bytes(Matrix::Right))?,
                output: held.compared(output(held.receipt.body(), product)?),
                product: product.clone(),
            })
        });
        let products = products.collect::<Option<Vec<_>>>();
        let id = ResultId {
            job: self.order.job,
            unit,
            result: held.digest,
        };
        let known = self.proven.entry(unit).or_default();
        // An order that names other inputs than it has is not taken.
        let proof = products
            .as_ref()
            .map_or(Proof::Unreadable, |_| Proof::Asked);
        known.insert(id.result, proof);
        Some(ProductsCheck {
            id,
            rounds: freivalds.rounds,
            products: products?,
        })
    }
}

/// The output that is to be a product, if it is there in its size.
fn output(receipt: &Receipt, product: &Product) -> Option<BlobRef> {
    let mut outputs = receipt.outputs.iter();
    let output = outputs.find(|output| output.name == product.output)?;
    let bytes = product.bytes(Matrix::Product);
    Some(output.blob).filter(|blob| blob.bytes == bytes)
}
