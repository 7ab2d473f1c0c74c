//! Rotary position embeddings: the frequency of each pair of elements of a head.
//!
//! Every kind is computed as Transformers' `modeling_rope_utils.py` computes it: in f32 wherever
//! that has a tensor, in f64 wherever it has a Python number, in the same order.

use std::f64::consts::PI;

/// The rotation of a model's heads.
#[derive(Clone, PartialEq, Debug)]
pub struct Rope {
    /// The base of the frequencies (`rope_theta`).
    pub theta: f64,
    /// How the frequencies are changed for longer contexts.
    pub kind: RopeKind,
}

/// How frequencies are changed so that a model reads further than it was first trained to.
#[derive(Clone, PartialEq, Debug)]
pub enum RopeKind {
    /// Not at all (Su et al. 2021, arXiv 2104.09864).
    Default,
    /// All divided by `factor`: position interpolation (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// A larger base once the text is longer than `max_positions` ("dynamic NTK").
    Dynamic {
        /// How much further the model shall read.
        factor: f64,
        /// The length up to which nothing changes.
        max_positions: usize,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between blended (Llama 3.1).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Frequencies that turn less than this often within `original` are low.
        low: f64,
        /// Frequencies that turn more than this often within `original` are high.
        high: f64,
        /// The context length of the first training.
        original: usize,
    },
    /// NTK by parts (Peng et al. 2023, arXiv 2309.00071).
    Yarn(Yarn),
    /// A divisor for each frequency: one set up to `original` tokens, one beyond (Ding et al.
    /// 2024, arXiv 2402.13753).
    LongRope {
        /// Divisors for texts of at most `original` tokens.
        short: Vec<f32>,
        /// Divisors for longer texts.
        long: Vec<f32>,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
        /// The context length of the first training.
        original: usize,
    },
    /// A divisor for each frequency, as GGUF stores them in `rope_freqs.weight`.
    Divisors(Vec<f32>),
}

/// The settings of [`RopeKind::Yarn`].
#[derive(Clone, PartialEq, Debug)]
pub struct Yarn {
    /// The divisor of low frequencies.
    pub factor: f64,
    /// The context length of the first training.
    pub original: usize,
    /// What cosines and sines are multiplied by.
    pub attention_factor: f64,
    /// Frequencies that turn more often than this within `original` are kept.
    pub beta_fast: f64,
    /// Frequencies that turn less often than this within `original` are divided.
    pub beta_slow: f64,
    /// Whether the bounds are rounded outward to whole dimensions.
    pub truncate: bool,
}

impl Yarn {
    /// The paper's attention factor for `factor`, after DeepSeek's two corrections when both are
    /// given and not zero.
    #[must_use]
    pub fn attention_factor(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
        let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        match (mscale, mscale_all_dim) {
            (Some(m), Some(all)) if m != 0.0 && all != 0.0 => scale(m) / scale(all),
            _ => scale(1.0),
        }
    }
}

/// The numbers from which a rotation is made.
#[derive(Clone, PartialEq, Debug)]
pub struct Frequencies {
    /// The angle in radians by which one step of position turns each pair: `[head_dim / 2]`.
    pub inv_freq: Vec<f32>,
    /// What cosines and sines are multiplied by.
    pub attention_factor: f32,
}

impl Rope {
    /// Whether the frequencies depend on the length of the text.
    #[must_use]
    pub fn depends_on_length(&self) -> bool {
        matches!(self.kind, RopeKind::Dynamic { .. } | RopeKind::LongRope { .. })
    }

