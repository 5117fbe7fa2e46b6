//! Asking providers, and choosing among their quotes.

use super::*;

/// Asking.
impl Buyer {
    /// Asks the best offers that fit, or waits for better times.
    pub(super) fn look_for_offers(
        &mut self,
        core: &mut Core,
        book: &Book,
        ledger: &mut Ledger,
        id: JobId,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if core.now.mono >= job.deadline {
            return self.end(core, id, JobEnd::Expired);
        }
        let chosen = choose_offers(
            core.identity(),
            book,
            job,
            (&self.excluded, &self.standings),
            core.now,
        );
        if chosen.is_empty() {
            // A provider that is left out for a while is better than none.
            let later = choose_offers(
                core.identity(),
                book,
                job,
                (&BTreeMap::new(), &self.standings),
                core.now,
            );
            return self.wait(core, id, !later.is_empty());
        }
        job.attempt += 1;
        let budget = job.order.budget.saturating_sub(job.spent);
        let mut asks = Vec::new();
        // One that can't be reached would keep the job waiting alone.
        let is_firm = |offer: &Verified<Offer>| {
            offer.body().firm && core.connected.contains_key(&offer.signer())
        };
        let take = job.order.take && chosen.first().is_some_and(|(offer, _)| is_firm(offer));
        for (offer, candidate) in chosen.into_iter().take(if take { 1 } else { ASKS_MAX }) {
            let request = build_request(core, job, (&offer, &candidate), take, budget, None);
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
                candidate,
                request,
                answer: None,
            });
        }
        let peers = asks.iter().map(|ask| ask.offer.signer()).collect();
        let written = core.outbox.last();
        core.tell_after(
            written,
            Event::Job {
                job: id,
                event: JobEvent::Asked {
                    attempt: job.attempt,
                    peers,
                },
            },
        );
        job.state = State::Asking(Asking {
            asks,
            decide: None,
            give_up: core.now.mono.after(core.config.timing.quote_wait),
            resend: core.now.mono.after(core.config.timing.resend),
            countered: false,
        });
        wake(core, job, core.config.timing.resend);
    }

    /// Nobody can now: look again soon, if that can help. `later` says that
    /// somebody will be able to.
    pub(super) fn wait(&mut self, core: &mut Core, id: JobId, later: bool) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.state = State::Waiting;
        job.idle_rounds += 1;
        let passing = later
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
    pub(super) fn leave_asking(&mut self, core: &mut Core, id: JobId, except: Option<usize>) {
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
    pub(super) fn decide_if_ready(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId) {
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
        let Some(best) = best_quote(asking, &job.order, core.now) else {
            if all {
                self.leave_asking(core, id, None);
                self.wait(core, id, false);
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
        let (offer, candidate) = (ask.offer.clone(), ask.candidate.clone());
        let quote_id = QuoteId(quote.hash());
        let request = build_request(
            core,
            job,
            (&offer, &candidate),
            false,
            budget,
            Some(quote_id),
        );
        let request = core.sign_until(core.now.wall.after(core.config.timing.quote_wait), request);
        let lsn = core.persist(Record::Asked(request.clone()));
        core.send_after(lsn, offer.signer(), Frame::Ask(request.raw()));
        self.by_request.insert(RequestId(request.hash()), id);
        if let State::Asking(asking) = &mut job.state {
            asking.asks.push(Ask {
                offer,
                candidate,
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
        let agreement = deal.id();
        self.activate(core, id, deal);
        self.hear_early(core, ledger, agreement);
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
            began: core.now.mono,
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
pub(super) fn longest(deal: &Deal, core: &Core) -> Duration {
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
    me: (PeerId, AccountId),
    book: &Book,
    job: &Job,
    (excluded, standings): (&BTreeMap<PeerId, Exclusion>, &Standings),
    now: Now,
) -> Vec<(Verified<Offer>, Candidate)> {
    let work = job.remaining();
    let budget = job.order.budget.saturating_sub(job.spent);
    let offers = book.iter().filter(|offer| !job.was_declined(offer));
    let opinion = |peer: PeerId| {
        if excluded.get(&peer).is_some_and(|e| e.until > now.mono) {
            return Err(Reason::EXCLUDED);
        }
        standings.believed(peer).ok_or(Reason::FAILED_CHALLENGE)
    };
    let plan = plan(me, offers, &job.order, (&work, budget), opinion, now.wall);
    plan.candidates
        .into_iter()
        .filter_map(|candidate| Some((book.of(candidate.peer)?.clone(), candidate)))
        .take(ASKS_MAX)
        .collect()
}

/// Who of these could do an order's work within a budget, now. See [`rank::rank`] for
/// `opinion`.
pub(crate) fn plan<'a>(
    (me, account): (PeerId, AccountId),
    offers: impl Iterator<Item = &'a Verified<Offer>>,
    order: &JobOrder,
    (work, budget): (&Work, Amount),
    opinion: impl Fn(PeerId) -> Result<u8, Reason>,
    now: Wall,
) -> Plan {
    let sizes = order.inputs.iter().map(|input| input.bytes);
    let want = Want {
        needs: &order.needs,
        work,
        budget,
        regions: &order.regions,
        flops: (order.flops > 0).then_some(order.flops),
        policy: order.policy,
        condition: order.condition.as_ref(),
        rank: order.rank.as_ref(),
        account,
        inputs_bytes: sizes.fold(0, u64::saturating_add),
    };
    let is_allowed = |peer| order.providers.is_empty() || order.providers.contains(&peer);
    let offers = offers.filter(|offer| offer.expires() > now && is_allowed(offer.signer()));
    rank::rank(offers, &want, |peer| {
        if peer == me {
            Err(Reason::OWN_OFFER)
        } else {
            opinion(peer)
        }
    })
}

fn build_request(
    core: &Core,
    job: &Job,
    (offer, candidate): (&Verified<Offer>, &Candidate),
    take: bool,
    budget: Amount,
    counter: Option<QuoteId>,
) -> Request {
    let order = &job.order;
    let work = job.remaining();
    Request {
        account: core.config.account,
        delegation: core.config.delegation.clone(),
        principal: order.principal.clone(),
        provider: offer.signer(),
        offer: OfferId(offer.hash()),
        job: order.job,
        attempt: job.attempt,
        inputs: List::truncated(order.inputs_for(&work)),
        work,
        spec: order.spec,
        needs: order.needs.clone(),
        devices: candidate.devices.clone(),
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

/// The best quote that still has time to be taken. One that allows less than the
/// work is expected to take comes after all that allow more: its low cap is the
/// price of half a job.
pub(super) fn best_quote(asking: &Asking, order: &JobOrder, now: Now) -> Option<usize> {
    let score = |ask: &Ask, quote: &Quote| {
        let units = quote.work.unit_count();
        let needs = &ask.request.body().needs;
        let expected = ask.candidate.expected;
        let quantity = rank::expected_quantity(needs, expected);
        let price = rank::expected_price(&quote.prices, needs.runtime, quantity, units);
        let lacking = quantity.saturating_sub(quote.quantity_max(needs.runtime));
        let offer = ask.offer.body();
        let score = offer.devices.get(usize::from(quote.device)).map(|device| {
            let fields = OfferFields {
                offer,
                device,
                believed: ask.candidate.believed,
                expected,
                price: price.min(quote.cap),
            };
            rank::score(order.policy, order.rank.as_ref(), &fields)
        });
        (lacking, score.is_none(), score)
    };
    asking
        .asks
        .iter()
        .enumerate()
        .filter_map(|(n, ask)| match &ask.answer {
            // A take is an agreement already, whatever our clock says.
            Some(Ok(quote)) if quote.expires() > now.wall || ask.request.body().take => {
                let is_free = !quote.body().held;
                Some((score(ask, quote.body()), is_free, n))
            }
            Some(Ok(_) | Err(_)) | None => None,
        })
        .min()
        .map(|(_, _, n)| n)
}
