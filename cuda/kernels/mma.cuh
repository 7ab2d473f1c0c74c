// Tensor-core products and the moves that feed them, as inline PTX: mma.sync, ldmatrix, cp.async (sm_80 and later).
#pragma once
#include "common.cuh"

namespace mma {

// d (16 x 8, f32) += a (16 x 16, row-major) b (16 x 8, column-major), for both types of 16 bits. With g = lane / 4 and
// t = lane % 4 a thread holds two neighbours a register:
//   a[0], a[1]: rows g and g + 8, columns 2t, 2t + 1;  a[2], a[3]: the same rows, columns 2t + 8, 2t + 9
//   b[0], b[1]: column g, rows 2t, 2t + 1 and 2t + 8, 2t + 9
//   d[0], d[1]: row g, columns 2t, 2t + 1;             d[2], d[3]: row g + 8
#define KINGLET_MMA(T)                                                                                                \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." T "." T ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                              \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
INLINE void multiply(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], f16) { KINGLET_MMA("f16"); }
INLINE void multiply(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], bf16) { KINGLET_MMA("bf16"); }
#undef KINGLET_MMA

// f32 with 10 bits of mantissa, in the bits of an f32. a is 16 x 8 and b 8 x 8 here: as above, but that a register holds
// one element, of column (a) or row (b) t or t + 4.
struct tf32 {
    u32 bits;
};
INLINE void multiply(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], tf32) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// An f32 beside a number of at most 11 significant bits, which TF32 holds exactly (every bf16 and f16): a is taken apart
// into its upper 11 bits and the next 11, both cut off so that none overflows; what is left is below 2^-22 of a, or
// 2^-136, the least number of TF32.
// Nothing is left of an infinity, where inf - inf would be NaN; and one of b meets the upper bits alone, where lower ones of 0
// would make it NaN. (What stays NaN: an a below 2^-136, which has no upper bits, times an infinity.)
struct split32 {
    u32 bits;
};
INLINE u32 to_tf32(f32 x) {
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}
INLINE void multiply(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], split32) {
    u32 upper[4], lower[4], finite[2];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        upper[i] = a[i] & 0xFFFFE000;
        lower[i] = a[i] & 0x1FFF ? as_bits(as_f32(a[i]) - as_f32(upper[i])) & 0xFFFFE000 : 0;
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) finite[i] = ~b[i] & 0x7F800000 ? b[i] : 0;
    multiply(d, lower, finite, tf32());
    multiply(d, upper, b, tf32());
}

// The address of a shared variable in the shared window, as instructions on shared memory take it.
INLINE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Four 8 x 8 matrices of 16-bit elements: thread 8i + j names row j (16 bytes, aligned) of matrix i, and gets of each
// matrix elements 2t, 2t + 1 of row g in one register.
INLINE void load_matrices(u32 (&out)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of a shared address; if `transposed` (for all threads alike) each matrix is turned: elements 2t and 2t + 1 are
// those of rows 2t and 2t + 1 in column g. A run-time choice: one kernel takes operands that lie either way, for one idle slot a load.
INLINE void load_matrices(u32 (&out)[4], u32 row, bool transposed) {
    asm volatile("{ .reg .pred turned; setp.ne.u32 turned, %5, 0;"
                 "@!turned ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 "@turned ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4]; }"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row), "r"((u32)transposed)
                 : "memory");
}

// 16 bytes from global to shared memory, both aligned, without a register between; `bytes` (0 ..= 16) are read, the
// rest is zero. They are there after commit, a wait for their group, and a barrier.
INLINE void copy_async(u32 to, const void* from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(bytes)
                 : "memory");
}
INLINE void copy_async(void* to, const void* from, u32 bytes) { copy_async(shared_address(to), from, bytes); }

// Closes a group of copies.
INLINE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's newest groups are under way.
template <u32 PENDING> INLINE void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

}  // namespace mma

// To nearest, ties away from zero, as cuBLAS does.
template <> INLINE mma::tf32 from_f32<mma::tf32>(f32 x) { return {mma::to_tf32(x)}; }
template <> INLINE mma::split32 from_f32<mma::split32>(f32 x) { return {as_bits(x)}; }
