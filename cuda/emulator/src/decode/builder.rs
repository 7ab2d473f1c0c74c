//! One kernel while it grows: its code, registers, frame and shared memory, and the names in sight.

use std::collections::HashMap;

use super::Decoded;
use super::call::Formals;
use super::layout::Layout;
use super::module::ModuleTable;
use super::names::{Pending, Scope, Symbol};
use crate::error::{Error, Result};
use crate::program::{Instruction, Kernel, Line, Op, Param, Pc, Reg};
use crate::syntax::Function;

/// Bytes of kernel parameters.
const MAX_PARAMS: u64 = 32764;
/// Bytes of a thread's frame: what CUDA allows for local memory.
const MAX_FRAME: u64 = 512 << 10;
/// Bytes of static shared memory: more is only to be had as dynamic.
const MAX_SHARED: u64 = 48 << 10;
/// The least alignment of dynamic shared memory.
const DYNAMIC_SHARED_ALIGN: u32 = 16;

pub(super) struct Builder<'m, 'a> {
    pub(super) module: &'m ModuleTable<'a>,
    pub(super) code: Vec<Instruction>,
    pub(super) lines: Vec<Line>,
    limit: usize,
    registers: u32,
    pub(super) frame: Layout,
    shared: Layout,
    /// Offsets of the shared variables that have been named, by key.
    shared_places: HashMap<u32, u32>,
    pub(super) next_shared_key: u32,
    shared_variables: Vec<(String, u32, u32)>,
    dynamic_align: u32,
    pub(super) scopes: Vec<Scope<'a>>,
    /// The line of the statement that is being decoded.
    pub(super) line: u32,
    pub(super) source: Option<(u32, u32)>,
    pub(super) caller: Option<(u32, u32)>,
    pub(super) guard: Option<(Reg, bool)>,
    /// What follows the instruction that is being decoded.
    pub(super) after: Vec<Op>,
    /// The place of the last label.
    pub(super) last_label: Option<Pc>,
    /// The function that is being decoded.
    pub(super) current: usize,
    /// Functions that are called, where their parameters lie, and where they begin, once they are decoded.
    pub(super) formals: HashMap<usize, Formals>,
    pub(super) entries: HashMap<usize, Pc>,
    /// Functions in the order in which they are first called.
    pub(super) callees: Vec<usize>,
    /// Calls to be resolved: (instruction, caller, callee, line).
    pub(super) calls: Vec<(Pc, usize, usize, u32)>,
}

impl<'m, 'a> Builder<'m, 'a> {
    /// A builder of one kernel of at most `limit` instructions.
    pub(super) fn new(module: &'m ModuleTable<'a>, limit: usize) -> Self {
        Self {
            module,
            code: Vec::new(),
            lines: Vec::new(),
            limit,
            registers: 0,
            frame: Layout::new("the local memory of a thread", MAX_FRAME),
            shared: Layout::new("static shared memory", MAX_SHARED),
            shared_places: HashMap::new(),
            next_shared_key: module.shared_count,
            shared_variables: Vec::new(),
            dynamic_align: DYNAMIC_SHARED_ALIGN,
            scopes: Vec::new(),
            line: 0,
            source: None,
            caller: None,
            guard: None,
            after: Vec::new(),
            last_label: None,
            current: 0,
            formals: HashMap::new(),
            entries: HashMap::new(),
            callees: Vec::new(),
            calls: Vec::new(),
        }
    }

    /// Decodes the kernel `index` of the syntax tree and everything that it calls.
    pub(super) fn kernel(mut self, index: usize) -> Result<Kernel> {
        let tree = self.module.tree;
        let function = &tree.functions[index];
        let (params, param_bytes) = self.params(function)?;
        let mut functions = vec![(0, function.name.to_owned())];
        self.function(index, &params)?;
        let mut next = 0;
        while let Some(&callee) = self.callees.get(next) {
            let start = self.code.len() as Pc;
            functions.push((start, tree.functions[callee].name.to_owned()));
            self.entries.insert(callee, start);
            self.function(callee, &[])?;
            next += 1;
        }
        self.link_calls()?;
        Ok(Kernel {
            name: function.name.to_owned(),
            code: self.code,
            lines: self.lines,
            files: self.module.files.clone(),
            registers: self.registers,
            params,
            param_bytes,
            frame_bytes: self.frame.bytes(),
            shared_bytes: self.shared.bytes(),
            dynamic_shared_align: self.dynamic_align,
            shared_variables: self.shared_variables,
            max_threads: function.max_threads,
            required_threads: function.required_threads,
            required_cluster: function.required_cluster,
            functions,
        })
    }

