//! Asking providers, and choosing among their quotes: a single job's best, or all of
//! an array's.

use super::*;

/// Asking.
impl Buyer {
    /// Asks the best offers that fit, or waits for better times. While all units
    /// have somebody who runs them, nothing is to be done.
    pub(super) fn seek(&mut self, core: &mut Core, book: &Book, ledger: &mut Ledger, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.end.is_some() || job.round.is_some() || job.cancelling {
            return;
        }
        if core.now.mono >= job.deadline {
            return self.expire(core, ledger, id);
        }
        if !job.coming.is_empty() {
            // What it reads is on its way here.
            wake(core, job, core.config.timing.retry);
            if !self.fetch_home(core, id) {
                self.end(core, ledger, id, JobEnd::Failed(Reason::INPUTS_MISSING));
            }
            return;
        }
        let wanted = job.wanted(core);
        if wanted.is_empty() || job.room() == 0 {
            return job.rest(core);
        }
        let left_out = [&self.excluded, &self.full];
        let (shares, next) = choose(core, book, (job, &self.staying), left_out, &wanted);
        if shares.is_empty() {
            // A provider that is left out for a while is better than none, and so is a turn
            // that may come too late.
            job.too_late.clear();
            let nobody = LeftOut::default();
            let left_out = [&nobody; 2];
            let (later, _) = choose(core, book, (job, &self.staying), left_out, &wanted);
            let later = !later.is_empty() || !job.busy.is_empty();
            return self.wait(core, ledger, id, later);
        }
        self.ask(core, ledger, id, shares);
        let job = self.jobs.get_mut(&id);
        if let Some(round) = job.and_then(|job| job.round.as_mut()) {
            round.next = next;
        }
    }

    /// Begins a round: a request to each of these.
    fn ask(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId, shares: Vec<Share>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.attempt += 1;
        let spread = job.spreads();
        // Where all slots are in use, only an answer to a question can be a place in the queue.
        let take = job.order.take && job.last_reason != Reason::BUSY;
        let take = take && shares.first().is_some_and(|share| share.is_firm(core));
        let alone = take && !spread;
        let mut asks = Vec::new();
        for share in shares.into_iter().take(if alone { 1 } else { usize::MAX }) {
            let take = take && share.is_firm(core);
            let request = build_request(core, job, &share, take, None);
            let until = core.now.wall.after(core.config.timing.quote_wait);
            let request = core.sign_until(until, request);
            // What nobody would accept is not written: our own journal could
            // not be read again.
            if request.body().check(request.header()).is_err() {
                return self.end(core, ledger, id, JobEnd::Declined(Reason::NOT_ALLOWED));
            }
            let lsn = core.persist(Record::Asked(request.clone()));
            core.send_after(lsn, share.offer.signer(), Frame::Ask(request.raw()));
            ledger.prepare(core, paying_parties(core, &share.offer));
            self.by_request.insert(RequestId(request.hash()), id);
            asks.push(Ask {
                offer: share.offer,
                candidate: share.candidate,
                request,
                answer: None,
            });
        }
        let peers = asks.iter().map(|ask| ask.offer.signer()).collect();
        let event = JobEvent::Asked {
            attempt: job.attempt,
            peers,
        };
        core.tell_after(core.outbox.last(), Event::Job { job: id, event });
        job.round = Some(Round {
            asks,
            spread,
            next: None,
            decide: None,
            give_up: core.now.mono.after(core.config.timing.quote_wait),
            resend: core.now.mono.after(core.config.timing.resend),
            countered: false,
        });
        wake(core, job, core.config.timing.resend);
    }

