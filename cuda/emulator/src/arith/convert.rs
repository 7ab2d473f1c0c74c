//! `cvt`, between all types, and `cvt.pack`.
//!
//! Every float is an f64 exactly and every integer a sign and 64 bits, so a conversion is: widen, round to an integer if the
//! instruction says so, round once to the target.

use super::format::{BF16, E4M3, E5M2, F16, F32, F64, Format, TF32, f16_to_f32, f32_to_bf16, f32_to_f16};
use super::lanes::{Warp, ones};
use crate::program::{Alu, Modifiers, Rounding, Type};

/// What a value is converted from or to.
#[derive(Clone, Copy)]
enum Kind {
    Int { bits: u32, signed: bool },
    Float(Format),
}

fn kind(ty: Type) -> Option<Kind> {
    Some(match ty {
        Type::U8 | Type::U16 | Type::U32 | Type::U64 => Kind::Int { bits: 8 * ty.bytes(), signed: false },
        Type::S8 | Type::S16 | Type::S32 | Type::S64 => Kind::Int { bits: 8 * ty.bytes(), signed: true },
        Type::F16 => Kind::Float(F16),
        Type::Bf16 => Kind::Float(BF16),
        Type::F32 => Kind::Float(F32),
        Type::F64 => Kind::Float(F64),
        _ => return None,
    })
}

/// `cvt`, to `to`. A signed result is sign-extended to `reg_bytes`.
pub(super) fn cvt(alu: &Alu, to: Type, integer_rounding: bool, reg_bytes: u32, warp: &mut Warp<'_>) -> bool {
    let m = alu.modifiers;
    // The conversions that kernels are full of, without questions inside of the loop.
    let plain = Modifiers { explicit_rounding: m.explicit_rounding, ..Modifiers::default() };
    if m == plain && !integer_rounding {
        match (alu.ty, to) {
            (Type::F32, Type::Bf16) => return warp.map1(bf16),
            (Type::Bf16, Type::F32) => return warp.map1(|a| canonical(a << 16 & 0xffff_ffff)),
            (Type::F32, Type::F16) => return warp.map1(f16),
            (Type::F32, Type::Bf16x2) => return warp.map2(|a, b| bf16(a) << 16 | bf16(b)),
            (Type::F32, Type::F16x2) => return warp.map2(|a, b| f16(a) << 16 | f16(b)),
            (Type::F16, Type::F32) => return warp.map1(|a| canonical(u64::from(f16_to_f32(a as u16).to_bits()))),
            (Type::U32 | Type::S32 | Type::U64, Type::U32) => return warp.map1(|a| a & 0xffff_ffff),
            (Type::U32, Type::U64 | Type::S64) => return warp.map1(|a| a & 0xffff_ffff),
            (Type::S32, Type::S64 | Type::U64) => return warp.map1(|a| i64::from(a as i32) as u64),
            (Type::S32, Type::F32) => return warp.map1(|a| u64::from((a as i32 as f32).to_bits())),
            (Type::U32, Type::F32) => return warp.map1(|a| u64::from((a as u32 as f32).to_bits())),
            _ => {}
        }
    }
    if integer_rounding && m == (Modifiers { rounding: Rounding::Rz, ..plain }) && alu.ty == Type::F32 {
        // Casts of floats cut, saturate, and make NaN 0, as the ISA has it.
        let single = |a: u64| f32::from_bits(a as u32);
        match to {
            Type::S32 if reg_bytes == 4 => return warp.map1(|a| u64::from((single(a) as i32).cast_unsigned())),
            Type::U32 => return warp.map1(|a| u64::from(single(a) as u32)),
            _ => {}
        }
    }
    match (alu.ty, to) {
        (Type::F32, Type::Tf32) => warp.map1(|a| tf32(a, &m)),
        (Type::F32, Type::F16x2) => pack_floats(F16, m, warp),
        (Type::F32, Type::Bf16x2) => pack_floats(BF16, m, warp),
        (Type::F32, Type::E4m3x2) => pack_floats(E4M3, Modifiers { satfinite: true, ..m }, warp),
        (Type::F32, Type::E5m2x2) => pack_floats(E5M2, Modifiers { satfinite: true, ..m }, warp),
        (Type::F16x2, Type::E4m3x2) => pair(F16, E4M3, Modifiers { satfinite: true, ..m }, warp),
        (Type::F16x2, Type::E5m2x2) => pair(F16, E5M2, Modifiers { satfinite: true, ..m }, warp),
        (Type::E4m3x2, Type::F16x2) => pair(E4M3, F16, m, warp),
        (Type::E5m2x2, Type::F16x2) => pair(E5M2, F16, m, warp),
        (from, to) => match (kind(from), kind(to)) {
            (Some(from), Some(to)) => scalar(from, to, m, integer_rounding, reg_bytes, warp),
            _ => false,
        },
    }
}

