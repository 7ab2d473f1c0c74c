//! One step of AdamW over slices: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.

use super::simd;

/// The numbers of one step, the same for every element.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamWStep {
    /// What the gradient is multiplied by first.
    pub clip: f32,
    /// 1 - beta1, rounded once: 1 - 0.999 of f32 numbers would be off in its fifth digit.
    pub weight1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// 1 - beta2, rounded once.
    pub weight2: f32,
    /// 1 - rate · weight decay
    pub decay: f32,
    /// rate / (1 - beta1^t)
    pub step_size: f32,
    /// sqrt(1 - beta2^t)
    pub sqrt_bias2: f32,
    /// Added to the denominator, outside of the square root.
    pub eps: f32,
}

simd! {
    /// Updates parameters `p` and moments `m` and `v` by the gradient `g`, all of one length, in the order of
    /// operations of torch.optim.AdamW:
    ///
    /// ```text
    /// g = clip g
    /// p = decay p
    /// m = m + (1 - beta1) (g - m)
    /// v = beta2 v + (1 - beta2) g²
    /// p = p - step_size m / (sqrt(v) / sqrt_bias2 + eps)
    /// ```
    pub fn adamw(step: &AdamWStep, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        let AdamWStep { clip, weight1, beta2, weight2, decay, step_size, sqrt_bias2, eps } = *step;
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = clip * g;
            *m = weight1.mul_add(g - *m, *m);
            *v = (weight2 * g).mul_add(g, beta2 * *v);
            *p = decay * *p - step_size * *m / (v.sqrt() / sqrt_bias2 + eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Level, Simd};

    #[test]
    fn every_level_gives_the_same_bits() {
        let step = AdamWStep {
            clip: 0.7,
            weight1: 0.1,
            beta2: 0.999,
            weight2: 0.001,
            decay: 0.998,
            step_size: 3e-3,
            sqrt_bias2: 0.17,
            eps: 1e-8,
        };
        let values = |k: u32| -> Vec<f32> {
            (0..1037u32).map(|i| (i.wrapping_mul(2_654_435_761 + k) >> 8) as f32 / 2f32.powi(23) - 1.0).collect()
        };
        let run = |simd| {
            let (mut p, mut m, g) = (values(0), values(2), values(6));
            let mut v: Vec<f32> = values(4).iter().map(|v| v.abs()).collect();
            adamw(simd, &step, &mut p, &mut m, &mut v, &g);
            [p, m, v].concat().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let first = run(Simd::new(Level::Portable).unwrap());
        for level in Level::ALL {
            assert!(Simd::new(level).is_ok_and(|simd| run(simd) == first) || Simd::new(level).is_err(), "{level:?}");
        }
    }
}
