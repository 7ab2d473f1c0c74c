// Products of matrices and of batches of matrices (tensor/src/ops/matmul.rs): out = a b, or out = out + a b in f32,
// rounded once; any strides, any sizes.
//
//   matmul_A_B_C        a [m, k] of type A times b [k, n] of B to out [m, n] of C, for more than 8 rows
//   matmul_rows_A_B_C   the same for few rows: a dot product an element
//
// bf16 times bf16 or f32 (rounded to bf16 first) and f16 times f16 run on tensor cores, everything else in f32. An
// operand is its element [0, 0] of batch 0, its strides (`a_m`: from row to row of a, ..), and the offset of each batch
// as a view over the batches; out is contiguous: [batches, m, n]. k may be 0, m and n not. accumulate is 0 or 1.
// Bits: matmul_rows and the f32 path of matmul equal the CPU's; the tensor-core path adds in the hardware's order.
// Bytes: matmul reads a ceil(n / 64) times and b ceil(m / 64) times (mostly from L2); matmul_rows reads b once a row.
// Geometry: matmul: batches ceil(m / 64) ceil(n / 64) blocks, of 128 threads on tensor cores, of 256 in f32;
// matmul_rows: ceil(batches m n / 4) blocks of 128 threads, one warp an element.
#include "mma.cuh"

// Whether b is rounded to the type of a before it is multiplied.
template <typename A, typename B> constexpr bool ROUNDED = false;
template <> constexpr bool ROUNDED<bf16, f32> = true;

// A block makes a tile of SIDE x SIDE.
constexpr u32 SIDE = 64;

// One matrix operand.
template <typename T> struct Matrix {
    const T* start;
    u64 outer;  // from row to row of a, from column to column of b
    u64 along;  // from one k to the next
    u32 size;   // rows of a, columns of b
};

// Where a block works: its batch, and the first row and column of its tile.
struct Tile {
    u32 batch, row, column;
};

INLINE Tile tile_of_block(u32 m, u32 n) {
    u32 across = (n + SIDE - 1) / SIDE, tiles = (m + SIDE - 1) / SIDE * across;
    u32 tile = blockIdx.x % tiles;
    return {blockIdx.x / tiles, tile / across * SIDE, tile % across * SIDE};
}

// Calls store(i, depth, value) for SIDE rows (or columns) from `first` on, times DEPTH steps from k_first on; zero
// where the matrix ends. Neighbouring threads read neighbouring addresses, whichever way the matrix lies.
template <u32 DEPTH, u32 BLOCK, typename T, typename Store>
INLINE void each_of_tile(const Matrix<T>& x, u32 first, u32 k_first, u32 k, Store store) {
    bool along = x.along <= x.outer;
#pragma unroll 8
    for (u32 t = threadIdx.x; t < SIDE * DEPTH; t += BLOCK) {
        u32 i = along ? t / DEPTH : t % SIDE, depth = along ? t % DEPTH : t / SIDE;
        bool inside = first + i < x.size && k_first + depth < k;
        store(i, depth, inside ? to_f32(x.start[(first + i) * x.outer + (k_first + depth) * x.along]) : 0.0f);
    }
}

template <typename C> INLINE void store_result(C* out, f32 result, u32 accumulate) {
    *out = from_f32<C>(accumulate ? to_f32(*out) + result : result);
}

// ---- Tensor cores: four warps, each 32 x 32 of the tile; both operands lie in shared memory with k contiguous.

constexpr u32 CORE_THREADS = 128;
constexpr u32 CORE_DEPTH = 32;
// Rows are padded to 80 bytes: the eight rows of an 8 x 8 matrix then lie in different banks.
constexpr u32 CORE_PITCH = CORE_DEPTH + 8;