fn scalar(from: Kind, to: Kind, m: Modifiers, integer_rounding: bool, reg_bytes: u32, warp: &mut Warp<'_>) -> bool {
    match (from, to) {
        (Kind::Int { bits, signed }, Kind::Int { bits: to_bits, signed: to_signed }) => warp.map1(|a| {
            let value = extend(a, bits, signed);
            let value = if m.sat { clamp(value, to_bits, to_signed) } else { value };
            into_register(value as u64, to_bits, to_signed, reg_bytes)
        }),
        (Kind::Int { bits, signed }, Kind::Float(format)) => {
            warp.map1(|a| finish(format, &m, int_to_float(extend(a, bits, signed), format, m.rounding)))
        }
        (Kind::Float(format), Kind::Int { bits, signed }) => warp.map1(|a| {
            let a = if m.ftz && format == F32 { F32.flush(a) } else { a };
            into_register(float_to_int(a, format, bits, signed, m.rounding), bits, signed, reg_bytes)
        }),
        (Kind::Float(from), Kind::Float(to)) => warp.map1(|a| float_to_float(a, from, to, &m, integer_rounding)),
    }
}

/// The number that the low `bits` bits are.
#[inline(always)]
fn extend(a: u64, bits: u32, signed: bool) -> i128 {
    let up = 64 - bits;
    if signed { i128::from((a << up) as i64 >> up) } else { i128::from(a << up >> up) }
}

