//! Clients and providers made by hand, which say what no honest peer says.

use std::time::Duration;

use suanli_protocol::{
    deal::{Agreement, Quote, Request},
    envelope::{Body, Extensions, Verified},
    ids::{AgreementId, BlobId, ChannelId, Hash, OfferId, QuoteId, ReceiptId, RequestId},
    message::{Frame, Message},
    offer::Offer,
    receipt::{Acceptance, Outcome, Receipt, ReceiptKey, Verdict, inputs_hash},
    record::JobOrder,
    registry::{Reason, Verification},
    units::{Meter, Millis, Price, Total, Usage, Wall},
    voucher::{NO_ROOT, Parties, Settlement, Voucher, next_root},
    wire::{List, Text},
};

use crate::world::{World, account_signer, delegate, micros, node_signer, order, usage};

const FOR_EVER: Wall = Wall::from_millis(u64::MAX);

/// A client that takes a job's result and may or may not pay.
pub(crate) struct Client {
    pub(crate) number: usize,
    provider: usize,
    now: Wall,
}

impl Client {
    pub(crate) fn new(number: usize, provider: usize) -> Self {
        Self {
            number,
            provider,
            now: Wall::default(),
        }
    }

    pub(crate) fn sign<T: Body>(&self, body: T) -> Verified<T> {
        node_signer(self.number).sign(self.now, FOR_EVER, body)
    }

    pub(crate) fn say(&mut self, world: &mut World, frame: Frame) {
        self.now = world.now(self.number).wall;
        world.say(self.number, self.provider, frame);
    }

    /// Has a job done, and gives its receipt; or why not.
    pub(crate) fn buy(&mut self, world: &mut World, job: u8) -> Result<Verified<Receipt>, Reason> {
        let quote = self.ask(world, job)?;
        self.agree(world, &quote, job);
        Ok(self.await_message(world, |message| match message {
            Message::Receipt(receipt, _)
                if receipt.body().key.agreement == AgreementId(quote.hash()) =>
            {
                Some(receipt.clone())
            }
            _ => None,
        }))
    }

    pub(crate) fn ask(&mut self, world: &mut World, job: u8) -> Result<Verified<Quote>, Reason> {
        self.ask_for(world, order(job))
    }

    pub(crate) fn ask_for(
        &mut self,
        world: &mut World,
        order: JobOrder,
    ) -> Result<Verified<Quote>, Reason> {
        self.now = world.now(self.number).wall;
        let request = self.request(world, order);
        world.nodes[self.number].inbox.clear();
        self.say(world, Frame::Ask(request.raw()));
        self.await_message(world, |message| match message {
            Message::Quoted(quote) => Some(Ok(quote.clone())),
            Message::Declined(_, no) => Some(Err(no.reason)),
            _ => None,
        })
    }

    pub(crate) fn agree(&mut self, world: &mut World, quote: &Verified<Quote>, job: u8) {
        let agreement = self.sign(Agreement {
            quote: QuoteId(quote.hash()),
            job: quote.body().job,
            attempt: 1,
            extensions: Extensions::default(),
        });
        let inline = order(job).inline;
        self.say(world, Frame::Agree(agreement.raw(), inline));
    }

    pub(crate) fn await_message<T>(
        &self,
        world: &mut World,
        want: impl Fn(&Message) -> Option<T>,
    ) -> T {
        let number = self.number;
        let find = |world: &World| {
            let inbox = &world.nodes[number].inbox;
            inbox.iter().find_map(|(_, message)| want(message))
        };
        world.run_until(Duration::from_secs(5), |world| find(world).is_some());
        find(world).unwrap()
    }

