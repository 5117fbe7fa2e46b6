//! Serving: leases, and the questions that are asked under them.
//!
//! ```text
//!  driver ── Open, Close ──▶ ┌──────┐ ◀── Asked ── a task reads each call's question
//!                            │ desk │ ── a task answers it, in its place ──▶ upstream
//!  driver ◀── Interim, Finished, Failed ── ▲ ◀── Ended (tokens) ──┘
//!         ◀── models that answer ──────────┘ probes
//! ```
//!
//! One task, the desk, knows the leases. A call names its lease, and is served if the peer
//! is the lease's client and the lease has not ended. A model has so many [`places`]; who
//! finds none is told how many come first, and waits or goes elsewhere. Tokens count when the
//! call is over, by the server's own count; if it is given up in the middle, by what has been
//! sent.
//!
//! Absent: whose turn it is ([`places`]), and what answers ([`source`](super::source)).
//!
//! [`places`]: super::places

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use suanli_protocol::{
    call::{Part, QUESTION_FRAME_BYTES_MAX, Question, is_of_the_question},
    ids::{AgreementId, PeerId},
    limits::AGREEMENTS_MAX,
    offer::{Device, ModelOffer, ModelRef, tokens},
    peer::{ExecutionEvent, ExecutionId, ExecutionOrder, Input},
    registry::{Endpoint, Reason},
    units::{Usage, Wall},
    wire::{Bytes, List, Text},
};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    places::{Entered, Place, Places},
    source::{Answer, Event, Source},
    upstream::{Tokens, UpstreamError},
};
use crate::{
    transport::{CallReader, CallStream, CallWriter},
    wall::wall,
};

/// What callers want that may wait for the desk.
const ORDERS: usize = 256;
/// Orders of the driver that may wait for it: more than there can be leases, for the driver
/// does not wait for the desk, which waits for the driver.
const CONTROLS: usize = 4 * AGREEMENTS_MAX;
/// How long a caller may take to say its question.
const QUESTION_WAIT: Duration = Duration::from_secs(10);
/// How often leases are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often servers are asked whether they are there.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How long after its end a lease's last answers may go on.
const LAST_ANSWERS: Duration = Duration::from_secs(60);
/// How often rates that have changed are told at most: each time a new offer goes out.
const RATES_EVERY: Duration = Duration::from_secs(30);
/// Answers of which it is remembered how fast they came.
const SPEEDS_KEPT: usize = 32;

/// Tells the desk.
#[derive(Debug, Clone)]
pub struct Serving {
    controls: mpsc::Sender<Control>,
    orders: mpsc::Sender<Order>,
    /// Whose questions are read at all: those who have a lease.
    clients: watch::Receiver<BTreeSet<PeerId>>,
}

/// What the driver wants.
#[derive(Debug)]
enum Control {
    Open(Box<ExecutionOrder>),
    Close(ExecutionId),
    Stock(Box<Stocked>),
}

/// All that is to be served from now on.
#[derive(Debug)]
pub struct Stocked {
    /// What the offer is of: the node's devices, and then the models'.
    pub devices: Vec<Device>,
    /// Models, and what answers: nothing new for one that is served under that name.
    pub models: Vec<(ModelOffer, Option<Source>)>,
}

/// What callers want, and what tasks have found.
#[derive(Debug)]
enum Order {
    Asked {
        from: PeerId,
        question: Box<Question>,
        reader: CallReader,
        writer: CallWriter,
    },
    Ended {
        agreement: AgreementId,
        tokens: Tokens,
        /// How fast it was, if that says anything.
        speed: Option<(usize, Speed)>,
    },
    Probed {
        model: usize,
        answers: bool,
    },
}

/// How fast an answer came.
#[derive(Debug, Clone, Copy)]
struct Speed {
    prefill_per_second: u32,
    decode_per_second: u32,
}

