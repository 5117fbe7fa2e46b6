//! Keys and values of what was said so far, in pages.
//!
//! A page holds [`PAGE`] positions of one sequence, for all layers. A sequence takes a
//! page when it reaches it and gives all back when it ends; together they take no more
//! than the limit that the engine was made with. A page that is taken is cleared first:
//! nobody's words are left in it.
//!
//! Numbers are floats of 16 bits. Keys lie so that the positions of a page are
//! neighbours, values so that the numbers of a head are: both are read that way.

use std::collections::BTreeMap;

use half::f16;

use super::SequenceId;
use crate::model::llama::Config;

/// Positions of a page.
pub(super) const PAGE: usize = 32;

/// All pages, and whose they are.
#[derive(Debug)]
pub(super) struct Cache {
    kv_heads: usize,
    head_width: usize,
    page_numbers: usize,
    pages_max: usize,
    pages: Vec<Box<[f16]>>,
    free: Vec<usize>,
    sequences: BTreeMap<SequenceId, Sequence>,
}

/// What is kept of a sequence.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    pub(super) pages: Vec<usize>,
    pub(super) length: usize,
}

impl Cache {
    pub(super) fn new(config: &Config, bytes_max: usize) -> Self {
        let page_numbers = config.layers * 2 * config.kv_width() * PAGE;
        Self {
            kv_heads: config.kv_heads,
            head_width: config.head_width,
            page_numbers,
            pages_max: bytes_max / (2 * page_numbers),
            pages: Vec::new(),
            free: Vec::new(),
            sequences: BTreeMap::new(),
        }
    }

    /// Pages that can still be taken.
    pub(super) fn left(&self) -> usize {
        self.free.len() + self.pages_max.saturating_sub(self.pages.len())
    }

    pub(super) fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// Makes a sequence longer by a position. The caller saw that there is room.
    pub(super) fn extend(&mut self, id: SequenceId) {
        let length = self.sequence(id).map_or(0, |sequence| sequence.length);
        let page = length.is_multiple_of(PAGE).then(|| self.take());
        let sequence = self.sequences.entry(id).or_default();
        sequence.pages.extend(page);
        sequence.length += 1;
    }

    fn take(&mut self) -> usize {
        if let Some(page) = self.free.pop() {
            self.pages[page].fill(f16::ZERO);
            return page;
        }
        self.pages
            .push(vec![f16::ZERO; self.page_numbers].into_boxed_slice());
        self.pages.len() - 1
    }

    /// Ends a sequence.
    pub(super) fn end(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.free.extend(sequence.pages);
        }
    }

    /// Makes a sequence shorter.
    pub(super) fn truncate(&mut self, id: SequenceId, length: usize) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        if length < sequence.length {
            sequence.length = length;
            self.free
                .extend(sequence.pages.drain(length.div_ceil(PAGE)..));
        }
        if length == 0 {
            self.sequences.remove(&id);
        }
    }

    /// A page's keys of a head: a row of positions for each number of the head.
    pub(super) fn keys(&self, page: usize, layer: usize, head: usize) -> &[f16] {
        let (at, length) = self.place(layer, head, 0);
        &self.pages[page][at..at + length]
    }

    /// A page's values of a head: a row of numbers for each position.
    pub(super) fn values(&self, page: usize, layer: usize, head: usize) -> &[f16] {
        let (at, length) = self.place(layer, head, 1);
        &self.pages[page][at..at + length]
    }

    /// Writes keys and values of a position that the sequence has.
    pub(super) fn write(
        &mut self,
        id: SequenceId,
        position: usize,
        layer: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let page = self.sequences[&id].pages[position / PAGE];
        let (slot, width) = (position % PAGE, self.head_width);
        for head in 0..self.kv_heads {
            let (key_at, length) = self.place(layer, head, 0);
            let (value_at, _) = self.place(layer, head, 1);
            let page = &mut self.pages[page];
            let to = page[key_at..key_at + length]
                .iter_mut()
                .skip(slot)
                .step_by(PAGE);
            for (to, number) in to.zip(&keys[head * width..]) {
                *to = f16::from_f32(*number);
            }
            let to = &mut page[value_at + slot * width..][..width];
            for (to, number) in to.iter_mut().zip(&values[head * width..]) {
                *to = f16::from_f32(*number);
            }
        }
    }

    /// Where a head's keys (0) or values (1) of a layer begin in a page, and how many
    /// numbers they are.
    const fn place(&self, layer: usize, head: usize, which: usize) -> (usize, usize) {
        let length = self.head_width * PAGE;
        (
            ((layer * self.kv_heads + head) * 2 + which) * length,
            length,
        )
    }
}