    /// The frequencies for heads of `head_dim` elements in a text of `length` tokens.
    ///
    /// # Panics
    /// When a list of divisors has not `head_dim / 2` elements; [`Config`](crate::Config) checks it.
    #[must_use]
    pub fn frequencies(&self, head_dim: usize, length: usize) -> Frequencies {
        let theta = self.theta as f32;
        let plain = || powers(theta, head_dim).iter().map(|p| 1.0 / p).collect::<Vec<f32>>();
        let (inv_freq, attention_factor) = match &self.kind {
            RopeKind::Default => (plain(), 1.0),
            RopeKind::Linear { factor } => (plain().iter().map(|f| f / *factor as f32).collect(), 1.0),
            RopeKind::Dynamic { factor, max_positions } => {
                let theta = dynamic_theta(self.theta, *factor, *max_positions, head_dim, length);
                (powers(theta, head_dim).iter().map(|p| 1.0 / p).collect(), 1.0)
            }
            RopeKind::Llama3 { factor, low, high, original } => {
                let blend = |f: &f32| llama3(*f, *factor, *low, *high, *original as f64);
                (plain().iter().map(blend).collect(), 1.0)
            }
            RopeKind::Yarn(yarn) => (yarn_frequencies(self.theta, yarn, head_dim), yarn.attention_factor),
            RopeKind::LongRope { short, long, attention_factor, original } => {
                let divisors = if length > *original { long } else { short };
                (divided(&powers(theta, head_dim), divisors), *attention_factor)
            }
            RopeKind::Divisors(divisors) => {
                assert_eq!(divisors.len(), head_dim / 2, "a divisor for each frequency");
                (plain().iter().zip(divisors).map(|(f, d)| f / d).collect(), 1.0)
            }
        };
        Frequencies { inv_freq, attention_factor: attention_factor as f32 }
    }
}

/// `base^(2i / dim)` for each pair `i`, each step rounded to f32.
fn powers(base: f32, dim: usize) -> Vec<f32> {
    let power = |i: usize| f64::from(base).powf(f64::from((2 * i) as f32 / dim as f32)) as f32;
    (0..dim / 2).map(power).collect()
}

fn divided(powers: &[f32], divisors: &[f32]) -> Vec<f32> {
    assert_eq!(divisors.len(), powers.len(), "a divisor for each frequency");
    powers.iter().zip(divisors).map(|(p, d)| 1.0 / (d * p)).collect()
}

/// The base for a text of `length` tokens. Transformers computes it from tensors, in f32, as soon
/// as the text is longer than `max_positions`; before that it comes out as `theta`.
fn dynamic_theta(theta: f64, factor: f64, max_positions: usize, dim: usize, length: usize) -> f32 {
    if length <= max_positions || dim <= 2 {
        return theta as f32;
    }
    let stretch = factor as f32 * length as f32 / max_positions as f32 - (factor - 1.0) as f32;
    let exponent = (dim as f64 / (dim - 2) as f64) as f32;
    f64::from(stretch).powf(f64::from(exponent)) as f32 * theta as f32
}

fn llama3(f: f32, factor: f64, low: f64, high: f64, original: f64) -> f32 {
    // A number divided by a tensor is, in PyTorch, the reciprocal times the number.
    let wavelength = (1.0 / f) * (2.0 * PI) as f32;
    let (long, short) = ((original / low) as f32, (original / high) as f32);
    if wavelength > long {
        return f / factor as f32;
    }
    if wavelength < short {
        return f;
    }
    let smooth = ((1.0 / wavelength) * original as f32 - low as f32) / (high - low) as f32;
    (1.0 - smooth) * f / factor as f32 + smooth * f
}

fn yarn_frequencies(theta: f64, yarn: &Yarn, dim: usize) -> Vec<f32> {
    // The dimension whose frequency turns `turns` times within the original context.
    let dimension = |turns: f64| dim as f64 * (yarn.original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (dimension(yarn.beta_fast), dimension(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
    if low == high {
        high += 0.001; // as Transformers does, against dividing by zero
    }
    let blend = |(i, power): (usize, &f32)| {
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let keep = 1.0 - ramp;
        let (kept, scaled) = (1.0 / power, 1.0 / (yarn.factor as f32 * power));
        scaled * (1.0 - keep) + kept * keep
    };
    powers(theta as f32, dim).iter().enumerate().map(blend).collect()
}

#[cfg(test)]
mod tests;
