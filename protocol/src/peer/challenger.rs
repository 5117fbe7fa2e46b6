//! Capacity challenges that we give: see [`crate::challenge`].
//!
//! ```text
//!          ask                committed                 opened               verified
//! (none) ──────▶ Computing ───────────────▶ Opening ──────────────▶ Checking ─────────▶ outcome
//!                    │ declined, silent        │ silent                                 written down
//!                    └──────────▶ unanswered ◀─┘
//! ```
//!
//! The clock runs from the first question to the commitment, the way there and back
//! with it: what is shown is a lower bound. Silence and a refusal are no lies and change
//! nobody's standing; a wrong product does, and none where one was begun. The check is heavy and runs
//! off the driver.

use std::{collections::BTreeMap, time::Duration};

use rand_core::Rng as _;

use super::{
    Event, Output,
    core::{Core, Timer},
};
use crate::{
    book::Book,
    challenge::{Challenge, Opening, Seed, Wrong},
    ids::{AccountId, Hash, PeerId},
    limits::CHALLENGES_MAX,
    message::{Decline, Frame},
    offer::Name,
    record::Record,
    registry::{Reason, SpeedKind},
    standing::Outcome,
    units::{Millis, Mono},
};

/// How long a provider may take to commit, and to open.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Challenges under way, one for each provider at most.
#[derive(Debug, Default)]
pub(crate) struct Challenger {
    open: BTreeMap<PeerId, Open>,
}

#[derive(Debug)]
struct Open {
    challenge: Challenge,
    /// The device, by its place in the offer, and its name.
    device: (u16, Name),
    account: AccountId,
    claimed: u64,
    asked: Mono,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Computing,
    Opening {
        root: Hash,
        took: Millis,
        seed: Seed,
    },
    Checking {
        took: Millis,
    },
}

/// Why a challenge came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// It is this node's own offer.
    Own,
    /// There is no offer of that provider, or none of its devices claims a speed that
    /// can be challenged.
    NothingClaimed,
    /// As many are under way as may be, or one with that provider.
    TooMany,
    /// The provider said no.
    Declined(Decline),
    /// The provider did not answer in time.
    Silent,
}

impl Challenger {
    /// Asks a provider to show the speed of a device: any of those that claim one.
    pub(crate) fn challenge(&mut self, core: &mut Core, book: &Book, provider: PeerId) {
        let refuse = |core: &mut Core, why| {
            let event = Err(why);
            core.tell(Event::Challenged { provider, event });
        };
        if provider == core.me() {
            return refuse(core, Unanswered::Own);
        }
        if self.open.len() >= CHALLENGES_MAX || self.open.contains_key(&provider) {
            return refuse(core, Unanswered::TooMany);
        }
        let seed = new_seed(core);
        let claim = book.of(provider).and_then(|offer| {
            let devices = (0_u16..).zip(offer.body().devices.iter());
            let claims = devices.map(|(n, device)| (n, device, device.speed(SpeedKind::MATMUL)));
            let claims: Vec<_> = claims.filter(|(.., claimed)| *claimed > 0).collect();
            let first = seed.first().copied().map_or(0, usize::from);
            let claim = claims.get(first.checked_rem(claims.len())?)?;
            Some((*claim, offer.body().account))
        });
        let Some(((index, device, claimed), account)) = claim else {
            return refuse(core, Unanswered::NothingClaimed);
        };
        let challenge = Challenge::sized(claimed, device.memory_bytes, seed);
        let open = Open {
            challenge,
            device: (index, device.model.clone()),
            account,
            claimed,
            asked: core.now.mono,
            stage: Stage::Computing,
        };
        self.open.insert(provider, open);
        core.send(provider, Frame::Challenge(index, challenge));
        core.wake(Timer::Challenge(provider), core.config.timing.resend);
    }

    pub(crate) fn on_declined(
        &mut self,
        core: &mut Core,
        from: PeerId,
        (seed, decline): (Seed, Decline),
    ) {
        let now = core.now;
        let Some(open) = self.open_with(from, seed) else {
            return;
        };
        if decline.reason != Reason::PROVIDER_FAULT {
            return self.end(core, from, Err(Unanswered::Declined(decline)));
        }
        // It took what its own offer says that it can do, and could not.
        let outcome = Outcome {
            provider: from,
            account: open.account,
            at: now.wall,
            device: open.device.1.clone(),
            claimed: open.claimed,
            shown: 0,
            took: Millis::from(now.mono.since(open.asked)),
            right: true,
        };
        core.standings.challenged(outcome.clone());
        self.end(core, from, Ok((outcome, None)));
    }

