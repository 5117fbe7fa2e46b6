//! Leases of models, kept for those who ask.
//!
//! ```text
//! take ─▶ a lease with room? ──▶ a place in it
//!             └─ none: a job is handed in ─▶ (agreed) ─▶ all who wait for it get places
//! lease:  Asked ──agreed──▶ Stands ──its provider failed somebody──▶ Left
//!                             ├─ nobody has asked for a while ─────▶ Left
//!                             └─ its time is nearly over ──────────▶ no new places, ends
//! none, and its principal has too little left: leases of it that nobody is in are left, and
//!       whoever asks waits until they are over
//! ```
//!
//! A lease is a job like any other: the core finds the provider, pays by receipts, and goes
//! elsewhere when the provider is lost. Each principal has leases of its own, so that what
//! was used stands in receipts by principal. What a lease may cost is set aside from its
//! principal's budget while it stands, so that one takes no more than half of what is left,
//! down to a [`PART_MIN`]th of a whole one, and a principal with little left can use it.
//!
//! Absent: questions and answers.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use suanli_protocol::{
    deal::{BlobRef, Needs, Work},
    ids::{AccountId, AgreementId, BlobId, Hash, JobId, PeerId},
    message::InlineBlob,
    offer::{ModelRef, Name, tokens},
    rank::Policy,
    record::{JobOrder, Verify},
    registry::{Confidentiality, Runtime, SandboxLevel},
    units::{Amount, Millis, Wall, cost},
    wire::{Bytes, List},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Asker, Served,
    conversations::{Conversation, Conversations},
};
use crate::{
    api::types::JobEventInfo,
    data_dir::random_secret,
    handle::{Gone, NodeHandle, NotTaken},
    keys::Key,
    store::blobs::WallMs,
    wall::{wall, wall_ms},
};

/// How long a lease is made for.
const LASTS: Duration = Duration::from_secs(600);
/// How often its usage is receipted: what a client may lose.
const RECEIPTED: Duration = Duration::from_secs(10);
/// Time that a lease must have left to take one more question.
const LEFT_MIN: Duration = Duration::from_secs(20);
/// How long a lease is kept that nobody uses.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// Questions at once in one lease, while another provider could have some.
const CALLS_MAX: usize = 8;
/// How long whoever asks waits for a lease.
const AGREE_WAIT: Duration = Duration::from_secs(20);
/// How often leases are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Orders that may wait for the desk.
const ORDERS: usize = 1024;
/// Tokens that a lease pays for, read and written: what a provider lends is bounded, and a
/// lease that is half used takes no more questions.
const PAYS_FOR: (u64, u64) = (400_000, 100_000);
/// Of what a whole lease costs, the part that is taken where there is little left.
const PART_MIN: u64 = 64;
/// How long what a lease is called is kept.
const SPEC_MS: u64 = 3_600_000;
/// Leases at once.
const LEASES_MAX: usize = 4096;
/// How long a provider is not asked whose answers others would not have written.
const AVOIDED_FOR: Duration = Duration::from_secs(86_400);
/// How many are remembered.
const AVOIDED_MAX: usize = 4096;

/// Asks the desk.
#[derive(Debug, Clone)]
pub struct Leases(mpsc::Sender<Order>);

/// A place in a lease. It is given back when this is dropped.
#[derive(Debug)]
pub struct Place {
    /// The agreement,
    pub agreement: AgreementId,
    /// and with whom.
    pub provider: PeerId,
    /// What the provider says of the model's weights, if it is known,
    pub weights: Option<BlobId>,
    /// and for whom it offers.
    pub account: Option<AccountId>,
    job: JobId,
    /// Whether the provider has failed.
    failed: bool,
    /// Tokens that were read and written.
    used: (u64, u64),
    /// The API key that counts them.
    key: Option<Arc<Key>>,
    /// What is asked goes on with it.
    conversation: Option<Conversation>,
    back: mpsc::WeakSender<Order>,
    is_given_back: bool,
}

impl Place {
    /// The provider did not do what it should: the lease is left.
    pub fn fails(&mut self) {
        self.failed = true;
    }

