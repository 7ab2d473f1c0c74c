// Embedding: the rows of a table that ids choose, and the gradient (tensor/src/ops/embedding.rs), bit for bit as on the
// CPU.
//
//   embedding_W_T          out[i] = weight[ids[i]], from type W to type T
//   embedding_backward_T   out[ids[i]] += dy[i], in the order of i; out is f32, read and written
//
// weight is [vocabulary, width], ids [tokens] of i32, dy and out of the forward pass [tokens, width]; all contiguous.
// An id outside of the table writes its index (upper half) and itself to `stray` if that is smaller than what is there
// (the launcher sets it to 2^64 - 1 before, and reports the id after), and touches no row: the forward pass writes zeros
// for it.
// Bytes: a row read and written a token; the backward pass also reads all ids in each block (from L2).
// Geometry: one block of 256 threads a token. Backward: the block of an id's first token adds all rows of that id, so
// no two blocks write one row and the order is fixed.
#include "common.cuh"

// The row of token i, or vocabulary if its id is not in the table.
INLINE u32 row_of(const i32* ids, u64 i, u32 vocabulary, u64* stray) {
    u32 id = (u32)ids[i];
    if (id < vocabulary) return id;
    if (threadIdx.x == 0) atomicMin(stray, i << 32 | id);
    return vocabulary;
}

template <typename W, typename T>
INLINE void forward(const W* weight, const i32* ids, T* out, u64* stray, u32 vocabulary, u32 width) {
    u64 token = blockIdx.x;
    u32 row = row_of(ids, token, vocabulary, stray);
    out += token * width;
    weight += (u64)row * width;
    for (u32 column = threadIdx.x; column < width; column += THREADS) {
        out[column] = from_f32<T>(row < vocabulary ? to_f32(weight[column]) : 0.0f);
    }
}

// Whether any of the block's threads says so.
INLINE bool block_any(bool mine) { return __syncthreads_or(mine); }

template <typename T>
INLINE void backward(const T* dy, const i32* ids, f32* out, u64* stray, u32 tokens, u32 vocabulary, u32 width) {
    __shared__ u32 matches[THREADS / WARP];
    u32 token = blockIdx.x;
    u32 row = row_of(ids, token, vocabulary, stray);
    if (row == vocabulary) return;
    bool seen = false;
    for (u32 i = threadIdx.x; i < token; i += THREADS) seen |= (u32)ids[i] == row;
    if (block_any(seen)) return;
    out += (u64)row * width;
    // From here on, 256 tokens at a time: a bit for each that has this id, then its rows in order.
    for (u32 first = token; first < tokens; first += THREADS) {
        u32 i = first + threadIdx.x;
        u32 ballot = __ballot_sync(0xFFFFFFFF, i < tokens && (u32)ids[i] == row);
        if (lane_index() == 0) matches[threadIdx.x / WARP] = ballot;
        __syncthreads();
        for (u32 word = 0; word < THREADS / WARP; word++) {
            for (u32 bits = matches[word]; bits != 0; bits &= bits - 1) {
                u32 match = first + word * WARP + (__ffs((i32)bits) - 1);
                const T* from = dy + (u64)match * width;
                for (u32 column = threadIdx.x; column < width; column += THREADS) out[column] += to_f32(from[column]);
            }
        }
        __syncthreads();
    }
}

#define EMBEDDING(W, T)                                                                                               \
    KERNEL(THREADS)                                                                                                   \
    embedding_##W##_##T(const W* __restrict__ weight, const i32* __restrict__ ids, T* __restrict__ out, u64* stray,   \
                        u32 vocabulary, u32 width) {                                                                  \
        forward(weight, ids, out, stray, vocabulary, width);                                                          \
    }
EMBEDDING(f32, f32) EMBEDDING(f32, f16) EMBEDDING(f32, bf16)
EMBEDDING(f16, f32) EMBEDDING(f16, f16) EMBEDDING(f16, bf16)
EMBEDDING(bf16, f32) EMBEDDING(bf16, f16) EMBEDDING(bf16, bf16)

#define EMBEDDING_BACKWARD(T)                                                                                         \
    KERNEL(THREADS)                                                                                                   \
    embedding_backward_##T(const T* __restrict__ dy, const i32* __restrict__ ids, f32* __restrict__ out, u64* stray,  \
                           u32 tokens, u32 vocabulary, u32 width) {                                                   \
        backward(dy, ids, out, stray, tokens, vocabulary, width);                                                     \
    }
FLOATS(EMBEDDING_BACKWARD)
