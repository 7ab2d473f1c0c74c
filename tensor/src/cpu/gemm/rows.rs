//! Products of few rows: one dot product an element, each column of B decoded once for all rows.

use half::bf16;

use super::pack::Element;
use super::{Accumulate, After, Columns, Dense, Elems, FewRows, LowRank, Mat, Options, Out, Panels, blocked};
use crate::cpu::reduce::{dot_body, dot_widened};
use crate::cpu::scratch::Buffer;
use crate::cpu::{Cpu, simd};
use crate::dtype::Float;

/// Elements of B that one task reads: enough to outweigh the hand-off of a task.
const TASK: usize = 1 << 16;

simd! {
    /// The dot product of `column` with each row of length `column.len()`.
    fn dot_rows(rows: &[f32], column: &[f32], out: &mut [f32]) {
        for (row, out) in rows.chunks_exact(column.len()).zip(out) {
            *out = dot_body(row, column);
        }
    }

    /// As [`dot_rows`], with a column of 16 bits.
    fn dot_rows_stored<T: Element>(rows: &[f32], column: &[T], out: &mut [f32]) {
        for (row, out) in rows.chunks_exact(column.len()).zip(out) {
            *out = dot_widened(row, column, T::widen);
        }
    }
}

/// Contiguous columns of a dense B in 16 bits, which are not to be rounded: widened in registers.
pub(super) struct Stored<'a, T> {
    pub(super) x: FewRows<'a>,
    /// Column `j` lies at `j * stride`.
    pub(super) columns: &'a [T],
    pub(super) stride: usize,
}

impl<T: Element> Columns for Stored<'_, T> {
    fn dot(&self, first: usize, out: &mut [f32]) {
        let FewRows { cpu, rows, m, k, .. } = self.x;
        for (j, out) in (first..).zip(out.chunks_exact_mut(m)) {
            dot_rows_stored(cpu.simd(), rows, &self.columns[j * self.stride..][..k], out);
        }
    }
}

/// C = alpha A B for few rows of A. Sizes are checked by the caller.
pub(super) fn gemm(cpu: &Cpu, a: &Mat, b: &dyn Panels, c: &mut Out, ldc: usize, options: Options) {
    let (m, n, k) = (a.rows, b.n(), b.k());
    let rows = &*widened_rows(cpu, a, options.round_bf16);
    let is_half = !matches!(a.data, Elems::F32(_));
    let x = FewRows { cpu, rows, m, k, is_half, round_bf16: options.round_bf16 };
    let stored = b.few_rows(x);
    let decoded = Decoded { x, b };
    let columns = stored.as_deref().unwrap_or(&decoded);
    // [n, m]: what one task writes lies together.
    let mut products = cpu.scratch(n * m);
    let per_task = (TASK / k.max(1)).max(1);
    cpu.chunks(&mut products, per_task * m, |task, products| columns.dot(task * per_task, products));
    if m == 1 {
        return c.store(cpu.simd(), 0, &products, options.alpha, options.accumulate);
    }
    let mut row = cpu.scratch(n);
    for i in 0..m {
        row.iter_mut().zip(products.iter().skip(i).step_by(m)).for_each(|(y, x)| *y = *x);
        c.store(cpu.simd(), i * ldc, &row, options.alpha, options.accumulate);
    }
}

/// Columns that are decoded first.
struct Decoded<'a> {
    x: FewRows<'a>,
    b: &'a dyn Panels,
}

impl Columns for Decoded<'_> {
    fn dot(&self, first: usize, out: &mut [f32]) {
        let FewRows { cpu, rows, m, k, round_bf16: round, .. } = self.x;
        let mut decoded = cpu.scratch(k);
        for (i, out) in out.chunks_exact_mut(m).enumerate() {
            let column = match self.b.contiguous_column(first + i) {
                Some(column) if !round => column,
                _ => {
                    self.b.column(first + i, 0..k, &mut decoded);
                    if round {
                        bf16::round(cpu.simd(), &mut decoded);
                    }
                    &decoded
                }
            };
            out.fill(0.0);
            if k > 0 {
                dot_rows(cpu.simd(), rows, column, out);
            }
        }
    }
}

/// C [m, n] += `after`, a term at a time.
pub(super) fn add(cpu: &Cpu, c: &mut Out, ldc: usize, [m, n]: [usize; 2], after: After) {
    if let Some(LowRank { u, v, scale }) = after.low_rank {
        let options = Options { alpha: scale, accumulate: Accumulate::Add, round_bf16: false };
        let v = Dense::new(cpu.simd(), v.transposed());
        if v.columns_are_cheap() {
            gemm(cpu, &u, &v, c, ldc, options);
        } else {
            blocked::gemm(cpu, &u, &v, c.again(), ldc, options, After::default());
        }
    }
    if let Some(bias) = after.bias {
        (0..m).for_each(|i| c.store(cpu.simd(), i * ldc, &bias[..n], 1.0, Accumulate::Add));
    }
}

/// A [m, k] as contiguous f32.
fn widened_rows(cpu: &Cpu, a: &Mat, round: bool) -> Buffer {
    let mut rows = cpu.scratch(a.rows * a.cols);
    for (i, row) in rows.chunks_exact_mut(a.cols.max(1)).enumerate() {
        a.row_into(cpu.simd(), i, row);
    }
    if round {
        bf16::round(cpu.simd(), &mut rows);
    }
    rows
}
