//! The libp2p transport: moves opaque bytes between peers named by their ed25519 keys.
//!
//! It knows no message of the exchange. Five [`Channel`]s carry bounded frames, gossip carries
//! offers that the driver has judged, and blobs travel by streams of their own, verified chunk by
//! chunk. What a frame means, and whether a signature in it is good, is the driver's business.
//!
//! # Flow
//! One task, the engine, owns the swarm and everything that is known about peers; it has one
//! `select!` and no lock. The driver talks to it by [`TransportCommand`]s and hears
//! [`TransportEvent`]s, both over bounded channels. Every substream has a task of its own that
//! moves bytes between it and a small queue:
//!
//! ```text
//!            commands                          queue, one per peer and channel
//!  driver ──────────────▶ engine (swarm) ────────────────────────▶ writer ──▶ stream
//!    ▲  ▲                     │                                    reader ◀── stream
//!    │  └─── events ──────────┘                                       │
//!    └────── frames, when the peer's budget allows ───────────────────┘
//! ```
//!
//! When the driver is slow, readers wait and the swarm is not polled, so that peers feel it
//! through flow control; commands are still taken. A driver must therefore keep draining events
//! while it waits for room in the command channel, or use [`TransportHandle::try_send`].
//!
//! # What holds
//! A peer is announced once its key is ed25519 and not weak, its handshake done, and its network
//! ours; its frames never come before [`TransportEvent::Connected`], though some that were read
//! just before may follow [`TransportEvent::Disconnected`]. Frames of one channel arrive in
//! order, but for the moment in which a peer's later call takes over from an earlier connection.
//! Nothing is retried here: what could not be handed to the connection is reported by
//! [`TransportEvent::SendFailed`], and what was under way when a connection broke is not, so the
//! core retries by its own timers.
//!
//! # What is absent
//! No NAT traversal, discovery, relay or DNS; no message types, prices or signatures; no disk
//! but for the files of blobs.

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use libp2p::{Multiaddr, Swarm, multiaddr::Protocol};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use zeroize::Zeroize;

mod addresses;
mod blob;
mod bootstrap;
mod budget;
mod call;
mod engine;
mod frames;
mod gate;
mod key;
mod limits;
mod network;
mod peers;
mod streams;

pub use self::{
    blob::{BlobFailure, BlobSize, ServeBlob},
    call::{CallReader, CallStream, CallWriter},
    key::{KeyRefused, PeerKey},
    limits::{FrameBytes, TransportLimits},
};

/// Room for commands; a driver that fills it waits for the engine.
const COMMANDS: usize = 256;
/// Room for events; when it is full, the peers wait for the driver.
const EVENTS: usize = 256;
/// How often a port is tried that is free, and how long apart: half a second in all.
const LISTEN_TRIES: u32 = 100;
const LISTEN_PAUSE: Duration = Duration::from_millis(5);

/// How to start a transport.
#[derive(Clone)]
pub struct TransportConfig {
    /// The ed25519 seed of this node's identity.
    pub secret: [u8; 32],
    /// The network's name, 1 to 32 of `a-z 0-9 - _ .`; it enters all protocol names.
    pub network: String,
    /// What this node says it is, such as `suanli/0.1.0`.
    pub agent: String,
    /// Where to listen: `/ip4/…/tcp/…` and `/ip4/…/udp/…/quic-v1`, or the same with `ip6`.
    pub listen: Vec<Multiaddr>,
    /// Peers to stay connected to, with or without `/p2p/…` at their end.
    pub bootstrap: Vec<Multiaddr>,
    /// Dial private and loopback addresses too, and don't count connections by origin.
    pub lan: bool,
    /// Every bound.
    pub limits: TransportLimits,
}

impl std::fmt::Debug for TransportConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransportConfig")
            .field("network", &self.network)
            .field("listen", &self.listen)
            .field("bootstrap", &self.bootstrap)
            .field("lan", &self.lan)
            .finish_non_exhaustive()
    }
}

