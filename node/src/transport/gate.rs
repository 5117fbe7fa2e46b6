//! Who may connect: key kinds, blocks, limits, rates.
//!
//! A behaviour without a protocol: it only answers the swarm's questions about pending and
//! established connections. It stands in for libp2p's connection limits and block list, because
//! the former keeps an entry for every identity that ever connected, and because limits that
//! keep honest peers served under a flood must count by origin, not only in total.
//!
//! Everything here is bounded: origins are forgotten when their rate is paid off.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::{IpAddr, Ipv6Addr},
    task::{Context, Poll},
    time::Instant,
};

use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, DialFailure, FromSwarm, ListenFailure, NetworkBehaviour,
        THandler, THandlerInEvent, THandlerOutEvent, ToSwarm, behaviour::ConnectionEstablished,
        dummy,
    },
};

use super::{
    TransportLimits,
    addresses::ip_of,
    key::{KeyRefused, PeerKey},
};
use crate::rate::Rate;

/// Origins whose rate is tracked at once; above it, new origins share one bucket.
const ORIGINS_MAX: usize = 1_024;

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Key(#[from] KeyRefused),
    #[error("the peer is blocked")]
    Blocked,
    #[error("all places for connections are taken")]
    Full,
    #[error("the peer has enough connections already")]
    PeerFull,
    #[error("too many connections from one address")]
    OriginFull,
    #[error("connections from one address come too fast")]
    TooFast,
}

/// The behaviour; see the module's documentation.
pub(super) struct Gate {
    limits: TransportLimits,
    lan: bool,
    pending_in: HashMap<ConnectionId, Option<IpAddr>>,
    pending_out: HashSet<ConnectionId>,
    established: HashMap<ConnectionId, Admitted>,
    blocked: HashMap<PeerId, Instant>,
    origins: HashMap<IpAddr, Rate>,
    crowd: Rate,
}

struct Admitted {
    peer: PeerId,
    origin: Option<IpAddr>,
    inbound: bool,
}

impl Gate {
    pub(super) fn new(limits: TransportLimits, lan: bool) -> Self {
        Self {
            lan,
            pending_in: HashMap::new(),
            pending_out: HashSet::new(),
            established: HashMap::new(),
            blocked: HashMap::new(),
            origins: HashMap::new(),
            crowd: Rate::new(limits.inbound_per_s, limits.inbound_burst),
            limits,
        }
    }

    /// Refuses the peer until then. The caller closes what is open.
    pub(super) fn block(&mut self, peer: PeerId, until: Instant) {
        if self.blocked.len() >= self.limits.blocked_peers {
            let soonest = self.blocked.iter().min_by_key(|(_, until)| **until);
            if let Some(peer) = soonest.map(|(peer, _)| *peer) {
                self.blocked.remove(&peer);
            }
        }
        self.blocked.insert(peer, until);
    }

    pub(super) fn unblock(&mut self, peer: &PeerId) {
        self.blocked.remove(peer);
    }

    pub(super) fn is_blocked(&self, peer: &PeerId) -> bool {
        self.blocked
            .get(peer)
            .is_some_and(|until| *until > Instant::now())
    }

    /// Forgets blocks that ended and origins that are quiet again.
    pub(super) fn sweep(&mut self) {
        let now = Instant::now();
        self.blocked.retain(|_, until| *until > now);
        self.origins.retain(|_, rate| !rate.is_idle());
    }

    fn admit_pending(&self, remote: &Multiaddr) -> Result<(), Refused> {
        if self.pending_in.len() >= self.limits.pending_in {
            return Err(Refused::Full);
        }
        let inbound = self.established.values().filter(|c| c.inbound).count();
        if inbound >= self.limits.connections_in {
            return Err(Refused::Full);
        }
        let Some(origin) = origin_of(remote).filter(|_| !self.lan) else {
            return Ok(());
        };
        // Handshakes count as well, or one origin could hold every place for them.
        let pending = self.pending_in.values().filter(|of| **of == Some(origin));
        let of_origin = |c: &&Admitted| c.inbound && c.origin == Some(origin);
        let established = self.established.values().filter(of_origin);
        if pending.count() + established.count() >= self.limits.connections_per_ip {
            return Err(Refused::OriginFull);
        }
        Ok(())
    }

    fn charge_origin(&mut self, remote: &Multiaddr) -> Result<(), Refused> {
        let Some(origin) = origin_of(remote).filter(|_| !self.lan) else {
            return Ok(());
        };
        let limits = &self.limits;
        let rate = if self.origins.len() < ORIGINS_MAX || self.origins.contains_key(&origin) {
            self.origins
                .entry(origin)
                .or_insert_with(|| Rate::new(limits.inbound_per_s, limits.inbound_burst))
        } else {
            &self.crowd
        };
        rate.admit(1).map_err(|_| Refused::TooFast)
    }

    fn admit(&self, peer: &PeerId, inbound: bool) -> Result<(), Refused> {
        PeerKey::of_peer_id(peer)?.checked()?;
        if self.is_blocked(peer) {
            return Err(Refused::Blocked);
        }
        let (mut same_side, mut same_peer) = (0, 0);
        for admitted in self.established.values() {
            same_side += usize::from(admitted.inbound == inbound);
            same_peer += usize::from(admitted.peer == *peer);
        }
        let side_max = if inbound {
            self.limits.connections_in
        } else {
            self.limits.connections_out
        };
        if same_side >= side_max {
            return Err(Refused::Full);
        }
        if same_peer >= self.limits.connections_per_peer {
            return Err(Refused::PeerFull);
        }
        Ok(())
    }
}

