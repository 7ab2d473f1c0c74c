//! The packed path: blocks of A and B are packed once for all threads, then tiles of C are handed out.

use std::ops::Range;

use super::kernel::{Kernel, Shape};
use super::pack::{pack_lanes, round_bf16};
use super::{Accumulate, KC, Mat, Options, Out, Panels};
use crate::cpu::Cpu;
use crate::cpu::shared::Shared;

/// The most steps along k that are packed at a time.
const MAX_DEPTH: usize = 2 * KC;
/// The most floats of A, or of B, that are packed at a time: 4 MiB.
const MAX_PACKED: usize = 1 << 20;
/// The largest block of C: bounds the f32 block behind a 16-bit C to 8 MiB.
const MAX_BLOCK: [usize; 2] = [1024, 2048];
/// The tile of C that one task computes, about: the taller, the oftener a strip of B is reused from L1.
const TASK: [usize; 2] = [224, 192];
/// With fewer tall tasks than this they are cut shorter, to spread over many threads.
const MANY_TASKS: usize = 64;
const SHORT_TASK: usize = 96;
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
    let mut packed_b = cpu.scratch(cols * packed_depth);
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
                pack_b(cpu, kernel, b, ks.clone(), j..j + n, options.round_bf16, &mut packed_b);
                let add = kk > 0 || (options.accumulate == Accumulate::Add && matches!(c, Out::F32(_)));
                let shape = Shape { m, n, k: ks.len(), alpha: options.alpha, add };
                match c {
                    Out::F32(c) => tiles(cpu, kernel, shape, &packed_a, &packed_b, &mut c[i * ldc + j..], ldc),
                    _ => tiles(cpu, kernel, shape, &packed_a, &packed_b, &mut wide, n),
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

/// Packs B[k, cols] in strips of nr columns.
fn pack_b(
    cpu: &Cpu,
    kernel: Kernel,
    b: &dyn Panels,
    k: Range<usize>,
    cols: Range<usize>,
    round: bool,
    out: &mut [f32],
) {
    let out = &mut out[..cols.len().next_multiple_of(kernel.nr) * k.len()];
    let group = kernel.nr;
    cpu.chunks(out, group * k.len(), |task, out| {
        let first = cols.start + task * group;
        b.pack(k.clone(), first..cols.end.min(first + group), kernel.nr, out);
        if round {
            round_bf16(cpu.simd(), out);
        }
    });
}

/// The product of the packed blocks into `c`, tile by tile.
fn tiles(cpu: &Cpu, kernel: Kernel, shape: Shape, a: &[f32], b: &[f32], c: &mut [f32], ldc: usize) {
    let Shape { m, n, k, .. } = shape;
    if k == 0 {
        // No product to add: the micro-kernel's loop never runs, so C is cleared here.
        return if !shape.add {
            c.chunks_mut(ldc).take(m).for_each(|row| row[..n].fill(0.0))
        };
    }
    let c = Shared::new(c);
    let tall = m.div_ceil(TASK[0]) * n.div_ceil(TASK[1]) >= MANY_TASKS;
    let rows = even(m, if tall { TASK[0] } else { SHORT_TASK }, kernel.mr);
    let cols = even(n, TASK[1], kernel.nr);
    let down = m.div_ceil(rows);
    cpu.run(down * n.div_ceil(cols), |task| {
        let (i, j) = (task % down * rows, task / down * cols);
        let part = Shape { m: rows.min(m - i), n: cols.min(n - j), ..shape };
        let tile = c.rectangle(i * ldc + j, part.m, part.n, ldc);
        // SAFETY: tasks write disjoint rectangles [i, i + rows) x [j, j + cols) of C, inside it.
        unsafe { kernel.multiply_at(part, &a[i * k..], &b[j * k..], tile, ldc) }
    });
}
