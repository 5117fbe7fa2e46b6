//! What lies between nodes: connections, delay, loss, partitions, gossip and
//! the transfer of blobs.
//!
//! A frame to a node without a connection dials it first. Gossip floods over
//! connections to neighbours, as far as verdicts let it. Nothing that crosses
//! a partition arrives, also if it was on its way.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use suanli_protocol::{
    deal::BlobRef,
    ids::{AgreementId, BlobId, Hash, PeerId},
    message::{Frame, Message},
    peer::{Input, Kept},
    record::Lsn,
};

use super::{
    node::Ix,
    plant::Plant,
    trace::describe,
    world::{Event, World},
};
use crate::scenario::Nature;

/// Frames that a forger may have overheard.
const OVERHEARD_MAX: usize = 64;

/// A fetch from a node that is not reachable ends so late.
const FETCH_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections and cuts.
#[derive(Debug, Default)]
pub(crate) struct Links {
    connected: BTreeSet<(Ix, Ix)>,
    cuts: BTreeMap<u64, Cut>,
    number: u64,
    pub(crate) overheard: VecDeque<Arc<[u8]>>,
}

/// A partition: nodes on one side, and whether only their words are lost.
#[derive(Debug)]
struct Cut {
    side: BTreeSet<Ix>,
    one_way: bool,
}

impl Cut {
    fn blocks(&self, from: Ix, to: Ix) -> bool {
        let (from, to) = (self.side.contains(&from), self.side.contains(&to));
        from != to && (from || !self.one_way)
    }
}

const fn pair(a: Ix, b: Ix) -> (Ix, Ix) {
    if a < b { (a, b) } else { (b, a) }
}

impl Links {
    fn blocks(&self, from: Ix, to: Ix) -> bool {
        self.cuts.values().any(|cut| cut.blocks(from, to))
    }

    pub(crate) fn is_connected(&self, a: Ix, b: Ix) -> bool {
        self.connected.contains(&pair(a, b))
    }

    /// All connections of a node go, without a word to it.
    pub(crate) fn forget(&mut self, ix: Ix) -> Vec<Ix> {
        let of = |&(a, b): &(Ix, Ix)| match ix {
            _ if a == ix => Some(b),
            _ if b == ix => Some(a),
            _ => None,
        };
        let others = self.connected.iter().filter_map(of).collect();
        self.connected.retain(|pair| of(pair).is_none());
        others
    }
}

