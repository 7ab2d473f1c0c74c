//! Declarations: registers, variables with their values, parameters.

use super::lexer::{Kind, Token};
use super::parser::Parser;
use super::tree::{Init, Linkage, Variable, VariableSpace};
use crate::error::{Error, Result};
use crate::program::Type;

/// How deep the lists of an initialiser may nest.
const MAX_LISTS: u32 = 16;

/// How many dimensions an array may have.
const MAX_DIMENSIONS: usize = 16;

/// What stands before the names of one declaration.
#[derive(Clone, Copy)]
struct Head {
    linkage: Linkage,
    space: VariableSpace,
    align: Option<u64>,
    vector: u32,
    ty: Type,
}

impl<'a> Parser<'a> {
    /// Whether `.text` begins a declaration.
    pub(super) fn is_space(&self, text: &str) -> bool {
        space(text).is_some()
    }

    /// The declaration behind the state space: one or more variables, and the `;`.
    pub(super) fn variables(
        &mut self,
        token: Token<'a>,
        linkage: Linkage,
        mut each: impl FnMut(Variable<'a>),
    ) -> Result<()> {
        let Some(space) = space(token.text) else { return Err(self.unexpected("a state space")) };
        let head = self.head(linkage, space)?;
        loop {
            let variable = self.declarator(head)?;
            each(variable);
            if !self.accept(",")? {
                return self.expect(";");
            }
        }
    }

    /// The parameters or results of a function, with their parentheses.
    pub(super) fn parameters(&mut self) -> Result<Vec<Variable<'a>>> {
        self.expect("(")?;
        let mut parameters = Vec::new();
        if self.accept(")")? {
            return Ok(parameters);
        }
        loop {
            let token = self.advance()?;
            let space = match space(token.text) {
                Some(space @ (VariableSpace::Param | VariableSpace::Reg)) => space,
                _ => return Err(Error::parse(token.line, format!(".param is expected, not {}", token.text))),
            };
            let head = self.head(Linkage::Internal, space)?;
            parameters.push(self.declarator(head)?);
            if !self.accept(",")? {
                self.expect(")")?;
                return Ok(parameters);
            }
        }
    }

    /// `.align n`, `.v4`, the type, and attributes that change nothing here (`.ptr .global .align n`, `.attribute(..)`).
    fn head(&mut self, linkage: Linkage, space: VariableSpace) -> Result<Head> {
        let (mut align, mut vector, mut ty) = (None, 1, None);
        while self.peek().kind == Kind::Dot {
            let token = self.advance()?;
            match token.text {
                ".align" => align = Some(self.alignment()?),
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                ".v8" => vector = 8,
                ".ptr" => self.pointer_attributes()?,
                ".attribute" => self.attribute()?,
                text if ty.is_none() => {
                    let known = Type::from_name(&text[1..]).filter(|ty| is_fundamental(*ty));
                    ty =
                        Some(known.ok_or_else(|| {
                            Error::parse(token.line, format!("not supported: {text} in a declaration"))
                        })?);
                }
                text => return Err(Error::parse(token.line, format!("unexpected {text} in a declaration"))),
            }
        }
        let Some(ty) = ty else { return Err(self.unexpected("a type")) };
        Ok(Head { linkage, space, align, vector, ty })
    }

    fn alignment(&mut self) -> Result<u64> {
        let line = self.line();
        // No expression: a vector's or a type's dot follows, but a name never does.
        let align = self.integer()?;
        match u64::try_from(align) {
            Ok(align) if align.is_power_of_two() && align <= 1 << 16 => Ok(align),
            _ => Err(Error::parse(line, format!("an alignment of {align}"))),
        }
    }

    fn pointer_attributes(&mut self) -> Result<()> {
        for space in [".global", ".const", ".shared", ".local", ".generic"] {
            if self.accept_dot(space)? {
                break;
            }
        }
        if self.accept_dot(".align")? {
            self.alignment()?;
        }
        Ok(())
    }

