// Warps and tensor cores: shuffles, votes, match, reductions, barriers, mma.sync, ldmatrix, cp.async, half precision.
extern "C" __global__ void exchange(unsigned *out, const unsigned *in) {
    unsigned i = threadIdx.x, x = in[i];
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_down_sync(0xffffffffu, x, offset);
    x += __shfl_xor_sync(0xffffffffu, x, 3) + __shfl_up_sync(0xffffffffu, x, 1) + __shfl_sync(0xffffffffu, x, 5, 8);
    x += __ballot_sync(0xffffffffu, x & 1) + __any_sync(0xffffffffu, x & 2) + __all_sync(0xffffffffu, x & 4);
    int all;
    x += __match_any_sync(0xffffffffu, x) + __match_all_sync(0xffffffffu, x, &all) + all + __activemask();
    x += __reduce_add_sync(0xffffffffu, x) + __reduce_max_sync(0xffffffffu, (int)x) + __reduce_xor_sync(0xffffffffu, x);
    __syncwarp();
    x += __syncthreads_count(x & 8) + __syncthreads_and(x & 1) + __syncthreads_or(x & 2);
    asm volatile("barrier.sync.aligned 1, 64;");
    asm volatile("bar.arrive 2, 64;");
    out[i] = x + (unsigned)clock64() + __popc(x) + __brev(x) + __byte_perm(x, i, 0x3214) + __ffs(x);
}

__device__ void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

extern "C" __global__ void multiply(float *out, const unsigned short *a, const unsigned short *b, int steps) {
    __shared__ __align__(16) unsigned short tile[2][16 * 16];
    unsigned lane = threadIdx.x;
    float d[4] = {0, 0, 0, 0};
    for (int step = 0; step < steps; step++) {
        unsigned to = (unsigned)__cvta_generic_to_shared(&tile[step & 1][lane * 8]);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(a + step * 256 + lane * 8));
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(b + step * 128 + lane * 4), "r"(steps));
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 0;");
        __syncthreads();
        unsigned r[4], s[2];
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(to));
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(s[0]), "=r"(s[1]) : "r"(to));
        mma(d, r[0], r[1], r[2], r[3], s[0], s[1]);
        __syncthreads();
    }
    ((float4 *)out)[lane] = make_float4(d[0], d[1], d[2], d[3]);
}

extern "C" __global__ void halves(unsigned short *out, const unsigned short *in, float scale) {
    unsigned i = threadIdx.x;
    unsigned short x = in[i], y;
    float f, g;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x));
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(f * scale));
    asm("{ .reg .b16 one; mov.b16 one, 0x3C00; fma.rn.f16 %0, %1, %1, one; }" : "=h"(x) : "h"(x));
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(f), "f"(scale));
    asm("fma.rn.bf16x2 %0, %0, %0, %0;" : "+r"(pair));
    asm("{ .reg .pred p; setp.gt.f32 p, %1, 0f3F800000; selp.f32 %0, %1, 0f00000000, p; }" : "=f"(g) : "f"(f));
    out[3 * i] = x;
    out[3 * i + 1] = y;
    out[3 * i + 2] = (unsigned short)(pair >> 16) + (unsigned short)g;
}
