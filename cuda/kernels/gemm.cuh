// Products of tiles on tensor cores: operands come through shared memory a stage at a time, sums stay in registers, and an
// epilogue makes the result of them.
#pragma once
#include "mma.cuh"

namespace gemm {

// ---- What a block works on.

// One matrix operand, of any layout.
template <typename T> struct Matrix {
    const T* start;
    u64 outer;  // from row to row of a, from column to column of b
    u64 along;  // from one k to the next
    u32 size;   // rows of a, columns of b
};

// Rows times columns of a block's tile and of a warp's part of it, and how many stages its operands are loaded ahead.
template <u32 ROWS_, u32 COLUMNS_, u32 WARP_ROWS_, u32 WARP_COLUMNS_, u32 STAGES_> struct Shape {
    static constexpr u32 ROWS = ROWS_, COLUMNS = COLUMNS_, WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_;
    static constexpr u32 STAGES = STAGES_;
    static constexpr u32 ACROSS = COLUMNS / WARP_COLUMNS, THREADS = ROWS / WARP_ROWS * ACROSS * WARP;
    static constexpr u32 I = WARP_ROWS / 16, J = WARP_COLUMNS / 8;

    // The first row and column of this thread's warp.
    static INLINE u32 warp_row() { return threadIdx.x / WARP / ACROSS * WARP_ROWS; }
    static INLINE u32 warp_column() { return threadIdx.x / WARP % ACROSS * WARP_COLUMNS; }
};
// The table of tiles; tensor/src/ops/matmul/plan.rs has the same, and says when each is taken.
using Small = Shape<64, 64, 32, 32, 4>;
using Large = Shape<128, 128, 64, 64, 3>;
using Wide = Shape<128, 256, 64, 64, 4>;

// A thread's sums: of each 16 x 8 part two neighbours of row g and of row g + 8 (mma.cuh).
template <typename S> using Sums = f32[S::I][S::J][4];

// Where a block works: its tile's first row and column, its batch, and its part of k.
struct Place {
    u32 row, column;
    u64 batch, split;
};

// Blocks in order fill bands of so many rows of tiles, column by column: those that run at a time share what they read.
constexpr u32 BAND = 16;

template <typename S> INLINE Place place_of_block(u32 batches, u32 m, u32 n) {
    u32 down = (m + S::ROWS - 1) / S::ROWS, across = (n + S::COLUMNS - 1) / S::COLUMNS;
    u32 tile = blockIdx.x % (down * across), outer = blockIdx.x / (down * across);
    u32 band = tile / (BAND * across) * BAND, height = min(BAND, down - band), at = tile - band * across;
    return {(band + at % height) * S::ROWS, at / height * S::COLUMNS, outer % batches, outer / batches};
}

// ---- A stage of an operand in shared memory: SIDE rows (or columns) times 64 bytes along k.

// 16 bytes, which move in one access.
struct alignas(16) Chunk {
    u32 word[4];
};
// Chunks of a row along k.
constexpr u32 CHUNKS = 4;
template <typename T> constexpr u32 PER_CHUNK = sizeof(Chunk) / sizeof(T);
// Steps along k of a stage.
template <typename T> constexpr u32 DEPTH = CHUNKS * PER_CHUNK<T>;

// A stage is where it begins in here, in bytes.
alignas(1024) extern __shared__ Chunk shared[];

// Elements of a chunk are neighbours along k or, `across`, along the side: as they are in global memory. Chunks keep
// that order, but each is moved within its line, 64 or 2 SIDE bytes, such that eight that are read or written at a time
// lie in different banks: eight rows of one chunk along k, or eight steps of one chunk across.
template <u32 SIDE> struct Layout {
    static constexpr u32 LINE = SIDE / 8;
    const bool across;
    const u32 lane;  // shared address, in a stage at 0, of what this thread names of the first fragment

    // For fragments from row (or column) `first` on, a multiple of 32.
    INLINE Layout(bool across, u32 first) : across(across), lane(mma::shared_address(shared) + of_lane(across, first)) {}

    static INLINE u32 of_lane(bool across, u32 first) {
        u32 row = lane_index() % 8, second = lane_index() / 8 % 2, fourth = lane_index() / 16;
        u32 lying = (first + row + 8 * fourth) * CHUNKS + (second ^ row / 2);
        u32 standing = (row + 8 * second) * LINE + (fourth ^ row ^ first / 8);
        return sizeof(Chunk) * (across ? standing : lying);
    }

    // Where chunk i lies, in chunks.
    INLINE u32 place(u32 i) const { return across ? i ^ i / LINE % 8 : i ^ i / 8 % CHUNKS; }

    // Fragment i, of 16 rows, and half the depth, two chunks: the 8 x 8 matrices of rows 0-7 and both chunks, then of rows
    // 8-15. Elements of 32 bits can only lie along k.
    INLINE void load(u32 (&out)[4], u32 stage, u32 i, u32 half) const {
        // An even chunk is added within a line by turning its bits over, and lines by plain addition.
        u32 lines = across ? half * 16 * LINE : i * 16 * CHUNKS, chunks = 2 * (across ? i : half);
        mma::load_matrices(out, (lane + stage + sizeof(Chunk) * lines) ^ sizeof(Chunk) * chunks, across);
    }
};

// How many elements from `at` on lie before `end`, at most N.
template <u32 N> INLINE u32 rest(u32 at, u32 end) { return at < end ? min(end - at, N) : 0; }

// ---- Sources of stages. begin(stage, k, end) starts to load the elements of steps k .. k + DEPTH, zero from `end` on, and
// finish(stage) has written them, but for copies that are waited for.

// Where chunk i of a stage begins: its row (or column) and its step, counted from the stage's.
struct Start {
    u32 i, step;
};
template <typename T, u32 SIDE> INLINE Start start_of(u32 chunk, bool across) {
    constexpr u32 N = PER_CHUNK<T>, LINE = SIDE / N;
    return across ? Start{chunk % LINE * N, chunk / LINE} : Start{chunk / CHUNKS, chunk % CHUNKS * N};
}

// A matrix of 16-bit elements whose chunks are whole in global memory and aligned there. A thread copies every THREADS-th
// chunk: of several rows at one place along k, or of several steps at one place across.
template <typename T, u32 SIDE, u32 THREADS> struct Direct {
    const Layout<SIDE> layout;
    const T* start;  // the thread's first chunk at k = 0
    u64 along, hop;  // from step to step, and to the thread's next chunk
    u32 to;          // its place in a stage, as a shared address
    u32 step;        // its first step
    u32 far, far_end, far_hop, near;

    INLINE Direct(const Matrix<T>& x, u32 first, bool across, u32 warp_first) : layout(across, warp_first) {
        static_assert(THREADS / Layout<SIDE>::LINE % 8 == 0, "chunks that are THREADS apart move alike");
        Start at = start_of<T, SIDE>(threadIdx.x, across);
        u32 i = first + at.i;
        start = x.start + i * x.outer + at.step * x.along;
        far_hop = THREADS / (across ? Layout<SIDE>::LINE : CHUNKS);
        along = x.along, hop = far_hop * (across ? x.along : x.outer);
        to = mma::shared_address(shared + layout.place(threadIdx.x));
        step = at.step, far = across ? at.step : i, far_end = x.size, near = rest<8>(i, x.size);
    }

    INLINE void begin(u32 stage, u32 k, u32 end) {
        const T* from = start + k * along;
        // Rows (or steps) that there are, and what there is of each.
        u32 first = layout.across ? k + far : far, last = layout.across ? end : far_end;
        u32 count = layout.across ? near : rest<8>(k + step, end);
#pragma unroll
        for (u32 t = 0; t < SIDE * CHUNKS / THREADS; t++) {
            u32 bytes = first + t * far_hop < last ? count * sizeof(T) : 0;
            mma::copy_async(to + stage + t * THREADS * sizeof(Chunk), from + t * hop, bytes);
        }
    }

    INLINE void finish(u32) {}
};

// N elements from `from` on, `apart` from each other, of which `count` are there; zero for the others.
template <u32 N, typename X> INLINE void gather(const X* from, u64 apart, u32 count, X (&out)[N]) {
    if (apart == 1 && count == N && aligned<4>(from)) {
#pragma unroll
        for (u32 e = 0; e < N; e += 4) {
            Vec<X, 4> four = *reinterpret_cast<const Vec<X, 4>*>(from + e);
#pragma unroll
            for (u32 d = 0; d < 4; d++) out[e + d] = four.at[d];
        }
    } else {
#pragma unroll
        for (u32 e = 0; e < N; e++) out[e] = e < count ? from[e * apart] : X();
    }
}

// x as a T.
template <typename T, typename X> struct Rounded {
    static INLINE T of(X x) { return from_f32<T>(to_f32(x)); }
};
template <typename T> struct Rounded<T, T> {
    static INLINE T of(T x) { return x; }
};

// A matrix of any layout, of elements X which are rounded to T: they pass through registers while a stage before is
// multiplied.
template <typename X, typename T, u32 SIDE, u32 THREADS> struct Gathered {
    static constexpr u32 N = PER_CHUNK<T>, MINE = SIDE * CHUNKS / THREADS;
    const Layout<SIDE> layout;
    const Matrix<X> x;
    const u32 first;
    const bool across;
    X held[MINE][N];

    INLINE Gathered(const Matrix<X>& x, u32 first, bool across, u32 warp_first)
        : layout(across && sizeof(T) == 2, warp_first), x(x), first(first), across(across) {}

    // The chunk that is this thread's t-th. Where the layout cannot follow global memory, neighbouring threads take
    // neighbouring rows.
    INLINE u32 chunk(u32 t) const {
        u32 own = t * THREADS + threadIdx.x;
        return across && !layout.across ? own % SIDE * CHUNKS + own / SIDE : own;
    }

    INLINE void load(u32 t, u32 k, u32 end, X (&out)[N]) const {
        Start at = start_of<T, SIDE>(chunk(t), layout.across);
        u32 i = first + at.i, step = k + at.step, sides = rest<N>(i, x.size), steps = rest<N>(step, end);
        u32 count = layout.across ? (steps > 0 ? sides : 0) : (sides > 0 ? steps : 0);
        gather(x.start + (count > 0 ? i * x.outer + step * x.along : 0), layout.across ? x.outer : x.along, count, out);
    }

    INLINE void store(u32 stage, u32 t, const X (&values)[N]) const {
        Vec<T, N> rounded;
#pragma unroll
        for (u32 e = 0; e < N; e++) rounded.at[e] = Rounded<T, X>::of(values[e]);
        *reinterpret_cast<Vec<T, N>*>(shared + stage / sizeof(Chunk) + layout.place(chunk(t))) = rounded;
    }

    INLINE void begin(u32, u32 k, u32 end) {
#pragma unroll
        for (u32 t = 0; t < MINE; t++) load(t, k, end, held[t]);
    }

    INLINE void finish(u32 stage) {
#pragma unroll
        for (u32 t = 0; t < MINE; t++) store(stage, t, held[t]);
    }
};

// The same, at once: no registers are held for what is rare.
template <typename T, u32 SIDE, u32 THREADS> struct AtOnce : Gathered<T, T, SIDE, THREADS> {
    using Gathered<T, T, SIDE, THREADS>::Gathered;

    INLINE void begin(u32 stage, u32 k, u32 end) {
#pragma unroll 1
        for (u32 t = 0; t < SIDE * CHUNKS / THREADS; t++) {
            T chunk[PER_CHUNK<T>];
            this->load(t, k, end, chunk);
            this->store(stage, t, chunk);
        }
    }

    INLINE void finish(u32) {}
};

// ---- The product.

// sums += the 64 bytes along k of a stage: two fragments.
template <typename T, typename S>
INLINE void multiply_stage(Sums<S>& sums, u32 a, const Layout<S::ROWS>& a_layout, u32 b,
                           const Layout<S::COLUMNS>& b_layout) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 left[S::I][4];
#pragma unroll
        for (u32 i = 0; i < S::I; i++) {
            u32 part[4];
            a_layout.load(part, a, i, half);
            left[i][0] = part[0], left[i][1] = part[2], left[i][2] = part[1], left[i][3] = part[3];
        }
#pragma unroll
        for (u32 j = 0; j < S::J; j += 2) {
            u32 part[4];
            b_layout.load(part, b, j / 2, half);
            u32 right[2][2] = {{part[0], part[1]}, {part[2], part[3]}};
#pragma unroll
            for (u32 i = 0; i < S::I; i++) {
#pragma unroll
                for (u32 d = 0; d < 2; d++) mma::multiply(sums[i][j + d], left[i], right[d], T());
            }
        }
    }
}

