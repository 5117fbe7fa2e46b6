//! Products of challenges, in a world: honest ones, and others.

use std::{collections::BTreeMap, time::Duration};

use suanli_protocol::{
    challenge::{Challenge, Commitment, Seed, entry},
    message::Frame,
    peer::{Input, Output},
};

use super::{DELAY, World};

/// How a provider answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Solver {
    /// Rightly, after a time.
    Honest { ms: u64 },
    /// At once, with nothing but zeros.
    Zeros,
    /// Its device is broken.
    Broken,
}

/// What a world keeps of challenges.
#[derive(Debug, Default)]
pub(crate) struct Products {
    made: BTreeMap<Seed, Commitment>,
}

impl World {
    pub(crate) fn challenge_output(&mut self, node: usize, output: Output) {
        match output {
            Output::Compute { challenge, .. } => self.compute(node, challenge),
            Output::OpenProduct {
                challenge,
                open,
                to,
            } => {
                if let Some(commitment) = self.products.made.get(&challenge.seed) {
                    let opening = Box::new(commitment.open(open));
                    self.transmit(node, to, Frame::Opened(challenge.seed, opening));
                }
            }
            Output::ForgetProduct(seed) => drop(self.products.made.remove(&seed)),
            Output::Verify {
                provider,
                challenge,
                root,
                seed,
                opening,
            } => {
                let result = challenge.verify(root, seed, &opening);
                self.feed_later(node, DELAY, Input::Verified { provider, result });
            }
            _ => unreachable!("not of a challenge"),
        }
    }

    fn compute(&mut self, node: usize, challenge: Challenge) {
        let seed = challenge.seed;
        let (product, ms) = match self.nodes[node].solver {
            Solver::Honest { ms } => (product(&challenge), ms),
            Solver::Zeros => (vec![0; product_bytes(&challenge)], 1),
            Solver::Broken => (Vec::new(), 1),
        };
        let commitment = Commitment::new(challenge, product);
        let root = commitment.as_ref().map(Commitment::root);
        if let Some(commitment) = commitment {
            self.products.made.insert(seed, commitment);
        }
        let after = Duration::from_millis(ms);
        self.feed_later(node, after, Input::Computed { seed, root });
    }
}

fn product_bytes(challenge: &Challenge) -> usize {
    usize::try_from(challenge.product_bytes()).unwrap()
}

/// In FP32, four at a time where the compiler can.
fn product(challenge: &Challenge) -> Vec<u8> {
    let [a0, a1, b0, b1] = challenge.words();
    let columns = usize::try_from(challenge.columns).unwrap();
    let b: Vec<f32> = (0..challenge.depth * challenge.columns)
        .map(|n| entry(n, b0, b1))
        .collect();
    let mut product = Vec::with_capacity(product_bytes(challenge));
    for i in 0..challenge.rows {
        let mut row = vec![0_f32; columns];
        for (k, b) in (0..challenge.depth).zip(b.chunks_exact(columns)) {
            let a = entry(i * challenge.depth + k, a0, a1);
            row.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
        }
        product.extend(row.iter().flat_map(|sum| sum.to_le_bytes()));
    }
    product
}
