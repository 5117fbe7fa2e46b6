//! The running accounts of a node, as payer and as payee.
//!
//! ```text
//! payer:  unsynced ──heads agree──▶ synced ──voucher──▶ (unacked) ──ack──▶ synced
//! payee:  head n ──voucher n+1──▶ head n+1, acked
//!                ──another voucher n──▶ frozen (proof kept)
//! ```
//!
//! After every start, and before its first voucher, a payer asks the payee for
//! its head: a restored backup can't know that it is one, and must not sign a
//! second voucher with a sequence number that it has used. What it finds at
//! the payee, signed by itself, it adopts. A payee that is behind adopts its
//! own acknowledgements in the same way, one by one, for each says what is no
//! longer owed. What is paid is declared by the payee: see `settling`.
//!
//! Each voucher has an acknowledgement of its own, and both sides keep the
//! same one: where only that of a later voucher came, the payer asks for the
//! others' by repeating what they acknowledge.

mod condense;
mod settling;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use self::settling::take_settlement;
use super::{
    Event,
    core::{Core, Timer},
};
use crate::{
    envelope::{Extensions, Verified},
    ids::{AccountId, ChannelId, PeerId, ReceiptId, VoucherId},
    limits::{CHANNELS_MAX, VOUCHER_RECEIPTS_MAX, VOUCHERS_UNACKED_MAX},
    message::{Frame, Heads, VerifiedHeads},
    record::Record,
    units::{Amount, Total},
    voucher::{
        Equivocation, NO_ROOT, NO_VOUCHER, Parties, Settlement, Voucher, VoucherAck, next_root,
    },
    wire::{List, Text},
};

/// Vouchers of the near past. A payee compares repeats with them, and shows
/// them one by one to a payer that has lost them; a payer knows by them what
/// it has paid already.
const RECENT_VOUCHERS: usize = 64;
/// How often acknowledgements are asked for that only prove what a later one
/// says as well: a payee that is a restored backup has them no more.
const PROOF_TRIES: u32 = 4;

/// All channels of a node.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    paying: BTreeMap<ChannelId, Paying>,
    earning: BTreeMap<(AccountId, ChannelId), Earning>,
}

/// A channel on which this node pays.
#[derive(Debug)]
struct Paying {
    parties: Parties,
    synced: bool,
    frozen: bool,
    head: Option<Verified<Voucher>>,
    recent: VecDeque<(Verified<Voucher>, Option<Verified<VoucherAck>>)>,
    unacked: VecDeque<Verified<Voucher>>,
    ack: Option<Verified<VoucherAck>>,
    /// Accepted, and not yet in a voucher.
    due: Vec<(ReceiptId, Amount)>,
    settlement: Option<Verified<Settlement>>,
    tries: u32,
    /// The last voucher that was repeated because the payee lacked it.
    nudged: u64,
    /// How often acknowledgements were asked for that later ones stand for.
    proof_tries: u32,
}

/// A channel on which this node earns.
#[derive(Debug)]
struct Earning {
    parties: Parties,
    frozen: Option<Box<Equivocation>>,
    head: Option<Verified<Voucher>>,
    ack: Option<Verified<VoucherAck>>,
    recent: VecDeque<(Verified<Voucher>, Verified<VoucherAck>)>,
    /// The head from which the payer was asked for the next voucher.
    asked_after: Option<u64>,
    /// Receipted, and in no voucher yet.
    unpaid: BTreeMap<ReceiptId, Amount>,
    disputed: Total,
    settlement: Option<Verified<Settlement>>,
    /// The newest settlement that the payer has shown that it has.
    told: u64,
    /// Whether the payer has shown what it has since the last start.
    in_step: bool,
    /// How often it was asked for that.
    asked: u32,
}

/// What an account got and paid, in micros.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Balance {
    delivered: u128,
    paid: u128,
}

impl Balance {
    fn with(self, earning: &Earning) -> Self {
        Self {
            delivered: self.delivered.saturating_add(earning.delivered()),
            paid: self.paid.saturating_add(earning.settled().as_micros()),
        }
    }

    /// What the account could still walk away from, if what is reserved were
    /// used up. What it got never gets over its window: what vouchers claim
    /// beyond that counts for nobody.
    pub(crate) fn owed(self, reserved: u128, window: u128) -> u128 {
        let prepaid = self.paid.saturating_sub(self.delivered);
        self.delivered
            .saturating_sub(self.paid)
            .min(window)
            .saturating_add(reserved.saturating_sub(prepaid))
    }

    /// What the account may still run on its window and what it paid.
    pub(crate) fn left(self, reserved: u128, window: u128) -> u128 {
        window
            .saturating_add(self.paid)
            .saturating_sub(self.delivered)
            .saturating_sub(reserved)
    }
}