/// Starts transports.
#[derive(Debug)]
pub struct Transport;

impl Transport {
    /// Binds the addresses and starts the engine on the current tokio runtime. It ends when all
    /// handles are dropped or the receiver is.
    ///
    /// # Errors
    /// [`TransportError`]; its text ends with what to do.
    pub fn start(
        mut config: TransportConfig,
    ) -> Result<(TransportHandle, mpsc::Receiver<TransportEvent>), TransportError> {
        check_network_name(&config.network)?;
        config.agent = format!("{} {}", config.agent, process_mark());
        let key = PeerKey::of_secret(&config.secret);
        let mut swarm = network::build(&config)?;
        // libp2p has its copy, and wipes it at the end.
        config.secret.zeroize();
        for address in &config.listen {
            listen(&mut swarm, address)?;
        }
        let (commands, command_queue) = mpsc::channel(COMMANDS);
        let (events, event_queue) = mpsc::channel(EVENTS);
        tokio::spawn(engine::run(swarm, key, config, command_queue, events));
        Ok((TransportHandle { key, commands }, event_queue))
    }
}

/// Sends commands to a running transport.
#[derive(Debug, Clone)]
pub struct TransportHandle {
    key: PeerKey,
    commands: mpsc::Sender<TransportCommand>,
}

impl TransportHandle {
    /// This node's own key.
    #[must_use]
    pub const fn key(&self) -> PeerKey {
        self.key
    }

    /// Queues a command, waiting for room.
    ///
    /// # Errors
    /// [`Stopped`] when the engine has ended.
    pub async fn send(&self, command: TransportCommand) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)
    }

    /// Queues a command if there is room, or gives it back.
    ///
    /// # Errors
    /// The command, when the queue is full or the engine has ended.
    #[expect(
        clippy::result_large_err,
        reason = "the command is given back so that the caller can keep it"
    )]
    pub fn try_send(&self, command: TransportCommand) -> Result<(), TransportCommand> {
        self.commands
            .try_send(command)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(command)
                | mpsc::error::TrySendError::Closed(command) => command,
            })
    }
}

/// The transport has ended.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the transport has stopped")]
pub struct Stopped;

/// A purpose for which frames are sent; each has a protocol and streams of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    /// Requests, quotes, agreements.
    Negotiate,
    /// Inputs, outputs, logs, progress, cancel.
    Exec,
    /// Receipts and vouchers.
    Settle,
    /// Anti-entropy of the offer book, and references.
    Book,
    /// Capacity challenges.
    Challenge,
}

impl Channel {
    /// How many there are.
    pub const COUNT: usize = 5;
    /// All of them.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Negotiate,
        Self::Exec,
        Self::Settle,
        Self::Book,
        Self::Challenge,
    ];

    /// Its name in the protocol's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Negotiate => "negotiate",
            Self::Exec => "exec",
            Self::Settle => "settle",
            Self::Book => "book",
            Self::Challenge => "challenge",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Negotiate => 0,
            Self::Exec => 1,
            Self::Settle => 2,
            Self::Book => 3,
            Self::Challenge => 4,
        }
    }
}

/// The driver's number for a fetch, unique among those under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FetchId(pub u64);

/// A gossip message's name: the BLAKE3 hash of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GossipId(pub [u8; 32]);

impl std::fmt::Debug for GossipId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// What to do with a gossip message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Good: forward it.
    Accept,
    /// Malformed or badly signed: don't forward, and hold it against the forwarder.
    Reject,
    /// Expired, superseded or not understood: don't forward, no blame.
    Ignore,
}

