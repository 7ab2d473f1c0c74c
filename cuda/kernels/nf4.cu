// NF4 and FP4 blocks with scales in f32 or quantised once more, as QLoRA (arXiv 2305.14314) and bitsandbytes
// (quant/src/four_bit.rs, tensor/src/cpu/nf4.rs), bit for bit as on the CPU.
//
//   quantize_4bit_T        codes, two elements a byte, the first in the high nibble, and each block's scale (absmax)
//   quantize_absmax        scales less `offset` to 8-bit codes of `map` and one scale a block of 256 of them (nested)
//   dequantize_4bit_T      out = level absmax, whichever kind the scales are: double quantisation is undone on the way
//   embedding_4bit_T       out[i] = row ids[i] of the same, a matrix [vocabulary, width]
//   matvec_4bit            out = alpha x Wᵀ or out + alpha x Wᵀ for one row x in f32 or bf16 (matvec.cuh), W [n, k]
//   matvec_few_4bit        the same for up to 8 rows in f32
//
// The matrix is n elements, read flat, in blocks of 2^block_shift elements (32 ..= 4096); the last block may be
// shorter. format: 0 NF4, 1 FP4. A block that is not finite sets *non_finite to 1 (the launcher clears it before and
// reports it after). An id outside of the table writes its index (upper half) and itself to `stray` if that is smaller
// than what is there (the launcher sets it to 2^64 - 1 before, and reports the id after), and its row becomes zeros.
// Bytes: quantising reads the matrix twice (the second time from L1 or L2) and writes 0.5 + 4 / block an element;
// dequantising reads 0.5 + 1 / block + 4 / (256 block) an element and writes it.
// Geometry: quantize_4bit: ceil(blocks / 4) blocks of 128 threads, one warp a block; quantize_absmax: the same of 256
// scales; dequantize_4bit: ceil(n / 2048) blocks of 256 threads, eight elements a thread; embedding_4bit: one block of
// 256 threads a token; matvec: ceil(n / 16) blocks of 128 threads, a warp four rows of W, whose k is a multiple of the
// block size and whose codes begin at a multiple of 16 bytes.
#include "matvec.cuh"
#include "nf4.cuh"

// The code of a value scaled to [-1, 1].
template <const Format& FORMAT> INLINE u32 encode(f32 value) {
    u32 rank = 0;
#pragma unroll
    for (u32 i = 0; i < THRESHOLDS; i++) rank += value > FORMAT.threshold(i) ? 1 : 0;
    return (u32)(FORMAT.order >> (4 * rank)) & 15;
}

INLINE u32 encode(u32 format, f32 value) { return format == 0 ? encode<NF4>(value) : encode<FP4>(value); }

INLINE u32 warp_max(u32 x) {
#pragma unroll
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) x = max(x, shuffle_xor(x, distance));
    return x;
}

// Keeps 1 / absmax of an all-zero block finite.
constexpr f32 TINY = 1e-38f;

INLINE bool is_finite(f32 x) { return (as_bits(x) & 0x7F800000) != 0x7F800000; }

template <typename T>
INLINE void quantize(const T* weight, u32 format, u32 block_shift, u8* codes, f32* absmax, u32* non_finite, u64 n) {
    u64 block = warp_row(), start = block << block_shift;
    if (start >= n) return;
    u32 size = 1u << block_shift, len = (u32)min((u64)size, n - start);
    weight += start;
    codes += start / 2;
    // Magnitudes order as their bits do, and the bits of an infinity or a NaN lie above all.
    u32 largest = 0;
    for (u32 i = lane_index(); i < len; i += WARP) largest = max(largest, as_bits(to_f32(weight[i])) & 0x7FFFFFFF);
    f32 scale = as_f32(warp_max(largest));
    f32 divisor = scale < TINY ? TINY : scale;
    // As the reference: a whole block is multiplied by the reciprocal; a shorter one is divided, and records the
    // divisor.
    bool whole = len == size;
    f32 reciprocal = 1.0f / divisor;
    for (u32 i = 2 * lane_index(); i < len; i += 2 * WARP) {
        f32 a = to_f32(weight[i]), b = i + 1 < len ? to_f32(weight[i + 1]) : 0.0f;
        u32 high = encode(format, whole ? a * reciprocal : a / divisor);
        u32 low = encode(format, whole ? b * reciprocal : b / divisor);
        codes[i / 2] = (u8)(high << 4 | low);
    }
    if (lane_index() != 0) return;
    absmax[block] = whole || !is_finite(scale) ? scale : divisor;
    if (!is_finite(scale)) atomicOr(non_finite, 1u);
}

