//! [`super::product`] with AVX-512 VNNI: one instruction adds up four products of unsigned and signed bytes in each of 16 lanes.
//!
//! X = 256 h + l with a signed byte h and an unsigned one l, and codes q are bytes that can be read either way. So the four lanes of
//! four runs take ΣqX = 256 Σqh + Σlq: two instructions for 64 elements. What stands for zero in a format of codes about zero
//! is taken off at the end, as a sum of X that is the same for all rows of weights.

use super::Format;
use super::blocks512::{self, Blocks, MOST_BYTES, Step};
use super::fixed::{Fixed, Row};
use super::product::Rows;
use super::steps::RUNS;
use crate::cpu::scratch::Buffer;
use crate::cpu::{Cpu, Level, Simd, fetch};
use std::arch::x86_64::*;
use std::ops::Range;

/// The proof that AVX-512 VNNI may run, beside all of [`Level::Avx512`].
#[derive(Clone, Copy)]
pub(super) struct Vnni(());

impl Vnni {
    pub(super) fn detect(simd: Simd) -> Option<Self> {
        (simd.level() >= Level::Avx512 && is_x86_feature_detected!("avx512vnni")).then_some(Vnni(()))
    }
}

/// A register's worth.
type Line = [f32; 16];

/// Rows of x as bytes. A step has the lines h and l of the first 16 elements of each of its runs; the same of the last 16, where
/// runs have 32; and, of integers, what a sum of codes that mean zero is less than nothing.
pub(super) struct Planes {
    /// The first of the kernels for one to four rows of x.
    kernels: [Kernel; MOST_ROWS],
    lines: Buffer,
    /// Lines of a row of x.
    per_row: usize,
}

/// Multiplies rows of weights with rows of x from the given one on, into `out` from there on.
type Kernel = unsafe fn(&Planes, &Fixed, usize, &Rows<'_>, Range<usize>, &mut [f32]);

/// Rows of x that are multiplied at once: as many as there are registers for.
const MOST_ROWS: usize = 4;

impl Planes {
    /// Of the rows of `x`, for weights in `format`.
    pub(super) fn new(vnni: Vnni, cpu: &Cpu, format: Format, x: &Fixed) -> Self {
        match format {
            Format::Q4_0 => Self::of::<blocks512::Q4_0>(vnni, cpu, x),
            Format::Q4_1 => Self::of::<blocks512::Q4_1>(vnni, cpu, x),
            Format::Q5_0 => Self::of::<blocks512::Q5_0>(vnni, cpu, x),
            Format::Q5_1 => Self::of::<blocks512::Q5_1>(vnni, cpu, x),
            Format::Q8_0 => Self::of::<blocks512::Q8_0>(vnni, cpu, x),
            Format::Q2_K => Self::of::<blocks512::Q2_K>(vnni, cpu, x),
            Format::Q3_K => Self::of::<blocks512::Q3_K>(vnni, cpu, x),
            Format::Q4_K => Self::of::<blocks512::Q4_K>(vnni, cpu, x),
            Format::Q5_K => Self::of::<blocks512::Q5_K>(vnni, cpu, x),
            Format::Q6_K => Self::of::<blocks512::Q6_K>(vnni, cpu, x),
            Format::F32 | Format::F16 | Format::BF16 => unreachable!("plain numbers are no blocks"),
        }
    }

    fn of<F: Blocks>(_: Vnni, cpu: &Cpu, x: &Fixed) -> Self {
        let per_row = x.width / (RUNS * F::RUN) * lines_of_step::<F>();
        let kernels: [Kernel; MOST_ROWS] = [dot_rows::<F, 1>, dot_rows::<F, 2>, dot_rows::<F, 3>, dot_rows::<F, 4>];
        let mut planes = Planes { kernels, lines: cpu.scratch(x.m * per_row * 16), per_row };
        for (i, lines) in planes.lines.as_chunks_mut().0.chunks_exact_mut(per_row).enumerate() {
            // SAFETY: a `Vnni` is only made where these instructions are.
            unsafe { split::<F>(x.row(i), lines) };
        }
        planes
    }

    /// The dot products of rows of weights with each row of x: [rows of weights, rows of x].
    pub(super) fn dot(&self, x: &Fixed, rows: &Rows<'_>, which: Range<usize>, out: &mut [f32]) {
        for first in (0..x.m).step_by(MOST_ROWS) {
            let kernel = self.kernels[(x.m - first).min(MOST_ROWS) - 1];
            // SAFETY: only a `Vnni` makes planes.
            unsafe { kernel(self, x, first, rows, which.clone(), out) };
        }
    }
}

/// Lines of a step: two for each 16 elements of a run, and one.
const fn lines_of_step<F: Blocks>() -> usize {
    F::RUN / 16 * 2 + 1
}

/// The bytes of one row of x.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn split<F: Blocks>(x: Row<'_>, lines: &mut [Line]) {
    let steps = x.values.chunks_exact(RUNS * F::RUN).zip(lines.chunks_exact_mut(lines_of_step::<F>()));
    for (values, lines) in steps {
        for (r, run) in values.chunks_exact(F::RUN).enumerate() {
            for (half, values) in run.as_chunks::<16>().0.iter().enumerate() {
                // SAFETY: loads and stores of exactly 16 values, and of 16 of a line's 64 bytes.
                unsafe {
                    let values = _mm256_loadu_si256(values.as_ptr().cast());
                    let (high, low) =
                        (_mm256_cvtepi16_epi8(_mm256_srai_epi16::<8>(values)), _mm256_cvtepi16_epi8(values));
                    _mm_storeu_si128(lines[half * 2].as_mut_ptr().cast::<__m128i>().add(r), high);
                    _mm_storeu_si128(lines[half * 2 + 1].as_mut_ptr().cast::<__m128i>().add(r), low);
                }
            }
        }
        let [unsigned, signed] = F::ZERO;
        let (unsigned, signed) = (_mm512_set1_epi8(unsigned as i8), _mm512_set1_epi8(signed as i8));
        let zeros = sums_of_products::<F>([unsigned; 2], [signed; 2], lines);
        store(&mut lines[lines_of_step::<F>() - 1], _mm512_sub_epi32(_mm512_setzero_si512(), zeros));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a load of exactly the line.
    unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(line: &mut Line, value: __m512i) {
    // SAFETY: a store of exactly the line.
    unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), value) }
}

