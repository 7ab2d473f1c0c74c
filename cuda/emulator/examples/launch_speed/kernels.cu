// What examples/launch_speed measures: compile with tests/ptx/compile.py's options.

extern "C" __global__ void elementwise(const float* x, float* y, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        float v = x[i];
        float u = v * v;
        y[i] = v * (0.5f + u * (0.25f + u * 0.125f));
    }
}

// C = A B for square matrices of n x n, a 64x64 tile a block of 256 threads, 4x4 a thread, through shared memory.
extern "C" __global__ void gemm(const float* a, const float* b, float* c, int n) {
    __shared__ float as[16][64], bs[16][64];
    int row = blockIdx.y * 64, column = blockIdx.x * 64;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sum[4][4] = {};
    for (int k0 = 0; k0 < n; k0 += 16) {
        for (int i = threadIdx.x; i < 16 * 64; i += 256) {
            as[i % 16][i / 16] = a[(row + i / 16) * n + k0 + i % 16];
            bs[i / 64][i % 64] = b[(k0 + i / 64) * n + column + i % 64];
        }
        __syncthreads();
        for (int k = 0; k < 16; k++) {
            float x[4], y[4];
            for (int i = 0; i < 4; i++) x[i] = as[k][ty * 4 + i];
            for (int j = 0; j < 4; j++) y[j] = bs[k][tx * 4 + j];
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) c[(row + ty * 4 + i) * n + column + tx * 4 + j] = sum[i][j];
}
