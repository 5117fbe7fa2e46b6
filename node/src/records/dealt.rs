//! Two peers that make deals with each other, so that tests have records that
//! were really signed, as both sides wrote them down.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use suanli_protocol::{
    delegation::Delegation,
    envelope::{Extensions, Signer},
    ids::{BlobId, Hash, JobId, NetworkId, PeerId, ReceiptId},
    message::{Frame, Gossip, InlineBlobs},
    offer::{Charge, Device, Name, Offer, RuntimeOffer, Terms},
    peer::{
        Command, Config, Event, ExecutionEvent, FetchOrder, Input, Output, Peer, ProvidedOutput,
        ProviderConfig, Timing,
    },
    rank::Policy,
    record::Record,
    registry::{DeviceKind, Runtime, SandboxLevel},
    units::{Amount, Meter, Millis, Mono, Now, Price, Usage, Wall},
    wire::{List, Text},
};

use crate::api::{
    types::{BlobInfo, Submission, VerifyOrder},
    views,
};

pub(crate) const NETWORK: &str = "records-test";
const EPOCH_MS: u64 = 1_700_000_000_000;
const CLIENT: usize = 0;
const PROVIDER: usize = 1;
/// More than any deal takes.
const STEPS_MAX: usize = 10_000;

/// What both sides wrote down.
pub(crate) struct Dealt {
    pub(crate) client: Vec<Record>,
    pub(crate) provider: Vec<Record>,
    pub(crate) jobs: Vec<JobId>,
    pub(crate) receipts: Vec<ReceiptId>,
    pub(crate) client_peer: PeerId,
    pub(crate) provider_peer: PeerId,
    /// The live state at the end, as the driver of each side would tell it.
    pub(crate) peers: [Peer; 2],
}

pub(crate) fn network() -> NetworkId {
    NetworkId::of(NETWORK)
}

/// `jobs` jobs, run one after the other and paid; by firm takes or by quotes.
pub(crate) fn deal(jobs: u8, firm: bool) -> Dealt {
    deal_in_turns(jobs.into(), move |_| firm)
}

/// As many jobs, by a firm take where `firm` says so of its number.
pub(crate) fn deal_in_turns(jobs: u32, firm: impl Fn(u32) -> bool) -> Dealt {
    let mut world = World::new();
    for number in 1..=jobs {
        world.deal(number, firm(number));
    }
    let World {
        peers,
        records: [client, provider],
        settled,
        ..
    } = world;
    Dealt {
        client,
        provider,
        jobs: (1..=jobs).map(job_of).collect(),
        receipts: settled,
        client_peer: peers[CLIENT].id(),
        provider_peer: peers[PROVIDER].id(),
        peers,
    }
}

pub(crate) fn job(number: u8) -> JobId {
    JobId::from_bytes([number; 16])
}

/// The same for the first 255.
fn job_of(number: u32) -> JobId {
    let [low, rest @ ..] = number.to_le_bytes();
    let mut bytes = [low; 16];
    bytes[13..].copy_from_slice(&rest.map(|byte| low ^ byte));
    JobId::from_bytes(bytes)
}

/// What the core of a side was told, and its key.
pub(crate) fn core_of(side: usize) -> (Config, Signer) {
    let config = Config {
        account: account(side).public().account(),
        delegation: delegation(side),
        region: Text::default(),
        traffic: Amount::ZERO,
        provider: (side == PROVIDER).then(provider),
        budgets: BTreeMap::new(),
        timing: Timing::default(),
    };
    (config, node(side))
}

pub(crate) fn blob(bytes: &[u8]) -> BlobInfo {
    BlobInfo {
        blob: BlobId(Hash::of(bytes)),
        bytes: u64::try_from(bytes.len()).unwrap(),
    }
}

