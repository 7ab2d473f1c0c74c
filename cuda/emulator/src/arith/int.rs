//! Integer arithmetic.
//!
//! What the ISA leaves to the machine: division by zero gives all ones for the quotient and for the remainder (as the code
//! that ptxas writes for `div` and `rem` does), the quotient of the least number by -1 wraps to the least number, with
//! remainder 0.

use super::lanes::Warp;
use crate::program::{Alu, AluOp, Type};

/// The integers of PTX's arithmetic.
pub(super) trait Int: Copy + Ord {
    const BITS: u32;
    const SIGNED: bool;
    /// From a register slot: its low bits.
    fn of(slot: u64) -> Self;
    /// To a register slot: zero-extended.
    fn slot(self) -> u64;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    /// `self + b + carry` or `self - b - carry` as unsigned numbers, and the carry or borrow.
    fn add_carry(self, b: Self, carry: bool) -> (Self, bool);
    fn sub_borrow(self, b: Self, borrow: bool) -> (Self, bool);
    fn add_sat(self, other: Self) -> Self;
    fn sub_sat(self, other: Self) -> Self;
    fn mul_lo(self, other: Self) -> Self;
    fn mul_hi(self, other: Self) -> Self;
    /// The whole product, for types of at most 32 bits.
    fn mul_wide(self, other: Self) -> u64;
    fn div(self, other: Self) -> Self;
    fn rem(self, other: Self) -> Self;
    fn abs_diff(self, other: Self) -> Self;
    fn neg(self) -> Self;
    fn abs(self) -> Self;
    fn relu(self) -> Self;
    fn shl(self, amount: u64) -> Self;
    fn shr(self, amount: u64) -> Self;
}

