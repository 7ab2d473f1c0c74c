// The next token of each row of logits (tensor/src/ops/sample.rs): the likeliest, or one drawn from the likeliest top_k
// and, of those, the fewest that have top_p of the probability. The same tokens as on the CPU
// (tensor/src/cpu/sample.rs).
//
//   sample   out[row] = the id chosen from logits [rows, vocabulary], -1 for NaN among them, -2 where none is finite
//
// Tokens are ordered by their logit, then by their id, the lower one first. A token's weight is exp((logit - largest) /
// temperature) in units of 2^-40, rounded to an integer: sums of integers do not depend on the order of their terms, so
// no order is kept here. A set of likeliest tokens is a cut: all above a logit, and the first few of those at it. The
// cut at which counts or weights reach a limit is found digit by digit of the logits' bits, by histograms. Then the ids
// are walked in order until the weights of those kept exceed a random fraction of their sum. temperature 0 takes the
// likeliest; top_k 0 is all; share is top_p in units of 2^-64, 0 for all; the fraction is made of the upper bits of
// word `step` + 2^48 row of the Philox key.
// Bytes: the logits once for the likeliest, else up to 12 times (from L2), and 4 a row.
// Geometry: one block of 1024 threads a row. vocabulary is 1 .. 2^21.
#include "math.cuh"
#include "philox.cuh"

constexpr u32 SAMPLERS = 1024;
constexpr u32 WARPS = SAMPLERS / WARP;
constexpr i32 IS_NAN = -1, IS_EMPTY = -2;

// ---- Order and weight of a logit.

// A number that orders as logits do; zeros are equal.
INLINE u32 key_of(f32 logit) {
    u32 bits = logit == 0.0f ? 0 : as_bits(logit);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}
INLINE f32 logit_of(u32 key) { return as_f32(key >> 31 ? key & ~(1u << 31) : ~key); }

struct Logits {
    const f32* at;
    u32 size;
    f32 temperature, largest;

    INLINE u64 weight(f32 logit) const {
        f32 e = math::exp((logit - largest) / temperature);
        return __float2ull_rn(e * 1099511627776.0f);
    }
};

// The tokens above `key`, and the first `ties` of those at it.
struct Cut {
    u32 key, ties;
};

// ---- Sums over the block.

struct Shared {
    u64 sums[WARPS];
    u64 best;
    u64 left;
    u32 prefix;
};

INLINE u64 shuffle_up(u64 x, u32 distance) { return __shfl_up_sync(0xFFFFFFFF, x, distance); }
INLINE u64 shuffle_of(u64 x, u32 lane) { return __shfl_sync(0xFFFFFFFF, x, lane); }

// The sum of this lane's x and those of all lower ones.
INLINE u64 scan(u64 x) {
#pragma unroll
    for (u32 distance = 1; distance < WARP; distance *= 2) {
        u64 lower = shuffle_up(x, distance);
        if (lane_index() >= distance) x += lower;
    }
    return x;
}

// Leaves the sum of each warp in shared.sums, for all threads to see.
INLINE void sum_warps(u64 x, Shared& shared) {
    x = scan(x);
    if (lane_index() == WARP - 1) shared.sums[threadIdx.x / WARP] = x;
    __syncthreads();
}

// The sum of the first `count` warps.
INLINE u64 sum_of(const Shared& shared, u32 count) {
    u64 sum = 0;
#pragma unroll 4
    for (u32 i = 0; i < count; i++) sum += shared.sums[i];
    return sum;
}

// ---- The likeliest.

// The largest key with the complement of its first id below it: the larger, the likelier. 0 when a logit is NaN.
INLINE u64 likeliest(const Logits& row, Shared& shared) {
    u64 best = 0;
    bool is_nan = false;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < row.size; i += SAMPLERS) {
        f32 logit = row.at[i];
        is_nan |= logit != logit;
        best = max(best, (u64)key_of(logit) << 32 | ~i);
    }
    if (threadIdx.x == 0) shared.best = 0;
    bool any_nan = __syncthreads_or(is_nan);
    atomicMax(&shared.best, best);
    __syncthreads();
    return any_nan ? 0 : shared.best;
}

