//! A node's mind: everything that it decides, as a value.
//!
//! A [`Peer`] is fed with [`Input`]s and both clocks, and drained of
//! [`Output`]s; it does nothing by itself and knows no socket, file, thread or
//! clock. The driver around it carries the outputs out:
//!
//! ```text
//! loop {
//!     peer.handle(now, input)             one change
//!     while let Some(output) = peer.poll_output() { carry out }
//!     wait for an input, or until peer.next_timeout(), then Input::Tick
//! }
//! ```
//!
//! **Durable before visible.** [`Output::Persist`] hands out a record with its
//! position; whatever would show it to somebody else stays inside until
//! [`Input::Persisted`] says that the position is on disk. Outputs that depend
//! on nothing never wait. After a crash, [`Peer::restore`] rebuilds the state
//! from the records that were on disk, and the same questions get the same
//! bytes.
//!
//! Inside, four parts with one owner each: [`crate::book`] (others' offers),
//! `buyer` (our jobs), `seller` (our work for others), `ledger` (who owes
//! whom). Absent: anything that interprets a job, moves blobs or runs code.

mod buyer;
mod challenger;
mod comparison;
mod condense;
mod core;
mod ledger;
mod referrals;
mod seller;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use self::{
    buyer::Buyer,
    challenger::Challenger,
    core::{Core, Outbox, Timer, Timers},
    ledger::Ledger,
    referrals::Referrals,
    seller::{Credits, Seller},
};
pub use self::{
    buyer::{BudgetView, JobView, end_word},
    challenger::Unanswered,
    comparison::{ComparedOutput, Comparison, ComparisonId, ProductCheck, ProductsCheck, ResultId},
    ledger::ChannelView,
    referrals::{Report, Unreferred},
};
use crate::{
    book::Book,
    challenge::{Challenge, Opening, Seed, Wrong},
    deal::{BlobRef, Checkpoint},
    delegation::RawDelegation,
    envelope::{self, Signer, Verified},
    ids::{AccountId, AgreementId, BlobId, ChannelId, Hash, JobId, PeerId, ReceiptId},
    limits::{OFFER_TTL_MAX, OFFERS_PER_PAGE, OUTPUTS_WAITING_MAX, PULL_IDLE_MAX, PULL_TRIES},
    message::{Decline, Frame, Gossip, LogLine, Message, Progress, Pull, Verdict},
    offer::{ModelRef, Name, Offer},
    pricing::Pricing,
    rank::{Plan, Way},
    receipt,
    record::{JobEnd, JobOrder, Lsn, Part, Record},
    registry::{Reason, Runtime},
    standing::{Failing, Outcome, Standing, Standings},
    units::{Amount, Millis, Mono, Now, Total, Usage, Wall},
    wire::{List, Text},
};

/// What a peer is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whom its node acts for.
    pub account: AccountId,
    /// The account's word for it.
    pub delegation: RawDelegation,
    /// Where it is; empty if it doesn't say.
    pub region: Name,
    /// What it pays for 10⁹ bytes that it sends to another region.
    pub traffic: Amount,
    /// What it sells, if anything.
    pub provider: Option<ProviderConfig>,
    /// What principals may spend: a name's own, and that of `*` for each other. All that
    /// have none may spend anything.
    pub budgets: BTreeMap<Name, Budget>,
    /// How patient it is.
    pub timing: Timing,
}

/// What a principal may spend in so many days, counted back from today in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Budget {
    /// How much.
    pub amount: Amount,
    /// In how many days.
    pub days: u16,
}

/// What a provider sells, to whom, and on what credit.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// The offer to announce. Account, delegation, sequence and free slots are
    /// filled in.
    pub offer: Offer,
    /// Accounts that the operator knows, and how much each may owe.
    pub known: BTreeMap<AccountId, Amount>,
    /// Accounts that are not served.
    pub blocked: BTreeSet<AccountId>,
    /// How much all strangers together may owe.
    pub strangers_budget: Amount,
    /// Whether strangers are served only over the loopback interface.
    pub local_only: bool,
    /// How far a counter-offer may go below the price.
    pub discount_percent_max: u8,
    /// How many capacity challenges it takes in an hour, from all peers together.
    pub challenges_per_hour: u32,
    /// How often in an hour it shows others who accepted its work.
    pub references_per_hour: u32,
    /// Pieces of work that may wait for a slot.
    pub queue: u32,
    /// What it asks at which time, of whom.
    pub pricing: Arc<dyn Pricing>,
}

impl ProviderConfig {
    fn knows(&self, account: AccountId) -> bool {
        self.known.contains_key(&account) && !self.blocked.contains(&account)
    }

    /// Whether a quote to an account takes a slot.
    fn holds_for(&self, account: AccountId) -> bool {
        self.knows(account) || self.known.is_empty()
    }

    fn window(&self, account: AccountId) -> Amount {
        if self.blocked.contains(&account) {
            return Amount::ZERO;
        }
        self.known
            .get(&account)
            .copied()
            .unwrap_or(self.offer.terms.stranger_credit)
    }
}

