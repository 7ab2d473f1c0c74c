//! Operands: registers checked against the type that the instruction wants, constants, addresses.

use super::Decoded;
use super::builder::Builder;
use super::names::Symbol;
use super::reader::Reader;
use super::special::special;
use crate::program::{self, Reg, Space, Special, Src, Type};
use crate::syntax::{Address, Operand};

impl<'a> Builder<'_, 'a> {
    /// A register or an element of a vector register (`v.x`), with its declared type.
    pub(super) fn register(&mut self, name: &'a str) -> Decoded<(Reg, Type)> {
        if let Some(Symbol::Register { first, ty, count: 1 }) = self.find(name) {
            return Ok((first, ty));
        }
        if let Some((vector, element)) = name.rsplit_once('.') {
            let index = match element {
                "x" | "r" => 0,
                "y" | "g" => 1,
                "z" | "b" => 2,
                "w" | "a" => 3,
                _ => return Err(format!("{name} is no register")),
            };
            if let Some(Symbol::Register { first, ty, count }) = self.find(vector) {
                return if index < count {
                    Ok((first + index, ty))
                } else {
                    Err(format!("{vector} has no .{element}"))
                };
            }
        }
        Err(match self.find(name) {
            Some(Symbol::Register { .. }) => format!("{name} is a vector of registers"),
            Some(_) => format!("{name} is no register"),
            None => format!("{name} is not declared"),
        })
    }

    /// A register of type `.pred`.
    pub(super) fn predicate(&mut self, name: &'a str) -> Decoded<Reg> {
        match self.register(name)? {
            (register, Type::Pred) => Ok(register),
            (_, ty) => Err(format!("{name} is of type {}, not a predicate", ty.name())),
        }
    }
}

impl<'a> Reader<'_, '_, 'a> {
    /// The next operand.
    pub(super) fn operand(&mut self) -> Decoded<&'a Operand<'a>> {
        let (first, rest) = self.operands.split_first().ok_or("an operand is missing")?;
        self.operands = rest;
        Ok(first)
    }

    /// Whether there are more operands.
    pub(super) fn more(&self) -> bool {
        !self.operands.is_empty()
    }

