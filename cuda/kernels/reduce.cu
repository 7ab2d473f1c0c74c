// Sums, means and extremes, the gradient of an extreme, and the position of a maximum (tensor/src/ops/reduce.rs), bit
// for bit as on the CPU.
//
//   reduce_X_Y            out[row, chunk] = op over a chunk of 8192 of the elements of a row; x is [outer, count] of X
//   reduce_columns_X_Y    the same of x [count, outer]: for results that are neighbours while their elements lie apart
//   extreme_backward_T    dx = dy at the first element of a row that equals y, else 0
//   argmax_T              out = the index of the first largest element of a row; a NaN is larger than any number
//
// out of a reduction is [outer, chunks] of Y with chunks = max(1, ceil(count / 8192)). With more than one chunk the
// launcher reduces to f32 by SUM, MAX or MIN, and again along the chunks until one is left; the last pass is to the
// type of the result, and divides by `divisor` if op is MEAN. op is the number of the variant of tensor's `Reduce`.
// Bytes: one read of x; dx written once. Geometry: reduce: ceil(outer chunks / 4) blocks of 128 threads, one warp a
// chunk; reduce_columns: ceil(outer / 32) chunks blocks of 256; the others: ceil(rows / 4) blocks of 128, one warp a
// row.
#include "math.cuh"

enum Op : u32 { SUM, MEAN, MAX, MIN };

constexpr u64 CHUNK = 8192;

INLINE f32 smaller(f32 a, f32 b) { return a < b || a != a ? a : b; }

// Calls with(start value, join) of the operation.
template <typename With> INLINE f32 dispatch(u32 op, With with) {
    switch (op) {
        case SUM:
        case MEAN: return with(0.0f, [](f32 a, f32 b) { return a + b; });
        case MAX: return with(-math::infinity(), larger);
        case MIN: return with(math::infinity(), smaller);
        default: __trap();
    }
}

template <typename Y> INLINE void finish(u32 op, f32 result, f32 divisor, Y* out) {
    *out = from_f32<Y>(op == MEAN ? result / divisor : result);
}

template <typename X, typename Y>
INLINE void reduce(u32 op, const X* x, const View& x_view, u64 outer, u64 count, f32 divisor, Y* out) {
    u64 chunks = max((count + CHUNK - 1) / CHUNK, 1ull), result = warp_row();
    if (result >= outer * chunks) return;
    u64 first = result % chunks * CHUNK;
    u32 width = (u32)min(count - first, CHUNK);
    Row<X> row(x, x_view, result / chunks * count + first, count);
    f32 all = dispatch(op, [&](f32 start, auto join) {
        Pair<f32> lanes = {start, start};
        each_pair(
            width,
            [&](u32 i) {
                auto [a, b] = row.two(i);
                lanes = {join(lanes.a, a), join(lanes.b, b)};
            },
            [&](u32 i) { lanes.a = join(lanes.a, row[i]); });
        return fold(lanes, join);
    });
    if (lane_index() == 0) finish(op, all, divisor, out + result);
}

// A block reduces 32 columns: thread (column, y) holds lanes y, y + 8, .. of its column.
constexpr u32 COLUMNS = 32;
constexpr u32 SLICES = THREADS / COLUMNS;

template <typename X, typename Y>
INLINE void reduce_columns(u32 op, const X* x, const View& x_view, u64 outer, u64 count, f32 divisor, Y* out) {
    __shared__ f32 lanes[LANES][COLUMNS];
    u32 own = threadIdx.x % COLUMNS, slice = threadIdx.x / COLUMNS;
    u64 chunks = max((count + CHUNK - 1) / CHUNK, 1ull), chunk = blockIdx.x % chunks;
    u64 column = blockIdx.x / chunks * COLUMNS + own;
    u64 first = chunk * CHUNK, end = min(first + CHUNK, count);
    f32 all = dispatch(op, [&](f32 start, auto join) {
        f32 sums[LANES / SLICES];
#pragma unroll
        for (u32 k = 0; k < LANES / SLICES; k++) sums[k] = start;
        if (column < outer) {
            for (u64 i = first + slice; i < end; i += LANES) {
#pragma unroll
                for (u32 k = 0; k < LANES / SLICES; k++) {
                    u64 at = i + k * SLICES;
                    if (at < end) sums[k] = join(sums[k], to_f32(x[x_view.offset(at * outer + column)]));
                }
            }
        }
#pragma unroll
        for (u32 k = 0; k < LANES / SLICES; k++) lanes[slice + k * SLICES][own] = sums[k];
        __syncthreads();
        for (u32 half = LANES / 2; half > 0; half /= 2) {
            for (u32 i = slice; i < half; i += SLICES) lanes[i][own] = join(lanes[i][own], lanes[i + half][own]);
            __syncthreads();
        }
        return lanes[0][own];
    });
    if (slice == 0 && column < outer) finish(op, all, divisor, out + column * chunks + chunk);
}

