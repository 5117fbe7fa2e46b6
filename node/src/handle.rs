//! What the rest of the process may ask of the driver.
//!
//! A [`NodeHandle`] is cheap to clone and holds one end of a bounded channel;
//! the driver answers each question from the state that it owns. Nothing here
//! shares memory with the driver.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use suanli_protocol::{
    challenge::Wrong,
    envelope::Verified,
    ids::{AccountId, AgreementId, BlobId, JobId, PeerId},
    message::Decline,
    offer::{Name, Offer},
    peer::{
        Budget, BudgetView, ChannelView, Declaration, JobView, NotSettled, Report, Unanswered,
        Unreferred, WorkView,
    },
    rank::Plan,
    record::JobOrder,
    registry::{Feature, Reason},
    standing::{Outcome, Standing},
    units::{Amount, Wall},
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    api::types::JobLine,
    pause::Pause,
    store::Store,
    transport::{CallStream, PeerKey, PeerStatus, SendFailure, TransportCommand, TransportHandle},
};

/// Questions that may wait for the driver.
const ASKS: usize = 256;

/// What never changes while a node runs.
#[derive(Debug)]
pub struct NodeFacts {
    /// The network's name.
    pub network: String,
    /// Its unit of account.
    pub unit: String,
    /// Where the node says it is.
    pub region: String,
    /// The node.
    pub peer: PeerId,
    /// Its account.
    pub account: AccountId,
    /// When it started, in milliseconds since 1970.
    pub started_ms: u64,
    /// Whether it sells.
    pub providing: bool,
    /// Whether strangers are served only over loopback.
    pub local_only: bool,
    /// The sandbox level that its workers reach.
    pub sandbox: String,
    /// The most that a job costs whose file names no price.
    pub max_price: Amount,
    /// Of a hundred answers of models as many are scored by others.
    pub audit_percent: u8,
}

/// Asks the driver. Every method fails with [`Gone`] once the node is stopping.
#[derive(Debug, Clone)]
pub struct NodeHandle {
    pub(crate) facts: Arc<NodeFacts>,
    pub(crate) asks: mpsc::Sender<Ask>,
    pub(crate) store: Store,
    pub(crate) transport: TransportHandle,
}

/// What was asked through a [`NodeHandle`], for the driver.
#[derive(Debug)]
pub struct AskQueue(pub(crate) mpsc::Receiver<Ask>);

/// A handle, and the driver's end of it.
pub fn open(facts: NodeFacts, store: Store, transport: TransportHandle) -> (NodeHandle, AskQueue) {
    let (asks, queue) = mpsc::channel(ASKS);
    let handle = NodeHandle {
        facts: Arc::new(facts),
        asks,
        store,
        transport,
    };
    (handle, AskQueue(queue))
}

/// The node is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node is stopping")]
pub struct Gone;

/// A moment of the driver's state.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Jobs in memory.
    pub jobs: Vec<JobView>,
    /// Work for others in memory.
    pub work: Vec<WorkView>,
    /// All channels.
    pub channels: Vec<ChannelView>,
    /// Slots in use.
    pub slots_used: u32,
    /// Addresses that it listens on.
    pub listen: Vec<String>,
    /// What is wrong with the store, if anything.
    pub store_failed: Option<String>,
    /// Why nothing new is begun, if so.
    pub paused: Option<Pause>,
}

/// Why a job was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The disk is full or failed.
    #[error("{0}")]
    Store(String),
    /// A blob that it names is not here.
    #[error("blob {0:#} is not here; upload it first")]
    BlobMissing(BlobId),
    /// Too many jobs.
    #[error("the node has as many jobs as it takes; wait for some to end")]
    TooMany(Reason),
    /// Whom it is for may not spend that much.
    #[error(
        "it may cost {need}, and whom it is for has {left} of its budget left: lower `market.max_price`, wait for other jobs to end, or see `suanli budget`"
    )]
    OverBudget {
        /// What it may cost.
        need: Amount,
        /// What is left.
        left: Amount,
    },
}

impl NotTaken {
    /// The core's no.
    pub(crate) fn of(decline: Decline) -> Self {
        match decline.reason {
            Reason::PRINCIPAL_BUDGET => Self::OverBudget {
                need: Amount::from_micros(decline.need),
                left: Amount::from_micros(decline.have),
            },
            reason => Self::TooMany(reason),
        }
    }
}

