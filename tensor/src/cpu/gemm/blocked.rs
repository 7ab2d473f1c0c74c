//! The packed path. A is packed once for all threads, in blocks along k; then tasks take strips of B. A task packs (or decodes) one
//! block of a strip at a time, multiplies all of A's rows by it and forgets it: 512 steps of 32 columns (64 KiB) a thread are all
//! that is ever there of a quantised weight. Where many rows meet a dense B, that too is packed once for all.

use std::ops::Range;

use half::bf16;

use super::kernel::{Kernel, Next, Shape};
use super::packed::Packed;
use super::store::Target;
use super::{Accumulate, After, Dense, Elems, LowRank, Mat, Options, Out, Panels, rows};
use crate::Element as _;
use crate::cpu::Cpu;
use crate::cpu::scratch::Buffer;
use crate::cpu::shared::Shared;

/// The most bytes of A, or of a dense B, that are packed at a time, and those of f32 sums beside a 16-bit C.
const MAX_PACKED: usize = 8 << 20;
/// The most rows of one pass: a task's sums of eight strips are then 16 MiB.
const MAX_ROWS: usize = 16_384;
/// The most steps along k that one pass takes, so that a pass has at least 256 rows of f32.
const MAX_PASS: usize = 8192;
/// Bytes of A that a core keeps in L2 beside what else it needs.
const IN_L2: usize = 3 << 19;
/// From how many rows on a dense B is packed once for all tasks, each of which takes a tile of C then: A
/// would not stay in a core's L2 while strips pass by.
const MANY_ROWS: usize = 1024;
/// With fewer strips than this, rows are cut into tasks too, each of which packs its strip anew.
const MANY_STRIPS: usize = 16;
/// Tasks for each thread, where there are strips enough for that.
const TASKS: usize = 4;
/// The most strips that one task takes where A stays in L2: rows of C are then written by the half kilobyte.
const MAX_STRIPS: usize = 4;
/// Rows of A that one task packs.
const PACKED_ROWS: usize = 96;
/// Strips of a dense B that are packed together: their rows are some lines long.
const PACKED_STRIPS: usize = 8;
/// Products of fewer multiplications run on the calling thread; a hand-off would cost more.
const SMALL: usize = 1 << 18;

/// C = alpha A B with both operands packed. Sizes are checked by the caller.
pub(super) fn gemm(cpu: &Cpu, a: &Mat, b: &dyn Panels, mut c: Out, ldc: usize, options: Options, after: After) {
    let (m, n) = (a.rows, b.n());
    if b.k() == 0 {
        // The micro-kernel's loop would never run.
        if options.accumulate == Accumulate::Store {
            c.clear(cpu.simd(), [m, n], ldc);
        }
        return rows::add(cpu, &mut c, ldc, [m, n], after);
    }
    let is_small = m.saturating_mul(n).saturating_mul(b.k()) < SMALL;
    let cpu = &if is_small { cpu.on_caller() } else { cpu.clone() };
    let wide = Kernel::new(cpu.simd());
    let kernel = if options.round_bf16 { Kernel::of_bf16(cpu.simd()) } else { None };
    match (kernel, &c) {
        (None, _) => {
            passes(cpu, Kernel::of_shape(cpu.simd(), m, n), a, b, c, ldc, options, &Behind { kernel: wide, after })
        }
        (Some(kernel), Out::F32(_)) => passes(cpu, kernel, a, b, c, ldc, options, &Behind { kernel: wide, after }),
        // Rounded to 16 bits, the term needs no more than 16 of its own.
        (Some(kernel), _) => {
            let parts = after.low_rank.map(|l| [split(cpu, l.u, [0, 0, 1]), split(cpu, l.v, [0, 1, 0])]);
            let low_rank = after.low_rank.zip(parts.as_ref()).map(|(LowRank { u, v, scale }, parts)| {
                let whole = |part, of: &Mat| Mat::row_major(Elems::Bf16(part), of.rows, 3 * of.cols).expect("as split");
                LowRank { u: whole(&parts[0], &u), v: whole(&parts[1], &v), scale }
            });
            passes(cpu, kernel, a, b, c, ldc, options, &Behind { kernel, after: After { low_rank, ..after } })
        }
    }
}

