//! The client's side: from a job to its accepted results.
//!
//! ```text
//!              ┌──────── nobody can now ────────┐
//!              ▼                                │
//! submit ─▶ seeking ──offers fit──▶ a round of requests ──quotes──▶ live agreements
//!              ▲                                                          │ receipts
//!              │ units that need another run: a provider is lost,         ▼
//!              │ at fault or late, or results differ               held, compared
//!              └──────────────────────────────────────────────────────────┤
//!                                                                         ▼
//! cancel, deadline, too many failures ──▶ ended ◀── all units decided ── judged
//! ```
//!
//! A job is a set of units; a single job has one, with the number 0. Several
//! agreements may be live for it: over different units of an array, or over the
//! same one, where its results are to be compared or one is late. A unit is
//! decided once, by the first result or by as many equal ones as the job asks
//! for, and those are paid; a receipt that comes for it afterwards is disputed
//! as superseded. Giving an agreement up is written down before its units are
//! asked for elsewhere. Everything sent is sent again until it is answered or its
//! time is over; the person does nothing.
//!
//! [`asking`] has the rounds, [`spread`] says which units go where, [`active`]
//! watches what is agreed, [`likeness`] says which results are equal, [`products`]
//! which are what the job says of them, [`verdict`] judges them.

mod active;
mod asking;
mod budgets;
mod checkpoints;
mod counting;
mod likeness;
mod products;
mod restore;
mod sites;
mod spread;
mod staying;
mod verdict;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

pub use self::budgets::BudgetView;
use self::{
    active::send_agreement,
    asking::longest,
    budgets::Spending,
    checkpoints::{Arriving, Reached},
    counting::Counted,
    likeness::{Comparisons, Likeness},
    products::Proof,
    sites::{Common, Crowd, Runner},
    spread::{Share, Wanted},
    staying::Staying,
};
use super::{
    Budget, ComparedOutput, Comparison, ComparisonId, Event, FetchOrder, Fetched, JobEvent, Kept,
    Output, ProductCheck, ProductsCheck, ResultId,
    core::{Core, Timer},
    ledger::Ledger,
};
use crate::{
    book::Book,
    deal::{
        self, Agreement, BlobRef, Checkpoint, Deal, Quote, Request, UnitRange, UnitRanges, Work,
        check_quote,
    },
    envelope::{Body as _, Extensions, Verified},
    ids::{
        AccountId, AgreementId, BlobId, Hash, JobId, OfferId, PeerId, QuoteId, ReceiptId, RequestId,
    },
    limits::{
        AGREEMENTS_PER_JOB_MAX, ASKS_MAX, ATTEMPTS_MAX, COMPARISONS_MAX, DISPUTES_MAX,
        EARLY_BYTES_MAX, EARLY_RECEIPTS_MAX, ENDED_JOBS_KEPT, EXCLUSIONS_MAX, HOLDS_PER_CLIENT,
        INLINE_BYTES_MAX, INPUTS_MAX, JOBS_MAX, JUDGED_BYTES_MAX, LATE_TAKES_MAX, OUTPUTS_RESTORED,
        PASSED_LATE_MAX, PASSED_MAX, PAST_AGREEMENTS_KEPT, RESULTS_MORE_MAX, ROUND_MAX, RUN_MAX,
        SHARE_MAX, UNIT_RANGES_MAX,
    },
    message::{Decline, Frame, InlineBlob, InlineBlobs, LogLine, Progress},
    offer::{Figures, Name, Offer},
    rank::{self, Candidate, Named, OfferFields, PLAN_MAX, Plan, View, Want},
    receipt::{Acceptance, Outcome, Receipt, ReceiptKey, Verdict},
    record::{JobEnd, JobOrder, Lsn, Part, Record},
    registry::{Reason, Runtime, Verification},
    standing::Failing,
    tolerance::Within,
    units::{Amount, Meter, Millis, Mono, Now, Total, Wall},
    voucher::Parties,
    wire::List,
};

/// After so long without a failure, half of what a provider failed counts no more.
const QUIET: Duration = Duration::from_secs(60 * 60);
/// How often the time doubles for which a failing provider is left out: an hour and more.
const EXCLUSION_DOUBLINGS: u32 = 8;

