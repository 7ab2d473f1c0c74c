// Attention over segments and its gradients (tensor/src/ops/attention.rs): out = softmax(q kT scale) v.
//
//   attention_f32                 out, and lse = log sum(e^score) of each row, by online softmax (Milakov and
//                                 Gimelshein 2018; Dao et al., "FlashAttention", 2022)
//   attention_backward_delta_T    delta = sum(d_out out) of each row
//   attention_backward_q_f32      dq = dS k, with P = e^(score - lse) and dS = P (d_out vT - delta) scale
//   attention_backward_kv_f32     dv = PT d_out and dk = dST q
//
// 16-bit floats are in attention_cores.cu and attention_cores_backward.cu, and attention_decode.cu has the segments
// of few rows and many keys: with `chunk` > 0 they are left out here.
// q, d_out, out and dq are [tokens, heads, width], k, v, dk and dv [entries, kv_heads, width], of f32; lse and delta
// [tokens, heads]; all contiguous. `segments` is a table of `count` entries, at least one; a block finds its own by
// adding up their tiles. A query sees all keys of its segment if `full`, else the last `window` (less than 2^31) of
// those up to its own place; the last query stands at the last key. Keys of no segment are not written.
// A row is a query and a head of those that share a key head, so that a group reads its keys once. A block owns 64 rows
// (dq, out) or 64 keys (dk, dv) of one key head, and 128 columns of what it makes of them, and walks over tiles of the
// others in order; scores live for one tile.
// Bits: by shape only, and a row's do not depend on what is beside it in its block; sums have another order than the
// CPU's, which takes tiles of 96.
// Bytes: a block reads its rows once a tile and each tile's keys and values once (twice in the backward pass), mostly
// from L2, and writes what it owns once. Nothing of rows x keys is stored.
// Geometry: 256 threads in 16 x 16; kv_heads ceil(width / 128) blocks times sum(ceil(q_len group / 64)) for rows,
// sum(ceil(kv_len / 64)) for keys; delta: ceil(tokens heads / 4) blocks of 128 threads, one warp a row.
#include "attention.cuh"

// Rows and keys of a tile. Thread (x, y) has rows y, y + 16, .. and keys (or columns) x, x + 16, ..
constexpr i32 SIDE = 64;
constexpr i32 STEP = 16;
constexpr i32 PER_SIDE = SIDE / STEP;
// Columns of q, k, .. that are in shared memory at a time: a warp reads one row of them.
constexpr u32 DEPTH = WARP;
// Columns of a result that a block owns.
constexpr u32 COLUMNS = 128;

// Part of 64 rows or keys; the odd pitch puts the columns of 32 rows into different banks.
using Chunk = f32[SIDE][DEPTH + 1];
// A tile of weights (rows x keys); the two rows that a warp writes at a time lie in different halves of the banks.
using Weights = f32[SIDE][SIDE + STEP];
using Scores = f32[PER_SIDE][PER_SIDE];
using Sums = f32[PER_SIDE][COLUMNS / STEP];

INLINE i32 thread_x() { return threadIdx.x % STEP; }
INLINE i32 thread_y() { return threadIdx.x / STEP; }

// Copies columns first .. first + DEPTH of 64 rows; row(i) is where the i-th begins, and whether it is there: zeros
// otherwise.
template <typename Row> INLINE void load(Chunk& chunk, u32 first, u32 width, Row row) {
    u32 column = first + lane_index(), to = mma::shared_address(chunk) + lane_index() * sizeof(f32);
#pragma unroll 1
    for (u32 i = threadIdx.x / WARP; i < SIDE; i += THREADS / WARP) {
        auto [from, there] = row(i);
        there = there && column < width;
        copy_async<4>(to + i * sizeof(chunk[0]), there ? from + column : from, there ? 4 : 0);
    }
}

// Makes what was copied visible to all.
INLINE void arrive() {
    mma::commit();
    mma::wait<0>();
    __syncthreads();
}

// The products of 64 rows of `left` and 64 of `right`.
template <typename Left, typename Right>
INLINE void dots(Scores& sums, Chunk& a, Chunk& b, u32 width, Left left, Right right) {
#pragma unroll
    for (u32 i = 0; i < PER_SIDE; i++) {
#pragma unroll
        for (u32 j = 0; j < PER_SIDE; j++) sums[i][j] = 0.0f;
    }
#pragma unroll 1
    for (u32 first = 0; first < width; first += DEPTH) {
        __syncthreads();
        load(a, first, width, left);
        load(b, first, width, right);
        arrive();
        u32 depths = min(DEPTH, width - first);
#pragma unroll 4
        for (u32 depth = 0; depth < depths; depth++) {
#pragma unroll
            for (u32 i = 0; i < PER_SIDE; i++) {
#pragma unroll
                for (u32 j = 0; j < PER_SIDE; j++) {
                    f32 x = a[thread_y() + STEP * i][depth], y = b[thread_x() + STEP * j][depth];
                    sums[i][j] = fmaf(x, y, sums[i][j]);
                }
            }
        }
    }
}

