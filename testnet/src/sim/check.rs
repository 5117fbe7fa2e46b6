//! The checkers: what must hold in every run, whatever goes wrong.
//!
//! They watch what becomes durable on every disk, what honest nodes send, what
//! executors run, and who blames whom; and at the end, after a quiet time,
//! whether both sides of every account agree. They never ask a peer what it
//! thinks, but for its own invariants: a peer that is wrong thinks that it is
//! right.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use suanli_protocol::{
    deal::{Checkpoint, Quote, Request, Work},
    envelope::Verified,
    ids::{AccountId, AgreementId, BlobId, ChannelId, Hash, JobId, NetworkId, PeerId, ReceiptId},
    limits::VOUCHERS_UNACKED_MAX,
    message::Message,
    peer::ExecutionOrder,
    receipt::{Acceptance, Outcome, OutputRef, Receipt, Verdict},
    record::{JobOrder, Lsn, Record},
    registry::{Reason, Verification},
    units::{Amount, Mono, Total},
    voucher::{Parties, Settlement, Voucher, VoucherAck},
};

use super::{
    floats::Floats,
    node::{Ix, Node},
    products::Products,
    trace::Subject,
    trials::Trials,
};

/// After its deadline a job may take so much longer to be written off.
const ENDING_MAX: Duration = Duration::from_secs(10);

/// Complaints of one run, at most: one fault is seen by many.
const COMPLAINTS_MAX: usize = 16;

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checker {
    /// No receipt without an agreement signed by both.
    Agreement,
    /// No unit charged twice.
    Charge,
    /// Capacity never oversold.
    Capacity,
    /// Vouchers and accepted receipts add up on both sides.
    Accounts,
    /// Every job ends before its deadline plus a bound.
    Deadline,
    /// No honest peer is blamed by another.
    Blame,
    /// Nothing was sent before its record was durable.
    Gating,
    /// Nothing is accepted or paid whose outputs could still be lost.
    Results,
    /// The identical bytes for identical questions, also after a restart.
    Repeats,
    /// A start from a checkpoint is like one from all records.
    Checkpoint,
}

impl fmt::Display for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agreement => "no receipt without an agreement signed by both",
            Self::Charge => "no unit charged twice",
            Self::Capacity => "capacity never oversold",
            Self::Accounts => "vouchers and accepted receipts add up on both sides",
            Self::Deadline => "every job ends before its deadline plus a bound",
            Self::Blame => "no honest peer is blamed",
            Self::Gating => "nothing is sent before its record is durable",
            Self::Results => "nothing is accepted whose outputs can be lost",
            Self::Repeats => "identical bytes for identical questions",
            Self::Checkpoint => "a start from a checkpoint is like one from all records",
        })
    }
}

/// Something that does not hold.
#[derive(Debug, Clone)]
pub struct Complaint {
    /// Who complains.
    pub checker: Checker,
    /// When.
    pub at: Mono,
    /// What.
    pub sentence: String,
    /// About what.
    pub subjects: Vec<Subject>,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.at.as_micros() / 1000;
        let (seconds, millis) = (millis / 1000, millis % 1000);
        write!(
            f,
            "{}: at {seconds}.{millis:03} s, {}",
            self.checker, self.sentence
        )
    }
}

/// One receipt, as its provider wrote it down or its client saw it.
#[derive(Debug, Clone)]
struct Seen {
    job: JobId,
    client: PeerId,
    provider: AccountId,
    lease: bool,
    receipt: Receipt,
}

/// What both sides' disks say of an agreement.
#[derive(Debug, Clone, Copy)]
struct DealFacts {
    job: JobId,
    client: PeerId,
    provider: AccountId,
    lease: bool,
}

impl DealFacts {
    fn of(request: &Request, client: PeerId, quote: &Quote) -> Self {
        Self {
            job: request.job,
            client,
            provider: quote.account,
            lease: matches!(quote.work, Work::Lease { .. }),
        }
    }
}

#[derive(Debug)]
struct JobFacts {
    node: Ix,
    due: Mono,
    ended: bool,
}

/// What two parties have on disk of their account.
#[derive(Debug, Default)]
struct Account {
    parties: Option<Parties>,
    paid: BTreeMap<u64, Voucher>,
    paid_ids: BTreeMap<u64, Hash>,
    earned: BTreeMap<u64, Hash>,
    acked: BTreeMap<u64, Hash>,
    /// Settlements, as the payee and as the payer has them.
    settled: [BTreeMap<u64, Hash>; 2],
}

/// A unit of a client's job.
type Unit = (PeerId, JobId, u32);

