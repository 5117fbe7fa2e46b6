//! What every part of a peer shares: keys, clocks, timers, and the way out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;

use super::{Config, Event, Output};
use crate::{
    book::Book,
    envelope::{Body, Signer, Verified},
    ids::{AccountId, AgreementId, ChannelId, JobId, NetworkId, PeerId, QuoteId},
    limits::LINKS_MAX,
    message::Frame,
    rank::{View, Way},
    record::{Lsn, Record},
    registry::Reason,
    standing::{Failing, Failure, Standings},
    units::{Mono, Now, Wall},
};

/// Something that a peer does later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Renew the offer.
    Renew,
    /// Drop what has expired, and compare books with somebody.
    Book,
    /// An unanswered pull.
    Pull(PeerId),
    /// A job of ours.
    Job(JobId),
    /// An agreement under which somebody works for us.
    Served(AgreementId),
    /// A hold that we gave.
    Hold(QuoteId),
    /// Work that we do.
    Deal(AgreementId),
    /// A voucher without acknowledgement, or a channel out of step.
    Channel(ChannelId),
    /// A payer that has not shown us its head, or not our newest settlement.
    Payer(AccountId, ChannelId),
    /// A challenge of ours.
    Challenge(PeerId),
    /// A provider whose references are wanted, or were asked for.
    References(PeerId),
}

/// Timers by what they are for: setting one again moves it.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    at: BTreeMap<Timer, Mono>,
    order: BTreeSet<(Mono, Timer)>,
}

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, at: Mono) {
        self.clear(timer);
        self.at.insert(timer, at);
        self.order.insert((at, timer));
    }

    pub(crate) fn clear(&mut self, timer: Timer) {
        if let Some(at) = self.at.remove(&timer) {
            self.order.remove(&(at, timer));
        }
    }

    pub(crate) fn next(&self) -> Option<Mono> {
        self.order.first().map(|(at, _)| *at)
    }

    pub(crate) fn pop_due(&mut self, now: Mono) -> Option<Timer> {
        let &(at, timer) = self.order.first()?;
        if at > now {
            return None;
        }
        self.clear(timer);
        Some(timer)
    }
}

/// Outputs on their way out. What depends on a record waits until the driver
/// says that the record is on disk; all else leaves at once.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    ready: VecDeque<Output>,
    waiting: BTreeMap<Lsn, Vec<Output>>,
    waiting_count: usize,
    last: Lsn,
    durable: Lsn,
    /// The newest record that something waits for which others wait for.
    awaited: Lsn,
}

impl Outbox {
    pub(crate) fn resume_after(&mut self, last: Lsn) {
        self.last = last;
        self.durable = last;
        self.awaited = last;
    }

    fn persist(&mut self, record: Record) -> Lsn {
        self.last = Lsn(self.last.0 + 1);
        self.ready.push_back(Output::Persist {
            lsn: self.last,
            record: Box::new(record),
        });
        self.last
    }

    fn after(&mut self, lsn: Lsn, output: Output) {
        if lsn <= self.durable {
            self.ready.push_back(output);
        } else {
            if output.is_awaited() {
                self.awaited = self.awaited.max(lsn);
            }
            self.waiting.entry(lsn).or_default().push(output);
            self.waiting_count += 1;
        }
    }

    pub(crate) fn persisted(&mut self, lsn: Lsn) {
        self.durable = self.durable.max(lsn.min(self.last));
        while let Some(entry) = self.waiting.first_entry() {
            if *entry.key() > self.durable {
                break;
            }
            let outputs = entry.remove();
            self.waiting_count -= outputs.len();
            self.ready.extend(outputs);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Output> {
        self.ready.pop_front()
    }

    pub(crate) const fn waiting(&self) -> usize {
        self.waiting_count
    }

    /// The newest record on which something depends that can't wait.
    pub(crate) const fn awaited(&self) -> Lsn {
        self.awaited
    }

    /// The newest record, on disk or not.
    pub(crate) const fn last(&self) -> Lsn {
        self.last
    }
}

/// Keys, clocks, timers and the way out.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) signer: Signer,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) now: Now,
    pub(crate) timers: Timers,
    pub(crate) outbox: Outbox,
    /// Whom we are connected with, and whether they are on this machine.
    pub(crate) connected: BTreeMap<PeerId, bool>,
    /// The ways to others, as far as they were measured.
    pub(crate) links: BTreeMap<PeerId, Way>,
    /// What we have seen of others.
    pub(crate) standings: Standings,
    /// When our account gave us our power. Nothing that we sign is older:
    /// nobody would take it, and our own journal could not be read again.
    pub(crate) born: Wall,
}

impl Core {
    pub(crate) fn me(&self) -> PeerId {
        self.signer.public().peer()
    }

