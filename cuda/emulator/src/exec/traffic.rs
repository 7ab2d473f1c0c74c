//! What a request costs on a GPU: sectors of global memory, passes over the banks of shared memory.

use crate::arith::Lanes;
use crate::memory::bits;

/// Distinct 32-byte sectors that the lanes touch.
pub(super) fn sectors(addresses: &Lanes, bytes: u32, active: u32) -> u64 {
    let mut seen = [0; 64];
    let mut count = 0;
    let mut ascending = true;
    for lane in bits(active) {
        let address = addresses[lane as usize];
        // An aligned access of up to 32 bytes lies in one sector.
        let sector = address / 32;
        if count == 0 || seen[count - 1] != sector {
            ascending &= count == 0 || seen[count - 1] < sector;
            seen[count] = sector;
            count += 1;
        }
    }
    debug_assert!(bytes <= 32);
    if ascending {
        return count as u64;
    }
    let seen = &mut seen[..count];
    seen.sort_unstable();
    1 + seen.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64
}

/// Passes over the 32 banks of 4 bytes beyond the least. Lanes that touch the same word share it. 8-byte accesses go half a
/// warp at a time and 16-byte ones a quarter, each with passes of its own.
pub(super) fn bank_conflicts(offsets: &Lanes, bytes: u32, active: u32) -> u64 {
    let words = bytes.div_ceil(4).min(4);
    let lanes = 32 / words;
    let step = (1u64 << lanes) - 1;
    let mut extra = 0;
    for part in 0..words {
        let part = active & (step << (part * lanes)) as u32;
        if part != 0 {
            extra += passes(offsets, words, part) - 1;
        }
    }
    extra
}

/// The most distinct words that lanes want from one bank.
fn passes(offsets: &Lanes, words: u32, part: u32) -> u64 {
    /// The end of a chain.
    const NONE: u8 = u8::MAX;
    // The distinct words, at most 32 in all, chained by bank.
    let mut distinct = [0u32; 32];
    let mut next = [NONE; 32];
    let mut heads = [NONE; 32];
    let mut lengths = [0u8; 32];
    let mut count = 0;
    for lane in bits(part) {
        let first = (offsets[lane as usize] / 4) as u32;
        for word in first..first + words {
            let bank = (word % 32) as usize;
            let mut at = heads[bank];
            while at != NONE && distinct[usize::from(at)] != word {
                at = next[usize::from(at)];
            }
            if at == NONE {
                distinct[count] = word;
                next[count] = heads[bank];
                heads[bank] = count as u8;
                lengths[bank] += 1;
                count += 1;
            }
        }
    }
    lengths.into_iter().max().map_or(1, u64::from)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// Addresses of aligned accesses, near each other or not, and who is active.
    fn request() -> impl Strategy<Value = (Lanes, u32, u32)> {
        let bytes = prop::sample::select(vec![1u32, 2, 4, 8, 16]);
        let offsets = prop_oneof![
            proptest::collection::vec(0..2000u64, 32),
            (0..64u64, 0..9u64).prop_map(|(first, step)| (0..32).map(|lane| first + lane * step).collect()),
        ];
        (bytes, offsets, prop_oneof![Just(u32::MAX), 1..=u32::MAX]).prop_map(|(bytes, offsets, active)| {
            (std::array::from_fn(|lane| offsets[lane] * u64::from(bytes)), bytes, active)
        })
    }

    proptest! {
        #[test]
        fn sectors_as_a_set((addresses, bytes, active) in request()) {
            let set: BTreeSet<u64> = bits(active).map(|lane| addresses[lane as usize] / 32).collect();
            prop_assert_eq!(sectors(&addresses, bytes, active), set.len() as u64);
        }

        #[test]
        fn conflicts_as_sets((offsets, bytes, active) in request()) {
            let words = u64::from(bytes.div_ceil(4));
            let lanes = 32 / words as u32;
            let mut extra = 0;
            for part in 0..32 / lanes {
                let mut banks: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
                for lane in bits(active).filter(|lane| lane / lanes == part) {
                    let first = offsets[lane as usize] / 4;
                    (first..first + words).for_each(|word| {
                        banks.entry(word % 32).or_default().insert(word);
                    });
                }
                extra += banks.values().map(|words| words.len() as u64).max().map_or(0, |passes| passes - 1);
            }
            prop_assert_eq!(bank_conflicts(&offsets, bytes, active), extra);
        }
    }
}
