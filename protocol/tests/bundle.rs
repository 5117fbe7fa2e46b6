//! A receipt's bundle from a real exchange, and every way to spoil it.

#![expect(clippy::unwrap_used, reason = "what a harness can't do fails the test")]

use std::time::Duration;

use suanli_protocol::{
    bundle::{Builder, Bundle, BundleError, Proof},
    deal::{Mismatch, UnitRange, Work},
    ids::ReceiptId,
    receipt::Verdict,
    record::Record,
    wire::List,
};

#[expect(dead_code, reason = "a part of the harness is enough here")]
#[path = "pair/world.rs"]
mod world;

use world::{NETWORK, World, micros, order};

/// The records of a client whose jobs are done and paid, and its receipts.
fn records(take: bool) -> (Vec<Record>, Vec<ReceiptId>) {
    let mut world = World::new(2).start(&[]);
    let mut first = order(1);
    first.take = take;
    first.work = Work::Array {
        units: List::truncated(vec![UnitRange { first: 0, count: 2 }]),
        inputs_each: 0,
    };
    world.submit(first);
    world.run_until_settled();
    // The last acknowledgement goes to disk.
    world.pass(Duration::from_millis(100));
    (world.records(0), world.job(1).receipts)
}

/// Of the records of the receipt's agreement, and its own.
fn bundle(records: &[Record], receipt: ReceiptId) -> Vec<u8> {
    let mut receipts = records.iter().filter_map(|record| match record {
        Record::Judged { receipt, .. } => Some(receipt),
        _ => None,
    });
    let signed = receipts.find(|signed| signed.hash() == receipt.0).unwrap();
    let agreement = signed.body().key.agreement;
    let is_of = |record: &&Record| match record {
        Record::Took { quote, .. } => quote.hash() == agreement.0,
        _ => true,
    };
    Record::bundle(NETWORK, receipt, records.iter().filter(is_of))
        .unwrap()
        .encode()
}

#[test]
fn a_bundle_proves_who_did_what_for_how_much() {
    for take in [false, true] {
        let (records, receipts) = records(take);
        let proof: Proof = Bundle::verify(&bundle(&records, receipts[0])).unwrap();
        assert_eq!(proof.receipt, receipts[0]);
        assert_eq!(proof.amount, micros(2000));
        assert_eq!(proof.verdict, Some(Verdict::Accepted));
        assert!(proof.paid && proof.acknowledged);
        assert_eq!(proof.take, take);
        assert_eq!(proof.network, NETWORK);
        assert_eq!(&*proof.region, "CN-NX");
    }
}

/// Must show 2.
#[test]
fn every_bit_of_a_bundle_counts() {
    // Of a take, which differs in one part only, a bit of each byte.
    for (take, step) in [(false, 1), (true, 11)] {
        let (records, receipts) = records(take);
        let bytes = bundle(&records, receipts[0]);
        for bit in (0..bytes.len() * 8).step_by(step) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Bundle::verify(&flipped).is_err(),
                "bit {bit} can be flipped"
            );
        }
    }
}

