//! `cvt` between all types, and `cvt.pack`: exhaustive where 16 bits allow it, random elsewhere, against the definition of
//! rounding.

mod arith_support;

use arith_support::exact::{BF16, Dyadic, E4M3, E5M2, F16, F32, F64, Format, TF32};
use arith_support::{MODES, PLAIN, Random, f, rounding, run, run_many, run_wide};
use kinglet_emulator::arith::supports;
use kinglet_emulator::program::{Alu, AluOp, Modifiers, Rounding, Type};

const FLOATS: [(Type, Format); 4] = [(Type::F16, F16), (Type::Bf16, BF16), (Type::F32, F32), (Type::F64, F64)];
const INTEGERS: [(Type, u32, bool); 8] = [
    (Type::U8, 8, false),
    (Type::U16, 16, false),
    (Type::U32, 32, false),
    (Type::U64, 64, false),
    (Type::S8, 8, true),
    (Type::S16, 16, true),
    (Type::S32, 32, true),
    (Type::S64, 64, true),
];

fn cvt(to: Type) -> AluOp {
    AluOp::Cvt { to, integer_rounding: false }
}

fn to_integer(to: Type) -> AluOp {
    AluOp::Cvt { to, integer_rounding: true }
}

fn canonical_nan(format: Format) -> u64 {
    match format {
        F64 => 0xfff8_0000_0000_0000,
        F32 => 0x7fff_ffff,
        E4M3 | E5M2 => 0x7f,
        _ => 0x7fff,
    }
}

/// What a float becomes in another format.
fn expected_float(from: Format, to: Format, a: u64, mode: Rounding) -> u64 {
    let sign = if a & from.sign() != 0 { to.sign() } else { 0 };
    if from.is_nan(a) {
        return if from == to { a } else { canonical_nan(to) }; // the same type is a move
    }
    if from.is_finite(a) { to.round(&from.value(a), mode) } else { sign | (to.largest + 1) }
}

/// All 16-bit inputs, or random ones.
fn inputs(format: Format, random: &mut Random) -> Vec<u64> {
    if format.bits() == 16 { (0..1 << 16).collect() } else { (0..10_000).map(|_| random.float(format)).collect() }
}

#[test]
fn between_floats() {
    let mut random = Random(11);
    for (from_type, from) in FLOATS {
        for (to_type, to) in FLOATS {
            // NaN payloads reach f64: below.
            let inputs: Vec<[u64; 3]> = inputs(from, &mut random)
                .into_iter()
                .filter(|a| to != F64 || !from.is_nan(*a))
                .map(|a| [a; 3])
                .collect();
            let is_exact = from == to || to.bits() > from.bits();
            for mode in if is_exact { &MODES[..1] } else { &MODES } {
                // All values to nearest, a fifth of them in the other modes.
                let inputs: Vec<_> =
                    inputs.iter().copied().step_by(if *mode == Rounding::Rn { 1 } else { 5 }).collect();
                let modifiers = if is_exact { PLAIN } else { rounding(*mode) };
                for ([a, ..], got) in inputs.iter().zip(run_many(cvt(to_type), from_type, modifiers, &inputs)) {
                    if is_exact && from.is_finite(*a) {
                        let (a, got) = (from.value(*a), to.value(got));
                        assert!(a.negative == got.negative && a.cmp_magnitude(&got).is_eq(), "{a:?} {got:?}");
                        continue;
                    }
                    let expected = expected_float(from, to, *a, *mode);
                    assert_eq!(got, expected, "cvt {mode:?} {to_type:?} {from_type:?} {a:x}");
                }
            }
        }
    }
}

#[test]
fn nan_payloads_reach_f64() {
    let to_f64 = |ty, a| run_wide(cvt(Type::F64), ty, PLAIN, &[a], 8);
    assert_eq!(to_f64(Type::F32, 0xff80_0001), 0xfff8_0000_2000_0000);
    assert_eq!(to_f64(Type::F16, 0x7fff), 0x7fff_fc00_0000_0000);
    assert_eq!(to_f64(Type::F64, 0x7ff0_0000_0000_1234), 0x7ff0_0000_0000_1234);
    assert_eq!(run(cvt(Type::F32), Type::F32, Modifiers { ftz: true, ..PLAIN }, &[0xffc1_2345]), 0x7fff_ffff);
}

