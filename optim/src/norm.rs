//! The global norm of gradients.

use kinglet_autograd::Grads;
use kinglet_tensor::cpu::{Cpu, reduce};
use kinglet_tensor::cuda::{self, Cuda};
use kinglet_tensor::{DType, Result, Tensor, TensorMut, kernel};

/// Arguments of [`GRAD_NORM`]: out = the Euclidean norm of x.
pub struct GradNormArgs<'a> {
    /// `[n]`, f32, contiguous.
    pub x: &'a Tensor,
    /// One element, f32.
    pub out: TensorMut<'a>,
}
kernel!(pub GRAD_NORM = "grad_norm", GradNormArgs, norm_cpu, norm_cuda);

/// Elements of a chunk, whose squares are added up by one task.
const CHUNK: usize = 1 << 16;

/// The Euclidean norm of all gradients together, as a tensor of one element: infinite or NaN when one of them is.
///
/// Squares are added in f64, within chunks and then chunk by chunk, so that the result depends on nothing but the
/// gradients.
///
/// # Errors
/// When there are no parameters.
pub fn grad_norm(grads: &Grads) -> Result<Tensor> {
    let flat = grads.flat()?;
    let mut out = flat.device().alloc(&[1], DType::F32)?;
    flat.device().run(&GRAD_NORM, GradNormArgs { x: flat, out: out.view() })?;
    Ok(out.finish())
}

fn norm_cpu(cpu: &Cpu, mut args: GradNormArgs<'_>) -> Result<()> {
    let x = args.x.as_slice::<f32>()?;
    let mut partial = vec![0.0; x.len().div_ceil(CHUNK)];
    cpu.chunks(&mut partial, 1, |i, sum| {
        let end = x.len().min((i + 1) * CHUNK);
        sum[0] = reduce::sum_sq_f64(cpu.simd(), &x[i * CHUNK..end]);
    });
    args.out.as_mut_slice::<f32>()?[0] = partial.iter().sum::<f64>().sqrt() as f32;
    Ok(())
}

/// One warp a chunk, and one for all of their sums.
fn norm_cuda(cuda: &Cuda, args: GradNormArgs<'_>) -> Result<()> {
    let GradNormArgs { x, out } = args;
    let chunks = x.len().div_ceil(CHUNK);
    // f64, a dtype that tensors have not.
    let mut partial = x.device().alloc(&[8 * chunks], DType::U8)?;
    let sums = cuda::written(&partial.view())?;
    let args = [cuda::read(x)?, sums, cuda::count(x.len())];
    cuda::over_rows(cuda, "grad_norm", "grad_norm_partial", chunks, &args)?;
    let args = [sums, cuda::written(&out)?, cuda::count(chunks)];
    cuda::start(cuda, "grad_norm", "grad_norm", 1, cuda::WARP, &args)
}
