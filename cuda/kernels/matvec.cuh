// Products of few rows x [m, k] with a matrix in blocks, as it is when a token is decoded: out = alpha x Wᵀ, or out
// plus that, with the CPU's bits (tensor/src/cpu/gemm/rows.rs).
//
// Eight threads make an element of each row of x; a warp has four rows of W. Its CPU's 64 lanes hold a dot product's
// sum: thread t of the eight has lanes 8t .. 8t + 7, so it takes eight neighbours of every 64, which is also what
// blocks decode best, and all rows of x use them while they are in registers. The bytes of W come in pieces of 256
// elements a row, by 16-byte asynchronous copies into a ring in shared memory that only its warp knows: as many are
// under way as cover the latency of memory even where a matrix has few rows.
#pragma once
#include "mma.cuh"

// The type of an operand that a kernel is told when it runs.
enum Type : u32 { TYPE_F32, TYPE_F16, TYPE_BF16 };

namespace matvec {

constexpr u32 GROUP = 8;                  // neighbours that a thread takes at once
constexpr u32 SIDE = 8;                   // threads of a row
constexpr u32 ROWS = WARP / SIDE;         // rows of W of a warp
constexpr u32 WARPS = 4;
constexpr u32 BLOCK = WARPS * WARP;
constexpr u32 STEP = SIDE * GROUP;        // elements that the threads of a row take at once: the CPU's lanes
constexpr u32 PIECE = 256;                // elements of a row that come at once

struct Product {
    const void* x;   // [m, k] at a multiple of 16 bytes; k is a multiple of 8
    u32 x_is_bf16;   // else f32
    u32 round_bf16;  // elements of W are rounded to bf16 first
    void* out;       // [m, n]
    u32 out_type;
    f32 alpha;
    u32 accumulate;
    u32 m, n, k;
};

// Pieces of the rows of a warp. BYTES: of the longest, which may begin anywhere within 16 bytes.
template <u32 BYTES> struct Ring {
    static constexpr u32 STAGES = BYTES > 512 ? 2 : 4;
    // Rows lie eight banks apart, so that four of them, 32 bytes each, are read without conflicts.
    static constexpr u32 PITCH = (BYTES + 15 + 127 - 32) / 128 * 128 + 32;
    u8 at[STAGES][ROWS][PITCH];
};

template <typename T> INLINE void read8(const T* x, f32 (&out)[GROUP]) {
    constexpr u32 N = 16 / sizeof(T);
#pragma unroll
    for (u32 first = 0; first < GROUP; first += N) {
        Vec<T, N> v = *reinterpret_cast<const Vec<T, N>*>(x + first);
#pragma unroll
        for (u32 k = 0; k < N; k++) out[first + k] = to_f32(v.at[k]);
    }
}

INLINE void read8(const void* x, bool is_bf16, u64 i, f32 (&out)[GROUP]) {
    if (is_bf16) return read8(static_cast<const bf16*>(x) + i, out);
    read8(static_cast<const f32*>(x) + i, out);
}

template <typename T> INLINE void store(const Product& p, u64 i, f32 sum) {
    T* out = static_cast<T*>(p.out) + i;
    f32 result = p.accumulate ? fmaf(p.alpha, sum, to_f32(*out)) : p.alpha * sum;
    *out = from_f32<T>(result);
}

INLINE void store(const Product& p, u64 i, f32 sum) {
    if (p.out_type == TYPE_F32) return store<f32>(p, i, sum);
    if (p.out_type == TYPE_F16) return store<f16>(p, i, sum);
    store<bf16>(p, i, sum);
}

// The CPU's fold in halves of the 64 lanes of a row of x, which eight threads hold. The lanes of rows 0 .. M - 1 come
// in, and row (thread of the eight) % M comes out: for several rows, every exchange also halves the rows that a thread
// has.
template <u32 M> INLINE f32 fold_rows(f32 (&lanes)[M][GROUP]) {
    u32 rows = M;
#pragma unroll
    for (u32 distance = SIDE / 2; distance > 0; distance /= 2) {
        bool upper = lane_index() & distance;
        rows = M > distance ? distance : M;
#pragma unroll
        for (u32 r = 0; r < rows; r++) {
#pragma unroll
            for (u32 i = 0; i < GROUP; i++) {
                f32 keep = lanes[r][i], give = keep;
                if (M > distance) {
                    keep = upper ? lanes[r + distance][i] : lanes[r][i];
                    give = upper ? lanes[r][i] : lanes[r + distance][i];
                }
                lanes[r][i] = keep + shuffle_xor(give, distance);
            }
        }
    }
#pragma unroll
    for (u32 half = GROUP / 2; half > 0; half /= 2) {
#pragma unroll
        for (u32 i = 0; i < half; i++) lanes[0][i] += lanes[0][i + half];
    }
    return lanes[0][0];
}

// A flag that a loop is not copied for, once with it and once without.
INLINE u32 looked_at(u32 flag) {
    asm volatile("" : "+r"(flag));
    return flag;
}

// lanes += x w for STEPS times eight elements that are STEP apart, from element i of the piece on.
template <bool ROUND, u32 STEPS, typename Source>
INLINE void add_steps(const Source& source, const u8* piece, u32 i, const f32 (&x)[STEPS][GROUP], f32 (&lanes)[GROUP]) {
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        f32 w[GROUP];
        source.decode(piece, i + step * STEP, w);
#pragma unroll
        for (u32 e = 0; e < GROUP; e++) {
            f32 factor = ROUND ? round_to<bf16>(w[e]) : w[e];
            lanes[e] = fmaf(x[step][e], factor, lanes[e]);
        }
    }
}