/// A channel as people see it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ChannelView {
    /// The channel.
    pub channel: ChannelId,
    /// Who pays whom.
    pub parties: Parties,
    /// Whether this node pays.
    pub paying: bool,
    /// The newest voucher's sequence.
    pub sequence: u64,
    /// The newest sequence that was acknowledged.
    pub acknowledged: u64,
    /// What all vouchers state.
    pub cumulative: Total,
    /// What is accepted or receipted, and not yet in a voucher.
    pub pending: Total,
    /// What was disputed.
    pub disputed: Total,
    /// What was declared paid.
    pub settled: Total,
    /// How often something was.
    pub settlements: u64,
    /// What the payer's account may still run here, where this node sells: its
    /// credit window with what it paid, less what it owes and has reserved.
    pub credit_left: Option<Total>,
    /// Whether both heads are known to agree since the last start.
    pub synced: bool,
    /// Whether a proof of contradiction stopped it.
    pub frozen: bool,
}

impl ChannelView {
    /// What the vouchers state, and nobody declared paid.
    pub const fn outstanding(&self) -> Total {
        let owed = self.cumulative.as_micros();
        Total::from_micros(owed.saturating_sub(self.settled.as_micros()))
    }

    /// What was declared paid, and no voucher states yet.
    pub const fn prepaid(&self) -> Total {
        let paid = self.settled.as_micros();
        Total::from_micros(paid.saturating_sub(self.cumulative.as_micros()))
    }
}

impl Paying {
    fn new(parties: Parties) -> Self {
        Self {
            parties,
            synced: false,
            frozen: false,
            head: None,
            recent: VecDeque::new(),
            unacked: VecDeque::new(),
            ack: None,
            due: Vec::new(),
            settlement: None,
            tries: 0,
            nudged: 0,
            proof_tries: 0,
        }
    }

    fn sequence(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.body().sequence)
    }

    fn acked(&self) -> u64 {
        self.ack.as_ref().map_or(0, |ack| ack.body().sequence)
    }

    fn next_voucher(&self) -> Option<Voucher> {
        let paid = &self.due[..self.due.len().min(VOUCHER_RECEIPTS_MAX)];
        let receipts: Vec<ReceiptId> = paid.iter().map(|(receipt, _)| *receipt).collect();
        let (cumulative, root, previous) = match &self.head {
            Some(head) => (
                head.body().cumulative,
                head.body().root,
                VoucherId(head.hash()),
            ),
            None => (Total::ZERO, NO_ROOT, NO_VOUCHER),
        };
        let cumulative = paid
            .iter()
            .try_fold(cumulative, |sum, (_, amount)| sum.checked_add(*amount))?;
        Some(Voucher {
            parties: self.parties,
            sequence: self.sequence().checked_add(1)?,
            previous,
            cumulative,
            root: next_root(root, &receipts),
            receipts: List::truncated(receipts),
            extensions: Extensions::default(),
        })
    }

    fn advance(&mut self, voucher: Verified<Voucher>) {
        self.due
            .retain(|(receipt, _)| !voucher.body().receipts.contains(receipt));
        self.recent.push_back((voucher.clone(), None));
        if self.recent.len() > RECENT_VOUCHERS {
            self.recent.pop_front();
        }
        self.head = Some(voucher);
    }

    /// Vouchers that only a later one's acknowledgement says are taken.
    fn unproved(&self) -> impl Iterator<Item = &Verified<Voucher>> {
        let acked = self.acked();
        let wanted = self.proof_tries < PROOF_TRIES;
        self.recent
            .iter()
            .filter(move |(voucher, ack)| {
                wanted && ack.is_none() && voucher.body().sequence <= acked
            })
            .map(|(voucher, _)| voucher)
    }

    /// Whether a voucher still lacks its own acknowledgement.
    fn lacks(&self, ack: &VoucherAck) -> bool {
        self.recent
            .iter()
            .any(|(voucher, known)| known.is_none() && voucher.hash() == ack.voucher.0)
    }

    /// Whether a voucher of the near past pays a receipt. One that we have
    /// lost and found again at the payee may.
    fn has_paid(&self, receipt: ReceiptId) -> bool {
        self.recent
            .iter()
            .any(|(voucher, _)| voucher.body().receipts.contains(&receipt))
    }

    /// Whether we have signed another voucher in the place of this one.
    fn is_contradicted_by(&self, voucher: &Verified<Voucher>) -> bool {
        let sequence = voucher.body().sequence;
        let mut recent = self.recent.iter().map(|(known, _)| known);
        let known = recent.find(|known| known.body().sequence == sequence);
        known.is_some_and(|known| known.hash() != voucher.hash())
            || sequence.checked_sub(1) == Some(self.sequence()) && !self.is_next(voucher.body())
    }

    /// Whether a voucher is the one after our head.
    fn is_next(&self, voucher: &Voucher) -> bool {
        let head = self.head.as_ref();
        voucher.previous == head.map_or(NO_VOUCHER, |head| VoucherId(head.hash()))
    }

    fn acknowledge(&mut self, ack: Verified<VoucherAck>) {
        let sequence = ack.body().sequence;
        self.unacked
            .retain(|voucher| voucher.body().sequence > sequence);
        self.tries = 0;
        let own = self.recent.iter_mut();
        for (_, known) in own.filter(|(voucher, _)| voucher.hash() == ack.body().voucher.0) {
            *known = Some(ack.clone());
            self.proof_tries = 0;
        }
        if self.acked() < sequence {
            self.ack = Some(ack);
        }
    }
}