template <typename T, typename A, typename B, typename C>
INLINE void by_cores(const Matrix<A>& a, const Matrix<B>& b, C* out, u32 accumulate, u32 k, Tile tile) {
    alignas(16) __shared__ T as[SIDE][CORE_PITCH], bs[SIDE][CORE_PITCH];
    u32 lane = lane_index(), warp = threadIdx.x / WARP;
    u32 warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
    f32 sums[2][4][4] = {};
    for (u32 k_first = 0; k_first < k; k_first += CORE_DEPTH) {
        each_of_tile<CORE_DEPTH, CORE_THREADS>(a, tile.row, k_first, k,
                                               [&](u32 i, u32 depth, f32 x) { as[i][depth] = from_f32<T>(x); });
        each_of_tile<CORE_DEPTH, CORE_THREADS>(b, tile.column, k_first, k,
                                               [&](u32 i, u32 depth, f32 x) { bs[i][depth] = from_f32<T>(x); });
        __syncthreads();
#pragma unroll
        for (u32 depth = 0; depth < CORE_DEPTH; depth += 16) {
            // Matrices of a: rows 0-7 and 8-15 at depth 0-7, then at depth 8-15.
            u32 a_part[2][4];
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                mma::load_matrices(a_part[i], &as[warp_row + 16 * i + lane % 16][depth + lane / 16 * 8]);
            }
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                // Matrices of b: columns 0-7 at depth 0-7 and 8-15, then columns 8-15.
                u32 b_part[4];
                mma::load_matrices(b_part,
                                   &bs[warp_column + 16 * j + lane / 16 * 8 + lane % 8][depth + lane / 8 % 2 * 8]);
                u32 left[2] = {b_part[0], b_part[1]}, right[2] = {b_part[2], b_part[3]};
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    mma::multiply(sums[i][2 * j], a_part[i], left, T());
                    mma::multiply(sums[i][2 * j + 1], a_part[i], right, T());
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
#pragma unroll
            for (u32 part = 0; part < 4; part++) {
                u32 row = tile.row + warp_row + 16 * i + lane / 4 + part / 2 * 8;
                u32 column = tile.column + warp_column + 8 * j + lane % 4 * 2 + part % 2;
                if (row < a.size && column < b.size) {
                    store_result(out + (u64)row * b.size + column, sums[i][j][part], accumulate);
                }
            }
        }
    }
}

// ---- f32: 256 threads of 4 x 4 elements each, 16 apart.

constexpr u32 PLAIN_DEPTH = 16;
// The CPU adds up chains of this many fused steps.
constexpr u32 CHAIN = 256;

template <typename A, typename B, typename C>
INLINE void by_steps(const Matrix<A>& a, const Matrix<B>& b, C* out, u32 accumulate, u32 k, Tile tile) {
    // One column of padding: tiles that are read along k are stored across it.
    __shared__ f32 as[PLAIN_DEPTH][SIDE + 1], bs[PLAIN_DEPTH][SIDE + 1];
    u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
    auto place = [&](u32 i, u32 j) { return out + (u64)(tile.row + y + 16 * i) * b.size + tile.column + x + 16 * j; };
    auto inside = [&](u32 i, u32 j) { return tile.row + y + 16 * i < a.size && tile.column + x + 16 * j < b.size; };
    // What is in f32 is added to chain by chain; the 16-bit types get the whole sum.
    bool in_place = accumulate && sizeof(C) == sizeof(f32);
    f32 sums[4][4], chain[4][4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) sums[i][j] = in_place && inside(i, j) ? to_f32(*place(i, j)) : 0.0f;
    }
    for (u32 chain_first = 0; chain_first < k; chain_first += CHAIN) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) chain[i][j] = 0.0f;
        }
        u32 chain_end = min(chain_first + CHAIN, k);
        for (u32 k_first = chain_first; k_first < chain_end; k_first += PLAIN_DEPTH) {
            each_of_tile<PLAIN_DEPTH, THREADS>(a, tile.row, k_first, k,
                                               [&](u32 i, u32 depth, f32 v) { as[depth][i] = v; });
            each_of_tile<PLAIN_DEPTH, THREADS>(b, tile.column, k_first, k,
                                               [&](u32 i, u32 depth, f32 v) { bs[depth][i] = v; });
            __syncthreads();
#pragma unroll 4
            for (u32 depth = 0; depth < PLAIN_DEPTH; depth++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
#pragma unroll
                    for (u32 j = 0; j < 4; j++) {
                        chain[i][j] = fmaf(as[depth][y + 16 * i], bs[depth][x + 16 * j], chain[i][j]);
                    }
                }
            }
            __syncthreads();
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) sums[i][j] += chain[i][j];
        }
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (inside(i, j)) store_result(place(i, j), sums[i][j], accumulate && !in_place);
        }
    }
}

