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
//! an agreement keeps it until its last unit is receipted. While all are in use, work
//! may be agreed on that waits for its turn: see `queue`. Where the operator
//! knows some accounts, a stranger's quote takes none, and says so: its holds
//! could keep them out. What was running
//! when the node stopped is not receipted and not run again until the client
//! has shown which receipts it holds: a node restored from a backup must not
//! sign a second receipt for the same unit.

mod challenged;
mod grants;
mod queue;
mod quoting;
mod references;
mod restore;
mod running;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

pub(crate) use self::quoting::Credits;
use self::{
    challenged::Challenged,
    grants::{Elsewhere, Granted},
    queue::Turns,
    running::{resend_lost, resumed_as_agreed, send_progress},
};
use super::{
    Event, ExecutionEvent, ExecutionId, ExecutionOrder, FetchOrder, Fetched, Kept, Output,
    ProvidedOutput, ProviderConfig, WorkView,
    buyer::deal_parties,
    core::{Core, Timer},
    ledger::Ledger,
};
use crate::{
    book::Book,
    deal::{Agreement, BlobRef, Checkpoint, Deal, Quote, Request, UnitRanges, Work},
    envelope::{EnvelopeError, Extensions, Verified},
    grant::Grant,
    ids::{AccountId, AgreementId, BlobId, OfferId, PeerId, QuoteId, ReceiptId, RequestId},
    limits::{
        AGREEMENTS_MAX, ANSWERS_KEPT, HOLDS_PER_CLIENT, INLINE_BLOBS_MAX, INLINE_BYTES_MAX,
        LOG_LINE_BYTES_MAX, OUTPUTS_MAX,
    },
    message::{Decline, Frame, InlineBlob, LogLine, Progress},
    offer::{Device, Offer, Prices, Withdrawal},
    pricing::{self, Moment},
    rank::{self, JobFields, times},
    receipt::{
        Acceptance, Outcome, OutputRef, Receipt, ReceiptKey, Verdict, amount_due, inputs_hash,
    },
    record::{Lsn, Part, Record},
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
    /// The last withdrawal, if no offer followed it.
    withdrawn: Option<Verified<Withdrawal>>,
    sequence: u64,
    /// Slots in use when the offer last changed: an operator who takes slots
    /// away breaks no agreement.
    kept_slots: Slots,
    draining: bool,
    answers: BTreeMap<RequestId, Answer>,
    answers_order: VecDeque<RequestId>,
    holds: BTreeMap<QuoteId, Hold>,
    deals: BTreeMap<AgreementId, Committed>,
    /// Those that are not closed: few, beside all that are remembered.
    open: BTreeSet<AgreementId>,
    closed: VecDeque<AgreementId>,
    /// Blobs that a client's account has sent us, until when we keep them.
    /// Only that account learns that we have them.
    kept: BTreeMap<(AccountId, BlobId), Wall>,
    challenged: Challenged,
    turns: Turns,
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
    /// What others have of its inputs.
    elsewhere: Elsewhere,
}

/// An agreement that we serve.
#[derive(Debug)]
struct Committed {
    deal: Deal,
    stage: Stage,
    /// Whether it has a slot. What waits in the queue gets one when it begins,
    slot: bool,
    /// which must be before this.
    turn_until: Mono,
    /// Units not started yet.
    queue: VecDeque<u32>,
    running: BTreeMap<u32, Wall>,
    missing: BTreeSet<BlobId>,
    /// Missing ones that are to be fetched again.
    again: BTreeSet<BlobId>,
    /// What others have of the inputs.
    elsewhere: Elsewhere,
    /// Who else may read the results.
    granted: Granted,
    issued: BTreeMap<(u32, u32), Issued>,
    /// When this stage must be over.
    until: Mono,
    frames: u64,
    progress: (u64, u64),
    /// Where units go on: as agreed, or as the client says after a restart.
    resume: BTreeMap<u32, Checkpoint>,
    /// The last two checkpoints told: the client may be fetching either.
    told: VecDeque<Checkpoint>,
    cancelled: bool,
    /// Lease: the next interim receipt.
    next_index: u32,
    resends: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Fetching,
    Waiting,
    Running,
    Interrupted,
    Reported,
    Closed,
}