/// What the desk says to the driver.
#[derive(Debug)]
pub enum Said {
    /// Of an execution, for the core.
    Input(Box<Input>),
    /// These models are served now, on some of these devices.
    Models(Vec<Device>, Vec<ModelOffer>),
}

impl Serving {
    /// Starts the desk on the current tokio runtime, without models. It ends with the last of
    /// its tellers.
    pub fn start() -> (Self, mpsc::Receiver<Said>) {
        let (controls, control) = mpsc::channel(CONTROLS);
        let (orders, queue) = mpsc::channel(ORDERS);
        let (said, hears) = mpsc::channel(ORDERS);
        let (clients, known) = watch::channel(BTreeSet::new());
        let desk = Desk {
            orders: orders.downgrade(),
            said,
            devices: None,
            models: Vec::new(),
            leases: BTreeMap::new(),
            clients,
            told: (Instant::now(), Vec::new()),
        };
        tokio::spawn(desk.run(control, queue));
        let serving = Self {
            controls,
            orders,
            clients: known,
        };
        (serving, hears)
    }

    /// A lease begins.
    pub fn open(&self, order: Box<ExecutionOrder>) {
        self.control(Control::Open(order));
    }

    /// A lease ends before its time.
    pub fn close(&self, id: ExecutionId) {
        self.control(Control::Close(id));
    }

    /// Serves these from now on, and no others. Whether the desk has heard it.
    pub async fn stock(&self, stocked: Stocked) -> bool {
        let control = Control::Stock(Box::new(stocked));
        self.controls.send(control).await.is_ok()
    }

    fn control(&self, control: Control) {
        if self.controls.try_send(control).is_err() {
            tracing::error!("an order about a lease was lost; please report this");
        }
    }

    /// A peer calls: its question is read, and answered. Of who has no lease nothing is read.
    pub fn called(&self, from: PeerId, call: CallStream) {
        let (reader, writer) = call.split();
        if !self.clients.borrow().contains(&from) {
            return decline((reader, writer), Reason::QUOTE_UNKNOWN);
        }
        let orders = self.orders.clone();
        tokio::spawn(async move {
            let mut reader = reader;
            let reading = reader.receive(QUESTION_FRAME_BYTES_MAX);
            let Ok(Ok(Some(frame))) = timeout(QUESTION_WAIT, reading).await else {
                return;
            };
            let Ok(question) = Question::decode(&frame) else {
                return;
            };
            let asked = Order::Asked {
                from,
                question: Box::new(question),
                reader,
                writer,
            };
            let _ = orders.send(asked).await;
        });
    }
}

/// A model that may be served.
#[derive(Debug)]
struct Model {
    offer: ModelOffer,
    source: Source,
    answers: bool,
    places: Places,
    speeds: VecDeque<Speed>,
}

impl Model {
    fn new(offer: ModelOffer, source: Source) -> Self {
        Self {
            places: Places::new(offer.places),
            offer,
            source,
            answers: false,
            speeds: VecDeque::new(),
        }
    }

    fn is(&self, wanted: &ModelRef) -> bool {
        let weights = wanted.weights.is_none_or(|it| it == self.offer.weights);
        self.offer.name == wanted.name && weights
    }

    /// As it is now: the middle of the speeds that were seen last.
    fn offer(&self) -> ModelOffer {
        let middle = |of: fn(&Speed) -> u32| {
            let mut all: Vec<u32> = self.speeds.iter().map(of).collect();
            all.sort_unstable();
            all.get(all.len() / 2).copied().unwrap_or(0)
        };
        let facts = self.source.facts();
        let known = self.offer.clone();
        ModelOffer {
            context: facts.as_ref().map_or(known.context, |facts| facts.context),
            quantisation: facts
                .map_or(known.quantisation, |facts| Text::lossy(&facts.quantisation)),
            prefill_per_second: middle(|speed| speed.prefill_per_second),
            decode_per_second: middle(|speed| speed.decode_per_second),
            places_free: u16::try_from(self.places.free()).unwrap_or(u16::MAX),
            ..known
        }
    }
}

