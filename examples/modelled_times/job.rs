//! A row of the table: a kernel, at a size that the virtual GPU can run and at a real one.

use kinglet::tensor::ops;
use kinglet::tensor::philox::Key;
use kinglet::tensor::{DType, Device, Result, Tensor};

/// The small size has enough tiles for a whole GPU, so that the same kernel is chosen.
pub(crate) struct Job {
    pub(crate) name: &'static str,
    pub(crate) real: &'static str,
    /// How often the work that `run` does of the depth `depths[2]` fits into that of the real size.
    pub(crate) factor: f64,
    /// Two depths (of k, of tokens, of elements) that are run, and the real one: counts grow evenly with it.
    pub(crate) depths: [usize; 3],
    /// Bytes that the real size must read and write.
    pub(crate) bytes: f64,
    /// Floating-point operations of the real size, as usually counted; 0 where nobody counts them.
    pub(crate) flops: f64,
    /// Somebody's figures for the real size, on an A100 and on an H100: whose, where they stand, and how they were scaled.
    /// [`NONE_FOUND`] where none was found for that GPU and a shape that can be compared.
    pub(crate) published: [&'static str; 2],
    pub(crate) run: fn(&Device, usize) -> Result<()>,
}

pub(crate) const NONE_FOUND: &str = "none found";
/// For neither GPU.
pub(crate) const NOWHERE: [&str; 2] = [NONE_FOUND; 2];

/// Random numbers of a shape.
pub(crate) fn normal(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    ops::normal(shape, 1.0, Key::derive(&[shape.len() as u64]), device)?.to_dtype(dtype)
}

pub(crate) fn bf16<const N: usize>(shape: [usize; N], device: &Device) -> Result<Tensor> {
    normal(&shape, DType::BF16, device)
}

pub(crate) fn f32s<const N: usize>(shape: [usize; N], device: &Device) -> Result<Tensor> {
    normal(&shape, DType::F32, device)
}

/// Random ids below `limit`.
pub(crate) fn ids(shape: &[usize], limit: usize, device: &Device) -> Result<Tensor> {
    let id = |i: usize| (Key::derive(&[1]).words(i as u64)[0] as usize % limit) as i32;
    Tensor::from_vec((0..shape.iter().product()).map(id).collect(), shape, device)
}

/// Everything so far is preparation.
pub(crate) fn forget(device: &Device) {
    let _ = device.as_cuda().map(|cuda| cuda.take_counters());
}
