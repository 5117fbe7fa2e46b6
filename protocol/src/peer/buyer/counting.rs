//! Leases of models: the client counts too.
//!
//! ```text
//! counting begins ─▶ Counted ──answers end──▶ (read, written) grow
//!                       ▲  └─ receipt within what was counted ──▶ paid
//!                       └──── receipt beyond it: held back ──▶ counted by then ──▶ paid
//!                                                        └─ not in time ──▶ disputed, lease given up
//! ```
//!
//! A receipt of a part of a lease may come before the end of the answer that it is for has
//! been counted here, because the two travel apart. So what claims more waits a moment.
//!
//! Absent: the way answers take, and how tokens are counted: whoever uses the lease tells
//! sums. A node that started again has lost them, and takes what is claimed of a lease that
//! it still has: saying that it is wrong would be a lie, and the cap bounds it.

use super::*;

/// How long a receipt that claims more than was counted waits for the count. Answers and
/// receipts take the same way, and what is lost of either comes again in seconds.
const COUNT_GRACE: Duration = Duration::from_secs(15);
/// Receipts of one lease that wait. A provider sends no more than two without an answer.
const WAITING_MAX: usize = 4;

/// What was counted of a lease, and claimed.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// Tokens read and written, as counted here.
    counted: (u64, u64),
    /// The same, as accepted receipts claim.
    claimed: (u64, u64),
    waiting: Vec<(Mono, Verified<Receipt>)>,
}

impl Counted {
    /// Whether what was counted covers this as well.
    fn covers(&self, (read, written): (u64, u64)) -> bool {
        self.claimed.0.saturating_add(read) <= self.counted.0
            && self.claimed.1.saturating_add(written) <= self.counted.1
    }
}

impl Buyer {
    /// So many more tokens of a lease were read and written. Said with nothing once before
    /// the first: from then on receipts are held against the count.
    pub(crate) fn on_counted(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        agreement: AgreementId,
        (read, written): (u64, u64),
    ) {
        let Some(active) = self.lease(agreement) else {
            return;
        };
        let counted = active.counted.get_or_insert_default();
        counted.counted.0 = counted.counted.0.saturating_add(read);
        counted.counted.1 = counted.counted.1.saturating_add(written);
        let waiting = std::mem::take(&mut counted.waiting);
        let provider = active.deal.provider();
        let mut later = Vec::new();
        for (since, receipt) in waiting {
            if self.is_covered(agreement, &receipt) {
                self.on_receipt(core, ledger, provider, receipt, Vec::new());
            } else {
                later.push((since, receipt));
            }
        }
        if let Some(counted) = self
            .lease(agreement)
            .and_then(|active| active.counted.as_mut())
        {
            counted.waiting.extend(later);
        }
    }

    /// Whether a receipt may be judged. If not, it is kept until it can be.
    pub(super) fn may_judge(
        &mut self,
        core: &mut Core,
        agreement: AgreementId,
        receipt: &Verified<Receipt>,
    ) -> bool {
        let is_covered = self.is_covered(agreement, receipt);
        let now = core.now.mono;
        let counted = self
            .lease(agreement)
            .and_then(|active| active.counted.as_mut());
        let Some(counted) = counted else {
            return true;
        };
        // With the last one the lease is over: it comes after those that wait.
        if is_covered && (counted.waiting.is_empty() || !receipt.body().key.last) {
            return true;
        }
        let mut waiting = counted.waiting.iter();
        let is_known = waiting.any(|(_, known)| known.hash() == receipt.hash());
        if !is_known && counted.waiting.len() < WAITING_MAX {
            counted.waiting.push((now, receipt.clone()));
        }
        false
    }

    /// A receipt that was held against the count is accepted.
    pub(super) fn claim(&mut self, receipt: &Receipt) {
        let (read, written) = tokens_of(receipt);
        let active = self.lease(receipt.key.agreement);
        if let Some(counted) = active.and_then(|active| active.counted.as_mut()) {
            counted.claimed.0 = counted.claimed.0.saturating_add(read);
            counted.claimed.1 = counted.claimed.1.saturating_add(written);
        }
    }

    /// Disputes what has waited for its count too long. Whether there was anything.
    pub(super) fn dispute_uncounted(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        agreement: AgreementId,
    ) -> bool {
        let Some(&id) = self.by_agreement.get(&agreement) else {
            return false;
        };
        let now = core.now.mono;
        let counted = self
            .lease(agreement)
            .and_then(|active| active.counted.as_mut());
        let Some(counted) = counted else {
            return false;
        };
        let is_over = |(since, _): &(Mono, _)| now.since(*since) >= COUNT_GRACE;
        if !counted.waiting.iter().any(is_over) {
            return false;
        }
        for (_, receipt) in std::mem::take(&mut counted.waiting) {
            self.dispute(core, id, &receipt, Reason::WRONG_AMOUNT);
        }
        self.give_up(core, ledger, id, (agreement, Reason::WRONG_AMOUNT));
        true
    }

    fn is_covered(&mut self, agreement: AgreementId, receipt: &Verified<Receipt>) -> bool {
        let active = self.lease(agreement);
        let counted = active.and_then(|active| active.counted.as_ref());
        counted.is_none_or(|counted| counted.covers(tokens_of(receipt.body())))
    }

    fn lease(&mut self, agreement: AgreementId) -> Option<&mut Active> {
        let id = self.by_agreement.get(&agreement)?;
        let active = self.jobs.get_mut(id)?.live.get_mut(&agreement)?;
        let is_lease = matches!(active.deal.quote().body().work, Work::Lease { .. });
        is_lease.then_some(active)
    }
}

/// Tokens read and written, as a receipt says.
fn tokens_of(receipt: &Receipt) -> (u64, u64) {
    let sum = |meter| {
        let lines = receipt.usage.iter().filter(|line| line.meter == meter);
        lines.fold(0u64, |sum, line| sum.saturating_add(line.quantity))
    };
    (sum(Meter::TOKEN_IN), sum(Meter::TOKEN_OUT))
}
