//! Deterministic, resumable batches of token rows.
//!
//! A place in the data is (epoch, index): [`Batches::epoch`] orders the rows of an epoch by a keyed
//! permutation, and [`Epoch::batch`] builds any of its batches, so resuming needs no replay.

use kinglet_tensor::{Error, Result};

use crate::example::Example;
use crate::packing::pack;
use crate::philox::{below, hash};

/// How rows become batches.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    /// Rows of a batch; with packing, bins.
    pub batch_size: usize,
    /// `Some(n)`: rows are packed into bins of at most `n` tokens.
    pub pack_to: Option<usize>,
    /// Whether each epoch has an order of its own; otherwise the order of the file.
    pub shuffle: bool,
    /// The seed of the order.
    pub seed: u64,
}

/// The rows of a data set, grouped for batching.
#[derive(Debug)]
pub struct Batches {
    examples: Vec<Example>,
    /// Rows that always travel together: one each, or a bin.
    groups: Vec<Vec<usize>>,
    options: BatchOptions,
}

/// One micro-batch: segments laid end to end, never padded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    /// Token ids, `[tokens]`.
    pub ids: Vec<i32>,
    /// Positions, `[tokens]`: they restart at 0 in every segment.
    pub positions: Vec<i32>,
    /// Offsets of the segments, `[rows + 1]`, from 0 to `tokens`. No segment sees another.
    pub segments: Vec<usize>,
    /// What is to be predicted at each token, `[tokens]`: the id of the next token, or -1.
    pub targets: Vec<i32>,
    /// The source line of each segment, `[rows]`, from 1.
    pub lines: Vec<usize>,
}

impl TokenBatch {
    /// The number of predicted tokens.
    #[must_use]
    pub fn target_tokens(&self) -> usize {
        self.targets.iter().filter(|&&t| t >= 0).count()
    }

    /// Lays `rows` end to end.
    #[must_use]
    pub fn of<'a>(rows: impl IntoIterator<Item = &'a Example>) -> Self {
        let mut batch = TokenBatch {
            ids: Vec::new(),
            positions: Vec::new(),
            segments: vec![0],
            targets: Vec::new(),
            lines: Vec::new(),
        };
        for row in rows {
            batch.ids.extend(&row.ids);
            batch.positions.extend(0..row.ids.len() as i32);
            batch.targets.extend(row.shifted_targets());
            batch.segments.push(batch.ids.len());
            batch.lines.push(row.line);
        }
        batch
    }
}

impl Batches {
    /// Groups `examples` for batching.
    ///
    /// # Errors
    /// No examples, a batch size of 0, or a bin size of 0.
    pub fn new(examples: Vec<Example>, options: BatchOptions) -> Result<Self> {
        if examples.is_empty() {
            return Err(Error::invalid("batches: there is no row to train on"));
        }
        if options.batch_size == 0 || options.pack_to == Some(0) {
            return Err(Error::invalid("batches: the batch size and the length must be at least 1"));
        }
        let groups = match options.pack_to {
            None => (0..examples.len()).map(|row| vec![row]).collect(),
            Some(capacity) => {
                let lengths: Vec<usize> = examples.iter().map(|e| e.ids.len()).collect();
                pack(&lengths, capacity)
            }
        };
        Ok(Batches { examples, groups, options })
    }

    /// The rows, in the order of the file.
    #[must_use]
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Rows of an epoch, or bins with packing.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Batches of an epoch; the last one may be smaller.
    #[must_use]
    pub fn batches_per_epoch(&self) -> usize {
        self.groups.len().div_ceil(self.options.batch_size)
    }

    /// A batch of the longest rows (or the fullest bins), with as many targets as the rows that have most of them: no batch of
    /// any epoch has more tokens or more targets.
    #[must_use]
    pub fn largest(&self) -> TokenBatch {
        self.largest_of(self.options.batch_size)
    }

    /// As [`Batches::largest`], were there `batch_size` rows (or bins) in a batch.
    #[must_use]
    pub fn largest_of(&self, batch_size: usize) -> TokenBatch {
        let most_by = |count: &dyn Fn(&Example) -> usize| {
            let mut groups: Vec<&[usize]> = self.groups.iter().map(Vec::as_slice).collect();
            groups.sort_by_key(|group| std::cmp::Reverse(self.sum(group, count)));
            TokenBatch::of(groups.into_iter().take(batch_size).flatten().map(|&row| &self.examples[row]))
        };
        let mut batch = most_by(&|row| row.ids.len());
        let missing = most_by(&Example::target_tokens).target_tokens().saturating_sub(batch.target_tokens());
        let others = batch.targets.iter_mut().filter(|target| **target < 0);
        others.take(missing).for_each(|target| *target = 0);
        batch
    }

