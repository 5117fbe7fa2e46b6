//! Places of a model: who computes now, and whose turn is next.
//!
//! ```text
//! enter ─┬─ enough are free, and nobody waits ─▶ Place ─ dropped ─▶ whose turn is next
//!        ├─ else ─▶ a line ─ its turn ─▶ Place
//!        └─ the line is full ─▶ Full, or who has most in it loses its last
//! ```
//!
//! Turns are fair between clients, by start-time fair queueing: a client's next question is
//! stamped with where its last one ends, in places and not in time, and the lowest stamp comes
//! first. One that sends a hundred questions waits behind one that sends its first. Within a
//! client the first comes first. (Goyal, Vin and Cheng, 1996.) A question that takes several
//! places waits until so many are free, and all others behind it.
//!
//! Absent: leases, and how long an answer takes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use suanli_protocol::ids::PeerId;
use tokio::sync::oneshot;

/// Questions that wait for a place, for each place that there is.
const LINE_PER_PLACE: usize = 8;

/// The places of one model.
#[derive(Debug, Clone)]
pub struct Places(Arc<Mutex<State>>);

/// Some places, until this is dropped.
#[derive(Debug)]
pub struct Place {
    of: Places,
    count: u32,
}

/// What somebody gets who wants a place.
#[derive(Debug)]
pub enum Entered {
    /// It is here.
    Now(Place),
    /// It comes, if no error does: the line has no room then any more.
    Waits {
        /// Questions whose turns come first, as it stands.
        ahead: u32,
        /// Its turn. Dropping it leaves the line.
        turn: Turn,
    },
    /// The line has no room.
    Full,
}

/// A turn that comes.
#[derive(Debug)]
pub struct Turn {
    of: Places,
    place: oneshot::Receiver<Place>,
}

impl Turn {
    /// Its place; none if the line has no room for it any more.
    pub async fn come(mut self) -> Option<Place> {
        (&mut self.place).await.ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.place.close();
        // Who waited behind it may have room enough.
        self.of.take_turns();
    }
}

#[derive(Debug)]
struct State {
    all: u32,
    free: u32,
    /// Those who wait: by stamp, and then by coming.
    line: BTreeMap<(u64, u64), Waits>,
    /// The stamp of whose turn came last.
    now: u64,
    /// Where the last question of each client ends, if after that.
    ends: BTreeMap<PeerId, u64>,
    arrivals: u64,
}

#[derive(Debug)]
struct Waits {
    client: PeerId,
    count: u32,
    turn: oneshot::Sender<Place>,
}

impl Waits {
    /// What had no turn does not put its client's next question behind.
    fn costs_nothing(&self, ends: &mut BTreeMap<PeerId, u64>) {
        if let Some(end) = ends.get_mut(&self.client) {
            *end = end.saturating_sub(self.count.into());
        }
    }
}

impl Places {
    /// So many, none of them taken.
    pub fn new(all: u16) -> Self {
        let all = u32::from(all);
        Self(Arc::new(Mutex::new(State {
            all,
            free: all,
            line: BTreeMap::new(),
            now: 0,
            ends: BTreeMap::new(),
            arrivals: 0,
        })))
    }

    /// How many nobody has.
    pub fn free(&self) -> u32 {
        self.with(|state| state.free)
    }

    /// Places for a question of a client. It takes as many as there are at most.
    pub fn enter(&self, client: PeerId, count: u32) -> Entered {
        let entered = self.with(|state| {
            let count = count.clamp(1, state.all.max(1));
            state.leave();
            if state.line.is_empty() && state.free >= count {
                state.free -= count;
                state.now = state.stamp(client, count);
                return Ok(count);
            }
            Err(state.wait(client, count))
        });
        match entered {
            Ok(count) => Entered::Now(self.place(count)),
            Err(Some((ahead, place))) => {
                // Those before it may have left.
                self.take_turns();
                let of = self.clone();
                let turn = Turn { of, place };
                Entered::Waits { ahead, turn }
            }
            Err(None) => Entered::Full,
        }
    }

    fn place(&self, count: u32) -> Place {
        Place {
            of: self.clone(),
            count,
        }
    }

    /// Gives free places to those whose turn it is.
    fn take_turns(&self) {
        while let Some(next) = self.with(State::next) {
            // Who has left gives them back by dropping them, after this.
            let place = self.place(next.count);
            let _ = next.turn.send(place);
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.with(|state| state.free += self.count);
        self.of.take_turns();
    }
}

impl State {
    /// Where a client's next question begins; its one after that begins behind it.
    fn stamp(&mut self, client: PeerId, count: u32) -> u64 {
        let now = self.now;
        self.ends.retain(|_, end| *end > now);
        let end = self.ends.entry(client).or_insert(now);
        let stamp = *end;
        *end = stamp.saturating_add(count.into());
        stamp
    }

    /// Forgets those who wait no more.
    fn leave(&mut self) {
        let ends = &mut self.ends;
        self.line.retain(|_, waits| {
            let stays = !waits.turn.is_closed();
            if !stays {
                waits.costs_nothing(ends);
            }
            stays
        });
    }

    /// A turn in the line, and how many come first.
    fn wait(&mut self, client: PeerId, count: u32) -> Option<(u32, oneshot::Receiver<Place>)> {
        let most = usize::try_from(self.all).unwrap_or(usize::MAX);
        if self.line.len() >= most.saturating_mul(LINE_PER_PLACE) {
            self.make_room(client)?;
        }
        self.arrivals += 1;
        let key = (self.stamp(client, count), self.arrivals);
        let ahead = self.line.range(..key).count();
        let (turn, taken) = oneshot::channel();
        let waits = Waits {
            client,
            count,
            turn,
        };
        self.line.insert(key, waits);
        Some((u32::try_from(ahead).unwrap_or(u32::MAX), taken))
    }

