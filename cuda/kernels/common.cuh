// What every kernel shares: types, exact conversions, vector access, strided views, and reductions in the CPU's order.
// No CUDA header is included anywhere, so a kernel compiles in milliseconds.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i8 = signed char;
using i32 = int;
using i64 = long long;
using f32 = float;
using f64 = double;

#define INLINE __device__ __forceinline__
// An entry point: unmangled, with the number of threads of a block that it is written for, and how many registers each
// may use at least: KERNEL(threads) or KERNEL(threads, registers). Without that number ptxas picks a limit by itself,
// and spills. A multiprocessor has 65536 registers and holds at most 16 blocks of few threads; 64 a thread let 1024
// threads in.
constexpr u32 block_threads(u32 threads, u32 = 0) { return threads; }
constexpr u32 least_blocks(u32 threads, u32 registers = 64) {
    return threads < 64 ? 16 : 65536 / (threads * registers);
}
#define KERNEL(...)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(block_threads(__VA_ARGS__), least_blocks(__VA_ARGS__))
// Instantiates a macro for each float type.
#define FLOATS(M) M(f32) M(f16) M(bf16)

// ---- 16-bit floats: storage only. Kernels compute in f32.

struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

INLINE f32 as_f32(u32 bits) { return __uint_as_float(bits); }
INLINE u32 as_bits(f32 x) { return __float_as_uint(x); }