/// All that the checkers know.
#[derive(Debug)]
pub(crate) struct Checks {
    network: NetworkId,
    honest: BTreeSet<PeerId>,
    pub(crate) complaints: Vec<Complaint>,
    /// Our own envelopes that each node's disk said it has.
    on_disk: Vec<BTreeSet<Hash>>,
    /// Outputs that each node's disk said it has, in a record.
    written_outputs: Vec<BTreeSet<BlobId>>,
    /// Agreements that each node's disk said it has.
    agreed_reported: Vec<BTreeSet<AgreementId>>,
    /// Agreements that it has.
    agreed: Vec<BTreeSet<AgreementId>>,
    deals: BTreeMap<AgreementId, DealFacts>,
    receipts: BTreeMap<ReceiptId, Seen>,
    accepted: BTreeMap<ReceiptId, Amount>,
    /// Results that were paid, and whether others were found equal to them.
    charged: BTreeMap<Unit, Vec<(ReceiptId, bool)>>,
    /// Results of honest providers that were called wrong.
    called_wrong: BTreeMap<Unit, BTreeSet<ReceiptId>>,
    /// How many equal results of a unit a job wants, at most.
    copies: BTreeMap<JobId, usize>,
    /// Jobs with a tolerance: a result may come while others are compared.
    tolerant: BTreeSet<JobId>,
    /// Jobs with products: one that can't be read is paid, and another is asked for.
    proven: BTreeSet<JobId>,
    pub(crate) floats: Floats,
    pub(crate) products: Products,
    parts: BTreeMap<(AgreementId, u32, u32), ReceiptId>,
    paid_by: BTreeMap<ReceiptId, Hash>,
    accounts: BTreeMap<ChannelId, Account>,
    jobs: BTreeMap<(Ix, JobId), JobFacts>,
    said: BTreeMap<Question, Hash>,
    pub(crate) trials: Trials,
}

/// What may have one answer only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    Quote(Hash),
    Agreement(Hash),
    Receipt(AgreementId, u32, u32),
    Acceptance(ReceiptId),
    Voucher(ChannelId, u64),
    Ack(ChannelId, u64),
}

impl Checks {
    pub(crate) fn new(network: NetworkId, nodes: &[Node]) -> Self {
        Self {
            network,
            honest: nodes
                .iter()
                .filter(|node| node.is_honest())
                .map(Node::peer_id)
                .collect(),
            complaints: Vec::new(),
            on_disk: vec![BTreeSet::new(); nodes.len()],
            written_outputs: vec![BTreeSet::new(); nodes.len()],
            agreed_reported: vec![BTreeSet::new(); nodes.len()],
            agreed: vec![BTreeSet::new(); nodes.len()],
            deals: BTreeMap::new(),
            receipts: BTreeMap::new(),
            accepted: BTreeMap::new(),
            charged: BTreeMap::new(),
            called_wrong: BTreeMap::new(),
            copies: BTreeMap::new(),
            tolerant: BTreeSet::new(),
            proven: BTreeSet::new(),
            floats: Floats::default(),
            products: Products::default(),
            parts: BTreeMap::new(),
            paid_by: BTreeMap::new(),
            accounts: BTreeMap::new(),
            jobs: BTreeMap::new(),
            said: BTreeMap::new(),
            trials: Trials::default(),
        }
    }

    pub(crate) fn complain(
        &mut self,
        checker: Checker,
        at: Mono,
        sentence: String,
        subjects: Vec<Subject>,
    ) {
        if self.complaints.len() < COMPLAINTS_MAX {
            self.complaints.push(Complaint {
                checker,
                at,
                sentence,
                subjects,
            });
        }
    }

    fn is_honest(&self, peer: PeerId) -> bool {
        self.honest.contains(&peer)
    }
}