/// The nearest number of an integer type.
#[inline(always)]
fn clamp(value: i128, bits: u32, signed: bool) -> i128 {
    let (least, most) = if signed { (-1 << (bits - 1), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
    value.clamp(least, most)
}

/// An integer as a register of `reg_bytes` bytes holds it: cut to its type, and extended again by it.
#[inline(always)]
fn into_register(value: u64, bits: u32, signed: bool, reg_bytes: u32) -> u64 {
    let width = bits.max(8 * reg_bytes).min(64);
    extend(value, bits, signed) as u64 & ones(width)
}

/// An integer, rounded once.
fn int_to_float(value: i128, format: Format, rounding: Rounding) -> u64 {
    let magnitude = value.unsigned_abs() as u64;
    let up = magnitude.leading_zeros();
    // The top bit of the magnitude weighs 2^(63 - up).
    format.round(value < 0, 63 - up as i32, if up == 64 { 0 } else { magnitude << up }, rounding)
}

/// The nearest integer in the direction of the rounding, clamped to the type's range. NaN is 0, but the most negative number
/// (unsigned: its bits) where the source is f64 or the target has 64 bits.
fn float_to_int(a: u64, format: Format, bits: u32, signed: bool, rounding: Rounding) -> u64 {
    if format.is_nan(a) {
        return if format == F64 || bits == 64 { 1 << (bits - 1) } else { 0 };
    }
    let whole = to_integral(widen(format, a), rounding);
    // Casts of floats saturate.
    match (bits, signed) {
        (64, false) => whole as u64,
        (64, true) => whole as i64 as u64,
        (_, false) => (whole as u64).min(ones(bits)),
        (_, true) => (whole as i64).clamp(-1 << (bits - 1), (1 << (bits - 1)) - 1) as u64,
    }
}

/// The nearest integer in the direction of the rounding.
fn to_integral(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Rn => x.round_ties_even(),
        Rounding::Rz => x.trunc(),
        Rounding::Rm => x.floor(),
        Rounding::Rp => x.ceil(),
        Rounding::Rna => x.round(),
    }
}

fn float_to_float(a: u64, from: Format, to: Format, m: &Modifiers, integer_rounding: bool) -> u64 {
    if from == to && !m.ftz && !m.sat && !integer_rounding {
        return a; // a move
    }
    let a = if m.ftz && from == F32 { F32.flush(a) } else { a };
    if from.is_nan(a) && to == F64 && !m.sat {
        return quiet_f64(a, from);
    }
    let x = widen(from, a);
    // A whole number of the source is one of the source's numbers, so that nothing is rounded twice.
    let x = if integer_rounding { to_integral(x, m.rounding) } else { x };
    narrow(x, to, m)
}

/// A NaN as f64: its sign and its payload in the upper bits, quiet.
fn quiet_f64(a: u64, from: Format) -> u64 {
    let sign = if a & from.sign() != 0 { F64.sign() } else { 0 };
    let payload = (a & ((1 << from.fraction) - 1)) << (F64.fraction - from.fraction);
    sign | F64.infinity() | payload | 1 << (F64.fraction - 1)
}

/// The exact value.
#[inline(always)]
fn widen(format: Format, bits: u64) -> f64 {
    if format == F64 { f64::from_bits(bits) } else { format.widen(bits) }
}

#[inline(always)]
fn widen_f32(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}

#[inline(always)]
fn canonical(bits: u64) -> u64 {
    if F32.is_nan(bits) { F32.nan() } else { bits }
}

/// An f32 rounded to nearest.
#[inline(always)]
fn bf16(a: u64) -> u64 {
    f32_to_bf16(f32::from_bits(a as u32)).into()
}

#[inline(always)]
fn f16(a: u64) -> u64 {
    f32_to_f16(f32::from_bits(a as u32)).into()
}

/// The modifiers that look at a result: `.sat` and `.relu`.
fn finish(format: Format, m: &Modifiers, bits: u64) -> u64 {
    let is_negative = bits & format.sign() != 0;
    if m.sat {
        let one = format.narrow(1.0, Rounding::Rn);
        return if format.is_nan(bits) || is_negative { 0 } else { bits.min(one) };
    }
    if m.relu && is_negative && !format.is_nan(bits) { 0 } else { bits }
}

/// A value becomes a number of a format; with `.ftz` an f32 is not subnormal; with `.satfinite` there is no infinity, and no
/// NaN but from NaN.
fn narrow(x: f64, format: Format, m: &Modifiers) -> u64 {
    let flushes = m.ftz && format == F32;
    let bits = if flushes { format.narrow_flushed(x, m.rounding) } else { format.narrow(x, m.rounding) };
    let sign = bits & format.sign();
    let is_large = bits & !format.sign() > format.largest();
    finish(format, m, if m.satfinite && is_large && !x.is_nan() { sign | format.largest() } else { bits })
}

/// tf32 is the upper 19 bits of an f32.
fn tf32(a: u64, m: &Modifiers) -> u64 {
    if F32.is_nan(a) { F32.nan() } else { narrow(widen_f32(a), TF32, m) << 13 }
}

/// `cvt.f16x2.f32 d, a, b` and its kin: `a` above `b`.
fn pack_floats(format: Format, m: Modifiers, warp: &mut Warp<'_>) -> bool {
    warp.map2(|a, b| narrow(widen_f32(a), format, &m) << format.bits() | narrow(widen_f32(b), format, &m))
}

/// Both values of a packed register.
fn pair(from: Format, to: Format, m: Modifiers, warp: &mut Warp<'_>) -> bool {
    let one = |a: u64| narrow(from.widen(a & ones(from.bits())), to, &m);
    warp.map1(|a| one(a >> from.bits()) << to.bits() | one(a))
}

/// `cvt.pack.sat`: `a` above `b`, each clamped; 8-bit ones go below the low half of `c`.
pub(super) fn pack(alu: &Alu, to: Type, warp: &mut Warp<'_>) -> bool {
    let Some(Kind::Int { bits: bits @ (8 | 16), signed }) = kind(to) else {
        return false;
    };
    let clamped = |x: u64| clamp(extend(x, 32, true), bits, signed) as u64 & ones(bits);
    alu.ty == Type::S32
        && warp.map3(|a, b, c| {
            let pair = clamped(a) << bits | clamped(b);
            if bits == 16 { pair } else { (c << 16 | pair) & 0xffff_ffff }
        })
}