/// Connections.
impl World<'_> {
    pub(crate) fn connect(&mut self, a: Ix, b: Ix) {
        let up = self.nodes[a].boot > 0 && self.nodes[b].boot > 0;
        let down = |ix: Ix, world: &Self| {
            world.nodes[ix].peer.is_none() && world.nodes[ix].nature != Nature::Forger
        };
        if !up || down(a, self) || down(b, self) || self.links.is_connected(a, b) {
            return;
        }
        if self.links.blocks(a, b) || self.links.blocks(b, a) {
            return;
        }
        self.links.connected.insert(pair(a, b));
        for (me, other) in [(a, b), (b, a)] {
            let peer = self.nodes[other].peer_id();
            self.step(me, Input::Connected { peer, local: false });
        }
    }

    pub(crate) fn disconnect(&mut self, a: Ix, b: Ix) {
        if !self.links.connected.remove(&pair(a, b)) {
            return;
        }
        for (me, other) in [(a, b), (b, a)] {
            let peer = self.nodes[other].peer_id();
            self.step(me, Input::Disconnected { peer });
        }
        if self.nodes[a].neighbours.contains(&b) || self.nodes[b].neighbours.contains(&a) {
            let after = self.dice.millis([200, 3000]);
            self.later(after, Event::Connect(a, b));
        }
    }

    pub(crate) fn break_some(&mut self) {
        let at = self.dice.index(self.links.connected.len());
        if self.quiet {
            return;
        }
        if let Some(&(a, b)) = self.links.connected.iter().nth(at) {
            self.disconnect(a, b);
        }
    }

    pub(crate) fn partition(&mut self) {
        if self.quiet {
            return;
        }
        let share = self.dice.within([2, 8]);
        let side: BTreeSet<Ix> = (0..self.nodes.len())
            .filter(|_| self.dice.below(16) < share)
            .collect();
        let one_way = self.dice.chance(self.scenario.faults.one_way);
        self.links.number += 1;
        let number = self.links.number;
        let lasts = self.dice.millis(self.scenario.faults.partition_ms);
        self.trace.say(self.now, || {
            (format!("partition {number} around {side:?}"), vec![])
        });
        let crossing: Vec<(Ix, Ix)> = self
            .links
            .connected
            .iter()
            .filter(|(a, b)| side.contains(a) != side.contains(b))
            .copied()
            .collect();
        self.links.cuts.insert(number, Cut { side, one_way });
        self.later(lasts, Event::Heal(number));
        for (a, b) in crossing {
            // A silent connection is noticed after a while.
            let noticed = self.dice.millis([2000, 8000]);
            if noticed < lasts {
                self.later(noticed, Event::Disconnect(a, b));
            }
        }
    }

    /// Nothing passes between a node and the others for some time.
    pub(crate) fn cut(&mut self, ix: Ix, lasts: Duration) {
        self.links.number += 1;
        let number = self.links.number;
        let cut = Cut {
            side: BTreeSet::from([ix]),
            one_way: false,
        };
        self.links.cuts.insert(number, cut);
        self.later(lasts, Event::Heal(number));
        for other in 0..self.nodes.len() {
            if self.links.is_connected(ix, other) {
                self.later(lasts / 2, Event::Disconnect(ix, other));
            }
        }
    }

    pub(crate) fn heal(&mut self, number: u64) {
        if self.links.cuts.remove(&number).is_none() {
            return;
        }
        self.trace
            .say(self.now, || (format!("partition {number} heals"), vec![]));
        self.dial_neighbours();
    }

    fn dial_neighbours(&mut self) {
        for a in 0..self.nodes.len() {
            for n in 0..self.nodes[a].neighbours.len() {
                let b = self.nodes[a].neighbours[n];
                if !self.links.is_connected(a, b) {
                    let after = self.dice.millis([5, 1000]);
                    self.later(after, Event::Connect(a, b));
                }
            }
        }
    }

    pub(crate) fn heal_all(&mut self) {
        self.links.cuts.clear();
        self.dial_neighbours();
    }

    pub(crate) fn delay(&mut self, from: Ix, to: Ix) -> Duration {
        let links = &self.scenario.links;
        let near = self.dice.millis(links.delay_ms);
        if self.nodes[from].region == self.nodes[to].region {
            near
        } else {
            near + self.dice.millis(links.far_ms)
        }
    }
}

