//! Accounts without their past: in a checkpoint, and back from one.

use super::*;
use crate::{limits::KEPT_LIST_MAX, record::Kept};

impl Ledger {
    /// Replaying these makes the same state, if nothing was done with it but
    /// replaying. They follow the records of jobs and work, whose receipts
    /// would be owed anew without them.
    pub(crate) fn condense(&self, into: &mut Vec<Record>) {
        for paying in self.paying.values() {
            paying.condense(into);
        }
        for earning in self.earning.values() {
            earning.condense(into);
        }
    }

    pub(super) fn replay_kept(&mut self, core: &Core, kept: &Kept) {
        match kept {
            Kept::Channel {
                parties,
                paying: true,
                ..
            } => {
                let channel = parties.channel(core.network());
                self.paying.insert(channel, Paying::new(*parties));
            }
            Kept::Channel {
                parties,
                paying: false,
                disputed,
            } => {
                let mut earning = Earning::new(*parties);
                earning.disputed = *disputed;
                let channel = parties.channel(core.network());
                self.earning
                    .insert((parties.payer_account, channel), earning);
            }
            Kept::Owed {
                parties,
                paying: true,
                receipts,
            } => {
                if let Some(paying) = self.paying.get_mut(&parties.channel(core.network())) {
                    paying.due.extend(receipts.iter().copied());
                }
            }
            Kept::Owed {
                parties,
                paying: false,
                receipts,
            } => {
                let earning = self.earning(core, *parties);
                earning.unpaid.extend(receipts.iter().copied());
            }
            Kept::Voucher(voucher) => {
                let earning = self.earning(core, voucher.body().parties);
                earning.recent.push_back(voucher.clone());
            }
            Kept::Partners(_)
            | Kept::Past { .. }
            | Kept::Job { .. }
            | Kept::Deal { .. }
            | Kept::Answer(_)
            | Kept::Work { .. } => {}
        }
    }
}

impl Paying {
    fn condense(&self, into: &mut Vec<Record>) {
        begin(into, self.parties, true, Total::ZERO);
        owed(into, self.parties, true, self.due.iter().copied());
        // All that waits for its acknowledgement, however long ago it was.
        let recent_from = self.recent.front().map_or(0, |first| first.body().sequence);
        let older = self
            .unacked
            .iter()
            .filter(|voucher| voucher.body().sequence < recent_from);
        into.extend(older.chain(&self.recent).cloned().map(Record::Paid));
        into.extend(self.ack.clone().map(Record::PaidAcked));
        into.extend(self.settlement.clone().map(Record::Settled));
    }
}

impl Earning {
    fn condense(&self, into: &mut Vec<Record>) {
        begin(into, self.parties, false, self.disputed);
        let unpaid = self
            .unpaid
            .iter()
            .map(|(&receipt, &amount)| (receipt, amount));
        owed(into, self.parties, false, unpaid);
        let before_head = self.recent.len().saturating_sub(1);
        let earlier = self.recent.iter().take(before_head).cloned();
        into.extend(earlier.map(|voucher| Record::Kept(Kept::Voucher(voucher))));
        if let (Some(voucher), Some(ack)) = (self.head.clone(), self.ack.clone()) {
            into.push(Record::Earned { voucher, ack });
        }
        into.extend(self.settlement.clone().map(Record::Settled));
        into.extend(self.frozen.as_ref().map(|proof| {
            let (first, second) = proof.vouchers();
            Record::Frozen {
                first: first.clone(),
                second: second.clone(),
            }
        }));
    }
}

fn begin(into: &mut Vec<Record>, parties: Parties, paying: bool, disputed: Total) {
    into.push(Record::Kept(Kept::Channel {
        parties,
        paying,
        disputed,
    }));
}

fn owed(
    into: &mut Vec<Record>,
    parties: Parties,
    paying: bool,
    receipts: impl Iterator<Item = (ReceiptId, Amount)>,
) {
    let all: Vec<_> = receipts.collect();
    into.extend(all.chunks(KEPT_LIST_MAX).map(|some| {
        Record::Kept(Kept::Owed {
            parties,
            paying,
            receipts: List::truncated(some.to_vec()),
        })
    }));
}
