//! 4 x 16 in plain Rust: what other paths are tested against, and NEON through the compiler (16
//! accumulators of four floats, fused). Without an FMA instruction each step is a call of libm's fmaf:
//! slow, with the same bits.

/// Rows of a tile.
pub(super) const MR: usize = 4;
/// Columns of a tile.
pub(super) const NR: usize = 16;

/// See [`super::kernel::Tile`].
///
/// # Safety
/// As stated there.
pub(super) unsafe fn tile(
    k: usize,
    alpha: f32,
    add: bool,
    [a, b]: [*const f32; 2],
    _: Option<[*const f32; 2]>,
    c: *mut f32,
    ldc: usize,
) {
    let mut acc = [[0.0f32; NR]; MR];
    // SAFETY: k * MR floats of A and k * NR of B are valid (the caller's).
    let (a, b) = unsafe { (std::slice::from_raw_parts(a, k * MR), std::slice::from_raw_parts(b, k * NR)) };
    for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<NR>().0) {
        for (row, a) in acc.iter_mut().zip(a) {
            for (x, b) in row.iter_mut().zip(b) {
                *x = a.mul_add(*b, *x);
            }
        }
    }
    for (i, row) in acc.iter().enumerate() {
        // SAFETY: row i < MR of C is valid for NR floats and ours alone (the caller's).
        let c = unsafe { std::slice::from_raw_parts_mut(c.add(i * ldc), NR) };
        for (c, x) in c.iter_mut().zip(row) {
            *c = if add { alpha.mul_add(*x, *c) } else { alpha * x };
        }
    }
}