    /// Nobody can now: look again soon, if that can help. `later` says that
    /// somebody will be able to.
    pub(super) fn wait(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId, later: bool) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.idle_rounds += 1;
        let passing = later
            || !job.live.is_empty()
            || job
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
            return self.end(core, ledger, id, JobEnd::Declined(reason));
        }
        let pause = core.config.timing.retry * (1 << job.idle_rounds.min(4));
        let pause = core.jittered(pause);
        wake(core, job, pause);
    }

    /// Asks again those who have not answered; in the end, leaves them out.
    pub(super) fn ask_again(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(round) = &mut job.round else {
            return;
        };
        let now = core.now.mono;
        if now >= round.give_up && round.decide.is_none() {
            let unanswered = round.asks.iter().filter(|ask| ask.answer.is_none());
            let silent: BTreeSet<PeerId> = unanswered.map(|ask| ask.offer.signer()).collect();
            self.leave_round(core, id, None);
            for peer in silent {
                self.exclude(core, peer);
            }
            // They used up the patience: the next best have not been asked yet.
            if let Some(job) = self.jobs.get_mut(&id) {
                job.since = now;
            }
            return self.wait(core, ledger, id, false);
        }
        if now >= round.resend {
            for ask in round.asks.iter().filter(|ask| ask.answer.is_none()) {
                core.send_again(ask.offer.signer(), Frame::Ask(ask.request.raw()));
            }
            round.resend = now.after(core.config.timing.resend);
        }
        let due = round.decide.is_some_and(|at| at <= now);
        if due && best_quote(job, core.now).is_none() {
            // All that came has run out while others kept us waiting.
            self.leave_round(core, id, None);
            return self.wait(core, ledger, id, false);
        }
        self.decide_if_ready(core, ledger, id);
    }

    pub(crate) fn on_quoted(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        quote: Verified<Quote>,
    ) {
        let request = quote.body().request;
        let agreement = AgreementId(quote.hash());
        self.full.remove(quote.signer());
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
        let Some(round) = &mut job.round else {
            return;
        };
        let asked = |ask: &Ask| ask.request.hash() == request.0;
        let Some(n) = round.asks.iter().position(asked) else {
            return;
        };
        let ask = &mut round.asks[n];
        if let Err(_mismatch) = check_quote(&ask.offer, &ask.request, &quote) {
            let from = quote.signer();
            core.misbehaved(from, "a quote that does not answer the request");
            if ask.offer.signer() == from {
                let account = ask.offer.body().account;
                core.failed(from, account, Failing::Bait);
                self.exclude(core, from);
                let decline = Reason::NOT_AS_OFFERED.into();
                self.on_declined(core, ledger, from, request, decline);
            }
            return;
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
        // Others work already: what would wait there is shared out among them.
        let waits = round.spread && quote.body().wait_max > Millis::default();
        let waits = waits && !job.live.is_empty();
        ask.answer = Some(Ok(quote));
        if waits {
            let provider = ask.offer.signer();
            job.is_busy(core, provider, Reason::BUSY.into());
            return self.answered(core, id, n, false);
        }
        if round.spread {
            return self.take(core, ledger, id, n);
        }
        let grace = core.now.mono.after(core.config.timing.quote_grace);
        round.decide = Some(round.decide.unwrap_or(grace));
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
        job.made(deal, Some(reason));
    }

    /// Stops asking: gives back what is held for nothing, and forgets the
    /// questions, except those whose answer binds us.
    pub(super) fn leave_round(&mut self, core: &mut Core, id: JobId, except: Option<usize>) {
        let Some(round) = self.jobs.get_mut(&id).and_then(|job| job.round.take()) else {
            return;
        };
        for (n, ask) in round.asks.into_iter().enumerate() {
            self.leave_ask(core, id, ask, Some(n) == except);
        }
    }

    fn leave_ask(&mut self, core: &mut Core, id: JobId, ask: Ask, taken: bool) {
        let request = RequestId(ask.request.hash());
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        match &ask.answer {
            None if ask.request.body().take => {
                job.takes.push_back(ask);
                if job.takes.len() > LATE_TAKES_MAX
                    && let Some(oldest) = job.takes.pop_front()
                {
                    self.by_request.remove(&RequestId(oldest.request.hash()));
                }
                return;
            }
            Some(Ok(quote)) if !taken => {
                core.send(quote.signer(), Frame::Release(QuoteId(quote.hash())));
            }
            // A quote that still comes is refused then.
            Some(Ok(_) | Err(_)) | None => {}
        }
        self.by_request.remove(&request);
    }

    /// One of a round of shares is answered. After the last, it is seen who takes
    /// what is left.
    fn answered(&mut self, core: &mut Core, id: JobId, n: usize, taken: bool) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(round) = &mut job.round else {
            return;
        };
        if n >= round.asks.len() {
            return;
        }
        let ask = round.asks.swap_remove(n);
        let over = round.asks.is_empty();
        if over {
            job.round = None;
        }
        self.leave_ask(core, id, ask, taken);
        if over {
            core.wake(Timer::Job(id), Duration::ZERO);
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
        let Some(round) = &mut job.round else {
            return;
        };
        let Some(n) = round.asks.iter().position(|ask| {
            ask.request.hash() == request.0 && ask.offer.signer() == from && ask.answer.is_none()
        }) else {
            return;
        };
        let spread = round.spread;
        let ask = &mut round.asks[n];
        ask.answer = Some(Err(decline));
        let counter = ask.request.body().counter.is_some();
        if !counter {
            job.declined
                .insert(from, (OfferId(ask.offer.hash()), decline));
            job.last_reason = decline.reason;
        }
        if spread {
            job.is_busy(core, from, decline);
        } else if is_passing(decline.reason) && !counter {
            self.is_full(core, from);
        }
        core.tell(Event::Job {
            job: id,
            event: JobEvent::Declined {
                peer: from,
                decline,
            },
        });
        if spread {
            return self.answered(core, id, n, false);
        }
        self.decide_if_ready(core, ledger, id);
    }

    /// A provider that has no slot free is left alone for a moment, by all of our single
    /// jobs: the next best may have one.
    fn is_full(&mut self, core: &Core, peer: PeerId) {
        let pause = core.config.timing.retry;
        self.full.add(core.now.mono, peer, pause, 2);
    }

    /// Chooses once all have answered or the grace after the first is over.
    pub(super) fn decide_if_ready(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let Some(round) = &job.round else {
            return;
        };
        let all = round.asks.iter().all(|ask| ask.answer.is_some());
        let due = round.decide.is_some_and(|at| at <= core.now.mono);
        if round.spread || (!all && !due) {
            let next = round.decide.unwrap_or(round.give_up).min(round.resend);
            core.timers.set(Timer::Job(id), next.min(job.deadline));
            return;
        }
        let Some((best, is_worth_waiting)) = best_quote(job, core.now) else {
            if all {
                let said =
                    |ask: &Ask| matches!(&ask.answer, Some(Err(no)) if is_passing(no.reason));
                let full = round.asks.iter().all(said);
                self.leave_round(core, id, None);
                if full {
                    core.wake(Timer::Job(id), Duration::ZERO);
                } else {
                    self.wait(core, ledger, id, false);
                }
            }
            return;
        };
        if !is_worth_waiting && job.idle_rounds == 0 {
            return self.pass_over(core, id);
        }
        if job.order.counter_percent > 0
            && !round.countered
            && !round.asks[best].request.body().take
        {
            return self.counter(core, id, best);
        }
        self.take(core, ledger, id, best);
    }

    /// At all of a round the job would wait for its turn, longer than it may have time, or
    /// so long that those who are next do better if they have a slot free. Once nobody is
    /// left, such a turn is taken as well.
    fn pass_over(&mut self, core: &mut Core, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        // Those who are silent have a moment more.
        let asks = job.round.iter().flat_map(|round| &round.asks);
        let asks = asks.filter(|ask| ask.answer.is_some());
        let peers: Vec<PeerId> = asks.map(|ask| ask.offer.signer()).collect();
        job.too_late.extend(peers);
        self.leave_round(core, id, None);
        core.wake(Timer::Job(id), Duration::ZERO);
    }

    /// Proposes a lower price once, keeping the quote in hand.
    fn counter(&mut self, core: &mut Core, id: JobId, best: usize) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(round) = &job.round else {
            return;
        };
        let ask = &round.asks[best];
        let Some(Ok(quote)) = &ask.answer else {
            return;
        };
        let percent = 100 - u128::from(job.order.counter_percent.min(99));
        let proposal = u128::from(quote.body().cap.as_micros()) * percent / 100;
        let share = Share {
            offer: ask.offer.clone(),
            candidate: ask.candidate.clone(),
            units: job.open.clone(),
            budget: Amount::from_micros(u64::try_from(proposal).unwrap_or(u64::MAX)),
        };
        let quote = QuoteId(quote.hash());
        let request = build_request(core, job, &share, false, Some(quote));
        let request = core.sign_until(core.now.wall.after(core.config.timing.quote_wait), request);
        let lsn = core.persist(Record::Asked(request.clone()));
        core.send_after(lsn, share.offer.signer(), Frame::Ask(request.raw()));
        self.by_request.insert(RequestId(request.hash()), id);
        if let Some(round) = &mut job.round {
            round.asks.push(Ask {
                offer: share.offer,
                candidate: share.candidate,
                request,
                answer: None,
            });
            round.countered = true;
            round.decide = Some(core.now.mono.after(core.config.timing.quote_grace));
            round.resend = core.now.mono.after(core.config.timing.resend);
            let next = round.decide.unwrap_or(round.resend).min(round.resend);
            core.timers.set(Timer::Job(id), next.min(job.deadline));
        }
    }

    /// Completes a quote: from here on there is an agreement.
    fn take(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId, best: usize) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(round) = &mut job.round else {
            return;
        };
        let spread = round.spread;
        let ask = &mut round.asks[best];
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
            ask.answer = Some(Err(Reason::QUOTE_EXPIRED.into()));
            return if spread {
                self.answered(core, id, best, false)
            } else {
                self.decide_if_ready(core, ledger, id)
            };
        };
        let lsn = core.persist(Record::Took {
            offer: deal.offer().clone(),
            request: deal.request().clone(),
            quote: deal.quote().clone(),
            agreement,
        });
        if spread {
            self.answered(core, id, best, true);
        } else {
            self.leave_round(core, id, Some(best));
        }
        ledger.prepare(core, deal_parties(&deal));
        self.staying.grant(core, lsn, deal.request().body());
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
                    resumed: resumed_in(&deal),
                },
            },
        );
        let agreement = deal.id();
        self.activate(core, id, deal);
        self.hear_early(core, ledger, agreement);
    }

    fn activate(&mut self, core: &mut Core, id: JobId, deal: Deal) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let agreement = deal.id();
        if job.order.verify.adaptive {
            // How often it is audited may depend on what others say of it.
            core.wake(Timer::References(deal.provider()), Duration::ZERO);
        }
        self.by_agreement.insert(agreement, id);
        job.made(deal.clone(), None);
        job.latest = Some(agreement);
        job.idle_rounds = 0;
        let active = Active::new(core, deal, job);
        job.stands(active);
        core.wake(Timer::Served(agreement), core.config.timing.resend);
        if job.round.is_none() {
            job.rest(core);
        }
    }
}

