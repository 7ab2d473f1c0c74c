// The gradients of attention_cores.cu: dq, dk and dv of 16-bit floats on tensor cores, as FlashAttention-2 does it (Dao
// 2023), but in two kernels that make the scores once each, so that nobody adds to what another writes.
//
//   attention_backward_q_T_D    dq = scale dS k, with P = e^(score - lse) and dS = P (d_out vT - delta)
//   attention_backward_kv_T_D   dv = PT d_out and dk = scale dST q
//
// delta is of attention.cu, which has the words and rules that are not said here. width <= D. P and dS are rounded to T
// for the products that they enter, everything else is in f32.
// dq: a block owns 64 M rows of one key head, a warp 16 M of them, and walks over tiles of keys. dk, dv: a block owns
// 64 keys and 128 columns of their gradients, a warp 16 keys, and walks over tiles of rows, as columns of the
// transposed scores. While a block works on one tile, the next is copied.
// Bits: by shape only; products add in the tensor cores' order.
// Bytes: as attention.cu: each tile once a block.
// Geometry: 128 threads; q: kv_heads sum(ceil(q_len group / 64 M)) blocks; kv: kv_heads sum(ceil(kv_len / 64))
// ceil(width / 128) blocks. Dynamic shared memory holds two tensors of what a block owns and two stages of two
// tensors of TILE rows, each of D elements of 2 bytes, and for kv two stages of 2 TILE floats. D = 128: M = 2, TILE =
// 32; D = 256: M = 1, TILE = 16.
#include "attention_cores.cuh"

// What the kernels read.
template <typename T> struct Saved {
    const T *d_out, *q, *k, *v;
    const f32 *lse, *delta;
    f32 scale;
};

// Where tiles lie: two of the block's own OWN rows, then two stages of two of TILE rows; then numbers of each stage's
// rows.
template <u32 WIDTH, u32 OWN, u32 TILE> struct Room {
    static constexpr u32 PITCH = WIDTH * 2;
    u32 start;

    // The first of this warp's rows in the block's first and second tile.
    INLINE u32 own(u32 which) const { return start + (which * OWN + threadIdx.x / WARP * (OWN / CORE_WARPS)) * PITCH; }
    INLINE u32 walked(u32 stage, u32 which) const { return start + (2 * OWN + (2 * stage + which) * TILE) * PITCH; }
    INLINE u32 numbers(u32 stage, u32 which) const {
        return start + (2 * OWN + 4 * TILE) * PITCH + (2 * stage + which) * TILE * sizeof(f32);
    }
};

template <typename T, u32 WIDTH, u32 M, u32 TILE>
INLINE void backward_q(const Saved<T>& saved, const Part& part, i32 first, T* dq, u32 width) {
    constexpr i32 OWN = 16 * M * CORE_WARPS, WALK = TILE;
    extern __shared__ __align__(128) u8 shared[];
    Room<WIDTH, OWN, TILE> room = {mma::shared_address(shared)};
    u32 steps = steps_of(width), double_steps = double_steps_of(width), lane = lane_index();
    i32 last = min(first + OWN, part.rows()) - 1;
    Range keys = {part.visible(first).start / WALK * WALK, part.visible(last).end};
    auto load_keys = [&](i32 key, u32 stage) {
        load_tile<TILE, WIDTH>(room.walked(stage, 0), saved.k, saved.v, width, [&](u32 j) {
            return key + (i32)j < part.segment.kv_len ? part.key(key + j) : NOWHERE;
        });
        mma::commit();
    };
    load_tile<OWN, WIDTH>(room.start, saved.q, saved.d_out, width,
                          [&](u32 i) { return first + (i32)i <= last ? part.row(first + i) : NOWHERE; });
    load_keys(keys.start, 0);

    i32 warp_first = first + threadIdx.x / WARP * 16 * M, warp_last = min(warp_first + 16 * (i32)M - 1, last);
    Range least = part.visible(warp_first), most = part.visible(warp_last);
    // A warp without rows has no work.
    Range some = {least.start, warp_first > last ? 0 : most.end}, all = {most.start, least.end};
    f32 lse[M][2], delta[M][2];
    Range seen[M][2];
#pragma unroll
    for (u32 i = 0; i < M; i++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            i32 r = warp_first + (i32)(16 * i + 8 * half + lane / 4);
            bool there = r <= last;
            u64 row = there ? part.row(r) : 0;
            lse[i][half] = there ? saved.lse[row] * math::LOG2_E : 0.0f;
            delta[i][half] = there ? saved.delta[row] : 0.0f;
            seen[i][half] = part.visible(r);
        }
    }
    f32 sums[M][WIDTH / 8][4] = {};
    f32 factor = saved.scale * math::LOG2_E;
    u32 stage = 0;
