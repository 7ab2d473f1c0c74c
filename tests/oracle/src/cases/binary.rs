//! Elementwise operations of two tensors that broadcast.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::ops::Binary::{Add, Div, Maximum, Minimum, Mul, Sub};
use kinglet_tensor::{Result, broadcast_shape, ops};

/// One operation on operands of two shapes.
#[derive(Clone, Debug)]
pub struct Binary {
    op: ops::Binary,
    a: &'static [usize],
    b: &'static [usize],
}

impl Case for Binary {
    const NAME: &'static str = "binary";

    fn instances() -> Vec<Self> {
        let shapes: [(&[usize], &[usize]); 6] = [
            (&[], &[3]),
            (&[17, 33], &[17, 33]),
            (&[5, 1, 7], &[4, 1]),
            (&[3, 40], &[40]),
            (&[3, 40], &[3, 1]),
            (&[130, 257], &[257]),
        ];
        let all = [Add, Sub, Mul, Div, Maximum, Minimum];
        all.into_iter().flat_map(|op| shapes.map(|(a, b)| Binary { op, a, b })).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        let b = float("b", self.b);
        vec![float("a", self.a), if self.op == Div { b.within(0.5, 2.0) } else { b }]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let (a, b) = (&inputs[0], &inputs[1]);
        let shape = broadcast_shape("truth", &a.shape, &b.shape).expect("the instances broadcast");
        Array::from_fn(&shape, |i| {
            let (a, b) = (a.at_broadcast(i), b.at_broadcast(i));
            match self.op {
                Add => a + b,
                Sub => a - b,
                Mul => a * b,
                Div => a / b,
                Maximum => a.max(b),
                Minimum => a.min(b),
            }
        })
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let (a, b) = (&inputs[0], &inputs[1]);
        match self.op {
            Add => a + b,
            Sub => a - b,
            Mul => a * b,
            Div => a / b,
            Maximum => a.maximum(b),
            Minimum => a.minimum(b),
        }
    }

    fn flops(&self) -> usize {
        broadcast_shape("flops", self.a, self.b).map_or(0, |shape| shape.iter().product())
    }
}