    /// Its lease is over: nobody gets a place in it any more, from now on.
    pub fn ends(&mut self) {
        self.failed = true;
        self.give_back();
    }

    /// Gives it back before this is dropped. What is used from then on is told to its key only.
    pub(super) fn give_back(&mut self) {
        let is_given_back = std::mem::replace(&mut self.is_given_back, true);
        let Some(orders) = self.back.upgrade().filter(|_| !is_given_back) else {
            return;
        };
        let back = Order::Back {
            job: self.job,
            agreement: self.agreement,
            failed: self.failed,
            used: self.used,
            conversation: self.conversation,
        };
        if let Err(mpsc::error::TrySendError::Full(back)) = orders.try_send(back) {
            tokio::spawn(async move { drop(orders.send(back).await) });
        }
    }

    /// Its tokens count as that asker's.
    #[must_use]
    fn taken_by(mut self, asker: &Asker) -> Self {
        self.key.clone_from(&asker.key);
        self.conversation = asker.conversation;
        self
    }

    /// So many tokens were read and written.
    pub fn uses(&mut self, tokens: (u64, u64)) {
        self.used = tokens;
        if let Some(key) = &self.key {
            key.uses(tokens, Instant::now());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Why there is no lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoLease {
    /// Nobody serves the model, or nobody else.
    NoSuchModel,
    /// Whom it is for may not spend that much.
    OverBudget(String),
    /// Nobody agreed.
    Failed(String),
    /// The node is stopping.
    Gone,
}

#[derive(Debug)]
enum Order {
    Take(Take),
    Back {
        job: JobId,
        agreement: AgreementId,
        failed: bool,
        used: (u64, u64),
        conversation: Option<Conversation>,
    },
    Happened {
        job: JobId,
        event: JobEventInfo,
    },
    /// This provider is not asked any more, for a while.
    Avoid(PeerId),
    /// A job's lines have ended.
    Over(JobId),
    NotTaken(JobId, NotTaken),
}

/// Somebody asks for a place.
#[derive(Debug)]
struct Take {
    principal: Name,
    model: Name,
    avoid: BTreeSet<PeerId>,
    conversation: Option<Conversation>,
    /// Another place would do as well: nothing is ended for it.
    is_second: bool,
    reply: oneshot::Sender<Result<Place, NoLease>>,
}

impl Leases {
    /// Starts the desk.
    pub fn start(handle: NodeHandle) -> Self {
        let (orders, queue) = mpsc::channel(ORDERS);
        let desk = Desk {
            handle,
            orders: orders.downgrade(),
            leases: BTreeMap::new(),
            short: VecDeque::new(),
            avoided: BTreeMap::new(),
            conversations: Conversations::default(),
        };
        tokio::spawn(desk.run(queue));
        Self(orders)
    }

    /// A provider is not asked any more, for a day.
    pub async fn avoid(&self, provider: PeerId) {
        let _ = self.0.send(Order::Avoid(provider)).await;
    }

    /// A place in a lease of a model, with none of those.
    ///
    /// # Errors
    /// [`NoLease`].
    pub async fn take(&self, asker: &Asker, avoid: &BTreeSet<PeerId>) -> Result<Place, NoLease> {
        self.take_one(asker, avoid, false).await
    }

    /// The same where another place would do as well: other leases are not ended for it.
    ///
    /// # Errors
    /// [`NoLease`].
    pub async fn take_second(
        &self,
        asker: &Asker,
        avoid: &BTreeSet<PeerId>,
    ) -> Result<Place, NoLease> {
        self.take_one(asker, avoid, true).await
    }

    async fn take_one(
        &self,
        asker: &Asker,
        avoid: &BTreeSet<PeerId>,
        is_second: bool,
    ) -> Result<Place, NoLease> {
        let (reply, answer) = oneshot::channel();
        let take = Order::Take(Take {
            principal: asker.principal.clone(),
            model: asker.model.clone(),
            avoid: avoid.clone(),
            conversation: asker.conversation,
            is_second,
            reply,
        });
        self.0.send(take).await.map_err(|_| NoLease::Gone)?;
        match timeout(AGREE_WAIT, answer).await {
            Ok(Ok(taken)) => taken.map(|place| place.taken_by(asker)),
            Ok(Err(_)) => Err(NoLease::Gone),
            Err(_) => Err(NoLease::Failed("nobody has agreed in time".to_owned())),
        }
    }
}

/// A lease.
#[derive(Debug)]
struct Lease {
    principal: Name,
    model: Name,
    until: Wall,
    /// The last agreement, and with whom.
    agreed: Option<(PeerId, AgreementId)>,
    /// What the provider says of the model's weights, and for whom it offers.
    offered: Option<(BlobId, AccountId)>,
    /// Whether it stands.
    stands: bool,
    /// Those who are not asked.
    avoid: BTreeSet<PeerId>,
    calls: usize,
    waiting: VecDeque<oneshot::Sender<Result<Place, NoLease>>>,
    used: Instant,
    /// The most that it costs,
    budget: Amount,
    /// and whether that is set aside already.
    handed_in: bool,
    /// Tokens that it pays for, read and written.
    pays_for: (u64, u64),
    /// Tokens read and written.
    tokens: (u64, u64),
    /// No new places are given.
    left: bool,
    /// What its providers said last.
    words: String,
}

impl Lease {
    /// Whether it may be used, or will be.
    fn serves(&self, (principal, model): (&Name, &Name), avoid: &BTreeSet<PeerId>) -> bool {
        let is_avoided = match self.agreed {
            Some((provider, _)) => avoid.contains(&provider),
            // It may come to one of these.
            None => !avoid.is_subset(&self.avoid),
        };
        !self.left
            && !is_avoided
            && self.principal == *principal
            && self.model == *model
            && self.until > wall().after(LEFT_MIN)
    }

    fn load(&self) -> usize {
        self.calls + self.waiting.len()
    }
}

/// The task that keeps the leases.
struct Desk {
    handle: NodeHandle,
    orders: mpsc::WeakSender<Order>,
    leases: BTreeMap<JobId, Lease>,
    /// Those whose principal has too little left until another lease of it is over.
    short: VecDeque<Take>,
    /// Those who are not asked, and since when.
    avoided: BTreeMap<PeerId, Instant>,
    /// With whom conversations are.
    conversations: Conversations,
}

impl Desk {
    async fn run(mut self, mut queue: mpsc::Receiver<Order>) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = queue.recv() => match order {
                    Some(order) => self.on_order(order).await,
                    None => break,
                },
                _ = look.tick() => self.look().await,
            }
        }
    }

