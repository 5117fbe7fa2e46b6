//! Results, judged.
//!
//! ```text
//! result ─▶ held ──as many equal ones as wanted──▶ those accepted and paid,
//!             │                                    the others disputed, their providers left out
//!             ├──not yet──▶ another run elsewhere
//!             └──too many that differ──▶ all paid, the unit has failed: it is no such
//!                                        job whose results can be compared
//! ```
//!
//! A result whose product is not what the job says ([`super::products`]) is disputed before
//! anything is compared. What is compared is how an execution ended, and its outputs, by their hashes or within
//! the job's tolerance ([`super::likeness`]): so a
//! wrong "the job failed" is found like a wrong result. A slow or small machine may
//! fail honestly where others don't: it is not paid, and nothing else. Which units of a job are
//! audited is drawn when the first result is here, so that nobody can know it while it
//! works. Results that are held when a job ends are accepted: they are what was
//! agreed, and nothing speaks against them.

use rand_core::Rng as _;

use super::{
    likeness::{Place, shape},
    *,
};

/// What becomes of a result.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It is paid, and this was done before.
    Accepted(Verification),
    /// It is disputed, and its provider left out.
    Wrong,
    /// It is not needed, and nobody is to blame.
    Superseded,
}

impl Buyer {
    /// A result is here with all its outputs.
    pub(super) fn result(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: JobId,
        collecting: Collecting,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let key = collecting.receipt.body().key;
        let Some(active) = job.live.get_mut(&key.agreement) else {
            return;
        };
        let now = core.now.mono;
        job.pace.saw(now.since(active.began));
        active.began = now;
        active.left.remove(&key.unit);
        let held = Held {
            account: active.deal.quote().body().account,
            digest: shape(collecting.receipt.body(), None),
            shape: shape(collecting.receipt.body(), job.order.verify.within.as_ref()),
            unread: false,
            receipt: collecting.receipt,
            small: collecting.small,
            here: collecting.here,
        };
        let account = held.account;
        job.no_longer_runs(key.unit, key.agreement);
        let first = !job.held.contains_key(&key.unit);
        job.held.entry(key.unit).or_default().push(held);
        job.losses = 0;
        if first && job.results_wanted(key.unit) == 1 {
            let chance = self.audit_chance(core, ledger, id, account);
            if let Some(job) = self.jobs.get_mut(&id)
                && core.rng.next_u32() % 1000 < chance
            {
                job.audited.insert(key.unit);
            }
        }
        self.compare(core, id, key.unit);
        self.decide(core, ledger, id, key.unit);
        self.retire_if_done(core, id, key.agreement);
    }

    /// In how many of 1,000 units a provider's result is compared with another's.
    fn audit_chance(&self, core: &Core, ledger: &Ledger, id: JobId, account: AccountId) -> u32 {
        let Some(job) = self.jobs.get(&id) else {
            return 0;
        };
        let verify = &job.order.verify;
        if !verify.adaptive {
            return u32::from(verify.audit);
        }
        let settled = |account| ledger.settled_share(account);
        core.standings.audited(account, core.now.wall, settled)
    }

    /// Decides a unit, if enough of its results are here and compared.
    pub(super) fn decide(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId, unit: u32) {
        self.refute_unproven(core, id, unit);
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some((representative, most)) = job.representative(unit) else {
            return;
        };
        let wanted = job.results_wanted(unit);
        let agreed = u32::try_from(most).unwrap_or(u32::MAX) >= wanted;
        let held = job.held.get(&unit).map_or(&[][..], Vec::as_slice);
        let tried = u32::try_from(held.len()).unwrap_or(u32::MAX);
        let enough = agreed || tried >= wanted.saturating_mul(2) + RESULTS_MORE_MAX;
        if !enough || job.is_comparing(unit) || job.is_proving(unit) {
            return core.wake(Timer::Job(id), Duration::ZERO);
        }
        let how = representative.receipt.body().outcome;
        let fates = job.fates(unit, representative, agreed);
        let held = job.held.remove(&unit).unwrap_or_default();
        job.compared.remove(&unit);
        job.proven.remove(&unit);
        job.audited.remove(&unit);
        for (result, fate) in held.into_iter().zip(fates) {
            match fate {
                Fate::Accepted(how) => self.accept(core, ledger, id, result, how),
                Fate::Wrong => self.refute(core, id, &result),
                Fate::Superseded => {
                    self.dispute(core, id, &result.receipt, Reason::SUPERSEDED);
                }
            }
        }
        let failure = match how {
            _ if !agreed => Some(Reason::RESULTS_DIFFER),
            Outcome::JobFault(reason) => Some(reason),
            Outcome::Completed | Outcome::ProviderFault(_) | Outcome::Cancelled => None,
        };
        self.decided(core, ledger, id, unit, failure);
    }