    /// A name: a label, a function.
    pub(super) fn name(&mut self) -> Decoded<&'a str> {
        match self.operand()? {
            Operand::Name(name) => Ok(name),
            _ => Err("a name is expected".into()),
        }
    }

    /// `(a, b)`, if there.
    pub(super) fn optional_list(&mut self) -> Decoded<&'a [Operand<'a>]> {
        match self.operands.first() {
            Some(Operand::List(list)) => {
                self.operand()?;
                Ok(list)
            }
            _ => Ok(&[]),
        }
    }

    /// The register `name` for a value of `ty`, and its width; `wide` allows it to be wider.
    pub(super) fn register_of(&mut self, name: &'a str, ty: Type, wide: bool) -> Decoded<(Reg, u32)> {
        let (register, declared) = self.builder.register(name)?;
        if fits(ty, declared, wide) {
            Ok((register, declared.bytes()))
        } else {
            Err(format!("{name} is declared .{}, the instruction wants .{}", declared.name(), ty.name()))
        }
    }

    /// The register that the instruction writes, and its width; with `wide`, it may be wider than `ty`.
    pub(super) fn destination(&mut self, ty: Type, wide: bool) -> Decoded<(Reg, u32)> {
        let name = self.name()?;
        if name == "_" {
            return Err("the result cannot be _ here".into());
        }
        self.register_of(name, ty, wide)
    }

    /// The register that the instruction writes.
    pub(super) fn dst(&mut self, ty: Type) -> Decoded<Reg> {
        Ok(self.destination(ty, false)?.0)
    }

    /// `d` or `d|p` where `p` is a predicate; each may be `_`.
    pub(super) fn dst_and_predicate(&mut self, ty: Type) -> Decoded<(Option<Reg>, Option<Reg>)> {
        let (first, second) = match self.operand()? {
            Operand::Name(first) => (*first, "_"),
            Operand::Pair(first, second) => (*first, *second),
            _ => return Err("a register is expected".into()),
        };
        let first = if first == "_" { None } else { Some(self.register_of(first, ty, false)?.0) };
        let second = if second == "_" { None } else { Some(self.builder.predicate(second)?) };
        Ok((first, second))
    }

    /// A value of `ty`.
    pub(super) fn src(&mut self, ty: Type) -> Decoded<Src> {
        let operand = self.operand()?;
        self.value(operand, ty, false)
    }

    /// A predicate, perhaps negated, or a constant.
    pub(super) fn predicate(&mut self) -> Decoded<Src> {
        match self.operand()? {
            Operand::Not(name) => Ok(Src::NotReg(self.builder.predicate(name)?)),
            operand => self.value(operand, Type::Pred, false),
        }
    }

    /// A constant of 32 bits.
    pub(super) fn constant(&mut self) -> Decoded<u32> {
        match self.src(Type::U32)? {
            Src::Imm(bits) => Ok(bits as u32),
            _ => Err("a constant is expected".into()),
        }
    }

    /// A value of `ty` or the special register that `mov` and `cvt` read, whole or its low bits.
    pub(super) fn src_or_special(&mut self, ty: Type, wide: bool) -> Decoded<Src> {
        let operand = self.operand()?;
        let Operand::Name(name) = operand else { return self.value(operand, ty, wide) };
        if name.contains("cluster") && special(name).is_some() {
            self.needs(90)?;
        }
        match special(name) {
            Some((src, declared)) if fits(ty, declared, wide) => Ok(src),
            // Older than the rules: their low bits may be taken.
            Some((
                src @ Src::Special(Special::Tid(_) | Special::NTid(_) | Special::CtaId(_) | Special::NCtaId(_)),
                _,
            )) if ty.bytes() == 2 && !ty.is_float() => Ok(src),
            Some((src @ Src::Special(Special::GridId), _)) if matches!(ty.bytes(), 2 | 4) && !ty.is_float() => Ok(src),
            Some((_, declared)) => Err(format!("{name} is of type .{}, not .{}", declared.name(), ty.name())),
            None => self.value(operand, ty, wide),
        }
    }

    /// The value of `operand`: a register or a constant.
    pub(super) fn value(&mut self, operand: &'a Operand<'a>, ty: Type, wide: bool) -> Decoded<Src> {
        match operand {
            Operand::Number(number) => Ok(Src::Imm(number.bits(ty)?)),
            Operand::Name("_") => Err("_ has no value".into()),
            Operand::Name(name) if special(name).is_some() => Err(format!("{name} is read by mov and cvt only")),
            Operand::Name(name) => Ok(Src::Reg(self.register_of(name, ty, wide)?.0)),
            Operand::Not(name) => Err(format!("!{name} is no operand here")),
            _ => Err("a register or a constant is expected".into()),
        }
    }

    /// `count` registers that the instruction writes, each perhaps `_`, and their width: `{a, b}`, a vector register, or
    /// for one, a plain register.
    pub(super) fn destinations(&mut self, count: usize, ty: Type, wide: bool) -> Decoded<(Vec<Option<Reg>>, u32)> {
        let mut width = None;
        let operand = self.operand()?;
        if let Some((first, declared)) = self.vector_register(operand, count) {
            self.must_fit(ty, declared, wide)?;
            return Ok(((first..).take(count).map(Some).collect(), declared.bytes()));
        }
        let mut registers = Vec::with_capacity(count);
        for element in elements(operand, count)? {
            let Operand::Name(name) = element else { return Err("a register is expected".into()) };
            if *name == "_" {
                registers.push(None);
                continue;
            }
            let (register, bytes) = self.register_of(name, ty, wide)?;
            if width.replace(bytes).is_some_and(|other| other != bytes) {
                return Err("the registers of a vector have one width".into());
            }
            registers.push(Some(register));
        }
        Ok((registers, width.unwrap_or(ty.bytes())))
    }

    /// `count` registers that the instruction writes.
    pub(super) fn all_destinations(&mut self, count: usize, ty: Type) -> Decoded<Vec<Reg>> {
        let (registers, _) = self.destinations(count, ty, false)?;
        registers.into_iter().collect::<Option<_>>().ok_or_else(|| "_ cannot stand here".into())
    }

    /// `count` values.
    pub(super) fn sources(&mut self, count: usize, ty: Type, wide: bool) -> Decoded<Vec<Src>> {
        let operand = self.operand()?;
        if let Some((first, declared)) = self.vector_register(operand, count) {
            self.must_fit(ty, declared, wide)?;
            return Ok((first..).take(count).map(Src::Reg).collect());
        }
        elements(operand, count)?.iter().map(|element| self.value(element, ty, wide)).collect()
    }

    fn vector_register(&mut self, operand: &'a Operand<'a>, wanted: usize) -> Option<(Reg, Type)> {
        let Operand::Name(name) = operand else { return None };
        match self.builder.find(name) {
            Some(Symbol::Register { first, ty, count }) if count > 1 && count as usize == wanted => Some((first, ty)),
            _ => None,
        }
    }

    fn must_fit(&self, ty: Type, declared: Type, wide: bool) -> Decoded<()> {
        if fits(ty, declared, wide) {
            return Ok(());
        }
        Err(format!("the vector is declared .{}, the instruction wants .{}", declared.name(), ty.name()))
    }

    /// The address of a variable as a value: the offset in its space, or what becomes one at load or launch.
    pub(super) fn address_of(&mut self, name: &'a str, addend: i64) -> Decoded<Src> {
        let (_, base) = self.place(name)?;
        Ok(match base {
            Src::Imm(offset) => Src::Imm(offset.wrapping_add(addend as u64)),
            Src::Variable(index, _) => Src::Variable(index, addend),
            Src::DynamicShared(_) => Src::DynamicShared(addend),
            _ => return Err(format!("{name} has no address")),
        })
    }

    /// [`Self::address_of`] a variable that must lie in `space`.
    pub(super) fn address_in(&mut self, name: &'a str, addend: i64, space: Space) -> Decoded<Src> {
        let (lies_in, _) = self.place(name)?;
        if lies_in == space || (lies_in, space) == (Space::Shared, Space::SharedCluster) {
            return self.address_of(name, addend);
        }
        Err(format!("{name} does not lie in the space of this instruction"))
    }

    /// The space and the first byte of a variable.
    fn place(&mut self, name: &'a str) -> Decoded<(Space, Src)> {
        let fixed = |offset: u32| Src::Imm(offset.into());
        Ok(match self.builder.find(name) {
            Some(Symbol::Frame { offset, .. }) => (Space::Local, fixed(offset)),
            Some(Symbol::Param { offset }) => (Space::Param, fixed(offset)),
            Some(Symbol::Variable(index, space)) => (space, Src::Variable(index, 0)),
            Some(Symbol::Shared { key, bytes, align }) => {
                (Space::Shared, fixed(self.builder.shared_offset(name, key, bytes, align)?))
            }
            Some(Symbol::DynamicShared { align }) => {
                self.builder.use_dynamic_shared(align);
                (Space::Shared, Src::DynamicShared(0))
            }
            Some(Symbol::Function(_)) => return Err(format!("not supported: the address of the function {name}")),
            Some(Symbol::Register { .. }) => return Err(format!("{name} is a register")),
            None => return Err(format!("{name} is not declared")),
        })
    }

    /// `[..]` in `space`, and the space that it really is in: what lies in the frame is [`Space::Local`].
    pub(super) fn address(&mut self, space: Space) -> Decoded<(Space, program::Address)> {
        let Operand::Address(address) = self.operand()? else { return Err("an address is expected".into()) };
        self.resolve(address, space)
    }

    pub(super) fn resolve(&mut self, address: &'a Address<'a>, space: Space) -> Decoded<(Space, program::Address)> {
        if address.coordinates.is_some() {
            return Err("a plain address is expected".into());
        }
        // In a function that is called, parameters lie in the frame.
        let effective = if space == Space::Param && !self.builder.in_kernel() { Space::Local } else { space };
        let Some(name) = address.base else {
            return Ok((effective, program::Address { base: Src::Imm(address.offset as u64), offset: 0 }));
        };
        let offset = address.offset;
        let base = self.builder.find(name);
        if matches!(base, Some(Symbol::Register { .. })) || (base.is_none() && name.contains('.')) {
            return Ok((effective, program::Address { base: self.base_register(name, space)?, offset }));
        }
        let (lies_in, base) = self.place(name)?;
        let in_param = matches!(self.builder.find(name), Some(Symbol::Frame { param: true, .. }));
        let matches = match space {
            Space::Param => lies_in == Space::Param || in_param,
            Space::SharedCluster => lies_in == Space::Shared,
            // The number of a global address is the same in the generic space.
            Space::Generic => lies_in == Space::Global,
            _ => lies_in == space,
        };
        if !matches {
            return Err(format!("{name} does not lie in the space of this instruction"));
        }
        let space = if space == Space::Param { lies_in } else { space };
        Ok((space, program::Address { base, offset }))
    }

    fn base_register(&mut self, name: &'a str, space: Space) -> Decoded<Src> {
        let (register, ty) = self.builder.register(name)?;
        let narrow = matches!(space, Space::Generic | Space::Global);
        match ty.bytes() {
            8 if !ty.is_float() => Ok(Src::Reg(register)),
            4 if !ty.is_float() && !narrow => Ok(Src::Reg(register)),
            _ => Err(format!("{name} is declared .{} and holds no address of this space", ty.name())),
        }
    }
}

