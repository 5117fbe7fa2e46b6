//! What travels, byte for byte, and what is refused.
//!
//! The golden bytes are what version 1 of everything looks like: a change in
//! them is a new version, never a new snapshot. The rest throws malformed,
//! forged and misplaced bytes at everything that reads bytes.

#![expect(clippy::unwrap_used, reason = "what a harness can't do fails the test")]

use std::{fmt::Write as _, sync::LazyLock};

use proptest::prelude::*;
use suanli_protocol::{
    bundle::Bundle,
    challenge::{Challenge, OpenedRow, Opening},
    deal::{Agreement, Checkpoint, Quote, Request, UnitRange, Work, check_quote},
    delegation::{Delegation, Revocation},
    envelope::{Body, Envelope, EnvelopeError, Extension, Extensions, Kind, PublicKey, Verified},
    expression::{Expression, Field, Scope, Term, Type},
    grant::Grant,
    ids::{
        AgreementId, ChannelId, Hash, JobId, NetworkId, OfferId, PeerId, QuoteId, ReceiptId,
        RequestId, VoucherId, hex,
    },
    limits::FRAME_BYTES_MAX,
    message::{
        Channel, Decline, Frame, Gossip, Heads, InlineBlob, Known, LogLine, Message, Progress, Pull,
    },
    offer::{Offer, Withdrawal},
    receipt::{Acceptance, Outcome, OutputRef, Receipt, ReceiptKey, Verdict, inputs_hash},
    record::Record,
    reference::Reference,
    registry::{Reason, Verification, kind},
    units::{Amount, Millis, Total, Wall},
    voucher::{NO_ROOT, NO_VOUCHER, Parties, Settlement, Voucher, VoucherAck, next_root},
    wire::{self, Bytes, List, Text, WireError},
};

#[expect(dead_code, reason = "only the samples of the harness are used here")]
#[path = "pair/world.rs"]
mod world;

use world::{
    account_signer, blob, delegate, micros, name, network, node_signer, offer, order, usage,
};

const CLIENT: usize = 0;
const PROVIDER: usize = 1;

fn at(ms: u64) -> Wall {
    Wall::from_millis(1_800_000_000_000 + ms)
}

fn sign<T: Body>(node: usize, body: T) -> Verified<T> {
    node_signer(node).sign(at(0), at(4000), body)
}

fn peer(node: usize) -> PeerId {
    node_signer(node).public().peer()
}

fn sample_offer() -> Verified<Offer> {
    let mut offer = offer(PROVIDER);
    offer.sequence = 7;
    let known = vec![Term::Field(Field::CLIENT_KNOWN)];
    offer.accept = Some(Expression::new(known, Scope::Job, Type::Bool).unwrap());
    sign(PROVIDER, offer)
}

fn sample_checkpoint() -> Checkpoint {
    Checkpoint {
        unit: 1,
        done: 1200,
        state: List::truncated(vec![OutputRef {
            name: name("waves"),
            blob: blob(b"as they are"),
        }]),
    }
}

fn sample_request() -> Verified<Request> {
    let order = order(1);
    sign(
        CLIENT,
        Request {
            account: account_signer(CLIENT).public().account(),
            delegation: delegate(CLIENT),
            principal: order.principal,
            provider: peer(PROVIDER),
            offer: OfferId(sample_offer().hash()),
            job: order.job,
            attempt: 1,
            work: Work::Array {
                units: List::truncated(vec![UnitRange { first: 0, count: 3 }]),
                inputs_each: 0,
            },
            spec: order.spec,
            inputs: List::truncated(order.inputs.into_vec()),
            resume: List::truncated(vec![sample_checkpoint()]),
            checkpoint_every: Some(Millis::new(30_000)),
            needs: order.needs,
            devices: List::truncated(vec![0]),
            budget: order.budget,
            wait_max: Some(Millis::new(5_000)),
            verification: order.verify.told(),
            confidentiality: order.confidentiality,
            retention: order.retention,
            take: false,
            counter: None,
            extensions: Extensions::default(),
        },
    )
}

