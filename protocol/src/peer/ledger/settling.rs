//! What is declared paid, outside or in advance.
//!
//! ```text
//! payee: operator ──in step?──▶ Settled on disk ──Settlement──▶ payer
//!        told ◀───────────────── heads with it ◀── on disk ◀───┘
//! ```
//!
//! A [`Settlement`] states all that was ever paid, so a lost one is made good by
//! the next, and a repeated one changes nothing. The payee shows it until the
//! payer shows it back, and again after every connection. A payee that is a
//! restored backup finds its newest settlement at the payer: before the first one
//! after a start it asks for that, and declares nothing until it knows.
//!
//! Absent: how money moves.

use super::*;
use crate::{
    limits::PREPAID_CHANNELS_MAX,
    peer::{Declaration, NotSettled, SettleOn},
    record::Lsn,
};

/// How often in a row a payer is asked for its head. After that the next
/// connection, or the next declaration, begins anew.
const ASK_TRIES: u32 = 6;

/// What a declaration would do.
#[derive(Debug)]
pub(super) enum Declare {
    /// Sign this.
    Sign {
        account: AccountId,
        channel: ChannelId,
        settlement: Box<Settlement>,
    },
    /// The newest settlement says it already.
    Known,
}

/// As payee.
impl Ledger {
    /// Whether a declaration can be made now.
    pub(crate) fn may_settle(
        &self,
        core: &Core,
        declaration: &Declaration,
    ) -> Result<(), NotSettled> {
        self.declare(core, declaration).map(|_| ())
    }

    /// The operator declares that so much was paid.
    pub(crate) fn settle(&mut self, core: &mut Core, declaration: &Declaration) {
        match self.declare(core, declaration) {
            Ok(Declare::Sign {
                account,
                channel,
                settlement,
            }) => {
                let parties = settlement.parties;
                let settlement = core.sign(*settlement);
                let lsn = core.persist(Record::Settled(settlement.clone()));
                let frame = Frame::Settlement(settlement.raw());
                core.send_after(lsn, parties.payer, frame);
                let earning = self.earning(core, parties);
                earning.settlement = Some(settlement);
                earning.asked = 0;
                ask_later(core, (account, channel), earning);
            }
            Err(NotSettled::NotInStep) => {
                let Ok(parties) = self.parties(core, declaration.on) else {
                    return;
                };
                let channel = parties.channel(core.network());
                let earning = self.earning(core, parties);
                earning.asked = 0;
                ask_payer(core, channel, earning);
            }
            Ok(Declare::Known) | Err(_) => {}
        }
    }

    fn parties(&self, core: &Core, on: SettleOn) -> Result<Parties, NotSettled> {
        let (payee, payee_account) = core.identity();
        match on {
            SettleOn::Channel(channel) => self
                .earning
                .iter()
                .find(|((_, known), _)| *known == channel)
                .map(|(_, earning)| earning.parties)
                .ok_or(NotSettled::UnknownChannel),
            SettleOn::Payer { node, .. } if node == payee => Err(NotSettled::Own),
            SettleOn::Payer { node, account } => Ok(Parties {
                payer: node,
                payer_account: account,
                payee,
                payee_account,
            }),
        }
    }

    fn declare(&self, core: &Core, declaration: &Declaration) -> Result<Declare, NotSettled> {
        let parties = self.parties(core, declaration.on)?;
        let channel = parties.channel(core.network());
        let account = parties.payer_account;
        let Some(earning) = self.earning.get(&(account, channel)) else {
            let full = self.earning.len() >= CHANNELS_MAX;
            return Err(if full {
                NotSettled::TooManyChannels
            } else {
                NotSettled::NotInStep
            });
        };
        let Declaration {
            amount, reference, ..
        } = declaration;
        if *amount == Amount::ZERO {
            return Err(NotSettled::Nothing);
        }
        if earning.is_declared(reference, *amount) {
            return Ok(Declare::Known);
        }
        if !earning.in_step {
            return Err(NotSettled::NotInStep);
        }
        let settled = earning.settled().checked_add(*amount);
        let sequence = earning.settlements().checked_add(1);
        let (Some(settled), Some(sequence)) = (settled, sequence) else {
            return Err(NotSettled::TooMuch);
        };
        let settlement = Box::new(Settlement {
            parties,
            sequence,
            settled,
            paid: *amount,
            reference: reference.clone(),
            extensions: Extensions::default(),
        });
        Ok(Declare::Sign {
            account,
            channel,
            settlement,
        })
    }

    /// A payer is reachable: it is shown our head, and shows its own.
    pub(super) fn on_payer_connected(&mut self, core: &mut Core, peer: PeerId) {
        let with = self.earning.iter_mut();
        for ((_, channel), earning) in with.filter(|(_, e)| e.parties.payer == peer) {
            if earning.head.is_some() || earning.settlement.is_some() {
                earning.asked = 0;
                ask_payer(core, *channel, earning);
            }
        }
    }

    pub(crate) fn on_payer_timer(
        &mut self,
        core: &mut Core,
        account: AccountId,
        channel: ChannelId,
    ) {
        if let Some(earning) = self.earning.get_mut(&(account, channel)) {
            ask_payer(core, channel, earning);
        }
    }
}

impl Earning {
    /// How many settlements there were.
    pub(super) fn settlements(&self) -> u64 {
        sequence(self.settlement.as_ref())
    }

