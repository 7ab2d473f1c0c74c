//! Arithmetic, logic, conversions, comparisons.

use super::Type;

/// How a float operation rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "they are PTX's own names")]
pub enum Rounding {
    /// `.rn` and `.rni`, and the default of `add`, `sub`, `mul` without a modifier.
    #[default]
    Rn,
    Rz,
    Rm,
    Rp,
    /// To nearest, ties away from zero (`cvt.rna.tf32`).
    Rna,
}

/// What stands behind the name of an arithmetic instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modifiers {
    /// `.rn .rz .rm .rp .rna` (and the integer forms `.rni ..` of `cvt`).
    pub rounding: Rounding,
    /// Whether the text names the rounding.
    pub explicit_rounding: bool,
    /// `.ftz`: subnormal f32 inputs and results are zero.
    pub ftz: bool,
    /// `.sat`
    pub sat: bool,
    /// `.satfinite` of `cvt`: what is too large becomes the largest finite number (`.sat` clamps floats to 0..1).
    pub satfinite: bool,
    /// `.relu`
    pub relu: bool,
    /// `.NaN` of `min` and `max`.
    pub nan: bool,
    /// `.xorsign.abs` of `min` and `max`.
    pub xorsign_abs: bool,
    /// `.approx`
    pub approx: bool,
    /// `.full` of `div`.
    pub full: bool,
    /// `.cc`: writes the carry flag.
    pub carry_out: bool,
    /// `addc`, `subc`, `madc`: reads the carry flag.
    pub carry_in: bool,
}

/// An arithmetic, logic or conversion instruction: one result from up to three values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alu {
    /// The operation.
    pub op: AluOp,
    /// The type of its operands (the source type of a `cvt`, the narrow type of `mul.wide`).
    pub ty: Type,
    /// Its modifiers.
    pub modifiers: Modifiers,
}

/// The operations of [`Alu`]. `a`, `b`, `c` are its operands in the order of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are PTX's own names")]
pub enum AluOp {
    /// Also of addresses and special registers; also `ldu`-free moves of every width.
    Mov,
    Add,
    Sub,
    /// Floats only.
    Mul,
    Fma,
    MulLo,
    MulHi,
    MulWide,
    MadLo,
    MadHi,
    MadWide,
    Mul24Lo,
    Mul24Hi,
    Mad24Lo,
    Mad24Hi,
    Sad,
    Div,
    Rem,
    Abs,
    Neg,
    Min,
    Max,
    /// Three-input forms: `min.f32 d, a, b, c`.
    Min3,
    Max3,
    Popc,
    Clz,
    Bfind {
        shift_amount: bool,
    },
    Fns,
    Brev,
    Bfe,
    /// `bfi d, a, b, c, len`: the fourth operand is [`Op::Alu`](super::Op::Alu)'s `d`.
    Bfi,
    Szext {
        wrap: bool,
    },
    Bmsk {
        wrap: bool,
    },
    /// `ty` is u32 or s32 and is the type of `c` and the result.
    Dp4a {
        a_signed: bool,
        b_signed: bool,
    },
    Dp2a {
        a_signed: bool,
        b_signed: bool,
        high: bool,
    },
    And,
    Or,
    Xor,
    Not,
    Cnot,
    Lop3 {
        table: u8,
    },
    Shl,
    Shr,
    /// Funnel shifts of `b:a` by `c`.
    ShfL {
        wrap: bool,
    },
    ShfR {
        wrap: bool,
    },
    Prmt(PrmtMode),
    Rcp,
    Sqrt,
    Rsqrt,
    /// `rcp.approx.ftz.f64` and `rsqrt.approx.ftz.f64` are `Rcp`/`Rsqrt` with `approx`.
    Sin,
    Cos,
    Lg2,
    Ex2,
    Tanh,
    Copysign,
    /// The result is a predicate.
    Testp(TestP),
    /// `selp d, a, b, c`: `c` is a predicate.
    Selp,
    /// `slct.dtype.ctype d, a, b, c`: `a` if `c >= 0`; the type of `c` is s32 or f32.
    Slct {
        float_selector: bool,
    },
    /// `set.cmp.dtype.stype d, a, b` and with a boolean and a predicate `c`; `ty` is stype.
    Set {
        compare: Compare,
        combine: Option<Combine>,
        to: Type,
    },
    /// From `ty` to `to`. Two-source packing forms (`cvt.rn.bf16x2.f32 d, a, b`) have `b`; the second source lies in the
    /// low half. `integer_rounding`: a float is rounded to an integer (`.rni ..`), also float to float.
    Cvt {
        to: Type,
        integer_rounding: bool,
    },
    /// `cvt.pack.sat.u8.s32.b32 d, a, b, c` and its kin: from s32 to `to`.
    CvtPack {
        to: Type,
    },
}

/// The comparison of `set` and `setp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are PTX's own names")]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// The unsigned forms `lo ls hi hs`.
    Lo,
    Ls,
    Hi,
    Hs,
    /// True also where an operand is NaN.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    /// Neither is NaN.
    Num,
    /// One is NaN.
    Nan,
}

/// How `set` and `setp` combine the comparison with a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are PTX's own names")]
pub enum Combine {
    And,
    Or,
    Xor,
}

/// The modes of `prmt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are PTX's own names")]
pub enum PrmtMode {
    Index,
    F4e,
    B4e,
    Rc8,
    Ecl,
    Ecr,
    Rc16,
}

/// The tests of `testp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are PTX's own names")]
pub enum TestP {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}
