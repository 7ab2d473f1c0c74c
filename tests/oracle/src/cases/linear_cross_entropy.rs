//! Output projection and cross-entropy in one, and its forms without a gradient.

use super::cross_entropy::{loss, targets};
use crate::{Array, Case, Input, Scalar, float, integers};
use kinglet_autograd::Var;
use kinglet_autograd::ops::{self, Term, TermWeight};
use kinglet_tensor::ops::{self as forward, Targets};
use kinglet_tensor::{DType, Result};

/// The sizes of a projection and its dtype; `None` is the data's.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    rows: usize,
    width: usize,
    classes: usize,
    weight: Option<DType>,
}

impl Sizes {
    /// `learns`: with a trainable weight, which is f32.
    fn all(learns: bool) -> Vec<Sizes> {
        let sizes = |rows, width, classes, weight| Sizes { rows, width, classes, weight };
        let weight = learns.then_some(DType::F32);
        let mut all = vec![sizes(1, 1, 1, weight), sizes(5, 9, 33, weight), sizes(30, 16, 67, weight)];
        // Across chunks of rows.
        all.push(sizes(450, 5, 11, weight));
        if !learns {
            all.extend([DType::F32, DType::BF16, DType::F16].map(|w| sizes(14, 20, 37, Some(w))));
        }
        all
    }

    fn inputs(&self, learns: bool) -> Vec<Input> {
        let weight = float("weight", &[self.classes, self.width]).within(-1.0, 1.0);
        let weight = self.weight.map_or(weight.clone(), |dtype| weight.always(dtype));
        let targets = integers("targets", &[self.rows], &targets(self.rows, self.classes));
        let hidden = float("hidden", &[self.rows, self.width]);
        vec![hidden, if learns { weight } else { weight.frozen() }, targets]
    }

    /// Those of the third input. A device that only counts has no values, but their number decides what there is to count.
    fn targets(&self, inputs: &[Var<'_>]) -> Result<Targets> {
        let device = inputs[2].value().device();
        if device.is_meta() {
            Targets::new(&targets(self.rows, self.classes), device)
        } else {
            Targets::of(inputs[2].value())
        }
    }

    fn logits<S: Scalar>(inputs: &[Array<S>]) -> Array<S> {
        let (hidden, weight) = (&inputs[0], &inputs[1]);
        let dot = |i: &[usize]| {
            let products = (0..hidden.shape[1]).map(|d| hidden.at(&[i[0], d]) * weight.at(&[i[1], d]));
            products.reduce(|a, b| a + b).expect("a width")
        };
        Array::from_fn(&[hidden.shape[0], weight.shape[0]], dot)
    }

    fn losses<S: Scalar>(inputs: &[Array<S>]) -> Vec<S> {
        Self::logits(inputs).rows().zip(&inputs[2].data).map(|(row, &target)| loss(row, target)).collect()
    }

    fn flops(&self, gradients: usize) -> usize {
        2 * (1 + gradients) * self.rows * self.width * self.classes
    }
}

const DIVISOR: f32 = 7.0;

fn mean<S: Scalar>(losses: Vec<S>) -> Array<S> {
    let sum = losses.into_iter().reduce(|a, b| a + b).expect("at least one row");
    Array::new(&[], vec![sum / S::from_f64(f64::from(DIVISOR))])
}

/// The loss with a trainable weight.
#[derive(Clone, Debug)]
pub struct LinearCrossEntropy(Sizes);

impl Case for LinearCrossEntropy {
    const NAME: &'static str = "linear_cross_entropy";

    fn instances() -> Vec<Self> {
        Sizes::all(true).into_iter().map(LinearCrossEntropy).collect()
    }
    fn inputs(&self) -> Vec<Input> {
        self.0.inputs(true)
    }
    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        mean(Sizes::losses(inputs))
    }
    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let term = Term { x: &inputs[0], weight: TermWeight::Var(&inputs[1]) };
        Ok(ops::linear_cross_entropy(&[term], &self.0.targets(inputs)?, DIVISOR)?.0)
    }
    fn flops(&self) -> usize {
        self.0.flops(2)
    }
}

/// The loss with a frozen weight of any float dtype.
#[derive(Clone, Debug)]
pub struct FrozenLinearCrossEntropy(Sizes);

impl Case for FrozenLinearCrossEntropy {
    const NAME: &'static str = "linear_cross_entropy_frozen";

