//! What the tests of arithmetic share: calling one instruction, random numbers, and (in `exact`) what rounding means.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

pub mod exact;

use kinglet_emulator::arith::{Lanes, Operands, eval, supports};
use kinglet_emulator::program::{Alu, AluOp, Modifiers, Rounding, Type};

pub const MODES: [Rounding; 4] = [Rounding::Rn, Rounding::Rz, Rounding::Rm, Rounding::Rp];

pub const PLAIN: Modifiers = Modifiers {
    rounding: Rounding::Rn,
    explicit_rounding: false,
    ftz: false,
    sat: false,
    satfinite: false,
    relu: false,
    nan: false,
    xorsign_abs: false,
    approx: false,
    full: false,
    carry_out: false,
    carry_in: false,
};

pub fn rounding(rounding: Rounding) -> Modifiers {
    Modifiers { rounding, explicit_rounding: true, ..PLAIN }
}

/// One instruction on one value each, run in a full warp, whose lanes must agree, and alone in lane 5.
pub fn run(op: AluOp, ty: Type, modifiers: Modifiers, operands: &[u64]) -> u64 {
    run_wide(op, ty, modifiers, operands, 4)
}

/// Like [`run`], into a register of `reg_bytes`.
pub fn run_wide(op: AluOp, ty: Type, modifiers: Modifiers, operands: &[u64], reg_bytes: u32) -> u64 {
    let alu = Alu { op, ty, modifiers };
    assert!(supports(&alu), "{alu:?}");
    let lanes: Vec<Lanes> = (0..4).map(|i| [operands.get(i).copied().unwrap_or(0); 32]).collect();
    let read = Operands { a: &lanes[0], b: &lanes[1], c: &lanes[2], d: &lanes[3] };
    let mut out = [0; 32];
    assert!(eval(&alu, read, reg_bytes, u32::MAX, &mut 0, &mut out));
    assert!(out.iter().all(|x| *x == out[0]), "{alu:?} lanes differ: {out:x?}");
    let mut one = [77; 32];
    assert!(eval(&alu, read, reg_bytes, 1 << 5, &mut 0, &mut one));
    let expected: Lanes = std::array::from_fn(|lane| if lane == 5 { out[0] } else { 77 });
    assert_eq!(one, expected, "{alu:?} under a mask");
    out[0]
}

/// One instruction on many operands, 32 at a time, the last ones under a mask.
pub fn run_many(op: AluOp, ty: Type, modifiers: Modifiers, operands: &[[u64; 3]]) -> Vec<u64> {
    let alu = Alu { op, ty, modifiers };
    assert!(supports(&alu), "{alu:?}");
    let mut results = Vec::with_capacity(operands.len());
    for chunk in operands.chunks(32) {
        let lanes = [0, 1, 2].map(|i| -> Lanes { std::array::from_fn(|lane| chunk.get(lane).map_or(0, |x| x[i])) });
        let read = Operands { a: &lanes[0], b: &lanes[1], c: &lanes[2], d: &lanes[2] };
        let mask = u32::MAX >> (32 - chunk.len());
        let mut out = [77; 32];
        assert!(eval(&alu, read, 8, mask, &mut 0, &mut out));
        assert!(out[chunk.len()..].iter().all(|x| *x == 77), "{alu:?} writes outside of its mask");
        results.extend_from_slice(&out[..chunk.len()]);
    }
    results
}

pub fn f(x: f32) -> u64 {
    u64::from(x.to_bits())
}

pub fn d(x: f64) -> u64 {
    x.to_bits()
}

/// xorshift64*
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// An integer of `bits` bits: often small, near a power of two, near an end of the range.
    pub fn integer(&mut self, bits: u32) -> u64 {
        let mask = u64::MAX >> (64 - bits);
        let near = self.below(5).wrapping_sub(2);
        let x = match self.below(5) {
            0 => near,
            1 => (1 << self.below(bits.into())) + near,
            2 => self.next() >> self.below(64),
            3 => (1u64 << (bits - 1)).wrapping_add(near),
            _ => self.next(),
        };
        x & mask
    }

    /// The bits of a float: any, special, with few or almost all bits of the fraction set, of middling size.
    pub fn float(&mut self, format: exact::Format) -> u64 {
        let (sign, fraction) = (1u64 << (format.bits() - 1), (1u64 << format.fraction) - 1);
        let infinity = sign - 1 - fraction;
        let any = self.next() & (2 * sign - 1);
        let specials =
            [0, 1, fraction, fraction + 1, infinity - 1, infinity, infinity + 1 + fraction / 2, infinity / 2];
        match self.below(6) {
            0 => any,
            1 => specials[self.below(8) as usize] ^ (any & sign),
            2 => any & !fraction | (1 << self.below(u64::from(format.fraction) + 1)) & fraction | any & 1,
            3 => any | fraction ^ (1 << self.below(u64::from(format.fraction) + 1)) & fraction,
            _ => {
                let middle = infinity >> format.fraction >> 1;
                let spread = middle.min(u64::from(format.fraction) + 3);
                let exponent = middle - spread + self.below(2 * spread);
                any & (sign | fraction) | exponent << format.fraction
            }
        }
    }
}
