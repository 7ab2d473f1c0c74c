//! Cross-entropy of logits.

use crate::{Array, Case, Input, Scalar, float, integers};
use kinglet_autograd::{Var, ops};
use kinglet_tensor::Result;

/// The loss of `rows` rows of `classes` logits, some without a target.
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    rows: usize,
    classes: usize,
    /// The largest |logit|.
    range: f64,
}

const DIVISOR: f32 = 7.0;

/// A target for each row; every third row has none.
pub(super) fn targets(rows: usize, classes: usize) -> Vec<i32> {
    (0..rows).map(|i| if i % 3 == 1 { -1 } else { (i * 7919 % classes) as i32 }).collect()
}

/// -log softmax(row)[target], 0 where the target is negative.
pub(super) fn loss<S: Scalar>(row: &[S], target: S) -> S {
    let Ok(target) = usize::try_from(target.value() as i64) else { return S::from_f64(0.0) };
    let max = row.iter().map(|x| x.value()).fold(f64::NEG_INFINITY, f64::max);
    let shifted: Vec<S> = row.iter().map(|&x| x - S::from_f64(max)).collect();
    shifted.iter().map(|x| x.exp()).reduce(|a, b| a + b).expect("at least one class").ln() - shifted[target]
}

impl Case for CrossEntropy {
    const NAME: &'static str = "cross_entropy";

    fn instances() -> Vec<Self> {
        let sizes = [(1, 1, 2.0), (5, 33, 2.0), (7, 130, 40.0), (67, 301, 5.0)];
        sizes.map(|(rows, classes, range)| CrossEntropy { rows, classes, range }).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        let targets = integers("targets", &[self.rows], &targets(self.rows, self.classes));
        vec![float("logits", &[self.rows, self.classes]).within(-self.range, self.range), targets]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let losses = inputs[0].rows().zip(&inputs[1].data).map(|(row, &target)| loss(row, target));
        let sum = losses.reduce(|a, b| a + b).expect("at least one row");
        Array::new(&[], vec![sum / S::from_f64(f64::from(DIVISOR))])
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        ops::cross_entropy(&inputs[0], inputs[1].value(), DIVISOR)
    }

    fn flops(&self) -> usize {
        4 * self.rows * self.classes
    }
}