    fn instances() -> Vec<Self> {
        Sizes::all(false).into_iter().map(FrozenLinearCrossEntropy).collect()
    }
    fn timed() -> Vec<Self> {
        vec![FrozenLinearCrossEntropy(Sizes { rows: 512, width: 576, classes: 49_152, weight: None })]
    }
    fn inputs(&self) -> Vec<Input> {
        self.0.inputs(false)
    }
    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        mean(Sizes::losses(inputs))
    }
    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let weight = inputs[1].value().contiguous()?;
        let term = Term { x: &inputs[0], weight: TermWeight::Frozen(&weight) };
        Ok(ops::linear_cross_entropy(&[term], &self.0.targets(inputs)?, DIVISOR)?.0)
    }
    fn flops(&self) -> usize {
        self.0.flops(1)
    }
}

/// The loss with a frozen weight and a low-rank adapter beside it: inputs hidden, weight, targets, u [rows, r] and
/// b [classes, r].
#[derive(Clone, Debug)]
pub struct AdaptedLinearCrossEntropy {
    sizes: Sizes,
    rank: usize,
}

impl Case for AdaptedLinearCrossEntropy {
    const NAME: &'static str = "linear_cross_entropy_adapted";

    fn instances() -> Vec<Self> {
        let case = |sizes: Sizes| AdaptedLinearCrossEntropy { rank: 1 + sizes.width / 3, sizes };
        Sizes::all(false).into_iter().map(case).collect()
    }
    fn inputs(&self) -> Vec<Input> {
        let mut inputs = self.sizes.inputs(false);
        inputs.push(float("u", &[self.sizes.rows, self.rank]));
        inputs.push(float("b", &[self.sizes.classes, self.rank]).within(-1.0, 1.0).always(DType::F32));
        inputs
    }
    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let base = Sizes::logits(inputs);
        let adapter = Sizes::logits(&inputs[3..]);
        let logits = Array::from_fn(&base.shape, |i| base.at(i) + adapter.at(i));
        mean(logits.rows().zip(&inputs[2].data).map(|(row, &target)| loss(row, target)).collect())
    }
    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let weight = inputs[1].value().contiguous()?;
        let base = Term { x: &inputs[0], weight: TermWeight::Frozen(&weight) };
        let adapter = Term { x: &inputs[3], weight: TermWeight::Var(&inputs[4]) };
        Ok(ops::linear_cross_entropy(&[base, adapter], &self.sizes.targets(inputs)?, DIVISOR)?.0)
    }
    fn flops(&self) -> usize {
        self.sizes.flops(1) + Sizes { width: self.rank, ..self.sizes }.flops(2)
    }
}

/// The loss of every row.
#[derive(Clone, Debug)]
pub struct TokenLosses(Sizes);

impl Case for TokenLosses {
    const NAME: &'static str = "token_losses";

    fn instances() -> Vec<Self> {
        Sizes::all(false).into_iter().map(TokenLosses).collect()
    }
    fn inputs(&self) -> Vec<Input> {
        let mut inputs = self.0.inputs(false);
        inputs[0] = inputs[0].clone().frozen();
        inputs
    }
    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        Array::new(&[self.0.rows], Sizes::losses(inputs))
    }
    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let weight = inputs[1].value().contiguous()?;
        let losses = forward::token_losses(inputs[0].value(), &weight, &self.0.targets(inputs)?)?;
        Ok(inputs[0].tape().constant(losses))
    }
}

/// The logits of every other row, last row first.
#[derive(Clone, Debug)]
pub struct Logits(Sizes);

impl Logits {
    fn rows(&self) -> Vec<usize> {
        (0..self.0.rows).rev().step_by(2).collect()
    }
}

impl Case for Logits {
    const NAME: &'static str = "logits";

    fn instances() -> Vec<Self> {
        Sizes::all(false).into_iter().map(Logits).collect()
    }
    fn inputs(&self) -> Vec<Input> {
        self.0.inputs(false).into_iter().take(2).map(Input::frozen).collect()
    }
    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let (logits, rows) = (Sizes::logits(inputs), self.rows());
        Array::from_fn(&[rows.len(), self.0.classes], |i| logits.at(&[rows[i[0]], i[1]]))
    }
    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let weight = inputs[1].value().contiguous()?;
        Ok(inputs[0].tape().constant(forward::logits(inputs[0].value(), &weight, &self.rows())?))
    }
}
