// Attention of few rows over many keys, as in decoding: the keys of a segment are split over blocks
// ("Flash-Decoding", Dao et al. 2023). attention.cu has the words and the rules that are not said here.
//
//   attention_decode_T   of each chunk of keys: the largest score, sum e^(score - largest), and its weighted values
//   attention_combine    out and lse, from those of all chunks in order; `dtype` of out: 0 f32, 1 f16, 2 bf16
//
// A segment is split when q_len group <= 16 and its rows see more than two chunks of `chunk` keys (32, 64 or 128);
// others have no blocks here. A block has one chunk and one key head: keys and values are read once for all rows of
// the group. Rows of 16-bit types are whole and aligned pieces of 16 bytes. Everything is computed in f32.
// `partial` holds for each block `room` (at least q_len group of every such segment) rows of sums, padded like a row
// of T to 16 bytes, `stats` two numbers for each of these rows.
// Bits: by the segment's shape only; sums have another order than the CPU's.
// Bytes: k and v once, q once a chunk; partial sums twice, 8 room width bytes beside 2 chunk width sizeof(T).
// Geometry: 128 threads. decode: kv_heads sum(chunks) blocks, with dynamic shared memory for 2 chunk rows of T and
// ceil(q_len group / 4) 4 rows of f32, each padded to 16 bytes of T, and for the f32 of 4 pieces of 16 bytes a thread.
// combine: kv_heads sum(q_len group) blocks.
#include "attention.cuh"

constexpr u32 DECODE_THREADS = 128;
constexpr u32 DECODE_WARPS = DECODE_THREADS / WARP;
// Rows that are worked on at a time, and keys that a thread does.
constexpr u32 ROWS = 4;
constexpr u32 KEYS = 2;
// Threads that share a key, each with every eighth 16 bytes of it.
constexpr u32 SHARING = 8;
constexpr u32 MOST_CHUNK = 128;

// 16 bytes of a row.
template <typename T> constexpr u32 PIECE = 16 / sizeof(T);
template <typename T> using Piece = Vec<T, PIECE<T>>;
// One number for each of the rows.
using Rows = Vec<f32, ROWS>;

template <typename T> INLINE u32 pieces_of(u32 width) { return (width + PIECE<T> - 1) / PIECE<T>; }

// Rows of f32 that go with rows of such pieces have the first 4 of all pieces, then the others, so that threads with
// neighbouring pieces access neighbouring 16 bytes. Which column is the i-th, and where a column is, of pieces of
// `piece`.
INLINE u32 column_at(u32 i, u32 pieces, u32 piece) {
    return i % (4 * pieces) / 4 * piece + i / (4 * pieces) * 4 + i % 4;
}
INLINE u32 place_of(u32 column, u32 pieces, u32 piece) {
    return column % piece / 4 * (4 * pieces) + column / piece * 4 + column % 4;
}

// The sum or maximum over the block of each of the rows' numbers; everybody gets it. Sums have a fixed order.
template <typename Join> INLINE Rows reduce(Rows own, Rows (&room)[DECODE_WARPS], Join join) {
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
        for (u32 distance = WARP / 2; distance > 0; distance /= 2) {
            own.at[r] = join(own.at[r], shuffle_xor(own.at[r], distance));
        }
    }
    if (lane_index() == 0) room[threadIdx.x / WARP] = own;
    __syncthreads();
    Rows all = room[0];
#pragma unroll
    for (u32 warp = 1; warp < DECODE_WARPS; warp++) {
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) all.at[r] = join(all.at[r], room[warp].at[r]);
    }
    // The room may be used again.
    __syncthreads();
    return all;
}

// A block's chunk of keys, and its rows.
struct Chunk {
    const Part& part;
    i32 first;  // its first key
    u32 count, rows, width;
};

