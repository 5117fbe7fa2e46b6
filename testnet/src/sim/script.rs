//! One fault at one message: what a scenario's chance would take long to hit.
//!
//! ```text
//! receipt ─▶ verdict ─▶ voucher ─▶ acknowledgement      settlement ─▶ shown back
//!         └──────────────── here a Fault strikes ────────────────┘
//! ```
//!
//! Two nodes, a client and a provider, do a few jobs; the operator declares
//! payments. At the n-th message of one kind the fault strikes, once. All the
//! time both sides' totals must agree within what is unacknowledged, and in the
//! end they must be equal.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use suanli_protocol::{
    ids::Hash,
    limits::VOUCHERS_UNACKED_MAX,
    message::Message,
    peer::ChannelView,
    record::{Lsn, Record},
};

use super::{
    Setup,
    check::Checker,
    node::{Disk, Ix},
    world::{Event, World},
};
use crate::scenario::{Scenario, ScenarioError};

/// A cut heals after so long.
const CUT: Duration = Duration::from_secs(6);
/// An old message comes again so late.
const LATE: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(9)];
/// When the operator declares payments, in seconds.
const DECLARES: [u64; 4] = [5, 9, 13, 17];
/// The fault strikes at one of the first so many messages of its kind.
const NTH_MAX: u64 = 3;

const CLIENT: Ix = 0;
const PROVIDER: Ix = 1;

/// The messages from the result to the money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The provider states an execution.
    Receipt,
    /// The client's word on it.
    Verdict,
    /// The client owes it.
    Voucher,
    /// The provider has that.
    Ack,
    /// The provider declares a payment.
    Settlement,
    /// The client shows that it has that.
    Shown,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 6] = [
        Self::Receipt,
        Self::Verdict,
        Self::Voucher,
        Self::Ack,
        Self::Settlement,
        Self::Shown,
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Receipt => "receipt",
            Self::Verdict => "verdict",
            Self::Voucher => "voucher",
            Self::Ack => "acknowledgement",
            Self::Settlement => "settlement",
            Self::Shown => "settlement shown back",
        }
    }

    fn of(message: &Message, sender: Ix) -> Option<Self> {
        match message {
            Message::Receipt(..) => Some(Self::Receipt),
            Message::Acceptance(_) => Some(Self::Verdict),
            Message::Voucher(_) => Some(Self::Voucher),
            Message::VoucherAck(_) => Some(Self::Ack),
            Message::Settlement(_) => Some(Self::Settlement),
            Message::Heads(heads) if sender == CLIENT && heads.settlement.is_some() => {
                Some(Self::Shown)
            }
            _ => None,
        }
    }
}

/// What goes wrong there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It is lost, and the link is cut for a while.
    Lost,
    /// It arrives, and the link is cut behind it.
    CutBehind,
    /// Its sender stops, and loses what it had not synced.
    SenderStops,
    /// Its receiver does.
    ReceiverStops,
    /// It arrives three times.
    Duplicated,
    /// It arrives again much later, twice.
    Replayed,
    /// Its sender comes back from an old copy of its disk.
    SenderRestored,
    /// Its receiver does.
    ReceiverRestored,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Lost,
        Self::CutBehind,
        Self::SenderStops,
        Self::ReceiverStops,
        Self::Duplicated,
        Self::Replayed,
        Self::SenderRestored,
        Self::ReceiverRestored,
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost, cut",
            Self::CutBehind => "cut behind",
            Self::SenderStops => "sender stops",
            Self::ReceiverStops => "receiver stops",
            Self::Duplicated => "duplicated",
            Self::Replayed => "replayed",
            Self::SenderRestored => "sender's backup",
            Self::ReceiverRestored => "receiver's backup",
        }
    }

    const fn is_backup(self) -> bool {
        matches!(self, Self::SenderRestored | Self::ReceiverRestored)
    }

    const fn strikes_on_arrival(self) -> bool {
        match self {
            Self::CutBehind | Self::ReceiverStops | Self::ReceiverRestored => true,
            Self::Lost
            | Self::SenderStops
            | Self::Duplicated
            | Self::Replayed
            | Self::SenderRestored => false,
        }
    }
}

