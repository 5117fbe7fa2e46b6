//! Standings: what fades, what stays, and that a ring of accounts gains nothing by what
//! it signs for itself.
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use suanli_protocol::{
    envelope::{Extensions, Signer, Verified},
    ids::{AccountId, AgreementId, Hash, NetworkId, PeerId, ReceiptId},
    offer::Name,
    receipt::{Acceptance, ReceiptKey, Verdict},
    registry::{Reason, Verification},
    standing::{
        Failing, Failure, HALF_LIFE, Outcome, REFERENCES_MAX_WEIGHT, Standings, TRUSTED_AFTER,
        VOUCH_PART, Vouch, Vouches, Weight,
    },
    units::{Millis, Wall},
    wire::List,
};

const DAY: u64 = 24 * 3_600_000;

fn at(day: u64) -> Wall {
    Wall::from_millis(20_000 * DAY + day * DAY)
}

fn account(number: u8) -> AccountId {
    AccountId::from_bytes([number; 32])
}

fn node(number: u8) -> PeerId {
    PeerId::from_bytes([number; 32])
}

fn word(verdict: Verdict, verification: Verification, at: Wall) -> Verified<Acceptance> {
    let signer = Signer::new(&[7; 32], NetworkId::of("standing"));
    let body = Acceptance {
        receipt: ReceiptId(Hash::of(b"receipt")),
        key: ReceiptKey {
            agreement: AgreementId(Hash::of(b"agreement")),
            unit: 0,
            attempt: 1,
            index: 0,
            last: true,
        },
        verdict,
        verification,
        extensions: Extensions::default(),
    };
    signer.sign(at, Wall::from_millis(u64::MAX), body)
}

/// So many results of an account that agreed with others'.
fn agreed(standings: &mut Standings, number: u8, count: usize, when: Wall) {
    let word = word(Verdict::Accepted, Verification::REPLICAS, when);
    for _ in 0..count {
        standings.judged(node(number), account(number), &word);
    }
}

fn disputed(standings: &mut Standings, by: u8, of: u8, reason: Reason, when: Wall) {
    let word = word(Verdict::Disputed(reason), Verification::HASHES, when);
    standings.judged(node(by), account(of), &word);
}

fn vouched(standings: &mut Standings, provider: u8, by: &[u8], when: Wall) {
    let by = by.iter().map(|&client| Vouch {
        client: account(client),
        receipt: ReceiptId(Hash::of(&[provider, client])),
        at: when,
        compared: true,
    });
    standings.vouch(Vouches {
        provider: account(provider),
        at: when,
        by: List::truncated(by.collect()),
    });
}

/// All that was paid is settled.
const fn settled(_: AccountId) -> u16 {
    1000
}

fn audited(standings: &Standings, number: u8, now: Wall) -> u32 {
    standings.audited(account(number), now, settled)
}

fn referred(standings: &Standings, number: u8, now: Wall) -> Weight {
    standings.referred(account(number), now, settled)
}

#[test]
fn audits_become_fewer_with_results_that_agree_and_more_as_they_fade() {
    let mut standings = Standings::default();
    assert_eq!(audited(&standings, 1, at(0)), 1000);
    agreed(&mut standings, 1, 9, at(0));
    assert_eq!(audited(&standings, 1, at(0)), 1000);
    agreed(&mut standings, 1, 1, at(0));
    assert_eq!(audited(&standings, 1, at(0)), 100);
    agreed(&mut standings, 1, 190, at(0));
    assert_eq!(audited(&standings, 1, at(0)), 10, "never less");
    assert_eq!(
        audited(&standings, 1, at(90)),
        40,
        "200, halved three times"
    );
    assert_eq!(
        audited(&standings, 1, at(150)),
        1000,
        "as good as a stranger"
    );
    let results = standings.of_account(account(1)).unwrap();
    assert_eq!(results.agreed.count, 200, "what there was is still known");
    // Any dispute, and it begins anew.
    disputed(&mut standings, 1, 1, Reason::WRONG_AMOUNT, at(1));
    assert_eq!(audited(&standings, 1, at(1)), 1000);
    // To be overtaken is nobody's fault.
    agreed(&mut standings, 2, 10, at(0));
    disputed(&mut standings, 2, 2, Reason::SUPERSEDED, at(0));
    assert_eq!(audited(&standings, 2, at(0)), 100);
}

