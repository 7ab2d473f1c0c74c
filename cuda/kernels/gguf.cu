// Rows of matrices in ggml's blocks (quant/src/gguf.rs, quant/src/projection.rs), bit for bit as on the CPU; gguf.cuh has the
// formats.
//
//   dequantize_gguf_F   out[i] = row start + i of the matrix, or row ids[i] if ids is not null, rounded to the type of out
//
// The matrix is [vocabulary, width] in format F at a multiple of 16 bytes, its rows in the order that head_dim tells
// (stored_row), out [rows, width] of out_type: 0 f32, 1 f16, 2 bf16. An id outside of the table writes its index to `stray`
// if that is smaller than what is there (the launcher sets it to 2^32 - 1 before, and reports the id after), and its row of
// out becomes zeros; without ids, stray is never touched.
// Bytes: a matrix row read and a row of out written for each; blocks of nibbles come twice, of bit pairs four times (from L1).
// Geometry: eight neighbours of a row a thread (one thread for a row of none): ceil(threads / 256) blocks of 256.
#include "gguf.cuh"

enum Type : u32 { TYPE_F32, TYPE_F16, TYPE_BF16 };

template <typename T> INLINE void store(void* out, u64 row, u32 column, u32 width, const f32 (&values)[gguf::GROUP]) {
    T* to = static_cast<T*>(out) + row * width;
    f32 first[4] = {values[0], values[1], values[2], values[3]}, last[4] = {values[4], values[5], values[6], values[7]};
    write4(to, column, width, first);
    if (column + 4 < width) write4(to, column + 4, width, last);
}

template <typename F>
INLINE void dequantize(const u8* blocks, u32 head_dim, u32 vocabulary, u64 start, const i32* ids, u32* stray, void* out,
                       u32 out_type, u64 rows, u32 width) {
    u32 groups = max((width + gguf::GROUP - 1) / gguf::GROUP, 1u);
    u64 row = thread_index() / groups;
    u32 column = (u32)(thread_index() % groups) * gguf::GROUP;
    if (row >= rows) return;
    u64 from = ids ? (u32)ids[row] : start + row;
    f32 values[gguf::GROUP] = {};
    if (from < vocabulary && column < width) {
        gguf::Row<F>(blocks, gguf::stored_row(from, head_dim), width).decode(column, width, values);
    }
    if (from >= vocabulary && column == 0) atomicMin(stray, (u32)row);
    if (out_type == TYPE_F32) store<f32>(out, row, column, width, values);
    if (out_type == TYPE_F16) store<f16>(out, row, column, width, values);
    if (out_type == TYPE_BF16) store<bf16>(out, row, column, width, values);
}

#define DEQUANTIZE(F)                                                                                                 \
    KERNEL(THREADS)                                                                                                   \
    dequantize_gguf_##F(const u8* __restrict__ blocks, u32 head_dim, u32 vocabulary, u64 start,                       \
                        const i32* __restrict__ ids, u32* stray, void* __restrict__ out, u32 out_type, u64 rows,      \
                        u32 width) {                                                                                  \
        dequantize<gguf::F>(blocks, head_dim, vocabulary, start, ids, stray, out, out_type, rows, width);             \
    }
GGUF_FORMATS(DEQUANTIZE)