/// How patient a peer is.
#[derive(Debug, Clone)]
pub struct Timing {
    /// How long an offer lives; it is renewed after half of it.
    pub offer_ttl: Duration,
    /// How long a quote holds capacity.
    pub hold: Duration,
    /// How much longer, for answers on their way.
    pub hold_grace: Duration,
    /// How long quotes are waited for.
    pub quote_wait: Duration,
    /// How long others are waited for after the first quote.
    pub quote_grace: Duration,
    /// When an unanswered message is repeated.
    pub resend: Duration,
    /// How often work at hand is reported on.
    pub heartbeat: Duration,
    /// When a silent party is given up.
    pub lost_after: Duration,
    /// How long inputs may travel.
    pub transfer_max: Duration,
    /// How long outputs are kept for collection.
    pub collect_max: Duration,
    /// How much longer than agreed an executor may take to end an execution.
    pub executor_grace: Duration,
    /// How long an interrupted execution waits for its client.
    pub interrupted_max: Duration,
    /// When a job that nobody can take looks again, at first.
    pub retry: Duration,
    /// How long a job waits for any fitting offer to appear.
    pub patience: Duration,
    /// How long a failing provider is left out, at first.
    pub exclude: Duration,
    /// When an unacknowledged voucher is repeated, at first.
    pub settle_retry: Duration,
    /// How often books are compared with some peer.
    pub pull: Duration,
    /// How often a blob is tried.
    pub fetch_tries: u32,
    /// How long work may be expected to wait for a slot.
    pub queue_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            offer_ttl: Duration::from_secs(300),
            hold: Duration::from_secs(5),
            hold_grace: Duration::from_secs(2),
            quote_wait: Duration::from_secs(4),
            quote_grace: Duration::from_millis(150),
            resend: Duration::from_secs(1),
            heartbeat: Duration::from_secs(1),
            lost_after: Duration::from_secs(8),
            transfer_max: Duration::from_secs(600),
            collect_max: Duration::from_secs(600),
            executor_grace: Duration::from_secs(10),
            interrupted_max: Duration::from_secs(120),
            retry: Duration::from_millis(250),
            patience: Duration::from_secs(3),
            exclude: Duration::from_secs(15),
            settle_retry: Duration::from_secs(1),
            pull: Duration::from_secs(60),
            fetch_tries: 3,
            queue_max: Duration::from_secs(3600),
        }
    }
}

/// One execution that a node is asked to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct ExecutionId {
    /// Under which agreement.
    pub agreement: AgreementId,
    /// Which unit.
    pub unit: u32,
}

/// What to run, and within which bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionOrder {
    /// Its name.
    pub id: ExecutionId,
    /// Whose it is: no other account's executions share its worker.
    pub tenant: AccountId,
    /// What runs it.
    pub runtime: Runtime,
    /// The program.
    pub spec: BlobRef,
    /// What the program reads.
    pub inputs: Vec<BlobRef>,
    /// How long it may run.
    pub run_max: Millis,
    /// Units of fuel that it may use, where its runtime counts them.
    pub fuel_max: u64,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Bytes of all outputs.
    pub output_bytes_max: u64,
    /// Which device of the offer.
    pub device: u16,
    /// Who may call on it, for a lease.
    pub client: PeerId,
    /// The model, for a lease of one.
    pub model: Option<ModelRef>,
    /// For a lease: until when, and how often usage is reported.
    pub lease: Option<(Wall, Millis)>,
    /// How long after a checkpoint the next is told; none if none is wanted.
    pub checkpoint_every: Option<Millis>,
    /// Where it goes on, if it does not begin.
    pub resume: Option<Checkpoint>,
}

/// What an executor says of an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecutionEvent {
    /// So far.
    Progress {
        /// Steps done.
        done: u64,
        /// Steps in all.
        total: u64,
    },
    /// A line of its log.
    Log(String),
    /// From here another execution of the unit could go on.
    Checkpoint {
        /// Steps done.
        done: u64,
        /// The buffers that the program keeps, stored already for a while.
        state: Vec<ProvidedOutput>,
    },
    /// Used since the last such event, during a lease.
    Interim(Vec<Usage>),
    /// Done.
    Finished {
        /// What came out, stored already.
        outputs: Vec<ProvidedOutput>,
        /// What was used.
        usage: Vec<Usage>,
    },
    /// Not done.
    Failed {
        /// Why.
        reason: Reason,
        /// What was used.
        usage: Vec<Usage>,
    },
}

/// An output of an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvidedOutput {
    /// What the spec calls it.
    pub name: Name,
    /// Its blob, in the store.
    pub blob: BlobRef,
    /// Its bytes, if they are few.
    pub inline: Option<Vec<u8>>,
}

/// What a peer is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// A connection to a peer came up.
    Connected {
        /// The peer.
        peer: PeerId,
        /// Whether it is on this machine.
        local: bool,
    },
    /// The last connection to a peer went down.
    Disconnected {
        /// The peer.
        peer: PeerId,
    },
    /// Something of the way to a peer was measured.
    Link {
        /// The peer.
        peer: PeerId,
        /// What.
        link: Way,
    },
    /// A peer said something.
    Message {
        /// Who.
        from: PeerId,
        /// What, verified as said by it.
        message: Box<Message>,
    },
    /// Something was gossiped.
    Gossip {
        /// For [`Output::Verdict`].
        token: u64,
        /// What.
        gossip: Box<Gossip>,
    },
    /// All records up to this one are on disk.
    Persisted(Lsn),
    /// The executor says something.
    Execution {
        /// Of which execution.
        id: ExecutionId,
        /// What.
        event: ExecutionEvent,
    },
    /// A blob that was to be fetched or kept is stored, or is not to be had.
    /// A result is on disk.
    Fetched {
        /// For which agreement.
        agreement: AgreementId,
        /// Which.
        blob: BlobId,
        /// Whether it is here.
        ok: bool,
    },
    /// The product of a challenge is computed and kept, or can't be had.
    Computed {
        /// Of which challenge.
        seed: Seed,
        /// The root over its rows.
        root: Option<Hash>,
    },
    /// A commitment's opening was checked.
    Verified {
        /// Whose.
        provider: PeerId,
        /// Whether it is right.
        result: Result<(), Wrong>,
    },
    /// Two results were compared.
    Compared {
        /// Which.
        id: ComparisonId,
        /// Whether they are equal within the tolerance; none if outputs that are said
        /// to be here can't be read.
        equal: Option<bool>,
    },
    /// A result's products were checked.
    ProductsChecked {
        /// Which.
        id: ResultId,
        /// Whether all are right; none if one can't be read, or what it is made of.
        right: Option<bool>,
    },
    /// An answer of this provider, which offers for that account, was not written with the
    /// weights that it names: two others say so.
    Forged(PeerId, AccountId),
    /// The user of a lease has counted so many more tokens, read and written. Nothing,
    /// once before the first, says that they are counted.
    Counted {
        /// Of which lease.
        agreement: AgreementId,
        /// Tokens read,
        read: u64,
        /// and written.
        written: u64,
    },
    /// A person wants something.
    Command(Command),
}

