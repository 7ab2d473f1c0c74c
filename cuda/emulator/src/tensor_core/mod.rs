//! `mma.sync` and the matrix layouts of a warp.
//!
//! # Values
//! The ISA promises products in full precision and sums in at least single precision, in no order. Here, one element of D
//! is `a0 b0 + a1 b1 + ..` added to `c` for k from 0 up, where products are exact (no input type has more than 11 bits), each
//! addition rounds to f64, and the sum is rounded once, to nearest, to the type of D. So D is what exact arithmetic gives
//! but for sums that cancel more than 29 bits, on every machine the same. (Tensor cores add groups of 4 to 16 products,
//! aligned to the largest and cut off: "Numerical behavior of NVIDIA tensor cores", Fasi et al. 2021. Compare with a GPU
//! by tolerance.) A NaN is 0x7fffffff in f32, 0x7fff in f16.
//!
//! f64 is a chain of fused multiply-adds in the same order, as the ISA has it. Integers are exact, then wrap, or clamp with
//! `.satfinite`. Of a tf32 register the lower 13 bits are ignored.

mod fragment;

use crate::arith::Lanes;
use crate::arith::f64::fused;
use crate::arith::format::{E4M3, F32, F64, f16_to_f32, f32_to_f16, f64_to_odd_f32};
use crate::program::{Mma, Type};
use fragment::{Operand, Place};

pub(crate) use fragment::groups;
pub use fragment::{fragment_registers, gather, spread};

/// Rows and columns of the largest shape; the others are its corner.
const ROWS: usize = 16;
const COLUMNS: usize = 8;

type Left<T, const DEPTH: usize> = [[T; DEPTH]; ROWS];
type Right<T, const DEPTH: usize> = [[T; COLUMNS]; DEPTH];
type Sums<T> = [[T; COLUMNS]; ROWS];

/// D = A B + C over the fragments of a warp: one [`Lanes`] a register of each operand. See [`self`] for the sum's order.
/// False, and nothing written, where there is no such shape and types or an operand has another number of registers.
pub fn mma(mma: &Mma, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) -> bool {
    if fragment_registers(mma) != Some([a.len(), b.len(), c.len(), d.len()]) {
        return false;
    }
    match mma.k {
        4 => with_depth::<4>(mma, a, b, c, d),
        8 => with_depth::<8>(mma, a, b, c, d),
        16 => with_depth::<16>(mma, a, b, c, d),
        _ => with_depth::<32>(mma, a, b, c, d),
    }
    true
}

fn with_depth<const K: usize>(mma: &Mma, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
    for group in 0..fragment::groups(mma) {
        match mma.c {
            Type::S32 => integer_product::<K>(mma, a, b, c, d),
            Type::F64 => f64_product::<K>(mma, a, b, c, d),
            _ => float_product::<K>(mma, group, a, b, c, d),
        }
    }
}

/// Types of at most 32 bits, in f64.
fn float_product<const K: usize>(mma: &Mma, group: usize, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
    let (mut left, mut right, mut sums) = ([[0.0; K]; ROWS], [[0.0; COLUMNS]; K], [[0.0; COLUMNS]; ROWS]);
    read_float(mma, Operand::A, group, mma.a, a, |Place { row, column }, x| left[row][column] = x);
    read_float(mma, Operand::B, group, mma.b, b, |Place { row, column }, x| right[row][column] = x);
    read_float(mma, Operand::C, group, mma.c, c, |Place { row, column }, x| sums[row][column] = x);
    multiply(mma.m.into(), &left, &right, &mut sums, |sum, a, b| sum + a * b);
    if mma.d == Type::F16 {
        write::<2>(mma, group, d, |Place { row, column }| f32_to_f16(f64_to_odd_f32(sums[row][column])).into());
    } else {
        let finish = |sum: f64| if sum.is_nan() { F32.nan() } else { (sum as f32).to_bits().into() };
        write::<1>(mma, group, d, |Place { row, column }| finish(sums[row][column]));
    }
}

/// f64. The NaN of a sum is that of invalid operations: which operand's it would be is nowhere said.
fn f64_product<const K: usize>(mma: &Mma, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
    let (mut left, mut right, mut sums) = ([[0.0; K]; ROWS], [[0.0; COLUMNS]; K], [[0.0; COLUMNS]; ROWS]);
    read::<1, _>(mma, Operand::A, 0, a, f64::from_bits, |Place { row, column }, x| left[row][column] = x);
    read::<1, _>(mma, Operand::B, 0, b, f64::from_bits, |Place { row, column }, x| right[row][column] = x);
    read::<1, _>(mma, Operand::C, 0, c, f64::from_bits, |Place { row, column }, x| sums[row][column] = x);
    multiply(mma.m.into(), &left, &right, &mut sums, |sum, a, b| fused(a, b, sum));
    let finish = |sum: f64| if sum.is_nan() { F64.nan() } else { sum.to_bits() };
    write::<1>(mma, 0, d, |Place { row, column }| finish(sums[row][column]));
}

