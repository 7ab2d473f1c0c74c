//! Choosing the next token from logits.

use kinglet_tensor::cpu::sample::{Choice, IS_NAN};
use kinglet_tensor::philox::Key;
use kinglet_tensor::{Error, Result, Tensor, ops};

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
        self.choice(0).validate()
    }

    /// The id of new token number `step`. Temperature, then top-k, then top-p, as transformers applies them.
    ///
    /// # Errors
    /// When a logit is NaN, all are minus infinity, or one is infinite and the temperature is not 0.
    pub fn choose(&self, logits: &[f32], step: usize) -> Result<usize> {
        if logits.is_empty() {
            return Err(Error::shape("sample", "no logits"));
        }
        chosen(self.choice(step).choose(logits, 0), step)
    }

    /// As [`Sampling::choose`], where the logits (f32, [1, vocabulary]) are: the same id on every device, of which only the
    /// id is read.
    ///
    /// # Errors
    /// As [`Sampling::choose`], and when the logits have another shape or the device fails.
    pub fn choose_on_device(&self, logits: &Tensor, step: usize) -> Result<usize> {
        match ops::sample(logits, &self.choice(step))?.to_vec::<i32>()?[..] {
            [id] => chosen(id, step),
            ref ids => Err(Error::shape("sample", format!("logits of {} tokens, not of one", ids.len()))),
        }
    }

    fn choice(&self, step: usize) -> Choice {
        let Sampling { temperature, top_k, top_p, seed } = *self;
        Choice { temperature, top_k, top_p, key: Key::derive(&[seed]), step: step as u64 }
    }
}

/// An id, unless it says what is wrong with the logits of new token number `step`.
fn chosen(id: i32, step: usize) -> Result<usize> {
    usize::try_from(id).map_err(|_| match id {
        IS_NAN => Error::non_finite(format!("logits of new token {step} are NaN")),
        _ => Error::non_finite(format!("logits of new token {step} leave nothing to choose from")),
    })
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
        let sampled = Sampling { temperature: 1.0, ..Sampling::default() };
        for sampling in [Sampling::default(), sampled] {
            assert!(sampling.choose(&[f32::NAN, 1.0], 3).unwrap_err().is_non_finite());
            assert!(sampling.choose(&[f32::NEG_INFINITY; 2], 3).unwrap_err().is_non_finite());
            assert!(sampling.choose(&[], 3).unwrap_err().is_shape());
        }
        assert!(sampled.choose(&[f32::INFINITY, 1.0], 3).unwrap_err().is_non_finite());
        assert!(Sampling { top_p: 0.0, ..Sampling::default() }.validate().is_err());
        assert!(Sampling { temperature: -1.0, ..Sampling::default() }.validate().is_err());
    }
}