// Adds the 64 rows of `right`, columns `column` + 16 c + x, times their weights for this thread's rows of the result:
// weight(i, k) is that of right's row k.
template <typename Right, typename Weight>
INLINE void add_weighted(Sums& sums, Chunk& b, u32 column, u32 width, Right right, Weight weight) {
    constexpr u32 AT_ONCE = DEPTH / STEP;
#pragma unroll
    for (u32 c = 0; c < COLUMNS / STEP; c += AT_ONCE) {
        if (column + STEP * c < width) {
            __syncthreads();
            load(b, column + STEP * c, width, right);
            arrive();
#pragma unroll 4
            for (u32 k = 0; k < SIDE; k++) {
#pragma unroll
                for (u32 i = 0; i < PER_SIDE; i++) {
                    f32 w = weight(thread_y() + STEP * i, k);
#pragma unroll
                    for (u32 j = 0; j < AT_ONCE; j++) {
                        sums[i][c + j] = fmaf(w, b[k][thread_x() + STEP * j], sums[i][c + j]);
                    }
                }
            }
        }
    }
}

// Writes columns `column` + 16 c + x of a row of the result.
INLINE void store(f32* row, const f32 (&sums)[COLUMNS / STEP], u32 column, u32 width, f32 factor) {
    f32* to = row + column + thread_x();
    i32 left = width - column - thread_x();
#pragma unroll
    for (i32 c = 0; c < COLUMNS / STEP; c++) {
        if (STEP * c < left) to[STEP * c] = sums[c] * factor;
    }
}

struct Place {
    const f32* from;
    bool there;
};

// 64 rows from `row` on and 64 keys from `key` on.
struct Tile {
    const Part& part;
    i32 row, key;
    u32 width;

    // Where the i-th row begins in a tensor like q, and the j-th key in one like k; the tensor's start if it is not
    // there.
    INLINE auto rows_of(const f32* x) const {
        return [*this, x](i32 i) {
            bool there = row + i < part.rows();
            return Place{there ? x + part.row(row + i) * width : x, there};
        };
    }
    INLINE auto keys_of(const f32* x) const {
        return [*this, x](i32 j) {
            bool there = key + j < part.segment.kv_len;
            return Place{there ? x + part.key(key + j) * width : x, there};
        };
    }

    // The keys that this thread's i-th row sees, and whether its j-th key is among them.
    INLINE Range seen_by(u32 i) const { return part.visible(row + thread_y() + STEP * i); }
    INLINE bool sees(Range seen, u32 j) const { return seen.contains(key + thread_x() + STEP * j); }
};

// ---- Forward.

// What a row has seen so far: its largest score, and the sum of e^(score - largest).
struct Online {
    f32 max, sum;
};

// What is subtracted from scores: a row that has seen nothing yet takes any finite number, to give zeros.
INLINE f32 shift_of(f32 max) { return max == -math::infinity() ? 0.0f : max; }

// Scores of one row become e^(score - largest); returns the factor of what was summed before. The 16 threads of a row
// come to the same numbers: both sides of an exchange join the same two.
INLINE f32 advance(Online& row, f32 (&scores)[PER_SIDE]) {
    f32 max = row.max, sum = 0.0f;
#pragma unroll
    for (u32 j = 0; j < PER_SIDE; j++) max = larger(max, scores[j]);
#pragma unroll
    for (u32 distance = STEP / 2; distance > 0; distance /= 2) max = larger(max, shuffle_xor(max, distance));
    f32 shift = shift_of(max);
#pragma unroll
    for (u32 j = 0; j < PER_SIDE; j++) {
        scores[j] = math::exp(scores[j] - shift);
        sum += scores[j];
    }
#pragma unroll
    for (u32 distance = STEP / 2; distance > 0; distance /= 2) sum += shuffle_xor(sum, distance);
    f32 keep = math::exp(row.max - shift);
    row.max = max;
    row.sum = fmaf(row.sum, keep, sum);
    return keep;
}

