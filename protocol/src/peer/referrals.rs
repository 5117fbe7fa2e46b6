//! References: asked for, shown, and what they come to. See [`crate::reference`].
//!
//! ```text
//! agreement for a job with adaptive audits, or a person asks
//!    └▶ asked ──references──▶ those by accounts that we know are written down
//!         └─ declined, silent ─▶ nothing changes
//! ```
//!
//! References that nobody asked for are not looked at. All that one shows replaces what
//! it showed before: it can't add up over time, and takes as much room as one answer.
//! Who is asked looks through its work, so it answers a peer a few times an hour.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    Event,
    core::{Core, Timer},
    ledger::Ledger,
    seller::Seller,
};
use crate::{
    book::Book,
    ids::{AccountId, PeerId},
    limits::{REFERENCES_MAX, REFERENCES_OPEN_MAX, REFERENCES_PER_PEER, REFERRED_MAX, SKEW_MAX},
    message::{Decline, Frame},
    record::{Lsn, Record},
    reference::{NoReference, Referred},
    registry::Reason,
    standing::{
        Counted, REFERENCE_AGE_MAX, Results, Speeds, TRUSTED_AFTER, Trade, Vouch, Vouches, Weight,
    },
    units::{Mono, Wall},
    wire::List,
};

const HOUR: Duration = Duration::from_secs(3600);
/// How long an answer is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long references are not asked for again, unless a person asks.
const AGAIN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Why a provider's references are not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreferred {
    /// It is this node.
    Own,
    /// There is no offer of it.
    NoOffer,
    /// As many are asked as may be, or this one is.
    TooMany,
    /// It does not say.
    Declined(Decline),
    /// It did not answer.
    Silent,
}

/// Who is asked, and who has asked us.
#[derive(Debug, Default)]
pub(crate) struct Referrals {
    open: BTreeMap<PeerId, Open>,
    /// When we asked whom last, lately.
    asked: VecDeque<(Mono, AccountId)>,
    /// Whom we answered in the last hour.
    served: VecDeque<(Mono, PeerId)>,
}

#[derive(Debug)]
struct Open {
    account: AccountId,
    since: Mono,
    /// When it was asked last.
    said: Mono,
}

/// Asking.
impl Referrals {
    /// A person wants to know.
    pub(crate) fn ask(&mut self, core: &mut Core, book: &Book, provider: PeerId) {
        if let Err(why) = self.begin(core, book, provider) {
            let event = Err(why);
            core.tell(Event::Referred { provider, event });
        }
    }

    fn begin(&mut self, core: &mut Core, book: &Book, provider: PeerId) -> Result<(), Unreferred> {
        if provider == core.me() {
            return Err(Unreferred::Own);
        }
        let offer = book.of(provider).ok_or(Unreferred::NoOffer)?;
        if self.open.len() >= REFERENCES_OPEN_MAX || self.open.contains_key(&provider) {
            return Err(Unreferred::TooMany);
        }
        let (account, since) = (offer.body().account, core.now.mono);
        let open = Open {
            account,
            since,
            said: since,
        };
        self.open.insert(provider, open);
        self.asked.push_back((since, account));
        if self.asked.len() > REFERRED_MAX {
            self.asked.pop_front();
        }
        core.send(provider, Frame::AskReferences);
        core.wake(Timer::References(provider), core.config.timing.resend);
        Ok(())
    }

    /// Asks a provider that begins to work for us, or again whom we asked, or gives up.
    pub(crate) fn on_timer(&mut self, core: &mut Core, book: &Book, provider: PeerId) {
        let (now, resend) = (core.now.mono, core.config.timing.resend);
        let Some(open) = self.open.get_mut(&provider) else {
            if self.is_wanted(core, book, provider) {
                // What is not to be had now may be with the next agreement.
                let _ = self.begin(core, book, provider);
            }
            return;
        };
        if now.since(open.since) > ANSWER_MAX {
            return self.end(core, provider, Lsn(0), Err(Unreferred::Silent));
        }
        // Another agreement with it is no reason to repeat the question.
        if now.since(open.said) >= resend {
            open.said = now;
            core.send(provider, Frame::AskReferences);
        }
        core.wake(Timer::References(provider), resend);
    }

