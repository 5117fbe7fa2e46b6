//! Rebuilding jobs from records.

use super::*;

/// Rebuilding from records.
impl Buyer {
    pub(crate) fn replay(&mut self, core: &mut Core, ledger: &mut Ledger, record: &Record) {
        match record {
            Record::Submitted { order, at } => {
                self.jobs
                    .insert(order.job, Job::replayed(core, order.clone(), *at));
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
                    job.replay_gave_up(*agreement, *reason);
                }
            }
            Record::Judged {
                receipt,
                acceptance,
                outputs,
            } => {
                self.replay_judged(core, ledger, receipt, acceptance);
                if let Some(&id) = self.by_agreement.get(&receipt.body().key.agreement)
                    && acceptance.body().verdict == Verdict::Accepted
                {
                    let here: Vec<BlobId> = outputs.iter().map(|output| output.blob).collect();
                    self.remember_staying(id, receipt, &here);
                }
                outputs.iter().for_each(|output| self.recall_output(output));
            }
            Record::Reached { job, account, kept } => {
                if let Some(job) = self.jobs.get_mut(job) {
                    let reached = Reached::new(*account, kept.clone());
                    job.reached.insert(kept.unit, reached);
                }
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
                end,
            } => {
                let mut job = Job::replayed(core, order.clone(), *at);
                job.attempt = *attempt;
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
            Part::Tries {
                job,
                losses,
                last_reason,
            } => {
                if let Some(job) = self.jobs.get_mut(job) {
                    job.losses = *losses;
                    job.last_reason = *last_reason;
                }
            }
            Part::Spent {
                principal,
                day,
                amount,
            } => self.spending.recall(principal, *day, *amount),
            Part::Output(output) => self.recall_output(output),
            Part::Results(..)
            | Part::Partners(_)
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
        job.made(deal.clone(), fate);
        job.latest = Some(deal.id());
        if live {
            job.stands(Active::new(core, deal, job));
        }
    }

    fn replay_ended(&mut self, id: JobId, end: JobEnd) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.live.clear();
            job.runs.clear();
            job.reached.clear();
            job.end = Some(end);
            self.forget_old(id);
        }
    }

    fn replay_took(&mut self, core: &Core, deal: Deal) {
        let id = deal.quote().body().job;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        self.by_agreement.insert(deal.id(), id);
        job.made(deal.clone(), None);
        // One more than a single job has is a take that was answered late: it was
        // given up at once.
        let late = job.is_alone() && !job.live.is_empty();
        if job.end.is_none() && !late {
            job.latest = Some(deal.id());
            job.stands(Active::new(core, deal, job));
        }
    }

    fn replay_judged(
        &mut self,
        core: &mut Core,
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
        job.is_judged(receipt.clone(), acceptance.clone());
        if let Some(deal) = job.deal(key.agreement) {
            let account = deal.quote().body().account;
            (core.standings).judged(receipt.signer(), account, acceptance);
        }
        if acceptance.body().verdict != Verdict::Accepted {
            // Its provider has said what it had to say on this unit.
            let wrong = acceptance.body().verdict == Verdict::Disputed(Reason::WRONG_RESULT);
            if wrong && key.last {
                job.has_answered(key);
            }
            return;
        }
        let body = receipt.body();
        job.spent = job.spent.saturating_add(body.amount);
        let at = acceptance.issued();
        self.spending.add(&job.order.principal, at, body.amount);
        if let Some(deal) = job.deal(key.agreement) {
            let parties = deal_parties(deal);
            let receipt = ReceiptId(receipt.hash());
            ledger.replay_owed(core, parties, receipt, body.amount);
        }
        if key.last && job.is_in_doubt(body) {
            job.begins_anew(key);
            job.live.retain(|_, active| !active.left.is_empty());
        } else if key.last {
            let outcome = match acceptance.body().verification {
                Verification::UNDECIDED => Outcome::JobFault(Reason::RESULTS_DIFFER),
                _ => body.outcome,
            };
            job.replay_result(key, outcome);
        }
    }

    /// Replaying these makes the same state, if nothing was done with it but
    /// replaying.
    pub(crate) fn condense(&self, into: &mut Vec<Record>) {
        let outputs = self.small_outputs.iter().cloned();
        into.extend(outputs.map(|output| Record::Part(Part::Output(output))));
        self.past.condense(into);
        let ended = self.ended.iter().filter_map(|id| self.jobs.get(id));
        let open = self.jobs.values().filter(|job| job.end.is_none());
        for job in ended.chain(open) {
            job.condense(into);
        }
        // After what they are the sums of.
        self.spending.condense(into);
    }

    /// After replay: every open job goes on.
    pub(crate) fn resume(&mut self, core: &mut Core, ledger: &mut Ledger) {
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
            .filter(|(_, job)| job.end.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in open {
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            // The last acceptance may have been written without what follows it.
            if let Some(end) = job.end_by_receipts() {
                self.end(core, ledger, id, end);
                continue;
            }
            if job.cancelling && job.live.is_empty() {
                self.end(core, ledger, id, JobEnd::Cancelled);
                continue;
            }
            for agreement in job.live.keys() {
                core.wake(Timer::Served(*agreement), Duration::ZERO);
            }
            if job.cancelling {
                self.stop(core, id);
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

impl Job {
    fn replayed(core: &Core, order: Box<JobOrder>, at: Wall) -> Self {
        let passed = core.now.wall.since(at);
        let left = order.total.duration().saturating_sub(passed);
        let deadline = core.now.mono.after(left);
        Self::new(order, core.now, at, deadline)
    }

    fn condense(&self, into: &mut Vec<Record>) {
        let end = self.end;
        let mut order = self.order.clone();
        if end.is_some() {
            // Nobody is sent anything for it any more.
            order.inline = InlineBlobs::default();
        }
        into.push(Record::Part(Part::Job {
            order,
            at: self.submitted,
            attempt: self.attempt,
            end,
        }));
        let latest = self
            .latest
            .and_then(|id| self.agreements.get_key_value(&id));
        let others = self.agreements.iter();
        let others = others.filter(|(id, _)| Some(**id) != self.latest);
        for (id, Made { deal, fate, .. }) in others.chain(latest) {
            into.push(Record::Part(Part::Deal {
                offer: deal.offer().clone(),
                request: deal.request().clone(),
                quote: deal.quote().clone(),
                agreement: deal.agreement().cloned(),
                fate: *fate,
                live: self.live.contains_key(id),
            }));
        }
        into.extend(self.judged.values().map(|judged| Record::Judged {
            receipt: judged.receipt.clone(),
            acceptance: judged.acceptance.clone(),
            // The last ones are apart, in order.
            outputs: InlineBlobs::default(),
        }));
        if end.is_none() {
            into.extend(
                self.reached
                    .values()
                    .map(|reached| reached.record(self.order.job)),
            );
            into.push(Record::Part(Part::Tries {
                job: self.order.job,
                losses: self.losses,
                last_reason: self.last_reason,
            }));
        }
        if self.cancelling && end.is_none() {
            into.push(Record::Cancelling {
                job: self.order.job,
            });
        }
    }

    fn replay_gave_up(&mut self, agreement: AgreementId, reason: Reason) {
        self.fence(agreement, reason);
        let Some(active) = self.live.remove(&agreement) else {
            return;
        };
        for unit in active.left {
            self.no_longer_runs(unit, agreement);
        }
        if !is_by_choice(reason) {
            self.last_reason = reason;
            self.losses += 1;
        }
    }

    /// Expects no other result of a unit under this agreement.
    fn has_answered(&mut self, key: ReceiptKey) {
        if let Some(active) = self.live.get_mut(&key.agreement) {
            active.left.remove(&key.unit);
        }
        self.no_longer_runs(key.unit, key.agreement);
        self.live.retain(|_, active| !active.left.is_empty());
    }

    fn replay_result(&mut self, key: ReceiptKey, outcome: Outcome) {
        let unit = key.unit;
        match outcome {
            Outcome::Completed => {}
            Outcome::JobFault(reason) => {
                self.failed.insert(unit, reason);
            }
            Outcome::ProviderFault(_) => return,
            // What its provider had left it does not run any more.
            Outcome::Cancelled => {
                self.live.remove(&key.agreement);
                return;
            }
        }
        self.losses = 0;
        self.open.remove(&unit);
        self.reached.remove(&unit);
        for agreement in self.runs.remove(&unit).unwrap_or_default() {
            if let Some(active) = self.live.get_mut(&agreement) {
                active.left.remove(&unit);
                active.overtaken.insert(unit);
            }
        }
        // A unit may have several accepted results; they come in any order.
        if let Some(active) = self.live.get_mut(&key.agreement) {
            active.overtaken.remove(&unit);
        }
        self.live.retain(|_, active| !active.left.is_empty());
    }

    /// How what was accepted ends the job, if it does.
    fn end_by_receipts(&self) -> Option<JobEnd> {
        let failed = u32::try_from(self.failed.len()).unwrap_or(u32::MAX);
        let why = self.failed.values().next_back();
        if let Some(reason) = why.filter(|_| failed > self.order.max_failures) {
            return Some(JobEnd::Failed(*reason));
        }
        self.open.is_empty().then_some(JobEnd::Done)
    }
}

/// Whether an agreement was left though its provider did nothing wrong.
const fn is_by_choice(reason: Reason) -> bool {
    matches!(reason, Reason::SUPERSEDED | Reason::JOB_DEADLINE)
}
