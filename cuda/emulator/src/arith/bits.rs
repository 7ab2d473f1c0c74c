//! Moves, logic, shifts and bit fields.

use super::lanes::{Warp, ones};
use crate::program::{Alu, AluOp, PrmtMode, Type};

/// A bitwise instruction; its type says only how wide it is, but for `bfe`, `bfind`, `szext`, `dp4a` and `dp2a`.
pub(super) fn eval(alu: &Alu, warp: &mut Warp<'_>) -> bool {
    let ty = alu.ty;
    let bits = if ty == Type::Pred { 1 } else { ty.bytes() * 8 };
    let is_word = matches!(ty, Type::B32 | Type::U32 | Type::S32);
    if bits > 64 {
        return false;
    }
    let all = ones(bits);
    match alu.op {
        AluOp::Mov => warp.map1(|a| a & all),
        AluOp::And => warp.map2(|a, b| a & b & all),
        AluOp::Or => warp.map2(|a, b| (a | b) & all),
        AluOp::Xor => warp.map2(|a, b| (a ^ b) & all),
        AluOp::Not => warp.map1(|a| !a & all),
        AluOp::Cnot => warp.map1(|a| u64::from(a & all == 0)),
        AluOp::Shl => warp.map2(|a, amount| shl(a, amount & 0xffff_ffff) & all),
        AluOp::Shr => warp.map2(|a, amount| shr(a & all, amount & 0xffff_ffff)),
        AluOp::Popc => warp.map1(|a| u64::from((a & all).count_ones())),
        AluOp::Clz => warp.map1(|a| u64::from((a & all).leading_zeros() - (64 - bits))),
        AluOp::Brev => warp.map1(|a| (a & all).reverse_bits() >> (64 - bits)),
        AluOp::Bfe => warp.map3(|a, position, length| bfe(ty.is_signed(), bits, a & all, position, length)),
        AluOp::Bfi => {
            let length = warp.read.d;
            let [a, b, c] = [warp.read.a, warp.read.b, warp.read.c];
            warp.each(|lane| bfi(bits, a[lane], b[lane], c[lane], length[lane]) & all)
        }
        AluOp::Bfind { shift_amount } => warp.map1(|a| bfind(ty.is_signed(), bits, a & all, shift_amount)),
        _ if !is_word => false,
        AluOp::Lop3 { table } => {
            let rows = rows(table);
            warp.map3(|a, b, c| lop3(&rows, a, b, c) & all)
        }
        AluOp::Fns => warp.map3(|a, base, offset| fns(a as u32, base as u32, offset as i32)),
        AluOp::Szext { wrap } => warp.map2(|a, count| szext(ty.is_signed(), wrap, a as u32, count as u32)),
        AluOp::Bmsk { wrap } => warp.map2(|a, b| bmsk(wrap, a as u32, b as u32)),
        AluOp::ShfL { wrap } => warp.map3(|a, b, c| ((b << 32 | a) << funnel(c, wrap)) >> 32 & all),
        AluOp::ShfR { wrap } => warp.map3(|a, b, c| (b << 32 | a) >> funnel(c, wrap) & all),
        AluOp::Prmt(mode) => warp.map3(|a, b, c| prmt(mode, b << 32 | a, c)),
        AluOp::Dp4a { a_signed, b_signed } => warp.map3(|a, b, c| {
            let products = (0..4).map(|i| part(a_signed, a, 8, i).wrapping_mul(part(b_signed, b, 8, i)));
            products.fold(c, u64::wrapping_add) & all
        }),
        AluOp::Dp2a { a_signed, b_signed, high } => warp.map3(|a, b, c| {
            let first = if high { 2 } else { 0 };
            let products = (0..2).map(|i| part(a_signed, a, 16, i).wrapping_mul(part(b_signed, b, 8, first + i)));
            products.fold(c, u64::wrapping_add) & all
        }),
        _ => false,
    }
}

/// A shift by 64 and more gives 0; the caller cuts narrower values to their width.
#[inline(always)]
fn shl(a: u64, amount: u64) -> u64 {
    if amount > 63 { 0 } else { a << amount }
}

#[inline(always)]
fn shr(a: u64, amount: u64) -> u64 {
    if amount > 63 { 0 } else { a >> amount }
}

/// How far `shf` shifts: at most 32.
#[inline(always)]
fn funnel(amount: u64, wrap: bool) -> u64 {
    let amount = amount & 0xffff_ffff;
    if wrap { amount & 31 } else { amount.min(32) }
}

/// The rows of a truth table of three inputs, each as a word of equal bits; row 4a + 2b + c.
fn rows(table: u8) -> [u64; 8] {
    std::array::from_fn(|row| 0u64.wrapping_sub(u64::from(table >> row & 1)))
}

