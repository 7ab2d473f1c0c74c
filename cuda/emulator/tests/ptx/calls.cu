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

// NVRTC makes a tree of comparisons of a switch: the table of labels is written by hand.
extern "C" __global__ void choose(int *out, const int *in, unsigned kind) {
    int i = threadIdx.x, x = in[i], y;
    switch (kind & 3) {
    case 0: x += 1; break;
    case 1: x = x / 7; break;
    case 2: x = __clz(x); break;
    default: x = x << (i & 31);
    }
    asm("{ .reg .u32 entry;\n"
        "min.u32 entry, %2, 2;\n"
        "table: .branchtargets first, second, third;\n"
        "brx.idx entry, table;\n"
        "first: add.s32 %0, %1, 1; bra done;\n"
        "second: mul.lo.s32 %0, %1, 3; bra done;\n"
        "third: neg.s32 %0, %1;\n"
        "done: }"
        : "=r"(y) : "r"(x), "r"(kind));
    out[i] = y;
}
