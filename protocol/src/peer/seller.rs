//! The provider's side: from a request to receipts.
//!
//! ```text
//! request ─check, reserve, price─▶ Hold ──agreement in time──▶ Fetching ──inputs here──▶ Running
//!              │                    │                            │                        │
//!              ▼                    ├─ released, expired         ├─ too late ─┐           │
//!           declined                ▼                            ▼            ▼           ▼
//!                                 (free)                       receipts for each unit: Reported
//!                                                                            │
//!                                                       all accepted or disputed, or time over: Closed
//! restart:  Fetching, Running ──▶ Interrupted ──client asks (Resume)──▶ Fetching
//! ```
//!
//! Capacity is a number of slots. A hold takes one before its quote is signed;
//! an agreement keeps it until its last unit is receipted. What was running
//! when the node stopped is not receipted and not run again until the client
//! has shown which receipts it holds: a node restored from a backup must not
//! sign a second receipt for the same unit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    Event, ExecutionEvent, ExecutionId, ExecutionOrder, Output, ProvidedOutput, ProviderConfig,
    WorkView,
    buyer::deal_parties,
    core::{Core, Timer},
    ledger::Ledger,
};
use crate::{
    book::Book,
    deal::{Agreement, BlobRef, Deal, Quote, Request, Work},
    envelope::{EnvelopeError, Extensions, Verified},
    ids::{AccountId, AgreementId, BlobId, OfferId, PeerId, QuoteId, ReceiptId, RequestId},
    limits::{
        AGREEMENTS_MAX, ANSWERS_KEPT, HOLDS_PER_CLIENT, INLINE_BLOBS_MAX, INLINE_BYTES_MAX,
        LOG_LINE_BYTES_MAX, OUTPUTS_MAX,
    },
    message::{Decline, Frame, InlineBlob, LogLine, Progress},
    offer::{Offer, Prices, Withdrawal},
    rank::{self, times},
    receipt::{
        Acceptance, Outcome, OutputRef, Receipt, ReceiptKey, Verdict, amount_due, inputs_hash,
    },
    record::{Lsn, Record},
    registry::{Confidentiality, Reason, Verification},
    units::{Amount, Meter, Millis, Mono, Price, Usage, Wall},
    wire::{Bytes, List, Text},
};

/// Work that a node does for others.
#[derive(Debug, Default)]
pub(crate) struct Seller {
    /// Our own offers that requests may still name, by name; the last is live.
    offers: BTreeMap<OfferId, Verified<Offer>>,
    live: Option<OfferId>,
    sequence: u64,
    /// Slots in use when the offer last changed: an operator who takes slots
    /// away breaks no agreement.
    slots_kept: u32,
    draining: bool,
    answers: BTreeMap<RequestId, Answer>,
    answers_order: VecDeque<RequestId>,
    holds: BTreeMap<QuoteId, Hold>,
    deals: BTreeMap<AgreementId, Committed>,
    closed: VecDeque<AgreementId>,
    /// Blobs that a client's account has sent us, until when we keep them.
    /// Only that account learns that we have them.
    kept: BTreeMap<(AccountId, BlobId), Wall>,
}

#[derive(Debug)]
enum Answer {
    Quoted(Box<Verified<Quote>>, Lsn),
    Declined(Decline),
}

#[derive(Debug)]
struct Hold {
    offer: Verified<Offer>,
    request: Verified<Request>,
    quote: Verified<Quote>,
}

/// An agreement that we serve.
#[derive(Debug)]
struct Committed {
    deal: Deal,
    stage: Stage,
    /// Units not started yet.
    queue: VecDeque<u32>,
    running: BTreeMap<u32, Wall>,
    missing: BTreeSet<BlobId>,
    issued: BTreeMap<(u32, u32), Issued>,
    /// When this stage must be over.
    until: Mono,
    frames: u64,
    progress: (u64, u64),
    cancelled: bool,
    /// Lease: the next interim receipt.
    next_index: u32,
    resends: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Fetching,
    Running,
    Interrupted,
    Reported,
    Closed,
}

#[derive(Debug)]
struct Issued {
    receipt: Verified<Receipt>,
    inline: Vec<InlineBlob>,
    verdict: Option<Verdict>,
    lsn: Lsn,
}

impl Committed {
    fn uses_slot(&self) -> bool {
        match self.stage {
            Stage::Fetching | Stage::Running | Stage::Interrupted => true,
            Stage::Reported | Stage::Closed => false,
        }
    }

    /// What it may still cost beyond the receipts issued.
    fn reserved(&self) -> Amount {
        if !self.uses_slot() {
            return Amount::ZERO;
        }
        let cap = self.deal.quote().body().cap;
        cap.saturating_sub(self.receipted())
    }

    fn receipted(&self) -> Amount {
        self.issued.values().fold(Amount::ZERO, |sum, issued| {
            sum.saturating_add(issued.receipt.body().amount)
        })
    }

    /// Whether a lease has cost all that was agreed.
    fn is_used_up(&self) -> bool {
        let quote = self.deal.quote().body();
        matches!(quote.work, Work::Lease { .. }) && self.receipted() >= quote.cap
    }

    fn account(&self) -> AccountId {
        self.deal.request().body().account
    }

    fn unjudged(&self) -> usize {
        self.issued
            .values()
            .filter(|issued| issued.verdict.is_none())
            .count()
    }
}

/// The offer.
impl Seller {
    /// Signs and announces the offer anew.
    pub(crate) fn announce(&mut self, core: &mut Core, book: &mut Book) {
        self.slots_kept = self.slots_used();
        let Some(provider) = core.config.provider.clone() else {
            return;
        };
        if self.draining {
            return;
        }
        // From the clock, so that a node restored from a backup does not use
        // a sequence twice; never back, whatever the clock does.
        self.sequence = core
            .now
            .wall
            .as_millis()
            .max(self.sequence.saturating_add(1));
        let mut body = provider.offer.clone();
        body.account = core.config.account;
        body.delegation = core.config.delegation.clone();
        body.sequence = self.sequence;
        body.slots = body.slots.max(1);
        body.slots_free = body.slots.saturating_sub(self.slots_used());
        let expires = core.now.wall.after(core.config.timing.offer_ttl);
        let offer = core.sign_until(expires, body);
        // What nobody would accept is not said, and not written: our own
        // journal could not be read again.
        let accepted = crate::envelope::Envelope::parse(offer.bytes())
            .map_err(EnvelopeError::Wire)
            .and_then(|envelope| envelope.verify::<Offer>(core.network()));
        if accepted.is_err() {
            return;
        }
        let lsn = core.persist(Record::Offered(offer.clone()));
        core.output_after(
            lsn,
            Output::Publish {
                bytes: offer.bytes().clone(),
            },
        );
        self.remember_offer(core, offer.clone());
        book.insert(core.now.wall, offer);
        let pause = core.config.timing.offer_ttl / 2;
        let pause = core.jittered(pause);
        core.wake(Timer::Renew, pause);
    }