// sums += a b for steps k .. end, a stage after the other, in a ring of S::STAGES. All of shared memory is free behind it.
template <typename T, typename S, typename A, typename B>
INLINE void multiply(Sums<S>& sums, A& a, B& b, u32 k, u32 end) {
    constexpr u32 OF_A = S::ROWS * CHUNKS * sizeof(Chunk), SIZE = OF_A + S::COLUMNS * CHUNKS * sizeof(Chunk);
    constexpr u32 RING = S::STAGES * SIZE;
    u32 stages = k < end ? (end - k + DEPTH<T> - 1) / DEPTH<T> : 0;
    // The next stage to load, and where it goes.
    u32 next = 0, to = 0;
    auto begin = [&] {
        if (next < stages) {
            a.begin(to, k + next * DEPTH<T>, end);
            b.begin(to + OF_A, k + next * DEPTH<T>, end);
        }
        // Perhaps an empty group: so each stage is one.
        mma::commit();
    };
    auto finish = [&] {
        if (next < stages) {
            a.finish(to);
            b.finish(to + OF_A);
        }
        next++, to = to + SIZE == RING ? 0 : to + SIZE;
    };
#pragma unroll 1
    while (next < S::STAGES - 1) {
        begin();
        finish();
    }
    u32 at = 0;
#pragma unroll 1
    for (u32 s = 0; s < stages; s++) {
        // Stage s is there, and stage s - 1 has been read by all: its place takes the next.
        mma::wait<S::STAGES - 2>();
        __syncthreads();
        begin();
        multiply_stage<T, S>(sums, at, a.layout, at + OF_A, b.layout);
        finish();
        at = at + SIZE == RING ? 0 : at + SIZE;
    }
    mma::wait<0>();
    __syncthreads();
}

