//! A kernel made ready: checked once, with what its instructions cost.

use std::sync::Arc;

use crate::counters::Counters;
use crate::program::{AluOp, Kernel, Op, Space, Type};

/// A kernel of a loaded module.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) costs: Vec<Cost>,
    /// The smallest store that may go to shared memory is of `1 << unit_shift` bytes: races are looked for in such units.
    pub(crate) unit_shift: u32,
    /// Whether there are atomics or strong stores that may go to shared memory.
    pub(crate) shared_atomics: bool,
    /// Whether there are strong loads that may.
    pub(crate) strong_loads: bool,
    /// Whether there are strong writes and fences: together they order threads.
    pub(crate) fences: bool,
}

impl Loaded {
    pub(crate) fn new(kernel: Arc<Kernel>) -> Self {
        let costs = kernel.code.iter().map(|instruction| Cost::of(&instruction.op)).collect();
        let smallest = kernel.code.iter().filter_map(|instruction| shared_store_bytes(&instruction.op)).min();
        let unit_shift = smallest.unwrap_or(16).clamp(1, 16).ilog2();
        let shared_atomics = kernel.code.iter().any(|instruction| match &instruction.op {
            Op::Atomic { space, .. } | Op::Store { space, strong: true, .. } => may_be_shared(*space),
            _ => false,
        });
        let strong_loads = kernel.code.iter().any(|instruction| match &instruction.op {
            Op::Load { space, strong: true, .. } => may_be_shared(*space),
            _ => false,
        });
        let fences = shared_atomics && kernel.code.iter().any(|instruction| instruction.op == Op::Fence);
        Self { kernel, costs, unit_shift, shared_atomics, strong_loads, fences }
    }
}

fn may_be_shared(space: Space) -> bool {
    matches!(space, Space::Generic | Space::Shared | Space::SharedCluster)
}

/// The size of a write that may go to shared memory.
fn shared_store_bytes(op: &Op) -> Option<u32> {
    match op {
        Op::Store { space, ty, src, .. } if may_be_shared(*space) => Some(ty.bytes() * src.len() as u32),
        Op::Atomic { space, ty, b, .. } if may_be_shared(*space) => Some(ty.bytes() * b.len().max(1) as u32),
        Op::CopyAsync { bytes, .. } => Some(*bytes),
        Op::StoreMatrix { .. } => Some(16),
        _ => None,
    }
}

/// What one instruction adds to the counters for each lane.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    integer: u8,
    float: u8,
    control: u8,
    flops: u8,
}

impl Cost {
    #[inline]
    pub(crate) fn add_to(self, counters: &mut Counters, lanes: u64) {
        counters.integer += lanes * u64::from(self.integer);
        counters.float += lanes * u64::from(self.float);
        counters.control += lanes * u64::from(self.control);
        counters.scalar_flops += lanes * u64::from(self.flops);
    }

    fn of(op: &Op) -> Self {
        let integer = Self { integer: 1, ..Self::default() };
        let float = |flops| Self { float: 1, flops, ..Self::default() };
        match op {
            Op::Alu { alu, .. } => {
                // Halves work in pairs.
                let pair = if matches!(alu.ty, Type::F16x2 | Type::Bf16x2 | Type::F32x2) { 2 } else { 1 };
                match alu.op {
                    AluOp::Fma => float(2 * pair),
                    AluOp::Add | AluOp::Sub | AluOp::Mul | AluOp::Div | AluOp::Min | AluOp::Max
                        if alu.ty.is_float() =>
                    {
                        float(pair)
                    }
                    AluOp::Min3 | AluOp::Max3 if alu.ty.is_float() => float(2 * pair),
                    AluOp::Rcp | AluOp::Sqrt | AluOp::Rsqrt | AluOp::Sin | AluOp::Cos => float(pair),
                    AluOp::Lg2 | AluOp::Ex2 | AluOp::Tanh => float(pair),
                    AluOp::Abs | AluOp::Neg | AluOp::Copysign | AluOp::Testp(_) | AluOp::Set { .. }
                        if alu.ty.is_float() =>
                    {
                        float(0)
                    }
                    _ => integer,
                }
            }
            Op::Setp { ty, .. } if ty.is_float() => float(0),
            Op::Setp { .. } | Op::Pack { .. } | Op::Unpack { .. } | Op::Cvta { .. } | Op::IsSpace { .. } => integer,
            Op::Branch { .. }
            | Op::BranchIndexed { .. }
            | Op::Call { .. }
            | Op::Return
            | Op::Exit
            | Op::Printf { .. }
            | Op::AssertFail { .. } => Self { control: 1, ..Self::default() },
            _ => Self::default(),
        }
    }
}