fn sample_quote() -> Verified<Quote> {
    let (offer, request) = (sample_offer(), sample_request());
    let (offered, asked) = (offer.body(), request.body());
    sign(
        PROVIDER,
        Quote {
            request: RequestId(request.hash()),
            offer: OfferId(offer.hash()),
            account: offered.account,
            client: peer(CLIENT),
            client_account: asked.account,
            job: asked.job,
            attempt: 1,
            work: asked.work.clone(),
            prices: offered.prices.clone(),
            unit_cap: micros(11_000),
            cap: micros(33_000),
            run_max: Millis::new(1000),
            fuel_max: 0,
            transfer_max: Millis::new(10_000),
            collect_max: Millis::new(20_000),
            start_expected: at(10),
            wait_max: Millis::new(0),
            duration_expected: Millis::new(500),
            held: true,
            missing: List::truncated(vec![0, 1]),
            device: 0,
            terms: offered.terms.clone(),
            extensions: Extensions::default(),
        },
    )
}

fn sample_agreement() -> Verified<Agreement> {
    sign(
        CLIENT,
        Agreement {
            quote: QuoteId(sample_quote().hash()),
            job: JobId::from_bytes([1; 16]),
            attempt: 1,
            extensions: Extensions::default(),
        },
    )
}

fn agreement_id() -> AgreementId {
    AgreementId(sample_quote().hash())
}

fn sample_receipt() -> Verified<Receipt> {
    sign(
        PROVIDER,
        Receipt {
            key: ReceiptKey {
                agreement: agreement_id(),
                unit: 2,
                attempt: 1,
                index: 0,
                last: true,
            },
            outcome: Outcome::Completed,
            program: blob(b"spec").blob,
            inputs: inputs_hash(&[blob(b"input")]),
            outputs: List::truncated(vec![OutputRef {
                name: name("out"),
                blob: blob(b"result"),
            }]),
            started: at(20),
            ended: at(120),
            usage: List::truncated(usage(100)),
            amount: micros(2000),
            verification: Verification::HASHES,
            extensions: Extensions::default(),
        },
    )
}

fn sample_acceptance() -> Verified<Acceptance> {
    let receipt = sample_receipt();
    sign(
        CLIENT,
        Acceptance {
            receipt: ReceiptId(receipt.hash()),
            key: receipt.body().key,
            verdict: Verdict::Disputed(Reason::SUPERSEDED),
            verification: Verification::HASHES,
            extensions: Extensions::default(),
        },
    )
}

fn parties() -> Parties {
    Parties {
        payer: peer(CLIENT),
        payer_account: account_signer(CLIENT).public().account(),
        payee: peer(PROVIDER),
        payee_account: account_signer(PROVIDER).public().account(),
    }
}

fn sample_voucher() -> Verified<Voucher> {
    let receipts = [ReceiptId(sample_receipt().hash())];
    sign(
        CLIENT,
        Voucher {
            parties: parties(),
            sequence: 1,
            previous: NO_VOUCHER,
            cumulative: Total::from_micros(2000),
            receipts: List::truncated(receipts.to_vec()),
            root: next_root(NO_ROOT, &receipts),
            extensions: Extensions::default(),
        },
    )
}

fn sample_ack() -> Verified<VoucherAck> {
    sign(
        PROVIDER,
        VoucherAck {
            parties: parties(),
            sequence: 1,
            voucher: VoucherId(sample_voucher().hash()),
            cumulative: Total::from_micros(2000),
            extensions: Extensions::default(),
        },
    )
}

fn sample_settlement() -> Verified<Settlement> {
    sign(
        PROVIDER,
        Settlement {
            parties: parties(),
            sequence: 1,
            settled: Total::from_micros(1500),
            paid: Amount::from_micros(1500),
            reference: Text::new("invoice 1").unwrap(),
            extensions: Extensions::default(),
        },
    )
}

fn sample_delegation() -> Verified<Delegation> {
    account_signer(CLIENT).sign(
        at(0),
        at(4000),
        Delegation {
            node: peer(CLIENT),
            provides: false,
            consumes: true,
            extensions: Extensions::default(),
        },
    )
}

fn sample_revocation() -> Verified<Revocation> {
    account_signer(CLIENT).sign(
        at(0),
        at(4000),
        Revocation {
            node: peer(CLIENT),
            since: at(1000),
            extensions: Extensions::default(),
        },
    )
}

