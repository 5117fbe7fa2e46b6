//! The offers that a node knows now.
//!
//! One live offer per provider; a higher sequence replaces a lower one; what
//! is expired, early, withdrawn or revoked never gets in. The book is a cache
//! of what others signed and is rebuilt by pulling it from a peer. It never
//! grows over its caps, and when full it keeps what it has and the accounts
//! that its owner has dealt with, so that a flood of new identities displaces
//! nobody.

mod index;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

pub(crate) use self::index::{Class, Head, Index, Row};
use crate::{
    delegation::Revocation,
    envelope::Verified,
    ids::{AccountId, OfferId, PeerId},
    limits::{BOOK_OFFERS_MAX, BOOK_OFFERS_PER_ACCOUNT, PULL_KNOWN_MAX, SKEW_MAX},
    message::{Known, Pull, Verdict},
    offer::{Offer, Withdrawal},
    units::Wall,
    wire::List,
};

/// The offer book.
#[derive(Debug, Clone)]
pub struct Book {
    /// Offers that it takes.
    room: usize,
    offers: BTreeMap<PeerId, Verified<Offer>>,
    index: Index,
    names: BTreeMap<OfferId, PeerId>,
    per_account: BTreeMap<AccountId, usize>,
    /// The highest withdrawn sequence and when that can be forgotten.
    withdrawn: BTreeMap<PeerId, (u64, Wall)>,
    revoked: BTreeMap<(AccountId, PeerId), Wall>,
    dealt_with: BTreeSet<AccountId>,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The provider was not in the book.
    New,
    /// It replaced an older offer of the same provider.
    Replaced,
    /// It was there already.
    Known,
    /// The book has a newer one, or it was withdrawn.
    Outdated,
    /// Its time is over.
    Expired,
    /// It is from further in the future than clocks may differ.
    Early,
    /// The book, or the account's share of it, is full.
    Full,
    /// The account has revoked the node.
    Revoked,
}

impl Inserted {
    /// What to tell the gossip layer: an honest forwarder could not know our
    /// clock or our caps, so nothing here is anybody's fault.
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::New | Self::Replaced => Verdict::Accept,
            Self::Known
            | Self::Outdated
            | Self::Expired
            | Self::Early
            | Self::Full
            | Self::Revoked => Verdict::Ignore,
        }
    }
}

impl Default for Book {
    fn default() -> Self {
        Self::with_room(BOOK_OFFERS_MAX)
    }
}

impl Book {
    /// One that takes so many offers.
    pub const fn with_room(room: usize) -> Self {
        Self {
            room,
            offers: BTreeMap::new(),
            index: Index::new(),
            names: BTreeMap::new(),
            per_account: BTreeMap::new(),
            withdrawn: BTreeMap::new(),
            revoked: BTreeMap::new(),
            dealt_with: BTreeSet::new(),
        }
    }

    /// How many offers it has.
    pub fn len(&self) -> usize {
        self.offers.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.offers.is_empty()
    }

    /// All offers, by provider.
    pub fn iter(&self) -> impl Iterator<Item = &Verified<Offer>> {
        self.offers.values()
    }

    /// What of them is laid out to be looked through fast.
    pub(crate) const fn index(&self) -> &Index {
        &self.index
    }

    /// A provider's offer.
    pub fn of(&self, provider: PeerId) -> Option<&Verified<Offer>> {
        self.offers.get(&provider)
    }

    /// An offer by name, while it is the provider's current one.
    pub fn named(&self, offer: OfferId) -> Option<&Verified<Offer>> {
        self.offers.get(self.names.get(&offer)?)
    }

    /// Whether an account's offers survive a flood.
    pub fn deal_with(&mut self, account: AccountId) {
        if self.dealt_with.len() < self.room {
            self.dealt_with.insert(account);
        }
    }

    /// The accounts whose offers do.
    pub(crate) fn partners(&self) -> impl Iterator<Item = AccountId> {
        self.dealt_with.iter().copied()
    }

    /// Takes an offer, if it is current and there is room.
    pub fn insert(&mut self, now: Wall, offer: Verified<Offer>) -> Inserted {
        let (peer, account) = (offer.signer(), offer.body().account);
        if offer.expires() <= now {
            return Inserted::Expired;
        }
        if offer.issued() > now.after(SKEW_MAX) {
            return Inserted::Early;
        }
        if self
            .revoked
            .get(&(account, peer))
            .is_some_and(|&since| offer.issued() >= since)
        {
            return Inserted::Revoked;
        }
        let sequence = offer.body().sequence;
        if self
            .withdrawn
            .get(&peer)
            .is_some_and(|&(upto, _)| sequence <= upto)
        {
            return Inserted::Outdated;
        }
        let replaced = match self.offers.get(&peer) {
            Some(known) if known.hash() == offer.hash() => return Inserted::Known,
            Some(known) if known.body().sequence >= sequence => return Inserted::Outdated,
            Some(_) => true,
            None => false,
        };
        if replaced {
            self.remove(peer);
        }
        let of_account = self.per_account.get(&account).copied().unwrap_or(0);
        if of_account >= BOOK_OFFERS_PER_ACCOUNT || !self.make_room(now, account) {
            return Inserted::Full;
        }
        *self.per_account.entry(account).or_default() += 1;
        self.names.insert(OfferId(offer.hash()), peer);
        self.index.insert(&offer);
        self.offers.insert(peer, offer);
        if replaced {
            Inserted::Replaced
        } else {
            Inserted::New
        }
    }

