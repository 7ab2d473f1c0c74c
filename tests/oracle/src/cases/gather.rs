//! Reading and adding at indices.

use crate::{Array, Case, Input, Scalar, float, ids};
use kinglet_autograd::Var;
use kinglet_tensor::Result;

/// A tensor, the dimension that is indexed, and how many indices there are along it.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    x: &'static [usize],
    dim: usize,
    count: usize,
}

const SIZES: [Sizes; 5] = [
    Sizes { x: &[1], dim: 0, count: 1 },
    Sizes { x: &[7, 5], dim: 0, count: 12 },
    Sizes { x: &[7, 5], dim: 1, count: 3 },
    Sizes { x: &[3, 11, 4], dim: 1, count: 30 },
    Sizes { x: &[300, 70], dim: 0, count: 257 },
];

impl Sizes {
    fn index_shape(self) -> Vec<usize> {
        let mut shape = self.x.to_vec();
        shape[self.dim] = self.count;
        shape
    }

    fn limit(self) -> usize {
        self.x[self.dim]
    }

    /// Where `index` points to along the dimension.
    fn target<S: Scalar>(self, at: &[usize], index: S) -> Vec<usize> {
        let mut at = at.to_vec();
        at[self.dim] = index.value() as usize;
        at
    }
}

/// An index for every element.
#[derive(Clone, Debug)]
pub struct Gather(Sizes);

impl Case for Gather {
    const NAME: &'static str = "gather";

    fn instances() -> Vec<Self> {
        SIZES.map(Gather).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("x", self.0.x), ids("index", &self.0.index_shape(), self.0.limit())]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let (x, index) = (&inputs[0], &inputs[1]);
        Array::from_fn(&index.shape, |at| x.at(&self.0.target(at, index.at(at))))
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        inputs[0].gather(self.0.dim, inputs[1].value())
    }
}

/// An index for every slice.
#[derive(Clone, Debug)]
pub struct IndexSelect(Sizes);

impl Case for IndexSelect {
    const NAME: &'static str = "index_select";

    fn instances() -> Vec<Self> {
        SIZES.map(IndexSelect).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("x", self.0.x), ids("ids", &[self.0.count], self.0.limit())]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let (x, ids) = (&inputs[0], &inputs[1]);
        Array::from_fn(&self.0.index_shape(), |at| x.at(&self.0.target(at, ids.data[at[self.0.dim]])))
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        inputs[0].index_select(self.0.dim, inputs[1].value())
    }
}

/// Elements added at an index each.
#[derive(Clone, Debug)]
pub struct ScatterAdd(Sizes);

impl Case for ScatterAdd {
    const NAME: &'static str = "scatter_add";

    fn instances() -> Vec<Self> {
        SIZES.map(ScatterAdd).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        let shape = self.0.index_shape();
        vec![float("x", self.0.x), ids("index", &shape, self.0.limit()), float("src", &shape)]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let [x, index, src] = inputs else { unreachable!("three inputs") };
        let mut y = x.clone();
        Array::from_fn(&index.shape, |at| {
            let target = self.0.target(at, index.at(at));
            y.set(&target, y.at(&target) + src.at(at));
        });
        y
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        inputs[0].scatter_add(self.0.dim, inputs[1].value(), &inputs[2])
    }
}