fn sample_withdrawal() -> Verified<Withdrawal> {
    sign(
        PROVIDER,
        Withdrawal {
            sequence: 7,
            extensions: Extensions(List::truncated(vec![Extension {
                id: 900,
                critical: false,
                bytes: Bytes::new(vec![1, 2, 3]).unwrap(),
            }])),
        },
    )
}

fn sample_grant() -> Verified<Grant> {
    sign(
        CLIENT,
        Grant {
            holder: peer(PROVIDER),
            agreement: AgreementId(Hash::of(b"quote")),
            reader: peer(CLIENT),
            blobs: List::truncated(vec![blob(b"input").blob]),
            extensions: Extensions::default(),
        },
    )
}

fn bodies() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("Delegation", sample_delegation().bytes().to_vec()),
        ("Revocation", sample_revocation().bytes().to_vec()),
        ("Offer", sample_offer().bytes().to_vec()),
        ("Withdrawal", sample_withdrawal().bytes().to_vec()),
        ("Request", sample_request().bytes().to_vec()),
        ("Quote", sample_quote().bytes().to_vec()),
        ("Agreement", sample_agreement().bytes().to_vec()),
        ("Receipt", sample_receipt().bytes().to_vec()),
        ("Acceptance", sample_acceptance().bytes().to_vec()),
        ("Voucher", sample_voucher().bytes().to_vec()),
        ("VoucherAck", sample_ack().bytes().to_vec()),
        ("Settlement", sample_settlement().bytes().to_vec()),
        ("Grant", sample_grant().bytes().to_vec()),
    ]
}

/// Verifies as whatever the header says that it is.
fn verify_any(bytes: &[u8], network: NetworkId) -> Result<(), EnvelopeError> {
    let envelope = Envelope::parse(bytes)?;
    match envelope.header().kind {
        kind::DELEGATION => envelope.verify::<Delegation>(network).map(drop),
        kind::REVOCATION => envelope.verify::<Revocation>(network).map(drop),
        kind::OFFER => envelope.verify::<Offer>(network).map(drop),
        kind::WITHDRAWAL => envelope.verify::<Withdrawal>(network).map(drop),
        kind::REQUEST => envelope.verify::<Request>(network).map(drop),
        kind::QUOTE => envelope.verify::<Quote>(network).map(drop),
        kind::AGREEMENT => envelope.verify::<Agreement>(network).map(drop),
        kind::RECEIPT => envelope.verify::<Receipt>(network).map(drop),
        kind::ACCEPTANCE => envelope.verify::<Acceptance>(network).map(drop),
        kind::VOUCHER => envelope.verify::<Voucher>(network).map(drop),
        kind::VOUCHER_ACK => envelope.verify::<VoucherAck>(network).map(drop),
        kind::SETTLEMENT => envelope.verify::<Settlement>(network).map(drop),
        kind::GRANT => envelope.verify::<Grant>(network).map(drop),
        _ => envelope.verify_unread(network),
    }
}

fn inline() -> List<InlineBlob, 16> {
    List::truncated(vec![InlineBlob {
        blob: blob(b"spec").blob,
        bytes: Bytes::new(b"spec".to_vec()).unwrap(),
    }])
}

const DECLINE: Decline = Decline {
    reason: Reason::CREDIT_EXHAUSTED,
    need: 9,
    have: 5,
};

fn frames() -> Vec<(&'static str, usize, Frame)> {
    [
        negotiate_frames(),
        exec_frames(),
        settle_frames(),
        challenge_frames(),
        reference_frames(),
    ]
    .concat()
}

fn reference_frames() -> Vec<(&'static str, usize, Frame)> {
    let reference = Reference {
        receipt: sample_receipt().raw(),
        provider: delegate(PROVIDER),
        acceptance: sample_acceptance().raw(),
        client: delegate(CLIENT),
    };
    let shown = List::truncated(vec![reference]);
    let declined = Frame::References(List::default(), Some(DECLINE));
    vec![
        ("AskReferences", CLIENT, Frame::AskReferences),
        ("References", PROVIDER, Frame::References(shown, None)),
        ("ReferencesDeclined", PROVIDER, declined),
    ]
}

