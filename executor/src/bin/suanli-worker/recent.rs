//! What was compiled for this worker's one tenant, latest used first.
//!
//! Absent: sharing with other workers, and files.

use std::collections::VecDeque;

/// Compiled programs kept.
const KEPT: usize = 8;

/// Programs by the hash of what they were compiled from.
pub(crate) struct Recent<T>(VecDeque<(blake3::Hash, T)>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Clone> Recent<T> {
    /// The program, which now is the latest used.
    pub(crate) fn get(&mut self, key: &blake3::Hash) -> Option<T> {
        let found = self.0.iter().position(|(known, _)| known == key)?;
        let entry = self.0.remove(found)?;
        let program = entry.1.clone();
        self.0.push_front(entry);
        Some(program)
    }

    /// Keeps a program; the one that was not used for longest goes.
    pub(crate) fn put(&mut self, key: blake3::Hash, program: T) {
        self.0.push_front((key, program));
        self.0.truncate(KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes() {
        let mut recent = Recent::default();
        let key = |n: usize| blake3::hash(&n.to_le_bytes());
        for n in 0..KEPT {
            recent.put(key(n), n);
        }
        assert_eq!(recent.get(&key(0)), Some(0));
        recent.put(key(KEPT), KEPT);
        assert_eq!(recent.get(&key(1)), None);
        assert_eq!(recent.get(&key(0)), Some(0));
        assert_eq!(recent.get(&key(KEPT)), Some(KEPT));
    }
}