// ---- Few rows.

template <typename A, typename B, typename C>
INLINE void by_dots(const Matrix<A>& a, const Matrix<B>& b, C* out, u32 accumulate, u32 k, u32 row, u32 column) {
    const A* x = a.start + row * a.outer;
    const B* y = b.start + column * b.outer;
    auto at = [&](u32 i) {
        f32 v = to_f32(y[i * b.along]);
        return ROUNDED<A, B> ? round_to<bf16>(v) : v;
    };
    Pair<f32> lanes = {0.0f, 0.0f};
    each_pair(
        k,
        [&](u32 i) {
            lanes.a = fmaf(to_f32(x[i * a.along]), at(i), lanes.a);
            lanes.b = fmaf(to_f32(x[(i + 1) * a.along]), at(i + 1), lanes.b);
        },
        [&](u32 i) { lanes.a = fmaf(to_f32(x[i * a.along]), at(i), lanes.a); });
    f32 sum = fold_sum(lanes);
    if (lane_index() == 0) store_result(out, sum, accumulate);
}

// ---- Entry points.

#define MATMUL(A, B, C, BLOCK, BY)                                                                                    \
    KERNEL(BLOCK, 128)                                                                                                \
    matmul_##A##_##B##_##C(const A* __restrict__ a, u64 a_m, u64 a_k, VIEW a_batch, const B* __restrict__ b, u64 b_k, \
        u64 b_n, VIEW b_batch, C* __restrict__ out, u32 accumulate, u32 batches, u32 m, u32 n, u32 k) {               \
        Tile tile = tile_of_block(m, n);                                                                              \
        Matrix<A> left = {a + a_batch.offset(tile.batch), a_m, a_k, m};                                               \
        Matrix<B> right = {b + b_batch.offset(tile.batch), b_n, b_k, n};                                              \
        BY(left, right, out + (u64)tile.batch * m * n, accumulate, k, tile);                                          \
    }                                                                                                                 \
    KERNEL(ROW_THREADS)                                                                                               \
    matmul_rows_##A##_##B##_##C(const A* __restrict__ a, u64 a_m, u64 a_k, VIEW a_batch, const B* __restrict__ b,     \
        u64 b_k, u64 b_n, VIEW b_batch, C* __restrict__ out, u32 accumulate, u32 batches, u32 m, u32 n, u32 k) {      \
        u64 element = warp_row(), batch = element / ((u64)m * n);                                                     \
        if (batch >= batches) return;                                                                                 \
        u32 row = (u32)(element / n % m), column = (u32)(element % n);                                                \
        Matrix<A> left = {a + a_batch.offset(batch), a_m, a_k, m};                                                    \
        Matrix<B> right = {b + b_batch.offset(batch), b_n, b_k, n};                                                   \
        by_dots(left, right, out + element, accumulate, k, row, column);                                              \
    }

MATMUL(bf16, bf16, bf16, CORE_THREADS, by_cores<bf16>)
MATMUL(bf16, bf16, f32, CORE_THREADS, by_cores<bf16>)
MATMUL(bf16, f32, bf16, CORE_THREADS, by_cores<bf16>)
MATMUL(bf16, f32, f32, CORE_THREADS, by_cores<bf16>)
MATMUL(f16, f16, f16, CORE_THREADS, by_cores<f16>)
MATMUL(f16, f16, f32, CORE_THREADS, by_cores<f16>)
MATMUL(f32, f32, f32, THREADS, by_steps)
MATMUL(f32, bf16, f32, THREADS, by_steps)
MATMUL(f32, f16, f32, THREADS, by_steps)
MATMUL(bf16, f16, bf16, THREADS, by_steps)
MATMUL(bf16, f16, f32, THREADS, by_steps)
MATMUL(f16, bf16, f16, THREADS, by_steps)
MATMUL(f16, bf16, f32, THREADS, by_steps)
MATMUL(f16, f32, f16, THREADS, by_steps)
MATMUL(f16, f32, f32, THREADS, by_steps)
