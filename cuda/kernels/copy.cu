// Copies of any layout to row-major, with or without a change of dtype, and fill (tensor/src/ops/copy.rs).
//
//   copy_bB            out[i] = x[i], for elements of B bits of whatever type
//   cast_X_Y           out[i] = x[i], through f32, rounded to nearest even; integers saturate
//   fill_T             out[i] = value
//
// Bytes: one read and one write of each element; fill only writes. Geometry: ceil(n / 1024) blocks of 256 threads.
#include "common.cuh"

template <typename T> INLINE void copy(const T* x, const View& x_view, T* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    T values[4];
    load4(x, x_view, i, n, values);
    store4(out, i, n, values);
}

#define COPY(BITS)                                                                                                    \
    KERNEL(THREADS) copy_b##BITS(const u##BITS* __restrict__ x, VIEW x_view, u##BITS* __restrict__ out, u64 n) {      \
        copy(x, x_view, out, n);                                                                                      \
    }
COPY(8)
COPY(16)
COPY(32)

template <typename X, typename Y> INLINE void cast(const X* x, const View& x_view, Y* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    f32 values[4];
    read4(x, x_view, i, n, values);
    write4(out, i, n, values);
}

#define CAST(X, Y)                                                                                                    \
    KERNEL(THREADS) cast_##X##_##Y(const X* __restrict__ x, VIEW x_view, Y* __restrict__ out, u64 n) {                \
        cast(x, x_view, out, n);                                                                                      \
    }
CAST(f32, f16) CAST(f32, bf16) CAST(f32, i32) CAST(f32, i8) CAST(f32, u8)
CAST(f16, f32) CAST(f16, bf16) CAST(f16, i32) CAST(f16, i8) CAST(f16, u8)
CAST(bf16, f32) CAST(bf16, f16) CAST(bf16, i32) CAST(bf16, i8) CAST(bf16, u8)
CAST(i32, f32) CAST(i32, f16) CAST(i32, bf16) CAST(i32, i8) CAST(i32, u8)
CAST(i8, f32) CAST(i8, f16) CAST(i8, bf16) CAST(i8, i32) CAST(i8, u8)
CAST(u8, f32) CAST(u8, f16) CAST(u8, bf16) CAST(u8, i32) CAST(u8, i8)

#define FILL(T)                                                                                                       \
    KERNEL(THREADS) fill_##T(f32 value, T* out, u64 n) {                                                              \
        u64 i = first_element();                                                                                      \
        f32 values[4] = {value, value, value, value};                                                                 \
        if (i < n) write4(out, i, n, values);                                                                         \
    }
FLOATS(FILL)
FILL(i32)
FILL(i8)
FILL(u8)
