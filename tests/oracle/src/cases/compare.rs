//! Comparisons and the choice by a mask.

use crate::{Array, Case, Input, Scalar, float, mask};
use kinglet_autograd::Var;
use kinglet_tensor::ops::Compare::{Eq, Ge, Gt, Le, Lt, Ne};
use kinglet_tensor::{Result, broadcast_shape, ops};

/// One comparison; small whole numbers, so that some are equal.
#[derive(Clone, Debug)]
pub struct Compare {
    op: ops::Compare,
}

impl Case for Compare {
    const NAME: &'static str = "compare";

    fn instances() -> Vec<Self> {
        [Eq, Ne, Lt, Le, Gt, Ge].map(|op| Compare { op }).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![crate::ids("a", &[19, 67], 4), crate::ids("b", &[67], 4)]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        Array::from_fn(&inputs[0].shape, |i| {
            let (a, b) = (inputs[0].at(i).value(), inputs[1].at_broadcast(i).value());
            let holds = match self.op {
                Eq => a == b,
                Ne => a != b,
                Lt => a < b,
                Le => a <= b,
                Gt => a > b,
                Ge => a >= b,
            };
            S::from_f64(f64::from(u8::from(holds)))
        })
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        Ok(inputs[0].tape().constant(ops::compare(self.op, inputs[0].value(), inputs[1].value())?))
    }
}

/// A mask and two values of their own shapes.
#[derive(Clone, Debug)]
pub struct Where {
    mask: &'static [usize],
    a: &'static [usize],
    b: &'static [usize],
}

impl Case for Where {
    const NAME: &'static str = "where";

    fn instances() -> Vec<Self> {
        vec![
            Where { mask: &[1], a: &[1], b: &[] },
            Where { mask: &[17, 129], a: &[17, 129], b: &[17, 129] },
            Where { mask: &[6, 1], a: &[5], b: &[2, 1, 1] },
        ]
    }

    fn inputs(&self) -> Vec<Input> {
        vec![mask("mask", self.mask), float("a", self.a), float("b", self.b)]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let both = broadcast_shape("truth", self.a, self.b).expect("the instances broadcast");
        let shape = broadcast_shape("truth", self.mask, &both).expect("the instances broadcast");
        Array::from_fn(&shape, |i| inputs[if inputs[0].at_broadcast(i).value() != 0.0 { 1 } else { 2 }].at_broadcast(i))
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        inputs[1].where_(inputs[0].value(), &inputs[2])
    }
}
