//! The syntax tree into the flat [`Program`]: names become numbers, every kernel gets its own copy of what it calls, every
//! instruction is checked against the modifiers and types that PTX has for it.
//!
//! # What is decided here
//! - A function that a kernel calls is copied once into that kernel, with its own registers and its own place in the
//!   thread's frame. Arguments and results pass through the frame. Recursion and indirect calls are errors.
//! - Registers are numbered as they are used, so `%r<1000>` costs what is used of it.
//! - Shared variables get offsets in the order in which the kernel's code first names them; those that it never names get
//!   none.
//! - Cache, eviction and prefetch modifiers, memory order and scope are checked for being legal and then dropped: the virtual
//!   GPU's memory is sequentially consistent. `createpolicy` gives the policy 0.
//! - What Hopper adds and what has no [`Op`](crate::program::Op) yet is an error that begins with "not supported yet".

mod builder;
mod call;
mod function;
mod layout;
mod module;
mod names;
mod operands;
mod ops;
mod reader;
mod special;

use std::sync::Arc;

use crate::error::Result;
use crate::program::Program;
use crate::syntax;

/// The most instructions of a program, the copies of functions counted.
const MAX_INSTRUCTIONS: usize = 1 << 20;

/// A decoder's result; the instruction's name and line are added to its error by whoever called it.
type Decoded<T = crate::program::Op> = std::result::Result<T, String>;

impl Program {
    /// Reads PTX text.
    ///
    /// # Errors
    /// [`Error::Parse`](crate::error::Error::Parse) with the line: text that is no PTX, an instruction or a combination of modifiers and types that
    /// PTX does not have or that is not supported, a name that is not declared, recursion, a variable that is too large.
    pub fn parse(ptx: &str) -> Result<Program> {
        let tree = syntax::parse(ptx)?;
        let module = module::ModuleTable::new(&tree)?;
        let mut kernels = Vec::new();
        let mut instructions = 0;
        for (index, function) in tree.functions.iter().enumerate() {
            if !function.entry || function.body.is_none() {
                continue;
            }
            let kernel = builder::Builder::new(&module, MAX_INSTRUCTIONS - instructions).kernel(index)?;
            instructions += kernel.code.len();
            kernels.push(Arc::new(kernel));
        }
        Ok(Program {
            version: tree.version,
            target: tree.target,
            arch_specific: tree.arch_specific,
            variables: module.variables,
            kernels,
        })
    }
}