/// What becomes durable.
impl Checks {
    pub(crate) fn durable(&mut self, at: Mono, ix: Ix, node: &Node, record: &Record) {
        if !node.is_honest() {
            return;
        }
        match record {
            Record::Submitted { order, .. } => self.submitted(at, ix, order),
            Record::Ended { job, .. } => self.ended(at, ix, node, *job),
            Record::Took { request, quote, .. } => {
                let id = AgreementId(quote.hash());
                let facts = DealFacts::of(request.body(), request.signer(), quote.body());
                self.deals.insert(id, facts);
                self.agreed[ix].insert(id);
            }
            Record::Quoted { request, quote, .. } | Record::QuotedFirm { request, quote, .. } => {
                let id = AgreementId(quote.hash());
                let facts = DealFacts::of(request.body(), request.signer(), quote.body());
                self.deals.insert(id, facts);
                if matches!(record, Record::QuotedFirm { .. }) {
                    self.agreed[ix].insert(id);
                }
            }
            Record::AgreedTo(agreement) => {
                self.agreed[ix].insert(agreement.body().quote.into());
            }
            Record::Receipted(receipt) => {
                self.receipted(at, ix, node, ReceiptId(receipt.hash()), receipt.body());
            }
            Record::Judged {
                receipt,
                acceptance,
                ..
            } => {
                let id = ReceiptId(receipt.hash());
                self.receipted(at, ix, node, id, receipt.body());
                if let Some(seen) = self.receipts.get(&id) {
                    let word = acceptance.body();
                    self.trials.judged(seen.job, receipt, word);
                }
                self.judged(at, acceptance.body());
                self.names(at, receipt, acceptance.body());
            }
            Record::HeardOf(acceptance) => self.judged(at, acceptance.body()),
            Record::Paid(voucher) => self.paid(at, voucher.hash(), voucher.body()),
            Record::PaidAcked(ack) => {
                let account = self.account(ack.body().parties);
                account.acked.insert(ack.body().sequence, ack.hash());
            }
            Record::Earned { voucher, ack } => {
                self.earned(at, voucher.hash(), voucher.body(), ack.body());
            }
            Record::Frozen { first, .. } => self.frozen(at, node, first.body()),
            Record::Settled(settlement) => self.settled(node, settlement),
            Record::Offered(_)
            | Record::Withdrew(_)
            | Record::Asked(_)
            | Record::GaveUp { .. }
            | Record::Closed { .. }
            | Record::Cancelling { .. }
            | Record::Challenged(_)
            | Record::Reached { .. }
            | Record::Failed(_)
            | Record::Vouched(_)
            | Record::Part(_) => {}
        }
    }

    fn submitted(&mut self, at: Mono, ix: Ix, order: &JobOrder) {
        let verify = &order.verify;
        let audited = verify.audit > 0 || verify.adaptive;
        let copies = usize::from(verify.replicas).max(1 + usize::from(audited));
        self.copies.insert(order.job, copies);
        if verify.within.is_some() {
            self.tolerant.insert(order.job);
        }
        if verify.freivalds.is_some() {
            self.proven.insert(order.job);
        }
        let due = at.after(order.total.duration()).after(ENDING_MAX);
        self.jobs.entry((ix, order.job)).or_insert(JobFacts {
            node: ix,
            due,
            ended: false,
        });
    }

    /// A disk says that it has a record: what is sent after that is no fault of
    /// the peer's.
    pub(crate) fn reported(&mut self, ix: Ix, record: &Record) {
        let disk = &mut self.on_disk[ix];
        match record {
            Record::Asked(request) => {
                disk.insert(request.hash());
            }
            Record::Took { agreement, .. } => {
                disk.extend(agreement.as_ref().map(|agreement| agreement.hash()));
            }
            Record::Judged {
                acceptance,
                outputs,
                ..
            } => {
                disk.insert(acceptance.hash());
                self.written_outputs[ix].extend(outputs.iter().map(|output| output.blob));
            }
            Record::Quoted { quote, .. } => {
                disk.insert(quote.hash());
            }
            Record::QuotedFirm { quote, .. } => {
                disk.insert(quote.hash());
                self.agreed_reported[ix].insert(AgreementId(quote.hash()));
            }
            Record::AgreedTo(agreement) => {
                self.agreed_reported[ix].insert(agreement.body().quote.into());
            }
            Record::Receipted(receipt) => {
                disk.insert(receipt.hash());
            }
            Record::Paid(voucher) => {
                disk.insert(voucher.hash());
            }
            Record::Earned { ack, .. } => {
                disk.insert(ack.hash());
            }
            Record::Settled(settlement) => {
                disk.insert(settlement.hash());
            }
            Record::Offered(_)
            | Record::Withdrew(_)
            | Record::Submitted { .. }
            | Record::GaveUp { .. }
            | Record::Ended { .. }
            | Record::HeardOf(_)
            | Record::Closed { .. }
            | Record::Cancelling { .. }
            | Record::PaidAcked(_)
            | Record::Frozen { .. }
            | Record::Challenged(_)
            | Record::Reached { .. }
            | Record::Failed(_)
            | Record::Vouched(_)
            | Record::Part(_) => {}
        }
    }