impl Earning {
    const fn new(parties: Parties) -> Self {
        Self {
            parties,
            frozen: None,
            head: None,
            ack: None,
            recent: VecDeque::new(),
            asked_after: None,
            unpaid: BTreeMap::new(),
            disputed: Total::ZERO,
            settlement: None,
            told: 0,
            in_step: false,
            asked: 0,
        }
    }

    fn settled(&self) -> Total {
        settled(self.settlement.as_ref())
    }

    fn cumulative(&self) -> Total {
        self.head
            .as_ref()
            .map_or(Total::ZERO, |head| head.body().cumulative)
    }

    fn unpaid(&self) -> Total {
        self.unpaid.values().fold(Total::ZERO, |sum, amount| {
            sum.checked_add(*amount).unwrap_or(sum)
        })
    }

    /// Whether nothing was ever earned or paid: it was only asked for.
    fn is_empty(&self) -> bool {
        self.delivered() == 0 && self.head.is_none() && self.settlement.is_none()
    }

    /// All that was ever delivered, whoever agrees.
    fn delivered(&self) -> u128 {
        self.cumulative()
            .as_micros()
            .saturating_add(self.unpaid().as_micros())
            .saturating_add(self.disputed.as_micros())
    }

    fn sequence(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.body().sequence)
    }

    fn has_been_paid(&self, receipt: ReceiptId) -> bool {
        self.recent
            .iter()
            .any(|(voucher, _)| voucher.body().receipts.contains(&receipt))
    }

    fn advance(&mut self, voucher: Verified<Voucher>, ack: Verified<VoucherAck>) {
        if Some(voucher.body().sequence) != self.sequence().checked_add(1) {
            // Those between are lost on both sides. A payer pays in the order
            // in which it accepts: what we still count was paid by them.
            self.unpaid.clear();
        }
        for receipt in voucher.body().receipts.iter() {
            self.unpaid.remove(receipt);
        }
        self.recent.push_back((voucher.clone(), ack.clone()));
        if self.recent.len() > RECENT_VOUCHERS {
            self.recent.pop_front();
        }
        self.head = Some(voucher);
        self.ack = Some(ack);
    }

    /// Whether a voucher continues the head and pays what it lists.
    fn continues(&self, voucher: &Voucher) -> bool {
        let (sequence, previous, root) = match &self.head {
            Some(head) => (
                head.body().sequence,
                VoucherId(head.hash()),
                head.body().root,
            ),
            None => (0, NO_VOUCHER, NO_ROOT),
        };
        let owed = voucher
            .receipts
            .iter()
            .try_fold(self.cumulative(), |sum, receipt| {
                sum.checked_add(self.unpaid.get(receipt).copied().unwrap_or(Amount::ZERO))
            });
        Some(voucher.sequence) == sequence.checked_add(1)
            && voucher.previous == previous
            && voucher.root == next_root(root, &voucher.receipts)
            && owed.is_some_and(|owed| voucher.cumulative >= owed)
    }
}

/// As payer.
impl Ledger {
    /// Makes sure that a channel to a provider exists and is in step, before
    /// anything is owed on it. Costs no time: the answer comes while the job
    /// runs.
    pub(crate) fn prepare(&mut self, core: &mut Core, parties: Parties) {
        let channel = parties.channel(core.network());
        if !self.paying.contains_key(&channel) && self.paying.len() >= CHANNELS_MAX {
            return;
        }
        let paying = self
            .paying
            .entry(channel)
            .or_insert_with(|| Paying::new(parties));
        if !paying.synced && !paying.frozen {
            ask_for_heads(core, channel, paying);
        }
    }

    /// An accepted receipt is owed. It is in a voucher at once if the channel
    /// is in step, else as soon as it is.
    pub(crate) fn owe(
        &mut self,
        core: &mut Core,
        parties: Parties,
        receipt: ReceiptId,
        amount: Amount,
    ) {
        if amount == Amount::ZERO {
            core.tell(Event::Settled {
                receipts: vec![receipt],
            });
            return;
        }
        let channel = parties.channel(core.network());
        let paying = self
            .paying
            .entry(channel)
            .or_insert_with(|| Paying::new(parties));
        if paying.has_paid(receipt) {
            return core.tell(Event::Settled {
                receipts: vec![receipt],
            });
        }
        paying.due.push((receipt, amount));
        pay(core, channel, paying);
    }

