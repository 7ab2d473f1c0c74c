// The loss over an output projection (tensor/src/ops/linear_cross_entropy.rs) between its products.
//
//   gather_rows_T    out = rows[i] of x for each i, in bf16 where T is bf16, else in f32
//   scatter_rows_T   row rows[i] of out = row i of x, which has the type that gather_rows_T gives
//   row_losses_G     losses[rows[i]] = lse - logits[i][targets[i]], where lse = log sum(e^logits[i]), and, unless out is
//                    null, out[i] = (e^(logits[i] - lse) - onehot(targets[i])) / divisor of type G
//
// logits are [rows, classes] of f32, rows and targets i32; every row is there once, every target is a class. All tensors
// are contiguous and do not overlap. The sum of a softmax is formed in the order of a block's threads, so that the loss
// is the CPU's but for rounding.
// Bytes: logits are read twice, out is written once.
// Geometry: gather and scatter ceil(count / 4) blocks of 128 threads, one warp a row; row_losses one block a row, of 1 to
// 16 warps.
#include "math.cuh"

// What gradients and rows are multiplied in.
template <typename T> struct Room {
    using type = f32;
};
template <> struct Room<bf16> {
    using type = bf16;
};

template <typename To, typename From> INLINE void copy_row(const From* from, To* to, u32 width) {
    bool paired = in_pairs(from, width) && in_pairs(to, width);
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = read2(from, i, paired);
            write2(to, i, paired, a, b);
        },
        [&](u32 i) { to[i] = from_f32<To>(to_f32(from[i])); });
}

constexpr u32 LOSS_THREADS = 512;

// Part of a softmax: the largest value so far, and the sum of e^(x - largest) of those values (Milakov and Gimelshein,
// "Online normalizer calculation for softmax", 2018).
struct Part {
    f32 max, sum;
};

// What is subtracted in the exponent: where every term is 0 or one is infinite, x - max would be NaN.
INLINE f32 shift_of(f32 max) { return (as_bits(max) & 0x7FFFFFFF) == 0x7F800000 ? 0.0f : max; }

// The sum of `part` for a larger shift. No value yet: no sum, whatever the shift.
INLINE f32 rescaled(Part part, f32 shift) {
    return part.max == -math::infinity() ? 0.0f : part.sum * math::exp(shift_of(part.max) - shift);
}

INLINE Part join(Part a, Part b) {
    f32 max = larger(a.max, b.max), shift = shift_of(max);
    return {max, rescaled(a, shift) + rescaled(b, shift)};
}

INLINE void include(Part& part, const f32 (&x)[4]) {
    f32 max = larger(part.max, larger(larger(x[0], x[1]), larger(x[2], x[3]))), shift = shift_of(max);
    f32 sum = rescaled(part, shift);
#pragma unroll
    for (u32 k = 0; k < 4; k++) sum += math::exp(x[k] - shift);
    part = {max, sum};
}

// The parts of all threads joined, in an order that is fixed; every thread gets it.
INLINE Part join_block(Part part) {
    __shared__ Part parts[LOSS_THREADS / WARP];
#pragma unroll
    for (u32 half = WARP / 2; half > 0; half /= 2) {
        Part other = {shuffle_xor(part.max, half), shuffle_xor(part.sum, half)};
        part = lane_index() & half ? join(other, part) : join(part, other);
    }
    if (lane_index() == 0) parts[threadIdx.x / WARP] = part;
    __syncthreads();
    part = parts[0];
#pragma unroll 1
    for (u32 warp = 1; warp < blockDim.x / WARP; warp++) part = join(part, parts[warp]);
    return part;
}

// Four values of a row from i on; past its end -infinity, which adds nothing.
INLINE void values(const f32* row, u32 i, u32 width, f32 (&x)[4]) {
    read4(row, i, width, x);
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        if (i + k >= width) x[k] = -math::infinity();
    }
}

template <typename G>
INLINE void row_losses(const f32* logits, const i32* rows, const i32* targets, f32 divisor, f32* losses, G* out,
                       u32 classes) {
    u32 index = blockIdx.x, step = 4 * blockDim.x, target = (u32)targets[index];
    const f32* row = logits + (u64)index * classes;
    Part part = {-math::infinity(), 0.0f};
#pragma unroll 1
    for (u32 i = 4 * threadIdx.x; i < classes; i += step) {
        f32 x[4];
        values(row, i, classes, x);
        include(part, x);
    }
    part = join_block(part);
    f32 lse = shift_of(part.max) + math::log(part.sum);
    if (threadIdx.x == 0) losses[rows[index]] = lse - row[target];
    if (out == nullptr) return;
    f32 scale = 1.0f / divisor;
    out += (u64)index * classes;
#pragma unroll 1
    for (u32 i = 4 * threadIdx.x; i < classes; i += step) {
        f32 x[4];
        values(row, i, classes, x);
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            f32 likely = math::exp(x[k] - lse) * scale;
            x[k] = i + k == target ? likely - scale : likely;
        }
        write4(out, i, classes, x);
    }
}

// ---- Entry points.

#define ROWS(T)                                                                                                       \
    KERNEL(ROW_THREADS) gather_rows_##T(const T* __restrict__ x, const i32* __restrict__ rows,                        \
                                        Room<T>::type* __restrict__ out, u64 count, u32 width) {                      \
        u64 row = warp_row();                                                                                         \
        if (row < count) copy_row(x + (u64)rows[row] * width, out + row * width, width);                              \
    }                                                                                                                 \
    KERNEL(ROW_THREADS) scatter_rows_##T(const Room<T>::type* __restrict__ x, const i32* __restrict__ rows,           \
                                         T* __restrict__ out, u64 count, u32 width) {                                 \
        u64 row = warp_row();                                                                                         \
        if (row < count) copy_row(x + row * width, out + (u64)rows[row] * width, width);                              \
    }
FLOATS(ROWS)

#define LOSSES(G)                                                                                                     \
    KERNEL(LOSS_THREADS) row_losses_##G(const f32* __restrict__ logits, const i32* __restrict__ rows,                 \
                                        const i32* __restrict__ targets, f32 divisor, f32* __restrict__ losses,       \
                                        G* __restrict__ out, u32 classes) {                                           \
        row_losses(logits, rows, targets, divisor, losses, out, classes);                                             \
    }
LOSSES(f32)
LOSSES(bf16)
