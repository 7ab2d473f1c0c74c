//! Elementwise functions.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::Result;
use kinglet_tensor::ops::Unary as Op;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

/// One function.
#[derive(Clone, Debug)]
pub struct Unary {
    op: Op,
    shape: &'static [usize],
}

const ALL: [Op; 16] = [
    Op::Neg,
    Op::Abs,
    Op::Exp,
    Op::Log,
    Op::Sqrt,
    Op::Rsqrt,
    Op::Recip,
    Op::Square,
    Op::Sin,
    Op::Cos,
    Op::Tanh,
    Op::Sigmoid,
    Op::Relu,
    Op::Silu,
    Op::Gelu,
    Op::GeluTanh,
];

impl Case for Unary {
    const NAME: &'static str = "unary";

    fn instances() -> Vec<Self> {
        let shapes: [&[usize]; 2] = [&[1], &[19, 67]];
        ALL.into_iter().flat_map(|op| shapes.map(|shape| Unary { op, shape })).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        let x = float("x", self.shape);
        vec![match self.op {
            Op::Log | Op::Sqrt | Op::Rsqrt | Op::Recip => x.within(0.05, 8.0),
            _ => x.within(-6.0, 6.0),
        }]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let c = S::from_f64;
        let sigmoid = |x: S| c(1.0) / (c(1.0) + (-x).exp());
        inputs[0].map(|x| match self.op {
            Op::Neg => -x,
            Op::Abs => x * c(if x.value() > 0.0 { 1.0 } else { -1.0 }),
            Op::Exp => x.exp(),
            Op::Log => x.ln(),
            Op::Sqrt => x.sqrt(),
            Op::Rsqrt => c(1.0) / x.sqrt(),
            Op::Recip => c(1.0) / x,
            Op::Square => x * x,
            Op::Sin => x.sin(),
            Op::Cos => x.cos(),
            Op::Tanh => x.tanh(),
            Op::Sigmoid => sigmoid(x),
            Op::Relu => x.max(c(0.0)),
            Op::Silu => x * sigmoid(x),
            Op::Gelu => c(0.5) * x * (c(1.0) + (x * c(FRAC_1_SQRT_2)).erf()),
            Op::GeluTanh => {
                let u = c(FRAC_2_PI.sqrt()) * (x + c(0.044715) * x.powi(3));
                c(0.5) * x * (c(1.0) + u.tanh())
            }
        })
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let x = &inputs[0];
        match self.op {
            Op::Neg => x.neg(),
            Op::Abs => x.abs(),
            Op::Exp => x.exp(),
            Op::Log => x.log(),
            Op::Sqrt => x.sqrt(),
            Op::Rsqrt => x.rsqrt(),
            Op::Recip => x.recip(),
            Op::Square => x.square(),
            Op::Sin => x.sin(),
            Op::Cos => x.cos(),
            Op::Tanh => x.tanh(),
            Op::Sigmoid => x.sigmoid(),
            Op::Relu => x.relu(),
            Op::Silu => x.silu(),
            Op::Gelu => x.gelu(),
            Op::GeluTanh => x.gelu_tanh(),
        }
    }
}
