// Reading and adding at indices along one dimension (tensor/src/ops/gather.rs), bit for bit as on the CPU.
//
//   gather_bB        out[o, i, j] = x[o, index[o, i, j], j], for elements of B bits of whatever type
//   scatter_add_T    out[o, index[o, i, j], j] += src[o, i, j], in the order of i; out is f32, read and written
//
// The dimension is `count` long in index, out of gather and src, and `limit` long in x and out of scatter_add; o counts
// the `outer` entries before it, j the `inner` ones behind it. index is i32 of any layout, everything else contiguous.
// An index outside of 0 .. limit writes its place (upper half; the last that fits there, if it does not) and itself to
// `stray` if that is smaller than what is there (the launcher sets it to 2^64 - 1 before, and reports it after); gather
// gives 0 there.
// Bytes: one read of index and of the elements, one write; scatter_add also reads and writes out once an element.
// Geometry: gather: ceil(n / 256) blocks of 256 threads with n = outer count inner; scatter_add: ceil(outer inner /
// 256), as a thread adds all that has its o and j, so that the order is fixed.
#include "common.cuh"

INLINE void report(u64* stray, u64 place, u32 id) { atomicMin(stray, min(place, (u64)0xFFFFFFFF) << 32 | id); }

template <typename T>
INLINE void gather(const T* x, const i32* index, const View& index_view, T* out, u64* stray, u64 n, u32 count,
                   u32 limit, u64 inner) {
    u64 i = thread_index();
    if (i >= n) return;
    u32 id = (u32)index[index_view.offset(i)];
    bool inside = id < limit;
    out[i] = inside ? x[(i / (count * inner) * limit + id) * inner + i % inner] : T(0);
    if (!inside) report(stray, i, id);
}

#define GATHER(BITS)                                                                                                  \
    KERNEL(THREADS)                                                                                                   \
    gather_b##BITS(const u##BITS* __restrict__ x, const i32* __restrict__ index, VIEW index_view,                     \
                   u##BITS* __restrict__ out, u64* stray, u64 n, u32 count, u32 limit, u64 inner) {                   \
        gather(x, index, index_view, out, stray, n, count, limit, inner);                                             \
    }
GATHER(8)
GATHER(16)
GATHER(32)

template <typename T>
INLINE void scatter_add(const i32* index, const View& index_view, const T* src, f32* out, u64* stray, u64 outer,
                        u32 count, u32 limit, u64 inner) {
    u64 thread = thread_index();
    if (thread >= outer * inner) return;
    u64 o = thread / inner, j = thread % inner;
    out += o * limit * inner + j;
    for (u32 i = 0; i < count; i++) {
        u64 at = (o * count + i) * inner + j;
        u32 id = (u32)index[index_view.offset(at)];
        if (id < limit) {
            out[id * inner] += to_f32(src[at]);
        } else {
            report(stray, at, id);
        }
    }
}

#define SCATTER_ADD(T)                                                                                                \
    KERNEL(THREADS)                                                                                                   \
    scatter_add_##T(const i32* __restrict__ index, VIEW index_view, const T* __restrict__ src, f32* __restrict__ out, \
                    u64* stray, u64 outer, u32 count, u32 limit, u64 inner) {                                         \
        scatter_add(index, index_view, src, out, stray, outer, count, limit, inner);                                  \
    }
FLOATS(SCATTER_ADD)
