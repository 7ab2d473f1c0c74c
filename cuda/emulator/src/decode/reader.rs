//! One instruction while it is decoded: its modifiers, taken one after another in the order that PTX has them, then its
//! operands.

use super::Decoded;
use super::builder::Builder;
use crate::program::{Modifiers, Rounding, Type};
use crate::syntax::{Instruction, Operand};

pub(super) struct Reader<'b, 'm, 'a> {
    pub(super) builder: &'b mut Builder<'m, 'a>,
    /// What is left of the name, without the dot in front.
    rest: &'a str,
    pub(super) operands: &'a [Operand<'a>],
}

impl<'b, 'm, 'a> Reader<'b, 'm, 'a> {
    /// A reader behind the first word of the instruction's name.
    pub(super) fn new(builder: &'b mut Builder<'m, 'a>, instruction: &'a Instruction<'a>) -> (&'a str, Self) {
        let (name, rest) = instruction.opcode.split_once('.').unwrap_or((&instruction.opcode, ""));
        (name, Self { builder, rest, operands: &instruction.operands })
    }

    /// The next modifier, empty at the end.
    pub(super) fn peek(&self) -> &'a str {
        self.rest.split('.').next().unwrap_or_default()
    }

    /// Takes the next modifier, whatever it is.
    pub(super) fn part(&mut self) -> &'a str {
        let (part, rest) = self.rest.split_once('.').unwrap_or((self.rest, ""));
        self.rest = rest;
        part
    }

    /// All modifiers that are left, with dots between.
    pub(super) fn rest(&self) -> &'a str {
        self.rest
    }

    /// Takes the modifier `name`, if it is next.
    pub(super) fn flag(&mut self, name: &str) -> bool {
        let found = self.peek() == name;
        if found {
            self.part();
        }
        found
    }

    /// Takes the modifier `name`, or a chain of them: `sync.aligned`.
    pub(super) fn need(&mut self, chain: &str) -> Decoded<()> {
        for name in chain.split('.') {
            if !self.flag(name) {
                return Err(self.unexpected(&format!(".{name}")));
            }
        }
        Ok(())
    }

    /// Takes the next modifier, if `choose` knows it.
    pub(super) fn choice<T>(&mut self, choose: impl Fn(&str) -> Option<T>) -> Option<T> {
        let chosen = choose(self.peek())?;
        self.part();
        Some(chosen)
    }

    /// Takes the next modifier, which `choose` must know.
    pub(super) fn one<T>(&mut self, what: &str, choose: impl Fn(&str) -> Option<T>) -> Decoded<T> {
        self.choice(choose).ok_or_else(|| self.unexpected(what))
    }

    /// Takes a type, one of `allowed` (names with blanks between).
    pub(super) fn ty(&mut self, allowed: &str) -> Decoded<Type> {
        let known = |name: &str| Type::from_name(name).filter(|_| allowed.split(' ').any(|other| other == name));
        self.choice(known).ok_or_else(|| self.unexpected(&format!("a type of {allowed}")))
    }

    pub(super) fn unexpected(&self, wanted: &str) -> String {
        match self.peek() {
            "" => format!("{wanted} is missing"),
            part => format!("{wanted} is expected, not .{part}"),
        }
    }

    /// Takes `.rn .rz .rm .rp`, if there.
    pub(super) fn rounding(&mut self, modifiers: &mut Modifiers) {
        if let Some(rounding) = self.choice(rounding) {
            (modifiers.rounding, modifiers.explicit_rounding) = (rounding, true);
        }
    }

    /// The target must be at least `sm`.
    pub(super) fn needs(&self, sm: u32) -> Decoded<()> {
        let target = self.builder.module.tree.target;
        if target >= sm { Ok(()) } else { Err(format!("needs .target sm_{sm}, not sm_{target}")) }
    }

    /// Nothing may be left.
    pub(super) fn finish(&self) -> Decoded<()> {
        if !self.rest.is_empty() {
            return Err(format!("unexpected .{}", self.peek()));
        }
        match self.operands.len() {
            0 => Ok(()),
            more => Err(format!("{more} operands too many")),
        }
    }
}

/// `illegal(flag, "ftz")?`: the modifier was given, and must not be.
pub(super) fn illegal(given: bool, name: &str) -> Decoded<()> {
    if given { Err(format!(".{name} does not go with this type or these modifiers")) } else { Ok(()) }
}

/// The rounding modes of floats.
pub(super) fn rounding(name: &str) -> Option<Rounding> {
    Some(match name {
        "rn" => Rounding::Rn,
        "rz" => Rounding::Rz,
        "rm" => Rounding::Rm,
        "rp" => Rounding::Rp,
        _ => return None,
    })
}