/// Values around the rounding points of f16 and bf16: each number, the middle to the next, and the f32 on either side.
#[test]
fn f32_near_ties() {
    for (ty, format) in [(Type::F16, F16), (Type::Bf16, BF16)] {
        for code in (0..format.largest).step_by(3) {
            let (low, high) = (format.value(code), format.value(code + 1));
            let sum = low.add(&high);
            let middle = Dyadic { exponent: sum.exponent - 1, ..sum };
            let middle = F32.round(&middle, Rounding::Rn);
            for a in [middle - 1, middle, middle + 1] {
                for (sign, relu) in [(0, false), (F32.sign(), false), (F32.sign(), true)] {
                    let modifiers = Modifiers { relu, ..rounding(Rounding::Rn) };
                    let expected = if relu { 0 } else { expected_float(F32, format, a | sign, Rounding::Rn) };
                    assert_eq!(run(cvt(ty), Type::F32, modifiers, &[a | sign]), expected, "{ty:?} {a:x}");
                }
            }
        }
    }
}

#[test]
fn from_integers() {
    let mut random = Random(12);
    for (from, bits, signed) in INTEGERS {
        for (to, format) in FLOATS {
            for _ in 0..1000 {
                let a = random.integer(bits);
                let value = if signed { (a as i64) << (64 - bits) >> (64 - bits) } else { 0 };
                let exact = Dyadic::integer(if signed { value.into() } else { a.into() });
                for mode in MODES {
                    let got = run_wide(cvt(to), from, rounding(mode), &[a], 8);
                    assert_eq!(got, format.round(&exact, mode), "cvt {mode:?} {to:?} {from:?} {a:x}");
                }
            }
        }
    }
}

/// The integer that a finite float rounds to, clamped.
fn expected_integer(value: &Dyadic, mode: Rounding, least: i128, most: i128) -> i128 {
    // A magnitude has at most 53 bits; beyond 2^65 every type's range ends.
    let magnitude = match value.exponent {
        ..0 => round_shift(value, mode),
        0..70 => value.small_magnitude() << value.exponent,
        _ if value.is_zero() => 0,
        _ => i128::MAX,
    };
    (if value.negative { -magnitude } else { magnitude }).clamp(least, most)
}

/// A magnitude of 53 bits divided by a power of two, rounded in the direction of the mode.
fn round_shift(value: &Dyadic, mode: Rounding) -> i128 {
    let (magnitude, down) = (value.small_magnitude(), (-value.exponent).min(100));
    let (floor, rest, half) = (magnitude >> down, magnitude & ((1 << down) - 1), 1 << (down - 1));
    let up = match mode {
        Rounding::Rn | Rounding::Rna => rest > half || rest == half && floor % 2 == 1,
        Rounding::Rz => false,
        Rounding::Rm => value.negative && rest != 0,
        Rounding::Rp => !value.negative && rest != 0,
    };
    floor + i128::from(up)
}