    fn ended(&mut self, at: Mono, ix: Ix, node: &Node, job: JobId) {
        let Some(facts) = self.jobs.get_mut(&(ix, job)) else {
            return;
        };
        facts.ended = true;
        // A node that was down at the time has its bound after its start.
        let due = facts.due.max(node.booted.after(ENDING_MAX));
        if at > due {
            let late = at.since(due);
            self.complain(
                Checker::Deadline,
                at,
                format!("job {job} of {} ended {late:?} too late", node.name),
                vec![Subject::Job(job)],
            );
        }
    }

    fn receipted(&mut self, at: Mono, ix: Ix, node: &Node, id: ReceiptId, receipt: &Receipt) {
        let agreement = receipt.key.agreement;
        if !self.agreed[ix].contains(&agreement) {
            self.complain(
                Checker::Agreement,
                at,
                format!(
                    "{} has receipt {id} on disk, and no agreement {agreement}",
                    node.name
                ),
                vec![Subject::Agreement(agreement)],
            );
        }
        if let Some(deal) = self.deals.get(&agreement) {
            self.receipts.entry(id).or_insert_with(|| Seen {
                job: deal.job,
                client: deal.client,
                provider: deal.provider,
                lease: deal.lease,
                receipt: receipt.clone(),
            });
        }
    }

    /// A client's word, on its own disk or its provider's.
    fn judged(&mut self, at: Mono, acceptance: &Acceptance) {
        if acceptance.verdict != Verdict::Accepted {
            return;
        }
        let id = acceptance.receipt;
        let Some(seen) = self.receipts.get(&id).cloned() else {
            return;
        };
        let amount = seen.receipt.amount;
        if self.accepted.insert(id, amount).is_some() || amount == Amount::ZERO {
            return;
        }
        let key = seen.receipt.key;
        let part = (key.agreement, key.unit, key.index);
        if let Some(other) = self.parts.insert(part, id) {
            self.charged_twice(at, (other, id), &seen);
        }
        if seen.receipt.outcome == Outcome::Completed && key.last && !seen.lease {
            self.result_charged(at, id, &seen, acceptance.verification);
        }
    }

    /// A unit's results are charged once, or as often as the job has them compared: then
    /// they are equal, and of different accounts.
    fn result_charged(&mut self, at: Mono, id: ReceiptId, seen: &Seen, done: Verification) {
        let unit = (seen.client, seen.job, seen.receipt.key.unit);
        let copies = self.copies.get(&seen.job).copied().unwrap_or(1);
        // A job that ends first, or whose results all differ, pays what there is.
        let compared = done.is_agreement();
        let charged = self.charged.entry(unit).or_default();
        let others = charged.clone();
        charged.push((id, compared));
        if done == Verification::FREIVALDS && !self.is_product(&seen.receipt) {
            let sentence = format!("receipt {id} is accepted for a product that it is not");
            self.complain(Checker::Results, at, sentence, vec![Subject::Receipt(id)]);
        }
        let most = match copies {
            _ if self.proven.contains(&seen.job) => 2 * copies + 3,
            2.. if !compared || self.tolerant.contains(&seen.job) => 2 * copies + 3,
            _ => copies,
        };
        for (other, was_compared) in &others {
            let Some(before) = self.receipts.get(other) else {
                continue;
            };
            let differs = compared && *was_compared && !self.are_equal(before, seen, done);
            if before.provider == seen.provider || differs || others.len() >= most {
                return self.charged_twice(at, (*other, id), seen);
            }
        }
        self.wronged(at, unit);
    }

    /// Whether a result is what an honest machine computes.
    fn is_product(&self, receipt: &Receipt) -> bool {
        let outputs = receipt.outputs.iter().map(|output| output.blob.blob);
        self.products.are_right(outputs)
    }

    /// Whether two results are as equal as is said of them.
    fn are_equal(&self, one: &Seen, other: &Seen, done: Verification) -> bool {
        let (one, other) = (&one.receipt.outputs, &other.receipt.outputs);
        let near = matches!(
            done,
            Verification::REPLICAS_WITHIN | Verification::AUDIT_WITHIN
        );
        let pairs = || std::iter::zip(one.iter(), other.iter());
        one == other
            || near
                && one.len() == other.len()
                && pairs().all(|(a, b)| a.name == b.name && self.floats.are_near(a.blob, b.blob))
    }

