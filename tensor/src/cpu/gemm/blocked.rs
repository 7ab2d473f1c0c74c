//! The packed path: a block of A is packed once for all threads, and so is one of a dense B; then tiles of C are handed
//! out. A B that must be decoded is never packed as a block: a task decodes one strip of it, multiplies all of A by that
//! and forgets it, so that [`MAX_DEPTH`] steps of nr columns (64 KiB) a thread are all that is ever there of a weight.

use std::ops::Range;

use super::kernel::{Kernel, Shape};
use super::pack::{pack_lanes, round_bf16};
use super::{Accumulate, KC, Mat, Options, Out, Panels};
use crate::cpu::shared::Shared;
use crate::cpu::{Cpu, Simd};

/// The most steps along k that are packed at a time.
const MAX_DEPTH: usize = 2 * KC;
/// The most floats of A, or of a dense B, that are packed at a time: 4 MiB.
const MAX_PACKED: usize = 1 << 20;
/// The largest block of C: bounds the f32 block behind a 16-bit C to 8 MiB.
const MAX_BLOCK: [usize; 2] = [1024, 2048];
/// The tile of C that one task computes, about: the taller, the oftener a strip of B is reused from L1.
const TASK: [usize; 2] = [224, 192];
/// With fewer tall tasks than this they are cut shorter, to spread over many threads.
const MANY_TASKS: usize = 64;
const SHORT_TASK: usize = 96;
/// With fewer strips of a decoded B than this, rows are cut into tasks too, each of which decodes its strip anew.
const MANY_STRIPS: usize = 16;
/// Products of fewer multiplications run on the calling thread; a hand-off would cost more.
const SMALL: usize = 1 << 18;

/// C = alpha A B with both operands packed. Sizes are checked by the caller.
pub(super) fn gemm(cpu: &Cpu, a: &Mat, b: &dyn Panels, c: &mut Out, ldc: usize, options: Options) {
    let (m, n, k) = (a.rows, b.n(), b.k());
    if m.saturating_mul(n).saturating_mul(k) < SMALL {
        return blocks(&cpu.on_caller(), a, b, c, ldc, options);
    }
    cpu.enter(|| blocks(cpu, a, b, c, ldc, options));
}

fn blocks(cpu: &Cpu, a: &Mat, b: &dyn Panels, c: &mut Out, ldc: usize, options: Options) {
    let kernel = Kernel::new(cpu.simd());
    let (m, n, k) = (a.rows, b.n(), b.k());
    let depth = even(k.max(1), MAX_DEPTH, KC);
    let packed_depth = depth.min(k);
    let rows = even(m, MAX_BLOCK[0].min(MAX_PACKED / depth), kernel.mr);
    let cols = even(n, MAX_BLOCK[1].min(MAX_PACKED / depth), kernel.nr);
    let mut packed_a = cpu.scratch(rows * packed_depth);
    let mut packed_b = cpu.scratch(if b.is_dense() { cols * packed_depth } else { 0 });
    let mut wide = cpu.scratch(if matches!(c, Out::F32(_)) { 0 } else { rows * cols });
    let mut held = None;
    for i in (0..m).step_by(rows) {
        for j in (0..n).step_by(cols) {
            let (m, n) = (rows.min(m - i), cols.min(n - j));
            for kk in (0..k.max(1)).step_by(depth) {
                let ks = kk..k.min(kk + depth);
                if held != Some((i, kk)) {
                    pack_a(cpu, kernel, a, i..i + m, ks.clone(), options.round_bf16, &mut packed_a);
                    held = Some((i, kk));
                }
                let add = kk > 0 || (options.accumulate == Accumulate::Add && matches!(c, Out::F32(_)));
                let shape = Shape { m, n, k: ks.len(), alpha: options.alpha, add };
                let (c, ldc) = match c {
                    Out::F32(c) => (&mut c[i * ldc + j..], ldc),
                    _ => (&mut wide[..], n),
                };
                let block = Block { b, k: ks, cols: j..j + n, round: options.round_bf16 };
                if block.k.is_empty() {
                    clear(shape, c, ldc);
                } else if b.is_dense() {
                    pack_b(cpu, kernel, &block, &mut packed_b);
                    tiles(cpu, kernel, shape, &packed_a, &packed_b, c, ldc);
                } else {
                    strips(cpu, kernel, shape, &packed_a, &block, c, ldc);
                }
            }
            if !matches!(c, Out::F32(_)) {
                c.store_block(cpu, i * ldc + j, ldc, &wide[..m * n], n, options.accumulate);
            }
        }
    }
}

/// The length of the pieces when `total` is cut into as few as `most` allows, all about equally long and
/// whole multiples of `unit`.
fn even(total: usize, most: usize, unit: usize) -> usize {
    total.div_ceil(total.div_ceil(most)).next_multiple_of(unit)
}

