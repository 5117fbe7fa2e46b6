//! Hash trees of the blobs served last, so that a blob is not hashed again for every peer.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::Outboard;

/// Least recently inserted goes first; bounded by bytes.
#[derive(Debug)]
pub(in crate::transport) struct OutboardCache {
    bytes_max: usize,
    bytes: usize,
    trees: HashMap<[u8; 32], Arc<Outboard>>,
    order: VecDeque<[u8; 32]>,
}

impl OutboardCache {
    pub(in crate::transport) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            trees: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    pub(in crate::transport) fn of(&self, hash: &[u8; 32]) -> Option<Arc<Outboard>> {
        self.trees.get(hash).cloned()
    }

    pub(in crate::transport) fn keep(&mut self, tree: Arc<Outboard>) {
        let size = weight(&tree);
        let hash = *tree.root.as_bytes();
        if size > self.bytes_max || self.trees.contains_key(&hash) {
            return;
        }
        while self.bytes + size > self.bytes_max {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if let Some(gone) = self.trees.remove(&oldest) {
                self.bytes -= weight(&gone);
            }
        }
        self.bytes += size;
        self.order.push_back(hash);
        self.trees.insert(hash, tree);
    }
}

/// The tree's pairs and, roughly, what the maps hold for it.
fn weight(tree: &Outboard) -> usize {
    tree.data.len() + 256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_stays_under_its_bytes_and_forgets_the_oldest() {
        let tree = |byte: u8| Arc::new(Outboard::create(vec![byte; 64 << 10], super::super::GROUP));
        let trees: Vec<_> = (0..3).map(tree).collect();
        let mut cache = OutboardCache::new(2 * weight(&trees[0]));
        for tree in &trees {
            cache.keep(Arc::clone(tree));
        }
        assert!(cache.of(trees[0].root.as_bytes()).is_none());
        assert!(cache.of(trees[2].root.as_bytes()).is_some());
        assert!(cache.bytes <= cache.bytes_max);
    }
}