    /// A client calls a result wrong.
    fn names(&mut self, at: Mono, receipt: &Verified<Receipt>, word: &Acceptance) {
        let id = ReceiptId(receipt.hash());
        let of_honest = self.is_honest(receipt.signer());
        let completed = receipt.body().outcome == Outcome::Completed;
        let wrong = word.verdict == Verdict::Disputed(Reason::WRONG_RESULT);
        if let Some(seen) = self
            .receipts
            .get(&id)
            .filter(|_| of_honest && completed && wrong)
        {
            let unit = (seen.client, seen.job, receipt.body().key.unit);
            if self.proven.contains(&unit.1) && self.is_product(receipt.body()) {
                let sentence = format!("receipt {id} is called wrong, and its product is right");
                self.complain(Checker::Blame, at, sentence, vec![Subject::Receipt(id)]);
            }
            self.called_wrong.entry(unit).or_default().insert(id);
            self.wronged(at, unit);
        }
    }

    /// No honest result is called wrong where one like it is paid: the same program gave
    /// both.
    fn wronged(&mut self, at: Mono, unit: Unit) {
        let wrong = self.called_wrong.get(&unit).into_iter().flatten();
        let paid = self.charged.get(&unit).into_iter().flatten();
        let mut paid = paid.filter(|(_, compared)| *compared);
        if let (Some(id), Some((other, _))) = (wrong.last(), paid.next_back()) {
            let sentence = format!(
                "unit {} of job {}: honest receipt {id} is called wrong, and {other} is paid",
                unit.2, unit.1
            );
            let subjects = vec![Subject::Job(unit.1), Subject::Receipt(*id)];
            self.complain(Checker::Blame, at, sentence, subjects);
        }
    }

    /// A node is to compare what it does not have.
    pub(crate) fn compares_unstored(&mut self, at: Mono, ix: Ix, name: &str, blob: BlobId) {
        let sentence = format!("{name} is to compare {blob}, which it has not stored");
        self.complain(Checker::Results, at, sentence, vec![Subject::Node(ix)]);
    }

    fn charged_twice(&mut self, at: Mono, (other, id): (ReceiptId, ReceiptId), seen: &Seen) {
        let key = seen.receipt.key;
        self.complain(
            Checker::Charge,
            at,
            format!(
                "unit {} of job {} is charged by receipt {other} and by receipt {id}",
                key.unit, seen.job
            ),
            vec![Subject::Job(seen.job), Subject::Agreement(key.agreement)],
        );
    }

    fn account(&mut self, parties: Parties) -> &mut Account {
        let account = self
            .accounts
            .entry(parties.channel(self.network))
            .or_default();
        account.parties = Some(parties);
        account
    }

    fn paid(&mut self, at: Mono, id: Hash, voucher: &Voucher) {
        let channel = voucher.parties.channel(self.network);
        for receipt in voucher.receipts.iter() {
            if self
                .paid_by
                .insert(*receipt, id)
                .is_some_and(|other| other != id)
            {
                self.complain(
                    Checker::Charge,
                    at,
                    format!("receipt {receipt} is paid by two vouchers"),
                    vec![Subject::Channel(channel), Subject::Receipt(*receipt)],
                );
            }
        }
        let account = self.account(voucher.parties);
        account.paid.insert(voucher.sequence, voucher.clone());
        account.paid_ids.insert(voucher.sequence, id);
        let before = account
            .paid
            .get(&(voucher.sequence - 1))
            .map_or(Total::ZERO, |before| before.cumulative);
        let sum = voucher.receipts.iter().try_fold(before, |sum, receipt| {
            sum.checked_add(*self.accepted.get(receipt)?)
        });
        if sum != Some(voucher.cumulative) {
            self.complain(
                Checker::Accounts,
                at,
                format!(
                    "voucher {} on channel {channel} does not add up to accepted receipts",
                    voucher.sequence
                ),
                vec![Subject::Channel(channel)],
            );
        }
    }

    fn earned(&mut self, at: Mono, id: Hash, voucher: &Voucher, ack: &VoucherAck) {
        let payer_honest = self.is_honest(voucher.parties.payer);
        let account = self.account(voucher.parties);
        account.earned.insert(voucher.sequence, id);
        let head = account.paid.keys().next_back().copied().unwrap_or(0);
        let acked = account.acked.keys().next_back().copied().unwrap_or(0);
        let unacked = usize::try_from(head.saturating_sub(acked)).unwrap_or(usize::MAX);
        let known = account.paid_ids.get(&voucher.sequence) == Some(&id);
        let wrong = if ack.voucher.0 != id {
            Some("is acknowledged by another's acknowledgement")
        } else if payer_honest && !known {
            Some("is not on its payer's disk")
        } else if payer_honest && unacked > VOUCHERS_UNACKED_MAX {
            Some("is one of too many unacknowledged")
        } else {
            None
        };
        if let Some(wrong) = wrong {
            let channel = voucher.parties.channel(self.network);
            self.complain(
                Checker::Accounts,
                at,
                format!("voucher {} on channel {channel} {wrong}", voucher.sequence),
                vec![Subject::Channel(channel)],
            );
        }
    }

