//! What PTX and CUDA source have in common as texts.

/// The text without comments; a block comment leaves a space.
pub(crate) fn without_comments(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('/') {
        let (before, comment) = rest.split_at(at);
        text.push_str(before);
        rest = if comment.starts_with("//") {
            &comment[comment.find('\n').unwrap_or(comment.len())..]
        } else if let Some(comment) = comment.strip_prefix("/*") {
            text.push(' ');
            comment.find("*/").map_or("", |end| &comment[end + 2..])
        } else {
            text.push('/');
            &comment[1..]
        };
    }
    text.push_str(rest);
    text
}