    pub(crate) fn on_committed(&mut self, core: &mut Core, from: PeerId, named: Seed, root: Hash) {
        let now = core.now.mono;
        let Some(open) = self.open_with(from, named) else {
            return;
        };
        if !matches!(open.stage, Stage::Computing) {
            return;
        }
        let took = Millis::new(
            now.since(open.asked)
                .as_micros()
                .div_ceil(1000)
                .try_into()
                .unwrap_or(u64::MAX),
        );
        let seed = new_seed(core);
        if let Some(open) = self.open.get_mut(&from) {
            open.stage = Stage::Opening { root, took, seed };
        }
        core.send(from, Frame::OpenCommitment(named, seed));
        core.wake(Timer::Challenge(from), core.config.timing.resend);
    }

    pub(crate) fn on_opened(
        &mut self,
        core: &mut Core,
        from: PeerId,
        seed: Seed,
        opening: Opening,
    ) {
        let Some(open) = self.open_with(from, seed) else {
            return;
        };
        let Stage::Opening { root, took, seed } = open.stage else {
            return;
        };
        open.stage = Stage::Checking { took };
        let output = Output::Verify {
            provider: from,
            challenge: open.challenge,
            root,
            seed,
            opening: Box::new(opening),
        };
        core.timers.clear(Timer::Challenge(from));
        core.output(output);
    }

    pub(crate) fn on_verified(&mut self, core: &mut Core, from: PeerId, result: Result<(), Wrong>) {
        let Some(Open {
            stage: Stage::Checking { took },
            challenge,
            device,
            account,
            claimed,
            ..
        }) = self.open.get(&from)
        else {
            return;
        };
        let per_second = u128::from(challenge.operations()) * 1000 / u128::from(took.get().max(1));
        let shown = if result.is_ok() {
            u64::try_from(per_second).unwrap_or(u64::MAX)
        } else {
            0
        };
        let outcome = Outcome {
            provider: from,
            account: *account,
            at: core.now.wall,
            device: device.1.clone(),
            claimed: *claimed,
            shown,
            took: *took,
            right: result.is_ok(),
        };
        core.standings.challenged(outcome.clone());
        self.end(core, from, Ok((outcome, result.err())));
    }

    /// Asks again, or gives up.
    pub(crate) fn on_timer(&mut self, core: &mut Core, provider: PeerId) {
        let Some(open) = self.open.get(&provider) else {
            return;
        };
        if core.now.mono.since(open.asked) > ANSWER_MAX {
            return self.end(core, provider, Err(Unanswered::Silent));
        }
        let frame = match open.stage {
            Stage::Computing => Frame::Challenge(open.device.0, open.challenge),
            Stage::Opening { seed, .. } => Frame::OpenCommitment(open.challenge.seed, seed),
            Stage::Checking { .. } => return,
        };
        core.send(provider, frame);
        core.wake(Timer::Challenge(provider), core.config.timing.resend);
    }

    fn open_with(&mut self, from: PeerId, seed: Seed) -> Option<&mut Open> {
        let open = self.open.get_mut(&from)?;
        (open.challenge.seed == seed).then_some(open)
    }

    fn end(
        &mut self,
        core: &mut Core,
        provider: PeerId,
        event: Result<(Outcome, Option<Wrong>), Unanswered>,
    ) {
        self.open.remove(&provider);
        core.timers.clear(Timer::Challenge(provider));
        let told = Event::Challenged {
            provider,
            event: event.clone(),
        };
        match event {
            Ok((outcome, _)) => {
                let lsn = core.persist(Record::Challenged(outcome));
                core.tell_after(lsn, told);
            }
            Err(_) => core.tell(told),
        }
    }
}

fn new_seed(core: &mut Core) -> Seed {
    let mut seed = [0; 16];
    core.rng.fill_bytes(&mut seed);
    seed
}