fn range(bits: u32, signed: bool) -> (i128, i128) {
    if signed { (-1 << (bits - 1), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

#[test]
fn to_integers() {
    let mut random = Random(13);
    for (from_type, from) in FLOATS {
        for (to, bits, signed) in INTEGERS {
            let (least, most) = range(bits, signed);
            for _ in 0..2000 {
                let a = random.float(from);
                for mode in MODES {
                    let expected = if from.is_nan(a) {
                        if from == F64 || bits == 64 { 1i128 << (bits - 1) } else { 0 }
                    } else if from.is_finite(a) {
                        expected_integer(&from.value(a), mode, least, most)
                    } else if a & from.sign() != 0 {
                        least
                    } else {
                        most
                    };
                    // Sign-extended to the register, for s8 and s16 too.
                    let expected =
                        if signed && from.is_nan(a) { expected << (128 - bits) >> (128 - bits) } else { expected };
                    let got = run_wide(to_integer(to), from_type, rounding(mode), &[a], 8);
                    assert_eq!(got, expected as u64, "cvt {mode:?} {to:?} {from_type:?} {a:x}");
                }
            }
        }
    }
}

#[test]
fn to_whole_floats() {
    let mut random = Random(14);
    for (ty, format) in FLOATS {
        for a in inputs(format, &mut random).into_iter().step_by(7) {
            for mode in MODES {
                let got = run_wide(to_integer(ty), ty, rounding(mode), &[a], 8);
                if !format.is_finite(a) {
                    let nan = if format == F64 { a | 1 << 51 } else { canonical_nan(format) };
                    assert_eq!(got, if format.is_nan(a) { nan } else { a });
                    continue;
                }
                let value = format.value(a);
                // Numbers with exponents from 0 on are whole.
                let expected = if value.exponent >= 0 {
                    a
                } else {
                    let magnitude = Dyadic::integer(round_shift(&value, mode));
                    format.round(&magnitude, Rounding::Rz) | a & format.sign()
                };
                assert_eq!(got, expected, "cvt {mode:?} {ty:?} {a:x}");
            }
        }
    }
}

#[test]
fn between_integers() {
    let mut random = Random(15);
    for (from, bits, signed) in INTEGERS {
        for (to, to_bits, to_signed) in INTEGERS {
            for sat in [false, true] {
                for _ in 0..100 {
                    let a = random.integer(64);
                    let cut = i128::from(a & mask(bits));
                    let value = if signed { cut << (128 - bits) >> (128 - bits) } else { cut };
                    let (least, most) = range(to_bits, to_signed);
                    let value = if sat { value.clamp(least, most) } else { value };
                    for reg_bytes in [2, 4, 8].into_iter().filter(|bytes| bytes * 8 >= to_bits) {
                        let cut = value & i128::from(mask(to_bits));
                        let extended = if to_signed { cut << (128 - to_bits) >> (128 - to_bits) } else { cut };
                        let expected = extended as u64 & mask(8 * reg_bytes);
                        let got = run_wide(cvt(to), from, Modifiers { sat, ..PLAIN }, &[a], reg_bytes);
                        assert_eq!(got, expected, "cvt {sat} {to:?} {from:?} {a:x} into {reg_bytes}");
                    }
                }
            }
        }
    }
}

#[test]
fn tf32_keeps_19_bits() {
    let mut random = Random(16);
    for _ in 0..10_000 {
        let a = random.float(F32);
        for mode in [Rounding::Rn, Rounding::Rz, Rounding::Rna] {
            let got = run(cvt(Type::Tf32), Type::F32, rounding(mode), &[a]);
            let expected = if F32.is_nan(a) { 0x7fff_ffff } else { expected_float(F32, TF32, a, mode) << 13 };
            assert_eq!(got, expected, "{mode:?} {a:x}");
        }
    }
    // A tie goes away from zero.
    assert_eq!(run(cvt(Type::Tf32), Type::F32, rounding(Rounding::Rna), &[0x3f80_1000]), 0x3f80_2000);
    assert_eq!(run(cvt(Type::Tf32), Type::F32, rounding(Rounding::Rn), &[0x3f80_1000]), 0x3f80_0000);
    let satfinite = Modifiers { satfinite: true, ..rounding(Rounding::Rna) };
    assert_eq!(run(cvt(Type::Tf32), Type::F32, satfinite, &[f(f32::NEG_INFINITY)]), 0xff7f_e000);
}

#[test]
fn satfinite_and_relu() {
    let finite = Modifiers { satfinite: true, ..rounding(Rounding::Rn) };
    let relu = Modifiers { relu: true, ..finite };
    let to_f16 = |m, x: f32| run(cvt(Type::F16), Type::F32, m, &[f(x)]);
    assert_eq!(to_f16(finite, 1e9), 0x7bff);
    assert_eq!(to_f16(finite, f32::NEG_INFINITY), 0xfbff);
    assert_eq!(to_f16(finite, f32::NAN), 0x7fff);
    assert_eq!(to_f16(relu, -1e9), 0);
    assert_eq!(to_f16(relu, -0.0), 0);
    assert_eq!(to_f16(relu, -f32::NAN), 0x7fff);
    assert_eq!(to_f16(rounding(Rounding::Rn), 65520.0), 0x7c00);
    assert_eq!(to_f16(rounding(Rounding::Rz), 1e9), 0x7bff);
    // .sat clamps to 0..1.
    let sat = Modifiers { sat: true, ..rounding(Rounding::Rn) };
    assert_eq!([-1.0, -0.0, 0.25, 7.0, f32::NAN].map(|x| to_f16(sat, x)), [0, 0, 0x3400, 0x3c00, 0]);
}

#[test]
fn ftz_flushes_the_f32_side() {
    let ftz = Modifiers { ftz: true, ..rounding(Rounding::Rp) };
    // f32 subnormals are zero before a conversion up, and after one from f64; f16's are not touched.
    assert_eq!(run(to_integer(Type::S32), Type::F32, ftz, &[1]), 0);
    assert_eq!(run(to_integer(Type::S32), Type::F32, rounding(Rounding::Rp), &[1]), 1);
    assert_eq!(run(cvt(Type::F16), Type::F32, ftz, &[0x8000_0001]), 0x8000);
    assert_eq!(run(cvt(Type::F32), Type::F64, ftz, &[(-1e-40f64).to_bits()]), 0x8000_0000);
    assert_eq!(run(cvt(Type::F32), Type::F16, Modifiers { ftz: true, ..PLAIN }, &[1]), f(2f32.powi(-24)));
}

#[test]
fn packed_pairs_have_the_first_on_top() {
    let rn = rounding(Rounding::Rn);
    let (one, two) = (f(1.0), f(2.0));
    assert_eq!(run(cvt(Type::F16x2), Type::F32, rn, &[one, two]), 0x3c00_4000);
    assert_eq!(run(cvt(Type::Bf16x2), Type::F32, rn, &[one, two]), 0x3f80_4000);
    assert_eq!(run(cvt(Type::E4m3x2), Type::F32, rn, &[one, two]), 0x3840);
    assert_eq!(run(cvt(Type::E5m2x2), Type::F32, rn, &[one, two]), 0x3c40);
    assert_eq!(run(cvt(Type::E4m3x2), Type::F16x2, rn, &[0x3c00_4000]), 0x3840);
    assert_eq!(run(cvt(Type::F16x2), Type::E4m3x2, rn, &[0x3840]), 0x3c00_4000);
    let mut random = Random(17);
    for _ in 0..5_000 {
        let [a, b] = [(); 2].map(|()| random.float(F32));
        for (to, scalar) in [(Type::F16x2, Type::F16), (Type::Bf16x2, Type::Bf16)] {
            for m in [rn, rounding(Rounding::Rz), Modifiers { relu: true, ..rn }] {
                let [high, low] = [a, b].map(|x| run(cvt(scalar), Type::F32, m, &[x]));
                assert_eq!(run(cvt(to), Type::F32, m, &[a, b]), high << 16 | low, "{to:?} {a:x} {b:x}");
            }
        }
    }
}

/// 8-bit floats, of every f16 and of random f32: always `.satfinite`.
#[test]
fn eight_bit_floats() {
    let rn = rounding(Rounding::Rn);
    let expected = |from: Format, to: Format, a: u64| {
        let sign = if a & from.sign() != 0 { 0x80 } else { 0 };
        match from.is_nan(a) {
            true => 0x7f,
            false if !from.is_finite(a) => sign | to.largest,
            false => to.round(&from.value(a), Rounding::Rn).min(sign | to.largest),
        }
    };
    let mut random = Random(18);
    for (ty, format) in [(Type::E4m3x2, E4M3), (Type::E5m2x2, E5M2)] {
        for a in (0..1 << 16).step_by(3) {
            let got = run(cvt(ty), Type::F16x2, rn, &[a << 16]);
            assert_eq!(got, expected(F16, format, a) << 8, "{ty:?} {a:x}");
        }
        for _ in 0..10_000 {
            let a = random.float(F32);
            assert_eq!(run(cvt(ty), Type::F32, rn, &[a, a]), expected(F32, format, a) * 0x101, "{ty:?} {a:x}");
            let relu = run(cvt(ty), Type::F32, Modifiers { relu: true, ..rn }, &[a, 0]) >> 8;
            let plain = expected(F32, format, a);
            assert_eq!(relu, if plain & 0x80 != 0 { 0 } else { plain });
        }
        for a in 0..256 {
            let got = run(cvt(Type::F16x2), ty, rn, &[a]) & 0xffff;
            assert_eq!(got, expected_float(format, F16, a, Rounding::Rn), "{ty:?} {a:x}");
        }
    }
}

#[test]
fn what_ptx_does_not_have() {
    let no = |op, ty, modifiers| assert!(!supports(&Alu { op, ty, modifiers }), "{op:?} {ty:?} {modifiers:?}");
    no(cvt(Type::F16), Type::F32, rounding(Rounding::Rna));
    no(cvt(Type::F32), Type::F16, rounding(Rounding::Rn));
    no(cvt(Type::Tf32), Type::F32, rounding(Rounding::Rp));
    no(cvt(Type::Tf32), Type::F16, PLAIN);
    no(cvt(Type::E4m3x2), Type::F32, rounding(Rounding::Rz));
    no(cvt(Type::S32), Type::U32, rounding(Rounding::Rn));
    no(cvt(Type::F16), Type::S32, Modifiers { relu: true, ..PLAIN });
    no(cvt(Type::F64), Type::F16, Modifiers { ftz: true, ..PLAIN });
    no(cvt(Type::B32), Type::F32, PLAIN);
    no(cvt(Type::Pred), Type::S32, PLAIN);
    no(AluOp::CvtPack { to: Type::U32 }, Type::S32, PLAIN);
}

#[test]
fn pack_clamps() {
    let word = |x: i32| u64::from(x as u32);
    let pack = |to, a, b, c| run(AluOp::CvtPack { to }, Type::S32, PLAIN, &[word(a), word(b), c]);
    assert_eq!(pack(Type::S16, 70000, -70000, 0), 0x7fff_8000);
    assert_eq!(pack(Type::U16, 70000, -1, 0), 0xffff_0000);
    assert_eq!(pack(Type::U8, 300, -5, 0xdead_beef), 0xbeef_ff00);
    assert_eq!(pack(Type::S8, -300, 5, 0x1234), 0x1234_8005);
}
