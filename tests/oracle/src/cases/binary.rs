//! Elementwise operations of two tensors that broadcast.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
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
        use ops::Binary::{Add, Mul};
        let shapes: [(&[usize], &[usize]); 7] = [
            (&[1], &[1]),
            (&[], &[3]),
            (&[17, 33], &[17, 33]),
            (&[5, 1, 7], &[4, 1]),
            (&[3, 40], &[40]),
            (&[3, 40], &[3, 1]),
            (&[130, 257], &[257]),
        ];
        [Add, Mul].into_iter().flat_map(|op| shapes.map(|(a, b)| Binary { op, a, b })).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("a", self.a), float("b", self.b)]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        use ops::Binary::{Add, Div, Mul, Sub};
        let [a, b] = inputs else { unreachable!("two inputs") };
        let shape = broadcast_shape("truth", &a.shape, &b.shape).expect("the instances broadcast");
        Array::from_fn(&shape, |i| {
            let (a, b) = (a.at_broadcast(i), b.at_broadcast(i));
            match self.op {
                Add => a + b,
                Sub => a - b,
                Mul => a * b,
                Div => a / b,
            }
        })
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let (a, b) = (&inputs[0], &inputs[1]);
        match self.op {
            ops::Binary::Mul => a.mul(b),
            _ => a.add(b),
        }
    }
}
