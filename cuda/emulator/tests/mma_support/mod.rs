//! What the tests of `mma` share: the shapes, the bits of 1, and the index formulas of the PTX ISA, as its text has them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use kinglet_emulator::program::{Mma, Type};

/// Every shape and types of `mma.sync` up to sm_90.
pub fn all() -> Vec<Mma> {
    let mut all = Vec::new();
    let mut add = |m, k, a, b, c, d| {
        all.push(Mma { m, n: 8, k, a, b, c, d, satfinite: false, a_col: false, b_row: false });
    };
    use Type::{Bf16, E4m3, E5m2, F16, F32, F64, S8, S32, Tf32, U8};
    for (c, d) in [(F16, F16), (F16, F32), (F32, F32)] {
        add(8, 4, F16, F16, c, d);
    }
    for k in [8, 16] {
        add(16, k, F16, F16, F16, F16);
        add(16, k, F16, F16, F32, F32);
        add(16, k, Bf16, Bf16, F32, F32);
    }
    for k in [4, 8] {
        add(16, k, Tf32, Tf32, F32, F32);
    }
    for (m, k) in [(8, 4), (16, 4), (16, 8), (16, 16)] {
        add(m, k, F64, F64, F64, F64);
    }
    for (m, k) in [(8, 16), (16, 16), (16, 32)] {
        for (a, b) in [(S8, S8), (S8, U8), (U8, S8), (U8, U8)] {
            add(m, k, a, b, S32, S32);
        }
    }
    for k in [16, 32] {
        for (a, b) in [(E4m3, E4m3), (E4m3, E5m2), (E5m2, E4m3), (E5m2, E5m2)] {
            add(16, k, a, b, F32, F32);
            add(16, k, a, b, F16, F16);
        }
    }
    // m8n8k4 of f16 chooses the order of A and B.
    let chosen: Vec<Mma> = all
        .iter()
        .filter(|mma| mma.a == F16 && mma.m == 8)
        .flat_map(|mma| [(true, false), (false, true), (true, true)].map(|(a_col, b_row)| Mma { a_col, b_row, ..*mma }))
        .collect();
    all.extend(chosen);
    all
}

pub fn element_bits(ty: Type) -> u32 {
    match ty {
        Type::S8 | Type::U8 | Type::E4m3 | Type::E5m2 => 8,
        Type::F16 | Type::Bf16 => 16,
        Type::F64 => 64,
        _ => 32,
    }
}

/// The bits of 1.
pub fn one(ty: Type) -> u64 {
    match ty {
        Type::S8 | Type::U8 | Type::S32 => 1,
        Type::E4m3 => 0x38,
        Type::E5m2 => 0x3c,
        Type::F16 => 0x3c00,
        Type::Bf16 => 0x3f80,
        Type::F64 => 1f64.to_bits(),
        _ => 0x3f80_0000,
    }
}

/// Elements in a register.
pub fn packed(ty: Type) -> usize {
    (32 / element_bits(ty)).max(1) as usize
}

/// (row, column) of element i of A in a lane.
pub fn a_place(mma: &Mma, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    match (mma.a, mma.m, mma.k) {
        (Type::F16, 8, 4) if mma.a_col => (i % 4 + if lane < 16 { 0 } else { 4 }, lane % 4),
        (Type::F16, 8, 4) => (lane % 4 + if lane < 16 { 0 } else { 4 }, i),
        (Type::F16 | Type::Bf16, 16, 8) => (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1)),
        (Type::F16 | Type::Bf16, 16, 16) => {
            let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
            (row, thread * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
        }
        (Type::Tf32, 16, 4) => (if i == 0 { group } else { group + 8 }, thread),
        (Type::Tf32, 16, 8) => {
            (if i == 0 || i == 2 { group } else { group + 8 }, if i < 2 { thread } else { thread + 4 })
        }
        (Type::F64, 8, 4) => (group, thread),
        (Type::F64, 16, 4) => (if i == 0 { group } else { group + 8 }, thread),
        (Type::F64, 16, 8) => {
            (if i == 0 || i == 2 { group } else { group + 8 }, if i < 2 { thread } else { thread + 4 })
        }
        (Type::F64, 16, 16) => {
            let is_odd = i % 2 == 1;
            (if is_odd { group + 8 } else { group }, if is_odd { i * 2 - 2 + thread } else { i * 2 + thread })
        }
        (Type::S8 | Type::U8, 8, 16) => (group, thread * 4 + i),
        (Type::S8 | Type::U8 | Type::E4m3 | Type::E5m2, 16, 16) => {
            (if i < 4 { group } else { group + 8 }, thread * 4 + (i & 3))
        }
        (Type::S8 | Type::U8 | Type::E4m3 | Type::E5m2, 16, 32) => {
            let row = if i < 4 || (8..12).contains(&i) { group } else { group + 8 };
            (row, thread * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
        }
        _ => panic!("{mma:?}"),
    }
}

/// (row, column) of element i of B in a lane.
pub fn b_place(mma: &Mma, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    match (mma.b, mma.m, mma.k) {
        (Type::F16, 8, 4) if mma.b_row => (lane % 4, i + if lane < 16 { 0 } else { 4 }),
        (Type::F16, 8, 4) => (i, lane % 4 + if lane < 16 { 0 } else { 4 }),
        (Type::F16 | Type::Bf16, 16, 8) => (thread * 2 + i, group),
        (Type::F16 | Type::Bf16, 16, 16) => (thread * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, group),
        (Type::Tf32, 16, 4) => (thread, group),
        (Type::Tf32, 16, 8) => (if i == 0 { thread } else { thread + 4 }, group),
        (Type::F64, _, 4) => (thread, group),
        (Type::F64, 16, 8) => (if i == 0 { thread } else { thread + 4 }, group),
        (Type::F64, 16, 16) => (thread + i * 4, group),
        (Type::S8 | Type::U8 | Type::E4m3 | Type::E5m2, _, 16) => (thread * 4 + i, group),
        (Type::S8 | Type::U8 | Type::E4m3 | Type::E5m2, 16, 32) => {
            (thread * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, group)
        }
        _ => panic!("{mma:?}"),
    }
}

/// (row, column) of element i of C or D, of type `ty`, in a lane.
pub fn c_place(mma: &Mma, ty: Type, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    if (mma.a, mma.m) == (Type::F16, 8) {
        let down = if lane < 16 { 0 } else { 4 };
        return if ty == Type::F16 {
            (lane % 4 + down, i)
        } else {
            ((lane & 1) + (i & 2) + down, (i & 4) + (lane & 2) + (i & 1))
        };
    }
    if mma.m == 8 { (group, thread * 2 + i) } else { (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1)) }
}

/// Which of the four products of `m8n8k4` a lane belongs to; other shapes have one.
pub fn product(mma: &Mma, lane: usize) -> usize {
    if (mma.a, mma.m) == (Type::F16, 8) { lane % 16 / 4 } else { 0 }
}