/// What a person wants.
#[derive(Debug, Clone)]
pub enum Command {
    /// Have a job done.
    Submit(Box<JobOrder>),
    /// Stop a job.
    Cancel(JobId),
    /// Have a provider show that it is as fast as its offer says.
    Challenge(PeerId),
    /// Have a provider show who was content with its work.
    AskReferences(PeerId),
    /// Announce the offer, or announce it anew; also one that was withdrawn.
    Announce,
    /// Sell something else from now on; also after a withdrawal.
    Provide(Box<ProviderConfig>),
    /// Take the offer back and begin nothing new.
    Withdraw,
    /// End all work for others now, by this node's own fault, and release the quotes
    /// that nobody took.
    Abandon,
    /// Declare something paid; where [`Peer::may_settle`] says that the payer
    /// has to be asked first, ask it.
    Settle(Box<Declaration>),
    /// Let these principals spend that much, and no more, beside what the configuration says;
    /// they replace those of the last such command. It is said again after each start.
    Grant(BTreeMap<Name, Budget>),
}

/// The operator's word that so much was paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// For what.
    pub on: SettleOn,
    /// How much.
    pub amount: Amount,
    /// How: an invoice number, a transfer. With the amount it names the
    /// payment: the same again is no second one.
    pub reference: Text<128>,
}

/// What a payment is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettleOn {
    /// A channel that there is.
    Channel(ChannelId),
    /// The channel on which a client will pay, or pays already.
    Payer {
        /// Its node.
        node: PeerId,
        /// Its account.
        account: AccountId,
    },
}

/// Why nothing can be declared paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSettled {
    /// We earn on no such channel.
    #[error("this node does not earn on that channel; only the payee declares what it was paid")]
    UnknownChannel,
    /// The payer is this node.
    #[error("this node can't pay itself; name the client's node")]
    Own,
    /// Zero.
    #[error("nothing was paid; name an amount above zero")]
    Nothing,
    /// The payer has not shown since the start what it knows to be paid.
    #[error("the client's node has not said yet what it knows to be paid; it must be connected")]
    NotInStep,
    /// The totals leave their type.
    #[error("that is more than an account can hold; check the amount")]
    TooMuch,
    /// No room for another channel.
    #[error("there are as many channels as this node keeps; settle on one that there is")]
    TooManyChannels,
}

/// A blob that a node is asked to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchOrder {
    /// For which agreement.
    pub agreement: AgreementId,
    /// From whom,
    pub from: PeerId,
    /// and under which agreement that serves it.
    pub under: AgreementId,
    /// What.
    pub blob: BlobRef,
    /// What for.
    pub what: Fetched,
}

/// What a blob is fetched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// An input: it need not survive a restart.
    Input,
    /// A result.
    Result,
    /// A part of a checkpoint: it survives a restart, and may go once it is not among
    /// [`Peer::needed_blobs`].
    State,
}

/// What bytes are kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// An input: it need not survive a restart.
    Input,
    /// A result that is in a record as well.
    Result,
    /// A result that is nowhere else: say [`Input::Fetched`] once it is on
    /// disk, or can't be.
    OnlyResult(AgreementId),
    /// A part of a checkpoint: the same, and see [`Fetched::State`].
    State(AgreementId),
}

/// What a peer wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Write this down; say [`Input::Persisted`] when it is on disk.
    Persist {
        /// Its position: one more than the last.
        lsn: Lsn,
        /// What.
        record: Box<Record>,
    },
    /// Say this to a peer. What it depends on is on disk.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        frame: Box<Frame>,
        /// The record that it needed.
        after: Lsn,
    },
    /// Gossip this.
    Publish {
        /// An envelope.
        bytes: Arc<[u8]>,
    },
    /// What to do with gossip.
    Verdict {
        /// As given with it.
        token: u64,
        /// What to do.
        verdict: Verdict,
    },
    /// Run this.
    Execute(Box<ExecutionOrder>),
    /// Stop that; the executor still says how it ended.
    Stop(ExecutionId),
    /// Fetch a blob from a peer; say [`Input::Fetched`].
    Fetch(FetchOrder),
    /// Keep these bytes.
    Store {
        /// Their hash, checked.
        blob: BlobId,
        /// The bytes.
        bytes: Vec<u8>,
        /// What for.
        kept: Kept,
    },
    /// Keep a blob at least until then; afterwards it may go.
    Retain {
        /// Which.
        blob: BlobId,
        /// Until when.
        until: Wall,
    },
    /// Compute a challenge's product and keep it; say [`Input::Computed`].
    Compute {
        /// What.
        challenge: Challenge,
        /// On which device of the offer.
        device: u16,
        /// How long it may take.
        run_max: Millis,
    },
    /// Open a product that was computed, and send that as [`Frame::Opened`].
    OpenProduct {
        /// Which.
        challenge: Challenge,
        /// What to open.
        open: Seed,
        /// To whom.
        to: PeerId,
    },
    /// A product is not needed any more.
    ForgetProduct(Seed),
    /// Check an opening; say [`Input::Verified`].
    Verify {
        /// Whose.
        provider: PeerId,
        /// Of what.
        challenge: Challenge,
        /// What it must lead to.
        root: Hash,
        /// What was asked for.
        seed: Seed,
        /// What came.
        opening: Box<Opening>,
    },
    /// Compare the floats of two results; say [`Input::Compared`]. There are at most
    /// [`COMPARISONS_MAX`](crate::limits::COMPARISONS_MAX) under way.
    Compare(Box<Comparison>),
    /// Check a result's products by [`holds`](crate::freivalds::Product::holds), with a seed that is drawn now;
    /// say [`Input::ProductsChecked`]. With comparisons there are at most
    /// [`COMPARISONS_MAX`](crate::limits::COMPARISONS_MAX) under way.
    CheckProducts(Box<ProductsCheck>),
    /// A peer did what an honest one can't do.
    Misbehaved {
        /// Who.
        peer: PeerId,
        /// What.
        what: &'static str,
    },
    /// Something that people may want to know.
    Event(Event),
}