type Copy = Vec<(Lsn, Record)>;

/// What is to go wrong, and how far it is.
#[derive(Debug)]
pub(crate) struct Script {
    step: Step,
    fault: Fault,
    left: u64,
    struck: bool,
    /// The message on whose arrival it strikes.
    awaited: Option<Hash>,
    /// Both disks, at every message so far.
    copies: Vec<[Copy; 2]>,
}

/// What came of one.
#[derive(Debug)]
pub struct Scripted {
    /// What does not hold, if anything.
    pub wrong: Option<String>,
    /// Whether the fault struck.
    pub struck: bool,
    /// What both sides say that is owed and paid, in millionths.
    pub totals: (u128, u128),
}

/// Runs one fault at one step.
///
/// # Errors
/// [`ScenarioError`], never for what this crate is built with.
pub fn run_script(seed: u64, step: Step, fault: Fault) -> Result<Scripted, ScenarioError> {
    let scenario = Scenario::pair()?;
    let setup = Setup::new(seed, scenario);
    let mut world = World::new(&setup);
    let left = world.dice.below(NTH_MAX);
    world.script = Some(Script {
        step,
        fault,
        left,
        struck: false,
        awaited: None,
        copies: Vec::new(),
    });
    for second in DECLARES {
        world.later(Duration::from_secs(second), Event::Operate(PROVIDER));
    }
    world.run();
    Ok(world.scripted(fault))
}

impl World<'_> {
    /// A message leaves, unless the fault strikes here.
    pub(crate) fn transmit_scripted(
        &mut self,
        from: Ix,
        to: Ix,
        bytes: &Arc<[u8]>,
        message: &Message,
    ) {
        let copies =
            |world: &Self| [CLIENT, PROVIDER].map(|ix| world.nodes[ix].disk.records().to_vec());
        let step = Step::of(message, from);
        let strikes = match &self.script {
            Some(script) if step.is_some() && !self.quiet => script.struck_next(step),
            _ => return self.transmit(from, to, bytes),
        };
        let copies = copies(self);
        let Some(script) = &mut self.script else {
            return;
        };
        script.copies.push(copies);
        if step == Some(script.step) && !script.struck {
            script.left = script.left.saturating_sub(1);
        }
        if !strikes {
            return self.transmit(from, to, bytes);
        }
        script.struck = true;
        let fault = script.fault;
        if fault.strikes_on_arrival() {
            script.awaited = Some(Hash::of(bytes));
        }
        match fault {
            Fault::Lost => self.cut(from, CUT),
            Fault::CutBehind | Fault::ReceiverStops | Fault::ReceiverRestored => {
                self.transmit(from, to, bytes);
            }
            Fault::SenderStops => {
                self.transmit(from, to, bytes);
                self.crash(from);
            }
            Fault::Duplicated => (0..3).for_each(|_| self.transmit(from, to, bytes)),
            Fault::Replayed => {
                self.transmit(from, to, bytes);
                for late in LATE {
                    let bytes = bytes.clone();
                    self.later(late, Event::Frame { from, to, bytes });
                }
            }
            Fault::SenderRestored => {
                self.transmit(from, to, bytes);
                self.restore_copy(from);
            }
        }
    }

    /// A message has arrived.
    pub(crate) fn script_arrived(&mut self, from: Ix, to: Ix, bytes: &[u8]) {
        let Some(script) = &mut self.script else {
            return;
        };
        if script.awaited != Some(Hash::of(bytes)) {
            return;
        }
        script.awaited = None;
        match script.fault {
            Fault::CutBehind => self.cut(from, CUT),
            Fault::ReceiverStops => self.crash(to),
            Fault::ReceiverRestored => self.restore_copy(to),
            Fault::Lost
            | Fault::SenderStops
            | Fault::Duplicated
            | Fault::Replayed
            | Fault::SenderRestored => {}
        }
    }

    fn restore_copy(&mut self, ix: Ix) {
        let Some(script) = &self.script else {
            return;
        };
        let which = self.dice.index(script.copies.len());
        let copy = script.copies.get(which).map(|copies| copies[ix].clone());
        if self.nodes[ix].peer.is_none() {
            return;
        }
        self.crash(ix);
        self.nodes[ix].disk = Disk::holding(copy.unwrap_or_default());
        self.lose_frames(ix);
    }

    /// While things go on: totals agree within what is unacknowledged.
    pub(crate) fn watch_totals(&mut self) {
        let backup = match &self.script {
            Some(script) => script.fault.is_backup() && script.struck,
            None => return,
        };
        let up = self.nodes.iter().all(|node| node.peer.is_some());
        if backup || !up {
            return;
        }
        let (payer, payee) = self.both_sides();
        if let Some(wrong) = apart(payer.as_ref(), payee.as_ref()) {
            self.checks
                .complain(Checker::Accounts, self.now, wrong.into(), vec![]);
        }
    }

    fn both_sides(&self) -> (Option<ChannelView>, Option<ChannelView>) {
        let side = |ix: Ix| {
            let peer = self.nodes[ix].peer.as_ref()?;
            peer.channels().into_iter().next()
        };
        (side(CLIENT), side(PROVIDER))
    }

    fn scripted(self, fault: Fault) -> Scripted {
        let (payer, payee) = self.both_sides();
        let struck = self.script.as_ref().is_some_and(|script| script.struck);
        // What a restored backup has forgotten is not judged: only the accounts.
        let complaint = self.checks.complaints.first().map(ToString::to_string);
        let complaint = complaint.filter(|_| !fault.is_backup());
        let wrong = complaint.or_else(|| differ(payer.as_ref(), payee.as_ref(), fault));
        let totals = payee.map_or((0, 0), |view| {
            (view.cumulative.as_micros(), view.settled.as_micros())
        });
        Scripted {
            wrong,
            struck,
            totals,
        }
    }
}

