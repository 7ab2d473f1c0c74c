// Rows of matrices in ggml's blocks (quant/src/gguf.rs, quant/src/projection.rs), and products of few rows with them
// (quant/src/matvec.rs), bit for bit as on the CPU; gguf.cuh has the formats, matvec.cuh the products.
//
//   dequantize_gguf    out[i] = row start + i of the matrix, or row ids[i] if ids is given, rounded to out's type
//   matvec_gguf_F      out = alpha x Wᵀ or out + alpha x Wᵀ for one row x in f32 or bf16, W in format F
//   matvec_plain_gguf  the same, W of plain numbers
//   matvec_few_gguf    the same for up to 8 rows in f32, W in any format of blocks
//   round_gguf         rows of x in f16 or bf16 as runs of integers (matvec_gguf.cuh)
//   matvec_int_F       as matvec_gguf_F, of one such row
//   matvec_int_few     as matvec_few_gguf, of up to 8
//
// The matrix is [vocabulary, width] or W [n, k] at a multiple of 16 bytes, its rows in the order that head_dim tells
// (stored_row); `format` is a number of the enum of that name; out is [rows, width] or [m, n] of out_type: 0 f32, 1
// f16, 2 bf16. An id outside of the table writes its index (upper half) and itself to `stray` if that is smaller than
// what is there (the launcher sets it to 2^64 - 1 before, and reports the id after), and its row of out becomes zeros;
// without ids, stray is never touched.
// Bytes: dequantize: a matrix row read and a row of out written for each; blocks of nibbles come twice, of bit pairs
// four times (from L1). matvec: W once, x once a warp of four rows (from L1).
// Geometry: dequantize: eight neighbours of a row a thread (one thread for a row of none): ceil(threads / 256) blocks
// of 256;
// round_gguf: a warp a run of 32 elements, ceil(runs / 4) blocks of 128;
// matvec: ceil(n / 16) blocks of 128 threads, a warp four rows of W.
#include "gguf.cuh"
#include "matvec.cuh"
#include "matvec_gguf.cuh"

template <typename T> INLINE void store(void* out, u64 row, u32 column, u32 width, const f32 (&values)[gguf::GROUP]) {
    T* to = static_cast<T*>(out) + row * width;
    f32 first[4] = {values[0], values[1], values[2], values[3]}, last[4] = {values[4], values[5], values[6], values[7]};
    write4(to, column, width, first);
    if (column + 4 < width) write4(to, column + 4, width, last);
}

KERNEL(THREADS)
dequantize_gguf(const u8* __restrict__ blocks, u32 format, u32 head_dim, u32 vocabulary, u64 start,
                const i32* __restrict__ ids, u64* stray, void* __restrict__ out, u32 out_type, u64 rows, u32 width) {
    u32 groups = max((width + gguf::GROUP - 1) / gguf::GROUP, 1u);
    u64 row = thread_index() / groups;
    u32 column = (u32)(thread_index() % groups) * gguf::GROUP;
    if (row >= rows) return;
    u64 from = ids ? (u32)ids[row] : start + row;
    f32 values[gguf::GROUP] = {};
    if (from < vocabulary && column < width) {
        u64 stored = gguf::stored_row(from, head_dim);
        gguf::with_format(format, [&](auto f) {
            gguf::Row<decltype(f)>(blocks, stored, width).decode(column, width, values);
        });
    }
    if (from >= vocabulary && column == 0) atomicMin(stray, row << 32 | (u32)from);
    if (out_type == TYPE_F32) store<f32>(out, row, column, width, values);
    if (out_type == TYPE_F16) store<f16>(out, row, column, width, values);
    if (out_type == TYPE_BF16) store<bf16>(out, row, column, width, values);
}

// ---- Products. Blocks hold their scales, so there is nothing to fetch beside them.

struct Matrix {
    const u8* blocks;
    u32 head_dim, k;

    INLINE void start(u32 j) {}
    INLINE void fetch() {}
    INLINE void advance() {}
};

// In a format that is known when the kernel is compiled.
template <typename F> struct MatrixOf : Matrix {
    static constexpr u32 MOST_BYTES = matvec::PIECE / F::LEN * F::BYTES;

    INLINE u32 bytes(u32 elements) const { return elements / F::LEN * F::BYTES; }
    INLINE const u8* row(u32 j) const { return blocks + gguf::stored_row(j, head_dim) * bytes(k); }
    INLINE void decode(const u8* piece, u32 i, f32 (&w)[gguf::GROUP]) const {
        gguf::decode(F(), piece + i / F::LEN * F::BYTES, i % F::LEN, w);
    }
};

// In one that is known when it runs.
struct AnyMatrix : Matrix {
    static constexpr u32 MOST_BYTES = MatrixOf<gguf::Q8_0>::MOST_BYTES;
    u32 format;

    INLINE u32 bytes(u32 elements) const {
        u32 bytes;
        gguf::with_blocks(format, [&](auto f) { bytes = MatrixOf<decltype(f)>().bytes(elements); });
        return bytes;
    }
    INLINE const u8* row(u32 j) const { return blocks + gguf::stored_row(j, head_dim) * bytes(k); }
    INLINE void decode(const u8* piece, u32 i, f32 (&w)[gguf::GROUP]) const {
        gguf::with_blocks(format, [&](auto f) { MatrixOf<decltype(f)>().decode(piece, i, w); });
    }
};

