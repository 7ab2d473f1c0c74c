// Attention over segments of 16-bit floats on tensor cores, as FlashAttention-2 does it (Dao 2023): the forward pass of
// tensor/src/ops/attention.rs. attention.cu has the words and the rules that are not said here, and the f32 path.
//
//   attention_T_D   out (of T) and lse, of q, k, v [.., width] of T; width <= D
//
// A block owns 64 M rows of one key head, a warp 16 M of them, and walks over tiles of 32 keys: while it works on
// one, the next is copied. Scores, softmax and sums are in f32, the weights of the second product are rounded to T.
// They are powers of 2 against a reference for each row, which follows its maximum when that has grown by more than
// 2^8.
// Bits: a row's depend on its own segment only; products add in the tensor cores' order.
// Bytes: as attention.cu, each tile of keys and values once a block of 64 M rows.
// Geometry: 128 threads, kv_heads sum(ceil(q_len group / 64 M)) blocks; dynamic shared memory: 64 M rows and four tiles
// of 32, each of D elements of 2 bytes: 64 KiB for D = 128 (M = 2), 96 KiB for D = 256 (M = 1).
#include "attention_cores.cuh"

// Keys of a tile.
constexpr u32 KEYS = 32;
// By what power of 2 weights may exceed 1 before the reference follows.
constexpr f32 SLACK = 8.0f;

// What a row has seen so far: the reference, and this thread's part of the sum of 2^(score - reference).
struct Online {
    f32 reference, sum;
};

// Scores of one row (of this thread's: four neighbours of a warp have the others) become weights; returns the factor of
// what was summed before.
template <u32 N> INLINE f32 advance(Online& row, f32 (&scores)[N][4], u32 half) {
    f32 max = scores[0][2 * half];
#pragma unroll
    for (u32 j = 0; j < N; j++) {
        max = max_nan(max, scores[j][2 * half]);
        max = max_nan(max, scores[j][2 * half + 1]);
    }
    max = max_nan(max, shuffle_xor(max, 1));
    max = max_nan(max, shuffle_xor(max, 2));
    f32 keep = 1.0f;
    if (max > row.reference + SLACK) {
        keep = exp2(row.reference - max);
        row.reference = max;
        row.sum *= keep;
    }
    // A row that has seen nothing yet takes any finite number, to give zeros.
    f32 shift = row.reference == -math::infinity() ? 0.0f : row.reference;
#pragma unroll
    for (u32 j = 0; j < N; j++) {
#pragma unroll
        for (u32 k = 2 * half; k < 2 * half + 2; k++) {
            scores[j][k] = exp2(scores[j][k] - shift);
            row.sum += scores[j][k];
        }
    }
    return keep;
}

// Where a kernel for rows keeps its tiles: its rows, then keys and values of two stages.
template <u32 WIDTH, u32 M> struct Room {
    static constexpr u32 TILE = KEYS * WIDTH * 2;
    u32 rows;

    INLINE u32 warp_rows() const { return rows + threadIdx.x / WARP * 16 * M * WIDTH * 2; }
    INLINE u32 keys(u32 stage) const { return rows + 64 * M * WIDTH * 2 + stage * 2 * TILE; }
    INLINE u32 values(u32 stage) const { return keys(stage) + TILE; }
};

