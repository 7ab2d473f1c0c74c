//! `mma.sync` and the matrix layouts of a warp.
//!
//! # Values
//! The ISA promises products in full precision and sums in at least single precision, in no order. Here, one element of D
//! is `c + a0 b0 + a1 b1 + ..` for k from 0 up, where products are exact (no input type has more than 11 bits) and each
//! addition rounds to f64, and the sum is rounded once, to nearest, to the type of D. So D is what exact arithmetic gives
//! but for sums that cancel more than 29 bits, on every machine the same. (Tensor cores add groups of 4 to 16 products,
//! aligned to the largest and cut off: "Numerical behavior of NVIDIA tensor cores", Fasi et al. 2021. Compare with a GPU
//! by tolerance.) A NaN is 0x7fffffff in f32, 0x7fff in f16.
//!
//! f64 is a chain of fused multiply-adds in the same order, as the ISA has it. Integers are exact, then wrap, or clamp with
//! `.satfinite`. Of a tf32 register the lower 13 bits are ignored.

mod fragment;

use crate::arith::Lanes;
use crate::arith::format::{BF16, E4M3, E5M2, F16, F32, Format};
use crate::program::{Mma, Rounding, Type};
use fragment::{Operand, Place};

pub use fragment::{fragment_registers, gather, spread};

/// Rows, columns and depth of the largest shape.
const ROWS: usize = 16;
const COLUMNS: usize = 8;
const DEPTH: usize = 32;

/// One product: every shape is part of the largest. `m8n8k4` of f16 makes four of them.
struct Matrices<T> {
    a: [[T; DEPTH]; ROWS],
    b: [[T; COLUMNS]; DEPTH],
    /// C before, D after.
    c: [[T; COLUMNS]; ROWS],
}

/// D = A B + C over the fragments of a warp: one [`Lanes`] a register of each operand. See [`self`] for the sum's order.
/// False, and nothing written, where there is no such shape and types or an operand has another number of registers.
pub fn mma(mma: &Mma, a: &[Lanes], b: &[Lanes], c: &[Lanes], d: &mut [Lanes]) -> bool {
    if fragment_registers(mma) != Some([a.len(), b.len(), c.len(), d.len()]) {
        return false;
    }
    match mma.c {
        Type::S32 => multiply(mma, [a, b, c], d, integer, dot_integer, |sum| finish_integer(mma.satfinite, sum)),
        Type::F64 => multiply(mma, [a, b, c], d, |_, bits| f64::from_bits(bits), dot_f64, finish_f64),
        _ => multiply(mma, [a, b, c], d, float, dot_float, |sum| finish_float(mma.d, sum)),
    }
    true
}

/// Reads the operands' elements with `decode`, adds the products up by rows with `dot`, writes the sums with `encode`.
#[inline(always)]
fn multiply<T: Copy + Default>(
    mma: &Mma,
    [a, b, c]: [&[Lanes]; 3],
    d: &mut [Lanes],
    decode: fn(Type, u64) -> T,
    dot: fn(&mut [T; COLUMNS], &[T], &[[T; COLUMNS]]),
    encode: impl Fn(T) -> u64,
) {
    for group in 0..fragment::groups(mma) {
        let mut matrices = Matrices {
            a: [[T::default(); DEPTH]; ROWS],
            b: [[T::default(); COLUMNS]; DEPTH],
            c: [[T::default(); COLUMNS]; ROWS],
        };
        read(mma, Operand::A, group, mma.a, a, decode, |Place { row, column }, value| matrices.a[row][column] = value);
        read(mma, Operand::B, group, mma.b, b, decode, |Place { row, column }, value| matrices.b[row][column] = value);
        read(mma, Operand::C, group, mma.c, c, decode, |Place { row, column }, value| matrices.c[row][column] = value);
        let depth = usize::from(mma.k);
        for row in 0..usize::from(mma.m) {
            dot(&mut matrices.c[row], &matrices.a[row][..depth], &matrices.b[..depth]);
        }
        write(mma, group, d, |Place { row, column }| encode(matrices.c[row][column]));
    }
}

