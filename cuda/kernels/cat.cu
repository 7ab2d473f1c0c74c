// Tensors joined along a dimension (tensor/src/ops/cat.rs): one launch a tensor copies it to its place in each row of
// the result.
//
// cat_bB, for elements of B bits of whatever type: out[i / piece * row + start + i % piece] = x[i]. A row is everything
// behind the dimensions before the joined one; this tensor fills `piece` elements of it from `start` on.
// Bytes: one read and one write of each element. Geometry: ceil(n / 256) blocks of 256 threads.
#include "common.cuh"

#define CAT(BITS)                                                                                                     \
    KERNEL(THREADS)                                                                                                   \
    cat_b##BITS(const u##BITS* __restrict__ x, VIEW x_view, u##BITS* __restrict__ out, u64 n, u64 piece, u64 row,     \
                u64 start) {                                                                                          \
        u64 i = thread_index();                                                                                       \
        if (i < n) out[i / piece * row + start + i % piece] = x[x_view.offset(i)];                                    \
    }
CAT(8)
CAT(16)
CAT(32)
