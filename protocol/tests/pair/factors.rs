//! Products that jobs declare: how providers make them, and how the client's driver checks
//! them.

use suanli_protocol::{
    freivalds::{Matrices, Matrix},
    peer::{ExecutionId, ExecutionOrder, Input, ProductCheck, ProductsCheck},
};

use super::World;

/// Rows, inner and columns of products.
pub(crate) const SIDES: [usize; 3] = [2, 3, 4];

/// Matrices as a node has them.
struct Factors<'a> {
    world: &'a World,
    of: &'a ProductCheck,
    at: [usize; 3],
}

impl Matrices for Factors<'_> {
    type Error = std::convert::Infallible;

    fn rewind(&mut self, matrix: Matrix) -> Result<(), Self::Error> {
        self.at[matrix as usize] = 0;
        Ok(())
    }

    fn read(&mut self, matrix: Matrix, row: &mut [u8]) -> Result<(), Self::Error> {
        let ProductCheck {
            left,
            right,
            output,
            ..
        } = self.of;
        let blob = [left, right, &output.blob][matrix as usize].blob;
        let at = self.at[matrix as usize];
        row.copy_from_slice(&self.world.contents[&blob][at..at + row.len()]);
        self.at[matrix as usize] += row.len();
        Ok(())
    }
}

impl World {
    pub(super) fn check_products(&mut self, node: usize, check: ProductsCheck) {
        let blobs = &self.nodes[node].blobs;
        let right = check.products.iter().all(|of| {
            let output = &of.output;
            let mut stored = vec![of.left, of.right];
            stored.extend(output.inline.is_none().then_some(output.blob));
            let here = stored.iter().all(|of| blobs.contains(&of.blob));
            assert!(here, "{of:?} is of what node {node} does not have");
            let (world, at) = (&*self, [0; 3]);
            let seed = [7; 32];
            let held = of
                .product
                .holds(check.rounds, seed, &mut Factors { world, of, at });
            held.unwrap()
        });
        let (id, right) = (check.id, (!self.unreadable).then_some(right));
        self.checked.push(check);
        self.say_compared(node, Input::ProductsChecked { id, right });
    }

    /// The product of an execution's inputs.
    pub(super) fn product(&self, node: usize, id: ExecutionId, off: f32) -> Vec<u8> {
        let of = |(at, order): &&(usize, ExecutionOrder)| *at == node && order.id == id;
        let (_, order) = self.executed.iter().rev().find(of).unwrap();
        let [left, right] = [0, 1].map(|n| {
            let bytes = &self.contents[&order.inputs[n].blob];
            let (numbers, _) = bytes.as_chunks::<4>();
            let numbers = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes));
            numbers.collect::<Vec<f32>>()
        });
        let [rows, inner, columns] = SIDES;
        let number = |n: usize| {
            let term = |k| left[n / columns * inner + k] * right[k * columns + n % columns];
            let sum: f32 = (0..inner).map(term).sum();
            if n == 5 { sum + off } else { sum }
        };
        let product = (0..rows * columns).map(number);
        product.flat_map(f32::to_le_bytes).collect()
    }
}
