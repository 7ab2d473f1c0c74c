//! Calls: arguments and results through the frame.

use std::collections::{HashMap, HashSet};

use super::Decoded;
use super::builder::Builder;
use super::layout::size_of;
use super::names::Symbol;
use super::reader::Reader;
use crate::error::{Error, Result};
use crate::program::{Address, FrameCopy, Op, Pc, Space, Src};
use crate::syntax::{Operand, Variable};

/// A parameter or result of a function in the frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) offset: u32,
    pub(super) bytes: u32,
}

/// Where a function's parameters and results lie in the frame.
#[derive(Clone, Debug)]
pub(super) struct Formals {
    pub(super) params: Vec<Slot>,
    pub(super) results: Vec<Slot>,
}

impl<'a> Builder<'_, 'a> {
    /// The places of a function's parameters, made at its first call.
    pub(super) fn formals_of(&mut self, function: usize) -> Decoded<Formals> {
        if let Some(formals) = self.formals.get(&function) {
            return Ok(formals.clone());
        }
        let syntax = &self.module.tree.functions[function];
        let formals = Formals { params: self.slots(&syntax.params)?, results: self.slots(&syntax.results)? };
        self.formals.insert(function, formals.clone());
        Ok(formals)
    }

    fn slots(&mut self, variables: &[Variable<'a>]) -> Decoded<Vec<Slot>> {
        let slot = |variable: &Variable<'a>| {
            let (bytes, align) = size_of(variable).map_err(|error| error.to_string())?;
            Ok(Slot { offset: self.frame.place(bytes, align)?, bytes: bytes as u32 })
        };
        variables.iter().map(slot).collect()
    }

    /// Sets the targets of all calls.
    ///
    /// # Errors
    /// Functions that call each other in a circle.
    pub(super) fn link_calls(&mut self) -> Result<()> {
        self.refuse_recursion()?;
        for &(pc, _, callee, _) in &self.calls {
            if let (Op::Call { target, .. }, Some(&entry)) = (&mut self.code[pc as usize].op, self.entries.get(&callee))
            {
                *target = entry;
            }
        }
        Ok(())
    }

    /// A walk over the calls, depth first, without recursion of our own: the text decides how deep it goes.
    fn refuse_recursion(&self) -> Result<()> {
        let mut callees: HashMap<usize, Vec<(usize, u32)>> = HashMap::new();
        for &(_, caller, callee, line) in &self.calls {
            callees.entry(caller).or_default().push((callee, line));
        }
        let (mut done, mut on_path) = (HashSet::new(), HashSet::new());
        for &start in &self.callees {
            let mut path = vec![(start, 0)];
            while let Some((function, next)) = path.last_mut() {
                let function = *function;
                on_path.insert(function);
                let call = callees.get(&function).and_then(|calls| calls.get(*next));
                *next += 1;
                match call {
                    Some((callee, line)) if on_path.contains(callee) => {
                        return Err(self.recursion(&path, *callee, *line));
                    }
                    Some((callee, _)) if done.contains(callee) => {}
                    Some((callee, _)) => path.push((*callee, 0)),
                    None => {
                        on_path.remove(&function);
                        done.insert(function);
                        path.pop();
                    }
                }
            }
        }
        Ok(())
    }

    fn recursion(&self, path: &[(usize, usize)], callee: usize, line: u32) -> Error {
        let name = |function: usize| self.module.tree.functions[function].name;
        let circle = path.iter().map(|&(function, _)| function).skip_while(|&function| function != callee);
        let names: Vec<_> = circle.chain([callee]).map(name).collect();
        Error::parse(line, format!("not supported: recursion ({})", names.join(" -> ")))
    }
}