    async fn on_order(&mut self, order: Order) {
        match order {
            Order::Take(take) => self.take(take).await,
            Order::Back {
                job,
                agreement,
                failed,
                used,
                conversation,
            } => {
                let with = self.leases.get(&job).and_then(|lease| lease.agreed);
                // Who was left in its line has not answered.
                let has_answered = !failed && used != (0, 0);
                if let (Some(conversation), Some((provider, now))) = (conversation, with)
                    && has_answered
                    && now == agreement
                {
                    self.conversations.answered(conversation, provider);
                }
                self.back(job, (agreement, failed), used).await;
            }
            Order::Happened { job, event } => {
                self.is_handed_in(job).await;
                self.happened(job, event).await;
            }
            Order::Avoid(provider) => self.avoid(provider).await,
            Order::Over(job) => self.over(job, None).await,
            Order::NotTaken(job, why) => self.over(job, Some(why)).await,
        }
    }

    /// Leaves all leases with a provider, and makes no more with it for a while.
    async fn avoid(&mut self, provider: PeerId) {
        if self.avoided.len() >= AVOIDED_MAX {
            self.avoided.pop_first();
        }
        self.avoided.insert(provider, Instant::now());
        let with_it: Vec<JobId> = (self.leases.iter_mut())
            .filter(|(_, lease)| lease.agreed.is_some_and(|(with, _)| with == provider))
            .map(|(job, lease)| {
                lease.left = true;
                *job
            })
            .collect();
        for job in with_it {
            self.leave(job).await;
        }
    }

