//! The shared memory of one block.

use super::{POISON, Written, get, put};

/// The shared memory of one block: its bytes and which of them somebody wrote.
#[derive(Debug)]
pub(crate) struct Shared {
    words: Vec<u32>,
    written: Written,
    bytes: u32,
}

impl Shared {
    pub(crate) fn new(bytes: u32) -> Self {
        let padded = (bytes as usize).next_multiple_of(32);
        Self { words: vec![POISON; padded / 4], written: Written::new(padded), bytes }
    }

    /// Makes all bytes fresh, for the next block.
    pub(crate) fn renew(&mut self) {
        self.words.fill(POISON);
        self.written.clear();
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }

    #[inline]
    pub(crate) fn load(&self, offset: u32, bytes: u32) -> u64 {
        get(&self.words, offset as usize, bytes)
    }

    #[inline]
    pub(crate) fn store(&mut self, offset: u32, bytes: u32, value: u64) {
        put(&mut self.words, offset as usize, bytes, value);
    }

    /// Marks the bytes of an aligned access as written.
    #[inline]
    pub(crate) fn mark(&mut self, offset: u32, bytes: u32) {
        self.written.mark(offset as usize, bytes);
    }

    /// The first byte of an aligned access that nobody wrote.
    #[inline]
    pub(crate) fn first_missing(&self, offset: u32, bytes: u32) -> Option<u32> {
        self.written.first_missing(offset as usize, bytes)
    }
}
