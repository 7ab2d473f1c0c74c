//! The private frames of a warp's threads: `.local` variables and the parameters of calls.

use super::{POISON, Written, get, put};

/// The frames of the 32 threads of a warp, one behind the other.
#[derive(Debug)]
pub(crate) struct Frame {
    words: Vec<u32>,
    written: Written,
    /// Bytes of one thread.
    bytes: u32,
    /// Bytes from one thread's frame to the next.
    stride: u32,
}

impl Frame {
    pub(crate) fn new(bytes: u32) -> Self {
        let stride = bytes.next_multiple_of(32);
        let all = stride as usize * 32;
        Self { words: vec![POISON; all / 4], written: Written::new(all), bytes, stride }
    }

    /// Makes all bytes fresh, for the next block.
    pub(crate) fn renew(&mut self) {
        self.words.fill(POISON);
        self.written.clear();
    }

    /// Bytes of one thread.
    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }

    fn at(&self, lane: u32, offset: u32) -> usize {
        (lane * self.stride + offset) as usize
    }

    pub(crate) fn load(&self, lane: u32, offset: u32, bytes: u32) -> u64 {
        get(&self.words, self.at(lane, offset), bytes)
    }

    pub(crate) fn store(&mut self, lane: u32, offset: u32, bytes: u32, value: u64) {
        let at = self.at(lane, offset);
        put(&mut self.words, at, bytes, value);
    }

    /// Marks the bytes of an aligned access as written.
    pub(crate) fn mark(&mut self, lane: u32, offset: u32, bytes: u32) {
        let at = self.at(lane, offset);
        self.written.mark(at, bytes);
    }

    /// The first byte of an aligned access that nobody wrote.
    pub(crate) fn first_missing(&self, lane: u32, offset: u32, bytes: u32) -> Option<u32> {
        self.written.first_missing(self.at(lane, offset), bytes)
    }

    /// Copies bytes inside one thread's frame, and with them whether they were written.
    pub(crate) fn copy(&mut self, lane: u32, from: u32, to: u32, bytes: u32) {
        for index in 0..bytes {
            let (from, to) = (self.at(lane, from + index), self.at(lane, to + index));
            let byte = get(&self.words, from, 1);
            put(&mut self.words, to, 1, byte);
            let written = self.written.has(from);
            self.written.set(to, written);
        }
    }
}