// Starts the copy of the chunk's rows of x to `tile`, each padded to whole pieces with zeros.
template <typename T> INLINE void load_chunk(T* tile, const T* x, const Chunk& chunk) {
    u32 pieces = pieces_of<T>(chunk.width);
    if (chunk.width % PIECE<T> == 0 && aligned<PIECE<T>>(x)) {
        u32 key = threadIdx.x / pieces, piece = threadIdx.x % pieces;
        u32 key_step = DECODE_THREADS / pieces, piece_step = DECODE_THREADS % pieces;
#pragma unroll 1
        for (; key < chunk.count; key += key_step) {
            const T* from = x + chunk.part.key(chunk.first + key) * chunk.width + piece * PIECE<T>;
            mma::copy_async(tile + (key * pieces + piece) * PIECE<T>, from, 16);
            piece += piece_step;
            if (piece >= pieces) {
                piece -= pieces;
                key++;
            }
        }
        return;
    }
    u32 padded = pieces * PIECE<T>;
#pragma unroll 1
    for (u32 t = threadIdx.x; t < chunk.count * padded; t += DECODE_THREADS) {
        u32 key = t / padded, column = t % padded;
        const T* from = x + chunk.part.key(chunk.first + key) * chunk.width + column;
        tile[t] = column < chunk.width ? *from : from_f32<T>(0.0f);
    }
}

// Rows of q times scale, zeros behind the last.
template <typename T> INLINE void load_rows(f32* to, const T* q, const Chunk& chunk, u32 padded_rows, f32 scale) {
    u32 pieces = pieces_of<T>(chunk.width), padded = pieces * PIECE<T>;
#pragma unroll 1
    for (u32 t = threadIdx.x; t < padded_rows * padded; t += DECODE_THREADS) {
        u32 r = t / padded, column = column_at(t % padded, pieces, PIECE<T>);
        bool there = r < chunk.rows && column < chunk.width;
        to[t] = there ? to_f32(q[chunk.part.row(r) * chunk.width + column]) * scale : 0.0f;
    }
}

// Scores of ROWS rows from `row` on with all keys of the chunk.
template <typename T> INLINE void score(Rows* scores, const f32* q, const T* keys, const Chunk& chunk, u32 row) {
    u32 pieces = pieces_of<T>(chunk.width), sharing = threadIdx.x % SHARING;
    constexpr u32 AT_ONCE = DECODE_THREADS / SHARING;
#pragma unroll 1
    for (u32 first = 0; first < chunk.count; first += KEYS * AT_ONCE) {
        u32 key = first + threadIdx.x / SHARING;
        f32 sums[KEYS][ROWS] = {};
#pragma unroll 1
        for (u32 piece = sharing; piece < pieces; piece += SHARING) {
            Piece<T> k[KEYS];
#pragma unroll
            for (u32 i = 0; i < KEYS; i++) {
                // A key that is not there is read as the last, and not used.
                u32 at = min(key + i * AT_ONCE, chunk.count - 1);
                k[i] = reinterpret_cast<const Piece<T>*>(keys)[at * pieces + piece];
            }
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
                for (u32 four = 0; four < PIECE<T> / 4; four++) {
                    u32 at = ((row + r) * (PIECE<T> / 4) + four) * pieces + piece;
                    Vec<f32, 4> x = reinterpret_cast<const Vec<f32, 4>*>(q)[at];
#pragma unroll
                    for (u32 i = 0; i < KEYS; i++) {
#pragma unroll
                        for (u32 e = 0; e < 4; e++) {
                            sums[i][r] = fmaf(x.at[e], to_f32(k[i].at[4 * four + e]), sums[i][r]);
                        }
                    }
                }
            }
        }
#pragma unroll
        for (u32 i = 0; i < KEYS; i++) {
            Rows own;
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                f32 sum = sums[i][r];
#pragma unroll
                for (u32 distance = SHARING / 2; distance > 0; distance /= 2) sum += shuffle_xor(sum, distance);
                own.at[r] = sum;
            }
            if (sharing == 0 && key + i * AT_ONCE < chunk.count) scores[key + i * AT_ONCE] = own;
        }
    }
}

