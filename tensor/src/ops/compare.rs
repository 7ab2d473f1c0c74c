//! Comparisons to byte masks (0 or 1), and the choice between two tensors by one.

use crate::blocks::{BLOCK, Elements, Old, Reader, TASK, write};
use crate::cpu::{Cpu, simd};
use crate::cuda::{self, Arg, Cuda, View};
use crate::{DType, Element, Error, Result, Tensor, TensorMut, broadcast_shape, dispatch, kernel, same_device};

/// Which comparison. One with NaN is false, but for [`Compare::Ne`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// a = b
    Eq,
    /// a ≠ b
    Ne,
    /// a < b
    Lt,
    /// a ≤ b
    Le,
    /// a > b
    Gt,
    /// a ≥ b
    Ge,
}

/// Arguments of [`COMPARE`]: out = 1 where `op` holds of a and b, else 0.
pub struct CompareArgs<'a> {
    /// Which comparison.
    pub op: Compare,
    /// Shape of `out`, any layout and dtype.
    pub a: &'a Tensor,
    /// Shape and dtype of `a`, any layout.
    pub b: &'a Tensor,
    /// Any shape, u8.
    pub out: TensorMut<'a>,
}
kernel!(pub COMPARE = "compare", CompareArgs, compare_cpu, compare_cuda);

/// Arguments of [`WHERE`]: out = a where the mask is not 0, else b.
pub struct WhereArgs<'a> {
    /// Shape of `out`, u8, any layout.
    pub mask: &'a Tensor,
    /// Shape of `out`, any layout and float dtype.
    pub a: &'a Tensor,
    /// Shape and dtype of `a`, any layout.
    pub b: &'a Tensor,
    /// Any shape, dtype of `a`.
    pub out: TensorMut<'a>,
}
kernel!(pub WHERE = "where", WhereArgs, where_cpu, where_cuda);

/// `op` of `a` and `b`, which have one dtype and broadcast, as u8: 1 where it holds, 0 elsewhere.
///
/// # Errors
/// When shapes do not broadcast, or dtypes or devices differ.
pub fn compare(op: Compare, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let device = same_device("compare", &[a, b])?;
    if a.dtype() != b.dtype() {
        return Err(Error::dtype("compare", format!("{op:?} of {} and {}", a.dtype(), b.dtype())));
    }
    let shape = broadcast_shape("compare", a.shape(), b.shape())?;
    let (a, b) = (a.broadcast_to(&shape)?, b.broadcast_to(&shape)?);
    let mut out = device.alloc(&shape, DType::U8)?;
    device.run(&COMPARE, CompareArgs { op, a: &a, b: &b, out: out.view() })?;
    Ok(out.finish())
}

/// `a` where `mask` (u8) is not 0, else `b`; all three broadcast.
///
/// # Errors
/// When shapes do not broadcast, devices or the dtypes of `a` and `b` differ, or `mask` is not u8.
pub fn where_(mask: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let device = same_device("where", &[mask, a, b])?;
    if mask.dtype() != DType::U8 || a.dtype() != b.dtype() || !a.dtype().is_float() {
        let dtypes = format!("a mask of {} for {} and {}", mask.dtype(), a.dtype(), b.dtype());
        return Err(Error::dtype("where", dtypes));
    }
    let shape = broadcast_shape("where", mask.shape(), &broadcast_shape("where", a.shape(), b.shape())?)?;
    let [mask, a, b] = [mask.broadcast_to(&shape)?, a.broadcast_to(&shape)?, b.broadcast_to(&shape)?];
    let mut out = device.alloc(&shape, a.dtype())?;
    device.run(&WHERE, WhereArgs { mask: &mask, a: &a, b: &b, out: out.view() })?;
    Ok(out.finish())
}

fn compare_cpu(cpu: &Cpu, mut args: CompareArgs<'_>) -> Result<()> {
    // f64 holds every value of every dtype.
    let holds: fn(f64, f64) -> bool = match args.op {
        Compare::Eq => |a, b| a == b,
        Compare::Ne => |a, b| a != b,
        Compare::Lt => |a, b| a < b,
        Compare::Le => |a, b| a <= b,
        Compare::Gt => |a, b| a > b,
        Compare::Ge => |a, b| a >= b,
    };
    dispatch!(any args.a.dtype(), T => {
        let (a, b) = (Elements::<T>::new(args.a)?, Elements::<T>::new(args.b)?);
        cpu.chunks(args.out.as_mut_slice::<u8>()?, TASK, |task, out| {
            let (mut x, mut y) = ([0.0; BLOCK], [0.0; BLOCK]);
            for (i, out) in out.chunks_mut(BLOCK).enumerate() {
                let (x, y) = (&mut x[..out.len()], &mut y[..out.len()]);
                a.fill(task * TASK + i * BLOCK, x, T::to_f64);
                b.fill(task * TASK + i * BLOCK, y, T::to_f64);
                x.iter().zip(y).zip(out).for_each(|((x, y), out)| *out = u8::from(holds(*x, *y)));
            }
        });
        Ok(())
    })
}

fn where_cpu(cpu: &Cpu, args: WhereArgs<'_>) -> Result<()> {
    let WhereArgs { mask, a, b, mut out } = args;
    let (mask, a, b) = (Reader::new(mask, cpu.simd())?, Reader::new(a, cpu.simd())?, Reader::new(b, cpu.simd())?);
    write(cpu, &mut out, Old::Ignored, &|range, out, [m, x, y]| {
        choose(cpu.simd(), mask.read(range.clone(), m), a.read(range.clone(), x), b.read(range, y), out);
    })
}

fn compare_cuda(cuda: &Cuda, args: CompareArgs<'_>) -> Result<()> {
    let CompareArgs { op, a, b, out } = args;
    let (entry, a_view, b_view) = (format!("compare_{}", a.dtype()), View::new(a)?, View::new(b)?);
    let args = [
        Arg::U32(op as u32),
        cuda::read(a)?,
        a_view.arg(),
        cuda::read(b)?,
        b_view.arg(),
        cuda::written(&out)?,
        cuda::count(out.len()),
    ];
    cuda::over_elements(cuda, "compare", &entry, out.len(), &args)
}

fn where_cuda(cuda: &Cuda, args: WhereArgs<'_>) -> Result<()> {
    let WhereArgs { mask, a, b, out } = args;
    let [mask_view, a_view, b_view] = [View::new(mask)?, View::new(a)?, View::new(b)?];
    let args = [
        cuda::read(mask)?,
        mask_view.arg(),
        cuda::read(a)?,
        a_view.arg(),
        cuda::read(b)?,
        b_view.arg(),
        cuda::written(&out)?,
        cuda::count(out.len()),
    ];
    cuda::over_elements(cuda, "compare", &format!("where_{}", out.dtype()), out.len(), &args)
}

simd! {
    fn choose(mask: &[f32], a: &[f32], b: &[f32], out: &mut [f32]) {
        for (((m, a), b), out) in mask.iter().zip(a).zip(b).zip(out) {
            *out = if *m != 0.0 { *a } else { *b };
        }
    }
}