    pub(crate) fn on_ack(&mut self, core: &mut Core, from: PeerId, ack: Verified<VoucherAck>) {
        let channel = ack.body().parties.channel(core.network());
        let Some(paying) = self.paying.get_mut(&channel) else {
            return;
        };
        let known = paying.lacks(ack.body());
        if ack.signer() != paying.parties.payee || from != paying.parties.payee || !known {
            return;
        }
        take_ack(core, paying, ack);
        retry_later(core, channel, paying);
        pay(core, channel, paying);
    }

    pub(crate) fn on_channel_timer(&mut self, core: &mut Core, channel: ChannelId) {
        let Some(paying) = self.paying.get_mut(&channel) else {
            return;
        };
        if paying.frozen {
            return;
        }
        if !paying.synced {
            ask_for_heads(core, channel, paying);
            return;
        }
        // A payee that takes no notice may have lost the channel.
        if paying.tries > 1 && !paying.unacked.is_empty() {
            show_heads(core, channel, paying, true);
        }
        for voucher in paying.unproved() {
            core.send_again(paying.parties.payee, Frame::Voucher(voucher.raw()));
        }
        paying.proof_tries = paying.proof_tries.saturating_add(1);
        for voucher in &paying.unacked {
            core.send_again(paying.parties.payee, Frame::Voucher(voucher.raw()));
        }
        retry_later(core, channel, paying);
    }

    /// The payee is reachable again: what waits for it goes out now.
    pub(crate) fn on_connected(&mut self, core: &mut Core, peer: PeerId) {
        for (&channel, paying) in &mut self.paying {
            if paying.parties.payee != peer {
                continue;
            }
            (paying.nudged, paying.proof_tries) = (0, 0);
            let unacked = !paying.unacked.is_empty() || paying.unproved().next().is_some();
            if unacked || (!paying.synced && !paying.due.is_empty()) {
                paying.tries = 0;
                core.wake(Timer::Channel(channel), Duration::ZERO);
            }
        }
        self.on_payer_connected(core, peer);
    }
}

/// Asks the payee for its head, and again later while nothing comes.
fn ask_for_heads(core: &mut Core, channel: ChannelId, paying: &mut Paying) {
    show_heads(core, channel, paying, true);
    retry_later(core, channel, paying);
}

/// Shows the payee our head. If that is not acknowledged, what is goes first:
/// a payee that has lost it goes on from there.
fn show_heads(core: &mut Core, channel: ChannelId, paying: &Paying, reply: bool) {
    let ack = paying.ack.as_ref();
    let acked = paying
        .recent
        .iter()
        .map(|(voucher, _)| voucher)
        .find(|voucher| ack.is_some_and(|ack| ack.body().voucher.0 == voucher.hash()))
        .filter(|acked| Some(*acked) != paying.head.as_ref());
    let known = acked.map(|acked| (Some(acked), false));
    for (voucher, reply) in known.into_iter().chain([(paying.head.as_ref(), reply)]) {
        let heads = Heads {
            channel,
            voucher: voucher.map(Verified::raw),
            ack: ack.map(Verified::raw),
            settlement: paying.settlement.as_ref().map(Verified::raw),
            reply,
        };
        core.send_again(paying.parties.payee, Frame::Heads(heads));
    }
}

fn retry_later(core: &mut Core, channel: ChannelId, paying: &mut Paying) {
    let waits = !paying.synced && !paying.due.is_empty()
        || !paying.unacked.is_empty()
        || paying.unproved().next().is_some();
    // The first questions are asked also before anything is due.
    if !waits && (paying.synced || paying.tries > 3) {
        return;
    }
    let wait = core.config.timing.settle_retry * (1 << paying.tries.min(5));
    paying.tries += 1;
    let wait = core.jittered(wait);
    core.wake(Timer::Channel(channel), wait);
}

/// Signs vouchers for what is due, as far as the window reaches.
fn pay(core: &mut Core, channel: ChannelId, paying: &mut Paying) {
    if !paying.synced {
        if !paying.frozen {
            ask_for_heads(core, channel, paying);
        }
        return;
    }
    while !paying.frozen && !paying.due.is_empty() && paying.unacked.len() < VOUCHERS_UNACKED_MAX {
        let Some(voucher) = paying.next_voucher() else {
            return;
        };
        let voucher = core.sign(voucher);
        let lsn = core.persist(Record::Paid(voucher.clone()));
        core.send_after(lsn, paying.parties.payee, Frame::Voucher(voucher.raw()));
        paying.advance(voucher.clone());
        paying.unacked.push_back(voucher);
        paying.tries = 0;
        retry_later(core, channel, paying);
    }
}

fn take_ack(core: &mut Core, paying: &mut Paying, ack: Verified<VoucherAck>) {
    core.persist(Record::PaidAcked(ack.clone()));
    let upto = ack.body().sequence;
    let receipts: Vec<ReceiptId> = paying
        .unacked
        .iter()
        .filter(|voucher| voucher.body().sequence <= upto)
        .flat_map(|voucher| voucher.body().receipts.iter().copied())
        .collect();
    paying.acknowledge(ack);
    if !receipts.is_empty() {
        // The payee has it on disk, and says so again whenever it is asked.
        core.tell(Event::Settled { receipts });
    }
}