/// A lease that has begun.
#[derive(Debug)]
struct Lease {
    id: ExecutionId,
    client: PeerId,
    model: usize,
    until: Wall,
    interval: Duration,
    reported: Instant,
    /// Tokens that no receipt has yet.
    used: Tokens,
    /// Calls under way.
    calls: usize,
    /// Tells them to stop.
    stop: watch::Sender<bool>,
    closing: bool,
}

impl Lease {
    fn is_open(&self, now: Wall) -> bool {
        !self.closing && now < self.until
    }

    fn take_usage(&mut self) -> Vec<Usage> {
        let used = std::mem::take(&mut self.used);
        tokens(used.read, used.written).to_vec()
    }
}

/// The task that knows the leases.
struct Desk {
    orders: mpsc::WeakSender<Order>,
    said: mpsc::Sender<Said>,
    /// What the offer is of; nothing was told of it yet, if there is none.
    devices: Option<Vec<Device>>,
    /// By their numbers; none where one is not served any more.
    models: Vec<Option<Model>>,
    leases: BTreeMap<AgreementId, Lease>,
    clients: watch::Sender<BTreeSet<PeerId>>,
    /// What was told last of the models, and when.
    told: (Instant, Vec<ModelOffer>),
}

impl Desk {
    async fn run(mut self, mut control: mpsc::Receiver<Control>, mut queue: mpsc::Receiver<Order>) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut probe = interval(PROBE_EVERY);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                control = control.recv() => match control {
                    Some(control) => self.on_control(control).await,
                    None => return,
                },
                Some(order) = queue.recv() => self.on_order(order).await,
                _ = look.tick() => self.look().await,
                _ = probe.tick() => self.probe(),
            }
        }
    }

    async fn on_control(&mut self, control: Control) {
        match control {
            Control::Open(order) => self.open(*order).await,
            Control::Close(id) => {
                if let Some(lease) = self.leases.get_mut(&id.agreement) {
                    lease.closing = true;
                    lease.stop.send_replace(true);
                }
            }
            Control::Stock(stocked) => self.stock(*stocked).await,
        }
    }

    /// Serves what is in stock. Leases of what is not any more are over: answers under way
    /// may end, and what was used is told as at the end of their time.
    async fn stock(&mut self, stocked: Stocked) {
        let before = self.devices.replace(stocked.devices);
        let mut offers = BTreeMap::new();
        let mut fresh = Vec::new();
        for (offer, source) in stocked.models {
            match source {
                None => {
                    offers.insert(offer.name.to_string(), offer);
                }
                Some(source) => fresh.push(Some(Model::new(offer, source))),
            }
        }
        for place in &mut self.models {
            let model = place.take();
            *place = model.and_then(|mut model| {
                model.offer = offers.remove(&*model.offer.name)?;
                Some(model)
            });
        }
        self.models.extend(fresh);
        let now = wall();
        for lease in self.leases.values_mut() {
            if self.models.get(lease.model).is_none_or(Option::is_none) {
                lease.until = lease.until.min(now);
            }
        }
        // At its start the node offers its devices by itself, and no model answers yet.
        if before.is_some() {
            self.tell_models(self.offers()).await;
        }
        self.probe();
    }

    fn model_mut(&mut self, number: usize) -> Option<&mut Model> {
        self.models.get_mut(number)?.as_mut()
    }

    /// Those who have a lease now.
    fn tell_clients(&self) {
        let clients = self.leases.values().map(|lease| lease.client);
        self.clients.send_replace(clients.collect());
    }

    async fn on_order(&mut self, order: Order) {
        match order {
            Order::Asked {
                from,
                question,
                reader,
                writer,
            } => self.asked(from, *question, (reader, writer)),
            Order::Ended {
                agreement,
                tokens,
                speed,
            } => self.ended(agreement, tokens, speed),
            Order::Probed { model, answers } => self.probed(model, answers).await,
        }
    }

    async fn open(&mut self, order: ExecutionOrder) {
        let id = order.id;
        let wanted = order.model.as_ref();
        let model = wanted.and_then(|wanted| {
            let is_wanted = |model: &Option<Model>| model.as_ref().is_some_and(|it| it.is(wanted));
            self.models.iter().position(is_wanted)
        });
        let (Some(model), Some((until, every))) = (model, order.lease) else {
            let (reason, usage) = (Reason::NO_MODEL, Vec::new());
            return self.say(id, ExecutionEvent::Failed { reason, usage }).await;
        };
        let (stop, _) = watch::channel(false);
        let lease = Lease {
            id,
            client: order.client,
            model,
            until,
            interval: every.duration().max(Duration::from_secs(1)),
            reported: Instant::now(),
            used: Tokens::default(),
            calls: 0,
            stop,
            closing: false,
        };
        self.leases.insert(id.agreement, lease);
        self.tell_clients();
        let progress = ExecutionEvent::Progress { done: 0, total: 1 };
        self.say(id, progress).await;
    }

    async fn say(&self, id: ExecutionId, event: ExecutionEvent) {
        let input = Box::new(Input::Execution { id, event });
        let _ = self.said.send(Said::Input(input)).await;
    }

    /// Reports what was used, and ends what is over.
    async fn look(&mut self) {
        let now = wall();
        let mut said = Vec::new();
        let mut over = Vec::new();
        for (agreement, lease) in &mut self.leases {
            let is_late = now >= lease.until.after(LAST_ANSWERS);
            if is_late {
                lease.stop.send_replace(true);
            }
            if !lease.is_open(now) && lease.calls == 0 {
                let usage = lease.take_usage();
                let event = if lease.closing {
                    let reason = Reason::CANCELLED;
                    ExecutionEvent::Failed { reason, usage }
                } else {
                    let outputs = Vec::new();
                    ExecutionEvent::Finished { outputs, usage }
                };
                said.push((lease.id, event));
                over.push(*agreement);
            } else if lease.used != Tokens::default() && lease.reported.elapsed() >= lease.interval
            {
                lease.reported = Instant::now();
                said.push((lease.id, ExecutionEvent::Interim(lease.take_usage())));
            }
        }
        let are_over = !over.is_empty();
        for agreement in over {
            self.leases.remove(&agreement);
        }
        if are_over {
            self.tell_clients();
        }
        for (id, event) in said {
            self.say(id, event).await;
        }
    }

    fn probe(&self) {
        let numbered = self.models.iter().enumerate();
        for (n, model) in numbered.filter_map(|(n, model)| Some((n, model.as_ref()?))) {
            let Some(orders) = self.orders.upgrade() else {
                return;
            };
            let source = model.source.clone();
            tokio::spawn(async move {
                let result = source.probe().await;
                if let Err(why) = &result {
                    tracing::debug!(%why, "a model does not answer");
                }
                let answers = result.is_ok();
                let _ = orders.send(Order::Probed { model: n, answers }).await;
            });
        }
    }

    async fn probed(&mut self, model: usize, answers: bool) {
        let Some(model) = self.model_mut(model) else {
            return;
        };
        if model.answers == answers {
            return self.tell_rates().await;
        }
        model.answers = answers;
        if answers {
            tracing::info!(model = %model.offer.name, "a model is served");
        } else {
            tracing::warn!(
                model = %model.offer.name,
                "a model does not answer: it is not offered until it does"
            );
        }
        self.tell_models(self.offers()).await;
    }

    /// Those that answer.
    fn offers(&self) -> Vec<ModelOffer> {
        let live = self.models.iter().flatten().filter(|model| model.answers);
        live.map(Model::offer).collect()
    }

    async fn tell_models(&mut self, offers: Vec<ModelOffer>) {
        self.told = (Instant::now(), offers.clone());
        let devices = self.devices.clone().unwrap_or_default();
        let said = Said::Models(devices, offers);
        let _ = self.said.send(said).await;
    }

    /// Tells how fast models are, if that is news.
    async fn tell_rates(&mut self) {
        let offers = self.offers();
        let (when, told) = &self.told;
        let are_news = (told.iter().zip(&offers)).any(|(old, new)| {
            is_news(old.decode_per_second, new.decode_per_second)
                || is_news(old.prefill_per_second, new.prefill_per_second)
        });
        if are_news && when.elapsed() >= RATES_EVERY {
            self.tell_models(offers).await;
        }
    }

    fn asked(&mut self, from: PeerId, question: Question, call: (CallReader, CallWriter)) {
        let agreement = question.agreement;
        let lease = self.leases.get_mut(&agreement);
        // Whose it is not learns no more than that.
        let Some(lease) = lease.filter(|lease| lease.client == from) else {
            return decline(call, Reason::QUOTE_UNKNOWN);
        };
        if !lease.is_open(wall()) {
            return decline(call, Reason::QUOTE_EXPIRED);
        }
        let number = lease.model;
        let Some(model) = self.models.get(number).and_then(Option::as_ref) else {
            return decline(call, Reason::NO_MODEL);
        };
        if !model.answers {
            return decline(call, Reason::MODEL_DOWN);
        }
        if !question.begun.tokens.is_empty() && !model.source.resumes() {
            return decline(call, Reason::NOT_RESUMABLE);
        }
        let Some(orders) = self.orders.upgrade() else {
            return;
        };
        lease.calls += 1;
        let work = Work {
            source: model.source.clone(),
            places: model.places.clone(),
            client: lease.client,
            question,
            stop: lease.stop.subscribe(),
        };
        tokio::spawn(async move {
            let (tokens, speed) = work.answer(call).await;
            let ended = Order::Ended {
                agreement,
                tokens,
                speed: speed.map(|speed| (number, speed)),
            };
            let _ = orders.send(ended).await;
        });
    }

    fn ended(&mut self, agreement: AgreementId, tokens: Tokens, speed: Option<(usize, Speed)>) {
        if let Some(lease) = self.leases.get_mut(&agreement) {
            lease.calls = lease.calls.saturating_sub(1);
            lease.used.read = lease.used.read.saturating_add(tokens.read);
            lease.used.written = lease.used.written.saturating_add(tokens.written);
        }
        let Some((model, speed)) = speed else {
            return;
        };
        if let Some(model) = self.model_mut(model) {
            model.speeds.push_back(speed);
            if model.speeds.len() > SPEEDS_KEPT {
                model.speeds.pop_front();
            }
        }
    }
}

