// Elementwise functions of one tensor and their derivatives (tensor/src/ops/unary.rs), bit for bit as on the CPU.
//
//   unary_T            out = op(x)
//   unary_backward_T   dx = dy op'(x)
//
// op is the number of the variant of tensor's `Unary`, listed below. Each element is computed in f32 and rounded once.
// Bytes: one read of x (and dy), one write. Geometry: ceil(n / 1024) blocks of 256 threads.
#include "math.cuh"

enum Op : u32 {
    NEG, ABS, EXP, LOG, SQRT, RSQRT, RECIP, SQUARE, SIN, COS, TANH, SIGMOID, RELU, SILU, GELU, GELU_TANH,
};

// sqrt(2 / pi) and the cubic coefficient of the tanh approximation.
constexpr f32 SQRT_2_PI = math::FRAC_2_SQRT_PI * math::FRAC_1_SQRT_2;
constexpr f32 CUBIC = 0.044715f;

// The normal distribution function, (1 + erf(x / sqrt 2)) / 2.
INLINE f32 phi(f32 x) { return 0.5f * (1.0f + math::erf(x * math::FRAC_1_SQRT_2)); }

// (1 + tanh u) / 2 = sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
INLINE f32 phi_tanh(f32 x) { return math::sigmoid(2.0f * SQRT_2_PI * fmaf(CUBIC * x * x, x, x)); }

template <typename F> INLINE void map(const f32 (&x)[4], f32 (&out)[4], F f) {
#pragma unroll
    for (u32 k = 0; k < 4; k++) out[k] = f(x[k]);
}

template <typename F> INLINE void map(const f32 (&x)[4], const f32 (&dy)[4], f32 (&dx)[4], F f) {
#pragma unroll
    for (u32 k = 0; k < 4; k++) dx[k] = f(x[k], dy[k]);
}

INLINE void apply(u32 op, const f32 (&x)[4], f32 (&out)[4]) {
    switch (op) {
        case NEG: return map(x, out, [](f32 x) { return -x; });
        case ABS: return map(x, out, math::abs);
        case EXP: return map(x, out, math::exp);
        case LOG: return map(x, out, math::log);
        case SQRT: return map(x, out, math::sqrt);
        case RSQRT: return map(x, out, math::rsqrt);
        case RECIP: return map(x, out, [](f32 x) { return 1.0f / x; });
        case SQUARE: return map(x, out, [](f32 x) { return x * x; });
        case SIN: return map(x, out, math::sin);
        case COS: return map(x, out, math::cos);
        case TANH: return map(x, out, math::tanh);
        case SIGMOID: return map(x, out, math::sigmoid);
        case RELU: return map(x, out, [](f32 x) { return x > 0.0f || x != x ? x : 0.0f; });
        case SILU: return map(x, out, [](f32 x) { return x * math::sigmoid(x); });
        case GELU: return map(x, out, [](f32 x) { return x * phi(x); });
        case GELU_TANH: return map(x, out, [](f32 x) { return x * phi_tanh(x); });
        default: __trap();
    }
}

// (x p)' = p + x 2u' p (1 - p) with p = sigmoid(2u).
INLINE f32 gelu_tanh_slope(f32 x) {
    f32 p = phi_tanh(x), q = phi_tanh(-x);
    f32 slope = 2.0f * SQRT_2_PI * fmaf(3.0f * CUBIC * x, x, 1.0f);
    return fmaf(x * slope * p, q, p);
}

INLINE f32 tanh_slope(f32 x, f32 dy) {
    f32 y = math::tanh(x);
    return (1.0f - y) * (1.0f + y) * dy;
}

INLINE void apply_slope(u32 op, const f32 (&x)[4], const f32 (&dy)[4], f32 (&dx)[4]) {
    switch (op) {
        case NEG: return map(x, dy, dx, [](f32, f32 dy) { return -dy; });
        case ABS: return map(x, dy, dx, [](f32 x, f32 dy) { return x > 0.0f ? dy : x < 0.0f ? -dy : 0.0f * x; });
        case EXP: return map(x, dy, dx, [](f32 x, f32 dy) { return math::exp(x) * dy; });
        case LOG: return map(x, dy, dx, [](f32 x, f32 dy) { return dy / x; });
        case SQRT: return map(x, dy, dx, [](f32 x, f32 dy) { return 0.5f * dy / math::sqrt(x); });
        case RSQRT: return map(x, dy, dx, [](f32 x, f32 dy) { return -0.5f * dy * math::rsqrt(x) / x; });
        case RECIP: return map(x, dy, dx, [](f32 x, f32 dy) { return -dy / x / x; });
        case SQUARE: return map(x, dy, dx, [](f32 x, f32 dy) { return 2.0f * x * dy; });
        case SIN: return map(x, dy, dx, [](f32 x, f32 dy) { return math::cos(x) * dy; });
        case COS: return map(x, dy, dx, [](f32 x, f32 dy) { return -math::sin(x) * dy; });
        case TANH: return map(x, dy, dx, tanh_slope);
        case SIGMOID:
            return map(x, dy, dx, [](f32 x, f32 dy) { return math::sigmoid(x) * math::sigmoid(-x) * dy; });
        case RELU: return map(x, dy, dx, [](f32 x, f32 dy) { return x > 0.0f ? dy : 0.0f * fminf(x, 0.0f); });
        // (x s)' = s + x s (1 - s)
        case SILU:
            return map(x, dy, dx, [](f32 x, f32 dy) {
                return math::sigmoid(x) * fmaf(x, math::sigmoid(-x), 1.0f) * dy;
            });
        // (x P)' = P + x p with the density p = e^(-x^2 / 2) / sqrt(2 pi)
        case GELU:
            return map(x, dy, dx, [](f32 x, f32 dy) {
                return fmaf(0.5f * SQRT_2_PI * x, math::exp(-0.5f * x * x), phi(x)) * dy;
            });
        case GELU_TANH: return map(x, dy, dx, [](f32 x, f32 dy) { return gelu_tanh_slope(x) * dy; });
        default: __trap();
    }
}

template <typename T> INLINE void unary(u32 op, const T* x, const View& x_view, T* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    f32 a[4], y[4];
    read4(x, x_view, i, n, a);
    apply(op, a, y);
    write4(out, i, n, y);
}

template <typename T>
INLINE void unary_backward(u32 op, const T* x, const View& x_view, const T* dy, const View& dy_view, T* dx, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    f32 a[4], b[4], d[4];
    read4(x, x_view, i, n, a);
    read4(dy, dy_view, i, n, b);
    apply_slope(op, a, b, d);
    write4(dx, i, n, d);
}

#define UNARY(T)                                                                                                      \
    KERNEL(THREADS) unary_##T(u32 op, const T* __restrict__ x, VIEW x_view, T* __restrict__ out, u64 n) {             \
        unary(op, x, x_view, out, n);                                                                                 \
    }                                                                                                                 \
    KERNEL(THREADS)                                                                                                   \
    unary_backward_##T(u32 op, const T* __restrict__ x, VIEW x_view, const T* __restrict__ dy, VIEW dy_view,          \
                       T* __restrict__ dx, u64 n) {                                                                   \
        unary_backward(op, x, x_view, dy, dy_view, dx, n);                                                            \
    }
FLOATS(UNARY)
