//! Bytes as a series of choices.
//!
//! When there are no more bytes every choice is the first one, so a generator whose
//! first choices are small ends. One byte is one choice wherever it can be: so a
//! fuzzer that changes a byte changes one thing.

/// The choices that are left.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// From the first byte.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether no choice is left.
    pub const fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else {
            return 0;
        };
        self.rest = rest;
        *first
    }

    /// The next two bytes.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number below `count`, which is 1 to 256.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    /// True for one byte in `of`; never without bytes.
    pub fn one_in(&mut self, of: u8) -> bool {
        !self.is_done() && self.byte() % of == of - 1
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A count that is small mostly, and up to `max` seldom.
    pub fn count(&mut self, max: usize) -> usize {
        let byte = usize::from(self.byte());
        let count = match byte {
            0..=191 => byte % 8,
            192..=239 => 8 << (byte % 6),
            _ => 256 << (byte % 8),
        };
        count.min(max)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}