#define REDUCE(X, Y)                                                                                                  \
    KERNEL(ROW_THREADS)                                                                                               \
    reduce_##X##_##Y(u32 op, const X* __restrict__ x, VIEW x_view, u64 outer, u64 count, f32 divisor,                 \
                     Y* __restrict__ out) {                                                                           \
        reduce(op, x, x_view, outer, count, divisor, out);                                                            \
    }                                                                                                                 \
    KERNEL(THREADS)                                                                                                   \
    reduce_columns_##X##_##Y(u32 op, const X* __restrict__ x, VIEW x_view, u64 outer, u64 count, f32 divisor,         \
                             Y* __restrict__ out) {                                                                   \
        reduce_columns(op, x, x_view, outer, count, divisor, out);                                                    \
    }
REDUCE(f32, f32)
REDUCE(f32, f16)
REDUCE(f32, bf16)
REDUCE(f16, f16)
REDUCE(f16, f32)
REDUCE(bf16, bf16)
REDUCE(bf16, f32)

// The smallest of a warp's values.
INLINE u32 warp_min(u32 x) {
#pragma unroll
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) x = min(x, shuffle_xor(x, distance));
    return x;
}

template <typename T>
INLINE void extreme_backward(const T* x, const View& x_view, const T* y, const T* dy, T* dx, u64 rows, u32 width) {
    u64 index = warp_row();
    if (index >= rows) return;
    Row<T> row(x, x_view, index * width, width);
    f32 extreme = to_f32(y[index]);
    u32 first = width;
    for (u32 i = lane_index(); i < width && first == width; i += WARP) {
        f32 value = row[i];
        if (value == extreme || (value != value && extreme != extreme)) first = i;
    }
    first = warp_min(first);
    T zero = from_f32<T>(0.0f);
    for (u32 i = lane_index(); i < width; i += WARP) dx[index * width + i] = i == first ? dy[index] : zero;
}

// A value and where it stands.
struct Best {
    f32 value;
    u32 index;
};

// The larger, NaN above all; of equals the first.
INLINE Best better(Best a, Best b) {
    bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    bool b_wins = b.value > a.value || (b_nan && !a_nan);
    bool tie = b.value == a.value || (a_nan && b_nan);
    return b_wins || (tie && b.index < a.index) ? b : a;
}

template <typename T> INLINE void argmax(const T* x, const View& x_view, i32* out, u64 rows, u32 width) {
    u64 index = warp_row();
    if (index >= rows) return;
    Row<T> row(x, x_view, index * width, width);
    // A thread without elements repeats the first one.
    Best best = {row[0], 0};
    for (u32 i = lane_index(); i < width; i += WARP) best = better(best, {row[i], i});
#pragma unroll
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) {
        best = better(best, {shuffle_xor(best.value, distance), shuffle_xor(best.index, distance)});
    }
    if (lane_index() == 0) out[index] = (i32)best.index;
}

#define EXTREMES(T)                                                                                                   \
    KERNEL(ROW_THREADS)                                                                                               \
    extreme_backward_##T(const T* __restrict__ x, VIEW x_view, const T* __restrict__ y, const T* __restrict__ dy,     \
                         T* __restrict__ dx, u64 rows, u32 width) {                                                   \
        extreme_backward(x, x_view, y, dy, dx, rows, width);                                                          \
    }                                                                                                                 \
    KERNEL(ROW_THREADS)                                                                                               \
    argmax_##T(const T* __restrict__ x, VIEW x_view, i32* __restrict__ out, u64 rows, u32 width) {                    \
        argmax(x, x_view, out, rows, width);                                                                          \
    }
FLOATS(EXTREMES)