impl Output {
    /// Whether somebody waits for it: all but lines of a provider's log.
    const fn is_awaited(&self) -> bool {
        match self {
            Self::Event(event) => match event {
                Event::Job { .. }
                | Event::Settled { .. }
                | Event::Challenged { .. }
                | Event::Referred { .. } => true,
                Event::Work { .. }
                | Event::Receipted { .. }
                | Event::Judged { .. }
                | Event::Earned { .. }
                | Event::Credited { .. }
                | Event::Frozen { .. } => false,
            },
            Self::Persist { .. }
            | Self::Send { .. }
            | Self::Publish { .. }
            | Self::Verdict { .. }
            | Self::Execute(_)
            | Self::Stop(_)
            | Self::Fetch(_)
            | Self::Store { .. }
            | Self::Retain { .. }
            | Self::Compute { .. }
            | Self::OpenProduct { .. }
            | Self::ForgetProduct(_)
            | Self::Verify { .. }
            | Self::Compare(_)
            | Self::CheckProducts(_)
            | Self::Misbehaved { .. } => true,
        }
    }
}

/// Something that people may want to know.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// About a job of ours.
    Job {
        /// Which.
        job: JobId,
        /// What.
        event: JobEvent,
    },
    /// We began work for somebody.
    Work {
        /// Under which agreement.
        agreement: AgreementId,
        /// For whom.
        client: PeerId,
    },
    /// We stated an execution.
    Receipted {
        /// Of which agreement.
        agreement: AgreementId,
        /// The receipt.
        receipt: ReceiptId,
        /// What is due.
        amount: Amount,
    },
    /// A client gave its word on a receipt of ours.
    Judged {
        /// Of which agreement.
        agreement: AgreementId,
        /// The receipt.
        receipt: ReceiptId,
        /// Its word.
        verdict: receipt::Verdict,
    },
    /// A voucher pays these receipts of ours.
    Earned {
        /// The receipts.
        receipts: Vec<ReceiptId>,
    },
    /// The provider acknowledged the voucher that pays these receipts.
    Settled {
        /// The receipts.
        receipts: Vec<ReceiptId>,
    },
    /// A provider says that we have paid.
    Credited {
        /// On which channel.
        channel: ChannelId,
        /// All that was ever paid.
        settled: Total,
    },
    /// A channel is frozen.
    Frozen {
        /// Which.
        channel: ChannelId,
    },
    /// A challenge of ours is over.
    Challenged {
        /// Who was challenged.
        provider: PeerId,
        /// What it came to, and what was wrong with it; or why it came to nothing.
        event: Result<(Outcome, Option<Wrong>), Unanswered>,
    },
    /// A provider was asked for references.
    Referred {
        /// Who.
        provider: PeerId,
        /// How many it showed, and how many of them are by accounts that we know; or
        /// why there are none.
        event: Result<(usize, usize), Unreferred>,
    },
}

/// A step of a job of ours.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEvent {
    /// It is written down.
    Submitted,
    /// It can't even be taken.
    Refused(Decline),
    /// Providers were asked.
    Asked {
        /// Which attempt.
        attempt: u32,
        /// Whom.
        peers: Vec<PeerId>,
    },
    /// One quoted.
    Quoted {
        /// Who.
        peer: PeerId,
        /// The most that it costs.
        cap: Amount,
    },
    /// One said no.
    Declined {
        /// Who.
        peer: PeerId,
        /// Why.
        decline: Decline,
    },
    /// We took a quote.
    Agreed {
        /// Whose.
        peer: PeerId,
        /// The agreement.
        agreement: AgreementId,
        /// The most that it costs.
        cap: Amount,
        /// Units that go on where others stopped, and after how many steps.
        resumed: Vec<(u32, u64)>,
    },
    /// The provider has the agreement.
    Started {
        /// The agreement.
        agreement: AgreementId,
    },
    /// So far.
    Progress(Progress),
    /// A line of its log.
    Log(LogLine),
    /// A result is here and accepted.
    Accepted {
        /// The receipt.
        receipt: ReceiptId,
        /// What it costs.
        amount: Amount,
    },
    /// A unit of an array, or one whose results were compared, is over.
    Decided {
        /// Which.
        unit: u32,
        /// Why it failed, if it did.
        failure: Option<Reason>,
    },
    /// A receipt was disputed.
    Disputed {
        /// Whose.
        peer: PeerId,
        /// Why.
        reason: Reason,
    },
    /// An agreement was given up.
    GaveUp {
        /// Whose.
        peer: PeerId,
        /// Why.
        reason: Reason,
    },
    /// It is over.
    Ended(JobEnd),
}

