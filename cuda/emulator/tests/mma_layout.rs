//! Where each element of a fragment lies: one-hot matrices traced through `mma`, against the index formulas of the PTX ISA
//! (written here as its text has them, by operand and index), for every shape and type.

#![allow(clippy::needless_range_loop, reason = "lanes are what these tests speak of")]

mod mma_support;

use kinglet_emulator::program::{Mma, Type};
use kinglet_emulator::tensor_core::{fragment_registers, gather, mma, spread};
use mma_support::{a_place, all, b_place, c_place, element_bits, one, packed, product};

/// Registers with one element set.
fn one_hot(registers: usize, ty: Type, lane: usize, i: usize, value: u64) -> Vec<[u64; 32]> {
    let mut lanes = vec![[0; 32]; registers];
    let packed = packed(ty);
    lanes[i / packed][lane] = value << (element_bits(ty) * (i % packed) as u32);
    lanes
}

/// The elements of D that are not 0: (product, row, column, value).
fn set_elements(mma: &Mma, d: &[[u64; 32]]) -> Vec<(usize, usize, usize, u64)> {
    let bits = element_bits(mma.d);
    let packed = packed(mma.d);
    let mut found = Vec::new();
    for lane in 0..32 {
        for i in 0..d.len() * packed {
            let value = d[i / packed][lane] >> (bits * (i % packed) as u32) & (u64::MAX >> (64 - bits));
            if value != 0 {
                let (row, column) = c_place(mma, mma.d, lane, i);
                found.push((product(mma, lane), row, column, value));
            }
        }
    }
    found.sort_unstable();
    found
}

/// A element (m, k) with all ones in B lights row m of D, wherever k is; B's element (k, n) column n. Their place in k is
/// found by lighting one of A and one of B: D lights only where both have the same k.
#[test]
fn every_element_of_a_and_b() {
    for shape in all() {
        let [na, nb, nc, nd] = fragment_registers(&shape).expect("a shape of PTX");
        let (zero, mut d) = (vec![[0; 32]; nc], vec![[0; 32]; nd]);
        let mut seen_a = std::collections::HashSet::new();
        for lane in 0..32 {
            for i in 0..na * packed(shape.a) {
                let a = one_hot(na, shape.a, lane, i, one(shape.a));
                let (row, k) = a_place(&shape, lane, i);
                assert!(row < shape.m.into() && k < shape.k.into());
                assert!(seen_a.insert((product(&shape, lane), row, k)), "{shape:?}: two lanes have ({row}, {k}) of A");
                // Every element of B, in turns of 11 to keep the test short: all places are met.
                for j in (0..32 * nb * packed(shape.b)).skip((lane + i) % 11).step_by(11) {
                    let (b_lane, b_i) = (j % 32, j / 32);
                    let b = one_hot(nb, shape.b, b_lane, b_i, one(shape.b));
                    assert!(mma(&shape, &a, &b, &zero, &mut d));
                    let (b_k, column) = b_place(&shape, b_lane, b_i);
                    let meets = b_k == k && product(&shape, lane) == product(&shape, b_lane);
                    let expected: Vec<_> =
                        meets.then(|| (product(&shape, lane), row, column, one(shape.d))).into_iter().collect();
                    assert_eq!(set_elements(&shape, &d), expected, "{shape:?} A {lane} {i}, B {b_lane} {b_i}");
                }
            }
        }
    }
}

#[test]
fn every_element_of_c() {
    for shape in all() {
        let [na, nb, nc, nd] = fragment_registers(&shape).expect("a shape of PTX");
        let (a, b, mut d) = (vec![[0; 32]; na], vec![[0; 32]; nb], vec![[0; 32]; nd]);
        let packed = packed(shape.c);
        for lane in 0..32 {
            for i in 0..nc * packed {
                let c = one_hot(nc, shape.c, lane, i, one(shape.c));
                assert!(mma(&shape, &a, &b, &c, &mut d));
                let (row, column) = c_place(&shape, shape.c, lane, i);
                let expected = vec![(product(&shape, lane), row, column, one(shape.d))];
                assert_eq!(set_elements(&shape, &d), expected, "{shape:?} C {lane} {i}");
            }
        }
    }
}