/// All jobs of a node's own.
#[derive(Debug, Default)]
pub(crate) struct Buyer {
    jobs: BTreeMap<JobId, Job>,
    by_request: BTreeMap<RequestId, JobId>,
    by_agreement: BTreeMap<AgreementId, JobId>,
    ended: VecDeque<JobId>,
    excluded: LeftOut,
    /// Providers that had no slot free for a single job of ours, for a moment.
    full: LeftOut,
    past: Past,
    spending: Spending,
    /// What principals may spend by the node's word, beside the configuration's.
    granted: BTreeMap<Name, Budget>,
    comparisons: Comparisons,
    staying: Staying,
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
        let mut judged: BTreeMap<AgreementId, BTreeMap<_, _>> = BTreeMap::new();
        for (id, known) in &job.judged {
            let of = judged.entry(known.receipt.body().key.agreement);
            of.or_default().insert(*id, known.acceptance.clone());
        }
        for (&id, made) in &job.agreements {
            let past = PastAgreement {
                provider: made.deal.provider(),
                judged: judged.remove(&id).unwrap_or_default(),
            };
            self.agreements.insert(id, past);
            self.order.push_back(id);
        }
        while self.order.len() > PAST_AGREEMENTS_KEPT {
            if let Some(oldest) = self.order.pop_front() {
                self.agreements.remove(&oldest);
            }
        }
    }
}

/// Providers that are left out for a while.
#[derive(Debug, Default)]
struct LeftOut(BTreeMap<PeerId, Exclusion>);

/// A provider that failed, or had no slot free, left out for a time that doubles with
/// each failure. What it did well since, and each quiet hour after that time, halve what
/// counts against it.
#[derive(Debug)]
struct Exclusion {
    failures: u32,
    until: Mono,
}

impl Exclusion {
    /// Failures that still count.
    fn counted(&self, now: Mono) -> u32 {
        let quiet = now.since(self.until).as_millis() / QUIET.as_millis();
        let halvings = u32::try_from(quiet).unwrap_or(u32::MAX);
        self.failures.checked_shr(halvings).unwrap_or(0)
    }

    /// Whether it still says anything.
    fn counts(&self, now: Mono) -> bool {
        self.until > now || self.counted(now) > 0
    }
}

impl LeftOut {
    /// Leaves one out: for so long, and twice as long each time, so many times over.
    fn add(&mut self, now: Mono, peer: PeerId, pause: Duration, doublings_max: u32) {
        if self.0.len() >= EXCLUSIONS_MAX {
            self.0.retain(|_, exclusion| exclusion.until > now);
        }
        if self.0.len() >= EXCLUSIONS_MAX {
            return;
        }
        let exclusion = self.0.entry(peer).or_insert(Exclusion {
            failures: 0,
            until: now,
        });
        let failures = exclusion.counted(now);
        let pause = pause * (1 << failures.min(doublings_max));
        exclusion.failures = failures.min(doublings_max) + 1;
        exclusion.until = now.after(pause);
    }

    fn has(&self, now: Mono, peer: PeerId) -> bool {
        (self.0.get(&peer)).is_some_and(|exclusion| exclusion.until > now)
    }

    /// One did well. It stays out for as long as it was left out.
    fn did_well(&mut self, now: Mono, peer: PeerId) {
        if let Some(exclusion) = self.0.get_mut(&peer) {
            exclusion.failures /= 2;
            if !exclusion.counts(now) {
                self.0.remove(&peer);
            }
        }
    }

    fn remove(&mut self, peer: PeerId) {
        self.0.remove(&peer);
    }
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
    /// Providers that are asked now.
    round: Option<Round>,
    /// Agreements from which receipts are still expected.
    live: BTreeMap<AgreementId, Active>,
    end: Option<JobEnd>,
    /// Units that are not decided yet.
    open: BTreeSet<u32>,
    /// Live agreements that are to run a unit.
    runs: BTreeMap<u32, Vec<AgreementId>>,
    /// Results that wait for others of the same unit.
    held: BTreeMap<u32, Vec<Held>>,
    /// What is known of pairs of those, by their digests.
    compared: BTreeMap<u32, BTreeMap<[Hash; 2], Likeness>>,
    /// What is known of their products, by their digests.
    proven: BTreeMap<u32, BTreeMap<Hash, Proof>>,
    /// Units whose results are compared though the job asks for one only.
    audited: BTreeSet<u32>,
    /// Units that failed by the job's own fault.
    failed: BTreeMap<u32, Reason>,
    /// Receipts that were accepted, and what they cost.
    spent: Amount,
    /// All agreements made for it.
    agreements: BTreeMap<AgreementId, Made>,
    latest: Option<AgreementId>,
    /// Our word on receipts: repeated when asked again.
    judged: BTreeMap<ReceiptId, Judged>,
    /// Firm offers that we tried to take and that nobody has answered. The
    /// answer is an agreement, however late it comes.
    takes: VecDeque<Ask>,
    /// What providers said no with, for this job.
    declined: BTreeMap<PeerId, (OfferId, Decline)>,
    /// Providers of an array that can't take more for a moment.
    busy: BTreeMap<PeerId, Busy>,
    /// Providers whose turn is not worth the wait, while others have not been asked.
    too_late: BTreeSet<PeerId>,
    /// Rounds in which nobody could.
    idle_rounds: u32,
    /// How far units have come.
    reached: BTreeMap<u32, Reached>,
    /// Units that no checkpoint counts for any more.
    anew: BTreeSet<u32>,
    /// Inputs that are brought home before anybody is asked.
    coming: BTreeSet<BlobId>,
    /// Agreements given up since the last result.
    losses: u32,
    /// How long a unit takes, as far as seen.
    pace: Pace,
    last_reason: Reason,
    cancelling: bool,
}

