//! Work that waits for a slot, and whose turn it is.
//!
//! ```text
//! quote with a wait ──agreed──▶ inputs are fetched ──▶ Waiting ──a slot is free, its turn──▶ Running
//!                                                        └─ not in time: failed, as the provider's fault
//! ```
//!
//! A provider whose slots are in use may still quote: it says when it expects to begin,
//! and how long after the agreement it begins at the latest. Such a quote takes a place
//! in the queue and no slot, so that capacity is never promised twice.
//!
//! Turns are fair between accounts, by start-time fair queueing: an account's next piece
//! of work is stamped with where its last one ends, in work and not in time, and the lowest
//! stamp comes first. One that sends a hundred jobs waits behind one that sends its first.
//! Within an account the first comes first. (Goyal, Vin and Cheng, 1996.)
//!
//! Absent: priorities, and pre-emption.

use super::*;

/// Accounts whose last stamp is remembered: those further back are all alike.
const STAMPS_MAX: usize = 4096;
/// What is expected of an execution before any was seen: so many thousandths of its limit.
const RATIO_AT_FIRST: u64 = 500;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The stamp of what began last.
    now: u64,
    /// Where the last work of each account ends, if after that.
    ends: BTreeMap<AccountId, u64>,
    /// Counts up, so that within an account the first comes first.
    arrivals: u64,
    /// Those that wait, or will when their inputs are here: when they came.
    waiting: BTreeMap<AgreementId, u64>,
    /// How much of its limit an execution takes, in thousandths, as a moving average.
    ratio: Option<u64>,
}

impl Turns {
    fn stamp(&self, account: AccountId) -> u64 {
        self.ends.get(&account).copied().unwrap_or(0).max(self.now)
    }

    /// An account's work begins, and is expected to take so long.
    pub(super) fn begin(&mut self, account: AccountId, work_ms: u64) {
        let start = self.stamp(account);
        self.now = start;
        self.ends.insert(account, start.saturating_add(work_ms));
        if self.ends.len() > STAMPS_MAX {
            let now = self.now;
            self.ends.retain(|_, end| *end > now);
        }
    }

    /// An execution took so much of its limit.
    pub(super) fn took(&mut self, took: Duration, limit: Millis) {
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let new = took.saturating_mul(1000).checked_div(limit.get());
        let new = new.unwrap_or(1000).clamp(1, 1000);
        let old = self.ratio.unwrap_or(new);
        self.ratio = Some((old * 7 + new).div_ceil(8));
    }

    /// How long an execution is expected to take that may take so long.
    pub(super) fn expected(&self, limit: Millis) -> Millis {
        let ratio = self.ratio.unwrap_or(RATIO_AT_FIRST);
        // At most the limit.
        let expected = u128::from(limit.get()) * u128::from(ratio) / 1000;
        Millis::new(u64::try_from(expected).unwrap_or(u64::MAX))
    }

    pub(super) fn forget(&mut self, id: AgreementId) {
        self.waiting.remove(&id);
    }
}

/// The queue.
impl Seller {
    /// Whether a slot of a device is free and nobody's turn comes first. Whoever still has
    /// to send inputs keeps nobody out.
    pub(super) fn is_open(&self, offer: &Offer, device: u16, taken: &Slots) -> bool {
        let is_ahead = |deal: &Committed| {
            deal.stage == Stage::Waiting && deal.deal.quote().body().device == device
        };
        let mut waiting = self.turns.waiting.keys();
        let ahead = waiting.any(|id| self.deals.get(id).is_some_and(is_ahead));
        taken.have_room(offer, device) && !ahead
    }

    /// Whether an account may have one more place in the queue. Strangers together have half
    /// of it at most, and the last quarter is for those who don't wait for anything yet.
    fn has_place_for(&self, provider: &ProviderConfig, account: AccountId) -> bool {
        let places = usize::try_from(provider.queue).unwrap_or(usize::MAX);
        let agreed = self.turns.waiting.keys();
        let agreed = agreed.filter_map(|id| self.deals.get(id).map(Committed::account));
        let quoted = self.holds.values().filter(|hold| hold.waits());
        let quoted = quoted.map(|hold| hold.request.body().account);
        let (mut all, mut own, mut strangers) = (0, 0, 0);
        for other in agreed.chain(quoted) {
            all += 1;
            own += usize::from(other == account);
            strangers += usize::from(!provider.knows(other));
        }
        let free = places.saturating_sub(all);
        let for_strangers = (places / 2).max(1);
        free > 0
            && (own == 0 || free > places / 4)
            && (provider.knows(account) || strangers < for_strangers)
    }

