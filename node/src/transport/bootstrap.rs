//! The peers from the operator's list: dialled at start and again whenever they are gone.
//!
//! Pauses double up to a cap below the minute in which an eclipsed node must recover (abuse
//! case 17). They differ between nodes by a jitter taken from the node's own key, so that a
//! thousand nodes do not come back to a restarted peer in the same second; no random source is
//! needed for that.

use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};

use super::{PeerKey, addresses::split_peer};

const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The list and when each entry is next tried.
#[derive(Debug)]
pub(super) struct Bootstrap {
    own: PeerKey,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    address: Multiaddr,
    /// From the address, or learned from the first connection.
    peer: Option<PeerId>,
    failures: u32,
    next_try: Instant,
    dialing: Option<ConnectionId>,
}

impl Bootstrap {
    pub(super) fn new(own: PeerKey, list: Vec<Multiaddr>) -> Self {
        let now = Instant::now();
        let entries = list
            .into_iter()
            .map(|address| {
                let (address, peer) = split_peer(address);
                Entry {
                    address,
                    peer,
                    failures: 0,
                    next_try: now,
                    dialing: None,
                }
            })
            // An operator may give every node the same list, the node's own address included.
            .filter(|entry| entry.peer != Some(own.peer_id()))
            .collect();
        Self { own, entries }
    }

    /// The entries to dial now, by position.
    pub(super) fn due(
        &self,
        now: Instant,
        is_connected: impl Fn(&PeerId) -> bool,
    ) -> Vec<(usize, Multiaddr, Option<PeerId>)> {
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.dialing.is_none() && entry.next_try <= now)
            .filter(|(_, entry)| !entry.peer.as_ref().is_some_and(&is_connected))
            .map(|(at, entry)| (at, entry.address.clone(), entry.peer))
            .collect()
    }

    pub(super) fn dialing(&mut self, at: usize, dial: ConnectionId) {
        if let Some(entry) = self.entries.get_mut(at) {
            entry.dialing = Some(dial);
        }
    }

    /// Somebody answered; whether it is of our network is not known yet.
    pub(super) fn connected(&mut self, dial: ConnectionId, peer: PeerId) {
        let own = self.own;
        if let Some(entry) = self.entry_of(dial) {
            entry.peer = Some(peer);
            entry.back_off(&own);
        }
    }

    /// The peer is of our network: should it go, it is tried again soon.
    pub(super) fn announced(&mut self, peer: &PeerId) {
        let of_peer = |entry: &&mut Entry| entry.peer.as_ref() == Some(peer);
        for entry in self.entries.iter_mut().filter(of_peer) {
            entry.failures = 0;
            entry.next_try = Instant::now() + PAUSE_MIN;
        }
    }

    pub(super) fn failed(&mut self, dial: ConnectionId) {
        let own = self.own;
        if let Some(entry) = self.entry_of(dial) {
            entry.back_off(&own);
        }
    }

    /// The address turned out to be this node's own.
    pub(super) fn is_self(&mut self, dial: ConnectionId) {
        self.entries.retain(|entry| entry.dialing != Some(dial));
    }

    fn entry_of(&mut self, dial: ConnectionId) -> Option<&mut Entry> {
        self.entries
            .iter_mut()
            .find(|entry| entry.dialing == Some(dial))
    }
}

impl Entry {
    fn back_off(&mut self, own: &PeerKey) {
        self.dialing = None;
        self.failures = self.failures.saturating_add(1);
        self.next_try = Instant::now() + pause(own, &self.address, self.failures);
    }
}

/// Between three quarters and all of the doubled pause.
fn pause(own: &PeerKey, address: &Multiaddr, failures: u32) -> Duration {
    let doubled = PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10));
    let mut hasher = blake3::Hasher::new();
    hasher.update(own.as_bytes());
    hasher.update(address.as_ref());
    hasher.update(&failures.to_le_bytes());
    let jitter = u32::from(hasher.finalize().as_bytes()[0]);
    let quarter = doubled.min(PAUSE_MAX) / 4;
    quarter * 3 + quarter * jitter / 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abuse_17_pauses_grow_but_stay_under_a_minute_and_differ_between_nodes() {
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        let (one, other) = (PeerKey::new([1; 32]), PeerKey::new([2; 32]));
        assert!(pause(&one, &address, 1) <= PAUSE_MIN);
        for failures in 6..100 {
            let paused = pause(&one, &address, failures);
            assert!(paused >= PAUSE_MAX * 3 / 4 && paused <= PAUSE_MAX);
        }
        assert_ne!(pause(&one, &address, 9), pause(&other, &address, 9));
    }
}
