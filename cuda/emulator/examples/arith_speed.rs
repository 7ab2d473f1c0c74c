//! How long instructions take: nanoseconds for one instruction of a full warp, the best of many short runs.
//! `cargo run --release -p kinglet-emulator --example arith_speed`

use kinglet_emulator::arith::{Lanes, Operands, compare, eval};
use kinglet_emulator::program::{Alu, AluOp, Compare, Mma, Modifiers, PrmtMode, Rounding, Type};
use kinglet_emulator::tensor_core::{fragment_registers, mma};
use std::hint::black_box;
use std::time::Instant;

fn main() {
    let plain = Modifiers::default();
    let rz = Modifiers { rounding: Rounding::Rz, explicit_rounding: true, ..plain };
    let approx = Modifiers { approx: true, ..plain };
    let approx_ftz = Modifiers { ftz: true, ..approx };
    let cvt = |to| AluOp::Cvt { to, integer_rounding: false };
    for (name, op, ty, modifiers) in [
        ("mov.b32", AluOp::Mov, Type::B32, plain),
        ("add.s32", AluOp::Add, Type::S32, plain),
        ("add.s64", AluOp::Add, Type::S64, plain),
        ("mul.lo.s32", AluOp::MulLo, Type::S32, plain),
        ("mul.lo.s64", AluOp::MulLo, Type::S64, plain),
        ("mul.wide.u32", AluOp::MulWide, Type::U32, plain),
        ("mad.lo.s32", AluOp::MadLo, Type::S32, plain),
        ("div.u32", AluOp::Div, Type::U32, plain),
        ("min.u64", AluOp::Min, Type::U64, plain),
        ("and.b32", AluOp::And, Type::B32, plain),
        ("lop3.b32", AluOp::Lop3 { table: 0x6a }, Type::B32, plain),
        ("shl.b32", AluOp::Shl, Type::B32, plain),
        ("shl.b64", AluOp::Shl, Type::B64, plain),
        ("shr.s32", AluOp::Shr, Type::S32, plain),
        ("prmt.b32", AluOp::Prmt(PrmtMode::Index), Type::B32, plain),
        ("bfe.u32", AluOp::Bfe, Type::U32, plain),
        ("selp.f32", AluOp::Selp, Type::F32, plain),
        ("add.f32", AluOp::Add, Type::F32, plain),
        ("mul.f32", AluOp::Mul, Type::F32, plain),
        ("fma.rn.f32", AluOp::Fma, Type::F32, plain),
        ("fma.rz.f32", AluOp::Fma, Type::F32, rz),
        ("div.rn.f32", AluOp::Div, Type::F32, plain),
        ("sqrt.rn.f32", AluOp::Sqrt, Type::F32, plain),
        ("max.f32", AluOp::Max, Type::F32, plain),
        ("neg.f32", AluOp::Neg, Type::F32, plain),
        ("ex2.approx.ftz.f32", AluOp::Ex2, Type::F32, approx_ftz),
        ("lg2.approx.f32", AluOp::Lg2, Type::F32, approx),
        ("sin.approx.f32", AluOp::Sin, Type::F32, approx),
        ("tanh.approx.f32", AluOp::Tanh, Type::F32, approx),
        ("rsqrt.approx.f32", AluOp::Rsqrt, Type::F32, approx),
        ("add.f64", AluOp::Add, Type::F64, plain),
        ("fma.rn.f64", AluOp::Fma, Type::F64, plain),
        ("fma.rz.f64", AluOp::Fma, Type::F64, rz),
        ("mul.f16", AluOp::Mul, Type::F16, plain),
        ("fma.rn.f16x2", AluOp::Fma, Type::F16x2, plain),
        ("fma.rn.bf16x2", AluOp::Fma, Type::Bf16x2, plain),
        ("cvt.u64.u32", cvt(Type::U64), Type::U32, plain),
        ("cvt.rn.f32.s32", cvt(Type::F32), Type::S32, plain),
        ("cvt.rzi.s32.f32", AluOp::Cvt { to: Type::S32, integer_rounding: true }, Type::F32, rz),
        ("cvt.f32.f16", cvt(Type::F32), Type::F16, plain),
        ("cvt.f32.bf16", cvt(Type::F32), Type::Bf16, plain),
        ("cvt.rn.f16.f32", cvt(Type::F16), Type::F32, plain),
        ("cvt.rn.bf16.f32", cvt(Type::Bf16), Type::F32, plain),
        ("cvt.rn.bf16x2.f32", cvt(Type::Bf16x2), Type::F32, plain),
        ("cvt.rz.f16.f32", cvt(Type::F16), Type::F32, rz),
    ] {
        let alu = Alu { op, ty, modifiers };
        let [a, b, c] = [1.37, -0.77, 2.5].map(|step| operand(ty, step));
        let mut out = [0; 32];
        report(name, || {
            let read = Operands { a: black_box(&a), b: &b, c: &c, d: &c };
            assert!(eval(&alu, read, 4, u32::MAX, &mut 0, &mut out));
            black_box(&mut out);
        });
    }
    for (name, by, ty) in [
        ("setp.lt.f32", Compare::Lt, Type::F32),
        ("setp.eq.s32", Compare::Eq, Type::S32),
        ("setp.ge.u64", Compare::Ge, Type::U64),
        ("setp.lt.f16", Compare::Lt, Type::F16),
    ] {
        let [a, b] = [1.37, -0.77].map(|step| operand(ty, step));
        report(name, || {
            black_box(compare(by, ty, false, black_box(&a), &b, u32::MAX));
        });
    }
    for (name, m, k, a, c) in [
        ("mma.m16n8k16 f16, f32", 16, 16, Type::F16, Type::F32),
        ("mma.m16n8k16 f16, f16", 16, 16, Type::F16, Type::F16),
        ("mma.m16n8k16 bf16", 16, 16, Type::Bf16, Type::F32),
        ("mma.m16n8k8 bf16", 16, 8, Type::Bf16, Type::F32),
        ("mma.m16n8k8 tf32", 16, 8, Type::Tf32, Type::F32),
        ("mma.m16n8k32 s8", 16, 32, Type::S8, Type::S32),
        ("mma.m16n8k32 e4m3", 16, 32, Type::E4m3, Type::F32),
        ("mma.m8n8k4 f64", 8, 4, Type::F64, Type::F64),
    ] {
        let shape = Mma { m, n: 8, k, a, b: a, c, d: c, satfinite: false, a_col: false, b_row: false };
        let [a_count, b_count, c_count, d_count] = fragment_registers(&shape).expect("a shape of PTX");
        let (a, b, c) =
            (vec![operand(a, 0.3); a_count], vec![operand(a, 0.7); b_count], vec![operand(c, 0.1); c_count]);
        let mut d = vec![[0; 32]; d_count];
        report(name, || {
            assert!(mma(&shape, black_box(&a), &b, &c, &mut d));
            black_box(&mut d);
        });
    }
}

/// Values of moderate size.
fn operand(ty: Type, step: f64) -> Lanes {
    std::array::from_fn(|lane| {
        let x = step * (lane as f64 + 1.0);
        let half = |bits: u32| u64::from(bits >> 16) * 0x1_0001;
        match ty {
            Type::F64 => x.to_bits(),
            Type::F32 | Type::Tf32 => u64::from((x as f32).to_bits()),
            Type::F16 | Type::F16x2 => 0x3c00_3c00 + lane as u64 * 0x0011_0013,
            Type::Bf16 | Type::Bf16x2 => half((x as f32).to_bits()),
            Type::E4m3 | Type::E5m2 | Type::S8 => 0x3a39_3837 + lane as u64,
            _ => lane as u64 * 37 + 5,
        }
    })
}

/// Prints the best of many short runs.
fn report(name: &str, mut run: impl FnMut()) {
    const TIMES: u32 = 200;
    let best = (0..100).map(|_| {
        let start = Instant::now();
        (0..TIMES).for_each(|_| run());
        start.elapsed() / TIMES
    });
    println!("{name:24} {:6} ns", best.min().unwrap_or_default().as_nanos());
}
