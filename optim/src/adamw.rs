//! AdamW over the flat buffers of a parameter set.

use crate::norm::grad_norm;
use kinglet_autograd::{Grads, ParamSet};
use kinglet_tensor::cpu::Cpu;
use kinglet_tensor::cpu::adamw::{AdamWStep, adamw};
use kinglet_tensor::cuda::{self, Arg, Cuda};
use kinglet_tensor::{DType, Error, Result, Tensor, TensorMut, kernel};
use std::ops::Range;

/// The settings that stay the same over a run; those of torch.optim.AdamW by default.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator, outside of the square root.
    pub eps: f64,
    /// Parameters shrink by rate · weight_decay a step; norm weights and biases do not (see [`decays`]).
    pub weight_decay: f64,
    /// Gradients with a larger norm are scaled down to this one; 0 turns it off.
    pub max_grad_norm: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        AdamWOptions { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 }
    }
}

/// Whether weight decay acts on the parameter called `name`: on all but biases and norm weights, as in transformers'
/// `Trainer`.
#[must_use]
pub fn decays(name: &str) -> bool {
    let kept = ["bias", "layernorm", "rmsnorm"].iter().any(|part| name.contains(part));
    !kept && !name.split('.').any(|part| part == "norm" || part.ends_with("_norm"))
}

/// The optimiser's state: both moments of every parameter, and how many steps were taken.
pub struct AdamW {
    options: AdamWOptions,
    /// First moments, flat, in the order of the set.
    m: Tensor,
    /// Second moments.
    v: Tensor,
    steps: u64,
    /// Runs of neighbouring elements with or without decay.
    groups: Vec<(Range<usize>, bool)>,
    /// What changes from step to step, on the device: for elements without decay and with it, [2, 7].
    numbers: Tensor,
}

/// The numbers of a step for an element: those of [`AdamWStep`] in its order, but for `clip`, which the kernel makes.
const NUMBERS: usize = 7;

impl AdamW {
    /// Zero moments for `set`, on its device.
    ///
    /// # Errors
    /// When an option has no sense, or memory runs out.
    pub fn new(set: &ParamSet, options: AdamWOptions) -> Result<Self> {
        let AdamWOptions { beta1, beta2, eps, weight_decay, max_grad_norm } = options;
        if !((0.0..1.0).contains(&beta1) && (0.0..1.0).contains(&beta2)) {
            return Err(Error::invalid(format!("AdamW: betas {beta1} and {beta2} must be in [0, 1)")));
        }
        if [eps, weight_decay, max_grad_norm].iter().any(|x| !x.is_finite() || *x < 0.0) {
            let what = format!("eps {eps}, weight decay {weight_decay}, maximal norm {max_grad_norm}");
            return Err(Error::invalid(format!("AdamW: {what} must be finite and not negative")));
        }
        let zeros = || Tensor::zeros(&[set.len()], DType::F32, set.values().device());
        let (groups, device) = (groups(set, weight_decay > 0.0), set.values().device());
        let numbers = Tensor::zeros(&[2, NUMBERS], DType::F32, device)?;
        Ok(AdamW { options, m: zeros()?, v: zeros()?, steps: 0, groups, numbers })
    }

    /// Goes on from the state that a checkpoint saved, in the memory that is there already: moments flat, in the order of the set.
    ///
    /// # Errors
    /// When there are more or fewer moments than parameters, and `is_aliased` while somebody holds the moments; then nothing has
    /// changed. When the device fails.
    pub fn restore(&mut self, m: &[f32], v: &[f32], steps: u64) -> Result<()> {
        if m.len() != self.m.len() || v.len() != self.v.len() {
            let what = format!("{} and {} saved moments for {} parameters", m.len(), v.len(), self.m.len());
            return Err(Error::shape("AdamW", what));
        }
        if self.m.as_mut().is_none() || self.v.as_mut().is_none() {
            return Err(Error::aliased("AdamW: moments are held elsewhere"));
        }
        self.m.write(m)?;
        self.v.write(v)?;
        self.steps = steps;
        Ok(())
    }