// Columns `column` .. `column` + COLUMNS of the result of 64 rows.
INLINE void forward(const f32* q, const f32* k, const f32* v, const Part& part, i32 first, f32 scale, f32* out,
                    f32* lse, u32 column, u32 width) {
    __shared__ Chunk a, b;
    __shared__ Weights p;
    Sums sums = {};
    Online online[PER_SIDE];
#pragma unroll
    for (u32 i = 0; i < PER_SIDE; i++) online[i] = {-math::infinity(), 0.0f};
    // Tiles are counted from the segment's first key, so that a row's bits do not depend on the rows beside it.
    i32 start = part.visible(first).start / SIDE * SIDE;
    i32 end = part.visible(min(first + SIDE, part.rows()) - 1).end;
#pragma unroll 1
    for (i32 key = start; key < end; key += SIDE) {
        Tile tile = {part, first, key, width};
        Scores scores;
        dots(scores, a, b, width, tile.rows_of(q), tile.keys_of(k));
#pragma unroll
        for (u32 i = 0; i < PER_SIDE; i++) {
            Range seen = tile.seen_by(i);
#pragma unroll
            for (u32 j = 0; j < PER_SIDE; j++) {
                scores[i][j] = tile.sees(seen, j) ? scores[i][j] * scale : -math::infinity();
            }
            f32 keep = advance(online[i], scores[i]);
#pragma unroll
            for (u32 c = 0; c < COLUMNS / STEP; c++) sums[i][c] *= keep;
#pragma unroll
            for (u32 j = 0; j < PER_SIDE; j++) p[thread_y() + STEP * i][thread_x() + STEP * j] = scores[i][j];
        }
        add_weighted(sums, b, column, width, tile.keys_of(v), [&](u32 i, u32 k) { return p[i][k]; });
    }
#pragma unroll
    for (u32 i = 0; i < PER_SIDE; i++) {
        i32 r = first + thread_y() + STEP * i;
        if (r < part.rows()) {
            auto [max, sum] = online[i];
            store(out + part.row(r) * width, sums[i], column, width, sum == 0.0f ? 0.0f : 1.0f / sum);
            if (column == 0 && thread_x() == 0) lse[part.row(r)] = max + math::log(sum);
        }
    }
}

// ---- Backward.

// What the backward pass reads.
struct Saved {
    const f32 *d_out, *q, *k, *v, *lse, *delta;
    f32 scale;
};

// Each weight of this thread becomes weight(i, j, x, what it was), where x is of_rows at its row; 0 where it is hidden.
template <typename Weight> INLINE void set_weights(Weights& p, const Tile& tile, const f32* of_rows, Weight weight) {
#pragma unroll
    for (u32 i = 0; i < PER_SIDE; i++) {
        i32 r = tile.row + thread_y() + STEP * i;
        Range seen = tile.seen_by(i);
        f32 x = r < tile.part.rows() ? of_rows[tile.part.row(r)] : 0.0f;
#pragma unroll
        for (u32 j = 0; j < PER_SIDE; j++) {
            f32& at = p[thread_y() + STEP * i][thread_x() + STEP * j];
            at = tile.sees(seen, j) ? weight(i, j, x, at) : 0.0f;
        }
    }
}

// P of a tile. Every thread reads its own weights only, until a barrier.
INLINE void probabilities(Weights& p, Chunk& a, Chunk& b, const Tile& tile, const Saved& saved) {
    Scores scores;
    dots(scores, a, b, tile.width, tile.rows_of(saved.q), tile.keys_of(saved.k));
    set_weights(p, tile, saved.lse,
                [&](u32 i, u32 j, f32 lse, const f32&) { return math::exp(scores[i][j] * saved.scale - lse); });
}

// From P to dS.
INLINE void score_gradients(Weights& p, Chunk& a, Chunk& b, const Tile& tile, const Saved& saved) {
    Scores dp;
    dots(dp, a, b, tile.width, tile.rows_of(saved.d_out), tile.keys_of(saved.v));
    set_weights(p, tile, saved.delta, [&](u32 i, u32 j, f32 delta, const f32& probability) {
        return probability * (dp[i][j] - delta) * saved.scale;
    });
}

INLINE void backward_q(const Saved& saved, const Part& part, i32 first, f32* dq, u32 column, u32 width) {
    __shared__ Chunk a, b;
    __shared__ Weights p;
    Sums sums = {};
    i32 start = part.visible(first).start / SIDE * SIDE;
    i32 end = part.visible(min(first + SIDE, part.rows()) - 1).end;
#pragma unroll 1
    for (i32 key = start; key < end; key += SIDE) {
        Tile tile = {part, first, key, width};
        probabilities(p, a, b, tile, saved);
        score_gradients(p, a, b, tile, saved);
        add_weighted(sums, b, column, width, tile.keys_of(saved.k), [&](u32 i, u32 k) { return p[i][k]; });
    }
#pragma unroll
    for (u32 i = 0; i < PER_SIDE; i++) {
        i32 r = first + thread_y() + STEP * i;
        if (r < part.rows()) store(dq + part.row(r) * width, sums[i], column, width, 1.0f);
    }
}