    fn remember_offer(&mut self, core: &Core, offer: Verified<Offer>) {
        let now = core.now.wall;
        self.offers.retain(|_, offer| offer.expires() > now);
        self.sequence = self.sequence.max(offer.body().sequence);
        self.live = Some(OfferId(offer.hash()));
        self.offers.insert(OfferId(offer.hash()), offer);
    }

    /// Withdraws the offer: what is agreed goes on, nothing new begins.
    pub(crate) fn withdraw(&mut self, core: &mut Core, book: &mut Book) {
        self.draining = true;
        core.timers.clear(Timer::Renew);
        if self.live.take().is_none() {
            return;
        }
        let expires = core.now.wall.after(core.config.timing.offer_ttl);
        let withdrawal = core.sign_until(
            expires,
            Withdrawal {
                sequence: self.sequence,
                extensions: Extensions::default(),
            },
        );
        let lsn = core.persist(Record::Withdrew(withdrawal.clone()));
        core.output_after(
            lsn,
            Output::Publish {
                bytes: withdrawal.bytes().clone(),
            },
        );
        book.withdraw(core.now.wall, &withdrawal);
    }

    /// Slots that may be in use of so many on offer.
    pub(crate) fn slots_allowed(&self, offered: u32) -> u32 {
        offered.max(1).max(self.slots_kept)
    }

    /// Slots that are held or at work.
    pub(crate) fn slots_used(&self) -> u32 {
        let deals = self.deals.values().filter(|deal| deal.uses_slot()).count();
        u32::try_from(self.holds.len() + deals).unwrap_or(u32::MAX)
    }
}

/// Requests.
impl Seller {
    pub(crate) fn on_ask(
        &mut self,
        core: &mut Core,
        book: &Book,
        ledger: &mut Ledger,
        request: Verified<Request>,
        local: bool,
    ) {
        let id = RequestId(request.hash());
        let client = request.signer();
        if let Some(answer) = self.answers.get(&id) {
            return send_answer(core, client, id, answer);
        }
        let answer = match self.consider(core, book, ledger, &request, local) {
            Ok((offer, quote)) => self.hold(core, offer, request, quote),
            Err(decline) => Answer::Declined(decline),
        };
        send_answer(core, client, id, &answer);
        self.answers.insert(id, answer);
        self.answers_order.push_back(id);
        if self.answers_order.len() > ANSWERS_KEPT
            && let Some(oldest) = self.answers_order.pop_front()
        {
            self.answers.remove(&oldest);
        }
    }

    /// Judges a request and prices it. Nothing changes here.
    fn consider(
        &self,
        core: &Core,
        book: &Book,
        ledger: &Ledger,
        request: &Verified<Request>,
        local: bool,
    ) -> Result<(Verified<Offer>, Quote), Decline> {
        let body = request.body();
        let Some(provider) = &core.config.provider else {
            return Err(Reason::OFFER_GONE.into());
        };
        if self.draining {
            return Err(Reason::DRAINING.into());
        }
        if body.provider != core.me() || request.expires() <= core.now.wall {
            return Err(Reason::OFFER_GONE.into());
        }
        let offer = self
            .offers
            .get(&body.offer)
            .filter(|offer| offer.expires() > core.now.wall)
            .ok_or(Reason::OFFER_GONE)?;
        check_access(provider, body, local)?;
        if book.is_revoked(body.account, request.signer(), request.issued()) {
            return Err(Reason::NOT_ALLOWED.into());
        }
        if ledger.is_frozen(body.account) {
            return Err(Reason::CHANNEL_FROZEN.into());
        }
        check_terms(offer, body)?;
        rank::fit(offer.body(), &body.needs, &body.work, body.budget)?;
        self.check_capacity(provider, body)?;
        let countered = self.countered_quote(request)?;
        let quote = self.price(core, provider, offer, request, countered)?;
        self.check_credit(provider, ledger, body.account, quote.cap)?;
        Ok((offer.clone(), quote))
    }

    /// Holds are few for each client, and fewer for all strangers together
    /// than there are slots, so that a flood of asks leaves room for those
    /// who are known.
    fn check_capacity(&self, provider: &ProviderConfig, request: &Request) -> Result<(), Decline> {
        if request.counter.is_some() {
            return Ok(());
        }
        let slots = provider.offer.slots.max(1);
        if self.slots_used() >= slots || self.deals.len() >= AGREEMENTS_MAX {
            return Err(Decline {
                reason: Reason::BUSY,
                need: 1,
                have: 0,
            });
        }
        let mut of_client = 0;
        let mut of_strangers = 0u32;
        for hold in self.holds.values() {
            let account = hold.request.body().account;
            of_client += usize::from(account == request.account);
            of_strangers += u32::from(!provider.knows(account));
        }
        if of_client >= HOLDS_PER_CLIENT {
            return Err(Reason::TOO_MANY_HOLDS.into());
        }
        let share = (slots / 2).max(1);
        if !provider.knows(request.account) && of_strangers >= share {
            return Err(Decline {
                reason: Reason::BUSY,
                need: 1,
                have: 0,
            });
        }
        Ok(())
    }

    /// Exposure is bounded per account, and for all strangers together.
    fn check_credit(
        &self,
        provider: &ProviderConfig,
        ledger: &Ledger,
        account: AccountId,
        cap: Amount,
    ) -> Result<(), Decline> {
        let cap = u128::from(cap.as_micros());
        let reserved = self.reserved(|of| of == account);
        let owed = ledger.exposure(account).saturating_add(reserved);
        let window = u128::from(provider.window(account).as_micros());
        let decline = |reason, window: u128, owed: u128| Decline {
            reason,
            need: u64::try_from(cap).unwrap_or(u64::MAX),
            have: u64::try_from(window.saturating_sub(owed)).unwrap_or(u64::MAX),
        };
        if owed.saturating_add(cap) > window {
            return Err(decline(Reason::CREDIT_EXHAUSTED, window, owed));
        }
        if !provider.knows(account) {
            let is_stranger = |account| !provider.knows(account);
            // What is delivered to one never gets over its window: what its
            // vouchers claim beyond that must not use up the others' budget.
            let owed = ledger
                .strangers_exposure(is_stranger, window)
                .saturating_add(self.reserved(is_stranger));
            let budget = u128::from(provider.strangers_budget.as_micros());
            if owed.saturating_add(cap) > budget {
                return Err(decline(Reason::STRANGERS_EXHAUSTED, budget, owed));
            }
        }
        Ok(())
    }

    /// Caps of holds and agreements that may still be used.
    fn reserved(&self, of: impl Fn(AccountId) -> bool) -> u128 {
        let holds = self
            .holds
            .values()
            .filter(|hold| of(hold.request.body().account))
            .map(|hold| u128::from(hold.quote.body().cap.as_micros()));
        let deals = self
            .deals
            .values()
            .filter(|deal| of(deal.account()))
            .map(|deal| u128::from(deal.reserved().as_micros()));
        holds.chain(deals).sum()
    }

