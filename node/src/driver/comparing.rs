//! Floats of two results, compared.
//!
//! Each comparison runs on one of the runtime's blocking threads, as many as the core
//! has under way at once. It reads both outputs in step, a piece at a time: however
//! large they are, it holds two pieces. What was found comes back as an [`Input`].
//!
//! Absent: who gave which result, and what follows.

use std::{
    fs::File,
    io::{self, Read, Take},
};

use suanli_protocol::{
    deal::BlobRef,
    peer::{ComparedOutput, Comparison, Input},
    tolerance::Tolerance,
};
use tokio::sync::mpsc;

use super::hands::hash_of;
use crate::store::blobs::{BlobError, Blobs};

/// Bytes that are read of each output at once: whole numbers.
const PIECE_BYTES: usize = 64 * 1024;
const PIECE_BYTES_MAX: u64 = 64 * 1024;

/// Why outputs could not be compared, or checked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    #[error("blob {0} can't be opened: {1}")]
    Blob(blake3::Hash, BlobError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Begins a comparison.
pub(super) fn start(comparison: Comparison, blobs: Blobs, inputs: mpsc::Sender<Input>) {
    tokio::task::spawn_blocking(move || {
        let equal = are_equal(&comparison, &blobs);
        if let Err(error) = &equal {
            let id = comparison.id;
            tracing::warn!(job = %id.job, unit = id.unit, %error, "results could not be compared");
        }
        // Fails only when the driver has ended.
        let _ = inputs.blocking_send(Input::Compared {
            id: comparison.id,
            equal: equal.ok(),
        });
    });
}

fn are_equal(comparison: &Comparison, blobs: &Blobs) -> Result<bool, Unread> {
    for [one, other] in &comparison.pairs {
        let (one, other) = (open(one, blobs)?, open(other, blobs)?);
        if !are_near(one, other, comparison.tolerance)? {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn open<'a>(
    output: &'a ComparedOutput,
    blobs: &Blobs,
) -> Result<Box<dyn Read + 'a>, Unread> {
    match &output.inline {
        Some(inline) => Ok(Box::new(inline.as_slice())),
        None => Ok(Box::new(open_blob(output.blob, blobs)?)),
    }
}

/// A blob's bytes. What is longer than it says ends there, and is not read on.
pub(super) fn open_blob(blob: BlobRef, blobs: &Blobs) -> Result<Take<File>, Unread> {
    let hash = hash_of(blob.blob);
    let file = blobs.open_blob(&hash);
    let file = file.map_err(|error| Unread::Blob(hash, error))?;
    Ok(file.take(blob.bytes))
}

fn are_near(mut a: impl Read, mut b: impl Read, tolerance: Tolerance) -> io::Result<bool> {
    let mut pieces = [const { Vec::new() }; 2];
    loop {
        let [piece, other] = &mut pieces;
        let read = read_piece(&mut a, piece)?;
        read_piece(&mut b, other)?;
        if !tolerance.allows_pieces(piece, other) {
            return Ok(false);
        }
        if read < PIECE_BYTES {
            return Ok(true);
        }
    }
}

/// Reads a whole piece, or all that is left, and says how much that is.
fn read_piece(from: &mut impl Read, piece: &mut Vec<u8>) -> io::Result<usize> {
    piece.clear();
    from.take(PIECE_BYTES_MAX).read_to_end(piece)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use suanli_protocol::{
        ids::{BlobId, Hash, JobId},
        peer::ComparisonId,
    };

    use super::*;
    use crate::store::blobs::Config;

    fn tolerance() -> Tolerance {
        Tolerance::new(1e-5, 0.0).unwrap()
    }

    fn floats(count: usize, last: f32) -> Vec<u8> {
        let numbers = std::iter::repeat_n(1.5_f32, count - 1).chain([last]);
        numbers.flat_map(f32::to_le_bytes).collect()
    }

    /// Gives what it has in odd portions.
    struct Portions(VecDeque<Vec<u8>>);

    impl Read for Portions {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let Some(mut portion) = self.0.pop_front() else {
                return Ok(0);
            };
            let read = portion.len().min(into.len());
            into[..read].copy_from_slice(&portion[..read]);
            if read < portion.len() {
                self.0.push_front(portion.split_off(read));
            }
            Ok(read)
        }
    }

    #[test]
    fn outputs_of_many_pieces_are_compared_to_their_ends() {
        for count in [1, 16_383, 16_384, 16_385, 100_000] {
            let one = floats(count, 1.0);
            let portions = one.chunks(7777).map(<[u8]>::to_vec).collect();
            let near = |other: &[u8]| are_near(one.as_slice(), other, tolerance()).unwrap();
            assert!(near(&floats(count, 1.000_001)), "{count}");
            assert!(!near(&floats(count, 1.001)), "{count}");
            assert!(!near(&one[..one.len() - 4]), "{count}: shorter");
            assert!(
                !near(&[one.as_slice(), &[0; 4]].concat()),
                "{count}: longer"
            );
            let odd = are_near(Portions(portions), one.as_slice(), tolerance());
            assert!(odd.unwrap(), "{count}: in portions");
        }
    }

    fn output(bytes: &[u8], inline: bool) -> ComparedOutput {
        ComparedOutput {
            blob: BlobRef {
                blob: BlobId(Hash::of(bytes)),
                bytes: u64::try_from(bytes.len()).unwrap(),
            },
            inline: inline.then(|| bytes.to_vec()),
        }
    }

    #[test]
    fn blobs_and_what_came_with_receipts_are_compared_alike() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), Config::default()).unwrap();
        let compare = |pairs: Vec<[ComparedOutput; 2]>| {
            let id = ComparisonId {
                job: JobId::from_bytes([1; 16]),
                unit: 0,
                results: [Hash::of(b"one"), Hash::of(b"other")],
            };
            let tolerance = tolerance();
            are_equal(
                &Comparison {
                    id,
                    tolerance,
                    pairs,
                },
                &blobs,
            )
        };
        let (one, near, far) = (floats(9, 1.0), floats(9, 1.000_001), floats(9, 1.1));
        for bytes in [&one, &far] {
            blobs.put_bytes(bytes, None).unwrap();
        }
        let pair = |other: &[u8], inline| [output(&one, false), output(other, inline)];
        assert!(compare(vec![pair(&near, true)]).unwrap());
        assert!(!compare(vec![pair(&far, false)]).unwrap());
        assert!(!compare(vec![pair(&near, true), pair(&far, true)]).unwrap());
        let missing = compare(vec![pair(&near, false)]).unwrap_err().to_string();
        assert!(missing.contains("can't be opened"), "{missing}");
    }
}