/// Work for somebody, as people see it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WorkView {
    /// The agreement.
    pub agreement: AgreementId,
    /// The job.
    pub job: JobId,
    /// The client's node.
    pub client: PeerId,
    /// The client's account.
    pub client_account: AccountId,
    /// `fetching`, `running`, `interrupted`, `reported` or `closed`.
    pub stage: &'static str,
    /// Steps done and in all.
    pub progress: (u64, u64),
    /// Its receipts.
    pub receipts: Vec<ReceiptId>,
}

/// Connections up to which each new one is asked for its book.
const PULLS_ON_CONNECT: usize = 8;

/// A node's mind. See the module's documentation.
#[derive(Debug)]
pub struct Peer {
    core: Core,
    book: Book,
    buyer: Buyer,
    seller: Seller,
    ledger: Ledger,
    challenger: Challenger,
    referrals: Referrals,
    pulls: BTreeMap<PeerId, Sweep>,
}

/// A comparison of books under way, in the order of provider ids.
#[derive(Debug)]
struct Sweep {
    /// The range asked for last.
    from: PeerId,
    to: Option<PeerId>,
    /// Where all of it ends, if before the book does.
    end: Option<PeerId>,
    tries: u32,
    /// Pages without news so far.
    idle: u32,
}

/// Life.
impl Peer {
    /// A peer without a past.
    pub fn new(now: Now, config: Config, signer: Signer, seed: [u8; 32]) -> Self {
        Self::restore(now, config, signer, seed, std::iter::empty())
    }

    /// A peer from the records of its journal, in order. Those of a checkpoint
    /// have the position of the last that they stand for.
    pub fn restore(
        now: Now,
        config: Config,
        signer: Signer,
        seed: [u8; 32],
        records: impl Iterator<Item = (Lsn, Record)>,
    ) -> Self {
        let mut peer = Self::replayed(now, config, signer, seed, records);
        peer.buyer.resume(&mut peer.core, &mut peer.ledger);
        peer.seller.resume(&mut peer.core);
        peer.ledger.resume(&mut peer.core);
        peer.core.wake(Timer::Book, Duration::ZERO);
        if peer.core.config.provider.is_some() {
            peer.core.wake(Timer::Renew, Duration::ZERO);
        }
        peer
    }

    /// The state that follows from records, before anything is done with it.
    fn replayed(
        now: Now,
        config: Config,
        signer: Signer,
        seed: [u8; 32],
        records: impl Iterator<Item = (Lsn, Record)>,
    ) -> Self {
        let born = envelope::Envelope::parse(&config.delegation.0)
            .map_or(Wall::from_millis(0), |delegation| {
                delegation.header().issued
            });
        let mut core = Core {
            config,
            signer,
            rng: ChaCha8Rng::from_seed(seed),
            now: Now {
                mono: now.mono,
                wall: now.wall.max(born),
            },
            born,
            timers: Timers::default(),
            outbox: Outbox::default(),
            connected: BTreeMap::new(),
            links: BTreeMap::new(),
            standings: Standings::default(),
        };
        let (mut buyer, mut seller, mut ledger) =
            (Buyer::default(), Seller::default(), Ledger::default());
        let mut book = Book::default();
        let mut last = Lsn(0);
        for (lsn, record) in records {
            last = last.max(lsn);
            match &record {
                Record::Took { quote, .. } => book.deal_with(quote.body().account),
                Record::Part(Part::Partners(accounts)) => {
                    accounts.iter().for_each(|&account| book.deal_with(account));
                }
                _ => {}
            }
            remember(&mut core, &record);
            buyer.replay(&mut core, &mut ledger, &record);
            seller.replay(&mut core, &mut ledger, &record);
            ledger.replay(&core, &record);
        }
        core.outbox.resume_after(last);
        Self {
            core,
            book,
            buyer,
            seller,
            ledger,
            challenger: Challenger::default(),
            referrals: Referrals::default(),
            pulls: BTreeMap::new(),
        }
    }

    /// One step: takes an input, and does what has become due.
    pub fn handle(&mut self, now: Now, input: Input) {
        // A clock that goes back must not move timers back.
        self.core.now = Now {
            mono: now.mono.max(self.core.now.mono),
            wall: now.wall.max(self.core.born),
        };
        match input {
            Input::Tick => {}
            Input::Connected { peer, local } => self.on_connected(peer, local),
            Input::Link { peer, link } => self.core.measured(peer, link),
            Input::Disconnected { peer } => {
                self.core.connected.remove(&peer);
                self.end_sweep(peer);
                self.buyer.on_connection(&mut self.core, peer);
            }
            Input::Message { from, message } => self.on_message(from, *message),
            Input::Gossip { token, gossip } => {
                let verdict = self.on_gossip(*gossip);
                self.core.output(Output::Verdict { token, verdict });
            }
            Input::Persisted(lsn) => self.core.outbox.persisted(lsn),
            Input::Execution { id, event } => {
                self.seller
                    .on_execution(&mut self.core, &mut self.ledger, id, event);
            }
            Input::Fetched {
                agreement,
                blob,
                ok,
            } => {
                self.buyer
                    .on_fetched(&mut self.core, &mut self.ledger, agreement, blob, ok);
                self.seller
                    .on_fetched(&mut self.core, &mut self.ledger, agreement, blob, ok);
            }
            Input::Computed { seed, root } => self.seller.on_computed(&mut self.core, seed, root),
            Input::Verified { provider, result } => {
                self.challenger
                    .on_verified(&mut self.core, provider, result);
            }
            Input::Compared { id, equal } => {
                self.buyer
                    .on_compared(&mut self.core, &mut self.ledger, id, equal);
            }
            Input::ProductsChecked { id, right } => {
                self.buyer
                    .on_products_checked(&mut self.core, &mut self.ledger, id, right);
            }
            Input::Counted {
                agreement,
                read,
                written,
            } => {
                let tokens = (read, written);
                self.buyer
                    .on_counted(&mut self.core, &mut self.ledger, agreement, tokens);
            }
            Input::Forged(node, account) => self.core.failed(node, account, Failing::Forged),
            Input::Command(command) => self.on_command(command),
        }
        while let Some(timer) = self.core.timers.pop_due(self.core.now.mono) {
            self.on_timer(timer);
        }
        self.seller.take_turns(&mut self.core);
    }

