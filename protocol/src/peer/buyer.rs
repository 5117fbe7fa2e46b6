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

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    Event, JobEvent, Output,
    core::{Core, Timer},
    ledger::Ledger,
};
use crate::{
    book::Book,
    deal::{Agreement, BlobRef, Deal, Quote, Request, UnitRange, Work, check_quote},
    envelope::{Body as _, Extensions, Verified},
    ids::{AccountId, AgreementId, BlobId, JobId, OfferId, PeerId, QuoteId, ReceiptId, RequestId},
    limits::{
        ASKS_MAX, ATTEMPTS_MAX, DISPUTES_MAX, ENDED_JOBS_KEPT, EXCLUSIONS_MAX, JOBS_MAX,
        LATE_TAKES_MAX, RUN_MAX, UNIT_RANGES_MAX,
    },
    message::{Decline, Frame, InlineBlob, LogLine, Progress},
    offer::Offer,
    rank::{self, Policy, Want},
    receipt::{Acceptance, Outcome, Receipt, Verdict},
    record::{JobEnd, JobOrder, Lsn, Record},
    registry::{Reason, Verification},
    units::{Amount, Mono, Now, Total, Wall},
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
    request: Verified<Request>,
    answer: Option<Result<Verified<Quote>, Decline>>,
}

/// A live agreement.
#[derive(Debug)]
struct Active {
    deal: Deal,
    acked: bool,
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

#[derive(Debug)]
struct Collecting {
    receipt: Verified<Receipt>,
    missing: BTreeSet<BlobId>,
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