/// ΣqX of each lane, where a code is `unsigned` beside h and `signed` beside l.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sums_of_products<F: Blocks>(unsigned: [__m512i; 2], signed: [__m512i; 2], lines: &[Line]) -> __m512i {
    let mut sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), unsigned[0], load(&lines[0]));
    if F::RUN == 32 {
        sums = _mm512_dpbusd_epi32(sums, unsigned[1], load(&lines[2]));
    }
    sums = _mm512_dpbusd_epi32(_mm512_slli_epi32::<8>(sums), load(&lines[1]), signed[0]);
    if F::RUN == 32 {
        sums = _mm512_dpbusd_epi32(sums, load(&lines[3]), signed[1]);
    }
    sums
}

/// The dot products of rows of weights with rows `first` to `first + M` of x.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn dot_rows<F: Blocks, const M: usize>(
    planes: &Planes,
    x: &Fixed,
    first: usize,
    rows: &Rows<'_>,
    which: Range<usize>,
    out: &mut [f32],
) {
    let of_x = rows_of_x::<F, M>(planes, x, first);
    let (whole, bytes_left) = (rows.bytes / F::BYTES, rows.bytes % F::BYTES);
    // A last group of fewer than four blocks is read with what lies behind it, whose scales are masked.
    let mask = (1 << (bytes_left / F::FORMAT.block_bytes())) - 1;
    for (row, out) in which.zip(out.chunks_exact_mut(x.m)) {
        let bytes = rows.from(row);
        let mut sums = Sums { lanes: [_mm512_setzero_ps(); M], mins: [_mm_setzero_ps(); M] };
        for (group, bytes) in bytes[..whole * F::BYTES].chunks_exact(F::BYTES).enumerate() {
            prefetch::<F>(bytes);
            for part in 0..F::STEPS {
                // SAFETY: the bytes of a group, and this function has the features.
                let step = unsafe { F::step(bytes, part) };
                add_step::<F, M>(&step, &of_x, group * F::STEPS + part, 0b1111, &mut sums);
            }
        }
        if bytes_left > 0 {
            let bytes = &bytes[whole * F::BYTES..];
            let step = match bytes.get(..F::BYTES) {
                // SAFETY: as above.
                Some(bytes) => unsafe { F::step(bytes, 0) },
                // SAFETY: as above.
                None => unsafe { F::step(&padded(bytes)[..F::BYTES], 0) },
            };
            add_step::<F, M>(&step, &of_x, whole, mask, &mut sums);
        }
        for i in 0..M {
            out[first + i] = total(sums.lanes[i], sums.mins[i]);
        }
    }
}

