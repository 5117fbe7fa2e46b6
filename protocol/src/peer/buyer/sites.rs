//! Where those are who run the same unit: results of neighbours say less than results of
//! strangers.
//!
//! Providers are near each other that share a region, or the network of an address by
//! which the world reaches them; one that is reached through relays only is where they
//! are. Loopback and private addresses say nothing: whole test networks share them. All of
//! it is what offers say of themselves, under their signatures.

use core::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::*;

/// A part of the internet that one operator is likely to have as a whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Network {
    /// A /24.
    V4([u8; 3]),
    /// A /48.
    V6([u16; 3]),
    /// A peer through which others are reached.
    Relay(String),
}

impl Network {
    /// Of an address that leads straight to a provider.
    fn of(address: &str) -> Option<Self> {
        let mut parts = address.split('/').skip(1);
        let (kind, ip) = (parts.next()?, parts.next()?);
        match kind {
            "ip4" => {
                let ip: Ipv4Addr = ip.parse().ok()?;
                let [a, b, c, _] = ip.octets();
                is_routed(ip).then_some(Self::V4([a, b, c]))
            }
            "ip6" => {
                let ip: Ipv6Addr = ip.parse().ok()?;
                let [a, b, c, ..] = ip.segments();
                // No others are given out.
                (a & 0xe000 == 0x2000).then_some(Self::V6([a, b, c]))
            }
            _ => None,
        }
    }

    /// Of an address that leads through a relay.
    fn of_relay(address: &str) -> Option<Self> {
        let (way, _) = address.split_once(CIRCUIT)?;
        let (_, relay) = way.rsplit_once("/p2p/")?;
        Some(Self::Relay(relay.to_owned()))
    }
}

/// What stands between the way to a relay and that from it on.
const CIRCUIT: &str = "/p2p-circuit";

/// Whether the world can reach an address.
const fn is_routed(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    let is_shared = a == 100 && b & 0xc0 == 64;
    let is_apart = ip.is_private() || ip.is_loopback() || ip.is_link_local();
    !(is_apart || is_shared || a == 0 || a >= 224)
}

/// Where a provider is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    region: Name,
    networks: BTreeSet<Network>,
}

impl Site {
    pub(super) fn of(offer: &Offer) -> Self {
        let addresses = || offer.addresses.iter().map(|address| &**address);
        let straight = addresses().filter(|address| !address.contains(CIRCUIT));
        let mut networks: BTreeSet<_> = straight.filter_map(Network::of).collect();
        if networks.is_empty() {
            networks = addresses().filter_map(Network::of_relay).collect();
        }
        Self {
            region: offer.region.clone(),
            networks,
        }
    }
}

/// What those have in common who run the same unit: the more it is, the less their
/// results say of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Common {
    /// Everything: the second says no more than the first.
    Account,
    /// A network, and so perhaps an operator.
    Network,
    /// Only that.
    Region,
    /// As far as anybody knows.
    Nothing,
}

/// Who runs a unit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Runner {
    account: AccountId,
    site: Site,
}

impl Runner {
    pub(super) fn of(offer: &Offer) -> Arc<Self> {
        Arc::new(Self {
            account: offer.account,
            site: Site::of(offer),
        })
    }

    /// What it has in common with the nearest of those who run a unit.
    pub(super) fn in_common(&self, others: &[Arc<Self>]) -> Common {
        let each = others.iter().map(|other| self.in_common_with(other));
        each.min().unwrap_or(Common::Nothing)
    }

    fn in_common_with(&self, other: &Self) -> Common {
        if self.account == other.account {
            Common::Account
        } else if !self.site.networks.is_disjoint(&other.site.networks) {
            Common::Network
        } else if self.site.region == other.site.region {
            Common::Region
        } else {
            Common::Nothing
        }
    }
}

/// How many there are in each region and network.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    regions: BTreeMap<Name, usize>,
    networks: BTreeMap<Network, usize>,
}

impl Crowd {
    /// Adds one, and says how many there are now: in the fullest of its networks, and in
    /// its region.
    pub(super) fn add(&mut self, runner: &Runner) -> (usize, usize) {
        // Who has none that is known is in one of its own.
        let mut fullest = 1;
        for network in &runner.site.networks {
            let there = self.networks.entry(network.clone()).or_default();
            *there += 1;
            fullest = fullest.max(*there);
        }
        let region = self.regions.entry(runner.site.region.clone()).or_default();
        *region += 1;
        (fullest, *region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_those_that_the_world_can_reach() {
        let v4 = |a, b, c| Some(Network::V4([a, b, c]));
        assert_eq!(Network::of("/ip4/8.8.4.4/udp/1/quic-v1"), v4(8, 8, 4));
        assert_eq!(Network::of("/ip4/100.128.0.1/tcp/1"), v4(100, 128, 0));
        let v6 = Some(Network::V6([0x2400, 0x3200, 7]));
        assert_eq!(Network::of("/ip6/2400:3200:7:8::1/udp/1/quic-v1"), v6);
        for nowhere in [
            "/ip4/127.0.0.1/udp/1/quic-v1",
            "/ip4/10.1.2.3/tcp/1",
            "/ip4/172.16.0.1/tcp/1",
            "/ip4/192.168.1.1/tcp/1",
            "/ip4/169.254.1.1/tcp/1",
            "/ip4/100.64.0.1/tcp/1",
            "/ip4/0.0.0.0/tcp/1",
            "/ip4/224.0.0.1/tcp/1",
            "/ip6/::1/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/ip6/fd00::1/tcp/1",
            "/ip6/::ffff:8.8.8.8/tcp/1",
            "/dns4/example.com/tcp/1",
            "/ip4/8.8.8/tcp/1",
            "ip4",
            "",
        ] {
            assert_eq!(Network::of(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn a_relay_is_where_those_are_whom_nothing_else_leads_to() {
        let relayed = "/ip4/8.8.4.4/tcp/1/p2p/relay/p2p-circuit/p2p/me";
        let relay = Some(Network::Relay("relay".to_owned()));
        assert_eq!(Network::of_relay(relayed), relay);
        assert_eq!(Network::of_relay("/p2p-circuit"), None);
        assert_eq!(Network::of_relay("/ip4/8.8.4.4/tcp/1/p2p/me"), None);
    }
}