/// An agreement, and what became of it.
#[derive(Debug)]
struct Made {
    deal: Deal,
    /// Why it was given up.
    fate: Option<Reason>,
    /// Receipts of it that were disputed.
    disputes: usize,
    /// Parts that were accepted: unit and index.
    accepted: BTreeSet<(u32, u32)>,
}

/// A provider that said no for a moment.
#[derive(Debug)]
struct Busy {
    times: u32,
    until: Mono,
    /// What it lends us, if that was why.
    credit: Option<Amount>,
}

/// How long units take, over all providers: a mean that follows the newest.
#[derive(Debug, Default, Clone, Copy)]
struct Pace {
    seen: u32,
    mean: Duration,
}

impl Pace {
    fn saw(&mut self, took: Duration) {
        self.mean = match self.seen {
            0 => took,
            _ => (self.mean * 7 + took) / 8,
        };
        self.seen = self.seen.saturating_add(1);
    }
}

#[derive(Debug)]
struct Judged {
    receipt: Verified<Receipt>,
    acceptance: Verified<Acceptance>,
}

/// Providers asked at once.
#[derive(Debug)]
struct Round {
    asks: Vec<Ask>,
    /// Whether each was asked for a share of its own, so that all are taken.
    /// Otherwise the best is.
    spread: bool,
    /// What the best of those who are not asked is worth, if nobody is before us there.
    next: Option<rank::Score>,
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
    /// Units whose last receipt is still expected.
    left: BTreeSet<u32>,
    /// Those that were decided elsewhere before its own result was here.
    overtaken: BTreeSet<u32>,
    acked: bool,
    /// When it was agreed, or its first step was reported, or its last unit was
    /// done: inputs travel before.
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
    /// A checkpoint of which not all is here,
    arriving: Option<Arriving>,
    /// and when all of the last one was.
    reached_at: Option<Mono>,
    /// What of a lease was counted here, if anybody counts.
    counted: Option<Counted>,
}

