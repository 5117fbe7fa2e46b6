//! Accounts without their past: in a checkpoint, and back from one.

use super::*;
use crate::{limits::KEPT_LIST_MAX, record::Part};

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

    pub(super) fn replay_part(&mut self, core: &Core, part: &Part) {
        match part {
            Part::Channel {
                parties,
                paying: true,
                ..
            } => {
                let channel = parties.channel(core.network());
                self.paying.insert(channel, Paying::new(*parties));
            }
            Part::Channel {
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
            Part::Owed {
                parties,
                paying: true,
                receipts,
            } => {
                if let Some(paying) = self.paying.get_mut(&parties.channel(core.network())) {
                    paying.due.extend(receipts.iter().copied());
                }
            }
            Part::Owed {
                parties,
                paying: false,
                receipts,
            } => {
                let earning = self.earning(core, *parties);
                earning.unpaid.extend(receipts.iter().copied());
            }
            Part::Voucher { voucher, ack } => {
                let earning = self.earning(core, voucher.body().parties);
                earning.recent.push_back((voucher.clone(), ack.clone()));
                earning.head = Some(voucher.clone());
                earning.ack = Some(ack.clone());
            }
            Part::Output(_)
            | Part::Results(..)
            | Part::Partners(_)
            | Part::Past { .. }
            | Part::Job { .. }
            | Part::Tries { .. }
            | Part::Spent { .. }
            | Part::Deal { .. }
            | Part::Answer(_)
            | Part::Work { .. } => {}
        }
    }
}

impl Paying {
    fn condense(&self, into: &mut Vec<Record>) {
        begin(into, self.parties, true, Total::ZERO);
        owed(into, self.parties, true, self.due.iter().copied());
        // All that waits for its acknowledgement, however long ago it was.
        let recent = || self.recent.iter().map(|(voucher, _)| voucher);
        let recent_from = recent().next().map_or(0, |first| first.body().sequence);
        let older = self
            .unacked
            .iter()
            .filter(|voucher| voucher.body().sequence < recent_from);
        into.extend(older.chain(recent()).cloned().map(Record::Paid));
        let acks = || self.recent.iter().filter_map(|(_, ack)| ack.as_ref());
        let older = self.ack.iter().filter(|ack| acks().all(|own| own != *ack));
        into.extend(older.chain(acks()).cloned().map(Record::PaidAcked));
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
        into.extend(self.recent.iter().map(|(voucher, ack)| {
            Record::Part(Part::Voucher {
                voucher: voucher.clone(),
                ack: ack.clone(),
            })
        }));
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
    into.push(Record::Part(Part::Channel {
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
        Record::Part(Part::Owed {
            parties,
            paying,
            receipts: List::truncated(some.to_vec()),
        })
    }));
}
