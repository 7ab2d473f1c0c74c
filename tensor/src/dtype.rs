//! Element types.

use crate::cpu::{Simd, convert};
use crate::{Error, Result};
use half::{bf16, f16};

/// The type of a tensor's elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DType {
    /// IEEE binary32: the type of parameters, gradients, moments and every accumulation.
    F32,
    /// The upper half of an f32.
    BF16,
    /// IEEE binary16.
    F16,
    /// Indices and token ids.
    I32,
    /// Quantised values.
    I8,
    /// Bytes, packed codes and masks (0 is false).
    U8,
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::I8 | DType::U8 => 1,
        }
    }

    /// Whether gradients can flow through values of this type.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::BF16 | DType::F16)
    }

    /// This, or an error that names `op` when it is not a float type.
    pub(crate) fn expect_float(self, op: &str) -> Result<Self> {
        if self.is_float() { Ok(self) } else { Err(Error::dtype(op, format!("takes f32, bf16 or f16, not {self}"))) }
    }

    /// The unit roundoff of a float type: the largest relative error of rounding to it.
    ///
    /// # Errors
    /// On an integer type, which has none.
    pub fn epsilon(self) -> Result<f64> {
        match self {
            DType::F32 => Ok(2f64.powi(-24)),
            DType::BF16 => Ok(2f64.powi(-8)),
            DType::F16 => Ok(2f64.powi(-11)),
            other => Err(Error::dtype("epsilon", format!("{other} is not a float type"))),
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::I8 => "i8",
            DType::U8 => "u8",
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that can be the element of a tensor.
pub trait Element: bytemuck::Pod + PartialEq + Send + Sync + std::fmt::Debug + sealed::Sealed + 'static {
    /// The tensor's name for this type.
    const DTYPE: DType;
    /// The value as f32, rounded to nearest even where it does not fit.
    fn to_f32(self) -> f32;
    /// The value as f64, exact for every type.
    fn to_f64(self) -> f64;
    /// The nearest value (ties to even) of this type; integers saturate and drop the fraction.
    fn from_f32(x: f32) -> Self;
    /// `y = x` by [`Element::to_f32`]; both have one length.
    fn widen(simd: Simd, x: &[Self], y: &mut [f32]);
    /// `y = x` by [`Element::from_f32`]; both have one length.
    fn narrow(simd: Simd, x: &[f32], y: &mut [Self]);
}

/// An [`Element`] that gradients can flow through. Kernels are written over rows of f32 and read and write the other
/// float types through these conversions, which `cpu::convert` implements; or over elements, which they convert in registers.
pub trait Float: Element {
    /// [`Element::to_f32`] in as few operations as there are: a signalling NaN stays one, which any arithmetic makes quiet.
    fn wide(self) -> f32;
    /// Rounds `x` to the values of this type.
    fn round(simd: Simd, x: &mut [f32]);
    /// `x` as f32: itself, or a copy in `scratch`.
    fn as_f32<'a>(simd: Simd, x: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32];
    /// Lets `write` fill `y` with f32 values: directly, or by way of `scratch`. It must write every element, and must
    /// not read what is there.
    fn write_f32(simd: Simd, y: &mut [Self], scratch: &mut Vec<f32>, write: impl FnOnce(&mut [f32]));
}

macro_rules! element {
    ($($t:ty, $dtype:ident, $x:ident => $to:expr, $from:expr, $widen:path, $narrow:path;)*) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$dtype;
            #[inline(always)]
            fn to_f32(self) -> f32 { let $x = self; $to }
            #[inline(always)]
            fn to_f64(self) -> f64 { f64::from(self) }
            #[inline(always)]
            fn from_f32($x: f32) -> Self { $from }
            fn widen(simd: Simd, x: &[Self], y: &mut [f32]) {
                assert_eq!(x.len(), y.len(), "widen");
                $widen(simd, x, y);
            }
            fn narrow(simd: Simd, x: &[f32], y: &mut [Self]) {
                assert_eq!(x.len(), y.len(), "narrow");
                $narrow(simd, x, y);
            }
        }
    )*};
}
element! {
    f32, F32, x => x, x, convert::copy, convert::copy;
    bf16, BF16, x => convert::bf16_to_f32(x), convert::bf16_from_f32(x), convert::widen_bf16, convert::narrow_bf16;
    f16, F16, x => convert::f16_to_f32(x), convert::f16_from_f32(x), convert::widen_f16, convert::narrow_f16;
    i32, I32, x => x as f32, x as i32, convert::widen_each, convert::narrow_each;
    i8, I8, x => f32::from(x), x as i8, convert::widen_each, convert::narrow_each;
    u8, U8, x => f32::from(x), x as u8, convert::widen_each, convert::narrow_each;
}

/// Enters generic kernel code: `dispatch!(dtype, "op", T => expression using T)`.
///
/// The `float` form takes the three float types and gives an error for the others; the `any` form
/// takes all.
#[macro_export]
macro_rules! dispatch {
    (float $dtype:expr, $op:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::BF16 => {
                type $T = ::half::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = ::half::f16;
                $body
            }
            other => Err($crate::Error::dtype($op, format!("takes f32, bf16 or f16, not {other}"))),
        }
    };
    (any $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::BF16 => {
                type $T = ::half::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $T = ::half::f16;
                $body
            }
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::I8 => {
                type $T = i8;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
        }
    };
}