/// What the driver asks of the transport.
#[derive(Debug)]
pub enum TransportCommand {
    /// Send one frame. Dials the peer if it isn't connected and an address is known.
    Send {
        /// The receiver.
        to: PeerKey,
        /// By which stream.
        channel: Channel,
        /// The frame, at most the channel's limit.
        bytes: Vec<u8>,
    },
    /// Gossip a message on the network's topic.
    Publish {
        /// The message, at most [`TransportLimits::gossip_bytes`].
        bytes: Vec<u8>,
    },
    /// Answer a [`TransportEvent::Gossip`]. A message without an answer is not forwarded.
    GossipVerdict {
        /// The message.
        id: GossipId,
        /// Who handed it over, as the event said.
        from: PeerKey,
        /// The answer.
        verdict: Verdict,
    },
    /// Connect. Without a peer, whoever answers at the addresses is taken.
    Dial {
        /// Who is expected there.
        peer: Option<PeerKey>,
        /// Where, besides the addresses that are known for the peer.
        addresses: Vec<Multiaddr>,
    },
    /// Remember addresses, as an offer states them.
    AddAddresses {
        /// Whose they are.
        peer: PeerKey,
        /// Undialable and, outside LAN mode, private ones are dropped.
        addresses: Vec<Multiaddr>,
    },
    /// Close all connections with a peer.
    Disconnect {
        /// The peer.
        peer: PeerKey,
    },
    /// Close all connections with a peer and refuse it for a time.
    Block {
        /// The peer.
        peer: PeerKey,
        /// When the block ends.
        until: Instant,
    },
    /// End a block.
    Unblock {
        /// The peer.
        peer: PeerKey,
    },
    /// Fetch a blob into a file. Ends in `BlobDone` or `BlobFailed`.
    FetchBlob(FetchBlob),
    /// End a fetch; what is verified stays in the file.
    CancelFetch {
        /// Which.
        id: FetchId,
    },
    /// Open a call.
    Call {
        /// With whom.
        to: PeerKey,
        /// Where it goes, once it is open.
        reply: oneshot::Sender<Result<CallStream, SendFailure>>,
    },
    /// List the connected peers.
    Peers {
        /// Where the list goes.
        reply: oneshot::Sender<Vec<PeerStatus>>,
    },
}

/// A blob to fetch.
#[derive(Debug, Clone)]
pub struct FetchBlob {
    /// The driver's number for it.
    pub id: FetchId,
    /// Who has it.
    pub from: PeerKey,
    /// The BLAKE3 hash that names it.
    pub hash: [u8; 32],
    /// How large it is or may be.
    pub size: BlobSize,
    /// The agreement or grant under which it may be read.
    pub under: [u8; 32],
    /// Where it goes. If the file is there, it is taken as a verified beginning and continued.
    pub into: PathBuf,
}

