//! Substreams by protocol name: opens them on request, hands out those that peers open.
//!
//! A behaviour of our own rather than `libp2p-stream`, whose one-slot inbound queue drops a
//! second stream that arrives before the first is taken, and which keeps an entry for every
//! connection that ever was. This one has no shared state: streams travel to the engine as the
//! swarm's events, and how many a peer may have is the engine's business.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
    time::Duration,
};

use libp2p::{
    InboundUpgrade, Multiaddr, OutboundUpgrade, PeerId, Stream, StreamProtocol,
    core::{Endpoint, UpgradeInfo, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};

use super::{Channel, FetchId, call::CallId};

/// What a substream that we open is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Frames(Channel),
    Fetch(FetchId),
    Call(CallId),
}

/// What a substream that a peer opened is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inbound {
    Frames(Channel),
    Blob,
    Call,
}

/// What the behaviour tells the engine.
#[derive(Debug)]
pub(super) enum StreamEvent {
    /// A peer opened a stream.
    Accepted { purpose: Inbound, stream: Stream },
    /// A stream that the engine asked for is open.
    Opened { purpose: Purpose, stream: Stream },
    /// A stream that the engine asked for did not come about.
    Failed { purpose: Purpose, why: OpenError },
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenError {
    /// The peer speaks another version, or is of another network.
    Unsupported,
    Timeout,
    Lost,
}

/// The protocol names of one network.
#[derive(Debug, Clone)]
pub(super) struct Protocols {
    channels: [StreamProtocol; Channel::COUNT],
    blob: StreamProtocol,
    call: StreamProtocol,
}

impl Protocols {
    /// `None` if the network's name makes no valid protocol name.
    pub(super) fn of(network: &str) -> Option<Self> {
        let name =
            |what: &str| StreamProtocol::try_from_owned(format!("/suanli/{network}/{what}/1")).ok();
        let [a, b, c, d, e] = Channel::ALL.map(|channel| name(channel.name()));
        Some(Self {
            channels: [a?, b?, c?, d?, e?],
            blob: name("blob")?,
            call: name("call")?,
        })
    }

    fn outbound(&self, purpose: Purpose) -> StreamProtocol {
        match purpose {
            Purpose::Frames(channel) => self.channels[channel.index()].clone(),
            Purpose::Fetch(_) => self.blob.clone(),
            Purpose::Call(_) => self.call.clone(),
        }
    }

    fn accepted(&self) -> Vec<Accept> {
        Channel::ALL
            .into_iter()
            .map(|channel| Accept {
                name: self.channels[channel.index()].clone(),
                purpose: Inbound::Frames(channel),
            })
            .chain([
                Accept {
                    name: self.blob.clone(),
                    purpose: Inbound::Blob,
                },
                Accept {
                    name: self.call.clone(),
                    purpose: Inbound::Call,
                },
            ])
            .collect()
    }
}

/// The behaviour; see the module's documentation.
pub(super) struct Streams {
    protocols: Protocols,
    handshake: Duration,
    outbox: VecDeque<(PeerId, ConnectionId, Purpose)>,
    inbox: VecDeque<(PeerId, ConnectionId, StreamEvent)>,
}

impl Streams {
    pub(super) fn new(protocols: Protocols, handshake: Duration) -> Self {
        Self {
            protocols,
            handshake,
            outbox: VecDeque::new(),
            inbox: VecDeque::new(),
        }
    }

    /// Opens a stream; [`StreamEvent::Opened`] or [`StreamEvent::Failed`] follows, or the
    /// connection's end. The caller bounds how many it asks for.
    pub(super) fn open(&mut self, peer: PeerId, connection: ConnectionId, purpose: Purpose) {
        self.outbox.push_back((peer, connection, purpose));
    }

    fn handler(&self) -> Handler {
        Handler {
            protocols: self.protocols.clone(),
            handshake: self.handshake,
            wanted: VecDeque::new(),
            events: VecDeque::new(),
        }
    }
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Handler;
    type ToSwarm = (PeerId, ConnectionId, StreamEvent);

    fn handle_established_inbound_connection(
        &mut self,
        _id: ConnectionId,
        _peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _id: ConnectionId,
        _peer: PeerId,
        _address: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn on_swarm_event(&mut self, _event: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.inbox.push_back((peer, connection, event));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(event) = self.inbox.pop_front() {
            return Poll::Ready(ToSwarm::GenerateEvent(event));
        }
        if let Some((peer_id, connection, purpose)) = self.outbox.pop_front() {
            return Poll::Ready(ToSwarm::NotifyHandler {
                peer_id,
                handler: NotifyHandler::One(connection),
                event: purpose,
            });
        }
        // `open` is called by the task that polls the swarm right after: no waker is needed.
        Poll::Pending
    }
}

/// One connection's side of [`Streams`].
pub(super) struct Handler {
    protocols: Protocols,
    handshake: Duration,
    wanted: VecDeque<Purpose>,
    events: VecDeque<StreamEvent>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Purpose;
    type ToBehaviour = StreamEvent;
    type InboundProtocol = AcceptAny;
    type OutboundProtocol = Open;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Purpose;

    fn listen_protocol(&self) -> SubstreamProtocol<AcceptAny> {
        SubstreamProtocol::new(AcceptAny(self.protocols.accepted()), ())
            .with_timeout(self.handshake)
    }

    /// Always: a connection that idles is the one that answers fast. The gate bounds them.
    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Open, Purpose, StreamEvent>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        if let Some(purpose) = self.wanted.pop_front() {
            let open = Open(self.protocols.outbound(purpose));
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(open, purpose).with_timeout(self.handshake),
            });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, purpose: Purpose) {
        self.wanted.push_back(purpose);
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, AcceptAny, Open, (), Purpose>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, purpose),
                info: (),
            }) => self
                .events
                .push_back(StreamEvent::Accepted { purpose, stream }),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: purpose,
            }) => self
                .events
                .push_back(StreamEvent::Opened { purpose, stream }),
            ConnectionEvent::DialUpgradeError(DialUpgradeError {
                error,
                info: purpose,
            }) => {
                let why = match error {
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    StreamUpgradeError::Timeout => OpenError::Timeout,
                    StreamUpgradeError::Io(_) => OpenError::Lost,
                    StreamUpgradeError::Apply(never) => match never {},
                };
                self.events.push_back(StreamEvent::Failed { purpose, why });
            }
            // ConnectionEvent is non-exhaustive; what is left needs no answer.
            _ => {}
        }
    }
}

/// One protocol that we accept.
#[derive(Debug, Clone)]
pub(super) struct Accept {
    name: StreamProtocol,
    purpose: Inbound,
}

impl AsRef<str> for Accept {
    fn as_ref(&self) -> &str {
        self.name.as_ref()
    }
}

/// Accepts any of our protocols and says which it was.
pub(super) struct AcceptAny(Vec<Accept>);

impl UpgradeInfo for AcceptAny {
    type Info = Accept;
    type InfoIter = std::vec::IntoIter<Accept>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for AcceptAny {
    type Output = (Stream, Inbound);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, accepted: Accept) -> Self::Future {
        ready(Ok((stream, accepted.purpose)))
    }
}

/// Opens one protocol.
pub(super) struct Open(StreamProtocol);

impl UpgradeInfo for Open {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(self.0.clone())
    }
}

impl OutboundUpgrade<Stream> for Open {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}
