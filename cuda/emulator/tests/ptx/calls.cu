// Calls: functions that are not inlined, one that calls another, a struct by value in and out, printf, assert, a switch, a table of labels.
struct Pair {
    float x;
    int n;
    double weight;
};

__device__ __noinline__ float scaled(float x, Pair pair) { return x * pair.x + (float)pair.n; }

__device__ __noinline__ Pair doubled(Pair pair, unsigned char times) {
    Pair result = {scaled(pair.x, pair) * 2.0f, pair.n * times, pair.weight + 0.5};
    return result;
}

extern "C" __global__ void pairs(float *out, const Pair *in, Pair bias, unsigned count) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    if (in[i].n < 0) __assertfail("in[i].n >= 0", "calls.cu", 22, "pairs", 1);
    Pair pair = doubled(in[i], 3);
    out[i] = scaled(pair.x, bias) + (float)pair.weight;
    if (i == 0) printf("pair %d: %f %s\n", pair.n, (double)pair.x, "end");
}

extern "C" __global__ void choose(int *out, const int *in, int kind) {
    int i = threadIdx.x, x = in[i];
    switch (kind) {
    case 0: x += 1; break;
    case 1: x *= 3; break;
    case 2: x ^= 0x55; break;
    case 3: x = x / 7; break;
    case 4: x = x % 13; break;
    case 5: x = __clz(x); break;
    case 6: x = -x; break;
    case 7: x = x << (i & 31); break;
    default: x = 0;
    }
    out[i] = x;
}

// NVRTC makes a tree of comparisons of a switch: this table of labels is written by hand.
extern "C" __global__ void pick(int *out, const int *in, unsigned kind) {
    int x = in[threadIdx.x], y;
    asm("{ .reg .u32 entry;\n"
        "min.u32 entry, %2, 2;\n"
        "table: .branchtargets first, second, third;\n"
        "brx.idx entry, table;\n"
        "first: add.s32 %0, %1, 1; bra done;\n"
        "second: mul.lo.s32 %0, %1, 3; bra done;\n"
        "third: neg.s32 %0, %1;\n"
        "done: }"
        : "=r"(y) : "r"(x), "r"(kind));
    out[threadIdx.x] = y;
}