    /// First and second moments [elements of the set], flat: views, which must be dropped before the next step.
    #[must_use]
    pub fn moments(&self) -> [&Tensor; 2] {
        [&self.m, &self.v]
    }

    /// Steps taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Clips the gradients to the maximal norm and takes one step at learning rate `rate`. Returns the norm before
    /// clipping, as a tensor of one element. When that is not finite, no parameter and no moment is changed; the step
    /// is counted all the same, because only the device knows.
    ///
    /// # Errors
    /// `is_aliased` while somebody holds the parameters or the moments; when `grads` are not those of `set`.
    pub fn step(&mut self, set: &mut ParamSet, grads: &Grads, rate: f64) -> Result<Tensor> {
        self.begin(rate)?;
        self.apply(set, grads, None)
    }

    /// Begins a step at learning rate `rate`: counts it, and copies its numbers to the device. The rest of the step, from
    /// the first micro-batch to [`AdamW::apply`], then needs no word from the host.
    ///
    /// # Errors
    /// When the device fails.
    pub fn begin(&mut self, rate: f64) -> Result<()> {
        self.steps += 1;
        let rows = [self.numbers(rate, false), self.numbers(rate, true)];
        self.numbers.write(rows.as_flattened())
    }

    /// The step that [`AdamW::begin`] began, as [`AdamW::step`] describes it. With a `loss` (one element, f32), nothing is
    /// changed when that is not finite either: a loss can overflow where its gradient does not.
    ///
    /// # Errors
    /// As [`AdamW::step`].
    pub fn apply(&mut self, set: &mut ParamSet, grads: &Grads, loss: Option<&Tensor>) -> Result<Tensor> {
        if grads.flat()?.len() != set.len() || self.m.len() != set.len() {
            let what = format!("{} gradients and {} moments", grads.flat()?.len(), self.m.len());
            return Err(Error::shape("AdamW", format!("{what} for {} parameters", set.len())));
        }
        if loss.is_some_and(|loss| loss.len() != 1 || loss.dtype() != DType::F32) {
            return Err(Error::shape("AdamW", "a loss is one element of f32"));
        }
        let norm = grad_norm(grads)?;
        let (max_norm, loss) = (self.options.max_grad_norm as f32, loss.unwrap_or(&norm));
        for (range, decay) in &self.groups {
            let numbers = &self.numbers.select(0, usize::from(*decay))?;
            let gradient = grads.flat()?.narrow(0, range.start, range.len())?;
            let (m, v) = (part(&mut self.m, range)?, part(&mut self.v, range)?);
            set.update(|p| {
                let device = p.device().clone();
                let p = p.into_part(range.start, &[range.len()])?;
                device.run(&ADAMW, AdamwArgs { numbers, max_norm, norm: &norm, loss, p, m, v, gradient: &gradient })
            })?;
        }
        Ok(norm)
    }

    /// What of the step does not depend on the gradients, computed in f64 as torch does.
    fn numbers(&self, rate: f64, decay: bool) -> [f32; NUMBERS] {
        let AdamWOptions { beta1, beta2, eps, weight_decay, .. } = self.options;
        let t = self.steps as f64;
        [
            (1.0 - beta1) as f32,
            beta2 as f32,
            (1.0 - beta2) as f32,
            if decay { (1.0 - rate * weight_decay) as f32 } else { 1.0 },
            (rate / (1.0 - beta1.powf(t))) as f32,
            (1.0 - beta2.powf(t)).sqrt() as f32,
            eps as f32,
        ]
    }
}

/// Neighbouring parameters that decay alike, as runs of elements.
fn groups(set: &ParamSet, decay: bool) -> Vec<(Range<usize>, bool)> {
    let mut groups: Vec<(Range<usize>, bool)> = Vec::new();
    for param in set.params() {
        let (end, decays) = (param.start + param.len(), decay && decays(&param.name));
        match groups.last_mut() {
            Some((range, same)) if *same == decays => range.end = end,
            _ => groups.push((param.start..end, decays)),
        }
    }
    groups
}