/// Frames.
impl World<'_> {
    pub(crate) fn send(&mut self, from: Ix, to: PeerId, frame: Frame, after: Lsn) {
        let Some(&to) = self.by_peer.get(&to) else {
            return;
        };
        let frame = match self.nodes[from].nature {
            Nature::Liar => self.exaggerate(from, frame),
            Nature::Honest | Nature::Forger | Nature::Idler | Nature::Cheat | Nature::Flooder => {
                frame
            }
        };
        let bytes: Arc<[u8]> = frame.encode().into();
        let me = self.nodes[from].peer_id();
        let read = self.reader.frame(&bytes, me);
        match &*read {
            Ok(message) => {
                self.checks
                    .sent(self.now, from, &self.nodes[from], after, message);
                return self.transmit_scripted(from, to, &bytes, message);
            }
            Err(why) => {
                // What the receiver will find out.
                let why = format!("it sends what can't be read: {why}");
                self.blame(from, from, &why);
            }
        }
        self.transmit(from, to, &bytes);
    }

    /// Puts bytes on the way to a node, as often as the link makes of it.
    pub(crate) fn transmit(&mut self, from: Ix, to: Ix, bytes: &Arc<[u8]>) {
        if from == to || self.links.blocks(from, to) {
            return;
        }
        if self.links.overheard.len() >= OVERHEARD_MAX {
            self.links.overheard.pop_front();
        }
        self.links.overheard.push_back(bytes.clone());
        let mut delay = self.delay(from, to);
        if !self.links.is_connected(from, to) {
            if self.links.blocks(to, from) {
                return;
            }
            self.later(delay, Event::Connect(from, to));
            delay = delay * 2 + Duration::from_micros(1);
        }
        let links = &self.scenario.links;
        let copies = if self.quiet {
            1
        } else if self.dice.chance(links.drop) {
            self.figures.dropped += 1;
            0
        } else {
            1 + u32::from(self.dice.chance(links.duplicate))
        };
        for copy in 0..copies {
            let held = !self.quiet && (copy > 0 || self.dice.chance(links.reorder));
            let extra = if held {
                self.dice.millis(links.reorder_ms)
            } else {
                Duration::ZERO
            };
            let bytes = bytes.clone();
            self.later(delay + extra, Event::Frame { from, to, bytes });
        }
    }

    pub(crate) fn on_frame(&mut self, from: Ix, to: Ix, bytes: &Arc<[u8]>) {
        if self.links.blocks(from, to) || self.nodes[to].peer.is_none() {
            return;
        }
        self.figures.frames += 1;
        let sender = self.nodes[from].peer_id();
        let read = self.reader.frame(bytes, sender);
        match &*read {
            Ok(message) => {
                let network = self.reader.network;
                let (a, b) = (&self.nodes[from].name, &self.nodes[to].name);
                self.trace.say(self.now, || {
                    let (what, subjects) = describe(message, network);
                    (format!("{a} → {b}: {what}"), subjects)
                });
                let message: Box<Message> = Box::new(message.clone());
                let input = Input::Message {
                    from: sender,
                    message,
                };
                self.step(to, input);
                self.script_arrived(from, to, bytes);
            }
            Err(why) => self.blame(to, from, why),
        }
    }
}

/// Gossip.
impl World<'_> {
    pub(crate) fn publish(&mut self, ix: Ix, bytes: Arc<[u8]>) {
        self.nodes[ix].gossip.seen.insert(Hash::of(&bytes));
        self.flood(ix, None, &bytes);
    }

    pub(crate) fn flood(&mut self, ix: Ix, except: Option<Ix>, bytes: &Arc<[u8]>) {
        for n in 0..self.nodes[ix].neighbours.len() {
            let to = self.nodes[ix].neighbours[n];
            if Some(to) == except || self.links.blocks(ix, to) || !self.links.is_connected(ix, to) {
                continue;
            }
            if !self.quiet && self.dice.chance(self.scenario.links.drop) {
                continue;
            }
            let delay = self.delay(ix, to);
            let bytes = bytes.clone();
            let from = ix;
            self.later(delay, Event::Gossip { from, to, bytes });
        }
    }

    pub(crate) fn on_gossip(&mut self, from: Ix, to: Ix, bytes: Arc<[u8]>) {
        if self.links.blocks(from, to) {
            return;
        }
        let read = self.reader.gossip(&bytes);
        if self.is_hostile(to) {
            self.gather(to, &read);
        }
        let node = &mut self.nodes[to];
        if node.peer.is_none() || !node.gossip.seen.insert(Hash::of(&bytes)) {
            return;
        }
        self.figures.gossip += 1;
        match &*read {
            Ok(gossip) => {
                node.gossip.next += 1;
                let token = node.gossip.next;
                node.gossip.tokens.insert(token, (from, bytes));
                let gossip = Box::new(gossip.clone());
                self.step(to, Input::Gossip { token, gossip });
            }
            Err(why) => self.blame(to, from, why),
        }
    }
}

