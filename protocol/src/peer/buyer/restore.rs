//! Rebuilding jobs from records.

use super::*;

/// Rebuilding from records.
impl Buyer {
    pub(crate) fn replay(&mut self, core: &Core, ledger: &mut Ledger, record: &Record) {
        match record {
            Record::Submitted { order, at } => {
                self.jobs
                    .insert(order.job, Job::replayed(core, order.clone(), *at));
            }
            Record::Challenged(outcome) => self.standings.challenged(outcome.clone()),
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
                outputs,
            } => {
                self.replay_judged(core, ledger, receipt, acceptance);
                outputs.iter().for_each(|output| self.recall_output(output));
            }
            Record::Cancelling { job } => {
                if let Some(job) = self.jobs.get_mut(job) {
                    job.cancelling = true;
                }
            }
            Record::Ended { job, end, .. } => self.replay_ended(*job, *end),
            Record::Part(part) => self.replay_part(core, part),
            _ => {}
        }
    }

    fn recall_output(&mut self, output: &InlineBlob) {
        self.small_outputs.push_back(output.clone());
        if self.small_outputs.len() > OUTPUTS_RESTORED {
            self.small_outputs.pop_front();
        }
    }

    fn replay_part(&mut self, core: &Core, part: &Part) {
        match part {
            Part::Past {
                agreement,
                provider,
                word,
            } => self.past.recall(*agreement, *provider, word.as_ref()),
            Part::Job {
                order,
                at,
                attempt,
                last_reason,
                end,
            } => {
                let mut job = Job::replayed(core, order.clone(), *at);
                job.attempt = *attempt;
                job.last_reason = *last_reason;
                self.jobs.insert(order.job, job);
                if let Some(end) = end {
                    self.replay_ended(order.job, *end);
                }
            }
            Part::Deal {
                offer,
                request,
                quote,
                agreement,
                fate,
                live,
            } => {
                let (offer, request, quote) = (offer.clone(), request.clone(), quote.clone());
                if let Ok(deal) = Deal::new(offer, request, quote, agreement.clone()) {
                    self.replay_deal(core, deal, *fate, *live);
                }
            }
            Part::Output(output) => self.recall_output(output),
            Part::Partners(_)
            | Part::Answer(_)
            | Part::Work { .. }
            | Part::Channel { .. }
            | Part::Owed { .. }
            | Part::Voucher { .. } => {}
        }
    }

    fn replay_deal(&mut self, core: &Core, deal: Deal, fate: Option<Reason>, live: bool) {
        let id = deal.quote().body().job;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        self.by_agreement.insert(deal.id(), id);
        job.agreements.push((deal.clone(), fate));
        if live {
            job.state = State::Active(Box::new(Active::replayed(core, deal, job.deadline)));
        }
    }

    fn replay_ended(&mut self, id: JobId, end: JobEnd) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.state = State::Ended(end);
            self.forget_old(id);
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
        job.state = State::Active(Box::new(Active::replayed(core, deal, job.deadline)));
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
            if let Some(past) = self.past.agreements.get_mut(&key.agreement) {
                past.judged
                    .insert(ReceiptId(receipt.hash()), acceptance.clone());
            }
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

    /// Replaying these makes the same state, if nothing was done with it but
    /// replaying.
    pub(crate) fn condense(&self, into: &mut Vec<Record>) {
        let outputs = self.small_outputs.iter().cloned();
        into.extend(outputs.map(|output| Record::Part(Part::Output(output))));
        self.past.condense(into);
        let ended = self.ended.iter().filter_map(|id| self.jobs.get(id));
        let open = self
            .jobs
            .values()
            .filter(|job| !matches!(job.state, State::Ended(_)));
        for job in ended.chain(open) {
            job.condense(into);
        }
    }

    /// After replay: every open job goes on.
    pub(crate) fn resume(&mut self, core: &mut Core) {
        // The node may have stopped before the last ones were blobs.
        for output in std::mem::take(&mut self.small_outputs) {
            core.output(Output::Store {
                blob: output.blob,
                bytes: output.bytes.into_vec(),
                kept: Kept::Result,
            });
        }
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
            if job.cancelling && matches!(job.state, State::Active(_)) {
                self.stop(core, id);
                continue;
            }
            if job.cancelling {
                self.end(core, id, JobEnd::Cancelled);
                continue;
            }
            core.wake(Timer::Job(id), Duration::ZERO);
        }
    }
}

impl Past {
    fn recall(
        &mut self,
        agreement: AgreementId,
        provider: PeerId,
        word: Option<&Verified<Acceptance>>,
    ) {
        let past = self.agreements.entry(agreement).or_insert_with(|| {
            self.order.push_back(agreement);
            PastAgreement {
                provider,
                judged: BTreeMap::new(),
            }
        });
        if let Some(word) = word {
            past.judged.insert(word.body().receipt, word.clone());
        }
    }

    fn condense(&self, into: &mut Vec<Record>) {
        for (&agreement, past) in self
            .order
            .iter()
            .filter_map(|id| self.agreements.get_key_value(id))
        {
            let kept = |word: Option<&Verified<Acceptance>>| {
                Record::Part(Part::Past {
                    agreement,
                    provider: past.provider,
                    word: word.cloned(),
                })
            };
            into.extend(past.judged.is_empty().then(|| kept(None)));
            into.extend(past.judged.values().map(|word| kept(Some(word))));
        }
    }
}

impl Active {
    fn replayed(core: &Core, deal: Deal, deadline: Mono) -> Self {
        Self {
            give_up: core.now.mono.after(longest(&deal, core)).min(deadline),
            // The provider may not have it yet: it is sent again, except where
            // the provider's own signature completed it.
            acked: deal.agreement().is_none(),
            deal,
            began: core.now.mono,
            heard: core.now.mono,
            progress: BTreeMap::new(),
            collecting: BTreeMap::new(),
            next_log: 0,
            fetch_tries: 0,
        }
    }
}

impl Job {
    fn replayed(core: &Core, order: Box<JobOrder>, at: Wall) -> Self {
        let passed = core.now.wall.since(at);
        let left = order.total.duration().saturating_sub(passed);
        let deadline = core.now.mono.after(left);
        Self::new(order, core.now, at, deadline)
    }

    fn condense(&self, into: &mut Vec<Record>) {
        let (end, live) = match &self.state {
            State::Ended(end) => (Some(*end), None),
            State::Active(active) => (None, Some(active.deal.id())),
            State::Waiting | State::Asking(_) => (None, None),
        };
        let mut order = self.order.clone();
        if end.is_some() {
            // Nobody is sent anything for it any more.
            order.inline = InlineBlobs::default();
        }
        into.push(Record::Part(Part::Job {
            order,
            at: self.submitted,
            attempt: self.attempt,
            last_reason: self.last_reason,
            end,
        }));
        for (deal, fate) in &self.agreements {
            into.push(Record::Part(Part::Deal {
                offer: deal.offer().clone(),
                request: deal.request().clone(),
                quote: deal.quote().clone(),
                agreement: deal.agreement().cloned(),
                fate: *fate,
                live: live == Some(deal.id()),
            }));
        }
        into.extend(self.judged.values().map(|judged| Record::Judged {
            receipt: judged.receipt.clone(),
            acceptance: judged.acceptance.clone(),
            // The last ones are apart, in order.
            outputs: InlineBlobs::default(),
        }));
        if self.cancelling && end.is_none() {
            into.push(Record::Cancelling {
                job: self.order.job,
            });
        }
    }

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
