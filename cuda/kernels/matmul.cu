// Products of matrices and of batches of matrices (tensor/src/ops/matmul.rs), any strides, any sizes:
//
//   out = alpha a b + scale u v^T + bias + out, added up in f32 and rounded once
//
//   matmul_TILE_A_B     a [m, k] of type A times b [k, n] of B to out [m, n] of A, or of f32 if `wide`, on tensor cores, in
//                       tiles of 64x64, 128x128 or 128x256: bf16 times bf16 or f32 (rounded to bf16 first), f16 times f16,
//                       f32 times f32, both rounded to TF32, and f32 times bf16, with the precision of f32
//   matmul_plain_A_B_C  everything else, and f32 times f32, in f32
//   matmul_rows_A_B_C   for few rows: a dot product an element
//   matmul_sum_C        adds up what matmul_TILE made of parts of k, and does what comes behind
//
// An operand is its element [0, 0] of batch 0, its strides (`a_m`: from row to row of a, ..), and the offset of each batch
// as a view over the batches. Rows of out are `out_m` apart, and batches m out_m. accumulate, 0 or 1: whether out is added.
// u [m, rank] is f32, contiguous, v [n, rank] f32 of any strides; bias is null or one f32 a column; for one batch only.
// k and rank may be 0, m and n not. matmul_TILE cuts k into parts of `depth` steps (a multiple of 32), one a split; if there
// are several, out is [splits, batches, m, n].
// The tiles of 128 ask for operands whose rows or columns are contiguous, and of which each 16 bytes are aligned.
// Bits: matmul_rows and matmul_plain equal the CPU's; the tensor-core path adds in the hardware's order, step by step along
// k, so that all tiles give the same.
// Bytes: matmul_TILE reads a n / columns times and b m / rows times (mostly from L2); matmul_rows reads b once a row.
// Geometry: matmul_TILE: splits batches ceil(m / rows) ceil(n / columns) blocks, of 128 threads, for 128x256 of 256, with
// 32, 48 or 96 KiB of dynamic shared memory; matmul_plain as 64x64, of 256 threads, without dynamic shared memory;
// matmul_rows: ceil(batches m n / 4) blocks of 128 threads, one warp an element; matmul_sum: one thread four elements of a
// row, ceil(batches m ceil(n / 4) / 256) blocks of 256 threads.
#include "plain.cuh"

using gemm::Epilogue;
using gemm::Matrix;

// Whether b is rounded to the type of a before it is multiplied.
template <typename A, typename B> constexpr bool ROUNDED = false;
template <> constexpr bool ROUNDED<bf16, f32> = true;

// ---- Tensor cores.

// Whether neighbours in global memory are neighbours along the side.
template <typename T> INLINE bool across(const Matrix<T>& x) { return x.outer < x.along; }

// Whether x can be copied in chunks.
template <typename T> INLINE bool direct(const Matrix<T>& x) {
    u64 near = across(x) ? x.outer : x.along, far = across(x) ? x.along : x.outer;
    return near == 1 && far % 8 == 0 && aligned<8>(x.start);
}

// The steps along k of a block: its split's.
struct Steps {
    u32 first, end;
};

// sums += a b for the tile and steps of a block, by sources of A and B.
template <typename S, typename T, typename A, typename B, typename X, typename Y>
INLINE void add_by(gemm::Sums<S>& sums, const Matrix<X>& a, const Matrix<Y>& b, const gemm::Place& place, Steps steps) {
    A left(a, place.row, across(a), S::warp_row());
    B right(b, place.column, across(b), S::warp_column());
    gemm::multiply<T, S>(sums, left, right, steps.first, steps.end);
}

template <typename S, typename T> using LeftCopies = gemm::Direct<T, S::ROWS, S::THREADS>;
template <typename S, typename T> using RightCopies = gemm::Direct<T, S::COLUMNS, S::THREADS>;
template <typename S, typename T> using LeftAtOnce = gemm::AtOnce<T, S::ROWS, S::THREADS>;
template <typename S, typename T> using RightAtOnce = gemm::AtOnce<T, S::COLUMNS, S::THREADS>;
template <typename S, typename X, typename T> using LeftRounded = gemm::Gathered<X, T, S::ROWS, S::THREADS>;
template <typename S, typename X, typename T> using RightRounded = gemm::Gathered<X, T, S::COLUMNS, S::THREADS>;

