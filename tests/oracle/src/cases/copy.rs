//! Copies of any layout, and changes of dtype.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::{DType, Result};

/// Row-major order.
#[derive(Clone, Debug)]
pub struct Contiguous {
    shape: &'static [usize],
}

impl Case for Contiguous {
    const NAME: &'static str = "contiguous";

    fn instances() -> Vec<Self> {
        let shapes: [&[usize]; 7] = [&[], &[1], &[0, 3], &[67], &[5, 33], &[2, 1, 3, 4, 1, 5], &[300, 129]];
        shapes.map(|shape| Contiguous { shape }).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("x", self.shape)]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        inputs[0].clone()
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        inputs[0].contiguous()
    }
}

/// Another dtype.
#[derive(Clone, Debug)]
pub struct ToDtype {
    to: DType,
}

impl Case for ToDtype {
    const NAME: &'static str = "to_dtype";

    fn instances() -> Vec<Self> {
        [DType::F32, DType::BF16, DType::F16].map(|to| ToDtype { to }).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("x", &[33, 65])]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        inputs[0].clone()
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        inputs[0].to_dtype(self.to)
    }
}
