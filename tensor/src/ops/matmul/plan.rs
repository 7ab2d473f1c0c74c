//! How tensor cores go about a product: the table of tiles, and the model that chooses among them.
//!
//! The model counts the cycles of one multiprocessor, because all of them do the same. A block makes a tile of `rows` x `columns`
//! results, 32 steps along k (a stage) at a time. A stage takes as long as the slowest of what it does:
//!
//! - `rows columns 32` multiply-adds, at [`Machine::fmas`] a cycle;
//! - `(rows + columns) 64` bytes, which come from L2 at [`Machine::fill`] a cycle;
//! - each warp's `(warp_rows + warp_columns) 64` bytes read from shared memory, and the stage written, at 128 a cycle;
//! - while it has the multiprocessor for itself, [`LATENCY`] for all stages but one of those in flight.
//!
//! A block begins with a latency before the first stage is there, and ends with its results, 4 bytes each, going to memory at `fill` a
//! cycle. A multiprocessor gets `ceil(blocks / multiprocessors)` blocks, and holds `resident` of them at a time: so a shape
//! that leaves most of them idle is best cut along k too. What that costs is the parts written and read again, 8 bytes a result and
//! part, and one more launch.
//!
//! All tiles give the same bits; cutting along k does not. So the choice depends on shapes only, and is made for one nominal
//! machine: a product has the same bits on every GPU whose tensor cores add in the same order.

/// Steps along k of a stage, for elements of 16 bits; parts of k are multiples of it.
pub(crate) const DEPTH: usize = 32;
/// Cycles from asking for what is in memory until it is in shared memory.
const LATENCY: f64 = 800.0;
/// Cycles of a launch more, and of the gap between two.
const LAUNCH: f64 = 4000.0;
/// Stages that a part of k has at least.
const LEAST_STAGES: usize = 4;
/// In how many parts k may be cut.
const SPLITS: [usize; 8] = [1, 2, 3, 4, 6, 8, 12, 16];

/// The tiles that `cuda/kernels/matmul.cu` has kernels for: rows x columns of the product that a block makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tile {
    /// 64 x 64, for operands that lie in any way.
    Small,
    /// 128 x 128, for operands whose every 16 bytes can be copied at once.
    Large,
    /// 128 x 256, likewise.
    Wide,
}

impl Tile {
    /// All of them.
    pub const ALL: [Tile; 3] = [Tile::Small, Tile::Large, Tile::Wide];

    /// Rows of a tile.
    #[must_use]
    pub const fn rows(self) -> usize {
        if matches!(self, Tile::Small) { 64 } else { 128 }
    }

    /// Columns of a tile.
    #[must_use]
    pub const fn columns(self) -> usize {
        match self {
            Tile::Small => 64,
            Tile::Large => 128,
            Tile::Wide => 256,
        }
    }

    /// Rows, and columns, of the part that a warp makes.
    const fn warp(self) -> usize {
        if matches!(self, Tile::Small) { 32 } else { 64 }
    }

    const fn warps(self) -> usize {
        self.rows() * self.columns() / (self.warp() * self.warp())
    }

    pub(crate) const fn threads(self) -> u32 {
        self.warps() as u32 * crate::cuda::WARP
    }

    /// Stages in flight.
    const fn stages(self) -> usize {
        if matches!(self, Tile::Large) { 3 } else { 4 }
    }

    /// Blocks that a multiprocessor holds, by registers.
    const fn resident(self) -> usize {
        match self {
            Tile::Small => 3,
            Tile::Large => 2,
            Tile::Wide => 1,
        }
    }

    /// Bytes of shared memory that a block takes.
    pub(crate) const fn shared_bytes(self) -> u32 {
        (self.stages() * self.stage_bytes()) as u32
    }

    const fn stage_bytes(self) -> usize {
        (self.rows() + self.columns()) * DEPTH * 2
    }

    /// Tiles of a product.
    pub(crate) const fn count(self, m: usize, n: usize) -> usize {
        m.div_ceil(self.rows()) * n.div_ceil(self.columns())
    }
}

/// How to go about one product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What a block makes.
    pub tile: Tile,
    /// In how many parts k is cut; their results are added up in order.
    pub splits: usize,
}

/// The sizes of a product, and what its operands allow.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Matrices.
    pub batches: usize,
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// What is added up.
    pub k: usize,
    /// Whether tiles larger than [`Tile::Small`] can take the operands.
    pub aligned: bool,
}

/// What the model knows of a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Multiply-adds of 16-bit numbers that one does a cycle by `mma.sync`.
    pub fmas: f64,
    /// Bytes that reach one from L2 a cycle.
    pub fill: f64,
}

impl Machine {
    /// H100 SXM: 2048 multiply-adds, of which `mma.sync` reaches 0.65; 5.5 TB/s from L2 at 1.75 GHz. Products are planned for it.
    pub const NOMINAL: Machine = Machine { multiprocessors: 132, fmas: 1330.0, fill: 24.0 };