/// Why an order to pause or to resume did not do all that it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotPaused {
    /// There is nothing to pause.
    #[error("this node sells nothing, so there is nothing to pause; buying is not paused")]
    SellsNothing,
    /// It holds, but won't survive the process.
    #[error(
        "it holds, but could not be kept for the next start: {0}; check the data directory's disk and owner"
    )]
    NotKept(String),
}

/// A question or an order to the driver.
#[derive(Debug)]
pub(crate) enum Ask {
    Snapshot(oneshot::Sender<Snapshot>),
    Job(JobId, oneshot::Sender<Option<JobView>>),
    Offers(oneshot::Sender<Vec<Verified<Offer>>>),
    Plan(Box<JobOrder>, oneshot::Sender<Plan>),
    Submit(Box<JobOrder>, oneshot::Sender<Result<(), NotTaken>>),
    Cancel(JobId, oneshot::Sender<bool>),
    Challenge(PeerId, oneshot::Sender<Challenged>),
    References(PeerId, oneshot::Sender<Shown>),
    Look(Look),
    Watch(JobId, oneshot::Sender<Option<Watch>>),
    Settle(
        Box<Declaration>,
        oneshot::Sender<Result<oneshot::Receiver<bool>, NotSettled>>,
    ),
    Announce(oneshot::Sender<()>),
    Sequence(PeerId, oneshot::Sender<Option<u64>>),
    Reached(PeerId, u64, oneshot::Sender<()>),
    Written(oneshot::Sender<bool>),
    Counted(AgreementId, (u64, u64)),
    Forged(PeerId, AccountId),
    Grant(BTreeMap<Name, Budget>, oneshot::Sender<()>),
    Pause {
        until: Option<Wall>,
        now: bool,
        reply: oneshot::Sender<Result<(), NotPaused>>,
    },
    Resume(oneshot::Sender<Result<(), NotPaused>>),
    Neighbour(String),
    Stop(oneshot::Sender<()>),
}

/// A question about accounts and principals.
#[derive(Debug)]
pub(crate) enum Look {
    Standing(PeerId, oneshot::Sender<Option<Standing>>),
    Staying(BTreeSet<BlobId>, oneshot::Sender<BTreeSet<BlobId>>),
    Budgets(oneshot::Sender<Vec<BudgetView>>),
    Budget(Name, oneshot::Sender<BudgetView>),
    Report(AccountId, oneshot::Sender<Report>),
    Reports(oneshot::Sender<Vec<Report>>),
}

/// What a challenge came to, and what was wrong with it; or why it came to nothing.
pub type Challenged = Result<(Outcome, Option<Wrong>), Unanswered>;

/// How many references a provider showed, and how many of them are by accounts that this
/// node has traded with; or why none.
pub type Shown = Result<(usize, usize), Unreferred>;

/// What happened to a job so far, and what happens from now on. The stream
/// ends when nothing more can happen, or when its reader is too slow.
#[derive(Debug)]
pub struct Watch {
    /// So far, oldest first; the beginning may be gone.
    pub past: Vec<JobLine>,
    /// From now on.
    pub lines: mpsc::Receiver<JobLine>,
}

