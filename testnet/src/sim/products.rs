//! Programs whose results are products: which of them are right, and how that is checked.
//!
//! The simulator keeps names of blobs, and no matrices. So a product is right here if a
//! machine made it that does not cheat; what a real check finds with the chance that it
//! has, this one always finds.

use std::collections::BTreeSet;

use suanli_protocol::{
    freivalds::{Freivalds, Numbers, Product},
    ids::BlobId,
    offer::Name,
    peer::{Input, ProductsCheck, ResultId},
    wire::List,
};

use super::{
    floats::OUTPUT,
    node::Ix,
    world::{Event, World},
};

/// Rows and columns of all matrices: a small result has as many bytes.
const SIDE: u32 = 3;
/// Both factors of every product.
pub(crate) const FACTOR: &[u8; 36] = b"three rows of three numbers, as bits";

/// What programs computed.
#[derive(Debug, Default)]
pub(crate) struct Products {
    programs: BTreeSet<BlobId>,
    right: BTreeSet<BlobId>,
}

/// What a job with such a program says of its result.
pub(crate) fn freivalds() -> Freivalds {
    Freivalds {
        rounds: 20,
        products: List::truncated(vec![Product {
            left: 0,
            right: 0,
            output: Name::lossy(OUTPUT),
            rows: SIDE,
            inner: SIDE,
            columns: SIDE,
            numbers: Numbers::Integers,
        }]),
    }
}

/// Whether a program's results are small, so that they may be products.
pub(crate) fn is_small(spec: BlobId) -> bool {
    !spec.0.as_bytes()[0].is_multiple_of(4)
}

impl Products {
    /// A job is handed in whose program computes products.
    pub(crate) fn is_program(&mut self, spec: BlobId) {
        self.programs.insert(spec);
    }

    pub(crate) fn has_program(&self, spec: BlobId) -> bool {
        self.programs.contains(&spec)
    }

    /// A machine that does not cheat gave this.
    pub(crate) fn is_right(&mut self, blob: BlobId) {
        self.right.insert(blob);
    }

    pub(crate) fn are_right(&self, mut outputs: impl Iterator<Item = BlobId>) -> bool {
        outputs.all(|blob| self.right.contains(&blob))
    }
}

/// What drivers do.
impl World<'_> {
    /// A node checks what it has on its disk, or was given.
    pub(crate) fn check_products(&mut self, ix: Ix, check: ProductsCheck) {
        self.figures.checks += 1;
        let takes = self.dice.millis(self.scenario.faults.disk_ms);
        // Some disks are as bad as some links.
        let fails = self.dice.chance(self.scenario.faults.fetch_fail);
        let node = &self.nodes[ix];
        let needed = check.products.iter().flat_map(|of| {
            let output = of.output.inline.is_none().then_some(of.output.blob);
            [of.left, of.right].into_iter().chain(output)
        });
        let missing = needed
            .map(|blob| blob.blob)
            .find(|blob| !node.blobs.contains(blob));
        if let Some(missing) = missing {
            let name = &node.name;
            self.checks.compares_unstored(self.now, ix, name, missing);
        }
        let outputs = check.products.iter().map(|of| of.output.blob.blob);
        let right = self.checks.products.are_right(outputs);
        let event = Event::ProductsChecked {
            node: ix,
            boot: node.boot,
            found: (check.id, (!fails && missing.is_none()).then_some(right)),
        };
        self.later(takes * 3, event);
    }

    pub(crate) fn products_checked(
        &mut self,
        (ix, boot): (Ix, u64),
        (id, right): (ResultId, Option<bool>),
    ) {
        if self.is_up(ix, boot) {
            self.step(ix, Input::ProductsChecked { id, right });
        }
    }
}
