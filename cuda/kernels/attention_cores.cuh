// Attention on tensor cores: tiles of 16-bit rows in shared memory, and the two kinds of products that they take part
// in. Four warps a block, each with 16 M rows of the left operand and all columns of the right one.
#pragma once
#include "attention.cuh"

constexpr u32 CORE_THREADS = 128;
constexpr u32 CORE_WARPS = CORE_THREADS / WARP;

// Where 16-byte chunk `chunk` of a row of WIDTH elements lies in a tile. Chunks are permuted within a row so that the chunks of
// one number of SWIZZLE rows lie in different banks: of all that are read or written at a time.
constexpr u32 SWIZZLE = 8;
template <u32 WIDTH> INLINE u32 place(u32 row, u32 chunk) { return row * (2 * WIDTH) + ((chunk ^ row % SWIZZLE) * 16); }

// Four 8 x 8 matrices, as mma::load_matrices, from an address in shared memory; and each of them transposed.
INLINE void load_matrices(u32 (&out)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}
INLINE void load_transposed(u32 (&out)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}

// Two floats of shared memory.
INLINE Pair<f32> load_two(u32 from) {
    Pair<f32> x;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(x.a), "=f"(x.b) : "r"(from) : "memory");
    return x;
}

// Two values rounded to 16 bits, the first in the lower half.
INLINE u32 pack(f32 a, f32 b, f16) {
    u32 x;
    asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(x) : "f"(a), "f"(b));
    return x;
}
INLINE u32 pack(f32 a, f32 b, bf16) {
    u32 x;
    asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(x) : "f"(a), "f"(b));
    return x;
}