#[test]
fn a_bundle_cut_or_continued_is_refused() {
    let (records, receipts) = records(false);
    let bytes = bundle(&records, receipts[0]);
    for end in 0..bytes.len() {
        assert!(Bundle::verify(&bytes[..end]).is_err(), "cut at {end}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(Bundle::verify(&longer).is_err());
}

/// The parts of a bundle, put together with some left out or exchanged.
#[derive(Default)]
struct Parts<'a> {
    records: &'a [Record],
    receipt: Option<ReceiptId>,
    /// Taken from the other receipt of the same agreement.
    foreign_acceptance: bool,
    foreign_voucher: bool,
    no_agreement: bool,
    no_voucher: bool,
    other_network: bool,
    /// From another exchange.
    foreign_deal: Option<&'a [Record]>,
    foreign_agreement: Option<&'a [Record]>,
}

impl Parts<'_> {
    fn verify(&self) -> Result<Proof, BundleError> {
        let mut builder = Builder::default();
        let ours = self.records.iter().find_map(|record| match record {
            Record::Judged { receipt, .. } if self.receipt == Some(ReceiptId(receipt.hash())) => {
                Some(receipt)
            }
            _ => None,
        });
        // The units may have run under two agreements, at two providers.
        let ours = ours.unwrap();
        let is_of = |record: &&Record| match record {
            Record::Took { quote, .. } => quote.hash() == ours.body().key.agreement.0,
            Record::PaidAcked(ack) => ack.body().parties.payee == ours.signer(),
            _ => true,
        };
        for record in self.records.iter().filter(is_of) {
            self.add(&mut builder, record);
        }
        for record in self.foreign_deal.into_iter().flatten() {
            if let Record::Took {
                offer,
                request,
                quote,
                ..
            } = record
            {
                builder.deal(offer, request, quote);
            }
        }
        for record in self.foreign_agreement.into_iter().flatten() {
            if let Record::Took { agreement, .. } = record {
                builder.agreement(agreement.as_ref());
            }
        }
        let network = if self.other_network { "other" } else { NETWORK };
        Bundle::verify(&builder.build(network).unwrap().encode())
    }

    fn add(&self, builder: &mut Builder, record: &Record) {
        match record {
            Record::Took {
                offer,
                request,
                quote,
                agreement,
            } => {
                builder.deal(offer, request, quote);
                if !self.no_agreement {
                    builder.agreement(agreement.as_ref());
                }
            }
            Record::Judged {
                receipt,
                acceptance,
                ..
            } => {
                let is_ours = Some(ReceiptId(receipt.hash())) == self.receipt;
                if is_ours {
                    builder.receipt(receipt);
                }
                if is_ours != self.foreign_acceptance {
                    builder.acceptance(acceptance);
                }
            }
            Record::Paid(voucher) if !self.no_voucher => {
                let receipts = &voucher.body().receipts;
                let pays = self.receipt.is_some_and(|ours| receipts.contains(&ours));
                if pays != self.foreign_voucher {
                    builder.voucher(voucher);
                }
            }
            Record::PaidAcked(ack) => builder.ack(ack),
            _ => {}
        }
    }
}

#[test]
fn each_missing_or_foreign_part_is_named() {
    let (own, receipts) = records(false);
    let (other, _) = records(true);
    let parts = || Parts {
        records: &own,
        receipt: Some(receipts[0]),
        ..Parts::default()
    };
    assert!(parts().verify().is_ok());

    let unpaid = Parts {
        no_voucher: true,
        ..parts()
    };
    let proof = unpaid.verify().unwrap();
    assert!(!proof.paid && !proof.acknowledged);

    let without = Parts {
        no_agreement: true,
        ..parts()
    };
    assert_eq!(
        without.verify(),
        Err(BundleError::Mismatch(Mismatch::Incomplete))
    );
    let foreign = Parts {
        foreign_acceptance: true,
        ..parts()
    };
    assert_eq!(foreign.verify(), Err(BundleError::OtherAcceptance));
    let foreign = Parts {
        foreign_voucher: true,
        ..parts()
    };
    assert_eq!(foreign.verify(), Err(BundleError::OtherVoucher));
    let foreign = Parts {
        other_network: true,
        ..parts()
    };
    assert!(matches!(
        foreign.verify(),
        Err(BundleError::Part { part: "offer", .. })
    ));
    let foreign = Parts {
        foreign_deal: Some(&other),
        ..parts()
    };
    assert_eq!(
        foreign.verify(),
        Err(BundleError::Mismatch(Mismatch::OtherQuote))
    );
    let (third, _) = {
        let mut world = World::new(1).start(&[]);
        world.submit(order(7));
        world.run_until_settled();
        (world.records(0), ())
    };
    let foreign = Parts {
        foreign_agreement: Some(&third),
        ..parts()
    };
    assert_eq!(
        foreign.verify(),
        Err(BundleError::Mismatch(Mismatch::OtherQuote))
    );
}

#[test]
fn a_bundle_lacks_nothing_but_what_was_never_signed() {
    let (records, receipts) = records(false);
    let without_receipt = records
        .iter()
        .filter(|record| !matches!(record, Record::Judged { .. }));
    assert!(Record::bundle(NETWORK, receipts[0], without_receipt).is_none());
    let without_deal = records
        .iter()
        .filter(|record| !matches!(record, Record::Took { .. }));
    assert!(Record::bundle(NETWORK, receipts[0], without_deal).is_none());
}
