// Decoding of NF4 and FP4 blocks (QLoRA, arXiv 2305.14314; quant/src/four_bit.rs), bit for bit as on the CPU: an
// element is the level of its code times the scale (absmax) of its block.
//
// Codes lie two a byte, the first in the high nibble. Scale i is absmax[i], or, if absmax_codes is not null,
// map[absmax_codes[i]] absmax[i / 256] + offset with both steps rounded.
#pragma once
#include "common.cuh"

constexpr u32 LEVELS = 16;
constexpr u32 THRESHOLDS = LEVELS - 1;

// What the codes stand for in a block whose scale is 1.
struct Format {
    f32 level[LEVELS];
    // The codes in ascending order of their levels, a nibble each. FP4's first zero stands before its second.
    u64 order;

    // The midpoint between neighbours in that order: a value above `i` of them has code i of the order.
    constexpr f32 threshold(u32 i) const {
        return (level[order >> (4 * i) & 15] + level[order >> (4 * i + 4) & 15]) / 2.0f;
    }
};

constexpr Format NF4 = {
    {-1.0f, -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f, 0.0795803f,
     0.1609302f, 0.2461123f, 0.33791524f, 0.44070983f, 0.562617f, 0.72295684f, 1.0f},
    0xFEDCBA9876543210,
};
constexpr Format FP4 = {
    {0.0f, 0.0625f / 12.0f, 8.0f / 12.0f, 1.0f, 4.0f / 12.0f, 6.0f / 12.0f, 2.0f / 12.0f, 3.0f / 12.0f, 0.0f,
     -0.0625f / 12.0f, -8.0f / 12.0f, -1.0f, -4.0f / 12.0f, -6.0f / 12.0f, -2.0f / 12.0f, -3.0f / 12.0f},
    0x32547618'09EFCDAB,
};

__constant__ Format FORMATS[2] = {NF4, FP4};

// The levels of a format where threads can choose among them: a constant would be read one code after the other.
INLINE void copy_levels(u32 format, f32 (&level)[LEVELS]) {
    if (threadIdx.x < LEVELS) level[threadIdx.x] = FORMATS[format].level[threadIdx.x];
}

// Scales in a block of the second quantisation.
constexpr u32 NESTED = 256;

// The scales of blocks, plain or nested.
struct Scales {
    const f32* absmax;
    const u8* codes;  // null: plain
    const f32* map;
    f32 offset;

    INLINE f32 operator[](u64 block) const { return decode(stored(block), block); }
    // The same in two steps: what has to come from far, and what is made of it, of which a cache holds the rest.
    INLINE u32 stored(u64 block) const { return codes ? codes[block] : as_bits(absmax[block]); }
    INLINE f32 decode(u32 stored, u64 block) const {
        return codes ? map[stored] * absmax[block / NESTED] + offset : as_f32(stored);
    }
};