    async fn take(&mut self, mut take: Take) {
        self.avoided
            .retain(|_, since| since.elapsed() < AVOIDED_FOR);
        take.avoid.extend(self.avoided.keys());
        let wanted = (&take.principal, &take.model);
        let serving = (self.leases.iter()).filter(|(_, lease)| lease.serves(wanted, &take.avoid));
        let with = take.conversation;
        let with = with.and_then(|conversation| self.conversations.with(conversation));
        let goes_on = |lease: &Lease| {
            let provider = lease.agreed.map(|(provider, _)| provider);
            with.is_some() && provider == with && lease.load() < CALLS_MAX
        };
        let least = serving.min_by_key(|(_, lease)| (!goes_on(lease), lease.load()));
        let least = least.map(|(job, lease)| (*job, lease.load(), lease.agreed));
        let mut avoid_too = take.avoid.clone();
        if let Some((job, load, agreed)) = least {
            if load < CALLS_MAX {
                return self.give(job, take.reply);
            }
            avoid_too.extend(agreed.map(|(provider, _)| provider));
        }
        let Ok(served) = super::served(&self.handle).await else {
            let _ = take.reply.send(Err(NoLease::Gone));
            return;
        };
        let served = served
            .iter()
            .filter(|served| served.model.name == take.model);
        let others: Vec<&Served> = served
            .filter(|served| !avoid_too.contains(&served.provider))
            .collect();
        let part = if others.is_empty() || self.leases.len() >= LEASES_MAX {
            None
        } else {
            let Ok(part) = self.affordable(&take.principal, &others).await else {
                let _ = take.reply.send(Err(NoLease::Gone));
                return;
            };
            Some(part)
        };
        match (part, least) {
            (Some(Some(part)), _) => {
                let others = others.iter().map(|served| served.provider).collect();
                self.begin(take, part, (avoid_too, others));
            }
            // Better a full one than none.
            (_, Some((job, ..))) => self.give(job, take.reply),
            (Some(None), None) => self.falls_short(take).await,
            (None, None) => drop(take.reply.send(Err(NoLease::NoSuchModel))),
        }
    }

    /// What a lease with one of these may cost: what it pays for, or a part of what its
    /// principal has left; none if that is nothing.
    async fn affordable(&self, principal: &Name, others: &[&Served]) -> Result<Option<Part>, Gone> {
        let (read, written) = PAYS_FOR;
        let prices = others.iter();
        let whole = prices.filter_map(|one| cost(&tokens(read, written), &one.model.prices));
        let most = self.handle.facts().max_price;
        let whole = whole.max().map_or(most, |whole| whole.min(most));
        let left = self.handle.budget(principal.clone()).await?.left();
        let coming = self.of(principal).filter(|lease| !lease.handed_in);
        let coming = coming.fold(Amount::ZERO, |sum, lease| sum.saturating_add(lease.budget));
        let left = left.map(|left| left.saturating_sub(coming));
        Ok(Part::of(whole, left))
    }

    fn of(&self, principal: &Name) -> impl Iterator<Item = &Lease> {
        let leases = self.leases.values();
        leases.filter(move |lease| lease.principal == *principal)
    }

    /// Its principal has nothing left that is not set aside for its leases. Those that nobody
    /// is in are ended, and it waits for one to be over; where none will be, it is refused.
    async fn falls_short(&mut self, take: Take) {
        let mut ending = Vec::new();
        // What is set aside for one that is on its way counts twice for a moment.
        let is_coming = self.of(&take.principal).any(|lease| !lease.handed_in);
        let may_end = |lease: &Lease| lease.left || (lease.load() == 0 && !take.is_second);
        for (job, lease) in &mut self.leases {
            if lease.principal == take.principal && may_end(lease) {
                lease.left = true;
                ending.push(*job);
            }
        }
        if take.is_second || (ending.is_empty() && !is_coming) || self.short.len() >= ORDERS {
            let words = format!(
                "the budget of {:?} is used up, or set aside for what it asks already",
                &*take.principal
            );
            let _ = take.reply.send(Err(NoLease::OverBudget(words)));
            return;
        }
        self.short.push_back(take);
        for job in ending {
            self.leave(job).await;
        }
    }