    fn countered_quote(&self, request: &Verified<Request>) -> Result<Option<&Hold>, Decline> {
        let Some(quote) = request.body().counter else {
            return Ok(None);
        };
        let hold = self.holds.get(&quote).ok_or(Reason::QUOTE_UNKNOWN)?;
        if hold.request.signer() != request.signer()
            || hold.request.body().job != request.body().job
        {
            return Err(Reason::QUOTE_UNKNOWN.into());
        }
        Ok(Some(hold))
    }

    fn price(
        &self,
        core: &Core,
        provider: &ProviderConfig,
        offer: &Verified<Offer>,
        request: &Verified<Request>,
        countered: Option<&Hold>,
    ) -> Result<Quote, Decline> {
        let asked = request.body();
        let prices = match countered {
            Some(hold) => counter_prices(provider, hold.quote.body(), asked.budget)?,
            None => offer.body().prices.clone(),
        };
        let units = asked.work.unit_count().max(1);
        let unit_budget = Amount::from_micros(asked.budget.as_micros() / u64::from(units));
        let (run_max, unit_cap, cap) = match &asked.work {
            // A lease runs until its budget is used up.
            Work::Lease { .. } => (asked.needs.run_max, asked.budget, asked.budget),
            Work::Job | Work::Array { .. } => {
                let (run_max, cap) = affordable_run(&prices, asked.needs.run_max, unit_budget)?;
                (run_max, cap, times(cap, units))
            }
        };
        let timing = &core.config.timing;
        let device = rank::device_for(offer.body(), &asked.needs)?;
        Ok(Quote {
            request: RequestId(request.hash()),
            offer: OfferId(offer.hash()),
            account: core.config.account,
            client: request.signer(),
            client_account: asked.account,
            job: asked.job,
            attempt: asked.attempt,
            work: asked.work.clone(),
            prices,
            unit_cap,
            cap,
            run_max,
            transfer_max: Millis::from(timing.transfer_max),
            collect_max: Millis::from(timing.collect_max),
            start_expected: core.now.wall,
            duration_expected: run_max,
            missing: List::truncated(self.missing(core.now.wall, asked)),
            device,
            terms: offer.body().terms.clone(),
            extensions: Extensions::default(),
        })
    }

    /// Which of spec and inputs this client's account has not sent before.
    fn missing(&self, now: Wall, request: &Request) -> Vec<u16> {
        std::iter::once(&request.spec)
            .chain(request.inputs.iter())
            .enumerate()
            .filter(|(_, blob)| !self.keeps(now, request.account, blob.blob))
            .filter_map(|(n, _)| u16::try_from(n).ok())
            .collect()
    }

    fn keeps(&self, now: Wall, account: AccountId, blob: BlobId) -> bool {
        (self.kept.get(&(account, blob))).is_some_and(|until| *until > now)
    }

    /// Signs the quote, with its hold; for a take, with the agreement.
    fn hold(
        &mut self,
        core: &mut Core,
        offer: Verified<Offer>,
        request: Verified<Request>,
        quote: Quote,
    ) -> Answer {
        if let Some(countered) = request.body().counter {
            self.release(core, countered);
        }
        let take = request.body().take;
        let quote = core.sign_until(core.now.wall.after(core.config.timing.hold), quote);
        let record = if take {
            Record::QuotedFirm {
                offer: offer.clone(),
                request: request.clone(),
                quote: quote.clone(),
            }
        } else {
            Record::Quoted {
                offer: offer.clone(),
                request: request.clone(),
                quote: quote.clone(),
            }
        };
        let lsn = core.persist(record);
        if take {
            if let Ok(deal) = Deal::new(offer, request, quote.clone(), None) {
                self.commit(core, lsn, deal, Vec::new());
            }
        } else {
            let id = QuoteId(quote.hash());
            self.holds.insert(
                id,
                Hold {
                    offer,
                    request,
                    quote: quote.clone(),
                },
            );
            // The client's answer may be on its way when the quote runs out.
            let until = core.config.timing.hold + core.config.timing.hold_grace;
            core.wake(Timer::Hold(id), until);
        }
        Answer::Quoted(Box::new(quote), lsn)
    }

    /// Frees a hold. That is written down, though nothing waits for it: else a
    /// restart would bring the hold back beside those that took its place.
    fn release(&mut self, core: &mut Core, quote: QuoteId) {
        if self.end_hold(core, quote) {
            core.persist(Record::Closed {
                agreement: quote.into(),
                reason: Reason::QUOTE_EXPIRED,
            });
        }
    }

    fn end_hold(&mut self, core: &mut Core, quote: QuoteId) -> bool {
        core.timers.clear(Timer::Hold(quote));
        self.holds.remove(&quote).is_some()
    }

    pub(crate) fn on_release(&mut self, core: &mut Core, from: PeerId, quote: QuoteId) {
        if self
            .holds
            .get(&quote)
            .is_some_and(|hold| hold.request.signer() == from)
        {
            self.release(core, quote);
        }
    }
}

fn send_answer(core: &mut Core, client: PeerId, request: RequestId, answer: &Answer) {
    match answer {
        Answer::Quoted(quote, lsn) => core.send_after(*lsn, client, Frame::Quoted(quote.raw())),
        Answer::Declined(decline) => core.send(client, Frame::Declined(request, *decline)),
    }
}

fn check_access(provider: &ProviderConfig, request: &Request, local: bool) -> Result<(), Decline> {
    let known = provider.knows(request.account);
    let open = provider.offer.terms.strangers && (local || !provider.local_only);
    if known || open {
        Ok(())
    } else {
        Err(Reason::NOT_ALLOWED.into())
    }
}

fn check_terms(offer: &Verified<Offer>, request: &Request) -> Result<(), Decline> {
    if request.take && !offer.body().firm {
        return Err(Reason::NOT_FIRM.into());
    }
    if request.take && request.counter.is_some() {
        return Err(Reason::COUNTER_REFUSED.into());
    }
    if request.confidentiality != Confidentiality::NONE {
        return Err(Reason::UNSUPPORTED_TERMS.into());
    }
    if matches!(request.work, Work::Lease { .. }) && request.take {
        return Err(Reason::NO_SUCH_WORK.into());
    }
    let bytes = request
        .inputs
        .iter()
        .fold(request.spec.bytes, |sum, input| {
            sum.saturating_add(input.bytes)
        })
        .saturating_add(request.needs.output_bytes_max);
    if bytes > offer.body().storage_bytes {
        return Err(Decline {
            reason: Reason::TOO_LARGE,
            need: bytes,
            have: offer.body().storage_bytes,
        });
    }
    Ok(())
}