    /// Whether the newest settlement says just that: a repeated order.
    fn is_declared(&self, reference: &Text<128>, amount: Amount) -> bool {
        self.settlement.as_ref().is_some_and(|known| {
            known.body().reference == *reference && known.body().paid == amount
        })
    }

    /// The payer's head came, with the newest settlement that it has, if any.
    pub(super) fn hear_settlement(
        &mut self,
        core: &mut Core,
        channel: ChannelId,
        shown: Option<Verified<Settlement>>,
    ) {
        let own = |settlement: &Verified<Settlement>| {
            settlement.signer() == core.me() && settlement.body().parties == self.parties
        };
        let shown = shown.filter(own);
        self.told = sequence(shown.as_ref());
        if let Some(shown) = shown.filter(|shown| shown.body().sequence > self.settlements()) {
            // We are a restored backup: it is our own word.
            core.persist(Record::Settled(shown.clone()));
            self.settlement = Some(shown);
        }
        self.in_step = true;
        let key = (self.parties.payer_account, channel);
        if self.told < self.settlements() {
            ask_later(core, key, self);
        } else {
            core.timers.clear(Timer::Payer(key.0, key.1));
        }
    }
}

/// Shows the payer our head with the newest settlement, and asks for its own.
fn ask_payer(core: &mut Core, channel: ChannelId, earning: &mut Earning) {
    answer_heads(core, channel, earning, None, true);
    ask_later(core, (earning.parties.payer_account, channel), earning);
}

fn ask_later(core: &mut Core, key: (AccountId, ChannelId), earning: &mut Earning) {
    if earning.asked >= ASK_TRIES {
        return;
    }
    let wait = core.config.timing.settle_retry * (1 << earning.asked.min(5));
    earning.asked += 1;
    let wait = core.jittered(wait);
    core.wake(Timer::Payer(key.0, key.1), wait);
}

/// As payer.
impl Ledger {
    pub(crate) fn on_settlement(
        &mut self,
        core: &mut Core,
        from: PeerId,
        settlement: &Verified<Settlement>,
    ) {
        let parties = settlement.body().parties;
        if from != parties.payee {
            return;
        }
        if let Some((channel, paying)) = self.paying_to(core, parties) {
            take_settlement(core, paying, settlement);
            show_heads(core, channel, paying, false);
        }
    }

    /// The channel between us and a payee, which begins with what it says that
    /// we paid. Anybody can say so: there are few such channels.
    pub(super) fn paying_to(
        &mut self,
        core: &Core,
        parties: Parties,
    ) -> Option<(ChannelId, &mut Paying)> {
        if (parties.payer, parties.payer_account) != core.identity() || parties.payee == core.me() {
            return None;
        }
        let channel = parties.channel(core.network());
        if !self.paying.contains_key(&channel) {
            let unused = |paying: &&Paying| paying.head.is_none() && paying.due.is_empty();
            let prepaid = self.paying.values().filter(unused).count();
            if prepaid >= PREPAID_CHANNELS_MAX || self.paying.len() >= CHANNELS_MAX {
                return None;
            }
        }
        let paying = self
            .paying
            .entry(channel)
            .or_insert_with(|| Paying::new(parties));
        Some((channel, paying))
    }
}

/// Takes a settlement that continues what the payee said before.
pub(super) fn take_settlement(
    core: &mut Core,
    paying: &mut Paying,
    settlement: &Verified<Settlement>,
) {
    let body = settlement.body();
    if body.parties != paying.parties || settlement.signer() != paying.parties.payee {
        return core.misbehaved(paying.parties.payee, "somebody else's settlement");
    }
    let known = sequence(paying.settlement.as_ref());
    let same = paying.settlement.as_ref() == Some(settlement);
    if body.sequence < known || same {
        return;
    }
    // What was paid stays paid.
    if body.sequence == known || body.settled < settled(paying.settlement.as_ref()) {
        return core.misbehaved(
            paying.parties.payee,
            "settlements that contradict each other",
        );
    }
    paying.settlement = Some(settlement.clone());
    let lsn: Lsn = core.persist(Record::Settled(settlement.clone()));
    core.tell_after(
        lsn,
        Event::Credited {
            channel: body.parties.channel(core.network()),
            settled: body.settled,
        },
    );
}

/// Of a settlement, if there is one: they count from 1.
pub(super) fn sequence(settlement: Option<&Verified<Settlement>>) -> u64 {
    settlement.map_or(0, |settlement| settlement.body().sequence)
}

/// Rebuilding from records.
impl Ledger {
    /// What was declared may not have left, or not have come: who is to know is
    /// asked, also if it does not connect by itself.
    pub(super) fn resume_settling(&mut self, core: &mut Core) {
        for (&key, earning) in &mut self.earning {
            if earning.settlement.is_some() {
                ask_later(core, key, earning);
            }
        }
    }

    pub(super) fn replay_settled(&mut self, core: &Core, settlement: &Verified<Settlement>) {
        let parties = settlement.body().parties;
        let known = if parties.payee == core.me() {
            &mut self.earning(core, parties).settlement
        } else {
            let channel = parties.channel(core.network());
            let paying = self.paying.entry(channel);
            &mut paying.or_insert_with(|| Paying::new(parties)).settlement
        };
        if settlement.body().sequence > sequence(known.as_ref()) {
            *known = Some(settlement.clone());
        }
    }
}