// Operands that can be copied.
template <typename S, typename T, typename X, typename Y>
INLINE void add_copied(gemm::Sums<S>& sums, const X& a, const Y& b, const gemm::Place& place, Steps steps) {
    add_by<S, T, LeftCopies<S, T>, RightCopies<S, T>>(sums, a, b, place, steps);
}

// Operands of any layout.
template <typename S, typename T, typename X, typename Y>
INLINE void add_any(gemm::Sums<S>& sums, const X& a, const Y& b, const gemm::Place& place, Steps steps) {
    if (direct(a) && direct(b)) {
        add_copied<S, T>(sums, a, b, place, steps);
    } else {
        add_by<S, T, LeftAtOnce<S, T>, RightAtOnce<S, T>>(sums, a, b, place, steps);
    }
}

// b is rounded to T on its way.
template <typename S, typename T, typename X, typename Y>
INLINE void add_rounding_b(gemm::Sums<S>& sums, const X& a, const Matrix<Y>& b, const gemm::Place& place, Steps steps) {
    if (direct(a)) {
        add_by<S, T, LeftCopies<S, T>, RightRounded<S, Y, T>>(sums, a, b, place, steps);
    } else {
        add_by<S, T, LeftAtOnce<S, T>, RightRounded<S, Y, T>>(sums, a, b, place, steps);
    }
}

// Both are.
template <typename S, typename T, typename X, typename Y>
INLINE void add_rounding(gemm::Sums<S>& sums, const Matrix<X>& a, const Matrix<Y>& b, const gemm::Place& place,
                         Steps steps) {
    add_by<S, T, LeftRounded<S, X, T>, RightRounded<S, Y, T>>(sums, a, b, place, steps);
}

// ---- Few rows: one warp an element.

// The dot product of row i of a with column j of b, rounded to bf16 first if `rounded`.
template <bool ROUND, typename A, typename B>
INLINE f32 dot(const Matrix<A>& a, u64 i, const Matrix<B>& b, u64 j, u32 k) {
    const A* x = a.start + i * a.outer;
    const B* y = b.start + j * b.outer;
    auto at = [&](u32 i) {
        f32 v = to_f32(y[i * b.along]);
        return ROUND ? round_to<bf16>(v) : v;
    };
    Pair<f32> lanes = {0.0f, 0.0f};
    each_pair(
        k,
        [&](u32 i) {
            lanes.a = fmaf(to_f32(x[i * a.along]), at(i), lanes.a);
            lanes.b = fmaf(to_f32(x[(i + 1) * a.along]), at(i + 1), lanes.b);
        },
        [&](u32 i) { lanes.a = fmaf(to_f32(x[i * a.along]), at(i), lanes.a); });
    return fold_sum(lanes);
}

template <typename A, typename B, typename C>
INLINE void by_dots(const Matrix<A>& a, const Matrix<B>& b, C* out, const Epilogue& e, u32 k, u32 row, u32 column) {
    f32 sum = dot<ROUNDED<A, B>>(a, row, b, column, k), old = e.accumulate ? to_f32(*out) : 0.0f;
    f32 result = e.accumulate ? fmaf(e.alpha, sum, old) : e.alpha * sum;
    if (e.rank > 0) {
        Matrix<f32> u = {e.u, e.rank, 1, a.size}, v = {e.v, e.v_n, e.v_r, b.size};
        f32 more = dot<false>(u, row, v, column, e.rank);
        result = fmaf(e.scale, more, result);
    }
    if (e.bias) result += e.bias[column];
    // All have read what they add to.
    __syncwarp();
    if (lane_index() == 0) *out = from_f32<C>(result);
}

// ---- The sum of parts.