fn challenge_frames() -> Vec<(&'static str, usize, Frame)> {
    let seed = [7; 16];
    let challenge = Challenge {
        rows: 128,
        depth: 64,
        columns: 256,
        seed,
    };
    let row = OpenedRow {
        entries: Bytes::new(vec![1, 2, 3, 4]).unwrap(),
        path: List::truncated(vec![Hash::of(b"beside")]),
    };
    let opening = Opening {
        sums: Bytes::new(vec![8; 8]).unwrap(),
        rows: List::truncated(vec![row]),
    };
    let declined = Frame::ChallengeDeclined(seed, DECLINE);
    vec![
        ("Challenge", CLIENT, Frame::Challenge(0, challenge)),
        ("ChallengeDeclined", PROVIDER, declined),
        (
            "Committed",
            PROVIDER,
            Frame::Committed(seed, Hash::of(b"root")),
        ),
        (
            "OpenCommitment",
            CLIENT,
            Frame::OpenCommitment(seed, [9; 16]),
        ),
        ("Opened", PROVIDER, Frame::Opened(seed, Box::new(opening))),
    ]
}

fn negotiate_frames() -> Vec<(&'static str, usize, Frame)> {
    let request = RequestId(sample_request().hash());
    let id = agreement_id();
    let agree = Frame::Agree(sample_agreement().raw(), inline());
    vec![
        ("Ask", CLIENT, Frame::Ask(sample_request().raw())),
        ("Quoted", PROVIDER, Frame::Quoted(sample_quote().raw())),
        ("Declined", PROVIDER, Frame::Declined(request, DECLINE)),
        ("Agree", CLIENT, agree),
        ("Agreed", PROVIDER, Frame::Agreed(id)),
        ("AgreeRefused", PROVIDER, Frame::AgreeRefused(id, DECLINE)),
        ("Release", CLIENT, Frame::Release(id.into())),
        ("Grant", CLIENT, Frame::Grant(sample_grant().raw())),
    ]
}

fn exec_frames() -> Vec<(&'static str, usize, Frame)> {
    let id = agreement_id();
    let progress = Progress {
        agreement: id,
        unit: 2,
        number: 3,
        done: 4,
        total: 5,
    };
    let line = LogLine {
        agreement: id,
        unit: 2,
        number: 4,
        at: at(30),
        line: Text::new("算力").unwrap(),
    };
    let resume = Frame::Resume(
        id,
        List::truncated(vec![sample_receipt().raw()]),
        List::truncated(vec![UnitRange { first: 2, count: 3 }]),
        List::truncated(vec![sample_checkpoint()]),
    );
    let checkpoint = Frame::Checkpoint(id, sample_checkpoint(), inline());
    let receipt = Frame::Receipt(sample_receipt().raw(), inline());
    vec![
        ("Progress", PROVIDER, Frame::Progress(progress)),
        ("Log", PROVIDER, Frame::Log(line)),
        ("Cancel", CLIENT, Frame::Cancel(id)),
        ("Resume", CLIENT, resume),
        ("Lost", PROVIDER, Frame::Lost(id)),
        ("Receipt", PROVIDER, receipt),
        ("Checkpoint", PROVIDER, checkpoint),
    ]
}

fn settle_frames() -> Vec<(&'static str, usize, Frame)> {
    let heads = Heads {
        channel: parties().channel(network()),
        voucher: Some(sample_voucher().raw()),
        ack: None,
        settlement: Some(sample_settlement().raw()),
        reply: true,
    };
    let known = Known {
        peer: peer(PROVIDER),
        sequence: 7,
    };
    let acceptance = Frame::Acceptance(sample_acceptance().raw());
    let settlement = Frame::Settlement(sample_settlement().raw());
    let next = Some(peer(CLIENT));
    let offers = Frame::Offers(List::truncated(vec![sample_offer().raw()]), next);
    let pull = Pull {
        from: peer(PROVIDER),
        to: next,
        known: List::truncated(vec![known]),
    };
    vec![
        ("Acceptance", CLIENT, acceptance),
        ("Voucher", CLIENT, Frame::Voucher(sample_voucher().raw())),
        (
            "VoucherAck",
            PROVIDER,
            Frame::VoucherAck(sample_ack().raw()),
        ),
        ("Heads", CLIENT, Frame::Heads(heads)),
        ("Settlement", PROVIDER, settlement),
        ("Pull", CLIENT, Frame::Pull(pull)),
        ("Offers", CLIENT, offers),
    ]
}

