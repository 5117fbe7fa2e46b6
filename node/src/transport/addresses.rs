//! Which addresses are dialled, and which are remembered.
//!
//! Addresses come from offers and from what peers say of themselves, so anybody can make a node
//! dial anything. Outside LAN mode only globally routable addresses of the two transports are
//! kept; a name, a relay or a private range never is. The operator's own bootstrap list is
//! exempt: it is not a stranger's word.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

/// The addresses known for peers that this node may want to dial.
#[derive(Debug)]
pub(super) struct AddressBook {
    lan: bool,
    peers_max: usize,
    per_peer_max: usize,
    known: HashMap<PeerId, Vec<Multiaddr>>,
    /// Oldest first, one entry for each key of `known`.
    order: VecDeque<PeerId>,
}

impl AddressBook {
    pub(super) fn new(lan: bool, peers_max: usize, per_peer_max: usize) -> Self {
        Self {
            lan,
            peers_max: peers_max.max(1),
            per_peer_max,
            known: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Remembers those addresses that may be dialled; the newest word comes first.
    pub(super) fn learn(&mut self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>) {
        let fresh: Vec<Multiaddr> = addresses
            .into_iter()
            .filter_map(|address| without_peer(address, &peer))
            .filter(|address| is_dialable(address, self.lan))
            .take(self.per_peer_max)
            .collect();
        if fresh.is_empty() {
            return;
        }
        if !self.known.contains_key(&peer) {
            self.make_room();
            self.order.push_back(peer);
        }
        let kept = self.known.entry(peer).or_default();
        for address in fresh.into_iter().rev() {
            kept.retain(|known| known != &address);
            kept.insert(0, address);
        }
        kept.truncate(self.per_peer_max);
    }

    pub(super) fn of(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.known.get(peer).cloned().unwrap_or_default()
    }

    fn make_room(&mut self) {
        while self.known.len() >= self.peers_max {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            self.known.remove(&oldest);
        }
    }
}

/// Splits `/…/p2p/<id>` into the address and the peer it names.
pub(super) fn split_peer(mut address: Multiaddr) -> (Multiaddr, Option<PeerId>) {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => {
            address.pop();
            (address, Some(peer))
        }
        _ => (address, None),
    }
}

/// The bare address, unless it names another peer.
fn without_peer(address: Multiaddr, expected: &PeerId) -> Option<Multiaddr> {
    let (address, named) = split_peer(address);
    named
        .is_none_or(|named| named == *expected)
        .then_some(address)
}

/// Whether the address is `/ip/tcp` or `/ip/udp/quic-v1` and, outside LAN mode, globally routable.
pub(super) fn is_dialable(address: &Multiaddr, lan: bool) -> bool {
    let mut parts = address.iter();
    let ip = match parts.next() {
        Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
        Some(Protocol::Ip6(ip)) => IpAddr::V6(ip),
        _ => return false,
    };
    let transport = match (parts.next(), parts.next()) {
        (Some(Protocol::Tcp(port)), None) => port != 0,
        (Some(Protocol::Udp(port)), Some(Protocol::QuicV1)) => port != 0,
        _ => false,
    };
    transport && parts.next().is_none() && (lan || is_global(ip))
}

/// The address's IP, for counting by origin.
pub(super) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => Some(IpAddr::V4(ip)),
        Some(Protocol::Ip6(ip)) => Some(IpAddr::V6(ip)),
        _ => None,
    }
}

/// Globally routable by IANA's special-purpose registries (RFC 6890 and its updates).
fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_global_v4(ip),
        IpAddr::V6(ip) => is_global_v6(ip),
    }
}

fn is_global_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocol_assignments = a == 192 && b == 0 && c == 0;
    let benchmarking = a == 198 && (18..20).contains(&b);
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || ip.is_multicast()
        || a == 0
        || a >= 240
        || shared
        || protocol_assignments
        || benchmarking)
}

/// Only 2000::/3 is given out; inside it, what embeds an IPv4 address is judged by that one.
fn is_global_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    if s[0] == 0x2002 {
        let [a, b] = s[1].to_be_bytes();
        let [c, d] = s[2].to_be_bytes();
        return is_global_v4(Ipv4Addr::new(a, b, c, d));
    }
    let ietf_protocols = s[0] == 0x2001 && s[1] < 0x200;
    let documentation = s[0] == 0x2001 && s[1] == 0xdb8 || s[0] == 0x3fff && s[1] < 0x1000;
    s[0] & 0xe000 == 0x2000 && !ietf_protocols && !documentation
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn abuse_10_private_ranges_are_dialled_only_in_lan_mode() {
        for private in [
            "/ip4/10.1.2.3/tcp/4000",
            "/ip4/127.0.0.1/udp/4000/quic-v1",
            "/ip4/192.168.1.1/tcp/80",
            "/ip4/169.254.169.254/tcp/80",
            "/ip4/100.64.0.1/tcp/80",
            "/ip4/0.0.0.0/tcp/80",
            "/ip6/::1/tcp/80",
            "/ip6/fd00::1/tcp/80",
            "/ip6/fe80::1/tcp/80",
            "/ip6/::ffff:10.0.0.1/tcp/80",
            "/ip6/2002:0a00:0001::1/tcp/80",
        ] {
            assert!(!is_dialable(&address(private), false), "{private}");
            assert!(is_dialable(&address(private), true), "{private}");
        }
        assert!(is_dialable(&address("/ip4/203.0.114.9/tcp/4000"), false));
        assert!(is_dialable(
            &address("/ip6/2400:3200::1/udp/4000/quic-v1"),
            false
        ));
    }

    #[test]
    fn names_and_relays_and_port_zero_are_never_dialled() {
        for other in [
            "/dns4/example.com/tcp/80",
            "/ip4/8.8.8.8/tcp/0",
            "/ip4/8.8.8.8/udp/80",
            "/ip4/8.8.8.8/tcp/80/ws",
        ] {
            assert!(!is_dialable(&address(other), true), "{other}");
        }
    }

    #[test]
    fn the_book_is_bounded_and_forgets_the_oldest() {
        let mut book = AddressBook::new(true, 2, 3);
        let peers: Vec<PeerId> = (0..3).map(|_| PeerId::random()).collect();
        for peer in &peers {
            book.learn(
                *peer,
                (1..10).map(|port| address(&format!("/ip4/127.0.0.1/tcp/{port}"))),
            );
        }
        assert!(book.of(&peers[0]).is_empty());
        assert_eq!(book.of(&peers[2]).len(), 3);
    }

    #[test]
    fn an_address_that_names_another_peer_is_dropped() {
        let mut book = AddressBook::new(true, 2, 3);
        let (one, other) = (PeerId::random(), PeerId::random());
        book.learn(one, [address(&format!("/ip4/127.0.0.1/tcp/1/p2p/{other}"))]);
        assert!(book.of(&one).is_empty());
    }
}
