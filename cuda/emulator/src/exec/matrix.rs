//! The tensor cores' instructions: `ldmatrix`, `stmatrix`, `movmatrix`, `mma`.

use super::machine::{Machine, Step, stop};
use super::shared::{How, Place};
use super::warp::Warp;
use crate::arith::Lanes;
use crate::error::FaultKind::{IllegalInstruction, OutOfBounds};
use crate::memory::{UNTAGGED, bits, ones, space_of};
use crate::program::{Address, Op, Pc, Space, Src};
use crate::tensor_core;

/// Bytes of a row of an 8x8 matrix of 16-bit values.
const ROW: u32 = 16;

impl Machine<'_> {
    /// An instruction of the whole warp over matrices.
    pub(super) fn matrix(&mut self, warp: &mut Warp, pc: Pc, lanes: u32) -> Step {
        let op = self.op(pc);
        if lanes != u32::MAX {
            let lane = (!lanes).trailing_zeros();
            let why = if warp.exited >> lane & 1 == 1 { "has exited" } else { "is not in the block" };
            let what = format!("{} needs all 32 lanes; lane {lane} {why}", super::collective::name(op));
            return Err(stop(IllegalInstruction, Self::first(lanes), what));
        }
        match op {
            Op::LoadMatrix { space, transpose, dst, address } => {
                let rows = 8 * dst.len() as u32;
                let places = self.matrix_rows(warp, How::Load, *space, address, rows)?;
                self.touch(warp, pc, How::Load, &places, ROW, ones(rows))?;
                self.check_shared_written(How::Load, &places, ROW, ones(rows))?;
                self.count_rows(&places, rows, true);
                for (matrix, register) in dst.iter().enumerate() {
                    let rows = std::array::from_fn(|row| {
                        let Place { block, offset } = places[matrix * 8 + row];
                        let shared = &self.blocks[block].shared;
                        std::array::from_fn(|column| shared.load(offset + 2 * column as u32, 2) as u16)
                    });
                    warp.registers[*register as usize] = tensor_core::spread(&rows, *transpose);
                }
            }
            Op::StoreMatrix { space, transpose, src, address } => {
                let rows = 8 * src.len() as u32;
                let places = self.matrix_rows(warp, How::Store, *space, address, rows)?;
                self.touch(warp, pc, How::Store, &places, ROW, ones(rows))?;
                self.count_rows(&places, rows, false);
                for (matrix, src) in src.iter().enumerate() {
                    let values = tensor_core::gather(self.source(warp, src, &mut [0; 32]), *transpose);
                    for (row, values) in values.iter().enumerate() {
                        let Place { block, offset } = places[matrix * 8 + row];
                        let shared = &mut self.blocks[block].shared;
                        for (column, &value) in (0..).zip(values) {
                            shared.store(offset + 2 * column, 2, u64::from(value));
                        }
                        shared.mark(offset, ROW);
                    }
                }
            }
            Op::MoveMatrix { dst, src } => {
                let rows = tensor_core::gather(self.source(warp, src, &mut [0; 32]), false);
                warp.registers[*dst as usize] = tensor_core::spread(&rows, true);
            }
            Op::Mma { mma, d, a, b, c } => {
                let operand = |sources: &[Src]| -> Vec<Lanes> {
                    let mut scratch = [0; 32];
                    sources.iter().map(|src| *self.source(warp, src, &mut scratch)).collect()
                };
                let (a, b, c) = (operand(a), operand(b), operand(c));
                let mut out = vec![[0; 32]; d.len()];
                tensor_core::mma(mma, &a, &b, &c, &mut out);
                for (register, values) in d.iter().zip(out) {
                    warp.registers[*register as usize] = values;
                }
                let [m, n, k] = [mma.m, mma.n, mma.k].map(u64::from);
                self.counters.tensor_flops += 2 * m * n * k * tensor_core::groups(mma) as u64;
            }
            _ => {}
        }
        Ok(())
    }

    /// Where the rows lie: lane `i` names row `i`.
    fn matrix_rows(&self, warp: &Warp, how: How, space: Space, address: &Address, rows: u32) -> Step<[Place; 32]> {
        let active = ones(rows);
        let mut addresses = self.addresses(warp, space, address, active)?;
        if space == Space::Generic {
            let outside = |&lane: &u32| space_of(addresses[lane as usize]) != Some(Space::SharedCluster);
            if let Some(lane) = bits(active).find(outside) {
                let what = format!("a matrix row at {:#x}, which is not in shared memory", addresses[lane as usize]);
                return Err(stop(OutOfBounds, lane, what));
            }
            addresses = addresses.map(|address| address & UNTAGGED);
        }
        self.shared_places(warp, how, &addresses, ROW, active)
    }

    /// Counts a request for rows of matrices: eight rows at a time.
    fn count_rows(&mut self, places: &[Place; 32], rows: u32, reads: bool) {
        self.count_shared(&places.map(|place| u64::from(place.offset)), ROW, ones(rows), reads);
    }
}