    /// Stops a job as soon as its provider can.
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
            State::Active(active) => {
                job.cancelling = true;
                let patience = core.now.mono.after(core.config.timing.lost_after);
                active.give_up = active.give_up.min(patience);
                core.send(active.deal.provider(), Frame::Cancel(active.deal.id()));
                wake(core, job, core.config.timing.heartbeat);
            }
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
            Work::Array { .. } => Work::Array {
                units: ranges(&self.open),
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

/// Asking.
impl Buyer {
    /// Asks the best offers that fit, or waits for better times.
    fn look_for_offers(&mut self, core: &mut Core, book: &Book, ledger: &mut Ledger, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if core.now.mono >= job.deadline {
            return self.end(core, id, JobEnd::Expired);
        }
        let chosen = choose_offers(book, job, &self.excluded, core.now);
        if chosen.is_empty() {
            return self.wait(core, id);
        }
        job.attempt += 1;
        let budget = job.order.budget.saturating_sub(job.spent);
        let mut asks = Vec::new();
        let take = job.order.take && chosen.first().is_some_and(|offer| offer.body().firm);
        for offer in chosen.into_iter().take(if take { 1 } else { ASKS_MAX }) {
            let request = build_request(core, job, &offer, take, budget, None);
            let request =
                core.sign_until(core.now.wall.after(core.config.timing.quote_wait), request);
            // What nobody would accept is not written: our own journal could
            // not be read again.
            if request.body().check(request.header()).is_err() {
                return self.end(core, id, JobEnd::Declined(Reason::NOT_ALLOWED));
            }
            let lsn = core.persist(Record::Asked(request.clone()));
            core.send_after(lsn, offer.signer(), Frame::Ask(request.raw()));
            ledger.prepare(core, paying_parties(core, &offer));
            self.by_request.insert(RequestId(request.hash()), id);
            asks.push(Ask {
                offer,
                request,
                answer: None,
            });
        }
        let peers = asks.iter().map(|ask| ask.offer.signer()).collect();
        core.tell(Event::Job {
            job: id,
            event: JobEvent::Asked {
                attempt: job.attempt,
                peers,
            },
        });
        job.state = State::Asking(Asking {
            asks,
            decide: None,
            give_up: core.now.mono.after(core.config.timing.quote_wait),
            resend: core.now.mono.after(core.config.timing.resend),
            countered: false,
        });
        wake(core, job, core.config.timing.resend);
    }

    /// Nobody can now: look again soon, if that can help.
    fn wait(&mut self, core: &mut Core, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.state = State::Waiting;
        job.idle_rounds += 1;
        let passing = job
            .declined
            .values()
            .any(|(_, decline)| is_passing(decline.reason))
            || !job.agreements.is_empty();
        let patience = core.config.timing.patience;
        let waited = core.now.mono.since(job.since);
        if !passing && waited >= patience {
            let reason = match job.declined.values().next_back() {
                Some((_, decline)) => decline.reason,
                None => job.last_reason,
            };
            return self.end(core, id, JobEnd::Declined(reason));
        }
        let pause = core.config.timing.retry * (1 << job.idle_rounds.min(4));
        let pause = core.jittered(pause);
        wake(core, job, pause);
    }

    pub(crate) fn on_quoted(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        quote: Verified<Quote>,
    ) {
        let request = quote.body().request;
        let agreement = AgreementId(quote.hash());
        if self.by_agreement.contains_key(&agreement) {
            // A repeat of what we took.
            return;
        }
        let Some(&id) = self.by_request.get(&request) else {
            // Too late, or never asked: of no use to anybody, hold or take.
            return core.send(quote.signer(), Frame::Cancel(agreement));
        };
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if let Some(n) = (job.takes.iter()).position(|take| take.request.hash() == request.0) {
            return self.fence_late_take(core, id, n, quote);
        }
        let State::Asking(asking) = &mut job.state else {
            return;
        };
        let Some(ask) = asking
            .asks
            .iter_mut()
            .find(|ask| ask.request.hash() == request.0)
        else {
            return;
        };
        if let Err(_mismatch) = check_quote(&ask.offer, &ask.request, &quote) {
            return core.misbehaved(quote.signer(), "a quote that does not answer the request");
        }
        if ask.answer.is_some() {
            return;
        }
        core.tell(Event::Job {
            job: id,
            event: JobEvent::Quoted {
                peer: quote.signer(),
                cap: quote.body().cap,
            },
        });
        ask.answer = Some(Ok(quote));
        let grace = core.now.mono.after(core.config.timing.quote_grace);
        asking.decide = Some(asking.decide.unwrap_or(grace));
        self.decide_if_ready(core, ledger, id);
    }

    /// A firm offer's countersignature came when we had long gone on. The
    /// agreement stands: it is written down as given up, so that its receipts
    /// are answered.
    fn fence_late_take(&mut self, core: &mut Core, id: JobId, take: usize, quote: Verified<Quote>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(ask) = job.takes.remove(take) else {
            return;
        };
        self.by_request.remove(&RequestId(ask.request.hash()));
        let Ok(deal) = Deal::new(ask.offer, ask.request, quote.clone(), None) else {
            return core.misbehaved(quote.signer(), "a quote that does not answer the request");
        };
        core.persist(Record::Took {
            offer: deal.offer().clone(),
            request: deal.request().clone(),
            quote,
            agreement: None,
        });
        let agreement = deal.id();
        let reason = Reason::SUPERSEDED;
        let lsn = core.persist(Record::GaveUp {
            job: id,
            agreement,
            reason,
        });
        core.send_after(lsn, deal.provider(), Frame::Cancel(agreement));
        self.by_agreement.insert(agreement, id);
        // The last is the live one: this one never is.
        job.agreements.insert(0, (deal, Some(reason)));
    }

    /// Stops asking: gives back what is held for nothing, and forgets the
    /// questions, except those whose answer binds us.
    fn leave_asking(&mut self, core: &mut Core, id: JobId, except: Option<usize>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let State::Asking(asking) = &mut job.state else {
            return;
        };
        for (n, ask) in std::mem::take(&mut asking.asks).into_iter().enumerate() {
            let request = RequestId(ask.request.hash());
            match &ask.answer {
                None if ask.request.body().take => {
                    job.takes.push_back(ask);
                    continue;
                }
                Some(Ok(quote)) if Some(n) != except => {
                    core.send(quote.signer(), Frame::Release(QuoteId(quote.hash())));
                }
                // A quote that still comes is refused then.
                Some(Ok(_) | Err(_)) | None => {}
            }
            self.by_request.remove(&request);
        }
        if job.takes.len() > LATE_TAKES_MAX
            && let Some(oldest) = job.takes.pop_front()
        {
            self.by_request.remove(&RequestId(oldest.request.hash()));
        }
    }

    pub(crate) fn on_declined(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        from: PeerId,
        request: RequestId,
        decline: Decline,
    ) {
        let Some(&id) = self.by_request.get(&request) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let State::Asking(asking) = &mut job.state else {
            return;
        };
        let ask = asking.asks.iter_mut().find(|ask| {
            ask.request.hash() == request.0 && ask.offer.signer() == from && ask.answer.is_none()
        });
        let Some(ask) = ask else {
            return;
        };
        ask.answer = Some(Err(decline));
        let counter = ask.request.body().counter.is_some();
        if !counter {
            job.declined
                .insert(from, (OfferId(ask.offer.hash()), decline));
            job.last_reason = decline.reason;
        }
        core.tell(Event::Job {
            job: id,
            event: JobEvent::Declined {
                peer: from,
                decline,
            },
        });
        self.decide_if_ready(core, ledger, id);
    }

    /// Chooses once all have answered or the grace after the first is over.
    fn decide_if_ready(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let State::Asking(asking) = &mut job.state else {
            return;
        };
        let all = asking.asks.iter().all(|ask| ask.answer.is_some());
        let due = asking.decide.is_some_and(|at| at <= core.now.mono);
        if !all && !due {
            let next = asking.decide.unwrap_or(asking.give_up).min(asking.resend);
            core.timers.set(Timer::Job(id), next.min(job.deadline));
            return;
        }
        let Some(best) = best_quote(asking, job.order.policy, core.now) else {
            if all {
                self.leave_asking(core, id, None);
                self.wait(core, id);
            }
            return;
        };
        if job.order.counter_percent > 0
            && !asking.countered
            && !asking.asks[best].request.body().take
        {
            return self.counter(core, id, best);
        }
        self.take(core, ledger, id, best);
    }

    /// Proposes a lower price once, keeping the quote in hand.
    fn counter(&mut self, core: &mut Core, id: JobId, best: usize) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let State::Asking(asking) = &job.state else {
            return;
        };
        let ask = &asking.asks[best];
        let Some(Ok(quote)) = &ask.answer else {
            return;
        };
        let percent = 100 - u128::from(job.order.counter_percent.min(99));
        let proposal = u128::from(quote.body().cap.as_micros()) * percent / 100;
        let budget = Amount::from_micros(u64::try_from(proposal).unwrap_or(u64::MAX));
        let (offer, quote_id) = (ask.offer.clone(), QuoteId(quote.hash()));
        let request = build_request(core, job, &offer, false, budget, Some(quote_id));
        let request = core.sign_until(core.now.wall.after(core.config.timing.quote_wait), request);
        let lsn = core.persist(Record::Asked(request.clone()));
        core.send_after(lsn, offer.signer(), Frame::Ask(request.raw()));
        self.by_request.insert(RequestId(request.hash()), id);
        if let State::Asking(asking) = &mut job.state {
            asking.asks.push(Ask {
                offer,
                request,
                answer: None,
            });
            asking.countered = true;
            asking.decide = Some(core.now.mono.after(core.config.timing.quote_grace));
            asking.resend = core.now.mono.after(core.config.timing.resend);
            let next = asking.decide.unwrap_or(asking.resend).min(asking.resend);
            core.timers.set(Timer::Job(id), next.min(job.deadline));
        }
    }

    /// Completes a quote: from here on there is an agreement.
    fn take(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId, best: usize) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let State::Asking(asking) = &mut job.state else {
            return;
        };
        let ask = &asking.asks[best];
        let Some(Ok(quote)) = &ask.answer else {
            return;
        };
        let agreement = (!ask.request.body().take).then(|| {
            core.sign(Agreement {
                quote: QuoteId(quote.hash()),
                job: id,
                attempt: quote.body().attempt,
                extensions: Extensions::default(),
            })
        });
        let deal = Deal::new(
            ask.offer.clone(),
            ask.request.clone(),
            quote.clone(),
            agreement.clone(),
        );
        let Ok(deal) = deal else {
            // The quote ran out in this very moment.
            asking.asks[best].answer = Some(Err(Reason::QUOTE_EXPIRED.into()));
            return self.decide_if_ready(core, ledger, id);
        };
        let lsn = core.persist(Record::Took {
            offer: deal.offer().clone(),
            request: deal.request().clone(),
            quote: deal.quote().clone(),
            agreement,
        });
        self.leave_asking(core, id, Some(best));
        ledger.prepare(core, deal_parties(&deal));
        if let Some(job) = self.jobs.get(&id) {
            send_agreement(core, lsn, &deal, &job.order);
        }
        core.tell_after(
            lsn,
            Event::Job {
                job: id,
                event: JobEvent::Agreed {
                    peer: deal.provider(),
                    agreement: deal.id(),
                    cap: deal.quote().body().cap,
                },
            },
        );
        self.activate(core, id, deal);
    }

