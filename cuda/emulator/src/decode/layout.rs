//! Sizes and places of variables.

use crate::error::{Error, Result};
use crate::program::Type;
use crate::syntax::{Init, Number, Variable};

/// The most bytes of all module variables together, and of one.
const MAX_VARIABLES: u64 = 256 << 20;

/// A run of bytes that variables are placed in, one behind the other.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// What it is, for messages.
    what: &'static str,
    /// The most that fits.
    limit: u64,
    bytes: u64,
}

impl Layout {
    pub(super) fn new(what: &'static str, limit: u64) -> Self {
        Self { what, limit, bytes: 0 }
    }

    /// The module's variables.
    pub(super) fn of_module() -> Self {
        Self::new("all variables", MAX_VARIABLES)
    }

    /// The offset of `bytes` more.
    pub(super) fn place(&mut self, bytes: u64, align: u64) -> std::result::Result<u32, String> {
        let offset = self.bytes.next_multiple_of(align.max(1));
        let end = offset.checked_add(bytes).filter(|&end| end <= self.limit);
        self.bytes = end.ok_or_else(|| format!("{} would exceed {} bytes", self.what, self.limit))?;
        Ok(offset as u32)
    }

    pub(super) fn bytes(&self) -> u32 {
        self.bytes as u32
    }
}

/// Size and alignment of a variable.
///
/// # Errors
/// No fundamental type, a size that is missing or beyond any memory.
pub(super) fn size_of(variable: &Variable<'_>) -> Result<(u64, u64)> {
    let fail = |what: String| Error::parse(variable.line, format!("{}: {what}", variable.name));
    if variable.ty == Type::Pred {
        return Err(fail("predicates do not lie in memory".into()));
    }
    if variable.range.is_some() {
        return Err(fail("only registers are declared as <n>".into()));
    }
    let value = u64::from(variable.ty.bytes()) * u64::from(variable.vector);
    if value > 32 {
        return Err(fail("a vector has at most 32 bytes".into()));
    }
    let mut bytes = value;
    for (position, size) in variable.dims.iter().enumerate() {
        let size = match (size, &variable.init) {
            (Some(size), _) => *size,
            (None, Some(Init::List(values))) if position == 0 => values.len() as u64,
            (None, _) => return Err(fail("the size of an array is missing".into())),
        };
        bytes = bytes
            .checked_mul(size)
            .filter(|&bytes| bytes <= MAX_VARIABLES)
            .ok_or_else(|| fail(format!("more than {MAX_VARIABLES} bytes")))?;
    }
    Ok((bytes, variable.align.unwrap_or(value)))
}

/// A place in an initialised variable that holds an address.
pub(super) struct Pointer<'a> {
    pub(super) offset: u64,
    pub(super) name: &'a str,
    pub(super) addend: i64,
    pub(super) generic: bool,
}

/// The bytes of a variable at start, and the addresses among them.
///
/// # Errors
/// More values than places, a value that the type does not hold.
pub(super) fn initial_bytes<'a>(variable: &Variable<'a>, size: u64) -> Result<(Vec<u8>, Vec<Pointer<'a>>)> {
    let mut fill = Fill { bytes: vec![0; size as usize], pointers: Vec::new(), ty: variable.ty };
    if let Some(init) = &variable.init {
        let mut dims: Vec<u64> = variable.dims.iter().map(|size| size.unwrap_or(u64::MAX)).collect();
        if variable.vector > 1 {
            dims.push(variable.vector.into());
        }
        fill.value(init, &dims, 0, size)
            .map_err(|what| Error::parse(variable.line, format!("the value of {}: {what}", variable.name)))?;
    }
    Ok((fill.bytes, fill.pointers))
}

struct Fill<'a> {
    bytes: Vec<u8>,
    pointers: Vec<Pointer<'a>>,
    ty: Type,
}

impl<'a> Fill<'a> {
    /// Writes `init` into the `size` bytes at `at`, an array of `dims`.
    fn value(&mut self, init: &Init<'a>, dims: &[u64], at: u64, size: u64) -> std::result::Result<(), String> {
        match (init, dims) {
            (Init::List(values), [count, inner @ ..]) => {
                if values.len() as u64 > *count {
                    return Err(format!("{} values for {count} places", values.len()));
                }
                let count = if *count == u64::MAX { values.len() as u64 } else { *count };
                let part = size / count.max(1);
                (0..).zip(values).try_for_each(|(index, value)| self.value(value, inner, at + index * part, part))
            }
            (Init::Number(number), []) => self.number(*number, at),
            (Init::Address { name, addend, generic }, []) => {
                if self.ty.bytes() != 8 || self.ty.is_float() {
                    return Err("an address needs a type of 64 bits".into());
                }
                self.pointers.push(Pointer { offset: at, name, addend: *addend, generic: *generic });
                Ok(())
            }
            (Init::List(_), []) => Err("a list for one value".into()),
            (_, [_, ..]) => Err("one value for an array".into()),
        }
    }

    fn number(&mut self, number: Number, at: u64) -> std::result::Result<(), String> {
        let bits = number.bits(self.ty)?;
        let bytes = self.ty.bytes().min(8) as usize;
        let at = at as usize;
        self.bytes[at..at + bytes].copy_from_slice(&bits.to_le_bytes()[..bytes]);
        Ok(())
    }
}

impl Number {
    /// The bits of this constant where `ty` is wanted: an integer loses what does not fit, a float is rounded.
    pub(super) fn bits(self, ty: Type) -> std::result::Result<u64, String> {
        match (self, ty) {
            (Number::Int { bits, .. }, Type::Pred) => Ok((bits != 0).into()),
            (Number::Int { bits, .. }, _) if !ty.is_float() => Ok(truncate(bits, ty.bytes())),
            (Number::F32(bits), Type::F32 | Type::B32) => Ok(bits.into()),
            (Number::F32(bits), Type::F64) => Ok(f64::from(f32::from_bits(bits)).to_bits()),
            (Number::F64(value), Type::F32) => Ok((value as f32).to_bits().into()),
            (Number::F64(value), Type::F64 | Type::B64) => Ok(value.to_bits()),
            _ => Err(format!("{self:?} where a value of type {ty:?} is wanted")),
        }
    }
}

/// The lowest `bytes` bytes.
pub(super) fn truncate(bits: u64, bytes: u32) -> u64 {
    if bytes >= 8 { bits } else { bits & ((1 << (8 * bytes)) - 1) }
}