// Values of the chunk times the weights of ROWS rows, to `partial`, which is where the first of them goes: every
// thread has one piece of columns and every so many keys, then the threads of a column are added up in order.
template <typename T>
INLINE void weigh(f32* partial, const Rows* weights, const T* values, f32* room, const Chunk& chunk, u32 rows) {
    u32 pieces = pieces_of<T>(chunk.width), groups = DECODE_THREADS / pieces;
    u32 piece = threadIdx.x % pieces, group = threadIdx.x / pieces;
    if (group < groups) {
        f32 sums[ROWS][PIECE<T>] = {};
#pragma unroll 2
        for (u32 key = group; key < chunk.count; key += groups) {
            Rows weight = weights[key];
            Piece<T> v = reinterpret_cast<const Piece<T>*>(values)[key * pieces + piece];
#pragma unroll
            for (u32 e = 0; e < PIECE<T>; e++) {
                f32 x = to_f32(v.at[e]);
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) sums[r][e] = fmaf(weight.at[r], x, sums[r][e]);
            }
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
            for (u32 four = 0; four < PIECE<T> / 4; four++) {
                const f32* x = &sums[r][4 * four];
                u32 at = ((group * ROWS + r) * (PIECE<T> / 4) + four) * pieces + piece;
                reinterpret_cast<Vec<f32, 4>*>(room)[at] = {x[0], x[1], x[2], x[3]};
            }
        }
    }
    __syncthreads();
    u32 padded = pieces * PIECE<T>;
#pragma unroll 1
    for (u32 t = threadIdx.x; t < rows * padded; t += DECODE_THREADS) {
        f32 sum = 0.0f;
        for (u32 g = 0; g < groups; g++) sum += room[g * ROWS * padded + t];
        partial[t] = sum;
    }
    // Barriers of the next rows stand between this and the next use of the room.
}

template <typename T>
INLINE void decode(const T* q, const T* k, const T* v, const Chunk& chunk, u32 most, f32 scale, f32* partial,
                   f32* stats) {
    extern __shared__ __align__(16) u8 shared[];
    __shared__ Rows weights[MOST_CHUNK], room[DECODE_WARPS];
    u32 padded = pieces_of<T>(chunk.width) * PIECE<T>, padded_rows = (chunk.rows + ROWS - 1) / ROWS * ROWS;
    T* keys = reinterpret_cast<T*>(shared);
    T* values = keys + most * padded;
    f32* rows = reinterpret_cast<f32*>(values + most * padded);
    f32* sums = rows + padded_rows * padded;
    load_chunk(keys, k, chunk);
    mma::commit();
    load_chunk(values, v, chunk);
    mma::commit();
    load_rows(rows, q, chunk, padded_rows, scale);
    mma::wait<1>();
    __syncthreads();
#pragma unroll 1
    for (u32 row = 0; row < chunk.rows; row += ROWS) {
        score(weights, rows, keys, chunk, row);
        // Also brings the values, in the first round.
        mma::wait<0>();
        __syncthreads();
        bool there = threadIdx.x < chunk.count;
        Rows own = weights[min(threadIdx.x, chunk.count - 1)];
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            bool seen = there && chunk.part.visible(row + r).contains(chunk.first + threadIdx.x);
            own.at[r] = seen ? own.at[r] : -math::infinity();
        }
        Rows max = reduce(own, room, [](f32 a, f32 b) { return larger(a, b); });
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            // A row that sees nothing of the chunk takes any finite number, to give zeros.
            f32 shift = max.at[r] == -math::infinity() ? 0.0f : max.at[r];
            own.at[r] = math::exp(own.at[r] - shift);
        }
        if (there) weights[threadIdx.x] = own;
        // Behind its barriers the weights are there for all.
        Rows sum = reduce(own, room, [](f32 a, f32 b) { return a + b; });
        u32 left = min(chunk.rows - row, ROWS);
        if (threadIdx.x == 0) {
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                if (r < left) write2(stats, 2 * (row + r), true, max.at[r], sum.at[r]);
            }
        }
        weigh(partial + row * padded, weights, values, sums, chunk, left);
    }
}

// One row of the result, of `count` chunks: number(i) is where the i-th has its partial row. All threads of a block
// have the largest score and the sum; each has every 128th column.
template <typename Number>
INLINE void combine(const f32* partial, const f32* stats, i32 count, void* out, u32 dtype, u64 row, f32* lse, u32 width,
                    Number number) {
    __shared__ f32 weights[DECODE_THREADS];
    f32 max = -math::infinity();
#pragma unroll 1
    for (i32 i = lane_index(); i < count; i += WARP) max = larger(max, stats[2 * number(i)]);
#pragma unroll
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) max = larger(max, shuffle_xor(max, distance));
    f32 shift = max == -math::infinity() ? 0.0f : max;
    f32 sum = 0.0f, values[2] = {};
    u32 piece = dtype == 0 ? PIECE<f32> : PIECE<f16>, pieces = (width + piece - 1) / piece, padded = pieces * piece;