    fn activate(&mut self, core: &mut Core, id: JobId, deal: Deal) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        self.by_agreement.insert(deal.id(), id);
        job.agreements.push((deal.clone(), None));
        let give_up = core.now.mono.after(longest(&deal, core));
        let acked = deal.agreement().is_none();
        job.state = State::Active(Box::new(Active {
            deal,
            acked,
            heard: core.now.mono,
            give_up: give_up.min(job.deadline),
            progress: BTreeMap::new(),
            collecting: BTreeMap::new(),
            next_log: 0,
            fetch_tries: 0,
        }));
        wake(core, job, core.config.timing.resend);
    }
}

/// The longest that an agreement can take, with slack for messages.
fn longest(deal: &Deal, core: &Core) -> Duration {
    let quote = deal.quote().body();
    let slack = core.config.timing.lost_after * 2;
    let start = quote.start_expected.since(core.now.wall);
    let work = match &quote.work {
        Work::Job => quote.run_max.duration(),
        Work::Array { .. } => quote
            .run_max
            .duration()
            .saturating_mul(quote.work.unit_count()),
        Work::Lease { until, .. } => until.since(core.now.wall),
    };
    start
        .saturating_add(quote.transfer_max.duration())
        .saturating_add(work)
        .saturating_add(slack)
}

