// Softmax and its logarithm along rows, and their gradients (tensor/src/ops/softmax.rs), bit for bit as on the CPU.
//
//   softmax_T            PLAIN: y = e^(x - max) / sum; LOG: y = (x - max) - log sum, with the sum over e^(x - max)
//   softmax_backward_T   PLAIN: dx = y (dy - y . dy); LOG: dx = dy - e^y sum(dy)
//
// x, y and dy are [rows, width] of any layout, the output is contiguous. op is the number of the variant of tensor's
// `Softmax`.
// Bytes: x is read three times and y, dy twice (all but the first mostly from L1 or L2), the output written once.
// Geometry: ceil(rows / 4) blocks of 128 threads, one warp a row.
#include "math.cuh"

enum Op : u32 { PLAIN, LOG };

template <typename T> INLINE void forward(u32 op, const T* x, const View& x_view, T* y, u64 rows, u32 width) {
    u64 index = warp_row();
    if (index >= rows) return;
    Row<T> row(x, x_view, index * width, width);
    Pair<f32> largest = {-math::infinity(), -math::infinity()};
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = row.two(i);
            largest = {larger(largest.a, a), larger(largest.b, b)};
        },
        [&](u32 i) { largest.a = larger(largest.a, row[i]); });
    f32 max = fold(largest, larger);
    Pair<f32> lanes = {0.0f, 0.0f};
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = row.two(i);
            lanes = {lanes.a + math::exp(a - max), lanes.b + math::exp(b - max)};
        },
        [&](u32 i) { lanes.a += math::exp(row[i] - max); });
    f32 sum = fold_sum(lanes), log = math::log(sum);
    auto result = [&](f32 x) { return op == PLAIN ? math::exp(x - max) / sum : (x - max) - log; };
    y += index * width;
    bool paired = in_pairs(y, width);
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = row.two(i);
            write2(y, i, paired, result(a), result(b));
        },
        [&](u32 i) { y[i] = from_f32<T>(result(row[i])); });
}

template <typename T>
INLINE void backward(u32 op, const T* y, const View& y_view, const T* dy, const View& dy_view, T* dx, u64 rows,
                     u32 width) {
    u64 index = warp_row();
    if (index >= rows) return;
    Row<T> row(y, y_view, index * width, width), grad(dy, dy_view, index * width, width);
    bool plain = op == PLAIN;
    Pair<f32> lanes = {0.0f, 0.0f};
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = row.two(i);
            auto [da, db] = grad.two(i);
            lanes.a = plain ? fmaf(a, da, lanes.a) : lanes.a + da;
            lanes.b = plain ? fmaf(b, db, lanes.b) : lanes.b + db;
        },
        [&](u32 i) { lanes.a = plain ? fmaf(row[i], grad[i], lanes.a) : lanes.a + grad[i]; });
    f32 sum = fold_sum(lanes);
    auto result = [&](f32 y, f32 dy) { return plain ? y * (dy - sum) : fmaf(math::exp(y), -sum, dy); };
    dx += index * width;
    bool paired = in_pairs(dx, width);
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = row.two(i);
            auto [da, db] = grad.two(i);
            write2(dx, i, paired, result(a, da), result(b, db));
        },
        [&](u32 i) { dx[i] = from_f32<T>(result(row[i], grad[i])); });
}

#define SOFTMAX(T)                                                                                                    \
    KERNEL(ROW_THREADS)                                                                                               \
    softmax_##T(u32 op, const T* __restrict__ x, VIEW x_view, T* __restrict__ y, u64 rows, u32 width) {               \
        forward(op, x, x_view, y, rows, width);                                                                       \
    }                                                                                                                 \
    KERNEL(ROW_THREADS)                                                                                               \
    softmax_backward_##T(u32 op, const T* __restrict__ y, VIEW y_view, const T* __restrict__ dy, VIEW dy_view,        \
                         T* __restrict__ dx, u64 rows, u32 width) {                                                   \
        backward(op, y, y_view, dy, dy_view, dx, rows, width);                                                        \
    }
FLOATS(SOFTMAX)