#pragma unroll 1
    for (i32 first = 0; first < count; first += DECODE_THREADS) {
        i32 own = first + threadIdx.x, end = min(count - first, (i32)DECODE_THREADS);
        __syncthreads();
        if (own < count) weights[threadIdx.x] = math::exp(stats[2 * number(own)] - shift);
        __syncthreads();
#pragma unroll 4
        for (i32 i = 0; i < end; i++) {
            u64 at = number(first + i);
            sum = fmaf(weights[i], stats[2 * at + 1], sum);
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 column = threadIdx.x + half * DECODE_THREADS;
                if (column >= width) continue;
                f32 value = partial[at * padded + place_of(column, pieces, piece)];
                values[half] = fmaf(weights[i], value, values[half]);
            }
        }
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 column = threadIdx.x + half * DECODE_THREADS;
        if (column >= width) continue;
        f32 value = sum == 0.0f ? 0.0f : values[half] / sum;
        u64 at = row * width + column;
        if (dtype == 0) static_cast<f32*>(out)[at] = value;
        if (dtype == 1) static_cast<f16*>(out)[at] = from_f32<f16>(value);
        if (dtype == 2) static_cast<bf16*>(out)[at] = from_f32<bf16>(value);
    }
    if (threadIdx.x == 0) lse[row] = max + math::log(sum);
}

// ---- Entry points.

#define ATTENTION_DECODE(T)                                                                                           \
    KERNEL(DECODE_THREADS, 128)                                                                                       \
    attention_decode_##T(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,                   \
                         const Segment* __restrict__ segments, u32 count, u32 full, u32 window, u32 chunk, f32 scale, \
                         u32 room, f32* __restrict__ partial, f32* __restrict__ stats, u32 heads, u32 kv_heads,       \
                         u32 width) {                                                                                 \
        Mask mask = {full, window};                                                                                   \
        i32 tile = blockIdx.x / kv_heads, group = heads / kv_heads;                                                   \
        auto chunks = [=](const Segment& s) { return chunks_of(s, mask, group, chunk); };                             \
        Segment segment = find_segment(segments, count, tile, [=](const Segment& s) {                                 \
            return chunks(s).end - chunks(s).start;                                                                   \
        });                                                                                                           \
        Part part = {segment, mask, (i32)heads, (i32)kv_heads, (i32)(blockIdx.x % kv_heads), group};                  \
        i32 first = (chunks(segment).start + tile) * chunk;                                                           \
        Chunk of_block = {part, first, min(chunk, (u32)(segment.kv_len - first)), (u32)part.rows(), width};           \
        u64 row = (u64)blockIdx.x * room;                                                                             \
        decode(q, k, v, of_block, chunk, scale, partial + row * pieces_of<T>(width) * PIECE<T>, stats + 2 * row);     \
    }
FLOATS(ATTENTION_DECODE)

KERNEL(DECODE_THREADS)
attention_combine(const f32* __restrict__ partial, const f32* __restrict__ stats, u32 room,
                         const Segment* __restrict__ segments, u32 count, u32 full, u32 window, u32 chunk,
                         void* __restrict__ out, u32 dtype, f32* __restrict__ lse, u32 heads, u32 kv_heads, u32 width) {
    Mask mask = {full, window};
    i32 row = blockIdx.x / kv_heads, group = heads / kv_heads, before;
    u32 kv_head = blockIdx.x % kv_heads;
    auto chunks = [=](const Segment& s) {
        Range range = chunks_of(s, mask, group, chunk);
        return range.end - range.start;
    };
    auto rows = [=](const Segment& s) { return chunks(s) > 0 ? s.q_len * group : 0; };
    Segment segment = find_segment(segments, count, row, rows, chunks, before);
    Part part = {segment, mask, (i32)heads, (i32)kv_heads, (i32)kv_head, group};
    auto number = [=](i32 i) { return ((u64)(before + i) * kv_heads + kv_head) * room + row; };
    combine(partial, stats, chunks(segment), out, dtype, part.row(row), lse, width, number);
}
