//! What the tests of `mma` share: the shapes, and the bits of 1.
#![allow(dead_code, reason = "each test file uses its part of it")]

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