    /// What to do next, until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.core.outbox.pop()
    }

    /// When to call [`Peer::handle`] with [`Input::Tick`] at the latest.
    pub fn next_timeout(&self) -> Option<Mono> {
        self.core.timers.next()
    }
}

/// What it knows.
impl Peer {
    /// This node.
    pub fn id(&self) -> PeerId {
        self.core.me()
    }

    /// This node's account.
    pub const fn account(&self) -> AccountId {
        self.core.config.account
    }

    /// The offers that it knows.
    pub const fn book(&self) -> &Book {
        &self.book
    }

    /// Who could run a job, were it submitted now.
    pub fn plan(&self, order: &JobOrder, now: Wall) -> Plan {
        self.buyer.plan(&self.core, (&self.book, now), order)
    }

    /// Whether a blob is a result of ours that stays with whoever made it.
    pub fn is_staying(&self, blob: BlobId) -> bool {
        self.buyer.is_staying(self.core.now.wall, blob)
    }

    /// What it has seen of a provider itself: of its node, and of the account for which
    /// it offers, or did when it was challenged or found wrong.
    pub fn standing(&self, provider: PeerId) -> Option<Standing> {
        let standings = &self.core.standings;
        let offer = self.book.of(provider);
        let account = offer.map(|offer| offer.body().account);
        let account = account.or_else(|| {
            let mut known = standings.nodes();
            known.find_map(|(of, node)| (node == provider).then_some(of))
        })?;
        standings.of(provider, account)
    }

    /// All that it thinks of an account, and why.
    pub fn report(&self, account: AccountId, now: Wall) -> Report {
        Report::of(&self.core, &self.book, &self.ledger, account, now)
    }

    /// The same of all accounts of which it knows anything.
    pub fn reports(&self, now: Wall) -> Vec<Report> {
        Report::all(&self.core, &self.book, &self.ledger, now)
    }

    /// Its jobs.
    pub fn jobs(&self) -> Vec<JobView> {
        self.buyer.views()
    }

    /// One of its jobs, while that is in memory.
    pub fn job(&self, job: JobId) -> Option<JobView> {
        self.buyer.view(job)
    }

    /// What principals may spend, and have spent.
    pub fn budgets(&self) -> Vec<BudgetView> {
        self.buyer.budgets(&self.core)
    }

    /// The same of one.
    pub fn budget(&self, principal: &Name) -> BudgetView {
        self.buyer.budget(&self.core, principal)
    }

    /// Its work for others.
    pub fn work(&self) -> Vec<WorkView> {
        self.seller.views()
    }

    /// Its channels.
    pub fn channels(&self) -> Vec<ChannelView> {
        let mut views = self.ledger.views();
        if let Some(provider) = &self.core.config.provider {
            let reserved = self.seller.reserved();
            let credits = Credits::new(provider, &self.ledger, &reserved);
            for view in views.iter_mut().filter(|view| !view.paying) {
                let left = credits.left(view.parties.payer_account);
                view.credit_left = Some(Total::from_micros(left));
            }
        }
        views
    }

    /// Whether something can be declared paid now.
    ///
    /// # Errors
    /// [`NotSettled`] says why not.
    pub fn may_settle(&self, declaration: &Declaration) -> Result<(), NotSettled> {
        self.ledger.may_settle(&self.core, declaration)
    }

    /// Slots that are held or at work.
    pub fn slots_used(&self) -> u32 {
        self.seller.slots_used()
    }

    /// Holds that it gives.
    pub fn holds(&self) -> usize {
        self.seller.holds()
    }

    /// What its accepted receipts cost, over jobs in memory.
    pub fn accepted_total(&self) -> Total {
        self.buyer.accepted_total()
    }

    /// The last position that was handed out.
    pub const fn last_lsn(&self) -> Lsn {
        self.core.outbox.last()
    }

    /// The newest record that somebody waits for: up to there, records should
    /// be written at once. Those after it can gather for a moment, and share a
    /// sync with what follows.
    pub const fn awaited_lsn(&self) -> Lsn {
        self.core.outbox.awaited()
    }

    /// Whether the driver should feed it before it drains it further.
    pub const fn is_overloaded(&self) -> bool {
        self.core.outbox.waiting() > OUTPUTS_WAITING_MAX
    }

    /// Whether a peer may read a blob under an agreement. The answer to no is
    /// the same whether the blob is here or not.
    pub fn may_read(
        &self,
        now: Wall,
        reader: PeerId,
        agreement: AgreementId,
        blob: BlobId,
    ) -> bool {
        self.buyer.may_read(reader, agreement, blob)
            || self.seller.may_read(now, reader, agreement, blob)
    }

    /// Blobs that open jobs and open work still need, whatever their retention.
    pub fn needed_blobs(&self) -> BTreeSet<BlobId> {
        self.buyer
            .needed_blobs()
            .chain(self.seller.needed_blobs())
            .collect()
    }

