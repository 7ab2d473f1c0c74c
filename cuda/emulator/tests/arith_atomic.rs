//! Atomics: each operation and type by its definition.

mod arith_support;

use arith_support::exact::{BF16, F16, F32, F64};
use arith_support::{PLAIN, Random, f, run};
use kinglet_emulator::arith::atomic;
use kinglet_emulator::program::{AluOp, AtomicOp, Type};

fn apply(op: AtomicOp, ty: Type, old: u64, b: u64) -> u64 {
    atomic(op, ty, false, old, b, 0).unwrap_or_else(|| panic!("{op:?} {ty:?}"))
}

#[test]
fn integers_are_the_instructions() {
    let mut random = Random(71);
    for _ in 0..3000 {
        for (ty, bits) in [(Type::U32, 32), (Type::S32, 32), (Type::U64, 64), (Type::S64, 64)] {
            let [a, b] = [(); 2].map(|()| random.integer(bits));
            for (op, alu) in [(AtomicOp::Add, AluOp::Add), (AtomicOp::Min, AluOp::Min), (AtomicOp::Max, AluOp::Max)] {
                assert_eq!(apply(op, ty, a, b), run(alu, ty, PLAIN, &[a, b]), "{op:?} {ty:?} {a:x} {b:x}");
            }
        }
        let [a, b] = [(); 2].map(|()| random.integer(32));
        assert_eq!(apply(AtomicOp::And, Type::B32, a, b), a & b);
        assert_eq!(apply(AtomicOp::Or, Type::B64, a, b), a | b);
        assert_eq!(apply(AtomicOp::Xor, Type::B32, a, b), a ^ b);
        assert_eq!(apply(AtomicOp::Exch, Type::B32, a, b), b);
    }
}

#[test]
fn inc_and_dec_wrap_at_the_operand() {
    let inc = |old, b| apply(AtomicOp::Inc, Type::U32, old, b);
    assert_eq!([inc(0, 3), inc(2, 3), inc(3, 3), inc(9, 3), inc(0, 0)], [1, 3, 0, 0, 0]);
    let dec = |old, b| apply(AtomicOp::Dec, Type::U32, old, b);
    assert_eq!([dec(0, 3), dec(1, 3), dec(3, 3), dec(4, 3), dec(0, 0)], [3, 0, 2, 3, 0]);
}

#[test]
fn cas_compares_bits() {
    let cas = |ty, old, b, c| atomic(AtomicOp::Cas, ty, false, old, b, c);
    assert_eq!(cas(Type::B32, 5, 5, 9), Some(9));
    assert_eq!(cas(Type::B32, 5, 6, 9), Some(5));
    assert_eq!(cas(Type::B16, 0xffff, 0xffff, 1), Some(1));
    assert_eq!(cas(Type::B64, 1 << 40, 0, 1), Some(1 << 40));
}

#[test]
fn floats_add_like_the_instruction() {
    let mut random = Random(72);
    for _ in 0..5000 {
        for (ty, format) in [(Type::F16, F16), (Type::Bf16, BF16), (Type::F32, F32), (Type::F64, F64)] {
            let [a, b] = [(); 2].map(|()| random.float(format));
            assert_eq!(apply(AtomicOp::Add, ty, a, b), run(AluOp::Add, ty, PLAIN, &[a, b]), "{ty:?} {a:x} {b:x}");
        }
        for ty in [Type::F16x2, Type::Bf16x2] {
            let [a, b] = [(); 2].map(|()| random.integer(32));
            for (op, alu) in [(AtomicOp::Add, AluOp::Add), (AtomicOp::Min, AluOp::Min), (AtomicOp::Max, AluOp::Max)] {
                assert_eq!(apply(op, ty, a, b), run(alu, ty, PLAIN, &[a, b]), "{op:?} {ty:?} {a:x} {b:x}");
            }
        }
    }
}

/// f32 in global memory flushes subnormals.
#[test]
fn f32_flushes_if_told() {
    let add = |ftz, a, b| atomic(AtomicOp::Add, Type::F32, ftz, a, b, 0);
    assert_eq!(add(false, 1, 1), Some(2));
    assert_eq!(add(true, 1, 1), Some(0));
    assert_eq!(add(true, 0x8000_0001, 0x8000_0001), Some(0x8000_0000));
    let least = f(f32::MIN_POSITIVE);
    assert_eq!(add(true, least + 1, least | 0x8000_0000), Some(0));
    assert_eq!(add(false, least + 1, least | 0x8000_0000), Some(1));
}

#[test]
fn what_ptx_does_not_have() {
    for (op, ty) in [
        (AtomicOp::Inc, Type::U64),
        (AtomicOp::Dec, Type::S32),
        (AtomicOp::Min, Type::F32),
        (AtomicOp::Max, Type::F64),
        (AtomicOp::Add, Type::B32),
        (AtomicOp::And, Type::U16),
        (AtomicOp::Add, Type::U16),
        (AtomicOp::Exch, Type::B16),
        (AtomicOp::Cas, Type::B8),
        (AtomicOp::Exch, Type::B128),
    ] {
        assert_eq!(atomic(op, ty, false, 0, 0, 0), None, "{op:?} {ty:?}");
    }
}