/// How long a run the budget pays, and what it costs at most.
fn affordable_run(
    prices: &Prices,
    run_max: Millis,
    budget: Amount,
) -> Result<(Millis, Amount), Decline> {
    let cap_of = |run: Millis| crate::units::cost(&crate::offer::run_usage(run), prices);
    if let Some(cap) = cap_of(run_max).filter(|cap| *cap <= budget) {
        return Ok((run_max, cap));
    }
    let fixed = cap_of(Millis::new(0)).unwrap_or(Amount::MAX);
    let over = Decline {
        reason: Reason::OVER_BUDGET,
        need: fixed.as_micros(),
        have: budget.as_micros(),
    };
    let per_ms = prices
        .iter()
        .find(|price| price.meter == Meter::GPU_MS)
        .ok_or(over)?;
    let left = u128::from(budget.saturating_sub(fixed).as_micros()) * u128::from(per_ms.per);
    let run = left
        .checked_div(u128::from(per_ms.amount.as_micros()))
        .unwrap_or(0);
    let run = Millis::new(u64::try_from(run).unwrap_or(u64::MAX).min(run_max.get()));
    match cap_of(run).filter(|cap| *cap <= budget && run > Millis::new(0)) {
        Some(cap) => Ok((run, cap)),
        None => Err(over),
    }
}

/// Prices scaled down to a proposal, if that is within the operator's bounds.
fn counter_prices(
    provider: &ProviderConfig,
    quoted: &Quote,
    proposal: Amount,
) -> Result<Prices, Decline> {
    let refused = Decline {
        reason: Reason::COUNTER_REFUSED,
        need: lowest(provider, quoted.cap).as_micros(),
        have: proposal.as_micros(),
    };
    if proposal < lowest(provider, quoted.cap) || quoted.cap == Amount::ZERO {
        return Err(refused);
    }
    let scaled = |price: &Price| {
        let amount = u128::from(price.amount.as_micros()) * u128::from(proposal.as_micros())
            / u128::from(quoted.cap.as_micros());
        Price {
            amount: Amount::from_micros(u64::try_from(amount).unwrap_or(u64::MAX)),
            ..*price
        }
    };
    Ok(List::truncated(quoted.prices.iter().map(scaled).collect()))
}

fn lowest(provider: &ProviderConfig, cap: Amount) -> Amount {
    let kept = 100 - u128::from(provider.discount_percent_max.min(100));
    let lowest = (u128::from(cap.as_micros()) * kept).div_ceil(100);
    Amount::from_micros(u64::try_from(lowest).unwrap_or(u64::MAX))
}

/// Agreements.
impl Seller {
    pub(crate) fn on_agree(
        &mut self,
        core: &mut Core,
        agreement: Verified<Agreement>,
        inline: Vec<InlineBlob>,
    ) {
        let from = agreement.signer();
        let quote = agreement.body().quote;
        let id = AgreementId::from(quote);
        if let Some(known) = self.deals.get(&id) {
            if known.deal.client() == from {
                core.send_again(from, Frame::Agreed(id));
            }
            return;
        }
        let Some(hold) = self
            .holds
            .get(&quote)
            .filter(|hold| hold.request.signer() == from)
        else {
            return core.send(from, Frame::AgreeRefused(id, Reason::QUOTE_UNKNOWN.into()));
        };
        let deal = Deal::new(
            hold.offer.clone(),
            hold.request.clone(),
            hold.quote.clone(),
            Some(agreement.clone()),
        );
        let Ok(deal) = deal else {
            self.release(core, quote);
            return core.send(from, Frame::AgreeRefused(id, Reason::QUOTE_EXPIRED.into()));
        };
        self.end_hold(core, quote);
        let lsn = core.persist(Record::AgreedTo(agreement));
        core.send_after(lsn, from, Frame::Agreed(id));
        self.commit(core, lsn, deal, inline);
    }

    /// An agreement stands: what is missing is fetched, then it runs.
    fn commit(&mut self, core: &mut Core, lsn: Lsn, deal: Deal, inline: Vec<InlineBlob>) {
        let id = deal.id();
        core.tell_after(
            lsn,
            Event::Work {
                agreement: id,
                client: deal.client(),
            },
        );
        let committed = Committed {
            stage: Stage::Fetching,
            queue: deal.quote().body().work.units().into(),
            running: BTreeMap::new(),
            missing: BTreeSet::new(),
            issued: BTreeMap::new(),
            until: core.now.mono.after(core.config.timing.transfer_max),
            frames: 0,
            progress: (0, 0),
            cancelled: false,
            next_index: 0,
            resends: 0,
            deal,
        };
        self.deals.insert(id, committed);
        self.gather(core, lsn, id, inline);
    }

    /// Stores what came along and fetches the rest.
    fn gather(&mut self, core: &mut Core, lsn: Lsn, id: AgreementId, inline: Vec<InlineBlob>) {
        let Some(deal) = self.deals.get_mut(&id) else {
            return;
        };
        let account = deal.account();
        let request = deal.deal.request().body();
        let wanted: BTreeSet<BlobRef> = std::iter::once(request.spec)
            .chain(request.inputs.iter().copied())
            .collect();
        let retention = request
            .retention
            .duration()
            .min(deal.deal.quote().body().terms.retention.duration());
        let now = core.now.wall;
        let until = now.after(retention);
        let mut arrived = BTreeSet::new();
        for inline in inline {
            let asked_for = wanted.iter().any(|blob| blob.blob == inline.blob);
            if asked_for {
                arrived.insert(inline.blob);
                self.kept.insert((account, inline.blob), until);
                core.output_after(
                    lsn,
                    Output::Store {
                        blob: inline.blob,
                        durable: false,
                        bytes: inline.bytes.into_vec(),
                    },
                );
            }
        }
        deal.missing.clear();
        for blob in wanted {
            let kept = self.kept.get(&(account, blob.blob));
            let is_here = arrived.contains(&blob.blob) || kept.is_some_and(|until| *until > now);
            if !is_here {
                deal.missing.insert(blob.blob);
                let from = deal.deal.client();
                core.output_after(
                    lsn,
                    Output::Fetch {
                        agreement: id,
                        from,
                        blob,
                        durable: false,
                    },
                );
            }
        }
        deal.stage = Stage::Fetching;
        if deal.missing.is_empty() {
            self.start(core, lsn, id);
        } else {
            core.wake(Timer::Deal(id), core.config.timing.heartbeat);
        }
    }

    pub(crate) fn on_fetched(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: AgreementId,
        blob: BlobId,
        ok: bool,
    ) {
        let Some(deal) = self
            .deals
            .get_mut(&id)
            .filter(|deal| deal.stage == Stage::Fetching)
        else {
            return;
        };
        if !ok {
            let from = deal.deal.client();
            let request = deal.deal.request().body();
            let blob = std::iter::once(request.spec)
                .chain(request.inputs.iter().copied())
                .find(|known| known.blob == blob);
            deal.resends += 1;
            if deal.resends > core.config.timing.fetch_tries {
                return self.fail_all(core, ledger, id, Reason::INPUTS_MISSING);
            }
            if let Some(blob) = blob {
                core.output(Output::Fetch {
                    agreement: id,
                    from,
                    blob,
                    durable: false,
                });
            }
            return;
        }
        if !deal.missing.remove(&blob) {
            return;
        }
        let account = deal.account();
        let done = deal.missing.is_empty();
        let retention = deal.deal.quote().body().terms.retention.duration();
        self.kept
            .insert((account, blob), core.now.wall.after(retention));
        if done {
            self.start(core, Lsn(0), id);
        }
    }

