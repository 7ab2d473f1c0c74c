// Layer norm (Ba, Kiros and Hinton, 2016) and its gradients (tensor/src/ops/layer_norm.rs), bit for bit as on the CPU.
// With c = x - mean(x) and r = 1 / sqrt(mean(c^2) + eps) of a row:
//
//   layer_norm_T                  out = (c r) w + b
//   layer_norm_backward_T         with g = dy w and n = c r: dx = r (g - mean(g) - n mean(g n))
//   layer_norm_backward_weight_T  partial[task] = the sums of dy n and of dy over the rows of a task, in order; the op
//                                 adds the tasks up
//
// x, dy and out are [rows, width] of T, weight and bias [width] and partial [ceil(rows / rows_per_task), 2, width] of
// f32, all contiguous.
// Bytes: x is read three times and dy twice (all but the first mostly from L1 or L2), out written once.
// Geometry: ceil(rows / 4) blocks of 128 threads, one warp a row; backward_weight: one block of 256 threads a task.
#include "math.cuh"

// What of a row all its elements need.
struct Moments {
    f32 mean, inverse;
};

// The moments of the row of this warp, the same in all threads.
template <typename T> INLINE Moments moments_of(const T* x, u32 width, bool paired, f32 eps) {
    f32 count = __uint2float_rn(width);
    Pair<f32> sum = {0.0f, 0.0f};
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = read2(x, i, paired);
            sum = {sum.a + a, sum.b + b};
        },
        [&](u32 i) { sum.a += to_f32(x[i]); });
    f32 mean = fold_sum(sum) / count;
    Pair<f32> squares = {0.0f, 0.0f};
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = read2(x, i, paired);
            squares = {fmaf(a - mean, a - mean, squares.a), fmaf(b - mean, b - mean, squares.b)};
        },
        [&](u32 i) {
            f32 c = to_f32(x[i]) - mean;
            squares.a = fmaf(c, c, squares.a);
        });
    return {mean, math::rsqrt(fold_sum(squares) / count + eps)};
}

template <typename T>
INLINE void forward(const T* x, const f32* weight, const f32* bias, f32 eps, T* out, u64 rows, u32 width) {
    u64 row = warp_row();
    if (row >= rows) return;
    bool paired = in_pairs(x, width) && in_pairs(out, width) && in_pairs(weight, width) && in_pairs(bias, width);
    x += row * width;
    out += row * width;
    Moments own = moments_of(x, width, paired, eps);
    f32 mean = own.mean, r = own.inverse;
    auto result = [=](f32 x, f32 w, f32 b) { return fmaf((x - mean) * r, w, b); };
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = read2(x, i, paired);
            auto [wa, wb] = read2(weight, i, paired);
            auto [ba, bb] = read2(bias, i, paired);
            write2(out, i, paired, result(a, wa, ba), result(b, wb, bb));
        },
        [&](u32 i) { out[i] = from_f32<T>(result(to_f32(x[i]), weight[i], bias[i])); });
}

template <typename T>
INLINE void backward(const T* dy, const T* x, const f32* weight, f32 eps, T* out, u64 rows, u32 width) {
    u64 row = warp_row();
    if (row >= rows) return;
    bool paired = in_pairs(dy, width) && in_pairs(x, width) && in_pairs(out, width) && in_pairs(weight, width);
    dy += row * width;
    x += row * width;
    out += row * width;
    Moments own = moments_of(x, width, paired, eps);
    f32 mean = own.mean, r = own.inverse;
    Pair<f32> sum = {0.0f, 0.0f}, dot = {0.0f, 0.0f};
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = read2(x, i, paired);
            auto [da, db] = read2(dy, i, paired);
            auto [wa, wb] = read2(weight, i, paired);
            sum = {sum.a + da * wa, sum.b + db * wb};
            dot = {fmaf(da * wa, a - mean, dot.a), fmaf(db * wb, b - mean, dot.b)};
        },
        [&](u32 i) {
            f32 g = to_f32(dy[i]) * weight[i];
            sum.a += g;
            dot.a = fmaf(g, to_f32(x[i]) - mean, dot.a);
        });
    f32 mean_g = fold_sum(sum) / __uint2float_rn(width);
    f32 slope = -(fold_sum(dot) * r / __uint2float_rn(width)) * r;
    auto result = [=](f32 x, f32 g) { return r * fmaf(slope, x - mean, g - mean_g); };
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = read2(x, i, paired);
            auto [da, db] = read2(dy, i, paired);
            auto [wa, wb] = read2(weight, i, paired);
            write2(out, i, paired, result(a, da * wa), result(b, db * wb));
        },
        [&](u32 i) { out[i] = from_f32<T>(result(to_f32(x[i]), to_f32(dy[i]) * weight[i])); });
}

// Rows whose moments are kept at a time.
constexpr u32 BATCH = 256;

template <typename T>
INLINE void backward_weight(const T* dy, const T* x, f32 eps, f32* partial, u64 rows, u32 width, u32 rows_per_task) {
    __shared__ Moments moments[BATCH];
    u64 first = (u64)blockIdx.x * rows_per_task;
    u64 end = min(first + rows_per_task, rows);
    partial += (u64)blockIdx.x * 2 * width;
    bool paired = in_pairs(x, width);
    for (u64 start = first; start < end; start += BATCH) {
        u32 batch = (u32)min((u64)BATCH, end - start);
        for (u32 i = threadIdx.x / WARP; i < batch; i += THREADS / WARP) {
            Moments own = moments_of(x + (start + i) * width, width, paired, eps);
            if (lane_index() == 0) moments[i] = own;
        }
        __syncthreads();
        // Each thread adds up its columns, in the order of the rows.
        for (u32 column = threadIdx.x; column < width; column += THREADS) {
            f32 dw = start == first ? 0.0f : partial[column];
            f32 db = start == first ? 0.0f : partial[width + column];
            u64 at = start * width + column;
            for (u32 i = 0; i < batch; i++, at += width) {
                auto [mean, r] = moments[i];
                dw = fmaf(to_f32(dy[at]), (to_f32(x[at]) - mean) * r, dw);
                db += to_f32(dy[at]);
            }
            partial[column] = dw;
            partial[width + column] = db;
        }
        __syncthreads();
    }
}

#define LAYER_NORM(T)                                                                                                 \
    KERNEL(ROW_THREADS)                                                                                               \
    layer_norm_##T(const T* __restrict__ x, const f32* __restrict__ weight, const f32* __restrict__ bias, f32 eps,    \
                   T* __restrict__ out, u64 rows, u32 width) {                                                        \
        forward(x, weight, bias, eps, out, rows, width);                                                              \
    }                                                                                                                 \
    KERNEL(ROW_THREADS)                                                                                               \
    layer_norm_backward_##T(const T* __restrict__ dy, const T* __restrict__ x, const f32* __restrict__ weight,        \
                            f32 eps, T* __restrict__ out, u64 rows, u32 width) {                                      \
        backward(dy, x, weight, eps, out, rows, width);                                                               \
    }                                                                                                                 \
    KERNEL(THREADS)                                                                                                   \
    layer_norm_backward_weight_##T(const T* __restrict__ dy, const T* __restrict__ x, f32 eps,                        \
                                   f32* __restrict__ partial, u64 rows, u32 width, u32 rows_per_task) {               \
        backward_weight(dy, x, eps, partial, rows, width, rows_per_task);                                             \
    }
FLOATS(LAYER_NORM)
