// Comparisons to byte masks, and the choice between two tensors by one (tensor/src/ops/compare.rs), bit for bit as on
// the CPU.
//
//   compare_T   out[i] = 1 where op(a, b) holds, else 0; out is u8
//   where_T     out[i] = mask[i] != 0 ? a[i] : b[i]; mask is u8
//
// op is the number of the variant of tensor's `Compare`, listed below. A comparison with NaN is false, but for NE.
// Bytes: one read of each operand, one write. Geometry: ceil(n / 1024) blocks of 256 threads.
#include "common.cuh"

enum Op : u32 { EQ, NE, LT, LE, GT, GE };

// The value in a type that holds all values of T and compares as they do.
template <typename T> INLINE f32 comparable(T x) { return to_f32(x); }
INLINE i32 comparable(i32 x) { return x; }

template <typename V> INLINE bool holds(u32 op, V a, V b) {
    switch (op) {
        case EQ: return a == b;
        case NE: return a != b;
        case LT: return a < b;
        case LE: return a <= b;
        case GT: return a > b;
        case GE: return a >= b;
        default: __trap();
    }
}

template <typename T>
INLINE void compare(u32 op, const T* a, const View& a_view, const T* b, const View& b_view, u8* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    T x[4], y[4];
    load4(a, a_view, i, n, x);
    load4(b, b_view, i, n, y);
    u8 result[4];
#pragma unroll
    for (u32 k = 0; k < 4; k++) result[k] = holds(op, comparable(x[k]), comparable(y[k]));
    store4(out, i, n, result);
}

#define COMPARE(T)                                                                                                    \
    KERNEL(THREADS)                                                                                                   \
    compare_##T(u32 op, const T* __restrict__ a, VIEW a_view, const T* __restrict__ b, VIEW b_view,                   \
                u8* __restrict__ out, u64 n) {                                                                        \
        compare(op, a, a_view, b, b_view, out, n);                                                                    \
    }
FLOATS(COMPARE)
COMPARE(i32)
COMPARE(i8)
COMPARE(u8)

template <typename T>
INLINE void choose(const u8* mask, const View& mask_view, const T* a, const View& a_view, const T* b,
                   const View& b_view, T* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    u8 m[4];
    T x[4], y[4];
    load4(mask, mask_view, i, n, m);
    load4(a, a_view, i, n, x);
    load4(b, b_view, i, n, y);
#pragma unroll
    for (u32 k = 0; k < 4; k++) x[k] = m[k] != 0 ? x[k] : y[k];
    store4(out, i, n, x);
}

#define WHERE(T)                                                                                                      \
    KERNEL(THREADS)                                                                                                   \
    where_##T(const u8* __restrict__ mask, VIEW mask_view, const T* __restrict__ a, VIEW a_view,                      \
              const T* __restrict__ b, VIEW b_view, T* __restrict__ out, u64 n) {                                     \
        choose(mask, mask_view, a, a_view, b, b_view, out, n);                                                        \
    }
FLOATS(WHERE)
