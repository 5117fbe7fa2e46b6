//! The client's side: from a job to its accepted results.
//!
//! ```text
//!           ┌──────────── nobody can now ────────────┐
//!           ▼                                        │
//! submit ─ Waiting ──offers fit──▶ Asking ──quotes──▶ Active ──all units accepted──▶ Ended(Done)
//!           ▲                        │                 │
//!           └─────── all decline ────┘                 ├─ provider lost, at fault ──▶ Waiting (attempt + 1)
//!           └──────────────────────────────────────────┘
//! any state ──cancel, deadline, the job's own fault──▶ Ended
//! ```
//!
//! One agreement at a time is live for a job. Giving one up is written down
//! before the next is asked for, and fences it: a receipt that comes late is
//! disputed as superseded, so that a unit may run twice and is never paid
//! twice. Everything sent is sent again until it is answered or its time is
//! over; the person does nothing.

mod active;
mod asking;
mod restore;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

pub(super) use self::asking::plan;
use self::{
    active::send_agreement,
    asking::{best_quote, longest},
};
use super::{
    Event, JobEvent, Kept, Output,
    core::{Core, Timer},
    ledger::Ledger,
};
use crate::{
    book::Book,
    deal::{Agreement, BlobRef, Deal, Quote, Request, UnitRange, Work, check_quote},
    envelope::{Body as _, Extensions, Verified},
    ids::{AccountId, AgreementId, BlobId, JobId, OfferId, PeerId, QuoteId, ReceiptId, RequestId},
    limits::{
        ASKS_MAX, ATTEMPTS_MAX, DISPUTES_MAX, EARLY_RECEIPTS_MAX, ENDED_JOBS_KEPT, EXCLUSIONS_MAX,
        JOBS_MAX, JUDGED_BYTES_MAX, LATE_TAKES_MAX, OUTPUTS_RESTORED, PAST_AGREEMENTS_KEPT,
        RUN_MAX, UNIT_RANGES_MAX,
    },
    message::{Decline, Frame, InlineBlob, InlineBlobs, LogLine, Progress},
    offer::Offer,
    rank::{self, Candidate, OfferFields, Plan, Want},
    receipt::{Acceptance, Outcome, Receipt, Verdict},
    record::{JobEnd, JobOrder, Lsn, Part, Record},
    registry::{Reason, Runtime, Verification},
    standing::Standings,
    units::{Amount, Meter, Millis, Mono, Now, Total, Wall},
    voucher::Parties,
    wire::List,
};

/// All jobs of a node's own.
#[derive(Debug, Default)]
pub(crate) struct Buyer {
    jobs: BTreeMap<JobId, Job>,
    by_request: BTreeMap<RequestId, JobId>,
    by_agreement: BTreeMap<AgreementId, JobId>,
    ended: VecDeque<JobId>,
    excluded: BTreeMap<PeerId, Exclusion>,
    /// What we have seen of providers.
    pub(crate) standings: Standings,
    past: Past,
    early: VecDeque<Early>,
    /// While records are replayed: the last outputs in them.
    small_outputs: VecDeque<InlineBlob>,
}

/// A receipt of a firm offer that we took, and whose countersignature is still
/// on its way: they travel on different streams.
#[derive(Debug)]
struct Early {
    from: PeerId,
    receipt: Verified<Receipt>,
    inline: Vec<InlineBlob>,
}

/// What is kept of jobs that are forgotten otherwise: a provider may have been
/// away all that time, and still needs our word on its receipts.
#[derive(Debug, Default)]
struct Past {
    agreements: BTreeMap<AgreementId, PastAgreement>,
    order: VecDeque<AgreementId>,
}

#[derive(Debug)]
struct PastAgreement {
    provider: PeerId,
    judged: BTreeMap<ReceiptId, Verified<Acceptance>>,
}

impl Past {
    fn keep(&mut self, job: &Job) {
        for (deal, _) in &job.agreements {
            let ours = |judged: &&Judged| judged.receipt.body().key.agreement == deal.id();
            let judged = job
                .judged
                .values()
                .filter(ours)
                .map(|judged| (ReceiptId(judged.receipt.hash()), judged.acceptance.clone()))
                .collect();
            let past = PastAgreement {
                provider: deal.provider(),
                judged,
            };
            self.agreements.insert(deal.id(), past);
            self.order.push_back(deal.id());
        }
        while self.order.len() > PAST_AGREEMENTS_KEPT {
            if let Some(oldest) = self.order.pop_front() {
                self.agreements.remove(&oldest);
            }
        }
    }
}

