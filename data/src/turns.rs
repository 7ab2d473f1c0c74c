//! Where the assistant's turns lie in a rendered chat.
//!
//! Positions come from rendering, never from searching for token ids: a turn starts where the prompt
//! for it ends (the chat up to it, rendered with the generation prompt, which is what `generate`
//! sends), and its text ends where the rendering stops changing when the text is replaced.

use kinglet_tensor::{Error, Result};
use serde_json::Value;
use std::borrow::Cow;

use crate::template::{Chat, ChatTemplate, Message, RenderOptions};

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
    /// What the turn that is asked for first takes, rendered together with the chat to save time.
    first: Option<Probe>,
}

/// What tells where the turn of a message lies.
struct Probe {
    /// The message.
    index: usize,
    /// A word that the chat does not hold.
    marker: String,
    /// The chat with the marker for the text of the message. Tool calls are part of what it stands for.
    marked: Result<String>,
    /// The prompt for the message. No template renders an empty chat: for the opening message this may be an error.
    prompt: Result<String>,
}

impl<'a> RenderedChat<'a> {
    /// Renders a chat; the turn of message `first`, if there is one, is what will be asked for first.
    pub(crate) fn new(
        template: &'a ChatTemplate,
        messages: &'a [Message],
        tools: Option<&'a Value>,
        first: Option<usize>,
    ) -> Result<Self> {
        let mut chat = RenderedChat { template, messages, tools, text: String::new(), first: None };
        let Some(first) = first else {
            chat.text = template.render(messages, &options(tools, false))?;
            return Ok(chat);
        };
        let marker = unused_marker("");
        let [whole, marked, prompt] = chat.render_all([
            chat.request(messages.into(), false),
            chat.request(chat.marked(first, &marker).into(), false),
            chat.request(messages[..first].into(), true),
        ])?;
        chat.text = whole?;
        if !chat.text.contains(&marker) {
            chat.first = Some(Probe { index: first, marker, marked, prompt });
        }
        Ok(chat)
    }

    /// The place of assistant message `index`.
    pub(crate) fn turn(&mut self, index: usize) -> Result<Turn> {
        let Probe { marker, marked, prompt, .. } = match self.first.take_if(|probe| probe.index == index) {
            Some(probe) => probe,
            None => self.probe(index)?,
        };
        let (head, text_end) = self.around_text(index, &marker, &marked?)?;
        let start = match (index, head) {
            // An opening assistant message starts with its text.
            (0, Some(head)) => head,
            _ => self.prompt_end(index, &prompt?)?,
        };
        if start > text_end {
            return Err(self.error(index, "its prompt reaches beyond its text"));
        }
        Ok(Turn { start, text_end })
    }

    fn probe(&self, index: usize) -> Result<Probe> {
        let marker = unused_marker(&self.text);
        let [marked, prompt] = self.render_all([
            self.request(self.marked(index, &marker).into(), false),
            self.request(self.messages[..index].into(), true),
        ])?;
        Ok(Probe { index, marker, marked, prompt })
    }

    /// The messages with the marker in the place of one's text, and of its tool calls.
    fn marked(&self, index: usize, marker: &str) -> Vec<Message> {
        let mut messages = self.messages.to_vec();
        messages[index] = match messages[index].has_tool_calls() {
            true => Message::new(messages[index].role(), marker),
            false => messages[index].with_content(marker),
        };
        messages
    }

    fn request<'m>(&self, messages: Cow<'m, [Message]>, add_generation_prompt: bool) -> Chat<'m> {
        Chat { messages, options: Cow::Owned(options(self.tools, add_generation_prompt)) }
    }

    fn render_all<const N: usize>(&self, chats: [Chat<'_>; N]) -> Result<[Result<String>; N]> {
        let rendered = self.template.render_all(&chats)?;
        Ok(rendered.try_into().expect("each chat is rendered or an error"))
    }

    /// The length of the prompt for message `index`, which must be a prefix of the chat.
    fn prompt_end(&self, index: usize, prompt: &str) -> Result<usize> {
        if !self.text.starts_with(prompt) {
            return Err(self.error(index, "the chat does not begin with the prompt for it"));
        }
        Ok(prompt.len())
    }

    /// Where the text of message `index` starts (if what goes before does not depend on the text) and
    /// ends: everything around the marker in its place.
    fn around_text(&self, index: usize, marker: &str, marked: &str) -> Result<(Option<usize>, usize)> {
        let mut parts = marked.split(marker);
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
    template.render(messages, &options(tools, add_generation_prompt))
}

fn options(tools: Option<&Value>, add_generation_prompt: bool) -> RenderOptions {
    RenderOptions { add_generation_prompt, tools: tools.cloned(), ..RenderOptions::default() }
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