/// Gives each element of an operand to `put`.
#[inline(always)]
fn read<T>(
    mma: &Mma,
    operand: Operand,
    group: usize,
    ty: Type,
    registers: &[Lanes],
    decode: fn(Type, u64) -> T,
    mut put: impl FnMut(Place, T),
) {
    let bits = fragment::element_bits(ty);
    let packed = fragment::packed(ty);
    for (register, lanes) in registers.iter().enumerate() {
        for lane in fragment::lanes(mma, group) {
            for part in 0..packed {
                let value = lanes[lane] >> (bits * part as u32) & (u64::MAX >> (64 - bits));
                put(fragment::place(mma, operand, lane, register * packed + part), decode(ty, value));
            }
        }
    }
}

/// Writes D's elements.
#[inline(always)]
fn write(mma: &Mma, group: usize, registers: &mut [Lanes], get: impl Fn(Place) -> u64) {
    let bits = fragment::element_bits(mma.d);
    let packed = fragment::packed(mma.d);
    for (register, lanes) in registers.iter_mut().enumerate() {
        for lane in fragment::lanes(mma, group) {
            let parts = (0..packed).map(|part| {
                get(fragment::place(mma, Operand::D, lane, register * packed + part)) << (bits * part as u32)
            });
            lanes[lane] = parts.fold(0, |all, part| all | part);
        }
    }
}

#[inline(always)]
fn dot_float(sums: &mut [f64; COLUMNS], a: &[f64], b: &[[f64; COLUMNS]]) {
    for (&a, b) in a.iter().zip(b) {
        for (sum, &b) in sums.iter_mut().zip(b) {
            *sum += a * b;
        }
    }
}

#[inline(always)]
fn dot_f64(sums: &mut [f64; COLUMNS], a: &[f64], b: &[[f64; COLUMNS]]) {
    for (&a, b) in a.iter().zip(b) {
        for (sum, &b) in sums.iter_mut().zip(b) {
            *sum = a.mul_add(b, *sum);
        }
    }
}

#[inline(always)]
fn dot_integer(sums: &mut [i64; COLUMNS], a: &[i64], b: &[[i64; COLUMNS]]) {
    for (&a, b) in a.iter().zip(b) {
        for (sum, &b) in sums.iter_mut().zip(b) {
            *sum += a * b;
        }
    }
}

/// The exact value of an element.
#[inline(always)]
fn float(ty: Type, bits: u64) -> f64 {
    let narrow = |format: Format| format.widen(bits);
    match ty {
        Type::F16 => narrow(F16),
        Type::Bf16 => narrow(BF16),
        Type::E4m3 => narrow(E4M3),
        Type::E5m2 => narrow(E5M2),
        Type::Tf32 => f32::from_bits(bits as u32 & 0xffff_e000).into(),
        _ => f32::from_bits(bits as u32).into(),
    }
}

#[inline(always)]
fn integer(ty: Type, bits: u64) -> i64 {
    match ty {
        Type::S8 => i64::from(bits as i8),
        Type::S32 => i64::from(bits as i32),
        _ => bits as i64,
    }
}

#[inline(always)]
fn finish_float(ty: Type, sum: f64) -> u64 {
    match ty {
        Type::F16 => F16.narrow(sum, Rounding::Rn),
        _ if sum.is_nan() => F32.nan(),
        _ => u64::from((sum as f32).to_bits()),
    }
}

/// The NaN of a product of matrices is the one of invalid operations: which operand's it would be is nowhere said.
#[inline(always)]
fn finish_f64(sum: f64) -> u64 {
    if sum.is_nan() { crate::arith::format::F64.nan() } else { sum.to_bits() }
}

#[inline(always)]
fn finish_integer(satfinite: bool, sum: i64) -> u64 {
    let sum = if satfinite { sum.clamp(i32::MIN.into(), i32::MAX.into()) } else { sum };
    u64::from(sum as u32)
}
