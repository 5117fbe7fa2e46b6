//! Rebuilding work from records.

use super::*;

/// Rebuilding from records.
impl Seller {
    pub(crate) fn replay(&mut self, core: &mut Core, ledger: &mut Ledger, record: &Record) {
        match record {
            Record::Offered(offer) => self.remember_offer(core, offer.clone()),
            Record::Withdrew(withdrawal) => {
                self.sequence = self.sequence.max(withdrawal.body().sequence);
                self.live = None;
                self.offers.clear();
                self.withdrawn = Some(withdrawal.clone());
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
                    // The client says it again.
                    elsewhere: Elsewhere::default(),
                };
                self.answer_again(quote);
                self.holds.insert(QuoteId(quote.hash()), hold);
            }
            Record::QuotedFirm {
                offer,
                request,
                quote,
            } => {
                self.answer_again(quote);
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
            Record::Closed { agreement, .. } => self.replay_closed(*agreement),
            Record::Part(part) => self.replay_part(core, part),
            _ => {}
        }
    }

    fn replay_part(&mut self, core: &Core, part: &Part) {
        match part {
            Part::Answer(quote) => self.answer_again(quote),
            Part::Work {
                offer,
                request,
                quote,
                agreement,
            } => {
                let (offer, request, quote) = (offer.clone(), request.clone(), quote.clone());
                if let Ok(deal) = Deal::new(offer, request, quote, agreement.clone()) {
                    self.replay_commit(core, deal);
                }
            }
            Part::Partners(_)
            | Part::Past { .. }
            | Part::Job { .. }
            | Part::Tries { .. }
            | Part::Spent { .. }
            | Part::Deal { .. }
            | Part::Channel { .. }
            | Part::Owed { .. }
            | Part::Voucher { .. }
            | Part::Output(_)
            | Part::Results(..) => {}
        }
    }

    fn replay_closed(&mut self, id: AgreementId) {
        self.holds.remove(&QuoteId::from(id));
        if let Some(deal) = self.deals.get_mut(&id)
            && deal.stage != Stage::Closed
        {
            deal.stage = Stage::Closed;
            self.forget_old(id);
        }
    }

    fn answer_again(&mut self, quote: &Verified<Quote>) {
        let id = quote.body().request;
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
            // What waited for a turn waits for it again.
            slot: quote.wait_max == Millis::default(),
            turn_until: until,
            queue: quote.work.units().into(),
            running: BTreeMap::new(),
            missing: BTreeSet::new(),
            again: BTreeSet::new(),
            elsewhere: Elsewhere::default(),
            granted: Granted::default(),
            issued: BTreeMap::new(),
            until,
            frames: 0,
            progress: (0, 0),
            resume: resumed_as_agreed(&deal),
            told: VecDeque::new(),
            cancelled: false,
            next_index: 0,
            resends: 0,
            deal,
        };
        self.open.insert(committed.deal.id());
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
            issued.word = Some(acceptance.clone());
            if matches!(body.verdict, Verdict::Disputed(_)) {
                ledger.dispute(core, parties, body.receipt);
            }
        }
    }

    /// Replaying these makes the same state, if nothing was done with it but
    /// replaying.
    pub(crate) fn condense(&self, into: &mut Vec<Record>) {
        let mut offers: Vec<_> = self.offers.values().collect();
        offers.sort_by_key(|offer| offer.body().sequence);
        into.extend(offers.into_iter().cloned().map(Record::Offered));
        into.extend(self.withdrawn.clone().map(Record::Withdrew));
        for id in &self.answers_order {
            if let Some(Answer::Quoted(quote, _)) = self.answers.get(id) {
                into.push(match self.holds.get(&QuoteId(quote.hash())) {
                    Some(hold) => hold.record(),
                    None => Record::Part(Part::Answer((**quote).clone())),
                });
            }
        }
        let unanswered = |hold: &&Hold| !self.answers.contains_key(&RequestId(hold.request.hash()));
        into.extend(self.holds.values().filter(unanswered).map(Hold::record));
        let closed = self.closed.iter().filter_map(|id| self.deals.get(id));
        let open = self
            .deals
            .values()
            .filter(|deal| deal.stage != Stage::Closed);
        for deal in closed.chain(open) {
            deal.condense(into);
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
        self.kept_slots = self.slots_held();
    }
}

impl Hold {
    fn record(&self) -> Record {
        Record::Quoted {
            offer: self.offer.clone(),
            request: self.request.clone(),
            quote: self.quote.clone(),
        }
    }
}

impl Committed {
    fn condense(&self, into: &mut Vec<Record>) {
        into.push(Record::Part(Part::Work {
            offer: self.deal.offer().clone(),
            request: self.deal.request().clone(),
            quote: self.deal.quote().clone(),
            agreement: self.deal.agreement().cloned(),
        }));
        for issued in self.issued.values() {
            into.push(Record::Receipted(issued.receipt.clone()));
            into.extend(issued.word.clone().map(Record::HeardOf));
        }
        if self.stage == Stage::Closed {
            into.push(Record::Closed {
                agreement: self.deal.id(),
                reason: Reason::UNSPECIFIED,
            });
        }
    }
}
