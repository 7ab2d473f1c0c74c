//! Whether a program is well formed. The decoder makes no other; a program made by hand may be anything, and must not make
//! the executor panic.

use crate::error::{Error, Result};
use crate::program::{Address, FrameCopy, Instruction, Kernel, Op, Pc, Program, Reg, Space, Src, Type};
use crate::{arith, tensor_core};

/// The most local memory of a thread, as on a GPU.
const MOST_FRAME: u32 = 512 << 10;
/// The most bytes that one access of a lane has.
const MOST_ACCESS: usize = 32;

/// Checks a program.
pub(crate) fn validate(program: &Program) -> Result<()> {
    for variable in &program.variables {
        let wrong = |what: &str| Err(Error::invalid(format!("variable {}: {what}", variable.name)));
        if !matches!(variable.space, Space::Global | Space::Const) {
            return wrong("it is neither global nor constant");
        }
        if !variable.align.is_power_of_two() {
            return wrong("its alignment is no power of two");
        }
        let size = variable.bytes.len() as u64;
        for &(offset, other, ..) in &variable.relocations {
            if size < 8 || offset > size - 8 || other as usize >= program.variables.len() {
                return wrong("a relocation is outside");
            }
        }
    }
    program.kernels.iter().try_for_each(|kernel| Checker { program, kernel }.kernel())
}

struct Checker<'a> {
    program: &'a Program,
    kernel: &'a Kernel,
}

/// What is wrong with an instruction.
type Check = std::result::Result<(), String>;