// The larger of two, NaN if either is.
INLINE f32 max_nan(f32 a, f32 b) {
    f32 y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// 2^x for x < 128 with a relative error below 2^-18, a hundredth of what rounding to 16 bits costs; 0 below 2^-126, NaN
// for NaN. The polynomial is the minimax one of degree 4 for |r| <= 1/2.
INLINE f32 exp2(f32 x) {
    constexpr f32 P[5] = {0.999999285f, 0.693121791f, 0.240247443f, 0.0559178591f, 0.00957010221f};
    // Adding it rounds to an integer, which then sits in the low bits with an exponent's bias.
    constexpr f32 ROUND_BIASED = math::ROUND + 127.0f;
    x = max_nan(x, -127.0f);
    f32 t = x + ROUND_BIASED;
    f32 r = x - (t - ROUND_BIASED);
    return math::poly(r, P) * as_f32(as_bits(t) << 23);
}

// Steps of 16 columns that cover a row; of 32, which is how far rows are padded with zeros for the sums over columns.
INLINE u32 steps_of(u32 width) { return (width + 15) / 16; }
INLINE u32 double_steps_of(u32 width) { return (width + 31) / 32; }

// No row.
constexpr u64 NOWHERE = ~0ull;

// Copies ROWS rows of x to a tile; `width` is a multiple of 8, and zeros fill the last 32 columns. row(i) is the
// number of the i-th row in x, or NOWHERE for zeros. With y, a tensor that lies alike, its rows go to the tile behind.
template <u32 ROWS, u32 WIDTH, typename T, typename Row>
INLINE void load_tile(u32 to, const T* x, const T* y, u32 width, Row row) {
    constexpr u32 ACROSS = WIDTH / 8, DOWN = CORE_THREADS / ACROSS;
    u32 chunk = threadIdx.x % ACROSS, column = 8 * chunk;
    if (column >= 32 * double_steps_of(width)) return;
#pragma unroll 1
    for (u32 i = threadIdx.x / ACROSS; i < ROWS; i += DOWN) {
        u64 from = row(i);
        bool there = from != NOWHERE && column < width;
        u64 at = there ? from * width + column : 0;
        copy_async<16>(to + place<WIDTH>(i, chunk), x + at, there ? 16 : 0);
        if (y != nullptr) copy_async<16>(to + ROWS * 2 * WIDTH + place<WIDTH>(i, chunk), y + at, there ? 16 : 0);
    }
}

// sums (16 M rows of a warp x 8 N) = left right^T over all columns: `left` is where the warp's rows begin in their
// tile,
// `right` a tile of 8 N rows.
template <typename T, u32 WIDTH, u32 M, u32 N>
INLINE void multiply_rows(f32 (&sums)[M][N][4], u32 left, u32 right, u32 double_steps) {
    u32 lane = lane_index();
    // Matrices of the left: rows 0-7 and 8-15 of the first 8 columns, then of the next 8; of the right: both halves
    // of the columns of rows 0-7, then of rows 8-15.
    u32 left_row = left + lane % 16 * (2 * WIDTH), left_twist = (lane / 16 ^ lane % SWIZZLE) * 16;
    u32 right_row = right + (lane / 16 * 8 + lane % 8) * (2 * WIDTH);
    u32 right_twist = (lane / 8 % 2 ^ lane % SWIZZLE) * 16;
#pragma unroll
    for (u32 i = 0; i < M; i++) {
#pragma unroll
        for (u32 j = 0; j < N; j++) {
#pragma unroll
            for (u32 k = 0; k < 4; k++) sums[i][j][k] = 0.0f;
        }
    }
#pragma unroll 1
    for (u32 first = 0; first < double_steps; first++) {
#pragma unroll
        for (u32 step = 2 * first; step < 2 * first + 2; step++) {
            u32 a[M][4];
#pragma unroll
            for (u32 i = 0; i < M; i++) load_matrices(a[i], left_row + 16 * i * (2 * WIDTH) + (32 * step ^ left_twist));
#pragma unroll
            for (u32 j = 0; j < N; j += 2) {
                u32 b[4];
                load_matrices(b, right_row + 8 * j * (2 * WIDTH) + (32 * step ^ right_twist));
                u32 even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
#pragma unroll
                for (u32 i = 0; i < M; i++) {
                    mma::multiply(sums[i][j], a[i], even, T());
                    mma::multiply(sums[i][j + 1], a[i], odd, T());
                }
            }
        }
    }
}

// Weights (16 rows x 8 N) as left operands of N / 2 products.
template <typename T, u32 N> INLINE void round_weights(u32 (&out)[N / 2][4], const f32 (&weights)[N][4]) {
#pragma unroll
    for (u32 j = 0; j < N; j++) {
        out[j / 2][j % 2 * 2] = pack(weights[j][0], weights[j][1], T());
        out[j / 2][j % 2 * 2 + 1] = pack(weights[j][2], weights[j][3], T());
    }
}

// sums (16 M rows of a warp x 8 COLUMNS) += weights (x 16 K) times 16 K rows of a tile, from 16-byte chunk `first` of
// its rows on; columns behind `steps` steps of 16 are left alone.
template <typename T, u32 WIDTH, u32 M, u32 K, u32 COLUMNS>
INLINE void add_weighted(f32 (&sums)[M][COLUMNS][4], const u32 (&weights)[M][K][4], u32 tile, u32 first, u32 steps) {
    u32 lane = lane_index();
    // Matrices: rows 0-7 and 8-15 of the first 8 columns, then of the next 8.
    u32 row = tile + lane % 16 * (2 * WIDTH), twist = (lane / 16 ^ lane % SWIZZLE) * 16;
#pragma unroll
    for (u32 c = 0; c < COLUMNS / 2; c++) {
        if (c < steps) {
#pragma unroll
            for (u32 k = 0; k < K; k++) {
                u32 b[4];
                load_transposed(b, row + 16 * k * (2 * WIDTH) + ((16 * first + 32 * c) ^ twist));
                u32 even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
#pragma unroll
                for (u32 i = 0; i < M; i++) {
                    mma::multiply(sums[i][2 * c], weights[i][k], even, T());
                    mma::multiply(sums[i][2 * c + 1], weights[i][k], odd, T());
                }
            }
        }
    }
}

// Writes this thread's columns of a row of `width` elements, from `column` on, times `factor`.
template <typename T, u32 COLUMNS>
INLINE void store_row(T* row, const f32 (&sums)[COLUMNS][4], u32 half, u32 column, u32 width, f32 factor) {
    T* to = row + column + lane_index() % 4 * 2;
    i32 left = width - column;
#pragma unroll
    for (i32 c = 0; c < COLUMNS; c++) {
        u32 two = pack(sums[c][2 * half] * factor, sums[c][2 * half + 1] * factor, T());
        if (8 * c < left) *reinterpret_cast<u32*>(to + 8 * c) = two;
    }
}

// What is not in `seen` of a row becomes `hidden`: this thread's columns, where the first column of all is number
// `first`.
template <u32 N> INLINE void hide(f32 (&row)[N][4], u32 half, Range seen, i32 first, f32 hidden) {
    u32 at = first + lane_index() % 4 * 2 - seen.start, count = seen.end - seen.start;
#pragma unroll
    for (u32 j = 0; j < N; j++) {
#pragma unroll
        for (u32 k = 0; k < 2; k++) {
            if (at + 8 * j + k >= count) row[j][2 * half + k] = hidden;
        }
    }
}

// What a warp has to do with a tile: nothing, all of it, or what the mask leaves.
enum class Share { NONE, ALL, MASKED };

// `some`: what one of the warp's rows sees, and what lies between; `all`: what every one sees.
INLINE Share share_of(Range some, Range all, i32 first, i32 count) {
    if (first >= some.end || first + count <= some.start) return Share::NONE;
    return first >= all.start && first + count <= all.end ? Share::ALL : Share::MASKED;
}
