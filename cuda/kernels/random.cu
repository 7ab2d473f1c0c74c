// Tensors of random numbers (tensor/src/ops/random.rs), bit for bit as on the CPU: four f32 of each Philox block.
//
//   random_normal    deviation times a normal number (Box and Muller, 1958)
//   random_uniform   low + (high - low) u with u in [0, 1)
//
// Bytes: one write. Geometry: ceil(n / 1024) blocks of 256 threads.
#include "math.cuh"
#include "philox.cuh"

// Two normal numbers: radius sqrt(-2 ln u), angle 2 pi v, with u in (0, 1].
INLINE Pair<f32> box_muller(u32 u, u32 v) {
    f32 radius = math::sqrt(-2.0f * math::log(1.0f - unit(u)));
    auto [sin, cos] = math::sin_cos(math::TAU * unit(v));
    return {radius * cos, radius * sin};
}

KERNEL(THREADS) random_normal(f32 deviation, u32 key0, u32 key1, f32* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    Words words = philox(key0, key1, i / 4);
    auto [a, b] = box_muller(words.at[0], words.at[1]);
    auto [c, d] = box_muller(words.at[2], words.at[3]);
    f32 values[4] = {a * deviation, b * deviation, c * deviation, d * deviation};
    write4(out, i, n, values);
}

KERNEL(THREADS) random_uniform(f32 low, f32 high, u32 key0, u32 key1, f32* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    Words words = philox(key0, key1, i / 4);
    f32 values[4];
#pragma unroll
    for (u32 k = 0; k < 4; k++) values[k] = low + (high - low) * unit(words.at[k]);
    write4(out, i, n, values);
}
