//! The kernels that a CUDA source defines, with the names and kinds of their parameters: PTX has lost both. It is a reader for
//! the sources of `kernels/` and for those that replace them, not for C++ at large: one that it cannot read is an error.

use crate::text::without_comments;
use crate::{Error, Result};

/// The parameters of a kernel as its source declares them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declaration {
    /// The name; within a macro it can have `##` and a macro's parameter in it, which stand for any letters.
    pub(crate) name: String,
    pub(crate) parameters: Vec<Parameter>,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// What an argument must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An address, whatever it points to.
    Pointer,
    /// A value of this type.
    Value(String),
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Pointer => f.write_str("a pointer"),
            Kind::Value(name) => f.write_str(name),
        }
    }
}

impl Declaration {
    /// Whether this declares the kernel that PTX calls `entry`.
    pub(crate) fn declares(&self, entry: &str) -> bool {
        let mut pieces = self.name.split("##");
        let first = pieces.next().unwrap_or_default();
        let Some(mut rest) = entry.strip_prefix(first) else { return false };
        let pieces: Vec<&str> = pieces.collect();
        // Every second piece is a parameter of the macro: it stands for one word without underscores.
        for pair in pieces.chunks(2) {
            let word = rest.find('_').unwrap_or(rest.len());
            rest = &rest[word.max(1).min(rest.len())..];
            if let Some(literal) = pair.get(1) {
                let Some(after) = rest.strip_prefix(literal) else { return false };
                rest = after;
            }
        }
        rest.is_empty()
    }
}

/// Every kernel of `source`, in its order. `file` is for messages.
pub(crate) fn kernels(file: &str, source: &str) -> Result<Vec<Declaration>> {
    let text = without_comments(source).replace("\\\n", " ");
    let mut declarations = Vec::new();
    let starts = text.match_indices("__global__").chain(text.match_indices("KERNEL("));
    let mut starts: Vec<usize> = starts.map(|(at, _)| at).collect();
    starts.sort_unstable();
    for start in starts {
        let line = text[..start].rfind('\n').map_or(0, |at| at + 1);
        if text[line..].starts_with("#define KERNEL") {
            continue;
        }
        let broken =
            || Error::Compile(format!("{file}: a kernel whose head is not understood: {}", head(&text[start..])));
        declarations.push(declaration(&text[start..]).ok_or_else(broken)?);
    }
    Ok(declarations)
}

/// Reads `KERNEL(n) name(parameters)` or `__global__ void [__launch_bounds__(..)] name(parameters)`.
fn declaration(text: &str) -> Option<Declaration> {
    let mut rest =
        text.strip_prefix("__global__").or_else(|| Some(after_brackets(text.strip_prefix("KERNEL")?)?.trim_start()))?;
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix("void") {
            rest = after;
        } else if let Some(after) = rest.strip_prefix("__launch_bounds__") {
            rest = after_brackets(after.trim_start())?;
        } else {
            break;
        }
    }
    let open = rest.find('(')?;
    let name = rest[..open].trim();
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '#';
    if name.is_empty() || !name.chars().all(valid) {
        return None;
    }
    let inside = &rest[open + 1..rest.len() - after_brackets(&rest[open..])?.len() - 1];
    let parameters = inside.split(',').map(str::trim).filter(|p| !p.is_empty()).map(parameter);
    Some(Declaration { name: name.to_owned(), parameters: parameters.collect::<Option<_>>()? })
}

/// `const T* __restrict__ x` is a pointer called x, `VIEW x_view` a View, `u32 n` a u32.
fn parameter(text: &str) -> Option<Parameter> {
    let start = text.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))? + 1;
    let (ty, name) = text.split_at(start);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if ty.contains('*') {
        return Some(Parameter { name: name.to_owned(), kind: Kind::Pointer });
    }
    let words: Vec<&str> = ty.split_whitespace().filter(|w| !["const", "__grid_constant__"].contains(w)).collect();
    let value = match &words[..] {
        ["VIEW"] => "View".to_owned(),
        ["unsigned"] | ["unsigned", "int"] | ["uint32_t"] => "u32".to_owned(),
        ["int"] | ["int32_t"] => "i32".to_owned(),
        ["float"] => "f32".to_owned(),
        ["unsigned", "long", "long"] | ["size_t"] | ["uint64_t"] => "u64".to_owned(),
        ["long", "long"] | ["int64_t"] => "i64".to_owned(),
        [] => return None,
        words => words.join(" "),
    };
    Some(Parameter { name: name.to_owned(), kind: Kind::Value(value) })
}

/// What follows the bracket that closes the one at the start.
fn after_brackets(text: &str) -> Option<&str> {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            _ if depth == 0 => return None,
            _ => {}
        }
        if depth == 0 {
            return Some(&text[at + 1..]);
        }
    }
    None
}

fn head(text: &str) -> String {
    text.split_whitespace().take(8).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(name: &str) -> Parameter {
        Parameter { name: name.into(), kind: Kind::Pointer }
    }

    fn value(name: &str, ty: &str) -> Parameter {
        Parameter { name: name.into(), kind: Kind::Value(ty.into()) }
    }

    #[test]
    fn heads_are_read() {
        let source = r#"
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1024 / (threads))
// A comment about KERNEL(things) and /* others */
#define COPY(BITS)                                       \
    KERNEL(THREADS) copy_b##BITS(const u##BITS* __restrict__ x, VIEW x_view, /* why */ u##BITS* out, u64 n) { \
        copy(x, x_view, out, n);                         \
    }
extern "C" __global__ void __launch_bounds__(256) mine_f32(const float *x, float eps, unsigned int n) { x / n; }
KERNEL(1)
nothing() {}
"#;
        let found = kernels("test.cu", source).unwrap();
        let names: Vec<&str> = found.iter().map(|k| &*k.name).collect();
        assert_eq!(names, ["copy_b##BITS", "mine_f32", "nothing"]);
        assert_eq!(found[0].parameters, [pointer("x"), value("x_view", "View"), pointer("out"), value("n", "u64")]);
        assert_eq!(found[1].parameters, [pointer("x"), value("eps", "f32"), value("n", "u32")]);
        assert!(found[2].parameters.is_empty());
        assert!(found[0].declares("copy_b16") && !found[0].declares("copy"));
        assert!(found[1].declares("mine_f32") && !found[1].declares("mine_f16"));
    }

    #[test]
    fn pasted_names_stand_for_one_word() {
        let cast = Declaration { name: "cast_##X##_##Y".into(), parameters: Vec::new() };
        assert!(cast.declares("cast_f32_bf16") && cast.declares("cast_i8_u8"));
        assert!(!cast.declares("cast_f32") && !cast.declares("cast_f32_bf16_x") && !cast.declares("copy_b8"));
        let backward = Declaration { name: "unary_backward_##T".into(), parameters: Vec::new() };
        let forward = Declaration { name: "unary_##T".into(), parameters: Vec::new() };
        assert!(backward.declares("unary_backward_f32") && !forward.declares("unary_backward_f32"));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for source in
            ["__global__ void (int x)", "KERNEL(3 name(int x)", "__global__ void k(int)", "__global__ void k(int x"]
        {
            assert!(kernels("bad.cu", source).unwrap_err().to_string().contains("bad.cu"), "{source}");
        }
    }
}
