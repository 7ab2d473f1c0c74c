// Products with a matrix of blocks, both ways, on tensor cores or in f32 on plain ones: each block of threads decodes its part of W
// into shared memory as it multiplies, so that W is read once for 64 rows of x (quant/src/fused.rs).
//
//   out = alpha x Wᵀ, or with `backward` alpha x W, + scale u v^T + bias + out
//
// x [m, k] of a type T of 16 bits is in chunks of 16 bytes, contiguous along one dimension (matmul.cu: the tiles of 128), of f32 it
// lies in any way; W is [rows, width], with a width that is a multiple of 8, and each element is rounded to T. Forward n is rows and
// k width; backward k is rows and n width. out, what comes behind and `depth`: matmul.cu, for one batch.
//
// W is a type with `rows`, `width` and, for eight neighbours of a row from a multiple of 8 on,
//   fetch(row, column)           what they are made of, a `Group`, as it is loaded; all zeros past the end of W
//   decode(group, column, out)   the elements; finite for all zeros
#pragma once
#include "plain.cuh"

namespace decoded {

// Elements that are decoded together: a chunk of 16 bits each.
constexpr u32 GROUP = 8;

// What the eight neighbours at one place along the side and one step along k are made of, if they are there; along k, or
// (across) along the side.
template <typename W>
INLINE typename W::Group fetch(const W& w, bool across, u32 side, u32 step, u32 end) {
    bool inside = side < (across ? w.width : w.rows) && step < end;
    return inside ? w.fetch(across ? step : side, across ? side : step) : typename W::Group();
}

// ---- Tensor cores.

// The source of stages of b: W as a matrix whose sides are its rows, or (across) its columns. What chunks are made of is loaded
// a stage ahead, while the one before is multiplied.
template <typename T, u32 SIDE, u32 THREADS, typename W> struct Decoded {
    static constexpr u32 MINE = SIDE * gemm::CHUNKS / THREADS;
    static_assert(gemm::PER_CHUNK<T> == GROUP, "a chunk is a group");
    const gemm::Layout<SIDE> layout;
    const W& w;
    const u32 first;
    typename W::Group held[MINE];
    u32 column[MINE];

    INLINE Decoded(const W& w, u32 first, bool across, u32 warp_first)
        : layout(across, warp_first), w(w), first(first) {}

    INLINE void begin(u32, u32 k, u32 end) {
#pragma unroll
        for (u32 t = 0; t < MINE; t++) {
            gemm::Start start = gemm::start_of<T, SIDE>(t * THREADS + threadIdx.x, layout.across);
            u32 side = first + start.i, step = k + start.step;
            column[t] = layout.across ? side : step;
            held[t] = fetch(w, layout.across, side, step, end);
        }
    }

    INLINE void finish(u32 stage) {
#pragma unroll
        for (u32 t = 0; t < MINE; t++) {
            f32 values[GROUP];
            w.decode(held[t], column[t], values);
            Vec<T, GROUP> chunk;
#pragma unroll
            for (u32 e = 0; e < GROUP; e++) chunk.at[e] = from_f32<T>(values[e]);
            u32 place = stage / sizeof(gemm::Chunk) + layout.place(t * THREADS + threadIdx.x);
            *reinterpret_cast<Vec<T, GROUP>*>(gemm::shared + place) = chunk;
        }
    }
};

// The operands' sizes, and where the result goes: of type T, or, if `wide`, of f32.
template <typename T> struct Product {
    gemm::Matrix<T> x;
    T* out;
    u64 out_m;
    u32 wide, batches, m, n, k, depth;
};

// The tile of this block of threads, for tiles of 64 x 64.
template <typename T, typename W>
INLINE void multiply(const Product<T>& p, const W& w, bool backward, const gemm::Epilogue& epilogue) {
    using S = gemm::Small;
    gemm::Place place = gemm::place_of_block<S>(p.batches, p.m, p.n);
    gemm::Direct<T, S::ROWS, S::THREADS> left(p.x, place.row, p.x.outer < p.x.along, S::warp_row());
    Decoded<T, S::COLUMNS, S::THREADS, W> right(w, place.column, backward, S::warp_column());
    u32 first = (u32)place.split * p.depth;
    gemm::Sums<S> sums = {};
    gemm::multiply<T, S>(sums, left, right, first, min(p.k, first + p.depth));
    u64 part = place.split * p.m * p.out_m;
    T* to = p.wide ? reinterpret_cast<T*>(reinterpret_cast<f32*>(p.out) + part) : p.out + part;
    gemm::store<S>(sums, epilogue, gemm::Out<T>{to, p.out_m, p.wide != 0}, place, p.m, p.n);
}

// ---- Plain cores.

// Each thread decodes one group of a tile. Groups of a line, of neighbouring threads, are as many elements of a row of W as a tile is
// deep, so that the rows of a warp are stored to all banks.
constexpr u32 LINE = plain::DEPTH / GROUP;
static_assert(plain::DEPTH * plain::SIDE == THREADS * GROUP, "a group a thread");

// The source of tiles of b, as plain.cuh has them. What a group is made of is loaded a tile ahead.
template <typename W> struct Plain {
    const W& w;
    const bool across;
    u32 i, depth;  // where the thread's group lies in a tile
    const u32 side;
    typename W::Group held;

    INLINE Plain(const W& w, u32 first, bool across, u32 k)
        : w(w), across(across), i(start(across).i), depth(start(across).step), side(first + i) {
        held = fetch(w, across, side, depth, k);
    }

    static INLINE gemm::Start start(bool across) {
        u32 line = threadIdx.x / LINE, at = threadIdx.x % LINE * GROUP;
        return across ? gemm::Start{line / plain::DEPTH * plain::DEPTH + at, line % plain::DEPTH} : gemm::Start{line, at};
    }

    INLINE void load(plain::Tile& tile, u32 k, u32 end) {
        f32 values[GROUP];
        w.decode(held, across ? side : k + depth, values);
#pragma unroll
        for (u32 e = 0; e < GROUP; e++) tile.at[across ? depth : depth + e][across ? i + e : i] = values[e];
        held = fetch(w, across, side, k + plain::DEPTH + depth, end);
    }
};

// The tile of this block of threads, for tiles of 64 x 64, in the CPU's order.
template <typename W>
INLINE void multiply(const plain::Product<f32>& p, const gemm::Matrix<f32>& x, const W& w, bool backward,
                     const gemm::Epilogue& epilogue) {
    gemm::Place place = gemm::place_of_block<plain::Shape>(1, p.m, p.n);
    plain::Dense<f32> left = {x, place.row};
    Plain<W> right(w, place.column, backward, p.k);
    plain::multiply(p, left, right, epilogue, place);
}

}  // namespace decoded