#[test]
fn neither_a_new_key_nor_a_new_account_sheds_a_contradicted_result() {
    let mut standings = Standings::default();
    disputed(&mut standings, 1, 1, Reason::WRONG_RESULT, at(0));
    let hours = |hours: u64| Wall::from_millis(at(0).as_millis() + hours * 3_600_000);
    let opinion =
        |standings: &Standings, peer, of, now| standings.opinion(node(peer), account(of), now);
    let wrong = Err(Reason::WRONG_RESULT);
    assert_eq!(opinion(&standings, 1, 1, at(0)), wrong);
    assert_eq!(opinion(&standings, 2, 1, at(0)), wrong, "another key");
    assert_eq!(opinion(&standings, 1, 2, at(0)), wrong, "another account");
    assert_eq!(opinion(&standings, 2, 2, at(0)), Ok(100), "a stranger");
    assert_eq!(opinion(&standings, 1, 1, hours(1)), Ok(100));
    // The next time is twice as long, under whichever key it was.
    disputed(&mut standings, 2, 1, Reason::WRONG_RESULT, hours(1));
    assert_eq!(opinion(&standings, 1, 1, hours(2)), wrong);
    assert_eq!(opinion(&standings, 1, 1, hours(3)), Ok(100));
    // So it is after a restart.
    let mut again = Standings::default();
    for (of, results) in standings.results() {
        again.recall(of, results.clone());
    }
    assert_eq!(opinion(&again, 2, 9, hours(2)), wrong);
    assert_eq!(opinion(&again, 1, 1, hours(3)), Ok(100));
}

#[test]
fn a_wrong_product_counts_for_all_keys_of_its_account_until_it_is_made_good() {
    let outcome = |right, day| Outcome {
        provider: node(1),
        account: account(1),
        at: at(day),
        device: Name::lossy("a device"),
        claimed: 1000,
        shown: 1000,
        took: Millis::new(400),
        right,
    };
    let mut standings = Standings::default();
    standings.challenged(outcome(false, 0));
    let opinion =
        |standings: &Standings, peer, day| standings.opinion(node(peer), account(1), at(day));
    assert_eq!(opinion(&standings, 1, 0), Err(Reason::FAILED_CHALLENGE));
    assert_eq!(opinion(&standings, 2, 0), Err(Reason::FAILED_CHALLENGE));
    assert_eq!(opinion(&standings, 2, 31), Ok(100), "not for ever");
    assert_eq!(opinion(&standings, 1, 31), Err(Reason::FAILED_CHALLENGE));
    standings.challenged(outcome(true, 1));
    assert_eq!(opinion(&standings, 1, 1), Ok(100));
    assert_eq!(opinion(&standings, 2, 1), Ok(100));
}

#[test]
fn failures_are_remembered_weighed_and_fade() {
    let mut standings = Standings::default();
    let failing = |standings: &Standings, day| standings.failing(account(1), at(day));
    assert_eq!(failing(&standings, 0), 0);
    for how in [
        Failing::Lost,
        Failing::Refused,
        Failing::Bait,
        Failing::Lost,
    ] {
        standings.failed(Failure {
            account: account(1),
            provider: node(1),
            how,
            at: at(0),
        });
    }
    assert_eq!(failing(&standings, 0), 4 * 1000 / 14);
    agreed(&mut standings, 1, 26, at(0));
    assert_eq!(failing(&standings, 0), 100);
    assert!(failing(&standings, 60) < 100);
    assert_eq!(failing(&standings, 3000), 0);
}

