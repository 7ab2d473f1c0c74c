//! What instructions read: registers, numbers, special registers, addresses.

use super::machine::{Machine, Step, stop};
use super::warp::Warp;
use crate::arith::Lanes;
use crate::error::FaultKind;
use crate::memory::{UNTAGGED, bits};
use crate::program::{Address, Space, Special, Src};

static ZERO: Lanes = [0; 32];

impl Machine<'_> {
    /// The value of an operand in each lane; `scratch` holds it where it is in no register.
    #[inline]
    pub(super) fn source<'w>(&self, warp: &'w Warp, src: &Src, scratch: &'w mut Lanes) -> &'w Lanes {
        match *src {
            Src::Reg(register) => &warp.registers[register as usize],
            Src::Imm(0) => &ZERO,
            Src::Imm(value) => {
                scratch.fill(value);
                scratch
            }
            Src::NotReg(register) => {
                *scratch = warp.registers[register as usize].map(|value| value & 1 ^ 1);
                scratch
            }
            Src::Special(special) => {
                self.special(warp, special, scratch);
                scratch
            }
            Src::Variable(..) | Src::DynamicShared(_) => {
                scratch.fill(self.fixed(src));
                scratch
            }
        }
    }

    /// The value of an operand in one lane.
    pub(super) fn value(&self, warp: &Warp, src: &Src, lane: u32) -> u64 {
        match *src {
            Src::Reg(register) => warp.registers[register as usize][lane as usize],
            Src::NotReg(register) => warp.registers[register as usize][lane as usize] & 1 ^ 1,
            Src::Imm(value) => value,
            Src::Special(_) => self.source(warp, src, &mut [0; 32])[lane as usize],
            Src::Variable(..) | Src::DynamicShared(_) => self.fixed(src),
        }
    }

    /// An address that is known at the launch.
    fn fixed(&self, src: &Src) -> u64 {
        match *src {
            Src::Variable(variable, addend) => {
                (self.run.variables[variable as usize] & UNTAGGED).wrapping_add_signed(addend)
            }
            Src::DynamicShared(addend) => u64::from(self.run.dynamic_offset).wrapping_add_signed(addend),
            _ => 0,
        }
    }

    /// The address of each active lane: in its space for a named space, tagged for the generic one.
    pub(super) fn addresses(&self, warp: &Warp, space: Space, address: &Address, active: u32) -> Step<Lanes> {
        let mut scratch = ZERO;
        let base = self.source(warp, &address.base, &mut scratch);
        let mut out = base.map(|base| base.wrapping_add_signed(address.offset));
        if matches!(space, Space::Generic | Space::Global) {
            return Ok(out);
        }
        if let Some(lane) = bits(active).find(|&lane| base[lane as usize] >> 32 != 0) {
            let base = base[lane as usize];
            let what = format!("address {base:#x} is not one of the {space:?} space (a generic or global address?)");
            return Err(stop(FaultKind::OutOfBounds, lane, what));
        }
        // These spaces are small: 32-bit addresses wrap around as a GPU's do.
        out.iter_mut().for_each(|address| *address &= u64::from(u32::MAX));
        Ok(out)
    }

    /// Fills in a special register.
    fn special(&self, warp: &Warp, special: Special, out: &mut Lanes) {
        let block = &self.blocks[warp.block];
        let run = self.run;
        let axis = |axes: &[u32; 3], axis: u8| u64::from(axes[usize::from(axis)]);
        let lane_mask = |out: &mut Lanes, mask: fn(u32) -> u32| {
            (0..32).for_each(|lane| out[lane as usize] = u64::from(mask(lane)));
        };
        let value = match special {
            Special::Tid(axis) => {
                *out = warp.tid[usize::from(axis)];
                return;
            }
            Special::LaneId => {
                (0..32).for_each(|lane| out[lane] = lane as u64);
                return;
            }
            Special::LaneMaskEq => return lane_mask(out, |lane| 1 << lane),
            Special::LaneMaskLt => return lane_mask(out, |lane| (1 << lane) - 1),
            Special::LaneMaskLe => return lane_mask(out, |lane| ((1 << lane) - 1) | (1 << lane)),
            Special::LaneMaskGt => return lane_mask(out, |lane| !(((1 << lane) - 1) | (1 << lane))),
            Special::LaneMaskGe => return lane_mask(out, |lane| !((1 << lane) - 1)),
            Special::NTid(a) => axis(&run.block, a),
            Special::CtaId(a) => axis(&block.index, a),
            Special::NCtaId(a) => axis(&run.grid, a),
            Special::WarpId => warp.index as u64,
            Special::NWarpId => u64::from(run.threads().div_ceil(32)),
            Special::SmId => self.cluster % u64::from(run.multiprocessors()),
            Special::NSmId => u64::from(run.multiprocessors()),
            Special::GridId => run.launch,
            Special::Clock | Special::GlobalTimerLo => warp.clock & u64::from(u32::MAX),
            Special::ClockHi | Special::GlobalTimerHi => warp.clock >> 32,
            Special::Clock64 | Special::GlobalTimer => warp.clock,
            Special::DynamicSmemSize => u64::from(run.dynamic_shared),
            Special::TotalSmemSize => u64::from(run.shared_bytes),
            Special::ClusterId(a) => axis(&block.index, a) / axis(&run.cluster, a),
            Special::NClusterId(a) => axis(&run.grid, a) / axis(&run.cluster, a),
            Special::ClusterCtaId(a) => axis(&block.index, a) % axis(&run.cluster, a),
            Special::ClusterNCtaId(a) => axis(&run.cluster, a),
            Special::ClusterCtaRank => warp.block as u64,
            Special::ClusterNCtaRank => self.blocks.len() as u64,
            Special::IsExplicitCluster => u64::from(run.explicit_cluster),
        };
        out.fill(value);
    }
}
