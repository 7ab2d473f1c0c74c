//! Values of 32 lanes and the loops over them.

/// One register of a warp: a value for each lane, zero-extended to 64 bits.
pub type Lanes = [u64; 32];

/// The operands of an instruction for a warp.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a> {
    /// First, second, third, fourth operand in the order of the text.
    pub a: &'a Lanes,
    /// See `a`.
    pub b: &'a Lanes,
    /// See `a`.
    pub c: &'a Lanes,
    /// See `a`.
    pub d: &'a Lanes,
}

/// What an instruction reads, and where its results go: only to the lanes of `mask`.
///
/// The maps return true so that they can end an arm that says "there is such an instruction".
pub(super) struct Warp<'a> {
    pub(super) read: Operands<'a>,
    pub(super) mask: u32,
    pub(super) out: &'a mut Lanes,
}

impl Warp<'_> {
    /// `out = f(lane)`. The loop over a full warp has no condition in it, so that the compiler can vectorise it.
    #[inline(always)]
    pub(super) fn each(&mut self, f: impl Fn(usize) -> u64) -> bool {
        if self.mask == u32::MAX {
            for lane in 0..32 {
                self.out[lane] = f(lane);
            }
        } else {
            let mut left = self.mask;
            while left != 0 {
                let lane = left.trailing_zeros() as usize;
                self.out[lane] = f(lane);
                left &= left - 1;
            }
        }
        true
    }

    #[inline(always)]
    pub(super) fn map1(&mut self, f: impl Fn(u64) -> u64) -> bool {
        let Operands { a, .. } = self.read;
        self.each(|lane| f(a[lane]))
    }

    #[inline(always)]
    pub(super) fn map2(&mut self, f: impl Fn(u64, u64) -> u64) -> bool {
        let Operands { a, b, .. } = self.read;
        self.each(|lane| f(a[lane], b[lane]))
    }

    #[inline(always)]
    pub(super) fn map3(&mut self, f: impl Fn(u64, u64, u64) -> u64) -> bool {
        let Operands { a, b, c, .. } = self.read;
        self.each(|lane| f(a[lane], b[lane], c[lane]))
    }

    /// Like `map2`, on each 16-bit half of 32-bit values.
    #[inline(always)]
    pub(super) fn halves2(&mut self, f: impl Fn(u64, u64) -> u64) -> bool {
        self.map2(|a, b| f(low(a), low(b)) | f(high(a), high(b)) << 16)
    }
}

/// The low half of a packed pair.
#[inline(always)]
pub(super) fn low(x: u64) -> u64 {
    x & 0xffff
}

/// The high half of a packed pair.
#[inline(always)]
pub(super) fn high(x: u64) -> u64 {
    (x >> 16) & 0xffff
}

/// The lowest `bits` bits set; `bits` from 1 to 64.
#[inline(always)]
pub(super) fn ones(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

/// A bit a lane of `mask`: whether `f(lane)` holds.
#[inline(always)]
pub(super) fn ballot(mask: u32, f: impl Fn(usize) -> bool) -> u32 {
    let mut bits = 0;
    for lane in 0..32 {
        bits |= u32::from(f(lane)) << lane;
    }
    bits & mask
}
