// Products with matrices of NF4 and FP4 blocks on tensor cores, both ways (quant/src/fused.rs): each block of threads decodes its
// part of W into shared memory as it multiplies, so that W is read once for 64 rows of x, at half a byte an element.
//
//   matmul_4bit_T       out = alpha x Wᵀ, or with `backward` alpha x W, + scale u v^T + bias + out; T: bf16, f16
//
// x [m, k] is of type T in chunks of 16 bytes, contiguous along one dimension (matmul.cu: the tiles of 128); W [rows, width] is
// as in nf4.cu, with a width that is a multiple of 8, and codes at a multiple of 4 bytes. Each element is rounded to T. Forward n is
// rows and k width; backward k is rows and n width. out, what comes behind and `depth`: matmul.cu, for one batch.
// Bits: those of matmul_64x64 with the decoded matrix.
// Bytes: reads x ceil(n / 64) times and W, 0.5 bytes an element and the scales, ceil(m / 64) times.
// Geometry: as matmul_64x64.
#include "gemm.cuh"
#include "nf4.cuh"

// A matrix of blocks as it lies.
struct Blocks {
    const u8* codes;
    u32 shift;
    Scales scales;
    u32 rows, width;
};

// The source of stages of b: W as a matrix whose sides are its rows, or (across) its columns. A chunk is eight neighbours of
// a row, of one block: a word of codes and a scale, which are loaded a stage ahead.
template <typename T, u32 SIDE, u32 THREADS> struct Decoded {
    static constexpr u32 MINE = SIDE * gemm::CHUNKS / THREADS;
    const gemm::Layout<SIDE> layout;
    const Blocks& w;
    const f32* level;
    const u32 first;
    // Of each chunk: where it begins in W, its codes, and what is stored of its scale; zero past the end of W.
    u64 at[MINE];
    u32 codes[MINE], stored[MINE];
    bool inside[MINE];

    INLINE Decoded(const Blocks& w, const f32* level, u32 first, bool across, u32 warp_first)
        : layout(across, warp_first), w(w), level(level), first(first) {}

    INLINE void begin(u32, u32 k, u32 end) {
#pragma unroll
        for (u32 t = 0; t < MINE; t++) {
            gemm::Start start = gemm::start_of<T, SIDE>(t * THREADS + threadIdx.x, layout.across);
            u32 side = first + start.i, step = k + start.step;
            inside[t] = side < (layout.across ? w.width : w.rows) && step < end;
            at[t] = layout.across ? (u64)step * w.width + side : (u64)side * w.width + step;
            codes[t] = inside[t] ? *reinterpret_cast<const u32*>(w.codes + at[t] / 2) : 0;
            stored[t] = inside[t] ? w.scales.stored(at[t] >> w.shift) : 0;
        }
    }

    INLINE void finish(u32 stage) {
#pragma unroll
        for (u32 t = 0; t < MINE; t++) {
            f32 scale = inside[t] ? w.scales.decode(stored[t], at[t] >> w.shift) : 0.0f;
            Vec<T, 8> values;
#pragma unroll
            for (u32 e = 0; e < 8; e++) {
                // The first of two in the high nibble.
                u32 code = codes[t] >> (e / 2 * 8 + (e % 2 ? 0 : 4)) & 15;
                values.at[e] = from_f32<T>(level[code] * scale);
            }
            u32 place = stage / sizeof(gemm::Chunk) + layout.place(t * THREADS + threadIdx.x);
            *reinterpret_cast<Vec<T, 8>*>(gemm::shared + place) = values;
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
        using S = gemm::Small;                                                                                        \
        __shared__ f32 level[LEVELS];                                                                                 \
        copy_levels(format, level);                                                                                   \
        __syncthreads();                                                                                              \
        gemm::Place place = gemm::place_of_block<S>(batches, m, n);                                                   \
        gemm::Matrix<T> x = {a, a_m, a_k, m};                                                                         \
        Blocks w = {codes, block_shift, {absmax, absmax_codes, map, offset}, backward ? k : n, backward ? n : k};     \
        gemm::Direct<T, S::ROWS, S::THREADS> left(x, place.row, a_m < a_k, S::warp_row());                            \
        Decoded<T, S::COLUMNS, S::THREADS> right(w, level, place.column, backward, S::warp_column());                 \
        u32 first = (u32)place.split * depth;                                                                         \
        gemm::Sums<S> sums = {};                                                                                      \
        gemm::multiply<T, S>(sums, left, right, first, min(k, first + depth));                                        \
        u64 part = place.split * m * out_m;                                                                           \
        T* to = wide ? reinterpret_cast<T*>(reinterpret_cast<f32*>(out) + part) : out + part;                         \
        gemm::Epilogue epilogue = {accumulate, alpha, bias, u, v, v_n, v_r, rank, scale};                             \
        gemm::store<S>(sums, epilogue, gemm::Out<T>{to, out_m, wide != 0}, place, m, n);                              \
    }
MATMUL_4BIT(bf16)
MATMUL_4BIT(f16)
