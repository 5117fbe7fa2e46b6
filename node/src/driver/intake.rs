//! Turns what the transport brings into what the driver takes.
//!
//! Decoding and signatures cost far more than a step of the core, so they are
//! done here, in a task of its own, and the driver only ever sees verified
//! messages. Order is kept. Absent: any judgement that needs state.

use suanli_protocol::{
    ids::{NetworkId, PeerId},
    message::{Frame, Gossip, Message},
};
use tokio::sync::mpsc;

use crate::transport::{GossipId, PeerKey, TransportEvent};

/// Events that may wait for the driver.
const QUEUE: usize = 256;

/// What the driver takes.
#[derive(Debug)]
pub(super) enum Intake {
    /// A verified message, and the frame that keeps its sender's budget taken
    /// until it is handled.
    Message {
        from: PeerId,
        message: Box<Message>,
        _held: crate::transport::Frame,
    },
    /// Verified gossip.
    Gossip {
        id: GossipId,
        from: PeerKey,
        gossip: Box<Gossip>,
    },
    /// Gossip that nobody should forward; `from` should have seen that.
    BadGossip {
        id: GossipId,
        from: PeerKey,
        why: String,
    },
    /// A frame that no honest peer sends.
    Bad { from: PeerId, why: String },
    /// Everything else, as it came.
    Other(TransportEvent),
}

/// Starts the task. It ends with the transport or with the driver.
pub(super) fn start(
    mut events: mpsc::Receiver<TransportEvent>,
    network: NetworkId,
) -> mpsc::Receiver<Intake> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if sender.send(check(event, network)).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// A transport key as the core names it.
pub(super) const fn peer_of(key: &PeerKey) -> PeerId {
    PeerId::from_bytes(*key.as_bytes())
}

fn check(event: TransportEvent, network: NetworkId) -> Intake {
    match event {
        TransportEvent::Frame(frame) => {
            let from = peer_of(&frame.from);
            let message = Frame::decode(&frame.bytes)
                .map_err(|error| error.to_string())
                .and_then(|decoded| {
                    if channel_of(&decoded) == frame.channel {
                        Ok(decoded)
                    } else {
                        Err("a frame on the wrong stream".to_owned())
                    }
                })
                .and_then(|decoded| {
                    decoded
                        .verify(from, network)
                        .map_err(|error| error.to_string())
                });
            match message {
                Ok(message) => Intake::Message {
                    from,
                    message: Box::new(message),
                    _held: frame,
                },
                Err(why) => Intake::Bad { from, why },
            }
        }
        TransportEvent::Gossip { id, from, bytes } => match Gossip::verify(&bytes, network) {
            Ok(gossip) => Intake::Gossip {
                id,
                from,
                gossip: Box::new(gossip),
            },
            Err(error) => Intake::BadGossip {
                id,
                from,
                why: error.to_string(),
            },
        },
        other => Intake::Other(other),
    }
}

/// The transport's name for the stream that carries a frame.
pub(super) const fn channel_of(frame: &Frame) -> crate::transport::Channel {
    use suanli_protocol::message::Channel as Core;

    use crate::transport::Channel;
    match frame.channel() {
        Core::Negotiate => Channel::Negotiate,
        Core::Exec => Channel::Exec,
        Core::Settle => Channel::Settle,
        Core::Book => Channel::Book,
        Core::Challenge => Channel::Challenge,
    }
}