/// How far ahead of a group memory is asked for: rows follow one another, and what the CPU does by itself ends with a page.
const AHEAD: usize = 2048;

/// Asks for what the group AHEAD is in.
#[inline(always)]
fn prefetch<F: Blocks>(bytes: &[u8]) {
    for line in 0..F::BYTES.div_ceil(64) {
        fetch(bytes.as_ptr().wrapping_add(AHEAD + line * 64));
    }
}

/// The sums of M rows of x so far.
struct Sums<const M: usize> {
    lanes: [__m512; M],
    mins: [__m128; M],
}

/// Adds a step of weights, of which `mask` has the runs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn add_step<F: Blocks, const M: usize>(step: &Step, x: &[RowOfX<'_>; M], index: usize, mask: u8, sums: &mut Sums<M>) {
    let expand = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    for (i, x) in x.iter().enumerate() {
        let lines = &x.lines[index * lines_of_step::<F>()..][..lines_of_step::<F>()];
        let mut products = sums_of_products::<F>(step.unsigned, step.signed, lines);
        if F::ZERO != [0; 2] {
            products = _mm512_add_epi32(products, load(&lines[lines_of_step::<F>() - 1]));
        }
        // SAFETY: loads of exactly four floats.
        let (scales, sums_of_x) =
            unsafe { (_mm_loadu_ps(x.row.scales[index].as_ptr()), _mm_loadu_ps(x.row.sums[index].as_ptr())) };
        let scales = _mm512_castps128_ps512(_mm_maskz_mul_ps(mask, step.scales, scales));
        let scales = _mm512_permutexvar_ps(expand, scales);
        sums.lanes[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scales, sums.lanes[i]);
        if F::HAS_MIN {
            sums.mins[i] = _mm_mask3_fmadd_ps(step.mins, sums_of_x, sums.mins[i], mask);
        }
    }
}

/// A row of x.
#[derive(Clone, Copy)]
struct RowOfX<'a> {
    lines: &'a [Line],
    row: Row<'a>,
}

fn rows_of_x<'a, F: Blocks, const M: usize>(planes: &'a Planes, x: &'a Fixed, first: usize) -> [RowOfX<'a>; M] {
    let lines = planes.lines.as_chunks::<16>().0;
    std::array::from_fn(|i| {
        let at = (first + i) * planes.per_row;
        RowOfX { lines: &lines[at..at + planes.per_row], row: x.row(first + i) }
    })
}

/// Fewer than four blocks of 32, filled up with zeros.
#[cold]
fn padded(blocks: &[u8]) -> [u8; MOST_BYTES] {
    let mut bytes = [0; MOST_BYTES];
    bytes[..blocks.len()].copy_from_slice(blocks);
    bytes
}

/// The lanes folded in halves.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn total(lanes: __m512, mins: __m128) -> f32 {
    let lanes = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps::<1>(lanes));
    let lanes = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    _mm_cvtss_f32(_mm_add_ss(fold_four(lanes), fold_four(mins)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn fold_four(lanes: __m128) -> __m128 {
    let lanes = _mm_add_ps(lanes, _mm_movehl_ps(lanes, lanes));
    _mm_add_ss(lanes, _mm_movehdup_ps(lanes))
}