/// As payee.
impl Ledger {
    /// A receipt was issued: from now on it is owed.
    pub(crate) fn earn(
        &mut self,
        core: &Core,
        parties: Parties,
        receipt: ReceiptId,
        amount: Amount,
    ) {
        if amount == Amount::ZERO {
            return;
        }
        let earning = self.earning(core, parties);
        // A restored backup may hear of a receipt after the voucher that pays it.
        if !earning.has_been_paid(receipt) {
            earning.unpaid.insert(receipt, amount);
        }
    }

    fn earning(&mut self, core: &Core, parties: Parties) -> &mut Earning {
        let channel = parties.channel(core.network());
        self.earning
            .entry((parties.payer_account, channel))
            .or_insert_with(|| Earning::new(parties))
    }

    /// The client disputes a receipt: it won't be paid, and still counts
    /// against the client's credit.
    pub(crate) fn dispute(&mut self, core: &Core, parties: Parties, receipt: ReceiptId) {
        let earning = self.earning(core, parties);
        if let Some(amount) = earning.unpaid.remove(&receipt) {
            earning.disputed = earning
                .disputed
                .checked_add(amount)
                .unwrap_or(earning.disputed);
        }
    }

    pub(crate) fn on_voucher(&mut self, core: &mut Core, voucher: Verified<Voucher>) {
        let body = voucher.body();
        if body.parties.payee != core.me() || body.parties.payee_account != core.config.account {
            return core.misbehaved(voucher.signer(), "a voucher for somebody else");
        }
        let key = (
            body.parties.payer_account,
            body.parties.channel(core.network()),
        );
        // A channel begins with work, not with a voucher.
        let Some(earning) = self.earning.get_mut(&key) else {
            return;
        };
        let known = earning
            .recent
            .iter()
            .find(|(known, _)| known.body().sequence == body.sequence);
        if let Some((known, ack)) = known {
            if known.hash() == voucher.hash() {
                core.send_again(voucher.signer(), Frame::VoucherAck(ack.raw()));
            } else if let Some(proof) = Equivocation::new(known.clone(), voucher) {
                freeze(core, earning, key.1, &proof);
            }
            return;
        }
        if earning.frozen.is_some() || body.sequence <= earning.sequence() {
            return;
        }
        if earning.continues(body) {
            take_voucher(core, earning, voucher);
        } else {
            answer_heads(core, key.1, earning, None, true);
        }
    }

    /// What was delivered to an account, and what it paid, without what is
    /// only reserved.
    pub(crate) fn balance(&self, account: AccountId) -> Balance {
        self.channels_of(account)
            .fold(Balance::default(), Balance::with)
    }

    /// The same of all accounts for which `of` holds.
    pub(crate) fn balances(&self, of: impl Fn(AccountId) -> bool) -> BTreeMap<AccountId, Balance> {
        let mut balances: BTreeMap<AccountId, Balance> = BTreeMap::new();
        for ((account, _), earning) in &self.earning {
            if of(*account) {
                let balance = balances.entry(*account).or_default();
                *balance = balance.with(earning);
            }
        }
        balances
    }

    /// How much of the vouchers that an account gave us is settled, in thousandths.
    pub(crate) fn settled_share(&self, account: AccountId) -> u16 {
        let (mut promised, mut settled) = (0_u128, 0_u128);
        for earning in self.channels_of(account) {
            promised = promised.saturating_add(earning.cumulative().as_micros());
            settled = settled.saturating_add(earning.settled().as_micros());
        }
        let share = settled
            .min(promised)
            .saturating_mul(1000)
            .checked_div(promised);
        u16::try_from(share.unwrap_or(0)).unwrap_or(1000)
    }

    /// Whether a proof has stopped a channel with an account.
    pub(crate) fn is_frozen(&self, account: AccountId) -> bool {
        self.channels_of(account)
            .any(|earning| earning.frozen.is_some())
    }

    fn channels_of(&self, account: AccountId) -> impl Iterator<Item = &Earning> {
        let first = ChannelId(crate::ids::Hash::from_bytes([0; 32]));
        let last = ChannelId(crate::ids::Hash::from_bytes([0xff; 32]));
        self.earning
            .range((account, first)..=(account, last))
            .map(|(_, earning)| earning)
    }
}

fn settled(settlement: Option<&Verified<Settlement>>) -> Total {
    settlement.map_or(Total::ZERO, |settlement| settlement.body().settled)
}