macro_rules! int {
    ($t:ident, $unsigned:ident, $wide:ident, $signed:literal) => {
        impl Int for $t {
            const BITS: u32 = $t::BITS;
            const SIGNED: bool = $signed;
            #[inline(always)]
            fn of(slot: u64) -> Self {
                slot as $t
            }
            #[inline(always)]
            fn slot(self) -> u64 {
                u64::from(self as $unsigned)
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn add_carry(self, b: Self, carry: bool) -> (Self, bool) {
                let (sum, first) = (self as $unsigned).overflowing_add(b as $unsigned);
                let (sum, second) = sum.overflowing_add(carry.into());
                (sum as $t, first | second)
            }
            #[inline(always)]
            fn sub_borrow(self, b: Self, borrow: bool) -> (Self, bool) {
                let (difference, first) = (self as $unsigned).overflowing_sub(b as $unsigned);
                let (difference, second) = difference.overflowing_sub(borrow.into());
                (difference as $t, first | second)
            }
            #[inline(always)]
            fn add_sat(self, other: Self) -> Self {
                self.saturating_add(other)
            }
            #[inline(always)]
            fn sub_sat(self, other: Self) -> Self {
                self.saturating_sub(other)
            }
            #[inline(always)]
            fn mul_lo(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn mul_hi(self, other: Self) -> Self {
                ((self as $wide * other as $wide) >> $t::BITS) as $t
            }
            #[inline(always)]
            fn mul_wide(self, other: Self) -> u64 {
                (self as $wide).wrapping_mul(other as $wide) as u64
            }
            #[inline(always)]
            fn div(self, other: Self) -> Self {
                if other == 0 { !0 } else { self.wrapping_div(other) }
            }
            #[inline(always)]
            fn rem(self, other: Self) -> Self {
                if other == 0 { !0 } else { self.wrapping_rem(other) }
            }
            #[inline(always)]
            fn abs_diff(self, other: Self) -> Self {
                if self < other { other.wrapping_sub(self) } else { self.wrapping_sub(other) }
            }
            #[inline(always)]
            fn neg(self) -> Self {
                (0 as $t).wrapping_sub(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                self.max(0).wrapping_add((0 as $t).wrapping_sub(self.min(0)))
            }
            #[inline(always)]
            fn relu(self) -> Self {
                self.max(0)
            }
            #[inline(always)]
            fn shl(self, amount: u64) -> Self {
                if amount >= u64::from($t::BITS) { 0 } else { self << amount }
            }
            #[inline(always)]
            fn shr(self, amount: u64) -> Self {
                if $signed {
                    self >> amount.min(u64::from($t::BITS) - 1)
                } else if amount >= u64::from($t::BITS) {
                    0
                } else {
                    self >> amount
                }
            }
        }
    };
}

int!(u16, u16, u32, false);
int!(u32, u32, u64, false);
int!(u64, u64, u128, false);
int!(i16, u16, i32, true);
int!(i32, u32, i64, true);
int!(i64, u64, i128, true);

/// An integer instruction.
pub(super) fn eval(alu: &Alu, warp: &mut Warp<'_>, carry: &mut u32) -> bool {
    match alu.ty {
        Type::U16 => typed::<u16>(alu, warp, carry),
        Type::S16 => typed::<i16>(alu, warp, carry),
        Type::U32 => typed::<u32>(alu, warp, carry),
        Type::S32 => typed::<i32>(alu, warp, carry),
        Type::U64 => typed::<u64>(alu, warp, carry),
        Type::S64 => typed::<i64>(alu, warp, carry),
        Type::U16x2 => packed::<u16>(alu, warp),
        Type::S16x2 => packed::<i16>(alu, warp),
        _ => false,
    }
}

fn typed<T: Int>(alu: &Alu, warp: &mut Warp<'_>, carry: &mut u32) -> bool {
    let m = &alu.modifiers;
    if m.carry_in || m.carry_out {
        return T::BITS >= 32 && with_carry::<T>(alu, warp, carry);
    }
    macro_rules! unary {
        ($f:expr) => {
            warp.map1(|a| $f(T::of(a)).slot())
        };
    }
    macro_rules! binary {
        ($f:expr) => {
            warp.map2(|a, b| $f(T::of(a), T::of(b)).slot())
        };
    }
    macro_rules! ternary {
        ($f:expr) => {
            warp.map3(|a, b, c| $f(T::of(a), T::of(b), T::of(c)).slot())
        };
    }
    match alu.op {
        AluOp::Add if m.sat => binary!(T::add_sat),
        AluOp::Sub if m.sat => binary!(T::sub_sat),
        AluOp::Add => binary!(T::add),
        AluOp::Sub => binary!(T::sub),
        AluOp::MulLo => binary!(T::mul_lo),
        AluOp::MulHi => binary!(T::mul_hi),
        AluOp::MulWide if T::BITS <= 32 => warp.map2(|a, b| double_width::<T>(T::of(a).mul_wide(T::of(b)))),
        AluOp::MadLo => ternary!(|a: T, b, c| a.mul_lo(b).add(c)),
        AluOp::MadHi if m.sat => ternary!(|a: T, b, c| a.mul_hi(b).add_sat(c)),
        AluOp::MadHi => ternary!(|a: T, b, c| a.mul_hi(b).add(c)),
        AluOp::MadWide if T::BITS <= 32 => {
            warp.map3(|a, b, c| double_width::<T>(T::of(a).mul_wide(T::of(b)).wrapping_add(c)))
        }
        AluOp::Mul24Lo if T::BITS == 32 => binary!(|a, b| mul24::<T>(a, b, 0)),
        AluOp::Mul24Hi if T::BITS == 32 => binary!(|a, b| mul24::<T>(a, b, 16)),
        AluOp::Mad24Lo if T::BITS == 32 => ternary!(|a, b, c| mul24::<T>(a, b, 0).add(c)),
        AluOp::Mad24Hi if T::BITS == 32 && m.sat => ternary!(|a, b, c| mul24::<T>(a, b, 16).add_sat(c)),
        AluOp::Mad24Hi if T::BITS == 32 => ternary!(|a, b, c| mul24::<T>(a, b, 16).add(c)),
        AluOp::Sad => ternary!(|a: T, b, c: T| c.add(a.abs_diff(b))),
        AluOp::Div => binary!(T::div),
        AluOp::Rem => binary!(T::rem),
        AluOp::Abs if T::SIGNED => unary!(T::abs),
        AluOp::Neg if T::SIGNED => unary!(T::neg),
        AluOp::Min if m.relu => binary!(|a: T, b: T| a.min(b).relu()),
        AluOp::Max if m.relu => binary!(|a: T, b: T| a.max(b).relu()),
        AluOp::Min => binary!(T::min),
        AluOp::Max => binary!(T::max),
        AluOp::Shr => warp.map2(|a, amount| T::of(a).shr(amount & 0xffff_ffff).slot()),
        _ => false,
    }
}

/// `add.u16x2` and its kin: the same on both halves.
fn packed<T: Int>(alu: &Alu, warp: &mut Warp<'_>) -> bool {
    macro_rules! binary {
        ($f:expr) => {
            warp.halves2(|a, b| $f(T::of(a), T::of(b)).slot())
        };
    }
    match alu.op {
        AluOp::Add => binary!(T::add),
        AluOp::Min if alu.modifiers.relu => binary!(|a: T, b: T| a.min(b).relu()),
        AluOp::Max if alu.modifiers.relu => binary!(|a: T, b: T| a.max(b).relu()),
        AluOp::Min => binary!(T::min),
        AluOp::Max => binary!(T::max),
        _ => false,
    }
}

/// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`. The flag is a carry after additions, a borrow after subtractions.
fn with_carry<T: Int>(alu: &Alu, warp: &mut Warp<'_>, carry: &mut u32) -> bool {
    let step: fn(T, T, T, bool) -> (T, bool) = match alu.op {
        AluOp::Add => |a, b, _, carry| a.add_carry(b, carry),
        AluOp::Sub => |a, b, _, carry| a.sub_borrow(b, carry),
        AluOp::MadLo => |a, b, c, carry| a.mul_lo(b).add_carry(c, carry),
        AluOp::MadHi => |a, b, c, carry| a.mul_hi(b).add_carry(c, carry),
        _ => return false,
    };
    for lane in (0..32).filter(|lane| warp.mask >> lane & 1 == 1) {
        let [a, b, c] = [warp.read.a, warp.read.b, warp.read.c].map(|operand| T::of(operand[lane]));
        let carry_in = alu.modifiers.carry_in && *carry >> lane & 1 == 1;
        let (result, carry_out) = step(a, b, c, carry_in);
        warp.out[lane] = result.slot();
        if alu.modifiers.carry_out {
            *carry = *carry & !(1 << lane) | u32::from(carry_out) << lane;
        }
    }
    true
}

/// A product cut to twice the width of its factors.
#[inline(always)]
fn double_width<T: Int>(product: u64) -> u64 {
    product & (u64::MAX >> (64 - 2 * T::BITS))
}

/// 32 bits from `shift` on of the 48-bit product of the low 24 bits.
#[inline(always)]
fn mul24<T: Int>(a: T, b: T, shift: u32) -> T {
    // Shifting up and down again extends 24 bits by the type's own rule.
    let [a, b] = [a, b].map(|x| x.shl(8).shr(8));
    T::of(a.mul_wide(b) >> shift)
}