/// The longest that an agreement can take, with slack for messages.
pub(super) fn longest(deal: &Deal, core: &Core) -> Duration {
    let quote = deal.quote().body();
    let slack = core.config.timing.lost_after * 2;
    let wait = quote.wait_max.duration();
    let work = match &quote.work {
        Work::Job => quote.run_max.duration(),
        Work::Array { .. } => quote
            .run_max
            .duration()
            .saturating_mul(quote.work.unit_count()),
        Work::Lease { until, .. } => until.since(core.now.wall),
    };
    wait.saturating_add(quote.transfer_max.duration())
        .saturating_add(work)
        .saturating_add(slack)
}

/// What is asked of whom: the whole of a single job of the best few, or shares.
fn choose(
    core: &Core,
    book: &Book,
    (job, staying): (&Job, &Staying),
    [excluded, full]: [&LeftOut; 2],
    wanted: &Wanted,
) -> (Vec<Share>, Option<rank::Score>) {
    let budget = wanted.budget(job);
    let view = |peer: PeerId| {
        if excluded.has(core.now.mono, peer) {
            return Err(Reason::EXCLUDED);
        }
        if !job.spreads() && (full.has(core.now.mono, peer) || job.too_late.contains(&peer)) {
            return Err(Reason::BUSY);
        }
        core.view(peer, book, core.now.wall)
    };
    // Offers are judged for one unit: shares are made of as many as fit.
    let (work, budget) = if job.spreads() {
        (&Work::Job, budget)
    } else {
        (&job.order.work, job.unspent())
    };
    let left = job.deadline.since(core.now.mono);
    // A single job asks the best few, and looks at the one after them.
    let candidates = if job.spreads() {
        PLAN_MAX
    } else {
        ASKS_MAX + 1
    };
    let named = Named {
        candidates,
        misfits: 0,
    };
    let plan = plan(
        (core, staying),
        (book, core.now.wall),
        (&job.order, named, !job.agreements.is_empty()),
        (work, budget, Some(left.into())),
        |peer| job.was_declined(book, peer),
        view,
    );
    let found = plan
        .candidates
        .into_iter()
        .filter_map(|candidate| Some((book.of(candidate.peer)?.clone(), candidate)));
    if job.spreads() {
        return (job.shares(core, found.collect(), wanted), None);
    }
    let mut found: Vec<(Verified<Offer>, Candidate)> = found.collect();
    let next = found.get(ASKS_MAX).and_then(|(offer, candidate)| {
        let device = candidate.devices.first()?;
        let found = (offer.body(), *device, candidate.believed);
        score_on(&job.order, left.into(), found, candidate.expected)
    });
    found.truncate(ASKS_MAX);
    let whole = |(offer, candidate)| Share {
        offer,
        candidate,
        units: job.open.clone(),
        budget,
    };
    (found.into_iter().map(whole).collect(), next)
}