fn choose_offers(
    book: &Book,
    job: &Job,
    excluded: &BTreeMap<PeerId, Exclusion>,
    now: Now,
) -> Vec<Verified<Offer>> {
    let work = job.remaining();
    let want = Want {
        needs: &job.order.needs,
        work: &work,
        budget: job.order.budget.saturating_sub(job.spent),
        regions: &job.order.regions,
        flops: (job.order.flops > 0).then_some(job.order.flops),
        policy: job.order.policy,
    };
    let allowed =
        |peer: &PeerId| job.order.providers.is_empty() || job.order.providers.contains(peer);
    let offers = book
        .iter()
        .filter(|offer| offer.expires() > now.wall)
        .filter(|offer| allowed(&offer.signer()) && !job.was_declined(offer));
    let left_out = |peer: PeerId| excluded.get(&peer).is_some_and(|e| e.until > now.mono);
    let plan = rank::rank(offers, &want, left_out);
    plan.candidates
        .iter()
        .filter_map(|candidate| book.of(candidate.peer).cloned())
        .take(ASKS_MAX)
        .collect()
}

fn build_request(
    core: &Core,
    job: &Job,
    offer: &Verified<Offer>,
    take: bool,
    budget: Amount,
    counter: Option<QuoteId>,
) -> Request {
    let order = &job.order;
    Request {
        account: core.config.account,
        delegation: core.config.delegation.clone(),
        principal: order.principal.clone(),
        provider: offer.signer(),
        offer: OfferId(offer.hash()),
        job: order.job,
        attempt: job.attempt,
        work: job.remaining(),
        spec: order.spec,
        inputs: order.inputs.clone(),
        needs: order.needs.clone(),
        budget,
        start: None,
        verification: order.verification,
        confidentiality: order.confidentiality,
        retention: order.retention,
        take,
        counter,
        extensions: Extensions::default(),
    }
}

