// Counter-based random numbers: Philox4x32-10 (Salmon et al., 2011), as tensor/src/philox.rs.
#pragma once
#include "common.cuh"

struct Words {
    u32 at[4];
};

// Four random words, the `counter`-th of the key.
INLINE Words philox(u32 key0, u32 key1, u64 counter) {
    Words c = {{(u32)counter, (u32)(counter >> 32), 0, 0}};
#pragma unroll
    for (u32 round = 0; round < 10; round++) {
        u32 high0 = __umulhi(0xD2511F53, c.at[0]), low0 = 0xD2511F53 * c.at[0];
        u32 high1 = __umulhi(0xCD9E8D57, c.at[2]), low1 = 0xCD9E8D57 * c.at[2];
        c = {{high1 ^ c.at[1] ^ key0, low1, high0 ^ c.at[3] ^ key1, low0}};
        // Weyl constants: the golden ratio and sqrt(3) - 1.
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return c;
}

// A random word as a number in [0, 1): its upper 24 bits.
INLINE f32 unit(u32 word) { return __uint2float_rn(word >> 8) * (1.0f / 16777216.0f); }