template <typename C>
INLINE void sum_parts(const f32* parts, u32 splits, C* out, u64 out_m, const Epilogue& e, u64 rows, u32 n) {
    u32 fours = (n + 3) / 4;
    u64 row = thread_index() / fours;
    u32 column = (u32)(thread_index() % fours) * 4, count = n - column;
    if (row >= rows) return;
    f32 sums[4] = {}, part[4];
    for (u32 s = 0; s < splits; s++) {
        read4(parts + (s * rows + row) * n + column, 0, count, part);
#pragma unroll
        for (u32 i = 0; i < 4; i++) sums[i] += part[i];
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) sums[i] *= e.alpha;
    for (u32 r = 0; r < e.rank; r++) {
        f32 u = e.scale * e.u[row * e.rank + r];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            f32 v = e.v[min(column + i, n - 1) * e.v_n + r * e.v_r];
            sums[i] = fmaf(u, v, sums[i]);
        }
    }
    gemm::store_four(out + row * out_m + column, e, column, count, sums);
}

#define SUM(C)                                                                                                        \
    KERNEL(THREADS)                                                                                                   \
    matmul_sum_##C(const f32* __restrict__ parts, u32 splits, C* __restrict__ out, u64 out_m, u32 accumulate,         \
        f32 alpha, const f32* __restrict__ bias, const f32* __restrict__ u, const f32* __restrict__ v, u64 v_n,       \
        u64 v_r, u32 rank, f32 scale, u64 rows, u32 n) {                                                              \
        Epilogue epilogue = {accumulate, alpha, bias, u, v, v_n, v_r, rank, scale};                                   \
        sum_parts(parts, splits, out, out_m, epilogue, rows, n);                                                      \
    }
FLOATS(SUM)

// ---- Entry points.

// The operands of a batch, and what else every kernel makes of its arguments.
#define OPERANDS(BATCH)                                                                                               \
    Matrix<A> left = {a + a_batch.offset(BATCH), a_m, a_k, m};                                                        \
    Matrix<B> right = {b + b_batch.offset(BATCH), b_n, b_k, n};                                                       \
    Epilogue epilogue = {accumulate, alpha, bias, u, v, v_n, v_r, rank, scale};

#define CORES(NAME, ADD, SHAPE, REGISTERS, T, A_, B_)                                                                 \
    KERNEL(SHAPE::THREADS, REGISTERS)                                                                                 \
    NAME(const A_* __restrict__ a, u64 a_m, u64 a_k, VIEW a_batch, const B_* __restrict__ b, u64 b_k, u64 b_n,        \
        VIEW b_batch, A_* __restrict__ out, u64 out_m, u32 wide, u32 accumulate, f32 alpha,                           \
        const f32* __restrict__ bias, const f32* __restrict__ u, const f32* __restrict__ v, u64 v_n, u64 v_r,         \
        u32 rank, f32 scale, u32 batches, u32 m, u32 n, u32 k, u32 depth) {                                           \
        using A = A_;                                                                                                 \
        using B = B_;                                                                                                 \
        gemm::Place place = gemm::place_of_block<SHAPE>(batches, m, n);                                               \
        OPERANDS(place.batch)                                                                                         \
        u64 first = (place.split * batches + place.batch) * m * out_m;                                                \
        A* to = wide ? reinterpret_cast<A*>(reinterpret_cast<f32*>(out) + first) : out + first;                       \
        Steps steps = {(u32)place.split * depth, min(k, (u32)place.split * depth + depth)};                           \
        gemm::Sums<SHAPE> sums = {};                                                                                  \
        ADD<SHAPE, T>(sums, left, right, place, steps);                                                               \
        gemm::store<SHAPE>(sums, epilogue, gemm::Out<A>{to, out_m, wide != 0}, place, m, n);                          \
    }

