//! The memory of the virtual GPU: one space of tagged 64-bit addresses.
//!
//! | bits 56..63 | space | the rest |
//! |---|---|---|
//! | 0 | global | allocations, from [`GLOBAL_START`] up; addresses are never used twice |
//! | 1 | shared | an offset below 2^24 in the thread's own block; `(r + 1) << 24 | offset` in block `r` of its cluster |
//! | 2 | local | an offset in the thread's private frame |
//! | 3 | const | variables in constant memory, from [`CONST_START`] up |
//! | 4 | param | an offset in the bytes of the kernel's parameters |
//!
//! An address in a space (not generic) is the same number without its tag. Every byte of global, shared and local memory
//! knows whether somebody wrote it; fresh bytes hold [`POISON`].

mod frame;
mod shadow;
mod shared;
mod storage;
mod table;

pub(crate) use frame::Frame;
pub(crate) use shadow::{Arrival, Clash, Clocks, Now, Shadow, Strong, Touch, bits};
pub(crate) use shared::Shared;
pub(crate) use storage::{Marker, Storage, WordWriter};
pub(crate) use table::{Region, Table};

use crate::program::Space;

/// The first address of global memory that is given out.
pub const GLOBAL_START: u64 = 0x7f00_0000_0000;
/// The first offset in constant memory that is given out: a null pointer lies in no variable.
pub const CONST_START: u64 = 0x1000;
/// Bytes that belong to nobody before and behind each allocation.
pub const RED_ZONE: u64 = 256;
/// What fresh memory holds: a NaN in every float format, a negative number in every signed one.
pub const POISON: u32 = 0xfff7_fff7;

/// The bits below the tag of an address.
pub(crate) const UNTAGGED: u64 = (1 << 56) - 1;

/// The tag of a space's generic addresses, already in its place.
pub(crate) fn tag(space: Space) -> u64 {
    let tag: u64 = match space {
        Space::Generic | Space::Global => 0,
        Space::Shared | Space::SharedCluster => 1,
        Space::Local => 2,
        Space::Const => 3,
        Space::Param => 4,
    };
    tag << 56
}

/// The space that a generic address lies in; `None` for a tag that no space has.
pub(crate) fn space_of(address: u64) -> Option<Space> {
    Some(match address >> 56 {
        0 => Space::Global,
        1 => Space::SharedCluster,
        2 => Space::Local,
        3 => Space::Const,
        4 => Space::Param,
        _ => return None,
    })
}

/// `count` set bits from bit 0 on.
pub(crate) fn ones(count: u32) -> u32 {
    if count >= 32 { u32::MAX } else { (1 << count) - 1 }
}

/// A value of `bytes` (1, 2, 4 or 8) bytes that lies at `offset` in `words`, little-endian; it must be aligned to its size.
pub(crate) fn get(words: &[u32], offset: usize, bytes: u32) -> u64 {
    let word = offset / 4;
    match bytes {
        4 => u64::from(words[word]),
        8 => u64::from(words[word]) | u64::from(words[word + 1]) << 32,
        _ => u64::from(words[word] >> (offset % 4 * 8) & ones(bytes * 8)),
    }
}

/// The reverse of [`get`].
pub(crate) fn put(words: &mut [u32], offset: usize, bytes: u32, value: u64) {
    let word = offset / 4;
    match bytes {
        4 => words[word] = value as u32,
        8 => {
            words[word] = value as u32;
            words[word + 1] = (value >> 32) as u32;
        }
        _ => {
            let shift = offset % 4 * 8;
            let mask = ones(bytes * 8) << shift;
            words[word] = words[word] & !mask | (value as u32) << shift & mask;
        }
    }
}

/// A bit a byte: which bytes of a block's or a thread's own memory somebody wrote.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    bits: Vec<u32>,
}

impl Written {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bits: vec![0; bytes.div_ceil(32)] }
    }

    pub(crate) fn clear(&mut self) {
        self.bits.fill(0);
    }

    /// Marks `bytes` bytes from `offset` on, which lie in one stretch of 32 (as every aligned access does).
    pub(crate) fn mark(&mut self, offset: usize, bytes: u32) {
        self.bits[offset / 32] |= ones(bytes) << (offset % 32);
    }

    /// The first byte of an aligned access that nobody wrote.
    pub(crate) fn first_missing(&self, offset: usize, bytes: u32) -> Option<u32> {
        let missing = !(self.bits[offset / 32] >> (offset % 32)) & ones(bytes);
        (missing != 0).then(|| missing.trailing_zeros())
    }

    /// Whether the byte at `offset` was written.
    pub(crate) fn has(&self, offset: usize) -> bool {
        self.bits[offset / 32] >> (offset % 32) & 1 == 1
    }

    /// Marks one byte as written or not.
    pub(crate) fn set(&mut self, offset: usize, written: bool) {
        let bit = 1 << (offset % 32);
        if written {
            self.bits[offset / 32] |= bit;
        } else {
            self.bits[offset / 32] &= !bit;
        }
    }
}