    /// The kernel's parameters, as C lays out a struct.
    fn params(&self, function: &Function<'a>) -> Result<(Vec<Param>, u32)> {
        let mut layout = Layout::new("the parameters of a kernel", MAX_PARAMS);
        let params = function.params.iter().map(|variable| {
            let (bytes, align) = super::layout::size_of(variable)?;
            let offset = layout.place(bytes, align).map_err(|what| Error::parse(variable.line, what))?;
            let ty = variable.ty;
            Ok(Param { name: variable.name.to_owned(), offset, bytes: bytes as u32, align: align as u32, ty })
        });
        let params = params.collect::<Result<Vec<_>>>()?;
        Ok((params, layout.bytes()))
    }

    /// Adds an instruction under the guard of the present statement.
    pub(super) fn emit(&mut self, op: Op) -> Decoded<()> {
        if self.code.len() >= self.limit {
            return Err(
                "the program has too many instructions (functions count once for each kernel that calls them)".into()
            );
        }
        self.code.push(Instruction { guard: self.guard, op });
        self.lines.push(Line { ptx: self.line, source: self.source, caller: self.caller });
        Ok(())
    }

    /// A new register, or `count` in a row.
    pub(super) fn new_register(&mut self, count: u32) -> Reg {
        let first = self.registers;
        self.registers += count;
        first
    }

    /// What `name` stands for here.
    pub(super) fn find(&mut self, name: &'a str) -> Option<Symbol> {
        for index in (0..self.scopes.len()).rev() {
            if let Some(symbol) = self.scopes[index].names.get(name) {
                return Some(*symbol);
            }
            if let Some(family) = self.scopes[index].family_of(name) {
                let first = self.new_register(family.vector);
                let symbol = Symbol::Register { first, ty: family.ty, count: family.vector };
                self.scopes[index].names.insert(name, symbol);
                return Some(symbol);
            }
        }
        self.module.names.get(name).copied()
    }

    /// The offset of a shared variable, placed at its first use.
    pub(super) fn shared_offset(&mut self, name: &str, key: u32, bytes: u32, align: u32) -> Decoded<u32> {
        if let Some(&offset) = self.shared_places.get(&key) {
            return Ok(offset);
        }
        let offset = self.shared.place(bytes.into(), align.into())?;
        self.shared_places.insert(key, offset);
        self.shared_variables.push((name.to_owned(), offset, bytes));
        Ok(offset)
    }

    /// Notes that dynamic shared memory is used.
    pub(super) fn use_dynamic_shared(&mut self, align: u32) {
        self.dynamic_align = self.dynamic_align.max(align);
    }

    /// Declares `name` in the innermost block.
    pub(super) fn declare(&mut self, name: &'a str, symbol: Symbol) -> Decoded<()> {
        match self.scope().names.insert(name, symbol) {
            None => Ok(()),
            Some(_) => Err(format!("{name} is declared twice")),
        }
    }

    pub(super) fn scope(&mut self) -> &mut Scope<'a> {
        self.scopes.last_mut().expect("a scope is open while a function is decoded")
    }

    /// Resolves what the innermost block can, and hands the rest to the block around it.
    pub(super) fn close_scope(&mut self) -> Result<()> {
        let Some(scope) = self.scopes.pop() else { return Ok(()) };
        for pending in scope.pending {
            match (scope.labels.get(pending.label), self.scopes.last_mut()) {
                (Some(&target), _) => self.set_target(&pending, target),
                (None, Some(outer)) => outer.pending.push(pending),
                (None, None) => {
                    return Err(Error::parse(pending.line, format!("the label {} is not in sight", pending.label)));
                }
            }
        }
        Ok(())
    }

    fn set_target(&mut self, pending: &Pending<'a>, to: Pc) {
        match &mut self.code[pending.pc as usize].op {
            Op::Branch { target, .. } => *target = to,
            Op::BranchIndexed { targets, .. } => targets[pending.entry] = to,
            _ => {}
        }
    }

    /// Notes that the next instruction branches to `label`.
    pub(super) fn branch_to(&mut self, label: &'a str, entry: usize) {
        let pending = Pending { pc: self.code.len() as Pc, entry, label, line: self.line };
        self.scope().pending.push(pending);
    }

    /// The labels of a `.branchtargets`.
    pub(super) fn table(&self, name: &str) -> Option<&'a [&'a str]> {
        self.scopes.iter().rev().find_map(|scope| scope.tables.get(name).copied())
    }

    /// Whether the kernel itself is being decoded, no function that it calls.
    pub(super) fn in_kernel(&self) -> bool {
        self.module.tree.functions[self.current].entry
    }
}