INLINE f32 to_f32(f32 x) { return x; }
INLINE f32 to_f32(bf16 x) { return as_f32((u32)x.bits << 16); }
INLINE f32 to_f32(f16 x) {
    f32 y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
INLINE f32 to_f32(i32 x) { return __int2float_rn(x); }
INLINE f32 to_f32(i8 x) { return (f32)x; }
INLINE f32 to_f32(u8 x) { return (f32)x; }

// The nearest value of type T, ties to even; integers drop the fraction, saturate, and make NaN 0.
template <typename T> INLINE T from_f32(f32 x);
template <> INLINE f32 from_f32<f32>(f32 x) { return x; }
template <> INLINE f16 from_f32<f16>(f32 x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> INLINE bf16 from_f32<bf16>(f32 x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> INLINE i32 from_f32<i32>(f32 x) {
    i32 y;
    asm("cvt.rzi.s32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}
template <> INLINE i8 from_f32<i8>(f32 x) { return (i8)min(max(from_f32<i32>(x), -128), 127); }
template <> INLINE u8 from_f32<u8>(f32 x) { return (u8)min(max(from_f32<i32>(x), 0), 255); }

// x as it is after being stored as T.
template <typename T> INLINE f32 round_to(f32 x) { return to_f32(from_f32<T>(x)); }

// ---- Vectors: N neighbours that move in one access. The address must be aligned to the whole.

template <typename T, u32 N> struct alignas(N * sizeof(T)) Vec {
    T at[N];
};

template <u32 N, typename T> INLINE bool aligned(const T* p) { return (u64)p % (N * sizeof(T)) == 0; }

// ---- Strided operands.

// The layout of an operand, innermost dimension first; element 0 is where the operand's pointer points. The launcher
// drops dimensions of size 1, joins those that can be joined, and gives a scalar one dimension of size 1. What has more
// than one dimension left has fewer than 2^32 elements. Kernels take it as VIEW: a __grid_constant__ may be indexed at
// run time without a copy in local memory.
struct View {
    static constexpr u32 MAX_RANK = 8;
    u32 rank;             // 1 ..= 8
    u32 shape[MAX_RANK];  // the outermost is never read
    i64 strides[MAX_RANK];

    // Whether element i is simply the i-th from the pointer on.
    INLINE bool is_flat() const { return rank == 1 && strides[0] == 1; }

    // Where the elements `index` (in row-major order) lie, in elements from the pointer on.
    template <u32 N> INLINE void locate(u64 (&index)[N], i64 (&at)[N]) const {
#pragma unroll
        for (u32 k = 0; k < N; k++) at[k] = 0;
        u32 last = rank - 1;
#pragma unroll 1
        for (u32 d = 0; d < last; d++) {
            u32 size = shape[d];
            i64 stride = strides[d];
#pragma unroll
            for (u32 k = 0; k < N; k++) {
                u32 inner = (u32)index[k], outer = inner / size;
                at[k] += (inner - outer * size) * stride;
                index[k] = outer;
            }
        }
#pragma unroll
        for (u32 k = 0; k < N; k++) at[k] += (i64)index[k] * strides[last];
    }

    INLINE i64 offset(u64 i) const {
        u64 index[1] = {i};
        i64 at[1];
        locate(index, at);
        return at[0];
    }
};
#define VIEW const __grid_constant__ View

// ---- Elementwise kernels: blocks of 256 threads, four elements a thread, so ceil(n / 1024) blocks.

constexpr u32 THREADS = 256;
constexpr u32 PER_THREAD = 4;

INLINE u64 thread_index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
// The first element of this thread.
INLINE u64 first_element() { return thread_index() * PER_THREAD; }

// Four neighbours as they are stored; past n, the last one again.
template <typename T> INLINE void load4(const T* x, u64 i, u64 n, T (&out)[4]) {
    if (i + 4 <= n && aligned<4>(x)) {
        Vec<T, 4> v = *reinterpret_cast<const Vec<T, 4>*>(x + i);
#pragma unroll
        for (u32 k = 0; k < 4; k++) out[k] = v.at[k];
    } else {
#pragma unroll
        for (u32 k = 0; k < 4; k++) out[k] = x[min(i + k, n - 1)];
    }
}

template <typename T> INLINE void load4(const T* x, const View& view, u64 i, u64 n, T (&out)[4]) {
    if (view.is_flat()) return load4(x, i, n, out);
    u64 index[4];
    i64 at[4];
#pragma unroll
    for (u32 k = 0; k < 4; k++) index[k] = min(i + k, n - 1);
    view.locate(index, at);
#pragma unroll
    for (u32 k = 0; k < 4; k++) out[k] = x[at[k]];
}

template <typename T> INLINE void store4(T* out, u64 i, u64 n, const T (&x)[4]) {
    if (i + 4 <= n && aligned<4>(out)) {
        Vec<T, 4> v;
#pragma unroll
        for (u32 k = 0; k < 4; k++) v.at[k] = x[k];
        *reinterpret_cast<Vec<T, 4>*>(out + i) = v;
    } else {
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            if (i + k < n) out[i + k] = x[k];
        }
    }
}

// The same through f32.
template <typename T> INLINE void read4(const T* x, u64 i, u64 n, f32 (&out)[4]) {
    T raw[4];
    load4(x, i, n, raw);
#pragma unroll
    for (u32 k = 0; k < 4; k++) out[k] = to_f32(raw[k]);
}

template <typename T> INLINE void read4(const T* x, const View& view, u64 i, u64 n, f32 (&out)[4]) {
    T raw[4];
    load4(x, view, i, n, raw);
#pragma unroll
    for (u32 k = 0; k < 4; k++) out[k] = to_f32(raw[k]);
}

template <typename T> INLINE void write4(T* out, u64 i, u64 n, const f32 (&x)[4]) {
    T raw[4];
#pragma unroll
    for (u32 k = 0; k < 4; k++) raw[k] = from_f32<T>(x[k]);
    store4(out, i, n, raw);
}

// ---- Rows: one warp a row, four warps a block, so ceil(rows / 4) blocks of 128 threads.
//
// The CPU adds up a row in 64 lanes: element i belongs to lane i mod 64, a lane adds its elements in order, and the
// lanes are folded in halves. Thread t of a warp holds lanes 2t and 2t + 1 here, so every sum has the CPU's bits, and a
// warp reads 64 neighbours at a time.

constexpr u32 WARP = 32;
constexpr u32 LANES = 64;
constexpr u32 ROWS_PER_BLOCK = 4;
constexpr u32 ROW_THREADS = WARP * ROWS_PER_BLOCK;

INLINE u32 lane_index() { return threadIdx.x % WARP; }
// The row of this warp.
INLINE u64 warp_row() { return (u64)blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP; }

// Two of the 64 lanes, or two neighbours of a row.
template <typename T> struct Pair {
    T a, b;
};

// Two neighbours of a row in f32. `paired`: both may be read at once.
template <typename T> INLINE Pair<f32> read2(const T* row, u32 i, bool paired) {
    if (paired) {
        Vec<T, 2> v = *reinterpret_cast<const Vec<T, 2>*>(row + i);
        return {to_f32(v.at[0]), to_f32(v.at[1])};
    }
    return {to_f32(row[i]), to_f32(row[i + 1])};
}

template <typename T> INLINE void write2(T* row, u32 i, bool paired, f32 a, f32 b) {
    Vec<T, 2> v = {from_f32<T>(a), from_f32<T>(b)};
    if (paired) {
        *reinterpret_cast<Vec<T, 2>*>(row + i) = v;
    } else {
        row[i] = v.at[0];
        row[i + 1] = v.at[1];
    }
}

// Whether rows of `width` elements can be read in aligned pairs.
template <typename T> INLINE bool in_pairs(const T* x, u32 width) { return width % 2 == 0 && aligned<2>(x); }

// A row of an operand of any layout: elements start .. start + width of its row-major order. Rows that begin at
// multiples of an even width in a flat operand are read in pairs.
template <typename T> struct Row {
    const T* x;
    const View& view;
    u64 start;
    bool flat, paired;

    INLINE Row(const T* x, const View& view, u64 start, u64 width)
        : x(x), view(view), start(start), flat(view.is_flat()), paired(flat && width % 2 == 0 && aligned<2>(x)) {}

    INLINE f32 operator[](u32 i) const { return to_f32(x[flat ? start + i : view.offset(start + i)]); }

    // Elements i and i + 1.
    INLINE Pair<f32> two(u32 i) const {
        if (flat) return read2(x + start, i, paired);
        u64 index[2] = {start + i, start + i + 1};
        i64 at[2];
        view.locate(index, at);
        return {to_f32(x[at[0]]), to_f32(x[at[1]])};
    }
};

// Calls both(i) for this thread's pairs of neighbours i, i + 1 of a row, in order, and one(i) for a last single one.
template <typename Both, typename One> INLINE void each_pair(u32 width, Both both, One one) {
    u32 i = 2 * lane_index();
#pragma unroll 4
    for (; i + 1 < width; i += LANES) both(i);
    if (i < width) one(i);
}

// A value of the thread whose lane differs by `distance`, and of thread `lane`.
INLINE f32 shuffle_xor(f32 x, u32 distance) { return __shfl_xor_sync(0xFFFFFFFF, x, distance); }
INLINE u32 shuffle_xor(u32 x, u32 distance) { return __shfl_xor_sync(0xFFFFFFFF, x, distance); }
INLINE f64 shuffle_xor(f64 x, u32 distance) { return __shfl_xor_sync(0xFFFFFFFF, x, distance); }
INLINE f64 shuffle(f64 x, u32 lane) { return __shfl_sync(0xFFFFFFFF, x, lane); }

// The 64 lanes of a warp folded in halves: join(lane i, lane i + half) for half = 32, 16, .. 1. All threads get the
// result of lane 0: of two threads that meet, the lower one's value is always the left operand.
template <typename T, typename Join> INLINE T fold(Pair<T> lanes, Join join) {
#pragma unroll
    for (u32 half = WARP / 2; half > 0; half /= 2) {
        bool upper = lane_index() & half;
        T a = shuffle_xor(lanes.a, half), b = shuffle_xor(lanes.b, half);
        lanes.a = upper ? join(a, lanes.a) : join(lanes.a, a);
        lanes.b = upper ? join(b, lanes.b) : join(lanes.b, b);
    }
    return join(lanes.a, lanes.b);
}

INLINE f32 fold_sum(Pair<f32> lanes) {
    return fold(lanes, [](f32 a, f32 b) { return a + b; });
}

// The sum of at(0) .. at(count - 1) from first to last, in f64: a warp reads 32 at a time, and every thread adds all of
// them.
template <typename At> INLINE f64 sum_in_order(u64 count, At at) {
    f64 sum = 0.0;
    for (u64 first = 0; first < count; first += WARP) {
        f64 own = first + lane_index() < count ? at(first + lane_index()) : 0.0;
#pragma unroll
        for (u32 lane = 0; lane < WARP; lane++) sum += shuffle(own, lane);
    }
    return sum;
}

// The larger of two, NaN if either is.
INLINE f32 larger(f32 a, f32 b) { return a > b || a != a ? a : b; }
