// Products of few rows of 16-bit floats with ggml's blocks in integers, bit for bit as on the CPU, where the definition stands
// (tensor/src/cpu/ggml/product.rs and fixed.rs): rows of x are whole multiples of a power of two, a run of 16 or 32
// weights d q + m, and a dot product Σ over runs of d s ΣqX + m s ΣX, whose inner sums dp4a forms exactly.
//
// Of the CPU's 16 lanes, four runs of four, thread t of the eight that make an element has lanes 2t and 2t + 1: eight
// neighbours of a run of 16, and in a run of 32 eight of the first 16 and as many of the last.
#pragma once
#include "gguf.cuh"
#include "matvec.cuh"

namespace integers {

using matvec::PIECE;
using matvec::SIDE;

// 32 neighbours of a row of x: X = 256 high + low of each, with a sign in the upper byte only; x = X scale.
struct alignas(16) Run {
    static constexpr u32 LEN = 32;
    u8 high[LEN], low[LEN];
    f32 scale;
    i32 sums[3];  // of X, of each half and of all
};

// Turns 32 neighbours, one a thread of the warp, into a run.
INLINE void round_run(f32 x, Run& run) {
    u32 lane = lane_index(), largest = as_bits(x) & 0x7FFFFFFF;
#pragma unroll
    for (u32 half = WARP / 2; half > 0; half /= 2) largest = max(largest, shuffle_xor(largest, half));
    bool finite = largest < 0x7F800000;
    u32 exponent = max(largest >> 23, 15u) - 14;
    f32 inverse = as_f32((254 - exponent) << 23);
    // 1.5 2^23 has integers in its low bits.
    f32 integer = x * inverse + 12582912.0f;
    u32 value = finite ? as_bits(integer) - 0x4B400000 : 0, sum = value;
#pragma unroll
    for (u32 half = WARP / 4; half > 0; half /= 2) sum += shuffle_xor(sum, half);
    run.high[lane] = (u8)(value >> 8), run.low[lane] = (u8)value;
    u32 all = sum + shuffle_xor(sum, WARP / 2);
    if (lane % 16 == 0) run.sums[lane / 16] = (i32)sum;
    if (lane == 0) run.sums[2] = (i32)all, run.scale = as_f32(finite ? exponent << 23 : 0x7FC00000);
}

// c + Σ a b over four bytes; b has signs, and a has or has not.
INLINE i32 dot_signed(u32 a, u32 b, i32 c) {
    i32 d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
INLINE i32 dot_unsigned(u32 a, u32 b, i32 c) {
    i32 d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Codes less what means zero, as bytes with a sign: below 128 after the difference is lifted by 128, no byte borrows.
INLINE gguf::Codes centred(const gguf::Scaled& scaled) {
    u32 zero = (u32)scaled.zero;
    if (zero == 0) return scaled.codes;
    u32 lift = (128 - zero) % 128 * 0x01010101;
    return {{(scaled.codes.word[0] + lift) ^ 0x80808080, (scaled.codes.word[1] + lift) ^ 0x80808080}};
}

// Eight neighbours of x, from element `first` of its run on.
struct Eight {
    Vec<u32, 2> high, low;

    INLINE Eight(const Run& run, u32 first)
        : high(*reinterpret_cast<const Vec<u32, 2>*>(run.high + first)),
          low(*reinterpret_cast<const Vec<u32, 2>*>(run.low + first)) {}
};

// The sums of a row of x that one thread has.
struct Sums {
    f32 lanes[2], min;
};

struct Product {
    const Run* x;  // [m, k / 32]
    matvec::Product p;
};

// One step, whose elements of this thread begin with `i` of the piece at `bytes`, and with `k` of the row.
template <typename F, u32 M>
INLINE void add_step(const u8* bytes, u32 i, u32 k, const Product& product, Sums (&sums)[M]) {
    constexpr u32 PARTS = F::RUN / 16;
    gguf::Scaled scaled[PARTS];
    gguf::Codes codes[PARTS];
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) {
        u32 first = i + 16 * part;
        scaled[part] = F::decode(F::fetch(bytes + first / F::LEN * F::BYTES, first % F::LEN), first % F::LEN);
        codes[part] = centred(scaled[part]);
    }
#pragma unroll
    for (u32 r = 0; r < M; r++) {
        if (r >= product.p.m) continue;
        const Run& run = product.x[(u64)r * (product.p.k / Run::LEN) + k / Run::LEN];
        i32 exact[2] = {};
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) {
            Eight x(run, k % Run::LEN + 16 * part);
#pragma unroll
            for (u32 lane = 0; lane < 2; lane++) {
                i32 high = dot_signed(x.high.at[lane], codes[part].word[lane], 0);
                exact[lane] = dot_unsigned(x.low.at[lane], codes[part].word[lane], exact[lane] + (high << 8));
            }
        }
        f32 scale = scaled[0].d * run.scale;
#pragma unroll
        for (u32 lane = 0; lane < 2; lane++) sums[r].lanes[lane] = fmaf((f32)exact[lane], scale, sums[r].lanes[lane]);
        if constexpr (F::HAS_MIN) {
            i32 sum = run.sums[F::RUN == 16 ? k % Run::LEN / 16 : 2];
            f32 sum_of_x = run.scale * (f32)sum;
            sums[r].min = fmaf(-scaled[0].min, sum_of_x, sums[r].min);
        }
    }
}

template <typename F, u32 M>
INLINE void add_piece(F, const u8* bytes, u32 first, const Product& product, Sums (&sums)[M]) {
    u32 thread = lane_index() % SIDE, in_step = thread / 2 * F::RUN + thread % 2 * gguf::GROUP;
#pragma unroll 1
    for (u32 i = in_step; i < PIECE; i += 4 * F::RUN) {
        if (first + i < product.p.k) add_step<F>(bytes, i, first + i, product, sums);
    }
}

// The lanes of the CPU folded in halves, and its four sums of minimums.
INLINE f32 fold(Sums sums) {
#pragma unroll
    for (u32 distance = SIDE / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (u32 lane = 0; lane < 2; lane++) sums.lanes[lane] += shuffle_xor(sums.lanes[lane], distance);
        if (distance > 1) sums.min += shuffle_xor(sums.min, distance);
    }
    return (sums.lanes[0] + sums.lanes[1]) + sums.min;
}

// The product for at most M rows of x. `add(bytes, first, sums)` adds a piece.
template <u32 M, typename Source, typename R, typename Add>
INLINE void multiply(const Source& source, R& ring, const Product& product, Add add) {
    const matvec::Product& p = product.p;
    u32 thread = lane_index() % SIDE, slot = lane_index() / SIDE;
    u32 first_row = matvec::first_row_of_warp();
    if (first_row >= p.n) return;
    u32 row = min(first_row + slot, p.n - 1);
    Sums sums[M] = {};
    matvec::each_piece(source, ring, source.row(row), p.k, [&](const u8* bytes, u32 piece) {
        add(bytes, piece * PIECE, sums);
    });
#pragma unroll
    for (u32 r = 0; r < M; r++) {
        f32 sum = fold(sums[r]);
        if (thread == r && r < p.m && first_row + slot < p.n) matvec::store(p, (u64)r * p.n + row, sum);
    }
}

}  // namespace integers
