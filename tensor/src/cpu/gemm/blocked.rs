//! The packed path. A is packed once for all threads, in blocks along k; then tasks take strips of B. A task packs (or decodes) one
//! strip of a block at a time, multiplies all of A's rows by it and forgets it: [`DEPTH`] steps of nr columns (64 KiB) a thread are
//! all that is ever there of a quantised weight. Where many rows meet a dense B, that too is packed once for all.

use std::ops::Range;

use super::kernel::{Kernel, Shape};
use super::packed::Packed;
use super::store::Target;
use super::{Accumulate, Mat, Options, Out, Panels};
use crate::cpu::Cpu;
use crate::cpu::shared::Shared;

/// The most bytes of A, or of a dense B, that are packed at a time, and those of f32 sums beside a 16-bit C.
const MAX_PACKED: usize = 8 << 20;
/// The most steps along k that one pass takes, so that a pass has at least 256 rows of f32.
const MAX_PASS: usize = 8192;
/// From how many rows on a dense B is packed once for all tasks, each of which takes a tile of about [`TILE`] then: A would not
/// stay in a core's L2 while strips pass by.
const MANY_ROWS: usize = 1024;
const TILE: [usize; 2] = [224, 192];
/// With fewer strips than this, rows are cut into tasks too, each of which packs its strip anew.
const MANY_STRIPS: usize = 16;
/// Rows of A that one task packs.
const PACKED_ROWS: usize = 96;
/// Products of fewer multiplications run on the calling thread; a hand-off would cost more.
const SMALL: usize = 1 << 18;

/// C = alpha A B with both operands packed. Sizes are checked by the caller.
pub(super) fn gemm(cpu: &Cpu, a: &Mat, b: &dyn Panels, c: Out, ldc: usize, options: Options) {
    let is_small = a.rows.saturating_mul(b.n()).saturating_mul(b.k()) < SMALL;
    let cpu = &if is_small { cpu.on_caller() } else { cpu.clone() };
    let kernel = if options.round_bf16 { Kernel::of_bf16(cpu.simd()) } else { None };
    cpu.enter(|| match kernel {
        Some(kernel) => passes(cpu, kernel, a, b, c, ldc, options),
        None => passes(cpu, Kernel::new(cpu.simd()), a, b, c, ldc, options),
    });
}

fn passes<E: Packed>(cpu: &Cpu, kernel: Kernel<E>, a: &Mat, b: &dyn Panels, c: Out, ldc: usize, options: Options) {
    let (m, n, k) = (a.rows, b.n(), b.k());
    let c = Target::new(c, ldc, [0, 0]);
    if k == 0 {
        // The micro-kernel's loop would never run.
        return if options.accumulate == Accumulate::Store {
            c.clear(cpu.simd(), m, n)
        };
    }
    let pass = even(k, MAX_PASS, kernel.unit).min(k);
    let is_one_pass = pass == k || c.is_f32();
    let is_shared = b.is_dense() && m >= MANY_ROWS;
    let most = MAX_PACKED / size_of::<E>() / kernel.depth(pass);
    let rows = even(m, most, kernel.mr).min(m);
    let cols = match (is_shared, is_one_pass) {
        (true, _) => even(n, most, kernel.nr).min(n),
        (false, true) => n,
        (false, false) => even(n, MAX_PACKED / size_of::<f32>() / rows, kernel.nr).min(n),
    };
    let mut packed_a = cpu.scratch_of::<E>(kernel.packed_a(rows, pass));
    let mut packed_b = cpu.scratch_of::<E>(if is_shared { kernel.packed_b(cols, pass) } else { 0 });
    let mut sums = cpu.scratch(if is_one_pass { 0 } else { rows * cols });
    let mut held = None;
    for i in (0..m).step_by(rows) {
        for j in (0..n).step_by(cols) {
            let (rows, cols) = (i..m.min(i + rows), j..n.min(j + cols));
            let width = cols.len();
            for first in (0..k).step_by(pass) {
                let (rows, cols, k) = (rows.clone(), cols.clone(), first..k.min(first + pass));
                let part = Part { cpu, kernel, rows, cols, k, options };
                if held != Some((i, first)) {
                    part.pack_a(a, &mut packed_a);
                    held = Some((i, first));
                }
                if is_shared {
                    part.pack_all(b, &mut packed_b);
                }
                let shared = is_shared.then_some(&packed_b[..]);
                if is_one_pass {
                    part.multiply(&packed_a, b, shared, &c);
                } else {
                    // Sums of all passes in f32, to be rounded once.
                    let sums = Target::new(Out::F32(&mut sums), width, [i, j]);
                    let options = Options { alpha: 1.0, accumulate: Accumulate::Store, ..options };
                    Part { options, ..part }.multiply(&packed_a, b, shared, &sums);
                }
            }
            if !is_one_pass {
                cpu.run(rows.len(), |row| {
                    let sums = &sums[row * width..][..width];
                    // SAFETY: this row of the block is the task's alone.
                    unsafe { c.store(cpu.simd(), [i + row, j], sums, options) };
                });
            }
        }
    }
}

/// The length of the pieces when `total` is cut into as few as `most` allows, all about equally long and
/// whole multiples of `unit`.
fn even(total: usize, most: usize, unit: usize) -> usize {
    total.div_ceil(total.div_ceil(most)).next_multiple_of(unit)
}

/// The rows, columns and steps of one pass, of which the steps are cut into blocks.
struct Part<'a, E: 'static> {
    cpu: &'a Cpu,
    kernel: Kernel<E>,
    rows: Range<usize>,
    cols: Range<usize>,
    k: Range<usize>,
    options: Options,
}