    /// What is known of a provider.
    ///
    /// # Errors
    /// Why it is not asked.
    pub(crate) fn view(&self, provider: PeerId, book: &Book, now: Wall) -> Result<View, Reason> {
        let link = self.links.get(&provider).copied().unwrap_or_default();
        let Some(offer) = book.of(provider) else {
            return Ok(View {
                link,
                ..View::UNKNOWN
            });
        };
        let account = offer.body().account;
        Ok(View {
            believed: self.standings.opinion(provider, account, now)?,
            failing: self.standings.failing(account, now),
            link,
            holds: 0,
        })
    }

    /// Remembers that a provider failed us.
    pub(crate) fn failed(&mut self, provider: PeerId, account: AccountId, how: Failing) {
        let failure = Failure {
            account,
            provider,
            how,
            at: self.now.wall,
        };
        self.persist(Record::Failed(failure));
        self.standings.failed(failure);
    }

    /// The way to a peer was measured.
    pub(crate) fn measured(&mut self, peer: PeerId, link: Way) {
        if self.links.len() >= LINKS_MAX && !self.links.contains_key(&peer) {
            // Whom we are not connected with we know least about.
            let gone = self
                .links
                .keys()
                .find(|peer| !self.connected.contains_key(peer));
            match gone.copied() {
                Some(gone) => self.links.remove(&gone),
                None => return,
            };
        }
        let known = self.links.entry(peer).or_default();
        *known = known.and(link);
    }

    /// This node, and whom it acts for.
    pub(crate) fn identity(&self) -> (PeerId, AccountId) {
        (self.me(), self.config.account)
    }

    pub(crate) const fn network(&self) -> NetworkId {
        self.signer.network()
    }

    /// Signs a statement that holds until revoked.
    pub(crate) fn sign<T: Body>(&self, body: T) -> Verified<T> {
        self.sign_until(Wall::from_millis(u64::MAX), body)
    }

    pub(crate) fn sign_until<T: Body>(&self, expires: Wall, body: T) -> Verified<T> {
        self.signer.sign(self.now.wall, expires, body)
    }

    /// Writes something down. What may be seen only afterwards names the
    /// position returned.
    pub(crate) fn persist(&mut self, record: Record) -> Lsn {
        self.outbox.persist(record)
    }

    /// Sends something signed again, or says that something is stored: it
    /// leaves when all that is written so far is on disk.
    pub(crate) fn send_again(&mut self, to: PeerId, frame: Frame) {
        self.send_after(self.outbox.last(), to, frame);
    }

    /// Sends a frame that depends on nothing written.
    pub(crate) fn send(&mut self, to: PeerId, frame: Frame) {
        self.send_after(Lsn(0), to, frame);
    }

    pub(crate) fn send_after(&mut self, lsn: Lsn, to: PeerId, frame: Frame) {
        self.outbox.after(
            lsn,
            Output::Send {
                to,
                frame: Box::new(frame),
                after: lsn,
            },
        );
    }

    pub(crate) fn output_after(&mut self, lsn: Lsn, output: Output) {
        self.outbox.after(lsn, output);
    }

    pub(crate) fn output(&mut self, output: Output) {
        self.outbox.after(Lsn(0), output);
    }

    /// Tells people, once what it says is on disk.
    pub(crate) fn tell_after(&mut self, lsn: Lsn, event: Event) {
        self.outbox.after(lsn, Output::Event(event));
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.tell_after(Lsn(0), event);
    }

    pub(crate) fn misbehaved(&mut self, peer: PeerId, what: &'static str) {
        self.output(Output::Misbehaved { peer, what });
    }

    /// Sets a timer a duration from now.
    pub(crate) fn wake(&mut self, timer: Timer, after: std::time::Duration) {
        let at = self.now.mono.after(after);
        self.timers.set(timer, at);
    }

    /// A duration, up to a quarter longer: so that many peers don't act in step.
    pub(crate) fn jittered(&mut self, duration: std::time::Duration) -> std::time::Duration {
        let quarter = u64::try_from(duration.as_micros() / 4)
            .unwrap_or(u64::MAX)
            .max(1);
        duration + std::time::Duration::from_micros(self.rng.next_u64() % quarter)
    }
}
