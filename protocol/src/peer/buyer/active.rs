//! While an agreement stands: its provider is watched, its receipts judged.

use super::*;

/// The agreement, with what is small of what the provider lacks.
pub(super) fn send_agreement(core: &mut Core, lsn: Lsn, deal: &Deal, order: &JobOrder) {
    let Some(agreement) = deal.agreement() else {
        return;
    };
    let (quote, request) = (deal.quote().body(), deal.request().body());
    let missing = request.numbered(quote.missing.iter().copied());
    let lacks = |blob: BlobId| missing.iter().any(|missing| missing.blob == blob);
    let inline: Vec<InlineBlob> = order
        .inline
        .iter()
        .filter(|inline| lacks(inline.blob))
        .cloned()
        .collect();
    let frame = Frame::Agree(agreement.raw(), List::truncated(inline));
    core.send_after(lsn, deal.provider(), frame);
}

/// Keeps a blob that came along, or asks its provider for it.
pub(super) fn store_or_fetch(
    deal: &Deal,
    blob: BlobRef,
    came: Option<&InlineBlob>,
    (kept, what): (Kept, Fetched),
) -> Output {
    match came {
        Some(inline) => Output::Store {
            blob: blob.blob,
            bytes: inline.bytes.to_vec(),
            kept,
        },
        None => Output::Fetch(FetchOrder {
            agreement: deal.id(),
            from: deal.provider(),
            under: deal.id(),
            blob,
            what,
        }),
    }
}

impl Active {
    /// An agreement that was just made, or is found again after a start.
    pub(super) fn new(core: &Core, deal: Deal, job: &Job) -> Self {
        let units = deal.quote().body().work.units();
        Self {
            left: units
                .into_iter()
                .filter(|unit| job.open.contains(unit))
                .collect(),
            overtaken: BTreeSet::new(),
            // The provider's own signature completed it, or it is to be sent.
            acked: deal.agreement().is_none(),
            began: core.now.mono,
            heard: core.now.mono,
            give_up: core.now.mono.after(longest(&deal, core)).min(job.deadline),
            progress: BTreeMap::new(),
            collecting: BTreeMap::new(),
            next_log: 0,
            fetch_tries: 0,
            arriving: None,
            reached_at: None,
            counted: None,
            deal,
        }
    }
}

/// While an agreement stands.
impl Buyer {
    fn active(&mut self, from: PeerId, agreement: AgreementId) -> Option<(JobId, &mut Active)> {
        let id = *self.by_agreement.get(&agreement)?;
        let active = self.jobs.get_mut(&id)?.live.get_mut(&agreement)?;
        (active.deal.provider() == from).then_some((id, active))
    }