    /// The cycles that a product takes by a plan.
    #[must_use]
    pub fn cycles(&self, sizes: &Sizes, plan: Plan) -> f64 {
        let Plan { tile, splits } = plan;
        let depth = part(sizes.k, splits);
        let splits = sizes.k.div_ceil(depth.max(1)).max(1);
        let blocks = sizes.batches * splits * tile.count(sizes.m, sizes.n);
        let mine = blocks.div_ceil(self.multiprocessors);
        let rounds = mine.div_ceil(tile.resident()) as f64;
        let stages = depth.div_ceil(DEPTH) as f64;
        let alone = LATENCY / (tile.stages() - 1) as f64;
        let results = (tile.rows() * tile.columns() * 4) as f64 / self.fill;
        let product =
            stages * (mine as f64 * self.stage(tile)).max(rounds * alone) + rounds * LATENCY + mine as f64 * results;
        if splits == 1 {
            return product;
        }
        let bytes = (sizes.batches * sizes.m * sizes.n * splits * 8) as f64;
        product + LAUNCH + bytes / (self.fill * self.multiprocessors as f64)
    }

    /// The cycles of a stage, when there is something to do all the time.
    fn stage(&self, tile: Tile) -> f64 {
        let multiply = (tile.rows() * tile.columns() * DEPTH) as f64 / self.fmas;
        let fill = tile.stage_bytes() as f64 / self.fill;
        let shared = (tile.warps() * 2 * tile.warp() * DEPTH * 2 + tile.stage_bytes()) as f64 / 128.0;
        multiply.max(fill).max(shared)
    }

    /// The fastest plan by the model; of equals the first.
    #[must_use]
    pub fn plan(&self, sizes: &Sizes) -> Plan {
        let tiles = if sizes.aligned { &Tile::ALL[..] } else { &Tile::ALL[..1] };
        let most = (sizes.k / (LEAST_STAGES * DEPTH)).max(1);
        let plans = tiles.iter().flat_map(|&tile| SPLITS.map(|splits| Plan { tile, splits }));
        let mut best = Plan { tile: Tile::Small, splits: 1 };
        let mut least = self.cycles(sizes, best);
        for plan in plans.filter(|plan| plan.splits <= most) {
            let cycles = self.cycles(sizes, plan);
            if cycles < least {
                (best, least) = (plan, cycles);
            }
        }
        best
    }
}

/// Steps along k of each of `splits` parts but the last, which may have fewer; rounded up, so that fewer parts may do.
pub(crate) fn part(k: usize, splits: usize) -> usize {
    k.div_ceil(splits).next_multiple_of(DEPTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A100: Machine = Machine { multiprocessors: 108, fmas: 1024.0, fill: 36.0 };
    const RTX_4090: Machine = Machine { multiprocessors: 128, fmas: 512.0, fill: 24.0 };

    fn sizes(m: usize, n: usize, k: usize) -> Sizes {
        Sizes { batches: 1, m, n, k, aligned: true }
    }

    fn plan(m: usize, n: usize, k: usize) -> (Tile, usize) {
        let Plan { tile, splits } = Machine::NOMINAL.plan(&sizes(m, n, k));
        (tile, splits)
    }

    #[test]
    fn shapes_of_models() {
        // Projections of 4096 tokens fill the machine with the largest tile; few tokens take smaller ones, or parts of k.
        assert_eq!(plan(4096, 4096, 4096), (Tile::Wide, 1));
        assert_eq!(plan(4096, 14336, 4096), (Tile::Wide, 1));
        assert_eq!(plan(64, 4096, 4096).0, Tile::Small);
        assert!(plan(64, 64, 16384).1 > 4);
        // As the oracle's cases have it.
        assert!(plan(10, 16, 1024).1 > 1);
        // An adapter's narrow product: parts of k, because there are few tiles.
        assert_eq!(plan(2048, 16, 4096).0, Tile::Small);
        assert!(plan(2048, 16, 4096).1 > 1);
        // Nothing to cut.
        assert_eq!(plan(64, 64, 32), (Tile::Small, 1));
        assert_eq!(plan(1, 1, 0), (Tile::Small, 1));
    }

    #[test]
    fn what_cannot_be_copied_takes_small_tiles() {
        let sizes = Sizes { aligned: false, ..sizes(4096, 4096, 4096) };
        assert_eq!(Machine::NOMINAL.plan(&sizes).tile, Tile::Small);
    }

    /// What is best for the nominal machine costs others less than twice their best: a wave of blocks more, where they have fewer
    /// multiprocessors.
    #[test]
    fn other_machines() {
        for machine in [A100, RTX_4090] {
            for m in [16, 64, 200, 512, 2048, 4096] {
                for n in [16, 64, 1024, 4096, 14336] {
                    for k in [64, 512, 4096, 14336] {
                        let sizes = sizes(m, n, k);
                        let best = machine.cycles(&sizes, machine.plan(&sizes));
                        let got = machine.cycles(&sizes, Machine::NOMINAL.plan(&sizes));
                        assert!(got <= 2.0 * best, "{machine:?} {sizes:?}: {got} cycles, not {best}");
                    }
                }
            }
        }
    }

    /// Parts of k are whole stages, and there are no more than asked for.
    #[test]
    fn parts() {
        for k in (0..2000).step_by(7) {
            for splits in SPLITS.into_iter().filter(|s| s * LEAST_STAGES * DEPTH <= k) {
                let part = part(k, splits);
                assert!(part.is_multiple_of(DEPTH) && k.div_ceil(part) <= splits, "{k} in {splits}: {part}");
            }
        }
    }

    /// Shared memory of every tile fits the smallest multiprocessor, 99 KiB a block on sm_86 and sm_89.
    #[test]
    fn tiles_fit() {
        let bytes = Tile::ALL.map(Tile::shared_bytes);
        assert_eq!(bytes, [32 << 10, 48 << 10, 96 << 10]);
        assert_eq!(Tile::ALL.map(Tile::threads), [128, 128, 256]);
    }
}
