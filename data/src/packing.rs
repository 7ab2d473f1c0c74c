//! Best-fit-decreasing packing of rows into bins.

use std::collections::BTreeSet;

/// Packs rows of the given `lengths` (tokens) into bins of at most `capacity` tokens.
///
/// Rows are taken longest first, and each goes into the fullest bin that still has room for it
/// (Johnson, "Near-optimal bin packing algorithms", 1973: at most 11/9 of the optimum). Equal lengths
/// keep their order and equal bins are taken oldest first, so the result is a function of the input
/// alone. A row longer than `capacity` gets a bin of its own.
#[must_use]
pub fn pack(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));

    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut room: BTreeSet<(usize, usize)> = BTreeSet::new(); // (free tokens, bin)
    for row in order {
        let length = lengths[row];
        let fullest = room.range((length, 0)..).next().copied();
        let (free, bin) = fullest.unwrap_or_else(|| {
            bins.push(Vec::new());
            (capacity.max(length), bins.len() - 1)
        });
        room.remove(&(free, bin));
        room.insert((free - length, bin));
        bins[bin].push(row);
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn packs_by_hand() {
        assert_eq!(pack(&[5, 7, 3, 2, 3], 10), [vec![1, 2], vec![0, 4, 3]]);
        assert_eq!(pack(&[], 10), Vec::<Vec<usize>>::new());
        assert_eq!(pack(&[12, 4], 10), [vec![0], vec![1]]);
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_bin_and_no_bin_overflows(lengths in prop::collection::vec(1usize..=64, 0..200)) {
            let bins = pack(&lengths, 64);
            let mut rows: Vec<usize> = bins.iter().flatten().copied().collect();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>());
            let fill = |bin: &Vec<usize>| bin.iter().map(|&row| lengths[row]).sum::<usize>();
            prop_assert!(bins.iter().all(|bin| fill(bin) <= 64));
            // Best fit never leaves two bins that would fit into one.
            let mut fills: Vec<usize> = bins.iter().map(fill).collect();
            fills.sort_unstable();
            prop_assert!(fills.len() < 2 || fills[0] + fills[1] > 64);
        }
    }
}
