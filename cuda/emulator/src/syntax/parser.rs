//! The module's level: directives, functions and their statements.

use super::lexer::{Kind, Lexer, Token};
use super::tree::{Function, Linkage, Module, Statement};
use crate::error::{Error, Result};

/// How deep blocks within a function may nest.
const MAX_BLOCKS: usize = 100;

/// Reads a whole PTX text.
///
/// # Errors
/// [`crate::error::Error::Parse`] with the line of the first thing that PTX does not have there.
pub fn parse(text: &str) -> Result<Module<'_>> {
    let mut lexer = Lexer::new(text);
    let token = lexer.next()?;
    Parser { lexer, token, module: Module::default() }.module()
}

pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The next token, not yet taken.
    token: Token<'a>,
    module: Module<'a>,
}

impl<'a> Parser<'a> {
    pub(super) fn peek(&self) -> &Token<'a> {
        &self.token
    }

    pub(super) fn line(&self) -> u32 {
        self.token.line
    }

    /// Where the parser stands, to [`Self::return_to`] it.
    pub(super) fn clone_position(&self) -> (Lexer<'a>, Token<'a>) {
        (self.lexer.clone(), self.token)
    }

    pub(super) fn return_to(&mut self, (lexer, token): (Lexer<'a>, Token<'a>)) {
        (self.lexer, self.token) = (lexer, token);
    }

    /// Takes the next token.
    pub(super) fn advance(&mut self) -> Result<Token<'a>> {
        let next = self.lexer.next()?;
        Ok(std::mem::replace(&mut self.token, next))
    }

    /// Takes the operator `text`, if it is next.
    pub(super) fn accept(&mut self, text: &str) -> Result<bool> {
        let found = self.token.is(text);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    /// Takes the directive `text`, if it is next.
    pub(super) fn accept_dot(&mut self, text: &str) -> Result<bool> {
        let found = self.token.is_dot(text);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    pub(super) fn expect(&mut self, text: &str) -> Result<()> {
        if self.accept(text)? { Ok(()) } else { Err(self.unexpected(text)) }
    }

    /// Takes a name.
    pub(super) fn name(&mut self) -> Result<&'a str> {
        self.take(Kind::Word, "a name")
    }

    pub(super) fn take(&mut self, kind: Kind, what: &str) -> Result<&'a str> {
        if self.token.kind == kind { Ok(self.advance()?.text) } else { Err(self.unexpected(what)) }
    }

    /// The error that something else than `wanted` is next.
    pub(super) fn unexpected(&self, wanted: &str) -> Error {
        Error::parse(self.token.line, format!("{wanted} is expected, not {}", self.token.text))
    }

    /// A number of 32 bits.
    pub(super) fn count(&mut self, what: &str) -> Result<u32> {
        let line = self.line();
        let value = self.integer()?;
        u32::try_from(value).map_err(|_| Error::parse(line, format!("{what} {value} is out of range")))
    }

    fn module(mut self) -> Result<Module<'a>> {
        self.header()?;
        while self.token.kind != Kind::End {
            self.item()?;
        }
        Ok(self.module)
    }

    /// `.version`, then `.target`, then `.address_size`.
    fn header(&mut self) -> Result<()> {
        if !self.accept_dot(".version")? {
            return Err(self.unexpected(".version"));
        }
        let line = self.line();
        let version = self.take(Kind::Number, "a version")?;
        self.module.version =
            parse_version(version).ok_or_else(|| Error::parse(line, format!("{version} is no version of PTX")))?;
        if !self.accept_dot(".target")? {
            return Err(self.unexpected(".target"));
        }
        self.target()?;
        while self.accept(",")? {
            match self.name()? {
                "debug" => {}
                other => return Err(Error::parse(self.line(), format!("not supported: .target {other}"))),
            }
        }
        Ok(())
    }

    fn target(&mut self) -> Result<()> {
        let line = self.line();
        let target = self.name()?;
        let number = target.strip_prefix("sm_").map(|number| number.trim_end_matches(['a', 'f']));
        self.module.target = number
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| Error::parse(line, format!("{target} is no target (sm_80, ..)")))?;
        self.module.arch_specific = target.ends_with('a');
        Ok(())
    }

    fn item(&mut self) -> Result<()> {
        let line = self.line();
        let mut linkage = Linkage::Internal;
        loop {
            let token = self.advance()?;
            match token.text {
                _ if token.kind != Kind::Dot && !token.is(";") => {
                    return Err(Error::parse(token.line, format!("a directive is expected, not {}", token.text)));
                }
                ";" => return Ok(()),
                ".visible" => linkage = Linkage::Visible,
                ".extern" => linkage = Linkage::Extern,
                ".weak" => linkage = Linkage::Weak,
                ".common" => linkage = Linkage::Common,
                ".entry" => return self.function(linkage, true),
                ".func" => return self.function(linkage, false),
                ".address_size" => return self.address_size(),
                ".file" => return self.file(),
                ".section" => return self.section(),
                ".pragma" => return self.pragma(),
                _ if self.is_space(token.text) => {
                    let mut variables = std::mem::take(&mut self.module.variables);
                    self.variables(token, linkage, |variable| variables.push(variable))?;
                    self.module.variables = variables;
                    return Ok(());
                }
                other => return Err(Error::parse(line, format!("not supported: {other}"))),
            }
        }
    }

    fn address_size(&mut self) -> Result<()> {
        let line = self.line();
        match self.integer()? {
            64 => Ok(()),
            other => Err(Error::parse(line, format!("not supported: .address_size {other} (only 64)"))),
        }
    }

    /// `.file number "path"`, with the time and size of old compilers.
    fn file(&mut self) -> Result<()> {
        let number = self.count("the number of a file")?;
        let path = self.take(Kind::String, "a path")?;
        while self.accept(",")? {
            self.take(Kind::Number, "a number")?;
        }
        self.module.files.push((number, path));
        Ok(())
    }

    /// Debug information: no part of the program.
    fn section(&mut self) -> Result<()> {
        let line = self.line();
        self.advance()?;
        self.expect("{")?;
        let mut depth = 1;
        while depth > 0 {
            let token = self.advance()?;
            match token.text {
                _ if token.kind == Kind::End => return Err(Error::parse(line, "a .section that does not end")),
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// Hints for the assembler.
    pub(super) fn pragma(&mut self) -> Result<()> {
        self.take(Kind::String, "a string")?;
        while self.accept(",")? {
            self.take(Kind::String, "a string")?;
        }
        self.expect(";")
    }

    fn function(&mut self, linkage: Linkage, entry: bool) -> Result<()> {
        let results = if !entry && self.token.is("(") { self.parameters()? } else { Vec::new() };
        let line = self.line();
        let name = self.name()?;
        let params = if self.token.is("(") { self.parameters()? } else { Vec::new() };
        let mut function = Function {
            line,
            linkage,
            entry,
            name,
            results,
            params,
            max_threads: None,
            required_threads: None,
            required_cluster: None,
            body: None,
            end: line,
        };
        self.function_directives(&mut function)?;
        if !self.accept(";")? {
            self.expect("{")?;
            let mut statements = Vec::new();
            self.statements(name, &mut statements)?;
            function.end = self.line();
            self.expect("}")?;
            function.body = Some(statements);
        }
        self.module.functions.push(function);
        Ok(())
    }

    /// What stands between a function's parameters and its body.
    fn function_directives(&mut self, function: &mut Function<'a>) -> Result<()> {
        while self.token.kind == Kind::Dot {
            let directive = self.advance()?;
            match directive.text {
                ".maxntid" => function.max_threads = Some(self.triple()?),
                ".reqntid" => function.required_threads = Some(self.triple()?),
                ".reqnctapercluster" => function.required_cluster = Some(self.triple()?),
                ".maxnreg" | ".minnctapersm" | ".maxnctapersm" | ".maxclusterrank" => {
                    self.count(directive.text)?;
                }
                ".noreturn" | ".explicitcluster" => {}
                ".pragma" => self.pragma()?,
                other => {
                    let name = function.name;
                    return Err(Error::parse(directive.line, format!("not supported: {other} of {name}")));
                }
            }
        }
        Ok(())
    }

    /// `x`, `x, y` or `x, y, z`.
    fn triple(&mut self) -> Result<[u32; 3]> {
        let mut sizes = [1; 3];
        for (axis, size) in sizes.iter_mut().enumerate() {
            if axis > 0 && !self.accept(",")? {
                break;
            }
            *size = self.count("a size")?;
        }
        Ok(sizes)
    }

    /// Everything up to the function's closing brace, which stays.
    fn statements(&mut self, function: &str, out: &mut Vec<Statement<'a>>) -> Result<()> {
        let mut depth = 0;
        loop {
            let token = self.token;
            match (token.kind, token.text) {
                (Kind::End, _) => {
                    return Err(Error::parse(token.line, format!("the text ends within {function}")));
                }
                (Kind::Punct, "}") if depth == 0 => return Ok(()),
                (Kind::Punct, "}") => {
                    self.advance()?;
                    depth -= 1;
                    out.push(Statement::Close);
                }
                (Kind::Punct, "{") if depth == MAX_BLOCKS => {
                    return Err(Error::parse(token.line, format!("more than {MAX_BLOCKS} blocks within each other")));
                }
                (Kind::Punct, "{") => {
                    self.advance()?;
                    depth += 1;
                    out.push(Statement::Open(token.line));
                }
                (Kind::Punct, ";") => {
                    self.advance()?;
                }
                (Kind::Dot, _) => self.directive(out)?,
                _ => self.labelled(out)?,
            }
        }
    }

    fn directive(&mut self, out: &mut Vec<Statement<'a>>) -> Result<()> {
        let token = self.advance()?;
        match token.text {
            ".loc" => {
                let location = self.location()?;
                out.push(location);
                Ok(())
            }
            ".pragma" => self.pragma(),
            ".file" => self.file(),
            ".extern" if self.is_space(self.token.text) => {
                let space = self.advance()?;
                self.variables(space, Linkage::Extern, |variable| out.push(Statement::Variable(variable)))
            }
            _ if self.is_space(token.text) => {
                self.variables(token, Linkage::Internal, |variable| out.push(Statement::Variable(variable)))
            }
            other => Err(Error::parse(token.line, format!("not supported: {other} within a function"))),
        }
    }

    /// `.loc file line column[, function_name label[+n]][, inlined_at file line column]`
    fn location(&mut self) -> Result<Statement<'a>> {
        let at = self.line();
        let (place, mut caller) = (self.place("a .loc")?, None);
        while self.accept(",")? {
            match self.name()? {
                "function_name" => {
                    self.name()?;
                    if self.accept("+")? {
                        self.plain_count("the offset of a name")?;
                    }
                }
                "inlined_at" => caller = Some(self.place("inlined_at")?),
                other => return Err(Error::parse(self.line(), format!("{other} in a .loc"))),
            }
        }
        Ok(Statement::Location { at, place, caller })
    }

    /// `file line column`, of which the column is left out.
    fn place(&mut self, what: &str) -> Result<(u32, u32)> {
        let file = self.plain_count(&format!("the file of {what}"))?;
        let line = self.plain_count(&format!("the line of {what}"))?;
        self.plain_count(&format!("the column of {what}"))?;
        Ok((file, line))
    }

    /// A number that stands alone: in `.loc 1 2 -3`, an expression would go too far.
    fn plain_count(&mut self, what: &str) -> Result<u32> {
        let line = self.line();
        let text = self.take(Kind::Number, what)?;
        text.parse().map_err(|_| Error::parse(line, format!("{what} is {text}")))
    }

    /// A label, a table of labels, or an instruction.
    fn labelled(&mut self, out: &mut Vec<Statement<'a>>) -> Result<()> {
        let line = self.line();
        let guard = self.guard()?;
        let name = self.name()?;
        if guard.is_some() || !self.accept(":")? {
            let instruction = self.instruction(line, guard, name)?;
            out.push(Statement::Instruction(instruction));
        } else if self.accept_dot(".branchtargets")? {
            let mut labels = vec![self.name()?];
            while self.accept(",")? {
                labels.push(self.name()?);
            }
            self.expect(";")?;
            out.push(Statement::Targets { line, name, labels });
        } else if self.token.is_dot(".callprototype") || self.token.is_dot(".calltargets") {
            return Err(Error::parse(line, format!("not supported: indirect calls ({} {name})", self.token.text)));
        } else {
            out.push(Statement::Label { line, name });
        }
        Ok(())
    }

    fn guard(&mut self) -> Result<Option<(&'a str, bool)>> {
        if !self.accept("@")? {
            return Ok(None);
        }
        let negated = self.accept("!")?;
        Ok(Some((self.name()?, negated)))
    }
}

/// `8.0` is 80.
fn parse_version(text: &str) -> Option<u32> {
    let (major, minor) = text.split_once('.')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    (major < 1000 && minor < 10).then_some(major * 10 + minor)
}
