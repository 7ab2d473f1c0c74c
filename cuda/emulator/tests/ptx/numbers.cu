// Numbers: 64-bit integers, double precision, conversions, the mathematical functions that NVRTC brings.
extern "C" __global__ void integers(unsigned long long *out, const long long *in, const int *small) {
    int i = threadIdx.x;
    long long a = in[i], b = in[i + 32];
    unsigned long long u = (unsigned long long)a;
    int s = small[i];
    u = u * 1000003ull + (u >> 7) - (u << 3) + __umul64hi(u, (unsigned long long)b) + __popcll(u) + __clzll(a);
    u ^= (unsigned long long)(a / (b | 1)) + u % 10ull + __mul24(s, 5) + __sad(s, 3, 1u) + __umulhi((unsigned)s, 77u);
    u += (a < b ? a : b) + max(s, 3) + abs(s) + __funnelshift_l((unsigned)s, 9u, 5u) + __dp4a(s, s, 7) + __brevll(u);
    out[i] = u;
}

extern "C" __global__ void reals(double *out, const double *in, float *single) {
    int i = threadIdx.x;
    double x = in[i], y = in[i + 32];
    out[i] = fma(x, y, x / y) + sqrt(x) + floor(y) + fmin(x, y) + (double)(int)x + (double)(unsigned long long)y + exp(x);
    float f = single[i], g = (float)x;
    float h = f / g + sqrtf(f) + rsqrtf(g) + __fdividef(f, g) + rintf(f) + truncf(g) + fmaxf(f, g) + __expf(f) + __sinf(g);
    h += __fmul_rz(f, g) + __fadd_ru(f, g) + __frcp_rd(f) + __fsqrt_rz(g) + logf(f) + expf(g) + tanhf(f) + copysignf(f, g);
    h += isnan(f) ? 1.0f : (float)(unsigned char)g + (float)(long long)f + __int_as_float(__float_as_int(g) + 1);
    single[i] = __saturatef(h);
}