/// Who could do an order's work within a budget and a time, now, of those that are not
/// to be skipped. See [`rank::rank_book`] for `view`.
fn plan(
    (core, staying): (&Core, &Staying),
    (book, now): (&Book, Wall),
    (order, named, is_begun): (&JobOrder, Named, bool),
    (work, budget, within): (&Work, Amount, Option<Millis>),
    skip: impl Fn(PeerId) -> bool,
    view: impl Fn(PeerId) -> Result<View, Reason>,
) -> Plan {
    let sizes = order.inputs.iter().map(|input| input.bytes);
    let inputs_bytes = sizes.fold(0, u64::saturating_add);
    let (held, away) = staying.bytes_of(now, &order.inputs);
    let me = core.me();
    // Judged for one unit, sending is shared by all of them.
    let units = order.work.unit_count() / work.unit_count().max(1);
    let sent = u128::from(inputs_bytes.saturating_sub(away)) / u128::from(units.max(1));
    let traffic = u128::from(core.config.traffic.as_micros()) * sent / 1_000_000_000;
    let want = Want {
        needs: &order.needs,
        work,
        budget,
        regions: &order.regions,
        flops: (order.flops > 0).then_some(order.flops),
        policy: order.policy,
        condition: order.condition.as_ref(),
        rank: order.rank.as_ref(),
        account: core.config.account,
        home: &core.config.region,
        inputs_bytes,
        traffic: Amount::from_micros(u64::try_from(traffic).unwrap_or(u64::MAX)),
        within,
        is_begun,
    };
    let is_allowed = |peer| order.providers.is_empty() || order.providers.contains(&peer);
    rank::rank_some(
        book,
        now,
        (&want, named),
        |peer| !is_allowed(peer) || skip(peer),
        |peer| {
            if peer == me {
                Err(Reason::OWN_OFFER)
            } else {
                let holds = held.get(&peer).copied().unwrap_or(0);
                view(peer).map(|view| View { holds, ..view })
            }
        },
    )
}

