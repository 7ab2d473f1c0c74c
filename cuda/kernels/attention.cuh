// What the kernels of attention share: segments, who sees whom, and how a block finds its part of the work.
#pragma once
#include "math.cuh"
#include "mma.cuh"

// SIZE bytes (4 or 16) from global to an address in shared memory; `bytes` of them are read, the rest is zero.
template <u32 SIZE> INLINE void copy_async(u32 to, const void* from, u32 bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "n"(SIZE), "r"(bytes)
                 : "memory");
}

// From .. to, without the end.
struct Range {
    i32 start, end;

    INLINE bool contains(i32 i) const { return start <= i && i < end; }
};

// As the table has it: which queries see which keys.
struct alignas(16) Segment {
    i32 q_start, q_len, kv_start, kv_len;
};

struct Mask {
    u32 full, window;
};

// One key head of one segment.
struct Part {
    Segment segment;
    Mask mask;
    i32 heads, kv_heads, kv_head, group;

    INLINE i32 rows() const { return segment.q_len * group; }

    // Where row r is among all [tokens, heads].
    INLINE u64 row(i32 r) const {
        return (u64)(segment.q_start + r / group) * heads + kv_head * group + r % group;
    }

    // Where key j is among all [entries, kv_heads].
    INLINE u64 key(i32 j) const { return (u64)(segment.kv_start + j) * kv_heads + kv_head; }

    // The keys that row r sees, counted from the segment's first; none for a row that is not there. Both ends grow
    // with r.
    INLINE Range visible(i32 r) const {
        if (r >= rows()) return {0, 0};
        if (mask.full) return {0, segment.kv_len};
        i32 past = max(segment.kv_len + (r / group + 1 - segment.q_len), 0);
        return {max(past - (i32)mask.window, 0), past};
    }

    // The rows that see one of `count` keys from `key` on, and those between. Both ends grow with key.
    INLINE Range viewers(i32 key, i32 count) const {
        if (mask.full) return {0, rows()};
        i64 before = segment.kv_len - segment.q_len;
        i64 start = max(key - before, (i64)0);
        i64 end = min(key + count - 1 + (i64)mask.window - before, (i64)segment.q_len);
        return {(i32)start * group, (i32)max(end, start) * group};
    }
};

// Rows up to which a segment of many keys is split over them (attention_decode.cu).
constexpr i32 MOST_SPLIT_ROWS = 16;

// The chunks of `chunk` keys, by number, that a segment's rows see when it is split: few rows, and more than two
// chunks. None where it is not, or chunk is 0. That depends on the segment alone, so that its bits do.
INLINE Range chunks_of(const Segment& s, Mask mask, i32 group, i32 chunk) {
    i32 start = mask.full ? 0 : max(s.kv_len - s.q_len + 1 - (i32)mask.window, 0);
    if (chunk == 0 || s.q_len > MOST_SPLIT_ROWS / group || s.kv_len - start <= 2 * chunk) return {0, 0};
    return {start / chunk, (s.kv_len + chunk - 1) / chunk};
}

// The sum of the numbers of this lane and all lower ones.
INLINE i32 sum_to_lane(i32 sum) {
#pragma unroll
    for (u32 distance = 1; distance < WARP; distance *= 2) {
        i32 before = __shfl_up_sync(0xFFFFFFFF, sum, distance);
        if (lane_index() >= distance) sum += before;
    }
    return sum;
}

// The segment that tile `tile` of all belongs to; `tile` becomes its number within the segment. tiles(segment) is how
// many a segment has. A warp adds up those of 32 segments at a time. `before` becomes the sum of others(segment) over
// the segments before it.
template <typename Tiles, typename Others>
INLINE Segment find_segment(const Segment* segments, u32 count, i32& tile, Tiles tiles, Others others, i32& before) {
    u32 found = count - 1;
    before = 0;
#pragma unroll 1
    for (u32 first = 0; first < count; first += WARP) {
        u32 index = first + lane_index();
        bool there = index < count;
        i32 own = there ? tiles(segments[index]) : 0, other = there ? others(segments[index]) : 0;
        i32 end = sum_to_lane(own), other_end = sum_to_lane(other);
        u32 behind = __ballot_sync(0xFFFFFFFF, tile < end);
        u32 lane = behind != 0 ? __ffs(behind) - 1 : WARP - 1;
        bool done = behind != 0;
        tile -= __shfl_sync(0xFFFFFFFF, done ? end - own : end, lane);
        before += __shfl_sync(0xFFFFFFFF, done ? other_end - other : other_end, lane);
        if (done) {
            found = first + lane;
            break;
        }
    }
    return segments[found];
}

template <typename Tiles>
INLINE Segment find_segment(const Segment* segments, u32 count, i32& tile, Tiles tiles) {
    i32 before;
    return find_segment(segments, count, tile, tiles, [](const Segment&) { return 0; }, before);
}

INLINE i32 tiles_of(i32 length, i32 side) { return (length + side - 1) / side; }

// The part of this block, which owns `side` rows (in one of `slices` slices of columns), and its first row; segments
// that are split into chunks have no blocks. Later rows see more keys under a mask: they come first, so that the
// longest blocks do not start last.
INLINE Part part_of_rows(const Segment* segments, u32 count, Mask mask, u32 chunk, u32 heads, u32 kv_heads, u32 slices,
                         i32 side, i32& first) {
    u32 head = blockIdx.x / slices;
    i32 tile = head / kv_heads, group = heads / kv_heads;
    auto tiles = [=](const Segment& s) {
        return chunks_of(s, mask, group, chunk).end > 0 ? 0 : tiles_of(s.q_len * group, side);
    };
    Segment segment = find_segment(segments, count, tile, tiles);
    first = (tiles(segment) - 1 - tile) * side;
    return {segment, mask, (i32)heads, (i32)kv_heads, (i32)(head % kv_heads), group};
}

// The same for a block that owns `side` keys. Earlier keys are seen by more rows under a mask.
INLINE Part part_of_keys(const Segment* segments, u32 count, Mask mask, u32 heads, u32 kv_heads, u32 slices, i32 side,
                         i32& first) {
    u32 head = blockIdx.x / slices;
    i32 tile = head / kv_heads;
    auto tiles = [=](const Segment& s) { return tiles_of(s.kv_len, side); };
    Segment segment = find_segment(segments, count, tile, tiles);
    first = tile * side;
    return {segment, mask, (i32)heads, (i32)kv_heads, (i32)(head % kv_heads), (i32)(heads / kv_heads)};
}
