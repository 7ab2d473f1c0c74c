// out = x scale + shift with one rounding (tensor/src/ops/affine.rs), bit for bit as on the CPU.
//
// Bytes: one read, one write. Geometry: ceil(n / 1024) blocks of 256 threads.
#include "common.cuh"

template <typename T> INLINE void affine(const T* x, const View& x_view, f32 scale, f32 shift, T* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    f32 values[4];
    read4(x, x_view, i, n, values);
#pragma unroll
    for (u32 k = 0; k < 4; k++) values[k] = fmaf(values[k], scale, shift);
    write4(out, i, n, values);
}

#define AFFINE(T)                                                                                                     \
    KERNEL(THREADS)                                                                                                   \
    affine_##T(const T* __restrict__ x, VIEW x_view, f32 scale, f32 shift, T* __restrict__ out, u64 n) {              \
        affine(x, x_view, scale, shift, out, n);                                                                      \
    }
FLOATS(AFFINE)