// ---- The epilogue: out = alpha a b + scale u v + bias + out.

// What becomes of a product. u is [rows, rank], contiguous; v has strides; bias is one a column, or null.
struct Epilogue {
    u32 accumulate;  // whether out is added
    f32 alpha;
    const f32* bias;
    const f32 *u, *v;
    u64 v_n, v_r;
    u32 rank;  // 0: no u and v
    f32 scale;
};

// Steps along the rank whose u and v lie in shared memory at a time.
constexpr u32 RANKS = 16;

// A part of u or v: to[r][i] = factor x(first + i, r_first + r), zero where x ends. Two words of padding: threads that read
// along the rank write to different banks.
template <u32 SIDE, u32 THREADS>
INLINE void load_ranks(f32* to, const Matrix<f32>& x, u32 first, u32 r_first, u32 rank, f32 factor) {
    bool along = x.along <= x.outer;
#pragma unroll 1
    for (u32 t = threadIdx.x; t < SIDE * RANKS; t += THREADS) {
        u32 i = along ? t / RANKS : t % SIDE, r = along ? t % RANKS : t / SIDE;
        bool inside = first + i < x.size && r_first + r < rank;
        to[r * (SIDE + 2) + i] = inside ? factor * x.start[(first + i) * x.outer + (r_first + r) * x.along] : 0.0f;
    }
}

