// Decoding of ggml's blocks, as GGUF files hold them (tensor/src/cpu/ggml.rs), bit for bit as on the CPU: 32 elements
// with one scale, or 256 with a scale for every 16 or 32 of them (the "K" formats); and rows of plain numbers.
//
// A format is a type with the elements and bytes of a block and, for elements first .. first + 8 of one, where first is
// a multiple of 8,
//   fetch(block, first)    what they are made of, as it is loaded
//   decode(group, first)   the elements, but for what is alike in all formats
// beside RUN, the elements that share a scale, and HAS_MIN, whether they have a minimum too. fetch and decode are
// apart, so that a kernel can do other things while a group is on its way. Eight neighbours share their scales, and their
// codes lie in eight neighbouring bytes, which are turned into floats four a word. The bytes of a matrix begin at a
// multiple of 16, so a block at what its size allows.
#pragma once
#include "common.cuh"

namespace gguf {

// Elements that are decoded together.
constexpr u32 GROUP = 8;

// The bytes of a group, one element each.
struct Codes {
    u32 word[2];

    // (codes >> shift) & mask, byte by byte: `mask` has bits that a shift by `shift` does not bring in from a
    // neighbour.
    INLINE Codes bits(u32 shift, u32 mask) const {
        return {{word[0] >> shift & mask * 0x01010101, word[1] >> shift & mask * 0x01010101}};
    }
    INLINE Codes with(Codes upper, u32 shift) const {
        return {{word[0] | upper.word[0] << shift, word[1] | upper.word[1] << shift}};
    }
    // Code k less `zero`. A byte below 2^23 in the low bits of 2^23 is their sum: no conversion, which is slow.
    INLINE f32 at(u32 k, f32 zero) const {
        return as_f32(__byte_perm(word[k / 4], 0x4B000000, 0x7440 | k % 4)) - (8388608.0f + zero);
    }
};

// Eight bytes as they are loaded, two words or four halves: to put them together would be to wait for them.
struct Bytes {
    u32 part[4];
};

// In accesses of ALIGN bytes, which the address is a multiple of.
template <u32 ALIGN> INLINE Bytes load(const u8* p) {
    if constexpr (ALIGN == 8) {
        Vec<u32, 2> v = *reinterpret_cast<const Vec<u32, 2>*>(p);
        return {{v.at[0], v.at[1]}};
    } else if constexpr (ALIGN == 4) {
        const u32* words = reinterpret_cast<const u32*>(p);
        return {{words[0], words[1]}};
    } else {
        const u16* halves = reinterpret_cast<const u16*>(p);
        return {{halves[0], halves[1], halves[2], halves[3]}};
    }
}

template <u32 ALIGN> INLINE Codes codes(const Bytes& bytes) {
    const u32(&part)[4] = bytes.part;
    if constexpr (ALIGN == 2) return {{part[0] | part[1] << 16, part[2] | part[3] << 16}};
    return {{part[0], part[1]}};
}

// The f16 at p, a multiple of 2.
INLINE f16 half_at(const u8* p) { return *reinterpret_cast<const f16*>(p); }

// What eight neighbours are made of, as it is loaded. A format uses what it needs of it.
struct Group {
    f16 scale, min;
    u32 sub[3];       // scales within the block, or fifth bits
    Bytes low, high;  // bits of codes
};

// Eight neighbours: each is d (code - zero) - min, where a minimum of 0 changes no bit.
struct Scaled {
    Codes codes;
    f32 d, zero, min;