    /// At most `count` batches of the first epoch, were there `batch_size` rows (or bins) in each: evenly from the one with the
    /// most tokens to the one with the fewest.
    #[must_use]
    pub fn spread_of(&self, batch_size: usize, count: usize) -> Vec<TokenBatch> {
        let order = self.epoch(0).order;
        let rows = |groups: &[usize]| groups.iter().flat_map(|&group| self.groups[group].clone()).collect();
        let mut batches: Vec<Vec<usize>> = order.chunks(batch_size).map(rows).collect();
        batches.sort_by_key(|rows| std::cmp::Reverse(self.sum(rows, &|row| row.ids.len())));
        let count = count.min(batches.len());
        let chosen = (0..count).map(|i| &batches[i * (batches.len() - 1) / (count - 1).max(1)]);
        chosen.map(|rows| TokenBatch::of(rows.iter().map(|&row| &self.examples[row]))).collect()
    }

    /// What the rows have together.
    fn sum(&self, rows: &[usize], count: &dyn Fn(&Example) -> usize) -> usize {
        rows.iter().map(|&row| count(&self.examples[row])).sum()
    }

    /// The order of epoch `epoch`, counted from 0.
    #[must_use]
    pub fn epoch(&self, epoch: u64) -> Epoch<'_> {
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        if self.options.shuffle {
            shuffle(&mut order, hash(&[self.options.seed, epoch]));
        }
        Epoch { batches: self, order }
    }
}

/// One pass over the data in its own order.
#[derive(Debug)]
pub struct Epoch<'a> {
    batches: &'a Batches,
    order: Vec<usize>,
}

impl Epoch<'_> {
    /// Batch `index` of this epoch.
    ///
    /// # Errors
    /// An index past the end of the epoch.
    pub fn batch(&self, index: usize) -> Result<TokenBatch> {
        let size = self.batches.options.batch_size;
        let Some(groups) = self.order.chunks(size).nth(index) else {
            let count = self.batches.batches_per_epoch();
            return Err(Error::invalid(format!("batches: no batch {index} in an epoch of {count}")));
        };
        let rows = groups.iter().flat_map(|&group| &self.batches.groups[group]);
        Ok(TokenBatch::of(rows.map(|&row| &self.batches.examples[row])))
    }
}