/// What the driver hears.
#[derive(Debug)]
pub enum TransportEvent {
    /// The node can be reached here.
    Listening {
        /// With the port that was bound.
        address: Multiaddr,
    },
    /// The first connection with a peer stands, and it is of this network.
    Connected {
        /// The peer.
        peer: PeerKey,
        /// Its address.
        address: Multiaddr,
    },
    /// The last connection with a peer is gone.
    Disconnected {
        /// The peer.
        peer: PeerKey,
    },
    /// Something of the way to a peer was measured.
    LinkMeasured {
        /// The peer.
        peer: PeerKey,
        /// There and back.
        rtt: Option<Duration>,
        /// Bytes in a second, from here.
        bytes_per_second: Option<u64>,
    },
    /// A dial did not lead to a connection.
    DialFailed {
        /// Who was dialled, where that was known.
        peer: Option<PeerKey>,
        /// Why.
        why: DialFailure,
    },
    /// A frame arrived.
    Frame(Frame),
    /// A frame was given up; one event for each.
    SendFailed {
        /// For whom it was.
        to: PeerKey,
        /// By which stream.
        channel: Channel,
        /// Why.
        why: SendFailure,
    },
    /// A gossip message arrived and waits for its verdict.
    Gossip {
        /// Its name.
        id: GossipId,
        /// Who handed it over, which need not be who wrote it.
        from: PeerKey,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A message could not be gossiped.
    PublishFailed {
        /// Its name.
        id: GossipId,
        /// Why.
        why: PublishFailure,
    },
    /// A peer broke a rule; its stream, and where it says so its connection, was cut.
    Misbehaved {
        /// The peer.
        peer: PeerKey,
        /// What it did.
        what: Misbehaviour,
    },
    /// A peer asks for a blob.
    BlobRequested {
        /// The peer.
        from: PeerKey,
        /// The blob.
        hash: [u8; 32],
        /// The agreement or grant it names.
        under: [u8; 32],
        /// `None` and a missing file look the same to the peer.
        reply: oneshot::Sender<Option<ServeBlob>>,
    },
    /// A peer calls.
    Called {
        /// The peer.
        from: PeerKey,
        /// The call.
        call: CallStream,
    },
    /// A fetch goes on; a few times a second at most.
    BlobProgress {
        /// Which.
        id: FetchId,
        /// Verified bytes so far, those of earlier attempts included.
        bytes: u64,
    },
    /// A fetch ended well: the file is complete and verified, but not synced.
    BlobDone {
        /// Which.
        id: FetchId,
        /// The blob's size.
        bytes: u64,
    },
    /// A fetch ended otherwise. What was verified stays in the file.
    BlobFailed {
        /// Which.
        id: FetchId,
        /// Why.
        why: BlobFailure,
    },
}

/// A frame from a peer. As long as it lives it counts as in flight, so drop it when it is done.
#[derive(Debug)]
pub struct Frame {
    /// The peer, proven by the connection's handshake.
    pub from: PeerKey,
    /// By which stream.
    pub channel: Channel,
    /// The frame, at most the channel's limit.
    pub bytes: Vec<u8>,
    _held: OwnedSemaphorePermit,
}

/// Why a frame was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendFailure {
    /// Not connected, and no address is known.
    #[error("no address is known for the peer")]
    NoAddress,
    /// Not connected, and dialling failed.
    #[error("the peer could not be reached")]
    Unreachable,
    /// The peer takes frames slower than they come.
    #[error("the queue for the peer is full")]
    QueueFull,
    /// Larger than the channel allows.
    #[error("the frame is larger than its channel allows")]
    TooLarge,
    /// The peer doesn't speak this channel's protocol.
    #[error("the peer does not speak this protocol")]
    Unsupported,
    /// The connection or stream broke, or made no progress.
    #[error("the connection was lost")]
    Lost,
}

/// Why a message was not gossiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishFailure {
    /// Nobody listens yet.
    #[error("no peer listens to the network's gossip yet")]
    NoPeers,
    /// The same bytes were gossiped a short while ago.
    #[error("the same message was published already")]
    Duplicate,
    /// Larger than the limit.
    #[error("the message is larger than gossip allows")]
    TooLarge,
    /// All neighbours' queues are full.
    #[error("the neighbours' queues are full")]
    QueuesFull,
}

/// Why a dial failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialFailure {
    /// No address that may be dialled.
    #[error("no address to dial; private addresses need LAN mode")]
    NoAddress,
    /// Nothing answered, or not in time.
    #[error("no answer: {0}")]
    Unreachable(String),
    /// Somebody else answered.
    #[error("another peer answered at that address")]
    WrongPeer,
    /// The address is this node's own.
    #[error("that address is this node's own")]
    Itself,
    /// This node refuses the peer: its key, a block, or no place left.
    #[error("refused: {0}")]
    Refused(String),
    /// The peer ended the connection before it said who it is; it may have no room for us.
    #[error("the peer closed the connection at once; it may have no room")]
    Closed,
    /// The peer answered, but is of another network.
    #[error("the peer is not of this network")]
    WrongNetwork,
}

