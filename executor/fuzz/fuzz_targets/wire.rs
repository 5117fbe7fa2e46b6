//! Bytes come from another peer: the first says as what. What is accepted has one
//! encoding; a body that was accepted is signed, and comes back from its envelope.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use suanli_executor_fuzz::{memory::most_held, show};
use suanli_protocol::{
    bundle::Bundle,
    deal::{Agreement, Quote, Request},
    delegation::{Delegation, Revocation},
    envelope::{Body, Envelope, Signer},
    grant::Grant,
    ids::NetworkId,
    message::{Frame, Gossip},
    offer::{Offer, Withdrawal},
    receipt::{Acceptance, Receipt},
    record::Record,
    units::Wall,
    voucher::{Settlement, Voucher, VoucherAck},
    wire,
};

/// Elements are wider in memory than on the wire, and lists grow by doubling; text is
/// read in steps of 64 KiB.
const MEMORY_FACTOR: usize = 96;
const MEMORY_BASE: usize = 128 << 10;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some((what, bytes)) = bytes.split_first() else {
        return Corpus::Reject;
    };
    let ((), held) = most_held(|| read(*what, bytes));
    let held_max = MEMORY_BASE + bytes.len() * MEMORY_FACTOR;
    assert!(held <= held_max, "{held} bytes held for {}", bytes.len());
    Corpus::Keep
});

fn read(what: u8, bytes: &[u8]) {
    match what % 18 {
        0 => frame(bytes),
        1 => drop(Gossip::verify(bytes, network())),
        2 => envelope(bytes),
        3 => drop(Bundle::verify(bytes)),
        4 => record(bytes),
        5 => body::<Offer>(bytes),
        6 => body::<Withdrawal>(bytes),
        7 => body::<Request>(bytes),
        8 => body::<Quote>(bytes),
        9 => body::<Agreement>(bytes),
        10 => body::<Receipt>(bytes),
        11 => body::<Acceptance>(bytes),
        12 => body::<Voucher>(bytes),
        13 => body::<VoucherAck>(bytes),
        14 => body::<Settlement>(bytes),
        15 => body::<Delegation>(bytes),
        16 => body::<Revocation>(bytes),
        _ => body::<Grant>(bytes),
    }
}

fn network() -> NetworkId {
    NetworkId::of("fuzzed")
}

fn signer() -> Signer {
    Signer::new(&[7; 32], network())
}

fn frame(bytes: &[u8]) {
    let frame = Frame::decode(bytes);
    show(|| format!("{frame:#?}"));
    if let Ok(frame) = frame {
        assert_eq!(frame.encode(), bytes);
        frame.channel();
        let _ = frame.verify(signer().public().peer(), network());
    }
}

fn envelope(bytes: &[u8]) {
    if let Ok(envelope) = Envelope::parse(bytes) {
        assert_eq!(&**envelope.bytes(), bytes);
        let _ = envelope.verify_unread(network());
        let _ = envelope.verify_unread(envelope.header().network);
        let _ = envelope.verify::<Offer>(envelope.header().network);
    }
}

fn record(bytes: &[u8]) {
    let _ = Record::decode(bytes, network());
    if let Ok(record) = Record::read_back(bytes) {
        record.keys(network());
    }
}

fn body<T: Body>(bytes: &[u8]) {
    let decoded = wire::decode::<T>(bytes, T::ENVELOPE_BYTES_MAX);
    show(|| format!("{decoded:#?}"));
    let Ok(body) = decoded else {
        return;
    };
    assert_eq!(wire::encode(&body), bytes);
    let signed = signer().sign(Wall::from_millis(1), Wall::from_millis(2), body);
    let Ok(envelope) = Envelope::parse(signed.bytes()) else {
        // One that is too long with its header and signature.
        return;
    };
    if let Ok(verified) = envelope.verify::<T>(network()) {
        assert_eq!(verified.bytes(), signed.bytes());
        assert_eq!(wire::encode(verified.body()), bytes);
    }
}
