//! The syntax tree: what the text says, names not yet looked up. It borrows from the text.

use std::borrow::Cow;

use crate::program::Type;

/// A whole PTX text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module<'a> {
    /// `.version`, times ten: 80 is 8.0.
    pub version: u32,
    /// `.target`: 80 is `sm_80`.
    pub target: u32,
    /// Whether the target has an `a` behind it.
    pub arch_specific: bool,
    /// `.file`: (number, path).
    pub files: Vec<(u32, &'a str)>,
    /// Variables of the module.
    pub variables: Vec<Variable<'a>>,
    /// Kernels and functions, declarations and definitions.
    pub functions: Vec<Function<'a>>,
}

/// Who sees a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Linkage {
    /// Nothing in front: this module only.
    #[default]
    Internal,
    /// `.visible`
    Visible,
    /// `.extern`: defined elsewhere.
    Extern,
    /// `.weak`
    Weak,
    /// `.common`
    Common,
}

/// A kernel (`.entry`) or a function (`.func`).
#[derive(Clone, Debug, PartialEq)]
pub struct Function<'a> {
    /// The line of its name.
    pub line: u32,
    /// Who sees it.
    pub linkage: Linkage,
    /// Whether it is a kernel.
    pub entry: bool,
    /// Its name.
    pub name: &'a str,
    /// What a function gives back.
    pub results: Vec<Variable<'a>>,
    /// Its parameters.
    pub params: Vec<Variable<'a>>,
    /// `.maxntid`
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`
    pub required_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`
    pub required_cluster: Option<[u32; 3]>,
    /// The statements between its braces; `None` for a declaration. Inner blocks are flat: [`Statement::Open`], ..
    pub body: Option<Vec<Statement<'a>>>,
    /// The line of its closing brace.
    pub end: u32,
}

/// A statement of a function.
#[derive(Clone, Debug, PartialEq)]
pub enum Statement<'a> {
    /// `{`, with its line.
    Open(u32),
    /// `}`
    Close,
    /// `name:`
    Label {
        /// Its line.
        line: u32,
        /// Its name.
        name: &'a str,
    },
    /// `name: .branchtargets a, b, ..;`
    Targets {
        /// Its line.
        line: u32,
        /// Its name.
        name: &'a str,
        /// The labels of the table.
        labels: Vec<&'a str>,
    },
    /// `.loc file line column`
    Location {
        /// Its line.
        at: u32,
        /// The number of a `.file`, and the line in that file.
        place: (u32, u32),
        /// Where the function that this is in was inlined.
        caller: Option<(u32, u32)>,
    },
    /// `.reg`, `.shared`, ..
    Variable(Variable<'a>),
    /// Everything else.
    Instruction(Instruction<'a>),
}

/// An instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction<'a> {
    /// Its line.
    pub line: u32,
    /// `@%p` or `@!%p`: (name, negated).
    pub guard: Option<(&'a str, bool)>,
    /// Its name with all modifiers: `ld.global.f32`.
    pub opcode: Cow<'a, str>,
    /// Its operands.
    pub operands: Vec<Operand<'a>>,
}

/// An operand of an instruction.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand<'a> {
    /// A register, variable, label, function, or `_`.
    Name(&'a str),
    /// `!name`
    Not(&'a str),
    /// A constant.
    Number(Number),
    /// `name + constant`
    Sum(&'a str, i64),
    /// `a|b`: two results.
    Pair(&'a str, &'a str),
    /// `{a, b, ..}`
    Vector(Vec<Operand<'a>>),
    /// `[..]`
    Address(Address<'a>),
    /// `(a, b, ..)` of a call.
    List(Vec<Operand<'a>>),
}

/// What stands between square brackets.
#[derive(Clone, Debug, PartialEq)]
pub struct Address<'a> {
    /// A register or variable, if there is one.
    pub base: Option<&'a str>,
    /// What is added to it, or the address itself.
    pub offset: i64,
    /// The coordinates of a tensor or texture: `[base, {x, y}]`.
    pub coordinates: Option<Vec<Operand<'a>>>,
    /// `[..].unified`
    pub unified: bool,
}

/// A constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// An integer: 64 bits, signed unless said.
    Int {
        /// Its bits.
        bits: u64,
        /// `12U`, or too large for a signed number.
        unsigned: bool,
    },
    /// `0f3F800000`
    F32(u32),
    /// `0d3FF0000000000000`, `1.0`
    F64(f64),
}

/// Where a variable lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are PTX's own names")]
pub enum VariableSpace {
    Reg,
    Param,
    Local,
    Shared,
    Global,
    Const,
}

/// A declared name of a register, variable or parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable<'a> {
    /// Its line.
    pub line: u32,
    /// Who sees it.
    pub linkage: Linkage,
    /// Where it lies.
    pub space: VariableSpace,
    /// `.align`
    pub align: Option<u64>,
    /// `.v2`, `.v4`: elements of a value; 1 without.
    pub vector: u32,
    /// The type of an element.
    pub ty: Type,
    /// Its name.
    pub name: &'a str,
    /// `name<n>`: the registers `name0` to `name(n-1)`.
    pub range: Option<u64>,
    /// `[n][m]`; `None` is `[]`. Empty for what is no array.
    pub dims: Vec<Option<u64>>,
    /// `= ..`
    pub init: Option<Init<'a>>,
}

/// The value of a variable at start.
#[derive(Clone, Debug, PartialEq)]
pub enum Init<'a> {
    /// A number.
    Number(Number),
    /// `name + addend` or `generic(name) + addend`.
    Address {
        /// The variable.
        name: &'a str,
        /// Bytes added.
        addend: i64,
        /// Whether the generic address is asked for.
        generic: bool,
    },
    /// `{..}`
    List(Vec<Init<'a>>),
}