/// Whether a rate is another by a quarter.
const fn is_news(told: u32, now: u32) -> bool {
    now.abs_diff(told) > told / 4
}

fn decline((_reader, mut writer): (CallReader, CallWriter), reason: Reason) {
    tokio::spawn(async move {
        let _ = writer.send(&Part::Declined(reason.into()).encode()).await;
        let _ = writer.close().await;
    });
}

/// A question, with all that its answer takes.
struct Work {
    source: Source,
    places: Places,
    client: PeerId,
    question: Question,
    stop: watch::Receiver<bool>,
}

/// How an answer ended.
enum Ending {
    /// It is whole, or the client wants no more of it.
    Done(Tokens),
    /// The last word says why not, and costs nothing.
    No(Part),
    /// It broke off, for this reason; so much was sent.
    Broken(Reason, Tokens),
    /// Nobody hears it any more: so much was sent.
    Lost(Tokens),
}

/// Why an answer is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// The client wants no more.
    ByClient,
    /// Its lease is over, or used up: the client may ask another for the rest.
    WithLease,
}

impl Stopped {
    fn ending(self, tokens: Tokens) -> Ending {
        match self {
            Self::ByClient => Ending::Done(tokens),
            Self::WithLease if tokens == Tokens::default() => {
                Ending::No(Part::Declined(Reason::QUOTE_EXPIRED.into()))
            }
            Self::WithLease => Ending::Broken(Reason::QUOTE_EXPIRED, tokens),
        }
    }
}

