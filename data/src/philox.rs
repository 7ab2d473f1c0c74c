//! Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw,
//! "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
//!
//! A draw is a pure function of a key and a counter: nothing runs ahead, so a position is all the
//! state there is.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Four independent uniform words for `counter` under `key`.
#[must_use]
pub fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let mut k = key;
    let mut c = counter;
    for _ in 0..ROUNDS {
        let (high0, low0) = mul_hi_lo(MULTIPLIER[0], c[0]);
        let (high1, low1) = mul_hi_lo(MULTIPLIER[1], c[2]);
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

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

fn mul_hi_lo(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

fn words(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the authors' Random123 distribution (kat_vectors).
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        let cases = [
            ([0, 0], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 2], [ones; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (key, counter, expected) in cases {
            assert_eq!(philox4x32(key, counter), expected);
        }
    }

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
