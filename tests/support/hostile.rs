//! What the tests of readers share, in whichever crate the reader is: spoilt copies of a file, and what a reader may do
//! with one.
#![allow(dead_code, reason = "each test takes what it needs")]

use kinglet_tensor::Result;

/// Runs a reader and says whether it accepted; an error must be one line that says something.
pub(crate) fn survive<T>(read: impl FnOnce() -> Result<T>) -> bool {
    let result = read();
    if let Err(error) = &result {
        let text = error.to_string();
        assert!(text.len() > 10 && !text.contains('\n'), "{text:?}");
    }
    result.is_ok()
}

/// A fixed sequence of numbers (xorshift64*).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }

    /// `file` with one to three bits of its first `header` bytes changed.
    pub(crate) fn spoil(&mut self, file: &[u8], header: usize) -> Vec<u8> {
        let mut bytes = file.to_vec();
        for _ in 0..=self.below(3) {
            bytes[self.below(header)] ^= 1 << self.below(8);
        }
        bytes
    }
}
