//! The kernels that ship with Suanli, held against the check that clients make.

use suanli_executor::{
    ExecutorConfig,
    kernels::{self, Kernel},
};
use suanli_protocol::challenge::{Challenge, Seed, Wrong};

use crate::support::{Bench, bench, program};

const SEED: Seed = *b"sixteen letters.";

async fn product(bench: &mut Bench, challenge: &Challenge, kernel: Kernel) -> Vec<u8> {
    let graph = kernels::product(challenge, kernel).unwrap();
    let end = bench.run_graph(1, &graph).await;
    let (outputs, _) = end.result.unwrap();
    outputs[0].content.read().unwrap().into_owned()
}

#[tokio::test]
async fn both_kernels_compute_what_a_challenge_asks_for() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    // Rows and columns differ, so that no place is taken for another.
    for (rows, depth, columns) in [(128, 64, 256), (256, 192, 128), (512, 1024, 512)] {
        let challenge = Challenge {
            rows,
            depth,
            columns,
            seed: SEED,
        };
        for kernel in [Kernel::Tiled, Kernel::Blocked] {
            let product = product(&mut bench, &challenge, kernel).await;
            let commitment =
                suanli_protocol::challenge::Commitment::new(challenge, product).unwrap();
            let opening = commitment.open(*b"what to open now");
            let verified = challenge.verify(commitment.root(), *b"what to open now", &opening);
            assert_eq!(verified, Ok(()), "{kernel:?} {rows}×{depth}×{columns}");
        }
    }
}

#[tokio::test]
async fn a_product_of_other_factors_is_found_out() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let asked = Challenge::sized(0, 1 << 30, SEED);
    let other = Challenge {
        seed: *b"another sixteen.",
        ..asked
    };
    let product = product(&mut bench, &other, Kernel::Blocked).await;
    let commitment = suanli_protocol::challenge::Commitment::new(asked, product).unwrap();
    let verified = asked.verify(commitment.root(), SEED, &commitment.open(SEED));
    assert!(matches!(verified, Err(Wrong::Product(_))), "{verified:?}");
}

#[tokio::test]
async fn what_is_measured_is_what_a_challenge_would_show() {
    let Some(mut bench) = bench(ExecutorConfig::default()).await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let rate = kernels::measure(&bench.executor, &mut bench.events, dir.path())
        .await
        .unwrap();
    let measured = program().measure(bench.adapter()).await.unwrap();
    println!("{} MFLOP/s in products, {measured:?}", rate / 1_000_000);
    assert!(rate > 1_000_000, "{rate}");
    // No product is faster than nothing but multiplying and adding, four times over.
    assert!(rate < measured.fp32_flops.saturating_mul(4));
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "products are removed");
}