#[derive(Debug)]
struct Issued {
    receipt: Verified<Receipt>,
    inline: Vec<InlineBlob>,
    /// What its client says of it.
    word: Option<Verified<Acceptance>>,
    lsn: Lsn,
}

impl Issued {
    fn is_disputed(&self) -> bool {
        let word = self.word.as_ref().map(|word| word.body().verdict);
        matches!(word, Some(Verdict::Disputed(_)))
    }
}

impl Committed {
    const fn uses_slot(&self) -> bool {
        self.slot && self.is_open()
    }

    /// What it may still cost beyond the receipts issued.
    fn reserved(&self) -> Amount {
        if !self.is_open() {
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
            .filter(|issued| issued.word.is_none())
            .count()
    }
}

/// The offer.
impl Seller {
    /// Offers what the configuration says, also after a withdrawal.
    pub(crate) fn announce(&mut self, core: &mut Core, book: &mut Book) {
        self.draining = false;
        self.renew(core, book);
    }

    /// Signs and announces the offer anew, unless it was withdrawn.
    pub(crate) fn renew(&mut self, core: &mut Core, book: &mut Book) {
        self.kept_slots = self.slots_held();
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
        body.prices = self.prices_now(core, &provider);
        let mut devices = body.devices.to_vec();
        for device in &mut devices {
            device.slots = device.slots.clamp(1, body.slots);
        }
        body.devices = List::truncated(devices);
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

    /// What is asked of everybody now.
    fn prices_now(&self, core: &Core, provider: &ProviderConfig) -> Prices {
        let moment = self.moment(core, provider);
        let pricing = &provider.pricing;
        let (list, floor) = (&provider.offer.prices, pricing.floor());
        pricing::priced(list, pricing.of_all(&moment), floor)
    }

    fn moment(&self, core: &Core, provider: &ProviderConfig) -> Moment {
        Moment {
            now: core.now.wall,
            used: self.slots_used(),
            slots: provider.offer.slots.max(1),
        }
    }

    /// Whether the live offer's prices are no longer what is asked.
    pub(crate) fn is_outpriced(&self, core: &Core) -> bool {
        let live = self.live.and_then(|live| self.offers.get(&live));
        let provider = core.config.provider.as_ref().filter(|_| !self.draining);
        match (live, provider) {
            (Some(live), Some(provider)) => live.body().prices != self.prices_now(core, provider),
            _ => false,
        }
    }

    fn remember_offer(&mut self, core: &Core, offer: Verified<Offer>) {
        let now = core.now.wall;
        self.offers.retain(|_, offer| offer.expires() > now);
        self.sequence = self.sequence.max(offer.body().sequence);
        self.live = Some(OfferId(offer.hash()));
        self.withdrawn = None;
        self.offers.insert(OfferId(offer.hash()), offer);
    }

    /// Withdraws the offer: what is agreed goes on, nothing new begins.
    pub(crate) fn withdraw(&mut self, core: &mut Core, book: &mut Book) {
        self.draining = true;
        core.timers.clear(Timer::Renew);
        // No request may name them any more, also when there is a new one.
        self.offers.clear();
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
        self.withdrawn = Some(withdrawal);
    }

    /// Ends all open work as this side's fault, and releases what is only quoted.
    pub(crate) fn abandon(&mut self, core: &mut Core, ledger: &mut Ledger) {
        for quote in self.holds.keys().copied().collect::<Vec<_>>() {
            self.release(core, quote);
        }
        for id in self.open.clone() {
            match self.deals.get(&id).map(|deal| deal.stage) {
                Some(Stage::Fetching | Stage::Waiting | Stage::Running) => {
                    self.fail_all(core, ledger, id, Reason::PROVIDER_FAULT);
                }
                // Nothing is signed for what the client may hold receipts of.
                Some(Stage::Interrupted) => self.close(core, id, Reason::PROVIDER_LOST),
                Some(Stage::Reported | Stage::Closed) | None => {}
            }
        }
    }

    /// Slots that are held or at work.
    pub(crate) fn slots_used(&self) -> u32 {
        self.slots_held().all
    }

    fn slots_held(&self) -> Slots {
        self.slots(|hold| hold.quote.body().held)
    }

    /// The same, if all that is quoted were taken.
    fn slots_quoted(&self) -> Slots {
        self.slots(|hold| !hold.waits())
    }

    /// Slots at work, and those of some holds.
    fn slots(&self, counts: impl Fn(&Hold) -> bool) -> Slots {
        let held = self.holds.values().filter(|hold| counts(hold));
        let held = held.map(|hold| hold.quote.body().device);
        let at_work = self.open_deals().filter(|deal| deal.uses_slot());
        let at_work = at_work.map(|deal| deal.deal.quote().body().device);
        held.chain(at_work)
            .chain(self.challenged.devices())
            .collect()
    }

    /// Agreements that are not closed.
    fn open_deals(&self) -> impl Iterator<Item = &Committed> {
        self.open.iter().filter_map(|id| self.deals.get(id))
    }

    fn has_free_slot(&self, core: &Core, device: u16) -> bool {
        let offered = core.config.provider.as_ref();
        offered.is_some_and(|provider| self.slots_held().have_room(&provider.offer, device))
    }

    /// That no more is in use than is offered, or was when the offer changed.
    ///
    /// # Errors
    /// Where more is.
    pub(crate) fn check_slots(&self, offer: &Offer) -> Result<(), String> {
        let (used, kept) = (self.slots_held(), &self.kept_slots);
        if used.all > offer.slots.max(1).max(kept.all) {
            return Err(format!("{} slots in use of {}", used.all, offer.slots));
        }
        for (device, used) in &used.devices {
            let kept = kept.devices.get(device).copied().unwrap_or(0);
            let slots = offer.devices.get(usize::from(*device));
            let slots = slots.map_or(1, |device| device.slots);
            if *used > slots.max(kept) {
                return Err(format!("{used} slots in use of device {device}'s {slots}"));
            }
        }
        Ok(())
    }
}

/// Slots in use, all together and of each device.
#[derive(Debug, Default)]
struct Slots {
    all: u32,
    devices: BTreeMap<u16, u32>,
}

impl FromIterator<u16> for Slots {
    fn from_iter<T: IntoIterator<Item = u16>>(devices: T) -> Self {
        let mut slots = Self::default();
        for device in devices {
            slots.all += 1;
            *slots.devices.entry(device).or_default() += 1;
        }
        slots
    }
}

impl Slots {
    /// Whether one more execution fits on a device.
    fn have_room(&self, offer: &Offer, device: u16) -> bool {
        let used = self.devices.get(&device).copied().unwrap_or(0);
        let has_room = |device: &Device| used < device.slots;
        let device = offer.devices.get(usize::from(device));
        self.all < offer.slots.max(1) && device.is_some_and(has_room)
    }
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
        let (waits, quote_body) = (hold.waits(), deal.quote().body());
        let has_room = if waits {
            let provider = core.config.provider.as_ref();
            provider.is_some_and(|provider| self.has_place(provider))
        } else {
            quote_body.held || self.has_free_slot(core, quote_body.device)
        };
        if !has_room {
            self.release(core, quote);
            return core.send(from, Frame::AgreeRefused(id, Reason::BUSY.into()));
        }
        let elsewhere = hold.elsewhere.clone();
        self.end_hold(core, quote);
        let lsn = core.persist(Record::AgreedTo(agreement));
        core.send_after(lsn, from, Frame::Agreed(id));
        self.commit(core, lsn, deal, (inline, elsewhere));
    }

