//! Products of matrices and of batches of matrices.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::{DType, Result, broadcast_shape};

/// The shapes of both operands.
#[derive(Clone, Debug)]
pub struct MatMul {
    a: &'static [usize],
    b: &'static [usize],
    /// Whether b is f32 whatever a is, like a parameter.
    b_f32: bool,
}

impl Case for MatMul {
    const NAME: &'static str = "matmul";

    fn instances() -> Vec<Self> {
        let same = |a, b| MatMul { a, b, b_f32: false };
        vec![
            same(&[1, 1], &[1, 1]),
            same(&[2, 0], &[0, 3]),
            same(&[5, 7], &[7, 3]),
            same(&[1, 300], &[300, 17]),
            same(&[9, 513], &[513, 33]),
            same(&[70, 65], &[65, 67]),
            same(&[3, 4, 5], &[5, 6]),
            same(&[2, 1, 9, 5], &[3, 5, 4]),
            same(&[3, 5], &[2, 5, 4]),
            // Across tiles of a GPU, aligned to 16 bytes and not, and k in parts.
            same(&[64, 64], &[64, 128]),
            same(&[63, 129], &[129, 65]),
            same(&[130, 40], &[40, 72]),
            same(&[10, 1024], &[1024, 16]),
            MatMul { a: &[2, 11, 17], b: &[17, 9], b_f32: true },
            MatMul { a: &[130, 40], b: &[40, 72], b_f32: true },
        ]
    }

    fn timed() -> Vec<Self> {
        let same = |a, b| MatMul { a, b, b_f32: false };
        vec![same(&[1024, 1024], &[1024, 1024]), same(&[4096, 576], &[576, 1536])]
    }

    fn inputs(&self) -> Vec<Input> {
        let b = float("b", self.b);
        vec![float("a", self.a), if self.b_f32 { b.always(DType::F32) } else { b }]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let (a, b) = (&inputs[0], &inputs[1]);
        let ([a_batch @ .., m, k], [b_batch @ .., _, n]) = (self.a, self.b) else { unreachable!("matrices") };
        let batch = broadcast_shape("truth", a_batch, b_batch).expect("the instances broadcast");
        Array::from_fn(&[&batch[..], &[*m, *n]].concat(), |index| {
            let (batch, at) = index.split_at(batch.len());
            let (i, j) = (at[0], at[1]);
            let products = (0..*k)
                .map(|k| a.at_broadcast(&[batch, &[i, k]].concat()) * b.at_broadcast(&[batch, &[k, j]].concat()));
            products.reduce(|x, y| x + y).unwrap_or(S::from_f64(0.0))
        })
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        inputs[0].matmul(&inputs[1])
    }

    fn flops(&self) -> usize {
        2 * self.a.iter().product::<usize>() * self.b[self.b.len() - 1]
    }
}