#[test]
fn whose_answers_others_would_not_have_written_is_left_out_longer_each_time() {
    let mut standings = Standings::default();
    agreed(&mut standings, 1, 20, at(0));
    let forged = |standings: &mut Standings, day| {
        standings.failed(Failure {
            account: account(1),
            provider: node(1),
            how: Failing::Forged,
            at: at(day),
        });
        let standing = standings.of(node(1), account(1)).unwrap();
        standing.left_out_until().unwrap().since(at(day))
    };
    let (first, second) = (forged(&mut standings, 0), forged(&mut standings, 1));
    assert!(first > std::time::Duration::ZERO && second == first * 2);
    assert_eq!(audited(&standings, 1, at(1)), 1000, "trust is lost at once");
    // Its node takes that along to another account.
    for of in [1, 2] {
        let opinion = standings.opinion(node(1), account(of), at(1));
        assert_eq!(opinion, Err(Reason::WRONG_RESULT));
    }
}

#[test]
fn references_count_as_far_as_their_clients_trade_with_us() {
    let mut standings = Standings::default();
    // Of whom we know nothing counts nothing, and neither does one that lied to us.
    vouched(&mut standings, 9, &[1, 2, 3], at(0));
    assert_eq!(referred(&standings, 9, at(0)), Weight::ZERO);
    assert_eq!(audited(&standings, 9, at(0)), 1000);
    agreed(&mut standings, 1, 2, at(0));
    assert_eq!(referred(&standings, 9, at(0)), Weight::from_micros(500_000));
    agreed(&mut standings, 1, 50, at(0));
    assert_eq!(referred(&standings, 9, at(0)), Weight::ONE, "one each");
    disputed(&mut standings, 1, 1, Reason::WRONG_RESULT, at(0));
    assert_eq!(referred(&standings, 9, at(0)), Weight::ZERO);
    // A client that paid us counts as far as it has settled.
    standings.paid(account(2), 40, at(0));
    let weight = |share: u16| standings.referred(account(9), at(0), |_| share);
    assert_eq!(weight(1000), Weight::ONE);
    assert_eq!(weight(50), Weight::from_micros(500_000));
    assert_eq!(weight(0), Weight::ZERO, "a debt is no payment");
    assert_eq!(
        referred(&standings, 9, at(30)),
        Weight::from_micros(500_000)
    );
}

#[test]
fn whoever_vouches_for_many_vouches_for_each_less() {
    let mut standings = Standings::default();
    agreed(&mut standings, 1, 20, at(0));
    for provider in 100..200 {
        vouched(&mut standings, provider, &[1], at(0));
    }
    let all: u64 = (100..200)
        .map(|provider| referred(&standings, provider, at(0)).as_micros())
        .sum();
    assert_eq!(all, Weight::of(5).as_micros());
    // What one shows anew replaces what it showed.
    for _ in 0..100 {
        vouched(&mut standings, 100, &[1], at(0));
    }
    assert_eq!(
        referred(&standings, 100, at(0)),
        Weight::from_micros(50_000)
    );
    for provider in 101..200 {
        vouched(&mut standings, provider, &[], at(0));
    }
    assert_eq!(referred(&standings, 100, at(0)), Weight::ONE);
}

#[test]
fn references_halve_audits_at_most_and_never_excuse_what_we_saw() {
    let mut standings = Standings::default();
    let clients: Vec<u8> = (1..=30).collect();
    for &client in &clients {
        agreed(&mut standings, client, 100, at(0));
    }
    vouched(&mut standings, 99, &clients, at(0));
    assert_eq!(referred(&standings, 99, at(0)), REFERENCES_MAX_WEIGHT);
    assert_eq!(audited(&standings, 99, at(0)), 500);
    agreed(&mut standings, 99, 20, at(0));
    assert_eq!(audited(&standings, 99, at(0)), 25);
    agreed(&mut standings, 99, 180, at(0));
    assert_eq!(audited(&standings, 99, at(0)), 10, "the floor stays");
    for reason in [Reason::WRONG_RESULT, Reason::WRONG_AMOUNT] {
        let mut standings = standings.clone();
        disputed(&mut standings, 99, 99, reason, at(0));
        assert_eq!(audited(&standings, 99, at(0)), 1000);
        assert_eq!(audited(&standings, 99, at(30)), 1000);
        let is_wrong = reason == Reason::WRONG_RESULT;
        let opinion = standings.opinion(node(99), account(99), at(0));
        assert_eq!(opinion.is_err(), is_wrong, "left out all the same");
        // It is forgotten after four half-lives; by then so is most of what others say.
        assert_eq!(referred(&standings, 99, at(119)), Weight::ZERO);
        assert!(referred(&standings, 99, at(121)) > Weight::ZERO);
    }
}