/// Blobs.
impl World<'_> {
    pub(crate) fn fetch(
        &mut self,
        ix: Ix,
        (agreement, under): (AgreementId, AgreementId),
        from: PeerId,
        blob: BlobRef,
    ) {
        let Some(&server) = self.by_peer.get(&from) else {
            return;
        };
        let boot = self.nodes[ix].boot;
        let lost = self.links.blocks(ix, server)
            || self.links.blocks(server, ix)
            || self.nodes[server].peer.is_none()
            || (!self.quiet && self.dice.chance(self.scenario.faults.fetch_fail));
        if lost {
            let event = Event::Fetched {
                node: ix,
                boot,
                agreement,
                blob: blob.blob,
                ok: false,
            };
            return self.later(FETCH_TIMEOUT, event);
        }
        let links = &self.scenario.links;
        let rate = match links.far_bytes_per_second {
            Some(far) if self.nodes[ix].region != self.nodes[server].region => far,
            _ => links.bytes_per_second,
        };
        let micros = u128::from(blob.bytes) * 1_000_000 / u128::from(rate.max(1));
        let transfer = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        let after = self.delay(ix, server) + transfer;
        self.later(
            after,
            Event::Serve {
                reader: ix,
                boot,
                server,
                agreement: (agreement, under),
                blob: blob.blob,
            },
        );
    }

    pub(crate) fn serve(
        &mut self,
        reader: Ix,
        boot: u64,
        server: Ix,
        (agreement, under): (AgreementId, AgreementId),
        blob: BlobId,
    ) {
        let asker = self.nodes[reader].peer_id();
        let serving = &self.nodes[server];
        let now = serving.clocks(self.now).wall;
        let ok = serving
            .peer
            .as_ref()
            .is_some_and(|peer| peer.may_read(now, asker, under, blob))
            && serving.blobs.contains(&blob)
            && !self.links.blocks(server, reader);
        let after = self.delay(server, reader);
        self.later(
            after,
            Event::Fetched {
                node: reader,
                boot,
                agreement,
                blob,
                ok,
            },
        );
    }

    /// A result is a blob some time later: what the machine has not stored when
    /// it stops is gone.
    pub(crate) fn store(&mut self, ix: Ix, blob: BlobId, kept: Kept) {
        let agreement = match kept {
            Kept::Input => {
                self.nodes[ix].blobs.insert(blob);
                return;
            }
            Kept::Result => None,
            Kept::OnlyResult(agreement) | Kept::State(agreement) => Some(agreement),
        };
        let boot = self.nodes[ix].boot;
        let after = self.dice.millis(self.scenario.faults.disk_ms);
        let event = Event::Stored {
            node: ix,
            boot,
            agreement,
            blob,
        };
        self.later(after * 3, event);
        if let Some(agreement) = agreement
            && self.plant == Some(Plant::BlobsSaidEarly)
        {
            self.lie_about_blob(ix, agreement, blob);
        }
    }

    /// Planted: the driver says that a result is on disk before it is.
    fn lie_about_blob(&mut self, ix: Ix, agreement: AgreementId, blob: BlobId) {
        let node = &mut self.nodes[ix];
        let clocks = node.clocks(self.now);
        if let Some(peer) = &mut node.peer {
            let ok = true;
            let input = Input::Fetched {
                agreement,
                blob,
                ok,
            };
            peer.handle(clocks, input);
        }
    }

    pub(crate) fn stored(&mut self, ix: Ix, agreement: Option<AgreementId>, blob: BlobId) {
        self.nodes[ix].blobs.insert(blob);
        if let Some(agreement) = agreement {
            self.step(
                ix,
                Input::Fetched {
                    agreement,
                    blob,
                    ok: true,
                },
            );
        }
    }

    pub(crate) fn fetched(&mut self, ix: Ix, agreement: AgreementId, blob: BlobId, ok: bool) {
        if ok {
            self.nodes[ix].blobs.insert(blob);
        }
        self.step(
            ix,
            Input::Fetched {
                agreement,
                blob,
                ok,
            },
        );
    }
}
