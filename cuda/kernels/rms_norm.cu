// Root-mean-square norm (Zhang and Sennrich, 2019) and its gradients (tensor/src/ops/rms_norm.rs), bit for bit as on
// the CPU. With r = 1 / sqrt(mean(x^2) + eps) of a row:
//
//   rms_norm_T                  out = round(x r) w, as Hugging Face's LlamaRMSNorm
//   rms_norm_backward_T         with g = dy w and n = x r: dx = r (g - n mean(g n))
//   rms_norm_backward_weight_T  partial[task] = sum of dy n over the rows of a task, in order; the op adds the tasks up
//   add_rms_norm_T              sum = round(x + residual), out = rms_norm of sum
//   add_rms_norm_backward_T     out = d_sum + round(rms_norm_backward of sum)
//
// x, residual, sum, dy, d_sum and out are [rows, width] of T, weight [width] and partial
// [ceil(rows / rows_per_task), width] of f32, all contiguous.
// Bytes: what is normalised is read twice (the second time mostly from L1 or L2), dy twice in the backward pass; all
// else is read once, sum and out are written once.
// Geometry: ceil(rows / 4) blocks of 128 threads, one warp a row; backward_weight: one block of 256 threads a task.
#include "math.cuh"

// 1 / sqrt(mean(x^2) + eps) of the row of this warp, the same in all threads. Elements i and i + 1 of it are both(i), a
// last single one is one(i); each is asked for once.
template <typename Both, typename One> INLINE f32 inverse_rms(u32 width, f32 eps, Both both, One one) {
    Pair<f32> squares = {0.0f, 0.0f};
    each_pair(
        width,
        [&](u32 i) {
            Pair<f32> x = both(i);
            squares = {fmaf(x.a, x.a, squares.a), fmaf(x.b, x.b, squares.b)};
        },
        [&](u32 i) {
            f32 x = one(i);
            squares.a = fmaf(x, x, squares.a);
        });
    return math::rsqrt(fold_sum(squares) / __uint2float_rn(width) + eps);
}

template <typename T> INLINE f32 inverse_rms(const T* x, u32 width, bool paired, f32 eps) {
    return inverse_rms(
        width, eps, [&](u32 i) { return read2(x, i, paired); }, [&](u32 i) { return to_f32(x[i]); });
}

// out = round(x r) w
template <typename T> INLINE void scale(const T* x, f32 r, const f32* weight, T* out, u32 width, bool paired) {
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = read2(x, i, paired);
            auto [u, v] = read2(weight, i, paired);
            write2(out, i, paired, round_to<T>(a * r) * u, round_to<T>(b * r) * v);
        },
        [&](u32 i) { out[i] = from_f32<T>(round_to<T>(to_f32(x[i]) * r) * weight[i]); });
}

template <typename T> INLINE void forward(const T* x, const f32* weight, f32 eps, T* out, u64 rows, u32 width) {
    u64 row = warp_row();
    if (row >= rows) return;
    bool paired = in_pairs(x, width) && in_pairs(out, width) && in_pairs(weight, width);
    x += row * width;
    out += row * width;
    scale(x, inverse_rms(x, width, paired, eps), weight, out, width, paired);
}

template <typename T>
INLINE void add_forward(const T* x, const T* residual, const f32* weight, f32 eps, T* sum, T* out, u64 rows,
                        u32 width) {
    u64 row = warp_row();
    if (row >= rows) return;
    bool paired = in_pairs(x, width) && in_pairs(residual, width) && in_pairs(sum, width) && in_pairs(out, width) &&
                  in_pairs(weight, width);
    x += row * width;
    residual += row * width;
    sum += row * width;
    out += row * width;
    f32 r = inverse_rms(
        width, eps,
        [&](u32 i) {
            auto [a, b] = read2(x, i, paired);
            auto [c, d] = read2(residual, i, paired);
            write2(sum, i, paired, a + c, b + d);
            return Pair<f32>{round_to<T>(a + c), round_to<T>(b + d)};
        },
        [&](u32 i) {
            sum[i] = from_f32<T>(to_f32(x[i]) + to_f32(residual[i]));
            return to_f32(sum[i]);
        });
    // A thread reads here what it has written itself.
    scale(sum, r, weight, out, width, paired);
}