// ---- Cuts.

constexpr u32 DIGIT = 8, BINS = 1 << DIGIT;
// What is added to a bin is cut into parts of 11 bits, whose sums over 2^21 tokens fit 32 bits: such atomics are fast.
// Lanes add to one of eight copies, for most logits have few first digits.
constexpr u32 PART = 11, PARTS = 4, COPIES = 8;
using Histogram = u32[PARTS][BINS][COPIES];

// The fewest likeliest of the tokens in `kept` whose values reach `limit`, at most the sum of all: a value is 1, or the
// weight. Values of what lies at the cut are positive.
INLINE Cut reach(const Logits& row, Cut kept, bool by_weight, u64 limit, Histogram& histogram, Shared& shared) {
    auto value = [&](f32 logit) { return by_weight ? row.weight(logit) : 1; };
    u32 prefix = 0;
#pragma unroll 1
    for (i32 shift = 32 - DIGIT; shift >= 0; shift -= DIGIT) {
        u32* bins = &histogram[0][0][0];
#pragma unroll 1
        for (u32 i = threadIdx.x; i < PARTS * BINS * COPIES; i += SAMPLERS) bins[i] = 0;
        __syncthreads();
        auto has_prefix = [&](u32 key) { return ((key ^ prefix) >> shift) < BINS; };
#pragma unroll 1
        for (u32 i = threadIdx.x; i < row.size; i += SAMPLERS) {
            f32 logit = row.at[i];
            u32 key = key_of(logit);
            if (key <= kept.key || !has_prefix(key)) continue;
            u64 left = value(logit);
            for (u32 part = 0; left != 0; part++, left >>= PART) {
                u32* bin = &histogram[part][key >> shift & (BINS - 1)][lane_index() % COPIES];
                atomicAdd(bin, (u32)left & ((1 << PART) - 1));
            }
        }
        __syncthreads();
        // The first warp goes down the bins, eight a lane.
        if (threadIdx.x < WARP) {
            constexpr u32 OWN = BINS / WARP;
            auto bin_of = [&](u32 digit) {
                u64 sum = 0;
#pragma unroll 1
                for (u32 part = 0; part < PARTS; part++) {
                    for (u32 copy = 0; copy < COPIES; copy++) sum += (u64)histogram[part][digit][copy] << (PART * part);
                }
                bool ties = has_prefix(kept.key) && (kept.key >> shift & (BINS - 1)) == digit;
                return ties && kept.ties ? sum + kept.ties * value(logit_of(kept.key)) : sum;
            };
            u32 digit = BINS - 1 - lane_index() * OWN;
            u64 sum = 0;
#pragma unroll 1
            for (u32 k = 0; k < OWN; k++) sum += bin_of(digit - k);
            u64 above = scan(sum) - sum;
            // The one lane in whose bins the limit is reached.
            if (above < limit && above + sum >= limit) {
                for (u64 bin; bin = bin_of(digit), above + bin < limit; digit--) above += bin;
                shared.prefix = prefix | digit << shift;
                shared.left = limit - above;
            }
        }
        __syncthreads();
        prefix = shared.prefix;
        // What the bins above the prefix hold is reached already.
        limit = shared.left;
        __syncthreads();
    }
    u64 tie = value(logit_of(prefix));
    return {prefix, (u32)((limit + tie - 1) / tie)};
}

// The sum of the weights of all tokens in `kept`.
INLINE u64 weight_of(const Logits& row, Cut kept, Shared& shared) {
    u64 sum = 0;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < row.size; i += SAMPLERS) {
        f32 logit = row.at[i];
        if (key_of(logit) > kept.key) sum += row.weight(logit);
    }
    sum_warps(sum, shared);
    sum = sum_of(shared, WARPS);
    __syncthreads();
    return kept.ties ? sum + kept.ties * row.weight(logit_of(kept.key)) : sum;
}

// ---- The choice.

// A warp's ids, in order.
struct Ids {
    u32 first, end;

    INLINE Ids(u32 size) {
        u32 share = (size + SAMPLERS - 1) / SAMPLERS * WARP;
        first = min(threadIdx.x / WARP * share, size);
        end = min(first + share, size);
    }
};

