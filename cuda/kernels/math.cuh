// exp, log, sin, cos, tanh, sigmoid, erf and rsqrt: the polynomials of tensor/src/cpu/math.rs, operation by operation,
// so that results equal the CPU's bit for bit. Intervals, degrees and errors are derived there. Only correctly rounded
// operations are used: add, multiply, divide, square root and fused multiply-add.
#pragma once
#include "common.cuh"

namespace math {

constexpr f32 LN_2 = 0.693147180559945309417232121458176568f;
constexpr f32 LN2_LO = -1.9046542e-9f;
constexpr f32 LOG2_E = 1.44269504088896340735992468100189214f;
constexpr f32 FRAC_1_SQRT_2 = 0.707106781186547524400844362104849039f;
constexpr f32 FRAC_2_SQRT_PI = 1.12837916709551257389615890312154517f;
constexpr f32 FRAC_2_PI = 0.636619772367581343075535053490057448f;
constexpr f32 FRAC_PI_2 = 1.57079632679489661923132169163975144f;
constexpr f32 TAU = 6.28318530717958647692528676655900577f;
constexpr f32 MIN_POSITIVE = 1.17549435e-38f;
// 1.5 * 2^23: adding it to |v| < 2^22 rounds v to the nearest integer, which then sits in the low bits of the sum.
constexpr f32 ROUND = 12582912.0f;

INLINE f32 infinity() { return as_f32(0x7F800000); }
INLINE f32 nan() { return as_f32(0x7FC00000); }
INLINE f32 sqrt(f32 x) { return __fsqrt_rn(x); }
INLINE f32 abs(f32 x) { return as_f32(as_bits(x) & 0x7FFFFFFF); }
INLINE f32 copysign(f32 x, f32 sign) { return as_f32((as_bits(x) & 0x7FFFFFFF) | (as_bits(sign) & 0x80000000)); }

// c[0] + c[1] x + .. by Horner's rule in fused steps.
template <u32 N> INLINE f32 poly(f32 x, const f32 (&c)[N]) {
    f32 y = c[N - 1];
#pragma unroll
    for (i32 i = N - 2; i >= 0; i--) y = fmaf(y, x, c[i]);
    return y;
}

// 2^n for -126 <= n <= 127.
INLINE f32 pow2(i32 n) { return as_f32((u32)(n + 127) << 23); }

INLINE f32 exp(f32 x) {
    constexpr f32 P[6] = {0.5f, 0.16666667f, 0.041666463f, 0.0083333105f, 0.0013933771f, 0.00019891125f};
    // Beyond these bounds the result is 0 or infinity anyway; a NaN passes both tests.
    x = x > 89.0f ? 89.0f : x;
    x = x < -105.0f ? -105.0f : x;
    f32 t = fmaf(x, LOG2_E, ROUND);
    f32 n = t - ROUND;
    i32 i = (i32)(as_bits(t) - as_bits(ROUND));
    f32 r = fmaf(n, -LN2_LO, fmaf(n, -LN_2, x));
    f32 y = fmaf(poly(r, P), r * r, r) + 1.0f;
    i32 half = i >> 1;
    return y * pow2(half) * pow2(i - half);
}

INLINE f32 log(f32 x) {
    constexpr f32 P[9] = {0.3333333f,   -0.24999997f, 0.20000716f,  -0.16667803f, 0.14249058f,
                          -0.12425687f, 0.1168542f,   -0.11479734f, 0.06971612f};
    bool denormal = x < MIN_POSITIVE;
    u32 bits = as_bits(denormal ? x * 8388608.0f : x);
    i32 exponent = (i32)(bits - as_bits(FRAC_1_SQRT_2)) >> 23;
    f32 f = as_f32(bits - ((u32)exponent << 23)) - 1.0f;
    f32 e = __int2float_rn(exponent) - (denormal ? 23.0f : 0.0f);
    f32 f2 = f * f;
    f32 tail = fmaf(poly(f, P), f * f2, e * LN2_LO);
    f32 y = fmaf(e, LN_2, f + fmaf(f2, -0.5f, tail));
    y = x == infinity() ? x : y;
    y = x == 0.0f ? -infinity() : y;
    return x >= 0.0f ? y : nan();
}

struct SinCos {
    f32 sin, cos;
};

INLINE SinCos sin_cos(f32 x) {
    constexpr f32 S[4] = {-0.16666667f, 0.008333332f, -0.00019840062f, 2.7246804e-6f};
    constexpr f32 C[3] = {0.041666664f, -0.0013888291f, 2.4545365e-5f};
    f32 t = fmaf(x, FRAC_2_PI, ROUND);
    f32 n = t - ROUND;
    u32 quadrant = as_bits(t);
    f32 r = fmaf(n, -FRAC_PI_2, x);
    r = fmaf(n, 4.371139e-8f, r);
    r = fmaf(n, 1.7151245e-15f, r);
    f32 r2 = r * r;
    f32 s = fmaf(poly(r2, S), r2 * r, r);
    f32 c = fmaf(poly(r2, C), r2 * r2, fmaf(r2, -0.5f, 1.0f));
    bool even = (quadrant & 1) == 0;
    f32 sin = as_f32(as_bits(even ? s : c) ^ ((quadrant & 2) << 30));
    f32 cos = as_f32(as_bits(even ? c : s) ^ (((quadrant + 1) & 2) << 30));
    bool small = abs(x) < 4194304.0f;
    return {small ? sin : nan(), small ? cos : nan()};
}

INLINE f32 sin(f32 x) { return sin_cos(x).sin; }
INLINE f32 cos(f32 x) { return sin_cos(x).cos; }

INLINE f32 tanh(f32 x) {
    constexpr f32 P[5] = {-0.33333328f, 0.1333277f, -0.053850908f, 0.02099718f, -0.006096714f};
    f32 a = abs(x), x2 = x * x;
    f32 small = fmaf(poly(x2, P), x2 * x, x);
    f32 large = copysign(1.0f - 2.0f / (exp(2.0f * a) + 1.0f), x);
    return a < 0.625f ? small : large;
}

INLINE f32 sigmoid(f32 x) {
    f32 e = exp(-abs(x));
    f32 numerator = x < 0.0f ? e : 1.0f;
    return numerator / (1.0f + e);
}

INLINE f32 erf(f32 x) {
    constexpr f32 P[7] = {0.12837917f,  -0.37612635f,   0.11283735f, -0.026861707f,
                          0.0052070487f, -0.00082145707f, 8.690369e-5f};
    constexpr f32 Q[7] = {1.1287056f,    0.63489354f,   0.10670391f, -0.024195576f,
                          0.0038596739f, -0.0003785219f, 1.6955817e-5f};
    f32 a = abs(x);
    f32 small = fmaf(poly(x * x, P), x, x);
    f32 t = a > 4.0f ? 4.0f : a;
    f32 large = copysign(1.0f - exp(-t * poly(t, Q)), x);
    return a < 0.875f ? small : large;
}

INLINE f32 rsqrt(f32 x) { return 1.0f / sqrt(x); }

}  // namespace math
