//! Where the assistant's turns lie in a rendered chat.
//!
//! Positions come from rendering, never from searching for token ids: a turn starts where the prompt
//! for it ends (the chat up to it, rendered with the generation prompt, which is what `generate`
//! sends), and its text ends where the rendering stops changing when the text is replaced.

use kinglet_tensor::{Error, Result};
use serde_json::Value;

use crate::template::{ChatTemplate, Message, RenderOptions};

/// A turn's place in the rendered chat, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Where generation of the turn begins.
    pub(crate) start: usize,
    /// Where what the assistant says ends, tool calls included; the turn's end token comes after it.
    pub(crate) text_end: usize,
}

/// A chat and its template.
pub(crate) struct RenderedChat<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Message],
    tools: Option<&'a Value>,
    /// The whole chat.
    pub(crate) text: String,
}

impl<'a> RenderedChat<'a> {
    pub(crate) fn new(template: &'a ChatTemplate, messages: &'a [Message], tools: Option<&'a Value>) -> Result<Self> {
        let text = render(template, messages, tools, false)?;
        Ok(RenderedChat { template, messages, tools, text })
    }

    /// The place of assistant message `index`.
    pub(crate) fn turn(&self, index: usize) -> Result<Turn> {
        let (head, text_end) = self.around_text(index)?;
        let start = match (index, head) {
            // No template renders an empty chat, so an opening assistant message starts with its text.
            (0, Some(head)) => head,
            _ => self.prompt_end(index)?,
        };
        if start > text_end {
            return Err(self.error(index, "its prompt reaches beyond its text"));
        }
        Ok(Turn { start, text_end })
    }

    /// The length of the prompt for message `index`, which must be a prefix of the chat.
    fn prompt_end(&self, index: usize) -> Result<usize> {
        let prompt = render(self.template, &self.messages[..index], self.tools, true)?;
        if !self.text.starts_with(&prompt) {
            return Err(self.error(index, "the chat does not begin with the prompt for it"));
        }
        Ok(prompt.len())
    }

    /// Where the text of message `index` starts (if what goes before does not depend on the text) and
    /// ends: everything around a marker in its place. Tool calls are part of what the marker replaces.
    fn around_text(&self, index: usize) -> Result<(Option<usize>, usize)> {
        let marker = unused_marker(&self.text);
        let mut messages = self.messages.to_vec();
        messages[index] = match messages[index].has_tool_calls() {
            true => Message::new(messages[index].role(), &marker),
            false => messages[index].with_content(&marker),
        };
        let probe = render(self.template, &messages, self.tools, false)?;
        let mut parts = probe.split(&marker);
        let (Some(head), Some(tail), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(self.error(index, "its text is not rendered exactly once"));
        };
        if !self.text.ends_with(tail) {
            return Err(self.error(index, "its text changes what comes after it"));
        }
        let head = self.text.starts_with(head).then_some(head.len());
        Ok((head, self.text.len() - tail.len()))
    }

    fn error(&self, index: usize, why: &str) -> Error {
        Error::invalid(format!(
            "chat template {} does not let the targets of message {} be found: {why}; use --chat-template or --raw",
            self.template.origin(),
            index + 1
        ))
    }
}

/// Renders a chat with the template's defaults.
pub(crate) fn render(
    template: &ChatTemplate,
    messages: &[Message],
    tools: Option<&Value>,
    add_generation_prompt: bool,
) -> Result<String> {
    let options = RenderOptions { add_generation_prompt, tools: tools.cloned(), ..RenderOptions::default() };
    template.render(messages, &options)
}

/// A plain word that `text` does not hold: one X longer than any like it there.
fn unused_marker(text: &str) -> String {
    const MARKER: &str = "KINGLETMARKER";
    let run = |(at, _)| text[at + MARKER.len()..].bytes().take_while(|&byte| byte == b'X').count();
    let longest = text.match_indices(MARKER).map(run).max();
    MARKER.to_owned() + &"X".repeat(longest.map_or(0, |longest| longest + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_unused_even_by_a_text_that_is_made_of_markers() {
        assert_eq!(unused_marker("plain"), "KINGLETMARKER");
        assert_eq!(unused_marker("KINGLETMARKER"), "KINGLETMARKERX");
        // Trying one X more at a time would take hours here.
        let hostile = format!("KINGLETMARKERX KINGLETMARKER{} KINGLETMARKER", "X".repeat(3 << 20));
        let marker = unused_marker(&hostile);
        assert!(!hostile.contains(&marker) && marker.len() < hostile.len());
    }
}
