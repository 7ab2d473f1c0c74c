// Memory: static and dynamic shared arrays, local arrays that are indexed at run time, constant tables with values, global
// tables that point at each other, vectors, atomics, cache operators.
__constant__ float table[5] = {1.0f, -2.5f, 3.25f, 0.0f, 1e-20f};
__constant__ short small[2][3] = {{1, -2, 3}, {4, 5, -6}};
__device__ int numbers[4] = {7, 11, 13, 17};
__device__ int *pointers[3] = {&numbers[1], numbers, 0};
__device__ const char *words[2] = {"one", "two"};
__device__ unsigned long long counter;
struct Mixed { unsigned char tag; double value; int *where; };
__device__ Mixed mixed = {9, 2.5, &numbers[3]};

extern "C" __global__ void staged(float4 *out, const float4 *in, int rounds) {
    __shared__ float4 tile[64];
    __shared__ unsigned char flags[33];
    extern __shared__ float dynamic[];
    unsigned i = threadIdx.x;
    tile[i] = in[blockIdx.x * 64 + i];
    if (i < 33) flags[i] = (unsigned char)i;
    dynamic[i] = table[i % 5] + small[i & 1][i % 3];
    __syncthreads();
    float4 sum = {0, 0, 0, 0};
    for (int round = 0; round < rounds; round++) {
        float4 x = tile[(i + round) & 63];
        sum.x += x.x; sum.y += x.y * dynamic[63 - i]; sum.z += x.z; sum.w += (float)flags[i % 33];
    }
    out[blockIdx.x * 64 + i] = sum;
}

extern "C" __global__ void indexed(int *out, const int *in, int where) {
    int local[16];
    for (int k = 0; k < 16; k++) local[k] = in[threadIdx.x * 16 + k] * k;
    local[where & 15] = 5;
    out[threadIdx.x] = local[(where + threadIdx.x) & 15] + *pointers[threadIdx.x & 1] + words[threadIdx.x & 1][2];
    if (mixed.where) out[threadIdx.x] += *mixed.where + mixed.tag + (int)mixed.value;
}

extern "C" __global__ void counted(unsigned *bins, float *sums, double *wide, unsigned long long *best, const unsigned *in) {
    unsigned x = in[threadIdx.x];
    unsigned old = atomicAdd(&bins[x & 7], 1u);
    atomicAdd(&sums[x & 7], 0.5f);
    atomicAdd(wide, 0.25);
    atomicMax(best, (unsigned long long)x);
    atomicMin((int *)bins + 8, (int)x);
    atomicExch(&bins[9], old);
    atomicCAS(&bins[10], 0u, x);
    atomicInc(&bins[11], 5u);
    atomicDec(&bins[12], 5u);
    atomicOr(&bins[13], x);
    atomicAnd(&bins[14], x);
    atomicXor(&bins[15], x);
    atomicAdd(&counter, 1ull);
    __threadfence();
    __threadfence_block();
    __threadfence_system();
}

extern "C" __global__ void widths(const char *bytes, short *halves, const uint2 *pairs, long long *longs, volatile int *last) {
    unsigned i = threadIdx.x;
    uint2 pair = __ldg(&pairs[i]);
    halves[i] = (short)(bytes[i] * 3) + halves[i + 32];
    longs[i] = (long long)pair.x * (long long)(int)pair.y + (longs[i] >> 3);
    last[0] = last[1] + 1;
    int cached;
    asm volatile("ld.global.cg.L2::128B.s32 %0, [%1];" : "=r"(cached) : "l"(bytes + 4 * i));
    asm volatile("st.global.L1::no_allocate.s32 [%0], %1;" ::"l"(halves + 2 * i), "r"(cached));
}
