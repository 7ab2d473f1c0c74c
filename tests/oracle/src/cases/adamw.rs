//! AdamW and the norm of all gradients.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::{Grads, ParamSet, Tape, Var};
use kinglet_optim::{AdamW, AdamWOptions, grad_norm};
use kinglet_tensor::{DType, Result, Tensor, ops};

/// One parameter and its gradient.
fn filled(p: &Tensor, g: &Tensor) -> Result<(ParamSet, Grads)> {
    let set = ParamSet::new(vec![("w".into(), p.clone())], p.device())?;
    let mut grads = Grads::new(&set)?;
    {
        let tape = Tape::new();
        let p = tape.param(&set, 0)?;
        tape.backward_from(&[(&p, g.clone())], &mut grads)?;
    }
    Ok((set, grads))
}

/// √Σ g²
fn norm<S: Scalar>(g: &Array<S>) -> S {
    g.data.iter().map(|&g| g * g).reduce(|a, b| a + b).expect("a gradient").sqrt()
}

/// Sizes of one element, of odd lengths and across the chunks of tasks.
const SIZES: [usize; 4] = [1, 37, 1030, (1 << 14) + 5];

/// Parameters and both moments [3, n] after some steps with one gradient.
#[derive(Clone, Debug)]
pub struct Steps {
    n: usize,
    steps: u32,
    weight_decay: f64,
    max_grad_norm: f64,
}

const RATE: f64 = 0.01;

impl Case for Steps {
    const NAME: &'static str = "adamw";

    fn instances() -> Vec<Self> {
        let case = |n, steps, weight_decay, max_grad_norm| Steps { n, steps, weight_decay, max_grad_norm };
        vec![
            case(SIZES[0], 1, 0.0, 0.0),
            case(SIZES[1], 3, 0.1, 1.0),
            case(SIZES[2], 2, 0.0, 1e9),
            case(SIZES[3], 1, 0.1, 0.5),
        ]
    }

    fn inputs(&self) -> Vec<Input> {
        ["p", "g"].map(|name| float(name, &[self.n]).frozen()).to_vec()
    }

    fn dtypes(&self) -> &'static [DType] {
        &[DType::F32]
    }

    /// Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, as torch orders it.
    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let c = S::from_f64;
        let AdamWOptions { beta1, beta2, eps, .. } = AdamWOptions::default();
        let factor = c(self.max_grad_norm) / (norm(&inputs[1]) + c(1e-6));
        let clip = if self.max_grad_norm == 0.0 || factor.value() > 1.0 { c(1.0) } else { factor };
        let mut moments = [Vec::new(), Vec::new()];
        let step = |(&p, &g): (&S, &S)| {
            let g = clip * g;
            let (mut p, mut m, mut v) = (p, c(0.0), c(0.0));
            for t in 1..=self.steps as i32 {
                p = p * c(1.0 - RATE * self.weight_decay);
                m = m + c(1.0 - beta1) * (g - m);
                v = c(beta2) * v + c(1.0 - beta2) * g * g;
                let (step_size, sqrt_bias2) = (c(RATE / (1.0 - beta1.powi(t))), c((1.0 - beta2.powi(t)).sqrt()));
                p = p - step_size * m / (v.sqrt() / sqrt_bias2 + c(eps));
            }
            moments[0].push(m);
            moments[1].push(v);
            p
        };
        let p: Vec<S> = inputs[0].data.iter().zip(&inputs[1].data).map(step).collect();
        let [m, v] = moments;
        Array::new(&[3, self.n], [p, m, v].concat())
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let (mut set, grads) = filled(inputs[0].value(), inputs[1].value())?;
        let (weight_decay, max_grad_norm) = (self.weight_decay, self.max_grad_norm);
        let options = AdamWOptions { weight_decay, max_grad_norm, ..AdamWOptions::default() };
        let mut adamw = AdamW::new(&set, options)?;
        for _ in 0..self.steps {
            adamw.step(&mut set, &grads, RATE)?;
        }
        let [m, v] = adamw.moments();
        Ok(inputs[0].tape().constant(ops::stack(&[set.values(), m, v], 0)?))
    }
}

/// The norm `[1]`.
#[derive(Clone, Debug)]
pub struct GradNorm(usize);

impl Case for GradNorm {
    const NAME: &'static str = "grad_norm";

    fn instances() -> Vec<Self> {
        SIZES.into_iter().chain([(1 << 16) + 77]).map(GradNorm).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![float("g", &[self.0]).frozen()]
    }

    fn dtypes(&self) -> &'static [DType] {
        &[DType::F32]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        Array::new(&[1], vec![norm(&inputs[0])])
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let g = inputs[0].value();
        let (_, grads) = filled(g, g)?;
        Ok(inputs[0].tape().constant(grad_norm(&grads)?))
    }
}