    /// Whether references would say anything that we don't know better.
    fn is_wanted(&mut self, core: &Core, book: &Book, provider: PeerId) -> bool {
        let (mono, wall) = (core.now.mono, core.now.wall);
        let Some(account) = book.of(provider).map(|offer| offer.body().account) else {
            return false;
        };
        let lately = |at: &Mono| mono.since(*at) < AGAIN_AFTER;
        self.asked.retain(|(at, _)| lately(at));
        let asked = self.asked.iter().any(|(_, asked)| *asked == account);
        let standings = &core.standings;
        let known = standings.of_account(account);
        let shown = known.map_or(0, |results| results.in_a_row.weight(wall).rounded());
        let fresh = (standings.referred_at(account)).is_some_and(|at| at.after(AGAIN_AFTER) > wall);
        account != core.config.account
            && !asked
            && !fresh
            && shown < TRUSTED_AFTER
            && known.is_none_or(|results| !results.is_doubted(wall))
            && standings.knows_others(account, wall)
    }

    /// A provider shows what it has.
    pub(crate) fn on_shown(
        &mut self,
        core: &mut Core,
        ledger: &Ledger,
        from: PeerId,
        (references, decline): (Vec<Referred>, Option<Decline>),
        fault: Option<NoReference>,
    ) {
        let Some(open) = self.open.get(&from) else {
            return;
        };
        if let Some(decline) = decline {
            return self.end(core, from, Lsn(0), Err(Unreferred::Declined(decline)));
        }
        let account = open.account;
        if fault.is_some() {
            core.misbehaved(
                from,
                "references that are forged, or to what was not accepted",
            );
        }
        let shown = references.len();
        let by = worth_keeping(core, ledger, account, references);
        let known = by.len();
        let mut lsn = Lsn(0);
        if known > 0 || core.standings.referred_at(account).is_some() {
            let vouches = Vouches {
                provider: account,
                at: core.now.wall,
                by: List::truncated(by),
            };
            lsn = core.persist(Record::Vouched(vouches.clone()));
            core.standings.vouch(vouches);
        }
        self.end(core, from, lsn, Ok((shown, known)));
    }

    fn end(
        &mut self,
        core: &mut Core,
        provider: PeerId,
        lsn: Lsn,
        event: Result<(usize, usize), Unreferred>,
    ) {
        self.open.remove(&provider);
        core.timers.clear(Timer::References(provider));
        core.tell_after(lsn, Event::Referred { provider, event });
    }
}

/// Of what a provider shows: what is its own, not too old, and by accounts that have
/// traded with us; of each the newest.
fn worth_keeping(
    core: &Core,
    ledger: &Ledger,
    account: AccountId,
    references: Vec<Referred>,
) -> Vec<Vouch> {
    let now = core.now.wall;
    let settled = |account| ledger.settled_share(account);
    let mut newest: BTreeMap<AccountId, Vouch> = BTreeMap::new();
    for one in references {
        let timely =
            one.at <= now.after(SKEW_MAX) && one.at.after(REFERENCE_AGE_MAX.duration()) > now;
        let others = one.client != account && one.client != core.config.account;
        let trade = || core.standings.trade(one.client, now, settled);
        if one.provider != account || !timely || !others || trade().weight() == Weight::ZERO {
            continue;
        }
        let vouch = Vouch {
            client: one.client,
            receipt: one.receipt,
            at: one.at,
            compared: one.compared,
        };
        let known = newest.get(&one.client);
        if known.is_none_or(|known| (known.compared, known.at) < (vouch.compared, vouch.at)) {
            newest.insert(one.client, vouch);
        }
    }
    newest.into_values().take(REFERENCES_MAX).collect()
}

/// Showing.
impl Referrals {
    pub(crate) fn on_asked(&mut self, core: &mut Core, seller: &Seller, from: PeerId) {
        let frame = match self.may_ask(core, from) {
            Ok(()) => {
                self.served.push_back((core.now.mono, from));
                Frame::References(List::truncated(seller.references(core)), None)
            }
            Err(reason) => Frame::References(List::default(), Some(reason.into())),
        };
        core.send(from, frame);
    }

