// Elementwise operations of two tensors that broadcast, and the sum that gradients are gathered by
// (tensor/src/ops/binary.rs), bit for bit as on the CPU.
//
//   binary_T           out = op(a, b); a broadcast operand has strides of 0
//   accumulate_X_T     out = out + x, for x of type X and out of type T; out is read and written
//
// op is the number of the variant of tensor's `Binary`, listed below. Each element is computed in f32 and rounded once.
// Bytes: one read of each operand, one write. Geometry: ceil(n / 1024) blocks of 256 threads.
#include "common.cuh"

enum Op : u32 { ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM };

template <typename F> INLINE void map(const f32 (&a)[4], const f32 (&b)[4], f32 (&out)[4], F f) {
#pragma unroll
    for (u32 k = 0; k < 4; k++) out[k] = f(a[k], b[k]);
}

INLINE void apply(u32 op, const f32 (&a)[4], const f32 (&b)[4], f32 (&out)[4]) {
    switch (op) {
        case ADD: return map(a, b, out, [](f32 a, f32 b) { return a + b; });
        case SUB: return map(a, b, out, [](f32 a, f32 b) { return a - b; });
        case MUL: return map(a, b, out, [](f32 a, f32 b) { return a * b; });
        case DIV: return map(a, b, out, [](f32 a, f32 b) { return a / b; });
        // NaN if either is.
        case MAXIMUM: return map(a, b, out, [](f32 a, f32 b) { return a >= b || a != a ? a : b; });
        case MINIMUM: return map(a, b, out, [](f32 a, f32 b) { return a <= b || a != a ? a : b; });
        default: __trap();
    }
}

template <typename T>
INLINE void binary(u32 op, const T* a, const View& a_view, const T* b, const View& b_view, T* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    f32 x[4], y[4], z[4];
    read4(a, a_view, i, n, x);
    read4(b, b_view, i, n, y);
    apply(op, x, y, z);
    write4(out, i, n, z);
}

#define BINARY(T)                                                                                                     \
    KERNEL(THREADS)                                                                                                   \
    binary_##T(u32 op, const T* __restrict__ a, VIEW a_view, const T* __restrict__ b, VIEW b_view,                    \
               T* __restrict__ out, u64 n) {                                                                          \
        binary(op, a, a_view, b, b_view, out, n);                                                                     \
    }
FLOATS(BINARY)

template <typename X, typename T> INLINE void accumulate(const X* x, const View& x_view, T* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    f32 values[4], sums[4];
    read4(x, x_view, i, n, values);
    read4(out, i, n, sums);
#pragma unroll
    for (u32 k = 0; k < 4; k++) sums[k] += values[k];
    write4(out, i, n, sums);
}

#define ACCUMULATE(X, T)                                                                                              \
    KERNEL(THREADS) accumulate_##X##_##T(const X* __restrict__ x, VIEW x_view, T* __restrict__ out, u64 n) {          \
        accumulate(x, x_view, out, n);                                                                                \
    }
ACCUMULATE(f32, f32) ACCUMULATE(f32, f16) ACCUMULATE(f32, bf16)
ACCUMULATE(f16, f32) ACCUMULATE(f16, f16) ACCUMULATE(f16, bf16)
ACCUMULATE(bf16, f32) ACCUMULATE(bf16, f16) ACCUMULATE(bf16, bf16)