impl NodeHandle {
    /// What never changes.
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// The journal, its index and the blobs.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Jobs, work, channels and the node's health, now.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn snapshot(&self) -> Result<Snapshot, Gone> {
        self.ask(Ask::Snapshot).await
    }

    /// One job, if it is in memory.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn job(&self, job: JobId) -> Result<Option<JobView>, Gone> {
        self.ask(|reply| Ask::Job(job, reply)).await
    }

    /// The offers in the book.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn offers(&self) -> Result<Vec<Verified<Offer>>, Gone> {
        self.ask(Ask::Offers).await
    }

    /// Who could run a job, best first, and who not.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn plan(&self, order: Box<JobOrder>) -> Result<Plan, Gone> {
        self.ask(|reply| Ask::Plan(order, reply)).await
    }

    /// Hands a job in. It is on disk when this returns, and a repeat of the
    /// same id is not a second job.
    ///
    /// # Errors
    /// [`Gone`]; inside, why it was not taken.
    pub async fn submit(&self, order: Box<JobOrder>) -> Result<Result<(), NotTaken>, Gone> {
        self.ask(|reply| Ask::Submit(order, reply)).await
    }

    /// Cancels a job; false if it is not known or over. Returns when that is on
    /// disk.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn cancel(&self, job: JobId) -> Result<bool, Gone> {
        self.ask(|reply| Ask::Cancel(job, reply)).await
    }

    /// Tells how many more tokens of a lease were read and written: receipts are held
    /// against that. Nothing, once before the first question, begins the count.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn counted(
        &self,
        agreement: AgreementId,
        (read, written): (u64, u64),
    ) -> Result<(), Gone> {
        let counted = Ask::Counted(agreement, (read, written));
        self.asks.send(counted).await.map_err(|_| Gone)
    }

    /// Tells that a provider, which offers for that account, has not written an answer with
    /// the weights that it names: two others say so.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn forged(&self, provider: PeerId, account: AccountId) -> Result<(), Gone> {
        let forged = Ask::Forged(provider, account);
        self.asks.send(forged).await.map_err(|_| Gone)
    }

    /// Calls a peer, for a lease.
    ///
    /// # Errors
    /// [`Gone`]; inside, why it can't be called.
    pub async fn call(&self, peer: PeerId) -> Result<Result<CallStream, SendFailure>, Gone> {
        let (reply, answer) = oneshot::channel();
        let to = PeerKey::new(*peer.as_bytes());
        let call = TransportCommand::Call { to, reply };
        self.transport.send(call).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Has a provider show its speed, and returns when it has, or has not.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn challenge(&self, provider: PeerId) -> Result<Challenged, Gone> {
        self.ask(|reply| Ask::Challenge(provider, reply)).await
    }

    /// What this node has seen of a provider itself.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn standing(&self, provider: PeerId) -> Result<Option<Standing>, Gone> {
        self.ask(|reply| Ask::Look(Look::Standing(provider, reply)))
            .await
    }

    /// Which of these are results that stay with whoever made them.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn staying(&self, blobs: BTreeSet<BlobId>) -> Result<BTreeSet<BlobId>, Gone> {
        self.ask(|reply| Ask::Look(Look::Staying(blobs, reply)))
            .await
    }

    /// What principals may spend, and have spent.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn budgets(&self) -> Result<Vec<BudgetView>, Gone> {
        self.ask(|reply| Ask::Look(Look::Budgets(reply))).await
    }

    /// The same of one.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn budget(&self, principal: Name) -> Result<BudgetView, Gone> {
        self.ask(|reply| Ask::Look(Look::Budget(principal, reply)))
            .await
    }

    /// Gives principals budgets, beside those of the configuration and instead of all that
    /// were given before. They hold when this returns, and until the node ends.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn grant(&self, budgets: BTreeMap<Name, Budget>) -> Result<(), Gone> {
        self.ask(|reply| Ask::Grant(budgets, reply)).await
    }

    /// All that this node thinks of an account.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn report(&self, account: AccountId) -> Result<Report, Gone> {
        self.ask(|reply| Ask::Look(Look::Report(account, reply)))
            .await
    }

    /// The same of all accounts of which it knows anything.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn reports(&self) -> Result<Vec<Report>, Gone> {
        self.ask(|reply| Ask::Look(Look::Reports(reply))).await
    }

    /// Asks a provider who was content with its work, and returns when it has said so,
    /// or has not.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn ask_references(&self, provider: PeerId) -> Result<Shown, Gone> {
        self.ask(|reply| Ask::References(provider, reply)).await
    }

    /// Follows a job; `None` if it is not in memory.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn watch(&self, job: JobId) -> Result<Option<Watch>, Gone> {
        self.ask(|reply| Ask::Watch(job, reply)).await
    }

    /// Declares something paid. Returns when that is on disk, or at once if it
    /// can't be: with [`NotSettled::NotInStep`] the payer is being asked, and
    /// it may be tried again.
    ///
    /// # Errors
    /// [`Gone`]; inside, why not.
    pub async fn settle(
        &self,
        declaration: Box<Declaration>,
    ) -> Result<Result<(), NotSettled>, Gone> {
        let answer = self.ask(|reply| Ask::Settle(declaration, reply)).await?;
        let written = match answer {
            Ok(written) => written,
            Err(why) => return Ok(Err(why)),
        };
        written.await.map_err(|_| Gone)?;
        Ok(Ok(()))
    }

    /// Announces this node's offer anew.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn announce(&self) -> Result<(), Gone> {
        self.ask(Ask::Announce).await
    }

    /// The sequence of a provider's offer in the book.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn sequence_of(&self, provider: PeerId) -> Result<Option<u64>, Gone> {
        self.ask(|reply| Ask::Sequence(provider, reply)).await
    }

    /// Returns once the book has an offer of a provider with this sequence or a
    /// later one. Bounded: of very many who wait, the earliest is given up.
    ///
    /// # Errors
    /// [`Gone`], also when given up.
    pub async fn sequence_reached(&self, provider: PeerId, sequence: u64) -> Result<(), Gone> {
        self.ask(|reply| Ask::Reached(provider, sequence, reply))
            .await
    }

    /// Returns when all that has happened so far is on disk, and so in the
    /// store; false if the disk takes nothing now.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn written(&self) -> Result<bool, Gone> {
        self.ask(Ask::Written).await
    }

    /// Begins nothing new for others, until then or until a resume. With `now`, what
    /// runs for them ends, as this node's fault.
    ///
    /// # Errors
    /// [`Gone`]; inside, what of it was not done.
    pub async fn pause(
        &self,
        until: Option<Wall>,
        now: bool,
    ) -> Result<Result<(), NotPaused>, Gone> {
        self.ask(|reply| Ask::Pause { until, now, reply }).await
    }

    /// Sells again, whatever the configured hours say until they change.
    ///
    /// # Errors
    /// [`Gone`]; inside, what of it was not done.
    pub async fn resume(&self) -> Result<Result<(), NotPaused>, Gone> {
        self.ask(Ask::Resume).await
    }

    /// Says that another program uses the device now.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn neighbour(&self, name: String) -> Result<(), Gone> {
        self.asks.send(Ask::Neighbour(name)).await.map_err(|_| Gone)
    }

    /// The connected peers.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn peers(&self) -> Result<Vec<PeerStatus>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.transport
            .send(TransportCommand::Peers { reply })
            .await
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Stops the node cleanly; returns when it has begun to.
    ///
    /// # Errors
    /// [`Gone`] if it is stopping already.
    pub async fn stop(&self) -> Result<(), Gone> {
        self.ask(Ask::Stop).await
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(question(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}

/// A decline as a registered name and a sentence with its figures.
pub fn decline_words(decline: &Decline) -> (String, String) {
    let Decline { reason, need, have } = decline;
    let sentence = match (*need, *have) {
        (0, 0) => reason.sentence().to_owned(),
        (need, have)
            if matches!(
                *reason,
                Reason::OVER_BUDGET
                    | Reason::CREDIT_EXHAUSTED
                    | Reason::STRANGERS_EXHAUSTED
                    | Reason::COUNTER_REFUSED
            ) =>
        {
            let (need, have) = (Amount::from_micros(need), Amount::from_micros(have));
            format!("{} (needs {need}, there is {have})", reason.sentence())
        }
        (need, _) if *reason == Reason::NO_FEATURE => {
            let feature = Feature(u16::try_from(need).unwrap_or(u16::MAX));
            format!("{} ({feature})", reason.sentence())
        }
        (need, have) => format!("{} (needs {need}, there is {have})", reason.sentence()),
    };
    (reason.to_string(), sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decline_names_the_feature_that_is_missing() {
        let decline = Decline {
            reason: Reason::NO_FEATURE,
            need: Feature::SUBGROUPS.0.into(),
            have: 0,
        };
        let (name, sentence) = decline_words(&decline);
        assert_eq!(name, "no-feature");
        assert!(sentence.ends_with("asks for (subgroups)"), "{sentence}");
        let (_, sentence) = decline_words(&Reason::NO_FEATURE.into());
        assert_eq!(sentence, Reason::NO_FEATURE.sentence());
    }
}