#define QUANTIZE(T)                                                                                                   \
    KERNEL(ROW_THREADS)                                                                                               \
    quantize_4bit_##T(const T* __restrict__ weight, u32 format, u32 block_shift, u8* __restrict__ codes,              \
                      f32* __restrict__ absmax, u32* non_finite, u64 n) {                                             \
        quantize(weight, format, block_shift, codes, absmax, non_finite, n);                                          \
    }
FLOATS(QUANTIZE)

// The code whose value is nearest, after x was rounded to one of 65536 even steps of [-1, 1], as the reference does.
INLINE u32 nearest(const f32* map, f32 x) {
    constexpr f32 STEPS = 65535.0f;
    x = x < -1.0f ? -1.0f : x > 1.0f ? 1.0f : x;
    f32 step = truncf((x + 1.0f) * 0.5f * STEPS + 0.5f);
    x = -1.0f + 2.0f * step / STEPS;
    // The number of midpoints below x.
    u32 low = 0;
#pragma unroll
    for (u32 half = NESTED / 2; half > 0; half /= 2) {
        u32 i = low + half - 1;
        if (0.5f * (map[i] + map[i + 1]) < x) low += half;
    }
    return low;
}

KERNEL(ROW_THREADS)
quantize_absmax(const f32* __restrict__ absmax, f32 offset, const f32* __restrict__ map, u8* __restrict__ codes,
                f32* __restrict__ nested, u64 n) {
    u64 block = warp_row(), start = block * NESTED;
    if (start >= n) return;
    u32 len = (u32)min((u64)NESTED, n - start);
    u32 largest = 0;
    for (u32 i = lane_index(); i < len; i += WARP) {
        largest = max(largest, as_bits(absmax[start + i] - offset) & 0x7FFFFFFF);
    }
    f32 scale = as_f32(warp_max(largest)), reciprocal = 1.0f / scale;
    for (u32 i = lane_index(); i < len; i += WARP) {
        f32 value = (absmax[start + i] - offset) * reciprocal;
        codes[start + i] = scale == 0.0f ? 0 : (u8)nearest(map, value);
    }
    if (lane_index() == 0) nested[block] = scale;
}

// Elements of a thread: four bytes of codes, all of one block.
constexpr u32 DECODED = 8;

template <typename T>
INLINE void dequantize(const u8* codes, u32 format, u32 block_shift, const Scales& scales, T* out, u64 n) {
    __shared__ f32 level[LEVELS];
    copy_levels(format, level);
    __syncthreads();
    u64 start = thread_index() * DECODED;
    if (start >= n) return;
    f32 scale = scales[start >> block_shift];
    f32 values[DECODED];
    u64 bytes = (n + 1) / 2;
#pragma unroll
    for (u32 half = 0; half < DECODED; half += PER_THREAD) {
        u8 pair[2];
#pragma unroll
        for (u32 k = 0; k < 2; k++) pair[k] = codes[min(start / 2 + half / 2 + k, bytes - 1)];
#pragma unroll
        for (u32 k = 0; k < 2; k++) {
            values[half + 2 * k] = level[pair[k] >> 4] * scale;
            values[half + 2 * k + 1] = level[pair[k] & 15] * scale;
        }
    }
    f32 first[4] = {values[0], values[1], values[2], values[3]}, last[4] = {values[4], values[5], values[6], values[7]};
    write4(out, start, n, first);
    if (start + 4 < n) write4(out, start + 4, n, last);
}

#define DEQUANTIZE(T)                                                                                                 \
    KERNEL(THREADS)                                                                                                   \
    dequantize_4bit_##T(const u8* __restrict__ codes, u32 format, u32 block_shift, const f32* __restrict__ absmax,    \
                        const u8* __restrict__ absmax_codes, const f32* __restrict__ map, f32 offset,                 \
                        T* __restrict__ out, u64 n) {                                                                 \
        dequantize(codes, format, block_shift, Scales{absmax, absmax_codes, map, offset}, out, n);                    \
    }
FLOATS(DEQUANTIZE)

template <typename T>
INLINE void embed(const u8* codes, u32 format, u32 block_shift, const Scales& scales, const i32* ids, T* out,
                  u64* stray, u32 vocabulary, u32 width) {
    __shared__ f32 level[LEVELS];
    copy_levels(format, level);
    __syncthreads();
    u64 token = blockIdx.x;
    u32 row = (u32)ids[token];
    bool inside = row < vocabulary;
    if (!inside && threadIdx.x == 0) atomicMin(stray, token << 32 | row);
    for (u32 column = threadIdx.x; column < width; column += THREADS) {
        // A row may begin in the middle of a block, and of a byte.
        u64 i = (u64)row * width + column;
        f32 value = inside ? level[codes[i / 2] >> (i % 2 ? 0 : 4) & 15] * scales[i >> block_shift] : 0.0f;
        out[token * width + column] = from_f32<T>(value);
    }
}

