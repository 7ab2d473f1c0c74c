//! `cvt`.

use super::{Decoded, In, NONE, alu};
use crate::decode::reader::illegal;
use crate::program::{AluOp, Modifiers, Rounding, Type};

const SCALARS: &str = "u8 u16 u32 u64 s8 s16 s32 s64 f16 bf16 f32 f64";
const PACKED: &str = "f16x2 bf16x2 tf32 e4m3x2 e5m2x2";

/// `.rni .rzi .rmi .rpi`: a float is rounded to an integer.
fn integer_rounding(name: &str) -> Option<Rounding> {
    Some(match name {
        "rni" => Rounding::Rn,
        "rzi" => Rounding::Rz,
        "rmi" => Rounding::Rm,
        "rpi" => Rounding::Rp,
        _ => return None,
    })
}

pub(super) fn cvt(i: In) -> Decoded {
    if i.flag("pack") {
        return pack(i);
    }
    let mut m = Modifiers::default();
    let integral = i.choice(integer_rounding);
    if let Some(rounding) = integral {
        (m.rounding, m.explicit_rounding) = (rounding, true);
    } else if i.flag("rna") {
        (m.rounding, m.explicit_rounding) = (Rounding::Rna, true);
    } else {
        i.rounding(&mut m);
    }
    m.relu = i.flag("relu");
    m.satfinite = i.flag("satfinite");
    m.ftz = i.flag("ftz");
    m.sat = i.flag("sat");
    let to = i.ty(&format!("{SCALARS} {PACKED}"))?;
    let ty = i.ty(&format!("{SCALARS} f16x2 e4m3x2 e5m2x2"))?;
    let pair = special_form(i, &m, integral.is_some(), to, ty)?;
    // Registers may be wider, but not for the types that came late.
    let wide = [to, ty].into_iter().all(|ty| ty != Type::Bf16 && SCALARS.split(' ').any(|name| name == ty.name()));
    let (dst, reg_bytes) = i.destination(to, wide)?;
    let a = i.src_or_special(ty, wide)?;
    let b = if pair { i.src(ty)? } else { NONE };
    if ty == Type::Bf16 && to.is_float() && to.bytes() > 2 {
        (m.rounding, m.explicit_rounding) = (Rounding::Rn, false);
    }
    let op = AluOp::Cvt { to, integer_rounding: integral.is_some() };
    let mut op = alu(op, ty, m, dst, to, [a, b, NONE, NONE]);
    if let crate::program::Op::Alu { reg_bytes: bytes, .. } = &mut op {
        *bytes = reg_bytes;
    }
    Ok(op)
}

/// Checks the modifiers; whether there are two sources.
fn special_form(i: In, m: &Modifiers, integral: bool, to: Type, ty: Type) -> Decoded<bool> {
    let narrow = matches!(m.rounding, Rounding::Rn | Rounding::Rz) && m.explicit_rounding && !integral;
    match (to, ty) {
        (Type::F16x2 | Type::Bf16x2, Type::F32) => {
            only(narrow, "rn or .rz")?;
            illegal(m.ftz || m.sat, "ftz and .sat")?;
            Ok(true)
        }
        (Type::F16 | Type::Bf16, Type::F32) if m.relu || m.satfinite => {
            only(narrow, "rn or .rz")?;
            illegal(m.ftz || m.sat, "ftz and .sat")?;
            Ok(false)
        }
        (Type::Tf32, Type::F32) => {
            only(m.rounding == Rounding::Rna || narrow, "rna, .rn or .rz")?;
            illegal(m.ftz || m.sat, "ftz and .sat")?;
            illegal(m.relu && m.rounding == Rounding::Rna, "relu")?;
            if m.rounding != Rounding::Rna {
                i.needs(if m.satfinite { 100 } else { 90 })?;
            }
            Ok(false)
        }
        (Type::E4m3x2 | Type::E5m2x2, Type::F32 | Type::F16x2) => {
            i.needs(89)?;
            only(narrow && m.rounding == Rounding::Rn && m.satfinite, "rn.satfinite")?;
            illegal(m.ftz || m.sat, "ftz and .sat")?;
            Ok(ty == Type::F32)
        }
        (Type::F16x2, Type::E4m3x2 | Type::E5m2x2) => {
            i.needs(89)?;
            only(narrow && m.rounding == Rounding::Rn, "rn")?;
            illegal(m.ftz || m.sat || m.satfinite, "ftz and .sat")?;
            Ok(false)
        }
        _ => {
            illegal(m.relu, "relu")?;
            illegal(m.satfinite, "satfinite")?;
            illegal(m.rounding == Rounding::Rna, "rna")?;
            plain(i, m, integral, to, ty)?;
            Ok(false)
        }
    }
}