// ADD: the gradient is added to d_sum, which is not read otherwise.
template <bool ADD, typename T>
INLINE void backward(const T* d_sum, const T* dy, const T* x, const f32* weight, f32 eps, T* out, u64 rows, u32 width) {
    u64 row = warp_row();
    if (row >= rows) return;
    bool paired = in_pairs(dy, width) && in_pairs(x, width) && in_pairs(out, width) && in_pairs(weight, width) &&
                  (!ADD || in_pairs(d_sum, width));
    d_sum += ADD ? row * width : 0;
    dy += row * width;
    x += row * width;
    out += row * width;
    f32 r = inverse_rms(x, width, paired, eps);
    Pair<f32> dot = {0.0f, 0.0f};
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = read2(x, i, paired);
            auto [da, db] = read2(dy, i, paired);
            auto [u, v] = read2(weight, i, paired);
            dot = {fmaf(da * u, a, dot.a), fmaf(db * v, b, dot.b)};
        },
        [&](u32 i) { dot.a = fmaf(to_f32(dy[i]) * weight[i], to_f32(x[i]), dot.a); });
    f32 mean = fold_sum(dot) * r / __uint2float_rn(width);
    f32 slope = -mean * r;
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = read2(x, i, paired);
            auto [da, db] = read2(dy, i, paired);
            auto [u, v] = read2(weight, i, paired);
            f32 dx = r * fmaf(slope, a, da * u);
            f32 dz = r * fmaf(slope, b, db * v);
            if constexpr (ADD) {
                auto [s, t] = read2(d_sum, i, paired);
                dx = s + round_to<T>(dx);
                dz = t + round_to<T>(dz);
            }
            write2(out, i, paired, dx, dz);
        },
        [&](u32 i) {
            f32 dx = r * fmaf(slope, to_f32(x[i]), to_f32(dy[i]) * weight[i]);
            if constexpr (ADD) dx = to_f32(d_sum[i]) + round_to<T>(dx);
            out[i] = from_f32<T>(dx);
        });
}

// Rows whose r is kept at a time.
constexpr u32 BATCH = 256;

template <typename T>
INLINE void backward_weight(const T* dy, const T* x, f32 eps, f32* partial, u64 rows, u32 width, u32 rows_per_task) {
    __shared__ f32 r[BATCH];
    u64 first = (u64)blockIdx.x * rows_per_task;
    u64 end = min(first + rows_per_task, rows);
    partial += (u64)blockIdx.x * width;
    bool paired = in_pairs(x, width);
    for (u64 start = first; start < end; start += BATCH) {
        u32 batch = (u32)min((u64)BATCH, end - start);
        for (u32 i = threadIdx.x / WARP; i < batch; i += THREADS / WARP) {
            f32 inverse = inverse_rms(x + (start + i) * width, width, paired, eps);
            if (lane_index() == 0) r[i] = inverse;
        }
        __syncthreads();
        // Each thread adds up its columns, in the order of the rows.
        for (u32 column = threadIdx.x; column < width; column += THREADS) {
            f32 sum = start == first ? 0.0f : partial[column];
            u64 at = start * width + column;
            for (u32 i = 0; i < batch; i++, at += width) sum = fmaf(to_f32(dy[at]), to_f32(x[at]) * r[i], sum);
            partial[column] = sum;
        }
        __syncthreads();
    }
}

#define RMS_NORM(T)                                                                                                   \
    KERNEL(ROW_THREADS)                                                                                               \
    rms_norm_##T(const T* __restrict__ x, const f32* __restrict__ weight, f32 eps, T* __restrict__ out, u64 rows,     \
                 u32 width) {                                                                                         \
        forward(x, weight, eps, out, rows, width);                                                                    \
    }                                                                                                                 \
    KERNEL(ROW_THREADS)                                                                                               \
    rms_norm_backward_##T(const T* __restrict__ dy, const T* __restrict__ x, const f32* __restrict__ weight, f32 eps, \
                          T* __restrict__ out, u64 rows, u32 width) {                                                 \
        backward<false, T>(nullptr, dy, x, weight, eps, out, rows, width);                                            \
    }                                                                                                                 \
    KERNEL(THREADS)                                                                                                   \
    rms_norm_backward_weight_##T(const T* __restrict__ dy, const T* __restrict__ x, f32 eps,                          \
                                 f32* __restrict__ partial, u64 rows, u32 width, u32 rows_per_task) {                 \
        backward_weight(dy, x, eps, partial, rows, width, rows_per_task);                                             \
    }                                                                                                                 \
    KERNEL(ROW_THREADS)                                                                                               \
    add_rms_norm_##T(const T* __restrict__ x, const T* __restrict__ residual, const f32* __restrict__ weight,         \
                     f32 eps, T* __restrict__ sum, T* __restrict__ out, u64 rows, u32 width) {                        \
        add_forward(x, residual, weight, eps, sum, out, rows, width);                                                 \
    }                                                                                                                 \
    KERNEL(ROW_THREADS)                                                                                               \
    add_rms_norm_backward_##T(const T* __restrict__ d_sum, const T* __restrict__ dy, const T* __restrict__ sum,       \
                              const f32* __restrict__ weight, f32 eps, T* __restrict__ out, u64 rows, u32 width) {    \
        backward<true>(d_sum, dy, sum, weight, eps, out, rows, width);                                                \
    }
FLOATS(RMS_NORM)