    /// What must hold after every step. For debug builds and simulations.
    ///
    /// # Errors
    /// The sentence that does not hold.
    pub fn check_invariants(&self) -> Result<(), String> {
        if let Some(provider) = &self.core.config.provider {
            self.seller.check_slots(&provider.offer)?;
        }
        Ok(())
    }
}

/// Dispatch.
impl Peer {
    fn on_connected(&mut self, peer: PeerId, local: bool) {
        self.core.connected.insert(peer, local);
        self.buyer.on_connection(&mut self.core, peer);
        self.seller.on_connected(&mut self.core, peer);
        self.ledger.on_connected(&mut self.core, peer);
        // A well-connected node learns by gossip; it asks the first few for their books, and
        // whoever it knows no offer of for that one: gossip on a connection that just began
        // may get lost.
        let is_new = self.book.of(peer).is_none();
        let is_first = self.core.connected.len() <= PULLS_ON_CONNECT;
        if is_first || is_new {
            let all = (PeerId::from_bytes([0; 32]), None);
            let own = (peer, peer.next());
            self.pull_from(peer, if is_first { all } else { own });
            let again = self.core.config.timing.resend;
            self.core.wake(Timer::Book, again);
        }
    }

    fn on_message(&mut self, from: PeerId, message: Message) {
        let Self {
            core,
            book,
            buyer,
            seller,
            ledger,
            challenger,
            referrals,
            pulls: _,
        } = self;
        match message {
            Message::Ask(request) => {
                seller.on_ask(core, book, ledger, request);
            }
            Message::Quoted(quote) => buyer.on_quoted(core, ledger, quote),
            Message::Declined(request, decline) => {
                buyer.on_declined(core, ledger, from, request, decline);
            }
            Message::Agree(agreement, inline) => seller.on_agree(core, agreement, inline),
            Message::Agreed(agreement) => buyer.on_agreed(core, from, agreement),
            Message::AgreeRefused(agreement, decline) => {
                buyer.on_agree_refused(core, ledger, from, agreement, decline);
            }
            Message::Release(quote) => seller.on_release(core, from, quote),
            Message::Grant(grant) => seller.on_grant(core, from, &grant),
            Message::Progress(progress) => buyer.on_progress(core, from, progress),
            Message::Log(line) => buyer.on_log(core, from, line),
            Message::Cancel(agreement) => seller.on_cancel(core, ledger, from, agreement),
            Message::Resume(agreement, receipts, done, kept) => {
                seller.on_resume(core, ledger, from, agreement, (receipts, &done, kept));
            }
            Message::Checkpoint(agreement, kept, inline) => {
                buyer.on_checkpoint(core, from, agreement, kept, inline);
            }
            Message::Lost(agreement) => buyer.on_lost(core, ledger, from, agreement),
            Message::Receipt(receipt, inline) => {
                // Whoever works for us stays in the book when it is flooded.
                if let Some(account) = buyer.works_for_us(receipt.body().key.agreement) {
                    book.deal_with(account);
                }
                buyer.on_receipt(core, ledger, from, receipt, inline);
            }
            Message::Acceptance(acceptance) => seller.on_acceptance(core, ledger, acceptance),
            Message::Voucher(voucher) => ledger.on_voucher(core, voucher),
            Message::VoucherAck(ack) => ledger.on_ack(core, from, ack),
            Message::Heads(heads) => ledger.on_heads(core, from, heads),
            Message::Settlement(settlement) => ledger.on_settlement(core, from, &settlement),
            Message::Challenge(device, challenge) => {
                seller.on_challenge(core, from, device, challenge);
            }
            Message::ChallengeDeclined(seed, decline) => {
                challenger.on_declined(core, from, (seed, decline));
            }
            Message::Committed(seed, root) => challenger.on_committed(core, from, seed, root),
            Message::OpenCommitment(seed, open) => {
                seller.on_open_commitment(core, from, seed, open);
            }
            Message::Opened(seed, opening) => challenger.on_opened(core, from, seed, *opening),
            Message::AskReferences => referrals.on_asked(core, seller, from),
            Message::References {
                references,
                decline,
                fault,
            } => referrals.on_shown(core, ledger, from, (references, decline), fault),
            Message::Pull(pull) => answer_pull(core, book, from, &pull),
            Message::Offers {
                offers,
                next,
                fault,
            } => self.on_offers(from, offers, next, fault.is_some()),
        }
    }

    fn on_gossip(&mut self, gossip: Gossip) -> Verdict {
        let now = self.core.now.wall;
        match gossip {
            Gossip::Offer(offer) => self.book.insert(now, offer).verdict(),
            Gossip::Withdrawal(withdrawal) => self.book.withdraw(now, &withdrawal),
            Gossip::Revocation(revocation) => self.book.revoke(&revocation),
            // Well signed, by a later version: others may understand it.
            Gossip::Unread(_) => Verdict::Accept,
        }
    }

    fn on_offers(
        &mut self,
        from: PeerId,
        offers: Vec<Verified<Offer>>,
        next: Option<PeerId>,
        fault: bool,
    ) {
        if fault {
            self.core
                .misbehaved(from, "a page of the book with a forged offer");
        }
        let now = self.core.now.wall;
        let mut news = false;
        for offer in offers {
            news |= self.book.insert(now, offer).verdict() == Verdict::Accept;
        }
        let Some(sweep) = self.pulls.get_mut(&from) else {
            return;
        };
        match next {
            // A repeat of the page before.
            Some(next) if next <= sweep.from => {}
            Some(next) if sweep.end.is_some_and(|end| end <= next) => self.end_sweep(from),
            Some(next) => {
                sweep.idle += u32::from(!news && Some(next) != sweep.to);
                if sweep.idle > PULL_IDLE_MAX {
                    return self.end_sweep(from);
                }
                sweep.from = next;
                sweep.tries = 0;
                self.pull_on(from);
            }
            None => self.end_sweep(from),
        }
    }

