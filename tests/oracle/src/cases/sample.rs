//! The next token: sorted, cut and added up in f64, which differs from the kernels' integers in about one of a million tokens.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::Var;
use kinglet_tensor::cpu::sample::Choice;
use kinglet_tensor::philox::Key;
use kinglet_tensor::{DType, Result, ops};

/// How tokens are chosen, from logits of some shape up to some size.
#[derive(Clone, Debug)]
pub struct Sample {
    shape: &'static [usize],
    most: f64,
    choice: Choice,
}

impl Sample {
    /// The numbers in [0, 1) that the rows draw: 53 bits of the key.
    fn uniform(&self, row: usize) -> f64 {
        let [a, b, ..] = self.choice.key.words(self.choice.step | (row as u64) << 48);
        ((u64::from(a) << 21 ^ u64::from(b) >> 11) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn choose(&self, logits: &[f64], row: usize) -> usize {
        let Choice { temperature, top_k, top_p, .. } = self.choice;
        // Likeliest first, and of equals the lower id.
        let mut ids: Vec<usize> = (0..logits.len()).collect();
        ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let largest = logits[ids[0]];
        if temperature == 0.0 {
            return ids[0];
        }
        if top_k > 0 {
            ids.truncate(top_k);
        }
        let weight = |id: usize| ((logits[id] - largest) / f64::from(temperature)).exp();
        let sum = |ids: &[usize]| ids.iter().map(|&id| weight(id)).sum::<f64>();
        if top_p < 1.0 {
            let limit = f64::from(top_p) * sum(&ids);
            let kept = (1..ids.len()).find(|&n| sum(&ids[..n]) >= limit);
            ids.truncate(kept.unwrap_or(ids.len()));
        }
        ids.sort_unstable();
        let target = self.uniform(row) * sum(&ids);
        let chosen = (1..=ids.len()).find(|&n| sum(&ids[..n]) > target);
        ids[chosen.expect("the sum of all is above a fraction of it") - 1]
    }
}

impl Case for Sample {
    const NAME: &'static str = "sample";

    fn instances() -> Vec<Self> {
        let hows = [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.9), (100.0, 20, 0.5), (1e-3, 3, 0.2)];
        let shapes: [(&[usize], f64); 5] =
            [(&[1], 1.0), (&[7, 2], 2.0), (&[40, 33], 4.0), (&[300], 8.0), (&[3, 1500], 10.0)];
        let case = |((shape, most), (i, (temperature, top_k, top_p)))| {
            let choice = Choice { temperature, top_k, top_p, key: Key::derive(&[11]), step: 7 * i as u64 };
            Sample { shape, most, choice }
        };
        shapes
            .into_iter()
            .flat_map(|shape| hows.into_iter().enumerate().map(move |how| (shape, how)))
            .map(case)
            .collect()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("logits", self.shape).within(-self.most, self.most).frozen()]
    }

    fn dtypes(&self) -> &'static [DType] {
        &[DType::F32]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let rows = inputs[0].rows().enumerate().map(|(row, logits)| {
            let logits: Vec<f64> = logits.iter().map(|l| l.value()).collect();
            S::from_f64(self.choose(&logits, row) as f64)
        });
        let ids: Vec<S> = rows.collect();
        Array::new(&[ids.len()], ids)
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        Ok(inputs[0].tape().constant(ops::sample(inputs[0].value(), &self.choice)?))
    }
}