#[test]
fn golden_bodies() {
    let mut text = String::new();
    for (name, bytes) in bodies() {
        writeln!(text, "{name}: {}", hex(&bytes)).unwrap();
    }
    insta::assert_snapshot!(text);
}

#[test]
fn golden_frames() {
    let mut text = String::new();
    for (name, _, frame) in frames() {
        writeln!(text, "{name}: {}", hex(&frame.encode())).unwrap();
    }
    insta::assert_snapshot!(text);
}

#[test]
fn every_sample_comes_back_and_verifies() {
    for (name, bytes) in bodies() {
        assert_eq!(verify_any(&bytes, network()), Ok(()), "{name}");
    }
    for (name, from, frame) in frames() {
        assert_eq!(Frame::decode(&frame.encode()), Ok(frame.clone()), "{name}");
        assert!(frame.verify(peer(from), network()).is_ok(), "{name}");
    }
}

#[test]
fn every_frame_is_among_the_samples() {
    // One more variant than there are samples would decode here.
    let next = u32::try_from(frames().len()).unwrap();
    let decoded = Frame::decode(&next.to_le_bytes());
    assert!(
        matches!(&decoded, Err(WireError::Malformed(what)) if what.contains("unknown variant")),
        "{decoded:?}"
    );
}

#[test]
fn abuse_23_every_bit_of_an_envelope_counts() {
    for (name, bytes) in bodies() {
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                verify_any(&flipped, network()).is_err(),
                "{name}: bit {bit} can be flipped"
            );
        }
    }
}

#[test]
fn abuse_20_nothing_may_follow() {
    for (name, _, frame) in frames() {
        let mut bytes = frame.encode();
        bytes.push(0);
        assert_eq!(Frame::decode(&bytes), Err(WireError::Trailing(1)), "{name}");
    }
    for (name, mut bytes) in bodies() {
        bytes.push(0);
        assert!(Envelope::parse(&bytes).is_err(), "{name}");
    }
}

#[test]
fn frames_cut_anywhere_are_refused() {
    for (name, _, frame) in frames() {
        let bytes = frame.encode();
        for end in 0..bytes.len() {
            assert!(Frame::decode(&bytes[..end]).is_err(), "{name} cut at {end}");
        }
    }
}

#[test]
fn abuse_22_forged_lengths_are_refused() {
    // A variant with a list, then a length of 2⁶³ as any width would read it.
    for (variant, length) in [
        (18u32, [0xff; 8]),
        (19, [0, 0, 0, 0, 0, 0, 0, 0x80]),
        (0, [0x7f; 8]),
    ] {
        let mut bytes = variant.to_le_bytes().to_vec();
        bytes.extend(length);
        assert!(Frame::decode(&bytes).is_err());
    }
    let long = vec![0; FRAME_BYTES_MAX + 1];
    assert!(matches!(
        Frame::decode(&long),
        Err(WireError::TooLong { .. })
    ));
    assert!(Gossip::verify(&long, network()).is_err());
    // The length in an envelope's header.
    let mut bytes = sample_offer().bytes().to_vec();
    bytes[72..76].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(Envelope::parse(&bytes).is_err());
}

/// Nothing on the wire nests without bound, and nothing costs no bytes: the
/// deepest that a hostile frame can claim ends where its bytes do.
#[test]
fn abuse_21_repeated_elements_end_with_their_bytes() {
    let mut bytes = 18u32.to_le_bytes().to_vec();
    bytes.extend(2048u32.to_le_bytes());
    bytes.extend([1; 40]);
    assert!(Frame::decode(&bytes).is_err());
}

/// Signs `body` as another kind, version, or network, and with any key.
fn forge<T: Body>(body: &T, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = sign(PROVIDER, body.clone()).bytes().to_vec();
    change(&mut bytes);
    bytes
}