    /// Any sign of life of the provider.
    pub(super) fn heard(
        &mut self,
        core: &Core,
        from: PeerId,
        agreement: AgreementId,
    ) -> Option<(JobId, &mut Active)> {
        let now = core.now.mono;
        let (id, active) = self.active(from, agreement)?;
        active.heard = now;
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
            core.wake(Timer::Served(agreement), core.config.timing.heartbeat * 2);
        }
    }

    pub(crate) fn on_agree_refused(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        from: PeerId,
        agreement: AgreementId,
        decline: Decline,
    ) {
        // Once it has agreed it can't refuse; a stray repeat changes nothing.
        if let Some((id, active)) = self.active(from, agreement)
            && !active.acked
        {
            let quote = active.deal.quote().body();
            let (account, held) = (quote.account, quote.held);
            // What was not held may be gone, and what came too late is refused.
            let late = matches!(
                decline.reason,
                Reason::QUOTE_EXPIRED | Reason::QUOTE_UNKNOWN
            );
            if held && !late {
                core.failed(from, account, Failing::Refused);
            }
            self.give_up(core, ledger, id, (agreement, decline.reason));
        }
    }

    pub(crate) fn on_lost(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        from: PeerId,
        agreement: AgreementId,
    ) {
        if let Some((id, _)) = self.active(from, agreement) {
            self.lose(core, ledger, id, (agreement, Reason::PROVIDER_LOST));
        }
    }

    /// Looks after a live agreement: repeats what was not answered, asks a
    /// silent provider, and gives it up when it stays silent.
    pub(crate) fn watch(&mut self, core: &mut Core, ledger: &mut Ledger, agreement: AgreementId) {
        if self.dispute_uncounted(core, ledger, agreement) {
            return;
        }
        let Some(&id) = self.by_agreement.get(&agreement) else {
            return;
        };
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let Some(active) = job.live.get(&agreement) else {
            return;
        };
        let timing = &core.config.timing;
        let (resend, heartbeat, lost_after) = (timing.resend, timing.heartbeat, timing.lost_after);
        let silent = core.now.mono.since(active.heard);
        if silent >= lost_after || core.now.mono >= active.give_up {
            return self.lose(core, ledger, id, (agreement, Reason::PROVIDER_LOST));
        }
        // One that is asked to go on, or given the agreement again, would begin.
        if job.cancelling {
            core.send(active.deal.provider(), Frame::Cancel(agreement));
        } else if !active.acked {
            let lsn = core.outbox.last();
            self.staying.grant(core, lsn, active.deal.request().body());
            send_agreement(core, lsn, &active.deal, &job.order);
        } else if silent >= heartbeat * 2 {
            // One that started again has lost them.
            let lsn = core.outbox.last();
            self.staying.grant(core, lsn, active.deal.request().body());
            send_resume(core, job, active);
        }
        let pause = if active.acked && !job.cancelling {
            heartbeat
        } else {
            resend
        };
        let next = core.now.mono.after(pause);
        let next = next.min(active.heard.after(lost_after)).min(active.give_up);
        core.timers.set(Timer::Served(agreement), next);
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
        let Some(made) = job
            .agreements
            .get(&agreement)
            .filter(|made| made.deal.provider() == from)
        else {
            return core.misbehaved(from, "a receipt for somebody else's agreement");
        };
        if made.disputes >= DISPUTES_MAX {
            return core.misbehaved(from, "more receipts than it can mean");
        }
        let fault = receipt.body().follows_from(&made.deal).err();
        let fault = fault.map(|fault| fault.reason());
        // Nobody is cancelled but by us.
        let unasked = receipt.body().outcome == Outcome::Cancelled
            && !job.cancelling
            && made.fate.is_none()
            && job.end.is_none();
        let fault = fault.or_else(|| unasked.then_some(Reason::CONTRADICTS_AGREEMENT));
        let live = self.heard(core, from, agreement).is_some();
        if let Some(reason) = fault {
            self.dispute(core, id, &receipt, reason);
            if live {
                self.give_up(core, ledger, id, (agreement, reason));
            }
            return;
        }
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.holds(&receipt) {
            return;
        }
        if !live || !job.wants(&receipt) {
            self.dispute(core, id, &receipt, Reason::SUPERSEDED);
            return;
        }
        if !self.may_judge(core, agreement, &receipt) {
            return;
        }
        self.claim(receipt.body());
        self.rate(core, id, &receipt);
        self.collect(core, id, receipt, inline);
        self.accept_collected(core, ledger, id, (agreement, receipt_id));
    }

    /// Whether a firm offer of this peer was taken and not countersigned yet.
    fn is_taking_from(&self, peer: PeerId) -> bool {
        let jobs = self.by_request.values().filter_map(|id| self.jobs.get(id));
        let mut asks = jobs
            .flat_map(|job| &job.round)
            .flat_map(|round| &round.asks);
        asks.any(|ask| {
            ask.request.body().take && ask.answer.is_none() && ask.offer.signer() == peer
        })
    }

    /// What is not kept comes again.
    fn keep_early(&mut self, from: PeerId, receipt: Verified<Receipt>, inline: Vec<InlineBlob>) {
        self.early.push_back(Early {
            from,
            receipt,
            inline,
        });
        let bytes = |early: &Early| early.inline.iter().map(|inline| inline.bytes.len()).sum();
        let mut sum: usize = self.early.iter().map(bytes).sum();
        while self.early.len() > EARLY_RECEIPTS_MAX || sum > EARLY_BYTES_MAX {
            let Some(oldest) = self.early.pop_front() else {
                return;
            };
            sum = sum.saturating_sub(bytes(&oldest));
        }
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

    /// Holds the speed of real work against the offer, where we know how much work it
    /// was: fuel, or what the job says.
    fn rate(&self, core: &mut Core, id: JobId, receipt: &Verified<Receipt>) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let body = receipt.body();
        let Some(active) = job.live.get(&body.key.agreement) else {
            return;
        };
        let (quote, request) = (active.deal.quote().body(), active.deal.request().body());
        let runtime = request.needs.runtime;
        if body.outcome != Outcome::Completed || matches!(quote.work, Work::Lease { .. }) {
            return;
        }
        let operations = match runtime {
            Runtime::WASM => body
                .usage
                .iter()
                .find(|line| line.meter == Meter::WASM_FUEL)
                .map_or(0, |line| line.quantity),
            // The rest of an execution that began elsewhere.
            _ if request.checkpoint(body.key.unit).is_some() => 0,
            _ => job.order.flops,
        };
        let devices = &active.deal.offer().body().devices;
        let device = devices.get(usize::from(quote.device));
        let claimed = device.map_or(0, |device| device.speed(rank::speed_of(runtime)));
        let took = Millis::from(core.now.mono.since(active.began));
        if operations > 0 {
            let provider = active.deal.provider();
            core.standings.worked(provider, operations, took, claimed);
        }
    }

    /// Stores what came with a receipt and asks for the rest.
    fn collect(
        &mut self,
        core: &mut Core,
        id: JobId,
        receipt: Verified<Receipt>,
        inline: Vec<InlineBlob>,
    ) {
        let agreement = receipt.body().key.agreement;
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let stays = |output| job.stays(output);
        let small = u64::try_from(INLINE_BYTES_MAX).unwrap_or(u64::MAX);
        let outputs = receipt.body().outputs.iter();
        let stay: BTreeSet<BlobId> = outputs
            .filter(|output| stays(output) && output.blob.bytes > small)
            .map(|output| output.blob.blob)
            .collect();
        let Some(active) = job.live.get_mut(&agreement) else {
            return;
        };
        let receipt_id = ReceiptId(receipt.hash());
        if active.collecting.contains_key(&receipt_id) {
            return;
        }
        let mut collecting = Collecting::new(receipt);
        for output in collecting.receipt.clone().body().outputs.iter() {
            let blob = output.blob;
            if collecting.has(blob.blob) {
                continue;
            }
            let came = inline.iter().find(|inline| inline.blob == blob.blob);
            if came.is_none() && stay.contains(&blob.blob) {
                continue;
            }
            collecting.here.extend(came.map(|inline| inline.blob));
            let kept = match came {
                Some(inline) if collecting.write_down(inline) => Kept::Result,
                Some(_) | None => Kept::OnlyResult(agreement),
            };
            core.output(store_or_fetch(
                &active.deal,
                blob,
                came,
                (kept, Fetched::Result),
            ));
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
        if self.came_home(core, ledger, (agreement, blob), ok) {
            return;
        }
        let Some(&id) = self.by_agreement.get(&agreement) else {
            return;
        };
        self.on_state_fetched(core, id, (agreement, blob), ok);
        let job = self.jobs.get_mut(&id);
        let Some(active) = job.and_then(|job| job.live.get_mut(&agreement)) else {
            return;
        };
        if !ok {
            return self.fetch_again(core, ledger, id, (agreement, blob));
        }
        active.heard = core.now.mono;
        let mut complete = Vec::new();
        for (receipt, collecting) in &mut active.collecting {
            if collecting.missing.remove(&blob) && collecting.missing.is_empty() {
                complete.push(*receipt);
            }
        }
        for receipt in complete {
            self.accept_collected(core, ledger, id, (agreement, receipt));
        }
    }

    /// An output did not come. Some tries later it never will.
    fn fetch_again(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: JobId,
        (agreement, blob): (AgreementId, BlobId),
    ) {
        let job = self.jobs.get_mut(&id);
        let Some(active) = job.and_then(|job| job.live.get_mut(&agreement)) else {
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
            return self.give_up(core, ledger, id, (agreement, Reason::WRONG_OUTPUTS));
        }
        let mut outputs = receipt.body().outputs.iter();
        if let Some(output) = outputs.find(|output| output.blob.blob == blob) {
            core.output(Output::Fetch(FetchOrder {
                agreement,
                from: active.deal.provider(),
                under: agreement,
                blob: output.blob,
                what: Fetched::Result,
            }));
        }
    }

    /// Takes a receipt whose outputs are all here, and goes on from there.
    fn accept_collected(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: JobId,
        (agreement, receipt): (AgreementId, ReceiptId),
    ) {
        let job = self.jobs.get_mut(&id);
        let Some(active) = job.and_then(|job| job.live.get_mut(&agreement)) else {
            return;
        };
        let collecting = active.collecting.get(&receipt);
        if !collecting.is_some_and(|collecting| collecting.missing.is_empty()) {
            return;
        }
        let Some(collecting) = active.collecting.remove(&receipt) else {
            return;
        };
        let body = collecting.receipt.body();
        let (outcome, last) = (body.outcome, body.key.last);
        if last && matches!(outcome, Outcome::Completed | Outcome::JobFault(_)) {
            return if self.jobs.get(&id).is_some_and(|job| job.is_in_doubt(body)) {
                self.begin_anew(core, ledger, id, collecting)
            } else {
                self.result(core, ledger, id, collecting)
            };
        }
        let word = (Verification::HASHES, List::truncated(collecting.small));
        self.pay(core, ledger, id, &collecting.receipt, word);
        match outcome {
            // It was others who did not give it.
            Outcome::ProviderFault(Reason::INPUTS_MISSING)
                if last && self.bring_home(core, id, agreement) =>
            {
                self.give_up(core, ledger, id, (agreement, Reason::INPUTS_MISSING));
            }
            // Its turn did not come while it was of use.
            Outcome::ProviderFault(reason) if last && self.has_left_queue(agreement, reason) => {
                self.leave_for(core, id, agreement, reason);
            }
            Outcome::ProviderFault(reason) if last => {
                self.lose(core, ledger, id, (agreement, reason));
            }
            Outcome::Cancelled if last => self.was_cancelled(core, ledger, id, agreement),
            _ => {}
        }
    }

    /// Whether an agreement ended because its turn had not come by when we wanted it to: the
    /// provider would have let it wait longer.
    fn has_left_queue(&self, agreement: AgreementId, reason: Reason) -> bool {
        let job = self.by_agreement.get(&agreement);
        let job = job.and_then(|id| self.jobs.get(id));
        reason == Reason::WAITED_TOO_LONG
            && job.and_then(|job| job.deal(agreement)).is_some_and(|deal| {
                deal::is_wait_bounded(deal.request().body(), deal.quote().body())
            })
    }

    /// A provider has stopped, as it was told.
    fn was_cancelled(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: JobId,
        agreement: AgreementId,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.leave(core, agreement);
        if job.live.is_empty() && job.end.is_none() {
            self.end(core, ledger, id, JobEnd::Cancelled);
        }
    }

    /// Gives up an agreement that its provider did not keep.
    fn lose(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: JobId,
        (agreement, reason): (AgreementId, Reason),
    ) {
        let job = self.jobs.get(&id);
        let active = job.filter(|job| !job.cancelling);
        if let Some(active) = active.and_then(|job| job.live.get(&agreement)) {
            let account = active.deal.quote().body().account;
            core.failed(active.deal.provider(), account, Failing::Lost);
        }
        self.give_up(core, ledger, id, (agreement, reason));
    }

    /// Gives an agreement up and fences it; its units go elsewhere.
    pub(super) fn give_up(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: JobId,
        (agreement, reason): (AgreementId, Reason),
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(active) = job.leave(core, agreement) else {
            return;
        };
        let provider = active.deal.provider();
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
        // What did not come from others is no loss of the job's.
        let homing = reason == Reason::INPUTS_MISSING && !job.coming.is_empty();
        job.losses += u32::from(!homing);
        let (cancelling, losses) = (job.cancelling, job.losses);
        let alone = job.live.is_empty();
        let at_fault = !matches!(reason, Reason::QUOTE_EXPIRED | Reason::QUOTE_UNKNOWN) && !homing;
        if at_fault && !cancelling {
            self.exclude(core, provider);
        }
        if cancelling && alone {
            self.end(core, ledger, id, JobEnd::Cancelled);
        } else if !cancelling && usize::try_from(losses).is_ok_and(|n| n >= ATTEMPTS_MAX) {
            self.end(core, ledger, id, JobEnd::Failed(reason));
        } else if !cancelling {
            core.wake(Timer::Job(id), Duration::ZERO);
        }
    }

    pub(super) fn exclude(&mut self, core: &Core, peer: PeerId) {
        let pause = core.config.timing.exclude;
        self.excluded
            .add(core.now.mono, peer, pause, EXCLUSION_DOUBLINGS);
    }

    pub(super) fn end(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId, end: JobEnd) {
        self.leave_round(core, id, None);
        self.accept_held(core, ledger, id);
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        core.timers.clear(Timer::Job(id));
        let lsn = core.persist(Record::Ended {
            job: id,
            end,
            at: core.now.wall,
        });
        // Those that are still at it need not go on.
        for agreement in job.live.keys().copied().collect::<Vec<_>>() {
            if let Some(active) = job.leave(core, agreement)
                && !active.left.is_empty()
            {
                let frame = Frame::Cancel(agreement);
                core.send_after(lsn, active.deal.provider(), frame);
            }
        }
        core.tell_after(
            lsn,
            Event::Job {
                job: id,
                event: JobEvent::Ended(end),
            },
        );
        job.end = Some(end);
        job.reached.clear();
        for made in job.agreements.values() {
            self.full.remove(made.deal.provider());
        }
        self.forget_old(id);
        self.next_in_line(core);
    }

    /// A provider is done with something of ours: whichever single job has waited longest
    /// looks again at once.
    fn next_in_line(&self, core: &mut Core) {
        let waits = |job: &&Job| {
            let idle = job.round.is_none() && job.live.is_empty() && !job.cancelling;
            job.end.is_none() && idle && !job.spreads()
        };
        let waiting = self.jobs.values().filter(waits);
        let first = waiting.min_by_key(|job| (job.submitted, job.order.job));
        if let Some(job) = first {
            core.wake(Timer::Job(job.order.job), Duration::ZERO);
        }
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
        for agreement in job.agreements.keys() {
            self.by_agreement.remove(agreement);
        }
    }
}

impl Collecting {
    const fn new(receipt: Verified<Receipt>) -> Self {
        Self {
            receipt,
            missing: BTreeSet::new(),
            small: Vec::new(),
            here: Vec::new(),
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
    /// Whether a receipt of the live agreement is for something not yet
    /// accepted.
    fn wants(&self, receipt: &Verified<Receipt>) -> bool {
        let key = receipt.body().key;
        let made = self.agreements.get(&key.agreement);
        let repeated = made.is_none_or(|made| made.accepted.contains(&(key.unit, key.index)));
        let expected =
            (self.live.get(&key.agreement)).is_some_and(|active| active.left.contains(&key.unit));
        expected && !repeated && self.affords(receipt)
    }

    fn affords(&self, receipt: &Verified<Receipt>) -> bool {
        let held = self.held.values().flatten();
        let held = held.map(|held| held.receipt.body().amount);
        let spent = held.fold(self.spent, Amount::saturating_add);
        let sum = spent.checked_add(receipt.body().amount);
        sum.is_some_and(|sum| sum <= self.order.budget)
    }
}