    fn attribute(&mut self) -> Result<()> {
        self.expect("(")?;
        while !self.peek().is(")") {
            if self.peek().kind == Kind::End {
                return Err(self.unexpected(")"));
            }
            self.advance()?;
        }
        self.expect(")")
    }

    fn declarator(&mut self, head: Head) -> Result<Variable<'a>> {
        let line = self.line();
        let name = self.name()?;
        let range = if self.accept("<")? {
            let count = self.count_before_angle()?;
            self.expect(">")?;
            Some(count)
        } else {
            None
        };
        let mut dims = Vec::new();
        while self.accept("[")? {
            if dims.len() == MAX_DIMENSIONS {
                return Err(Error::parse(line, format!("{name} has more than {MAX_DIMENSIONS} dimensions")));
            }
            dims.push(self.dimension(name)?);
        }
        let init = if self.accept("=")? { Some(self.initialiser(0)?) } else { None };
        let Head { linkage, space, align, vector, ty } = head;
        Ok(Variable { line, linkage, space, align, vector, ty, name, range, dims, init })
    }

    /// A plain number: in an expression, the `>` would compare.
    fn count_before_angle(&mut self) -> Result<u64> {
        let line = self.line();
        let text = self.take(Kind::Number, "a number of registers")?;
        text.parse().map_err(|_| Error::parse(line, format!("{text} registers")))
    }

    fn dimension(&mut self, name: &str) -> Result<Option<u64>> {
        if self.accept("]")? {
            return Ok(None);
        }
        let line = self.line();
        let size = self.integer()?;
        self.expect("]")?;
        let size = u64::try_from(size).map_err(|_| Error::parse(line, format!("{name} has a dimension of {size}")))?;
        Ok(Some(size))
    }

    fn initialiser(&mut self, depth: u32) -> Result<Init<'a>> {
        let token = *self.peek();
        match (token.kind, token.text) {
            (Kind::Punct, "{") if depth == MAX_LISTS => {
                Err(Error::parse(token.line, format!("more than {MAX_LISTS} lists within each other")))
            }
            (Kind::Punct, "{") => self.initialiser_list(depth + 1),
            (Kind::Word, "generic") => {
                self.advance()?;
                self.expect("(")?;
                let name = self.name()?;
                self.expect(")")?;
                Ok(Init::Address { name, addend: self.addend()?, generic: true })
            }
            (Kind::Word, name) if name != "WARP_SZ" => {
                self.advance()?;
                Ok(Init::Address { name, addend: self.addend()?, generic: false })
            }
            _ => {
                let number = self.expression()?;
                if self.peek().is("(") {
                    return Err(Error::parse(token.line, "not supported: mask(address) in an initialiser"));
                }
                Ok(Init::Number(number))
            }
        }
    }

    fn initialiser_list(&mut self, depth: u32) -> Result<Init<'a>> {
        self.expect("{")?;
        let mut values = Vec::new();
        loop {
            // An empty list, or a comma behind the last value.
            if self.accept("}")? {
                return Ok(Init::List(values));
            }
            values.push(self.initialiser(depth)?);
            if !self.accept(",")? {
                self.expect("}")?;
                return Ok(Init::List(values));
            }
        }
    }

    fn addend(&mut self) -> Result<i64> {
        if self.peek().is("+") || self.peek().is("-") { self.integer() } else { Ok(0) }
    }
}

fn space(text: &str) -> Option<VariableSpace> {
    Some(match text {
        ".reg" => VariableSpace::Reg,
        ".param" => VariableSpace::Param,
        ".local" => VariableSpace::Local,
        ".shared" => VariableSpace::Shared,
        ".global" => VariableSpace::Global,
        ".const" => VariableSpace::Const,
        _ => return None,
    })
}

/// The types that something can be declared with.
fn is_fundamental(ty: Type) -> bool {
    use Type::{B8, B16, B32, B64, B128, F16, F16x2, F32, F64, Pred, S8, S16, S32, S64, U8, U16, U32, U64};
    matches!(
        ty,
        Pred | B8 | B16 | B32 | B64 | B128 | U8 | U16 | U32 | U64 | S8 | S16 | S32 | S64 | F16 | F16x2 | F32 | F64
    )
}