    fn request(&self, world: &World, order: JobOrder) -> Verified<Request> {
        let provider = world.id(self.provider);
        let offer = world.peer(self.provider).book().of(provider).unwrap();
        let request = Request {
            account: account_signer(self.number).public().account(),
            delegation: delegate(self.number),
            principal: order.principal,
            provider,
            offer: OfferId(offer.hash()),
            job: order.job,
            attempt: 1,
            work: order.work,
            spec: order.spec,
            inputs: List::default(),
            resume: List::default(),
            checkpoint_every: order.checkpoint_every,
            needs: order.needs,
            devices: List::default(),
            budget: order.budget,
            wait_max: None,
            verification: order.verify.told(),
            confidentiality: order.confidentiality,
            retention: order.retention,
            take: false,
            counter: None,
            extensions: Extensions::default(),
        };
        let expires = self.now.after(Duration::from_secs(4));
        node_signer(self.number).sign(self.now, expires, request)
    }

    pub(crate) fn accept(&mut self, world: &mut World, receipt: &Verified<Receipt>) {
        let acceptance = self.sign(Acceptance {
            receipt: ReceiptId(receipt.hash()),
            key: receipt.body().key,
            verdict: Verdict::Accepted,
            verification: Verification::HASHES,
            extensions: Extensions::default(),
        });
        self.say(world, Frame::Acceptance(acceptance.raw()));
    }

    /// Says that it knows of nothing on a channel.
    pub(crate) fn show_nothing(&mut self, world: &mut World, channel: ChannelId) {
        let heads = suanli_protocol::message::Heads {
            channel,
            voucher: None,
            ack: None,
            settlement: None,
            reply: false,
        };
        self.say(world, Frame::Heads(heads));
        world.pass(Duration::from_millis(50));
    }

    pub(crate) fn parties(&self) -> Parties {
        let (me, them) = (self.number, self.provider);
        Parties {
            payer: node_signer(me).public().peer(),
            payer_account: account_signer(me).public().account(),
            payee: node_signer(them).public().peer(),
            payee_account: account_signer(them).public().account(),
        }
    }

    pub(crate) fn voucher(
        &self,
        receipt: &Verified<Receipt>,
        sequence: u64,
        previous: suanli_protocol::ids::VoucherId,
        cumulative: u128,
    ) -> Verified<Voucher> {
        self.voucher_of(receipt, sequence, previous, Total::from_micros(cumulative))
    }

    pub(crate) fn voucher_of(
        &self,
        receipt: &Verified<Receipt>,
        sequence: u64,
        previous: suanli_protocol::ids::VoucherId,
        cumulative: Total,
    ) -> Verified<Voucher> {
        let receipts = [ReceiptId(receipt.hash())];
        self.sign(Voucher {
            parties: self.parties(),
            sequence,
            previous,
            cumulative,
            receipts: List::truncated(receipts.to_vec()),
            root: next_root(NO_ROOT, &receipts),
            extensions: Extensions::default(),
        })
    }

    pub(crate) fn next_voucher(
        &self,
        last: &Verified<Voucher>,
        receipt: &Verified<Receipt>,
        cumulative: u128,
    ) -> Verified<Voucher> {
        let receipts = [ReceiptId(receipt.hash())];
        let mut body = last.body().clone();
        body.sequence += 1;
        body.previous = suanli_protocol::ids::VoucherId(last.hash());
        body.cumulative = Total::from_micros(cumulative);
        body.root = next_root(body.root, &receipts);
        body.receipts = List::truncated(receipts.to_vec());
        self.sign(body)
    }
}

/// What a lying provider's receipt gets wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    Amount,
    Program,
    Unit,
    Attempt,
    Usage,
    /// A line of another runtime's meter.
    Meter,
    /// More than one execution.
    Jobs,
}

impl Lie {
    pub(crate) fn reason(self) -> Reason {
        match self {
            Self::Amount | Self::Usage | Self::Meter | Self::Jobs => Reason::WRONG_AMOUNT,
            Self::Program | Self::Unit | Self::Attempt => Reason::CONTRADICTS_AGREEMENT,
        }
    }
}