/// A result that waits for others of the same unit.
#[derive(Debug)]
struct Held {
    /// Whose it is: two of one account say no more than one.
    account: AccountId,
    receipt: Verified<Receipt>,
    /// Outputs that are written down with our word.
    small: Vec<InlineBlob>,
    /// Outputs that came along.
    here: Vec<BlobId>,
    /// How it ended, and its outputs: those of one digest are the same.
    digest: Hash,
    /// What it must have in common with others to be equal to them.
    shape: Hash,
    /// This node could not check its products.
    unread: bool,
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
    /// Outputs that came along.
    here: Vec<BlobId>,
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
    /// Units that could go on where they are, and after how many steps.
    pub reached: Vec<(u32, u64)>,
    /// Units that failed by the job's own fault.
    pub failed: Vec<(u32, Reason)>,
    /// Who works on it now: the provider, the agreement, and the units that are
    /// still expected of it.
    pub live: Vec<(PeerId, AgreementId, u32)>,
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
        let checked = self.check_order(&order).map_err(Decline::from);
        if let Err(decline) = checked.and_then(|()| self.check_budget(core, &order)) {
            return core.tell(Event::Job {
                job,
                event: JobEvent::Refused(decline),
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
        self.seek(core, book, ledger, job);
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
        order.check_products().map_err(|_| Reason::NO_SUCH_WORK)?;
        order.work.check().map_err(|_| Reason::NO_SUCH_WORK)
    }

    /// Stops a job as soon as its providers can. What it writes survives a
    /// restart: a job that was cancelled does not begin again.
    pub(crate) fn cancel(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.end.is_some() {
            return;
        }
        let working = !job.live.is_empty();
        if working && !job.cancelling {
            core.persist(Record::Cancelling { job: id });
        }
        job.cancelling = true;
        self.leave_round(core, id, None);
        if working {
            self.stop(core, id);
        } else {
            self.end(core, ledger, id, JobEnd::Cancelled);
        }
    }

    /// Tells the providers to stop, and does not wait for long that they have.
    fn stop(&mut self, core: &mut Core, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let patience = core.now.mono.after(core.config.timing.lost_after);
        for (&agreement, active) in &mut job.live {
            active.give_up = active.give_up.min(patience);
            core.send(active.deal.provider(), Frame::Cancel(agreement));
            core.wake(Timer::Served(agreement), core.config.timing.heartbeat);
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
            round: None,
            live: BTreeMap::new(),
            end: None,
            runs: BTreeMap::new(),
            held: BTreeMap::new(),
            compared: BTreeMap::new(),
            proven: BTreeMap::new(),
            audited: BTreeSet::new(),
            failed: BTreeMap::new(),
            spent: Amount::ZERO,
            agreements: BTreeMap::new(),
            latest: None,
            judged: BTreeMap::new(),
            takes: VecDeque::new(),
            declined: BTreeMap::new(),
            busy: BTreeMap::new(),
            too_late: BTreeSet::new(),
            idle_rounds: 0,
            reached: BTreeMap::new(),
            anew: BTreeSet::new(),
            coming: BTreeSet::new(),
            losses: 0,
            pace: Pace::default(),
            last_reason: Reason::NO_OFFER,
            cancelling: false,
        }
    }

    /// Whether each provider gets a share, instead of the best all. One that has given a
    /// result already gets none of the same unit.
    fn spreads(&self) -> bool {
        let copies = self.order.verify.replicas > 1 || !self.audited.is_empty();
        copies || !self.held.is_empty() || matches!(self.order.work, Work::Array { .. })
    }

    /// Whether one agreement at a time is all that it can have.
    fn is_alone(&self) -> bool {
        !self.spreads() && self.order.verify.told() == Verification::HASHES
    }

    /// Writes down why an agreement was given up.
    fn fence(&mut self, agreement: AgreementId, reason: Reason) {
        if let Some(made) = self.agreements.get_mut(&agreement) {
            made.fate = Some(reason);
        }
    }

    fn deal(&self, agreement: AgreementId) -> Option<&Deal> {
        self.agreements.get(&agreement).map(|made| &made.deal)
    }

    /// Expects nothing more of an agreement.
    fn leave(&mut self, core: &mut Core, agreement: AgreementId) -> Option<Active> {
        core.timers.clear(Timer::Served(agreement));
        let active = self.live.remove(&agreement)?;
        for unit in &active.left {
            self.no_longer_runs(*unit, agreement);
        }
        Some(active)
    }

    fn no_longer_runs(&mut self, unit: u32, agreement: AgreementId) {
        if let Some(runs) = self.runs.get_mut(&unit) {
            runs.retain(|id| *id != agreement);
            if runs.is_empty() {
                self.runs.remove(&unit);
            }
        }
    }

    /// Puts an agreement among those that stand.
    fn stands(&mut self, active: Active) {
        let id = active.deal.id();
        for unit in &active.left {
            self.runs.entry(*unit).or_default().push(id);
        }
        self.live.insert(id, active);
    }

    /// Knows an agreement. The first is the latest, until one is made that stands.
    fn made(&mut self, deal: Deal, fate: Option<Reason>) {
        self.latest.get_or_insert_with(|| deal.id());
        let made = Made {
            deal,
            fate,
            disputes: 0,
            accepted: BTreeSet::new(),
        };
        self.agreements.insert(made.deal.id(), made);
    }

    /// What is not spent, and not promised to anybody.
    fn unspent(&self) -> Amount {
        let promised = self.live.values().map(Active::promised);
        let held = self.held.values().flatten();
        let held = held.map(|held| held.receipt.body().amount);
        let taken = promised
            .chain(held)
            .fold(self.spent, Amount::saturating_add);
        self.order.budget.saturating_sub(taken)
    }

    /// Whether a provider's no still stands for its current offer.
    fn was_declined(&self, book: &Book, provider: PeerId) -> bool {
        self.declined.get(&provider).is_some_and(|(id, decline)| {
            let stands = book.of(provider).is_some_and(|offer| id.0 == offer.hash());
            stands && !is_passing(decline.reason)
        })
    }
}

impl Job {
    /// Why nobody took it, if nobody ever did and somebody was asked.
    fn refused(&self) -> Option<Reason> {
        if !self.agreements.is_empty() {
            return None;
        }
        match self.last_reason {
            // Those who said when its turn would come said: too late.
            Reason::NO_OFFER => (!self.too_late.is_empty()).then_some(Reason::BUSY),
            reason => Some(reason),
        }
    }
}

impl Active {
    /// What it may still cost.
    fn promised(&self) -> Amount {
        let quote = self.deal.quote().body();
        let units = u32::try_from(self.left.len()).unwrap_or(u32::MAX);
        rank::times(quote.unit_cap, units).min(quote.cap)
    }
}

/// Units as ranges, as many as a request may name.
fn ranges(units: &BTreeSet<u32>) -> UnitRanges {
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
        if job.end.is_some() {
            return;
        }
        if core.now.mono >= job.deadline {
            self.expire(core, ledger, id);
        } else if job.cancelling && job.live.is_empty() {
            self.end(core, ledger, id, JobEnd::Cancelled);
        } else if job.round.is_some() {
            self.ask_again(core, ledger, id);
        } else {
            self.seek(core, book, ledger, id);
        }
    }

    fn expire(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId) {
        self.leave_round(core, id, None);
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let live: Vec<AgreementId> = job.live.keys().copied().collect();
        for agreement in live {
            let record = Record::GaveUp {
                job: id,
                agreement,
                reason: Reason::JOB_DEADLINE,
            };
            core.persist(record);
            job.fence(agreement, Reason::JOB_DEADLINE);
        }
        let end = match job.refused() {
            Some(reason) => JobEnd::Declined(reason),
            None => JobEnd::Expired,
        };
        self.end(core, ledger, id, end);
    }

    /// A connection came or went: live agreements there are asked about at once.
    pub(crate) fn on_connection(&mut self, core: &mut Core, peer: PeerId) {
        for job in self.jobs.values() {
            let there = |active: &&Active| active.deal.provider() == peer;
            for active in job.live.values().filter(there) {
                if job.cancelling {
                    core.send(peer, Frame::Cancel(active.deal.id()));
                } else if active.acked {
                    send_resume(core, job, active);
                } else {
                    send_agreement(core, core.outbox.last(), &active.deal, &job.order);
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

    /// What open jobs still need: their specs and inputs, and results that are not
    /// judged yet.
    pub(crate) fn needed_blobs(&self) -> impl Iterator<Item = BlobId> {
        let open = || self.jobs.values().filter(|job| job.end.is_none());
        let held = open().flat_map(|job| job.held.values().flatten());
        let results = held.flat_map(|held| held.receipt.body().outputs.iter());
        let reached = open().flat_map(|job| job.reached.values());
        let live = open().flat_map(|job| job.live.values());
        let arriving = live.filter_map(|active| active.arriving.as_ref());
        let states = (reached.flat_map(Reached::blobs)).chain(arriving.flat_map(Arriving::blobs));
        open()
            .flat_map(|job| std::iter::once(&job.order.spec).chain(job.order.inputs.iter()))
            .chain(results.map(|output| &output.blob))
            .map(|blob| blob.blob)
            .chain(states.map(|blob| blob.blob))
    }

    /// What a peer may read of ours under an agreement.
    pub(crate) fn may_read(&self, reader: PeerId, agreement: AgreementId, blob: BlobId) -> bool {
        let job = self.by_agreement.get(&agreement);
        let job = job.and_then(|id| self.jobs.get(id));
        let active = job.and_then(|job| Some((job, job.live.get(&agreement)?)));
        active.is_some_and(|(job, active)| {
            let again = job.resumed_at(active);
            let again = again.iter().flat_map(Checkpoint::blobs);
            let mut may = active.deal.request().body().blobs().chain(again);
            active.deal.provider() == reader && may.any(|read| read.blob == blob)
        })
    }
}

/// Asks a provider where it is, showing the receipts that we have.
fn send_resume(core: &mut Core, job: &Job, active: &Active) {
    let deal = &active.deal;
    let judged = job.judged.values().map(|judged| &judged.receipt);
    let held = job.held.values().flatten().map(|held| &held.receipt);
    let mut have: Vec<_> = judged
        .chain(held)
        .filter(|receipt| receipt.body().key.agreement == deal.id())
        .collect();
    let last = have.iter().map(|receipt| receipt.body().key);
    let done = last.filter(|key| key.last).map(|key| key.unit).collect();
    // A provider that is a restored backup lacks the newest.
    have.sort_by_key(|receipt| Reverse(receipt.body().ended));
    let have = have.into_iter().map(Verified::raw).take(4).collect();
    let frame = Frame::Resume(
        deal.id(),
        List::truncated(have),
        ranges(&done),
        List::truncated(job.resumed_at(active)),
    );
    core.send(deal.provider(), frame);
}

impl Job {
    fn view(&self) -> JobView {
        let deal = self.latest.and_then(|id| self.deal(id));
        let steps = self.live.values().flat_map(|live| live.progress.values());
        let progress = steps.fold((0u64, 0u64), |sum, p| {
            (sum.0.saturating_add(p.1), sum.1.saturating_add(p.2))
        });
        let state = match self.end {
            Some(end) => end_word(end),
            None if !self.live.is_empty() => "running",
            None if self.round.is_some() => "asking",
            None => "waiting",
        };
        JobView {
            job: self.order.job,
            name: self.order.name.to_string(),
            principal: self.order.principal.to_string(),
            submitted: self.submitted,
            state,
            end: self.end,
            attempt: self.attempt,
            provider: deal.map(Deal::provider),
            agreement: deal.map(Deal::id),
            progress,
            units: (
                u32::try_from(self.open.len()).unwrap_or(u32::MAX),
                self.order.work.unit_count(),
            ),
            reached: (self.reached.iter())
                .map(|(&unit, reached)| (unit, reached.done()))
                .collect(),
            failed: self
                .failed
                .iter()
                .map(|(&unit, &why)| (unit, why))
                .collect(),
            live: self
                .live
                .iter()
                .map(|(&id, active)| active.view(id))
                .collect(),
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

impl Active {
    fn view(&self, id: AgreementId) -> (PeerId, AgreementId, u32) {
        let left = u32::try_from(self.left.len()).unwrap_or(u32::MAX);
        (self.deal.provider(), id, left)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PeerId;

    const PAUSE: Duration = Duration::from_secs(15);

    fn peer(number: u8) -> PeerId {
        PeerId::from_bytes([number; 32])
    }

    /// Fails at a time, and says for how long it is left out.
    fn fails(left_out: &mut LeftOut, now: Mono) -> Duration {
        left_out.add(now, peer(1), PAUSE, EXCLUSION_DOUBLINGS);
        left_out.0.get(&peer(1)).unwrap().until.since(now)
    }

    #[test]
    fn a_failing_provider_is_left_out_longer_each_time_and_quiet_hours_halve_that() {
        let mut left_out = LeftOut::default();
        let mut now = Mono::default();
        for doublings in [0, 1, 2, 3, 4, 5, 6, 7, 8, 8] {
            assert_eq!(fails(&mut left_out, now), PAUSE * (1 << doublings));
            assert!(left_out.has(now, peer(1)));
            now = now.after(PAUSE * (1 << doublings));
            assert!(!left_out.has(now, peer(1)));
        }
        // Nine count: half of them after an hour, none after four.
        assert_eq!(fails(&mut left_out, now.after(QUIET)), PAUSE * (1 << 4));
        let later = now.after(QUIET * 2);
        assert_eq!(fails(&mut left_out, later.after(QUIET * 4)), PAUSE);
        // Whatever was long ago.
        let months = Duration::from_secs(90 * 86_400);
        assert_eq!(fails(&mut left_out, now.after(months)), PAUSE);
    }

    #[test]
    fn what_a_provider_does_well_halves_what_it_failed() {
        let mut left_out = LeftOut::default();
        let mut now = Mono::default();
        for _ in 0..4 {
            now = now.after(fails(&mut left_out, now));
        }
        left_out.did_well(now, peer(1));
        assert_eq!(fails(&mut left_out, now), PAUSE * 4);
        // Something else was under way: it stays out.
        left_out.did_well(now, peer(1));
        assert!(left_out.has(now, peer(1)));
        now = now.after(PAUSE * 4);
        left_out.did_well(now, peer(1));
        assert!(left_out.0.is_empty(), "nothing counts, nothing is kept");
        assert_eq!(fails(&mut left_out, now), PAUSE);
    }
}
