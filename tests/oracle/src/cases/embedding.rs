//! Embedding.

use crate::{Array, Case, Input, Scalar, float, ids};
use kinglet_autograd::{Var, ops};
use kinglet_tensor::{DType, Result};

/// Rows of a table [vocabulary, width] as `out`. A table that learns is f32; a frozen one is of the data's dtype.
#[derive(Clone, Debug)]
pub struct Embedding {
    table: [usize; 2],
    tokens: usize,
    out: DType,
    frozen: bool,
}

impl Case for Embedding {
    const NAME: &'static str = "embedding";

    fn instances() -> Vec<Self> {
        let case = |table, tokens, out, frozen| Embedding { table, tokens, out, frozen };
        vec![
            case([1, 1], 1, DType::F32, false),
            case([7, 33], 20, DType::F32, false),
            case([7, 33], 20, DType::BF16, false),
            case([300, 5], 100, DType::F32, false),
            // More tokens than a block of threads looks at in one go.
            case([9, 3], 600, DType::F32, false),
            case([7, 33], 20, DType::F32, true),
            case([7, 33], 20, DType::BF16, true),
        ]
    }

    fn inputs(&self) -> Vec<Input> {
        let weight = float("weight", &self.table);
        let weight = if self.frozen { weight.frozen() } else { weight.always(DType::F32) };
        vec![weight, ids("ids", &[self.tokens], self.table[0])]
    }

    fn dtypes(&self) -> &'static [DType] {
        // Rounded to bf16, an f32 table is known to bf16's eps only.
        if self.out == DType::F32 { &[DType::F32, DType::BF16, DType::F16] } else { &[DType::BF16] }
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let row = |i: usize| inputs[1].data[i].value() as usize;
        Array::from_fn(&[self.tokens, self.table[1]], |i| inputs[0].at(&[row(i[0]), i[1]]))
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        ops::embedding(&inputs[0], inputs[1].value(), self.out)
    }
}