/// The best quote that still has time to be taken.
fn best_quote(asking: &Asking, policy: Policy, now: Now) -> Option<usize> {
    let score = |quote: &Quote| {
        let (price, time) = (quote.cap.as_micros(), quote.duration_expected.get());
        match policy {
            Policy::Cheapest => (u128::from(price), u128::from(time)),
            Policy::Fastest => (u128::from(time), u128::from(price)),
            Policy::Balanced => (
                (u128::from(price) + 1).saturating_mul(u128::from(time) + 1),
                u128::from(price),
            ),
        }
    };
    asking
        .asks
        .iter()
        .enumerate()
        .filter_map(|(n, ask)| match &ask.answer {
            // A take is an agreement already, whatever our clock says.
            Some(Ok(quote)) if quote.expires() > now.wall || ask.request.body().take => {
                Some((score(quote.body()), n))
            }
            Some(Ok(_) | Err(_)) | None => None,
        })
        .min()
        .map(|(_, n)| n)
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

/// The agreement, with what is small of what the provider lacks.
fn send_agreement(core: &mut Core, lsn: Lsn, deal: &Deal, order: &JobOrder) {
    let quote = deal.quote().body();
    let lacks = |blob: BlobId| {
        quote
            .missing
            .iter()
            .any(|&n| blob_at(order, n).is_some_and(|missing| missing.blob == blob))
    };
    let inline: Vec<InlineBlob> = order
        .inline
        .iter()
        .filter(|inline| lacks(inline.blob))
        .cloned()
        .collect();
    if let Some(agreement) = deal.agreement() {
        let frame = Frame::Agree(agreement.raw(), List::truncated(inline));
        core.send_after(lsn, deal.provider(), frame);
    }
}

/// The spec is number 0, inputs follow.
fn blob_at(order: &JobOrder, n: u16) -> Option<BlobRef> {
    match n {
        0 => Some(order.spec),
        n => order.inputs.get(usize::from(n) - 1).copied(),
    }
}

/// While an agreement stands.
impl Buyer {
    fn active(&mut self, from: PeerId, agreement: AgreementId) -> Option<(JobId, &mut Job)> {
        let id = *self.by_agreement.get(&agreement)?;
        let job = self.jobs.get_mut(&id)?;
        match &job.state {
            State::Active(active)
                if active.deal.id() == agreement && active.deal.provider() == from =>
            {
                Some((id, job))
            }
            State::Active(_) | State::Waiting | State::Asking(_) | State::Ended(_) => None,
        }
    }

    /// Any sign of life of the provider.
    fn heard(
        &mut self,
        core: &Core,
        from: PeerId,
        agreement: AgreementId,
    ) -> Option<(JobId, &mut Active)> {
        let (id, job) = self.active(from, agreement)?;
        let State::Active(active) = &mut job.state else {
            return None;
        };
        active.heard = core.now.mono;
        active.acked = true;
        Some((id, active))
    }

    /// The account that works for us under an agreement.
    pub(crate) fn works_for_us(&self, agreement: AgreementId) -> Option<AccountId> {
        let job = self.jobs.get(self.by_agreement.get(&agreement)?)?;
        Some(job.deal(agreement)?.quote().body().account)
    }

    pub(crate) fn on_agreed(&mut self, core: &mut Core, from: PeerId, agreement: AgreementId) {
        if let Some((id, _)) = self.heard(core, from, agreement) {
            core.tell(Event::Job {
                job: id,
                event: JobEvent::Started { agreement },
            });
            if let Some(job) = self.jobs.get(&id) {
                wake(core, job, core.config.timing.heartbeat * 2);
            }
        }
    }

    pub(crate) fn on_agree_refused(
        &mut self,
        core: &mut Core,
        from: PeerId,
        agreement: AgreementId,
        decline: Decline,
    ) {
        if let Some((id, job)) = self.active(from, agreement) {
            // Once it has agreed it can't refuse; a stray repeat changes nothing.
            if matches!(&job.state, State::Active(active) if active.acked) {
                return;
            }
            self.give_up(core, id, decline.reason);
        }
    }

    pub(crate) fn on_lost(&mut self, core: &mut Core, from: PeerId, agreement: AgreementId) {
        if let Some((id, _)) = self.active(from, agreement) {
            self.give_up(core, id, Reason::PROVIDER_LOST);
        }
    }

    pub(crate) fn on_progress(&mut self, core: &mut Core, from: PeerId, progress: Progress) {
        let Some((id, active)) = self.heard(core, from, progress.agreement) else {
            return;
        };
        if !active.deal.quote().body().work.has_unit(progress.unit) {
            return;
        }
        let latest = active.progress.entry(progress.unit).or_insert((0, 0, 0));
        if progress.number <= latest.0 {
            return;
        }
        *latest = (progress.number, progress.done, progress.total);
        core.tell(Event::Job {
            job: id,
            event: JobEvent::Progress(progress),
        });
    }

    pub(crate) fn on_log(&mut self, core: &mut Core, from: PeerId, line: LogLine) {
        let Some((id, active)) = self.heard(core, from, line.agreement) else {
            return;
        };
        if line.number < active.next_log {
            return;
        }
        active.next_log = line.number.saturating_add(1);
        core.tell(Event::Job {
            job: id,
            event: JobEvent::Log(line),
        });
    }

    pub(crate) fn on_receipt(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        from: PeerId,
        receipt: Verified<Receipt>,
        inline: Vec<InlineBlob>,
    ) {
        let agreement = receipt.body().key.agreement;
        let Some(&id) = self.by_agreement.get(&agreement) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let receipt_id = ReceiptId(receipt.hash());
        if let Some(judged) = job.judged.get(&receipt_id) {
            let again = Frame::Acceptance(judged.acceptance.raw());
            return core.send_again(from, again);
        }
        let Some(deal) = job
            .deal(agreement)
            .filter(|deal| deal.provider() == from)
            .cloned()
        else {
            return core.misbehaved(from, "a receipt for somebody else's agreement");
        };
        if job.disputes(agreement) >= DISPUTES_MAX {
            return core.misbehaved(from, "more receipts than it can mean");
        }
        let live = self.heard(core, from, agreement).is_some();
        if let Err(fault) = receipt.body().follows_from(&deal) {
            self.judge(core, id, &receipt, Verdict::Disputed(fault.reason()));
            if live {
                self.give_up(core, id, fault.reason());
            }
            return;
        }
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if !live || !job.wants(&receipt) {
            self.judge(core, id, &receipt, Verdict::Disputed(Reason::SUPERSEDED));
            return;
        }
        self.collect(core, id, receipt, inline);
        self.accept_collected(core, ledger, id, receipt_id);
    }

    /// Stores what came with a receipt and asks for the rest.
    fn collect(
        &mut self,
        core: &mut Core,
        id: JobId,
        receipt: Verified<Receipt>,
        inline: Vec<InlineBlob>,
    ) {
        let Some(State::Active(active)) = self.jobs.get_mut(&id).map(|job| &mut job.state) else {
            return;
        };
        let receipt_id = ReceiptId(receipt.hash());
        if active.collecting.contains_key(&receipt_id) {
            return;
        }
        let mut missing = BTreeSet::new();
        for output in receipt.body().outputs.iter() {
            let blob = output.blob;
            match inline.iter().find(|inline| inline.blob == blob.blob) {
                Some(inline) => core.output(Output::Store {
                    blob: blob.blob,
                    bytes: inline.bytes.to_vec(),
                    durable: true,
                }),
                None if missing.insert(blob.blob) => core.output(Output::Fetch {
                    agreement: active.deal.id(),
                    from: active.deal.provider(),
                    blob,
                    durable: true,
                }),
                None => {}
            }
        }
        active
            .collecting
            .insert(receipt_id, Collecting { receipt, missing });
    }

    pub(crate) fn on_fetched(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        agreement: AgreementId,
        blob: BlobId,
        ok: bool,
    ) {
        let Some(&id) = self.by_agreement.get(&agreement) else {
            return;
        };
        let Some(State::Active(active)) = self.jobs.get_mut(&id).map(|job| &mut job.state) else {
            return;
        };
        if active.deal.id() != agreement {
            return;
        }
        if !ok {
            return self.fetch_again(core, id, blob);
        }
        active.heard = core.now.mono;
        let mut complete = Vec::new();
        for (receipt, collecting) in &mut active.collecting {
            if collecting.missing.remove(&blob) && collecting.missing.is_empty() {
                complete.push(*receipt);
            }
        }
        for receipt in complete {
            self.accept_collected(core, ledger, id, receipt);
        }
    }

    /// An output did not come. Some tries later it never will.
    fn fetch_again(&mut self, core: &mut Core, id: JobId, blob: BlobId) {
        let Some(State::Active(active)) = self.jobs.get_mut(&id).map(|job| &mut job.state) else {
            return;
        };
        active.fetch_tries += 1;
        let wanted = active
            .collecting
            .values()
            .find(|collecting| collecting.missing.contains(&blob))
            .map(|collecting| collecting.receipt.clone());
        let Some(receipt) = wanted else {
            return;
        };
        if active.fetch_tries > core.config.timing.fetch_tries {
            self.judge(core, id, &receipt, Verdict::Disputed(Reason::WRONG_OUTPUTS));
            return self.give_up(core, id, Reason::WRONG_OUTPUTS);
        }
        if let Some(output) = receipt
            .body()
            .outputs
            .iter()
            .find(|output| output.blob.blob == blob)
        {
            core.output(Output::Fetch {
                agreement: active.deal.id(),
                from: active.deal.provider(),
                blob: output.blob,
                durable: true,
            });
        }
    }

    /// Accepts a receipt whose outputs are all here, and goes on from there.
    fn accept_collected(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: JobId,
        receipt: ReceiptId,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let State::Active(active) = &mut job.state else {
            return;
        };
        let complete = active
            .collecting
            .get(&receipt)
            .is_some_and(|c| c.missing.is_empty());
        if !complete {
            return;
        }
        let Some(collecting) = active.collecting.remove(&receipt) else {
            return;
        };
        let parties = deal_parties(&active.deal);
        let body = collecting.receipt.body().clone();
        job.spent = job.spent.saturating_add(body.amount);
        let lsn = self.judge(core, id, &collecting.receipt, Verdict::Accepted);
        core.tell_after(
            lsn,
            Event::Job {
                job: id,
                event: JobEvent::Accepted {
                    receipt,
                    amount: body.amount,
                },
            },
        );
        ledger.owe(core, parties, receipt, body.amount);
        if !body.key.last {
            return;
        }
        match body.outcome {
            Outcome::Completed => self.unit_done(core, id, body.key.unit),
            Outcome::JobFault(reason) => self.end_active(core, id, JobEnd::Failed(reason)),
            Outcome::Cancelled => self.end_active(core, id, JobEnd::Cancelled),
            Outcome::ProviderFault(reason) => self.give_up(core, id, reason),
        }
    }

    fn unit_done(&mut self, core: &mut Core, id: JobId, unit: u32) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.open.remove(&unit);
        let State::Active(active) = &job.state else {
            return;
        };
        if job.open.is_empty() {
            return self.end(core, id, JobEnd::Done);
        }
        let more_here = active
            .deal
            .quote()
            .body()
            .work
            .units()
            .iter()
            .any(|unit| job.open.contains(unit));
        if !more_here {
            // An array too broken for one request: the rest is asked for anew.
            job.state = State::Waiting;
            core.wake(Timer::Job(id), Duration::ZERO);
        }
    }

    /// Signs our word on a receipt; the same bytes are sent whenever it comes again.
    fn judge(
        &mut self,
        core: &mut Core,
        id: JobId,
        receipt: &Verified<Receipt>,
        verdict: Verdict,
    ) -> Lsn {
        let acceptance = core.sign(Acceptance {
            receipt: ReceiptId(receipt.hash()),
            key: receipt.body().key,
            verdict,
            verification: Verification::HASHES,
            extensions: Extensions::default(),
        });
        let lsn = core.persist(Record::Judged {
            receipt: receipt.clone(),
            acceptance: acceptance.clone(),
        });
        core.send_after(lsn, receipt.signer(), Frame::Acceptance(acceptance.raw()));
        if let Verdict::Disputed(reason) = verdict {
            core.tell_after(
                lsn,
                Event::Job {
                    job: id,
                    event: JobEvent::Disputed {
                        peer: receipt.signer(),
                        reason,
                    },
                },
            );
        }
        if let Some(job) = self.jobs.get_mut(&id) {
            job.judged.insert(
                ReceiptId(receipt.hash()),
                Judged {
                    receipt: receipt.clone(),
                    acceptance,
                },
            );
        }
        lsn
    }

    /// Ends a job whose provider may still be at it.
    fn end_active(&mut self, core: &mut Core, id: JobId, end: JobEnd) {
        if let Some(State::Active(active)) = self.jobs.get(&id).map(|job| &job.state) {
            core.send(active.deal.provider(), Frame::Cancel(active.deal.id()));
        }
        self.end(core, id, end);
    }

    /// Gives an agreement up and fences it; the job goes on elsewhere.
    fn give_up(&mut self, core: &mut Core, id: JobId, reason: Reason) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let State::Active(active) = &job.state else {
            return;
        };
        let (provider, agreement) = (active.deal.provider(), active.deal.id());
        let lsn = core.persist(Record::GaveUp {
            job: id,
            agreement,
            reason,
        });
        core.send_after(lsn, provider, Frame::Cancel(agreement));
        core.tell_after(
            lsn,
            Event::Job {
                job: id,
                event: JobEvent::GaveUp {
                    peer: provider,
                    reason,
                },
            },
        );
        job.last_reason = reason;
        job.fence(agreement, reason);
        job.state = State::Waiting;
        let (cancelling, attempts) = (job.cancelling, job.agreements.len());
        if !matches!(reason, Reason::QUOTE_EXPIRED | Reason::QUOTE_UNKNOWN) {
            self.exclude(core, provider);
        }
        if cancelling {
            self.end(core, id, JobEnd::Cancelled);
        } else if attempts >= ATTEMPTS_MAX {
            self.end(core, id, JobEnd::Failed(reason));
        } else {
            core.wake(Timer::Job(id), Duration::ZERO);
        }
    }

    fn exclude(&mut self, core: &Core, peer: PeerId) {
        if self.excluded.len() >= EXCLUSIONS_MAX {
            self.excluded
                .retain(|_, exclusion| exclusion.until > core.now.mono);
        }
        if self.excluded.len() >= EXCLUSIONS_MAX {
            return;
        }
        let exclusion = self.excluded.entry(peer).or_insert(Exclusion {
            failures: 0,
            until: core.now.mono,
        });
        let pause = core.config.timing.exclude * (1 << exclusion.failures.min(8));
        exclusion.failures += 1;
        exclusion.until = core.now.mono.after(pause);
    }

    fn end(&mut self, core: &mut Core, id: JobId, end: JobEnd) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        core.timers.clear(Timer::Job(id));
        let lsn = core.persist(Record::Ended {
            job: id,
            end,
            at: core.now.wall,
        });
        core.tell_after(
            lsn,
            Event::Job {
                job: id,
                event: JobEvent::Ended(end),
            },
        );
        job.state = State::Ended(end);
        self.forget_old(id);
    }

    /// Keeps the last ended jobs in memory; the store has them all.
    fn forget_old(&mut self, ended: JobId) {
        self.ended.push_back(ended);
        if self.ended.len() <= ENDED_JOBS_KEPT {
            return;
        }
        let Some(job) = self.ended.pop_front().and_then(|id| self.jobs.remove(&id)) else {
            return;
        };
        let id = job.order.job;
        self.by_request.retain(|_, of| *of != id);
        for (deal, _) in &job.agreements {
            self.by_agreement.remove(&deal.id());
        }
    }
}