    INLINE void values(f32 (&out)[GROUP]) const {
#pragma unroll
        for (u32 k = 0; k < GROUP; k++) out[k] = d * codes.at(k, zero) - min;
    }
};

// ---- 32 elements: the low nibbles of 16 bytes are the first 16, the high ones the others.

template <u32 ALIGN> INLINE Bytes load_nibbles(const u8* bytes, u32 first) { return load<ALIGN>(bytes + first % 16); }
template <u32 ALIGN> INLINE Codes nibbles(const Bytes& bytes, u32 first) {
    return codes<ALIGN>(bytes).bits(first / 16 * 4, 15);
}

// Bits 0 .. 7 of `bits` as the fifth bits of eight codes.
INLINE Codes fifth(u32 bits) {
    // Copies of the lower four, seven bits apart, bring bit k to bit 8 k.
    return {{(bits & 15) * 0x00204081 & 0x01010101, (bits >> 4 & 15) * 0x00204081 & 0x01010101}};
}

// scale, 16 bytes of nibbles
struct Q4_0 {
    static constexpr u32 LEN = 32, BYTES = 18, RUN = 32;
    static constexpr bool HAS_MIN = false;
    static INLINE Group fetch(const u8* block, u32 first) {
        Group group = {};
        group.scale = half_at(block);
        group.low = load_nibbles<2>(block + 2, first);
        return group;
    }
    static INLINE Scaled decode(const Group& group, u32 first) {
        f32 d = to_f32(group.scale);
        Codes codes = nibbles<2>(group.low, first);
        return {codes, d, 8.0f, 0.0f};
    }
};

// scale, minimum, 16 bytes of nibbles
struct Q4_1 {
    static constexpr u32 LEN = 32, BYTES = 20, RUN = 32;
    static constexpr bool HAS_MIN = true;
    static INLINE Group fetch(const u8* block, u32 first) {
        Group group = {};
        group.scale = half_at(block), group.min = half_at(block + 2);
        group.low = load_nibbles<4>(block + 4, first);
        return group;
    }
    static INLINE Scaled decode(const Group& group, u32 first) {
        f32 d = to_f32(group.scale), min = to_f32(group.min);
        Codes codes = nibbles<4>(group.low, first);
        return {codes, d, 0.0f, -min};
    }
};

// scale, 32 fifth bits, 16 bytes of nibbles
struct Q5_0 {
    static constexpr u32 LEN = 32, BYTES = 22, RUN = 32;
    static constexpr bool HAS_MIN = false;
    static INLINE Group fetch(const u8* block, u32 first) {
        Group group = {};
        group.scale = half_at(block);
        group.sub[0] = block[2 + first / 8];
        group.low = load_nibbles<2>(block + 6, first);
        return group;
    }
    static INLINE Scaled decode(const Group& group, u32 first) {
        f32 d = to_f32(group.scale);
        Codes codes = nibbles<2>(group.low, first).with(fifth(group.sub[0]), 4);
        return {codes, d, 16.0f, 0.0f};
    }
};

// scale, minimum, 32 fifth bits, 16 bytes of nibbles
struct Q5_1 {
    static constexpr u32 LEN = 32, BYTES = 24, RUN = 32;
    static constexpr bool HAS_MIN = true;
    static INLINE Group fetch(const u8* block, u32 first) {
        Group group = {};
        group.scale = half_at(block), group.min = half_at(block + 2);
        group.sub[0] = block[4 + first / 8];
        group.low = load_nibbles<8>(block + 8, first);
        return group;
    }
    static INLINE Scaled decode(const Group& group, u32 first) {
        f32 d = to_f32(group.scale), min = to_f32(group.min);
        Codes codes = nibbles<8>(group.low, first).with(fifth(group.sub[0]), 4);
        return {codes, d, 0.0f, -min};
    }
};

// scale, 32 signed bytes
struct Q8_0 {
    static constexpr u32 LEN = 32, BYTES = 34, RUN = 32;
    static constexpr bool HAS_MIN = false;
    static INLINE Group fetch(const u8* block, u32 first) {
        Group group = {};
        group.scale = half_at(block);
        group.low = load<2>(block + 2 + first);
        return group;
    }
    static INLINE Scaled decode(const Group& group, u32) {
        f32 d = to_f32(group.scale);
        Codes low = codes<2>(group.low);
        // Signed bytes with the sign turned over are the unsigned ones from -128 on.
        Codes codes = {{low.word[0] ^ 0x80808080, low.word[1] ^ 0x80808080}};
        return {codes, d, 128.0f, 0.0f};
    }
};

// ---- 256 elements, in rows of 32.

// 16 scales and minimums of 4 bits, 64 bytes of bit pairs, scale of scales, scale of minimums. 32 bytes of codes hold
// four rows, one a bit pair.
struct Q2_K {
    static constexpr u32 LEN = 256, BYTES = 84, RUN = 16;
    static constexpr bool HAS_MIN = true;
    static INLINE Group fetch(const u8* block, u32 first) {
        Group group = {};
        group.scale = half_at(block + 80), group.min = half_at(block + 82);
        group.sub[0] = block[first / 16];
        group.low = load<4>(block + 16 + first / 128 * 32 + first % 32);
        return group;
    }
    static INLINE Scaled decode(const Group& group, u32 first) {
        u32 row = first / 32, sub = group.sub[0];
        f32 d = to_f32(group.scale) * (f32)(sub & 15), min = to_f32(group.min) * (f32)(sub >> 4);
        Codes codes = gguf::codes<4>(group.low).bits(row % 4 * 2, 3);
        return {codes, d, 0.0f, min};
    }
};

// 32 bytes of third bits (bit r for row r, set where the element is not lowered by 4), 64 bytes of bit pairs as in
// Q2_K, 16 scales of 6 bits in 12 bytes, scale of scales
struct Q3_K {
    static constexpr u32 LEN = 256, BYTES = 110, RUN = 16;
    static constexpr bool HAS_MIN = false;
    static INLINE Group fetch(const u8* block, u32 first) {
        u32 s = first / 16;
        Group group = {};
        group.scale = half_at(block + 108);
        group.sub[0] = block[96 + s % 8], group.sub[1] = block[104 + s % 4];
        group.low = load<2>(block + 32 + first / 128 * 32 + first % 32);
        group.high = load<2>(block + first % 32);
        return group;
    }
    static INLINE Scaled decode(const Group& group, u32 first) {
        u32 row = first / 32, s = first / 16;
        u32 low = group.sub[0] >> (s / 8 * 4) & 15, high = group.sub[1] >> (s / 4 * 2) & 3;
        f32 d = to_f32(group.scale) * ((f32)(low | high << 4) - 32.0f);
        Codes third = gguf::codes<2>(group.high).bits(row, 1);
        Codes codes = gguf::codes<2>(group.low).bits(row % 4 * 2, 3).with(third, 2);
        return {codes, d, 4.0f, 0.0f};
    }
};

// The 6-bit scale and minimum of a row, out of 12 bytes that hold eight of each.
struct Sub {
    f32 scale, min;