fn only(given: bool, name: &str) -> Decoded<()> {
    if given { Ok(()) } else { Err(format!("it takes .{name}")) }
}

/// `cvt{.rnd}{.ftz}{.sat}.dtype.atype` of numbers: which roundings must be and which must not.
fn plain(i: In, m: &Modifiers, integral: bool, to: Type, ty: Type) -> Decoded<()> {
    for (name, allowed) in [(to, SCALARS), (ty, SCALARS)] {
        illegal(!allowed.split(' ').any(|other| other == name.name()), name.name())?;
    }
    if (to == Type::Bf16 && ty != Type::F32) || (ty == Type::Bf16 && (to != Type::F32 || m.ftz)) {
        i.needs(90)?;
    }
    illegal(m.sat && (to == Type::Bf16 || ty == Type::Bf16 || holds(to, ty)), "sat")?;
    illegal(m.ftz && to != Type::F32 && ty != Type::F32, "ftz")?;
    match (to.is_float(), ty.is_float()) {
        (false, false) => illegal(m.explicit_rounding, "a rounding"),
        (false, true) => only(integral, "rni, .rzi, .rmi or .rpi"),
        (true, false) => only(m.explicit_rounding && !integral, "rn, .rz, .rm or .rp"),
        (true, true) if to == ty => illegal(m.explicit_rounding && !integral, "a rounding to a float"),
        // Between f16 and bf16 something is always lost.
        (true, true) if to.bytes() <= ty.bytes() => only(m.explicit_rounding && !integral, "rn, .rz, .rm or .rp"),
        // Nothing is rounded; the assembler lets a rounding stand with bf16, and `cvt` drops it.
        (true, true) => illegal(m.explicit_rounding && (ty != Type::Bf16 || integral), "a rounding"),
    }
}

/// Whether the integer type `to` has every value of the integer type `ty`: nothing is left to saturate.
fn holds(to: Type, ty: Type) -> bool {
    let (wider, same) = (to.bytes() > ty.bytes(), to.bytes() == ty.bytes());
    !to.is_float()
        && !ty.is_float()
        && match (to.is_signed(), ty.is_signed()) {
            (true, true) | (false, false) => wider || same,
            (true, false) => wider,
            (false, true) => false,
        }
}

/// `cvt.pack.sat.{u16,s16}.s32 d, a, b` and `cvt.pack.sat.{u8,s8}.s32.b32 d, a, b, c`.
fn pack(i: In) -> Decoded {
    i.need("sat")?;
    i.refuse("u2 s2 u4 s4", "")?;
    let to = i.ty("u16 s16 u8 s8")?;
    let ty = i.ty("s32")?;
    let three = to.bytes() == 1;
    if three {
        i.need("b32")?;
    }
    let m = Modifiers { sat: true, ..Modifiers::default() };
    let dst = i.dst(Type::B32)?;
    let (a, b) = (i.src(ty)?, i.src(ty)?);
    let c = if three { i.src(Type::B32)? } else { NONE };
    Ok(alu(AluOp::CvtPack { to }, ty, m, dst, Type::B32, [a, b, c, NONE]))
}
