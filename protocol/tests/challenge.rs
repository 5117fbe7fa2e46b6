//! Challenges: honest answers pass, and each way to save work is found out.

#![expect(clippy::unwrap_used, reason = "what a helper can't do fails the test")]

use suanli_protocol::{
    challenge::{Challenge, Commitment, OpenedRow, Opening, Seed, Wrong, entry},
    ids::{AccountId, Hash, PeerId},
    limits::FRAME_BYTES_MAX,
    message::Frame,
    offer::Name,
    standing::{KEPT_PERCENT, Outcome, Standings},
    units::{Millis, Wall},
    wire::{Bytes, List},
};

const SEED: Seed = *b"sixteen letters.";
const OPEN: Seed = *b"what to open now";

fn small() -> Challenge {
    Challenge {
        rows: 128,
        depth: 64,
        columns: 256,
        seed: SEED,
    }
}

/// The product in FP32, in sequence, of factors that went through `round`.
fn product(challenge: &Challenge, round: impl Fn(f32) -> f32) -> Vec<f32> {
    let [a0, a1, b0, b1] = challenge.words();
    let (depth, columns) = (challenge.depth, challenge.columns);
    let mut product = Vec::new();
    for i in 0..challenge.rows {
        let mut row = vec![0_f32; usize::try_from(columns).unwrap()];
        for k in 0..depth {
            let a = round(entry(i * depth + k, a0, a1));
            for (j, sum) in (0..).zip(&mut row) {
                *sum += a * round(entry(k * columns + j, b0, b1));
            }
        }
        product.extend(row);
    }
    product
}