    fn on_command(&mut self, command: Command) {
        let Self {
            core,
            book,
            buyer,
            seller,
            ledger,
            challenger,
            referrals,
            ..
        } = self;
        match command {
            Command::Challenge(provider) => challenger.challenge(core, book, provider),
            Command::AskReferences(provider) => referrals.ask(core, book, provider),
            Command::Submit(order) => buyer.submit(core, book, ledger, order),
            Command::Cancel(job) => buyer.cancel(core, ledger, job),
            Command::Announce => seller.announce(core, book),
            Command::Provide(provider) => {
                core.config.provider = Some(*provider);
                seller.announce(core, book);
            }
            Command::Withdraw => seller.withdraw(core, book),
            Command::Abandon => seller.abandon(core, ledger),
            Command::Settle(declaration) => ledger.settle(core, &declaration),
            Command::Grant(budgets) => buyer.grant(budgets),
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        let Self {
            core,
            book,
            buyer,
            seller,
            ledger,
            challenger,
            referrals,
            ..
        } = self;
        match timer {
            Timer::Renew => seller.renew(core, book),
            Timer::Book => self.tend_book(),
            Timer::Pull(peer) => self.pull_on(peer),
            Timer::Challenge(provider) => challenger.on_timer(core, provider),
            Timer::References(provider) => referrals.on_timer(core, book, provider),
            Timer::Job(job) => buyer.on_timer(core, book, ledger, job),
            Timer::Served(agreement) => buyer.watch(core, ledger, agreement),
            Timer::Hold(quote) => seller.on_release_expired(core, quote),
            Timer::Deal(agreement) => seller.on_deal_timer(core, ledger, agreement),
            Timer::Channel(channel) => ledger.on_channel_timer(core, channel),
            Timer::Payer(account, channel) => ledger.on_payer_timer(core, account, channel),
        }
    }

    /// Drops what has expired, and compares books with a peer now and then:
    /// what gossip has lost comes back that way.
    fn tend_book(&mut self) {
        if self.seller.is_outpriced(&self.core) {
            self.seller.renew(&mut self.core, &mut self.book);
        }
        use rand_core::Rng as _;
        self.book.expire(self.core.now.wall);
        self.seller.expire(&mut self.core);
        let count = u64::try_from(self.core.connected.len()).unwrap_or(u64::MAX);
        if count > 0 {
            let n = usize::try_from(self.core.rng.next_u64() % count).unwrap_or(0);
            if let Some(peer) = self.core.connected.keys().nth(n).copied() {
                self.pull_from(peer, (PeerId::from_bytes([0; 32]), None));
            }
        }
        let others = self
            .book
            .iter()
            .any(|offer| offer.signer() != self.core.me());
        let timing = &self.core.config.timing;
        // Who knows nobody asks again soon: the answer may have been lost.
        let pause = if others {
            timing.pull
        } else {
            timing.resend * 2
        };
        let pause = self.core.jittered(pause);
        self.core.wake(Timer::Book, pause);
    }

    /// Compares a range of the book with a peer's, unless that is under way.
    fn pull_from(&mut self, peer: PeerId, (from, end): (PeerId, Option<PeerId>)) {
        if self.pulls.contains_key(&peer) {
            return;
        }
        let sweep = Sweep {
            from,
            to: None,
            end,
            tries: 0,
            idle: 0,
        };
        self.pulls.insert(peer, sweep);
        self.pull_on(peer);
    }

    /// Asks for the next range, again while no answer comes.
    fn pull_on(&mut self, peer: PeerId) {
        let Some(sweep) = self.pulls.get_mut(&peer) else {
            return;
        };
        if sweep.tries > PULL_TRIES {
            return self.end_sweep(peer);
        }
        sweep.tries += 1;
        let pull = self.book.pull(sweep.from, sweep.end);
        sweep.to = pull.to;
        self.core.send(peer, Frame::Pull(pull));
        let again = self.core.config.timing.resend;
        self.core.wake(Timer::Pull(peer), again);
    }

    fn end_sweep(&mut self, peer: PeerId) {
        self.pulls.remove(&peer);
        self.core.timers.clear(Timer::Pull(peer));
    }
}

/// What a record says of others' standing, but for our words on receipts.
fn remember(core: &mut Core, record: &Record) {
    match record {
        Record::Challenged(outcome) => core.standings.challenged(outcome.clone()),
        Record::Failed(failure) => core.standings.failed(*failure),
        Record::Vouched(vouches) => core.standings.vouch(vouches.clone()),
        Record::Earned { voucher, ack } => ledger::has_paid(core, voucher, ack),
        Record::Part(Part::Results(account, results)) => {
            core.standings.recall(*account, (**results).clone());
        }
        _ => {}
    }
}

/// One page of what the asker lacks, and where it ends: the asker goes on from
/// there.
fn answer_pull(core: &mut Core, book: &Book, from: PeerId, pull: &Pull) {
    let mut lacking = book
        .lacking(pull)
        .filter(|offer| offer.expires() > core.now.wall);
    let page: Vec<_> = lacking
        .by_ref()
        .take(OFFERS_PER_PAGE)
        .map(Verified::raw)
        .collect();
    let next = lacking.next().map(Verified::signer).or(pull.to);
    drop(lacking);
    core.send(from, Frame::Offers(List::truncated(page), next));
}