    /// A result that others' results contradict, or its own inputs.
    pub(super) fn refute(&mut self, core: &mut Core, id: JobId, result: &Held) {
        let provider = result.receipt.signer();
        if is_of_the_machine(result.receipt.body().outcome) {
            return self.dispute(core, id, &result.receipt, Reason::SUPERSEDED);
        }
        self.dispute(core, id, &result.receipt, Reason::WRONG_RESULT);
        self.exclude(core, provider);
        let live = self.jobs.get(&id).into_iter().flat_map(|job| &job.live);
        let of = live.filter(|(_, active)| active.deal.provider() == provider);
        for agreement in of.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.leave_for(core, id, agreement, Reason::WRONG_RESULT);
        }
    }

    /// Pays for a result.
    fn accept(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: JobId,
        result: Held,
        verification: Verification,
    ) {
        self.remember_staying(id, &result.receipt, &result.here);
        let outputs = List::truncated(result.small);
        self.pay(core, ledger, id, &result.receipt, (verification, outputs));
    }

    /// Accepts a receipt and owes what it says.
    pub(super) fn pay(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: JobId,
        receipt: &Verified<Receipt>,
        (verification, outputs): (Verification, InlineBlobs),
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let body = receipt.body();
        let Some(deal) = job.deal(body.key.agreement) else {
            return;
        };
        let parties = deal_parties(deal);
        job.spent = job.spent.saturating_add(body.amount);
        let principal = &job.order.principal;
        self.spending.add(principal, core.now.wall, body.amount);
        let is_done = body.key.last && body.outcome == Outcome::Completed;
        if is_done && verification != Verification::UNDECIDED {
            self.excluded.did_well(core.now.mono, receipt.signer());
        }
        let verdict = (Verdict::Accepted, verification);
        let lsn = self.judge(core, id, receipt, verdict, outputs);
        let receipt = ReceiptId(receipt.hash());
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
    }

    /// A unit is over: nobody needs to run it any more.
    fn decided(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: JobId,
        unit: u32,
        failure: Option<Reason>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.open.remove(&unit);
        job.reached.remove(&unit);
        if job.spreads() {
            let event = JobEvent::Decided { unit, failure };
            core.tell_after(core.outbox.last(), Event::Job { job: id, event });
        }
        if let Some(reason) = failure {
            job.failed.insert(unit, reason);
            let failed = u32::try_from(job.failed.len()).unwrap_or(u32::MAX);
            if failed > job.order.max_failures {
                return self.end(core, ledger, id, JobEnd::Failed(reason));
            }
        }
        if job.open.is_empty() {
            return self.end(core, ledger, id, JobEnd::Done);
        }
        let others = job.runs.remove(&unit).unwrap_or_default();
        for agreement in &others {
            if let Some(active) = job.live.get_mut(agreement) {
                active.left.remove(&unit);
                active.overtaken.insert(unit);
            }
        }
        for agreement in others {
            self.retire_if_done(core, id, agreement);
        }
    }

    /// Expects nothing more of an agreement that has no unit left. If some were
    /// decided elsewhere, its provider need not run them.
    pub(super) fn retire_if_done(&mut self, core: &mut Core, id: JobId, agreement: AgreementId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(active) = job.live.get(&agreement) else {
            return;
        };
        if !active.left.is_empty() {
            return;
        }
        // What it had is free now, and may take more.
        job.busy.remove(&active.deal.provider());
        if !active.overtaken.is_empty() {
            return self.leave_for(core, id, agreement, Reason::SUPERSEDED);
        }
        job.leave(core, agreement);
        core.wake(Timer::Job(id), Duration::ZERO);
    }

    /// Gives an agreement up without a loss to the job.
    pub(super) fn leave_for(
        &mut self,
        core: &mut Core,
        id: JobId,
        agreement: AgreementId,
        reason: Reason,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(active) = job.leave(core, agreement) else {
            return;
        };
        let lsn = core.persist(Record::GaveUp {
            job: id,
            agreement,
            reason,
        });
        core.send_after(lsn, active.deal.provider(), Frame::Cancel(agreement));
        job.fence(agreement, reason);
        core.wake(Timer::Job(id), Duration::ZERO);
    }

    /// The job ends before these were compared.
    pub(super) fn accept_held(&mut self, core: &mut Core, ledger: &mut Ledger, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        job.compared.clear();
        job.proven.clear();
        for result in std::mem::take(&mut job.held).into_values().flatten() {
            self.accept(core, ledger, id, result, Verification::HASHES);
        }
    }

    /// Signs our word on a receipt; the same bytes are sent whenever it comes again.
    pub(super) fn judge(
        &mut self,
        core: &mut Core,
        id: JobId,
        receipt: &Verified<Receipt>,
        (verdict, verification): (Verdict, Verification),
        outputs: InlineBlobs,
    ) -> Lsn {
        let key = receipt.body().key;
        let acceptance = core.sign(Acceptance {
            receipt: ReceiptId(receipt.hash()),
            key,
            verdict,
            verification,
            extensions: Extensions::default(),
        });
        let lsn = core.persist(Record::Judged {
            receipt: receipt.clone(),
            acceptance: acceptance.clone(),
            outputs,
        });
        core.send_after(lsn, receipt.signer(), Frame::Acceptance(acceptance.raw()));
        if let Some(job) = self.jobs.get_mut(&id) {
            if let Some(deal) = job.deal(key.agreement) {
                let account = deal.quote().body().account;
                (core.standings).judged(receipt.signer(), account, &acceptance);
            }
            job.is_judged(receipt.clone(), acceptance);
        }
        lsn
    }

    pub(super) fn dispute(
        &mut self,
        core: &mut Core,
        id: JobId,
        receipt: &Verified<Receipt>,
        reason: Reason,
    ) {
        let verdict = (Verdict::Disputed(reason), Verification::HASHES);
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
}

