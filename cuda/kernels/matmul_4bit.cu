// Products with matrices of NF4 and FP4 blocks, both ways (quant/src/fused.rs), as decoded.cuh has them: W is read once for 64 rows
// of x, at half a byte an element.
//
//   matmul_4bit_T       out = alpha x Wᵀ, or with `backward` alpha x W, + scale u v^T + bias + out; T: bf16, f16 on tensor cores,
//                       f32 on plain ones
//
// W [rows, width] is as in nf4.cu, with codes at a multiple of 4 bytes.
// Bits: those of matmul_64x64, and of matmul_plain, with the decoded matrix.
// Bytes: reads x ceil(n / 64) times and W, 0.5 bytes an element and the scales, ceil(m / 64) times.
// Geometry: as matmul_64x64, and as matmul_plain.
#include "decoded.cuh"
#include "nf4.cuh"

// W as it lies. Eight neighbours are of one block: a word of codes and a scale.
struct Blocks {
    const u8* codes;
    u32 shift;
    Scales scales;
    const f32* level;
    u32 rows, width;

    struct Group {
        u64 at;
        u32 codes, stored;
        bool inside;
    };

    INLINE Group fetch(u32 row, u32 column) const {
        u64 at = (u64)row * width + column;
        return {at, *reinterpret_cast<const u32*>(codes + at / 2), scales.stored(at >> shift), true};
    }

    INLINE void decode(const Group& group, u32, f32 (&out)[decoded::GROUP]) const {
        f32 scale = group.inside ? scales.decode(group.stored, group.at >> shift) : 0.0f;
#pragma unroll
        for (u32 e = 0; e < decoded::GROUP; e++) {
            // The first of two in the high nibble.
            u32 code = group.codes >> (e / 2 * 8 + (e % 2 ? 0 : 4)) & 15;
            out[e] = level[code] * scale;
        }
    }
};

#define MATMUL_4BIT(T)                                                                                                \
    KERNEL(gemm::Small::THREADS, 168)                                                                                 \
    matmul_4bit_##T(const T* __restrict__ a, u64 a_m, u64 a_k, const u8* __restrict__ codes, u32 format,              \
        u32 block_shift, const f32* __restrict__ absmax, const u8* __restrict__ absmax_codes,                         \
        const f32* __restrict__ map, f32 offset, u32 backward, T* __restrict__ out, u64 out_m, u32 wide,              \
        u32 accumulate, f32 alpha, const f32* __restrict__ bias, const f32* __restrict__ u,                           \
        const f32* __restrict__ v, u64 v_n, u64 v_r, u32 rank, f32 scale, u32 batches, u32 m, u32 n, u32 k,           \
        u32 depth) {                                                                                                  \
        __shared__ f32 level[LEVELS];                                                                                 \
        copy_levels(format, level);                                                                                   \
        __syncthreads();                                                                                              \
        Scales scales = {absmax, absmax_codes, map, offset};                                                          \
        Blocks w = {codes, block_shift, scales, level, backward ? k : n, backward ? n : k};                           \
        gemm::Epilogue epilogue = {accumulate, alpha, bias, u, v, v_n, v_r, rank, scale};                             \
        decoded::Product<T> product = {{a, a_m, a_k, m}, out, out_m, wide, batches, m, n, k, depth};                  \
        decoded::multiply(product, w, backward, epilogue);                                                            \
    }
MATMUL_4BIT(bf16)
MATMUL_4BIT(f16)

KERNEL(THREADS, 128)
matmul_4bit_f32(const f32* __restrict__ a, u64 a_m, u64 a_k, const u8* __restrict__ codes, u32 format, u32 block_shift,
    const f32* __restrict__ absmax, const u8* __restrict__ absmax_codes, const f32* __restrict__ map, f32 offset,
    u32 backward, f32* __restrict__ out, u64 out_m, u32 accumulate, f32 alpha, const f32* __restrict__ bias,
    const f32* __restrict__ u, const f32* __restrict__ v, u64 v_n, u64 v_r, u32 rank, f32 scale, u32 batches, u32 m,
    u32 n, u32 k) {
    __shared__ f32 level[LEVELS];
    copy_levels(format, level);
    __syncthreads();
    Scales scales = {absmax, absmax_codes, map, offset};
    Blocks w = {codes, block_shift, scales, level, backward ? k : n, backward ? n : k};
    gemm::Epilogue epilogue = {accumulate, alpha, bias, u, v, v_n, v_r, rank, scale};
    decoded::multiply(plain::Product<f32>{out, out_m, m, n, k}, gemm::Matrix<f32>{a, a_m, a_k, m}, w, backward, epilogue);
}
