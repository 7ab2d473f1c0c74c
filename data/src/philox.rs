//! Keys and draws of shuffles, on the counter-based generator of [`kinglet_tensor::philox`]: a draw is a pure function of
//! a key and a counter, so a position is all the state there is.

use kinglet_tensor::philox::philox4x32;

/// One key out of a path of numbers, such as (seed, epoch) or (seed, step, layer, site).
///
/// Every word is mixed in by one Philox call whose counter also holds its place and the length, so
/// that paths of different lengths never share a prefix's key.
#[must_use]
pub fn hash(path: &[u64]) -> u64 {
    path.iter().enumerate().fold(0, |key, (place, &word)| {
        let [low, high] = words(word);
        let mixed = philox4x32(words(key), [low, high, place as u32, path.len() as u32]);
        u64::from(mixed[0]) | u64::from(mixed[1]) << 32
    })
}

/// A uniform number below `bound` from draw `index` of `key`.
pub(crate) fn below(key: u64, index: u64, bound: u64) -> u64 {
    let [low, high] = words(index);
    let draw = philox4x32(words(key), [low, high, 0, 0]);
    let uniform = u64::from(draw[0]) | u64::from(draw[1]) << 32;
    // The high half of the 128-bit product: no modulo, and a bias below bound / 2^64.
    ((u128::from(uniform) * u128::from(bound)) >> 64) as u64
}

fn words(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_every_word_its_place_and_the_length() {
        let paths: [&[u64]; 7] = [&[], &[0], &[0, 0], &[1], &[1, 2], &[2, 1], &[1, 2, 0]];
        for (i, a) in paths.iter().enumerate() {
            for b in &paths[i + 1..] {
                assert_ne!(hash(a), hash(b), "{a:?} and {b:?}");
            }
        }
        assert_ne!(hash(&[1]), hash(&[1 << 32]), "both halves of a word count");
    }

    #[test]
    fn below_stays_below_and_reaches_all() {
        let mut seen = [0usize; 10];
        for i in 0..1000 {
            seen[below(7, i, 10) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| (50..150).contains(&n)), "{seen:?}");
        assert_eq!(below(7, 3, 1), 0);
    }
}