impl Job {
    /// What becomes of each result of a unit that is decided.
    fn fates(&self, unit: u32, representative: &Held, agreed: bool) -> Vec<Fate> {
        let held = self.held.get(&unit).map_or(&[][..], Vec::as_slice);
        let places = self.places_of(unit, representative);
        let mut agreeing = held.iter().zip(&places);
        let to_the_bit = agreeing.all(|(result, place)| {
            *place != Place::Agrees || result.digest == representative.digest
        });
        let proof = self.proof(unit, representative);
        let one = self.results_wanted(unit) == 1;
        let verification = match (one, self.audited.contains(&unit), to_the_bit) {
            _ if !agreed => Verification::UNDECIDED,
            (true, ..) if proof == Proof::Right => Verification::FREIVALDS,
            (true, ..) => Verification::HASHES,
            (_, true, true) => Verification::AUDIT,
            (_, true, false) => Verification::AUDIT_WITHIN,
            (_, false, true) => Verification::REPLICAS,
            (_, false, false) => Verification::REPLICAS_WITHIN,
        };
        let failed = matches!(representative.receipt.body().outcome, Outcome::JobFault(_));
        let fate = |(result, place): (&Held, &Place)| {
            let is_it = result.receipt.hash() == representative.receipt.hash();
            match (place, self.proof(unit, result)) {
                _ if !agreed => Fate::Accepted(verification),
                // More came while one was checked: they differ as floats may.
                (_, Proof::Unreadable) if one && !is_it => Fate::Accepted(Verification::HASHES),
                _ if one && !is_it => Fate::Superseded,
                (Place::Agrees, _) => Fate::Accepted(verification),
                (Place::Between, _) => Fate::Accepted(Verification::HASHES),
                // It could be made, whatever others say.
                (Place::Contradicted, Proof::Right) if failed => {
                    Fate::Accepted(Verification::FREIVALDS)
                }
                (Place::Contradicted, _) => Fate::Wrong,
            }
        };
        held.iter().zip(&places).map(fate).collect()
    }

    /// Remembers our word on a receipt.
    pub(super) fn is_judged(
        &mut self,
        receipt: Verified<Receipt>,
        acceptance: Verified<Acceptance>,
    ) {
        let key = receipt.body().key;
        if let Some(made) = self.agreements.get_mut(&key.agreement) {
            if acceptance.body().verdict == Verdict::Accepted {
                made.accepted.insert((key.unit, key.index));
            } else {
                made.disputes += 1;
            }
        }
        let judged = Judged {
            receipt,
            acceptance,
        };
        self.judged.insert(ReceiptId(judged.receipt.hash()), judged);
    }

    /// Whether a result is held already.
    pub(super) fn holds(&self, receipt: &Verified<Receipt>) -> bool {
        let held = self.held.get(&receipt.body().key.unit);
        held.is_some_and(|held| {
            held.iter()
                .any(|held| held.receipt.hash() == receipt.hash())
        })
    }
}

/// Whether another machine may well have come to another end: a slower one to the run
/// limit, a smaller one to the end of its memory. That is no lie.
const fn is_of_the_machine(outcome: Outcome) -> bool {
    matches!(
        outcome,
        Outcome::JobFault(Reason::DEADLINE | Reason::OUT_OF_MEMORY)
    )
}
