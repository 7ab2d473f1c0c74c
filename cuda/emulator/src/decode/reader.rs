//! One instruction while it is decoded: its modifiers and its operands, until none is left.
//!
//! Modifiers may stand in any order, as for the assembler (and as compilers have come to write them: `atom.global.gpu.acq_rel`
//! for the manual's `atom.acq_rel.gpu.global`); only types, of which there may be several, keep theirs.

use super::Decoded;
use super::builder::Builder;
use crate::program::{Modifiers, Rounding, Type};
use crate::syntax::{Instruction, Operand};

/// The most modifiers of an instruction.
const MAX_PARTS: usize = 16;

pub(super) struct Reader<'b, 'm, 'a> {
    pub(super) builder: &'b mut Builder<'m, 'a>,
    /// The modifiers that are left, in `parts[..count]`.
    parts: [&'a str; MAX_PARTS],
    count: usize,
    pub(super) operands: &'a [Operand<'a>],
}

impl<'b, 'm, 'a> Reader<'b, 'm, 'a> {
    /// A reader behind the first word of the instruction's name.
    pub(super) fn new(builder: &'b mut Builder<'m, 'a>, instruction: &'a Instruction<'a>) -> Decoded<(&'a str, Self)> {
        let mut words = instruction.opcode.split('.');
        let name = words.next().unwrap_or_default();
        let (mut parts, mut count) = ([""; MAX_PARTS], 0);
        for word in words {
            *parts.get_mut(count).ok_or_else(|| format!("more than {MAX_PARTS} modifiers"))? = word;
            count += 1;
        }
        Ok((name, Self { builder, parts, count, operands: &instruction.operands }))
    }

    /// The modifiers that have not been taken.
    pub(super) fn parts(&self) -> &[&'a str] {
        &self.parts[..self.count]
    }

    fn take(&mut self, index: usize) {
        self.parts.copy_within(index + 1..self.count, index);
        self.count -= 1;
    }

    /// Takes the modifier `name`, if there.
    pub(super) fn flag(&mut self, name: &str) -> bool {
        self.choice(|part| (part == name).then_some(())).is_some()
    }

    /// Takes the first modifier that is one of `names` (with blanks between), if there.
    pub(super) fn one_of(&mut self, names: &str) -> bool {
        self.choice(|part| names.split(' ').any(|name| name == part).then_some(())).is_some()
    }

    /// Takes the modifier `name`, or several: `sync.aligned`.
    pub(super) fn need(&mut self, names: &str) -> Decoded<()> {
        for name in names.split('.') {
            if !self.flag(name) {
                return Err(format!(".{name} is missing"));
            }
        }
        Ok(())
    }

    /// Takes the first modifier that `choose` knows.
    pub(super) fn choice<T>(&mut self, choose: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (index, chosen) =
            self.parts().iter().enumerate().find_map(|(index, part)| choose(part).map(|chosen| (index, chosen)))?;
        self.take(index);
        Some(chosen)
    }

    /// Takes the first modifier that `choose` knows; there must be one.
    pub(super) fn one<T>(&mut self, what: &str, choose: impl Fn(&str) -> Option<T>) -> Decoded<T> {
        self.choice(choose).ok_or_else(|| self.missing(what))
    }

    /// Takes the next type, one of `allowed` (names with blanks between).
    pub(super) fn ty(&mut self, allowed: &str) -> Decoded<Type> {
        let next = self.parts().iter().position(|part| Type::from_name(part).is_some());
        let ty = next.map(|index| (index, self.parts[index]));
        match ty {
            Some((index, name)) if allowed.split(' ').any(|other| other == name) => {
                self.take(index);
                Type::from_name(name).ok_or_else(|| self.missing("a type"))
            }
            Some((_, name)) => Err(format!("a type of {allowed} is expected, not .{name}")),
            None => Err(self.missing(&format!("a type of {allowed}"))),
        }
    }

    /// The error that `wanted` is not among the modifiers.
    pub(super) fn missing(&self, wanted: &str) -> String {
        match self.parts().first() {
            Some(part) => format!("{wanted} is expected, not .{part}"),
            None => format!("{wanted} is missing"),
        }
    }

    /// An error if one of the modifiers `names` is there; `why` stands behind "not supported".
    pub(super) fn refuse(&self, names: &str, why: &str) -> Decoded<()> {
        match self.parts().iter().find(|part| names.split(' ').any(|name| name == **part)) {
            Some(part) => Err(format!("not supported{why}: .{part}")),
            None => Ok(()),
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
        if let Some(part) = self.parts().first() {
            return Err(format!("unexpected .{part}"));
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