impl Work {
    /// Answers, and says what that took.
    async fn answer(
        self,
        (mut reader, mut writer): (CallReader, CallWriter),
    ) -> (Tokens, Option<Speed>) {
        let mut stop = self.stop.clone();
        let stopped = std::pin::pin!(async move {
            tokio::select! {
                // The client says nothing more: that it ends its half says stop.
                _ = reader.receive(0) => Stopped::ByClient,
                _ = stop.wait_for(|stop| *stop) => Stopped::WithLease,
            }
        });
        let (ending, speed) = self.serve(&mut writer, stopped).await;
        let (tokens, last) = match ending {
            Ending::Done(tokens) => (tokens, Some(done(tokens))),
            Ending::No(part) => (Tokens::default(), Some(part)),
            Ending::Broken(reason, tokens) => (tokens, Some(Part::Declined(reason.into()))),
            Ending::Lost(tokens) => (tokens, None),
        };
        if let Some(last) = last {
            let _ = writer.send(&last.encode()).await;
        }
        let _ = writer.close().await;
        (tokens, speed)
    }

    async fn serve(
        &self,
        writer: &mut CallWriter,
        mut stopped: std::pin::Pin<&mut impl Future<Output = Stopped>>,
    ) -> (Ending, Option<Speed>) {
        let nothing = Tokens::default();
        let place = tokio::select! {
            place = self.enter(writer) => place,
            why = &mut stopped => return (why.ending(nothing), None),
        };
        let Some(_place) = place else {
            return (Ending::No(Part::Declined(Reason::BUSY.into())), None);
        };
        let began = Instant::now();
        let Question {
            endpoint, streams, ..
        } = self.question;
        let comes_as_one = [Endpoint::EMBEDDINGS, Endpoint::SCORES].contains(&endpoint);
        let streams = streams && !comes_as_one;
        let asking = self.source.ask(&self.question, streams);
        let answer = tokio::select! {
            answer = asking => answer,
            why = &mut stopped => return (why.ending(nothing), None),
        };
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => return (Ending::No(no(error)), None),
        };
        if streams {
            return self.stream(writer, stopped, (answer, began)).await;
        }
        let whole = tokio::select! {
            whole = answer.whole() => Ok(whole),
            why = &mut stopped => Err(why),
        };
        let whole = match whole {
            Ok(whole) => whole,
            Err(Stopped::WithLease) => return (Stopped::WithLease.ending(nothing), None),
            // What was read was read.
            Err(Stopped::ByClient) => {
                let read = answer.tokens().read;
                return (Ending::Done(Tokens { read, written: 0 }), None);
            }
        };
        let (events, tokens) = match whole {
            Ok(whole) => whole,
            Err(error) => return (Ending::No(no(error)), None),
        };
        for event in events {
            if !tell(writer, event).await {
                return (Ending::Lost(tokens), None);
            }
        }
        (Ending::Done(tokens), None)
    }

    /// Its place, once it is its turn. Who has to wait is told so. None if it has lost its
    /// turn, or nobody waits any more.
    async fn enter(&self, writer: &mut CallWriter) -> Option<Place> {
        let count = self.source.places_for(&self.question);
        match self.places.enter(self.client, count) {
            Entered::Now(place) => Some(place),
            Entered::Waits { ahead, turn } => {
                let queued = Part::Queued { ahead };
                writer.send(&queued.encode()).await.ok()?;
                turn.come().await
            }
            Entered::Full => None,
        }
    }

    async fn stream(
        &self,
        writer: &mut CallWriter,
        mut stopped: std::pin::Pin<&mut impl Future<Output = Stopped>>,
        (mut answer, began): (Answer, Instant),
    ) -> (Ending, Option<Speed>) {
        let mut first = None;
        let mut has_told = false;
        loop {
            let event = tokio::select! {
                event = answer.next_event() => event,
                why = &mut stopped => {
                    let is_free = why == Stopped::WithLease && !has_told;
                    let tokens = match is_free {
                        true => Tokens::default(),
                        false => self.so_far(&answer),
                    };
                    return (why.ending(tokens), None);
                }
            };
            let event = match event {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) if !has_told => return (Ending::No(no(error)), None),
                // What has been sent was good.
                Err(error) => {
                    tracing::info!(%error, "an answer broke off");
                    let ending = Ending::Broken(Reason::MODEL_DOWN, self.so_far(&answer));
                    return (ending, None);
                }
            };
            has_told = true;
            if !tell(writer, event).await {
                return (Ending::Lost(self.so_far(&answer)), None);
            }
            if answer.tokens().written > 0 {
                first.get_or_insert_with(Instant::now);
            }
        }
        let tokens = answer.tokens();
        let speed = first.and_then(|first| speed_of(tokens, began, first));
        (Ending::Done(tokens), speed)
    }

    /// What an answer costs that was not brought to its end. Until the server has counted
    /// the question, an eighth of its bytes stand for its tokens: fewer than there are.
    fn so_far(&self, answer: &Answer) -> Tokens {
        let tokens = answer.tokens();
        let asked = u64::try_from(self.question.body.len() / 8).unwrap_or(u64::MAX);
        Tokens {
            read: match (tokens.read, tokens.written) {
                (0, 1..) => asked,
                (read, _) => read,
            },
            ..tokens
        }
    }
}

