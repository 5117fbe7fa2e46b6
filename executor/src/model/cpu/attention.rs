//! What each position makes of those before it.
//!
//! The work is cut by heads of keys and values, and by tiles of rows: neighbours of one
//! sequence, which look at the same pages, so that a page is widened to 32 bits once for
//! all of them and for all query heads that share it. A row's scores and sums are made
//! position by position in any case, whichever tile it is in.

use super::{
    cache::Cache,
    kernels::{Isa, for_each_isa},
    vector,
};
use crate::model::{
    engine::{PAGE, SequenceId},
    llama::Config,
};

/// Rows of a tile.
const TILE: usize = 8;

/// Neighbouring rows of a batch that are neighbours in a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) sequence: SequenceId,
    /// Of the batch.
    pub(super) row: usize,
    pub(super) rows: usize,
    /// Of the first row.
    pub(super) position: usize,
}

/// What a worker needs room for.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    scores: Vec<f32>,
    page: Vec<f32>,
    sums: Vec<f32>,
}

/// Cuts a batch into tiles.
pub(super) fn tiles(rows: impl Iterator<Item = (SequenceId, usize)>) -> Vec<Tile> {
    let mut tiles: Vec<Tile> = Vec::new();
    for (row, (sequence, position)) in rows.enumerate() {
        if let Some(tile) = tiles.last_mut()
            && tile.sequence == sequence
            && tile.position + tile.rows == position
            && tile.rows < TILE
        {
            tile.rows += 1;
            continue;
        }
        tiles.push(Tile {
            sequence,
            row,
            rows: 1,
            position,
        });
    }
    tiles
}

/// One piece of the work: a tile, and a head of keys and values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) config: &'a Config,
    pub(super) cache: &'a Cache,
    pub(super) layer: usize,
    pub(super) head: usize,
    pub(super) tile: Tile,
    /// Of the batch, rotated; a row is [`Config::query_width`] numbers.
    pub(super) queries: &'a [f32],
}

impl Part<'_> {
    /// Query heads that share this head.
    const fn group(&self) -> usize {
        self.config.heads / self.config.kv_heads
    }

    /// Gives the result of each row of the tile, for its query heads one after the
    /// other: `group · head_width` numbers, which begin at the group's first head.
    pub(super) fn compute(
        &self,
        isa: Isa,
        scratch: &mut Scratch,
        mut put: impl FnMut(usize, &[f32]),
    ) {
        let Some(sequence) = self.cache.sequence(self.tile.sequence) else {
            return;
        };
        let width = self.config.head_width;
        let length = self.tile.position + self.tile.rows;
        let pages = &sequence.pages[..length.div_ceil(PAGE)];
        let (vectors, stride) = (self.tile.rows * self.group(), pages.len() * PAGE);
        scratch.page.resize(width * PAGE, 0.0);
        scratch.scores.clear();
        scratch.scores.resize(vectors * stride, 0.0);
        scratch.sums.clear();
        scratch.sums.resize(vectors * width, 0.0);
        for (number, page) in pages.iter().enumerate() {
            let keys = self.cache.keys(*page, self.layer, self.head);
            vector::widen(isa, keys, &mut scratch.page);
            for vector in self.vectors_from(number) {
                let to = &mut scratch.scores[vector * stride + number * PAGE..][..PAGE];
                score(isa, self.query(vector), &scratch.page, to);
            }
        }
        for (vector, scores) in scratch.scores.chunks_exact_mut(stride).enumerate() {
            let scores = &mut scores[..=self.position(vector)];
            scale(isa, scores, width);
            vector::softmax(isa, scores);
        }
        for (number, page) in pages.iter().enumerate() {
            let values = self.cache.values(*page, self.layer, self.head);
            vector::widen(isa, values, &mut scratch.page);
            for vector in self.vectors_from(number) {
                let last = (self.position(vector) + 1 - number * PAGE).min(PAGE);
                let shares = &scratch.scores[vector * stride + number * PAGE..][..last];
                let sums = &mut scratch.sums[vector * width..][..width];
                mix(isa, shares, &scratch.page, sums);
            }
        }
        let of_a_row = self.group() * width;
        for (row, sums) in scratch.sums.chunks_exact(of_a_row).enumerate() {
            put(self.tile.row + row, sums);
        }
    }

    /// The pairs of row and query head that look at a page.
    fn vectors_from(&self, page: usize) -> std::ops::Range<usize> {
        let first = (page * PAGE).saturating_sub(self.tile.position);
        first * self.group()..self.tile.rows * self.group()
    }

    const fn position(&self, vector: usize) -> usize {
        self.tile.position + vector / self.group()
    }

    fn query(&self, vector: usize) -> &[f32] {
        let row = self.tile.row + vector / self.group();
        let head = self.head * self.group() + vector % self.group();
        let width = self.config.head_width;
        &self.queries[row * self.config.query_width() + head * width..][..width]
    }
}

for_each_isa! {
/// The products of a query with the keys of a page.
pub(super) fn score(query: &[f32], keys: &[f32], out: &mut [f32]) {
    let mut sums = [0.0; PAGE];
    for (number, keys) in query.iter().zip(keys.as_chunks::<PAGE>().0) {
        for (sum, key) in sums.iter_mut().zip(keys) {
            *sum += number * key;
        }
    }
    out.copy_from_slice(&sums);
}

/// Divides by the root of a head's width.
pub(super) fn scale(scores: &mut [f32], width: usize) {
    #[allow(clippy::cast_precision_loss, reason = "at most 1024")]
    let scale = 1.0 / (width as f32).sqrt();
    for score in scores {
        *score *= scale;
    }
}

/// Adds the values of positions, each by its share.
pub(super) fn mix(shares: &[f32], values: &[f32], sums: &mut [f32]) {
    for (share, values) in shares.iter().zip(values.chunks_exact(sums.len())) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += share * value;
        }
    }
}
}