fn take_voucher(core: &mut Core, earning: &mut Earning, voucher: Verified<Voucher>) {
    let body = voucher.body();
    let ack = core.sign(VoucherAck {
        parties: body.parties,
        sequence: body.sequence,
        voucher: VoucherId(voucher.hash()),
        cumulative: body.cumulative,
        extensions: Extensions::default(),
    });
    let payer = voucher.signer();
    let receipts = body.receipts.to_vec();
    let lsn = core.persist(Record::Earned {
        voucher: voucher.clone(),
        ack: ack.clone(),
    });
    has_paid(core, &voucher, &ack);
    core.send_after(lsn, payer, Frame::VoucherAck(ack.raw()));
    core.tell_after(lsn, Event::Earned { receipts });
    earning.advance(voucher, ack);
}

/// A voucher was taken: it counts for the payer, from when we acknowledged it.
pub(super) fn has_paid(core: &mut Core, voucher: &Verified<Voucher>, ack: &Verified<VoucherAck>) {
    let body = voucher.body();
    let (account, receipts) = (body.parties.payer_account, body.receipts.len());
    core.standings.paid(account, receipts, ack.issued());
}

fn freeze(core: &mut Core, earning: &mut Earning, channel: ChannelId, proof: &Equivocation) {
    if earning.frozen.is_some() {
        return;
    }
    earning.frozen = Some(Box::new(proof.clone()));
    let (first, second) = proof.vouchers();
    let lsn = core.persist(Record::Frozen {
        first: first.clone(),
        second: second.clone(),
    });
    core.tell_after(lsn, Event::Frozen { channel });
    core.misbehaved(first.signer(), "two vouchers with one sequence number");
}

/// Shows the payer the voucher after the one that it shows, or our head.
fn answer_heads(
    core: &mut Core,
    channel: ChannelId,
    earning: &Earning,
    shown: Option<u64>,
    reply: bool,
) {
    let next = shown.and_then(|shown| {
        let wanted = shown.checked_add(1)?;
        let mut recent = earning.recent.iter().map(|(voucher, _)| voucher);
        recent.find(|voucher| voucher.body().sequence == wanted)
    });
    let heads = Heads {
        channel,
        voucher: next.or(earning.head.as_ref()).map(Verified::raw),
        ack: earning.ack.as_ref().map(Verified::raw),
        settlement: earning.settlement.as_ref().map(Verified::raw),
        reply,
    };
    core.send_again(earning.parties.payer, Frame::Heads(heads));
}

/// Both sides' heads.
impl Ledger {
    pub(crate) fn on_heads(&mut self, core: &mut Core, from: PeerId, heads: VerifiedHeads) {
        let channel = heads.channel;
        if let Some(paying) = self.paying.get_mut(&channel) {
            if from == paying.parties.payee {
                payer_hears(core, channel, paying, heads);
            }
            return;
        }
        let earning = self
            .earning
            .iter_mut()
            .find(|((_, known), _)| *known == channel);
        match earning {
            Some((_, earning)) if from == earning.parties.payer => {
                payee_hears(core, channel, earning, heads);
            }
            Some(_) => {}
            None => self.on_lost_heads(core, from, heads),
        }
    }

    /// Heads of a channel that we have not, or no more. What we signed
    /// ourselves shows that we had it.
    fn on_lost_heads(&mut self, core: &mut Core, from: PeerId, heads: VerifiedHeads) {
        let channel = heads.channel;
        let by_voucher = heads.voucher.as_ref().map(|known| known.body().parties);
        let by_settlement = heads.settlement.as_ref().map(|known| known.body().parties);
        let parties = by_voucher
            .or(by_settlement)
            .filter(|parties| parties.channel(core.network()) == channel);
        let (me, mine) = core.identity();
        match parties {
            Some(parties) if (parties.payer, parties.payee) == (me, from) => {
                if let Some((_, paying)) = self.paying_to(core, parties) {
                    return payer_hears(core, channel, paying, heads);
                }
            }
            Some(parties) if (parties.payee, parties.payee_account) == (me, mine) => {
                if parties.payer == from && shows_our_word(me, &heads) {
                    return self.adopt_lost_channel(core, parties, heads);
                }
            }
            Some(_) | None => {}
        }
        // Nothing was ever earned or paid here: the other may begin.
        if heads.reply {
            let unknown = Heads {
                channel,
                voucher: None,
                ack: None,
                settlement: None,
                reply: false,
            };
            core.send(from, Frame::Heads(unknown));
        }
    }

    /// The payer shows our own word on a channel that we have lost.
    fn adopt_lost_channel(&mut self, core: &mut Core, parties: Parties, heads: VerifiedHeads) {
        if self.earning.len() >= CHANNELS_MAX {
            return;
        }
        let earning = self.earning(core, parties);
        // All of it is lost: there is nothing that those between could add to.
        earning.asked_after = Some(0);
        payee_hears(core, heads.channel, earning, heads);
    }
}

/// Whether heads hold something that we signed as their payee.
fn shows_our_word(me: PeerId, heads: &VerifiedHeads) -> bool {
    let acked = match (&heads.voucher, &heads.ack) {
        (Some(voucher), Some(ack)) => ack.signer() == me && acknowledges(ack, voucher),
        _ => false,
    };
    let settled = heads.settlement.as_ref();
    acked || settled.is_some_and(|settlement| settlement.signer() == me)
}