/// A provider that failed, left out until a time that doubles with each failure.
#[derive(Debug)]
struct Exclusion {
    failures: u32,
    until: Mono,
}

/// One job.
#[derive(Debug)]
struct Job {
    order: Box<JobOrder>,
    submitted: Wall,
    deadline: Mono,
    /// When this node began to look: at submission, or when it started.
    since: Mono,
    attempt: u32,
    state: State,
    /// Units whose results are not accepted yet.
    open: BTreeSet<u32>,
    /// Receipts that were accepted, and what they cost.
    spent: Amount,
    /// Agreements made for it, with what became of them. The last is live
    /// while the state is `Active`.
    agreements: Vec<(Deal, Option<Reason>)>,
    /// Our word on receipts: repeated when asked again.
    judged: BTreeMap<ReceiptId, Judged>,
    /// Firm offers that we tried to take and that nobody has answered. The
    /// answer is an agreement, however late it comes.
    takes: VecDeque<Ask>,
    /// What providers said no with, for this job.
    declined: BTreeMap<PeerId, (OfferId, Decline)>,
    /// Rounds in which nobody could.
    idle_rounds: u32,
    last_reason: Reason,
    cancelling: bool,
}

#[derive(Debug)]
struct Judged {
    receipt: Verified<Receipt>,
    acceptance: Verified<Acceptance>,
}

/// What a job is doing.
#[derive(Debug)]
enum State {
    /// Looking for offers again at its timer.
    Waiting,
    /// Asked some providers.
    Asking(Asking),
    /// An agreement stands.
    Active(Box<Active>),
    /// Over.
    Ended(JobEnd),
}

#[derive(Debug)]
struct Asking {
    asks: Vec<Ask>,
    /// When to choose among the quotes that are there.
    decide: Option<Mono>,
    /// When to give up waiting for any.
    give_up: Mono,
    resend: Mono,
    countered: bool,
}

/// One provider asked.
#[derive(Debug)]
struct Ask {
    offer: Verified<Offer>,
    /// What is expected there.
    candidate: Candidate,
    request: Verified<Request>,
    answer: Option<Result<Verified<Quote>, Decline>>,
}

/// A live agreement.
#[derive(Debug)]
struct Active {
    deal: Deal,
    acked: bool,
    /// When it was agreed, or its first step was reported: inputs travel before.
    began: Mono,
    /// When its provider was last heard of.
    heard: Mono,
    /// When the agreement must be over.
    give_up: Mono,
    /// Latest progress, by unit: number, done, total.
    progress: BTreeMap<u32, (u64, u64, u64)>,
    /// Receipts whose outputs are on their way.
    collecting: BTreeMap<ReceiptId, Collecting>,
    next_log: u64,
    fetch_tries: u32,
}

/// A result is accepted when nothing can lose it any more: its outputs are on
/// disk as blobs, or will be with the record that accepts it.
#[derive(Debug)]
struct Collecting {
    receipt: Verified<Receipt>,
    /// Outputs that are not on disk yet.
    missing: BTreeSet<BlobId>,
    /// Outputs that are written down with our word.
    small: Vec<InlineBlob>,
}

/// A job as people see it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct JobView {
    /// Its id.
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// Whom it is for.
    pub principal: String,
    /// When it was submitted.
    pub submitted: Wall,
    /// `waiting`, `asking`, `running`, or how it ended.
    pub state: &'static str,
    /// How it ended, if it has.
    pub end: Option<JobEnd>,
    /// How often it was tried.
    pub attempt: u32,
    /// The provider of the live or last agreement.
    pub provider: Option<PeerId>,
    /// The live or last agreement.
    pub agreement: Option<AgreementId>,
    /// Steps done and in all, over all units that run.
    pub progress: (u64, u64),
    /// Units without accepted result, and all units.
    pub units: (u32, u32),
    /// What its accepted receipts cost.
    pub spent: Amount,
    /// What each provider that declined said.
    pub declined: Vec<(PeerId, Decline)>,
    /// Its accepted receipts.
    pub receipts: Vec<ReceiptId>,
}

