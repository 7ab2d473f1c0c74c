//! Views: where each element of the result comes from.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::Result;

/// One view of a tensor.
#[derive(Clone, Debug)]
pub enum View {
    /// Another shape of 60 elements.
    Reshape(&'static [usize]),
    /// Two dimensions exchanged.
    Transpose(usize, usize),
    /// The dimensions in this order.
    Permute(&'static [usize]),
    /// So many from there along that dimension.
    Narrow(usize, usize, usize),
    /// That entry along that dimension.
    Select(usize, usize),
    /// A dimension backwards.
    Flip(usize),
    /// Without that dimension of size 1.
    Squeeze(usize),
    /// A dimension of size 1 before that one.
    Unsqueeze(usize),
    /// Repeated to this shape.
    BroadcastTo(&'static [usize]),
}

const SHAPE: [usize; 4] = [4, 3, 1, 5];

impl Case for View {
    const NAME: &'static str = "views";

    fn instances() -> Vec<Self> {
        use View::{BroadcastTo, Flip, Narrow, Permute, Reshape, Select, Squeeze, Transpose, Unsqueeze};
        vec![
            Reshape(&[60]),
            Reshape(&[2, 6, 5]),
            Reshape(&[5, 1, 12]),
            Transpose(0, 3),
            Transpose(1, 1),
            Permute(&[2, 0, 3, 1]),
            Narrow(0, 1, 2),
            Narrow(3, 4, 1),
            Narrow(1, 2, 0),
            Select(0, 3),
            Select(3, 0),
            Flip(1),
            Flip(3),
            Squeeze(2),
            Unsqueeze(0),
            Unsqueeze(4),
            BroadcastTo(&[4, 3, 7, 5]),
            BroadcastTo(&[2, 4, 3, 2, 5]),
        ]
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("x", &SHAPE)]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let x = &inputs[0];
        let mut shape = SHAPE.to_vec();
        match *self {
            View::Reshape(shape) => Array::new(shape, x.data.clone()),
            View::Transpose(a, b) => {
                shape.swap(a, b);
                Array::from_fn(&shape, |i| {
                    let mut i = i.to_vec();
                    i.swap(a, b);
                    x.at(&i)
                })
            }
            View::Permute(order) => {
                let shape: Vec<usize> = order.iter().map(|&d| SHAPE[d]).collect();
                Array::from_fn(&shape, |i| {
                    let mut old = vec![0; 4];
                    order.iter().zip(i).for_each(|(&d, &i)| old[d] = i);
                    x.at(&old)
                })
            }
            View::Narrow(dim, start, len) => {
                shape[dim] = len;
                Array::from_fn(&shape, |i| {
                    let mut i = i.to_vec();
                    i[dim] += start;
                    x.at(&i)
                })
            }
            View::Select(dim, index) => {
                shape.remove(dim);
                Array::from_fn(&shape, |i| x.at(&[&i[..dim], &[index], &i[dim..]].concat()))
            }
            View::Flip(dim) => Array::from_fn(&shape, |i| {
                let mut i = i.to_vec();
                i[dim] = SHAPE[dim] - 1 - i[dim];
                x.at(&i)
            }),
            View::Squeeze(dim) => {
                shape.remove(dim);
                Array::new(&shape, x.data.clone())
            }
            View::Unsqueeze(dim) => {
                shape.insert(dim, 1);
                Array::new(&shape, x.data.clone())
            }
            View::BroadcastTo(shape) => Array::from_fn(shape, |i| x.at_broadcast(i)),
        }
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let x = &inputs[0];
        match *self {
            View::Reshape(shape) => x.reshape(shape),
            View::Transpose(a, b) => x.transpose(a, b),
            View::Permute(order) => x.permute(order),
            View::Narrow(dim, start, len) => x.narrow(dim, start, len),
            View::Select(dim, index) => x.select(dim, index),
            View::Flip(dim) => x.flip(dim),
            View::Squeeze(dim) => x.squeeze(dim),
            View::Unsqueeze(dim) => x.unsqueeze(dim),
            View::BroadcastTo(shape) => x.broadcast_to(shape),
        }
    }
}