    fn settled(&mut self, node: &Node, settlement: &Verified<Settlement>) {
        let parties = settlement.body().parties;
        let side = usize::from(node.peer_id() == parties.payer);
        let known = &mut self.account(parties).settled[side];
        known.insert(settlement.body().sequence, settlement.hash());
    }

    fn frozen(&mut self, at: Mono, node: &Node, voucher: &Voucher) {
        if self.is_honest(voucher.parties.payer) {
            let channel = voucher.parties.channel(self.network);
            self.complain(
                Checker::Accounts,
                at,
                format!("{} froze channel {channel} of an honest payer", node.name),
                vec![Subject::Channel(channel)],
            );
        }
    }
}

/// What is sent.
impl Checks {
    pub(crate) fn sent(&mut self, at: Mono, ix: Ix, node: &Node, after: Lsn, message: &Message) {
        if !node.is_honest() {
            return;
        }
        let durable = node.disk.upto();
        let missing = self.missing_on_disk(ix, node.peer_id(), message);
        if after > durable || missing.is_some() {
            let (what, subjects) = super::trace::describe(message, self.network);
            self.complain(
                Checker::Gating,
                at,
                format!(
                    "{} sends \"{what}\" which needs record {}, and {} is on disk{}",
                    node.name,
                    after.0,
                    durable.0,
                    missing.map_or_else(String::new, |what| format!(" without {what}"))
                ),
                subjects,
            );
        }
        self.results_are_kept(at, ix, node, message);
        self.repeats(at, node, message);
    }

    /// Whether what a message accepts or pays is on its sender's disk.
    fn results_are_kept(&mut self, at: Mono, ix: Ix, node: &Node, message: &Message) {
        let receipts = match message {
            Message::Acceptance(word)
                if word.body().verdict == Verdict::Accepted
                    && self.on_disk[ix].contains(&word.hash()) =>
            {
                vec![word.body().receipt]
            }
            Message::Voucher(voucher) if self.on_disk[ix].contains(&voucher.hash()) => {
                voucher.body().receipts.to_vec()
            }
            _ => return,
        };
        let is_kept =
            |blob: &BlobId| node.blobs.contains(blob) || self.written_outputs[ix].contains(blob);
        let lost = receipts
            .iter()
            .filter_map(|id| Some((*id, self.receipts.get(id)?)))
            .find(|(_, seen)| {
                let outputs = &seen.receipt.outputs;
                !outputs.iter().all(|output| is_kept(&output.blob.blob))
            });
        if let Some((id, _)) = lost {
            self.complain(
                Checker::Results,
                at,
                format!(
                    "{} accepts receipt {id} and can lose its outputs",
                    node.name
                ),
                vec![Subject::Receipt(id)],
            );
        }
    }