    /// Starts the next unit, when the worker is free.
    fn start(&mut self, core: &mut Core, lsn: Lsn, id: AgreementId) {
        let Some(deal) = self.deals.get_mut(&id) else {
            return;
        };
        let Some(unit) = deal.queue.pop_front() else {
            return;
        };
        deal.stage = Stage::Running;
        deal.resends = 0;
        deal.running.insert(unit, core.now.wall);
        let (request, quote) = (deal.deal.request().body(), deal.deal.quote().body());
        let lease = match &quote.work {
            Work::Lease { until, interval } => Some((*until, *interval)),
            Work::Job | Work::Array { .. } => None,
        };
        let order = ExecutionOrder {
            id: ExecutionId {
                agreement: id,
                unit,
            },
            tenant: request.account,
            runtime: request.needs.runtime,
            spec: request.spec,
            inputs: request.inputs.to_vec(),
            run_max: quote.run_max,
            memory_bytes: request.needs.memory_bytes,
            output_bytes_max: request.needs.output_bytes_max,
            device: quote.device,
            lease,
        };
        // The executor keeps the run limit; this is for one that hangs.
        let run = match lease {
            Some((until, _)) => until.since(core.now.wall),
            None => quote.run_max.duration(),
        };
        deal.until = core.now.mono.after(run + core.config.timing.executor_grace);
        core.output_after(lsn, Output::Execute(Box::new(order)));
        core.wake(Timer::Deal(id), core.config.timing.heartbeat);
    }

    pub(crate) fn on_release_expired(&mut self, core: &mut Core, quote: QuoteId) {
        self.release(core, quote);
    }
}

/// Executions.
impl Seller {
    pub(crate) fn on_execution(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: ExecutionId,
        event: ExecutionEvent,
    ) {
        let Some(deal) = self.deals.get_mut(&id.agreement) else {
            return;
        };
        if !deal.running.contains_key(&id.unit) {
            return;
        }
        match event {
            ExecutionEvent::Progress { done, total } => {
                deal.progress = (done, total);
                send_progress(core, id, deal);
            }
            ExecutionEvent::Log(line) => {
                deal.frames += 1;
                let frame = Frame::Log(LogLine {
                    agreement: id.agreement,
                    unit: id.unit,
                    number: deal.frames,
                    at: core.now.wall,
                    line: Text::<LOG_LINE_BYTES_MAX>::lossy(&line),
                });
                core.send(deal.deal.client(), frame);
            }
            ExecutionEvent::Interim(usage) => self.interim(core, ledger, id, usage),
            ExecutionEvent::Finished { outputs, usage } => {
                self.report(core, ledger, id, Outcome::Completed, outputs, usage);
            }
            ExecutionEvent::Failed { reason, usage } => {
                let outcome = if deal.is_used_up() {
                    Outcome::Completed
                } else if deal.cancelled {
                    Outcome::Cancelled
                } else {
                    Outcome::failed(reason)
                };
                self.report(core, ledger, id, outcome, Vec::new(), usage);
            }
        }
    }

    /// A part of a lease: receipted, as long as the client keeps accepting.
    fn interim(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: ExecutionId,
        usage: Vec<Usage>,
    ) {
        let Some(deal) = self.deals.get(&id.agreement) else {
            return;
        };
        let is_lease = matches!(deal.deal.quote().body().work, Work::Lease { .. });
        if !is_lease {
            return;
        }
        let disputed = |issued: &Issued| matches!(issued.verdict, Some(Verdict::Disputed(_)));
        if deal.unjudged() > 1 || deal.issued.values().any(disputed) {
            // Two parts without an answer, or one that won't be paid: no more
            // on credit.
            core.output(Output::Stop(id));
            return;
        }
        self.issue(
            core,
            ledger,
            id,
            Outcome::Completed,
            Vec::new(),
            usage,
            false,
        );
        if self
            .deals
            .get(&id.agreement)
            .is_some_and(Committed::is_used_up)
        {
            core.output(Output::Stop(id));
        }
    }

    fn report(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: ExecutionId,
        outcome: Outcome,
        outputs: Vec<ProvidedOutput>,
        usage: Vec<Usage>,
    ) {
        self.issue(core, ledger, id, outcome, outputs, usage, true);
        let Some(deal) = self.deals.get_mut(&id.agreement) else {
            return;
        };
        deal.running.remove(&id.unit);
        if !deal.running.is_empty() {
            return;
        }
        let more = !deal.queue.is_empty() && !deal.cancelled;
        if more && matches!(outcome, Outcome::Completed) {
            return self.start(core, Lsn(0), id.agreement);
        }
        self.reported(core, id.agreement);
    }

    /// No more work here: receipts wait to be judged.
    fn reported(&mut self, core: &mut Core, id: AgreementId) {
        let Some(deal) = self.deals.get_mut(&id) else {
            return;
        };
        if !deal.queue.is_empty() {
            // Units that will never run leave no receipt: without this a
            // restart would bring them back, beside what took their slot.
            deal.queue.clear();
            core.persist(Record::Closed {
                agreement: id,
                reason: Reason::CANCELLED,
            });
        }
        deal.stage = Stage::Reported;
        deal.resends = 0;
        deal.until = core
            .now
            .mono
            .after(deal.deal.quote().body().collect_max.duration());
        core.wake(Timer::Deal(id), core.config.timing.resend);
        self.close_if_judged(core, id);
    }

