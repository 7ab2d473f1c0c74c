//! Choosing a token from its logits, in integers: their sums do not depend on the order of the terms, so a GPU, whose threads
//! add up in another order (`cuda/kernels/sample.cu`), chooses the same token.

use super::math::exp;
use crate::philox::Key;
use crate::{Error, Result};

/// How a token is chosen. Temperature, then top-k, then top-p, as transformers applies them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Choice {
    /// 0 takes the likeliest token, the first of equals; above, logits are divided by it.
    pub temperature: f32,
    /// Choose among this many likeliest tokens; 0 is all of them.
    pub top_k: usize,
    /// Choose among the fewest likeliest tokens whose probabilities reach this sum; 1 is all of them.
    pub top_p: f32,
    /// The stream of random numbers.
    pub key: Key,
    /// Which number of the stream is taken, below 2⁴⁸.
    pub step: u64,
}

/// What is chosen from logits of which one is NaN.
pub const IS_NAN: i32 = -1;
/// What is chosen from logits that leave nothing to choose from: all are minus infinity, or one is infinite and the
/// temperature not 0.
pub const IS_EMPTY: i32 = -2;

impl Choice {
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

    /// `top_p` in units of 2⁻⁶⁴, which hold every f32 from 2⁻⁴⁰ on; 0 for 1 and more.
    #[must_use]
    pub fn share(&self) -> u64 {
        const UNIT: f64 = 18_446_744_073_709_551_616.0;
        if self.top_p >= 1.0 { 0 } else { ((f64::from(self.top_p) * UNIT) as u64).max(1) }
    }

    /// A random number of 53 bits as a fraction of 2⁶⁴, for row `row`.
    fn fraction(&self, row: usize) -> u64 {
        let [a, b, ..] = self.key.words(self.step.wrapping_add((row as u64) << 48));
        (u64::from(a) << 21 ^ u64::from(b) >> 11) << 11
    }

    /// The id chosen from row `row` of a batch of logits, or [`IS_NAN`] or [`IS_EMPTY`].
    #[must_use]
    pub fn choose(&self, logits: &[f32], row: usize) -> i32 {
        if logits.iter().any(|l| l.is_nan()) {
            return IS_NAN;
        }
        let Some(best) = (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best }) else {
            return IS_EMPTY;
        };
        let largest = logits[best];
        if largest == f32::NEG_INFINITY || (largest == f32::INFINITY && self.temperature > 0.0) {
            return IS_EMPTY;
        }
        if self.temperature == 0.0 {
            return best as i32;
        }
        let tokens: Vec<Token> = logits.iter().map(|&l| Token::new(l, largest, self.temperature)).collect();
        let mut kept = Cut { key: 0, ties: 0 };
        if (1..tokens.len()).contains(&self.top_k) {
            kept = reach(&tokens, kept, self.top_k as u64, |_| 1);
        }
        if self.share() > 0 {
            let total = kept.of(&tokens).map(|(_, token)| token.weight).sum();
            kept = reach(&tokens, kept, least_not_below(total, self.share()), |token| token.weight);
        }
        let total: u64 = kept.of(&tokens).map(|(_, token)| token.weight).sum();
        let mut left = ((u128::from(self.fraction(row)) * u128::from(total)) >> 64) as u64;
        for (id, token) in kept.of(&tokens) {
            match left.checked_sub(token.weight) {
                Some(rest) => left = rest,
                None => return id as i32,
            }
        }
        unreachable!("a fraction below 1 of the sum is within it")
    }
}

/// The least integer that is not below `x` times `share` / 2⁶⁴.
fn least_not_below(x: u64, share: u64) -> u64 {
    (u128::from(x) * u128::from(share)).div_ceil(1 << 64) as u64
}

/// What of a token counts.
struct Token {
    /// Orders as logits do; zeros are equal.
    key: u32,
    /// exp((logit - largest) / temperature) in units of 2⁻⁴⁰.
    weight: u64,
}

impl Token {
    fn new(logit: f32, largest: f32, temperature: f32) -> Self {
        const ONE: f32 = 1_099_511_627_776.0;
        let bits = if logit == 0.0 { 0 } else { logit.to_bits() };
        let key = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
        Token { key, weight: (exp((logit - largest) / temperature) * ONE).round_ties_even() as u64 }
    }
}

/// The tokens above `key`, and the first `ties` of those at it.
#[derive(Clone, Copy)]
struct Cut {
    key: u32,
    ties: u64,
}

impl Cut {
    /// The tokens of the set with their ids, in the order of these.
    fn of(self, tokens: &[Token]) -> impl Iterator<Item = (usize, &Token)> {
        let mut ties = self.ties;
        tokens.iter().enumerate().filter(move |(_, token)| {
            let tied = token.key == self.key && ties > 0;
            ties -= u64::from(tied);
            tied || token.key > self.key
        })
    }
}

/// The fewest likeliest of the tokens in `kept` whose values reach `limit`, which is above 0 and at most the sum of all: digit
/// by digit of their keys, from the upper one on.
fn reach(tokens: &[Token], kept: Cut, limit: u64, value: impl Fn(&Token) -> u64) -> Cut {
    let (mut prefix, mut left) = (0, limit);
    for shift in [24, 16, 8, 0] {
        let mut bins = [0u64; 256];
        for (_, token) in kept.of(tokens).filter(|(_, token)| (token.key ^ prefix) >> shift < 256) {
            bins[(token.key >> shift & 255) as usize] += value(token);
        }
        let mut digit = 255;
        while bins[digit] < left {
            left -= bins[digit];
            digit -= 1;
        }
        prefix |= (digit as u32) << shift;
    }
    let tie = tokens.iter().find(|token| token.key == prefix).map_or(1, value);
    Cut { key: prefix, ties: left.div_ceil(tie) }
}
