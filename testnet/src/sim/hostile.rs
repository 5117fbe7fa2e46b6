//! What hostile nodes do: bytes that are random, mutated, cut short, replayed
//! or forged; receipts that claim too much; floods of requests.
//!
//! A forger has no peer behind it. A liar, an idler and a cheat have one, and a driver
//! that spoils what it says or wants done. A flooder signs requests by hand.

use std::{sync::Arc, time::Duration};

use suanli_protocol::{
    deal::{BlobRef, Needs, Request, Work},
    envelope::Extensions,
    ids::{BlobId, Hash, JobId, OfferId},
    message::{Frame, Gossip, Message},
    offer::Name,
    registry::{Confidentiality, Runtime, SandboxLevel, Verification},
    units::{Amount, Millis},
    wire::List,
};

use super::{
    node::Ix,
    reading::Read,
    world::{Event, World},
};
use crate::scenario::Nature;

impl World<'_> {
    /// A hostile node does its thing, and will again.
    pub(crate) fn act(&mut self, ix: Ix) {
        if self.quiet {
            return;
        }
        let pause = match self.nodes[ix].nature {
            Nature::Forger => {
                self.forge(ix);
                self.dice.millis([50, 600])
            }
            Nature::Flooder => {
                self.ask_for_nothing(ix);
                self.dice.millis([50, 400])
            }
            Nature::Honest | Nature::Liar | Nature::Idler | Nature::Cheat => return,
        };
        self.later(pause, Event::Act(ix));
    }

    /// What hostile nodes keep of gossip.
    pub(crate) fn gather(&mut self, ix: Ix, read: &Read<Gossip>) {
        if let Ok(Gossip::Offer(offer)) = &**read {
            let offers = &mut self.nodes[ix].gossip.offers;
            offers.insert(offer.signer(), offer.clone());
        }
    }

    fn forge(&mut self, ix: Ix) {
        let to = self.dice.index(self.nodes.len());
        if to == ix {
            return;
        }
        let bytes = self.spoiled();
        if self.dice.chance(0.3) {
            let (from, after) = (ix, self.delay(ix, to));
            self.later(after, Event::Gossip { from, to, bytes });
        } else {
            self.transmit(ix, to, &bytes);
        }
    }

    /// Bytes that no honest node would send.
    fn spoiled(&mut self) -> Arc<[u8]> {
        let heard = self.dice.index(self.links.overheard.len());
        let mut bytes = self
            .links
            .overheard
            .get(heard)
            .map_or_else(Vec::new, |bytes| bytes.to_vec());
        match self.dice.below(4) {
            0 => {
                let count = self.dice.index(400);
                bytes = self.dice.bytes(count);
            }
            1 => {
                let at = self.dice.index(bytes.len());
                bytes.truncate(at);
            }
            2 => {
                for _ in 0..=self.dice.below(4) {
                    let at = self.dice.index(bytes.len());
                    let bit = 1 << self.dice.below(8);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= bit;
                    }
                }
            }
            // As it was, said by somebody else.
            _ => {}
        }
        bytes.into()
    }

    /// A liar's receipt: a little more than is due.
    pub(crate) fn exaggerate(&mut self, ix: Ix, frame: Frame) -> Frame {
        let Frame::Receipt(raw, blobs) = frame else {
            return frame;
        };
        let me = self.nodes[ix].peer_id();
        let bytes = Frame::Receipt(raw.clone(), blobs.clone()).encode();
        let read = self.reader.frame(&bytes, me);
        let Ok(Message::Receipt(receipt, _)) = &*read else {
            return Frame::Receipt(raw, blobs);
        };
        let mut body = receipt.body().clone();
        body.amount = body.amount.saturating_add(Amount::from_micros(1));
        let signer = &self.nodes[ix].signer;
        let lie = signer.sign(receipt.issued(), receipt.expires(), body);
        Frame::Receipt(lie.raw(), blobs)
    }

    /// Asks some provider for a quote that will never be taken.
    fn ask_for_nothing(&mut self, ix: Ix) {
        let node = &self.nodes[ix];
        let count = node.gossip.offers.len();
        let at = self.dice.index(count);
        let Some(offer) = node.gossip.offers.values().nth(at).cloned() else {
            return;
        };
        let mut job = [0; 16];
        job.copy_from_slice(&self.dice.bytes(16));
        let request = Request {
            account: node.config.account,
            delegation: node.config.delegation.clone(),
            principal: Name::lossy("nobody"),
            provider: offer.signer(),
            offer: OfferId(offer.hash()),
            job: JobId::from_bytes(job),
            attempt: 1,
            work: Work::Job,
            spec: BlobRef {
                blob: BlobId(Hash::of(b"nothing")),
                bytes: 7,
            },
            inputs: List::default(),
            resume: List::default(),
            checkpoint_every: None,
            needs: Needs {
                runtime: Runtime::WGSL,
                features: List::default(),
                device: None,
                memory_bytes: 1,
                sandbox: SandboxLevel::PROCESS,
                run_max: Millis::new(100),
                output_bytes_max: 1,
                fuel_max: 0,
                model: None,
            },
            devices: List::default(),
            budget: Amount::from_micros(1_000_000),
            wait_max: None,
            verification: Verification::HASHES,
            confidentiality: Confidentiality::NONE,
            retention: Millis::new(0),
            take: false,
            counter: None,
            extensions: Extensions::default(),
        };
        let now = node.wall(self.now);
        let request = node
            .signer
            .sign(now, now.after(Duration::from_secs(4)), request);
        let Some(&to) = self.by_peer.get(&offer.signer()) else {
            return;
        };
        let bytes = Frame::Ask(request.raw()).encode().into();
        self.transmit(ix, to, &bytes);
    }
}
