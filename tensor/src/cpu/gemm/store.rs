//! Finished f32 products into C, whatever its dtype.

use half::slice::HalfFloatSliceExt;

use super::{Accumulate, Out};
use crate::cpu::Cpu;

/// Rows of C that one task stores.
const ROWS: usize = 16;

impl Out<'_> {
    /// C[at..] = alpha `values`, or C[at..] += that.
    pub(super) fn store(&mut self, at: usize, values: &[f32], alpha: f32, accumulate: Accumulate) {
        let end = at + values.len();
        match self {
            Out::F32(c) => store_f32(&mut c[at..end], values, alpha, accumulate),
            Out::Bf16(c) => store_half(&mut c[at..end], values, alpha, accumulate),
            Out::F16(c) => store_half(&mut c[at..end], values, alpha, accumulate),
        }
    }

    /// Stores `block`, whose rows are `n` long, into the rows of C from element `at` on, `ldc` apart.
    pub(super) fn store_block(
        &mut self,
        cpu: &Cpu,
        at: usize,
        ldc: usize,
        block: &[f32],
        n: usize,
        accumulate: Accumulate,
    ) {
        let end = at + (block.len() / n - 1) * ldc + n;
        match self {
            Out::F32(c) => store_rows(cpu, &mut c[at..end], ldc, block, n, |c, x| store_f32(c, x, 1.0, accumulate)),
            Out::Bf16(c) => store_rows(cpu, &mut c[at..end], ldc, block, n, |c, x| store_half(c, x, 1.0, accumulate)),
            Out::F16(c) => store_rows(cpu, &mut c[at..end], ldc, block, n, |c, x| store_half(c, x, 1.0, accumulate)),
        }
    }
}

fn store_rows<T: Send>(
    cpu: &Cpu,
    c: &mut [T],
    ldc: usize,
    block: &[f32],
    n: usize,
    store: impl Fn(&mut [T], &[f32]) + Sync + Send,
) {
    cpu.chunks(c, ROWS * ldc, |task, c| {
        let rows = block[task * ROWS * n..].chunks_exact(n);
        c.chunks_mut(ldc).zip(rows).for_each(|(c, row)| store(&mut c[..n], row));
    });
}

fn store_f32(c: &mut [f32], values: &[f32], alpha: f32, accumulate: Accumulate) {
    for (c, x) in c.iter_mut().zip(values) {
        *c = if accumulate == Accumulate::Add { alpha.mul_add(*x, *c) } else { alpha * x };
    }
}

/// The sum is formed in f32 and rounded once.
fn store_half<T>(c: &mut [T], values: &[f32], alpha: f32, accumulate: Accumulate)
where
    [T]: HalfFloatSliceExt,
{
    let mut wide = [0.0; 64];
    for (c, values) in c.chunks_mut(wide.len()).zip(values.chunks(wide.len())) {
        let wide = &mut wide[..c.len()];
        if accumulate == Accumulate::Add {
            c.convert_to_f32_slice(wide);
        }
        store_f32(wide, values, alpha, accumulate);
        c.convert_from_f32_slice(wide);
    }
}
