//! Results that a job declares to be products, checked.
//!
//! Each check runs on one of the runtime's blocking threads, as many as the core has under
//! way at once. It reads the three matrices row by row, once for every few rounds, with a
//! seed that it asks of the system first: by then the result is here. What was found comes
//! back as an [`Input`].
//!
//! Absent: the arithmetic ([`suanli_protocol::freivalds`]), who gave the result, and what
//! follows.

use std::io::{self, BufReader, Read};

use suanli_protocol::{
    freivalds::{Matrices, Matrix, Seed},
    peer::{Input, ProductCheck, ProductsCheck},
};
use tokio::sync::mpsc;

use super::comparing::{Unread, open, open_blob};
use crate::{
    data_dir::{DataDirError, random_secret},
    store::blobs::Blobs,
};

/// Bytes that are read of a matrix at once, at least.
const PIECE_BYTES: usize = 64 * 1024;

/// Why a product could not be checked.
#[derive(Debug, thiserror::Error)]
enum Unproven {
    #[error("{0}")]
    Unread(#[from] Unread),
    #[error("{0}")]
    Random(#[from] DataDirError),
}

/// Begins a check.
pub(super) fn start(check: ProductsCheck, blobs: Blobs, inputs: mpsc::Sender<Input>) {
    tokio::task::spawn_blocking(move || {
        let right = are_right(&check, &blobs);
        let id = check.id;
        match &right {
            Ok(true) => {}
            Ok(false) => tracing::info!(job = %id.job, unit = id.unit, "a product is wrong"),
            Err(error) => {
                tracing::warn!(job = %id.job, unit = id.unit, %error, "products could not be checked");
            }
        }
        // Fails only when the driver has ended.
        let _ = inputs.blocking_send(Input::ProductsChecked {
            id,
            right: right.ok(),
        });
    });
}

fn are_right(check: &ProductsCheck, blobs: &Blobs) -> Result<bool, Unproven> {
    for product in &check.products {
        let seed: Seed = *random_secret()?;
        let mut files = Files {
            of: product,
            blobs,
            open: [const { None }; 3],
        };
        if !product.product.holds(check.rounds, seed, &mut files)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The matrices of a product, as they lie on disk or came with the receipt.
struct Files<'a> {
    of: &'a ProductCheck,
    blobs: &'a Blobs,
    open: [Option<BufReader<Box<dyn Read + 'a>>>; 3],
}

const fn place(matrix: Matrix) -> usize {
    match matrix {
        Matrix::Left => 0,
        Matrix::Right => 1,
        Matrix::Product => 2,
    }
}

impl Matrices for Files<'_> {
    type Error = Unread;

    fn rewind(&mut self, matrix: Matrix) -> Result<(), Unread> {
        let from: Box<dyn Read + '_> = match matrix {
            Matrix::Left => Box::new(open_blob(self.of.left, self.blobs)?),
            Matrix::Right => Box::new(open_blob(self.of.right, self.blobs)?),
            Matrix::Product => open(&self.of.output, self.blobs)?,
        };
        self.open[place(matrix)] = Some(BufReader::with_capacity(PIECE_BYTES, from));
        Ok(())
    }

    fn read(&mut self, matrix: Matrix, row: &mut [u8]) -> Result<(), Unread> {
        let file = self.open[place(matrix)].as_mut();
        let file = file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(file.read_exact(row)?)
    }
}

#[cfg(test)]
mod tests {
    use suanli_protocol::{
        deal::BlobRef,
        freivalds::{Numbers, Product},
        ids::{BlobId, Hash, JobId},
        offer::Name,
        peer::{ComparedOutput, ResultId},
    };

    use super::*;
    use crate::store::blobs::Config;

    fn blob(bytes: &[u8]) -> BlobRef {
        BlobRef {
            blob: BlobId(Hash::of(bytes)),
            bytes: u64::try_from(bytes.len()).unwrap(),
        }
    }

    /// Small whole numbers: their sums are exact.
    fn matrix(count: u16, step: u16) -> Vec<u8> {
        let numbers = (0..count).map(|n| f32::from(n % 1001 * step % 17) - 8.0);
        numbers.flat_map(f32::to_le_bytes).collect()
    }

    fn times(left: &[u8], right: &[u8], inner: usize, columns: usize) -> Vec<u8> {
        let numbers = |bytes: &[u8]| -> Vec<f32> {
            let (numbers, _) = bytes.as_chunks::<4>();
            numbers
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect()
        };
        let (left, right) = (numbers(left), numbers(right));
        let row = |row: &[f32]| -> Vec<f32> {
            let number = |n| (0..inner).map(|k| row[k] * right[k * columns + n]).sum();
            (0..columns).map(number).collect()
        };
        let product = left.chunks(inner).flat_map(row);
        product.flat_map(f32::to_le_bytes).collect()
    }

    /// Rows are longer and shorter than what is read at once.
    #[test]
    fn products_are_checked_as_they_lie_on_disk_or_came() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), Config::default()).unwrap();
        for (rows, inner, columns) in [(3u16, 5u16, 7u16), (2, 2, 20_000), (2, 20_000, 2)] {
            let (left, right) = (matrix(rows * inner, 3), matrix(inner * columns, 5));
            let product = times(&left, &right, inner.into(), columns.into());
            let mut wrong = product.clone();
            wrong[8..12].copy_from_slice(&1e9_f32.to_le_bytes());
            for bytes in [&left, &right, &product, &wrong] {
                blobs.put_bytes(bytes, None).unwrap();
            }
            let check = |left: &[u8], output: &[u8], inline: bool| {
                let check = ProductsCheck {
                    id: ResultId {
                        job: JobId::from_bytes([1; 16]),
                        unit: 0,
                        result: Hash::of(b"one"),
                    },
                    rounds: 20,
                    products: vec![ProductCheck {
                        product: Product {
                            left: 0,
                            right: 1,
                            output: Name::lossy("c"),
                            rows: rows.into(),
                            inner: inner.into(),
                            columns: columns.into(),
                            numbers: Numbers::Floats { error: None },
                        },
                        left: blob(left),
                        right: blob(&right),
                        output: ComparedOutput {
                            blob: blob(output),
                            inline: inline.then(|| output.to_vec()),
                        },
                    }],
                };
                are_right(&check, &blobs).map_err(|error| error.to_string())
            };
            for inline in [true, false] {
                assert_eq!(check(&left, &product, inline), Ok(true));
                assert_eq!(check(&left, &wrong, inline), Ok(false));
            }
            let missing = check(b"nowhere", &product, true).unwrap_err();
            assert!(missing.contains("can't be opened"), "{missing}");
            // Shorter than it says.
            assert!(check(&left, &product[..product.len() - 4], true).is_err());
        }
    }
}