// Plain numbers of a type that is known when it runs.
struct PlainMatrix : Matrix {
    static constexpr u32 MOST_BYTES = MatrixOf<gguf::F32>::MOST_BYTES;
    u32 format;

    INLINE u32 bytes(u32 elements) const { return elements * (format == gguf::FORMAT_F32 ? 4 : 2); }
    INLINE const u8* row(u32 j) const { return blocks + gguf::stored_row(j, head_dim) * bytes(k); }
    INLINE void decode(const u8* piece, u32 i, f32 (&w)[gguf::GROUP]) const {
        gguf::with_plain(format, [&](auto f) { MatrixOf<decltype(f)>().decode(piece, i, w); });
    }
};

#define MATVEC(F)                                                                                                     \
    KERNEL(matvec::BLOCK)                                                                                             \
    matvec_gguf_##F(const u8* __restrict__ blocks, u32 head_dim, const void* __restrict__ x, u32 x_is_bf16,           \
                    u32 round_bf16, void* __restrict__ out, u32 out_type, f32 alpha, u32 accumulate, u32 n, u32 k) {  \
        matvec::Product product = {x, x_is_bf16, round_bf16, out, out_type, alpha, accumulate, 1, n, k};              \
        matvec::one_row(MatrixOf<gguf::F>{blocks, head_dim, k}, product);                                             \
    }
GGUF_BLOCKS(MATVEC)

KERNEL(matvec::BLOCK)
matvec_plain_gguf(const u8* __restrict__ blocks, u32 format, u32 head_dim, const void* __restrict__ x, u32 x_is_bf16,
                  u32 round_bf16, void* __restrict__ out, u32 out_type, f32 alpha, u32 accumulate, u32 n, u32 k) {
    matvec::Product product = {x, x_is_bf16, round_bf16, out, out_type, alpha, accumulate, 1, n, k};
    matvec::one_row(PlainMatrix{{blocks, head_dim, k}, format}, product);
}

KERNEL(matvec::BLOCK, 128)
matvec_few_gguf(const u8* __restrict__ blocks, u32 format, u32 head_dim, const void* __restrict__ x, u32 round_bf16,
                void* __restrict__ out, u32 out_type, f32 alpha, u32 accumulate, u32 m, u32 n, u32 k) {
    matvec::Product product = {x, false, round_bf16, out, out_type, alpha, accumulate, m, n, k};
    matvec::few_rows(AnyMatrix{{blocks, head_dim, k}, format}, product);
}

// ---- Products in integers.

KERNEL(ROW_THREADS)
round_gguf(const void* __restrict__ x, u32 x_type, integers::Run* __restrict__ out, u64 rows) {
    u64 run = warp_row();
    if (run >= rows) return;
    u64 i = run * integers::Run::LEN + lane_index();
    f32 value = x_type == TYPE_BF16 ? to_f32(static_cast<const bf16*>(x)[i]) : to_f32(static_cast<const f16*>(x)[i]);
    integers::round_run(value, out[run]);
}

#define MATVEC_INT(F)                                                                                                 \
    KERNEL(matvec::BLOCK)                                                                                             \
    matvec_int_##F(const u8* __restrict__ blocks, u32 head_dim, const integers::Run* __restrict__ x,                  \
                   void* __restrict__ out, u32 out_type, f32 alpha, u32 accumulate, u32 n, u32 k) {                   \
        alignas(16) __shared__ matvec::Ring<MatrixOf<gguf::F>::MOST_BYTES> rings[matvec::WARPS];                      \
        integers::Product product = {x, {nullptr, 0, 0, out, out_type, alpha, accumulate, 1, n, k}};                  \
        MatrixOf<gguf::F> matrix{blocks, head_dim, k};                                                                \
        integers::multiply<1>(matrix, rings[threadIdx.x / WARP], product, [&](const u8* bytes, u32 first, auto& sums) { \
            integers::add_piece(gguf::F(), bytes, first, product, sums);                                              \
        });                                                                                                           \
    }
GGUF_BLOCKS(MATVEC_INT)

KERNEL(matvec::BLOCK, 128)
matvec_int_few(const u8* __restrict__ blocks, u32 format, u32 head_dim, const integers::Run* __restrict__ x,
               void* __restrict__ out, u32 out_type, f32 alpha, u32 accumulate, u32 m, u32 n, u32 k) {
    alignas(16) __shared__ matvec::Ring<AnyMatrix::MOST_BYTES> rings[matvec::WARPS];
    integers::Product product = {x, {nullptr, 0, 0, out, out_type, alpha, accumulate, m, n, k}};
    AnyMatrix matrix{{blocks, head_dim, k}, format};
    integers::multiply<matvec::SIDE>(matrix, rings[threadIdx.x / WARP], product,
                                     [&](const u8* bytes, u32 first, auto& sums) {
                                         gguf::with_blocks(format, [&](auto f) {
                                             integers::add_piece(f, bytes, first, product, sums);
                                         });
                                     });
}