/// A provider that answers the first client by hand.
pub(crate) struct Provider {
    number: usize,
    offer: Verified<Offer>,
    quote: Option<Verified<Quote>>,
    pub(crate) duration: Millis,
    /// The most that it allows of fuel, whatever is asked.
    pub(crate) fuel_max: u64,
    /// How much dearer its quotes are than its offer, in percent.
    pub(crate) dearer: u64,
    now: Wall,
}

impl Provider {
    /// Announces its offer.
    pub(crate) fn new(world: &mut World, number: usize) -> Self {
        let offer = world.provider(number).offer;
        Self::offering(world, number, offer)
    }

    pub(crate) fn offering(world: &mut World, number: usize, mut offer: Offer) -> Self {
        offer.sequence = 1;
        let now = world.now(number).wall;
        let offer = node_signer(number).sign(now, now.after(Duration::from_secs(900)), offer);
        world.gossip(0, offer.bytes());
        world.pass(Duration::from_millis(50));
        Self {
            number,
            offer,
            quote: None,
            duration: Millis::new(1000),
            fuel_max: u64::MAX,
            dearer: 0,
            now,
        }
    }

    pub(crate) fn sign<T: Body>(&self, body: T) -> Verified<T> {
        node_signer(self.number).sign(self.now, FOR_EVER, body)
    }

    pub(crate) fn say(&mut self, world: &mut World, frame: Frame) {
        self.now = world.now(self.number).wall;
        world.say(self.number, 0, frame);
    }

    /// Says that the first client paid in advance.
    pub(crate) fn prepaid(&self) -> Verified<Settlement> {
        let (client, me) = (0, self.number);
        self.sign(Settlement {
            parties: Parties {
                payer: node_signer(client).public().peer(),
                payer_account: account_signer(client).public().account(),
                payee: node_signer(me).public().peer(),
                payee_account: account_signer(me).public().account(),
            },
            sequence: 1,
            settled: Total::from_micros(1),
            paid: micros(1),
            reference: Text::new("in advance").unwrap(),
            extensions: Extensions::default(),
        })
    }

    pub(crate) fn agreement(&self) -> AgreementId {
        AgreementId(self.quote.as_ref().unwrap().hash())
    }

    /// What it has agreed to run.
    pub(crate) fn units(&self) -> Vec<u32> {
        self.quote.as_ref().unwrap().body().work.units()
    }

    /// Answers the next request up to its receipt, and gives the client's word
    /// on that.
    pub(crate) fn serve(&mut self, world: &mut World, lie: Option<Lie>) -> Verdict {
        self.take_on(world);
        let receipt = self.receipt(lie, Outcome::Completed, 0);
        self.say(world, Frame::Receipt(receipt.raw(), List::default()));
        let verdict = self.await_message(world, |message| match message {
            Message::Acceptance(word) if word.body().receipt.0 == receipt.hash() => {
                Some(word.body().verdict)
            }
            _ => None,
        });
        let heads = suanli_protocol::message::Heads {
            channel: world.peer(0).channels()[0].channel,
            voucher: None,
            ack: None,
            settlement: None,
            reply: false,
        };
        self.say(world, Frame::Heads(heads));
        verdict
    }

    /// Answers the next request until there is an agreement.
    pub(crate) fn take_on(&mut self, world: &mut World) {
        world.nodes[self.number].inbox.clear();
        let quote = self.answer(world);
        self.await_message(world, |message| match message {
            Message::Agree(..) => Some(()),
            _ => None,
        });
        self.say(world, Frame::Agreed(AgreementId(quote.hash())));
        self.quote = Some(quote);
    }

    /// Answers the next request with its quote, and nothing else.
    pub(crate) fn answer(&mut self, world: &mut World) -> Verified<Quote> {
        let request = self.await_message(world, |message| match message {
            Message::Ask(request) => Some(request.clone()),
            _ => None,
        });
        self.now = world.now(self.number).wall;
        let quote = self.quote(&request);
        self.say(world, Frame::Quoted(quote.raw()));
        quote
    }

