//! Keys and values of what was said so far, in pages.
//!
//! A page holds [`PAGE`] positions of one sequence, for all layers. A sequence takes a
//! page when it reaches it and gives all back when it ends; together they take no more
//! than the limit that the engine was made with. A page that is taken is cleared first:
//! nobody's words are left in it.
//!
//! Numbers are floats of 16 bits. Keys lie so that the positions of a page are
//! neighbours, values so that the numbers of a head are: both are read that way.

use half::f16;

use crate::model::{
    engine::{PAGE, Pages, Sequence, SequenceId},
    llama::Config,
};

/// All pages, and whose they are.
#[derive(Debug)]
pub(super) struct Cache {
    kv_heads: usize,
    head_width: usize,
    page_numbers: usize,
    numbers: Vec<Box<[f16]>>,
    pages: Pages,
}

impl Cache {
    pub(super) fn new(config: &Config, bytes_max: usize) -> Self {
        let page_numbers = config.layers * 2 * config.kv_width() * PAGE;
        Self {
            kv_heads: config.kv_heads,
            head_width: config.head_width,
            page_numbers,
            numbers: Vec::new(),
            pages: Pages::new(bytes_max / (2 * page_numbers)),
        }
    }

    /// Whose pages are whose.
    pub(super) const fn pages(&self) -> &Pages {
        &self.pages
    }

    pub(super) fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.pages.sequence(id)
    }

    /// Makes a sequence longer by a position. The caller saw that there is room.
    pub(super) fn extend(&mut self, id: SequenceId) {
        let Some(page) = self.pages.extend(id) else {
            return;
        };
        match self.numbers.get_mut(page) {
            Some(known) => known.fill(f16::ZERO),
            None => {
                let fresh = vec![f16::ZERO; self.page_numbers];
                self.numbers.push(fresh.into_boxed_slice());
            }
        }
    }

    /// Ends a sequence.
    pub(super) fn end(&mut self, id: SequenceId) {
        self.pages.end(id);
    }

    /// Makes a sequence shorter.
    pub(super) fn truncate(&mut self, id: SequenceId, length: usize) {
        self.pages.truncate(id, length);
    }

    /// A page's keys of a head: a row of positions for each number of the head.
    pub(super) fn keys(&self, page: usize, layer: usize, head: usize) -> &[f16] {
        let (at, length) = self.place(layer, head, 0);
        &self.numbers[page][at..at + length]
    }

    /// A page's values of a head: a row of numbers for each position.
    pub(super) fn values(&self, page: usize, layer: usize, head: usize) -> &[f16] {
        let (at, length) = self.place(layer, head, 1);
        &self.numbers[page][at..at + length]
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
        let Some((page, slot)) = self.pages.place(id, position) else {
            return;
        };
        let width = self.head_width;
        for head in 0..self.kv_heads {
            let (key_at, length) = self.place(layer, head, 0);
            let (value_at, _) = self.place(layer, head, 1);
            let page = &mut self.numbers[page];
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
