// SwiGLU (Shazeer, 2020) and its gradients (tensor/src/ops/swiglu.rs), bit for bit as on the CPU. With s =
// sigmoid(gate):
//
//   swiglu_T            out = gate s up
//   swiglu_backward_T   d_up = dy gate s, d_gate = dy up s (1 + gate (1 - s))
//
// All operands have n elements and are contiguous. Each element is computed in f32 and rounded once.
// Bytes: one read of each input, one write of each output. Geometry: ceil(n / 1024) blocks of 256 threads.
#include "math.cuh"

template <typename T> INLINE void forward(const T* gate, const T* up, T* out, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    f32 g[4], u[4];
    read4(gate, i, n, g);
    read4(up, i, n, u);
#pragma unroll
    for (u32 k = 0; k < 4; k++) u[k] = g[k] * math::sigmoid(g[k]) * u[k];
    write4(out, i, n, u);
}

template <typename T> INLINE void backward(const T* dy, const T* gate, const T* up, T* d_gate, T* d_up, u64 n) {
    u64 i = first_element();
    if (i >= n) return;
    f32 d[4], g[4], u[4];
    read4(dy, i, n, d);
    read4(gate, i, n, g);
    read4(up, i, n, u);
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        f32 s = math::sigmoid(g[k]);
        f32 by_up = d[k] * (g[k] * s);
        f32 slope = s * fmaf(g[k], 1.0f - s, 1.0f);
        g[k] = d[k] * u[k] * slope;
        u[k] = by_up;
    }
    write4(d_gate, i, n, g);
    write4(d_up, i, n, u);
}

#define SWIGLU(T)                                                                                                     \
    KERNEL(THREADS) swiglu_##T(const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ out, u64 n) {    \
        forward(gate, up, out, n);                                                                                    \
    }                                                                                                                 \
    KERNEL(THREADS)                                                                                                   \
    swiglu_backward_##T(const T* __restrict__ dy, const T* __restrict__ gate, const T* __restrict__ up,               \
                        T* __restrict__ d_gate, T* __restrict__ d_up, u64 n) {                                        \
        backward(dy, gate, up, d_gate, d_up, n);                                                                      \
    }
FLOATS(SWIGLU)
