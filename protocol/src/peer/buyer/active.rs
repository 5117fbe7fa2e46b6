//! While an agreement stands: its provider is watched, its receipts judged.

use super::*;

/// The agreement, with what is small of what the provider lacks.
pub(super) fn send_agreement(core: &mut Core, lsn: Lsn, deal: &Deal, order: &JobOrder) {
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
        if latest.2 == 0 {
            active.began = core.now.mono;
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
            if self.is_taking_from(from) {
                return self.keep_early(from, receipt, inline);
            }
            return self.answer_from_past(core, from, &receipt);
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
            self.dispute(core, id, &receipt, fault.reason());
            if live {
                self.give_up(core, id, fault.reason());
            }
            return;
        }
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if !live || !job.wants(&receipt) {
            self.dispute(core, id, &receipt, Reason::SUPERSEDED);
            return;
        }
        self.rate(core, id, &receipt);
        self.collect(core, id, receipt, inline);
        self.accept_collected(core, ledger, id, receipt_id);
    }

    /// Whether a firm offer of this peer was taken and not countersigned yet.
    fn is_taking_from(&self, peer: PeerId) -> bool {
        let jobs = self.by_request.values().filter_map(|id| self.jobs.get(id));
        jobs.into_iter().any(|job| match &job.state {
            State::Asking(asking) => asking.asks.iter().any(|ask| {
                ask.request.body().take && ask.answer.is_none() && ask.offer.signer() == peer
            }),
            State::Waiting | State::Active(_) | State::Ended(_) => false,
        })
    }

    /// What is not kept comes again.
    fn keep_early(&mut self, from: PeerId, receipt: Verified<Receipt>, inline: Vec<InlineBlob>) {
        if self.early.len() == EARLY_RECEIPTS_MAX {
            self.early.pop_front();
        }
        self.early.push_back(Early {
            from,
            receipt,
            inline,
        });
    }

    /// Takes in the receipts that overtook their agreement.
    pub(super) fn hear_early(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        agreement: AgreementId,
    ) {
        let is_of = |early: &Early| early.receipt.body().key.agreement == agreement;
        while let Some(n) = self.early.iter().position(is_of) {
            if let Some(Early {
                from,
                receipt,
                inline,
            }) = self.early.remove(n)
            {
                self.on_receipt(core, ledger, from, receipt, inline);
            }
        }
    }

    /// Stores what came with a receipt and asks for the rest.
    /// Holds the speed of real work against the offer, where we know how much work it
    /// was: fuel, or what the job says.
    fn rate(&mut self, core: &Core, id: JobId, receipt: &Verified<Receipt>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let State::Active(active) = &job.state else {
            return;
        };
        let quote = active.deal.quote().body();
        let runtime = active.deal.request().body().needs.runtime;
        let body = receipt.body();
        if body.outcome != Outcome::Completed || !matches!(quote.work, Work::Job) {
            return;
        }
        let operations = match runtime {
            Runtime::WASM => body
                .usage
                .iter()
                .find(|line| line.meter == Meter::WASM_FUEL)
                .map_or(0, |line| line.quantity),
            _ => job.order.flops,
        };
        let devices = &active.deal.offer().body().devices;
        let device = devices.get(usize::from(quote.device));
        let claimed = device.map_or(0, |device| device.speed(rank::speed_of(runtime)));
        let took = Millis::from(core.now.mono.since(active.began));
        if operations > 0 {
            let provider = active.deal.provider();
            self.standings.worked(provider, operations, took, claimed);
        }
    }

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
        let agreement = active.deal.id();
        let mut collecting = Collecting::new(receipt);
        for output in collecting.receipt.clone().body().outputs.iter() {
            let blob = output.blob;
            if collecting.has(blob.blob) {
                continue;
            }
            let came = inline.iter().find(|inline| inline.blob == blob.blob);
            core.output(match came {
                Some(inline) => Output::Store {
                    blob: blob.blob,
                    bytes: inline.bytes.to_vec(),
                    kept: if collecting.write_down(inline) {
                        Kept::Result
                    } else {
                        Kept::OnlyResult(agreement)
                    },
                },
                None => Output::Fetch {
                    agreement,
                    from: active.deal.provider(),
                    blob,
                    durable: true,
                },
            });
            if !collecting.has(blob.blob) {
                collecting.missing.insert(blob.blob);
            }
        }
        active.collecting.insert(receipt_id, collecting);
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
        let wanted = active
            .collecting
            .values()
            .find(|collecting| collecting.missing.contains(&blob))
            .map(|collecting| collecting.receipt.clone());
        let Some(receipt) = wanted else {
            return;
        };
        active.fetch_tries += 1;
        if active.fetch_tries > core.config.timing.fetch_tries {
            self.dispute(core, id, &receipt, Reason::WRONG_OUTPUTS);
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
        let outputs = List::truncated(collecting.small);
        let lsn = self.judge(core, id, &collecting.receipt, Verdict::Accepted, outputs);
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
        if !more_here && job.cancelling {
            return self.end(core, id, JobEnd::Cancelled);
        }
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
        outputs: InlineBlobs,
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
            outputs,
        });
        core.send_after(lsn, receipt.signer(), Frame::Acceptance(acceptance.raw()));
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

    fn dispute(&mut self, core: &mut Core, id: JobId, receipt: &Verified<Receipt>, reason: Reason) {
        let verdict = Verdict::Disputed(reason);
        let lsn = self.judge(core, id, receipt, verdict, InlineBlobs::default());
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

    /// Ends a job whose provider may still be at it.
    pub(super) fn end_active(&mut self, core: &mut Core, id: JobId, end: JobEnd) {
        if let Some(State::Active(active)) = self.jobs.get(&id).map(|job| &job.state) {
            core.send(active.deal.provider(), Frame::Cancel(active.deal.id()));
        }
        self.end(core, id, end);
    }

    /// Gives an agreement up and fences it; the job goes on elsewhere.
    pub(super) fn give_up(&mut self, core: &mut Core, id: JobId, reason: Reason) {
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
        let at_fault = !matches!(reason, Reason::QUOTE_EXPIRED | Reason::QUOTE_UNKNOWN);
        if at_fault && !cancelling {
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

    pub(super) fn exclude(&mut self, core: &Core, peer: PeerId) {
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

    pub(super) fn end(&mut self, core: &mut Core, id: JobId, end: JobEnd) {
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

    /// A receipt for a job that is over long since. What was judged is repeated;
    /// anything else came too late to be of use.
    fn answer_from_past(&mut self, core: &mut Core, from: PeerId, receipt: &Verified<Receipt>) {
        let Some(past) = self.past.agreements.get_mut(&receipt.body().key.agreement) else {
            return;
        };
        if past.provider != from {
            return;
        }
        let id = ReceiptId(receipt.hash());
        if let Some(acceptance) = past.judged.get(&id) {
            return core.send_again(from, Frame::Acceptance(acceptance.raw()));
        }
        let refused = past
            .judged
            .values()
            .filter(|word| word.body().verdict != Verdict::Accepted);
        if refused.count() >= DISPUTES_MAX {
            return;
        }
        let acceptance = core.sign(Acceptance {
            receipt: id,
            key: receipt.body().key,
            verdict: Verdict::Disputed(Reason::SUPERSEDED),
            verification: Verification::HASHES,
            extensions: Extensions::default(),
        });
        let lsn = core.persist(Record::Judged {
            receipt: receipt.clone(),
            acceptance: acceptance.clone(),
            outputs: InlineBlobs::default(),
        });
        core.send_after(lsn, from, Frame::Acceptance(acceptance.raw()));
        past.judged.insert(id, acceptance);
    }

    /// Keeps the last ended jobs in memory; the store has them all.
    pub(super) fn forget_old(&mut self, ended: JobId) {
        self.ended.push_back(ended);
        if self.ended.len() <= ENDED_JOBS_KEPT {
            return;
        }
        let Some(job) = self.ended.pop_front().and_then(|id| self.jobs.remove(&id)) else {
            return;
        };
        let id = job.order.job;
        self.past.keep(&job);
        self.by_request.retain(|_, of| *of != id);
        for (deal, _) in &job.agreements {
            self.by_agreement.remove(&deal.id());
        }
    }
}

impl Collecting {
    const fn new(receipt: Verified<Receipt>) -> Self {
        Self {
            receipt,
            missing: BTreeSet::new(),
            small: Vec::new(),
        }
    }

    fn has(&self, blob: BlobId) -> bool {
        self.missing.contains(&blob) || self.small.iter().any(|small| small.blob == blob)
    }

    /// Keeps an output for the record, if that has room for it.
    fn write_down(&mut self, output: &InlineBlob) -> bool {
        let bytes = |output: &InlineBlob| output.bytes.len();
        let used: usize = self.small.iter().map(bytes).sum();
        let fits = used + bytes(output) <= JUDGED_BYTES_MAX;
        if fits {
            self.small.push(output.clone());
        }
        fits
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