#[test]
fn abuse_24_weak_keys_are_refused() {
    // The identity, and a point of order 8: everything verifies under them.
    let identity = {
        let mut key = [0; 32];
        key[0] = 1;
        key
    };
    let order_8: [u8; 32] = [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ];
    for key in [identity, order_8, [0; 32]] {
        let bytes = forge(sample_withdrawal().body(), |bytes| {
            bytes[24..56].copy_from_slice(&key);
            // R = A, S = 0: valid under a sloppy check.
            let signature = bytes.len() - 64;
            bytes[signature..].fill(0);
            bytes[signature..signature + 32].copy_from_slice(&key);
        });
        assert_eq!(
            verify_any(&bytes, network()),
            Err(EnvelopeError::WeakKey),
            "{:?}",
            PublicKey::from_bytes(key)
        );
    }
}

#[test]
fn abuse_25_a_signature_means_nothing_elsewhere() {
    let bytes = sample_withdrawal().bytes().to_vec();
    assert!(matches!(
        verify_any(&bytes, NetworkId::of("another")),
        Err(EnvelopeError::OtherNetwork(_))
    ));
    // Moved to another network, kind or version, the signature fails.
    let other = NetworkId::of("another");
    let moved = forge(sample_withdrawal().body(), |bytes| {
        bytes[8..24].copy_from_slice(other.as_bytes());
    });
    assert_eq!(verify_any(&moved, other), Err(EnvelopeError::BadSignature));
    let moved = forge(sample_withdrawal().body(), |bytes| {
        bytes[4..6].copy_from_slice(&kind::REVOCATION.0.to_le_bytes());
    });
    assert_eq!(
        verify_any(&moved, network()),
        Err(EnvelopeError::BadSignature)
    );
    let moved = forge(sample_withdrawal().body(), |bytes| bytes[6] = 2);
    assert_eq!(
        verify_any(&moved, network()),
        Err(EnvelopeError::BadSignature)
    );
    assert!(matches!(
        Envelope::parse(&bytes)
            .unwrap()
            .verify::<Revocation>(network()),
        Err(EnvelopeError::WrongKind { .. })
    ));
}

#[test]
fn abuse_26_a_sender_that_did_not_sign_is_refused() {
    for (name, from, frame) in frames() {
        let is_signed_by_sender = !matches!(
            frame,
            Frame::Declined(..)
                | Frame::Agreed(_)
                | Frame::AgreeRefused(..)
                | Frame::Release(_)
                | Frame::Grant(_)
                | Frame::Progress(_)
                | Frame::Log(_)
                | Frame::Cancel(_)
                | Frame::Resume(..)
                | Frame::Lost(_)
                | Frame::Checkpoint(..)
                | Frame::Heads(_)
                | Frame::Pull(_)
                | Frame::Offers(..)
                | Frame::AskReferences
                | Frame::References(..)
        ) && frame.channel() != Channel::Challenge;
        let result = frame.verify(peer(1 - from), network());
        if is_signed_by_sender {
            assert_eq!(result, Err(EnvelopeError::WrongSigner), "{name}");
        } else {
            assert!(result.is_ok(), "{name}");
        }
    }
}

#[test]
fn a_delegation_covers_its_node_role_and_time_only() {
    let with = |change: &dyn Fn(&mut Offer)| {
        let mut offer = offer(PROVIDER);
        change(&mut offer);
        verify_any(sign(PROVIDER, offer).bytes(), network())
    };
    assert_eq!(with(&|_| {}), Ok(()));
    // Another node's delegation.
    assert_eq!(
        with(&|offer| offer.delegation = delegate(CLIENT)),
        Err(EnvelopeError::WrongSigner)
    );
    assert_eq!(
        with(&|offer| offer.account = account_signer(CLIENT).public().account()),
        Err(EnvelopeError::WrongSigner)
    );
    // For buying, and from a later time.
    let delegated = |provides, from| {
        account_signer(PROVIDER)
            .sign(
                from,
                at(9000),
                Delegation {
                    node: peer(PROVIDER),
                    provides,
                    consumes: true,
                    extensions: Extensions::default(),
                },
            )
            .raw()
    };
    assert!(with(&|offer| offer.delegation = delegated(false, at(0))).is_err());
    assert!(with(&|offer| offer.delegation = delegated(true, at(1))).is_err());
    assert!(with(&|offer| offer.delegation = delegated(true, at(0))).is_ok());
}

