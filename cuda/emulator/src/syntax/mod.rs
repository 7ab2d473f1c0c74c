//! PTX text into a syntax tree ([`Module`]): what is said where, with names and modifiers as text. [`crate::decode`] gives it
//! meaning. Nothing here recurses deeper than a fixed limit, and memory is linear in the text.

mod declaration;
mod instruction;
mod lexer;
mod number;
mod parser;
mod tree;

pub use parser::parse;
pub use tree::{
    Address, Function, Init, Instruction, Linkage, Module, Number, Operand, Statement, Variable, VariableSpace,
};