    /// Signs and sends a receipt.
    #[expect(clippy::too_many_arguments, reason = "a receipt says all of this")]
    fn issue(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        id: ExecutionId,
        outcome: Outcome,
        outputs: Vec<ProvidedOutput>,
        usage: Vec<Usage>,
        last: bool,
    ) {
        let Some(deal) = self.deals.get_mut(&id.agreement) else {
            return;
        };
        let index = deal.next_index_of(id.unit);
        let (request, quote) = (deal.deal.request().body(), deal.deal.quote().body());
        let usage = clip_usage(usage, quote);
        let mut due = amount_due(quote, outcome, &usage).unwrap_or(quote.unit_cap);
        if matches!(quote.work, Work::Lease { .. }) {
            due = due.min(quote.cap.saturating_sub(deal.receipted()));
        }
        let receipt = Receipt {
            key: ReceiptKey {
                agreement: id.agreement,
                unit: id.unit,
                attempt: quote.attempt,
                index,
                last,
            },
            outcome,
            program: request.spec.blob,
            inputs: inputs_hash(&request.inputs),
            outputs: output_refs(&outputs),
            started: deal.running.get(&id.unit).copied().unwrap_or(core.now.wall),
            ended: core.now.wall,
            usage: List::truncated(usage),
            amount: due,
            verification: Verification::HASHES,
            extensions: Extensions::default(),
        };
        let receipt = core.sign(receipt);
        let inline = inline_outputs(outputs);
        let lsn = core.persist(Record::Receipted(receipt.clone()));
        let frame = Frame::Receipt(receipt.raw(), List::truncated(inline.clone()));
        core.send_after(lsn, deal.deal.client(), frame);
        keep_outputs(core, quote, receipt.body());
        let name = ReceiptId(receipt.hash());
        ledger.earn(core, deal_parties(&deal.deal), name, due);
        core.tell_after(
            lsn,
            Event::Receipted {
                agreement: id.agreement,
                receipt: name,
                amount: due,
            },
        );
        deal.issued.insert(
            (id.unit, index),
            Issued {
                receipt,
                inline,
                verdict: None,
                lsn,
            },
        );
    }

    /// Ends all units that are not receipted, for one reason.
    fn fail_all(&mut self, core: &mut Core, ledger: &mut Ledger, id: AgreementId, reason: Reason) {
        let Some(deal) = self.deals.get_mut(&id) else {
            return;
        };
        let running: Vec<u32> = deal.running.keys().copied().collect();
        let next = deal.queue.front().copied();
        let outcome = Outcome::failed(reason);
        for unit in running
            .iter()
            .copied()
            .chain(next.filter(|_| running.is_empty()))
        {
            let execution = ExecutionId {
                agreement: id,
                unit,
            };
            if running.contains(&unit) {
                core.output(Output::Stop(execution));
            }
            self.issue(
                core,
                ledger,
                execution,
                outcome,
                Vec::new(),
                Vec::new(),
                true,
            );
        }
        if let Some(deal) = self.deals.get_mut(&id) {
            deal.running.clear();
        }
        self.reported(core, id);
    }
}

impl Committed {
    fn next_index_of(&mut self, unit: u32) -> u32 {
        match self.deal.quote().body().work {
            Work::Lease { .. } => {
                let index = self.next_index;
                self.next_index += 1;
                index
            }
            Work::Job | Work::Array { .. } => {
                u32::try_from(self.issued.range((unit, 0)..=(unit, u32::MAX)).count()).unwrap_or(0)
            }
        }
    }
}

/// Never more device time than was agreed: an executor's clock may run over.
fn clip_usage(usage: Vec<Usage>, quote: &Quote) -> Vec<Usage> {
    let clip = |line: Usage| match line.meter {
        Meter::GPU_MS => Usage {
            quantity: line.quantity.min(quote.run_max.get()),
            ..line
        },
        _ => line,
    };
    usage.into_iter().map(clip).collect()
}

/// Outputs stay until their client has had the agreed time to collect them.
fn keep_outputs(core: &mut Core, quote: &Quote, receipt: &Receipt) {
    let until = core.now.wall.after(quote.collect_max.duration());
    for output in receipt.outputs.iter() {
        core.output(Output::Retain {
            blob: output.blob.blob,
            until,
        });
    }
}

fn output_refs(outputs: &[ProvidedOutput]) -> List<OutputRef, OUTPUTS_MAX> {
    let refs = outputs.iter().map(|output| OutputRef {
        name: output.name.clone(),
        blob: output.blob,
    });
    List::truncated(refs.collect())
}

/// Outputs small enough to travel with the receipt.
fn inline_outputs(outputs: Vec<ProvidedOutput>) -> Vec<InlineBlob> {
    let mut left = INLINE_BYTES_MAX;
    let mut inline = Vec::new();
    for output in outputs {
        let Some(bytes) = output.inline.filter(|bytes| bytes.len() <= left) else {
            continue;
        };
        if inline.len() == INLINE_BLOBS_MAX {
            break;
        }
        left -= bytes.len();
        if let Ok(bytes) = Bytes::new(bytes) {
            inline.push(InlineBlob {
                blob: output.blob.blob,
                bytes,
            });
        }
    }
    inline
}

/// A client that asks after an agreement that it has judged completely is a
/// restored backup: it gets what it has lost, and need not buy it again.
fn resend_lost(core: &mut Core, id: AgreementId, deal: &Committed, shown: &[ReceiptId]) {
    let client = deal.deal.client();
    let mut lost = (deal.issued.values())
        .filter(|issued| !shown.contains(&ReceiptId(issued.receipt.hash())))
        .peekable();
    if lost.peek().is_none() {
        return core.send(client, Frame::Lost(id));
    }
    for issued in lost {
        let inline = List::truncated(issued.inline.clone());
        let frame = Frame::Receipt(issued.receipt.raw(), inline);
        core.send_after(issued.lsn, client, frame);
    }
}

fn send_progress(core: &mut Core, id: ExecutionId, deal: &mut Committed) {
    deal.frames += 1;
    let frame = Frame::Progress(Progress {
        agreement: id.agreement,
        unit: id.unit,
        number: deal.frames,
        done: deal.progress.0,
        total: deal.progress.1,
    });
    core.send(deal.deal.client(), frame);
}

/// What clients say while and after it runs.
impl Seller {
    pub(crate) fn on_cancel(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        from: PeerId,
        id: AgreementId,
    ) {
        let quote = QuoteId::from(id);
        self.on_release(core, from, quote);
        let Some(deal) = self
            .deals
            .get_mut(&id)
            .filter(|deal| deal.deal.client() == from)
        else {
            return;
        };
        match deal.stage {
            Stage::Running => {
                deal.cancelled = true;
                for &unit in deal.running.keys() {
                    core.output(Output::Stop(ExecutionId {
                        agreement: id,
                        unit,
                    }));
                }
            }
            Stage::Fetching => {
                deal.cancelled = true;
                self.fail_all(core, ledger, id, Reason::CANCELLED);
            }
            // Nothing is signed for what the client may hold receipts of.
            Stage::Interrupted => self.close(core, id, Reason::CANCELLED),
            Stage::Reported | Stage::Closed => self.resend_receipts(core, id),
        }
    }

    pub(crate) fn on_acceptance(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        acceptance: Verified<Acceptance>,
    ) {
        let body = acceptance.body();
        let id = body.key.agreement;
        let Some(deal) = self
            .deals
            .get_mut(&id)
            .filter(|deal| deal.deal.client() == acceptance.signer())
        else {
            return;
        };
        let Some(issued) = deal.issued.get_mut(&(body.key.unit, body.key.index)) else {
            return;
        };
        if issued.receipt.hash() != body.receipt.0 || issued.verdict.is_some() {
            return;
        }
        issued.verdict = Some(body.verdict);
        let parties = deal_parties(&deal.deal);
        let lsn = core.persist(Record::HeardOf(acceptance.clone()));
        core.tell_after(
            lsn,
            Event::Judged {
                agreement: id,
                receipt: body.receipt,
                verdict: body.verdict,
            },
        );
        if matches!(body.verdict, Verdict::Disputed(_)) {
            ledger.dispute(core, parties, body.receipt);
        }
        self.close_if_judged(core, id);
    }