    /// Gives a place in a lease that there is.
    fn give(&mut self, job: JobId, reply: oneshot::Sender<Result<Place, NoLease>>) {
        if let Some(lease) = self.leases.get_mut(&job) {
            give(&self.orders, job, lease, reply);
        }
    }

    /// Hands in a job for a lease, with one of these.
    fn begin(&mut self, take: Take, part: Part, (avoid, others): (BTreeSet<PeerId>, Vec<PeerId>)) {
        let Take {
            principal,
            model,
            reply,
            ..
        } = take;
        let until = wall().after(LASTS);
        let Some(order) = order((&principal, &model), (until, part.budget), others) else {
            let _ = reply.send(Err(NoLease::Failed("there is no randomness".to_owned())));
            return;
        };
        let job = order.job;
        self.leases.insert(
            job,
            Lease {
                principal,
                model,
                until,
                agreed: None,
                offered: None,
                stands: false,
                avoid,
                calls: 0,
                waiting: VecDeque::from([reply]),
                used: Instant::now(),
                budget: part.budget,
                handed_in: false,
                pays_for: part.pays_for,
                tokens: (0, 0),
                left: false,
                words: String::new(),
            },
        );
        let (handle, orders) = (self.handle.clone(), self.orders.clone());
        tokio::spawn(follow(handle, orders, order));
    }

    /// What a lease may cost is set aside by the core from now on.
    async fn is_handed_in(&mut self, job: JobId) {
        let Some(lease) = self.leases.get_mut(&job) else {
            return;
        };
        if !std::mem::replace(&mut lease.handed_in, true) && !self.short.is_empty() {
            let principal = lease.principal.clone();
            self.try_again(&principal).await;
        }
    }

    async fn happened(&mut self, job: JobId, event: JobEventInfo) {
        let Some(lease) = self.leases.get_mut(&job) else {
            return;
        };
        match event {
            JobEventInfo::Agreed {
                peer, agreement, ..
            } => {
                lease.agreed = Some((peer, agreement));
                lease.stands = false;
                // A provider that has started again may have another file.
                lease.offered = offered(&self.handle, peer, &lease.model).await;
            }
            JobEventInfo::Started => {
                let Some((_, agreement)) = lease.agreed else {
                    return;
                };
                lease.stands = true;
                lease.used = Instant::now();
                // From here on receipts are held against what is counted.
                let _ = self.handle.counted(agreement, (0, 0)).await;
                for reply in std::mem::take(&mut lease.waiting) {
                    give(&self.orders, job, lease, reply);
                }
            }
            JobEventInfo::GaveUp { sentence, .. } => {
                lease.stands = false;
                lease.agreed = None;
                lease.words = sentence;
            }
            JobEventInfo::Declined { sentence, .. } => lease.words = sentence,
            JobEventInfo::Ended { reason, .. } => {
                if let Some((_, sentence)) = reason {
                    lease.words = sentence;
                }
                self.over(job, None).await;
            }
            _ => {}
        }
    }

    async fn back(
        &mut self,
        job: JobId,
        (agreement, failed): (AgreementId, bool),
        (read, written): (u64, u64),
    ) {
        let Some(lease) = self.leases.get_mut(&job) else {
            return;
        };
        lease.calls = lease.calls.saturating_sub(1);
        lease.used = Instant::now();
        let tokens = &mut lease.tokens;
        *tokens = (
            tokens.0.saturating_add(read),
            tokens.1.saturating_add(written),
        );
        if tokens.0 >= lease.pays_for.0 / 2 || tokens.1 >= lease.pays_for.1 / 2 {
            lease.left = true;
        }
        // The core may have gone elsewhere with it already.
        if failed && lease.agreed.is_some_and(|(_, now)| now == agreement) {
            lease.left = true;
        }
        self.leave(job).await;
    }

    /// Ends a lease that is left, once nobody is in it.
    async fn leave(&self, job: JobId) {
        let is_empty = (self.leases.get(&job)).is_some_and(|lease| lease.left && lease.load() == 0);
        if is_empty {
            let _ = self.handle.cancel(job).await;
        }
    }