/// Each row as three parts, by their number: 0 is the row rounded to bf16, 1 what that leaves, rounded. The product of rows of
/// [0, 0, 1] and [0, 1, 0] is then that of the rows but for the two remainders', 2^-16 of it.
fn split(cpu: &Cpu, x: Mat, parts: [usize; 3]) -> Buffer<bf16> {
    let (simd, len) = (cpu.simd(), x.rows * x.cols);
    let (mut wide, mut rounded) = (cpu.scratch(len), cpu.scratch(len));
    let mut both = [cpu.scratch_of(len), cpu.scratch_of(len)];
    let width = x.cols.max(1);
    wide.chunks_exact_mut(width).enumerate().for_each(|(i, row)| x.row_into(simd, i, row));
    bf16::narrow(simd, &wide, &mut both[0]);
    bf16::widen(simd, &both[0], &mut rounded);
    // Infinity, and what rounds to it, has no remainder.
    wide.iter_mut().zip(&*rounded).for_each(|(x, rounded)| *x = if rounded.is_finite() { *x - rounded } else { 0.0 });
    bf16::narrow(simd, &wide, &mut both[1]);
    let mut out = cpu.scratch_of(3 * len);
    for (i, out) in out.chunks_exact_mut(width).enumerate() {
        out.copy_from_slice(&both[parts[i % 3]][i / 3 * width..][..width]);
    }
    out
}