pub(crate) fn submission(number: u8) -> Submission {
    Submission {
        job: job(number),
        name: "test".to_owned(),
        principal: String::new(),
        runtime: "wgsl".to_owned(),
        spec: blob(b"spec"),
        inputs: vec![blob(b"input")],
        features: Vec::new(),
        device: None,
        sandbox: None,
        memory_bytes: 1 << 20,
        output_bytes_max: 1 << 20,
        fuel_max: 0,
        run_ms: 1000,
        total_ms: 60_000,
        checkpoint_ms: None,
        max_price: None,
        counter_percent: 0,
        regions: Vec::new(),
        providers: Vec::new(),
        condition: None,
        rank: None,
        policy: Policy::Cheapest,
        flops: 0,
        array: None,
        verify: VerifyOrder::default(),
        staying: Vec::new(),
    }
}

/// What every job of these tests brings out.
pub(crate) const OUTPUT: &[u8] = b"result";

/// The two, dealing.
pub(crate) struct World {
    peers: [Peer; 2],
    /// What each side wrote down, to be taken.
    pub(crate) records: [Vec<Record>; 2],
    queue: VecDeque<(usize, Input)>,
    settled: Vec<ReceiptId>,
    now_ms: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        let peers = [CLIENT, PROVIDER].map(|side| {
            let (config, signer) = core_of(side);
            Peer::new(at(0), config, signer, [7; 32])
        });
        let connected = |side: usize| Input::Connected {
            peer: peers[1 - side].id(),
            local: true,
        };
        let queue = [(CLIENT, connected(CLIENT)), (PROVIDER, connected(PROVIDER))].into();
        Self {
            peers,
            records: [Vec::new(), Vec::new()],
            queue,
            settled: Vec::new(),
            now_ms: 0,
        }
    }

    /// One more job, up to its payment.
    pub(crate) fn deal(&mut self, number: u32, firm: bool) {
        let mut order = views::order(
            &submission(1),
            Amount::from_micros(1_000_000),
            InlineBlobs::default(),
        )
        .unwrap();
        order.job = job_of(number);
        order.take = firm;
        let submit = Command::Submit(Box::new(order));
        self.queue.push_back((CLIENT, Input::Command(submit)));
        self.run_until_settled(usize::try_from(number).unwrap());
    }

    fn run_until_settled(&mut self, receipts: usize) {
        for _ in 0..STEPS_MAX {
            if self.settled.len() >= receipts && self.queue.is_empty() {
                return;
            }
            let (side, input) = self.queue.pop_front().unwrap_or((CLIENT, Input::Tick));
            self.now_ms += 10;
            self.step(side, input);
            self.step(1 - side, Input::Tick);
        }
        panic!("the deal did not end");
    }

    fn step(&mut self, side: usize, input: Input) {
        self.peers[side].handle(at(self.now_ms), input);
        while let Some(output) = self.peers[side].poll_output() {
            self.carry_out(side, output);
        }
    }

    fn carry_out(&mut self, side: usize, output: Output) {
        let other = 1 - side;
        let from = self.peers[side].id();
        match output {
            Output::Persist { lsn, record } => {
                self.records[side].push(*record);
                self.queue.push_back((side, Input::Persisted(lsn)));
            }
            Output::Send { frame, .. } => {
                let frame = Frame::decode(&frame.encode()).unwrap();
                let message = Box::new(frame.verify(from, network()).unwrap());
                self.queue
                    .push_back((other, Input::Message { from, message }));
            }
            Output::Publish { bytes } => {
                let gossip = Box::new(Gossip::verify(&bytes, network()).unwrap());
                self.queue
                    .push_back((other, Input::Gossip { token: 0, gossip }));
            }
            Output::Execute(order) => {
                let event = finished();
                self.queue.push_back((
                    side,
                    Input::Execution {
                        id: order.id,
                        event,
                    },
                ));
            }
            Output::Fetch(FetchOrder {
                agreement, blob, ..
            }) => {
                let fetched = Input::Fetched {
                    agreement,
                    blob: blob.blob,
                    ok: true,
                };
                self.queue.push_back((side, fetched));
            }
            Output::Event(Event::Settled { receipts }) => self.settled.extend(receipts),
            _ => {}
        }
    }
}