    async fn over(&mut self, job: JobId, why: Option<NotTaken>) {
        let Some(lease) = self.leases.remove(&job) else {
            return;
        };
        let no = match why {
            Some(NotTaken::OverBudget { .. }) => {
                NoLease::OverBudget(why.map(|why| why.to_string()).unwrap_or_default())
            }
            Some(why) => NoLease::Failed(why.to_string()),
            None => NoLease::Failed(lease.words),
        };
        for reply in lease.waiting {
            let _ = reply.send(Err(no.clone()));
        }
        // What was set aside for it and not spent is there again.
        self.try_again(&lease.principal).await;
    }

    /// Looks again at those whose principal had too little left.
    async fn try_again(&mut self, principal: &Name) {
        let short = std::mem::take(&mut self.short);
        for take in short.into_iter().filter(|take| !take.reply.is_closed()) {
            if take.principal == *principal {
                self.take(take).await;
            } else {
                self.short.push_back(take);
            }
        }
    }

    async fn look(&mut self) {
        self.short.retain(|take| !take.reply.is_closed());
        let mut idle = Vec::new();
        for (job, lease) in &mut self.leases {
            lease.waiting.retain(|reply| !reply.is_closed());
            if lease.load() == 0 && lease.used.elapsed() >= IDLE_MAX {
                lease.left = true;
                idle.push(*job);
            }
        }
        for job in idle {
            self.leave(job).await;
        }
    }
}

/// What a provider's offer says of a model's weights, and for whom it is.
async fn offered(
    handle: &NodeHandle,
    provider: PeerId,
    model: &Name,
) -> Option<(BlobId, AccountId)> {
    let served = super::served(handle).await.ok()?;
    let mut served = served.iter();
    let is_it = |one: &&Served| one.provider == provider && one.model.name == *model;
    let found = served.find(is_it)?;
    Some((found.model.weights, found.account))
}

/// How large a lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    /// What it costs at most,
    budget: Amount,
    /// and for how many tokens that pays, read and written.
    pays_for: (u64, u64),
}

impl Part {
    /// Of a whole lease what a principal can pay that has so much left.
    fn of(whole: Amount, left: Option<Amount>) -> Option<Self> {
        let whole = whole.as_micros();
        let left = left.map_or(u64::MAX, Amount::as_micros);
        let budget = (left / 2).max(whole / PART_MIN).min(left).min(whole);
        let part = |tokens: u64| match whole {
            0 => tokens,
            _ => {
                let part = u128::from(tokens) * u128::from(budget) / u128::from(whole);
                u64::try_from(part).unwrap_or(tokens)
            }
        };
        let is_payable = budget > 0 || whole == 0;
        is_payable.then(|| Self {
            budget: Amount::from_micros(budget),
            pays_for: (part(PAYS_FOR.0), part(PAYS_FOR.1)),
        })
    }
}

/// The job that a lease is.
fn order(
    (principal, model): (&Name, &Name),
    (until, budget): (Wall, Amount),
    providers: Vec<PeerId>,
) -> Option<JobOrder> {
    let mut job = [0; 16];
    job.copy_from_slice(&random_secret().ok()?[..16]);
    // What stands in receipts for the program: which model it was.
    let spec = format!("model {model}\n").into_bytes();
    let blob = BlobId(Hash::of(&spec));
    let bytes = u64::try_from(spec.len()).ok()?;
    let wanted = ModelRef {
        name: model.clone(),
        weights: None,
    };
    Some(JobOrder {
        job: JobId::from_bytes(job),
        name: model.clone(),
        principal: principal.clone(),
        work: Work::Lease {
            until,
            interval: Millis::from(RECEIPTED),
        },
        spec: BlobRef { blob, bytes },
        inputs: List::default(),
        needs: Needs {
            runtime: Runtime::MODEL,
            features: List::default(),
            device: None,
            memory_bytes: 0,
            sandbox: SandboxLevel::default(),
            run_max: Millis::new(1000),
            output_bytes_max: 0,
            fuel_max: 0,
            model: Some(wanted),
        },
        budget,
        regions: List::default(),
        providers: List::truncated(providers),
        condition: None,
        rank: None,
        policy: Policy::Balanced,
        flops: 0,
        confidentiality: Confidentiality::NONE,
        retention: Millis::default(),
        total: Millis::from(LASTS + LEFT_MIN),
        take: false,
        parallel: 1,
        max_failures: 0,
        verify: Verify::NONE,
        counter_percent: 0,
        checkpoint_every: None,
        staying: List::default(),
        inline: List::truncated(vec![InlineBlob {
            blob,
            bytes: Bytes::new(spec).ok()?,
        }]),
    })
}