impl<E: Packed> Part<'_, E> {
    /// Steps along k of a block.
    fn depth(&self) -> usize {
        even(self.k.len(), self.kernel.block, self.kernel.unit)
    }

    /// The blocks along k, counted from the pass's first step.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let (k, depth) = (self.k.len(), self.depth());
        (0..k).step_by(depth).map(move |first| first..k.min(first + depth))
    }

    /// Packs A[rows, k]: `[block][panel][depth / group][mr][group]`.
    fn pack_a(&self, a: &Mat, out: &mut [E]) {
        let (kernel, m) = (self.kernel, self.rows.len());
        let group = PACKED_ROWS.next_multiple_of(kernel.mr);
        let groups = m.div_ceil(group);
        let blocks: Vec<_> = self.blocks().collect();
        let padded = m.next_multiple_of(kernel.mr);
        let out = Shared::new(out);
        self.cpu.run(groups * blocks.len(), |task| {
            let (block, first) = (&blocks[task / groups], task % groups * group);
            let rows = first..m.min(first + group);
            let at = padded * block.start + first * kernel.depth(block.len());
            // SAFETY: the panels of these rows in this block are the task's alone.
            let out = unsafe { out.slice(at, kernel.packed_a(rows.len(), block.len())) };
            let (rows, k) = (self.rows.start + rows.start..self.rows.start + rows.end, self.steps(block));
            E::pack_a(self.cpu.simd(), kernel, a, rows, k, self.options.round_bf16, out);
        });
    }

    /// Steps of the whole product.
    fn steps(&self, block: &Range<usize>) -> Range<usize> {
        self.k.start + block.start..self.k.start + block.end
    }

    /// Packs the strips of B[block, cols].
    fn pack_b(&self, b: &dyn Panels, block: &Range<usize>, cols: Range<usize>, out: &mut [E]) {
        let cols = self.cols.start + cols.start..self.cols.start + cols.end;
        E::pack_b(self.cpu.simd(), self.kernel, b, self.steps(block), cols, self.options.round_bf16, out);
    }

    /// Packs all of B[k, cols]: `[block][strip][depth / g][nr][g]`.
    fn pack_all(&self, b: &dyn Panels, out: &mut [E]) {
        let (kernel, n) = (self.kernel, self.cols.len());
        let strips = n.div_ceil(kernel.nr);
        let blocks: Vec<_> = self.blocks().collect();
        let out = Shared::new(out);
        self.cpu.run(strips * blocks.len(), |task| {
            let (block, first) = (&blocks[task / strips], task % strips * kernel.nr);
            let at = strips * kernel.nr * block.start + first * kernel.depth(block.len());
            // SAFETY: this strip of this block is the task's alone.
            let out = unsafe { out.slice(at, kernel.packed_b(1, block.len())) };
            self.pack_b(b, block, first..n.min(first + kernel.nr), out);
        });
    }

    /// C[rows, cols] = alpha A B, or += that: `shared` is packed B, where it is packed already.
    fn multiply(&self, packed_a: &[E], b: &dyn Panels, shared: Option<&[E]>, c: &Target) {
        let (Kernel { mr, nr, .. }, m, n) = (self.kernel, self.rows.len(), self.cols.len());
        let [rows, cols] = match shared {
            Some(_) => [even(m, TILE[0], mr), even(n, TILE[1], nr)],
            None if n.div_ceil(nr) < MANY_STRIPS => [even(m, TILE[0], mr), nr],
            None => [m, nr],
        };
        let down = m.div_ceil(rows);
        self.cpu.run(down * n.div_ceil(cols), |task| {
            let (i, j) = (task % down * rows, task / down * cols);
            self.rectangle(i..m.min(i + rows), j..n.min(j + cols), packed_a, b, shared, c);
        });
    }

    /// A rectangle of the part, block by block along k; nobody else touches it. Sums for a 16-bit C lie beside it until they are
    /// whole.
    fn rectangle(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
        packed_a: &[E],
        b: &dyn Panels,
        shared: Option<&[E]>,
        c: &Target,
    ) {
        let Part { cpu, kernel, options, .. } = self;
        let (m, n) = (rows.len(), cols.len());
        let [padded_m, padded_n] =
            [self.rows.len().next_multiple_of(kernel.mr), self.cols.len().next_multiple_of(kernel.nr)];
        let mut strip =
            cpu.scratch_of::<E>(if shared.is_some() { 0 } else { kernel.packed_b(n, self.depth().min(self.k.len())) });
        let mut sums = cpu.scratch(if c.is_f32() { 0 } else { m * n });
        let place = [self.rows.start + rows.start, self.cols.start + cols.start];
        let (alpha, mut add, out, ldc) = match c.rectangle(place, [m, n]) {
            Some((out, ldc)) => (options.alpha, self.k.start > 0 || options.accumulate == Accumulate::Add, out, ldc),
            None => (1.0, false, sums.as_mut_ptr(), n),
        };
        for block in self.blocks() {
            let depth = kernel.depth(block.len());
            let b = match shared {
                Some(all) => &all[padded_n * block.start + cols.start * depth..],
                None => {
                    let strip = &mut strip[..kernel.packed_b(n, block.len())];
                    self.pack_b(b, &block, cols.clone(), strip);
                    strip
                }
            };
            let a = &packed_a[padded_m * block.start + rows.start * depth..];
            // SAFETY: `out` is this rectangle of C or of `sums`, `ldc` the distance between its rows.
            unsafe { kernel.multiply_at(Shape { m, n, k: block.len(), alpha, add }, a, b, out, ldc) };
            add = true;
        }
        for (i, sums) in sums.chunks_exact(n).enumerate() {
            // SAFETY: the rectangle is this task's alone.
            unsafe { c.store(cpu.simd(), [place[0] + i, place[1]], sums, *options) };
        }
    }
}