// Calls each(i, weight) for the warp's ids in order, 32 at a time by all lanes; a weight is 0 for what is not in
// `kept`. `ties` of lower ids lie at the cut. Ends when each returns true.
template <typename Each> INLINE void walk(const Logits& row, const Ids& ids, Cut kept, u64 ties, Each each) {
    u32 lower = (1u << lane_index()) - 1;
#pragma unroll 1
    for (u32 first = ids.first; first < ids.end; first += WARP) {
        u32 i = first + lane_index();
        f32 logit = i < ids.end ? row.at[i] : 0.0f;
        u32 key = i < ids.end ? key_of(logit) : 0;
        u32 tied = __ballot_sync(0xFFFFFFFF, key == kept.key && i < ids.end);
        bool is_kept = key > kept.key || (tied >> lane_index() & 1 && ties + __popc(tied & lower) < kept.ties);
        ties += __popc(tied);
        if (each(i, is_kept ? row.weight(logit) : 0)) return;
    }
}

// The first id at which the weights of the ids in `kept`, added up in order, exceed the fraction (in units of 2^-64) of
// their sum; thread 0 or another writes it.
INLINE void choose(const Logits& row, Cut kept, u64 fraction, i32* out, Shared& shared) {
    Ids ids(row.size);
    u32 warp = threadIdx.x / WARP;
    u64 ties = 0;
    if (kept.ties) {
        for (u32 i = ids.first + lane_index(); i < ids.end; i += WARP) ties += key_of(row.at[i]) == kept.key;
        sum_warps(ties, shared);
        ties = sum_of(shared, warp);
        __syncthreads();
    }
    u64 sum = 0;
    walk(row, ids, kept, ties, [&](u32, u64 weight) {
        sum += weight;
        return false;
    });
    sum_warps(sum, shared);
    u64 target = __umul64hi(fraction, sum_of(shared, WARPS)), before = sum_of(shared, warp);
    if (target < before || target >= before + shared.sums[warp]) return;
    walk(row, ids, kept, ties, [&](u32 i, u64 weight) {
        u64 upto = before + scan(weight);
        u32 past = __ballot_sync(0xFFFFFFFF, target < upto);
        if (past && lane_index() == __ffs((i32)past) - 1) *out = (i32)i;
        before = shuffle_of(upto, WARP - 1);
        return past != 0;
    });
}

// The least integer that is not below x share / 2^64.
INLINE u64 fraction_of(u64 x, u64 share) { return __umul64hi(x, share) + (x * share != 0); }

KERNEL(SAMPLERS)
sample(const f32* __restrict__ logits, f32 temperature, u32 top_k, u64 share, u32 key0, u32 key1, u64 step,
       i32* __restrict__ out, u32 vocabulary) {
    __shared__ Shared shared;
    __shared__ Histogram histogram;
    Logits row = {logits + (u64)blockIdx.x * vocabulary, vocabulary, temperature, 0.0f};
    out += blockIdx.x;
    u64 best = likeliest(row, shared);
    row.largest = logit_of((u32)(best >> 32));
    // Neither is a distribution, but the likeliest may be infinite.
    bool is_empty = row.largest == -math::infinity() || (row.largest == math::infinity() && temperature > 0.0f);
    if (best == 0 || is_empty || temperature == 0.0f) {
        if (threadIdx.x == 0) *out = best == 0 ? IS_NAN : is_empty ? IS_EMPTY : (i32)~(u32)best;
        return;
    }
    Cut kept = {0, 0};
#pragma unroll 1
    for (u32 by_weight = 0; by_weight < 2; by_weight++) {
        u64 limit = top_k < vocabulary ? top_k : 0;
        if (by_weight) limit = share > 0 ? fraction_of(weight_of(row, kept, shared), share) : 0;
        if (limit > 0) kept = reach(row, kept, by_weight, limit, histogram, shared);
    }
    Words words = philox(key0, key1, step + ((u64)blockIdx.x << 48));
    // 53 bits.
    u64 fraction = ((u64)words.at[0] << 21 ^ words.at[1] >> 11) << 11;
    choose(row, kept, fraction, out, shared);
}