/// What a ring does: trade with us, and references between any two of its accounts.
#[derive(Debug, Clone)]
struct Ring {
    trade: Vec<(u8, u8, bool, u64)>,
    references: Vec<(u8, u8, u64)>,
    share: u16,
}

fn ring() -> impl Strategy<Value = Ring> {
    let trade = (0..24_u8, 1..60_u8, any::<bool>(), 0..120_u64);
    let reference = (0..24_u8, 0..24_u8, 0..120_u64);
    (
        prop::collection::vec(trade, 0..12),
        prop::collection::vec(reference, 0..300),
        0..=1000_u16,
    )
        .prop_map(|(trade, references, share)| Ring {
            trade,
            references,
            share,
        })
}

proptest! {
    /// The bound of the module's documentation.
    #[test]
    fn a_ring_gains_no_more_than_a_part_of_its_trade_with_us(ring in ring(), day in 120..200_u64) {
        let mut standings = Standings::default();
        for &(who, count, bought, day) in &ring.trade {
            if bought {
                agreed(&mut standings, who, count.into(), at(day));
            } else {
                standings.paid(account(who), count.into(), at(day));
            }
        }
        let mut shown: BTreeMap<u8, BTreeMap<u8, u64>> = BTreeMap::new();
        for &(provider, client, day) in &ring.references {
            shown.entry(provider).or_default().insert(client, day);
        }
        for (&provider, by) in &shown {
            let by = by.iter().map(|(&client, &day)| Vouch {
                client: account(client),
                receipt: ReceiptId(Hash::of(&[provider, client])),
                at: at(day),
                compared: true,
            });
            let by = List::truncated(by.collect());
            standings.vouch(Vouches { provider: account(provider), at: at(120), by });
        }
        let now = at(day);
        let share = |_| ring.share;
        let gained: u64 = (0..24)
            .map(|who| standings.referred(account(who), now, share).as_micros())
            .sum();
        let traded: u64 = (0..24)
            .map(|who| standings.trade(account(who), now, share).weight().as_micros())
            .sum();
        prop_assert!(gained <= traded / VOUCH_PART, "{gained} of {traded}");
        // Without trade nothing, for any account, and none is audited less.
        let traders: BTreeSet<u8> = ring.trade.iter().map(|(who, ..)| *who).collect();
        let by_traders = |who: &u8| {
            let by = shown.get(who).into_iter().flat_map(BTreeMap::keys);
            by.copied().any(|client| traders.contains(&client))
        };
        for who in (0..24).filter(|who| !by_traders(who)) {
            prop_assert_eq!(standings.referred(account(who), now, share), Weight::ZERO);
            if !traders.contains(&who) {
                prop_assert_eq!(standings.audited(account(who), now, share), 1000);
            }
        }
        // And whoever has all of it is still audited half as often as without.
        for who in 0..24 {
            let mut alone = standings.clone();
            alone.vouch(Vouches { provider: account(who), at: now, by: List::default() });
            let without = alone.audited(account(who), now, share);
            prop_assert!(standings.audited(account(who), now, share) * 2 >= without);
        }
    }
}

#[test]
fn a_half_life_is_thirty_days_and_trust_begins_with_ten() {
    // docs/standing.md and docs/verification.md say so.
    assert_eq!(HALF_LIFE.get(), 30 * DAY);
    assert_eq!(TRUSTED_AFTER, 10);
    assert_eq!(VOUCH_PART, 4);
}