/// Commands.
impl Buyer {
    /// Takes a job. A job that is known already is not taken twice.
    pub(crate) fn submit(
        &mut self,
        core: &mut Core,
        book: &Book,
        ledger: &mut Ledger,
        order: Box<JobOrder>,
    ) {
        let job = order.job;
        if self.jobs.contains_key(&job) {
            return;
        }
        if let Err(reason) = self.check_order(&order) {
            return core.tell(Event::Job {
                job,
                event: JobEvent::Refused(reason),
            });
        }
        let lsn = core.persist(Record::Submitted {
            order: order.clone(),
            at: core.now.wall,
        });
        core.tell_after(
            lsn,
            Event::Job {
                job,
                event: JobEvent::Submitted,
            },
        );
        let deadline = core.now.mono.after(order.total.duration());
        self.jobs
            .insert(job, Job::new(order, core.now, core.now.wall, deadline));
        self.look_for_offers(core, book, ledger, job);
    }

    /// What would make requests that nobody accepts, and that our own journal
    /// could not be read with, is not taken.
    fn check_order(&self, order: &JobOrder) -> Result<(), Reason> {
        if self.jobs.len() >= JOBS_MAX {
            return Err(Reason::BUSY);
        }
        if order.needs.run_max.duration() > RUN_MAX {
            return Err(Reason::TOO_LONG);
        }
        order.work.check().map_err(|_| Reason::NO_SUCH_WORK)
    }

    /// Stops a job as soon as its provider can. What it writes survives a
    /// restart: a job that was cancelled does not begin again.
    pub(crate) fn cancel(&mut self, core: &mut Core, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        match &mut job.state {
            State::Ended(_) => {}
            State::Waiting => self.end(core, id, JobEnd::Cancelled),
            State::Asking(_) => {
                self.leave_asking(core, id, None);
                self.end(core, id, JobEnd::Cancelled);
            }
            State::Active(_) => {
                if !job.cancelling {
                    core.persist(Record::Cancelling { job: id });
                }
                job.cancelling = true;
                self.stop(core, id);
            }
        }
    }

    /// Tells the provider to stop, and does not wait for long that it has.
    fn stop(&mut self, core: &mut Core, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if let State::Active(active) = &mut job.state {
            let patience = core.now.mono.after(core.config.timing.lost_after);
            active.give_up = active.give_up.min(patience);
            core.send(active.deal.provider(), Frame::Cancel(active.deal.id()));
            wake(core, job, core.config.timing.heartbeat);
        }
    }
}

/// Looks at a job again after a while, and at its deadline at the latest.
fn wake(core: &mut Core, job: &Job, after: Duration) {
    let at = core.now.mono.after(after).min(job.deadline);
    core.timers.set(Timer::Job(job.order.job), at);
}

impl Job {
    fn new(order: Box<JobOrder>, now: Now, submitted: Wall, deadline: Mono) -> Self {
        Self {
            open: order.work.units().into_iter().collect(),
            order,
            submitted,
            deadline,
            since: now.mono,
            attempt: 0,
            state: State::Waiting,
            spent: Amount::ZERO,
            agreements: Vec::new(),
            judged: BTreeMap::new(),
            takes: VecDeque::new(),
            declined: BTreeMap::new(),
            idle_rounds: 0,
            last_reason: Reason::NO_OFFER,
            cancelling: false,
        }
    }

    /// The work that is still to be done.
    fn remaining(&self) -> Work {
        match &self.order.work {
            Work::Array { inputs_each, .. } => Work::Array {
                units: ranges(&self.open),
                inputs_each: *inputs_each,
            },
            whole @ (Work::Job | Work::Lease { .. }) => whole.clone(),
        }
    }

    /// Writes down why an agreement was given up.
    fn fence(&mut self, agreement: AgreementId, reason: Reason) {
        let known = self.agreements.iter_mut();
        for (_, fate) in known.filter(|(deal, _)| deal.id() == agreement) {
            *fate = Some(reason);
        }
    }

    fn deal(&self, agreement: AgreementId) -> Option<&Deal> {
        self.agreements
            .iter()
            .map(|(deal, _)| deal)
            .find(|deal| deal.id() == agreement)
    }

    /// Whether a provider's no still stands for its current offer.
    fn was_declined(&self, offer: &Verified<Offer>) -> bool {
        self.declined
            .get(&offer.signer())
            .is_some_and(|(id, decline)| id.0 == offer.hash() && !is_passing(decline.reason))
    }
}

/// Units as ranges, as many as a request may name.
fn ranges(units: &BTreeSet<u32>) -> List<UnitRange, UNIT_RANGES_MAX> {
    let mut ranges: Vec<UnitRange> = Vec::new();
    for &unit in units {
        match ranges.last_mut() {
            Some(last) if last.first + last.count == unit => last.count += 1,
            _ => ranges.push(UnitRange {
                first: unit,
                count: 1,
            }),
        }
    }
    List::truncated(ranges)
}

