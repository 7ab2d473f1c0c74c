// Products with a number that lives in a tensor of one f32 element (tensor/src/ops/scale.rs), bit for bit as on the
// CPU.
//
//   scale_T       out = x by
//   add_scaled    out = out + x by in one rounding, all f32; out is read and written
//
// Bytes: one read of x (and out), one write. Geometry: ceil(n / 1024) blocks of 256 threads.
#include "common.cuh"

template <typename T> INLINE void scale(const T* x, const f32* by, T* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    f32 values[4], factor = *by;
    read4(x, i, n, values);
#pragma unroll
    for (u32 k = 0; k < 4; k++) values[k] *= factor;
    write4(out, i, n, values);
}

#define SCALE(T)                                                                                                      \
    KERNEL(THREADS) scale_##T(const T* __restrict__ x, const f32* __restrict__ by, T* __restrict__ out, u64 n) {      \
        scale(x, by, out, n);                                                                                         \
    }
FLOATS(SCALE)

KERNEL(THREADS) add_scaled(const f32* __restrict__ x, const f32* __restrict__ by, f32* __restrict__ out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    f32 values[4], sums[4], factor = *by;
    read4(x, i, n, values);
    read4(out, i, n, sums);
#pragma unroll
    for (u32 k = 0; k < 4; k++) sums[k] = fmaf(factor, values[k], sums[k]);
    write4(out, i, n, sums);
}