// One row of x in f32 or bf16: two steps at once, so that one is on its way while the other is added.
template <typename Source>
INLINE void add_piece(const Source& source, const u8* piece, u32 first, const Product& p, f32 (&lanes)[1][GROUP]) {
    constexpr u32 STEPS = 2;
#pragma unroll 1
    for (u32 i = lane_index() % SIDE * GROUP; i < PIECE; i += STEPS * STEP) {
        f32 x[STEPS][GROUP] = {};
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
            u32 k = first + i + step * STEP;
            if (k < p.k) read8(p.x, looked_at(p.x_is_bf16), k, x[step]);
        }
        if (looked_at(p.round_bf16)) {
            add_steps<true>(source, piece, i, x, lanes[0]);
        } else {
            add_steps<false>(source, piece, i, x, lanes[0]);
        }
    }
}

// Up to M rows of x, in f32.
template <typename Source, u32 M>
INLINE void add_piece(const Source& source, const u8* piece, u32 first, const Product& p, f32 (&lanes)[M][GROUP]) {
#pragma unroll 1
    for (u32 i = lane_index() % SIDE * GROUP; i < PIECE; i += STEP) {
        f32 w[GROUP];
        source.decode(piece, i, w);
        if (looked_at(p.round_bf16)) {
#pragma unroll
            for (u32 e = 0; e < GROUP; e++) w[e] = round_to<bf16>(w[e]);
        }
#pragma unroll
        for (u32 r = 0; r < M; r++) {
            f32 x[GROUP];
            if (r >= p.m || first + i >= p.k) continue;
            read8(static_cast<const f32*>(p.x) + (u64)r * p.k + first + i, x);
#pragma unroll
            for (u32 e = 0; e < GROUP; e++) lanes[r][e] = fmaf(x[e], w[e], lanes[r][e]);
        }
    }
}

// Calls add(bytes, piece) with each piece of the row of k elements that begins at `begin`, in order; `ring` is the warp's own, and
// all of its threads call this together. Past the end of the row bytes are zeros.
template <typename Source, typename R, typename Add>
INLINE void each_piece(const Source& source, R& ring, const u8* begin, u32 k, Add add) {
    constexpr u32 AHEAD = R::STAGES - 1;
    u32 thread = lane_index() % SIDE, slot = lane_index() / SIDE;
    u32 row_bytes = source.bytes(k), piece_bytes = source.bytes(PIECE);
    u32 pieces = (k + PIECE - 1) / PIECE;
#pragma unroll 1
    for (u32 turn = 0; turn < pieces + AHEAD; turn++) {
        if (turn >= AHEAD) {
            // All have their parts of the next piece, and are done with the stage that is filled now.
            mma::wait<AHEAD - 1>();
            __syncwarp();
        }
        if (turn < pieces) {
            const u8* from = begin + turn * piece_bytes;
            u32 skipped = (u32)((u64)from % 16), left = skipped + row_bytes - turn * piece_bytes;
            u8* to = ring.at[turn % R::STAGES][slot];
#pragma unroll 1
            for (u32 i = 16 * thread; i < skipped + piece_bytes; i += 16 * SIDE) {
                u32 bytes = i < left ? min(left - i, 16u) : 0;
                mma::copy_async(to + i, bytes ? from - skipped + i : begin, bytes);
            }
        }
        mma::commit();
        if (turn < AHEAD) continue;
        u32 piece = turn - AHEAD;
        add(ring.at[piece % R::STAGES][slot] + (u64)(begin + piece * piece_bytes) % 16, piece);
    }
}

// The first of the four rows of W of this warp.
INLINE u32 first_row_of_warp() { return (blockIdx.x * WARPS + threadIdx.x / WARP) * ROWS; }

// The product for at most M rows of x; `ring` is the warp's own. Source is the matrix, as one thread sees its row of
// it:
//   bytes(elements)               of so many elements
//   row(j)                        where row j begins
//   start(j), fetch(), advance()  scales that lie elsewhere: of piece 0 of row j; asked for, and got, of the next piece
//   decode(piece, i, w)           elements i .. i + 8 of the copied piece, a multiple of 8; by the whole warp
// Past the end of a row what decode makes of its bytes are zeros, as they are on the CPU.
template <u32 M, typename Source, typename R> INLINE void multiply(Source source, R& ring, const Product& p) {
    u32 thread = lane_index() % SIDE, slot = lane_index() / SIDE;
    u32 first_row = first_row_of_warp();
    if (first_row >= p.n) return;
    // Rows past the end are the last one again, and are not stored.
    u32 row = min(first_row + slot, p.n - 1);
    source.start(row);
    f32 lanes[M][GROUP] = {};
    each_piece(source, ring, source.row(row), p.k, [&](const u8* bytes, u32 piece) {
        source.fetch();
        add_piece(source, bytes, piece * PIECE, p, lanes);
        source.advance();
    });
    f32 sum = fold_rows(lanes);
    if (thread < min(M, p.m) && first_row + slot < p.n) store(p, (u64)thread * p.n + row, sum);
}

// For one row of x, in f32 or bf16.
template <typename Source> INLINE void one_row(const Source& source, const Product& p) {
    alignas(16) __shared__ Ring<Source::MOST_BYTES> rings[WARPS];
    multiply<1>(source, rings[threadIdx.x / WARP], p);
}

// For up to eight, in f32.
template <typename Source> INLINE void few_rows(const Source& source, const Product& p) {
    alignas(16) __shared__ Ring<Source::MOST_BYTES> rings[WARPS];
    multiply<SIDE>(source, rings[threadIdx.x / WARP], p);
}

}  // namespace matvec