    /// What of our own signatures in a message is not on our disk.
    fn missing_on_disk(&self, ix: Ix, me: PeerId, message: &Message) -> Option<&'static str> {
        let disk = &self.on_disk[ix];
        let lacks = |hash: Hash, what| (!disk.contains(&hash)).then_some(what);
        match message {
            Message::Ask(request) => lacks(request.hash(), "the request"),
            Message::Quoted(quote) => lacks(quote.hash(), "the quote"),
            Message::Agree(agreement, _) => lacks(agreement.hash(), "the agreement"),
            Message::Agreed(id) => {
                (!self.agreed_reported[ix].contains(id)).then_some("the agreement")
            }
            Message::Receipt(receipt, _) => lacks(receipt.hash(), "the receipt"),
            Message::Acceptance(acceptance) => lacks(acceptance.hash(), "the acceptance"),
            Message::Voucher(voucher) => lacks(voucher.hash(), "the voucher"),
            Message::VoucherAck(ack) => lacks(ack.hash(), "the acknowledgement"),
            Message::Settlement(settlement) => lacks(settlement.hash(), "the settlement"),
            Message::Heads(heads) => heads
                .voucher
                .as_ref()
                .filter(|voucher| voucher.signer() == me)
                .and_then(|voucher| lacks(voucher.hash(), "the voucher"))
                .or_else(|| {
                    heads
                        .ack
                        .as_ref()
                        .filter(|ack| ack.signer() == me)
                        .and_then(|ack| lacks(ack.hash(), "the acknowledgement"))
                })
                .or_else(|| {
                    // A payer shows it only once it has it.
                    let settlement = heads.settlement.as_ref()?;
                    lacks(settlement.hash(), "the settlement")
                }),
            Message::Declined(..)
            | Message::AgreeRefused(..)
            | Message::Release(_)
            | Message::Grant(_)
            | Message::Progress(_)
            | Message::Log(_)
            | Message::Cancel(_)
            | Message::Resume(..)
            | Message::Lost(_)
            | Message::Checkpoint(..)
            | Message::Pull(_)
            | Message::Challenge(..)
            | Message::ChallengeDeclined(..)
            | Message::Committed(..)
            | Message::OpenCommitment(..)
            | Message::Opened(..)
            | Message::AskReferences
            | Message::References { .. }
            | Message::Offers { .. } => None,
        }
    }

    fn repeats(&mut self, at: Mono, node: &Node, message: &Message) {
        let (question, answer) = match message {
            Message::Quoted(quote) => (Question::Quote(quote.body().request.0), quote.hash()),
            Message::Agree(agreement, _) => (
                Question::Agreement(agreement.body().quote.0),
                agreement.hash(),
            ),
            Message::Receipt(receipt, _) => {
                let key = receipt.body().key;
                (
                    Question::Receipt(key.agreement, key.unit, key.index),
                    receipt.hash(),
                )
            }
            Message::Acceptance(acceptance) => (
                Question::Acceptance(acceptance.body().receipt),
                acceptance.hash(),
            ),
            Message::Voucher(voucher) => {
                let channel = voucher.body().parties.channel(self.network);
                (
                    Question::Voucher(channel, voucher.body().sequence),
                    voucher.hash(),
                )
            }
            Message::VoucherAck(ack) => {
                let channel = ack.body().parties.channel(self.network);
                (Question::Ack(channel, ack.body().sequence), ack.hash())
            }
            _ => return,
        };
        if self
            .said
            .insert(question, answer)
            .is_some_and(|before| before != answer)
        {
            let (what, subjects) = super::trace::describe(message, self.network);
            self.complain(
                Checker::Repeats,
                at,
                format!(
                    "{} sends \"{what}\", having signed something else before",
                    node.name
                ),
                subjects,
            );
        }
    }
}

/// What executors run, and who blames whom.
impl Checks {
    pub(crate) fn executes(&mut self, at: Mono, ix: Ix, node: &Node, agreement: AgreementId) {
        if !node.is_honest() {
            return;
        }
        // An execution shows nothing to anybody: that the record is on its way is enough.
        let is_written = |record: &Record| match record {
            Record::AgreedTo(known) => AgreementId::from(known.body().quote) == agreement,
            Record::QuotedFirm { quote, .. } => AgreementId(quote.hash()) == agreement,
            _ => false,
        };
        let known = self.agreed_reported[ix].contains(&agreement);
        if !known && !node.disk.unsynced().any(is_written) {
            self.complain(
                Checker::Gating,
                at,
                format!(
                    "{} runs {agreement} and has written nothing of it",
                    node.name
                ),
                vec![Subject::Agreement(agreement)],
            );
        }
        let (running, slots) = (node.running(), node.slots);
        if running > slots {
            self.complain(
                Checker::Capacity,
                at,
                format!("{} runs {running} executions on {slots} slots", node.name),
                vec![Subject::Agreement(agreement), Subject::Node(ix)],
            );
        }
    }

    /// An execution goes on where another stopped: from what is here, and where results
    /// are compared from nothing that an honest provider could be blamed for.
    pub(crate) fn resumes(
        &mut self,
        at: Mono,
        node: &Node,
        order: &ExecutionOrder,
        is_right: bool,
    ) {
        let agreement = order.id.agreement;
        let mut state = order.resume.iter().flat_map(Checkpoint::blobs);
        if !state.all(|blob| node.blobs.contains(&blob.blob)) {
            let sentence = format!("{} goes on from what it does not have", node.name);
            self.complain(
                Checker::Results,
                at,
                sentence,
                vec![Subject::Agreement(agreement)],
            );
        }
        let written = node.disk.records().iter().map(|(_, record)| record);
        let job = written.chain(node.disk.unsynced()).find_map(|record| {
            let (Record::Quoted { quote, .. } | Record::QuotedFirm { quote, .. }) = record else {
                return None;
            };
            (AgreementId(quote.hash()) == agreement).then(|| quote.body().job)
        });
        let copies = job.and_then(|job| self.copies.get(&job));
        if !is_right && node.is_honest() && copies.is_some_and(|copies| *copies > 1) {
            let sentence = format!(
                "{} goes on from a cheat's state, and its result is compared",
                node.name
            );
            self.complain(
                Checker::Blame,
                at,
                sentence,
                vec![Subject::Agreement(agreement)],
            );
        }
    }

