//! The KV cache: keys and values of the tokens so far, in storage of its own.

use kinglet_tensor::{DType, Device, Error, Result, Tensor, ops};

/// Keys and values of one sequence, for every layer.
pub struct KvCache {
    layers: Vec<Layer>,
    len: usize,
    capacity: usize,
}

struct Layer {
    /// [capacity, kv_heads, d]
    k: Tensor,
    v: Tensor,
}

/// One layer's part of a cache during a forward pass.
pub(crate) struct LayerCache<'a> {
    layer: &'a mut Layer,
    /// Tokens before this pass.
    len: usize,
}

impl KvCache {
    /// Room for `capacity` tokens.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(
        layers: usize,
        capacity: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let new = || Tensor::zeros(&[capacity, kv_heads, head_dim], dtype, device);
        let layers = (0..layers).map(|_| Ok(Layer { k: new()?, v: new()? })).collect::<Result<_>>()?;
        Ok(KvCache { layers, len: 0, capacity })
    }

    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(crate) fn layer(&mut self, i: usize) -> LayerCache<'_> {
        LayerCache { layer: &mut self.layers[i], len: self.len }
    }

    /// Counts `tokens` as held, after every layer appended them.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    pub(crate) fn check_room(&self, tokens: usize) -> Result<()> {
        if self.len + tokens > self.capacity {
            let have = format!("{} of {} tokens are used", self.len, self.capacity);
            return Err(Error::invalid(format!("KV cache: no room for {tokens} more tokens, {have}")));
        }
        Ok(())
    }
}

impl LayerCache<'_> {
    /// Adds keys and values [t, kv_heads, d] and gives views of all so far.
    pub(crate) fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((append(&mut self.layer.k, self.len, k)?, append(&mut self.layer.v, self.len, v)?))
    }
}

fn append(cache: &mut Tensor, len: usize, new: &Tensor) -> Result<Tensor> {
    let row: usize = new.shape()[1..].iter().product();
    let held = || Error::aliased("KV cache: a view of it is still held");
    let place = cache.as_mut().ok_or_else(held)?.into_part(len * row, new.shape())?;
    ops::copy_into(new, place)?;
    cache.narrow(0, 0, len + new.shape()[0])
}