/// A no that may be a yes in a moment.
const fn is_passing(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::BUSY
            | Reason::TOO_MANY_HOLDS
            | Reason::STRANGERS_EXHAUSTED
            | Reason::QUOTE_EXPIRED
            | Reason::QUOTE_UNKNOWN
            | Reason::STORE_FULL
            | Reason::OFFER_GONE
    )
}

fn paying_parties(core: &Core, offer: &Verified<Offer>) -> Parties {
    Parties {
        payer: core.me(),
        payer_account: core.config.account,
        payee: offer.signer(),
        payee_account: offer.body().account,
    }
}

pub(crate) fn deal_parties(deal: &Deal) -> Parties {
    let quote = deal.quote().body();
    Parties {
        payer: deal.client(),
        payer_account: quote.client_account,
        payee: deal.provider(),
        payee_account: quote.account,
    }
}

/// Timers and connections.
impl Buyer {
    pub(crate) fn on_timer(
        &mut self,
        core: &mut Core,
        book: &Book,
        ledger: &mut Ledger,
        id: JobId,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if core.now.mono >= job.deadline && !matches!(job.state, State::Ended(_)) {
            return self.expire(core, id);
        }
        match &job.state {
            State::Waiting => self.look_for_offers(core, book, ledger, id),
            State::Asking(_) => self.ask_again(core, ledger, id),
            State::Active(_) => self.watch(core, id),
            State::Ended(_) => {}
        }
    }

    fn expire(&mut self, core: &mut Core, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        match &job.state {
            State::Asking(_) => self.leave_asking(core, id, None),
            State::Active(active) => {
                let (provider, agreement) = (active.deal.provider(), active.deal.id());
                let record = Record::GaveUp {
                    job: id,
                    agreement,
                    reason: Reason::JOB_DEADLINE,
                };
                let lsn = core.persist(record);
                core.send_after(lsn, provider, Frame::Cancel(agreement));
            }
            State::Waiting | State::Ended(_) => {}
        }
        self.end(core, id, JobEnd::Expired);
    }

    /// Asks again those who have not answered; in the end, leaves them out.
    fn ask_again(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let State::Asking(asking) = &mut job.state else {
            return;
        };
        let now = core.now.mono;
        if now >= asking.give_up && asking.decide.is_none() {
            let silent: Vec<PeerId> = asking
                .asks
                .iter()
                .filter(|ask| ask.answer.is_none())
                .map(|ask| ask.offer.signer())
                .collect();
            self.leave_asking(core, id, None);
            for peer in silent {
                self.exclude(core, peer);
            }
            // They used up the patience: the next best have not been asked yet.
            if let Some(job) = self.jobs.get_mut(&id) {
                job.since = now;
            }
            return self.wait(core, id, false);
        }
        if now >= asking.resend {
            for ask in asking.asks.iter().filter(|ask| ask.answer.is_none()) {
                core.send_again(ask.offer.signer(), Frame::Ask(ask.request.raw()));
            }
            asking.resend = now.after(core.config.timing.resend);
        }
        let due = asking.decide.is_some_and(|at| at <= now);
        if due && best_quote(asking, &job.order, core.now).is_none() {
            // All that came has run out while others kept us waiting.
            self.leave_asking(core, id, None);
            return self.wait(core, id, false);
        }
        self.decide_if_ready(core, ledger, id);
    }

    /// Looks after a live agreement: repeats what was not answered, asks a
    /// silent provider, and gives it up when it stays silent.
    fn watch(&mut self, core: &mut Core, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let State::Active(active) = &mut job.state else {
            return;
        };
        let timing = &core.config.timing;
        let (resend, heartbeat, lost_after) = (timing.resend, timing.heartbeat, timing.lost_after);
        let silent = core.now.mono.since(active.heard);
        if silent >= lost_after || core.now.mono >= active.give_up {
            return self.give_up(core, id, Reason::PROVIDER_LOST);
        }
        let deal = active.deal.clone();
        // One that is asked to go on, or given the agreement again, would begin.
        if job.cancelling {
            core.send(deal.provider(), Frame::Cancel(deal.id()));
        } else if !active.acked {
            send_agreement(core, core.outbox.last(), &deal, &job.order);
        } else if silent >= heartbeat * 2 {
            send_resume(core, job, &deal);
        }
        let State::Active(active) = &job.state else {
            return;
        };
        let pause = if active.acked && !job.cancelling {
            heartbeat
        } else {
            resend
        };
        let next = core
            .now
            .mono
            .after(pause)
            .min(active.heard.after(lost_after));
        core.timers
            .set(Timer::Job(id), next.min(active.give_up).min(job.deadline));
    }

