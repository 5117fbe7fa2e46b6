//! Every bound of the transport, with its reason.
//!
//! The defaults keep an idle node's memory small and leave room for a few hundred peers. What a
//! stranger can make the node hold is at most `connections_in` times the per-peer figures.

use std::time::Duration;

use super::Channel;

/// The bounds of a transport. `Default` is what `suanli node` uses.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TransportLimits {
    /// Connections that others opened. Separate from `connections_out`, so that a flood of
    /// strangers leaves room for the peers that this node chose.
    pub connections_in: usize,
    /// Connections that this node opened.
    pub connections_out: usize,
    /// Two sides that dial each other at once over two transports have four; the fifth place is
    /// for a dial that comes before a broken connection is noticed.
    pub connections_per_peer: usize,
    /// How many of them stay. The oldest of the others are closed, once no call runs on them.
    pub connections_kept: usize,
    /// How long one that is over is given, so that what is being said on it arrives.
    pub surplus_lingers: Duration,
    /// Inbound connections from one address (IPv4) or one /64 (IPv6); not applied in LAN mode.
    pub connections_per_ip: usize,
    /// Handshakes under way, inbound.
    pub pending_in: usize,
    /// Dials under way.
    pub pending_out: usize,
    /// New inbound connections a second from one address; not applied in LAN mode.
    pub inbound_per_s: u32,
    /// How many may come at once before the rate counts.
    pub inbound_burst: u32,
    /// Time for the security handshake, the protocol negotiation, and identify.
    pub handshake: Duration,
    /// How often a silent connection is tried.
    pub ping_interval: Duration,
    /// How long the answer may take. A connection is closed after both, and half a second.
    pub ping_timeout: Duration,
    /// Largest frame of each channel, in bytes.
    pub frame_bytes: FrameBytes,
    /// Time from the first byte of a frame to its last one.
    pub partial_frame: Duration,
    /// Frames waiting to be written, per peer and channel. All that waited for one sync leaves
    /// at once, a few frames for each of hundreds of executions; what finds no room is sent
    /// again a second later. Their bytes are bounded by `queue_bytes`.
    pub queue_frames: usize,
    /// Bytes waiting to be written, per peer; at least one of the largest frames.
    pub queue_bytes: u32,
    /// Time in which a write must make progress.
    pub write_stall: Duration,
    /// Received bytes, per peer, that the driver has not let go yet; at least one of the
    /// largest frames.
    pub in_flight_bytes: u32,
    /// Sustained frames a second from one peer.
    pub frames_per_s: u32,
    /// Frames that may come at once before the rate counts.
    pub frames_burst: u32,
    /// Sustained bytes a second from one peer, in frames (blobs have their own limits).
    pub bytes_per_s: u32,
    /// Bytes that may come at once before the rate counts.
    pub bytes_burst: u32,
    /// A peer that stays over its budget this long, though slowed, is cut.
    pub flood_grace: Duration,
    /// Largest gossip message, in bytes.
    pub gossip_bytes: usize,
    /// Gossip messages a second that one peer may hand over; what is above is dropped unread.
    pub gossip_per_s: u32,
    /// Gossip messages that may come at once before the rate counts.
    pub gossip_burst: u32,
    /// Peers blocked at once; the one that would be free soonest makes room.
    pub blocked_peers: usize,
    /// Peers whose addresses are remembered.
    pub known_peers: usize,
    /// Addresses remembered per peer.
    pub addresses_per_peer: usize,
    /// Blobs served at once to one peer.
    pub serves_per_peer: usize,
    /// Blobs served at once in all.
    pub serves: usize,
    /// Blobs fetched or waiting to be, at once.
    pub fetches: usize,
    /// Calls that one peer has open with us: a gateway that serves a firm.
    pub calls_per_peer: usize,
    /// Calls that others have open with us. At a stream's buffers each, a few hundred MB.
    pub calls: usize,
    /// Calls of ours whose stream is not open yet.
    pub calls_opening: usize,
    /// A transfer that moves no whole piece for this long ends.
    pub blob_stall: Duration,
    /// Hash trees kept in memory, in bytes, so that a blob served twice is hashed once.
    pub outboard_cache_bytes: usize,
}

impl Default for TransportLimits {
    fn default() -> Self {
        Self {
            connections_in: 256,
            connections_out: 64,
            connections_per_peer: 5,
            connections_kept: 2,
            surplus_lingers: Duration::from_secs(5),
            connections_per_ip: 16,
            pending_in: 64,
            pending_out: 32,
            inbound_per_s: 5,
            inbound_burst: 32,
            handshake: Duration::from_secs(8),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
            frame_bytes: FrameBytes::default(),
            partial_frame: Duration::from_secs(8),
            queue_frames: 1024,
            queue_bytes: 1 << 20,
            write_stall: Duration::from_secs(10),
            in_flight_bytes: 1 << 20,
            frames_per_s: 10_000,
            frames_burst: 10_000,
            bytes_per_s: 32 << 20,
            bytes_burst: 8 << 20,
            flood_grace: Duration::from_secs(20),
            gossip_bytes: 8 << 10,
            gossip_per_s: 200,
            gossip_burst: 2_000,
            blocked_peers: 4_096,
            known_peers: 1_024,
            addresses_per_peer: 8,
            serves_per_peer: 4,
            serves: 16,
            fetches: 64,
            calls_per_peer: 256,
            calls: 1024,
            calls_opening: 256,
            blob_stall: Duration::from_secs(10),
            outboard_cache_bytes: 4 << 20,
        }
    }
}

/// The largest frame of each channel, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct FrameBytes {
    /// Requests, quotes, agreements.
    pub negotiate: u32,
    /// Input and output frames, logs, progress.
    pub exec: u32,
    /// Receipts, vouchers, heads.
    pub settle: u32,
    /// Pages of the offer book.
    pub book: u32,
    /// Openings of products.
    pub challenge: u32,
}

impl Default for FrameBytes {
    fn default() -> Self {
        Self {
            negotiate: 64 << 10,
            exec: 256 << 10,
            settle: 64 << 10,
            book: 256 << 10,
            challenge: 128 << 10,
        }
    }
}

impl FrameBytes {
    pub(super) fn max(&self) -> u32 {
        let of = |channel| self.of(channel);
        Channel::ALL.map(of).into_iter().max().unwrap_or(0)
    }

    pub(super) const fn of(&self, channel: Channel) -> u32 {
        match channel {
            Channel::Negotiate => self.negotiate,
            Channel::Exec => self.exec,
            Channel::Settle => self.settle,
            Channel::Book => self.book,
            Channel::Challenge => self.challenge,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abuse_06_slow_peers_have_ten_seconds() {
        let limits = TransportLimits::default();
        for wait in [
            limits.handshake,
            limits.partial_frame,
            limits.write_stall,
            limits.blob_stall,
        ] {
            assert!(wait <= Duration::from_secs(10));
        }
    }

    #[test]
    fn abuse_07_a_half_open_peer_is_noticed_within_thirty_seconds() {
        let limits = TransportLimits::default();
        assert!(limits.ping_interval + limits.ping_timeout < Duration::from_secs(29));
    }
}