/// Fisher-Yates, with the draws of `key`.
fn shuffle(order: &mut [usize], key: u64) {
    for last in (1..order.len()).rev() {
        let pick = below(key, last as u64, last as u64 + 1) as usize;
        order.swap(last, pick);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example(line: usize, length: usize) -> Example {
        Example {
            ids: (0..length).map(|i| (line * 100 + i) as i32).collect(),
            is_target: (0..length).map(|i| i >= length / 2).collect(),
            line,
        }
    }

    fn options(batch_size: usize) -> BatchOptions {
        BatchOptions { batch_size, pack_to: None, shuffle: true, seed: 42 }
    }

    fn lines(batches: &Batches, epoch: u64) -> Vec<usize> {
        let epoch = batches.epoch(epoch);
        (0..batches.batches_per_epoch()).flat_map(|i| epoch.batch(i).unwrap().lines).collect()
    }

    #[test]
    fn lays_rows_end_to_end() {
        let batch = TokenBatch::of([&example(1, 4), &example(2, 2)]);
        assert_eq!(batch.ids, [100, 101, 102, 103, 200, 201]);
        assert_eq!(batch.positions, [0, 1, 2, 3, 0, 1]);
        assert_eq!(batch.segments, [0, 4, 6]);
        // The last token of a segment predicts nothing: the next segment is another document.
        assert_eq!(batch.targets, [-1, 102, 103, -1, 201, -1]);
        assert_eq!(batch.lines, [1, 2]);
        assert_eq!(batch.target_tokens(), 3);
    }

    #[test]
    fn every_epoch_is_a_permutation_of_its_own() {
        let batches = Batches::new((1..=23).map(|i| example(i, 4)).collect(), options(4)).unwrap();
        assert_eq!(batches.batches_per_epoch(), 6);
        assert_eq!(batches.epoch(0).batch(5).unwrap().lines.len(), 3, "the last batch is smaller");
        let first = lines(&batches, 0);
        assert_ne!(first, lines(&batches, 1));
        assert_eq!(first, lines(&batches, 0));
        let mut sorted = first;
        sorted.sort_unstable();
        assert_eq!(sorted, (1..=23).collect::<Vec<_>>());
        assert!(batches.epoch(0).batch(6).unwrap_err().is_invalid());
    }

    #[test]
    fn the_order_of_the_file_without_shuffle() {
        let options = BatchOptions { shuffle: false, ..options(2) };
        let batches = Batches::new((1..=5).map(|i| example(i, 4)).collect(), options).unwrap();
        assert_eq!(lines(&batches, 3), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn the_seed_decides_the_order() {
        let rows = || (1..=30).map(|i| example(i, 2)).collect();
        let order = |seed| lines(&Batches::new(rows(), BatchOptions { seed, ..options(3) }).unwrap(), 0);
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn the_largest_batch_has_the_longest_rows_or_the_fullest_bins() {
        let rows = || [3, 9, 4, 8, 5].iter().enumerate().map(|(i, &n)| example(i + 1, n)).collect::<Vec<_>>();
        let batches = Batches::new(rows(), options(2)).unwrap();
        assert_eq!(batches.largest().lines, [2, 4]);
        let packed = Batches::new(rows(), BatchOptions { pack_to: Some(12), ..options(1) }).unwrap();
        assert_eq!(packed.largest().ids.len(), 12, "9 + 3 or 8 + 4");
    }

    #[test]
    fn no_batch_has_more_tokens_or_targets_than_the_largest() {
        // A short row that is all target beside long ones of few.
        let row = |line, length, targets| Example {
            is_target: (0..length).map(|i| i + targets >= length).collect(),
            ..example(line, length)
        };
        let rows = || vec![row(1, 20, 1), row(2, 19, 2), row(3, 9, 8), row(4, 7, 6), row(5, 3, 2)];
        let batches = Batches::new(rows(), options(2)).unwrap();
        let largest = batches.largest();
        assert_eq!((largest.ids.len(), largest.target_tokens()), (39, 14));
        assert_eq!(batches.largest_of(5).target_tokens(), 19);
        let spread = batches.spread_of(2, 9);
        assert_eq!(spread.len(), 3, "all of the epoch");
        assert!(spread.windows(2).all(|pair| pair[0].ids.len() >= pair[1].ids.len()));
        let ends = batches.spread_of(2, 2);
        assert_eq!(ends, [spread[0].clone(), spread[2].clone()]);
        assert_eq!(batches.spread_of(1, 1)[0].lines, [1]);
    }

    #[test]
    fn nothing_to_train_on_is_an_error() {
        assert!(Batches::new(Vec::new(), options(1)).unwrap_err().is_invalid());
        assert!(Batches::new(vec![example(1, 2)], options(0)).unwrap_err().is_invalid());
    }

    proptest! {
        #[test]
        fn packed_batches_keep_every_row_whole(
            lengths in prop::collection::vec(1usize..=40, 1..60), batch_size in 1usize..5, seed: u64, epoch: u64,
        ) {
            let examples: Vec<Example> = lengths.iter().enumerate().map(|(i, &n)| example(i + 1, n)).collect();
            let options = BatchOptions { batch_size, pack_to: Some(40), shuffle: true, seed };
            let batches = Batches::new(examples, options).unwrap();
            let epoch = batches.epoch(epoch);
            let mut seen = Vec::new();
            for index in 0..batches.batches_per_epoch() {
                let batch = epoch.batch(index).unwrap();
                prop_assert!(batch.ids.len() <= 40 * batch_size);
                prop_assert_eq!(batch.segments.len(), batch.lines.len() + 1);
                for (span, &line) in batch.segments.windows(2).zip(&batch.lines) {
                    let alone = TokenBatch::of([&batches.examples()[line - 1]]);
                    prop_assert_eq!(&batch.ids[span[0]..span[1]], &alone.ids);
                    prop_assert_eq!(&batch.positions[span[0]..span[1]], &alone.positions);
                    prop_assert_eq!(&batch.targets[span[0]..span[1]], &alone.targets);
                    seen.push(line);
                }
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (1..=lengths.len()).collect::<Vec<_>>());
        }
    }
}
