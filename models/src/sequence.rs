//! What a forward pass reads: token ids, their positions, and where one sequence ends and the next begins.

use kinglet_tensor::ops::Segments;
use kinglet_tensor::{Device, Error, Result, Tensor};

/// Tokens of one or more sequences, laid end to end: never padded.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids, one a token.
    pub ids: Tensor,
    /// The position of each token in its own sequence, i32.
    pub positions: Tensor,
    /// Which tokens form a sequence, and which keys each sees.
    pub segments: Segments,
    /// See [`Batch::within`].
    pub(crate) reach: usize,
}

impl Batch {
    /// Sequence `i` is tokens `offsets[i]..offsets[i + 1]`; positions count from 0 in each.
    ///
    /// # Errors
    /// When `offsets` do not cut `ids` into pieces, or an id is negative.
    pub fn new(ids: &[i32], offsets: &[usize], device: &Device) -> Result<Self> {
        let segments = Segments::packed(offsets)?;
        segments.to_device(device)?;
        if offsets.last() != Some(&ids.len()) {
            return Err(Error::shape(
                "batch",
                format!("{} ids for offsets that end at {:?}", ids.len(), offsets.last()),
            ));
        }
        let positions = offsets.windows(2).flat_map(|w| 0..(w[1] - w[0]) as i32).collect();
        Self::of(ids, positions, segments, device)
    }

    /// Says that the tokens are part of a text of at least `length` tokens: where frequencies of rotation depend on the
    /// length, a prompt that is read in parts has those of the whole.
    #[must_use]
    pub fn within(mut self, length: usize) -> Self {
        self.reach = length;
        self
    }

    /// The next tokens of one sequence of which `cached` tokens are in a KV cache.
    ///
    /// # Errors
    /// When `ids` is empty.
    pub fn next(ids: &[i32], cached: usize, device: &Device) -> Result<Self> {
        let segments = Segments::one(ids.len(), cached + ids.len())?;
        segments.to_device(device)?;
        let positions = (cached..cached + ids.len()).map(|p| p as i32).collect();
        Self::of(ids, positions, segments, device)
    }

    /// Everything that kernels read of a batch is on the device from here on: no layer copies anything there.
    fn of(ids: &[i32], positions: Vec<i32>, segments: Segments, device: &Device) -> Result<Self> {
        let ids = Tensor::from_slice(ids, &[ids.len()], device)?;
        let positions = Tensor::from_vec(positions, ids.shape(), device)?;
        Ok(Batch { ids, positions, segments, reach: 0 })
    }

    /// The number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// A batch as the layers see it: computed once, shared by all of them.
#[derive(Clone)]
pub(crate) struct Sequence {
    /// Cosines and sines of the rotary angles [t, head_dim / 2].
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
    pub(crate) segments: Segments,
}

#[cfg(test)]
mod tests {
    use super::*;
    use kinglet_tensor::CpuOptions;

    #[test]
    fn positions_restart_in_every_packed_sequence_and_go_on_from_the_cache() {
        let device = Device::cpu(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        let batch = Batch::new(&[7, 8, 9, 7, 8], &[0, 3, 5], &device).unwrap();
        let positions = |batch: &Batch| batch.positions.to_vec::<i32>().unwrap();
        assert_eq!(positions(&batch), [0, 1, 2, 0, 1]);
        assert_eq!(positions(&Batch::next(&[7, 8], 3, &device).unwrap()), [3, 4]);
    }
}