impl Buyer {
    /// Who could do an order's work, were it submitted now.
    pub(crate) fn plan(&self, core: &Core, (book, now): (&Book, Wall), order: &JobOrder) -> Plan {
        plan(
            (core, &self.staying),
            (book, now),
            (order, Named::MANY, false),
            (&order.work, order.budget, Some(order.total)),
            |_| false,
            |peer| core.view(peer, book, now),
        )
    }
}

/// How long a job can wait for a turn and still be done in time, if nothing but the wait is
/// in its way: a quarter is added to what it is expected to take.
fn wait_max(job: &Job, expected: &rank::Expected, now: Mono) -> Millis {
    let within = Millis::from(job.deadline.since(now)).get();
    let run = expected.run.get();
    Millis::new(within.saturating_sub(run.saturating_add(run / 4)))
}

fn build_request(
    core: &Core,
    job: &Job,
    share: &Share,
    take: bool,
    counter: Option<QuoteId>,
) -> Request {
    let order = &job.order;
    let (work, inputs) = job.part(&share.units);
    let resume = job.resumed(&work.units(), share.offer.body().account);
    Request {
        account: core.config.account,
        delegation: core.config.delegation.clone(),
        principal: order.principal.clone(),
        provider: share.offer.signer(),
        offer: OfferId(share.offer.hash()),
        job: order.job,
        attempt: job.attempt,
        work,
        spec: order.spec,
        resume: checkpoints::named(resume, inputs.len()),
        inputs: List::truncated(inputs),
        checkpoint_every: order.checkpoint_every,
        needs: order.needs.clone(),
        devices: share.candidate.devices.clone(),
        budget: share.budget,
        wait_max: Some(wait_max(job, &share.candidate.expected, core.now.mono)),
        verification: order.verify.told(),
        confidentiality: order.confidentiality,
        retention: order.retention,
        take,
        counter,
        extensions: Extensions::default(),
    }
}

