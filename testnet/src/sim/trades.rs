//! What became of each job, and what providers' slots were used for: the figures of a
//! market.
//!
//! Written down from what peers say to their people and from what executors do, while the
//! simulation runs. Absent: any judgement; the checkers have that.

use std::collections::BTreeMap;

use suanli_protocol::{
    ids::{AgreementId, JobId},
    offer::Energy,
    peer::{Event, JobEvent},
    record::{JobEnd, JobOrder},
    registry::SpeedKind,
    units::{Amount, Meter, Mono},
};

use super::node::{Ix, Node};

/// One job.
#[derive(Debug, Clone)]
pub struct Trade {
    /// The client's number.
    pub client: usize,
    /// The provider's that ran it last.
    pub provider: Option<usize>,
    /// FP32 operations, where that is known.
    pub operations: u64,
    /// Bytes that it reads.
    pub input_bytes: u64,
    /// When it was handed in,
    pub submitted: Mono,
    /// and by when it had to be over.
    pub due: Mono,
    /// When its execution first began.
    pub started: Option<Mono>,
    /// When and how it ended.
    pub ended: Option<(Mono, JobEnd)>,
    /// What its accepted receipts cost.
    pub paid: Amount,
}

/// Something at a provider, for a time.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The provider's number.
    pub provider: usize,
    /// From then,
    pub from: Mono,
    /// to then.
    pub until: Mono,
}

/// What a node is.
#[derive(Debug, Clone)]
pub struct Place {
    /// What it is called.
    pub name: String,
    /// Where it is.
    pub region: String,
    /// Executions at once; 0 for nodes that sell nothing.
    pub slots: u32,
    /// FP32 operations in a second of one execution.
    pub speed: u64,
    /// What a job costs beside its time,
    pub price_job: Amount,
    /// and what a second costs.
    pub price_second: Amount,
    /// What its power is like.
    pub energy: Option<Energy>,
}

/// All that was seen.
#[derive(Debug, Default)]
pub(crate) struct Trades {
    pub(crate) jobs: BTreeMap<JobId, Trade>,
    pub(crate) taken: Vec<Span>,
    pub(crate) ran: Vec<Span>,
    agreements: BTreeMap<AgreementId, JobId>,
    /// Since when an agreement's work is on a slot.
    at_work: BTreeMap<AgreementId, Mono>,
}

impl Trades {
    pub(crate) fn submitted(&mut self, client: Ix, order: &JobOrder, now: Mono) {
        let sizes = order.inputs.iter().map(|input| input.bytes);
        let due = now.after(order.total.duration());
        self.jobs.entry(order.job).or_insert_with(|| Trade {
            client,
            provider: None,
            operations: order.flops,
            input_bytes: sizes.fold(0, u64::saturating_add),
            submitted: now,
            due,
            started: None,
            ended: None,
            paid: Amount::ZERO,
        });
    }

    /// What a peer tells its people.
    pub(crate) fn heard(&mut self, ix: Ix, event: &Event, now: Mono) {
        match event {
            Event::Job { job, event } => self.of_job(*job, event, now),
            Event::Receipted { agreement, .. } => {
                if let Some(from) = self.at_work.remove(agreement) {
                    let (provider, until) = (ix, now);
                    self.taken.push(Span {
                        provider,
                        from,
                        until,
                    });
                }
            }
            Event::Work { .. }
            | Event::Judged { .. }
            | Event::Earned { .. }
            | Event::Settled { .. }
            | Event::Credited { .. }
            | Event::Frozen { .. }
            | Event::Challenged { .. }
            | Event::Referred { .. } => {}
        }
    }

    fn of_job(&mut self, job: JobId, event: &JobEvent, now: Mono) {
        let Some(trade) = self.jobs.get_mut(&job) else {
            return;
        };
        match event {
            JobEvent::Agreed { agreement, .. } => {
                self.agreements.insert(*agreement, job);
            }
            JobEvent::Accepted { amount, .. } => trade.paid = trade.paid.saturating_add(*amount),
            JobEvent::Ended(end) => trade.ended = Some((now, *end)),
            _ => {}
        }
    }

    /// An execution begins: an agreement alone takes no slot, for its work may wait in a queue.
    pub(crate) fn runs(&mut self, ix: Ix, agreement: AgreementId, now: Mono) {
        self.at_work.entry(agreement).or_insert(now);
        let job = self.agreements.get(&agreement);
        if let Some(trade) = job.and_then(|job| self.jobs.get_mut(job)) {
            trade.started.get_or_insert(now);
            trade.provider = Some(ix);
        }
    }

    /// An execution ends.
    pub(crate) fn ran(&mut self, provider: Ix, from: Mono, until: Mono) {
        self.ran.push(Span {
            provider,
            from,
            until,
        });
    }
}

/// What all nodes are.
pub(crate) fn places(nodes: &[Node]) -> Vec<Place> {
    nodes.iter().map(place).collect()
}

fn place(node: &Node) -> Place {
    let offer = node.config.provider.as_ref().map(|sells| &sells.offer);
    let price = |meter, quantity| {
        let prices = offer.iter().flat_map(|offer| offer.prices.iter());
        let mut of_meter = prices.filter(|price| price.meter == meter);
        let price = of_meter.next().and_then(|price| price.of(quantity));
        price.unwrap_or(Amount::ZERO)
    };
    let device = offer.and_then(|offer| offer.devices.first());
    Place {
        name: node.name.clone(),
        region: node.region.clone(),
        slots: offer.map_or(0, |offer| offer.slots),
        speed: device.map_or(0, |device| device.speed(SpeedKind::FP32)),
        price_job: price(Meter::JOB, 1),
        price_second: price(Meter::GPU_MS, 1000),
        energy: offer.and_then(|offer| offer.energy),
    }
}
