//! The names of a module and its global and constant variables.

use std::collections::HashMap;
use std::sync::Arc;

use super::layout::{Layout, Pointer, initial_bytes, size_of};
use super::names::Symbol;
use crate::error::{Error, Result};
use crate::program::{self, Space};
use crate::syntax::{Linkage, Module, Statement, Variable, VariableSpace};

/// Constant memory of a module.
const MAX_CONST: u64 = 64 << 10;

/// What every kernel of a module looks its names up in.
pub(super) struct ModuleTable<'a> {
    pub(super) tree: &'a Module<'a>,
    pub(super) names: HashMap<&'a str, Symbol>,
    /// `.global` and `.const` variables within functions: by function and statement.
    pub(super) inner: HashMap<(usize, usize), Symbol>,
    pub(super) variables: Vec<program::Variable>,
    /// `.file` numbers, as indices into [`Self::files`].
    pub(super) file_index: HashMap<u32, u32>,
    pub(super) files: Arc<[String]>,
    pub(super) shared_count: u32,
}

impl<'a> ModuleTable<'a> {
    pub(super) fn new(tree: &'a Module<'a>) -> Result<Self> {
        let mut table = ModuleTable {
            tree,
            names: HashMap::new(),
            inner: HashMap::new(),
            variables: Vec::new(),
            file_index: HashMap::new(),
            files: tree.files.iter().map(|(_, path)| (*path).to_owned()).collect(),
            shared_count: 0,
        };
        table.file_index = (0..).zip(&tree.files).map(|(index, (number, _))| (*number, index)).collect();
        table.functions()?;
        table.variables()?;
        Ok(table)
    }

    /// A definition stands before declarations of the same name.
    fn functions(&mut self) -> Result<()> {
        for (index, function) in self.tree.functions.iter().enumerate() {
            match self.names.get(function.name) {
                Some(Symbol::Function(other)) if function.body.is_some() => {
                    if self.tree.functions[*other].body.is_some() {
                        return Err(Error::parse(function.line, format!("{} is defined twice", function.name)));
                    }
                    self.names.insert(function.name, Symbol::Function(index));
                }
                Some(_) => {}
                None => {
                    self.names.insert(function.name, Symbol::Function(index));
                }
            }
        }
        Ok(())
    }

    fn variables(&mut self) -> Result<()> {
        let mut sizes = [Layout::of_module(), Layout::new("constant memory", MAX_CONST)];
        let mut pointers = Vec::new();
        let (externs, definitions): (Vec<_>, Vec<_>) =
            self.tree.variables.iter().partition(|variable| variable.linkage == Linkage::Extern);
        for variable in definitions {
            let symbol = self.variable(variable, variable.name.to_owned(), &mut sizes, &mut pointers)?;
            if self.names.insert(variable.name, symbol).is_some() {
                return Err(Error::parse(variable.line, format!("{} is declared twice", variable.name)));
            }
        }
        for variable in externs {
            self.external(variable)?;
        }
        self.inner_variables(&mut sizes, &mut pointers)?;
        self.relocate(pointers)
    }

    /// `.global` and `.const` variables that functions declare within their braces.
    fn inner_variables(&mut self, sizes: &mut [Layout; 2], pointers: &mut Vec<(u32, Pointer<'a>, u32)>) -> Result<()> {
        for (index, function) in self.tree.functions.iter().enumerate() {
            for (position, statement) in function.body.iter().flatten().enumerate() {
                let Statement::Variable(variable) = statement else { continue };
                if !matches!(variable.space, VariableSpace::Global | VariableSpace::Const) {
                    continue;
                }
                let name = format!("{}.{}", function.name, variable.name);
                let symbol = self.variable(variable, name, sizes, pointers)?;
                self.inner.insert((index, position), symbol);
            }
        }
        Ok(())
    }

    fn variable(
        &mut self,
        variable: &'a Variable<'a>,
        name: String,
        sizes: &mut [Layout; 2],
        pointers: &mut Vec<(u32, Pointer<'a>, u32)>,
    ) -> Result<Symbol> {
        let fail = |what: &str| Error::parse(variable.line, format!("{}: {what}", variable.name));
        let (space, size) = match variable.space {
            VariableSpace::Global => (Space::Global, &mut sizes[0]),
            VariableSpace::Const => (Space::Const, &mut sizes[1]),
            VariableSpace::Shared => return self.shared(variable),
            _ => return Err(fail("only .global, .const and .shared variables stand outside of functions")),
        };
        let (bytes, align) = size_of(variable)?;
        size.place(bytes, align).map_err(|what| fail(&what))?;
        let index = self.variables.len() as u32;
        let (bytes, places) = initial_bytes(variable, bytes)?;
        pointers.extend(places.into_iter().map(|place| (index, place, variable.line)));
        let initialised = variable.init.is_some();
        self.variables.push(program::Variable { name, space, align, bytes, initialised, relocations: Vec::new() });
        Ok(Symbol::Variable(index, space))
    }

    fn shared(&mut self, variable: &Variable<'a>) -> Result<Symbol> {
        self.shared_count += 1;
        shared_symbol(variable, self.shared_count - 1)
    }

    /// An `.extern` that is not defined here must be dynamic shared memory.
    fn external(&mut self, variable: &Variable<'a>) -> Result<()> {
        if self.names.contains_key(variable.name) {
            return Ok(());
        }
        if variable.space != VariableSpace::Shared {
            let name = variable.name;
            return Err(Error::parse(variable.line, format!("{name} is .extern and is not defined in this module")));
        }
        self.names.insert(variable.name, dynamic_symbol(variable));
        Ok(())
    }

    fn relocate(&mut self, pointers: Vec<(u32, Pointer<'a>, u32)>) -> Result<()> {
        for (holder, pointer, line) in pointers {
            let target = match self.names.get(pointer.name) {
                Some(Symbol::Variable(target, _)) => *target,
                Some(Symbol::Function(_)) => {
                    let what = format!("not supported: the address of the function {} in a variable", pointer.name);
                    return Err(Error::parse(line, what));
                }
                Some(_) => {
                    let what = format!("{} has no address outside of a launch", pointer.name);
                    return Err(Error::parse(line, what));
                }
                None => return Err(Error::parse(line, format!("{} is not declared", pointer.name))),
            };
            let relocation = (pointer.offset, target, pointer.addend, pointer.generic);
            self.variables[holder as usize].relocations.push(relocation);
        }
        Ok(())
    }
}

/// A `.shared` variable with a size.
pub(super) fn shared_symbol(variable: &Variable<'_>, key: u32) -> Result<Symbol> {
    if variable.init.is_some() {
        let name = variable.name;
        return Err(Error::parse(variable.line, format!("{name}: shared memory has no value at start")));
    }
    let (bytes, align) = size_of(variable)?;
    Ok(Symbol::Shared { key, bytes: bytes as u32, align: align as u32 })
}

/// An `.extern .shared` array.
pub(super) fn dynamic_symbol(variable: &Variable<'_>) -> Symbol {
    let natural = u64::from(variable.ty.bytes() * variable.vector);
    Symbol::DynamicShared { align: variable.align.unwrap_or(natural) as u32 }
}