    fn may_ask(&mut self, core: &Core, from: PeerId) -> Result<(), Reason> {
        let now = core.now.mono;
        let provider = core.config.provider.as_ref().ok_or(Reason::OFFER_GONE)?;
        let local = core.connected.get(&from).copied().unwrap_or(false);
        if provider.local_only && !local {
            return Err(Reason::NOT_ALLOWED);
        }
        let old = |(at, _): &(Mono, PeerId)| now.since(*at) > HOUR;
        while self.served.front().is_some_and(old) {
            self.served.pop_front();
        }
        let of_peer = self.served.iter().filter(|(_, peer)| *peer == from).count();
        let per_hour = usize::try_from(provider.references_per_hour).unwrap_or(usize::MAX);
        if per_hour == 0 {
            return Err(Reason::NOT_ALLOWED);
        }
        if of_peer >= REFERENCES_PER_PEER || self.served.len() >= per_hour {
            return Err(Reason::BUSY);
        }
        Ok(())
    }
}

/// All that a node thinks of an account, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Of whom.
    pub account: AccountId,
    /// Whether it is our own.
    pub own: bool,
    /// Its nodes: by their offers, and those of which something is known; what each has
    /// shown of its speed, and whether it has an offer.
    pub nodes: Vec<(PeerId, Speeds, bool)>,
    /// What became of its results.
    pub results: Results,
    /// Its trade with us.
    pub trade: Trade,
    /// References to it.
    pub references: Vec<Counted>,
    /// When it showed them.
    pub referred_at: Option<Wall>,
    /// What they weigh together.
    pub referred: Weight,
    /// In how many of 1,000 units its results are compared where audits are adaptive.
    pub audited: u32,
    /// Whether references count nothing, because we have found it wrong ourselves.
    pub doubted: bool,
    /// In how much of a thousand it failed us.
    pub failing: u16,
    /// Until when it is not asked for work.
    pub left_out_until: Option<Wall>,
    /// Its nodes whose last challenge was wrong: none of the others is asked.
    pub wrong: Vec<PeerId>,
}

impl Report {
    /// Of one account.
    pub(super) fn of(
        core: &Core,
        book: &Book,
        ledger: &Ledger,
        account: AccountId,
        now: Wall,
    ) -> Self {
        let nodes = nodes_of(core, book, |of| of == account);
        let nodes = nodes.get(&account).cloned().unwrap_or_default();
        Self::with(core, ledger, (account, &nodes), now)
    }

    /// Of all of whom anything is known.
    pub(super) fn all(core: &Core, book: &Book, ledger: &Ledger, now: Wall) -> Vec<Self> {
        let nodes = nodes_of(core, book, |_| true);
        let none = BTreeMap::new();
        let accounts = core.standings.accounts().into_iter();
        accounts
            .map(|account| {
                let nodes = nodes.get(&account).unwrap_or(&none);
                Self::with(core, ledger, (account, nodes), now)
            })
            .collect()
    }

    fn with(
        core: &Core,
        ledger: &Ledger,
        (account, nodes): (AccountId, &BTreeMap<PeerId, bool>),
        now: Wall,
    ) -> Self {
        let standings = &core.standings;
        let settled = |account| ledger.settled_share(account);
        let seen = |node: &PeerId| standings.of_node(*node).cloned().unwrap_or_default();
        let results = standings.of_account(account).cloned().unwrap_or_default();
        let wrong = |node: &&PeerId| {
            let last = standings.of_node(**node).and_then(Speeds::challenge);
            last.is_some_and(|outcome| !outcome.right)
        };
        Self {
            account,
            own: account == core.config.account,
            wrong: nodes.keys().filter(wrong).copied().collect(),
            nodes: nodes
                .iter()
                .map(|(node, offers)| (*node, seen(node), *offers))
                .collect(),
            trade: standings.trade(account, now, settled),
            references: standings.counted(account, now, settled),
            referred_at: standings.referred_at(account),
            referred: standings.referred(account, now, settled),
            audited: standings.audited(account, now, settled),
            doubted: results.is_doubted(now),
            failing: results.failing(now),
            left_out_until: results.left_out_until().filter(|until| *until > now),
            results,
        }
    }
}

/// The nodes of some accounts, and whether each has an offer.
fn nodes_of(
    core: &Core,
    book: &Book,
    wanted: impl Fn(AccountId) -> bool,
) -> BTreeMap<AccountId, BTreeMap<PeerId, bool>> {
    let mut nodes: BTreeMap<AccountId, BTreeMap<PeerId, bool>> = BTreeMap::new();
    let known = core.standings.nodes().map(|(of, node)| (of, node, false));
    let offering = (book.iter()).map(|offer| (offer.body().account, offer.signer(), true));
    for (of, node, offers) in known.chain(offering).filter(|(of, ..)| wanted(*of)) {
        nodes.entry(of).or_default().insert(node, offers);
    }
    nodes
}
