// Products with matrices in ggml's blocks, both ways, as decoded.cuh has them.
//
//   matmul_gguf_T       out = alpha x Wᵀ, or with `backward` alpha x W, + scale u v^T + bias + out; T: bf16, f16 on tensor cores,
//                       f32 on plain ones
//
// W [rows, width] is as in gguf.cu, in a format of blocks; `format` and head_dim tell which, and in what order its rows lie.
// Bits: those of matmul_64x64, and of matmul_plain, with the decoded matrix.
// Bytes: reads x ceil(n / 64) times and W, as many bytes as it has, ceil(m / 64) times; blocks of nibbles come twice from L1, of
// bit pairs four times.
// Geometry: as matmul_64x64, and as matmul_plain.
#include "decoded.cuh"
#include "gguf.cuh"

// W as it lies. The format is a choice when the kernel runs, which all threads of it make alike.
struct Blocks {
    const u8* blocks;
    u32 format, head_dim;
    u32 rows, width;

    using Group = gguf::Group;

    INLINE Group fetch(u32 row, u32 column) const {
        u64 stored = gguf::stored_row(row, head_dim);
        Group group;
        gguf::with_blocks(format, [&](auto f) {
            group = gguf::Row<decltype(f)>(blocks, stored, width).fetch(column);
        });
        return group;
    }

    INLINE void decode(const Group& group, u32 column, f32 (&out)[decoded::GROUP]) const {
        gguf::Scaled scaled;
        gguf::with_blocks(format, [&](auto f) { scaled = f.decode(group, column % f.LEN); });
        scaled.values(out);
    }
};
static_assert(gguf::GROUP == decoded::GROUP, "both are eight neighbours");

#define MATMUL_GGUF(T)                                                                                                \
    KERNEL(gemm::Small::THREADS, 168)                                                                                 \
    matmul_gguf_##T(const T* __restrict__ a, u64 a_m, u64 a_k, const u8* __restrict__ blocks, u32 format,             \
        u32 head_dim, u32 backward, T* __restrict__ out, u64 out_m, u32 wide, u32 accumulate, f32 alpha,              \
        const f32* __restrict__ bias, const f32* __restrict__ u, const f32* __restrict__ v, u64 v_n, u64 v_r,         \
        u32 rank, f32 scale, u32 batches, u32 m, u32 n, u32 k, u32 depth) {                                           \
        Blocks w = {blocks, format, head_dim, backward ? k : n, backward ? n : k};                                    \
        gemm::Epilogue epilogue = {accumulate, alpha, bias, u, v, v_n, v_r, rank, scale};                             \
        decoded::Product<T> product = {{a, a_m, a_k, m}, out, out_m, wide, batches, m, n, k, depth};                  \
        decoded::multiply(product, w, backward, epilogue);                                                            \
    }
MATMUL_GGUF(bf16)
MATMUL_GGUF(f16)

KERNEL(THREADS, 128)
matmul_gguf_f32(const f32* __restrict__ a, u64 a_m, u64 a_k, const u8* __restrict__ blocks, u32 format, u32 head_dim,
    u32 backward, f32* __restrict__ out, u64 out_m, u32 accumulate, f32 alpha, const f32* __restrict__ bias,
    const f32* __restrict__ u, const f32* __restrict__ v, u64 v_n, u64 v_r, u32 rank, f32 scale, u32 batches, u32 m,
    u32 n, u32 k) {
    Blocks w = {blocks, format, head_dim, backward ? k : n, backward ? n : k};
    gemm::Epilogue epilogue = {accumulate, alpha, bias, u, v, v_n, v_r, rank, scale};
    decoded::multiply(plain::Product<f32>{out, out_m, m, n, k}, gemm::Matrix<f32>{a, a_m, a_k, m}, w, backward, epilogue);
}