    pub(crate) fn on_resume(
        &mut self,
        core: &mut Core,
        ledger: &mut Ledger,
        from: PeerId,
        id: AgreementId,
        receipts: Vec<Verified<Receipt>>,
    ) {
        let Some(deal) = self
            .deals
            .get_mut(&id)
            .filter(|deal| deal.deal.client() == from)
        else {
            return core.send(from, Frame::Lost(id));
        };
        let me = core.me();
        let shown: Vec<ReceiptId> = (receipts.iter())
            .map(|receipt| ReceiptId(receipt.hash()))
            .collect();
        for receipt in receipts {
            let key = receipt.body().key;
            if receipt.signer() != me || key.agreement != id {
                continue;
            }
            if deal.issued.contains_key(&(key.unit, key.index)) {
                continue;
            }
            // Ours, and lost here: we are a restored backup.
            let lsn = core.persist(Record::Receipted(receipt.clone()));
            ledger.earn(
                core,
                deal_parties(&deal.deal),
                ReceiptId(receipt.hash()),
                receipt.body().amount,
            );
            deal.adopt(receipt, lsn);
        }
        match deal.stage {
            Stage::Interrupted if deal.queue.is_empty() => self.reported(core, id),
            Stage::Interrupted => {
                deal.until = core.now.mono.after(core.config.timing.transfer_max);
                core.send(from, Frame::Agreed(id));
                self.gather(core, Lsn(0), id, Vec::new());
            }
            Stage::Fetching | Stage::Running => {
                let unit = deal.running.keys().next().copied().unwrap_or(0);
                send_progress(
                    core,
                    ExecutionId {
                        agreement: id,
                        unit,
                    },
                    deal,
                );
                self.resend_receipts(core, id);
            }
            Stage::Reported => self.resend_receipts(core, id),
            Stage::Closed if deal.unjudged() > 0 => self.resend_receipts(core, id),
            Stage::Closed => resend_lost(core, id, deal, &shown),
        }
    }

    fn resend_receipts(&self, core: &mut Core, id: AgreementId) {
        let Some(deal) = self.deals.get(&id) else {
            return;
        };
        for issued in deal
            .issued
            .values()
            .filter(|issued| issued.verdict.is_none())
        {
            let frame =
                Frame::Receipt(issued.receipt.raw(), List::truncated(issued.inline.clone()));
            core.send_after(issued.lsn, deal.deal.client(), frame);
        }
    }

    fn close_if_judged(&mut self, core: &mut Core, id: AgreementId) {
        let done = self
            .deals
            .get(&id)
            .is_some_and(|deal| deal.stage == Stage::Reported && deal.unjudged() == 0);
        if done {
            self.close(core, id, Reason::UNSPECIFIED);
        }
    }

    /// Does no more for an agreement; the last ones stay for repeats.
    fn close(&mut self, core: &mut Core, id: AgreementId, reason: Reason) {
        let Some(deal) = self.deals.get_mut(&id) else {
            return;
        };
        if deal.stage == Stage::Closed {
            return;
        }
        deal.stage = Stage::Closed;
        core.timers.clear(Timer::Deal(id));
        core.persist(Record::Closed {
            agreement: id,
            reason,
        });
        let retention = deal.deal.quote().body().terms.retention.duration();
        let until = core.now.wall.after(retention);
        let request = deal.deal.request().body();
        for blob in std::iter::once(&request.spec).chain(request.inputs.iter()) {
            core.output(Output::Retain {
                blob: blob.blob,
                until,
            });
        }
        self.forget_old(id);
    }

    /// Keeps the last closed agreements, for repeats.
    fn forget_old(&mut self, closed: AgreementId) {
        self.closed.push_back(closed);
        if self.closed.len() > AGREEMENTS_MAX / 4
            && let Some(oldest) = self.closed.pop_front()
        {
            self.deals.remove(&oldest);
        }
    }
}

impl Committed {
    fn adopt(&mut self, receipt: Verified<Receipt>, lsn: Lsn) {
        let key = receipt.body().key;
        if key.last {
            self.queue.retain(|&unit| unit != key.unit);
            self.running.remove(&key.unit);
        }
        self.next_index = self.next_index.max(key.index.saturating_add(1));
        self.issued.insert(
            (key.unit, key.index),
            Issued {
                receipt,
                inline: Vec::new(),
                verdict: None,
                lsn,
            },
        );
    }
}

/// Timers.
impl Seller {
    pub(crate) fn on_deal_timer(&mut self, core: &mut Core, ledger: &mut Ledger, id: AgreementId) {
        let Some(deal) = self.deals.get_mut(&id) else {
            return;
        };
        let over = core.now.mono >= deal.until;
        match deal.stage {
            Stage::Fetching if over => self.fail_all(core, ledger, id, Reason::INPUTS_MISSING),
            Stage::Running if over => self.fail_all(core, ledger, id, Reason::DEADLINE),
            Stage::Interrupted | Stage::Reported if over => {
                self.close(core, id, Reason::PROVIDER_LOST)
            }
            Stage::Fetching | Stage::Running => {
                let unit = deal.running.keys().next().copied().unwrap_or(0);
                send_progress(
                    core,
                    ExecutionId {
                        agreement: id,
                        unit,
                    },
                    deal,
                );
                let next = core
                    .now
                    .mono
                    .after(core.config.timing.heartbeat)
                    .min(deal.until);
                core.timers.set(Timer::Deal(id), next);
            }
            Stage::Reported => {
                deal.resends += 1;
                let pause = core.config.timing.resend * (1 << deal.resends.min(6));
                let next = core.now.mono.after(pause).min(deal.until);
                core.timers.set(Timer::Deal(id), next);
                self.resend_receipts(core, id);
            }
            Stage::Interrupted => core.timers.set(Timer::Deal(id), deal.until),
            Stage::Closed => {}
        }
    }

    /// A client is reachable again.
    pub(crate) fn on_connected(&self, core: &mut Core, peer: PeerId) {
        for (&id, deal) in &self.deals {
            if deal.deal.client() == peer && deal.stage == Stage::Reported {
                self.resend_receipts(core, id);
            }
        }
    }

    /// Forgets which blobs are kept, once they no longer are.
    pub(crate) fn expire_blobs(&mut self, now: Wall) {
        let in_use: BTreeSet<AccountId> = self
            .deals
            .values()
            .filter(|deal| deal.uses_slot())
            .map(Committed::account)
            .collect();
        self.kept
            .retain(|(account, _), until| *until > now || in_use.contains(account));
    }