/// What a peer did that honest software does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misbehaviour {
    /// Announced a frame over the limit; the stream was reset.
    OversizeFrame {
        /// On which channel.
        channel: Channel,
        /// The announced length.
        bytes: u32,
    },
    /// Began a frame and did not end it in time; the stream was reset.
    SlowFrame {
        /// On which channel.
        channel: Channel,
    },
    /// Stayed over its budget though it was slowed; disconnected.
    Flood,
    /// Opened more streams than it may, again and again; disconnected.
    TooManyStreams,
    /// Gossips over its rate; what is above is dropped. Reported at most once a minute.
    GossipFlood,
}

/// A connected peer, as a person wants to see it.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// The peer.
    pub peer: PeerKey,
    /// The address of the connection that is used.
    pub address: Multiaddr,
    /// Whether it opened that connection.
    pub inbound: bool,
    /// Connections with it.
    pub connections: usize,
    /// When it connected.
    pub since: SystemTime,
    /// The last ping's round trip.
    pub rtt: Option<Duration>,
    /// Its standing in gossip: rejected messages lower it, and far below zero it is not heard.
    pub gossip_score: Option<f64>,
    /// What it says it is: printable ASCII, at most 64 characters.
    pub agent: String,
}

/// Why a transport did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// Another program listens there.
    #[error("{address} is in use; stop what listens there, or set another listen address")]
    PortBusy {
        /// The address.
        address: Multiaddr,
    },
    /// The address can't be listened on.
    #[error("cannot listen on {address}: {why}; set a listen address of this machine")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// The system's words.
        why: String,
    },
    /// The network's name is not usable.
    #[error("the network's name must be 1 to 32 of a-z 0-9 - _ . ; set another")]
    NetworkName,
    /// libp2p refused the settings.
    #[error("cannot set up the transport: {0}; this is a fault of the program, please report it")]
    Setup(String),
}

/// Tells this run of a node from its earlier ones: peers then know that a connection from before
/// is dead, though nothing has closed it.
fn process_mark() -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seed = format!("{} {}", std::process::id(), now.as_nanos());
    blake3::hash(seed.as_bytes()).to_hex()[..8].to_owned()
}

/// Listens on a port that [`probe_port`] found free. A worker that the executor forks at that very
/// moment holds the probe's socket until it runs its own program: the port is taken for so long.
fn listen(swarm: &mut Swarm<network::Network>, address: &Multiaddr) -> Result<(), TransportError> {
    probe_port(address)?;
    let mut tries = LISTEN_TRIES;
    loop {
        tries -= 1;
        match swarm.listen_on(address.clone()) {
            Ok(_) => return Ok(()),
            Err(_) if tries > 0 => std::thread::sleep(LISTEN_PAUSE),
            Err(error) => {
                return Err(TransportError::Listen {
                    address: address.clone(),
                    // QUIC's errors print as nothing.
                    why: format!("{error:?}"),
                });
            }
        }
    }
}

/// Binds the port once and lets it go, to name the error: libp2p binds TCP listeners with
/// `SO_REUSEPORT`, under which two nodes would share a port without a word, and wraps what QUIC's
/// socket says beyond recognition.
fn probe_port(address: &Multiaddr) -> Result<(), TransportError> {
    let mut parts = address.iter().skip(1);
    let bound = match (addresses::ip_of(address), parts.next()) {
        (Some(ip), Some(Protocol::Tcp(port))) if port != 0 => {
            std::net::TcpListener::bind((ip, port)).map(drop)
        }
        (Some(ip), Some(Protocol::Udp(port))) if port != 0 => {
            std::net::UdpSocket::bind((ip, port)).map(drop)
        }
        _ => Ok(()),
    };
    let address = address.clone();
    bound.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => TransportError::PortBusy { address },
        _ => TransportError::Listen {
            address,
            why: error.to_string(),
        },
    })
}

fn check_network_name(name: &str) -> Result<(), TransportError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if (1..=32).contains(&name.len()) && name.chars().all(allowed) {
        Ok(())
    } else {
        Err(TransportError::NetworkName)
    }
}