#pragma unroll 1
    for (i32 key = keys.start; key < keys.end; key += WALK, stage ^= 1) {
        mma::wait<0>();
        // The tile is there for all, and the other stage has been read by all.
        __syncthreads();
        if (key + WALK < keys.end) load_keys(key + WALK, stage ^ 1);
        Share share = share_of(some, all, key, WALK);
        if (share == Share::NONE) continue;
        f32 p[M][TILE / 8][4], ds[M][TILE / 8][4];
        multiply_rows<T, WIDTH>(p, room.own(0), room.walked(stage, 0), double_steps);
        multiply_rows<T, WIDTH>(ds, room.own(1), room.walked(stage, 1), double_steps);
        u32 weights[M][TILE / 16][4];
#pragma unroll
        for (u32 i = 0; i < M; i++) {
#pragma unroll
            for (u32 j = 0; j < TILE / 8; j++) {
#pragma unroll
                for (u32 k = 0; k < 4; k++) {
                    f32 exponent = fmaf(p[i][j][k], factor, -lse[i][k / 2]);
                    ds[i][j][k] = exp2(exponent) * (ds[i][j][k] - delta[i][k / 2]);
                }
            }
            if (share == Share::MASKED) {
                hide(ds[i], 0, seen[i][0], key, 0.0f);
                hide(ds[i], 1, seen[i][1], key, 0.0f);
            }
            round_weights<T>(weights[i], ds[i]);
        }
        add_weighted<T, WIDTH>(sums, weights, room.walked(stage, 0), 0, steps);
    }
#pragma unroll
    for (u32 i = 0; i < M; i++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            i32 r = warp_first + (i32)(16 * i + 8 * half + lane / 4);
            if (r <= last) store_row(dq + part.row(r) * width, sums[i], half, 0, width, saved.scale);
        }
    }
}

constexpr i32 OWN_KEYS = 16 * CORE_WARPS;
constexpr u32 COLUMNS = 128;

template <typename T, u32 WIDTH, u32 TILE>
INLINE void backward_kv(const Saved<T>& saved, const Part& part, i32 first, T* dk, T* dv, u32 column, u32 width) {
    constexpr i32 WALK = TILE;
    extern __shared__ __align__(128) u8 shared[];
    Room<WIDTH, OWN_KEYS, TILE> room = {mma::shared_address(shared)};
    u32 double_steps = double_steps_of(width), steps = steps_of(min(width - column, COLUMNS)), lane = lane_index();
    i32 last = min(first + OWN_KEYS, part.segment.kv_len) - 1;
    Range rows = part.viewers(first, last - first + 1);
    auto load_rows = [&](i32 row, u32 stage) {
        auto row_at = [&](u32 i) { return row + (i32)i < part.rows() ? part.row(row + i) : NOWHERE; };
        load_tile<TILE, WIDTH>(room.walked(stage, 0), saved.q, saved.d_out, width, row_at);
        if (threadIdx.x < TILE) {
            u64 from = row_at(threadIdx.x);
            u64 at = from == NOWHERE ? 0 : from;
            u32 bytes = from == NOWHERE ? 0 : sizeof(f32);
            copy_async<sizeof(f32)>(room.numbers(stage, 0) + threadIdx.x * sizeof(f32), saved.lse + at, bytes);
            copy_async<sizeof(f32)>(room.numbers(stage, 1) + threadIdx.x * sizeof(f32), saved.delta + at, bytes);
        }
        mma::commit();
    };
    load_tile<OWN_KEYS, WIDTH>(room.start, saved.k, saved.v, width,
                               [&](u32 j) { return first + (i32)j <= last ? part.key(first + j) : NOWHERE; });
    load_rows(rows.start, 0);

    i32 warp_first = first + threadIdx.x / WARP * 16, warp_last = min(warp_first + 15, last);
    Range least = part.viewers(warp_first, 1), most = part.viewers(warp_last, 1);
    Range some = {least.start, warp_first > last ? 0 : most.end};
    // Keys that are not there are hidden from all.
    Range all = {most.start, warp_first + 15 > last ? 0 : least.end};
    Range seen[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        i32 key = warp_first + (i32)(8 * half + lane / 4);
        seen[half] = key <= last ? part.viewers(key, 1) : Range{0, 0};
    }
    f32 k_sums[1][COLUMNS / 8][4] = {}, v_sums[1][COLUMNS / 8][4] = {};
    f32 factor = saved.scale * math::LOG2_E;
    u32 stage = 0;
#pragma unroll 1
    for (i32 row = rows.start; row < rows.end; row += WALK, stage ^= 1) {
        mma::wait<0>();
        // The tile is there for all, and the other stage has been read by all.
        __syncthreads();
        if (row + WALK < rows.end) load_rows(row + WALK, stage ^ 1);
        Share share = share_of(some, all, row, WALK);
        if (share == Share::NONE) continue;
        f32 p[1][TILE / 8][4], ds[1][TILE / 8][4];
        multiply_rows<T, WIDTH>(p, room.own(0), room.walked(stage, 0), double_steps);
#pragma unroll
        for (u32 j = 0; j < TILE / 8; j++) {
            Pair<f32> lse = load_two(room.numbers(stage, 0) + (8 * j + lane % 4 * 2) * sizeof(f32));
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                f32 exponent = fmaf(p[0][j][k], factor, -math::LOG2_E * (k % 2 ? lse.b : lse.a));
                p[0][j][k] = exp2(exponent);
            }
        }
        if (share == Share::MASKED) {
            hide(p[0], 0, seen[0], row, 0.0f);
            hide(p[0], 1, seen[1], row, 0.0f);
        }
        u32 weights[1][TILE / 16][4];
        round_weights<T>(weights[0], p[0]);
        add_weighted<T, WIDTH>(v_sums, weights, room.walked(stage, 1), column / 8, steps);
        multiply_rows<T, WIDTH>(ds, room.own(1), room.walked(stage, 1), double_steps);
#pragma unroll
        for (u32 j = 0; j < TILE / 8; j++) {
            Pair<f32> delta = load_two(room.numbers(stage, 1) + (8 * j + lane % 4 * 2) * sizeof(f32));
#pragma unroll
            for (u32 k = 0; k < 4; k++) ds[0][j][k] = p[0][j][k] * (ds[0][j][k] - (k % 2 ? delta.b : delta.a));
        }
        round_weights<T>(weights[0], ds[0]);
        add_weighted<T, WIDTH>(k_sums, weights, room.walked(stage, 0), column / 8, steps);
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        i32 key = warp_first + (i32)(8 * half + lane / 4);
        if (key > last) continue;
        store_row(dk + part.key(key) * width, k_sums[0], half, column, width, saved.scale);
        store_row(dv + part.key(key) * width, v_sums[0], half, column, width, 1.0f);
    }
}