fn finished() -> ExecutionEvent {
    let blob = blob(OUTPUT);
    ExecutionEvent::Finished {
        outputs: vec![ProvidedOutput {
            name: name("out"),
            blob: suanli_protocol::deal::BlobRef {
                blob: blob.blob,
                bytes: blob.bytes,
            },
            inline: Some(OUTPUT.to_vec()),
        }],
        usage: [(Meter::JOB, 1), (Meter::GPU_MS, 1)]
            .map(|(meter, quantity)| Usage { meter, quantity })
            .to_vec(),
    }
}

fn at(ms: u64) -> Now {
    Now {
        mono: Mono::from_micros(ms * 1000),
        wall: Wall::from_millis(EPOCH_MS + ms),
    }
}

fn secret(kind: u8, side: usize) -> [u8; 32] {
    let side = u8::try_from(side).unwrap();
    *Hash::derive("suanli records test keys", &[&[kind, side]]).as_bytes()
}

fn node(side: usize) -> Signer {
    Signer::new(&secret(1, side), network())
}

fn account(side: usize) -> Signer {
    Signer::new(&secret(2, side), network())
}

fn delegation(side: usize) -> suanli_protocol::delegation::RawDelegation {
    let body = Delegation {
        node: node(side).public().peer(),
        provides: true,
        consumes: true,
        extensions: Extensions::default(),
    };
    let from = Wall::from_millis(EPOCH_MS - 1000);
    let signed = account(side).sign(from, Wall::from_millis(u64::MAX), body);
    signed.raw()
}

fn name(text: &str) -> Name {
    Text::new(text).unwrap()
}

pub(crate) fn provider() -> ProviderConfig {
    ProviderConfig {
        offer: offer(),
        known: BTreeMap::from([(
            account(CLIENT).public().account(),
            Amount::from_micros(1_000_000_000),
        )]),
        blocked: BTreeSet::new(),
        strangers_budget: Amount::from_micros(1_000_000),
        local_only: false,
        discount_percent_max: 0,
        challenges_per_hour: 12,
        references_per_hour: 120,
        queue: 0,
        pricing: std::sync::Arc::new(suanli_protocol::pricing::Fixed),
    }
}

fn offer() -> Offer {
    let price = |meter, micros| Price {
        meter,
        amount: Amount::from_micros(micros),
        per: 1,
    };
    Offer {
        account: account(PROVIDER).public().account(),
        delegation: delegation(PROVIDER),
        sequence: 0,
        region: name("CN-NX"),
        addresses: List::default(),
        devices: List::truncated(vec![Device {
            kind: DeviceKind::CPU,
            maker: name("maker"),
            model: name("model"),
            driver: name("driver"),
            memory_bytes: 1 << 30,
            slots: 4,
            runtimes: List::truncated(vec![RuntimeOffer {
                runtime: Runtime::WGSL,
                version: 1,
                features: List::default(),
            }]),
            speeds: List::default(),
        }]),
        models: List::default(),
        prices: List::truncated(vec![price(Meter::JOB, 1000), price(Meter::GPU_MS, 10)]),
        slots: 4,
        slots_free: 4,
        storage_bytes: 1 << 30,
        bandwidth_in: 0,
        bandwidth_out: 0,
        run_max: Millis::new(3_600_000),
        sandbox: SandboxLevel::PROCESS,
        energy: None,
        terms: Terms {
            strangers: true,
            stranger_credit: Amount::from_micros(100_000),
            on_cancel: Charge::Usage,
            on_job_fault: Charge::Usage,
            on_provider_fault: Charge::Nothing,
            retention: Millis::new(60_000),
        },
        accept: None,
        firm: true,
        extensions: Extensions::default(),
    }
}
