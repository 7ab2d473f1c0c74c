//! Which queries see which keys, on the host and as a table on CUDA devices.

use crate::cpu::attention::Segment;
use crate::{Device, Error, Result, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// Which query rows see which key rows: a list of segments, checked when made and cheap to clone.
#[derive(Clone, Debug)]
pub struct Segments(Arc<Shared>);

/// What clones share.
#[derive(Debug)]
struct Shared {
    list: Vec<Segment>,
    queries: usize,
    keys: usize,
    /// The list as kernels read it, one for each CUDA device that it was used on.
    tables: Mutex<Vec<Tensor>>,
}

impl Segments {
    /// The queries of the segments follow each other without gaps from row 0; keys may lie anywhere. Under a causal
    /// or window mask the last query of a segment stands at its last key.
    ///
    /// # Errors
    /// When a segment is empty, queries have gaps or overlap, or a number is too large.
    pub fn new(list: Vec<Segment>) -> Result<Self> {
        let (mut queries, mut keys) = (0usize, 0usize);
        for (i, s) in list.iter().enumerate() {
            let ends = s.q_start.checked_add(s.q_len).zip(s.kv_start.checked_add(s.kv_len));
            let Some((q_end, kv_end)) = ends.filter(|_| s.q_start == queries && s.q_len > 0 && s.kv_len > 0) else {
                return Err(Error::invalid(format!("attention: segment {i} is {s:?}, its queries start at {queries}")));
            };
            (queries, keys) = (q_end, keys.max(kv_end));
        }
        Ok(Segments(Arc::new(Shared { list, queries, keys, tables: Mutex::default() })))
    }

    /// Rows packed one after another, each seeing itself alone: row i is tokens `offsets[i]..offsets[i + 1]`.
    ///
    /// # Errors
    /// When the offsets do not start at 0 and rise.
    pub fn packed(offsets: &[usize]) -> Result<Self> {
        if offsets.first() != Some(&0) || offsets.windows(2).any(|w| w[0] >= w[1]) {
            return Err(Error::invalid(format!("attention: packed rows at offsets {offsets:?}")));
        }
        let row = |w: &[usize]| Segment { q_start: w[0], q_len: w[1] - w[0], kv_start: w[0], kv_len: w[1] - w[0] };
        Self::new(offsets.windows(2).map(row).collect())
    }

    /// One sequence of `queries` tokens at the end of `keys` (all of which they may see).
    ///
    /// # Errors
    /// When there are none of either.
    pub fn one(queries: usize, keys: usize) -> Result<Self> {
        Self::new(vec![Segment { q_start: 0, q_len: queries, kv_start: 0, kv_len: keys }])
    }

    /// The segments in the order of their queries.
    #[must_use]
    pub fn list(&self) -> &[Segment] {
        &self.0.list
    }

    /// How many query rows there are.
    #[must_use]
    pub fn queries(&self) -> usize {
        self.0.queries
    }

    /// How many key rows there are at least: one past the last that a segment names.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.0.keys
    }

    /// Puts the table of segments on a CUDA device, so that no kernel waits for it later; on other devices there is nothing
    /// to do. A batch does this once when it is made; clones share the table.
    ///
    /// # Errors
    /// When a number of a segment does not fit 32 bits, or the device fails.
    pub fn to_device(&self, device: &Device) -> Result<()> {
        if device.as_cuda().is_ok() {
            self.table(device)?;
        }
        Ok(())
    }

    /// The segments on a CUDA device: i32 [segments, 4] of q_start, q_len, kv_start and kv_len. Made at first use.
    pub(super) fn table(&self, device: &Device) -> Result<Tensor> {
        let mut tables = self.0.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.iter().find(|table| table.device() == device) {
            return Ok(table.clone());
        }
        let numbers = self.list().iter().flat_map(|s| [s.q_start, s.q_len, s.kv_start, s.kv_len]);
        let numbers: Result<Vec<i32>> = numbers.map(|n| i32::try_from(n).map_err(|_| too_large(n))).collect();
        let table = Tensor::from_vec(numbers?, &[self.list().len(), 4], device)?;
        tables.push(table.clone());
        Ok(table)
    }
}

fn too_large(number: usize) -> Error {
    Error::unsupported(format!("attention on a CUDA device: a segment with the number {number}"))
}