    /// An agreement stands: what is missing is fetched, then it runs. Running
    /// shows nothing to anybody, so it need not wait for the record: a crash
    /// before the record is on disk costs us the work, and the client asks again.
    /// Fetching does wait: the client of a firm offer serves nothing before it
    /// has the countersignature.
    fn commit(
        &mut self,
        core: &mut Core,
        lsn: Lsn,
        deal: Deal,
        (inline, elsewhere): (Vec<InlineBlob>, Elsewhere),
    ) {
        let id = deal.id();
        core.tell_after(
            lsn,
            Event::Work {
                agreement: id,
                client: deal.client(),
            },
        );
        let quote = deal.quote().body();
        let slot = quote.wait_max == Millis::default();
        if slot {
            let work = queue::work_of(quote);
            self.turns.begin(deal.request().body().account, work);
        } else {
            self.enqueue(id);
        }
        let committed = Committed {
            stage: Stage::Fetching,
            slot,
            turn_until: core.now.mono.after(quote.wait_max.duration()),
            queue: deal.quote().body().work.units().into(),
            running: BTreeMap::new(),
            missing: BTreeSet::new(),
            again: BTreeSet::new(),
            elsewhere,
            granted: Granted::default(),
            issued: BTreeMap::new(),
            until: core.now.mono.after(core.config.timing.transfer_max),
            frames: 0,
            progress: (0, 0),
            resume: resumed_as_agreed(&deal),
            told: VecDeque::new(),
            cancelled: false,
            next_index: 0,
            resends: 0,
            deal,
        };
        self.open.insert(id);
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
        let wanted: BTreeSet<BlobRef> = deal.needs().collect();
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
                core.output(Output::Store {
                    blob: inline.blob,
                    kept: Kept::Input,
                    bytes: inline.bytes.into_vec(),
                });
            }
        }
        deal.missing.clear();
        deal.elsewhere.show(core, lsn);
        for blob in wanted {
            let kept = self.kept.get(&(account, blob.blob));
            let is_here = arrived.contains(&blob.blob) || kept.is_some_and(|until| *until > now);
            if !is_here {
                deal.missing.insert(blob.blob);
                core.output_after(lsn, deal.fetch(blob, now));
            }
        }
        deal.stage = Stage::Fetching;
        if deal.missing.is_empty() {
            self.ready(core, id);
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
            // Those that fail together are one try.
            deal.resends += u32::from(deal.again.is_empty());
            if deal.resends > core.config.timing.fetch_tries {
                return self.fail_all(core, ledger, id, Reason::INPUTS_MISSING);
            }
            // Not at once: the countersignature of a firm offer may be on its way.
            deal.again.insert(blob);
            return core.wake(Timer::Deal(id), core.config.timing.retry);
        }
        if !deal.missing.remove(&blob) {
            return;
        }
        // It goes on: only tries without any count.
        deal.resends = 0;
        let account = deal.account();
        let done = deal.missing.is_empty();
        let retention = deal.deal.quote().body().terms.retention.duration();
        self.kept
            .insert((account, blob), core.now.wall.after(retention));
        if done {
            self.ready(core, id);
        }
    }

    /// Starts the next unit, when the worker is free.
    fn start(&mut self, core: &mut Core, id: AgreementId) {
        let Some(deal) = self.deals.get_mut(&id) else {
            return;
        };
        let Some(unit) = deal.queue.pop_front() else {
            return;
        };
        deal.stage = Stage::Running;
        deal.resends = 0;
        deal.elsewhere = Elsewhere::default();
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
            inputs: request.work.inputs_of(unit, &request.inputs),
            run_max: quote.run_max,
            fuel_max: quote.fuel_max,
            memory_bytes: request.needs.memory_bytes,
            output_bytes_max: request.needs.output_bytes_max,
            device: quote.device,
            client: quote.client,
            model: request.needs.model.clone(),
            lease,
            checkpoint_every: request.checkpoint_every,
            resume: deal.resume.get(&unit).cloned(),
        };
        // The executor keeps the run limit; this is for one that hangs.
        let run = match lease {
            Some((until, _)) => until.since(core.now.wall),
            None => quote.run_max.duration(),
        };
        deal.until = core.now.mono.after(run + core.config.timing.executor_grace);
        core.output(Output::Execute(Box::new(order)));
        core.wake(Timer::Deal(id), core.config.timing.heartbeat);
    }

    pub(crate) fn on_release_expired(&mut self, core: &mut Core, quote: QuoteId) {
        self.release(core, quote);
    }
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
            // Also for a hold that was only now released: the client need not wait.
            return core.send(from, Frame::Lost(id));
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
            Stage::Fetching | Stage::Waiting => {
                deal.cancelled = true;
                self.fail_all(core, ledger, id, Reason::CANCELLED);
            }
            // Nothing is signed for what the client may hold receipts of.
            Stage::Interrupted => {
                self.close(core, id, Reason::CANCELLED);
                core.send_again(from, Frame::Lost(id));
            }
            Stage::Closed if deal.unjudged() == 0 => core.send_again(from, Frame::Lost(id)),
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
        if issued.receipt.hash() != body.receipt.0 || issued.word.is_some() {
            return;
        }
        issued.word = Some(acceptance.clone());
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
        (receipts, done, kept): (Vec<Verified<Receipt>>, &UnitRanges, Vec<Checkpoint>),
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
        // What the client has a receipt of is not run again, though we know of none: there
        // must not be a second one.
        let is_done = |unit: &u32| done.iter().any(|range| range.units().contains(unit));
        if deal.stage == Stage::Interrupted {
            deal.queue.retain(|unit| !is_done(unit));
            deal.go_on_from(kept);
        }
        match deal.stage {
            Stage::Interrupted if deal.queue.is_empty() => self.reported(core, id),
            Stage::Interrupted => {
                deal.until = core.now.mono.after(core.config.timing.transfer_max);
                if !deal.slot {
                    let wait = deal.deal.quote().body().wait_max.duration();
                    deal.turn_until = core.now.mono.after(wait);
                    self.enqueue(id);
                }
                core.send(from, Frame::Agreed(id));
                self.gather(core, Lsn(0), id, Vec::new());
            }
            Stage::Fetching | Stage::Waiting | Stage::Running => {
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
            Stage::Closed => resend_lost(core, id, deal, (&shown, is_done)),
        }
    }

    fn resend_receipts(&self, core: &mut Core, id: AgreementId) {
        let Some(deal) = self.deals.get(&id) else {
            return;
        };
        for issued in deal.issued.values().filter(|issued| issued.word.is_none()) {
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
        self.turns.forget(id);
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
        self.open.remove(&closed);
        self.closed.push_back(closed);
        if self.closed.len() > AGREEMENTS_MAX / 4
            && let Some(oldest) = self.closed.pop_front()
        {
            self.deals.remove(&oldest);
        }
    }
}