fn part<'a>(moment: &'a mut Tensor, range: &Range<usize>) -> Result<TensorMut<'a>> {
    let whole = moment.as_mut().ok_or_else(|| Error::aliased("AdamW: moments are held elsewhere"))?;
    whole.into_part(range.start, &[range.len()])
}

/// Arguments of [`ADAMW`]: one step of AdamW over a part of the flat buffers.
pub struct AdamwArgs<'a> {
    /// The numbers of the step, f32 `[7]`, contiguous: those of [`AdamWStep`] in its order, but for `clip`.
    pub numbers: &'a Tensor,
    /// Gradients of a larger norm are scaled down to it; 0 turns it off.
    pub max_norm: f32,
    /// The norm of all gradients: one element, f32. When it is not finite, nothing is written.
    pub norm: &'a Tensor,
    /// The loss: one element, f32. When it is not finite, nothing is written.
    pub loss: &'a Tensor,
    /// Parameters: `[n]`, f32; read and written.
    pub p: TensorMut<'a>,
    /// First moments: `[n]`, f32; read and written.
    pub m: TensorMut<'a>,
    /// Second moments: `[n]`, f32; read and written.
    pub v: TensorMut<'a>,
    /// `[n]`, f32, contiguous.
    pub gradient: &'a Tensor,
}
kernel!(pub ADAMW = "adamw", AdamwArgs, adamw_cpu, adamw_cuda);

/// Elements handed to one task.
const CHUNK: usize = 1 << 14;

fn adamw_cpu(cpu: &Cpu, mut args: AdamwArgs<'_>) -> Result<()> {
    let (norm, loss) = (args.norm.as_slice::<f32>()?[0], args.loss.as_slice::<f32>()?[0]);
    if !norm.is_finite() || !loss.is_finite() {
        return Ok(());
    }
    let &[weight1, beta2, weight2, decay, step_size, sqrt_bias2, eps] = args.numbers.as_slice::<f32>()? else {
        return Err(Error::shape("AdamW", format!("numbers {:?}", args.numbers.shape())));
    };
    let clip = clip(norm, args.max_norm);
    let step = AdamWStep { clip, weight1, beta2, weight2, decay, step_size, sqrt_bias2, eps };
    let p = args.p.as_mut_slice::<f32>()?.chunks_mut(CHUNK);
    let m = args.m.as_mut_slice::<f32>()?.chunks_mut(CHUNK);
    let v = args.v.as_mut_slice::<f32>()?.chunks_mut(CHUNK);
    let g = args.gradient.as_slice::<f32>()?.chunks(CHUNK);
    let mut tasks: Vec<_> = p.zip(m).zip(v.zip(g)).collect();
    cpu.chunks(&mut tasks, 1, |_, task| {
        for ((p, m), (v, g)) in task {
            adamw(cpu.simd(), &step, p, m, v, g);
        }
    });
    Ok(())
}

fn adamw_cuda(cuda: &Cuda, args: AdamwArgs<'_>) -> Result<()> {
    let AdamwArgs { numbers, max_norm, norm, loss, p, m, v, gradient } = args;
    let args = [
        cuda::read(numbers)?,
        Arg::F32(max_norm),
        cuda::read(norm)?,
        cuda::read(loss)?,
        cuda::written(&p)?,
        cuda::written(&m)?,
        cuda::written(&v)?,
        cuda::read(gradient)?,
        cuda::count(p.len()),
    ];
    cuda::over_elements(cuda, "adamw", "adamw", p.len(), &args)
}

/// torch.nn.utils.clip_grad_norm_'s factor.
fn clip(norm: f32, max_norm: f32) -> f32 {
    if max_norm == 0.0 { 1.0 } else { (max_norm / (norm + 1e-6)).min(1.0) }
}

#[cfg(test)]
mod tests;
