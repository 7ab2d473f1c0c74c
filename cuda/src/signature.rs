//! The parameters of the kernels in a PTX text: how many, and of how many bytes. A driver reads as many bytes of an argument
//! as the kernel declares, so a launch is checked against this before it reaches one.

use crate::{Error, Result};
use std::collections::HashMap;

/// Bytes of each parameter, by kernel.
pub(crate) type Signatures = HashMap<String, Vec<usize>>;

/// Reads the `.entry` headers of `ptx`. `module` is for messages.
pub(crate) fn read(module: &str, ptx: &str) -> Result<Signatures> {
    let text = crate::text::without_comments(ptx);
    let mut signatures = Signatures::new();
    for after in text.split(".entry").skip(1) {
        let end = after.find(['{', ';']).unwrap_or(after.len());
        let header = &after[..end];
        let name = header.split(['(', ' ', '\t', '\n', '\r']).find(|word| !word.is_empty()).unwrap_or_default();
        let parameters = match header.split_once('(') {
            None => Ok(Vec::new()),
            Some((_, rest)) => rest.split(')').next().unwrap_or_default().split(',').filter_map(parameter).collect(),
        };
        let parameters = parameters.map_err(|what| {
            Error::Compile(format!("module {module}: kernel {name}: parameter {what} is not understood"))
        })?;
        if signatures.insert(name.to_owned(), parameters).is_some() {
            return Err(Error::Compile(format!("module {module}: two kernels are called {name}")));
        }
    }
    Ok(signatures)
}

/// Bytes of one parameter (`.param .align 8 .b8 name[24]`); `None` for no parameter at all, its text when it is not understood.
fn parameter(text: &str) -> Option<std::result::Result<usize, &str>> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    let words = text.split_whitespace();
    let scalar = words.filter_map(|word| scalar_bytes(word.strip_prefix('.')?)).next_back();
    let count = match text.split_once('[') {
        None => Some(1),
        Some((_, rest)) => rest.split(']').next().and_then(|number| number.trim().parse::<usize>().ok()),
    };
    let bytes = scalar.zip(count).and_then(|(bytes, count)| bytes.checked_mul(count));
    Some(bytes.filter(|_| text.starts_with(".param")).ok_or(text))
}

fn scalar_bytes(name: &str) -> Option<usize> {
    let width = name.strip_prefix(['b', 'u', 's', 'f'])?;
    match width {
        "8" => Some(1),
        "16" => Some(2),
        "32" => Some(4),
        "64" => Some(8),
        _ => None,
    }
}

/// An error unless `given` are the bytes of the arguments that `entry` takes.
pub(crate) fn check(entry: &str, wanted: &[usize], given: &[usize]) -> Result<()> {
    if wanted == given {
        return Ok(());
    }
    Err(Error::invalid(format!("kernel {entry} takes arguments of {wanted:?} bytes, not {given:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read() {
        let ptx = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry first(
	.param .u64 .ptr .align 1 first_param_0, // a comment, with .entry
	.param .u32 first_param_1,
	.param .align 8 .b8 first_param_2[88]
)
.maxntid 128, 1, 1
{
	ret;
}
.entry second() { ret; }
.entry third { ret; }
.visible .entry fourth(.param .f32 x);
";
        let signatures = read("m", ptx).unwrap();
        assert_eq!(signatures.len(), 4);
        assert_eq!(signatures["first"], [8, 4, 88]);
        assert!(signatures["second"].is_empty() && signatures["third"].is_empty());
        assert_eq!(signatures["fourth"], [4]);
        assert!(check("first", &signatures["first"], &[8, 4, 88]).is_ok());
        let error = check("first", &signatures["first"], &[8, 4]).unwrap_err().to_string();
        assert_eq!(error, "kernel first takes arguments of [8, 4, 88] bytes, not [8, 4]");
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for header in [".param .b999 x", ".param .b8 x[", ".param .b8 x[-1]", ".reg .b32 x", ".param x"] {
            let error = read("m", &format!(".entry k({header}) {{ }}")).unwrap_err().to_string();
            assert!(error.contains("kernel k"), "{error}");
        }
        let twice = ".entry k(.param .u64 x) { ret; } .entry k() { ret; }";
        assert!(read("m", twice).unwrap_err().to_string().contains("two kernels"));
        let hidden = read("m", "/* .entry k(.param .u64 x) { } */ .entry k(.param /* .u64 */ .u32 x) { }").unwrap();
        assert_eq!(hidden["k"], [4]);
        let huge = format!(".entry k(.param .b64 x[{}]) {{ }}", usize::MAX);
        assert!(read("m", &huge).is_err());
    }
}