    /// The device whose turn would come first, and when; nothing where the queue is full.
    pub(super) fn queue_on(
        &self,
        core: &Core,
        provider: &ProviderConfig,
        (account, able): (AccountId, &[u16]),
    ) -> Option<(u16, Millis)> {
        if !self.has_place_for(provider, account) {
            return None;
        }
        let waits = able.iter().map(|&device| {
            let slots = provider.offer.devices.get(usize::from(device));
            let slots = slots.map_or(1, |device| device.slots);
            let slots = slots.min(provider.offer.slots).max(1);
            (self.work_on(core, device) / u64::from(slots), device)
        });
        let (wait, device) = waits.min()?;
        let most = Millis::from(core.config.timing.queue_max);
        (wait <= most.get()).then_some((device, Millis::new(wait)))
    }

    /// How long after an agreement that waits so long its work begins at the latest.
    pub(super) fn wait_max(core: &Core, expected: Millis) -> Millis {
        let most = Millis::from(core.config.timing.queue_max);
        // What others take is only guessed.
        let wait = expected.get().saturating_mul(3).saturating_add(60_000);
        Millis::new(wait).min(most)
    }

    /// Milliseconds of work that a device has before it.
    fn work_on(&self, core: &Core, device: u16) -> u64 {
        let is_before =
            |deal: &&Committed| deal.is_open() && deal.deal.quote().body().device == device;
        let open = self.open_deals().filter(is_before);
        let held = self.holds.values();
        let held = held.filter(|hold| hold.quote.body().device == device);
        open.map(|deal| deal.work_left(core.now.wall))
            .chain(held.map(|hold| work_of(hold.quote.body())))
            .fold(0, u64::saturating_add)
    }

    /// An agreement without a slot stands: its turn will come.
    pub(super) fn enqueue(&mut self, id: AgreementId) {
        self.turns.arrivals += 1;
        self.turns.waiting.insert(id, self.turns.arrivals);
    }

    /// Whether there is a place left in the queue.
    pub(super) fn has_place(&self, provider: &ProviderConfig) -> bool {
        self.turns.waiting.len() < usize::try_from(provider.queue).unwrap_or(usize::MAX)
    }

    /// Its inputs are here. It begins if there is a slot, and is its turn.
    pub(super) fn ready(&mut self, core: &mut Core, id: AgreementId) {
        let Some(deal) = self.deals.get_mut(&id) else {
            return;
        };
        if deal.slot {
            return self.start(core, id);
        }
        deal.stage = Stage::Waiting;
        deal.until = deal.turn_until.max(core.now.mono);
        core.wake(Timer::Deal(id), core.config.timing.heartbeat);
    }

    /// Gives free slots to those whose turn it is.
    pub(crate) fn take_turns(&mut self, core: &mut Core) {
        while let Some(id) = self.next_turn(core) {
            let Some(deal) = self.deals.get_mut(&id) else {
                return;
            };
            deal.slot = true;
            let (account, work) = (deal.account(), work_of(deal.deal.quote().body()));
            self.turns.forget(id);
            self.turns.begin(account, work);
            self.start(core, id);
        }
    }

    fn next_turn(&self, core: &Core) -> Option<AgreementId> {
        if self.turns.waiting.is_empty() {
            return None;
        }
        let offer = &core.config.provider.as_ref()?.offer;
        let held = self.slots_held();
        let ready = self.turns.waiting.iter().filter_map(|(id, arrival)| {
            let deal = self.deals.get(id)?;
            let device = deal.deal.quote().body().device;
            let is_ready = deal.stage == Stage::Waiting && held.have_room(offer, device);
            is_ready.then(|| (self.turns.stamp(deal.account()), *arrival, *id))
        });
        ready.min().map(|(_, _, id)| id)
    }
}

impl Hold {
    /// Whether it takes a place in the queue instead of a slot.
    pub(super) fn waits(&self) -> bool {
        self.quote.body().wait_max > Millis::default()
    }

    /// How long it still expects to wait, if it does.
    pub(super) fn wait(&self, now: Wall) -> Option<Millis> {
        let expected = self.quote.body().start_expected;
        self.waits().then(|| expected.since(now).into())
    }
}

impl Committed {
    /// Whether work is still to be done for it.
    pub(super) const fn is_open(&self) -> bool {
        match self.stage {
            Stage::Fetching | Stage::Waiting | Stage::Running | Stage::Interrupted => true,
            Stage::Reported | Stage::Closed => false,
        }
    }

    /// Milliseconds of work that it is expected to have left.
    fn work_left(&self, now: Wall) -> u64 {
        let one = self.deal.quote().body().duration_expected.get();
        let queued = u64::try_from(self.queue.len()).unwrap_or(u64::MAX);
        let running = self.running.values().map(|began| {
            let done = u64::try_from(now.since(*began).as_millis()).unwrap_or(u64::MAX);
            one.saturating_sub(done)
        });
        running.fold(queued.saturating_mul(one), u64::saturating_add)
    }
}

/// Milliseconds that all of it is expected to take.
pub(super) fn work_of(quote: &Quote) -> u64 {
    u64::from(quote.work.unit_count()).saturating_mul(quote.duration_expected.get())
}