impl NetworkBehaviour for Gate {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.admit_pending(remote)
            .and_then(|()| self.charge_origin(remote))
            .map_err(ConnectionDenied::new)?;
        self.pending_in.insert(id, origin_of(remote));
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        _id: ConnectionId,
        peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(&peer, true).map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        _addresses: &[Multiaddr],
        _role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        if peer.is_some_and(|peer| self.is_blocked(&peer)) {
            return Err(ConnectionDenied::new(Refused::Blocked));
        }
        if self.pending_out.len() >= self.limits.pending_out {
            return Err(ConnectionDenied::new(Refused::Full));
        }
        self.pending_out.insert(id);
        Ok(Vec::new())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _id: ConnectionId,
        peer: PeerId,
        _address: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(&peer, false).map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) => {
                self.pending_in.remove(&connection_id);
                self.pending_out.remove(&connection_id);
                let admitted = Admitted {
                    peer: peer_id,
                    origin: origin_of(endpoint.get_remote_address()),
                    inbound: matches!(endpoint, ConnectedPoint::Listener { .. }),
                };
                self.established.insert(connection_id, admitted);
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.established.remove(&closed.connection_id);
            }
            FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => {
                self.pending_in.remove(&connection_id);
            }
            FromSwarm::DialFailure(DialFailure { connection_id, .. }) => {
                self.pending_out.remove(&connection_id);
            }
            // FromSwarm is non-exhaustive; addresses and listeners don't concern the gate.
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _peer: PeerId,
        _id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// The unit in which strangers are counted: an IPv4 address, or the /64 that one customer gets.
fn origin_of(address: &Multiaddr) -> Option<IpAddr> {
    ip_of(address).map(|ip| match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn gate(lan: bool) -> Gate {
        Gate::new(TransportLimits::default(), lan)
    }

    fn inbound(gate: &mut Gate, id: usize, peer: PeerId) -> Result<(), Refused> {
        let here: Multiaddr = "/ip4/198.51.100.1/tcp/1".parse().unwrap();
        gate.handle_established_inbound_connection(
            ConnectionId::new_unchecked(id),
            peer,
            &here,
            &here,
        )
        .map(|_| ())
        .map_err(|denied| denied.downcast().unwrap())
    }

    fn peer(seed: u8) -> PeerId {
        PeerKey::of_secret(&[seed; 32]).peer_id()
    }

    #[test]
    fn abuse_24_weak_keys_and_other_kinds_are_refused_at_connection() {
        let mut gate = gate(true);
        let weak = PeerKey::new([0; 32]).peer_id();
        let refused = inbound(&mut gate, 1, weak);
        assert_eq!(refused, Err(Refused::Key(KeyRefused::Weak)));

        let digest = [[0x12, 0x20].as_slice(), &[9; 32]].concat();
        let rsa = PeerId::from_bytes(&digest).unwrap();
        let refused = inbound(&mut gate, 2, rsa);
        assert_eq!(refused, Err(Refused::Key(KeyRefused::Kind)));

        assert_eq!(inbound(&mut gate, 3, peer(1)), Ok(()));
    }

    #[test]
    fn blocked_peers_are_refused_until_the_block_ends() {
        let mut gate = gate(true);
        gate.block(peer(1), Instant::now() + Duration::from_secs(60));
        gate.block(peer(2), Instant::now());
        assert_eq!(inbound(&mut gate, 1, peer(1)), Err(Refused::Blocked));
        assert_eq!(inbound(&mut gate, 2, peer(2)), Ok(()));
        gate.unblock(&peer(1));
        assert_eq!(inbound(&mut gate, 3, peer(1)), Ok(()));
    }

    fn pending(gate: &mut Gate, id: usize, from: &str) -> Result<(), Refused> {
        let here: Multiaddr = "/ip4/198.51.100.1/tcp/1".parse().unwrap();
        let id = ConnectionId::new_unchecked(id);
        gate.handle_pending_inbound_connection(id, &here, &from.parse().unwrap())
            .map_err(|denied| denied.downcast().unwrap())
    }

    #[test]
    fn abuse_08_one_origin_cannot_take_every_place() {
        let limits = TransportLimits {
            inbound_per_s: u32::MAX,
            inbound_burst: u32::MAX,
            ..TransportLimits::default()
        };
        let per_ip = limits.connections_per_ip;
        let mut gate = Gate::new(limits, false);
        // Slow enough for every rate, in handshakes that never end.
        let let_in = (0..10_000)
            .filter(|id| pending(&mut gate, *id, "/ip4/203.0.113.7/tcp/1").is_ok())
            .count();
        assert_eq!(let_in, per_ip);
        let honest = pending(&mut gate, 10_001, "/ip4/203.0.113.8/tcp/1");
        assert_eq!(honest, Ok(()));
    }

    #[test]
    fn abuse_08_many_origins_take_no_memory_and_are_forgotten() {
        let mut gate = gate(false);
        let pending_max = TransportLimits::default().pending_in;
        for id in 0..10_000_usize {
            let [.., a, b] = id.to_be_bytes();
            let _ = pending(&mut gate, id, &format!("/ip4/100.1.{a}.{b}/tcp/1"));
        }
        assert_eq!(gate.pending_in.len(), pending_max);
        assert!(gate.origins.len() <= ORIGINS_MAX);
    }
}
