//! Reductions over dimensions.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::ops::Reduce::{Max, Mean, Min, Sum};
use kinglet_tensor::{Result, ops};

/// One reduction over some dimensions.
#[derive(Clone, Debug)]
pub struct Reduce {
    op: ops::Reduce,
    x: &'static [usize],
    dims: &'static [usize],
    keep: bool,
}

impl Case for Reduce {
    const NAME: &'static str = "reduce";

    fn instances() -> Vec<Self> {
        let shapes: [(&[usize], &[usize], bool); 8] = [
            (&[1], &[0], false),
            (&[3, 4], &[], true),
            (&[5, 67], &[1], true),
            (&[67, 5], &[0], false),
            (&[4, 3, 5], &[2, 0], false),
            (&[130, 70], &[0], true),
            (&[2, 8200], &[1], false),
            (&[8200, 2], &[0, 1], false),
        ];
        let all = [Sum, Mean, Max, Min];
        all.into_iter().flat_map(|op| shapes.map(|(x, dims, keep)| Reduce { op, x, dims, keep })).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("x", self.x)]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let kept =
            |i: &[usize]| (0..i.len()).map(|d| if self.dims.contains(&d) { 0 } else { i[d] }).collect::<Vec<_>>();
        let shape: Vec<usize> = kept(self.x).into_iter().map(|size| size.max(1)).collect();
        let mut y: Array<Option<S>> = Array::from_fn(&shape, |_| None);
        Array::from_fn(self.x, |i| {
            let (at, x) = (kept(i), inputs[0].at(i));
            let joined = y.at(&at).map_or(x, |so_far| match self.op {
                Sum | Mean => so_far + x,
                Max => so_far.max(x),
                Min => so_far.min(x),
            });
            y.set(&at, Some(joined));
        });
        let count: usize = self.dims.iter().map(|&d| self.x[d]).product();
        let scale = S::from_f64(if self.op == Mean { count as f64 } else { 1.0 });
        let mut y = y.map(|v| v.expect("no instance is empty") / scale);
        if !self.keep {
            y.shape = (0..self.x.len()).filter(|d| !self.dims.contains(d)).map(|d| self.x[d]).collect();
        }
        y
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let x = &inputs[0];
        match self.op {
            Sum => x.sum(self.dims, self.keep),
            Mean => x.mean(self.dims, self.keep),
            Max => x.max(self.dims, self.keep),
            Min => x.min(self.dims, self.keep),
        }
    }

    fn flops(&self) -> usize {
        self.x.iter().product()
    }
}

/// The place of the largest.
#[derive(Clone, Debug)]
pub struct ArgMax {
    shape: &'static [usize],
    dim: usize,
}

impl Case for ArgMax {
    const NAME: &'static str = "reduce";

    fn instances() -> Vec<Self> {
        vec![
            ArgMax { shape: &[1], dim: 0 },
            ArgMax { shape: &[4, 67], dim: 1 },
            ArgMax { shape: &[5, 3, 9], dim: 1 },
            ArgMax { shape: &[2, 9000], dim: 1 },
        ]
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("x", self.shape).frozen()]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let mut shape = self.shape.to_vec();
        let count = shape.remove(self.dim);
        Array::from_fn(&shape, |i| {
            let x = |k: usize| inputs[0].at(&[&i[..self.dim], &[k], &i[self.dim..]].concat()).value();
            S::from_f64((0..count).fold(0, |best, k| if x(k) > x(best) { k } else { best }) as f64)
        })
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        Ok(inputs[0].tape().constant(ops::argmax(inputs[0].value(), self.dim)?))
    }
}
