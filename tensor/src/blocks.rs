//! How elementwise kernels reach their operands: f32 blocks of row-major order, whatever dtype and layout lie beneath.
//!
//! A kernel over blocks is written once, for f32 slices. Contiguous f32 is handed to it as it lies; everything else
//! passes through a block that stays in the first-level cache. A block is a thousand elements, so what is called for each
//! of them is a `dyn`: one loop is compiled a dtype, not one a kernel and dtype.

use crate::cpu::{Cpu, Simd};
use crate::layout::{Layout, Run};
use crate::{DType, Element, Result, Tensor, TensorMut, dispatch};
use half::{bf16, f16};
use std::ops::Range;

/// Elements of a block.
pub(crate) const BLOCK: usize = 1024;
/// Blocks that one task handles.
pub(crate) const TASK: usize = 16 * BLOCK;

/// Room for three operands of a block.
pub(crate) type Scratch = [[f32; BLOCK]; 3];

/// The elements of a tensor in row-major order, in their own type.
pub(crate) struct Elements<'a, T> {
    elements: &'a [T],
    layout: Layout,
}

impl<'a, T: Element> Elements<'a, T> {
    /// # Errors
    /// When the elements are not `T` or not on the host.
    pub(crate) fn new(tensor: &'a Tensor) -> Result<Self> {
        Ok(Elements { elements: tensor.span::<T>()?, layout: tensor.layout().merged() })
    }

    /// Fills `out` with the elements from `start` on, each through `f`.
    #[inline]
    pub(crate) fn fill<Y>(&self, start: usize, out: &mut [Y], f: impl Fn(T) -> Y) {
        fill(self.elements, self.layout.runs(start..start + out.len()), out, f);
    }
}

/// The elements of a tensor in row-major order, of whatever dtype, as f32.
pub(crate) struct Reader<'a> {
    elements: Typed<'a>,
    layout: Layout,
    simd: Simd,
}