    /// What open work still needs: its inputs, and results not yet judged.
    pub(crate) fn needed_blobs(&self) -> impl Iterator<Item = BlobId> {
        self.deals
            .values()
            .filter(|deal| deal.stage != Stage::Closed)
            .flat_map(|deal| {
                let request = deal.deal.request().body();
                let inputs = std::iter::once(&request.spec)
                    .chain(request.inputs.iter())
                    .map(|blob| blob.blob);
                let outputs = deal.issued.values().flat_map(|issued| {
                    issued
                        .receipt
                        .body()
                        .outputs
                        .iter()
                        .map(|output| output.blob.blob)
                });
                inputs.chain(outputs)
            })
    }

    /// What a peer may read of our results under an agreement.
    pub(crate) fn may_read(&self, reader: PeerId, agreement: AgreementId, blob: BlobId) -> bool {
        self.deals.get(&agreement).is_some_and(|deal| {
            deal.deal.client() == reader
                && deal.issued.values().any(|issued| {
                    issued
                        .receipt
                        .body()
                        .outputs
                        .iter()
                        .any(|o| o.blob.blob == blob)
                })
        })
    }

    pub(crate) fn views(&self) -> Vec<WorkView> {
        self.deals
            .iter()
            .map(|(&agreement, deal)| WorkView {
                agreement,
                job: deal.deal.quote().body().job,
                client: deal.deal.client(),
                client_account: deal.account(),
                stage: match deal.stage {
                    Stage::Fetching => "fetching",
                    Stage::Running => "running",
                    Stage::Interrupted => "interrupted",
                    Stage::Reported => "reported",
                    Stage::Closed => "closed",
                },
                progress: deal.progress,
                receipts: deal
                    .issued
                    .values()
                    .map(|issued| ReceiptId(issued.receipt.hash()))
                    .collect(),
            })
            .collect()
    }

    pub(crate) fn holds(&self) -> usize {
        self.holds.len()
    }
}

/// Rebuilding from records.
impl Seller {
    pub(crate) fn replay(&mut self, core: &mut Core, ledger: &mut Ledger, record: &Record) {
        match record {
            Record::Offered(offer) => self.remember_offer(core, offer.clone()),
            Record::Withdrew(withdrawal) => {
                self.sequence = self.sequence.max(withdrawal.body().sequence);
                self.live = None;
            }
            Record::Quoted {
                offer,
                request,
                quote,
            } => {
                let hold = Hold {
                    offer: offer.clone(),
                    request: request.clone(),
                    quote: quote.clone(),
                };
                self.answer_again(request, quote);
                self.holds.insert(QuoteId(quote.hash()), hold);
            }
            Record::QuotedFirm {
                offer,
                request,
                quote,
            } => {
                self.answer_again(request, quote);
                if let Ok(deal) = Deal::new(offer.clone(), request.clone(), quote.clone(), None) {
                    self.replay_commit(core, deal);
                }
            }
            Record::AgreedTo(agreement) => {
                let Some(hold) = self.holds.remove(&agreement.body().quote) else {
                    return;
                };
                let deal = Deal::new(
                    hold.offer,
                    hold.request,
                    hold.quote,
                    Some(agreement.clone()),
                );
                if let Ok(deal) = deal {
                    self.replay_commit(core, deal);
                }
            }
            Record::Receipted(receipt) => {
                if let Some(deal) = self.deals.get_mut(&receipt.body().key.agreement) {
                    let parties = deal_parties(&deal.deal);
                    ledger.earn(
                        core,
                        parties,
                        ReceiptId(receipt.hash()),
                        receipt.body().amount,
                    );
                    deal.adopt(receipt.clone(), Lsn(0));
                }
            }
            Record::HeardOf(acceptance) => self.replay_judged(core, ledger, acceptance),
            Record::Closed { agreement, .. } => {
                self.holds.remove(&QuoteId::from(*agreement));
                if let Some(deal) = self.deals.get_mut(agreement)
                    && deal.stage != Stage::Closed
                {
                    deal.stage = Stage::Closed;
                    self.forget_old(*agreement);
                }
            }
            _ => {}
        }
    }

    fn answer_again(&mut self, request: &Verified<Request>, quote: &Verified<Quote>) {
        let id = RequestId(request.hash());
        self.answers
            .insert(id, Answer::Quoted(Box::new(quote.clone()), Lsn(0)));
        self.answers_order.push_back(id);
        if self.answers_order.len() > ANSWERS_KEPT
            && let Some(oldest) = self.answers_order.pop_front()
        {
            self.answers.remove(&oldest);
        }
    }

    fn replay_commit(&mut self, core: &Core, deal: Deal) {
        let quote = deal.quote().body();
        let until = core.now.mono.after(core.config.timing.interrupted_max);
        let committed = Committed {
            stage: Stage::Interrupted,
            queue: quote.work.units().into(),
            running: BTreeMap::new(),
            missing: BTreeSet::new(),
            issued: BTreeMap::new(),
            until,
            frames: 0,
            progress: (0, 0),
            cancelled: false,
            next_index: 0,
            resends: 0,
            deal,
        };
        self.deals.insert(committed.deal.id(), committed);
    }

    fn replay_judged(
        &mut self,
        core: &Core,
        ledger: &mut Ledger,
        acceptance: &Verified<Acceptance>,
    ) {
        let body = acceptance.body();
        let Some(deal) = self.deals.get_mut(&body.key.agreement) else {
            return;
        };
        let parties = deal_parties(&deal.deal);
        if let Some(issued) = deal.issued.get_mut(&(body.key.unit, body.key.index)) {
            issued.verdict = Some(body.verdict);
            if matches!(body.verdict, Verdict::Disputed(_)) {
                ledger.dispute(core, parties, body.receipt);
            }
        }
    }

    /// After replay: holds that still stand, and receipts that wait.
    pub(crate) fn resume(&mut self, core: &mut Core) {
        let grace = core.config.timing.hold_grace;
        self.holds
            .retain(|_, hold| hold.quote.expires().after(grace) > core.now.wall);
        let ids: Vec<(QuoteId, Wall)> = self
            .holds
            .iter()
            .map(|(id, hold)| (*id, hold.quote.expires()))
            .collect();
        for (id, expires) in ids {
            let left = expires.since(core.now.wall).min(core.config.timing.hold) + grace;
            core.wake(Timer::Hold(id), left);
        }
        let open: Vec<AgreementId> = self
            .deals
            .iter()
            .filter(|(_, deal)| deal.stage != Stage::Closed)
            .map(|(id, _)| *id)
            .collect();
        for id in open {
            let Some(deal) = self.deals.get_mut(&id) else {
                continue;
            };
            // All units are receipted: only the client's word is missing.
            if deal.queue.is_empty() {
                self.reported(core, id);
            } else {
                core.timers.set(Timer::Deal(id), deal.until);
            }
        }
        self.slots_kept = self.slots_used();
    }
}
