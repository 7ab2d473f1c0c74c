//! The statements of a kernel or of a function that it calls.

use super::builder::Builder;
use super::call::Slot;
use super::layout::size_of;
use super::module::{dynamic_symbol, shared_symbol};
use super::names::{Family, Scope, Symbol};
use super::{Decoded, ops};
use crate::error::{Error, Result};
use crate::program::{Address, Op, Param, Pc, Space, Src};
use crate::syntax::{Function, Instruction, Linkage, Statement, Variable, VariableSpace};

/// The most registers that a function may declare.
const MAX_REGISTERS: u64 = 1 << 20;

impl<'a> Builder<'_, 'a> {
    /// Appends the code of a function; `params` are the kernel's own, if it is one.
    pub(super) fn function(&mut self, index: usize, params: &[Param]) -> Result<()> {
        let function = &self.module.tree.functions[index];
        (self.current, self.line, self.source, self.caller, self.guard) = (index, function.line, None, None, None);
        self.scopes.push(Scope::default());
        let declared =
            if function.entry { self.kernel_params(function, params) } else { self.formal_params(index, function) };
        declared.map_err(|what| Error::parse(function.line, format!("{}: {what}", function.name)))?;
        self.body(index, function.body.as_deref().unwrap_or_default())?;
        self.line = function.end;
        self.guard = None;
        if self.may_fall_through() {
            let returned = self.store_results().and_then(|()| self.emit(Op::Return));
            returned.map_err(|what| Error::parse(function.end, what))?;
        }
        self.close_scope()
    }

    fn kernel_params(&mut self, function: &'a Function<'a>, params: &[Param]) -> Decoded<()> {
        for (variable, param) in function.params.iter().zip(params) {
            if variable.space != VariableSpace::Param {
                return Err(format!("the parameter {} of a kernel is no .param", variable.name));
            }
            self.declare(variable.name, Symbol::Param { offset: param.offset })?;
        }
        Ok(())
    }

    /// Parameters and results of a function lie in the frame; those that are registers are loaded from there.
    fn formal_params(&mut self, index: usize, function: &'a Function<'a>) -> Decoded<()> {
        let formals = self.formals_of(index)?;
        let slots = formals.results.iter().chain(&formals.params);
        for (variable, slot) in function.results.iter().chain(&function.params).zip(slots) {
            self.declare_formal(variable, *slot)?;
        }
        for (variable, slot) in function.params.iter().zip(&formals.params) {
            if let Some(Symbol::Register { first, .. }) = self.find(variable.name) {
                let address = Address { base: Src::Imm(slot.offset.into()), offset: 0 };
                let (ty, reg_bytes) = (variable.ty, variable.ty.bytes());
                self.emit(Op::Load {
                    space: Space::Local,
                    ty,
                    reg_bytes,
                    dst: vec![Some(first)],
                    address,
                    strong: false,
                })?;
            }
        }
        Ok(())
    }

    fn declare_formal(&mut self, variable: &'a Variable<'a>, slot: Slot) -> Decoded<()> {
        let symbol = match variable.space {
            VariableSpace::Reg => Symbol::Register { first: self.new_register(1), ty: variable.ty, count: 1 },
            _ => Symbol::Frame { offset: slot.offset, bytes: slot.bytes, param: true },
        };
        // A parameter that the function does not use may go without a name.
        if variable.name == "_" { Ok(()) } else { self.declare(variable.name, symbol) }
    }

    /// Before a function returns: results that are registers go to the frame.
    pub(super) fn store_results(&mut self) -> Decoded<()> {
        if self.in_kernel() {
            return Ok(());
        }
        let function = &self.module.tree.functions[self.current];
        let formals = self.formals_of(self.current)?;
        for (variable, slot) in function.results.iter().zip(&formals.results) {
            if variable.space != VariableSpace::Reg {
                continue;
            }
            if let Some(Symbol::Register { first, .. }) = self.find(variable.name) {
                let address = Address { base: Src::Imm(slot.offset.into()), offset: 0 };
                self.emit(Op::Store {
                    space: Space::Local,
                    ty: variable.ty,
                    src: vec![Src::Reg(first)],
                    address,
                    strong: false,
                })?;
            }
        }
        Ok(())
    }

    /// Whether control can reach the end of the code so far.
    fn may_fall_through(&self) -> bool {
        let end = self.code.len() as Pc;
        let labelled = self.last_label == Some(end);
        let last = self.code.last().filter(|_| self.entry_of_current() < end);
        let ends = last.is_some_and(|last| {
            last.guard.is_none()
                && matches!(last.op, Op::Return | Op::Exit | Op::Branch { .. } | Op::BranchIndexed { .. })
        });
        labelled || !ends
    }

    fn entry_of_current(&self) -> Pc {
        self.entries.get(&self.current).copied().unwrap_or(0)
    }

    fn body(&mut self, index: usize, statements: &'a [Statement<'a>]) -> Result<()> {
        let mut registers = 0;
        for (position, statement) in statements.iter().enumerate() {
            match statement {
                Statement::Open(_) => self.scopes.push(Scope::default()),
                Statement::Close => self.close_scope()?,
                Statement::Label { line, name } => self.label(*line, name)?,
                Statement::Targets { line, name, labels } => {
                    if self.scope().tables.insert(name, labels).is_some() {
                        return Err(Error::parse(*line, format!("{name} is declared twice")));
                    }
                }
                Statement::Location { at, place, caller } => {
                    let known = |(file, line): (u32, u32)| match self.module.file_index.get(&file) {
                        Some(file) => Ok((*file, line)),
                        None => Err(Error::parse(*at, format!(".loc: no .file {file}"))),
                    };
                    (self.source, self.caller) = (Some(known(*place)?), caller.map(known).transpose()?);
                }
                Statement::Variable(variable) => {
                    self.variable(index, position, variable, &mut registers)
                        .map_err(|what| Error::parse(variable.line, format!("{}: {what}", variable.name)))?;
                }
                Statement::Instruction(instruction) => self.instruction(instruction)?,
            }
        }
        Ok(())
    }

    fn label(&mut self, line: u32, name: &'a str) -> Result<()> {
        let pc = self.code.len() as Pc;
        self.last_label = Some(pc);
        match self.scope().labels.insert(name, pc) {
            None => Ok(()),
            Some(_) => Err(Error::parse(line, format!("the label {name} is there twice"))),
        }
    }

    fn variable(
        &mut self,
        index: usize,
        position: usize,
        variable: &'a Variable<'a>,
        registers: &mut u64,
    ) -> Decoded<()> {
        let place = |this: &mut Self, param| {
            if variable.init.is_some() {
                return Err("only .global and .const variables have a value at start".to_owned());
            }
            let (bytes, align) = size_of(variable).map_err(|error| error.to_string())?;
            let offset = this.frame.place(bytes, align)?;
            Ok(Symbol::Frame { offset, bytes: bytes as u32, param })
        };
        let symbol = match variable.space {
            VariableSpace::Reg => return self.registers(variable, registers),
            VariableSpace::Param => place(self, true)?,
            VariableSpace::Local => place(self, false)?,
            VariableSpace::Shared if variable.linkage == Linkage::Extern => dynamic_symbol(variable),
            VariableSpace::Shared => {
                self.next_shared_key += 1;
                shared_symbol(variable, self.next_shared_key - 1).map_err(|error| error.to_string())?
            }
            VariableSpace::Global | VariableSpace::Const => {
                *self.module.inner.get(&(index, position)).ok_or("no such variable")?
            }
        };
        self.declare(variable.name, symbol)
    }

    fn registers(&mut self, variable: &'a Variable<'a>, registers: &mut u64) -> Decoded<()> {
        if !variable.dims.is_empty() || variable.init.is_some() || variable.align.is_some() {
            return Err("a register is no array and has no value or alignment".into());
        }
        if variable.ty.bytes() > 8 {
            return Err("not supported: registers of 128 bits".into());
        }
        let count = variable.range.unwrap_or(1);
        *registers = registers.saturating_add(count.saturating_mul(variable.vector.into()));
        if *registers > MAX_REGISTERS {
            return Err(format!("a function has at most {MAX_REGISTERS} registers"));
        }
        let (ty, vector) = (variable.ty, variable.vector);
        if variable.range.is_none() {
            let first = self.new_register(vector);
            return self.declare(variable.name, Symbol::Register { first, ty, count: vector });
        }
        match self.scope().families.insert(variable.name, Family { ty, vector, count }) {
            None => Ok(()),
            Some(_) => Err("declared twice".into()),
        }
    }

    fn instruction(&mut self, instruction: &'a Instruction<'a>) -> Result<()> {
        self.line = instruction.line;
        self.guarded(instruction)
            .map_err(|what| Error::parse(instruction.line, format!("{}: {what}", instruction.opcode)))
    }

    fn guarded(&mut self, instruction: &'a Instruction<'a>) -> Decoded<()> {
        self.guard = None;
        if let Some((name, negated)) = instruction.guard {
            self.guard = Some((self.predicate(name)?, negated));
        }
        let op = ops::decode(self, instruction)?;
        self.emit(op)?;
        for op in std::mem::take(&mut self.after) {
            self.emit(op)?;
        }
        Ok(())
    }
}
