// Products of tiles in f32 on plain cores, added up in the CPU's order and with its bits (tensor/src/cpu/gemm/blocked.rs): tiles of
// 64 x 64 by 256 threads of 4 x 4 elements each, 16 apart.
//
// An operand is a source of tiles, a type with
//   load(tile, k, end)   its elements of steps k .. k + DEPTH, by all threads; finite from `end` on, for one of both operands zero.
//                        Calls go on along k, from 0
#pragma once
#include "gemm.cuh"

namespace plain {

constexpr u32 SIDE = 64;
using Shape = gemm::Shape<SIDE, SIDE, SIDE, SIDE, 1>;
// The CPU adds up chains of this many fused steps.
constexpr u32 CHAIN = 256;

// Steps along k of a tile: a chain ends with one, and a warp that reads along k stores to all banks.
constexpr u32 DEPTH = 32;

// DEPTH steps along k of SIDE rows (or columns).
struct Tile {
    // One column of padding: tiles that are read along k are stored across it.
    f32 at[DEPTH][SIDE + 1];
};

// A matrix of any layout, from row (or column) `first` on; zero where it ends. Neighbouring threads read neighbouring
// addresses, whichever way the matrix lies.
template <typename T> struct Dense {
    const gemm::Matrix<T> x;
    const u32 first;

    INLINE void load(Tile& tile, u32 k, u32 end) const {
        bool along = x.along <= x.outer;
#pragma unroll
        for (u32 part = 0; part < SIDE * DEPTH; part += THREADS) {
            u32 t = part + threadIdx.x;
            u32 i = along ? t / DEPTH : t % SIDE, depth = along ? t % DEPTH : t / SIDE;
            bool inside = first + i < x.size && k + depth < end;
            tile.at[depth][i] = inside ? to_f32(x.start[(first + i) * x.outer + (k + depth) * x.along]) : 0.0f;
        }
    }
};

// The operands' tiles of a block of threads.
struct Tiles {
    Tile a, b;
};

// sums = sums + factor a b, chain by chain; while `empty` there is nothing in sums yet.
template <typename A, typename B>
INLINE void add_chains(f32 (&sums)[4][4], bool& empty, Tiles& tiles, A& a, B& b, u32 k, f32 factor) {
    u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
#pragma unroll 1
    for (u32 chain_first = 0; chain_first < k; chain_first += CHAIN) {
        f32 chain[4][4] = {};
        u32 chain_end = min(chain_first + CHAIN, k);
#pragma unroll 1
        for (u32 k_first = chain_first; k_first < chain_end; k_first += DEPTH) {
            a.load(tiles.a, k_first, k);
            b.load(tiles.b, k_first, k);
            __syncthreads();
#pragma unroll 4
            for (u32 depth = 0; depth < DEPTH; depth++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
#pragma unroll
                    for (u32 j = 0; j < 4; j++) {
                        chain[i][j] = fmaf(tiles.a.at[depth][y + 16 * i], tiles.b.at[depth][x + 16 * j], chain[i][j]);
                    }
                }
            }
            __syncthreads();
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                sums[i][j] = empty ? factor * chain[i][j] : fmaf(factor, chain[i][j], sums[i][j]);
            }
        }
        empty = false;
    }
}

// Where the result goes, and the sizes.
template <typename C> struct Product {
    C* out;
    u64 out_m;
    u32 m, n, k;
};

// The tile of a block of threads: out = alpha a b + scale u v^T + bias + out.
template <typename A, typename B, typename C>
INLINE void multiply(const Product<C>& p, A& a, B& b, const gemm::Epilogue& e, const gemm::Place& place) {
    __shared__ Tiles tiles;
    u32 row = place.row + threadIdx.x / 16, column = place.column + threadIdx.x % 16;
    // What is in f32 is added to chain by chain; the 16-bit types get the whole sum.
    bool in_place = e.accumulate && sizeof(C) == sizeof(f32), empty = !in_place;
    f32 sums[4][4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            bool inside = row + 16 * i < p.m && column + 16 * j < p.n;
            sums[i][j] = in_place && inside ? to_f32(p.out[(row + 16 * i) * p.out_m + column + 16 * j]) : 0.0f;
        }
    }
    add_chains(sums, empty, tiles, a, b, p.k, e.alpha);
    if (e.rank > 0) {
        Dense<f32> u = {{e.u, e.rank, 1, p.m}, place.row}, v = {{e.v, e.v_n, e.v_r, p.n}, place.column};
        add_chains(sums, empty, tiles, u, v, e.rank, e.scale);
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (row + 16 * i >= p.m || column + 16 * j >= p.n) continue;
            C* to = p.out + (row + 16 * i) * p.out_m + column + 16 * j;
            f32 result = e.accumulate && !in_place ? to_f32(*to) + sums[i][j] : sums[i][j];
            *to = from_f32<C>(e.bias ? result + e.bias[column + 16 * j] : result);
        }
    }
}

}  // namespace plain