    pub(crate) fn invariant(&mut self, at: Mono, ix: Ix, node: &Node, sentence: &str) {
        self.complain(
            Checker::Capacity,
            at,
            format!("{}: {sentence}", node.name),
            vec![Subject::Node(ix)],
        );
    }

    pub(crate) fn blames(&mut self, at: Mono, by: &Node, whom: &Node, why: &str) {
        if by.is_honest() && whom.is_honest() {
            self.complain(
                Checker::Blame,
                at,
                format!("{} blames {}: {why}", by.name, whom.name),
                vec![],
            );
        }
    }
}

/// After the quiet time.
impl Checks {
    pub(crate) fn end(&mut self, at: Mono, nodes: &[Node]) {
        let open: Vec<(Ix, JobId)> = self
            .jobs
            .iter()
            .filter(|(_, facts)| !facts.ended && facts.due < at)
            .map(|((_, job), facts)| (facts.node, *job))
            .collect();
        for (node, job) in open {
            self.complain(
                Checker::Deadline,
                at,
                format!("job {job} of node {node} has not ended"),
                vec![Subject::Job(job)],
            );
        }
        self.accounts_agree(at);
        self.all_is_paid(at);
        for node in nodes.iter().filter(|node| node.is_honest()) {
            self.all_is_here(at, node);
        }
    }

    fn accounts_agree(&mut self, at: Mono) {
        let mut wrong = Vec::new();
        for (channel, account) in &self.accounts {
            let honest = account.parties.is_some_and(|parties| {
                self.is_honest(parties.payer) && self.is_honest(parties.payee)
            });
            let heads = (
                account.paid_ids.last_key_value(),
                account.earned.last_key_value(),
            );
            let acked = account.acked.keys().next_back().copied().unwrap_or(0);
            let paid = account.paid_ids.keys().next_back().copied().unwrap_or(0);
            let [declared, heard] = account.settled.each_ref().map(BTreeMap::last_key_value);
            if honest && declared != heard {
                wrong.push((
                    *channel,
                    format!(
                        "settlements differ on channel {channel}: payee at {}, payer at {}",
                        declared.map_or(0, |(sequence, _)| *sequence),
                        heard.map_or(0, |(sequence, _)| *sequence)
                    ),
                ));
            }
            if honest && (heads.0 != heads.1 || acked != paid) {
                let earned = account.earned.keys().next_back().copied().unwrap_or(0);
                wrong.push((
                    *channel,
                    format!(
                        "heads differ on channel {channel}: payer at {paid}, acknowledged {acked}, payee at {earned}"
                    ),
                ));
            }
        }
        for (channel, sentence) in wrong {
            self.complain(
                Checker::Accounts,
                at,
                sentence,
                vec![Subject::Channel(channel)],
            );
        }
    }

    /// What a node has accepted is among its blobs, also after a restart.
    fn all_is_here(&mut self, at: Mono, node: &Node) {
        if node.peer.is_none() {
            return;
        }
        for (_, record) in node.disk.records() {
            let Record::Judged {
                receipt,
                acceptance,
                ..
            } = record
            else {
                continue;
            };
            let is_here = |output: &OutputRef| node.blobs.contains(&output.blob.blob);
            let accepted = acceptance.body().verdict == Verdict::Accepted;
            if accepted && !receipt.body().outputs.iter().all(is_here) {
                let id = ReceiptId(receipt.hash());
                self.complain(
                    Checker::Results,
                    at,
                    format!("{} has lost outputs of receipt {id}", node.name),
                    vec![Subject::Receipt(id)],
                );
            }
        }
    }

    fn all_is_paid(&mut self, at: Mono) {
        let unpaid: Vec<(ReceiptId, AgreementId)> = self
            .accepted
            .iter()
            .filter(|(id, amount)| **amount > Amount::ZERO && !self.paid_by.contains_key(id))
            .filter_map(|(id, _)| {
                let key = self.receipts.get(id)?.receipt.key;
                Some((*id, key.agreement))
            })
            .collect();
        for (receipt, agreement) in unpaid {
            self.complain(
                Checker::Accounts,
                at,
                format!("receipt {receipt} was accepted, and no voucher pays it"),
                vec![Subject::Receipt(receipt), Subject::Agreement(agreement)],
            );
        }
    }
}