fn acknowledges(ack: &Verified<VoucherAck>, voucher: &Verified<Voucher>) -> bool {
    ack.body().voucher.0 == voucher.hash()
        && ack.body().parties == voucher.body().parties
        && ack.body().sequence == voucher.body().sequence
}

/// The payee's head came. If it is ahead of ours, we are a restored backup:
/// the voucher is our own, and we go on from it.
fn payer_hears(core: &mut Core, channel: ChannelId, paying: &mut Paying, heads: VerifiedHeads) {
    let theirs = heads
        .voucher
        .as_ref()
        .map_or(0, |voucher| voucher.body().sequence);
    if let Some(settlement) = &heads.settlement {
        take_settlement(core, paying, settlement);
    }
    if let Some(voucher) = heads.voucher {
        if voucher.body().parties != paying.parties || voucher.signer() != core.me() {
            return core.misbehaved(paying.parties.payee, "heads with somebody else's voucher");
        }
        if paying.is_contradicted_by(&voucher) {
            paying.frozen = true;
            return core.tell(Event::Frozen { channel });
        }
        if theirs > paying.sequence() {
            // An answer holds the next one, if the payee has it; a question
            // holds the newest.
            if heads.reply && !paying.is_next(voucher.body()) {
                return ask_for_heads(core, channel, paying);
            }
            return adopt(core, channel, paying, voucher);
        }
    }
    let ack = heads.ack;
    let ack = ack.filter(|ack| ack.body().parties == paying.parties);
    if ack
        .as_ref()
        .is_some_and(|ack| ack.body().sequence > paying.sequence())
    {
        // An answer to an earlier question, or of a payee that shows one by one: it has
        // taken more of ours than we know.
        return ask_for_heads(core, channel, paying);
    }
    let ack = ack.filter(|ack| ack.body().sequence > paying.acked());
    let progress = ack.is_some();
    if let Some(ack) = ack {
        take_ack(core, paying, ack);
    }
    let was_synced = std::mem::replace(&mut paying.synced, true);
    let reminded = theirs < paying.acked() && remind(core, channel, paying, theirs);
    if heads.reply && !reminded {
        show_heads(core, channel, paying, false);
    }
    // Once in step, the timer repeats what is not acknowledged: a payee that
    // can't take it would ask again at once, and so on for ever.
    if !was_synced {
        paying.tries = 0;
        for voucher in paying
            .unacked
            .iter()
            .filter(|voucher| voucher.body().sequence > theirs)
        {
            core.send_again(paying.parties.payee, Frame::Voucher(voucher.raw()));
        }
    } else if heads.reply {
        nudge(core, paying, theirs);
    }
    if progress || !was_synced {
        retry_later(core, channel, paying);
    }
    pay(core, channel, paying);
}

/// A payee that asks for our head has heard of a later voucher than it can
/// take: it gets the next one at once, but each only once.
fn nudge(core: &mut Core, paying: &mut Paying, theirs: u64) {
    let next = paying
        .unacked
        .iter()
        .find(|voucher| Some(voucher.body().sequence) == theirs.checked_add(1));
    if let Some(voucher) = next.filter(|voucher| voucher.body().sequence > paying.nudged) {
        paying.nudged = voucher.body().sequence;
        core.send_again(paying.parties.payee, Frame::Voucher(voucher.raw()));
    }
}

/// A payee that is behind what it has acknowledged is a restored backup: it is
/// shown the next voucher with its own word on it, each only once.
fn remind(core: &mut Core, channel: ChannelId, paying: &mut Paying, theirs: u64) -> bool {
    let mut recent = paying.recent.iter();
    let next = recent.find(|(voucher, _)| Some(voucher.body().sequence) == theirs.checked_add(1));
    let Some((voucher, ack)) = next.filter(|(next, _)| next.body().sequence > paying.nudged) else {
        return false;
    };
    paying.nudged = voucher.body().sequence;
    let frame = match ack {
        Some(ack) => Frame::Heads(Heads {
            channel,
            voucher: Some(voucher.raw()),
            ack: Some(ack.raw()),
            settlement: paying.settlement.as_ref().map(Verified::raw),
            reply: true,
        }),
        None => Frame::Voucher(voucher.raw()),
    };
    core.send_again(paying.parties.payee, frame);
    true
}

/// Takes a voucher of our own that only the payee still had, and asks whether
/// there are more.
fn adopt(core: &mut Core, channel: ChannelId, paying: &mut Paying, voucher: Verified<Voucher>) {
    core.persist(Record::Paid(voucher.clone()));
    if !paying.is_next(voucher.body()) {
        // Those between are lost on both sides, and may have paid what we
        // think is due: better not paid here than paid twice.
        paying.due.clear();
    }
    paying.unacked.clear();
    paying.advance(voucher);
    paying.synced = false;
    ask_for_heads(core, channel, paying);
}

