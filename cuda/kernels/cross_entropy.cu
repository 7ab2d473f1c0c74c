// Cross-entropy of logits, softmax included, and its gradient (tensor/src/ops/cross_entropy.rs), bit for bit as on the
// CPU.
//
//   cross_entropy_T            lse = log sum(e^x) of each row; losses = lse - x[target], 0 where the target is -1
//   cross_entropy_loss         loss = sum(losses) / divisor, added up in f64 from first to last
//   cross_entropy_backward_T   out = (e^(x - lse) - onehot(target)) dy / divisor, 0 where the target is -1
//
// logits and out are [rows, width] of T, targets [rows] of i32, lse and losses [rows] of f32, dy and loss one element
// of f32; all contiguous. A target that is no class counts as -1 and writes its row (upper half) and itself to `stray`
// if that is smaller than what is there (the launcher sets it to 2^64 - 1 before, and reports the target after).
// Bytes: logits are read twice by the forward pass (the second time from L1 or L2) and once by the backward pass, which
// writes out.
// Geometry: ceil(rows / 4) blocks of 128 threads, one warp a row; cross_entropy_loss: one block of one warp.
#include "math.cuh"

// The class of a row, or width if it has none.
INLINE u32 class_of(const i32* targets, u64 row, u32 width, u64* stray) {
    i32 target = targets[row];
    if ((u32)target < width) return (u32)target;
    if (target != -1 && lane_index() == 0) atomicMin(stray, row << 32 | (u32)target);
    return width;
}

INLINE bool is_infinite(f32 x) { return (as_bits(x) & 0x7FFFFFFF) == 0x7F800000; }

template <typename T>
INLINE void forward(const T* logits, const i32* targets, f32* lse, f32* losses, u64* stray, u64 rows, u32 width) {
    u64 row = warp_row();
    if (row >= rows) return;
    bool paired = in_pairs(logits, width);
    logits += row * width;
    Pair<f32> largest = {-math::infinity(), -math::infinity()};
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = read2(logits, i, paired);
            largest = {larger(largest.a, a), larger(largest.b, b)};
        },
        [&](u32 i) { largest.a = larger(largest.a, to_f32(logits[i])); });
    f32 max = fold(largest, larger);
    // Where every term is 0 or one is infinite, x - max would be NaN.
    f32 shift = is_infinite(max) ? 0.0f : max;
    Pair<f32> sum = {0.0f, 0.0f};
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = read2(logits, i, paired);
            sum = {sum.a + math::exp(a - shift), sum.b + math::exp(b - shift)};
        },
        [&](u32 i) { sum.a += math::exp(to_f32(logits[i]) - shift); });
    f32 result = shift + math::log(fold_sum(sum));
    u32 target = class_of(targets, row, width, stray);
    if (lane_index() != 0) return;
    lse[row] = result;
    losses[row] = target < width ? result - to_f32(logits[target]) : 0.0f;
}

template <typename T>
INLINE void backward(const f32* dy, const T* logits, const i32* targets, const f32* lse, f32 divisor, T* out,
                     u64* stray, u64 rows, u32 width) {
    u64 row = warp_row();
    if (row >= rows) return;
    bool paired = in_pairs(logits, width) && in_pairs(out, width);
    logits += row * width;
    out += row * width;
    u32 target = class_of(targets, row, width, stray);
    f32 scale = *dy / divisor, shift = lse[row];
    auto result = [=](f32 x, u32 i) {
        f32 y = math::exp(x - shift) * scale;
        y = i == target ? y - scale : y;
        return target < width ? y : 0.0f;
    };
    each_pair(
        width,
        [&](u32 i) {
            auto [a, b] = read2(logits, i, paired);
            write2(out, i, paired, result(a, i), result(b, i + 1));
        },
        [&](u32 i) { out[i] = from_f32<T>(result(to_f32(logits[i]), i)); });
}

#define CROSS_ENTROPY(T)                                                                                              \
    KERNEL(ROW_THREADS)                                                                                               \
    cross_entropy_##T(const T* __restrict__ logits, const i32* __restrict__ targets, f32* __restrict__ lse,           \
                      f32* __restrict__ losses, u64* stray, u64 rows, u32 width) {                                    \
        forward(logits, targets, lse, losses, stray, rows, width);                                                    \
    }                                                                                                                 \
    KERNEL(ROW_THREADS)                                                                                               \
    cross_entropy_backward_##T(const f32* __restrict__ dy, const T* __restrict__ logits,                              \
                               const i32* __restrict__ targets, const f32* __restrict__ lse, f32 divisor,             \
                               T* __restrict__ out, u64* stray, u64 rows, u32 width) {                                \
        backward(dy, logits, targets, lse, divisor, out, stray, rows, width);                                         \
    }
FLOATS(CROSS_ENTROPY)

KERNEL(WARP)
cross_entropy_loss(const f32* __restrict__ losses, f32 divisor, f32* __restrict__ loss, u64 rows) {
    f64 sum = sum_in_order(rows, [=](u64 i) { return (f64)losses[i]; });
    if (lane_index() == 0) *loss = (f32)(sum / (f64)divisor);
}