#[allow(clippy::too_many_arguments)]
fn passes<E: Packed, N: Packed>(
    cpu: &Cpu,
    kernel: Kernel<E>,
    a: &Mat,
    b: &dyn Panels,
    c: Out,
    ldc: usize,
    options: Options,
    after: &Behind<N>,
) {
    let (m, n, k) = (a.rows, b.n(), b.k());
    let c = Target::new(c, ldc, [0, 0]);
    let is_shared = b.is_dense() && m >= MANY_ROWS;
    // C in f32 takes the sums of each pass, so a pass can be as short as keeps A in L2 while all strips of B meet it.
    let in_l2 = IN_L2 / size_of::<E>() / m;
    let most = if c.is_f32() && !is_shared { in_l2.clamp(kernel.block, MAX_PASS) } else { MAX_PASS };
    // Cut along k by k alone: however many blocks make a pass, a row has the same bits.
    let depth = even(k, kernel.block, kernel.unit);
    let pass = even(k, most, depth).min(k);
    let is_one_pass = pass == k || c.is_f32();
    let most = (MAX_PACKED / size_of::<E>() / kernel.depth(pass)).min(MAX_ROWS);
    let rows = even(m, most, after.whole_panels(kernel.mr)).min(m);
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
        let packed_u = after.pack_u(cpu, i..m.min(i + rows));
        for j in (0..n).step_by(cols) {
            let (rows, cols) = (i..m.min(i + rows), j..n.min(j + cols));
            let width = cols.len();
            for first in (0..k).step_by(pass) {
                let last = first + pass >= k;
                let (rows, cols, k) = (rows.clone(), cols.clone(), first..k.min(first + pass));
                let after = last.then_some((after, &packed_u[..]));
                let part = Part { cpu, kernel, rows, cols, k, depth, options, after };
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
                    let options = Options { accumulate: Accumulate::Store, ..options };
                    Part { options, ..part }.multiply(&packed_a, b, shared, &sums);
                }
            }
            if !is_one_pass {
                cpu.run(rows.len(), |row| {
                    let sums = &sums[row * width..][..width];
                    // SAFETY: this row of the block is the task's alone.
                    unsafe { c.store(cpu.simd(), [i + row, j], sums, width, options.accumulate) };
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
struct Part<'a, E: 'static, N: 'static> {
    cpu: &'a Cpu,
    kernel: Kernel<E>,
    rows: Range<usize>,
    cols: Range<usize>,
    k: Range<usize>,
    /// Steps along k of a block.
    depth: usize,
    options: Options,
    /// What comes behind the last steps, with U packed.
    after: Option<(&'a Behind<'a, N>, &'a [N])>,
}

/// What comes behind a product, and the kernel for it.
struct Behind<'a, N: 'static> {
    kernel: Kernel<N>,
    after: After<'a>,
}

impl<N: Packed> Behind<'_, N> {
    /// Rows that are a whole number of panels of `mr` rows and of U's.
    fn whole_panels(&self, mr: usize) -> usize {
        match self.after.low_rank {
            Some(_) => lcm(mr, self.kernel.mr),
            None => mr,
        }
    }

    /// Steps of packed U.
    fn depth(&self) -> usize {
        self.after.low_rank.map_or(0, |l| self.kernel.depth(l.u.cols))
    }

    fn pack_u(&self, cpu: &Cpu, rows: Range<usize>) -> Buffer<N> {
        let Some(LowRank { u, .. }) = self.after.low_rank else { return cpu.scratch_of(0) };
        let mut packed = cpu.scratch_of(self.kernel.packed_a(rows.len(), u.cols));
        N::pack_a(cpu.simd(), self.kernel, &u, rows, 0..u.cols, false, &mut packed);
        packed
    }

    /// Rows of `sums`, which are as long as `cols`, += scale U V[cols]ᵀ + bias[cols].
    ///
    /// # Safety
    /// As for [`Kernel::multiply_held`].
    unsafe fn add(&self, cpu: &Cpu, packed_u: &[N], cols: Range<usize>, sums: &mut [f32]) {
        let (m, n) = (sums.len() / cols.len(), cols.len());
        if let Some(LowRank { v, scale, .. }) = self.after.low_rank {
            let mut packed_v = cpu.scratch_of(self.kernel.packed_b(n, v.cols));
            let b = Dense::new(cpu.simd(), v.transposed());
            N::pack_b(cpu.simd(), self.kernel, &b, 0..v.cols, cols.clone(), false, &mut packed_v);
            let shape = Shape { m, n, k: v.cols, alpha: scale, add: true };
            // SAFETY: the caller's.
            unsafe { self.kernel.multiply_held(shape, packed_u, &packed_v, None, sums, n) };
        }
        if let Some(bias) = self.after.bias {
            for row in sums.chunks_exact_mut(n) {
                row.iter_mut().zip(&bias[cols.clone()]).for_each(|(sum, bias)| *sum += bias);
            }
        }
    }
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

impl<E: Packed, N: Packed> Part<'_, E, N> {
    /// The blocks along k, counted from the pass's first step.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let (k, depth) = (self.k.len(), self.depth);
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
        let (width, padded) = (PACKED_STRIPS * kernel.nr, n.next_multiple_of(kernel.nr));
        let groups = n.div_ceil(width);
        let blocks: Vec<_> = self.blocks().collect();
        let out = Shared::new(out);
        self.cpu.run(groups * blocks.len(), |task| {
            let (block, first) = (&blocks[task / groups], task % groups * width);
            let at = padded * block.start + first * kernel.depth(block.len());
            let cols = first..n.min(first + width);
            // SAFETY: these strips of this block are the task's alone.
            let out = unsafe { out.slice(at, kernel.packed_b(cols.len(), block.len())) };
            self.pack_b(b, block, cols, out);
        });
    }

    /// C[rows, cols] = alpha A B, or += that: `shared` is packed B, where it is packed already.
    fn multiply(&self, packed_a: &[E], b: &dyn Panels, shared: Option<&[E]>, c: &Target) {
        let (Kernel { mr, nr, tile_of_task, .. }, m, n) = (self.kernel, self.rows.len(), self.cols.len());
        let tile = tile_of_task[usize::from(self.depth < self.k.len())];
        let mr = self.after.map_or(mr, |(after, _)| after.whole_panels(mr));
        let [rows, cols] = match shared {
            Some(_) => [even(m, tile, mr), even(n, tile, nr)],
            None if n.div_ceil(nr) < MANY_STRIPS => [even(m, tile, mr), nr],
            None => {
                // What does not fit into L2 passes by once for all strips of a task.
                let most = if self.k.len() * m * size_of::<E>() < IN_L2 { MAX_STRIPS } else { 2 * MAX_STRIPS };
                [m, nr * (n / nr / (TASKS * self.cpu.threads())).clamp(1, most)]
            }
        };
        let down = m.div_ceil(rows);
        let tasks = down * n.div_ceil(cols);
        self.cpu.run(tasks, |task| {
            let [i, j] = [task % down * rows, task / down * cols];
            // What a thread most likely takes next: tasks are taken in order.
            let then = if task + 1 < tasks { [(task + 1) % down * rows, (task + 1) / down * cols] } else { [i, j] };
            let (rows, cols) = (i..m.min(i + rows), j..n.min(j + cols));
            // SAFETY: within `held`; the tasks' rectangles are apart.
            self.kernel.held(|| unsafe { self.rectangle([rows, cols], then, packed_a, b, shared, c) });
        });
    }

    /// A rectangle of the part, which nobody else touches, block by block along k. Sums are formed beside it, in rows without gaps:
    /// C's may lie a page apart, or be of 16 bits. Operands of the rectangle that begins with row and column `then` are fetched at the end.
    ///
    /// # Safety
    /// As for [`Kernel::multiply_held`]; nothing else accesses the rectangle of C meanwhile.
    unsafe fn rectangle(
        &self,
        [rows, cols]: [Range<usize>; 2],
        then: [usize; 2],
        packed_a: &[E],
        b: &dyn Panels,
        shared: Option<&[E]>,
        c: &Target,
    ) {
        let Part { cpu, kernel, options, .. } = self;
        let (m, n) = (rows.len(), cols.len());
        let [padded_m, padded_n] =
            [self.rows.len().next_multiple_of(kernel.mr), self.cols.len().next_multiple_of(kernel.nr)];
        // A quantised strip is decoded, multiplied and forgotten before the next.
        let at_once = if b.is_dense() { n } else { kernel.nr };
        let first_block = 0..self.depth.min(self.k.len());
        let depth = if shared.is_some() { 0 } else { first_block.len() };
        let mut strips = cpu.scratch_of::<E>(kernel.packed_b(at_once.min(n), depth));
        let mut sums = cpu.scratch(m * n);
        let place = [self.rows.start + rows.start, self.cols.start + cols.start];
        // The order of additions of f32: C as it was, then block after block. What is in 16 bits is added to at the end.
        let goes_on = c.is_f32() && (self.k.start > 0 || options.accumulate == Accumulate::Add);
        if goes_on {
            // SAFETY: the caller's.
            unsafe { c.load(place, &mut sums, n) };
        }
        let mut add = goes_on;
        let a_of =
            |block: &Range<usize>, row: usize| &packed_a[padded_m * block.start + row * kernel.depth(block.len())..];
        let mut blocks = self.blocks().peekable();
        while let Some(block) = blocks.next() {
            let a = a_of(&block, rows.start);
            let shape = Shape { m, n, k: block.len(), alpha: options.alpha, add };
            if let Some(all) = shared {
                let b_of = |block: &Range<usize>, column: usize| {
                    &all[padded_n * block.start + column * kernel.depth(block.len())..]
                };
                let (next, [row, column]) = match blocks.peek() {
                    Some(next) => (next, [rows.start, cols.start]),
                    None => (&first_block, then),
                };
                let next = Next { a: a_of(next, row), b: b_of(next, column), k: next.len() };
                // SAFETY: the caller's.
                unsafe { kernel.multiply_held(shape, a, b_of(&block, cols.start), Some(&next), &mut sums, n) };
            } else {
                for j in (0..n).step_by(at_once) {
                    let width = at_once.min(n - j);
                    let strips = &mut strips[..kernel.packed_b(width, block.len())];
                    self.pack_b(b, &block, cols.start + j..cols.start + j + width, strips);
                    // SAFETY: the caller's.
                    unsafe { kernel.multiply_held(Shape { n: width, ..shape }, a, strips, None, &mut sums[j..], n) };
                }
            }
            add = true;
        }
        if let Some((after, packed_u)) = self.after {
            let packed_u = &packed_u[rows.start * after.depth()..];
            // SAFETY: the caller's; the kernel of the term has tiles only where this one has.
            unsafe { after.add(cpu, packed_u, place[1]..place[1] + n, &mut sums) };
        }
        let accumulate = if c.is_f32() { Accumulate::Store } else { options.accumulate };
        // SAFETY: the caller's.
        unsafe { c.store(cpu.simd(), place, &sums, n, accumulate) };
    }
}