/// 8-bit integers. Their products have 16 bits and the sums of 32 of them 21: exact in f32, which CPUs multiply fastest.
fn integer_product<const K: usize>(mma: &Mma, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) {
    let (mut left, mut right, mut sums) = ([[0.0; K]; ROWS], [[0.0; COLUMNS]; K], [[0.0; COLUMNS]; ROWS]);
    let mut start: Sums<i32> = Default::default();
    let decode = |ty: Type| move |x: u64| if ty == Type::S8 { f32::from(x as i8) } else { f32::from(x as u8) };
    read::<4, _>(mma, Operand::A, 0, a, decode(mma.a), |Place { row, column }, x| left[row][column] = x);
    read::<4, _>(mma, Operand::B, 0, b, decode(mma.b), |Place { row, column }, x| right[row][column] = x);
    read::<1, _>(mma, Operand::C, 0, c, |x| x as i32, |Place { row, column }, x| start[row][column] = x);
    multiply(mma.m.into(), &left, &right, &mut sums, |sum, a, b| sum + a * b);
    let add = if mma.satfinite { i32::saturating_add } else { i32::wrapping_add };
    write::<1>(mma, 0, d, |Place { row, column }| {
        u64::from(add(start[row][column], sums[row][column] as i32).cast_unsigned())
    });
}

/// sums += left right, for k from 0 up.
#[inline(always)]
fn multiply<T: Copy, const K: usize>(
    rows: usize,
    left: &Left<T, K>,
    right: &Right<T, K>,
    sums: &mut Sums<T>,
    add: impl Fn(T, T, T) -> T,
) {
    // Two rows at a time: additions of one wait for each other.
    for (sums, left) in sums.chunks_exact_mut(2).zip(left.chunks_exact(2)).take(rows / 2) {
        let mut pair = [sums[0], sums[1]];
        for k in 0..K {
            for (row, left) in pair.iter_mut().zip(left) {
                for column in 0..COLUMNS {
                    row[column] = add(row[column], left[k], right[k][column]);
                }
            }
        }
        sums.copy_from_slice(&pair);
    }
}

/// Gives each element of an operand of a type of at most 32 bits to `put`, exactly.
#[inline(always)]
fn read_float(mma: &Mma, operand: Operand, group: usize, ty: Type, registers: &[Lanes], put: impl FnMut(Place, f64)) {
    match ty {
        Type::F16 => read::<2, _>(mma, operand, group, registers, |x| f16_to_f32(x as u16).into(), put),
        Type::Bf16 => read::<2, _>(mma, operand, group, registers, |x| f32::from_bits((x as u32) << 16).into(), put),
        Type::E4m3 => read::<4, _>(mma, operand, group, registers, |x| E4M3.widen(x), put),
        // e5m2 is the upper half of f16.
        Type::E5m2 => read::<4, _>(mma, operand, group, registers, |x| f16_to_f32((x << 8) as u16).into(), put),
        Type::Tf32 => {
            read::<1, _>(mma, operand, group, registers, |x| f32::from_bits(x as u32 & 0xffff_e000).into(), put);
        }
        _ => read::<1, _>(mma, operand, group, registers, |x| f32::from_bits(x as u32).into(), put),
    }
}

/// Gives each element of an operand, `E` a register, to `put`.
#[inline(always)]
fn read<const E: usize, T: Copy + Default>(
    mma: &Mma,
    operand: Operand,
    group: usize,
    registers: &[Lanes],
    decode: impl Fn(u64) -> T,
    mut put: impl FnMut(Place, T),
) {
    for (register, lanes) in registers.iter().enumerate() {
        // All values of a register in loops that the compiler can vectorise, then each to its place.
        let mut values = [[T::default(); 32]; E];
        for (part, values) in values.iter_mut().enumerate() {
            for (value, slot) in values.iter_mut().zip(lanes) {
                *value = decode(element::<E>(*slot, part));
            }
        }
        fragment::each::<E>(mma, operand, group, register, |lane, part, place| put(place, values[part][lane]));
    }
}

/// Part `part` of a register that holds `E`.
#[inline(always)]
fn element<const E: usize>(slot: u64, part: usize) -> u64 {
    if E == 1 { slot } else { slot >> (part * 32 / E) & ((1 << (32 / E)) - 1) }
}

/// Writes D's elements, `E` a register.
#[inline(always)]
fn write<const E: usize>(mma: &Mma, group: usize, registers: &mut [Lanes], get: impl Fn(Place) -> u64) {
    for (register, lanes) in registers.iter_mut().enumerate() {
        fragment::each::<E>(mma, Operand::D, group, register, |lane, part, place| {
            let bits = get(place) << (part * 32 / E);
            lanes[lane] = if part == 0 { bits } else { lanes[lane] | bits };
        });
    }
}