fn extended(id: u16, critical: bool) -> Verified<Withdrawal> {
    let extension = Extension {
        id,
        critical,
        bytes: Bytes::default(),
    };
    sign(
        PROVIDER,
        Withdrawal {
            sequence: 7,
            extensions: Extensions(List::truncated(vec![extension])),
        },
    )
}

#[test]
fn unknown_extensions_are_carried_and_critical_ones_declined() {
    assert_eq!(verify_any(extended(900, false).bytes(), network()), Ok(()));
    let critical = extended(900, true);
    assert_eq!(
        verify_any(critical.bytes(), network()),
        Err(EnvelopeError::CriticalExtension(900))
    );
    // It can still be forwarded, for those who know it.
    assert_eq!(
        Gossip::verify(critical.bytes(), network()),
        Ok(Gossip::Unread(OfferId(critical.hash())))
    );
}

/// A body that only a later version knows.
#[derive(Debug, Clone, bincode::Encode, bincode::Decode)]
struct Later(u32);

impl Body for Later {
    const KIND: Kind = kind::OFFER;
    const VERSION: u16 = 2;
    fn check(&self, _: &suanli_protocol::envelope::Header) -> Result<(), EnvelopeError> {
        Ok(())
    }
}

#[derive(Debug, Clone, bincode::Encode, bincode::Decode)]
struct Unheard(u32);

impl Body for Unheard {
    const KIND: Kind = Kind(999);
    fn check(&self, _: &suanli_protocol::envelope::Header) -> Result<(), EnvelopeError> {
        Ok(())
    }
}

#[test]
fn what_a_later_version_signed_is_forwarded_and_forgeries_of_it_are_not() {
    let later = sign(PROVIDER, Later(5));
    assert_eq!(
        verify_any(later.bytes(), network()),
        Err(EnvelopeError::UnknownVersion(2))
    );
    let unheard = sign(PROVIDER, Unheard(5));
    for bytes in [later.bytes(), unheard.bytes()] {
        assert!(matches!(
            Gossip::verify(bytes, network()),
            Ok(Gossip::Unread(_))
        ));
        let mut forged = bytes.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        assert!(Gossip::verify(&forged, network()).is_err());
    }
}

#[test]
fn a_receipt_with_two_lines_for_one_meter_is_refused() {
    let mut twice = sample_receipt().body().clone();
    twice.usage = List::truncated([usage(100), usage(1)].concat());
    assert!(matches!(
        verify_any(sign(PROVIDER, twice).bytes(), network()),
        Err(EnvelopeError::OutOfRange("two lines for one meter"))
    ));
}

#[test]
fn a_device_has_a_slot_and_no_more_than_the_offer() {
    let good = sample_offer().body().clone();
    for (slots, is_valid) in [
        (0, false),
        (1, true),
        (good.slots, true),
        (good.slots + 1, false),
    ] {
        let mut offer = good.clone();
        let mut device = offer.devices[0].clone();
        device.slots = slots;
        offer.devices = List::truncated(vec![device]);
        let verified = verify_any(sign(PROVIDER, offer).bytes(), network());
        assert_eq!(verified.is_ok(), is_valid, "{slots}: {verified:?}");
    }
}

#[test]
fn a_quote_names_a_device_that_was_asked_for() {
    let mut offer = sample_offer().body().clone();
    let device = offer.devices[0].clone();
    offer.devices = List::truncated(vec![device.clone(), device]);
    let offer = sign(PROVIDER, offer);
    for (asked, quoted, fits) in [
        (vec![], 0, true),
        (vec![], 2, false),
        (vec![1], 1, true),
        (vec![1], 0, false),
    ] {
        let mut request = sample_request().body().clone();
        request.offer = OfferId(offer.hash());
        request.devices = List::truncated(asked.clone());
        let request = sign(CLIENT, request);
        let mut quote = sample_quote().body().clone();
        quote.offer = OfferId(offer.hash());
        quote.request = RequestId(request.hash());
        quote.device = quoted;
        let checked = check_quote(&offer, &request, &sign(PROVIDER, quote));
        assert_eq!(checked.is_ok(), fits, "{asked:?} {quoted}: {checked:?}");
    }
}

