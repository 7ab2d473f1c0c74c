//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).
//!
//! A number depends on its key and its counter alone, so nothing runs ahead: a mask is made again in the backward
//! pass, and a resumed run draws what the uninterrupted one would have drawn.

/// What a stream of random numbers belongs to (seed, step, layer, ..), hashed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key(pub [u32; 2]);

impl Key {
    /// The key of a structure: `Key::derive(&[seed, step, layer])`. Sequences that differ in length or in any part
    /// give unrelated keys.
    #[must_use]
    pub fn derive(parts: &[u64]) -> Self {
        let absorb = |key: [u32; 2], part: u64, last: u32| {
            let [a, b, ..] = philox4x32(key, [part as u32, (part >> 32) as u32, last, 0]);
            [a, b]
        };
        let key = parts.iter().fold([0, 0], |key, &part| absorb(key, part, 0));
        Key(absorb(key, parts.len() as u64, 1))
    }

    /// The key of part `part` of what this key stands for.
    #[must_use]
    pub fn child(self, part: u64) -> Self {
        let [a, b, ..] = philox4x32(self.0, [part as u32, (part >> 32) as u32, 0, 2]);
        Key([a, b])
    }

    /// Four random words, the `counter`-th of this key.
    #[inline(always)]
    #[must_use]
    pub fn words(self, counter: u64) -> [u32; 4] {
        philox4x32(self.0, [counter as u32, (counter >> 32) as u32, 0, 0])
    }
}

/// Ten rounds of Philox4x32.
#[inline(always)]
#[must_use]
pub fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    /// Weyl constants: the golden ratio and sqrt(3) - 1.
    const BUMPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let multiply = |a: u32, b: u32| {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    };
    let ([mut k0, mut k1], mut c) = (key, counter);
    for _ in 0..10 {
        let (hi0, lo0) = multiply(MULTIPLIERS[0], c[0]);
        let (hi1, lo1) = multiply(MULTIPLIERS[1], c[2]);
        c = [hi1 ^ c[1] ^ k0, lo1, hi0 ^ c[3] ^ k1, lo0];
        (k0, k1) = (k0.wrapping_add(BUMPS[0]), k1.wrapping_add(BUMPS[1]));
    }
    c
}

/// A random word as a number in [0, 1): its upper 24 bits, all that an f32 can hold evenly.
#[inline(always)]
#[must_use]
pub fn uniform(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kat_vectors` of Random123 1.14.
    #[test]
    fn known_answers() {
        let cases = [
            ([0; 2], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 2], [!0; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (key, counter, want) in cases {
            assert_eq!(philox4x32(key, counter), want);
        }
    }

    #[test]
    fn keys_tell_structures_apart() {
        let parts: [&[u64]; 8] = [&[], &[0], &[0, 0], &[1], &[1, 0], &[0, 1], &[1 << 32], &[1, 1 << 32]];
        let keys: std::collections::HashSet<Key> = parts.iter().map(|p| Key::derive(p)).collect();
        assert_eq!(keys.len(), parts.len());
    }

    #[test]
    fn uniform_fills_the_unit_interval() {
        assert_eq!((uniform(0), uniform(u32::MAX)), (0.0, 1.0 - 2f32.powi(-24)));
        let key = Key::derive(&[7]);
        let mean = (0..25_000).flat_map(|i| key.words(i)).map(|w| f64::from(uniform(w))).sum::<f64>() / 1e5;
        assert!((mean - 0.5).abs() < 5.0 * (1.0 / 12f64).sqrt() / 1e5f64.sqrt());
    }
}