template <typename S>
INLINE void add_low_rank(Sums<S>& sums, const Epilogue& e, const Place& place, u32 m, u32 n) {
    Matrix<f32> u = {e.u, e.rank, 1, m}, v = {e.v, e.v_n, e.v_r, n};
    f32 *us = reinterpret_cast<f32*>(shared), *vs = us + RANKS * (S::ROWS + 2);
    u32 row = S::warp_row() + lane_index() / 4, column = S::warp_column() + lane_index() % 4 * 2;
#pragma unroll 1
    for (u32 first = 0; first < e.rank; first += RANKS) {
        load_ranks<S::ROWS, S::THREADS>(us, u, place.row, first, e.rank, e.scale);
        load_ranks<S::COLUMNS, S::THREADS>(vs, v, place.column, first, e.rank, 1.0f);
        __syncthreads();
#pragma unroll 1
        for (u32 r = 0; r < min(RANKS, e.rank - first); r++) {
            const f32 *left = us + r * (S::ROWS + 2) + row, *right = vs + r * (S::COLUMNS + 2) + column;
            f32 x[S::I][2];
#pragma unroll
            for (u32 i = 0; i < S::I; i++) x[i][0] = left[16 * i], x[i][1] = left[16 * i + 8];
#pragma unroll
            for (u32 j = 0; j < S::J; j++) {
                Vec<f32, 2> y = *reinterpret_cast<const Vec<f32, 2>*>(right + 8 * j);
#pragma unroll
                for (u32 i = 0; i < S::I; i++) {
#pragma unroll
                    for (u32 part = 0; part < 4; part++) {
                        sums[i][j][part] = fmaf(x[i][part / 2], y.at[part % 2], sums[i][j][part]);
                    }
                }
            }
        }
        __syncthreads();
    }
}

