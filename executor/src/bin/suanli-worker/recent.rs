//! What was compiled for this worker's one tenant, latest used first.
//!
//! Absent: sharing with other workers, and files.

use std::collections::VecDeque;

/// Compiled programs kept.
const KEPT: usize = 8;

/// Programs by the hash of what they were compiled from.
pub(crate) struct Recent<T> {
    kept: VecDeque<Kept<T>>,
    bytes_max: usize,
}

struct Kept<T> {
    key: blake3::Hash,
    program: T,
    bytes: usize,
}

impl<T: Clone> Recent<T> {
    /// Keeps none yet, and never more than so many bytes of them.
    pub(crate) const fn new(bytes_max: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            bytes_max,
        }
    }

    /// The program, which now is the latest used.
    pub(crate) fn get(&mut self, key: &blake3::Hash) -> Option<T> {
        let found = self.kept.iter().position(|kept| kept.key == *key)?;
        let entry = self.kept.remove(found)?;
        let program = entry.program.clone();
        self.kept.push_front(entry);
        Some(program)
    }

    /// Keeps a program of so many bytes, if it fits at all; those that were not
    /// used for longest go.
    pub(crate) fn put(&mut self, key: blake3::Hash, program: T, bytes: usize) {
        if bytes > self.bytes_max {
            return;
        }
        self.kept.push_front(Kept {
            key,
            program,
            bytes,
        });
        let mut all = 0_usize;
        let fits = |kept: &&Kept<T>| {
            all = all.saturating_add(kept.bytes);
            all <= self.bytes_max
        };
        let fitting = self.kept.iter().take(KEPT).take_while(fits).count();
        self.kept.truncate(fitting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> blake3::Hash {
        blake3::hash(&n.to_le_bytes())
    }

    #[test]
    fn what_was_not_used_for_longest_goes() {
        let mut recent = Recent::new(usize::MAX);
        for n in 0..KEPT {
            recent.put(key(n), n, 1);
        }
        assert_eq!(recent.get(&key(0)), Some(0));
        recent.put(key(KEPT), KEPT, 1);
        assert_eq!(recent.get(&key(1)), None);
        assert_eq!(recent.get(&key(0)), Some(0));
        assert_eq!(recent.get(&key(KEPT)), Some(KEPT));
    }

    #[test]
    fn bytes_are_bounded_not_only_programs() {
        let mut recent = Recent::new(10);
        recent.put(key(0), 0, 6);
        recent.put(key(1), 1, 4);
        assert_eq!(recent.get(&key(0)), Some(0));
        recent.put(key(2), 2, 4);
        assert_eq!(recent.get(&key(1)), None, "it was not used for longest");
        assert_eq!(recent.get(&key(0)), Some(0));
        recent.put(key(3), 3, 11);
        assert_eq!(recent.get(&key(3)), None, "larger than all that is kept");
        assert_eq!(recent.get(&key(0)), Some(0), "which stays");
    }
}
