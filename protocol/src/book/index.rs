//! What jobs ask for most, laid out so that a whole book can be looked through fast.
//!
//! ```text
//! offer ─▶ Head (limits, prices, slots)     one after the other, in memory's order
//!            └▶ Rows, one for each device (memory, speeds)
//!                 └▶ Class: what many devices share (region, sandbox, maker, model, runtimes)
//! ```
//!
//! A question about a class is answered once for all of its devices. Offers that are
//! gone leave a gap; when half of it is gaps, all move together.
//!
//! Absent: any judgement. [`crate::rank`] knows what fits.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};

use crate::{
    envelope::Verified,
    ids::{AccountId, PeerId},
    offer::{Device, Energy, Figures, Name, Offer, Speeds},
    registry::SandboxLevel,
    units::{Meter, Millis, Price, Wall},
    wire::{self, List},
};

/// The index of a book.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    heads: Vec<Head>,
    rows: Vec<Row>,
    classes: Vec<Class>,
    class_of: BTreeMap<Vec<u8>, u32>,
    places: BTreeMap<PeerId, usize>,
}

/// An offer.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) expires: Wall,
    pub(crate) run_max: Millis,
    pub(crate) storage_bytes: u64,
    pub(crate) fixed: Option<Price>,
    first_row: usize,
    rows: u16,
    is_live: bool,
    /// Whether it has a condition of its own.
    pub(crate) accepts: bool,
    pub(crate) peer: PeerId,
    gpu_ms: Option<Price>,
    fuel: Option<Price>,
    pub(crate) slots: u32,
    pub(crate) slots_free: u32,
    pub(crate) bandwidth_in: u64,
    pub(crate) energy: Option<Energy>,
    account: AccountId,
}

impl Head {
    /// The price of what executions are metered by.
    pub(crate) const fn price(&self, meter: Meter) -> Option<Price> {
        match meter {
            Meter::JOB => self.fixed,
            Meter::GPU_MS => self.gpu_ms,
            Meter::WASM_FUEL => self.fuel,
            _ => None,
        }
    }
}

/// One of its devices.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Position in [`Index::classes`].
    pub(crate) class: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) speeds: Speeds,
}

/// What devices share.
#[derive(Debug, Clone, Encode, Decode)]
pub(crate) struct Class {
    pub(crate) region: Name,
    pub(crate) sandbox: SandboxLevel,
    pub(crate) firm: bool,
    /// Of what differs from device to device it has nothing.
    pub(crate) device: Device,
}

impl Index {
    /// Of an empty book.
    pub(super) const fn new() -> Self {
        Self {
            heads: Vec::new(),
            rows: Vec::new(),
            classes: Vec::new(),
            class_of: BTreeMap::new(),
            places: BTreeMap::new(),
        }
    }

    /// Takes an offer of a provider that has none here.
    pub(super) fn insert(&mut self, offer: &Verified<Offer>) {
        let (peer, body) = (offer.signer(), offer.body());
        let first_row = self.rows.len();
        for device in body.devices.iter() {
            let class = self.class(body, device);
            self.rows.push(Row {
                class,
                memory_bytes: device.memory_bytes,
                speeds: Speeds::of(device),
            });
        }
        self.places.insert(peer, self.heads.len());
        self.heads.push(Head {
            expires: offer.expires(),
            run_max: body.run_max,
            storage_bytes: body.storage_bytes,
            fixed: body.price(Meter::JOB),
            first_row,
            rows: u16::try_from(body.devices.len()).unwrap_or(u16::MAX),
            is_live: true,
            accepts: body.accept.is_some(),
            peer,
            gpu_ms: body.price(Meter::GPU_MS),
            fuel: body.price(Meter::WASM_FUEL),
            slots: body.slots,
            slots_free: body.slots_free,
            bandwidth_in: body.bandwidth_in,
            energy: body.energy,
            account: body.account,
        });
    }

    /// Forgets a provider's. Whether it is time to lay all out anew.
    pub(super) fn remove(&mut self, peer: PeerId) -> bool {
        if let Some(place) = self.places.remove(&peer)
            && let Some(head) = self.heads.get_mut(place)
        {
            head.is_live = false;
        }
        self.heads.len() > 2 * self.places.len() + 64
    }

    /// The offers, and their devices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Head, &[Row])> {
        self.heads
            .iter()
            .filter(|head| head.is_live)
            .map(|head| (head, self.rows_of(head)))
    }

    fn rows_of(&self, head: &Head) -> &[Row] {
        let end = head.first_row + usize::from(head.rows);
        self.rows.get(head.first_row..end).unwrap_or_default()
    }

    /// All classes, by position.
    pub(crate) fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// What an offer says of a device.
    pub(crate) fn figures<'a>(head: &Head, row: &Row, class: &'a Class) -> Figures<'a> {
        Figures {
            account: head.account,
            slots: head.slots,
            slots_free: head.slots_free,
            storage_bytes: head.storage_bytes,
            run_max: head.run_max,
            bandwidth_in: head.bandwidth_in,
            energy: head.energy,
            fixed: head.fixed,
            gpu_ms: head.gpu_ms,
            fuel: head.fuel,
            memory_bytes: row.memory_bytes,
            speeds: row.speeds,
            ..Self::of_class(class)
        }
    }

    /// What all devices of a class have in common; what differs is nothing.
    pub(crate) fn of_class(class: &Class) -> Figures<'_> {
        let device = &class.device;
        Figures {
            account: AccountId::from_bytes([0; 32]),
            region: &class.region,
            sandbox: class.sandbox,
            firm: class.firm,
            slots: 0,
            slots_free: 0,
            storage_bytes: 0,
            run_max: Millis::default(),
            bandwidth_in: 0,
            energy: None,
            fixed: None,
            gpu_ms: None,
            fuel: None,
            kind: device.kind,
            maker: &device.maker,
            model: &device.model,
            driver: &device.driver,
            memory_bytes: 0,
            speeds: Speeds::default(),
        }
    }

    /// The class of a device, made if it is the first of it.
    fn class(&mut self, offer: &Offer, device: &Device) -> u32 {
        let mut device = device.clone();
        device.memory_bytes = 0;
        device.slots = 0;
        device.speeds = List::default();
        let class = Class {
            region: offer.region.clone(),
            sandbox: offer.sandbox,
            firm: offer.firm,
            device,
        };
        let next = u32::try_from(self.classes.len()).unwrap_or(u32::MAX);
        let place = *self.class_of.entry(wire::encode(&class)).or_insert(next);
        if place == next {
            self.classes.push(class);
        }
        place
    }
}

impl<'a> FromIterator<&'a Verified<Offer>> for Index {
    fn from_iter<T: IntoIterator<Item = &'a Verified<Offer>>>(offers: T) -> Self {
        let mut index = Self::new();
        for offer in offers {
            index.insert(offer);
        }
        index
    }
}