    /// Takes a provider's word that its offers no longer stand.
    pub fn withdraw(&mut self, now: Wall, withdrawal: &Verified<Withdrawal>) -> Verdict {
        let (peer, upto) = (withdrawal.signer(), withdrawal.body().sequence);
        if withdrawal.expires() <= now || withdrawal.issued() > now.after(SKEW_MAX) {
            return Verdict::Ignore;
        }
        if self
            .withdrawn
            .get(&peer)
            .is_some_and(|&(known, _)| known >= upto)
        {
            return Verdict::Ignore;
        }
        if self.withdrawn.len() >= self.room {
            return Verdict::Ignore;
        }
        self.withdrawn.insert(peer, (upto, withdrawal.expires()));
        if self
            .of(peer)
            .is_some_and(|offer| offer.body().sequence <= upto)
        {
            self.remove(peer);
        }
        Verdict::Accept
    }

    /// Takes an account's word that a node no longer acts for it.
    pub fn revoke(&mut self, revocation: &Verified<Revocation>) -> Verdict {
        let account = revocation.header().signer.account();
        let (peer, since) = (revocation.body().node, revocation.body().since);
        let key = (account, peer);
        if self.revoked.get(&key).is_some_and(|&known| known <= since)
            || !self.make_room_for_revocation(account)
        {
            return Verdict::Ignore;
        }
        self.revoked.insert(key, since);
        let stands = self
            .of(peer)
            .is_some_and(|offer| offer.body().account == account && offer.issued() >= since);
        if stands {
            self.remove(peer);
        }
        Verdict::Accept
    }

    /// Whether an account had revoked a node when that signed something.
    pub fn is_revoked(&self, account: AccountId, peer: PeerId, signed: Wall) -> bool {
        self.revoked
            .get(&(account, peer))
            .is_some_and(|&since| signed >= since)
    }

    /// Drops what has expired, and says when the next will.
    pub fn expire(&mut self, now: Wall) -> Option<Wall> {
        let gone: Vec<PeerId> = self
            .offers
            .values()
            .filter(|offer| offer.expires() <= now)
            .map(Verified::signer)
            .collect();
        for peer in gone {
            self.remove(peer);
        }
        self.withdrawn.retain(|_, (_, until)| *until > now);
        self.offers.values().map(Verified::expires).min()
    }

    /// The question for what this book lacks from a provider on, and before
    /// another, about as many as one question has room for.
    pub fn pull(&self, from: PeerId, end: Option<PeerId>) -> Pull {
        let end_bound = end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut offers = self.offers.range((Bound::Included(from), end_bound));
        let known = offers.by_ref().take(PULL_KNOWN_MAX);
        let known = known.map(|(&peer, offer)| Known {
            peer,
            sequence: offer.body().sequence,
        });
        Pull {
            from,
            known: List::truncated(known.collect()),
            to: offers.next().map(|(&peer, _)| peer).or(end),
        }
    }

    /// What the asker of a question lacks, by provider.
    pub fn lacking<'a>(&'a self, pull: &'a Pull) -> impl Iterator<Item = &'a Verified<Offer>> {
        let known: BTreeMap<PeerId, u64> = pull
            .known
            .iter()
            .map(|known| (known.peer, known.sequence))
            .collect();
        self.offers
            .range(pull.from..)
            .take_while(|&(peer, _)| pull.to.is_none_or(|to| *peer < to))
            .map(|(_, offer)| offer)
            .filter(move |offer| {
                known
                    .get(&offer.signer())
                    .is_none_or(|&sequence| sequence < offer.body().sequence)
            })
    }

    fn remove(&mut self, peer: PeerId) {
        let Some(offer) = self.offers.remove(&peer) else {
            return;
        };
        self.names.remove(&OfferId(offer.hash()));
        if self.index.remove(peer) {
            self.index = self.offers.values().collect();
        }
        if let Some(count) = self.per_account.get_mut(&offer.body().account) {
            *count -= 1;
            if *count == 0 {
                self.per_account.remove(&offer.body().account);
            }
        }
    }

    /// Whether one more revocation fits. When there are too many, those of
    /// accounts that matter here take the place of those that don't.
    fn make_room_for_revocation(&mut self, account: AccountId) -> bool {
        if self.revoked.len() < self.room {
            return true;
        }
        let matters = |account: &AccountId| {
            self.per_account.contains_key(account) || self.dealt_with.contains(account)
        };
        if !matters(&account) {
            return false;
        }
        let other = self.revoked.keys().find(|(account, _)| !matters(account));
        match other.copied() {
            Some(key) => self.revoked.remove(&key).is_some(),
            None => false,
        }
    }

    /// Whether one more offer of an account fits, after making room for it.
    fn make_room(&mut self, now: Wall, account: AccountId) -> bool {
        if self.offers.len() < self.room {
            return true;
        }
        self.expire(now);
        if self.offers.len() < self.room {
            return true;
        }
        if !self.dealt_with.contains(&account) {
            return false;
        }
        let stranger = self
            .offers
            .values()
            .find(|offer| !self.dealt_with.contains(&offer.body().account))
            .map(Verified::signer);
        match stranger {
            Some(peer) => {
                self.remove(peer);
                true
            }
            None => false,
        }
    }
}