impl Committed {
    fn fetch_again(&mut self, core: &mut Core) {
        let again = std::mem::take(&mut self.again);
        if !again.is_empty() {
            self.elsewhere.show(core, core.outbox.last());
        }
        for blob in self.needs().filter(|blob| again.contains(&blob.blob)) {
            core.output(self.fetch(blob, core.now.wall));
        }
    }

    /// Fetches an input from whoever has it.
    fn fetch(&self, blob: BlobRef, now: Wall) -> Output {
        let agreement = self.deal.id();
        // Its client may have it by now: every third try.
        let elsewhere = self.elsewhere.holder_of(blob.blob, now);
        let elsewhere = elsewhere.filter(|_| self.resends % 3 != 2);
        let (from, under) = elsewhere.unwrap_or_else(|| (self.deal.client(), agreement));
        Output::Fetch(FetchOrder {
            agreement,
            from,
            under,
            blob,
            what: Fetched::Input,
        })
    }

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
                word: None,
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
            Stage::Waiting if over => self.fail_all(core, ledger, id, Reason::WAITED_TOO_LONG),
            // The executor keeps the run limit; one that overstays even the grace hangs.
            Stage::Running if over => self.fail_all(core, ledger, id, Reason::PROVIDER_FAULT),
            Stage::Interrupted | Stage::Reported if over => {
                self.close(core, id, Reason::PROVIDER_LOST)
            }
            Stage::Fetching | Stage::Waiting | Stage::Running => {
                deal.fetch_again(core);
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

    /// Forgets which blobs are kept, once they no longer are, and products that nobody
    /// opened.
    pub(crate) fn expire(&mut self, core: &mut Core) {
        self.challenged.drop_late(core);
        let now = core.now.wall;
        let in_use: BTreeSet<AccountId> = self
            .deals
            .values()
            .filter(|deal| deal.is_open())
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
                let told = deal.told.iter().flat_map(Checkpoint::blobs);
                let inputs = deal.needs().chain(told).map(|blob| blob.blob);
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
    pub(crate) fn may_read(
        &self,
        now: Wall,
        reader: PeerId,
        agreement: AgreementId,
        blob: BlobId,
    ) -> bool {
        self.deals.get(&agreement).is_some_and(|deal| {
            if deal.granted.has(now, reader, blob) {
                return true;
            }
            let outputs = deal.outputs();
            let told = deal.told.iter().flat_map(Checkpoint::blobs);
            deal.deal.client() == reader && outputs.chain(told).any(|read| read.blob == blob)
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
                    Stage::Waiting => "waiting",
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
