// One step of AdamW (Loshchilov and Hutter, 2019) over all parameters of a flat buffer, with the clip factor
// (optim/src/adamw.rs, tensor/src/cpu/adamw.rs), bit for bit as on the CPU.
//
//   g = clip g with clip = min(1, max_norm / (norm + 1e-6)), or 1 if max_norm is 0
//   m = m + (1 - beta1) (g - m),  v = beta2 v + (1 - beta2) g^2
//   p = decay p - step_size m / (sqrt(v) / sqrt_bias2 + eps)
//
// norm and loss are one element each in device memory, so the host need not know them: when one is not finite, nothing
// is written. The numbers of the step are read from there too: a captured step can be launched again with others.
// p, m, v and gradient have n elements of f32; p, m, v are read and written.
// Bytes: 28 an element. Geometry: ceil(n / 1024) blocks of 256 threads.
#include "math.cuh"

// The fields of `AdamWStep` in tensor/src/cpu/adamw.rs but `clip`, in its order.
struct Numbers {
    f32 weight1, beta2, weight2, decay, step_size, sqrt_bias2, eps;
};

INLINE bool is_finite(f32 x) { return (as_bits(x) & 0x7F800000) != 0x7F800000; }

INLINE f32 clip_factor(f32 norm, f32 max_norm) {
    return max_norm == 0.0f ? 1.0f : fminf(max_norm / (norm + 1e-6f), 1.0f);
}

KERNEL(THREADS)
adamw(const Numbers* __restrict__ numbers, f32 max_norm, const f32* __restrict__ norm, const f32* __restrict__ loss,
      f32* __restrict__ p, f32* __restrict__ m, f32* __restrict__ v, const f32* __restrict__ gradient, u64 n) {
    u64 i = first_element();
    if (i >= n || !is_finite(*norm) || !is_finite(*loss)) return;
    Numbers step = *numbers;
    f32 clip = clip_factor(*norm, max_norm);
    f32 ps[4], ms[4], vs[4], gs[4];
    read4(p, i, n, ps);
    read4(m, i, n, ms);
    read4(v, i, n, vs);
    read4(gradient, i, n, gs);
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        f32 g = clip * gs[k];
        ms[k] = fmaf(step.weight1, g - ms[k], ms[k]);
        vs[k] = fmaf(step.weight2 * g, g, step.beta2 * vs[k]);
        f32 denominator = math::sqrt(vs[k]) / step.sqrt_bias2 + step.eps;
        ps[k] = step.decay * ps[k] - step.step_size * ms[k] / denominator;
    }
    write4(p, i, n, ps);
    write4(m, i, n, ms);
    write4(v, i, n, vs);
}
