//! Requests: eligibility, capacity and credit, prices, and the hold.

use std::cell::OnceCell;

use super::*;

/// Whether a client lets its work wait so long; not at all is no place in a queue.
fn bears(request: &Request, wait: Millis) -> bool {
    (request.wait_max).is_none_or(|most| wait <= most && most > Millis::default())
}

/// Requests.
impl Seller {
    pub(crate) fn on_ask(
        &mut self,
        core: &mut Core,
        book: &Book,
        ledger: &mut Ledger,
        request: Verified<Request>,
    ) {
        let id = RequestId(request.hash());
        let client = request.signer();
        if let Some(answer) = self.answers.get(&id) {
            return send_answer(core, client, id, answer);
        }
        let answer = match self.consider(core, book, ledger, &request) {
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
        let local = core.connected.get(&request.signer()).copied();
        check_access(provider, body, local.unwrap_or(false))?;
        if book.is_revoked(body.account, request.signer(), request.issued()) {
            return Err(Reason::NOT_ALLOWED.into());
        }
        if ledger.is_frozen(body.account) {
            return Err(Reason::CHANNEL_FROZEN.into());
        }
        check_terms(offer, body)?;
        rank::fit(offer.body(), &body.needs, &body.work, body.budget)?;
        check_accepted(core, provider, body)?;
        let countered = self.countered_quote(request)?;
        let (device, wait) = match countered {
            Some(hold) => (hold.quote.body().device, hold.wait(core.now.wall)),
            None => self.place(core, provider, offer.body(), body)?,
        };
        let mut quote = self.price(core, provider, offer, request, (device, countered))?;
        quote.held = wait.is_none() && provider.holds_for(body.account);
        if let Some(wait) = wait {
            quote.start_expected = core.now.wall.after(wait.duration());
            let most = Self::wait_max(core, wait);
            quote.wait_max = body.wait_max.map_or(most, |wanted| most.min(wanted));
        }
        self.check_credit(provider, ledger, body.account, quote.cap)?;
        Ok((offer.clone(), quote))
    }

    /// The device that has room for one more execution: the fastest of those that can
    /// run it. Where none has, the one whose turn comes first, and when that is.
    ///
    /// Quotes are few for each client, and fewer for all strangers together
    /// than there are slots. Those of strangers stand in each other's way, and
    /// never in the way of who is known.
    fn place(
        &self,
        core: &Core,
        provider: &ProviderConfig,
        offer: &Offer,
        request: &Request,
    ) -> Result<(u16, Option<Millis>), Decline> {
        let taken = if provider.knows(request.account) {
            self.slots_held()
        } else {
            self.slots_quoted()
        };
        let mut able = rank::devices_for(offer, &request.needs)?;
        if !request.devices.is_empty() {
            let wanted = request.devices.iter().copied();
            able = wanted.filter(|device| able.contains(device)).collect();
        }
        let mut devices = able.iter().copied();
        let free = devices.find(|device| self.is_open(&provider.offer, *device, &taken));
        // Who takes an offer as it stands has not been told of a wait.
        let may_wait = !request.take && !matches!(request.work, Work::Lease { .. });
        let place = match free {
            Some(device) => Some((device, None)),
            None if !may_wait => None,
            None => (self.queue_on(core, provider, (request.account, &able)))
                .filter(|(_, wait)| bears(request, *wait))
                .map(|(device, wait)| (device, Some(wait))),
        };
        let place = place.filter(|_| self.deals.len() < AGREEMENTS_MAX);
        let place = place.ok_or(Decline {
            reason: Reason::BUSY,
            need: 1,
            have: 0,
        })?;
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
        let share = (provider.offer.slots / 2).max(1);
        if !provider.knows(request.account) && of_strangers >= share {
            return Err(Decline {
                reason: Reason::BUSY,
                need: 1,
                have: 0,
            });
        }
        Ok(place)
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
        let decline = |reason, left: u128| Decline {
            reason,
            need: u64::try_from(cap).unwrap_or(u64::MAX),
            have: u64::try_from(left).unwrap_or(u64::MAX),
        };
        let reserved = self.reserved();
        let credits = Credits::new(provider, ledger, &reserved);
        let left = credits.window_left(account);
        if cap > left {
            return Err(decline(Reason::CREDIT_EXHAUSTED, left));
        }
        let left = credits.left(account);
        if cap > left {
            return Err(decline(Reason::STRANGERS_EXHAUSTED, left));
        }
        Ok(())
    }

    /// Caps of holds and agreements that may still be used, by account.
    pub(crate) fn reserved(&self) -> BTreeMap<AccountId, u128> {
        let holds = self.holds.values().map(|hold| {
            let account = hold.request.body().account;
            (account, hold.quote.body().cap)
        });
        let deals = self.open_deals();
        let deals = deals.map(|deal| (deal.account(), deal.reserved()));
        let mut reserved = BTreeMap::new();
        for (account, amount) in holds.chain(deals) {
            if amount > Amount::ZERO {
                *reserved.entry(account).or_default() += u128::from(amount.as_micros());
            }
        }
        reserved
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
        (device, countered): (u16, Option<&Hold>),
    ) -> Result<Quote, Decline> {
        let asked = request.body();
        let prices = match countered {
            Some(hold) => counter_prices(provider, hold.quote.body(), asked.budget)?,
            None if asked.take => offer.body().prices_for(&asked.needs).clone(),
            None => self.prices_for(core, provider, offer.body(), asked),
        };
        let units = asked.work.unit_count().max(1);
        let unit_budget = asked.unit_budget();
        let (quantity, unit_cap, cap) = match &asked.work {
            // A lease runs until its budget is used up.
            Work::Lease { .. } => (asked.needs.quantity_max(), asked.budget, asked.budget),
            Work::Job | Work::Array { .. } => {
                let (quantity, cap) = rank::affordable(&prices, &asked.needs, unit_budget)?;
                (quantity, cap, times(cap, units))
            }
        };
        let (run_max, fuel_max) = match Meter::of(asked.needs.runtime) {
            Meter::WASM_FUEL => (asked.needs.run_max, quantity),
            Meter::TOKEN_OUT => (asked.needs.run_max, asked.needs.fuel_max),
            _ => (Millis::new(quantity), asked.needs.fuel_max),
        };
        let timing = &core.config.timing;
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
            fuel_max,
            transfer_max: Millis::from(timing.transfer_max),
            collect_max: Millis::from(timing.collect_max),
            start_expected: core.now.wall,
            wait_max: Millis::default(),
            duration_expected: self.turns.expected(run_max),
            missing: List::truncated(self.missing(core.now.wall, asked)),
            device,
            held: true,
            terms: offer.body().terms.clone(),
            extensions: Extensions::default(),
        })
    }

    /// The offer's prices, or what of them is asked of this client. A take is at the
    /// offer's own.
    fn prices_for(
        &self,
        core: &Core,
        provider: &ProviderConfig,
        offer: &Offer,
        asked: &Request,
    ) -> Prices {
        let moment = self.moment(core, provider);
        let rate = provider.pricing.of_client(asked.account, &moment);
        let rate = rate.min(pricing::WHOLE);
        let offered = offer.prices_for(&asked.needs);
        let prices = pricing::priced(offered, rate, provider.pricing.floor());
        // A floor that was lifted after the offer does not make it dearer.
        let offered = offered.iter().zip(prices.iter());
        let prices = offered.map(|(offered, asked)| Price {
            amount: offered.amount.min(asked.amount),
            ..*asked
        });
        List::truncated(prices.collect())
    }

    /// Which of the blobs this client's account has not sent before.
    fn missing(&self, now: Wall, request: &Request) -> Vec<u16> {
        (request.blobs())
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
                self.commit(core, lsn, deal, (Vec::new(), Elsewhere::default()));
            }
        } else {
            let id = QuoteId(quote.hash());
            self.holds.insert(
                id,
                Hold {
                    offer,
                    request,
                    quote: quote.clone(),
                    elsewhere: Elsewhere::default(),
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
    pub(super) fn release(&mut self, core: &mut Core, quote: QuoteId) {
        if self.end_hold(core, quote) {
            core.persist(Record::Closed {
                agreement: quote.into(),
                reason: Reason::QUOTE_EXPIRED,
            });
        }
    }

    pub(super) fn end_hold(&mut self, core: &mut Core, quote: QuoteId) -> bool {
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

/// What accounts may still run.
#[derive(Debug)]
pub(crate) struct Credits<'a> {
    provider: &'a ProviderConfig,
    ledger: &'a Ledger,
    reserved: &'a BTreeMap<AccountId, u128>,
    /// What is left of the budget for all strangers together, once that was asked for:
    /// it takes a look at all of their channels.
    strangers: OnceCell<u128>,
}

impl<'a> Credits<'a> {
    pub(crate) fn new(
        provider: &'a ProviderConfig,
        ledger: &'a Ledger,
        reserved: &'a BTreeMap<AccountId, u128>,
    ) -> Self {
        Self {
            provider,
            ledger,
            reserved,
            strangers: OnceCell::new(),
        }
    }

    fn strangers_left(&self) -> u128 {
        let is_stranger = |account| !self.provider.knows(account);
        let window = u128::from(self.provider.offer.terms.stranger_credit.as_micros());
        let mut balances = self.ledger.balances(is_stranger);
        for account in self
            .reserved
            .keys()
            .filter(|account| is_stranger(**account))
        {
            balances.entry(*account).or_default();
        }
        let owed = balances.iter().map(|(account, balance)| {
            let reserved = self.reserved.get(account).copied().unwrap_or(0);
            balance.owed(reserved, window)
        });
        let owed = owed.fold(0, u128::saturating_add);
        let budget = u128::from(self.provider.strangers_budget.as_micros());
        budget.saturating_sub(owed)
    }

    /// What an account may still run.
    pub(crate) fn left(&self, account: AccountId) -> u128 {
        let left = self.window_left(account);
        if self.provider.knows(account) {
            return left;
        }
        // What a stranger has paid in advance takes nothing from the others.
        let strangers = *self.strangers.get_or_init(|| self.strangers_left());
        left.min(self.within(account, 0).saturating_add(strangers))
    }

    fn window_left(&self, account: AccountId) -> u128 {
        if self.provider.blocked.contains(&account) {
            return 0;
        }
        let window = self.provider.window(account).as_micros();
        self.within(account, window.into())
    }

    fn within(&self, account: AccountId, window: u128) -> u128 {
        let reserved = self.reserved.get(&account).copied().unwrap_or(0);
        self.ledger.balance(account).left(reserved, window)
    }
}

fn send_answer(core: &mut Core, client: PeerId, request: RequestId, answer: &Answer) {
    match answer {
        Answer::Quoted(quote, lsn) => core.send_after(*lsn, client, Frame::Quoted(quote.raw())),
        Answer::Declined(decline) => core.send(client, Frame::Declined(request, *decline)),
    }
}

/// The provider's own condition, with what only it knows.
fn check_accepted(
    core: &Core,
    provider: &ProviderConfig,
    request: &Request,
) -> Result<(), Decline> {
    let Some(accept) = &provider.offer.accept else {
        return Ok(());
    };
    let known = provider.knows(request.account);
    let job = JobFields::of_request(request, known, core.now.wall);
    match accept.first_missed(&job) {
        None => Ok(()),
        Some(_) => Err(Reason::NOT_ACCEPTED.into()),
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
    let prices: Prices = List::truncated(quoted.prices.iter().map(scaled).collect());
    if pricing::priced(&prices, pricing::WHOLE, provider.pricing.floor()) != prices {
        return Err(refused);
    }
    Ok(prices)
}

fn lowest(provider: &ProviderConfig, cap: Amount) -> Amount {
    let kept = 100 - u128::from(provider.discount_percent_max.min(100));
    let lowest = (u128::from(cap.as_micros()) * kept).div_ceil(100);
    Amount::from_micros(u64::try_from(lowest).unwrap_or(u64::MAX))
}