    fn await_message<T>(&self, world: &mut World, want: impl Fn(&Message) -> Option<T>) -> T {
        let number = self.number;
        let find = |world: &World| {
            let inbox = &world.nodes[number].inbox;
            inbox.iter().find_map(|(_, message)| want(message))
        };
        world.run_until(Duration::from_secs(60), |world| find(world).is_some());
        find(world).unwrap()
    }

    fn raised(&self, price: &Price) -> Price {
        let amount = price.amount.as_micros();
        Price {
            amount: micros(amount + amount * self.dearer / 100),
            ..*price
        }
    }

    fn quote(&self, request: &Verified<Request>) -> Verified<Quote> {
        let (asked, offer) = (request.body(), self.offer.body());
        let quote = Quote {
            request: RequestId(request.hash()),
            offer: OfferId(self.offer.hash()),
            account: offer.account,
            client: request.signer(),
            client_account: asked.account,
            job: asked.job,
            attempt: asked.attempt,
            work: asked.work.clone(),
            prices: List::truncated(
                offer
                    .prices
                    .iter()
                    .map(|price| self.raised(price))
                    .collect(),
            ),
            unit_cap: micros(11_000),
            cap: micros(11_000),
            run_max: asked.needs.run_max,
            fuel_max: asked.needs.fuel_max.min(self.fuel_max),
            transfer_max: Millis::new(10_000),
            collect_max: Millis::new(10_000),
            start_expected: self.now,
            wait_max: Millis::new(0),
            duration_expected: self.duration,
            held: true,
            missing: List::truncated(vec![0, 1]),
            device: 0,
            terms: offer.terms.clone(),
            extensions: Extensions::default(),
        };
        let expires = self.now.after(Duration::from_secs(5));
        node_signer(self.number).sign(self.now, expires, quote)
    }

    /// A receipt for 100 ms of the last agreement; `n` makes it another one.
    pub(crate) fn receipt(&self, lie: Option<Lie>, outcome: Outcome, n: u64) -> Verified<Receipt> {
        let quote = self.quote.as_ref().unwrap();
        let lies = |about| lie == Some(about);
        let order = order(1);
        let mut usage = usage(100);
        if lies(Lie::Usage) {
            usage[1].quantity = 1001;
        }
        assert_eq!(usage[1].meter, Meter::GPU_MS);
        if lies(Lie::Meter) {
            usage.push(Usage {
                meter: Meter::WASM_FUEL,
                quantity: 1,
            });
        }
        if lies(Lie::Jobs) {
            usage[0].quantity = 2;
        }
        self.sign(Receipt {
            key: ReceiptKey {
                agreement: AgreementId(quote.hash()),
                unit: u32::from(lies(Lie::Unit)),
                attempt: quote.body().attempt + u32::from(lies(Lie::Attempt)),
                index: 0,
                last: true,
            },
            outcome,
            program: if lies(Lie::Program) {
                BlobId(Hash::of(b"another"))
            } else {
                order.spec.blob
            },
            inputs: inputs_hash(&order.inputs),
            outputs: List::default(),
            started: self.now,
            ended: self.now.after(Duration::from_millis(100 + n)),
            usage: List::truncated(usage),
            amount: micros(2000 + u64::from(lies(Lie::Amount))),
            verification: Verification::HASHES,
            extensions: Extensions::default(),
        })
    }

    pub(crate) fn vouchers(&self, world: &World) -> Vec<Verified<Voucher>> {
        let inbox = &world.nodes[self.number].inbox;
        let vouchers = inbox.iter().filter_map(|(_, message)| match message {
            Message::Voucher(voucher) => Some(voucher.clone()),
            _ => None,
        });
        vouchers.collect()
    }
}
