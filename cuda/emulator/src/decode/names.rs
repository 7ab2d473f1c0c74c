//! What names stand for, scope by scope.

use std::collections::HashMap;

use crate::program::{Pc, Reg, Space, Type};

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Symbol {
    /// A register, or as many in a row as its vector has.
    Register { first: Reg, ty: Type, count: u32 },
    /// A variable in the thread's frame: `.local`, or the `.param` of a call or of a function.
    Frame { offset: u32, bytes: u32, param: bool },
    /// A parameter of the kernel.
    Param { offset: u32 },
    /// A module variable; its index and its space.
    Variable(u32, Space),
    /// A static shared variable; `key` finds its place in this kernel.
    Shared { key: u32, bytes: u32, align: u32 },
    /// `.extern .shared`
    DynamicShared { align: u32 },
    /// A function; an index into the syntax tree's.
    Function(usize),
}

/// `.reg .b32 %r<n>`
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) ty: Type,
    pub(super) vector: u32,
    pub(super) count: u64,
}

/// A branch whose label has not been seen.
#[derive(Clone, Debug)]
pub(super) struct Pending<'a> {
    pub(super) pc: Pc,
    /// Which entry of a `brx.idx`.
    pub(super) entry: usize,
    pub(super) label: &'a str,
    pub(super) line: u32,
}

/// The names between two braces.
#[derive(Debug, Default)]
pub(super) struct Scope<'a> {
    pub(super) names: HashMap<&'a str, Symbol>,
    pub(super) families: HashMap<&'a str, Family>,
    pub(super) labels: HashMap<&'a str, Pc>,
    pub(super) tables: HashMap<&'a str, &'a [&'a str]>,
    pub(super) pending: Vec<Pending<'a>>,
}

impl<'a> Scope<'a> {
    /// The family that `name` belongs to: `%r12` to `%r<20>`.
    pub(super) fn family_of(&self, name: &str) -> Option<Family> {
        if self.families.is_empty() {
            return None;
        }
        let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count().min(7);
        (1..=digits).find_map(|length| {
            let (prefix, number) = name.split_at(name.len() - length);
            let family = *self.families.get(prefix)?;
            let plain = length == 1 || !number.starts_with('0');
            (plain && number.parse::<u64>().is_ok_and(|number| number < family.count)).then_some(family)
        })
    }
}
