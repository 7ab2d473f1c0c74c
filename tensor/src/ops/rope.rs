//! Rotary position embedding (Su et al., "RoFormer", 2021), split-half as in Hugging Face's Llama: element i of a head
//! turns with element i + n by the angle position · inv_freq[i], where n is the number of frequencies.

use crate::cpu::{Cpu, math, rows_per_task, simd};
use crate::cuda::{self, Arg, Cuda, Flag};
use crate::{DType, Error, Float, Result, Tensor, TensorMut, dispatch, kernel, same_device};

/// Arguments of [`ROPE`]: the first 2n elements of each head turned by the angles of its token.
pub struct RopeArgs<'a> {
    /// [tokens, heads, d], any float dtype, contiguous.
    pub x: &'a Tensor,
    /// [tokens, n], f32, contiguous.
    pub cos: &'a Tensor,
    /// [tokens, n], f32, contiguous.
    pub sin: &'a Tensor,
    /// Turn back: the gradient.
    pub inverse: bool,
    /// Shape and dtype of `x`.
    pub out: TensorMut<'a>,
}
kernel!(pub ROPE = "rope", RopeArgs, rope_cpu, rope_cuda);

/// Arguments of [`ROPE_TABLE`]: cos and sin of the angles position · frequency, scaled.
pub struct RopeTableArgs<'a> {
    /// `[tokens]`, i32, contiguous, which the kernel checks.
    pub positions: &'a Tensor,
    /// n frequencies.
    pub inv_freq: &'a [f32],
    /// Factor of both.
    pub scaling: f32,
    /// [tokens, n], f32.
    pub cos: TensorMut<'a>,
    /// [tokens, n], f32.
    pub sin: TensorMut<'a>,
}
kernel!(pub ROPE_TABLE = "rope_table", RopeTableArgs, table_cpu, table_cuda);

/// cos and sin of every angle position · frequency (a product in f32, as Hugging Face's), times `scaling` (YaRN's
/// attention factor; 1 for all others): two tensors [positions, frequencies] of f32, made once a forward pass. `positions`
/// is a vector of i32.
///
/// # Errors
/// When a position is negative, an angle is too large for f32 to know its turn, `positions` has another shape or dtype, or
/// memory runs out.
pub fn rope_table(positions: &Tensor, inv_freq: &[f32], scaling: f32) -> Result<(Tensor, Tensor)> {
    let (&[tokens], DType::I32) = (positions.shape(), positions.dtype()) else {
        let found = format!("{:?} of {}", positions.shape(), positions.dtype());
        return Err(Error::shape("rope", format!("positions are a vector of i32, not {found}")));
    };
    let device = positions.device();
    let alloc = || device.alloc(&[tokens, inv_freq.len()], DType::F32);
    let (mut cos, mut sin) = (alloc()?, alloc()?);
    let positions = &positions.contiguous()?;
    device.run(&ROPE_TABLE, RopeTableArgs { positions, inv_freq, scaling, cos: cos.view(), sin: sin.view() })?;
    Ok((cos.finish(), sin.finish()))
}

fn bad_position(position: i32, index: usize) -> Error {
    Error::invalid(format!("rope: position {position} at index {index} has no angle in f32"))
}

fn table_cpu(cpu: &Cpu, mut args: RopeTableArgs<'_>) -> Result<()> {
    let n = args.inv_freq.len().max(1);
    let (cos, sin) = (args.cos.as_mut_slice::<f32>()?, args.sin.as_mut_slice::<f32>()?);
    let rows = cos.chunks_exact_mut(n).zip(sin.chunks_exact_mut(n));
    for ((index, &position), (cos, sin)) in args.positions.as_slice::<i32>()?.iter().enumerate().zip(rows) {
        angles(cpu.simd(), position as f32, args.inv_freq, args.scaling, cos, sin);
        if position < 0 || sin.iter().any(|s| s.is_nan()) {
            return Err(bad_position(position, index));
        }
    }
    Ok(())
}

/// The most frequencies that rope.cu takes.
const MOST_FREQUENCIES: usize = 128;

fn table_cuda(cuda: &Cuda, args: RopeTableArgs<'_>) -> Result<()> {
    let RopeTableArgs { positions, inv_freq, scaling, cos, sin } = args;
    if inv_freq.len() > MOST_FREQUENCIES {
        return Err(Error::unsupported(format!(
            "rope: heads of {} elements; the CUDA kernels take up to {}, the CPU any number",
            2 * inv_freq.len(),
            2 * MOST_FREQUENCIES
        )));
    }
    let mut frequencies = [[0; size_of::<f32>()]; MOST_FREQUENCIES];
    frequencies.iter_mut().zip(inv_freq).for_each(|(bytes, f)| *bytes = f.to_le_bytes());
    let stray = Flag::max(positions.device())?;
    let args = [
        cuda::read(positions)?,
        Arg::Bytes(frequencies.as_flattened()),
        Arg::F32(scaling),
        cuda::written(&cos)?,
        cuda::written(&sin)?,
        stray.arg(),
        cuda::count(positions.len()),
        cuda::number(inv_freq.len())?,
    ];
    cuda::over_threads(cuda, "rope", "rope_table", cos.len(), &args)?;
    stray.check(|word| {
        let (index, position) = cuda::first_at_fault(word);
        bad_position(position, index)
    });
    Ok(())
}

/// `x` [tokens, heads, d] with the first 2n elements of each head turned by the angles of its token; `cos` and `sin`
/// are [tokens, n] of f32, from [`rope_table`]. The elements past 2n are left as they are (partial rotary).
///
/// # Errors
/// When the shapes do not fit, a dtype is wrong, or devices differ.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotate(x, cos, sin, false)
}