// The same of the gradients of 64 keys.
INLINE void backward_kv(const Saved& saved, const Part& part, i32 first, f32* dk, f32* dv, u32 column, u32 width) {
    __shared__ Chunk a, b;
    __shared__ Weights p;
    Sums k_sums = {}, v_sums = {};
    Range rows = part.viewers(first, SIDE);
    auto transposed = [&](u32 i, u32 k) { return p[k][i]; };
#pragma unroll 1
    for (i32 row = rows.start; row < rows.end; row += SIDE) {
        Tile tile = {part, row, first, width};
        probabilities(p, a, b, tile, saved);
        add_weighted(v_sums, b, column, width, tile.rows_of(saved.d_out), transposed);
        score_gradients(p, a, b, tile, saved);
        add_weighted(k_sums, b, column, width, tile.rows_of(saved.q), transposed);
    }
#pragma unroll
    for (u32 i = 0; i < PER_SIDE; i++) {
        i32 j = first + thread_y() + STEP * i;
        if (j < part.segment.kv_len) {
            store(dk + part.key(j) * width, k_sums[i], column, width, 1.0f);
            store(dv + part.key(j) * width, v_sums[i], column, width, 1.0f);
        }
    }
}

template <typename T> INLINE void delta_of_row(const T* d_out, const T* out, f32* delta, u32 width) {
    bool paired = in_pairs(d_out, width) && in_pairs(out, width);
    Pair<f32> lanes = {0.0f, 0.0f};
    each_pair(
        width,
        [&](u32 i) {
            auto [x, y] = read2(d_out, i, paired);
            auto [a, b] = read2(out, i, paired);
            lanes.a = fmaf(x, a, lanes.a);
            lanes.b = fmaf(y, b, lanes.b);
        },
        [&](u32 i) { lanes.a = fmaf(to_f32(d_out[i]), to_f32(out[i]), lanes.a); });
    f32 sum = fold_sum(lanes);
    if (lane_index() == 0) *delta = sum;
}

// ---- Entry points.

KERNEL(THREADS, 128)
attention_f32(const f32* __restrict__ q, const f32* __restrict__ k, const f32* __restrict__ v,
              const Segment* __restrict__ segments, u32 count, u32 full, u32 window, u32 chunk, f32 scale,
              f32* __restrict__ out, f32* __restrict__ lse, u32 heads, u32 kv_heads, u32 width) {
    u32 slices = (width + COLUMNS - 1) / COLUMNS, column = blockIdx.x % slices * COLUMNS;
    i32 first;
    Part part = part_of_rows(segments, count, {full, window}, chunk, heads, kv_heads, slices, SIDE, first);
    forward(q, k, v, part, first, scale, out, lse, column, width);
}

KERNEL(THREADS, 128)
attention_backward_q_f32(const f32* __restrict__ d_out, const f32* __restrict__ q, const f32* __restrict__ k,
                         const f32* __restrict__ v, const f32* __restrict__ lse, const f32* __restrict__ delta,
                         const Segment* __restrict__ segments, u32 count, u32 full, u32 window, f32 scale,
                         f32* __restrict__ dq, u32 heads, u32 kv_heads, u32 width) {
    u32 slices = (width + COLUMNS - 1) / COLUMNS, column = blockIdx.x % slices * COLUMNS;
    i32 first;
    Part part = part_of_rows(segments, count, {full, window}, 0, heads, kv_heads, slices, SIDE, first);
    backward_q({d_out, q, k, v, lse, delta, scale}, part, first, dq, column, width);
}

KERNEL(THREADS, 128)
attention_backward_kv_f32(const f32* __restrict__ d_out, const f32* __restrict__ q, const f32* __restrict__ k,
                          const f32* __restrict__ v, const f32* __restrict__ lse, const f32* __restrict__ delta,
                          const Segment* __restrict__ segments, u32 count, u32 full, u32 window, f32 scale,
                          f32* __restrict__ dk, f32* __restrict__ dv, u32 heads, u32 kv_heads, u32 width) {
    u32 slices = (width + COLUMNS - 1) / COLUMNS, column = blockIdx.x % slices * COLUMNS;
    i32 first;
    Part part = part_of_keys(segments, count, {full, window}, heads, kv_heads, slices, SIDE, first);
    backward_kv({d_out, q, k, v, lse, delta, scale}, part, first, dk, dv, column, width);
}

#define ATTENTION_DELTA(T)                                                                                            \
    KERNEL(ROW_THREADS)                                                                                               \
    attention_backward_delta_##T(const T* __restrict__ d_out, const T* __restrict__ out, f32* __restrict__ delta,     \
                                 u64 rows, u32 width) {                                                               \
        u64 row = warp_row();                                                                                         \
        if (row < rows) delta_of_row(d_out + row * width, out + row * width, delta + row, width);                     \
    }
FLOATS(ATTENTION_DELTA)