    /// A connection came or went: live agreements there are asked about at once.
    pub(crate) fn on_connection(&mut self, core: &mut Core, peer: PeerId) {
        for job in self.jobs.values() {
            if let State::Active(active) = &job.state
                && active.deal.provider() == peer
            {
                let deal = active.deal.clone();
                if job.cancelling {
                    core.send(peer, Frame::Cancel(deal.id()));
                } else if active.acked {
                    send_resume(core, job, &deal);
                } else {
                    send_agreement(core, core.outbox.last(), &deal, &job.order);
                }
            }
        }
    }

    pub(crate) fn view(&self, id: JobId) -> Option<JobView> {
        self.jobs.get(&id).map(Job::view)
    }

    pub(crate) fn views(&self) -> Vec<JobView> {
        self.jobs.values().map(Job::view).collect()
    }

    /// What open jobs still need: their specs and inputs.
    pub(crate) fn needed_blobs(&self) -> impl Iterator<Item = BlobId> {
        self.jobs
            .values()
            .filter(|job| !matches!(job.state, State::Ended(_)))
            .flat_map(|job| std::iter::once(&job.order.spec).chain(job.order.inputs.iter()))
            .map(|blob| blob.blob)
    }

    /// What a peer may read of ours under an agreement.
    pub(crate) fn may_read(&self, reader: PeerId, agreement: AgreementId, blob: BlobId) -> bool {
        self.by_agreement
            .get(&agreement)
            .and_then(|id| self.jobs.get(id))
            .is_some_and(|job| match &job.state {
                State::Active(active) => {
                    active.deal.id() == agreement
                        && active.deal.provider() == reader
                        && (job.order.spec.blob == blob
                            || job.order.inputs.iter().any(|input| input.blob == blob))
                }
                State::Waiting | State::Asking(_) | State::Ended(_) => false,
            })
    }
}

/// Asks a provider where it is, showing the receipts that we have.
fn send_resume(core: &mut Core, job: &Job, deal: &Deal) {
    let have: Vec<_> = job
        .judged
        .values()
        .filter(|judged| judged.receipt.body().key.agreement == deal.id())
        .map(|judged| judged.receipt.raw())
        .collect();
    core.send(
        deal.provider(),
        Frame::Resume(deal.id(), List::truncated(have)),
    );
}

impl Job {
    fn view(&self) -> JobView {
        let deal = self.agreements.last().map(|(deal, _)| deal);
        let (state, end, progress) = match &self.state {
            State::Waiting => ("waiting", None, (0, 0)),
            State::Asking(_) => ("asking", None, (0, 0)),
            State::Active(active) => {
                let sums = active.progress.values().fold((0u64, 0u64), |sum, p| {
                    (sum.0.saturating_add(p.1), sum.1.saturating_add(p.2))
                });
                ("running", None, sums)
            }
            State::Ended(end) => (end_word(*end), Some(*end), (0, 0)),
        };
        JobView {
            job: self.order.job,
            name: self.order.name.to_string(),
            principal: self.order.principal.to_string(),
            submitted: self.submitted,
            state,
            end,
            attempt: self.attempt,
            provider: deal.map(Deal::provider),
            agreement: deal.map(Deal::id),
            progress,
            units: (
                u32::try_from(self.open.len()).unwrap_or(u32::MAX),
                self.order.work.unit_count(),
            ),
            spent: self.spent,
            declined: self
                .declined
                .iter()
                .map(|(peer, (_, decline))| (*peer, *decline))
                .collect(),
            receipts: self
                .judged
                .iter()
                .filter(|(_, judged)| judged.acceptance.body().verdict == Verdict::Accepted)
                .map(|(receipt, _)| *receipt)
                .collect(),
        }
    }
}

/// The one word for an end.
pub const fn end_word(end: JobEnd) -> &'static str {
    match end {
        JobEnd::Done => "done",
        JobEnd::Failed(_) => "failed",
        JobEnd::Cancelled => "cancelled",
        JobEnd::Declined(_) => "declined",
        JobEnd::Expired => "expired",
    }
}

/// The total that a node's accepted receipts cost: for invariants and checkers.
impl Buyer {
    pub(crate) fn accepted_total(&self) -> Total {
        self.jobs.values().fold(Total::ZERO, |sum, job| {
            sum.checked_add(job.spent).unwrap_or(sum)
        })
    }
}
