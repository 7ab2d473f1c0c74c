// Dropout (Srivastava et al., 2014), inverted (tensor/src/ops/dropout.rs), bit for bit as on the CPU. Its gradient is
// the same function of the output's gradient.
//
//   dropout_X_T   out = drop(x), or with `accumulate` out += drop(x); x of type X, out of type T
//
// drop(x)[i] = x[i] scale, or 0 where word i mod 4 of Philox block i / 4 is below threshold. The launcher computes, as the
// CPU does, threshold = (u32)(p 2^32) in f64 and scale = 1 / (1 - p) in f32. A sum is formed in f32 and rounded once.
// Bytes: one read of x, one write of out, and one read where it is added to; the mask is never stored. Geometry:
// ceil(n / 1024) blocks of 256 threads.
#include "philox.cuh"

template <typename X, typename T>
INLINE void dropout(const X* x, u32 threshold, f32 scale, u32 key0, u32 key1, bool accumulate, T* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    f32 values[4], sums[4] = {};
    read4(x, i, n, values);
    if (accumulate) read4(out, i, n, sums);
    Words words = philox(key0, key1, i / 4);
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        f32 kept = words.at[k] < threshold ? 0.0f : values[k] * scale;
        values[k] = accumulate ? sums[k] + kept : kept;
    }
    write4(out, i, n, values);
}

#define DROPOUT(X, T)                                                                                                 \
    KERNEL(THREADS)                                                                                                   \
    dropout_##X##_##T(const X* __restrict__ x, u32 threshold, f32 scale, u32 key0, u32 key1, u32 accumulate,          \
                      T* __restrict__ out, u64 n) {                                                                   \
        dropout(x, threshold, scale, key0, key1, accumulate != 0, out, n);                                            \
    }
DROPOUT(f32, f32) DROPOUT(f16, f16) DROPOUT(bf16, bf16)
DROPOUT(f32, f16) DROPOUT(f32, bf16)
