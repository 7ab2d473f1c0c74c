// Rotary position embedding (Su et al., 2021), split-half as in Hugging Face's Llama, and its gradient, the turn back
// (tensor/src/ops/rope.rs), bit for bit as on the CPU.
//
//   rope_table   cos and sin of positions[i] inv_freq[j], times scaling
//   rope_T       x turned by them
//
// Of each head's `width` elements, i and i + angles turn by the token's angle i: (a, b) -> (a cos - b sin, b cos + a
// sin). What lies past 2 angles is copied. x and out are [tokens, heads, width] of T, cos and sin [tokens, angles] of
// f32, all contiguous; inverse (0 or 1) turns back.
// positions are [tokens] of i32; one that is negative, or so large that f32 does not know its turn, writes its index (upper
// half) and itself to `stray` if that is smaller than what is there (the launcher sets it to 2^64 - 1 before).
// Bytes: one read and one write of x; cos and sin are read once a head, mostly from L1.
// Geometry: one thread a pair or copied element: ceil(tokens heads (width - angles) / 256) blocks of 256 threads;
// rope_table: one thread an angle.
#include "math.cuh"

// As an argument by value: no head is wider than 256.
struct Frequencies {
    f32 at[128];
};

KERNEL(THREADS)
rope_table(const i32* __restrict__ positions, const __grid_constant__ Frequencies inv_freq, f32 scaling, f32* __restrict__ cos,
           f32* __restrict__ sin, u64* stray, u64 tokens, u32 angles) {
    u64 i = thread_index(), token = i / angles;
    if (token >= tokens) return;
    i32 position = positions[token];
    f32 angle = (f32)position * inv_freq.at[i % angles];
    math::SinCos turn = math::sin_cos(angle);
    if (position < 0 || turn.sin != turn.sin) atomicMin(stray, token << 32 | (u32)position);
    cos[i] = turn.cos * scaling;
    sin[i] = turn.sin * scaling;
}

template <typename T>
INLINE void rope(const T* x, const f32* cos, const f32* sin, u32 inverse, T* out, u64 tokens, u32 heads, u32 width,
                 u32 angles) {
    u32 per_head = width - angles;
    u64 thread = thread_index(), head = thread / per_head, token = head / heads;
    if (token >= tokens) return;
    u32 i = (u32)(thread % per_head);
    x += head * width;
    out += head * width;
    if (i >= angles) {
        out[angles + i] = x[angles + i];
        return;
    }
    f32 c = cos[token * angles + i], s = sin[token * angles + i];
    s = inverse ? -s : s;
    f32 a = to_f32(x[i]), b = to_f32(x[angles + i]);
    out[i] = from_f32<T>(fmaf(a, c, -(b * s)));
    out[angles + i] = from_f32<T>(fmaf(b, c, a * s));
}

#define ROPE(T)                                                                                                       \
    KERNEL(THREADS)                                                                                                   \
    rope_##T(const T* __restrict__ x, const f32* __restrict__ cos, const f32* __restrict__ sin, u32 inverse,          \
             T* __restrict__ out, u64 tokens, u32 heads, u32 width, u32 angles) {                                     \
        rope(x, cos, sin, inverse, out, tokens, heads, width, angles);                                                \
    }
FLOATS(ROPE)