/// The gradient of [`rope`] with respect to `x`: the turn back.
///
/// # Errors
/// As [`rope`].
pub fn rope_backward(dy: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    rotate(dy, cos, sin, true)
}

fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Result<Tensor> {
    let device = same_device("rope", &[x, cos, sin])?;
    let (tokens, _, width) = x.dims3("rope")?;
    let (rows, angles) = cos.dims2("rope")?;
    if rows != tokens || 2 * angles > width || sin.shape() != cos.shape() {
        let shapes = format!("{:?} by cos {:?} and sin {:?}", x.shape(), cos.shape(), sin.shape());
        return Err(Error::shape("rope", shapes));
    }
    if cos.dtype() != DType::F32 || sin.dtype() != DType::F32 {
        return Err(Error::dtype("rope", format!("takes angles of f32, not {} and {}", cos.dtype(), sin.dtype())));
    }
    let (x, cos, sin) = (x.contiguous()?, cos.contiguous()?, sin.contiguous()?);
    let mut out = device.alloc(x.shape(), x.dtype())?;
    device.run(&ROPE, RopeArgs { x: &x, cos: &cos, sin: &sin, inverse, out: out.view() })?;
    Ok(out.finish())
}

fn rope_cpu(cpu: &Cpu, mut args: RopeArgs<'_>) -> Result<()> {
    let (_, heads, width) = args.x.dims3("rope")?;
    let (_, angles) = args.cos.dims2("rope")?;
    let (cos, sin) = (args.cos.as_slice::<f32>()?, args.sin.as_slice::<f32>()?);
    let sign = if args.inverse { -1.0 } else { 1.0 };
    dispatch!(float args.x.dtype(), "rope", T => {
        let (x, out) = (args.x.as_slice::<T>()?, args.out.as_mut_slice::<T>()?);
        rope_tokens(cpu, x, cos, sin, sign, [heads, width, angles], out);
        Ok(())
    })
}

fn rope_tokens<T: Float>(
    cpu: &Cpu,
    x: &[T],
    cos: &[f32],
    sin: &[f32],
    sign: f32,
    [heads, width, angles]: [usize; 3],
    out: &mut [T],
) {
    let (simd, token) = (cpu.simd(), heads * width);
    let rows = rows_per_task(token);
    cpu.chunks(out, rows * token, |i, out| {
        let x = &x[i * rows * token..][..out.len()];
        for (t, (x, y)) in x.chunks_exact(token).zip(out.chunks_exact_mut(token)).enumerate() {
            let at = (i * rows + t) * angles..(i * rows + t + 1) * angles;
            let (cos, sin) = (&cos[at.clone()], &sin[at]);
            rope_token(simd, x, cos, sin, sign, width, y);
        }
    });
}

fn rope_cuda(cuda: &Cuda, args: RopeArgs<'_>) -> Result<()> {
    let RopeArgs { x, cos, sin, inverse, out } = args;
    let (tokens, heads, width) = x.dims3("rope")?;
    let (_, angles) = cos.dims2("rope")?;
    let args = [
        cuda::read(x)?,
        cuda::read(cos)?,
        cuda::read(sin)?,
        Arg::U32(inverse.into()),
        cuda::written(&out)?,
        cuda::count(tokens),
        cuda::number(heads)?,
        cuda::number(width)?,
        cuda::number(angles)?,
    ];
    cuda::over_threads(cuda, "rope", &format!("rope_{}", x.dtype()), tokens * heads * (width - angles), &args)
}

/// (a, b) -> (a cos - b sin, b cos + a sin)
#[inline(always)]
fn turn<T: Float>(a: &[T], b: &[T], cos: &[f32], sin: &[f32], sign: f32, ya: &mut [T], yb: &mut [T]) {
    for (((((a, b), c), s), ya), yb) in a.iter().zip(b).zip(cos).zip(sin).zip(ya).zip(yb) {
        let (a, b, s) = (a.wide(), b.wide(), sign * s);
        *ya = T::from_f32(a.mul_add(*c, -(b * s)));
        *yb = T::from_f32(b.mul_add(*c, a * s));
    }
}

simd! {
    /// cos and sin of position · frequency, scaled.
    fn angles(position: f32, inv_freq: &[f32], scaling: f32, cos: &mut [f32], sin: &mut [f32]) {
        for ((c, s), f) in cos.iter_mut().zip(sin).zip(inv_freq) {
            let (sin, cos) = math::sin_cos(position * f);
            (*c, *s) = (cos * scaling, sin * scaling);
        }
    }

    /// [`turn`] of the two halves a, b of each head.
    fn rope_token<T: Float>(x: &[T], cos: &[f32], sin: &[f32], sign: f32, width: usize, y: &mut [T]) {
        let n = cos.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let (a, b) = (&x[..n], &x[n..2 * n]);
            let (ya, rest) = y.split_at_mut(n);
            let (yb, rest) = rest.split_at_mut(n);
            // In whole registers of known length: heads are short, and what compilers make of a loop takes 64 at once.
            let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
            let ((ya, ya_rest), (yb, yb_rest)) = (ya.as_chunks_mut::<16>(), yb.as_chunks_mut::<16>());
            let ((c, c_rest), (s, s_rest)) = (cos.as_chunks::<16>(), sin.as_chunks::<16>());
            for ((((a, b), (c, s)), ya), yb) in a.iter().zip(b).zip(c.iter().zip(s)).zip(ya).zip(yb) {
                turn(a, b, c, s, sign, ya, yb);
            }
            turn(a_rest, b_rest, c_rest, s_rest, sign, ya_rest, yb_rest);
            rest.copy_from_slice(&x[2 * n..]);
        }
    }
}