/// `call[.uni] [(results),] function[, (arguments)]`
pub(super) fn call(i: &mut Reader<'_, '_, '_>) -> Decoded {
    i.flag("uni");
    let results = i.optional_list()?;
    let name = i.name()?;
    let arguments = i.optional_list()?;
    let callee = match i.builder.find(name) {
        Some(Symbol::Function(callee)) => callee,
        Some(Symbol::Register { .. }) => return Err("not supported: an indirect call".into()),
        _ => return Err(format!("the function {name} is not declared")),
    };
    let function = &i.builder.module.tree.functions[callee];
    if function.entry {
        return Err(format!("{name} is a kernel, not a function"));
    }
    if (results.len(), arguments.len()) != (function.results.len(), function.params.len()) {
        return Err(format!(
            "{name} takes {} arguments and gives {} results, not {} and {}",
            function.params.len(),
            function.results.len(),
            arguments.len(),
            results.len()
        ));
    }
    let arguments = (arguments.iter().zip(&function.params))
        .map(|(operand, formal)| argument(i, operand, formal))
        .collect::<Decoded<Vec<_>>>()?;
    let results = (results.iter().zip(&function.results))
        .map(|(operand, formal)| result(i, operand, formal))
        .collect::<Decoded<Vec<_>>>()?;
    if function.body.is_none() {
        return system_call(name, &arguments, &results);
    }
    let builder = &mut *i.builder;
    if !builder.formals.contains_key(&callee) {
        builder.callees.push(callee);
    }
    let formals = builder.formals_of(callee)?;
    let copy = |from: &Slot, to: &Slot| FrameCopy { from: from.offset, to: to.offset, bytes: from.bytes };
    builder.calls.push((builder.code.len() as Pc, builder.current, callee, builder.line));
    Ok(Op::Call {
        target: 0,
        arguments: arguments.iter().zip(&formals.params).map(|(from, to)| copy(from, to)).collect(),
        results: formals.results.iter().zip(&results).map(|(from, to)| copy(from, to)).collect(),
    })
}

/// The functions that CUDA has on the device without a body in the PTX.
fn system_call(name: &str, arguments: &[Slot], results: &[Slot]) -> Decoded {
    match (name, arguments, results) {
        ("vprintf", [format, arguments], [] | [_]) => Ok(Op::Printf {
            format: format.offset,
            arguments: arguments.offset,
            result: results.first().map(|slot| slot.offset),
        }),
        ("__assertfail", [message, file, line, function, _], []) => Ok(Op::AssertFail {
            message: message.offset,
            file: file.offset,
            line: line.offset,
            function: function.offset,
        }),
        _ => Err(format!("not supported: the function {name} has no body in this module")),
    }
}

/// Where an argument lies in the frame; a register or a number is stored there first.
fn argument<'a>(i: &mut Reader<'_, '_, 'a>, operand: &'a Operand<'a>, formal: &Variable<'a>) -> Decoded<Slot> {
    if let Some(slot) = param_slot(i, operand, formal)? {
        return Ok(slot);
    }
    let slot = temporary(i, formal)?;
    let src = vec![i.value(operand, formal.ty, false)?];
    i.builder.emit(Op::Store { space: Space::Local, ty: formal.ty, src, address: at(slot), strong: false })?;
    Ok(slot)
}

/// Where a result goes in the frame; a register is loaded from there after the call.
fn result<'a>(i: &mut Reader<'_, '_, 'a>, operand: &'a Operand<'a>, formal: &Variable<'a>) -> Decoded<Slot> {
    if let Some(slot) = param_slot(i, operand, formal)? {
        return Ok(slot);
    }
    let slot = temporary(i, formal)?;
    let Operand::Name(name) = operand else { return Err("a result is a register or a .param variable".into()) };
    if *name != "_" {
        let (ty, reg_bytes) = (formal.ty, formal.ty.bytes());
        let dst = vec![Some(i.register_of(name, ty, false)?.0)];
        i.builder.after.push(Op::Load { space: Space::Local, ty, reg_bytes, dst, address: at(slot), strong: false });
    }
    Ok(slot)
}

fn param_slot<'a>(
    i: &mut Reader<'_, '_, 'a>,
    operand: &'a Operand<'a>,
    formal: &Variable<'a>,
) -> Decoded<Option<Slot>> {
    let Operand::Name(name) = operand else { return Ok(None) };
    let Some(Symbol::Frame { offset, bytes, param: true }) = i.builder.find(name) else { return Ok(None) };
    let (wanted, _) = size_of(formal).map_err(|error| error.to_string())?;
    if u64::from(bytes) != wanted {
        return Err(format!("{name} has {bytes} bytes, {} has {wanted}", formal.name));
    }
    Ok(Some(Slot { offset, bytes }))
}

fn temporary(i: &mut Reader<'_, '_, '_>, formal: &Variable<'_>) -> Decoded<Slot> {
    if !formal.dims.is_empty() || formal.vector != 1 {
        return Err(format!("{} needs a .param variable", formal.name));
    }
    let bytes = formal.ty.bytes();
    Ok(Slot { offset: i.builder.frame.place(bytes.into(), bytes.into())?, bytes })
}

fn at(slot: Slot) -> Address {
    Address { base: Src::Imm(slot.offset.into()), offset: 0 }
}
