//! Joining and cutting.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::Result;

/// Parts of the given sizes along a dimension, one after another.
#[derive(Clone, Debug)]
pub struct Cat {
    shape: &'static [usize],
    dim: usize,
    sizes: &'static [usize],
}

impl Case for Cat {
    const NAME: &'static str = "cat";

    fn instances() -> Vec<Self> {
        vec![
            Cat { shape: &[1], dim: 0, sizes: &[1] },
            Cat { shape: &[4, 3], dim: 0, sizes: &[2, 0, 5] },
            Cat { shape: &[4, 3, 5], dim: 1, sizes: &[1, 3, 2] },
            Cat { shape: &[40, 67], dim: 1, sizes: &[65, 130] },
        ]
    }

    fn inputs(&self) -> Vec<Input> {
        let shape = |size| [&self.shape[..self.dim], &[size], &self.shape[self.dim + 1..]].concat();
        self.sizes.iter().map(|&size| float("part", &shape(size))).collect()
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let mut shape = self.shape.to_vec();
        shape[self.dim] = self.sizes.iter().sum();
        Array::from_fn(&shape, |index| {
            let (mut index, mut part) = (index.to_vec(), 0);
            while index[self.dim] >= self.sizes[part] {
                index[self.dim] -= self.sizes[part];
                part += 1;
            }
            inputs[part].at(&index)
        })
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        Var::cat(&inputs.iter().collect::<Vec<_>>(), self.dim)
    }
}

/// Three tensors along a new dimension.
#[derive(Clone, Debug)]
pub struct Stack {
    dim: usize,
}

impl Case for Stack {
    const NAME: &'static str = "chunk";

    fn instances() -> Vec<Self> {
        [0, 1, 2].map(|dim| Stack { dim }).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        ["a", "b", "c"].map(|name| float(name, &[4, 5])).to_vec()
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let mut shape = vec![4, 5];
        shape.insert(self.dim, 3);
        Array::from_fn(&shape, |index| {
            let mut rest = index.to_vec();
            inputs[rest.remove(self.dim)].at(&rest)
        })
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        Var::stack(&inputs.iter().collect::<Vec<_>>(), self.dim)
    }
}

/// Pieces along dimension 1, each scaled by its number plus one, put together again.
#[derive(Clone, Debug)]
pub struct Chunk {
    width: usize,
    count: usize,
}

impl Case for Chunk {
    const NAME: &'static str = "stack";

    fn instances() -> Vec<Self> {
        [(6, 3), (7, 3), (2, 5), (5, 1)].map(|(width, count)| Chunk { width, count }).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("x", &[3, self.width, 2])]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let size = self.width.div_ceil(self.count);
        Array::from_fn(&inputs[0].shape, |i| inputs[0].at(i) * S::from_f64((i[1] / size + 1) as f64))
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let pieces = inputs[0].chunk(self.count, 1)?;
        let scaled = pieces.iter().enumerate().map(|(i, piece)| piece.affine((i + 1) as f32, 0.0));
        let scaled: Vec<Var<'t>> = scaled.collect::<Result<_>>()?;
        Var::cat(&scaled.iter().collect::<Vec<_>>(), 1)
    }
}
