//! Rebuilding jobs from records.

use super::*;

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
                outputs,
            } => {
                self.replay_judged(core, ledger, receipt, acceptance);
                self.small_outputs.extend(outputs.iter().cloned());
                while self.small_outputs.len() > OUTPUTS_RESTORED {
                    self.small_outputs.pop_front();
                }
            }
            Record::Cancelling { job } => {
                if let Some(job) = self.jobs.get_mut(job) {
                    job.cancelling = true;
                }
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
