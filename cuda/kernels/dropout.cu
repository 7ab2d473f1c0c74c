// Dropout (Srivastava et al., 2014), inverted (tensor/src/ops/dropout.rs), bit for bit as on the CPU. Its gradient is
// the same function of the output's gradient.
//
// out[i] = x[i] scale, or 0 where word i mod 4 of Philox block i / 4 is below threshold. The launcher computes, as the
// CPU does, threshold = (u32)(p 2^32) in f64 and scale = 1 / (1 - p) in f32.
// Bytes: one read, one write; the mask is never stored. Geometry: ceil(n / 1024) blocks of 256 threads.
#include "philox.cuh"

template <typename T>
INLINE void dropout(const T* x, u32 threshold, f32 scale, u32 key0, u32 key1, T* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    f32 values[4];
    read4(x, i, n, values);
    Words words = philox(key0, key1, i / 4);
#pragma unroll
    for (u32 k = 0; k < 4; k++) values[k] = words.at[k] < threshold ? 0.0f : values[k] * scale;
    write4(out, i, n, values);
}

#define DROPOUT(T)                                                                                                    \
    KERNEL(THREADS)                                                                                                   \
    dropout_##T(const T* __restrict__ x, u32 threshold, f32 scale, u32 key0, u32 key1, T* __restrict__ out, u64 n) {  \
        dropout(x, threshold, scale, key0, key1, out, n);                                                             \
    }
FLOATS(DROPOUT)