enum Typed<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    I32(&'a [i32]),
    I8(&'a [i8]),
    U8(&'a [u8]),
}

impl<'a> Reader<'a> {
    /// # Errors
    /// When the elements are not on the host.
    pub(crate) fn new(tensor: &'a Tensor, simd: Simd) -> Result<Self> {
        let elements = match tensor.dtype() {
            DType::F32 => Typed::F32(tensor.span()?),
            DType::BF16 => Typed::Bf16(tensor.span()?),
            DType::F16 => Typed::F16(tensor.span()?),
            DType::I32 => Typed::I32(tensor.span()?),
            DType::I8 => Typed::I8(tensor.span()?),
            DType::U8 => Typed::U8(tensor.span()?),
        };
        Ok(Reader { elements, layout: tensor.layout().merged(), simd })
    }

    /// The elements of a slice, to be read in the same way.
    pub(crate) fn of(elements: &'a [f32], simd: Simd) -> Self {
        Reader { elements: Typed::F32(elements), layout: Layout::flat(elements.len()), simd }
    }

    /// The elements of `range`: a slice of the tensor where they lie there in order as f32, else `block`, filled.
    pub(crate) fn read<'b>(&'b self, range: Range<usize>, block: &'b mut [f32]) -> &'b [f32] {
        let len = range.len();
        let mut runs = self.layout.runs(range).peekable();
        if let Typed::F32(elements) = self.elements
            && let Some(&Run { start, len: run, stride: 1 }) = runs.peek()
            && run == len
        {
            return &elements[start..start + len];
        }
        let block = &mut block[..len];
        match self.elements {
            Typed::F32(x) => widen(self.simd, x, runs, block),
            Typed::Bf16(x) => widen(self.simd, x, runs, block),
            Typed::F16(x) => widen(self.simd, x, runs, block),
            Typed::I32(x) => widen(self.simd, x, runs, block),
            Typed::I8(x) => widen(self.simd, x, runs, block),
            Typed::U8(x) => widen(self.simd, x, runs, block),
        }
        block
    }
}

/// The elements of all `runs` as f32; those that lie side by side all at once.
fn widen<T: Element>(simd: Simd, elements: &[T], runs: impl Iterator<Item = Run>, mut out: &mut [f32]) {
    for run in runs {
        let (here, rest) = out.split_at_mut(run.len);
        match run.stride {
            1 => T::widen(simd, &elements[run.start..run.start + run.len], here),
            _ => fill(elements, [run].into_iter(), here, Element::to_f32),
        }
        out = rest;
    }
}

/// The elements of all `runs` into `out`, each through `f`.
#[inline(always)]
fn fill<X: Copy, Y>(elements: &[X], runs: impl Iterator<Item = Run>, mut out: &mut [Y], f: impl Fn(X) -> Y) {
    for run in runs {
        let (here, rest) = out.split_at_mut(run.len);
        match run.stride {
            1 => {
                let elements = &elements[run.start..run.start + run.len];
                here.iter_mut().zip(elements).for_each(|(y, &x)| *y = f(x));
            }
            0 => here.iter_mut().for_each(|y| *y = f(elements[run.start])),
            _ => here.iter_mut().enumerate().for_each(|(i, y)| *y = f(elements[run.at(i)])),
        }
        out = rest;
    }
}

/// Makes the elements of a range: `f(range, block, scratch)`.
type BlockFn<'a> = dyn Fn(Range<usize>, &mut [f32], &mut Scratch) + Sync + 'a;
/// Makes a row: `f(row, out, scratch)`.
type RowFn<'a> = dyn Fn(usize, &mut [f32], &mut [f32]) + Sync + 'a;

/// What a block of the output holds when the kernel gets it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Old {
    /// Anything.
    Ignored,
    /// The values so far.
    Kept,
}

/// Calls `f(range, block, scratch)` for every block of `out`, in parallel: `f` leaves the new values of the elements
/// `range` in `block`, which is `out` itself when that is f32, else is rounded to the dtype of `out` (nearest even).
pub(crate) fn write(cpu: &Cpu, out: &mut TensorMut<'_>, old: Old, f: &BlockFn<'_>) -> Result<()> {
    dispatch!(any out.dtype(), T => {
        cpu.chunks(out.as_mut_slice::<T>()?, TASK, |task, out| {
            let mut room = cpu.scratch(4 * BLOCK);
            let ([rounded, scratch @ ..], _) = room.as_chunks_mut::<BLOCK>() else { unreachable!("four blocks") };
            let scratch: &mut Scratch = scratch.try_into().expect("three blocks");
            for (i, out) in out.chunks_mut(BLOCK).enumerate() {
                let start = task * TASK + i * BLOCK;
                let range = start..start + out.len();
                match f32s_mut(out) {
                    Some(out) => f(range, out, scratch),
                    None => {
                        let block = &mut rounded[..out.len()];
                        if old == Old::Kept {
                            T::widen(cpu.simd(), out, block);
                        }
                        f(range, block, scratch);
                        T::narrow(cpu.simd(), block, out);
                    }
                }
            }
        });
        Ok(())
    })
}

/// Calls `f(row, out, scratch)` for every row of `width` elements of `out`, in parallel, with `buffers` rows of scratch.
/// What `f` leaves in `out` is rounded to the dtype of `out`.
pub(crate) fn write_rows(
    cpu: &Cpu,
    out: &mut TensorMut<'_>,
    width: usize,
    buffers: usize,
    f: &RowFn<'_>,
) -> Result<()> {
    let width = width.max(1);
    let group = TASK.div_ceil(width);
    dispatch!(float out.dtype(), "write", T => {
        cpu.chunks(out.as_mut_slice::<T>()?, group * width, |task, out| {
            let mut scratch = cpu.scratch((buffers + 1) * width);
            let (rounded, scratch) = scratch.split_at_mut(width);
            for (i, out) in out.chunks_mut(width).enumerate() {
                let row = task * group + i;
                match f32s_mut(out) {
                    Some(out) => f(row, out, scratch),
                    None => {
                        f(row, rounded, scratch);
                        T::narrow(cpu.simd(), &rounded[..out.len()], out);
                    }
                }
            }
        });
        Ok(())
    })
}

/// `x` as f32, to write, when it is.
pub(crate) fn f32s_mut<T: Element>(x: &mut [T]) -> Option<&mut [f32]> {
    if T::DTYPE == DType::F32 { bytemuck::try_cast_slice_mut(x).ok() } else { None }
}
