// The Euclidean norm of all gradients (optim/src/norm.rs), bit for bit as on the CPU.
//
//   grad_norm_partial   partial[i] = the sum of the squares of chunk i of 65536 elements, in f64 (each square is exact)
//   grad_norm           out = sqrt of the sum of the partial sums from first to last, rounded to f32
//
// x has n elements of f32, partial ceil(n / 65536) of f64. Infinite or NaN when an element is.
// Bytes: one read of x. Geometry: ceil(n / 262144) blocks of 128 threads, one warp a chunk; then one block of one warp.
#include "common.cuh"

constexpr u64 CHUNK = 65536;

INLINE f64 add_square(f64 sum, f32 x) { return sum + (f64)x * (f64)x; }

KERNEL(ROW_THREADS) grad_norm_partial(const f32* __restrict__ x, f64* __restrict__ partial, u64 n) {
    u64 chunk = warp_row(), start = chunk * CHUNK;
    if (start >= n) return;
    u32 len = (u32)min(CHUNK, n - start);
    x += start;
    bool paired = aligned<2>(x);
    Pair<f64> lanes = {0.0, 0.0};
    each_pair(
        len,
        [&](u32 i) {
            auto [a, b] = read2(x, i, paired);
            lanes = {add_square(lanes.a, a), add_square(lanes.b, b)};
        },
        [&](u32 i) { lanes.a = add_square(lanes.a, x[i]); });
    f64 sum = fold(lanes, [](f64 a, f64 b) { return a + b; });
    if (lane_index() == 0) partial[chunk] = sum;
}

KERNEL(WARP) grad_norm(const f64* __restrict__ partial, f32* __restrict__ out, u64 count) {
    f64 sum = sum_in_order(count, [=](u64 i) { return partial[i]; });
    if (lane_index() == 0) *out = (f32)__dsqrt_rn(sum);
}
