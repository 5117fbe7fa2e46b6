//! An offer like that of a node with one graphics card.

use suanli_protocol::{
    delegation::{Delegation, RawDelegation},
    envelope::{Extensions, Signer, Verified},
    ids::{AccountId, NetworkId},
    offer::{Charge, Device, Offer, RuntimeOffer, Speed, Terms},
    registry::{DeviceKind, Runtime, SandboxLevel, SpeedKind},
    units::{Amount, Meter, Millis, Price, Wall},
    wire::{List, Text},
};

/// The offer of an account, with a delegation of it.
pub(super) fn offer(account: AccountId, delegation: RawDelegation, sequence: u64) -> Offer {
    Offer {
        account,
        delegation,
        sequence,
        region: Text::lossy("CN-NX"),
        addresses: List::truncated(
            ["/ip4/127.0.0.1/udp/9/quic-v1", "/ip4/127.0.0.1/tcp/9"]
                .into_iter()
                .filter_map(|at| Text::new(at).ok())
                .collect(),
        ),
        devices: List::truncated(vec![device()]),
        models: List::default(),
        prices: List::truncated(vec![Price {
            meter: Meter::GPU_MS,
            amount: Amount::from_micros(500),
            per: 1000,
        }]),
        slots: 4,
        slots_free: 4,
        storage_bytes: 4 << 30,
        bandwidth_in: 0,
        bandwidth_out: 0,
        run_max: Millis::new(3_600_000),
        sandbox: SandboxLevel::PROCESS,
        energy: None,
        terms: Terms {
            strangers: true,
            stranger_credit: Amount::from_micros(5_000_000),
            on_cancel: Charge::Usage,
            on_job_fault: Charge::Usage,
            on_provider_fault: Charge::Nothing,
            retention: Millis::new(3_600_000),
        },
        accept: None,
        firm: false,
        extensions: Extensions::default(),
    }
}

/// An offer that a node made which nobody will ever meet. `number` makes it
/// different from others.
pub(super) fn stranger(
    network: NetworkId,
    number: u8,
    issued: Wall,
    expires: Wall,
) -> Verified<Offer> {
    let node = Signer::new(&[number; 32], network);
    let mut secret = [number; 32];
    secret[0] ^= 0xff;
    let account = Signer::new(&secret, network);
    let delegation = account.sign(
        issued,
        expires,
        Delegation {
            node: node.public().peer(),
            provides: true,
            consumes: false,
            extensions: Extensions::default(),
        },
    );
    let offer = offer(
        account.public().account(),
        delegation.raw(),
        issued.as_millis(),
    );
    node.sign(issued, expires, offer)
}

fn device() -> Device {
    Device {
        kind: DeviceKind::GPU,
        maker: Text::lossy("NVIDIA"),
        model: Text::lossy("NVIDIA GeForce RTX 4090"),
        driver: Text::lossy("NVIDIA 570.124.06"),
        memory_bytes: 24 << 30,
        slots: 4,
        runtimes: List::truncated(vec![RuntimeOffer {
            runtime: Runtime::WGSL,
            version: 1,
            features: List::default(),
        }]),
        speeds: List::truncated(vec![Speed {
            kind: SpeedKind::FP32,
            per_second: 61_000_000_000_000,
            measured: Wall::from_millis(1_790_000_000_000),
        }]),
    }
}