/// The best quote of a job's round that still has time to be taken. One that allows less
/// than the work is expected to take comes after all that allow more: its low cap is the
/// price of half a job. Then those come first that are in time however long they wait for
/// their turn.
///
/// Beside it, whether it begins at once, or is worth the wait.
pub(super) fn best_quote(job: &Job, now: Now) -> Option<(usize, bool)> {
    let order = &job.order;
    let within = Millis::from(job.deadline.since(now.mono));
    let score = |ask: &Ask, quote: &Quote| {
        let request = ask.request.body();
        let units = quote.work.unit_count();
        let needs = &request.needs;
        let mut expected = ask.candidate.expected;
        let quantity = rank::expected_quantity(needs, expected.run);
        let price = rank::expected_price(&quote.prices, needs.runtime, quantity, units);
        expected.price = price.min(quote.cap);
        let wait = Millis::from(quote.start_expected.since(now.wall));
        expected.told(wait, lacking_bytes(request, quote));
        // It begins by then at the latest; and what then fails is to be in time elsewhere.
        let longest = quote.wait_max.get().saturating_sub(wait.get());
        let longest = longest.saturating_add(expected.run.get() / 4);
        let may_be_late = quote.wait_max > Millis::default()
            && (expected.finish.get().saturating_add(longest) > within.get()
                || deal::is_wait_bounded(request, quote));
        let lacking = quantity.saturating_sub(quote.quantity_max(needs.runtime));
        let found = (ask.offer.body(), quote.device, ask.candidate.believed);
        let score = score_on(order, within, found, expected);
        (lacking > 0, may_be_late, lacking, score.is_none(), score)
    };
    let round = job.round.as_ref()?;
    let asks = round.asks.iter();
    let best = asks
        .enumerate()
        .filter_map(|(n, ask)| match &ask.answer {
            // A take is an agreement already, whatever our clock says.
            Some(Ok(quote)) if quote.expires() > now.wall || ask.request.body().take => {
                let is_free = !quote.body().held;
                Some((score(ask, quote.body()), is_free, n))
            }
            Some(Ok(_) | Err(_)) | None => None,
        })
        .min();
    let ((_, may_be_late, .., score), _, n) = best?;
    let waits = matches!(&round.asks.get(n)?.answer, Some(Ok(quote)) if quote.body().wait_max > Millis::default());
    let next_is_better = round.next.is_some_and(|next| Some(next) < score);
    let passed = job.too_late.len();
    let passes = (may_be_late && passed < PASSED_LATE_MAX)
        || (waits && next_is_better && passed < PASSED_MAX);
    Some((n, !passes))
}

/// What an expectation of an offer on one of its devices is worth to a job.
fn score_on(
    order: &JobOrder,
    within: Millis,
    (offer, device, believed): (&Offer, u16, u8),
    expected: rank::Expected,
) -> Option<rank::Score> {
    let device = offer.devices.get(usize::from(device))?;
    let fields = OfferFields {
        figures: Figures::of(offer, device),
        believed,
        expected,
    };
    let rank = order.rank.as_ref();
    Some(rank::score(order.policy, rank, Some(within), &fields))
}

/// How many bytes of the inputs a provider lacks, and of how many.
fn lacking_bytes(request: &Request, quote: &Quote) -> (u64, u64) {
    let sum = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0, u64::saturating_add);
    // The first is the program.
    let lacking = quote.missing.iter().copied().filter(|n| *n > 0);
    let lacking = request.numbered(lacking);
    (
        sum(&mut lacking.iter().map(|blob| blob.bytes)),
        sum(&mut request.blobs().skip(1).map(|blob| blob.bytes)),
    )
}

/// Units that go on under an agreement, and after how many steps.
fn resumed_in(deal: &Deal) -> Vec<(u32, u64)> {
    let resumed = deal.request().body().resume.iter();
    resumed.map(|kept| (kept.unit, kept.done)).collect()
}
