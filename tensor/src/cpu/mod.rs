//! CPU kernels as functions over slices: they know nothing of tensors, tapes or models.
//!
//! Every kernel takes a [`Cpu`]: which SIMD level to use and which threads to run on. What is added up together is cut by shape only,
//! never by the number of threads, so results do not depend on it.

pub mod adamw;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
pub(crate) mod convert;
pub mod gemm;
pub mod ggml;
pub mod math;
pub mod nf4;
pub mod peak;
pub mod reduce;
pub mod sample;
mod scratch;
mod shared;
mod simd;
mod team;

pub use simd::{Level, Simd};
pub(crate) use simd::{fetch, simd};

use shared::Pieces;
use std::sync::Arc;
use team::Team;

/// How many rows of `width` elements to hand to one task: enough to be worth it, a number that depends on the shape
/// alone.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (1usize << 14).div_ceil(width.max(1)).max(4)
}

/// Elements from the first to the last of `rows` runs of `len`, `stride` apart; `None` where that is more than all memory.
pub(crate) fn span(rows: usize, stride: usize, len: usize) -> Option<usize> {
    rows.saturating_sub(1).checked_mul(stride)?.checked_add(len)
}

/// Where and how CPU kernels run: a SIMD level and a thread pool. Cheap to clone.
#[derive(Clone)]
pub struct Cpu {
    simd: Simd,
    threads: usize,
    /// `None` runs everything on the calling thread.
    pool: Option<Arc<rayon::ThreadPool>>,
    /// The pool's threads, where there are several.
    team: Option<Arc<Team>>,
    scratch: Arc<scratch::Pool>,
}

impl Cpu {
    /// Kernels on the calling thread alone.
    #[must_use]
    pub fn single(simd: Simd) -> Self {
        Cpu { simd, threads: 1, pool: None, team: None, scratch: Arc::default() }
    }

    /// Kernels on `pool`. The pool is never rayon's global one unless the caller passes that.
    #[must_use]
    pub fn on_pool(simd: Simd, pool: Arc<rayon::ThreadPool>) -> Self {
        let threads = pool.current_num_threads();
        let team = (threads > 1).then(|| Arc::new(Team::new(pool.clone())));
        Cpu { simd, threads, pool: Some(pool), team, scratch: Arc::default() }
    }

    /// The same level and memory on the calling thread alone: for work too small to hand out.
    pub(crate) fn on_caller(&self) -> Self {
        Cpu { simd: self.simd, threads: 1, pool: None, team: None, scratch: self.scratch.clone() }
    }

    /// The SIMD level of every kernel.
    #[must_use]
    pub fn simd(&self) -> Simd {
        self.simd
    }

    /// How many threads run tasks. For sizes of scratch, and for how many columns one task takes: what is added up together must not
    /// depend on it.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// `len` floats of working memory on a cache line, with whatever contents; goes back when dropped.
    pub(crate) fn scratch(&self, len: usize) -> scratch::Buffer {
        self.scratch.take(len)
    }

    /// As [`Cpu::scratch`], of another element.
    pub(crate) fn scratch_of<T: bytemuck::Pod>(&self, len: usize) -> scratch::Buffer<T> {
        self.scratch.take(len)
    }

    /// Bytes of working memory that kernels have taken so far: packed tiles of operands, partial sums, rows being
    /// converted. They are kept for the next call until [`crate::Device::release_cache`], and are not part of [`crate::Device::memory`].
    #[must_use]
    pub fn scratch_bytes(&self) -> usize {
        self.scratch.bytes()
    }

    /// Gives back the working memory that no kernel uses just now.
    pub(crate) fn release_scratch(&self) {
        self.scratch.release();
    }

    /// Runs `f` inside the pool: on one of its threads, so that all of its parallel loops are between the same threads.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) if pool.current_thread_index().is_none() => pool.install(f),
            _ => f(),
        }
    }

    /// Calls `f(i)` once for every `i < tasks`, on any thread, in any order.
    pub fn run(&self, tasks: usize, f: impl Fn(usize) + Sync + Send) {
        self.each(tasks, &f);
    }

    /// As [`Cpu::run`]: the only parallel loop of this crate, over a `dyn`, because rayon's code for one loop takes longer
    /// to compile than most kernels, and a call through a pointer is nothing beside a task.
    fn each(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        use rayon::prelude::*;
        let Some(team) = self.team.as_ref().filter(|_| tasks > 1) else { return (0..tasks).for_each(f) };
        if team.run(tasks, f) {
            return;
        }
        // Within a loop, or beside one of another caller. A thread of the pool shares its tasks with others that have none; any other
        // thread would wait for them, and does them itself.
        match &self.pool {
            Some(pool) if pool.current_thread_index().is_some() => {
                (0..tasks).into_par_iter().with_max_len(1).for_each(f);
            }
            _ => (0..tasks).for_each(f),
        }
    }

    /// Cuts `out` into pieces of `len` elements (the last may be shorter) and calls `f(i, piece)` on
    /// each. `len` must come from the shape, not from the number of threads.
    pub fn chunks<T: Send>(&self, out: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
        let pieces = Pieces::new(out, len);
        // SAFETY: every piece is asked for once.
        self.run(pieces.count(), |i| f(i, unsafe { pieces.get(i) }));
    }

    /// As [`Cpu::chunks`], over two outputs cut side by side into the same number of pieces.
    pub fn chunks2<A: Send, B: Send>(
        &self,
        (a, a_len): (&mut [A], usize),
        (b, b_len): (&mut [B], usize),
        f: impl Fn(usize, &mut [A], &mut [B]) + Sync + Send,
    ) {
        let (a, b) = (Pieces::new(a, a_len), Pieces::new(b, b_len));
        assert_eq!(a.count(), b.count(), "chunks2");
        // SAFETY: every piece is asked for once.
        self.run(a.count(), |i| f(i, unsafe { a.get(i) }, unsafe { b.get(i) }));
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cpu({:?}, {} threads)", self.simd.level(), self.threads)
    }
}