fn bytes(product: &[f32]) -> Vec<u8> {
    product.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn answer(challenge: &Challenge, product: &[f32]) -> Result<(), Wrong> {
    let commitment = Commitment::new(*challenge, bytes(product)).unwrap();
    challenge.verify(commitment.root(), OPEN, &commitment.open(OPEN))
}

/// Eleven significant bits, as tensor cores take them.
fn as_tf32(n: f32) -> f32 {
    f32::from_bits((n.to_bits() + 0x1000) & !0x1fff)
}

#[test]
fn an_honest_product_passes_for_any_opening() {
    let challenge = small();
    let commitment = Commitment::new(challenge, bytes(&product(&challenge, |n| n))).unwrap();
    for n in 0..32 {
        let opening = commitment.open([n; 16]);
        assert_eq!(
            challenge.verify(commitment.root(), [n; 16], &opening),
            Ok(())
        );
    }
}

#[test]
fn entries_are_spread_evenly() {
    let n = 1 << 16;
    let entries: Vec<f64> = (0..n).map(|i| f64::from(entry(i, 7, 8))).collect();
    let mean = entries.iter().sum::<f64>() / f64::from(n);
    let square = entries.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
    // Five times the deviation that chance allows.
    assert!(mean.abs() < 5.0 / (3.0 * f64::from(n)).sqrt(), "{mean}");
    assert!((square - 1.0 / 3.0).abs() < 0.006, "{square}");
    assert!(entries.iter().all(|x| (-1.0..1.0).contains(x)));
}

#[test]
fn less_precision_is_found_out() {
    let challenge = Challenge {
        depth: 1024,
        ..small()
    };
    let coarse = answer(&challenge, &product(&challenge, as_tf32));
    assert!(
        matches!(coarse, Err(Wrong::Product(_) | Wrong::Sum(_))),
        "{coarse:?}"
    );
}

#[test]
fn honest_rounding_stays_far_below_the_bound() {
    let challenge = Challenge {
        depth: 4096,
        ..small()
    };
    // The same sums from the other end: as far apart as two honest orders get.
    let forward = product(&challenge, |n| n);
    let off: Vec<f64> = {
        let [a0, a1, b0, b1] = challenge.words();
        let (depth, columns) = (challenge.depth, challenge.columns);
        (0..8)
            .map(|i| {
                (0..columns)
                    .map(|j| {
                        let exact: f64 = (0..depth)
                            .map(|k| {
                                f64::from(entry(i * depth + k, a0, a1))
                                    * f64::from(entry(k * columns + j, b0, b1))
                            })
                            .sum();
                        let place = usize::try_from(i * columns + j).unwrap();
                        f64::from(forward[place]) - exact
                    })
                    .sum::<f64>()
                    .abs()
            })
            .collect()
    };
    let worst = off.iter().copied().fold(0.0, f64::max);
    println!(
        "worst of 8 rows {worst:.5}, bound {:.5}",
        challenge.tolerance()
    );
    assert!(worst < challenge.tolerance() / 3.0);
}

#[test]
fn a_single_wrong_number_anywhere_is_found_out() {
    let challenge = small();
    let right = product(&challenge, |n| n);
    for place in [0, 255, 256, right.len() - 1] {
        let mut wrong = right.clone();
        wrong[place] += 0.5;
        let row = u32::try_from(place / 256).unwrap();
        assert_eq!(answer(&challenge, &wrong), Err(Wrong::Product(row)));
        wrong[place] = f32::NAN;
        assert!(answer(&challenge, &wrong).is_err());
    }
}

#[test]
fn sums_without_a_product_prove_nothing() {
    let challenge = small();
    let right = Commitment::new(challenge, bytes(&product(&challenge, |n| n))).unwrap();
    // What a provider can find from the seed once it is known, without any product.
    let sums = right.open(OPEN).sums;
    let nothing = Commitment::new(challenge, vec![0; 128 * 256 * 4]).unwrap();
    let opening = Opening {
        sums,
        rows: nothing.open(OPEN).rows,
    };
    let verified = challenge.verify(nothing.root(), OPEN, &opening);
    assert!(matches!(verified, Err(Wrong::Sum(_))), "{verified:?}");
    // Nor can rows be made once they are asked for.
    let opening = right.open(OPEN);
    let verified = challenge.verify(nothing.root(), OPEN, &opening);
    assert!(matches!(verified, Err(Wrong::Changed(_))), "{verified:?}");
}

#[test]
fn half_of_the_rows_are_not_enough() {
    let challenge = small();
    let right = product(&challenge, |n| n);
    let mut half = right.clone();
    half[64 * 256..].fill(0.0);
    let lazy = Commitment::new(challenge, bytes(&half)).unwrap();
    let all = Commitment::new(challenge, bytes(&right)).unwrap();
    let mut caught = 0;
    for n in 0..64 {
        // Right sums for all rows, which cost little, and the rows that there are.
        let open = [n; 16];
        let opening = Opening {
            sums: all.open(open).sums,
            rows: lazy.open(open).rows,
        };
        caught += u32::from(challenge.verify(lazy.root(), open, &opening).is_err());
    }
    assert_eq!(caught, 64, "32 rows are opened, half of them are wrong");
}

#[test]
fn another_shape_is_refused_and_nothing_panics() {
    let challenge = small();
    let commitment = Commitment::new(challenge, bytes(&product(&challenge, |n| n))).unwrap();
    let root = commitment.root();
    let good = commitment.open(OPEN);
    let mut short = good.clone();
    short.sums = Bytes::new(good.sums[8..].to_vec()).unwrap();
    assert_eq!(challenge.verify(root, OPEN, &short), Err(Wrong::Shape));
    let mut fewer = good.clone();
    fewer.rows = List::truncated(good.rows.iter().skip(1).cloned().collect());
    assert_eq!(challenge.verify(root, OPEN, &fewer), Err(Wrong::Shape));
    let with_row = |change: &dyn Fn(&mut OpenedRow)| {
        let mut rows = good.rows.to_vec();
        change(&mut rows[0]);
        let sums = good.sums.clone();
        let rows = List::truncated(rows);
        challenge.verify(root, OPEN, &Opening { sums, rows })
    };
    let other_path = with_row(&|row| row.path = List::default());
    assert!(matches!(other_path, Err(Wrong::Changed(_))));
    let other_row = with_row(&|row| row.entries = Bytes::new(vec![0; 3]).unwrap());
    assert!(matches!(other_row, Err(Wrong::Changed(_))));
    assert!(
        challenge
            .verify(Hash::from_bytes([0; 32]), OPEN, &good)
            .is_err()
    );
    assert!(Commitment::new(challenge, vec![0; 12]).is_none());
}

#[test]
fn sizes_follow_the_claim_and_stay_in_bounds() {
    let mut last = 0;
    for power in 0..64 {
        for memory in [0, 1 << 28, 1 << 34, u64::MAX] {
            let challenge = Challenge::sized(1 << power, memory, SEED);
            assert!(challenge.is_valid(), "{challenge:?}");
            let numbers = u64::from(challenge.depth) * u64::from(challenge.rows) * 2;
            assert!(
                memory < 1 << 28 || numbers * 4 <= memory / 2,
                "{challenge:?}"
            );
        }
        let challenge = Challenge::sized(1 << power, u64::MAX, SEED);
        assert!(challenge.operations() >= last);
        last = challenge.operations();
    }
    // 20 GFLOP/s: about 0.4 s.
    let operations = Challenge::sized(20_000_000_000, 1 << 33, SEED).operations();
    assert!(
        (7_000_000_000..=8_000_000_000).contains(&operations),
        "{operations}"
    );
}

#[test]
fn every_opening_fits_a_frame() {
    for side in [128, 256, 512, 1024, 2048, 4096] {
        let challenge = Challenge {
            rows: side,
            depth: 64,
            columns: side,
            seed: SEED,
        };
        let zeros = vec![0; usize::try_from(challenge.product_bytes()).unwrap()];
        let opening = Commitment::new(challenge, zeros).unwrap().open(OPEN);
        assert!(opening.rows.len() >= 4);
        let frame = Frame::Opened(SEED, Box::new(opening));
        let bytes = frame.encode();
        assert!(bytes.len() <= FRAME_BYTES_MAX, "{side}: {}", bytes.len());
        assert_eq!(Frame::decode(&bytes), Ok(frame));
    }
}

fn outcome(shown: u64, right: bool) -> Outcome {
    Outcome {
        provider: PeerId::from_bytes([1; 32]),
        account: AccountId::from_bytes([2; 32]),
        at: Wall::from_millis(1),
        device: Name::lossy("a device"),
        claimed: 1000,
        shown,
        took: Millis::new(400),
        right,
    }
}

#[test]
fn a_standing_follows_challenges_and_work_counts_more() {
    let peer = PeerId::from_bytes([1; 32]);
    let mut standings = Standings::default();
    assert_eq!(standings.believed(peer), Some(100));
    standings.challenged(outcome(900, true));
    assert_eq!(standings.believed(peer), Some(100));
    standings.challenged(outcome(200, true));
    assert_eq!(standings.believed(peer), Some(20));
    standings.challenged(outcome(0, false));
    assert_eq!(standings.believed(peer), None);
    standings.challenged(outcome(1000, true));
    // Abuse 82: quick when it is challenged, slow when it works.
    for _ in 0..2 {
        standings.worked(peer, 100, Millis::new(1000), 1000);
    }
    assert_eq!(standings.believed(peer), Some(100), "two say little");
    standings.worked(peer, 100, Millis::new(1000), 1000);
    assert_eq!(standings.believed(peer), Some(10));
    // And what is too short to say anything is not counted.
    for _ in 0..16 {
        standings.worked(peer, 1000, Millis::new(10), 1000);
    }
    assert_eq!(standings.believed(peer), Some(10));
    assert!(outcome(u64::from(KEPT_PERCENT) * 10, true).is_kept());
}
