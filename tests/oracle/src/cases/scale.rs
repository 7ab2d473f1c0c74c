//! A tensor times one element of another, and the same added to an f32 buffer.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::{DType, Result, ops};

/// x · s
#[derive(Clone, Debug)]
pub struct Scale(&'static [usize]);

const SHAPES: [&[usize]; 3] = [&[1], &[5, 33], &[130, 131]];

impl Case for Scale {
    const NAME: &'static str = "scale";

    fn instances() -> Vec<Self> {
        SHAPES.map(Scale).to_vec()
    }
    fn inputs(&self) -> Vec<Input> {
        vec![float("x", self.0).frozen(), float("by", &[]).frozen().always(DType::F32)]
    }
    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        inputs[0].map(|x| x * inputs[1].data[0])
    }
    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        Ok(inputs[0].tape().constant(ops::scale(inputs[0].value(), inputs[1].value())?))
    }
}

/// 1 + x · s, in f32
#[derive(Clone, Debug)]
pub struct AddScaled(&'static [usize]);

impl Case for AddScaled {
    const NAME: &'static str = "add_scaled";

    fn instances() -> Vec<Self> {
        SHAPES.map(AddScaled).to_vec()
    }
    fn inputs(&self) -> Vec<Input> {
        vec![float("x", self.0).frozen(), float("by", &[]).frozen()]
    }
    fn dtypes(&self) -> &'static [DType] {
        &[DType::F32]
    }
    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        inputs[0].map(|x| S::from_f64(1.0) + x * inputs[1].data[0])
    }
    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let x = inputs[0].value();
        let mut out = x.device().alloc(x.shape(), DType::F32)?;
        ops::fill(&mut out.view(), 1.0)?;
        ops::add_scaled(x, inputs[1].value(), out.view())?;
        Ok(inputs[0].tape().constant(out.finish()))
    }
}