#[test]
fn an_inline_blob_must_be_what_it_is_called() {
    let wrong = List::truncated(vec![InlineBlob {
        blob: blob(b"spec").blob,
        bytes: Bytes::new(b"other".to_vec()).unwrap(),
    }]);
    let frame = Frame::Agree(sample_agreement().raw(), wrong);
    assert!(frame.verify(peer(CLIENT), network()).is_err());
}

#[test]
fn one_forged_offer_does_not_spoil_a_page() {
    let mut forged = sample_offer().bytes().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let forged = suanli_protocol::envelope::Raw(Bytes::new(forged).unwrap());
    let page = List::truncated(vec![forged, sample_offer().raw()]);
    let message = Frame::Offers(page, None).verify(peer(CLIENT), network());
    let Ok(Message::Offers { offers, fault, .. }) = message else {
        panic!("{message:?}")
    };
    assert_eq!(
        (offers.len(), fault),
        (1, Some(EnvelopeError::BadSignature))
    );
}

/// All that reads bytes, on the same bytes.
fn read_all(bytes: &[u8]) {
    let _ = Frame::decode(bytes).map(|frame| frame.verify(peer(CLIENT), network()));
    let _ = verify_any(bytes, network());
    let _ = Gossip::verify(bytes, network());
    let _ = Record::decode(bytes, network());
    let _ = Bundle::verify(bytes);
}

/// All samples as bytes, signed once.
static ENCODED: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    frames()
        .iter()
        .map(|(_, _, frame)| frame.encode())
        .collect()
});

fn any_hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(Hash::from_bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn abuse_18_random_bytes_harm_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        read_all(&bytes);
    }

    /// Close to valid: a small variant number, then noise.
    #[test]
    fn abuse_18_random_frames_harm_nothing(
        variant in 0u8..24,
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..200),
    ) {
        let mut frame = vec![variant, 0, 0, 0];
        frame.extend(bytes);
        read_all(&frame);
    }

    #[test]
    fn abuse_18_damaged_frames_harm_nothing(n in 0usize..20, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = ENCODED[n].clone();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        read_all(&bytes);
    }

    /// What decodes is exactly what was encoded: there is one encoding.
    #[test]
    fn abuse_19_what_decodes_encodes_the_same(n in 0usize..20, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = ENCODED[n].clone();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(frame) = Frame::decode(&bytes) {
            prop_assert_eq!(frame.encode(), bytes);
        }
    }

    #[test]
    fn plain_frames_come_back(
        hash in any_hash(), unit in any::<u32>(), number in any::<u64>(), done in any::<u64>(),
        total in any::<u64>(), reason in any::<u16>(), reply in any::<bool>(),
        known in proptest::collection::vec((any::<[u8; 32]>(), any::<u64>()), 0..50),
    ) {
        let decline = Decline { reason: Reason(reason), need: done, have: total };
        let known = known.into_iter().map(|(peer, sequence)| Known { peer: PeerId::from_bytes(peer), sequence });
        let from = PeerId::from_bytes(*hash.as_bytes());
        for frame in [
            Frame::Declined(RequestId(hash), decline),
            Frame::Agreed(AgreementId(hash)),
            Frame::AgreeRefused(AgreementId(hash), decline),
            Frame::Release(QuoteId(hash)),
            Frame::Progress(Progress { agreement: AgreementId(hash), unit, number, done, total }),
            Frame::Cancel(AgreementId(hash)),
            Frame::Lost(AgreementId(hash)),
            Frame::Heads(Heads { channel: ChannelId(hash), voucher: None, ack: None, settlement: None, reply }),
            Frame::Pull(Pull { from, to: reply.then_some(from), known: List::truncated(known.collect()) }),
        ] {
            prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn text_is_kept_or_refused_never_changed(text in ".{0,40}") {
        if let Ok(kept) = Text::<256>::new(text.clone()) {
            prop_assert_eq!(wire::decode::<Text<256>>(&wire::encode(&kept), 1024), Ok(kept));
        } else {
            prop_assert_ne!(Text::<256>::lossy(&text).to_string(), text);
        }
    }
}