// Four neighbours of a row of the result, of which `count` are there, but for alpha and the low-rank term.
template <typename C> INLINE void store_four(C* out, const Epilogue& e, u32 column, u32 count, f32 (&values)[4]) {
    f32 more[4];
    if (e.bias) {
        read4(e.bias + column, 0, count, more);
#pragma unroll
        for (u32 i = 0; i < 4; i++) values[i] += more[i];
    }
    if (e.accumulate) {
        read4(out, 0, count, more);
#pragma unroll
        for (u32 i = 0; i < 4; i++) values[i] += more[i];
    }
    write4(out, 0, count, values);
}

// A matrix for results: of elements C, or, if `wide`, of f32. A run-time choice, because it costs nothing here.
template <typename C> struct Out {
    C* start;
    u64 pitch;  // from row to row
    bool wide;

    INLINE void store_four(u64 row, u32 column, const Epilogue& e, u32 n, f32 (&values)[4]) const {
        u64 at = row * pitch + column;
        if (wide) {
            gemm::store_four(reinterpret_cast<f32*>(start) + at, e, column, n - column, values);
        } else {
            gemm::store_four(start + at, e, column, n - column, values);
        }
    }
};

// Sums to out. Each warp turns 16 rows at a time in shared memory, so that its threads store whole runs of a row.
template <typename S, typename C>
INLINE void store(Sums<S>& sums, const Epilogue& e, const Out<C>& out, const Place& place, u32 m, u32 n) {
#pragma unroll
    for (u32 i = 0; i < S::I; i++) {
#pragma unroll
        for (u32 j = 0; j < S::J; j++) {
#pragma unroll
            for (u32 part = 0; part < 4; part++) sums[i][j][part] *= e.alpha;
        }
    }
    if (e.rank > 0) add_low_rank<S>(sums, e, place, m, n);
    // Eight words of padding: the eight rows of a part then lie in different banks.
    constexpr u32 PITCH = S::WARP_COLUMNS + 8, FOURS = S::WARP_COLUMNS / 4;
    f32* strip = reinterpret_cast<f32*>(shared) + threadIdx.x / WARP * 16 * PITCH;
    auto pairs = reinterpret_cast<Vec<f32, 2>*>(strip) + lane_index() / 4 * (PITCH / 2) + lane_index() % 4;
#pragma unroll
    for (u32 i = 0; i < S::I; i++) {
        __syncwarp();
#pragma unroll
        for (u32 j = 0; j < S::J; j++) {
            pairs[4 * j] = {sums[i][j][0], sums[i][j][1]};
            pairs[4 * PITCH + 4 * j] = {sums[i][j][2], sums[i][j][3]};
        }
        __syncwarp();
#pragma unroll 1
        for (u32 t = lane_index(); t < 16 * FOURS; t += WARP) {
            u32 row = place.row + S::warp_row() + 16 * i + t / FOURS;
            u32 column = place.column + S::warp_column() + t % FOURS * 4;
            if (row >= m || column >= n) continue;
            Vec<f32, 4> four = *reinterpret_cast<const Vec<f32, 4>*>(strip + t / FOURS * PITCH + t % FOURS * 4);
            out.store_four(row, column, e, n, four.at);
        }
    }
}

}  // namespace gemm