    /// The last of the client that has most in the line goes, if this one has fewer by two.
    fn make_room(&mut self, client: PeerId) -> Option<()> {
        let mut counts: BTreeMap<PeerId, usize> = BTreeMap::new();
        for waits in self.line.values() {
            *counts.entry(waits.client).or_default() += 1;
        }
        let own = counts.get(&client).copied().unwrap_or(0);
        let (most, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        let mut places = self.line.iter().rev();
        let (last, _) = places.find(|(_, waits)| waits.client == most)?;
        let last = *last;
        if count < own + 2 {
            return None;
        }
        self.line.remove(&last)?.costs_nothing(&mut self.ends);
        Some(())
    }

    /// Whose turn it is, its places taken.
    fn next(&mut self) -> Option<Waits> {
        self.leave();
        let first = self.line.first_entry()?;
        if first.get().count > self.free {
            return None;
        }
        let ((stamp, _), waits) = first.remove_entry();
        self.now = self.now.max(stamp);
        self.free -= waits.count;
        Some(waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> PeerId {
        PeerId::from_bytes([number; 32])
    }

    fn now(entered: Entered) -> Place {
        match entered {
            Entered::Now(place) => place,
            other => panic!("{other:?}"),
        }
    }

    fn waits(entered: Entered) -> (u32, Turn) {
        match entered {
            Entered::Waits { ahead, turn } => (ahead, turn),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn whoever_asks_little_does_not_wait_for_who_asks_much() {
        let places = Places::new(1);
        let mut place = now(places.enter(client(1), 1));
        let mut line: Vec<(u8, Turn)> = Vec::new();
        for (number, ahead) in [(1, 0), (1, 1), (1, 2), (2, 0), (3, 1), (2, 3)] {
            let (before, turn) = waits(places.enter(client(number), 1));
            assert_eq!(before, ahead, "{number}");
            line.push((number, turn));
        }
        let mut order = Vec::new();
        while !line.is_empty() {
            drop(place);
            let at = line.iter_mut().position(|(_, turn)| !turn.place.is_empty());
            let (number, mut turn) = line.remove(at.unwrap());
            place = turn.place.try_recv().unwrap();
            order.push(number);
            assert_eq!(places.free(), 0);
        }
        assert_eq!(order, [2, 3, 1, 2, 1, 1]);
        drop(place);
        assert_eq!(places.free(), 1);
        drop(now(places.enter(client(1), 1)));
    }

    #[test]
    fn who_takes_several_places_gets_them_and_who_leaves_gets_none() {
        let places = Places::new(2);
        let (one, other) = (
            now(places.enter(client(1), 1)),
            now(places.enter(client(1), 1)),
        );
        // More than there are is as many as there are.
        let (_, mut all) = waits(places.enter(client(2), 5));
        let (_, gone) = waits(places.enter(client(3), 1));
        let (_, mut last) = waits(places.enter(client(4), 1));
        drop(one);
        assert!(all.place.try_recv().is_err() && last.place.try_recv().is_err());
        drop(gone);
        drop(other);
        let both = all.place.try_recv().unwrap();
        assert_eq!(places.free(), 0);
        assert!(last.place.try_recv().is_err());
        drop(both);
        assert!(last.place.try_recv().is_ok());
        // Who leaves is not waited for by those behind it.
        let one = now(places.enter(client(1), 1));
        let (_, both) = waits(places.enter(client(8), 2));
        let (_, mut behind) = waits(places.enter(client(9), 1));
        assert!(behind.place.try_recv().is_err());
        drop(both);
        drop((behind.place.try_recv().unwrap(), one));
        // Who has left comes as early as if it had never been there.
        let one = now(places.enter(client(1), 2));
        drop(waits(places.enter(client(6), 2)));
        drop(waits(places.enter(client(6), 2)));
        let (_, of_another) = waits(places.enter(client(7), 1));
        let (ahead, of_the_same) = waits(places.enter(client(6), 1));
        assert_eq!(ahead, 1);
        let (ahead, third) = waits(places.enter(client(7), 1));
        assert_eq!(ahead, 2);
        drop((of_another, of_the_same, third, one));
        // A turn that came and was not looked at is given back as well.
        let all = now(places.enter(client(1), 2));
        let (_, unseen) = waits(places.enter(client(1), 1));
        drop(all);
        drop(unseen);
        assert_eq!(places.free(), 2);
    }

    #[test]
    fn the_line_has_an_end_and_room_for_those_who_ask_little() {
        let places = Places::new(1);
        let _place = now(places.enter(client(1), 1));
        let mut line: Vec<_> = (0..LINE_PER_PLACE)
            .map(|_| waits(places.enter(client(1), 1)).1)
            .collect();
        assert!(matches!(places.enter(client(1), 1), Entered::Full));
        let mut others: Vec<_> = (2..5)
            .map(|number| waits(places.enter(client(number), 1)).1)
            .collect();
        // The last ones of the first client have lost their turns.
        let mut is_lost = |turn: &mut Turn| {
            let came = turn.place.try_recv();
            matches!(came, Err(oneshot::error::TryRecvError::Closed))
        };
        let lost: Vec<bool> = line.iter_mut().map(&mut is_lost).collect();
        assert_eq!(lost, [false, false, false, false, false, true, true, true]);
        assert!(!others.iter_mut().any(is_lost));
    }
}