    static INLINE void fetch(const u8* bytes, u32 row, u32 (&sub)[3]) {
        sub[0] = bytes[row % 4], sub[1] = bytes[row % 4 + 4];
        if (row >= 4) sub[2] = bytes[row + 4];
    }

    INLINE Sub(const u32 (&sub)[3], u32 row) {
        u32 a = sub[0], b = sub[1], c = sub[2];
        if (row < 4) {
            scale = (f32)(a & 63), min = (f32)(b & 63);
        } else {
            scale = (f32)((c & 15) | (a >> 2 & 0x30)), min = (f32)(c >> 4 | (b >> 2 & 0x30));
        }
    }
};

// scale of scales, scale of minimums, 8 of each in 12 bytes, 128 bytes of nibbles: 32 bytes hold two rows, low and
// high.
struct Q4_K {
    static constexpr u32 LEN = 256, BYTES = 144, RUN = 32;
    static constexpr bool HAS_MIN = true;
    static INLINE Group fetch(const u8* block, u32 first) {
        Group group = {};
        group.scale = half_at(block), group.min = half_at(block + 2);
        Sub::fetch(block + 4, first / 32, group.sub);
        group.low = load<8>(block + 16 + first / 64 * 32 + first % 32);
        return group;
    }
    static INLINE Scaled decode(const Group& group, u32 first) {
        u32 row = first / 32;
        Sub sub(group.sub, row);
        f32 d = to_f32(group.scale) * sub.scale, min = to_f32(group.min) * sub.min;
        Codes codes = gguf::codes<8>(group.low).bits(row % 2 * 4, 15);
        return {codes, d, 0.0f, min};
    }
};

// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit r for row r.
struct Q5_K {
    static constexpr u32 LEN = 256, BYTES = 176, RUN = 32;
    static constexpr bool HAS_MIN = true;
    static INLINE Group fetch(const u8* block, u32 first) {
        Group group = {};
        group.scale = half_at(block), group.min = half_at(block + 2);
        Sub::fetch(block + 4, first / 32, group.sub);
        group.low = load<8>(block + 48 + first / 64 * 32 + first % 32);
        group.high = load<8>(block + 16 + first % 32);
        return group;
    }
    static INLINE Scaled decode(const Group& group, u32 first) {
        u32 row = first / 32;
        Sub sub(group.sub, row);
        f32 d = to_f32(group.scale) * sub.scale, min = to_f32(group.min) * sub.min;
        Codes fifth = gguf::codes<8>(group.high).bits(row, 1);
        Codes codes = gguf::codes<8>(group.low).bits(row % 2 * 4, 15).with(fifth, 4);
        return {codes, d, 0.0f, min};
    }
};

// 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales, scale of scales. Of each four rows 64 bytes hold
// the nibbles (two rows low, two rows high) and 32 the bit pairs.
struct Q6_K {
    static constexpr u32 LEN = 256, BYTES = 210, RUN = 16;
    static constexpr bool HAS_MIN = false;
    static INLINE Group fetch(const u8* block, u32 first) {
        u32 row = first / 32, four = row / 4;
        Group group = {};
        group.scale = half_at(block + 208);
        group.sub[0] = block[192 + first / 16];
        group.low = load<2>(block + four * 64 + row % 2 * 32 + first % 32);
        group.high = load<2>(block + 128 + four * 32 + first % 32);
        return group;
    }
    static INLINE Scaled decode(const Group& group, u32 first) {
        u32 of_four = first / 32 % 4;
        f32 d = to_f32(group.scale) * (f32)(i8)group.sub[0];
        Codes high = gguf::codes<2>(group.high).bits(of_four * 2, 3);
        Codes low = gguf::codes<2>(group.low).bits(of_four / 2 * 4, 15);
        Codes codes = low.with(high, 4);
        return {codes, d, 32.0f, 0.0f};
    }
};

// ---- Rows.

// Plain numbers, of which a row has any number.
template <typename T> struct Plain {
    static constexpr u32 LEN = GROUP, BYTES = GROUP * sizeof(T);
};
using F32 = Plain<f32>;
using F16 = Plain<f16>;
using BF16 = Plain<bf16>;

// Elements first .. first + 8 of a block.
template <typename F> INLINE void decode(F, const u8* block, u32 first, f32 (&out)[GROUP]) {
    F::decode(F::fetch(block, first), first).values(out);
}

template <typename T> INLINE void decode(Plain<T>, const u8* block, u32, f32 (&out)[GROUP]) {
    const T* values = reinterpret_cast<const T*>(block);
    f32 first[4], last[4];
    read4(values, 0, GROUP, first);
    read4(values, 4, GROUP, last);
#pragma unroll
    for (u32 k = 0; k < 4; k++) out[k] = first[k], out[4 + k] = last[k];
}

// A row of a matrix in format F, of `width` elements.
template <typename F> struct Row {
    const u8* blocks;

    INLINE Row(const u8* blocks, u64 row, u32 width) : blocks(blocks + row * (width / F::LEN * F::BYTES)) {}

    // Elements first .. first + 8, or what they are made of.
    INLINE void decode(u32 first, u32, f32 (&out)[GROUP]) const { F::decode(fetch(first), first % F::LEN).values(out); }
    INLINE Group fetch(u32 first) const { return F::fetch(blocks + first / F::LEN * F::BYTES, first % F::LEN); }
};

template <typename T> struct Row<Plain<T>> {
    const T* values;

    INLINE Row(const u8* blocks, u64 row, u32 width) : values(reinterpret_cast<const T*>(blocks) + row * width) {}

    // Past the end, the last element again.
    INLINE void decode(u32 first, u32 width, f32 (&out)[GROUP]) const {
        f32 half[4];
        read4(values, first, width, half);
#pragma unroll
        for (u32 k = 0; k < 4; k++) out[k] = half[k];
        read4(values, min(first + 4, width - 1), width, half);
#pragma unroll
        for (u32 k = 0; k < 4; k++) out[4 + k] = half[k];
    }
};

// Where a matrix has row `row`: as it is counted, or, for heads of head_dim > 0 rows, with row i of a head's first half
// and row i of its second side by side (RowOrder in quant/src/gguf.rs).
INLINE u64 stored_row(u64 row, u32 head_dim) {
    if (head_dim == 0) return row;
    u32 in_head = (u32)(row % head_dim), half = head_dim / 2;
    return row - in_head + in_head % half * 2 + in_head / half;
}

// The formats of blocks, and all with those of plain numbers, in the order of the Rust enum.
#define GGUF_BLOCKS(M) M(Q4_0) M(Q4_1) M(Q5_0) M(Q5_1) M(Q8_0) M(Q2_K) M(Q3_K) M(Q4_K) M(Q5_K) M(Q6_K)
#define GGUF_PLAIN(M) M(F32) M(F16) M(BF16)
#define GGUF_FORMATS(M) GGUF_BLOCKS(M) GGUF_PLAIN(M)

#define GGUF_NUMBER(F) FORMAT_##F,
enum Format : u32 { GGUF_FORMATS(GGUF_NUMBER) };

// Calls call(F()) for the format F that `format` is the number of, of all formats, of those of blocks, and of plain
// numbers.
#define GGUF_CASE(F)                                                                                                  \
    case FORMAT_##F: return call(F());
template <typename Call> INLINE void with_format(u32 format, Call call) {
    switch (format) { GGUF_FORMATS(GGUF_CASE) }
}
template <typename Call> INLINE void with_blocks(u32 format, Call call) {
    switch (format) { GGUF_BLOCKS(GGUF_CASE) }
}
template <typename Call> INLINE void with_plain(u32 format, Call call) {
    switch (format) { GGUF_PLAIN(GGUF_CASE) }
}

}  // namespace gguf