/// Gives a place in a lease, now or once it stands.
fn give(
    orders: &mpsc::WeakSender<Order>,
    job: JobId,
    lease: &mut Lease,
    reply: oneshot::Sender<Result<Place, NoLease>>,
) {
    let Some((provider, agreement)) = lease.agreed.filter(|_| lease.stands) else {
        lease.waiting.push_back(reply);
        return;
    };
    let place = Place {
        agreement,
        provider,
        weights: lease.offered.map(|(weights, _)| weights),
        account: lease.offered.map(|(_, account)| account),
        job,
        failed: false,
        used: (0, 0),
        key: None,
        conversation: None,
        back: orders.clone(),
        is_given_back: false,
    };
    lease.calls += 1;
    // Who no longer waits gives it back by dropping it.
    let _ = reply.send(Ok(place));
}

/// Hands a job in, and tells the desk what becomes of it.
async fn follow(handle: NodeHandle, orders: mpsc::WeakSender<Order>, order: JobOrder) {
    let job = order.job;
    let tell = async |order| {
        if let Some(orders) = orders.upgrade() {
            drop(orders.send(order).await);
        }
    };
    let specs = order.inline.iter().map(|spec| spec.bytes.to_vec());
    let specs: Vec<Vec<u8>> = specs.collect();
    let blobs = handle.store().blobs().clone();
    let keeping = move || {
        let until = Some(WallMs(wall_ms().saturating_add(SPEC_MS)));
        specs
            .iter()
            .try_for_each(|spec| blobs.put_bytes(spec, until).map(drop))
    };
    if let Ok(Err(error)) = tokio::task::spawn_blocking(keeping).await {
        return tell(Order::NotTaken(job, NotTaken::Store(error.to_string()))).await;
    }
    match handle.submit(Box::new(order)).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => return tell(Order::NotTaken(job, why)).await,
        Err(_) => return tell(Order::Over(job)).await,
    }
    if let Ok(Some(mut watch)) = handle.watch(job).await {
        for line in watch.past {
            let event = line.event;
            tell(Order::Happened { job, event }).await;
        }
        while let Some(line) = watch.lines.recv().await {
            let event = line.event;
            tell(Order::Happened { job, event }).await;
        }
    }
    // Of one that is followed no longer nobody would know that it goes on.
    let _ = handle.cancel(job).await;
    tell(Order::Over(job)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(whole: u64, left: Option<u64>) -> Option<(u64, (u64, u64))> {
        let part = Part::of(Amount::from_micros(whole), left.map(Amount::from_micros));
        part.map(|part| (part.budget.as_micros(), part.pays_for))
    }

    #[test]
    fn a_lease_costs_no_more_than_its_principal_can_pay() {
        assert_eq!(part(6400, None), Some((6400, PAYS_FOR)));
        assert_eq!(part(6400, Some(12_800)), Some((6400, PAYS_FOR)));
        assert_eq!(part(6400, Some(6400)), Some((3200, (200_000, 50_000))));
        assert_eq!(part(6400, Some(150)), Some((100, (6250, 1562))));
        assert_eq!(part(6400, Some(70)), Some((70, (4375, 1093))));
        assert_eq!(part(6400, Some(0)), None);
        // What costs nothing can be paid with nothing.
        assert_eq!(part(0, Some(0)), Some((0, PAYS_FOR)));
    }
}