#define EMBEDDING(T)                                                                                                  \
    KERNEL(THREADS)                                                                                                   \
    embedding_4bit_##T(const u8* __restrict__ codes, u32 format, u32 block_shift, const f32* __restrict__ absmax,     \
                       const u8* __restrict__ absmax_codes, const f32* __restrict__ map, f32 offset,                  \
                       const i32* __restrict__ ids, T* __restrict__ out, u64* stray, u32 vocabulary, u32 width) {     \
        Scales scales = {absmax, absmax_codes, map, offset};                                                          \
        embed(codes, format, block_shift, scales, ids, out, stray, vocabulary, width);                                \
    }
FLOATS(EMBEDDING)

// ---- Products of few rows.

// W as a thread sees it that multiplies with a row of it. Of a piece's scales, a power of two, each of the row's
// threads holds one, and asks for that of the next piece while it multiplies.
struct FourBit {
    static constexpr u32 MOST_BYTES = matvec::PIECE / 2;
    const u8* codes;
    const f32* level;
    Scales scales;
    u32 block_shift, k;
    u64 row_block;             // the row's first block
    u32 at, next, stored;      // the element whose scale this thread holds, that of the next, what came of it
    f32 held;

    INLINE FourBit(const u8* codes, const f32* level, const Scales& scales, u32 block_shift, u32 k)
        : codes(codes), level(level), scales(scales), block_shift(block_shift), k(k) {}

    INLINE u32 bytes(u32 elements) const { return elements / 2; }
    INLINE const u8* row(u32 j) const { return codes + (u64)j * bytes(k); }

    INLINE void start(u32 j) {
        row_block = (u64)j * (k >> block_shift);
        u32 mine = lane_index() % matvec::SIDE << block_shift;
        at = mine < matvec::PIECE ? mine : 0;
        held = at < k ? scales[block_of(at)] : 0.0f;
    }
    INLINE void fetch() {
        next = at + matvec::PIECE;
        stored = scales.stored(block_of(next));
    }
    INLINE void advance() {
        at = next;
        held = at < k ? scales.decode(stored, block_of(at)) : 0.0f;
    }
    // Past the end of the row, its last block, of which nothing is made.
    INLINE u64 block_of(u32 element) const { return row_block + (min(element, k - 1) >> block_shift); }

    INLINE void decode(const u8* piece, u32 i, f32 (&w)[matvec::GROUP]) const {
        u32 holder = lane_index() / matvec::SIDE * matvec::SIDE + (i >> block_shift);
        f32 scale = __shfl_sync(0xFFFFFFFF, held, holder);
        u32 word = *reinterpret_cast<const u32*>(piece + i / 2);
#pragma unroll
        for (u32 e = 0; e < matvec::GROUP; e++) w[e] = level[word >> (e / 2 * 8 + (e % 2 ? 0 : 4)) & 15] * scale;
    }
};

KERNEL(matvec::BLOCK)
matvec_4bit(const u8* __restrict__ codes, u32 format, u32 block_shift, const f32* __restrict__ absmax,
            const u8* __restrict__ absmax_codes, const f32* __restrict__ map, f32 offset, const void* __restrict__ x,
            u32 x_is_bf16, u32 round_bf16, void* __restrict__ out, u32 out_type, f32 alpha, u32 accumulate, u32 n,
            u32 k) {
    __shared__ f32 level[LEVELS];
    copy_levels(format, level);
    __syncthreads();
    matvec::Product product = {x, x_is_bf16, round_bf16, out, out_type, alpha, accumulate, 1, n, k};
    matvec::one_row(FourBit(codes, level, Scales{absmax, absmax_codes, map, offset}, block_shift, k), product);
}

KERNEL(matvec::BLOCK, 128)
matvec_few_4bit(const u8* __restrict__ codes, u32 format, u32 block_shift, const f32* __restrict__ absmax,
                const u8* __restrict__ absmax_codes, const f32* __restrict__ map, f32 offset,
                const void* __restrict__ x, u32 round_bf16, void* __restrict__ out, u32 out_type, f32 alpha, u32 accumulate, u32 m, u32 n, u32 k) {
    __shared__ f32 level[LEVELS];
    copy_levels(format, level);
    __syncthreads();
    matvec::Product product = {x, false, round_bf16, out, out_type, alpha, accumulate, m, n, k};
    matvec::few_rows(FourBit(codes, level, Scales{absmax, absmax_codes, map, offset}, block_shift, k), product);
}