// ---- Entry points.

#define ATTENTION_BACKWARD(T, D, M, TILE)                                                                             \
    KERNEL(CORE_THREADS, 255)                                                                                         \
    attention_backward_q_##T##_##D(const T* __restrict__ d_out, const T* __restrict__ q, const T* __restrict__ k,     \
                                   const T* __restrict__ v, const f32* __restrict__ lse,                              \
                                   const f32* __restrict__ delta, const Segment* __restrict__ segments, u32 count,    \
                                   u32 full, u32 window, f32 scale, T* __restrict__ dq, u32 heads, u32 kv_heads,      \
                                   u32 width) {                                                                       \
        i32 first;                                                                                                    \
        Part part = part_of_rows(segments, count, {full, window}, 0, heads, kv_heads, 1, 64 * M, first);              \
        backward_q<T, D, M, TILE>({d_out, q, k, v, lse, delta, scale}, part, first, dq, width);                       \
    }                                                                                                                 \
    KERNEL(CORE_THREADS, 255)                                                                                         \
    attention_backward_kv_##T##_##D(const T* __restrict__ d_out, const T* __restrict__ q, const T* __restrict__ k,    \
                                    const T* __restrict__ v, const f32* __restrict__ lse,                             \
                                    const f32* __restrict__ delta, const Segment* __restrict__ segments, u32 count,   \
                                    u32 full, u32 window, f32 scale, T* __restrict__ dk, T* __restrict__ dv,          \
                                    u32 heads, u32 kv_heads, u32 width) {                                             \
        u32 slices = (width + COLUMNS - 1) / COLUMNS, column = blockIdx.x % slices * COLUMNS;                         \
        i32 first;                                                                                                    \
        Part part = part_of_keys(segments, count, {full, window}, heads, kv_heads, slices, OWN_KEYS, first);          \
        backward_kv<T, D, TILE>({d_out, q, k, v, lse, delta, scale}, part, first, dk, dv, column, width);             \
    }
ATTENTION_BACKWARD(bf16, 128, 2, 32)
ATTENTION_BACKWARD(bf16, 256, 1, 16)
ATTENTION_BACKWARD(f16, 128, 2, 32)
ATTENTION_BACKWARD(f16, 256, 1, 16)