#define PLAIN(A_, B_, C_)                                                                                             \
    KERNEL(THREADS, 128)                                                                                              \
    matmul_plain_##A_##_##B_##_##C_(const A_* __restrict__ a, u64 a_m, u64 a_k, VIEW a_batch,                         \
        const B_* __restrict__ b, u64 b_k, u64 b_n, VIEW b_batch, C_* __restrict__ out, u64 out_m, u32 accumulate,    \
        f32 alpha, const f32* __restrict__ bias, const f32* __restrict__ u, const f32* __restrict__ v, u64 v_n,       \
        u64 v_r, u32 rank, f32 scale, u32 batches, u32 m, u32 n, u32 k) {                                             \
        using A = A_;                                                                                                 \
        using B = B_;                                                                                                 \
        gemm::Place place = gemm::place_of_block<plain::Shape>(batches, m, n);                                        \
        OPERANDS(place.batch)                                                                                         \
        plain::Dense<A> rows = {left, place.row};                                                                     \
        plain::Dense<B> columns = {right, place.column};                                                              \
        plain::Product<C_> product = {out + place.batch * m * out_m, out_m, m, n, k};                                 \
        plain::multiply(product, rows, columns, epilogue, place);                                                     \
    }

#define ROWS(A_, B_, C_)                                                                                              \
    KERNEL(ROW_THREADS)                                                                                               \
    matmul_rows_##A_##_##B_##_##C_(const A_* __restrict__ a, u64 a_m, u64 a_k, VIEW a_batch,                          \
        const B_* __restrict__ b, u64 b_k, u64 b_n, VIEW b_batch, C_* __restrict__ out, u64 out_m, u32 accumulate,    \
        f32 alpha, const f32* __restrict__ bias, const f32* __restrict__ u, const f32* __restrict__ v, u64 v_n,       \
        u64 v_r, u32 rank, f32 scale, u32 batches, u32 m, u32 n, u32 k) {                                             \
        using A = A_;                                                                                                 \
        using B = B_;                                                                                                 \
        u64 row = warp_row() / n, batch = row / m;                                                                    \
        u32 column = (u32)(warp_row() % n);                                                                           \
        if (batch >= batches) return;                                                                                 \
        OPERANDS(batch)                                                                                               \
        by_dots(left, right, out + row * out_m + column, epilogue, k, (u32)(row % m), column);                        \
    }

// REGISTERS such that three blocks of 64x64, two of 128x128 and one of 128x256 fit a multiprocessor.
CORES(matmul_64x64_bf16_bf16, add_any, gemm::Small, 168, bf16, bf16, bf16)
CORES(matmul_64x64_f16_f16, add_any, gemm::Small, 168, f16, f16, f16)
CORES(matmul_64x64_bf16_f32, add_rounding_b, gemm::Small, 168, bf16, bf16, f32)
CORES(matmul_64x64_f32_f32, add_rounding, gemm::Small, 168, mma::tf32, f32, f32)
CORES(matmul_64x64_f32_bf16, add_rounding, gemm::Small, 168, mma::split32, f32, bf16)
CORES(matmul_128x128_bf16_bf16, add_copied, gemm::Large, 255, bf16, bf16, bf16)
CORES(matmul_128x128_f16_f16, add_copied, gemm::Large, 255, f16, f16, f16)
CORES(matmul_128x256_bf16_bf16, add_copied, gemm::Wide, 255, bf16, bf16, bf16)
CORES(matmul_128x256_f16_f16, add_copied, gemm::Wide, 255, f16, f16, f16)

ROWS(bf16, bf16, bf16)
ROWS(bf16, bf16, f32)
ROWS(bf16, f32, bf16)
ROWS(bf16, f32, f32)
ROWS(f16, f16, f16)
ROWS(f16, f16, f32)
#define PLAIN_ALL(A, B, C) PLAIN(A, B, C) ROWS(A, B, C)
PLAIN_ALL(f32, f32, f32)
PLAIN_ALL(f32, bf16, f32)
PLAIN_ALL(f32, f16, f32)
PLAIN_ALL(bf16, f16, bf16)
PLAIN_ALL(bf16, f16, f32)
PLAIN_ALL(f16, bf16, f16)
PLAIN_ALL(f16, bf16, f32)
PLAIN_ALL(f16, f32, f16)
PLAIN_ALL(f16, f32, f32)