/// Packs A[rows, k] in panels of mr rows.
fn pack_a(cpu: &Cpu, kernel: Kernel, a: &Mat, rows: Range<usize>, k: Range<usize>, round: bool, out: &mut [f32]) {
    let out = &mut out[..rows.len().next_multiple_of(kernel.mr) * k.len()];
    let group = SHORT_TASK.next_multiple_of(kernel.mr);
    cpu.chunks(out, group * k.len(), |task, out| {
        let first = rows.start + task * group;
        pack_lanes(cpu.simd(), a.row_lanes(), first..rows.end.min(first + group), k.clone(), kernel.mr, out);
        if round {
            round_bf16(cpu.simd(), out);
        }
    });
}

/// A part B[k, cols] of the right-hand operand, rounded to bf16 if `round`.
struct Block<'a> {
    b: &'a dyn Panels,
    k: Range<usize>,
    cols: Range<usize>,
    round: bool,
}

impl Block<'_> {
    /// Packs the strip of nr columns from the block's column `first` on.
    fn pack_strip(&self, simd: Simd, nr: usize, first: usize, out: &mut [f32]) {
        let first = self.cols.start + first;
        self.b.pack(self.k.clone(), first..self.cols.end.min(first + nr), nr, out);
        if self.round {
            round_bf16(simd, out);
        }
    }
}

/// Packs a block of B in strips of nr columns.
fn pack_b(cpu: &Cpu, kernel: Kernel, block: &Block, out: &mut [f32]) {
    let out = &mut out[..block.cols.len().next_multiple_of(kernel.nr) * block.k.len()];
    cpu.chunks(out, kernel.nr * block.k.len(), |strip, out| {
        block.pack_strip(cpu.simd(), kernel.nr, strip * kernel.nr, out);
    });
}

/// C = 0 where there is no product to add to it: the micro-kernel's loop never runs.
fn clear(shape: Shape, c: &mut [f32], ldc: usize) {
    if !shape.add {
        c.chunks_mut(ldc).take(shape.m).for_each(|row| row[..shape.n].fill(0.0));
    }
}

/// The product of the packed blocks into `c`, tile by tile.
fn tiles(cpu: &Cpu, kernel: Kernel, shape: Shape, a: &[f32], b: &[f32], c: &mut [f32], ldc: usize) {
    let Shape { m, n, .. } = shape;
    let tall = m.div_ceil(TASK[0]) * n.div_ceil(TASK[1]) >= MANY_TASKS;
    let rows = even(m, if tall { TASK[0] } else { SHORT_TASK }, kernel.mr);
    let cols = even(n, TASK[1], kernel.nr);
    each_task(cpu, shape, [rows, cols], c, ldc, |part, [i, j], c| {
        // SAFETY: `c` is this task's rectangle of `part`'s size.
        unsafe { kernel.multiply_at(part, &a[i * part.k..], &b[j * part.k..], c, ldc) }
    });
}

/// The product of packed A with a block of B that is decoded strip by strip.
fn strips(cpu: &Cpu, kernel: Kernel, shape: Shape, a: &[f32], block: &Block, c: &mut [f32], ldc: usize) {
    let Shape { m, n, k, .. } = shape;
    let many = n.div_ceil(kernel.nr) >= MANY_STRIPS;
    let rows = if many { m.next_multiple_of(kernel.mr) } else { even(m, TASK[0], kernel.mr) };
    each_task(cpu, shape, [rows, kernel.nr], c, ldc, |part, [i, j], c| {
        let mut strip = cpu.scratch(kernel.nr * k);
        block.pack_strip(cpu.simd(), kernel.nr, j, &mut strip);
        // SAFETY: `c` is this task's rectangle of `part`'s size.
        unsafe { kernel.multiply_at(part, &a[i * k..], &strip, c, ldc) }
    });
}

/// Cuts C into rectangles of `size` and calls `f(part, place, c)` for each: its size, its first row and column, and where
/// it begins in memory. The rectangle is the task's alone.
fn each_task(
    cpu: &Cpu,
    shape: Shape,
    [rows, cols]: [usize; 2],
    c: &mut [f32],
    ldc: usize,
    f: impl Fn(Shape, [usize; 2], *mut f32) + Sync + Send,
) {
    let Shape { m, n, .. } = shape;
    let c = Shared::new(c);
    let down = m.div_ceil(rows);
    cpu.run(down * n.div_ceil(cols), |task| {
        let (i, j) = (task % down * rows, task / down * cols);
        let part = Shape { m: rows.min(m - i), n: cols.min(n - j), ..shape };
        // Tasks' rectangles [i, i + rows) x [j, j + cols) are disjoint and inside C.
        f(part, [i, j], c.rectangle(i * ldc + j, part.m, part.n, ldc));
    });
}