impl Script {
    /// Whether the fault strikes at this message.
    fn struck_next(&self, step: Option<Step>) -> bool {
        !self.struck && step == Some(self.step) && self.left == 0
    }
}

fn apart(payer: Option<&ChannelView>, payee: Option<&ChannelView>) -> Option<&'static str> {
    let at = |view: Option<&ChannelView>| view.map_or(0, |view| view.sequence);
    let owed = |view: Option<&ChannelView>| view.map_or(0, |view| view.cumulative.as_micros());
    let paid = |view: Option<&ChannelView>| view.map_or(0, |view| view.settled.as_micros());
    let acknowledged = payer.map_or(0, |view| view.acknowledged);
    let unacked = at(payer).saturating_sub(acknowledged);
    if at(payee) < acknowledged || at(payee) > at(payer) || owed(payee) > owed(payer) {
        Some("totals differ by more than the unacknowledged vouchers")
    } else if usize::try_from(unacked).unwrap_or(usize::MAX) > VOUCHERS_UNACKED_MAX {
        Some("more vouchers are unacknowledged than may be")
    } else if paid(payer) > paid(payee) {
        Some("the payer knows of more payments than the payee declared")
    } else {
        None
    }
}

fn differ(
    payer: Option<&ChannelView>,
    payee: Option<&ChannelView>,
    fault: Fault,
) -> Option<String> {
    let (Some(payer), Some(payee)) = (payer, payee) else {
        return Some("a side has no account in the end".into());
    };
    let figures = |view: &ChannelView| {
        BTreeMap::from([
            ("vouchers", u128::from(view.sequence)),
            ("acknowledged", u128::from(view.acknowledged)),
            ("owed", view.cumulative.as_micros()),
            ("settlements", u128::from(view.settlements)),
            ("paid", view.settled.as_micros()),
            ("frozen", u128::from(view.frozen)),
        ])
    };
    let (ours, theirs) = (figures(payer), figures(payee));
    if ours != theirs {
        return Some(format!("payer {ours:?}, payee {theirs:?}"));
    }
    if payer.frozen {
        return Some("the account is frozen".into());
    }
    // A receipt that a backup has forgotten may stay unpaid: better than twice.
    let pending = payee.pending.as_micros() > 0 || payer.pending.as_micros() > 0;
    (pending && !fault.is_backup()).then(|| "something is still pending in the end".into())
}