/// Each bit of the result is the row that the three operands' bits name: a tree of choices.
#[inline(always)]
fn lop3(rows: &[u64; 8], a: u64, b: u64, c: u64) -> u64 {
    let choose = |by: u64, zero: u64, one: u64| zero ^ (by & (zero ^ one));
    let by_c = |row: usize| choose(c, rows[row], rows[row + 1]);
    choose(a, choose(b, by_c(0), by_c(2)), choose(b, by_c(4), by_c(6)))
}

/// `length` bits of `a` from `position` on; beyond the top, and above the field, the sign bit where the type is signed.
fn bfe(signed: bool, bits: u32, a: u64, position: u64, length: u64) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let top = (position + length).saturating_sub(1).min(u64::from(bits) - 1);
    let sign = signed && length != 0 && a >> top & 1 == 1;
    let taken = length.min(u64::from(bits).saturating_sub(position));
    let field = shr(a, position) & if taken == 0 { 0 } else { ones(taken as u32) };
    if sign { (field | shl(u64::MAX, taken)) & ones(bits) } else { field }
}

/// `b` with `length` bits from `position` on replaced by the low bits of `a`.
fn bfi(bits: u32, a: u64, b: u64, position: u64, length: u64) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let taken = length.min(u64::from(bits).saturating_sub(position));
    let field = if taken == 0 { 0 } else { ones(taken as u32) };
    b & !shl(field, position) | shl(a & field, position)
}

/// The place of the highest bit that differs from the sign (0 for unsigned), or how far it is from the top; all ones if none.
fn bfind(signed: bool, bits: u32, a: u64, shift_amount: bool) -> u64 {
    let negative = signed && a >> (bits - 1) & 1 == 1;
    let a = if negative { !a & ones(bits) } else { a };
    match a.checked_ilog2() {
        None => 0xffff_ffff,
        Some(place) if shift_amount => u64::from(bits - 1 - place),
        Some(place) => u64::from(place),
    }
}

/// The place of the `offset`-th set bit of `mask`, counted from `base`: up for a positive offset, down for a negative; 0
/// asks for the base itself.
fn fns(mask: u32, base: u32, offset: i32) -> u64 {
    const NONE: u64 = 0xffff_ffff;
    if base > 31 {
        return NONE;
    }
    let is_set = |place: &u32| mask >> place & 1 == 1;
    let nth = (offset.unsigned_abs() as usize).saturating_sub(1);
    let found = match offset {
        0 => Some(base).filter(is_set),
        1.. => (base..32).filter(is_set).nth(nth),
        _ => (0..=base).rev().filter(is_set).nth(nth),
    };
    found.map_or(NONE, u64::from)
}

/// The low `count` bits of `a`, extended.
fn szext(signed: bool, wrap: bool, a: u32, count: u32) -> u64 {
    let count = if wrap { count & 31 } else { count.min(32) };
    if count == 0 {
        return 0;
    }
    let up = 32 - count;
    u64::from(if signed { ((a << up) as i32 >> up) as u32 } else { a << up >> up })
}

/// `width` ones from bit `start` on.
fn bmsk(wrap: bool, start: u32, width: u32) -> u64 {
    let (start, width) = if wrap { (start & 31, width & 31) } else { (start.min(32), width.min(32)) };
    (((1 << width) - 1) << start) & 0xffff_ffff
}

/// Part `i` of `bits` bits, extended.
#[inline(always)]
fn part(signed: bool, x: u64, bits: u32, i: u32) -> u64 {
    let up = 64 - bits;
    let x = x >> (i * bits) << up;
    if signed { (x as i64 >> up) as u64 } else { x >> up }
}

/// Four bytes picked out of the eight of `source`.
fn prmt(mode: PrmtMode, source: u64, control: u64) -> u64 {
    let byte = |index: u64| source >> (8 * (index & 7)) & 0xff;
    let select = control & 3;
    let mut result = 0;
    for i in 0..4u64 {
        let value = match mode {
            PrmtMode::Index => {
                let selector = control >> (4 * i);
                let value = byte(selector);
                // Bit 3 of the selector: the byte's sign in all its bits.
                if selector & 8 == 0 { value } else { 0xff * (value >> 7) }
            }
            PrmtMode::F4e => byte(select + i),
            PrmtMode::B4e => byte(select.wrapping_sub(i)),
            PrmtMode::Rc8 => byte(select),
            PrmtMode::Ecl => byte(i.max(select)),
            PrmtMode::Ecr => byte(i.min(select)),
            PrmtMode::Rc16 => byte((select & 1) * 2 + (i & 1)),
        };
        result |= value << (8 * i);
    }
    result
}
