//! Choosing the next token from logits.

use kinglet_tensor::philox::{Key, philox4x32};
use kinglet_tensor::{Error, Result};

/// How tokens are chosen. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; above, logits are divided by it.
    pub temperature: f32,
    /// Choose among this many likeliest tokens; 0 is all of them.
    pub top_k: usize,
    /// Choose among the fewest likeliest tokens whose probabilities reach this sum; 1 is all of them.
    pub top_p: f32,
    /// The same seed gives the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 42 }
    }
}

impl Sampling {
    /// # Errors
    /// When a value is outside its range; the message names the option.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::invalid(format!("temperature {} must be a finite number from 0 on", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::invalid(format!("top-p {} must be above 0 and at most 1", self.top_p)));
        }
        Ok(())
    }

    /// The id of new token number `step`. Temperature, then top-k, then top-p, as transformers applies them.
    ///
    /// # Errors
    /// When a logit is NaN or all are minus infinity.
    pub fn choose(&self, logits: &[f32], step: usize) -> Result<usize> {
        if logits.iter().any(|l| l.is_nan()) {
            return Err(Error::non_finite(format!("logits of new token {step} are NaN")));
        }
        if self.temperature == 0.0 {
            return argmax(logits).ok_or_else(|| Error::shape("sample", "no logits"));
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        // Likeliest first; equal logits by id, so that the order is one and the same everywhere.
        order.sort_unstable_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let top = order.first().map_or(0.0, |&i| f64::from(logits[i]));
        let temperature = f64::from(self.temperature);
        let weights: Vec<f64> = order.iter().map(|&i| ((f64::from(logits[i]) - top) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        if !(total.is_finite() && total > 0.0) {
            return Err(Error::non_finite(format!("logits of new token {step} leave nothing to choose from")));
        }
        let kept = self.kept(&weights, total);
        let mut left = self.uniform(step) * weights[..kept].iter().sum::<f64>();
        for (&id, weight) in order[..kept].iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return Ok(id);
            }
        }
        Ok(order[kept - 1])
    }

    /// How many of the sorted tokens top-p keeps: those whose predecessors sum to less than it, at least one.
    fn kept(&self, weights: &[f64], total: f64) -> usize {
        let mut sum = 0.0;
        let limit = f64::from(self.top_p) * total;
        let kept = weights.iter().take_while(|&&w| {
            let keep = sum < limit || self.top_p >= 1.0;
            sum += w;
            keep
        });
        kept.count().max(1)
    }

    /// A number in [0, 1) that depends on the seed and the step alone.
    fn uniform(&self, step: usize) -> f64 {
        let [a, b, ..] = philox4x32(Key::derive(&[self.seed]).0, [step as u32, (step as u64 >> 32) as u32, 0, 0]);
        let bits = u64::from(a) << 21 ^ u64::from(b) >> 11; // 53 bits
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }
}

/// The index of the largest value, the first of equals.
fn argmax(values: &[f32]) -> Option<usize> {
    values.iter().enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(Sampling::default().choose(&[1.0, 3.0, 3.0, 2.0], 0).unwrap(), 1);
    }

    #[test]
    fn top_k_and_top_p_bound_the_choice() {
        let logits = [0.0, 1.0, 2.0, 3.0, 4.0];
        for step in 0..200 {
            let k = Sampling { temperature: 5.0, top_k: 2, ..Sampling::default() }.choose(&logits, step).unwrap();
            assert!(k >= 3);
            // p of the likeliest is 0.636: it alone reaches 0.6.
            let p = Sampling { temperature: 1.0, top_p: 0.6, ..Sampling::default() }.choose(&logits, step).unwrap();
            assert_eq!(p, 4);
        }
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [0.0f32, 1.0, 2.0];
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let mut counts = [0usize; 3];
        let n = 20_000;
        for step in 0..n {
            counts[sampling.choose(&logits, step).unwrap()] += 1;
        }
        for (count, logit) in counts.iter().zip(logits) {
            let p = f64::from(logit).exp() / total;
            let sigma = (p * (1.0 - p) / n as f64).sqrt();
            assert!((*count as f64 / n as f64 - p).abs() < 5.0 * sigma, "{counts:?}");
        }
    }

    #[test]
    fn nan_and_bad_options_are_errors() {
        assert!(Sampling::default().choose(&[f32::NAN, 1.0], 3).unwrap_err().is_non_finite());
        assert!(Sampling { top_p: 0.0, ..Sampling::default() }.validate().is_err());
        assert!(Sampling { temperature: -1.0, ..Sampling::default() }.validate().is_err());
    }
}
