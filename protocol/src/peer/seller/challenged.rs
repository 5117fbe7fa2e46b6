//! Capacity challenges that we take: see [`crate::challenge`].
//!
//! ```text
//!             in bounds, slot free           product here            opened
//! Challenge ──────────────────────▶ Computing ────────────▶ Committed ──────▶ (gone)
//!     └─ declined                                                └─ too late ─▶ (gone)
//! ```
//!
//! A challenge costs its giver nothing, so it is bounded: in how many a peer, and all
//! together, may give in an hour, by its size, which is what our own offer claims, and
//! by a slot, which it takes while it computes like any job. Any peer may give one:
//! who has not bought here yet is who wants to know.

use std::time::Duration;

use super::*;
use crate::{
    challenge::{Challenge, Seed},
    ids::Hash,
    limits::{CHALLENGES_MAX, CHALLENGES_PER_PEER},
    registry::SpeedKind,
    units::Now,
};

const HOUR: Duration = Duration::from_secs(3600);
/// How long a product waits to be opened.
const KEPT_MAX: Duration = Duration::from_secs(60);
/// How long a product may take: fifty times what our offer says.
const LONGEST: Duration = Duration::from_secs(20);

/// Challenges at hand, and when we took those of the last hour.
#[derive(Debug, Default)]
pub(crate) struct Challenged {
    open: BTreeMap<PeerId, Taken>,
    lately: VecDeque<(Mono, PeerId)>,
}

#[derive(Debug)]
struct Taken {
    challenge: Challenge,
    device: u16,
    since: Mono,
    root: Option<Hash>,
    /// What it was opened with. Another seed would tell its giver nothing more, and
    /// cost us as much.
    opened: Option<Seed>,
}

impl Challenged {
    /// The devices that compute them now.
    pub(super) fn devices(&self) -> impl Iterator<Item = u16> {
        let computing = self.open.values().filter(|taken| taken.root.is_none());
        computing.map(|taken| taken.device)
    }

    fn forget_old(&mut self, now: Mono) {
        while self
            .lately
            .front()
            .is_some_and(|(at, _)| now.since(*at) > HOUR)
        {
            self.lately.pop_front();
        }
    }

    /// Forgets products whose time to be opened is over.
    pub(super) fn drop_late(&mut self, core: &mut Core) {
        let now = core.now.mono;
        let late = |taken: &Taken| now.since(taken.since) > KEPT_MAX;
        let gone: Vec<PeerId> = self
            .open
            .iter()
            .filter(|(_, taken)| late(taken))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in gone {
            if let Some(taken) = self.open.remove(&peer) {
                core.output(Output::ForgetProduct(taken.challenge.seed));
            }
        }
    }
}

impl Seller {
    pub(crate) fn on_challenge(
        &mut self,
        core: &mut Core,
        from: PeerId,
        device: u16,
        challenge: Challenge,
    ) {
        let seed = challenge.seed;
        self.challenged.drop_late(core);
        if let Some(known) = self.challenged.open.get(&from) {
            let is_same = known.challenge == challenge;
            match known.root {
                Some(root) if is_same => return core.send(from, Frame::Committed(seed, root)),
                None if is_same => return,
                Some(_) if known.opened.is_some() => {
                    core.output(Output::ForgetProduct(known.challenge.seed));
                    self.challenged.open.remove(&from);
                }
                Some(_) | None => {
                    let decline = Reason::BUSY.into();
                    return core.send(from, Frame::ChallengeDeclined(seed, decline));
                }
            }
        }
        if let Err(decline) = self.may_challenge(core, from, device, &challenge) {
            return core.send(from, Frame::ChallengeDeclined(seed, decline));
        }
        let since = core.now.mono;
        self.challenged.lately.push_back((since, from));
        let taken = Taken {
            challenge,
            device,
            since,
            root: None,
            opened: None,
        };
        self.challenged.open.insert(from, taken);
        core.output(Output::Compute {
            challenge,
            device,
            run_max: Millis::from(LONGEST),
        });
    }

    fn may_challenge(
        &mut self,
        core: &Core,
        from: PeerId,
        device: u16,
        challenge: &Challenge,
    ) -> Result<(), Decline> {
        let Now { mono, .. } = core.now;
        let Some(provider) = core.config.provider.as_ref().filter(|_| !self.draining) else {
            return Err(Reason::OFFER_GONE.into());
        };
        let local = core.connected.get(&from).copied().unwrap_or(false);
        if provider.local_only && !local {
            return Err(Reason::NOT_ALLOWED.into());
        }
        let claimed = provider.offer.devices.get(usize::from(device));
        let claimed = claimed.map_or(0, |device| device.speed(SpeedKind::MATMUL));
        if claimed == 0 {
            return Err(Reason::NO_DEVICE.into());
        }
        // Not more than about a second of what we claim ourselves, and what is
        // smallest always.
        let most = claimed.max(Challenge::sized(0, 0, challenge.seed).operations());
        if !challenge.is_valid() || challenge.operations() > most {
            return Err(Decline {
                reason: Reason::TOO_LARGE,
                need: challenge.operations(),
                have: most,
            });
        }
        self.challenged.forget_old(mono);
        let of_peer = self
            .challenged
            .lately
            .iter()
            .filter(|(_, peer)| *peer == from)
            .count();
        let per_hour = usize::try_from(provider.challenges_per_hour).unwrap_or(usize::MAX);
        if of_peer >= CHALLENGES_PER_PEER || self.challenged.lately.len() >= per_hour {
            return Err(Reason::CHALLENGED_ENOUGH.into());
        }
        if self.challenged.open.len() >= CHALLENGES_MAX || !self.has_free_slot(core, device) {
            return Err(Reason::BUSY.into());
        }
        Ok(())
    }

    /// The product is here, or can't be had.
    pub(crate) fn on_computed(&mut self, core: &mut Core, seed: Seed, root: Option<Hash>) {
        let mut open = self.challenged.open.iter_mut();
        let Some((&peer, taken)) = open.find(|(_, taken)| taken.challenge.seed == seed) else {
            return core.output(Output::ForgetProduct(seed));
        };
        taken.root = root;
        match root {
            Some(root) => core.send(peer, Frame::Committed(seed, root)),
            None => {
                self.challenged.open.remove(&peer);
                core.send(
                    peer,
                    Frame::ChallengeDeclined(seed, Reason::PROVIDER_FAULT.into()),
                );
            }
        }
    }

    /// Its giver says what to open.
    pub(crate) fn on_open_commitment(
        &mut self,
        core: &mut Core,
        from: PeerId,
        seed: Seed,
        open: Seed,
    ) {
        let ours = self.challenged.open.get_mut(&from);
        let committed = |taken: &&mut Taken| taken.challenge.seed == seed && taken.root.is_some();
        let Some(taken) = ours.filter(committed) else {
            return;
        };
        if *taken.opened.get_or_insert(open) == open {
            let challenge = taken.challenge;
            core.output(Output::OpenProduct {
                challenge,
                open,
                to: from,
            });
        }
    }
}
