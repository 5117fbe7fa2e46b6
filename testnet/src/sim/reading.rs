//! From bytes to messages, once for each distinct frame.
//!
//! Verification is pure: it depends on bytes, sender and network only. So its
//! results are remembered for the whole world, and fifty nodes that see the
//! same offer check one signature.

use std::{collections::BTreeMap, rc::Rc};

use suanli_protocol::{
    ids::{Hash, NetworkId, PeerId},
    message::{Frame, Gossip, Message},
};

/// Frames that are remembered. Those of a day would fill the memory, and most are
/// read once.
const FRAMES_MAX: usize = 65_536;

/// What came of reading something.
pub(crate) type Read<T> = Rc<Result<T, String>>;

/// Remembers what was read.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) network: NetworkId,
    frames: BTreeMap<(Hash, PeerId), Read<Message>>,
    gossip: BTreeMap<Hash, Read<Gossip>>,
}

impl Reader {
    pub(crate) const fn new(network: NetworkId) -> Self {
        Self {
            network,
            frames: BTreeMap::new(),
            gossip: BTreeMap::new(),
        }
    }

    /// A frame as said by a peer.
    pub(crate) fn frame(&mut self, bytes: &[u8], from: PeerId) -> Read<Message> {
        let network = self.network;
        if self.frames.len() >= FRAMES_MAX {
            self.frames.clear();
        }
        let read = || {
            let frame = Frame::decode(bytes).map_err(|error| error.to_string())?;
            frame
                .verify(from, network)
                .map_err(|error| error.to_string())
        };
        self.frames
            .entry((Hash::of(bytes), from))
            .or_insert_with(|| Rc::new(read()))
            .clone()
    }

    /// Gossip, whoever forwarded it.
    pub(crate) fn gossip(&mut self, bytes: &[u8]) -> Read<Gossip> {
        let network = self.network;
        let read = || Gossip::verify(bytes, network).map_err(|error| error.to_string());
        self.gossip
            .entry(Hash::of(bytes))
            .or_insert_with(|| Rc::new(read()))
            .clone()
    }
}
