//! What a launch did, counted: the figures of a profiler that a GPU's speed depends on.

use std::ops::AddAssign;

/// Counts of one launch. "Lane" counts add 1 for each thread that took part, "warp" counts 1 for the whole warp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Instructions, once a warp.
    pub warp_instructions: u64,
    /// Instructions, once a thread.
    pub lane_instructions: u64,
    /// Integer, logic, move and conversion instructions, once a thread.
    pub integer: u64,
    /// Scalar floating-point instructions, once a thread.
    pub float: u64,
    /// Branches, calls, returns, once a thread.
    pub control: u64,
    /// Branches at which the threads of a warp went different ways.
    pub divergent_branches: u64,
    /// Lanes that were idle while their warp executed (32 minus the active, summed).
    pub idle_lanes: u64,
    /// Barriers waited at, once a warp.
    pub barriers: u64,
    /// Floating-point operations by scalar instructions (a fused multiply-add counts 2).
    pub scalar_flops: u64,
    /// Floating-point or integer operations by tensor-core instructions (2 m n k each).
    pub tensor_flops: u64,
    /// Requests to global memory, once a warp instruction.
    pub global_requests: u64,
    /// 32-byte sectors that these requests touch.
    pub global_sectors: u64,
    /// Bytes that threads read from global memory.
    pub global_read_bytes: u64,
    /// Bytes that threads wrote to global memory.
    pub global_write_bytes: u64,
    /// Requests to shared memory, once a warp instruction.
    pub shared_requests: u64,
    /// Passes that those requests take beyond the least for their width: 32 banks of 4 bytes, equal words broadcast.
    pub bank_conflicts: u64,
    /// Bytes that threads read from shared memory.
    pub shared_read_bytes: u64,
    /// Bytes that threads wrote to shared memory.
    pub shared_write_bytes: u64,
    /// Bytes moved through local memory (spills, arrays that are indexed at run time).
    pub local_bytes: u64,
    /// Atomic operations and reductions, once a thread.
    pub atomics: u64,
    /// Bytes that asynchronous copies moved.
    pub async_bytes: u64,
}

impl Counters {
    /// Sectors of 32 bytes a request to global memory: 4 is the least for 4-byte values of a full warp.
    #[must_use]
    pub fn sectors_per_request(&self) -> f64 {
        self.global_sectors as f64 / self.global_requests.max(1) as f64
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.warp_instructions += other.warp_instructions;
        self.lane_instructions += other.lane_instructions;
        self.integer += other.integer;
        self.float += other.float;
        self.control += other.control;
        self.divergent_branches += other.divergent_branches;
        self.idle_lanes += other.idle_lanes;
        self.barriers += other.barriers;
        self.scalar_flops += other.scalar_flops;
        self.tensor_flops += other.tensor_flops;
        self.global_requests += other.global_requests;
        self.global_sectors += other.global_sectors;
        self.global_read_bytes += other.global_read_bytes;
        self.global_write_bytes += other.global_write_bytes;
        self.shared_requests += other.shared_requests;
        self.bank_conflicts += other.bank_conflicts;
        self.shared_read_bytes += other.shared_read_bytes;
        self.shared_write_bytes += other.shared_write_bytes;
        self.local_bytes += other.local_bytes;
        self.atomics += other.atomics;
        self.async_bytes += other.async_bytes;
    }
}
