//! Products of few rows of 16-bit floats with ggml's blocks as they lie, in integers.
//!
//! A row of x becomes fixed-point numbers of 16 bits ([`super::fixed`]), X s; a run of 16 or 32 weights is d q + m, where q are
//! integers of at most 8 bits. So a dot product is Σ over runs of d s ΣqX + m s ΣX, whose inner sums are exact.
//!
//! Bits: a step is four runs, and a run has four lanes: lane (run mod 4) · 4 + (i / 4) mod 4 has the elements i of a run. A step adds the
//! sum of qX of a lane, rounded to f32, times d s (rounded) to the lane in one fused step; and m times s ΣX to lane
//! (run mod 4) of four more. After the last step the 16 lanes are folded in halves, as are the four, and the two results added. So
//! all SIMD levels have the same bits, as have the kernels of CUDA devices (`cuda/kernels/matvec_gguf.cuh`).

use super::Format;
use super::fixed::{Fixed, Row};
use super::steps::{RUNS, Step, unpack};
#[cfg(target_arch = "x86_64")]
use super::{avx2, vnni};
#[cfg(target_arch = "x86_64")]
use crate::cpu::Level;
use crate::cpu::Simd;
use crate::cpu::gemm::{Columns, FewRows};
use crate::cpu::reduce::fold;

/// Partial sums of a dot product.
pub(super) const LANES: usize = 16;

/// The product of few rows with columns of a matrix in blocks, if it can be formed in integers: x must be of 16 bits, and
/// `format` one of blocks. Column j of the right-hand operand is row `stored(j)` of the matrix.
#[must_use]
pub fn columns<'a>(
    format: Format,
    x: FewRows<'a>,
    blocks: &'a [u8],
    stored: impl Fn(usize) -> usize + Sync + 'a,
) -> Option<Box<dyn Columns + 'a>> {
    if !x.is_half || format.run() == 0 || x.k == 0 || !x.k.is_multiple_of(format.block_len()) {
        return None;
    }
    let bytes = x.k / format.block_len() * format.block_bytes();
    let rows = Rows { blocks, bytes, stored: Box::new(stored) };
    let (simd, fixed) = (x.cpu.simd(), Fixed::new(x.cpu, x.rows, x.k, format.run()));
    #[cfg(target_arch = "x86_64")]
    if let Some(vnni) = vnni::Vnni::detect(simd) {
        let planes = vnni::Planes::new(vnni, x.cpu, format, &fixed);
        return Some(Box::new(InPlanes { planes, fixed, rows }));
    }
    Some(Box::new(InSteps { simd, format, fixed, rows }))
}

/// Rows of blocks.
pub(super) struct Rows<'a> {
    blocks: &'a [u8],
    /// Bytes of a row.
    pub(super) bytes: usize,
    stored: Box<dyn Fn(usize) -> usize + Sync + 'a>,
}

impl Rows<'_> {
    /// Row `j`, with whatever lies behind it.
    pub(super) fn from(&self, j: usize) -> &[u8] {
        let row = &self.blocks[(self.stored)(j) * self.bytes..];
        assert!(row.len() >= self.bytes, "row {j} of a matrix in blocks has {} bytes of {}", row.len(), self.bytes);
        row
    }
}

#[cfg(target_arch = "x86_64")]
struct InPlanes<'a> {
    planes: vnni::Planes,
    fixed: Fixed,
    rows: Rows<'a>,
}

#[cfg(target_arch = "x86_64")]
impl Columns for InPlanes<'_> {
    fn dot(&self, first: usize, out: &mut [f32]) {
        self.planes.dot(&self.fixed, &self.rows, first..first + out.len() / self.fixed.m, out);
    }
}

struct InSteps<'a> {
    simd: Simd,
    format: Format,
    fixed: Fixed,
    rows: Rows<'a>,
}

impl Columns for InSteps<'_> {
    fn dot(&self, first: usize, out: &mut [f32]) {
        for (i, out) in out.chunks_exact_mut(self.fixed.m).enumerate() {
            dot(self.simd, self.format, &self.fixed, &self.rows.from(first + i)[..self.rows.bytes], out);
        }
    }
}

/// The dot products of a row of blocks with each row of x.
fn dot(simd: Simd, format: Format, x: &Fixed, row: &[u8], out: &mut [f32]) {
    match simd.level() {
        // SAFETY: the level proves AVX2.
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx2 => unsafe { avx2::dot(format, x, row, out) },
        _ => dot_portable(format, x, row, out),
    }
}

/// The sums of one row of x so far.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) lanes: [f32; LANES],
    pub(super) mins: [f32; RUNS],
}

impl Sums {
    pub(super) const ZERO: Sums = Sums { lanes: [0.0; LANES], mins: [0.0; RUNS] };

    pub(super) fn total(&self) -> f32 {
        fold(self.lanes, |a, b| a + b) + fold(self.mins, |a, b| a + b)
    }
}

fn dot_portable(format: Format, x: &Fixed, row: &[u8], out: &mut [f32]) {
    let mut sums = [Sums::ZERO; crate::cpu::gemm::FEW_ROWS];
    let mut step = Step::ZERO;
    for index in 0..format.steps(row.len()) {
        unpack(format, row, index, &mut step);
        for (i, sums) in sums[..out.len()].iter_mut().enumerate() {
            add_step(format, &step, x.row(i), index, sums);
        }
    }
    out.iter_mut().zip(&sums).for_each(|(out, sums)| *out = sums.total());
}

fn add_step(format: Format, step: &Step, x: Row<'_>, index: usize, sums: &mut Sums) {
    let run = format.run();
    let codes = step.codes.chunks_exact(run).zip(x.values[index * RUNS * run..].chunks_exact(run));
    for (r, (codes, values)) in codes.take(RUNS).enumerate() {
        let mut exact = [0; 4];
        for (i, (&code, &value)) in codes.iter().zip(values).enumerate() {
            exact[i / 4 % 4] += i32::from(code) * i32::from(value);
        }
        let scale = step.scales[r] * x.scales[index][r];
        for (lane, exact) in sums.lanes[r * 4..].iter_mut().zip(exact) {
            *lane = (exact as f32).mul_add(scale, *lane);
        }
        if format.has_min() {
            sums.mins[r] = step.mins[r].mul_add(x.sums[index][r], sums.mins[r]);
        }
    }
}