/// The elements of `{a, b}`; one operand alone is a vector of one.
fn elements<'a>(operand: &'a Operand<'a>, count: usize) -> Decoded<&'a [Operand<'a>]> {
    let elements = match operand {
        Operand::Vector(elements) => elements.as_slice(),
        operand => std::slice::from_ref(operand),
    };
    if elements.len() == count {
        Ok(elements)
    } else {
        Err(format!("{count} elements are wanted, not {}", elements.len()))
    }
}

/// Whether a register that is declared as `declared` takes a value of `ty`: the same size (or a larger one, with `wide`),
/// bits go with everything, integers with integers, floats with the same float.
fn fits(ty: Type, declared: Type, wide: bool) -> bool {
    let bits = |ty| matches!(ty, Type::B8 | Type::B16 | Type::B32 | Type::B64);
    // A register of two halves is for other types one of 32 bits.
    let declared = if declared == Type::F16x2 && ty != declared { Type::U32 } else { declared };
    if ty == Type::Pred || declared == Type::Pred {
        return ty == declared;
    }
    let size = declared.bytes() == ty.bytes() || (wide && declared.bytes() > ty.bytes());
    size && match (ty.is_float(), declared.is_float()) {
        (true, true) => ty == declared,
        (true, false) => bits(declared),
        (false, true) => bits(ty),
        (false, false) => true,
    }
}