impl Checker<'_> {
    fn kernel(&self) -> Result<()> {
        let kernel = self.kernel;
        let wrong = |what: String| Err(Error::invalid(format!("kernel {}: {what}", kernel.name)));
        if kernel.lines.len() != kernel.code.len() {
            return wrong(format!("{} instructions, {} lines", kernel.code.len(), kernel.lines.len()));
        }
        if kernel.frame_bytes > MOST_FRAME {
            return wrong(format!("{} bytes of local memory a thread, more than {MOST_FRAME}", kernel.frame_bytes));
        }
        if !kernel.dynamic_shared_align.max(1).is_power_of_two() {
            return wrong("the alignment of dynamic shared memory is no power of two".into());
        }
        for (instruction, line) in kernel.code.iter().zip(&kernel.lines) {
            if let Err(what) = self.instruction(instruction) {
                return wrong(format!("PTX line {}: {what}", line.ptx));
            }
        }
        Ok(())
    }

    fn instruction(&self, instruction: &Instruction) -> Check {
        if let Some((register, _)) = instruction.guard {
            self.reg(register)?;
        }
        match &instruction.op {
            Op::Alu { alu, dst, reg_bytes, a, b, c, d } => {
                self.reg(*dst)?;
                self.width(*reg_bytes)?;
                [a, b, c, d].into_iter().try_for_each(|src| self.src(src))?;
                check(arith::supports(alu), || format!("there is no {:?} of {:?} with these modifiers", alu.op, alu.ty))
            }
            Op::Setp { compare, ty, p, q, a, b, c, .. } => {
                self.maybe(p)?;
                self.maybe(q)?;
                [a, b, c].into_iter().try_for_each(|src| self.src(src))?;
                check(arith::compare_supports(*compare, *ty), || format!("there is no setp.{compare:?} of {ty:?}"))
            }
            Op::Pack { dst, part_bytes, parts } => {
                self.reg(*dst)?;
                self.parts(*part_bytes, parts.len())?;
                self.sources(parts)
            }
            Op::Unpack { part_bytes, parts, src } => {
                self.parts(*part_bytes, parts.len())?;
                parts.iter().try_for_each(|part| self.maybe(part))?;
                self.src(src)
            }
            Op::Load { ty, reg_bytes, dst, address, .. } => {
                self.width(*reg_bytes)?;
                self.access(*ty, dst.len())?;
                dst.iter().try_for_each(|dst| self.maybe(dst))?;
                self.address(address)
            }
            Op::Store { ty, src, address, .. } => {
                self.access(*ty, src.len())?;
                self.sources(src)?;
                self.address(address)
            }
            Op::Cvta { bytes, dst, src, .. } => {
                self.width(*bytes)?;
                self.reg(*dst)?;
                self.src(src)
            }
            Op::IsSpace { dst, src, .. } => {
                self.reg(*dst)?;
                self.src(src)
            }
            Op::Atomic { ty, dst, address, b, c, .. } => {
                self.access(*ty, b.len())?;
                check(ty.bytes() > 1, || format!("there is no atomic of {ty:?}"))?;
                check(dst.as_ref().is_none_or(|dst| dst.len() == b.len()), || "as many results as values".into())?;
                dst.iter().flatten().try_for_each(|dst| self.maybe(dst))?;
                self.sources(b)?;
                self.src(c)?;
                self.address(address)
            }
            Op::Hint
            | Op::Fence
            | Op::CommitGroup
            | Op::WaitGroup(_)
            | Op::Return
            | Op::Exit
            | Op::Trap
            | Op::Yield => Ok(()),
            Op::LoadMatrix { dst, address, .. } => {
                check(matches!(dst.len(), 1 | 2 | 4), || format!("ldmatrix of {} matrices", dst.len()))?;
                self.regs(dst)?;
                self.address(address)
            }
            Op::StoreMatrix { src, address, .. } => {
                check(matches!(src.len(), 1 | 2 | 4), || format!("stmatrix of {} matrices", src.len()))?;
                self.sources(src)?;
                self.address(address)
            }
            Op::MoveMatrix { dst, src } => {
                self.reg(*dst)?;
                self.src(src)
            }
            Op::CopyAsync { dst, src, bytes, src_bytes, ignore } => {
                check(matches!(bytes, 4 | 8 | 16), || format!("cp.async of {bytes} bytes"))?;
                self.address(dst)?;
                self.address(src)?;
                self.src(src_bytes)?;
                ignore.iter().try_for_each(|src| self.src(src))
            }
            Op::Mma { mma, d, a, b, c } => {
                let registers = [a.len(), b.len(), c.len(), d.len()];
                check(tensor_core::fragment_registers(mma) == Some(registers), || {
                    format!("there is no {mma:?} with {registers:?} registers")
                })?;
                self.regs(d)?;
                [a, b, c].into_iter().try_for_each(|sources| self.sources(sources))
            }
            Op::Branch { target, .. } => self.target(*target),
            Op::BranchIndexed { index, targets, .. } => {
                self.src(index)?;
                targets.iter().try_for_each(|&target| self.target(target))
            }
            Op::Call { target, arguments, results } => {
                self.target(*target)?;
                arguments.iter().chain(results).try_for_each(|copy| self.frame_copy(copy))
            }
            Op::Printf { format, arguments, result } => {
                self.frame(*format, 8)?;
                self.frame(*arguments, 8)?;
                result.map_or(Ok(()), |result| self.frame(result, 4))
            }
            Op::AssertFail { message, file, line, function } => {
                [message, file, function].into_iter().try_for_each(|&at| self.frame(at, 8))?;
                self.frame(*line, 4)
            }
            Op::Barrier { id, threads, dst, predicate, .. } => {
                self.src(id)?;
                threads.iter().try_for_each(|src| self.src(src))?;
                self.maybe(dst)?;
                self.src(predicate)
            }
            Op::WarpSync { mask } => self.src(mask),
            Op::Shuffle { dst, in_range, a, b, c, mask, .. } => {
                self.maybe(dst)?;
                self.maybe(in_range)?;
                [a, b, c, mask].into_iter().try_for_each(|src| self.src(src))
            }
            Op::Vote { dst, predicate, mask, .. } => {
                self.reg(*dst)?;
                self.src(predicate)?;
                self.src(mask)
            }
            Op::Match { dst, equal, a, mask, .. } => {
                self.maybe(dst)?;
                self.maybe(equal)?;
                self.src(a)?;
                self.src(mask)
            }
            Op::ActiveMask { dst } => self.reg(*dst),
            Op::Redux { dst, a, mask, .. } => {
                self.reg(*dst)?;
                self.src(a)?;
                self.src(mask)
            }
            Op::Elect { dst, elected, mask } => {
                self.maybe(dst)?;
                self.reg(*elected)?;
                self.src(mask)
            }
        }
    }

    fn reg(&self, register: Reg) -> Check {
        let registers = self.kernel.registers;
        check(register < registers, || format!("register {register} of {registers}"))
    }

    fn maybe(&self, register: &Option<Reg>) -> Check {
        register.map_or(Ok(()), |register| self.reg(register))
    }

    fn regs(&self, registers: &[Reg]) -> Check {
        registers.iter().try_for_each(|&register| self.reg(register))
    }

    fn src(&self, src: &Src) -> Check {
        use crate::program::Special::{ClusterCtaId, ClusterId, ClusterNCtaId, CtaId, NClusterId, NCtaId, NTid, Tid};
        match *src {
            Src::Reg(register) | Src::NotReg(register) => self.reg(register),
            Src::Variable(variable, _) => {
                check((variable as usize) < self.program.variables.len(), || format!("variable {variable}"))
            }
            Src::Special(
                Tid(axis) | NTid(axis) | CtaId(axis) | NCtaId(axis) | ClusterId(axis) | NClusterId(axis)
                | ClusterCtaId(axis) | ClusterNCtaId(axis),
            ) => check(axis < 3, || format!("axis {axis}")),
            Src::Imm(_) | Src::Special(_) | Src::DynamicShared(_) => Ok(()),
        }
    }

    fn sources(&self, sources: &[Src]) -> Check {
        sources.iter().try_for_each(|src| self.src(src))
    }

    fn address(&self, address: &Address) -> Check {
        self.src(&address.base)
    }

    fn width(&self, bytes: u32) -> Check {
        check(matches!(bytes, 1 | 2 | 4 | 8), || format!("a register of {bytes} bytes"))
    }

    fn parts(&self, bytes: u32, count: usize) -> Check {
        check(bytes > 0 && bytes as usize * count <= 8, || format!("{count} parts of {bytes} bytes"))
    }

    fn access(&self, ty: Type, count: usize) -> Check {
        let bytes = ty.bytes() as usize * count;
        let fits = ty.bytes() <= 8 && count.is_power_of_two() && bytes <= MOST_ACCESS;
        check(fits, || format!("an access of {count} values of {ty:?}"))
    }

    fn target(&self, target: Pc) -> Check {
        let instructions = self.kernel.code.len();
        check((target as usize) < instructions, || format!("a branch to instruction {target} of {instructions}"))
    }

    fn frame(&self, offset: u32, bytes: u32) -> Check {
        let size = self.kernel.frame_bytes;
        let fits = offset <= size && bytes <= size - offset && offset.is_multiple_of(bytes.max(1));
        check(fits, || format!("{bytes} bytes at {offset} of a frame of {size}"))
    }

    fn frame_copy(&self, copy: &FrameCopy) -> Check {
        let size = self.kernel.frame_bytes;
        let inside = |at: u32| at <= size && copy.bytes <= size - at;
        check(inside(copy.from) && inside(copy.to), || format!("{copy:?} in a frame of {size}"))
    }
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(what()) }
}
