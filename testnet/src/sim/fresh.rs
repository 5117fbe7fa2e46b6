//! Many fresh accounts that run work and never pay: what they cost a provider.
//!
//! A thousand strangers hand in a job each. They accept and sign vouchers as
//! honest clients do, and nobody ever pays: a voucher is a debt, not money. What is
//! owed to the provider, in vouchers and out of them, is looked at all the time.
//! Then a client that the operator knows wants something done; and then some
//! strangers pay.

use std::time::Duration;

use suanli_protocol::{
    ids::JobId,
    peer::{ChannelView, Command, Declaration, Input, NotSettled, Peer, SettleOn},
    record::JobEnd,
    registry::Reason,
    units::{Amount, Mono},
    wire::Text,
};

use super::{
    Setup,
    cast::STRANGERS_BUDGET,
    dice::Dice,
    node::Ix,
    work,
    world::{Event, World},
};
use crate::scenario::{Scenario, ScenarioError};

/// Jobs that are handed in, in a second.
const PER_SECOND: u64 = 50;
/// How many of those who owe pay in the end.
const PAYING: usize = 10;

const PROVIDER: Ix = 0;
const KNOWN: Ix = 1;

/// What came of it; amounts in millionths.
#[derive(Debug, Clone, Copy)]
pub struct Fresh {
    /// What all strangers together may owe.
    pub budget: u128,
    /// The most that they owed.
    pub owed_max: u128,
    /// Receipts until nobody was served any more.
    pub served: u64,
    /// Declines for the strangers' budget.
    pub declined: u64,
    /// Whether the known client was served all the same.
    pub known_served: bool,
    /// What was paid,
    pub paid: u128,
    /// and whether a stranger was served after that.
    pub served_again: bool,
}

impl Fresh {
    /// What does not hold, if anything.
    pub const fn wrong(&self) -> Option<&'static str> {
        if self.owed_max > self.budget {
            Some("strangers owe more than their budget")
        } else if self.served == 0 || self.declined == 0 {
            Some("the budget was never used up: it shows nothing")
        } else if !self.known_served {
            Some("a known client was not served")
        } else if !self.served_again {
            Some("nobody was served after some had paid")
        } else {
            None
        }
    }
}

/// Simulates so many strangers.
///
/// # Errors
/// [`ScenarioError`], never for what this crate is built with.
pub fn run_fresh(seed: u64, clients: usize) -> Result<Fresh, ScenarioError> {
    let scenario = Scenario::strangers(clients)?;
    let setup = Setup::new(seed, scenario);
    let mut world = World::new(&setup);
    let mut dice = Dice::new(seed, "fresh");
    let mut fresh = Fresh {
        budget: STRANGERS_BUDGET.as_micros().into(),
        owed_max: 0,
        served: 0,
        declined: 0,
        known_served: false,
        paid: 0,
        served_again: false,
    };
    let strangers = KNOWN + 1..KNOWN + 1 + clients;
    // The offer is heard of first.
    let mut at = Duration::from_secs(10);
    for node in strangers.clone() {
        at += Duration::from_millis(1000 / PER_SECOND);
        let order = Box::new(work::order(&setup.scenario, 0, &mut dice));
        world.later(at, Event::Submit { node, order });
    }
    world.watch_owed(at + Duration::from_secs(30), &mut fresh);
    fresh.served = world.figures.receipts;
    let reason = Reason::STRANGERS_EXHAUSTED.to_string();
    fresh.declined = world.declines.get(&reason).copied().unwrap_or(0);

    fresh.known_served = world.is_served(&mut dice, KNOWN, &mut fresh);
    fresh.paid = world.some_pay(&mut fresh);
    let last = strangers.end - 1;
    fresh.served_again = world.is_served(&mut dice, last, &mut fresh);
    Ok(fresh)
}

impl World<'_> {
    /// Goes on for some time, and looks at what strangers owe.
    fn watch_owed(&mut self, until: Duration, fresh: &mut Fresh) {
        const LOOK: Duration = Duration::from_millis(250);
        let mut at = self.elapsed();
        while at < until {
            at += LOOK;
            self.run_until(at);
            fresh.owed_max = fresh.owed_max.max(self.owed());
        }
    }

    fn wait(&mut self, span: Duration, fresh: &mut Fresh) {
        self.watch_owed(self.elapsed() + span, fresh);
    }

    fn elapsed(&self) -> Duration {
        self.now.since(Mono::from_micros(0))
    }

    /// The provider's channels with strangers.
    fn strangers(&self) -> impl Iterator<Item = ChannelView> {
        let known = self.nodes[KNOWN].config.account;
        let provider = self.nodes[PROVIDER].peer.as_ref();
        let channels = provider.map(Peer::channels).into_iter().flatten();
        channels.filter(move |view| view.parties.payer_account != known)
    }

    /// All that strangers have got and nobody declared paid.
    fn owed(&self) -> u128 {
        self.strangers()
            .map(|view| {
                let got = view.cumulative.as_micros()
                    + view.pending.as_micros()
                    + view.disputed.as_micros();
                got.saturating_sub(view.settled.as_micros())
            })
            .sum()
    }

    /// Whether a job of a node is done.
    fn is_served(&mut self, dice: &mut Dice, node: Ix, fresh: &mut Fresh) -> bool {
        let order = Box::new(work::order(self.scenario, 0, dice));
        let job: JobId = order.job;
        self.later(Duration::ZERO, Event::Submit { node, order });
        self.wait(Duration::from_secs(30), fresh);
        let view = self.nodes[node]
            .peer
            .as_ref()
            .and_then(|peer| peer.job(job));
        view.is_some_and(|view| view.end == Some(JobEnd::Done))
    }

    /// The operator declares what some strangers owe paid. Gives the sum.
    fn some_pay(&mut self, fresh: &mut Fresh) -> u128 {
        let owes = |view: &ChannelView| view.outstanding().as_micros() > 0;
        let owing: Vec<_> = self.strangers().filter(owes).take(PAYING).collect();
        let mut paid = 0;
        for view in owing {
            let owed = view.outstanding().as_micros();
            let declaration = Declaration {
                on: SettleOn::Channel(view.channel),
                amount: Amount::from_micros(u64::try_from(owed).unwrap_or(u64::MAX)),
                reference: Text::lossy("invoice 1"),
            };
            for _ in 0..10 {
                let peer = self.nodes[PROVIDER].peer.as_ref();
                let may = peer.map(|peer| peer.may_settle(&declaration));
                let command = Command::Settle(Box::new(declaration.clone()));
                self.step(PROVIDER, Input::Command(command));
                if may != Some(Err(NotSettled::NotInStep)) {
                    paid += owed;
                    break;
                }
                self.wait(Duration::from_secs(1), fresh);
            }
        }
        paid
    }
}