/// The counts of the ISA's text, and shapes that are none.
#[test]
fn registers_of_fragments() {
    let shape = |m, n, k, a, c| Mma { m, n, k, a, b: a, c, d: c, satfinite: false, a_col: false, b_row: false };
    for (shape, expected) in [
        (shape(8, 8, 4, Type::F16, Type::F16), [2, 2, 4, 4]),
        (shape(8, 8, 4, Type::F16, Type::F32), [2, 2, 8, 8]),
        (shape(16, 8, 8, Type::F16, Type::F16), [2, 1, 2, 2]),
        (shape(16, 8, 16, Type::F16, Type::F32), [4, 2, 4, 4]),
        (shape(16, 8, 8, Type::Bf16, Type::F32), [2, 1, 4, 4]),
        (shape(16, 8, 4, Type::Tf32, Type::F32), [2, 1, 4, 4]),
        (shape(16, 8, 8, Type::Tf32, Type::F32), [4, 2, 4, 4]),
        (shape(8, 8, 4, Type::F64, Type::F64), [1, 1, 2, 2]),
        (shape(16, 8, 16, Type::F64, Type::F64), [8, 4, 4, 4]),
        (shape(8, 8, 16, Type::S8, Type::S32), [1, 1, 2, 2]),
        (shape(16, 8, 16, Type::U8, Type::S32), [2, 1, 4, 4]),
        (shape(16, 8, 32, Type::S8, Type::S32), [4, 2, 4, 4]),
        (shape(16, 8, 32, Type::E4m3, Type::F32), [4, 2, 4, 4]),
        (shape(16, 8, 16, Type::E5m2, Type::F16), [2, 1, 2, 2]),
    ] {
        assert_eq!(fragment_registers(&shape), Some(expected), "{shape:?}");
    }
    let f16 = shape(16, 8, 16, Type::F16, Type::F32);
    for none in [
        Mma { m: 8, ..f16 },
        Mma { k: 32, ..f16 },
        Mma { b: Type::Bf16, ..f16 },
        Mma { d: Type::F16, ..f16 },
        Mma { satfinite: true, ..f16 },
        Mma { a_col: true, ..f16 },
        Mma { c: Type::S32, d: Type::S32, ..f16 },
        shape(16, 8, 16, Type::Bf16, Type::F16),
        shape(8, 8, 4, Type::Bf16, Type::F32),
        shape(16, 8, 16, Type::Tf32, Type::F32),
        shape(16, 8, 32, Type::F64, Type::F64),
        shape(16, 8, 64, Type::S8, Type::S32),
        shape(8, 8, 16, Type::E4m3, Type::F32),
        shape(16, 8, 16, Type::F32, Type::F32),
    ] {
        assert_eq!(fragment_registers(&none), None, "{none:?}");
        assert!(!mma(&none, &[[0; 32]; 4], &[[0; 32]; 2], &[[0; 32]; 4], &mut [[0; 32]; 4]));
    }
    // A wrong number of registers.
    assert!(!mma(&f16, &[[0; 32]; 3], &[[0; 32]; 2], &[[0; 32]; 4], &mut [[0; 32]; 4]));
}

/// `ldmatrix`: lane t receives row t/4, elements 2 (t%4) and the next; transposed, column t/4.
#[test]
fn ldmatrix_layout() {
    let rows: [[u16; 8]; 8] = std::array::from_fn(|row| std::array::from_fn(|column| (row * 16 + column) as u16));
    let (plain, transposed) = (spread(&rows, false), spread(&rows, true));
    for lane in 0..32 {
        let (row, column) = (lane / 4, lane % 4 * 2);
        let pair = |low: u16, high: u16| u64::from(low) | u64::from(high) << 16;
        assert_eq!(plain[lane], pair(rows[row][column], rows[row][column + 1]));
        assert_eq!(transposed[lane], pair(rows[column][row], rows[column + 1][row]));
    }
    for transpose in [false, true] {
        assert_eq!(gather(&spread(&rows, transpose), transpose), rows);
    }
}
