//! Gradient rule of elementwise functions: the derivative is taken at the saved input.

use crate::{Save, Var};
use kinglet_tensor::ops::Unary;
use kinglet_tensor::{Result, ops};

impl<'t> Var<'t> {
    fn unary(&self, op: Unary, name: &'static str) -> Result<Var<'t>> {
        let y = ops::unary(op, &self.value)?;
        self.tape
            .record(name, &[self], y)
            .save([Save::Var(self)])
            .recipe(move |saved| ops::unary(op, saved.tensor(0)?))
            .rule(move |dy, saved, sink| sink.add(0, ops::unary_backward(op, saved.tensor(0)?, dy)?))
    }
}

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident: $op:ident;)*) => {
        impl<'t> Var<'t> {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// When the dtype is no float.
            pub fn $name(&self) -> Result<Var<'t>> {
                self.unary(Unary::$op, stringify!($name))
            }
        )*}
    };
}
functions! {
    /// -self
    neg: Neg;
    /// The absolute value, with derivative 0 at 0.
    abs: Abs;
    /// e to the power self
    exp: Exp;
    /// The natural logarithm.
    log: Log;
    /// The square root.
    sqrt: Sqrt;
    /// 1/√self
    rsqrt: Rsqrt;
    /// 1/self
    recip: Recip;
    /// self²
    square: Square;
    /// The sine.
    sin: Sin;
    /// The cosine.
    cos: Cos;
    /// The hyperbolic tangent.
    tanh: Tanh;
    /// 1/(1 + e⁻ˣ)
    sigmoid: Sigmoid;
    /// max(self, 0), with derivative 0 at 0.
    relu: Relu;
    /// self · sigmoid(self)
    silu: Silu;
    /// self · Φ(self), by the error function.
    gelu: Gelu;
    /// The approximation of [`Var::gelu`] by tanh.
    gelu_tanh: GeluTanh;
}