/// The payer's head came. If it shows an acknowledgement of ours that is ahead
/// of our head, we are the restored backup.
fn payee_hears(core: &mut Core, channel: ChannelId, earning: &mut Earning, heads: VerifiedHeads) {
    earning.hear_settlement(core, channel, heads.settlement);
    let shown = heads.voucher.as_ref();
    let shown = shown.map_or(0, |voucher| voucher.body().sequence);
    if let (Some(voucher), Some(ack)) = (heads.voucher, heads.ack)
        && voucher.body().parties == earning.parties
        && ack.body().parties == earning.parties
        && acknowledges(&ack, &voucher)
        && voucher.body().sequence > earning.sequence()
    {
        let head = earning.sequence();
        if shown > head.saturating_add(1) && earning.asked_after != Some(head) {
            // Those between say which receipts are paid, if the payer has them.
            earning.asked_after = Some(head);
            return answer_heads(core, channel, earning, None, true);
        }
        core.persist(Record::Earned {
            voucher: voucher.clone(),
            ack: ack.clone(),
        });
        has_paid(core, &voucher, &ack);
        earning.advance(voucher, ack);
    }
    if heads.reply {
        answer_heads(core, channel, earning, Some(shown), false);
    }
}

/// What people see, and restoring.
impl Ledger {
    pub(crate) fn views(&self) -> Vec<ChannelView> {
        let paying = self.paying.iter().map(|(&channel, paying)| ChannelView {
            channel,
            parties: paying.parties,
            paying: true,
            sequence: paying.sequence(),
            acknowledged: paying.acked(),
            cumulative: paying
                .head
                .as_ref()
                .map_or(Total::ZERO, |head| head.body().cumulative),
            pending: paying.due.iter().fold(Total::ZERO, |sum, (_, amount)| {
                sum.checked_add(*amount).unwrap_or(sum)
            }),
            disputed: Total::ZERO,
            settled: settled(paying.settlement.as_ref()),
            settlements: settling::sequence(paying.settlement.as_ref()),
            credit_left: None,
            synced: paying.synced,
            frozen: paying.frozen,
        });
        let earning = self
            .earning
            .iter()
            .filter(|(_, earning)| !earning.is_empty())
            .map(|(&(_, channel), earning)| ChannelView {
                channel,
                parties: earning.parties,
                paying: false,
                sequence: earning.sequence(),
                acknowledged: earning.ack.as_ref().map_or(0, |ack| ack.body().sequence),
                cumulative: earning.cumulative(),
                pending: earning.unpaid(),
                disputed: earning.disputed,
                settled: earning.settled(),
                settlements: earning.settlements(),
                credit_left: None,
                synced: true,
                frozen: earning.frozen.is_some(),
            });
        paying.chain(earning).collect()
    }

    pub(crate) fn replay_owed(
        &mut self,
        core: &Core,
        parties: Parties,
        receipt: ReceiptId,
        amount: Amount,
    ) {
        if amount > Amount::ZERO {
            let channel = parties.channel(core.network());
            let paying = self
                .paying
                .entry(channel)
                .or_insert_with(|| Paying::new(parties));
            if !paying.has_paid(receipt) {
                paying.due.push((receipt, amount));
            }
        }
    }

    pub(crate) fn replay(&mut self, core: &Core, record: &Record) {
        match record {
            Record::Paid(voucher) => {
                let parties = voucher.body().parties;
                let channel = parties.channel(core.network());
                let paying = self
                    .paying
                    .entry(channel)
                    .or_insert_with(|| Paying::new(parties));
                paying.advance(voucher.clone());
                paying.unacked.push_back(voucher.clone());
            }
            Record::PaidAcked(ack) => {
                let channel = ack.body().parties.channel(core.network());
                if let Some(paying) = self.paying.get_mut(&channel) {
                    paying.acknowledge(ack.clone());
                }
            }
            Record::Earned { voucher, ack } => {
                self.earning(core, voucher.body().parties)
                    .advance(voucher.clone(), ack.clone());
            }
            Record::Frozen { first, second } => {
                if let Some(proof) = Equivocation::new(first.clone(), second.clone()) {
                    let earning = self.earning(core, first.body().parties);
                    earning.frozen = Some(Box::new(proof));
                }
            }
            Record::Settled(settlement) => self.replay_settled(core, settlement),
            Record::Part(part) => self.replay_part(core, part),
            _ => {}
        }
    }

    /// After replay: ask for the heads of channels on which something waits.
    pub(crate) fn resume(&mut self, core: &mut Core) {
        self.resume_settling(core);
        for (&channel, paying) in &mut self.paying {
            let unproved = paying.unproved().next().is_some();
            if unproved || !paying.unacked.is_empty() || !paying.due.is_empty() {
                ask_for_heads(core, channel, paying);
            }
        }
    }
}