impl Job {
    /// How many receipts of an agreement were disputed.
    fn disputes(&self, agreement: AgreementId) -> usize {
        self.judged
            .values()
            .filter(|judged| {
                judged.receipt.body().key.agreement == agreement
                    && judged.acceptance.body().verdict != Verdict::Accepted
            })
            .count()
    }

    /// Whether a receipt of the live agreement is for something not yet
    /// accepted.
    fn wants(&self, receipt: &Verified<Receipt>) -> bool {
        let key = receipt.body().key;
        let repeated = self.judged.values().any(|judged| {
            let known = judged.receipt.body().key;
            known.agreement == key.agreement
                && known.unit == key.unit
                && known.index == key.index
                && judged.acceptance.body().verdict == Verdict::Accepted
        });
        let affordable = self
            .spent
            .checked_add(receipt.body().amount)
            .is_some_and(|spent| spent <= self.order.budget);
        self.open.contains(&key.unit) && !repeated && affordable
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
        let Some(State::Asking(asking)) = self.jobs.get_mut(&id).map(|job| &mut job.state) else {
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
            return self.wait(core, id);
        }
        if now >= asking.resend {
            for ask in asking.asks.iter().filter(|ask| ask.answer.is_none()) {
                core.send_again(ask.offer.signer(), Frame::Ask(ask.request.raw()));
            }
            asking.resend = now.after(core.config.timing.resend);
        }
        let due = asking.decide.is_some_and(|at| at <= now);
        if due && best_quote(asking, Policy::Cheapest, core.now).is_none() {
            // All that came has run out while others kept us waiting.
            self.leave_asking(core, id, None);
            return self.wait(core, id);
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
        if job.cancelling {
            core.send(deal.provider(), Frame::Cancel(deal.id()));
        }
        if !active.acked {
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
                if active.acked {
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

/// Rebuilding from records.
impl Buyer {
    pub(crate) fn replay(&mut self, core: &Core, ledger: &mut Ledger, record: &Record) {
        match record {
            Record::Submitted { order, at } => {
                let passed = core.now.wall.since(*at);
                let left = order.total.duration().saturating_sub(passed);
                let deadline = core.now.mono.after(left);
                self.jobs
                    .insert(order.job, Job::new(order.clone(), core.now, *at, deadline));
            }
            Record::Asked(request) => {
                if let Some(job) = self.jobs.get_mut(&request.body().job) {
                    job.attempt = job.attempt.max(request.body().attempt);
                }
            }
            Record::Took {
                offer,
                request,
                quote,
                agreement,
            } => {
                let deal = Deal::new(
                    offer.clone(),
                    request.clone(),
                    quote.clone(),
                    agreement.clone(),
                );
                if let Ok(deal) = deal {
                    self.replay_took(core, deal);
                }
            }
            Record::GaveUp {
                job,
                agreement,
                reason,
            } => {
                if let Some(job) = self.jobs.get_mut(job) {
                    job.fence(*agreement, *reason);
                    if matches!(&job.state, State::Active(active) if active.deal.id() == *agreement)
                    {
                        job.state = State::Waiting;
                        job.last_reason = *reason;
                    }
                }
            }
            Record::Judged {
                receipt,
                acceptance,
            } => {
                self.replay_judged(core, ledger, receipt, acceptance);
            }
            Record::Ended { job, end, .. } => {
                if let Some(known) = self.jobs.get_mut(job) {
                    known.state = State::Ended(*end);
                    self.forget_old(*job);
                }
            }
            _ => {}
        }
    }

    fn replay_took(&mut self, core: &Core, deal: Deal) {
        let id = deal.quote().body().job;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        self.by_agreement.insert(deal.id(), id);
        match &job.state {
            State::Waiting | State::Asking(_) => {}
            // A take that was answered late: it was given up at once.
            State::Active(_) | State::Ended(_) => return job.agreements.insert(0, (deal, None)),
        }
        job.agreements.push((deal.clone(), None));
        let give_up = core.now.mono.after(longest(&deal, core)).min(job.deadline);
        let acked = deal.agreement().is_none();
        job.state = State::Active(Box::new(Active {
            deal,
            // The provider may not have it yet: it is sent again, except where
            // the provider's own signature completed it.
            acked,
            heard: core.now.mono,
            give_up,
            progress: BTreeMap::new(),
            collecting: BTreeMap::new(),
            next_log: 0,
            fetch_tries: 0,
        }));
    }

    fn replay_judged(
        &mut self,
        core: &Core,
        ledger: &mut Ledger,
        receipt: &Verified<Receipt>,
        acceptance: &Verified<Acceptance>,
    ) {
        let key = receipt.body().key;
        let Some(id) = self.by_agreement.get(&key.agreement) else {
            return;
        };
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        if acceptance.body().verdict == Verdict::Accepted {
            job.spent = job.spent.saturating_add(receipt.body().amount);
            if key.last && receipt.body().outcome == Outcome::Completed {
                job.open.remove(&key.unit);
            }
            if let Some(deal) = job.deal(key.agreement) {
                let parties = deal_parties(deal);
                ledger.replay_owed(
                    core,
                    parties,
                    ReceiptId(receipt.hash()),
                    receipt.body().amount,
                );
            }
        }
        job.judged.insert(
            ReceiptId(receipt.hash()),
            Judged {
                receipt: receipt.clone(),
                acceptance: acceptance.clone(),
            },
        );
    }

    /// After replay: every open job goes on.
    pub(crate) fn resume(&mut self, core: &mut Core) {
        let open: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, job)| !matches!(job.state, State::Ended(_)))
            .map(|(id, _)| *id)
            .collect();
        for id in open {
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            // The last acceptance may have been written without what follows it.
            if job.open.is_empty() {
                self.end(core, id, JobEnd::Done);
                continue;
            }
            if let Some(end) = job.end_by_last_receipt() {
                self.end(core, id, end);
                continue;
            }
            core.wake(Timer::Job(id), Duration::ZERO);
        }
    }
}

impl Job {
    /// How the live agreement's last accepted receipt ends the job, if it does.
    fn end_by_last_receipt(&self) -> Option<JobEnd> {
        let State::Active(active) = &self.state else {
            return None;
        };
        self.judged
            .values()
            .filter(|judged| {
                let key = judged.receipt.body().key;
                key.agreement == active.deal.id()
                    && key.last
                    && judged.acceptance.body().verdict == Verdict::Accepted
            })
            .find_map(|judged| match judged.receipt.body().outcome {
                Outcome::JobFault(reason) => Some(JobEnd::Failed(reason)),
                Outcome::Cancelled => Some(JobEnd::Cancelled),
                Outcome::Completed | Outcome::ProviderFault(_) => None,
            })
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