/// Whether a piece of an answer has left.
async fn tell(writer: &mut CallWriter, event: Event) -> bool {
    let part = match event {
        Event::Plain(bytes) => Bytes::new(bytes).map(Part::Event),
        Event::Named(event) => Bytes::new(event.bytes).map(|bytes| Part::Wrote {
            event: bytes,
            tokens: List::truncated(event.tokens),
            draws: event.draws,
            is_whole: event.is_whole,
        }),
    };
    match part {
        Ok(part) => writer.send(&part.encode()).await.is_ok(),
        Err(_) => false,
    }
}

const fn done(tokens: Tokens) -> Part {
    Part::Done {
        read: tokens.read,
        written: tokens.written,
    }
}

/// What a client is told of a server's no.
fn no(error: UpstreamError) -> Part {
    match error {
        UpstreamError::Refused(status, words) if is_of_the_question(status) => Part::Refused {
            status,
            body: Bytes::new(words).unwrap_or_default(),
        },
        // It has too much to do.
        UpstreamError::Refused(429, _) => Part::Declined(Reason::BUSY.into()),
        UpstreamError::NoQuestion => Part::Refused {
            status: 400,
            body: Bytes::default(),
        },
        // What is wrong with a server is its operator's business.
        error => {
            tracing::warn!(%error, "a question was not answered");
            Part::Declined(Reason::MODEL_DOWN.into())
        }
    }
}

/// How fast an answer was that had a few tokens.
fn speed_of(tokens: Tokens, began: Instant, first: Instant) -> Option<Speed> {
    let rate = |count: u64, took: Duration| {
        let micros = took.as_micros().max(1);
        u32::try_from(u128::from(count) * 1_000_000 / micros).unwrap_or(u32::MAX)
    };
    (tokens.written >= 8 && tokens.read > 0).then(|| Speed {
        prefill_per_second: rate(tokens.read, first.duration_since(began)),
        decode_per_second: rate(tokens.written - 1, first.elapsed()),
    })
}
