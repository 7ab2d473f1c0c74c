//! Instructions and their operands.

use std::borrow::Cow;

use super::lexer::Kind;
use super::parser::Parser;
use super::tree::{Address, Instruction, Operand};
use crate::error::Result;

impl<'a> Parser<'a> {
    /// An instruction, behind its name's first word.
    pub(super) fn instruction(
        &mut self,
        line: u32,
        guard: Option<(&'a str, bool)>,
        name: &'a str,
    ) -> Result<Instruction<'a>> {
        let mut opcode = Cow::Borrowed(name);
        while self.peek().kind == Kind::Dot {
            opcode.to_mut().push_str(self.advance()?.text);
        }
        let mut operands = Vec::new();
        if !self.peek().is(";") {
            operands.push(self.operand()?);
            while self.accept(",")? {
                operands.push(self.operand()?);
            }
        }
        self.expect(";")?;
        Ok(Instruction { line, guard, opcode, operands })
    }

    fn operand(&mut self) -> Result<Operand<'a>> {
        let token = *self.peek();
        match (token.kind, token.text) {
            (Kind::Word, name) if name != "WARP_SZ" => self.named(),
            (Kind::Punct, "[") => self.address(),
            (Kind::Punct, "{") => Ok(Operand::Vector(self.elements("{", "}")?)),
            (Kind::Punct, "(") => self.list_or_number(),
            (Kind::Punct, "!") => self.not(),
            _ => Ok(Operand::Number(self.expression()?)),
        }
    }

    /// `name`, `name+constant`, `name|name`.
    fn named(&mut self) -> Result<Operand<'a>> {
        let name = self.name()?;
        if self.accept("|")? {
            return Ok(Operand::Pair(name, self.name()?));
        }
        if self.peek().is("+") || self.peek().is("-") {
            return Ok(Operand::Sum(name, self.integer()?));
        }
        Ok(Operand::Name(name))
    }

    fn not(&mut self) -> Result<Operand<'a>> {
        let before = self.clone_position();
        self.expect("!")?;
        if self.peek().kind == Kind::Word && self.peek().text != "WARP_SZ" {
            return Ok(Operand::Not(self.name()?));
        }
        self.return_to(before);
        Ok(Operand::Number(self.expression()?))
    }

    /// `(a, b)` of a call, or a constant in parentheses.
    fn list_or_number(&mut self) -> Result<Operand<'a>> {
        let before = self.clone_position();
        self.expect("(")?;
        let is_list = self.peek().is(")") || (self.peek().kind == Kind::Word && self.peek().text != "WARP_SZ");
        self.return_to(before);
        if is_list { Ok(Operand::List(self.elements("(", ")")?)) } else { self.number_or_list() }
    }

    /// `(4, %r1)` begins like the constant `(4)`.
    fn number_or_list(&mut self) -> Result<Operand<'a>> {
        let before = self.clone_position();
        match self.expression() {
            Ok(number) => Ok(Operand::Number(number)),
            Err(_) => {
                self.return_to(before);
                Ok(Operand::List(self.elements("(", ")")?))
            }
        }
    }

    /// The elements of a vector or list; none of them is one itself.
    fn elements(&mut self, open: &str, close: &str) -> Result<Vec<Operand<'a>>> {
        self.expect(open)?;
        let mut elements = Vec::new();
        if self.accept(close)? {
            return Ok(elements);
        }
        loop {
            let element = match self.peek().text {
                "[" | "{" | "(" => return Err(self.unexpected("a register or a constant")),
                _ => self.operand()?,
            };
            elements.push(element);
            if !self.accept(",")? {
                self.expect(close)?;
                return Ok(elements);
            }
        }
    }

    /// `[base]`, `[base+offset]`, `[number]`, `[base, {x, y}]`, each perhaps with `.unified` behind.
    fn address(&mut self) -> Result<Operand<'a>> {
        self.expect("[")?;
        let named = self.peek().kind == Kind::Word && self.peek().text != "WARP_SZ";
        let base = if named { Some(self.name()?) } else { None };
        let offset = match base {
            Some(_) if !self.peek().is("+") && !self.peek().is("-") => 0,
            _ => self.integer()?,
        };
        let coordinates = if self.accept(",")? { Some(self.elements("{", "}")?) } else { None };
        self.expect("]")?;
        let unified = self.accept_dot(".unified")?;
        Ok(Operand::Address(Address { base, offset, coordinates, unified }))
    }
}
