use kinglet_emulator::{arith::*, program::*};
use std::time::Instant;
#[test]
#[ignore]
fn speed() {
    let m = Modifiers::default();
    let f = |x: f32| u64::from(x.to_bits());
    let a: Lanes = std::array::from_fn(|i| f(i as f32 * 1.37 + 0.5));
    let b: Lanes = std::array::from_fn(|i| f(i as f32 * -0.77 + 2.5));
    let c: Lanes = std::array::from_fn(|i| f(i as f32 * 0.177 - 2.5));
    let d: Lanes = [8; 32];
    let cvt = |to| AluOp::Cvt { to, integer_rounding: false };
    for (name, op, ty, m) in [
        ("mov.b32", AluOp::Mov, Type::B32, m),
        ("add.f32", AluOp::Add, Type::F32, m),
        ("mul.f32", AluOp::Mul, Type::F32, m),
        ("fma.f32", AluOp::Fma, Type::F32, m),
        ("fma.rz.f32", AluOp::Fma, Type::F32, Modifiers { rounding: Rounding::Rz, ..m }),
        ("div.f32", AluOp::Div, Type::F32, m),
        ("ex2.f32", AluOp::Ex2, Type::F32, m),
        ("lg2.f32", AluOp::Lg2, Type::F32, m),
        ("sin.f32", AluOp::Sin, Type::F32, m),
        ("max.f32", AluOp::Max, Type::F32, m),
        ("fma.f64", AluOp::Fma, Type::F64, m),
        ("fma.rz.f64", AluOp::Fma, Type::F64, Modifiers { rounding: Rounding::Rz, ..m }),
        ("fma.f16x2", AluOp::Fma, Type::F16x2, m),
        ("fma.bf16x2", AluOp::Fma, Type::Bf16x2, m),
        ("mul.f16", AluOp::Mul, Type::F16, m),
        ("add.u32", AluOp::Add, Type::U32, m),
        ("mad.lo.s32", AluOp::MadLo, Type::S32, m),
        ("mul.wide.s32", AluOp::MulWide, Type::S32, m),
        ("mul.hi.u32", AluOp::MulHi, Type::U32, m),
        ("add.s64", AluOp::Add, Type::S64, m),
        ("div.u32", AluOp::Div, Type::U32, m),
        ("shl.b32", AluOp::Shl, Type::B32, m),
        ("shr.u32", AluOp::Shr, Type::U32, m),
        ("shr.s32", AluOp::Shr, Type::S32, m),
        ("lop3", AluOp::Lop3 { table: 0x6a }, Type::B32, m),
        ("prmt", AluOp::Prmt(PrmtMode::Index), Type::B32, m),
        ("bfe.u32", AluOp::Bfe, Type::U32, m),
        ("selp.b32", AluOp::Selp, Type::B32, m),
        ("cvt.bf16.f32", cvt(Type::Bf16), Type::F32, m),
        ("cvt.f16.f32", cvt(Type::F16), Type::F32, m),
        ("cvt.f32.f16", cvt(Type::F32), Type::F16, m),
        ("cvt.f32.bf16", cvt(Type::F32), Type::Bf16, m),
        ("cvt.bf16x2.f32", cvt(Type::Bf16x2), Type::F32, m),
        ("cvt.rzi.s32.f32", cvt(Type::S32), Type::F32, Modifiers { rounding: Rounding::Rz, ..m }),
        ("cvt.rn.f32.s32", cvt(Type::F32), Type::S32, m),
        ("cvt.u64.u32", cvt(Type::U64), Type::U32, m),
    ] {
        let alu = Alu { op, ty, modifiers: m };
        let mut out = [0; 32];
        let ty64 = [0, 1, 2].map(|k| std::array::from_fn(|i| (1.37 * i as f64 + k as f64).to_bits()));
        let half = [0x3c013d00u64, 0x42003e11, 0x35007777].map(|x| [x; 32]);
        let (a, b, c) = match ty {
            Type::F64 => (ty64[0], ty64[1], ty64[2]),
            Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 => (half[0], half[1], half[2]),
            _ => (a, b, c),
        };
        let mut best = f64::MAX;
        for _ in 0..40 {
            let start = Instant::now();
            let n = 500;
            for _ in 0..n {
                let o = Operands { a: std::hint::black_box(&a), b: &b, c: &c, d: &d };
                assert!(eval(&alu, o, 4, u32::MAX, &mut 0, &mut out));
                std::hint::black_box(&mut out);
            }
            best = best.min(start.elapsed().as_nanos() as f64 / n as f64);
        }
        println!("{name:16} {best:6.1} ns");
    }
    for (name, by, ty) in [
        ("setp.lt.f32", Compare::Lt, Type::F32),
        ("setp.ge.s32", Compare::Ge, Type::S32),
        ("setp.lt.u64", Compare::Lt, Type::U64),
        ("setp.neu.f32", Compare::Neu, Type::F32),
    ] {
        let start = Instant::now();
        let n = 20000;
        for _ in 0..n {
            std::hint::black_box(compare(by, ty, false, std::hint::black_box(&a), &b, u32::MAX));
        }
        println!("{name:16} {:6.1} ns", start.elapsed().as_nanos() as f64 / n as f64);
    }
    for (name, m, n, k, a, c) in [
        ("mma.m16n8k16.f16", 16, 8, 16, Type::F16, Type::F32),
        ("mma.m16n8k16.f16.f16", 16, 8, 16, Type::F16, Type::F16),
        ("mma.m16n8k16.bf16", 16, 8, 16, Type::Bf16, Type::F32),
        ("mma.m16n8k8.tf32", 16, 8, 8, Type::Tf32, Type::F32),
        ("mma.m16n8k32.s8", 16, 8, 32, Type::S8, Type::S32),
        ("mma.m16n8k32.e4m3", 16, 8, 32, Type::E4m3, Type::F32),
        ("mma.m8n8k4.f64", 8, 8, 4, Type::F64, Type::F64),
    ] {
        let mma = Mma { m, n, k, a, b: a, c, d: c, satfinite: false, a_col: false, b_row: false };
        let [na, nb, nc, nd] = kinglet_emulator::tensor_core::fragment_registers(&mma).unwrap();
        let one = std::array::from_fn(|i| (0x3c01_3c17 + i as u64 * 0x0021_0035));
        let (a, b, c, mut d) = (vec![one; na], vec![one; nb], vec![one; nc], vec![one; nd]);
        let one = match a[0][0] {
            _ if mma.a == Type::F64 => [1.5f64.to_bits(); 32],
            _ => one,
        };
        let (a, b, c, mut d) = (vec![one; na], vec![one; nb], vec![one; nc], d);
        let mut best = f64::MAX;
        for _ in 0..40 {
            let start = Instant::now();
            let n = 100;
            for _ in 0..n {
                kinglet_emulator::tensor_core::mma(&mma, std::hint::black_box(&a), &b, &c, &mut d);
                std::hint::black_box(&mut d);
            }
            best = best.min(start.elapsed().as_nanos() as f64 / n as f64);
        }
        println!("{name:16} {best:6.1} ns");
    }
}
