//! Comparisons and what selects by them.

use super::format::{BF16, F16, F32, f16_to_f32};
use super::lanes::{Lanes, Warp, ballot, high, low, ones};
use super::sign::format_of;
use crate::program::{Alu, Combine, Compare, Type};

/// The comparison of `set` and `setp` for the lanes of `mask`: a bit a lane. For `f16x2` and `bf16x2`, the lower half's bits
/// and the upper half's bits; the second is 0 for other types.
#[must_use]
pub fn compare(compare: Compare, ty: Type, ftz: bool, a: &Lanes, b: &Lanes, mask: u32) -> (u32, u32) {
    macro_rules! integers {
        ($t:ty) => {
            by_order(compare, mask, |lane| a[lane] as $t, |lane| b[lane] as $t)
        };
    }
    macro_rules! floats {
        ($format:ident, $value:expr, $part:expr) => {{
            let value = |bits: u64| $value(if ftz { $format.flush($part(bits)) } else { $part(bits) });
            by_order(compare, mask, |lane| value(a[lane]), |lane| value(b[lane]))
        }};
    }
    let single = |bits: u64| f32::from_bits(bits as u32);
    let half = |bits: u64| f16_to_f32(bits as u16);
    let brain = |bits: u64| f32::from_bits((bits as u32) << 16);
    let whole = |bits: u64| bits;
    let bits = match ty {
        Type::F32 if !ftz => by_order(compare, mask, |lane| single(a[lane]), |lane| single(b[lane])),
        Type::F32 => floats!(F32, single, whole),
        Type::F64 => by_order(compare, mask, |lane| f64::from_bits(a[lane]), |lane| f64::from_bits(b[lane])),
        Type::F16 => floats!(F16, half, low),
        Type::Bf16 => floats!(BF16, brain, low),
        Type::F16x2 => return (floats!(F16, half, low), floats!(F16, half, high)),
        Type::Bf16x2 => return (floats!(BF16, brain, low), floats!(BF16, brain, high)),
        Type::S16 if !is_unsigned(compare) => integers!(i16),
        Type::S32 if !is_unsigned(compare) => integers!(i32),
        Type::S64 if !is_unsigned(compare) => integers!(i64),
        _ if ty.bytes() == 2 => integers!(u16),
        _ if ty.bytes() == 4 => integers!(u32),
        _ => integers!(u64),
    };
    (bits, 0)
}

fn is_unsigned(compare: Compare) -> bool {
    matches!(compare, Compare::Lo | Compare::Ls | Compare::Hi | Compare::Hs)
}

/// Compares by the operators of Rust, in which a NaN is neither below, equal to, nor above anything. The unordered forms
/// hold where the opposite does not.
#[inline(always)]
fn by_order<T: PartialOrd>(compare: Compare, mask: u32, a: impl Fn(usize) -> T, b: impl Fn(usize) -> T) -> u32 {
    let equal = || ballot(mask, |lane| a(lane) == b(lane));
    let less = || ballot(mask, |lane| a(lane) < b(lane));
    let greater = || ballot(mask, |lane| a(lane) > b(lane));
    let less_or_equal = || ballot(mask, |lane| a(lane) <= b(lane));
    let greater_or_equal = || ballot(mask, |lane| a(lane) >= b(lane));
    match compare {
        Compare::Eq => equal(),
        Compare::Ne => less() | greater(),
        Compare::Lt | Compare::Lo => less(),
        Compare::Le | Compare::Ls => less_or_equal(),
        Compare::Gt | Compare::Hi => greater(),
        Compare::Ge | Compare::Hs => greater_or_equal(),
        Compare::Num => less_or_equal() | greater(),
        Compare::Equ => mask & !(less() | greater()),
        Compare::Neu => mask & !equal(),
        Compare::Ltu => mask & !greater_or_equal(),
        Compare::Leu => mask & !greater(),
        Compare::Gtu => mask & !less_or_equal(),
        Compare::Geu => mask & !less(),
        Compare::Nan => mask & !(less_or_equal() | greater()),
    }
}

/// Whether `set` and `setp` have this comparison for this type.
#[must_use]
pub fn compare_supports(compare: Compare, ty: Type) -> bool {
    use Compare::{Eq, Ge, Gt, Le, Lt, Ne};
    match ty {
        Type::B16 | Type::B32 | Type::B64 => matches!(compare, Eq | Ne),
        Type::S16 | Type::S32 | Type::S64 => matches!(compare, Eq | Ne | Lt | Le | Gt | Ge),
        Type::U16 | Type::U32 | Type::U64 => matches!(compare, Eq | Ne | Lt | Le | Gt | Ge) || is_unsigned(compare),
        _ => format_of(ty).is_some() && !is_unsigned(compare),
    }
}

/// `set`: the comparison, combined with the predicate `c`, as all ones or 1.0, or 0.
pub(super) fn set(alu: &Alu, by: Compare, combine: Option<Combine>, to: Type, warp: &mut Warp<'_>) -> bool {
    let is_packed = |ty: Type| matches!(ty, Type::F16x2 | Type::Bf16x2);
    let one: u64 = match to {
        Type::U16 | Type::S16 => 0xffff,
        // A mask of each half.
        Type::U32 | Type::S32 if is_packed(alu.ty) => 0xffff,
        Type::U32 | Type::S32 => 0xffff_ffff,
        Type::F16 | Type::F16x2 => 0x3c00,
        Type::Bf16 | Type::Bf16x2 => 0x3f80,
        Type::F32 => 0x3f80_0000,
        _ => return false,
    };
    let packed = is_packed(alu.ty);
    let takes_two = is_packed(to) || matches!(to, Type::U32 | Type::S32);
    if !compare_supports(by, alu.ty) || (packed && !takes_two) || (is_packed(to) && !packed) {
        return false;
    }
    let c = warp.read.c;
    let predicate = ballot(u32::MAX, |lane| c[lane] & 1 == 1);
    let combined = |bits: u32| match combine {
        None => bits,
        Some(Combine::And) => bits & predicate,
        Some(Combine::Or) => bits | predicate,
        Some(Combine::Xor) => bits ^ predicate,
    };
    let (first, second) = compare(by, alu.ty, alu.modifiers.ftz, warp.read.a, warp.read.b, warp.mask);
    let (first, second) = (combined(first), if packed { combined(second) } else { 0 });
    let value = |bits: u32, lane: usize| if bits >> lane & 1 == 1 { one } else { 0 };
    warp.each(|lane| value(first, lane) | value(second, lane) << 16)
}

/// `selp`: `a` where the predicate `c` holds, else `b`.
pub(super) fn selp(alu: &Alu, warp: &mut Warp<'_>) -> bool {
    let width = alu.ty.bytes() * 8;
    width <= 64 && warp.map3(|a, b, c| if c & 1 == 1 { a } else { b } & ones(width))
}

/// `slct`: `a` where `c` >= 0, else `b`; also where `c` is NaN.
pub(super) fn slct(alu: &Alu, float_selector: bool, warp: &mut Warp<'_>) -> bool {
    let width = alu.ty.bytes() * 8;
    let ftz = alu.modifiers.ftz;
    let holds = |c: u64| {
        if float_selector { f32::from_bits(if ftz { F32.flush(c) } else { c } as u32) >= 0.0 } else { c as i32 >= 0 }
    };
    width <= 64 && warp.map3(|a, b, c| if holds(c) { a } else { b } & ones(width))
}
