// What the kernels of attention share: segments, who sees whom, and how a block finds its part of the work.
#pragma once
#include "math.cuh"

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

// The segment that tile `tile` of all belongs to; `tile` becomes its number within the segment. tiles(segment) is how
// many a segment has. A warp adds up those of 32 segments at a time.
template <typename Tiles>
INLINE Segment find_segment(const Segment* segments, u32 count, i32& tile, Tiles tiles) {
    u32 found = count - 1;
#pragma unroll 1
    for (u32 first = 0; first < count; first += WARP) {
        u32 index = first + lane_index();
        i32 own = index < count ? tiles(segments[index]) : 0, end = own;
#pragma unroll
        for (u32 distance = 1; distance < WARP; distance *= 2) {
            i32 before = __shfl_up_sync(0xFFFFFFFF, end, distance);
            if (lane_index() >= distance) end += before;
        }
        u32 behind = __ballot_sync(0xFFFFFFFF, tile < end);
        if (behind != 0) {
            u32 lane = __ffs(behind) - 1;
            tile -= __shfl_sync(0xFFFFFFFF, end - own, lane);
            found = first + lane;
            break;
        }
        tile -= __shfl_sync(0xFFFFFFFF, end, WARP - 1);
    }
    return segments[found];
}

INLINE i32 tiles_of(i32 length, i32 side) { return (length + side - 1) / side; }

// The part of this block, which owns `side` rows (in one of `slices` slices of columns), and its first row. Later rows see
// more keys under a mask: they come first, so that the longest blocks do not start last.
INLINE Part part_of_rows(const Segment* segments, u32 count, Mask mask, u32 heads, u32 kv_heads, u32 slices, i32 side,
                         i32& first) {
    u32 head = blockIdx.x / slices;
    i32 tile = head / kv_heads, group = heads / kv_heads;
    auto tiles = [=](const Segment& s) { return tiles_of(s.q_len * group, side); };
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