template <typename T, u32 WIDTH, u32 M>
INLINE void forward(const T* q, const T* k, const T* v, const Part& part, i32 first, f32 scale, T* out, f32* lse,
                    u32 width) {
    extern __shared__ __align__(128) u8 shared[];
    Room<WIDTH, M> room = {mma::shared_address(shared)};
    u32 steps = steps_of(width), lane = lane_index();
    i32 last = min(first + 64 * (i32)M, part.rows()) - 1;
    Range keys = {part.visible(first).start / (i32)KEYS * (i32)KEYS, part.visible(last).end};
    auto load_keys = [&](i32 key, u32 stage) {
        load_tile<KEYS, WIDTH>(room.keys(stage), k, v, width, [&](u32 j) {
            return key + (i32)j < part.segment.kv_len ? part.key(key + j) : NOWHERE;
        });
        mma::commit();
    };
    auto row_in_q = [&](u32 i) { return first + (i32)i <= last ? part.row(first + i) : NOWHERE; };
    load_tile<64 * M, WIDTH>(room.rows, q, (const T*)nullptr, width, row_in_q);
    load_keys(keys.start, 0);

    i32 warp_first = first + threadIdx.x / WARP * 16 * M, warp_last = min(warp_first + 16 * (i32)M - 1, last);
    bool idle = warp_first > last;
    Range least = part.visible(warp_first), most = part.visible(warp_last);
    Range some = {least.start, idle ? 0 : most.end}, all = {most.start, least.end};
    auto row_of_thread = [&](u32 i, u32 half) { return warp_first + (i32)(16 * i + 8 * half + lane / 4); };
    f32 sums[M][WIDTH / 8][4] = {};
    Online online[M][2];
#pragma unroll
    for (u32 i = 0; i < M; i++) online[i][0] = online[i][1] = {-math::infinity(), 0.0f};
    f32 factor = scale * math::LOG2_E;
    u32 stage = 0;
#pragma unroll 1
    for (i32 key = keys.start; key < keys.end; key += KEYS, stage ^= 1) {
        mma::wait<0>();
        // The tile is there for all, and the other stage has been read by all.
        __syncthreads();
        if (key + (i32)KEYS < keys.end) load_keys(key + KEYS, stage ^ 1);
        Share share = share_of(some, all, key, KEYS);
        if (share == Share::NONE) continue;
        f32 scores[M][KEYS / 8][4];
        multiply_rows<T, WIDTH>(scores, room.warp_rows(), room.keys(stage), double_steps_of(width));
#pragma unroll
        for (u32 i = 0; i < M; i++) {
#pragma unroll
            for (u32 j = 0; j < KEYS / 8; j++) {
#pragma unroll
                for (u32 k = 0; k < 4; k++) scores[i][j][k] *= factor;
            }
        }
        if (share == Share::MASKED) {
#pragma unroll
            for (u32 i = 0; i < M; i++) {
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    hide(scores[i], half, part.visible(row_of_thread(i, half)), key, -math::infinity());
                }
            }
        }
        f32 keep[M][2];
        bool kept = true;
#pragma unroll
        for (u32 i = 0; i < M; i++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                keep[i][half] = advance(online[i][half], scores[i], half);
                kept = kept && keep[i][half] == 1.0f;
            }
        }
        if (!__all_sync(0xFFFFFFFF, kept)) {
#pragma unroll
            for (u32 i = 0; i < M; i++) {
#pragma unroll
                for (u32 c = 0; c < WIDTH / 8; c++) {
#pragma unroll
                    for (u32 k = 0; k < 4; k++) sums[i][c][k] *= keep[i][k / 2];
                }
            }
        }
        u32 weights[M][KEYS / 16][4];
#pragma unroll
        for (u32 i = 0; i < M; i++) round_weights<T>(weights[i], scores[i]);
        add_weighted<T, WIDTH>(sums, weights, room.values(stage), 0, steps);
    }
#pragma unroll
    for (u32 i = 0; i < M; i++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            auto [reference, sum] = online[i][half];
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            i32 r = row_of_thread(i, half);
            if (r > last) continue;
            u64 row = part.row(r);
            if (lane % 4 == 0) lse[row] = reference * math::LN_2 + math::log(sum);
            store_row(out + row * width, sums[i], half, 0, width, sum == 0.0f ? 0.0f : 1.0f / sum);
        }
    }
}

// ---- Entry points.

#define ATTENTION(T, D, M)                                                                                            \
    KERNEL(CORE_THREADS, 255)                                                                                         \
    attention_##T##_##D(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,                    \
                        const Segment* __restrict__ segments, u32 count, u32 full, u32 window, u32 chunk, f32 scale,  \
                        T* __restrict__ out, f32* __restrict__ lse, u32 heads, u32 kv_heads, u32 width) {             \
        i32 first;                                                                                                    \
        Part part = part_of_rows(segments, count, {full, window}, chunk, heads, kv_heads, 1, 64 * M, first);          \
        forward<T, D, M>(q, k, v, part, first, scale, out, lse, width);                                               \
    }
ATTENTION(bf16, 128, 2)
ATTENTION(bf16, 256, 1)
ATTENTION(f16, 128, 2)
ATTENTION(f16, 256, 1)
